"""Whole numbers beyond ReLU: gates, products of two values, norms, softmax and GELU of networks that spikes drive."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike import IF, SNN
from parspike.errors import UnsupportedError
from parspike.lower import integers, prove
from parspike.lower.neurons import curve
from parspike.neurons import ParallelNeuron, SignedNeuron, WholeCurve, WholeStaircase


class Squeeze(nn.Module):
    """Squeeze and excitation (Hu et al., 2018): a gate for every channel, which multiplies it."""

    def __init__(self, act: Callable[[Tensor], Tensor], gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.act, self.gate = nn.Conv2d(3, 8, 3), act, gate
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.back, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        g = self.gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(F.relu(self.back(x * g)).mean((2, 3)))


class Transformer(nn.Module):
    """A block of a vision transformer, as timm writes it; or of one that sees the tokens before alone."""

    mask: Callable[[Tensor], Tensor] | None = None
    """A mask by hand, of scores (B, heads, 5, 5)."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.embed, self.one, self.two = nn.Linear(6, 12), nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 4)
        unlike = 2.0 ** torch.tensor(
            [-3, 2, 0, 3, -2, 1] * 2
        )  # features of queries are large where those of keys are small
        with torch.no_grad():
            for part, factor in zip(self.qkv.weight.view(3, 12, 12), (3 * unlike, 3 / unlike, unlike), strict=True):
                part.mul_(factor[:, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.one(x)).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        if self.mask is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            mixed = self.mask(q @ k.transpose(2, 3) / 6**0.5).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.two(x))))
        return self.head(x.mean(1))


class Groups(nn.Module):
    """A class token's kind of constant, a norm over groups of channels, a pool of places by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8)
        nn.init.normal_(self.norm.weight, 1.0, 0.5)
        nn.init.normal_(self.norm.bias)
        self.place = nn.Parameter(5 * torch.randn(1, 1, 8))
        self.score, self.head = nn.Linear(8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x)).relu().flatten(2).transpose(1, 2)
        y = torch.cat([self.place.expand(len(x), -1, -1), y], 1)
        return self.head((torch.softmax(3 * self.score(y), 1) * y).sum(1))


class Experts(nn.Module):
    """A mixture of linear layers, by a softmax over the outputs of another one, whose weights differ in size."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts, self.head = nn.Linear(6, 4), nn.Linear(6, 20), nn.Linear(5, 3)
        with torch.no_grad():
            self.gate.weight.mul_(torch.tensor([0.3, 4.0, 1.0, 8.0])[:, None])

    def forward(self, x: Tensor) -> Tensor:
        y = (torch.softmax(self.gate(x), 1)[..., None] * self.experts(x).unflatten(1, (4, 5))).sum(1)
        return self.head(y.relu())


