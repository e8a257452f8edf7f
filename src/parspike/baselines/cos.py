"""COS: every neuron looks at ρ steps of its input, and starts from a potential that corrects one spike.

Hao, Ding, Bu, Huang and Yu, "Bridging the Gap between ANNs and SNNs by Calibrating Offset Spikes", ICLR 2023.

Starts from a network trained with QCFS, whose thresholds it takes. A neuron runs its first ρ input currents as an IF
neuron, v(0) = θ/2, reset by θ, and sends nothing. With N its spikes and v(ρ) what is left, per neuron and sample:

    v(ρ) < 0 and N > 0 (a spike too many):  v(0) = θ/2 − max(θ, min over its spikes of m(t) − 0.999 θ)
    v(ρ) ≥ θ (a spike is missing):          v(0) = θ/2 + max(θ, 1.001 θ − max over its silent steps of v(t))
    otherwise:                              v(0) = θ/2

Then it runs the T steps from that v(0), on the same input from its first step on. A layer must have what it looks at
from the layer before, so an answer costs ρ + T steps (`Simulation.paid`). Read in the authors' program.

Verified: the neuron against these rules, spike by spike; where nothing is to be corrected it is IF. Their figures are
of CIFAR-100 and ImageNet networks that are not here, so none is reproduced. Differs from the authors' program: one
correction, which is their default; a neuron that fired in all ρ steps is shifted by θ, since no silent step is there to
take a maximum of. They report T < ρ out of a longer run, where ρ stays; here a conversion for T < ρ looks at T steps
(`snn.provenance["search"]["looks_at"]`), and `snn.run(x, every_step=True)` on T ≥ ρ gives their figure after each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from parspike.baselines.base import Baseline, Own, places
from parspike.baselines.parts import OneThreshold, check_between, shown
from parspike.calibrate import Batches, Draft
from parspike.calibrate.daqcfs import initial_neurons
from parspike.neurons import MAX_T, Kind, Simulation, State

__all__ = ["COS", "OffsetSpike"]

MARGIN = 1e-3
"""As a fraction of θ."""


class OffsetSpike(OneThreshold):
    """IF neurons whose v(0) is chosen by their first input currents. v_threshold: θ, broadcasting against one sample.
    looks_at: ρ."""

    kind = "offset-spike"
    starts = 0.5
    options = ("looks_at",)

    def __init__(self, v_threshold: Tensor, looks_at: int) -> None:
        super().__init__(v_threshold)
        self.lookahead = self.looks_at = check_between("looks_at", looks_at, 1, MAX_T)

    def step(self, state: State, z: Tensor, t: int) -> tuple[State, Tensor, Tensor]:
        m, theta = state["v"] + z, self.v_threshold
        spike = (m >= theta).to(z.dtype)
        current = spike * theta
        return {"v": m - current}, current, spike

    def advance(self, state: State | None, z: Tensor, t: int = 0) -> tuple[State, Tensor, Tensor]:
        if state is None:
            if len(z) < self.lookahead:
                raise ValueError(f"the first block has {len(z)} steps, the neurons look at {self.lookahead}")
            state = self._corrected(z[: self.lookahead])
        return super().advance(state, z, t)

    def _corrected(self, z: Tensor) -> State:
        theta, state = self.v_threshold, self.start(z[0])
        begin = state["v"]
        least, highest, count = torch.full_like(begin, torch.inf), torch.full_like(begin, -torch.inf), 0
        for now in z:
            m = state["v"] + now
            state, _, spike = self.step(state, now, 0)
            fires = spike > 0
            least = torch.where(fires, torch.minimum(least, m), least)
            highest = torch.where(fires, highest, torch.maximum(highest, m))
            count = count + spike
        v = state["v"]
        too_many, missing = (v < 0) & (count > 0), v >= theta
        highest = torch.where(highest.isfinite(), highest, theta)
        down = torch.where(too_many, torch.maximum(theta, least - (1 - MARGIN) * theta), 0.0)
        up = torch.where(missing, torch.maximum(theta, (1 + MARGIN) * theta - highest), 0.0)
        return {"v": begin - down + up}

    def example(self, z: Tensor) -> Tensor:
        return self.step(self.start(z), z, 0)[1]

    def unfit(self, T: int) -> str | None:
        return None if self.lookahead <= T else f"they look at {self.lookahead} steps, the network runs {T}"

    @property
    def label(self) -> str:
        return f"cos:{self.lookahead}"

    def extra_repr(self) -> str:
        return f"{shown(self.v_threshold)}, looks at {self.lookahead} steps"


@dataclass(frozen=True)
class COS(Baseline):
    """Offset spikes corrected. looks_at: ρ, at most T steps of it; the authors take 4 on CIFAR-100, 8 on ImageNet."""

    name: ClassVar[str] = "cos"
    cite: ClassVar[str] = "Hao et al., ICLR 2023"
    makes: ClassVar[Kind | None] = Own(method="cos", v_init="half")
    needs_qcfs: ClassVar[bool] = True
    looks_at: int = 4

    def __post_init__(self) -> None:
        check_between("looks_at", self.looks_at, 1, MAX_T)

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        steps = min(self.looks_at, draft.T)
        if steps < self.looks_at:
            draft.notes["looks_at"] = steps
        initial_neurons(draft, batches)
        for name in places(draft):
            theta: Any = draft.neurons[name].v_threshold
            draft.neurons[name] = OffsetSpike(theta, steps)
        draft.simulation = Simulation(draft.T, paid=steps)
