"""Elementwise work in pieces that stay in the processor's cache.

A chain of elementwise operators on a large tensor is bound by memory: every operator reads and writes all of it. On
the CPU the chain runs piece by piece instead, so that only its first operator reads from memory and its last writes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["PIECE", "compiled_for_cpu", "holds_double", "in_pieces", "runs_here"]

PIECE = 1 << 18
"""Elements of a piece: 1 MiB of float32, a second-level cache. Smaller ones pay more for calls than they save."""


def runs_here(z: Tensor) -> bool:
    """Whether operators on z run at once, on the CPU: z is neither traced nor a stand-in for a tensor."""
    return not torch.compiler.is_compiling() and z.device.type == "cpu" and type(z) in (Tensor, torch.nn.Parameter)


@functools.cache
def holds_double(device: torch.device) -> bool:
    """Whether a device has numbers of 64 bits, which Apple's GPUs have not."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except TypeError:
        return False
    return True


def compiled_for_cpu(tensor: Tensor) -> bool:
    """Whether torch.compile is tracing what this tensor goes into, for the CPU."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting() and tensor.device.type == "cpu"


def in_pieces(
    fill: Callable[..., None], z: Tensor, dtype: torch.dtype, *beside: Tensor, over: bool = False, rows: int = 0
) -> Tensor:
    """A tensor like z, of `dtype`, whose pieces `fill(piece of it, the same piece of z, *those of beside)` has written.

    beside: tensors that broadcast against one sample of z. Where all have one element, pieces are one-dimensional.
    over: z itself is overwritten, if it has the dtype. rows: dimensions, the last ones, that no piece cuts.
    """
    over = over and z.dtype == dtype and torch.empty_like(z, device="meta").stride() == z.stride()
    out = z if over else torch.empty_like(z, dtype=dtype)
    flat = not rows and all(t.numel() == 1 for t in beside)
    if flat:
        if out.stride() != z.stride():  # z has gaps or overlaps, so its elements are not numbered by their addresses
            z = z.contiguous()
            out = torch.empty_like(z, dtype=dtype)
        into, read = (t.as_strided((t.numel(),), (1,)) for t in (out, z))
        beside = tuple(t.reshape(()) for t in beside)
    else:
        into, read = out, z
        beside = tuple(t.reshape(*[1] * (z.dim() - t.dim()), *t.shape) for t in beside)
    _fill(fill, into, read, beside, rows)
    return out


def _fill(fill: Callable[..., None], out: Tensor, z: Tensor, beside: tuple[Tensor, ...], rows: int) -> None:
    """Fill `out`, cut along the dimension that reaches farthest in memory until its parts are pieces."""
    size = z.numel()
    if size <= PIECE:
        fill(out, z, *beside)
        return
    dims = [d for d in range(z.dim() - rows) if z.shape[d] > 1]
    if not dims:
        fill(out, z, *beside)
        return
    along = max(dims, key=z.stride)
    whole = z.shape[along]
    step = max(1, PIECE * whole // size)
    for start in range(0, whole, step):
        length = min(step, whole - start)
        cut = [t.narrow(along, start, length) for t in (out, z)]
        own = tuple(t if not t.dim() or t.shape[along] == 1 else t.narrow(along, start, length) for t in beside)
        _fill(fill, cut[0], cut[1], own, rows)
