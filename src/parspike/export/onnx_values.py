"""Rules for operators that compute: arithmetic, activations, sums, comparisons, complex numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from parspike.export.onnx_model import Kind, Model, Refused, Rule, Value, arguments_of, dims_of, kind_of, table_of
from parspike.graph import Node, Param, Ref, leaves
from parspike.graph.signature import named

__all__ = ["VALUES"]

LAST = np.iinfo(np.int64).max


# Arithmetic.


def _binary(kind: str, *, turned: bool = False) -> Rule:
    logic = {"Mul": "And", "Add": "Or", "Max": "Or", "Min": "And"}

    def rule(model: Model, node: Node) -> Value:
        given = named(node)
        one, two = list(given.values())[:2]
        alpha = given.get("alpha", 1)
        if kind == "Mul" and "complex" in _kinds(model, one, two):
            return _complex_product(model, node, one, two)
        sides = model.alike(one, two, least="float" if isinstance(alpha, float) else "bool")
        if alpha != 1:  # of what is subtracted
            side = 0 if turned else 1
            sides[side] = model.op("Mul", sides[side], model.cast(model.constant(alpha), model.kinds[sides[side]]))
        if model.kinds[sides[0]] == "bool" and kind in ("Add", "Sub", "Mul", "Div", "Max", "Min"):
            if kind not in logic:
                raise Refused("no rule writes it for truth values")
            return model.op(logic[kind], *sides)
        return model.op(kind, *(sides[::-1] if turned else sides))

    return rule


def _kinds(model: Model, *leaves_: Any) -> set[str]:
    return {model.kinds[model.value(leaf, pairs=True)] for leaf in leaves_}


def _compare(kind: str, *, negated: bool = False) -> Rule:
    def rule(model: Model, node: Node) -> Value:
        sides = model.alike(*node.args[:2], least="bool" if kind == "Equal" else "int")
        made = model.op(kind, *sides)
        return model.op("Not", made) if negated else made

    return rule


def _logic(kind: str, bits: str = "") -> Rule:
    """And, or, … of truth values; of whole numbers bit by bit, where the operator does that."""

    def rule(model: Model, node: Node) -> Value:
        sides = [model.value(leaf) for leaf in node.args[:2]]
        if bits and any(model.kinds[name] != "bool" for name in sides):
            return model.op(bits, *model.alike(*node.args[:2], least="int"))
        return model.op(kind, *(model.cast(name, "bool") for name in sides))

    return rule


def _unary(kind: str, *, keeps: bool = False, **attributes: Any) -> Rule:
    """keeps: whether whole numbers stay whole."""

    def rule(model: Model, node: Node) -> Value:
        x = model.value(node.args[0]) if keeps else model.real(node.args[0])
        return model.op(kind, model.cast(x, "int") if model.kinds[x] == "bool" else x, **attributes)

    return rule


def _rounding(kind: str) -> Rule:
    def rule(model: Model, node: Node) -> Value:
        x = model.value(node.args[0])
        return x if model.kinds[x] != "float" else model.op(kind, x)

    return rule


def _abs(model: Model, node: Node) -> Value:
    x = model.value(node.args[0], pairs=True)
    return model.op("Abs", x) if model.kinds[x] != "complex" else model.op("Sqrt", _squares(model, *_parts(model, x)))


def _squares(model: Model, *names: str) -> str:
    made = [model.op("Mul", name, name) for name in names]
    return made[0] if len(made) == 1 else model.op("Add", *made)


def _of_real(function: Callable[[Model, str], str]) -> Rule:
    """A rule for a function of one real number."""
    return lambda model, node: function(model, model.real(node.args[0]))


def _trunc(model: Model, x: str) -> str:
    return model.op("Mul", model.op("Sign", x), model.op("Floor", model.op("Abs", x)))


def _negative(model: Model, x: str) -> str:
    """Whether the sign of a number is minus; that of −0 is, which 1/x tells from 0."""
    zero = model.constant(0.0)
    return model.op("Or", model.op("Less", x, zero), model.op("Less", model.op("Reciprocal", x), zero))


def _copysign(model: Model, node: Node) -> Value:
    x, sign = model.alike(*node.args[:2], least="float")
    size = model.op("Abs", x)
    return model.op("Where", _negative(model, sign), model.op("Neg", size), size)


def _hypot(model: Model, node: Node) -> Value:
    return model.op("Sqrt", _squares(model, *model.alike(*node.args[:2], least="float")))


def _angle_of(model: Model, y: str, x: str) -> str:
    """atan2: the angle of (x, y)."""
    zero, half = model.constant(0.0), model.constant(math.pi / 2)
    none = model.op("Equal", x, zero)
    ratio = model.op("Atan", model.op("Div", y, model.op("Where", none, model.constant(1.0), x)))
    left = model.op("Where", _negative(model, y), model.constant(-math.pi), model.constant(math.pi))
    sides = model.op("Where", _negative(model, x), model.op("Add", ratio, left), ratio)
    up = model.op("Mul", model.op("Sign", y), half)
    flat = model.op("And", none, model.op("Equal", y, zero))
    return model.op("Where", model.op("And", none, model.op("Not", flat)), up, sides)


def _atan2(model: Model, node: Node) -> Value:
    return _angle_of(model, *model.alike(*node.args[:2], least="float"))


def _round_decimals(model: Model, node: Node) -> Value:
    x, decimals = arguments_of(node, "self decimals")
    name, factor = model.real(x), 10.0 ** abs(decimals)
    one, two = ("Mul", "Div") if decimals >= 0 else ("Div", "Mul")
    return model.op(two, model.op("Round", model.op(one, name, model.constant(factor))), model.constant(factor))


def _remainder_of(model: Model, x: str, y: str) -> str:
    """With the sign of the divisor, of the remainder with the sign of the dividend: as torch does, so that a quotient
    close to a whole number is not rounded to another one."""
    if model.kinds[x] == "int":
        return model.op("Mod", x, y)
    rest, zero = model.op("Mod", x, y, fmod=1), model.constant(0.0)
    unlike = model.op("Xor", model.op("Less", rest, zero), model.op("Less", y, zero))
    moved = model.op("And", unlike, model.op("Not", model.op("Equal", rest, zero)))
    return model.op("Where", moved, model.op("Add", rest, y), rest)


def _remainder(model: Model, node: Node) -> Value:
    return _remainder_of(model, *model.alike(*node.args[:2], least="int"))


def _fmod(model: Model, node: Node) -> Value:
    return model.op("Mod", *model.alike(*node.args[:2], least="int"), fmod=1)


def _floor_divided(model: Model, x: str, y: str) -> str:
    quotient = model.op("Div", model.op("Sub", x, _remainder_of(model, x, y)), y)
    return quotient if model.kinds[x] == "int" else model.op("Round", quotient)


def _divided(model: Model, node: Node) -> Value:
    mode = "floor" if "floor_divide" in node.target else node.kwargs.get("rounding_mode")
    sides = model.alike(*node.args[:2], least="int" if mode else "float")
    if mode == "floor":
        return _floor_divided(model, *sides)
    made = model.op("Div", *sides)
    return _trunc(model, made) if mode == "trunc" and model.kinds[made] == "float" else made


def _pow(model: Model, node: Node) -> Value:
    return model.op("Pow", *model.alike(*node.args[:2]))


# Activations.


def _times(model: Model, node: Node) -> Value:
    return model.op("Mul", *model.alike(*node.args))


def _at_least(model: Model, node: Node) -> Value:
    return model.clip(model.real(node.args[0]), node.args[1], math.inf)


def _clamp(model: Model, node: Node) -> Value:
    given = named(node)
    ends: list[Any] = [given.get(name, given.get(f"{name}_val")) for name in ("min", "max")]
    low, high = ends
    if node.target == "aten.relu6.default":
        low, high = 0.0, 6.0
    if node.target == "aten.hardtanh.default":
        low, high = float(low), float(high)

    def number(end: Any) -> Any:
        return (
            model.tensors[end.path].item() if isinstance(end, Param) and model.tensors[end.path].numel() == 1 else end
        )

    low, high = number(low), number(high)
    x = given["self"]
    if isinstance(low, (Ref, Param)) or isinstance(high, (Ref, Param)):
        name = model.value(x)
        for kind, end in (("Max", low), ("Min", high)):
            if end is not None:
                sides = model.value(end), name
                wide = "float" if "float" in {model.kinds[side] for side in sides} else "int"
                name = model.op(kind, *(model.cast(side, wide) for side in sides[::-1]))
        return name
    real = any(isinstance(end, float) for end in (low, high))
    name = model.cast(model.value(x), "float" if real else max("int", model.kinds[model.value(x)], key=_order))
    ends = ["" if end is None else model.cast(model.constant(end), model.kinds[name]) for end in (low, high)]
    return model.op("Clip", name, *ends)


def _order(kind: str) -> int:
    return ("bool", "int", "float").index(kind)


def _elu(model: Model, node: Node) -> Value:
    x, alpha, scale, steeper = arguments_of(node, "self alpha scale input_scale")
    name = model.real(x)
    if scale == steeper == 1:
        return model.op("Elu", name, alpha=float(alpha))
    below = model.times(model.op("Min", name, model.constant(0.0)), steeper)
    left = model.times(model.plus(model.op("Exp", below), -1), alpha * scale)
    return model.op("Where", model.op("Greater", name, model.constant(0.0)), model.times(name, scale), left)


def _celu(model: Model, node: Node) -> Value:
    x, alpha = arguments_of(node, "self alpha")
    if alpha <= 0:
        raise Refused("its alpha is not above 0")
    return model.op("Celu", model.real(x), alpha=float(alpha))


def _softplus(model: Model, node: Node) -> Value:
    x, beta, threshold = arguments_of(node, "self beta threshold")
    name = model.real(x)
    steep = model.times(name, beta)
    made = model.times(model.op("Softplus", steep), 1 / beta)
    # Above the threshold torch takes x itself; from 20 on both are the same float32.
    return made if threshold == 20 else model.op(
        "Where", model.op("Greater", steep, model.constant(float(threshold))), name, made
    )  # fmt: skip


def _threshold(model: Model, node: Node) -> Value:
    x, limit, value = arguments_of(node, "self threshold value")
    name = model.real(x)
    return model.op(
        "Where", model.op("Greater", name, model.constant(float(limit))), name, model.constant(float(value))
    )


def _leaky(model: Model, node: Node) -> Value:
    x, slope = arguments_of(node, "self negative_slope")
    return model.op("LeakyRelu", model.real(x), alpha=float(slope))


def _prelu(model: Model, node: Node) -> Value:
    x, slope = node.args[:2]
    return model.op("PRelu", model.real(x), model.per(slope, min(1, model.rank(x) - 1), model.rank(x)))


def _gelu(model: Model, node: Node) -> Value:
    return model.op("Gelu", model.real(node.args[0]), approximate=node.kwargs.get("approximate", "none"))


def _silu(model: Model, x: str) -> str:
    return model.op("Mul", x, model.op("Sigmoid", x))


def _shrink(soft: bool) -> Rule:
    def rule(model: Model, node: Node) -> Value:
        x, limit = arguments_of(node, "self lambd")
        return model.op("Shrink", model.real(x), lambd=float(limit), bias=float(limit) if soft else 0.0)

    return rule


def _glu(model: Model, node: Node) -> Value:
    x, dim = arguments_of(node, "self dim")
    axis = dim % model.rank(x)
    half, name = model.length(x, axis) // 2, model.value(x)
    gate = model.op("Sigmoid", model.cut(name, axis, half, LAST))
    return model.op("Mul", model.cut(name, axis, 0, half), gate)


def _qcfs(model: Model, node: Node) -> Value:
    x, threshold, levels = node.args[:3]
    theta = model.tensors[threshold.path].float() if isinstance(threshold, Param) else torch.tensor(float(threshold))
    steps = model.plus(model.op("Mul", model.real(x), model.constant(levels / theta)), 0.5)
    count = model.op("Clip", model.op("Floor", steps), model.constant(0.0), model.constant(float(levels)))
    return model.op("Mul", count, model.constant(theta / levels))


def _encode(model: Model, node: Node) -> Value:
    x, low, high = [*node.args, -math.inf, math.inf][:3] if len(node.args) < 3 else node.args[:3]
    return model.value(x) if math.isinf(high) else model.clip(model.value(x), low, high)


def _part(rising: bool) -> Rule:
    """The part of an activation right or left of where it turns."""

    def rule(model: Model, node: Node) -> Value:
        x, target, at, lowest, *rest = node.args
        name = model.real(x)
        name = model.clip(name, at, math.inf) if rising else model.clip(model.op("Neg", name), -math.inf, at)
        made = model.by_rule(target, node, name, *rest, **node.kwargs)
        return model.plus(made, -lowest)

    return rule


def _pointwise(model: Model, node: Node) -> Value:
    """A function written by hand, operator by operator."""
    x, tree = node.args[:2]
    name = model.real(x)

    def write(tree: Any) -> Any:
        if isinstance(tree, str):
            return name
        if not isinstance(tree, list):
            return tree
        target, args, options = tree
        made = [write(arg) for arg in args]
        if made and isinstance(made[0], (bool, int, float)):
            made[0] = torch.tensor(made[0])
        return model.by_rule(target, node, *made, **options)

    return write(tree)


def _exp(model: Model, node: Node) -> Value:
    x, low, least, most = (*node.args, *(-math.inf, 0.0, math.inf)[len(node.args) - 1 :])
    name = model.real(x)
    made = model.op("Exp", name)
    if not math.isinf(low):
        made = model.op("Where", model.op("Greater", name, model.constant(float(low))), made, model.constant(0.0))
    return _increase(model, made, least, most)


def _increase(model: Model, value: str, low: float, high: float) -> str:
    if low == 0 and math.isinf(high):
        return value
    return model.op("Sub", model.clip(value, low, high), model.constant(float(low)))


def _reciprocal(model: Model, node: Node) -> Value:
    negative, least, low, high = (*node.args, *(0.0, math.inf)[len(node.args) - 2 :])
    made = model.clip(model.op("Neg", model.real(negative)), least, math.inf)
    return _increase(model, model.op("Reciprocal", made), low, high)


def _reciprocal_root(model: Model, node: Node) -> Value:
    negative, least, plus = (*node.args, *(0.0,)[len(node.args) - 2 :])
    made = model.op("Sqrt", model.clip(model.op("Neg", model.real(negative)), least, math.inf))
    return model.op("Reciprocal", model.op("Add", made, model.constant(float(plus))) if plus else made)


def _root(model: Model, node: Node) -> Value:
    return model.op("Sqrt", model.clip(model.real(node.args[0]), 0.0, math.inf))


def _fake_quantised(model: Model, node: Node) -> Value:
    """clamp(round(x / scale + zero), least, most) − zero, times the scale; by the scale's inverse, as torch has it."""
    x, scale, zero, *rest = node.args
    axis, (least, most) = None, rest[:2]
    if "per_channel" in node.target:
        axis, least, most = rest[:3]

    def parameter(leaf: Any) -> str:
        if axis is not None:
            return model.per(leaf, axis % model.rank(x), model.rank(x))
        return model.reshaped(model.real(leaf), []) if isinstance(leaf, (Ref, Param)) else model.constant(float(leaf))

    size, shift = parameter(scale), parameter(zero)
    if "learnable" in node.target:
        shift = model.clip(model.op("Round", shift), least, most)
    steps = model.op("Mul", model.real(x), model.op("Reciprocal", size))
    whole = model.clip(model.op("Round", model.op("Add", steps, shift)), least, most)
    return model.op("Mul", model.op("Sub", whole, shift), size)


