"""Percentiles of what every channel, or layer, gives over the whole calibration set, in bounded memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.channels import by_channel
from parspike.calibrate.recipe import Draft
from parspike.errors import CalibrationError
from parspike.graph import Clip, Node, Schedule, Stream, walk
from parspike.graph.ops import call
from parspike.neurons.percentile import rank_of
from parspike.together import Together

__all__ = ["Selection", "percentiles"]

WIDTHS = (8, 8, 8, 7)
"""Bits settled by each pass; together those of a float32 without its sign. The first eight are the exponent."""


def percentiles(draft: Draft, batches: Batches, share: float, *, layer: bool) -> dict[str, Tensor]:
    """What `share` of the outputs of a ClipReLU, counted from its lower bound, do not exceed: (C,) by node name.

    Zeros count. layer: over all channels together. Four passes over the set, see `Selection`.
    """
    graph = draft.graph
    lows = {name: a.low for name, a in draft.activations.items() if isinstance(a, Clip)}
    made = {name: Selection(share) for name in lows}

    def record(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        a = call(node.target, args, node.kwargs)
        values = by_channel(a, node) - lows[node.name]
        made[node.name].add(values.reshape(1, -1) if layer else values)
        return [a]

    schedule = Schedule.of(graph.nodes, graph.outputs)
    for number in range(len(WIDTHS)):
        for done, env in enumerate(batches, 1):
            walk(schedule, [Stream(dict(env), graph.tensors, graph.sizes(env))], dict.fromkeys(lows, record))
            draft.progress(f"recording percentiles, pass {number + 1} of {len(WIDTHS)}", done, batches.rounds)
        for name, selection in made.items():
            selection.join(batches.together)
            if number == 0:
                _check(graph.by_name[name], selection)
            selection.settle()
    return {name: selection.value.expand(graph.by_name[name].channels) for name, selection in made.items()}


class Selection:
    """The value of nearest rank in every row of a set that comes in parts, once for each of `WIDTHS`.

    Floats of one sign are ordered as their bits are. So each pass counts in at most 256 bins a row, whole numbers
    whatever the order and size of the parts, and settles the next bits, the highest first (radix selection). The
    result is exact for float32 and below; float64 is rounded to float32 first.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.passes = 0
        self.found: Tensor | None = None  # (C,), the bits settled
        self.rank: Tensor | None = None  # (C,), of the value wanted among those that begin with these bits
        self.counts: Tensor | None = None  # (C, 2^width) of this pass
        self.dtype = torch.float32

    def add(self, values: Tensor) -> None:
        """Count a part (C, N); what is below 0 counts as 0."""
        self.dtype = values.dtype
        bits = values.clamp(min=0).float().contiguous().view(torch.int32) & 0x7FFFFFFF
        width = WIDTHS[self.passes]
        bins, digits = 1 << width, bits >> sum(WIDTHS[self.passes + 1 :])
        places = torch.arange(len(bits), device=bits.device)[:, None] * bins + (digits & (bins - 1))
        mine = places.flatten() if self.found is None else places[(digits >> width) == self.found[:, None]]
        counts = torch.bincount(mine, minlength=len(bits) * bins).reshape(-1, bins)
        self.counts = counts if self.counts is None else self.counts + counts

    def join(self, together: Together) -> None:
        """Count what the other processes counted in this pass."""
        own = {} if self.counts is None else {together.rank: [self.counts, self.counts.new_empty(1, dtype=self.dtype)]}
        if parts := together.gather(own):
            self.counts = torch.stack([counts for counts, _ in parts]).sum(0)
            self.dtype = parts[0][1].dtype

    def settle(self) -> None:
        """End a pass."""
        if self.counts is None:
            raise CalibrationError("the calibration set is empty")
        upto = self.counts.cumsum(1)
        rank = upto.new_full((len(upto),), rank_of(self.share, int(upto[0, -1]))) if self.rank is None else self.rank
        digit = (upto < rank[:, None]).sum(1)
        self.rank = rank - (upto - self.counts).gather(1, digit[:, None])[:, 0]
        self.found = digit if self.found is None else (self.found << WIDTHS[self.passes]) + digit
        self.passes, self.counts = self.passes + 1, None

    @property
    def value(self) -> Tensor:
        """(C,), after the last pass."""
        if self.found is None:
            raise CalibrationError("the calibration set is empty")
        return self.found.to(torch.int32).view(torch.float32).to(self.dtype)


def _check(node: Node, selection: Selection) -> None:
    """After the first pass, which counts exponents."""
    exponents = selection.counts
    if exponents is None:
        return
    if bool(exponents[:, -1].any()):
        raise CalibrationError(f"layer '{node.layer}' gives NaN or Inf on the calibration data")
    zeros, count = exponents[:, 0], int(exponents[0].sum())
    if bool((zeros < count).any()) and bool((zeros >= rank_of(selection.share, count)).all()):
        raise CalibrationError(
            f"layer '{node.layer}': {100 * selection.share:g}% of its outputs are 0: "
            "give a higher percentile as mode, or 'max'"
        )
