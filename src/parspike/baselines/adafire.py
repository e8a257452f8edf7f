"""AdaFire: burst neurons whose most spikes of a step are chosen for each layer, within a budget of spikes.

Wang, Fang, Cao, Ren and Xu, "Adaptive Calibration: A Unified Conversion Framework of Spiking Neural Networks", AAAI
2025.

    m = v + z + θ/(2T);  n = clip(⌊m/θ⌋, 0, M);  v = m − n θ;  v(0) = 0.

θ: of amax·(1 − i/100), i = 0 … 94, the one of least squared error of (θ/T) ⌊clip(a/θ, 0, M)·T⌋ for the activations a.
M (their Sensitivity Spike Compression): with θ for M = `most` in all layers, each layer in turn gets 1 … `most`; its
sensitivity is the symmetric Kullback-Leibler divergence of the network's class probabilities, its cost the spikes that
it sends. The M of all layers are those of the least sum of sensitivities whose spikes are at most `share` of what
M = `wanted` would send in every layer. θ is then found anew for each M. All of this was read in the authors' program.

Verified: θ and M against the rules written by hand; the neuron is `burst` with a bias. Differs from the authors'
program: θ comes from all calibration images, where they average over batches; sensitivities are of outputs by count
(the mean that T steps of an even input give) on at most 32 images of the first batch; an output that is no set of class
scores counts by its squared error; costs are compared in 4096 parts of the budget; their adaptive number of steps (IAT)
is not here. Where an activation has an upper bound (ReLU6, QCFS), θ is at most that bound over M; of a QCFS
layer with a bound a channel, θ is one a channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from parspike.baselines.base import Baseline, Own, bound_of, check_number, on_activations, places
from parspike.baselines.burst import BurstNeuron
from parspike.baselines.parts import check_between
from parspike.calibrate import Batches, Draft
from parspike.calibrate.channels import above_zero, node_shape
from parspike.calibrate.daqcfs import Granularity, check_granularity
from parspike.calibrate.thresholds import Samples
from parspike.graph import Node, Schedule, Stream, leaves, walk
from parspike.neurons import Kind

__all__ = ["AdaFire"]

MOST = 64
"""Spikes of one step at most."""
IMAGES = 32
"""Samples that sensitivities are measured on, at most."""
GRID = 95
PARTS = 4096


@dataclass(frozen=True)
class AdaFire(Baseline):
    """Burst neurons with a most of their own in each layer. most: spikes of one step at most in any layer. wanted,
    share: the budget, as the module says. granularity: one θ for a "layer", as in the authors' scripts, or a
    "channel"."""

    name: ClassVar[str] = "adafire"
    cite: ClassVar[str] = "Wang et al., AAAI 2025"
    makes: ClassVar[Kind | None] = Own(method="adafire", v_init="zero")
    most: int = 8
    wanted: int = 4
    share: float = 0.95
    granularity: Granularity = "layer"

    def __post_init__(self) -> None:
        check_between("most", self.most, 1, MOST)
        check_between("wanted", self.wanted, 1, self.most)
        check_number(self.share, "share", 0, 1)
        check_granularity(self.granularity)

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        batches = self.data(batches)
        samples = self._samples(draft, batches)
        start = {name: self._theta(draft, samples[name], self.most) for name in samples}
        chosen = self._chosen(draft, batches, start)
        for name, most in chosen.items():
            theta = self._theta(draft, samples[name], most)
            draft.neurons[name] = BurstNeuron(theta, most, theta / (2 * draft.T))
        draft.notes["most"] = {draft.graph.by_name[name].layer: most for name, most in chosen.items()}

    def _samples(self, draft: Draft, batches: Batches) -> dict[str, Samples]:
        found = {name: Samples(draft.graph.by_name[name], batches) for name in places(draft)}

        def record(node: Node, a: Tensor) -> Tensor:
            found[node.name].add(a, a[None])
            return a

        draft.watch(batches, on_activations(draft, record), "recording activations")
        return found

    def _theta(self, draft: Draft, samples: Samples, most: int) -> Tensor:
        """θ of one layer for a most of spikes, shaped to broadcast against one sample."""
        a, node = samples.tensors()[0], samples.node
        bound = bound_of(draft, node.name)
        single = self.granularity == "layer" and (bound is None or bound.numel() == 1)
        rows = a.reshape(1, -1) if single else a
        top = above_zero(rows.amax(1), draft.T * most)
        if bound is not None:
            top = torch.minimum(top, bound.to(top).flatten() / most)
        best, least = top, torch.full_like(top, math.inf)
        for i in range(GRID):
            theta = (top * (1 - 0.01 * i))[:, None]
            kept = ((rows / theta).clamp(0, most) * draft.T).floor() * (theta / draft.T)
            error = (rows - kept).square().mean(1)
            best, least = torch.where(error < least, theta[:, 0], best), torch.minimum(error, least)
        return best.reshape(()) if single else node_shape(best, node)

    def _chosen(self, draft: Draft, batches: Batches, theta: dict[str, Tensor]) -> dict[str, int]:
        """M of each layer, by node name."""
        graph, tries = draft.graph, range(1, self.most + 1)
        env = {name: x[:IMAGES] for name, x in next(iter(batches.everywhere())).items()}
        wanted = graph.run_on(env)
        steps = Schedule.of(graph.nodes, graph.outputs).steps

        def counted(node: Node, z: Tensor, most: int) -> tuple[Tensor, float]:
            count = (z * (draft.T / theta[node.name]) + 0.5).floor().clamp(0, most * draft.T)
            return count * (theta[node.name] / draft.T), float(count.sum(dtype=torch.float64))

        def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
            return [counted(node, args[0], self.most)[0]]

        stream, at = Stream(dict(env), graph.tensors, graph.sizes(env)), dict.fromkeys(theta, fire)
        errors, costs = [], []
        for place, step in enumerate(steps):
            node = step[0]
            if node.name in theta:
                draft.progress("sensitivity of layers", len(errors), len(theta))
                errors.append([])
                costs.append([])
                for most in tries:
                    value, spikes = counted(node, stream.arguments(node)[0][0], most)
                    other = Stream({**stream.env, node.name: value}, stream.tensors, stream.sizes)
                    walk(Schedule(steps[place + 1 :]), [other], at)
                    errors[-1].append(_apart(graph.collect(other.env, other.sizes), wanted))
                    costs[-1].append(spikes)
            walk(Schedule((step,)), [stream], at)
        budget = self.share * sum(cost[self.wanted - 1] for cost in costs)
        return dict(zip(theta, allocated(errors, costs, budget), strict=True))


def _apart(outputs: Any, wanted: Any) -> float:
    """How far outputs are from those of the network."""
    total = 0.0
    for now, then in zip(leaves(outputs), leaves(wanted), strict=True):
        if not isinstance(then, Tensor) or not then.is_floating_point():
            continue
        now, then = now.double(), then.double()
        if then.dim() == 2 and then.shape[1] > 1:
            p, q = now.log_softmax(1), then.log_softmax(1)
            total += float(((p.exp() - q.exp()) * (p - q)).sum(1).mean()) / 2
        else:
            total += float((now - then).square().sum() / then.square().sum().clamp(min=1e-300))
    return total


def allocated(errors: list[list[float]], costs: list[list[float]], budget: float) -> list[int]:
    """For each row the number, from 1 on, of the column that is taken: the sum of the errors is least and that of the
    costs at most the budget. 1 in all rows where even that costs more."""
    ones = [1] * len(errors)
    if budget <= 0:
        return ones
    best, taken = torch.zeros(PARTS + 1, dtype=torch.float64), []
    weights = [[math.ceil(cost / budget * PARTS) for cost in row] for row in costs]
    for row, weight in zip(errors, weights, strict=True):
        tries = torch.full((len(row), PARTS + 1), math.inf, dtype=torch.float64)
        for column, (error, w) in enumerate(zip(row, weight, strict=True)):
            if w <= PARTS:
                tries[column, w:] = best[: PARTS + 1 - w] + error
        best, which = tries.min(0)
        taken.append(which)
    if not math.isfinite(float(best[PARTS])):
        return ones
    left, chosen = PARTS, []
    for which, weight in zip(reversed(taken), reversed(weights), strict=True):
        chosen.append(int(which[left]) + 1)
        left -= weight[chosen[-1] - 1]
    return chosen[::-1]
