"""What several methods with neurons of their own share: checks of their neurons, and the ranges of activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from parspike.baselines.base import Baseline, bounds, places
from parspike.calibrate import Batches, Draft
from parspike.calibrate.channels import above_zero, by_channel, check_finite, node_shape
from parspike.calibrate.daqcfs import Granularity, check_granularity, initial_neurons
from parspike.errors import OptionError
from parspike.graph import Clip, Node
from parspike.graph.ops import call
from parspike.neurons import Dynamics, State
from parspike.neurons.percentile import share_of

__all__ = [
    "GAUSSIAN",
    "MOST_THRESHOLDS",
    "OneThreshold",
    "Ranged",
    "check_between",
    "check_scale",
    "check_tensors",
    "fixed",
    "full_scales",
    "gaussian_scale",
    "shown",
]

GAUSSIAN = "gaussian"
MOST_THRESHOLDS = 16
"""Thresholds of a neuron at most."""
MOST = 256
"""Levels that are told apart when a range is fitted to a Gaussian: with more, an output is all but a real number."""


def check_between(name: str, value: object, least: int, most: int) -> int:
    """The value, which must be a whole number from `least` to `most`. Raises `OptionError`, which is a ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise OptionError(f"{name} must be an integer from {least} to {most}, got {value!r}")
    return value


def check_tensors(tensors: Mapping[str, Tensor], *names: str) -> None:
    """Raise ValueError unless these are the tensors of neurons from a file, of one dtype, thresholds above 0."""
    if set(tensors) != set(names):
        raise ValueError(f"the tensors are {', '.join(sorted(tensors))[:80]}, expected {', '.join(names)}")
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        raise ValueError("the tensors have unlike dtypes")
    if not bool((tensors["v_threshold"] > 0).all()):
        raise ValueError("thresholds must be above 0")


def fixed(value: Tensor) -> nn.Parameter:
    """A tensor of neurons: their own copy, which no gradient changes."""
    return nn.Parameter(value.detach().clone(), requires_grad=False)


class OneThreshold(Dynamics):
    """Base of neurons whose only tensor is θ, broadcasting against one sample, and which send nothing when silent.

    starts: v(0) as a share of θ. options: the names of the constructor's other arguments, which are attributes too and
    what a file holds beside θ.
    """

    starts: float = 0.0
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, v_threshold: Tensor) -> None:
        super().__init__()
        self.v_threshold = fixed(v_threshold)

    def rest(self) -> float:
        return 0.0

    def amplitudes(self) -> Tensor | None:
        return self.v_threshold[None]

    def start(self, z: Tensor) -> State:
        return {"v": (self.v_threshold * self.starts).to(z.dtype).expand_as(z).clone()}

    def config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("kind", *self.options)}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        check_tensors(tensors, "v_threshold")
        return cls(tensors["v_threshold"], **{name: config[name] for name in cls.options})


@dataclass(frozen=True)
class Ranged(Baseline):
    """Base of the methods with n thresholds a neuron. thresholds: n. mode: "gaussian", "max" or a percentile such as
    "99.9%", and granularity: what the range of a "channel" or "layer" is taken from, see `full_scales`."""

    thresholds: int = 4
    mode: str = GAUSSIAN
    granularity: Granularity = "channel"

    def __post_init__(self) -> None:
        check_between("thresholds", self.thresholds, 1, MOST_THRESHOLDS)
        check_scale(self.mode)
        check_granularity(self.granularity)


def shown(v_threshold: Tensor) -> str:
    """Thresholds as text."""
    return f"θ {float(v_threshold.min()):.4g} … {float(v_threshold.max()):.4g}"


def check_scale(mode: object) -> None:
    """Raise `OptionError` unless this is a `mode` of `full_scales`."""
    if mode != GAUSSIAN and share_of(mode) is None:
        raise OptionError(f"mode = {mode!r}: give 'max', a percentile such as '99.9%', or '{GAUSSIAN}'")


