"""Tensors of a layer seen channel by channel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from parspike.errors import CalibrationError
from parspike.graph import Node

__all__ = ["above_zero", "by_channel", "channel_mean", "check_finite", "in_order", "node_shape", "spread", "unit_of"]

NEAR = 10
"""Powers of two around 1 within which sums of squares are safe in float32."""


def check_finite(node: Node, *values: Tensor) -> None:
    """Raise `CalibrationError` that names the layer unless all of the values are finite."""
    if not all(bool(end.isfinite()) for value in values for end in value.aminmax()):
        raise CalibrationError(f"layer '{node.layer}' gives NaN or Inf on the calibration data")


def by_channel(x: Tensor, node: Node, places: Tensor | None = None) -> Tensor:
    """(B, …) → (C, everything else), or that at some places alone."""
    return node.over_channels(x, places)


def in_order(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every channel's values (C, N) from the least to the largest, and where they stood.

    On a CPU numpy sorts five times as fast as torch (256 channels of 16,384 values: 70 against 350 ms)."""
    if x.is_cpu and x.dtype in (torch.float32, torch.float64):
        order = torch.from_numpy(np.argsort(x.detach().numpy(), 1))
        return x.gather(1, order), order
    return x.sort(1)


def channel_mean(x: Tensor, node: Node) -> Tensor:
    """Mean over batch and space: (C,)."""
    return by_channel(x, node).mean(1)


def node_shape(vector: Tensor, node: Node, like: Tensor | None = None) -> Tensor:
    """A vector (C,) in the shape that broadcasts against one sample of the node's output."""
    shaped = node.per_channel(vector).squeeze(0)
    return shaped if like is None else shaped.to(like.dtype).reshape(like.shape)


def unit_of(largest: Tensor) -> Tensor:
    """Units to measure magnitudes in, so that their squares neither vanish nor overflow: powers of two.

    1 for magnitudes near 1 and for 0, so what is divided by it keeps every bit there.
    """
    near = NEAR if torch.finfo(largest.dtype).max > 1e5 else 1  # squares of half precision end at 65504
    exponent = torch.frexp(largest.detach()).exponent - 1  # the largest number of a dtype has a unit below it
    far = (exponent.abs() > near) & (largest > 0) & largest.isfinite()
    return torch.where(far, torch.ldexp(torch.ones_like(largest), exponent), 1.0)


def above_zero(theta: Tensor, levels: int) -> Tensor:
    """Thresholds (C,), those of channels that never fired on the calibration data replaced by the layer's largest.

    Such a channel stays silent unless its current is large on the scale of its layer. So does one whose threshold is
    so small that levels/θ is no number of its dtype.
    """
    largest = theta.max()
    least = 4 * levels / torch.finfo(theta.dtype).max
    return torch.where(theta > least, theta, largest if largest > least else torch.ones_like(largest))


def spread(count: int, limit: int, device: torch.device, number: int = 0) -> Tensor:
    """An even subset of `limit` of `count` places, or all of them where they are fewer. number: of a batch, each of
    which gets another subset."""
    if count <= limit:
        return torch.arange(count, device=device)
    # A fixed stride would meet the same pixels in every map; a golden-ratio walk meets all alike.
    steps = torch.arange(limit, dtype=torch.float64) + 0.5 * number
    return (steps * 0.6180339887498949 % 1.0 * count).long().to(device)
