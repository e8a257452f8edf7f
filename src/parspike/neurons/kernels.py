# pyright: reportMissingImports=false, reportIndexIssue=false
"""Neurons in Triton, a layer in one kernel: charge, count, output and train of parallel neurons, which write all T
steps at once, and a block of steps of integrate-and-fire neurons.

Only `fused` imports this module, where Triton is installed. A kernel does what the functions in plain torch do
(`quantised.counts`, `packed.words_of`), in their order and their dtype, so that counts and bits are equal:

- Triton may otherwise fuse a product and a sum into one rounding (`enable_fp_fusion`). It is told not to; where plain
  torch fuses them, `fma` asks for it.
- What depends on a channel alone (T/θ, the shift in levels, the output of one spike) comes from plain torch, since
  divisions of a GPU's kernels round in several ways.
- Bounds are kept by comparing, which leaves NaN as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .packed import BITS, PackedTrains, number_of, word_of

__all__ = ["even", "integrate", "stairs"]

CODES = {"sorted": 0, "weighted": 1, "onset": 2}
BLOCK = 1024
LARGEST = 1 << 31


@triton.jit
def _ones(k):
    """The lowest k bits of a word, 0 ≤ k ≤ 32. By two shifts, since one by 32 is undefined."""
    half = k >> 1
    return ((tl.full(k.shape, 1, tl.int32) << half) << (k - half)) - 1


@triton.jit
def _within(k, BITS: tl.constexpr):
    return tl.where(k < 0, 0, tl.where(k > BITS, BITS, k))


@triton.jit
def _write(words, whole, i, inside, n, CODE: tl.constexpr, BITS: tl.constexpr, NUMBER: tl.constexpr):
    """The trains of the counts `whole` (int32) as words, one plane of n behind the other."""
    for word in tl.static_range(NUMBER):
        if CODE == 1:
            bits = whole
        else:
            bits = _ones(_within(whole - word * BITS, BITS))
            if CODE == 2:
                bits = bits ^ _ones(_within(whole - 1 - word * BITS, BITS))
        tl.store(words + i, bits.to(words.dtype.element_ty), mask=inside)
        words += n


# One compilation for all of these, since layers differ in them; n stays, whose divisibility makes wide accesses.
@triton.jit(do_not_specialize=["inner", "channels", "by_ratio", "by_start", "by_scale", "by_offset"])
def _even(
    z, ratio, start, scale, offset, value, words, negative, n, inner, channels, by_ratio, by_start, by_scale, by_offset,
    LOWEST: tl.constexpr, LEVELS: tl.constexpr, CODE: tl.constexpr, BITS: tl.constexpr, NUMBER: tl.constexpr,
    FMA: tl.constexpr, OFFSET: tl.constexpr, SIGNED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    i = first * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    channel = (i // inner) % channels
    current = tl.load(z + i, mask=inside, other=0.0)
    slope = tl.load(ratio + channel * by_ratio, mask=inside, other=0.0)
    begin = tl.load(start + channel * by_start, mask=inside, other=0.0)
    u = tl.fma(current, slope, begin) if FMA else current * slope + begin
    k = tl.floor(u)
    k = tl.where(k < LOWEST, LOWEST, k)
    k = tl.where(k > LEVELS, LEVELS, k)
    mean = k * tl.load(scale + channel * by_scale, mask=inside, other=0.0)
    if OFFSET:
        mean = mean + tl.load(offset + channel * by_offset, mask=inside, other=0.0)
    tl.store(value + i, mean, mask=inside)
    if SIGNED:
        tl.store(negative + i, (k < 0).to(tl.int8), mask=inside)
    whole = tl.where(k == k, tl.abs(k), 0.0).to(tl.int32)
    _write(words, whole, i, inside, n, CODE, BITS, NUMBER)


@triton.jit(do_not_specialize=["inner", "channels", "columns", "by_channel"])
def _stairs(
    z, thresholds, outputs, value, words, n, inner, channels, columns, by_channel,
    SIZE: tl.constexpr, TESTS: tl.constexpr, LEVELS: tl.constexpr, CODE: tl.constexpr, BITS: tl.constexpr,
    NUMBER: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    i = first * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    column = ((i // inner) % channels) * by_channel
    current = tl.load(z + i, mask=inside, other=0.0)
    # Bisection, section 4.3: every neuron needs the same ⌈log₂(levels + 1)⌉ tests.
    whole = tl.full([BLOCK], 0, tl.int32)
    for test in tl.static_range(TESTS):
        more = whole + (SIZE >> test)
        there = inside & (more <= LEVELS)
        least = tl.load(thresholds + (more - 1) * columns + column, mask=there, other=0.0)
        whole = tl.where(there & (current >= least), more, whole)
    mean = tl.load(outputs + whole * columns + column, mask=inside, other=0.0)
    tl.store(value + i, tl.where(current == current, mean, current), mask=inside)
    _write(words, whole, i, inside, n, CODE, BITS, NUMBER)


@triton.jit(
    do_not_specialize=["drive_step", "last", "inner", "channels", "by_theta", "by_post", "by_drive", "by_offset"]
)
def _integrate(
    z, v, theta, post, drive, offset, decay, current, spikes, n, z_step, drive_step, last, inner, channels,
    by_theta, by_post, by_drive, by_offset,
    STEPS: tl.constexpr, LEAKS: tl.constexpr, TO_ZERO: tl.constexpr, OFFSET: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    i = first * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    channel = (i // inner) % channels
    level = tl.load(theta + channel * by_theta, mask=inside, other=0.0)
    one = tl.load(post + channel * by_post, mask=inside, other=0.0)
    m = tl.load(v + i, mask=inside, other=0.0)
    for step in range(STEPS):
        if LEAKS:
            m = m * tl.load(decay)
        m = m + tl.load(z + i, mask=inside, other=0.0)
        row = tl.where(step < last, step, last)
        m = m + tl.load(drive + row * drive_step + channel * by_drive, mask=inside, other=0.0)
        spike = (m >= level).to(m.dtype)
        m = m - spike * (m if TO_ZERO else level)
        out = spike * one
        if OFFSET:
            out = out + tl.load(offset + channel * by_offset, mask=inside, other=0.0)
        tl.store(spikes + i, spike, mask=inside)
        tl.store(current + i, out, mask=inside)
        z += z_step
        spikes += n
        current += n
    tl.store(v + i, m, mask=inside)


def _room(z: Tensor, T: int, trains: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """z with its elements one behind the other in memory, an output like it, and words (W, B, …) of which each plane
    lies as z does; None without trains."""
    value = torch.empty_like(z)
    if value.stride() != z.stride():
        z = z.contiguous()
        value = torch.empty_like(z)
    if not trains:
        return z, value, None
    shape, strides = (number_of(T), *z.shape), (z.numel(), *z.stride())
    return z, value, torch.empty_strided(shape, strides, dtype=word_of(T), device=z.device)


def _sent(n: int, words: Tensor | None, code: str) -> dict[str, Any]:
    if words is None:
        return {"CODE": 0, "BITS": 32, "NUMBER": 0, "WIDE": n >= LARGEST, "BLOCK": BLOCK}
    wide = words.numel() >= LARGEST
    return {"CODE": CODES[code], "BITS": BITS[words.dtype], "NUMBER": len(words), "WIDE": wide, "BLOCK": BLOCK}


def even(
    z: Tensor, ratio: Tensor, start: Tensor, scale: Tensor, offset: Tensor | None, *, axis: int, lowest: int,
    levels: int, T: int, code: str, fma: bool, trains: bool = True,
) -> tuple[Tensor, PackedTrains | None]:  # fmt: skip
    """Output and trains of neurons with evenly spaced counts lowest … levels for z (B, …), which is not empty. Without
    `trains` the kernel writes the output alone.

    The count is ⌊z · ratio + start⌋ within its bounds, the output count · scale + offset. These are of z's dtype and of
    one element, or of one for each place of z's dimension `axis`. fma: whether product and sum are rounded once.
    """
    z, value, words = _room(z, T, trains)
    n = z.numel()
    negative = torch.empty_like(z, dtype=torch.int8) if lowest < 0 and trains else None
    own = [one.reshape(-1).contiguous() for one in (ratio, start, scale, scale if offset is None else offset)]
    _even[(triton.cdiv(n, BLOCK),)](
        z, *own, value, value if words is None else words, value if negative is None else negative, n, z.stride(axis),
        z.shape[axis], *(int(one.numel() > 1) for one in own), LOWEST=float(lowest), LEVELS=float(levels), FMA=fma,
        OFFSET=offset is not None, SIGNED=negative is not None, enable_fp_fusion=False, **_sent(n, words, code),
    )  # fmt: skip
    if words is None:
        return value, None
    return value, PackedTrains(words, T, None if negative is None else negative.view(torch.bool))


def stairs(
    z: Tensor, thresholds: Tensor, outputs: Tensor, *, axis: int, T: int, code: str, trains: bool = True
) -> tuple[Tensor, PackedTrains | None]:
    """The same of neurons with a threshold for every level: thresholds (S, C) and outputs (S + 1, C) of z's dtype, C
    = 1, or the places of z's dimension `axis`."""
    z, value, words = _room(z, T, trains)
    n, levels, columns = z.numel(), len(thresholds), thresholds.shape[1]
    _stairs[(triton.cdiv(n, BLOCK),)](
        z, thresholds.contiguous(), outputs.contiguous(), value, value if words is None else words, n, z.stride(axis),
        z.shape[axis], columns, int(columns > 1), SIZE=1 << (levels.bit_length() - 1), TESTS=levels.bit_length(),
        LEVELS=levels, enable_fp_fusion=False, **_sent(n, words, code),
    )  # fmt: skip
    return value, None if words is None else PackedTrains(words, T)


