"""`parspike report`: one page about a converted network.

torch is imported inside it, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

import hashlib
import json as to_json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parspike.cli import checks, console
from parspike.cli.options import (
    DATA,
    HOW,
    NET,
    ON_DISK,
    OUT,
    RECIPES,
    CalibrationImages,
    DataOption,
    Force,
    ImageOptions,
    Json,
    Limit,
    Split,
    Weights,
    kept,
    spread,
    starting,
)
from parspike.errors import FileError, OptionError

if TYPE_CHECKING:
    from parspike.cli.images import Images
    from parspike.cli.preprocess import Preprocessing

__all__ = ["report"]

MOST = 256
"""Images that --diagnose looks at, as parspike diagnose does."""


@spread
def report(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what `parspike convert` wrote")],
    data: DataOption,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PAGE.html", help="the page", rich_help_panel=OUT)
    ] = "report.html",
    against: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="the network it came from: agreement, error by layer", rich_help_panel=NET),
    ] = None,
    weights: Weights = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="draw the spikes of these layers (repeatable; default: three)", rich_help_panel=OUT
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="T,T,…",
            help="also convert the network of --against for these time-steps, as the file says, and show all",
            rich_help_panel=HOW,
        ),
    ] = None,
    diagnose: Annotated[
        bool,
        typer.Option(
            "--diagnose",
            help="also say which layer is to blame for the error, and which remedies help, on up to 256 images",
            rich_help_panel=HOW,
        ),
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help=f"images that --sweep fits to: {ON_DISK} (default: the part `train` of --data)",
            autocompletion=starting("digits", "photos"),
            rich_help_panel=DATA,
        ),
    ] = None,
    calibration_images: CalibrationImages = 1024,
    classes: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="a text file with the name of each class, a line each", rich_help_panel=DATA),
    ] = None,
    title: Annotated[str | None, typer.Option(help="of the page", rich_help_panel=OUT)] = None,
    split: Split = None,
    limit: Limit = None,
    *,
    options: ImageOptions,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write one page that shows how well a converted network answers, what it fires and what it costs."""
    page = Path(output)
    checks.page(page, force)
    checks.file(file)
    if weights is not None and against is None:
        raise OptionError("--weights belongs to the network of --against SPEC; the spiking network has its own")
    if against is not None:
        checks.network(against, weights)
    steps = None if sweep is None else checks.steps(sweep, "--sweep")
    if steps is not None and against is None:
        raise OptionError(f"--sweep {sweep} converts the network again: give it with --against SPEC")
    if steps is None and calibration is not None:
        raise OptionError("--calibration is for --sweep T,T,…: give both, or neither")
    checks.images(data, split)
    if calibration is not None:
        checks.images(calibration, None, "--calibration")
    names = None if classes is None else _names(classes)
    options.preprocessing()
    import parspike
    from parspike.cli.images import explained, inputs_of
    from parspike.cli.preprocess import remembered
    from parspike.cli.spec import load

    snn = parspike.load(file)
    inputs = inputs_of(snn)
    network = load(against, weights, snn) if against else None
    preprocess = options.preprocessing(remembered(snn) or (network and network.preprocess))
    images = options.open(data, preprocess, inputs=inputs, split=split, prefer="test", limit=limit)
    start, found = time.perf_counter(), None
    if steps is not None and network is not None:
        how = _as_before(snn)
        fit = options.open(
            calibration or data, preprocess, inputs=inputs, prefer="train", limit=calibration_images, shuffle=True
        )
        _check_apart(calibration or data, fit, data, images)
        with console.progress("sweep") as progress, explained(fit):
            found = parspike.sweep(
                _as_kept(network.model, snn, fit), fit.batches(), images.batches(), T=steps, seed=options.seed,
                progress=progress, each=lambda row: console.note(str(row)), **how,
            )  # fmt: skip
    diagnosis = None
    if diagnose:
        some = options.open(
            data, preprocess, inputs=inputs, split=split, prefer="test", limit=min(limit or MOST, MOST), shuffle=True
        )
        with console.progress("diagnosing") as progress, explained(some):
            model = network.model if network else None
            diagnosis = parspike.diagnose(snn, model, some.batches(), progress=progress)
    with console.progress("report") as progress, explained(images):
        measured = parspike.report(
            snn,
            images.batches(),
            page,
            model=network.model if network else None,
            layers=layers,
            sweep=found,
            diagnosis=diagnosis,
            classes=names if names is not None else _folders(images),
            picture=_picture(images, preprocess),
            title=title or f"{Path(file).name}: a spiking network",
            commands=_commands(
                snn, file, data, output, against, weights, layers, sweep, diagnose, calibration, calibration_images,
                classes, title, split, limit, options,
            ),
            about=[("file", _about(file)), ("measured on", _measured_on(images, data))],
            force=force,
            progress=progress,
        )  # fmt: skip
    size = page.stat().st_size
    answer = {
        "file": file,
        "page": output,
        "bytes": size,
        "seconds": round(time.perf_counter() - start, 3),
        "T": snn.T,
        "images": measured.samples,
        **{name: getattr(measured, name) for name in ("accuracy", "network_accuracy", "agreement", "error")},
        "energy_pj": measured.energy_pj,
        "network_energy_pj": measured.network_energy_pj,
        "spikes_per_neuron": measured.spikes_per_neuron,
        "preprocessing": preprocess.to_json(),
        "skipped": console.left_out(images.broken),
    }
    shares = {"accuracy": measured.accuracy, "network's accuracy": measured.network_accuracy,
              "agreement": measured.agreement, "relative error": measured.error}  # fmt: skip
    text = {
        "written": f"{output} ({size / 1e3:,.0f} kB)",
        "images": measured.samples,
        **{name: None if share is None else f"{100 * share:.2f} %" for name, share in shares.items()},
        "time": f"{answer['seconds']:.1f} s",
    }
    console.result(json, answer, console.table(text))


