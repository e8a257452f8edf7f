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
from parspike.calibrate.distance import Distance, class_scores
from parspike.calibrate.layerwise import TOO_FEW, ClosedForm, freed
from parspike.calibrate.recipe import Draft, Recipe, recipe_from_json, recipe_to_json
from parspike.calibrate.reconstruct import Reconstruct
from parspike.calibrate.student import ByCount
from parspike.errors import CalibrationError, OptionError, ParspikeWarning
from parspike.graph import Curve, Quantised
from parspike.graph.ops import ENCODE
from parspike.neurons import levels_of
from parspike.together import Together

__all__ = ["Auto", "Part"]

FEW = 64
"""With fewer calibration images, the part held out is too small to choose a recipe by."""
PASSES, UNFITTED, STEP_PASSES = 8.0, 4.0, 4.0
"""Time of a closed form in forward passes of its images, with and without re-fitted synapses, and of a gradient step in
those of its batch: estimates, until the first closed form was timed (benchmarks/fit_cost.py)."""
MANY = 10
"""Outputs from which on (B, K) is taken to be scores of classes, whose largest should not always be the same one."""
MARGIN = 1.3
"""Estimates are multiplied by it."""
ERRORS = 2.0
"""Standard errors of the mean difference by which a later result must be nearer (benchmarks/choosing.py)."""
ENOUGH = 1e-3
"""A distance from which no gradient steps are taken: some 3 % of the outputs. They are what takes most of the seconds,
and at many levels they bring nothing (docs/results.md): on a small network they went on for two minutes."""


@dataclass(frozen=True)
class Auto(Recipe):
    """The closed form, in the variant that held-out calibration images confirm; then gradient steps, if there is time.

    It begins with the variant that is best on most networks: free steps where the code and the number of levels allow
    them (`ClosedForm`), and synapses as they are where encoders stand everywhere (`encode=`). Then come re-fitted
    synapses there, synapses fitted to all rows, equal steps, the other weighing, and Algorithm 1, then `Reconstruct`
    from the best of them. Every fourth calibration image is held out. A later result takes the place of the one kept
    where its outputs are nearer to the network's on those images by more than two standard errors of the difference,
    image by image: on few images the nearest of several is often so by chance, and the first variants are better on
    others (docs/results.md). At last a closed form that was chosen is fitted again on all images, which is kept if it
    is nearer still.

    budget: seconds for the search. Where they do not suffice for the first closed form, it is fitted on fewer images,
    64 at least. A later recipe is left out if it would exceed them, as estimated from the times before it, and gradient
    steps where the outputs are as near as `ENOUGH` without them. The seconds are the smaller of wall time and processor
    time, so that other work on the machine hardly changes the choice. What was tried, on how many images, its distance,
    and what was left out, goes into the provenance under "search". With fewer than 64 calibration images: the closed
    form, with fewer than 16, or with encoders, with weigh="own" and without re-fitted synapses; Algorithm 1 where all
    activations are QCFS.

    Neurons with a state (IF, LIF) get one recipe, the closed form with weigh="own", which was nearer than "next"
    wherever both were run (docs/results.md); with fewer than 64 images its synapses stay as they are.
    """

    name: ClassVar[str] = "auto"
    budget: float = 120.0

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not isinstance(self.budget, (int, float)) or not self.budget > 0:
            raise OptionError(f"budget must be a number of seconds above 0, got {self.budget!r}")

    def fit(self, draft: Draft, batches: Batches | None) -> None:
        few = batches is not None and not draft.lossless and batches.samples() < FEW
        counts = isinstance(draft.student, ByCount)
        # Not Algorithm 1, which keeps the largest value that few images gave: what is above it on others is clipped at
        # every T. Without re-fitted biases not weigh="next" either, which needs them.
        enough = few and counts and batches is not None and batches.samples() >= TOO_FEW and not _encoded(draft)
        simple: Recipe = ClosedForm() if enough else ClosedForm(refit=not few, weigh="own")
        known = all(isinstance(a, Quantised) for a in draft.activations.values())
        if counts and (batches is None or known):  # thresholds of the network's own are no largest values
            simple = DAQCFS()
        if few and batches is not None and batches.together.rank == 0:
            closed = "the closed form" if enough else "the closed form without re-fitted synapses"
            alone = closed if isinstance(simple, ClosedForm) else "Algorithm 1 (recipe='daqcfs')"
            what = "hold some of them out and choose a recipe by them" if counts else "re-fit synapses on them"
            warnings.warn(
                f"{batches.samples()} calibration images are too few to {what}, so it is {alone} alone, with "
                f"thresholds of few images: give {FEW} or more, best some hundreds, or say recipe=",
                ParspikeWarning,
                stacklevel=3,
            )
        if batches is None or draft.lossless or few or not counts:
            simple.fit(draft, batches)
            draft.notes["chosen"] = recipe_to_json(simple)
            return
        search = _Search(draft, batches, self.budget)
        first, *others = _variants(draft)
        search.begin(first)
        for recipe in others:
            search.attempt(recipe)
        search.attempt(DAQCFS())
        search.improve()
        search.refit()
        search.finish(draft)


