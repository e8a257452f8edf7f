"""`parspike tune`: the fewest time-steps, and the code, within a wanted loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from parspike.cli import commands, console

__all__ = ["tune"]


def tune(
    spec: commands.Spec,
    data: Annotated[str, typer.Option(help=f"for calibration and choice: {commands.Data}")],
    drop: Annotated[float, typer.Option(help="per cent points of the measure that may be lost")] = 1.0,
    measure: Annotated[
        str | None,
        typer.Option(
            help="agreement with the network, accuracy (needs labels), values (R² of the outputs) or both; by default "
            "what the outputs are decides"
        ),
    ] = None,
    code: Annotated[list[str] | None, typer.Option(help="sorted, weighted or onset (repeatable)")] = None,
    most: Annotated[int, typer.Option(help="largest number of time-steps to try")] = 32,
    mixed: Annotated[bool, typer.Option("--mixed", help="then give single layers fewer steps")] = False,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="write what was chosen")] = None,
    weights: commands.Weights = None,
    recipe: Annotated[str | None, typer.Option(help="how to calibrate: a name, or a recipe as JSON")] = None,
    calibration_images: Annotated[int, typer.Option(help="take at most this many of the images")] = 1024,
    split: commands.Split = None,
    shape: commands.Shape = None,
    size: commands.Side = None,
    crop: commands.Crop = None,
    mean: commands.Mean = None,
    std: commands.Std = None,
    batch_size: commands.BatchSize = 32,
    skip_broken: commands.SkipBroken = False,
    seed: commands.Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="write over FILE if it exists")] = False,
    json: commands.Json = False,
) -> None:
    """Find the fewest time-steps that keep what the network says, on calibration images held out."""
    import parspike
    from parspike.cli.data import open_images

    if output is not None:
        commands.check_output(Path(output), force)
    network = commands.load(spec, weights)
    preprocess = commands.preprocessing(network.preprocess, shape, size, crop, mean, std)
    images = open_images(
        data, preprocess, split=split, prefer="train", batch_size=batch_size, limit=calibration_images,
        shuffle=True, seed=seed, skip_broken=skip_broken,
    )  # fmt: skip
    with console.progress("tuning") as progress:
        found = parspike.tune(
            network.model,
            images,
            drop=drop,
            measure=cast(Any, measure),
            codes=cast(Any, code or ["sorted", "weighted"]),
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
