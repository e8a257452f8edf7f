"""What is made ready before a network goes into whole numbers: a graph without casts and constants, and images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parspike.calibrate.batches import inputs_of, readable_again
from parspike.engines.base import Network
from parspike.errors import OptionError
from parspike.graph import Graph, Node, Param, Ref, Size, Stream, leaves, map_tree
from parspike.graph.ops import CASTS, MASKED, TABLE, call

__all__ = ["batches_of", "free", "is_real", "largest_of", "without_casts", "without_constants"]

SUMS = {"aten.add.Tensor": (1, 1), "aten.sub.Tensor": (1, -1), "aten.rsub.Tensor": (-1, 1)}
FACTORS = ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar", "aten.neg.default")
FILLS = {
    "aten.masked_fill.Scalar": (1, 2, 0), "aten.masked_fill.Tensor": (1, 2, 0),
    "aten.where.self": (0, 1, 2), "aten.where.ScalarOther": (0, 1, 2), "aten.where.ScalarSelf": (0, 1, 2),
}  # fmt: skip
"""Operators that choose one of two values by a condition: the places of it, of what stands where it is true, and where
it is not."""


def free(name: str, taken: Collection[str]) -> str:
    """The name, or one like it that is not taken: a network may call its own inputs and tensors anything."""
    while name in taken:
        name += "_"
    return name


def without_constants(graph: Graph) -> Graph:
    """The graph with tensors in the places of nodes that read no value and that arithmetic alone reads: the weights of
    a norm in another shape, a mask that is made of sizes."""
    tensors = dict(graph.tensors)
    constant: dict[str, Param] = {}
    for node in graph.nodes:
        made = node.mapped(lambda leaf: constant.get(leaf.name, leaf) if isinstance(leaf, Ref) else leaf)
        if not made.refs and not any(isinstance(leaf, Size) for leaf in leaves((made.args, made.kwargs, made.shape))):
            value = call(made.target, *Stream({}, tensors, {}).arguments(made))
            path = free(f"constant.{node.name}", tensors)
            if isinstance(value, Tensor) and node.name not in graph.outputs:
                constant[node.name], tensors[path] = Param(path), value
    # Others, such as a token that is joined to the rest, stay nodes.
    kept = {
        ref
        for node in graph.nodes
        if node.target not in (*SUMS, *FACTORS, *FILLS, MASKED) and node.name not in constant
        for ref in node.refs
    }
    found = {name: param for name, param in constant.items() if name not in kept}
    nodes = [
        node.mapped(lambda leaf: found.get(leaf.name, leaf) if isinstance(leaf, Ref) else leaf)
        for node in graph.nodes
        if node.name not in found
    ]
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def without_casts(graph: Graph) -> Graph:
    """The graph without casts from floating numbers to floating numbers: the types of whole numbers are chosen anew."""
    instead: dict[str, Ref] = {}
    others = {i.name for i in graph.inputs if not i.dtype.is_floating_point}

    def passed(leaf: Any) -> Any:
        return instead.get(leaf.name, leaf) if isinstance(leaf, Ref) else leaf

    def single(leaf: Any) -> Any:
        return torch.float32 if isinstance(leaf, torch.dtype) else leaf

    nodes = []
    for node in (node.mapped(passed) for node in graph.nodes):
        if is_real(node) and node.refs[0] not in others:
            instead[node.name] = Ref(node.refs[0])
            continue
        nodes.append(node.mapped(single) if is_real(node) else node)
        dtype = node.kwargs.get("dtype")
        counted = not node.refs and isinstance(dtype, torch.dtype) and not dtype.is_floating_point  # places of a map
        whole = node.refs and others.issuperset(node.refs) and not is_real(node) and not TABLE[node.target].weighs
        if counted or whole:
            others.add(node.name)
    return replace(graph, nodes=tuple(nodes), output=map_tree(passed, graph.output))


def is_real(node: Node) -> bool:
    """Whether a node is a cast to floating numbers."""
    dtype = node.args[1] if len(node.args) > 1 else node.kwargs.get("dtype")
    return node.target in CASTS and isinstance(dtype, torch.dtype) and dtype.is_floating_point


def batches_of(net: Network, images: Any) -> list[dict[str, Tensor]]:
    """Inputs by name, batch by batch."""
    batches = [images] if isinstance(images, (Tensor, Mapping)) else list(readable_again(images, name="images"))
    found = [inputs_of(batch, f"images, batch {number}", net) for number, batch in enumerate(batches)]
    if not found:
        raise OptionError("images holds no batch: give some that the network was calibrated with")
    return found


def largest_of(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The largest magnitude of every channel (dimension 1) of every input, as (1, C, 1, …)."""
    found: dict[str, Tensor] = {}
    for env in batches:
        for name, x in env.items():
            rest = [d for d in range(x.dim()) if d != 1]
            now = x.detach().double().abs().amax(rest, keepdim=True)
            found[name] = torch.maximum(found[name], now) if name in found else now
    return found