# Sums, maxima and norms along dimensions.


def _reduce(kind: str) -> Rule:
    def rule(model: Model, node: Node) -> Value:
        given = named(node)
        x, name = given["self"], model.value(given["self"])
        if given.get("dtype") is not None:
            name = model.cast(name, kind_of(given["dtype"]))
        if kind in ("ReduceMean", "ReduceLogSumExp"):
            name = model.cast(name, "float")
        if model.kinds[name] == "bool":
            name = model.cast(name, "int")
        dims = dims_of(given["dim"], model.rank(x))
        return model.reduced(kind, name, dims, keep=bool(given["keepdim"]))

    return rule


def _truth(kind: str) -> Rule:
    """Whether any, or all, are true."""

    def rule(model: Model, node: Node) -> Value:
        x, dim, keep = arguments_of(node, "self dim keepdim")
        name = model.cast(model.cast(model.value(x), "bool"), "int")
        return model.cast(model.reduced(kind, name, dims_of(dim, model.rank(x)), keep=bool(keep)), "bool")

    return rule


def _spread(root: bool, *, mean: bool = False) -> Rule:
    """A variance, or a standard deviation."""

    def rule(model: Model, node: Node) -> Value:
        given = named(node)
        x = given["self"]
        dims = dims_of(given["dim"], model.rank(x))
        correction = given["correction"] if "correction" in given else int(given["unbiased"])
        correction = 1 if correction is None else correction
        number = math.prod(model.length(x, d) for d in dims)
        if number <= correction:
            raise Refused("it divides by 0")
        name = model.value(x)
        middle = model.reduced("ReduceMean", name, dims)
        away = model.op("Sub", name, middle)
        total = model.reduced("ReduceSum", model.op("Mul", away, away), dims, keep=bool(given["keepdim"]))
        made = model.op("Div", total, model.constant(float(number - correction)))
        made = model.op("Sqrt", made) if root else made
        if not mean:
            return made
        return made, middle if given["keepdim"] else model.op("Squeeze", middle, model.constant(dims))

    return rule


