"""Calibration for neurons with a state: what is fitted is what runs, and it is nearer to the network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_over_time import MIXED, ROWS, batch, mixed, planned, sequential
from torch import Tensor, nn

import parspike
from parspike.calibrate import Batches, Draft, Recipe, recipe_to_json
from parspike.calibrate.distance import Distance
from parspike.calibrate.firing import fit_firing
from parspike.calibrate.lockstep import Lockstep
from parspike.calibrate.student import Input, OverTime
from parspike.calibrate.thresholds import Samples
from parspike.errors import OptionError, ParspikeWarning
from parspike.neurons import IF, LIF, Dynamics, IntegrateFire, Serial, Simulation
from parspike.plan import with_encoders

T = 6


def drafted(
    model: nn.Module, x: Tensor, kind: Serial, recipe: Recipe, given: Input = "current", size: int = 17
) -> tuple[Draft, Batches, parspike.SNN]:
    """What `convert` makes, with the draft and the batches that it was fitted on."""
    plan = parspike.plan(model, x, neuron=kind)
    plan = plan if given == "current" else with_encoders(plan)
    activations = {node.name: plan.activation(node) for node in plan.graph.neurons if node.name in plan.spiking}
    draft = Draft(
        plan.graph, activations, T, "sorted", dict(plan.graph.tensors), {}, lambda *_: None,
        student=OverTime(kind, given),
    )  # fmt: skip
    batches = Batches(x.split(size), plan.graph)
    recipe.fit(draft, batches)
    graph = replace(plan.graph, tensors=draft.tensors)
    neurons = {name: draft.neurons[name] for name in activations}
    return draft, batches, parspike.SNN(graph, neurons, simulation=Simulation(T))


def apart(snn: parspike.SNN, model: nn.Module, x: Tensor) -> float:
    wanted = model(x)
    return float((snn(x) - wanted).norm() / wanted.norm())


# ------------------------------------------------------------------------------------------ one student, one network


@pytest.mark.parametrize(
    ("kind", "given", "curve"),
    [
        (IF(), "current", F.silu), (LIF(0.9, reset="zero"), "current", F.relu), (IF(bias="step"), "rate", F.relu),
        (IF(signed=True), "sorted", F.silu),
    ],
)  # fmt: skip
@torch.no_grad()
def test_counts_in_the_fit_are_counts_in_a_run(kind: Serial, given: Input, curve: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), mixed(curve)).eval().double()
    draft, batches, snn = drafted(model, MIXED, kind, parspike.ClosedForm(), given)
    run = snn.run(MIXED, record=True, chunk=4)
    layers = {node.name: node.layer for node in draft.graph.neurons}
    lockstep = Lockstep(draft, batches)
    seen: dict[str, Tensor] = {}
    for node in draft.graph.nodes:
        if node.name in draft.neurons:
            neuron = draft.neurons[node.name]
            assert isinstance(neuron, Dynamics)
            for _, student in lockstep.visit(node):
                z = lockstep.course.over_time(node.refs[0], student.env[node.refs[0]])
                spikes = neuron.advance(None, z.expand(T, *z.shape[1:]))[2]
                assert torch.equal(spikes, run.spikes[layers[node.name]].double())
    (env,) = batches
    _, student = Distance(draft).outputs(env, seen=lambda node, a, b: seen.update({node.name: b}))
    torch.testing.assert_close(student[0], run.logits["logits"], rtol=1e-9, atol=1e-9)
    assert set(seen) == set(draft.neurons)
    for name, mean in seen.items():
        neuron = snn.neurons()[name]
        own = getattr(neuron, "neuron", neuron)
        wanted = run.counts[layers[name]] * own.v_post / T + neuron.rest()  # pyright: ignore
        torch.testing.assert_close(mean, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("held", [0, 1])
@torch.no_grad()
def test_what_is_held_between_layers_changes_nothing(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch batches that are taken in another order, or twice, where only some are held."""
    draft, batches, snn = drafted(mixed(), MIXED, IF(), parspike.ClosedForm(), size=2)
    whole = Lockstep(draft, batches)
    assert len(batches.numbers()) == 3
    memory = held * 3 * ((6 << 30) // whole.room)  # bytes for 3 samples, of which a batch has 2
    monkeypatch.setattr(Lockstep.__init__, "__kwdefaults__", {"teacher": None, "memory": memory})
    some = Lockstep(draft, batches)
    for node in list(draft.graph.neurons)[:2]:
        for (one, other), (first, second) in zip(whole.visit(node), some.visit(node), strict=True):
            assert torch.equal(one.env[node.refs[0]], first.env[node.refs[0]])
            assert torch.equal(other.env[node.refs[0]], second.env[node.refs[0]])
    assert (len(whole.held), len(some.held)) == (len(batches.numbers()), held)
    again = drafted(mixed(), MIXED, IF(), parspike.ClosedForm(), size=2)[2]
    thetas, of_again = (
        torch.cat([n.v_threshold.flatten() for n in net.neurons().values()])  # pyright: ignore
        for net in (snn, again)
    )
    assert torch.equal(thetas, of_again)


# ------------------------------------------------------------------------------------------------- one layer of neurons


def errors(neuron: IntegrateFire, a: Tensor, z: Tensor, weigh: str, *, fitted: bool) -> Tensor:
    """The squared error of every channel, (C,), with the neuron's amplitude or the least-squares one."""
    k = neuron.advance(None, z.expand(T, *z.shape[1:]))[2].sum(0)
    if weigh == "next":
        a, k = a - a.mean(0), k - k.mean(0)
    step = neuron.v_post / T if fitted else ((a * k).mean(0) / (k * k).mean(0).clamp(min=1e-30)).clamp(min=0)
    return (a - step * k).square().mean(0)


@pytest.mark.parametrize("weigh", ["own", "next"])
@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("kind", [IF(), IF(reset="zero", v_init="zero"), LIF(0.8, v_init="half"), IF(refractory=1)])
@torch.no_grad()
def test_a_fit_is_never_worse_than_the_maximum(kind: Serial, constant: bool, layer: bool, weigh: Any) -> None:
    graph = parspike.plan(sequential(), ROWS).graph
    node = graph.by_name["relu"]
    samples = Samples(node, Batches([ROWS], graph))
    mean = batch(96, 8, seed=5) * torch.logspace(-2, 1, 8, dtype=torch.float64)
    z = mean[None] if constant else mean + batch(T, 96, 8, seed=6) * mean.abs().mean(0)
    a = mean.relu()
    samples.add(a, z)
    top = a.amax(0)
    plain = kind.neuron(top.max().expand_as(top) if layer else top)
    neuron = kind.neuron(plain.v_threshold)
    fit_firing(neuron, kind, samples, T, layer=layer, weigh=weigh)
    before, after = errors(plain, a, z, weigh, fitted=False), errors(neuron, a, z, weigh, fitted=True)
    if layer:
        before, after = before.sum(), after.sum()
        assert len(neuron.v_threshold.unique()) == 1
    assert bool((after <= before * (1 + 1e-6)).all())
    assert float(after.sum()) < 0.97 * float(before.sum())


@torch.no_grad()
def test_a_bias_of_each_step_evens_out_the_mean_current() -> None:
    kind = IF(bias="step")
    _, _, snn = drafted(sequential(), ROWS, kind, parspike.ClosedForm())
    one, two = snn.neurons().values()
    assert isinstance(one, IntegrateFire)
    assert isinstance(two, IntegrateFire)
    assert one.bias.shape == (1, 8)  # its input does not change over time
    assert two.bias.shape == (T, 8)
    assert float((two.bias - two.bias.mean(0)).abs().max()) > 1e-3
    current = snn.run(ROWS, record=True).spikes["1"].double() * one.v_post
    weights = {tuple(tensor.shape): tensor for name, tensor in snn.tensors().items() if name.startswith("2")}
    z = (current @ weights[8, 8].T).mean(1) + two.bias
    assert float((z - z.mean(0)).abs().max()) < 1e-9


# ---------------------------------------------------------------------------------------------------- recipes and doors


@pytest.mark.parametrize("kind", [IF(), IF(reset="zero"), LIF(0.9)])
@torch.no_grad()
def test_the_closed_form_is_nearer_than_the_maxima(kind: Serial) -> None:
    """On three sets of rows together, since the distance on one of them changes by a tenth with a spike or two."""
    model, sets = sequential(), [batch(96, 6, seed=seed) for seed in (1, 2, 3)]
    plain, without, fitted = (
        sum(apart(parspike.convert(planned(), x, T=T, neuron=kind, recipe=recipe), model, x) for x in sets)
        for recipe in ("max", parspike.ClosedForm(refit=False), parspike.ClosedForm())
    )
    assert fitted < without < plain


@pytest.mark.parametrize("recipe", ["max", "closed-form", parspike.Reconstruct(steps=5, rate=0.1)])
@pytest.mark.parametrize(("start", "share"), [("half", 0.5), ("zero", 0.0)])
def test_the_potential_begins_where_it_was_asked_to(start: Any, share: float, recipe: Any) -> None:
    for kind in (IF(v_init=start), LIF(0.9, reset="zero", v_init=start)):
        snn = parspike.convert(planned(), ROWS, T=T, neuron=kind, recipe=recipe)
        for neuron in snn.neurons().values():
            assert isinstance(neuron, IntegrateFire)
            torch.testing.assert_close(neuron.v_init, neuron.v_threshold * share, rtol=1e-12, atol=0)


def test_gradient_steps_move_every_parameter_of_neurons_with_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = parspike.convert(planned(), ROWS, T=T, neuron=IF(), recipe="closed-form")
    # What moves is looked at, not whether the held-out images like it.
    monkeypatch.setattr("parspike.calibrate.reconstruct._Loss.held_out", lambda self, images: -float(next(count)))
    count = iter(range(1000))
    moved = parspike.convert(planned(), ROWS, T=T, neuron=IF(), recipe=parspike.Reconstruct(steps=8, rate=0.2))
    for name, neuron in moved.neurons().items():
        before = closed.neurons()[name].state_dict()
        for key, value in neuron.named_parameters():
            assert not torch.equal(value, before[key]), (name, key)
        assert not any(parameter.requires_grad for parameter in neuron.parameters())


@torch.no_grad()
def test_gradient_steps_end_no_worse_on_the_images_held_out() -> None:
    model, held = sequential(), ROWS[9::10]
    for steps in (1, 25):
        recipe = parspike.Reconstruct(steps=steps, rate=0.02)
        draft = drafted(model, ROWS, IF(), parspike.ClosedForm())[0]
        before = Distance(draft).to_teacher([{"input": held}])[0].mean()
        draft = drafted(model, ROWS, IF(), recipe)[0]
        after = Distance(draft).to_teacher([{"input": held}])[0].mean()
        assert after <= before * (1 + 1e-9)


def test_algorithm_1_is_for_parallel_neurons() -> None:
    with pytest.raises(OptionError, match=r"recipe 'daqcfs' \(Algorithm 1\) is for parallel neurons.*'closed-form'"):
        parspike.convert(planned(), ROWS, T=T, neuron=IF(), recipe=parspike.DAQCFS())


def test_the_default_is_the_closed_form_that_weighs_an_error_by_itself() -> None:
    snn = parspike.convert(planned(), ROWS, T=T, neuron=LIF(0.9))
    named = parspike.convert(planned(), ROWS, T=T, neuron=LIF(0.9), recipe=parspike.ClosedForm(weigh="own"))
    assert snn.provenance["search"] == {"chosen": recipe_to_json(parspike.ClosedForm(weigh="own"))}
    assert torch.equal(named(ROWS), snn(ROWS))


def test_few_images_do_not_change_the_synapses() -> None:
    with pytest.warns(ParspikeWarning, match="it is the closed form without re-fitted synapses alone"):
        snn = parspike.convert(planned(), ROWS[:20], T=T, neuron=IF())
    assert snn.provenance["search"]["chosen"] == recipe_to_json(parspike.ClosedForm(refit=False, weigh="own"))
    weights = dict(sequential().state_dict())
    assert all(torch.equal(tensor, weights[path]) for path, tensor in snn.tensors().items() if path in weights)


def test_a_network_of_qcfs_keeps_its_thresholds_for_if() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), parspike.QCFS(T, 1.5), nn.Linear(8, 3)).eval().double()
    snn = parspike.convert(model, ROWS, T=T, neuron=IF(v_init="half"), recipe="max")
    (neuron,) = snn.neurons().values()
    assert float(neuron.v_threshold) == 1.5  # pyright: ignore
    # A constant input: the neurons count as the activation does.
    torch.testing.assert_close(snn(ROWS), model(ROWS), rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------------------------------------------------- tune, measure


def test_tune_finds_the_steps() -> None:
    model = sequential()
    tuning = parspike.tune(model, ROWS.split(12), neuron=IF(), drop=3, most=32, measure="values", recipe="closed-form")
    assert tuning.chosen is not None
    assert tuning.snn is not None
    assert {trial.code for trial in tuning.trials} == {"if"}
    assert [trial.T for trial in tuning.trials] == list((1, 2, 3, 4, 6, 8, 12, 16, 24, 32)[: len(tuning.trials)])
    assert tuning.chosen is tuning.trials[-1]
    assert tuning.chosen.T == tuning.snn.T > 1
    assert [trial.score >= 97 for trial in tuning.trials] == [False] * (len(tuning.trials) - 1) + [True]
    assert tuning.snn.over_time
    assert " if " in str(tuning)
    for options in ({"codes": ["sorted"]}, {"mixed": True}):
        with pytest.raises(OptionError, match=r"codes= and mixed= are of parallel neurons.*leave them out"):
            parspike.tune(model, ROWS.split(12), neuron=IF(), **options)


@pytest.mark.parametrize(
    ("kind", "given"), [(IF(), "current"), (LIF(0.9, reset="zero"), "rate"), (IF(signed=True), "sorted")]
)
def test_operations_are_those_counted_by_hand(kind: Serial, given: Input) -> None:
    model = sequential()
    snn = parspike.convert(planned(), ROWS, T=T, neuron=kind, input=given, recipe="closed-form")
    report = parspike.measure(snn, ROWS.split(20), against=model)
    sent = {layer: float(count.sum()) / len(ROWS) for layer, count in snn.run(ROWS, record=True).sent.items()}
    rows = {row.layer: row for row in report.rows}
    assert rows["2"].synops == pytest.approx(8 * sent["1"])
    assert rows["4"].synops == pytest.approx(3 * sent["3"])
    assert (rows["2"].macs, rows["4"].macs) == (0, 0)
    if given == "current":
        assert (rows["0"].synops, rows["0"].macs) == (0, 48)
    else:
        assert (rows["0"].synops, rows["0"].macs) == (pytest.approx(8 * sent["input_spikes"]), 0)
    for layer in ("1", "3"):
        assert rows[layer].spikes == pytest.approx(sent[layer])
        assert rows[layer].updates == 8 * T
    assert report.T == T
    assert report.error is not None
    assert report.error == pytest.approx(apart(snn, model, ROWS), rel=1e-6)


def test_a_curve_for_neurons_that_are_lines_is_said() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 3)).eval().double()
    with pytest.warns(ParspikeWarning, match=r"2 layers of neurons stand for .* '1\+' first.*parspike.Keep\(\)"):
        parspike.convert(model, ROWS, T=T, neuron=IF(), recipe="max")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parspike.convert(model, ROWS, T=T, neuron=IF(), recipe="max", layers={"1": parspike.Keep()})
        parspike.convert(model, ROWS, T=T, recipe="max")


