"""LSTM, GRU and RNN, unrolled over the steps of the sequence: the network's outputs, in every form of the layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import parspike
from parspike.errors import InputError, TraceError
from parspike.graph import trace
from parspike.graph.same import check_same
from parspike.lower import integers, prove

X = torch.randn(32, 3, 4, generator=torch.Generator().manual_seed(0))


class Reads(nn.Module):
    """A linear layer behind what a recurrent layer returns: all steps, and its last states."""

    def __init__(self, layer: Any, *, first: bool = True, learnt: bool = False) -> None:
        super().__init__()
        ways, size = 1 + layer.bidirectional, layer.proj_size or layer.hidden_size
        self.layer, self.first = layer, first
        self.head = nn.Linear(ways * size, 3)
        kinds = (size, layer.hidden_size)[: 1 + isinstance(layer, nn.LSTM)]
        self.start = nn.ParameterList(torch.rand(layer.num_layers * ways, 1, n) for n in kinds) if learnt else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        start = None if self.start is None else tuple(s.expand(-1, x.shape[0], -1).contiguous() for s in self.start)
        start = start[0] if start is not None and len(start) == 1 else start
        made, last = self.layer(x if self.first else x.transpose(0, 1), start)
        states = last if isinstance(last, tuple) else (last,)
        return self.head(made if self.first else made.transpose(0, 1)), *(s.transpose(0, 1) for s in states)


class Steps(nn.Module):
    """A cell in a loop of the user's."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, held = x.new_zeros(x.shape[0], self.cell.hidden_size), None
        for step in x.unbind(1):
            if isinstance(self.cell, nn.LSTMCell):
                state, held = self.cell(step, None if held is None else (state, held))
            else:
                state = self.cell(step, state)
        return self.head(state)


LAYERS = {
    "LSTM": lambda: Reads(nn.LSTM(4, 3, batch_first=True)),
    "GRU": lambda: Reads(nn.GRU(4, 3, batch_first=True)),
    "RNN of ReLU, both ways": lambda: Reads(nn.RNN(4, 3, nonlinearity="relu", bidirectional=True, batch_first=True)),
    "RNN without bias, steps first": lambda: Reads(nn.RNN(4, 3, bias=False), first=False),
    "GRU of two layers, dropout": lambda: Reads(nn.GRU(4, 3, 2, bias=False, dropout=0.5, batch_first=True)),
    "GRU, both ways, learnt start": lambda: Reads(nn.GRU(4, 3, bidirectional=True, batch_first=True), learnt=True),
    "LSTM, both ways, projected": lambda: Reads(nn.LSTM(4, 5, 2, proj_size=3, bidirectional=True, batch_first=True)),
    "LSTM without bias, learnt start": lambda: Reads(
        nn.LSTM(4, 5, bias=False, proj_size=3, batch_first=True), learnt=True
    ),
    "LSTMCell": lambda: Steps(nn.LSTMCell(4, 3)),
    "GRUCell": lambda: Steps(nn.GRUCell(4, 3)),
    "RNNCell": lambda: Steps(nn.RNNCell(4, 3, bias=False)),
    "RNNCell of ReLU": lambda: Steps(nn.RNNCell(4, 3, nonlinearity="relu")),
}  # fmt: skip


def outputs(made: Any) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


@pytest.mark.parametrize("name", LAYERS)
def test_a_recurrent_layer_is_unrolled(name):
    """Catches gates in another order, a direction, a bias, a start or a projection left out: in float64 the unrolled
    graph is the network, for every batch."""
    torch.manual_seed(0)
    model = LAYERS[name]().eval().double()
    graph = trace(model, (X[:, :2].double(),), free_sizes=False)
    assert {node.target for node in graph.neurons} <= {f"aten.{kind}.default" for kind in ("sigmoid", "tanh", "relu")}
    for x in (X[:1, :2], X[:7, :2].flip(0)):
        with torch.no_grad():
            for found, wanted in zip(outputs(graph.run(x.double())), outputs(model(x.double())), strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNNCell"])
def test_spikes_approach_the_recurrent_network(name, tmp_path):
    """Catches neurons that are placed for another gate or step: an error that more time-steps do not lower."""
    torch.manual_seed(0)
    model = LAYERS[name]().eval()
    plan = parspike.plan(model, X)
    off = []
    for T in (8, 256):
        snn = parspike.convert(plan, X, T=T, recipe="max")
        with torch.no_grad():
            wanted = outputs(model(X))
            off.append(max(float((a - b).norm() / b.norm()) for a, b in zip(outputs(snn(X)), wanted, strict=True)))
    assert off[1] < 0.01 < off[0] < 0.3
    run = outputs(snn.run(X[:3], engine="serial").logits)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(run, outputs(snn(X[:3])), strict=True))
    again = parspike.load(snn.save(tmp_path / "n.parspike"))
    assert all(torch.equal(a, b) for a, b in zip(outputs(again(X)), outputs(snn(X)), strict=True))


