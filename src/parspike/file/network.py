"""The network as JSON and tensors, and back: simulation, graph, neurons, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

import parspike.baselines  # noqa: F401 (their kinds of neurons become known)
from parspike.errors import FileError
from parspike.file.check import check_run, expect, fields
from parspike.file.graph import graph_from_json, graph_to_json
from parspike.graph import Graph, Input, Node
from parspike.graph.ops import HOLD
from parspike.neurons import MAX_T, Simulation, SpikingLayer, neuron_from
from parspike.snn import SNN

KINDS = {2: {"parallel", "staircase"}, 3: {"integrate-fire", "sorted-train"}, 5: {"current-based"}, 6: {"signed"},
         7: {"whole-pair", "whole-staircase", "whole-curve"}}  # fmt: skip
"""Kinds of neurons that a version of the format brought; all others came with version 4."""

SAID: dict[str, Any] = {
    "T": int, "analog": str, "calibration": (dict, type(None)), "code": str, "command_line": dict, "diagnosis": list,
    "encode": str, "input": str, "kept": list, "largest": int, "lowered": str, "model": str, "neuron": dict,
    "recipe": (dict, str), "search": dict, "seed": int, "versions": dict,
}  # fmt: skip
"""Entries of the provenance that parspike reads, and what each is; a user may have noted others, of any kind."""

__all__ = ["network_from_json", "network_to_json", "neuron_from_json", "of_version"]


def network_to_json(snn: SNN) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """What is written as JSON, the tensors by the names that they have in the file, and the version of the format.

    Parallel neurons are written as version 2, IF and LIF neurons as version 3, and those of published methods as
    version 4, so that their files stay as they were, and older readers read them. Version 6 brought neurons whose
    channels run along several dimensions, pairs of neurons for values of both signs, and values held as their mean;
    version 7 such pairs, staircases and curves in whole numbers.
    """
    tensors = {f"synapses.{name}": tensor for name, tensor in snn.tensors().items()}
    for name, neuron in snn.neurons().items():
        tensors |= {f"neurons.{name}.{key}": value for key, value in neuron.state_dict().items()}
    kinds = {neuron.kind for neuron in snn.neurons().values()}
    version = 5 if kinds & KINDS[5] else 2 if kinds <= KINDS[2] else 3 if kinds <= KINDS[3] else 4
    if kinds & KINDS[6] or any(len(node.channel_dims) > 1 or node.target == HOLD for node in snn.graph.nodes):
        version = 6
    if kinds & KINDS[7]:
        version = 7
    body = {
        **({"simulation": asdict(snn.simulation)} if version > 2 else {"T": snn.T}),
        "graph": graph_to_json(snn.graph),
        "neurons": {name: neuron.config() for name, neuron in snn.neurons().items()},
        "provenance": snn.provenance,
    }
    return body, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, version


def of_version(body: Any, version: int) -> Any:
    """The body as version 3 writes it. Version 1 knew one size of every input, version 2 parallel neurons alone."""
    graph = body.get("graph") if isinstance(body, dict) else None
    if version == 1 and isinstance(graph, dict):
        if {"example", "limits"} & set(graph):
            raise FileError("the graph has entries that version 1 does not know")
        graph |= {"example": {}, "limits": []}
    if version < 3 and isinstance(body, dict):
        if "simulation" in body or "T" not in body:
            raise FileError(f"the network has other entries than version {version} knows")
        body = {**body, "simulation": {"T": body["T"], "probe": 0, "read": 0, "paid": 0}}
        del body["T"]
    return body


def network_from_json(body: Any, tensors: Mapping[str, Tensor]) -> SNN:
    """The network of this JSON and these tensors (named as in the file), run once without data; or a `FileError`."""
    how, graph, configs, provenance = fields(
        body, "the network", simulation=dict, graph=dict, neurons=dict, provenance=dict
    )
    numbers = fields(how, "the simulation", T=int, probe=int, read=int, paid=int)
    if not 1 <= numbers[0] <= MAX_T or not all(0 <= number <= MAX_T for number in numbers) or numbers[2] > numbers[0]:
        raise FileError(f"T is {numbers[0]}, expected 1 … {MAX_T}, with other steps of at least 0 and read at most T")
    simulation = Simulation(*numbers)
    for name in SAID.keys() & provenance:
        expect(provenance[name], SAID[name], f"'{name}' of the provenance")
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
        node.name: neuron_from_json(node, configs[node.name], states[node.name], simulation.T)
        for node in made.neurons
        if node.name in configs
    }
    unknown = set(configs) - set(neurons)
    if unknown:
        raise FileError(f"neurons stand at '{unknown.pop()[:80]}', which is no activation of the graph")
    try:
        snn = SNN(made, neurons, simulation=simulation, provenance=provenance)
    except ValueError as error:
        raise FileError(str(error)) from error
    if any(snn.neurons()[name] is not neuron for name, neuron in neurons.items()):
        raise FileError("two layers of neurons have the same name")
    try:
        check_run(snn)
    except FileError:
        inputs = _inputs_as_cast(made, tensors)
        if inputs == made.inputs:
            raise
        snn = SNN(replace(made, inputs=inputs), neurons, simulation=simulation, provenance=provenance)
        check_run(snn)
    return snn


def _inputs_as_cast(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple[Input, ...]:
    """The inputs, floating ones in the type of the tensors. In files of older versions, `snn.half()` had cast the
    network but not the type that its inputs state; the network takes the type of its tensors."""
    types = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(types) != 1 or len({i.dtype for i in graph.inputs if i.dtype.is_floating_point}) != 1:
        return graph.inputs
    (cast,) = types
    return tuple(replace(i, dtype=cast) if i.dtype.is_floating_point else i for i in graph.inputs)


def neuron_from_json(node: Node, config: Any, state: Mapping[str, Tensor], steps: int) -> SpikingLayer:
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
        dims = tuple(tensor.shape)[1 if name in neuron.leading else 0 :]
        sizes = zip(reversed(dims), reversed(sample), strict=False)
        if len(dims) > len(sample) or not all(dim in (1, size) for dim, size in sizes):
            raise FileError(f"{place}: {name} {tuple(tensor.shape)} does not fit the layer's channels")
    if (reason := neuron.unfit(steps)) is not None:
        raise FileError(f"{place}: {reason}")
    return neuron
