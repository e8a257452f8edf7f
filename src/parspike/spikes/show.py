"""What a spike file holds, in figures and as a raster of characters; without ever making a whole train of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from parspike.spikes.layout import VALUED, Layer, unpack

__all__ = ["LayerSummary", "Watched", "raster_lines"]

Content = Mapping[int, np.ndarray] | np.ndarray


@dataclass(frozen=True)
class LayerSummary:
    """A layer over all samples. spikes: sent, counted by their size, one that is taken back as one. rate: spikes a
    neuron and step. silent: share of neurons, of all samples, that send nothing. first, median, last: of the steps,
    from 0 on, in which the others send their first spike; None where none does."""

    layer: str
    shape: tuple[int, ...]
    neurons: int
    T: int
    code: str
    type: str
    spikes: int
    rate: float | None
    silent: float | None
    first: int | None
    median: float | None
    last: int | None

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {**asdict(self), "shape": list(self.shape)}


@dataclass
class Watched:
    """Sums of one layer over batches."""

    layer: Layer
    spikes: int = 0
    firing: int = 0
    firsts: Counter[int] = field(default_factory=Counter)

    def add(self, content: Content, number: int) -> None:
        """A batch, stored or as events."""
        if isinstance(content, np.ndarray):
            own = content[content["layer"] == number]
            self.spikes += int(np.abs(own["value"].astype(np.int64)).sum()) if own.dtype == VALUED else len(own)
            # Events are sorted by step within a sample, so the first of a neuron is its first spike.
            key = own["sample"].astype(np.int64) << 32 | own["neuron"]
            steps = own["step"][np.unique(key, return_index=True)[1]]
        else:
            train = unpack(content[number], self.layer)
            self.spikes += int(np.abs(train.astype(np.int64) if train.dtype != bool else train).sum())
            fires = train != 0
            steps = fires.argmax(0)[fires.any(0)]
        self.firing += len(steps)
        values, numbers = np.unique(steps, return_counts=True)
        self.firsts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))

    def summary(self, samples: int) -> LayerSummary:
        """The figures over so many samples."""
        layer, total = self.layer, samples * self.layer.neurons
        steps = sorted(self.firsts)
        return LayerSummary(
            layer.name, layer.shape, layer.neurons, layer.T, layer.code, layer.type, self.spikes,
            self.spikes / (total * layer.T) if total else None,
            1 - self.firing / total if total else None,
            steps[0] if steps else None, _median(self.firsts) if steps else None, steps[-1] if steps else None,
        )  # fmt: skip


def _median(counts: Counter[int]) -> float:
    """The median of numbers of which each stands in `counts` with how often it comes.

    >>> _median(Counter({1: 2, 5: 2})), _median(Counter({1: 2, 5: 1}))
    (3.0, 1.0)
    """
    total, seen = sum(counts.values()), 0
    wanted = [(total - 1) // 2, total // 2]
    found: list[int] = []
    for value in sorted(counts):
        seen += counts[value]
        found += [value] * (sum(place < seen for place in wanted) - len(found))
    return sum(found) / 2


def raster_lines(grid: np.ndarray, neurons: Sequence[int]) -> Iterator[str]:
    """A line for each neuron, a character for each step: "." for none, "|" for a spike, a digit for several (9 for more
    too), "-" for one that is taken back. grid: (neurons, steps).

    >>> list(raster_lines(np.array([[0, 1, 3], [0, -1, 1]]), [4, 17]))
    [' 4 .|3', '17 .-|']
    """
    width = len(str(max(neurons, default=0)))
    for number, row in zip(neurons, grid.tolist(), strict=True):
        marks = "".join("-" if v < 0 else ".|23456789"[min(v, 9)] for v in row)
        yield f"{number:>{width}} {marks}"