class Linearly(nn.Module):
    """Causal linear attention with a column of ones beside its values, behind queries and keys of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(6, 24), nn.Linear(9, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(F.normalize(q, dim=-1)) + 1, F.elu(k) + 1
        both = torch.einsum("bnd,bne->bnde", k, F.pad(v, (0, 1), value=1.5)).cumsum(1)
        total = torch.einsum("bnd,bnd->bn", q, k.cumsum(1))
        y = torch.einsum("bnd,bnde,bn->bne", q, both, 1 / (total + 1e-6))
        return self.head(self.out(y).relu().mean(1))


LOOKUP: dict[str, Any] = {"encode": "all", "analog": "lookup"}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "gate": (lambda: Squeeze(F.relu, F.hardsigmoid), (3, 7, 7), {}),
    "hardswish": (lambda: Squeeze(F.hardswish, F.sigmoid), (3, 7, 7), {}),
    "gate, encoders": (lambda: Squeeze(F.relu, F.sigmoid), (3, 7, 7), LOOKUP),
    "transformer": (Transformer, (5, 6), LOOKUP),
    "causal": (lambda: Transformer(causal=True), (5, 6), LOOKUP),
    "groups": (Groups, (3, 6, 6), LOOKUP),
    "experts": (Experts, (6,), LOOKUP),
    "linear attention": (Linearly, (5, 6), LOOKUP),
}


def network(name: str) -> tuple[nn.Module, SNN, Tensor]:
    made, shape, options = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = made().eval(), torch.randn(32, *shape)
    recipe = parspike.ClosedForm(refit=False)
    return model, parspike.convert(model, x, T=4, code="weighted", recipe=recipe, **options), x


@pytest.mark.parametrize("name", NETWORKS)
def test_products_norms_and_curves_stay_whole_in_every_engine(name: str, tmp_path: Path) -> None:
    """Would catch an operand whose grid varies along what is added up, a value that is cut to fewer bits without its
    grid, a norm of channels on unlike grids, thresholds of a curve that are not the neuron's."""
    model, snn, x = network(name)
    lowered = integers(snn, x, weights=12, inputs=12)
    wanted = lowered.run(x, record=True)
    with torch.no_grad():
        other = torch.randn(64, *x.shape[1:], generator=torch.Generator().manual_seed(1))
        right = model(other)
        before, after = (float((made(other) - right).norm() / right.norm()) for made in (snn, lowered))
    assert after < 1.3 * before + 0.005
    assert not any(node.reason.startswith("a normalisation") for node in lowered.graph.nodes)
    for engine in ("count", "parallel", "serial", "integer"):
        run = lowered.run(x, engine=cast(Any, engine), record=True)
        assert torch.equal(run.logits, wanted.logits), engine
        assert all(torch.equal(run.counts[layer], count) for layer, count in wanted.counts.items()), engine
    if name == "causal":  # what a mask hides has no weight
        hidden = torch.ones(5, 5).triu(1).bool()
        weights = [count for layer, count in wanted.counts.items() if "softmax" in layer]
        assert len(weights) == 2
        assert not any(bool(count[..., hidden].any()) for count in weights)
    proof = prove(lowered, x[:3])
    assert len(proof.neurons) == len(lowered.neurons())
    if NETWORKS[name][2]:
        assert not any(synapse.reads == "the input" for synapse in proof.synapses)
    path = lowered.save(tmp_path / "net.parspike")
    assert b'"version":"7"' in path.read_bytes()[:200]
    assert torch.equal(parspike.load(path)(x), wanted.logits)


HIDDEN = torch.ones(5, 5, dtype=torch.bool).triu(1)
LAST = torch.finfo(torch.float32).min
MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "filled with -inf": lambda scores: scores.masked_fill(HIDDEN, -torch.inf),
    "filled with the smallest number": lambda scores: scores.masked_fill(HIDDEN.float() == 1, LAST),
    "chosen": lambda scores: torch.where(HIDDEN, torch.tensor(LAST), scores),
    "chosen, else -inf": lambda scores: torch.where(~HIDDEN, scores, -torch.inf),
    "added": lambda scores: scores + torch.zeros(5, 5).masked_fill(HIDDEN, -torch.inf),
    "added, a large number": lambda scores: scores + -1e9 * HIDDEN,
    "scores far below 0": lambda scores: (scores - 300.0).masked_fill(HIDDEN, -torch.inf),
}


def masked(mask: Callable[[Tensor], Tensor]) -> tuple[nn.Module, SNN, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Transformer().eval(), torch.randn(32, 5, 6)
    model.mask = mask
    recipe = parspike.ClosedForm(refit=False)
    return model, parspike.convert(model, x, T=4, code="weighted", recipe=recipe, **LOOKUP), x


def stays_near(model: nn.Module, snn: SNN, x: Tensor) -> SNN:
    """The network in whole numbers, which errs hardly more than the converted one."""
    lowered = integers(snn, x, weights=12, inputs=12)
    with torch.no_grad():
        right = model(x)
    before, after = (float((made(x) - right).norm() / right.norm()) for made in (snn, lowered))
    assert before < 0.15  # else nothing is said of what follows
    assert after < 1.3 * before + 0.005
    return lowered


@pytest.mark.parametrize("name", MASKS)
def test_scores_that_a_mask_hides_have_no_weight_however_it_is_written(name: str) -> None:
    """Would catch a hidden score that is not below all others, and one that takes all bits away from the others."""
    model, snn, x = masked(MASKS[name])
    lowered = stays_near(model, snn, x)
    later = x.clone()
    later[:, 4] = -x[:, 4]
    mixed = [
        lowered.run(given, engine="integer", record=True).counts["matmul@2.divided@spikes"] for given in (x, later)
    ]
    assert torch.equal(mixed[0][:, :, :4], mixed[1][:, :, :4])
    assert not torch.equal(mixed[0][:, :, 4], mixed[1][:, :, 4])


def as_written(score: str, mixed: str, moved: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (moved(x) for x in (q, k, v))
        return moved(torch.einsum(mixed, (torch.einsum(score, q, k) / 6**0.5).softmax(-1), v))

    return attend


def in_rows(q: Tensor, k: Tensor, v: Tensor, *, masked: bool = False) -> Tensor:
    """Heads beside the batch, in one dimension, as nn.MultiheadAttention has them where it gives its weights too."""
    q, k, v = (x.flatten(0, 1) for x in (q / 6**0.5, k, v))
    hidden = torch.zeros(5, 5).masked_fill(HIDDEN, -torch.inf)
    scores = torch.baddbmm(hidden, q, k.mT) if masked else torch.bmm(q, k.mT)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, 2))


