"""Where the largest of activations is, and which of two is larger, is asked of the activations themselves: their counts
are often equal where they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike.graph import Role
from parspike.neurons import ParallelNeuron

X = torch.randn(96, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A hidden layer, whose currents are exact at every T. What `asks` makes of it, places or truth values, chooses
    rows of a table, and a second hidden layer reads these."""

    def __init__(self, asks: Callable[[Tensor], Tensor], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out, self.table = nn.Linear(12, 32), nn.Linear(32, 3), nn.Embedding(32, 8)
        self.second, self.end = nn.Linear(8, 16), nn.Linear(16, 3)
        self.act, self.asks, self.activation = nn.ReLU(), asks, activation

    def chosen(self, h: Tensor) -> Tensor:
        return self.second(self.table(self.asks(h).long()).flatten(1, -2).mean(1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.hidden(x))
        return self.end(self.act(self.chosen(h))) + self.out(h)


ASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "argmax": lambda h: h.argmax(1, keepdim=True),
    "argmin": lambda h: (h[:, :2] + torch.tensor([0.0, 0.1])).argmin(1, keepdim=True),
    "argsort": lambda h: h.argsort(1, descending=True)[:, :4],
    "topk": lambda h: h.topk(4, 1)[1],
    "sort": lambda h: h.sort(1, descending=True)[1][:, :4],
    "kthvalue": lambda h: h.kthvalue(31, 1)[1][:, None],
    "max": lambda h: h.max(1)[1][:, None],
    "in groups": lambda h: (h + torch.linspace(0, 0.1, 32)).view(-1, 4, 8).max(2)[1],
    "of a softmax": lambda h: (4 * h).softmax(1).topk(2, 1)[1],
    "of a norm": lambda h: F.layer_norm(h, (32,)).topk(2, 1)[1],
    "of a sum of two": lambda h: (h + h.flip(1) * 0.5).topk(2, 1)[1],
    "of maxima": lambda h: F.max_pool1d(h[:, None], 4)[:, 0].argmax(1, keepdim=True),
    "pooled": lambda h: F.max_pool2d(h.view(-1, 1, 4, 8), 2, return_indices=True)[1].flatten(1),
    "pooled adaptively": lambda h: F.adaptive_max_pool2d(h.view(-1, 1, 4, 8), 2, return_indices=True)[1].flatten(1),
    "larger of two": lambda h: h[:, :16] > h[:, 16:],
    "above a number": lambda h: h.gt(0.05),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "sigmoid": torch.sigmoid, "silu": F.silu}


@torch.no_grad()
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ASKS)
def test_places_are_those_of_the_activations(kind: str, activation: str, tmp_path: Path) -> None:
    """At two steps most counts are equal, and most places of counts would be wrong."""
    model = Net(ASKS[kind], ACTIVATIONS[activation]).eval()
    snn = parspike.convert(model, [X], T=2, recipe="max")
    (second,) = (node for node in snn.graph.neurons if node.layer == "act")
    current = model.chosen(model.activation(model.hidden(X)))
    wanted = cast(ParallelNeuron, snn.neurons()[second.name]).count(current)
    runs = [snn.run(X, engine=engine, record=True) for engine in ("count", "parallel", "serial")]
    runs.append(parspike.load(snn.save(tmp_path / "net.parspike")).run(X, record=True))
    for run in runs:
        assert float((run.counts["act"] != wanted).double().mean()) < 1e-3  # sums may round otherwise
    assert float((snn(X) - model(X)).norm() / model(X).norm()) > 0.05  # what the last layer reads, neurons still send


class Unpooled(nn.Module):
    """SegNet's pair: a max-pool that gives its places, which say where a later layer puts what it computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = (nn.Conv2d(n, m, 3, padding=1) for n, m in ((2, 6), (6, 6), (6, 3)))

    def forward(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(self.first(x).relu(), 2, return_indices=True)
        return self.last(F.max_unpool2d(self.second(y).relu(), places, (2, 2)))


@torch.no_grad()
def test_unpooled_maps_come_near() -> None:
    """By places of counts the error was 0.13 at T = 8, and 0.04 at T = 64."""
    x = torch.rand(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Unpooled().eval()
    wanted = model(x)
    errors = []
    for T in (8, 64):
        snn = parspike.convert(model, [x], T=T, recipe="max")
        errors.append(float((snn(x) - wanted).norm() / wanted.norm()))
    assert errors[0] < 0.06
    assert errors[1] < 0.01


def test_neurons_stand_behind_such_a_pool_and_the_plan_says_what_is_compared() -> None:
    graph = parspike.convert(Unpooled().eval(), [torch.rand(8, 2, 8, 8)], T=4, recipe="max").graph
    assert [graph.shape_of(node)[1:] for node in graph.neurons] == [(6, 4, 4)] * 2
    (compared,) = (node for node in graph.nodes if node.layer == "relu@compared")
    assert compared.role is Role.ANALOG
    assert "equal counts would hide which is larger" in compared.reason


def test_an_activation_that_is_only_compared_sends_no_spikes() -> None:
    model = Net(ASKS["topk"], torch.relu)
    model.forward = lambda x: model.end(model.act(model.chosen(model.hidden(x).relu())))
    assert [node.layer for node in parspike.plan(model.eval(), X).graph.neurons] == ["act"]


def test_what_is_computed_beside_is_no_operation_of_the_network() -> None:
    """The network's: 12 · 32, 8 · 16, 16 · 3 and 32 · 3 of linear layers, 32 of topk and 4 of what it gives."""
    snn = parspike.convert(Net(ASKS["topk"], torch.relu).eval(), [X], T=2, recipe="max")
    report = parspike.measure(snn, X)
    assert report.network_macs == 384 + 128 + 48 + 96 + 32 + 4
    assert {row.layer: row.macs for row in report.rows}["relu@compared"] == 32
