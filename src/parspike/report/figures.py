"""The figures of a network as matplotlib axes: every function draws into `ax`, or into a new figure, and returns it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from parspike.engines import OVER_TIME
from parspike.errors import InputError
from parspike.measure import Report, joule
from parspike.measure.scores import Scores
from parspike.report.answers import Answers, interval
from parspike.report.timing import NETWORK, Times
from parspike.report.trains import Train
from parspike.tables import COLOURS, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from parspike.sweep import Sweep

__all__ = ["accuracy", "energy", "error", "raster", "rates", "steps", "sweep", "time"]

WIDTH = 5.0
"""Inches of a new figure."""
NAMES = {"accuracy": "accuracy (%)", "agreement": "agreement with the network (%)", "error": "relative error (%)"}
OWN, RIVAL = COLOURS[:2]
LONGEST = 26
"""Letters of a layer's name."""
MOST_NAMES = 45
"""Layers that a figure names; of more, every second, third … one."""


def _axes(ax: Axes | None, height: float, width: float = WIDTH) -> Axes:
    return new_figure(width, height).subplots() if ax is None else ax


def _ink() -> str:
    """The colour of text, which a dark style makes light."""
    from matplotlib import rcParams

    return rcParams["text.color"]


def shown(name: str, longest: int = LONGEST) -> str:
    """A name that fits beside a figure: its end, which tells layers apart, without control characters.

    >>> shown("a.very.long.name.of.a.layer.relu", 12)
    '…layer.relu'
    """
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return text if len(text) <= longest else "…" + text[len(text) - longest + 2 :]


def _percent(scores: Scores, measure: str) -> float | None:
    share = getattr(scores, measure)
    return None if share is None else 100 * share


