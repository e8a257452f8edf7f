"""Activations and quantisers written by hand: what they become, on all numbers, and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike.errors import OptionError
from parspike.graph import Quantised, Role, rewrite, trace
from parspike.graph.course import clip_of, course_of, turn_of

Function = Callable[[Tensor], Tensor]


class Two(nn.Module):
    """linear → f → linear."""

    def __init__(self, function: Function | nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(8, 16), nn.Linear(16, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


X = 3 * torch.randn(128, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def planned(function: Function | nn.Module, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, parspike.Plan]:
    """A network and its plan, whose graph computes what the network does."""
    model = Two(function).eval().to(dtype)
    plan = parspike.plan(model, X.to(dtype), free_sizes=False)
    if dtype == torch.float64:
        torch.testing.assert_close(plan.graph.run(X), model(X), rtol=1e-9, atol=1e-9)
    return model, plan


def analog(plan: parspike.Plan) -> list[str]:
    return [row.operator for row in plan.rows if row.role in ("analog", "order")]


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
    function, (low, high) = CLIPS[name]
    _, plan = planned(function)
    (node,) = plan.graph.neurons
    assert analog(plan) == []
    if (low, high) == (0, None):
        assert node.target == "aten.relu.default"
    else:
        assert node.target == "aten.clamp.default"
        assert node.args[1:] == pytest.approx((low, high), rel=1e-12)


@torch.no_grad()
def test_a_cap_that_the_example_does_not_reach_stays_a_cap():
    model = Two(lambda x: torch.where(x > 20, torch.full_like(x, 20.0), x * (x > 0))).eval()
    quiet, loud = X.float() / 3, 20 * X.float()
    snn = parspike.convert(model, [quiet, loud], T=256, recipe="max")
    assert float((snn(loud) - model(loud)).norm() / model(loud).norm()) < 0.02


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
@torch.no_grad()
def test_what_never_falls_or_turns_once_becomes_neurons(name):
    model, plan = planned({**MONOTONE, **TURNING}[name])
    assert analog(plan) == []
    assert len(plan.spiking) == (1 if name in MONOTONE else 2)
    error = [float((parspike.convert(plan, X, T=T)(X) - model(X)).norm() / model(X).norm()) for T in (8, 512)]
    assert error[1] < min(0.01, error[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["softplus", "sigmoid", "elu", "hard-swish"])
@torch.no_grad()
def test_neurons_in_every_type(name, dtype):
    model, plan = planned({**MONOTONE, **TURNING}[name], dtype)
    assert analog(plan) == []
    found, wanted = plan.graph.run(X.to(dtype)), model(X.to(dtype))
    assert found.dtype == dtype
    assert float((found - wanted).norm() / wanted.norm()) < 4 * torch.finfo(dtype).eps


STAYS: dict[str, tuple[Function, str]] = {
    "binary": (lambda x: (x > 0).to(x.dtype), "gt"),
    "binary, where": (lambda x: torch.where(x > 0, 1.0, -1.0), "where"),
    "sign": (torch.sign, "sign"), "ceil": (lambda x: torch.ceil(x.clamp(0, 1) * 4) / 4, "ceil"),
    "exp": (lambda x: torch.exp(2 * x), "exp"), "square": (lambda x: x * x, "mul"),
    "sin": (lambda x: torch.sin(3 * x), "sin"),
    "bump": (lambda x: torch.exp(-x * x), "exp"), "step far out": (lambda x: x.relu() * (x < 5e4), "mul"),
    "softmax": (lambda x: (x / 2).exp() / (x / 2).exp().sum(1, keepdim=True), "exp"),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_neuron_stays_analog_and_is_named(name):
    function, operator = STAYS[name]
    _, plan = planned(function)
    assert operator in analog(plan)
    assert not [node for node in plan.graph.neurons if node.target == "parspike.pointwise"]


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
    plan = parspike.plan(model, (x, pad))
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
            return self.one(hidden) + self.two(hidden.clamp(max=2) + hidden.tanh())

    graph = rewrite(trace(Both().eval(), (torch.randn(4, 8),)))
    assert [node.target.split(".")[1] for node in graph.neurons] == ["relu", "clamp", "tanh"]
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


QUANTISERS: dict[str, tuple[Function | nn.Module, int]] = {
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


@pytest.mark.parametrize("name", QUANTISERS)
@torch.no_grad()
def test_quantisers_are_qcfs_and_lossless_at_their_levels(name, tmp_path):
    function, levels = QUANTISERS[name]
    model, plan = planned(function)
    (node,) = plan.graph.neurons
    activation = plan.activation(node)
    assert isinstance(activation, Quantised)
    assert activation.levels == levels
    assert f"QCFS with L = {levels}" in str(plan)
    assert analog(plan) == []
    snn = parspike.convert(plan, T=levels)  # without data
    torch.testing.assert_close(snn(X), model(X), rtol=1e-12, atol=1e-12)
    again = parspike.load(snn.save(tmp_path / "net.parspike"))
    assert torch.equal(again.run(X, engine="parallel").logits, snn.run(X, engine="parallel").logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["QCFS, published", "LSQ", "floor without 1/2", "signed"])
@torch.no_grad()
def test_quantisers_in_every_type(name, dtype):
    function, levels = QUANTISERS[name]
    model = Two(function).eval().to(dtype)
    snn = parspike.convert(model, example=X.to(dtype), T=levels)
    wanted = model(X.to(dtype))
    same = ((snn(X.to(dtype)) - wanted).abs() <= 16 * torch.finfo(dtype).eps * wanted.abs().max()).all(1)
    assert float(same.double().mean()) > 0.9  # rounding may move a current across a jump


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
    plan = parspike.plan(model, x)
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


@torch.no_grad()
def test_unevenly_spaced_levels_become_a_staircase():
    model, plan = planned(lambda x: torch.round(torch.clamp(x, 0, 1) ** 2 * 4) / 4)
    assert [node.target for node in plan.graph.neurons] == ["parspike.pointwise"]
    snn = parspike.convert(plan, X, T=4, recipe="max")
    assert float((snn(X) - model(X)).norm() / model(X).norm()) < 0.01


def test_a_step_for_every_pixel_is_no_threshold_of_a_channel():
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.top = nn.Conv2d(2, 3, 3, padding=1), nn.Parameter(torch.linspace(1, 2, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return (torch.round(torch.clamp(x / self.top * 7, 0, 7)) * self.top / 7).mean((2, 3)) @ torch.ones(3, 2)

    plan = parspike.plan(Pixels().eval(), torch.randn(4, 2, 6, 6))
    assert "parspike.qcfs" not in [node.target for node in plan.graph.neurons]
