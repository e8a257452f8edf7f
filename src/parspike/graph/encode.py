"""Neurons for the inputs of a network: a node for the identity between an input and the synapses that read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from parspike.graph.ir import Graph, Node, Ref
from parspike.graph.ops import ENCODE, Role

__all__ = ["encodable", "with_encoders"]


def encodable(graph: Graph) -> tuple[str, ...]:
    """The inputs that spikes may stand for: real numbers, read only by operators that are linear in them alone."""
    readers = graph.consumers()
    return tuple(
        i.name
        for i in graph.inputs
        if i.dtype.is_floating_point
        and i.name not in graph.outputs
        and readers[i.name]
        and all(reader.role is Role.SYNAPSE and len(reader.refs) == 1 for reader in readers[i.name])
    )


def with_encoders(graph: Graph, inputs: Sequence[str]) -> Graph:
    """The graph with a neuron's node, of the same shape, behind each of these inputs."""
    names = {name: f"{name}_spikes" for name in inputs}
    made = [
        Node(names[i.name], ENCODE, (Ref(i.name),), {}, Role.NEURON, names[i.name], shape=i.shape)
        for i in graph.inputs
        if i.name in names
    ]
    moved = [
        node.mapped(lambda leaf: Ref(names[leaf.name]) if isinstance(leaf, Ref) and leaf.name in names else leaf)
        for node in graph.nodes
    ]
    return replace(graph, nodes=(*made, *moved))
