"""`parspike train` and `parspike data check`. torch is imported inside them, so that `--help` answers at once."""

from __future__ import annotations

import hashlib
import json as json_format
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parspike.cli import commands, console
from parspike.cli.console import Panel
from parspike.errors import FileError, InputError, OptionError

if TYPE_CHECKING:
    from parspike.cli.data import Images
    from parspike.train import OnDemand, Recipe, Stream
    from parspike.train.data import Data

__all__ = ["data_app", "train"]

DATA = "a folder of class folders, a .zip of one, an .npz (images, labels), digits, or hf:NAME of Hugging Face datasets"


def _recipes(incomplete: str) -> list[str]:
    from parspike.train.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="a recipe's name, or a .toml file", autocompletion=_recipes)
    ],
    data: Annotated[str, typer.Option(help=DATA, rich_help_panel=Panel.DATA)],
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
    skip_broken: commands.SkipBroken = False,
    json: commands.Json = False,
) -> None:
    """Train a network whose activations are QCFS, so that it converts without loss."""
    from parspike.train.recipe import load_recipe

    made = load_recipe(recipe).replace(_changes(change))
    if network is not None:
        made = made.replace({"network": network})
    _check_folder(output, resume)
    number = devices if devices == "auto" else _number("--devices", devices)
    for given in {data, test_data or data}:
        if not given.startswith("hf:"):
            commands.check_images(given, None)
    if weights is not None:
        commands.check_file(weights, "--from")
    import torch

    from parspike.train import Devices, OnDemand, Stream, fit

    with console.progress("") as progress:
        held_out = _open(test_data or data, "test", made, skip_broken)
        if stream:
            training = _stream(data, made, skip_broken)
        else:
            images = _open(data, "train", made, skip_broken)
            if unlike := _unlike_folders(images, held_out):
                raise InputError(f"training and test images are labelled differently: {unlike}")
            if test_data in (None, data) and images.names == held_out.names:
                console.warn(f"{data} has no test images: the accuracy is that of the training images")
            training = _on_demand(images, made, made.augment.resized_crop) if on_demand else _arrays(
                images, data, "train", cache, progress
            )  # fmt: skip
        if on_demand or stream:
            test = _on_demand(held_out, made, 0)
        else:
            test = _arrays(held_out, test_data or data, "test", cache, progress)
        model = _network(made, weights, training)
        result = fit(
            made, model, training, test, output,
            devices=Devices(accelerator, number, nodes, strategy),
            resume=resume, save_every=save_every, tensorboard=tensorboard, compile=compile, progress=progress,
        )  # fmt: skip
    for read in (training, test):
        if isinstance(read, OnDemand | Stream):
            _left_out(read.decoder.broken)
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return  # one of several processes speaks
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


def _on_demand(images: Images, recipe: Recipe, crop: int) -> OnDemand:
    from parspike.cli.data import Preprocessing
    from parspike.train import Decoder, OnDemand

    preprocess = Preprocessing() if crop else images.preprocess
    return OnDemand(images.source, preprocess, Decoder(crop, images.skip_broken))


def _stream(data: str, recipe: Recipe, skip_broken: bool) -> Stream:
    from parspike.cli.data import Preprocessing
    from parspike.train import Decoder, Stream

    if not data.startswith("hf:"):
        raise OptionError(f"--stream reads data sets of Hugging Face (hf:NAME); for {data} take --on-demand")
    crop = recipe.augment.resized_crop
    preprocess = Preprocessing() if crop else Preprocessing(size=recipe.data.size, crop=recipe.data.crop)
    decoder = Decoder(crop, skip_broken)
    return Stream(data.removeprefix("hf:"), "train", recipe.data.classes, preprocess, decoder)