def _names(file: str) -> list[str]:
    """The lines of --classes."""
    checks.file(file, "--classes")
    try:
        names = [line.strip() for line in Path(file).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"--classes {file}: no text ({error}); give a name of a class on each line") from error
    while names and not names[-1]:
        names.pop()
    if not names:
        raise FileError(f"--classes {file}: the file is empty; give a name of a class on each line")
    return names


def _folders(images: Images) -> Mapping[int, str]:
    """Names of classes by the folders of the images, where these are words."""
    from parspike.cli.sources import classes_of

    found: dict[int, str] = {}
    for name, label in zip(images.source.names, classes_of(images.source), strict=False):
        folder = PurePosixPath(name).parent.name
        if not folder or folder.isdigit() or found.setdefault(int(label), folder) != folder:
            return {}
    return found


def _picture(images: Images, preprocess: Preprocessing) -> Any:
    """From an input to the image that it was made of, where inputs are prepared images."""
    if images.several:
        return None
    first = images.first()
    if first.dim() != 3 or first.shape[0] not in (1, 3) or (preprocess.mean, preprocess.std) == ((0.0,), (1.0,)):
        return None
    return preprocess.unprepared


def _as_before(snn: Any) -> dict[str, Any]:
    """Recipe and neurons of a sweep that converts as this network was converted. A recipe of somebody's own is code,
    which a file must not make run."""
    import parspike

    recipe = _recipe(snn)
    name = recipe.get("name")
    if name not in RECIPES:
        raise OptionError(
            f"--sweep converts with the recipe of the file, and '{name}' is none of parspike's own: make the sweep "
            "with parspike sweep --recipe"
        )
    how: dict[str, Any] = {"recipe": parspike.recipe_from_json(recipe)}
    if not snn.over_time:
        return {**how, "codes": sorted({neuron.code for neuron in snn.counting().values()}) or ["sorted"]}
    text = _neuron(snn.provenance.get("neuron"))
    return how if text is None else {**how, "neuron": parspike.kind_from_text(text)}


def _as_kept(model: Any, snn: Any, fit: Images) -> Any:
    """The network, or its plan with the layers that were kept analog, and the encoders, of when it was converted."""
    import parspike

    layers = _kept(snn)
    how = {name: snn.provenance[name] for name in ("encode", "analog") if name in snn.provenance}
    if not layers and not how:
        return model
    return parspike.plan(model, next(iter(fit))[0][:2], layers=kept(layers), **how)


def _kept(snn: Any) -> list[str]:
    said = snn.provenance.get("kept")
    return [layer for layer in said if isinstance(layer, str)] if isinstance(said, list) else []


