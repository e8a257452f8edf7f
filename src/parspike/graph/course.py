"""How a function of one number goes, over all numbers: does it never fall, or fall once and then rise? Is it a clip?

A function is followed on a grid that reaches from the smallest to the largest numbers of float64, not on a window. What
lies between two of its points is found by watching each operator that the function runs: where a value that it reads
passes one of the operator's own numbers (a bound of a clamp, the limit of a comparison) or zero, or where what it makes
turns, the grid is refined down to rounding. So a cap at 65504 or a step at 50,000.3 is met wherever it stands. A fall
counts only beyond what rounding may do to the value, which is followed through the operators as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parspike.graph.ir import leaves, map_tree

__all__ = ["Course", "Trail", "Turn", "clip_of", "course_of", "turn_of"]

Turn = tuple[float, float]
"""Where a function that falls and then rises turns, and its value there."""

WINDOW = 60.0
"""A function must be finite up to here. Farther out it may overflow: there the network that holds it overflows too."""
PARTS, ROUNDS, MOST_CELLS = 32, 9, 400
"""Parts that a cell is divided into, times in a row, and cells divided at most. 32⁹ parts are finer than float64."""
CORNERS = {"hardsigmoid": (-3.0, 3.0), "hardswish": (-3.0, 3.0), "softshrink": (-0.5, 0.5), "hardshrink": (-0.5, 0.5),
           "hardtanh": (-1.0, 1.0), "softplus": (20.0,)}  # fmt: skip
"""Numbers at which an operator changes though they are not among its arguments."""

SUMS_INSIDE = ("gelu", "hardswish", "hardsigmoid")
"""Operators whose value may be much smaller than what they sum up inside, so that it is rounded by more."""


class Trail(TorchDispatchMode):
    """Watches a function at work on x: what each operator read and made, and how far rounding may have moved it."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.steps: list[tuple[list[Tensor], list[float], Tensor]] = []
        self.errors: dict[int, Tensor] = {id(x): torch.zeros_like(x)}
        self.shape, self.held = x.shape, [x]  # held, because an id is given anew once its tensor is gone

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch loads its compiler, seconds for nothing

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = _copied(args) if func._schema.is_mutable else args
        made = func(*args, **kwargs)
        if not isinstance(made, Tensor) or made.shape != self.shape:
            return made
        read = [leaf for leaf in leaves(args) if isinstance(leaf, Tensor)]
        if made.is_floating_point():
            error = _rounding(made)
            if func.__name__.split(".")[0] in SUMS_INSIDE:
                error = error + _rounding(read[0])
            for place, tensor in enumerate(read):
                if (moved := self.errors.get(id(tensor))) is not None and bool(moved.any()):
                    both = [func(*_shifted(before, place, by), **kwargs) for by in (moved, -moved)]
                    # Where a value has overflowed nothing is known of what is made from it: x/∞ is no 0.
                    error = error + torch.maximum(*((other - made).abs() for other in both)).nan_to_num(nan=torch.inf)
            self.errors[id(made)] = error
        numbers = [float(leaf) for leaf in leaves(args) if isinstance(leaf, (int, float))]
        numbers += [float(t) for t in read if t.dim() == 0 and not t.is_complex()]
        corners = CORNERS.get(func.__name__.split(".")[0], ())
        reads = [t for t in leaves(before) if isinstance(t, Tensor) and t.shape == self.shape and t.is_floating_point()]
        self.steps.append((reads, [0.0, *numbers, *corners], made.clone() if func._schema.is_mutable else made))
        self.held += [made, *read]
        return made

    def error(self, y: Tensor) -> Tensor:
        """How far a value may be from the exact one; for a value that was not watched, one rounding."""
        return self.errors[id(y)] if id(y) in self.errors else _rounding(y)

    def events(self) -> Tensor:
        """Between which neighbours along the last dimension an operator changes its course: (…, n − 1)."""
        found = torch.zeros(*self.shape[:-1], self.shape[-1] - 1, dtype=torch.bool)
        for reads, numbers, made in self.steps:
            sides = [read > number for read in reads for number in dict.fromkeys(numbers)]
            sides += [reads[0] > other for other in reads[1:]]
            for side in sides if made.is_floating_point() else [*sides, made.bool()]:
                found |= side[..., 1:] != side[..., :-1]
            if made.is_floating_point():
                slack = 4 * self.error(made)
                change, least = made.diff(), slack[..., 1:] + slack[..., :-1]
                up, down = change > least, change < -least
                turns = (up[..., :-1] & down[..., 1:]) | (down[..., :-1] & up[..., 1:])
                found[..., :-1] |= turns
                found[..., 1:] |= turns
        return found


def _rounding(y: Tensor) -> Tensor:
    number = torch.finfo(y.dtype)
    return y.abs() * number.eps + number.tiny


def _copied(args: Any) -> Any:
    return map_tree(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, args)


