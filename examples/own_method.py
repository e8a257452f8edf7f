"""A conversion method of one's own, in one file:

    parspike convert SPEC --data DATA --recipe examples/own_method.py:MeanAndDeviation

docs/own-method.md explains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import parspike
from parspike.calibrate import Batches, Draft
from parspike.errors import CalibrationError, OptionError
from parspike.graph import Clip


@dataclass(frozen=True)
class MeanAndDeviation(parspike.Recipe):
    """The threshold of a channel is the mean of its activations and `deviations` standard deviations more."""

    name: ClassVar[str] = "mean-and-deviation"
    deviations: float = 4.0

    def __post_init__(self) -> None:
        if not self.deviations > 0:
            raise OptionError(f"deviations must be above 0, got {self.deviations!r}")

    def fit(self, draft: Draft, batches: Batches | None) -> None:
        if batches is None:
            raise CalibrationError("mean-and-deviation needs calibration data: pass calibration=")
        for name, activation in draft.activations.items():
            if not (isinstance(activation, Clip) and activation.low == 0):
                layer = draft.graph.by_name[name].layer
                raise OptionError(f"mean-and-deviation knows ReLU alone, and layer '{layer}' has another activation")
        sums: dict[str, list[Tensor]] = {name: [] for name in draft.activations}

        def record(node: Any, args: tuple[Any, ...]) -> list[Tensor]:
            a = draft.teacher(node, args)
            rows = node.over_channels(a).double()  # (C, everything else)
            count = torch.full_like(rows[:, 0], rows.shape[1])
            sums[node.name].append(torch.stack([rows.sum(1), rows.square().sum(1), count]))
            return [a]

        for env in batches:
            draft.graph.run_on(env, dict.fromkeys(draft.activations, record))
        for name, parts in sums.items():
            node = draft.graph.by_name[name]
            total, square, number = torch.stack(parts).sum(0)
            mean = total / number
            theta = mean + self.deviations * (square / number - mean.square()).clamp(min=0).sqrt()
            theta = torch.where(theta > 0, theta, theta.max().clamp(min=1e-6)).float()
            draft.neurons[name] = draft.student.neuron(draft, node, node.per_channel(theta).squeeze(0), 0.0)
