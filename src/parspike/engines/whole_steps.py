"""What a node computes on bytes: neurons behind sums, piece by piece, and operators on wider numbers.

Neurons behind a sum of several values are computed piece by piece, where the weights prove that every sum near a
threshold is below 2^24, so exact in float32, else below 2^52, in float64. On a GPU they are the last step of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from parspike.engines import tensor_cores
from parspike.engines.int8 import OnGPU, Synapse
from parspike.graph import Node, map_tree
from parspike.graph.ops import call
from parspike.graph.signature import Linear
from parspike.neurons import Whole

__all__ = [
    "Behind", "Centred", "Chain", "Pooled", "Step", "as_bytes", "as_it_is", "counted", "in_rows", "pooled", "single",
    "sums_of", "widened",
]  # fmt: skip

TILE = 1 << 15
"""Elements of a piece of an elementwise chain: 128 KiB of float32, a part of the second-level cache."""
Step = Callable[[tuple[Any, ...]], Any]
"""A node's value from its arguments, of which those that are counts may be bytes."""


def single(args: tuple[Any, ...]) -> Tensor:
    """A cast to float32, of numbers that it holds."""
    return args[0].to(torch.float32)


def as_it_is(args: tuple[Any, ...]) -> Tensor:
    """A cast of bytes that all who read them take as bytes."""
    return args[0]


def as_bytes(low: float, high: float) -> Step:
    """Whole numbers, clipped to these ends, as bytes, with a sign where some are below 0."""
    kind = torch.int8 if low < 0 else torch.uint8

    def step(args: tuple[Any, ...]) -> Tensor:
        return args[0].clamp(low, high).to(kind)

    return step


def sums_of(synapse: Synapse | OnGPU, dtype: torch.dtype) -> Step:
    """The sums of a synapse, with its bias."""

    def step(args: tuple[Any, ...]) -> Tensor:
        return synapse.whole(args[0], dtype)

    return step


