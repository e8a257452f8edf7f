"""Percentiles of what every channel, or layer, gives over the whole calibration set, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.channels import by_channel, check_finite
from parspike.calibrate.recipe import Draft
from parspike.errors import CalibrationError
from parspike.graph import Hook, Node
from parspike.graph.ops import call
from parspike.neurons.percentile import rank_of
from parspike.together import Together

__all__ = ["Selection", "percentiles", "select"]

WIDTHS = (8, 8, 8, 8)
"""Bits settled by each pass; together those of a float32."""

Range = tuple[Tensor, Tensor]
"""The lower and the upper end of every channel's outputs, (C,) each."""


def percentiles(
    draft: Draft, batches: Batches, share: float, lows: Mapping[str, float], *, layer: bool
) -> dict[str, Range]:
    """The range of the outputs of activations, by node name. lows: their lower bounds, −∞ where they have none.

    Upper end: what `share` of the outputs do not exceed, zeros included. Lower end: 0 where that is the activation's
    lower bound (ReLU), the bound where an output reaches it, else what as large a share of the outputs do not fall
    below (of at most half of them: the smallest). layer: over all channels together. Four passes over the set, see
    `Selection`.
    """
    graph = draft.graph
    made = {name: Selection(share) for name in lows}
    mirrored = {name: Selection(share if share > 0.5 else 1.0) for name, low in lows.items() if low != 0}

    def record(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        a = call(node.target, args, node.kwargs)
        values = by_channel(a, node).reshape(1, -1) if layer else by_channel(a, node)
        made[node.name].add(values)
        if node.name in mirrored:
            mirrored[node.name].add(-values)
        return [a]

    select(draft, batches, made, dict.fromkeys(lows, record), "percentiles", beside=mirrored.values())
    ranges: dict[str, Range] = {}
    for name, selection in made.items():
        node, high = graph.by_name[name], selection.value
        low = torch.tensor(lows[name], dtype=torch.float64).to(high).expand_as(high)
        if name in mirrored:
            low = torch.where(selection.lowest == low, low, -mirrored[name].value)
        if bool((high <= low).all()) and bool((selection.lowest < selection.largest).any()):
            place = "0" if lows[name] == 0 else "at the lower end of its range"
            raise CalibrationError(
                f"layer '{node.layer}': {100 * share:g}% of its outputs are {place}: "
                "give a higher percentile as mode, or 'max'"
            )
        ranges[name] = low.expand(node.channels), high.expand(node.channels)
    return ranges


def select(
    draft: Draft, batches: Batches, made: Mapping[str, Selection], at: Mapping[str, Hook], what: str, *,
    beside: Iterable[Selection] = (),
) -> None:  # fmt: skip
    """Pass over the set once for each of `WIDTHS`, so that every selection comes to its value.

    made: by node name. at: adds values to the selections, see `Draft.watch`. beside: selections of the same values in
    another order. One that is given no value is left as it was (`found` is None).
    """
    beside = list(beside)
    for number in range(len(WIDTHS)):
        draft.watch(batches, at, f"recording {what}, pass {number + 1} of {len(WIDTHS)}")
        for selection in (*made.values(), *beside):
            selection.join(batches.together)
        for name, selection in made.items():
            if selection.counts is not None:
                check_finite(draft.graph.by_name[name], selection.lowest, selection.largest)
        for selection in (*made.values(), *beside):
            selection.settle()


class Selection:
    """The value of nearest rank in every row of a set that comes in parts, once for each of `WIDTHS`.

    Floats are ordered as their bits are, negative ones with all bits but the sign turned over. So each pass counts in
    at most 256 bins a row, which gives whole numbers that do not depend on the order and size of the parts, and settles
    the next bits, the highest first (radix selection). The result is exact for float32 and below; float64 is rounded to
    float32 first. lowest, largest: the extremes of every row (C,), known after the first pass.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.passes = 0
        self.found: Tensor | None = None  # (C,), the bits settled
        self.rank: Tensor | None = None  # (C,), of the value wanted among those that begin with these bits
        self.counts: Tensor | None = None  # (C, 2^width) of this pass
        self.lowest = self.largest = torch.empty(0)

    def add(self, values: Tensor) -> None:
        """Count a part (C, N)."""
        if self.passes == 0:
            low, high = values.amin(1), values.amax(1)
            first = self.counts is None
            self.lowest = low if first else torch.minimum(self.lowest, low)
            self.largest = high if first else torch.maximum(self.largest, high)
        bits = (values + 0.0).float().contiguous().view(torch.int32)  # −0 counts as 0
        bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        width = WIDTHS[self.passes]
        bins, digits = 1 << width, bits >> sum(WIDTHS[self.passes + 1 :])
        digit = digits + bins // 2 if self.passes == 0 else digits & (bins - 1)  # the highest bits have the sign
        places = torch.arange(len(bits), device=bits.device)[:, None] * bins + digit
        mine = places.flatten() if self.found is None else places[(digits >> width) == self.found[:, None]]
        counts = torch.bincount(mine, minlength=len(bits) * bins).reshape(-1, bins)
        self.counts = counts if self.counts is None else self.counts + counts

    def join(self, together: Together) -> None:
        """Count what the other processes counted in this pass."""
        own = {} if self.counts is None else {together.rank: [self.counts, self.lowest, self.largest]}
        if parts := together.gather(own):
            counts, lowest, largest = (torch.stack(each) for each in zip(*parts, strict=True))
            self.counts, self.lowest, self.largest = counts.sum(0), lowest.amin(0), largest.amax(0)

    def settle(self) -> None:
        """End a pass; one without values changes nothing."""
        if self.counts is None:
            return
        upto = self.counts.cumsum(1)
        rank = upto.new_full((len(upto),), rank_of(self.share, int(upto[0, -1]))) if self.rank is None else self.rank
        digit = (upto < rank[:, None]).sum(1)
        self.rank = rank - (upto - self.counts).gather(1, digit[:, None])[:, 0]
        sign = 1 << (WIDTHS[0] - 1)
        self.found = digit - sign if self.found is None else (self.found << WIDTHS[self.passes]) + digit
        self.passes, self.counts = self.passes + 1, None

    @property
    def value(self) -> Tensor:
        """(C,), after the last pass."""
        if self.found is None:
            raise CalibrationError("the calibration set is empty")
        bits = torch.where(self.found < 0, self.found ^ 0x7FFFFFFF, self.found)
        return bits.to(torch.int32).view(torch.float32).to(self.lowest.dtype)
