"""Re-estimated normalisation: Algorithm 1, then each channel gets back its mean and deviation.

"Rethinking the spatiotemporal distribution for high-fidelity parallel ANN-to-SNN conversion", submission 16950 to
ICLR 2026 (its authors are not named there), the successor of parallel conversion.

After Algorithm 1 of Hao et al. (the recipe `daqcfs`) the running mean and variance of every batch norm are replaced
by those of what the spiking network sends there, layer after layer; then one bias a channel is learned, added to the
membrane's sum over time.

Here batch norms are folded into the synapses before anything is calibrated, so each layer of neurons does it with
what it has. Of every channel, with μ, σ the mean and deviation of the current z into the network's activation, and
μ', σ' those of the current z' in the spiking network:

    z'' = (z' − μ') σ/σ' + μ,     which is θ ← θ σ'/σ, δ ← μ σ'/σ − μ', and amplitudes as they were
    then a bias c a channel:      z'' + c of least squared error of the activation, c from a grid of ± 1.5 levels

Verified: nothing more than the two steps, which their abstract names; we did not read the paper. Derived: the
equations above. A batch norm on new statistics gives mean β and deviation |γ|, which are those of the network's own
current up to how well its running statistics fit the calibration images. Not sure, and different: theirs acts where
each batch norm was, so before a shortcut is added; ours acts on the sum that the neurons get. Their bias is learned
by gradient, layer by layer or from the outputs; ours is searched, layer by layer. Their δ stays, ours is replaced by
the mean's correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from parspike.baselines.base import Baseline, layers
from parspike.calibrate import DAQCFS, Batches, Draft
from parspike.calibrate.channels import by_channel, node_shape
from parspike.calibrate.lockstep import Lockstep
from parspike.calibrate.recipe import check_switch
from parspike.calibrate.thresholds import Samples
from parspike.graph import Node
from parspike.neurons import Kind, Parallel, ParallelNeuron

__all__ = ["BNRecal"]

BIASES = tuple(round(0.05 * i, 2) for i in range(-30, 31))
"""Biases tried, in levels."""


@dataclass(frozen=True)
class BNRecal(Baseline):
    """Parallel neurons by `daqcfs`, then each channel's mean and deviation restored. bias: then a bias a channel."""

    name: ClassVar[str] = "bn-recal"
    cite: ClassVar[str] = "Rethinking the spatiotemporal distribution ..., submitted to ICLR 2026"
    makes: ClassVar[Kind | None] = Parallel()
    bias: bool = True

    def __post_init__(self) -> None:
        check_switch(self.bias, "bias")

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        DAQCFS().fit(draft, batches)
        if batches is None or draft.lossless:
            return
        lockstep = Lockstep(draft, batches)
        for node, neuron in layers(draft, "statistics"):
            restore(neuron, node, *moments(lockstep, node))
            if self.bias:
                samples = Samples(node, batches)
                for teacher, student in lockstep.visit(node):
                    z = student.env[node.refs[0]]
                    samples.add(draft.teacher(node, teacher.arguments(node)[0]), z[None])
                add_bias(neuron, node, *samples.means())


def moments(lockstep: Lockstep, node: Node) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the currents of every channel, over the whole set: (2, C) each, the teacher's first."""
    source = node.refs[0]
    parts: list[tuple[Tensor, ...]] = []
    for pair in lockstep.visit(node):
        rows = torch.stack([by_channel(stream.env[source], node).double() for stream in pair])
        mean = rows.mean(2)
        parts.append((mean, (rows - mean[..., None]).square().sum(2), torch.tensor(float(rows.shape[2]))))
    means, spreads, numbers = (torch.stack(each) for each in zip(*lockstep.batches.gather(parts), strict=True))
    weights = (numbers / numbers.sum())[:, None, None]
    mean = (means * weights).sum(0)
    within = spreads.sum(0) / numbers.sum()
    return mean, (within + ((means - mean) ** 2 * weights).sum(0)).sqrt()


def restore(neuron: ParallelNeuron, node: Node, mean: Tensor, deviation: Tensor) -> None:
    """Let neurons count as if their current had the first mean and deviation instead of the second, (2, C) each."""
    fits = (deviation > 0).all(0)
    ratio = torch.where(fits, deviation[1] / deviation[0], 1.0)
    theta = neuron.v_threshold.data
    neuron.v_threshold.data = theta * node_shape(ratio, node).to(theta)
    neuron.shift.data = node_shape(mean[0] * ratio - mean[1], node).to(theta)


def add_bias(neuron: ParallelNeuron, node: Node, a: Tensor, z: Tensor) -> None:
    """Add the current of least squared error to each channel's shift. a, z: activations and currents (C, N)."""
    theta, shift, post = (
        x.detach().expand(node_shape(a[:, 0], node).shape).reshape(-1, 1)
        for x in (neuron.v_threshold, neuron.shift, neuron.v_post)
    )
    level = theta / neuron.levels
    best, least = torch.zeros_like(theta), torch.full_like(theta, torch.inf)
    for share in sorted(BIASES, key=abs):
        count = ((z + shift) / level + (0.5 + share)).floor_().clamp_(0, neuron.levels)
        error = (count * (post / neuron.levels) - a).square().mean(1, keepdim=True)
        less = error < least
        best, least = torch.where(less, share * level, best), torch.where(less, error, least)
    neuron.shift.data = node_shape((shift + best).flatten(), node).to(neuron.v_threshold)
