"""`parspike tune`: the fewest time-steps, and the code, within a wanted loss."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from parspike.cli import checks, console
from parspike.cli.options import (
    HOW,
    OUT,
    Best,
    Budget,
    CalibrationImages,
    DataOption,
    Fast,
    Force,
    Json,
    NeuronOption,
    RecipeOption,
    RunOptions,
    Spec,
    Split,
    Weights,
    kind_of,
    recipe_of,
    spread,
)

__all__ = ["tune"]


class Code(Enum):
    """Spike codes, as an option that may be repeated needs them."""

    SORTED = "sorted"
    WEIGHTED = "weighted"
    ONSET = "onset"


@spread
def tune(
    spec: Spec,
    data: DataOption,
    drop: Annotated[
        float, typer.Option(min=0, max=100, help="per cent points of the measure that may be lost", rich_help_panel=HOW)
    ] = 1.0,
    measure: Annotated[
        Literal["agreement", "accuracy", "values", "both"] | None,
        typer.Option(
            help="agreement with the network, accuracy (needs labels), values (R² of the outputs) or both; by default "
            "what the outputs are decides",
            rich_help_panel=HOW,
        ),
    ] = None,
    neuron: NeuronOption = "parallel",
    code: Annotated[
        list[Code] | None,
        typer.Option(
            help="of parallel neurons, to try (repeatable; default: sorted and weighted)", rich_help_panel=HOW
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="largest number of time-steps to try", rich_help_panel=HOW)] = 32,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="then give single layers fewer steps", rich_help_panel=HOW)
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="write what was chosen", rich_help_panel=OUT),
    ] = None,
    weights: Weights = None,
    recipe: RecipeOption = None,
    budget: Budget = None,
    fast: Fast = False,
    best: Best = False,
    calibration_images: CalibrationImages = 1024,
    split: Split = None,
    *,
    options: RunOptions,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find the fewest time-steps that keep the network's answers or values, on calibration images held out."""
    if output is not None:
        checks.output(Path(output), force)
    checks.network(spec, weights)
    checks.images(data, split)
    checks.recipe(recipe)
    seconds = checks.budget(recipe, budget, fast, best, neuron=neuron)
    checks.neuron(neuron, code=code[0].value if code else None, mixed=mixed)
    options.preprocessing()
    import parspike
    from parspike.cli.images import explained
    from parspike.cli.preprocess import remember
    from parspike.cli.spec import load

    network = load(spec, weights)
    preprocess = options.preprocessing(network.preprocess)
    fit: dict[str, Any] = {"prefer": "train", "limit": calibration_images, "shuffle": True}
    images = options.open(data, preprocess, inputs=network.inputs, split=split, parts=4, **fit)
    with console.progress("tuning") as progress, explained(images):
        found = parspike.tune(
            options.placed(network.model),
            images,
            drop=drop,
            measure=measure,
            neuron=kind_of(neuron),
            codes=[cast(Any, each.value) for each in code] if code else None,
            most=most,
            mixed=mixed,
            recipe=recipe_of(recipe, None, seconds),
            seed=options.seed,
            progress=progress,
        )
    if output is not None and found.snn is not None:
        remember(found.snn, spec, weights, data, preprocess, images.largest)
        found.snn.save(output, force=force)
    console.result(json, found.to_dict(), str(found))
    if found.chosen is None:
        raise typer.Exit(1)
