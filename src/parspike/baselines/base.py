"""What the published methods share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from parspike.calibrate import Batches, Draft, Recipe
from parspike.calibrate.channels import above_zero, check_finite, node_shape
from parspike.calibrate.lockstep import Lockstep, pair_of
from parspike.calibrate.recipe import check_number
from parspike.calibrate.student import Course
from parspike.errors import CalibrationError, OptionError
from parspike.graph import Clip, Hook, Node, Quantised, Schedule, Stream, walk
from parspike.graph.ops import ENCODE
from parspike.neurons import IF, Dynamics, Kind

__all__ = [
    "Baseline",
    "Own",
    "batches_again",
    "bound_of",
    "bounds",
    "check_number",
    "check_whole",
    "forward",
    "largest",
    "layers",
    "mean_output",
    "of_each_batch",
    "on_activations",
    "over_set",
    "placed",
    "places",
    "set_threshold",
    "sought",
]


@dataclass(frozen=True, kw_only=True)
class Own(IF):
    """Neurons that a published method brings. method: the name of its recipe. Spikes of the network's inputs
    (`input="rate"`) are made by IF neurons."""

    method: str

    @property
    def text(self) -> str:
        return self.method

    @property
    def words(self) -> str:
        return f"neuron of '{self.method}'"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.method}


class Baseline(Recipe):
    """Base of the published conversion methods. cite: authors, title, place and year.

    They know ReLU, clipped ReLU and QCFS, so `fit` refuses other activations by name before `fill` is called.
    """

    cite: ClassVar[str]
    makes: ClassVar[Kind | None] = IF(v_init="zero")
    needs_qcfs: ClassVar[bool] = False
    """Whether the method starts from a network trained with QCFS activations, and takes its thresholds from it."""

    def fit(self, draft: Draft, batches: Batches | None) -> None:
        """Check that the method fits the network, then `fill` the draft."""
        wanted = "QCFS" if self.needs_qcfs else "ReLU, clipped ReLU or QCFS"
        odd = [
            draft.graph.by_name[name].layer
            for name, a in draft.activations.items()
            if draft.graph.by_name[name].target != ENCODE
            and not (isinstance(a, Quantised) or (not self.needs_qcfs and isinstance(a, Clip) and a.low == 0))
        ]
        if odd:
            raise OptionError(
                f"recipe '{self.name}' knows the activation {wanted} alone, and {len(odd)} layers have another, "
                f"'{odd[0]}' first: "
                + (
                    "train with parspike.train.with_qcfs, or take another recipe"
                    if self.needs_qcfs
                    else f"layers={{'{odd[0]}': parspike.Keep()}} (--keep {odd[0]}) computes it without spikes, and "
                    "where no recipe is named all are known"
                )
            )
        if batches is None and not all(isinstance(a, Quantised) for a in draft.activations.values()):
            self.data(batches)
        self.fill(draft, batches)
        if not places(draft):  # no neurons of the method, which would look at steps, or be waited for
            draft.simulation = None

    @abstractmethod
    def fill(self, draft: Draft, batches: Batches | None) -> None:
        """Fill `draft.neurons`, and `draft.simulation` where not all of T steps are read. batches: None only where all
        activations are QCFS and the caller gave none."""

    def data(self, batches: Batches | None) -> Batches:
        """The batches. Raises `CalibrationError` where the caller gave none."""
        if batches is None:
            raise CalibrationError(f"recipe '{self.name}' needs data: pass calibration= (images, no labels)")
        return batches


def check_whole(value: object, name: str, least: int = 1) -> None:
    """Raise `OptionError` unless a value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}")


def set_threshold(draft: Draft, name: str, theta: Tensor) -> None:
    """New neurons at a node with the thresholds θ (C,), or one of them for all channels.

    A threshold that no activation of the calibration data reaches above 0 becomes the layer's largest, see
    `calibrate.channels.above_zero`; none is above the activation's own bound (ReLU6), which neurons that fire at every
    step would exceed.
    """
    node = draft.graph.by_name[name]
    check_finite(node, theta)
    theta = above_zero(theta.reshape(-1).expand(node.channels), draft.T)
    if (bound := bound_of(draft, name)) is not None:
        theta = torch.minimum(theta, bound.to(theta))
    draft.neurons[name] = draft.student.neuron(draft, node, node_shape(theta, node), 0.0)


def bounds(draft: Draft) -> dict[str, Tensor]:
    """The largest output of each activation that has one (QCFS, ReLU6), by node name."""
    found = {name: bound_of(draft, name) for name in places(draft)}
    return {name: bound for name, bound in found.items() if bound is not None}


def bound_of(draft: Draft, name: str) -> Tensor | None:
    """That of one activation, None where it has none."""
    activation = draft.activations[name]
    if isinstance(activation, Quantised):
        return draft.graph.tensors[activation.v_threshold]
    if not isinstance(activation, Clip) or not math.isfinite(activation.high):
        return None
    like = next((t for t in draft.graph.tensors.values() if t.is_floating_point()), torch.empty(()))
    return like.new_tensor(activation.high)


