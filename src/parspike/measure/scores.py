"""How well a spiking network does: the share of right answers, of equal ones, and the error of its outputs.

A share of answers says something only where the outputs are answers. Which they are follows from their types and
shapes, and from the labels:

- whole numbers: each is an answer (`argmax` inside the network);
- with labels that are whole numbers, one for every place of the output without dimension 1, real numbers (B, K, …),
  K > 1, are scores of K classes, of an image or of each pixel;
- with other labels (real numbers, or several for a sample) they are values;
- without labels, (B, K), K > 1, may be either, so the answers are counted beside the error; anything else is values.

Where a network gives several outputs of real numbers, the one named "logits" holds the scores; without one, values.
Values have an error: ‖output − network's output‖ / ‖network's output‖ over all samples, of several the largest. Where
values lie far from 0 and vary little, that error is small for any network; `kept` compares with how much they vary.
"""

from __future__ import annotations

import math
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

    answers: those given; labelled: of these, with a label; void: of those, pixels whose label is no class, such as −100
    or 255 of a border, which no accuracy counts. classes: K of the scores, 0 where they are none. apart,
    size: ‖output − network's‖² and ‖network's‖², of every batch and in it of every output; total: sums over samples.
    near: of every batch the sum of the cosines between vectors, which run along the last dimension; vectors: how many.
    outputs: those of real numbers.
    """

    answers: int = 0
    labelled: int = 0
    void: int = 0
    right: int = 0
    network_right: int = 0
    same: int = 0
    compared: int = 0
    classes: int = 0
    apart: list[list[float]] = field(default_factory=list)
    size: list[list[float]] = field(default_factory=list)
    total: list[Tensor] = field(default_factory=list)
    samples: int = 0
    near: list[float] = field(default_factory=list)
    vectors: int = 0
    outputs: int = 0

    def add(self, output: Any, network: Any = None, labels: Tensor | None = None, *, sure: bool = False) -> None:
        """One batch of outputs, the network's own if there is one to compare with, and labels. sure: see `answers_of`.
        Raises `InputError` where the two answer in unlike shapes, where one of them alone is NaN, and for labels that
        are no class."""
        self.outputs = len(values_of(output))
        if network is not None:
            self._errors(values_of(output), values_of(network))
        said = answers_of(output, labels, sure=sure)
        if said is None:
            if network is not None and _shapes(network) != _shapes(output):
                raise InputError(_unlike(output, network))
            return
        scores = class_scores(output)
        self.classes = scores.shape[1] if scores is not None else 0
        one_each = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
        if labels is not None and one_each and self.classes and len(labels) != len(said):
            raise InputError(f"{len(labels)} labels stand beside {len(said)} samples: give one label each, or none")
        labelled = labels is not None and labels.shape == said.shape and (sure or not labels.is_floating_point())
        if labels is not None and labelled and labels.dim() == 1 and self.classes and labels.numel():
            unknown = next((n for n in (int(labels.min()), int(labels.max())) if not 0 <= n < self.classes), None)
            if unknown is not None:
                raise InputError(
                    f"the data have a class {unknown} but the network knows {self.classes} classes, counted from 0 on: "
                    "the two do not belong together; where the outputs are values and no class scores, give data "
                    "without labels"
                )
        labels = labels.to(said.device) if labels is not None and labelled else said
        self.answers += said.numel()
        if labelled:
            self.labelled, self.right = self.labelled + said.numel(), self.right + int((said == labels).sum())
            if self.classes:
                self.void += int(((labels < 0) | (labels >= self.classes)).sum())
        if network is None:
            return
        wanted = answers_of(network, labels if labelled else None, sure=sure)
        theirs = class_scores(network)
        if wanted is None or (scores is not None and theirs is not None and scores.shape[1] != theirs.shape[1]):
            raise InputError(_unlike(output, network))
        if wanted.shape != said.shape:
            raise InputError(f"against= answers in the shape {tuple(wanted.shape)}, this network {tuple(said.shape)}")
        self.compared, self.same = self.compared + said.numel(), self.same + int((said == wanted).sum())
        self.network_right += int((wanted == labels).sum()) if labelled else 0

    def _errors(self, outputs: list[Tensor], network: list[Tensor]) -> None:
        if [x.shape for x in outputs] != [x.shape for x in network]:
            return
        part = Scores(samples=len(outputs[0]) if outputs else 0, apart=[[]], size=[[]])
        for x, target in zip(outputs, network, strict=True):
            x, target = x.double(), target.double()
            nothing = target.isnan()
            if bool((nothing != x.isnan()).any()):
                one, other = ("this network", "the one of against=")[:: -1 if bool((nothing & ~x.isnan()).any()) else 1]
                raise InputError(f"{one} answers with NaN where {other} does not: check its weights, and the inputs")
            finite = torch.where(target.isfinite(), target, 0.0)
            # Places where both are one infinity (masks), or NaN, are no error.
            part.apart[0].append(float(torch.where((x == target) | nothing, 0.0, x - target).square().sum()))
            part.size[0].append(float(finite.square().sum()))
            part.total.append(finite.sum(0).cpu())
            if x.dim() > 1:
                cosines = torch.nn.functional.cosine_similarity(x, target, dim=-1)
                part.near.append(float(cosines.sum()))
                part.vectors += cosines.numel()
        self._join(part)

    def _join(self, part: Scores) -> None:
        """Add the errors of others."""
        self.apart, self.size = self.apart + part.apart, self.size + part.size
        self.near, self.vectors = self.near + part.near, self.vectors + part.vectors
        # Samples of unlike sizes have no mean sample.
        pairs = zip(self.total, part.total, strict=True) if self.total and part.total else ()
        sums = [a + b if a.shape == b.shape else torch.zeros(0) for a, b in pairs]
        self.total, self.samples = sums or self.total or part.total, self.samples + part.samples

    def _squares(self) -> list[tuple[float, float]]:
        """‖output − network's‖² and ‖network's‖² of every output; summed exactly, so the sum does not depend on which
        process added which batches."""
        sums = ([math.fsum(column) for column in zip(*rows, strict=True)] for rows in (self.apart, self.size))
        return list(zip(*sums, strict=True))

    @classmethod
    def merged(cls, parts: Iterable[Scores]) -> Scores:
        """One score over the batches of several."""
        total = cls()
        for part in parts:
            for name in ("answers", "labelled", "void", "right", "network_right", "same", "compared"):
                setattr(total, name, getattr(total, name) + getattr(part, name))
            total.classes, total.outputs = max(total.classes, part.classes), max(total.outputs, part.outputs)
            total._join(part)
        return total

    @property
    def judged(self) -> int:
        """Answers that an accuracy counts."""
        return self.answers - self.void

    @property
    def accuracy(self) -> float | None:
        """Share of answers that are right; None unless each has a label."""
        return self.right / self.judged if self.judged > 0 and self.answers == self.labelled else None

    @property
    def network_accuracy(self) -> float | None:
        """The same of the network compared with."""
        known = self.judged > 0 and self.answers == self.labelled == self.compared
        return self.network_right / self.judged if known else None

    @property
    def agreement(self) -> float | None:
        """Share of answers that are the network's."""
        return self.same / self.answers if 0 < self.answers == self.compared else None

    @property
    def error(self) -> float | None:
        """‖output − network's‖ / ‖network's‖, of several outputs the largest; None without one to compare with."""
        errors = [(apart / max(size, 1e-300)) ** 0.5 for apart, size in self._squares()]
        return max(errors, default=None)

    @property
    def cosine(self) -> float | None:
        """Mean cosine between the outputs' vectors, along their last dimension, and the network's: 1 where they point
        the same way. None without a network to compare with."""
        return math.fsum(self.near) / self.vectors if self.vectors else None

    @property
    def kept(self) -> float | None:
        """R², 1 − ‖output − network's‖² / ‖network's − its mean sample‖², of several outputs the smallest: 1 where the
        values are kept, 0 where the mean alone would do as well. Where the network's output is the same for all samples
        (or they are of unlike sizes), its own square is what is compared with."""
        found = []
        for (apart, size), total in zip(self._squares(), self.total, strict=True):
            varies = size - float(total.square().sum()) / max(1, self.samples)
            found.append(1 - apart / max(varies if varies > 1e-9 * size else size, 1e-300))
        return min(found, default=None)


def _shapes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in values_of(output)]


def _unlike(output: Any, network: Any) -> str:
    one, other = (", ".join(map(str, _shapes(x))) or "whole numbers alone" for x in (output, network))
    return (
        f"against= gives {other}, and this network {one}: compare it with the network that it was made of, or with one "
        "of the same outputs (of an ONNX file, net.onnx:NAME)"
    )
