"""Synapses in integers: sums of products of bytes, exact, through oneDNN's kernels or those of a GPU.

On a CPU three things could make a sum differ from exact arithmetic; none is left to chance:

- Processors without VNNI add pairs of products of 8 bits in 16 bits, which saturate. Where two such products may not
  fit, the input is split into two parts of 7 bits, whose sums are added.
- A kernel gives its sums as float32. Where they may reach 2^24, the input goes through it in parts of a few bits, whose
  sums are below 2^24 each, and the parts are added in float64.
- Before the first run the library has to reproduce exact sums on this machine (`exact`); where it does not, its kernels
  are not used. A convolution of an unusual form is tried in that form, and at that size (`_tried`): where it is not
  exact, it runs in float64.

What could prove this wrong: a sum that differs from that of float64 (tests/test_integer_engine.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.engines import tensor_cores
from parspike.graph import Node, Role
from parspike.graph.signature import Conv, Linear

__all__ = [
    "BYTE", "EXACT", "HALF", "PLAIN", "WHOLE", "Kernel", "OnGPU", "Synapse", "as_bytes", "bytes_of", "digits", "exact",
    "ops",
]  # fmt: skip

BYTE, HALF = 255, 128
PAIR = (1 << 15) - 1
"""The largest sum of two products that a processor without VNNI holds."""
PARTS = 3
"""Passes through an integer kernel that cost less than one in float64."""
WHOLE = 1 << 24
"""Whole numbers below it, and their sums, are exact in float32."""
EXACT = {torch.float32: WHOLE, torch.float64: 1 << 53}
"""Whole numbers below these, and their sums, are exact."""
Parts = tuple[tuple[Callable[[Tensor], Tensor], int], ...]
"""What makes the bytes of each part of an input, and the factor that the part has in it."""
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of what it reads, the scale and what is added, the counts (B, C, …)."""
PLAIN: tuple[Any, ...] = ("none", [], "")
"""No elementwise operator in a kernel's last step."""


