"""Layer after layer: re-fit the synapse on the spikes it will get, then choose the neuron for what it will see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from parspike.calibrate.batches import Batches
from parspike.calibrate.daqcfs import initial_neurons
from parspike.calibrate.lockstep import Lockstep
from parspike.calibrate.recipe import Draft, Recipe
from parspike.calibrate.refit import Refit, features, refittable
from parspike.calibrate.thresholds import Samples, fit_neuron
from parspike.errors import CalibrationError
from parspike.graph import Node, Role
from parspike.neurons import ParallelNeuron

__all__ = ["ClosedForm"]

ELEMENTS = 1 << 27
"""Most elements of the rows of one synapse: 512 MiB in float32."""


@dataclass(frozen=True)
class ClosedForm(Recipe):
    """MSE-optimal thresholds, shifts and amplitudes, and synapses re-fitted in closed form.

    refit: re-fit the synapses. shift: search the shift δ too. granularity: one threshold a "channel" or a
    "layer". ridge: λ as a fraction of the mean of the Gram matrix' diagonal (None: chosen on held-out images).
    """

    name: ClassVar[str] = "closed-form"
    refit: bool = True
    shift: bool = True
    granularity: Literal["channel", "layer"] = "channel"
    ridge: float | None = None

    def fit(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches)
        if batches is None:
            if draft.lossless:
                return
            raise CalibrationError("this recipe needs calibration data: pass calibration=")
        lockstep = Lockstep(draft, batches)
        graph = draft.graph
        spiked = False
        for position, node in enumerate(graph.nodes):
            draft.progress(node.layer, position, len(graph.nodes))
            if self.refit and spiked and node.role is Role.SYNAPSE and refittable(graph, node):
                self._refit(draft, lockstep, node, batches)
            neuron = draft.neurons.get(node.name)
            if isinstance(neuron, ParallelNeuron):
                samples = Samples(node, per_batch=max(64, 4096 // max(1, batches.length)))
                for teacher, student in lockstep.visit(node):
                    source = node.refs[0]
                    samples.add(draft.teacher(node, teacher.arguments(node)[0]), student.env[source])
                fit_neuron(neuron, samples, shift=self.shift, layer=self.granularity == "layer")
                spiked = True

    def _refit(self, draft: Draft, lockstep: Lockstep, node: Node, batches: Batches) -> None:
        path = node.args[1].path
        weight = draft.tensors[path]
        wide = features(weight)
        rows = min(max(24 * wide, 40_000), ELEMENTS // wide) // max(1, batches.length) + 1
        refit = Refit(draft.graph, node, weight, rows)
        for number, (teacher, student) in enumerate(lockstep.visit(node)):
            refit.add(teacher, student, number)
        bias = node.args[2] if len(node.args) > 2 else None
        new, shift = refit.solve(weight, None if bias is None else draft.tensors[bias.path], self.ridge)
        draft.tensors[path] = new
        if bias is not None:
            draft.tensors[bias.path] = shift
