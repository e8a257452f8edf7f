"""Layer after layer: re-fit the synapse on the spikes it will get, then choose the neuron for what it will see."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.channels import node_shape
from parspike.calibrate.daqcfs import Granularity, check_granularity, initial_neurons
from parspike.calibrate.firing import fit_firing
from parspike.calibrate.lockstep import Lockstep
from parspike.calibrate.recipe import Draft, Recipe, check_number, check_switch
from parspike.calibrate.refit import Refit, features, refittable
from parspike.calibrate.staircase import counted, free_steps, staircase_between, staircase_of
from parspike.calibrate.student import ByCount, OverTime
from parspike.calibrate.thresholds import Samples, Weigh, check_weigh, fit_encoder, fit_neuron
from parspike.errors import CalibrationError, ParspikeWarning
from parspike.graph import Graph, Node, Role
from parspike.graph.ir import elements
from parspike.graph.ops import ENCODE, HELD, WEIGHED_BY_SAMPLE, Clip
from parspike.neurons import IntegrateFire, ParallelNeuron, SignedNeuron, SortedTrain, SpikingLayer, Staircase
from parspike.neurons.staircase import MOST_IN_ALL

__all__ = ["ClosedForm", "freed"]

FEW, OWN, EVEN, SEEN = 16, 32, 64, 32
"""A staircase gets thresholds of its own for every channel if it has at most OWN levels and SEEN currents for each. In
the weighted code, whose outputs are evenly spaced, no cut is searched for, and EVEN levels cost no more: a network of
SiLUs at 5 steps had two thirds of the error that channels with one staircase gave it. With OWN = 16 the error of
transformers rose from 16 steps to 24: at 32 a Whisper-like one of GELUs had six times that of OWN = 32, a gated MLP 1.7
times. FEW, in place of OWN, where a layer would have more than SOUGHT thresholds, which take 20 s of one core to search
for, and for the steps of neurons of their own (`freed`). With fewer than IMAGES samples channels share one: on 2 and 8
images thresholds of their own had 1.4 and 1.7 times the error of one staircase, on others.

