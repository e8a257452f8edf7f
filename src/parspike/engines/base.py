"""What an engine is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from parspike.graph import Graph
from parspike.neurons import Neuron

__all__ = ["ENGINES", "Network", "OnDemand", "Run"]

ENGINES = ("count", "parallel", "serial", "serial-if")


class Network(Protocol):
    """A graph, its tensors, and the neurons that stand at some of its nodes (by node name)."""

    graph: Graph
    T: int

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of the synapses, by the names that the graph uses."""
        ...

    def neurons(self) -> Mapping[str, Neuron]:
        """The spiking neurons, by node name, in order."""
        ...


@dataclass
class Run:
    """Result of a run. logits: the network's output, mean over time. With record=True also, by layer name:
    counts (B, …), what a neuron counted; sent (B, …), the spikes it sent, fewer than its count where the code is not
    sorted; spikes, bool (T, B, …)."""

    logits: Any
    T: int
    engine: str
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    spikes: Mapping[str, Tensor] = field(default_factory=dict)
    sent: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def firing_rate(self) -> dict[str, float]:
        """Spikes per neuron and step, by layer."""
        return {layer: float(sent.float().mean()) / self.T for layer, sent in self.sent.items()}


@dataclass(frozen=True)
class OnDemand(Mapping[str, Tensor]):
    """Made from counts when asked for: trains take T times the memory, needed only for what is looked at."""

    counts: Mapping[str, Tensor]
    expand: Mapping[str, Callable[[Tensor], Tensor]]

    def __getitem__(self, layer: str) -> Tensor:
        return self.expand[layer](self.counts[layer])

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)


def recorded(logits: Any, net: Network, engine: str, counts: Mapping[str, Tensor]) -> Run:
    """A run with counts by node name turned into counts and trains by layer name."""
    layer = {node.name: node.layer for node in net.graph.neurons}
    neurons = net.neurons()
    return Run(
        logits, net.T, engine,
        counts := {layer[name]: count for name, count in counts.items()},
        OnDemand(counts, {layer[name]: neuron.spikes for name, neuron in neurons.items()}),
        OnDemand(counts, {layer[name]: neuron.sent for name, neuron in neurons.items()}),
    )  # fmt: skip
