"""Staircases for monotone activations: where the steps go, from what the layer was seen to compute.

Optimal one-dimensional quantisation (Lloyd and Max): an output is the mean of the activations that are counted as
it, a threshold lies where two neighbouring outputs are equally far. Started from the density of levels that is
optimal for many of them (the cube root of the density of values, Panter and Dite), a few rounds suffice. For few
levels, where such rounds may end in a poor optimum, they start from the best cut of a histogram.

Where the current z' that will arrive is not the one that the activation a belongs to, what is cut is g(z') = E[a | z']:
E[(a − q(z'))²] = E[(a − g)²] + E[(g − q)²], so the q that is best for g is best for a.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.recipe import Draft
from parspike.errors import CalibrationError
from parspike.graph import Curve, Node, Schedule, Stream, walk
from parspike.graph.ops import TABLE, call
from parspike.neurons import Code, Staircase, levels_of
from parspike.together import Together

__all__ = ["Sample", "add_staircases", "lloyd_max", "staircase", "staircase_between"]

ROUNDS = 60
BINS = 4096
FEW, CELLS = 32, 512
CLIPPED = (0.0, 0.001, 0.01, 0.03, 0.1)
"""Shares of the values beyond the first and the last of evenly spaced outputs, to start from."""


@dataclass
class Sample:
    """At most 2·`limit` of the values that a layer was given, evenly thinned, and their extremes.

    Of every batch each `stride`-th value, the stride the smallest power of three that keeps few enough: the same
    values in whatever order the batches come, and whether they went into one sample or into several that are joined.
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
        raise CalibrationError(
            f"layer '{curves[0].layer}' needs to see what it computes: pass calibration= (images, no labels)"
        )
    samples = {node.name: Sample() for node in curves}

    def record(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        samples[node.name].add(args[0])
        return [call(node.target, args, node.kwargs)]

    graph = draft.graph
    schedule = Schedule.of(graph.nodes, graph.outputs)
    for done, env in enumerate(batches, 1):
        walk(schedule, [Stream(dict(env), graph.tensors, graph.sizes(env))], dict.fromkeys(samples, record))
        draft.progress("recording activations", done, batches.rounds)
    for node in curves:
        sample = samples[node.name]
        sample.join(batches.together)
        if not torch.isfinite(torch.tensor([sample.low, sample.high])).all():
            raise CalibrationError(f"layer '{node.layer}' is given NaN or Inf on the calibration data")
        draft.neurons[node.name] = staircase(
            _function(node, graph.tensors),
            sample.sorted(),
            draft.steps_of(node.name),
            draft.code,
            inverse=TABLE[node.target].inverse,
        )


def _function(node: Node, tensors: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def run(z: Tensor) -> Tensor:
        args, kwargs = Stream({node.refs[0]: z}, tensors, {}).arguments(node)
        return call(node.target, args, kwargs)

    return run


def staircase(
    function: Callable[[Tensor], Tensor], z: Tensor, T: int, code: Code = "sorted",
    *, inverse: Callable[[Tensor], Tensor] | None = None,
) -> Staircase:  # fmt: skip
    """Neurons that stand for a non-decreasing elementwise function of currents distributed like z (sorted).

    inverse: the function's own, if it is known; bisection else. Outputs are placed optimally where that lowers the
    mean squared error over evenly spaced ones, and the code allows it.
    """
    levels = levels_of(T, code)
    a = function(z).double()
    even = torch.linspace(0, 1, levels + 1, dtype=a.dtype, device=a.device) * (a[-1] - a[0]) + a[0]
    outputs, uniform_error = even, _error(a, even)
    error = uniform_error
    if code != "weighted":
        placed = lloyd_max(a, levels)
        if (placed_error := _error(a, placed)) < uniform_error:
            outputs, error = placed, placed_error
    between = (outputs[1:] + outputs[:-1]) / 2
    thresholds = _inverse(function, between, z) if inverse is None else inverse(between.to(z.dtype))
    return Staircase(T, thresholds, outputs.to(z.dtype), code=code, error=error, uniform_error=uniform_error)


def staircase_between(z: Tensor, a: Tensor, T: int, code: Code = "sorted") -> Staircase:
    """Neurons that give a wanted output a for the current z they get, the two not a function of each other.

    z, a: as many values each, in any order. The errors of the staircase are those against a.
    """
    levels = levels_of(T, code)
    z, order = z.flatten().sort()
    a = a.flatten()[order].double()
    bins = min(len(z), max(BINS, 16 * levels))
    pick = torch.linspace(0, len(z) - 1, len(z) // bins * bins, dtype=torch.float64, device=z.device).long()
    place, g = (values[pick].double().view(bins, -1).mean(1) for values in (z, a))
    g = _rising(g)
    placed = [] if code == "weighted" else [lloyd_max(g, levels)]
    made: list[Staircase] = []
    for outputs in (*placed, _even(g, levels)):
        neuron = Staircase(T, _crossings(g, place, outputs).to(z.dtype), outputs.to(z.dtype), code=code)
        neuron.error = float((a - neuron(z)).square().mean())
        made.append(neuron)
    best = min(made, key=lambda neuron: neuron.error)
    best.uniform_error = made[-1].error
    return best


def _crossings(g: Tensor, place: Tensor, outputs: Tensor) -> Tensor:
    """Where the line through (place, g) crosses the middle between neighbouring outputs."""
    between = (outputs[1:] + outputs[:-1]) / 2
    above = torch.searchsorted(g, between).clamp(1, len(g) - 1)
    part = (between - g[above - 1]) / (g[above] - g[above - 1]).clamp(min=1e-30)
    return place[above - 1] + part.clamp(0, 1) * (place[above] - place[above - 1])


def _rising(g: Tensor) -> Tensor:
    """The non-decreasing values closest to g in square: neighbours that fall are pooled."""
    pools: list[tuple[float, int]] = []
    for value in g.tolist():
        number = 1
        while pools and pools[-1][0] >= value:
            before, many = pools.pop()
            value, number = (before * many + value * number) / (many + number), many + number
        pools.append((value, number))
    values, numbers = zip(*pools, strict=True)
    return g.new_tensor(values).repeat_interleave(torch.tensor(numbers, device=g.device))


def _even(a: Tensor, levels: int) -> Tensor:
    """Evenly spaced outputs (levels + 1,) of least error for sorted values a, from the best of a few ranges."""
    best, least = a.new_zeros(levels + 1), float("inf")
    number = torch.arange(levels + 1, dtype=a.dtype, device=a.device)
    for share in CLIPPED:
        low, high = a[int(share * (len(a) - 1))], a[len(a) - 1 - int(share * (len(a) - 1))]
        for _ in range(ROUNDS):
            step = ((high - low) / levels).clamp(min=1e-30)
            k = ((a - low) / step).round().clamp(0, levels)
            centred = k - k.mean()
            slope = (centred * a).mean() / centred.square().mean().clamp(min=1e-30)
            low, high = a.mean() - slope * k.mean(), a.mean() + slope * (levels - k.mean())
        outputs = low + number * ((high - low) / levels)
        if (error := _error(a, outputs)) < least:
            best, least = outputs, error
    return best


def lloyd_max(a: Tensor, levels: int) -> Tensor:
    """Outputs (levels + 1,) of a quantiser of the sorted values `a` that no small change improves."""
    if a[0] == a[-1]:
        return a[:1].repeat(levels + 1)
    outputs = _by_programming(a, levels + 1) if levels <= FEW else _panter_dite(a, levels + 1)
    total = torch.cat([a.new_zeros(1), a.cumsum(0)])
    for _ in range(ROUNDS):
        cuts = torch.searchsorted(a, (outputs[1:] + outputs[:-1]) / 2)
        cuts = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(a))])
        number = cuts.diff()
        means = (total[cuts[1:]] - total[cuts[:-1]]) / number
        # A level without values stays where it is, between its neighbours.
        outputs = torch.where(number > 0, means, outputs).sort().values
    return outputs


