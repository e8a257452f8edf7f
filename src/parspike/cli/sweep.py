"""`parspike sweep`: every T and code in one table, beside the network quantised to as many levels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from parspike.cli import checks, console
from parspike.cli.options import (
    DATA,
    HOW,
    ON_DISK,
    OUT,
    TABLES,
    Best,
    Budget,
    CalibrationImages,
    DataOption,
    Fast,
    Force,
    Json,
    Limit,
    NeuronOption,
    RecipeOption,
    RunOptions,
    Spec,
    Split,
    Weights,
    kind_of,
    recipe_of,
    spread,
    starting,
)
from parspike.errors import OptionError

__all__ = ["sweep"]


@spread
def sweep(
    spec: Spec,
    data: DataOption,
    T: Annotated[
        str, typer.Option("-T", "--T", metavar="T,T,…", help="time-steps, with commas", rich_help_panel=HOW)
    ] = "1,2,4,8,16,32",
    codes: Annotated[
        str | None,
        typer.Option(
            metavar="CODE,…",
            help="of parallel neurons, with commas: sorted, weighted, onset (default: sorted,weighted)",
            autocompletion=starting("sorted,weighted", "sorted", "weighted", "onset"),
            rich_help_panel=HOW,
        ),
    ] = None,
    neuron: NeuronOption = "parallel",
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help=f"images to fit on, all of --data are then for measuring: {ON_DISK} (default: --data, of which every "
            "fourth batch is held out and measured)",
            autocompletion=starting("digits", "photos"),
            rich_help_panel=DATA,
        ),
    ] = None,
    out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help=f"write a table or a figure, by the ending {', '.join(TABLES)} (repeatable)",
            rich_help_panel=OUT,
        ),
    ] = None,
    weights: Weights = None,
    recipe: RecipeOption = None,
    budget: Budget = None,
    fast: Fast = False,
    best: Best = False,
    calibration_images: CalibrationImages = 1024,
    split: Split = None,
    limit: Limit = None,
    *,
    options: RunOptions,
    force: Force = False,
    json: Json = False,
) -> None:
    """Convert for every T and code, and measure each beside the network quantised to as many levels."""
    files = list(dict.fromkeys(out or ()))
    checks.tables(files, force)
    steps = checks.steps(T)
    chosen = None if codes is None else checks.codes(codes)
    checks.network(spec, weights)
    checks.images(data, split)
    if calibration is not None:
        checks.images(calibration, None, "--calibration")
    elif limit is not None:
        raise OptionError(
            f"--limit {limit} says how many images of --data are measured beside --calibration DATA: give both, or "
            "--calibration-images for how many of --data are taken in all"
        )
    checks.recipe(recipe)
    seconds = checks.budget(recipe, budget, fast, best, neuron=neuron)
    checks.neuron(neuron, codes=codes)
    options.preprocessing()
    import parspike
    from parspike.cli.images import check_apart, explained, warn_of_few
    from parspike.cli.spec import load

    network = load(spec, weights)
    preprocess = options.preprocessing(network.preprocess)
    fit: dict[str, Any] = {"prefer": "train", "limit": calibration_images, "shuffle": True}
    if calibration is None:
        images, items = options.open(data, preprocess, inputs=network.inputs, split=split, parts=4, **fit), None
    else:
        images = options.open(calibration, preprocess, inputs=network.inputs, **fit)
        items = options.open(data, preprocess, inputs=network.inputs, split=split, prefer="test", limit=limit)
        check_apart(calibration, images, data, items)
    with console.progress("sweep") as progress, explained(images):
        found = parspike.sweep(
            options.placed(network.model),
            images,
            items,
            T=steps,
            codes=chosen,
            neuron=kind_of(neuron),
            recipe=recipe_of(recipe, None, seconds),
            seed=options.seed,
            progress=progress,
            each=lambda row: console.note(str(row)),
        )
    warn_of_few(items or images, data, found.classes)
    for file in files:
        found.save(file, force=force)
    answer = {
        "spec": spec,
        **found.to_dict(),
        "written": files,
        "preprocessing": preprocess.to_json(),
        "skipped": console.left_out([*images.broken, *(items.broken if items else [])]),
    }
    console.result(json, answer, "\n".join((str(found), *(f"written: {Path(file)}" for file in files))))
