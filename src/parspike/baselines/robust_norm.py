"""Robust normalisation: the threshold of a layer is a high percentile of its activations above zero.

Rueckauer, Lungu, Hu, Pfeiffer and Liu, "Conversion of continuous-valued deep networks to efficient event-driven
networks for image classification", Frontiers in Neuroscience 2017.

    W ← W λ_{l−1}/λ_l, b ← b/λ_l, θ = 1      is the same as      θ_l = λ_l, W and b as they are,

with λ_l the p-th percentile, p = 99.9, of the activations of layer l that are not zero. Constant input current, batch
norm folded, m = v + z, one spike where m ≥ θ, v = m − θ, v(0) = 0.

Verified: read in the code of the authors' toolbox (snn_toolbox: percentile over what is not zero, p = 99.9 as
default, an optional p − 0.02·l for layer l, here `decline`). Differs: they take the percentile of a part of the set
that fits into memory, and interpolate between two values; here it is the value of nearest rank over the whole set, in
float32 (four passes, `calibrate.percentile.Selection`). Their max-pool passes on the input that has fired most; ours
is f of the mean so far. The last layer has no neurons here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from parspike.baselines.base import Baseline, check_number, on_activations, placed, set_threshold, sought
from parspike.calibrate import Batches, Draft
from parspike.calibrate.channels import check_finite
from parspike.calibrate.daqcfs import initial_neurons
from parspike.calibrate.percentile import Selection, select
from parspike.errors import OptionError
from parspike.graph import Node

__all__ = ["RobustNorm"]


@dataclass(frozen=True)
class RobustNorm(Baseline):
    """θ = a percentile (of 100) of the layer's activations above 0, `decline` less for each layer behind the first."""

    name: ClassVar[str] = "robust-norm"
    cite: ClassVar[str] = "Rueckauer et al., Frontiers in Neuroscience 2017"
    percentile: float = 99.9
    decline: float = 0.0

    def __post_init__(self) -> None:
        check_number(self.percentile, "percentile", 0, 100)
        check_number(self.decline, "decline", 0, 100, low_too=True)

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, None)
        order, wanted = list(placed(draft)), sought(draft)
        shares = {name: (self.percentile - self.decline * order.index(name)) / 100 for name in wanted}
        if not shares:
            return
        if min(shares.values()) <= 0:
            raise OptionError(
                f"decline = {self.decline:g} leaves no percentile for the last of {len(order)} layers: give less"
            )
        found, batches = {name: Selection(share) for name, share in shares.items()}, self.data(batches)

        def record(node: Node, a: Tensor) -> Tensor:
            if node.name in found:
                check_finite(node, a)
                fired = a[a > 0]
                if len(fired):
                    found[node.name].add(fired[None])
            return a

        select(draft, batches, found, on_activations(draft, record), "percentiles")
        for name, selection in found.items():
            if selection.found is not None:  # a layer that never fired keeps its threshold
                set_threshold(draft, name, selection.value)
