"""DCGS: differential coding, where a neuron sends how its mean output changes.

Huang, Fang, Bu, Xue, Hao, Liu, Tang, Yu and Huang, "Differential Coding for Training-Free ANN-to-SNN Conversion",
ICML 2025.

What a neuron sends at step t, x(t), changes the value that it stands for: r(t) = r(t−1) + x(t)/t. A linear layer acts
on what it receives and adds its bias in the first step. A neuron of n sizes of spikes, λ_k = θ/2^(k−1), with the
decoded input r_in and output r_out, does

    m(t) = v(t−1) + x_in(t) + r_in(t−1) − r_out(t−1);
    x(t) = the largest λ_k with |m| ≥ 3/4 λ_k, with the sign of m; a negative one only where t r_out(t−1) ≥ λ_k;
    v(t) = m(t) − x(t);  v(0) = 0.

In parspike a synapse acts on currents whose mean counts, so the current of such a neuron is i(t) = r_out(t−1) + x(t):
then the mean of t currents is r_out(t), and the neuron behind gets z(t) = x_in(t) + r_in(t−1), bias included at every
step. Both are the same numbers; only x(t) is sent, and a silent neuron lets the layers behind hold what they have.
Operators that are not linear act on means over time in both.

θ is the range of least squared error for T·2^n levels if the input of the activation is Gaussian, channel by channel
(threshold iteration, `gaussian_scale`), or a percentile or the largest value.

Verified: the neuron against the equations in the differential form, spike by spike, and a layer behind another; for a
constant input the decoded value comes to 3/4 λ_n/T of it, where the undifferentiated neuron stays within θ/(2T), and no
spike is sent once the two are equal; the neuron and the iteration were read in the authors' program. Differs from it:
ReLU alone; the iteration's end is searched for; a sum that is compared with a level may be λ_n/1000 less; where an
activation has an upper bound (ReLU6, QCFS), which they do not know, θ is at most that bound and a spike is sent only
where the decoded value stays at most θ. Their figures are of ImageNet networks that are not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parspike.baselines.base import Own, bounds
from parspike.baselines.ecmt import MultiThreshold
from parspike.baselines.parts import Ranged, full_scales
from parspike.calibrate import Batches, Draft
from parspike.neurons import Kind

__all__ = ["DCGS"]


@dataclass(frozen=True)
class DCGS(Ranged):
    """Multi-threshold neurons with differential coding, options as in `Ranged`; n = 4 in the authors' ResNet files."""

    name: ClassVar[str] = "dcgs"
    cite: ClassVar[str] = "Huang et al., ICML 2025"
    makes: ClassVar[Kind | None] = Own(method="dcgs", v_init="zero")

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        levels, most = draft.T * 2**self.thresholds, bounds(draft)
        for name, scale in full_scales(draft, batches, self.mode, self.granularity, levels).items():
            draft.neurons[name] = MultiThreshold(
                scale, self.thresholds, fires="nearest", differential=True, bounded=name in most
            )
