"""`parspike plan`, `convert` and `eval`. torch is imported inside them, so that `--help` answers at once."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parspike.cli import console, processes
from parspike.errors import CalibrationError, FileError, InputError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from parspike.cli.data import Images, Preprocessing
    from parspike.cli.spec import Network

__all__ = ["convert", "evaluate", "plan"]

Spec = Annotated[
    str,
    typer.Argument(metavar="SPEC", help="package.module:factory, file.py:factory, timm:NAME, torchvision:NAME"),
]
Weights = Annotated[str | None, typer.Option(help="safetensors, or a state dict saved by torch.save")]
Shape = Annotated[str | None, typer.Option(help="one sample without batch, such as 3,224,224")]
Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="keep these layers' activations analog (repeatable)"),
]
Strict = Annotated[bool, typer.Option("--strict", help="refuse what a spike cannot do instead of keeping it analog")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout, also for an error")]
Data = "a folder of class folders, a .zip of one, an .npz, digits or photos"
Split = Annotated[str | None, typer.Option(help="train, test or val, where the data are divided so")]
Side = Annotated[int | None, typer.Option("--size", help="resize the short side to this many pixels")]
Crop = Annotated[int | None, typer.Option(help="then cut this square from the centre")]
Mean = Annotated[str | None, typer.Option(help="then (x/255 − mean) / std: one value, or one a channel")]
Std = Annotated[str | None, typer.Option(help="see --mean")]
BatchSize = Annotated[int, typer.Option(help="images at a time")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="leave out images that cannot be decoded")]
Seed = Annotated[int, typer.Option(help="chooses which images, and their order")]


def plan(
    spec: Spec,
    weights: Weights = None,
    shape: Shape = None,
    keep: Keep = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Show what becomes of every layer, before any data is read. Exit code 1 if a layer is refused."""
    import parspike

    network = load(spec, weights)
    table = parspike.plan(network.model, _example(network, shape), layers=_kept(keep), strict=strict)
    console.result(json, table.to_dict(), str(table))
    if not table.ok:
        raise typer.Exit(1)


def convert(
    spec: Spec,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="the file to write, net.parspike")],
    data: Annotated[str | None, typer.Option(help=f"for the calibration: {Data}")] = None,
    T: Annotated[int, typer.Option("-T", "--T", help="time-steps")] = 8,
    weights: Weights = None,
    code: Annotated[str, typer.Option(help="sorted, weighted (2^T − 1 levels) or onset (one spike)")] = "sorted",
    recipe: Annotated[str | None, typer.Option(help="how to calibrate: a name, or a recipe as JSON")] = None,
    passes: Annotated[int | None, typer.Option(help="how often the calibration sees the data")] = None,
    keep: Keep = None,
    strict: Strict = False,
    calibration_images: Annotated[int, typer.Option(help="take at most this many of the images")] = 1024,
    split: Split = None,
    shape: Shape = None,
    size: Side = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = 32,
    skip_broken: SkipBroken = False,
    seed: Seed = 0,
    devices: processes.Devices = 1,
    force: Annotated[bool, typer.Option("--force", help="write over FILE if it exists")] = False,
    json: Json = False,
) -> None:
    """Turn a trained network into a spiking one and write it to FILE."""
    import parspike
    from parspike.cli.data import open_images

    together = processes.join(devices)
    check_output(Path(output), force)
    network = load(spec, weights)
    preprocess = preprocessing(network.preprocess, shape, size, crop, mean, std)
    images = None
    if data is not None:
        images = open_images(
            data,
            preprocess,
            split=split,
            prefer="train",
            batch_size=batch_size,
            limit=calibration_images,
            shuffle=True,
            seed=seed,
            skip_broken=skip_broken,
        )
    start = time.perf_counter()
    with console.progress("calibrating") as progress:
        try:
            snn = parspike.convert(
                network.model,
                calibration=None if images is None else images.batches(),
                T=T,
                code=code,  # pyright: ignore[reportArgumentType] (convert says which there are)
                recipe=recipe_of(recipe, passes),
                layers=_kept(keep),
                example=None if images else _example(network, shape),
                strict=strict,
                seed=seed,
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
    # `eval` prepares its images in the same way, without being told.
    snn.provenance["command_line"] = {
        "spec": spec,
        "weights": weights,
        "data": data,
        "preprocessing": preprocess.to_json(),
    }
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
        "skipped": _skipped(images),
        "provenance": snn.provenance,
    }
    text = {
        "written": f"{output} ({answer['bytes'] / 1e3:,.0f} kB)",
        "T": snn.T,
        "spiking layers": answer["spiking_layers"],
        "inputs": snn.graph.taken,
        "recipe": _chosen(snn.provenance),
        "calibrated on": f"{answer['images']} images of {data}" if data else "nothing: no data given",
        "preprocessing": preprocess,
        "time": f"{seconds:.1f} s",
    }
    console.result(json, answer, console.table(text))


