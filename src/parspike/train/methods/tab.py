"""tab: LIF neurons behind batch norms of each time-step, whose statistics are of all steps so far.

Jiang, Zoonekynd, De Masi, Gu, Xiong, "TAB: Temporal Accumulated Batch Normalization in Spiking Neural Networks", ICLR
2024.

    y(t) = p_t² (γ_t x̂(t) + β_t),   x̂(t) = (x(t) − μ_t)/√(σ_t² + ε),
    μ_t and σ_t² of a channel over steps 1 … t, batch and space; γ, β, p and running statistics for each t
    u(t) = τ u(t−1) (1 − s(t−1)) + x(t),   s(t) = [u(t) > θ],   ∂s/∂u = max(0, γ − |u − θ|)/γ²

Verified: norm, neuron, τ = 0.9, γ = 1 and momentum 0.1 were read in the authors' code, which pools all steps so far
equally; the paper derives an accumulation with the leak, which is not in that code. θ = 1 is our choice (an argument
there). The published last layer adds up outputs, which gives the same answer as their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from parspike.errors import InputError
from parspike.train.direct import LIF, over_steps, widened
from parspike.train.fields import above
from parspike.train.methods.base import Leaky, swapped
from parspike.train.surrogate import Triangle

__all__ = ["TAB", "AccumulatedNorm"]


@dataclass(frozen=True)
class TAB(Leaky):
    """Direct training of LIF neurons with temporal accumulated batch norm.

    tau: leak τ. v_threshold: θ. width: γ of the triangle.
    """

    name: ClassVar[str] = "tab"
    tau: float = 0.9
    v_threshold: float = 1.0
    width: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        above("activation.width", self.width)

    def neurons(self, start: float | Tensor) -> nn.Module:
        """LIF with a triangle."""
        return LIF(self.T, self.tau, self.v_threshold, Triangle(self.width))

    def network(self, base: nn.Module, example: Any) -> nn.Module:
        """With an `AccumulatedNorm` for each batch norm. Raises `InputError` where there is none."""
        network = super().network(base, example)
        if not swapped(network, _BatchNorm, lambda name, norm: AccumulatedNorm(norm, self.T, name)):
            raise InputError("method tab: the network has no batch norm; train it with activation.method=stbp")
        return network


class AccumulatedNorm(nn.Module):
    """T batch norms in one, from (T·B, C, …) to the same shape; step t is normalised by the statistics of steps 1 … t.

    Each step begins with scale, shift and running statistics of the batch norm that it is made of. In evaluation the
    running statistics are used.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: Any, T: int, layer: str = "") -> None:
        super().__init__()
        if norm.running_mean is None or norm.momentum is None:
            raise InputError(
                f"method tab: the batch norm '{layer}' has no running statistics, or a mean over all batches "
                "(momentum=None); give it track_running_stats=True and a momentum"
            )
        channels = len(norm.running_mean)
        weight = torch.ones(channels) if norm.weight is None else norm.weight.detach()
        bias = torch.zeros(channels) if norm.bias is None else norm.bias.detach()
        self.T, self.eps, self.momentum = T, norm.eps, norm.momentum
        self.weight, self.bias = nn.Parameter(weight.repeat(T, 1)), nn.Parameter(bias.repeat(T, 1))
        self.step_scale = nn.Parameter(torch.ones(T))  # p
        self.register_buffer("running_mean", norm.running_mean.repeat(T, 1))
        self.register_buffer("running_var", norm.running_var.repeat(T, 1))

    def forward(self, x: Tensor) -> Tensor:
        over_time = over_steps(widened(x), self.T)
        mean, var = self._statistics(over_time) if self.training else (self.running_mean, self.running_var)
        power = self.step_scale.square()[:, None]
        factor = power * self.weight / (var + self.eps).sqrt()
        offset = power * self.bias - mean * factor
        shape = (self.T, 1, -1, *[1] * (x.ndim - 2))
        return (over_time * factor.view(shape) + offset.view(shape)).flatten(0, 1).to(x.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (T, C) of x (T, B, C, …) over steps 1 … t, batch and space; the running ones follow."""
        dims = [1, *range(3, x.ndim)]
        count = x[0].numel() // x.shape[2]
        if count < 2:
            raise InputError(f"a batch norm needs more than one value a channel in training, got {tuple(x.shape[1:])}")
        var, mean = torch.var_mean(x, dims, correction=0)
        # Of steps with equal counts: the mean of their means; the mean of their variances, and the variance of means.
        among = torch.ones(self.T, self.T, dtype=x.dtype, device=x.device).tril()
        among = among / among.sum(1, keepdim=True)
        with torch.autocast(x.device.type, enabled=False):
            pooled = among @ mean
            apart = (mean[None] - pooled[:, None]).square()  # (t, τ, C)
            pooled_var = among @ var + (among[:, :, None] * apart).sum(1)
        with torch.no_grad():
            counts = count * torch.arange(1, self.T + 1, dtype=x.dtype, device=x.device)[:, None]
            self.running_mean.lerp_(pooled.detach().to(self.running_mean.dtype), self.momentum)
            unbiased = pooled_var.detach() * counts / (counts - 1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return pooled, pooled_var

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, T={self.T}, eps={self.eps}, momentum={self.momentum}"
