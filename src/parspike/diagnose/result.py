"""What `diagnose` returns: a row for every layer of neurons, the layer to blame, and the remedies that were tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from parspike.notebook import html_table
from parspike.snn import SNN
from parspike.tables import Table

__all__ = ["BINS", "CAUSES", "EXACT", "STANDS_OUT", "Diagnosis", "LayerFault", "Outcome", "Remedy"]

BINS = 10
"""Classes of firing rates above 0 in a histogram, each 1/10 wide: (0, 0.1], (0.1, 0.2] … (0.9, 1]."""
EXACT = 1e-6
"""An error of the outputs that is rounding."""
STANDS_OUT = 0.05
"""A layer is said to stand out where computing it exactly takes at least this share of the outputs' error away."""
CAUSES = {
    "clipping": "clipping: the activation lies beyond what the neurons can send",
    "quantisation": "quantisation: the activation lies between two of the levels that the neurons can send",
    "over_time": "distribution over time: the neurons' input does not come evenly over the steps",
}
"""What a layer of neurons does wrong itself, by the name of the field in `LayerFault`."""
HEAD = ("layer", "neurons", "error", "clipping", "quantisation", "over time", "carried", "alone", "without", "dead",
        "saturated")  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a network does on some images. error: ‖output − network's‖ / ‖network's‖, of several outputs the largest;
    agreement: share of answers that are the network's; accuracy: share that are right, None without labels. What the
    outputs do not have is None (docs/measure.md, "Answers and values")."""

    error: float | None = None
    agreement: float | None = None
    accuracy: float | None = None

    @property
    def harm(self) -> float:
        """What is to be made small: the error, or the share of other answers where outputs are whole numbers."""
        return self.error if self.error is not None else 1 - (1.0 if self.agreement is None else self.agreement)

    def __str__(self) -> str:
        parts = [] if self.error is None else [f"error {self.error:.3f}"]
        parts += [] if self.agreement is None else [f"agreement {100 * self.agreement:.2f} %"]
        parts += [] if self.accuracy is None else [f"accuracy {100 * self.accuracy:.2f} %"]
        return ", ".join(parts)


@dataclass(frozen=True)
class LayerFault:
    """What one layer of neurons adds to the error.

    neurons: of one sample. error: ‖a′ − a‖ / ‖a‖ over all images, a′ the mean over time of what the neurons send and a
    the network's activation. It is the sum of four differences, each given as its norm over ‖a‖, so that the four
    norms need not add up to `error`. With z′ the mean of the neurons' input and f the activation:

    - carried: f(z′) − a, what earlier layers caused (and what re-fitted weights mended);
    - clipping: f(z′) cut off at the neurons' smallest and largest output, less f(z′);
    - quantisation: what the neurons send where z′ comes evenly at every step, less the cut-off f(z′); of neurons that
      leak or reset to 0 with what they lose by that;
    - over_time: a′ less what they send where z′ comes evenly; 0 for parallel neurons, whose count depends on z′ alone.

    beyond: share of the activations f(z′) that are cut off. alone: the network's own computation with only this layer
    spiking. without: the converted network with only this layer computed exactly.

    dead: share of the neurons that send no spike for any image; network_dead: share whose activation is at its smallest
    for all images in the network itself (None for an activation without a smallest value). saturated: share that send
    as much as they can for every image. firing_rate: spikes per neuron and time-step. rates: how many neurons, counted
    for each image, have the firing rate 0, then (0, 0.1] … (0.9, 1]. first_spikes: how many first fire in step 1 … T,
    and last how many never.
    """

    layer: str
    operator: str
    neurons: float
    error: float
    clipping: float
    quantisation: float
    over_time: float
    carried: float
    beyond: float
    alone: Outcome
    without: Outcome
    firing_rate: float
    dead: float
    network_dead: float | None
    saturated: float
    rates: tuple[int, ...]
    first_spikes: tuple[int, ...]

    @property
    def cause(self) -> str:
        """The largest of what the layer does wrong itself: "clipping", "quantisation" or "over_time"."""
        return max(CAUSES, key=lambda name: getattr(self, name))


@dataclass(frozen=True)
class Remedy:
    """Something that was tried against the error of one layer, with what it did on images held out.

    name: "threshold"; "steps", more of them in this layer, or in all of a network whose neurons have a state;
    "all-steps", more in all layers of parallel neurons; "keep", no spikes in this layer. what: in words. how: what to
    write to have it. before, after: of the network as it is and of the one with the remedy, on the same images. snn:
    the latter; no part of `to_json`. again: where the conversion re-fitted weights, the network was converted again on
    the other images, with the remedy and, this, without it; what the remedy does is what lies between these two.
    """

    name: str
    layer: str
    what: str
    how: str
    before: Outcome
    after: Outcome
    snn: SNN = field(repr=False, compare=False)
    again: Outcome | None = None

    @property
    def gain(self) -> float:
        """By how much it makes the error smaller; below 0 where it makes it larger."""
        return (self.again or self.before).harm - self.after.harm

    @property
    def better(self) -> bool:
        """Whether `snn` has a smaller error than the network as it is."""
        return self.after.harm < self.before.harm

    def to_json(self) -> dict[str, Any]:
        """Everything but the network as JSON-able data."""
        return {**_json(self, "snn"), "gain": self.gain}


@dataclass(frozen=True)
class Diagnosis:
    """Where a converted network's error comes from. `print` shows a table; `to_json` gives everything.

    samples: images looked at; held_out: how many of them the remedies were measured on, which were no part of their
    choice. T: time-steps. codes: how counts are sent, or which neurons with a state. compared_with: "network", or
    "own" where none was given: then the reference is the converted network's own weights with exact activations.
    outcome: of the converted network. network_accuracy: of the reference. rows: the layers in order. blame: the layer
    whose error costs most at the output, None where the outputs are exact, or no neuron makes their error. remedies:
    what was tried for it. classes: how many class scores the outputs are, 0 where they are none.
    """

    samples: int
    held_out: int
    T: int
    codes: tuple[str, ...]
    compared_with: str
    outcome: Outcome
    network_accuracy: float | None
    rows: tuple[LayerFault, ...]
    blame: str | None
    remedies: tuple[Remedy, ...] = ()
    classes: int = 0

    @property
    def worst(self) -> LayerFault | None:
        """The row of the layer to blame."""
        return next((row for row in self.rows if row.layer == self.blame), None)

    @property
    def remedy(self) -> Remedy | None:
        """The remedy to take: the one that lowers the error most on the images held out. One that keeps all layers
        spiking is preferred where it does at least half of what computing the layer without spikes does. None where
        none helped."""
        useful = [one for one in self.remedies if one.gain > 1e-9]
        if not useful:
            return None
        best = max(useful, key=lambda one: one.gain)
        spiking = [one for one in useful if one.name != "keep" and one.gain >= best.gain / 2]
        return max(spiking, key=lambda one: one.gain) if spiking else best

    def to_json(self) -> dict[str, Any]:
        """Everything but the networks of the remedies, as JSON-able data."""
        data = _json(self, "rows", "remedies")
        rows = [{**_json(row), "cause": row.cause} for row in self.rows]
        taken = None if self.remedy is None else self.remedy.name
        return {**data, "rows": rows, "remedies": [one.to_json() for one in self.remedies], "remedy": taken}

    def table(self) -> Table:
        """The layers as a table, with remarks below it."""
        cells = [_cells(row) for row in self.rows]
        return Table(HEAD, cells, frozenset({"layer"}), self._remarks())

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return html_table("Diagnosis", HEAD, [_cells(row) for row in self.rows], self._remarks())

    def verdict(self) -> list[str]:
        """How the network does, which layer is to blame and why: a sentence a line."""
        reference = (
            "the network" if self.compared_with == "network"
            else "this network's own weights with exact activations (no original network was given)"
        )  # fmt: skip
        lines = [
            f"{self.samples:,} images, T = {self.T}, {', '.join(self.codes) or 'no spiking neurons'}; compared with "
            f"{reference}: {str(self.outcome) or 'no output to compare'}"
            + (f", network's accuracy {100 * self.network_accuracy:.2f} %" if self.network_accuracy is not None else "")
        ]
        worst = self.worst
        if worst is None:
            return [*lines, f"no layer to blame: {self._without_blame()}"]
        if worst.without.harm <= (1 - STANDS_OUT) * self.outcome.harm:
            why = f"Computed exactly, it alone turns {_harm(self.outcome)} into {_harm(worst.without)}"
        else:
            why = (
                "The error is spread: no single layer, computed exactly, makes the outputs much better, so more steps "
                f"or another recipe for all of them help most. As the only spiking layer this one costs most, "
                f"{_harm(worst.alone)}"
            )
        return [*lines, f"to blame: {worst.layer}. {why}; its own fault is mostly {CAUSES[worst.cause]}"]

    def _without_blame(self) -> str:
        if self.outcome.harm <= EXACT:
            return "the outputs are the network's"
        return (
            "no neuron makes this error, so the two networks have other weights: give the network that this one was "
            "converted from, with the weights of then"
        )

    def _remarks(self) -> list[str]:
        lines = self.verdict()
        if self.worst is None:
            return lines
        if not self.remedies:
            return [*lines, "no remedy was tried: give at least two images"]
        lines.append(f"remedies for it, tried on {self.held_out:,} images that were no part of their choice:")
        width = max(len(one.what) for one in self.remedies)
        for one in self.remedies:
            mark = "  ← take this" if one is self.remedy else ""
            again = "" if one.again is None else "converted again on the other images: "
            lines.append(f"  {one.what:<{width}}  {again}{one.again or one.before} → {one.after}{mark}")
        taken = self.remedy
        return [*lines, "none of them helps" if taken is None else f"how: {taken.how}"]


def _harm(outcome: Outcome) -> str:
    return (
        f"an error of {outcome.error:.3f}" if outcome.error is not None else f"{100 * outcome.harm:.2f} % other answers"
    )


def _cells(row: LayerFault) -> Sequence[str]:
    def of(outcome: Outcome) -> str:
        return f"{outcome.harm:.3f}"

    return (
        row.layer, f"{row.neurons:,.0f}", f"{row.error:.3f}", f"{row.clipping:.3f}", f"{row.quantisation:.3f}",
        f"{row.over_time:.3f}" if row.over_time else "", f"{row.carried:.3f}", of(row.alone), of(row.without),
        _percent(row.dead), _percent(row.saturated),
    )  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share else ""


def _json(value: Any, *without: str) -> dict[str, Any]:
    """The fields of a dataclass as JSON-able data; `asdict` would copy the networks in it."""
    found = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in without}
    return {name: _json(one) if isinstance(one, Outcome) else one for name, one in found.items()}
