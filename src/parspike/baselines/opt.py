"""OPT: thresholds of the largest activation, and half a threshold of extra current over the T steps.

Deng and Gu, "Optimal conversion of conventional artificial neural networks to spiking neural networks", ICLR 2021
(also called RTS or TS).

    θ_l = largest activation of layer l over the set;   δ_l = θ_l/(2 T_ref)
    m = v + z + δ, one spike where m ≥ θ, v = m − θ, v(0) = 0

After T_ref steps δ has added θ/2, which turns the floor of the spike count into rounding.

Verified: read in the authors' code (θ over the whole set, δ added at every step, `shift_snn` = 32 as their default).
From memory: that the expected squared error is of the size θ²/(4T) and least at this shift. Differs: they train the
network with ReLU clipped at one bound, which `parspike` leaves to the network given; their last layer spikes too,
ours is read as it is; T_ref is T unless said otherwise, for which their theory is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parspike.baselines.base import Baseline, check_whole, placed
from parspike.calibrate import Batches, Draft
from parspike.calibrate.daqcfs import Granularity, check_granularity, initial_neurons

__all__ = ["OPT"]


@dataclass(frozen=True)
class OPT(Baseline):
    """θ = the largest activation of the layer, an extra current θ/(2 T_ref) at every step. T_ref: None for T."""

    name: ClassVar[str] = "opt"
    cite: ClassVar[str] = "Deng and Gu, ICLR 2021"
    T_ref: int | None = None
    granularity: Granularity = "layer"

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        if self.T_ref is not None:
            check_whole(self.T_ref, "T_ref")

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, "max", self.granularity)
        for neuron in placed(draft).values():
            neuron.bias.data = neuron.v_threshold.data[None] / (2 * (self.T_ref or draft.T))
