"""Checks of options before torch is imported and data are read, so that an error comes after seconds, not minutes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parspike.cli import console
from parspike.cli.options import BEST, CODES, EXPORTS, FAST, MAX_T, NEURONS, RECIPES, TABLES
from parspike.errors import FileError, MissingExtraError, OptionError, meant
from parspike.foreign import RECIPES_OF_PACKAGES

__all__ = [
    "analog", "budget", "codes", "exported", "file", "images", "network", "neuron", "output", "page", "recipe", "steps",
    "tables", "writable",
]  # fmt: skip

FIGURES = (".png", ".svg", ".pdf")

FOREIGN = {
    ".onnx": "ONNX", ".pt": "PyTorch", ".pth": "PyTorch", ".ckpt": "PyTorch", ".pkl": "pickle", ".h5": "HDF5",
    ".safetensors": "plain safetensors", ".keras": "Keras", ".tflite": "TFLite", ".nir": "NIR", ".npz": "NumPy",
    ".json": "JSON",
}  # fmt: skip
"""Endings of file names, and the program whose files have them."""


def output(path: Path, force: bool) -> None:
    """Refuse an output that exists or cannot be written, before minutes of calibration."""
    writable(path, force, "--output", "net.parspike")
    if path.suffix.lower() in FOREIGN:
        console.warn(
            f"{path} will hold parspike's own format, not {FOREIGN[path.suffix.lower()]}: call it {path.stem}.parspike"
        )


def tables(files: Sequence[str], force: bool) -> None:
    """Refuse files that `parspike sweep` cannot write, before minutes of calibration."""
    for file in files:
        path, suffix = Path(file), Path(file).suffix.lower()
        if suffix not in TABLES:
            raise OptionError(f"--out {file}: a file ends in {', '.join(TABLES)}{meant(suffix, TABLES)}")
        writable(path, force, "--out", "sweep.csv")
        if suffix in FIGURES and find_spec("matplotlib") is None:
            raise MissingExtraError("matplotlib", extra="report")


def page(path: Path, force: bool) -> None:
    """Refuse a report that cannot be written, before minutes of measuring."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"--output {path}: a report is a page, whose name ends in .html; a browser prints it as PDF")
    writable(path, force, "--output", "report.html")
    for module in ("matplotlib", "jinja2"):
        if find_spec(module) is None:
            raise MissingExtraError(module, extra="report")


def exported(path: Path, force: bool) -> None:
    """Refuse a file that `parspike export` cannot write, before the network is read."""
    suffix = path.suffix.lower()
    if suffix not in EXPORTS:
        raise OptionError(f"{path}: the file's name says the format: {', '.join(EXPORTS)}{meant(suffix, EXPORTS)}")
    writable(path, force, "OUT", f"net{suffix}")
    if suffix == ".nir" and find_spec("h5py") is None:
        raise MissingExtraError("h5py", extra="export")


