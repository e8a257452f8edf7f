"""stbp: leaky integrate-and-fire neurons, trained through space and time with a rectangle for the spike's derivative.

Wu, Deng, Li, Zhu, Shi, "Spatio-Temporal Backpropagation for Training High-Performance Spiking Neural Networks", Front.
Neurosci. 2018, and Wu, Deng, Li, Zhu, Xie, Shi, "Direct Training for Spiking Neural Networks: Faster, Larger, Better",
AAAI 2019.

    u(t) = τ u(t−1) (1 − s(t−1)) + x(t),   s(t) = [u(t) > θ],   ∂s/∂u = [|u − θ| < 1/2],
    loss = cross-entropy(mean over t of the output)

Verified: neuron, gradient through the reset and rectangle are those of the public code of STBP-simple. θ = 0.5 and
τ = 0.25 are the papers' values from memory (that code has θ = 0.2). Differs: the networks here have batch norms, which
act over time and batch together, where the papers have none or NeuNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parspike.train.methods.base import Leaky

__all__ = ["STBP"]


@dataclass(frozen=True)
class STBP(Leaky):
    """Direct training of LIF neurons. tau: leak τ. v_threshold: θ."""

    name: ClassVar[str] = "stbp"
