"""What people ask of a converted network, asked of one with encoders: right values by hand where a pair of neurons
stands for each value, which sends spikes of both signs."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import parspike
from parspike.cli import app
from parspike.errors import ParspikeWarning
from parspike.neurons import SignedNeuron
from parspike.sweep.quantised import quantised

X = torch.tensor([[-1.6], [0.2]])


@functools.cache
def pairs() -> tuple[nn.Module, parspike.SNN]:
    """Two linear layers that change nothing, in front of each a pair with the values −1, −½, 0, ½ and 1."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).eval()
    for layer in model:
        layer.weight.data.fill_(1.0)
    snn = parspike.convert(model, X, 2, recipe="max", encode="all")
    for neuron in snn.neurons().values():
        assert isinstance(neuron, SignedNeuron)
        neuron.v_threshold.data.fill_(1.0)
        neuron.v_post.data.fill_(1.0)
        neuron.offset.zero_()
    assert snn(X).tolist() == [[-1.0], [0.0]]
    return model, snn


@functools.cache
def block() -> tuple[nn.Module, parspike.SNN, Tensor]:
    """A layer of a transformer, with inner encoders alone (its inputs are no spikes)."""
    torch.manual_seed(3)
    model = nn.TransformerEncoderLayer(16, 4, 24, activation="relu", batch_first=True).eval()
    x = torch.randn(70, 6, 16)
    return model, parspike.convert(model, x, 4, code="weighted", encode="hidden", recipe="max"), x


def test_a_diagnosis_clips_at_both_ends_and_counts_both_neurons() -> None:
    model, snn = pairs()
    size = (1.6**2 + 0.2**2) ** 0.5
    first, second = parspike.diagnose(snn, model, X).rows
    assert first.clipping == pytest.approx(0.6 / size)
    assert first.quantisation == pytest.approx(0.2 / size)
    assert (first.beyond, first.neurons, first.firing_rate) == (0.5, 2, 0.25)
    assert first.first_spikes == (1, 0, 1)  # the train of −1, −1 begins in the first step
    assert (second.clipping, second.quantisation) == (0, 0)
    assert second.carried == first.error


@pytest.mark.parametrize("given", ["the network", "its plan", "nothing"])
def test_a_diagnosis_of_inner_encoders(given: str) -> None:
    model, snn, x = block()
    reference = {
        "the network": model,
        "its plan": parspike.plan(model, x[:2], encode="hidden"),
        "nothing": None,
    }[given]
    rows = parspike.diagnose(snn, reference, x[:8]).rows
    assert [row.layer for row in rows] == [snn.graph.by_name[name].layer for name in snn.neurons()]
    assert all(row.error > 0 for row in rows)


def test_rates_are_those_of_each_neuron_of_a_pair() -> None:
    _, snn = pairs()
    run = snn.run(X, record=True)
    # One of the two inputs is sent by 2 spikes: of 2 values, 2 neurons and 2 steps each a quarter.
    assert run.firing_rate == {"input_spikes": 0.25, "0@spikes": 0.25}
    row = parspike.measure(snn, X).rows[0]
    assert (row.neurons, row.spikes, row.firing_rate, row.updates, row.bits) == (2, 1, 0.25, 4, 3)


def test_errors_by_layer_are_measured_against_the_network_with_the_same_encoders() -> None:
    model, snn, x = block()
    rows = [row for row in parspike.measure(snn, x[:4], against=model).rows if row.kind == "neuron"]
    assert len(rows) == len(snn.neurons())
    assert all(row.error is not None and 0 < row.error < 1 for row in rows)


def test_the_rows_of_products_are_no_analog_ones() -> None:
    _, snn, x = block()
    report = parspike.measure(snn, x[:4])
    held = [row for row in report.rows if row.operator == "hold"]
    assert [row.kind for row in held] == ["mean", "mean"]
    assert not any(row.operator in ("hold", "matmul") for row in report.analog)
    # Only the network's input, which encode="hidden" leaves as it is, meets a synapse as numbers.
    assert [row.layer for row in report.rows if row.kind == "synapse" and row.macs] == ["self_attn.linear"]


@torch.no_grad()
def test_a_pair_is_the_quantised_value() -> None:
    _, snn, x = block()
    (name,) = (i.name for i in snn.graph.inputs)
    found, wanted = quantised(snn)({name: x}), snn(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert quantised(pairs()[1])({"input": X}).tolist() == [[-1.0], [0.0]]


def test_a_table_over_T_tells_the_levels_of_a_pair() -> None:
    model, _ = pairs()
    torch.manual_seed(0)
    x = torch.randn(80, 1)
    plan = parspike.plan(model, x[:2], encode="all")
    rows = parspike.sweep(plan, x[:64], data=x[64:], T=[2, 3], codes=["sorted", "weighted"], recipe="max").rows
    assert {(row.code, row.T): row.levels for row in rows} == {
        ("sorted", 2): 4, ("sorted", 3): 6, ("weighted", 2): 6, ("weighted", 3): 14
    }  # fmt: skip


def test_a_chip_is_told_of_inner_encoders() -> None:
    model, snn = pairs()
    found = [one for one in parspike.check(snn, "loihi2").findings if one.about == "neurons"]
    # A computer makes the spikes of the input; those of the layer behind are the chip's.
    assert [(one.layer, one.grade, one.what) for one in found] == [
        ("0@spikes", "unsupported", "no pairs of parallel neurons")
    ]
    assert found[0].remedy.endswith("without encode=")
    hidden = parspike.convert(model, X, 2, recipe="max", encode="hidden")
    assert "input" in {one.about for one in parspike.check(hidden, "speck").blockers}
    assert "input" not in {one.about for one in parspike.check(snn, "speck").blockers}


def test_an_engine_of_if_neurons_names_pairs() -> None:
    _, snn = pairs()
    with pytest.warns(ParspikeWarning, match="2 of 2 layers .* spikes of both signs"):
        snn.run(X, engine="serial-if")


def test_the_command_line_tells_and_repeats_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).eval()\n"
    )
    monkeypatch.chdir(tmp_path)
    run: Any = functools.partial(CliRunner().invoke, app)
    np.savez("x.npz", x=np.random.default_rng(0).normal(size=(80, 4)).astype("float32"))
    made = run(["convert", "net.py:make", "--data", "x.npz", "-T", "2", "--encode", "all", "--recipe", "max",
                "-o", "a.parspike"])  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "x/255" not in made.output  # floats are taken as they are
    assert parspike.load("a.parspike").provenance["encode"] == "all"
    seen = run(["eval", "a.parspike", "--data", "x.npz", "--json"])
    assert seen.exit_code == 0, seen.output
    score, x = json.loads(seen.output), torch.from_numpy(np.load("x.npz")["x"])
    sent = parspike.load("a.parspike").run(x, record=True).sent.values()
    total, values = sum(float(each.sum()) for each in sent), sum(each.numel() for each in sent)
    assert score["spikes_per_neuron"] == pytest.approx(total / (2 * values))
