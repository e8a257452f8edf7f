"""Exact counts from kernels that round: a floating-point filter (as Shewchuk's predicates, 1997).

A kernel gives the sum of a synapse in float32 and rounds it to a count. Where sums are too large for float32 that count
may be wrong, but only beside a threshold. So the kernel runs twice, with its sum moved down and up by a bound of all
its rounding errors. A larger sum has no smaller count: where both counts agree they are that of the exact sum. The few
others (some in a hundred thousand) are computed anew, each from its own products, in float64, where no sum rounds.

What could prove this wrong: a count that differs from that of engine "count" (tests/test_integer_engine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, cast

import torch
from torch import Tensor

from parspike.engines.int8 import PLAIN, Kernel, ops
from parspike.graph.signature import Conv, Linear

__all__ = ["Behind", "Pointwise", "Settled", "works"]

ULP = 2.0**-24
BLOCK = 1 << 20
"""Outputs that are computed at once: their sums stay in the cache."""
FEW = 1 << 20
"""Products that are formed at once where a count is computed anew."""
WORD = 1 << 26
"""The largest magnitude of a number that, with its offset, is held in 32 bits."""
OFFSETS = 4
"""Bits of an offset, of those of the range that it is chosen for."""
EIGHT = torch.arange(8)


@dataclass(frozen=True, eq=False)
class Behind:
    """Neurons behind one synapse: the counts clip(⌊(factor · Σ weight · x + constant) / step⌋ + 1, 0, levels).

    weight: (outputs, inputs of a group, kernel …); factor (above 0), constant, step: of every output. All whole, in
    float64, and below 2^52 together with every sum. least, most: what Σ weight · x may be, of every output.
    """

    found: Conv | Linear
    weight: Tensor
    factor: Tensor
    constant: Tensor
    step: Tensor
    levels: int
    least: Tensor
    most: Tensor

    @cached_property
    def numbers(self) -> Tensor:
        """factor, constant and step in one tensor."""
        return torch.stack([self.factor, self.constant, self.step])

    @property
    def scale(self) -> Tensor:
        """What a count is of the sum."""
        return self.factor / self.step

    @property
    def added(self) -> Tensor:
        """What a count is besides, before it is rounded: half a unit of the sum away from where rounding changes."""
        return (self.constant + 0.5) / self.step + 0.5

    def ends(self, added: Tensor, others: Tensor, roundings: int) -> tuple[Tensor, Tensor]:
        """`added` moved down and up by a bound of the error of scale · sum + added.

        others: the largest magnitude of all terms but the first and `added`. Near a threshold the first is at most the
        rest, so no number there is above `size`; far from it a count is clipped either way. Nothing is moved where no
        count can be wrong: the error is below half a unit of the sum, or no sum comes near a threshold.
        """
        least, most = (self.scale * end + self.added for end in (self.least, self.most))
        size = added.abs() + others + torch.maximum(-least, most).clamp(1, self.levels + 2)
        error = roundings * ULP * size
        least, most = (end.round().clamp(0, self.levels) for end in (least - error, most + error))
        error = torch.where((error < 0.5 / self.step) | (least == most), 0.0, error)
        return (added - error).float(), (added + error).float()

    def settled(self, low: Tensor, high: Tensor, x: Tensor, outputs: Tensor | None = None) -> Tensor:
        """The counts, of which the kernel gave these two bounds, channels last and contiguous; `low` is written over.
        x: what the synapse reads. outputs: the numbers of the channels, all if None."""
        low_, high_ = low.view(-1), high.view(-1)
        if low.numel() % 8:
            found = torch.ne(low_, high_).nonzero()[:, 0]
        else:  # eight at a time, for looking for them takes longer than comparing
            words = torch.ne(low_.view(torch.int64), high_.view(torch.int64)).nonzero()
            found = (words * 8 + EIGHT).view(-1)
            found = found[torch.ne(low_[found], high_[found])]
        for some in found.split(max(1, FEW // self.weight[0].numel())):
            if len(some):
                place = some // low.shape[-1]
                channel = some - place * low.shape[-1]
                channel = channel if outputs is None else outputs[channel]
                low_[some] = self._count(x, place, channel, low.shape[1:-1])
        return low

    def _count(self, x: Tensor, place: Tensor, channel: Tensor, sizes: Sequence[int]) -> Tensor:
        """The counts of single neurons, as bytes. place: in the batch and in a map of these sizes, as one number."""
        read = x[place] if isinstance(self.found, Linear) else self._window(self.found, x, place, channel, sizes)
        z = torch.bmm(read.double()[:, None], self.weight.flatten(1)[channel, :, None]).view(-1)
        factor, constant, step = self.numbers[:, channel]
        return z.mul_(factor).add_(constant).div_(step).floor_().add_(1).clamp_(0, self.levels).to(torch.uint8)

    def _window(self, found: Conv, x: Tensor, place: Tensor, channel: Tensor, sizes: Sequence[int]) -> Tensor:
        """What each output of a convolution reads, (outputs, inputs of a group · kernel)."""
        outputs, width, *kernel = self.weight.shape
        batch, *middle = torch.unravel_index(place, (len(x), *sizes))
        group = channel // (outputs // found.groups)
        channels = (group[:, None] * width + torch.arange(width))[:, :, None]
        taps = torch.cartesian_prod(*(torch.arange(size) for size in kernel)).reshape(-1, len(kernel)).unbind(1)
        inside = torch.ones(1, 1, dtype=torch.bool)
        at: list[Tensor] = []
        pads = [before for before, _ in found.padded(list(kernel))]
        for d, (at_, tap) in enumerate(zip(middle, taps, strict=True)):
            where = at_[:, None] * found.stride[d] - pads[d] + tap * found.dilation[d]
            size = x.shape[2 + d]
            inside = inside & (where >= 0) & (where < size)
            at.append(where.clamp(0, size - 1)[:, None])
        read = x[batch[:, None, None], channels, *at]
        return (read * inside[:, None]).flatten(1)


class Settled:
    """Counts of neurons behind a convolution whose kernel computes them itself."""

    def __init__(
        self, behind: Behind, given: Callable[[Tensor], Tensor], kernel: Callable[[Conv, Tensor], Kernel]
    ) -> None:
        """given: makes what the kernel reads. kernel: that of a convolution with some of the outputs, by number."""
        found = cast(Conv, behind.found)
        # Rounded: the sum as float32, the scale, its product, what is added and its sum.
        self.low, high = behind.ends(behind.added, torch.zeros(1), 5)
        outputs, self.given, self.scale = torch.arange(len(high)), given, behind.scale.float()
        self.kernel = kernel(found, outputs)
        # The second run is for the outputs alone that may be wrong, and reads no more than they do.
        self.unsure = (self.low != high).nonzero()[:, 0]
        self.depthwise = len(behind.weight) == found.groups and behind.weight.shape[1] == 1
        if found.groups > 1 and not self.depthwise and len(self.unsure):
            self.unsure = outputs
        if len(self.unsure):
            found = replace(found, groups=len(self.unsure)) if self.depthwise else found
            self.again, self.behind = kernel(found, self.unsure), behind
            self.ends = self.scale[self.unsure], high[self.unsure]

    def __call__(self, args: tuple[Any, ...]) -> Tensor:
        given = self.given(args[0])
        counts = self.kernel(given, self.scale, self.low)
        if len(self.unsure):
            given = self._chosen(given).movedim(-1, 1) if self.depthwise else given
            low, high = self._chosen(counts), self.again(given, *self.ends).movedim(1, -1).contiguous()
            low = self.behind.settled(low, high, args[0], self.unsure)
            counts.movedim(1, -1).index_copy_(-1, self.unsure, low)
        return counts

    def _chosen(self, x: Tensor) -> Tensor:
        """The channels of the outputs that may be wrong, last."""
        return x.movedim(1, -1).index_select(-1, self.unsure)


@dataclass(frozen=True)
class _Split:
    """bits: of a part. offset: added to a number before. scales: of every part, the lowest first. ends: what is added
    to their sums, moved down and up."""

    bits: int
    offset: int
    scales: Sequence[Tensor]
    ends: tuple[Tensor, Tensor]


class Pointwise:
    """Counts of neurons behind a 1×1 convolution or a linear layer that reads large whole numbers, such as the sums
    that a linear bottleneck or a residual stream hands on.

    A number is split into parts of a few bits, after an offset has made it positive; each is a pass through the kernel,
    and the last one adds the sums of the others and rounds. How many parts it takes is decided by the numbers of the
    batch, for what weights prove is some hundred times what arises. bits: the most that a part may have. largest: the
    largest magnitude of a number.
    """

    def __init__(self, behind: Behind, axis: int, bits: int, largest: float) -> None:
        flat = behind.weight.flatten(1)
        self.behind, self.axis, self.bits = replace(behind, found=Linear(None, None, None), weight=flat), axis, bits
        self.packed = ops().qlinear_prepack(flat.to(torch.int8).contiguous(), None)
        self.total, self.most = flat.sum(1), flat.abs().sum(1)
        self.zeros, self.none = torch.zeros(len(flat), dtype=torch.int32), torch.zeros(len(flat))
        self.kind = torch.int32 if largest <= WORD else torch.int64
        self.known: dict[tuple[int, int, int], _Split] = {}

    def __call__(self, args: tuple[Any, ...]) -> Tensor:
        x = args[0].movedim(self.axis, -1)
        rows = x.reshape(-1, x.shape[-1])
        blocks = max(1, BLOCK // len(self.none))
        if not len(rows):
            made = rows.new_empty((0, len(self.none)), dtype=torch.uint8)
        else:
            whole = rows.to(self.kind)
            split = self._split(*(int(end) for end in whole.aminmax()))
            whole.add_(split.offset)
            if len(rows) <= blocks:
                made = self._counted(whole, rows, split)
            else:
                pairs = zip(whole.split(blocks), rows.split(blocks), strict=True)
                made = torch.cat([self._counted(*pair, split) for pair in pairs])
        return made.view(*x.shape[:-1], len(self.none)).movedim(-1, self.axis)

    def _split(self, least: int, largest: int) -> _Split:
        """How numbers of this range are split; the offset is one of few, so that what follows from it is kept."""
        bits = OFFSETS
        while True:
            quantum = (1 << bits) >> OFFSETS
            offset = -(least // quantum) * quantum
            if largest + offset < 1 << bits:
                break
            bits += 1
        number = -(-bits // self.bits)
        each = -(-bits // number)
        if (key := (number, each, offset)) not in self.known:
            behind = self.behind
            added = behind.added - offset * self.total * behind.scale
            rest = self.most * behind.scale * 2.0 ** (each * (number - 1)) * (number > 1)
            # Of every part the sum as float32, the scale, the product, and what it is added to.
            ends = behind.ends(added, rest, 4 * number + 1)
            scales = [(behind.scale * 2.0 ** (each * place)).float() for place in range(number)]
            self.known[key] = _Split(each, offset, scales, ends)
        return self.known[key]

    def _counted(self, whole: Tensor, rows: Tensor, split: _Split) -> Tensor:
        """The counts of some places. whole: what they read, with the offset; written over."""
        mask = (1 << split.bits) - 1
        total: Tensor | None = None
        for place in reversed(range(1, len(split.scales))):
            part = (whole >> (split.bits * place)).bitwise_and_(mask).to(torch.uint8)
            total = self._run(part, split.scales[place], self.none, torch.float32, total)
        part = whole.bitwise_and_(mask).to(torch.uint8)
        low, high = (
            self._run(part, split.scales[0], end, torch.uint8, total).clamp_(max=self.behind.levels)
            for end in split.ends
        )
        return self.behind.settled(low, high, rows)

    def _run(self, x: Tensor, scale: Tensor, bias: Tensor, kind: torch.dtype, other: Tensor | None) -> Tensor:
        """scale · Σ weight · x + bias + other."""
        given = x, 1.0, 0, self.packed, scale, self.zeros
        if other is None:
            return ops().qlinear_pointwise(*given, bias, 1.0, 0, kind, *PLAIN)
        return ops().qlinear_pointwise.binary(*given, other, bias, 1.0, 0, kind, 1.0, 0, "add", 1.0, *PLAIN)


@cache
def works(bits: int) -> bool:
    """Whether the kernels of this machine keep the bounds, with parts of so many bits: with numbers of 24 bits, and
    random weights and thresholds, some far beyond the range of a byte, counts have to be those of float64."""
    generator = torch.Generator().manual_seed(0)

    def drawn(least: int, most: int, *shape: int) -> Tensor:
        return torch.randint(least, most, shape, generator=generator).double()

    try:
        for inputs, outputs, levels in ((24, 40, 255), (7, 5, 3), (130, 64, 31)):
            weight = drawn(-127, 128, outputs, inputs)
            step = 2.0 ** drawn(2, 31, outputs)
            reach = (1 << 23) * weight.abs().sum(1)
            behind = Behind(
                Linear(None, None, None), weight, drawn(1, 9, outputs), -step * levels, step, levels, -reach, reach
            )
            for most in (1 << 6, 1 << 15, 1 << 23):
                x = drawn(-most, most, 200, inputs)
                z = x @ weight.T * behind.factor + behind.constant
                right = (z / step).floor().add(1).clamp(0, levels)
                if not torch.equal(Pointwise(behind, 1, bits, most)((x,)).double(), right):
                    return False
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True
