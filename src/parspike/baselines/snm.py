"""SNM: a neuron that may take a spike back, with a threshold of its own for every single neuron.

Wang, Zhang, Chen and Qu, "Signed Neuron with Memory: Towards Simple, Accurate and High-Efficient ANN-SNN Conversion",
IJCAI 2022.

    m = v + z;  s = +1 where m ≥ θ,  −1 where m ≤ −θ and M > 0;  v = m − θ s;  M ← M + s;  v(0) = M = 0,

so a spike of −1 takes back one that was sent before, and no output falls below 0. NeuronNorm: θ of each neuron, channel
and place, is its largest activation on the calibration images. Both were read in the authors' program.

Verified: the neuron against these equations, spike by spike; without negative drive it is IF; θ against maxima that are
found by hand. Differs from the authors' program: a neuron that was never active has the largest θ of its layer instead
of 0, with which it would fire for nothing (a layer that was never active, 1); maxima come from the calibration images
alone, not from the test images too; the last layer is the linear layer itself, without neurons; max-pooling stays; a
QCFS layer keeps its own θ, one for all neurons; where samples do not run along the first dimension, θ is one a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from parspike.baselines.base import Baseline, Own, bounds, on_activations, places, sought
from parspike.baselines.parts import OneThreshold, shown
from parspike.calibrate import Batches, Draft
from parspike.calibrate.channels import by_channel, check_finite, node_shape
from parspike.calibrate.daqcfs import initial_neurons
from parspike.graph import Node
from parspike.neurons import Kind, State

__all__ = ["SNM", "SignedMemory"]


class SignedMemory(OneThreshold):
    """The neuron of the module's equations. v_threshold: θ, broadcasting against one sample."""

    kind = "signed-memory"
    takes_back = True

    def start(self, z: Tensor) -> State:
        return {**super().start(z), "sent": torch.zeros_like(z)}

    def step(self, state: State, z: Tensor, t: int) -> tuple[State, Tensor, Tensor]:
        m, theta, sent = state["v"] + z, self.v_threshold, state["sent"]
        spike = (m >= theta).to(z.dtype) - ((m <= -theta) & (sent > 0)).to(z.dtype)
        current = spike * theta
        return {"v": m - current, "sent": sent + spike}, current, spike

    @property
    def label(self) -> str:
        return "snm"

    def extra_repr(self) -> str:
        return f"{shown(self.v_threshold)}, may take spikes back"


@dataclass(frozen=True)
class SNM(Baseline):
    """Signed neurons with memory, a threshold for every neuron: the network then takes inputs of one size alone."""

    name: ClassVar[str] = "snm"
    cite: ClassVar[str] = "Wang et al., IJCAI 2022"
    makes: ClassVar[Kind | None] = Own(method="snm", v_init="zero")
    one_size: ClassVar[bool] = True

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, None)
        clips = sought(draft)
        largest = _largest(draft, batches, clips) if clips and batches is not None else {}
        most = bounds(draft)
        for name in places(draft):
            theta: Any = draft.neurons[name].v_threshold
            if name in largest:
                found = largest[name]
                top = found.max()
                theta = torch.where(found > 0, found, top if bool(top > 0) else torch.ones_like(top))
                theta = torch.minimum(theta, most[name].to(theta)) if name in most else theta
            draft.neurons[name] = SignedMemory(theta)


def _largest(draft: Draft, batches: Batches, names: list[str]) -> dict[str, Tensor]:
    """The largest activation of every neuron, of the shape of one sample, by node name; of every channel where samples
    do not run along the first dimension."""
    found: dict[str, Tensor] = {}

    def record(node: Node, a: Tensor) -> Tensor:
        if node.name in names:
            now = a.amax(0) if node.batch_dim == 0 else node_shape(by_channel(a, node).amax(1), node)
            found[node.name] = torch.maximum(found[node.name], now) if node.name in found else now
        return a

    draft.watch(batches, on_activations(draft, record), "recording the largest activation of every neuron")
    own = {batches.together.rank: [found[name] for name in names]} if found else {}
    each = [torch.stack(parts).amax(0) for parts in zip(*batches.together.gather(own), strict=True)]
    for name, largest in zip(names, each, strict=True):
        check_finite(draft.graph.by_name[name], largest)
    return dict(zip(names, each, strict=True))
