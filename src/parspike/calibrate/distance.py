"""How far a student's outputs are from its teacher's.

Gradient steps go down `apart`, which has the divergence of the softmax: smooth, but without a bound, so that a few
answers that are confident and wrong outweigh all others. States and recipes are chosen by `judged`, where an answer
counts 1 at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.channels import unit_of
from parspike.calibrate.lockstep import pair_of
from parspike.calibrate.recipe import Draft
from parspike.errors import CalibrationError
from parspike.graph import Node, Schedule, leaves, walk

__all__ = ["Distance", "apart", "judged", "relative_error"]


class Distance:
    """Walks teacher and student of a draft through a batch and compares their outputs."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.schedule = Schedule.of(draft.graph.nodes, draft.graph.outputs)

    def outputs(self, env: Mapping[str, Tensor], fire: Any = None) -> tuple[list[Tensor], list[Tensor]]:
        """The floating outputs of both for one batch. fire: what happens at the neurons, by default they fire."""
        pair = pair_of(self.draft, dict(env))
        walk(self.schedule, pair, dict.fromkeys(self.draft.neurons, fire or self._fire))
        teacher, student = (
            [leaf for leaf in leaves(self.draft.graph.collect(stream.env)) if _floating(leaf)] for stream in pair
        )
        if not teacher:
            raise CalibrationError(
                "the network's outputs are whole numbers, which say too little of how near a spiking network is: "
                "return the logits and take their argmax outside, or convert with recipe='max' or 'closed-form'"
            )
        return teacher, student

    @torch.no_grad()
    def to_teacher(self, batches: Iterable[Mapping[str, Tensor]]) -> tuple[float, float]:
        """Mean distance of the outputs (`judged`), and the share of samples whose largest output is the teacher's.

        Of `Batches` that processes share: over those of all.
        """
        parts: list[tuple[Tensor, ...]] = []
        for env in batches:
            teacher, student = self.outputs(env)
            size = student[0].shape[0]
            distance = sum(float(judged(s, t)) for s, t in zip(student, teacher, strict=True)) * size
            agreeing = (teacher[0].flatten(1).argmax(1) == student[0].flatten(1).argmax(1)).sum()
            parts.append((torch.tensor([distance, float(agreeing), size], dtype=torch.float64),))
        if isinstance(batches, Batches):
            parts = batches.gather(parts)
        distance, agreeing, count = sum((part for (part,) in parts), torch.zeros(3, dtype=torch.float64)).tolist()
        return distance / max(1, count), agreeing / max(1, count)

    def _fire(self, node: Node, teacher: tuple[Any, ...], student: tuple[Any, ...]) -> list[Tensor]:
        return [self.draft.teacher(node, teacher), self.draft.neurons[node.name](student[0])]


def relative_error(x: Tensor, target: Tensor) -> Tensor:
    """Squared error as a share of the target's mean square."""
    unit = unit_of(target.detach().abs().max()) if target.numel() else 1.0
    x, target = x / unit, target / unit
    return (x - target).square().mean() / target.square().mean().clamp(min=1e-12)


def apart(student: Tensor, teacher: Tensor) -> Tensor:
    """Relative squared error of an output and, for logits (B, K), the divergence of their softmax."""
    error = relative_error(student, teacher)
    if teacher.dim() == 2 and teacher.shape[1] > 1:
        log_p, log_q = F.log_softmax(teacher, 1), F.log_softmax(student, 1)
        error = error + F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return error


def judged(student: Tensor, teacher: Tensor) -> Tensor:
    """Relative squared error of an output and, for logits (B, K), the total variation of their softmax (0 … 1).

    The latter is the mean share of the answers, drawn with the softmax as their probabilities, that would change.
    """
    error = relative_error(student, teacher)
    if teacher.dim() == 2 and teacher.shape[1] > 1:
        error = error + (student.softmax(1) - teacher.softmax(1)).abs().sum(1).mean() / 2
    return error


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
