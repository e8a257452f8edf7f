"""`parspike data check`: what is in the data, and what training would stumble over. torch is imported inside it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parspike.cli import checks, console
from parspike.cli.options import IMAGES_OR_HUB, Crop, Json, Side, SkipBroken
from parspike.errors import InputError, OptionError

if TYPE_CHECKING:
    from parspike.cli.images import Images

__all__ = ["check"]


def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help=IMAGES_OR_HUB)],
    size: Side = None,
    crop: Crop = None,
    skip_broken: SkipBroken = False,
    json: Json = False,
) -> None:
    """Say what is in the data: images, classes and sizes of each split, and what training would stumble over.

    Exit code 1 if there is such a fault.
    """
    if data.endswith(".txt"):
        raise OptionError(f"{data}: this is text, and data check looks at images; `convert` and `eval` read text")
    if not data.startswith("hf:"):
        checks.images(data, None)
    from parspike.cli.images import unlike_folders

    opened = _splits(data, size, crop)
    with console.progress("reading") as progress:
        splits = {name: _look(images, progress) for name, images in opened.items()}
    problems = [p for name, split in splits.items() for p in _problems(name, split, skip_broken)]
    problems += [
        f"{name}: labelled otherwise than train: {unlike}"
        for name, images in opened.items()
        if "train" in opened and (unlike := unlike_folders(opened["train"], images))
    ]
    rows: dict[str, Any] = {}
    for name, split in splits.items():
        counts = split["classes"].values()
        rows[name or data] = f"{split['images']} images" + (
            f", {len(counts)} classes{_numbers(split['classes'])} with {_between(min(counts), max(counts))} images each"
            if counts
            else ", no class for each image"
        )
        rows[f"{name} sizes".strip()] = ", ".join(f"{size} ({n})" for size, n in split["sizes"].items())
        rows[f"{name} broken".strip()] = ", ".join(split["broken"]) or None
    rows |= {f"problem {number}": problem for number, problem in enumerate(problems, 1)}
    console.result(json, {"data": data, "splits": splits, "problems": problems}, console.table(rows))
    if problems:
        raise typer.Exit(1)


def _splits(data: str, size: int | None, crop: int | None) -> dict[str, Images]:
    from parspike.cli.images import Images, open_images
    from parspike.cli.preprocess import Preprocessing
    from parspike.cli.sources import SPLITS, Inputs
    from parspike.train import Hub

    preprocess, found, inputs = Preprocessing(size=size, crop=crop), {}, Inputs(frames="steps")
    hub = data.removeprefix("hf:") if data.startswith("hf:") else ""
    one = bool(hub) and ("@" in hub or hub.endswith(".parquet"))
    for split in () if one else SPLITS:
        try:
            source = (
                Images(Hub(hub, split), preprocess)
                if hub
                else open_images(data, preprocess, split=split, inputs=inputs)
            )
        except OptionError:  # the data have no such split
            continue
        found[split] = source
    return found or {"": Images(Hub(hub, "train"), preprocess) if hub else open_images(data, preprocess, inputs=inputs)}


def _look(images: Images, progress: Any) -> dict[str, Any]:
    """Every image read once, one at a time."""
    from parspike.broken import BROKEN, reason
    from parspike.cli.sources import classes_of

    source, labels = images.source, classes_of(images.source)
    sizes, classes, broken, wrong = Counter(), Counter(), [], []
    for index, name in enumerate(source.names):
        try:
            x = source.read(index, images.preprocess)
        except InputError as error:  # it does not fit, which is another matter
            raise InputError(f"{name}: {error}") from error
        except BROKEN as error:
            broken.append(f"{name} ({reason(error)})")
            continue
        sizes["×".join(map(str, x.shape))] += 1
        if not bool(x.isfinite().all()):
            wrong.append(name)
        if index < len(labels):
            classes[str(labels[index])] += 1
        progress("", index + 1, len(source.names))
    ordered = sorted(classes.items(), key=lambda item: int(item[0]))
    return {
        "images": sizes.total(), "classes": dict(ordered), "sizes": dict(sizes.most_common()), "broken": broken,
        "not_finite": wrong,
    }  # fmt: skip


def _numbers(classes: dict[str, int]) -> str:
    """The numbers of the classes, where they are not 0, 1, 2, …: a network has an output for each number from 0 on."""
    names = list(classes)
    return "" if names == [str(n) for n in range(len(names))] else f", numbered {names[0]} … {names[-1]},"


def _between(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _problems(name: str, split: dict[str, Any], skip_broken: bool) -> list[str]:
    where = f"{name}: " if name else ""
    problems = []
    if split["broken"] and not skip_broken:
        problems.append(f"{where}{len(split['broken'])} images cannot be decoded; replace them, or use --skip-broken")
    if wrong := split["not_finite"]:
        problems.append(f"{where}{len(wrong)} hold NaN or Inf, {wrong[0]} first; leave them out")
    if len(split["sizes"]) > 1:
        problems.append(f"{where}images of {len(split['sizes'])} sizes; give size and crop")
    if not split["classes"]:
        problems.append(f"{where}no class for each image; put the images into one folder a class")
    elif (least := int(next(iter(split["classes"])))) < 0:
        problems.append(f"{where}a class {least}; classes are numbered 0, 1, 2, …")
    elif len(split["classes"]) == 1:
        problems.append(f"{where}all images are of one class")
    return problems
