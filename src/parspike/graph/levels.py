"""Quantisers as authors write them: divide, floor or round, clamp, multiply, in any order.

Any function with evenly spaced jumps between evenly spaced values is scale · QCFS(x + shift) + lowest, with the L
levels and the threshold θ of equation (5): L jumps, θ/L apart. `levels_of` looks for the jumps instead of a form of
writing, then compares the function with that staircase on either side of every jump. A value that lies exactly on a
jump is the one case in which the two may differ: QCFS counts it as reached, `round` takes the even neighbour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from parspike.graph.course import Trail

__all__ = ["Levels", "levels_of"]

MOST = 1 << 16
"""Levels of the finest quantiser looked for."""
CLOSE = 1e-9
"""Of the whole range: how far apart two values are that count as one."""
LEAST = 1e-29
"""The smallest distance of jumps; the grid that they are looked for on begins with 1e-30."""
ALONG = (1e-7, 0.25, 0.5, 0.75, 1 - 1e-7)
"""Where between two jumps the function is compared."""


@dataclass(frozen=True)
class Levels:
    """f(x) = scale · QCFS(x + shift; v_threshold, levels) + lowest; all but `levels` are tensors (C,) of float64."""

    levels: int
    v_threshold: Tensor
    shift: Tensor
    scale: Tensor
    lowest: Tensor


def levels_of(function: Callable[[Tensor], Tensor], channels: int) -> Levels | None:
    """The quantiser that a function computes, None if it is none. Raises what the function raises.

    function: of x (C, N), row by row of every channel.
    """
    far = torch.logspace(-30, 30, 601, dtype=torch.float64)
    x = torch.cat([-far.flip(0), torch.zeros(1, dtype=torch.float64), far]).expand(channels, -1).contiguous()
    with torch.no_grad():
        return _levels(function, x)


def _levels(function: Callable[[Tensor], Tensor], x: Tensor) -> Levels | None:
    trail = Trail(x)
    with trail:
        y = function(x)
    if not isinstance(y, Tensor) or y.shape != x.shape or not y.is_floating_point():
        return None
    y, error = y.double(), 4 * trail.error(y).double()
    sure = y.isfinite() & (error <= CLOSE * y.abs())
    size = torch.where(sure, y.abs(), 0).amax(1, keepdim=True)
    # Beyond this, float64 rounds the function's value away: |x| − |x − α| is 0 for a large x.
    usable = y.isfinite() & (error <= CLOSE * size)
    if not bool(usable.any(1).all()):
        return None
    place = torch.arange(x.shape[1])
    right = torch.where(usable, place, -1).amax(1, keepdim=True)
    left = torch.where(usable, place, x.shape[1]).amin(1, keepdim=True)
    low, high = (y.gather(1, end) for end in (left, right))
    span = high - low
    if not bool((span > 0).all()):
        return None

    def jump(reached: Callable[[Tensor], Tensor]) -> Tensor:
        """Where a function begins to be reached, (C, 1): the first number there."""
        there = reached(y)
        at = (there & usable).int().argmax(1, keepdim=True)
        before = torch.where(usable & ~there & (place < at), place, left).amax(1, keepdim=True)
        below, above = x.gather(1, before), x.gather(1, at)
        for _ in range(80):
            half = (below + above) / 2
            there = reached(function(half).double())
            below, above = torch.where(there, below, half), torch.where(there, half, above)
        return above

    first = jump(lambda value: value > low + CLOSE * span)
    step = function(first).double() - low
    number = (span / step).round()
    levels = int(number[0])
    if not 1 <= levels <= MOST or not bool((number == levels).all()):
        return None
    last = jump(lambda value: value > high - step / 2)
    apart = (last - first) / (levels - 1) if levels > 1 else 2 * first
    if not bool((apart > LEAST).all()):
        return None  # from a single step at 0 no θ can be computed

    def wanted(place: Tensor) -> Tensor:
        """The staircase at a place in jumps: 0 is the first jump."""
        return low + span / levels * (place.floor() + 1).clamp(0, levels)

    def agrees(value: Tensor, staircase: Tensor, where: Tensor | bool = True) -> bool:
        return bool((((value.double() - staircase).abs() <= CLOSE * span) | ~torch.as_tensor(where)).all())

    places = torch.arange(-3, levels + 2, dtype=torch.float64)[:, None] + torch.tensor(ALONG, dtype=torch.float64)
    places = places.flatten()
    if not agrees(function(first + places * apart), wanted(places)):
        return None
    places = (x - first) / apart
    on_a_jump = (places - places.round()).abs() < 1e-7 + places.abs() * 1e-12
    # Currents of exactly 0 are common (no input, no bias). At a jump there, QCFS gives the upper level, so the function
    # must too.
    there = torch.where(x == 0, places + 1e-9, places)
    if not agrees(y, wanted(there), usable & (~on_a_jump | (x == 0))):
        return None
    scale, lowest = span / levels / apart, torch.where(low.abs() <= CLOSE * span, 0, low)
    plain = (scale - 1).abs() <= CLOSE
    apart, scale = torch.where(plain, span / levels, apart), torch.where(plain, 1, scale)
    shift = apart / 2 - first
    shift = torch.where(shift.abs() <= CLOSE * apart, 0, shift)
    return Levels(levels, *(t[:, 0] for t in (apart * levels, shift, scale, lowest)))
