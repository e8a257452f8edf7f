"""psn, masked-psn, sliding-psn: neurons without a reset, whose potentials of all steps are one product of matrices.

Fang, Yu, Zhou, Chen, Chen, Ma, Masquelier, Tian, "Parallel Spiking Neurons with High Efficiency and Ability to Learn
Long-term Dependencies", NeurIPS 2023.

    psn          H = W X + β, s(t) = [H(t) ≥ 0], W (T, T) and β (T) trained, shared by all neurons of a layer; a step
                 also sees later steps
    masked-psn   W ∘ (λ M + 1 − λ), M[i, j] = 1 for j ≤ i ≤ j + k − 1: of the latest k steps once λ = 1, which grows
                 from 0 in the first epoch to 1 in the last
    sliding-psn  H(t) = Σ_{i<k} w_i x(t − k + 1 + i) + β, x = 0 before the first step: the same k weights at each step
    ∂s/∂H = (α/2)/(1 + (π α H/2)²), α = 2;   loss = cross-entropy(mean over t of the output)

Verified: equations, start values (W uniform within ±1/√T, w = …, 1/4, 1/2, 1, β = −1) and surrogate were read in
SpikingJelly, whose authors wrote the paper. That λ grows linearly over training is theirs; a step an epoch is ours.
Some of their recipes use the loss of TET or mixed images; here it is the cross-entropy. A masked-psn that stops
early (optimiser.patience) keeps the λ of that epoch and is not masked strictly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from parspike.errors import OptionError
from parspike.train.direct import over_steps, widened
from parspike.train.fields import at_least
from parspike.train.methods.base import Batch, Direct
from parspike.train.surrogate import Arctan, spike

__all__ = ["PSN", "MaskedPSN", "MaskedPSNNeuron", "PSNNeuron", "SlidingPSN", "SlidingPSNNeuron"]


@dataclass(frozen=True)
class PSN(Direct):
    """Direct training of parallel spiking neurons."""

    name: ClassVar[str] = "psn"

    def neurons(self, start: float | Tensor) -> nn.Module:
        """`PSNNeuron`."""
        return PSNNeuron(self.T)


@dataclass(frozen=True)
class Ordered(Direct):
    """Base of the methods whose neurons see the latest steps alone. order: k, how many of them a step sees."""

    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("activation.order", self.order, 1)
        if self.order > self.T:
            raise OptionError(f"activation.order = {self.order}: there are only T = {self.T} steps to see")


@dataclass(frozen=True)
class MaskedPSN(Ordered):
    """Direct training of masked parallel spiking neurons. order: k, how many of the latest steps a step sees."""

    name: ClassVar[str] = "masked-psn"

    def neurons(self, start: float | Tensor) -> nn.Module:
        """`MaskedPSNNeuron`."""
        return MaskedPSNNeuron(self.T, self.order)

    def before_epoch(self, network: nn.Module, epoch: int, epochs: int, batch: Batch) -> None:
        """λ = epoch/(epochs − 1), and 1 where there is one epoch."""
        for module in network.modules():
            if isinstance(module, MaskedPSNNeuron):
                module.masking.fill_(epoch / (epochs - 1) if epochs > 1 else 1.0)


@dataclass(frozen=True)
class SlidingPSN(Ordered):
    """Direct training of sliding parallel spiking neurons. order: k, how many of the latest steps a step sees."""

    name: ClassVar[str] = "sliding-psn"

    def neurons(self, start: float | Tensor) -> nn.Module:
        """`SlidingPSNNeuron`."""
        return SlidingPSNNeuron(self.T, self.order)


def _fire(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[W X + β ≥ 0] for x (T·B, …), in its dtype."""
    over_time = over_steps(widened(x), len(weight))
    with torch.autocast(x.device.type, enabled=False):  # which would round the potentials
        h = bias + weight.to(over_time.dtype) @ over_time.flatten(1)
    return spike(h, Arctan(), at_threshold=True).view(x.shape).to(x.dtype)


def _start(T: int) -> nn.Parameter:
    weight = torch.empty(T, T)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return nn.Parameter(weight)


class PSNNeuron(nn.Module):
    """Parallel spiking neurons, from currents (T·B, …) to spikes of the same shape. weight: (T, T). bias: (T, 1).

    With weight Λ_PC (`neurons.pc_matrix`) and bias b_x − θ (`neurons.optimal_shift`) it is parspike's parallel neuron.
    """

    def __init__(self, T: int) -> None:
        super().__init__()
        self.weight, self.bias = _start(T), nn.Parameter(torch.full((T, 1), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        return _fire(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"T={len(self.weight)}"


class MaskedPSNNeuron(nn.Module):
    """PSN of which a step sees the latest `order` steps only, once the buffer `masking` (λ) is 1; at 0 it sees all."""

    masking: Tensor
    mask: Tensor

    def __init__(self, T: int, order: int) -> None:
        super().__init__()
        self.weight, self.bias = _start(T), nn.Parameter(torch.full((T, 1), -1.0))
        self.order = order
        self.register_buffer("masking", torch.tensor(0.0))
        self.register_buffer("mask", torch.ones(T, T).tril().triu(1 - order), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _fire(x, self.weight * (self.masking * self.mask + 1 - self.masking), self.bias)

    def extra_repr(self) -> str:
        return f"T={len(self.weight)}, order={self.order}, masking={self.masking.item():g}"


class SlidingPSNNeuron(nn.Module):
    """PSN with the same weights at each step. weight: (order,), the last one for the present step. bias: one number."""

    def __init__(self, T: int, order: int) -> None:
        super().__init__()
        self.T = T
        self.weight = nn.Parameter(2.0 ** torch.arange(1 - order, 1))
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def matrix(self) -> Tensor:
        """The weights as W (T, T) of a PSN."""
        t = torch.arange(self.T, device=self.weight.device)
        age = t[:, None] - t
        order = len(self.weight)
        return self.weight[(order - 1 - age).clamp(0, order - 1)] * ((age >= 0) & (age < order))

    def forward(self, x: Tensor) -> Tensor:
        return _fire(x, self.matrix(), self.bias)

    def extra_repr(self) -> str:
        return f"T={self.T}, order={len(self.weight)}"
