"""Neurons behind a function, on whole numbers: the function's steps as whole thresholds.

Neurons that read GELU count neuron.count(GELU(grid · z)). Of a whole number z that is a function with steps, which
falls until GELU turns and rises behind. Where each step lies is found by bisection over the whole numbers, on the
function and the neuron themselves, so the counts are theirs, to the bit; no table of GELU is rounded.

What could prove this wrong: a z whose count differs from the neuron's, which `curve` looks for, at every threshold and
beside it and at random places (tests/test_lower.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from parspike.neurons import ParallelNeuron, SignedNeuron, WholeCurve, WholeStaircase

__all__ = ["curve"]

TRIED = 256
"""Random places that are compared."""


def curve(
    count: Callable[[Tensor], Tensor], shape: torch.Size, most: int, turn: Tensor | None,
    neuron: ParallelNeuron | SignedNeuron,
) -> WholeCurve | WholeStaircase | None:  # fmt: skip
    """Neurons with the counts of others behind a function.

    count: these counts, of whole numbers (N, …) in float64 with magnitudes up to `most`, which broadcast against one
    sample; shape: the shape of one set of them. turn: the whole number (…) up to which the function falls; None: it
    rises. neuron: whose T and code the new ones have. None where the counts do not fall up to there and then rise.
    """
    end = torch.full(shape, float(most), dtype=torch.float64)
    lowest = -end
    if turn is not None:  # of the two whole numbers about it that with the smaller count
        below = turn.expand(shape).clamp(-most, most - 1)
        lowest = torch.where(count(below[None])[0] <= count(below[None] + 1)[0], below, below + 1)
    start, base, top = (count(place[None])[0] for place in (-end, lowest, end))
    if bool((start < base).any()) or bool((top < base).any()):
        return None
    down = _steps(lambda z, n: count(z) <= start - n, -end, lowest, start - base, most)
    up = _steps(lambda z, n: count(z) >= base + n, lowest, end, top - base, most)
    generator = torch.Generator().manual_seed(0)
    places = (torch.rand(TRIED, *shape, generator=generator, dtype=torch.float64) * 2 - 1) * end
    made: WholeCurve | WholeStaircase = WholeCurve(neuron.T, start, down, up, code=neuron.code)
    if isinstance(neuron, ParallelNeuron) and not bool(start.any()) and not bool(base.any()):
        rest = end.expand(neuron.levels - len(up), *shape) + 1
        made = WholeStaircase(neuron.T, torch.cat([up, rest]), code=neuron.code)
    for z in (places.round(), down, down - 1, up, up - 1):
        z = z.clamp(-most, most)
        if not torch.equal(made.count(z), count(z)):
            return None
    return made


def _steps(reached: Callable[[Tensor, Tensor], Tensor], low: Tensor, high: Tensor, number: Tensor, most: int) -> Tensor:
    """(S, …): for n = 1 … S the smallest whole number above `low`, at most `high`, that reaches n steps of `number`;
    the next one after `most` where there are fewer steps. One row at least."""
    rows = max(1, int(number.max()))
    n = torch.arange(1.0, rows + 1, dtype=torch.float64).reshape(-1, *[1] * low.dim())
    low, high = low.expand(rows, *low.shape), high.expand(rows, *high.shape)
    while bool((high - low > 1).any()):
        middle = ((low + high) / 2).floor()
        there = reached(middle, n)
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
    return torch.where(n <= number, high, float(most + 1))
