"""Max-norm: the threshold of a layer is its largest activation.

Diehl, Neil, Binas, Cook, Liu and Pfeiffer, "Fast-classifying, high-accuracy spiking deep networks through weight and
threshold balancing", IJCNN 2015 (data-based normalisation).

    W ← W λ_{l−1}/λ_l, b ← b/λ_l, θ = 1      is the same as      θ_l = λ_l, W and b as they are,

with λ_l the largest activation of layer l on the calibration images. m = v + z, one spike where m ≥ θ, then the reset.
v(0) = 0. The authors reset to zero; subtracting θ came later (Rueckauer et al. 2017) and is the default here.

Verified: the equivalence above. Not verified: their Poisson input, which is a constant current here, as in all later
methods; and their networks, which have no bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parspike.baselines.base import Baseline
from parspike.calibrate import Batches, Draft
from parspike.calibrate.daqcfs import Granularity, check_granularity, initial_neurons
from parspike.errors import OptionError
from parspike.neurons import IntegrateFire
from parspike.neurons.dynamics import RESETS, Reset

__all__ = ["MaxNorm"]


@dataclass(frozen=True)
class MaxNorm(Baseline):
    """θ = the largest activation of the layer (or "channel"), v(0) = 0. reset: "subtract" θ, or to "zero"."""

    name: ClassVar[str] = "max-norm"
    cite: ClassVar[str] = "Diehl et al., IJCNN 2015"
    reset: Reset = "subtract"
    granularity: Granularity = "layer"

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        if self.reset not in RESETS:
            raise OptionError(f"reset must be one of {', '.join(RESETS)}, got {self.reset!r}")

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, "max", self.granularity)
        for neuron in draft.neurons.values():
            if isinstance(neuron, IntegrateFire):
                neuron.reset = self.reset
