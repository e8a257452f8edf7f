"""Tracing of networks that write into inputs and attributes, cast, squeeze, or branch on their batch; and of modules
that are no plain networks."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_impls import get_fast_op_impls
from torch.ao.quantization import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    disable_fake_quant,
    disable_observer,
)
from torch.export import Dim

import parspike
import parspike.graph.export as export_module
from parspike.errors import InputError, ParspikeError, TraceError
from parspike.graph import Graph, Size, trace
from parspike.graph.explain import user_line
from parspike.graph.opened import taking
from parspike.graph.refusals import MIXED

X = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) + 0.1
ENGINES = ("count", "parallel", "serial", "serial-if")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


class Net(nn.Module):
    """Whatever a function of the module and its input does with the small network."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **attributes: Any) -> None:
        super().__init__()
        self.n, self.function = small(), function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def net(function: Callable[[Any, Tensor], Any], **attributes: Any) -> Net:
    return Net(function, **attributes).eval()


def same(graph: Graph, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(graph.run(x), model(x.clone()), rtol=1e-5, atol=1e-6)


# Writing into inputs and into values that others read.


def _scaled(s: Any, x: Tensor) -> Tensor:
    return s.n(x.div_(255))


def _column(s: Any, x: Tensor) -> Tensor:
    x[:, 0] = 0
    return s.n(x)


def _centred(s: Any, x: Tensor) -> Tensor:
    x -= x.mean(1, keepdim=True)
    return s.n(x)


def _out(s: Any, x: Tensor) -> Tensor:
    torch.mul(x, 2, out=x)
    return s.n(x)


def _masked(s: Any, x: Tensor) -> Tensor:
    x[x < 0.5] = 0
    return s.n(x)


def _through_a_view(s: Any, x: Tensor) -> Tensor:
    x.view(-1, 2, 4).mul_(2)
    x.t().add_(1)
    x.chunk(2, 1)[0].mul_(3)
    return s.n(x)


def _returned(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x.mul_(2)
    return s.n(x), x


def _residual(s: Any, x: Tensor) -> Tensor:
    h = s.n[0](x)
    return s.n[2](h.relu_() + h)  # both are the value behind the ReLU


def _view_before(s: Any, x: Tensor) -> Tensor:
    h = s.n[0](x)
    total = h[:, :4].sum(1, keepdim=True)
    h.relu_()
    return s.n[2](h) + total


def _view_after(s: Any, x: Tensor) -> Tensor:
    h = s.n[0](x)
    part = h[:, :4]
    h.relu_()
    return s.n[2](h) + part.sum(1, keepdim=True)


def _reshaped(s: Any, x: Tensor) -> Tensor:
    h = s.n[0](x)
    h.reshape(-1, 4, 4).relu_()
    return s.n[2](h)


def _contiguous(s: Any, x: Tensor) -> Tensor:
    h = s.n[0](x)
    h.contiguous().to(torch.float32).relu_()
    return s.n[2](h)


def _chain(s: Any, x: Tensor) -> Tensor:
    h = s.n[0](x)
    h += 1
    h *= 2
    h.relu_()
    h -= 0.5
    return s.n[2](h.relu_())


def _wider(s: Any, x: Tensor) -> Tensor:
    h = s.n[0](x)
    h.add_(torch.ones(16, dtype=torch.float64))  # the result stays float32
    return s.n[2](h.relu_())


WRITES = (_scaled, _column, _centred, _out, _masked, _through_a_view, _returned, _residual, _view_before, _view_after,
          _reshaped, _contiguous, _chain, _wider)  # fmt: skip


@pytest.mark.parametrize("function", WRITES)
def test_a_network_that_writes_in_place_is_followed_and_the_batch_stays_as_it_was(function):
    model, x = net(function), X.clone()
    graph = parspike.plan(model, x).graph
    snn = parspike.convert(model, [x], T=4, recipe="max")
    assert torch.equal(x, X)
    same(graph, model, X * 1.5)
    snn(x)
    assert torch.equal(x, X)


def test_in_place_activations_need_no_second_tracing(monkeypatch):
    def no(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("traced twice")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", no)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(inplace=True), nn.Dropout(inplace=True),
        nn.Conv2d(4, 4, 3), nn.SiLU(inplace=True), nn.Hardswish(inplace=True), nn.LeakyReLU(inplace=True),
    ).eval()  # fmt: skip
    graph = trace(model, (torch.randn(2, 3, 8, 8),))
    same(graph, model, torch.randn(5, 3, 9, 10))


# The model is left as it was.


def _state(model: nn.Module) -> list[Any]:
    held = [(id(module), key, id(value)) for module in model.modules() for key, value in vars(module).items()]
    tensors = [(p.data_ptr(), p.requires_grad, float(p.detach().sum())) for p in model.parameters()]
    return [held, tensors, [module.training for module in model.modules()]]


def drawn_by_numpy() -> str:
    return str(np.random.get_state())  # noqa: NPY002


def test_attributes_hooks_and_random_numbers_stay_as_they_were():
    def _function(s: Any, x: Tensor) -> Tensor:
        s.attention = s.n[0](x)
        s.calls += 1
        s.seen.append(x)
        s.cache.setdefault("mask", torch.ones(8))
        s.box.calls += 1
        s.box.seen.append(x)
        s.extra = nn.Linear(1, 1)
        s.n.train()
        for parameter in s.n.parameters():
            parameter.requires_grad_(False)
        random.random()
        y = s.n(x * s.cache["mask"])
        s.n.eval()
        return y

    model = net(_function, attention=None, calls=0, seen=[], cache={}, box=SimpleNamespace(calls=0, seen=[]))
    features: list[Tensor] = []
    count = {"calls": 0}
    number = 0

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal number
        number += 1
        features.append(output)
        count["calls"] += 1

    model.n[0].register_forward_hook(hook)
    before, drawn = _state(model), (torch.get_rng_state(), random.getstate(), drawn_by_numpy())
    snn = parspike.convert(model, [X], T=64, recipe="max")
    assert _state(model) == before
    assert (model.seen, model.cache, vars(model.box), features, count, number) == (
        [], {}, {"calls": 0, "seen": []}, [], {"calls": 0}, 0,
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]
    assert drawn_by_numpy() == drawn[2]
    assert (snn(X) - model(X)).norm() < 0.05 * model(X).norm()


def _previous(s: Any, x: Tensor) -> Tensor:
    h = s.n[0](x).relu()
    mixed = h if s.previous is None or s.previous.shape != h.shape else (h + s.previous) / 2
    s.previous = h
    return s.n[2](mixed)


def _summed(s: Any, x: Tensor) -> Tensor:
    s.total.add_(1)
    return s.n(x + s.total)


def test_a_network_that_remembers_a_batch_in_the_next_is_refused_and_works_as_before():
    model = net(_previous, previous=None)
    with pytest.raises(TraceError, match=r"remembers one batch in the next, in 'previous'"):
        parspike.plan(model, X)
    assert model.previous is None
    model = net(_summed, total=torch.zeros(8))
    with pytest.raises(TraceError, match="writes into a tensor of its own"):
        parspike.plan(model, X)
    assert not vars(model)["total"].any()
    model.register_buffer("held", torch.zeros(8))
    model.function = lambda s, x: s.n(x + s.held.add_(1))
    with pytest.raises(TraceError, match="writes into 'held'"):
        parspike.plan(model, X)
    assert not float(model.get_buffer("held").sum())


def _counted(s: Any, x: Tensor) -> Tensor:
    s.calls += 1
    s.seen.mul_(0.9).add_(0.1 * x.mean(0))
    return s.n(x)


def _overwritten(s: Any, x: Tensor) -> Tensor:
    s.seen.copy_(x[0])
    return s.n(x)


def _scaled_by_calls(s: Any, x: Tensor) -> Tensor:
    scale = s.calls * 2
    s.calls += 1
    return s.n(x) * scale


def test_a_network_may_count_what_its_output_does_not_read():
    """It would catch a network that is refused for a count of calls, and one that is taken though its answers change
    from call to call."""
    model = net(_counted)
    model.register_buffer("calls", torch.zeros((), dtype=torch.long))
    model.register_buffer("seen", torch.zeros(8))
    for function in (_counted, _overwritten):
        model.function = function
        same(parspike.plan(model, X).graph, model, X)
    model.function = _scaled_by_calls
    with pytest.raises(TraceError, match="writes into 'calls' in forward, and its output reads it"):
        parspike.plan(model, X)


# One error of parspike's, not torch's own.


def _keywords() -> nn.Module:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = small()

        def forward(self, **inputs: Tensor) -> Tensor:
            return self.n(inputs["x"])

    return Keywords().eval()


def _unused(tensor: Tensor) -> nn.Module:
    model = small()
    model.register_buffer("unused", tensor)
    return model


def _half() -> nn.Module:
    model = net(lambda s, x: s.n(x.half()).float())
    model.n.half()
    return model


def _double() -> nn.Module:
    model = net(lambda s, x: s.n(x.to(s.n[0].weight.dtype)))
    model.n.double()
    return model


TAKEN = {
    "an unused tensor on meta": lambda: _unused(torch.empty(3, device="meta")),
    "an unused sparse tensor": lambda: _unused(torch.eye(8).to_sparse_csr()),
    "exported": lambda: torch.export.export(small(), (X,), dynamic_shapes=({0: Dim("b")},)).module(),
    "fx": lambda: torch.fx.symbolic_trace(small()),
    "compiled": lambda: torch.compile(small()),
    "data parallel": lambda: nn.DataParallel(small()),
    "half inside": _half,
    "double inside": _double,
}


@pytest.mark.parametrize("make", TAKEN.values(), ids=TAKEN)
def test_modules_that_are_no_plain_networks_are_taken(make, tmp_path):
    model = make()
    snn = parspike.convert(model, [X], T=64, recipe="max")
    with torch.no_grad():
        wanted = small()(X)
    assert (snn(X) - wanted).norm() < 0.05 * wanted.norm()
    assert torch.equal(parspike.load(snn.save(tmp_path / "n.parspike"))(X), snn(X))


def test_a_forward_of_any_keywords_is_traced():
    snn = parspike.convert(_keywords(), [{"x": X}], T=64, recipe="max", inputs=lambda item: item, example={"x": X})
    assert (snn(x=X) - small()(X)).norm() < 0.05 * small()(X).norm()


def _used_on_meta() -> nn.Module:
    model = small()
    model[0].to("meta")
    return model


def _sparse() -> nn.Module:
    return net(lambda s, x: torch.sparse.mm(s.w, x.T).T, w=nn.Parameter(torch.eye(8).to_sparse()))


def _assigns_data(s: Any, x: Tensor) -> Tensor:
    s.n[0].weight.data = torch.renorm(s.n[0].weight.data, 2, 0, 0.5)
    return s.n(x)


def _assigns_values(s: Any, x: Tensor) -> Tensor:
    x.data = 2 * x
    return s.n(x)


class Switched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = small()

    def forward(self, x: Tensor, flag: Any = False, n: Any = 8) -> Tensor:
        return self.n(x)[:, :n] * (2 if flag else 1)


class _Cache:
    """What a language model returns beside its outputs: no tuple, dict or data class."""

    def __init__(self, x: Tensor) -> None:
        self.keys = x


REFUSED = {
    "on meta": (_used_on_meta, X, ["'0.weight' is on the meta device", "load the weights"]),
    "sparse": (_sparse, X, ["'w' is a sparse tensor", "to_dense"]),
    "sparse example": (small, X.to_sparse(), ["example input is sparse", "to_dense"]),
    "example on meta": (small, X.to("meta"), ["meta device"]),
    "script": (lambda: torch.jit.script(small()), X, ["TorchScript", "made of"]),
    "jit traced": (lambda: torch.jit.trace(small(), X), X, ["TorchScript", "made of"]),
    "int8": (
        lambda: torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}, dtype=torch.qint8), X,
        ["layer '0'", "whole numbers", "made of"],
    ),
    "float64 example": (small, X.double(), ["give x.to(torch.float32), or model.to(torch.float64)"]),
    "data assigned": (lambda: net(_assigns_data), X, ["assigns .data of a tensor at", "once before"]),
    "data of a value assigned": (
        lambda: net(_assigns_values), X, ["assigns .data of a tensor at", "x.data = 2 * x", "compute another one"]
    ),
    "a number as a tensor": (Switched, (X, torch.tensor(True)), ["without a batch", "passes True on"]),
    "a switch as a tensor": (
        Switched, (X, torch.ones(len(X), dtype=torch.bool)), ["ambiguous", "a switch or a number", "flag="]
    ),
    "a number as a batch": (
        Switched, {"x": X, "n": torch.ones(len(X), dtype=torch.long)}, ["an index. Inputs", "or a number that"]
    ),
    "nothing as an input": (Switched, (X, None), ["NoneType", "leave out what forward does without"]),
    "no inputs": (small, (), ["fails on the example, no inputs: "]),
    "unknown output": (lambda: net(lambda s, x: (s.n(x), _Cache(x))), X, ["returns a _Cache", "return tensors"]),
    "cache": (
        lambda: net(lambda s, x: (s.n(x), _Cache(x)), config=SimpleNamespace(use_cache=True)), X,
        ["returns a _Cache", "model.config.use_cache = False"],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "x", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_one_error_with_its_place(make, x, words):
    model = make()
    with pytest.raises(ParspikeError) as caught:
        parspike.plan(model, x)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["mean", "max", "min", "prod", "median"])
def test_one_number_of_the_whole_batch_says_which_dimensions_are_missing(name):
    plan = parspike.plan(net(lambda s, x: s.n(x / (1 + getattr(x.relu(), name)()))), X)
    assert [(row.operator, row.becomes) for row in plan.refusals] == [(name, f"refused: {MIXED}")]
    assert f"{name}(dim=1)" in str(plan)


@pytest.mark.parametrize("example", [X, torch.zeros(2, 8), torch.ones(3, 8)], ids=["some", "zeros", "ones"])
def test_a_network_that_makes_places_in_a_table_of_its_values(example):
    """The checks of a graph add noise to the example, which may make places that the table has not: an IndexError of
    torch's."""
    torch.manual_seed(0)
    model = net(
        lambda s, x: s.n(s.table((x[:, :2] * 4).long()).flatten(1).relu() + x[:, 2:3]), table=nn.Embedding(5, 4)
    )
    plan = parspike.plan(model, example)
    assert any(node.target.startswith("aten.embedding") for node in plan.graph.nodes)
    same(plan.graph, model, X.clamp(max=1))


def test_columns_of_one_input_may_be_places_in_unlike_tables():
    """Catches noise within the range of the whole example: an hour as a day of the week, an IndexError of torch's."""
    torch.manual_seed(0)
    x = torch.cat([torch.arange(64)[:, None] % n for n in (7, 24)] + [X[:, :1].repeat(8, 6)], 1).flip(0)
    days, hours = nn.Embedding(7, 1), nn.Embedding(24, 1)
    model = net(lambda s, x: s.n(torch.cat([s.days(x[:, 0].long()), s.hours(x[:, 1].long()), x[:, 2:]], 1)),
                days=days, hours=hours)  # fmt: skip
    same(parspike.plan(model, x).graph, model, x)


def test_a_branch_on_values_prints_nothing(capfd):
    with pytest.raises(TraceError, match="branches on the values of a tensor"):
        parspike.plan(net(lambda s, x: s.n(x) if x.sum() > 3 else s.n(2 * x)), X)
    assert capfd.readouterr() == ("", "")


def test_autocast_inside_is_converted_with_its_casts():
    def function(s: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return s.n(x).float()

    model = net(function)
    snn = parspike.convert(model, [X], T=64, recipe="max")
    assert (snn(X) - model(X)).norm() < 0.05 * model(X).norm()
    assert any(tensor.dtype is torch.bfloat16 for tensor in snn.tensors().values())
    assert snn.graph.inputs[0].dtype is torch.float32


def test_images_of_bytes_are_divided_inside():
    model, x = net(lambda s, x: s.n(x / 255)), (200 * X).to(torch.uint8)
    snn = parspike.convert(model, [x], T=64, recipe="max")
    assert (snn(x) - model(x)).norm() < 0.05 * model(x).norm()


# Batches of one, and branches on the batch.


class Squeezed(nn.Module):
    """A squeeze that drops the batch of one as well, before more layers and at the end."""

    c: nn.Module

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).squeeze()).relu())


