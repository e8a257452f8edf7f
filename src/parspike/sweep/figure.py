"""A sweep as a figure: what it keeps of the network's answers against T, and what it costs against T."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parspike.sweep.result import Sweep, SweepRow
from parspike.tables import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure"]

AXES = {
    "accuracy": "accuracy (%)",
    "agreement": "agreement with the network (%)",
    "error": "relative error of the outputs (%)",
}


def figure(sweep: Sweep) -> Figure:
    """Two panels: what `sweep.measure` names, beside the network and the quantised one; spikes and energy."""
    made = new_figure(10, 4)
    left, right = made.subplots(1, 2)
    name = sweep.measure
    by_code: dict[str, list[SweepRow]] = {}
    for row in sweep.rows:
        by_code.setdefault(row.code, []).append(row)
    energy = right.twinx()
    for number, (code, rows) in enumerate(by_code.items()):
        T, color = [row.T for row in rows], COLOURS[number % len(COLOURS)]
        left.plot(T, [_number(row, name) for row in rows], "o-", color=color, label=code)
        left.plot(T, [_number(row, f"quantised_{name}") for row in rows], "s:", color=color, markerfacecolor="none",
                  markersize=10, label=f"{code}: quantised network")  # fmt: skip
        right.plot(T, [row.spikes for row in rows], "o-", color=color, label=f"{code}: spikes")
        energy.plot(T, [row.energy_pj / 1e6 for row in rows], "^--", color=color, label=f"{code}: energy")
    own = sweep.network_accuracy if name == "accuracy" else 100.0 if name == "agreement" else 0.0
    if own is not None:
        left.axhline(own, color="black", linewidth=1, label="network")
    left.set_ylabel(AXES[name])
    right.set_ylabel("spikes a neuron")
    energy.set_ylabel("energy a sample (µJ)")
    for axes, costs in ((left, False), (right, True), (energy, True)):
        _scale(axes, sweep, costs)
    left.legend(fontsize="small")
    lines, labels = zip(*(axes.get_legend_handles_labels() for axes in (right, energy)), strict=True)
    right.legend([*lines[0], *lines[1]], [*labels[0], *labels[1]], fontsize="small")
    return made


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
