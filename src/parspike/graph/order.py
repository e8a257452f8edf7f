"""Where a maximum may be taken of spike trains, step by step.

The sorted trains of neurons that share their thresholds are nested: a neuron with a higher count fires at every step at
which one with a lower count fires. The maximum of their trains is then the train of the largest count (method.md, facts
beyond the paper), also after any operator that treats all compared values alike. Thresholds run along one dimension of
a layer, its channels, so the proof follows the compared dimensions back to the neurons, through permutations, reshapes,
batch norms and other maxima, and checks whether the channels are among them. Every other maximum is taken of the
time-means.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from parspike.graph.features import permuted
from parspike.graph.ir import Graph, Node
from parspike.graph.ops import TABLE, Role
from parspike.graph.signature import Pool, arguments

__all__ = ["PLACES", "compared", "nested", "spans_channels", "unnested", "values_alone"]

EXTREMA = ("aten.amax.default", "aten.amin.default")
PLACES = (
    "aten.max.dim", "aten.min.dim", "aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default",
    *(f"aten.adaptive_max_pool{d}d.places" for d in "123"),
)  # fmt: skip
"""Operators that give maxima, or minima, and their places."""
RESHAPES = ("aten.reshape.default", "aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.dims",
            "aten.squeeze.default")  # fmt: skip


def nested(graph: Graph, node: Node, spiking: Collection[str]) -> bool:
    """Whether an order operator compares nested trains. spiking: neurons whose code is sorted."""
    return not unnested(graph, node, spiking)


def unnested(graph: Graph, node: Node, spiking: Collection[str]) -> str:
    """Why an order operator does not compare nested trains, as text; "" where it does."""
    dims: set[int] = set()
    """Dimensions of the value in hand along which compared values lie."""
    while node.name not in spiking:
        row = TABLE.get(node.target)
        order = row is not None and row.role is Role.ORDER
        if order and (len(node.refs) != 1 or node.params):
            return "it compares values of different layers" if len(node.refs) > 1 else "it compares with a constant"
        before = graph.by_name.get(node.refs[0]) if len(node.refs) == 1 else None
        if before is None or not (order or _alike(node)):
            return f"'{node.layer}' stands between it and the neurons" if dims else "what it compares is no spikes"
        if node.target == "parspike.scale_shift" and 1 in dims:
            return f"the scales of '{node.layer}' differ along dimension 1, which it compares"
        dims = _earlier(before, node, dims) | (compared(before, node) if order else set())
        node = before
    if node.channels > 1 and (shared := dims.intersection(node.channel_dims)):
        return f"it compares channels of '{node.layer}' (dimension {min(shared)}), whose thresholds differ"
    return ""


def _alike(node: Node) -> bool:
    """Whether an operator only moves values, or scales those of a channel alike."""
    moves = node.target in (*RESHAPES, "aten.permute.default", "aten.transpose.int", "parspike.scale_shift")
    return moves and node.role is Role.SYNAPSE


def _earlier(before: Node, node: Node, dims: Collection[int]) -> set[int]:
    """The dimensions of what a node reads that dimensions of its output are made of."""
    if (order := permuted(node, len(before.shape))) is not None:
        return {order[d] for d in dims}
    if node.target in EXTREMA and len(node.shape) != len(before.shape):
        left = [d for d in range(len(before.shape)) if d not in compared(before, node)]
        return {left[d] for d in dims}
    if node.target in RESHAPES:
        return _unshaped(before.shape, node.shape, dims)
    return set(dims)


def _unshaped(old: tuple[Any, ...], new: tuple[Any, ...], dims: Collection[int]) -> set[int]:
    """Through a reshape: the equal dimensions at both ends stay, those between are taken together."""
    first = 0
    while first < min(len(old), len(new)) and old[first] == new[first]:
        first += 1
    last = 0
    while last < min(len(old), len(new)) - first and old[-1 - last] == new[-1 - last]:
        last += 1
    middle = set(range(first, len(old) - last))
    found: set[int] = set()
    for d in dims:
        found |= {d} if d < first else {d - len(new) + len(old)} if d >= len(new) - last else middle
    return found


def compared(before: Node, node: Node) -> set[int]:
    """The dimensions of `before`, the one value that an order operator reads, along which it compares."""
    rank = len(before.shape)
    pool = arguments(node)
    if not isinstance(pool, Pool):
        dims = node.args[1] if node.target in EXTREMA and len(node.args) > 1 else []
        return {d % rank for d in dims} or set(range(rank))
    return {rank - pool.rank + i for i in range(pool.rank) if not pool.kernel or pool.kernel[i] != 1}


def spans_channels(before: Node, node: Node) -> bool:
    """Whether an order operator compares values of different channels, whose neurons have thresholds of their own."""
    return len(node.refs) != 1 or bool(compared(before, node).intersection(before.channel_dims))


def values_alone(target: str, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """One of `PLACES` without the places."""
    if target in ("aten.max.dim", "aten.min.dim"):
        return f"aten.a{target[5:8]}.default", (args[0], [args[1]], *args[2:])
    return target.replace("_with_indices", "").replace(".places", ".default"), args
