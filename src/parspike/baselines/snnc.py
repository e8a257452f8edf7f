"""SNNC: thresholds of least squared error, then biases, potentials and weights corrected layer by layer.

Li, Deng, Dong, Gong and Gu, "A free lunch from ANN: Towards efficient, accurate spiking neural networks calibration",
ICML 2021 (and IJCV 2024, where the two pipelines are called LCP and ACP).

Neurons: m = v + z + θ/(2T), one spike where m ≥ θ, v = m − θ, v(0) = 0; batch norm folded.

Threshold of every batch, a being the network's activations; over the batches θ ← 0.9 θ + 0.1 θ*, begun with the first:
    θ* = argmin over θ in {a_max (1 − 0.01 i), i = 0 … 94} of the mean of (a − θ/T ⌊clip(a T/θ, 0, T)⌋)²
Light pipeline (`snnc-lp`), layer after layer, means over samples and places of channel c:
    b_c ← b_c + mean(a) − mean(s̄)
Advanced pipeline (`snnc-ap`), weights W of each layer by Adam, its rate falling to 0 as a cosine:
    min ‖a − θ/T ⌊clip((W x̄ + b) T/θ, 0, T)⌋‖²
then layer after layer, of each neuron, means over samples:
    v(0) = T (mean(a) − mean(s̄))
with a the original network's activation, s̄ what the spiking neurons send on average over T steps and x̄ what the
layer receives on average, both with all earlier layers corrected; what is added to W x̄ in front of the neuron is
added before the clip; ⌊·⌋ passes the gradient on as if it were not there.

Verified: read in the authors' code, thresholds a layer as in their scripts (a channel as an option, which their code
has). Kept as read: neither ⌊·⌋ above contains the shift θ/(2T) that the neurons have. Differs:
- Means are over the whole calibration set, theirs over one batch of it. The error of a θ is that of at most 2^18
  activations of a batch, evenly chosen.
- The bias stands in the neurons, where it does the same. The layer of the outputs has no neurons here and stays as it
  is.
- Of several weights that are added up in front of one layer of neurons, the last is fitted, and only where it is a
  convolution or linear layer with nothing but additions behind it. Their defaults are 5,000 to 10,000 steps of a rate
  of 1e-5 to 4e-5, ours `steps` = 100, which fits in minutes. On CIFAR their script corrects potentials alone,
  as steps=0 does.
- Max-pools of theirs are mean pools; ours are f of the mean so far.
- Where samples do not run along the first dimension, v(0) is one number a channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from parspike.baselines.base import (
    Baseline,
    check_number,
    check_whole,
    layers,
    mean_output,
    of_each_batch,
    over_set,
    placed,
    set_threshold,
    sought,
)  # fmt: skip
from parspike.calibrate import Batches, Draft
from parspike.calibrate.channels import by_channel, check_finite, node_shape, spread, unit_of
from parspike.calibrate.daqcfs import Granularity, check_granularity, initial_neurons
from parspike.calibrate.lockstep import Lockstep
from parspike.calibrate.refit import branches, refittable
from parspike.graph import Graph, Node, Schedule, Stream, walk
from parspike.neurons import IF, IntegrateFire, Kind

__all__ = ["SNNCAP", "SNNCLP", "least_error", "mmse_thresholds"]

CANDIDATES, FINE = 95, 0.01
"""Thresholds tried, and how far apart they are as a share of the largest activation."""
MOST = 1 << 18
"""Activations of a layer and batch that an error is computed from, at most."""


@dataclass(frozen=True)
class SNNCLP(Baseline):
    """Thresholds of least squared error, an extra current θ/(2T), and a bias of each channel; v(0) = 0.

    granularity: one threshold a "layer" or a "channel". momentum: share of the old threshold at each batch. rounds:
    times that each layer's bias is corrected; the authors' is 1, more bring the channels' means nearer.
    """

    name: ClassVar[str] = "snnc-lp"
    cite: ClassVar[str] = "Li et al., ICML 2021"
    granularity: Granularity = "layer"
    momentum: float = 0.9
    rounds: int = 1

    def __post_init__(self) -> None:
        _check(self)
        check_whole(self.rounds, "rounds", 0)

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        batches = self.data(batches)
        _start(draft, batches, self.granularity, self.momentum)
        lockstep = Lockstep(draft, batches)
        for node, neuron in layers(draft, "biases"):
            for _ in range(self.rounds):
                lacking = _lacking(lockstep, node, neuron, lambda x, node=node: by_channel(x, node).double().mean(1))
                bias = neuron.bias.data + node_shape(lacking, node).to(neuron.bias)[None]
                neuron.bias = nn.Parameter(bias, requires_grad=False)


@dataclass(frozen=True)
class SNNCAP(Baseline):
    """The same start, then gradient steps on the weights of each layer and a v(0) for each neuron.

    steps: gradient steps a layer, 0 for none. batch_size: images a step. rate: the first of Adam's rates. Each neuron
    has a v(0) of its own, so the network takes inputs of the example's size alone.
    """

    name: ClassVar[str] = "snnc-ap"
    cite: ClassVar[str] = "Li et al., ICML 2021"
    makes: ClassVar[Kind | None] = IF(v_init="fitted")
    one_size: ClassVar[bool] = True
    granularity: Granularity = "layer"
    momentum: float = 0.9
    steps: int = 100
    batch_size: int = 32
    rate: float = 1e-5

    def __post_init__(self) -> None:
        _check(self)
        check_whole(self.steps, "steps", 0)
        check_whole(self.batch_size, "batch_size")
        check_number(self.rate, "rate", 0, 1)

    def fill(self, draft: Draft, batches: Batches | None) -> None:
        batches = self.data(batches)
        _start(draft, batches, self.granularity, self.momentum)
        if self.steps:
            lockstep = Lockstep(draft, batches)
            ways: dict[str, list[Node]] = {}  # by the neurons: of several synapses before them, the last
            for node in draft.graph.nodes:
                if refittable(draft.graph, node) and (way := _way(draft, node)) is not None:
                    ways.pop(way[-1].name, None)
                    ways[way[-1].name] = way
            for done, way in enumerate(ways.values()):
                draft.progress("weights", done, len(ways))
                self._weights(draft, lockstep, way)
            draft.progress("weights", len(ways), len(ways))
        lockstep = Lockstep(draft, batches)
        for node, neuron in layers(draft, "potentials"):
            lacking = _lacking(lockstep, node, neuron, lambda x, node=node: _each(x, node))
            start = lacking if node.batch_dim == 0 else node_shape(lacking, node)
            neuron.v_init = nn.Parameter((draft.T * start).to(neuron.v_threshold), requires_grad=False)

    def _weights(self, draft: Draft, lockstep: Lockstep, way: list[Node]) -> None:
        """Fit the weight of way[0] for the neurons way[-1], with the additions between them."""
        synapse, *adds, neurons = way
        path = synapse.args[1].path
        made = {node.name for node in way}
        sources = list(dict.fromkeys(ref for node in (synapse, *adds) for ref in node.refs if ref not in made))
        through = Schedule.of(way[:-1], [way[-2].name], seeds=sources)
        along = [neurons.batch_dim, *(_batch_dim(draft.graph, ref) for ref in sources)]
        parts: list[tuple[Tensor, ...]] = []
        for teacher, student in lockstep.visit(synapse):
            stream = Stream({ref: teacher.env[ref] for ref in sources}, teacher.tensors, teacher.sizes)
            walk(through, [stream])
            a = draft.teacher(neurons, stream.arguments(neurons)[0])
            parts.append((a, *(lockstep.course.mean(ref, student.env[ref]) for ref in sources)))
        parts = lockstep.batches.gather(parts)
        fires: Any = draft.neurons[neurons.name]
        theta, weight = fires.v_threshold, draft.tensors[path].clone().requires_grad_()
        optimiser = torch.optim.Adam([weight], lr=self.rate)
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**31)
        sizes = draft.graph.example
        for step in range(self.steps):
            optimiser.param_groups[0]["lr"] = self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            a, *x = _drawn(parts, along, self.batch_size, generator)
            with torch.enable_grad():
                env: dict[str, Any] = dict(zip(sources, x, strict=True))
                tensors: Mapping[str, Tensor] = {**draft.tensors, path: weight}
                stream = Stream(env, tensors, {**sizes, "batch": a.shape[along[0] or 0]})
                walk(through, [stream])
                level = (stream.env[way[-2].name] * draft.T / theta).clamp(0, draft.T)
                sent = (level + (level.floor() - level).detach()) * (theta / draft.T)
                loss = (sent - a).square().sum(1).mean()
                (weight.grad,) = torch.autograd.grad(loss, [weight])
            optimiser.step()
        if bool(weight.isfinite().all()):
            draft.tensors[path] = weight.detach()


def _check(recipe: SNNCLP | SNNCAP) -> None:
    check_granularity(recipe.granularity)
    check_number(recipe.momentum, "momentum", 0, 1, low_too=True)


def _start(draft: Draft, batches: Batches, granularity: Granularity, momentum: float) -> None:
    """Neurons with thresholds of least error, v(0) = 0 and the extra current θ/(2T)."""
    initial_neurons(draft, batches, None)
    for name, theta in mmse_thresholds(draft, batches, granularity, momentum).items():
        set_threshold(draft, name, theta)
    for neuron in placed(draft).values():
        neuron.v_init.data.zero_()
        neuron.bias.data = neuron.v_threshold.data[None] / (2 * draft.T)


def mmse_thresholds(
    draft: Draft, batches: Batches, granularity: Granularity, momentum: float = 0.9
) -> dict[str, Tensor]:
    """θ of least squared error of every ReLU layer, (C,) or (1,), by node name: the moving average over the batches."""
    names = sought(draft)
    if not names:
        return {}

    def best(node: Node, a: Tensor, number: int) -> Tensor:
        check_finite(node, a)
        return least_error(by_channel(a, node) if granularity == "channel" else a.reshape(1, -1), draft.T)

    first, *rest = of_each_batch(draft, batches, names, best, "thresholds of least error")
    theta = list(first)
    for batch in rest:
        theta = [momentum * old + (1 - momentum) * new for old, new in zip(theta, batch, strict=True)]
    return dict(zip(names, theta, strict=True))


def least_error(a: Tensor, T: int) -> Tensor:
    """The best of 95 thresholds for every row of activations a (C, N): (C,), 0 where a row is never above 0."""
    top = a.amax(1)
    rows = a[:, spread(a.shape[1], max(1, MOST // len(a)), a.device)]
    unit = unit_of(top)
    rows, scaled = rows / unit[:, None], torch.where(top > 0, top / unit, 1.0)
    best, least = scaled, torch.full_like(scaled, torch.inf)
    for i in range(CANDIDATES):
        theta = scaled * (1 - FINE * i)
        level = (rows / theta[:, None]).mul_(T).clamp_(0, T).floor_()
        error = level.mul_(theta[:, None] / T).sub_(rows).square_().mean(1)
        less = error < least
        best, least = torch.where(less, theta, best), torch.where(less, error, least)
    return torch.where(top > 0, best * unit, 0.0)


def _lacking(lockstep: Lockstep, node: Node, neuron: IntegrateFire, mean: Any) -> Tensor:
    """mean(a) − mean(s̄) over the whole set. mean: of one batch (B, …), over its samples at least."""

    def measure(a: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        sent = mean_output(neuron, z, lockstep.draft.T)
        return mean(a) - mean(sent), torch.tensor(float(a.numel()), dtype=torch.float64)

    parts = over_set(lockstep, node, measure)
    total = sum((part[1] for part in parts), torch.zeros((), dtype=torch.float64))
    return sum((part[0] * (part[1] / total) for part in parts), torch.zeros_like(parts[0][0]))


def _each(x: Tensor, node: Node) -> Tensor:
    """The mean over samples of every neuron, or of every channel where samples do not run along the first dimension."""
    return x.double().mean(0) if node.batch_dim == 0 else by_channel(x, node).double().mean(1)


def _way(draft: Draft, synapse: Node) -> list[Node] | None:
    """The synapse, the additions behind it and the neurons that they lead to; None where they lead elsewhere, or add
    what is made later."""
    graph: Graph = draft.graph
    readers = graph.consumers()
    way = [synapse]
    for _ in branches(graph, synapse):
        way.append(readers[way[-1].name][0])
    behind = readers[way[-1].name]
    if len(behind) != 1 or behind[0].name not in draft.neurons or way[-1].name in graph.outputs:
        return None
    return [*way, behind[0]]


def _batch_dim(graph: Graph, name: str) -> int | None:
    """The dimension of a value that samples run along; None where it is the same for all."""
    return graph.by_name[name].batch_dim if name in graph.by_name else 0


def _drawn(
    parts: list[tuple[Tensor, ...]], along: list[int | None], number: int, generator: torch.Generator
) -> list[Tensor]:
    """Samples drawn from the batches: of one batch, which are of one size. along: where they stand in each value."""
    dim = along[0] or 0
    weights = torch.tensor([float(part[0].shape[dim]) for part in parts])
    part = parts[int(torch.multinomial(weights, 1, generator=generator))]
    count = part[0].shape[dim]
    rows = torch.randint(count, (min(number, count),), generator=generator).to(part[0].device)
    return [x if d is None else x.index_select(d, rows) for x, d in zip(part, along, strict=True)]
