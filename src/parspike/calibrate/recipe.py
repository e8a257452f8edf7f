"""What every recipe is given and how recipes are written down."""

from __future__ import annotations

import dataclasses
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar

from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.student import ByCount, Student
from parspike.errors import CalibrationError, OptionError, meant
from parspike.foreign import RECIPES_OF_PACKAGES, class_of_package, registered, users_class
from parspike.graph import Graph, Hook, Node, Quantised
from parspike.graph.ops import Activation, call
from parspike.neurons import Code, Kind, ParallelNeuron, Simulation, SpikingLayer, levels_of
from parspike.neurons.percentile import MODES, share_of

__all__ = [
    "RECIPES", "Draft", "Progress", "Recipe", "check_number", "check_switch", "recipe_from_json", "recipe_to_json",
]  # fmt: skip

Progress = Callable[[str, int, int], None]
"""progress(what, done, total)"""

RECIPES: dict[str, type[Recipe]] = {}


@dataclass
class Draft:
    """A conversion in the making.

    graph: the network; its tensors are the teacher's and never change. tensors: the student's synapses, at first
    the same; a recipe may replace entries. activations: by the name of every node that shall spike, what it
    computed. neurons: filled by the recipe, one for each of them. notes: what the recipe wants to be remembered.
    steps: layers with time-steps of their own. student: which neurons it is for, see `calibrate.student`. simulation:
    how long the network runs and which steps are read, where the recipe says so; None: T steps, all of them read.
    """

    graph: Graph
    activations: Mapping[str, Activation]
    T: int
    code: Code
    tensors: dict[str, Tensor]
    neurons: dict[str, SpikingLayer]
    progress: Progress
    notes: dict[str, Any] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    student: Student = ByCount()  # noqa: RUF009 (frozen)
    simulation: Simulation | None = None

    def teacher(self, node: Node, args: tuple[Any, ...]) -> Tensor:
        """What the network's own activation gives."""
        return call(node.target, args, node.kwargs)

    def watch(self, batches: Batches, at: Mapping[str, Hook], what: str) -> None:
        """Run the network itself, without spikes, on the batches of this process. at: what nodes compute instead of
        their operator, by name (`graph.walk`). what: the work, in words, for `progress`."""
        for done, env in enumerate(batches, 1):
            self.graph.run_on(env, at)
            self.progress(what, done, batches.rounds)

    @property
    def lossless(self) -> bool:
        """Whether the network was trained for this T, so that nothing needs data: QCFS with T = T̃ everywhere."""
        return isinstance(self.student, ByCount) and self.first_unlike is None

    @property
    def first_unlike(self) -> str | None:
        """The first node whose neurons have other levels than it was trained with, None if there is none."""
        for name, a in self.activations.items():
            if not isinstance(a, Quantised) or a.levels != levels_of(self.steps_of(name), self.code):
                return name
        return None

    def no_data(self, layer: str, why: str) -> CalibrationError:
        """The error for a layer whose neurons need calibration data where none were given. why: in words."""
        trained = any(isinstance(a, Quantised) for a in self.activations.values())
        keep = f", or leave it as it is, without spikes: layers={{'{layer}': parspike.Keep()}} (--keep {layer})"
        return CalibrationError(
            f"layer '{layer}' {why}: pass calibration= (inputs, no labels){keep if trained else ''}"
        )

    def parallel(self) -> dict[str, ParallelNeuron]:
        """The neurons with evenly spaced levels, by node name, in order: those that have θ, δ and φ."""
        made = ((node.name, self.neurons.get(node.name)) for node in self.graph.neurons)
        return {name: neuron for name, neuron in made if isinstance(neuron, ParallelNeuron)}

    def steps_of(self, name: str) -> int:
        """Time-steps of the neurons at a node: the network's, or the layer's own (`Steps`)."""
        return self.steps.get(name, self.T)


