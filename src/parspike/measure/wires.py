"""Which elements a spike reaches: the operators of a graph as wires and as synapses, independent of their weights.

A wire is an operator that is linear and has no weights of its own: a sum of branches, a concatenation, an average
pool, a reshape. A spike passes it to every element that it has a share in; the wire's factors belong to the weights
behind it. A weighted synapse has an edge wherever its geometry has a weight, zero or not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from parspike.graph import Node, Ref, Role, leaves, map_tree
from parspike.graph.ops import ACROSS_BATCH, TABLE, call

__all__ = ["at_refs", "carry", "fan_out", "macs_of", "one_sample", "present", "role_of", "summed"]

Once = Callable[[Node, Any, Callable[[], Any]], Any]
"""once(node, args, make): what make() gave for this node and arguments of these shapes."""
NEGLIGIBLE = 1e-6
"""Shares of a spike below it are rounding: interpolation gives its neighbours 1 and 0."""


def role_of(node: Node) -> Role:
    """A node's role for spikes: an operator across the batch keeps the role that the table gives it."""
    return TABLE[node.target].role if node.reason == ACROSS_BATCH else node.role


def at_refs(tree: Any, resolved: Any, names: Collection[str]) -> list[Any]:
    """The values at the references to `names`, in order. tree: a node's arguments; resolved: with the values put in."""
    found: list[Any] = []
    _swap(tree, resolved, names, lambda value: found.append(value), lambda leaf: leaf)
    return found


def _swap(
    tree: Any, resolved: Any, names: Collection[str], put: Callable[[Any], Any], other: Callable[[Any], Any]
) -> Any:
    """Resolved arguments with put(value) at references to `names` and other(leaf) elsewhere."""
    if isinstance(tree, Ref) and tree.name in names:
        return put(resolved)
    if isinstance(tree, (tuple, list)):
        return type(tree)([_swap(a, b, names, put, other) for a, b in zip(tree, resolved, strict=True)])
    if isinstance(tree, dict):
        return {key: _swap(tree[key], resolved[key], names, put, other) for key in tree}
    return map_tree(other, resolved)


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def carry(
    node: Node, args: Any, kwargs: dict[str, Any], signals: list[Any], names: Collection[str], once: Once | None = None
) -> Any:
    """Spikes behind a wire: how many reach each element of its output, None where none does.

    args, kwargs: the arguments, whose values count by their shapes alone. signals: spikes at each reference to
    `names`, float64 in the value's shape, or None. Of a wire with one input the sign of its factors stays on the
    spikes, so that a maximum behind it is the right one. A spike that comes along several wires one behind the other
    counts once for each way. once: keeps what is the same for all values of one shape.
    """
    if all(signal is None for signal in signals):
        return None
    values = at_refs(node.args, args, names)
    zeros = [_like(value, 0.0) for value in values]

    def run(put: list[Any]) -> Any:
        queue = iter(put)
        return call(node.target, _swap(node.args, args, names, lambda _: next(queue), _double), kwargs)

    sources = TABLE[node.target].sources
    if sources == "window":
        return _through_windows(lambda x: run([x]), signals[0].abs())

    def put_in(i: int, x: Any) -> Any:
        return run([*zeros[:i], x, *zeros[i + 1 :]])

    def shares() -> tuple[Any, list[Any]]:
        return one_sample(run(zeros)), [one_sample(put_in(i, _like(value, 1.0))) for i, value in enumerate(values)]

    total: Any = None
    nothing, alone_ones = shares() if once is None else once(node, args, shares)
    for i, (value, signal, ones) in enumerate(zip(values, signals, alone_ones, strict=True)):
        if signal is None:
            continue
        sent = put_in(i, signal if len(values) == 1 and sources == "one" else map_tree(torch.abs, signal))
        # Of a sum or a mean, `ones` gives the common factor times the number of elements that each output sums.
        sums = value.numel() / max(1, ones.numel()) if sources == "sum" else 1.0
        triples = zip(leaves(sent), leaves(ones), leaves(nothing), strict=True)
        parts = iter([_share(a, b, c, sums) for a, b, c in triples])
        part = map_tree(lambda _, parts=parts: next(parts), sent)
        total = part if total is None else _of_pairs(lambda a, b: a.abs() + b.abs(), total, part)
    return total


