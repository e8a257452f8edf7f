"""How a network is run for what it computes alone."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["quiet", "unlogged"]


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Without torch's own report of an operator that refuses its arguments: the error says it."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Run a network for what it computes alone: no gradients, reports or warnings, and random numbers as they were."""
    generator = torch.random.get_rng_state()
    try:
        # Compiled modules run as they are written: compiling for the fake tensors of a tracing ends the process.
        with unlogged(), warnings.catch_warnings(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.random.set_rng_state(generator)
