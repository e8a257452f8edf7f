"""What `sweep` returns: a row for every T and code, as a table, CSV, JSON, LaTeX, Markdown and a figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parspike.errors import FileError, OptionError, meant
from parspike.file import write_whole
from parspike.measure import joule, short
from parspike.neurons import CODES
from parspike.notebook import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "Sweep", "SweepRow"]

FIGURES = ("png", "svg", "pdf")
SUFFIXES = (".csv", ".json", ".md", ".tex", *(f".{suffix}" for suffix in FIGURES))
"""The endings of the files that `Sweep.save` writes."""
MEASURES = ("accuracy", "agreement", "error")


@dataclass(frozen=True)
class SweepRow:
    """A network converted for one T and code, measured on all items. Shares are in per cent.

    T: time-steps. code: how counts are sent, or which neurons with a state. levels: the largest count of a neuron.
    accuracy: of the answers that are right, None without labels. agreement: of the answers that are the network's. Both
    are None where the outputs are values. error: ‖output − network's‖ / ‖network's‖, None where they are whole numbers.
    quantised_…: the same of the network itself, its activations rounded to as many levels, without time-steps and
    spikes; equal for parallel neurons. Neurons with a state are compared with a network of parallel neurons fitted for
    the same T. spikes: of a neuron. synops, energy_pj: accumulates and picojoules of one sample, as `measure` counts
    them. seconds: of the fit.
    """

    T: int
    code: str
    levels: int
    accuracy: float | None
    agreement: float | None
    error: float | None
    quantised_accuracy: float | None
    quantised_agreement: float | None
    quantised_error: float | None
    spikes: float
    synops: float
    energy_pj: float
    seconds: float

    @property
    def measure(self) -> str:
        """The first of accuracy, agreement and error that is known."""
        return next((name for name in MEASURES if getattr(self, name) is not None), "error")

    def __str__(self) -> str:
        value, rival = (getattr(self, name) for name in (self.measure, f"quantised_{self.measure}"))
        known = [] if value is None or rival is None else [f"{self.measure} {value:.2f} %, quantised {rival:.2f} %"]
        shown = (*known, f"{self.spikes:.3f} spikes a neuron", f"{self.seconds:.1f} s")
        return f"T={self.T} {self.code}: {', '.join(shown)}"


@dataclass(frozen=True)
class Sweep:
    """The rows by T, and the network itself. `str` is a table.

    samples: how many the rows were measured on. network_accuracy: of the network itself, per cent, None without labels.
    network_macs, network_energy_pj: multiply-accumulates and picojoules of one sample in the network itself. classes:
    of the class scores, 0 where the outputs are none. left_out: the T that a code could not run, and why.
    """

    rows: tuple[SweepRow, ...]
    samples: int
    network_accuracy: float | None
    network_macs: float
    network_energy_pj: float
    classes: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def measure(self) -> str:
        """What the figure and the column "quantised" show: "accuracy" with labels, else "agreement" of class scores,
        else "error"."""
        return self.rows[0].measure

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {**asdict(self), "measure": self.measure, "left_out": list(self.left_out),
                "rows": [asdict(row) for row in self.rows]}  # fmt: skip

    def csv(self) -> str:
        """A line for every row, every field a column, with the network's own figures in the last ones."""
        text = io.StringIO()
        own = {name: getattr(self, name) for name in ("network_accuracy", "network_macs", "network_energy_pj")}
        writer = csv.DictWriter(text, [*(f.name for f in fields(SweepRow)), *own], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), **own} for row in self.rows)
        return text.getvalue()

    def latex(self) -> str:
        """A LaTeX table; the document needs the package booktabs."""
        head, *rows = ([_escaped(cell) for cell in line] for line in self._table())
        lines = [" & ".join(line) + r" \\" for line in (head, *rows)]
        columns = "".join("l" if name == "code" else "r" for name in self._columns())
        notes = [f"% {remark}" for remark in self._remarks()]
        return "\n".join(
            (*notes, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
             r"\end{tabular}", "")
        )  # fmt: skip

    def markdown(self) -> str:
        """A table in Markdown, and the remarks below it."""
        head, *rows = self._table()
        marks = ["---" if name == "code" else "---:" for name in self._columns()]
        lines = ["| " + " | ".join(line) + " |" for line in (head, marks, *rows)]
        return "\n".join((*lines, "", *(f"- {remark}" for remark in self._remarks()), ""))

    def figure(self) -> Figure:
        """Two panels: what `measure` names against T, and spikes and energy against T. Raises `MissingExtraError`
        without matplotlib."""
        from parspike.sweep.figure import figure

        return figure(self)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the rows into a file whose ending says how: .csv, .json, .md, .tex, or a figure as .png, .svg or .pdf.

        An existing file is replaced only with force=True. Raises `OptionError` on another ending, `FileError` where the
        file cannot be written, `MissingExtraError` for a figure without matplotlib.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise OptionError(f"'{path}' ends in '{path.suffix}'{meant(suffix, SUFFIXES)}: take {', '.join(SUFFIXES)}")
        if path.is_dir():
            raise FileError(f"'{path}' is a folder: name a file in it, such as '{path / 'sweep.csv'}'")
        if path.exists() and not force:
            raise FileError(f"'{path}' exists: choose another name, or pass force=True (command line: --force)")
        write_whole(path, [self._bytes(suffix)])
        return path

    def _bytes(self, suffix: str) -> bytes:
        if suffix[1:] in FIGURES:
            from parspike.sweep.figure import drawn

            return drawn(self, suffix[1:])
        write = {".csv": self.csv, ".md": self.markdown, ".tex": self.latex}
        text = json.dumps(self.to_dict(), indent=2) + "\n" if suffix == ".json" else write[suffix]()
        return text.encode()

    def _columns(self) -> dict[str, Callable[[SweepRow], str]]:
        """The columns of every table: what stands in a row's cell, by head."""
        columns: dict[str, Callable[[SweepRow], str]] = {
            "T": lambda row: str(row.T), "code": lambda row: row.code, "levels": lambda row: str(row.levels)
        }  # fmt: skip
        known = [name for name in MEASURES if any(getattr(row, name) is not None for row in self.rows)]
        for name in known:
            columns[f"{name} %"] = _percent(name)
            if name == self.measure:
                columns["quantised %"] = _percent(f"quantised_{name}")
        return {
            **columns,
            "spikes/neuron": lambda row: f"{row.spikes:.3f}",
            "SynOps": lambda row: short(row.synops) or "0",
            "energy": lambda row: joule(row.energy_pj),
            "fit, s": lambda row: f"{row.seconds:.1f}",
        }

    def _table(self) -> list[list[str]]:
        columns = self._columns()
        return [list(columns), *([cell(row) for cell in columns.values()] for row in self.rows)]

    def _remarks(self) -> list[str]:
        own = "" if self.network_accuracy is None else f"accuracy {self.network_accuracy:.2f} %, "
        lines = [
            f"On {self.samples:,} samples. The network itself: {own}{short(self.network_macs) or 0} MACs, "
            f"{joule(self.network_energy_pj)}."
        ]
        what = f"quantised: {self.measure} of the network itself, activations rounded to as many levels, no time-steps"
        if any(row.code not in CODES for row in self.rows):
            what = f"quantised: {self.measure} of a network with as many levels, free of the dynamics of these neurons"
        return [*lines, what, *(f"left out: {line}" for line in self.left_out)]

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        return html_table("Sweep", head, rows, self._remarks())

    def __str__(self) -> str:
        return "\n".join((*aligned(self._table()), "", *self._remarks()))


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first line is its head, with a rule below it; "code" to the left, others to the right.

    >>> aligned([["T", "code"], ["16", "if"]])
    [' T  code', '──  ────', '16  if']
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = [name == "code" for name in table[0]]
    head, *rows = (
        "  ".join(cell.ljust(w) if l else cell.rjust(w) for cell, w, l in zip(line, widths, left, strict=True)).rstrip()
        for line in table
    )
    return [head, "  ".join("─" * width for width in widths), *rows]


def _percent(name: str) -> Callable[[SweepRow], str]:
    def cell(row: SweepRow) -> str:
        value = getattr(row, name)
        return "" if value is None else f"{value:.2f}"

    return cell


def _escaped(cell: str) -> str:
    """A cell's text for LaTeX.

    >>> _escaped("24.6 µJ"), _escaped("accuracy %")
    ('24.6 $\\\\mu$J', 'accuracy \\\\%')
    """
    return cell.replace("%", r"\%").replace("µ", r"$\mu$")
