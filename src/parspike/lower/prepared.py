"""What is made ready before a network goes into whole numbers: a graph without casts and constants, and images."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parspike.calibrate.batches import inputs_of, readable_again
from parspike.engines.base import Network
from parspike.errors import OptionError
from parspike.graph import Graph, Node, Param, Ref, Role, Size, Stream, leaves, map_tree
from parspike.graph.ops import CASTS, MASKED, TABLE, call

__all__ = ["batches_of", "is_real", "largest_of", "with_linear", "without_casts", "without_constants"]

SUMS = {"aten.add.Tensor": (1, 1), "aten.sub.Tensor": (1, -1), "aten.rsub.Tensor": (-1, 1)}
FACTORS = ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar", "aten.neg.default")
FILLS = {
    "aten.masked_fill.Scalar": (1, 2, 0), "aten.masked_fill.Tensor": (1, 2, 0),
    "aten.where.self": (0, 1, 2), "aten.where.ScalarOther": (0, 1, 2), "aten.where.ScalarSelf": (0, 1, 2),
}  # fmt: skip
"""Operators that choose one of two values by a condition: the places of it, of what stands where it is true, and where
it is not."""


def without_constants(graph: Graph) -> Graph:
    """The graph with tensors in the places of nodes that read no value and that arithmetic alone reads: the weights of
    a norm in another shape, a mask that is made of sizes."""
    tensors = dict(graph.tensors)
    constant: dict[str, Param] = {}
    for node in graph.nodes:
        made = node.mapped(lambda leaf: constant.get(leaf.name, leaf) if isinstance(leaf, Ref) else leaf)
        if not made.refs and not any(isinstance(leaf, Size) for leaf in leaves((made.args, made.kwargs, made.shape))):
            value = call(made.target, *Stream({}, tensors, {}).arguments(made))
            path = f"constant.{node.name}"
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


def with_linear(graph: Graph) -> Graph:
    """The graph with linear layers in the places of other products with a tensor of the network: `matrix @ x`, and
    `einsum` where each element of the tensor weighs in the same way everywhere. Values are moved before and after."""
    tensors, nodes = dict(graph.tensors), []
    shapes = {i.name: i.shape for i in graph.inputs} | {name: n.shape for name, n in graph.by_name.items()}
    for node in graph.nodes:
        product = _product(node, shapes, tensors) if node.role is Role.SYNAPSE and not node.reason else None
        made = None if product is None else _linear(node, *product)
        if product is None or made is None:
            nodes.append(node)
            continue
        nodes.extend(made[0])
        tensors[f"matrix.{node.name}"] = made[1](tensors[product[1].path])
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _product(
    node: Node, shapes: Mapping[str, tuple[Any, ...]], tensors: Mapping[str, Tensor]
) -> tuple[Ref, Param, tuple[Any, ...], str, str, str] | None:
    """Of a product of one value with a tensor: both, the value's shape, and their letters and the output's."""
    args: Any = node.args
    if node.target == "aten.matmul.default" and isinstance(args[0], Param) and isinstance(args[1], Ref):
        shape = shapes[args[1].name]
        letters = string.ascii_lowercase[: len(shape)]
        matrix = tensors[args[0].path].shape
        if 2 <= len(matrix) <= len(shape) and math.prod(matrix[:-2]) == 1 and len(shape) > 2:
            return args[1], args[0], shape, letters, "Z" + letters[-2], f"{letters[:-2]}Z{letters[-1]}"
    if node.target != "aten.einsum.default" or len(args[1]) != 2:
        return None
    given, _, out = args[0].replace(" ", "").partition("->")
    pairs = list(zip(args[1], given.split(","), strict=True))
    value = [(leaf, letters) for leaf, letters in pairs if isinstance(leaf, Ref)]
    param = [(leaf, letters) for leaf, letters in pairs if isinstance(leaf, Param)]
    if "->" not in args[0] or len(value) != 1 or len(param) != 1 or "..." in param[0][1]:
        return None
    (ref, letters), (weight, own), shape = value[0], param[0], shapes[value[0][0].name]
    spare = [letter for letter in string.ascii_letters if letter not in given]
    many = "".join(spare[: len(shape) - len(letters.replace("...", ""))])
    return ref, weight, shape, letters.replace("...", many), own, out.replace("...", many)


def _linear(
    node: Node, value: Ref, _: Param, shape: tuple[Any, ...], letters: str, own: str, out: str
) -> tuple[list[Node], Callable[[Tensor], Tensor]] | None:
    """The nodes of a linear layer that computes a product, the last of which has the product's name, and what makes its
    matrix of the tensor. None where there is none: an element that weighs at some places alone, a sum over one of the
    two."""
    inner = [letter for letter in letters if letter in own and letter not in out]
    rest = [letter for letter in letters if letter not in own]
    new = [letter for letter in own if letter not in letters]
    unlike = len({*letters}) < len(letters) or len({*own}) < len(own) or len({*out}) < len(out)
    if unlike or not inner or {*own} != {*inner, *new} or {*out} != {*rest, *new}:
        return None
    size = dict(zip(letters, shape, strict=True)) | dict(zip(out, node.shape, strict=True))
    if not all(isinstance(size[letter], int) for letter in (*inner, *new)):
        return None
    many, made = [math.prod(size[letter] for letter in group) for group in (inner, new)], []
    last: Any = value

    def put(target: str, args: tuple[Any, ...], shape: list[Any]) -> None:
        nonlocal last
        made.append(
            replace(node, name=f"{node.name}_{len(made)}", target=target, args=(last, *args), kwargs={},
                    shape=tuple(shape), channel_dims=(max(1, len(shape) - 1),))
        )  # fmt: skip
        last = Ref(made[-1].name)

    def move(one: list[str], other: list[str]) -> None:
        if one != other:
            put("aten.permute.default", ([one.index(x) for x in other],), [size[x] for x in other])

    move(list(letters), [*rest, *inner])
    lead = [size[letter] for letter in rest]
    if len(inner) > 1:
        put("aten.reshape.default", ([*lead, many[0]],), [*lead, many[0]])
    put("aten.linear.default", (Param(f"matrix.{node.name}"),), [*lead, many[1]])
    if len(new) != 1:
        apart = [*lead, *(size[letter] for letter in new)]
        put("aten.reshape.default", (apart,), apart)
    move([*rest, *new], list(out))
    made[-1] = replace(made[-1], name=node.name, shape=node.shape, channel_dims=node.channel_dims)
    order = [own.index(letter) for letter in (*new, *inner)]
    sizes = [size[letter] for letter in own]
    return made, lambda tensor: tensor.reshape(sizes).permute(order).reshape(many[1], many[0]).contiguous()


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
        if node.refs and others.issuperset(node.refs) and not is_real(node) and not TABLE[node.target].weighs:
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
