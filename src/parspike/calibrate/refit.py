"""Closed-form re-fit of a synapse on the student's quantised input (method.md, facts beyond the paper).

With X' the student's inputs (a row for every place the synapse looks at), r = target − student's output, the change of
the weights and the bias is the ridge solution Δ = (X'ᵀX' + λ diag)⁻¹ X'ᵀ r, where λ pulls towards the present weights.
The target is the teacher's output plus what the student lacks in the other branches that are added to it. Before a
ReLU, what is below zero need not be met: where the teacher is silent the target is min(student's output, 0), brought up
to date a few times with the same matrix, which makes each round's squared error an upper bound of that of the rectified
outputs. λ is chosen on rows held out, Δ = 0 among the choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.calibrate.channels import unit_of
from parspike.graph import Clip, Graph, Node, Param, Quantised, Ref, Role, Stream
from parspike.graph.ops import TABLE, call
from parspike.graph.signature import Conv, arguments
from parspike.together import Together

__all__ = ["Refit", "branches", "refittable"]

CONV = {"aten.conv1d.default": 1, "aten.conv2d.default": 2, "aten.conv3d.default": 3}
LINEAR = "aten.linear.default"
ROUNDS = 6
"""Solutions with the same matrix, the target brought up to date between them."""
BIAS = 1e-4
"""Penalty of the bias beside that of a weight."""
HELD_OUT = 0.2
"""Share of the rows, those of the last batches."""
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ as fractions of the mean of the diagonal of X'ᵀX'."""


def refittable(graph: Graph, node: Node) -> bool:
    """A convolution or linear layer with weights of its own."""
    if (node.target not in CONV and node.target != LINEAR) or not isinstance(node.args[1], Param):
        return False
    return sum(path in n.params for n in graph.nodes for path in node.params[:1]) == 1


def branches(graph: Graph, node: Node) -> list[str]:
    """Values, made before `node`, that are added to its output on the way to the next activation."""
    readers, index = graph.consumers(), {n.name: i for i, n in enumerate(graph.nodes)}
    found: list[str] = []
    here = node
    while len(readers[here.name]) == 1 and readers[here.name][0].target == "aten.add.Tensor":
        add = readers[here.name][0]
        if add.kwargs or len(add.args) != 2 or not all(isinstance(arg, Ref) for arg in add.args):
            break
        other = next((arg.name for arg in add.args if arg.name != here.name), here.name)
        if index.get(other, -1) >= index[node.name]:
            break
        found.append(other)
        here = add
    return found


def _rectified(graph: Graph, node: Node) -> bool:
    """Whether the output goes, through additions alone, into one activation that is silent below 0."""
    readers = graph.consumers()
    here = node
    while len(readers[here.name]) == 1:
        here = readers[here.name][0]
        if here.target != "aten.add.Tensor":
            describe = TABLE[here.target].activation if here.role is Role.NEURON else None
            answer = None if describe is None else describe(here)
            return isinstance(answer, Quantised) or (isinstance(answer, Clip) and answer.low == 0)
    return False


@dataclass
class _Geometry:
    """How a convolution looks at its input, per dimension; a linear layer has none."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


def _geometry(node: Node, weight: Tensor) -> _Geometry:
    conv, kernel = arguments(node), tuple(weight.shape[2:])
    if not isinstance(conv, Conv):
        return _Geometry((), (), (), (), 1)
    return _Geometry(kernel, conv.stride, conv.padded(kernel), conv.dilation, conv.groups)


class Refit:
    """Rows for one synapse, and the solution. rows: rows per batch, at most."""

    def __init__(self, graph: Graph, node: Node, weight: Tensor, rows: int) -> None:
        self.node, self.rows = node, rows
        self.others = branches(graph, node)
        self.rectified = _rectified(graph, node)
        self.geometry = _geometry(node, weight)
        self.groups = self.geometry.groups if node.target in CONV else 1
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, teacher: Stream, student: Stream, number: int) -> None:
        """Add batch `number`."""
        node = self.node
        wanted = call(node.target, *teacher.arguments(node))
        args, kwargs = student.arguments(node)
        given = call(node.target, args, kwargs)
        for other in self.others:
            wanted, given = wanted + teacher.env[other], given + student.env[other]
        self.parts.append(self._rows(args[0], given, wanted, number))

    def _rows(self, x: Tensor, given: Tensor, wanted: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (groups, N, features + 1); what the student has and should have, (groups, N, outputs of the group)."""
        if self.node.target == LINEAR:
            x, given, wanted = (value.flatten(0, -2) for value in (x, given, wanted))
            pick = _spread(len(x), self.rows, number)
            rows, given, wanted = (value[pick][None] for value in (x, given, wanted))
        else:
            g = self.geometry
            places = given[:, 0].shape
            pick = _spread(given[:, 0].numel(), self.rows, number)
            where = torch.unravel_index(pick, places)
            given, wanted = (
                value.movedim(1, -1)[where].unflatten(1, (self.groups, -1)).movedim(1, 0) for value in (given, wanted)
            )
            padding = [size for pair in reversed(g.padding) for size in pair]
            padded = F.pad(x, padding) if any(padding) else x
            index: list[Any] = [_along(where[0], 0, len(g.kernel)), slice(None)]
            for d, (kernel, stride, dilation) in enumerate(zip(g.kernel, g.stride, g.dilation, strict=True)):
                offsets = torch.arange(kernel, device=x.device) * dilation
                shape = [1] * (len(g.kernel) + 1)
                shape[d + 1] = kernel
                index.append(_along(where[d + 1] * stride, 0, len(g.kernel)) + offsets.reshape(shape))
            patches = padded[tuple(index)].movedim(-1, 1)  # (N, C, kernel…)
            rows = patches.unflatten(1, (self.groups, -1)).flatten(2).movedim(1, 0)
        return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2), given, wanted

    def solve(
        self, weight: Tensor, bias: Tensor | None, ridge: float | None = None, together: Together | None = None
    ) -> tuple[Tensor, Tensor]:
        """New weight and bias. λ, and whether to change at all, are chosen on rows held out, output by output.

        together: processes with the same rows; each tries some of the λ.
        """
        together = together or Together()
        x, given, wanted = (torch.cat(parts, 1) for parts in zip(*self.parts, strict=True))
        # Inputs and outputs in units in which squares neither vanish nor overflow; the bias is in the outputs' unit.
        unit = unit_of(x[:, :, :-1].abs().amax((1, 2), keepdim=True))
        x = torch.cat([x[:, :, :-1] / unit, x[:, :, -1:]], 2) if bool((unit != 1).any()) else x
        outward = unit_of(torch.maximum(given.abs(), wanted.abs()).amax(1, keepdim=True))
        given, wanted = given / outward, wanted / outward
        cut = max(1, round(x.shape[1] * (1 - HELD_OUT)))
        fitted, held = (_Rows(*(v[:, part] for v in (x, given, wanted))) for part in (slice(0, cut), slice(cut, None)))
        solver = _Solver(fitted.x)
        best = torch.zeros(x.shape[0], x.shape[2], given.shape[2], dtype=torch.float64)
        least = held.error(best, self.rectified)
        if ridge is not None:
            least = torch.full_like(least, torch.inf)
        which = torch.full_like(least, -1, dtype=torch.long)
        for number, fraction in together.share(RIDGES if ridge is None else (ridge,)):
            if not solver.factorise(fraction):
                continue
            change = torch.zeros_like(best)
            for _ in range(ROUNDS if self.rectified else 1):
                change = solver(fitted.target(change, self.rectified) - given[:, :cut])
            error = held.error(change, self.rectified)
            better = error < least
            least, which = torch.where(better, error, least), torch.where(better, number, which)
            best = torch.where(better[:, None, :], change, best)
        for rank, (error, change, tried) in enumerate(together.gather({together.rank: [least, best, which]})):
            if rank != together.rank:
                # Of equals the one that a single process would have met first.
                better = (error < least) | ((error == least) & (tried < which))
                least, which = torch.where(better, error, least), torch.where(better, tried, which)
                best = torch.where(better[:, None, :], change, best)
        best = best * outward.double()
        delta = (best[:, :-1] / unit.double()).mT.reshape(weight.shape)
        old = torch.zeros(weight.shape[0], dtype=best.dtype) if bias is None else bias.double()
        return (weight.double() + delta).to(weight.dtype), (old + best[:, -1].reshape(-1)).to(weight.dtype)


