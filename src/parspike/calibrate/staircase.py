"""Staircases for monotone activations: where the steps go, from what the layer was seen to compute.

Optimal one-dimensional quantisation (Lloyd and Max): an output is the mean of the activations that are counted as
it, a threshold lies where two neighbouring outputs are equally far. Started from the density of levels that is
optimal for many of them (the cube root of the density of values, Panter and Dite), a few rounds suffice. For few
levels, where such rounds may end in a poor optimum, they start from the best cut of a histogram.

Where the current z' that will arrive is not the one that the activation a belongs to, what is cut is g(z') = E[a | z']:
E[(a − q(z'))²] = E[(a − g)²] + E[(g − q)²], so the q that is best for g is best for a.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.channels import check_finite, in_order
from parspike.calibrate.recipe import Draft
from parspike.errors import CalibrationError
from parspike.graph import Activation, Curve, Node, Stream
from parspike.graph.ops import TABLE, call
from parspike.neurons import Code, Staircase, levels_of
from parspike.together import Together

__all__ = [
    "Sample", "add_staircases", "counted", "free_steps", "lloyd_max", "staircase", "staircase_between", "staircase_of",
]  # fmt: skip

ROUNDS = 60
BINS = 4096
FEW, CELLS = 32, 512
CHANNEL_BINS = 256
"""Cells in which a channel's own levels may end."""
SHIFTED = 12
"""Times that free steps are moved."""
TAIL = 4
"""Towards both ends a cell holds a TAIL-th of the values beyond it, one at least. In cells of equally many the few
largest were one: at 32 levels the error of long-tailed currents was up to five times as large."""
CUTS = 1 << 23
"""Cuts weighed at once: 64 MiB of float64."""
CLIPPED = (0.0, 0.001, 0.01, 0.03, 0.1)
"""Shares of the values beyond the first and the last of evenly spaced outputs, to start from."""
MOST_CLIPPED = 256
"""With more levels evenly spaced outputs span all values: the finer the steps, the more a clipped value costs."""


FILLED, MOST_FILLED = 512, 1 << 20
"""Steps are placed for at least FILLED currents a level (missing ones are interpolated, up to MOST_FILLED in all): with
96 a level, at T = 1024, the error on other currents of the same layer was 1.6 times that on these."""


