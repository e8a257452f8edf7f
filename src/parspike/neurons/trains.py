"""Sorted spike trains: the T steps of a neuron as a function of its spike count, and back. Equation (7).

A sorted train is its count: all trains of one order are nested, so max-pooling them step by step is
max-pooling the counts. Steps are numbered from 0 here, so that ``start`` and ``stop`` slice like Python's;
the paper's step x is step x − 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .arguments import check_choice, check_steps

if TYPE_CHECKING:  # jaxtyping is a development tool, not a dependency
    from jaxtyping import Bool, Int, Real

Order = Literal["late", "early"]
ORDERS = ("late", "early")


def sorted_train(
    count: Real[Tensor, "*n"], T: int, order: Order = "late", start: int = 0, stop: int | None = None
) -> Bool[Tensor, "steps *n"]:
    """Steps ``start`` to ``stop`` (exclusive; T if None) of the train of ``count`` spikes in T steps.

    ``"late"`` is silent for T − k steps and then fires at every step, equation (7); ``"early"`` fires from
    the first step to the k-th. ``count`` is of any real dtype; outside 0..T it is taken as 0 or T.
    Slices let a caller walk long trains without holding T times the network.

    Raises ``ValueError`` on T below 1, an unknown order or a slice that isn't within 0..T.

    >>> sorted_train(torch.tensor([0, 1, 3]), T=3).int()
    tensor([[0, 0, 1],
            [0, 0, 1],
            [0, 1, 1]], dtype=torch.int32)
    """
    check_steps(T)
    check_choice(order, ORDERS, "order")
    stop = T if stop is None else stop
    if not 0 <= start <= stop <= T:
        raise ValueError(f"the slice start={start}, stop={stop} must satisfy 0 <= start <= stop <= T = {T}")
    steps = torch.arange(start, stop, device=count.device)
    needed = T - steps if order == "late" else steps + 1
    # int64, which torch turns into the dtype of a float count; an integer count may be too narrow to hold T.
    return count >= needed.reshape(-1, *[1] * count.ndim)


def count_of(train: Bool[Tensor, "steps *n"]) -> Int[Tensor, "*n"]:
    """Number of spikes of a train of any order, int64; counts of consecutive slices add up.

    Raises ``TypeError`` on a train that isn't ``bool``: an amplitude must not be counted.
    """
    if train.dtype != torch.bool:
        raise TypeError(f"train must be bool, got {train.dtype}; divide by the amplitude and compare with 0")
    return train.sum(0)


def first_spike(count: Real[Tensor, "*n"], T: int, order: Order = "late") -> Int[Tensor, "*n"]:
    """Step (from 0) of the first spike of ``sorted_train(count, T, order)``, T if it is silent; int64.

    ``"late"``: T − k, which holds the whole train; ``"early"``: 0 for every neuron that fires.
    Raises ``ValueError`` on T below 1 or an unknown order.

    >>> first_spike(torch.tensor([0, 1, 3]), T=3)
    tensor([3, 2, 0])
    """
    check_steps(T)
    late = check_choice(order, ORDERS, "order") == "late"
    k = count.to(torch.int64).clamp(0, T)
    return T - k if late else (k == 0) * T
