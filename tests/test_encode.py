"""Encoders: spikes at every product, along the features and never along tokens (`graph.encode`, `graph.features`)."""

import math
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike.calibrate import layerwise
from parspike.calibrate.thresholds import Samples, fit_encoder
from parspike.errors import OptionError
from parspike.graph import Node, Ref, Role
from parspike.graph.encode import SMALL
from parspike.graph.ops import ENCODE, HELD, HOLD, MASKED, SHARES, WEIGHTS, call, call_over
from parspike.neurons import Code, ParallelNeuron, SignedNeuron

D, HEADS, TOKENS = 16, 4, 6


class Attention(nn.Module):
    """Attention of every kind that the tests need. kind: "fused", "written", "causal", "mask", "bias", "grouped",
    "heads first"."""

    mask: Tensor

    def __init__(self, kind: str, heads: int = HEADS) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        self.keys = 2 if kind == "grouped" else heads
        wide = D // heads
        self.q, self.k, self.v = nn.Linear(D, D), nn.Linear(D, self.keys * wide), nn.Linear(D, self.keys * wide)
        self.o = nn.Linear(D, D)
        self.bias = nn.Parameter(torch.randn(heads, TOKENS, TOKENS))
        self.register_buffer("mask", (torch.rand(TOKENS, TOKENS) < 0.7).fill_diagonal_(True))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        other = x if other is None else other
        wide = D // self.heads
        q = self.q(x).unflatten(2, (self.heads, wide)).transpose(1, 2)
        k, v = (f(other).unflatten(2, (self.keys, wide)).transpose(1, 2) for f in (self.k, self.v))
        if self.kind == "grouped":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        elif self.kind == "causal":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.kind == "mask":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        elif self.kind == "fused":
            y = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        elif self.kind == "heads first":  # as DeBERTa has it
            shares = (q @ k.transpose(2, 3) / math.sqrt(wide)).softmax(-1)
            y = torch.bmm(shares.reshape(-1, *shares.shape[2:]), v.reshape(-1, *v.shape[2:])).reshape(q.shape)
        else:
            scores = q @ k.transpose(2, 3) / math.sqrt(wide)
            y = (scores + self.bias if self.kind == "bias" else scores).softmax(-1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm, self.attention, self.then = nn.LayerNorm(D), Attention(kind), nn.LayerNorm(D)
        self.up, self.act, self.down = nn.Linear(D, 24), nn.GELU(), nn.Linear(24, D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.down(self.act(self.up(self.then(x))))


class Gated(nn.Module):
    """Norm by a root mean square, rotary positions, a gated layer: as language models have them."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(D) + 0.5)
        self.q, self.k, self.v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.gate, self.up, self.down = nn.Linear(D, 24), nn.Linear(D, 24), nn.Linear(24, D)
        angle = torch.arange(TOKENS)[:, None] * torch.tensor([1.0, 0.1]).repeat(2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale

    def turned(self, x: Tensor) -> Tensor:
        half = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return x * self.cos + half * self.sin

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(self.norm(x)).unflatten(2, (HEADS, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
        x = x + y.transpose(1, 2).flatten(2)
        return x + self.down(F.silu(self.gate(self.norm(x))) * self.up(self.norm(x)))


class Cross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention("written")

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.attention(x, other)


class Windows(nn.Module):
    """Attention in windows of a map, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:  # (B, 4, 6, D)
        y = self.norm(x).reshape(-1, 2, 2, 2, 3, D).transpose(2, 3).reshape(-1, 6, D)
        q, k, v = self.qkv(y).reshape(-1, 6, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(2, 3)).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(-1, 2, 2, 2, 3, D).transpose(2, 3).reshape(-1, 4, 6, D)
        return x + self.out(y)


class Convolutions(nn.Module):
    """An inverted bottleneck, whose sum of convolutions is no spikes, and a mean of spikes in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.down, self.last, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x * 2 - 1)
        x = x + self.down(F.relu(self.up(x)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Written(nn.Module):
    """Attention as two einsums, behind a product that is added to a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(D, 3 * D) / 4), nn.Parameter(torch.randn(3 * D))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.shift, x.flatten(0, 1), self.weight).unflatten(0, x.shape[:2])
        q, k, v = y.unflatten(2, (3, HEADS, D // HEADS)).unbind(2)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


class Bilinear(nn.Module):
    """A product of two values and a tensor of the network at once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(6, 5), nn.Linear(3, 2)
        self.weight = nn.Parameter(torch.randn(4, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.einsum("bi,ikj,bj->bk", self.a(x), self.weight, self.b(x)).relu())


def test_a_product_of_three_factors_is_two_products() -> None:
    """Would catch a factor that no spikes meet, and weights taken for a value."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Bilinear().eval(), torch.randn(24, 6)
    plan = parspike.plan(model, x, encode="all")
    made = [node for node in plan.graph.nodes if node.target == "aten.einsum.default"]
    assert [(node.args[0], node.role) for node in made] == [
        ("bi,ikj->bkj", Role.SYNAPSE),
        ("bkj,bj->bk", Role.SYNAPSE),
    ]
    snn = parspike.convert(plan, x, T=8, code="weighted", recipe="max")
    with torch.no_grad():
        assert float((snn(x) - model(x)).norm()) < 0.05 * float(model(x).norm())


def net(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(3)
    x = torch.randn(24, TOKENS, D)
    if name == "gated":
        return Gated().eval(), (x,)
    if name == "cross":
        return Cross().eval(), (x, torch.randn(24, 9, D))
    if name == "windows":
        return Windows().eval(), (torch.randn(24, 4, 6, D),)
    if name == "convolutions":
        return Convolutions().eval(), (torch.rand(24, 3, 6, 6),)
    if name == "einsum":
        return Written().eval(), (x,)
    if name == "torch's":
        return nn.TransformerEncoderLayer(D, HEADS, 24, activation="gelu", batch_first=True).eval(), (x,)
    return Block(name).eval(), (x,)


@cache
def plan_of(name: str) -> parspike.Plan:
    """The plan with encoders everywhere; its parts are not changed by a conversion."""
    return planned(name)


def planned(name: str, **options: Any) -> parspike.Plan:
    model, args = net(name)
    return parspike.plan(model, args[0] if len(args) == 1 else args, **{"encode": "all", **options})


def encoders(plan: parspike.Plan) -> dict[str, Node]:
    return {node.layer: node for node in plan.graph.nodes if node.target == ENCODE}


@pytest.mark.parametrize(
    ("model", "shape", "found"),
    [
        (nn.Sequential(nn.Linear(5, 7), nn.ReLU()), (2, 4, 5), (2,)),
        (nn.Sequential(nn.Conv1d(5, 7, 1), nn.ReLU()), (2, 5, 9), (1,)),
        (nn.Sequential(nn.ReLU(), nn.Conv1d(5, 7, 1)), (2, 5, 9), (1,)),
        (nn.Sequential(nn.ReLU(), nn.Linear(5, 7)), (2, 4, 6, 5), (3,)),
        (nn.Sequential(nn.LayerNorm(5), nn.ReLU()), (2, 4, 5), (2,)),
        (nn.Sequential(nn.Linear(5, 12), nn.Unflatten(2, (3, 4)), nn.ReLU()), (2, 6, 5), (2, 3)),
        (nn.Sequential(nn.Conv2d(3, 8, 1, groups=1), nn.Flatten(2), nn.ReLU()), (2, 3, 4, 4), (1,)),
        (nn.Sequential(nn.Linear(5, 7), nn.Flatten(0, 1), nn.ReLU(), nn.Unflatten(0, (-1, 4))), (2, 4, 5), (1,)),
    ],
)  # fmt: skip
def test_channels_run_along_features(model: nn.Module, shape: tuple[int, ...], found: tuple[int, ...]) -> None:
    class Then(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 1.0

    graph = parspike.plan(Then().eval(), torch.randn(shape)).graph
    (node,) = [node for node in graph.nodes if node.role is Role.NEURON]
    assert node.channel_dims == found


def test_what_a_constant_multiplies_from_the_left_has_its_features_in_front() -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(7, 5))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.weight @ x) * 1.0

    plan = parspike.plan(Left().eval(), torch.randn(2, 5, 9), encode="all")
    assert {node.layer: node.channel_dims for node in plan.graph.neurons} == {"x_spikes": (1,), "relu": (1,)}


def test_channels_behind_an_embedding_are_its_features_and_the_length_stays_free() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.place = nn.Embedding(9, 4), nn.Embedding(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.table(x) + self.place(torch.arange(x.shape[1]))).mean(1)

    plan = parspike.plan(Embedded().eval(), torch.arange(6).reshape(2, 3), layers={"*": parspike.Spike()})
    (node,) = plan.graph.neurons
    assert (node.channel_dims, node.channels) == ((2,), 4)
    assert "x.1" in plan.graph.example


def test_a_vector_runs_along_several_dimensions() -> None:
    node = Node("n", "", (), {}, Role.NEURON, "n", shape=("B", 2, 5, 3), channel_dims=(1, 3))
    x = torch.arange(4 * 30.0).reshape(4, 2, 5, 3)
    rows = node.over_channels(x)
    assert rows.shape == (6, 20)
    assert torch.equal(rows[4].sort().values, x[:, 1, :, 1].flatten().sort().values)
    assert torch.equal(node.per_channel(torch.arange(6))[0, :, 0, :], torch.arange(6).reshape(2, 3))


def test_where_encoders_stand() -> None:
    found = encoders(plan_of("fused"))
    attention = "attention.scaled_dot_product_attention"
    dims = {layer: node.channel_dims for layer, node in found.items()}
    assert dims == {
        "norm@spikes": (2,),  # one for q, k and v
        "attention.q@spikes": (2,), "attention.k@spikes": (2,), "attention.v@spikes": (2,),
        f"{attention}.softmax@spikes-": (1,), f"{attention}.softmax@spikes+": (1,),
        f"{attention}.divided@spikes": (1, 3), "then@spikes": (2,), "act@spikes": (2,),
    }  # fmt: skip
    products = [node for node in plan_of("fused").graph.nodes if node.reason == HELD]
    assert [node.role for node in products] == [Role.SYNAPSE] * 2


def test_what_is_made_of_spikes_alone_is_not_encoded_again() -> None:
    found = encoders(plan_of("convolutions"))
    # The input (behind its scale), the stem's sum, and the residual sum; not ReLUs nor the mean of their spikes.
    assert set(found) == {"sub@spikes", "stem@spikes", "add@spikes"}
    assert set(encoders(planned("convolutions", encode="hidden"))) == {"stem@spikes", "add@spikes"}
    assert not encoders(planned("convolutions", encode="none"))


def test_what_falls_and_rises_is_computed_and_then_encoded() -> None:
    plan = plan_of("fused")
    assert not any("gelu" in name and "spikes" not in name for name in plan.spiking)
    assert any("falls and then rises" in row.becomes for row in plan.rows)
    targets = [node.target for node in plan.graph.nodes]  # in one operator, for two halves cost ten times as much
    assert "aten.gelu.default" in targets
    assert not {"parspike.rising", "parspike.falling"} & {*targets}
    assert any(layer.startswith("act") for layer in encoders(plan))
    kept = planned("fused", layers={"act": parspike.Keep()})
    assert [row.becomes for row in kept.rows if row.layer == "act"] == ["kept analog"]
    asked = planned("fused", layers={"act": parspike.Spike()})
    assert not any(layer.startswith("act") for layer in encoders(asked))


def test_weights_of_attention_are_the_same_over_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch pieces that cut a row, a hidden score that weighs something, and a row of hidden ones that is NaN."""
    monkeypatch.setattr("parspike.neurons.pieces.PIECE", 50)
    scores, mask = 30 * torch.randn(2, 3, 8, 9), torch.rand(8, 9) > 0.3
    mask[2] = False
    hidden = call(MASKED, (scores, mask), {})
    weights = call(WEIGHTS, (hidden, -1), {})
    exact = (hidden.double() - hidden.double().amax(-1, keepdim=True)).exp().nan_to_num(nan=0.0)
    torch.testing.assert_close(weights.double(), exact, rtol=1e-5, atol=1e-21)
    assert not weights[..., ~mask].any()
    over = call_over(WEIGHTS, (call_over(MASKED, (scores, mask), 0), -1), 0)
    assert over.data_ptr() == scores.data_ptr()
    assert torch.equal(over, weights)


def test_a_gate_is_computed_and_what_it_scales_is_encoded() -> None:
    plan = plan_of("gated")
    assert not any("silu" in name for name in plan.spiking)
    assert any("product" in row.becomes and "encode" in row.becomes for row in plan.rows if "silu" in row.layer)
    assert "mul" in " ".join(encoders(plan))
    asked = planned("gated", layers={"silu*": parspike.Spike()})
    assert sum("silu" in name for name in asked.spiking) == 2


KINDS = (
    "fused",
    "written",
    "causal",
    "mask",
    "bias",
    "grouped",
    "heads first",
    "gated",
    "cross",
    "windows",
    "convolutions",
    "einsum",
    "torch's",
)


@pytest.mark.parametrize("name", KINDS)
def test_engines_agree_and_many_levels_give_the_network(name: str) -> None:
    model, args = net(name)
    data = [args[0] if len(args) == 1 else args]
    few = parspike.convert(plan_of(name), data, 3, code="weighted", recipe="max")
    runs = [few.run(*args, engine=engine, record=True) for engine in ("count", "parallel", "serial")]
    for run in runs[1:]:
        torch.testing.assert_close(run.logits, runs[0].logits, rtol=1e-4, atol=1e-5)
        # A current on a threshold may be rounded to either side; such a flip is one count.
        assert all((run.counts[k] - runs[0].counts[k]).abs().max() <= 1 for k in run.counts)
    # Every synapse is driven by spikes.
    rows = parspike.measure(few, data).rows
    assert [row.layer for row in rows if row.kind == "synapse" and row.macs] == []
    assert any(row.kind == "synapse" and row.synops for row in rows)
    many = parspike.convert(plan_of(name), data, 12, code="weighted", recipe="max")
    with torch.no_grad():
        wanted = model(*args)
    assert (many(*args) - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("name", ["fused", "heads first"])
def test_a_softmax_divides_by_the_sum_of_the_spikes_that_it_sent(name: str) -> None:
    graph = plan_of(name).graph
    (divided,) = [node for node in graph.nodes if node.target == SHARES]
    product, total = (graph.by_name[ref] for ref in divided.refs)
    both = graph.by_name[product.refs[0]]
    assert total.refs == (both.name,)
    small, large = (graph.by_name[ref] for ref in both.refs)
    # What a mask hides stays 0 to the bit, behind a reshape too.
    assert [(n.target, *n.args[1:]) for n in (small, large)] == [(ENCODE, 0.0, SMALL), (ENCODE, 0.0, 1 - SMALL)]


class Sharp(nn.Module):
    """Attention of which few tokens take the most, and many small weights share the rest."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.k, self.v = nn.Linear(D, D, bias=False), nn.Linear(D, D)

    def weights(self, x: Tensor) -> Tensor:
        return (x @ self.k(x).transpose(1, 2)).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x) @ self.v(x)


@pytest.mark.parametrize("recipe", ["max", parspike.ClosedForm(refit=False)])
def test_small_weights_of_a_softmax_are_told_apart(recipe: Any) -> None:
    """What it would catch: small weights on levels as far apart as those of large ones, which makes most of them 0."""
    model, x = Sharp().eval(), torch.randn(8, 64, D, generator=torch.Generator().manual_seed(2))
    plan = parspike.plan(model, x, encode="all")
    others = {layer: parspike.Keep() for layer in encoders(plan) if "softmax" not in layer}
    snn = parspike.convert(model, x, 4, code="weighted", encode="all", recipe=recipe, layers=others)
    with torch.no_grad():
        wanted, shares = model(x), model.weights(x)
        levels = (shares / shares.amax(-1, keepdim=True) * 15).round()
        one = (levels / levels.sum(-1, keepdim=True)) @ model.v(x)
    assert (snn(x) - wanted).norm() < 0.3 * (one - wanted).norm()


def test_a_product_counts_what_its_spikes_add_up() -> None:
    args = net("written")[1]
    snn = parspike.convert(plan_of("written"), args[0], 3, code="weighted", recipe="max")
    run = snn.run(args[0], record=True)
    report = parspike.measure(snn, args[0])
    rows = {row.layer: row for row in report.rows if row.operator == "matmul"}
    # Every spike of a query meets the tokens of one head's keys, every spike of a weight one head's features.
    queries = float(run.sent["attention.q@spikes"].sum()) * TOKENS / len(args[0])
    sent = sum(float(run.sent[f"attention.softmax@spikes{sign}"].sum()) for sign in "-+")
    weights = sent * (D // HEADS) / len(args[0])
    assert rows["attention.matmul"].synops == pytest.approx(queries)
    assert rows["attention.matmul@2"].synops == pytest.approx(weights)
    assert all(row.macs == 0 for row in rows.values())


def test_fully_masked_rows_give_what_fused_attention_gives(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Linear(D, D)

        def forward(self, x: Tensor, keep: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.attention(x), x, x, attn_mask=keep[:, None, :])

    torch.manual_seed(0)
    x, keep = torch.randn(8, TOKENS, D), torch.rand(8, TOKENS) < 0.6
    keep[0] = False
    snn = parspike.convert(Masked().eval(), [(x, keep)], 12, code="weighted", encode="all", recipe="max")
    out = snn(x, keep)
    assert bool(out.isfinite().all())
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    # A mask that depends on the input is no reason to refuse the file, nor to count other operations.
    snn.save(tmp_path / "a.parspike")
    assert torch.equal(parspike.load(tmp_path / "a.parspike")(x, keep), out)
    assert parspike.measure(snn, [(x, keep)]).driven > 0.5


def test_a_file_holds_encoders(tmp_path: Path) -> None:
    args = net("grouped")[1]
    snn = parspike.convert(plan_of("grouped"), args[0], 4, code="weighted", recipe="closed-form")
    snn.save(tmp_path / "a.parspike")
    again = parspike.load(tmp_path / "a.parspike")
    assert torch.equal(again(args[0]), snn(args[0]))
    assert [n.channel_dims for n in again.graph.nodes] == [n.channel_dims for n in snn.graph.nodes]
    assert any(n.target == HOLD for n in again.graph.nodes)
    lines = {snn.graph.by_name[name].layer: neuron.lines for name, neuron in snn.neurons().items()}
    assert set(lines.values()) == {1, 2}
    assert snn.run(args[0], record=True).lines == snn.run(args[0], record="packed").lines == lines


def test_queries_that_are_learnt_are_no_spikes(tmp_path: Path) -> None:
    """They are constants, also behind their projection: an encoder for one made a network that no file could hold."""

    class Latent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latents, self.attend = nn.Parameter(torch.randn(3, 8)), nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            q = self.latents.expand(x.shape[0], -1, -1)
            return self.head(self.attend(q, x, x)[0].flatten(1))

    torch.manual_seed(0)
    model, x = Latent().eval(), torch.randn(16, 5, 8)
    snn = parspike.convert(model, x, T=8, code="weighted", encode="all", recipe="max")
    with torch.no_grad():
        assert (snn(x) - model(x)).norm() < 0.03 * model(x).norm()
    assert torch.equal(parspike.load(snn.save(tmp_path / "net.parspike"))(x), snn(x))


def test_the_head_of_a_language_model_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 30)).eval()
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(layerwise, "MOST", 100 * 29)
    left = parspike.convert(model, x, 2, recipe="closed-form").tensors()
    monkeypatch.setattr(layerwise, "MOST", 100 * 30)
    fitted = parspike.convert(model, x, 2, recipe="closed-form").tensors()
    assert not torch.equal(left["2.weight"], model[2].weight)
    assert torch.equal(left["4.weight"], model[4].weight)
    assert not torch.equal(fitted["4.weight"], model[4].weight)


def test_inputs_as_spikes_have_thresholds_along_features() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.rand(70, 3, 5) * torch.arange(1.0, 6.0)
    snn = parspike.convert(model, x, 4, neuron=parspike.IF(), input="rate", recipe="max")
    assert [node.channel_dims for node in snn.graph.nodes if node.target == ENCODE] == [(2,)]


def test_options_of_encoders() -> None:
    kept = planned("fused", layers={"norm@spikes": parspike.Keep()})
    assert [kept.graph.by_name[name].layer for name in kept.kept] == ["norm@spikes"]
    assert planned("fused", layers={"*@spikes": parspike.Steps(2)}).steps
    with pytest.raises(OptionError, match="matches no activation"):
        planned("fused", layers={"nrom@spikes": parspike.Keep()})
    with pytest.raises(OptionError, match="encode must be one of none, hidden, all, got 'every'"):
        planned("fused", encode="every")
    with pytest.raises(OptionError, match="needs parallel neurons"):
        planned("fused", neuron=parspike.IF())
    with pytest.raises(OptionError, match="made with encode=, whose encoders need parallel neurons"):
        parspike.convert(plan_of("fused"), net("fused")[1][0], 4, neuron=parspike.IF())


class _Once:
    """As many batches as `Samples` asks for."""

    length = 1

    def gather(self, parts: list) -> list:
        return parts


def fitted(z: Tensor, T: int, *, signed: bool) -> SignedNeuron | ParallelNeuron:
    node = Node("n", ENCODE, (Ref("x"),), {}, Role.NEURON, "n", shape=("B", z.shape[1]), channel_dims=(1,))
    one, none = torch.ones(z.shape[1]), torch.zeros(z.shape[1])
    kind = SignedNeuron if signed else ParallelNeuron
    neuron = kind(T, one, offset=none, code="weighted")
    samples = Samples(node, cast(Any, _Once()))
    samples.add(z, z[None])
    fit_encoder(neuron, samples)
    return neuron


@pytest.mark.parametrize(("signed", "wanted"), [(False, 0.01154), (True, 0.003490)])
def test_an_encoder_has_a_range_of_its_own_for_every_channel(signed: bool, wanted: float) -> None:
    torch.manual_seed(0)
    z = torch.randn(4000, 5) * torch.tensor([1e-3, 1.0, 1.0, 50.0, 1e6]) + torch.tensor([0.0, 3.0, -7.0, 0.0, 1e5])
    error = (fitted(z, 4, signed=signed)(z) - z).square().mean(0) / z.var(0)
    # What 16 and 32 even levels of a Gaussian lose at best (Max 1960, table I); a pair of neurons has 31, and leaves
    # room above the largest of the 4,000 values.
    assert bool(((error > 0.9 * wanted) & (error < 1.5 * wanted)).all())


@pytest.mark.parametrize("signed", [False, True])
def test_an_encoder_leaves_out_few_extremes_and_says_constants_exactly(signed: bool) -> None:
    torch.manual_seed(0)
    z = torch.randn(4000, 2)
    z[7, 0], z[:, 1] = 12.0, -2.5
    neuron = fitted(z, 3 if signed else 4, signed=signed)
    # Levels up to 12 would lie 1 apart, an error of 1/12.
    assert float((neuron(z) - z)[8:, 0].square().mean()) < 0.06
    torch.testing.assert_close(neuron(z)[:, 1], z[:, 1])


@pytest.mark.parametrize("code", ["sorted", "weighted", "onset"])
def test_a_pair_of_neurons(code: Code) -> None:
    neuron = SignedNeuron(3, torch.tensor([3.0, 0.7]), offset=torch.tensor([0.0, 10.0]), code=code)
    most = neuron.levels
    z = torch.stack([torch.arange(-most - 2, most + 3) * (3.0 / most), torch.linspace(8, 12, 2 * most + 5)], 1)
    count = neuron.count(z)
    assert count[:, 0].tolist() == [max(-most, min(most, k)) for k in range(-most - 2, most + 3)]
    torch.testing.assert_close(neuron(z), neuron.value(count))
    torch.testing.assert_close(neuron(z.double()), neuron.value(neuron.count(z.double())))
    trains = neuron.spikes(count)
    assert trains.dtype == torch.int8
    assert bool((trains * count >= 0).all())  # a spike has the sign of its count: never both of a pair
    torch.testing.assert_close(trains.abs().sum(0).to(count.dtype), neuron.sent(count))
    torch.testing.assert_close(neuron.current(count).mean(0), neuron.value(count))
    assert torch.equal(neuron.count(-z[:, :1] + 0 * z)[:, 0], -count[:, 0])
    assert neuron.bits_in(steps=99) == 6  # two lines, a bit each in each of its own 3 steps


def test_a_pair_costs_fewer_spikes_than_one_neuron_with_an_offset() -> None:
    torch.manual_seed(0)
    z = torch.randn(4000, 1)
    pair, one = (fitted(z, 4, signed=signed) for signed in (True, False))
    sent = [float(neuron.sent(neuron.count(z)).mean()) for neuron in (pair, one)]
    assert sent[0] < 0.9 * sent[1]


def test_values_of_one_sign_get_one_neuron() -> None:
    snn = parspike.convert(plan_of("written"), net("written")[1][0], 4, code="weighted", recipe="max")
    kinds = {snn.graph.by_name[name].layer: neuron.kind for name, neuron in snn.neurons().items()}
    assert kinds["attention.softmax@spikes-"] == kinds["attention.softmax@spikes+"] == "parallel"
    assert {kind for layer, kind in kinds.items() if layer.endswith("@spikes") and "softmax" not in layer} == {"signed"}


def test_gradients_pass_a_pair_where_it_counts() -> None:
    neuron = SignedNeuron(3, torch.tensor(2.0), offset=torch.tensor(1.0), code="weighted")
    z = torch.tensor([-1.5, -0.9, 1.0, 2.9, 3.5], requires_grad=True)
    out = neuron.soft(z)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), neuron(z.detach()))
    assert z.grad is not None
    assert z.grad.tolist() == [0, 1, 1, 1, 0]
