"""Data → parameters of each neuron. A recipe is a small frozen dataclass; `convert` calls its `fit`."""

from parspike.calibrate.auto import Auto
from parspike.calibrate.batches import Batches
from parspike.calibrate.daqcfs import DAQCFS, Thresholds
from parspike.calibrate.layerwise import ClosedForm
from parspike.calibrate.recipe import RECIPES, Draft, Recipe, recipe_from_json, recipe_to_json
from parspike.calibrate.reconstruct import Reconstruct

__all__ = [
    "DAQCFS",
    "RECIPES",
    "Auto",
    "Batches",
    "ClosedForm",
    "Draft",
    "Recipe",
    "Reconstruct",
    "Thresholds",
    "recipe_from_json",
    "recipe_to_json",
]