def sought(draft: Draft) -> list[str]:
    """The nodes whose thresholds a method finds, in order: not those of QCFS, nor where an input becomes spikes."""
    return [name for name in places(draft) if isinstance(draft.activations[name], Clip)]


def placed(draft: Draft) -> dict[str, Any]:
    """The neurons that a method may change, by node name, in order, of the kind that it `makes`: not those that make
    spikes of an input."""
    return {name: draft.neurons[name] for name in places(draft)}


def places(draft: Draft) -> list[str]:
    """The nodes whose neurons a method makes, in order: all activations. An input's spikes are IF neurons'."""
    nodes = draft.graph.nodes
    return [node.name for node in nodes if node.name in draft.activations and node.target != ENCODE]


def layers(draft: Draft, what: str) -> Iterator[tuple[Node, Any]]:
    """The layers of neurons in running order, with their progress told. what: the work, in words."""
    own = placed(draft)
    for done, (name, neuron) in enumerate(own.items()):
        draft.progress(what, done, len(own))
        yield draft.graph.by_name[name], neuron
    draft.progress(what, len(own), len(own))


def current(course: Course, node: Node, student: Stream) -> Tensor:
    """The input current of the neurons at a node in the student, step by step (T, B, …), or (1, B, …) where it is the
    same at every step."""
    return course.over_time(node.refs[0], student.env[node.refs[0]])


def mean_output(neuron: Dynamics, z: Tensor, T: int) -> Tensor:
    """What neurons send on average over T steps for the input current z (T or 1, B, …): (B, …)."""
    return neuron.advance(None, z.expand(T, *z.shape[1:]))[1].mean(0)


def over_set(
    lockstep: Lockstep, node: Node, measure: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    """measure(a, z) of every batch of all processes, in order.

    a (B, …): what the teacher's activation at a node gives. z (T or 1, B, …): the input current that the student's
    neurons there get.
    """
    draft = lockstep.draft
    parts = [
        measure(draft.teacher(node, teacher.arguments(node)[0]), current(lockstep.course, node, student))
        for teacher, student in lockstep.visit(node)
    ]
    return lockstep.batches.gather(parts)


def on_activations(draft: Draft, at: Callable[[Node, Tensor], Tensor]) -> dict[str, Hook]:
    """For `Draft.watch`. at(node, a): what an activation gives instead of a."""

    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        return [at(node, draft.teacher(node, args))]

    return dict.fromkeys(places(draft), fire)


def of_each_batch(
    draft: Draft, batches: Batches, names: list[str], measure: Callable[[Node, Tensor, int], Tensor], what: str
) -> list[tuple[Tensor, ...]]:
    """measure(node, a, number of the batch) of these activations, for every batch of all processes in order. what: the
    work, in words."""
    parts: list[tuple[Tensor, ...]] = []
    for place, env in enumerate(batches):
        number = place * batches.together.size + batches.together.rank
        found: dict[str, Tensor] = {}

        def see(node: Node, a: Tensor, found: dict[str, Tensor] = found, number: int = number) -> Tensor:
            if node.name in names:
                found[node.name] = measure(node, a, number)
            return a

        draft.graph.run_on(env, on_activations(draft, see))
        parts.append(tuple(found[name] for name in names))
        draft.progress(what, place + 1, batches.rounds)
    return batches.gather(parts)


def forward(draft: Draft, env: dict[str, Tensor], before: Callable[[Node, Tensor, Tensor], None]) -> None:
    """One batch through teacher and student. before(node, a, z): called before neurons fire, which it may change; a the
    teacher's activation (B, …), z the input current (T or 1, B, …)."""
    course, pair = draft.student.course(draft), pair_of(draft, env)
    hooks = course.hooks(pair, draft.teacher)

    def fire(node: Node, of_teacher: tuple[Any, ...], of_student: tuple[Any, ...]) -> Any:
        before(node, draft.teacher(node, of_teacher), current(course, node, pair[1]))
        return hooks[node.name](node, of_teacher, of_student)

    schedule = Schedule.of(draft.graph.nodes, draft.graph.outputs)
    walk(schedule, pair, {**hooks, **dict.fromkeys(placed(draft), fire)})


def batches_again(draft: Draft, batches: Batches, number: int, what: str) -> Iterator[dict[str, Tensor]]:
    """So many batches, in every process the same, since each step depends on the one before; the set begins anew where
    it ends. what: the work, in words."""
    done = 0
    while done < number:
        for env in batches.everywhere():
            draft.progress(what, done, number)
            yield env
            done += 1
            if done == number:
                break
    draft.progress(what, number, number)
    batches.samples()  # the record of a conversion counts the whole set, of which a few batches may have been enough


def largest(parts: list[tuple[Tensor, ...]]) -> Tensor:
    """The largest of what `over_set` measured."""
    return torch.stack([part[0] for part in parts]).amax(0)
