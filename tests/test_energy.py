"""Energy tables, the network with quantised activations, memory traffic; counts against those of other tools."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import pytest
import synops_other_tools as other
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import parspike
from parspike.cli import app
from parspike.errors import FileError, OptionError, ParspikeError
from parspike.measure.layers import activation_bits
from parspike.neurons import IntegrateFire, Simulation


class Chain(nn.Module):
    """image (2, 4, 4) → conv 3×3 → ReLU → linear → ReLU → linear → 3."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.one, self.two = nn.Conv2d(2, 4, 3, bias=False), nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(self.conv(x).relu().flatten(1)).relu())


@cache
def chain() -> tuple[parspike.Plan, Tensor]:
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return parspike.plan(Chain().eval(), x), x


# --------------------------------------------------------------------------------------- the network in few bits


@pytest.mark.parametrize(
    ("T", "code", "bits"), [(1, "sorted", 1), (3, "sorted", 2), (4, "sorted", 3), (4, "weighted", 4), (7, "onset", 3)]
)
def test_an_activation_has_as_many_bits_as_its_levels_need(T, code, bits):
    plan, x = chain()
    snn = parspike.convert(plan, x, T=T, code=code, recipe="max")
    report = parspike.measure(snn, x)
    assert report.quantised_bits == bits == math.ceil(math.log2(parspike.neurons.levels_of(T, code) + 1))
    assert {row.layer: row.bits for row in report.rows if row.kind == "synapse"} == {
        "conv": 8,
        "one": bits,
        "two": bits,
    }


def test_the_energy_of_the_quantised_network_by_hand():
    """8 bits of the image, then 4 and 2 bits of activations, times weights of 8 bits; 2·9·4·4 MACs, 16·5, 5·3."""
    plan, x = chain()
    (_, second) = plan.spiking
    snn = parspike.convert(plan, x, T=4, code="weighted", recipe="max")
    neurons: dict[str, Any] = snn.neurons()
    neurons[second] = parspike.neurons.ParallelNeuron(2, neurons[second].v_threshold, code="weighted")
    snn = parspike.SNN(plan.graph, neurons, simulation=Simulation(4))
    report = parspike.measure(snn, x)
    add, multiply = 0.1, 0.2
    wanted = 288 * (add + multiply) + 80 * (add + multiply / 2) + 15 * (add + multiply / 4)
    assert report.quantised_energy_pj == pytest.approx(wanted)
    integers = parspike.measure(snn, x, energy=parspike.Energy.named("int8-45nm"))
    assert integers.quantised_energy_pj == pytest.approx(wanted)  # the rival has integers under every table
    assert integers.energy_pj == pytest.approx(0.1 * report.synops + 0.3 * 288)
    assert integers.network_energy_pj == pytest.approx(0.3 * (288 + 80 + 15))
    assert "the network with activations of 4 bits and weights of 8" in str(report)
    assert json.loads(json.dumps(integers.to_json()))["quantised_energy_pj"] == pytest.approx(wanted)


def test_bits_of_what_lies_between():
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            z = self.b(nn.functional.avg_pool2d(y, 2))  # of 3 bits
            return self.c(z.softmax(-1) + z)  # of 8: behind a synapse, behind an analog operator

    x = torch.randn(2, 1, 8, 8)
    snn = parspike.convert(Between().eval(), x, T=7, recipe="max")
    bits = activation_bits(snn)
    rows = {row.layer: row.bits for row in parspike.measure(snn, x).rows if row.kind == "synapse"}
    assert rows == {"a": 8, "b": 3, "c": 8}
    assert all(bits[node.name] == 3 for node in snn.graph.nodes if "avg_pool" in node.target)


def test_memory_traffic_by_hand():
    plan, x = chain()
    snn = parspike.convert(plan, x, T=4, recipe="max")
    energy = parspike.Energy(
        weight_bits=16, potential_bits=8, activation_bits=4, event_bits=5, memory=((0.2, 64.0), (9, 128.0))
    )
    report = parspike.measure(snn, x, energy=energy)
    weights = 2 * 4 * 9 + 16 * 5 + 5 * 3
    assert report.weights == weights
    assert report.neurons == 21
    # 167 weights of 16 bits and 21 potentials of 8 are 0.347 KiB; with weights of 8 bits and 3-bit activations 0.171.
    moved = report.synops * (16 + 16) + report.macs * (16 + 4) + report.updates * (16 + 16) + report.spikes * 10
    assert report.memory_pj == pytest.approx(2 * moved)
    assert report.network_memory_pj == pytest.approx(2 * (383 * (16 + 4) + 21 * 4))
    assert report.quantised_memory_pj == pytest.approx(1 * (288 * (8 + 8) + 95 * (8 + 3) + 21 * 3))


