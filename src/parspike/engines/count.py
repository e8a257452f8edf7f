"""One pass over spike counts: cost independent of T.

Synapses are linear and only the time-mean of its input matters to a neuron, so the counts of one layer give
those of the next (method.md, facts beyond the paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from parspike.engines.base import Network, Run, recorded
from parspike.graph import Node, Schedule, Stream, walk
from parspike.neurons import ParallelNeuron

__all__ = ["count", "record_count"]


def count(net: Network, env: dict[str, Any], schedule: Schedule) -> Any:
    """The network's output for the inputs in `env`."""

    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        return [neurons[node.name](args[0])]

    neurons: Mapping[str, ParallelNeuron] = net.neurons()
    stream = Stream(env, net.tensors(), net.graph.sizes(env))
    walk(schedule, [stream], dict.fromkeys(neurons, fire))
    return net.graph.collect(stream.env)


def record_count(net: Network, env: dict[str, Any], schedule: Schedule) -> Run:
    """The same, with every count kept."""
    counts: dict[str, Tensor] = {}

    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        neuron = neurons[node.name]
        counts[node.name] = neuron.count(args[0])
        return [neuron.value(counts[node.name])]

    neurons = net.neurons()
    stream = Stream(env, net.tensors(), net.graph.sizes(env))
    walk(schedule, [stream], dict.fromkeys(neurons, fire))
    return recorded(net.graph.collect(stream.env), net, "count", counts)
