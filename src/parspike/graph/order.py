"""Where a maximum may be taken of spike trains, step by step.

The sorted trains of neurons that share their thresholds are nested: whoever counts more fires whenever the others
do. The maximum of their trains is then the train of the largest count (method.md, facts beyond the paper), also
after any operator that treats all places of a channel alike. Every other maximum is taken of the time-means.
"""

from __future__ import annotations

from collections.abc import Collection

from parspike.graph.ir import Graph, Node
from parspike.graph.ops import TABLE, Role

__all__ = ["nested", "spans_channels"]


def nested(graph: Graph, node: Node, spiking: Collection[str]) -> bool:
    """Whether an order operator compares nested trains. spiking: neurons whose code is sorted."""
    while node.name not in spiking:
        before = graph.by_name.get(node.refs[0]) if len(node.refs) == 1 else None
        alike = node.target == "parspike.scale_shift" or TABLE[node.target].role is Role.ORDER
        if before is None or not alike or spans_channels(before, node):
            return False
        node = before
    return True


def spans_channels(before: Node, node: Node) -> bool:
    """Whether an operator compares values of different channels, whose neurons have thresholds of their own."""
    if node.target not in ("aten.amax.default", "aten.amin.default"):
        return len(node.refs) != 1
    dims = node.args[1] if len(node.args) > 1 else []
    return not dims or before.channel_dim in [d % len(before.shape) for d in dims]