def evaluate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what `parspike convert` wrote")],
    data: Annotated[str, typer.Option(help=Data)],
    against: Annotated[str | None, typer.Option(metavar="SPEC", help="also run the network it came from")] = None,
    weights: Weights = None,
    engine: Annotated[str, typer.Option(help="count, parallel, serial, or serial-if for comparison")] = "count",
    operations: Annotated[
        bool, typer.Option("--operations", help="also operations, energy and error by layer")
    ] = False,
    split: Split = None,
    limit: Annotated[int | None, typer.Option(help="take at most this many of the images")] = None,
    shape: Shape = None,
    size: Side = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = 32,
    skip_broken: SkipBroken = False,
    seed: Seed = 0,
    devices: processes.Devices = 1,
    json: Json = False,
) -> None:
    """Run a converted network on images: accuracy, agreement with the network it came from, the relative error of its
    outputs, spikes, time, cost. Outputs that are values have no accuracy and agreement."""
    import parspike
    from parspike.cli.data import open_images

    if operations and engine == "serial-if":
        raise OptionError("--operations counts the converted network's spikes, not those of serial-if: leave one out")
    together = processes.join(devices)
    if weights is not None and against is None:
        raise OptionError("--weights belongs to the network of --against SPEC; the spiking network has its own")
    snn = parspike.load(file)
    network = load(against, weights) if against else None
    images = open_images(
        data,
        preprocessing(_stored(snn) or (network and network.preprocess), shape, size, crop, mean, std),
        split=split,
        prefer="test",
        batch_size=batch_size,
        limit=limit,
        seed=seed,
        skip_broken=skip_broken,
    )
    score = _Score()
    with console.progress("evaluating") as progress:
        for _, (x, y) in together.share(images.batches()):
            score.add(snn, network, engine, x, y)
            progress("", score.images, (len(images) - len(images.broken)) // together.size)
    score = _Score.of_all(together.exchange(score))
    if together.rank:
        return
    if 0 < (folders := getattr(images.source, "ordered", 0)) < score.outputs.classes:
        console.warn(
            f"{data} has {folders} class folders, numbered 0 … {folders - 1} in their order, but the network knows "
            f"{score.outputs.classes} classes: if some are missing, the accuracy is wrong; begin the folders' names "
            "with the numbers of the classes"
        )
    report = None
    if operations:
        with console.progress("counting operations") as progress:
            model = network.model if network else None
            report = parspike.measure(snn, images, against=model, progress=progress)
    answer = {
        "file": file,
        "T": snn.T,
        "engine": engine,
        **score.fields(),
        **({"operations": report.to_json()} if report else {}),
        "preprocessing": images.preprocess.to_json(),
        "skipped": _skipped(images),
    }
    text = score.text(file, snn.T, engine, images.preprocess)
    console.result(json, answer, f"{text}\n\n{report}" if report else text)


class _Score:
    """Sums over batches; a share is None where it cannot be told."""

    def __init__(self) -> None:
        import parspike

        self.images = self.spikes = self.neurons = 0
        self.outputs = parspike.Scores()
        self.compared = False
        self.seconds = self.seconds_network = 0.0

    @classmethod
    def of_all(cls, scores: list[_Score]) -> _Score:
        """That of the batches of all processes."""
        total = cls()
        for name in ("images", "spikes", "neurons", "compared", "seconds", "seconds_network"):
            setattr(total, name, sum(getattr(score, name) for score in scores))
        total.outputs = total.outputs.merged(score.outputs for score in scores)
        return total

    def add(self, snn: Any, network: Network | None, engine: str, x: Tensor, y: Tensor | None) -> None:
        import torch

        if not self.images:  # the first call prepares kernels and memory: not what an image costs
            snn.run(x[:1], engine=engine)
        start = time.perf_counter()
        run = snn.run(x, engine=engine, record=True)
        self.seconds += time.perf_counter() - start
        self.images += len(x)
        # In float64 sums of counts are exact, so their order and who formed them do not matter.
        for sent in run.sent.values():
            self.spikes, self.neurons = self.spikes + float(sent.sum(dtype=torch.float64)), self.neurons + sent.numel()
        output = None
        if network is not None:
            start = time.perf_counter()
            with torch.inference_mode():
                output = network.model(x)
            self.seconds_network += time.perf_counter() - start
            self.compared = True
        self.outputs.add(run.logits, output, y)
        classes = self.outputs.classes
        if y is not None and 0 < classes <= int(y.max()):
            raise InputError(
                f"the data have a class {int(y.max())} but the network knows {classes} classes (0 … n−1): the two do "
                "not belong together; where the outputs are values and no class scores, give images without labels"
            )

    def fields(self) -> dict[str, Any]:
        n = self.images
        return {
            "images": n,
            "accuracy": self.outputs.accuracy,
            "network_accuracy": self.outputs.network_accuracy,
            "agreement": self.outputs.agreement,
            "error": self.outputs.error,
            "spikes_per_neuron": self.spikes / self.neurons if self.neurons else None,
            "seconds_per_image": self.seconds / n,
            "network_seconds_per_image": self.seconds_network / n if self.compared else None,
        }

    def text(self, file: str, T: int, engine: str, preprocess: Preprocessing) -> str:
        score = self.fields()
        values = "values, no class scores: --against SPEC tells their error"

        def percent(name: str) -> str | None:
            return None if score[name] is None else f"{100 * score[name]:.2f} %"

        def milliseconds(name: str) -> str | None:
            return None if score[name] is None else f"{console.figure(1000 * score[name])} ms an image"

        spikes = score["spikes_per_neuron"]
        return console.table(
            {
                "file": file,
                "T, engine": f"{T}, {engine}",
                "images": score["images"],
                "accuracy": percent("accuracy"),
                "network's accuracy": percent("network_accuracy"),
                "agreement": percent("agreement"),
                "outputs": None if self.outputs.answers or self.compared else values,
                "relative error": percent("error"),
                "spikes per neuron": None if spikes is None else f"{spikes:.3f} of {T}",
                "time": milliseconds("seconds_per_image"),
                "network's time": milliseconds("network_seconds_per_image"),
                "preprocessing": preprocess,
            }
        )


def load(spec: str, weights: str | None) -> Network:
    """The network of a SPEC, with a warning where its weights are random."""
    from parspike.cli.spec import load_network

    network = load_network(spec, weights)
    if network.random_weights:
        console.warn(f"{spec} has random weights: give trained ones with --weights FILE")
    return network


def _example(network: Network, shape: str | None) -> Tensor:
    """Two samples of zeros in the shape asked for, else in the one that the library states."""
    import torch

    from parspike.cli.spec import parse_shape

    one = parse_shape(shape) if shape else network.shape
    if one is None:
        raise OptionError(
            f"the input of {network.spec} is not known: give one sample's shape, such as --shape 3,224,224"
        )
    return torch.zeros(2, *one)


def preprocessing(
    base: Preprocessing | None,
    shape: str | None,
    size: int | None,
    crop: int | None,
    mean: str | None,
    std: str | None,
) -> Preprocessing:
    """What the options ask, over what the network's library states."""
    from parspike.cli.data import Preprocessing
    from parspike.cli.spec import parse_shape

    asked: dict[str, Any] = {
        "size": size,
        "crop": crop,
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
    }
    if shape and len(parsed := parse_shape(shape)) == 3 and parsed[0] in (1, 3):
        asked["channels"] = parsed[0]
    return replace(base or Preprocessing(), **{k: v for k, v in asked.items() if v is not None})


def _stored(snn: Any) -> Preprocessing | None:
    """How `parspike convert` prepared the images of the calibration."""
    from parspike.cli.data import Preprocessing

    said = snn.provenance.get("command_line")
    return Preprocessing.from_json(said["preprocessing"]) if said else None


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{option} {text}: expected numbers with commas, such as 0.485,0.456,0.406") from error


def _kept(patterns: list[str] | None) -> dict[str, Any]:
    import parspike

    return {pattern: parspike.Keep() for pattern in patterns or ()}


def check_output(path: Path, force: bool) -> None:
    """Before minutes of calibration, not after."""
    if path.exists() and not force:
        raise FileError(f"{path} exists: write over it with --force, or choose another name")
    if not path.parent.is_dir():
        raise FileError(f"{path}: there is no folder {path.parent}; make it first")


def _skipped(images: Images | None) -> list[str]:
    """The files left out, said once on stderr."""
    names = images.broken if images else []
    if names:
        console.warn(f"{len(names)} images could not be decoded and were left out: {', '.join(names)}")
    return names


def _chosen(provenance: dict[str, Any]) -> str:
    """The recipe, and where several were tried how each did on the images held out."""
    search = provenance.get("search", {})
    tried = [
        f"{t['recipe']['name']}{_variant(t['recipe'])} {t['distance']:.3f}"
        for t in search.get("tried", ())
        if "distance" in t
    ]
    made = search.get("chosen", provenance["recipe"])
    options = ", ".join(f"{key}={value}" for key, value in made.items() if key != "name" and value not in ("", None))
    text = f"{made['name']} ({options})" if options else made["name"]
    return f"{text}; distance of the outputs on held-out images: {', '.join(tried)}" if tried else text


def _variant(recipe: dict[str, Any]) -> str:
    """What tells a recipe of `Auto` from the others of its name."""
    if recipe["name"] != "closed-form":
        return ""
    return f" (weigh {recipe.get('weigh', 'next')})" if recipe.get("refit", True) else " without refit"


def recipe_of(recipe: str | None, passes: int | None) -> Any:
    """The recipe by name or JSON, `passes` put into it."""
    import parspike

    if recipe is None and passes is None:
        return None
    made = parspike.recipe_from_json(recipe) if recipe else parspike.DAQCFS()
    if passes is None:
        return made
    if "passes" not in (field.name for field in fields(made)):
        raise OptionError(f"--passes {passes}: the recipe '{made.name}' makes no passes")
    return replace(made, passes=passes)
