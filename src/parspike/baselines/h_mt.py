"""H-MT: a neuron with n thresholds, each half of the one before, all of which may fire in one step.

"Generalized Threshold Optimization with Harmony Multi-Threshold Neurons for Accurate ANN-to-SNN Conversion" (read: its
abstract and, through shared notes, its equations; authors, place and year were not verified).

    m_1 = v + z;  s_i = [m_i ≥ λ_i],  m_{i+1} = m_i − λ_i s_i,  λ_i = θ/2^(i−1),  i = 1 … n;
    output y = Σ λ_i s_i;  v = m_1 − y;  v(0) = λ_n/2.

A step so sends a whole number of λ_n between 0 and 2^n − 1 in n binary spikes, and T steps have (2^n − 1)·T levels. The
mean output for a constant input z is (λ_n/T)·clip(⌊(z T + λ_n/2)/λ_n⌋, 0, (2^n − 1) T).

The largest output (2 − 2^(1−n)) θ is the range of the activation: its largest value, a percentile, or the range of
least squared error for a Gaussian input, their threshold optimisation (`gaussian_scale`).

Verified: the neuron against these equations, spike by spike; at T = 1 it is the parallel neuron of the weighted code
with n steps; the range for a Gaussian input against a search over ranges. Differs from the authors' method: ReLU alone,
so no pair of neurons of unlike sign and no communication between them; where an activation has an upper bound (ReLU6,
QCFS), the range is at most that bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from parspike.baselines.base import Own
from parspike.baselines.parts import MOST_THRESHOLDS, OneThreshold, Ranged, check_between, full_scales, shown
from parspike.calibrate import Batches, Draft
from parspike.neurons import Kind, State

__all__ = ["HMT", "BinaryThresholds"]


class BinaryThresholds(OneThreshold):
    """The neuron of the module's equations. v_threshold: θ, broadcasting against one sample. thresholds: n.

    The spikes of a step are how many of the thresholds fired; the current says which.
    """

    kind = "binary-thresholds"
    options = ("thresholds",)

    def __init__(self, v_threshold: Tensor, thresholds: int) -> None:
        super().__init__(v_threshold)
        self.largest = self.thresholds = check_between("thresholds", thresholds, 1, MOST_THRESHOLDS)
        self.starts = 2.0**-self.largest

    def amplitudes(self) -> None:
        return None  # a spike says that a level is sent, not which

    @property
    def messages(self) -> int:
        return 2**self.largest

    def levels_in(self, T: int) -> int:
        return T * (2**self.largest - 1)

    def step(self, state: State, z: Tensor, t: int) -> tuple[State, Tensor, Tensor]:
        # The thresholds that fire are the binary digits of how often the smallest one fits into m.
        unit = self.v_threshold * 0.5 ** (self.largest - 1)
        m = state["v"] + z
        digits = torch.div(m, unit).floor_().clamp_(0, 2**self.largest - 1)
        current = digits * unit
        spikes = digits.clone()
        for place in range(1, self.largest):
            spikes -= (digits * 0.5**place).floor_()  # Legendre: their number
        return {"v": m - current}, current, spikes

    @property
    def label(self) -> str:
        return f"h-mt:{self.largest}"

    def extra_repr(self) -> str:
        return f"{shown(self.v_threshold)}, {self.largest} thresholds, any of which fire"


@dataclass(frozen=True)
class HMT(Ranged):
    """Harmony multi-threshold neurons, options as in `Ranged`."""

    name: ClassVar[str] = "h-mt"
    cite: ClassVar[str] = "Generalized Threshold Optimization with Harmony Multi-Threshold Neurons, 2026"
    makes: ClassVar[Kind | None] = Own(method="h-mt", v_init="zero")

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        levels = draft.T * (2**self.thresholds - 1)
        for name, scale in full_scales(draft, batches, self.mode, self.granularity, levels).items():
            draft.neurons[name] = BinaryThresholds(scale / (2 - 2.0 ** (1 - self.thresholds)), self.thresholds)
