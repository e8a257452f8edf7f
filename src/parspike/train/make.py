"""TrainingRecipe → network, and trained weights → network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from parspike.errors import FileError, InputError, OptionError, ParspikeError, path_of
from parspike.train.networks import build
from parspike.train.recipe import TrainingRecipe

__all__ = ["load_trained", "make_network"]


def make_network(recipe: TrainingRecipe, base: nn.Module | None = None, example: Any = None) -> nn.Module:
    """The network that a recipe trains: its own by name, or `base`, a ReLU network (perhaps trained already).

    example: inputs, normalised; needed for thresholds from data, for networks that call activations as functions and
    by some methods. Weights are drawn from the recipe's seed; the global random state is left as it was.
    """
    if not isinstance(recipe, TrainingRecipe):
        raise OptionError(f"expected a TrainingRecipe, such as load_recipe('digits'), got a {type(recipe).__name__}")
    with _drawn(recipe, base) as network:
        return recipe.activation.network(network, example)


@contextmanager
def _drawn(recipe: TrainingRecipe, base: nn.Module | None) -> Iterator[nn.Module]:
    """The ReLU network, with all that is drawn inside from the recipe's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        yield build(recipe.network, recipe.data.classes) if base is None else base


def _why(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def load_trained(weights: str | Path, base: nn.Module | None = None, example: Tensor | None = None) -> nn.Module:
    """What `parspike train` made, in evaluation.

    weights: the folder that was trained into, or its weights.safetensors; the .json beside it says how the network
    is made. base, example: as in `make_network`, where the network was the user's own. Its attribute `preprocessing`
    says how images were prepared, which the command line does too.
    """
    path = path_of(weights)
    path = path / "weights.safetensors" if path.is_dir() else path
    try:
        recipe = TrainingRecipe.from_json(json.loads(path.with_suffix(".json").read_text("utf-8"))["recipe"])
        state = load_file(path)
        rows = max((tensor.shape[0] for tensor in state.values() if tensor.ndim), default=0)
        if recipe.data.classes > rows:  # before weights are drawn for so many
            raise ValueError(f"it is for {recipe.data.classes} classes, and its tensors have {rows} rows at most")
    except Exception as error:  # JSON, safetensors and a forged recipe raise exceptions of many kinds
        raise FileError(f"{path}: no weights of `parspike train` ({_why(error)}); it also needs its .json") from error
    try:
        with _drawn(recipe, base) as network:
            model = recipe.activation.restored(network, example, {name: tensor.shape for name, tensor in state.items()})
    except ParspikeError:
        raise
    except Exception as error:
        if base is not None:
            raise
        raise FileError(f"{path}: its .json describes no network that can be made ({_why(error)})") from error
    expected = {name: t.shape for name, t in model.state_dict().items()}
    unlike = [n for n in expected.keys() | state.keys() if n not in state or expected.get(n) != state[n].shape]
    if unlike:
        given = "" if base is None or example is not None else " (give example= too, as when it was made)"
        raise InputError(f"{path} does not fit {recipe.network}{given}; these differ: {', '.join(sorted(unlike))}")
    model.load_state_dict(state)
    said = recipe.data
    prepared = {"size": said.size, "crop": said.crop, "mean": list(said.mean), "std": list(said.std)}
    model.preprocessing = prepared  # pyright: ignore[reportArgumentType] (modules are declared to hold modules)
    return model.eval()
