"""What `tune` and `sweep` share: conversions that are fitted on some items and measured on others."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from parspike.calibrate import Recipe, recipe_from_json
from parspike.calibrate.batches import inputs_of, labels_of, number_of, readable_again
from parspike.calibrate.recipe import Progress
from parspike.convert import convert, plan_of
from parspike.errors import CalibrationError, OptionError, ParspikeWarning, check_seed
from parspike.measure import Report, Scores, measured
from parspike.neurons import Code, Kind, Parallel, Serial, check_kind
from parspike.plan import Plan
from parspike.snn import SNN

__all__ = ["Held", "Setting", "divided", "fitted", "kinds_of", "made_by", "planned"]

Setting = tuple[int, Kind]
"""T, and the kind of neurons."""


def fitted(
    made: Plan,
    calibration: Iterable[Any],
    settings: Iterable[Setting],
    *,
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    quiet: bool = False,
) -> Iterator[tuple[SNN, float]]:
    """The conversion for each of the settings in turn, as soon as it is made, and the seconds that its fit took.

    Options: as in `convert`.
    quiet: without warnings, which only the first conversion gives otherwise, since the others would repeat them.
    """
    for number, (T, kind) in enumerate(settings):
        start = time.perf_counter()
        with warnings.catch_warnings():
            if quiet or number:
                warnings.simplefilter("ignore", ParspikeWarning)
            snn = convert(made, calibration, T, neuron=kind, recipe=recipe, inputs=inputs, seed=seed, progress=progress)
        yield snn, time.perf_counter() - start


def kinds_of(
    neuron: Kind | None, codes: Sequence[Code] | None, made: nn.Module | Plan, recipe: Any = None
) -> list[Kind]:
    """The kinds of neurons that are tried at every T: those of the codes, or the one that is asked for, in the call, in
    the plan or by the recipe; sorted and weighted by default. Raises `OptionError`."""
    own = None if recipe is None else made_by(recipe)
    if own is not None and neuron is None and codes is None:
        return [own]
    if neuron is not None:
        check_kind(neuron)
    if codes is None:
        of_plan = made.neuron if isinstance(made, Plan) and isinstance(made.neuron, Serial) else None
        asked = neuron if neuron is not None else of_plan
        return [asked] if asked is not None else [Parallel("sorted"), Parallel("weighted")]
    if isinstance(codes, str) or not isinstance(codes, Iterable) or not codes:
        raise OptionError(f"codes is {codes!r}: give the codes to try, at least one, such as ('sorted', 'weighted')")
    kinds: list[Kind] = [Parallel(code) for code in codes]
    if twice := next((kind.text for kind in kinds if kinds.count(kind) > 1), None):
        raise OptionError(f"codes has '{twice}' more than once: give each code once")
    return kinds


def made_by(recipe: Recipe | str | Mapping[str, Any]) -> Kind | None:
    """The kind of neurons that a recipe makes, where it has its own."""
    return (recipe if isinstance(recipe, Recipe) else recipe_from_json(recipe)).makes


def divided(calibration: Any, seed: int) -> tuple[list[Any], list[Any]]:
    """The calibration batches to fit on, and every fourth of them, held out. seed: for loaders that shuffle. One tensor
    and a `Dataset` are cut into four batches at least. Raises `CalibrationError` for fewer than four."""
    check_seed(seed)
    whole = number_of(calibration) if isinstance(calibration, (Tensor, Dataset)) else 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        batches = list(readable_again(calibration, max(1, min(64, whole // 4))))
    if not batches:
        raise CalibrationError("the calibration set is empty: give at least four batches of inputs")
    if len(batches) < 4:
        few = "1 calibration batch is" if len(batches) == 1 else f"{len(batches)} calibration batches are"
        raise CalibrationError(
            f"{few} too few to hold every fourth out: give 4, smaller ones if need be (x.split(n), --batch-size n)"
        )
    return [batch for number, batch in enumerate(batches) if number % 4 != 3], batches[3::4]


def planned(model: nn.Module | Plan, item: Any, inputs: Callable[[Any], Any] | None) -> Plan:
    """The plan itself, or that of a network, made with the inputs in the first item of calibration."""
    if isinstance(model, Plan):
        return model
    return plan_of(model, item, inputs)


class Held:
    """The items that conversions are measured on, beside the network itself. items: as for `measure`."""

    def __init__(self, items: Iterable[Any], made: Plan, inputs: Callable[[Any], Any] | None) -> None:
        self.items, self.made, self.inputs = items, made, inputs

    def measured(self, snn: SNN, *, sure: bool = False) -> tuple[Report, Scores]:
        """What a conversion costs and how it does. sure: see `answers_of`."""
        return measured(snn, self.items, against=self.made, inputs=self.inputs, sure=sure)

    @torch.no_grad()
    def scores(self, run: Callable[[Mapping[str, Tensor]], Any] | None = None, *, sure: bool = False) -> Scores:
        """How a network without neurons does. run: gives its output for inputs by name; None: the network itself."""
        scores = Scores()
        for item in self.items:
            env = self.env(item)
            wanted = self.made.graph.run_on(env)
            scores.add(wanted if run is None else run(env), wanted, self.labels(item), sure=sure)
        return scores

    def env(self, item: Any) -> dict[str, Tensor]:
        """The network's inputs in one item, by name."""
        return inputs_of(item, "a batch of the data that it is measured on", self.made.graph, self.inputs)

    def labels(self, item: Any) -> Tensor | None:
        """The labels in one item, None where there are none."""
        return labels_of(item, self.inputs, self.made.graph.signature)
