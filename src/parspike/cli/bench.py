"""`parspike bench`: networks × methods × neurons × T of a TOML file, cell by cell; tables and figures of what is there.

torch is imported inside, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parspike.cli import checks, console, processes
from parspike.cli.options import HOW, OUT, TABLES, Force, Json
from parspike.errors import FileError, OptionError

if TYPE_CHECKING:
    from parspike import Bench, BenchNetwork
    from parspike.cli.images import Images

__all__ = ["bench"]

IN_MEMORY = 1 << 30
"""Bytes of images that are decoded once and kept; more are decoded again for every cell."""


def bench(
    file: Annotated[str, typer.Argument(metavar="FILE.toml", help="the bench, or the name of one that comes along")],
    results: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="the lines of the cells (default: beside FILE.toml, .jsonl)", rich_help_panel=OUT
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD,…", help="only cells of these networks, methods, neurons, or T=4", rich_help_panel=HOW
        ),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="try cells again that could not be measured", rich_help_panel=HOW)
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            help="processes that share the cells, each with its part of the cores; or use torchrun",
            rich_help_panel=HOW,
        ),
    ] = 1,
    out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help=f"write tables or a figure, by the ending {', '.join(TABLES)} (repeatable)",
            rich_help_panel=OUT,
        ),
    ] = None,
    render: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PAGE.md",
            help="run nothing; write tables between the marks <!-- bench NAME TABLE --> of a page (repeatable)",
            rich_help_panel=OUT,
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure every network, method, neuron and T of a bench that its results do not hold yet."""
    files, pages = list(dict.fromkeys(out or ())), list(dict.fromkeys(render or ()))

    def check() -> None:
        checks.tables(files, force)
        for page in (*([file] if Path(file).suffix else []), *pages):
            checks.file(page)
        if pages and (jobs > 1 or only or retry):
            raise OptionError("--render runs nothing: leave --jobs, --only and --retry out, or --render")

    together = processes.join(1 if pages else jobs, check, "--jobs")
    import parspike

    chosen = parspike.Bench.read(file)
    lines = Path(results) if results else _results(file, chosen)
    if pages:
        found = parspike.Benched.read(chosen, lines)
        for page in pages:
            found.render(page)
    else:
        if not chosen.networks:
            raise OptionError(f"{file}: the bench has no network: add a table [networks.NAME] with spec and data")
        words = [word.strip() for text in only or () for word in text.split(",")]
        names = dict.fromkeys(cell.network for cell in chosen.chosen(words))
        with console.progress("bench") as progress:
            found = parspike.bench(
                chosen,
                {name: _network(chosen, name, file) for name in names},
                lines,
                only=words,
                retry=retry,
                group=together.group,
                progress=progress if together.rank == 0 else None,
                each=console.note,
            )
    if together.rank:
        return
    for name in files:
        found.save(name, force=force)
    written = [*pages, *files]
    answer = {"file": file, "results": str(lines), **found.to_dict(), "written": written}
    shown = [] if pages else [str(found)]
    console.result(json, answer, "\n".join((*shown, *(f"written: {Path(name)}" for name in written))))


def _results(file: str, chosen: Bench) -> Path:
    """Where the lines go by default: beside the bench; of one that comes with the package, here."""
    return Path(file).with_suffix(".jsonl") if Path(file).suffix else Path(f"{chosen.name}.jsonl")


def _network(chosen: Bench, name: str, file: str) -> BenchNetwork:
    """A network of the bench, which is loaded when its first cell begins. What is missing is said at once."""
    import parspike
    from parspike.cli.images import open_images
    from parspike.cli.preprocess import Preprocessing
    from parspike.cli.sources import BUILT_IN
    from parspike.cli.spec import Network, load_network

    table, place = chosen.networks[name], f"{file}, [networks.{name}]"

    def path(text: str) -> str:
        return text if text in BUILT_IN else str(chosen.path(text))

    spec = chosen.code(table.spec)
    weights = None if table.weights is None else path(table.weights)
    data, calibration = path(table.data), path(table.calibration or table.data)
    try:
        checks.network(spec, weights)
        for one in dict.fromkeys((data, calibration)):
            checks.images(one, None, "data")
    except (OptionError, FileError) as error:
        raise type(error)(f"{place}: {error}") from error
    said = table.preprocessing()
    known: list[Network] = []

    def load() -> Any:
        known[:] = [load_network(spec, weights)]
        if known[0].random_weights:
            console.warn(f"{place}: {table.spec} has random weights: give trained ones with weights = FILE")
        return known[0].model

    def images(source: str, **how: Any) -> Images:
        base = (known[0].preprocess if known else None) or Preprocessing()
        return open_images(source, replace(base, **said), batch_size=table.batch_size, **how)

    def fit(seed: int) -> Images:
        return images(calibration, prefer="train", limit=table.calibration_images, shuffle=True, seed=seed)

    def items(seed: int) -> Images:
        measured, fitted = images(data, prefer="test", limit=table.limit), fit(seed)
        if Path(data).resolve() == Path(calibration).resolve() and set(measured.names) & set(fitted.names):
            measured = measured.without(fitted, table.limit)  # the data are not divided: all others are measured
        if not len(measured):
            raise OptionError(f"{place}: all images of {table.data} are calibration images: lower calibration_images")
        return measured

    fixed = {key: getattr(table, key) for key in ("spec", "batch_size", "calibration_images", "limit")}
    digests = {"weights": weights and _digest(weights), "data": _digest(data), "calibration": _digest(calibration)}
    return parspike.BenchNetwork(
        load,
        lambda seed: _kept(fit(seed)),
        lambda seed: _kept(items(seed)),
        {**fixed, **digests, "preprocessing": said},
    )


def _kept(images: Images) -> Any:
    """The batches in memory where they fit, else the images, which are decoded again for every pass."""
    size = images.first().nbytes * len(images)
    return list(images) if size <= IN_MEMORY else images


def _digest(name: str) -> str:
    """What a source of data or weights is: the SHA-256 of a file; of a folder that of the names and sizes of its
    files; of what is built in its name."""
    path, digest = Path(name), hashlib.sha256()
    if path.is_dir():
        for one in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{one.relative_to(path).as_posix()} {one.stat().st_size}\n".encode())
    elif path.is_file():
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
    else:
        return name
    return digest.hexdigest()
