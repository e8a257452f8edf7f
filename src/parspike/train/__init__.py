"""Networks made for conversion: QCFS in place of the activations, and a loop that trains them.

The same loop trains spiking neurons directly, for comparison: `train/methods` has one file a method.

    with_qcfs    any network → the same with trainable QCFS activations
    load_recipe  a readable file → TrainingRecipe
    fit          TrainingRecipe, network, data → weights, on one device or many (extra: train)
    load_trained weights → network, ready for `parspike.convert`

`docs/training.md` shows it from the command line.
"""

import typing

from parspike.lazy import look_up_later

if typing.TYPE_CHECKING:  # the same names, for type checkers and editors
    from parspike.train.activation import TrainQCFS
    from parspike.train.data import Arrays, decode
    from parspike.train.devices import Devices
    from parspike.train.direct import LIF, with_lif
    from parspike.train.hub import Hub, HubStream
    from parspike.train.loop import DivergedError, Result, fit
    from parspike.train.make import load_trained, make_network
    from parspike.train.methods import METHODS, Method
    from parspike.train.ondemand import Decoder, OnDemand
    from parspike.train.recipe import TrainingRecipe, load_recipe, recipe_names
    from parspike.train.replace import with_qcfs

__all__ = [
    "LIF",
    "METHODS",
    "Arrays",
    "Decoder",
    "Devices",
    "DivergedError",
    "Hub",
    "HubStream",
    "Method",
    "OnDemand",
    "Result",
    "TrainQCFS",
    "TrainingRecipe",
    "decode",
    "fit",
    "load_recipe",
    "load_trained",
    "make_network",
    "recipe_names",
    "with_lif",
    "with_qcfs",
]

look_up_later(
    __name__,
    {
        "activation": ("TrainQCFS",),
        "data": ("Arrays", "decode"),
        "devices": ("Devices",),
        "direct": ("LIF", "with_lif"),
        "hub": ("Hub", "HubStream"),
        "loop": ("DivergedError", "Result", "fit"),
        "make": ("load_trained", "make_network"),
        "methods": ("METHODS", "Method"),
        "pretrained": (),
        "ondemand": ("Decoder", "OnDemand"),
        "recipe": ("TrainingRecipe", "load_recipe", "recipe_names"),
        "replace": ("with_qcfs",),
    },
)
del look_up_later
