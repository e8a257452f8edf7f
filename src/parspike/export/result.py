"""What an export answers: the file, what stands in it, and how a run of the file compares with the network's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parspike.graph import Graph, leaves
from parspike.graph.forget import release
from parspike.graph.ir import elements, map_tree
from parspike.measure import Scores
from parspike.notebook import html_table
from parspike.snn import SNN

__all__ = ["Compared", "Drift", "Exported", "Theirs", "compare", "in_pieces", "tally", "unlike"]

AT_ONCE = 8
"""Samples that are run at a time."""
MOST_NEURONS = 1 << 23
"""Neurons of all samples that are run at a time: their potentials and counts take 40 MiB in each of the networks."""
ROWS = 12
"""Layers that `print` shows where more drift."""


@dataclass(frozen=True)
class Drift:
    """One layer of neurons, run by parspike and from the file. spikes, file_spikes: of all samples; counts: how many
    neurons' counts were compared, over all samples; unlike: how many of them differ."""

    layer: str
    counts: int
    spikes: int
    file_spikes: int
    unlike: int


@dataclass(frozen=True)
class Compared:
    """Two runs of the same samples. error: ‖file − own‖ / ‖own‖ of the outputs, of several the largest, None where
    they are whole numbers; agreement: share of the answers that are the same, None where outputs are values
    (docs/measure.md, "Answers and values")."""

    samples: int
    layers: tuple[Drift, ...]
    error: float | None
    agreement: float | None

    @property
    def equal(self) -> bool:
        """Whether every count and every output is the same to the bit."""
        return not self.unlike and not self.error and self.agreement in (None, 1)

    @property
    def unlike(self) -> int:
        """Counts that differ, of all layers."""
        return sum(row.unlike for row in self.layers)

    @property
    def text(self) -> str:
        """The comparison as half a sentence."""
        counts = sum(row.counts for row in self.layers)
        said = f"{self.unlike:,} of {counts:,} spike counts differ" if self.unlike else "the same spike counts"
        parts = [said] if counts else []
        if self.error is not None:
            parts.append(f"outputs differ by {float(f'{100 * self.error:.2g}'):g} %")
        if self.agreement is not None:
            parts.append(f"the same class for {100 * self.agreement:.1f} % of the samples")
        return ", ".join(parts)