def _network(recipe: Recipe, weights: str | None, training: Data | Stream) -> Any:
    import torch

    from parspike.cli.spec import _set_state, load_network
    from parspike.train import Stream, make_network
    from parspike.train.networks import NETWORKS, build

    base = None
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        if recipe.network not in NETWORKS:
            base = load_network(recipe.network, weights).model
        elif weights is not None:
            base = build(recipe.network, recipe.data.classes)
            _set_state(base, recipe.network, weights)
    if isinstance(training, Stream):
        x = training.take(min(256, len(training)), 0, recipe.seed)[0]
    else:
        few = torch.arange(0, len(training), max(1, len(training) // 256))[:256]
        x = training.take(few, 0)[0]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (recipe.data.mean, recipe.data.std))
    try:
        return make_network(recipe, base, (x - mean) / std)
    except RuntimeError as error:
        raise InputError(
            f"{recipe.network} cannot take these images, {tuple(x.shape[1:])} (C, H, W): {str(error).splitlines()[0]}; "
            "train another network, or set data.size and data.crop"
        ) from error


def _arrays(images: Images, data: str, split: str, cache: Path, progress: Any) -> Data:
    from parspike.train import decode

    path = Path(data)
    where = None
    if path.exists():
        source = images.source
        # A folder's own time does not tell that an image in it was replaced; labels may change with another split.
        files = [path / name for name in source.names] if path.is_dir() else [path]
        about = [[file.stat().st_mtime_ns, file.stat().st_size] for file in files]
        key = json_format.dumps([
            str(path.resolve()), list(source.names), about, list(source.labels or ()), images.preprocess.to_json(),
            images.skip_broken,
        ])  # fmt: skip
        where = cache / f"{path.stem}-{split}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    arrays = decode(images, len(images), where, progress)
    _left_out(images.broken)
    return arrays


def _left_out(broken: list[str]) -> None:
    if broken:
        console.warn(f"{len(broken)} images could not be decoded and were left out: {console.few(broken)}")


def _open(data: str, split: str, recipe: Recipe, skip_broken: bool) -> Images:
    from parspike.cli.data import Images, Preprocessing, open_images
    from parspike.train import Hub

    preprocess = Preprocessing(size=recipe.data.size, crop=recipe.data.crop)
    if data.startswith("hf:"):
        return Images(Hub(data.removeprefix("hf:"), split), preprocess, batch_size=256, skip_broken=skip_broken)
    return open_images(data, preprocess, prefer=split, batch_size=256, skip_broken=skip_broken)


data_app = typer.Typer(no_args_is_help=True, help="Look at data before they are used.")


def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    size: commands.Side = None,
    crop: commands.Crop = None,
    skip_broken: commands.SkipBroken = False,
    json: commands.Json = False,
) -> None:
    """Say what is in the data: images, classes and sizes of each split, and what training would stumble over.

    Exit code 1 if there is something of the kind.
    """
    if not data.startswith("hf:"):
        commands.check_images(data, None)
    opened = _splits(data, size, crop)
    with console.progress("reading") as progress:
        splits = {name: _look(images, progress) for name, images in opened.items()}
    problems = [p for name, split in splits.items() for p in _problems(name, split, skip_broken)]
    problems += [
        f"{name}: labelled otherwise than train: {unlike}"
        for name, images in opened.items()
        if "train" in opened and (unlike := _unlike_folders(opened["train"], images))
    ]
    rows: dict[str, Any] = {}
    for name, split in splits.items():
        counts = split["classes"].values()
        rows[name or data] = f"{split['images']} images" + (
            f", {len(counts)} classes with {min(counts)} to {max(counts)} images each" if counts else ", no labels"
        )
        rows[f"{name} sizes".strip()] = ", ".join(f"{size} ({n})" for size, n in split["sizes"].items())
        rows[f"{name} broken".strip()] = ", ".join(split["broken"]) or None
    rows |= {f"problem {number}": problem for number, problem in enumerate(problems, 1)}
    console.result(json, {"data": data, "splits": splits, "problems": problems}, console.table(rows))
    if problems:
        raise typer.Exit(1)


def _splits(data: str, size: int | None, crop: int | None) -> dict[str, Images]:
    from parspike.cli.data import SPLITS, Images, Preprocessing, open_images
    from parspike.train import Hub

    preprocess, found = Preprocessing(size=size, crop=crop), {}
    hub = data.removeprefix("hf:") if data.startswith("hf:") else ""
    one = bool(hub) and ("@" in hub or hub.endswith(".parquet"))
    for split in () if one else SPLITS:
        try:
            source = Images(Hub(hub, split), preprocess) if hub else open_images(data, preprocess, split=split)
        except OptionError:  # the data have no such split
            continue
        found[split] = source
    return found or {"": Images(Hub(hub, "train"), preprocess) if hub else open_images(data, preprocess)}


def _look(images: Images, progress: Any) -> dict[str, Any]:
    """Every image read once, one at a time."""
    from parspike.broken import BROKEN, reason

    source, sizes, classes, broken = images.source, Counter(), Counter(), []
    for index, name in enumerate(source.names):
        try:
            shape = source.read(index, images.preprocess).shape
        except BROKEN as error:
            broken.append(f"{name} ({reason(error)})")
            continue
        sizes["×".join(map(str, shape))] += 1
        if source.labels is not None:
            classes[str(source.labels[index])] += 1
        progress("", index + 1, len(source.names))
    ordered = sorted(classes.items(), key=lambda item: int(item[0]))
    return {"images": sizes.total(), "classes": dict(ordered), "sizes": dict(sizes.most_common()), "broken": broken}


def _problems(name: str, split: dict[str, Any], skip_broken: bool) -> list[str]:
    where = f"{name}: " if name else ""
    problems = []
    if split["broken"] and not skip_broken:
        problems.append(f"{where}{len(split['broken'])} images cannot be decoded; replace them, or use --skip-broken")
    if len(split["sizes"]) > 1:
        problems.append(f"{where}images of {len(split['sizes'])} sizes; give size and crop")
    if not split["classes"]:
        problems.append(f"{where}no labels; put the images into one folder a class")
    elif len(split["classes"]) == 1:
        problems.append(f"{where}all images are of one class")
    return problems


def _unlike_folders(train: Images, other: Images) -> str:
    """Classes are numbered within each split, so a class that one of them lacks shifts all labels after it."""
    ours, theirs = _folders(train), _folders(other)
    if not ours or not theirs:
        return ""
    unlike = [
        f"{name} is {ours[name]} and {theirs[name]}" if name in ours else f"{name} has no training images"
        for name in theirs
        if ours.get(name) != theirs[name]
    ]
    return ", ".join(unlike)


def _folders(images: Images) -> dict[str, int]:
    """The label of each class folder; empty where folders don't tell."""
    labels: dict[str, int] = {}
    for name, label in zip(images.source.names, images.source.labels or (), strict=False):
        folder = PurePosixPath(name).parent.name
        if not folder or labels.setdefault(folder, label) != label:
            return {}
    return labels
