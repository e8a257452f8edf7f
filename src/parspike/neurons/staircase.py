"""Neurons with a free threshold for every level: any monotone activation as a staircase.

Level k is reached where the mean current is at least `thresholds[k − 1]`, and is worth `outputs[k]`; neither need be
evenly spaced. The smallest output may be negative: it is the constant current of a silent neuron, which the next
synapse takes in as it takes in a bias, so every spike is positive and the offset is exact.

Counting is bucketing. A search among S thresholds costs log₂ S branches a neuron, each mispredicted half the time; here
the thresholds lie on a fine grid of step 2^−k instead. A current times 2^k is exact, so its integer part tells on which
side of every threshold it lies, and one look-up in a table gives the count, for any S. Thresholds of their own for
every channel have a grid and a row of the table for every channel.

Two staircases that stand for an activation that falls and then rises, right(z) + left(−z), are one table as well
(`joined`): left changes just behind its points where right changes on them, so the points are cells of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import fused
from .layer import Code, Neuron
from .packed import PackedTrains
from .pieces import holds_double, in_pieces, runs_here

__all__ = ["Staircase", "joined"]

CELLS_A_LEVEL = 128
FEWEST_CELLS, MOST_CELLS = 1 << 11, 1 << 16
MOST_IN_ALL = 1 << 22
"""Of all channels: the tables stay small, and float32 can number the cells."""
MOST_JOINED = 1 << 19
"""Of all channels, in the table of two staircases: 2 MiB of float32 for a layer."""
FINEST = 22
"""The largest threshold has at most as many bits before the grid's point: float32 has room for both sides of it."""
NARROWER = (torch.float32, torch.float16, torch.bfloat16)
"""What outputs of a wider dtype may have been rounded to before."""
SELECTED = 16
"""Levels up to which a compiled network compares with every threshold: compilers vectorise that, not a table."""


class Cells(nn.Module):
    """Numbers the cells of a grid, and looks up what stands for them in a table.

    grid, first, last (C,): of every channel the cells in a unit of current, and the first and the last grid point that
    matter, as multiples of its step. shape: of one sample's parameters, such as (C, 1, 1). points: every grid point
    is a cell of its own, between two open cells; else each cell begins with its point.
    """

    scale: Tensor
    start: Tensor
    row: Tensor

    def __init__(self, grid: Tensor, first: Tensor, last: Tensor, shape: torch.Size, *, points: bool = False) -> None:
        super().__init__()
        self.points, cells = points, 1 + points
        self.top = cells * int((last - first).max()) + cells
        """The last cell; the first, 0, is everything below `first`. One more is for NaN."""
        rows = torch.arange(len(grid), device=grid.device) * (self.top + 2)
        for name, value in (("scale", grid), ("start", 1 - cells * first), ("row", rows)):
            # Whole numbers below 2^24 and powers of two: exact in float32.
            self.register_buffer(name, value.float().reshape(shape), persistent=False)

    def look_up(self, table: Tensor, z: Tensor, *, over: bool = False) -> Tensor:
        """table (C × (top + 2),) at the cells of z (B, …). over: it may be written over z."""
        wide = torch.float64 if z.dtype == torch.float64 else torch.float32  # half precision cannot number the cells
        scale, start, row = self.scale.to(wide), self.start.to(wide), self.row.to(wide)
        shared = scale.numel() == 1
        if not runs_here(z):
            cell = z.to(wide) * scale
            cell = cell.floor() + cell.ceil() if self.points else cell.floor()
            cell = cell.add(start).clamp(0, self.top).nan_to_num(nan=self.top + 1) + row
            return table.index_select(0, cell.to(torch.int32).flatten()).view(z.shape)
        spare = torch.empty(0, dtype=wide), torch.empty(0, dtype=wide)
        index = torch.empty(0, dtype=torch.int32)  # the look-up by 64 bits is faster, making them is slower by more

        def fill(out: Tensor, z: Tensor, scale: Tensor, start: Tensor, row: Tensor) -> None:
            if index.numel() < z.numel():
                for room in (*spare, index) if self.points else (spare[0], index):
                    room.resize_(z.numel())
            cell, place = spare[0][: z.numel()].view(z.shape), index[: z.numel()]
            torch.mul(z, scale, out=cell) if z.dtype == wide else cell.copy_(z).mul_(scale)
            if self.points:
                above = torch.ceil(cell, out=spare[1][: z.numel()].view(z.shape))
                cell.floor_().add_(above)
            else:
                cell.floor_()
            cell.add_(start).clamp_(0, self.top).nan_to_num_(nan=self.top + 1)
            if not shared:
                cell.add_(row)
            torch.index_select(table, 0, place.copy_(cell.view(-1)), out=out.view(-1))

        return in_pieces(fill, z if shared else z.contiguous(), table.dtype, scale, start, row, over=over)


