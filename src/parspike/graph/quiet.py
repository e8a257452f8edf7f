"""Running a user's network for its output alone, without side effects."""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental import symbolic_shapes

from parspike.graph.kept import Kept

__all__ = ["copied", "outputs", "quiet", "unlogged"]

LOGGERS = (FakeTensorMode.__module__, symbolic_shapes.__name__, "torch.export._trace")


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Suppress what torch logs of an operator that refuses its arguments, of a size it cannot solve, or of the graph
    where tracing ended, since the error says the same."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Run a network for its output alone: no gradients, logs or warnings; the random state is restored afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    drawn = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that networks draw from
    try:
        # Compiled modules run uncompiled, since compiling for the fake tensors of tracing ends the process.
        with (
            unlogged(), warnings.catch_warnings(), torch.no_grad(), torch.random.fork_rng(devices),
            torch.compiler.set_stance("force_eager"),
        ):  # fmt: skip
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])  # noqa: NPY002


def outputs(
    model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor], changes: list[str] | None = None
) -> Any:
    """What a network returns. The network and its inputs are unchanged afterwards, also if forward writes into them.

    changes: filled with the names of the attributes that forward, or a hook, changed.
    """
    args, kwargs = copied(args, kwargs)
    with quiet(), Kept(model) as kept:
        with kept.writing():
            result = model(*args, **kwargs)
        if changes is not None:
            changes.extend(kept.changed())
        return result


def copied(args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Inputs for a forward that may write into them."""
    return tuple(x.detach().clone() for x in args), {name: x.detach().clone() for name, x in kwargs.items()}
