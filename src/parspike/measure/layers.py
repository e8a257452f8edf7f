"""Operations and error, layer by layer, in one walk over counts.

Beside the values of the spiking network walk three more streams: the spikes that reach each element, where a real
value stands instead of spikes (the image; what is behind a weighted synapse or an analog operator), and where any
value stands that is not a constant zero of padding. A fifth is the network itself, where there is one to compare
with. Counts are enough, no train is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parspike.calibrate.batches import arguments_of, bound, inputs_of, labels_of, number_of, readable_again
from parspike.calibrate.recipe import Progress
from parspike.engines import Steps, changing
from parspike.errors import InputError, OptionError, check_function
from parspike.graph import Graph, Node, Role, Schedule, Stream, leaves, map_tree, nested, walk, with_doubles
from parspike.graph.ops import ACROSS_BATCH, BESIDE, HELD, HOLD, TABLE, WEIGHED_BY_SAMPLE, call
from parspike.graph.roles import currents, reached_by
from parspike.graph.signature import adds_up
from parspike.measure.energy import Energy
from parspike.measure.report import LayerRow, Report
from parspike.measure.scores import Scores
from parspike.measure.wires import at_refs, carry, fan_out, macs_of, one_sample, present, role_of, summed
from parspike.neurons import Neuron, Staircase
from parspike.plan import Plan, plan_again
from parspike.snn import SNN, check_converted

__all__ = ["activation_bits", "measure", "measured", "same_operators", "weights_of"]


def measure(
    snn: SNN,
    loader: Any,
    *,
    against: nn.Module | Plan | None = None,
    inputs: Callable[[Any], Any] | None = None,
    energy: Energy | None = None,
    progress: Progress | None = None,
) -> Report:
    """Operations, energy and spikes of a spiking network by layer, its accuracy, and its error against the network.

    loader: an iterable of tensors (B, …), (x, y) tuples or dicts, or one tensor (N, …). Where the neurons have a state,
    an input may be another one at every step, (T, B, …), such as the events of a camera; the network of `against` then
    gets the mean over the steps. Accuracy needs y: whole numbers, one for each answer, right behind the inputs of a
    tuple (with `inputs` in its last place) or under "label" or "labels" of a dict. Accuracy and agreement are of class
    scores; values, such as those of a regression, have an error alone, and docs/measure.md says how the two are told
    apart. against: the network, or its plan; any other network that takes these inputs is compared by its outputs
    alone. inputs: a function from an item to the inputs. energy: picojoules of an operation. progress: called as
    progress(what, done, total). docs/measure.md says what is counted. The counts are those of the engines count,
    parallel and serial; of neurons with a state those of their steps. Raises `InputError` where there is no batch or
    inputs do not fit, `OptionError` for an energy that is no table, and what `plan` raises for `against`.
    """
    return measured(snn, loader, against=against, inputs=inputs, energy=energy, progress=progress)[0]


@torch.no_grad()
def measured(
    snn: SNN,
    loader: Any,
    *,
    against: nn.Module | Plan | None = None,
    inputs: Callable[[Any], Any] | None = None,
    energy: Energy | None = None,
    progress: Progress | None = None,
    sure: bool = False,
) -> tuple[Report, Scores]:
    """What `measure` returns, and the scores that it was made of. sure: see `answers_of`."""
    check_converted(snn, "measure")
    check_function(progress, "progress")
    if energy is not None and not isinstance(energy, Energy):
        raise OptionError(f"energy is {energy!r}: give a table, such as parspike.Energy.named('int8-45nm')")
    snn = with_doubles(snn)
    source = batches_of(snn, loader)
    total = number_of(source)
    meter, scores, reference, samples = _Meter(snn), Scores(), None, 0
    for number, item in enumerate(source):
        place = f"batch {number} of the loader"
        env = snn.checked(bound(item, place, snn, inputs), place)
        network_item, chosen_by = item, inputs
        if any(isinstance(x, Steps) for x in env.values()):
            args, named = snn.graph.call_of(means_of(env, place))
            network_item, chosen_by = named or args, None
        if against is not None and reference is None:
            example = arguments_of(network_item, place, chosen_by, snn.graph.signature)
            reference = plan_again(against, example, snn.provenance).graph
            if same_operators(reference, snn.graph):
                meter.reference = reference
        outputs, network = meter.add(env, place)
        if reference is not None and network is None:
            network = reference.run_on(inputs_of(network_item, place, reference, chosen_by))
        samples += next(iter(env.values())).shape[0]
        scores.add(outputs, network, labels_of(item, inputs, snn.graph.signature), sure=sure)
        if progress:
            progress("", number + 1, total)
    if not samples:
        raise InputError("the loader is empty: give at least one batch of inputs")
    report = Report(
        samples,
        snn.T,
        tuple(dict.fromkeys(neuron.label for neuron in snn.neurons().values())),
        meter.rows(samples),
        energy or Energy(),
        accuracy=scores.accuracy,
        network_accuracy=scores.network_accuracy,
        agreement=scores.agreement,
        error=scores.error,
        weights=weights_of(snn),
        uneven=tuple(
            snn.graph.by_name[name].layer
            for name, neuron in snn.neurons().items()
            if isinstance(neuron, Staircase) and not neuron.even
        ),
    )
    return report, scores


def batches_of(snn: SNN, loader: Any) -> Iterable[Any]:
    """A loader as items that can be read several times; one tensor over time, (T, N, …), is cut along its samples."""
    rank = len(snn.graph.inputs[0].shape)
    if snn.over_time and isinstance(loader, Tensor) and loader.dim() == rank + 1:
        return loader.split(AT_ONCE, 1)
    # A data set's samples (T, …) are stacked as (B, T, …), which is told from (T, B, …) where the two sizes differ.
    return readable_again(loader, AT_ONCE if snn.T != AT_ONCE else AT_ONCE // 2, name="loader")


def means_of(env: Mapping[str, Any], place: str) -> dict[str, Tensor]:
    """Inputs by name, those over time as their means. Raises `InputError` for whole numbers, which have none."""
    for name, x in env.items():
        if isinstance(x, Steps) and not x.x.is_floating_point():
            raise InputError(
                f"{place}: input '{name}' is {x.x.dtype} and another one at every step, and only real numbers have a "
                "mean over time that operations are counted with: give the same input at every step"
            )
    return {name: x.mean if isinstance(x, Steps) else x for name, x in env.items()}


def same_operators(one: Graph, other: Graph) -> bool:
    """Whether two graphs run the same operators, so that their layers can be compared."""
    return [(n.name, n.target, n.refs) for n in one.nodes] == [(n.name, n.target, n.refs) for n in other.nodes]


def weights_of(snn: SNN) -> int:
    """How many weights the synapses have, biases left out; one that several synapses read counts once."""
    tensors = snn.tensors()
    synapses = [node for node in snn.graph.nodes if TABLE[node.target].weighted and not adds_up(node)]
    paths = {path for node in synapses for path in node.params}
    return sum(tensors[path].numel() for path in paths if tensors[path].dim() > 1)


AT_ONCE = 64
"""Samples of a batch that is cut from a tensor or a data set."""
INPUT_BITS = 8
"""Of an image, and of what no neurons send, in the network with quantised activations."""


def activation_bits(snn: SNN) -> dict[str, int]:
    """By node: ⌈log₂(levels + 1)⌉ of neurons; of every other node the most that it reads, `INPUT_BITS` behind a
    weighted synapse or an analog operator."""
    neurons, found = snn.neurons(), {i.name: INPUT_BITS for i in snn.graph.inputs}
    for node in snn.graph.nodes:
        if node.name in neurons:
            found[node.name] = max(1, neurons[node.name].levels_in(snn.T).bit_length())
        elif node.role in (Role.SYNAPSE, Role.ORDER) and (not TABLE[node.target].weighted or adds_up(node)):
            found[node.name] = max((found[name] for name in node.refs), default=INPUT_BITS)
        else:
            found[node.name] = INPUT_BITS
    return found


@dataclass
class _Sum:
    """What one node has done so far, over all samples."""

    synops: float = 0.0
    macs: float = 0.0
    network_macs: float = 0.0
    spikes: float = 0.0
    neurons: int = 0
    updates: int = 0
    apart: float = 0.0
    size: float = 0.0
    kept_macs: float = 0.0

    def multiplied(self, macs: float, times: int) -> None:
        """Add multiply-accumulates that are done so many times."""
        self.macs += macs * times
        self.kept_macs += macs


class _Meter:
    """Walks batches and adds up, node by node. reference: the network's own graph, where its nodes are the same."""

    def __init__(self, snn: SNN) -> None:
        self.snn, self.graph, self.neurons = snn, snn.graph, snn.neurons()
        self.schedule = Schedule.of(self.graph.nodes, self.graph.outputs)
        self.varying = {i.name for i in self.graph.inputs}
        for node in self.graph.nodes:
            if any(name in self.varying for name in node.refs):
                self.varying.add(node.name)
        self.reached = reached_by(self.graph, self.neurons)
        sorted_code = {name for name, neuron in snn.counting().items() if neuron.code == "sorted"}
        self.nested = {
            node.name for node in self.graph.nodes
            if node.role is Role.ORDER and nested(self.graph, node, sorted_code)
        }  # fmt: skip
        self.sent: dict[str, tuple[Tensor, Tensor]] = {}
        self.logits: Any = None  # of neurons with a state, whose output may be that of the last steps alone
        self.sums: dict[str, _Sum] = {}
        self.known: dict[tuple[Any, ...], Any] = {}
        self.shapes: list[torch.Size] = []
        # Where values of a sample weigh others, they say which of these are 0, so nothing is the same for all batches.
        self.steady = all(node.reason not in (WEIGHED_BY_SAMPLE, HELD) for node in self.graph.nodes)
        self.reference: Graph | None = None
        self.streams: list[Stream] = []
        self.drives = self._before_neurons()
        self.changing: frozenset[str] = frozenset()

    def _before_neurons(self) -> set[str]:
        """The nodes that neurons with a state read a value of, directly or not, which they need at every step."""
        found: set[str] = set()
        for node in reversed(self.graph.nodes) if self.snn.over_time else ():
            if node.name in found or node.name in self.neurons:
                found.update(node.refs)
        return found

    def add(self, env: dict[str, Any], place: str) -> tuple[Any, Any]:
        """One batch; the outputs of the spiking network, and of the network where it walks along. place: of the batch,
        for errors."""
        tensors, sizes = self.snn.tensors(), self.graph.sizes(env)
        shapes = [x.shape for x in env.values()]
        if shapes != self.shapes:
            self.known.clear()  # of one size alone, so that memory does not grow with the number of sizes
        self.shapes = shapes
        means = means_of(env, place)
        ones = {name: torch.ones_like(x, dtype=torch.float64) for name, x in means.items()}
        spikes = {name: _events(x) for name, x in env.items()}
        reals = {name: one if spikes[name] is None else None for name, one in ones.items()}
        envs = [dict(means), spikes, reals, dict(ones)]
        self.streams = [Stream(values, tensors, sizes) for values in envs]
        if self.reference is not None:
            self.streams.append(Stream(dict(means), self.reference.tensors, sizes))
        timed = {name for name, x in env.items() if isinstance(x, Steps)}
        self._check_weights(timed, place)
        self.changing = changing(self.graph, self.neurons if self.snn.over_time else (), timed)
        moving = [node.name for node in self.graph.nodes if node.name in self.varying]
        self.sent = self._over_time(env)
        walk(self.schedule, self.streams, dict.fromkeys(moving, self._visit))
        outputs = self.graph.collect(self.streams[0].env, sizes) if self.logits is None else self.logits
        return outputs, None if self.reference is None else self.graph.collect(self.streams[4].env, sizes)

    def _check_weights(self, timed: Collection[str], place: str) -> None:
        """Refuse a product whose weights are made of an input over time: a mean of weights is not what spikes meet."""
        moving = changing(self.graph, (), timed) if timed else ()
        for node in self.graph.nodes if moving else ():
            if set(node.refs) & set(moving) - set(currents(node, self.reached, self.varying)):
                raise InputError(
                    f"{place}: layer '{node.layer}' multiplies by an input that is another one at every step, so that "
                    "its operations cannot be counted on means: give the same input at every step"
                )

    def _times(self, node: Node) -> int:
        """How often a node computes with real values: at every step where neurons with a state need it so."""
        again = node.name in self.changing and node.name in self.drives
        return self.snn.simulation.total if again else 1

    def _over_time(self, env: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Of neurons with a state: their mean current and how many spikes they send, (B, …) each."""
        if not self.snn.over_time:
            return {}
        totals: dict[str, tuple[Tensor, Tensor]] = {}
        signed = {name for name, neuron in self.snn.stateful().items() if neuron.takes_back}

        def watch(name: str, current: Tensor, spikes: Tensor, read: bool) -> None:
            # In place, and without a sum where a block is one step: on a CPU this took as long as the network itself.
            if name not in totals:
                # Whole numbers up to 2^24, the most that are sent, are exact in float32.
                exact = spikes.dtype if spikes.dtype in (torch.float32, torch.float64) else torch.float64
                totals[name] = torch.zeros_like(current[0]), torch.zeros_like(spikes[0], dtype=exact)
            mean, sent = totals[name]
            # All spikes cost something; what the layers behind receive is compared in the phase that is read alone.
            if read:
                mean += current[0] if len(current) == 1 else current.sum(0)
            now = spikes.abs() if name in signed else spikes
            sent += now[0] if len(now) == 1 else now.sum(0, dtype=sent.dtype)

        self.logits = self.snn.watched(env, watch).logits
        return {name: (current / self.snn.T, sent.double()) for name, (current, sent) in totals.items()}

    def _visit(
        self, node: Node, args: Any, spike_args: Any, real_args: Any, seen_args: Any, *network_args: Any
    ) -> list[Any]:
        # walk gives no keyword arguments; they hold no values, only sizes and the device
        kwargs = self.streams[0].arguments(node)[1]
        network = [call(node.target, other, kwargs) for other in network_args]
        role, neuron, row = role_of(node), self.neurons.get(node.name), TABLE[node.target]
        moving = currents(node, self.reached, self.varying)
        spikes, reals, there = (at_refs(node.args, found, moving) for found in (spike_args, real_args, seen_args))

        def seen() -> Any:
            # Where a value may stand follows from shapes alone: all batches of one size have the same places.
            made = self._once("seen", node, args, lambda: one_sample(present(node, args, kwargs, there, moving)))
            return map_tree(torch.Tensor.contiguous, made)

        done = self.sums.setdefault(node.name, _Sum())
        if neuron is not None:
            if isinstance(neuron, Neuron):
                count = neuron.count(args[0])
                value, sent, steps = neuron.value(count), neuron.sent(count).double(), neuron.T
            else:
                value, sent, steps = *self.sent[node.name], self.snn.simulation.total
            number = sent.numel() * neuron.lines
            done.spikes, done.neurons = done.spikes + float(sent.sum()), done.neurons + number
            done.updates += number * steps
            done.synops += _total(spikes)
            for wanted in network:
                done.apart += float((value - wanted).double().square().sum())
                done.size += float(wanted.double().square().sum())
            return [value, sent, None, seen(), *network]
        value = call(node.target, args, kwargs)
        if adds_up(node):
            sent, real, places = (summed(node, args, kwargs, found[0], moving) for found in (spikes, reals, there))
            real, places = (None if one is None else (one != 0).double() for one in (real, places))
            return [value, sent, real, places, *network]
        if role is Role.SYNAPSE and row.weighted:
            edges = self._once("edges", node, args, lambda: fan_out(node, args, kwargs, moving))
            done.synops += sum(float((s.abs() * edges).sum()) for s in spikes if s is not None)
            done.multiplied(sum(float((r * edges).sum()) for r in reals if r is not None), self._times(node))
            done.network_macs += sum(float((s * edges).sum()) for s in there)
            return [value, None, _everywhere(value), _everywhere(value), *network]
        if role is Role.SYNAPSE and row.sources != "many":
            sent, real = (carry(node, args, kwargs, found, moving, self._shares) for found in (spikes, reals))
            real = None if real is None else map_tree(lambda r: (r != 0).double(), real)
            return [value, sent, real, seen(), *network]
        places = seen() if role in (Role.NEURON, Role.ORDER) else _everywhere(value)
        if node.name in self.nested:
            return [value, call(node.target, spike_args, kwargs), None, places, *network]
        done.synops += _total(spikes)  # added up to the mean that the operator acts on
        if role is Role.ANALOG:
            macs = self._once("macs", node, args, lambda: macs_of(node, args, kwargs, value, self.varying))
            done.multiplied(macs, self._times(node))
            done.network_macs += 0 if node.layer.endswith(BESIDE) else macs
        return [value, None, places, places, *network]

    def _shares(self, node: Node, args: Any, make: Callable[[], Any]) -> Any:
        return self._once("shares", node, args, make)

    def _once(self, what: str, node: Node, args: Any, make: Callable[[], Any]) -> Any:
        """Compute a value that depends on shapes alone once for each set of shapes. Where it depends on the samples
        too, it is not kept: those of all layers of a language model came to more than ten times its weights."""
        if not self.steady:
            return make()
        key = (what, node.name, *(leaf.shape for leaf in leaves(args) if isinstance(leaf, Tensor)))
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def rows(self, samples: int) -> tuple[LayerRow, ...]:
        """The operators that cost something, and all that are analog, in order."""
        found, bits = [], activation_bits(self.snn)
        for node in self.graph.nodes:
            done = self.sums.get(node.name)
            kind = None if done is None else self._kind(node, done)
            if done is None or kind is None:
                continue
            neuron = self.neurons.get(node.name)
            read = max((bits[ref] for ref in node.refs), default=INPUT_BITS)
            operator = node.target.removeprefix("aten.").removeprefix("parspike.").split(".")[0]
            found.append(
                LayerRow(
                    node.layer, operator, kind, done.synops / samples, done.macs / samples,
                    done.network_macs / samples, done.neurons / samples, done.spikes / samples,
                    done.spikes / done.neurons / self.snn.T if done.neurons else 0.0,
                    done.updates / samples,
                    None if self.reference is None or neuron is None else (done.apart / max(done.size, 1e-300)) ** 0.5,
                    read if neuron is None else bits[node.name],
                    done.kept_macs / samples,
                )
            )  # fmt: skip
        return tuple(found)

    def _kind(self, node: Node, done: _Sum) -> str | None:
        if node.name in self.neurons:
            return "neuron"
        if node.target == HOLD:
            return "mean"
        if node.role is Role.NEURON or (node.role is Role.ANALOG and node.reason != ACROSS_BATCH):
            return "analog"
        if TABLE[node.target].weighted and not adds_up(node):
            return "synapse"
        return "mean" if done.synops else None


def _events(x: Any) -> Tensor | None:
    """How many events each element of an input over time sends, float64 (B, …): its whole numbers, added up. None for
    an input of other real values, and for one that stays the same, as an image does."""
    if not isinstance(x, Steps) or not torch.equal(x.x, x.x.round()):
        return None
    return x.x.abs().sum(0, dtype=torch.float64)


def _total(spikes: list[Any]) -> float:
    return sum(float(leaf.abs().sum()) for leaf in leaves(spikes) if leaf is not None)


def _everywhere(value: Any) -> Any:
    return map_tree(lambda leaf: torch.ones_like(leaf, dtype=torch.float64), value)
