"""Activations and quantisers written by hand: what they become, on all numbers, and what stays as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike.errors import OptionError
from parspike.graph import Node, Quantised, Role, rewrite, trace
from parspike.graph.course import clip_of, course_of, turn_of

Function = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """linear → f → linear for every function of a table, all behind one linear layer."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.functions = nn.Linear(8, 16), nn.Linear(16, 4), dict(functions)
        self.modules_among = nn.ModuleList(f for f in functions.values() if isinstance(f, nn.Module))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.first(x)
        return {name: self.last(function(z)) for name, function in self.functions.items()}


X = 3 * torch.randn(128, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@dataclass
class Case:
    """One function's part of a network."""

    neurons: list[Node]
    analog: list[str]
    found: Tensor
    wanted: Tensor
    rows: list[str]


@functools.cache
def planned(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, parspike.Plan]:
    model = Network(TABLES[kind]).eval().to(dtype)
    return model, parspike.plan(model, X.to(dtype), free_sizes=False)


@torch.no_grad()
def case(kind: str, name: str, dtype: torch.dtype = torch.float64) -> Case:
    model, plan = planned(kind, dtype)
    graph = plan.graph
    inside, todo = set(), [graph.output[name].name]
    while todo:
        here = todo.pop()
        if here in graph.by_name and here not in inside:
            inside.add(here)
            todo += graph.by_name[here].refs
    nodes = [node for node in graph.nodes if node.name in inside]
    neurons = [node for node in nodes if node.name in plan.spiking]
    rows = [row.becomes for row in plan.rows if row.layer in {node.layer for node in neurons}]
    named = [n.target.split(".")[1] for n in nodes if n.role in (Role.ANALOG, Role.ORDER)]
    return Case(neurons, named, graph.run(X.to(dtype))[name], model(X.to(dtype))[name], rows)


@functools.cache
def converted(kind: str, T: int) -> dict[str, Tensor]:
    with torch.no_grad():
        return parspike.convert(planned(kind)[1], X, T=T, recipe="max")(X)


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# ------------------------------------------------------------------------------------------------------- clips

CLIPS: dict[str, tuple[Function, tuple[float | None, float | None]]] = {
    "x·(x > 0)": (lambda x: x * (x > 0), (0, None)),
    "x·(x > 0), cast": (lambda x: x * (x > 0).to(x.dtype), (0, None)),
    "(x + |x|)/2": (lambda x: 0.5 * (x + x.abs()), (0, None)),
    "maximum of zeros": (lambda x: torch.maximum(x, torch.zeros_like(x)), (0, None)),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0), (0, None)),
    "where, zeros": (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), (0, None)),
    "capped at 20": (lambda x: torch.where(x > 20, torch.full_like(x, 20.0), x * (x > 0)), (0, 20)),
    "capped at 65504": (lambda x: torch.where(x > 65504, 65504.0, x.relu()), (0, 65504)),
    "capped at 1e6": (lambda x: torch.minimum(x.relu(), torch.full_like(x, 1e6)), (0, 1e6)),
    "capped at 1e-6": (lambda x: torch.minimum(x.relu(), torch.full_like(x, 1e-6)), (0, 1e-6)),
    "PACT": (lambda x: 0.5 * (x.abs() - (x - 1.7).abs() + 1.7), (0, 1.7)),
    "difference of two": (lambda x: x.relu() - (x - 6).relu(), (0, 6)),
    "minimum of a maximum": (lambda x: torch.min(torch.max(x, -torch.ones_like(x)), torch.full_like(x, 2)), (-1, 2)),
    "two clips in a row": (lambda x: F.relu6(x.relu()), (0, 6)),
    "conditions": (lambda x: ((x > 0) & (x < 6)).to(x.dtype) * x + (x >= 6).to(x.dtype) * 6, (0, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", CLIPS)
def test_what_equals_a_clip_becomes_that_clip(name):
    here, (low, high) = case("clips", name), CLIPS[name][1]
    (node,) = here.neurons
    assert here.analog == []
    if (low, high) == (0, None):
        assert node.target == "aten.relu.default"
    else:
        assert node.target == "aten.clamp.default"
        assert node.args[1:] == pytest.approx((low, high), rel=1e-12)
    torch.testing.assert_close(here.found, here.wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_cap_that_the_example_does_not_reach_stays_a_cap():
    model, plan = planned("clips")
    snn, loud = parspike.convert(plan, [X / 3, 20 * X], T=256, recipe="max"), 20 * X
    assert isinstance(model, Network)
    assert float(model.first(loud).max()) > 30
    assert apart(snn(loud)["capped at 20"], model(loud)["capped at 20"]) < 0.02


# ---------------------------------------------------------------------------------------------------- activations

MONOTONE: dict[str, Function] = {
    "softplus": lambda x: torch.log(1 + torch.exp(x)), "softplus, log1p": lambda x: torch.log1p(x.exp()),
    "softplus, stable": lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)), "sigmoid, fraction": lambda x: x.exp() / (1 + x.exp()),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "squareplus": lambda x: (x + torch.sqrt(x * x + 4)) / 2, "softsign": lambda x: x / (1 + x.abs()),
    "isru": lambda x: x / torch.sqrt(1 + x * x), "isru, rsqrt": lambda x: x * torch.rsqrt(1 + x * x),
    "leaky, max": lambda x: torch.max(0.1 * x, x), "leaky, where": lambda x: torch.where(x > 0, x, 0.01 * x),
    "relu²": lambda x: x.clamp(min=0).pow(2), "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "elu, masks": lambda x: (x > 0) * x + (x <= 0) * (x.exp() - 1),
    "selu": lambda x: 1.05 * (x.relu() + torch.minimum(torch.zeros_like(x), 1.67 * (x.exp() - 1))),
    "shifted": lambda x: 3 / (1 + torch.exp(-x)) - 1, "fat relu": lambda x: torch.where(x > 0.5, x, 0 * x),
}  # fmt: skip
TURNING: dict[str, Function] = {
    "hard-swish": lambda x: x * torch.clamp(x + 3, 0, 6) / 6, "silu": lambda x: x / (1 + torch.exp(-x)),
    "mish": lambda x: x * torch.tanh(F.softplus(x)), "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "|x|": lambda x: torch.where(x > 0, x, -x),
}  # fmt: skip


@pytest.mark.parametrize("name", [*MONOTONE, *TURNING])
def test_what_never_falls_or_turns_once_becomes_neurons(name):
    here = case("activations", name)
    assert here.analog == []
    assert len(here.neurons) == (1 if name in MONOTONE else 2)
    torch.testing.assert_close(here.found, here.wanted, rtol=1e-9, atol=1e-9)
    error = [apart(converted("activations", T)[name], here.wanted) for T in (8, 512)]
    assert error[1] < min(0.01, error[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*MONOTONE, *TURNING])
def test_activations_in_every_type(name, dtype):
    here = case("activations", name, dtype)
    assert here.analog == []
    assert len(here.neurons) == (1 if name in MONOTONE else 2)
    assert here.found.dtype == dtype
    assert apart(here.found, here.wanted) < 8 * torch.finfo(dtype).eps


STAYS: dict[str, tuple[Function, str]] = {
    "binary": (lambda x: (x > 0).to(x.dtype), "gt"),
    "binary, where": (lambda x: torch.where(x > 0, torch.ones_like(x), -torch.ones_like(x)), "where"),
    "sign": (torch.sign, "sign"), "ceil": (lambda x: torch.ceil(x.clamp(0, 1) * 4) / 4, "ceil"),
    "turns at 1e5": (lambda x: torch.where(x < 1e5, -x, x - 2e5), "where"),
    "exp": (lambda x: torch.exp(2 * x), "exp"), "square": (lambda x: x * x, "mul"),
    "sin": (lambda x: torch.sin(3 * x), "sin"),
    "bump": (lambda x: torch.exp(-x * x), "exp"), "step far out": (lambda x: x.relu() * (x < 5e4), "lt"),
    "softmax": (lambda x: (x / 2).exp() / (x / 2).exp().sum(1, keepdim=True), "exp"),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_neuron_stays_analog_and_is_named(name):
    here = case("stays", name)
    assert STAYS[name][1] in here.analog
    assert "parspike.pointwise" not in [node.target for node in here.neurons]
    torch.testing.assert_close(here.found, here.wanted, rtol=1e-9, atol=1e-9)


class Masked(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.attention = kind, nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        if self.kind == "key_padding_mask":
            return self.head(self.attention(x, x, x, key_padding_mask=pad, need_weights=False)[0])
        none = torch.zeros_like(pad, dtype=x.dtype)
        full = torch.full_like(none, -1e9)
        bias = {
            "masked_fill": lambda: none.masked_fill(pad, -1e9), "where": lambda: torch.where(pad, full, none),
            "product": lambda: pad.to(x.dtype) * -1e9, "not": lambda: (1.0 - (~pad).to(x.dtype)) * -1e9,
            "numbers": lambda: torch.where(pad.long() > 0, -1e9, 0.0), "maximum": lambda: -1e9 * pad.float(),
        }[self.kind]()  # fmt: skip
        return self.head((x @ x.transpose(1, 2) + bias[:, None]).softmax(-1) @ x)


@pytest.mark.parametrize("kind", ["key_padding_mask", "masked_fill", "where", "product", "not", "numbers", "maximum"])
@torch.no_grad()
def test_padding_masks_are_no_activations(kind):
    model, x, pad = Masked(kind).eval(), torch.randn(8, 10, 16), torch.arange(10).repeat(8, 1) >= 7
    plan = parspike.plan(model, (x, pad), free_sizes=False)
    assert [node.target for node in plan.graph.neurons] == ["aten.relu.default"]
    snn, wanted = parspike.convert(plan, [(x, pad)], T=256, recipe="max"), model(x, pad)
    assert float((snn(x, pad) - wanted).norm() / wanted.norm()) < 0.02


def test_a_value_that_is_read_elsewhere_keeps_its_neuron():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x).relu()
            bent = hidden.tanh()
            return self.one(hidden) + self.two(bent) + self.two(hidden.clamp(max=2) + bent)

    graph = rewrite(trace(Both().eval(), (torch.randn(4, 8),), free_sizes=False))
    assert [node.target.split(".")[1] for node in graph.neurons] == ["relu", "tanh", "clamp"]
    assert all(node.role is not Role.ANALOG for node in graph.nodes)


# ---------------------------------------------------------------------------------------------- over all numbers


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: torch.where(x > 5e4, 0 * x, x.relu()), "falls from 50000 at 50000 to 0 at 50000"),
        (lambda x: x - 5 * (x > 1000.3), "falls from 1000.3 at 1000.3 to 995.3 at 1000.3"),
        (lambda x: x - 0.001 * (x > 123456.789), "falls from 123456.789"),
        (lambda x: x - 2 * (x - 1e4).relu() + 2 * (x - 10000.1).relu(), "falls from 10000 at 10000 to 9999.9"),
        (lambda x: x.relu() - torch.tanh(1000 * (x - 1000)), "falls from 1000"),
        (lambda x: x * (1 - 2 * ((x - 1000) ** 2 < 1e-6)), "falls from 999.999"),
        (lambda x: x.clamp(max=1e30) - (x > 2e25) * 1e25, "falls from 2e"),
        (lambda x: 1e-20 * (x / 1e-20 + 3 * torch.cos(x / 1e-20)), "falls from"),
        (lambda x: -x.relu(), "falls from -0 at -60 to -60 at 60"),
    ],
)
def test_a_fall_is_found_wherever_it_is(function, says):
    assert says in turn_of(function)