def writable(path: Path, force: bool, option: str, name: str) -> None:
    """Refuse an output that exists or cannot be written. name: an example of a file's name, for the message."""
    # Of os.path, since Path.is_dir raises where a folder above may not be entered.
    if os.path.isdir(path):
        raise FileError(f"{option} {path}: this is a folder; name a file in it, such as {path / name}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileError(f"{option} {path}: this is a device or a pipe, whose place a file would take; name a file")
    if os.path.exists(path) and not force:
        raise FileError(f"{path} exists: write over it with --force, or choose another name")
    if not os.path.isdir(path.parent):
        raise FileError(f"{path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"{path}: the folder {path.parent} cannot be written to")


def steps(text: str, option: str = "--T") -> list[int]:
    """The numbers of --T, or of another option; refuses what is no whole number of at least 1, and repeats."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"[0-9]+", part) or not 1 <= int(part) <= MAX_T:
            raise OptionError(f"{option} {text}: '{part}' is no whole number from 1 to {MAX_T}; give such as 1,2,4,8")
    numbers = [int(part) for part in parts]
    if twice := next((T for T in numbers if numbers.count(T) > 1), None):
        raise OptionError(f"{option} {text}: {twice} stands there more than once; give each number once")
    return numbers


def codes(text: str) -> list[Any]:
    """The codes of --codes; refuses unknown ones, and repeats."""
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in CODES:
            raise OptionError(f"--codes {text}: '{name}' is none of {', '.join(CODES)}{meant(name, CODES)}")
        if names.count(name) > 1:
            raise OptionError(f"--codes {text}: {name} stands there more than once; give each code once")
    return names


def file(path: str, option: str = "") -> None:
    """Raise `FileError` for a missing file."""
    if not Path(path).is_file():
        no_file = f"'{path}' is no file" if Path(path).exists() else f"there is no file '{path}'"
        text = f"'{path}' is a folder: name a file in it" if Path(path).is_dir() else no_file
        raise FileError(f"{option} {path}: {text}" if option else text)


def network(spec: str, weights: str | None, shape: str | None = None, give: str = "") -> None:
    """Refuse a missing network. With `give`, the option to name in the message, also one whose input shape is
    unknown."""
    from parspike.cli.spec import check_spec, parse_shape, states_input

    check_spec(spec, weights)
    if shape:
        parse_shape(shape)
    elif give and not states_input(spec):
        raise OptionError(f"the input of {spec} is not known: give {give}")


def images(data: str, split: str | None, option: str = "--data") -> None:
    """Raise an error for missing images."""
    from parspike.cli.sources import check_data

    check_data(data, split, option)


def neuron(text: str, given: str = "current", **parallel: object) -> None:
    """Refuse an unknown kind of neurons, and options that belong to another kind. given: --input. parallel: the values
    of options that only parallel neurons have, by name; None or False where they were not given."""
    found = re.fullmatch(r"parallel|if|if-zero|(?:lif|lif-zero):([0-9.]+)", text)
    if found is None or (found[1] is not None and not _is_share(found[1])):
        raise OptionError(
            f"--neuron {text}: choose one of {', '.join(NEURONS)}; the number is the decay, above 0, at most 1"
        )
    for name, value in parallel.items():
        if text != "parallel" and value is not None and value is not False:
            option = f"--{name}" if value is True else f"--{name} {value}"
            raise OptionError(f"{option} is of parallel neurons: leave it out beside --neuron {text}")
    if text == "parallel" and given != "current":
        raise OptionError(f"--input {given} makes spikes for neurons that run step by step: give --neuron if too")


def analog(analog: str, encode: str) -> None:
    """Refuse neurons in place of analog operators where no encoders stand."""
    if analog != "computed" and encode == "none":
        raise OptionError(f"--analog {analog} makes neurons of what encoders leave analog: give --encode all too")


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False


def budget(
    text: str | None, seconds: float | None, fast: bool, best: bool, passes: int | None = None, neuron: str = "parallel"
) -> float | None:
    """The seconds that --budget, --fast or --best give to the default recipe's search; None where none was given.
    Refuses several of them, and what has no search. text: --recipe."""
    given = [name for name, value in (("--budget", seconds), ("--fast", fast), ("--best", best)) if value]
    if seconds is not None and not seconds > 0:
        raise OptionError(f"--budget {seconds:g}: give seconds above 0")
    if not given:
        return None
    if len(given) > 1:
        raise OptionError(f"{' and '.join(given)} say the same in two ways: give one of them")
    if text not in (None, "auto") or passes is not None:
        other = f"--recipe {text}" if passes is None else "--passes"
        raise OptionError(f"{given[0]} is for the search of the default recipe: leave it or {other} out")
    if neuron != "parallel":
        raise OptionError(f"{given[0]} is for the search among recipes of parallel neurons: leave it out")
    return FAST if fast else BEST if best else seconds


def recipe(text: str | None, passes: int | None = None) -> None:
    """Refuse unknown recipes and options, and --passes for a recipe that makes none."""
    if text is None:
        return
    try:
        value = json.loads(text) if text.lstrip().startswith("{") else {"name": text}
    except json.JSONDecodeError as error:
        raise OptionError(f"--recipe {text}: not valid JSON: {error}") from error
    name = value.pop("name", None)
    if name == "max" or str(name).endswith("%"):
        name = "thresholds"
    if name not in RECIPES:
        if ":" in str(name) or name in entry_points(group=RECIPES_OF_PACKAGES).names:
            return  # the user's own: torch is needed to look at it
        raise OptionError(
            f"there is no recipe '{name}'{meant(name, RECIPES)}: choose one of {', '.join(RECIPES)}, or 'max', or a "
            "percentile such as '99.9%', or file.py:Class for your own"
        )
    for option in value:
        if option not in RECIPES[name]:
            raise OptionError(
                f"recipe '{name}' has no option '{option}'{meant(option, RECIPES[name])}; "
                f"it has {', '.join(RECIPES[name])}"
            )
    if passes is not None and "passes" not in RECIPES[name]:
        raise OptionError(f"--passes {passes}: the recipe '{name}' makes no passes")
