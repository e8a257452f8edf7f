"""The spiking neurons of one layer: the parameters of (7), (9) and what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .quantised import spike_count
from .trains import sorted_train

__all__ = ["ParallelNeuron"]


class ParallelNeuron(nn.Module):
    """Parallel spiking neurons with sorted trains, equations (7)-(9).

    T: time-steps. offset: the activation's smallest output (0 for ReLU), a constant current.
    v_threshold: θ, pre-threshold. shift: δ. v_post: θ + φ, the amplitude of a spike (post-threshold). Each is
    a scalar or broadcasts against one sample, such as (C, 1, 1).
    """

    def __init__(self, T: int, v_threshold: Tensor, *, offset: float = 0.0) -> None:
        super().__init__()
        self.T, self.offset = T, offset
        self.v_threshold = nn.Parameter(v_threshold.clone(), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros_like(v_threshold), requires_grad=False)
        self.v_post = nn.Parameter(v_threshold.clone(), requires_grad=False)

    def count(self, z: Tensor) -> Tensor:
        """Spikes in T steps for a mean input current z (B, …), in z's dtype."""
        shift = self.shift - self.offset if self.offset else self.shift
        return spike_count(z, self.v_threshold, self.T, shift)

    def value(self, count: Tensor) -> Tensor:
        """Mean output current of neurons that fire `count` times in T steps."""
        mean = count * (self.v_post / self.T)
        return mean + self.offset if self.offset else mean

    def forward(self, z: Tensor) -> Tensor:
        """`value(count(z))`, without a tensor of its own for the counts."""
        mean = self.count(z).mul_(self.v_post / self.T)
        return mean.add_(self.offset) if self.offset else mean

    def spikes(self, count: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Spikes of steps start … stop − 1: bool (stop − start, B, …)."""
        return sorted_train(count, self.T, start=start, stop=stop)

    def current(self, count: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Output current of steps start … stop − 1: (stop − start, B, …)."""
        current = self.spikes(count, start, stop) * self.v_post
        return current + self.offset if self.offset else current

    def config(self) -> dict[str, Any]:
        """What the tensors do not say, as JSON-able data."""
        return {"kind": "parallel", "T": self.T, "offset": self.offset}