ATTENTION: dict[str, Callable[..., Tensor]] = {
    "heads first": as_written("bhqd,bhkd->bhqk", "bhqk,bhkd->bhqd", lambda x: x),
    "heads behind": as_written("bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", lambda x: x.transpose(1, 2)),
    "without an arrow": as_written("...qd,...kd", "...kq,...kd->...qd", lambda x: x),
    "keys first": as_written("...qd,...kd->...kq", "...kq,...kd->...qd", lambda x: x),
    "two dimensions summed": as_written("bhcqd,bhckd->bhqk", "bhqk,bhckd->bhcqd",
                                        lambda x: x.unflatten(-1, (3, 2)).movedim(3, 2) if x.dim() == 4
                                        else x.movedim(2, 3).flatten(3)),
    "in rows": in_rows,
    "in rows, a mask added": functools.partial(in_rows, masked=True),
}  # fmt: skip


class Attends(nn.Module):
    """Attention whose queries, keys and values lie on unlike grids."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend, self.qkv, self.head = attend, nn.Linear(6, 36), nn.Linear(12, 4)
        with torch.no_grad():
            self.qkv.weight.mul_(2.0 ** torch.linspace(-3, 3, 36)[torch.randperm(36)][:, None])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        return self.head(self.attend(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", ATTENTION)
def test_products_of_two_values_go_into_whole_numbers_however_they_are_written(name: str, tmp_path: Path) -> None:
    """Would catch an einsum that is refused, values at other places than it puts them, and grids of heads that become
    one dimension with the batch, where factors were for one sample."""
    with torch.random.fork_rng():
        torch.manual_seed(2)  # with 0 errors lie at the bound, and on some processors beyond it
        model, x = Attends(ATTENTION[name]).eval(), torch.randn(32, 5, 6)
    recipe = parspike.ClosedForm(refit=False)
    snn = parspike.convert(model, x, T=6, code="weighted", recipe=recipe, **LOOKUP)
    lowered = stays_near(model, snn, x)
    counts_of(lowered, x)
    prove(lowered, x[:3])
    assert torch.equal(torch.cat([lowered(one) for one in x.split(1)]), lowered(x))
    assert torch.equal(parspike.load(lowered.save(tmp_path / "net.parspike"))(x), lowered(x))


class Columns(nn.Module):
    """A vector for each column of a table, as FT-Transformer (Gorishniy et al., 2021) makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(5, 8)) for _ in range(2))
        self.one, self.two = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x[..., None] * self.weight + self.bias).relu().mean(1))


def test_a_number_that_has_several_factors_is_repeated() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Columns().eval(), torch.randn(32, 5)
    lowered = stays_near(model, parspike.convert(model, x, T=15, recipe="closed-form"), x)
    counts_of(lowered, 2 * x)
    prove(lowered, x[:3])


NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "added": lambda scores: scores + torch.linspace(-3, 3, 5),
    "filled": lambda scores: scores.masked_fill(HIDDEN, 0.5),
    "chosen of two": lambda scores: torch.where(HIDDEN, scores, 0.3 * scores.transpose(2, 3)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_masks_of_numbers_stay_numbers(name: str) -> None:
    """Would catch numbers that are taken for a mask, and a chosen value on the grid of the other one."""
    model, snn, x = masked(NUMBERS[name])
    stays_near(model, snn, x)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (lambda scores: torch.relu(scores.masked_fill(HIDDEN, -torch.inf)), "no softmax alone reads"),
        (lambda scores: torch.where(scores > 0, scores, -1.0), "a comparison"),
    ],
    ids=["no softmax", "of the input"],
)
def test_masks_that_whole_numbers_cannot_carry_are_named(mask: Callable[[Tensor], Tensor], said: str) -> None:
    _, snn, x = masked(mask)
    with pytest.raises(UnsupportedError, match=said):
        integers(snn, x)


