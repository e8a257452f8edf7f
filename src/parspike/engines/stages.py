"""Spike trains through every synapse, chunk of time by chunk of time.

A *stage* is what lies between one set of neurons and the next: it takes spike trains, turns them into currents,
and ends where a current is averaged over time: at a neuron (Λ_PRE of equation (8)), at an operator that is not
linear in time, at a value that several stages need and that is expensive to make twice, or at the output. A
stage runs with time in the batch, (t·B, …), for a chunk of time-steps at once, so memory does not grow
with T. With all steps in one chunk this is the paper's own run (`parallel`); with chunks of one step it is the
same network fed step by step, its state the charge collected so far (`serial`).
Values that do not change over time (a constant input up to its first neuron) are computed once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from parspike.engines.base import Network, Record, Run, kept_of, recorded
from parspike.engines.folded import fold, place_of, repeat, timed
from parspike.errors import OptionError
from parspike.graph import Graph, Role, Schedule, Stream, nested, walk
from parspike.graph.ir import elements
from parspike.graph.ops import TABLE
from parspike.neurons import PackedTrains

__all__ = ["Stages", "check_chunk", "parallel", "serial"]

CHUNK_ELEMENTS = 1 << 25
"""Default bound on the elements of the largest tensor of a stage, 128 MiB in float32."""


@dataclass(frozen=True)
class Stage:
    """The nodes that make one value from what is held: spike counts, and means over time."""

    schedule: Schedule
    seeds: tuple[str, ...]
    timed: bool


@dataclass(frozen=True)
class Stages:
    """How a graph with given spiking nodes runs over time.

    fires: the spiking nodes. held: values kept as one tensor (B, …), their mean over time; other values live inside a
    stage, as currents (t·B, …). ends: for every node to evaluate, in order, the values whose means it needs. stages:
    how to make each of those. dead: values to free after a node, since no later node reads them.
    """

    fires: frozenset[str]
    held: frozenset[str]
    ends: dict[str, tuple[str, ...]]
    stages: dict[str, Stage]
    dead: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, graph: Graph, spiking: Sequence[str], sorted_code: Collection[str]) -> Stages:
        """Sort the values of a graph. sorted_code: the spiking nodes of that code."""
        fires, inputs = frozenset(spiking), {i.name for i in graph.inputs}
        constant: set[str] = set()  # depends on input sizes alone, so it is made anew at every batch size
        timed: set[str] = set()
        for node in graph.nodes:
            if node.name in fires:
                timed.add(node.name)
            elif all(ref in constant for ref in node.refs):
                constant.add(node.name)
            elif any(ref in timed for ref in node.refs) and (
                node.role is Role.SYNAPSE or (node.role is Role.ORDER and nested(graph, node, sorted_code))
            ):
                timed.add(node.name)
        cut = _shared(graph, fires, timed)
        held = frozenset(inputs | cut | {node.name for node in graph.nodes if node.name not in timed | constant})
        ends: dict[str, tuple[str, ...]] = {}
        for node in graph.nodes:
            if node.name in fires:
                ends[node.name] = node.refs[:1]
            elif node.name in held:
                jumps = node.name not in cut and any(ref in timed for ref in node.refs)
                ends[node.name] = tuple(dict.fromkeys(node.refs)) if jumps else (node.name,)
        wanted = dict.fromkeys((*(name for names in ends.values() for name in names), *graph.outputs))
        stages = {name: _stage(graph, name, fires, held, timed) for name in wanted}
        return cls(fires, held, ends, stages, _dead(graph, ends, stages, fires | held))


def _stage(graph: Graph, target: str, fires: frozenset[str], held: frozenset[str], timed: set[str]) -> Stage:
    needed: set[str] = set()
    seeds: set[str] = set()
    todo = [target]
    while todo:
        name = todo.pop()
        if name not in graph.by_name or (name != target and (name in held or name in fires)):
            seeds.add(name)
        elif name not in needed:
            needed.add(name)
            todo.extend(graph.by_name[name].refs)
    nodes = [node for node in graph.nodes if node.name in needed]
    return Stage(Schedule.of(nodes, [target]), tuple(sorted(seeds)), any(seed in timed for seed in seeds))


def _dead(
    graph: Graph, ends: dict[str, tuple[str, ...]], stages: dict[str, Stage], held: frozenset[str]
) -> dict[str, tuple[str, ...]]:
    """For every node, the held values that no later node needs."""
    last: dict[str, str] = {}
    for name, targets in ends.items():
        for target in targets:
            for value in (target,) if target in held and target != name else stages[target].seeds:
                last[value] = name
    for target in graph.outputs:
        for value in (target, *stages[target].seeds):
            last.pop(value, None)
    dead: dict[str, list[str]] = {}
    for value, name in last.items():
        dead.setdefault(name, []).append(value)
    return {name: tuple(values) for name, values in dead.items()}


def _shared(graph: Graph, fires: frozenset[str], timed: set[str]) -> set[str]:
    """Currents behind a weighted synapse that more than one node reads."""
    heavy: set[str] = set()
    cut: set[str] = set()
    readers = graph.consumers()

    def tuple_valued(name: str) -> bool:
        return bool(readers[name]) and all(node.target == "getitem" for node in readers[name])

    for node in graph.nodes:
        if node.name not in timed or node.name in fires:
            continue
        ways = sum(len(readers[reader.name]) if tuple_valued(reader.name) else 1 for reader in readers[node.name])
        if TABLE[node.target].weighted or any(ref in heavy for ref in node.refs):
            (cut if ways > 1 and not tuple_valued(node.name) else heavy).add(node.name)
    return cut


def parallel(
    net: Network, env: dict[str, Any], stages: Stages, *, chunk: int | None = None, record: Record = False
) -> Run:
    """The paper's own run: time in the batch, as many steps at once as `chunk` (default: what fits)."""
    return _run(net, env, stages, chunk, "parallel", record)


