"""What a recipe calibrates for, as a value: neurons by their count, or neurons with a state over T time-steps.

A recipe compares the network (teacher) with the spiking network in the making (student), both walking through the same
batches. `Draft.student` says how the student's values stand in its stream, and how its neurons are chosen:

- `ByCount`: parallel neurons. A value is its mean over time, (B, …), for only the mean input of a neuron matters.
- `OverTime`: IF and LIF neurons. A value that changes over time is (T·B, …), with all its steps, since a neuron's
  spikes depend on when its input arrives. The network is fitted to the mean of what its neurons really send in T steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from parspike.engines import Block, changing
from parspike.engines.folded import place_of, unfold
from parspike.graph import Clip, Hook, Node, Stream, map_tree
from parspike.graph.ops import ENCODE, call
from parspike.neurons import (
    IF,
    Dynamics,
    ParallelNeuron,
    Serial,
    SignedNeuron,
    SortedTrain,
    SpikingLayer,
    Staircase,
    da_qcfs,
)

if TYPE_CHECKING:
    from parspike.calibrate.recipe import Draft

__all__ = ["ByCount", "Course", "Input", "OverTime", "Seen", "Student", "Teacher"]

Input = Literal["current", "rate", "sorted"]
"""What the first synapses of a network of neurons with a state are fed with: the real values at every step, or spikes,
by IF neurons or all at the end."""
Teacher = Callable[[Node, tuple[Any, ...]], Tensor]
"""What the teacher's activation at a node gives for the node's arguments."""
Seen = Callable[[Node, Tensor, Tensor], None]
"""seen(node, a, b): the teacher's activation a and the student's mean output b, both (B, …)."""


class Student(ABC):
    """Base of the kinds of students."""

    @abstractmethod
    def neuron(self, draft: Draft, node: Node, v_threshold: Tensor, offset: float | Tensor) -> SpikingLayer:
        """Neurons at a node of a draft, with a threshold θ, before anything is fitted."""

    @abstractmethod
    def course(self, draft: Draft) -> Course:
        """How a draft's teacher and student walk together."""


class Course(ABC):
    """How the teacher and the student of one draft walk together.

    steps: time-steps that a value of the student's stream holds, 1 where it is a mean.
    """

    def __init__(self, draft: Draft, steps: int) -> None:
        self.draft, self.steps = draft, steps

    @abstractmethod
    def hooks(
        self, pair: list[Stream], teacher: Teacher, *, seen: Seen | None = None, soft: bool = False
    ) -> Mapping[str, Hook]:
        """What `walk` does with the pair of streams. seen: called at every layer of neurons. soft: neurons pass a
        gradient on."""

    @abstractmethod
    def mean(self, name: str, value: Any) -> Any:
        """A value of the student's stream, by the name of its node, as its mean over time (B, …)."""

    @abstractmethod
    def over_time(self, name: str, value: Tensor) -> Tensor:
        """The same step by step, (T, B, …), or (1, B, …) where it does not change over time."""

    def means(self, stream: Stream, node: Node, *more: str) -> Stream:
        """A stream with the mean values of what a node reads, and of other nodes."""
        env = {name: self.mean(name, stream.env[name]) for name in (*node.refs, *more)}
        return Stream(env, stream.tensors, stream.sizes)


@dataclass(frozen=True)
class ByCount(Student):
    """Parallel neurons, of the draft's code."""

    def neuron(self, draft: Draft, node: Node, v_threshold: Tensor, offset: float | Tensor) -> ParallelNeuron:
        return ParallelNeuron(draft.steps_of(node.name), v_threshold, offset=offset, code=draft.code)

    def course(self, draft: Draft) -> Course:
        return _Counts(draft, 1)


