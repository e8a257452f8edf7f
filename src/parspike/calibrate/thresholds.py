"""Threshold, shift and amplitude of a layer, chosen for the least error of the outputs that its counts stand for.

Per channel: θ on a grid below the channel's maximum, δ on a grid of fractions of a level, and the amplitude in
closed form, so that an error of e = a − v_post · k(z')/levels is smallest, a the teacher's activation and z' the
student's own input current. The samples are an even subset of batch and space.

weigh="own" takes E[e²]. weigh="next" takes E[(e − E[e])²]: the synapses W behind turn e into W (e − E[e]) + W E[e],
whose second part is the same for every input, so that a re-fitted bias or a shift δ behind takes it up. For example,
clipping lowers the mean output. A later bias can restore the mean, so under "next" only the variance of what is clipped
counts. Rounding has a mean near 0 and counts the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.channels import above_zero, by_channel, check_finite, in_order, node_shape, spread, unit_of
from parspike.errors import CalibrationError, OptionError
from parspike.graph import Node
from parspike.graph.ops import ENCODE, call
from parspike.neurons import Even, ParallelNeuron, SignedNeuron
from parspike.neurons.pieces import PIECE, runs_here

__all__ = ["Choice", "Offer", "Samples", "Wanted", "Weigh", "check_weigh", "choose", "fit_encoder", "fit_neuron"]

Weigh = Literal["own", "next"]


def check_weigh(weigh: object) -> None:
    """Raise `OptionError` unless this is a weighing."""
    if weigh not in get_args(Weigh):
        raise OptionError(f"weigh must be 'own' or 'next', got {weigh!r}")


class Samples:
    """An even subset of (a, z') of one layer, of every batch as many a channel: a (C, N), z' (T, C, N).

    z': the student's input current at each step, T = 1 where only its mean matters, or it does not change. rows: in
    all batches, about.
    """

    def __init__(self, node: Node, batches: Batches, rows: int = 4096) -> None:
        self.node, self.batches = node, batches
        self.rows = rows
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, a: Tensor, z: Tensor) -> None:
        """Add a batch: a (B, …), z' (T, B, …). Raises `CalibrationError` where a holds NaN or Inf, or z' of
        one step NaN (neurons with a state send nothing from then on)."""
        check_finite(self.node, a)
        if len(z) == 1 and bool(z.isnan().any()):
            raise CalibrationError(
                f"layer '{self.node.layer}' is given NaN once the layers before it spike, on inputs so small that none "
                "of them sends a spike: 0 is divided by 0, or such. Add a small number to the divisor in the network "
                "(x / (s + 1e-6)), take more steps, or calibrate without such inputs"
            )
        per_batch = max(64, self.rows // max(1, self.batches.length))
        rows = spread(a.numel() // self.node.channels, per_batch, a.device)
        of_teacher, *steps = (by_channel(value, self.node, rows) for value in (a, *z))
        self.parts.append((of_teacher, torch.stack(steps)))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All samples, of all processes: a (C, N), z' (T, C, N)."""
        a, z = zip(*self.batches.gather(self.parts), strict=True)
        return torch.cat(a, 1), torch.cat(z, 2)

    def means(self) -> tuple[Tensor, Tensor]:
        """The same with the mean current: a (C, N), z' (C, N)."""
        a, z = self.tensors()
        return a, z[0] if len(z) == 1 else z.mean(0)


COARSE = tuple(float(f) for f in torch.logspace(-1.3, 0.1, 15))
"""θ as fractions of the channel's largest activation."""
FINE = (0.86, 0.93, 1.0, 1.07, 1.15)
"""θ as multiples of the best coarse one."""
SHIFTS = (-0.3, -0.15, 0.0, 0.15, 0.3)
"""δ as fractions of one level."""
EXACT = 1e-9
"""Squared errors, in shares of the activations' mean square, that are none."""
WIDE = (1.6, 2.0, 2.5)
"""Fractions that are tried too where there are more than NARROW levels: there the last one may lie above all that was
seen at little cost."""
NARROW = 16
MOST = 1024
"""Levels that are told apart when a threshold is chosen: with more, a count is all but a real number."""


@dataclass
class Offer:
    """Amplitude and squared error of every channel, (C,), with what else a kind of neurons has."""

    post: Tensor
    error: Tensor

    def offer(self, other: Self, *, together: bool) -> None:
        """Take what is better of another choice, channel by channel or, `together`, as a whole."""
        less = other.error.sum() < self.error.sum() if together else other.error < self.error
        for name, new in vars(other).items():
            setattr(self, name, torch.where(less, new, getattr(self, name)))


@dataclass
class Choice(Offer):
    """A choice for parallel neurons: threshold and shift too, (C,)."""

    theta: Tensor
    delta: Tensor


class Above:
    """What a channel loses to values above the largest of its samples, which inputs that were not sampled may have.

    For example, 400 images give a largest value of 6; among 100,000 others some give 8, and all above the threshold
    is clipped. One more value is the largest of n + 1 with probability 1/(n + 1), whatever their distribution. Its
    excess E is taken to be exponential, as the tails of most distributions nearly are (Pickands 1975). Its rate is
    known from the m = √n largest samples only, by what they exceed the next one, in sum S: so a value has an excess
    above t with probability (1 + t/S)^−m (the exponential averaged over the rates that those samples leave possible).
    The mean square of what is clipped above an end e = largest + t is then
    2 S²/((m − 1)(m − 2)) · (1 + t/S)^(2 − m) / (n + 1); for an end below the largest it is
    E[(largest + E − e)²] / (n + 1).

    Without it a threshold never lies above the largest sample, and the error on other inputs stops falling where what
    is clipped is more than what is rounded: at some 8 steps of the weighted code.

    a: the samples (C, n), or the largest of them, at least 64. number: n.
    """

    def __init__(self, a: Tensor, number: int) -> None:
        top = a.topk(min(a.shape[1], max(FEWEST, round(number**0.5)) + 1), 1).values.double()
        self.largest, self.share, self.m = top[:, :1], 1 / (number + 1), max(FEWEST, top.shape[1] - 1)
        self.sum = (top - top[:, -1:]).sum(1, keepdim=True).clamp(min=1e-30)

    def loss(self, end: Tensor) -> Tensor:
        """The mean square of what is clipped above the ends (C, tried)."""
        mean = self.sum / (self.m - 1)
        square, beyond = 2 * mean * self.sum / (self.m - 2), end - self.largest
        seen = beyond.clamp(max=0)
        return self.share * (square * (1 + beyond.clamp(min=0) / self.sum) ** (2 - self.m) + seen * (seen - 2 * mean))


FEWEST = 8
"""Samples that the excess of a channel is estimated from, at least."""


class Wanted:
    """What the counts 0 … levels of a layer shall say: the teacher's activations a (C, N), weighed as `weigh` says."""

    def __init__(self, a: Tensor, levels: int, weigh: Weigh) -> None:
        self.a = a - a.mean(1, keepdim=True) if weigh == "next" else a
        self.power, self.levels, self.weigh = self.a.square().mean(1), levels, weigh

    def fit(self, k: Tensor, otherwise: Tensor) -> tuple[Tensor, Tensor]:
        """The amplitude of least squared error for counts k (C, N), which are overwritten, and that error, (C,) each.

        otherwise: the amplitude of channels that send nothing, or nothing of use.
        """
        if self.weigh == "next":
            k -= k.mean(1, keepdim=True)
        ak, kk = (self.a * k).mean(1), k.square_().mean(1)
        return self.solved(ak, kk, self.power, otherwise)

    def solved(self, ak: Tensor, kk: Tensor, power: Tensor, otherwise: Tensor) -> tuple[Tensor, Tensor]:
        """The same from the means of a·k, k² and a²."""
        post = torch.where((kk > 0) & (ak > 0), ak / kk.clamp(min=1e-30) * self.levels, otherwise)
        step = post / self.levels
        return post, power - 2 * ak * step + kk * step.square()


def choose(
    a: Tensor, z: Tensor, levels: int, *, shift: bool = True, layer: bool = False, weigh: Weigh = "own",
    most: float | Tensor = math.inf,
) -> Choice:  # fmt: skip
    """The θ, δ and v_post of least error, as the module says; a, z: (C, N). layer: one θ for all channels. most: the
    largest that an activation can be (6 of ReLU6), above which no θ lies, of all channels or of each, (C, 1)."""
    largest = above_zero(a.amax(1), levels)
    # Measured in a unit of its own, since squares of 1e-20 are 0 in float32, and squares of 1e20 infinite. Errors
    # of channels that share a threshold are added, so they share the unit.
    unit = unit_of(largest.max().expand_as(largest) if layer else largest)
    most = torch.maximum(torch.as_tensor(most).to(a), largest[:, None])  # above 0, of channels that never leave it too
    counts = _Counts(a / unit[:, None], z / unit[:, None], levels, weigh, most / unit[:, None])
    best = _chosen(counts, largest / unit, shift=shift, layer=layer)
    return Choice(best.post * unit, best.error * unit * unit, best.theta * unit, best.delta * unit)


def _chosen(counts: _Counts, top: Tensor, *, shift: bool, layer: bool) -> Choice:
    start = top.max().expand_as(top) if layer else top
    best = Choice(top.clone(), torch.full_like(top, float("inf")), start, torch.zeros_like(top))
    counts.attempt(best, start, COARSE + (WIDE if counts.levels > NARROW else ()), (0.0,), layer=layer)
    counts.attempt(best, best.theta, FINE, SHIFTS if shift else (0.0,), layer=layer)
    return best


class _Counts:
    """What counts of currents z (C, N) say of activations a (C, N), for any θ and δ.

    The currents are sorted once. A count is at least l where the current is above a threshold, so sums over the counts
    are sums over levels of what lies behind a place in the order, and a choice costs its levels, not the N values.
    """

    def __init__(self, a: Tensor, z: Tensor, levels: int, weigh: Weigh, most: Tensor) -> None:
        self.wanted, self.weigh, self.most = Wanted(a, levels, weigh), weigh, most
        self.z, order = in_order(z)
        self.above = Above(a, a.shape[1])
        self.before = F.pad(self.wanted.a.gather(1, order).cumsum(1, dtype=torch.float64), (1, 0))
        self.levels, self.seen = levels, min(levels, MOST)

    def attempt(
        self, best: Choice, theta: Tensor, shares: Sequence[float], shifts: Sequence[float], *, layer: bool
    ) -> None:
        """Offer θ·share with every shift, which is a fraction of one level."""
        number, seen = self.z.shape[1], self.seen
        tried, moved = torch.tensor([(x, s) for x in shares for s in shifts], device=theta.device, dtype=theta.dtype).T
        thetas = torch.minimum(theta[:, None] * tried, self.most)
        deltas = thetas * (moved / self.levels)
        half = torch.arange(seen, device=theta.device, dtype=theta.dtype) + 0.5
        cuts = thetas[:, :, None] * (half / seen) - deltas[:, :, None]
        places = torch.searchsorted(self.z, cuts.flatten(1))
        above = (number - places).view(*cuts.shape).double()
        behind = self.before[:, -1:] - self.before.gather(1, places)
        ak = behind.view(*cuts.shape).sum(2) / number
        k, kk = above.sum(2) / number, (above * (2 * half.double())).sum(2) / number
        if self.weigh == "next":
            kk = kk - k.square()
        scale = self.levels / seen
        power = self.wanted.power.double()[:, None]
        post, error = self.wanted.solved(ak * scale, kk * scale**2, power, thetas.double())
        lost = torch.where(post < self.most, self.above.loss(post), 0.0)  # nothing lies above what an activation can be
        error = error.nan_to_num(torch.inf) + lost
        # Of choices without an error worth the name, such as all those for a channel that is constant, the largest θ:
        # the amplitude makes good for any, but IF neurons with these thresholds have none of their own.
        total, size, squares = (v.sum(0, keepdim=True) if layer else v for v in (error, thetas, power))
        alike = total <= total.amin(1, keepdim=True) + EXACT * squares
        which = torch.where(alike, size, -torch.inf).argmax(1).expand(len(error))
        found = (v.gather(1, which[:, None])[:, 0].to(theta.dtype) for v in (post, error, thetas, deltas))
        best.offer(Choice(*found), together=layer)


def fit_neuron(neuron: ParallelNeuron, samples: Samples, *, end: float = math.inf, **options: Any) -> None:
    """Set θ, δ and v_post of a neuron layer from samples. end: the largest that an activation can be. options: those of
    `choose`."""
    rest = neuron.rest()
    if isinstance(rest, Tensor):
        rest = rest.reshape(-1, 1)
    a, z = (value - rest for value in samples.means())
    # Neurons count from the smallest output of their channel on, which may lie above the lower end of a clamp.
    best = choose(a, z, neuron.levels, most=end - rest, **options)
    for parameter, value in (
        (neuron.v_threshold, best.theta), (neuron.shift, best.delta), (neuron.v_post, best.post)
    ):  # fmt: skip
        parameter.data = node_shape(value, samples.node).clone()


SKIPPED = (0.0, 0.0001, 0.0003, 0.001, 0.004, 0.015, 0.05)
"""Shares of the values beyond either end of an encoder's range, to start from."""
SCALED = (0.6, 0.75, 0.87, 1.15, 1.4, 2.0)
"""Widths that are tried too, as multiples of that of the best of these ranges."""
MOVED = 4
"""Times that the best of all is moved."""
FEWER, TAIL = 2048, 64
"""Samples of a channel that its range is looked for with: of many, the TAIL smallest and largest, each for itself, and
FEWER that stand for all between. What a range must reach are the few largest: a linear layer behind a product of two
values (a gated MLP) has inputs fifty times as large for some words as for others."""


def fit_encoder(neuron: Even, samples: Samples, *, layer: bool = False) -> None:
    """Set threshold, offset and amplitude of an encoder (spiking neurons for the identity) from samples.

    Per channel, the range of the levels k = round((z' − low)/step) is the one of least squared error, found from
    several ranges by turns of counting and of least squares (Lloyd's method for evenly spaced levels). Then the offset
    and the amplitude are the regression of the teacher's value on the counts, which also takes up a drift of z'. layer:
    one range for all channels.
    """
    a, z = samples.means()
    z = call(ENCODE, (z, *samples.node.args[1:]), {})  # up to where the range ends, as the teacher's value
    half = neuron.levels if isinstance(neuron, SignedNeuron) else 0
    levels = neuron.levels + half
    if layer:
        a, z = a.reshape(1, -1), z.reshape(1, -1)
    # A value that is never below 0 and may be 0 to the bit (the weight of what a mask hides) stays 0 there.
    zero = isinstance(neuron.offset, float) and neuron.offset == 0
    # On the CPU so many channels at once that a chain of operators stays in the cache.
    size = max(1, PIECE // z.shape[1]) if runs_here(z) else len(z)
    parts = [_encoded(*pair, levels, half, zero=zero) for pair in zip(a.split(size), z.split(size), strict=True)]
    low, step, slope, offset = (torch.cat(values) for values in zip(*parts, strict=True))
    if layer:
        low, step, slope, offset = (value.expand(samples.node.channels) for value in (low, step, slope, offset))
    for parameter, value in (
        (neuron.v_threshold, step * neuron.levels), (neuron.shift, offset - low), (neuron.v_post, slope * neuron.levels)
    ):  # fmt: skip
        parameter.data = node_shape(value, samples.node).clone().to(parameter.dtype)
    if not zero:
        neuron.offset = node_shape(offset, samples.node).clone().to(neuron.v_threshold.dtype)


def _encoded(a: Tensor, z: Tensor, levels: int, half: int, *, zero: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Currents (C,) of the count 0 and of one count more, and their amplitude and offset, for values a, z (C, N).

    levels: of the counts −half … levels − half. zero: the current and the offset of the count 0 are 0.
    """
    middle = z.mean(1, keepdim=True) * (not zero)
    unit = unit_of((z - middle).abs().amax(1, keepdim=True))
    low, step = _even_range((z - middle) / unit, levels, zero=zero)
    low, step = low * unit[:, 0] + middle[:, 0], step * unit[:, 0]
    # A channel that is all but constant is said by its offset: its step must still be a number above 0.
    least = torch.finfo(z.dtype).tiny * 4 * levels
    step = torch.where(step > least, step, torch.where(low.abs() > least, low.abs() / levels, 1.0))
    k = ((z - low[:, None]) / step[:, None]).add_(0.5).floor_().clamp_(0, levels)
    at, wanted = k.mean(1) * (not zero), a.mean(1) * (not zero)
    k -= at[:, None]
    power = k.square().mean(1)
    slope = (k * (a - wanted[:, None])).mean(1) / power.clamp(min=1e-12)
    slope = torch.where((power > 1e-12) & (slope > 0), slope, step)
    return low + step * half, step, slope, wanted - slope * at + slope * half


def _even_range(z: Tensor, levels: int, *, zero: bool = False) -> tuple[Tensor, Tensor]:
    """Lowest level and step (C,) of the evenly spaced levels that are nearest to values z (C, N) in square. zero: the
    lowest level is 0."""
    number = z.shape[1]
    some = z[:, spread(number, FEWER, z.device)] if number > FEWER + 2 * TAIL else z
    ordered = some.sort(1).values
    if some is z:
        values, counts = ordered, torch.full_like(ordered, 1 / number)
        lows, highs = ordered, ordered.flip(1)
    else:
        lows, highs = (z.topk(TAIL, 1, largest=largest).values for largest in (False, True))
        between = (ordered >= lows[:, -1:]) & (ordered <= highs[:, -1:])
        each = (number - 2 * TAIL) / between.sum(1, keepdim=True).clamp(min=1)
        values = torch.cat([lows, ordered, highs], 1)
        counts = torch.cat([torch.ones_like(lows), between * each, torch.ones_like(highs)], 1)
        counts /= counts.sum(1, keepdim=True)
    mean, k, wrong = (values * counts).sum(1), torch.empty_like(values), torch.empty_like(values)
    above, below = Above(highs, number), None if zero else Above(-lows, number)

    def error(low: Tensor, step: Tensor) -> Tensor:
        """The mean squared error of a range, (C,), its counts left in k."""
        torch.sub(values, low[:, None], out=k).div_(torch.where(step > 0, step, 1.0)[:, None])
        k.round_().clamp_(0, levels)
        torch.addcmul(values, k, step[:, None], value=-1, out=wrong)
        seen = wrong.sub_(low[:, None]).square_().mul_(counts).sum(1)
        unseen = above.loss((low + levels * step)[:, None])
        if below is not None:
            unseen = unseen + below.loss(-low[:, None])
        return seen + unseen[:, 0].to(seen)

    lowest, width, least = z[:, 0] * (not zero), z[:, 0] * 0, z.new_full((len(z),), torch.inf)

    def offer(low: Tensor, step: Tensor) -> None:
        nonlocal lowest, width, least
        low = low * (not zero)
        now = error(low, step)
        better = now < least
        lowest, width = torch.where(better, low, lowest), torch.where(better, step, width)
        least = torch.minimum(now, least)

    for share in SKIPPED:
        skipped = int(share * (number - 1))
        if skipped < lows.shape[1]:
            low, high = lows[:, skipped], highs[:, skipped]
        else:
            within = int(share * (ordered.shape[1] - 1))
            low, high = ordered[:, within], ordered[:, -1 - within]
        offer(low, (high - low * (not zero)) / levels)
    middle, wide = lowest + width * (levels / 2), width
    for scale in SCALED:
        offer(middle - wide * (scale * levels / 2), wide * scale)
    low, step = lowest, width
    for _ in range(MOVED):
        error(low, step)
        at = torch.mul(k, counts, out=wrong).sum(1) * (not zero)
        k -= at[:, None]
        weighed = torch.mul(k, counts, out=wrong)
        step = ((weighed * values).sum(1) / (weighed * k).sum(1).clamp(min=1e-12)).clamp(min=0)
        low = (mean - step * at) * (not zero)
        offer(low, step)
    return lowest, width