def serial(net: Network, env: dict[str, Any], stages: Stages, *, record: Record = False) -> Run:
    """The same trains, one step at a time."""
    return _run(net, env, stages, 1, "serial", record)


def check_chunk(chunk: object) -> None:
    """Raise `OptionError` unless this is a number of time-steps, or None (the engine chooses)."""
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise OptionError(f"chunk must be a number of time-steps of at least 1, got {chunk!r}")


def _run(net: Network, env: dict[str, Any], stages: Stages, chunk: int | None, engine: str, record: Record) -> Run:
    graph, neurons, tensors = net.graph, net.counting(), net.tensors()
    sizes = graph.sizes(env)
    batch = next(iter(env.values())).shape[0]
    means: dict[str, Any] = dict(env)
    counts: dict[str, Tensor] = {}
    kept: dict[str, Tensor | PackedTrains] = {}

    def mean(name: str) -> Any:
        """A value's average over time (B, …), its stage run chunk by chunk."""
        if name in means:
            return means[name]
        if name in counts:
            return neurons[name].value(counts[name])
        stage = stages.stages[name]
        if not stage.timed:
            stream = Stream({seed: means[seed] for seed in stage.seeds}, tensors, sizes)
            walk(stage.schedule, [stream])
            return stream.env[name]
        size = min(net.T, _chunk(stage.schedule, sizes, batch) if chunk is None else chunk)
        total: Any = 0
        for start in range(0, net.T, size):
            stop = min(start + size, net.T)
            stream = Stream({}, tensors, {key: timed(key, value, stop - start) for key, value in sizes.items()})
            for seed in stage.seeds:
                if seed in counts:
                    stream.env[seed] = fold(
                        neurons[seed].current(counts[seed], start, stop, net.T), graph.by_name[seed].batch_dim or 0
                    )
                else:
                    stream.env[seed] = repeat(means[seed], stop - start, place_of(graph, seed))
            walk(stage.schedule, [stream])
            place = place_of(graph, name)
            value = stream.env[name]
            total = total + (
                value * (stop - start) if place is None else value.unflatten(place, (stop - start, -1)).sum(place)
            )
        return total / net.T

    for name, targets in stages.ends.items():
        values = {target: mean(target) for target in targets}
        if name in stages.fires:
            counts[name] = neurons[name].count(values[targets[0]])
            if record:
                kept[name] = kept_of(neurons[name], counts[name], record)
        elif targets == (name,):
            means[name] = values[name]
        else:
            stream = Stream(values, tensors, sizes)
            walk(Schedule.of([graph.by_name[name]], [name]), [stream])
            means[name] = stream.env[name]
        for value in stages.dead.get(name, ()):
            means.pop(value, None)
            counts.pop(value, None)
    logits = graph.collect({name: mean(name) for name in graph.outputs}, sizes)
    return recorded(logits, net, engine, kept if record else None)


def _chunk(schedule: Schedule, sizes: Mapping[str, int], batch: int) -> int:
    largest = max((elements(node.shape, sizes) for node, _ in schedule.steps), default=1)
    return max(1, CHUNK_ELEMENTS // max(1, largest * batch))
