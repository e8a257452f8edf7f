"""The fewest time-steps, and the code, that keep the network's answers or values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import nn

from parspike.calibrate import Recipe
from parspike.calibrate.distance import named, values_of
from parspike.calibrate.recipe import Progress
from parspike.errors import CalibrationError, OptionError
from parspike.measure import Scores, answers_of
from parspike.neurons import Code, Kind, Parallel, Serial
from parspike.plan import Plan
from parspike.snn import SNN
from parspike.trial import Held, divided, fitted, kinds_of, planned

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
    numbers = all(isinstance(n, (int, float)) for n in (drop, most))
    if (codes is not None and not codes) or not numbers or not 0 <= drop <= 100 or most < 1:
        raise OptionError("give at least one code, a drop of 0 to 100 per cent points and most of at least 1")
    kinds = kinds_of(neuron, codes, model, recipe)
    serial = next((kind for kind in (neuron, *kinds) if isinstance(kind, Serial)), None)
    if serial is not None and (codes is not None or mixed):
        raise OptionError(f"codes= and mixed= are of parallel neurons, and neuron is {serial!r}: leave them out")
    batches, rest = divided(calibration, seed)
    made = planned(model, batches[0], inputs)
    held = _Held(rest, made, measure, inputs)
    network = held.trial(held.scores(sure=held.sure)).score
    trials: list[Trial] = []

    def attempt(T: int, kind: Kind, layers: Mapping[str, int]) -> _Attempt:
        # The conversions after the first would only repeat its warnings.
        ((snn, _),) = fitted(
            _with_steps(made, layers), batches, [(T, kind)], recipe=recipe, inputs=inputs, seed=seed,
            progress=progress, quiet=bool(trials),
        )  # fmt: skip
        report, scores = held.measured(snn, sure=held.sure)
        trial = replace(held.trial(scores), T=T, code=kind.text, spikes=report.spikes_per_neuron, layers=dict(layers))
        trials.append(trial)
        return _Attempt(trial, snn, {row.layer: row.spikes for row in report.rows if row.kind == "neuron"})

    best: _Attempt | None = None
    for T in (t for t in STEPS if t <= most):
        good = [
            tried
            for kind in kinds
            if kind.text != "weighted" or 1 < T <= WEIGHTED
            if _reaches((tried := attempt(T, kind, {})).trial, network - drop)
        ]
        if good:
            best = min(good, key=lambda tried: tried.trial.spikes)
            break
    if best is not None and mixed:
        best = _fewer(best, attempt, network - drop)
    chosen, snn = (best.trial, best.snn) if best is not None else (None, None)
    return Tuning(tuple(trials), network, drop, held.measure, chosen, snn)


def _reaches(trial: Trial, wanted: float) -> bool:
    # A lossless conversion differs by rounding, which counts as no loss.
    return round(trial.score, 6) >= round(wanted, 6)


@dataclass(frozen=True)
class _Attempt:
    """A trial and its conversion. spikes: of a sample, by layer."""

    trial: Trial
    snn: SNN
    spikes: Mapping[str, float]


def _fewer(best: _Attempt, attempt: Callable[[int, Kind, Mapping[str, int]], _Attempt], wanted: float) -> _Attempt:
    T, code, spikes = best.trial.T, cast(Code, best.trial.code), best.spikes
    if T < 2:
        return best
    for layer in sorted(spikes, key=lambda name: -spikes[name]):
        other = attempt(T, Parallel(code), {**best.trial.layers, layer: T // 2})
        if _reaches(other.trial, wanted) and other.trial.spikes < best.trial.spikes:
            best = other
    return best


def _with_steps(made: Plan, layers: Mapping[str, int]) -> Plan:
    steps = {node.name: layers[node.layer] for node in made.graph.neurons if node.layer in layers}
    return replace(made, steps={**made.steps, **steps})


class _Held(Held):
    """The batches held out, what is measured on them (see `tune`), and how a network does there."""

    def __init__(
        self, batches: Sequence[Any], made: Plan, measure: str | None, inputs: Callable[[Any], Any] | None
    ) -> None:
        super().__init__(batches, made, inputs)
        labels = [self.labels(batch) for batch in batches]
        if measure == "accuracy" and any(y is None for y in labels):
            raise CalibrationError("accuracy needs labels: give calibration items (x, y), or measure='agreement'")
        with torch.no_grad():
            output = made.graph.run_on(self.env(batches[0]))
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

    def trial(self, scores: Scores) -> Trial:
        """What scores say, without T, code and spikes."""
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
        return Trial(0, "sorted", score, 0.0, {}, agreement, error)