@pytest.mark.parametrize("free_sizes", [True, False])
def test_all_engines_squeeze_one_sample_as_the_network_does(free_sizes, tmp_path):
    model, x = Squeezed().eval(), torch.rand(6, 3, 8, 8)
    snn = parspike.convert(parspike.plan(model, x, free_sizes=free_sizes), [x], T=8, recipe="max")
    snn = parspike.load(snn.save(tmp_path / "n.parspike"))
    for engine in ENGINES:
        one, all_ = snn.run(x[:1], engine=engine).logits, snn.run(x, engine=engine).logits
        assert (one.shape, all_.shape) == (model(x[:1]).shape, (6, 4))
        torch.testing.assert_close(one, all_[0], rtol=1e-4, atol=1e-5)


def test_a_network_that_takes_no_single_sample_says_so():
    model = Squeezed().eval()
    model.c = nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 4)
    )  # no second dimension without a batch
    snn = parspike.convert(model, [torch.rand(6, 3, 8, 8)], T=4, recipe="max")
    with pytest.raises(InputError, match=r"shape \(1, 3, 8, 8\).*B > 1"):
        snn(torch.rand(1, 3, 8, 8))


BRANCHES = {
    "B ≤ 16": (lambda x: x.shape[0] > 16, 8, 17),
    "B ≤ 8": (lambda x: x.numel() > 64, 8, 9),
    "B ≥ 5": (lambda x: x.shape[0] < 5, 8, 4),
    "(B % 2) = 0": (lambda x: x.shape[0] % 2 == 1, 8, 7),
    "B ≥ 2 and B ≠ 4": (lambda x: x.shape[0] in (1, 4), 8, 4),
    "B > 1": (lambda x: x.shape[0] == 1, 8, 1),
}