class Staircase(Neuron):
    """Neurons of one layer with S thresholds and S + 1 outputs, both non-decreasing, S = `levels`.

    thresholds (S,) and outputs (S + 1,), which all neurons share, or (S, …) and (S + 1, …) whose other dimensions
    broadcast against one sample, such as (S, C, 1, 1). error, uniform_error: mean squared error of this staircase
    and of one with evenly spaced outputs, on what it was made from. Thresholds are moved to the nearest edge of the
    grid, also where they were changed in place: on the next call on the CPU. A traced network (`torch.compile`,
    `torch.export`) and other devices keep the tables they have until then. The count is the number of thresholds
    that z reaches, exactly (a subnormal z may count as 0); NaN stays NaN. Raises `ValueError` on tables that are no
    staircase; the weighted code needs evenly spaced outputs.
    """

    kind = "staircase"
    leading = ("thresholds", "outputs")
    counts: Tensor
    values: Tensor

    def __init__(
        self, T: int, thresholds: Tensor, outputs: Tensor, *, code: Code = "sorted",
        error: float = 0.0, uniform_error: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(T, code)
        channels = tuple(thresholds.shape[1:])
        if thresholds.shape != (self.levels, *channels) or outputs.shape != (self.levels + 1, *channels):
            raise ValueError(
                f"{self.levels} levels need as many thresholds and one output more, got {tuple(thresholds.shape)} "
                f"and {tuple(outputs.shape)}"
            )
        if thresholds.numel() == 0 or math.prod(channels) * (4 * self.levels + 4) > MOST_IN_ALL:
            raise ValueError(f"{math.prod(channels)} channels of {self.levels} levels are too many for one table")
        if not bool(thresholds.isfinite().all()):
            raise ValueError("thresholds must be finite")
        if bool((thresholds.diff(dim=0) < 0).any()) or bool((outputs.diff(dim=0) < 0).any()):
            raise ValueError("thresholds and outputs must not fall")
        if code == "weighted" and not _even(outputs) and not _were_even(outputs):
            raise ValueError("the weighted code needs evenly spaced outputs")
        self.error, self.uniform_error = float(error), float(uniform_error)
        self.thresholds = nn.Parameter(thresholds.detach().clone(), requires_grad=False)
        self.outputs = nn.Parameter(outputs.detach().clone(), requires_grad=False)
        self._tabulate()

    def count(self, z: Tensor) -> Tensor:
        return self._look_up("counts", z)

    def value(self, count: Tensor) -> Tensor:
        table = self.outputs.reshape(self.levels + 1, -1).T.flatten()
        channel = (self._cells.row / (self._cells.top + 2)).to(torch.int64)
        place = count.nan_to_num().to(torch.int64) + channel * (self.levels + 1)
        return torch.where(count.isnan(), count, table.index_select(0, place.flatten()).view(count.shape))

    def forward(self, z: Tensor) -> Tensor:
        if made := self._at_once(z, trains=False):
            return made[0]
        return self._look_up("values", z)

    def over(self, z: Tensor) -> Tensor:
        return self._look_up("values", z, over=True) if runs_here(z) else self(z)

    def emit(self, z: Tensor) -> tuple[Tensor, PackedTrains]:
        made = self._at_once(z, trains=True)
        return (made[0], made[1]) if made and made[1] else (self(z), self.pack(self.count(z)))

    def _kernel(self, z: Tensor, trains: bool) -> tuple[Tensor, PackedTrains | None] | None:
        # Of what the tables were made of, also where it was changed since.
        return fused.stairs(z, *self._made_of, T=self.T, code=self.code, trains=trains)

    def soft(self, z: Tensor) -> Tensor:
        """The same outputs, with a gradient for `outputs` and none for z; thresholds as of the last table."""
        return self.value(self._cells.look_up(self.counts, z.detach()))

    def settle(self) -> None:
        """Make the tables anew where thresholds or outputs were changed in place, on any device."""
        self._tabulate()

    def _tabulate(self) -> None:
        """Move the thresholds to the grid and make the tables that counting looks into."""
        own, device = self.thresholds.detach(), self.thresholds.device
        tau = (own if holds_double(device) else own.cpu()).double().reshape(self.levels, -1)
        number = tau.shape[1]
        most = max(FEWEST_CELLS // number, min(CELLS_A_LEVEL * self.levels, MOST_CELLS), 4 * self.levels)
        most = min(most, MOST_IN_ALL // number - 4)
        while True:
            low, high = tau[0], tau[-1]
            k = FINEST - torch.frexp(torch.maximum(-low, high)).exponent.double()
            fits = torch.log2(most / (high - low)).floor()  # infinite where all thresholds are one
            grid = torch.minimum(k, fits).clamp(max=126).exp2()  # float32 ends at 2^127
            edges = (tau * grid).round()
            # Rounding may have made the span a little larger than the grid was chosen for.
            if torch.equal(moved := edges / grid, tau):
                break
            tau = moved
        # Exact in every dtype: where the grid is finer than its numbers, rounding has moved nothing.
        self.thresholds.data = tau.view_as(own).to(own)
        self._cells = Cells(grid, edges[0], edges[-1], own.shape[1:]).to(device)
        cells = torch.arange(self._cells.top + 1, dtype=edges.dtype, device=edges.device)
        places = torch.searchsorted((edges - edges[0] + 1).T.contiguous(), cells.repeat(number, 1), right=True)
        places = places.to(device)
        outputs = self.outputs.detach().reshape(self.levels + 1, number).T
        nan = outputs.new_full((number, 1), math.nan)
        self.register_buffer("counts", torch.cat([places.to(nan.dtype), nan], 1).flatten(), persistent=False)
        self.register_buffer("values", torch.cat([outputs.gather(1, places), nan], 1).flatten(), persistent=False)
        self._joined: tuple[tuple[Any, Any, Any], tuple[Cells, Tensor] | None] = (None, None, None), None
        self._made_of = self.thresholds.detach().clone(), self.outputs.detach().clone()

    def _refresh(self) -> None:
        # By value, since a version counter misses what is written through `.data`, and inference tensors have none.
        now = self.thresholds.detach(), self.outputs.detach()
        if not all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(now, self._made_of, strict=True)):
            self._tabulate()

    def _look_up(self, table: str, z: Tensor, *, over: bool = False) -> Tensor:
        z = z.detach()
        if runs_here(z):
            self._refresh()
        elif torch.compiler.is_compiling() and self.levels <= SELECTED:
            return self._select(table, z)
        return self._cells.look_up(getattr(self, table), z, over=over)

    def _select(self, table: str, z: Tensor) -> Tensor:
        steps = self.outputs.detach()
        if table == "counts":
            steps = torch.arange(self.levels + 1, dtype=steps.dtype, device=steps.device)
        wide = z.to(torch.promote_types(z.dtype, steps.dtype))
        found = torch.where(z.isnan(), z.to(steps.dtype), steps[0])
        for k in range(self.levels):
            found = torch.where(wide >= self.thresholds[k], steps[k + 1], found)
        return found

    def _joined_with(self, left: Staircase, lowest: float) -> tuple[Cells, Tensor] | None:
        """The cells and the table of `joined`, None where no grid holds the steps of both."""
        self._refresh()
        left._refresh()
        now = self._made_of, left._made_of, lowest
        if not all(a is b for a, b in zip(now, self._joined[0], strict=True)):
            self._joined = now, self._join(left, lowest)
        return self._joined[1]

    def _join(self, left: Staircase, lowest: float) -> tuple[Cells, Tensor] | None:
        shape = self.thresholds.shape[1:]
        if left.thresholds.shape[1:] != shape or left.outputs.dtype != self.outputs.dtype:
            return None
        grid = torch.maximum(self._cells.scale, left._cells.scale).double().reshape(-1)
        edges = torch.cat(
            [t.detach().double().reshape(t.shape[0], -1) * grid for t in (self.thresholds, -left.thresholds)]
        )
        if float(edges.abs().max()) > 1 << FINEST:
            return None
        first, last = edges.amin(0), edges.amax(0)
        cells = Cells(grid, first, last, shape, points=True)
        if len(grid) * cells.top > MOST_JOINED:
            return None
        # A point and the middle behind it, of every channel and from below the first point on.
        inside = torch.arange(-1, cells.top, dtype=grid.dtype, device=grid.device)[:, None] / 2
        z = ((first + inside) / grid).reshape(-1, *shape)
        both = self._look_up("values", z) + left._look_up("values", -z)
        table = (both + lowest if lowest else both).reshape(len(inside), -1)
        nan = table.new_full((1, table.shape[1]), math.nan)
        return cells, torch.cat([table, nan]).T.flatten()

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
            scale = self.outputs.diff(dim=0).flip(0)
        elif self.code == "onset":  # a count of T − t spikes at step t only
            scale = (self.outputs[1:] - self.outputs[0]).flip(0)
        else:
            steps = torch.arange(self.T - 1, -1, -1, dtype=self.outputs.dtype, device=self.outputs.device)
            steps = steps.reshape(-1, *[1] * (self.outputs.dim() - 1))
            scale = 2.0**steps * ((self.outputs[-1] - self.outputs[0]) / self.levels)
        return scale * self.T

    def rest(self) -> Tensor:
        return self.outputs[0]

    @property
    def even(self) -> bool:
        """Whether the outputs are evenly spaced, up to rounding, so that every spike of a channel carries the same.

        Those of the weighted code were, in the dtype that they were made in; cast to a wider one they show its
        rounding.
        """
        return self.code == "weighted" or _even(self.outputs)

    def config(self) -> dict[str, Any]:
        errors = {"error": self.error, "uniform_error": self.uniform_error}
        return {"kind": self.kind, "T": self.T, "code": self.code, **errors}

    def extra_repr(self) -> str:
        better = f", {self.uniform_error / self.error:.1f}× less than even ones" if self.error else ""
        return (
            f"outputs {float(self.outputs[0].min()):.4g} … {float(self.outputs[-1].max()):.4g}, "
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


def joined(right: Neuron, left: Neuron, lowest: float, z: Tensor, *, over: bool = False) -> Tensor:
    """right(z) + left(−z) + lowest for a mean input current z (B, …), the same to the bit. over: it may be written
    over z.

    On the CPU one look-up does it, where both are staircases and a grid of at most `MOST_JOINED` cells holds the steps
    of both. Its table is kept with `right` until one of the two changes.
    """
    if runs_here(z) and isinstance(right, Staircase) and isinstance(left, Staircase):
        z = z.detach()
        if (table := right._joined_with(left, lowest)) is not None:
            return table[0].look_up(table[1], z, over=over)
    both = right(z) + left(-z)
    return both + lowest if lowest else both


def _even(outputs: Tensor) -> bool:
    steps = outputs.double().diff(dim=0)
    wanted = (outputs[-1] - outputs[0]).double() / len(steps)
    number = torch.finfo(outputs.dtype)
    slack = 16 * number.eps * outputs.double().abs().amax(0).clamp(min=number.tiny)
    return bool(((steps - wanted).abs() <= slack).all())


def _were_even(outputs: Tensor) -> bool:
    """Whether evenly spaced outputs were rounded to a narrower dtype, whose rounding they keep when a network is cast
    to a wider one, such as by `snn.double()`."""
    wide = outputs.double()
    places = torch.arange(len(wide), dtype=wide.dtype, device=wide.device).reshape(-1, *[1] * (wide.dim() - 1))
    off = (wide - wide[0] - places * ((wide[-1] - wide[0]) / (len(wide) - 1))).abs()
    # Twice half a unit in the last place: the value's own rounding, and that of the ends.
    return any(
        torch.equal(outputs.to(dtype).double(), wide)
        and bool((off <= torch.finfo(dtype).eps * wide.abs().amax(0).clamp(min=torch.finfo(dtype).tiny)).all())
        for dtype in NARROWER
    )