@dataclass
class Sample:
    """At most 2·`limit` of the values that a layer was given, evenly thinned, and their extremes.

    Of every batch each `stride`-th value, the stride the smallest power of three that keeps few enough: so the same
    values are kept for any order of the batches, in one sample or in several that are joined.
    """

    limit: int = 1 << 17
    stride: int = 1
    values: list[Tensor] = field(default_factory=list)
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, x: Tensor) -> None:
        """Take in a batch."""
        low, high = x.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        self.values.append(x.flatten()[:: self.stride].clone())
        self._thin()

    def join(self, together: Together) -> None:
        """Take in what the other processes saw."""
        own = {together.rank: [torch.cat(self.values)]} if self.values else {}
        said = together.exchange((self.stride, self.low, self.high, [len(part) for part in self.values]))
        self.low, self.high = min(low for _, low, *_ in said), max(high for *_, high, _ in said)
        self.stride = max(stride for stride, *_ in said)
        seen = [(stride, lengths) for stride, *_, lengths in said if lengths]
        self.values = [
            part[:: self.stride // stride]
            for (values,), (stride, lengths) in zip(together.gather(own), seen, strict=True)
            for part in values.split(lengths)
        ]
        self._thin()

    def _thin(self) -> None:
        while sum(len(part) for part in self.values) > max(2 * self.limit, len(self.values)):
            # By three, because an even stride would see only some columns of every map.
            self.values = [part[::3].clone() for part in self.values]
            self.stride *= 3

    def sorted(self) -> Tensor:
        """The values kept and the extremes, in order."""
        values = torch.cat(self.values)
        return torch.cat([values, values.new_tensor([self.low, self.high])]).sort().values


def add_staircases(draft: Draft, batches: Batches | None) -> None:
    """Make the neurons of every activation that only a staircase can stand for, from one walk of the network."""
    curves = [draft.graph.by_name[name] for name, a in draft.activations.items() if isinstance(a, Curve)]
    if not curves:
        return
    if batches is None:
        raise draft.no_data(curves[0].layer, "needs to see what it computes")
    samples = {node.name: Sample() for node in curves}

    def record(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        samples[node.name].add(args[0])
        return [call(node.target, args, node.kwargs)]

    draft.watch(batches, dict.fromkeys(samples, record), "recording activations")
    for node in curves:
        sample = samples[node.name]
        sample.join(batches.together)
        if not torch.isfinite(torch.tensor([sample.low, sample.high])).all():
            raise CalibrationError(f"layer '{node.layer}' is given NaN or Inf on the calibration data")
        z = sample.sorted()
        check_finite(node, _function(node, draft.graph.tensors)(z))
        draft.neurons[node.name] = staircase_of(draft, node, z)


class Counted(TypedDict):
    """What `Curve` says of the errors of an activation."""

    zero: bool
    above: float | None


def counted(activation: Activation | str | None) -> Counted:
    """The options of `staircase` and `staircase_between` for an activation."""
    curve = activation if isinstance(activation, Curve) else Curve()
    return {"zero": curve.zero, "above": curve.above}


def staircase_of(draft: Draft, node: Node, z: Tensor) -> Staircase:
    """`staircase` of an activation itself, for currents distributed like z (sorted)."""
    function, inverse = _function(node, draft.graph.tensors), TABLE[node.target].inverse
    errors = counted(draft.activations[node.name])
    return staircase(function, z, draft.steps_of(node.name), draft.code, inverse=inverse, **errors)


def _function(node: Node, tensors: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def run(z: Tensor) -> Tensor:
        args, kwargs = Stream({node.refs[0]: z}, tensors, {}).arguments(node)
        return call(node.target, args, kwargs)

    return run


def staircase(
    function: Callable[[Tensor], Tensor], z: Tensor, T: int, code: Code = "sorted",
    *, inverse: Callable[[Tensor], Tensor] | None = None, zero: bool = False, above: float | None = None,
) -> Staircase:  # fmt: skip
    """Neurons that stand for a non-decreasing elementwise function of currents distributed like z (sorted).

    inverse: the function's own, if it is known; bisection else. zero: the lowest output is 0 to the bit. above:
    errors, also the staircase's `error` and `uniform_error`, are divided by the output plus this number. Outputs are
    placed optimally where that lowers the mean squared error over evenly spaced ones, and the code allows it.
    """
    levels = levels_of(T, code)
    z = _filled(z, min(FILLED * levels, MOST_FILLED))
    a = function(z).double()
    least, most = a[0] * (not zero), a[-1]
    even = torch.linspace(0, 1, levels + 1, dtype=a.dtype, device=a.device) * (most - least) + least
    if above is not None:
        a = _in_shares(z[None], a[None], above)[1][0]
    outputs, uniform_error = even, _error(a, even)
    if levels <= MOST_CLIPPED:
        edges = _edges(len(a), BINS, a.device)
        clipped = _even(_cell_means(a[None], edges), levels, edges.diff(), zero=zero)[0]
        if (clipped_error := _error(a, clipped)) < uniform_error:
            outputs, uniform_error = clipped, clipped_error
    error = uniform_error
    if code != "weighted":
        placed = lloyd_max(a, levels)
        placed[0] *= not zero
        if (placed_error := _error(a, placed)) < uniform_error:
            outputs, error = placed, placed_error
    between = (outputs[1:] + outputs[:-1]) / 2
    thresholds = _inverse(function, between, z) if inverse is None else inverse(between.to(z.dtype))
    thresholds = thresholds.cummax(0).values  # where the function is flat, rounding makes it rise and fall
    thresholds = torch.where(outputs[0] == outputs[-1], _beyond(z[-1]), thresholds)
    return Staircase(T, thresholds, outputs.to(z.dtype), code=code, error=error, uniform_error=uniform_error)


def _filled(z: Tensor, wanted: int) -> Tensor:
    """Sorted currents (N,) with others evenly put between neighbours, so that they are `wanted` at least.

    Steps that were placed for fewer currents than there are levels would stand at these currents alone, and leave
    every current between two of them as far off as their distance.
    """
    parts = -(-wanted // len(z))
    if parts < 2:
        return z
    between = z[:-1, None] + z.diff()[:, None] * torch.arange(parts, dtype=z.dtype, device=z.device) / parts
    return torch.cat([between.flatten().clamp(max=z[-1]), z[-1:]])


def staircase_between(
    z: Tensor, a: Tensor, T: int, code: Code = "sorted", *, shape: Sequence[int] | None = None, zero: bool = False,
    above: float | None = None,
) -> Staircase:  # fmt: skip
    """Neurons that give a wanted output a for the current z they get, the two not a function of each other.

    zero, above: as for `staircase`; its errors are those against a. z, a: (C, N), or as many values each in any shape
    that all neurons share. shape: thresholds of their own for every channel, in a shape of C elements that broadcasts
    against one sample.
    """
    levels = levels_of(T, code)
    z, a = (z, a) if shape is not None else (z.reshape(1, -1), a.reshape(1, -1))
    channels, number = z.shape
    z, order = in_order(z)
    a, most = a.gather(1, order).double(), z[:, -1]
    if above is not None:
        z, a = _in_shares(z, a, above)
    edges = _edges(number, CHANNEL_BINS if shape is not None else max(BINS, 16 * levels), z.device)
    counts = edges.diff()
    wanted = torch.stack([_of_equals(*row) for row in zip(z, a, strict=True)])
    place, g = (_cell_means(v.double(), edges) for v in (z, wanted))
    g = torch.stack([_rising(row, counts) for row in g])
    choices = [_even(g, levels, counts, zero=zero)]
    if code != "weighted":
        placed = _best_cut(g, levels, counts) if shape is not None else lloyd_max(g[0], levels, counts)[None]
        placed[:, 0] *= not zero
        choices.insert(0, placed.cummax(1).values)  # means of equal values may fall by rounding
    cuts = [_crossings(g, place, outputs) for outputs in choices]
    errors = torch.stack([
        (a - outputs.gather(1, torch.searchsorted(cut, z.double(), right=True))).square().mean(1)
        for outputs, cut in zip(choices, cuts, strict=True)
    ])  # fmt: skip
    least = errors.argmin(0)[:, None]
    outputs, thresholds = (
        torch.where(least == 0, given[0], given[-1]).T.reshape(-1, *(shape or ())).to(z.dtype)
        for given in (choices, cuts)
    )
    thresholds = torch.where(outputs[:1] == outputs[-1:], _beyond(most).reshape(thresholds[:1].shape), thresholds)
    neuron = Staircase(T, thresholds, outputs, code=code)
    got = neuron(z.T.reshape(number, *(shape or (1,)))).reshape(number, channels).T
    neuron.error = float((a - got).square().mean())
    # Moved to their grid, thresholds may lose a little.
    neuron.uniform_error = max(neuron.error, float(errors[-1].mean()))
    return neuron


def _beyond(most: Tensor) -> Tensor:
    """A threshold that the largest current does not reach, also where it is moved to a staircase's grid: for neurons of
    one output, which say nothing and need not fire."""
    return most + most.abs() * 1e-5 + torch.finfo(most.dtype).tiny


def _in_shares(z: Tensor, a: Tensor, above: float) -> tuple[Tensor, Tensor]:
    """As many pairs as there are of sorted currents z and outputs a, (C, N) each, each drawn 1/(a + above)² times as
    often: the mean squared error is then that of errors divided by a + above. An extreme that is hardly ever drawn is
    left out: where a = 1/√b, one row of zeros has the output 316, whose error would outweigh those of all others."""
    number, whole = z.shape[1], a + above
    # What a tiny output asks for is bounded, so that a single one is not all that is drawn.
    share = whole.clamp(min=max(1e-4 * float(whole.abs().max()), 1e-30)).square().reciprocal()
    upto = share.cumsum(1) / share.sum(1, keepdim=True)
    at = (torch.arange(number, dtype=a.dtype, device=a.device) + 0.5) / number
    pick = torch.searchsorted(upto, at.expand(len(z), -1).contiguous()).clamp(max=number - 1)
    return z.gather(1, pick), a.gather(1, pick)


def free_steps(a: Tensor, z: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor]:
    """Thresholds (C, S) and outputs (C, S + 1) of least squared error for wanted outputs a of currents z, (C, N) each.

    cuts: thresholds (C, S) to start from, from which the error only falls. An output is the mean of the a that are
    counted as it. Between two outputs the best threshold is the place in the order of the currents up to which the sum
    of what a lies above their middle is smallest; it is looked for among `CHANNEL_BINS` places.
    """
    z, order = in_order(z)
    number = z.shape[1]
    sums = F.pad(a.gather(1, order).double().cumsum(1), (1, 0))
    edges = _edges(number, CHANNEL_BINS, z.device)
    # Equal currents are counted alike, so no place lies between them.
    edges = torch.searchsorted(z, z[:, edges.clamp(max=number - 1)].contiguous())
    edges[:, -1] = number
    at_edges = sums.gather(1, edges)
    places = torch.searchsorted(z, cuts.contiguous())

    def means(places: Tensor) -> Tensor:
        inside = F.pad(F.pad(places, (1, 0)), (0, 1), value=number)
        count = inside.diff(dim=1)
        found = sums.gather(1, inside).diff(dim=1) / count.clamp(min=1)
        # A step that nothing is counted as gets the output below it, so that it costs nothing.
        found = torch.where(count > 0, found, -torch.inf).cummax(1).values
        lowest = torch.where(found.isinf(), torch.inf, found).amin(1, keepdim=True)
        return torch.maximum(found, lowest)

    outputs = means(places)
    for _ in range(SHIFTED):
        middles = (outputs[:, 1:] + outputs[:, :-1]) / 2
        below = at_edges[:, None, :] - middles[:, :, None] * edges[:, None, :]
        places = edges.gather(1, below.argmin(2)).cummax(1).values
        outputs = means(places)
    low, high = (z.gather(1, (places + side).clamp(0, number - 1)) for side in (-1, 0))
    thresholds = torch.where(places == 0, low, (low + high) / 2)
    # A threshold that none of the currents reaches stays above all of them.
    beyond = torch.nextafter(z[:, -1:], torch.full_like(z[:, -1:], torch.inf))
    thresholds = torch.where(places == number, torch.maximum(cuts, beyond), thresholds)
    return thresholds.cummax(1).values, outputs.to(a.dtype)


def _edges(number: int, cells: int, device: torch.device) -> Tensor:
    """Where cells of `number` sorted values begin and end, (C + 1,), C ≤ cells: in the middle they hold equally many,
    towards both ends fewer and fewer (`TAIL`)."""
    if number <= cells:
        return torch.arange(number + 1, device=device)
    outer = [0]
    while 2 * len(outer) < cells:
        wide = max(1, outer[-1] // TAIL)
        if wide * (cells - 2 * len(outer) + 2) >= number - 2 * outer[-1]:
            break
        outer.append(outer[-1] + wide)
    inner = cells - 2 * (len(outer) - 1)
    middle = torch.linspace(outer[-1], number - outer[-1], inner + 1, dtype=torch.float64, device=device).long()
    ends = torch.tensor(outer[:-1], device=device)
    return torch.cat([ends, middle, number - ends.flip(0)])


def _cell_means(values: Tensor, edges: Tensor) -> Tensor:
    """The means (R, C) of rows of values (R, N) in the cells between `edges`."""
    middle = values.mean(1, keepdim=True)  # sums of what is left keep the digits of values that are all but equal
    return F.pad((values - middle).cumsum(1), (1, 0))[:, edges].diff(dim=1) / edges.diff() + middle


def _crossings(g: Tensor, place: Tensor, outputs: Tensor) -> Tensor:
    """Where the line through (place, g) crosses the middle between neighbouring outputs, channel by channel."""
    between = (outputs[:, 1:] + outputs[:, :-1]) / 2
    above = torch.searchsorted(g, between).clamp(1, g.shape[1] - 1)
    low, high = g.gather(1, above - 1), g.gather(1, above)
    part = ((between - low) / _divisor(high - low)).clamp(0, 1)
    return (place.gather(1, above - 1) * (1 - part) + place.gather(1, above) * part).cummax(1).values


def _divisor(width: Tensor) -> Tensor:
    """The width (at least 0) as a divisor: 1 where it is 0."""
    return torch.where(width > 0, width, 1.0)


def _of_equals(z: Tensor, a: Tensor) -> Tensor:
    """For sorted currents z (N,) the mean of the a of all that are equal: they are counted alike."""
    _, which, number = z.unique_consecutive(return_inverse=True, return_counts=True)
    return (a.new_zeros(len(number)).index_add_(0, which, a) / number)[which]


def _rising(g: Tensor, counts: Tensor) -> Tensor:
    """The non-decreasing values closest to g (N,) in square, each counted so often: neighbours that fall are pooled."""
    pools: list[tuple[float, int, int]] = []
    for value, many in zip(g.tolist(), counts.tolist(), strict=True):
        cells = 1
        while pools and pools[-1][0] >= value:
            before, more, wide = pools.pop()
            value, many, cells = (before * more + value * many) / (more + many), more + many, wide + cells
        pools.append((value, many, cells))
    values, _, cells = zip(*pools, strict=True)
    return g.new_tensor(values).repeat_interleave(torch.tensor(cells, device=g.device))


def _even(a: Tensor, levels: int, counts: Tensor, *, zero: bool = False) -> Tensor:
    """Evenly spaced outputs (C, levels + 1) of least error for rows of sorted values a (C, N), each counted counts (N,)
    times, from a few ranges to start. zero: the lowest is 0."""
    share, upto = counts.to(a.dtype) / counts.sum(), counts.cumsum(0)
    number, mean = torch.arange(levels + 1, dtype=a.dtype, device=a.device), (a @ share)[:, None]
    best, least = a.new_zeros(len(a), levels + 1), a.new_full((len(a),), float("inf"))
    for clipped in CLIPPED:
        skipped = int(clipped * (int(upto[-1]) - 1))
        low, high = (
            a[:, int(torch.searchsorted(upto, at, right=True))] for at in (skipped, int(upto[-1]) - 1 - skipped)
        )
        low = low * (not zero)
        for _ in range(ROUNDS):
            before = low, high
            step = _divisor((high - low) / levels)
            k = ((a - low[:, None]) / step[:, None]).round().clamp(0, levels)
            if zero:
                high = (k * a) @ share / (k.square() @ share).clamp(min=1e-30) * levels
            else:
                middle = k @ share
                centred = k - middle[:, None]
                # Both rise; below 0 it is rounding, where the values are all but one.
                slope = (centred * (a - mean)) @ share / (centred.square() @ share).clamp(min=1e-30)
                slope = slope.clamp(min=0)
                low, high = mean[:, 0] - slope * middle, mean[:, 0] + slope * (levels - middle)
            if torch.equal(low, before[0]) and torch.equal(high, before[1]):
                break  # further rounds would repeat this one
        step = (high - low) / levels
        outputs = low[:, None] + number * step[:, None]
        nearest = ((a - low[:, None]) / _divisor(step)[:, None]).round().clamp(0, levels)
        error = (a - outputs.gather(1, nearest.long())).square() @ share
        best, least = torch.where((error < least)[:, None], outputs, best), torch.minimum(error, least)
    return best


def _best_cut(a: Tensor, levels: int, counts: Tensor) -> Tensor:
    """The best outputs (C, levels + 1) for rows of sorted values a (C, N), each counted counts (N,) times, every cut
    weighed."""
    found: list[Tensor] = []
    ones = F.pad(counts.cumsum(0), (1, 0))
    for rows in a.split(max(1, CUTS // (a.shape[1] + 1) ** 2)):
        mean = (rows * counts).sum(1, keepdim=True) / ones[-1]
        sums, squares = (F.pad((v * counts).cumsum(1), (1, 0)) for v in (rows - mean, (rows - mean).square()))
        found.append(_by_programming(ones, sums, squares, rows[:, -1:] - mean, levels) + mean)
    return torch.cat(found)


def lloyd_max(a: Tensor, levels: int, counts: Tensor | None = None) -> Tensor:
    """Outputs (levels + 1,) of a quantiser of sorted values a (N,), each counted counts (N,) times (once where None),
    that no small change improves."""
    if a[0] == a[-1]:
        return a[:1].repeat(levels + 1)
    ones = torch.arange(len(a) + 1, device=a.device) if counts is None else F.pad(counts.cumsum(0), (1, 0))
    outputs = _best_of_cells(a, levels, ones) if levels <= FEW else _panter_dite(a, levels + 1, ones)
    total = torch.cat([a.new_zeros(1), (a if counts is None else a * counts).cumsum(0)])
    for _ in range(ROUNDS):
        cuts = torch.searchsorted(a, (outputs[1:] + outputs[:-1]) / 2)
        cuts = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(a))])
        number = ones[cuts].diff()
        means = (total[cuts[1:]] - total[cuts[:-1]]) / number
        # A level without values stays where it is, between its neighbours.
        before, outputs = outputs, torch.where(number > 0, means, outputs).sort().values
        if torch.equal(outputs, before):
            break
    return outputs


def _best_of_cells(a: Tensor, levels: int, ones: Tensor) -> Tensor:
    """The best outputs (levels + 1,) for sorted values a (N,) where levels can only end at the edges of `CELLS` cells.
    ones (N + 1,): how many values stand before each."""
    edges = torch.arange(len(a) + 1)
    if len(a) > CELLS:  # half of the cells hold equally many values, half are equally wide
        wide = torch.linspace(float(a[0]), float(a[-1]), CELLS // 2, dtype=a.dtype)
        even = torch.searchsorted(ones.cpu(), torch.linspace(0, int(ones[-1]), CELLS // 2 + 1).long())
        edges = torch.cat([even, torch.searchsorted(a.cpu(), wide)]).unique()
    counts = ones.diff()
    mean = (a * counts).sum() / ones[-1]
    centred = a - mean
    sums, squares = (F.pad((v * counts).cumsum(0), (1, 0)).cpu()[None, edges] for v in (centred, centred**2))
    return _by_programming(ones.cpu()[edges], sums, squares, centred[None, -1:].cpu(), levels)[0].to(a) + mean


def _by_programming(ones: Tensor, sums: Tensor, squares: Tensor, last: Tensor, levels: int) -> Tensor:
    """The best outputs (C, levels + 1), by dynamic programming over where levels end.

    ones (E,), sums, squares (C, E): number, sum and sum of squares of the values before each of E edges. last
    (C, 1): the largest value, which a level without values gets where none above it has any.
    """
    count, total, power = (v[..., None, :] - v[..., :, None] for v in (ones, sums, squares))
    cost = torch.where(count > 0, (power - total.square() / count.clamp(min=1)).clamp(min=0), torch.inf)
    cost.diagonal(dim1=1, dim2=2).zero_()
    error, choices = cost[:, 0], []
    for _ in range(levels):
        error, choice = (error[:, :, None] + cost).min(1)
        choices.append(choice)
    end, outputs = torch.full_like(choices[0][:, :1], len(ones) - 1), [last]
    for choice in (*reversed(choices), torch.zeros_like(choices[0])):
        start = choice.gather(1, end)
        number = ones[end] - ones[start]
        means = (sums.gather(1, end) - sums.gather(1, start)) / number.clamp(min=1)
        outputs.append(torch.where(number > 0, means, outputs[-1]))
        end = start
    return torch.cat(outputs[:0:-1], 1)


def _panter_dite(a: Tensor, number: int, ones: Tensor) -> Tensor:
    """Values at even steps of the integral of the cube root of the density of sorted values a (N,). ones (N + 1,): how
    many are counted before each."""
    edges = _edges(len(a), BINS, a.device)
    counts = ones[edges].diff()
    total = F.pad((a * ones.diff()).cumsum(0), (1, 0))
    means = total[edges].diff() / counts
    # What is counted at two neighbours lies between them, so narrow cells stand for few values.
    width, seen = means.diff().clamp(min=0), (counts[1:] + counts[:-1]) / 2
    mass = F.pad((seen * width.square()).pow(1 / 3).cumsum(0), (1, 0))
    wanted = (torch.arange(number, dtype=a.dtype, device=a.device) + 0.5) / number * mass[-1]
    place = (torch.searchsorted(mass, wanted) - 1).clamp(0, len(width) - 1)
    return means[place] + (wanted - mass[place]) / mass.diff()[place].clamp(min=1e-30) * width[place]


def _error(a: Tensor, outputs: Tensor) -> float:
    nearest = torch.searchsorted((outputs[1:] + outputs[:-1]) / 2, a, right=True)
    return float((a - outputs[nearest]).square().mean())


def _inverse(function: Callable[[Tensor], Tensor], wanted: Tensor, z: Tensor) -> Tensor:
    """The smallest current, to the precision of its dtype, at which the function reaches each wanted output."""
    low, high = z[0].expand_as(wanted), z[-1].expand_as(wanted)
    for _ in range(64):
        middle = low + (high - low) / 2
        reached = function(middle) >= wanted
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return high.clone()