def _distance(model: Model, name: str, order: float, dims: Sequence[int], *, keep: bool) -> str:
    """The norm of an order along dimensions."""
    if order == 2:
        return model.reduced("ReduceL2", name, dims, keep=keep)
    size = model.op("Abs", name)
    if order == 0:
        size = model.cast(model.op("Greater", size, model.constant(0.0)), "float")
    if order in (0, 1):
        return model.reduced("ReduceSum", size, dims, keep=keep)
    if math.isinf(order):
        return model.reduced("ReduceMax" if order > 0 else "ReduceMin", size, dims, keep=keep)
    total = model.reduced("ReduceSum", model.op("Pow", size, model.constant(float(order))), dims, keep=keep)
    return model.op("Pow", total, model.constant(1.0 / order))


def _norm(model: Model, node: Node) -> Value:
    given = named(node)
    order = given["ord"] if "ord" in given else given["p"]
    dims = dims_of(given["dim"], model.rank(given["self"]))
    return _distance(
        model, model.real(given["self"]), 2.0 if order is None else float(order), dims, keep=bool(given["keepdim"])
    )


def _cdist(model: Model, node: Node) -> Value:
    one, two, order = arguments_of(node, "x1 x2 p")
    rank = len(node.shape)
    left = model.op("Unsqueeze", model.value(one), model.constant([model.rank(one) - 1]))
    right = model.op("Unsqueeze", model.value(two), model.constant([model.rank(two) - 2]))
    return _distance(model, model.op("Sub", left, right), float(order), [rank], keep=False)


