"""QCFS: a network trained with quantised activations, run on integrate-and-fire neurons as it is.

Bu, Fang, Ding, Dai, Yu and Huang, "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural
networks", ICLR 2022.

    trained activation  a = λ clip(⌊z L/λ + 1/2⌋/L, 0, 1);   then θ = λ, v(0) = θ/2
    m = v + z, one spike where m ≥ θ, v = m − θ; weights as they are, T free of L

Verified: read in the authors' code. For a constant current and T = L the neuron's mean output is a itself. Behind the
first layer currents change over time, which costs accuracy at few steps ("unevenness"). Differs: they replace
max-pools by mean pools before training (`with_qcfs(pool="avg")` does); a network with max-pools is taken too, where
ours are f of the mean so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parspike.baselines.base import Baseline
from parspike.calibrate import Batches, Draft
from parspike.calibrate.daqcfs import initial_neurons
from parspike.neurons import IF, Kind

__all__ = ["QCFSIF"]


@dataclass(frozen=True)
class QCFSIF(Baseline):
    """θ = the threshold that QCFS was trained with, v(0) = θ/2. Needs no data; a batch as example= is enough."""

    name: ClassVar[str] = "qcfs-if"
    cite: ClassVar[str] = "Bu et al., ICLR 2022"
    makes: ClassVar[Kind | None] = IF(v_init="half")
    needs_qcfs: ClassVar[bool] = True

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches)
