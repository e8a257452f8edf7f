"""tet: a loss at every time-step, not one of the mean output.

Deng, Li, Zhang, Gu, "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting", ICLR 2022.

    loss = (1 − λ)/T Σ_t cross-entropy(o(t), y) + λ mean over t, n, k of (o(t) − φ)²,   o(t) the logits of step t
    u(t) = τ u(t−1) (1 − s(t−1)) + x(t),   s(t) = [u(t) > θ],   ∂s/∂u = max(0, γ − |u − θ|)/γ²,   answer: mean of o(t)

Verified: loss, neuron (τ = 0.5, θ = 1, γ = 1, hard reset) and φ = θ = 1 were read in the authors' code, which has
λ = 0.001 in its script for DVS data. λ = 0.05 for CIFAR is from a reading note and not verified. Their optimiser is
Adam; here it is the recipe's SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from parspike.train.direct import LIF
from parspike.train.fields import above, within
from parspike.train.methods.base import Leaky
from parspike.train.surrogate import Triangle

__all__ = ["TET"]


@dataclass(frozen=True)
class TET(Leaky):
    """Direct training of LIF neurons with a loss at each step.

    tau: leak τ. v_threshold: θ. width: γ of the triangle. regularisation: λ, the share of the second term.
    target: φ, which that term draws all logits towards.
    """

    name: ClassVar[str] = "tet"
    tau: float = 0.5
    v_threshold: float = 1.0
    width: float = 1.0
    regularisation: float = 0.05
    target: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within("activation.regularisation", self.regularisation, 0, 1)
        above("activation.width", self.width)

    def neurons(self, start: float | Tensor) -> nn.Module:
        """LIF with a triangle."""
        return LIF(self.T, self.tau, self.v_threshold, Triangle(self.width))

    def loss(self, output: Tensor, y: Tensor, smoothing: float) -> Tensor:
        """The equation above for outputs (T, B, K)."""
        each = F.cross_entropy(output.flatten(0, 1), y.repeat(self.T), label_smoothing=smoothing)
        drawn = (output - self.target).square().mean()
        return (1 - self.regularisation) * each + self.regularisation * drawn