@dataclass(frozen=True)
class Exported:
    """A file that `parspike.export` wrote. nodes: how many of each kind. file: the file, read back and run, beside the
    network's own run. plain: the same for a reader that knows the format alone and none of parspike's metadata. noise:
    whether the samples were noise, for want of examples."""

    path: Path
    format: str
    nodes: Mapping[str, int]
    bytes: int
    file: Compared
    plain: Compared | None = None
    notes: tuple[str, ...] = ()
    noise: bool = False

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-able data."""

        def of(found: Compared | None) -> dict[str, Any] | None:
            if found is None:
                return None
            layers = [vars(row) for row in found.layers]
            return {
                "samples": found.samples, "unlike_counts": found.unlike, "error": found.error,
                "agreement": found.agreement, "layers": layers,
            }  # fmt: skip

        return {
            "path": str(self.path), "format": self.format, "bytes": self.bytes, "nodes": dict(self.nodes),
            "read_back": of(self.file), "format_alone": of(self.plain), "on_noise": self.noise,
            "notes": list(self.notes),
        }  # fmt: skip

    def _lines(self) -> list[str]:
        nodes = ", ".join(f"{number} {kind}" for kind, number in sorted(self.nodes.items()))
        samples = "1 sample" if self.file.samples == 1 else f"{self.file.samples} samples"
        on = f"{samples} of noise" if self.noise else samples
        lines = [f"{self.path}: {self.format}, {self.bytes / 1e3:,.0f} kB", f"nodes: {nodes}"]
        lines.append(f"read back and run on {on}: {self.file.text}")
        if self.plain is not None:
            lines.append(f"as a reader of {self.format} alone computes it: {self.plain.text}")
        return lines + [f"note: {note}" for note in self.notes]

    def __str__(self) -> str:
        drifts = [row for row in self.file.layers if row.unlike]
        lines = self._lines()
        if drifts:
            width = max(len(row.layer) for row in drifts[:ROWS])
            lines.append(f"{'layer':<{width}}  counts that differ  spikes here  in the file")
            lines += [
                f"{row.layer:<{width}}  {100 * row.unlike / row.counts:16.3f} %  {row.spikes:11,}  "
                f"{row.file_spikes:11,}"
                for row in drifts[:ROWS]
            ]
            if len(drifts) > ROWS:
                lines.append(f"… and {len(drifts) - ROWS} layers more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        first, *notes = self._lines()
        rows = [(row.layer, f"{row.spikes:,}", f"{row.file_spikes:,}", f"{row.unlike:,}") for row in self.file.layers]
        return html_table(first, ("layer", "spikes here", "spikes in the file", "counts that differ"), rows, notes)


Theirs = Callable[[Mapping[str, Tensor], dict[str, Tensor]], tuple[Mapping[str, tuple[int, int]], Any]]
"""theirs(inputs by name, the network's own counts by node, which it may use up) → by node, the spikes of the other run
and how many of its counts differ; and the other's output."""


@torch.no_grad()
def compare(own: SNN, other: SNN, names: Mapping[str, str], batches: Sequence[Mapping[str, Tensor]]) -> Compared:
    """Run both networks on the same inputs; the other's neurons have a state and send no spikes of a sign. names: the
    other's layers by the nodes of the network's own neurons; empty where only outputs are compared. batches: inputs by
    the names of the network's own graph."""
    node = {other.graph.by_name[name].layer: name for name in other.neurons()}

    def theirs(env: Mapping[str, Tensor], mine: dict[str, Tensor]) -> tuple[dict[str, tuple[int, int]], Any]:
        pairs = zip(other.graph.inputs, env.values(), strict=True)  # a file holds one type of numbers
        given = {i.name: x.to(i.dtype) if isinstance(x, Tensor) else x for i, x in pairs}
        sums = {name: int(count.sum()) for name, count in mine.items()}
        # One tensor holds both counts, since those of all layers are as large as a part of the weights.
        less = {node[layer]: mine.pop(name).neg_() for name, layer in names.items()}
        apart, answer = _counts(other, given, less, less)
        found = {name: apart[node[layer]] for name, layer in names.items()}
        return {name: (sums[name] + int(d.sum()), int((d != 0).sum())) for name, d in found.items()}, answer

    return tally(own, names, batches, theirs)


def unlike(mine: Mapping[str, Tensor], found: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Of counts by node of another run, what `Theirs` gives."""
    tensors = {name: torch.as_tensor(found[name]) for name in mine}
    return {name: (int(one.abs().sum()), int((one != mine[name]).sum())) for name, one in tensors.items()}


@torch.no_grad()
def tally(own: SNN, names: Collection[str], batches: Sequence[Mapping[str, Tensor]], theirs: Theirs) -> Compared:
    """The network's own run beside another one of the same inputs, summed over batches. names: nodes of its neurons
    whose counts are compared."""
    layer = {name: own.graph.by_name[name].layer for name in names}
    rows = {name: [0, 0, 0, 0] for name in names}
    samples, scores = 0, Scores()
    for env in batches:
        mine, output = _counts(own, env, names)
        for name, count in mine.items():
            rows[name][0] += count.numel()
            rows[name][1] += int(count.abs().sum())
        found, answer = theirs(env, mine)
        for name, (spikes, differ) in found.items():
            rows[name][2] += spikes
            rows[name][3] += differ
        samples += len(next(iter(env.values())))
        scores.add(_as(output, answer), output)
    layers = tuple(Drift(layer[name], *row) for name, row in rows.items())
    return Compared(samples, layers, scores.error, scores.agreement)


def _as(output: Any, answer: Any) -> Any:
    """Another program's answer in the structure and the shapes of the network's output."""
    own, given = list(leaves(output)), list(leaves(answer))
    if len(own) != len(given):  # NIR files hold the tensors alone
        own, given = ([leaf for leaf in both if isinstance(leaf, Tensor)] for both in (own, given))
    # Of numbers a package makes tensors too.
    pairs = [(one, two) for one, two in zip(own, given, strict=True) if isinstance(one, Tensor)]
    found = iter([two.reshape(one.shape) for one, two in pairs])
    return map_tree(lambda leaf: next(found) if isinstance(leaf, Tensor) else leaf, output)


def _counts(
    snn: SNN, env: Mapping[str, Tensor], names: Collection[str], start: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], Any]:
    """Spikes of every neuron over the T steps, by node, of those in `names`, and the output. start: of neurons with a
    state, what is counted on from, which is overwritten."""
    if not snn.over_time:
        args, named = snn.graph.call_of(env)
        run = snn.run(*args, record=bool(names), **named)
        return ({name: run.counts[snn.graph.by_name[name].layer] for name in names}, run.logits)
    counts = dict(start or {})
    # In few bits, since the counts of all layers are held at once.
    most = snn.T * max(neuron.largest for neuron in snn.stateful().values())
    small = torch.int8 if most < 128 else torch.int32
    large = _neurons(snn.graph, env) > MOST_NEURONS

    def watch(name: str, current: Tensor, spikes: Tensor, read: bool) -> None:
        if large:
            release()
        if name not in names:
            return
        now = spikes.sum(0).to(small)
        counts[name] = counts[name].add_(now) if name in counts else now

    return counts, snn.watched(env, watch).logits


def _neurons(graph: Graph, env: Mapping[str, Tensor]) -> int:
    """How many neurons a sample of this size has."""
    sizes = graph.sizes(env)
    return sum(elements(node.shape, sizes) for node in graph.neurons)


def in_pieces(env: Mapping[str, Tensor], graph: Graph) -> list[dict[str, Tensor]]:
    """Inputs by name as batches of a few samples, of one where the network has many neurons."""
    neurons = _neurons(graph, env)
    cut = {name: x.split(min(AT_ONCE, max(1, MOST_NEURONS // max(1, neurons)))) for name, x in env.items()}
    return [dict(zip(cut, pieces, strict=True)) for pieces in zip(*cut.values(), strict=True)]
