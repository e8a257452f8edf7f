"""The spike trains of some neurons of some layers, for one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from parspike.engines import Pass, count
from parspike.errors import InputError, OptionError, check_list, meant
from parspike.snn import SNN

__all__ = ["Train", "chosen", "trains"]


@dataclass(frozen=True)
class Train:
    """Spikes (T, n) of n neurons of a layer, evenly spaced among its `of` neurons: whole numbers, below 0 where a spike
    is taken back. numbers: which neurons, (n,), counted along the flattened layer."""

    layer: str
    spikes: Tensor
    numbers: Tensor
    of: int


def chosen(snn: SNN, patterns: Sequence[str] | None) -> list[str]:
    """Names of the nodes whose neurons are meant: those whose layer a pattern matches, or the first, the middle and the
    last. Raises `OptionError` for a pattern that matches no layer of neurons."""
    layers = {name: snn.graph.by_name[name].layer for name in snn.neurons()}
    if patterns is None:
        names = list(layers)
        return [names[place] for place in sorted({0, len(names) // 2, len(names) - 1})] if names else []
    check_list(patterns, "layers", str, "['layer1.*']")
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name, layer in layers.items() if layer == pattern or fnmatchcase(layer, pattern)]
        if not matched:
            some = ", ".join(list(layers.values())[:5]) or "none"
            raise OptionError(
                f"'{pattern}' is no layer of neurons{meant(pattern, layers.values())}: there are, for example, {some}"
            )
        found.update(dict.fromkeys(matched))
    return list(found)


@torch.no_grad()
def trains(snn: SNN, env: Mapping[str, Tensor], names: Sequence[str], *, neurons: int = 48) -> list[Train]:
    """The trains of some neurons for the first sample of a batch. env: inputs by name. names: of nodes."""
    if neurons < 1:
        raise OptionError(f"neurons is {neurons!r}: give how many are drawn, at least 1")
    least = snn.graph.batch()  # some networks take no batch of one
    env = {name: x[:least] for name, x in env.items()}
    if not next(iter(env.values())).shape[0]:
        raise InputError("the batch is empty: give at least one sample")
    picked: dict[str, Train] = {}

    def pick(name: str, size: int, device: torch.device) -> Tensor:
        number = min(neurons, size)
        return torch.linspace(0, size - 1, number, dtype=torch.float64, device=device).round().long()

    if snn.over_time:
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        sizes: dict[str, int] = {}

        def watch(name: str, current: Tensor, spikes: Tensor, read: bool) -> None:
            if name not in parts or not read:
                return
            flat = spikes.select(1 + (snn.graph.by_name[name].batch_dim or 0), 0).flatten(1)
            sizes[name] = flat.shape[1]
            parts[name].append(flat[:, pick(name, flat.shape[1], flat.device)].cpu())

        snn.watched(env, watch)
        for name, part in parts.items():
            places = pick(name, sizes[name], torch.device("cpu"))
            picked[name] = Train(snn.graph.by_name[name].layer, torch.cat(part).int(), places, sizes[name])
    else:
        layers, counting = {name: snn.graph.by_name[name].layer for name in names}, snn.counting()
        run = count(snn, dict(env), Pass.of(snn.graph, tuple(counting)), record=True)
        for name, layer in layers.items():
            flat = run.counts[layer].select(snn.graph.by_name[name].batch_dim or 0, 0).flatten()
            places = pick(name, len(flat), flat.device)
            spikes = counting[name].spikes(flat[places])
            silent = spikes.new_zeros(snn.T - len(spikes), *spikes.shape[1:])  # a layer with fewer steps of its own
            picked[name] = Train(layer, torch.cat([spikes, silent]).int().cpu(), places.cpu(), len(flat))
    return [picked[name] for name in names]
