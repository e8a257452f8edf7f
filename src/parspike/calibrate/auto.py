"""The best recipe that held-out calibration images confirm, within a time budget."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.daqcfs import DAQCFS
from parspike.calibrate.distance import Distance
from parspike.calibrate.layerwise import ClosedForm, refit_passes
from parspike.calibrate.recipe import Draft, Recipe, recipe_to_json
from parspike.calibrate.reconstruct import Reconstruct
from parspike.calibrate.student import ByCount
from parspike.errors import CalibrationError, OptionError, ParspikeWarning
from parspike.graph import Curve
from parspike.together import Together

__all__ = ["Auto", "Part"]

FEW = 64
"""With fewer calibration images, the part held out is too small to choose a recipe by."""


@dataclass(frozen=True)
class Auto(Recipe):
    """Tries Algorithm 1, the closed form (without and with re-fitted synapses, with either weighing) and
    reconstruction, and keeps the recipe whose outputs are closest to the network's.

    Every fourth calibration image is held out, and the distance is measured on those, so the choice is never worse
    there than Algorithm 1. budget: seconds for the search. A recipe is not tried if it would exceed them, as estimated
    from the time that those before it took and from its number of products. The seconds are the smaller of wall time
    and processor time, so that other work on the machine hardly changes the choice. With fewer than 64 calibration
    images: Algorithm 1. What was tried, and its distance, goes into the provenance.

    Neurons with a state (IF, LIF) get one recipe, the closed form with weigh="own", which was nearer than "next"
    wherever both were run (docs/results.md); with fewer than 64 images its synapses stay as they are.
    """

    name: ClassVar[str] = "auto"
    budget: float = 120.0

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not isinstance(self.budget, (int, float)) or not self.budget >= 0:
            raise OptionError(f"budget must be a number of seconds of at least 0, got {self.budget!r}")

    def fit(self, draft: Draft, batches: Batches | None) -> None:
        few = batches is not None and not draft.lossless and batches.samples() < FEW
        counts = isinstance(draft.student, ByCount)
        if few and batches is not None and batches.together.rank == 0:
            alone = "Algorithm 1 (recipe='daqcfs')" if counts else "the closed form without re-fitted synapses"
            what = "hold some of them out and choose a recipe by them" if counts else "re-fit synapses on them"
            warnings.warn(
                f"{batches.samples()} calibration images are too few to {what}, so it is {alone} alone, with "
                f"thresholds of few images: give {FEW} or "
                "more, best some hundreds, or say recipe=",
                ParspikeWarning,
                stacklevel=3,
            )
        if batches is None or draft.lossless or few or not counts:
            simple = DAQCFS() if counts else ClosedForm(refit=not few, weigh="own")
            simple.fit(draft, batches)
            draft.notes["chosen"] = recipe_to_json(simple)
            return
        search = _Search(draft, batches, self.budget)
        samples = batches.samples() * 3 // 4
        refit = 3 + refit_passes(draft, samples)
        for recipe, cost in ((DAQCFS(), 2), (ClosedForm(refit=False), 2), (ClosedForm(), refit)):
            search.attempt(recipe, cost)
        if not all(isinstance(a, Curve) for a in draft.activations.values()):  # staircases know no weighing
            search.attempt(ClosedForm(weigh="own"), refit)
        start = search.nearest("closed-form").get("recipe", recipe_to_json(ClosedForm()))
        steps = Reconstruct(weigh=start["weigh"])
        # A step costs about four forward passes of its images.
        search.attempt(steps, refit + 4 * steps.steps * steps.batch_size / samples)
        search.finish(draft)


class _Search:
    """Recipes tried one after the other on drafts of their own, within the budget. best: the nearest so far."""

    def __init__(self, draft: Draft, batches: Batches, budget: float) -> None:
        self.draft, self.best, self.budget = draft, draft, budget
        self.fitted, self.held = Part(batches, held=False), Part(batches, held=True)
        self.watch = _Stopwatch(batches.together)
        self.tried: list[dict[str, Any]] = []

    @property
    def done(self) -> list[dict[str, Any]]:
        return [note for note in self.tried if "distance" in note]

    def nearest(self, name: str = "") -> dict[str, Any]:
        """The notes on the recipe closest to the network, of all recipes or of those called `name`; empty if none was
        tried."""
        notes = [note for note in self.done if name in ("", note["recipe"]["name"])]
        return min(notes, key=_nearness, default={})

    def attempt(self, recipe: Recipe, cost: float) -> None:
        """Try a recipe, and keep its result if it is the nearest so far. Skips it when the estimated time exceeds the
        budget; the first recipe is always tried. cost: passes over the calibration set."""
        note: dict[str, Any] = {"recipe": recipe_to_json(recipe)}
        spent = self.watch.seconds()
        expected = max((n["seconds"] / n["cost"] for n in self.done), default=0.0) * cost
        self.tried.append(note)
        if self.done and spent + expected > self.budget:
            note["skipped"] = "it would exceed the budget"
            return
        attempt = replace(self.draft, tensors=dict(self.draft.graph.tensors), neurons={}, notes={})
        recipe.fit(attempt, self.fitted)
        distance, agreement = Distance(attempt).to_teacher(self.held)
        note |= {"distance": distance, "agreement": agreement, "cost": cost}
        note["seconds"] = self.watch.seconds() - spent
        if note is self.nearest():
            self.best = attempt

    def finish(self, draft: Draft) -> None:
        """Copy the nearest recipe's result into the draft, and note what was tried."""
        if not math.isfinite(self.nearest()["distance"]):
            raise CalibrationError(
                "no recipe gives a finite output on the held-out calibration images: convert with recipe='max' and see "
                "what parspike.measure says of the layers"
            )
        draft.tensors.update(self.best.tensors)
        draft.neurons.update(self.best.neurons)
        # Left out, since times differ from run to run, and the same seed has to give the same file.
        draft.notes["tried"] = [{k: v for k, v in n.items() if k not in ("seconds", "cost")} for n in self.tried]
        draft.notes["chosen"] = self.nearest()["recipe"]


def _nearness(note: dict[str, Any]) -> float:
    return math.inf if math.isnan(note["distance"]) else note["distance"]


class _Stopwatch:
    """Seconds since it was made: wall time, or processor time where that is less; all processes use those of rank 0."""

    def __init__(self, together: Together) -> None:
        self.together, self.clock, self.processor = together, time.monotonic(), time.process_time()

    def seconds(self) -> float:
        return self.together.first(min(time.monotonic() - self.clock, time.process_time() - self.processor))


class Part(Batches):
    """Every fourth image of a calibration set, or the others."""

    def __init__(self, whole: Batches, *, held: bool) -> None:
        super().__init__(whole.source, whole.graph, inputs=whole.inputs, together=whole.together)
        self.whole, self.held = whole, held

    def _read(self, among: Together) -> Iterator[tuple[int, dict[str, Tensor]]]:
        self.whole.samples()
        ends = dict(zip(self.whole.sizes, accumulate(self.whole.sizes.values()), strict=True))
        for number, env in self.whole._read(among):
            out = (torch.arange(ends[number] - self.whole.sizes[number], ends[number]) % 4) == 3
            rows = out if self.held else ~out
            if bool(rows.any()):
                yield number, {name: x[rows.to(x.device)] for name, x in env.items()}
