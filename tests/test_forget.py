"""Nothing of a network stays in torch after it was traced, so that one process may convert as many as it likes."""

from __future__ import annotations

import contextvars
import gc
import linecache
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import parspike
from parspike.errors import TraceError


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x


def held() -> dict[str, int]:
    """What torch holds of networks, by kind."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    return {
        "cached": ShapeEnv.get_implications.cache_info().currsize,
        "modes": kinds.count(FakeTensorMode),
        "sources": len(graph_module._loader.eval_cache),
        "lines": sum(name.startswith("<eval_with_key>") for name in linecache.cache),
        "settings": len(contextvars.copy_context()),
    }


def grows(once: Callable[[], None]) -> list[str]:
    """What grows with the number of times."""
    once()
    before = held()
    once()
    once()
    return [kind for kind, now in held().items() if now > before[kind]]


@pytest.mark.parametrize("free_sizes", [True, False])
def test_a_plan_leaves_nothing_in_torch(free_sizes: bool) -> None:
    def once() -> None:
        model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten(1, 1)).eval()
        parspike.plan(model, torch.rand(3, 1, 8), free_sizes=free_sizes)

    assert grows(once) == []


def test_a_network_that_is_traced_twice_leaves_nothing_of_both() -> None:
    """Would catch what stays of the first trace, which ended where the code asked for a number of its own."""

    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("on", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if self.on > 0 else x

    assert grows(lambda: parspike.plan(Switched().eval(), torch.rand(3, 4)) and None) == []


def test_a_network_that_is_refused_leaves_nothing_either() -> None:
    def once() -> None:
        with pytest.raises(TraceError):
            parspike.plan(Branches(), torch.rand(3, 4))

    assert grows(once) == []


def test_what_the_caller_set_stays_set() -> None:
    """The work runs in a copy of the context; what torch was told before is known in it, and still there after it."""
    setting: contextvars.ContextVar[str] = contextvars.ContextVar("setting", default="")

    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if setting.get() == "mine" else x.sigmoid()

    setting.set("mine")
    plan = parspike.plan(Reads().eval(), torch.rand(3, 4))
    assert "relu" in str(plan)
    assert setting.get() == "mine"


def test_a_graph_that_the_caller_traced_keeps_its_source() -> None:
    own = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    name = own.forward.__code__.co_filename
    parspike.plan(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval(), torch.rand(3, 2))
    assert "def forward" in "".join(linecache.getlines(name))
