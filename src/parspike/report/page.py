"""What was measured, as one HTML page.

Jinja escapes every text that stands in the template in braces; only figures, which this package has drawn, are markup.
`SECTIONS` is the page's order: a function from `Look` to a `Section`, or to None where there is nothing to show.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from parspike.diagnose import Diagnosis
from parspike.measure import Report, joule, short
from parspike.neurons import Parallel
from parspike.plan import rows_of
from parspike.report import figures
from parspike.report.answers import Answers, Example, interval
from parspike.report.pictures import Picture, picture_of
from parspike.report.svg import inline
from parspike.report.timing import NETWORK, Times
from parspike.report.trains import Train
from parspike.snn import SNN
from parspike.sweep import Sweep
from parspike.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SECTIONS", "Look", "Section", "page"]

MOST_ROWS = 400
"""Rows of a table that a page shows."""
LONGEST = 600
"""Letters of a value that comes from the file."""
DEEPEST = 6
"""Nesting of such a value."""


@dataclass(frozen=True)
class Look:
    """Everything that a page shows. about: rows that the caller adds to the provenance."""

    snn: SNN
    report: Report
    answers: Answers
    times: Times
    trains: Sequence[Train]
    title: str
    sweep: Sweep | None = None
    diagnosis: Diagnosis | None = None
    picture: Callable[[Tensor], Tensor] | None = None
    commands: tuple[str, ...] = ()
    about: tuple[tuple[str, str], ...] = ()
    day: str = ""


@dataclass(frozen=True)
class Figure:
    """svg: the element. title, caption: what it shows, and how to read it; no title where the figure has one itself.
    small: three of them stand in a row."""

    svg: str
    title: str
    caption: str
    small: bool = False


@dataclass(frozen=True)
class Table:
    """words: the columns that are text, by their places; the others are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page, in this order: text, figures, examples, tables, code. name: its place in links."""

    name: str
    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    examples: Sequence[tuple[Example, Picture]] = ()
    tables: Sequence[Table] = ()
    code: Sequence[str] = ()


@dataclass(frozen=True)
class Key:
    """One of the large figures at the head of the page."""

    value: str
    what: str
    note: str = ""


def page(look: Look) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    made = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: value.replace(" %", "\N{NO-BREAK SPACE}%") if type(value) is str else value,
    )  # fmt: skip
    return made.get_template("page.html").render(
        title=look.title,
        line=_line(look),
        keys=_keys(look),
        sections=[section for make in SECTIONS if (section := make(look)) is not None],
        version=__version__,
        day=look.day,
        style=Markup((here / "page.css").read_text()),
        drawn=Markup,
    )


def _percent(share: float | None, digits: int = 2) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def _neurons(look: Look) -> str:
    codes = look.report.codes
    if not codes:
        return "no spiking neurons"
    return (
        f"{', '.join(codes)} neurons that fire step by step"
        if look.snn.over_time
        else f"parallel neurons, code {', '.join(codes)}"
    )


def _line(look: Look) -> str:
    T = look.snn.T
    steps = "1 time-step" if T == 1 else f"{T} time-steps"
    samples = "1 sample" if look.report.samples == 1 else f"{look.report.samples:,} samples"
    return f"{steps}, {_neurons(look)}, measured on {samples}"


def _keys(look: Look) -> list[Key]:
    return [_how_well(look), _how_dear(look.report), _how_sparse(look)]


def _how_well(look: Look) -> Key:
    found, measure = look.answers, look.answers.measure
    if measure is None:
        return Key("–", "accuracy is not known", "neither labels nor the network to compare with were given")
    value = getattr(found.own, measure)
    if measure == "error":
        return Key(_percent(value, 1), "relative error of the outputs", "against the network that was converted")
    low, high = interval(value, found.own.answers)
    spread = f"95 % interval {100 * low:.1f} … {100 * high:.1f} %"
    if measure == "agreement":
        return Key(_percent(value), "of the answers are the network’s", spread)
    network = found.own.network_accuracy
    return Key(
        _percent(value),
        "of the answers are right",
        spread if network is None else f"the network itself {_percent(network)}",
    )


def _how_dear(report: Report) -> Key:
    own, network = report.energy_pj, report.network_energy_pj
    note = f"{100 * own / network:.0f} % of the network’s {joule(network)}; " if network else ""
    return Key(joule(own), "a sample, estimated", f"{note}arithmetic alone")


def _how_sparse(look: Look) -> Key:
    report = look.report
    steps = "1 time-step" if report.T == 1 else f"{report.T} time-steps"
    return Key(f"{report.spikes_per_neuron:.3f}", "spikes of a neuron for a sample",
               f"{report.neurons:,.0f} neurons, {steps}")  # fmt: skip


def _figure(draw: Callable[[], Axes], name: str, title: str, caption: str) -> Figure:
    return Figure(inline(draw, name, f"{title}. {caption}"), title, caption)


# ------------------------------------------------------------------------------------------------ the sections


def _answers(look: Look) -> Section:
    found, measure, T = look.answers, look.answers.measure, look.snn.T
    if measure is None:
        return Section("answers", "How well it answers", [
            "This page cannot say how well the network answers: the data have no labels, and the network that it was "
            "made from was not given. What it fires and what it costs stands below. Give data with labels for its "
            "accuracy, or the network (--against SPEC, in Python model=) for its agreement and its errors."
        ])  # fmt: skip
    text = [_said(look)]
    if found.gained is not None and found.lost is not None and found.gained + found.lost:
        text.append(
            f"The spiking network alone is right on {found.gained:,} of them, the network alone on {found.lost:,}."
        )
    drawn = []
    if (tried := look.sweep) is not None:
        drawn.append(_figure(
            lambda: figures.sweep(tried), "sweep", f"{tried.measure.capitalize()} against T",
            "Circles: the spiking network, converted for each T. Squares: the network itself with activations rounded "
            "to as many levels, which is what a spiking network has to be compared with. Line: the network itself.",
        ))  # fmt: skip
    if found.steps:
        drawn.append(_figure(
            lambda: figures.steps(found), "steps", f"{measure.capitalize()} after each time-step",
            f"The answer that is read after so many of the {T} steps, as the mean of the output so far. The band is "
            f"the 95 % interval that {found.own.answers:,} answers allow." if measure != "error" else
            f"The error of the output that is read after so many of the {T} steps.",
        ))  # fmt: skip
    caption = (
        "‖output − network’s output‖ / ‖network’s output‖, smaller is better."
        if measure == "error"
        else "Each line is the 95 % interval that so many answers allow: where two overlap widely, these data do not "
        "tell the networks apart."
    )
    if found.rival is not None:
        caption += (
            " Quantised: the network with activations rounded to as many levels, run without spikes; for parallel "
            "neurons it gives the same answers."
        )
    drawn.append(_figure(lambda: figures.accuracy(found), "score", f"{measure.capitalize()} at T = {T}", caption))
    return Section("answers", "How well it answers", text, drawn, tables=[_scores(found)])


def _said(look: Look) -> str:
    found, own = look.answers, look.answers.own
    parts = []
    if own.accuracy is not None:
        known = own.network_accuracy
        network = "" if known is None else f"; the network itself has {_percent(known)} right"
        parts.append(f"{_percent(own.accuracy)} of {own.judged:,} answers are right{network}.")
    if own.agreement is not None:
        parts.append(f"{_percent(own.agreement)} of {own.answers:,} answers are those of the network itself.")
    if own.error is not None and not parts:
        parts.append(f"The outputs are values; they differ from the network’s by {_percent(own.error, 1)}.")
    if look.snn.over_time and not found.steps and look.snn.T > 1:
        parts.append("Outputs are too large to be kept after every step, so only the last one is shown.")
    return " ".join(parts)


def _scores(found: Answers) -> Table:
    head = ["", "accuracy", "95 % interval", "agreement", "error of the outputs"]
    rows = []
    if found.network:
        accuracy = found.own.network_accuracy
        rows.append(["the network itself", _percent(accuracy), _interval(accuracy, found.own.judged), "", ""])
    for name, scores in (("quantised to as many levels", found.rival), ("spiking", found.own)):
        if scores is not None:
            rows.append([name, _percent(scores.accuracy), _interval(scores.accuracy, scores.judged),
                         _percent(scores.agreement), _percent(scores.error)])  # fmt: skip
    kept = [0, *(place for place in range(1, len(head)) if any(row[place] for row in rows))]
    return Table([head[place] for place in kept], [[row[place] for place in kept] for row in rows])


def _interval(share: float | None, number: int) -> str:
    if share is None:
        return ""
    low, high = interval(share, number)
    return f"{100 * low:.1f} … {100 * high:.1f} %"


def _layers(look: Look) -> Section | None:
    report, drawn, text = look.report, [], []
    fires = any(row.kind == "neuron" for row in report.rows)
    if not fires:
        return None
    if any(row.error is not None for row in report.rows):
        worst = max((row for row in report.rows if row.error is not None), key=lambda row: row.error or 0)
        text.append(
            f"The largest error of a layer is {_percent(worst.error, 1)}, of layer {figures.shown(worst.layer, 60)}. "
            "Errors add up from layer to layer, so a later one holds those before it."
        )
        drawn.append(_figure(
            lambda: figures.error(report), "error", "Error by layer",
            "‖mean output − activation‖ / ‖activation‖ of each layer of neurons, over all samples, against the "
            "network’s own activations. The last bar is the output.",
        ))  # fmt: skip
    elif look.answers.network:
        text.append(
            "The network to compare with has another structure, so only its outputs are compared, not its layers."
        )
    else:
        text.append("Errors by layer need the network that was converted: --against SPEC, in Python model=.")
    drawn.append(_figure(
        lambda: figures.rates(report), "rates", "Firing rate by layer",
        "Spikes of a neuron in one time-step, mean over neurons and samples. The dashed line is the mean of all "
        "neurons. A smaller rate is a cheaper layer; 0 means that a layer tells nothing.",
    ))  # fmt: skip
    return Section("layers", "Layer by layer", text, drawn)


def _diagnosis(look: Look) -> Section | None:
    found = look.diagnosis
    if found is None:
        return None
    text = [f"{line[:1].upper()}{line[1:]}." for line in found.verdict()]
    text.append(
        "Error: ‖mean output − activation‖ / ‖activation‖ of a layer’s neurons. Its parts: what lies beyond their "
        "range (clipping) or between their levels (quantisation), what steps get unevenly (over time), and what layers "
        "before caused (carried). Alone: the error of the network’s outputs with only this layer spiking; without: "
        "with only this layer computed exactly. Dead and saturated: neurons that are silent, or fire all they can, for "
        "every image."
    )
    layers = found.table()
    words = frozenset(place for place, name in enumerate(layers.head) if name in layers.left)
    tables = [Table(layers.head, _cut([list(row) for row in layers.rows], len(layers.head)), words)]
    if found.remedies:
        rows = [
            [one.what, str(one.again or one.before), str(one.after), "take this" if one is found.remedy else ""]
            for one in found.remedies
        ]
        title = f"Remedies, tried on {found.held_out:,} images that were no part of their choice"
        tables.append(Table(["remedy", "before", "after", ""], rows, frozenset(range(4)), title))
    code = [] if found.remedy is None else [found.remedy.how]
    return Section("diagnosis", "Where the error comes from", text, tables=tables, code=code)


def _spikes(look: Look) -> Section | None:
    if not look.trains:
        return None
    codes = set(look.report.codes)
    what = {
        "sorted": "in the sorted code a neuron is silent first, then fires at every step: its spikes stand at the end",
        "weighted": "in the weighted code the spikes of a neuron are the binary digits of its count, the largest first",
        "onset": "in the onset code a neuron fires once, the earlier the larger its count",
    }
    how = "; ".join(what[code] for code in sorted(codes) if code in what)
    text = [
        "The spikes of some neurons for the first sample, evenly spaced in their layer" + (f": {how}." if how else ".")
    ]
    if any(bool((train.spikes < 0).any()) for train in look.trains):
        text.append("Marks in the second colour are spikes of −1, which take an earlier one back.")
    drawn = []
    for number, train in enumerate(look.trains):
        steps, neurons = train.spikes.shape
        said = f"{int((train.spikes != 0).sum()):,} spikes of {neurons} neurons in {steps} steps."
        label = f"Spikes of layer {train.layer}. {said}"
        drawn.append(
            Figure(inline(lambda train=train: figures.raster(train), f"raster{number}", label), "", said, True)
        )
    return Section("spikes", "Spikes", text, drawn)


def _costs(look: Look) -> Section:
    report, times = look.report, look.times
    energy = report.energy
    text = [
        f"For one sample: {short(report.synops) or '0'} accumulates (SynOps) and {short(report.macs) or '0'} "
        f"multiply-accumulates, where the network itself multiplies {short(report.network_macs) or '0'} times. The "
        f"energy is an estimate of arithmetic alone, {energy.ac:g} pJ an accumulate and {energy.mac:g} pJ a "
        "multiply-accumulate. Memory, routing of spikes and idle power are not in it: compare networks with it, do not "
        "predict a chip."
    ]
    if report.analog:
        named = dict.fromkeys(f"{row.layer} ({row.operator})" for row in report.analog)
        few = list(named)[:6]
        text.append(
            f"Computed without spikes, on means over time: {', '.join(few)}"
            + (f" and {len(named) - len(few)} more." if len(named) > len(few) else ".")
        )
    if report.uneven:
        text.append(f"{report.not_counted[0].upper()}{report.not_counted[1:]}.")
    ran = f"Median of {times.rounds} rounds" if times.rounds > 1 else "One round"
    taken = (
        f"{ran}, engines run in turn on {times.samples} samples at once: {times.machine}. It says how long a "
        "simulation takes here, nothing about a chip."
    )
    if not look.snn.over_time and any(T not in (0, times.T) for _, T in times.seconds):
        taken += f" T other than {times.T}: the same network with as many levels as they can send, for its time alone."
    if times.left_out:
        taken += f" Left out, being too slow: {', '.join(f'{name} at T = {T}' for name, T in times.left_out)}."
    drawn = [
        _figure(
            lambda: figures.energy(report), "energy", "Estimated energy of a sample",
            f"The network itself at {energy.mac:g} pJ a multiply-accumulate, the spiking network by what it does. "
            f"Membrane updates ({joule(report.update_energy_pj)}) stand beside the estimate of "
            f"{joule(report.energy_pj)}.",
        ),
        _figure(lambda: figures.time(times), "time", "Time against T on this machine", taken),
    ]  # fmt: skip
    head = ["layer", "operator", "neurons", "spikes/neuron", "rate", "SynOps", "MACs", "network’s MACs", "error"]
    rows = [
        [
            row.layer, row.operator + {"analog": " (analog)", "mean": " of means"}.get(row.kind, ""),
            *((f"{row.neurons:,.0f}", f"{row.spikes / row.neurons:.3f}", f"{row.firing_rate:.3f}") if row.neurons
              else ("", "", "")),
            short(row.synops), short(row.macs), short(row.network_macs), _percent(row.error, 1),
        ]
        for row in report.rows
    ]  # fmt: skip
    total = ["total", "", f"{report.neurons:,.0f}", f"{report.spikes_per_neuron:.3f}",
             f"{report.spikes_per_neuron / report.T:.3f}", short(report.synops), short(report.macs),
             short(report.network_macs), _percent(report.error, 1)]  # fmt: skip
    return Section("costs", "What it costs", text, drawn, tables=[
        _timed(times), Table(head, [*_cut(rows, len(head)), total], frozenset({0, 1}), "Operations of one sample"),
    ])  # fmt: skip


def _timed(times: Times) -> Table:
    steps = sorted({T for _, T in times.seconds if T})
    rows = [[engine, *(_ms(times.seconds.get((engine, T))) for T in steps)] for engine in times.engines]
    if (NETWORK, 0) in times.seconds:
        rows.insert(0, ["the network itself", *[_ms(times.seconds[NETWORK, 0])] * len(steps)])
    return Table(["ms a sample", *(f"T = {T}" for T in steps)], rows)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g}"


def _cut(rows: list[list[str]], width: int) -> list[list[str]]:
    if len(rows) <= MOST_ROWS:
        return rows
    return [*rows[:MOST_ROWS], [f"… and {len(rows) - MOST_ROWS} more", *[""] * (width - 1)]]


def _examples(look: Look) -> Section | None:
    found = look.answers
    if not found.examples:
        return None
    pictures = [(example, picture_of(example.x, look.picture)) for example in found.examples]
    other = any(example.differs for example in found.examples)
    against = "the network’s" if found.network else "the label"
    text = ["The first samples" + (f", then some whose answer is not {against}, marked ≠." if other else ".")]
    if any(example.own.endswith(" %") for example in found.examples):
        text[0] += " Per cent are those of the softmax."
    return Section("examples", "Examples", text, examples=pictures)


def _plan(look: Look) -> Section:
    snn = look.snn
    graph = replace(snn.graph, tensors=snn.tensors())
    said = snn.provenance.get("kept")
    layers = {layer for layer in said if isinstance(layer, str)} if isinstance(said, list) else set()
    spiking = tuple(snn.neurons())
    kept = [node.name for node in graph.neurons if node.layer in layers and node.name not in spiking]
    words = f"{look.report.codes[0]} neuron" if snn.over_time and look.report.codes else Parallel().words
    rows = rows_of(graph, spiking, kept, words, serial=snn.over_time)
    cells = [[row.layer, row.operator, row.becomes, "×".join(map(str, row.shape)), row.source] for row in rows]
    text = [f"What became of every operator. Inputs: {snn.graph.taken}."]
    head = ["layer", "operator", "becomes", "shape", "source"]
    return Section("plan", "The network", text, tables=[Table(head, _cut(cells, len(head)), frozenset({0, 1, 2, 4}))])


def _provenance(look: Look) -> Section:
    rows = [[str(name), _text(value)] for name, value in look.snn.provenance.items() if value not in (None, "", [], {})]
    rows += [[name, value] for name, value in look.about]
    rows.append([
        "measured with",
        f"parspike {__version__}, Python {platform.python_version()}, {look.times.machine}",
    ])  # fmt: skip
    return Section("provenance", "Where it comes from", [
        "What the converted network says of itself, and what this page was made with."
    ], tables=[Table(["", ""], rows, frozenset({0, 1}))])  # fmt: skip


def _text(value: Any) -> str:
    text = _words(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _words(value: Any, depth: int = 0) -> str:
    """JSON for people.

    >>> _words({"samples": 64, "of": ["a", "b"], "more": {"x": None}})
    'samples 64, of [a, b], more (x –)'
    """
    if depth > DEEPEST:
        return "…"
    if isinstance(value, dict):
        inner = ", ".join(f"{key} {_words(item, depth + 1)}" for key, item in value.items())
        return f"({inner})" if depth else inner
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_words(item, depth + 1) for item in value) + "]"
    return {True: "yes", False: "no", None: "–"}[value] if value is None or isinstance(value, bool) else str(value)


def _again(look: Look) -> Section:
    code = list(look.commands)
    if not code:
        code = [
            "snn = parspike.load(…)  # or parspike.convert(…), as the provenance says",
            'parspike.report(snn, data, "report.html", model=model)',
        ]
    return Section("again", "How to reproduce it", [
        "Counts, answers and errors come out equal on the same data and versions. Times do not."
    ], code=code)  # fmt: skip


SECTIONS: tuple[Callable[[Look], Section | None], ...] = (
    _answers, _layers, _diagnosis, _spikes, _costs, _examples, _plan, _provenance, _again,
)  # fmt: skip
