"""`parspike export`: a converted network as a file of another format, read back and compared.

torch is imported inside it, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from parspike.cli import checks, console
from parspike.cli.options import DATA, HOW, IMAGES, Force, ImageOptions, Json, Split, spread, starting

__all__ = ["export"]


@spread
def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what `parspike convert` wrote")],
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="the file to write; its ending says the format: net.nir, net.onnx, net.pt2"),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help=f"run network and file on these (default: noise): {IMAGES}",
            autocompletion=starting("digits", "photos"),
            rich_help_panel=DATA,
        ),
    ] = None,
    as_if: Annotated[
        bool,
        typer.Option("--as-if", help="write a parallel network's twin of IF neurons", rich_help_panel=HOW),
    ] = False,
    weights: Annotated[
        int | None,
        typer.Option(
            min=2, max=16, help="of an ONNX file, bits of its weights: whole numbers alone", rich_help_panel=HOW
        ),
    ] = None,
    dt: Annotated[
        float, typer.Option(help="seconds of one time-step, as the file states them", rich_help_panel=HOW)
    ] = 1.0,
    as_convolutions: Annotated[
        bool,
        typer.Option(
            "--as-convolutions",
            help="write pools and scales as convolutions, which more programs read",
            rich_help_panel=HOW,
        ),
    ] = False,
    split: Split = None,
    limit: Annotated[int, typer.Option(min=1, help="take at most this many of the images", rich_help_panel=DATA)] = 32,
    *,
    options: ImageOptions,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a converted network as a file for other programs, read it back, and say how the two runs compare."""
    checks.file(file)
    checks.exported(Path(out), force)
    if data is not None:
        checks.images(data, split)
        options.preprocessing()
    import torch

    import parspike
    from parspike.cli.images import explained, inputs_of
    from parspike.cli.preprocess import remembered

    snn = parspike.load(file)
    example, images = None, None
    if data is not None:
        preprocess = options.preprocessing(remembered(snn))
        images = options.open(data, preprocess, inputs=inputs_of(snn), split=split, prefer="test", limit=limit)
        with explained(images):
            batches = list(images.inputs())
        if images.several:
            example = {name: torch.cat([x[name] for x in batches]) for name in batches[0]}
        else:
            example = torch.cat(batches)
    start = time.perf_counter()
    with explained(images):
        options_of = {"weights": weights, "as_if": as_if, "dt": dt, "as_convolutions": as_convolutions}
        made = parspike.export(snn, out, example=example, force=force, **options_of)
    answer = {**made.to_json(), "seconds": round(time.perf_counter() - start, 3)}
    answer["skipped"] = console.left_out(images.broken if images else [])
    console.result(json, answer, str(made))
