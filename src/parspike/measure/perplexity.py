"""How well a language model knows the next token: perplexity, alone and beside the network's.

    perplexity = exp(mean over tokens of −log p(token | the tokens before it in its sequence))

p is the softmax of the logits at the token before, so a sequence of n tokens has n − 1 terms. 1 would be a model that
is always sure and right, the number of words one that knows nothing. (Jelinek and others, Perplexity, a measure of the
difficulty of speech recognition tasks, 1977.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parspike.calibrate.batches import number_of, readable_again
from parspike.calibrate.distance import named
from parspike.calibrate.recipe import Progress
from parspike.errors import InputError, check_function

__all__ = ["Perplexity", "perplexity"]


@dataclass
class Perplexity:
    """Sums over sequences; `add` a batch, `merged` several. Printed, a short table.

    tokens: those whose probability was asked, one fewer than there are in each sequence. lost, network_lost: −log p of
    each batch, natural logarithm. same: how often both hold the same token for the likeliest next one. compared: tokens
    of which the network was asked too.
    """

    tokens: int = 0
    compared: int = 0
    same: int = 0
    lost: list[float] = field(default_factory=list)
    network_lost: list[float] = field(default_factory=list)

    def add(self, output: Any, sequences: Tensor, network: Any = None) -> None:
        """A batch: logits (B, n, words), token numbers (B, n), and the network's own logits where it is compared with.
        Raises `InputError` where they do not belong together."""
        wanted = _whole(sequences)[:, 1:]
        logits = _logits(output, sequences)
        best = self._add(logits, wanted, self.lost)
        self.tokens += wanted.numel()
        if network is not None:
            own = self._add(_logits(network, sequences), wanted, self.network_lost)
            self.compared, self.same = self.compared + wanted.numel(), self.same + int((best == own).sum())

    @staticmethod
    def _add(logits: Tensor, wanted: Tensor, lost: list[float]) -> Tensor:
        """The likeliest tokens; one sequence at a time, since logits of many words are large."""
        best, total = [], 0.0
        for row, right in zip(logits, wanted.to(logits.device), strict=True):
            total += float(F.cross_entropy(row[:-1].float(), right, reduction="none").sum(dtype=torch.float64))
            best.append(row[:-1].argmax(1))
        lost.append(total)
        return torch.stack(best)

    @classmethod
    def merged(cls, parts: Iterable[Perplexity]) -> Perplexity:
        """That of the batches of several."""
        total = cls()
        for part in parts:
            for name in ("tokens", "compared", "same", "lost", "network_lost"):
                setattr(total, name, getattr(total, name) + getattr(part, name))
        return total

    @property
    def perplexity(self) -> float | None:
        """Of the first network given to `add`; None before a token was added."""
        return _exp(self.lost, self.tokens)

    @property
    def network_perplexity(self) -> float | None:
        """Of the network that it is compared with; None without one."""
        return _exp(self.network_lost, self.compared)

    @property
    def ratio(self) -> float | None:
        """`perplexity` / `network_perplexity`; None without a network to compare with."""
        if not self.compared:
            return None
        gap = math.fsum(self.lost) / self.tokens - math.fsum(self.network_lost) / self.compared
        return math.exp(gap) if gap < 700 else math.inf

    @property
    def agreement(self) -> float | None:
        """Share of tokens at which both hold the same token for the likeliest next one."""
        return self.same / self.compared if self.compared else None

    def to_json(self) -> dict[str, Any]:
        """All figures by name; None where there is no network to compare with."""
        return {
            "tokens": self.tokens,
            "perplexity": self.perplexity,
            "network_perplexity": self.network_perplexity,
            "perplexity_ratio": self.ratio,
            "next_token_agreement": self.agreement,
        }

    def rows(self) -> dict[str, str]:
        """The figures as text, by what they are called."""
        shown = {"tokens": f"{self.tokens:,}", "perplexity": _shown(self.perplexity)}
        if self.compared:
            shown |= {
                "network's perplexity": _shown(self.network_perplexity),
                "ratio": _shown(self.ratio),
                "same next token": f"{100 * (self.agreement or 0):.2f} %",
            }
        return shown

    def __str__(self) -> str:
        return "\n".join(f"{name:<20}  {value}" for name, value in self.rows().items())


@torch.no_grad()
def perplexity(
    snn: nn.Module,
    sequences: Any,
    *,
    against: nn.Module | None = None,
    inputs: Callable[[Any], Tensor] | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """The perplexity of a converted language model on text, beside the network's own.

        x = model.tokenizer.sequences("test/", tokens=256)
        print(parspike.perplexity(snn, x, against=model))

    snn: an `SNN`, or any network that returns logits (B, n, words). sequences: token numbers (N, n), n ≥ 2, or an
    iterable of batches (B, n) of them. against: the network that it came from. inputs: a function from an item to its
    token numbers. progress: called as progress(what, done, total). The logits of one batch are in memory at
    a time: of one tensor, those of 4 sequences.
    Raises `InputError` for no sequence, sequences of fewer than two tokens, and outputs of another shape.
    """
    check_function(progress, "progress")
    check_function(inputs, "inputs")
    source = readable_again(sequences, 4, name="sequences")
    total, found = number_of(source), Perplexity()
    for number, item in enumerate(source):
        x = inputs(item) if inputs is not None else item[0] if isinstance(item, (tuple, list)) else item
        _whole(x)
        found.add(snn(x), x, None if against is None else against(x))
        if progress:
            progress("", number + 1, total)
    if not found.tokens:
        raise InputError("there are no sequences: give at least one of two tokens")
    return found


def _whole(sequences: Any) -> Tensor:
    good = isinstance(sequences, Tensor) and sequences.dim() == 2 and not sequences.is_floating_point()
    if not good or sequences.shape[1] < 2:
        shape = tuple(sequences.shape) if isinstance(sequences, Tensor) else type(sequences).__name__
        raise InputError(f"perplexity takes sequences of token numbers, (B, n) int64 with n of at least 2, got {shape}")
    return sequences.long()


def _logits(output: Any, sequences: Tensor) -> Tensor:
    tensors = dict(named(output))
    logits = tensors.get("logits", next(iter(tensors.values()), None))
    shape = None if logits is None else tuple(logits.shape)
    if logits is None or shape is None or len(shape) != 3 or shape[:2] != tuple(sequences.shape):
        raise InputError(
            f"for sequences of shape {tuple(sequences.shape)} the network returns {shape or 'nothing'}: perplexity "
            "needs the logits of the next token at each, (B, n, words), as a causal language model gives them"
        )
    if int(sequences.max()) >= shape[2]:
        raise InputError(
            f"the text has the token {int(sequences.max())} but the network knows {shape[2]} words: it was read with "
            "the tokenizer of another network"
        )
    return logits


def _exp(lost: list[float], tokens: int) -> float | None:
    if not tokens:
        return None
    mean = math.fsum(lost) / tokens
    return math.exp(mean) if mean < 700 else math.inf


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
