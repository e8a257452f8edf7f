"""The error of every layer of neurons, in one walk of the network (teacher) and the spiking network (student).

At a layer of neurons both streams are forked, which shows what the layer does to the output: in the teacher's fork it
alone spikes, in the student's it alone is exact. A fork begins with the values of the walk, so it runs only what lies
behind the layer.

Neurons with a state first run all their T steps; then the student's walk holds means over time, for synapses are
linear, and everything else emits what has the right mean (engines/over_time.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from parspike.diagnose.result import BINS, LayerFault, Outcome
from parspike.graph import Clip, Graph, Node, Quantised, Schedule, Stream, walk
from parspike.graph.ops import TABLE, call
from parspike.measure import Scores
from parspike.neurons import Dynamics, Neuron, Simulation, SpikingLayer
from parspike.snn import SNN

__all__ = ["Examination", "answer", "evenly", "outcome", "with_neurons"]

HUGE = 1e6
"""An input current at which every neuron sends as much as it can, as a multiple of the largest that it was given."""
SLACK = 1e-5
"""Share of the neurons' range by which rounding may carry an activation beyond it."""


def with_neurons(
    snn: SNN, neurons: Mapping[str, SpikingLayer], T: int | None = None, note: Mapping[str, Any] | None = None
) -> SNN:
    """The network with other neurons; a node that has none is computed exactly. T: time-steps, where they change. note:
    what the provenance says of it, under "diagnosis"."""
    simulation = snn.simulation
    if T is not None:
        simulation = replace(simulation, T=T, read=simulation.read * T // simulation.T)
    if not any(isinstance(neuron, Dynamics) for neuron in neurons.values()):
        simulation = Simulation(simulation.T)
    graph, said = replace(snn.graph, tensors=snn.tensors()), snn.provenance.get("diagnosis", [])
    provenance = snn.provenance if note is None else {**snn.provenance, "diagnosis": [*said, dict(note)]}
    return SNN(graph, neurons, simulation=simulation, provenance=provenance)


def answer(snn: SNN, env: Mapping[str, Tensor]) -> Any:
    """The output of a spiking network for inputs by name."""
    positional, names = snn.graph.signature
    inputs = [env[i.name] for i in snn.graph.inputs]
    return snn(*inputs[:positional], **dict(zip(names, inputs[positional:], strict=True)))


def outcome(scores: Scores) -> Outcome:
    """How a network does, of its scores beside the reference's."""
    return Outcome(scores.error, scores.agreement, scores.accuracy)


def evenly(neuron: SpikingLayer, z: Tensor, simulation: Simulation) -> Tensor:
    """The mean output of neurons whose input current is z (B, …) at every step."""
    if isinstance(neuron, Neuron):
        return neuron(z)
    return _steadily(neuron, z, simulation)[0]


def _steadily(neuron: Any, z: Tensor, simulation: Simulation) -> tuple[Tensor, Tensor]:
    """Of neurons with a state and a steady input: their mean output, and the spikes they send while it is read."""
    size, state = max(1, neuron.lookahead), None

    def phase(state: Any, T: int) -> tuple[Any, Tensor, Tensor]:
        total, sent = torch.zeros_like(z), torch.zeros_like(z)
        for start in range(0, T, size):
            steps = min(size, T - start)
            state, current, spikes = neuron.advance(state, z.expand(steps, *z.shape), start)
            total, sent = total + current.sum(0), sent + spikes.abs().sum(0)
        return state, total, sent

    if simulation.probe:
        state = neuron.next_phase(phase(None, simulation.probe)[0])
    _, total, sent = phase(state, simulation.T)
    return total / simulation.T, sent


@dataclass
class _Sent:
    """What a layer of neurons sent for one batch, (B, …) each. value: mean current; spikes: how many were sent; first:
    the step of the first, T where there was none."""

    value: Tensor
    spikes: Tensor
    first: Tensor


@dataclass
class _Sums:
    """Of one layer, over all images. The squares are of norms; alive, full, moved: by shape of one sample, whether a
    neuron sent a spike for any image, all it can for every one, and left its smallest output in the network."""

    squares: dict[str, float] = field(default_factory=dict)
    values: int = 0
    beyond: int = 0
    spikes: float = 0.0
    rates: list[int] = field(default_factory=lambda: [0] * (BINS + 1))
    first: Tensor | None = None
    alive: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    full: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    moved: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    alone: Scores = field(default_factory=Scores)
    without: Scores = field(default_factory=Scores)

    def add(self, name: str, vector: Tensor) -> None:
        self.squares[name] = self.squares.get(name, 0.0) + float(vector.double().square().sum())

    def norm(self, name: str) -> float:
        return math.sqrt(self.squares[name] / max(self.squares["size"], 1e-300))


class Examination:
    """Walks batches and adds up. reference: the network's graph, of the same nodes as the spiking network's."""

    def __init__(self, snn: SNN, reference: Graph) -> None:
        self.snn, self.graph, self.reference = snn, snn.graph, reference
        self.neurons = snn.neurons()
        self.steps = Schedule.of(self.graph.nodes, self.graph.outputs).steps
        self.place = {node.name: i for i, (node, _) in enumerate(self.steps)}
        self.sums = {name: _Sums() for name in self.neurons}
        self.scores, self.samples = Scores(), 0
        self.tops: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        # The layers cannot be taken out of the walk of means: what a layer sends depends on when its input comes.
        self.less = (
            {name: with_neurons(snn, {n: one for n, one in self.neurons.items() if n != name}) for name in self.neurons}
            if snn.over_time
            else {}
        )

    def add(self, env: Mapping[str, Tensor], labels: Tensor | None, said: Callable[[str], None]) -> None:
        """One batch of inputs by name. said: told the name of each layer that is done."""
        tensors, sizes = self.snn.tensors(), self.graph.sizes(env)
        network, student = (Stream(dict(env), held, sizes) for held in (self.reference.tensors, tensors))
        logits, sent = self._sent(env) if self.snn.over_time else (None, {})
        forks: dict[str, tuple[Any, Any]] = {}

        def fire(node: Node, *given: Any) -> list[Tensor]:
            value = sent[node.name].value if sent else self.neurons[node.name](given[0][0])
            return [value] * len(given)

        def visit(node: Node, of_network: Any, of_student: Any) -> list[Tensor]:
            neuron, kwargs = self.neurons[node.name], student.arguments(node)[1]
            a, f, z = call(node.target, of_network, kwargs), call(node.target, of_student, kwargs), of_student[0]
            here = sent[node.name] if sent else self._counted(neuron, z)
            self._compare(node, a, f, z, here)
            rest = Schedule(self.steps[self.place[node.name] + 1 :])
            alone = Stream({**network.env, node.name: evenly(neuron, of_network[0], self.snn.simulation)},
                           network.tensors, sizes)  # fmt: skip
            walk(rest, [alone])
            if self.snn.over_time:
                without = answer(self.less[node.name], env)
            else:
                exact = Stream({**student.env, node.name: f}, tensors, sizes)
                walk(rest, [exact], dict.fromkeys(self.neurons, fire))
                without = self.graph.collect(exact.env, sizes)
            forks[node.name] = self.graph.collect(alone.env, sizes), without
            said(node.layer)
            return [a, here.value]

        walk(Schedule(self.steps), [network, student], dict.fromkeys(self.neurons, visit))
        wanted = self.reference.collect(network.env, sizes)
        given = self.graph.collect(student.env, sizes) if logits is None else logits
        self.scores.add(given, wanted, labels)
        for name, (alone, without) in forks.items():
            self.sums[name].alone.add(alone, wanted, labels)
            self.sums[name].without.add(without, wanted, labels)
        self.samples += next(iter(env.values())).shape[0]

    def _sent(self, env: Mapping[str, Tensor]) -> tuple[Any, dict[str, _Sent]]:
        """The output of neurons with a state, and what each layer sent."""
        found: dict[str, _Sent] = {}
        done: dict[str, int] = {}
        T = self.snn.T

        def watch(name: str, current: Tensor, spikes: Tensor, read: bool) -> None:
            if not read:
                return
            if name not in found:
                none = torch.full_like(current[0], T, dtype=torch.int64)
                found[name] = _Sent(
                    torch.zeros_like(current[0]), torch.zeros_like(current[0], dtype=torch.float64), none
                )
            here, start = found[name], done.get(name, 0)
            here.value += current.sum(0) / T
            here.spikes += spikes.abs().sum(0, dtype=torch.float64)
            for step, now in enumerate(spikes, start):
                here.first[(now != 0) & (here.first == T)] = step
            done[name] = start + len(spikes)

        return self.snn.watched(env, watch).logits, found

    def _counted(self, neuron: Any, z: Tensor) -> _Sent:
        count = neuron.count(z)
        # What a count sends is looked up, so that no train is made.
        kinds, which = count.unique(return_inverse=True)
        trains = neuron.spikes(kinds)
        first = torch.where(trains.any(0), (trains != 0).int().argmax(0), self.snn.T)
        return _Sent(neuron.value(count), neuron.sent(count).double(), first[which])

    def _top(self, node: Node, neuron: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        """The largest output of the neurons of one sample, and how many spikes they send for it."""
        key = (node.name, z.shape[1:])
        if key not in self.tops:
            if isinstance(neuron, Neuron):
                most = torch.full_like(z[:1], neuron.levels)
                self.tops[key] = neuron.value(most), neuron.sent(most).double()
            else:
                driven = torch.full_like(z[:1], HUGE * max(1.0, float(z.abs().max())))
                output, sent = _steadily(neuron, driven, self.snn.simulation)
                self.tops[key] = output, sent.double()
        return self.tops[key]

    def _compare(self, node: Node, a: Tensor, f: Tensor, z: Tensor, here: _Sent) -> None:
        """Adds what one layer does with a batch. a: the network's activation; f: the activation of the mean input z."""
        neuron: Any = self.neurons[node.name]
        sums = self.sums[node.name]
        high, most = self._top(node, neuron, z)
        least = neuron.value(torch.full_like(z[:1], neuron.lowest)) if isinstance(neuron, Neuron) else neuron.rest()
        low = torch.as_tensor(least, dtype=z.dtype, device=z.device).expand_as(z[:1])
        held = torch.minimum(torch.maximum(f, low), high)
        even = here.value if isinstance(neuron, Neuron) else evenly(neuron, z, self.snn.simulation)
        for name, vector in (
            ("size", a), ("error", here.value - a), ("carried", f - a), ("clipping", held - f),
            ("quantisation", even - held), ("over_time", here.value - even),
        ):  # fmt: skip
            sums.add(name, vector)
        slack = SLACK * (high - low)
        sums.values += f.numel()
        sums.beyond += int(((f > high + slack) | (f < low - slack)).sum())
        sums.spikes += float(here.spikes.sum())
        T = self.snn.T
        bins = (here.spikes * BINS / T).ceil().clamp(max=BINS).long().flatten()
        sums.rates = [n + int(m) for n, m in zip(sums.rates, bins.bincount(minlength=BINS + 1).tolist(), strict=True)]
        first = here.first.flatten().bincount(minlength=T + 1)
        sums.first = first if sums.first is None else sums.first + first
        _either(sums.alive, (here.spikes > 0).any(0))
        _either(sums.full, (here.spikes < most).any(0) if _by_sent(neuron) else (here.value < high - slack).any(0))
        if (least := _least(node)) is not None:
            _either(sums.moved, (a > least).any(0))

    def rows(self) -> tuple[LayerFault, ...]:
        """The layers in order."""
        return tuple(self._row(name, sums) for name, sums in self.sums.items())

    def _row(self, name: str, sums: _Sums) -> LayerFault:
        node, lines = self.graph.by_name[name], self.neurons[name].lines
        first = [] if sums.first is None else sums.first.tolist()
        return LayerFault(
            layer=node.layer,
            operator=node.target.removeprefix("aten.").removeprefix("parspike.").split(".")[0],
            neurons=sums.values * lines / self.samples,
            **{part: sums.norm(part) for part in ("error", "clipping", "quantisation", "over_time", "carried")},
            beyond=sums.beyond / sums.values,
            alone=outcome(sums.alone),
            without=outcome(sums.without),
            firing_rate=sums.spikes / (sums.values * lines) / self.snn.T,
            dead=_share(sums.alive, False),
            network_dead=_share(sums.moved, False) if sums.moved else None,
            saturated=_share(sums.full, False),
            rates=tuple(sums.rates),
            first_spikes=tuple(first),
        )


def _by_sent(neuron: Any) -> bool:
    """Whether a neuron that sends most has the largest output: not in the onset and weighted codes."""
    return not isinstance(neuron, Neuron) or neuron.code == "sorted"


def _either(held: dict[tuple[int, ...], Tensor], now: Tensor) -> None:
    shape = tuple(now.shape)
    held[shape] = held[shape] | now if shape in held else now


def _share(held: Mapping[tuple[int, ...], Tensor], value: bool) -> float:
    found: Sequence[Tensor] = list(held.values())
    return sum(int((one == value).sum()) for one in found) / max(1, sum(one.numel() for one in found))


def _least(node: Node) -> float | None:
    """The smallest value of a node's activation, None where it has none."""
    describe = TABLE[node.target].activation
    activation = None if describe is None else describe(node)
    if isinstance(activation, Quantised):
        return 0.0
    return activation.low if isinstance(activation, Clip) and math.isfinite(activation.low) else None
