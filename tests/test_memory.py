"""A batch that memory does not hold is run in parts, with what the whole batch would have given."""

from __future__ import annotations

import functools
import sys
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import parspike
from parspike import engines
from parspike.errors import InsufficientMemoryError, ParspikeWarning
from parspike.graph import Size
from parspike.graph.memory import ran_out

SIZE = 7


class Two(nn.Module):
    """Outputs in a dict, one of them in a list. One layer has samples and channels in one dimension, as attention in
    windows has, the other the batch behind."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 3, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
        y = torch.relu(self.one(x).flatten(0, 1)).unflatten(0, (x.shape[0], 3)) * scale[:, None, None, None]
        last = torch.relu(self.two(y.mean((2, 3))).T).T
        return {"classes": last * 2, "maps": [y * 0.5], "anchors": torch.arange(5.0)}


@functools.cache
def spiking(serial: bool = False) -> tuple[parspike.SNN, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    args = torch.rand(SIZE, 1, 6, 6), torch.rand(SIZE)
    options: dict[str, Any] = {"neuron": parspike.IF()} if serial else {}
    return parspike.convert(Two().eval(), [args], 4, recipe="max", **options), args


def most(monkeypatch: pytest.MonkeyPatch, name: str, limit: int) -> list[int]:
    """Let an engine run out of memory for more than `limit` samples; the sizes that it was asked for."""
    asked, real = [], getattr(engines, name)

    def run(net: Any, env: dict[str, Tensor], *rest: Any, **options: Any) -> Any:
        asked.append(len(env["x"]))
        if len(env["x"]) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return real(net, env, *rest, **options)

    monkeypatch.setattr(engines, name, run)
    return asked


def copied(snn: parspike.SNN) -> parspike.SNN:
    """With no memory of earlier calls."""
    snn._parts.clear()
    return snn


CASES = [
    ("count", "count", False),
    ("parallel", "parallel", False),
    ("serial", "serial", False),
    ("serial-if", "over_time", False),
    ("over-time", "over_time", True),
]


@pytest.mark.parametrize(("engine", "name", "serial"), CASES)
def test_parts_are_the_whole(engine: str, name: str, serial: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, args = spiking(serial)
    options: dict[str, Any] = {"engine": engine, "record": True, "every_step": engine in ("serial-if", "over-time")}
    whole = copied(snn).run(*args, **options)
    asked = most(monkeypatch, name, 2)
    with pytest.warns(ParspikeWarning, match="batch of 7, so it is run in parts of 2"):
        parts = snn.run(*args, **options)
    assert asked == [7, 4, 2, 2, 2, 1]
    torch.testing.assert_close(parts.logits, whole.logits)
    assert list(parts.counts) == list(whole.counts)
    for layer in whole.counts:
        assert torch.equal(parts.counts[layer], whole.counts[layer])
        assert torch.equal(parts.sent[layer], whole.sent[layer])
        assert torch.equal(parts.spikes[layer], whole.spikes[layer])
    assert parts.firing_rate == pytest.approx(whole.firing_rate)
    # The next call begins with what fitted, and says nothing.
    asked.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snn.run(*args, **options)
    assert asked == [2, 2, 2, 1]


def test_a_call_is_run_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, args = spiking()
    whole = copied(snn)(*args)
    most(monkeypatch, "count", 3)
    with pytest.warns(ParspikeWarning, match="parts of 2"):
        torch.testing.assert_close(snn(*args), whole)


def test_one_sample_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, args = spiking()
    most(monkeypatch, "parallel", 0)
    with pytest.raises(InsufficientMemoryError, match=r"run: memory ran out; give .* smaller chunk= \(out of memory\)"):
        copied(snn).run(*args, engine="parallel")


def test_other_errors_come_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, args = spiking()
    asked = most(monkeypatch, "count", 0)
    monkeypatch.setattr(
        sys.modules["parspike.graph.memory"], "_shortage", lambda error: None
    )  # it is no lack of memory
    with pytest.raises(torch.OutOfMemoryError):
        copied(snn)(*args)
    assert asked == [SIZE]


@pytest.mark.parametrize(("least", "tried"), [(3, [7, 4]), (4, [7])])
def test_parts_that_the_network_does_not_take_are_not_tried(
    least: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    snn, args = spiking()
    asked = most(monkeypatch, "count", 1)
    limits = (Size((">", "batch", least - 1)),)  # a network that takes so many samples and more
    monkeypatch.setattr(snn, "graph", replace(snn.graph, limits=limits))
    with pytest.raises(InsufficientMemoryError):
        copied(snn)(*args)
    # Of parts of four the last holds three.
    assert asked == tried


def test_what_a_lack_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert ran_out(caught.value)
    assert not ran_out(RuntimeError("shapes cannot be multiplied"))


def test_a_conversion_that_memory_does_not_hold_says_what_takes_less() -> None:
    def items() -> Any:
        yield torch.rand(2, 3)
        raise torch.OutOfMemoryError("out of memory")

    class Items:
        def __iter__(self) -> Any:
            return items()

    with pytest.raises(InsufficientMemoryError, match="convert: memory ran out; give batches of fewer samples"):
        parspike.convert(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).eval(), Items(), 2, recipe="max")


def test_memory_that_runs_out_while_tracing_is_no_fault_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a message that blames the code of the network, "takes no other batch size than the example's"."""

    def fails(*given: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(sys.modules["parspike.graph.same"], "walk", fails)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with pytest.raises(InsufficientMemoryError, match=r"plan: memory ran out; give an example of fewer .*enforce fail"):
        parspike.plan(model, torch.rand(2, 3))
