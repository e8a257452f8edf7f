"""FTBC: a bias for every time-step and channel, found by forward passes alone.

Wu, Bojkovic, Gu, Suo and Zou, "FTBC: Forward temporal bias correction for optimizing ANN-SNN conversion", ECCV 2024.

    m(t) = v(t−1) + z(t) − b(t, c), one spike where m ≥ θ, v = m − θ
    of each batch, each layer in running order, each step t:
        d(c) = mean over samples and places of θ s(t) − a;   b(t, c) ← b(t, c) + α d(c)
        then this layer's step t is done again with the new b, so that later steps see what it changes

with a the network's activation, whose mean every single step shall send; b = 0 at first, α = 0.5, 10 batches.

Verified: read in a public program that extends the code of SNNC and is taken to be the authors'. Its neurons were not
seen, so whether SNNC's extra current θ/(2T) stays on is not known: here v(0) = θ/2 takes its place. Differs: their
correction tests m > θ, ours m ≥ θ, as the network then runs. The paper corrects other methods' networks (QCFS, OPT,
SNNC): here a QCFS layer keeps its threshold, and a ReLU layer gets the threshold that `thresholds` names, "mmse" as
in SNNC or "max" as in OPT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from parspike.baselines.base import Baseline, batches_again, check_number, check_whole, forward, placed, set_threshold
from parspike.baselines.snnc import mmse_thresholds
from parspike.calibrate import Batches, Draft
from parspike.calibrate.channels import channel_mean, node_shape
from parspike.calibrate.daqcfs import Granularity, check_granularity, initial_neurons
from parspike.errors import OptionError
from parspike.graph import Node
from parspike.neurons import IF, IntegrateFire, Kind

__all__ = ["FTBC"]


@dataclass(frozen=True)
class FTBC(Baseline):
    """A bias for every step and channel.

    alpha: share of an error that a batch corrects. iterations: batches, 0 for none. thresholds, granularity: of ReLU
    layers, "mmse" (least squared error) or "max", a "layer" or a "channel".
    """

    name: ClassVar[str] = "ftbc"
    cite: ClassVar[str] = "Wu et al., ECCV 2024"
    makes: ClassVar[Kind | None] = IF(v_init="half", bias="step")
    alpha: float = 0.5
    iterations: int = 10
    thresholds: Literal["mmse", "max"] = "mmse"
    granularity: Granularity = "layer"

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        check_number(self.alpha, "alpha", 0, 1)
        check_whole(self.iterations, "iterations", 0)
        if self.thresholds not in ("mmse", "max"):
            raise OptionError(f"thresholds must be 'mmse' or 'max', got {self.thresholds!r}")

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        batches = self.data(batches)
        initial_neurons(draft, batches, None if self.thresholds == "mmse" else "max", self.granularity)
        if self.thresholds == "mmse":
            for name, theta in mmse_thresholds(draft, batches, self.granularity).items():
                set_threshold(draft, name, theta)
        neurons = placed(draft)
        for name, neuron in neurons.items():
            node = draft.graph.by_name[name]
            zero = node_shape(torch.zeros(node.channels).to(neuron.v_threshold), node)
            neuron.bias = nn.Parameter(zero.expand(draft.T, *zero.shape).clone(), requires_grad=False)

        def correct(node: Node, a: Tensor, z: Tensor) -> None:
            corrected(neurons[node.name], node, a, z.expand(draft.T, *z.shape[1:]), self.alpha)

        for env in batches_again(draft, batches, self.iterations, "biases"):
            forward(draft, env, correct)


def corrected(neuron: IntegrateFire, node: Node, a: Tensor, z: Tensor, alpha: float) -> None:
    """One correction of a layer's biases from a batch: a (B, …), z (T, B, …)."""
    wanted, theta = channel_mean(a, node), neuron.v_threshold
    v = neuron.v_init.expand_as(a)
    for now, bias in zip(z, neuron.bias.data, strict=True):
        m = v + now + bias
        excess = channel_mean((m >= theta) * theta, node) - wanted
        change = -alpha * node_shape(excess, node, bias)
        bias += change
        m = m + change
        v = m - (m >= theta) * theta
