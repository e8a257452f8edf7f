"""Neurons with a free threshold for every level: any monotone activation as a staircase.

Level k is reached where the mean current is at least `thresholds[k − 1]`, and is worth `outputs[k]`; neither need be
evenly spaced. The smallest output may be negative: it is the constant current of a silent neuron, which the next
synapse takes in as it takes in a bias, so every spike is positive and the offset is exact.

Counting is bucketing. A search among S thresholds costs log₂ S branches a neuron, each mispredicted half the time;
here the thresholds lie on a fine grid of step 2^−k instead. A current times 2^k is exact, so its integer part tells
on which side of every threshold it lies, and one table tells the count, whatever S is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .layer import Code, Neuron
from .pieces import PIECE, in_pieces, runs_here

__all__ = ["Staircase"]

CELLS_A_LEVEL = 128
FEWEST_CELLS, MOST_CELLS = 1 << 11, 1 << 16
FINEST = 22
"""The largest threshold has at most as many bits before the grid's point: float32 has room for both sides of it."""


class Staircase(Neuron):
    """Neurons of one layer that share S thresholds and S + 1 outputs, both non-decreasing, S = `levels`.

    error, uniform_error: mean squared error of this staircase and of one with evenly spaced outputs, on what it
    was made from. Thresholds are moved to the nearest edge of the grid, also where they were changed in place: on the
    next call on the CPU. A traced network (`torch.compile`, `torch.export`) and other devices keep the tables they
    have until then. The count is the number of thresholds that z reaches, exactly; NaN stays NaN.
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
        if not bool(thresholds.isfinite().all()):
            raise ValueError("thresholds must be finite")
        if bool((thresholds.diff() < 0).any()) or bool((outputs.diff() < 0).any()):
            raise ValueError("thresholds and outputs must not fall")
        if code == "weighted" and not _even(outputs):
            raise ValueError("the weighted code needs evenly spaced outputs")
        self.error, self.uniform_error = float(error), float(uniform_error)
        self.thresholds = nn.Parameter(thresholds.detach().clone(), requires_grad=False)
        self.outputs = nn.Parameter(outputs.detach().clone(), requires_grad=False)
        self._tabulate()

    def count(self, z: Tensor) -> Tensor:
        return self._look_up("counts", z)

    def value(self, count: Tensor) -> Tensor:
        values = self.outputs.index_select(0, count.nan_to_num().to(torch.int32).flatten()).view(count.shape)
        return torch.where(count.isnan(), count, values)

    def forward(self, z: Tensor) -> Tensor:
        return self._look_up("values", z)

    def _tabulate(self) -> None:
        """Move the thresholds to the grid and make the tables that counting looks into."""
        tau = self.thresholds.detach().double()
        most = max(FEWEST_CELLS, min(CELLS_A_LEVEL * self.levels, MOST_CELLS), 4 * self.levels)
        while True:
            low, high = float(tau[0]), float(tau[-1])
            k = FINEST - math.frexp(max(-low, high))[1]
            if high > low:
                k = min(k, math.floor(math.log2(most / (high - low))))
            k = min(k, 100)
            edges = (tau * 2.0**k).round()
            # Rounding may have made the span a little larger than the grid was chosen for.
            if torch.equal(moved := edges * 2.0**-k, tau):
                break
            tau = moved
        # Exact in every dtype: where the grid is finer than its numbers, rounding has moved nothing.
        self.thresholds.data = tau.to(self.thresholds.dtype)
        self.scale, self.start = 2.0**k, 1.0 - float(edges[0])
        self.top = int(edges[-1] - edges[0]) + 1
        cells = torch.arange(self.top + 1, dtype=edges.dtype, device=edges.device)
        counts = torch.searchsorted(edges + self.start, cells, right=True)
        nan = self.outputs.new_full((1,), math.nan)
        self.register_buffer("counts", torch.cat([counts.to(nan.dtype), nan]), persistent=False)
        self.register_buffer("values", torch.cat([self.outputs.detach()[counts], nan]), persistent=False)
        self._made_of = self.thresholds.detach().clone(), self.outputs.detach().clone()

    def _refresh(self) -> None:
        # By value, since a version counter misses what is written through `.data`, and inference tensors have none.
        now = self.thresholds.detach(), self.outputs.detach()
        if not all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(now, self._made_of, strict=True)):
            self._tabulate()

    def _look_up(self, table: str, z: Tensor) -> Tensor:
        z = z.detach()
        wide = torch.float64 if z.dtype == torch.float64 else torch.float32  # half precision cannot number the cells
        if not runs_here(z):
            cell = (z.to(wide) * self.scale).floor().add(self.start).clamp(0, self.top).nan_to_num(nan=self.top + 1)
            return getattr(self, table).index_select(0, cell.to(torch.int32).flatten()).view(z.shape)
        self._refresh()
        found = getattr(self, table)
        number = torch.empty(min(PIECE, z.numel()), dtype=wide)
        index = torch.empty_like(number, dtype=torch.int64)  # the gather that takes 32 bits is slower

        def fill(out: Tensor, z: Tensor) -> None:
            cell, place = number[: len(z)], index[: len(z)]
            torch.mul(z, self.scale, out=cell) if z.dtype == wide else cell.copy_(z).mul_(self.scale)
            cell.floor_().add_(self.start).clamp_(0, self.top).nan_to_num_(nan=self.top + 1)
            torch.index_select(found, 0, place.copy_(cell), out=out)

        return in_pieces(fill, z, found.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._tabulate()

    def _apply(self, *args: Any, **kwargs: Any) -> Staircase:
        super()._apply(*args, **kwargs)
        if not self.thresholds.is_meta:
            self._tabulate()  # another dtype rounds the thresholds
        return self

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
