"""The error of each layer in parts, against sums by hand; the layer to blame; remedies that were tried."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from networks import Quantised, Residual, made
from torch import Tensor, nn
from typer.testing import CliRunner

import parspike
from parspike.cli import app
from parspike.diagnose import Outcome
from parspike.errors import InputError, ParspikeWarning
from parspike.neurons import IntegrateFire, ParallelNeuron, Simulation, Staircase


def line(*weights: float) -> nn.Sequential:
    """One neuron behind the other: x · w₁ → ReLU → · w₂ → ReLU …, the last without an activation."""
    layers: list[nn.Module] = []
    for weight in weights:
        linear = nn.Linear(1, 1, bias=False)
        linear.weight.data.fill_(weight)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def spiking(model: nn.Module, x: Tensor, T: int, *thetas: float) -> parspike.SNN:
    """Its conversion with these thresholds and nothing fitted."""
    snn = parspike.convert(model, x, T=T, recipe="max")
    for neuron, theta in zip(snn.neurons().values(), thetas, strict=True):
        neuron.v_threshold.data.fill_(theta)
        neuron.v_post.data.fill_(theta)
    return snn


@cache
def residual() -> tuple[parspike.Plan, Tensor]:
    """The plan of a network, read once for all tests, and 24 inputs."""
    plan = parspike.plan(*made(Residual))
    return plan, torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def keeping(plan: parspike.Plan, *layers: str) -> parspike.Plan:
    """The plan that keeps these layers analog."""
    kept = tuple(name for name in plan.spiking if plan.graph.by_name[name].layer in layers)
    return replace(plan, spiking=tuple(name for name in plan.spiking if name not in kept), kept=kept)


def root(*squares: float) -> Any:
    return pytest.approx(math.sqrt(sum(squares)), rel=1e-6)


# ------------------------------------------------------------------------------------------ the parts of the error


def test_clipping_and_quantisation_by_hand():
    """θ = 1, T = 2: the levels are 0, ½ and 1, so 1.6 becomes 1 and 0.2 becomes 0."""
    model, x = line(1.0, 1.0), torch.tensor([[1.6], [0.2]])
    found = parspike.diagnose(spiking(model, x, 2, 1.0), model, x)
    (row,), size = found.rows, 1.6**2 + 0.2**2
    assert row.clipping == root(0.6**2 / size)
    assert row.quantisation == root(0.2**2 / size)
    assert row.error == root((0.6**2 + 0.2**2) / size) == found.outcome.error == row.alone.error
    assert (row.carried, row.over_time, row.beyond, row.neurons) == (0, 0, 0.5, 1)
    assert row.without.error == 0
    assert row.cause == "clipping"
    assert found.blame == "1"
    assert row.rates == (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert row.first_spikes == (1, 0, 1)
    assert row.firing_rate == 0.5


def test_what_an_earlier_layer_caused_by_hand():
    """The first layer sends ½ for 0.7; the second is given 2 · ½ = 1 instead of 1.4, and sends it without an error."""
    model, x = line(1.0, 2.0, 1.0), torch.tensor([[0.7]])
    found = parspike.diagnose(spiking(model, x, 4, 2.0, 2.0), model, x)
    first, second = found.rows
    assert first.quantisation == root((0.2 / 0.7) ** 2)
    assert second.carried == root((0.4 / 1.4) ** 2) == second.error
    assert (second.clipping, second.quantisation) == (0, 0)
    assert first.alone.error == root((0.4 / 1.4) ** 2) == second.without.error
    # Alone, the second layer is given 1.4 and sends 1.5; without the first layer's error it does the same.
    assert second.alone.error == root((0.1 / 1.4) ** 2) == first.without.error
    assert found.blame == "1"


def serial(over: dict[str, Any] | None = None) -> tuple[nn.Module, parspike.SNN]:
    """Two IF neurons that send 0, 1, 0, 1 and 1, 0, 1, 0; behind them 2 · (second − first), and the first."""
    one, two = nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False)
    one.weight.data, two.weight.data = torch.tensor([[0.5], [0.5]]), torch.tensor([[-2.0, 2.0], [1.0, 0.0]])
    model = nn.Sequential(one, nn.ReLU(), two, nn.ReLU()).eval()
    plan = parspike.plan(model, torch.ones(1, 1), layers={"*": parspike.Spike()})
    first, second = (IntegrateFire(torch.ones(2), **(over or {})) for _ in range(2))
    first.v_init.data = torch.tensor([0.0, 0.5])
    return model, parspike.SNN(
        plan.graph, dict(zip(plan.spiking, (first, second), strict=True)), simulation=Simulation(4)
    )


def test_distribution_over_time_by_hand():
    """The input 2, −2, 2, −2 has the mean 0, for which no spike should come; v(0) = ½ and θ = 1 send two of them."""
    model, snn = serial()
    found = parspike.diagnose(snn, model, torch.ones(1, 1))
    first, second = found.rows
    assert first.error == first.over_time == 0
    assert second.over_time == root(0.5**2 / 0.5**2) == second.error
    assert (second.carried, second.clipping, second.quantisation) == (0, 0, 0)
    assert second.cause == "over_time"
    assert (first.rates[5], second.rates[5]) == (2, 2)
    assert first.first_spikes == (1, 1, 0, 0, 0)
    assert second.first_spikes == (1, 1, 0, 0, 0)
    # The second layer alone is given 0 and ½ at every step, and sends what it should. Without the first layer's spikes
    # the same; made exact itself, it gives the activation of the mean.
    assert second.alone.error == first.without.error == second.without.error == 0
    assert found.blame in ("1", "3")


def test_a_leak_is_no_matter_of_time():
    """Half of the potential is lost at every step: from a steady 0.5 it never reaches 1."""
    model, snn = serial({"decay": 0.5})
    (first, _) = parspike.diagnose(snn, model, torch.ones(1, 1)).rows
    assert first.quantisation == root(1.0)
    assert first.over_time == 0
    assert (first.dead, first.network_dead) == (1.0, 0.0)


def test_dead_and_saturated_by_hand():
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    model[0].weight.data = torch.tensor([[1.0], [0.0], [0.1], [0.0]])
    model[0].bias.data = torch.tensor([0.0, -1.0, 0.0, 5.0])
    x = torch.tensor([[1.0], [2.0]])
    snn = spiking(model, x, 2, 1.0)
    (row,) = parspike.diagnose(snn, model, x).rows
    # The first and the last send all they can for both images; the second is silent in the network too, the third not.
    assert (row.dead, row.network_dead, row.saturated) == (0.5, 0.25, 0.5)


@pytest.mark.parametrize("code", ["sorted", "weighted", "onset"])
def test_rates_and_first_spikes_are_those_of_the_trains(code):
    plan, x = residual()
    snn = parspike.convert(plan, x[:4], T=3, code=code, recipe="max")
    rows = {row.layer: row for row in parspike.diagnose(snn, plan, x[:4], cure=False).rows}
    for layer, train in snn.run(x[:4], engine="parallel", record=True).spikes.items():
        first = torch.where(train.any(0), train.int().argmax(0), 3).flatten()
        assert rows[layer].first_spikes == tuple(first.bincount(minlength=4).tolist())
        rate = train.float().mean(0)
        assert rows[layer].firing_rate == pytest.approx(float(rate.mean()))
        counts = [int((rate == 0).sum())]
        counts += [int(((rate * 10 > i + 1e-3) & (rate * 10 <= i + 1 + 1e-3)).sum()) for i in range(10)]
        assert rows[layer].rates == tuple(counts)


@pytest.mark.parametrize("kind", [parspike.Parallel(), parspike.IF()], ids=lambda kind: kind.text)
def test_alone_and_without_are_networks_that_keep_layers_analog(kind):
    """The same networks by another way: conversions that keep the layer, or all others, analog."""
    plan, x = residual()
    x, how = x[:6], {"T": 4, "neuron": kind, "recipe": "max"}
    snn = parspike.convert(plan, x, **how)
    rows = parspike.diagnose(snn, plan, x, cure=False).rows
    assert len(rows) == 5
    layers = [row.layer for row in rows]
    for row in rows[:4]:
        for outcome, kept in ((row.without, [row.layer]), (row.alone, [l for l in layers if l != row.layer])):
            other = parspike.convert(keeping(plan, *kept), x, **how)
            assert outcome.error == pytest.approx(parspike.measure(other, x, against=plan).error, rel=1e-4)


def test_a_lossless_network_has_no_layer_to_blame():
    model, x = made(Quantised)
    found = parspike.diagnose(parspike.convert(model, example=x, T=4), model, x)
    assert found.blame is None
    assert not found.remedies
    assert all(row.error < 1e-6 for row in found.rows)
    assert str(found).endswith("no layer to blame: the outputs are the network's")


def test_an_error_that_no_neuron_makes_is_no_equality():
    """With other weights behind the last neurons, or without neurons, the outputs were said to be the network's."""
    one, other = nn.Linear(4, 3).eval(), nn.Linear(4, 3).eval()
    x = torch.randn(8, 4)
    with pytest.warns(ParspikeWarning, match="no activation that becomes neurons"):
        snn = parspike.convert(one, x)
    found = parspike.diagnose(snn, other, x)
    assert found.blame is None
    assert found.outcome.harm > 0.1
    assert "no layer to blame: no neuron makes this error, so the two networks have other weights" in str(found)
    assert "the outputs are the network's" not in str(found)


