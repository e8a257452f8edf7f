"""RMP-SNN: neurons that keep what is left of their potential, thresholds found in the spiking network itself.

Han, Srinivasan and Roy, "RMP-SNN: Residual membrane potential neuron for enabling deeper high-accuracy and
low-latency spiking neural network", CVPR 2020.

    m = v + z, one spike where m ≥ θ, v = m − θ (the reset that keeps the residual), v(0) = 0
    θ_l = α · max over time-steps and samples of z_l, in the spiking network whose earlier thresholds are set

Verified: the reset (abstract). From memory, not verified: the rule for θ and its factor α, "about 0.7 to 0.9"; 0.8 is
our middle of that. Differs: their input is Poisson spikes, ours a constant current; their networks have neither bias
nor batch norm, here both are in z. The last layer has no neurons. Currents may be far above the bound of a ReLU6, and
θ is not: it is at most that bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parspike.baselines.base import Baseline, check_number, largest, layers, over_set, set_threshold, sought
from parspike.calibrate import Batches, Draft
from parspike.calibrate.daqcfs import initial_neurons
from parspike.calibrate.lockstep import Lockstep

__all__ = ["RMP"]


@dataclass(frozen=True)
class RMP(Baseline):
    """θ = alpha × the largest input current of a time-step, layer after layer in the spiking network; v(0) = 0."""

    name: ClassVar[str] = "rmp"
    cite: ClassVar[str] = "Han, Srinivasan and Roy, CVPR 2020"
    alpha: float = 0.8

    def __post_init__(self) -> None:
        check_number(self.alpha, "alpha", 0, 10)

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, None)
        wanted = sought(draft)
        if batches is None or not wanted:
            return
        lockstep = Lockstep(draft, batches)
        for node, _ in layers(draft, "thresholds of the spiking network"):
            if node.name in wanted:
                top = largest(over_set(lockstep, node, lambda a, z: (z.amax(),)))
                set_threshold(draft, node.name, self.alpha * top)
