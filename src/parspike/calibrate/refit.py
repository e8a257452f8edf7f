"""Closed-form re-fit of a synapse on the student's quantised input (method.md, facts beyond the paper).

With X' the student's inputs (a row for every place the synapse looks at), r = target − student's output, the
change of the weights and the bias is the ridge solution Δ = (X'ᵀX' + λ diag)⁻¹ X'ᵀ r, which pulls towards the
weights as they are. X'ᵀX' and X'ᵀr are sums over rows, so batches, their order and processes do not matter.
The target is the teacher's output plus what the student lacks in the other branches that are added to it.
λ is chosen for every output channel on rows held out, Δ = 0 among the choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.graph import Graph, Node, Param, Ref, Stream
from parspike.graph.ops import call

__all__ = ["Refit", "branches", "refittable"]

CONV = {"aten.conv1d.default": 1, "aten.conv2d.default": 2, "aten.conv3d.default": 3}
LINEAR = "aten.linear.default"
HELD_OUT = 0.2
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


@dataclass
class _Geometry:
    """How a convolution looks at its input, per dimension; a linear layer has none."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def _geometry(node: Node, weight: Tensor) -> _Geometry:
    dims = CONV.get(node.target, 0)
    defaults = [1, 0, 1, 1]
    given = [*node.args[3:7], *defaults[len(node.args[3:7]) :]]
    stride, padding, dilation = ((v * dims if len(v) == 1 else v) if isinstance(v, (list, tuple)) else [v] * dims
                                 for v in given[:3])  # fmt: skip
    return _Geometry(tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), int(given[3]))


class Refit:
    """Sums for one synapse, and their solution. rows: rows per batch, at most."""

    def __init__(self, graph: Graph, node: Node, weight: Tensor, rows: int) -> None:
        self.node, self.rows = node, rows
        self.others = branches(graph, node)
        self.geometry = _geometry(node, weight)
        self.groups = self.geometry.groups if node.target in CONV else 1
        self.sums: list[list[Any]] = [[0, 0], [0, 0]]  # fitted on, held out

    def add(self, teacher: Stream, student: Stream, number: int) -> None:
        """Add batch `number`; the images at the end of it are held out."""
        node = self.node
        target = call(node.target, *teacher.arguments(node))
        args, kwargs = student.arguments(node)
        error = target - call(node.target, args, kwargs)
        for other in self.others:
            error = error + (teacher.env[other] - student.env[other])
        rows, residual = self._rows(args[0], error, number)
        cut = max(1, round(rows.shape[1] * (1 - HELD_OUT)))
        for place, part in enumerate((slice(0, cut), slice(cut, None))):
            x, r = rows[:, part], residual[:, part]
            gram, cross = self.sums[place]
            self.sums[place] = [gram + (x.mT @ x).double(), cross + (x.mT @ r).double()]

    def _rows(self, x: Tensor, error: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Rows (groups, N, features + 1) and residuals (groups, N, outputs of the group)."""
        if self.node.target == LINEAR:
            x, error = x.flatten(0, -2), error.flatten(0, -2)
            pick = _spread(len(x), self.rows, number).sort().values
            rows, residual = x[pick][None], error[pick][None]
        else:
            g = self.geometry
            places = error.movedim(1, -1)
            pick = _spread(places[..., 0].numel(), self.rows, number).sort().values
            where = torch.unravel_index(pick, places.shape[:-1])
            residual = places[where].unflatten(1, (self.groups, -1)).movedim(1, 0)
            padding = [p for size in reversed(g.padding) for p in (size, size)]
            padded = F.pad(x, padding) if any(padding) else x
            index: list[Any] = [_along(where[0], 0, len(g.kernel)), slice(None)]
            for d, (kernel, stride, dilation) in enumerate(zip(g.kernel, g.stride, g.dilation, strict=True)):
                offsets = torch.arange(kernel, device=x.device) * dilation
                shape = [1] * (len(g.kernel) + 1)
                shape[d + 1] = kernel
                index.append(_along(where[d + 1] * stride, 0, len(g.kernel)) + offsets.reshape(shape))
            patches = padded[tuple(index)].movedim(-1, 1)  # (N, C, kernel…)
            rows = patches.unflatten(1, (self.groups, -1)).flatten(2).movedim(1, 0)
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
        return rows, residual

    def solve(self, weight: Tensor, bias: Tensor | None, ridge: float | None) -> tuple[Tensor, Tensor, float]:
        """New weight and bias, and the share of the held-out squared error that they take away."""
        (gram, cross), (gram_out, cross_out) = self.sums
        diagonal = gram.diagonal(dim1=1, dim2=2)[:, :-1].mean(1).clamp(min=1e-12)
        best = torch.zeros_like(cross)
        gain = torch.zeros(cross.shape[0], cross.shape[2], dtype=cross.dtype)
        for fraction in RIDGES if ridge is None else (ridge,):
            penalty = torch.ones(gram.shape[1], dtype=gram.dtype)
            penalty[-1] = 1e-9  # the bias is free
            system = gram + torch.diag(penalty) * (diagonal * fraction)[:, None, None]
            factor, info = torch.linalg.cholesky_ex(system)
            if bool(info.any()):
                continue
            change = torch.cholesky_solve(cross, factor)
            gained = 2 * (change * cross_out).sum(1) - (change * (gram_out @ change)).sum(1)
            better = gained > gain
            gain = torch.where(better, gained, gain)
            best = torch.where(better[:, None, :], change, best)
        delta = best[:, :-1].mT.reshape(weight.shape)
        shift = best[:, -1].reshape(-1)
        old = torch.zeros_like(shift) if bias is None else bias.double()
        return (weight.double() + delta).to(weight.dtype), (old + shift).to(weight.dtype), float(gain.sum())


def _spread(count: int, limit: int, number: int) -> Tensor:
    """An even subset of `limit` of `count` places, another one for every batch."""
    if count <= limit:
        return torch.arange(count)
    steps = torch.arange(limit, dtype=torch.float64) + 0.5 * number
    return (steps * 0.6180339887498949 % 1.0 * count).long()


def _along(index: Tensor, before: int, after: int) -> Tensor:
    return index.reshape(*[1] * before, -1, *[1] * after)


def features(node: Node, weight: Tensor) -> int:
    """Number of inputs that one output of the synapse reads."""
    return int(weight[0].numel())
