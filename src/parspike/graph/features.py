"""Along which dimensions of every value its features run.

A neuron has its own threshold for every feature of its layer: for every channel of a map (B, C, H, W), every unit of
(B, tokens, C), every unit of every head in (B, heads, tokens, C). It never has one for a place, a time or a token,
where the same weights are used again. Two things tell features from places:

- *What made the value.* A linear layer makes its last dimension, a convolution dimension 1, an embedding the last one;
  a product of two values keeps the features that it does not add up. Permutations, reshapes and whatever acts element
  by element carry them on.
- *What reads it*, where nothing has made features yet (an input, a sum of constants): the dimension that the synapse
  behind adds up.

Where neither says anything, it is dimension 1. A dimension whose size is free is never one of features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parspike.graph.ir import Graph, Node, Param, Ref, Size
from parspike.graph.ops import TIMES

__all__ = ["groups_of", "permuted", "with_channels"]

Dims = tuple[int, ...]
PRODUCTS = ("aten.matmul.default", "aten.bmm.default", "aten.mm.default")
ATTENTION = ("aten.scaled_dot_product_attention.default", "aten._scaled_dot_product_flash_attention_for_cpu.default")
AT_ONE = ("batch_norm", "group_norm", "instance_norm", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
          "scale_shift", "prelu")  # fmt: skip
EMBEDDINGS = ("aten.embedding.default", "aten._embedding_bag.default")
NORMS = ("aten.layer_norm.default", "aten.native_layer_norm.default", "aten.rms_norm.default")
REDUCTIONS = ("aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default", "aten.amin.default")
NONE = (0,)
"""Known to have no features."""


def with_channels(graph: Graph) -> Graph:
    """The graph, with the dimensions of every node's features (`Node.channel_dims`)."""
    shapes = {i.name: i.shape for i in graph.inputs} | {node.name: node.shape for node in graph.nodes}
    wanted: dict[str, Dims] = {}
    for node in reversed(graph.nodes):
        for place, arg in enumerate(node.args):
            for ref in arg if isinstance(arg, (tuple, list)) else (arg,):
                if isinstance(ref, Ref) and ref.name not in wanted:
                    found = _read(graph, node, place, shapes[ref.name], wanted.get(node.name))
                    if found is not None:
                        wanted[ref.name] = found
    made: dict[str, Dims | None] = {i.name: wanted.get(i.name) for i in graph.inputs}
    nodes = []
    for node in graph.nodes:
        found = _made(node, made, shapes)
        found = wanted.get(node.name) if found is None else found
        made[node.name] = None if found is None else _fixed(node.shape, found)
        given = made[node.name]
        nodes.append(replace(node, channel_dims=_fixed(node.shape, (min(1, len(node.shape) - 1),))
                     if given is None else given))  # fmt: skip
    return replace(graph, nodes=tuple(nodes))


def _fixed(shape: Sequence[Any], dims: Dims) -> Dims:
    """Those of the dimensions that can be features: not the batch, and of a size that is known."""
    return tuple(sorted({d for d in dims if 0 < d < len(shape) and isinstance(shape[d], int)})) or NONE


def _read(graph: Graph, node: Node, place: int, shape: Sequence[Any], behind: Dims | None) -> Dims | None:
    """The features of what a node reads as its argument `place`, as the node, or what reads it in turn, uses them.

    shape: of what it reads. behind: the features of its own value, as its readers use them.
    """
    last = max(len(shape) - 1, 0)
    if node.target in ("aten.linear.default", "aten.addmm.default"):
        return (last,) if place == (node.target == "aten.addmm.default") else None
    if node.target in PRODUCTS:
        other = node.args[1 - place] if place < 2 else None
        return None if not isinstance(other, Param) else (last,) if place == 0 else (max(last - 1, 0),)
    if _at_one(node):
        return (1,) if place == 0 else None
    if node.target in NORMS and place == 0 and len(node.args[1]) == 1:
        return (last,)
    return None if behind is None else _carried(node, node.shape, shape, behind, back=True)


def _made(node: Node, made: Mapping[str, Dims | None], shapes: Mapping[str, Sequence[Any]]) -> Dims | None:
    """The features of a node's value, from those of what it reads."""
    last = max(len(node.shape) - 1, 0)
    if node.target in ("aten.linear.default", "aten.addmm.default", *EMBEDDINGS):
        return (last,)
    if node.target in PRODUCTS:
        return _of_product(node, made, shapes)
    if node.target == TIMES and (dims := made.get(node.args[1].name)) is not None:  # what is held, and scaled
        return _carried(node, shapes[node.args[1].name], node.shape, dims, back=False)
    if _at_one(node):
        return (1,)
    if node.target in ATTENTION:
        heads = {d for ref in node.refs[:1] for d in made.get(ref) or () if d < last - 1}
        return (*heads, last)
    known = None
    for name in node.refs:
        if (dims := made.get(name)) is not None:
            found = _carried(node, shapes[name], node.shape, dims, back=False)
            if found is not None and _fixed(node.shape, found) != NONE:
                return found  # a mask or a scale beside it may well have none
            known = found if found is not None else known
    return (last,) if node.target in NORMS and len(node.args[1]) == 1 else known


def _at_one(node: Node) -> bool:
    return "conv" in node.target or any(name in node.target for name in AT_ONE)


