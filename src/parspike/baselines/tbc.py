"""TBC: channel thresholds that rise until little is cut off, and an output that is read late.

Bu, Li and Yu, "Inference-scale complexity in ANN-SNN conversion for high-performance and low-power applications",
CVPR 2025 (arXiv 2409.03368, first as "Training-free conversion of pretrained ANNs to SNNs"; also called local
threshold balancing).

Of each channel, from θ = 0 on, for one batch after the other and all layers in one forward pass:

    θ ← θ + 2 · mean(max(a − θ, 0)),     then the layer gives min(a, θ), with the new θ

which is gradient ascent on what θ cuts off squared. θ never falls, and comes to the channel's largest activation in
the end, so the number of iterations is the method's knob: fewer are better at few steps, more at many. A step is twice
the mean, so where most values of a batch are above θ (one image, a linear layer) θ comes to lie above them all.

Neurons: m = v + z, one spike where m > θ, v = m − θ, v(0) = θ/2. Reading: t0 = sum over layers of (θ − v(0)) / (the
largest of the neurons' mean activations), the steps until the first spikes have come through. The output is the mean
of the steps after t0, or of the last 4 where T < t0 + 4.

Verified: the rule, v(0) and the spike test read in the authors' code (which has the mean, the paper a sum); t0, its
rule and "1,000 iterations of 100 images" read in the paper; their notebook takes 12. Derived: with one θ a channel
the delay of a layer is the least of its neurons', which for one θ a layer is the formula above. Differs: they put a
max-pool before the neuron, ours is f of the mean so far. A layer of QCFS keeps the threshold that it was trained
with; theirs is found anew. Of an activation with an upper bound (ReLU6) θ is at most that bound. Rows that stand for
places of one image count as images where t0 is found. m > θ is m ≥ the next number above θ, which the reset then takes
off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from parspike.baselines.base import (
    Baseline,
    batches_again,
    check_whole,
    of_each_batch,
    on_activations,
    placed,
    set_threshold,
    sought,
)
from parspike.calibrate import Batches, Draft
from parspike.calibrate.channels import channel_mean, check_finite, node_shape
from parspike.calibrate.daqcfs import initial_neurons
from parspike.calibrate.recipe import check_switch
from parspike.graph import Node
from parspike.neurons import IF, IntegrateFire, Kind, Simulation

__all__ = ["TBC"]

LAST = 4
"""Steps read where the network is too short for its delay."""


@dataclass(frozen=True)
class TBC(Baseline):
    """Channel thresholds by so many iterations, each on one batch; v(0) = θ/2. delay: read the steps after t0 alone."""

    name: ClassVar[str] = "tbc"
    cite: ClassVar[str] = "Bu, Li and Yu, CVPR 2025"
    makes: ClassVar[Kind | None] = IF(v_init="half")
    iterations: int = 100
    delay: bool = True

    def __post_init__(self) -> None:
        check_whole(self.iterations, "iterations")
        check_switch(self.delay, "delay")

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, None)
        if batches is None:
            return
        found = {name: torch.zeros(()) for name in sought(draft)}  # θ (C,) after the first batch

        def rise(node: Node, a: Tensor) -> Tensor:
            if node.name not in found:
                return a
            theta = found[node.name].to(a)
            theta = theta if theta.dim() else theta.expand(node.channels)
            bound = node_shape(theta, node)
            theta = theta + 2 * channel_mean((a - bound).clamp(min=0), node)
            check_finite(node, theta)
            found[node.name] = theta
            return torch.minimum(a, node_shape(theta, node))

        if found:
            for env in batches_again(draft, batches, self.iterations, "thresholds"):
                draft.graph.run_on(env, on_activations(draft, rise))
        for name, theta in found.items():
            set_threshold(draft, name, theta)
        if self.delay:
            draft.simulation = Simulation(draft.T, read=_read(draft.T, self._delay(draft, batches)))
        neurons = placed(draft)
        for name in found:
            theta = neurons[name].v_threshold.data
            neurons[name].v_threshold.data = torch.nextafter(theta, torch.full_like(theta, torch.inf))

    def _delay(self, draft: Draft, batches: Batches) -> float:
        """t0, in steps."""
        neurons = placed(draft)
        names = list(neurons)
        parts = of_each_batch(draft, batches, names, lambda node, a, number: a.mean(node.batch_dim or 0), "delays")
        # Images of several sizes have no neurons in common: the means are then over those of each size.
        alike: dict[Any, list[tuple[int, tuple[Tensor, ...]]]] = {}
        for count, part in zip(batches.sizes.values(), parts, strict=True):
            alike.setdefault(tuple(x.shape for x in part), []).append((count, part))
        total = 0.0
        for position, neuron in enumerate(neurons.values()):
            waits = [
                _wait(
                    neuron, sum(count * part[position] for count, part in of_size) / sum(count for count, _ in of_size)
                )
                for of_size in alike.values()
            ]
            finite = [wait for wait in waits if wait < float("inf")]
            total += min(finite, default=0.0)  # a layer that never fires is not waited for
        return total


def _wait(neuron: IntegrateFire, mean: Any) -> float:
    """Steps until the quickest neuron of a layer fires, from the mean activations of its neurons (…)."""
    return float(((neuron.v_threshold - neuron.v_init) / mean).min())


def _read(T: int, delay: float) -> int:
    """How many of the last steps are read, 0 for all."""
    read = min(T, LAST) if delay + LAST > T else T - int(delay)
    return 0 if read == T else read
