"""Neurons with a state, block of time-steps by block of time-steps.

A block of t steps runs with time in the batch, (t·B, …): each synapse once, and each layer of neurons in a
loop over the t steps that only reads and writes its own potential. What does not change over time, such as a constant
input and the first synapse behind it, is computed once, before the first block. An input may also be another one at
every step (`Steps`).

Operators that are not linear in time (max-pool, analog ones, activations that no such neuron stands for) emit at step n
the increase of n · f(mean of their input so far), so that the mean of what they emit is f of the mean of their input.
Whole numbers and masks have no mean: their value is that of the step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from parspike.engines.base import Network, Run
from parspike.engines.folded import Steps, fold, join, place_of, repeat, split, timed, unfold
from parspike.graph import Graph, Hook, Node, Role, Schedule, Stream, leaves, map_tree, walk
from parspike.graph.ir import elements
from parspike.graph.ops import ACROSS_BATCH, call
from parspike.neurons import Dynamics, Simulation, State

__all__ = ["Block", "Watch", "changing", "over_time"]

Watch = Callable[[str, Tensor, Tensor, bool], None]
"""watch(node's name, currents, spikes, read): what a layer of neurons did in a block of steps, (t, B, …) each. read:
whether the output is read in this phase; in a first phase (`Simulation.probe`) it is not."""
CACHED = 1 << 18
"""Elements of the largest tensor of a block on the CPU: 1 MiB of float32. On a CPU larger blocks are slower."""
LARGEST = 1 << 25
"""The same on other devices, 128 MiB of float32: there few large products win."""


def changing(graph: Graph, neurons: Collection[str], inputs: Collection[str] = ()) -> frozenset[str]:
    """The values that change over time, (t·B, …) in a block of t steps: the neurons, and inputs that do, and all behind
    them."""
    names = set(inputs)
    for node in graph.nodes:
        if node.name in neurons or any(ref in names for ref in node.refs):
            names.add(node.name)
    return frozenset(names)


class Block:
    """What happens at a node that changes over time, for a block of steps.

    One `Block` lives as long as a run: it holds the states of the neurons, and of every operator that is not linear in
    time the sum of its inputs and what it gave. t: steps that are done. steps: of the block in work. whole: nodes whose
    value is no mean over time (whole numbers, masks), known once they ran.
    """

    def __init__(
        self, graph: Graph, neurons: Mapping[str, Any], moving: Collection[str], steps: int = 1,
        whole: set[str] | None = None, watch: Watch | None = None,
    ) -> None:  # fmt: skip
        self.graph, self.neurons, self.moving = graph, neurons, moving
        self.watch = watch
        self.read = True
        self.t, self.steps = 0, steps
        self.whole = set() if whole is None else whole
        self.states: dict[str, State] = {}
        self.sums: dict[str, tuple[dict[str, Any], Any]] = {}

    def next_phase(self) -> None:
        """Begin the second phase of a simulation: neurons keep what `Dynamics.next_phase` returns, all else starts
        anew."""
        kept = {name: self.neurons[name].next_phase(state) for name, state in self.states.items()}
        self.states = {name: state for name, state in kept.items() if state is not None}
        self.sums = {}

    def hook(self, stream: Stream) -> Hook:
        """For `walk`, with one stream."""
        return lambda node, args: [self(node, stream)]

    def __call__(self, node: Node, stream: Stream) -> Any:
        """The value of a moving node, (t·B, …), from the values in a stream whose sizes are those of one step."""
        if node.name in self.neurons:
            return self._fire(node, stream.env[node.refs[0]])
        if node.role is Role.SYNAPSE and self.whole.isdisjoint(node.refs):
            return call(node.target, *self._arguments(node, stream))
        return self._difference(node, stream)

    def _arguments(self, node: Node, stream: Stream) -> tuple[Any, Any]:
        """The node's arguments for all steps of the block at once."""
        if self.steps == 1:
            return stream.arguments(node)
        env = {
            ref: stream.env[ref]
            if ref in self.moving
            else repeat(stream.env[ref], self.steps, place_of(self.graph, ref))
            for ref in node.refs
        }
        sizes = {key: timed(key, value, self.steps) for key, value in stream.sizes.items()}
        return Stream(env, stream.tensors, sizes).arguments(node)

    def _fire(self, node: Node, z: Tensor) -> Tensor:
        place = node.batch_dim or 0
        moves = node.refs[0] in self.moving
        over = unfold(z, self.steps, place) if moves else z.expand(self.steps, *z.shape)
        state, current, spikes = self.neurons[node.name].advance(self.states.get(node.name), over, self.t)
        self.states[node.name] = state
        if self.watch is not None:
            self.watch(node.name, current, spikes, self.read)
        return fold(current, place)

    def _difference(self, node: Node, stream: Stream) -> Any:
        """n · f(mean of the n inputs so far), less the same of the step before, for every step n of the block."""
        moving = [ref for ref in dict.fromkeys(node.refs) if ref in self.moving]
        totals, before = self.sums.get(node.name, ({}, None))
        parts = {ref: split(stream.env[ref], self.steps, place_of(self.graph, ref)) for ref in moving}
        means: list[dict[str, Any]] = []
        for step in range(self.steps):
            for ref in moving:
                now = parts[ref][step]
                totals[ref] = now if ref not in totals else _added(totals[ref], now)
            n = self.t + step + 1
            means.append({ref: _over(total, n) for ref, total in totals.items()})
        place = place_of(self.graph, node.name)
        if node.reason == ACROSS_BATCH:
            one = [Stream({**stream.env, **mean}, stream.tensors, stream.sizes) for mean in means]
            values = [call(node.target, *each.arguments(node)) for each in one]
        else:
            joined = {ref: join([mean[ref] for mean in means], place_of(self.graph, ref)) for ref in moving}
            at_means = Stream({**stream.env, **joined}, stream.tensors, stream.sizes)
            values = split(call(node.target, *self._arguments(node, at_means)), self.steps, place)
        if not all(_adds(leaf) for leaf in leaves(values[0])):
            self.whole.add(node.name)
        given: list[Any] = []
        for step, value in enumerate(values):
            now = map_tree(lambda leaf, n=self.t + step + 1: leaf * n if _adds(leaf) else leaf, value)
            given.append(now if before is None else _added(now, before, -1))
            before = now
        self.sums[node.name] = totals, before
        return join(given, place)


def over_time(
    net: Network, env: dict[str, Any], neurons: Mapping[str, Dynamics], simulation: Simulation, *, engine: str,
    chunk: int | None = None, record: bool = False, every_step: bool = False, watch: Watch | None = None,
) -> Run:  # fmt: skip
    """Run a network whose neurons have a state. env: inputs by name, a tensor or `Steps`. chunk: time-steps of a block
    (default: what stays in the cache).

    record: keep every spike (T, B, …). every_step: the logits after each step, the mean of the output so far,
    (T, B, …), instead of those after the last. watch: called for every layer of neurons and block of steps.
    """
    given = {name: x.x for name, x in env.items() if isinstance(x, Steps)}
    graph, tensors, moving = net.graph, net.tensors(), changing(net.graph, neurons, given)
    sizes = graph.sizes(env)
    still = [node for node in graph.nodes if node.name not in moving]
    nodes = [node for node in graph.nodes if node.name in moving]
    outputs = tuple(dict.fromkeys(graph.outputs))  # an output may be returned under several names
    first = Stream({name: x for name, x in env.items() if name not in given}, tensors, sizes)
    shown, fixed = ([name for name in outputs if (name in moving) is changes] for changes in (True, False))
    needed = [ref for node in nodes for ref in node.refs if ref not in moving]
    walk(Schedule.of(still, [*needed, *fixed]), [first])
    schedule = Schedule.of(nodes, shown, seeds=(*first.env, *given))
    trains: dict[str, list[Tensor]] = {name: [] for name in neurons}

    def keep(name: str, current: Tensor, spikes: Tensor, read: bool) -> None:
        if read:
            trains[name].append(spikes)

    block = Block(graph, neurons, moving, watch=keep if record else watch)
    # A neuron that looks ahead is given what it must see, however small the blocks.
    size = max(
        chunk or _chunk(nodes, sizes, next(iter(env.values()))), 1, *(neuron.lookahead for neuron in neurons.values())
    )
    totals: dict[str, Any] = {}
    history: dict[str, list[Any]] = {name: [] for name in shown}
    begin = simulation.T - (simulation.read or simulation.T)

    def add(name: str, now: Any, done: int) -> None:
        totals[name] = now if done <= begin + 1 or name not in totals else _added(totals[name], now)
        if every_step:
            history[name].append(_over(totals[name], max(1, done - begin)))

    def phase(T: int, *, read: bool) -> None:
        block.read = read
        for start in range(0, T, size):
            block.t, block.steps = start, min(size, T - start)
            now = {name: fold(x[start : start + block.steps], 0) for name, x in given.items()}
            stream = Stream({**first.env, **now}, tensors, sizes)
            walk(schedule, [stream], {node.name: block.hook(stream) for node in nodes})
            for name in shown if read else ():
                for step, now in enumerate(split(stream.env[name], block.steps, place_of(graph, name)), start + 1):
                    add(name, now, step)

    if simulation.probe:
        phase(simulation.probe, read=False)
        block.next_phase()
    phase(simulation.T, read=True)
    values = {name: _over(total, simulation.T - begin) for name, total in totals.items()}
    values |= {name: first.env[name] for name in fixed}
    if every_step:
        values = {name: torch.stack(history.get(name, [value] * simulation.T)) for name, value in values.items()}
    logits = graph.collect(values, sizes)
    if not record:
        return Run(logits, simulation.T, engine)
    layer = {name: graph.by_name[name].layer for name in neurons}
    spikes = {name: torch.cat(train) for name, train in trains.items() if train}
    return Run(
        logits, simulation.T, engine,
        counts={layer[name]: train.sum(0) for name, train in spikes.items()},
        spikes={layer[name]: _whole(train, neurons[name]) for name, train in spikes.items()},
        sent={layer[name]: train.abs().sum(0) for name, train in spikes.items()},
    )  # fmt: skip


def _chunk(nodes: Sequence[Node], sizes: Mapping[str, int], x: Tensor) -> int:
    """The most steps of a block whose largest tensor stays in the cache, at least one."""
    largest = max((elements(node.shape, sizes) for node in nodes), default=1) * x.shape[0]
    room = CACHED if x.device.type == "cpu" else LARGEST
    return max(room // max(1, largest), 1)


def _whole(train: Tensor, neuron: Dynamics) -> Tensor:
    """Spikes as bool, or as whole numbers where they have a sign or several come in one step."""
    if neuron.largest > 1 or neuron.takes_back:
        return train.to(torch.int8 if neuron.largest < 128 else torch.int32)
    return train.bool()


def _adds(value: Any) -> bool:
    """Whether a value has a mean over time."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _added(total: Any, value: Any, sign: int = 1) -> Any:
    """total + value, or total − value, leaf by leaf; a leaf without a mean takes the value of the latest step."""
    rest = iter(list(leaves(value)))

    def one(before: Any) -> Any:
        now = next(rest)
        if sign < 0:
            return before - now if _adds(before) else before
        return before + now if _adds(before) else now

    return map_tree(one, total)


def _over(total: Any, steps: int) -> Any:
    return map_tree(lambda leaf: leaf / steps if _adds(leaf) else leaf, total)