@pytest.mark.parametrize("free_sizes", [True, False])
@pytest.mark.parametrize(("text", "branch"), BRANCHES.items(), ids=BRANCHES)
def test_a_branch_on_the_batch_is_a_limit_in_every_engine(text, branch, free_sizes, tmp_path):
    condition, fits, beyond = branch
    model = net(lambda s, x: s.n(x) * 2 if condition(x) else s.n(x))
    snn = parspike.convert(parspike.plan(model, X, free_sizes=free_sizes), [X], T=4, recipe="max")
    snn = parspike.load(snn.save(tmp_path / "n.parspike"))
    many = X.repeat(3, 1)
    for engine in ENGINES:
        assert snn.run(many[:fits], engine=engine).logits.shape == (fits, 3)
        with pytest.raises(InputError, match=re.escape(f"where {text}")):
            snn.run(many[:beyond], engine=engine)


class Steps(nn.Module):
    """As agents with an LSTM are written: rows for each step and sample, of which the state says how many samples."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, state, done):
        rows = self.a(x).relu().reshape(-1, state.shape[0], 6)
        for row, gone in zip(rows, done.reshape(-1, state.shape[0]), strict=True):
            state = (row + (1 - gone)[:, None] * state).relu()
        return self.b(state)


@pytest.mark.parametrize("free_sizes", [True, False])
def test_the_batch_of_one_input_by_that_of_another_is_one(free_sizes):
    """Would catch B // B taken for a dimension of the batch, which ended in a ValueError of Python."""
    model, inputs = Steps().eval(), (torch.rand(6, 4), torch.rand(6, 6), torch.rand(6))
    graph = parspike.plan(model, inputs, free_sizes=free_sizes).graph
    assert all(node.shape[0] == Size("batch") for node in graph.neurons)
    snn = parspike.convert(model, [inputs], T=4, recipe="max")
    for engine in ENGINES:
        assert snn.run(*(x[:5] for x in inputs), engine=engine).logits.shape == (5, 3)


