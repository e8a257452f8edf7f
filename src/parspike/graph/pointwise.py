"""Elementwise functions written by hand: x·σ(x), x·(x > 0), x/(1 + |x|), GPT-2's GELU … found in the graph as one
function of one number, and fit for a staircase where that function rises, or falls once and then rises.

A function is written as a tree: the text "x", a number, or [operator, arguments, keywords].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parspike.graph.ir import Graph, Node, Param, Ref
from parspike.graph.ops import COMPLEX, POINTWISE, TABLE, Curve, Op, Role

__all__ = ["Turn", "evaluate", "function_of", "turn_of"]

TENSORS = ("aten.where.self", "aten.maximum.default", "aten.minimum.default")
FILLED = {"aten.zeros.default": 0.0, "aten.ones.default": 1.0, "aten.full.default": None}
LARGEST = 64
"""Operators of the largest function looked for."""
Turn = tuple[float, float]
"""Where a function that falls and then rises turns, and its value there."""


def evaluate(x: Tensor, tree: Any) -> Tensor:
    """A written function at x."""
    return _evaluate(x, tree)


def _evaluate(x: Tensor, tree: Any) -> Any:
    if isinstance(tree, str):
        return x
    if not isinstance(tree, list):
        return tree
    target, args, options = tree
    values = [_evaluate(x, arg) for arg in args]
    if target in TENSORS:  # these take no numbers
        values = [v if isinstance(v, Tensor) else torch.full((), v, dtype=x.dtype, device=x.device) for v in values]
    return TABLE[target].run(*values, **options)


def _known(tree: Any) -> bool:
    if isinstance(tree, list):
        return len(tree) == 3 and tree[0] in POINTWISE and all(_known(arg) for arg in tree[1])
    return tree == "x" or not isinstance(tree, (str, dict, tuple))


def _activation(node: Node) -> Curve | str:
    return Curve() if _known(node.args[1]) and isinstance(node.args[1], list) else "it is no written function"


TABLE["parspike.pointwise"] = Op(Role.NEURON, evaluate, varying=(0,), activation=_activation)


def function_of(graph: Graph, node: Node) -> tuple[str, Any] | None:
    """An elementwise node as a function of the one earlier value that it depends on: (its name, tree); else None."""
    index = {n.name: i for i, n in enumerate(graph.nodes)}
    inside, frontier = [node], set(node.refs)
    while True:
        names = sorted(frontier, key=lambda name: index.get(name, -1))
        last = graph.by_name.get(names[-1]) if names else None
        # A single value is the argument, but an activation in front of it is part of the function: relu(x)².
        done = len(names) == 1 and (last is None or last.role is not Role.NEURON or last.target not in POINTWISE)
        if done or last is None or last.target not in POINTWISE or len(inside) > LARGEST:
            break
        inside.append(last)
        frontier = (frontier - {last.name}) | set(last.refs)
    if not done or len(inside) < 2 or any(n.target not in POINTWISE or n.reason == COMPLEX for n in inside):
        return None
    tree = _tree(Ref(node.name), names[0], graph)
    return None if tree is None else (names[0], tree)


def _tree(value: Any, root: str, graph: Graph) -> Any:
    if isinstance(value, Ref) and value.name == root:
        return "x"
    if isinstance(value, Ref):
        node = graph.by_name[value.name]
        if node.target in FILLED:
            return FILLED[node.target] if node.target != "aten.full.default" else node.args[1]
        args = [_tree(arg, root, graph) for arg in node.args]
        return None if any(a is None and b is not None for a, b in zip(args, node.args, strict=True)) else [
            node.target, args, dict(node.kwargs)
        ]  # fmt: skip
    if isinstance(value, Param):
        tensor = graph.tensors[value.path]
        return tensor.item() if tensor.numel() == 1 else None
    return value if isinstance(value, (int, float, bool, torch.dtype)) else None


def turn_of(function: Callable[[Tensor], Tensor]) -> Turn | str | None:
    """None for a function that never falls, its turn for one that falls and then rises, else where it does not."""
    far = torch.logspace(math.log10(60), 4, 2001)
    grid = torch.cat([torch.linspace(-60, 60, 60001), torch.linspace(-4, 4, 80001), far, -far]).double().unique()
    y = function(grid)
    seen = y.isfinite() if y.shape == grid.shape and y.is_floating_point() else torch.zeros_like(grid, dtype=torch.bool)
    if not bool(seen[grid.abs() <= 60].all()):
        return "it gives NaN, Inf, no floats or another shape on [−60, 60]"
    grid, y = grid[seen], y[seen]
    # Rounding of the value, and of the number that it was made from.
    size = torch.maximum(y.abs(), grid.abs()).clamp(min=1)
    slack = 1e-12 * torch.maximum(size[1:], size[:-1])
    falls, rises = y.diff() < -slack, y.diff() > slack
    if not bool(falls.any()):
        return None
    last_fall = int(falls.nonzero()[-1])
    if bool(rises[:last_fall].any()) or not bool(rises.any()):
        near = falls & (grid[:-1] >= -60)
        at = int((near if bool(near.any()) else falls).nonzero()[0]) if not bool(rises.any()) else last_fall
        here, there = (f"{float(y[i]):.6g} at {float(grid[i]):.6g}" for i in (at, at + 1))
        return f"it falls from {here} to {there}"
    least = int(y.argmin())
    low, high = grid[max(least - 1, 0)], grid[min(least + 1, len(grid) - 1)]
    for _ in range(100):
        third = (high - low) / 3
        falling = function((low + third).reshape(1)) > function((high - third).reshape(1))
        low, high = (low + third, high) if bool(falling) else (low, high - third)
    at = (low + high) / 2
    return float(at), float(function(at.reshape(1)))
