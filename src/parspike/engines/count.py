"""One pass over spike counts: cost independent of T.

Synapses are linear and only the time-mean of its input matters to a neuron, so the counts of one layer give
those of the next (method.md, facts beyond the paper).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parspike.engines.base import Network, Run, recorded
from parspike.graph import Node, Schedule, Stream, walk

__all__ = ["count"]


def count(net: Network, env: dict[str, Any], schedule: Schedule, *, record: bool = False) -> Run:
    """One pass for the inputs in `env`."""
    neurons = net.neurons()
    kept: dict[str, Tensor] = {}

    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        neuron = neurons[node.name]
        if not record:
            return [neuron(args[0])]
        kept[node.name] = neuron.count(args[0])
        return [neuron.value(kept[node.name])]

    stream = Stream(env, net.tensors(), net.graph.sizes(env))
    walk(schedule, [stream], dict.fromkeys(neurons, fire))
    return recorded(net.graph.collect(stream.env), net, "count", kept)
