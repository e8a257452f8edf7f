"""The figures of a network as matplotlib axes: what they show is what was measured."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from networks import Residual
from torch import nn

import parspike
from parspike.engines import OVER_TIME
from parspike.errors import InputError, MissingExtraError, OptionError
from parspike.neurons import Staircase, levels_of
from parspike.report import figures
from parspike.report.answers import answers, interval
from parspike.report.svg import inline
from parspike.report.timing import NETWORK, _calls, _some, _with, times
from parspike.report.trains import chosen, trains


def data(samples=40, batch=16, classes=5):
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 3, 8, 8, generator=drawn)
    return list(zip(x.split(batch), torch.randint(classes, (samples,), generator=drawn).split(batch), strict=True))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def plan(model):
    return parspike.plan(model, data()[0][0])


@pytest.fixture(scope="module")
def items(model):
    """Labels are the network's own answers but for every fifth sample, so that accuracies say something."""
    with torch.no_grad():
        pairs = [(x, model(x).argmax(1)) for x, _ in data()]
    return [(x, torch.where(torch.arange(len(y)) % 5 == 0, (y + 1) % 5, y)) for x, y in pairs]


@pytest.fixture(scope="module")
def snn(plan):
    return parspike.convert(plan, data()[0][0], T=3, code="weighted", recipe="max")


@pytest.fixture(scope="module")
def stateful(plan):
    return parspike.convert(plan, data()[0][0], T=4, neuron=parspike.IF(), recipe="max")


@pytest.fixture(scope="module")
def costs(snn, plan, items):
    return parspike.measure(snn, items, against=plan)


def widths(axes):
    return [bar.get_width() for bar in axes.patches]


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


# --------------------------------------------------------------------------------------------- what is measured


def whole(run, items):
    """Outputs and labels of all items, batch by batch as `answers` runs them: other sizes may round otherwise."""
    with torch.no_grad():
        return torch.cat([run(x) for x, _ in items]), torch.cat([y for _, y in items])


def test_answers_are_those_of_one_batch(snn, plan, model, items):
    found = answers(snn, items, reference=plan.graph)
    own, labels = whole(snn, items)
    network, _ = whole(model, items)
    right, known = own.argmax(1) == labels, network.argmax(1) == labels
    assert found.samples == found.own.answers == len(labels) == 40
    assert found.own.accuracy == pytest.approx(float(right.double().mean()))
    assert found.own.network_accuracy == pytest.approx(float(known.double().mean()))
    assert found.own.agreement == pytest.approx(float((own.argmax(1) == network.argmax(1)).double().mean()))
    assert found.own.error == pytest.approx(float((own - network).norm() / network.norm()), rel=1e-4)
    assert (found.gained, found.lost) == (int((right & ~known).sum()), int((known & ~right).sum()))
    assert found.rival is not None
    assert found.rival.accuracy == found.own.accuracy
    assert found.steps == []
    assert found.measure == "accuracy"


def test_answers_after_every_step(stateful, plan, items):
    found = answers(stateful, items, reference=plan.graph)
    _, labels = whole(stateful, items)
    logits = torch.cat([stateful.run(x, every_step=True).logits for x, _ in items], 1)
    said = [float((step.argmax(1) == labels).double().mean()) for step in logits]
    assert [scores.accuracy for scores in found.steps] == pytest.approx(said)
    assert found.first == 1
    assert found.own.accuracy == found.steps[-1].accuracy
    assert found.rival is None


def test_examples_are_the_first_samples_and_such_as_differ(snn, items):
    torch.manual_seed(1)
    other = Residual().eval()
    found = answers(snn, items, reference=parspike.plan(other, items[0][0]).graph, classes=list("abcde"))
    own, labels = whole(snn, items)
    network, _ = whole(other, items)
    differ = (own.argmax(1) != network.argmax(1)).tolist()
    later = [place for place in range(6, 40) if differ[place]][:6]
    assert [example.index for example in found.examples] == [*range(6), *later]
    assert later
    for example in found.examples:
        assert example.differs == differ[example.index]
        assert example.own.startswith("abcde"[own[example.index].argmax()] + ", ")
        assert example.network is not None
        assert example.network.startswith("abcde"[network[example.index].argmax()] + ", ")
        assert example.label == "abcde"[labels[example.index]]
        assert torch.equal(example.x, torch.cat([x for x, _ in items])[example.index])
    share = float(own[0].double().softmax(0).max())
    assert found.examples[0].own.endswith(f", {100 * share:.0f} %")


