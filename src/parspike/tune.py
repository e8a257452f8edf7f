"""The fewest time-steps, and the code, that keep what the network says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from parspike.calibrate import Recipe
from parspike.calibrate.batches import arguments_of, readable_again, signature_of
from parspike.calibrate.recipe import Progress
from parspike.convert import convert
from parspike.errors import CalibrationError, OptionError
from parspike.measure import answer_of
from parspike.neurons import Code
from parspike.plan import Plan, plan
from parspike.snn import SNN

__all__ = ["Trial", "Tuning", "tune"]

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
WEIGHTED = 8
"""Steps of the weighted code that are tried at most: 255 levels."""


@dataclass(frozen=True)
class Trial:
    """One conversion that was tried. score: per cent agreement or accuracy on the images held out. spikes: a neuron.

    layers: time-steps of the layers that have their own.
    """

    T: int
    code: Code
    score: float
    spikes: float
    layers: Mapping[str, int]


@dataclass(frozen=True)
class Tuning:
    """What `tune` tried and chose. network: the network's own score. snn: the chosen conversion, None if none did."""

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
        wanted = self.network - self.drop
        lines = [f"{self.measure} on held-out images: network {self.network:.1f} %, wanted ≥ {wanted:.1f} %"]
        for t in self.trials:
            mark = "  ← chosen" if t is self.chosen else ""
            own = f", {len(t.layers)} layers with fewer" if t.layers else ""
            lines.append(f"  T={t.T:<3} {t.code:<9} {t.score:5.1f} %  {t.spikes:.3f} spikes a neuron{own}{mark}")
        if self.chosen is None:
            lines.append("  none reaches it: allow a larger drop, or more steps with most=")
        return "\n".join(lines)


