"""QCFS for training: equation (5) at the price of a ReLU, in time and in memory.

`neurons.QCFS` keeps its whole input for the backward pass, where a ReLU keeps nothing that the next layer does not
keep anyway. `TrainQCFS` keeps four bits a neuron: all that the two gradients ask of z is whether it lies below,
inside or above the window, and for θ how far it is from the last jump. That distance is kept in fourteenths of a
level; θ's gradient is a sum over all neurons of a layer, in which the rounding averages out.

    u = z L/θ + 1/2,  k = clip(⌊u⌋, 0, L),  a = k θ/L
    ∂a/∂z = 1 inside                    ∂a/∂θ = k/L − z/θ = (1/2 − (u − k))/L inside, 0 below, 1 above
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parspike.errors import OptionError
from parspike.neurons import QCFS

if TYPE_CHECKING:
    from jaxtyping import Float

    from parspike.neurons.quantised import Window

__all__ = ["TrainQCFS"]

BELOW, ABOVE, STEPS = 0, 15, 14
"""The four bits kept for a neuron: below the window, above it, or 1 + ⌊14 (u − k)⌋."""


def _forward(z: Tensor, theta: Tensor, levels: int, inner: bool) -> tuple[Tensor, Tensor]:
    # The same operations in the same order as `neurons.spike_count`, so that counts agree bit for bit. Half
    # precision is widened: the threshold is learnt in float32, and rounding it would move every jump.
    wide = z if z.dtype == torch.float64 else z.float()
    u = wide * (levels / theta) + 0.5
    k = u.floor().clamp(0, levels)
    code = ((u - k) * STEPS + 1).floor().clamp(1, STEPS)
    low, high = (0.5, levels + 0.5) if inner else (0.0, levels + 1.0)
    code = torch.where(u < low, BELOW, torch.where(u > high if inner else u >= high, ABOVE, code))
    return (k * (theta / levels)).to(z.dtype), _pack(code.to(torch.uint8))


def _pack(code: Tensor) -> Tensor:
    """Two neurons a byte: the halves along the first even dimension, so that neither is strided."""
    dim = _even(code.shape)
    if dim is None:
        return code
    low, high = code.chunk(2, dim)
    return low | (high << 4)


def _even(shape: Sequence[int]) -> int | None:
    return next((dim for dim, size in enumerate(shape) if size % 2 == 0), None)


def _backward(grad: Tensor, packed: Tensor, levels: int, of_layer: bool) -> tuple[Tensor, Tensor]:
    """∂loss/∂z, and ∂loss/∂θ or, unless θ is one number for the layer, its summands."""
    dim = _even(grad.shape)
    # Each half by itself, and joined at the end: the compiler then writes both into their places.
    grads, codes = ((grad,), (packed,)) if dim is None else (grad.chunk(2, dim), (packed & 15, packed >> 4))
    parts = [_gradients(*part, levels) for part in zip(grads, codes, strict=True)]
    to_z = torch.cat([z for z, _ in parts], dim or 0) if dim is not None else parts[0][0]
    if of_layer:
        return to_z, torch.stack([theta.sum() for _, theta in parts]).sum()
    return to_z, torch.cat([theta for _, theta in parts], dim) if dim is not None else parts[0][1]


def _gradients(grad: Tensor, code: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    wide = grad if grad.dtype == torch.float64 else grad.float()
    c = code.to(wide.dtype)  # compared as floats, which the CPU does faster than as bytes
    inside, above = (c > BELOW + 0.5) & (c < ABOVE - 0.5), c > ABOVE - 0.5
    slope = torch.where(inside, (0.5 - (c - 0.5) / STEPS) / levels, torch.where(above, 1.0, 0.0))
    return torch.where(inside, grad, 0.0), wide * slope


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, levels: int, inner: bool, fused: bool) -> Tensor:
        wide = theta if z.dtype == torch.float64 else theta.float()
        a, packed = (_compiled(_forward) if fused else _forward)(z, wide, levels, inner)
        ctx.save_for_backward(packed)
        ctx.levels, ctx.fused, ctx.theta = levels, fused, (theta.shape, theta.dtype)
        return a

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        shape, dtype = ctx.theta
        run = _compiled(_backward) if ctx.fused else _backward
        of_layer = shape.numel() == 1  # also of a layer of one channel, (1, 1, 1)
        to_z, to_theta = run(grads[0], packed, ctx.levels, of_layer)
        to_theta = to_theta.view(shape) if of_layer else to_theta.sum_to_size(shape)
        return to_z, to_theta.to(dtype), None, None, None


class TrainQCFS(QCFS):
    """`neurons.QCFS` with the same values, less memory, and fused arithmetic where a compiler is at hand.

    v_threshold: a number, or a tensor (C, 1, 1) for one threshold a channel of (B, C, H, W). fused: run through
    torch.compile; None: on a GPU, or where a C++ compiler is found.

    >>> act = TrainQCFS(levels=4, v_threshold=1.0, fused=False)
    >>> act(torch.tensor([-1.0, 0.2, 0.3, 3.0]))
    tensor([0.0000, 0.2500, 0.2500, 1.0000], grad_fn=<_FusedBackward>)
    """

    def __init__(
        self,
        levels: int = 8,
        v_threshold: float | Tensor = 8.0,
        window: Window = "inner",
        *,
        fused: bool | None = None,
    ) -> None:
        of_layer = not isinstance(v_threshold, Tensor)
        super().__init__(levels, v_threshold if of_layer else 1.0, window)
        if not of_layer:
            if not bool((v_threshold > 0).all()):
                raise OptionError("every threshold must be above 0")
            self.v_threshold = nn.Parameter(v_threshold.detach().clone())
        self.fused = fused

    def forward(self, z: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        if torch.compiler.is_exporting():
            return super().forward(z)
        if not torch.is_grad_enabled():
            # Under autocast z is rounded and θ is not: counts are decided in θ's precision, as in training.
            wide = z if z.dtype == torch.float64 else z.to(self.v_threshold.dtype)
            return super().forward(wide).to(z.dtype)
        fused = self.fused
        if torch.compiler.is_compiling():
            fused = False  # inside a compiled network, the outer torch.compile fuses this with the rest
        elif fused is None:
            fused = _can_compile(z.device.type)
        # torch leaves Function.apply untyped.
        return _Fused.apply(z, self.v_threshold, self.levels, self.window == "inner", fused)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        theta = self.v_threshold.detach()
        shown = f"{theta.item():g}" if theta.ndim == 0 else f"({theta.numel()} channels)"
        return f"levels={self.levels}, v_threshold={shown}, window={self.window!r}"


@functools.cache
def _can_compile(device: str) -> bool:
    return device == "cuda" or any(shutil.which(name) for name in ("g++", "clang++", "c++"))
