"""`parspike train`. torch is imported inside it, so that `--help` answers at once."""

from __future__ import annotations

import hashlib
import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parspike.cli import checks, console
from parspike.cli.console import Panel
from parspike.cli.options import IMAGES_OR_HUB, Json, SkipBroken
from parspike.errors import FileError, InputError, OptionError

if TYPE_CHECKING:
    from parspike.cli.images import Images
    from parspike.train import HubStream, OnDemand, TrainingRecipe
    from parspike.train.data import Examples

__all__ = ["train"]


def _recipes(incomplete: str) -> list[str]:
    from parspike.train.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="a recipe's name, or a .toml file", autocompletion=_recipes)
    ],
    data: Annotated[str, typer.Option(help=IMAGES_OR_HUB, rich_help_panel=Panel.DATA)],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="weights, checkpoint and log go here", rich_help_panel=Panel.OUTPUT
        ),
    ],
    test_data: Annotated[
        str | None,
        typer.Option(help="the images to score on (default: --data's test split)", rich_help_panel=Panel.DATA),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="train this one instead of the recipe's", rich_help_panel=Panel.TRAINING),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--from", help="start from these weights of the ReLU network", rich_help_panel=Panel.TRAINING),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="change the recipe: optimiser.epochs=30", rich_help_panel=Panel.TRAINING
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the checkpoint in FOLDER", rich_help_panel=Panel.OUTPUT)
    ] = False,
    devices: Annotated[str, typer.Option(help="how many devices, or auto", rich_help_panel=Panel.DEVICES)] = "auto",
    nodes: Annotated[
        int, typer.Option(min=1, help="machines; start each with torchrun", rich_help_panel=Panel.DEVICES)
    ] = 1,
    strategy: Annotated[
        str, typer.Option(help="auto, ddp or fsdp, as Lightning Fabric names them", rich_help_panel=Panel.DEVICES)
    ] = "auto",
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps", rich_help_panel=Panel.DEVICES)] = "auto",
    save_every: Annotated[
        float, typer.Option(min=0, help="seconds between checkpoints", rich_help_panel=Panel.OUTPUT)
    ] = 60.0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="also log for TensorBoard", rich_help_panel=Panel.OUTPUT)
    ] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="compile the whole network", rich_help_panel=Panel.DEVICES)
    ] = False,
    cache: Annotated[Path, typer.Option(help="decoded images are kept here", rich_help_panel=Panel.DATA)] = Path(
        "runs/cache"
    ),
    on_demand: Annotated[
        bool,
        typer.Option(
            "--on-demand",
            help="decode images when they are needed, not all of them once (ImageNet)",
            rich_help_panel=Panel.DATA,
        ),
    ] = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="read the training images of hf: while they arrive, and keep none",
            rich_help_panel=Panel.DATA,
        ),
    ] = False,
    skip_broken: SkipBroken = False,
    json: Json = False,
) -> None:
    """Train a network whose activations are QCFS, so that it converts without loss."""
    from parspike.train.recipe import load_recipe

    changes = _changes(change) | ({} if network is None else {"network": network})
    _check_folder(output, resume)
    number = devices if devices == "auto" else _number("--devices", devices)
    for given in {data, test_data or data}:
        if not given.startswith("hf:"):
            checks.images(given, None)
    if weights is not None:
        checks.file(weights, "--from")
    made = load_recipe(recipe).replace(changes)
    import torch

    from parspike.cli.images import unlike_folders
    from parspike.train import Devices, HubStream, OnDemand, fit

    with console.progress("") as progress:
        held_out = _open(test_data or data, "test", made, skip_broken)
        if stream:
            training = _stream(data, made, skip_broken)
        else:
            images = _open(data, "train", made, skip_broken)
            if unlike := unlike_folders(images, held_out):
                raise InputError(f"training and test images are labelled differently: {unlike}")
            if test_data in (None, data) and images.names == held_out.names:
                console.warn(f"{data} has no test images: the accuracy is that of the training images")
            training = _on_demand(images, made.augment.resized_crop) if on_demand else _arrays(
                images, data, "train", cache, progress
            )  # fmt: skip
        if on_demand or stream:
            test = _on_demand(held_out, 0)
        else:
            test = _arrays(held_out, test_data or data, "test", cache, progress)
        progress("first step", 0, 0)  # which may compile the activation for a minute
        model = _network(made, weights, training)
        result = fit(
            made, model, training, test, output,
            devices=Devices(accelerator, number, nodes, strategy),
            resume=resume, save_every=save_every, tensorboard=tensorboard, compile=compile, progress=progress,
        )  # fmt: skip
    for read in (training, test):
        if isinstance(read, OnDemand | HubStream):
            console.left_out(read.decoder.broken)
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return  # rank 0 alone prints
    fields = {
        "recipe": made.to_json(), "accuracy": result.accuracy, "epoch": result.epoch, "step": result.step,
        "seconds": round(result.seconds, 1), "weights": str(result.weights),
    }  # fmt: skip
    text = {
        "accuracy": f"{100 * result.accuracy:.2f} % of {len(test)} test images",
        "epochs, steps": f"{result.epoch}, {result.step}",
        "time": f"{result.seconds:.0f} s",
        "weights": result.weights,
        "log": output / "log.csv",
    }
    console.result(json, fields, console.table(text))


