"""A network, spiking or not, that writes text: one token after the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parspike.errors import InputError, OptionError, ParspikeError, ParspikeWarning, check_seed
from parspike.language.tokens import Tokenizer

__all__ = ["generate", "pieces"]


def generate(
    network: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    context: int | None = None,
    cache: bool = True,
) -> str:
    """The text with which a network goes on after `prompt`, without it.

        parspike.generate(snn, model.tokenizer, "The capital of France is", tokens=20)

    network: an `SNN` or a network that takes (1, n) token numbers and returns logits (1, n, words). tokens: at most so
    many; the text ends before where the network says that it ends. temperature: 0 takes the likeliest token; else each
    is drawn with the probabilities softmax(logits / temperature). seed: of the drawing; the global random state is left
    as it was. context: tokens at most that the network takes. cache: whether a converted network keeps the keys and
    values of the text so far (`SNN.with_cache`); else, and where it cannot, which is warned of, each step runs the
    whole text again.
    Raises `InputError` for an empty prompt and where the text would become longer than the context.
    """
    if not callable(getattr(tokenizer, "encode", None)):
        raise InputError(f"generate takes a tokenizer second, got {type(tokenizer).__name__}: model.tokenizer is one")
    return "".join(pieces(network, tokenizer, tokenizer.encode(prompt), tokens=tokens, temperature=temperature,
                          seed=seed, context=context, cache=cache))  # fmt: skip


def pieces(
    network: nn.Module, tokenizer: Tokenizer, start: Sequence[int], *, tokens: int = 40, temperature: float = 0.0,
    seed: int = 0, context: int | None = None, cache: bool = True,
) -> Iterator[str]:  # fmt: skip
    """The text of `generate`, piece by piece as it comes. start: the tokens of the prompt."""
    if tokens < 1:
        raise OptionError(f"tokens={tokens}: give a number of at least 1")
    if not temperature >= 0:
        raise OptionError(f"temperature={temperature}: give 0, or a number above it")
    if not len(start):
        raise InputError("the prompt is empty: give at least one word")
    fixed = _length(network)
    most = min((n for n in (context, fixed) if n is not None), default=None)
    if most is not None and len(start) + tokens > most:
        raise InputError(
            f"the prompt has {len(start)} tokens, and with {tokens} more the text would be longer than the {most} that "
            "the network takes: give a shorter prompt, or fewer --tokens"
        )
    return _pieces(_Scores(network, fixed, cache), tokenizer, list(start), tokens, temperature, seed)


class _Scores:
    """The logits of the next token, (words,), of a text that grows token by token."""

    def __init__(self, network: nn.Module, fixed: int | None, cache: bool) -> None:
        self.network, self.fixed, self.seen = network, fixed, 0
        self.first: Any = None
        self.kept: tuple[Tensor, ...] = ()
        if not cache or not hasattr(network, "with_cache"):
            return
        try:
            self.first, self.then = network.with_cache()  # pyright: ignore[reportCallIssue]
        except ParspikeError as error:
            warnings.warn(f"{error}; so each step runs the whole text again", ParspikeWarning, stacklevel=4)

    @torch.no_grad()
    def __call__(self, known: Sequence[int]) -> Tensor:
        if self.first is None or len(known) < 2:
            return _scores(self.network, known, self.fixed)
        if self.seen and self.seen == len(known) - 1:
            out = self.then(torch.tensor([known[-1:]]), *self.kept)
        else:
            out = self.first(torch.tensor([known]))
        self.seen, self.kept = len(known), out["cache"]
        return _logits(out["output"], 1 if out["output"].shape[1] == 1 else len(known))[0, -1]


def _pieces(
    scores: _Scores, tokenizer: Tokenizer, known: list[int], tokens: int, temperature: float, seed: int
) -> Iterator[str]:
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    before, shown = len(known), ""
    # A word may follow from several tokens, so text is decoded together with what stood before it.
    prompt = tokenizer.decode(known)
    for _ in range(tokens):
        number = _next(scores(known), temperature, generator)
        if number == tokenizer.end:
            break
        known.append(number)
        text = tokenizer.decode(known)
        text = text[len(prompt) :] if text.startswith(prompt) else tokenizer.decode(known[before:])
        if not text.endswith("\ufffd") and text.startswith(shown):  # else a character is not complete yet
            yield text[len(shown) :]
            shown = text


@torch.no_grad()
def _scores(network: nn.Module, known: Sequence[int], fixed: int | None) -> Tensor:
    """The logits of the next token, (words,)."""
    # What stands behind a token changes nothing in a causal network, so that a text is filled up at its end where the
    # network takes one length, or at least two tokens.
    long = fixed or max(2, len(known))
    given = torch.tensor([[*known, *[known[-1]] * (long - len(known))]])
    return _logits(network(given), long)[0, len(known) - 1]


def _logits(output: Any, long: int) -> Tensor:
    """The logits (1, tokens, words) of a network for so many tokens."""
    logits = output if isinstance(output, Tensor) else output["logits"]
    if logits.dim() != 3 or logits.shape[1] != long:
        raise InputError(
            f"the network returns {tuple(logits.shape)} for {long} tokens: to write text takes a causal language "
            "model, which scores the next token at each (1, tokens, words)"
        )
    return logits


def _next(scores: Tensor, temperature: float, generator: torch.Generator) -> int:
    scores = scores.double().cpu()
    if not bool(scores.isfinite().all()):
        raise InputError("the network's scores are not finite numbers")
    if temperature == 0:
        return int(scores.argmax())
    return int(torch.multinomial(torch.softmax(scores / temperature, 0), 1, generator=generator))


def _length(network: nn.Module) -> int | None:
    """The number of tokens that a converted network takes where it takes only one."""
    graph = getattr(network, "graph", None)
    shape = graph.inputs[0].shape if graph is not None and len(graph.inputs) == 1 else ()
    return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None
