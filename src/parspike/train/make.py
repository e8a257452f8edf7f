"""Recipe → network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parspike.train.direct import with_lif
from parspike.train.networks import build
from parspike.train.recipe import Recipe
from parspike.train.replace import with_qcfs

__all__ = ["make_network"]


def make_network(recipe: Recipe, base: nn.Module | None = None, example: Tensor | None = None) -> nn.Module:
    """The network that a recipe trains: its own by name, or `base`, a ReLU network (perhaps trained already).

    example: inputs, normalised; needed for thresholds from data and for networks that call activations as functions.
    Weights are drawn from the recipe's seed; the global random state is left as it was.
    """
    chosen = recipe.activation
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        network = build(recipe.network, recipe.data.classes) if base is None else base
        if chosen.method == "relu":
            return network
        if chosen.method == "stbp":
            return with_lif(network, chosen.T, example=example)
        return with_qcfs(
            network, chosen.levels, v_threshold=chosen.v_threshold, per_channel=chosen.per_channel,
            window=chosen.window, pool=chosen.pool, example=example,
        )  # fmt: skip