def test_answers_alone(snn, items):
    found = answers(snn, [x for x, _ in items])
    assert found.measure is None
    assert found.gained is None
    assert not any(example.differs for example in found.examples)
    labelled = answers(snn, items)
    assert labelled.measure == "accuracy"
    assert labelled.own.agreement is None
    with pytest.raises(OptionError, match=r"4 names .* 5 classes"):
        answers(snn, items, classes=list("abcd"))
    with pytest.raises(InputError, match="empty"):
        answers(snn, [])


@pytest.mark.parametrize(("right", "number"), [(0, 20), (7, 20), (20, 20), (500, 761)])
def test_interval_holds_the_shares_that_the_test_does_not_reject(right, number):
    low, high = interval(right / number, number)
    for share in (low, high):
        if 0 < share < 1:  # the bounds solve |seen − share| = z √(share (1 − share) / n)
            apart = abs(right / number - share)
            assert apart == pytest.approx(1.959964 * (share * (1 - share) / number) ** 0.5)
    assert 0 <= low <= right / number <= high <= 1


@pytest.fixture(scope="module")
def with_own_steps(model):
    return parspike.plan(model, data()[0][0], layers={"act": parspike.Steps(2)}, free_sizes=False)


@pytest.mark.parametrize("code", ["sorted", "weighted", "onset"])
def test_trains_are_those_of_a_run(with_own_steps, items, code):
    snn = parspike.convert(with_own_steps, data()[0][0], T=4, code=code, recipe="max")
    x = items[0][0]
    run = snn.run(x[:1], record=True)
    found = trains(snn, {"x": x}, list(snn.neurons()), neurons=10)
    assert [train.layer for train in found] == [snn.graph.by_name[name].layer for name in snn.neurons()]
    for train in found:
        spikes = run.spikes[train.layer][:, 0].flatten(1)[:, train.numbers].int()
        assert train.of == run.counts[train.layer].numel()
        assert train.spikes.shape == (4, min(10, train.of))
        assert torch.equal(train.spikes[: len(spikes)], spikes)
        assert not train.spikes[len(spikes) :].any()
    assert sum(int(train.spikes.sum()) for train in found) > 0


def test_trains_of_neurons_with_a_state(stateful, items):
    run = stateful.run(items[0][0][:1], record=True)
    for train in trains(stateful, {"x": items[0][0]}, list(stateful.neurons()), neurons=7):
        assert torch.equal(train.spikes, run.spikes[train.layer][:, 0].flatten(1)[:, train.numbers].int())


