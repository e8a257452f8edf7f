"""`--devices N`, `--jobs N`, torchrun: processes that share the images or cells of one command. Only rank 0 prints.

torch is imported inside, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from parspike.cli import console
from parspike.errors import OptionError, ParspikeError

if TYPE_CHECKING:
    from parspike.together import Together

__all__ = ["Processes", "join", "leave", "one_fate"]

Processes = Annotated[
    int,
    typer.Option(
        min=1,
        help="processes that share the images, each with its part of the cores; or use torchrun",
        rich_help_panel=console.Panel.DATA,
    ),
]

_joined: list[Together] = []


def join(devices: int, check: Callable[[], object], option: str = "--devices") -> Together:
    """Join the processes of the command, or start them where torchrun has not.

    option: where `devices` stands on the command line. check: refuses wrong options. It is called before torch is
    imported; by processes of torchrun after they have joined, so that rank 0 alone prints the error.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        check()
    import torch.distributed as dist

    from parspike.together import Together

    if started == 1 and devices > 1:
        _launch(devices)
    if started == 1:
        return Together()
    if devices not in (1, started):
        raise OptionError(f"{option} {devices}: torchrun has started {started} processes; leave it out")
    # A process that ends is noticed at once; the long timeout is for rank 0 working alone (--operations).
    dist.init_process_group("gloo", timeout=timedelta(days=1))
    together = Together(dist.group.WORLD)
    _joined.append(together)
    if together.rank:
        console.be_silent()
    check()
    return together


def _launch(devices: int) -> None:
    """Run this command in `devices` processes, and end with them."""
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // devices)))
    # The process that failed has printed the error.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        1, 1, devices, run_id="parspike", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "parspike", *sys.argv[1:])
    except ChildFailedError as error:
        raise typer.Exit(1) from error
    except SignalException as error:
        raise KeyboardInterrupt from error
    raise typer.Exit


@contextmanager
def one_fate() -> Iterator[None]:
    """A context in which an error in one process of the command ends all of them, with one message."""
    try:
        yield
    except Exception as error:
        for together in _joined:
            together.fail(error)
        raise
    for together in _joined:
        together.exchange(None)


def leave() -> None:
    """Wait until all processes have printed, since torchrun stops the others as soon as one has failed."""
    if not _joined:
        return
    import torch.distributed as dist

    while _joined:
        with suppress(ParspikeError):
            _joined.pop().exchange(None)
        dist.destroy_process_group()