class _Counts(Course):
    def hooks(
        self, pair: list[Stream], teacher: Teacher, *, seen: Seen | None = None, soft: bool = False
    ) -> Mapping[str, Hook]:
        def fire(node: Node, of_teacher: tuple[Any, ...], of_student: tuple[Any, ...]) -> list[Tensor]:
            a, neuron = teacher(node, of_teacher), self.draft.neurons[node.name]
            b = self._soft(node, neuron, of_student) if soft else neuron(of_student[0])
            if seen is not None:
                seen(node, a, b)
            return [a, b]

        return dict.fromkeys(self.draft.neurons, fire)

    def _soft(self, node: Node, neuron: SpikingLayer, args: tuple[Any, ...]) -> Tensor:
        """The neuron's output with the gradient of (9); of a staircase, with that of its activation, 0 where a clipped
        line lies beyond the staircase's last step."""
        z = args[0]
        if isinstance(neuron, Staircase):
            through = self.draft.teacher(node, args)
            if isinstance(self.draft.activations[node.name], Clip):
                step = (neuron.outputs[-1] - neuron.outputs[0]).detach() / neuron.levels
                low, high = neuron.thresholds[0] - step, neuron.thresholds[-1] + step
                through = torch.where((z >= low) & (z < high), z, z.detach())
            return neuron.soft(z) + through - through.detach()
        if isinstance(neuron, SignedNeuron):
            return neuron.soft(z)
        if not isinstance(neuron, ParallelNeuron):
            raise TypeError(f"no gradient is known for neurons of the kind '{neuron.kind}'")
        phi = neuron.v_post - neuron.v_threshold
        above = neuron.above(z)
        return da_qcfs(above, neuron.v_threshold, neuron.shift, phi, neuron.levels) + neuron.offset

    def mean(self, name: str, value: Any) -> Any:
        return value

    def over_time(self, name: str, value: Tensor) -> Tensor:
        return value[None]

    def means(self, stream: Stream, node: Node, *more: str) -> Stream:
        return stream


@dataclass(frozen=True)
class OverTime(Student):
    """Neurons with a state. kind: which. input: what the first synapses are fed with."""

    kind: Serial
    input: Input = "current"

    def neuron(self, draft: Draft, node: Node, v_threshold: Tensor, offset: float | Tensor) -> Dynamics:
        if node.target != ENCODE:
            neuron = self.kind.neuron(v_threshold, offset)
            neuron.v_threshold.data *= self.kind.highest  # what a spike is worth stays
            return neuron
        if self.input == "sorted":
            return SortedTrain(ParallelNeuron(draft.T, v_threshold, offset=offset))
        return IF().neuron(v_threshold, offset)

    def course(self, draft: Draft) -> Course:
        return _Steps(draft, draft.T)


class _Steps(Course):
    def __init__(self, draft: Draft, steps: int) -> None:
        super().__init__(draft, steps)
        self.moving = changing(draft.graph, draft.activations)
        self.whole: set[str] = set()

    def hooks(
        self, pair: list[Stream], teacher: Teacher, *, seen: Seen | None = None, soft: bool = False
    ) -> Mapping[str, Hook]:
        network, student = pair
        neurons = self.draft.neurons

        def run(node: Node, of_teacher: tuple[Any, ...], _: tuple[Any, ...]) -> list[Any]:
            spiking = node.name in neurons
            a = teacher(node, of_teacher) if spiking else call(node.target, *network.arguments(node))
            # All steps are done at once, so nothing is kept for a later block.
            block = Block(self.draft.graph, neurons, self.moving, self.steps, self.whole)
            b = block(node, student)
            if seen is not None and spiking:
                seen(node, a, self.mean(node.name, b))
            return [a, b]

        return dict.fromkeys(self.moving, run)

    def mean(self, name: str, value: Any) -> Any:
        if name not in self.moving:
            return value
        place = place_of(self.draft.graph, name)
        if place is None:
            return value
        return map_tree(lambda leaf: self._mean(leaf, place), value)

    def _mean(self, leaf: Any, place: int) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() <= place:
            return leaf
        over = unfold(leaf, self.steps, place)
        return over.mean(0) if leaf.is_floating_point() or leaf.is_complex() else over[-1]

    def over_time(self, name: str, value: Tensor) -> Tensor:
        if name not in self.moving:
            return value[None]
        return unfold(value, self.steps, place_of(self.draft.graph, name) or 0)