def _variants(draft: Draft) -> list[ClosedForm]:
    """The closed forms to try, the one first that is best on most networks."""
    nodes = draft.graph.by_name
    lines = [n for n, a in draft.activations.items() if not isinstance(a, Curve) and nodes[n].target != ENCODE]
    if not lines:  # staircases and encoders know no weighing, and staircases have free steps in any case
        return [ClosedForm(refit=False), ClosedForm()] if _encoded(draft) else [ClosedForm()]
    free = any(freed(levels_of(draft.steps_of(name), draft.code), draft.code) for name in lines)
    first = [ClosedForm(free=free), ClosedForm(free=free, all_rows=True)]
    equal = [*([ClosedForm()] if free else []), ClosedForm(weigh="own")]
    return [*first, *equal, *([ClosedForm(refit=False)] if _encoded(draft) else [])]


def _encoded(draft: Draft) -> bool:
    """Whether encoders stand everywhere. Behind a norm of a language model, synapses that were fitted one after the
    other may end farther from the network than those that were left alone."""
    return any(draft.graph.by_name[name].target == ENCODE for name in draft.activations)


class _Search:
    """Recipes tried one after the other on drafts of their own, within the budget. best, kept, distances: the draft
    that is kept so far, the notes on it, and how far every held-out image's outputs are (N,). start: the notes on the
    closed form among those."""

    def __init__(self, draft: Draft, batches: Batches, budget: float) -> None:
        self.draft, self.best, self.budget, self.whole = draft, draft, budget, batches
        self.fitted, self.held = Part(batches, held=False), Part(batches, held=True)
        self.watch = _Stopwatch(batches.together)
        self.tried: list[dict[str, Any]] = []
        self.closed, self.images = 0.0, 0
        self.kept, self.start = dict[str, Any](), dict[str, Any]()
        self.distances: Tensor | None = None

    def begin(self, recipe: ClosedForm) -> None:
        """The first closed form, on as many images as the budget allows."""
        images = self.fitted.images()
        expected = self._pass() * _passes(recipe) * images * MARGIN
        share = min(1.0, max(self.budget / max(expected, 1e-9), FEW / images))
        if share < 1:
            self.fitted = Part(self.whole, held=False, share=share)
        begun = self.watch.seconds()
        self._run(recipe)
        self.closed = (self.watch.seconds() - begun) * PASSES / _passes(recipe)
        if (used := self.fitted.images()) < images and self.whole.together.rank == 0:
            enough = max(10, round(MARGIN * expected, -1))
            warnings.warn(
                f"{self.budget:g} seconds are too few to fit on all images, so it is {used} of {images}: "
                f"recipe=parspike.Auto(budget={enough:.0f}), or --budget {enough:.0f}, takes them all",
                ParspikeWarning,
                stacklevel=4,
            )

    def attempt(self, recipe: ClosedForm | DAQCFS) -> None:
        """Try a recipe, and keep its result if it is the nearest so far; leave it out where it would exceed the
        budget."""
        expected = self.closed * (_passes(recipe) if isinstance(recipe, ClosedForm) else 3.0) / PASSES
        if self._fits(recipe, expected):
            self._run(recipe)

    def improve(self) -> None:
        """Gradient steps from the best closed form."""
        start = self.start["recipe"]
        recipe = Reconstruct(weigh=start["weigh"], free=start["free"])
        if self.start["distance"] <= ENOUGH:
            self.tried.append({"recipe": recipe_to_json(recipe), "skipped": f"the distance is {ENOUGH:g} or less"})
            return
        passes = STEP_PASSES * recipe.steps * recipe.batch_size / max(1, self.fitted.images())
        if self._fits(recipe, self.closed * (1 + passes / PASSES)):
            self._run(recipe)

    def refit(self) -> None:
        """Fit the closed form that was chosen again, on the held-out images too, if there is time: kept where it is
        nearer on them than before."""
        recipe = recipe_from_json(self.kept["recipe"])
        if not isinstance(recipe, ClosedForm) or self.fitted.share < 1:
            return
        if not self._in_time(self.closed * _passes(recipe) / PASSES * 4 / 3):
            return
        attempt = self._fresh()
        recipe.fit(attempt, self.whole)
        distances, _ = Distance(attempt).to_teacher(self.held)
        if float(distances.mean()) <= self.kept["distance"]:
            self.best, self.images = attempt, self.whole.count

    def _in_time(self, expected: float) -> bool:
        return self.whole.together.first(self.watch.seconds() + expected * MARGIN <= self.budget)

    def _fresh(self) -> Draft:
        return replace(self.draft, tensors=dict(self.draft.graph.tensors), neurons={}, notes={})

    def _fits(self, recipe: Recipe, expected: float) -> bool:
        fits = self._in_time(expected)
        if not fits:
            self.tried.append({"recipe": recipe_to_json(recipe), "skipped": "it would exceed the budget"})
        return fits

    def _run(self, recipe: Recipe) -> None:
        note: dict[str, Any] = {"recipe": recipe_to_json(recipe)}
        self.tried.append(note)
        attempt = self._fresh()
        recipe.fit(attempt, self.fitted)
        distances, agreement = Distance(attempt).to_teacher(self.held)
        note |= {"images": self.fitted.images(), "distance": float(distances.mean()), "agreement": agreement}
        if self.distances is None or _nearer(distances, self.distances):
            self.best, self.kept, self.distances, self.images = attempt, note, distances, note["images"]
            if isinstance(recipe, ClosedForm):
                self.start = note

    @torch.no_grad()
    def _pass(self) -> float:
        """Seconds that the network takes for one image, from the second run of the first batch."""
        seconds = 0.0
        for env in self.whole:
            count = len(next(iter(env.values())))
            for _ in range(2):
                begun = self.watch.own()
                self.draft.graph.run_on(env)
                seconds = (self.watch.own() - begun) / count
            break
        return self.whole.together.first(seconds)

    def finish(self, draft: Draft) -> None:
        """Copy the nearest recipe's result into the draft, and note what was tried."""
        if not math.isfinite(self.kept["distance"]):
            raise CalibrationError(
                "no recipe gives a finite output on the held-out calibration images: convert with recipe='max' and see "
                "what parspike.measure says of the layers"
            )
        self._warn_of_one_answer()
        draft.tensors.update(self.best.tensors)
        draft.neurons.update(self.best.neurons)
        draft.notes["tried"] = self.tried
        draft.notes["chosen"], draft.notes["images"] = self.kept["recipe"], self.images

    @torch.no_grad()
    def _warn_of_one_answer(self) -> None:
        """Warn where the network itself calls every held-out image the same, one of many classes."""
        parts: list[tuple[Tensor, ...]] = []
        for env in self.held:
            scores = class_scores(self.draft.graph.run_on(env))
            if scores is None or scores.shape[1] < MANY:
                parts.append((torch.zeros(0),))
            else:
                parts.append((scores.argmax(1).flatten().unique().cpu(),))
        answers = torch.cat([part.float() for (part,) in self.held.gather(parts)]).unique()
        if len(answers) == 1 and self.whole.varied and self.whole.together.rank == 0:
            warnings.warn(
                f"the network itself gives the answer {int(answers)} to all {self.held.images()} calibration "
                "images that were held out: are they of one class, or prepared otherwise (normalisation, order of "
                "channels) than the network expects?",
                ParspikeWarning,
                stacklevel=6,  # one frame is that of no_grad
            )


