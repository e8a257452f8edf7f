"""Neurons that count whole numbers, for networks in integer arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .layer import Code, Neuron
from .signed import Pair

__all__ = ["Whole", "WholeCurve", "WholeNeuron", "WholePair", "WholeStaircase"]


class Whole(Neuron):
    """Base of parallel neurons whose input and output are whole numbers: the output is the count itself."""

    def value(self, count: Tensor) -> Tensor:
        return count

    def amplitudes(self) -> Tensor:
        # The mean over T steps of what k spikes carry is k.
        like = next(self.parameters())
        steps = torch.arange(self.T, dtype=like.dtype, device=like.device)
        if self.code == "sorted":
            scale = torch.full_like(steps, self.T)
        elif self.code == "onset":
            scale = (self.T - steps) * self.T
        else:
            scale = 2.0 ** (self.T - 1 - steps) * self.T
        return scale.reshape(-1, *[1] * (like.dim() - len(self.leading)))

    def rest(self) -> float:
        return 0.0

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "T": self.T, "code": self.code}

    def _hold(self, **tensors: Tensor) -> None:
        for name, value in tensors.items():
            whole = value.is_floating_point() and bool((value.isfinite() & (value == value.round())).all())
            if not whole:
                raise ValueError(f"{name} must hold whole numbers in a floating dtype")
            if name in self.leading and (value.dim() < 1 or value.numel() == 0):
                raise ValueError(f"{name} must hold a threshold at least")
            setattr(self, name, nn.Parameter(value.detach().clone(), requires_grad=False))


class WholeNeuron(Whole):
    """Parallel neurons whose input and output are whole numbers: k = clip(⌊(z − first) / step⌋ + 1, 0, L).

    z: the sum of the weights of all spikes that came in, a whole number. first: the smallest z with a spike. step: how
    much more each further spike needs, above 0. Both hold whole numbers in a floating dtype, and are scalars or
    broadcast against one sample, such as (C, 1, 1). The output is k itself, so nothing is rounded: as long as
    |z| + step is below 2^24 (float32; 2^53 in float64) every processor counts the same.
    """

    kind = "whole"

    def __init__(self, T: int, first: Tensor, step: Tensor, *, code: Code = "sorted") -> None:
        super().__init__(T, code)
        self._hold(first=first, step=step)
        if first.dtype != step.dtype:
            raise ValueError("first and step have unlike dtypes")
        if not bool((step > 0).all()):
            raise ValueError("step must be above 0")

    first: Tensor
    step: Tensor

    def count(self, z: Tensor) -> Tensor:
        return ((z - self.first) / self.step).floor_().add_(1).clamp_(self.lowest, self.levels)

    def extra_repr(self) -> str:
        ends = [int(end) for value in (self.first, self.step) for end in (value.min(), value.max())]
        return "first spike from {} … {} on, step {} … {}".format(*ends)

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> WholeNeuron:
        return cls(config["T"], tensors["first"], tensors["step"], code=config["code"])


class WholePair(Pair, WholeNeuron):
    """Pairs of neurons for a value of both signs, in whole numbers: k = clip(⌊(z − first) / step⌋ + 1, −L, L).

    The upper neuron sends k spikes where k is above 0, the lower one −k where it is below. first: the smallest z with a
    spike of the upper neuron. Below first − step the lower one fires.
    """

    kind = "whole-pair"


class WholeStaircase(Whole):
    """Neurons with a threshold for every count, in whole numbers: k is the number of thresholds that are at most z.

    thresholds: whole numbers in a floating dtype that do not fall, (S,) for all neurons of a layer, S = `levels`, or
    (S, …) whose other dimensions broadcast against one sample, such as (S, C, 1, 1). Nothing is rounded.
    """

    kind = "whole-staircase"
    leading = ("thresholds",)
    thresholds: Tensor

    def __init__(self, T: int, thresholds: Tensor, *, code: Code = "sorted") -> None:
        super().__init__(T, code)
        self._hold(thresholds=thresholds)
        if len(thresholds) != self.levels:
            raise ValueError(f"{self.levels} levels need as many thresholds, got {tuple(thresholds.shape)}")
        if bool((thresholds.diff(dim=0) < 0).any()):
            raise ValueError("thresholds must not fall")

    def count(self, z: Tensor) -> Tensor:
        return _reached(self.thresholds, z)

    def extra_repr(self) -> str:
        return f"{len(self.thresholds)} thresholds {int(self.thresholds.min())} … {int(self.thresholds.max())}"

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> WholeStaircase:
        return cls(config["T"], tensors["thresholds"], code=config["code"])


class WholeCurve(Pair, Whole):
    """Pairs of neurons for a function that falls and then rises, such as GELU, in whole numbers: a count falls by one
    at each threshold of `falling` that z reaches and rises by one at each of `rising`,
    k = start − (thresholds of `falling` that are at most z) + (thresholds of `rising` that are).

    falling (F, …), rising (R, …) and start (…): whole numbers in a floating dtype, whose other dimensions broadcast
    against one sample; thresholds do not fall along the first, and those of `falling` that are reached come before
    those of `rising`. Counts are −levels … levels. Nothing is rounded.
    """

    kind = "whole-curve"
    leading = ("falling", "rising")
    falling: Tensor
    rising: Tensor
    start: Tensor

    def __init__(self, T: int, start: Tensor, falling: Tensor, rising: Tensor, *, code: Code = "sorted") -> None:
        super().__init__(T, code)
        self._hold(start=start, falling=falling, rising=rising)
        if len({t.dtype for t in (start, falling, rising)}) > 1:
            raise ValueError("start, falling and rising have unlike dtypes")
        if not falling.shape[1:] == rising.shape[1:] == start.shape:
            raise ValueError("start, falling and rising are of unlike shapes")
        if any(bool((t.diff(dim=0) < 0).any()) for t in (falling, rising)):
            raise ValueError("thresholds must not fall")

    def count(self, z: Tensor) -> Tensor:
        count = self.start - _reached(self.falling, z) + _reached(self.rising, z)
        return count.clamp_(self.lowest, self.levels)

    def extra_repr(self) -> str:
        return f"{len(self.falling)} thresholds down, {len(self.rising)} up"

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> WholeCurve:
        return cls(config["T"], *(tensors[name] for name in ("start", "falling", "rising")), code=config["code"])


def _reached(thresholds: Tensor, z: Tensor) -> Tensor:
    """How many of the thresholds (S, …) are at most z, in its dtype; NaN of NaN."""
    tau = thresholds.detach().to(z.dtype)
    shape = [1] * (z.dim() - tau.dim() + 1) + list(tau.shape[1:])
    apart = [d for d, size in enumerate(shape) if size > 1]
    # The dimensions in which neurons differ in front, as one.
    rows = z.movedim(apart, list(range(len(apart))))
    flat = rows.reshape(math.prod(tau.shape[1:]), -1).contiguous()
    found = torch.searchsorted(tau.reshape(len(tau), -1).T.contiguous(), flat, right=True)
    return torch.where(rows.isnan(), rows, found.view(rows.shape)).movedim(list(range(len(apart))), apart)