def _cosine(model: Model, node: Node) -> Value:
    one, two, dim, eps = arguments_of(node, "x1 x2 dim eps")
    rank = max(model.rank(one), model.rank(two))
    axes = [dim % rank]
    made = []
    for leaf in (one, two):
        name = model.real(leaf)
        if model.rank(leaf) < rank:
            name = model.op("Unsqueeze", name, model.constant(list(range(rank - model.rank(leaf)))))
        size = model.op("Max", model.reduced("ReduceL2", name, axes), model.constant(float(eps)))
        made.append(model.op("Div", name, size))
    return model.reduced("ReduceSum", model.op("Mul", *made), axes, keep=False)


def _softmax(model: Model, node: Node) -> Value:
    axis = node.args[1] % len(node.shape)
    return model.op("LogSoftmax" if "log" in node.target else "Softmax", model.real(node.args[0]), axis=axis)


# Running sums, and what is like them.


def _cumsum(model: Model, node: Node) -> Value:
    x, dim, dtype = arguments_of(node, "self dim dtype")
    name = model.value(x)
    name = model.cast(
        name, kind_of(dtype) if dtype is not None else "int" if model.kinds[name] == "bool" else model.kinds[name]
    )
    return model.op("CumSum", name, model.constant(np.array(dim % model.rank(x))))