@pytest.mark.parametrize(
    "kind", [parspike.IF(reset="zero"), parspike.IF(v_init="zero"), parspike.LIF(decay=0.9, reset="zero")]
)
@pytest.mark.filterwarnings("ignore:all 64 calibration samples are equal")
@pytest.mark.parametrize("recipe", ["max", "closed-form"])
def test_neurons_that_are_to_fire_at_every_step_do_however_sums_are_rounded(kind: Serial, recipe: str) -> None:
    """Would catch thresholds as large as the current: half of the neurons sent half of their spikes in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [m for _ in range(3) for m in (nn.Linear(6, 6), nn.ReLU())]
        model, x = nn.Sequential(*layers, nn.Linear(6, 3)).double().eval(), torch.randn(1, 6).double().repeat(64, 1)
    snn = parspike.convert(model, x, T=16, neuron=kind, recipe=recipe)
    exact = snn.run(x, record=True)
    for spread in (0.0, 1e-7, -1e-7):  # as on other processors
        made = copy.deepcopy(snn).float().run((x * (1 + spread)).float(), record=True)
        assert all(torch.equal(made.counts[name].double(), count) for name, count in exact.counts.items())
    wanted = model(x).detach()
    assert float((exact.logits - wanted).norm() / wanted.norm()) < 1e-3


def test_no_potential_starts_at_its_threshold() -> None:
    """Would catch a v(0) of θ, with which a current of 0 makes a spike or none as it is rounded."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [m for _ in range(3) for m in (nn.Linear(8, 8, bias=False), nn.ReLU())]
        model, x = nn.Sequential(*layers, nn.Linear(8, 3)).double().eval(), torch.randn(200, 8).double()
    for kind in (parspike.IF(), parspike.IF(reset="zero"), parspike.LIF(decay=0.8)):
        snn = parspike.convert(model, x, T=3, neuron=kind, recipe="closed-form")
        for neuron in snn.stateful().values():
            start, theta = neuron.get_parameter("v_init"), neuron.get_parameter("v_threshold")
            assert not bool((start == theta).any())
