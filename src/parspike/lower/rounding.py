"""Weights that are rounded one after the other, each making good for the errors of those before it.

What matters of a weight w rounded to q is the error of the synapse's output, (w − q)ᵀ H (w − q) with H = X'ᵀX' of what
it reads. Weights are rounded one by one, and those not rounded yet move to where that error is least, which is one row
of the Cholesky factor of H⁻¹ (Frantar et al., GPTQ, ICLR 2023, equations 2 and 3). The bias comes last and takes what
is left of the mean. Before that, the synapse is fitted to the network of real numbers on what it reads *now*, behind
layers that are rounded already (Zhang et al., Qronos, 2025, correct errors of earlier layers likewise): that is the
closed form of `calibrate.refit`, which keeps a change only where rows that it has not seen confirm it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parspike.calibrate.refit import Refit, refittable
from parspike.graph import Graph, Hook, Node, Schedule, Stream, walk
from parspike.neurons import Dynamics, SpikingLayer

__all__ = ["JOINS", "Fitting", "finest", "in_parts", "largest_joined", "one_by_one"]

ROWS = 1 << 13
"""Places that a synapse is fitted on, in all."""
ELEMENTS = 1 << 23
"""Of the largest value of all images that are taken: 32 MiB in float32."""
MOST_FEATURES = 6144
"""Inputs of one output beyond which H takes too much memory; weights are then rounded to the nearest."""
DAMPING = 0.01
"""Added to the diagonal of H, as a fraction of its mean: as GPTQ does. More where rows are few."""
CLIPS = tuple(1 - 0.05 * n for n in range(13))
"""Fractions of the largest weight that the grid of an output may end at."""
BLOCK = 128
JOINS = ("aten.cat.default", "aten.stack.default")
JOINED = 64
"""Samples by which it is seen how large joined values are."""
EXACT = 1e-12
"""By how much a fraction may differ from another for the sake of rounding in float64."""


class Fitting:
    """The network of real numbers (teacher) and the one in whole numbers as far as it is made (student), side by side
    on the same images, in float32: what is rounded here is looked at, and goes into no network.

    graph: that of real numbers, with its tensors. batches: inputs by name.
    """

    def __init__(
        self, graph: Graph, neurons: Mapping[str, SpikingLayer], T: int, batches: list[dict[str, Tensor]]
    ) -> None:
        self.graph, self.T = graph, T
        self.neurons = {name: copy.deepcopy(neuron).float() for name, neuron in neurons.items()}
        tensors = {path: _float(tensor) for path, tensor in graph.tensors.items()}
        largest = max(math.prod(int(n) for n in node.shape if isinstance(n, int)) for node in graph.nodes)
        left = max(8, ELEMENTS // largest)
        self.teachers: list[Stream] = []
        self.students: list[Stream] = []
        for batch in batches:
            if left <= 0:
                break
            env = {name: _float(x[:left].detach()) for name, x in batch.items()}
            left -= len(next(iter(env.values())))
            self.teachers.append(Stream(dict(env), tensors, graph.sizes(env)))
            self.students.append(Stream(dict(env), {}, graph.sizes(env)))
        self.alive = {name: len(readers) for name, readers in graph.consumers().items()}
        for name in graph.outputs:
            self.alive[name] += 1

    def start(self, nodes: list[Node], tensors: Mapping[str, Tensor]) -> None:
        """Put the inputs on their grids: nodes of the student, with their tensors."""
        for student in self.students:
            student.tensors = {path: _float(tensor) for path, tensor in tensors.items()}
            _run(nodes, student, {}, self.T)

    def rows(self, node: Node, weight: Tensor, values: Mapping[str, tuple[str, Tensor]]) -> Refit | None:
        """What a synapse reads in the student and what it should give; None where it has no closed form.

        values: by node of the real network, the node that holds its whole numbers, and their grid.
        """
        if not refittable(self.graph, node) or weight[0].numel() > MOST_FEATURES:
            return None
        made = Refit(self.graph, node, weight, max(64, ROWS // len(self.teachers)), len(self.teachers))
        if any(name not in values for name in made.others):
            made.others = []
        for number, (teacher, student) in enumerate(zip(self.teachers, self.students, strict=True)):
            env = {}
            for name in (*node.refs, *made.others):
                whole, grid = values[name]
                env[name] = student.env[whole] * grid.float()
            made.add(teacher, Stream(env, teacher.tensors, student.sizes), number)
        return made

    def passed(
        self,
        node: Node,
        new: list[Node],
        tensors: Mapping[str, Tensor],
        made: Mapping[str, SpikingLayer],
        kept: set[str],
    ) -> None:
        """Both networks after a node: new, the nodes that the student computes it with, with their tensors and neurons;
        kept: nodes of the student that later ones read."""
        tensors = {path: _float(tensors[path]) for other in new for path in other.params}
        made = {other.name: copy.deepcopy(made[other.name]).float() for other in new if other.name in made}
        for teacher, student in zip(self.teachers, self.students, strict=True):
            _run([node], teacher, self.neurons, self.T)
            student.tensors = tensors
            _run(new, student, made, self.T)
            for name in set(student.env) - kept:
                del student.env[name]
        for name in node.refs:
            self.alive[name] -= 1
            if not self.alive[name]:
                for teacher in self.teachers:
                    teacher.env.pop(name, None)


def largest_joined(
    graph: Graph, neurons: Mapping[str, SpikingLayer], T: int, batches: list[dict[str, Tensor]]
) -> dict[str, float]:
    """The largest magnitude of every value of the real network that is joined to others, on some of these inputs."""
    joined = {ref for node in graph.nodes if node.target in JOINS for ref in node.refs}
    if not joined:
        return {}
    env: dict[str, Any] = {name: x[:JOINED].detach() for name, x in batches[0].items()}
    env = {name: x.double() if x.is_floating_point() else x for name, x in env.items()}
    stream = Stream(env, graph.tensors, graph.sizes(env))

    def double(leaf: Any) -> Any:
        return torch.float64 if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf

    nodes = [node.mapped(double) for node in graph.nodes]  # one that makes places says their type
    walk(Schedule.of(nodes, [*joined]), [stream], dict.fromkeys(neurons, _firing(neurons, T)))
    return {name: float(stream.env[name].abs().max()) if stream.env[name].numel() else 0.0 for name in joined}


def _firing(neurons: Mapping[str, SpikingLayer], T: int) -> Hook:
    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        neuron = neurons[node.name]
        if not isinstance(neuron, Dynamics):
            return [neuron(args[0])]
        # Neurons with a state are fed with the mean current at every step, and give their mean.
        return [neuron.advance(None, args[0].expand(T, *args[0].shape))[1].mean(0)]

    return fire


def _run(nodes: list[Node], stream: Stream, neurons: Mapping[str, SpikingLayer], T: int) -> None:
    def single(leaf: Any) -> Any:
        return torch.float32 if leaf is torch.float64 else leaf

    nodes = [node.mapped(single) for node in nodes]  # one that makes zeros says their type
    kept = [name for node in nodes for name in (node.name, *node.refs)]
    walk(Schedule.of(nodes, kept), [stream], dict.fromkeys(neurons, _firing(neurons, T)))


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def finest(weight: Tensor, power: Tensor | None, top: int) -> Tensor:
    """The grid of every output whose rounding errs least: weight (groups, outputs, features), power (groups, features),
    the sum of squares of what is read; None: unknown. top: the largest whole number. (groups, outputs)"""
    largest = weight.abs().amax(2)
    if power is None:
        return torch.where(largest > 0, largest / top, 1.0)
    errors = []
    for clip in CLIPS:
        grid = torch.where(largest > 0, largest * clip / top, 1.0)[:, :, None]
        errors.append(((weight - (weight / grid).round().clamp(-top, top) * grid).square() * power[:, None, :]).sum(2))
    best = torch.stack(errors).argmin(0)
    return torch.where(largest > 0, largest * torch.tensor(CLIPS, dtype=weight.dtype)[best] / top, 1.0)


def in_parts(weight: Tensor, top: int) -> tuple[Tensor, float]:
    """Whole numbers up to `top`, and into how many parts 1 is divided for them: the fewest of which all weights are
    whole multiples, as those of interpolation are; rounded to the nearest where that takes numbers beyond `top`."""
    largest = float(weight.abs().max())
    for parts in range(1, int(top / largest) + 1):
        whole = (weight * parts).round()
        if bool(((weight * parts - whole).abs() <= EXACT * parts).all()):
            return whole, float(parts)
    return (weight * (top / largest)).round(), top / largest


def one_by_one(weight: Tensor, bias: Tensor, grid: Tensor, rows: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Whole weights (groups, outputs, features) on a grid (groups, outputs), and the bias (groups, outputs) that makes
    good for what they leave. rows (groups, N, features + 1): what is read, 1 last."""
    number = rows.shape[2]
    gram = rows.mT @ rows
    size = gram.diagonal(dim1=1, dim2=2)[:, :-1].mean(1)
    damping = torch.ones(number, dtype=gram.dtype)
    damping[-1] = 1e-4
    fraction = DAMPING * (1 + number / rows.shape[1])
    scale = torch.where(size > 0, size, 1.0) * fraction
    gram = gram + torch.diag(damping) * scale[:, None, None]
    # Inputs that carry much are rounded first, while there are others to make good for them; the bias stays last.
    order = gram.diagonal(dim1=1, dim2=2)[:, :-1].sum(0).argsort(descending=True)
    order = torch.cat([order, torch.tensor([number - 1])])
    gram = gram[:, order][:, :, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left = torch.cat([weight, bias[:, :, None]], 2)[:, :, order]
    found = torch.zeros_like(left)
    for start in range(0, number - 1, BLOCK):
        stop = min(start + BLOCK, number - 1)
        errors = torch.zeros(*left.shape[:2], stop - start, dtype=left.dtype)
        for column in range(start, stop):
            found[:, :, column] = (left[:, :, column] / grid).round().clamp(-top, top)
            error = (left[:, :, column] - found[:, :, column] * grid) / factor[:, column, column, None]
            left[:, :, column + 1 : stop] -= error[:, :, None] * factor[:, None, column, column + 1 : stop]
            errors[:, :, column - start] = error
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    back = order.argsort()
    return found[:, :, back][:, :, :-1], left[:, :, -1]