@pytest.mark.parametrize("cap", [1e-12, 100.0, 1e4, 65504.0, 1e6, 1e30])
def test_a_cap_is_found_wherever_it_is(cap):
    function = lambda x: torch.where(x > cap, cap, x * (x > 0))  # noqa: E731
    course = course_of(function)
    assert not isinstance(course, str)
    assert turn_of(function, course) is None
    assert clip_of(course, [cap]) == (0.0, cap)
    softer = course_of(lambda x: torch.where(x > cap, cap + 0.01 * (x - cap), x * (x > 0)))
    assert not isinstance(softer, str)
    assert clip_of(softer, [cap]) is None


def test_an_overflow_far_out_is_no_fall():
    assert turn_of(lambda x: x / torch.sqrt(1 + x * x)) is None  # x/∞ is 0 from 1e154 on
    assert turn_of(lambda x: torch.log(1 + torch.exp(x))) is None
    assert turn_of(lambda x: 0.5 * (x.abs() - (x - 1.7).abs() + 1.7)) is None  # rounds to α/2 from 1e16 on


def test_register_looks_far_out_too():
    with pytest.raises(OptionError, match="falls from 100 at 100 to 0 at 100"):
        parspike.register(lambda x: torch.where(x > 100, 0 * x, x.relu()), name="drops_far_out")
    capped = parspike.register(lambda x: x.clamp(0, 1e4) ** 1.5, name="capped_far_out")
    assert float(capped(torch.tensor(2e4))) == pytest.approx(1e6)


