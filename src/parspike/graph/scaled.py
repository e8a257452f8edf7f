"""Products in front of a linear layer: each row rotated, and in units of its largest value.

In the gated layers of language models, down(act(gate(x)) · up(x)), the product is fifty times as large for some tokens
as for others, and for some tokens one of its values is a hundred times as large as all others. An encoder has one range
for all tokens, so its levels say little of most of them; and a range that is chosen for most tokens cuts that one value
off, which the attention of all later layers hangs on. Two exact changes help, for the layer is linear:

    W p + b  =  (W Hᵀ) (H p) + b             H a Hadamard matrix: it spreads a large value over all of its row
             =  m · (W Hᵀ) (H p / m) + b     m = max |H p| along the features

W Hᵀ are weights like any other. H p costs log2 of its size additions a value, before any spike (`ops.rotate`). The idea
of rotating is that of QuaRot (Ashkboos and others 2024). What both save on SmolLM2 stands in docs/encoders.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from parspike.graph.encode import scales
from parspike.graph.ir import Graph, Node, Param, Ref
from parspike.graph.ops import ROTATE, SIZE, rotate
from parspike.graph.parts import part_of

__all__ = ["with_scaled_rows"]


def with_scaled_rows(graph: Graph) -> Graph:
    """The same function, its linear layers behind products on rows that are rotated and in units of their largest
    value."""
    products = {node.name: product for node in graph.nodes if (product := _product(graph, node)) is not None}
    paths, tensors = _rotated(graph, products)
    taken = {i.name for i in graph.inputs} | set(graph.by_name)
    shared: dict[str, tuple[Ref, Ref]] = {}
    nodes: list[Node] = []

    def add(of: Node, suffix: str, target: str, shape: Sequence[Any], *args: Any, layer: str = "") -> Ref:
        varying = [arg.name for arg in args if isinstance(arg, Ref)]
        part = part_of(of, suffix, target, shape, args, varying, taken=taken)
        taken.add(part.name)
        nodes.append(replace(part, layer=layer or part.layer))
        return Ref(part.name)

    for node in graph.nodes:
        product = products.get(node.name)
        if product is None:
            nodes.append(node)
            continue
        if product.name not in shared:
            rotated = add(product, "rotated", ROTATE, product.shape, Ref(product.name))
            size = add(product, "size", SIZE, (*product.shape[:-1], 1), rotated, -1)
            share = add(product, "share", "aten.div.Tensor", product.shape, rotated, size)
            shared[product.name] = size, share
        size, share = shared[product.name]
        bias = node.args[2:]
        # The synapse keeps the name of its layer, the last part that of its value.
        weight = Param(paths[node.args[1].path])
        rows = add(node, "rows", node.target, node.shape, share, weight, layer=node.layer)
        last, name = "scaled" if bias else "", f"{node.layer}.scaled"
        scaled = add(node, last, "aten.mul.Tensor", node.shape, rows, size, layer=name)
        if bias:
            add(node, "", "aten.add.Tensor", node.shape, scaled, *bias, layer=f"{node.layer}.bias")
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _rotated(graph: Graph, products: Mapping[str, Node]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Where the rotated weights of these layers stand, by the path of the weights, and all tensors with them."""
    paths: dict[str, str] = {}
    tensors = dict(graph.tensors)
    for name in products:
        path = graph.by_name[name].args[1].path
        if path in paths:
            continue
        others = any(path in node.params for node in graph.nodes if node.name not in products)
        paths[path] = f"{name}.rotated" if others else path
        while others and paths[path] in tensors:
            paths[path] += "_"
        weight = graph.tensors[path]
        tensors[paths[path]] = rotate(weight.double()).to(weight.dtype)
    return paths, tensors


def _product(graph: Graph, node: Node) -> Node | None:
    """The product of two values, element by element, that a linear layer reads."""
    if node.target != "aten.linear.default" or not isinstance(node.args[1], Param):
        return None
    if not isinstance(node.args[0], Ref) or not all(isinstance(arg, Param) for arg in node.args[2:]):
        return None
    product = graph.by_name.get(node.args[0].name)
    return product if product is not None and len(product.refs) == 2 and scales(product) else None
