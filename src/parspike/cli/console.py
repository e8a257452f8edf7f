"""What the command line writes: one result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["be_silent", "fail", "few", "figure", "progress", "result", "warn"]


FEW = 3
"""Names that a message gives of many."""
_silent = False


def be_silent() -> None:
    """Write nothing from here on: another process of the same command speaks for this one."""
    global _silent
    _silent = True


def result(as_json: bool, fields: dict[str, Any], text: str) -> None:
    """The command's answer: `fields` as one JSON object, or `text` for a person."""
    if not _silent:
        typer.echo(json.dumps(fields, ensure_ascii=False) if as_json else text)


def table(rows: dict[str, Any]) -> str:
    """Names and values in two columns; None is left out.

    >>> print(table({"T": 8, "accuracy": None, "images": 761}))
    T       8
    images  761
    """
    shown = {name: str(value) for name, value in rows.items() if value is not None}
    width = max(map(len, shown), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown.items())


def few(names: Sequence[str], most: int = FEW) -> str:
    """The first of many names, and how many more there are.

    >>> few(["a", "b", "c", "d", "e"]), few(["a", "b"])
    ('a, b, c and 2 more', 'a, b')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def figure(value: float) -> str:
    """Three significant digits, and never an exponent.

    >>> figure(0.004321), figure(0.5), figure(3.14159), figure(12345.6), figure(0.0)
    ('0.00432', '0.500', '3.14', '12346', '0')
    """
    if not value:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def warn(message: str) -> None:
    """A remark on stderr."""
    _say("warning", "yellow", message)


def fail(as_json: bool, kind: str, message: str) -> None:
    """An error, on stderr for a person, as a JSON object on stdout for a program."""
    if as_json:
        result(True, {"error": {"type": kind, "message": message}}, "")
    else:
        _say("error", "red", message)


def _say(word: str, style: str, message: str) -> None:
    if _silent:
        return
    # Messages hold [brackets] and long paths: neither is markup nor to be broken.
    stderr = Console(stderr=True, highlight=False)
    stderr.print(Text.assemble((f"{word}: ", f"bold {style}"), message), soft_wrap=True)


@contextmanager
def progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr with the time left, silent where nobody watches.

    It gives a function to call with (what, done, total), total 0 while it is not known.
    """
    stderr = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=_silent or not stderr.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda what, done, total: bar.update(
            task, description=f"{title} {what}".rstrip(), completed=done, total=total or None
        )