# -------------------------------------------------------------------------------------------------- energy tables


def test_the_built_in_tables_are_horowitz():
    default, integers = parspike.Energy(), parspike.Energy.named("int8-45nm")
    named = parspike.Energy.named("float32-45nm")
    for name in ("ac", "mac", "int_add", "int_multiply", "weight_bits", "potential_bits", "activation_bits", "memory"):
        assert getattr(default, name) == getattr(named, name)
    assert (named.ac, named.mac) == (0.9, pytest.approx(0.9 + 3.7))
    assert (integers.ac, integers.mac) == (0.1, pytest.approx(0.1 + 0.2))
    assert "Horowitz" in named.source
    assert "Horowitz" in integers.source
    # The multiplier's energy grows with the product of the widths: of 32 by 32 bits this says 3.2 pJ, the table 3.1.
    assert integers.int_multiply * 32 * 32 / 64 == pytest.approx(3.1, rel=0.05)
    assert integers.access(64, 8) == 10
    assert integers.access(32, 8.1) == 10
    assert integers.access(64, 1e6) == 1300


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "chip.toml"
    path.write_text("ac = 2.0\nmac = 5\nweight_bits = 4\nmemory = [[64, 1.5], [inf, 100]]\nsource = 'measured'\n")
    energy = parspike.Energy.named(path)
    assert (energy.ac, energy.mac, energy.weight_bits, energy.name, energy.source) == (2.0, 5, 4, "chip", "measured")
    assert energy.memory == ((64, 1.5), (math.inf, 100))
    assert energy.quantised_mac(4) == pytest.approx(0.1 + 0.2 * 16 / 64)
    assert energy.to_json()["memory"][-1] == [None, 100]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ac = -1", "ac=-1"),
        ("ac = 'x'", "ac='x'"),
        ("mac = nan", "mac=nan"),
        ("weights_bits = 1", "unknown entry 'weights_bits'.*did you mean 'weight_bits'"),
        ("weight_bits = 0", "from 1 to 64"),
        ("weight_bits = 8.5", "from 1 to 64"),
        ("memory = []", "give pairs"),
        ("memory = [[8, 1], [4, 2]]", "rising"),
        ("memory = [[8]]", "give pairs"),
        ("name = 3", "name is text"),
        ("ac = ", "cannot be read as TOML"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ParspikeError, match=message) as caught:
        parspike.Energy.named(path)
    assert "bad.toml" in str(caught.value)


def test_the_name_of_a_table_is_none() -> None:
    """It was taken, and ended in an AttributeError when the report was shown."""
    snn = parspike.convert(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(8, 4), recipe="max")
    with pytest.raises(OptionError, match=r"energy is 'int8-45nm': give a table, such as parspike.Energy.named"):
        parspike.measure(snn, torch.rand(8, 4), energy="int8-45nm")  # pyright: ignore[reportArgumentType]