def widened(node: Node, kwargs: dict[str, Any], dtype: torch.dtype, result: torch.dtype | None = None) -> Step:
    """The node itself, on numbers where it reads bytes; with a result all that it reads is of `dtype`, and what it
    makes of `result`."""

    def wide(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        held = leaf.dtype in (torch.uint8, torch.int8, torch.int16)
        return leaf.to(dtype) if held or (result is not None and leaf.is_floating_point()) else leaf

    def step(args: tuple[Any, ...]) -> Any:
        made = call(node.target, map_tree(wide, args), map_tree(wide, kwargs))
        return made if result is None else map_tree(lambda leaf: leaf.to(result), made)

    return step


def in_rows(node: Node, kwargs: dict[str, Any], step: Step | None) -> Step:
    """What is computed of the answer in real numbers, of values that lie in memory as those of `count` do: kernels put
    channels last, and sums of real numbers round by their order. step: what a node computes other than its operator."""

    def run(args: tuple[Any, ...]) -> Any:
        laid = map_tree(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, args)
        return call(node.target, laid, kwargs) if step is None else step(laid)

    return run


def pooled(node: Node, most: float) -> Step:
    """A maximum over windows of counts up to `most`, in a type that torch takes maxima of: of bytes it does not, beyond
    255 places."""

    def step(args: tuple[Any, ...]) -> Tensor:
        x = args[0]
        kind = torch.float16 if x.device.type == "cuda" and most <= 2048 else torch.float32
        return call(node.target, (x.to(kind), *args[1:]), dict(node.kwargs)).to(x.dtype)

    return step


def counted(neuron: Whole, dtype: torch.dtype) -> Step:
    """The counts of neurons, from their own rule, in the narrowest type."""

    def step(args: tuple[Any, ...]) -> Tensor:
        z = args[0].to(dtype)
        # NaN has no count in whole numbers, and none arises: inputs are finite.
        return neuron.count(z).to(tensor_cores.narrow(neuron.levels, neuron.lowest))

    return step


class Chain:
    """clip(⌊(Σ factor · value + constant) / step⌋ + 1, 0, levels) as bytes.

    pieces: of every term the synapse that makes its value, None where the value is there, and its factor. All numbers
    are whole; constant: −first is in it.
    """

    def __init__(
        self, pieces: list[tuple[Synapse | None, Tensor]], constant: Tensor, step: Tensor, levels: int, axis: int,
        kind: torch.dtype,
    ) -> None:  # fmt: skip
        self.levels, self.axis, self.kind = levels, axis, kind
        for synapse, factor in pieces:
            if synapse is not None:
                constant = constant + synapse.bias.double() * factor
        repeats = max(1, TILE // len(step))
        self.row, self.steps = (t.to(kind).repeat(repeats) for t in (constant + step, step))
        none = torch.zeros(len(step))
        # A kernel's factor is above 0, and the sums of two parts are exact before they are multiplied. All other values
        # are multiplied piece by piece.
        self.terms: list[tuple[int, Callable[[Tensor], Tensor] | None, Tensor | None]] = []
        for place in sorted(range(len(pieces)), key=lambda i: pieces[i][0] is None):
            synapse, factor = pieces[place]
            factors = None if bool((factor == 1).all()) else factor.to(kind).repeat(repeats)
            if synapse is None:
                self.terms.append((place, None, factor.to(kind).repeat(repeats)))
            elif synapse.wide:
                for number, (_, times) in enumerate(synapse.parts):
                    self.terms.append((place, partial(synapse.part, number), (factor * times).to(kind).repeat(repeats)))
            elif len(synapse.parts) == 1 and kind == torch.float32 and bool((factor > 0).all()):
                self.terms.append((place, partial(synapse.sums, scale=factor.float(), bias=none), None))
            else:
                self.terms.append((place, partial(synapse.sums, scale=None, bias=none), factors))

    def __call__(self, args: tuple[Any, ...]) -> Tensor:
        return self._added([(args[at] if made is None else made(args[at]), f) for at, made, f in self.terms])

    def _added(self, values: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Elementwise, piece by piece, channels innermost."""
        flat = [(value.movedim(self.axis, -1).contiguous(), factors) for value, factors in values]
        out = torch.empty(flat[0][0].shape, dtype=tensor_cores.narrow(self.levels))
        target, size = out.view(-1), len(self.row)
        pieces = [(value.view(-1), factors) for value, factors in flat]
        spare, wide = torch.empty(size, dtype=self.kind), torch.empty(size, dtype=self.kind)
        for start in range(0, len(target), size):
            number = min(size, len(target) - start)
            total, other, before = spare[:number], wide[:number], self.row[:number]
            for value, factors in pieces:
                piece = value[start : start + number]
                if factors is None:
                    torch.add(before, piece, out=total)
                else:
                    piece = piece if piece.dtype == self.kind else other.copy_(piece)
                    torch.addcmul(before, piece, factors[:number], out=total)
                before = total
            target[start : start + number].copy_(total.div_(self.steps[:number]).clamp_(0, self.levels + 0.5))
        return out.movedim(-1, self.axis)


@dataclass(frozen=True)
class Pooled:
    """Maxima over windows of the counts that a step gives. rest: the arguments of the pool."""

    step: Step
    pool: Step
    rest: tuple[Any, ...]

    def __call__(self, args: tuple[Any, ...]) -> Tensor:
        return self.pool((self.step(args), *self.rest))


@dataclass(frozen=True)
class Centred:
    """Counts −half … half of a step that gives them 0 … 2 · half, which are whole numbers without a sign or 16 bits."""

    step: Step
    half: int

    def __call__(self, args: tuple[Any, ...]) -> Tensor:
        count = self.step(args).sub_(self.half)  # bytes go around, to the bits of the number below 0
        return count.view(torch.int8) if count.dtype == torch.uint8 else count


class Behind:
    """`Chain` on a GPU: the synapse of most weights, with all else in its kernel's last step."""

    def __init__(
        self, place: int, core: tensor_cores.Synapse, last: tensor_cores.Last,
        others: list[tuple[int, OnGPU | None, tensor_cores.Last | None, Tensor]],
    ) -> None:  # fmt: skip
        self.place, self.core, self.last, self.others = place, core, last, others

    @classmethod
    def of(
        cls, pieces: Sequence[tuple[Synapse | OnGPU | None, Tensor]], constant: Tensor, step: Tensor, levels: int,
        axis: int, device: torch.device,
    ) -> Behind | None:  # fmt: skip
        """None where no term is a synapse of its own."""
        made = [(place, s) for place, (s, _) in enumerate(pieces) if isinstance(s, OnGPU)]
        if not made:
            return None
        place, main = max(made, key=lambda found: found[1].core.whole.numel())
        others = []
        for at, (synapse, factor) in enumerate(pieces):
            if isinstance(synapse, OnGPU):
                constant = constant + synapse.bias * factor
            if at != place:
                last = synapse.core.last(torch.ones(1), torch.zeros(1)) if isinstance(synapse, OnGPU) else None
                others.append((at, synapse, last, factor))
        beside = others[0][3] if len(others) == 1 else None
        last = main.core.last(
            pieces[place][1], constant, other_factor=beside, step=step, levels=levels,
            dtype=tensor_cores.narrow(levels),
        )  # fmt: skip
        # Several are added up before, each with its factor.
        shape = [-1] if isinstance(main.found, Linear) else [-1] + [1] * len(main.found.stride)
        others = [(at, s, last_, f.to(torch.int32).reshape(shape).to(device)) for at, s, last_, f in others]
        return cls(place, main.core, last, others)

    def __call__(self, args: tuple[Any, ...]) -> Tensor:
        total = None
        for at, synapse, last, factor in self.others:
            value = args[at] if synapse is None or last is None else synapse.core(args[at], last)
            if len(self.others) > 1:
                value = value.to(torch.int32) * factor
                total = value if total is None else total.add_(value)
            else:
                total = value
        return self.core(args[self.place], self.last, total)
