"""`parspike convert`: a trained network becomes a spiking one, in a file.

torch is imported inside it, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from parspike.cli import checks, console, processes
from parspike.cli.options import (
    DATA,
    HOW,
    IMAGES,
    MAX_T,
    OUT,
    AnalogOption,
    Best,
    Budget,
    CalibrationImages,
    EncodeOption,
    Fast,
    Force,
    Json,
    Keep,
    NeuronOption,
    RecipeOption,
    RunOptions,
    Spec,
    Split,
    Strict,
    Weights,
    kept,
    kind_of,
    recipe_of,
    spread,
    starting,
)
from parspike.errors import CalibrationError

__all__ = ["convert"]


@spread
def convert(
    spec: Spec,
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="the file to write, net.parspike", rich_help_panel=OUT),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help=f"for the calibration: {IMAGES}", autocompletion=starting("digits", "photos"), rich_help_panel=DATA
        ),
    ] = None,
    T: Annotated[int, typer.Option("-T", "--T", min=1, max=MAX_T, help="time-steps", rich_help_panel=HOW)] = 8,
    weights: Weights = None,
    neuron: NeuronOption = "parallel",
    code: Annotated[
        Literal["sorted", "weighted", "onset"] | None,
        typer.Option(
            help="of parallel neurons; weighted has 2^T − 1 levels, onset sends one spike (default: sorted)",
            rich_help_panel=HOW,
        ),
    ] = None,
    input_: Annotated[
        Literal["current", "rate", "sorted"],
        typer.Option("--input", help="what if and lif neurons of the first layer are fed with", rich_help_panel=HOW),
    ] = "current",
    recipe: RecipeOption = None,
    budget: Budget = None,
    fast: Fast = False,
    best: Best = False,
    passes: Annotated[
        int | None, typer.Option(min=1, help="how often the calibration sees the data", rich_help_panel=HOW)
    ] = None,
    keep: Keep = None,
    encode: EncodeOption = "none",
    analog: AnalogOption = "computed",
    strict: Strict = False,
    calibration_images: CalibrationImages = 1024,
    split: Split = None,
    *,
    options: RunOptions,
    devices: processes.Processes = 1,
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn a trained network into a spiking one and write it to FILE."""

    def check() -> None:
        checks.output(Path(output), force)
        if data is None:
            give = (
                "--data with images, which networks other than QCFS need for their calibration, or else one sample's "
                "--shape 3,224,224"
            )
            checks.network(spec, weights, options.shape, give)
        else:
            checks.network(spec, weights)
            checks.images(data, split)
        checks.recipe(recipe, passes)
        checks.budget(recipe, budget, fast, best, passes, neuron)
        checks.neuron(neuron, input_, code=code, passes=passes)
        checks.analog(analog, encode)
        options.preprocessing()

    together = processes.join(devices, check)
    import parspike
    from parspike.cli.images import explained
    from parspike.cli.preprocess import remember
    from parspike.cli.spec import load

    network = load(spec, weights)
    preprocess = options.preprocessing(network.preprocess)
    images = None
    if data is not None:
        images = options.open(
            data,
            preprocess,
            inputs=replace(network.inputs, frames="mean"),
            split=split,
            prefer="train",
            limit=calibration_images,
            shuffle=True,
        )
    items = "sequences" if images is not None and images.written else "images"
    if images is not None and images.several:
        items = "items"
    start = time.perf_counter()
    with console.progress("calibrating") as progress, explained(images):
        try:
            snn = parspike.convert(
                network.model if images is None else options.placed(network.model),
                calibration=None if images is None else images.batches(),
                T=T,
                neuron=kind_of(neuron, code),
                input=input_,
                recipe=recipe_of(recipe, passes, checks.budget(recipe, budget, fast, best)),
                layers=kept(keep),
                example=None if images else network.zeros(options.shape),
                encode=encode,
                analog=analog,
                strict=strict,
                seed=options.seed,
                progress=progress,
                group=together.group,
            )
        except CalibrationError as error:
            if images is None:
                raise CalibrationError(f"{error}; on the command line, images with --data") from error
            raise
    seconds = time.perf_counter() - start
    if together.rank:
        return
    remember(snn, spec, weights, data, preprocess, images.largest if images else None)
    snn.save(output, force=force)
    answer = {
        "output": output,
        "spec": spec,
        "T": snn.T,
        "images": len(images) - len(images.broken) if images else 0,
        "seconds": round(seconds, 3),
        "bytes": Path(output).stat().st_size,
        "spiking_layers": len(snn.neurons()),
        "inputs": snn.graph.taken,
        "preprocessing": preprocess.to_json(),
        "skipped": console.left_out(images.broken if images else []),
        "provenance": snn.provenance,
    }
    text = {
        "written": f"{output} ({answer['bytes'] / 1e3:,.0f} kB)",
        "T": snn.T,
        "spiking layers": answer["spiking_layers"],
        "inputs": snn.graph.taken,
        "recipe": _chosen(snn.provenance),
        "calibrated on": f"{answer['images']} {items} of {data}" if images else "nothing: no data given",
        "preprocessing": images.prepared if images else str(preprocess),
        "weights": weights or ("random" if network.random_weights else f"those of {spec}"),
        "time": f"{seconds:.1f} s",
    }
    console.result(json, answer, console.table(text))


def _chosen(provenance: dict[str, Any]) -> str:
    """The recipe, and where several were tried how each did on the images held out, and what there was no time for."""
    search = provenance.get("search", {})
    notes = search.get("tried", ())
    tried = [f"{_named(t)} {t['distance']:.2g}" for t in notes if "distance" in t]
    made = search.get("chosen", provenance["recipe"])
    options = ", ".join(f"{key}={value}" for key, value in made.items() if key != "name" and value not in ("", None))
    text = f"{made['name']} ({options})" if options else made["name"]
    if tried:
        text = f"{text}; distance of the outputs on held-out images: {', '.join(tried)}"
    left = [(_named(t), t["skipped"]) for t in notes if "skipped" in t]
    if late := [name for name, why in left if "budget" in why]:
        text = f"{text}; no time for {', '.join(late)}: --best, or --budget with more seconds, tries them"
    for name, why in left:
        if name not in late:
            text = f"{text}; {name} was left out, since {why}"
    return text


def _named(note: dict[str, Any]) -> str:
    """A recipe that was tried, by its name and what it differs by from the others."""
    recipe = note["recipe"]
    free = (
        (", free" if recipe.get("free") else "")
        + (", all rows" if recipe.get("all_rows") else "")
        + ("" if recipe.get("refit", True) else ", synapses as they are")
    )
    return f"{recipe['name']} ({recipe['weigh']}{free})" if "weigh" in recipe else recipe["name"]
