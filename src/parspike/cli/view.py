"""`parspike view`: a page on this machine to explore converted networks. torch is imported inside it."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parspike.cli import checks, console
from parspike.cli.options import (
    DATA,
    HOW,
    NET,
    OUT,
    CalibrationImages,
    DataOption,
    ImageOptions,
    NeuronOption,
    RecipeOption,
    Split,
    Weights,
    kind_of,
    recipe_of,
    spread,
)
from parspike.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from parspike.cli.images import Images
    from parspike.cli.preprocess import Preprocessing

__all__ = ["view"]


@spread
def view(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="what `parspike convert` wrote, one or several")],
    data: DataOption,
    against: Annotated[
        str | None, typer.Option(metavar="SPEC", help="also show the network it came from", rich_help_panel=NET)
    ] = None,
    weights: Weights = None,
    T: Annotated[
        str | None,
        typer.Option(
            "-T",
            "--T",
            metavar="T,T,…",
            help="also convert the network of --against for each, with commas",
            rich_help_panel=HOW,
        ),
    ] = None,
    neuron: NeuronOption = "parallel",
    recipe: RecipeOption = "closed-form",
    split: Split = None,
    limit: Annotated[int, typer.Option(min=1, help="images that can be chosen", rich_help_panel=DATA)] = 100,
    calibration_images: CalibrationImages = 256,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="on 127.0.0.1; 0 takes a free one", rich_help_panel=OUT)
    ] = 0,
    browser: Annotated[bool, typer.Option(help="open the page in a browser", rich_help_panel=OUT)] = True,
    *,
    options: ImageOptions,
) -> None:
    """Explore networks in a browser on this machine: choose an image, watch layers spike over time, move T, compare.

    It serves until Ctrl-C. Only this machine can reach the page, with the address that is printed.
    """  # fmt: skip
    if find_spec("bokeh") is None:
        raise MissingExtraError("bokeh", extra="view")
    for file in files:
        checks.file(file)
    checks.images(data, split)
    for given, option in ((weights, f"--weights {weights}"), (T, f"--T {T}")):
        if given is not None and against is None:
            raise OptionError(f"{option} is of the network of --against SPEC: give it too, or leave {option} out")
    if against is not None:
        checks.network(against, weights)
    steps = [] if T is None else checks.steps(T)
    checks.neuron(neuron)
    checks.recipe(recipe)
    options.preprocessing()
    import parspike
    from parspike.cli.images import explained, inputs_of
    from parspike.cli.preprocess import remembered
    from parspike.cli.spec import load

    networks = dict(zip(_names(files), map(parspike.load, files), strict=True))
    inputs = inputs_of(next(iter(networks.values())))
    network = load(against, weights, next(iter(networks.values()))) if against else None
    base = next((found for snn in networks.values() if (found := remembered(snn))), None)
    preprocess = options.preprocessing(base or (network and network.preprocess))
    images = options.open(data, preprocess, inputs=inputs, split=split, prefer="test", limit=limit)
    by_T: dict[int, Any] = {}
    with explained(images):
        if network is not None and steps:
            fit = options.open(
                data, preprocess, inputs=inputs, split=split, prefer="train", limit=calibration_images, shuffle=True
            )
            if same := len(set(fit.names) & set(images.names)):
                console.warn(
                    f"{same} of the {len(images)} images that can be chosen are among those that the networks of --T "
                    "are fitted on: their answers look better than on others"
                )
            for number in steps:
                with console.progress(f"converting for T = {number}") as progress:
                    by_T[number] = parspike.convert(
                        network.model, fit, T=number, neuron=kind_of(neuron), recipe=recipe_of(recipe, None, None),
                        seed=options.seed, progress=progress,
                    )  # fmt: skip
        parspike.view(
            networks,
            images,
            model=network.model if network else None,
            by_T=by_T,
            names=images.names if not options.skip_broken else None,
            classes=_classes(images),
            picture=_picture(preprocess),
            most=limit,
            port=port,
            browser=browser,
            ready=lambda url: console.result(False, {}, f"{url}\nCtrl-C ends it"),
        )


def _names(files: list[str]) -> list[str]:
    """The files' names, and as much of their folders as tells them apart.

    >>> _names(["a/net.parspike", "b/net.parspike", "c/other.parspike"])
    ['a/net.parspike', 'b/net.parspike', 'other.parspike']
    """
    several = Counter(Path(file).name for file in files)
    if twice := next((file for file, times in Counter(map(str, map(Path, files))).items() if times > 1), None):
        raise OptionError(f"{twice} is given more than once")
    return [Path(file).name if several[Path(file).name] == 1 else str(Path(file)) for file in files]


def _classes(images: Images) -> dict[int, str]:
    """The folder of each class, where folders tell."""
    from parspike.cli.images import class_folders

    return {number: name for name, number in class_folders(images).items() if name != str(number)}


def _picture(preprocess: Preprocessing) -> Any:
    """From what the network is given to what the image was, 0 … 1."""

    def shown(x: Any) -> Any:
        import torch

        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
        return x * std + mean

    return shown
