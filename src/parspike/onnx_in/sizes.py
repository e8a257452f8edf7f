"""Arithmetic on sizes and on small constants: what ONNX files compute with Shape, Gather, Concat, Mul … for Reshape.

Each function gets the node's `Site` and arrays of NumPy, and returns an array. Arrays of the type `object` hold open
sizes (`torch.SymInt`), so the result is an expression that tracing keeps. A function raises `NotHere` where it has no
rule for open sizes; the operator then runs on tensors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from parspike.onnx_in.file import DTYPES
from parspike.onnx_in.rules import Site, number, whole

__all__ = ["LARGEST", "ON_SIZES", "NotHere", "places"]

LARGEST = 4096
"""Elements of a constant that is computed here, and not by the rule on tensors."""
SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class NotHere(Exception):  # noqa: N818 - no error: the rule on tensors takes over
    """There is no rule for these values here."""


ON_SIZES: dict[str, Callable[..., np.ndarray | tuple[np.ndarray, ...]]] = {}


def on_sizes(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function for operators."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        for name in names.split():
            ON_SIZES[name] = run
        return run

    return register


def _symbolic(*arrays: np.ndarray | None) -> bool:
    return any(a is not None and a.dtype == object for a in arrays)


def _elementwise(arrays: Sequence[np.ndarray], run: Callable[..., Any]) -> np.ndarray:
    spread = np.broadcast_arrays(*(np.asarray(a, object) for a in arrays))
    made = np.empty(spread[0].shape, object)
    for place in np.ndindex(made.shape):
        made[place] = run(*(_plain(a[place]) for a in spread))
    return whole(made)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _quotient(a: Any, b: Any) -> Any:
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a // b  # of sizes, which are not negative


def _sure(run: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A comparison as a bool: what it depends on becomes a condition on the sizes."""
    return lambda a, b: bool(run(a, b))


BINARY: dict[str, tuple[Callable[[Any, Any], Any], Callable[..., Any] | None]] = {
    "Add": (operator.add, np.add), "Sub": (operator.sub, np.subtract), "Mul": (operator.mul, np.multiply),
    "Div": (_quotient, None), "Equal": (_sure(operator.eq), np.equal), "Less": (_sure(operator.lt), np.less),
    "Greater": (_sure(operator.gt), np.greater), "LessOrEqual": (_sure(operator.le), np.less_equal),
    "GreaterOrEqual": (_sure(operator.ge), np.greater_equal),
}  # fmt: skip


