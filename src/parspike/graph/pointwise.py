"""Elementwise functions written by hand: x·σ(x), log(1 + exp(x)), where(x > 20, 20, x·(x > 0)), round(x/s)·s … found
in the graph as one function of one number.

A function is written as a tree: the text "x", a number, or [operator, arguments, keywords]. While it is looked at, a
tree may also hold tensors (C, 1), a number for every channel. What can be made of such a function is decided in
`course` (does it never fall, is it a clip?) and in `levels` (is it a quantiser?).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parspike.graph.ir import BATCH, Device, Graph, Node, Param, Ref, Size, leaves, map_tree
from parspike.graph.ops import ACROSS_BATCH, CASTS, COMPLEX, FAKE_QUANTISE, POINTWISE, TABLE, WHOLE, Curve, Op, Role

__all__ = ["Written", "evaluate", "functions_of", "numbers", "polynomial", "steps", "uncast"]


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in names.split())


TENSORS = _aten("""
    where.self maximum.default minimum.default fmax.default fmin.default gt.Tensor ge.Tensor lt.Tensor le.Tensor
    clamp.Tensor clamp_min.Tensor clamp_max.Tensor masked_fill.Tensor
""")
"""Operators that take no numbers in place of tensors."""
FILLED = {"aten.zeros.default": 0, "aten.ones.default": 1, "aten.full.default": None}
SPREAD = ("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default", "aten.reshape.default")
PRODUCTS = ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar")
AFFINE = _aten("""
    add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar rsub.Tensor neg.default type_as.default
""") | {*PRODUCTS, *CASTS}
POLYNOMIAL = AFFINE | _aten("""
    abs.default relu.default relu6.default clamp.default clamp_min.default clamp_max.default hardtanh.default
    leaky_relu.default threshold.default gt.Scalar ge.Scalar lt.Scalar le.Scalar gt.Tensor ge.Tensor lt.Tensor
    le.Tensor where.self where.ScalarOther where.ScalarSelf maximum.default minimum.default fmax.default
    fmin.default masked_fill.Scalar masked_fill.Tensor sign.default logical_and.default logical_or.default
    logical_not.default bitwise_and.Tensor bitwise_or.Tensor __and__.Tensor __or__.Tensor clamp.Tensor
    clamp_min.Tensor clamp_max.Tensor
""")
"""Operators that give polynomials between corners: two that agree on a grid that holds all corners agree anywhere."""
STEPS = _aten("""
    floor.default round.default ceil.default trunc.default div.Tensor_mode div.Scalar_mode floor_divide.default
    remainder.Scalar sign.default gt.Scalar ge.Scalar lt.Scalar le.Scalar gt.Tensor ge.Tensor lt.Tensor le.Tensor
""")
OF_EITHER = _aten("""
    abs.default relu.default relu6.default clamp.default clamp_min.default clamp_max.default hardtanh.default
    threshold.default