def _recipe(snn: Any) -> Mapping[str, Any]:
    """The recipe that made a network; of a search the one that it chose."""
    search = snn.provenance.get("search")
    found = (search.get("chosen") if isinstance(search, Mapping) else None) or snn.provenance.get("recipe")
    return found if isinstance(found, Mapping) else {}


def _neuron(kind: Any) -> str | None:
    """What --neuron is given for a kind of neurons, as the provenance has it."""
    name = kind.get("kind") if isinstance(kind, Mapping) else None
    if name not in ("IF", "LIF"):
        return None
    zero = "-zero" if kind.get("reset") == "zero" else ""
    return f"if{zero}" if name == "IF" else f"lif{zero}:{kind.get('decay')}"


def _check_apart(calibration: str, fit: Images, data: str, measured: Images) -> None:
    if Path(calibration).resolve() == Path(data).resolve() and (same := set(fit.names) & set(measured.names)):
        raise OptionError(
            f"--sweep fits conversions on --calibration {calibration} and the page measures them on --data {data}: "
            f"{len(same)} images are in both, on which a conversion looks better than on others: give other images "
            "with --calibration DATA"
        )


def _about(file: str) -> str:
    with Path(file).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{file}, {Path(file).stat().st_size / 1e3:,.0f} kB, SHA-256 {digest}"


def _measured_on(images: Images, data: str) -> str:
    return f"{len(images) - len(images.broken):,} images of {data}, preprocessing: {images.prepared}"


def _commands(
    snn: Any, file: str, data: str, output: str, against: str | None, weights: str | None, layers: Sequence[str] | None,
    sweep: str | None, diagnose: bool, calibration: str | None, calibration_images: int, classes: str | None,
    title: str | None, split: str | None, limit: int | None, options: ImageOptions,
) -> list[str]:  # fmt: skip
    """The command lines that made the network, as far as its file says, and this page."""
    given: list[tuple[str, Any]] = [
        ("--data", data), ("--against", against), ("--weights", weights),
        *(("--layers", layer) for layer in layers or ()), ("--sweep", sweep), ("--diagnose", diagnose or None),
        ("--calibration", calibration),
        ("--calibration-images", None if sweep is None else calibration_images), ("--classes", classes),
        ("--title", title), ("--split", split), ("--limit", limit), ("--shape", options.shape),
        ("--size", options.size), ("--crop", options.crop), ("--mean", options.mean), ("--std", options.std),
        ("--batch-size", options.batch_size), ("--seed", options.seed or None), ("--output", output),
    ]  # fmt: skip
    page = _line("report", file, given, options.skip_broken)
    said = snn.provenance.get("command_line")
    if not isinstance(said, Mapping) or not isinstance(said.get("spec"), str):
        return [page]
    prepared = said.get("preprocessing")
    prepared = prepared if isinstance(prepared, Mapping) else {}
    recipe, known = _recipe(snn), snn.provenance.get("calibration")
    made: list[tuple[str, Any]] = [
        ("--weights", said.get("weights")), ("--data", said.get("data")), ("-T", snn.T),
        ("--code", snn.provenance.get("code")),
        ("--encode", snn.provenance.get("encode")), ("--analog", snn.provenance.get("analog")),
        ("--neuron", _neuron(snn.provenance.get("neuron"))),
        ("--recipe", to_json.dumps(recipe) if recipe else None),
        *(("--keep", layer) for layer in _kept(snn)),
        ("--calibration-images", known.get("samples") if isinstance(known, Mapping) else None),
        ("--size", prepared.get("size")), ("--crop", prepared.get("crop")), ("--mean", _commas(prepared.get("mean"))),
        ("--std", _commas(prepared.get("std"))), ("--seed", snn.provenance.get("seed") or None), ("--output", file),
    ]  # fmt: skip
    return ["# the network, as far as its file says", _line("convert", said["spec"], made, False), "# this page", page]


def _line(command: str, what: str, given: Sequence[tuple[str, Any]], skip_broken: bool) -> str:
    words = [
        word for name, value in given if value is not None
        for word in ((name,) if value is True else (name, str(value)))
    ]  # fmt: skip
    return shlex.join(["parspike", command, what, *words, *(["--skip-broken"] if skip_broken else [])])


def _commas(numbers: Any) -> str | None:
    return ",".join(map(str, numbers)) if isinstance(numbers, (list, tuple)) else None