def _of_product(node: Node, made: Mapping[str, Dims | None], shapes: Mapping[str, Sequence[Any]]) -> Dims | None:
    """What a product of matrices does not add up: rows of the left that are features, columns of the right."""
    last, (left, right) = len(node.shape) - 1, node.args[:2]
    if isinstance(right, Param):
        return (last,)
    if isinstance(left, Param):
        return (last - 1,)
    found: set[int] = set()
    known = False
    for ref, added in ((left, -1), (right, -2)):
        dims, rank = made.get(ref.name), len(shapes[ref.name])
        if dims is None:
            continue
        known = True
        found.update(d + len(node.shape) - rank for d in dims if d and d != rank + added)
    return tuple(sorted(found)) or (NONE if known else None)


def _carried(node: Node, old: Sequence[Any], new: Sequence[Any], dims: Dims, *, back: bool) -> Dims | None:
    """The dimensions `dims` of a value of shape `old` in one of shape `new`, through a node that moves values or acts
    on each by itself; None where it does something else. back: from the node's value to what it reads."""
    rank = len(new if back else old)
    if (order := permuted(node, rank)) is not None:
        return tuple(order[d] if back else order.index(d) for d in dims)
    if node.target == "aten.reshape.default":
        return _regrouped(old, new, dims)
    lost = _removed(node, rank)
    if lost is not None:
        left = [d for d in range(rank) if d not in lost]
        if back:
            return tuple(left[d] for d in dims if d < len(left))
        return tuple(left.index(d) for d in dims if d in left) or NONE
    added = _added(node, len(old if back else new))
    if added is not None:
        if back:
            return tuple(d - (d > added) for d in dims if d != added) or NONE
        return tuple(d + (d >= added) for d in dims)
    # Dimensions that are broadcast are aligned at the right.
    moved = tuple(d + len(new) - len(old) for d in dims)
    return moved if all(d >= 0 for d in moved) and (len(old) == len(new) or _elementwise(node)) else None


def permuted(node: Node, rank: int) -> list[int] | None:
    """For every dimension of a node's value the dimension of what it reads that it is; None for a node that permutes
    none."""
    if node.target == "aten.permute.default":
        return [d % rank for d in node.args[1]]
    if node.target in ("aten.transpose.int", "aten.swapaxes.default"):
        one, two = (d % rank for d in node.args[1:3])
        return [{one: two, two: one}.get(d, d) for d in range(rank)]
    return None


def _elementwise(node: Node) -> bool:
    names = ("add", "sub", "rsub", "mul", "div", "where", "expand", "broadcast_to", "maximum", "minimum", "pow",
             "masked_fill", "repeat", TIMES)  # fmt: skip
    return node.target.removeprefix("aten.").split(".")[0] in names


def _removed(node: Node, rank: int) -> set[int] | None:
    """The dimensions of what a node reads that its value lacks; None for a node that removes none."""
    if node.target in REDUCTIONS:
        if len(node.args) > 2 and node.args[2]:
            return None
        gone = node.args[1] if len(node.args) > 1 and node.args[1] else range(rank)
        return {d % rank for d in gone}
    if node.target in ("aten.select.int", "aten.unbind.int"):
        return {(node.args[1] if len(node.args) > 1 else 0) % rank}
    if node.target == "aten.squeeze.dims":
        return {d % rank for d in node.args[1]}
    return None


def _added(node: Node, rank: int) -> int | None:
    """The dimension of a node's value, of this rank, that what it reads lacks; None for a node that adds none."""
    if node.target in ("aten.unsqueeze.default", "aten.stack.default"):
        return (node.args[1] if len(node.args) > 1 else 0) % rank
    return None


def _regrouped(old: Sequence[Any], new: Sequence[Any], dims: Dims) -> Dims:
    """Through a reshape: dimensions are taken together in the smallest groups of equal size. A dimension of a group
    with features is one of features, as far as its size is fixed."""
    found: list[int] = []
    for ours, theirs in groups_of(old, new):
        if any(d in dims for d in ours):
            exact = [d for d in ours if d in dims]
            same = len(ours) == len(theirs) and all(old[a] == new[b] for a, b in zip(ours, theirs, strict=True))
            found += [b for a, b in zip(ours, theirs, strict=True) if a in exact] if same else theirs
    return _fixed(new, tuple(found))


def groups_of(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
    """The dimensions of two shapes of equally many elements, in pairs of groups of equally many, in order."""
    ours, theirs = ([d for d, size in enumerate(shape) if size != 1] for shape in (old, new))
    groups: list[tuple[list[int], list[int]]] = []
    while ours and theirs:
        one, two = [ours.pop(0)], [theirs.pop(0)]
        while _size(old, one) != _size(new, two):
            # The side with less grows: by numbers where they tell, else by the number of dimensions left.
            less = _size(old, one)[0] < _size(new, two)[0] or not theirs
            if less and ours:
                one.append(ours.pop(0))
            elif theirs:
                two.append(theirs.pop(0))
            else:
                break
        groups.append((one, two))
    if groups and (ours or theirs):
        groups[-1][0].extend(ours)
        groups[-1][1].extend(theirs)
    return groups


def _size(shape: Sequence[Any], dims: Sequence[int]) -> tuple[int, Counter[str]]:
    """The number of elements along dimensions, as a factor and the free sizes that it is multiplied by."""
    number, free = 1, Counter[str]()
    todo = [shape[d].tree if isinstance(shape[d], Size) else shape[d] for d in dims]
    while todo:
        tree = todo.pop()
        if isinstance(tree, int):
            number *= tree
        elif isinstance(tree, tuple) and tree[0] == "*":
            todo.extend(tree[1:])
        else:
            free[str(tree)] += 1
    return number, free