# ------------------------------------------------------------------------------------------------------- remedies


def faulty(layer: str, factor: float) -> tuple[parspike.Plan, Tensor, parspike.SNN]:
    """A conversion of which one layer has thresholds that are so much too large."""
    plan, x = residual()
    snn = parspike.convert(plan, x, T=32, recipe="max")
    neuron = next(n for name, n in snn.neurons().items() if snn.graph.by_name[name].layer == layer)
    neuron.v_threshold.data *= factor
    neuron.v_post.data *= factor
    return plan, x, snn


@pytest.mark.parametrize(("factor", "cause", "sign"), [(0.2, "clipping", 1), (20.0, "quantisation", -1)])
def test_the_layer_with_a_fault_is_blamed_and_mended(factor, cause, sign):
    plan, x, snn = faulty("act@2", factor)
    found = parspike.diagnose(snn, plan, x.split(6))
    assert found.blame == "act@2"
    assert found.worst is not None
    assert found.worst.cause == cause
    assert (found.samples, found.held_out) == (24, 12)
    by = {one.name: one for one in found.remedies}
    assert set(by) == {"threshold", "steps", "all-steps", "keep"}
    scale = float(by["threshold"].what.removeprefix("thresholds × "))
    assert (scale - 1) * sign > 0
    assert by["threshold"].gain > 0
    held = torch.cat(x.split(6)[1::2])
    for one in found.remedies:
        assert one.before.error == pytest.approx(parspike.measure(snn, held, against=plan).error, rel=1e-5)
        assert one.after.error == pytest.approx(parspike.measure(one.snn, held, against=plan).error, rel=1e-5)
    kept = parspike.convert(keeping(plan, "act@2"), x, T=32, recipe="max")
    assert by["keep"].after.error == pytest.approx(parspike.measure(kept, held, against=plan).error, rel=1e-4)
    assert found.remedy is not None
    assert found.remedy.gain > 0
    assert "← take this" in str(found)


