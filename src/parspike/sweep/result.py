"""What `sweep` returns: a row for every T and code, as a table, CSV, JSON, LaTeX, Markdown and a figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parspike.measure import joule, short
from parspike.neurons import CODES
from parspike.notebook import html_table
from parspike.tables import Table, comma_separated, content, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Sweep", "SweepRow"]

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
        own = {name: getattr(self, name) for name in ("network_accuracy", "network_macs", "network_energy_pj")}
        names = [*(f.name for f in fields(SweepRow)), *own]
        return comma_separated(names, ({**asdict(row), **own} for row in self.rows))

    def latex(self) -> str:
        """A LaTeX table; the document needs the package booktabs."""
        return self._table().latex()

    def markdown(self) -> str:
        """A table in Markdown, and the remarks below it."""
        return self._table().markdown()

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
        return save(path, lambda suffix: content(self, suffix), force=force, example="sweep.csv")

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

    def _table(self) -> Table:
        columns = self._columns()
        rows = [[cell(row) for cell in columns.values()] for row in self.rows]
        return Table(list(columns), rows, frozenset({"code"}), self._remarks())

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
        table = self._table()
        return html_table("Sweep", table.head, table.rows, table.remarks)

    def __str__(self) -> str:
        return str(self._table())


def _percent(name: str) -> Callable[[SweepRow], str]:
    def cell(row: SweepRow) -> str:
        value = getattr(row, name)
        return "" if value is None else f"{value:.2f}"

    return cell