def _binary(name: str) -> Callable[..., np.ndarray]:
    slow, fast = BINARY[name]

    def run(site: Site, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if _symbolic(a, b):
            return _elementwise([a, b], slow)
        if fast is None:  # Div: ONNX cuts the quotient of whole numbers off towards 0
            if np.issubdtype(a.dtype, np.floating):
                return np.asarray(np.divide(a, b))
            if not np.all(b):
                raise site.refuse("it divides by zero")
            return np.asarray(_elementwise([a, b], slow)).astype(a.dtype)
        return np.asarray(fast(a, b))

    return run


ON_SIZES.update({name: _binary(name) for name in BINARY})


@on_sizes("Max Min")
def _extreme(site: Site, *arrays: np.ndarray) -> np.ndarray:
    largest = site.call.op == "Max"
    if not _symbolic(*arrays):
        made = arrays[0]
        for a in arrays[1:]:
            made = np.maximum(made, a) if largest else np.minimum(made, a)
        return np.asarray(made)

    def two(a: Any, b: Any) -> Any:
        if isinstance(a, SYMBOLS) or isinstance(b, SYMBOLS):
            return torch.sym_max(a, b) if largest else torch.sym_min(a, b)
        return max(a, b) if largest else min(a, b)

    made = arrays[0]
    for a in arrays[1:]:
        made = _elementwise([made, a], two)
    return made


@on_sizes("Neg Abs Not Floor Ceil Sqrt")
def _unary(site: Site, a: np.ndarray) -> np.ndarray:
    op = site.call.op
    if not _symbolic(a):
        return np.asarray({"Neg": np.negative, "Abs": np.abs, "Not": np.logical_not, "Floor": np.floor,
                           "Ceil": np.ceil, "Sqrt": np.sqrt}[op](a))  # fmt: skip
    if op in ("Floor", "Ceil"):

        def rounded(v: Any) -> Any:
            if isinstance(v, torch.SymFloat):
                return torch.sym_float((math.floor if op == "Floor" else math.ceil)(v))
            return float(math.floor(v) if op == "Floor" else math.ceil(v)) if isinstance(v, float) else v

        return _elementwise([a], rounded)
    if op not in ("Neg", "Abs"):
        raise NotHere
    return _elementwise([a], operator.neg if op == "Neg" else abs)


@on_sizes("And Or Xor")
def _logic(site: Site, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray({"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}[site.call.op](a, b))


@on_sizes("Cast")
def _cast(site: Site, a: np.ndarray) -> np.ndarray:
    kind = DTYPES.get(site.get("to", 0), ("",))[0]
    if kind in ("", "bfloat16", "int4", "uint4"):
        raise NotHere
    if not _symbolic(a):
        return a.astype(kind)
    if kind.startswith("float"):
        return _elementwise([a], lambda v: torch.sym_float(v) if isinstance(v, SYMBOLS) else float(v))
    if kind in ("int64", "int32"):
        # A size is a whole number already; a quotient of sizes is cut off, as ONNX does.
        return _elementwise([a], lambda v: v if isinstance(v, torch.SymInt) else
                            torch.sym_int(v) if isinstance(v, torch.SymFloat) else int(v))  # fmt: skip
    raise NotHere


@on_sizes("Where")
def _where(site: Site, condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not _symbolic(condition, a, b):
        return np.asarray(np.where(condition, a, b))
    return _elementwise([condition, a, b], lambda c, x, y: x if bool(c) else y)


@on_sizes("Identity")
def _identity(site: Site, a: np.ndarray) -> np.ndarray:
    return a


def places(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices of which negative ones count from the end."""
    return np.where(indices < 0, indices + size, indices)


@on_sizes("Gather")
def _gather(site: Site, a: np.ndarray, indices: np.ndarray) -> np.ndarray:
    if _symbolic(indices):
        raise NotHere
    return np.asarray(np.take(a, indices.astype(np.int64), axis=site.get("axis", 0)))


@on_sizes("Concat")
def _concat(site: Site, *arrays: np.ndarray) -> np.ndarray:
    axis = site.get("axis", 0)
    if _symbolic(*arrays):
        return np.concatenate([np.asarray(a, object) for a in arrays], axis)
    return np.concatenate(arrays, axis)


@on_sizes("Slice")
def _slice(site: Site, a: np.ndarray, *rest: np.ndarray | None) -> np.ndarray:
    starts, ends, axes, steps = slice_arguments(site, a.ndim, rest)
    index: list[Any] = [slice(None)] * a.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if isinstance(start, torch.SymInt) or isinstance(end, torch.SymInt):
            raise NotHere
        stop = None if step < 0 and end < -a.shape[axis] else end
        # Against the axis, a start before its beginning is its first element, unlike in Python.
        index[axis] = slice(max(start, -a.shape[axis]) if step < 0 else start, stop, step)
    return a[tuple(index)]


def slice_arguments(
    site: Site, dims: int, rest: Sequence[np.ndarray | None]
) -> tuple[list[Any], list[Any], list[int], list[int]]:
    """Starts, ends, axes and steps of a Slice: attributes before opset 10, inputs since."""
    if site.opset < 10:
        starts, ends = list(site.get("starts", ())), list(site.get("ends", ()))
        axes, steps = list(site.get("axes", range(len(starts)))), [1] * len(starts)
    else:
        given = [*rest, None, None, None, None][:4]
        starts, ends = (site.ints(v, "a bound of the slice") for v in given[:2])
        axes = list(range(len(starts))) if given[2] is None else site.ints(given[2], "an axis")
        steps = [1] * len(starts) if given[3] is None else site.ints(given[3], "a step")
    return starts, ends, [a % dims if dims else a for a in axes], steps


def axes_of(site: Site, value: np.ndarray | None) -> list[int] | None:
    """The axes of a node: an attribute, or an input; None where neither is there."""
    if value is not None:
        return site.ints(value, "an axis")
    found = site.get("axes")
    return None if found is None else list(found)


@on_sizes("Unsqueeze")
def _unsqueeze(site: Site, a: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    found = axes_of(site, axes) or []
    return np.expand_dims(a, tuple(found))


@on_sizes("Squeeze")
def _squeeze(site: Site, a: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    found = axes_of(site, axes)
    return a.squeeze() if found is None else a.squeeze(tuple(found))


@on_sizes("Reshape")
def _reshape(site: Site, a: np.ndarray, shape: np.ndarray) -> np.ndarray:
    if _symbolic(shape):
        raise NotHere
    wanted = [a.shape[i] if d == 0 and not site.get("allowzero", 0) else int(d) for i, d in enumerate(shape)]
    return a.reshape(wanted)


@on_sizes("Flatten")
def _flatten(site: Site, a: np.ndarray) -> np.ndarray:
    axis = site.get("axis", 1)
    axis = axis + a.ndim if axis < 0 else axis
    return a.reshape(math.prod(a.shape[:axis]), -1)


@on_sizes("Transpose")
def _transpose(site: Site, a: np.ndarray) -> np.ndarray:
    return a.transpose(site.get("perm") or None)


@on_sizes("ReduceProd ReduceSum ReduceMax ReduceMin")
def _reduce(site: Site, a: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    if a.dtype == object and a.ndim != 1:
        raise NotHere
    found = axes_of(site, axes)
    if not found and site.get("noop_with_empty_axes", 0):
        return a
    if a.dtype != object:
        how = {"ReduceProd": np.prod, "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min}[site.call.op]
        kept = bool(site.get("keepdims", 1))
        return np.asarray(how(a, axis=tuple(found) if found else None, keepdims=kept)).astype(a.dtype)
    run: Any = {"ReduceProd": operator.mul, "ReduceSum": operator.add, "ReduceMax": torch.sym_max,
                "ReduceMin": torch.sym_min}[site.call.op]  # fmt: skip
    total = a[0]
    for value in a[1:]:
        total = run(total, value)
    made = np.empty((1,) if site.get("keepdims", 1) else (), object)
    made[...] = total
    return whole(made)


@on_sizes("ConstantOfShape")
def _filled(site: Site, shape: np.ndarray) -> np.ndarray:
    wanted = site.ints(shape, "the shape")
    if any(isinstance(d, torch.SymInt) for d in wanted) or math.prod(wanted) > LARGEST:
        raise NotHere
    value = site.get("value")
    return np.full(wanted, 0.0 if value is None else value.reshape(-1)[0], np.float32 if value is None else value.dtype)


@on_sizes("Expand")
def _expand(site: Site, a: np.ndarray, shape: np.ndarray) -> np.ndarray:
    wanted = site.ints(shape, "the shape")
    if any(isinstance(d, torch.SymInt) for d in wanted):
        raise NotHere
    made = np.broadcast_shapes(a.shape, tuple(wanted))
    if math.prod(made) > LARGEST:
        raise NotHere
    return np.broadcast_to(a, made).copy()


@on_sizes("Range")
def _range(site: Site, start: np.ndarray, limit: np.ndarray, step: np.ndarray) -> np.ndarray:
    if _symbolic(start, limit, step):
        raise NotHere
    first, last, by = (number(site, v, "a bound") for v in (start, limit, step))
    if by == 0 or (last - first) / by > LARGEST:
        raise NotHere
    return np.arange(first, last, by, dtype=start.dtype)


@on_sizes("Split")
def _split(site: Site, a: np.ndarray, split: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    axis, parts = site.get("axis", 0), len(site.call.outputs)
    if split is None and site.get("split") is None:
        size = -(-a.shape[axis] // parts)
        cuts = list(range(size, size * parts, size))
    else:
        cuts = np.cumsum(site.ints(split, "a size") if split is not None else list(site.get("split")))[:-1].tolist()
    return tuple(np.split(a, cuts, axis))
