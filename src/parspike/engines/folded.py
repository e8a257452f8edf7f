"""Time in the batch: t values (B, …) as one (t·B, …), the steps one after the other.

The batch of a value need not be its first dimension; `place` is its position in one step, None for a value that does
not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parspike.graph import Graph, leaves, map_tree

__all__ = ["Steps", "fold", "join", "place_of", "repeat", "split", "timed", "unfold"]


@dataclass(frozen=True)
class Steps:
    """An input that is another one at every time-step, (T, B, …). To what asks for sizes it is one step of it."""

    x: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of one step."""
        return self.x.shape[1:]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.x.device

    @property
    def mean(self) -> Tensor:
        """Over the steps, (B, …)."""
        return self.x.mean(0)

    def narrow(self, dim: int, start: int, length: int) -> Steps:
        """A part of the batch, of all steps."""
        return Steps(self.x.narrow(dim + 1, start, length))


def place_of(graph: Graph, name: str) -> int | None:
    """The dimension of the batch in a value of the graph: an input's is its first."""
    return graph.by_name[name].batch_dim if name in graph.by_name else 0


def timed(symbol: str, value: int, steps: int) -> int:
    """An input size for operators that run `steps` time-steps as one batch: the batch is that many times as large."""
    return value * steps if symbol == "batch" else value


def fold(current: Tensor, place: int) -> Tensor:
    """(t, B, …) → (t·B, …)."""
    return current.movedim(0, place).flatten(place, place + 1)


def unfold(value: Tensor, steps: int, place: int) -> Tensor:
    """(t·B, …) → (t, B, …)."""
    return value.unflatten(place, (steps, -1)).movedim(place, 0)


def repeat(value: Any, steps: int, place: int | None) -> Any:
    """A value (B, …) that does not change over time, as (t·B, …)."""
    if place is None:
        return value
    if isinstance(value, Tensor):
        return fold(value.expand(steps, *value.shape), place) if value.dim() > place else value
    return type(value)([repeat(item, steps, place) for item in leaves(value)])


def split(value: Any, steps: int, place: int | None) -> list[Any]:
    """A value (t·B, …), or a tree of such, as one for each of the t steps."""
    if steps == 1:
        return [value]
    pieces = [
        leaf.chunk(steps, place) if isinstance(leaf, Tensor) and place is not None and leaf.dim() > place
        else [leaf] * steps
        for leaf in leaves(value)
    ]  # fmt: skip
    return [_like(value, [piece[step] for piece in pieces]) for step in range(steps)]


def join(values: Sequence[Any], place: int | None) -> Any:
    """What `split` took apart."""
    if len(values) == 1:
        return values[0]
    each = zip(*(list(leaves(value)) for value in values), strict=True)
    joined = [
        torch.cat(list(of), place) if isinstance(of[0], Tensor) and place is not None and of[0].dim() > place else of[0]
        for of in each
    ]
    return _like(values[0], joined)


def _like(tree: Any, items: Sequence[Any]) -> Any:
    rest = iter(items)
    return map_tree(lambda _: next(rest), tree)