def test_a_layer_with_too_few_steps_gets_more():
    plan, x = residual()
    name = next(name for name in plan.spiking if plan.graph.by_name[name].layer == "act")
    snn = parspike.convert(replace(plan, steps={name: 1}), x, T=16, recipe="max")
    found = parspike.diagnose(snn, plan, x.split(4))
    assert found.blame == "act"
    (steps,) = [one for one in found.remedies if one.name == "steps"]
    assert "Steps(2)" in steps.how
    assert steps.gain > 0
    assert steps.snn.T == 16
    again = parspike.convert(replace(plan, steps={name: 2}), x, T=16, recipe="max")
    held = torch.cat(x.split(4)[1::2])
    assert torch.allclose(steps.snn(held), again(held), atol=1e-5)


@pytest.mark.filterwarnings("ignore:behind the first batch norm")
def test_a_network_whose_weights_were_refitted_is_converted_again():
    plan, x = residual()
    snn = parspike.convert(plan, x, T=2, recipe="closed-form")
    found = parspike.diagnose(snn, plan, x.split(6))
    by = {one.name: one for one in found.remedies}
    assert by["threshold"].again is None
    assert by["keep"].again is not None
    assert by["keep"].again == by["steps"].again
    fit, held = x.split(6)[::2], torch.cat(x.split(6)[1::2])
    assert found.blame is not None
    again = parspike.convert(keeping(plan, found.blame), fit, T=2, recipe="closed-form")
    assert by["keep"].after.error == pytest.approx(parspike.measure(again, held, against=plan).error, rel=1e-4)