def integrate(
    z: Tensor, v: Tensor, theta: Tensor, post: Tensor, drive: Tensor, offset: Tensor | None, *, axis: int, decay: float,
    to_zero: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Steps of integrate-and-fire neurons with the input currents z (t, B, …), which is not empty, from the potential v
    (B, …) on: the last potential, the currents and the spikes (t, B, …), 0 or 1 in z's dtype.

    drive (rows, 1) or (rows, C): a current that is added at each step, the last row also at those behind it. theta,
    post, drive and offset are of z's dtype and of one element, or of one for each place of the dimension `axis` of v.
    decay: the share of the potential that a step keeps. to_zero: whether a spike leaves 0, else θ is subtracted.
    """
    if torch.empty_like(z[0]).stride() != z[0].stride():
        z = z.contiguous()
    n, one = z[0].numel(), z[0].stride()
    last = torch.empty_strided(v.shape, one, dtype=z.dtype, device=z.device).copy_(v)
    current, spikes = (
        torch.empty_strided(z.shape, (n, *one), dtype=z.dtype, device=z.device) for _ in range(2)
    )  # fmt: skip
    own = [each.reshape(-1).contiguous() for each in (theta, post, theta if offset is None else offset)]
    drive, rows = drive.contiguous(), len(drive)
    _integrate[(triton.cdiv(n, BLOCK),)](
        z, last, own[0], own[1], drive, own[2], torch.full((), decay, dtype=z.dtype, device=z.device), current, spikes,
        n, z.stride(0), drive.shape[1], rows - 1, last.stride(axis), last.shape[axis],
        int(own[0].numel() > 1), int(own[1].numel() > 1), int(drive.shape[1] > 1), int(own[2].numel() > 1),
        STEPS=len(z), LEAKS=decay != 1, TO_ZERO=to_zero, OFFSET=offset is not None, WIDE=n >= LARGEST, BLOCK=BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip
    return last, current, spikes