def _passes(recipe: ClosedForm) -> float:
    """Time of a closed form in forward passes of its images."""
    return PASSES if recipe.refit else UNFITTED


def _nearer(distances: Tensor, kept: Tensor) -> bool:
    """Whether distances (N,) of the same images are smaller than those of the result that is kept by more than
    `ERRORS` standard errors of the mean difference."""
    if not bool(kept.isfinite().all()) or not bool(distances.isfinite().all()):
        return bool(distances.isfinite().sum() > kept.isfinite().sum())
    gained = kept - distances
    error = gained.std() / math.sqrt(len(gained)) if len(gained) > 1 else 0.0
    return bool(gained.mean() > ERRORS * error)


class _Stopwatch:
    """Seconds since it was made: wall time, or processor time where that is less; all processes use those of rank 0."""

    def __init__(self, together: Together) -> None:
        self.together, self.clock, self.processor = together, time.monotonic(), time.process_time()

    def own(self) -> float:
        """The same of this process alone."""
        return min(time.monotonic() - self.clock, time.process_time() - self.processor)

    def seconds(self) -> float:
        return self.together.first(self.own())


class Part(Batches):
    """Every fourth image of a calibration set, or the others. share: of those of every batch, the first so many."""

    def __init__(self, whole: Batches, *, held: bool, share: float = 1.0) -> None:
        super().__init__(whole.source, whole.graph, inputs=whole.inputs, together=whole.together)
        self.whole, self.held, self.share = whole, held, share

    def images(self) -> int:
        """How many images it has, without reading them."""
        return sum(int(rows.sum()) for rows in self._taken().values())

    def _taken(self) -> dict[int, Tensor]:
        """Which samples of every batch belong to it, by the number of the batch."""
        self.whole.samples()
        ends = dict(zip(self.whole.sizes, accumulate(self.whole.sizes.values()), strict=True))
        taken = {}
        for number, size in self.whole.sizes.items():
            rows = (torch.arange(ends[number] - size, ends[number]) % 4 == 3) == self.held
            if self.share < 1:
                rows &= rows.cumsum(0) <= math.ceil(self.share * int(rows.sum()))
            taken[number] = rows
        return taken

    def _read(self, among: Together) -> Iterator[tuple[int, dict[str, Tensor]]]:
        taken = self._taken()
        for number, env in self.whole._read(among):
            rows = taken[number]
            if bool(rows.any()):
                yield number, {name: x[rows.to(x.device)] for name, x in env.items()}
