"""The network as JSON and tensors, and back: steps, graph, neurons, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from parspike.errors import FileError
from parspike.file.check import check_run, fields
from parspike.file.graph import graph_from_json, graph_to_json
from parspike.graph import Node
from parspike.neurons import Neuron, neuron_from
from parspike.snn import SNN

__all__ = ["MAX_T", "network_from_json", "network_to_json", "neuron_from_json", "of_version"]

MAX_T = 1 << 24
"""Largest T: counts above it are not whole numbers in float32."""


def network_to_json(snn: SNN) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is written as JSON, and the tensors by the names that they have in the file."""
    tensors = {f"synapses.{name}": tensor for name, tensor in snn.tensors().items()}
    for name, neuron in snn.neurons().items():
        tensors |= {f"neurons.{name}.{key}": value for key, value in neuron.state_dict().items()}
    body = {
        "T": snn.T,
        "graph": graph_to_json(snn.graph),
        "neurons": {name: neuron.config() for name, neuron in snn.neurons().items()},
        "provenance": snn.provenance,
    }
    return body, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def of_version(body: Any, version: int) -> Any:
    """The body as this version writes it. Version 1 knew one size of every input."""
    graph = body.get("graph") if isinstance(body, dict) else None
    if version == 1 and isinstance(graph, dict):
        if {"example", "limits"} & set(graph):
            raise FileError("the graph has entries that version 1 does not know")
        graph |= {"example": {}, "limits": []}
    return body


def network_from_json(body: Any, tensors: Mapping[str, Tensor]) -> SNN:
    """The network of this JSON and these tensors (named as in the file), run once without data; or a `FileError`."""
    steps, graph, configs, provenance = fields(body, "the network", T=int, graph=dict, neurons=dict, provenance=dict)
    if not 1 <= steps <= MAX_T:
        raise FileError(f"T is {steps}, expected 1 … {MAX_T}")
    synapses: dict[str, Tensor] = {}
    states: dict[str, dict[str, Tensor]] = {name: {} for name in configs}
    for name, tensor in tensors.items():
        room, _, rest = name.partition(".")
        node, _, key = rest.partition(".")
        if room == "synapses":
            synapses[rest] = tensor
        elif room == "neurons" and node in states:
            if not bool(tensor.isfinite().all()):
                raise FileError(f"the tensor '{name}' holds NaN or Inf")
            states[node][key] = tensor
        else:
            raise FileError(f"the tensor '{name[:80]}' belongs to nothing in the network")
    made = graph_from_json(graph, synapses, set(configs))
    if (unfit := made.unfit()) is not None:
        raise FileError(f"the tensor 'synapses.{unfit}' holds NaN or Inf")
    neurons = {
        node.name: neuron_from_json(node, configs[node.name], states[node.name], steps)
        for node in made.neurons
        if node.name in configs
    }
    unknown = set(configs) - set(neurons)
    if unknown:
        raise FileError(f"neurons stand at '{unknown.pop()[:80]}', which is no activation of the graph")
    snn = SNN(made, neurons, T=steps, provenance=provenance)
    if any(snn.neurons()[name] is not neuron for name, neuron in neurons.items()):
        raise FileError("two layers of neurons have the same name")
    check_run(snn)
    return snn


def neuron_from_json(node: Node, config: Any, state: Mapping[str, Tensor], steps: int) -> Neuron:
    """The neurons at a node, whose tensors must fit the channels of its layer; or a `FileError`."""
    place = f"the neurons of '{node.layer}'"
    floats = all(tensor.is_floating_point() for tensor in state.values())
    try:
        neuron = neuron_from(config, state)
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        raise FileError(f"{place} cannot be read: {str(error)[:200]}") from error
    if neuron.config() != config or set(neuron.state_dict()) != set(state) or not floats:
        raise FileError(f"{place} hold fields or tensors of another kind of neuron")
    sample = node.shape[1:]
    for name, tensor in state.items():
        dims = tuple(tensor.shape)[1 if name in neuron.per_level else 0 :]
        sizes = zip(reversed(dims), reversed(sample), strict=False)
        if len(dims) > len(sample) or not all(dim in (1, size) for dim, size in sizes):
            raise FileError(f"{place}: {name} {tuple(tensor.shape)} does not fit the layer's channels")
    if steps < neuron.T:
        raise FileError(f"{place} take {neuron.T} steps, the network {steps}")
    return neuron
