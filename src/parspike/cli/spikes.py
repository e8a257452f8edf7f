"""`parspike spikes write` and `parspike spikes show`: spike trains into a file, and what is in one.

torch is imported inside the functions, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from parspike.cli import checks, console
from parspike.cli.options import OUT, DataOption, Force, ImageOptions, Json, Limit, Split, spread
from parspike.errors import OptionError

__all__ = ["show", "write"]

ENDINGS = (".npz", ".h5", ".hdf5", ".aedat.txt")
"""A copy of those of `parspike.write_spikes`, whose module imports torch; a test compares the two."""


@spread
def write(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what `parspike convert` wrote")],
    data: DataOption,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help=f"the file to write: {', '.join(ENDINGS)}", rich_help_panel=OUT),
    ],
    form: Annotated[
        Literal["bits", "events"] | None,
        typer.Option("--as", help="eight neurons a byte, or one entry a spike (default: bits)", rich_help_panel=OUT),
    ] = None,
    dt: Annotated[int, typer.Option(min=1, help="microseconds of a time-step", rich_help_panel=OUT)] = 1000,
    engine: Annotated[
        Literal["count", "integer", "parallel", "serial", "serial-if", "over-time"] | None,
        typer.Option(help="how to run, as in eval; all but serial-if, which is for comparison, give the same"),
    ] = None,
    split: Split = None,
    limit: Limit = None,
    *,
    options: ImageOptions,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the spike trains of a converted network, a batch of images at a time."""
    if not output.name.lower().endswith(ENDINGS):
        raise OptionError(f"--output {output}: a file of spikes ends in {', '.join(ENDINGS)}")
    if form == "bits" and output.name.lower().endswith(".txt"):
        raise OptionError(f"--as bits: {output} is a text, which holds events; for bits end its name in .npz or .h5")
    checks.writable(output, force, "--output", "trains.npz")
    checks.file(file)
    checks.images(data, split)
    options.preprocessing()
    import parspike
    from parspike.cli.images import explained, inputs_of
    from parspike.cli.preprocess import remembered

    snn = parspike.load(file)
    preprocess = options.preprocessing(remembered(snn))
    images = options.open(data, preprocess, inputs=inputs_of(snn), split=split, prefer="test", limit=limit)
    note = {"network": file, "data": data, "preprocessing": preprocess.to_json()}
    with console.progress("writing spikes") as progress, explained(images):
        parspike.write_spikes(
            snn, images.batches(), output, form=form, engine=engine, dt=dt, note=note, force=force, progress=progress
        )
    skipped = console.left_out(images.broken)
    size = output.stat().st_size
    answer = {
        "file": str(output),
        "images": len(images) - len(skipped),
        "bytes": size,
        "preprocessing": preprocess.to_json(),
        "skipped": skipped,
    }
    text = {"file": output, "images": answer["images"], "bytes": size, "preprocessing": images.prepared}
    console.result(json, answer, console.table(text))


def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what `parspike spikes write` wrote")],
    layer: Annotated[str | None, typer.Option(help="draw spikes of this layer's neurons")] = None,
    sample: Annotated[int, typer.Option(min=0, help="of this image, from 0 on")] = 0,
    neurons: Annotated[
        str | None, typer.Option(metavar="N,N-M,…", help="these neurons (default: the first 20)")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="draw at most so many time-steps")] = 100,
    json: Json = False,
) -> None:
    """Say what is in a file of spikes: layers, rates, first spikes; with --layer also a raster of its neurons."""
    checks.file(file)
    chosen = None if neurons is None else _numbers(neurons)
    if neurons is not None and layer is None:
        raise OptionError(f"--neurons {neurons} are of a layer: give --layer too")
    import parspike

    spikes = parspike.read_spikes(file)
    rows = spikes.summary()
    raster = None if layer is None else spikes.raster(layer, sample, chosen, steps)
    answer: dict[str, Any] = {
        "file": file, "form": spikes.form, "T": spikes.T, "dt": spikes.dt, "samples": spikes.samples,
        "note": dict(spikes.note), "layers": [row.to_json() for row in rows],
        **({} if raster is None else {"raster": raster.splitlines()}),
    }  # fmt: skip
    head = {
        "file": f"{file}, as {spikes.form}",
        "T": f"{spikes.T}, of {spikes.dt} µs each",
        "samples": spikes.samples,
        **{name: value for name, value in spikes.note.items() if isinstance(value, str)},
    }
    parts = [console.table(head), _table(rows)]
    if raster is not None:
        parts.append(f"layer {layer}, sample {sample}: a line a neuron, a character a step\n{raster}")
    console.result(json, answer, "\n\n".join(parts))


def _table(rows: list[Any]) -> str:
    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f} %"

    head = ("layer", "neurons", "code", "spikes", "a neuron and step", "silent", "first spike: least", "median", "most")
    cells = [
        (
            row.layer, "×".join(map(str, row.shape)) or "1", row.code, str(row.spikes),
            "" if row.rate is None else f"{row.rate:.4f}", share(row.silent),
            *("" if value is None else f"{value:g}" for value in (row.first, row.median, row.last)),
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = (
        [cell.ljust(w) if i in (0, 2) else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in (head, *cells)
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _numbers(text: str) -> list[int]:
    """Neurons by number and range.

    >>> _numbers("0-2,7")
    [0, 1, 2, 7]
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
        if match is None or (last := int(match[2] or match[1])) < (first := int(match[1])) or last - first >= 1000:
            raise OptionError(f"--neurons {text}: expected numbers and ranges of at most 1000, such as 0-19,40")
        found += range(first, last + 1)
    return found
