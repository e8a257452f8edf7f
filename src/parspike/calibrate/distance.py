"""How far a student's outputs are from its teacher's.

Gradient steps minimise `apart`, which contains the divergence of the softmax. That is smooth but unbounded, so a few
confident wrong answers would outweigh all others. States and recipes are therefore compared by `judged`, where an
answer counts 1 at most.

A network's outputs are class scores, of which the largest counts, or values. Scores (B, K) and K values look alike, and
no recipe sees a label, so their distance has both parts: the relative error, which values need, and the softmax, which
says how many answers would change. For values the second part says little; in `judged` it is bounded, and falls to 0 as
they come near. Every other output has the error alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.channels import unit_of
from parspike.calibrate.lockstep import pair_of
from parspike.calibrate.recipe import Draft
from parspike.calibrate.student import Seen
from parspike.errors import CalibrationError
from parspike.graph import Schedule, walk

__all__ = ["Distance", "apart", "class_scores", "judged", "named", "relative_error", "values_of"]


class Distance:
    """Walks teacher and student of a draft through a batch and compares their outputs."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.schedule = Schedule.of(draft.graph.nodes, draft.graph.outputs)
        self.course = draft.student.course(draft)
        self.none = dict.fromkeys(draft.graph.constant)  # an output that depends on no input says nothing

    def outputs(
        self, env: Mapping[str, Tensor], *, seen: Seen | None = None, soft: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs of both that are real numbers, the student's as means over time. seen, soft: see `Course`."""
        pair, graph = pair_of(self.draft, dict(env)), self.draft.graph
        walk(self.schedule, pair, self.course.hooks(pair, self.draft.teacher, seen=seen, soft=soft))
        means = {name: self.course.mean(name, pair[1].env[name]) for name in graph.outputs}
        sizes = pair[0].sizes
        teacher, student = (values_of(graph.collect({**env, **self.none}, sizes)) for env in (pair[0].env, means))
        if not teacher:
            raise CalibrationError(
                "the network's outputs are whole numbers, which say too little of how near a spiking network is: "
                "return the logits and take their argmax outside, or convert with recipe='max' or 'closed-form'"
            )
        return teacher, student

    @torch.no_grad()
    def to_teacher(self, batches: Iterable[Mapping[str, Tensor]]) -> tuple[Tensor, float | None]:
        """The distance of the outputs (`judged`) for every sample, (N,), and the share of samples whose largest class
        score is the teacher's; None for the share where the outputs are no class scores. One distance of 0 without any.

        Of `Batches` that processes share: over those of all.
        """
        parts: list[tuple[Tensor, ...]] = []
        for env in batches:
            teacher, student = self.outputs(env)
            agreeing = (
                float((teacher[0].argmax(1) == student[0].argmax(1)).sum())
                if len(teacher) == 1 and may_be_scores(teacher[0])
                else float("nan")
            )
            each = [judged(s, t).double() for s, t in zip(student, teacher, strict=True)]
            # An output of another size, such as one number for a batch, counts alike for all samples.
            rows = [d if len(d) == len(each[0]) else d.mean().expand(len(each[0])) for d in each]
            parts.append((torch.stack(rows).sum(0).cpu(), torch.tensor([agreeing], dtype=torch.float64)))
        if isinstance(batches, Batches):
            parts = batches.gather(parts)
        distances = torch.cat([part for part, _ in parts]) if parts else torch.zeros(1, dtype=torch.float64)
        agreeing = float(sum(part for _, part in parts))
        return distances, None if agreeing != agreeing else agreeing / max(1, len(distances))


def relative_error(x: Tensor, target: Tensor) -> Tensor:
    """Squared error as a share of the target's mean square. Places where both are one infinity are no error."""
    return _errors(x, target).mean()


def _errors(x: Tensor, target: Tensor) -> Tensor:
    """The same of every sample, (B,): their mean is that of all. One for an output without dimensions."""
    finite = torch.isfinite(target)
    if not finite.all():
        x, target = (torch.where(finite | (x != target), value, 0.0) for value in (x, target))
    unit = unit_of(target.detach().abs().max()) if target.numel() else 1.0
    x, target = x / unit, target / unit
    errors = (x - target).square()
    errors = errors.flatten(1).mean(1) if errors.dim() > 1 else errors.reshape(-1)
    return errors / target.square().mean().clamp(min=1e-12)


def apart(student: Tensor, teacher: Tensor) -> Tensor:
    """Relative squared error of an output and, for logits (B, K), the divergence of their softmax."""
    error = relative_error(student, teacher)
    if may_be_scores(teacher):
        log_p, log_q = F.log_softmax(teacher, 1), F.log_softmax(student, 1)
        gone = torch.isneginf(log_p)  # an answer that a mask forbids has no share, where −∞ − (−∞) would be NaN
        log_p, log_q = torch.where(gone, -1e4, log_p), torch.where(gone, -1e4, log_q)
        error = error + F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return error


def judged(student: Tensor, teacher: Tensor) -> Tensor:
    """For every sample, (B,), the squared error of an output as a share of the mean square and, for logits (B, K), the
    total variation of their softmax (0 … 1).

    The latter is the share of the answers, drawn with the softmax as their probabilities, that would change.
    """
    error = _errors(student, teacher)
    if may_be_scores(teacher):
        error = error + (student.softmax(1) - teacher.softmax(1)).abs().sum(1) / 2
    return error


def values_of(output: Any) -> list[Tensor]:
    """The distinct outputs that are real numbers (complex ones as pairs of them), in order."""
    found = {id(leaf): leaf for _, leaf in named(output) if leaf.is_floating_point() or leaf.is_complex()}
    return [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in found.values()]


def class_scores(output: Any) -> Tensor | None:
    """The output (B, K, …), K > 1, that may hold scores of K classes: the only one of real numbers, or the only one
    that is named so, as in {"logits": …, "states": …}. None where there is none, or where several may be meant."""
    found = {id(leaf): leaf for _, leaf in named(output) if leaf.is_floating_point() and leaf.dim()}
    called = {id(leaf): leaf for name, leaf in named(output) if name.endswith("logits") and id(leaf) in found}
    only = list((called if len(called) == 1 else found).values())
    return only[0] if len(only) == 1 and only[0].dim() > 1 and only[0].shape[1] > 1 else None


def may_be_scores(value: Tensor) -> bool:
    """Whether an output has the shape (B, K), K > 1."""
    return value.dim() == 2 and value.shape[1] > 1


def named(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of an output, each with the last name on the way to it."""
    if isinstance(output, Tensor):
        yield name, output
        return
    if is_dataclass(output):
        output = {field.name: getattr(output, field.name) for field in fields(output)}
    if isinstance(output, Mapping):
        pairs = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, (tuple, list)):
        pairs = list(zip(getattr(output, "_fields", [name] * len(output)), output, strict=True))
    else:
        pairs = []
    for key, value in pairs:
        yield from named(value, key)
