"""Burst: a neuron may send up to Γ spikes in one step.

Li and Zeng, "Efficient and Accurate Conversion of Spiking Neural Network with Burst Spikes", IJCAI 2022.

    m = v + z;  n = clip(⌊m/θ⌋, 0, Γ);  v = m − n θ;  v(0) = 0,

one θ for a layer: of its activations, those above 1 divided by Γ, the 0.999 quantile. Read in the authors' program, as
is their pooling by lateral inhibition (LIPooling): every place of a window adds up its spikes, the increase of the
largest sum is sent on, and what was sent is subtracted from all places, so that the winner inhibits the losers. That is
what parspike does at every max-pool that spikes go into, so no option is needed. A max-pool directly behind an
activation that nothing else reads goes in front of it, as for every method (`graph.rewrite`): there it pools the mean
input currents, and one neuron stands for a window.

Verified: the neuron against these equations, spike by spike; Γ = 1 is IF; θ against the rule written by hand; max-pool
against a pooling that keeps and inhibits sums as above, equal at every step. Differs from the authors' program: the
max-pools that go in front, as said; θ comes from all calibration images, where they take one batch, and is of nearest
rank; weights stay as they are (W λ_{l−1}/λ_l with θ = 1 is the same); the last layer is not scaled. They know ReLU
alone: where an activation has an upper bound (ReLU6, QCFS), θ is at most that bound over Γ, so that Γ spikes a step are
the bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from parspike.baselines.base import Baseline, Own, bounds, on_activations, places, sought
from parspike.baselines.parts import check_between, check_tensors, fixed, shown
from parspike.calibrate import Batches, Draft
from parspike.calibrate.daqcfs import initial_neurons
from parspike.calibrate.percentile import Selection, select
from parspike.graph import Node
from parspike.neurons import Dynamics, Kind, State

__all__ = ["MOST", "Burst", "BurstNeuron"]

MOST = 1024
"""Spikes of one step at most."""
SHARE = 0.999


class BurstNeuron(Dynamics):
    """The neuron of the module's equations. v_threshold: θ; bias: a current added to the input at every step, 0 here;
    each broadcasts against one sample. most: Γ."""

    kind = "burst"

    def __init__(self, v_threshold: Tensor, most: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.largest = check_between("most", most, 1, MOST)
        self.v_threshold = fixed(v_threshold)
        self.bias = fixed(torch.zeros_like(v_threshold) if bias is None else bias)

    def rest(self) -> float:
        return 0.0

    def amplitudes(self) -> Tensor:
        return self.v_threshold[None]

    def start(self, z: Tensor) -> State:
        return {"v": torch.zeros_like(z)}

    def step(self, state: State, z: Tensor, t: int) -> tuple[State, Tensor, Tensor]:
        theta = self.v_threshold
        m = state["v"] + z + self.bias
        spikes = torch.div(m, theta).floor_().clamp_(0, self.largest)
        current = spikes * theta
        return {"v": m - current}, current, spikes

    @property
    def label(self) -> str:
        return f"burst:{self.largest}"

    def extra_repr(self) -> str:
        return f"{shown(self.v_threshold)}, up to {self.largest} spikes a step"

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "most": self.largest}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BurstNeuron:
        check_tensors(tensors, "v_threshold", "bias")
        return cls(tensors["v_threshold"], config["most"], tensors["bias"])


@dataclass(frozen=True)
class Burst(Baseline):
    """Burst neurons. most: Γ, spikes of one step at most; the default is that of the authors' class, their script for
    CIFAR-100 has 2."""

    name: ClassVar[str] = "burst"
    cite: ClassVar[str] = "Li & Zeng, IJCAI 2022"
    makes: ClassVar[Kind | None] = Own(method="burst", v_init="zero")
    most: int = 5

    def __post_init__(self) -> None:
        check_between("most", self.most, 1, MOST)

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, None)
        clips = sought(draft)
        found = self._quantiles(draft, batches, clips) if clips and batches is not None else {}
        most = {name: bound / self.most for name, bound in bounds(draft).items()}
        for name in places(draft):
            theta = found[name] if name in found else most[name]
            draft.neurons[name] = BurstNeuron(torch.minimum(theta, most[name]) if name in most else theta, self.most)

    def _quantiles(self, draft: Draft, batches: Batches, names: list[str]) -> dict[str, Tensor]:
        """θ of each layer, by node name."""
        made = {name: Selection(SHARE) for name in names}

        def record(node: Node, a: Tensor) -> Tensor:
            if node.name in made:
                made[node.name].add(torch.where(a > 1, a / self.most, a).reshape(1, -1))
            return a

        select(draft, batches, made, on_activations(draft, record), "quantiles")
        found: dict[str, Tensor] = {}
        for name, selection in made.items():
            # Where nearly all outputs are 0 the largest stands in, and 1 where all are.
            theta, largest = selection.value.squeeze(0), selection.largest.squeeze(0)
            theta = torch.where(theta > 0, theta, largest)
            found[name] = torch.where(theta > 0, theta, torch.ones_like(theta))
        return found
