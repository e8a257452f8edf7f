"""RNL: thresholds as a share of a running maximum, the rate norm layer of Ding et al., as far as no training is needed.

Ding, Yu, Tian and Huang, "Optimal ANN-SNN conversion for fast and accurate inference in deep spiking neural
networks", IJCAI 2021.

    r_l = clip(relu(z)/θ_l, 0, 1),   θ_l = max_l · sigmoid(p)
    max_l ← 0.9 max_l + 0.1 · (largest activation of the batch), begun with that of the first batch
    m = v + z, one spike where m ≥ θ, v = m − θ, v(0) = 0

Verified: read in the authors' code (the layer, its average's momentum of 0.1, p = 10 at first). Not verified: how
their average begins. Differs, and this is most of their method: they train the network with this layer, then p alone
on a loss with labels and a "rate inference loss" that we only know from memory. This is what stands without training:
p is one number for all layers. Their layers pass the rate r on, ours θ r, so that weights trained with ReLU stay as
they are. Their θ is 1e-6 larger, against a division by 0; ours takes another threshold where a layer is silent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from parspike.baselines.base import Baseline, check_number, of_each_batch, set_threshold, sought
from parspike.calibrate import Batches, Draft
from parspike.calibrate.daqcfs import initial_neurons

__all__ = ["RNL"]


@dataclass(frozen=True)
class RNL(Baseline):
    """θ = a running maximum of the layer's activations × sigmoid(p). momentum: the share of each new batch in it."""

    name: ClassVar[str] = "rnl"
    cite: ClassVar[str] = "Ding, Yu, Tian and Huang, IJCAI 2021"
    p: float = 10.0
    momentum: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.p, "p", -100, 100, low_too=True)
        check_number(self.momentum, "momentum", 0, 1)

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, None)
        names = sought(draft)
        if batches is None or not names:
            return
        tops = of_each_batch(draft, batches, names, lambda node, a, number: a.amax(), "recording maxima")
        first, *rest = map(torch.stack, tops)
        running = first
        for top in rest:
            running = running + self.momentum * (top - running)
        share = 1 / (1 + math.exp(-self.p))
        for name, top in zip(names, running, strict=True):
            set_threshold(draft, name, top * share)
