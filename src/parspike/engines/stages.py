"""Spike trains through every synapse, chunk of time by chunk of time.

A *stage* is what lies between one set of neurons and the next: it takes spike trains, turns them into currents,
and ends where a current is averaged over time: at a neuron (Λ_PRE of equation (8)), at an operator that is not
linear in time, at a value that several stages need and that is expensive to make twice, or at the output. A
stage runs with time folded into the batch, (t·B, …), for a chunk of time-steps at once, so memory does not grow
with T. With all steps in one chunk this is the paper's own run (`parallel`); with chunks of one step it is the
same network fed step by step, its state the charge collected so far (`serial`).
Values that do not change over time (a constant input up to its first neuron) are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from parspike.engines.base import Network, Run, recorded
from parspike.errors import OptionError
from parspike.graph import Graph, Node, Role, Schedule, Stream, leaves, walk
from parspike.graph.ops import TABLE

__all__ = ["Stages", "parallel", "serial"]

CHUNK_ELEMENTS = 1 << 25
"""Default bound on the elements of the largest tensor of a stage, 128 MiB in float32."""


@dataclass(frozen=True)
class Stages:
    """How values of a graph behave over time, for a given set of spiking nodes.

    constant: depends on input sizes alone, made anew at every batch size. mean: held as one tensor (B, …), its
    average over time. Other nodes live inside a stage, as currents (t·B, …).
    """

    constant: frozenset[str]
    mean: frozenset[str]
    temporal: frozenset[str]

    @classmethod
    def of(cls, graph: Graph, spiking: Sequence[str]) -> Stages:
        """Sort the values of a graph."""
        fires, inputs = set(spiking), {i.name for i in graph.inputs}
        constant: set[str] = set()
        temporal: set[str] = set()  # changes from step to step, neurons' own trains included
        ends: set[str] = set()  # temporal input, but held as its mean
        for node in graph.nodes:
            refs = node.refs
            if node.name in fires:
                temporal.add(node.name)
            elif all(ref in constant for ref in refs) and not any(ref in inputs for ref in refs):
                constant.add(node.name)
            elif any(ref in temporal for ref in refs):
                if node.role is Role.SYNAPSE or (node.role is Role.ORDER and _nested(graph, node, fires)):
                    temporal.add(node.name)
                else:
                    ends.add(node.name)
        cut = _shared(graph, fires, temporal)
        means = inputs | ends | cut | {n.name for n in graph.nodes if n.name not in temporal | constant}
        return cls(frozenset(constant), frozenset(means), frozenset(temporal - cut))

    def segment(self, graph: Graph, target: str, fires: set[str]) -> tuple[Schedule, tuple[str, ...]]:
        """The nodes to run for `target`, and the values they start from."""
        needed, seeds, todo = set(), set(), [target]
        first = True
        while todo:
            name = todo.pop()
            node = graph.by_name.get(name)
            if not first and (node is None or name in self.mean or name in fires):
                seeds.add(name)
            elif node is not None and name not in needed:
                needed.add(name)
                todo.extend(node.refs)
            first = False
        nodes = [node for node in graph.nodes if node.name in needed]
        return Schedule.of(nodes, [target], seeds=()), tuple(sorted(seeds))


def _nested(graph: Graph, node: Node, fires: set[str]) -> bool:
    """Whether the trains that a maximum compares are nested: of neurons that share thresholds and a scale.

    True where the way back to one neuron layer passes only operators that act on every pixel of a channel alike.
    """
    name = node.refs[0]
    while name not in fires:
        before = graph.by_name.get(name)
        same = ("parspike.scale_shift", *[t for t, row in TABLE.items() if row.role is Role.ORDER])
        if before is None or before.target not in same:
            return False
        name = before.refs[0]
    return True


def _shared(graph: Graph, fires: set[str], temporal: set[str]) -> set[str]:
    """Currents behind a weighted synapse that more than one node reads."""
    heavy: set[str] = set()
    cut: set[str] = set()
    readers = graph.consumers()

    def tuple_valued(name: str) -> bool:
        return bool(readers[name]) and all(node.target == "getitem" for node in readers[name])

    for node in graph.nodes:
        if node.name not in temporal or node.name in fires:
            continue
        ways = sum(len(readers[reader.name]) if tuple_valued(reader.name) else 1 for reader in readers[node.name])
        if TABLE[node.target].weighted or any(ref in heavy for ref in node.refs):
            (cut if ways > 1 and not tuple_valued(node.name) else heavy).add(node.name)
    return cut


def parallel(net: Network, env: dict[str, Any], stages: Stages, chunk: int | None = None) -> Run:
    """The paper's own run: time folded into the batch, as many steps at once as `chunk` (default: what fits)."""
    return _run(net, env, stages, chunk, "parallel")


