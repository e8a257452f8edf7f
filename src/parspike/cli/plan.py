"""`parspike plan`: what becomes of every layer.

torch is imported inside it, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

import typer

from parspike.cli import checks, console
from parspike.cli.options import (
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

__all__ = ["plan"]


def plan(
    spec: Spec,
    weights: Weights = None,
    shape: Shape = None,
    keep: Keep = None,
    encode: EncodeOption = "none",
    analog: AnalogOption = "computed",
    strict: Strict = False,
    neuron: NeuronOption = "parallel",
    json: Json = False,
) -> None:
    """Show what becomes of every layer, before any data is read. Exit code 1 if a layer is refused."""
    checks.network(spec, weights, shape, "--shape 3,224,224")
    checks.neuron(neuron)
    checks.analog(analog, encode)
    import parspike
    from parspike.cli.spec import load

    network = load(spec, weights)
    table = parspike.plan(
        network.model, network.zeros(shape), layers=kept(keep), strict=strict, neuron=kind_of(neuron), encode=encode,
        analog=analog,
    )  # fmt: skip
    console.result(json, table.to_dict(), str(table))
    if not table.ok:
        raise typer.Exit(1)