@pytest.mark.parametrize("encode", [None, "all"])
@pytest.mark.parametrize("name", ["LSTM", "GRU, both ways, learnt start", "RNN of ReLU, both ways", "GRUCell"])
def test_recurrent_layers_go_into_whole_numbers(name, encode, tmp_path):
    """Catches a first state that is refused or of another grid, and a product of a gate that is no whole number."""
    torch.manual_seed(0)
    model = LAYERS[name]().eval()
    how = {"encode": "all", "analog": "lookup"} if encode else {}
    snn = parspike.convert(model, X, T=6, code="weighted", recipe="max", **how)
    chip = integers(snn, X, weights=12, inputs=12)
    for found, wanted in zip(outputs(chip(X)), outputs(snn(X)), strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 0.06  # a count of 63 more or less
    for engine in ("count", "serial"):
        made = outputs(chip.run(X, engine=engine).logits)
        assert all(torch.equal(a, b) for a, b in zip(made, outputs(chip(X)), strict=True))
    prove(chip, X[:2])
    again = parspike.load(chip.save(tmp_path / "n.parspike"))
    assert all(torch.equal(a, b) for a, b in zip(outputs(again(X)), outputs(chip(X)), strict=True))


def test_the_length_is_that_of_the_example_and_the_plan_says_so():
    """Catches a network that takes a longer sequence and leaves its end out."""
    plan = parspike.plan(LAYERS["LSTM"]().eval(), X)
    assert any(said.startswith("x.1 = 3") for said in plan.graph.fixed)
    snn = parspike.convert(plan, X, T=4, recipe="max")
    with pytest.raises(InputError, match=r"shape \(32, 4, 4\), this network takes \(B, 3, 4\)"):
        snn(torch.cat([X, X[:, :1]], 1))


class Casts(nn.Module):
    def __init__(self, kind: Any = nn.LSTM, last: Any = nn.Identity) -> None:
        super().__init__()
        self.layer, self.head, self.last = kind(4, 3, batch_first=True), nn.Linear(3, 2), last()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.head(self.last(self.layer(x)[0][:, -1])).float()


@pytest.mark.parametrize(("kind", "number"), [(nn.LSTM, 12), (nn.GRU, 6), (nn.RNN, 3)])
@pytest.mark.parametrize("last", [nn.Identity, nn.ReLU])
def test_a_layer_inside_of_autocast_is_unrolled_too(kind, number, last):
    """Catches a layer in the part of the program that torch keeps as a graph of its own: told as packed sequences; and
    weights of another layer that autocast rounds, taken for a number that tracing fixed."""
    torch.manual_seed(0)
    model = Casts(kind, last).eval()
    graph = trace(model, (X,), free_sizes=False)
    check_same(model, graph, (X,), {})
    assert len(graph.neurons) == number + (last is nn.ReLU)
    torch.testing.assert_close(graph.run(X), model(X), rtol=0.02, atol=0.005)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.layer(packed)[1][-1]


class Batch(nn.Module):
    """What users write who forget batch_first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


def test_what_stands_in_the_way_of_unrolling_is_told_with_its_remedy():
    """Catches errors of torch's own ("must be tuple of ints, but got FakeTensor"), and a layer that mixes the batch
    told as a shape written as a number alone."""
    with pytest.raises(TraceError, match=r"Packed packs sequences at .* give the recurrent layer the padded batch"):
        trace(Packed().eval(), (X, torch.full((32,), 3)), free_sizes=False)
    with pytest.raises(TraceError, match=r"LSTM in layer 'layer' takes sequences as \(steps, batch, …\): make it"):
        trace(Batch().eval(), (X,), free_sizes=False)
    model = LAYERS["GRU of two layers, dropout"]()
    with pytest.raises(InputError, match=r"layer 'layer' \(GRU\) is in train mode"):
        parspike.plan(model, X)