def serial(net: Network, env: dict[str, Any], stages: Stages) -> Run:
    """The same trains, one step at a time."""
    return _run(net, env, stages, 1, "serial")


def _run(net: Network, env: dict[str, Any], stages: Stages, chunk: int | None, engine: str) -> Run:
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise OptionError(f"chunk must be a number of time-steps of at least 1, got {chunk!r}")
    graph, neurons, tensors = net.graph, net.neurons(), net.tensors()
    fires = set(neurons)
    sizes = graph.sizes(env)
    batch = next(iter(env.values())).shape[0]
    means, counts = dict(env), {}

    def steps_for(nodes: Schedule) -> int:
        if chunk is not None:
            return min(chunk, net.T)
        largest = max((_elements(node) for node, _ in nodes.steps), default=1)
        return max(1, min(net.T, CHUNK_ELEMENTS // max(1, largest * batch)))

    def once(name: str) -> Any:
        """A value (B, …) from values that do not change over time."""
        schedule, seeds = stages.segment(graph, name, fires)
        stream = Stream({seed: means[seed] for seed in seeds}, tensors, sizes)
        walk(schedule, [stream])
        return stream.env[name]

    def mean(name: str) -> Any:
        """A value's average over time (B, …), its segment run chunk by chunk."""
        if name in means:
            return means[name]
        if name in fires:
            return neurons[name].value(counts[name])
        if name not in stages.temporal and name not in stages.mean:
            return once(name)
        schedule, seeds = stages.segment(graph, name, fires)
        total: Tensor | None = None
        size = steps_for(schedule)
        for start in range(0, net.T, size):
            stop = min(start + size, net.T)
            stream = Stream({}, tensors, {key: _timed(key, value, stop - start) for key, value in sizes.items()})
            for seed in seeds:
                if seed in fires:
                    stream.env[seed] = neurons[seed].current(counts[seed], start, stop).flatten(0, 1)
                else:
                    stream.env[seed] = _repeat(means[seed], stop - start)
            walk(schedule, [stream])
            part = stream.env[name].unflatten(0, (stop - start, batch)).sum(0)
            total = part if total is None else total + part
        if total is None:
            raise OptionError("T must be at least 1")
        return total / net.T

    for node in graph.nodes:
        name = node.name
        if name in fires:
            counts[name] = neurons[name].count(mean(node.refs[0]))
        elif name in stages.mean:
            if any(ref in stages.temporal for ref in node.refs) and node.role is not Role.SYNAPSE:
                held = {ref: mean(ref) for ref in dict.fromkeys(node.refs)}
                stream = Stream(held, tensors, sizes)
                walk(Schedule.of([node], [name]), [stream])
                means[name] = stream.env[name]
            elif any(ref in stages.temporal for ref in node.refs):
                means[name] = mean(name)
            else:
                means[name] = once(name)
    outputs = {name: mean(name) for name in graph.outputs}
    return recorded(graph.collect(outputs), net, engine, counts)


def _elements(node: Node) -> int:
    product = 1
    for dim in node.shape:
        product *= dim if isinstance(dim, int) else 1
    return product


def _timed(symbol: str, value: int, steps: int) -> int:
    return value * steps if symbol == "batch" else value


def _repeat(value: Any, steps: int) -> Any:
    if isinstance(value, Tensor):
        return value.expand(steps, *value.shape).flatten(0, 1)
    return type(value)([_repeat(item, steps) for item in leaves(value)])