@pytest.mark.parametrize("free_sizes", [True, False])
def test_a_network_without_branches_takes_every_batch(free_sizes):
    graph = trace(small(), (X,), free_sizes=free_sizes)
    assert not graph.limits
    for batch in (1, 2, 7):
        same(graph, small(), X[:batch])


ALWAYS = {
    "chunk": lambda x: torch.cat(torch.cat([x, 2 * x, 3 * x]).chunk(3), 1)[:, :8],
    "split": lambda x: torch.cat([x, 2 * x, 3 * x]).split(x.shape[0])[1],
    "product": lambda x: x if x.shape[0] * x.shape[1] == 8 * x.shape[0] else -x,
}


@pytest.mark.parametrize("name", ALWAYS)
def test_a_limit_that_always_holds_is_none(name):
    """Would catch ((-1 + (4 * B)) // B) = 3 in the plan, or a condition that was dropped and does not hold."""
    model = net(lambda s, x: s.n(ALWAYS[name](x)))
    graph = trace(model, (X,))
    assert not graph.limits
    for batch in (1, 2, 7):
        same(graph, model, X[:batch])


class Pooled(nn.Module):
    """Asks six conditions of the length of its input, which come to one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(2, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.conv(x)), F.relu(self.conv(x[..., : x.shape[-1] // 2]))], -1)
        return self.head(both[..., ::2].mean(-1))


def test_limits_on_one_size_are_told_as_what_they_come_to():
    """Would catch a summary that allows a length which is refused, or that keeps six conditions where one says it."""
    x = torch.randn(4, 2, 16)
    graph = trace(Pooled().eval(), (x,))
    assert "where x.2 ≥ 2;" in graph.taken
    graph.check({"x": x[..., :2]}, "here")
    with pytest.raises(InputError, match=r"where x\.2 ≥ 2"):
        graph.check({"x": x[..., :1]}, "here")


# Branches on the network's own numbers.


def _by_gates(s: Any, x: Tensor) -> Tensor:
    for gate in torch.sigmoid(s.flag) > 0.5:
        x = F.relu(x) + 1 if gate else x * 0.5
    return s.n(x)


def _once(s: Any, x: Tensor) -> Tensor:
    if s.flag[0] == 0:
        s.flag.fill_(1.0)
        x = x * 3
    return s.n(x)


def _assigned(s: Any, x: Tensor) -> Tensor:
    own = s.flag.clone()
    part = own[0]
    own[0] = x.sum()
    return s.n(x) * 2 if part > 0 else s.n(x)


def _added(s: Any, x: Tensor) -> Tensor:
    own = s.flag * 2
    own += x.sum()
    return s.n(x) * 2 if own[0] > 0 else s.n(x)


def _overwritten_by_its_own(s: Any, x: Tensor) -> Tensor:
    own = s.flag.clone()
    part = own[1:]
    own.mul_(2).add_(s.flag)
    return s.n(x) * 2 if own[1] == 3 * s.flag[1] and s.flag[0] < 1 else s.n(x) + part.sum()


FLAGS = {
    "written": _overwritten_by_its_own,
    "item": lambda s, x: s.n(x) * 2 if s.flag[1].item() == 1 else s.n(x),
    "comparison": lambda s, x: s.n(x) * 2 if (s.flag > 0).any() and not s.flag.sum() > 5 else s.n(x),
    "gates": _by_gates,
    "factor": lambda s, x: s.n(x) * s.flag[2].exp().clamp(max=100).item() + float(s.flag[0]),
    "size": lambda s, x: s.n(F.pad(x[:, : int(s.flag[2].item())], (0, 8 - int(s.flag[2])))),
    "list": lambda s, x: sum(w * s.n(x) for w in s.flag.tolist() if w),
    "filled": lambda s, x: s.n(x) * torch.full((2, 3), s.flag[2])[0] + torch.full_like(x[:, :3], fill_value=s.flag[0]),
    "places": lambda s, x: s.n(x) + torch.arange(0, 3 * s.flag[2], s.flag[2]),
}


@pytest.mark.parametrize(("flag", "free_sizes"), [([0.0, 1.0, 2.0], True), ([3.0, -4.0, 6.0], False)])
@pytest.mark.parametrize("name", FLAGS)
def test_a_branch_on_numbers_of_the_network_is_its_own(name, flag, free_sizes):
    """Would catch a branch that is refused, taken as for other numbers, or that asks something of the batch."""
    model = net(FLAGS[name])
    model.register_buffer("flag", torch.tensor(flag))
    graph = trace(model, (X,), free_sizes=free_sizes)
    assert not graph.limits
    for batch in (1, 5):
        same(graph, model, X[:batch])


@pytest.mark.parametrize("name", FLAGS)
def test_a_branch_on_numbers_of_a_constant_is_its_own(name):
    """Would catch the strides of a detector, a tensor that is no buffer, refused as values of the input."""
    model = net(FLAGS[name], flag=torch.tensor([0.0, 1.0, 2.0]))
    graph = trace(model, (X,))
    for batch in (1, 5):
        same(graph, model, X[:batch])
    own = {"flags": [torch.tensor(2.0)]}
    inside = net(lambda s, x: s.n(x) * s.own["flags"][0] if s.own["flags"][0] > 1 else x, own=own)
    same(trace(inside, (X,)), inside, X)


def _given_anew(s: Any, x: Tensor) -> Tensor:
    y = s.n(x) * 2 if s.flag > 9 else s.n(x)
    s.flag = s.flag + 1
    return y


def _added_to(s: Any, x: Tensor) -> Tensor:
    s.flag += 1
    return s.n(x) * s.flag.item()


@pytest.mark.parametrize(("function", "said"), [(_given_anew, "writes into 'flag'"), (_added_to, "tensor of its own")])
def test_a_branch_on_a_constant_that_forward_changes_is_refused(function, said):
    """Would catch a counter taken for the number that it was when the network was converted."""
    model = net(function, flag=torch.tensor(0.0))
    with pytest.raises(TraceError, match=f"{said}.*keeps no state"):
        trace(model, (X,))
    assert model.flag == 0


def _after_some_calls(s: Any, x: Tensor) -> Tensor:
    y = s.n(x) * 2 if s.flag.sum() > 9 else s.n(x)
    s.flag += 1
    return y


REFUSED_FLAGS = {
    "counted": (_after_some_calls, "writes into 'flag' in forward, and asks for its numbers"),
    "once": (_once, "writes into 'flag' in forward, and asks for its numbers"),
    "chance": (lambda s, x: s.n(x) * (2 if torch.bernoulli(torch.sigmoid(s.flag[0])) else 1), "on the values of a"),
    "assigned": (_assigned, "on the values of a tensor"),
    "added": (_added, "on the values of a tensor"),
    "number": (lambda s, x: s.n(x) * (x.mean() + s.flag[0]).item(), r"compute with the tensor itself"),
    "input": (lambda s, x: s.n(x) * (2 if (x.mean() + s.flag[0]) > 0 else 1), "on the values of a tensor"),
}


@pytest.mark.parametrize("name", REFUSED_FLAGS)
def test_a_branch_on_what_changes_is_refused(name):
    """Would catch the branch of one moment, or of one input, taken for all."""
    function, said = REFUSED_FLAGS[name]
    model = net(function)
    model.register_buffer("flag", torch.zeros(3))
    with pytest.raises(TraceError, match=said):
        trace(model, (X,))
    assert not model.flag.any()


@pytest.mark.parametrize("kind", [FakeQuantize, FusedMovingAvgObsFakeQuantize])
def test_networks_with_fake_quantize_are_lossless_at_their_levels(kind):
    """Would catch its switches taken for values of the input, and a range that is still observed."""
    torch.manual_seed(0)
    quantised = kind(MovingAverageMinMaxObserver, quant_min=0, quant_max=15)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), quantised, nn.Linear(16, 3))
    model(X)
    model.eval()
    with pytest.raises(TraceError, match="disable_observer"):
        trace(model, (X,))
    model.apply(disable_observer)
    snn = parspike.convert(model, T=15, example=X)
    torch.testing.assert_close(snn(X), model(X))
    model.apply(disable_fake_quant)
    assert "forward" not in vars(model[2])
    same(trace(model, (X,)), model, X)


# Parts that torch.jit made.


def test_a_traced_part_is_followed_and_a_scripted_one_is_named():
    """Would catch an error of torch's own ("takes 2 positional arguments but 3 were given")."""
    part = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model = net(lambda s, x: s.n(s.part(x)), part=torch.jit.trace(part, X))
    same(trace(model, (X,)), model, X)
    with pytest.raises(InputError, match=r"layer 'part' .* is a TorchScript program"):
        trace(net(lambda s, x: s.n(s.part(x)), part=torch.jit.script(part)), (X,))