def test_tables_that_are_not_there(tmp_path):
    with pytest.raises(OptionError, match=r"no energy table 'int8'.*did you mean 'int8-45nm'"):
        parspike.Energy.named("int8")
    with pytest.raises(FileError, match="there is no energy table"):
        parspike.Energy.named(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(FileError, match="cannot be read"):
        parspike.Energy.named(tmp_path / "folder.toml")


# --------------------------------------------------------------------------------------------------- other tools

RECORDED = json.loads(other.FIGURES.read_text())
NAMES = [(kind, spikes) for kind in other.SHAPES for spikes in (False, True)]


def network(kind: str) -> parspike.SNN:
    """The network of benchmarks/synops_other_tools.py."""
    modules: list[nn.Module] = []
    for number, layer in enumerate(synapses := other.layers(kind)):
        modules += [layer, nn.ReLU()] if number < len(synapses) - 1 else [nn.Flatten(), layer]
    x = other.inputs(kind, spikes=False)
    plan = parspike.plan(nn.Sequential(*modules).eval(), x, free_sizes=False)
    neurons = {}
    for name in plan.spiking:
        neurons[name] = IntegrateFire(torch.tensor(other.THRESHOLD))
        neurons[name].v_init.data.zero_()
        neurons[name].v_post.data.fill_(1.0)
    return parspike.SNN(plan.graph, neurons, simulation=Simulation(other.T))


@pytest.mark.parametrize(("kind", "spikes"), NAMES)
def test_operations_are_those_that_other_tools_counted(kind, spikes):
    recorded = RECORDED[f"{kind}, {'spikes' if spikes else 'values'}"]
    snn, x = network(kind), other.inputs(kind, spikes)
    theirs, ours = recorded["neurobench"], parspike.neurobench(snn, x).to_json()
    assert ours["synaptic_operations"] == pytest.approx(theirs["SynapticOperations"])
    assert ours["activation_sparsity"] == pytest.approx(theirs["ActivationSparsity"])
    assert ours["connection_sparsity"] == pytest.approx(theirs["ConnectionSparsity"], abs=5e-5)  # rounded by them
    synapses = sum(weight.numel() for weight in other.weights(kind))
    assert synapses == theirs["ParameterCount"]
    assert ours["parameter_count"] == synapses + 4 * len(snn.neurons())  # θ, v(0), amplitude and bias of a layer
    assert ours["footprint"] == 4 * ours["parameter_count"]
    # sinabs counts what each spike reaches, as we do, a weight of 0 too; of the input it adds up values, we count MACs.
    report = parspike.measure(snn, x)
    rows = [row for row in report.rows if row.kind == "synapse"]
    assert [row.synops for row in rows[1:]] == pytest.approx(recorded["sinabs"]["synops"][1:])
    assert [row.firing_rate for row in report.rows if row.neurons] == pytest.approx(recorded["sinabs"]["rates"])


def test_neurobench_multiplies_behind_an_average_pool_and_at_every_step():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1, bias=False), nn.Linear(2, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().mean((2, 3)))

    model, x = Pooled().eval(), torch.rand(1, 1, 2, 2) + 0.1
    model.a.weight.data.fill_(1.0)
    snn = parspike.convert(model, x, T=2, recipe="max")
    for neuron in snn.counting().values():
        neuron.v_threshold.data.fill_(0.1)  # all neurons fire at both steps
    snn.synapses.get_submodule("a").weight.data[0] = 0.0
    found = parspike.neurobench(snn, x)
    # 4 pixels through one weight that is not 0, at both steps; the neurons of the other channel fire at both, so the
    # mean of its four spikes is 1 and of the silent one 0: accumulates.
    assert (found.effective_macs, found.effective_acs) == (8, 6)
    assert found.dense == 2 * (8 + 6)
    assert (found.activation_sparsity, found.connection_sparsity) == (0.5, 1 / 8)
    half = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]]])
    # Two of four fire, the mean is ½, which is no spike: multiplications. The image is 1 and −1: accumulates.
    found = parspike.neurobench(snn, half)
    assert (found.effective_macs, found.effective_acs) == (6, 8)


@pytest.mark.parametrize("code", ["sorted", "weighted", "onset"])
def test_accumulates_by_neurobench_are_synops_where_no_weight_is_zero(code):
    plan, x = chain()
    snn = parspike.convert(plan, x, T=3, code=code, recipe="max")
    report, found = parspike.measure(snn, x), parspike.neurobench(snn, x)
    assert found.effective_acs == pytest.approx(report.synops)
    assert found.effective_macs == pytest.approx(3 * report.macs)
    assert found.dense == pytest.approx(3 * report.network_macs)
    assert found.activation_sparsity == pytest.approx(1 - report.spikes / report.neurons / 3)
    assert "Effective_ACs" in str(found)


def test_neurobench_refuses_what_measure_does():
    plan, x = chain()
    with pytest.raises(ParspikeError, match=r"parspike\.convert makes one"):
        parspike.neurobench(nn.Linear(2, 2), x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ParspikeError, match="empty"):
        parspike.neurobench(parspike.convert(plan, x, T=2, recipe="max"), [])


# ---------------------------------------------------------------------------------------------- the command line

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
"""


def test_the_command_line_takes_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "my.toml").write_text("ac = 7.0\nmac = 0.0\n")
    run = CliRunner().invoke
    data = ["--data", "digits", "--json"]
    assert run(app, ["convert", "net.py:make", *data, "-T", "2", "--recipe", "max", "-o", "n.parspike"]).exit_code == 0
    done = run(app, ["eval", "n.parspike", *data, "--limit", "32", "--energy", "my.toml", "--neurobench"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["operations"]["energy_pj"] == pytest.approx(7 * told["operations"]["synops"])
    assert told["neurobench"]["synaptic_operations"]["Effective_ACs"] == pytest.approx(told["operations"]["synops"])
    refused = run(app, ["eval", "n.parspike", *data, "--energy", "int4"])
    assert refused.exit_code == 1
    assert "no energy table 'int4'" in json.loads(refused.stdout)["error"]["message"]
