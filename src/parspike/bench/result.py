"""What a bench has measured, as rows, tables for each claim, files and figures."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parspike.baselines import Baseline
from parspike.bench.file import Bench, Cell, Method, Published
from parspike.bench.lines import Lines, Reference
from parspike.errors import FileError, OptionError, meant, path_of
from parspike.measure import joule, short
from parspike.neurons import CODES
from parspike.notebook import html_table
from parspike.tables import Table, comma_separated, content, save
from parspike.whole import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TABLES", "Benched", "Line", "TrainedRow"]

TABLES = ("kinds", "qcfs", "training-free", "cells", "levels")
"""The tables: kinds of learning (the paper's Table 1); networks trained for conversion (Table 3) and others (Table 4);
every column; the network quantised to as many levels."""
NEAR = 1.0
"""Percentage points below the network within which a conversion counts as arrived, in the table of kinds."""
WORDS = frozenset({"network", "method", "neuron", "kind of learning", "trained for", "published"})


@dataclass(frozen=True)
class Line:
    """A row of tables and figures: the cells of one network, method, neuron and T, over their seeds. figures: what the
    result file holds of each; reference: of the network quantised to as many levels, by seed."""

    network: str
    method: str
    neuron: str
    T: int
    figures: tuple[Mapping[str, Any], ...]
    references: tuple[Mapping[str, Any], ...]

    def all(self, name: str) -> list[float]:
        """A figure of every seed that has it."""
        return [value for figure in self.figures if (value := figure.get(name)) is not None]

    def mean(self, name: str) -> float | None:
        """The mean of a figure over the seeds."""
        return statistics.mean(values) if (values := self.all(name)) else None

    @property
    def measure(self) -> str:
        """The first of accuracy, agreement and error that is known."""
        return next((name for name in ("accuracy", "agreement", "error") if self.all(name)), "error")

    @property
    def drop(self) -> float | None:
        """By how many points the accuracy is below the network's."""
        pairs = [(f["network_accuracy"], f["accuracy"]) for f in self.figures]
        drops = [own - other for own, other in pairs if own is not None and other is not None]
        return statistics.mean(drops) if drops else None

    @property
    def quantised(self) -> list[float]:
        """The same measure of the network itself with as many levels, of every seed that has it."""
        return [value for r in self.references if (value := r.get(self.measure)) is not None]


@dataclass(frozen=True)
class TrainedRow:
    """Direct training by one method at one T, from the file that `Training` names: medians over the runs that the file
    holds. accuracy: their mean, in per cent; deviation: its standard deviation. None: the file has none."""

    method: str
    network: str
    T: int
    accuracy: float
    seconds: float | None
    memory: float | None
    ratio: float | None
    deviation: float | None = None
    runs: int = 1

    @classmethod
    def of(cls, rows: Sequence[TrainedRow]) -> TrainedRow:
        """Several runs as one row."""

        def median(name: str) -> float | None:
            known = [value for row in rows if (value := getattr(row, name)) is not None]
            return statistics.median(known) if known else None

        accuracy = [row.accuracy for row in rows]
        deviation = statistics.stdev(accuracy) if len(rows) > 1 else None
        return cls(
            rows[0].method, rows[0].network, rows[0].T, statistics.mean(accuracy), median("seconds"), median("memory"),
            median("ratio"), deviation, len(rows),
        )  # fmt: skip

    @property
    def shown(self) -> str:
        """The accuracy as the tables have it."""
        return f"{self.accuracy:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


class Benched:
    """What a result file holds of a bench; made by `parspike.bench`, or by `Benched.read` without running anything.

    `str` is a table of all lines. lines: the rows. left_out: a line of text for every cell that could not be measured.
    waiting: how many cells have not been run.
    """

    def __init__(self, bench: Bench, found: Lines) -> None:
        self.bench = bench
        networks = [*bench.networks] or list(dict.fromkeys(cell.network for cell in found.cells))
        by_line: dict[tuple[str, str, str, int], list[Cell]] = {}
        for cell in bench.cells(networks):
            by_line.setdefault((cell.network, cell.method, cell.neuron, cell.T), []).append(cell)
        self.lines: list[Line] = []
        failed: dict[str, list[str]] = {}
        self.waiting = 0
        for key, cells in by_line.items():
            known = [(cell, found.cells[cell]) for cell in cells if cell in found.cells]
            self.waiting += len(cells) - len(known)
            good = [(cell, line) for cell, line in known if "failed" not in line]
            for cell, line in known:
                if "failed" in line:
                    failed.setdefault(f"{cell.network}, {cell.method}, {cell.neuron}: {line['failed']}", []).append(
                        f"T={cell.T}" + (f" seed {cell.seed}" if len(cells) > 1 else "")
                    )
            if good:
                rivals = (found.references.get(Reference(c.network, line["levels"], c.seed)) for c, line in good)
                self.lines.append(Line(*key, tuple(line for _, line in good), tuple(r for r in rivals if r)))
        self.left_out = [f"{text} ({', '.join(places)})" for text, places in failed.items()]
        self.references = {key: line for key, line in found.references.items() if key.network in networks}

    @classmethod
    def read(cls, bench: Bench, results: str | Path) -> Benched:
        """What a file holds of a bench, nothing is run. Raises `FileError` for a file of another kind or bench."""
        return cls(bench, Lines.read(path_of(results), bench.name))

    # ------------------------------------------------------------------------------------------------------- rows

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every figure of every cell, a dict for each: the key of the cell, what was measured, the quantised network
        beside it, versions, commit and machine."""
        made = []
        for line in self.lines:
            for figure in line.figures:
                cell, rival = figure["cell"], self._rival(figure)
                values = {k: v for k, v in figure.items() if k not in ("cell", "versions")}
                beside = {f"quantised_{n}": rival.get(n) for n in ("accuracy", "agreement", "error")}
                versions = {f"version_{name}": version for name, version in figure["versions"].items()}
                made.append({**cell, "recipe": json.dumps(cell["recipe"]), **values, **beside, **versions})
        return made

    def _rival(self, figure: Mapping[str, Any]) -> Mapping[str, Any]:
        cell = figure["cell"]
        return self.references.get(Reference(cell["network"], figure["levels"], cell["seed"]), {})

    @cached_property
    def trained(self) -> list[TrainedRow]:
        """The rows of direct training, empty where the bench names no file of them. Raises `FileError` where that
        cannot be read or lacks a field."""
        how = self.bench.training
        if how is None:
            return []
        path = self.bench.path(how.file)
        made = []
        try:
            lines = path.read_text("utf-8").splitlines()
        except OSError as error:
            raise FileError(f"[training] file = '{how.file}': {path} cannot be read ({error.strerror})") from error
        for number, text in enumerate(lines, 1):
            try:
                line = json.loads(text)
                if isinstance(line, Mapping) and line.get(how.T, 0) is None:
                    continue  # a network without time-steps, trained beside the others
                must = [_at(line, name) for name in (how.method, how.T, how.accuracy)]
                if None in must:
                    raise KeyError((how.method, how.T, how.accuracy)[must.index(None)])
                may = [_at(line, name) for name in (how.seconds, how.memory, how.ratio)]
                accuracy = float(must[2]) * (100 if how.share else 1)
                made.append(TrainedRow(str(must[0]), str(_at(line, how.network) or ""), int(must[1]), accuracy, *may))
            except (ValueError, KeyError, TypeError) as error:
                raise FileError(
                    f"{path}, line {number}: no row of training ({type(error).__name__}: {error})"
                ) from error
        by_key: dict[tuple[str, str, int], list[TrainedRow]] = {}
        for row in made:
            by_key.setdefault((row.network, row.method, row.T), []).append(row)
        return [TrainedRow.of(rows) for rows in by_key.values()]

    # ----------------------------------------------------------------------------------------------------- tables

    def table(self, name: str = "cells", network: str | None = None) -> Table:
        """One of `TABLES`, of all networks or of one. Raises `OptionError` for another name."""
        if name not in TABLES:
            raise OptionError(f"there is no table '{name}'{meant(name, TABLES)}: choose one of {', '.join(TABLES)}")
        known = dict.fromkeys(line.network for line in self.lines)
        if network is not None and network not in known:
            raise OptionError(f"no network '{network}' was measured{meant(network, known)}: {', '.join(known)} were")
        lines = [line for line in self.lines if network in (None, line.network)]
        make = {"kinds": self._kinds, "qcfs": self._qcfs, "training-free": self._free, "cells": self._cells,
                "levels": self._levels}  # fmt: skip
        return make[name](lines)

    def _cells(self, lines: Sequence[Line]) -> Table:
        """Every column."""
        what = next((line.measure for line in lines), "accuracy")
        published = {self._published_of(line) for line in lines} - {""}
        rows = []
        for line in lines:
            row = {
                "network": line.network, "method": line.method, "neuron": line.neuron, "T": str(line.T),
                "steps": _number(line, "steps"), "levels": _number(line, "levels"), "bits": _number(line, "bits"),
                f"{what} %": _spread(line.all(what)), "drop": _signed(line.drop),
                "agreement %": _spread(line.all("agreement"), 1), "quantised %": _spread(line.quantised),
                "spikes/neuron": _number(line, "spikes", ".3f"), "SynOps": short(line.mean("synops") or 0) or "0",
                "energy": joule(line.mean("energy_pj") or 0), "time, × network": _number(line, "ratio", ".3g"),
                "fit, s": _number(line, "fit_seconds", ".1f"), "seeds": str(len(line.figures)),
                **({"published": self._published_of(line)} if published else {}),
            }  # fmt: skip
            rows.append(row)
        head = list(rows[0]) if rows else ["network", "method", "T"]
        return Table(head, [list(row.values()) for row in rows], WORDS, self._remarks(lines), "Every cell")

    def _kinds(self, lines: Sequence[Line]) -> Table:
        """Kinds of learning: what each costs and gives, by the fewest steps at which it is near the network."""
        head = ["network", "kind of learning", "method", "trained for", "training or fit, s", "memory, MiB", "steps",
                "levels", "time, × network", "accuracy %", "drop"]  # fmt: skip
        best: dict[tuple[str, str], Line] = {}
        for line in lines:
            key = line.network, self.kind(line.method, line.neuron)
            best[key] = min(best.get(key, line), line, key=_merit)
        rows = [
            [key[0], key[1], f"{line.method}, {line.neuron}", _text(line, "trained_for") or "nothing",
             _number(line, "fit_seconds", ".1f"), _number(line, "fit_memory_mib", ".0f"), _number(line, "steps"),
             _number(line, "levels"), _number(line, "ratio", ".3g"), _spread(line.all("accuracy")), _signed(line.drop)]
            for key, line in best.items()
        ]  # fmt: skip
        rows += [
            [row.network, "direct training", row.method, "spikes", _or_dash(row.seconds, ".0f"),
             _or_dash(row.memory, ".0f"), str(row.T), "–", _or_dash(row.ratio, ".3g"), row.shown, "–"]
            for row in self.trained
        ]  # fmt: skip
        remarks = [
            "A row is the method and T of its kind with the fewest steps among those at most "
            f"{NEAR:g} point below the network, or the best one where none is.",
            "time: of an inference pass, as a multiple of the network's own, run in turn on the same images.",
            "memory: how far the process grew during the fit; of direct training what its file says.",
        ]
        return Table(head, rows, WORDS, remarks, "Kinds of learning, measured")

    def _qcfs(self, lines: Sequence[Line]) -> Table:
        mine = [line for line in lines if _text(line, "trained_for") == "QCFS"]
        return self._by_T(mine, "Networks trained for conversion (QCFS), and direct training", trained=True)

    def _free(self, lines: Sequence[Line]) -> Table:
        mine = [line for line in lines if _text(line, "trained_for") != "QCFS"]
        return self._by_T(mine, "Without training: networks as they are")

    def _by_T(self, lines: Sequence[Line], title: str, trained: bool = False) -> Table:
        """A row for each method, a column for each T: accuracy and, in brackets, the change."""
        names = {line.network for line in lines}
        published = [p for p in self.bench.published if p.network in names or (trained and p.network not in self._all)]
        rows_trained = self.trained if trained else []
        steps = sorted({line.T for line in lines} | {p.T for p in published} | {row.T for row in rows_trained})
        by_row: dict[tuple[str, str, str], dict[int, str]] = {}
        own: dict[str, str] = {}
        for line in lines:
            cells = by_row.setdefault((line.network, line.method, line.neuron), {})
            cells[line.T] = _cell(line)
            own.setdefault(line.network, _spread(line.all("network_accuracy")))
        table = []
        places = dict.fromkeys([*(name for name, *_ in by_row), *(p.network for p in published)])
        for network in places:
            if network in own:
                table.append([network, f"the network itself: {own[network]} %", "", "", *[""] * len(steps), ""])
                if any(levels := [self._rounded(network, T) for T in steps]):
                    table.append([network, "quantised to T levels", "", "", *levels, ""])
            mine = [p for p in published if p.network == network]
            for (_, method, neuron), cells in ((key, cells) for key, cells in by_row.items() if key[0] == network):
                said = [p for p in mine if p.method == method]
                mine = [p for p in mine if p not in said]
                kind = self.kind(method, neuron)
                table.append([network, method, neuron, kind, *(cells.get(T, "–") for T in steps), _cited(said)])
            for method in dict.fromkeys(p.method for p in mine):
                said = [p for p in mine if p.method == method]
                table.append([network, method, "", "not run here", *["–"] * len(steps), _cited(said)])
        for key in dict.fromkeys((row.network, row.method) for row in rows_trained):
            cells = {row.T: row.shown for row in rows_trained if (row.network, row.method) == key}
            table.append([*key, "", "direct training", *(cells.get(T, "–") for T in steps), ""])
        shown = bool(published)
        head = ["network", "method", "neuron", "kind of learning", *(f"T={T}" for T in steps), "published"]
        remarks = [
            "Accuracy in per cent, in brackets the change against the network; [n] steps and {l} levels where they are "
            "not T. A weighted code or several spikes a step send more levels than T: compare by levels.",
            *self._sources(published),
            *self._remarks(lines),
        ]
        if not shown:
            head, table = head[:-1], [row[:-1] for row in table]
        return Table(head, table, WORDS, remarks, title)

    def _rounded(self, network: str, levels: int) -> str:
        found = [line["accuracy"] for key, line in self.references.items()
                 if (key.network, key.levels) == (network, levels) and line.get("accuracy") is not None]  # fmt: skip
        return _spread(found) if found else ""

    def _levels(self, lines: Sequence[Line]) -> Table:
        """What the network keeps with as many levels, beside the best conversion that has them."""
        head = ["network", "levels", "quantised %", "best conversion %", "method", "neuron", "T"]
        rows = []
        names = dict.fromkeys(line.network for line in lines)
        for network in names:
            for levels in sorted({key.levels for key in self.references if key.network == network}):
                mine = [line for line in lines if line.network == network and line.figures[0]["levels"] == levels]
                best = max(mine, key=lambda line: line.mean(line.measure) or 0.0, default=None)
                rows.append([network, str(levels), self._rounded(network, levels) or "–",
                             *(["–", "–", "–", "–"] if best is None else
                               [_spread(best.all(best.measure)), best.method, best.neuron, str(best.T)])])  # fmt: skip
        return Table(head, rows, WORDS, ["quantised: the network itself, activations rounded, no time-steps"],
                     "Levels: conversions beside the network quantised to as many")  # fmt: skip

    def kind(self, method: str, neuron: str) -> str:
        """The kind of learning that a method belongs to, for tables."""
        table = self.bench.method.get(method, Method())
        if table.kind:
            return table.kind
        if neuron in CODES:
            return "parallel conversion"
        recipe = self.bench.recipe(method)
        return "conversion of QCFS" if isinstance(recipe, Baseline) and recipe.needs_qcfs else "serial conversion"

    @property
    def _all(self) -> set[str]:
        return {*self.bench.networks, *(line.network for line in self.lines)}

    def _published_of(self, line: Line) -> str:
        return _cited([p for p in self.bench.published
                       if (p.network, p.method, p.T) == (line.network, line.method, line.T)])  # fmt: skip

    def _sources(self, published: Iterable[Published]) -> list[str]:
        return [f"published: {source}" for source in dict.fromkeys(p.source for p in published)]

    def _remarks(self, lines: Sequence[Line]) -> list[str]:
        """What every table says below itself."""
        about = []
        for network in dict.fromkeys(line.network for line in lines):
            mine = [line for line in lines if line.network == network]
            first = mine[0].figures[0]
            own = mine[0].mean("network_accuracy")
            said = self.bench.networks[network].about if network in self.bench.networks else ""
            parts = [f"{network}: {said}" if said else network, *([] if own is None else [f"accuracy {own:.2f} %"]),
                     f"{first['images']:,} images, fitted on {first['calibration_images']:,}",
                     f"{short(first['network_macs']) or 0} MACs, {joule(first['network_energy_pj'])}"]  # fmt: skip
            about.append(", ".join(parts))
        made = dict.fromkeys(
            f"{f['machine']}, torch {f['versions']['torch']}, parspike {f['versions']['parspike']}"
            + (f" at {f['commit']}" if f["commit"] else "")
            for line in lines for f in line.figures
        )  # fmt: skip
        names = {line.network for line in lines}
        left_out = [f"left out: {text}" for text in self.left_out if text.partition(",")[0] in names or not names]
        return [*about, *(f"measured on {one}" for one in made), *left_out]

    # ------------------------------------------------------------------------------------------------------ files

    def __str__(self) -> str:
        waiting = f"\n{self.waiting} cells have not been run" if self.waiting else ""
        return f"{self.table('cells')}{waiting}"

    def _repr_html_(self) -> str:
        table = self.table("cells")
        return html_table(f"Bench {self.bench.name}", table.head, table.rows, table.remarks)

    def _tables(self) -> Iterator[Table]:
        return (table for name in TABLES if (table := self.table(name)).rows)

    def markdown(self) -> str:
        """All tables in Markdown."""
        about = [self.bench.about, ""] if self.bench.about else []
        return "\n".join((f"# {self.bench.name}", "", *about, *(table.markdown() for table in self._tables())))

    def latex(self) -> str:
        """All tables in LaTeX; the document needs the package booktabs."""
        return "\n".join(table.latex() for table in self._tables())

    def csv(self) -> str:
        """A line for every cell, every figure a column."""
        rows = self.rows
        names = dict.fromkeys(name for row in rows for name in row)
        return comma_separated(list(names), rows)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "bench": self.bench.name, "about": self.bench.about, "rows": self.rows,
            "quantised": [{**key.to_json(), **line} for key, line in self.references.items()],
            "published": [asdict(p) for p in self.bench.published], "trained": [asdict(row) for row in self.trained],
            "left_out": self.left_out, "waiting": self.waiting,
        }  # fmt: skip

    def figure(self, panels: Sequence[str] | None = None, networks: Sequence[str] | None = None) -> Figure:
        """A row of panels for each network: see `parspike.bench.figure.PANELS`. Raises `MissingExtraError` without
        matplotlib."""
        from parspike.bench.figure import figure

        return figure(self, panels, networks)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write into a file whose ending says what: .csv and .json every figure, .md and .tex the tables, .png, .svg
        and .pdf the figure.

        An existing file is replaced only with force=True. Raises `OptionError` on another ending, `FileError` where the
        file cannot be written, `MissingExtraError` for a figure without matplotlib.
        """
        return save(
            path, lambda suffix: content(self, suffix, ascii_only=False), force=force, example=f"{self.bench.name}.md"
        )

    def render(self, page: str | Path) -> Path:
        """Put tables into a page of Markdown, between `<!-- bench NAME TABLE -->` and `<!-- end -->`; of one network
        where the mark ends in its name. Raises `FileError` where the page has no such mark of this bench, or a mark has
        no end, and `OptionError` for a table or network that there is not."""
        page = path_of(page)
        try:
            text = page.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{page}: cannot be read ({error})") from error
        mark = re.compile(rf"<!-- bench {re.escape(self.bench.name)} (\S+)(?: (\S+))? -->\n")
        if not mark.search(text):
            raise FileError(
                f"{page} has no mark <!-- bench {self.bench.name} TABLE --> … <!-- end --> to write between"
            )
        made, place = "", 0
        for found in mark.finditer(text):
            end = text.find("<!-- end -->", found.end())
            if end < 0 or text.find("<!-- bench ", found.end(), end) >= 0:
                raise FileError(f"{page}: the mark {found[0].strip()} has no <!-- end --> behind it")
            table = self.table(found[1], found[2])
            made += text[place : found.end()] + "\n" + table.markdown() + "\n"
            place = end
        write_whole(page, [(made + text[place:]).encode()])
        return page


def _at(line: Mapping[str, Any], name: str) -> Any:
    """A field of a field, by a name with dots; None where it is not."""
    found: Any = line
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _merit(line: Line) -> tuple[float, ...]:
    """The smaller, the better: near the network in few steps, else as near as can be."""
    drop = line.drop
    if drop is None:
        return 2.0, 0.0, 0.0
    return (0.0, line.mean("steps") or 0.0, drop) if drop <= NEAR else (1.0, drop, 0.0)


def _cell(line: Line) -> str:
    steps, levels = line.mean("steps") or 0, line.mean("levels") or 0
    more = (f" [{steps:g}]" if steps != line.T else "") + (f" {{{levels:g}}}" if levels != line.T else "")
    drop = "" if line.drop is None else f" ({_change(-line.drop)})"
    return f"{_spread(line.all(line.measure))}{drop}{more}"


def _cited(published: Sequence[Published]) -> str:
    return "; ".join(
        f"{p.accuracy:g} at T={p.T}" + (f" ({p.steps} steps)" if p.steps is not None else "")
        for p in sorted(published, key=lambda p: p.T)
    )


def _text(line: Line, name: str) -> str:
    return str(line.figures[0].get(name) or "")


def _number(line: Line, name: str, form: str = ".4g") -> str:
    return _or_dash(line.mean(name), form)


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _signed(drop: float | None) -> str:
    return "–" if drop is None else _change(drop).removeprefix("+")


def _change(points: float) -> str:
    """Points with their sign, − where they are below 0.

    >>> _change(-1.25), _change(0.0), _change(-0.001)
    ('−1.25', '+0.00', '+0.00')
    """
    return f"{round(points, 2) + 0.0:+.2f}".replace("-", "−")


def _spread(values: Sequence[float], digits: int = 2) -> str:
    """A mean and, of several seeds, ± their standard deviation.

    >>> _spread([90.0]), _spread([90.0, 91.0]), _spread([])
    ('90.00', '90.50 ± 0.71', '–')
    """
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"
