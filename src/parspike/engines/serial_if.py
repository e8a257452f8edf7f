"""The serial IF twin: the same network with soft-reset integrate-and-fire neurons, equation (1) with λ = 1.

v(0) = θ/2, thresholds as they are, no calibrated shift or amplitude: what parallel conversion is compared with.
Operators that are not linear in time (max-pool, analog ones, staircases that no IF neuron has) emit at step t the
increase of t · f(mean of the inputs so far), so that their average output is f of the average input. Whole numbers
and masks have no mean: their value is that of the last step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parspike.engines.base import Network, Run
from parspike.graph import Node, Role, Schedule, Stream, leaves, map_tree, walk
from parspike.graph.ops import call
from parspike.neurons import ParallelNeuron, soft_reset_step

__all__ = ["serial_if"]


def serial_if(net: Network, env: dict[str, Any], *, record: bool = False) -> Run:
    """T steps through the whole network, one after the other. record: keep every spike (T, B, …)."""
    graph, tensors = net.graph, net.tensors()
    neurons = {name: neuron for name, neuron in net.neurons().items() if isinstance(neuron, ParallelNeuron)}
    sizes = graph.sizes(env)
    changing = _changing(net)
    still = [node for node in graph.nodes if node.name not in changing]
    moving = [node for node in graph.nodes if node.name in changing]
    first = Stream(dict(env), tensors, sizes)
    needed = [ref for node in moving for ref in node.refs if ref not in changing] + [
        name for name in graph.outputs if name not in changing
    ]
    walk(Schedule.of(still, needed), [first])
    schedule = Schedule.of(moving, [n for n in graph.outputs if n in changing], seeds=tuple(first.env))
    state: dict[str, Any] = {}
    whole: set[str] = set()
    spikes: dict[str, list[Tensor]] = {name: [] for name in neurons}

    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        neuron, z = neurons[node.name], args[0]
        v = state[node.name] if node.name in state else (neuron.v_threshold / 2).expand_as(z)
        spike, state[node.name] = soft_reset_step(v, neuron.above(z), neuron.v_threshold)
        if record:
            spikes[node.name].append(spike)
        current = spike * neuron.v_threshold
        return [current + neuron.offset if neuron.offsets else current]

    def difference(node: Node, args: tuple[Any, ...]) -> list[Any]:
        kwargs = stream.arguments(node)[1]
        if node.role is Role.SYNAPSE and whole.isdisjoint(node.refs):
            return [call(node.target, args, kwargs)]
        total, before, steps = state.get(node.name, (None, None, 0))
        steps += 1
        total = list(leaves(args)) if total is None else [_plus(a, b) for a, b in zip(total, leaves(args), strict=True)]
        means = iter([value / steps if _adds(value) else value for value in total])
        now = call(node.target, map_tree(lambda _: next(means), args), kwargs)
        if not all(_adds(value) for value in leaves(now)):
            whole.add(node.name)
        now = map_tree(lambda value: value * steps if _adds(value) else value, now)
        state[node.name] = (total, now, steps)
        if before is None:
            return [now]
        old = iter(list(leaves(before)))
        return [map_tree(lambda value: _minus(value, next(old)), now)]

    at = {node.name: fire if node.name in neurons else difference for node in moving}
    totals: dict[str, Tensor] = {}
    for _ in range(net.T):
        stream = Stream(dict(first.env), tensors, sizes)
        walk(schedule, [stream], at)
        for name in dict.fromkeys(graph.outputs):  # an output may be returned under several names
            if name in changing:
                totals[name] = _plus(totals[name], stream.env[name]) if name in totals else stream.env[name]
    outputs = {name: first.env[name] for name in graph.outputs if name not in changing}
    outputs |= {name: total / net.T if _adds(total) else total for name, total in totals.items()}
    if not record:
        return Run(graph.collect(outputs), net.T, "serial-if")
    trains = {graph.by_name[name].layer: torch.stack(train) for name, train in spikes.items() if train}
    counts = {graph.by_name[name].layer: torch.stack(train).sum(0).to(neurons[name].v_threshold.dtype)
              for name, train in spikes.items() if train}  # fmt: skip
    return Run(graph.collect(outputs), net.T, "serial-if", counts=counts, spikes=trains, sent=counts)


def _changing(net: Network) -> set[str]:
    changing: set[str] = set()
    for node in net.graph.nodes:
        if node.name in net.neurons() or any(ref in changing for ref in node.refs):
            changing.add(node.name)
    return changing


def _adds(value: Any) -> bool:
    """Whether a value has a mean over time."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _plus(total: Any, value: Any) -> Any:
    return total + value if _adds(value) else value


def _minus(value: Any, before: Any) -> Any:
    return value - before if _adds(value) else value
