"""Products in front of a linear layer, each row in units of its largest value.

In the gated layers of language models, down(act(gate(x)) · up(x)), the product is fifty times as large for some tokens
as for others. An encoder has one range for all tokens, so its levels say little of most of them. Each row divided by
its largest value in front of the encoder, and the layer's output multiplied by it, is the same function, for the layer
is linear:

    W p + b  =  m · W (p / m) + b,   m = max |p| along the features

What that saves on SmolLM2 stands in docs/encoders.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from parspike.graph.encode import scales
from parspike.graph.ir import Graph, Node, Param, Ref
from parspike.graph.ops import SIZE
from parspike.graph.parts import part_of

__all__ = ["with_scaled_rows"]


def with_scaled_rows(graph: Graph) -> Graph:
    """The same function, its linear layers behind products in units of each row's largest value."""
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
        product = _product(graph, node)
        if product is None:
            nodes.append(node)
            continue
        if product.name not in shared:
            size = add(product, "size", SIZE, (*product.shape[:-1], 1), Ref(product.name), -1)
            share = add(product, "share", "aten.div.Tensor", product.shape, Ref(product.name), size)
            shared[product.name] = size, share
        size, share = shared[product.name]
        bias = node.args[2:]
        # The synapse keeps the name of its layer, the last part that of its value.
        rows = add(node, "rows", node.target, node.shape, share, node.args[1], layer=node.layer)
        last, name = "scaled" if bias else "", f"{node.layer}.scaled"
        scaled = add(node, last, "aten.mul.Tensor", node.shape, rows, size, layer=name)
        if bias:
            add(node, "", "aten.add.Tensor", node.shape, scaled, *bias, layer=f"{node.layer}.bias")
    return replace(graph, nodes=tuple(nodes))


def _product(graph: Graph, node: Node) -> Node | None:
    """The product of two values, element by element, that a linear layer reads."""
    if node.target != "aten.linear.default" or not isinstance(node.args[1], Param):
        return None
    if not isinstance(node.args[0], Ref) or not all(isinstance(arg, Param) for arg in node.args[2:]):
        return None
    product = graph.by_name.get(node.args[0].name)
    return product if product is not None and len(product.refs) == 2 and scales(product) else None
