"""What an engine is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from parspike.errors import OptionError
from parspike.graph import Graph
from parspike.neurons import Neuron, PackedTrains, SpikingLayer

__all__ = ["ENGINES", "OVER_TIME", "PACKED", "Network", "OnDemand", "Record", "Run", "kept_of", "recorded"]

ENGINES = ("count", "parallel", "serial", "serial-if", "integer")
"""Of parallel neurons; neurons with a state have one, `OVER_TIME`. The last runs networks in whole numbers alone."""
OVER_TIME = "over-time"
PACKED = "packed"
Record = bool | Literal["packed"]
"""What is kept of the spikes: nothing, counts (or all trains, of neurons with a state), or trains as bits."""


class Network(Protocol):
    """A graph, its tensors, and the neurons that stand at some of its nodes (by node name)."""

    graph: Graph

    @property
    def T(self) -> int:
        """Time-steps."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of the synapses, by the names that the graph uses."""
        ...

    def neurons(self) -> Mapping[str, SpikingLayer]:
        """The spiking neurons, by node name, in order."""
        ...

    def counting(self) -> Mapping[str, Neuron]:
        """The neurons whose counts follow from their mean input."""
        ...


class Run:
    """Result of a run. logits: the network's output, mean over time; T: time-steps; engine: its name.

    With record=True also, by layer name: counts (B, …), what a neuron counted; sent (B, …), the spikes it sent, fewer
    than its count where the code is not sorted; spikes, bool (T, B, …), or int8 where neurons take
    spikes back (−1) or send several in one step. With record="packed" also packed, `PackedTrains`, which the others are
    then made from. Without it they raise `OptionError`. With every_step=True logits are those after each step,
    (T, B, …).
    """

    def __init__(
        self, logits: Any, T: int, engine: str, *, counts: Mapping[str, Tensor] | None = None,
        spikes: Mapping[str, Tensor] | None = None, sent: Mapping[str, Tensor] | None = None,
        packed: Mapping[str, PackedTrains] | None = None, lines: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.logits, self.T, self.engine, self.lines = logits, T, engine, dict(lines or {})
        self._packed = packed
        self._recorded = {"counts": counts, "spikes": spikes, "sent": sent}

    @property
    def recorded(self) -> bool:
        """Whether spikes were recorded."""
        return self._recorded["counts"] is not None

    def _get(self, name: str) -> Mapping[str, Tensor]:
        found = self._recorded[name]
        if found is None:
            raise OptionError(
                "this run recorded no spikes: counts, sent, spikes and firing_rate need snn.run(x, record=True)"
            )
        return found

    @property
    def counts(self) -> Mapping[str, Tensor]:
        """What the neurons counted, (B, …) by layer."""
        return self._get("counts")

    @property
    def spikes(self) -> Mapping[str, Tensor]:
        """The spike trains, bool (T, B, …) by layer."""
        return self._get("spikes")

    @property
    def sent(self) -> Mapping[str, Tensor]:
        """The number of spikes sent, (B, …) by layer."""
        return self._get("sent")

    @property
    def as_bits(self) -> bool:
        """Whether packed trains were kept."""
        return self._packed is not None

    @property
    def packed(self) -> Mapping[str, PackedTrains]:
        """The spike trains as bits, by layer."""
        if self._packed is None:
            raise OptionError("this run kept no packed trains: they need snn.run(x, record='packed')")
        return self._packed

    @property
    def firing_rate(self) -> dict[str, float]:
        """Spikes per neuron and step, by layer."""
        return {
            layer: float(sent.float().mean()) / self.T / self.lines.get(layer, 1)
            for layer, sent in self._get("sent").items()
        }

    def __repr__(self) -> str:
        recorded = "not recorded"
        if self.recorded:
            recorded = f"{len(self.counts)} {'layer' if len(self.counts) == 1 else 'layers'} recorded"
        return f"Run(logits {_shapes(self.logits)}, T={self.T}, engine '{self.engine}', {recorded})"


def _shapes(value: Any) -> str:
    """The shapes of an output, as one line.

    >>> import torch
    >>> _shapes({"logits": torch.zeros(5, 3), "states": (torch.zeros(5, 2), None)})
    '{logits: (5, 3), states: [(5, 2), None]}'
    """
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shapes(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_shapes, value)) + "]"
    return " ".join(repr(value).split())


@dataclass(frozen=True)
class OnDemand(Mapping[str, Tensor]):
    """A mapping whose values are made from counts or packed trains at each look-up: all trains at once would take T
    times the memory."""

    kept: Mapping[str, Any]
    expand: Mapping[str, Callable[[Any], Tensor]]

    def __getitem__(self, layer: str) -> Tensor:
        return self.expand[layer](self.kept[layer])

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def __repr__(self) -> str:
        return f"OnDemand({', '.join(self.kept)})"


def kept_of(neuron: Neuron, count: Tensor, record: Record) -> Tensor | PackedTrains:
    """What a run keeps of neurons that counted `count`."""
    return neuron.pack(count) if record == PACKED else count


def recorded(logits: Any, net: Network, engine: str, kept: Mapping[str, Tensor | PackedTrains] | None) -> Run:
    """The run, with what was kept by layer name instead of node name, and trains made from it on demand.

    kept: counts, or packed trains; None if the caller did not ask for a record.
    """
    if kept is None:
        return Run(logits, net.T, engine)
    layer = {node.name: node.layer for node in net.graph.neurons}
    neurons = {layer[name]: neuron for name, neuron in net.counting().items()}
    held = {layer[name]: value for name, value in kept.items()}
    lines = {name: neuron.lines for name, neuron in neurons.items()}
    packed = {name: value for name, value in held.items() if isinstance(value, PackedTrains)}
    if packed:
        return Run(
            logits, net.T, engine, lines=lines, packed=packed,
            counts=OnDemand(packed, {name: neuron.counted for name, neuron in neurons.items()}),
            spikes=OnDemand(packed, dict.fromkeys(packed, PackedTrains.unpack)),
            sent=OnDemand(packed, dict.fromkeys(packed, PackedTrains.sent)),
        )  # fmt: skip
    counts = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    return Run(
        logits, net.T, engine, lines=lines, counts=counts, packed=None if counts else {},
        spikes=OnDemand(counts, {name: neuron.spikes for name, neuron in neurons.items()}),
        sent=OnDemand(counts, {name: neuron.sent for name, neuron in neurons.items()}),
    )  # fmt: skip
