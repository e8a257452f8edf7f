"""Neurons that count whole numbers, for networks in integer arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .layer import Code, Neuron
from .signed import Pair

__all__ = ["WholeNeuron", "WholePair"]


class WholeNeuron(Neuron):
    """Parallel neurons whose input and output are whole numbers: k = clip(⌊(z − first) / step⌋ + 1, 0, L).

    z: the sum of the weights of all spikes that came in, a whole number. first: the smallest z with a spike. step: how
    much more each further spike needs, above 0. Both hold whole numbers in a floating dtype, and are scalars or
    broadcast against one sample, such as (C, 1, 1). The output is k itself, so nothing is rounded: as long as
    |z| + step is below 2^24 (float32; 2^53 in float64) every processor counts the same.
    """

    kind = "whole"

    def __init__(self, T: int, first: Tensor, step: Tensor, *, code: Code = "sorted") -> None:
        super().__init__(T, code)
        for name, value in (("first", first), ("step", step)):
            if not value.is_floating_point() or not torch.equal(value, value.round()):
                raise ValueError(f"{name} must hold whole numbers in a floating dtype")
        if first.dtype != step.dtype:
            raise ValueError("first and step have unlike dtypes")
        if not bool((step > 0).all()):
            raise ValueError("step must be above 0")
        self.first = nn.Parameter(first.detach().clone(), requires_grad=False)
        self.step = nn.Parameter(step.detach().clone(), requires_grad=False)

    def count(self, z: Tensor) -> Tensor:
        return ((z - self.first) / self.step).floor_().add_(1).clamp_(self.lowest, self.levels)

    def value(self, count: Tensor) -> Tensor:
        return count

    def amplitudes(self) -> Tensor:
        # The mean over T steps of what k spikes carry is k.
        steps = torch.arange(self.T, dtype=self.first.dtype, device=self.first.device)
        if self.code == "sorted":
            scale = torch.full_like(steps, self.T)
        elif self.code == "onset":
            scale = (self.T - steps) * self.T
        else:
            scale = 2.0 ** (self.T - 1 - steps) * self.T
        return scale.reshape(-1, *[1] * self.first.dim())

    def rest(self) -> float:
        return 0.0

    def extra_repr(self) -> str:
        ends = [int(end) for value in (self.first, self.step) for end in (value.min(), value.max())]
        return "first spike from {} … {} on, step {} … {}".format(*ends)

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "T": self.T, "code": self.code}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> WholeNeuron:
        return cls(config["T"], tensors["first"], tensors["step"], code=config["code"])


class WholePair(Pair, WholeNeuron):
    """Pairs of neurons for a value of both signs, in whole numbers: k = clip(⌊(z − first) / step⌋ + 1, −L, L).

    The upper neuron sends k spikes where k is above 0, the lower one −k where it is below. first: the smallest z with a
    spike of the upper neuron. Below first − step the lower one fires.
    """

    kind = "whole-pair"
