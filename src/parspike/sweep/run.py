"""One network, many T: planned once, fitted for every T and code, each measured beside the quantised network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from parspike.calibrate import Recipe
from parspike.calibrate.batches import readable_again
from parspike.calibrate.recipe import Progress
from parspike.errors import CalibrationError, InputError, OptionError, check_function, check_seed
from parspike.measure import Report, Scores
from parspike.neurons import Code, Kind, Parallel, levels_of
from parspike.plan import Plan
from parspike.snn import SNN
from parspike.sweep.quantised import quantised
from parspike.sweep.result import Sweep, SweepRow
from parspike.trial import Held, Setting, divided, fitted, kinds_of, made_by, planned

__all__ = ["sweep"]


def sweep(
    model: nn.Module | Plan,
    calibration: Any,
    data: Any = None,
    *,
    T: Sequence[int] = (1, 2, 4, 8, 16, 32),
    codes: Sequence[Code] | None = None,
    neuron: Kind | None = None,
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    each: Callable[[SweepRow], None] | None = None,
) -> Sweep:
    """Convert a network for every T and code; measure each conversion beside the network quantised to as many levels.

        sweep = parspike.sweep(model, images, test_items, T=(1, 2, 4, 8))
        print(sweep)
        sweep.save("sweep.csv")  # or .json, .md, .tex, .png, .svg, .pdf

    The network is planned once. calibration: as for `convert`. data: the items that the rows are measured on, as for
    `measure`, with labels for the accuracy; they should not be calibration images. Without them every fourth
    calibration batch is held out for it, so at least four batches are needed. T: time-steps, each at least 1 and once.
    codes: of parallel neurons (default: "sorted" and "weighted"). A code that cannot run a T has no row there, which
    `Sweep.left_out` says. neuron: IF() or LIF() instead of parallel neurons, which then have no codes. recipe, inputs,
    seed: as in `convert`. progress: called as progress(what, done, total). each: called with every row when it is done.

    Raises `OptionError` for unknown options, and a T that none of the codes can run, `CalibrationError` for fewer than
    four batches where some are held out, `InputError` for empty data, and what `convert` raises.
    """
    if codes is not None and neuron is not None:
        raise OptionError(f"codes= is of parallel neurons, one row for each, and neuron is {neuron!r}: leave one out")
    if data is calibration and data is not None:
        raise OptionError(
            "data is the calibration set itself, on which a conversion looks better than on other images: leave data= "
            "out, and every fourth batch is held out"
        )
    check_seed(seed)
    check_function(each, "each")
    kinds = kinds_of(neuron, codes, model, recipe)
    settings, left_out = _settings(T, kinds)
    with torch.random.fork_rng():  # loaders that shuffle draw from the global random state
        torch.manual_seed(seed)
        if data is None:
            batches, items = divided(calibration, seed)
        else:
            batches, items = readable_again(calibration), readable_again(data, name="data")
        made = planned(model, _first(batches, CalibrationError, "the calibration set is"), inputs)
        _first(items, InputError, "data is")
        held = Held(items, made, inputs)
        network = held.scores()
        rows: list[SweepRow] = []
        reports: list[Report] = []
        fits = fitted(made, batches, settings, recipe=recipe, inputs=inputs, seed=seed, progress=progress)
        for (steps, kind), (snn, seconds) in zip(settings, fits, strict=True):
            report, scores = held.measured(snn)
            reports.append(report)
            rival = snn if not snn.over_time else _unconstrained(made, batches, steps, recipe, inputs, seed, progress)
            rows.append(_row(steps, kind, snn, report, scores, held.scores(quantised(rival)), seconds))
            if each is not None:
                each(rows[-1])
    last = reports[-1]  # every report has the same figures of the network itself
    return Sweep(
        tuple(rows), last.samples, _percent(network.accuracy), last.network_macs, last.network_energy_pj,
        network.classes, left_out,
    )  # fmt: skip


def _first(items: Iterable[Any], error: type[Exception], what: str) -> Any:
    for item in items:
        return item
    raise error(f"{what} empty: give at least one batch of inputs")


def _settings(steps: Any, kinds: Sequence[Kind]) -> tuple[list[Setting], tuple[str, ...]]:
    """Every T with the kinds of neurons that can run it, the smallest first, and a line about each that cannot."""
    if isinstance(steps, (str, bytes)) or not isinstance(steps, Iterable):
        raise OptionError(f"T is {steps!r}: give the time-steps to try, such as (1, 2, 4, 8)")
    steps = list(steps)
    if not steps:
        raise OptionError("T is empty: give the time-steps to try, such as (1, 2, 4, 8)")
    for T in steps:
        if isinstance(T, bool) or not isinstance(T, int) or T < 1:
            raise OptionError(f"T holds {T!r}: give whole numbers of at least 1, such as (1, 2, 4, 8)")
    if twice := next((T for T in steps if steps.count(T) > 1), None):
        raise OptionError(f"T holds {twice} more than once: give each number of time-steps once")
    settings, left_out = [], []
    for T in sorted(steps):
        refusals: list[OptionError] = []
        for kind in kinds:
            try:
                kind.check(T)
            except OptionError as error:
                refusals.append(error)
                left_out.append(f"{kind.text}, T = {T}: {error}")
            else:
                settings.append((T, kind))
        if len(refusals) == len(kinds):
            raise refusals[0]
    return settings, tuple(left_out)


def _unconstrained(
    made: Plan, batches: Iterable[Any], T: int, recipe: Any, inputs: Any, seed: int, progress: Progress | None
) -> SNN:
    """Parallel neurons with the T levels that neurons with a state can send at most: what their firing loses is the
    difference. A recipe that makes neurons of its own is replaced by the default one."""
    recipe = None if recipe is not None and made_by(recipe) is not None else recipe
    setting = T, Parallel("sorted")
    ((snn, _),) = fitted(
        replace(made, neuron=None), batches, [setting], recipe=recipe, inputs=inputs, seed=seed, progress=progress,
        quiet=True,
    )  # fmt: skip
    return snn


def _row(T: int, kind: Kind, snn: SNN, report: Report, scores: Scores, rival: Scores, seconds: float) -> SweepRow:
    return SweepRow(
        T=T,
        code=kind.text,
        levels=max((n.levels_in(T) for n in snn.neurons().values()), default=levels_of(T, kind.text)),
        accuracy=_percent(scores.accuracy),
        agreement=_percent(scores.agreement),
        error=_percent(scores.error),
        quantised_accuracy=_percent(rival.accuracy),
        quantised_agreement=_percent(rival.agreement),
        quantised_error=_percent(rival.error),
        spikes=report.spikes_per_neuron,
        synops=report.synops,
        energy_pj=report.energy_pj,
        seconds=seconds,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
