"""The log of a training: a row of log.csv for every epoch, and TensorBoard's files where they are asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parspike.errors import MissingExtraError
from parspike.whole import write_whole

__all__ = ["append", "drop_after", "tensorboard"]


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row, below a head of its names if it is the first. Raises `FileError` where it cannot be written; the rows
    before stay."""
    _write(path, [*_rows(path), row])


def drop_after(path: Path, step: int) -> None:
    """Drop rows of steps after the checkpoint, since resuming repeats these steps."""
    if path.exists():
        _write(path, [row for row in _rows(path) if int(row["step"]) <= step])


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without one that older versions left half when they were killed."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if None not in row and None not in row.values()]


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    write_whole(path, [text.getvalue().encode()])


def tensorboard(folder: Path) -> Any:
    """The logger of Lightning Fabric that writes into this folder."""
    try:
        from lightning_fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="")
    except ModuleNotFoundError as error:
        raise MissingExtraError("tensorboard", extra="train") from error
