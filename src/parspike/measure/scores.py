"""How well a spiking network does: the share of right answers, of equal ones, and the error of its outputs.

A share of answers says something only where the outputs are answers. What they are is told by what is there:

- whole numbers: each is an answer (`argmax` inside the network);
- with labels that are whole numbers, one for every place of the output without dimension 1, real numbers (B, K, …),
  K > 1, are scores of K classes, of an image or of each pixel;
- with other labels (real numbers, or several for a sample) they are values;
- without labels, (B, K), K > 1, may be either, so the answers are counted beside the error; anything else is values.

Where a network gives several outputs of real numbers, the one named "logits" holds the scores; without one, values.
Values have an error: ‖output − network's output‖ / ‖network's output‖ over all samples, of several the largest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parspike.calibrate.distance import class_scores, named, values_of
from parspike.errors import InputError

__all__ = ["Scores", "answers_of"]


def answers_of(output: Any, labels: Tensor | None = None, *, sure: bool = False) -> Tensor | None:
    """The answers in an output, whole numbers; None where it holds values. sure: the user says that it holds answers,
    which are then the largest along dimension 1 of the first output that has one."""
    tensors = [leaf for _, leaf in named(output)]
    if not values_of(output):
        return tensors[0] if tensors else None
    scores = class_scores(output)
    if sure:
        long = (leaf for leaf in values_of(output) if leaf.dim() > 1 and leaf.shape[1] > 1)
        scores = next(long, None) if scores is None else scores
        return None if scores is None else scores.argmax(1)
    if scores is None:
        return None
    answers = scores.argmax(1)
    if labels is None or labels.is_floating_point() or labels.shape != answers.shape:
        several = labels is not None and (labels.is_floating_point() or labels.shape == scores.shape)
        return answers if scores.dim() == 2 and not several else None
    return answers


@dataclass
class Scores:
    """Adds up batches; a share is None where it says nothing. Several of them make one with `merged`.

    answers: those given; labelled: of these, with a label. classes: K of the scores, 0 where they are none.
    """

    answers: int = 0
    labelled: int = 0
    right: int = 0
    network_right: int = 0
    same: int = 0
    compared: int = 0
    classes: int = 0
    apart: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)

    def add(self, output: Any, network: Any = None, labels: Tensor | None = None, *, sure: bool = False) -> None:
        """One batch of outputs, the network's own if there is one to compare with, and labels. sure: see `answers_of`.
        Raises `InputError` where the two answer in unlike shapes."""
        if network is not None:
            self._errors(values_of(output), values_of(network))
        said = answers_of(output, labels, sure=sure)
        if said is None:
            return
        scores = class_scores(output)
        self.classes = scores.shape[1] if scores is not None else 0
        labelled = labels is not None and labels.shape == said.shape and (sure or not labels.is_floating_point())
        labels = labels.to(said.device) if labels is not None and labelled else said
        self.answers += said.numel()
        if labelled:
            self.labelled, self.right = self.labelled + said.numel(), self.right + int((said == labels).sum())
        wanted = None if network is None else answers_of(network, labels if labelled else None, sure=sure)
        if wanted is None:
            return
        if wanted.shape != said.shape:
            raise InputError(f"against= answers in the shape {tuple(wanted.shape)}, this network {tuple(said.shape)}")
        self.compared, self.same = self.compared + said.numel(), self.same + int((said == wanted).sum())
        self.network_right += int((wanted == labels).sum()) if labelled else 0

    def _errors(self, outputs: list[Tensor], network: list[Tensor]) -> None:
        if [x.shape for x in outputs] != [x.shape for x in network]:
            return
        self.apart = self.apart or [0.0] * len(outputs)
        self.size = self.size or [0.0] * len(outputs)
        for i, (x, target) in enumerate(zip(outputs, network, strict=True)):
            x, target = x.double(), target.double()
            # Places where both are one infinity (masks) are no error.
            self.apart[i] += float(torch.where(x == target, 0.0, x - target).square().sum())
            self.size[i] += float(torch.where(target.isfinite(), target, 0.0).square().sum())

    @classmethod
    def merged(cls, parts: Iterable[Scores]) -> Scores:
        """That of the batches of all."""
        total = cls()
        for part in parts:
            for name in ("answers", "labelled", "right", "network_right", "same", "compared"):
                setattr(total, name, getattr(total, name) + getattr(part, name))
            total.classes = max(total.classes, part.classes)
            total.apart = [a + b for a, b in zip(total.apart or [0.0] * len(part.apart), part.apart, strict=True)]
            total.size = [a + b for a, b in zip(total.size or [0.0] * len(part.size), part.size, strict=True)]
        return total

    @property
    def accuracy(self) -> float | None:
        """Share of answers that are right; None unless each has a label."""
        return self.right / self.answers if 0 < self.answers == self.labelled else None

    @property
    def network_accuracy(self) -> float | None:
        """The same of the network compared with."""
        known = 0 < self.answers == self.labelled == self.compared
        return self.network_right / self.answers if known else None

    @property
    def agreement(self) -> float | None:
        """Share of answers that are the network's."""
        return self.same / self.answers if 0 < self.answers == self.compared else None

    @property
    def error(self) -> float | None:
        """‖output − network's‖ / ‖network's‖, of several outputs the largest; None without one to compare with."""
        errors = [(a / max(b, 1e-300)) ** 0.5 for a, b in zip(self.apart, self.size, strict=True)]
        return max(errors, default=None)