def _running(how: str, neutral: float) -> Rule:
    """A running product, maximum or minimum: each place with the one before it, that with the two before them, …"""

    def join(model: Model, one: str, two: str) -> str:
        if how != "LogAddExp":
            return model.op(how, one, two)
        gap = model.op("Neg", model.op("Abs", model.op("Sub", one, two)))
        return model.op("Add", model.op("Max", one, two), model.op("Log", model.plus(model.op("Exp", gap), 1)))

    def rule(model: Model, node: Node) -> Value:
        x, dim = node.args[:2]
        rank, axis = model.rank(x), dim % model.rank(x)
        size, name, step = model.length(x, axis), model.real(x), 1
        while step < size:
            pads = [step if d == axis else 0 for d in range(rank)] + [0] * rank
            before = model.op(
                "Pad", model.cut(name, axis, 0, size - step), model.constant(pads), model.constant(neutral)
            )
            name, step = join(model, name, before), 2 * step
        return name if "aten.cumm" not in node.target else (name, None)

    return rule


def _diff(model: Model, node: Node) -> Value:
    x, times, dim, before, after = arguments_of(node, "self n dim prepend append")
    axis = dim % model.rank(x)
    parts = [model.value(part) for part in (before, x, after) if part is not None]
    name = parts[0] if len(parts) == 1 else model.op("Concat", *parts, axis=axis)
    for _ in range(times):
        sides = model.cut(name, axis, 1, LAST), model.cut(name, axis, 0, -1)
        name = model.op("Xor" if model.kinds[name] == "bool" else "Sub", *sides)
    return name


# Choosing, sorting, comparing.


def _argument_of(kind: str) -> Rule:
    def rule(model: Model, node: Node) -> Value:
        x, dim, keep = arguments_of(node, "self dim keepdim")
        name = model.value(x)
        name = model.cast(name, "int") if model.kinds[name] == "bool" else name
        if dim is None:
            raise Refused("it chooses one place of the whole batch")
        return model.op(kind, name, axis=dim % model.rank(x), keepdims=int(bool(keep)))

    return rule


def _extreme(kind: str) -> Rule:
    """The largest or smallest value along a dimension, and its place."""

    def rule(model: Model, node: Node) -> Value:
        x, dim, keep = arguments_of(node, "self dim keepdim")
        name, axis = model.value(x), dim % model.rank(x)
        value = model.reduced(f"Reduce{kind}", name, [axis], keep=bool(keep))
        return value, model.op(f"Arg{kind}", name, axis=axis, keepdims=int(bool(keep)))

    return rule


def _ordered(model: Model, x: Any, axis: int, number: int, *, largest: bool) -> tuple[str, str]:
    one, two = model.ops(
        "TopK", model.value(x), model.constant([number]), out=("", ""), axis=axis, largest=int(largest), sorted=1
    )
    return one, two


def _topk(model: Model, node: Node) -> Value:
    x, number, dim, largest = arguments_of(node, "self k dim largest")
    return _ordered(model, x, dim % model.rank(x), int(number), largest=bool(largest))


def _sort(model: Model, node: Node) -> Value:
    x, dim, descending = arguments_of(node, "self dim descending")
    axis = dim % model.rank(x)
    made = _ordered(model, x, axis, model.length(x, axis), largest=bool(descending))
    return made[1] if "argsort" in node.target else made


def _kth(model: Model, node: Node) -> Value:
    """The k-th smallest value; the median is the one in the middle, the lower of two."""
    given = named(node)
    x, axis = given["self"], given["dim"] % model.rank(given["self"])
    number = given["k"] if "k" in given else (model.length(x, axis) + 1) // 2
    made = _ordered(model, x, axis, int(number), largest=False)
    parts = tuple(model.picked(name, number - 1, axis) for name in made)
    return parts if not given["keepdim"] else tuple(model.op("Unsqueeze", p, model.constant([axis])) for p in parts)


def _one_hot(model: Model, node: Node) -> Value:
    x, classes = arguments_of(node, "self num_classes")
    if classes < 0:
        raise Refused("how many classes there are depends on the values")
    return model.op("OneHot", model.value(x), model.constant([int(classes)]), model.constant([0, 1]))