class Language(nn.Module):
    """A block of a language model of today: tokens, RMS norms, turned queries and keys, two queries for each key, a
    gated feed-forward layer; and the positions of an older one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 12), nn.Embedding(7, 12)
        self.one, self.two, self.last = nn.RMSNorm(12), nn.RMSNorm(12), nn.RMSNorm(12)
        self.q, self.kv, self.out = (nn.Linear(12, n, bias=False) for n in (12, 12, 12))
        self.gate, self.up, self.down = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 12)
        self.head = nn.Linear(12, 20, bias=False)

    @staticmethod
    def turned(x: Tensor) -> Tensor:
        angle = torch.outer(torch.arange(float(x.shape[2])), torch.tensor([1.0])).repeat(1, 2)
        one, two = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-two, one], -1) * angle.sin()

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        read = self.one(y)
        q = self.turned(self.q(read).unflatten(2, (6, 2)).transpose(1, 2))
        k, v = self.kv(read).unflatten(2, (6, 2)).transpose(1, 2).split(3, 1)
        k, v = self.turned(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y + self.out(mixed.transpose(1, 2).flatten(2))
        read = self.two(y)
        y = y + self.down(F.silu(self.gate(read)) * self.up(read))
        return F.log_softmax(self.head(self.last(y)), -1)


def test_a_language_model_runs_on_whole_numbers_from_tokens_on(tmp_path: Path) -> None:
    """Would catch a table on a grid of another feature, a token that is taken for a value, a turn on unlike grids."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Language().eval(), torch.randint(0, 20, (32, 7))
    recipe = parspike.ClosedForm(refit=False)
    snn = parspike.convert(model, x, T=6, code="weighted", recipe=recipe, **LOOKUP)
    with torch.no_grad():
        right = model(x)
    errors = []
    for refit in (False, True):
        lowered = integers(snn, x, weights=12, inputs=12, refit=refit)
        errors.append(float((lowered(x) - right).norm() / right.norm()))
        wanted = lowered.run(x, record=True)
        for engine in ("count", "parallel", "serial", "integer"):
            run = lowered.run(x, engine=cast(Any, engine), record=True)
            assert all(torch.equal(run.counts[layer], count) for layer, count in wanted.counts.items()), engine
    assert max(errors) < 1.3 * float((snn(x) - right).norm() / right.norm()) + 0.005
    assert lowered.provenance["real"] == ["log_softmax"]
    assert not any(synapse.reads == "the input" for synapse in prove(lowered, x[:3]).synapses)
    assert torch.equal(parspike.load(lowered.save(tmp_path / "net.parspike"))(x), wanted.logits)


class Padded(nn.Module):
    """An encoder of texts of several lengths: what is padded is hidden, and the mean is of the others."""

    def __init__(self, mask: Callable[[Tensor, Tensor], Tensor], *, placed: bool = True) -> None:
        super().__init__()
        self.mask = mask
        self.tokens, self.places = nn.Embedding(20, 12, padding_idx=0), nn.Embedding(6, 12)
        self.places.weight.data *= placed
        self.one, self.two = nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        there = x != 0
        y = self.one(self.tokens(x) + self.places(torch.arange(6)))
        q, k, v = self.qkv(y).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        scores = self.mask(q @ k.transpose(2, 3) / 6**0.5, there[:, None, None])
        y = self.two(y + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
        weights = there.float()[..., None]
        return F.normalize((y * weights).sum(1) / weights.sum(1), dim=1)


PADDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "filled": lambda scores, there: scores.masked_fill(~there, LAST),
    "chosen": lambda scores, there: torch.where(there, scores, -torch.inf),
    "added": lambda scores, there: scores + (1 - there.float()) * LAST,
    "added, a number": lambda scores, there: scores + (1 - there.long()) * -1e4,
}