def _check_folder(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise FileError(f"--output {output}: this is a file, so no folder can be made there; choose another name")
    if (output / "last.ckpt").exists() and not resume:
        raise FileError(f"{output} holds a training: go on with --resume, or choose another folder")


def _changes(texts: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE, the value as TOML would read it, else as text."""
    changes: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"--set {text}: expected NAME=VALUE, such as optimiser.epochs=30")
        try:
            changes[name] = json_format.loads(value)
        except json_format.JSONDecodeError:
            changes[name] = value
    return changes


def _number(option: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise OptionError(f"{option} {text}: expected a number of at least 1, or auto")
    return int(text)


def _on_demand(images: Images, crop: int) -> OnDemand:
    from parspike.cli.preprocess import Preprocessing
    from parspike.train import Decoder, OnDemand

    preprocess = Preprocessing() if crop else images.preprocess
    source: Any = images.source  # `_open` refuses maps of labels
    return OnDemand(source, preprocess, Decoder(crop, images.skip_broken))


def _stream(data: str, recipe: TrainingRecipe, skip_broken: bool) -> HubStream:
    from parspike.cli.preprocess import Preprocessing
    from parspike.train import Decoder, HubStream

    if not data.startswith("hf:"):
        raise OptionError(f"--stream reads data sets of Hugging Face (hf:NAME); for {data} take --on-demand")
    crop = recipe.augment.resized_crop
    preprocess = Preprocessing() if crop else Preprocessing(size=recipe.data.size, crop=recipe.data.crop)
    decoder = Decoder(crop, skip_broken)
    return HubStream(data.removeprefix("hf:"), "train", recipe.data.classes, preprocess, decoder)


def _network(recipe: TrainingRecipe, weights: str | None, training: Examples | HubStream) -> Any:
    import torch

    from parspike.cli.spec import load_network, set_state
    from parspike.train import HubStream, make_network
    from parspike.train.data import normalised
    from parspike.train.networks import NETWORKS, build

    base = None
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        if recipe.network not in NETWORKS:
            base = load_network(recipe.network, weights).model
        elif weights is not None:
            base = build(recipe.network, recipe.data.classes)
            set_state(base, recipe.network, weights)
    if isinstance(training, HubStream):
        x = training.take(min(256, len(training)), 0, recipe.seed)[0]
    else:
        few = torch.arange(0, len(training), max(1, len(training) // 256))[:256]
        x = training.take(few, 0)[0]
    x = normalised(x, recipe.data.mean, recipe.data.std)
    try:
        return make_network(recipe, base, x)
    except InputError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        error = error.__cause__
        raise InputError(
            f"{recipe.network} cannot take these images, {tuple(x.shape[1:])} (C, H, W): {str(error).splitlines()[0]}; "
            "train another network, or set data.size and data.crop"
        ) from error


def _arrays(images: Images, data: str, split: str, cache: Path, progress: Any) -> Examples:
    from parspike.cli.sources import classes_of
    from parspike.train import decode

    path = Path(data)
    where = None
    if path.exists():
        source = images.source
        # A folder's own time does not tell that an image in it was replaced; labels may change with another split.
        files = [path / name for name in source.names] if path.is_dir() else [path]
        about = [[file.stat().st_mtime_ns, file.stat().st_size] for file in files]
        key = json_format.dumps([
            str(path.resolve()), list(source.names), about, list(classes_of(source)), images.preprocess.to_json(),
            images.skip_broken,
        ])  # fmt: skip
        where = cache / f"{path.stem}-{split}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    arrays = decode(images, len(images), where, progress)
    console.left_out(images.broken)
    return arrays


def _open(data: str, split: str, recipe: TrainingRecipe, skip_broken: bool) -> Images:
    from parspike.cli.images import Images, open_images
    from parspike.cli.preprocess import Preprocessing
    from parspike.train import Hub

    preprocess = Preprocessing(size=recipe.data.size, crop=recipe.data.crop)
    if data.startswith("hf:"):
        return Images(Hub(data.removeprefix("hf:"), split), preprocess, batch_size=256, skip_broken=skip_broken)
    images = open_images(data, preprocess, prefer=split, batch_size=256, skip_broken=skip_broken)
    if images.maps:
        raise InputError(f"{data} has maps of labels, and parspike trains on one class for each image")
    return images