def _bucket(model: Model, node: Node) -> Value:
    """How many of the sorted edges lie below a value."""
    given = named(node)
    edges = given["boundaries"] if "boundaries" in given else given["sorted_sequence"]
    if given.get("sorter") is not None:
        raise Refused("no rule writes this form of it")
    right = bool(given["right"]) or given.get("side") == "right"
    names = model.alike(edges, given["self"])
    rank = model.rank(edges)
    if isinstance(given["self"], (Ref, Param)):
        names[1] = model.op("Unsqueeze", names[1], model.constant([-1]))
    if rank > 1:
        names[0] = model.op("Unsqueeze", names[0], model.constant([rank - 1]))
    below = model.cast(model.op("LessOrEqual" if right else "Less", *names), "int")
    return model.op("ReduceSum", below, model.constant([-1]), keepdims=0)


def _where(model: Model, node: Node) -> Value:
    condition, one, two = node.args[:3]
    return model.op("Where", model.cast(model.value(condition), "bool"), *model.alike(one, two))


def _masked_fill(model: Model, node: Node) -> Value:
    x, mask, value = arguments_of(node, "self mask value")
    name = model.value(x)
    return model.op("Where", model.value(mask), model.cast(model.value(value), model.kinds[name]), name)


def _is_infinite(model: Model, node: Node) -> Value:
    return model.op("IsInf", model.real(node.args[0]))


def _cast(model: Model, node: Node) -> Value:
    name = model.value(node.args[0], pairs=True)
    if node.target == "aten.type_as.default":
        return model.cast(name, model.kinds[model.value(node.args[1])])
    types = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, torch.dtype)]
    if not types:
        return name
    dtype, kind = types[0], model.kinds[name]
    if dtype.is_floating_point and dtype not in (torch.float32, torch.float64):
        raise Refused("the file computes in float32")
    if dtype.is_complex or kind == "complex":
        raise Refused("no rule writes it for complex numbers")
    if kind_of(dtype) == "int" and dtype not in (torch.int32, torch.int64) and kind != "bool":
        raise Refused(f"whole numbers of the file are int64, which do not run over as {dtype} does")
    return model.cast(name, kind_of(dtype))


# Matrices, and complex numbers: pairs along a last dimension.


def _determinant(model: Model, node: Node) -> Value:
    return model.op("Det", model.real(node.args[0]))


def _matrix_power(model: Model, node: Node) -> Value:
    x, power = node.args
    if power < 1:
        raise Refused("ONNX has no inverse of a matrix")
    name = made = model.value(x)
    for _ in range(power - 1):
        made = model.op("MatMul", made, name)
    return made


def _pairs(model: Model, real: str, imaginary: str) -> str:
    last = model.constant([-1])
    made = model.op("Concat", *(model.op("Unsqueeze", name, last) for name in (real, imaginary)), axis=-1)
    model.kinds[made] = "complex"
    return made


def _parts(model: Model, name: str) -> tuple[str, str]:
    real, imaginary = (model.picked(name, place, -1) for place in (0, 1))
    model.kinds[real] = model.kinds[imaginary] = "float"
    return real, imaginary


def _as_kind(kind: Kind) -> Rule:
    """The same numbers looked at as pairs, or as complex numbers."""

    def rule(model: Model, node: Node) -> Value:
        made = model.op("Identity", model.value(node.args[0], pairs=True))
        model.kinds[made] = kind
        return made

    return rule


def _complex(model: Model, node: Node) -> Value:
    return _pairs(model, *model.alike(*node.args[:2], least="float"))


def _polar(model: Model, node: Node) -> Value:
    size, angle = model.alike(*node.args[:2], least="float")
    return _pairs(model, *(model.op("Mul", size, model.op(kind, angle)) for kind in ("Cos", "Sin")))


def _angle(model: Model, node: Node) -> Value:
    name = model.value(node.args[0], pairs=True)
    if model.kinds[name] == "complex":
        real, imaginary = _parts(model, name)
        return _angle_of(model, imaginary, real)
    return model.op("Where", model.op("Less", name, model.constant(0.0)), model.constant(math.pi), model.constant(0.0))


def _conjugate(model: Model, node: Node) -> Value:
    name = model.value(node.args[0], pairs=True)
    if model.kinds[name] != "complex":
        return name
    return model.op("Mul", name, model.constant(np.array([1.0, -1.0], np.float32)))


def _complex_product(model: Model, node: Node, one: Any, two: Any) -> Value:
    sides = [model.value(leaf, pairs=True) for leaf in (one, two)]
    real = [name for name in sides if model.kinds[name] != "complex"]
    if real:
        pair = next(name for name in sides if name not in real)
        factor = model.op("Unsqueeze", model.cast(real[0], "float"), model.constant([-1]))
        made = model.op("Mul", pair, factor)
        model.kinds[made] = "complex"
        return made
    (a, b), (c, d) = (_parts(model, name) for name in sides)
    return _pairs(
        model,
        model.op("Sub", model.op("Mul", a, c), model.op("Mul", b, d)),
        model.op("Add", model.op("Mul", a, d), model.op("Mul", b, c)),
    )


def _scaled(code: int, number: int) -> float:
    """What torch's code of a normalisation multiplies by."""
    return (1.0, number**-0.5, 1 / number)[code]


