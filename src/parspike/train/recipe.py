"""Recipes: everything that decides how a network is trained, as a file that can be read and changed.

A recipe is TOML with one table for each class below, and the table [activation] for the method (`train/methods`);
`parspike train cifar10-resnet20` takes the file of that name in this package, `parspike train my.toml` another.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parspike.errors import FileError, OptionError, ParspikeError, meant, path_of
from parspike.train.fields import among, at_least, read, within

if TYPE_CHECKING:
    from parspike.train.methods import Method

__all__ = ["Augment", "Data", "Optimiser", "TrainingRecipe", "load_recipe", "recipe_names"]

FOLDER = Path(__file__).parent / "recipes"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")


def _method(values: Any, where: str) -> Method:
    from parspike.train.methods import method_from  # brings torch, which a wrong command line need not wait for

    return method_from(values, where)


def _method_name(asked: Any) -> Any:
    from parspike.train.methods import method_name

    return method_name(asked)


def _default_method() -> Method:
    return _method({}, "")


@dataclass(frozen=True)
class Data:
    """How an image becomes an input: short side to `size`, centre `crop` (both optional), (x/255 − mean)/std."""

    classes: int = 10
    size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        at_least("data.classes", self.classes, 2)
        for name in ("size", "crop"):
            if getattr(self, name) is not None:
                at_least(f"data.{name}", getattr(self, name), 1)
        if wrong := [value for value in (*self.mean, *self.std) if not isinstance(value, int | float)]:
            raise OptionError(f"data.mean and data.std are numbers, got {repr(wrong[0])[:80]}")
        for value in self.mean:  # of pixels from 0 to 1; those of 0 … 255 would make all images alike
            within("data.mean", value, -1, 1)
        for value in self.std:
            if not 0 < value < math.inf:
                raise OptionError(f"data.std = {value}: it must be above 0")


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
        among("augment.policy", self.policy, ("", "cifar10", "imagenet"))
        for name in ("crop_padding", "resized_crop", "jitter", "cutout"):
            at_least(f"augment.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class Optimiser:
    """SGD or AdamW with a cosine schedule: `warmup` epochs of linear rise, then half a cosine down to zero.

    name: "sgd", or "adamw" (Loshchilov and Hutter, ICLR 2019) for transformers, whose β₁ is `momentum`, whose β₂ is
    0.999, and for which `nesterov` has no meaning. batch_size: images in one optimiser step, over all devices.
    accumulate: passes that one step is divided into. label_smoothing: share of the target spread over all classes.
    patience: stop early after so many epochs without a better accuracy (0: never).
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
    name: str = "sgd"

    def __post_init__(self) -> None:
        among("optimiser.name", self.name, ("sgd", "adamw"))
        for name in ("epochs", "batch_size", "accumulate"):
            at_least(f"optimiser.{name}", getattr(self, name), 1)
        for name in ("weight_decay", "warmup", "patience"):
            at_least(f"optimiser.{name}", getattr(self, name), 0)
        for name in ("momentum", "label_smoothing"):
            within(f"optimiser.{name}", getattr(self, name), 0, 1)
        if not self.lr > 0:
            raise OptionError(f"optimiser.lr = {self.lr}: it must be above 0")
        if self.name == "adamw" and not self.momentum < 1:
            raise OptionError(f"optimiser.momentum = {self.momentum}: it must be below 1 for adamw")
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise OptionError("optimiser.nesterov needs a momentum above 0")
        if self.batch_size % self.accumulate:
            raise OptionError(
                f"optimiser.batch_size = {self.batch_size} is not divisible by accumulate = {self.accumulate}"
            )


@dataclass(frozen=True)
class TrainingRecipe:
    """One training. network: a name of `networks.NETWORKS`, or a SPEC. precision: as Lightning names them.

    activation: the method of training, whose name is the table's entry `method` (without one: qcfs), and its options.
    """

    network: str
    about: str = ""
    seed: int = 0
    precision: str = "32-true"
    activation: Method = field(default_factory=_default_method, metadata={"read": _method})
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optimiser: Optimiser = field(default_factory=Optimiser)

    def __post_init__(self) -> None:
        among("precision", self.precision, PRECISIONS)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"activation": {"method": self.activation.name, **asdict(self.activation)}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "the recipe") -> TrainingRecipe:
        """The inverse of `to_json`; unknown names are errors that list the known ones.

        >>> TrainingRecipe.from_json({"network": "digits", "optimiser": {"epochs": 3}}).optimiser.epochs
        3
        """
        return read(cls, values, where)

    def replace(self, assignments: Mapping[str, Any]) -> TrainingRecipe:
        """The same with some entries changed, by dotted name. Another `activation.method` begins with its own options.

        >>> TrainingRecipe("digits").replace({"optimiser.epochs": 3, "seed": 1}).optimiser.epochs
        3
        """
        values = self.to_json()
        if "activation.method" in assignments:
            assignments = {**assignments, "activation.method": _method_name(assignments["activation.method"])}
        if assignments.get("activation.method", self.activation.name) != self.activation.name:
            values["activation"] = {}
        for name, value in assignments.items():
            table, _, entry = name.rpartition(".")
            if table and not isinstance(values.get(table), dict):
                near = meant(table, [known for known, entries in values.items() if isinstance(entries, dict)])
                raise OptionError(f"{name}: there is no table [{table}] in a recipe{near}")
            (values[table] if table else values)[entry] = value
        return TrainingRecipe.from_json(values)

    def differences(self, other: TrainingRecipe) -> list[str]:
        """What two recipes don't agree in, one line an entry."""
        one, two = _flat(self.to_json()), _flat(other.to_json())
        pairs = {name: (one.get(name, "(none)"), two.get(name, "(none)")) for name in one | two}
        return [f"{name}: {now!r} and {then!r}" for name, (now, then) in pairs.items() if now != then]


def recipe_names() -> list[str]:
    """The recipes in this package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str | Path) -> TrainingRecipe:
    """A recipe by the name of one in this package, or from a .toml file.

    >>> load_recipe("cifar10-resnet20").activation.levels
    4
    """
    path = path_of(name)
    if path.suffix != ".toml":
        path = FOLDER / f"{name}.toml"
        if not path.is_file():
            known = recipe_names()
            raise OptionError(
                f"there is no recipe {str(name)!r}{meant(name, known)}: choose {', '.join(known)} or a .toml file"
            )
    try:
        values = tomllib.loads(path.read_text("utf-8"))
        table = values.get("activation")
        if isinstance(table, dict) and "method" in table:
            table["method"] = _method_name(table["method"])
        return TrainingRecipe.from_json(values, str(path))
    except ParspikeError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:  # also numbers of 5,000 digits, and lists 1,000 deep
        raise OptionError(f"{path}: not valid TOML: {error}") from error


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return out
