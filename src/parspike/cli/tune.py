"""`parspike tune`: the fewest time-steps, and the code, within a wanted loss."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from parspike.cli import commands, console
from parspike.cli.commands import HOW, OUT

__all__ = ["tune"]


class Code(Enum):
    """Spike codes, as an option that may be repeated needs them."""

    SORTED = "sorted"
    WEIGHTED = "weighted"
    ONSET = "onset"


def tune(
    spec: commands.Spec,
    data: commands.DataOption,
    drop: Annotated[
        float, typer.Option(min=0, help="per cent points of the measure that may be lost", rich_help_panel=HOW)
    ] = 1.0,
    measure: Annotated[
        Literal["agreement", "accuracy", "values", "both"] | None,
        typer.Option(
            help="agreement with the network, accuracy (needs labels), values (R² of the outputs) or both; by default "
            "what the outputs are decides",
            rich_help_panel=HOW,
        ),
    ] = None,
    code: Annotated[
        list[Code] | None,
        typer.Option(help="to try (repeatable; default: sorted and weighted)", rich_help_panel=HOW),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="largest number of time-steps to try", rich_help_panel=HOW)] = 32,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="then give single layers fewer steps", rich_help_panel=HOW)
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="write what was chosen", rich_help_panel=OUT),
    ] = None,
    weights: commands.Weights = None,
    recipe: commands.Recipe = None,
    calibration_images: commands.CalibrationImages = 1024,
    split: commands.Split = None,
    shape: commands.Shape = None,
    size: commands.Side = None,
    crop: commands.Crop = None,
    mean: commands.Mean = None,
    std: commands.Std = None,
    batch_size: commands.BatchSize = 32,
    skip_broken: commands.SkipBroken = False,
    seed: commands.Seed = 0,
    force: commands.Force = False,
    json: commands.Json = False,
) -> None:
    """Find the fewest time-steps that keep what the network says, on calibration images held out."""
    if output is not None:
        commands.check_output(Path(output), force)
    commands.check_network(spec, weights)
    commands.check_images(data, split)
    commands.check_recipe(recipe)
    commands.preprocessing(None, shape, size, crop, mean, std)
    import parspike
    from parspike.cli.data import open_images

    network = commands.load(spec, weights)
    preprocess = commands.preprocessing(network.preprocess, shape, size, crop, mean, std)
    images = open_images(
        data, preprocess, split=split, prefer="train", batch_size=batch_size, limit=calibration_images,
        shuffle=True, seed=seed, skip_broken=skip_broken,
    )  # fmt: skip
    with console.progress("tuning") as progress, commands.explained(images):
        found = parspike.tune(
            network.model,
            images,
            drop=drop,
            measure=measure,
            codes=[cast(Any, each.value) for each in code or (Code.SORTED, Code.WEIGHTED)],
            most=most,
            mixed=mixed,
            recipe=commands.recipe_of(recipe, None),
            seed=seed,
            progress=progress,
        )
    if output is not None and found.snn is not None:
        found.snn.provenance["command_line"] = {
            "spec": spec, "weights": weights, "data": data, "preprocessing": preprocess.to_json()
        }  # fmt: skip
        found.snn.save(output, force=force)
    console.result(json, found.to_dict(), str(found))
    if found.chosen is None:
        raise typer.Exit(1)
