"""The options that several commands have, and what their text means.

torch is imported inside the functions, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from parspike.cli.console import Panel
from parspike.errors import FileError, OptionError

if TYPE_CHECKING:
    import torch

    from parspike.cli.images import Images
    from parspike.cli.preprocess import Preprocessing, Text

__all__ = ["ImageOptions", "RunOptions", "device_of", "kept", "recipe_of", "spread", "starting"]

MAX_T = 1 << 24
"""A copy of `parspike.neurons.MAX_T`, whose module imports torch; a test compares the two."""

RECIPES = {
    "auto": ("budget",),
    "closed-form": ("refit", "shift", "granularity", "ridge", "weigh", "free", "all_rows"),
    "daqcfs": ("momentum", "passes", "means", "mode", "granularity"),
    "reconstruct": ("steps", "batch_size", "rate", "augment", "held_out", "features", "weigh", "checkpoint", "free"),
    "thresholds": ("mode", "granularity"),
    "max-norm": ("reset", "granularity"),
    "snm": (),
    "burst": ("most",),
    "srp": ("probe",),
    "cos": ("looks_at",),
    "h-mt": ("thresholds", "mode", "granularity"),
    "ecmt": ("thresholds", "mode", "granularity", "fires"),
    "dcgs": ("thresholds", "mode", "granularity"),
    "adafire": ("most", "wanted", "share", "granularity"),
    "robust-norm": ("percentile", "decline"),
    "rmp": ("alpha",),
    "opt": ("T_ref", "granularity"),
    "rnl": ("p", "momentum"),
    "qcfs-if": (),
    "snnc-lp": ("granularity", "momentum", "rounds"),
    "snnc-ap": ("granularity", "momentum", "steps", "batch_size", "rate"),
    "tbc": ("iterations", "delay"),
    "ftbc": ("alpha", "iterations", "thresholds", "granularity"),
    "bn-recal": ("bias",),
    "phase": ("granularity", "base", "rounds"),
}
"""Recipes and their options, written here so that completion and the check of names need no torch."""
CODES = ("sorted", "weighted", "onset")
"""A copy of `parspike.neurons.CODES`, and `TABLES` one of `parspike.tables.SUFFIXES`; a test compares them."""
TABLES = (".csv", ".json", ".md", ".tex", ".png", ".svg", ".pdf")
EXPORTS = (".nir", ".onnx", ".pt2")
"""A copy of the endings in `parspike.export.FORMATS`; a test compares them."""
NET, DATA, HOW, OUT = Panel.NETWORK, Panel.DATA, Panel.CONVERSION, Panel.OUTPUT


def starting(*words: str) -> Callable[[str], list[str]]:
    """Completion by those of the words that begin so; files are completed by the shell."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="package.module:factory, file.py:factory, timm:NAME, torchvision:NAME, net.onnx[:OUTPUT], hf:FOLDER",
        autocompletion=starting("timm:", "torchvision:", "hf:"),
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="safetensors, or a state dict saved by torch.save", rich_help_panel=NET)
]
Shape = Annotated[str | None, typer.Option(help="one sample without batch, such as 3,224,224", rich_help_panel=NET)]
Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="keep these layers' activations analog (repeatable)", rich_help_panel=HOW),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="refuse what a spike cannot do instead of keeping it analog", rich_help_panel=HOW),
]
EncodeOption = Annotated[
    Literal["none", "hidden", "all"],
    typer.Option(
        help="neurons where weights and attention read real values: nowhere, all but the inputs (hidden), everywhere",
        rich_help_panel=HOW,
    ),
]
AnalogOption = Annotated[
    Literal["computed", "lookup"],
    typer.Option(
        help="softmax, norms and divisions, beside --encode: computed on the means, or neurons (lookup)",
        rich_help_panel=HOW,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help=f"how to calibrate: {', '.join(RECIPES)}, max, a percentile, or a recipe as JSON",
        autocompletion=starting(*RECIPES, "max", "99.9%"),
        rich_help_panel=HOW,
    ),
]
FAST, BEST = 15.0, 900.0
"""Seconds that --fast and --best stand for."""
Budget = Annotated[
    float | None,
    typer.Option(help="seconds for the default recipe's search (default: 120)", rich_help_panel=HOW),
]
Fast = Annotated[bool, typer.Option("--fast", help=f"--budget {FAST:.0f}", rich_help_panel=HOW)]
Best = Annotated[bool, typer.Option("--best", help=f"--budget {BEST:.0f}", rich_help_panel=HOW)]
NEURONS = ("parallel", "if", "if-zero", "lif:0.9", "lif-zero:0.9")
"""What --neuron is completed with; the number is the decay."""
NeuronOption = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="parallel, or a chip's, step by step: if, if-zero (reset to 0), lif:0.9, lif-zero:0.9 (the decay)",
        autocompletion=starting(*NEURONS),
        rich_help_panel=HOW,
    ),
]
ON_DISK = "a folder of class folders, a .zip of one, an .npz (images, labels), digits"
IMAGES = f"{ON_DISK} or photos; text, a .txt file or a folder of them"
IMAGES_OR_HUB = f"{ON_DISK}, or hf:NAME of Hugging Face datasets"
DataOption = Annotated[
    str, typer.Option(help=IMAGES, autocompletion=starting("digits", "photos"), rich_help_panel=DATA)
]
CalibrationImages = Annotated[
    int, typer.Option(min=1, help="take at most this many of the images, or sequences", rich_help_panel=DATA)
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="take at most this many of the images, or sequences", rich_help_panel=DATA),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout, also for an error", rich_help_panel=OUT)]
Split = Annotated[
    Literal["train", "test", "val"] | None,
    typer.Option(help="where the data are divided so", rich_help_panel=DATA),
]
Side = Annotated[
    int | None, typer.Option("--size", min=1, help="resize the short side to this many pixels", rich_help_panel=DATA)
]
Crop = Annotated[int | None, typer.Option(min=1, help="then cut this square from the centre", rich_help_panel=DATA)]
Mean = Annotated[
    str | None, typer.Option(help="then (x/255 − mean) / std: one value, or one a channel", rich_help_panel=DATA)
]
Std = Annotated[str | None, typer.Option(help="see --mean", rich_help_panel=DATA)]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="images at a time (default: 32; of text 4 sequences)", rich_help_panel=DATA)
]
Tokens = Annotated[
    int | None,
    typer.Option(min=2, help="cut text in sequences of as many tokens (default: 256)", rich_help_panel=DATA),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="the tokenizer of text (default: that of hf:FOLDER)", rich_help_panel=DATA),
]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="leave out images that cannot be decoded", rich_help_panel=DATA)
]
Seed = Annotated[int, typer.Option(min=0, help="chooses which images, and their order", rich_help_panel=DATA)]
Force = Annotated[bool, typer.Option("--force", help="write over FILE if it exists", rich_help_panel=OUT)]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="where the network runs: cpu, cuda, cuda:1, mps; auto: an NVIDIA GPU where torch sees one, else cpu",
        autocompletion=starting("auto", "cpu", "cuda", "mps"),
        rich_help_panel=Panel.DEVICES,
    ),
]