@dataclass(frozen=True)
class Recipe(ABC):
    """Base of the recipes: options, validated when made, and one method.

    name: what it is called in files and on the command line. makes: the kind of neurons that the recipe fills the draft
    with, where it has neurons of its own; None: those that the caller of `convert` asks for. one_size: whether it finds
    parameters for every single neuron, so that the network takes inputs of the example's size alone.
    """

    name: ClassVar[str]
    makes: ClassVar[Kind | None] = None
    one_size: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        registered(cls, RECIPES, "recipe")

    @abstractmethod
    def fit(self, draft: Draft, batches: Batches | None) -> None:
        """Fill `draft.neurons` (and change `draft.tensors` where the recipe re-fits synapses)."""


def check_number(value: object, name: str, low: float, high: float, *, low_too: bool = False) -> None:
    """Raise `OptionError` unless a number lies above `low` (or is `low`, with low_too) and is at most `high`."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits or not (low <= value if low_too else low < value) or not value <= high:  # pyright: ignore[reportOperatorIssue]
        least = f"{'at least' if low_too else 'above'} {low:g}"
        most = "" if high >= sys.float_info.max else f" and at most {high:g}"
        raise OptionError(f"{name} must be a number {least}{most}, got {value!r}")


def check_switch(value: object, name: str) -> None:
    """Raise `OptionError` unless this is True or False: a text such as "false" would count as true."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False (in JSON true or false), got {value!r}")


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON-able data: its name and its options."""
    if not isinstance(recipe, Recipe):
        raise OptionError(f"expected a recipe, such as parspike.ClosedForm(), got {recipe!r}"[:200])
    return {"name": recipe.name, **asdict(recipe)}


def recipe_from_json(value: str | Mapping[str, Any]) -> Recipe:
    """A recipe from its name, or from a JSON object (or its text) with "name" and options.

    A mode of `Thresholds`, "max" or a percentile, may stand for its name. A recipe of your own is named as
    "file.py:Class" or "package.module:Class" (docs/own-method.md), or by the name that a package has registered under
    the entry points "parspike.recipes". Raises `OptionError` for unknown names and options, and what
    `foreign.users_module` raises.

    >>> recipe_from_json("99.9%")
    Thresholds(mode='99.9%', granularity='channel')
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise OptionError(f"the recipe is not valid JSON: {error}") from error
    if not isinstance(value, (str, Mapping)):
        named = value.__name__ if isinstance(value, type) else ""
        got = f"the class {named}: make one, {named}()" if named else repr(value)[:80]
        raise OptionError(f"a recipe is an object, its name or its JSON, got {got}")
    options = {"name": value} if isinstance(value, str) else dict(value)
    name = options.pop("name", None)
    mode = {}
    if share_of(name) is None and str(name).endswith("%"):
        raise OptionError(f"recipe '{name}': a percentile lies above 0 and at most at 100, such as '99.9%'")
    if share_of(name) is not None:
        mode, name = {"mode": name}, "thresholds"
    recipe = _named(name)
    fields = [field.name for field in dataclasses.fields(recipe)]
    for option in options:
        if option not in fields:
            raise OptionError(
                f"recipe '{name}' has no option '{option}'{meant(option, fields)}; it has {', '.join(fields) or 'none'}"
            )
    try:
        return recipe(**mode, **options)
    except TypeError as error:
        raise OptionError(f"recipe '{name}': {error}") from error


def _named(name: Any) -> type[Recipe]:
    """The class of a recipe by its name, or by its place in the user's code."""
    import parspike.baselines  # noqa: F401 (their names become known)

    if name in RECIPES:
        return RECIPES[name]
    if ":" in str(name):
        return users_class(str(name), Recipe, "recipe")
    found = class_of_package(str(name), RECIPES_OF_PACKAGES, Recipe, "recipe")
    if found is not None:
        return found
    known = [*RECIPES, *entry_points(group=RECIPES_OF_PACKAGES).names]
    raise OptionError(
        f"there is no recipe '{name}'{meant(name, known)}: choose one of {', '.join(sorted(known))}, or {MODES}, or "
        "file.py:Class for your own"
    )