""")
"""Activations whose result is whole where they read whole numbers."""
LONGEST = 1 << 10
"""Operators of a function as a tree, at most: x + x, thirty times over, is a tree of 2^30."""
LARGEST = 64
"""Operators of the largest function looked for."""


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
    for place, value in enumerate(values):
        if isinstance(value, (bool, int, float)) and (place == 0 or target in TENSORS):
            dtype = torch.bool if isinstance(value, bool) else x.dtype
            values[place] = torch.full((), value, dtype=dtype, device=x.device)
    return TABLE[target].run(*values, **options)


def _known(tree: Any) -> bool:
    if isinstance(tree, list):
        return len(tree) == 3 and tree[0] in POINTWISE and all(_known(arg) for arg in tree[1])
    return tree == "x" or not isinstance(tree, (str, dict, tuple))


def _activation(node: Node) -> Curve | str:
    return Curve() if _known(node.args[1]) and isinstance(node.args[1], list) else "it is no written function"


TABLE["parspike.pointwise"] = Op(Role.NEURON, evaluate, varying=(0,), activation=_activation)


@dataclass(frozen=True)
class Written:
    """A function written by hand. source: the value that it is a function of. inside: its nodes, the last one first.

    casts: types that values are cast to on the way. filled: types of tensors in whose place the tree has numbers.
    """

    source: str
    tree: Any
    inside: tuple[Node, ...]
    casts: frozenset[torch.dtype]
    filled: frozenset[torch.dtype]

    @property
    def curved(self) -> list[Node]:
        """The operators that are not affine in what they read."""
        return [node for node in self.inside if _curved(node)]

    @property
    def a_single_step(self) -> bool:
        """Whether it is a single analog operator with a scale or a shift: exp(2·x), √(x + ε), x·x."""
        curved = self.curved
        if len(curved) != 1 or curved[0].role is not Role.ANALOG or curved[0].target in FAKE_QUANTISE:
            return not curved
        return len(set(_varying(curved[0], {}))) < 2

    @property
    def joins(self) -> bool:
        """Whether an operator in it reads two values that both depend on the source."""
        return any(len(set(_varying(node, {}))) > 1 for node in self.inside)

    @property
    def per_channel(self) -> bool:
        """Whether a number in it is another one for every channel."""
        return any(isinstance(leaf, Tensor) for leaf in leaves(self.tree))


class _NoFunctionError(Exception):
    pass


def functions_of(graph: Graph, node: Node) -> Iterator[Written]:
    """The functions of one value that end at an elementwise node, one for each earlier value that alone determines the
    result; the largest function first."""
    index = {n.name: i for i, n in enumerate(graph.nodes)}
    shapes = {i.name: i.shape for i in graph.inputs} | {n.name: n.shape for n in graph.nodes}
    inside, frontier = [node], set(_varying(node, graph.by_name))
    found: list[tuple[str, tuple[Node, ...]]] = []
    while frontier and len(inside) <= LARGEST:
        if len(frontier) == 1 and (len(inside) > 1 or node.target in FAKE_QUANTISE or node.role is Role.ORDER):
            found.append((next(iter(frontier)), tuple(inside)))
        last = graph.by_name.get(max(frontier, key=lambda name: index.get(name, -1)))
        if last is None or last.target not in POINTWISE or last.reason in (COMPLEX, ACROSS_BATCH):
            break
        inside.append(last)
        frontier = (frontier - {last.name}) | set(_varying(last, graph.by_name))
    for source, nodes in reversed(found):
        varies = any(isinstance(dim, Size) and BATCH in dim.symbols for dim in shapes[source])  # else of sizes alone
        if varies and shapes[source] == node.shape and floating(graph, source) and _size(nodes) <= LONGEST:
            builder = _Builder(graph, node, source)
            try:
                tree = builder.tree(Ref(node.name))
            except _NoFunctionError:
                continue
            yield Written(source, tree, nodes, frozenset(builder.casts), frozenset(builder.filled))


def _size(inside: Sequence[Node]) -> int:
    """How many operators a function's tree holds, where a value that is read twice stands twice. inside: its nodes, the
    last first."""
    sizes: dict[str, int] = {}
    for node in reversed(inside):
        sizes[node.name] = 1 + sum(sizes.get(name, 0) for name in node.refs)
    return sizes[inside[0].name]


def _varying(node: Node, by_name: Mapping[str, Node]) -> list[str]:
    """Names of the values that a node reads, without those that do not depend on the network's input."""
    refs = [(name, by_name.get(name)) for name in node.refs]
    return [name for name, before in refs if before is None or not _constant(before)]


def _constant(node: Node) -> bool:
    return node.target in FILLED or (node.target in SPREAD and isinstance(node.args[0], Param))


def _curved(node: Node) -> bool:
    if node.target in CASTS:
        return not all(d.is_floating_point or d is torch.bool for d in leaves((node.args, node.kwargs)) if _is_type(d))
    return node.target not in AFFINE or (node.target in PRODUCTS and len(node.refs) > 1)


def _is_type(leaf: Any) -> bool:
    return isinstance(leaf, torch.dtype)


def floating(graph: Graph, name: str) -> bool:
    """Whether a value holds real numbers, since masks, indices and tokens are no currents."""
    node = graph.by_name.get(name)
    if node is None:
        return any(i.name == name and i.dtype.is_floating_point for i in graph.inputs)
    types = [leaf for leaf in leaves((node.args, node.kwargs)) if _is_type(leaf)]
    if types:
        return types[-1].is_floating_point
    row = TABLE.get(node.target)
    if row is None or node.reason == WHOLE or row.reason in ("a comparison", "sorting and choosing"):
        return False
    real = row.role is Role.NEURON and node.target not in OF_EITHER
    if row.weighted or real or "embedding" in node.target or node.target.startswith("aten.div."):
        return True
    values = leaves(node.args)
    return any(
        floating(graph, leaf.name) if isinstance(leaf, Ref)
        else graph.tensors[leaf.path].is_floating_point() if isinstance(leaf, Param)
        else isinstance(leaf, float)
        for leaf in values
    )  # fmt: skip


