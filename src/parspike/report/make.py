"""`report`: measure a network and write what was found into one HTML page."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parspike.calibrate.batches import inputs_of, readable_again
from parspike.calibrate.recipe import Progress
from parspike.diagnose import Diagnosis
from parspike.errors import FileError, InputError, MissingExtraError, OptionError, check_function, check_list, path_of
from parspike.graph import with_doubles
from parspike.measure import Energy, Report
from parspike.measure.layers import measured
from parspike.plan import Plan
from parspike.report.answers import Classes, answers
from parspike.report.page import Look, page
from parspike.report.plots import plan_of
from parspike.report.timing import times
from parspike.report.trains import chosen, trains
from parspike.snn import SNN, check_converted
from parspike.sweep import Sweep
from parspike.whole import check_free, write_whole

__all__ = ["check", "report"]


def report(
    snn: SNN,
    data: Any,
    path: str | Path,
    *,
    model: nn.Module | Plan | None = None,
    layers: Sequence[str] | None = None,
    sweep: Sweep | None = None,
    diagnosis: Diagnosis | None = None,
    classes: Classes | None = None,
    picture: Callable[[Tensor], Tensor] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    energy: Energy | None = None,
    title: str | None = None,
    commands: Sequence[str] = (),
    about: Sequence[tuple[str, str]] = (),
    seconds: float = 8.0,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure a spiking network on data and write one self-contained HTML page: how well it answers, what it costs,
    where its error comes from, what it fires, and how it was made. Returns what `measure` returns.

        parspike.report(snn, items, "report.html", model=model)

    The page needs nothing but itself: figures are drawn in it, no script runs, nothing is loaded. data: as for
    `measure`; labels give the accuracy, model= the agreement and the errors by layer. model: the network that was
    converted, or its plan. layers: whose spikes are drawn, names or patterns (default: first, middle and last). sweep:
    what `parspike.sweep` returned for the same network and data: the page then shows several T. diagnosis: what
    `parspike.diagnose` returned for the network: the page then says which layer is to blame, and what helps. classes:
    their names, in order, or a dict of some by number. picture: from one input to its image, values in 0 … 1, where
    inputs are prepared images. inputs: a function from an item to the inputs. energy: picojoules of an operation.
    title: of the page. commands: lines that made the network and the page, shown as they are. about: more rows, name
    and text, for where the network comes from. seconds: for the timing. force: replace an existing file. progress:
    called as progress(what, done, total).

    Raises `FileError` where the page cannot be written, before anything is measured where that can be seen,
    `OptionError` for a pattern that matches no layer, `MissingExtraError` without matplotlib, and what `measure`
    raises.
    """
    path = path_of(path)
    check_converted(snn, "report")
    snn, model = with_doubles(snn), with_doubles(model) if isinstance(model, nn.Module) else model
    check(path, force)
    names = chosen(snn, layers)
    source = readable_again(data, name="data")
    check_list(commands, "commands", str, "['parspike convert …']")
    check_list(about, "about", tuple, "[('name', 'text')]")
    for name, value in {"progress": progress, "picture": picture, "inputs": inputs}.items():
        check_function(value, name)
    for name, value, kind in (("sweep", sweep, Sweep), ("diagnosis", diagnosis, Diagnosis)):
        if value is not None and not isinstance(value, kind):
            raise OptionError(f"{name}= must be a {kind.__name__}, got {str(value)[:80]}")
    if classes is not None and (isinstance(classes, str) or not isinstance(classes, (Sequence, Mapping))):
        raise OptionError(f"classes= must be a list of names, or a dict of some by number, got {str(classes)[:80]}")
    say = progress or (lambda what, done, total: None)
    with torch.random.fork_rng():
        made = None if model is None else plan_of(model, snn, source, inputs)
        item = next(iter(source), None)
        if item is None:
            raise InputError("the data are empty: give at least one batch of inputs")
        env = inputs_of(item, "batch 0 of the data", snn, inputs)
        found = answers(
            snn, source, reference=None if made is None else made.graph, inputs=inputs, classes=classes, progress=say
        )
        costs, _ = measured(
            snn, source, against=made, inputs=inputs, energy=energy,
            progress=lambda what, done, total: say("operations", done, total),
        )  # fmt: skip
        fired = trains(snn, env, names)
        say("time", 0, 0)
        timed = times(snn, env, model=model if isinstance(model, nn.Module) else None, seconds=seconds)
    look = Look(
        snn, costs, found, timed, fired, title=title or f"{_name(snn)} as a spiking network", sweep=sweep,
        diagnosis=diagnosis, picture=picture, commands=tuple(commands), about=tuple(about),
        day=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    write_whole(path, [page(look).encode()])
    return costs


def check(path: Path, force: bool) -> None:
    """Refuse a page that cannot be written, before minutes of measuring. Raises `FileError`, `OptionError` and
    `MissingExtraError`."""
    for module in ("matplotlib", "jinja2"):
        if find_spec(module) is None:
            raise MissingExtraError(module, extra="report")
    if path.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"'{path}': a report is a page, whose name ends in .html; a browser prints it as PDF")
    check_free(path, force, "report.html")
    if not os.path.isdir(path.parent):
        raise FileError(f"'{path}': there is no folder '{path.parent}'; make it first")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"'{path}': the folder '{path.parent}' cannot be written to")


def _name(snn: SNN) -> str:
    """The name of the network's class, where the provenance knows it."""
    made = snn.provenance.get("model")
    return made.rpartition(".")[2] if isinstance(made, str) and made else "A network"
