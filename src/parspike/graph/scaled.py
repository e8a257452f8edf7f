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
from parspike.graph.refusals import judge

__all__ = ["with_scaled_rows"]


def with_scaled_rows(graph: Graph) -> Graph:
    """The same function, its linear layers behind products in units of each row's largest value."""
    taken = {i.name for i in graph.inputs} | set(graph.by_name)
    shared: dict[str, tuple[Ref, Ref]] = {}
    nodes: list[Node] = []

    def add(of: Node, name: str, target: str, shape: Sequence[Any], layer: str, *args: Any) -> Ref:
        while name in taken and name != of.name:
            name += "_"
        taken.add(name)
        role, reason = judge(target, [isinstance(arg, Ref) for arg in args])
        nodes.append(replace(of, name=name, target=target, args=args, kwargs={}, role=role, reason=reason, layer=layer,
                             shape=tuple(shape)))  # fmt: skip
        return Ref(name)

    for node in graph.nodes:
        product = _product(graph, node)
        if product is None:
            nodes.append(node)
            continue
        name, layer = product.name, product.layer
        if name not in shared:
            size = add(product, f"{name}_size", SIZE, (*product.shape[:-1], 1), f"{layer}.size", Ref(name), -1)
            share = add(product, f"{name}_share", "aten.div.Tensor", product.shape, f"{layer}.share", Ref(name), size)
            shared[name] = size, share
        size, share = shared[name]
        bias = node.args[2:]
        rows = add(node, f"{node.name}_rows", node.target, node.shape, node.layer, share, node.args[1])
        last = f"{node.name}_scaled" if bias else node.name
        scaled = add(node, last, "aten.mul.Tensor", node.shape, f"{node.layer}.scaled", rows, size)
        if bias:
            add(node, node.name, "aten.add.Tensor", node.shape, f"{node.layer}.bias", scaled, *bias)
    return replace(graph, nodes=tuple(nodes))


def _product(graph: Graph, node: Node) -> Node | None:
    """The product of two values, element by element, that a linear layer reads."""
    if node.target != "aten.linear.default" or not isinstance(node.args[1], Param):
        return None
    if not isinstance(node.args[0], Ref) or not all(isinstance(arg, Param) for arg in node.args[2:]):
        return None
    product = graph.by_name.get(node.args[0].name)
    return product if product is not None and len(product.refs) == 2 and scales(product) else None
