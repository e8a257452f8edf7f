"""Recipes: everything that decides how a network is trained, as a file that can be read and changed.

A recipe is TOML with one table for each class below; `parspike train cifar10-resnet20` takes the file of that name
in this package, `parspike train my.toml` another.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from parspike.errors import FileError, OptionError

__all__ = ["Activation", "Augment", "Data", "Optimiser", "TrainingRecipe", "load_recipe", "recipe_names"]

FOLDER = Path(__file__).parent / "recipes"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
METHODS = ("qcfs", "relu", "stbp")


@dataclass(frozen=True)
class Activation:
    """What stands in place of the network's activations. See `with_qcfs`; T and the rest are for method "stbp"."""

    method: str = "qcfs"
    levels: int = 8
    v_threshold: float | str = 8.0
    per_channel: bool = False
    window: str = "inner"
    pool: str = "keep"
    T: int = 4

    def __post_init__(self) -> None:
        _among("activation.method", self.method, METHODS)
        _at_least("activation.levels", self.levels, 1)
        _at_least("activation.T", self.T, 1)


@dataclass(frozen=True)
class Data:
    """How an image becomes an input: short side to `size`, centre `crop` (both optional), (x/255 − mean)/std."""

    classes: int = 10
    size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        _at_least("data.classes", self.classes, 2)


@dataclass(frozen=True)
class Augment:
    """Applied to training batches in this order; 0, False or "" leaves a step out.

    crop_padding: pixels of zeros around the image before a random crop of its size. resized_crop: side of a random
    resized crop. flip: mirror half of the images. policy: AutoAugment's "cifar10" or "imagenet". jitter: brightness,
    contrast and saturation by ± this share. cutout: side of one square of the mean colour.
    """

    crop_padding: int = 0
    resized_crop: int = 0
    flip: bool = False
    policy: str = ""
    jitter: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        _among("augment.policy", self.policy, ("", "cifar10", "imagenet"))
        for name in ("crop_padding", "resized_crop", "jitter", "cutout"):
            _at_least(f"augment.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class Optimiser:
    """SGD with a cosine schedule: `warmup` epochs of linear rise, then half a cosine down to zero.

    batch_size: images in one optimiser step, over all devices. accumulate: passes that one step is divided into.
    label_smoothing: share of the target spread over all classes. patience: stop early after so many epochs without
    a better accuracy (0: never).
    """

    epochs: int = 300
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup: float = 0.0
    label_smoothing: float = 0.0
    accumulate: int = 1
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            _at_least(f"optimiser.{name}", getattr(self, name), 1)
        for name in ("momentum", "weight_decay", "warmup", "label_smoothing", "patience"):
            _at_least(f"optimiser.{name}", getattr(self, name), 0)
        if not self.lr > 0:
            raise OptionError(f"optimiser.lr = {self.lr}: it must be above 0")
        if self.nesterov and not self.momentum:
            raise OptionError("optimiser.nesterov needs a momentum above 0")
        if self.batch_size % self.accumulate:
            raise OptionError(
                f"optimiser.batch_size = {self.batch_size} is not divisible by accumulate = {self.accumulate}"
            )


@dataclass(frozen=True)
class TrainingRecipe:
    """One training. network: a name of `networks.NETWORKS`, or a SPEC. precision: as Lightning names them."""

    network: str
    about: str = ""
    seed: int = 0
    precision: str = "32-true"
    activation: Activation = field(default_factory=Activation)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optimiser: Optimiser = field(default_factory=Optimiser)

    def __post_init__(self) -> None:
        _among("precision", self.precision, PRECISIONS)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "the recipe") -> TrainingRecipe:
        """The inverse of `to_json`; unknown names are errors that list the known ones.

        >>> TrainingRecipe.from_json({"network": "digits", "optimiser": {"epochs": 3}}).optimiser.epochs
        3
        """
        return _read(cls, values, where)

    def replace(self, assignments: Mapping[str, Any]) -> TrainingRecipe:
        """The same with some entries changed, by dotted name.

        >>> TrainingRecipe("digits").replace({"optimiser.epochs": 3, "seed": 1}).optimiser.epochs
        3
        """
        values = self.to_json()
        for name, value in assignments.items():
            table, _, entry = name.rpartition(".")
            if table and not isinstance(values.get(table), dict):
                raise OptionError(f"{name}: there is no table [{table}] in a recipe")
            (values[table] if table else values)[entry] = value
        return TrainingRecipe.from_json(values)

    def differences(self, other: TrainingRecipe) -> list[str]:
        """What two recipes don't agree in, one line an entry."""
        one, two = _flat(self.to_json()), _flat(other.to_json())
        return [f"{name}: {one[name]!r} and {two[name]!r}" for name in one if one[name] != two[name]]


def recipe_names() -> list[str]:
    """The recipes in this package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str | Path) -> TrainingRecipe:
    """A recipe by the name of one in this package, or from a .toml file.

    >>> load_recipe("cifar10-resnet20").activation.levels
    4
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = FOLDER / f"{name}.toml"
        if not path.is_file():
            raise OptionError(f"there is no recipe {str(name)!r}: choose {', '.join(recipe_names())} or a .toml file")
    try:
        return TrainingRecipe.from_json(tomllib.loads(path.read_text("utf-8")), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{path}: not valid TOML: {error}") from error


def _read(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise OptionError(f"{where}: expected a table, got {values!r}")
    known = {f.name: f for f in fields(cls)}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise OptionError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    if missing := [
        n for n, f in known.items() if n not in values and f.default is f.default_factory is dataclasses.MISSING
    ]:
        raise OptionError(f"{where}: {', '.join(missing)} is missing")
    made = {}
    for name, value in values.items():
        default = known[name].default_factory
        if isinstance(default, type) and dataclasses.is_dataclass(default):
            made[name] = _read(default, value, f"{where}, [{name}]")
        else:
            made[name] = _typed(value, known[name], f"{where}: {name}")
    return cls(**made)


def _typed(value: Any, known: Any, where: str) -> Any:
    """The value in the type of the field, told by the field's annotation."""
    wanted = str(known.type)
    if isinstance(value, list | tuple):
        value = tuple(float(v) if isinstance(v, int | float) else v for v in value)
    kinds = {
        "str": str, "bool": bool, "int": int, "float": (int, float), "int | None": (int, type(None)),
        "float | str": (int, float, str), "tuple[float, ...]": tuple,
    }  # fmt: skip
    if not isinstance(value, kinds[wanted]) or (isinstance(value, bool) and wanted != "bool"):
        raise OptionError(f"{where} = {value!r}: expected {wanted}")
    return float(value) if wanted.startswith("float") and not isinstance(value, str) else value


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return out


def _among(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} = {value!r}: choose one of {', '.join(c or '(none)' for c in choices)}")


def _at_least(name: str, value: Any, least: int) -> None:
    if not value >= least:
        raise OptionError(f"{name} = {value!r}: it must be at least {least}")
