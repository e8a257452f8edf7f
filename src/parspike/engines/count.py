"""One pass over spike counts: cost independent of T.

Synapses are linear and only the time-mean of its input matters to a neuron, so the counts of one layer give
those of the next (method.md, facts beyond the paper).

An activation that falls and then rises stands in the graph as right(z) + left(−z) + lowest, two layers of neurons
(graph/rewrite.py). If the caller does not record counts, `neurons.joined` computes their sum in one look-up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from parspike.engines.base import PACKED, Network, Record, Run, recorded
from parspike.graph import Graph, Node, Schedule, Stream, walk
from parspike.graph.encode import halves
from parspike.graph.ir import Hook, Ref
from parspike.graph.ops import FRESH, TABLE, call, call_over
from parspike.neurons import PackedTrains, joined
from parspike.neurons.pieces import compiled_for_cpu
from parspike.neurons.quantised import Line, lines_at

__all__ = ["Pass", "count", "counted"]


@dataclass(frozen=True)
class Pass:
    """How a graph runs in one pass.

    schedule: every node. short: the same with every pair of neurons in one node. pairs: by the name of that node, the
    right and the left neurons and what is added to their sum. over: of nodes of `short` that may write their result
    over an argument, which nobody else reads, its place. biased: convolutions with a bias that only neurons and
    elementwise operators read: a compiler adds it with what they do, where the kernel of the CPU writes it out first.
    """

    schedule: Schedule
    short: Schedule
    pairs: Mapping[str, tuple[str, str, float]]
    over: Mapping[str, int]
    biased: frozenset[str]

    @classmethod
    def of(cls, graph: Graph, spiking: Collection[str]) -> Pass:
        """Find the pairs among the spiking nodes of a graph."""
        readers = graph.consumers()
        nodes = {node.name: node for node in graph.nodes}
        pairs: dict[str, tuple[str, str, float]] = {}
        for both in graph.nodes:
            parts = halves(graph, both, spiking)
            if parts is None or not all(_read_once(graph, readers, part) for part in parts):
                continue
            right, mirrored, left = parts
            last, lowest = both, 0.0
            after = readers[both.name][0] if _read_once(graph, readers, both) else both
            if after.target == "aten.add.Scalar" and len(after.args) == 2 and not after.kwargs:
                last, lowest = after, float(after.args[1])
            for gone in (right, mirrored, left, both):
                del nodes[gone.name]
            nodes[last.name] = replace(last, args=(Ref(right.refs[0]),))
            pairs[last.name] = right.name, left.name, lowest
        whole, short = (Schedule.of(list(part), graph.outputs) for part in (graph.nodes, nodes.values()))
        over = _over([*nodes.values()], graph.outputs, {*spiking, *pairs})
        return cls(whole, short, pairs, over, _biased([*nodes.values()], graph.outputs, {*spiking, *pairs}))


def _biased(nodes: Sequence[Node], outputs: Collection[str], firing: Collection[str]) -> frozenset[str]:
    """The convolutions with a bias that nothing but neurons and elementwise operators reads."""
    elsewhere = {*outputs}
    for node in nodes:
        if node.name not in firing and TABLE[node.target].out is None:
            elsewhere.update(node.refs)
    return frozenset(
        node.name
        for node in nodes
        if node.target.startswith("aten.conv") and not node.kwargs and len(node.args) > 2 and node.args[2] is not None
        and node.name not in elsewhere
    )  # fmt: skip


def _over(nodes: Sequence[Node], outputs: Collection[str], firing: Collection[str]) -> dict[str, int]:
    """By node, the place of an argument of its shape that it may overwrite: it reads that once and last, and neither
    that nor what others made of it shares its memory."""
    fresh = {node.name for node in nodes if node.target in FRESH or node.name in firing}
    shapes = {node.name: node.shape for node in nodes if node.name in fresh and node.name not in outputs}
    last = {name: node.name for node in nodes for name in node.refs}
    lent = {name for node in nodes if node.name not in fresh for name in node.refs if last[name] != node.name}
    found: dict[str, int] = {}
    for node in nodes:
        if node.name not in firing and (TABLE[node.target].out is None or node.kwargs):
            continue
        for place, arg in enumerate(node.args[:1] if node.name in firing else node.args):
            if not isinstance(arg, Ref) or shapes.get(arg.name) != node.shape or arg.name in lent:
                continue
            if last[arg.name] == node.name and node.refs.count(arg.name) == 1:
                found.setdefault(node.name, place)
    return found


def _read_once(graph: Graph, readers: Mapping[str, Sequence[Node]], node: Node) -> bool:
    return len(readers[node.name]) == 1 and node.name not in graph.outputs


def count(net: Network, env: dict[str, Any], how: Pass, *, record: Record = False) -> Run:
    """One pass for the inputs in `env`."""
    logits, counts = counted(net, env, how, record=record)
    return recorded(logits, net, "count", counts)


def counted(
    net: Network, env: dict[str, Any], how: Pass, *, record: Record = False
) -> tuple[Any, dict[str, Tensor | PackedTrains] | None]:
    """The output, and what is kept by node: counts, or with record="packed" the trains that each neuron writes at once.
    What `count` makes a run of, for compilers."""
    neurons = net.counting()
    kept: dict[str, Tensor | PackedTrains] = {}
    lines: dict[str, Line] = {}

    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        neuron = neurons[node.name]
        if node.name in lines:
            return [neuron.along(args[0], lines[node.name])]
        if not record:
            spare = node.name in how.over and not args[0].requires_grad
            return [neuron.over(args[0]) if spare else neuron(args[0])]
        if record == PACKED:
            value, kept[node.name] = neuron.emit(args[0])
            return [value]
        kept[node.name] = count = neuron.count(args[0])
        return [neuron.value(count)]

    def fire_both(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        right, left, lowest = how.pairs[node.name]
        spare = node.name in how.over and not args[0].requires_grad
        return [joined(neurons[right], neurons[left], lowest, args[0], over=spare)]

    def overwrite(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        return [call_over(node.target, args, how.over[node.name])]

    def beside(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        x, weight, bias, *rest = args
        made = call(node.target, (x, weight, None, *rest), {})
        if made.dtype is not bias.dtype:  # under autocast the kernel rounds once, behind the bias
            return [call(node.target, args, {})]
        return [made + bias.reshape(-1, *[1] * (made.dim() - 2))]

    stream = Stream(env, net.tensors(), net.graph.sizes(env))
    at: dict[str, Hook] = dict.fromkeys(neurons, fire)
    if not record and all(map(compiled_for_cpu, env.values())):
        made_of = {name: (neuron.levels, neuron.line()) for name, neuron in neurons.items()}
        lines = lines_at({name: (T, line) for name, (T, line) in made_of.items() if line is not None})
        at |= dict.fromkeys(how.biased, beside)
    if not record:
        at = dict.fromkeys(how.over, overwrite) | at | dict.fromkeys(how.pairs, fire_both)
    walk(how.schedule if record else how.short, [stream], at)
    return net.graph.collect(stream.env, stream.sizes), kept if record else None
