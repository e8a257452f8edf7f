"""What torch keeps of every network that it exports, given back: a process may convert as many as it likes.

Four things of torch 2.13 stay for as long as the process lives, 85 KB of each tiny network. Tried by
`benchmarks/long_run.py`; all are made again where they are needed again.
`release` is for memory that the C library keeps.

- Caches of `ShapeEnv`, kept by the class and not by the environment: one has no bound, others keep the last 256.
- An environment keeps the stand-ins of the inputs (`tracked_fakes`), whose sizes keep the environment. Part of the
  circle lies in C++, where Python's collector does not look.
- The source of each graph's `forward`, in `torch.fx` and `linecache`, for tracebacks.
- Settings of the thread: each change of torch's configuration leaves one more context variable.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
import linecache
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv

__all__ = ["and_forget", "let_go", "release"]

P = ParamSpec("P")
T = TypeVar("T")


def and_forget(work: Callable[P, T]) -> Callable[P, T]:
    """`work`, after which torch holds nothing of what was traced in it but for what `let_go` has to be given."""

    @functools.wraps(work)
    def forgetting(*args: P.args, **kwargs: P.kwargs) -> T:
        sources: dict[str, Any] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
        before = set(sources)
        try:
            return contextvars.copy_context().run(work, *args, **kwargs)
        finally:
            for name in set(sources) - before:
                sources.pop(name, None)
                linecache.cache.pop(name, None)
            for method in vars(ShapeEnv).values():
                if (clear := getattr(method, "cache_clear", None)) is not None:
                    clear()

    return forgetting


def let_go(traced: Any) -> None:
    """Break the circle of the inputs' stand-ins: of an exported program, or of an exception that ended tracing."""
    for environment in set(_of_error(traced) if isinstance(traced, BaseException) else _of_program(traced)):
        if environment.tracked_fakes is not None:
            environment.tracked_fakes.clear()


def _of_program(exported: Any) -> Iterator[ShapeEnv]:
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor) and value.fake_mode.shape_env is not None:
            yield value.fake_mode.shape_env


def _of_error(error: BaseException) -> Iterator[ShapeEnv]:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, FakeTensorMode) and value.shape_env is not None:
                yield value.shape_env


def release() -> None:
    """Give memory that is free back to the system: glibc keeps it, and holds as much again as a large network takes."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None
