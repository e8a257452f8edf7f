"""`parspike lower`: a converted network in the terms of a chip, compared with what it was.

torch is imported inside it, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from parspike.cli import checks, console
from parspike.cli.options import DATA, HOW, IMAGES, OUT, Force, ImageOptions, Json, Split, spread, starting

__all__ = ["lower"]


@spread
def lower(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what `parspike convert` wrote")],
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="the file to write, chip.parspike", rich_help_panel=OUT),
    ],
    data: Annotated[
        str,
        typer.Option(
            help=f"the inputs' range, and the comparison: {IMAGES}",
            autocompletion=starting("digits", "photos"),
            rich_help_panel=DATA,
        ),
    ],
    to: Annotated[
        Literal["integers", "unit"],
        typer.Option(
            help="integers: whole numbers alone; unit: spikes of 0 and 1, every scale in the weights behind",
            rich_help_panel=HOW,
        ),
    ] = "integers",
    weights: Annotated[int, typer.Option(min=2, max=16, help="bits of a weight", rich_help_panel=HOW)] = 8,
    inputs: Annotated[int, typer.Option(min=2, max=16, help="bits of an input", rich_help_panel=HOW)] = 8,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--nearest",
            help="fit synapses to their rounded inputs, weights to each other's rounding; or round to the nearest",
            rich_help_panel=HOW,
        ),
    ] = True,
    proof: Annotated[
        bool,
        typer.Option("--proof", help="run 4 images on spikes of 0 and 1, check every number", rich_help_panel=HOW),
    ] = False,
    split: Split = None,
    limit: Annotated[int, typer.Option(min=1, help="take at most this many of the images", rich_help_panel=DATA)] = 256,
    *,
    options: ImageOptions,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a converted network in whole numbers, or with spikes of 0 and 1, and compare it with what it was."""
    checks.file(file)
    checks.output(Path(output), force)
    checks.images(data, split)
    options.preprocessing()
    import torch

    import parspike
    from parspike.cli.images import explained, inputs_of
    from parspike.cli.preprocess import remembered
    from parspike.lower import integers, prove, unit

    snn = parspike.load(file)
    images = options.open(
        data, options.preprocessing(remembered(snn)), inputs=inputs_of(snn), split=split, prefer="train", limit=limit
    )
    with explained(images):
        batches = list(images.inputs())
    made = unit(snn) if to == "unit" else integers(snn, batches, weights=weights, inputs=inputs, refit=refit)
    scores = parspike.Scores()
    with torch.no_grad():
        for x in batches:
            scores.add(*(network(**x) if images.several else network(x) for network in (made, snn)))
    seen = None
    if proof and to == "integers":
        if images.several:
            seen = prove(made, **{name: x[:4] for name, x in batches[0].items()})
        else:
            seen = prove(made, batches[0][:4])
    made.save(output, force=force)
    answer = {
        "output": output, "to": to, "images": len(images) - len(images.broken), "agreement": scores.agreement,
        "error": scores.error, "bytes": Path(output).stat().st_size,
        "skipped": console.left_out(images.broken),
    }  # fmt: skip
    text = {
        "written": f"{output} ({answer['bytes'] / 1e3:,.0f} kB)",
        "compared with": f"the network before, {answer['images']} images",
        "agreement": None if scores.agreement is None else f"{100 * scores.agreement:.1f} %",
        "relative error": None if scores.error is None else f"{float(f'{100 * scores.error:.2g}'):g} %",
    }
    if to == "integers":
        answer |= {"weights": weights, "inputs": inputs, "refit": refit, "largest": made.provenance["largest"]}
        kept = "float32" if all(t.dtype != torch.float64 for t in made.tensors().values()) else "float64"
        text["sums"] = f"below {made.provenance['largest'] + 1:,}; {kept} holds them exactly"
        answer["real"] = made.provenance.get("real", [])
        if answer["real"]:
            text["in real numbers"] = f"{', '.join(answer['real'])}, of the answer"
    if seen is not None:
        answer["proof"] = {"steps": seen.steps, "largest": seen.sums, "synapses": [vars(s) for s in seen.synapses]}
    console.result(json, answer, console.table(text) + ("" if seen is None else f"\n{seen}"))