@dataclass
class Synapse:
    """A convolution or linear layer with weights of at most 8 bits that reads whole numbers.

    most: the largest |sum|, for every output. parts: the input as bytes, each with the factor that its sum has. zero:
    what stands for 0 in these bytes. wide: its sums may reach 2^24, those of its parts may not.
    """

    node: Node
    found: Conv | Linear
    weight: Tensor
    bias: Tensor
    most: Tensor
    parts: Parts
    zero: int = 0
    wide: bool = False

    def __post_init__(self) -> None:
        whole = self.weight.detach().to(torch.int8).contiguous()  # the packers take no strides
        self.ones = torch.ones(len(self.bias))
        self.zeros = torch.zeros(len(self.bias), dtype=torch.int32)
        if isinstance(self.found, Conv):
            pads = [before for before, _ in self.found.padded(list(self.weight.shape[2:]))]
            self.how = list(self.found.stride), pads, list(self.found.dilation), self.found.groups
            self.packed = ops().qconv_prepack(whole, self.ones, 1.0, self.zero, *self.how, None)
        else:
            self.packed = ops().qlinear_prepack(whole, None)

    @property
    def clips(self) -> bool:
        """Whether its kernel can also clip, which those of two spatial dimensions alone do."""
        return isinstance(self.found, Conv) and len(self.found.stride) == 2

    def sums(self, x: Tensor, scale: Tensor | None, bias: Tensor) -> Tensor:
        """scale · (sum of the products) + bias in float32. Scales are above 0. Not of wide ones."""
        factor = self.ones if scale is None else scale
        (first, _), *others = self.parts
        total = self._run(first(x), factor, bias, torch.float32, PLAIN)
        for part, sign in others:
            total.add_(self._run(part(x), factor, torch.zeros_like(bias), torch.float32, PLAIN), alpha=sign)
        return total

    def clipped(self, x: Tensor, scale: Tensor, bias: Tensor, *, levels: int) -> Tensor:
        """scale · (sum of the products of the bytes x) + bias, rounded, as bytes 0 … levels."""
        return self._run(x, scale, bias, torch.uint8, ("hardtanh", [0.0, float(levels)], ""))

    def counting(self, levels: int, found: Conv, outputs: Tensor) -> Kernel:
        """`clipped` for some of the outputs, which `found` makes."""
        of = [t[outputs] for t in (self.weight, self.bias, self.most)]
        return partial(replace(self, found=found, weight=of[0], bias=of[1], most=of[2]).clipped, levels=levels)

    def part(self, number: int, x: Tensor) -> Tensor:
        """The sum of the products of one part, in float32, without its factor."""
        return self._run(self.parts[number][0](x), self.ones, torch.zeros_like(self.ones), torch.float32, PLAIN)

    def whole(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum of the products + bias, exact in `dtype`."""
        if not self.wide:
            return self.sums(x, None, self.bias).to(dtype)
        like = [1, -1] + [1] * (x.dim() - 2) if isinstance(self.found, Conv) else [-1]
        total = self.bias.double().reshape(like)
        for (_, factor), part in zip(self.parts, self._each(x), strict=True):
            total = total + factor * part.double()
        return total.to(dtype)

    def _each(self, x: Tensor) -> Iterable[Tensor]:
        """The sums of all parts. A linear layer takes them in one call, which reads its weights once."""
        if isinstance(self.found, Conv):
            return (self.part(number, x) for number in range(len(self.parts)))
        parts = torch.stack([first(x) for first, _ in self.parts])
        return self._run(parts, self.ones, torch.zeros_like(self.ones), torch.float32, PLAIN).unbind()

    def _run(self, x: Tensor, scale: Tensor, bias: Tensor, kind: torch.dtype, post: tuple[Any, ...]) -> Tensor:
        if isinstance(self.found, Conv):
            if self._sound(tuple(x.shape), kind, post):
                return self.kernel(x, scale, bias, kind, post)
            return self.plain(x, scale, bias, kind, post)
        flat = x.reshape(-1, x.shape[-1])
        made = ops().qlinear_pointwise(flat, 1.0, self.zero, self.packed, scale, self.zeros, bias, 1.0, 0, kind, *post)
        return made.view(*x.shape[:-1], -1)

    def kernel(self, x: Tensor, scale: Tensor, bias: Tensor, kind: torch.dtype, post: tuple[Any, ...]) -> Tensor:
        """scale · (sum of the products of the bytes x) + bias of a convolution by oneDNN's kernel."""
        return ops().qconv_pointwise(
            x, 1.0, self.zero, self.packed, scale, self.zeros, bias, *self.how, 1.0, 0, kind, *post
        )

    def plain(self, x: Tensor, scale: Tensor, bias: Tensor, kind: torch.dtype, post: tuple[Any, ...]) -> Tensor:
        """The same in float64."""
        stride, pads, dilation, groups = self.how
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
        sums = conv(x.double() - self.zero, self.weight.double(), None, stride, pads, dilation, groups)
        like = [1, -1] + [1] * len(stride)
        made = sums * scale.double().reshape(like) + bias.double().reshape(like)
        return made.clamp(*post[1]).round().to(kind) if post[0] == "hardtanh" else made.to(kind)

    def _sound(self, shape: tuple[int, ...], kind: torch.dtype, post: tuple[Any, ...]) -> bool:
        """Whether the kernel is exact for inputs of this shape: of a usual form, or tried in just this one."""
        stride, pads, dilation, groups = self.how
        kernel = self.weight.shape[2:]
        if not all(_reads_all(*of) for of in zip(shape[2:], kernel, stride, pads, dilation, strict=True)):
            return False  # some of these end the process (a segmentation fault)
        depthwise = groups == shape[1] == len(self.weight)
        narrow = shape[-1] + 2 * pads[-1] < kernel[-1] + stride[-1] and stride[-1] > 1
        if len(kernel) < 3 and (groups == 1 or depthwise) and max(dilation) == 1 and not narrow:
            return True
        how = tuple(tuple(n) if isinstance(n, list) else n for n in self.how)
        given = tuple(self.weight.shape), how, self.zero, shape, kind, post[0], *post[1]
        return _tried(*given, torch.get_num_threads())


@dataclass
class OnGPU:
    """The same on a GPU. last: what makes sums of the products, with the bias, in the type of the network."""

    found: Conv | Linear
    bias: Tensor
    most: Tensor
    core: tensor_cores.Synapse
    last: tensor_cores.Last

    def whole(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum of the products + bias, exact in `dtype`."""
        return self.core(x, self.last).to(dtype)


def ops() -> Any:
    """oneDNN's integer kernels."""
    return torch.ops.onednn


@cache
def exact(pairs: bool = False) -> bool:
    """Whether the kernels of this machine reproduce exact sums; pairs: also of two products beyond 16 bits, and of
    numbers below 0, which are held as bytes with 128 for 0.

    Convolutions (plain, depthwise, 1×1, of 1 dimension) and products with the largest and with random numbers are
    compared with float64. Other forms are tried where they occur (`_tried`, which asks this).
    """
    generator = torch.Generator().manual_seed(0)
    most = BYTE if pairs else HALF
    try:
        for rank, channels, outputs, kernel, groups in (
            (2, 48, 32, 3, 1), (2, 64, 32, 1, 1), (2, 32, 32, 3, 32), (2, 3, 8, 3, 1),
            (1, 5, 7, 3, 1), (0, 64, 10, 1, 1), (0, 7, 5, 1, 1),
        ):  # fmt: skip
            shape = (outputs, channels // groups, *[kernel] * rank)
            for weight, x in (
                (torch.full(shape, 127), torch.full((2, channels, *[9] * rank), most)),
                (torch.randint(-127, 128, shape, generator=generator),
                 torch.randint(0, most + 1, (2, channels, *[9] * rank), generator=generator)),
            ):  # fmt: skip
                weight, x, bias = weight.double(), x.double(), torch.arange(outputs).double() - 3
                conv = (F.conv1d, F.conv1d, F.conv2d)[rank]
                if rank:
                    right = conv(x, weight, bias, 1, kernel // 2, 1, groups)
                    found: Conv | Linear = Conv(
                        None, None, None, (1,) * rank, (kernel // 2,) * rank, (1,) * rank, groups
                    )
                else:
                    right, found = F.linear(x, weight, bias), Linear(None, None, None)
                like = Node("probe", "", (), {}, Role.SYNAPSE, "", "", tuple(right.shape))
                made = Synapse(like, found, weight, bias, bias, ((as_bytes, 1),))
                if not torch.equal(made.sums(x, None, bias.float()).double(), right):
                    return False
                if pairs:
                    turned = Synapse(like, found, weight, bias, bias, ((as_bytes, 1),), zero=HALF)
                    signed = (
                        conv(x - HALF, weight, bias, 1, kernel // 2, 1, groups)
                        if rank
                        else F.linear(x - HALF, weight, bias)
                    )
                    if not torch.equal(turned.sums(x, None, bias.float()).double(), signed):
                        return False
                if rank != 2:
                    continue
                step = 1001.0
                wanted = ((right + 5) / step).floor().add(1).clamp(0, 40)
                scale, added = torch.full((outputs,), 1 / step), ((bias + 5.5) / step + 0.5).float()
                if not torch.equal(made.clipped(as_bytes(x), scale, added, levels=40).double(), wanted):
                    return False
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


@cache
def _reads_all(size: int, kernel: int, stride: int, pad: int, dilation: int) -> bool:
    """Whether every output of a convolution along one dimension reads a place of the input, not padding alone."""
    first = torch.arange(0, size + 2 * pad - dilation * (kernel - 1), stride)[:, None] - pad
    read = first + dilation * torch.arange(kernel)
    return bool(((read >= 0) & (read < size)).any(1).all())


@lru_cache(maxsize=1024)
def _tried(
    shape: tuple[int, ...], how: tuple[Any, ...], zero: int, given: tuple[int, ...], kind: torch.dtype, *post: Any
) -> bool:
    """Whether a convolution of this form is exact on random bytes. Kernels of oneDNN for AMX are not for some forms:
    behind strides along a width that leaves one column (all rows but the first are wrong), in groups of 24 channels,
    where all that a dilated kernel reads is padding; and it depends on the size of the batch.

    shape: of the weights. how: strides, paddings, dilations, groups. given: the shape of the bytes. kind: of the
    result. post: name and ends of what clips it, and the number of threads.
    """
    stride, pads, dilation, groups = how
    generator = torch.Generator().manual_seed(0)
    taps = math.prod(shape[1:])
    most = min(BYTE if exact(pairs=True) else HALF, max(1, (WHOLE >> 1) // (127 * taps)))
    weight = torch.randint(-127, 128, shape, generator=generator).double()
    x = torch.randint(0, most + 1, given, generator=generator).to(torch.uint8)
    found = Conv(None, None, None, stride, pads, dilation, groups)
    none = torch.zeros(shape[0])
    if post[0] == "hardtanh":  # steps of a power of two, so that no sum lies half between two counts
        step = 2.0 ** max(1, math.ceil(math.log2(127 * math.sqrt(taps) * most / post[2])))
        arguments = x, none + 1 / step, none + 0.5 / step, kind, ("hardtanh", list(post[1:3]), "")
    else:
        arguments = x, none + 1, none, kind, PLAIN
    try:
        made = Synapse(Node("probe", "", (), {}, Role.SYNAPSE, "", "", ()), found, weight, none, none, (), zero)
        return torch.equal(made.kernel(*arguments), made.plain(*arguments))
    except (RuntimeError, NotImplementedError):
        return False


def bytes_of(low: float, high: float, largest: float) -> tuple[Parts | None, int]:
    """How an input goes through the kernel as bytes, and what stands for 0 in them; largest: the largest weight."""
    if low >= 0 and high <= BYTE:
        if 2 * high * largest <= PAIR or exact(pairs=True):
            return ((as_bytes, 1),), 0
        return ((_first_half, 1), (_second_half, 1)), 0
    if low >= -HALF and high < HALF and exact(pairs=True):
        return ((_around_half, 1),), HALF
    return (((_above, 1), (_below, -1)) if low >= -HALF and high <= HALF else None), 0


def digits(low: float, high: float, most: float, largest: float) -> tuple[Parts | None, int]:
    """Whole numbers in parts of a few bits, whose sums are below 2^24, and what stands for 0 in them; most: the
    largest sum of an input of 1."""
    if low < 0:
        return bytes_of(low, high, largest) if HALF * most < WHOLE else (None, 0)
    if high > tensor_cores.SMALL or largest == 0:
        return None, 0
    end = min((WHOLE - 1) / most, BYTE, BYTE if exact(pairs=True) else PAIR / (2 * largest))
    bits = int(end + 1).bit_length() - 1  # 2^bits − 1 is the largest part
    number = -(-int(high).bit_length() // bits) if bits else PARTS + 1
    if number > PARTS:
        return None, 0
    return tuple((partial(_digit, bits=bits, number=i), 1 << (bits * i)) for i in range(number)), 0


def as_bytes(x: Tensor) -> Tensor:
    """Counts 0 … 255 as they are."""
    return x.to(torch.uint8)


def _above(x: Tensor) -> Tensor:
    return x.clamp(min=0).to(torch.uint8)


def _below(x: Tensor) -> Tensor:
    return x.neg().clamp_(min=0).to(torch.uint8)


def _around_half(x: Tensor) -> Tensor:
    if x.dtype == torch.int8:
        return x.bitwise_xor(-HALF).view(torch.uint8)
    return (x + HALF).to(torch.uint8)


def _digit(x: Tensor, bits: int, number: int) -> Tensor:
    """Bits number · bits … of counts, as bytes."""
    whole = x if not x.is_floating_point() else x.to(torch.int16)
    return ((whole >> (bits * number)) & ((1 << bits) - 1)).to(torch.uint8)


def _first_half(x: Tensor) -> Tensor:
    return x.clamp(max=HALF).to(torch.uint8)


def _second_half(x: Tensor) -> Tensor:
    return (x.clamp(min=HALF) - HALF).to(torch.uint8)