def _transform(model: Model, name: str, axis: int, **attributes: Any) -> str:
    made = model.op("DFT", name, "", model.constant(np.array(axis)), **attributes)
    model.kinds[made] = "complex"
    return made


def _fft_r2c(model: Model, node: Node) -> Value:
    x, dims, code, onesided = arguments_of(node, "self dim normalization onesided")
    rank = model.rank(x)
    axes = [d % rank for d in dims]
    number = math.prod(model.length(x, d) for d in axes)
    name = model.op("Unsqueeze", model.real(x), model.constant([rank]))
    name = _transform(model, name, axes[-1], onesided=int(bool(onesided)))
    for axis in axes[:-1]:
        name = _transform(model, name, axis)
    return _times_pairs(model, name, _scaled(code, number))


def _times_pairs(model: Model, name: str, factor: float) -> str:
    made = model.times(name, factor)
    model.kinds[made] = "complex"
    return made


def _fft_c2c(model: Model, node: Node) -> Value:
    x, dims, code, forward = arguments_of(node, "self dim normalization forward")
    axes = [d % model.rank(x) for d in dims]
    number = math.prod(model.length(x, d) for d in axes)
    name = model.value(x, pairs=True)
    for axis in axes:
        name = _transform(model, name, axis, inverse=int(not forward))
    return _times_pairs(model, name, _scaled(code, number) * (1 if forward else number))


def _fft_c2r(model: Model, node: Node) -> Value:
    """The other dimensions by transforms, the last by a matrix: the half that is left out is the mirrored one."""
    x, dims, code, size = arguments_of(node, "self dim normalization last_dim_size")
    rank = model.rank(x)
    axes = [d % rank for d in dims]
    size, name = int(size), model.value(x, pairs=True)
    others = math.prod(model.length(x, d) for d in axes[:-1])
    for axis in axes[:-1]:
        name = _transform(model, name, axis, inverse=1)
    kept = size // 2 + 1
    if model.length(x, axes[-1]) < kept:
        raise Refused("no rule writes this form of it")
    angle = 2 * math.pi * torch.outer(torch.arange(size), torch.arange(kept)).double() / size
    twice = torch.full((kept,), 2.0).double()
    twice[0] = 1
    if size % 2 == 0:
        twice[-1] = 1
    real, imaginary = (model.cut(part, axes[-1], 0, kept) for part in _parts(model, name))
    made = model.op(
        "Sub",
        model.along(real, twice * angle.cos(), axes[-1], rank),
        model.along(imaginary, twice * angle.sin(), axes[-1], rank),
    )
    return model.times(made, _scaled(code, others * size) * others)


