"""Processes that share one piece of work: which items each reads, and how they exchange results.

All communication is **one kind of exchange**: each process sends its value, or that it failed and why. A process that
fails sends that in the exchange in which the others wait, so all of them raise and none waits for ever. Sums are formed
from parts that were gathered in the order of the data, so they are those of one process, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Imported here, before any process group exists: torch.export imports this module, whose default arguments keep the
# group of that moment alive, and a Gloo group that is alive when Python ends may abort the process.
import torch.distributed.nn
from torch import Tensor

from parspike import errors
from parspike.errors import OptionError, ParspikeError

__all__ = ["Together"]

T = TypeVar("T")


class Together:
    """The processes of a `torch.distributed` group; without a group this process alone, which sends nothing.

    rank, size: this process's number in the group, and how many there are.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        if self.rank < 0:
            raise OptionError("this process is not in the group that it was given: only those in it may call")

    def share(self, source: Iterable[T]) -> Iterator[tuple[int, T]]:
        """This process's items, with their numbers: every `size`-th. Of a sequence only those are read."""
        if isinstance(source, Sequence):
            return ((number, source[number]) for number in range(self.rank, len(source), self.size))
        return self._dealt(source)

    def _dealt(self, source: Iterable[T]) -> Iterator[tuple[int, T]]:
        broken = (ConnectionError, EOFError) if getattr(source, "num_workers", 0) else ()
        with _readers_alive(broken):
            for number, item in enumerate(source):
                if number % self.size == self.rank:
                    yield number, item

    def exchange(self, value: T) -> list[T]:
        """The value of every process, in the order of ranks. Raises the error of a process that failed."""
        return [value] if self.size == 1 else self._say(None, value)

    def first(self, value: T) -> T:
        """Rank 0's value in every process, for decisions that must be the same everywhere, such as those by a clock."""
        return self.exchange(value if self.rank == 0 else None)[0]  # pyright: ignore[reportReturnType]

    def gather(self, parts: Mapping[int, Sequence[Tensor]]) -> list[tuple[Tensor, ...]]:
        """The parts of all processes in the order of their keys, the numbers of the batches that they were made from.

        Parts of other processes come to the device of this one's own.
        """
        if self.size == 1:
            return [tuple(parts[number]) for number in sorted(parts)]
        mine = {number: [tensor.detach().contiguous() for tensor in part] for number, part in parts.items()}
        here = next((tensor.device for part in mine.values() for tensor in part), None)
        told = self.exchange({n: [(t.shape, t.dtype, t.device.type) for t in part] for n, part in mine.items()})
        everyones = {number: (rank, part) for rank, said in enumerate(told) for number, part in said.items()}
        gathered = []
        for number in sorted(everyones):
            rank, described = everyones[number]
            tensors = mine.get(number) or [
                torch.empty(shape, dtype=dtype, device=here or kind) for shape, dtype, kind in described
            ]
            with _others_alive():
                for tensor in tensors:
                    dist.broadcast(tensor, group=self.group, group_src=rank)
            gathered.append(tuple(tensors))
        return gathered

    @contextmanager
    def one_fate(self) -> Iterator[None]:
        """A context in which an error in one process is raised in all. Contexts may be nested."""
        try:
            with _readers_alive():
                yield
        except Exception as error:
            self.fail(error)
            raise
        self.exchange(None)

    def fail(self, error: Exception) -> None:
        """Make the others raise this process' error, in the exchange that they are in or come to next."""
        if self.size > 1 and not getattr(error, "told", False):
            vars(error)["told"] = True
            with suppress(ParspikeError):  # the error of another process, which failed at the same time
                self._say((type(error).__name__, str(error)), None)

    def _say(self, failure: tuple[str, str] | None, value: Any) -> list[Any]:
        said: list[Any] = [None] * self.size
        with _others_alive():
            dist.all_gather_object(said, (failure, value), group=self.group)
        for rank, (why, _) in enumerate(said):
            if why is not None:
                raise _told(rank, *why)
        return [value for _, value in said]


def _told(rank: int, kind: str, message: str) -> ParspikeError:
    known = getattr(errors, kind, None)
    error: ParspikeError
    if known is not None and kind != "MissingExtraError":
        error = known(f"process {rank}: {message}")
    else:
        error = ParspikeError(f"process {rank} failed with {kind}: {message}")
    vars(error)["told"] = True
    return error


@contextmanager
def _readers_alive(broken: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """An `InputError` where a process dies that reads data for torch's DataLoader. torch raises when the system signals
    it, so at any place. broken: what reading raises where that process was just handing something over."""
    try:
        yield
    except (RuntimeError, *broken) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        if not text.startswith("DataLoader worker"):
            if not isinstance(error, broken) or text.startswith("Caught"):  # that is an error of the data set
                raise
            with suppress(RuntimeError):  # the signal, which would come anywhere else
                time.sleep(1)
        raise errors.InputError(
            f"a process that reads the data ended ({text}): memory or /dev/shm may be full, or it was killed; start "
            "again, or give the DataLoader num_workers=0"
        ) from error


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # The connection broke because a process was killed; this process cannot reach the others any more either.
        gone = ParspikeError(f"another process of the group ended, or cannot be reached: {str(error).splitlines()[0]}")
        vars(gone)["told"] = True
        raise gone from error
