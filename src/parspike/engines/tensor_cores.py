"""Convolutions and linear layers on a GPU in whole numbers: 8-bit products, 32-bit sums, neurons in the last step.

Counts are bytes, so products go to the tensor cores' int8 units; sums are 32 bits wide, which the maker of an
`Integer` proves from the weights, and exact in any order. What is read is held in one of three ways:

- `signed`: −128 … 127, as it is: inputs, and counts up to 127.
- `byte`: counts up to 255. The units take signed numbers, so the kernel takes 128 from each, also from the zeros at the
  edge, and 128 · Σ weights stands in the constant that it adds.
- `wide`: counts up to 2^14 − 1 in 16 bits, as two parts of 7 bits, each with sums of its own.

A kernel is used only after it has reproduced exact sums on this device, in the form in which it is needed (`_proven`).
Where Triton is missing or a kernel fails, the same numbers come from float64, where products and sums below 2^53 are
exact; never from float32, whose convolutions on a GPU may round their factors to 10 bits (TF32) or be computed through
fractions (Winograd). What could prove this wrong: a count that differs from engine "count" on a CPU
(tests/test_cuda.py; through Triton's interpreter tests/test_tensor_cores.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.graph.signature import Conv, Linear

__all__ = ["LARGEST", "SMALL", "Last", "Synapse", "kind_of", "narrow"]

LARGEST = 1 << 31
SMALL = (1 << 14) - 1
"""The largest count that is held in 16 bits."""
Kind = Literal["signed", "byte", "wide"]
FEW = 16
"""Channels below which the columns of a window are taken as one."""
Tile = tuple[int, int, int]
TILES: tuple[Tile, ...] = ((128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (64, 16, 4))
"""Rows, outputs and warps of a program, from the most work for a byte loaded to the least."""


def kind_of(low: float, high: float) -> Kind | None:
    """How whole numbers of this range are held; None where they are too large."""
    if low >= -128 and high <= 127:
        return "signed"
    if low >= 0 and high <= SMALL:
        return "byte" if high <= 255 else "wide"
    return None


def narrow(levels: int, lowest: int = 0) -> torch.dtype:
    """The type that counts lowest … levels are held in."""
    if lowest < 0:
        return torch.int8 if levels <= 127 else torch.int16
    return torch.uint8 if levels <= 255 else torch.int16


@dataclass(frozen=True, eq=False)
class Last:
    """The last step behind a sum: z = factor · sum + other_factor · other + constant, as `dtype`; with levels the
    counts min(⌊z / step⌋ + 1, levels) of neurons instead, 0 where z is below 0.

    Tensors are int32, one number an output. shifted: the constant that a kernel adds, which reads counts less 128.
    """

    factor: Tensor
    constant: Tensor
    shifted: Tensor
    other_factor: Tensor
    step: Tensor
    levels: int
    dtype: torch.dtype


class Synapse:
    """A convolution of one or two dimensions or a linear layer, prepared for a device.

    weight: (out, in / groups, kernel …), whole, −127 … 127; kind: of what it reads. Sums are without the bias.
    """

    def __init__(self, found: Conv | Linear, weight: Tensor, kind: Kind, device: torch.device) -> None:
        self.found, self.kind, self.device = found, kind, device
        whole = weight.detach().cpu().to(torch.int8)
        spatial = len(found.stride) if isinstance(found, Conv) else 0
        while whole.dim() < 4:
            whole = whole.unsqueeze(2)  # a linear layer has a window of one place, a signal a height of one
        self.outputs, self.channels, *self.taps = whole.shape
        self.stride, self.pads, self.dilation, self.groups = [1, 1], [0, 0], [1, 1], 1
        if isinstance(found, Conv):
            before = [size for size, _ in found.padded(list(weight.shape[2:]))]
            self.stride[2 - spatial :], self.pads[2 - spatial :] = found.stride, before
            self.dilation[2 - spatial :], self.groups = found.dilation, found.groups
        self.depthwise = self.channels == 1 and self.outputs == self.groups > 1
        self.flat = self.groups == 1 and self.channels < FEW and self.dilation[1] == 1 and self.taps[1] > 1
        self.whole = whole.to(device)
        laid = whole.permute(0, 2, 3, 1).reshape(self.outputs, -1)  # a tap's channels side by side
        self.laid = (laid.T if self.depthwise else laid).contiguous().to(device)
        shifted = kind == "byte" and not self.depthwise
        self.shift = 128 * laid.double().sum(1) if shifted else torch.zeros(self.outputs).double()

    def last(
        self, factor: Tensor, constant: Tensor, *, other_factor: Tensor | None = None, step: Tensor | None = None,
        levels: int = 0, dtype: torch.dtype = torch.int32,
    ) -> Last:  # fmt: skip
        """A last step behind its sums, on its device. Numbers are whole, for every output or one for all."""
        ones = torch.ones(1)
        given = factor, constant, ones if other_factor is None else other_factor, ones if step is None else step
        factor, constant, other_factor, step = (t.detach().cpu().double().expand(self.outputs) for t in given)
        made = [factor, constant, constant + factor * self.shift, other_factor, step]
        factor, constant, shifted, other_factor, step = (_wrapped(t).to(self.device) for t in made)
        return Last(factor, constant, shifted, other_factor, step, levels, dtype)

    def __call__(self, x: Tensor, last: Last, other: Tensor | None = None) -> Tensor:
        """What the last step makes of the sums. x: what the layer reads; other: of the shape of its output; both whole
        numbers of any type, and every z is below 2^31."""
        image = self._image(x)
        beside = None if other is None else self._laid_out(other)
        if beside is not None and beside.is_floating_point():
            beside = beside.to(torch.int32)
        shape = (len(image), *self._places(image), self.outputs)
        out = torch.empty(shape, dtype=last.dtype, device=x.device)
        if out.numel() and not self._launched(image, out, last, beside):
            out = self.plain(image, last, beside)
        if isinstance(self.found, Linear):
            return out.view(*x.shape[:-1], self.outputs)
        out = out.permute(0, 3, 1, 2)
        return out.squeeze(2) if len(self.found.stride) == 1 else out

    def plain(self, image: Tensor, last: Last, other: Tensor | None) -> Tensor:
        """The same from products in float64. image, other and the result: as the kernels have them."""
        x = image.view(torch.uint8) if self.kind == "byte" else image
        how = self.stride, self.pads, self.dilation, self.groups
        z = F.conv2d(x.permute(0, 3, 1, 2).double(), self.whole.double(), None, *how).permute(0, 2, 3, 1)
        z = z * last.factor + last.constant
        if other is not None:
            z = z + other.double() * last.other_factor
        if last.levels:
            z = (z / last.step).floor_().add_(1).clamp_(0, last.levels)
        return z.to(last.dtype).contiguous()

    # Layout: (samples, height, width, channels), without gaps.

    def _image(self, x: Tensor) -> Tensor:
        if self.kind == "wide":
            return self._laid_out(x.to(torch.int16))
        if x.dtype not in (torch.uint8, torch.int8):
            x = x.to(torch.uint8 if self.kind == "byte" else torch.int8)
        return self._laid_out(x).view(torch.int8)

    def _laid_out(self, x: Tensor) -> Tensor:
        if isinstance(self.found, Linear):
            return x.reshape(-1, 1, 1, x.shape[-1]).contiguous()
        return (x.unsqueeze(2) if x.dim() == 3 else x).permute(0, 2, 3, 1).contiguous()

    def _places(self, image: Tensor) -> list[int]:
        how = zip(image.shape[1:3], self.pads, self.dilation, self.taps, self.stride, strict=True)
        return [(size + 2 * pad - wide * (taps - 1) - 1) // stride + 1 for size, pad, wide, taps, stride in how]

    # Kernels.

    def _launched(self, image: Tensor, out: Tensor, last: Last, other: Tensor | None) -> bool:
        """Whether a kernel wrote `out`."""
        rows = out.numel() // self.outputs
        if max(rows, image[0].numel(), self.laid.numel()) >= LARGEST - (1 << 16):
            return False  # places are counted in 32 bits
        for tile in self._tiles(rows):
            form = self._form(tile)
            if _proven(form, self.kind, self.depthwise, self.flat, self.device):
                self.launch(form, image, out, last, other)
                return True
        return False

    def _tiles(self, rows: int) -> tuple[Tile, ...]:
        """From the best one on: the largest of which the device has enough at work, then smaller ones."""
        wide = self.outputs if self.depthwise else self.outputs // self.groups
        fits = [tile for tile in TILES if tile[1] < 2 * wide or tile is TILES[-1]]
        if self.kind == "wide" or self.depthwise:  # two sums, or 32-bit products, in registers
            fits = [tile for tile in fits if tile[0] * tile[1] <= 64 * 64] or fits[-1:]
        enough = _processors(self.device)
        for first, (m, n, _) in enumerate(fits):
            if -(-rows // m) * -(-wide // n) * (1 if self.depthwise else self.groups) >= enough:
                return tuple(fits[first:])
        return tuple(fits[-2:])

    def _form(self, tile: Tile) -> Form:
        channels = self.channels * self.taps[1] if self.flat else self.channels
        deep = next((n for n in (128, 64) if channels % n == 0), 32)
        return Form(*tile, deep, channels % deep == 0)

    def launch(self, form: Form, image: Tensor, out: Tensor, last: Last, other: Tensor | None) -> None:
        """Write `out` with a kernel of this form."""
        from parspike.engines import gpu_kernels

        _, height, width, all_channels = image.shape
        rows, groups = out.numel() // self.outputs, self.groups
        outputs = self.outputs // groups
        taps_h, taps_w = self.taps
        channels = self.channels
        if self.flat:
            channels, taps_w = channels * taps_w, 1
        kernel: Any = gpu_kernels.of_channels
        steps = taps_h * taps_w * -(-channels // form.deep)
        if self.depthwise:
            kernel, groups, outputs, steps = gpu_kernels.each_channel, 1, self.outputs, taps_h * taps_w
        blocks = -(-outputs // form.n)
        kernel[(-(-rows // form.m) * blocks, groups)](
            image, self.laid, out, last.factor, out if other is None else other, last.other_factor, last.shifted,
            last.step, all_channels, self.outputs, channels, self.laid.shape[1],
            rows, height, width, *out.shape[1:3], outputs, *self.stride, *self.pads, *self.dilation,
            taps_w, blocks, last.levels, STEPS=steps,
            BM=form.m, BN=form.n, BK=form.deep, FLAT=self.flat, EVEN=form.even, KIND=self.kind,
            HAS_OTHER=other is not None, COUNTS=last.levels > 0,
            num_warps=form.warps, num_stages=3 if form.deep > 64 else 4,
        )  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What a kernel is compiled for. m, n: places and outputs of a program; deep: channels at once; even: whether they
    divide those of the layer."""

    m: int
    n: int
    warps: int
    deep: int
    even: bool


