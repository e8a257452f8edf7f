"""What the command line writes: one result on stdout, everything else on stderr.

On a terminal progress is a bar; elsewhere, in a log, a line every ten seconds.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from parspike.errors import ParspikeWarning

__all__ = [
    "NARROW", "Panel", "be_silent", "fail", "few", "figure", "left_out", "note", "progress", "result", "show_anything",
    "warn", "warnings_shown",
]  # fmt: skip

NARROW = shutil.get_terminal_size().columns < 80
"""Whether boxes would cut the names of options."""
EVERY = 10.0
"""Seconds between two lines of progress where stderr is no terminal."""
FEW = 3
"""Names that a message gives of many."""
LONG = 200
"""Characters of a name in a list of them."""
_silent = False


def be_silent() -> None:
    """Print nothing from here on; rank 0 prints for all processes of the command."""
    global _silent
    _silent = True


class Panel(StrEnum):
    """The groups of options in `--help`."""

    NETWORK = "The network"
    DATA = "The images"
    CONVERSION = "The conversion"
    TRAINING = "The training"
    DEVICES = "Devices"
    OUTPUT = "What comes out"


def show_anything() -> None:
    """Make stdout print a replacement for a character that it cannot show, instead of raising."""
    errors, utf = getattr(sys.stdout, "errors", None), (getattr(sys.stdout, "encoding", None) or "").startswith("utf")
    if errors == "strict" or (errors == "surrogateescape" and not utf):
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]


def result(as_json: bool, fields: dict[str, Any], text: str) -> None:
    """The command's answer: `fields` as one JSON object, or `text` for a person."""
    if not _silent:
        typer.echo(_json(fields) if as_json else text)


def _json(fields: dict[str, Any]) -> str:
    """One JSON object, with escapes where stdout could not show its characters: a name stays what it is. JSON has no
    NaN and no infinity, which are null."""
    fields = _finite(fields)
    text = json.dumps(fields, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return json.dumps(fields)
    return text


def _finite(value: Any) -> Any:
    """The same data with None for numbers that are not finite.

    >>> _finite({"a": [1.5, math.inf], "b": (math.nan, "nan", 2)})
    {'a': [1.5, None], 'b': [None, 'nan', 2]}
    """
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    """The first of many names, and how many more there are. A name out of a file may be of any length: it is cut.

    >>> few(["a", "b", "c", "d", "e"]), few(["a", "b"])
    ('a, b, c and 2 more', 'a, b')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:LONG] for name in names[:most]) + more


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


def note(text: str) -> None:
    """A line on stderr, above a progress bar if there is one."""
    if not _silent:
        typer.echo(text, err=True)


def left_out(names: list[str]) -> list[str]:
    """Name the files that could not be decoded on stderr, and return them."""
    if names:
        warn(f"{len(names)} images could not be decoded and were left out: {few(names)}")
    return names


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Print parspike's warnings on stderr, without the line of code that raised them."""
    with warnings.catch_warnings():
        other = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(category, ParspikeWarning):
                warn(str(message))
            else:
                other(message, category, *rest, **options)

        warnings.showwarning = show
        yield


def fail(as_json: bool, kind: str, message: str, details: Mapping[str, Sequence[str]] | None = None) -> None:
    """An error, on stderr for a person, as a JSON object on stdout for a program, which gets the details too."""
    if as_json:
        result(True, {"error": {"type": kind, "message": message, **(details or {})}}, "")
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
    """A progress bar on stderr with the time left; where stderr is no terminal, a line every ten seconds.

    It gives a function to call with (what, done, total), total 0 while it is not known.
    """
    stderr = Console(stderr=True)
    if _silent or not stderr.is_terminal:
        with _lines(title) as say:
            yield say
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda what, done, total: bar.update(
            task, description=f"{title} {what}".rstrip(), completed=done, total=total or None
        )


@contextmanager
def _lines(title: str) -> Iterator[Callable[[str, int, int], None]]:
    state, start, over = [title, 0, 0], time.monotonic(), threading.Event()

    def say(what: str, done: int, total: int) -> None:
        state[:] = f"{title} {what}".strip(), done, total

    def write() -> None:
        while not over.wait(EVERY):
            what, done, total = state
            count = f" {done}/{total}" if total else f" {done}" if done else ""
            sys.stderr.write(f"{what}{count}, {time.monotonic() - start:.0f} s\n".lstrip(", "))
            sys.stderr.flush()

    if _silent:
        yield say
        return
    # A separate thread prints, since some steps take minutes without reporting progress.
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield say
    finally:
        over.set()
        writer.join()
