"""A sweep as a figure: what it keeps of the network's answers against T, and what it costs against T."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

from parspike.sweep.result import Sweep, SweepRow
from parspike.tables import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["answers", "figure"]

AXES = {
    "accuracy": "accuracy (%)",
    "agreement": "agreement with the network (%)",
    "error": "relative error of the outputs (%)",
}


def figure(sweep: Sweep) -> Figure:
    """Two panels: what `sweep.measure` names, beside the network and the quantised one; spikes and energy."""
    made = new_figure(10, 4)
    left, right = made.subplots(1, 2)
    answers(sweep, left)
    left.legend(fontsize="small")
    energy = right.twinx()
    for (code, rows), color in zip(_by_code(sweep).items(), cycle(COLOURS), strict=False):
        T = [row.T for row in rows]
        right.plot(T, [row.spikes for row in rows], "o-", color=color, label=f"{code}: spikes")
        energy.plot(T, [row.energy_pj / 1e6 for row in rows], "^--", color=color, label=f"{code}: energy")
    right.set_ylabel("spikes a neuron")
    energy.set_ylabel("energy a sample (µJ)")
    for axes in (right, energy):
        _scale(axes, sweep, True)
    lines, labels = zip(*(axes.get_legend_handles_labels() for axes in (right, energy)), strict=True)
    right.legend([*lines[0], *lines[1]], [*labels[0], *labels[1]], fontsize="small")
    return made


def answers(sweep: Sweep, axes: Axes, network: str = "black") -> None:
    """What `sweep.measure` names against T, beside the network quantised to as many levels and the network itself, a
    line of the colour `network`."""
    name = sweep.measure
    for (code, rows), color in zip(_by_code(sweep).items(), cycle(COLOURS), strict=False):
        T = [row.T for row in rows]
        axes.plot(T, [_number(row, name) for row in rows], "o-", color=color, label=code)
        axes.plot(T, [_number(row, f"quantised_{name}") for row in rows], "s:", color=color, markerfacecolor="none",
                  markersize=10, label=f"{code}: quantised network")  # fmt: skip
    own = sweep.network_accuracy if name == "accuracy" else 100.0 if name == "agreement" else 0.0
    if own is not None:
        axes.axhline(own, color=network, linewidth=1, label="network")
    axes.set_ylabel(AXES[name])
    _scale(axes, sweep, False)


def _by_code(sweep: Sweep) -> dict[str, list[SweepRow]]:
    found: dict[str, list[SweepRow]] = {}
    for row in sweep.rows:
        found.setdefault(row.code, []).append(row)
    return found


def _number(row: SweepRow, name: str) -> float:
    value = getattr(row, name)
    return float("nan") if value is None else value


def _scale(axes: Axes, sweep: Sweep, costs: bool) -> None:
    """T and costs by their logarithms, the former with a tick for every T."""
    steps = sorted({row.T for row in sweep.rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(T) for T in steps])
    axes.minorticks_off()
    axes.set_xlabel("time-steps T")
    if costs and all(row.spikes > 0 and row.energy_pj > 0 for row in sweep.rows):
        axes.set_yscale("log")