class _Builder:
    """Writes the nodes between a value and a node as a tree."""

    def __init__(self, graph: Graph, node: Node, source: str) -> None:
        self.graph, self.node, self.source = graph, node, source
        self.casts: set[torch.dtype] = set()
        self.filled: set[torch.dtype] = set()

    def tree(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return "x" if value.name == self.source else self._of_node(self.graph.by_name[value.name])
        if isinstance(value, Param):
            return self._of_tensor(self.graph.tensors[value.path])
        if value is None or isinstance(value, (int, float)):
            return value
        if isinstance(value, torch.dtype):
            self._cast(value)
            return value
        raise _NoFunctionError

    def _cast(self, dtype: torch.dtype) -> None:
        if dtype.is_floating_point:
            self.casts.add(dtype)

    def _of_node(self, node: Node) -> Any:
        if node.target in FILLED:
            value = self.tree(node.args[1]) if FILLED[node.target] is None else FILLED[node.target]
            dtype = next((leaf for leaf in leaves(node.kwargs) if _is_type(leaf)), torch.get_default_dtype())
            if isinstance(value, (list, str, Tensor)) or dtype.is_complex:
                raise _NoFunctionError
            if node.shape and dtype.is_floating_point:
                self.filled.add(dtype)
            return bool(value) if dtype is torch.bool else float(value) if dtype.is_floating_point else int(value)
        if _constant(node):
            return self.tree(node.args[0])
        if node.target in FAKE_QUANTISE:
            return self._fake_quantised(node)
        options = {key: value for key, value in node.kwargs.items() if value is not None and value is not False}
        options = {key: value for key, value in options.items() if not isinstance(value, Device)}
        if not all(isinstance(value, (int, float, str, torch.dtype)) for value in options.values()):
            raise _NoFunctionError
        for value in options.values():
            if _is_type(value):
                self._cast(value)
        return _simplified([node.target, [self.tree(arg) for arg in node.args], options])

    def _of_tensor(self, tensor: Tensor) -> Any:
        if tensor.is_complex():
            raise _NoFunctionError
        if tensor.numel() == 1:
            if tensor.dim() and tensor.is_floating_point():
                self.filled.add(tensor.dtype)
            return tensor.item()
        place = self.node.channel_dims[0] - len(self.node.shape) + tensor.dim()
        alone = (
            len(self.node.channel_dims) == 1
            and 0 <= place < tensor.dim()
            and tensor.shape[place] == tensor.numel() == self.node.channels
        )
        if not alone or not tensor.is_floating_point():
            raise _NoFunctionError
        self.filled.add(tensor.dtype)
        return tensor.double().reshape(-1, 1)

    def _fake_quantised(self, node: Node) -> Any:
        """clamp(round(x/scale) + zero, least, most), and back."""
        x, scale, zero, *rest = node.args
        if any(isinstance(value, Ref) for value in (scale, zero, *rest)):
            raise _NoFunctionError
        if "per_channel" in node.target:
            axis, *rest = rest
            if (axis % len(node.shape),) != self.node.channel_dims:
                raise _NoFunctionError
        scale, zero = (
            self.graph.tensors[value.path] if isinstance(value, Param) else torch.tensor(value)
            for value in (scale, zero)
        )
        if {scale.numel(), zero.numel()} - {1, self.node.channels}:
            raise _NoFunctionError
        values = [t.item() if t.numel() == 1 else t.double().reshape(-1, 1) for t in (scale.float(), zero)]
        whole = ["aten.round.default", [["aten.div.Tensor", [self.tree(x), values[0]], {}]], {}]
        moved = ["aten.clamp.default", [["aten.add.Tensor", [whole, values[1]], {}], rest[0], rest[1]], {}]
        return ["aten.mul.Tensor", [["aten.sub.Tensor", [moved, values[1]], {}], values[0]], {}]


def _simplified(tree: Any) -> Any:
    """The tree without the terms that a straight-through estimator adds in the forward pass: (a − b) + b and b − (b −
    a) are a."""
    target, args, options = tree
    if target in ("aten.add.Tensor", "aten.sub.Tensor") and not options:
        for one, other in ((args[0], args[1]), (args[1], args[0])):
            minus = isinstance(one, list) and one[0] == "aten.sub.Tensor" and not one[2]
            if minus and target == "aten.add.Tensor" and _equal(one[1][1], other):
                return one[1][0]
        minus = isinstance(args[1], list) and args[1][0] == "aten.sub.Tensor" and not args[1][2]
        if minus and target == "aten.sub.Tensor" and _equal(args[1][1][0], args[0]):
            return args[1][1][1]
    return tree


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return type(one) is type(other) and one == other


def uncast(tree: Any) -> Any:
    """The same function without the rounding of its casts, to look at in float64."""
    return map_tree(lambda leaf: torch.float64 if _is_type(leaf) and leaf.is_floating_point else leaf, tree)


def numbers(tree: Any) -> list[float]:
    """The numbers that stand in a function."""
    return [float(leaf) for leaf in leaves(tree) if isinstance(leaf, (int, float)) and not isinstance(leaf, bool)]


def polynomial(tree: Any) -> bool:
    """Whether a function is made of pieces of polynomials."""
    return not isinstance(tree, list) or (tree[0] in POLYNOMIAL and all(polynomial(arg) for arg in tree[1]))


def steps(tree: Any) -> bool:
    """Whether an operator of a function makes a step: one that rounds, compares or casts to whole numbers."""
    whole = (leaf for leaf in leaves(tree) if _is_type(leaf) and not leaf.is_floating_point)
    return next(whole, None) is not None or any(leaf in STEPS for leaf in leaves(tree) if isinstance(leaf, str))
