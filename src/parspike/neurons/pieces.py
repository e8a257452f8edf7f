"""Elementwise work in pieces that stay in the processor's cache.

A chain of elementwise operators on a large tensor is bound by memory: every operator reads and writes all of it. On
the CPU the chain runs piece by piece instead, so that only its first operator reads from memory and its last writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["PIECE", "in_pieces", "runs_here"]

PIECE = 1 << 18
"""Elements of a piece: 1 MiB of float32, a second-level cache. Smaller ones pay more for calls than they save."""


def runs_here(z: Tensor) -> bool:
    """Whether operators on z run at once, on the CPU: z is neither traced nor a stand-in for a tensor."""
    return not torch.compiler.is_compiling() and z.device.type == "cpu" and type(z) in (Tensor, torch.nn.Parameter)


def in_pieces(fill: Callable[[Tensor, Tensor], None], z: Tensor, dtype: torch.dtype, *, flat: bool = True) -> Tensor:
    """A tensor like z, of `dtype`, whose pieces `fill(piece of it, the same piece of z)` has written.

    flat: pieces are one-dimensional, of at most `PIECE` elements; else whole samples (…, *one sample of z).
    """
    out = torch.empty_like(z, dtype=dtype)
    if flat:
        if out.stride() != z.stride():  # z has gaps or overlaps, so its elements are not numbered by their addresses
            z = z.contiguous()
            out = torch.empty_like(z, dtype=dtype)
        parts = [t.as_strided((t.numel(),), (1,)).split(PIECE) for t in (out, z)]
    else:
        number = max(1, PIECE // max(1, math.prod(z.shape[1:])))
        parts = [t.split(number) for t in (out, z)]
    for into, piece in zip(*parts, strict=True):
        fill(into, piece)
    return out
