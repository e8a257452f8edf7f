"""What the functions of this room accept as thresholds, steps and currents, and what they refuse.

A threshold is a number or a tensor that broadcasts against one step of the current: 0-d for a layer,
``(C, 1, 1)`` for the channels of ``(B, C, H, W)``. The sign of a tensor is the caller's responsibility:
looking at it would wait for the device and could not be traced.
"""

import math
from collections.abc import Collection
from numbers import Real

import torch
from torch import Tensor

from parspike.errors import InputError, OptionError


def check_steps(value: int, name: str = "T") -> int:
    """Return ``value``; ``OptionError`` unless it is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} must be an int of at least 1, got {value!r}; pass for example {name}=8")
    return value


def check_choice(value: str, choices: Collection[str], name: str) -> str:
    """Return ``value``; ``OptionError`` unless it is one of ``choices``."""
    if value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_floating(current: Tensor, name: str = "current") -> Tensor:
    """Return ``current``; ``TypeError`` unless its dtype is floating."""
    if not current.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {current.dtype}; call .float() on it first")
    return current


def check_over_time(current: Tensor, name: str = "current") -> int:
    """Return T of a ``(T, ...)`` tensor; ``InputError`` if it has no step, ``TypeError`` if not floating."""
    check_floating(current, name)
    if current.ndim == 0 or current.shape[0] == 0:
        raise InputError(f"{name} must be (T, ...) with time first and T >= 1, got {tuple(current.shape)}")
    return current.shape[0]


def check_positive(value: float, name: str = "v_threshold") -> float:
    """Return ``value``; ``OptionError`` unless it is finite and above 0."""
    if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
        raise OptionError(f"{name} must be finite and above 0, got {value!r}; pass for example {name}=1.0")
    return value


def like(value: float | Tensor, reference: Tensor) -> Tensor:
    """``value`` in the dtype and on the device of ``reference``; gradients of a tensor pass."""
    if isinstance(value, Tensor):
        return value.to(device=reference.device, dtype=reference.dtype)
    # Not a bare Python number: half-precision kernels would round it differently from a tensor,
    # and a network would count differently for a float threshold and the same one learnt.
    return torch.full((), value, dtype=reference.dtype, device=reference.device)


def threshold_like(v_threshold: float | Tensor, reference: Tensor) -> Tensor:
    """``like`` for a threshold; ``OptionError`` for a number that isn't finite and above 0."""
    if not isinstance(v_threshold, Tensor):
        check_positive(v_threshold)
    return like(v_threshold, reference)
