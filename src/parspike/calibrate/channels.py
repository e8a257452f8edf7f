"""Tensors of a layer seen channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor

from parspike.graph import Node

__all__ = ["above_zero", "by_channel", "channel_mean", "node_shape"]


def by_channel(x: Tensor, node: Node) -> Tensor:
    """(B, …) → (C, everything else)."""
    return node.over_channels(x)


def channel_mean(x: Tensor, node: Node) -> Tensor:
    """Mean over batch and space: (C,)."""
    return by_channel(x, node).mean(1)


def node_shape(vector: Tensor, node: Node, like: Tensor | None = None) -> Tensor:
    """A vector (C,) in the shape that broadcasts against one sample of the node's output."""
    shaped = node.per_channel(vector).squeeze(0)
    return shaped if like is None else shaped.to(like.dtype).reshape(like.shape)


def above_zero(theta: Tensor, levels: int) -> Tensor:
    """Thresholds (C,), those of channels that never fired on the calibration data replaced by the layer's largest.

    Such a channel stays silent unless its current is large on the scale of its layer. So does one whose threshold is
    so small that levels/θ is no number of its dtype.
    """
    largest = theta.max()
    least = 4 * levels / torch.finfo(theta.dtype).max
    return torch.where(theta > least, theta, largest if largest > least else torch.ones_like(largest))