With fewer than SEEN currents for each level in all, such as the variances of a few tokens, a staircase is the
activation's own at these currents, not fitted to what was wanted for each: such steps followed single currents, and
many stood beside those of a class token, equal in all images. Vision transformers of 6 tokens at 6 weighted steps erred
by 0.157, 0.089 and 0.089 on other images than the 4, 16 and 32 of the calibration; now by 0.120, 0.079 and 0.085."""
SOUGHT, IMAGES = 1 << 15, 48
LEAST = 3
"""Rows that a synapse is re-fitted on at least: of two, a quarter held out is none, so no change is taken, and what
neurons before it leave to its bias would be lost: an error of 86 %."""
TOO_FEW = 16
"""Images below which re-fitted synapses lose on others: a small network of linear layers changed 89, 22, 7 and 1 % of
its answers at T = 16 for 2, 4, 8 and 16 images, with synapses as they are 4, 2, 1 and 1 %."""
A_FEATURE, ROWS = 16, 20_000
"""Rows to re-fit a synapse on: so many for each of its inputs, and at least ROWS. With half as many, ResNet-20
agreed with its network less, by one per cent of other images; with twice as many no better (docs/results.md)."""
ELEMENTS, MOST = 1 << 24, 1 << 27
"""Elements of the rows of one synapse: ROWS are not taken where that needs more than ELEMENTS (64 MiB in float32), as
it does for a convolution of many groups, and never more than MOST. A synapse whose outputs for these rows are more than
MOST is left as it is: the head of a language model, with one for every word, would take gigabytes, and with few enough
rows for the memory it was fitted to their errors."""

CURRENTS, FEW_CURRENTS = 1 << 14, 1 << 12
"""Samples of a channel that its neuron is chosen by, at most and at least: as many as come to ELEMENTS / 4 in all
channels. Neurons with a state get FEW_CURRENTS, each with all its steps. From 16,384 instead of 4,096 currents
ResNet-20 came nearer to its network at T = 2 (docs/results.md)."""
ENCODED = 1 << 15
"""Samples of a channel that an encoder's range is chosen by. On SmolLM2, from 8,192 instead of 2,048 tokens, the error
behind the inputs of its down-projections was a half to a quarter on other text: with fewer a range does not reach the
values that few words have."""


@dataclass(frozen=True)
class ClosedForm(Recipe):
    """MSE-optimal thresholds, shifts and amplitudes, and synapses re-fitted in closed form.

    refit: re-fit the synapses. shift: search the shift δ too. granularity: one threshold a "channel" or a
    "layer". ridge: λ as a fraction of the mean of the Gram matrix' diagonal (None: chosen on held-out images).
    weigh: what an error counts for: "own", its mean square in this layer's output; "next", its variance, wherever a
    re-fitted bias or a shift behind takes up its mean (`calibrate.thresholds` has the equations). free: every step has
    a threshold and an amplitude of its own, as a staircase has, for ReLU too: more accurate at few steps, but the
    amplitudes can no longer be one factor in the weights behind. The weighted code, and more than 16 levels, keep
    equal steps. all_rows: a synapse is fitted to the rows by which its λ was chosen too: nearer where there are many
    images for the width of the layers; with few, later layers then choose too small a λ, since the layers before them
    have seen their held-out rows (docs/results.md).
    """

    name: ClassVar[str] = "closed-form"
    refit: bool = True
    shift: bool = True
    granularity: Granularity = "channel"
    ridge: float | None = None
    weigh: Weigh = "next"
    free: bool = False
    all_rows: bool = False

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        check_weigh(self.weigh)
        for name in ("refit", "shift", "free", "all_rows"):
            check_switch(getattr(self, name), name)
        if self.ridge is not None:
            check_number(self.ridge, "ridge", 0, sys.float_info.max, low_too=True)

    def fit(self, draft: Draft, batches: Batches | None) -> None:
        initial_neurons(draft, batches, None)
        if batches is None:
            if draft.lossless:
                return
            raise CalibrationError("this recipe needs calibration data: pass calibration=")
        lockstep = Lockstep(draft, batches)
        graph = draft.graph
        spiked = False
        for position, node in enumerate(graph.nodes):
            draft.progress(node.layer, position, len(graph.nodes))
            if spiked and node.role is Role.SYNAPSE and self._refits(graph, node, batches):
                self._refit(draft, lockstep, node, batches)
            if node.name in draft.neurons:
                samples = Samples(node, batches, _rows_of(draft, node))
                source = node.refs[0]
                for teacher, student in lockstep.visit(node):
                    z = lockstep.course.over_time(source, student.env[source])
                    samples.add(draft.teacher(node, teacher.arguments(node)[0]), z)
                draft.neurons[node.name] = self._fitted(draft, node, samples)
                spiked = True
        # Here the number is known, and the data are read no more than they have to be.
        if self.refit and not draft.lossless and batches.samples() < TOO_FEW and batches.together.rank == 0:
            warnings.warn(
                f"{batches.samples()} calibration images are too few for recipe '{self.name}', which re-fits synapses "
                "to what it has seen of them: give 64 or more, or refit=False, which leaves synapses as they are",
                ParspikeWarning,
                stacklevel=3,
            )

    def _fitted(self, draft: Draft, node: Node, samples: Samples) -> SpikingLayer:
        neuron = draft.neurons[node.name]
        weigh = "next" if self.weigh == "next" and self._taken_up(draft.graph, node, samples.batches) else "own"
        layer = self.granularity == "layer"
        if isinstance(neuron, IntegrateFire) and isinstance(draft.student, OverTime):
            fit_firing(neuron, draft.student.kind, samples, draft.T, shift=self.shift, layer=layer, weigh=weigh)
            return neuron
        activation = draft.activations[node.name]
        end = activation.high if isinstance(activation, Clip) else math.inf
        if isinstance(neuron, SortedTrain):
            fit_neuron(neuron.neuron, samples, shift=self.shift, layer=layer, end=end)
            return neuron
        if isinstance(neuron, SignedNeuron) or (isinstance(neuron, ParallelNeuron) and node.target == ENCODE):
            fit_encoder(neuron, samples, layer=layer)
            return neuron
        if isinstance(neuron, ParallelNeuron):
            fit_neuron(neuron, samples, shift=self.shift, layer=layer, weigh=weigh, end=end)
            free = self.free and not layer and freed(neuron.levels, neuron.code)
            return self._freed(neuron, samples) if free else neuron
        a, z = samples.means()
        if not isinstance(neuron, Staircase):
            raise CalibrationError(f"the closed form fits no neurons of the kind '{neuron.kind}'")
        levels = neuron.levels
        if z.numel() < SEEN * levels:
            return staircase_of(draft, node, z.flatten().sort().values)
        own = self.granularity == "channel" and 1 < len(z) <= MOST_IN_ALL // (4 * levels + 4)
        finest = EVEN if neuron.code == "weighted" else OWN if len(z) * levels <= SOUGHT else FEW
        # Of a few images all places are much alike, however many there are.
        own = own and levels <= finest and z.shape[1] >= SEEN * levels and samples.batches.samples() >= IMAGES
        shape = node_shape(z[:, 0], node).shape if own else None
        return staircase_between(z, a, neuron.T, neuron.code, shape=shape, **counted(draft.activations[node.name]))

    def _freed(self, neuron: ParallelNeuron, samples: Samples) -> SpikingLayer:
        """Neurons with free steps that start from equal ones."""
        a, z = samples.means()
        levels, node = neuron.levels, samples.node
        if z.shape[1] < SEEN * levels or len(z) > MOST_IN_ALL // (4 * levels + 4):
            return neuron
        steps = torch.arange(levels, dtype=z.dtype, device=z.device) + 0.5
        theta, delta, rest = (
            value.reshape(-1, 1).to(z) if isinstance(value, Tensor) else value
            for value in (neuron.v_threshold, neuron.shift, neuron.rest())
        )
        cuts = (theta * (steps / levels) - delta + rest).expand(len(z), -1)
        thresholds, outputs = free_steps(a, z, cuts)
        shape = node_shape(z[:, 0], node).shape
        thresholds, outputs, current, wanted = (table.T.reshape(-1, *shape) for table in (thresholds, outputs, z, a))
        made = Staircase(neuron.T, thresholds, outputs, code=neuron.code)
        made.error, made.uniform_error = (float((each(current) - wanted).square().mean()) for each in (made, neuron))
        return made

    def _refits(self, graph: Graph, node: Node, batches: Batches) -> bool:
        """Whether the synapse at a node is re-fitted, once a neuron stands before it."""
        if not self.refit or not refittable(graph, node):
            return False
        weight = graph.tensors[node.args[1].path]
        outputs = batches.samples() * elements(node.shape, graph.example)
        if outputs < LEAST * weight.shape[0]:
            return False
        return min(_most_rows(features(weight), 1) * weight.shape[0], outputs) <= MOST

    def _taken_up(self, graph: Graph, node: Node, batches: Batches) -> bool:
        """Whether every path from the node's output leads to a re-fitted bias or to neurons with a shift, which can
        absorb a constant error of the output."""
        readers, outputs, ahead = graph.consumers(), set(graph.outputs), [node]
        while ahead:
            here = ahead.pop()
            if here.name in outputs:
                return False
            for reader in readers[here.name]:
                biased = len(reader.args) > 2 and reader.args[2] is not None
                if (reader.role is Role.NEURON and self.shift) or (biased and self._refits(graph, reader, batches)):
                    continue
                if reader.role not in (Role.SYNAPSE, Role.ORDER) or reader.reason in (WEIGHED_BY_SAMPLE, HELD):
                    return False
                ahead.append(reader)
        return True

    def _refit(self, draft: Draft, lockstep: Lockstep, node: Node, batches: Batches) -> None:
        path = node.args[1].path
        weight = draft.tensors[path]
        refit = Refit(draft.graph, node, weight, batches=len(batches.numbers()))
        refit.rows = _most_rows(features(weight), refit.groups) // max(1, batches.length) + 1
        for (teacher, student), number in zip(lockstep.visit(node), batches.numbers(), strict=True):
            refit.add(teacher, lockstep.course.means(student, node, *refit.others), number)
        refit.share(batches)
        bias = node.args[2] if len(node.args) > 2 else None
        old = None if bias is None else draft.tensors[bias.path]
        new, shift = refit.solve(weight, old, self.ridge, batches.together, all_rows=self.all_rows)
        draft.tensors[path] = new
        if bias is not None:
            draft.tensors[bias.path] = shift


def _rows_of(draft: Draft, node: Node) -> int:
    """Samples of a channel that its neuron is chosen by."""
    if not isinstance(draft.student, ByCount):
        return FEW_CURRENTS
    if node.target == ENCODE:
        return max(FEW_CURRENTS, min(ENCODED, MOST // (2 * node.channels)))
    return max(FEW_CURRENTS, min(CURRENTS, ELEMENTS // (4 * node.channels)))


def freed(levels: int, code: str) -> bool:
    """Whether `free` gives such neurons steps of their own."""
    return code != "weighted" and levels <= FEW


def _most_rows(wide: int, groups: int) -> int:
    """Rows that the re-fit of a synapse of so many groups, each with `wide` inputs, takes at most."""
    each = wide * groups
    return min(max(A_FEATURE * wide, min(ROWS, ELEMENTS // each)), max(1, MOST // each))
