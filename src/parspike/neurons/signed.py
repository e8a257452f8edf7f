"""Two spiking neurons for one value that has both signs: one fires above a middle value, the other below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import fused
from .layer import Even, Neuron, even_values
from .packed import PackedTrains
from .quantised import Line, counts, line_at, line_of

__all__ = ["Pair", "SignedNeuron"]


class Pair(Neuron):
    """Base of pairs of neurons: a count −levels … levels, which the upper neuron sends where it is above 0 and the
    lower one, as |count| spikes, where it is below. Spikes are +1 and −1 (int8): the line they arrive on."""

    lines = 2

    @property
    def lowest(self) -> int:
        return -self.levels

    def spikes(self, count: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Spikes of steps start … stop − 1: int8 (stop − start, B, …), −1 those of the lower neuron."""
        return super().spikes(count.abs(), start, stop).to(torch.int8) * count.sign().to(torch.int8)

    def sent(self, count: Tensor) -> Tensor:
        return super().sent(count.abs())

    def pack(self, count: Tensor) -> PackedTrains:
        return PackedTrains(super().pack(count.abs()).words, self.T, count < 0)

    def counted(self, trains: PackedTrains) -> Tensor:
        count = super().counted(trains)
        return count if trains.negative is None else torch.where(trains.negative, -count, count)

    def levels_in(self, T: int) -> int:
        return 2 * self.levels

    def bits_in(self, steps: int) -> float:
        return self.lines * self.T


class SignedNeuron(Even, Pair):
    """A pair of parallel spiking neurons for every value, at most one of which fires.

    v_threshold: θ, the distance from the middle that makes a full count. offset: the middle, a tensor. The rest as in
    `Even`. A count is positive where the upper neuron fires, negative where the lower one does: −levels … levels,
    k = clip(⌊(z − offset + δ) · levels/θ + 1/2⌋, −levels, levels), and stands for offset + k · v_post/levels. So T
    steps tell 2 · levels + 1 values apart, where one neuron with an offset tells levels + 1, and a value in the middle
    costs no spike, where that neuron sends half of its count.
    """

    kind = "signed"

    offset: Tensor

    def count(self, z: Tensor) -> Tensor:
        theta, shift = self.v_threshold.detach(), self._shift().detach()
        return counts(z.detach(), theta, self.levels, shift, lowest=self.lowest)

    def value(self, count: Tensor) -> Tensor:
        return count * (self.v_post / self.levels) + self.offset

    def _forward(self, z: Tensor, over: bool = False, line: Line | None = None) -> Tensor:
        if made := self._at_once(z, trains=False):
            return made[0]
        if z.dtype != self.v_threshold.dtype:
            return self.value(self.count(z))
        line = line or line_at(self.levels, *self.line())
        return even_values(z, line, self.offset, self.levels, lowest=self.lowest, over=over)

    def soft(self, z: Tensor) -> Tensor:
        """`value(count(z))`, with the gradient of a clipped line for z."""
        low, high = (self.offset - self.shift + side * self.v_threshold for side in (-1, 1))
        through = torch.where((z >= low) & (z < high), z, z.detach())
        return self.value(self.count(z)) + through - through.detach()

    def _kernel(self, z: Tensor, trains: bool) -> tuple[Tensor, PackedTrains | None] | None:
        line = *line_of(self.v_threshold, self.levels, self._shift()), self.v_post.detach() / self.levels
        return fused.even(
            z, *line, self.offset, levels=self.levels, T=self.T, code=self.code, lowest=self.lowest, trains=trains
        )

    def extra_repr(self) -> str:
        return f"θ {float(self.v_threshold.min()):.4g} … {float(self.v_threshold.max()):.4g}, to both sides"

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "T": self.T, "code": self.code}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SignedNeuron:
        return cls._restored(config, tensors, tensors["offset"])