class _Solver:
    """Δ = (XᵀX + λD)⁻¹ Xᵀ r for rows X (groups, N, features + 1), D leaving the bias all but free.

    With fewer rows than features the same Δ is D⁻¹Xᵀ (X D⁻¹Xᵀ + λ)⁻¹ r, whose matrix is N × N: a wide layer (VGG's
    first linear layer has 25,088 inputs) costs what its rows do.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.size = x.square().mean(1)[:, :-1].mean(1).clamp(min=1e-12).double() * x.shape[1]
        self.free = torch.ones(x.shape[2], dtype=torch.float64)
        self.free[-1] = BIAS
        self.wide = x.shape[1] < x.shape[2]
        self.matrix = ((x / self.free.to(x.dtype)) @ x.mT if self.wide else x.mT @ x).double()
        self.factor = self.matrix

    def factorise(self, fraction: float) -> bool:
        """Take λ as a fraction of the mean of the diagonal of XᵀX; whether that can be solved."""
        penalty = torch.ones(len(self.matrix[0]), dtype=torch.float64) if self.wide else self.free
        system = self.matrix + torch.diag(penalty) * (self.size * fraction)[:, None, None]
        self.factor, failed = torch.linalg.cholesky_ex(system)
        return not bool(failed.any())

    def __call__(self, residual: Tensor) -> Tensor:
        if not self.wide:
            return torch.cholesky_solve((self.x.mT @ residual).double(), self.factor)
        dual = torch.cholesky_solve(residual.double(), self.factor).to(self.x.dtype)
        return (self.x.mT @ dual).double() / self.free[:, None]


@dataclass
class _Rows:
    """Rows x (groups, N, features + 1), the student's present outputs for them, and the wanted outputs."""

    x: Tensor
    given: Tensor
    wanted: Tensor

    def now(self, change: Tensor) -> Tensor:
        return self.given + self.x @ change.to(self.x.dtype)

    def target(self, change: Tensor, rectified: bool) -> Tensor:
        if not rectified:
            return self.wanted
        return torch.where(self.wanted > 0, self.wanted, self.now(change).clamp_(max=0))

    def error(self, change: Tensor, rectified: bool) -> Tensor:
        """Mean squared error of what comes behind, (groups, outputs of the group)."""
        now, wanted = self.now(change), self.wanted
        if rectified:
            now, wanted = now.clamp(min=0), wanted.clamp(min=0)
        return (now - wanted).square().mean(1)


def _spread(count: int, limit: int, number: int) -> Tensor:
    """An even subset of `limit` of `count` places, another one for every batch."""
    if count <= limit:
        return torch.arange(count)
    steps = torch.arange(limit, dtype=torch.float64) + 0.5 * number
    return (steps * 0.6180339887498949 % 1.0 * count).long()


def _along(index: Tensor, before: int, after: int) -> Tensor:
    return index.reshape(*[1] * before, -1, *[1] * after)


def features(weight: Tensor) -> int:
    """Number of inputs that one output of the synapse reads."""
    return int(weight[0].numel())
