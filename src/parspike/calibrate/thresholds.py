"""Threshold, shift and amplitude of a layer, chosen for the error of what its counts say.

Per channel: θ on a grid below the channel's maximum, δ on a grid of fractions of a level, and the amplitude in
closed form, so that E[(a − v_post · k(z')/levels)²] is smallest, a the teacher's activation and z' the student's own
input current. The samples are an even subset of batch and space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parspike.calibrate.channels import by_channel, node_shape
from parspike.graph import Node
from parspike.neurons import ParallelNeuron, spike_count

__all__ = ["Choice", "Samples", "choose", "fit_neuron"]


class Samples:
    """An even subset of (a, z') of one layer, at most `limit` a channel: tensors (C, N)."""

    def __init__(self, node: Node, per_batch: int) -> None:
        self.node, self.per_batch = node, per_batch
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, a: Tensor, z: Tensor) -> None:
        """Add a batch."""
        a, z = by_channel(a, self.node), by_channel(z, self.node)
        n = a.shape[1]
        if n > self.per_batch:
            # A fixed stride would meet the same pixels in every map; a golden-ratio walk meets all alike.
            rows = (torch.arange(self.per_batch, dtype=torch.float64) * 0.6180339887498949 % 1.0 * n).long()
            a, z = a[:, rows], z[:, rows]
        self.parts.append((a.clone(), z.clone()))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All samples: a (C, N), z' (C, N)."""
        return torch.cat([a for a, _ in self.parts], 1), torch.cat([z for _, z in self.parts], 1)


COARSE = tuple(float(f) for f in torch.logspace(-1.3, 0.1, 15))
"""θ as fractions of the channel's largest activation."""
FINE = (0.86, 0.93, 1.0, 1.07, 1.15)
"""θ as multiples of the best coarse one."""
SHIFTS = (-0.3, -0.15, 0.0, 0.15, 0.3)
"""δ as fractions of one level."""


@dataclass
class Choice:
    """Threshold, shift, amplitude and squared error of every channel, (C,)."""

    theta: Tensor
    delta: Tensor
    post: Tensor
    error: Tensor

    def offer(self, other: Choice, *, together: bool) -> None:
        """Take what is better of another choice, channel by channel or, `together`, as a whole."""
        less = other.error.sum() < self.error.sum() if together else other.error < self.error
        for name, new in vars(other).items():
            setattr(self, name, torch.where(less, new, getattr(self, name)))

    def count(self, z: Tensor, levels: int) -> Tensor:
        """Counts for currents (C, N)."""
        return spike_count(z, self.theta[:, None], levels, self.delta[:, None])

    def value(self, count: Tensor, levels: int) -> Tensor:
        """Mean outputs for counts (C, N)."""
        return count * (self.post / levels)[:, None]


def choose(a: Tensor, z: Tensor, levels: int, *, shift: bool = True, layer: bool = False) -> Choice:
    """The θ, δ and v_post with the least mean of (a − v_post · k(z)/levels)²; a, z: (C, N)."""
    power = a.square().mean(1)
    top = a.amax(1)
    top = torch.where(top > 0, top, a.max() if bool(a.max() > 0) else torch.ones_like(top))
    start = top.max().expand_as(top) if layer else top
    best = Choice(start, torch.zeros_like(top), top.clone(), torch.full_like(top, float("inf")))

    def attempt(theta: Tensor, delta: Tensor) -> None:
        k = spike_count(z, theta[:, None], levels, delta[:, None])
        ak, kk = (a * k).mean(1), k.square_().mean(1)
        post = torch.where((kk > 0) & (ak > 0), ak / kk.clamp(min=1e-30) * levels, theta)
        step = post / levels
        best.offer(Choice(theta, delta, post, power - 2 * ak * step + kk * step.square()), together=layer)

    for fraction in COARSE:
        attempt(start * fraction, torch.zeros_like(top))
    coarse = best.theta
    for fraction in FINE:
        theta = coarse * fraction
        for s in SHIFTS if shift else (0.0,):
            attempt(theta, theta * (s / levels))
    return best


def fit_neuron(neuron: ParallelNeuron, samples: Samples, *, shift: bool = True, layer: bool = False) -> None:
    """Set θ, δ and v_post of a neuron layer from samples.

    shift: whether δ is searched. layer: one θ for all channels instead of one each.
    """
    a, z = (value - neuron.offset for value in samples.tensors())
    best = choose(a, z, neuron.levels, shift=shift, layer=layer)
    for parameter, value in (
        (neuron.v_threshold, best.theta), (neuron.shift, best.delta), (neuron.v_post, best.post)
    ):  # fmt: skip
        parameter.data = node_shape(value, samples.node).to(parameter.dtype).clone()
