"""A cache of keys and values: the next token alone gives what the whole text gives (`graph.cache`)."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from language_models import TEXT, saved
from torch import Tensor, nn

import parspike
from parspike.errors import InputError, ParspikeWarning, UnsupportedError

WORDS, D = 9, 8


def converted(model: nn.Module, x: Tensor, **how: Any) -> parspike.SNN:
    recipe = parspike.ClosedForm(refit=False)
    return parspike.convert(model, x.split(4), T=4, code="weighted", recipe=recipe, **how)


class Mixed(nn.Module):
    """Attention over tokens, twice. kind: "causal"; "both" directions; "mean" adds the mean of all tokens."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.table = kind, nn.Embedding(WORDS, D)
        self.qkv, self.up, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Linear(D, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        for _ in range(2):
            q, k, v = self.qkv(F.layer_norm(x, (D,))).chunk(3, -1)
            x = x + F.scaled_dot_product_attention(q, k, v, is_causal=self.kind != "both")
        x = x + x.mean(1, keepdim=True) if self.kind == "mean" else x
        return self.out(F.relu(self.up(x)))


@cache
def mixed(kind: str, **how: Any) -> parspike.SNN:
    torch.manual_seed(0)
    return converted(Mixed(kind).eval(), torch.randint(0, WORDS, (16, 7)), **{"encode": "all", **how})


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[parspike.SNN, Tensor, Any]]:
    """Converted networks, tokens and a tokenizer. The Llama has two heads of keys for four of queries, and rotary
    positions; it comes from its file alone."""
    root, made = tmp_path_factory.mktemp("nets"), {}
    model = parspike.language(saved(root / "llama", "LlamaForCausalLM"))
    x = model.tokenizer.sequences([TEXT], 14)[:8]
    file = converted(model, x, encode="all").save(root / "llama.parspike")
    made["llama"] = parspike.load(file), x, model.tokenizer
    tokens = torch.randint(0, WORDS, (4, 14), generator=torch.Generator().manual_seed(1))
    made |= {"fused": (mixed("causal", encode="none"), tokens, None),
             "lookup": (mixed("causal", analog="lookup"), tokens, None)}  # fmt: skip
    return made


@pytest.mark.parametrize("name", ["llama", "fused", "lookup"])
def test_one_token_after_the_other_gives_the_whole_text(name: str, nets: dict[str, Any]) -> None:
    snn, x, _ = nets[name]
    first, then = snn.with_cache()
    whole = snn.run(x, record=True)
    out = first(x[:, :5])
    torch.testing.assert_close(out["output"], whole.logits[:, :5], rtol=1e-4, atol=1e-4)
    counts = []
    for k in range(5, 14):
        run = then.run(x[:, k : k + 1], *out["cache"], record=True)
        out = run.logits
        torch.testing.assert_close(out["output"][:, 0], whole.logits[:, k], rtol=1e-4, atol=1e-4)
        counts.append(run.counts)
    assert all(value.shape[0] == len(x) for value in out["cache"])
    for layer, value in whole.counts.items():  # every neuron counts what it counts in the whole text
        dim = next(d for d, n in enumerate(value.shape) if n == 14)
        for step, now in zip(range(5, 14), counts, strict=True):
            wanted, found = value.select(dim, step), now[layer].select(dim, 0)
            assert (found - wanted[..., : found.shape[-1]]).abs().max() <= 1
    # The tensors and neurons are the network's own.
    assert all(then.neurons()[key] is neuron for key, neuron in snn.neurons().items())


def test_other_engines_keep_it_too(nets: dict[str, Any]) -> None:
    snn, x, _ = nets["llama"]
    first, then = snn.with_cache()
    out = first(x[:, :7])
    one, other = (then.run(x[:, 7:8], *out["cache"], engine=engine).logits for engine in ("count", "parallel"))
    torch.testing.assert_close(one["output"], other["output"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "how", "why"),
    [("both", {}, "depends on the tokens behind it"), ("mean", {}, r"layer 'mean' \(mean\) takes tokens together"),
     ("causal", {"free_sizes": False}, "takes texts of one length alone")],
)  # fmt: skip
def test_where_no_cache_can_be_kept(kind: str, how: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        mixed(kind, **how).with_cache()


class _Letters:
    """A tokenizer of numbers."""

    end = None

    def encode(self, text: str) -> list[int]:
        return [int(c) for c in text]

    def decode(self, tokens: Any) -> str:
        return "".join(map(str, tokens))


def test_generating_falls_back_to_the_whole_text_and_says_so_once() -> None:
    network, words = mixed("mean"), _Letters()
    how: dict[str, Any] = {"tokens": 6}
    with pytest.warns(ParspikeWarning, match="each step runs the whole text again") as said:
        text = parspike.generate(network, words, "1234", **how)  # pyright: ignore[reportArgumentType]
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = parspike.generate(network, words, "1234", cache=False, **how)  # pyright: ignore[reportArgumentType]
    assert text == wanted


def test_generating_with_a_cache_writes_the_same(nets: dict[str, Any]) -> None:
    snn, _, tokenizer = nets["llama"]
    seen: list[tuple[int, ...]] = []
    own = type(snn).named_inputs

    def watched(self: Any, args: Any, kwargs: Any) -> Any:
        seen.append(tuple(args[0].shape))
        return own(self, args, kwargs)

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        texts = [parspike.generate(snn, tokenizer, prompt, tokens=12, temperature=0.8, seed=3, cache=cache)
                 for prompt in ("The dog finds", "T") for cache in (True, False)]  # fmt: skip
        patch.setattr(type(snn), "named_inputs", watched)
        parspike.generate(snn, tokenizer, "The dog finds", tokens=12)
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert texts[0]
    assert seen[-1] == (1, 1)
    assert sum(shape == (1, 1) for shape in seen) >= 8
    with pytest.raises(InputError, match="longer than the 20"):
        parspike.generate(snn, tokenizer, "The dog", tokens=30, context=20)
