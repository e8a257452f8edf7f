"""Sums of products of 8-bit whole numbers on tensor cores, with the neurons behind them (Triton).

One kernel is a product of matrices whose left one is never written: row m is a place of the output, column k a tap and
a channel, and what stands there is loaded from the input where the convolution reads it. All values lie with their
channels innermost. A linear layer is a convolution of one place. Depthwise convolutions have a kernel of their own,
for they have no product of matrices.

Only `parspike.engines.tensor_cores` imports this module: it needs Triton, and which inputs are exact is decided there.
"""
# The kernels are read by Triton's compiler, which knows neither keyword-only arguments nor most of Python.
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

__all__ = ["each_channel", "of_channels"]

SIZES = (
    "rows", "height", "width", "out_height", "out_width", "stride_h", "stride_w", "pad_h", "pad_w",
    "dilation_h", "dilation_w", "taps_w", "blocks", "levels",
)  # fmt: skip
"""Numbers that make no kernel of their own: Triton compiles another for each that is 1 or a multiple of 16."""


@triton.jit
def _places(m, out_height, out_width, stride_h, stride_w, pad_h, pad_w):
    """Sample, row and column of the input where the window of output m begins."""
    column = m % out_width
    row = (m // out_width) % out_height
    sample = m // (out_width * out_height)
    return sample.to(tl.int64), row * stride_h - pad_h, column * stride_w - pad_w


@triton.jit
def _finished(
    total, m, n, live, out, all_outputs, factor, other, other_factor, constant, step, levels,
    HAS_OTHER: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    """factor · total + other_factor · other + constant; of neurons min(⌊that / step⌋ + 1, levels), 0 where it is
    below 0."""
    place = m.to(tl.int64)[:, None] * all_outputs + n[None, :]
    there = n < all_outputs
    z = total * tl.load(factor + n, mask=there, other=0)[None, :]
    if HAS_OTHER:
        beside = tl.load(other + place, mask=live, other=0).to(tl.int32)
        z += beside * tl.load(other_factor + n, mask=there, other=0)[None, :]
    z += tl.load(constant + n, mask=there, other=0)[None, :]
    if COUNTS:
        wide = tl.load(step + n, mask=there, other=1)[None, :]
        # A quotient of at most 2^14 in float32 is off by less than 1, so truncated at most by 1; the rest says whether.
        reached = tl.minimum(tl.maximum(z, 0), (levels - 1) * wide)
        quotient = (reached.to(tl.float32) / wide.to(tl.float32)).to(tl.int32)
        rest = reached - quotient * wide
        quotient += (rest >= wide).to(tl.int32) - (rest < 0).to(tl.int32)
        z = tl.where(z >= 0, quotient + 1, 0)
    tl.store(out + place, z.to(out.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=SIZES)
def of_channels(
    x, weight, out, factor, other, other_factor, constant, step,
    all_channels, all_outputs, channels, features,
    rows, height, width, out_height, out_width, outputs, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    taps_w, blocks, levels, STEPS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLAT: tl.constexpr, EVEN: tl.constexpr,
    KIND: tl.constexpr, HAS_OTHER: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    """Convolutions that add over channels. x (samples, height, width, all_channels); weight (all_outputs, features),
    where a feature is a tap and a channel; out (rows, all_outputs). channels, outputs: of one group. blocks: of BN
    outputs.
    FLAT: a tap is a row of the window, and its channels those of all columns, which lie side by side.
    EVEN: channels is a multiple of BK. KIND "signed": x holds −128 … 127; "byte": 0 … 255, in int8's bits; "wide":
    0 … 2^14 − 1, in int16."""
    group = tl.program_id(1)
    m = (tl.program_id(0) // blocks) * BM + tl.arange(0, BM)
    n = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    sample, top, left = _places(m, out_height, out_width, stride_h, stride_w, pad_h, pad_w)
    size = channels
    if FLAT:
        start = x + sample * (height * width * all_channels)
    else:
        start = x + sample * (height * width * all_channels) + group * channels
    row = group * outputs + n
    per_tap = (channels + BK - 1) // BK
    total = tl.full((BM, BN), 0, tl.int32)
    high = tl.full((BM, BN), 0, tl.int32)
    for i in range(STEPS):
        tap = i // per_tap
        c = (i % per_tap) * BK + k
        if FLAT:
            y = top + tap * dilation_h
            at = left[:, None] * all_channels + c[None, :]
            inside = ((m < rows) & (y >= 0) & (y < height))[:, None] & (at >= 0) & (at < width * all_channels)
            inside = inside & (c < size)[None, :]
            place = (y * width * all_channels)[:, None] + at
        else:
            y = top + (tap // taps_w) * dilation_h
            column = left + (tap % taps_w) * dilation_w
            inside = ((m < rows) & (y >= 0) & (y < height) & (column >= 0) & (column < width))[:, None]
            place = ((y * width + column) * all_channels)[:, None] + c[None, :]
            if not EVEN:
                inside = inside & (c < size)[None, :]
        a = tl.load(start[:, None] + place, mask=inside, other=0)
        known = (n < outputs)[None, :]
        if not EVEN:
            known = known & (c < size)[:, None]
        b = tl.load(weight + row.to(tl.int64)[None, :] * features + (tap * channels + c)[:, None], mask=known, other=0)
        if KIND == "wide":
            total = tl.dot((a & 127).to(tl.int8), b, total, out_dtype=tl.int32)
            high = tl.dot((a >> 7).to(tl.int8), b, high, out_dtype=tl.int32)
        elif KIND == "byte":
            # A count less 128, also where zeros are put in at the edge: 128 · Σ weights stands in the constant.
            total = tl.dot(a ^ -128, b, total, out_dtype=tl.int32)
        else:
            total = tl.dot(a, b, total, out_dtype=tl.int32)
    if KIND == "wide":
        total += high * 128
    live = (m < rows)[:, None] & (n < outputs)[None, :]
    _finished(
        total, m, row, live, out, all_outputs, factor, other, other_factor, constant, step, levels, HAS_OTHER, COUNTS
    )


@triton.jit(do_not_specialize=SIZES)
def each_channel(
    x, weight, out, factor, other, other_factor, constant, step,
    all_channels, all_outputs, channels, features,
    rows, height, width, out_height, out_width, outputs, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    taps_w, blocks, levels, STEPS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLAT: tl.constexpr, EVEN: tl.constexpr,
    KIND: tl.constexpr, HAS_OTHER: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    """Depthwise convolutions, of one output a channel: `of_channels` with weight (taps, all_channels)."""
    m = (tl.program_id(0) // blocks) * BM + tl.arange(0, BM)
    n = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    there = n < all_channels
    sample, top, left = _places(m, out_height, out_width, stride_h, stride_w, pad_h, pad_w)
    start = x + sample * (height * width * all_channels)
    total = tl.full((BM, BN), 0, tl.int32)
    for tap in range(STEPS):
        y = top + (tap // taps_w) * dilation_h
        column = left + (tap % taps_w) * dilation_w
        inside = (m < rows) & (y >= 0) & (y < height) & (column >= 0) & (column < width)
        place = ((y * width + column) * all_channels)[:, None] + n[None, :]
        a = tl.load(start[:, None] + place, mask=inside[:, None] & there[None, :], other=0).to(tl.int32)
        if KIND == "byte":
            a = a & 255
        total += a * tl.load(weight + tap * all_channels + n, mask=there, other=0).to(tl.int32)[None, :]
    live = (m < rows)[:, None] & there[None, :]
    _finished(
        total, m, n, live, out, all_outputs, factor, other, other_factor, constant, step, levels, HAS_OTHER, COUNTS
    )