# Infinite constants.


def _largest(s: Any, x: Tensor) -> Tensor:
    best = torch.full((x.shape[0],), -float("inf"))
    for i in range(3):
        best = torch.maximum(best, s.n(x)[:, i])
    return best[:, None]


INFINITE = {
    "full": net(lambda s, x: torch.maximum(torch.full((), float("-inf")), s.n(x))),
    "start": net(_largest),
    "attribute": net(lambda s, x: torch.maximum(s.low, s.n(x)), low=torch.tensor(float("-inf"))),
    "parameter": net(lambda s, x: torch.maximum(s.low, s.n(x)), low=nn.Parameter(torch.tensor(float("-inf")))),
    "mask": net(
        lambda s, x: s.n(x).masked_fill(s.m, float("-inf")).amax(1, True), m=torch.tensor([True, False, False])
    ),
    "added to a product": net(
        lambda s, x: F.softmax(torch.baddbmm(s.m, s.n(x)[:, :1, None], s.n(x)[:, None]), -1)[:, 0],
        m=torch.tensor([[[float("-inf"), 0.0, 0.0]]]),
    ),
    "softmax": net(lambda s, x: F.softmax(s.n(x) + s.m, 1), m=torch.tensor([float("-inf"), 0.0, 0.0])),
}


@pytest.mark.parametrize("model", INFINITE.values(), ids=INFINITE)
def test_an_infinite_constant_that_nothing_multiplies_by_is_taken(model, tmp_path):
    same(parspike.plan(model, X).graph, model, X)
    snn = parspike.convert(model, [X], T=64, recipe="max")
    assert torch.equal(parspike.load(snn.save(tmp_path / "n.parspike"))(X), snn(X))


