"""Results as text, Markdown, CSV and LaTeX, and figures as files: what `sweep` and `bench` share."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from parspike.errors import MissingExtraError, OptionError, meant, path_of
from parspike.whole import check_free, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS", "FIGURES", "MARKERS", "SUFFIXES", "Result", "Table", "comma_separated", "content", "drawn", "new_figure",
    "save",
]  # fmt: skip

FIGURES = (".png", ".svg", ".pdf")
SUFFIXES = (".csv", ".json", ".md", ".tex", *FIGURES)
"""The endings of the files that results are saved in."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito, "Color Universal Design", 2008: told apart by colour-blind readers; yellow last, pale on white."""
MARKERS = "os^Dv<>pXP*h"
"""One beside each colour, so that lines are told apart in grey too; 12 markers and 8 colours repeat after 24 lines."""
UNDATED: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""Metadata by format, without the time and version, so that equal rows give equal files."""


@dataclass(frozen=True)
class Table:
    """A table as text. head: names of the columns. rows: as many cells each. left: the columns that are words, which
    stand on the left. remarks: lines below it. title: above it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[str] = frozenset()
    remarks: Sequence[str] = ()
    title: str = ""

    def __str__(self) -> str:
        return "\n".join((*self.aligned(), "", *self.remarks))

    def aligned(self) -> list[str]:
        """The lines for a terminal: the head, a rule, a line for each row.

        >>> Table(["T", "code"], [["16", "if"]], frozenset({"code"})).aligned()
        [' T  code', '──  ────', '16  if']
        """
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        left = [name in self.left for name in self.head]
        head, *rows = (
            "  ".join(
                cell.ljust(w) if l else cell.rjust(w) for cell, w, l in zip(line, widths, left, strict=True)
            ).rstrip()
            for line in (self.head, *self.rows)
        )
        return [head, "  ".join("─" * width for width in widths), *rows]

    def markdown(self) -> str:
        """The table in Markdown, the title above it and the remarks below."""
        marks = ["---" if name in self.left else "---:" for name in self.head]
        lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in self._lines(marks)]
        above = [f"**{self.title}**", ""] if self.title else []
        return "\n".join((*above, *lines, "", *(f"- {remark}" for remark in self.remarks), ""))

    def latex(self) -> str:
        """A LaTeX table; the document needs the package booktabs. Title and remarks are comments."""
        head, *rows = (" & ".join(_escaped(cell) for cell in line) + r" \\" for line in (self.head, *self.rows))
        columns = "".join("l" if name in self.left else "r" for name in self.head)
        notes = [f"% {line}" for line in (*([self.title] if self.title else []), *self.remarks)]
        return "\n".join(
            (*notes, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule",
             r"\end{tabular}", "")
        )  # fmt: skip

    def _lines(self, marks: Sequence[str]) -> list[Sequence[str]]:
        return [self.head, marks, *self.rows]


def comma_separated(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a line of names, then one for every row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def save(path: str | Path, content: Callable[[str], bytes | str], *, force: bool = False, example: str) -> Path:
    """Write a file whose ending says how. content: from one of `SUFFIXES` to what the file holds.

    An existing file is replaced only with force=True. example: a file's name, for the message about a folder. Raises
    `OptionError` on another ending, `FileError` where the file cannot be written.
    """
    path = path_of(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise OptionError(f"'{path}' ends in '{path.suffix}'{meant(suffix, SUFFIXES)}: take {', '.join(SUFFIXES)}")
    check_free(path, force, example)
    made = content(suffix)
    write_whole(path, [made.encode() if isinstance(made, str) else made])
    return path


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, made without pyplot, so that nothing that a program draws elsewhere is touched and no window
    opens. Raises `MissingExtraError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="report") from error
    return Figure(figsize=(width, height), layout="constrained")


class Result(Protocol):
    """Rows that are saved in every format."""

    def figure(self) -> Figure: ...
    def to_dict(self) -> dict[str, Any]: ...
    def csv(self) -> str: ...
    def markdown(self) -> str: ...
    def latex(self) -> str: ...


def content(result: Result, suffix: str, *, ascii_only: bool = True) -> bytes | str:
    """What a file with this ending, one of `SUFFIXES`, holds of a result. ascii_only: in JSON, other characters as
    their numbers."""
    if suffix in FIGURES:
        return drawn(result.figure(), suffix)
    if suffix == ".json":
        return json.dumps(result.to_dict(), indent=2, ensure_ascii=ascii_only) + "\n"
    return {".csv": result.csv, ".md": result.markdown, ".tex": result.latex}[suffix]()


def drawn(figure: Figure, suffix: str) -> bytes:
    """A figure as a file: .png, .svg or .pdf."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "parspike"}):
        figure.savefig(stream, format=suffix[1:], dpi=150, metadata=UNDATED[suffix])
    return stream.getvalue()


TEX = {"\\": r"\textbackslash{}", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
       "µ": r"$\mu$", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "–": "--", "~": r"\textasciitilde{}",
       "^": r"\textasciicircum{}"}  # fmt: skip


def _escaped(cell: str) -> str:
    """A cell's text for LaTeX.

    >>> _escaped("24.6 µJ"), _escaped("accuracy %")
    ('24.6 $\\\\mu$J', 'accuracy \\\\%')
    """
    return "".join(TEX.get(letter, letter) for letter in cell)
