"""What stands for the derivative of a spike: a function of d = u − θ, the distance of the potential from the threshold.

The step function H(d) has no useful derivative, so `spike` gives H(d) in the forward pass and multiplies gradients by
one of these functions in the backward pass (surrogate gradients).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parspike.train.fields import above

__all__ = ["Arctan", "Rectangle", "Surrogate", "Triangle", "spike"]

Surrogate = Callable[[Tensor], Tensor]
"""From d to the value that stands for ∂s/∂d."""


@dataclass(frozen=True)
class Rectangle:
    """1/(2a) for |d| < a, else 0: area 1. Wu et al. 2018 (STBP); a = `half_width`."""

    half_width: float = 0.5

    def __post_init__(self) -> None:
        above("half_width", self.half_width)

    def __call__(self, d: Tensor) -> Tensor:
        return (d.abs() < self.half_width).to(d.dtype) / (2 * self.half_width)


@dataclass(frozen=True)
class Triangle:
    """max(0, γ − |d|)/γ²: area 1. Deng et al. 2022 (TET), as in their code; γ = `width`."""

    width: float = 1.0

    def __post_init__(self) -> None:
        above("width", self.width)

    def __call__(self, d: Tensor) -> Tensor:
        return (self.width - d.abs()).clamp(min=0) / self.width**2


@dataclass(frozen=True)
class Arctan:
    """(α/2)/(1 + (π α d/2)²): area 1. The default of SpikingJelly, which Fang et al. 2023 (PSN) train with."""

    alpha: float = 2.0

    def __post_init__(self) -> None:
        above("alpha", self.alpha)

    def __call__(self, d: Tensor) -> Tensor:
        return (self.alpha / 2) / (1 + (math.pi / 2 * self.alpha * d) ** 2)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, d: Tensor, surrogate: Surrogate, at_threshold: bool) -> Tensor:
        ctx.save_for_backward(d)
        ctx.surrogate = surrogate
        return (d >= 0 if at_threshold else d > 0).to(d.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (d,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate(d), None, None


def spike(d: Tensor, surrogate: Surrogate, *, at_threshold: bool = False) -> Tensor:
    """H(d) as zeros and ones in d's dtype; gradients are multiplied by surrogate(d).

    at_threshold: whether d = 0 is a spike. Published codes differ in this, so each method says which it takes.

    >>> d = torch.tensor([-0.2, 0.0, 0.7], requires_grad=True)
    >>> s = spike(d, Rectangle())
    >>> s.sum().backward()
    >>> s.tolist(), d.grad.tolist()
    ([0.0, 0.0, 1.0], [1.0, 1.0, 0.0])
    """
    return _Spike.apply(d, surrogate, at_threshold)  # pyright: ignore[reportReturnType] (torch leaves it untyped)
