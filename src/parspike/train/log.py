"""The log of a training: a row of log.csv for every epoch, and TensorBoard's files where they are asked for."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from parspike.errors import MissingExtraError

__all__ = ["append", "drop_after", "tensorboard"]


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row, below a head of its names if it is the first."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def drop_after(path: Path, step: int) -> None:
    """Drop rows of steps after the checkpoint, since resuming repeats these steps."""
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if int(row["step"]) <= step]
        path.unlink()
        for row in rows:
            append(path, row)


def tensorboard(folder: Path) -> Any:
    """The logger of Lightning Fabric that writes into this folder."""
    try:
        from lightning_fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="")
    except ModuleNotFoundError as error:
        raise MissingExtraError("tensorboard", extra="train") from error
