"""Teacher and student side by side, layer after layer over the whole calibration set.

A recipe that fits one layer after the other needs, at each layer, the values of all calibration images in the original
network (teacher) and in the spiking network as converted so far (student). `Lockstep.visit(node)` brings both to that
node, batch by batch. What later nodes still need is held between visits, so that each node runs once, for as many
batches as `memory` bytes have room for; for the others every visit starts again from the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.recipe import Draft
from parspike.calibrate.refit import refittable
from parspike.calibrate.student import Teacher
from parspike.graph import Node, Schedule, Stream, walk
from parspike.graph.ir import elements

__all__ = ["Lockstep", "pair_of"]

MEMORY = 6 << 30


class Lockstep:
    """Walks teacher and student through the calibration set together.

    draft: the conversion in the making; its tensors and neurons may be changed between visits, but only at or
    after the last node visited. teacher: what the teacher's activations give, by default what the network's own do.
    memory: bytes that held values may take in one process.
    """

    def __init__(self, draft: Draft, batches: Batches, *, teacher: Teacher | None = None, memory: int = MEMORY) -> None:
        self.draft, self.batches, self.teacher = draft, batches, teacher or draft.teacher
        self.index = {node.name: i for i, node in enumerate(draft.graph.nodes)}
        self.steps = Schedule.of(draft.graph.nodes, draft.graph.outputs).steps
        self.position = 0
        self.held: list[list[Stream]] = []
        self.course = draft.student.course(draft)
        self.room = memory // (4 * (1 + self.course.steps) * max(1, _largest_frontier(draft, self.index)))  # samples
        self.all_held = False

    def visit(self, node: Node) -> Iterator[tuple[Stream, Stream]]:
        """Teacher's and student's stream of every batch, with all nodes before `node` done."""
        target = self.index[node.name]
        if not self.batches.told:  # how many rows are taken of a batch depends on their number
            for _ in self._from_the_images(Schedule(()), 0):
                pass
        ahead, before = Schedule(self.steps[self.position : target]), len(self.held)
        for pair in self.held[:before]:
            walk(ahead, pair, self.course.hooks(pair, self.teacher))
            yield pair[0], pair[1]
        if not self.all_held:
            yield from self._from_the_images(Schedule(self.steps[:target]), before)
        self.position = target

    def _from_the_images(self, schedule: Schedule, before: int) -> Iterator[tuple[Stream, Stream]]:
        """The batches behind those that were held `before`; while there is room, they are held from here on."""
        self.all_held = True
        for number, env in enumerate(self.batches):
            if number < before:
                continue
            pair = pair_of(self.draft, env)
            walk(schedule, pair, self.course.hooks(pair, self.teacher))
            size = len(next(iter(env.values())))
            if self.all_held and size <= self.room:
                self.held.append(pair)
                self.room -= size
            else:
                self.all_held = False
            yield pair[0], pair[1]


def pair_of(draft: Draft, env: dict[str, Tensor]) -> list[Stream]:
    """The teacher's and the student's stream for one batch of inputs."""
    sizes = draft.graph.sizes(env)
    return [Stream(dict(env), draft.graph.tensors, sizes), Stream(dict(env), draft.tensors, sizes)]


def _largest_frontier(draft: Draft, index: Mapping[str, int]) -> int:
    """Elements of the values alive at once for one sample, at most, up to the last synapse or neuron that a recipe may
    visit. What is behind it is never held: a language model's output has a value for every word of its dictionary."""
    example = draft.graph.example
    visited = [n.name for n in draft.graph.nodes if n.name in draft.activations or refittable(draft.graph, n)]
    last = max((index[name] for name in visited), default=0)
    alive, largest = {i.name: elements(i.shape, example) for i in draft.graph.inputs}, 0
    for node, dead in Schedule.of(draft.graph.nodes, draft.graph.outputs).steps[:last]:
        alive[node.name] = elements(node.shape, example)
        largest = max(largest, sum(alive.values()))
        for name in dead:
            alive.pop(name, None)
    return largest
