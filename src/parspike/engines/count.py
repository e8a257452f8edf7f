"""One pass over spike counts: cost independent of T.

Synapses are linear and only the time-mean of its input matters to a neuron, so the counts of one layer give
those of the next (method.md, facts beyond the paper).

An activation that falls and then rises stands in the graph as right(z) + left(−z) + lowest, two layers of neurons
(graph/rewrite.py). Where nobody asks for their counts, `neurons.joined` computes the sum in one look-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from parspike.engines.base import Network, Run, recorded
from parspike.graph import Graph, Node, Schedule, Stream, walk
from parspike.graph.ir import Ref
from parspike.neurons import joined

__all__ = ["Pass", "count"]


@dataclass(frozen=True)
class Pass:
    """How a graph runs in one pass.

    schedule: every node. short: the same with every pair of neurons in one node. pairs: by the name of that node, the
    right and the left neurons and what is added to their sum.
    """

    schedule: Schedule
    short: Schedule
    pairs: Mapping[str, tuple[str, str, float]]

    @classmethod
    def of(cls, graph: Graph, spiking: Mapping[str, Any]) -> Pass:
        """Find the pairs among the spiking nodes of a graph."""
        readers = graph.consumers()

        def only(node: Node) -> bool:
            return len(readers[node.name]) == 1 and node.name not in graph.outputs

        pairs: dict[str, tuple[str, str, float]] = {}
        nodes = {node.name: node for node in graph.nodes}
        for both in graph.nodes:
            if both.target != "aten.add.Tensor" or both.kwargs or len(both.refs) != 2:
                continue
            if not spiking.keys() >= set(both.refs):
                continue
            right, left = (graph.by_name[name] for name in both.refs)
            mirrored = graph.by_name.get(left.refs[0])
            if (
                mirrored is None
                or mirrored.target != "aten.neg.default"
                or mirrored.refs != right.refs
                or right.name == left.name
            ):
                continue
            if not all(map(only, (right, left, mirrored))):
                continue
            whole, lowest = both, 0.0
            after = readers[both.name][0] if only(both) else None
            if after is not None and after.target == "aten.add.Scalar" and not after.kwargs and len(after.args) == 2:
                whole, lowest = after, float(after.args[1])
            for gone in (right, left, mirrored, both):
                del nodes[gone.name]
            nodes[whole.name] = replace(whole, args=(Ref(right.refs[0]),))
            pairs[whole.name] = right.name, left.name, lowest
        return cls(Schedule.of(graph.nodes, graph.outputs), Schedule.of(list(nodes.values()), graph.outputs), pairs)


def count(net: Network, env: dict[str, Any], how: Pass, *, record: bool = False) -> Run:
    """One pass for the inputs in `env`."""
    neurons = net.neurons()
    kept: dict[str, Tensor] = {}

    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        neuron = neurons[node.name]
        if not record:
            return [neuron(args[0])]
        kept[node.name] = neuron.count(args[0])
        return [neuron.value(kept[node.name])]

    def fire_both(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        right, left, lowest = how.pairs[node.name]
        return [joined(neurons[right], neurons[left], lowest, args[0])]

    stream = Stream(env, net.tensors(), net.graph.sizes(env))
    at = dict.fromkeys(neurons, fire) | ({} if record else dict.fromkeys(how.pairs, fire_both))
    walk(how.schedule if record else how.short, [stream], at)
    return recorded(net.graph.collect(stream.env), net, "count", kept)
