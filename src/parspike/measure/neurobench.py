"""The figures of NeuroBench by its names and rules, as its harness (neurobench 2.3.0) would count a step-by-step run.

What differs from `measure`: every synapse works at every time-step, also on an input that stays the same, so its
multiply-accumulates count T times; a weight of 0 and a value of 0 are no operation ("effective"); and a synapse counts
accumulates only where all that it reads at a step is 0, 1 or −1, so behind an average pool it multiplies.
Source: J. Yik et al., The neurobench framework for benchmarking neuromorphic computing algorithms and systems,
Nature Communications 2025; rules read in the package's metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parspike.calibrate.batches import bound, number_of
from parspike.calibrate.recipe import Progress
from parspike.engines import Steps
from parspike.errors import InputError, check_function
from parspike.graph import Node, Role, Schedule, Stream, map_tree, nested, walk, with_doubles
from parspike.graph.ops import TABLE, call
from parspike.graph.signature import Conv, adds_up, arguments
from parspike.measure.layers import batches_of, means_of
from parspike.measure.wires import role_of
from parspike.snn import SNN, check_converted

__all__ = ["NeuroBench", "neurobench"]


@dataclass(frozen=True)
class NeuroBench:
    """Figures by NeuroBench's names: operations of one sample, mean over the samples, in T time-steps.

    footprint: bytes of parameters and buffers. parameter_count: numbers in parameters. connection_sparsity: share of
    the weights of convolutions and linear layers that are 0. activation_sparsity: share of the neurons' outputs, over
    all time-steps, that are no spike. effective_macs, effective_acs: operations of non-zero weights on non-zero values.
    dense: all operations, zeros among them.
    """

    samples: int
    T: int
    footprint: int
    parameter_count: int
    connection_sparsity: float
    activation_sparsity: float
    effective_macs: float
    effective_acs: float
    dense: float

    def to_json(self) -> dict[str, Any]:
        """As the harness of NeuroBench names and nests them."""
        return {
            "footprint": self.footprint,
            "parameter_count": self.parameter_count,
            "connection_sparsity": self.connection_sparsity,
            "activation_sparsity": self.activation_sparsity,
            "synaptic_operations": {
                "Effective_MACs": self.effective_macs, "Effective_ACs": self.effective_acs, "Dense": self.dense,
            },
        }  # fmt: skip

    def __str__(self) -> str:
        flat = self.to_json()
        operations = flat.pop("synaptic_operations")
        lines = [f"By NeuroBench's rules, for one sample, mean over {self.samples:,}, T = {self.T}:"]
        for name, value in {**flat, **operations}.items():
            lines.append(
                f"  {name:<21}{value:,.4f}" if isinstance(value, float) and value <= 1 else f"  {name:<21}{value:,.0f}"
            )
        return "\n".join(lines)


@torch.no_grad()
def neurobench(
    snn: SNN, loader: Any, *, inputs: Callable[[Any], Any] | None = None, progress: Progress | None = None
) -> NeuroBench:
    """Count as NeuroBench does. loader, inputs, progress: as for `measure`. Takes about T runs of the network.

    A spike counts as 1, whatever it is worth to the synapse behind: the amplitude belongs to the weights. Values that
    are no spikes, behind an analog operator or a second synapse, are those of the step; an analog operator's is its
    value on the mean. Raises `InputError` where there is no batch or inputs do not fit.
    """
    check_converted(snn, "neurobench")
    check_function(progress, "progress")
    snn = with_doubles(snn)
    source = batches_of(snn, loader)
    total = number_of(source)
    counter, samples = _Counter(snn), 0
    for number, item in enumerate(source):
        place = f"batch {number} of the loader"
        env = snn.checked(bound(item, place, snn, inputs), place)
        counter.add(env, means_of(env, place))
        samples += next(iter(env.values())).shape[0]
        if progress:
            progress("", number + 1, total)
    if not samples:
        raise InputError("the loader is empty: give at least one batch of inputs")
    state = {**dict(snn.named_parameters()), **snn.state_dict(keep_vars=True)}
    return NeuroBench(
        samples,
        snn.T,
        footprint=sum(one.numel() * one.element_size() for one in state.values()),
        parameter_count=sum(one.numel() for one in snn.parameters()),
        connection_sparsity=counter.connection_sparsity(),
        activation_sparsity=1 - counter.fired / counter.outputs if counter.outputs else 0.0,
        effective_macs=counter.macs / samples,
        effective_acs=counter.acs / samples,
        dense=counter.dense / samples,
    )


class _Counter:
    """Walks batches, time-step by time-step. Of every value that comes from neurons two are kept, the current and, as
    far as only wires lie between, the spikes as 0 and 1."""

    def __init__(self, snn: SNN) -> None:
        self.snn, self.graph, self.neurons = snn, snn.graph, snn.neurons()
        self.tensors = snn.tensors()
        self.binary = {p: (t != 0).to(t.dtype) if t.dim() > 1 else torch.zeros_like(t) for p, t in self.tensors.items()}
        self.full = {p: torch.ones_like(t) if t.dim() > 1 else torch.zeros_like(t) for p, t in self.tensors.items()}
        sorted_code = [name for name, neuron in self.neurons.items() if neuron.label == "sorted"]
        self.nested = {n.name for n in self.graph.nodes if n.role is Role.ORDER and nested(self.graph, n, sorted_code)}
        self.varying = {i.name for i in self.graph.inputs}
        for node in self.graph.nodes:
            if any(ref in self.varying for ref in node.refs):
                self.varying.add(node.name)
        self.macs = self.acs = self.dense = self.fired = self.outputs = 0.0

    def connection_sparsity(self) -> float:
        """The share of zeros in the weights of the layers that NeuroBench knows."""
        paths = {
            path for node in self.graph.nodes if _known(node) for path in node.params if self.tensors[path].dim() > 1
        }
        zeros = sum(int((self.tensors[path] == 0).sum()) for path in paths)
        return zeros / max(1, sum(self.tensors[path].numel() for path in paths))

    def add(self, env: Mapping[str, Any], still: Mapping[str, Tensor]) -> None:
        """One batch of inputs by name. still: the same, those over time as their means."""
        sizes = self.graph.sizes(env)
        trains, means = self._trains(env, still, sizes)
        for step in range(self.snn.T):
            now = {name: x.x[step] if isinstance(x, Steps) else x for name, x in env.items()}
            self._step({name: train(step) for name, train in trains.items()}, means, now, sizes)

    def _step(
        self, sent: Mapping[str, tuple[Tensor, Tensor]], means: Mapping[str, Any], env: Mapping[str, Tensor],
        sizes: Mapping[str, int],
    ) -> None:  # fmt: skip
        """One time-step. sent: by layer, its current and its spikes. means: every value on the means over time."""
        currents, units = (Stream(values, self.tensors, sizes) for values in (dict(env), dict.fromkeys(env)))

        def visit(node: Node, args: Any, spikes: Any) -> list[Any]:
            if node.name in self.neurons:
                current, spike = sent[node.name]
                self.fired += float((spike != 0).sum())
                self.outputs += spike.numel()
                return [current, spike.to(current.dtype)]
            row, role, kwargs = TABLE[node.target], role_of(node), currents.arguments(node)[1]
            only = all(units.env[ref] is not None for ref in node.refs if ref in self.varying)
            if row.weighted and role is Role.SYNAPSE and not adds_up(node):
                if _known(node):
                    self._count(node, units if only else currents, sizes)
                return [call(node.target, args, kwargs), None]
            if role is Role.SYNAPSE or node.name in self.nested:
                return [call(node.target, args, kwargs), call(node.target, spikes, kwargs) if only else None]
            return [means[node.name], None]

        at = dict.fromkeys([node.name for node in self.graph.nodes if node.name in self.varying], visit)
        walk(Schedule.of(self.graph.nodes, self.graph.outputs), [currents, units], at)

    def _count(self, node: Node, stream: Stream, sizes: Mapping[str, int]) -> None:
        read = {ref: stream.env[ref] for ref in node.refs}
        values = [value for ref, value in read.items() if ref in self.varying]
        ones = {ref: map_tree(lambda v: (v != 0).to(v.dtype), value) for ref, value in read.items()}
        effective = self._sum(node, ones, self.binary, sizes)
        self.dense += self._sum(
            node, {ref: map_tree(torch.ones_like, value) for ref, value in read.items()}, self.full, sizes
        )
        if all(bool(((value == 0) | (value.abs() == 1)).all()) for value in values):
            self.acs += effective
        else:
            self.macs += effective

    def _sum(
        self, node: Node, env: Mapping[str, Any], tensors: Mapping[str, Tensor], sizes: Mapping[str, int]
    ) -> float:
        return float(call(node.target, *Stream(dict(env), tensors, sizes).arguments(node)).double().sum())

    def _trains(
        self, env: Mapping[str, Any], still: Mapping[str, Tensor], sizes: Mapping[str, int]
    ) -> tuple[dict[str, Callable[[int], tuple[Tensor, Tensor]]], Mapping[str, Any]]:
        """By layer, the current and the spikes of a step; and every value of the network on the means over time."""
        found: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {}
        steps: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.neurons}

        def watch(name: str, current: Tensor, spikes: Tensor, read: bool) -> None:
            if read:
                steps[name] += list(zip(current.clone(), spikes.clone(), strict=True))

        def fire(node: Node, args: Any) -> list[Tensor]:
            neuron: Any = self.neurons[node.name]
            if self.snn.over_time:
                return [torch.stack([current for current, _ in steps[node.name]]).mean(0)]
            count = neuron.count(args[0])
            found[node.name] = lambda t: (
                neuron.current(count, t, t + 1, self.snn.T)[0],
                neuron.spikes(count, t, t + 1)[0] if t < neuron.T else torch.zeros_like(count),
            )
            return [neuron.value(count)]

        if self.snn.over_time:
            self.snn.watched(env, watch)
            found = {name: each.__getitem__ for name, each in steps.items()}
        stream = Stream(dict(still), self.tensors, sizes)
        names = [node.name for node in self.graph.nodes]
        walk(Schedule.of(self.graph.nodes, names), [stream], dict.fromkeys(self.neurons, fire))
        return found, stream.env


def _known(node: Node) -> bool:
    """Whether a weighted synapse is a layer that NeuroBench counts: a convolution or a linear layer."""
    found = None if adds_up(node) else arguments(node)
    return not found.transposed if isinstance(found, Conv) else found is not None