def present(node: Node, args: Any, kwargs: dict[str, Any], signals: list[Any], names: Collection[str]) -> Any:
    """Where the output of a wire, an activation or a maximum may be other than 0: ones, and 0 for a constant zero.

    signals: the same of the values at each reference to `names`. The zeros that padding puts around a value have no
    edge at the synapse behind, whether that synapse pads or an operator before it.
    """

    def run(put: Sequence[Any], other: Callable[[Any], Any] = _double) -> Any:
        queue = iter(put)
        return call(node.target, _swap(node.args, args, names, lambda _: next(queue), other), kwargs)

    values, role = at_refs(node.args, args, names), role_of(node)
    if role is Role.NEURON:
        found = [signals[0], run([torch.zeros_like(values[0])], lambda leaf: leaf)]
    elif role is Role.ORDER:  # whether values are above or below 0 is not known
        found = [run([map_tree(lambda x, sign=sign: x * sign, s) for s in signals]) for sign in (1.0, -1.0, 0.0)]
    else:
        found = [carry(node, args, kwargs, signals, names)]
        if TABLE[node.target].sources != "window":
            found.append(run([_like(value, 0.0) for value in values]))
    seen = map_tree(lambda leaf: leaf != 0, found[0])
    for other in found[1:]:
        seen = _of_pairs(lambda a, b: a | (b != 0), seen, other)
    return map_tree(lambda leaf: leaf.double(), seen)


def one_sample(tree: Any) -> Any:
    """The same values, with the memory of one sample where all samples are equal."""

    def shrunk(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or not torch.equal(leaf, leaf[:1].expand_as(leaf)):
            return leaf
        return leaf[:1].clone().expand_as(leaf)

    return map_tree(shrunk, tree)


def _share(sent: Tensor, ones: Tensor, nothing: Tensor, sums: float) -> Tensor:
    # A constant that a wire adds may be infinite (a mask): it is no share of any spike.
    factor = torch.nan_to_num(ones.double() - nothing.double(), 0.0, 0.0, 0.0)
    passed = torch.nan_to_num(sent.double() - nothing.double(), 0.0, 0.0, 0.0)
    return torch.where(factor != 0, passed * (sums / factor.abs()), 0.0).round()


def _like(value: Any, number: float) -> Any:
    return map_tree(lambda leaf: torch.full_like(leaf, number, dtype=torch.float64), value)


def _of_pairs(function: Callable[[Tensor, Tensor], Tensor], one: Any, other: Any) -> Any:
    """A function of the leaves of two trees alike."""
    second = iter(list(leaves(other)))
    return map_tree(lambda leaf: function(leaf, next(second)), one)


def _through_windows(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Separable wires (pools, interpolation): along one dimension after the other, each probed element by element."""
    spatial = x.shape[2:]
    for d, n in enumerate(spatial):
        eye = torch.eye(n, dtype=torch.float64, device=x.device)
        probe = eye.reshape(n, 1, *[n if i == d else 1 for i in range(len(spatial))]).expand(n, 1, *spatial)
        found = run(probe.contiguous()).abs().movedim(2 + d, 1).flatten(2).amax(2)
        x = (x.movedim(2 + d, -1) @ (found > NEGLIGIBLE).double()).movedim(-1, 2 + d)
    return x


def fan_out(node: Node, args: Any, kwargs: dict[str, Any], names: Collection[str]) -> Tensor:
    """Edges of a weighted synapse from each element of its one varying input, in a shape that broadcasts to it.

    It is the adjoint of the synapse with all weights 1, applied to ones: exact at borders, strides, groups.
    """
    (x,) = at_refs(node.args, args, names)
    if TABLE[node.target].varying == (0,):
        x = x[:1]  # the weights do not run along the first dimension, so one slice tells for all
    leaf = torch.zeros(x.shape, dtype=torch.float32, device=x.device, requires_grad=True)
    with torch.enable_grad():
        y = call(node.target, _swap(node.args, args, names, lambda _: leaf, _ones), kwargs).sum()
    (edges,) = torch.autograd.grad(y, leaf)
    return edges.double().round()


def summed(node: Node, args: Any, kwargs: dict[str, Any], signal: Tensor | None, names: Collection[str]) -> Any:
    """Spikes behind what stands for a pool or an interpolation in whole numbers (`adds_up`), None for None."""
    if signal is None:
        return None

    def reached(leaf: Any) -> Any:
        return (leaf.abs() > 0).double() if isinstance(leaf, Tensor) else leaf

    return call(node.target, _swap(node.args, args, names, lambda _: signal.abs(), reached), kwargs)


def _ones(leaf: Any) -> Any:
    return torch.ones_like(leaf, dtype=torch.float32) if isinstance(leaf, Tensor) else leaf


def macs_of(node: Node, args: Any, kwargs: dict[str, Any], output: Any, names: Collection[str]) -> float:
    """Multiply-accumulates of an analog operator for the batch: pairs that a product multiplies, else `Op.macs`."""
    row = TABLE[node.target]
    if row.product or row.weighted:
        pairs, added = (
            call(node.target, _swap(node.args, args, names, put, _ones), kwargs)
            for put in (_ones, lambda value: _ones(value) * 0)
        )
        return float((pairs.double() - added.double()).sum())
    if row.macs is not None:
        return float(row.macs(args, output))
    return float(max(leaf.numel() for leaf in leaves((args, output)) if isinstance(leaf, Tensor)))
