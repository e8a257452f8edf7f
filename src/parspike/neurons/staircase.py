"""Neurons with a free threshold for every level: any monotone activation as a staircase.

Level k is reached where the mean current is at least `thresholds[k − 1]`, and is worth `outputs[k]`; neither need be
evenly spaced. The smallest output may be negative: it is the constant current of a silent neuron, which the next
synapse takes in as it takes in a bias, so every spike is positive and the offset is exact.

Counting is bucketing. A search among S thresholds costs log₂ S branches a neuron, each mispredicted half the time;
here the thresholds lie on a fine grid instead, so that one product finds the cell of a current and one table the
count, whatever S is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .layer import Code, Neuron

__all__ = ["Staircase"]

CELLS_A_LEVEL = 64
FEWEST_CELLS, MOST_CELLS = 1 << 10, 1 << 16


class Staircase(Neuron):
    """Neurons of one layer that share S thresholds and S + 1 outputs, both non-decreasing, S = `levels`.

    error, uniform_error: mean squared error of this staircase and of one with evenly spaced outputs, on what it
    was made from. Thresholds are moved to the nearest edge of the grid.
    Raises `ValueError` on tables that are no staircase; the weighted code needs evenly spaced outputs.
    """

    kind = "staircase"
    per_level = ("thresholds", "outputs")

    def __init__(
        self, T: int, thresholds: Tensor, outputs: Tensor, *, code: Code = "sorted",
        error: float = 0.0, uniform_error: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(T, code)
        if thresholds.shape != (self.levels,) or outputs.shape != (self.levels + 1,):
            raise ValueError(
                f"{self.levels} levels need as many thresholds and one output more, got {tuple(thresholds.shape)} "
                f"and {tuple(outputs.shape)}"
            )
        if bool((thresholds.diff() < 0).any()) or bool((outputs.diff() < 0).any()):
            raise ValueError("thresholds and outputs must not fall")
        if code == "weighted" and not _even(outputs):
            raise ValueError("the weighted code needs evenly spaced outputs")
        self.error, self.uniform_error = float(error), float(uniform_error)
        self.cells = max(FEWEST_CELLS, min(CELLS_A_LEVEL * self.levels, MOST_CELLS), 4 * self.levels)
        self.thresholds = nn.Parameter(thresholds.detach().clone(), requires_grad=False)
        self.outputs = nn.Parameter(outputs.detach().clone(), requires_grad=False)
        self.tabulate()

    def tabulate(self) -> None:
        """Make the tables that counting looks into, from thresholds and outputs; call it after changing those."""
        tau, outputs = self.thresholds.double(), self.outputs
        low, span = tau[0], tau[-1] - tau[0]
        # Without a span (one threshold) any scale will do.
        scale = torch.where(span > 0, self.cells / span, 1.0 / tau[0].abs().clamp(min=1e-30))
        edges = ((tau - low) * scale).round()
        cells = torch.arange(-1, self.cells + 1, dtype=tau.dtype, device=tau.device)
        counts = torch.searchsorted(edges, cells, right=True)
        if bool(span > 0):
            self.thresholds.data = (low + edges / scale).to(outputs.dtype)
        self.scale, self.start = float(scale), float(1 - low * scale)
        self.register_buffer("counts", counts.to(outputs.dtype), persistent=False)
        self.register_buffer("values", outputs[counts], persistent=False)

    def count(self, z: Tensor) -> Tensor:
        return self._look_up(self.counts, z)

    def value(self, count: Tensor) -> Tensor:
        return self.outputs.index_select(0, count.to(torch.int32).flatten()).view(count.shape)

    def forward(self, z: Tensor) -> Tensor:
        return self._look_up(self.values, z)

    def _look_up(self, table: Any, z: Tensor) -> Tensor:
        if z.dtype in (torch.float16, torch.bfloat16):
            z = z.float()  # half precision cannot number the cells
        # Two passes by numbers take less than half the time of one addcmul, which broadcasts.
        cell = (z * self.scale).add_(self.start).clamp_(0, self.cells + 1).to(torch.int32)
        return table.index_select(0, cell.flatten()).view(z.shape)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.tabulate()

    def amplitudes(self) -> Tensor:
        if self.code == "sorted":  # step t is the one that a count of T − t adds
            scale = self.outputs.diff().flip(0)
        elif self.code == "onset":  # a count of T − t spikes at step t only
            scale = (self.outputs[1:] - self.outputs[0]).flip(0)
        else:
            steps = torch.arange(self.T - 1, -1, -1, dtype=self.outputs.dtype, device=self.outputs.device)
            scale = 2.0**steps * ((self.outputs[-1] - self.outputs[0]) / self.levels)
        return scale * self.T

    def rest(self) -> float:
        return float(self.outputs[0])

    def config(self) -> dict[str, Any]:
        errors = {"error": self.error, "uniform_error": self.uniform_error}
        return {"kind": self.kind, "T": self.T, "code": self.code, **errors}

    def extra_repr(self) -> str:
        better = f", {self.uniform_error / self.error:.1f}× less than even ones" if self.error else ""
        return (
            f"outputs {float(self.outputs[0]):.4g} … {float(self.outputs[-1]):.4g}, "
            f"mean squared error {self.error:.2g}{better}"
        )

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Staircase:
        errors = {name: config[name] for name in ("error", "uniform_error")}
        if not all(isinstance(value, float) and math.isfinite(value) and value >= 0 for value in errors.values()):
            raise ValueError("the errors must be finite numbers")
        thresholds, outputs = tensors["thresholds"], tensors["outputs"]
        if thresholds.dtype != outputs.dtype:
            raise ValueError("thresholds and outputs have unlike dtypes")
        return cls(config["T"], thresholds, outputs, code=config["code"], **errors)


def _even(outputs: Tensor) -> bool:
    steps = outputs.double().diff()
    wanted = (outputs[-1] - outputs[0]).double() / len(steps)
    slack = 16 * torch.finfo(outputs.dtype).eps * outputs.double().abs().max()
    return bool(((steps - wanted).abs() <= slack).all())
