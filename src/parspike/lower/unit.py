"""Spikes of 0 and 1.

A neuron of a converted network sends spikes with an amplitude of its own, and a constant current besides (the smallest
output of its activation). `unit` takes both out of the neuron: what it sends is 1 or nothing, and each node that reads
it gets a scale and a shift before it, which go into the weights of the synapse behind where that can be done exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from parspike.errors import UnsupportedError
from parspike.graph import Graph, Node, Param, Ref, Role, map_tree, with_doubles
from parspike.graph.rewrite import merge_scales
from parspike.graph.signature import Linear, arguments, with_weights
from parspike.neurons import Even, IntegrateFire, ParallelNeuron, SignedNeuron, SortedTrain, SpikingLayer, Staircase
from parspike.snn import SNN, check_converted

__all__ = ["refusal", "unit"]

SCALE = "parspike.scale_shift"


def unit(snn: SNN) -> SNN:
    """The same network with neurons that send spikes of amplitude 1 and nothing besides.

    Its outputs are equal up to the rounding of the weights; so are its counts, but for currents within rounding of a
    threshold. A scale that no weight can take, such as that of a branch of a sum, stays as a node
    `parspike.scale_shift` (`aten.mul.Tensor`, `aten.add.Tensor` where it does not run along dimension 1). A pair of
    neurons for both signs sends 1 on one of its two lines, which count +1 and −1. Spikes of the weighted and the onset
    code keep the weights of their steps. Raises `UnsupportedError` that lists the layers whose spikes carry another
    amplitude at every step.
    """
    check_converted(snn, "unit")
    snn = with_doubles(snn)
    neurons = snn.neurons()
    refused = [f"  {snn.graph.by_name[name].layer}: {reason}" for name, n in neurons.items() if (reason := refusal(n))]
    if refused:
        raise UnsupportedError("\n".join(("spikes of 0 and 1 cannot carry what these neurons send:", *refused)))
    graph, made = replace(snn.graph, tensors=dict(snn.tensors())), {}
    for name, neuron in neurons.items():
        made[name], scale, shift = _taken_out(neuron)
        if not bool((scale == 1).all()) or bool(shift.any()):
            graph = _before_readers(graph, graph.by_name[name], scale, shift)
    provenance = {**snn.provenance, "lowered": "unit"}
    return SNN(merge_scales(graph), made, simulation=snn.simulation, provenance=provenance)


def refusal(neuron: SpikingLayer) -> str | None:
    """Why spikes of one amplitude cannot stand for what such a neuron sends; None where they can."""
    if isinstance(neuron, Staircase):
        if neuron.even:
            return None
        return (
            "its levels are unevenly spaced, so its spikes carry another amplitude at every step: convert with "
            "code='weighted', whose levels are even, or, if it is a ReLU, with recipe='closed-form', which keeps its "
            "levels even"
        )
    if isinstance(neuron, (Even, IntegrateFire, SortedTrain)):
        return None
    return f"neurons of the kind '{neuron.kind}' send more than spikes of one amplitude"


def _taken_out(neuron: SpikingLayer) -> tuple[SpikingLayer, Tensor, Tensor]:
    """The neuron with amplitude 1 and nothing besides, and the scale and the shift that make its old output of the new
    one; they broadcast against one sample."""
    if isinstance(neuron, SortedTrain):
        inside, scale, shift = _taken_out(neuron.neuron)
        return SortedTrain(cast(ParallelNeuron, inside)), scale, shift
    if isinstance(neuron, Staircase):
        lowest, highest = neuron.outputs[0].detach(), neuron.outputs[-1].detach()
        levels = torch.arange(neuron.levels + 1, dtype=lowest.dtype, device=lowest.device) / neuron.levels
        outputs = levels.reshape(-1, *[1] * lowest.dim()).expand_as(neuron.outputs)
        return Staircase(neuron.T, neuron.thresholds, outputs, code=neuron.code), highest - lowest, lowest
    neuron = cast(Even | IntegrateFire, neuron)  # all others are refused before
    theta = neuron.v_threshold.detach()
    shift = torch.as_tensor(neuron.offset).to(theta)
    if isinstance(neuron, Even):
        offset = torch.zeros_like(theta) if isinstance(neuron, SignedNeuron) else 0.0
        made: Even | IntegrateFire = type(neuron)(neuron.T, theta, offset=offset, code=neuron.code)
        made.shift = _parameter(neuron.shift - shift)
    else:
        options = {name: getattr(neuron, name) for name in ("reset", "decay", "refractory", "signed")}
        made = IntegrateFire(theta, **options)
        made.v_init, made.bias = _parameter(neuron.v_init), _parameter(neuron.bias - shift)
    made.v_post = _parameter(torch.ones_like(neuron.v_post))
    return made, neuron.v_post.detach(), shift


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)


def _before_readers(graph: Graph, node: Node, scale: Tensor, shift: Tensor) -> Graph:
    """The graph with scale · value + shift of a node in the place of its value, at each of its readers."""
    tensors, nodes = dict(graph.tensors), {}

    def put(reader: str) -> list[Node]:
        room = f"constants.{node.name}.{reader}"
        name, one = f"{node.name}_for_{reader}", {"kwargs": {}, "role": Role.SYNAPSE, "reason": ""}
        factor, added = (_vector(node, value) for value in (scale, shift))
        if factor is not None and added is not None:
            tensors[f"{room}.scale"], tensors[f"{room}.shift"] = factor, added
            args = (Ref(node.name), Param(f"{room}.scale"), Param(f"{room}.shift"))
            return [replace(node, name=name, target=SCALE, args=args, **one)]
        made, at = [], node.name
        for kind, value, neutral in (("mul", scale, 1), ("add", shift, 0)):
            if bool((value != neutral).any()):
                tensors[f"{room}.{kind}"] = value[None] if value.dim() else value
                args = (Ref(at), Param(f"{room}.{kind}"))
                made.append(replace(node, name=f"{name}_{kind}", target=f"aten.{kind}.Tensor", args=args, **one))
                at = made[-1].name
        return made

    for reader in graph.nodes:
        if node.name not in reader.refs:
            nodes[reader.name] = reader
            continue
        if (taken := _into_weights(reader, node, scale, shift, tensors)) is not None:
            nodes[reader.name] = taken
            continue
        before = put(reader.name)
        nodes |= {n.name: n for n in before}
        nodes[reader.name] = reader.mapped(_instead(node.name, before[-1].name))
    output = graph.output
    if node.name in graph.outputs:
        before = put("output")
        nodes |= {n.name: n for n in before}
        output = map_tree(_instead(node.name, before[-1].name), output)
    return replace(graph, nodes=tuple(nodes.values()), output=output, tensors=tensors)


def _into_weights(reader: Node, node: Node, scale: Tensor, shift: Tensor, tensors: dict[str, Tensor]) -> Node | None:
    """A linear layer on scale · value + shift, which its weights and bias take up; None where the reader is none, or
    these differ elsewhere than between what it adds up. `merge_scales` does it along dimension 1."""
    found = arguments(reader)
    if not isinstance(found, Linear) or reader.target != "aten.linear.default" or not isinstance(found.weight, Param):
        return None
    if any(size != 1 for value in (scale, shift) for size in value.shape[:-1]) or len(node.shape) < 3:
        return None
    weight = tensors[found.weight.path]
    bias = tensors[found.bias.path] if isinstance(found.bias, Param) else weight.new_zeros(())
    wide, scale, shift = (t.double().to(weight.device) for t in (weight, scale.reshape(-1), shift.reshape(-1)))
    room = f"constants.{node.name}.{reader.name}"
    tensors[f"{room}.weight"] = (wide * scale).to(weight.dtype)
    tensors[f"{room}.bias"] = ((wide * shift).sum(1) + bias.double()).to(weight.dtype)
    return with_weights(reader, Param(f"{room}.weight"), Param(f"{room}.bias"))


def _vector(node: Node, value: Tensor) -> Tensor | None:
    """A value for one sample as a vector (C,) along dimension 1 of the node's output; None where it is none."""
    channels = node.shape[1] if len(node.shape) > 1 else None
    if not isinstance(channels, int):
        return None
    if value.numel() == 1:
        return value.reshape(1).expand(channels).clone()
    along = value.reshape([1] * (len(node.shape) - 1 - value.dim()) + list(value.shape))
    return along.flatten().clone() if along.shape[0] == channels == along.numel() else None


def _instead(old: str, new: str) -> Any:
    return lambda leaf: Ref(new) if isinstance(leaf, Ref) and leaf.name == old else leaf
