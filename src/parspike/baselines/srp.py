"""SRP: τ steps first, in which every neuron finds out whether it is to be silent.

Hao, Bu, Ding, Huang and Yu, "Reducing ANN-SNN Conversion Error through Residual Membrane Potential", AAAI 2023.

Starts from a network trained with QCFS, whose thresholds it takes. All neurons run τ steps as IF neurons, v(0) = θ/2,
reset by θ. A neuron whose potential is then at most 0.001 θ should have had the output 0, and sends nothing from here
on (per neuron and sample). Then all potentials are θ/2 again and T steps follow, which alone are read; an answer costs
τ + T steps. The mask, the restart and 0.001 were read in the authors' program; the paper's condition is v(τ) ≥ 0.

Verified: the neuron against these rules, spike by spike; with a mask of ones it is IF. Their figures are of CIFAR-100
and ImageNet networks that are not here, so none is reproduced. Differs from the authors' program: potentials that are
exactly at the margin may fall to the other side, since their program computes in units of θ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from parspike.baselines.base import Baseline, Own, places
from parspike.baselines.parts import OneThreshold, check_between, shown
from parspike.calibrate import Batches, Draft
from parspike.calibrate.daqcfs import initial_neurons
from parspike.neurons import MAX_T, Kind, Simulation, State

__all__ = ["SRP", "MaskedNeuron"]

MARGIN = 1e-3
"""As a fraction of θ."""


class MaskedNeuron(OneThreshold):
    """IF neurons, v(0) = θ/2, of which some are silent in the second phase. v_threshold: θ, broadcasting against one
    sample."""

    kind = "masked"
    starts = 0.5

    def step(self, state: State, z: Tensor, t: int) -> tuple[State, Tensor, Tensor]:
        m, theta = state["v"] + z, self.v_threshold
        spike = (m >= theta).to(z.dtype)
        now = {**state, "v": m - spike * theta}
        if "mask" in state:  # a silenced neuron integrates and is reset like the others
            spike = spike * state["mask"]
        return now, spike * theta, spike

    def next_phase(self, state: State) -> State | None:
        mask = (state["v"] > MARGIN * self.v_threshold).to(state["v"].dtype)
        return {**self.start(state["v"]), "mask": mask}

    @property
    def label(self) -> str:
        return "srp"

    def extra_repr(self) -> str:
        return f"{shown(self.v_threshold)}, silent where the first phase ends at 0"


@dataclass(frozen=True)
class SRP(Baseline):
    """A mask found in `probe` steps before the T steps. probe: τ; the authors take 4 on CIFAR-100, 14 for VGG-16 and 8
    for ResNet-34 on ImageNet."""

    name: ClassVar[str] = "srp"
    cite: ClassVar[str] = "Hao et al., AAAI 2023"
    makes: ClassVar[Kind | None] = Own(method="srp", v_init="half")
    needs_qcfs: ClassVar[bool] = True
    probe: int = 4

    def __post_init__(self) -> None:
        check_between("probe", self.probe, 1, MAX_T)

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches)
        for name in places(draft):
            theta: Any = draft.neurons[name].v_threshold
            draft.neurons[name] = MaskedNeuron(theta)
        draft.simulation = Simulation(draft.T, probe=self.probe)
