"""What is said where memory runs out. Code that catches whatever a network raises would else take it for a fault of the
network, so errors are asked what they came of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from parspike.errors import InsufficientMemoryError

__all__ = ["memory_of", "ran_out"]


def ran_out(error: BaseException) -> bool:
    """Whether an error, or one that it came of, says that there is no memory left, on a GPU or on the CPU."""
    return _shortage(error) is not None


def _shortage(error: BaseException | None) -> BaseException | None:
    while error is not None:
        told = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
        if told or isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return error
        error = error.__cause__
    return None


@contextlib.contextmanager
def memory_of(place: str, remedy: str) -> Iterator[None]:
    """Raise `InsufficientMemoryError` where memory runs out, naming the place and what helps there."""
    try:
        yield
    except Exception as error:
        shortage = _shortage(error)
        if shortage is None or isinstance(error, InsufficientMemoryError):
            raise
        said = (str(shortage).splitlines() or [""])[0]
        raise InsufficientMemoryError(f"{place}: memory ran out; {remedy} ({said})") from error
