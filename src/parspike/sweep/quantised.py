"""The network itself with activations rounded to a few levels: what a conversion by counts has to be compared with.

Such a network has no time-steps and no spikes. Its activations are fake-quantised, as in quantisation for integer
hardware: rounded down to a level by `floor` and `clamp`, or by `bucketize` where levels are uneven. Levels and synapses
are those that a conversion was fitted to. A count engine has to give the same outputs; this code shares nothing with it
but the fitted numbers and the graph, so that running both shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parspike.graph import Node
from parspike.neurons import Even, Neuron, Staircase
from parspike.snn import SNN

__all__ = ["quantised"]


def quantised(snn: SNN) -> Callable[[Mapping[str, Tensor]], Any]:
    """The network with the levels and synapses of a conversion to parallel neurons: its output for inputs by name."""
    graph, neurons = replace(snn.graph, tensors=snn.tensors()), snn.counting()

    def activation(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        return [_rounded(args[0], neurons[node.name])]

    @torch.no_grad()
    def run(env: Mapping[str, Tensor]) -> Any:
        return graph.run_on(env, dict.fromkeys(neurons, activation))

    return run


def _rounded(z: Tensor, neuron: Neuron) -> Tensor:
    """An activation's output for z (B, …), rounded to one of the neuron's levels."""
    if isinstance(neuron, Even):
        # offset + scale · clamp(⌊z / step + start⌋, lowest, L), start moved by a half so that it rounds to the nearest
        inverse = neuron.levels / neuron.v_threshold
        start = (neuron.shift - neuron.offset) * inverse + 0.5
        level = torch.floor(z * inverse + start).clamp(neuron.lowest, neuron.levels)
        return level * (neuron.v_post / neuron.levels) + neuron.offset
    if isinstance(neuron, Staircase):
        return _uneven(z, neuron.thresholds, neuron.outputs)
    raise TypeError(f"{type(neuron).__name__} neurons have no quantised activation")


def _uneven(z: Tensor, thresholds: Tensor, outputs: Tensor) -> Tensor:
    """The output behind the last of S thresholds that z reaches. thresholds: (S, …), outputs: (S + 1, …); their other
    dimensions broadcast against one sample."""
    shape = thresholds.shape[1:]
    wide = torch.promote_types(z.dtype, thresholds.dtype)
    own = [dim for dim in range(-len(shape), 0) if shape[dim] > 1]  # along which neurons have levels of their own
    first = z.to(wide).movedim(own, list(range(len(own))))
    flat = first.reshape(max(1, shape.numel()), -1)
    edges, table = (t.reshape(len(t), -1).T.contiguous() for t in (thresholds.to(wide), outputs))
    level = torch.searchsorted(edges, flat.contiguous(), right=True)
    found = table.gather(1, level).where(~flat.isnan(), torch.nan)
    return found.reshape(first.shape).movedim(list(range(len(own))), own)