def test_an_infinite_factor_is_refused():
    with pytest.raises(InputError, match="'factor' holds NaN or Inf"):
        parspike.plan(net(lambda s, x: s.n(x) * s.factor, factor=torch.tensor(float("inf"))), X)


def test_a_network_runs_at_most_twice_in_planning():
    runs = itertools.count()  # not a number in the network, which is put back after every run

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if type(x) is torch.Tensor and not torch.compiler.is_exporting():
                next(runs)
            return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    for free_sizes in (True, False):
        runs = itertools.count()
        parspike.plan(Counted().eval(), torch.rand(2, 3, 12, 12), free_sizes=free_sizes)
        assert 1 <= next(runs) <= 2


FIXED_BATCH = """
import torch, parspike
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
x = torch.randn(8, 6)
try:
    parspike.plan(torch.export.export(model, (x,)).module(), x)
except parspike.ParspikeError as error:
    print(error)
"""


def test_an_exported_program_with_a_fixed_batch_is_refused():
    """In a process of its own: after any tracing that failed, torch 2.13 leaves such programs without their guard."""
    environment = os.environ | {"PYTHONPATH": str(Path(parspike.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", FIXED_BATCH], env=environment, capture_output=True, text=True, check=True
    )
    assert "fixes the batch size of input 'input' at 8" in ran.stdout
    assert ran.stderr == ""


class StandardisedConv(nn.Conv2d):
    """A convolution that standardises its weights by F.batch_norm over them, as NFNet and timm's StdConv2d do."""

    def forward(self, input: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(input, weight, self.bias, padding=1)


def test_weights_that_are_standardised_are_weights():
    torch.manual_seed(0)
    model = nn.Sequential(StandardisedConv(3, 4, 3), nn.ReLU(), StandardisedConv(4, 4, 3), nn.ReLU()).eval().double()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    plan = parspike.plan(model, x)
    assert [row.becomes for row in plan.rows if row.operator == "conv2d"] == ["synapse", "synapse"]
    assert not any("batch_norm" in row.operator for row in plan.rows)
    with torch.no_grad():
        torch.testing.assert_close(plan.graph.run(x), model(x), rtol=1e-12, atol=1e-12)
    # Statistics of the batch itself stay refused.
    moving = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval().double()
    with pytest.raises(TraceError, match="batch norm"):
        parspike.plan(moving, x)


class Gathered(nn.Module):
    """Two tensors in a dict, a tuple, or a list that forward takes apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.meta, self.head = nn.Linear(8, 16), nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, batch: Any) -> Tensor:
        if isinstance(batch, list):
            meta, image = batch.pop(), batch.pop()
        else:
            image, meta = (batch["image"], batch["meta"]) if isinstance(batch, dict) else batch
        return self.head((self.image(image) + self.meta(meta)).relu())


META = torch.rand(8, 5, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 3
WHOLE = {
    "dict": ({"image": X, "meta": META}, lambda whole: whole),
    "dict with labels": ({"image": X, "meta": META}, lambda whole: {**whole, "label": LABELS}),
    "dict with y": ({"image": X, "meta": META}, lambda whole: {**whole, "y": LABELS}),
    "dict beside labels": ({"image": X, "meta": META}, lambda whole: (whole, LABELS)),
    "tuple": ((X, META), lambda whole: whole),
    "tuple beside labels": ((X, META), lambda whole: (whole, LABELS)),
    "list beside labels": ([X, META], lambda whole: (whole, LABELS)),
    "list": ([X, META], lambda whole: whole),
}


def again(whole: Any) -> Any:
    """The same, since forward may take a list apart."""
    return list(whole) if isinstance(whole, list) else whole


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", WHOLE)
@torch.no_grad()
def test_a_network_of_one_dict_tuple_or_list_is_converted_with_each_tensor_as_an_input(kind, tmp_path):
    """Would catch labels that are taken for inputs, or inputs for labels, and layers under other names."""
    whole, item = WHOLE[kind]
    model = Gathered().eval()
    items, wanted = [item(again(whole))] * 2, model(again(whole))
    before = dict(vars(model))
    snn = parspike.convert(model, items, T=64, recipe="max")
    assert vars(model) == before
    assert isinstance(model, Gathered)
    assert [row.layer for row in parspike.plan(model, again(whole)).rows][-1] == "head"
    assert apart(snn(again(whole)), wanted) < 0.05
    separately = snn(**whole) if isinstance(whole, dict) else snn(*whole)
    assert torch.equal(separately, snn(again(whole)))
    loaded = parspike.load(snn.save(tmp_path / "net.parspike"))
    assert torch.equal(loaded(again(whole)), separately)
    report = parspike.measure(snn, items, against=model)
    assert (report.accuracy is not None) == ("label" in kind)
    assert report.error is not None
    assert report.error < 0.05


def test_entries_of_a_dict_that_the_network_lacks_are_said_unless_they_are_labels():
    whole = {"image": X, "meta": META}
    snn = parspike.convert(Gathered().eval(), [whole], T=4, recipe="max")
    assert torch.equal(snn({**whole, "labels": LABELS, "y": LABELS}), snn(whole))
    with pytest.raises(InputError, match="takes the inputs"):
        snn({**whole, "mask": X})
    with pytest.raises(InputError, match="takes the inputs"):
        snn({"image": X})


@torch.no_grad()
def test_a_network_is_called_as_its_conversion_is():
    model, given = Gathered().eval(), {"image": X, "meta": META}
    network = taking(model, (), given)
    assert torch.equal(network(**given), model(given))
    assert network.head is model.head
    plain = small()
    assert taking(plain, (X,), {}) is plain


@pytest.mark.parametrize(
    "constant",
    [lambda s, x: s.mean.type_as(x), lambda s, x: s.number.type_as(x), lambda s, x: s.mean.expand_as(x)],
    ids=["type_as", "type_as of whole numbers", "expand_as"],
)
def test_a_constant_takes_the_type_or_size_of_another_tensor_and_stays_one(constant: Callable[..., Tensor]) -> None:
    """Would catch a constant that is analog, and what is made of it no synapse and no activation."""
    with torch.random.fork_rng():
        model = net(lambda s, x: s.n[2]((s.n[0](x - constant(s, x)) + constant(s, s.n[0](x))[:, :1]).relu()),
                    mean=torch.rand(1, 1), number=torch.tensor([[1]]))  # fmt: skip
    plan = parspike.plan(model, X)
    assert "type_as" not in str(plan)
    assert "expand_as" not in str(plan)
    assert "0 analog operators" in str(plan)
    snn = parspike.convert(model, X, T=512, recipe="max", strict=True)
    torch.testing.assert_close(snn(X), model(X), rtol=0.01, atol=0.01)


def test_lines_of_einops_are_not_those_of_the_network():
    stack = """  File "/home/me/net.py", line 12, in forward
    x = rearrange(x, 'b (h w) c -> b c h w', h=4)
  File "/env/site-packages/einops/einops.py", line 637, in rearrange
    return reduce(tensor, pattern, reduction="rearrange", **axes_lengths)
"""
    assert user_line(stack) == "me/net.py:12  x = rearrange(x, 'b (h w) c -> b c h w', h=4)"


class Normed(nn.Module):
    """Batch norms, PReLU and leaky ReLU, which torch has shapes of at once while it is traced."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.n = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(channels), nn.Conv2d(4, 4, 3, stride=2),
            nn.LeakyReLU(0.1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(2), nn.BatchNorm1d(4), nn.PReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.n(x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shapes_that_torch_is_told_are_those_it_would_find(layout, monkeypatch):
    """Would catch a table of torch's that is left changed, and shapes of another layout, in which a view fails."""
    before, model = dict(get_fast_op_impls()), Normed().eval().to(memory_format=layout)
    made, told = export_module._shaped, []
    monkeypatch.setattr(export_module, "_shaped", lambda *given, **options: told.append(1) or made(*given, **options))
    graph = trace(model, (torch.rand(4, 3, 9, 10).to(memory_format=layout),))
    assert len(told) == 4
    assert dict(get_fast_op_impls()) == before
    assert "free: x.2, x.3" in graph.taken
    for shape in ((4, 3, 9, 10), (1, 3, 12, 7)):
        same(graph, model, torch.rand(shape))


def test_the_table_of_shapes_is_put_back_when_tracing_fails():
    before = dict(get_fast_op_impls())
    with pytest.raises(InputError, match=r"Normed fails on the example.*channel size"):
        trace(Normed(5).eval(), (torch.rand(4, 3, 9, 10),))
    assert dict(get_fast_op_impls()) == before
