"""A network whose sizes are all fixed is traced once: the graph of open sizes, with the example's put in."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike.graph import free, trace
from parspike.graph.export import export


class Of(nn.Module):
    """conv → ReLU → f → flatten → linear."""

    def __init__(self, function, features: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.function = nn.Conv2d(1, 4, 3), nn.Linear(features, 5), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.conv(x).relu()).flatten(1))


NETWORKS = {
    "view": (lambda x: x.view(x.shape[0], -1), 144, 8),
    "computed from sizes": (lambda x: x / x.shape[2] + torch.arange(x.shape[3]), 144, 8),
    "padded to a multiple": (lambda x: F.pad(x, (0, -x.shape[3] % 4)), 192, 8),
    "branch on the sizes": (lambda x: x * 2 if x.shape[2] * x.shape[3] > 30 else x, 144, 8),
}  # fmt: skip


def described(graph):
    place = {node.name: number for number, node in enumerate(graph.nodes)}
    rows = [(n.target, n.shape, n.role, n.layer, n.channel_dims, [place.get(r) for r in n.refs]) for n in graph.nodes]
    return rows, graph.inputs, graph.fixed, graph.limits, graph.tensors.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_that_of_a_trace_with_the_sizes_of_the_example(name, monkeypatch):
    function, features, width = NETWORKS[name]
    model, x = Of(function, features).eval(), torch.randn(3, 1, 8, width)
    exports = []
    for room in (free, importlib.import_module("parspike.graph.trace")):
        monkeypatch.setattr(room, "export", lambda *args: exports.append(1) or export(*args))
    once = trace(model, (x,))
    assert len(exports) == 1
    monkeypatch.setattr(free, "_with_numbers", lambda *args: None)
    again = trace(model, (x,))
    assert len(exports) == 3
    assert described(once) == described(again)
    assert torch.equal(once.run(x), model(x))
    assert torch.equal(once.run(x[:1]), again.run(x[:1]))


@pytest.mark.parametrize("function", [lambda x: x + torch.randn_like(x), lambda x: torch.bernoulli(x.sigmoid())])
def test_what_has_no_rule_is_named_where_all_sizes_are_fixed(function):
    """Catches a comparison that runs the operator, a KeyError instead of the plan that names it."""
    torch.manual_seed(0)
    made = parspike.plan(Of(function, 144).eval(), torch.randn(3, 1, 8, 8))
    assert len(made.refusals) == 1
    assert made.refusals[0].remedy


def test_where_open_sizes_lead_another_way_it_is_traced_again():
    model, x = Of(lambda x: x.squeeze(), 24).eval(), torch.randn(3, 1, 8, 3)
    graph = trace(model, (x,))
    assert graph.inputs[0].shape[1:] == (1, 8, 3)
    assert torch.equal(graph.run(x), model(x))


def test_a_condition_on_the_batch_is_still_found():
    model = Of(lambda x: x * 2 if x.numel() > 300 else x, 144).eval()
    graph = trace(model, (torch.randn(3, 1, 8, 8),))
    assert not graph.allows({"batch": 2})
    assert graph.allows({"batch": 3})
