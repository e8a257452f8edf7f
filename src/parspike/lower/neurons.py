"""Neurons on whole numbers: those of a converted network with whole thresholds.

`on_whole` divides thresholds by the grid of what the neurons read, and rounds them. `curve` makes neurons behind a
function that stays computed: those that read GELU count neuron.count(GELU(grid · z)), which of a whole number z is a
function with steps that falls until GELU turns and rises behind. Where each step lies is found by bisection over the
whole numbers, on the function and the neuron themselves, so the counts are theirs, to the bit; no table of GELU is
rounded. `aligned` makes the middle of a pair of neurons a whole number of spikes where zeros are put in beside it.

What could prove this wrong: a z whose count differs from the neuron's, which `curve` looks for, at every threshold and
beside it and at random places (tests/test_lower_products.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from parspike.lower.unit import unit
from parspike.neurons import (
    Even,
    IntegrateFire,
    ParallelNeuron,
    SignedNeuron,
    SpikingLayer,
    Staircase,
    WholeCurve,
    WholeNeuron,
    WholePair,
    WholeStaircase,
)
from parspike.snn import SNN

__all__ = ["EVEN", "Refused", "aligned", "curve", "on_whole", "quanta"]

EVEN = (Even, IntegrateFire)
"""Neurons whose thresholds are evenly spaced."""
TRIED = 256
"""Random places that are compared."""


class Refused(Exception):  # noqa: N818 (control flow, never seen outside)
    """Why whole numbers cannot carry a node."""


def aligned(snn: SNN) -> SNN:
    """`unit(snn)`, with the middle of a pair of neurons moved to a multiple of what one spike is worth where a synapse
    behind it cannot take the middle into its bias: a convolution that puts in zeros beside the values. What it reads
    are then whole numbers of spikes, 0 among them. Its thresholds move along, by half a spike at most."""
    made = unit(snn)
    stay = {node.refs[0] for node in made.graph.nodes if node.name not in snn.graph.by_name and node.refs}
    neurons = {name: n for name, n in snn.neurons().items() if isinstance(n, SignedNeuron) and name in stay}
    if not any(bool(neuron.offset.any()) for neuron in neurons.values()):
        return made
    moved = copy.deepcopy(snn)
    for name in neurons:
        neuron = cast(SignedNeuron, moved.neurons()[name])
        theta, full = neuron.v_threshold.detach().double(), neuron.v_post.detach().double()
        full = torch.where(full == 0, theta, full)
        middle = (neuron.offset.double() * neuron.levels / full).round() * full / neuron.levels
        # Levels lie so much higher. Input that much higher reaches them, where θ of input makes a full count.
        shift = neuron.shift.detach().double() + (middle - neuron.offset.double()) * (1 - theta / full)
        neuron.shift.data, neuron.offset = shift.to(neuron.shift), middle.to(neuron.offset)
    return unit(moved)


def quanta(neuron: Even | IntegrateFire) -> int:
    """Parts of a threshold that counts are multiples of."""
    return 1 if isinstance(neuron, IntegrateFire) else neuron.levels


def on_whole(neuron: SpikingLayer, grid: Tensor, most: float, T: int) -> tuple[SpikingLayer, float, float, float]:
    """Neurons on whole numbers; the grid and the largest of what they send; the largest number inside them."""
    if isinstance(neuron, Even):
        quantum = neuron.v_threshold.double() / neuron.levels
        step = (quantum / grid).round().clamp(min=1)
        # A hair less than the exact quotient: a threshold on a whole number is reached by it.
        first = ((quantum / 2 - neuron.shift.double()) / grid - 1e-9).ceil()
        kind = WholeNeuron if isinstance(neuron, ParallelNeuron) else WholePair
        made = kind(neuron.T, first, step, code=neuron.code)
        return made, 1 / neuron.levels, neuron.levels, most + float(first.abs().max() + step.max())
    if isinstance(neuron, IntegrateFire):
        if neuron.decay != 1:
            raise Refused("a leak makes fractions of whole potentials")
        theta = (neuron.v_threshold.double() / grid).round().clamp(min=1)
        options = {name: getattr(neuron, name) for name in ("reset", "refractory", "signed")}
        made = IntegrateFire(theta, **options)
        made.v_init = nn.Parameter((neuron.v_init.double() / grid).round(), requires_grad=False)
        made.v_post = nn.Parameter(torch.ones_like(theta), requires_grad=False)
        # Rounded so that their sum up to each step is right within half a unit.
        bias = (neuron.bias.double() / grid).expand(T, *torch.broadcast_shapes(neuron.bias.shape[1:], grid.shape))
        whole = bias.cumsum(0).round().diff(dim=0, prepend=torch.zeros_like(bias[:1]))
        even = bool((whole == whole[:1]).all())
        made.bias = nn.Parameter(whole[:1].clone() if even else whole, requires_grad=False)
        inside = T * (most + float(whole.abs().max())) + float(theta.max() + made.v_init.abs().max())
        return made, 1.0, 1.0, inside
    if isinstance(neuron, Staircase):
        own = neuron.thresholds.double()  # (S,), or (S, …) where neurons differ; grid: (…) of one sample
        own = own.reshape(len(own), *[1] * (grid.dim() - own.dim() + 1), *own.shape[1:])
        thresholds = (own / grid - 1e-9).ceil().clamp(-most, most + 1)  # beyond it no sum reaches
        made = WholeStaircase(neuron.T, thresholds, code=neuron.code)
        return made, 1 / neuron.levels, neuron.levels, most + float(thresholds.abs().max())
    raise Refused(f"neurons of the kind '{neuron.kind}' have no form in whole numbers")


def curve(
    count: Callable[[Tensor], Tensor], shape: torch.Size, most: int, turn: Tensor | None,
    neuron: Even,
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
    for z in (places.round(), down, down - 1, up, up - 1, end[None], -end[None]):
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