def texts(make: Callable[[], nn.Module], seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and texts of two to six tokens, padded with 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval(), torch.randint(1, 20, (32, 6)) * (torch.arange(6) < torch.randint(2, 7, (32, 1)))


def counts_of(lowered: SNN, x: Tensor) -> dict[str, Tensor]:
    """The spike counts of every layer, which all engines agree on."""
    counts = lowered.run(x, record=True).counts
    for engine in ("count", "parallel", "serial", "integer"):
        run = lowered.run(x, engine=cast(Any, engine), record=True)
        assert all(torch.equal(run.counts[layer], count) for layer, count in counts.items()), engine
    return counts


class Placed(Padded):
    """Counts places and hides what comes later by the length of the text, as models of the library transformers do."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        there = (x != 0)[:, None, None] & (place[None] <= place[:, None])
        y = self.one(self.tokens(x) + self.places(place)[None])
        q, k, v = self.qkv(y).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        y = self.two(y + self.out(F.scaled_dot_product_attention(q, k, v, there).transpose(1, 2).flatten(2)))
        return y[:, 0]


def test_places_that_are_counted_stay_as_they_are() -> None:
    """Would catch numbers that depend on no input taken for a constant to be rounded, or refused."""
    model, x = texts(lambda: Placed(PADDED["filled"]))
    snn = parspike.convert(model, x, T=6, code="weighted", recipe=parspike.ClosedForm(refit=False), **LOOKUP)
    counts_of(stays_near(model, snn, x), x)


class Normed(nn.Module):
    """Twenty norms, each behind a sum with what the one before gave. how: which norm, and how it is written."""

    NORMS: ClassVar = {
        "layer": lambda x: F.layer_norm(x, (6,)),
        "root mean square": lambda x: F.rms_norm(x, (6,)),
        "group": lambda x: F.group_norm(x, 2),
        "by hand": lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5),
        "length": lambda x: x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-5) * 2,
    }

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.norm = nn.ModuleList(nn.Linear(6, 6) for _ in range(20)), self.NORMS[how]

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linear:
            x = self.norm(x + linear(x))
        return self.linear[0](x)


@pytest.mark.parametrize("how", Normed.NORMS)
def test_norms_behind_norms_are_carried(how: str) -> None:
    """Would catch a bound of a norm that grows with that of the norm before: 10^18 and more in these, too large for a
    float64. What a norm gives is at most √features of it, and the counts stay those of the other engines."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Normed(how).eval(), torch.randn(16, 6)
        other = 5 * torch.randn(64, 6)
    snn = parspike.convert(model, x, T=6, code="weighted", recipe="max", **LOOKUP)
    lowered = integers(snn, x, refit=False)
    before, after = (float((made(x) - model(x)).norm() / model(x).norm()) for made in (snn, lowered))
    assert after < 1.5 * before + 0.007
    counts_of(lowered, torch.cat([x, other]))


def test_sums_that_no_float_holds_are_told_with_their_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With values of 44 bits alone, which are multiplied: with fewer, this network's sums are held."""
    monkeypatch.setattr(sys.modules["parspike.lower.integers"], "ROOMS", ((2.0**44, False),))
    model, x = Normed("layer").eval(), torch.randn(16, 6)
    snn = parspike.convert(model, x, T=6, code="weighted", recipe="max", **LOOKUP)
    with pytest.raises(UnsupportedError, match=r"sums of layer '[\w.@]+' reach \d.*2\^53: give fewer bits"):
        integers(snn, x, weights=8, inputs=8, refit=False)


@pytest.mark.parametrize("recipe", ["closed-form", "max"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_norm_of_rows_of_zeros_is_as_near_as_without_them(seed: int, recipe: str) -> None:
    """Would catch levels of 1/√ that are spread up to 1/√ε = 316, for padded rows that are 0 times whatever it is."""
    model, x = texts(lambda: Padded(PADDED["filled"], placed=False), seed)
    snn = parspike.convert(model, x, T=6, code="weighted", recipe=recipe, **LOOKUP)
    with torch.no_grad():
        assert float((snn(x) - model(x)).norm() / model(x).norm()) < 0.05  # without 0, by places, 0.01
    stays_near(model, snn, x)


@pytest.mark.parametrize("name", PADDED)
def test_texts_of_several_lengths_hide_what_is_padded(name: str) -> None:
    """Would catch a padded token that weighs on the others, and one that is shown in place of them."""
    model, x = texts(lambda: Padded(PADDED[name]))
    snn = parspike.convert(model, x, T=6, code="weighted", recipe=parspike.ClosedForm(refit=False), **LOOKUP)
    lowered = stays_near(model, snn, x)
    counts = counts_of(lowered, x)
    for layer in ("softmax.small", "softmax.large"):
        count = counts[layer]
        hidden = (x == 0)[:, None, None].expand_as(count)
        least = count.amin((0, 2, 3), keepdim=True).expand_as(count)  # of a head: exp(-50)
        assert torch.equal(count[hidden], least[hidden]), layer
        assert float(count[~hidden].max()) == 63, layer
    prove(lowered, x[:3])


class Given(nn.Module):
    """Attention whose mask is an input: what it shows, or what it hides."""

    def __init__(self, hides: bool) -> None:
        super().__init__()
        self.hides = hides
        self.qkv, self.head = nn.Linear(6, 18), nn.Linear(6, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(1, 2)).masked_fill(mask if self.hides else ~mask, -torch.inf)
        return self.head(scores.softmax(-1) @ v)


@pytest.mark.parametrize("hides", [False, True])
def test_a_mask_may_be_an_input(hides: bool) -> None:
    """Would catch a mask that is looked for among the network's nodes alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Given(hides).eval(), torch.randn(32, 5, 6)
        shown = torch.rand(32, 5, 5) < 0.6
    shown |= torch.eye(5, dtype=torch.bool)
    given = {"x": x, "mask": ~shown if hides else shown}
    recipe = parspike.ClosedForm(refit=False)
    snn = parspike.convert(model, [given], T=6, code="weighted", recipe=recipe, **LOOKUP)
    lowered = integers(snn, [given], weights=12, inputs=12)
    with torch.no_grad():
        right = model(**given)
    before, after = (float((made(**given) - right).norm() / right.norm()) for made in (snn, lowered))
    assert after < 1.3 * before + 0.005
    assert torch.equal(lowered.run(**given, engine="count").logits, lowered(**given))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (lambda scores, there: scores.masked_fill(~there, 0.5), "chooses by tokens"),
        (lambda scores, there: torch.relu(scores.masked_fill(~there, -torch.inf)), "no softmax alone reads"),
    ],
)
def test_masks_of_tokens_that_hide_nothing_are_refused(mask: Callable[[Tensor, Tensor], Tensor], said: str) -> None:
    x = torch.randint(0, 20, (32, 6), generator=torch.Generator().manual_seed(0))
    recipe = parspike.ClosedForm(refit=False)
    snn = parspike.convert(Padded(mask).eval(), x, T=6, code="weighted", recipe=recipe, **LOOKUP)
    with pytest.raises(UnsupportedError, match=said):
        integers(snn, x)


class Counted(nn.Module):
    """Adds a wave of its number to every token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(20, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.tokens(x) + torch.sin(x)[..., None]).relu()).mean(1)


def test_what_is_computed_with_tokens_is_refused() -> None:
    x = torch.randint(0, 20, (32, 7), generator=torch.Generator().manual_seed(0))
    snn = parspike.convert(Counted().eval(), x, T=4, recipe="max")
    with pytest.raises(UnsupportedError, match="makes real numbers of tokens"):
        integers(snn, x)


class Deep(nn.Module):
    """Gates behind gates, with no neurons on the way of what they multiply: numbers grow with every product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.on, self.gates = (nn.ModuleList(nn.Linear(12, 12) for _ in range(6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for on, gate in zip(self.on, self.gates, strict=True):
            y = on(y) * torch.sigmoid(gate(y)) + y
        return self.head(y)


def test_numbers_that_grow_are_cut_to_as_many_bits_as_fit() -> None:
    """Would catch a refusal where fewer bits do, and a cut whose grid is not told to what follows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Deep().eval(), torch.randn(64, 6)
    snn = parspike.convert(model, x, T=6, code="weighted", recipe=parspike.ClosedForm(refit=False))
    lowered = integers(snn, x, weights=10, inputs=10)
    cut = [node for node in lowered.graph.nodes if node.target == "aten.div.Scalar_mode"]
    assert len(cut) >= 3
    assert 2**40 < lowered.provenance["largest"] * 6 < 2**53
    with torch.no_grad():
        right = model(x)
    before, after = (float((made(x) - right).norm() / right.norm()) for made in (snn, lowered))
    assert after < 1.3 * before + 0.005
    runs = [lowered.run(x, engine=engine, record=True) for engine in ("count", "parallel", "serial", "integer")]
    assert all(torch.equal(run.logits, runs[0].logits) for run in runs)
    assert prove(lowered, x[:2]).sums < 2**53
    with pytest.raises(UnsupportedError, match="change over time"):
        integers(parspike.convert(model, x, T=6, recipe="max", neuron=IF()), x)


class Wide(nn.Module):
    """Squares of sums, convolutions of signed numbers behind them, an up-sampling, a softmax of the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, groups=2)
        self.back, self.head = nn.ConvTranspose2d(6, 4, 2, groups=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.stem(x), dim=1) + F.gelu(self.stem(x))
        return self.head(self.back(F.interpolate(self.mix(x), scale_factor=2)).relu().mean((2, 3))).softmax(-1)


def test_numbers_beyond_float32_have_the_same_bits_in_onnxruntime(tmp_path: Path) -> None:
    """Would catch a sum that float32 rounds, and an input rounded in float64 where the network rounds it in
    float32."""
    pytest.importorskip("onnxruntime")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Wide().eval(), torch.randn(16, 3, 5, 5)
    snn = parspike.convert(model, x, T=5, code="weighted", recipe="max", **LOOKUP)
    lowered = integers(snn, x, weights=12, refit=False)
    assert lowered.provenance["largest"] > 1 << 24
    made = parspike.export(lowered, tmp_path / "net.onnx", example=x)
    assert made.file.unlike == 0


READ_BY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a sum": lambda x, y: x + F.gelu(y),
    "a mean": lambda x, y: torch.stack([F.silu(x), y], 1).mean(1),
    "another one": lambda x, y: F.silu(x) * F.gelu(y),
    "by hand": lambda x, y: x * torch.tanh(F.softplus(x)),
}


class Reads(nn.Module):
    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.read, self.one, self.two, self.head = read, nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(2 * self.one(x), 2 * self.two(x)))


@pytest.mark.parametrize("name", READ_BY)
def test_activations_that_turn_go_into_whole_numbers_whatever_reads_them(name: str) -> None:
    """Would catch one that is refused, and two halves with half of the levels each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x, other = Reads(READ_BY[name]).eval(), torch.randn(48, 6), torch.randn(64, 6)
    snn = parspike.convert(model, x, T=6, code="weighted", recipe=parspike.ClosedForm(refit=False), **LOOKUP)
    lowered = integers(snn, x)
    with torch.no_grad():
        wanted = model(other)
    assert float((lowered(other) - wanted).norm()) < 0.08 * float(wanted.norm())
    counts_of(lowered, x)


def test_a_gate_and_a_curve_have_the_same_bits_in_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)).eval(), torch.randn(64, 5)
    snn = parspike.convert(model, x, T=3, code="weighted", recipe="max", encode="all")
    made = parspike.export(snn, tmp_path / "net.onnx", example=x, weights=8)
    assert made.file.equal
    assert {type(neuron) for neuron in integers(snn, x).neurons().values()} >= {WholeCurve}


