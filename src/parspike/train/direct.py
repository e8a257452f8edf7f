"""Direct training with surrogate gradients (STBP), as the comparison that the paper makes.

Wu et al. 2018 and 2019; equations as in the code of STBP-simple. Time is in the batch, (T·B, …), so the
network between the neurons runs as it is, and its batch norms take their statistics over time and batch together,
as tdBN does (Zheng et al. 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parspike.errors import InputError, OptionError
from parspike.train.replace import replace_activations

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["LIF", "OverTime", "with_lif"]

HALF_WIDTH = 0.5
"""Of the rectangle that stands for the derivative of the spike."""


class _Spike(torch.autograd.Function):
    """H(x) forward, a rectangle of area 1 around 0 backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (x.abs() < HALF_WIDTH) / (2 * HALF_WIDTH)


class LIF(nn.Module):
    """u(t) = τ u(t−1) (1 − s(t−1)) + x(t),  s(t) = H(u(t) − θ), from (T·B, …) to spikes of the same shape.

    T: time-steps. tau: the leak τ. v_threshold: θ. Gradients pass through the reset too.
    """

    def __init__(self, T: int, tau: float = 0.25, v_threshold: float = 0.5) -> None:
        super().__init__()
        if T < 1 or not 0 <= tau <= 1 or not v_threshold > 0:
            raise OptionError(f"T = {T}, tau = {tau}, v_threshold = {v_threshold}: T ≥ 1, 0 ≤ tau ≤ 1, v_threshold > 0")
        self.T, self.tau, self.v_threshold = T, tau, v_threshold

    def forward(self, x: Float[Tensor, "T*B ..."]) -> Float[Tensor, "T*B ..."]:
        if len(x) % self.T:
            raise InputError(f"{len(x)} rows are no multiple of T = {self.T}: the first dimension must be T·B")
        u, spike, spikes = None, None, []
        for current in x.unflatten(0, (self.T, -1)):
            u = current if u is None or spike is None else self.tau * u * (1 - spike) + current
            spike = _Spike.apply(u - self.v_threshold)
            spikes.append(spike)
        return torch.cat(spikes)

    def extra_repr(self) -> str:
        return f"T={self.T}, tau={self.tau:g}, v_threshold={self.v_threshold:g}"


class OverTime(nn.Module):
    """Runs a network of LIF neurons: the same input at every step, the output averaged over time."""

    def __init__(self, network: nn.Module, T: int) -> None:
        super().__init__()
        self.network, self.T = network, T

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
        over_time = x.expand(self.T, *x.shape).flatten(0, 1)
        return self.network(over_time).unflatten(0, (self.T, -1)).mean(0)


def with_lif(model: nn.Module, T: int, *, tau: float = 0.25, v_threshold: float = 0.5, example: Any = None) -> OverTime:
    """A copy of the network with LIF neurons for its activations, run over T steps. example: see `with_qcfs`.

    >>> model = with_lif(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), T=4)
    >>> model(torch.rand(3, 4)).shape
    torch.Size([3, 2])
    """
    return OverTime(replace_activations(model, lambda _: LIF(T, tau, v_threshold), example=example), T)