def full_scales(
    draft: Draft, batches: Batches | None, mode: str, granularity: Granularity, levels: int
) -> dict[str, Tensor]:
    """The largest output that neurons shall have, by node name, shaped to broadcast against one sample.

    mode: "max" or a percentile of what the activation gives on the calibration images (`Thresholds`), or "gaussian":
    the range of least squared error for `levels` even levels, if what goes into the activation is Gaussian
    (`gaussian_scale`), channel by channel. QCFS has its own range, and no range exceeds the activation's bound.
    """
    gaussian = mode == GAUSSIAN
    initial_neurons(draft, batches, None if gaussian else mode, granularity)
    scales: dict[str, Any] = {name: draft.neurons[name].v_threshold for name in places(draft)}
    clips = [name for name in scales if isinstance(draft.activations[name], Clip)]
    if gaussian and clips and batches is not None:
        for name, (mean, std) in _moments(draft, batches, clips).items():
            node = draft.graph.by_name[name]
            if granularity == "layer":
                std = ((std.square() + mean.square()).mean() - mean.mean().square()).clamp(min=0).sqrt().expand_as(std)
                mean = mean.mean().expand_as(mean)
            scale = gaussian_scale(mean, std, levels).to(scales[name].dtype)
            scales[name] = node_shape(above_zero(scale, levels), node)
    for name, bound in bounds(draft).items():
        if name in clips:
            scales[name] = torch.minimum(scales[name], bound.to(scales[name]))
    return scales


def _moments(draft: Draft, batches: Batches, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of what goes into activations, (C,) each, by node name, in float64."""
    parts: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in names}

    def record(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        rows = by_channel(args[0], node).double()
        number = torch.tensor(float(rows.shape[1]), dtype=rows.dtype, device=rows.device)
        parts[node.name].append((number, rows.mean(1), rows.var(1, correction=0)))
        return [call(node.target, args, node.kwargs)]

    draft.watch(batches, dict.fromkeys(names, record), "recording means and deviations")
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        numbers, means, squares = (torch.stack(each) for each in zip(*batches.gather(parts[name]), strict=True))
        share = (numbers / numbers.sum())[:, None]
        mean = (share * means).sum(0)
        variance = (share * (squares + (means - mean).square())).sum(0)
        check_finite(draft.graph.by_name[name], variance)
        found[name] = mean, variance.sqrt()
    return found


def gaussian_scale(mean: Tensor, std: Tensor, levels: int) -> Tensor:
    """The range S of ReLU outputs q·d, d = S/levels, q = 0 … levels the nearest, of least squared error for an input
    z ~ N(mean, std²): (C,).

    The error is E[relu(z)²] − 2 d E[z q] + d² E[q²]; with u_i = ((i − 1/2) d − mean) / (√2 std), i = 1 … levels,
    E[z q] = Σ mean/2 erfc(u_i) + std/√(2π) exp(−u_i²) and E[q²] = Σ (2i − 1)/2 erfc(u_i). "Threshold iteration" goes on
    with S·E[z q]/(d E[q²]) until S stays, which is where this error is least; with many levels that takes thousands of
    steps, so the least error is searched for instead, to 0.2 % of S. 0 where a channel gives nothing. Of more than 256
    levels, so many are told apart.
    """
    levels = min(levels, MOST)
    mean, std = mean.double()[:, None], std.double()[:, None].clamp(min=1e-30)
    cut = torch.arange(levels, dtype=torch.float64, device=mean.device) + 0.5

    def error(scale: Tensor) -> Tensor:
        step = scale / levels
        u = (cut * step - mean) / (math.sqrt(2) * std)
        above = torch.special.erfc(u) / 2
        zq = (mean * above + std / math.sqrt(2 * math.pi) * torch.exp(-u.square())).sum(1, keepdim=True)
        return step.square() * (2 * cut * above).sum(1, keepdim=True) - 2 * step * zq

    top = (mean + 6 * std).clamp(min=0)
    best = top / 10
    for width, tries in ((10.0, 20), (1.3, 13), (1.05, 13)):
        tried = torch.logspace(-1, 1, 2 * tries + 1, base=width, dtype=torch.float64).tolist()
        found = torch.stack([error(best * ratio) for ratio in tried]).argmin(0)
        best = best * torch.tensor(tried, dtype=torch.float64, device=best.device)[found]
    return torch.where(error(best) < 0, best, 0.0)[:, 0]