def accuracy(found: Answers, ax: Axes | None = None) -> Axes:
    """What share of the answers is right (or is the network's, or how far the outputs are): of the network itself, of
    the one quantised to as many levels, and of the spiking network, with the 95 % intervals that so many samples allow.

    Raises `InputError` where neither labels nor a network are known.
    """
    measure = _measure(found)
    rows: list[tuple[str, float, str]] = []
    if found.network_score is not None and measure == "accuracy":
        rows.append(("network", 100 * found.network_score, _ink()))
    if found.rival is not None and (rival := _percent(found.rival, measure)) is not None:
        rows.append(("quantised", rival, RIVAL))
    rows.append(("spiking", _percent(found.own, measure) or 0.0, OWN))
    axes = _axes(ax, 0.75 + 0.42 * len(rows))
    for place, (_, value, colour) in enumerate(rows):
        if measure != "error":
            low, high = (100 * bound for bound in interval(value / 100, found.own.answers))
            axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.45, solid_capstyle="round")
        axes.plot([value], [place], MARKERS[place], color=colour, markersize=7)
    axes.set_yticks(range(len(rows)), [f"{name}  {value:.2f} %" for name, value, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if measure == "error":
        axes.set_xlim(0, 1.1 * max(value for _, value, _ in rows) or 1)
    axes.set_xlabel(NAMES[measure])
    return _plain(axes, "x")


def steps(found: Answers, ax: Axes | None = None) -> Axes:
    """The same after each time-step, of neurons with a state, whose answer can be read before the last step."""
    if not found.steps:
        raise InputError("the answer of this network exists after its last step alone: its neurons have no state")
    measure = _measure(found)
    axes = _axes(ax, 3.0)
    from matplotlib.ticker import MaxNLocator

    T = range(found.first, found.first + len(found.steps))
    values = [_percent(scores, measure) or 0.0 for scores in found.steps]
    axes.plot(T, values, "o-", color=OWN, markersize=4, label="spiking")
    if measure != "error":
        low, high = zip(*(interval(value / 100, found.own.answers) for value in values), strict=True)
        axes.fill_between(T, [100 * x for x in low], [100 * x for x in high], color=OWN, alpha=0.18, linewidth=0)
    if found.network_score is not None and measure == "accuracy":
        axes.axhline(100 * found.network_score, color=_ink(), linewidth=1, label="network")
    axes.set_xlabel("time-steps that have run")
    axes.set_ylabel(NAMES[measure])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return _plain(axes, "y")


def sweep(found: Sweep, ax: Axes | None = None) -> Axes:
    """What a sweep measured against T, beside the network itself and the network quantised to as many levels."""
    from parspike.sweep.figure import answers

    axes = _axes(ax, 3.2)
    answers(found, axes, network=_ink())
    axes.legend()
    return _plain(axes, "y")


def _measure(found: Answers) -> str:
    if found.measure is None:
        raise InputError("there are neither labels nor a network to compare with: give data with labels, or model=")
    return found.measure


def error(found: Report, ax: Axes | None = None) -> Axes:
    """The relative error of every layer of neurons and of the outputs: ‖mean output − activation‖ / ‖activation‖.

    Raises `InputError` for a report that was measured without the network (`against`), or beside one of another
    structure.
    """
    rows = [(row.layer, row.error) for row in found.rows if row.error is not None]
    if not rows:
        raise InputError("the errors of layers are known beside the network that was converted alone: give model=")
    if found.error is not None:
        rows.append(("output", found.error))
    colours = [OWN] * (len(rows) - 1) + [RIVAL if found.error is not None else OWN]
    axes = _bars([(name, 100 * value) for name, value in rows], colours, ax)
    axes.set_xlabel("relative error (%)")
    return axes


def rates(found: Report, ax: Axes | None = None) -> Axes:
    """Spikes of a neuron in a time-step by layer, and their mean over all neurons as a line.

    Raises `InputError` for a network without neurons.
    """
    rows = [(row.layer, row.firing_rate) for row in found.rows if row.kind == "neuron"]
    if not rows:
        raise InputError("this network has no spiking neurons")
    axes = _bars(rows, [OWN] * len(rows), ax)
    axes.axvline(found.spikes_per_neuron / found.T, color=_ink(), linewidth=1, linestyle="--")
    axes.set_xlabel("firing rate (spikes per neuron and step)")
    return axes


def _bars(rows: Sequence[tuple[str, float]], colours: Sequence[str], ax: Axes | None) -> Axes:
    number = len(rows)
    axes = _axes(ax, 0.7 + min(0.19 * number, 0.12 * MOST_NAMES + 0.07 * number))
    axes.barh(range(number), [value for _, value in rows], color=list(colours), height=0.72)
    every = -(-number // MOST_NAMES)
    places = range(0, number, every)
    axes.set_yticks(places, [shown(rows[place][0]) for place in places], fontsize="small", parse_math=False)
    axes.set_ylim(number - 0.4, -0.6)
    axes.set_xlim(0, 1.05 * max(max(value for _, value in rows), 1e-9))
    return _plain(axes, "x")


def raster(train: Train, ax: Axes | None = None) -> Axes:
    """A mark for every spike of some neurons of a layer: time-steps along x, neurons along y. Spikes that take an
    earlier one back are drawn in another colour."""
    axes = _axes(ax, 2.6, 3.4)
    from matplotlib.ticker import MaxNLocator

    T, number = train.spikes.shape
    for sign, colour in ((1, OWN), (-1, RIVAL)):
        step, neuron = ((train.spikes * sign) > 0).nonzero(as_tuple=True)
        x = step.double() + 1
        half = 0.38
        # One line with gaps: thousands of marks of their own would make the file large.
        gap = torch.full_like(x, float("nan"))
        along = torch.stack([x - half, x + half, gap], 1).flatten()
        up = torch.stack([neuron.double(), neuron.double(), gap], 1).flatten()
        axes.plot(along.numpy(), up.numpy(), color=colour, linewidth=max(1.0, min(5.0, 120 / number)),
                  solid_capstyle="butt")  # fmt: skip
    axes.set_xlim(0.5, T + 0.5)
    axes.set_ylim(-0.7, number - 0.3)
    axes.set_yticks([])
    axes.set_ylabel(f"{number} of {train.of:,} neurons" if number < train.of else f"{number} neurons")
    axes.set_xlabel("time-step")
    axes.set_title(shown(train.layer), fontsize="medium", loc="left", parse_math=False)
    if T <= 10:
        axes.set_xticks(range(1, T + 1))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def energy(found: Report, ax: Axes | None = None) -> Axes:
    """Estimated energy of one sample, arithmetic alone: the network itself, the network with activations of as many
    levels in integers, and the spiking network in accumulates and multiply-accumulates. Membrane updates stand behind
    them, and are no part of the figure that is written."""
    bars = [
        ("network", [("multiply-accumulates", found.network_energy_pj)]),
        (f"{found.quantised_bits}-bit network", [("multiply-accumulates", found.quantised_energy_pj)]),
        (
            "spiking",
            [
                ("multiply-accumulates", found.macs * found.energy.mac),
                ("accumulates (SynOps)", found.synops * found.energy.ac),
                ("membrane updates, beside", found.update_energy_pj),
            ],
        ),
    ]
    axes = _axes(ax, 2.0)
    unit, size = next(((u, s) for u, s in (("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3)) if _largest(bars) >= s), ("pJ", 1.0))
    styles = {"multiply-accumulates": COLOURS[4], "accumulates (SynOps)": OWN, "membrane updates, beside": COLOURS[3]}
    for place, (_, parts) in enumerate(bars):
        start = 0.0
        for name, value in parts:
            axes.barh([place], [value / size], left=[start / size], color=styles[name], height=0.6)
            start += value
    for name, colour in styles.items():
        axes.barh([0], [0], color=colour, label=name)
    costs = (found.network_energy_pj, found.quantised_energy_pj, found.energy_pj)
    axes.set_yticks(range(len(bars)), [f"{name}  {joule(cost)}" for (name, _), cost in zip(bars, costs, strict=True)])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1.05 * max(_largest(bars), 1e-12) / size)
    axes.set_xlabel(f"estimated energy of one sample ({unit})")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")
    return _plain(axes, "x")


def _largest(bars: Any) -> float:
    return max(sum(value for _, value in parts) for _, parts in bars)


def time(found: Times, ax: Axes | None = None) -> Axes:
    """Milliseconds of one sample against T: a line for each engine, and the network itself."""
    axes = _axes(ax, 3.0)
    from matplotlib.ticker import LogLocator, NullLocator

    for number, engine in enumerate(found.engines):
        T, seconds = zip(*found.of(engine), strict=True)
        name = "step by step" if engine == OVER_TIME else engine
        axes.plot(T, [1000 * value for value in seconds], MARKERS[number] + "-", color=COLOURS[number], label=name,
                  markersize=5)  # fmt: skip
    if (NETWORK, 0) in found.seconds:
        axes.axhline(1000 * found.seconds[NETWORK, 0], color=_ink(), linewidth=1, label="network")
    every = sorted({T for engine in found.engines for T, _ in found.of(engine)})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(T) for T in every])
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.set_xlabel("time-steps T")
    axes.set_ylabel("ms a sample")
    axes.legend()
    return _plain(axes, "y")


def _plain(axes: Axes, grid: str) -> Axes:
    """A pale grid along one axis, behind what is drawn."""
    axes.grid(axis=grid, alpha=0.2, linewidth=0.8)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes
