"""Functions of one number as neurons of their own: `analog="lookup"` beside `encode=`.

Softmax, norms and divisions are taken apart until a sum and a maximum are all of them that stays analog:

    softmax      e = exp(x − max x) as two staircases, up to 1/16 and above; their spikes weigh the product and add up
                 to its divisor
    a / b        a · (1/b), 1/b a staircase of −b, b > 0
    norm         c = x − mean x, v = mean c·c, y = c · (1/√(v + ε)), 1/√ a staircase of −(v + ε); over the features
                 of a token, over a group of channels, or over one channel
    length       √Σx·x, a deviation √v: a staircase of what is under the root. Divided by it, by its maximum with ε or
                 its sum with ε (F.normalize, x / (x.std() + ε)): one staircase 1/(√max(Σx·x, ε²) + ε')

1/b and 1/√b fall, and a neuron's output never does, so their neurons read −b. In every product, also c·c, the spikes of
one factor arrive over time, and each adds up what is held of the other: its mean. An operator that
is no such function stays analog and named, and so does a divisor that may be negative, and what stands behind the last
weights (a read-out). Activations that fall and then rise (GELU, SiLU) stay computed, see `encode.computed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch

from parspike.graph.encode import SMALL
from parspike.graph.features import ATTENTION
from parspike.graph.ir import Graph, Node, Param, Ref, Size, leaves
from parspike.graph.ops import (
    CASTS,
    EXP,
    FLOOR,
    LARGEST,
    LOWEST,
    RECIPROCAL,
    ROOT,
    RSQRT,
    SHARES,
    TABLE,
    TIMES,
    USER,
    WEIGHTS,
    Role,
    call,
)
from parspike.graph.parts import part_of
from parspike.graph.pointwise import floating
from parspike.graph.roles import readouts
from parspike.graph.signature import named

__all__ = ["LOOKED_UP", "TAKEN", "Analog", "looked_up"]

Analog = Literal["computed", "lookup"]
"""What becomes of softmax, norms and divisions: computed on the means over time; neurons, as the module says."""
LOOKED_UP = (EXP, RECIPROCAL, RSQRT, ROOT)
SOFTMAX = ("aten.softmax.int", "aten._softmax.default")
NORMS = ("aten.layer_norm.default", "aten.rms_norm.default")
GROUPED = ("aten.group_norm.default", "aten.instance_norm.default")
LENGTHS = ("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim")
SPREADS = ("aten.var.correction", "aten.std.correction", "aten.var.dim", "aten.std.dim")
BOTH = "aten.var_mean.correction"
"""Variance and mean at once."""
TAKEN = (*SOFTMAX, *NORMS, *GROUPED, *ATTENTION, *LENGTHS, *SPREADS, BOTH, WEIGHTS, SHARES)
"""Norms, lengths and the parts of attention, which look-ups stand for."""
PASSED = (*CASTS, "aten.reshape.default", "aten.expand.default",
          "aten.unsqueeze.default", "aten.permute.default", "aten.transpose.int", "aten.slice.Tensor",
          "aten.squeeze.dims", "aten.repeat.default")  # fmt: skip
"""Operators behind which a value is at least what it was at least."""
ADDED = ("aten.sum.dim_IntList", "aten.cumsum.default")
CHOSEN = ("aten.mean.dim", "aten.amax.default", "aten.amin.default", "aten.maximum.default", "aten.minimum.default",
          "aten.cat.default", "aten.stack.default", LARGEST)  # fmt: skip
"""Operators that give no value below the least that they are given."""
PRODUCTS = ("aten.mul.Tensor", "aten.mul.Scalar", "aten.matmul.default", "aten.bmm.default", "aten.mm.default",
            "aten.einsum.default", TIMES)  # fmt: skip
NOT_NEGATIVE = ("aten.square.default", *LENGTHS, *SPREADS, "aten.sqrt.default", WEIGHTS, *SOFTMAX)
POSITIVE = ("aten.exp.default", "aten.exp2.default", "aten.sigmoid.default", "aten.softplus.default",
            "aten.rsqrt.default", "aten.cosh.default", RECIPROCAL, RSQRT)  # fmt: skip
CLAMPED = ("aten.clamp.default", "aten.clamp_min.default")
LEAST = 1e-37
"""In place of a smaller divisor, so that its reciprocal is a number in float32."""
TOTAL = 0.5
"""The sum of a softmax's weights is at least 1, the largest weight, or 0 where all is masked and so is the product."""
BANDS = (0.0, 2**-4, 2**-2, math.inf)
"""1/Σ of a softmax's weights is 1 for the first token of a causal network, where it sees itself alone, and 1/50 for
later ones. With one neuron of 15 levels all below 1/30 was 0. Every band has a neuron of its own, with all levels."""


def looked_up(graph: Graph) -> Graph:
    """The graph with softmax, norms and divisions taken apart, as the module says."""
    made = _Parts(graph)
    for node in graph.nodes:
        made.take(node)
    return made.graph()


class _Parts:
    """The nodes made so far. varying: values that depend on the network's input. real: those made by weights, which
    spikes will stand for."""

    def __init__(self, graph: Graph) -> None:
        self.source, self.nodes = graph, dict[str, Node]()
        self.shapes: dict[str, Sequence[Any]] = {i.name: i.shape for i in graph.inputs}
        self.names = {*graph.by_name, *self.shapes}
        self.varying, self.real = set(self.shapes), set[str]()
        self.passed = set[str]()
        """Nodes that parts stand for, such as a root: to divide by it is one function of what is under it."""
        self.least = dict[str, float]()
        """What values are known to be at least."""
        # A product of two values is no read-out: encoders will make a synapse of it.
        both = [node.role is Role.ANALOG and TABLE[node.target].weighted for node in graph.nodes]
        made = (replace(n, role=Role.SYNAPSE) if two else n for n, two in zip(graph.nodes, both, strict=True))
        self.readout = readouts(replace(graph, nodes=tuple(made)), (), ())

    def graph(self) -> Graph:
        """Without what is read no more, such as the root that a division by it has made one function of."""
        needed, kept = set(self.source.outputs), list[Node]()
        for node in reversed(self.nodes.values()):
            if node.name in needed or node.name not in self.passed:
                needed.update(node.refs)
                kept.append(node)
        read = {path for node in kept for path in node.params}
        tensors = {path: tensor for path, tensor in self.source.tensors.items() if path in read}
        return replace(self.source, nodes=tuple(reversed(kept)), tensors=tensors)

    def keep(self, node: Node) -> None:
        """Put a node behind the others."""
        row = TABLE.get(node.target)
        self.nodes[node.name] = node
        self.shapes[node.name] = node.shape
        self.least[node.name] = self._least_of(node)
        if any(name in self.varying for name in node.refs):
            self.varying.add(node.name)
            if row is None or row.weighted or row.weighs or any(name in self.real for name in node.refs):
                self.real.add(node.name)

    def add(self, of: Node, suffix: str, target: str, shape: Sequence[Any], *args: Any) -> Ref:
        """A node that is part of another one; "" for its last, which has its name and layer."""
        part = part_of(of, suffix, target, shape, args, self.varying, taken=self.names)
        self.names.add(part.name)
        self.keep(part)
        return Ref(part.name)

    def take(self, node: Node) -> None:
        """A node of the source, or its parts."""
        if node.name in self.readout or not self._made(node):
            self.keep(node)

    def _made(self, node: Node) -> bool:
        name, args = node.target, node.args
        if name == WEIGHTS:
            self._weights(node, "", args[0], args[1])
        elif name == SHARES:
            self._shared(node, args[0], args[1])
        elif name in SOFTMAX and self._is_real(args[0]):
            weights = self._weights(node, "exp", args[0], args[1])
            at = args[1] % len(node.shape)
            shape = tuple(1 if d == at else n for d, n in enumerate(node.shape))
            total = self.add(node, "total", "aten.sum.dim_IntList", shape, weights, [args[1]], True)
            self._shared(node, weights, total)
        elif name in NORMS and isinstance(args[0], Ref):
            self._norm(node)
        elif name in GROUPED and isinstance(args[0], Ref):
            return self._grouped(node)
        elif _squares(node) and isinstance(args[0], Ref) and floating(self.source, args[0].name):
            self.add(node, "", TIMES, node.shape, args[0], args[0])
        elif name == "aten.mul.Tensor" and node.role is Role.ANALOG and all(self._is_real(x) for x in args[:2]):
            self._product(node, *args[:2])
        elif (name == "aten.rsqrt.default" or _power(node) == -0.5) and self._is_real(args[0]):
            self.add(node, "", RSQRT, node.shape, self._negative(node, args[0]), LEAST)
        elif (name == "aten.reciprocal.default" or _power(node) == -1) and self._is_real(args[0]):
            return self._inverse(node, args[0], last=True) is not None
        elif (name == "aten.sqrt.default" or _power(node) == 0.5) and self._is_real(args[0]):
            self.add(node, "", ROOT, node.shape, args[0])
        elif name in LENGTHS and isinstance(args[0], Ref) and floating(self.source, args[0].name):
            return self._length(node)
        elif name in SPREADS and isinstance(args[0], Ref) and floating(self.source, args[0].name):
            return self._spread(node, node)
        elif name == "getitem" and (both := self.source.by_name[args[0].name]).target == BOTH:
            made = self._spread(node, both)
            self.passed.update([both.name] if made else [])
            return made
        elif name == "aten.exp.default" and self._is_real(args[0]):
            self.add(node, "", EXP, node.shape, args[0])
        elif name == "aten.div.Tensor" and len(args) == 2 and not node.kwargs and self._is_real(args[1]):
            return self._division(node, *args)
        else:
            return False
        return True

    def _is_real(self, value: Any) -> bool:
        return isinstance(value, Ref) and value.name in self.real and self._floating(value.name)

    def _floating(self, name: str) -> bool:
        return name not in self.source.by_name or floating(self.source, name)

    def _negative(self, of: Node, value: Ref) -> Ref:
        return self.add(of, "negative", "aten.neg.default", self.shapes[value.name], value)

    def _weights(self, node: Node, suffix: str, scores: Ref, dim: int) -> Ref:
        """exp(x − max x) as two staircases: what is masked stays 0 to the bit in both, and small weights have all
        levels of one, as the weights of a softmax that is computed have two encoders (`encode.SMALL`)."""
        shape = self.shapes[scores.name]
        one = tuple(1 if d == dim % len(shape) else n for d, n in enumerate(shape))
        most = self.add(node, "max", LARGEST, one, scores, dim)
        below = self.add(node, "below", "aten.sub.Tensor", shape, scores, most)
        floor = self.add(node, "least", FLOOR, shape, below, LOWEST)
        small = self.add(node, "small", EXP, shape, floor, LOWEST, 0.0, SMALL)
        large = self.add(node, "large", EXP, shape, floor, LOWEST, SMALL)
        return self.add(node, suffix, "aten.add.Tensor", shape, small, large)

    def _shared(self, node: Node, dividend: Any, total: Ref) -> None:
        """A value divided by the sum of a softmax's weights."""
        shape = self.shapes[total.name]
        negative = self._negative(node, total)
        bands = [
            self.add(node, f"reciprocal{number}", RECIPROCAL, shape, negative, TOTAL, low, high)
            for number, (low, high) in enumerate(pairwise(BANDS))
        ]
        inverse = bands[0]
        for number, band in enumerate(bands[1:]):
            inverse = self.add(node, f"inverse{number}", "aten.add.Tensor", shape, inverse, band)
        self._product(node, dividend, inverse)

    def _product(self, node: Node, one: Any, other: Any) -> None:
        """The product of two values: the spikes of the one that has fewer, or is a neuron already, add up the other.
        A constant is only scaled."""
        if not isinstance(one, Ref) or one.name not in self.varying:
            self.add(node, "", "aten.mul.Tensor", node.shape, other, one)
            return
        first, second = (self.nodes.get(x.name) for x in (one, other))
        fires = [n is not None and n.role is Role.NEURON for n in (first, second)]
        sizes = [sum(d == 1 for d in self.shapes[x.name]) for x in (one, other)]
        if (fires[1], sizes[1]) > (fires[0], sizes[0]):
            one, other = other, one
        self.add(node, "", TIMES, node.shape, one, other)

    def _norm(self, node: Node) -> None:
        number = len(node.args[1])
        centres = node.target == NORMS[0]
        given = (*node.args[2:], *(None, None, 1e-5)[len(node.args) - 2 :]) if centres else node.args[2:]
        weight, bias, eps = given[:3] if centres else (given[0], None, given[1])
        scaled = [p for p in (weight, bias) if p is not None]
        out = self._normal(node, "normal" if scaled else "", node.args[0], node.shape, number, eps, centres=centres)
        if weight is not None:
            out = self.add(node, "scaled" if bias is not None else "", "aten.mul.Tensor", node.shape, out, weight)
        if bias is not None:
            self.add(node, "", "aten.add.Tensor", node.shape, out, bias)

    def _grouped(self, node: Node) -> bool:
        """A norm over groups of channels, (B, C, …) as (B, groups, C / groups, …)."""
        given = named(node)
        x, weight, bias, shape = given["input"], given["weight"], given["bias"], node.shape
        if node.target == GROUPED[1] and not given["use_input_stats"]:
            return False
        channels = shape[1]
        groups = given["num_groups"] if node.target == GROUPED[0] else channels
        apart = (shape[0], groups, channels // groups, *shape[2:])
        grouped = self.add(node, "grouped", "aten.reshape.default", apart, x, list(apart))
        out = self._normal(node, "normal", grouped, apart, len(apart) - 2, given["eps"], centres=True)
        scaled = [p for p in (weight, bias) if p is not None]
        out = self.add(node, "whole" if scaled else "", "aten.reshape.default", shape, out, list(shape))
        along = [channels, *[1] * (len(shape) - 2)]
        for suffix, target, tensor in (("scale", "aten.mul.Tensor", weight), ("shift", "aten.add.Tensor", bias)):
            if tensor is not None:
                spread = self.add(node, f"{suffix}s", "aten.reshape.default", along, tensor, along)
                out = self.add(node, "" if tensor is scaled[-1] else suffix, target, shape, out, spread)
        return True

    def _normal(
        self, node: Node, suffix: str, x: Ref, shape: Sequence[Any], number: int, eps: Any, *, centres: bool
    ) -> Ref:
        """x/√(mean x² + ε) along the last `number` dimensions, after its mean was subtracted where it centres."""
        dims = list(range(-number, 0))
        one = (*shape[: len(shape) - number], *[1] * number)
        if centres:
            mean = self.add(node, "mean", "aten.mean.dim", one, x, dims, True)
            x = self.add(node, "centred", "aten.sub.Tensor", shape, x, mean)
        squares = self.add(node, "squares", TIMES, shape, x, x)
        power = self.add(node, "variance", "aten.mean.dim", one, squares, dims, True)
        power = self.add(node, "with_eps", "aten.add.Scalar", one, power, eps)
        inverse = self.add(node, "rsqrt", RSQRT, one, self._negative(node, power), LEAST)
        return self.add(node, suffix, TIMES, shape, inverse, x)

    def _length(self, node: Node) -> bool:
        """√Σx·x along some dimensions."""
        given = named(node)
        order = given["ord"] if "ord" in given else given["p"]
        if order not in (None, 2) or given["dim"] in (None, []) or given.get("dtype") is not None:
            return False
        x, dims = given["self"], given["dim"] if isinstance(given["dim"], list) else [given["dim"]]
        squares = self.add(node, "squares", TIMES, self.shapes[x.name], x, x)
        total = self.add(node, "total", ADDED[0], node.shape, squares, dims, bool(given["keepdim"]))
        self.add(node, "", ROOT, node.shape, total)
        return True

    def _spread(self, node: Node, of: Node) -> bool:
        """A variance, mean c·c of c = x − mean x, or its root; node: what of them is read, `of` itself where it gives
        one of them alone."""
        given = named(of)
        x, dims, keep = given["self"], given["dim"], bool(given["keepdim"])
        if isinstance(x, Ref) and node is not of and node.args[1] == 1:
            self.add(node, "", "aten.mean.dim", node.shape, x, dims, keep)
            return True
        less = given.get("correction", int(given.get("unbiased", True)))
        less = 1 if less is None else less
        if not isinstance(x, Ref) or not dims or not isinstance(less, int):
            return False
        shape = self.shapes[x.name]
        one = tuple(1 if d in [at % len(shape) for at in dims] else n for d, n in enumerate(shape))
        root = ".std." in of.target
        mean = self.add(node, "mean", "aten.mean.dim", one, x, dims, True)
        centred = self.add(node, "centred", "aten.sub.Tensor", shape, x, mean)
        squares = self.add(node, "squares", TIMES, shape, centred, centred)
        if less:
            last = self.add(node, "total", ADDED[0], node.shape, squares, dims, keep)
            number = _size(("+", ("*", 1, *(_tree(shape[d]) for d in dims)), -less))
            last = self.add(node, "variance" if root else "", "aten.div.Tensor", node.shape, last, number)
        else:
            last = self.add(node, "variance" if root else "", "aten.mean.dim", node.shape, squares, dims, keep)
        if root:
            self.add(node, "", ROOT, node.shape, last)
        return True

    def _division(self, node: Node, dividend: Any, divisor: Ref) -> bool:
        inverse = self._inverse(node, divisor)
        if inverse is not None:
            self._product(node, dividend, inverse)
        return inverse is not None

    def _inverse(self, node: Node, divisor: Ref, *, last: bool = False) -> Ref | None:
        """A neuron of one over a divisor, the last part of the node or one before it; None of a divisor that may be
        negative."""
        under = self._under_root(node, divisor)
        if under is None and self._least(divisor) < 0:
            return None
        b, *given = (divisor, LEAST) if under is None else under
        target, suffix = (RECIPROCAL, "reciprocal") if under is None else (RSQRT, "rsqrt")
        return self.add(node, "" if last else suffix, target, self.shapes[b.name], self._negative(node, b), *given)

    def _under_root(self, node: Node, divisor: Ref) -> tuple[Any, ...] | None:
        """b, e and perhaps d where the divisor is √max(b, e) + d or √max(b, e), moved perhaps; None of others."""
        plus, floor, way, names = 0.0, 0.0, list[Node](), list[str]()
        here = self.nodes.get(divisor.name)
        while here is not None and here.target != ROOT:
            number = here.args[1] if len(here.args) == 2 and not here.kwargs else None
            number = number if isinstance(number, (int, float)) else -1.0
            if here.target in PASSED:
                if way or here.target not in (*CASTS, "aten.expand.default"):  # a product repeats a value by itself
                    way.append(here)
            elif here.target in ("aten.add.Tensor", "aten.add.Scalar") and number > 0 and floor == 0:
                plus += number
            elif here.target in CLAMPED and number >= 0:
                floor = max(floor, number)
            else:
                return None
            names.append(here.name)
            here = self.nodes.get(here.args[0].name)
        if here is None:
            return None
        self.passed.update((here.name, *names))
        b = here.args[0]
        for number, moved in enumerate(reversed(way)):
            b = self.add(node, f"moved{number}", moved.target, moved.shape, b, *moved.args[1:])
        return (b, max(floor**2, LEAST), *([plus] if plus else []))

    def _least(self, value: Any) -> float:
        """What a value is known to be at least, −∞ where nothing is known; `LEAST` of what is above 0."""
        if isinstance(value, Param):
            tensor = self.source.tensors[value.path]
            return float(tensor.min()) if tensor.numel() and tensor.is_floating_point() else -math.inf
        if isinstance(value, Ref):
            return self.least.get(value.name, -math.inf)
        return float(value) if isinstance(value, (int, float)) else -math.inf

    def _least_of(self, node: Node) -> float:
        """`_least` of what a node gives."""
        name, args = node.target, node.args
        if name in POSITIVE:
            return LEAST
        if name in NOT_NEGATIVE or (name in (TIMES, "aten.mul.Tensor") and args[0] == args[1]):
            return 0.0
        if (power := _power(node)) is not None:
            return 0.0 if power % 2 == 0 or self._least(args[0]) >= 0 else -math.inf
        if node.role is Role.NEURON and name not in USER:
            return _lowest(node)
        if name in PASSED:
            return self._least(args[0])
        if name in ADDED:
            return low if (low := self._least(args[0])) >= 0 else -math.inf
        if name in CHOSEN:
            return min((self._least(leaf) for leaf in leaves(args) if isinstance(leaf, (Ref, Param))), default=0.0)
        given = [leaf for leaf in leaves(args) if not isinstance(leaf, str)]
        if node.kwargs or len(given) != 2:
            return -math.inf
        low, other = (self._least(leaf) for leaf in given)
        if name in ("aten.add.Tensor", "aten.add.Scalar"):
            return low + other
        if name in ("aten.sub.Tensor", "aten.sub.Scalar") and isinstance(args[1], (int, float)):
            return low - other
        if name in (*PRODUCTS, "aten.div.Tensor", "aten.div.Scalar"):
            return -math.inf if min(low, other) < 0 else LEAST * (low > 0 and (other > 0 or "div" in name))
        return -math.inf


def _tree(size: Size | int) -> Any:
    return size.tree if isinstance(size, Size) else size


def _size(tree: Any) -> Size | int:
    return Size(tree).at({})


def _lowest(node: Node) -> float:
    """The least that an activation gives: where it turns, else far below; −∞ where that is no number."""
    if turn := TABLE[node.target].turn:
        return turn(dict(node.kwargs))[1]
    if not all(leaf is None or isinstance(leaf, (int, float, str)) for leaf in leaves([node.args[1:], node.kwargs])):
        return -math.inf
    end = torch.tensor(-math.inf, dtype=torch.float64)
    least = float(call(node.target, (end, *node.args[1:]), node.kwargs))
    return -math.inf if math.isnan(least) else least


def _power(node: Node) -> float | None:
    power = node.args[1] if node.target == "aten.pow.Tensor_Scalar" else None
    return power if isinstance(power, (int, float)) else None


def _squares(node: Node) -> bool:
    if node.target == "aten.mul.Tensor":
        return node.role is Role.ANALOG and node.args[0] == node.args[1]
    return (node.target == "aten.square.default" or _power(node) == 2) and node.role is Role.ANALOG
