"""Average pools and interpolation as a matrix for each spatial dimension: what whole numbers and ONNX make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parspike.graph.ir import Node
from parspike.graph.signature import Pool, arguments, named

__all__ = ["scales_of", "weights_along"]


def weights_along(node: Node, inside: Sequence[int], axis: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights (outside, inside) of an average pool or an interpolation along one of its spatial dimensions, the
    operator's own: what it makes of 1 among zeros, for each input. Along the others it does not change anything.

    inside: the sizes of the spatial dimensions of what it reads. axis: which of them. Of an average that is divided by
    a number of its own, the weights of the sum. Raises `KeyError` for an operator of another kind.
    """
    pool, given, rank, size = arguments(node), named(node), len(inside), inside[axis]
    out, packet = int(node.shape[axis - rank]), getattr(torch.ops.aten, node.target.split(".")[1]).default

    def alone(value: Any, other: Any) -> list[Any]:
        return [value if d == axis else other for d in range(rank)]

    if isinstance(pool, Pool):
        eye = torch.eye(size, dtype=dtype).reshape(size, 1, *alone(size, 1))
        if pool.output_size:
            return packet(eye, alone(out, 1)).reshape(size, out).T
        how = [alone(one[axis], other) for one, other in ((pool.kernel, 1), (pool.stride, 1), (pool.padding, 0))]
        own = [] if pool.divisor is None else [1]
        return packet(eye, *how, pool.ceil_mode, pool.count_include_pad, *own).reshape(size, out).T
    corners = () if "align_corners" not in given else (bool(given["align_corners"]),)
    # Two columns, since torch takes one for another layout of memory.
    eye = torch.eye(size, dtype=dtype).reshape(1, size, size, *[1] * (rank - 1)).repeat(1, 1, 1, *[2] * (rank - 1))
    scales = [scales_of(given, rank)[axis], *[None] * (rank - 1)]
    return packet(eye, [out, *[2] * (rank - 1)], *corners, *scales).reshape(size, out, -1)[..., 0].T


def scales_of(given: dict[str, Any], rank: int) -> list[float | None]:
    """The factor along each dimension that an interpolation was given (its arguments by name); None: that of the
    sizes."""
    if given.get("scale_factors") is not None:
        return [float(n) for n in given["scale_factors"]]
    if "scale_factors" in given:
        return [None] * rank
    return [given.get(name) for name in (("scales",) if rank == 1 else ("scales_d", "scales_h", "scales_w")[-rank:])]
