"""Networks of neurons with a state: the engine against a short loop, blocks of steps, phases, and the file."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_file import read, write
from torch import Tensor, nn

import parspike
from parspike.errors import FileError, OptionError
from parspike.neurons import IF, LIF, IntegrateFire, ParallelNeuron, Simulation, State

T = 8


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Mixed(nn.Module):
    """A mask made of the input, a skip, max-pools before and behind neurons, analog operators, whole numbers, and an
    output that no neuron reaches. curve: the last activation."""

    def __init__(self, curve: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.norm, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.LayerNorm(6), nn.Linear(6, 3)
        self.curve = curve

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.a(x).relu()
        h = torch.where(x[:, :1] > 0, h, 0.5 * h)
        h = F.max_pool2d((self.b(h) + h).relu(), 2)
        h = self.curve(self.c(h))
        y = self.norm(h.mean((2, 3))) * h.amax((2, 3)).softmax(1)
        return {"logits": self.head(y), "best": h.flatten(1).argmax(1), "still": x.sum((1, 2, 3))}


MIXED = batch(5, 2, 6, 6)
ROWS = batch(96, 6, seed=1)


def mixed(curve: Callable[[Tensor], Tensor] = F.relu) -> nn.Module:
    return Mixed(curve).eval().double()


def sequential() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Hardtanh(-0.25, 1.5), nn.Linear(8, 3)]
    return nn.Sequential(*layers).eval().double()


@functools.cache
def planned() -> parspike.Plan:
    """`sequential`, traced once for all that convert it."""
    return parspike.plan(sequential(), ROWS[:2])


def with_simulation(snn: parspike.SNN, simulation: Simulation) -> parspike.SNN:
    """The same network and neurons, run in another way."""
    return parspike.SNN(replace(snn.graph, tensors=snn.tensors()), snn.neurons(), simulation=simulation)


# ----------------------------------------------------------------------------------------------------- what is computed

SERIAL = {
    "if": IF(), "if-zero": IF(reset="zero"), "lif": LIF(0.875), "lif-zero": LIF(0.75, reset="zero"),
    "signed": IF(signed=True), "refractory": IF(refractory=1),
}  # fmt: skip


@torch.no_grad()
def test_an_input_over_time_is_read_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory runs out, parts of the batch are run, never parts of the time."""
    snn = parspike.convert(planned(), ROWS, T=T, neuron=IF(), recipe="closed-form")
    steps = torch.stack([ROWS * (1 - step / T) for step in range(T)])
    whole = snn.run(steps, record=True)
    assert not torch.equal(whole.logits, snn(ROWS))
    one_by_one = torch.cat([snn(steps[:, place : place + 1]) for place in range(len(ROWS))])
    torch.testing.assert_close(whole.logits, one_by_one, rtol=1e-12, atol=1e-12)
    plain = importlib.import_module("parspike.snn").engines.over_time

    def little(net: Any, env: Any, *rest: Any, **options: Any) -> Any:
        if next(iter(env.values())).shape[0] > 2:
            raise MemoryError
        return plain(net, env, *rest, **options)

    monkeypatch.setattr(importlib.import_module("parspike.snn").engines, "over_time", little)
    with pytest.warns(parspike.errors.ParspikeWarning, match="memory ran out"):
        parts = snn.run(steps, record=True)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-12, atol=1e-12)
    for layer, train in whole.spikes.items():
        assert torch.equal(parts.spikes[layer], train)
    looks = with_simulation(snn, Simulation(T, probe=2))
    with pytest.raises(parspike.errors.InputError, match="2 steps of the same input first"):
        looks(steps)
    parallel = parspike.convert(planned(), ROWS, T=T, recipe="max")
    with pytest.raises(parspike.errors.InputError, match="this network takes"):
        parallel(steps)


