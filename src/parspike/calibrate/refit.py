"""Closed-form re-fit of a synapse on the student's quantised input (method.md, facts beyond the paper).

With X' the student's inputs (a row for every place the synapse looks at), r = target − student's output, the change of
the weights and the bias is the ridge solution Δ = (X'ᵀX' + λ diag)⁻¹ X'ᵀ r, where λ pulls towards the present weights.
The target is the teacher's output plus what the student lacks in the other branches that are added to it. Before a
ReLU, what is below zero need not be met: where the teacher is silent the target is min(student's output, 0), brought up
to date a few times with the same matrix, which makes each round's squared error an upper bound of that of the rectified
outputs. λ is chosen on rows held out, Δ = 0 among the choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.channels import spread, unit_of
from parspike.graph import Clip, Graph, Node, Param, Quantised, Ref, Role, Stream
from parspike.graph.ops import TABLE, call
from parspike.graph.signature import Conv, arguments
from parspike.together import Together

__all__ = ["Refit", "branches", "refittable"]

CONV = {"aten.conv1d.default": 1, "aten.conv2d.default": 2, "aten.conv3d.default": 3}
LINEAR = "aten.linear.default"
ROUNDS = 3
"""Solutions with the same matrix, the target brought up to date between them."""
BIAS = 1e-4
"""Penalty of the bias beside that of a weight."""
NARROW = 512
"""Features up to which a Gram matrix is one product."""
KEPT = 1 << 25
"""Numbers of all factors of one matrix that are kept for the next solution (256 MiB)."""
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
    """Values, made before `node`, that are added to its output on the way to the next activation. A sum that repeats
    the output, such as a value and an advantage of each action, ends the way."""
    readers, index = graph.consumers(), {n.name: i for i, n in enumerate(graph.nodes)}
    found: list[str] = []
    here = node
    while len(readers[here.name]) == 1 and readers[here.name][0].target == "aten.add.Tensor":
        add = readers[here.name][0]
        if add.kwargs or len(add.args) != 2 or not all(isinstance(arg, Ref) for arg in add.args):
            break
        if add.shape != node.shape:
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


def _normed(graph: Graph, node: Node) -> bool:
    """Whether a normalisation reads the output of a linear layer, or the sum that it is added to.

    Then an error counts by its share of the row. A few rows of a language model's residual stream (the first token's)
    are a thousand times as large as all others; their squares would decide every weight, though the norm behind divides
    them away.
    """
    readers, here = graph.consumers(), node
    if node.target != LINEAR:
        return False
    while not any(reader.role is Role.ANALOG for reader in readers[here.name]):
        behind = readers[here.name]
        if len(behind) != 1 or behind[0].target != "aten.add.Tensor":
            return False
        here = behind[0]
    return True


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
    """Rows for one synapse, and the solution. rows: per batch, at most. batches: as many as will be added, about."""

    def __init__(self, graph: Graph, node: Node, weight: Tensor, rows: int = 1, batches: int = 1) -> None:
        self.node, self.rows, self.batches = node, rows, batches
        self.others = branches(graph, node)
        self.rectified, self.normed = _rectified(graph, node), _normed(graph, node)
        self.geometry = _geometry(node, weight)
        self.groups = self.geometry.groups if node.target in CONV else 1
        self.held: _Rows | None = None  # with room for more rows than there are yet
        self.ends = [0]  # of the batches' rows

    def add(self, teacher: Stream, student: Stream, number: int) -> None:
        """Add batch `number`. The teacher's stream keeps a convolution's output, since the walk needs it next."""
        node = self.node
        (x, weight, *rest), _ = student.arguments(node)
        if node.target == LINEAR:
            # Only the rows that are taken: the output of a language model has a value for every word.
            picked = self._places(x, x, number)
            (own, *of_teacher), kwargs = teacher.arguments(node)
            wanted = call(node.target, (own[picked], *of_teacher), kwargs)[None]
            shape = (*x.shape[:-1], weight.shape[0])
        else:
            if node.name not in teacher.env:
                teacher.env[node.name] = call(node.target, *teacher.arguments(node))
            y = teacher.env[node.name]
            picked, shape = self._places(x, y, number), tuple(y.shape)
            wanted = self._outputs(y, picked)
        rows = x[picked][None] if node.target == LINEAR else self._read(x, picked)
        now = self.put(rows, wanted)
        torch.matmul(now.x[:, :, :-1], weight.reshape(self.groups, -1, now.x.shape[2] - 1).mT, out=now.given)
        if rest and rest[0] is not None:
            now.given += rest[0].reshape(self.groups, 1, -1)
        for other in self.others:
            for sum_, stream in ((now.wanted, teacher), (now.given, student)):
                sum_ += self._outputs(stream.env[other].expand(shape), picked)

    def put(self, rows: Tensor, wanted: Tensor, given: Tensor | None = None) -> _Rows:
        """Add a batch's rows (groups, N, …), all but the last dimensions of what one output reads; returns where they
        are kept. given: what the student gives for them; else the caller writes it."""
        inputs, (groups, number, outputs) = rows.shape[2:], wanted.shape
        wide, start = math.prod(inputs), self.ends[-1]
        end = start + number
        if self.held is None or end > self.held.x.shape[1]:
            # Made once for all batches, so that rows are copied once.
            room, old = max(number * self.batches, end * 3 // 2 if start else 0), self.held
            self.held = _Rows(*(wanted.new_empty(groups, room, width) for width in (wide + 1, outputs, outputs)))
            if old is not None:
                for new, before in zip(self.held.tensors, old.tensors, strict=True):
                    new[:, :start] = before[:, :start]
        self.ends.append(end)
        here = self.held.part(slice(start, end))
        here.x[:, :, :-1].unflatten(2, inputs).copy_(rows)
        here.x[:, :, -1] = 1.0
        here.wanted.copy_(wanted)
        if given is not None:
            here.given.copy_(given)
        return here

    @property
    def all(self) -> _Rows:
        """The rows of all batches so far."""
        if self.held is None:
            raise RuntimeError("no batch was added")
        return self.held.part(slice(0, self.ends[-1]))

    def share(self, batches: Batches) -> None:
        """Take the rows of all processes, in the order of the batches."""
        if batches.together.size > 1:
            mine = [self.all.part(slice(*ends)) for ends in pairwise(self.ends)]
            every = batches.gather([rows.tensors for rows in mine])
            self.held = _Rows(*(torch.cat(parts, 1) for parts in zip(*every, strict=True)))
            self.ends = [0, self.held.x.shape[1]]

    def _places(self, x: Tensor, y: Tensor, number: int) -> tuple[Tensor, ...]:
        """Which places of a batch's output y are taken, along batch and space."""
        places = tuple(y.shape[:-1]) if self.node.target == LINEAR else (len(y), *y.shape[2:])
        return torch.unravel_index(spread(math.prod(places), self.rows, x.device, number), places)

    def _outputs(self, y: Tensor, picked: tuple[Tensor, ...]) -> Tensor:
        """A value of the output's shape at the places taken: (groups, N, outputs of the group)."""
        rows = y[picked] if self.node.target == LINEAR else y.movedim(1, -1)[picked]  # a copy
        return rows.unflatten(1, (self.groups, -1)).movedim(1, 0)

    def _read(self, x: Tensor, picked: tuple[Tensor, ...]) -> Tensor:
        """What a convolution reads for the places taken, (groups, N, channels of the group, kernel): only these values
        are copied, however large the input is."""
        g, beside = self.geometry, [1] * len(self.geometry.kernel)
        index = [picked[0].reshape(-1, *beside)]
        padding: Tensor | None = None
        along = zip(picked[1:], x.shape[2:], g.kernel, g.stride, g.padding, g.dilation, strict=True)
        for number, (where, size, kernel, stride, pads, dilation) in enumerate(along):
            at = (where * stride)[:, None] + (torch.arange(kernel, device=x.device) * dilation - pads[0])
            at = at.reshape(len(at), *(kernel if number == other else 1 for other in range(len(beside))))
            index.append(at.clamp(0, size - 1))
            if any(pads):
                outside = (at < 0) | (at >= size)
                padding = outside if padding is None else padding | outside
        rows = x.movedim(1, -1)[tuple(index)]
        if padding is not None:  # not a product: what lies at the edge may be infinite
            rows.masked_fill_(padding[..., None], 0.0)
        return rows.flatten(1, -2).unflatten(2, (self.groups, -1)).permute(2, 0, 3, 1)

    def solve(
        self,
        weight: Tensor,
        bias: Tensor | None,
        ridge: float | None = None,
        together: Together | None = None,
        *,
        all_rows: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """New weight and bias. λ, and whether to change at all, are chosen on rows held out, output by output.

        together: processes with the same rows; each tries some of the λ. all_rows: the solution with that λ is that of
        all rows; else of those not held out.
        """  # fmt: skip
        together = together or Together()
        x, given, wanted = self.all.tensors
        if self.normed:
            power = wanted.square().mean((0, 2))
            share = (power.median() / power.clamp(min=power.median())).sqrt().nan_to_num(1.0)[None, :, None]
            x, given, wanted = x * share, given * share, wanted * share
        # Inputs and outputs in units in which squares neither vanish nor overflow; the bias is in the outputs' unit.
        unit = unit_of(_largest(x[:, :, :-1], (1, 2)))
        x = torch.cat([x[:, :, :-1] / unit, x[:, :, -1:]], 2) if bool((unit != 1).any()) else x
        outward = unit_of(torch.maximum(_largest(given, 1), _largest(wanted, 1)))
        if bool((outward != 1).any()):
            given, wanted = given / outward, wanted / outward
        cut = max(1, round(x.shape[1] * (1 - HELD_OUT)))
        search = _Search(_Rows(x, given, wanted), cut, self.rectified, RIDGES if ridge is None else (ridge,), together)
        tried = best = search.choose()
        if self.rectified or all_rows:
            best = search.again(tried, all_rows=all_rows)
        if ridge is None:
            # What has not seen the rows held out: not the solution of all rows.
            unseen = tried if all_rows else best
            now, before = (search.held.error(change, self.rectified) for change in (unseen, None))
            best = torch.where((now < before)[:, None, :], best, 0.0)  # not where it is NaN
        best = best * outward.double()
        delta = (best[:, :-1] / unit.double()).mT.reshape(weight.shape)
        old = weight.new_zeros(weight.shape[0], dtype=best.dtype) if bias is None else bias.double()
        return (weight.double() + delta).to(weight.dtype), (old + best[:, -1].reshape(-1)).to(weight.dtype)


class _Search:
    """The change (groups, features + 1, outputs) with the λ, output by output, that is best on the rows held out for a
    solution on the others.

    together: each process solves with some of the λ; what takes rows each computes itself, so that the sums have the
    same order in any number of processes.
    """

    def __init__(self, rows: _Rows, cut: int, rectified: bool, ridges: Sequence[float], together: Together) -> None:
        self.rows, self.rectified, self.ridges, self.together = rows, rectified, ridges, together
        self.fitted, self.held = rows.part(slice(0, cut)), rows.part(slice(cut, None))
        self.solver = _Solver(self.fitted.x)
        self.right = self.which = torch.zeros(0)

    def choose(self) -> Tensor:
        """The change with the best λ, for the rows that are not held out."""
        self.right = self.solver.right(self.fitted.residual(None, self.rectified))
        mine = {n: [self.solver.solve(self.solver.factor(self.ridges[n]), self.right)] for n in self._mine()}
        changes = torch.stack([self.solver.back(part) for (part,) in self.together.gather(mine)])
        errors = torch.stack([self.held.error(change, self.rectified) for change in changes])
        # NaN where λ is too small for the matrix to be solved; of equals the largest λ.
        errors = errors.nan_to_num(torch.inf)
        self.which = len(self.ridges) - 1 - errors.flip(0).argmin(0)
        return changes.gather(0, self.which[None, :, None, :].expand(1, *changes.shape[1:]))[0]

    def again(self, change: Tensor, *, all_rows: bool) -> Tensor:
        """The change with the same λ, for all rows or for those of before; from the one before it, which says where a
        target before a ReLU is met already."""
        solver, rows = (self.solver.joined(self.rows.x, self.held.x), self.rows) if all_rows else (
            self.solver, self.fitted)  # fmt: skip
        factors = {number: solver.factor(self.ridges[number]) for number in self._mine() if number in self._asked()}
        if not self.rectified and not self.solver.wide:
            # The target stays, so the rows of the first solution need not be read again.
            return self._solved(solver, factors, self.right + self.held.x.mT @ self.held.residual(None, False))
        for _ in range(ROUNDS - 1 if self.rectified else 1):
            change = self._solved(solver, factors, solver.right(rows.residual(change, self.rectified)))
        return change

    def _mine(self) -> list[int]:
        """The λ, by their number, that this process solves with."""
        return [number for number, _ in self.together.share(self.ridges)]

    def _asked(self) -> list[int]:
        """The λ, by their number, that are best for some output."""
        return self.which.unique().tolist()

    def _solved(self, solver: _Solver, factors: Mapping[int, Tensor], right: Tensor) -> Tensor:
        """The solution with the λ of every output."""
        asked = self._asked()
        columns = {number: (self.which == number).any(0) for number in asked}
        mine = {n: [solver.solve(factor, right[:, :, columns[n]])] for n, factor in factors.items()}
        now = torch.zeros_like(right)
        for number, (part,) in zip(asked, self.together.gather(mine), strict=True):
            here = columns[number]
            now[:, :, here] = torch.where((self.which == number)[:, None, here], part, now[:, :, here])
        return solver.back(now)


class _Solver:
    """Δ = (XᵀX + λD)⁻¹ Xᵀ r for rows X (groups, N, features + 1), D leaving the bias all but free.

    With fewer rows than features the same Δ is D⁻¹Xᵀ (X D⁻¹Xᵀ + λ)⁻¹ r, whose matrix is N × N: a wide layer (VGG's
    first linear layer has 25,088 inputs) costs what its rows do. `right`, `solve` and `back` are the three parts of
    it, of which only the second knows λ.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.free = torch.ones(x.shape[2], dtype=torch.float64, device=x.device)
        self.free[-1] = BIAS
        self.wide = x.shape[1] < x.shape[2]
        self.factors: dict[float, Tensor] = {}
        self.matrix = ((x / self.free.to(x.dtype)) @ x.mT if self.wide else _gram(x)).double()
        if self.wide:
            self.size = x[:, :, :-1].square().mean((1, 2)).clamp(min=1e-12).double() * x.shape[1]
        else:
            self.size = self._mean_square()

    def _mean_square(self) -> Tensor:
        """Mean of the diagonal of XᵀX, that of the bias left out, (groups,)."""
        return self.matrix.diagonal(dim1=1, dim2=2)[:, :-1].mean(1).clamp(min=1e-12 * self.x.shape[1])

    def joined(self, every: Tensor, more: Tensor) -> _Solver:
        """The same for all rows `every`, those of this solver first and then `more`."""
        if self.wide:
            return _Solver(every)
        whole = copy(self)
        whole.x, whole.matrix = every, self.matrix + _gram(more).double()
        whole.size, whole.factors = whole._mean_square(), {}
        return whole

    def factor(self, fraction: float) -> Tensor:
        """The factor for λ as a fraction of the mean of the diagonal of XᵀX; NaN where that cannot be solved."""
        if (made := self.factors.get(fraction)) is not None:
            return made
        system = self.matrix.clone()
        system.diagonal(dim1=1, dim2=2).add_((self.size * fraction)[:, None] * (1.0 if self.wide else self.free))
        factor, failed = torch.linalg.cholesky_ex(system)
        factor[failed != 0] = torch.nan
        if (len(self.factors) + 1) * factor.numel() <= KEPT:
            self.factors[fraction] = factor
        return factor

    def right(self, residual: Tensor) -> Tensor:
        """From residuals (groups, N, outputs) the right-hand sides."""
        return (residual if self.wide else self.x.mT @ residual).double()

    def solve(self, factor: Tensor, right: Tensor) -> Tensor:
        """The solutions with one factor."""
        return torch.cholesky_solve(right, factor)

    def back(self, solution: Tensor) -> Tensor:
        """Δ (groups, features + 1, outputs) from solutions."""
        return (self.x.mT @ solution.to(self.x.dtype)).double() / self.free[:, None] if self.wide else solution


def _gram(x: Tensor) -> Tensor:
    """XᵀX for X (groups, N, features). It equals its transpose, so of a wide one little more than half is computed."""
    features = x.shape[2]
    if features <= NARROW:
        return x.mT @ x
    half = features // 2
    left, right = x[:, :, :half], x[:, :, half:]
    product = x.new_empty(len(x), features, features)
    product[:, :half, :half], product[:, half:, half:] = _gram(left), _gram(right)
    product[:, :half, half:] = left.mT @ right
    product[:, half:, :half] = product[:, :half, half:].mT
    return product


def _largest(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """The largest magnitude along dimensions, which are kept with size 1; no tensor of the magnitudes is made."""
    return torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))


@dataclass
class _Rows:
    """Rows x (groups, N, features + 1), the student's present outputs for them, and the wanted outputs."""

    x: Tensor
    given: Tensor
    wanted: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x, self.given, self.wanted

    def part(self, which: slice) -> _Rows:
        return _Rows(self.x[:, which], self.given[:, which], self.wanted[:, which])

    def now(self, change: Tensor | None) -> Tensor:
        return self.given.clone() if change is None else torch.baddbmm(self.given, self.x, change.to(self.x.dtype))

    def target(self, change: Tensor | None, rectified: bool) -> Tensor:
        if not rectified:
            return self.wanted
        return torch.where(self.wanted > 0, self.wanted, self.now(change).clamp_(max=0))

    def residual(self, change: Tensor | None, rectified: bool) -> Tensor:
        """What the present outputs lack to the target that a change gives."""
        return self.target(change, rectified) - self.given

    def error(self, change: Tensor | None, rectified: bool) -> Tensor:
        """Mean squared error of what comes behind, (groups, outputs of the group)."""
        now, wanted = self.now(change), self.wanted
        if rectified:
            now, wanted = now.clamp(min=0), wanted.clamp(min=0)
        return (now - wanted).square().mean(1)


def features(weight: Tensor) -> int:
    """Number of inputs that one output of the synapse reads."""
    return int(weight[0].numel())