@dataclass(frozen=True)
class ImageOptions:
    """How the images of --data become inputs of the network; `spread` makes each field an option of a command."""

    shape: Shape = None
    size: Side = None
    crop: Crop = None
    mean: Mean = None
    std: Std = None
    batch_size: BatchSize = None
    skip_broken: SkipBroken = False
    seed: Seed = 0
    tokens: Tokens = None
    tokenizer: TokenizerOption = None

    def preprocessing(self, base: Preprocessing | None = None) -> Preprocessing:
        """The preprocessing that the options ask for; `base`, which the network's library states, for all others."""
        from parspike.cli.preprocess import Preprocessing
        from parspike.cli.spec import parse_shape

        asked: dict[str, Any] = {
            "size": self.size,
            "crop": self.crop,
            "mean": _numbers("--mean", self.mean),
            "std": _numbers("--std", self.std),
        }
        if self.shape and len(parsed := parse_shape(self.shape)) == 3 and parsed[0] in (1, 3):
            asked["channels"] = parsed[0]
        asked["text"] = self._text(base.text if base else None)
        return replace(base or Preprocessing(), **{k: v for k, v in asked.items() if v is not None})

    def _text(self, base: Text | None) -> Text | None:
        """How text becomes tokens, if a tokenizer is known."""
        from parspike.cli.preprocess import Text

        if self.tokenizer is not None:
            if not Path(self.tokenizer).exists():
                raise FileError(f"--tokenizer {self.tokenizer}: there is no such folder or file")
            where = str(Path(self.tokenizer).resolve())
            base = replace(base, tokenizer=where) if base else Text(where)
        return base if base is None or self.tokens is None else replace(base, tokens=self.tokens).checked()

    def open(self, data: str, preprocess: Preprocessing, *, parts: int = 1, **chosen: Any) -> Images:
        """The images of `data`. parts: how many batches there have to be; few images come in smaller ones, unless
        --batch-size is given. chosen: split, prefer, limit and shuffle, as `open_images` takes them."""
        from parspike.cli.images import open_images

        asked = self.mean is not None or self.std is not None
        images = open_images(
            data, preprocess, batch_size=self.batch_size, seed=self.seed, skip_broken=self.skip_broken, asked=asked,
            **chosen,
        )  # fmt: skip
        if self.tokens is not None and not images.written:
            raise OptionError(f"--tokens {self.tokens} cuts text, and {data} holds none: leave it out")
        if self.batch_size is not None or -(-len(images) // images.batch_size) >= parts:
            return images
        return replace(images, batch_size=max(1, len(images) // parts))


@dataclass(frozen=True)
class RunOptions(ImageOptions):
    """The same of a command whose networks may run on a GPU."""

    device: DeviceOption = "auto"

    def __post_init__(self) -> None:
        check_device(self.device)

    def placed(self, network: Any) -> Any:
        """The network or tensor where --device says."""
        return network.to(device_of(self.device))

    def open(self, data: str, preprocess: Preprocessing, **chosen: Any) -> Images:
        """As that of `ImageOptions`; the batches lie where --device says."""
        return replace(super().open(data, preprocess, **chosen), device=device_of(self.device))


def check_device(name: str) -> None:
    """Refuse what names no device, before torch is imported."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise OptionError(f"--device {name}: choose auto, cpu, cuda, cuda:1 (the second of several) or mps")


def device_of(name: str) -> torch.device:
    """The device that --device names. Processes that share a command's work take the GPUs in turn. Raises `OptionError`
    for one that torch does not see."""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if found else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise OptionError("--device mps: torch sees no Apple GPU here; give --device cpu, or leave it out")
    if not name.startswith("cuda"):
        return torch.device(name)
    number = int(name.partition(":")[2] or int(os.environ.get("LOCAL_RANK", "0")) % max(found, 1))
    if number >= found:
        seen = f"torch sees {found} of them, from cuda:0 on" if found else "torch sees no NVIDIA GPU here"
        raise OptionError(f"--device {name}: {seen}; give --device cpu, or leave it out")
    return torch.device("cuda", number)


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command for typer: each field of `ImageOptions`, or `RunOptions`, is an option where the parameter `options`
    stands."""
    signature = inspect.signature(command, eval_str=True)
    kind = signature.parameters["options"].annotation
    fields = inspect.signature(kind, eval_str=True).parameters
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        found = fields.values() if parameter.annotation is kind else (parameter,)
        parameters += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in found]

    @wraps(command)
    def run(**given: Any) -> None:
        options = kind(**{name: given.pop(name) for name in fields})
        command(options=options, **given)

    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return run


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{option} {text}: expected numbers with commas, such as 0.485,0.456,0.406") from error


def kept(patterns: list[str] | None) -> dict[str, Any]:
    """The patterns of --keep as `layers=` of `parspike.plan` and `convert`."""
    import parspike

    return {pattern: parspike.Keep() for pattern in patterns or ()}


def kind_of(neuron: str, code: str | None = None) -> Any:
    """The kind of neurons that --neuron and --code name; None for the default."""
    import parspike

    if code is not None:
        return parspike.Parallel(cast(Any, code))
    return None if neuron == "parallel" else parspike.kind_from_text(neuron)


def recipe_of(recipe: str | None, passes: int | None, budget: float | None) -> Any:
    """The recipe by name or JSON, `passes` or the seconds of its search put into it."""
    import parspike

    if budget is not None:
        return parspike.Auto(budget=budget)
    if recipe is None and passes is None:
        return None
    made: Any = parspike.recipe_from_json(recipe) if recipe else parspike.DAQCFS()
    return made if passes is None else replace(made, passes=passes)
