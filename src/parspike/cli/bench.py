"""`parspike bench`: networks × methods × neurons × T of a TOML file, cell by cell; tables and figures of what is there.

torch is imported inside, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from parspike.cli import checks, console, processes
from parspike.cli.options import HOW, OUT, TABLES, DeviceOption, Force, Json, check_device, device_of
from parspike.errors import FileError, OptionError

if TYPE_CHECKING:
    import torch

    from parspike import Bench, BenchNetwork
    from parspike.cli.images import Images

__all__ = ["bench"]

SPEED = "Of `bench speed`"
IN_MEMORY = 1 << 30
"""Bytes of images that are decoded once and kept; more are decoded again for every cell."""


def bench(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE.toml", help="the bench, or the name of one that comes along; speed: time of every engine"
        ),
    ],
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
    network: Annotated[
        str | None, typer.Option(metavar="SPEC", help="the network whose speed is measured", rich_help_panel=SPEED)
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="shape of one sample", rich_help_panel=SPEED)
    ] = None,
    T: Annotated[str, typer.Option("-T", "--T", metavar="T,…", help="time-steps", rich_help_panel=SPEED)] = "4,32,256",
    engines: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="of count, packed, compiled, integer, parallel, serial, serial-if; compiled: the network too",
            rich_help_panel=SPEED,
        ),
    ] = "count,integer",
    batch: Annotated[int, typer.Option(min=1, help="samples at once", rich_help_panel=SPEED)] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="rounds in which all run in turn", rich_help_panel=SPEED)] = 7,
    cpu_time: Annotated[
        bool,
        typer.Option("--cpu-time", help="seconds of this process, where others use the machine", rich_help_panel=SPEED),
    ] = False,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="of the network and of all engines but integer, by torch.autocast", rich_help_panel=SPEED),
    ] = "float32",
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="images in memory as (B, H, W, C)", rich_help_panel=SPEED)
    ] = False,
    encode: Annotated[
        Literal["none", "hidden", "all"],
        typer.Option(help="neurons also where synapses read real values, as for convert", rich_help_panel=SPEED),
    ] = "none",
    device: DeviceOption = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure every network, method, neuron and T of a bench that its results do not hold yet. `parspike bench speed`:
    time and latency of every engine beside the network's own."""
    if (file == "speed") != (network is not None):
        raise OptionError("`parspike bench speed --network SPEC` measures the speed of a network's engines")
    check_device(device)
    if network is not None:
        files = list(dict.fromkeys(out or ()))
        how = {"rounds": rounds, "cpu_time": cpu_time, "precision": precision, "channels_last": channels_last,
               "encode": encode}  # fmt: skip
        _speed(network, shape, T, engines, batch, how, device, files, force, json)
        return
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
                {name: _network(chosen, name, file, device_of(device)) for name in names},
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
    if found.left_out and not found.lines:
        raise typer.Exit(1)


def _speed(
    spec: str, shape: str | None, T: str, engines: str, batch: int, how: dict[str, Any], device: str, files: list[str],
    force: bool, json: bool,
) -> None:  # fmt: skip
    checks.tables(files, force)
    checks.network(spec, None, shape, "--shape")
    try:
        steps = [int(word) for word in T.split(",")]
    except ValueError:
        raise OptionError(f"-T {T}: give whole numbers such as 4,32,256") from None
    names = [word.strip() for word in engines.split(",") if word.strip()]
    import torch

    import parspike
    from parspike.cli.spec import load_network

    found = load_network(spec)  # of any weights: they take the same time
    zeros = found.zeros(shape)
    if not isinstance(zeros, torch.Tensor) or not zeros.is_floating_point():
        raise OptionError(f"{spec}: speed is measured for networks with one input of real numbers")
    x, where = torch.randn(batch, *zeros.shape[1:], generator=torch.Generator().manual_seed(0)), device_of(device)
    with console.progress("speed") as progress:
        made = parspike.speed(
            found.model.to(where),
            x.to(where),
            T=steps,
            engines=names,
            compiled="compiled" in names,
            progress=progress,
            **how,
        )
    for name in files:
        made.save(name, force=force)
    lines = [str(made), *(f"written: {Path(name)}" for name in files)]
    console.result(json, {"network": spec, **made.to_dict(), "written": files}, "\n".join(lines))


def _results(file: str, chosen: Bench) -> Path:
    """Where the lines go by default: beside the bench; of one that comes with the package, here."""
    return Path(file).with_suffix(".jsonl") if Path(file).suffix else Path(f"{chosen.name}.jsonl")


def _network(chosen: Bench, name: str, file: str, device: torch.device) -> BenchNetwork:
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
    with _at_place(place):
        checks.network(spec, weights)
        for one in dict.fromkeys((data, calibration)):
            checks.images(one, None, "data")
    said = table.preprocessing()
    with _at_place(place):
        replace(Preprocessing(), **said)
    known: list[Network] = []

    def load() -> Any:
        known[:] = [load_network(spec, weights)]
        if known[0].random_weights:
            console.warn(f"{place}: {table.spec} has random weights: give trained ones with weights = FILE")
        return known[0].model.to(device)

    def images(source: str, **how: Any) -> Images:
        base = (known[0].preprocess if known else None) or Preprocessing()
        asked = not said.keys().isdisjoint(("mean", "std"))
        found = open_images(source, replace(base, **said), batch_size=table.batch_size, asked=asked, **how)
        return replace(found, device=device)

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


@contextmanager
def _at_place(place: str) -> Iterator[None]:
    """Errors within begin with their place in the bench."""
    try:
        yield
    except (OptionError, FileError) as error:
        raise type(error)(f"{place}: {error}") from error


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
