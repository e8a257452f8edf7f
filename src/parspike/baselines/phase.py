"""Multi-granularity phase code: binary spikes whose weight falls from step to step, by a base that is fitted.

Spikes whose weight depends on their step: Kim, Kim, Huh, Lee and Choi, "Deep neural networks with weighted spikes",
Neurocomputing 2018 (cited from memory). A base fitted for each layer or channel, the "grains", was read in a public
program whose paper our notes do not name. With τ a scale and b a base for each layer or channel, and z̄ the mean
input current:

    θ(t) = τ b^−(t+1), t = 0 … T−1;   m(0) = z̄ + τ 2^−(T+1)
    one spike where m(t) ≥ θ(t), m(t+1) = m(t) − θ(t) s(t);   mean output Σ θ(t) s(t)

b = 2 is the weighted code (`Parallel("weighted")`) with θ = τ (1 − 2^−T). A smaller base spends some of the 2^T
patterns twice and reaches higher for one smallest step; it pays where activations are mostly small.

Verified: the equations, read in that program. Ours: how τ and b are found, in turns, on an even subset of the
network's activations: the best of a grid of τ for the present b, then of b for that τ, `rounds` times, begun with
either. Differs: the program has an amplitude and a reset for each step too; here both are θ(t). Of an activation with
an upper bound (ReLU6) the sum of all θ(t) is at most that bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from parspike.baselines.base import Baseline, bounds, check_number, check_whole, of_each_batch, sought
from parspike.calibrate import Batches, Draft
from parspike.calibrate.channels import above_zero, by_channel, check_finite, node_shape, spread, unit_of
from parspike.calibrate.daqcfs import Granularity, check_granularity, initial_neurons
from parspike.graph import Node, Quantised
from parspike.neurons import Kind, Neuron, Parallel

__all__ = ["Phase", "PhaseNeuron"]

BASES = tuple(1.2 + 0.02 * i for i in range(61))
"""Bases tried, 1.2 … 2.4."""
SCALES = tuple(float(f) for f in torch.logspace(-0.7, 0.3, 41))
"""Largest outputs tried, as shares of the largest activation."""
MOST = 1 << 13
"""Activations that a fit is made from, of a layer and batch, at most."""


@dataclass(frozen=True)
class Phase(Baseline):
    """Scale and base of least squared error. granularity: of each "layer" or "channel". base: None to fit it. rounds:
    turns of the fit of scale and base, at most; it ends where a turn changes nothing."""

    name: ClassVar[str] = "phase"
    cite: ClassVar[str] = "after Kim et al., Neurocomputing 2018"
    makes: ClassVar[Kind | None] = Parallel("weighted")
    granularity: Granularity = "channel"
    base: float | None = None
    rounds: int = 2

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        check_whole(self.rounds, "rounds")
        if self.base is not None:
            check_number(self.base, "base", 1, 4)

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, None)
        for name, activation in draft.activations.items():
            if isinstance(activation, Quantised):
                theta, T = draft.graph.tensors[activation.v_threshold], draft.steps_of(name)
                base = torch.full_like(theta, self.base or 2.0)
                draft.neurons[name] = PhaseNeuron(T, theta / reach(base, T), base)
        most = bounds(draft)
        for name, a in self._activations(draft, batches).items():
            node, T, bound = draft.graph.by_name[name], draft.steps_of(name), most.get(name)
            top, base = self._fitted(a, T, math.inf if bound is None else float(bound))
            top, base = above_zero(top.expand(node.channels), 2**T), base.expand(node.channels)
            tau = (top if bound is None else torch.minimum(top, bound.to(top))) / reach(base, T)
            draft.neurons[name] = PhaseNeuron(T, node_shape(tau, node), node_shape(base, node))

    def _activations(self, draft: Draft, batches: Batches | None) -> dict[str, Tensor]:
        """An even subset of the activations (C, N) of every ReLU layer, or (1, N)."""
        names = sought(draft)
        if not names:
            return {}

        def some(node: Node, a: Tensor, number: int) -> Tensor:
            check_finite(node, a)
            rows = by_channel(a, node) if self.granularity == "channel" else a.reshape(1, -1)
            return rows[:, spread(rows.shape[1], max(64, MOST // len(rows)), a.device, number)]

        each = zip(*of_each_batch(draft, self.data(batches), names, some, "activations"), strict=True)
        return {name: torch.cat(values, 1) for name, values in zip(names, each, strict=True)}

    def _fitted(self, a: Tensor, T: int, bound: float = math.inf) -> tuple[Tensor, Tensor]:
        """The largest output, at most `bound`, and the base of every row of activations (C, N), (C,) each."""
        largest = a.amax(1)
        unit = unit_of(largest)
        most = bound / unit
        a, largest = a / unit[:, None], torch.where(largest > 0, largest / unit, 1.0)
        start = largest, torch.full_like(largest, self.base or 2.0), torch.full_like(largest, torch.inf)
        best = start
        for scale_first in (True, False):  # each way finds its own nearest best
            now = start
            for turn in range(2 * self.rounds):
                before = now[2]
                if (turn % 2 == 0) == scale_first:
                    for share in SCALES:
                        now = _better(a, T, torch.minimum(largest * share, most), now[1], now)
                else:
                    for one in BASES if self.base is None else ():
                        now = _better(a, T, now[0], torch.full_like(largest, one), now)
                if turn and torch.equal(now[2], before):
                    break  # every later turn begins where this one did
            less = now[2] < best[2]
            best = tuple(torch.where(less, new, old) for new, old in zip(now, best, strict=True))
        top, base, _ = best
        return torch.where(a.amax(1) > 0, top * unit, 0.0), base


def _better(a: Tensor, T: int, top: Tensor, base: Tensor, best: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of every row the better of (top, base) and the best so far, each (C,): top, base and squared error."""
    neuron = PhaseNeuron(T, (top / reach(base, T))[:, None], base[:, None])
    # Rows stand where a sample's channels do: (1, C, N) is a batch of one.
    error = (neuron(a[None])[0] - a).square().mean(1)
    less = error < best[2]
    return tuple(torch.where(less, new, old) for new, old in zip((top, base, error), best, strict=True))