@pytest.mark.parametrize("code", ["sorted", "weighted"])
@pytest.mark.parametrize(
    ("function", "turn"),
    [(F.gelu, -0.7517915), (F.silu, -1.2784645), (F.hardswish, -1.5), (torch.abs, 0.0), (torch.sigmoid, None)],
    ids=["gelu", "silu", "hardswish", "abs", "sigmoid"],
)
def test_thresholds_of_a_curve_are_where_the_neuron_counts_otherwise(
    function: Callable[[Tensor], Tensor], turn: float | None, code: Any
) -> None:
    """Would catch a step of the falling side that is counted as one of the rising side, or lies one number off."""
    grid = torch.tensor([0.003, 0.0011, 0.02]).double()
    most = 4000
    theta = torch.tensor([0.4, 1.5, 3.0]).double()
    pair = SignedNeuron(4, theta, offset=torch.tensor([0.1, 0.7, 0.0]).double(), code=code)
    lowest = None if turn is None else (turn / grid).floor()
    z = torch.arange(-most, most + 1.0).double()[:, None].expand(-1, 3)

    def count(whole: Tensor) -> Tensor:
        return pair.count(function(whole * grid))

    made = curve(count, torch.Size([3]), most, lowest, pair)
    assert isinstance(made, WholeCurve)
    assert torch.equal(made.count(z), count(z))
    assert len(made.count(z).unique()) > 4
    again = WholeCurve.restore(made.config(), made.state_dict())
    assert torch.equal(again.count(z), count(z))
    # One that wiggles has no such form.
    assert curve(lambda w: pair.count(torch.sin(w * grid)), torch.Size([3]), most, None, pair) is None