def test_more_steps_for_staircases_are_fitted_anew():
    """Would catch a remedy that gives a staircase more steps and keeps its levels, or fits it to other currents."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2)).eval()
        x = torch.randn(200, 3)
    snn = parspike.convert(model, x, T=3, recipe="max")
    assert all(isinstance(neuron, Staircase) for neuron in snn.neurons().values())
    (steps,) = [one for one in parspike.diagnose(snn, model, x).remedies if one.name == "steps"]
    assert {neuron.levels for neuron in steps.snn.neurons().values()} == {3, 6}
    assert steps.gain > 0


def test_a_remedied_network_can_be_saved(tmp_path):
    plan, x, snn = faulty("act@2", 0.2)
    found = parspike.diagnose(snn, plan, x.split(6))
    for one in found.remedies:
        loaded = parspike.load(one.snn.save(tmp_path / f"{one.name}.parspike"))
        assert torch.equal(loaded(x), one.snn(x))
        assert loaded.provenance["diagnosis"][0]["remedy"] == one.name


def test_neurons_with_a_state_have_remedies():
    plan, x = residual()
    snn = parspike.convert(plan, x[:8], T=4, neuron=parspike.IF(), recipe="max")
    found = parspike.diagnose(snn, plan, x[:8].split(2))
    assert [one.name for one in found.remedies] == ["threshold", "steps", "keep"]
    assert found.remedies[1].snn.T == 8
    assert found.codes == ("if",)


def test_thresholds_of_every_kind_are_scaled_alike():
    """A factor of thresholds and outputs alike is another unit: the neurons send the same for a scaled input."""
    from parspike.diagnose.remedies import _scaled

    graph = parspike.plan(line(1.0, 1.0), torch.ones(1, 1)).graph
    (node,) = graph.neurons
    z = torch.linspace(-1, 4, 41)[:, None]
    for neuron in (
        ParallelNeuron(4, torch.ones(1)),
        Staircase(2, torch.tensor([0.5, 1.5]), torch.tensor([0.0, 1.0, 2.0])),
    ):
        assert torch.equal(_scaled(node, neuron, 2.0)(2 * z), 2 * neuron(z))
    neuron = IntegrateFire(torch.ones(1))
    twice: Any = _scaled(node, neuron, 2.0)
    assert torch.equal(
        twice.advance(None, 2 * z[None].expand(4, -1, -1))[1], 2 * neuron.advance(None, z[None].expand(4, -1, -1))[1]
    )


# ------------------------------------------------------------------------------------------------ what it is given


def test_without_the_network_its_own_weights_are_the_reference():
    plan, x = residual()
    snn = parspike.convert(plan, x, T=4, recipe="max")
    own, found = (parspike.diagnose(snn, m, x, cure=False) for m in (None, plan))
    assert (own.compared_with, found.compared_with) == ("own", "network")
    for one, other in zip(own.rows, found.rows, strict=True):  # no weight was re-fitted, so the two are one
        assert one.error == pytest.approx(other.error, rel=1e-4)
    assert "no original network was given" in str(own)


def test_labels_are_not_needed_and_are_used():
    plan, x = residual()
    snn = parspike.convert(plan, x, T=4, recipe="max")
    without = parspike.diagnose(snn, plan, x, cure=False)
    assert without.outcome.accuracy is None
    assert without.outcome.agreement is not None
    y = plan.graph.run(x).argmax(1)
    found = parspike.diagnose(snn, plan, [(x[:3], y[:3]), (x[3:], y[3:])], cure=False)
    assert found.network_accuracy == 1.0
    assert found.outcome.accuracy == found.outcome.agreement == without.outcome.agreement
    assert found.rows[0].alone.accuracy is not None


class Answer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, _ = made(Residual)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).argmax(1)


def test_whole_numbers_are_compared_by_their_agreement():
    x = made(Residual)[1]
    model = Answer().eval()
    snn = parspike.convert(model, x, T=1, recipe="max")
    found = parspike.diagnose(snn, model, x, cure=False)
    assert found.outcome.error is None
    assert found.outcome.agreement is not None
    assert found.outcome.harm == 1 - found.outcome.agreement
    assert Outcome(agreement=0.75).harm == 0.25


def test_inputs_as_spikes_have_a_row():
    plan, x = residual()
    snn = parspike.convert(plan, x.abs(), T=4, neuron=parspike.IF(), input="rate", recipe="max")
    rows = parspike.diagnose(snn, plan, x[:4].abs(), cure=False).rows
    assert rows[0].operator == "encode"
    assert rows[0].error > 0
    assert rows[0].carried == 0


def test_a_single_image_is_diagnosed_without_remedies():
    plan, x = residual()
    found = parspike.diagnose(parspike.convert(plan, x, T=2, recipe="max"), plan, x[:1])
    assert found.blame is not None
    assert not found.remedies
    assert "at least two images" in str(found)


def test_bad_input_is_refused():
    plan, x = residual()
    model, snn = line(1.0, 1.0), parspike.convert(plan, x, T=2, recipe="max")
    with pytest.raises(InputError, match="converted from"):
        parspike.diagnose(snn, parspike.plan(model, torch.ones(2, 1)), x)
    with pytest.raises(InputError, match="takes a converted network"):
        parspike.diagnose(model, None, x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="at least one"):
        parspike.diagnose(snn, model, [])


def test_it_is_json_and_a_table():
    plan, x = residual()
    found = parspike.diagnose(parspike.convert(plan, x, T=2, recipe="max"), plan, x)
    data = json.loads(json.dumps(found.to_json()))
    assert [row["layer"] for row in data["rows"]] == [row.layer for row in found.rows]
    assert data["remedies"][0]["before"]["error"] == found.remedies[0].before.error
    assert "snn" not in data["remedies"][0]
    assert str(found).splitlines()[0].split()[:4] == ["layer", "neurons", "error", "clipping"]
    assert "<table>" in found._repr_html_()


# --------------------------------------------------------------------------------------------- the command line

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
"""


def test_the_command_writes_a_better_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    run = CliRunner().invoke
    data = ["--data", "digits", "--json"]
    assert (
        run(app, ["convert", "net.py:make", *data, "-T", "2", "--recipe", "max", "-o", "net.parspike"]).exit_code == 0
    )
    done = run(app, ["diagnose", "net.parspike", "net.py:make", *data, "--limit", "96", "-o", "better.parspike"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["samples"], told["held_out"], told["blame"]) == (96, 32, "2")
    assert told["written"] == "better.parspike"
    taken = next(one for one in told["remedies"] if one["name"] == told["remedy"])
    assert taken["after"]["error"] < taken["before"]["error"]
    assert parspike.load("better.parspike").provenance["diagnosis"][0]["layer"] == "2"
    refused = run(app, ["diagnose", "net.parspike", *data, "-o", "better.parspike"])
    assert refused.exit_code == 1
    assert "exists" in json.loads(refused.stdout)["error"]["message"]
    refused = run(app, ["diagnose", "net.parspike", *data, "--weights", "net.pt"])
    assert refused.exit_code == 1
    assert "--weights" in json.loads(refused.stdout)["error"]["message"]