def _shifted(args: Any, place: int, by: Tensor) -> Any:
    """The arguments, copied, with `by` added to the tensor at a place."""
    number = iter(range(1 << 30))

    def shift(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf + by if next(number) == place else leaf.clone()

    return map_tree(shift, args)


@dataclass(frozen=True)
class Course:
    """A function where it is finite: places x (N,) in ascending order, values y, and by how much rounding may be
    off."""

    x: Tensor
    y: Tensor
    slack: Tensor


def course_of(function: Callable[[Tensor], Tensor]) -> Course | str:
    """Follow a function over all numbers; else why that cannot be done. Raises what the function raises."""
    far, near = (torch.logspace(*ends, dtype=torch.float64) for ends in ((-30, 300, 5281), (-4, 7, 4401)))
    even = [torch.linspace(-WINDOW, WINDOW, 24001), torch.linspace(-4, 4, 16001)]
    x = torch.cat([*even, far, -far, near, -near]).double().unique()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(ROUNDS + 1):
        trail = Trail(x)
        with torch.no_grad(), trail:
            y = function(x)
        if not isinstance(y, Tensor) or y.shape != x.shape or not y.is_floating_point():
            return f"it gives NaN, Inf, no floats or another shape on [−{WINDOW:g}, {WINDOW:g}]"
        parts.append((x.flatten(), y.double().flatten(), 4 * trail.error(y).double().flatten()))
        low, high = (part[trail.events()] for part in (x[..., :-1], x[..., 1:]))
        if len(low) > MOST_CELLS:
            pick = torch.linspace(0, len(low) - 1, MOST_CELLS).long()
            low, high = low[pick], high[pick]
        if not len(low):
            break
        x = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, PARTS + 1, dtype=torch.float64)
    x, y, slack = (torch.cat(part) for part in zip(*parts, strict=True))
    order = x.argsort()
    x, y, slack = x[order], y[order], slack[order].nan_to_num(nan=torch.inf)
    seen = y.isfinite()
    if not bool(seen[x.abs() <= WINDOW].all()):
        return f"it gives NaN, Inf, no floats or another shape on [−{WINDOW:g}, {WINDOW:g}]"
    first, last = seen.nonzero()[[0, -1], 0].tolist()
    if not bool(seen[first : last + 1].all()):
        at = first + int((~seen[first : last + 1]).nonzero()[0])
        return f"it gives NaN or Inf at {float(x[at]):.6g}"
    return Course(*(part[first : last + 1] for part in (x, y, slack)))


def turn_of(function: Callable[[Tensor], Tensor], course: Course | str | None = None) -> Turn | str | None:
    """None for a function that never falls, the turn of one that falls and then rises, else a text: where it falls
    again.

    course: the function's, where it is known.
    """
    course = course_of(function) if course is None else course
    if isinstance(course, str):
        return course
    x, y, slack = course.x, course.y, course.slack
    least = int((y + slack).argmin())
    surely, at_most = y - slack, y + slack
    # Right of the least value a fall is a value below one that came before, left of it one below one that comes later.
    if (fall := _below(surely[least:], at_most[least:])) is not None:
        return _said(course, least + fall[0], least + fall[1])
    falls, rises = (bool((part > at_most[least]).any()) for part in (surely[:least], surely[least:]))
    if not falls:
        return None
    if not rises:
        one, two = (int(torch.searchsorted(x, end)) for end in (-WINDOW, WINDOW))
        return _said(course, one, two) if bool(at_most[two] < surely[one]) else _said(course, 0, least)
    if (rise := _below(surely[: least + 1].flip(0), at_most[: least + 1].flip(0))) is not None:
        return _said(course, least - rise[0], least)
    return _exact_turn(function, course, least)


def _below(surely: Tensor, at_most: Tensor) -> tuple[int, int] | None:
    """The value that lies farthest below an earlier one, with the largest of these: (earlier, later)."""
    highest, where = surely.cummax(0)
    fall = highest[:-1] - at_most[1:]
    if not bool((fall > 0).any()):
        return None
    worst = int(fall.argmax())
    return int(where[worst]), worst + 1


def _said(course: Course, one: int, two: int) -> str:
    here, there = (f"{float(course.y[i]):.10g} at {float(course.x[i]):.10g}" for i in (one, two))
    return f"it falls from {here} to {there}"


def _exact_turn(function: Callable[[Tensor], Tensor], course: Course, least: int) -> Turn:
    above = (course.y - course.slack > course.y[least] + 1e-9 * course.y[least].abs()).nonzero()[:, 0]
    left, right = int(above[above < least][-1]), int(above[above > least][0])
    low, high = course.x[left], course.x[right]
    for _ in range(100):
        third = (high - low) / 3
        falling = function((low + third).reshape(1)) > function((high - third).reshape(1))
        low, high = (low + third, high) if bool(falling) else (low, high - third)
    at = (low + high) / 2
    value = function(at.reshape(1))[0]
    if float(course.y[least]) <= float(value):  # a corner, which the grid holds exactly
        at, value = course.x[least], course.y[least]
    return float(at), float(value)


def clip_of(course: Course, numbers: Iterable[float]) -> tuple[float, float] | None:
    """The bounds, if the function is clip(x, low, high), up to rounding. numbers: from which bounds are taken first."""
    x, y, slack = course.x, course.y, course.slack
    above, below = (y - slack > x).nonzero()[:, 0], (y + slack < x).nonzero()[:, 0]
    numbers = [0.0, *numbers]

    def bound(found: Tensor, none: float) -> float:
        at = found[:1]  # next to where the function leaves x, the value is that of the bound
        return next((n for n in numbers if bool((n - y[at]).abs() <= slack[at])), float(y[at])) if len(at) else none

    low, high = bound(above.flip(0), -torch.inf), bound(below, torch.inf)
    if not low < high:
        return None
    apart = (y - x.clamp(low, high)).abs()
    return (low, high) if bool((apart <= slack).all()) else None
