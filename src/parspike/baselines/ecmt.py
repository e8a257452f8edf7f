"""ECMT's multi-threshold neuron: one spike a step, of one of n sizes, and spikes that take earlier ones back.

Huang, Shi, Hao, Bu, Ding, Yu and Huang, "Towards High-performance Spiking Transformers from ANN to SNN Conversion",
ACM Multimedia 2024.

    m = v + z;  the largest λ_k = θ/2^(k−1), k = 1 … n, with |m| ≥ 3/4 λ_k is sent with the sign of m;
    v = m − what was sent;  v(0) = 0.

For ReLU a negative spike is sent only where what was sent so far adds up to at least its size. A step says one of
2n + 1 things.

Verified: the neuron against these rules, spike by spike; of one threshold without negative drive, it is IF with the
initial potential at which 3/4 θ fires. 3/4 λ_k, the nearest of the levels, was read in the program of `dcgs`, whose
authors are nearly the same; the program of this paper fires at |m| ≥ λ_k − λ_n/2 (`fires="half"`), which leaves up to
half of m behind and loses much at few steps. Differs from the authors' program: theirs stand in front of the linear
layers of transformers, where they have two signs and two ranges, and other operators are computed on means over time,
which is what parspike does with every operator that is not linear. Their smallest level is the 99 % quantile, from
which n − 1 doublings reach far larger values; a ReLU would have no level below it, so here the largest level θ is the
range of the activation: its largest value, a percentile, or the best one for a Gaussian input (`gaussian_scale`). Where
an activation has an upper bound (ReLU6, QCFS), θ is at most that bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from parspike.baselines.base import Own
from parspike.baselines.parts import MOST_THRESHOLDS, OneThreshold, Ranged, check_between, full_scales, shown
from parspike.calibrate import Batches, Draft
from parspike.calibrate.daqcfs import Granularity
from parspike.errors import OptionError
from parspike.neurons import Kind, State

__all__ = ["ECMT", "Fires", "MultiThreshold"]

SLACK = 1e-3
"""Smallest levels that the sum of a differential neuron's currents may lie beyond its bounds, 0 and θ: it is often just
at one of them, and rounding shall not decide."""
Fires = Literal["nearest", "half"]
"""Where a level λ_k fires: where it is the nearest of the levels, at 3/4 λ_k, or half the smallest level below it."""


class MultiThreshold(OneThreshold):
    """The neuron of the module's equations, or that of `parspike.baselines.dcgs`. v_threshold: θ, broadcasting against
    one sample. thresholds: n. fires: see `Fires`. differential: whether it sends increments of its mean output.
    bounded: whether its mean output is at most θ, which without `differential` it always is.
    """

    kind = "multi-threshold"
    options = ("thresholds", "fires", "differential", "bounded")
    takes_back = True

    def __init__(
        self, v_threshold: Tensor, thresholds: int, *, fires: Fires = "nearest", differential: bool = False,
        bounded: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(v_threshold)
        self.thresholds = check_between("thresholds", thresholds, 1, MOST_THRESHOLDS)
        if fires not in get_args(Fires):
            raise ValueError(f"fires must be one of {', '.join(get_args(Fires))}, got {fires!r}")
        if not isinstance(differential, bool) or not isinstance(bounded, bool):
            raise ValueError("differential and bounded must be True or False")
        if bounded and not differential:
            raise ValueError("bounded is of differential neurons")
        self.fires, self.differential, self.bounded = fires, differential, bounded

    def amplitudes(self) -> None:
        return None  # a spike says that a level is sent, not which

    @property
    def messages(self) -> int:
        return 2 * self.thresholds + 1

    def levels_in(self, T: int) -> int:
        """How many sums above 0 of T levels, each added, taken back or left out, there are. What a differential neuron
        sends at step t counts T/t as much in the mean, so that it can have more outputs, but not at an even distance;
        it has the same number here."""
        sums, few = 1, min(T, 2 * self.thresholds)  # bit j: whether j smallest levels is such a sum
        for _ in range(few):
            before = sums
            for place in range(self.thresholds):
                sums |= before << (1 << place) | before >> (1 << place)
        return sums.bit_count() - 1 + (T - few) * (1 << (self.thresholds - 1))

    def start(self, z: Tensor) -> State:
        return {**super().start(z), "mean" if self.differential else "sum": torch.zeros_like(z)}

    def step(self, state: State, z: Tensor, t: int) -> tuple[State, Tensor, Tensor]:
        # held: what a silent neuron causes behind it, the mean so far. total: the sum of the currents with it, in units
        # of the smallest level; without `differential` a whole number, which no rounding makes less than it is.
        unit = self.v_threshold * 0.5 ** (self.thresholds - 1)
        held = state["mean"] if self.differential else None
        m = state["v"] + z if held is None else state["v"] + z - held
        total = state["sum"] if held is None else held * (t + 1) / unit + SLACK
        size = m.abs() / unit + 0.5 if self.fires == "half" else m.abs() / (0.75 * unit)
        back = m < 0
        size = torch.where(back, torch.minimum(size, total), size)
        if self.bounded:
            size = torch.where(
                back, size, torch.minimum(size, (t + 1) * 2.0 ** (self.thresholds - 1) - total + 2 * SLACK)
            )
        units = _power_below(size.clamp(0, 2.0 ** (self.thresholds - 1)))
        units = torch.where(back, -units, units)
        sent = units * unit
        if held is None:
            return {"v": m - sent, "sum": total + units}, sent, units.sign()
        return {"v": m - sent, "mean": held + sent / (t + 1)}, held + sent, units.sign()

    @property
    def label(self) -> str:
        return f"{'dcgs' if self.differential else 'ecmt'}:{self.thresholds}"

    def extra_repr(self) -> str:
        what = "increments" if self.differential else "spikes"
        return f"{shown(self.v_threshold)}, {what} of {self.thresholds} sizes"


def _power_below(x: Tensor) -> Tensor:
    """The largest power of two that is at most x, 0 for x below 1."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    bits, exponent = (torch.int64, 0x7FF << 52) if wide.dtype == torch.float64 else (torch.int32, 0xFF << 23)
    power = (wide.contiguous().view(bits) & exponent).view(wide.dtype)  # a float without its mantissa
    return torch.where(wide >= 1, power, 0.0).to(x.dtype)


@dataclass(frozen=True)
class ECMT(Ranged):
    """Multi-threshold neurons, options as in `Ranged`. fires: see `Fires`."""

    name: ClassVar[str] = "ecmt"
    cite: ClassVar[str] = "Huang et al., ACM Multimedia 2024"
    makes: ClassVar[Kind | None] = Own(method="ecmt", v_init="zero")
    thresholds: int = 8
    mode: str = "99.9%"
    granularity: Granularity = "layer"
    fires: Fires = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fires not in get_args(Fires):
            raise OptionError(f"fires must be one of {', '.join(get_args(Fires))}, got {self.fires!r}")

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        levels = draft.T * 2 ** (self.thresholds - 1)
        for name, scale in full_scales(draft, batches, self.mode, self.granularity, levels).items():
            draft.neurons[name] = MultiThreshold(scale, self.thresholds, fires=self.fires)
