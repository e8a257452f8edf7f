"""`parspike plan`: what becomes of every layer.

torch is imported inside it, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parspike.cli import checks, console
from parspike.cli.options import (
    DATA,
    AnalogOption,
    EncodeOption,
    Json,
    Keep,
    NeuronOption,
    Shape,
    Spec,
    Strict,
    Weights,
    kept,
    kind_of,
)
from parspike.errors import OptionError

if TYPE_CHECKING:
    from parspike.cli.spec import Network

__all__ = ["plan"]


def plan(
    spec: Spec,
    weights: Weights = None,
    shape: Shape = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="the example's inputs from an .npz in place of --shape, of networks with several inputs: an array for "
            "each, by its name",
            rich_help_panel=DATA,
        ),
    ] = None,
    keep: Keep = None,
    encode: EncodeOption = "none",
    analog: AnalogOption = "computed",
    strict: Strict = False,
    neuron: NeuronOption = "parallel",
    json: Json = False,
) -> None:
    """Show what becomes of every layer, before any data is read. Exit code 1 if a layer is refused."""
    if data is None:
        checks.network(spec, weights, shape, "--shape 3,224,224")
    else:
        checks.network(spec, weights)
        checks.images(data, None)
        if shape is not None:
            raise OptionError("--shape and --data both make an example: give one of the two")
    checks.neuron(neuron)
    checks.analog(analog, encode)
    import parspike
    from parspike.cli.spec import load_network

    network = load_network(spec, weights)  # whose weights a plan does not look at
    example = network.zeros(shape) if data is None else _example(network, data)
    table = parspike.plan(
        network.model, example, layers=kept(keep), strict=strict, neuron=kind_of(neuron), encode=encode,
        analog=analog,
    )  # fmt: skip
    console.result(json, table.to_dict(), str(table))
    if not table.ok:
        raise typer.Exit(1)


def _example(network: Network, data: str) -> Any:
    from parspike.cli.images import open_images

    inputs = replace(network.inputs, frames="mean")
    images = open_images(data, network.preprocess, inputs=inputs, prefer="train", batch_size=2, limit=2)
    return next(images.inputs())