class Transposed(nn.Module):
    """Neurons whose batch is their second dimension."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.two(torch.relu(self.one(x.transpose(0, 1)))).mean(0)


@pytest.mark.parametrize("neuron", [None, parspike.IF()])
def test_trains_are_of_the_first_sample_of_several(neuron, monkeypatch):
    """Some networks take no batch of one; the batch is not always the first dimension of a layer."""
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3)
    snn = parspike.convert(Transposed().eval(), x, T=3, neuron=neuron, recipe="max", free_sizes=False)
    names = list(snn.neurons())
    (one,) = trains(snn, {"x": x}, names)
    monkeypatch.setattr(type(snn.graph), "batch", lambda graph, least=1: 2)
    (of_two,) = trains(snn, {"x": x}, names)
    assert one.of == of_two.of == 24
    assert one.spikes.any()
    assert torch.equal(one.spikes, of_two.spikes)


def test_layers_are_chosen(snn):
    layers = [snn.graph.by_name[name].layer for name in snn.neurons()]
    nodes = list(snn.neurons())
    assert chosen(snn, None) == [nodes[0], nodes[len(nodes) // 2], nodes[-1]]
    assert chosen(snn, [layers[1]]) == [nodes[1]]
    assert chosen(snn, ["*"]) == nodes
    with pytest.raises(OptionError, match="did you mean"):
        chosen(snn, [layers[0] + "x"])


# ------------------------------------------------------------------------------------------------------- time


def test_what_is_timed(snn, model, items):
    found = times(snn, {"x": items[0][0]}, model=model, seconds=0.3)
    assert found.samples == 8
    assert found.engines == ["count", "parallel", "serial"]
    assert {(NETWORK, 0), ("count", 3), ("parallel", 3), ("serial", 3)} <= set(found.seconds) | set(found.left_out)
    assert all(seconds > 0 for seconds in found.seconds.values())
    with pytest.raises(OptionError, match="above 0"):
        times(snn, {"x": items[0][0]}, seconds=0)


def test_a_timed_run_is_a_run(snn, stateful, items):
    """At its own T every call is a run of the network itself; at another a network of that T answers."""
    x = items[0][0][:4].double()  # so that no count depends on rounding
    snn, stateful = copy.deepcopy(snn).double(), copy.deepcopy(stateful).double()
    calls = _calls(snn, {"x": x})
    assert sorted({T for _, T in calls}) == [1, 2, 3, 6]
    for engine in ("count", "parallel", "serial"):
        assert torch.allclose(calls[engine, 3]().logits, snn.run(x, engine=engine).logits)
        assert calls[engine, 6]().T == 6
        assert torch.allclose(calls[engine, 6]().logits, calls["count", 6]().logits)
    assert not torch.allclose(calls["count", 6]().logits, calls["count", 3]().logits)
    calls = _calls(stateful, {"x": x})
    assert sorted(calls) == [(OVER_TIME, 1), (OVER_TIME, 2), (OVER_TIME, 4)]
    assert torch.allclose(calls[OVER_TIME, 4]().logits, stateful(x))
    assert torch.allclose(calls[OVER_TIME, 2]().logits, stateful.run(x, every_step=True).logits[1])


@pytest.mark.parametrize("code", ["sorted", "weighted"])
def test_staircases_are_timed_at_other_T(code):
    drawn = torch.Generator().manual_seed(0)
    levels = levels_of(4, code)
    steps = torch.rand(levels, 3, generator=drawn).cumsum(0)
    outputs = torch.linspace(-0.5, 2, levels + 1)[:, None].repeat(1, 3)
    z = torch.linspace(-1, 9, 99)[:, None].repeat(1, 3)
    neuron = Staircase(4, steps, outputs, code=code)
    assert torch.equal(_with(neuron, 4).count(z), neuron.count(z))
    for T in (1, 2, 8):
        other = _with(neuron, T)
        assert (other.T, other.code, other.levels) == (T, code, levels_of(T, code))
        assert int(other.count(z).max()) == other.levels
        assert {float(other.value(other.count(z)).min()), float(other.value(other.count(z)).max())} == {-0.5, 2.0}


def test_slow_runs_are_left_out(snn, items, monkeypatch):
    monkeypatch.setattr(sys.modules["parspike.report.timing"], "_seconds", lambda call, cuda: 0.1)
    found = times(snn, {"x": items[0][0]}, seconds=1.0)
    assert found.left_out == (("parallel", 2), ("serial", 2), ("parallel", 6), ("serial", 6))
    assert ("parallel", 3) in found.seconds


@pytest.mark.parametrize("T", [1, 2, 3, 8, 20, 1000])
def test_few_numbers_of_steps(T):
    found = _some(T, 2 * T)
    assert T in found
    assert found[-1] == 2 * T
    assert len(found) <= 5
    assert found == sorted(set(found))


# ---------------------------------------------------------------------------------------------------- figures


def test_accuracy(snn, plan, items):
    axes = snn.plot.accuracy(items, model=plan)
    found = answers(snn, items, reference=plan.graph)
    points = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    assert found.own.network_accuracy is not None
    assert found.own.accuracy is not None
    assert points == pytest.approx([100 * s for s in (found.own.network_accuracy, *[found.own.accuracy] * 2)])
    bands = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert bands[-1] == pytest.approx([100 * bound for bound in interval(found.own.accuracy, 40)])
    assert names(axes)[0] == f"network  {100 * found.own.network_accuracy:.2f} %"
    assert "accuracy" in axes.get_xlabel()
    assert "agreement" in snn.plot.accuracy([x for x, _ in items], model=plan).get_xlabel()
    with pytest.raises(InputError, match="neither labels nor a network"):
        snn.plot.accuracy([x for x, _ in items])


def test_accuracy_of_neurons_with_a_state_against_time(stateful, plan, items):
    axes = stateful.plot.accuracy(items, model=plan)
    logits = torch.cat([stateful.run(x, every_step=True).logits for x, _ in items], 1)
    labels = torch.cat([y for _, y in items])
    own = axes.lines[0]
    assert list(own.get_xdata()) == [1, 2, 3, 4]
    assert list(own.get_ydata()) == pytest.approx(
        [100 * float((s.argmax(1) == labels).double().mean()) for s in logits]
    )


def test_error_of_values(items):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    x = [x for x, _ in items]
    made = parspike.plan(net, x[0])
    snn = parspike.convert(made, x, T=4, recipe="max")
    axes = snn.plot.accuracy(x, model=made)
    assert axes.get_xlabel() == "relative error (%)"
    with torch.no_grad():
        own, network = torch.cat([snn(part) for part in x]), torch.cat([net(part) for part in x])
    assert axes.lines[-1].get_xdata()[0] == pytest.approx(
        100 * float((own - network).norm() / network.norm()), rel=1e-3
    )


def test_a_sweep_against_T(snn, plan, items):
    found = parspike.sweep(plan, [x for x, _ in items][:2], items[2:], T=(1, 2), codes=["weighted"], recipe="max")
    axes = snn.plot.accuracy(found)
    assert list(axes.lines[0].get_ydata()) == [row.accuracy for row in found.rows]
    assert list(axes.lines[1].get_ydata()) == [row.quantised_accuracy for row in found.rows]


def test_bars_by_layer(snn, costs, plan, items):
    rows = [row for row in costs.rows if row.kind == "neuron"]
    axes = snn.plot.error(costs)
    assert widths(axes) == pytest.approx([100 * row.error for row in rows] + [100 * costs.error])
    assert names(axes) == [row.layer for row in rows] + ["output"]
    assert widths(snn.plot.error(items, model=plan)) == pytest.approx(widths(axes))
    axes = snn.plot.rates(costs)
    assert widths(axes) == pytest.approx([row.firing_rate for row in rows])
    assert axes.lines[0].get_xdata()[0] == pytest.approx(costs.spikes_per_neuron / 3)
    with pytest.raises(InputError, match="model="):
        snn.plot.error(items)


def test_energy(snn, costs):
    axes = snn.plot.energy(costs)
    parts = [width for width in widths(axes) if width]
    unit = {"pJ": 1, "nJ": 1e3, "µJ": 1e6}[axes.get_xlabel()[-3:-1]]
    wanted = [
        costs.network_energy_pj,
        costs.quantised_energy_pj,
        costs.macs * 4.6,
        costs.synops * 0.9,
        costs.update_energy_pj,
    ]
    assert [unit * part for part in parts] == pytest.approx(wanted)


def test_raster_marks_every_spike(snn, items):
    layer = next(snn.graph.by_name[name].layer for name in snn.neurons())
    axes = snn.plot.raster(items[0], layer, neurons=10)
    (train,) = trains(snn, {"x": items[0][0]}, chosen(snn, [layer]), neurons=10)
    along, up = (np.asarray(values).reshape(-1, 3) for values in axes.lines[0].get_data())
    marks = {(round(float(line[:2].mean())), int(height[0])) for line, height in zip(along, up, strict=True)}
    assert marks == {(step + 1, number) for step, number in train.spikes.nonzero().tolist()}
    with pytest.raises(InputError, match="means 5 layers"):
        snn.plot.raster(items[0], "*")


def test_time(snn, model, items):
    axes = snn.plot.time(items[0], model=model, seconds=0.2)
    assert axes.get_xscale() == "log"
    assert {line.get_label() for line in axes.lines} == {"count", "parallel", "serial", "network"}


def test_given_axes_are_drawn_into(snn, costs, items, plan):
    from matplotlib.figure import Figure

    made = Figure().subplots(2, 3)
    for axes, draw in zip(
        made.flat,
        (
            lambda ax: snn.plot.accuracy(items, model=plan, ax=ax), lambda ax: snn.plot.error(costs, ax=ax),
            lambda ax: snn.plot.rates(costs, ax=ax), lambda ax: snn.plot.energy(costs, ax=ax),
            lambda ax: snn.plot.raster(items[0], ax=ax), lambda ax: snn.plot.time(items[0], seconds=0.1, ax=ax),
        ),
        strict=True,
    ):  # fmt: skip
        assert draw(axes) is axes
        assert axes.has_data()


def test_without_matplotlib_the_command_is_named(snn, costs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'parspike\[report\]'"):
        snn.plot.rates(costs)


def test_names_of_layers_stay_text():
    assert figures.shown("a.b\x00c\n") == "a.b\ufffdc\ufffd"
    assert figures.shown("x" * 99 + ".relu").endswith(".relu")
    assert len(figures.shown("x" * 99)) <= figures.LONGEST


def test_svg_of_a_page(costs):
    from xml.etree import ElementTree

    one, two = (ElementTree.fromstring(inline(lambda: figures.rates(costs), name, "what it shows")) for name in "ab")
    assert one.attrib["aria-label"] == "what it shows"
    ids = [{element.attrib["id"] for element in root.iter() if "id" in element.attrib} for root in (one, two)]
    assert ids[0].isdisjoint(ids[1])
    for element in one.iter():
        if "href" in element.attrib:
            assert element.attrib["href"][1:] in ids[0]
        if "clip-path" in element.attrib:
            assert element.attrib["clip-path"][5:-1] in ids[0]
    text = ElementTree.tostring(one, encoding="unicode")
    assert "var(--ink)" in text
    assert "var(--c0)" in text
    assert "<style" not in text
    assert "#1f2328" not in text
    assert "act" in [element.text for element in one.iter("text")]