@pytest.mark.parametrize("name", SERIAL)
@torch.no_grad()
def test_a_run_is_that_of_a_loop(name: str) -> None:
    snn = parspike.convert(planned(), ROWS, T=T, neuron=SERIAL[name], recipe="closed-form")
    one, two = snn.neurons().values()
    synapses = [tensor for _, tensor in sorted(snn.tensors().items())]
    biases, weights = synapses[::2], synapses[1::2]
    assert isinstance(one, IntegrateFire)
    assert isinstance(two, IntegrateFire)
    v = [neuron.v_init.expand(len(ROWS), 8).clone() for neuron in (one, two)]
    waits, net = [torch.zeros(len(ROWS), 8) for _ in v], [torch.zeros(len(ROWS), 8) for _ in v]
    trains: list[list[Tensor]] = [[], []]
    output = torch.zeros(len(ROWS), 3, dtype=torch.float64)
    for _ in range(T):
        x = ROWS
        for i, neuron in enumerate((one, two)):
            m = v[i] * neuron.decay + x @ weights[i].T + biases[i] + neuron.bias[0] - neuron.offset
            rests = waits[i] > 0
            m = torch.where(rests, v[i], m)
            s = (m >= neuron.v_threshold).double() - ((m < 0) & (net[i] > 0)).double() * neuron.signed
            s[rests] = 0
            v[i] = m - s * neuron.v_threshold if neuron.reset == "subtract" else torch.where(s > 0, 0.0, m)
            waits[i] = torch.where(s != 0, float(neuron.refractory), waits[i] - 1)
            net[i] = net[i] + s
            trains[i].append(s)
            x = s * neuron.v_post + neuron.offset
        output += (x @ weights[2].T + biases[2]) / T
    run = snn.run(ROWS, record=True)
    assert (run.engine, run.T) == ("over-time", T)
    torch.testing.assert_close(run.logits, output, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(snn(ROWS), output, rtol=1e-9, atol=1e-9)
    for train, found, count, sent in zip(
        trains, run.spikes.values(), run.counts.values(), run.sent.values(), strict=True
    ):
        wanted = torch.stack(train)
        assert found.dtype == (torch.int8 if name == "signed" else torch.bool)
        assert torch.equal(found.double(), wanted)
        assert torch.equal(count, wanted.sum(0))
        assert torch.equal(sent, wanted.abs().sum(0))
        assert 0 < float(sent.mean()) < T


@pytest.mark.parametrize(
    ("name", "given", "curve"),
    [("if", "current", F.relu), ("lif-zero", "rate", F.silu), ("signed", "sorted", F.relu), ("if", "rate", F.silu)],
)
@torch.no_grad()
def test_blocks_of_steps_change_nothing(name: str, given: Any, curve: Callable[[Tensor], Tensor]) -> None:
    model = mixed(curve)
    if given != "current":  # the mask reads the input beside the synapse
        model = nn.Sequential(nn.Conv2d(2, 2, 1), model).eval().double()
    snn = parspike.convert(model, MIXED, T=T, neuron=SERIAL[name], input=given, recipe="max")
    whole = snn.run(MIXED, chunk=T, record=True, every_step=True)
    for size in (1, 3):
        run = snn.run(MIXED, chunk=size, record=True, every_step=True)
        assert all(torch.equal(run.spikes[layer], train) for layer, train in whole.spikes.items())
        assert torch.equal(run.logits["best"], whole.logits["best"])
        torch.testing.assert_close(run.logits["logits"], whole.logits["logits"], rtol=1e-9, atol=1e-9)
    assert len(whole.spikes) == (3 if curve is F.relu else 4) + (given != "current")


class Analog(nn.Module):
    """Operators that are not linear in time, between neurons and a synapse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm = nn.Linear(6, 8), nn.Linear(8, 3), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.a(x).relu())

    def behind(self, h: Tensor) -> Tensor:
        return self.b(self.norm(h) * h.softmax(1) + h.amax(1, keepdim=True))


@pytest.mark.parametrize("size", [1, 3, T])
@torch.no_grad()
def test_what_is_not_linear_acts_on_the_mean_of_its_input_so_far(size: int) -> None:
    model = Analog().eval().double()
    snn = parspike.convert(model, ROWS, T=T, neuron=LIF(0.9), recipe="max")
    run = snn.run(ROWS, chunk=size, record=True, every_step=True)
    (neuron,), (train,) = snn.neurons().values(), run.spikes.values()
    assert isinstance(neuron, IntegrateFire)
    for t in range(1, T + 1):
        mean = train[:t].double().mean(0) * neuron.v_post
        torch.testing.assert_close(run.logits[t - 1], model.behind(mean), rtol=1e-9, atol=1e-9)


class Largest(nn.Module):
    """The largest of some neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()  # read twice, so that the maximum stays behind the neurons
        return self.head(y.amax(1, keepdim=True) + y.sum(1, keepdim=True))


@torch.no_grad()
def test_a_maximum_is_that_of_sums_not_of_the_spikes_of_a_step() -> None:
    """Would catch a pool that fires wherever one of its inputs does, as a chip's would: docs/nir.md says why not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Largest().eval().double()
    snn = parspike.convert(model, ROWS, T=T, neuron=IF(), recipe="max")
    run = snn.run(ROWS, record=True)
    ((spikes, neuron),) = zip(run.spikes.values(), snn.neurons().values(), strict=True)
    sent = spikes * neuron.v_post
    weight, bias = (tensor for _, tensor in sorted(snn.tensors().items(), reverse=True) if tensor.numel() == 1)
    largest = sent.sum(0).amax(1, keepdim=True) / T
    both = sent.sum(2, keepdim=True).mean(0)
    torch.testing.assert_close(run.logits, (largest + both) * weight + bias, rtol=1e-9, atol=1e-9)
    either = sent.amax(2, keepdim=True).mean(0)
    assert bool((either >= largest - 1e-12).all())
    assert float((either > largest + 1e-9).double().mean()) > 0.2


@pytest.mark.parametrize("name", ["if", "lif-zero"])
@torch.no_grad()
def test_one_run_has_the_answers_at_every_step(name: str) -> None:
    snn = parspike.convert(mixed(F.silu), MIXED, T=T, neuron=SERIAL[name], recipe="max")
    every = snn.run(MIXED, every_step=True, chunk=3).logits
    last = snn.run(MIXED).logits
    assert {key: value.shape[0] for key, value in every.items()} == dict.fromkeys(last, T)
    for key, value in last.items():
        torch.testing.assert_close(every[key][-1], value, rtol=1e-9, atol=1e-9)
    for t in range(1, T + 1):
        short = with_simulation(snn, Simulation(t)).run(MIXED).logits
        for key, value in short.items():
            torch.testing.assert_close(every[key][t - 1], value, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(every["logits"][0], every["logits"][-1])


@torch.no_grad()
def test_the_twin_has_its_answers_at_every_step_too() -> None:
    snn = parspike.convert(planned(), ROWS, T=T, recipe="max")
    every = snn.run(ROWS, engine="serial-if", every_step=True).logits
    assert every.shape == (T, len(ROWS), 3)
    torch.testing.assert_close(every[-1], snn.run(ROWS, engine="serial-if").logits, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_last_steps_alone_may_be_read() -> None:
    snn = parspike.convert(planned(), ROWS, T=T, neuron=IF(), recipe="max")
    so_far = snn.run(ROWS, every_step=True).logits
    last = with_simulation(snn, Simulation(T, read=3))
    wanted = (T * so_far[T - 1] - (T - 3) * so_far[T - 4]) / 3
    for size in (1, 3, T):
        torch.testing.assert_close(last.run(ROWS, chunk=size).logits, wanted, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(wanted, so_far[-1])
    torch.testing.assert_close(last.run(ROWS, every_step=True).logits[-1], wanted, rtol=1e-9, atol=1e-9)


class Remembers(IntegrateFire):
    """Goes on with its potential after the first phase."""

    def next_phase(self, state: State) -> State:
        return state


@torch.no_grad()
def test_a_first_phase_is_not_read() -> None:
    snn = parspike.convert(planned(), ROWS, T=T, neuron=IF(), recipe="max")
    anew = with_simulation(snn, Simulation(5, probe=3, paid=2))
    assert torch.equal(anew.run(ROWS).logits, with_simulation(snn, Simulation(5)).run(ROWS).logits)
    made = {name: Remembers(n.v_threshold, offset=n.offset) for name, n in snn.neurons().items()}  # pyright: ignore
    graph = replace(snn.graph, tensors=snn.tensors())
    on = parspike.SNN(graph, made, simulation=Simulation(5, probe=3)).run(ROWS, record=True, chunk=2)
    so_far = snn.run(ROWS, every_step=True, record=True)
    torch.testing.assert_close(on.logits, (8 * so_far.logits[7] - 3 * so_far.logits[2]) / 5, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(train, so_far.spikes[layer][3:]) for layer, train in on.spikes.items())


@pytest.mark.parametrize(
    ("kind", "given"), [(IF(), "current"), (IF(v_init="zero"), "rate"), (IF(signed=True), "current")]
)  # not sorted: what arrives all at the end is more than one spike a step can pass on, however many steps there are
@torch.no_grad()
def test_many_steps_compute_what_the_network_does(kind: IF, given: Any) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), mixed()).eval().double()
    wanted = model(MIXED)["logits"]
    errors = []
    for steps in (8, 256):
        snn = parspike.convert(model, MIXED, T=steps, neuron=kind, input=given, recipe="max")
        errors.append(float((snn(MIXED)["logits"] - wanted).norm() / wanted.norm()))
    # Potentials are off by at most a threshold, so the error falls as 1/T.
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 8


# ------------------------------------------------------------------------------------------------------ what is refused


def test_an_engine_of_other_neurons_is_refused_in_one_sentence() -> None:
    serial = parspike.convert(planned(), ROWS, T=3, neuron=IF(), recipe="max")
    parallel = parspike.convert(planned(), ROWS, T=3, recipe="max")
    for engine in ("count", "parallel", "serial", "serial-if"):
        with pytest.raises(OptionError, match=f"engine '{engine}' runs parallel neurons.*leave engine= out"):
            serial.run(ROWS, engine=engine)
    with pytest.raises(OptionError, match=r"'over-time' runs neurons with a state.*neuron=parspike.IF\(\)"):
        parallel.run(ROWS, engine="over-time")
    for engine in (None, "parallel", "serial"):
        with pytest.raises(OptionError, match="every_step=True needs neurons that fire step by step"):
            parallel.run(ROWS, engine=engine, every_step=True)
    with pytest.raises(OptionError, match="chunk"):
        serial.run(ROWS, chunk=0)
    with pytest.raises(OptionError, match="calibrated for T=3"):
        serial.T = 4


def test_a_network_has_neurons_of_one_kind() -> None:
    snn = parspike.convert(planned(), ROWS, T=3, neuron=IF(), recipe="max")
    first = next(iter(snn.neurons()))
    graph = replace(snn.graph, tensors=snn.tensors())
    other = ParallelNeuron(3, torch.ones((), dtype=torch.float64))
    with pytest.raises(ValueError, match="neurons of one kind"):
        parspike.SNN(graph, {**snn.neurons(), first: other}, simulation=Simulation(3))
    with pytest.raises(ValueError, match="read from all T steps"):
        parspike.SNN(graph, dict.fromkeys(snn.neurons(), other), simulation=Simulation(3, read=1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"neuron": "if"}, r"neuron is 'if'.*parspike.IF\(\).*kind_from_text"),
        ({"neuron": IF}, r"parspike.IF\(\)"),
        ({"neuron": IF(), "code": "sorted"}, "give one of the two"),
        ({"neuron": IF(), "T": 0}, "T must be an integer"),
        ({"input": "rate"}, r"neuron=parspike.IF\(\) too"),
        ({"neuron": IF(), "input": "spikes"}, "input must be one of current, rate, sorted"),
        ({"neuron": LIF(), "layers": {"1": parspike.Steps(2)}}, "layer '1' has time-steps of its own"),
        ({"neuron": IF(), "recipe": "daqcfs"}, "leave recipe= out"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        parspike.convert(sequential(), ROWS, **{"T": 3, "recipe": "max", **options})


def test_an_input_that_no_spikes_can_stand_for() -> None:
    model = nn.Sequential(nn.Sigmoid(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval().double()
    with pytest.raises(OptionError, match="no input of this network is read by linear operators alone"):
        parspike.convert(model, ROWS, T=3, neuron=IF(), input="rate", recipe="max")


def test_the_plan_says_which_neurons() -> None:
    plan = parspike.plan(mixed(F.silu), MIXED, neuron=LIF(0.9, reset="zero"))
    becomes = {row.layer: row.becomes for row in plan.rows}
    assert becomes["relu"] == "LIF neuron, reset to 0"
    assert becomes["silu+"] == "LIF neuron, reset to 0, the nearest clipped line"
    parallel = parspike.plan(mixed(), MIXED)
    assert "nested spike trains" in {row.layer: row.becomes for row in parallel.rows}["amax"]
    serial = {row.layer: row.becomes for row in parspike.plan(mixed(), MIXED, neuron=IF()).rows}
    assert serial["amax"].startswith("max of the time-means, these trains are not nested")
    with pytest.raises(OptionError, match="the plan was made for LIF"):
        parspike.convert(plan, MIXED, T=3, neuron=IF(), recipe="max")
    with pytest.raises(OptionError, match="the plan was made for LIF"):
        parspike.convert(plan, MIXED, T=3, neuron=LIF(0.9), recipe="max")  # the plan says: reset to 0
    assert parspike.convert(plan, MIXED, T=3, recipe="max").provenance["neuron"]["decay"] == 0.9


# ------------------------------------------------------------------------------------------------------------- the file

FILES: dict[str, dict[str, Any]] = {
    **{name: {"neuron": kind} for name, kind in SERIAL.items()},
    "bias of each step": {"neuron": IF(bias="step")},
    "rate": {"neuron": IF(), "input": "rate"},
    "sorted": {"neuron": LIF(0.9), "input": "sorted"},
}


def made(name: str) -> parspike.SNN:
    return parspike.convert(planned(), ROWS, T=4, recipe="closed-form", **FILES[name])


@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_a_file_runs_as_what_was_saved(name: str, tmp_path: Path) -> None:
    snn = made(name)
    path = snn.save(tmp_path / "net.parspike")
    again = parspike.load(path)
    assert repr(again) == repr(snn)
    assert (again.simulation, again.provenance) == (snn.simulation, snn.provenance)
    ours, theirs = (net.run(ROWS, record=True) for net in (snn, again))
    assert torch.equal(ours.logits, theirs.logits)
    assert list(ours.spikes) == list(theirs.spikes)
    assert all(torch.equal(train, theirs.spikes[layer]) for layer, train in ours.spikes.items())
    assert again.save(tmp_path / "again.parspike").read_bytes() == path.read_bytes()
    assert made(name).save(tmp_path / "anew.parspike").read_bytes() == path.read_bytes()
    body, _ = read(path, "3")
    assert set(body) == {"simulation", "graph", "neurons", "provenance"}
    assert body["simulation"] == {"T": 4, "probe": 0, "read": 0, "paid": 0}


@torch.no_grad()
def test_a_file_keeps_the_simulation(tmp_path: Path) -> None:
    simulation = Simulation(4, probe=2, read=3, paid=1)
    snn = with_simulation(made("if"), simulation)
    path = snn.save(tmp_path / "net.parspike")
    assert read(path, "3")[0]["simulation"] == asdict(simulation)
    again = parspike.load(path)
    assert again.simulation == simulation
    assert torch.equal(again(ROWS), snn(ROWS))


@torch.no_grad()
def test_parallel_networks_are_written_as_version_2(tmp_path: Path) -> None:
    snn = parspike.convert(planned(), ROWS, T=4, recipe="max")
    path = snn.save(tmp_path / "net.parspike")
    body, tensors = read(path)
    assert body.pop("T") == 4
    newer = {**body, "simulation": asdict(Simulation(4))}
    again = parspike.load(write(tmp_path / "newer", json.dumps(newer), tensors, version="3"))
    assert torch.equal(again(ROWS), snn(ROWS))
    assert again.save(tmp_path / "again").read_bytes() == path.read_bytes()


Edit = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]


def simulation(**entries: int) -> Edit:
    return lambda body, _: body["simulation"].update(entries)


def neuron(**entries: Any) -> Edit:
    return lambda body, _: body["neurons"]["relu"].update(entries)


def train(**entries: Any) -> Edit:
    return lambda body, _: body["neurons"]["input_spikes"]["neuron"].update(entries)


def tensor(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Edit:
    return lambda _, tensors: tensors.update({name: value(tensors[name])})


def parallel_beside(body: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    body["neurons"]["relu"] = {"kind": "parallel", "T": 4, "code": "sorted", "offset": 0.0}
    tensors["neurons.relu.shift"] = tensors.pop("neurons.relu.v_init")
    tensors.pop("neurons.relu.bias")


def old_entry(body: dict[str, Any], _: Any) -> None:
    body["T"] = body.pop("simulation")["T"]


THETA, BIAS = "neurons.relu.v_threshold", "neurons.relu.bias"
FORGED: dict[str, tuple[str, Edit, str]] = {
    "T zero": ("if", simulation(T=0), "T is 0"),
    "T true": ("if", simulation(T=True), "expected int"),
    "T huge": ("if", simulation(T=1 << 25), "T is 33554432"),
    "probe negative": ("if", simulation(probe=-1), "other steps of at least 0"),
    "paid huge": ("if", simulation(paid=1 << 25), "T is 4"),
    "more read than run": ("if", simulation(read=5), "read at most T"),
    "unknown step": ("if", simulation(warm=1), "unknown entries: warm"),
    "no paid": ("if", lambda body, _: body["simulation"].pop("paid"), "paid"),
    "T as in version 2": ("if", old_entry, "missing or unknown entries: T, simulation"),
    "both": ("if", lambda body, _: body.update(T=4), "unknown entries: T"),
    "parallel beside": ("if", parallel_beside, "neurons of one kind"),
    "decay above 1": ("lif", neuron(decay=2.0), "decay must be a number above 0 and at most 1"),
    "decay zero": ("lif", neuron(decay=0.0), "decay must be"),
    "decay text": ("lif", neuron(decay="0.9"), "decay must be"),
    "reset unknown": ("if", neuron(reset="soft"), "reset must be"),
    "refractory negative": ("if", neuron(refractory=-1), "refractory must be"),
    "signed and hard": ("if-zero", neuron(signed=True), "signed spikes need"),
    "unknown entry": ("if", neuron(T=4), "fields or tensors of another kind"),
    "missing entry": ("if", lambda body, _: body["neurons"]["relu"].pop("decay"), "cannot be read"),
    "kind unknown": ("if", neuron(kind="izhikevich"), "unknown kind"),
    "threshold zero": ("if", tensor(THETA, lambda t: t * 0), "thresholds must be above 0"),
    "threshold negative": ("if", tensor(THETA, lambda t: -t), "thresholds must be above 0"),
    "threshold NaN": ("if", tensor(THETA, lambda t: t * np.nan), "holds NaN or Inf"),
    "threshold of other channels": ("if", tensor(THETA, lambda t: t[:3].copy()), "does not fit"),
    "threshold of another type": ("if", tensor(THETA, lambda t: t.astype(np.float32)), "unlike dtypes"),
    "potential of other channels": ("if", tensor("neurons.relu.v_init", lambda t: t[:3].copy()), "does not fit"),
    "bias of other channels": ("if", tensor(BIAS, lambda t: t[:, :3].copy()), "does not fit"),
    "bias of two steps": ("if", tensor(BIAS, lambda t: t.repeat(2, 0)), "is not for one step or for all 4"),
    "bias of more steps": ("bias of each step", tensor(BIAS, lambda t: t.repeat(2, 0)), "not for one step"),
    "bias of no step": ("if", tensor(BIAS, lambda t: t[:0].copy()), ""),
    "bias a number": ("if", tensor(BIAS, lambda t: t.sum().reshape(())), ""),
    "no bias": ("if", lambda _, tensors: tensors.pop(BIAS), "cannot be read"),
    "train of more steps": ("sorted", train(T=5), "5 steps"),
    "train of fewer steps": ("sorted", train(T=3), "3 steps"),
    "train of another code": ("sorted", train(code="onset"), "sorted code"),
    "train of other neurons": ("sorted", train(kind="staircase"), "of parallel neurons"),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {name: made(name).save(folder / name) for name in {name for name, _, _ in FORGED.values()}}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_is_refused(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    source, edit, says = FORGED[name]
    body, tensors = read(saved[source], "3")
    edit(body, tensors)
    path = write(tmp_path / "forged", json.dumps(body), tensors, version="3")
    with pytest.raises(FileError) as error:
        parspike.load(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)


def test_version_2_knows_no_simulation(saved: dict[str, Path], tmp_path: Path) -> None:
    body, tensors = read(saved["if"], "3")
    with pytest.raises(FileError, match="other entries than version 2 knows"):
        parspike.load(write(tmp_path / "old", json.dumps(body), tensors))