def test_neurons_above_zero_behind_a_curve_that_rises_are_a_staircase() -> None:
    neuron = ParallelNeuron(6, torch.tensor(1.7).double())  # two of its levels are never reached
    grid, z = 0.01, torch.arange(-700, 701.0).double()

    def count(whole: Tensor) -> Tensor:
        return neuron.count(torch.sigmoid(whole * grid))

    made = curve(count, torch.Size([]), 700, None, neuron)
    assert isinstance(made, WholeStaircase)
    assert torch.equal(made.count(z), count(z))


@pytest.mark.parametrize("shape", [(), (3,), (3, 1), (2, 1, 4)])
def test_whole_staircases_count_the_thresholds_reached(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    tau = torch.randint(-50, 50, (6, *shape), generator=generator).double().sort(0).values
    neuron = WholeStaircase(6, tau)
    z = torch.randint(-60, 60, (5, 2, 3, 4) if len(shape) == 3 else (5, 3, 3), generator=generator).double()
    wanted = (z >= tau.reshape(6, *[1] * (z.dim() - len(shape)), *shape)).double().sum(0)
    assert torch.equal(neuron.count(z), wanted)
    assert torch.equal(neuron.count(z.movedim(0, -1).contiguous().movedim(-1, 0)), wanted)
    assert torch.equal(neuron.current(wanted).mean(0), wanted)
    assert torch.equal(WholeStaircase.restore(neuron.config(), neuron.state_dict()).count(z), wanted)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: WholeStaircase(2, torch.tensor([1.0, 0.5])), "whole numbers"),
        (lambda: WholeStaircase(2, torch.tensor([1.0, torch.inf])), "whole numbers"),
        (lambda: WholeStaircase(2, torch.tensor(1.0)), "a threshold at least"),
        (lambda: WholeStaircase(2, torch.tensor([1.0])), "as many thresholds"),
        (lambda: WholeStaircase(2, torch.tensor([1.0, 0.0])), "must not fall"),
        (lambda: WholeCurve(2, torch.tensor(0.0), torch.tensor(1.0), torch.tensor([1.0])), "a threshold at least"),
        (lambda: WholeCurve(2, torch.zeros(2), torch.zeros(1, 2), torch.zeros(1, 3)), "unlike shapes"),
        (lambda: WholeCurve(2, torch.zeros(2), torch.zeros(1, 2), torch.zeros(1, 2).double()), "unlike dtypes"),
        (lambda: WholeCurve(2, torch.tensor(0.0), torch.tensor([1.0, 0.0]), torch.tensor([1.0])), "must not fall"),
    ],
)
def test_tables_that_are_none_are_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_what_products_cannot_be_is_refused_by_name() -> None:
    class Times(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.a(x)) * F.relu(self.b(x)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Times().eval(), torch.randn(64, 4)
    made = integers(parspike.convert(model, x, T=4, recipe="max"), x)
    with torch.no_grad():
        assert float((made(x) - model(x)).norm() / model(x).norm()) < 0.3
    with pytest.raises(UnsupportedError, match="change over time"):
        integers(parspike.convert(model, x, T=4, recipe="max", neuron=IF()), x)
    kept = parspike.convert(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)), x, T=4, recipe="max",
                            layers={"1": parspike.Keep()})  # fmt: skip
    with pytest.raises(UnsupportedError, match="no neurons alone read it"):
        integers(kept, x)
    assert np.isfinite(made.provenance["largest"])
