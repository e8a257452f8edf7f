"""Attention as the products, sums and divisions that it is made of, so that spikes can drive its products.

`softmax(s) @ v` is computed as (w @ v) / Σw with w = exp(s − max s). The weights w of a row lie in 0 … 1 and the
largest is 1, so a few levels tell them apart, however many values share the attention. The shares w/Σw of a long row
would all lie below the first level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parspike.graph.encode import PASSED
from parspike.graph.features import ATTENTION
from parspike.graph.ir import Device, Graph, Node, Param, Ref
from parspike.graph.lookup import looked_up
from parspike.graph.ops import MASKED, SHARES, TABLE, WEIGHTS, Role
from parspike.graph.parts import part_of
from parspike.graph.same import check_rewritten
from parspike.graph.scaled import with_scaled_rows
from parspike.graph.wide import widened

__all__ = ["taken_apart"]

SOFTMAX = ("aten.softmax.int", "aten._softmax.default")
PRODUCTS = ("aten.matmul.default", "aten.bmm.default")


def taken_apart(
    graph: Graph, args: Sequence[Tensor] = (), kwargs: Mapping[str, Tensor] | None = None, *, lookup: bool = False
) -> Graph:
    """The same function with every fused attention, and every softmax that only weighs a product, in its parts.

    lookup: functions of one number become neurons too, and norms and divisions are taken apart for them (`lookup`);
    else products in front of linear layers are rotated and scaled row by row (`scaled`).
    args, kwargs: an example batch, on which each value is compared with that of `graph` (`same.check_rewritten`).
    """
    nodes: list[Node] = []
    varying = {i.name for i in graph.inputs}
    for node in graph.nodes:
        if any(ref in varying for ref in node.refs):
            varying.add(node.name)
        nodes.extend(_attention(graph, node, varying) if node.target in ATTENTION[:1] else [node])
    apart = replace(graph, nodes=tuple(nodes))
    readers = apart.consumers()
    made: dict[str, list[Node]] = {}
    other: set[str] = set()  # what holds weights now, no shares
    for node in apart.nodes:
        way = _to_product(apart, readers, node)
        if way is not None:
            product = way[-1]
            other.update((node.name, *(passed.name for passed in way[:-1])))
            made[node.name] = [replace(node, target=WEIGHTS, args=(node.args[0], node.args[1]), kwargs={})]
            made[product.name] = _weighed(product, apart.by_name[product.refs[0]])
    apart = replace(apart, nodes=tuple(part for node in apart.nodes for part in made.get(node.name, [node])))
    last = looked_up if lookup else with_scaled_rows
    if args or kwargs:
        wide = last(widened(apart))  # whose rotated weights are not rounded to the network's types yet
        means = {n.name: n.name for n in wide.nodes if n.name in graph.by_name and n.name not in other}
        check_rewritten(widened(graph), wide, means, args, kwargs or {})
    return last(apart)


def _attention(graph: Graph, node: Node, varying: set[str]) -> list[Node]:
    """Fused attention as a product, a scale, a mask, a softmax and a product. varying: the values that depend on the
    network's input, to which those made here are added."""
    query, key, value, mask, _, causal = (*node.args, *(None, 0.0, False)[len(node.args) - 3 :])
    shapes = {i.name: i.shape for i in graph.inputs} | {n.name: n.shape for n in graph.nodes}

    def shape(arg: Any) -> tuple[Any, ...]:
        return tuple(graph.tensors[arg.path].shape) if isinstance(arg, Param) else tuple(shapes[arg.name])

    made: list[Node] = []

    def add(suffix: str, target: str, size: Sequence[Any], *args: Any, **kwargs: Any) -> Ref:
        part = part_of(node, suffix, target, size, args, varying, kwargs=kwargs)
        if any(name in varying for name in part.refs):
            varying.add(part.name)
        made.append(part)
        return Ref(part.name)

    (*front, queries, wide), keys = shape(query), shape(key)[-2]
    heads, of_key = len(front) and front[-1], shape(key)
    if node.kwargs.get("enable_gqa") and heads != of_key[-3]:
        repeats = heads // of_key[-3]
        key, value = (
            add(name, "aten.repeat_interleave.self_int", (*shape(arg)[:-3], heads, *shape(arg)[-2:]), arg, repeats,
                len(shape(arg)) - 3)
            for name, arg in (("keys", key), ("values", value))
        )  # fmt: skip
        shapes.update({n.name: n.shape for n in made})
    turned = add(
        "turned", "aten.transpose.int", (*shape(key)[:-2], shape(key)[-1], keys), key, len(shape(key)) - 2,
        len(shape(key)) - 1,
    )  # fmt: skip
    size = (*front, queries, keys)
    scores = add("scores", "aten.matmul.default", size, query, turned)
    scale = node.kwargs.get("scale")
    scores = add("scaled", "aten.mul.Tensor", size, scores, 1 / math.sqrt(wide) if scale is None else scale)
    if causal:
        ones = add("ones", "aten.ones.default", (queries, keys), [queries, keys], dtype=torch.bool, device=Device())
        mask = add("causal", "aten.tril.default", (queries, keys), ones)
    if mask is not None:
        scores = add("masked", MASKED, size, scores, mask)
    shares = add("softmax", "aten.softmax.int", size, scores, len(size) - 1)
    add("", "aten.matmul.default", (*size[:-1], shape(value)[-1]), shares, value)
    return made


def _to_product(graph: Graph, readers: dict[str, list[Node]], node: Node) -> list[Node] | None:
    """From a softmax along the last dimension the operators up to the product of matrices that alone reads it, on the
    left; None where it is read otherwise."""
    if node.target not in SOFTMAX or node.args[1] % len(node.shape) != len(node.shape) - 1:
        return None
    way, here = [], node
    while len(readers[here.name]) == 1 and here.name not in graph.outputs:
        here = readers[here.name][0]
        way.append(here)
        if here.target in PRODUCTS:
            left = here.args[0]
            return way if isinstance(left, Ref) and left.name == (way[-2].name if way[1:] else node.name) else None
        if here.target not in PASSED or here.shape[-1:] != node.shape[-1:]:
            return None
    return None


def _weighed(product: Node, weights: Node) -> list[Node]:
    """A product with the weights of a softmax, divided by their sum."""
    whole = replace(product, name=f"{product.name}_weighed")
    total = replace(
        product, name=f"{product.name}_total", target="aten.sum.dim_IntList", args=(product.args[0], [-1], True),
        kwargs={}, role=Role.SYNAPSE, reason="", layer=f"{product.layer}.total", shape=(*weights.shape[:-1], 1),
    )  # fmt: skip
    row = TABLE[SHARES]
    divided = replace(
        product, target=SHARES, args=(Ref(whole.name), Ref(total.name)), kwargs={}, role=Role.ANALOG,
        reason=row.reason, layer=f"{product.layer}.divided",
    )  # fmt: skip
    return [whole, total, divided]