def tune(
    model: nn.Module | Plan,
    calibration: Any,
    *,
    drop: float = 1.0,
    measure: Literal["agreement", "accuracy"] = "agreement",
    codes: Sequence[Code] = ("sorted", "weighted"),
    most: int = 32,
    mixed: bool = False,
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tuning:
    """Find the fewest time-steps within `drop` per cent points of the network, on calibration images held out.

    calibration: as for `convert`; every fourth batch is held out, so at least four batches. measure: "agreement" of
    the largest outputs with the network's (100 % for the network itself), or "accuracy", for items (x, y), the labels
    right behind the inputs, or with `inputs` in the last place. codes: tried at every T, the one with fewer spikes
    wins. most: largest T. mixed: then give single layers fewer steps, those with the most spikes first, as long as
    the drop allows. One conversion a trial.
    Raises `CalibrationError` for fewer than four batches, `OptionError` for unknown options.
    """
    if measure not in ("agreement", "accuracy"):
        raise OptionError(f"measure must be 'agreement' or 'accuracy', got {measure!r}")
    if not codes or drop < 0 or most < 1:
        raise OptionError("give at least one code, a drop of at least 0 and most of at least 1")
    batches = list(readable_again(calibration))
    if len(batches) < 4:
        raise CalibrationError(f"{len(batches)} calibration batches are too few to hold every fourth out: give 4")
    fitted = [batch for i, batch in enumerate(batches) if i % 4 != 3]
    if isinstance(model, Plan):
        made = model
    else:
        signature = signature_of(model, batches[0], inputs)
        made = plan(model, arguments_of(batches[0], "calibration batch 0", inputs, signature))
    held = _Held(batches[3::4], measure, inputs, made.graph.signature)
    network = held.score(made.graph.run, made.graph.run)[0]
    trials: list[Trial] = []

    def attempt(T: int, code: Code, layers: Mapping[str, int]) -> tuple[Trial, SNN]:
        snn = convert(
            _with_steps(made, layers),
            fitted,
            T=T,
            code=code,
            recipe=recipe,
            inputs=inputs,
            seed=seed,
            progress=progress,
        )
        score, spikes = held.score(snn, made.graph.run)
        trial = Trial(T, code, score, spikes, dict(layers))
        trials.append(trial)
        return trial, snn

    best: tuple[Trial, SNN] | None = None
    for T in (t for t in STEPS if t <= most):
        good = [
            pair
            for code in codes
            if code != "weighted" or 1 < T <= WEIGHTED
            if (pair := attempt(T, code, {}))[0].score >= network - drop
        ]
        if good:
            best = min(good, key=lambda pair: pair[0].spikes)
            break
    if best is not None and mixed:
        best = _fewer(best, attempt, made, held, network - drop)
    chosen, snn = best if best is not None else (None, None)
    return Tuning(tuple(trials), network, drop, measure, chosen, snn)


def _fewer(best: Any, attempt: Any, made: Plan, held: _Held, wanted: float) -> tuple[Trial, SNN]:
    trial, snn = best
    counts = held.counts(snn)
    for layer in sorted(counts, key=lambda name: -counts[name]):
        steps = trial.T // 2
        if steps < 1:
            break
        other, converted = attempt(trial.T, trial.code, {**trial.layers, layer: steps})
        if other.score >= wanted and other.spikes < trial.spikes:
            trial, snn = other, converted
    return trial, snn


def _with_steps(made: Plan, layers: Mapping[str, int]) -> Plan:
    steps = {node.name: layers[node.layer] for node in made.graph.neurons if node.layer in layers}
    return replace(made, steps={**made.steps, **steps})


class _Held:
    """The images held out, and scores on them."""

    def __init__(
        self, batches: Sequence[Any], measure: str, inputs: Callable[[Any], Any] | None,
        signature: tuple[int, tuple[str, ...]],
    ) -> None:  # fmt: skip
        self.batches, self.measure, self.inputs, self.signature = batches, measure, inputs, signature
        # Where a function finds the inputs, how many entries they are is not known.
        self.label, fewest = (signature[0], signature[0] + 1) if inputs is None else (-1, 2)
        if measure == "accuracy" and not all(isinstance(b, (tuple, list)) and len(b) >= fewest for b in batches):
            raise CalibrationError("accuracy needs labels: give calibration items (x, y), or measure='agreement'")

    @torch.no_grad()
    def score(self, net: Any, reference: Any) -> tuple[float, float]:
        """Per cent right, and spikes a neuron (0 for what is no SNN)."""
        right, count, spikes = 0.0, 0, 0.0
        for item in self.batches:
            args, kwargs = self._call(item)
            if isinstance(net, SNN):
                run = net.run(*args, record=True, **kwargs)
                output = run.logits
                samples = len(next(iter((*args, *kwargs.values()))))
                fired = sum(float(sent.sum()) for sent in run.sent.values())
                spikes += fired / max(1, sum(c.numel() for c in run.counts.values())) * samples
            else:
                output = net(*args, **kwargs)
            wanted = item[self.label] if self.measure == "accuracy" else answer_of(reference(*args, **kwargs))
            answer = answer_of(output)
            if not isinstance(wanted, Tensor) or wanted.shape != answer.shape:
                got = tuple(wanted.shape) if isinstance(wanted, Tensor) else type(wanted).__name__
                raise CalibrationError(
                    f"held-out labels are {got}, the network's answers {tuple(answer.shape)}: give one class a sample"
                )
            right += float((answer == wanted.to(answer.device)).float().sum()) / max(1, answer[0].numel())
            count += len(answer)
        return 100 * right / count, spikes / count

    @torch.no_grad()
    def counts(self, snn: SNN) -> dict[str, float]:
        """Spikes a sample of every layer, on one batch."""
        args, kwargs = self._call(self.batches[0])
        return {layer: float(sent.sum()) for layer, sent in snn.run(*args, record=True, **kwargs).sent.items()}

    def _call(self, item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword inputs in one item."""
        given = arguments_of(item, "held-out batch", self.inputs, self.signature)
        if isinstance(given, Mapping):
            return (), dict(given)
        return (given if isinstance(given, tuple) else (given,)), {}
