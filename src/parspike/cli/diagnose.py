"""`parspike diagnose`: where a converted network's error comes from, and what helps.

torch is imported inside it, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parspike.cli import checks, console
from parspike.cli.options import NET, OUT, DataOption, Force, Json, Limit, RunOptions, Split, Weights, spread
from parspike.errors import OptionError

__all__ = ["diagnose"]


@spread
def diagnose(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what `parspike convert` wrote")],
    data: DataOption,
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="[SPEC]",
            help="the network it came from, such as net.py:make (default: the file's own weights, activations exact)",
            rich_help_panel=NET,
        ),
    ] = None,
    weights: Weights = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="write the network with the remedy that helps most",
            rich_help_panel=OUT,
        ),
    ] = None,
    split: Split = None,
    limit: Limit = 256,
    *,
    options: RunOptions,
    force: Force = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Say which layers make the error of a converted network, which one to blame, and which remedies help, each tried.
    Labels are not needed."""
    if output is not None:
        checks.output(Path(output), force)
    if weights is not None and spec is None:
        raise OptionError("--weights belongs to the network SPEC; the spiking network has its own")
    checks.file(file)
    if spec is not None:
        checks.network(spec, weights)
    checks.images(data, split)
    options.preprocessing()
    import parspike
    from parspike.cli.images import explained, inputs_of, warn_of_few
    from parspike.cli.preprocess import remembered
    from parspike.cli.spec import load

    snn = options.placed(parspike.load(file))
    network = load(spec, weights, snn) if spec else None
    if network is not None:
        options.placed(network.model)
    preprocess = options.preprocessing(remembered(snn) or (network and network.preprocess))
    images = options.open(
        data, preprocess, inputs=inputs_of(snn), split=split, prefer="test", limit=limit, shuffle=True
    )
    with console.progress("diagnosing") as progress, explained(images):
        found = parspike.diagnose(snn, network.model if network else None, images.batches(), progress=progress)
    warn_of_few(images, data, found.classes)
    written = None
    if output is not None and found.remedy is not None and found.remedy.better:
        written = str(found.remedy.snn.save(output, force=force))
    elif output is not None:
        console.warn(f"{output} was not written: no remedy made a better network on the images held out")
    answer = {
        "file": file,
        "spec": spec,
        **found.to_json(),
        "written": written,
        "preprocessing": preprocess.to_json(),
        "skipped": console.left_out(images.broken),
    }
    console.result(json, answer, f"{found}\nwritten: {written}" if written else str(found))