@cache
def _proven(form: Form, kind: Kind, depthwise: bool, flat: bool, device: torch.device) -> bool:
    """Whether a kernel of this form reproduces exact numbers on this device."""
    try:
        return reproduces(form, kind, depthwise, flat, device)
    except Exception:  # noqa: BLE001 (a compiler's, a driver's or an import's: whichever it is, float64 computes)
        return False


def reproduces(form: Form, kind: Kind, depthwise: bool, flat: bool, device: torch.device) -> bool:
    """Whether a kernel gives exact sums and counts of the largest numbers and of random ones. Raises what it raises."""
    low, high = {"signed": (-128, 127), "byte": (0, 255), "wide": (0, SMALL)}[kind]
    generator = torch.Generator().manual_seed(0)
    channels = 3 if flat else form.deep if form.even else form.deep + 3
    outputs, groups = (channels, channels) if depthwise else (form.n + 7, 1)
    high = min(high, LARGEST // (3 * 127 * 9 * channels))  # what is checked is below 2^31 too
    for step in (0, 1001):
        weight = torch.randint(-127, 128, (outputs, channels // groups, 3, 3), generator=generator)
        x = torch.randint(low, high + 1, (3, 9, 11, channels), generator=generator)
        weight[0], x[0] = 127, high
        found = Conv(None, None, None, (2, 1), (1, 2), (1, 1 if flat else 2), groups)
        made = Synapse(found, weight, kind, device)
        image = made._image(x.permute(0, 3, 1, 2).to(device))
        other = torch.randint(0, 256, (3, *made._places(image), outputs), generator=generator)
        other = other.to(torch.uint8).to(device) if step else None
        ends = torch.randint(-999, 1000, (outputs,), generator=generator).double()
        last = made.last(
            torch.ones(1) + bool(step), ends, other_factor=ends, levels=200 if step else 0,
            step=step + ends.abs() if step else None, dtype=torch.uint8 if step else torch.int32,
        )  # fmt: skip
        wanted = made.plain(image, last, other)
        got = torch.zeros_like(wanted)
        made.launch(form, image, got, last, other)
        if not torch.equal(got, wanted):
            return False
    return True


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _wrapped(whole: Tensor) -> Tensor:
    """Whole numbers as int32; what is larger, modulo 2^32, as sums in 32 bits are."""
    return ((whole.to(torch.int64) + (1 << 31)) % (1 << 32) - (1 << 31)).to(torch.int32)
