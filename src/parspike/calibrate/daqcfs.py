"""Thresholds recorded from the activations, and Algorithm 1 of the paper: shift δ and scale φ of equation (9)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.channels import above_zero, by_channel, channel_mean, check_finite, node_shape
from parspike.calibrate.lockstep import Lockstep, pair_of
from parspike.calibrate.percentile import Range, percentiles
from parspike.calibrate.recipe import Draft, Recipe
from parspike.calibrate.staircase import add_staircases
from parspike.calibrate.student import ByCount, OverTime
from parspike.errors import CalibrationError, OptionError
from parspike.graph import Clip, Curve, Node, Quantised, Schedule, walk
from parspike.graph.ops import ENCODE, call
from parspike.neurons import ParallelNeuron, SignedNeuron, levels_of, qcfs
from parspike.neurons.percentile import MODES, share_of

__all__ = ["DAQCFS", "Thresholds", "channel_ranges", "initial_neurons"]


Granularity = Literal["channel", "layer"]


@dataclass(frozen=True)
class Thresholds(Recipe):
    """ClipReLU thresholds from what the activations give on the calibration data, and nothing else.

    mode: "max", the largest output (Diehl et al. 2015), or a percentile such as "99.9%" of all outputs, zeros
    included (Rueckauer et al. 2017): exact and from the whole set, see `calibrate.percentile`. A channel whose
    percentile is 0 gets the layer's largest. granularity: of each "channel", or of the "layer". An activation whose
    lower bound is not 0 (clamp, hardtanh) has the lower end of its range from the data too, in the same way, so bounds
    that no value comes near do not matter.
    """

    name: ClassVar[str] = "thresholds"
    mode: str = "max"
    granularity: Granularity = "channel"

    def __post_init__(self) -> None:
        _check_start(self.mode, self.granularity)

    def fit(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, self.mode, self.granularity)
        if isinstance(draft.student, OverTime):
            for name, neuron in draft.neurons.items():
                if draft.graph.by_name[name].target != ENCODE and isinstance(draft.activations.get(name), Clip):
                    for what in ("v_threshold", "v_init"):  # what a spike is worth stays
                        neuron.get_parameter(what).data *= draft.student.kind.highest


@dataclass(frozen=True)
class DAQCFS(Recipe):
    """Algorithm 1 (method.md, Calibration), for QCFS with T ≠ T̃ and for ReLU networks.

    momentum: α of the moving averages. passes: times over the calibration set. means: "moving" as the paper's
    averages over batches, "exact" for their limit, layer after layer, each from the whole set (independent of the
    order and size of batches). mode, granularity: the thresholds it starts from and keeps, see `Thresholds`; the
    paper's are the channel maxima.
    """

    name: ClassVar[str] = "daqcfs"
    momentum: float = 0.99
    passes: int = 1
    means: Literal["moving", "exact"] = "moving"
    mode: str = "max"
    granularity: Granularity = "channel"

    def __post_init__(self) -> None:
        _check_start(self.mode, self.granularity)
        if not isinstance(self.momentum, (int, float)) or not 0 <= self.momentum < 1:
            raise OptionError(f"momentum must be a number in [0, 1), got {self.momentum!r}")
        if isinstance(self.passes, bool) or not isinstance(self.passes, int) or self.passes < 1:
            raise OptionError(f"passes must be an integer of at least 1, got {self.passes!r}")
        if self.means not in ("moving", "exact"):
            raise OptionError(f"means must be 'moving' or 'exact', got {self.means!r}")

    def fit(self, draft: Draft, batches: Batches | None) -> None:
        if not isinstance(draft.student, ByCount):
            raise OptionError(
                "recipe 'daqcfs' (Algorithm 1) is for parallel neurons: with neuron= leave recipe= out, or give "
                "'closed-form', 'reconstruct' or 'max'"
            )
        initial_neurons(draft, batches, self.mode, self.granularity)
        if draft.lossless:
            return
        if batches is None:
            raise CalibrationError(_unlike(draft))
        for name, neuron in draft.parallel().items():
            _per_channel(neuron, draft.graph.by_name[name])
        if self.means == "exact":
            self._exact(draft, batches)
        else:
            self._moving(draft, batches)

    def _moving(self, draft: Draft, batches: Batches) -> None:
        graph, alpha = draft.graph, self.momentum

        def fire(node: Node, teacher: tuple[Any, ...], student: tuple[Any, ...]) -> list[Tensor]:
            neuron, z, z_student = draft.neurons[node.name], teacher[0], student[0]
            a = clipped(draft, node, z, teacher)
            if not isinstance(neuron, ParallelNeuron):
                return [a, neuron(z_student)]
            _blend(neuron.shift, channel_mean(z - z_student, node), node, alpha)
            a_student = neuron.value(neuron.count(z_student))
            # φ blends into v_post = θ + φ: θ + αφ + (1−α)e = α v_post + (1−α)(θ + e).
            theta = neuron.v_threshold.expand_as(neuron.v_post).flatten()
            _blend(neuron.v_post, theta + channel_mean(a - a_student, node), node, alpha)
            return [a, a_student]

        schedule = Schedule.of(graph.nodes, graph.outputs)
        at = dict.fromkeys(draft.neurons, fire)
        for number in range(self.passes):
            # Each batch starts from the state that the one before it left, so processes cannot share the batches.
            for done, env in enumerate(batches.everywhere(), 1):
                walk(schedule, pair_of(draft, env), at)
                draft.progress(f"algorithm 1, pass {number + 1} of {self.passes}", done, batches.length)

    def _exact(self, draft: Draft, batches: Batches) -> None:
        graph = draft.graph
        neurons = draft.parallel()
        lockstep = Lockstep(draft, batches, teacher=lambda node, args: clipped(draft, node, args[0], args))
        for position, (name, neuron) in enumerate(neurons.items()):
            node = graph.by_name[name]
            source = node.refs[0]
            draft.progress(node.layer, position, len(neurons))
            for _ in range(self.passes):
                error = _Mean(batches)
                for teacher, student in lockstep.visit(node):
                    error.add(teacher.env[source] - student.env[source], node)
                neuron.shift.copy_(node_shape(error.mean, node, neuron.shift))
                wanted, fired = _Mean(batches), _Mean(batches)
                for teacher, student in lockstep.visit(node):
                    a = clipped(draft, node, teacher.env[source], teacher.arguments(node)[0])
                    wanted.add(neuron.above(a), node)
                    fired.add(neuron.count(student.env[source]), node)
                # The fixed point of step 3: φ = mean(a) − mean(k)(θ + φ)/T.
                rate = fired.mean / neuron.levels
                theta = neuron.v_threshold.double().expand_as(neuron.v_post).flatten()
                phi = (wanted.mean - rate * theta) / (1 + rate)
                neuron.v_post.copy_(node_shape(theta + phi, node, neuron.v_post))
        draft.progress("algorithm 1", len(neurons), len(neurons))


def channel_ranges(draft: Draft, batches: Batches) -> dict[str, Range]:
    """The smallest and the largest output of every channel of every activation, by node name."""
    lowest: dict[str, Tensor] = {}
    largest: dict[str, Tensor] = {}

    def record(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        a = call(node.target, args, node.kwargs)
        rows = by_channel(a, node)
        low, high = rows.aminmax(dim=1)
        for found, now, further in ((lowest, low, torch.minimum), (largest, high, torch.maximum)):
            found[node.name] = further(found[node.name], now) if node.name in found else now
        return [a]

    graph = draft.graph
    draft.watch(batches, dict.fromkeys(draft.activations, record), "recording ranges")
    together = batches.together
    found = together.gather({together.rank: [*lowest.values(), *largest.values()]} if largest else {})
    names = [node.name for node in graph.nodes if node.name in draft.activations]
    each = [torch.stack(parts) for parts in zip(*found, strict=True)]
    ranges = {name: (each[i].amin(0), each[len(names) + i].amax(0)) for i, name in enumerate(names)}
    for node in graph.neurons:
        if node.name in ranges:
            check_finite(node, *ranges[node.name])
    return ranges


def check_granularity(granularity: object) -> None:
    """Raise `OptionError` unless this is a granularity."""
    if granularity not in ("channel", "layer"):
        raise OptionError(f"granularity must be 'channel' or 'layer', got {granularity!r}")


def _check_start(mode: object, granularity: object) -> None:
    if share_of(mode) is None:
        raise OptionError(f"mode = {mode!r}: give {MODES}")
    check_granularity(granularity)


def recorded_ranges(
    draft: Draft, batches: Batches, mode: str, granularity: Granularity, lows: Mapping[str, float]
) -> dict[str, Range]:
    """The ranges of activations as `Thresholds` says, by node name; their ends are equal where a channel was silent.

    lows: their lower bounds, −∞ where they have none.
    """
    share, layer = share_of(mode), granularity == "layer"
    if share is not None and share < 1:
        return percentiles(draft, batches, share, lows, layer=layer)
    found = channel_ranges(draft, batches)
    ranges: dict[str, Range] = {}
    for name, bound in lows.items():
        low, high = found[name]
        if layer:
            low, high = low.min().expand_as(low), high.max().expand_as(high)
        # A lower bound of 0 stays, so that a silent neuron sends nothing. A higher one would give a channel that is
        # never silent more levels, but cost a constant current.
        ranges[name] = torch.zeros_like(low) if bound == 0 else low, high
    return ranges


def initial_neurons(
    draft: Draft, batches: Batches | None, mode: str | None = "max", granularity: Granularity = "channel"
) -> None:
    """Neurons with θ from the network (QCFS) or as `Thresholds` says (ClipReLU), δ = φ = 0.

    mode: None where θ will be fitted layer after layer, so that only the lower ends of ranges have to be recorded, and
    nothing where all of them are 0.
    """
    lows = {name: a.low for name, a in draft.activations.items() if isinstance(a, Clip)}
    if not isinstance(draft.student, ByCount):  # neurons with a state have no staircase: they clip between two outputs
        lows |= {name: -math.inf for name, a in draft.activations.items() if isinstance(a, Curve)}
    recorded: dict[str, Range] = {}
    if lows:
        if batches is None:
            layer = draft.graph.by_name[next(iter(lows))].layer
            raise draft.no_data(layer, "has no threshold of its own")
        recorded = (
            {name: _unfitted(draft, draft.graph.by_name[name]) for name in lows}
            if mode is None and not any(lows.values())
            else recorded_ranges(draft, batches, mode or "max", granularity, lows)
        )
    if isinstance(draft.student, ByCount):
        add_staircases(draft, batches)
    for name, activation in draft.activations.items():
        node = draft.graph.by_name[name]
        if name in draft.neurons:  # a staircase
            continue
        if isinstance(activation, Quantised):
            theta = draft.graph.tensors[activation.v_threshold]
            if not bool((theta > 0).all()):
                raise CalibrationError(
                    f"layer '{node.layer}' has a threshold that is not above 0, so its neurons cannot fire: train on "
                    "with a lower learning rate (best for the thresholds alone), or from a larger start value"
                )
            draft.neurons[name] = draft.student.neuron(draft, node, theta, 0.0)
        else:
            low, high = recorded[name]
            if node.target == ENCODE and isinstance(draft.student, ByCount) and bool((low < 0).any()):
                draft.neurons[name] = _signed(draft, node, low, high)
                continue
            theta = above_zero(high - low, levels_of(draft.steps_of(name), draft.code))
            if isinstance(activation, Clip):  # a channel that was always at the upper end does not send more either
                end = torch.tensor(activation.high, dtype=torch.float64).to(low)
                low = torch.where(low >= end, end - theta, low)
            # One number where all channels reach the activation's own bound.
            bound = bool((low == torch.tensor(lows[name], dtype=torch.float64).to(low)).all())
            offset = lows[name] if bound else node_shape(low, node)
            draft.neurons[name] = draft.student.neuron(draft, node, node_shape(theta, node), offset)


def _unlike(draft: Draft) -> str:
    """What to say of a network trained for other levels than it would have, where no data were given."""
    name = draft.first_unlike or ""
    layer, activation = draft.graph.by_name[name].layer, draft.activations[name]
    has, trained = levels_of(draft.steps_of(name), draft.code), getattr(activation, "levels", 0)
    return (
        f"layer '{layer}' was trained with {trained} levels and would have {has} here, so it needs data: pass "
        f"calibration= (inputs, no labels). None are needed in code 'sorted' at T={trained}, or at a larger T with "
        f"layers={{'{layer}': parspike.Steps({trained})}}"
    )


def _signed(draft: Draft, node: Node, low: Tensor, high: Tensor) -> SignedNeuron:
    """A pair of neurons for values between these ends, (C,) each."""
    T = draft.steps_of(node.name)
    theta = above_zero((high - low) / 2, levels_of(T, draft.code))
    middle = node_shape((high + low) / 2, node)
    return SignedNeuron(T, node_shape(theta, node), offset=middle, code=draft.code)


def _unfitted(draft: Draft, node: Node) -> Range:
    like = next((t for t in draft.graph.tensors.values() if t.is_floating_point()), torch.empty(()))
    one = like.new_ones(node.channels)
    return torch.zeros_like(one), one


def _per_channel(neuron: ParallelNeuron, node: Node) -> None:
    """Give δ and φ one entry a channel; θ stays as it is (method.md: QCFS keeps its scalar)."""
    shape = node_shape(torch.zeros(node.channels), node).shape
    neuron.shift.data = neuron.shift.expand(shape).clone()
    neuron.v_post.data = neuron.v_post.expand(shape).clone()


def _blend(parameter: Tensor, target: Tensor, node: Node, alpha: float) -> None:
    parameter.mul_(alpha).add_(node_shape(target, node, parameter), alpha=1 - alpha)


def clipped(draft: Draft, node: Node, z: Tensor, args: tuple[Any, ...]) -> Tensor:
    """The teacher's activation: QCFS with T̃ levels, or ClipReLU with the recorded thresholds."""
    activation, neuron = draft.activations[node.name], draft.neurons[node.name]
    if isinstance(activation, Quantised):
        return qcfs(z, args[1], activation.levels)
    if not isinstance(neuron, ParallelNeuron):
        return call(node.target, args, node.kwargs)
    low = neuron.offset
    z = torch.maximum(z, low) if isinstance(low, Tensor) else z.clamp(min=low)
    return torch.minimum(z, neuron.v_threshold + low if neuron.offsets else neuron.v_threshold)


class _Mean:
    """Mean per channel over all batches, in float64: independent of how the data are cut into batches.

    Each batch has its own sum, and the sums are added in the order of the batches. The result does not depend on which
    process computed which sum.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, node: Node) -> None:
        rows = by_channel(x, node).double()
        self.parts.append((rows.sum(1), torch.tensor(rows.shape[1], device=rows.device)))

    @property
    def mean(self) -> Tensor:
        totals, numbers = zip(*self.batches.gather(self.parts), strict=True)
        return sum(totals, torch.zeros_like(totals[0])) / sum(numbers, torch.zeros_like(numbers[0]))