def reach(base: Tensor, T: int) -> Tensor:
    """The largest output as a multiple of τ: Σ b^−(t+1) over T steps."""
    steps = torch.arange(1, T + 1, dtype=base.dtype, device=base.device).reshape(-1, *[1] * base.dim())
    return (base**-steps).sum(0)


class PhaseNeuron(Neuron):
    """Neurons of the phase code. v_threshold: τ. base: b. Both a scalar, or of a shape such as (C, 1, 1).

    A count is the number whose binary digits are the spikes, the first step's the highest: up to 2^T − 1.
    """

    kind = "phase"

    def __init__(self, T: int, v_threshold: Tensor, base: Tensor) -> None:
        super().__init__(T, "weighted")
        self.v_threshold = nn.Parameter(v_threshold.detach().clone(), requires_grad=False)
        self.base = nn.Parameter(base.detach().clone(), requires_grad=False)

    def _weights(self) -> Tensor:
        """θ(t) of every step, (T, …)."""
        steps = torch.arange(1, self.T + 1, dtype=self.base.dtype, device=self.base.device)
        return self.v_threshold.detach() * self.base.detach() ** -steps.reshape(-1, *[1] * self.base.dim())

    def _run(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Count and mean output."""
        m = z + self.v_threshold.detach() * 2.0 ** -(self.T + 1)
        count, value = torch.zeros_like(z), torch.zeros_like(m)
        for theta in self._weights():
            spike = (m >= theta).to(m.dtype)
            sent = spike * theta
            m, value, count = m - sent, value + sent, 2 * count + spike
        return torch.where(z.isnan(), z, count), torch.where(z.isnan(), m, value)

    def count(self, z: Tensor) -> Tensor:
        return self._run(z)[0]

    def value(self, count: Tensor) -> Tensor:
        digits = count.nan_to_num().to(torch.int64)
        value = torch.zeros_like(count)
        for t, theta in enumerate(self._weights()):
            value = value + ((digits >> (self.T - 1 - t)) & 1) * theta
        return torch.where(count.isnan(), count, value)

    def forward(self, z: Tensor) -> Tensor:
        return self._run(z)[1]

    def amplitudes(self) -> Tensor:
        return self._weights() * self.T

    def rest(self) -> float | Tensor:
        return 0.0

    @property
    def label(self) -> str:
        return self.kind

    def extra_repr(self) -> str:
        theta, base = ((float(x.min()), float(x.max())) for x in (self.v_threshold, self.base))
        return f"θ {theta[0]:.4g} … {theta[1]:.4g}, base {base[0]:.3g} … {base[1]:.3g}"

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "T": self.T}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PhaseNeuron:
        theta, base = tensors["v_threshold"], tensors["base"]
        if theta.dtype != base.dtype:
            raise ValueError("v_threshold and base have unlike dtypes")
        if not bool((theta > 0).all()) or not bool((base > 1).all()):
            raise ValueError("thresholds must be above 0 and bases above 1")
        return cls(config["T"], theta, base)