# ---------------------------------------------------------------------------------------------------- quantisers


def straight(y: Tensor, x: Tensor) -> Tensor:
    return (y - x).detach() + x


class Floor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


class Published(nn.Module):
    """QCFS with a parameter (1,), as its authors write it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.t = nn.Parameter(torch.tensor([1.5])), 4

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(x / self.up, 0, 1)
        return Floor.apply(x * self.t + 0.5) / self.t * self.up


class Lsq(nn.Module):
    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.s, self.low, self.high = nn.Parameter(torch.tensor(0.3)), low, high

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.s * 0.01
        s = (self.s - scaled).detach() + scaled
        x = torch.clamp(x / s, self.low, self.high)
        return ((x.round() - x).detach() + x) * s


QUANTISERS: dict[str, tuple[Function, int]] = {
    "QCFS, published": (Published(), 4), "LSQ": (Lsq(0, 7), 7), "LSQ, signed": (Lsq(-4, 3), 7),
    "floor, then clamp": (lambda x: torch.clamp(torch.floor(x / 1.5 * 4 + 0.5) / 4, 0, 1) * 1.5, 4),
    "floor without 1/2": (lambda x: torch.clamp(torch.floor(x / 1.5 * 4) / 4, 0, 1) * 1.5, 4),
    "DoReFa": (lambda x: torch.round(torch.clamp(x, 0, 1) * 15) / 15, 15),
    "PACT": (lambda x: straight(torch.round(0.5 * (x.abs() - (x - 2).abs() + 2) * 3.5) / 3.5, x), 7),
    "PACT, clamp": (lambda x: torch.round(torch.minimum(x.relu(), torch.full_like(x, 1.3)) * 7 / 1.3) * 1.3 / 7, 7),
    "step outside": (lambda x: x + (torch.clamp(torch.round(x / 0.3), 0, 7) * 0.3 - x).detach(), 7),
    "signed": (lambda x: torch.clamp(torch.round(x / 0.3), -4, 4) * 0.3, 8),
    "not scaled back": (lambda x: torch.clamp(torch.round(x * 8), 0, 15), 15),
    "cast to int": (lambda x: torch.clamp(x * 4, 0, 7).int().to(x.dtype) / 4, 7),
    "//": (lambda x: torch.clamp(x // 0.25, 0, 7) * 0.25, 7),
    "one bit": (lambda x: torch.round(torch.clamp(x, 0, 1)), 1),
    "comparisons": (lambda x: 0.5 * (x > 0.25).to(x.dtype) + 0.5 * (x > 0.75).to(x.dtype), 2),
    "ternary": (lambda x: (x > 0.5).to(x.dtype) - (x < -0.5).to(x.dtype), 2),
    "tiny": (lambda x: torch.round(torch.clamp(x * 1e-20 / 3e-21, 0, 7)) * 3e-21, 7),
    "8 bits": (lambda x: torch.round(torch.clamp(x, 0, 4) * 255 / 4) * 4 / 255, 255),
    "fake_quantize": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.25, 0, 0, 15), 15),
    "fake_quantize, zero point": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.25, 8, 0, 15), 15),
}  # fmt: skip


TABLES: dict[str, dict[str, Function]] = {
    "clips": {name: function for name, (function, _) in CLIPS.items()},
    "activations": {**MONOTONE, **TURNING},
    "stays": {name: function for name, (function, _) in STAYS.items()},
    "quantisers": {name: function for name, (function, _) in QUANTISERS.items()},
    "uneven": {"squares": lambda x: torch.round(torch.clamp(x, 0, 1) ** 2 * 4) / 4},
}


def levels_of_layers(plan: parspike.Plan) -> dict[str, parspike.Steps]:
    """Time-steps for every layer: as many as it has levels."""
    return {node.layer: parspike.Steps(level(plan, node)) for node in plan.graph.neurons}


def level(plan: parspike.Plan, node: Node) -> int:
    activation = plan.activation(node)
    assert isinstance(activation, Quantised)
    return activation.levels


@pytest.mark.parametrize("name", QUANTISERS)
def test_quantisers_are_qcfs(name):
    here, plan = case("quantisers", name), planned("quantisers")[1]
    (node,) = here.neurons
    assert here.analog == []
    assert level(plan, node) == QUANTISERS[name][1]
    assert here.rows == [f"parallel spiking neuron, QCFS with L = {QUANTISERS[name][1]}"]
    torch.testing.assert_close(here.found, here.wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_quantised_networks_are_lossless_at_their_levels(dtype, tmp_path):
    model, plan = planned("quantisers", dtype)
    plan = parspike.plan(model, X.to(dtype), free_sizes=False, layers=levels_of_layers(plan))
    snn, x = parspike.convert(plan, T=255), X.to(dtype)  # without data
    found, wanted = snn(x), model(x)
    for name in QUANTISERS:
        if dtype == torch.float64:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-12, atol=1e-12)
        else:  # rounding may move a current across a jump
            slack = 16 * torch.finfo(dtype).eps * wanted[name].abs().max()
            same = ((found[name] - wanted[name]).abs() <= slack).all(1)
            assert float(same.double().mean()) > (0.95 if dtype == torch.float32 else 0.4), name
    if dtype == torch.float64:
        again = parspike.load(snn.save(tmp_path / "net.parspike"))(x)
        assert all(torch.equal(again[name], found[name]) for name in QUANTISERS)


class PerChannel(nn.Module):
    step: Tensor
    zero: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.conv, self.last = kind, nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3, 4)
        self.top = nn.Parameter(torch.tensor([1.0, 0.5, 0.2]).reshape(1, 3, 1, 1))
        self.register_buffer("step", torch.tensor([0.1, 0.2, 0.3]))
        self.register_buffer("zero", torch.zeros(3, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        x, top = self.conv(x), self.top
        hidden = {
            "LSQ": lambda: torch.round(torch.clamp(x / top * 7, 0, 7)) * top / 7,
            "signed": lambda: torch.round(torch.clamp(x / top * 7, -7, 7)) * top / 7,
            "floor": lambda: torch.clamp(torch.floor(x / top * 4), 0, 4) * top / 4,
            "clamp": lambda: torch.round(torch.clamp(x, torch.zeros_like(top), top) / top * 7) / 7 * top,
            "PACT": lambda: torch.round(torch.minimum(x.relu(), top) / top * 7) / 7 * top,
            "where": lambda: torch.round(torch.where(x < top, x.relu(), top) / top * 7) / 7 * top,
            "fake_quantize": lambda: torch.fake_quantize_per_channel_affine(x, self.step, self.zero, 1, 0, 15),
        }[self.kind]()
        return self.last(hidden.mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "levels"),
    [("LSQ", 7), ("signed", 14), ("floor", 4), ("clamp", 7), ("PACT", 7), ("where", 7), ("fake_quantize", 15)],
)
@torch.no_grad()
def test_a_step_for_every_channel(kind, levels):
    dtype = torch.float32 if kind == "fake_quantize" else torch.float64  # torch's own takes no other scale
    model, x = PerChannel(kind).eval().to(dtype), torch.randn(16, 2, 6, 6, dtype=dtype)
    plan = parspike.plan(model, x, free_sizes=False)
    (node,) = plan.graph.neurons
    activation = plan.activation(node)
    assert isinstance(activation, Quantised)
    assert activation.levels == levels
    assert plan.graph.tensors[activation.v_threshold].shape == (3, 1, 1)
    torch.testing.assert_close(parspike.convert(plan, T=levels)(x), model(x), rtol=1e-6, atol=1e-6)
    later = parspike.convert(plan, x, T=4 * levels, recipe="daqcfs")
    assert float((later(x) - model(x)).norm() / model(x).norm()) < 0.2


@torch.no_grad()
def test_quantised_networks_at_other_steps_are_calibrated_as_qcfs_is():
    class Own(nn.Module):
        def __init__(self, activation: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(8, 32), activation, nn.Linear(32, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    theirs, ours = Own(Published()).eval().double(), Own(parspike.QCFS(4, 1.5)).eval().double()
    for T in (2, 4, 8):
        found, wanted = (parspike.convert(model, X, T=T, recipe="daqcfs")(X) for model in (theirs, ours))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_unevenly_spaced_levels_become_a_staircase():
    here = case("uneven", "squares")
    assert [node.target for node in here.neurons] == ["parspike.pointwise"]
    assert apart(converted("uneven", 4)["squares"], here.wanted) < 0.01


@torch.no_grad()
def test_a_step_for_every_pixel_stays_around_the_levels():
    """Thresholds run along channels, not pixels: the scale of each pixel is a synapse before and behind the neuron."""

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3, 2)
            self.top = nn.Parameter(torch.linspace(1, 2, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.last((torch.round(torch.clamp(x / self.top * 7, 0, 7)) * self.top / 7).mean((2, 3)))

    model, x = Pixels().eval().double(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    plan = parspike.plan(model, x, free_sizes=False)
    (node,) = plan.graph.neurons
    assert plan.graph.tensors[node.args[1].path].shape == ()
    torch.testing.assert_close(parspike.convert(plan, T=7)(x), model(x), rtol=1e-12, atol=1e-12)
