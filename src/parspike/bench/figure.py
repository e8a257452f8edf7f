"""A bench as a figure: a row of panels for each network.

accuracy: against time-steps, as conversions are usually shown. levels: against levels, beside the network quantised to
as many. speed: time of an inference pass against T (the paper's Figure 2). time: accuracy against that time (its Figure
S1). Times are multiples of the network's own, run in turn on the same images, so that machines can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from parspike.bench.result import Benched, Line
from parspike.errors import InputError, OptionError, meant
from parspike.tables import COLOURS, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PANELS", "figure"]

PANELS = {
    "accuracy": ("steps in total", "accuracy (%)"),
    "levels": ("levels", "accuracy (%)"),
    "speed": ("time-steps T", "time of a pass (× network)"),
    "time": ("time of a pass (× network)", "accuracy (%)"),
}
"""The panels, with what stands along x and y."""
BLACK, OWN = "#000000", ("network", "quantised network")
"""The colour of the network itself, which no method gets, and its two labels."""
NAMES = {"steps in total": "steps", "levels": "levels", "time of a pass (× network)": "ratio"}


def figure(found: Benched, panels: Sequence[str] | None = None, networks: Sequence[str] | None = None) -> Figure:
    """Panels (default: all) for networks (default: all that have rows). Raises `OptionError` for unknown ones,
    `InputError` where nothing has been measured, `MissingExtraError` without matplotlib."""
    wanted = list(PANELS) if panels is None else list(panels)
    known = list(dict.fromkeys(line.network for line in found.lines))
    if not known:
        raise InputError(f"the bench '{found.bench.name}' has no measured cell to draw: run it first")
    shown = known if networks is None else list(networks)
    for names, among in ((wanted, PANELS), (shown, known)):
        for name in names:
            if name not in among:
                raise OptionError(f"there is no '{name}' to draw{meant(name, among)}: choose among {', '.join(among)}")
    styles: dict[tuple[str, str], dict[str, Any]] = {}
    colours = [colour for colour in COLOURS if colour != BLACK]
    for line in found.lines:  # one style for a method in all panels
        styles.setdefault((line.method, line.neuron), {
            "color": colours[len(styles) % len(colours)], "marker": MARKERS[len(styles) % len(MARKERS)],
            "linestyle": ("-", "--", ":")[len(styles) // len(colours) % 3],
        })  # fmt: skip
    entries = len({(line.method, line.neuron) for line in found.lines if line.network in shown}) + len(OWN)
    made = new_figure(4.5 * len(wanted) + 1.8, max(3.6 * len(shown), 0.19 * entries + 0.2))  # as high as the legend
    grid = made.subplots(len(shown), len(wanted), squeeze=False)
    for network, row in zip(shown, grid, strict=True):
        lines = [line for line in found.lines if line.network == network]
        for name, axes in zip(wanted, row, strict=True):
            _panel(found, name, network, lines, axes, styles)
    by_label = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = sorted(by_label, key=OWN.__contains__)  # the network itself behind the methods of all networks
    made.legend([by_label[label] for label in labels], labels, loc="outside right upper", fontsize="small")
    return made


def _panel(found: Benched, name: str, network: str, lines: Sequence[Line], axes: Axes, styles: dict[Any, Any]) -> None:
    along, up = PANELS[name]
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.method, line.neuron), []).append(line)
    for key, mine in groups.items():
        points = [(_along(line, along), _along(line, up)) for line in sorted(mine, key=lambda line: line.T)]
        axes.plot(*zip(*points, strict=True), label=", ".join(key), markersize=5, **styles[key])
    own = lines[0].mean("network_accuracy") if up.startswith("accuracy") else 1.0
    if own is not None:
        axes.axhline(own, color=BLACK, linewidth=1, label=OWN[0])
    if name == "levels":
        rivals = sorted(
            (key.levels, line["accuracy"]) for key, line in found.references.items()
            if key.network == network and line.get("accuracy") is not None
        )  # fmt: skip
        if rivals:
            axes.plot(*zip(*rivals, strict=True), "x", color=BLACK, markersize=9, label=OWN[1])
    axes.set_title(network, fontsize="medium")
    axes.set_xlabel(along)
    axes.set_ylabel(up)
    if along.startswith("time of"):
        axes.axvline(1.0, color=BLACK, linewidth=1)
    _scale(axes, "x", 10 if along.startswith("time of") else 2)
    if up.startswith("time of"):
        _scale(axes, "y", 10)


def _scale(axes: Axes, letter: Literal["x", "y"], base: int) -> None:
    """Give an axis its logarithm, with plain numbers at a few places, which do not run into one another."""
    from matplotlib.ticker import LogLocator, NullFormatter

    (axes.set_xscale if letter == "x" else axes.set_yscale)("log", base=base)
    axis = axes.xaxis if letter == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    decades = math.log(high / low, base)
    axis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if base == 10 and decades < 2 else (1,), numticks=6))
    axis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _along(line: Line, axis: str) -> float:
    value = float(line.T) if axis == "time-steps T" else line.mean(NAMES.get(axis, line.measure))
    return float("nan") if value is None else value
