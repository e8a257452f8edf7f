"""What `measure` returns: a table of layers with its totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parspike.measure.energy import Energy
from parspike.neurons import CODES
from parspike.notebook import html_table

__all__ = ["LayerRow", "Report", "joule", "short"]


HEAD = ("layer", "operator", "neurons", "spikes/neuron", "rate", "SynOps", "MACs", "network's MACs", "updates", "error")
SCALES = {
    "weighted": "weighted: a spike of step t counts 2^(T−1−t); an accumulator is shifted by one bit a step",
    "onset": "onset: a spike of step t counts T−t; an accumulator is added once more at every step",
}
"""What a membrane update does beside adding, by code."""


@dataclass(frozen=True)
class LayerRow:
    """One operator that costs something; operations are those of one sample, mean over the samples.

    kind: "synapse", "neuron", "analog" (what no spike can do), or "mean" (a linear operator or maximum that acts on the
    time-means of spikes). synops: accumulates, one for every spike and edge. macs: multiply-accumulates; what neurons
    with a state need anew at every step counts at every step. kept_macs: the same counted once. network_macs: those of
    the same operator in the network itself. neurons, spikes, updates: of a layer of neurons; an update is one neuron's
    state in one time-step, its bias in it. firing_rate: spikes per neuron and time-step of the network. bits: of a
    layer of neurons, ⌈log₂(levels + 1)⌉, what an activation with as many levels takes; of any other operator those of
    the activations that it reads, 8 where these are no neurons'. error: ‖mean output − activation‖ / ‖activation‖
    against the network's own, None without one.
    """

    layer: str
    operator: str
    kind: str
    synops: float = 0.0
    macs: float = 0.0
    network_macs: float = 0.0
    neurons: float = 0.0
    spikes: float = 0.0
    firing_rate: float = 0.0
    updates: float = 0.0
    error: float | None = None
    bits: int = 0
    kept_macs: float = 0.0


@dataclass(frozen=True)
class Report:
    """Operations by layer and in total, and scores. `str` is a table, `to_json` everything.

    samples: measured. T: time-steps. codes: how counts are sent, or which neurons with a state. rows: the layers.
    energy: the constants. accuracy, network_accuracy: share of answers that are right, None without labels. agreement:
    share that are the network's. All three are None where the outputs are values and no class scores. error: of the
    outputs, as in `LayerRow`, of several the largest. The last two are None without a network to compare with. weights:
    of all synapses, without biases. uneven: layers whose spikes carry another amplitude at every step.
    """

    samples: int
    T: int
    codes: tuple[str, ...]
    rows: tuple[LayerRow, ...]
    energy: Energy
    accuracy: float | None = None
    network_accuracy: float | None = None
    agreement: float | None = None
    error: float | None = None
    weights: int = 0
    uneven: tuple[str, ...] = ()

    def _sum(self, name: str) -> Any:
        return sum(getattr(row, name) for row in self.rows)

    @property
    def neurons(self) -> float:
        """Spiking neurons of one sample; a whole number where all samples have one size."""
        return self._sum("neurons")

    @property
    def spikes(self) -> float:
        """Spikes of one sample."""
        return self._sum("spikes")

    @property
    def spikes_per_neuron(self) -> float:
        """Spikes of one neuron for one sample, in T steps."""
        return self.spikes / self.neurons if self.neurons else 0.0

    @property
    def synops(self) -> float:
        """Synaptic operations of one sample: accumulates."""
        return self._sum("synops")

    @property
    def macs(self) -> float:
        """Multiply-accumulates of one sample: synapses on real values, and analog operators."""
        return self._sum("macs")

    @property
    def network_macs(self) -> float:
        """Multiply-accumulates of one sample in the network itself."""
        return self._sum("network_macs")

    @property
    def driven(self) -> float:
        """The share of the network's multiply-accumulates that have become accumulates of spikes, 0 … 1."""
        return 1 - self._sum("kept_macs") / self.network_macs if self.network_macs else 0.0

    @property
    def updates(self) -> float:
        """Membrane updates of one sample; no part of `energy_pj`."""
        return self._sum("updates")

    @property
    def energy_pj(self) -> float:
        """Picojoules of one sample: synops and macs, without membrane updates and memory."""
        return self.synops * self.energy.ac + self.macs * self.energy.mac

    @property
    def update_energy_pj(self) -> float:
        """Picojoules of the membrane updates, one accumulate each."""
        return self.updates * self.energy.ac

    @property
    def network_energy_pj(self) -> float:
        """Picojoules of one sample in the network itself."""
        return self.network_macs * self.energy.mac

    @property
    def quantised_energy_pj(self) -> float:
        """Picojoules of one sample in the network itself with its activations quantised to as many levels as the
        neurons have, ⌈log₂(levels + 1)⌉ bits, computed in integers."""
        return sum(row.network_macs * self.energy.quantised_mac(row.bits) for row in self.rows)

    @property
    def quantised_bits(self) -> int:
        """The most bits that an activation of that network has, 0 where no neurons stand for one."""
        return max((row.bits for row in self.rows if row.kind == "neuron"), default=0)

    @property
    def memory_pj(self) -> float:
        """Picojoules of the accesses to memory for one sample, no part of `energy_pj`: a weight for every operation, a
        potential read and written for every accumulate and update, an event written and read for every spike. The
        memory is as large as all weights and potentials."""
        e = self.energy
        moved = self.synops * (e.weight_bits + 2 * e.potential_bits) + self.macs * (e.weight_bits + e.activation_bits)
        moved += self.updates * (e.weight_bits + 2 * e.potential_bits) + self.spikes * 2 * e.event_bits
        return e.access(moved, self._kib(e.weight_bits, e.potential_bits))

    @property
    def network_memory_pj(self) -> float:
        """The same of the network itself: a weight and an activation for every multiply-accumulate, whose sum stays in
        a register, and every activation written once."""
        e = self.energy
        moved = self.network_macs * (e.weight_bits + e.activation_bits) + self.neurons * e.activation_bits
        return e.access(moved, self._kib(e.weight_bits, e.activation_bits))

    @property
    def quantised_memory_pj(self) -> float:
        """The same of the network with quantised activations."""
        wide = self.energy.quantised_weight_bits
        moved = sum(row.network_macs * (wide + row.bits) + row.neurons * row.bits for row in self.rows)
        return self.energy.access(moved, self._kib(wide, self.quantised_bits))

    def _kib(self, weight_bits: int, value_bits: int) -> float:
        return (self.weights * weight_bits + self.neurons * value_bits) / 8 / 1024

    @property
    def analog(self) -> tuple[LayerRow, ...]:
        """The operators that no spike can do, computed on the time-means."""
        return tuple(row for row in self.rows if row.kind == "analog")

    @property
    def not_counted(self) -> str:
        """What spikes of uneven levels need beside accumulates, as a sentence; empty without such layers."""
        if not self.uneven:
            return ""
        more = f" and {len(self.uneven) - 3} more" if len(self.uneven) > 3 else ""
        return (
            f"uneven levels in {', '.join(self.uneven[:3])}{more}: a spike carries another amplitude at every step; "
            "the multiplication by it, or a weight for each step, is not counted"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON-able data; operations and energies of one sample."""
        totals = ("neurons", "spikes", "spikes_per_neuron", "synops", "macs", "updates", "energy_pj",
                  "update_energy_pj", "network_macs", "driven", "network_energy_pj", "quantised_energy_pj",
                  "quantised_bits", "memory_pj", "network_memory_pj", "quantised_memory_pj")  # fmt: skip
        data = {**asdict(self), "energy": self.energy.to_json()}
        rows = data.pop("rows")
        named = [f"{row.layer} ({row.operator})" for row in self.analog]
        return {**data, **{name: getattr(self, name) for name in totals}, "analog": named, "rows": rows}

    def _table(self) -> list[Sequence[str]]:
        total = LayerRow("total", "", "", self.synops, self.macs, self.network_macs, self.neurons, self.spikes,
                         self.spikes_per_neuron / self.T, self.updates, self.error)  # fmt: skip
        return [_cells(row) for row in (*self.rows, total)]

    def _repr_html_(self) -> str:
        return html_table("Report", HEAD, self._table(), self._remarks())

    def __str__(self) -> str:
        cells = [HEAD, *self._table()]
        widths = [max(len(line[i]) for line in cells) for i in range(len(HEAD))]
        lines = ["  ".join(_pad(cell, w, i) for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
                 for line in cells]  # fmt: skip
        rule = "  ".join("─" * w for w in widths)
        return "\n".join((lines[0], rule, *lines[1:-1], rule, lines[-1], "", *self._remarks()))

    def _remarks(self) -> list[str]:
        how = "code" if set(self.codes) <= set(CODES) else "neurons"
        codes = f"{how} {', '.join(self.codes)}" if self.codes else "no spiking neurons"
        lines = [f"For one sample, mean over {self.samples:,}. T = {self.T}, {codes}."]
        shares = {"accuracy": self.accuracy, "network's accuracy": self.network_accuracy, "agreement": self.agreement}
        if known := [f"{name} {100 * share:.2f} %" for name, share in shares.items() if share is not None]:
            lines.append(", ".join(known))
        lines.append(
            f"energy {joule(self.energy_pj)}, the network itself {joule(self.network_energy_pj)}; "
            f"{self.energy.ac:g} pJ an accumulate (SynOp), {self.energy.mac:g} pJ a MAC, no memory traffic"
        )
        if self.neurons:
            lines.append(
                f"{100 * self.driven:.1f} % of the network's multiply-accumulates have become accumulates of spikes"
            )
        bits = self.quantised_bits
        if bits:
            lines.append(
                f"the network with activations of {bits} bits and weights of {self.energy.quantised_weight_bits}: "
                f"{joule(self.quantised_energy_pj)}, a MAC of {bits} bits {self.energy.quantised_mac(bits):.3g} pJ"
            )
            lines.append(
                f"memory traffic, beside it: {joule(self.memory_pj)}, the network itself "
                f"{joule(self.network_memory_pj)}, with {bits} bits {joule(self.quantised_memory_pj)}"
            )
        lines.append(f"membrane updates, beside it: {joule(self.update_energy_pj)} at an accumulate each")
        if self.analog:
            named = dict.fromkeys(f"{row.layer} ({row.operator})" for row in self.analog)
            lines.append(f"analog, on the time-means: {', '.join(named)}")
        if self.uneven:
            lines.append(self.not_counted)
        return [*lines, *(SCALES[code] for code in self.codes if code in SCALES)]


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def _cells(row: LayerRow) -> Sequence[str]:
    fires = row.neurons > 0
    return (
        row.layer,
        row.operator + (" (analog)" if row.kind == "analog" else " of means" if row.kind == "mean" else ""),
        f"{row.neurons:,.0f}" if fires else "",
        f"{row.spikes / row.neurons:.3f}" if fires else "",
        f"{row.firing_rate:.3f}" if fires else "",
        short(row.synops), short(row.macs), short(row.network_macs), short(row.updates),
        "" if row.error is None else f"{row.error:.3f}",
    )  # fmt: skip


def short(value: float) -> str:
    """Four digits: 12.34 M.

    >>> short(1234), short(12_340_000.0), short(0), short(0.5)
    ('1.234 k', '12.34 M', '', '0.5')
    """
    if not value:
        return ""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def joule(picojoules: float) -> str:
    """An energy in a unit of its size, three digits.

    >>> joule(24.6e6), joule(678e3), joule(12)
    ('24.6 µJ', '678 nJ', '12 pJ')
    """
    for unit, size in (("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3)):
        if picojoules >= size:
            return f"{picojoules / size:.3g} {unit}"
    return f"{picojoules:.3g} pJ"
