"""Rules for operators that move, choose, repeat or join values, and for those that make tensors of a shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.onnx_in.rules import Site, dtype_of, number, rule
from parspike.onnx_in.sizes import axes_of, places, slice_arguments

__all__: list[str] = []


@rule("Shape")
def _shape(site: Site, x: Tensor) -> np.ndarray:
    sizes = list(x.shape)[slice(site.get("start", 0), site.get("end"))]
    if all(isinstance(n, int) for n in sizes):
        return np.array(sizes, np.int64)
    made = np.empty(len(sizes), object)
    made[:] = sizes
    return made


@rule("Size")
def _size(site: Site, x: Tensor) -> np.ndarray:
    made = np.empty((), object)
    made[...] = math.prod(x.shape)
    return made if not isinstance(made.item(), int) else made.astype(np.int64)


@rule("Reshape", 1)
def _reshape(site: Site, x: Tensor, shape: Any = None) -> Tensor:
    wanted = site.ints(shape, "the shape")
    kept = not site.get("allowzero", 0)
    made = [x.shape[i] if kept and isinstance(d, int) and d == 0 else d for i, d in enumerate(wanted)]
    if made and isinstance(made[0], int) and wanted[0] == made[0]:
        made[0] = site.of_batch(made[0])
    return x.reshape(site.checked(made))


@rule("Flatten")
def _flatten(site: Site, x: Tensor) -> Tensor:
    axis = site.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 0:
        return x.reshape(1, -1)
    if axis == 1 and x.dim() > 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@rule("Squeeze", 1)
def _squeeze(site: Site, x: Tensor, axes: Any = None) -> Tensor:
    found = axes_of(site, None if axes is None else site.constant(axes, "an axis"))
    if found is None:
        found = [d for d, n in enumerate(x.shape) if isinstance(n, int) and n == 1]
    return x.squeeze(tuple(found)) if found else x


@rule("Unsqueeze", 1)
def _unsqueeze(site: Site, x: Tensor, axes: Any = None) -> Tensor:
    found = axes_of(site, None if axes is None else site.constant(axes, "an axis")) or []
    for axis in sorted(a % (x.dim() + len(found)) for a in found):
        x = x.unsqueeze(axis)
    return x


@rule("Transpose")
def _transpose(site: Site, x: Tensor) -> Tensor:
    return x.permute(tuple(site.get("perm") or reversed(range(x.dim()))))


@rule("Concat")
def _concat(site: Site, *given: Tensor) -> Tensor:
    axis = site.get("axis", 1)
    if site.fixed_batch is not None and axis % max(given[0].dim(), 1):
        # A constant that the file has as often as its fixed batch has samples, such as a class token.
        others = [x for x in given if not (isinstance(x.shape[0], int) and x.shape[0] == site.fixed_batch)]
        if others and len(others) < len(given) and site.fixed_batch == 1:
            size = others[0].shape[0]
            given = tuple(x if any(x is o for o in others) else x.expand(size, *x.shape[1:]) for x in given)
    return torch.cat(given, axis)


@rule("Split", 1, outputs=1 << 16)
def _split(site: Site, x: Tensor, split: Any = None) -> tuple[Tensor, ...]:
    axis, parts = site.get("axis", 0), len(site.call.outputs)
    if split is None and site.get("split") is None:
        size = x.shape[axis]
        return torch.split(x, (size + parts - 1) // parts, axis)
    sizes = site.ints(split, "a size") if split is not None else list(site.get("split"))
    return torch.split(x, sizes, axis)


def _bounded(value: Any, most: int) -> Any:
    """A bound of a slice; beyond the end it means the end."""
    return value if isinstance(value, torch.SymInt) else max(-most, min(most, value))


@rule("Slice", 1, 2, 3, 4)
def _slice(site: Site, x: Tensor, *rest: Any) -> Tensor:
    given = [None if v is None else site.constant(v, "a bound of the slice") for v in rest]
    starts, ends, axes, steps = slice_arguments(site, x.dim(), given)
    most = (1 << 63) - 1
    index: list[Any] = [slice(None)] * x.dim()
    turned: dict[int, tuple[Any, Any, int]] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step == 0:
            raise site.refuse("a step of 0")
        if step < 0:
            turned[axis] = (start, end, -step)
        elif not (isinstance(start, int) and start == 0 and isinstance(end, int) and end >= most >> 32 and step == 1):
            index[axis] = slice(_bounded(start, most), _bounded(end, most), step)
    for axis, (start, end, step) in turned.items():  # torch has no negative steps: flip, then slice
        size = x.shape[axis]
        first = size - 1 - (min(start, size - 1) if start >= 0 else max(start + size, 0))
        last = size if end < -size else size - 1 - (end if end >= 0 else end + size)
        x = x.flip(axis)
        index[axis] = slice(max(first, 0), max(last, 0), step)
    return x[tuple(index)] if any(i != slice(None) for i in index) else x


@rule("Gather", 1)
def _gather(site: Site, x: Tensor, indices: Any) -> Tensor:
    axis = site.get("axis", 0) % max(x.dim(), 1)
    if isinstance(indices, Tensor):
        if axis == 0 and x.dim() == 2:
            return F.embedding(indices, x)
        size = x.shape[axis]
        indices = torch.where(indices < 0, indices + size, indices)
    else:
        if indices.dtype == object:
            raise site.refuse("its indices are sizes of the inputs: not supported")
        if indices.ndim == 0:
            return x.select(axis, int(indices))
        size = x.shape[axis]
        if isinstance(size, torch.SymInt) and (indices < 0).any():
            raise site.refuse("its indices count from the end of an axis of open size: not supported")
        indices = site.tensor(places(indices, size if isinstance(size, int) else 0).astype(np.int64))
    picked = x.index_select(axis, indices.reshape(-1))
    if indices.dim() == 1:
        return picked
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@rule("GatherElements")
def _gather_elements(site: Site, x: Tensor, indices: Tensor) -> Tensor:
    axis = site.get("axis", 0)
    size = x.shape[axis]
    return x.gather(axis, torch.where(indices < 0, indices + size, indices).long())


@rule("GatherND")
def _gather_nd(site: Site, x: Tensor, indices: Tensor) -> Tensor:
    shared = site.get("batch_dims", 0)
    if shared:
        raise site.refuse("batch_dims above 0 is not supported")
    return x[tuple(indices.long().unbind(-1))]


HOW = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@rule("ScatterElements Scatter")
def _scatter_elements(site: Site, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, how = site.get("axis", 0), site.get("reduction", "none")
    size = x.shape[axis]
    indices = torch.where(indices < 0, indices + size, indices).long()
    if how == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, HOW[how])


@rule("ScatterND")
def _scatter_nd(site: Site, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    how = site.get("reduction", "none")
    if how not in ("none", "add"):
        raise site.refuse(f"reduction '{how}' is not supported")
    return x.index_put(tuple(indices.long().unbind(-1)), updates, accumulate=how == "add")


@rule("Expand", 1)
def _expand(site: Site, x: Tensor, shape: Any) -> Tensor:
    wanted = site.ints(shape, "the shape")
    if wanted and len(wanted) >= x.dim():
        wanted[0] = site.of_batch(wanted[0]) if isinstance(wanted[0], int) else wanted[0]
    more = len(wanted) - x.dim()
    own = [1] * more + list(x.shape)
    wanted = [1] * -more + wanted
    # A 1 in the shape leaves the size of x, as broadcasting in both directions does.
    sizes = [n if isinstance(w, int) and w == 1 else w for n, w in zip(own, wanted, strict=True)]
    return x.expand(site.checked(sizes))


@rule("Tile", 1)
def _tile(site: Site, x: Tensor, repeats: Any) -> Tensor:
    wanted = site.ints(repeats, "a number of repeats")
    site.checked([n * w for n, w in zip(x.shape, wanted, strict=True)])
    return x.repeat(wanted)


MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@rule("Pad", 1, 2, 3)
def _pad(site: Site, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    if site.opset < 11:
        sizes, filled = list(site.get("pads", site.get("paddings", ()))), site.get("value", 0.0)
    else:
        sizes, filled = site.ints(pads, "a pad"), number(site, value, "the value", 0)
    dims = list(range(x.dim())) if axes is None else [a % x.dim() for a in site.ints(axes, "an axis")]
    before, after = dict(zip(dims, sizes[: len(dims)], strict=True)), dict(zip(dims, sizes[len(dims) :], strict=True))
    site.checked([n + before.get(d, 0) + after.get(d, 0) for d, n in enumerate(x.shape)])
    mode = site.get("mode", "constant")
    if mode == "constant":
        flat = [p for d in reversed(range(x.dim())) for p in (before.get(d, 0), after.get(d, 0))]
        while len(flat) > 2 and all(isinstance(p, int) and p == 0 for p in flat[-2:]):
            del flat[-2:]
        return x if all(isinstance(p, int) and p == 0 for p in flat) else F.pad(x, flat, value=filled)
    if mode not in MODES:
        raise site.refuse(f"mode '{mode}' is not supported")
    for d in dims:  # one axis at a time, as a signal of (rows, 1, length); the axes do not influence each other
        pair = before[d], after[d]
        if all(isinstance(p, int) and p == 0 for p in pair):
            continue
        if any(isinstance(p, int) and p < 0 for p in pair):
            raise site.refuse(f"it cuts off ({pair}) in mode '{mode}': not supported")
        moved = x.movedim(d, -1)
        padded = F.pad(moved.reshape(-1, 1, moved.shape[-1]), pair, mode=MODES[mode])
        x = padded.reshape(*moved.shape[:-1], padded.shape[-1]).movedim(-1, d)
    return x


@rule("ConstantOfShape", 0)
def _constant_of_shape(site: Site, shape: Any) -> Tensor:
    wanted = site.checked(site.ints(shape, "the shape"))
    value = site.get("value")
    filled = 0.0 if value is None else value.reshape(-1)[0].item()
    dtype = torch.float32 if value is None else torch.from_numpy(value.reshape(-1)).dtype
    return torch.full(wanted, filled, dtype=dtype, device=site.device)


@rule("Range", 0, 1, 2)
def _range(site: Site, start: Any, limit: Any, step: Any) -> Tensor:
    first, last, by = (number(site, v, "a bound") for v in (start, limit, step))
    if isinstance(first, (int, float)) and isinstance(last, (int, float)):
        site.checked([int(abs((last - first) / by))] if by else [])
    kind = next((v.dtype for v in (start, limit, step) if v.dtype != object), np.dtype(np.int64))
    return torch.arange(first, last, by, dtype=torch.from_numpy(np.zeros(1, kind)).dtype, device=site.device)


@rule("EyeLike")
def _eye_like(site: Site, x: Tensor) -> Tensor:
    dtype = dtype_of(site, site.get("dtype")) if site.get("dtype") else x.dtype
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    columns = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
    return (columns - rows == site.get("k", 0)).to(dtype)


@rule("OneHot", 1, 2)
def _one_hot(site: Site, indices: Tensor, depth: Any, values: Any) -> Tensor:
    classes = int(number(site, depth, "the depth"))
    site.checked([*indices.shape, classes])
    axis = site.get("axis", -1)
    off, on = site.constant(values, "the values").reshape(-1)
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    shape = [1] * (indices.dim() + 1)
    shape[axis] = classes
    levels = torch.arange(classes, device=site.device).reshape(shape)
    wrapped = torch.where(indices < 0, indices + classes, indices).unsqueeze(axis)
    made = torch.from_numpy(np.asarray([off, on])).to(site.device)
    return torch.where(wrapped == levels, made[1], made[0])


@rule("Trilu", 1)
def _trilu(site: Site, x: Tensor, k: Any = None) -> Tensor:
    diagonal = int(number(site, k, "the diagonal", 0))
    return torch.triu(x, diagonal) if site.get("upper", 1) else torch.tril(x, diagonal)


@rule("DepthToSpace")
def _depth_to_space(site: Site, x: Tensor) -> Tensor:
    block = site.get("blocksize")
    if site.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    made = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return made.reshape(n, c // block**2, h * block, w * block)


@rule("SpaceToDepth")
def _space_to_depth(site: Site, x: Tensor) -> Tensor:
    block = site.get("blocksize")
    n, c, h, w = x.shape
    made = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return made.reshape(n, c * block**2, h // block, w // block)
