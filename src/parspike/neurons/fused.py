"""Which layers of neurons run as one kernel, and the proof that they may.

On a GPU a layer of neurons is a dozen small kernels in plain torch, at every step where they have a state. Where Triton
is installed (it comes with torch for GPUs) one kernel does it all (`kernels`). Before the first layer of a dtype on a
device, the kernels have to give there what plain torch gives, to the bit, on currents beside every threshold; where
they do not, or cannot be compiled, plain torch runs, with a warning.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from parspike.errors import ParspikeWarning

from .packed import PackedTrains, words_of
from .quantised import counts, line_of

__all__ = ["agree", "even", "integrate", "proved", "stairs", "stepped"]

DTYPES = (torch.float32, torch.float64)
"""Half precision rounds after every operator in plain torch, and runs there."""


def even(
    z: Tensor, ratio: Tensor, start: Tensor, scale: Tensor, offset: float | Tensor | None, *, levels: int, T: int,
    code: str, lowest: int = 0, trains: bool = True,
) -> tuple[Tensor, PackedTrains | None] | None:  # fmt: skip
    """Mean output and trains of neurons with evenly spaced counts lowest … levels for z (B, …); None where plain torch
    is to compute them. ratio, start: of `quantised.line_of`. scale: the mean output of one count. offset: None for 0.
    Without `trains`, the output alone."""
    own = (ratio, start, scale, *((offset,) if isinstance(offset, Tensor) else ()))
    # First, since a compiler would take what the other one asks for as a condition on the sizes of its input.
    if (fma := _usable(z, *own)) is None or (axis := _axis(z, *own)) is None:
        return None
    from . import kernels

    added = _tensor(offset, z)
    with torch.cuda.device(z.device):
        return kernels.even(
            z.detach(), ratio, start, scale, added, axis=axis, lowest=lowest, levels=levels, T=T, code=code, fma=fma,
            trains=trains,
        )  # fmt: skip


def stairs(
    z: Tensor, thresholds: Tensor, outputs: Tensor, *, T: int, code: str, trains: bool = True
) -> tuple[Tensor, PackedTrains | None] | None:
    """The same of neurons with a threshold for every level, thresholds (S, …) and outputs (S + 1, …)."""
    if _usable(z, thresholds, outputs) is None or thresholds.shape[1:] != outputs.shape[1:]:
        return None
    if (axis := _axis(z, thresholds[0])) is None:
        return None
    from . import kernels

    tables = (table.detach().reshape(len(table), -1) for table in (thresholds, outputs))
    with torch.cuda.device(z.device):
        return kernels.stairs(z.detach(), *tables, axis=axis, T=T, code=code, trains=trains)


def integrate(
    z: Tensor, v: Tensor, v_threshold: Tensor, v_post: Tensor, drive: Tensor, offset: float | Tensor | None, *,
    decay: float, to_zero: bool,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """Steps of integrate-and-fire neurons with the input currents z (t, B, …): potential (B, …), currents and spikes
    (t, B, …); None where plain torch is to compute them. drive (rows, …): added at each step; offset: None for 0."""
    own = (v_threshold, v_post, drive, *((offset,) if isinstance(offset, Tensor) else ()))
    if _usable(z, v, *own) is None or v.shape != z.shape[1:]:
        return None
    if (axis := _axis(v, v_threshold, v_post, drive[0], *own[3:])) is None:
        return None
    from . import kernels

    added = _tensor(offset, z)
    with torch.cuda.device(z.device):
        return kernels.integrate(
            z.detach(), v, v_threshold.detach(), v_post.detach(), drive.detach().reshape(len(drive), -1), added,
            axis=axis, decay=decay, to_zero=to_zero,
        )  # fmt: skip


def _tensor(offset: float | Tensor | None, z: Tensor) -> Tensor | None:
    if offset is None or isinstance(offset, Tensor):
        return offset
    return torch.full((), offset, dtype=z.dtype, device=z.device)


def _usable(z: Tensor, *own: Tensor) -> bool | None:
    """As `proved`; None also for tensors that are no matter for kernels."""
    if not z.is_cuda or torch.compiler.is_compiling() or type(z) not in (Tensor, nn.Parameter):
        return None
    if z.dtype not in DTYPES or not z.numel() or any(one.dtype != z.dtype or one.device != z.device for one in own):
        return None
    # The proof looks at values, which cannot be done while a CUDA graph is recorded.
    return None if torch.cuda.is_current_stream_capturing() else proved(z.device, z.dtype)


def _axis(z: Tensor, *own: Tensor) -> int | None:
    """The dimension of z along which parameters differ, the last where none does; None where it is more than one, or
    where z has none."""
    axes = {z.dim() - one.dim() + place for one in own for place, size in enumerate(one.shape) if size > 1}
    if not z.dim() or len(axes) > 1:
        return None
    axis = axes.pop() if axes else z.dim() - 1
    return axis if axis >= 0 and all(one.numel() in (1, z.shape[axis]) for one in own) else None


@functools.cache
def proved(device: torch.device, dtype: torch.dtype) -> bool | None:
    """Whether plain torch rounds a product and a sum once on this device, where the kernels then give what it gives, to
    the bit; None where they do not, or do not run."""
    if importlib.util.find_spec("triton") is None:
        return None
    reason = "they count otherwise"
    try:
        from . import kernels

        with torch.cuda.device(device):
            for fma in (True, False):
                if agree(kernels, device, dtype, fma):
                    return fma
    # Triton raises anything: no C compiler, no room on the disk, a driver that is too old.
    except Exception as error:  # noqa: BLE001
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    warnings.warn(
        f"neurons run in plain torch on {device}, as several kernels instead of one, for Triton's do not run as they "
        f"should: {reason}",
        ParspikeWarning,
        stacklevel=2,
    )
    return None


@torch.no_grad()
def agree(kernels: Any, device: torch.device, dtype: torch.dtype, fma: bool) -> bool:
    """Whether the kernels of a module give what plain torch gives, on currents within 4 units in the last place of
    every threshold, on infinite ones and on NaN."""
    generator = torch.Generator().manual_seed(0)
    number, eps = 61, torch.finfo(dtype).eps

    def between(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(*shape, generator=generator)).to(device, dtype)

    theta, shift, post, offset = (between(*ends, number, 1) for ends in ((0.3, 3), (-0.2, 0.2), (0.5, 2), (-1, 1)))
    for levels, T, code, lowest in ((33, 33, "sorted", 0), (32, 32, "onset", -32), (15, 4, "weighted", 0)):
        numbers = torch.arange(lowest - 1, levels + 2, device=device, dtype=dtype)
        jumps = (numbers - 0.5) * (theta / levels) - shift
        z = torch.stack([jumps * (1 + ulps * eps) for ulps in range(-4, 5)])
        z[0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        count, scale = counts(z, theta, levels, shift, lowest=lowest), post / levels
        how = {"axis": 1, "lowest": lowest, "levels": levels, "T": T, "code": code, "fma": fma}
        value, trains = kernels.even(z, *line_of(theta, levels, shift), scale, offset, **how)
        alone, _ = kernels.even(z, *line_of(theta, levels, shift), scale, offset, trains=False, **how)
        negative, wanted = trains.negative, count * scale + offset
        if not _same(value, wanted) or not _same(alone, wanted):
            return False
        if not torch.equal(trains.words, words_of(count.abs(), T, code)):
            return False
        if negative is not None and not torch.equal(negative, count < 0):
            return False
    steps = between(0, 1, 21, number).sort(0).values
    outputs = torch.cat([steps[:1] - 1, steps])
    z = torch.cat([steps, steps * (1 - eps), steps - 1, steps[:1] * float("nan")])
    count = (z[:, None] >= steps).sum(1)
    value, trains = kernels.stairs(z, steps, outputs, axis=1, T=21, code="sorted")
    wanted = torch.where(z.isnan(), z, outputs.gather(0, count))
    alone, _ = kernels.stairs(z, steps, outputs, axis=1, T=21, code="sorted", trains=False)
    if not _same(value, wanted) or not _same(alone, wanted):
        return False
    if not torch.equal(trains.words, words_of(count, 21, "sorted")):
        return False
    # Steps of the smallest size that tells potentials apart, so that many lie on their threshold or beside it.
    z = between(0, 64, 7, number, 33).round() * (eps * 8) + theta / 2
    for decay, to_zero, drive in ((1.0, False, shift[None, :, 0]), (0.9, True, between(-0.1, 0.1, 4, 1))):
        made = kernels.integrate(
            z, theta.expand(z.shape[1:]) / 2, theta, post, drive, offset, axis=0, decay=decay, to_zero=to_zero
        )
        row = drive.unsqueeze(-1)
        wanted = stepped(z, (theta / 2).expand(z.shape[1:]).clone(), theta, row, decay, to_zero)
        if not all(map(_same, made, (wanted[0], wanted[1] * post + offset, wanted[1]))):
            return False
    return True


def stepped(z: Tensor, v: Tensor, theta: Tensor, drive: Tensor, decay: float, to_zero: bool) -> tuple[Tensor, Tensor]:
    """Steps of integrate-and-fire neurons in plain torch, from the potential v (B, …) on, which is overwritten: v, and
    the spikes (t, B, …), 0 or 1 in z's dtype. drive (rows, …): added at each step, the last row also at those behind.
    """
    spikes = torch.empty_like(z, memory_format=torch.contiguous_format)
    # In place, for the cost of a neuron is memory traffic: one potential, one train, one current.
    for number, (now, spike) in enumerate(zip(z, spikes, strict=True)):
        if decay != 1:
            v.mul_(decay)
        v.add_(now).add_(drive[min(number, len(drive) - 1)])
        torch.ge(v, theta, out=spike)
        v.addcmul_(spike, v if to_zero else theta, value=-1)
    return v, spikes


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