def _by_programming(a: Tensor, number: int) -> Tensor:
    """The best outputs where levels can only end at the edges of `CELLS` cells, by dynamic programming."""
    edges = torch.arange(len(a) + 1)
    if len(a) > CELLS:  # half of the cells hold equally many values, half are equally wide
        wide = torch.linspace(float(a[0]), float(a[-1]), CELLS // 2, dtype=a.dtype)
        even = torch.linspace(0, len(a), CELLS // 2 + 1).long()
        edges = torch.cat([even, torch.searchsorted(a.cpu(), wide)]).unique()
    ones, sums, squares = (
        torch.cat([v.new_zeros(1), v.cumsum(0)]).cpu()[edges]
        for v in (torch.ones_like(a), a - a.mean(), (a - a.mean()) ** 2)
    )
    count, total, power = (v[None, :] - v[:, None] for v in (ones, sums, squares))
    cost = torch.where(count > 0, (power - total**2 / count.clamp(min=1)).clamp(min=0), torch.inf).fill_diagonal_(0)
    error, choices = cost[0], []
    for _ in range(number - 1):
        error, choice = (error[:, None] + cost).min(0)
        choices.append(choice)
    place, outputs = len(edges) - 1, [(a[-1] - a.mean()).cpu()]
    for choice in (*reversed(choices), torch.zeros(len(edges), dtype=torch.long)):
        start = int(choice[place])
        outputs.append((sums[place] - sums[start]) / (ones[place] - ones[start]) if place > start else outputs[-1])
        place = start
    return torch.stack(outputs[1:]).flip(0).to(a) + a.mean()


def _panter_dite(a: Tensor, number: int) -> Tensor:
    """Values at even steps of the integral of the cube root of the density."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=a.dtype, device=a.device) * (a[-1] - a[0]) + a[0]
    seen = torch.searchsorted(a, edges[1:-1])
    seen = torch.cat([seen.new_zeros(1), seen, seen.new_full((1,), len(a))]).diff()
    mass = torch.cat([a.new_zeros(1), seen.to(a.dtype).pow(1 / 3).cumsum(0)])
    wanted = (torch.arange(number, dtype=a.dtype, device=a.device) + 0.5) / number * mass[-1]
    place = (torch.searchsorted(mass, wanted) - 1).clamp(0, BINS - 1)
    width = (mass[place + 1] - mass[place]).clamp(min=1e-30)
    return edges[place] + (wanted - mass[place]) / width * (edges[1] - edges[0])


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