def _rules() -> dict[str, Rule]:
    plain = "Sigmoid Tanh Exp Erf Sqrt Log Reciprocal Sin Cos Tan Sinh Cosh Asin Acos Atan Asinh Acosh Atanh Mish Selu"
    return table_of(
        ("add.Tensor add.Scalar", _binary("Add")), ("sub.Tensor sub.Scalar", _binary("Sub")),
        ("rsub.Tensor rsub.Scalar", _binary("Sub", turned=True)), ("mul.Tensor mul.Scalar", _binary("Mul")),
        ("div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode floor_divide.default", _divided),
        ("pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar", _pow),
        ("maximum.default fmax.default", _binary("Max")), ("minimum.default fmin.default", _binary("Min")),
        ("remainder.Scalar remainder.Tensor", _remainder), ("fmod.Scalar", _fmod),
        ("eq.Scalar eq.Tensor", _compare("Equal")), ("ne.Scalar ne.Tensor", _compare("Equal", negated=True)),
        ("lt.Scalar lt.Tensor", _compare("Less")), ("le.Scalar le.Tensor", _compare("LessOrEqual")),
        ("gt.Scalar gt.Tensor", _compare("Greater")), ("ge.Scalar ge.Tensor", _compare("GreaterOrEqual")),
        ("logical_and.default", _logic("And")), ("logical_or.default", _logic("Or")),
        ("logical_xor.default", _logic("Xor")), ("logical_not.default", _logic("Not")),
        ("bitwise_and.Tensor bitwise_and.Scalar __and__.Tensor", _logic("And", "BitwiseAnd")),
        ("bitwise_or.Tensor bitwise_or.Scalar __or__.Tensor", _logic("Or", "BitwiseOr")),
        ("bitwise_xor.Tensor __xor__.Tensor", _logic("Xor", "BitwiseXor")),
        ("bitwise_not.default", _logic("Not", "BitwiseNot")),
        ("isnan.default", _unary("IsNaN")), ("isinf.default", _is_infinite),
        ("neg.default", _unary("Neg", keeps=True)), ("relu.default", _unary("Relu", keeps=True)),
        ("abs.default", _abs), ("sign.default", _unary("Sign", keeps=True)),
        ("round.default", _rounding("Round")), ("floor.default", _rounding("Floor")),
        ("ceil.default", _rounding("Ceil")), ("trunc.default", _of_real(_trunc)),
        ("round.decimals", _round_decimals), ("signbit.default", _of_real(_negative)),
        ("copysign.Tensor", _copysign), ("hypot.default", _hypot), ("atan2.default", _atan2),
        *((f"{name.lower()}.default", _unary(name)) for name in plain.split()),
        ("hardswish.default", _unary("HardSwish")),
        ("hardsigmoid.default", _unary("HardSigmoid", alpha=1 / 6, beta=0.5)),
        ("square.default", _of_real(lambda model, x: model.op("Mul", x, x))),
        ("rsqrt.default", _of_real(lambda model, x: model.op("Reciprocal", model.op("Sqrt", x)))),
        ("expm1.default", _of_real(lambda model, x: model.plus(model.op("Exp", x), -1))),
        ("log1p.default", _of_real(lambda model, x: model.op("Log", model.plus(x, 1)))),
        ("exp2.default", _of_real(lambda model, x: model.op("Pow", model.constant(2.0), x))),
        ("log2.default", _of_real(lambda model, x: model.times(model.op("Log", x), 1 / math.log(2)))),
        ("log10.default", _of_real(lambda model, x: model.times(model.op("Log", x), 1 / math.log(10)))),
        ("erfc.default", _of_real(lambda model, x: model.plus(model.op("Neg", model.op("Erf", x)), 1))),
        ("log_sigmoid.default",
         _of_real(lambda model, x: model.op("Neg", model.op("Softplus", model.op("Neg", x))))),
        ("silu.default", _of_real(_silu)), ("gelu.default", _gelu), ("elu.default", _elu), ("celu.default", _celu),
        ("softplus.default", _softplus), ("threshold.default", _threshold), ("leaky_relu.default", _leaky),
        ("prelu.default", _prelu), ("softshrink.default", _shrink(True)), ("hardshrink.default", _shrink(False)),
        ("glu.default", _glu),
        ("clamp.default clamp.Tensor clamp_min.default clamp_min.Tensor clamp_max.default clamp_max.Tensor "
         "hardtanh.default relu6.default", _clamp),
        ("fake_quantize_per_tensor_affine.default fake_quantize_per_tensor_affine.tensor_qparams "
         "fake_quantize_per_channel_affine.default _fake_quantize_learnable_per_tensor_affine.default",
         _fake_quantised),
        ("mean.dim", _reduce("ReduceMean")), ("sum.dim_IntList", _reduce("ReduceSum")),
        ("amax.default", _reduce("ReduceMax")), ("amin.default", _reduce("ReduceMin")),
        ("prod.dim_int", _reduce("ReduceProd")), ("logsumexp.default", _reduce("ReduceLogSumExp")),
        ("any.dim any.dims", _truth("ReduceMax")), ("all.dim", _truth("ReduceMin")),
        ("var.correction var.dim", _spread(False)), ("std.correction std.dim", _spread(True)),
        ("var_mean.correction", _spread(False, mean=True)),
        ("linalg_vector_norm.default norm.ScalarOpt_dim", _norm), ("cdist.default", _cdist),
        ("cosine_similarity.default", _cosine),
        ("softmax.int _softmax.default log_softmax.int _log_softmax.default", _softmax),
        ("cumsum.default", _cumsum), ("cumprod.default", _running("Mul", 1.0)),
        ("cummax.default", _running("Max", -math.inf)), ("cummin.default", _running("Min", math.inf)),
        ("logcumsumexp.default", _running("LogAddExp", -math.inf)), ("diff.default", _diff),
        ("argmax.default", _argument_of("ArgMax")), ("argmin.default", _argument_of("ArgMin")),
        ("max.dim", _extreme("Max")), ("min.dim", _extreme("Min")), ("topk.default", _topk),
        ("sort.default argsort.default", _sort), ("kthvalue.default median.dim", _kth), ("one_hot.default", _one_hot),
        ("bucketize.Tensor searchsorted.Tensor", _bucket),
        ("where.self where.ScalarOther where.ScalarSelf", _where),
        ("masked_fill.Scalar masked_fill.Tensor", _masked_fill),
        ("_to_copy.default to.dtype type_as.default", _cast),
        ("linalg_det.default", _determinant), ("matrix_power.default", _matrix_power),
        ("_fft_r2c.default", _fft_r2c), ("_fft_c2c.default", _fft_c2c), ("_fft_c2r.default", _fft_c2r),
        ("view_as_real.default", _as_kind("float")), ("view_as_complex.default", _as_kind("complex")),
        ("complex.default", _complex), ("polar.default", _polar), ("angle.default", _angle),
        ("_conj.default", _conjugate),
        ("parspike.qcfs", _qcfs), ("parspike.encode parspike.hold", _encode), ("parspike.rising", _part(True)),
        ("parspike.falling", _part(False)), ("parspike.pointwise", _pointwise), ("parspike.exp", _exp),
        ("parspike.reciprocal", _reciprocal), ("parspike.rsqrt", _reciprocal_root), ("parspike.root", _root),
        ("parspike.times", _times), ("parspike.at_least", _at_least),
    )  # fmt: skip


VALUES = _rules()
"""By the operators of the graph."""
