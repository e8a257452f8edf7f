"""recdis-style: LIF neurons, and a penalty on the distribution of their potentials. **An approximation, not verified.**

After Guo, Tong, Chen, Zhang, Liu, Ma, Huang, "RecDis-SNN: Rectifying Membrane Potential Distribution for Directly
Training Spiking Neural Networks", CVPR 2022. Of that paper only the abstract was read: its loss acts against three
shifts of the potentials (degeneration: all lie on one side of the threshold; saturation: they lie outside the window in
which the surrogate is not 0; gradient mismatch). The formulas below are from memory, by analogy with the distribution
loss of Ding et al. (CVPR 2019) for binary networks; factors and weight are our choice. What is measured with this
file are figures of "RecDis-style", never of RecDis.

    per channel, over time, batch and space: m and d the mean and the standard deviation of u − θ;
    w = 1/2 the half width of the window
    penalty = weight · Σ over layers of the mean over channels of
              relu(|m| − k₁ d)² + relu(k₂ d − w)² + relu(w − |m| − k₃ d)²
    u(t) = τ u(t−1) (1 − s(t−1)) + x(t),   s(t) = [u(t) > θ],   ∂s/∂u = [|u − θ| < w]   (as stbp)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from parspike.errors import OptionError
from parspike.train.direct import lif, over_steps, widened
from parspike.train.fields import at_least
from parspike.train.methods.base import Leaky
from parspike.train.surrogate import Rectangle

__all__ = ["RecDisNeuron", "RecDisStyle", "distribution_penalty"]

HALF_WIDTH = 0.5


@dataclass(frozen=True)
class RecDisStyle(Leaky):
    """Direct training of LIF neurons with a penalty on their potentials.

    tau: leak τ. v_threshold: θ. weight: of the penalty beside the cross-entropy. spread: k₁, k₂ and k₃.
    """

    name: ClassVar[str] = "recdis-style"
    weight: float = 0.01
    spread: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("activation.weight", self.weight, 0)
        if len(self.spread) != 3:
            raise OptionError(f"activation.spread = {self.spread}: give k₁, k₂ and k₃")

    def neurons(self, start: float | Tensor) -> nn.Module:
        """`RecDisNeuron`."""
        return RecDisNeuron(self.T, self.tau, self.v_threshold, self.spread)

    def penalty(self, network: nn.Module) -> Tensor | float:
        """The weighted sum of what the layers noted in the last pass."""
        noted = [p for module in network.modules() if isinstance(module, RecDisNeuron) for p in module.take()]
        return self.weight * torch.stack(noted).sum() if noted else 0.0


class RecDisNeuron(nn.Module):
    """LIF neurons (T·B, …) that note `distribution_penalty` of their potentials in each training pass, until `take`."""

    def __init__(self, T: int, tau: float, v_threshold: float, spread: tuple[float, ...]) -> None:
        super().__init__()
        self.T, self.tau, self.v_threshold, self.spread = T, tau, v_threshold, spread
        self.noted: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        spikes, potentials = lif(over_steps(widened(x), self.T), self.tau, self.v_threshold, Rectangle(HALF_WIDTH))
        if self.training and torch.is_grad_enabled():
            self.noted = [distribution_penalty(torch.cat(potentials) - self.v_threshold, self.spread)]
        return torch.cat(spikes).to(x.dtype)

    def take(self) -> list[Tensor]:
        """What was noted, once: it holds the memory of the pass."""
        noted, self.noted = self.noted, []
        return noted

    def extra_repr(self) -> str:
        return f"T={self.T}, tau={self.tau:g}, v_threshold={self.v_threshold:g}"


def distribution_penalty(d: Tensor, spread: tuple[float, ...]) -> Tensor:
    """The penalty of the equation above, without its weight, for d = u − θ of shape (N, C, …), or (N,) of one channel;
    one number."""
    k1, k2, k3 = spread
    channels = d[None] if d.dim() == 1 else d.movedim(1, 0).flatten(1)
    mean = channels.mean(1).abs()
    deviation = (channels.var(1, correction=0) + 1e-8).sqrt()  # its gradient is finite where all potentials are equal
    degeneration = (mean - k1 * deviation).relu().square()
    saturation = (k2 * deviation - HALF_WIDTH).relu().square()
    mismatch = (HALF_WIDTH - mean - k3 * deviation).relu().square()
    return (degeneration + saturation + mismatch).mean()
