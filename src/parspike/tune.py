"""The fewest time-steps, and the code, that keep the network's answers or values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from parspike.calibrate import Recipe
from parspike.calibrate.batches import arguments_of, labels_of, readable_again, signature_of
from parspike.calibrate.distance import named, values_of
from parspike.calibrate.recipe import Progress
from parspike.convert import convert
from parspike.errors import CalibrationError, OptionError, ParspikeWarning
from parspike.graph import Graph
from parspike.measure import Scores, answers_of
from parspike.neurons import Code, Kind, Parallel, Serial
from parspike.plan import Plan, plan
from parspike.snn import SNN

__all__ = ["Trial", "Tuning", "tune"]

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
WEIGHTED = 8
"""Steps of the weighted code that are tried at most: 255 levels."""


MEASURES = ("agreement", "accuracy", "values", "both")


@dataclass(frozen=True)
class Trial:
    """One conversion that was tried, on the images held out. score: per cent of what `tune` was asked to keep.

    code: how counts are sent, or which neurons with a state. spikes: of a neuron. layers: time-steps of the layers that
    have their own. agreement: per cent of the answers, None where the outputs are values. error: relative error ‖output
    − network's‖ / ‖network's‖ in per cent, None where they are whole numbers.
    """

    T: int
    code: str
    score: float
    spikes: float
    layers: Mapping[str, int]
    agreement: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Tuning:
    """What `tune` tried and chose. network: the network's own score. measure: what the scores are, as asked for or
    found. snn: the chosen conversion, None if none did."""

    trials: tuple[Trial, ...]
    network: float
    drop: float
    measure: str
    chosen: Trial | None
    snn: SNN | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "network": self.network, "drop": self.drop, "measure": self.measure,
            "chosen": None if self.chosen is None else asdict(self.chosen),
            "trials": [asdict(trial) for trial in self.trials],
        }  # fmt: skip

    def __str__(self) -> str:
        what = {"both": "agreement and values (R²)", "values": "values (R²)"}.get(self.measure, self.measure)
        wanted = self.network - self.drop
        lines = [f"{what} on held-out images: network {self.network:.1f} %, wanted ≥ {wanted:.1f} %"]
        if self.measure == "both":
            lines.append(
                "  no labels say whether the outputs are class scores: measure='agreement' if they are, 'values' if not"
            )
        for t in self.trials:
            mark = "  ← chosen" if t is self.chosen else ""
            own = f", {len(t.layers)} layers with fewer" if t.layers else ""
            shown = [f"{t.score:5.1f} %"]
            shown += [f"agreement {t.agreement:5.1f} %"] if self.measure == "both" else []
            shown += [] if t.error is None else [f"error {t.error:4.1f} %"]
            shown.append(f"{t.spikes:.3f} spikes a neuron{own}{mark}")
            lines.append(f"  T={t.T:<3} {t.code:<9} {'  '.join(shown)}")
        if self.chosen is None:
            lines.append("  none reaches it: allow a larger drop, or more steps with most=")
        return "\n".join(lines)


def tune(
    model: nn.Module | Plan,
    calibration: Any,
    *,
    drop: float = 1.0,
    measure: Literal["agreement", "accuracy", "values", "both"] | None = None,
    neuron: Kind | None = None,
    codes: Sequence[Code] | None = None,
    most: int = 32,
    mixed: bool = False,
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tuning:
    """Find the fewest time-steps within `drop` per cent points of the network, on calibration images held out.

    calibration: as for `convert`; every fourth batch is held out, so at least four batches. neuron: what to convert
    for, as in `convert`. codes: of parallel neurons, tried at every T (default: sorted and weighted), the one with
    fewer spikes wins. most: largest T. mixed: then give single layers fewer steps, those with the most spikes first, as
    long as the drop allows. One conversion a trial. measure: what is kept, in per cent:

    - "agreement": the answers that are the network's, of class scores (B, K, …) the largest, or whole numbers;
    - "accuracy": the answers that are right, for items (x, y), the labels right behind the inputs, or with `inputs` in
      the last place;
    - "values": R², 1 − ‖output − network's‖² / ‖network's − its mean‖² over the images held out, of several outputs the
      smallest; drop=1 allows an error of 10 % of the outputs' standard deviation, drop=0.01 one of 1 %;
    - "both": the smaller of agreement and values.

    By default the kind of outputs decides. Whole numbers, and outputs whose labels are whole numbers, one for each
    answer, have answers. (B, K), K > 1, without labels may be class scores or K values, so both are kept. All other
    outputs are values: one value, maps of values, several outputs, those with real numbers as labels.
    Raises `CalibrationError` for fewer than four batches and for a measure that these outputs do not have,
    `OptionError` for unknown options.
    """
    if measure is not None and measure not in MEASURES:
        raise OptionError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}")
    if (codes is not None and not codes) or not drop >= 0 or most < 1:
        raise OptionError("give at least one code, a drop of at least 0 and most of at least 1")
    serial = isinstance(neuron, Serial)
    if serial and (codes is not None or mixed):
        raise OptionError(f"codes= and mixed= are of parallel neurons, and neuron is {neuron!r}: leave them out")
    kinds: Sequence[Kind] = [neuron] if neuron is not None and codes is None else [
        Parallel(code) for code in codes or ("sorted", "weighted")
    ]  # fmt: skip
    batches = list(readable_again(calibration))
    if len(batches) < 4:
        raise CalibrationError(f"{len(batches)} calibration batches are too few to hold every fourth out: give 4")
    fitted = [batch for i, batch in enumerate(batches) if i % 4 != 3]
    if isinstance(model, Plan):
        made = model
    else:
        signature = signature_of(model, batches[0], inputs)
        made = plan(model, arguments_of(batches[0], "calibration batch 0", inputs, signature))
    held = _Held(batches[3::4], made.graph, measure, inputs)
    network = held.score(None).score
    trials: list[Trial] = []

    def attempt(T: int, kind: Kind, layers: Mapping[str, int]) -> tuple[Trial, SNN]:
        with warnings.catch_warnings():
            if trials:  # later conversions would only repeat the first one's warnings
                warnings.simplefilter("ignore", ParspikeWarning)
            snn = convert(
                _with_steps(made, layers),
                fitted,
                T=T,
                neuron=kind,
                recipe=recipe,
                inputs=inputs,
                seed=seed,
                progress=progress,
            )
        trial = replace(held.score(snn), T=T, code=kind.text, layers=dict(layers))
        trials.append(trial)
        return trial, snn

    best: tuple[Trial, SNN] | None = None
    for T in (t for t in STEPS if t <= most):
        good = [
            pair
            for kind in kinds
            if kind.text != "weighted" or 1 < T <= WEIGHTED
            if _reaches((pair := attempt(T, kind, {}))[0], network - drop)
        ]
        if good:
            best = min(good, key=lambda pair: pair[0].spikes)
            break
    if best is not None and mixed:
        best = _fewer(best, attempt, held, network - drop)
    chosen, snn = best if best is not None else (None, None)
    return Tuning(tuple(trials), network, drop, held.measure, chosen, snn)


def _reaches(trial: Trial, wanted: float) -> bool:
    # A lossless conversion differs by rounding, which counts as no loss.
    return round(trial.score, 6) >= round(wanted, 6)


def _fewer(best: Any, attempt: Any, held: _Held, wanted: float) -> tuple[Trial, SNN]:
    trial, snn = best
    counts = held.counts(snn)
    for layer in sorted(counts, key=lambda name: -counts[name]):
        steps = trial.T // 2
        if steps < 1:
            break
        other, converted = attempt(trial.T, Parallel(cast(Code, trial.code)), {**trial.layers, layer: steps})
        if _reaches(other, wanted) and other.spikes < trial.spikes:
            trial, snn = other, converted
    return trial, snn


def _with_steps(made: Plan, layers: Mapping[str, int]) -> Plan:
    steps = {node.name: layers[node.layer] for node in made.graph.neurons if node.layer in layers}
    return replace(made, steps={**made.steps, **steps})


class _Held:
    """The batches held out, what is measured on them (see `tune`), and how a network does there."""

    def __init__(
        self, batches: Sequence[Any], graph: Graph, measure: str | None, inputs: Callable[[Any], Any] | None
    ) -> None:
        self.batches, self.graph, self.inputs = batches, graph, inputs
        labels = [self._labels(batch) for batch in batches]
        if measure == "accuracy" and any(y is None for y in labels):
            raise CalibrationError("accuracy needs labels: give calibration items (x, y), or measure='agreement'")
        args, kwargs = self._call(batches[0])
        with torch.no_grad():
            output = graph.run(*args, **kwargs)
        self.sure = measure in ("agreement", "accuracy", "both")
        answers, values = answers_of(output, labels[0], sure=self.sure), bool(values_of(output))
        labelled = answers is not None and labels[0] is not None and labels[0].shape == answers.shape
        if measure is None:
            measure = "values" if answers is None else "agreement" if labelled or not values else "both"
        self.measure = measure
        shapes = ", ".join(str(tuple(leaf.shape)) for _, leaf in named(output))
        if self.sure and answers is None:
            raise CalibrationError(
                f"measure='{measure}' compares the largest of K class scores, (B, K) with K > 1, and this network's "
                f"outputs are {shapes}: leave measure= out, or give measure='values'"
            )
        if measure == "accuracy" and labels[0] is not None and answers is not None and not labelled:
            raise CalibrationError(
                f"held-out labels are {tuple(labels[0].shape)}, the network's answers {tuple(answers.shape)}: give one "
                "class a sample"
            )
        if measure in ("values", "both") and not values:
            raise CalibrationError(
                f"measure='{measure}' needs real numbers, and this network's outputs {shapes} are whole numbers: give "
                "measure='agreement', the share of equal ones"
            )

    @torch.no_grad()
    def score(self, net: SNN | None) -> Trial:
        """How a conversion does, without its T and code; None: the network itself."""
        scores, count, spikes = Scores(), 0, 0.0
        for item in self.batches:
            args, kwargs = self._call(item)
            samples = len(next(iter((*args, *kwargs.values()))))
            wanted = self.graph.run(*args, **kwargs)
            output = wanted
            if net is not None:
                run = net.run(*args, record=True, **kwargs)
                output = run.logits
                fired = sum(float(sent.sum()) for sent in run.sent.values())
                spikes += fired / max(1, sum(c.numel() for c in run.counts.values())) * samples
            scores.add(output, wanted, self._labels(item), sure=self.sure)
            count += samples
        accuracy, agreement, error = (
            None if share is None else 100 * share for share in (scores.accuracy, scores.agreement, scores.error)
        )
        kept = None if scores.kept is None else 100 * scores.kept
        both = None if kept is None or agreement is None else min(kept, agreement)
        score = {"accuracy": accuracy, "agreement": agreement, "values": kept, "both": both}[self.measure]
        if score is None:
            raise CalibrationError(
                f"the held-out batches are not alike, {self.measure} cannot be told of all: give all of them labels of "
                "one kind, or none"
            )
        return Trial(0, "sorted", score, spikes / count, {}, agreement, error)

    def _labels(self, item: Any) -> Tensor | None:
        return labels_of(item, self.inputs, self.graph.signature)

    @torch.no_grad()
    def counts(self, snn: SNN) -> dict[str, float]:
        """Spikes a sample of every layer, on one batch."""
        args, kwargs = self._call(self.batches[0])
        return {layer: float(sent.sum()) for layer, sent in snn.run(*args, record=True, **kwargs).sent.items()}

    def _call(self, item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword inputs in one item."""
        given = arguments_of(item, "held-out batch", self.inputs, self.graph.signature)
        if isinstance(given, Mapping):
            return (), dict(given)
        return (given if isinstance(given, tuple) else (given,)), {}
