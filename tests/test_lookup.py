"""Softmax, norms and divisions as neurons: `analog="lookup"` (`graph.lookup`), and weights that a mask hides."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import parspike
from parspike.calibrate.staircase import staircase, staircase_between
from parspike.cli import app
from parspike.errors import OptionError, TraceError
from parspike.graph import Role, lookup
from parspike.graph.ops import RECIPROCAL, TABLE
from parspike.neurons import Code

D, HEADS, TOKENS = 12, 3, 6


class Block(nn.Module):
    """Attention and a gated layer behind norms of both kinds; scores divided by a root that depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.LayerNorm(D), nn.Parameter(torch.rand(D) + 0.5)
        self.qkv, self.o = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.gate, self.up, self.down = nn.Linear(D, 16), nn.Linear(D, 16), nn.Linear(16, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, HEADS, D // HEADS)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Divisions(nn.Module):
    """Divisions by a root, by a sum of exponentials, and by what may be negative; a norm at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.last, self.norm = nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y = self.two(y / torch.sqrt(y.square().mean(-1, keepdim=True) + 1e-3))
        y = self.three(y / (y.exp().sum(-1, keepdim=True) + 1))
        y = self.last(y / (x.mean(-1, keepdim=True) + self.one(x).mean(-1, keepdim=True) + 9))
        return self.norm(y)


class Groups(nn.Module):
    """Norms over groups of channels, over all and over one, with weights and without."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(c, D, 3, padding=1) for c in (2, D, D))
        self.norms = nn.ModuleList(
            [nn.GroupNorm(3, D), nn.GroupNorm(1, D, affine=False), nn.InstanceNorm2d(D, affine=True)]
        )
        self.last = nn.Linear(D, 5)
        for parameter in self.norms.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip((self.one, self.two, self.three), self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.last(x.mean((2, 3)))


class Lengths(nn.Module):
    """Divisions by lengths and deviations, with what keeps them above 0, and by sums that are known to be: of a linear
    attention; the lengths of channels as values (ConvNeXt V2)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(D, D) for _ in range(5))
        self.qkv, self.last = nn.Linear(D, 3 * D), nn.Linear(D, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three, four, five = self.linear
        x = one(F.normalize(x, dim=-1))
        x = two(x / (x.norm(dim=1)[:, None] + 0.1) + (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.1))
        var, mean = torch.var_mean(x, (1, 2), keepdim=True)
        x = three((x - mean) / torch.sqrt(var + 1e-5))
        q, k, v = self.qkv(x).unflatten(2, (3, D)).unbind(2)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        z = 1 / (torch.einsum("bnd,bd->bn", q, k.sum(1)) + 1e-6)
        x = four(torch.einsum("bnd,bde,bn->bne", q, k.mT @ v, z))
        length = x.norm(dim=1, keepdim=True)
        return self.last(five(x + x * length / (length.mean(-1, keepdim=True) + 0.1)).mean(1))


@cache
def made(kind: str, analog: str = "lookup") -> tuple[nn.Module, Tensor, parspike.Plan]:
    torch.manual_seed(3)
    model = {"block": Block, "divisions": Divisions, "groups": Groups, "lengths": Lengths}[kind]().eval()
    x = torch.randn(16, 2, 5, 7) if kind == "groups" else torch.randn(16, TOKENS, D)
    return model, x, parspike.plan(model, x, encode="all", analog=analog)  # pyright: ignore[reportArgumentType]


def converted(kind: str, T: int, analog: str = "lookup", code: Code = "weighted", recipe: Any = "max") -> parspike.SNN:
    _, x, plan = made(kind, analog)
    return parspike.convert(plan, [x], T, code=code, recipe=recipe)


def test_a_sum_and_a_maximum_are_all_that_stays_analog() -> None:
    plan = made("block")[2]
    assert {row.operator for row in plan.rows if row.role == Role.ANALOG} == {"silu"}
    assert {row.operator for row in plan.rows if row.role == Role.ORDER} == {"largest", "at_least"}
    attention = "scaled_dot_product_attention"
    found = {row.layer: row.operator for row in plan.rows if row.role == Role.NEURON and "@spikes" not in row.layer}
    assert found == {
        "norm.rsqrt": "rsqrt", "rsqrt": "rsqrt",
        **{f"{attention}.softmax.{part}": "exp" for part in ("small", "large")},
        **{f"{attention}.divided.reciprocal{band}": "reciprocal" for band in range(3)},
    }  # fmt: skip
    # exp sends spikes itself; what is divided has the features that it had before.
    layers = {plan.graph.by_name[name].layer: plan.graph.by_name[name] for name in plan.spiking}
    assert f"{attention}.softmax@spikes" not in layers
    assert layers[f"{attention}.divided@spikes"].channel_dims == (1, 3)
    computed = {row.operator for row in made("block", "computed")[2].rows if row.role == Role.ANALOG}
    assert {"layer_norm", "softmax_weights", "softmax_shares", "rsqrt"} <= computed


@pytest.mark.parametrize("kind", ["block", "divisions", "groups"])
def test_engines_agree_and_many_levels_give_the_network(kind: str) -> None:
    model, x, _ = made(kind)
    few = converted(kind, 3)
    runs = [few.run(x, engine=engine, record=True) for engine in ("count", "parallel", "serial")]
    for run in runs[1:]:
        torch.testing.assert_close(run.logits, runs[0].logits, rtol=1e-4, atol=1e-5)
        assert all((run.counts[k] - runs[0].counts[k]).abs().max() <= 1 for k in run.counts)
    with torch.no_grad():
        wanted = model(x)
    errors = [float((converted(kind, T)(x) - wanted).norm() / wanted.norm()) for T in (4, 12)]
    assert errors[1] < min(0.002, errors[0] / 20)


def test_lengths_and_deviations_are_neurons_too() -> None:
    """Would catch a division that stays computed, and two roundings, of a root and of one over it, in place of one."""
    model, x, plan = made("lengths")
    assert not [row.layer for row in plan.rows if row.role == Role.ANALOG]
    found = [row.operator for row in plan.rows if row.role == Role.NEURON and row.operator != "encode"]
    assert found == ["rsqrt", "rsqrt", "rsqrt", "rsqrt", "elu", "elu", "reciprocal", "root", "reciprocal"]
    with torch.no_grad():
        wanted = model(x)
    assert float((converted("lengths", 9)(x) - wanted).norm()) < 0.005 * float(wanted.norm())


def test_norms_of_channels_are_neurons_too() -> None:
    model, x, plan = made("groups")
    assert not [row for row in plan.rows if row.role == Role.ANALOG]
    found = {node.layer: node.channels for node in plan.graph.nodes if node.name in plan.spiking}
    # A threshold for every group, and one for every channel of what is squared.
    assert (found["norms.0.rsqrt"], found["norms.0.centred@spikes"]) == (3, D)
    snn, other = converted("groups", 12), x[:3, :, :4, :6]
    with torch.no_grad():
        wanted = model(other)
    assert float((snn(other) - wanted).norm() / wanted.norm()) < 0.02  # of another size


def test_operations_are_accumulates_and_those_of_norms_are_counted() -> None:
    model, x, _ = made("block")
    snn = converted("block", 3)
    report = parspike.measure(snn, x, against=model)
    assert report.driven == 1
    assert [row.operator for row in report.analog] == ["silu"]
    rows = {row.layer: row for row in report.rows}
    sent = snn.run(x, record=True).sent
    # Every spike of 1/√v meets the D features of its token.
    assert rows["norm.normal"].synops == pytest.approx(float(sent["norm.rsqrt"].sum()) * D / len(x))
    assert (rows["norm.normal"].network_macs, rows["norm.normal"].macs) == (TOKENS * D, 0)
    error = rows["norm.rsqrt"].error  # the network's own layers walk along
    assert error is not None
    assert 0 < error < 0.2
    assert parspike.measure(converted("block", 3, "computed"), x).driven < 1


def test_what_may_be_negative_and_what_ends_the_network_stays_named() -> None:
    plan = made("divisions")[2]
    found = {row.operator: row for row in plan.rows}
    assert {"rsqrt", "reciprocal", "exp"} <= set(found)
    assert [row.layer for row in plan.rows if row.operator == "div"] == ["div@3"]
    assert found["layer_norm"].role == "readout"
    assert "sqrt" not in found


@pytest.mark.parametrize("analog", ["computed", "lookup"])
@pytest.mark.parametrize(
    ("code", "recipe"), [("weighted", "closed-form"), ("sorted", "closed-form"), ("sorted", "max")]
)
def test_no_token_sees_the_ones_behind_it(analog: str, code: Code, recipe: str) -> None:
    x = made("block")[1]
    snn = converted("block", 4, analog, code, recipe)
    other = torch.cat([x[:, :4], 3 * torch.randn(len(x), TOKENS - 4, D, generator=torch.Generator().manual_seed(1))], 1)
    one, two = snn(x), snn(other)
    torch.testing.assert_close(one[:, :4], two[:, :4], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(one[:, 4:], two[:, 4:], atol=0.1)


def test_rows_that_are_masked_whole_give_nothing() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(D, D), nn.Linear(D, D, bias=False)

        def forward(self, x: Tensor, keep: Tensor) -> Tensor:
            return self.out(F.scaled_dot_product_attention(self.into(x), x, x, attn_mask=keep[:, None, :]))

    torch.manual_seed(0)
    x, keep = torch.randn(8, TOKENS, D), torch.rand(8, TOKENS) < 0.6
    keep[0] = False
    snn = parspike.convert(Masked().eval(), [(x, keep)], 12, code="weighted", encode="all", analog="lookup",
                           recipe=parspike.ClosedForm(refit=False))  # fmt: skip
    out = snn(x, keep)
    assert bool(out.isfinite().all())
    # Encoders behind may have a middle of their own, as far from 0 as half of their step.
    assert float(out[0].abs().max()) < 0.01 * float(out.abs().max())


def test_a_file_keeps_it(tmp_path: Path) -> None:
    _, x, _ = made("block")
    snn = converted("block", 4, recipe="closed-form")
    snn.save(tmp_path / "a.parspike")
    again = parspike.load(tmp_path / "a.parspike")
    assert torch.equal(again(x), snn(x))
    assert (again.provenance["encode"], again.provenance["analog"]) == ("all", "lookup")
    assert "analog" not in converted("block", 4, "computed").provenance


def test_options_are_refused_before_tracing() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    x = torch.zeros(2, 3)
    with pytest.raises(OptionError, match=r"analog must be one of computed, lookup, got 'lokup' \(did you mean 'look"):
        parspike.plan(Never(), x, encode="all", analog="lokup")  # pyright: ignore[reportArgumentType]
    with pytest.raises(OptionError, match="give encode='all' too"):
        parspike.convert(Never(), [x], 4, analog="lookup")
    result = CliRunner().invoke(app, ["plan", "nowhere.py:net", "--shape", "3", "--analog", "lookup"])
    assert result.exit_code != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_norm_without_eps_has_the_one_of_its_own_type(dtype: torch.dtype) -> None:
    """torch takes that of the type which it computes in, and rewriting computes in float64: a network with
    `nn.RMSNorm(d)` was refused as rewritten wrongly. Rows near 0 show which ε it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), nn.RMSNorm(D), nn.Linear(D, D)).eval().to(dtype)
    x = torch.randn(16, D, dtype=dtype) * 1e-3
    with torch.no_grad():
        model[0].bias.zero_()
        plan = parspike.plan(model, x, encode="all", analog="lookup")
        least = next(node.args[1] for node in plan.graph.nodes if node.name.endswith("with_eps"))
        assert least == torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps
        torch.testing.assert_close(plan.graph.run(x), model(x), **({"rtol": 0.1, "atol": 0.05} if dtype is
                                   torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}))  # fmt: skip


class Logarithm(nn.Module):
    """Attention over time of a spectrum, which is never negative, in decibels (speakers, ECAPA-TDNN)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a((x + 1e-6).log()).relu()
        return self.c((h * self.b(h).tanh().softmax(2)).sum(2))


def test_values_at_which_the_network_gives_nan_are_not_compared() -> None:
    """Would catch a network blamed on parspike: of noise below 0 the softmax and its parts are NaN at other places."""
    plan = parspike.plan(Logarithm().eval(), torch.rand(2, 3, 8), encode="all", analog="lookup")
    assert "softmax.reciprocal" in str(plan)


def test_a_fault_in_taking_apart_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = made("block")
    monkeypatch.setattr(lookup, "TOTAL", 2.0)  # a total of 1 would be taken for 2
    with pytest.raises(TraceError, match="rewriting changed its value"):
        parspike.plan(model, x, encode="all", analog="lookup")


@pytest.mark.parametrize("code", ["weighted", "sorted"])
@pytest.mark.parametrize("low", [0.0, 2**-4])
def test_errors_of_a_reciprocal_count_as_shares(code: Code, low: float) -> None:
    """Large divisors have small reciprocals; in squared error they counted for nothing, so levels stood elsewhere."""
    torch.manual_seed(0)
    z = -torch.cat([2 + 3 * torch.rand(2000), 20 + 30 * torch.rand(2000)]).sort(descending=True).values

    def inverse(z: Tensor) -> Tensor:
        return TABLE[RECIPROCAL].run(z, 0.5, low)

    def share(neuron: Any) -> float:
        return float(((neuron(z) - inverse(z)) / (inverse(z) + low)).square().mean())

    shares, plain = (staircase(inverse, z, 3, code, above=above) for above in (low, None))
    between = staircase_between(z, inverse(z), 3, code, above=low)
    assert share(shares) < (0.8 if low == 0 else 1.01) * share(plain)
    assert share(between) < 1.2 * share(shares)


class Classed(nn.Module):
    """A token that is the same in all samples beside others whose sizes differ, behind a norm each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(6, D), nn.Parameter(torch.randn(1, 1, D))
        self.one, self.two, self.mix, self.head = nn.LayerNorm(D), nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        return self.head(self.two(x + self.mix(self.one(x)).relu()).mean(1))


def test_of_few_samples_no_step_follows_a_single_one() -> None:
    """Would catch steps that stand beside the variance of a token that is constant: in whole numbers, where it moves a
    little, its count moved by a fifth of all levels, and in a fit of 16 samples the error was 42 % (6 % now)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Classed().eval(), torch.randn(16, 4, 6) * torch.tensor([0.3, 1.0, 3.0, 9.0])[:, None]
    recipe = parspike.ClosedForm(refit=False)
    snn = parspike.convert(model, x, T=6, code="weighted", encode="all", analog="lookup", recipe=recipe)
    neuron: Any = snn.neurons()["layer_norm_1_rsqrt"]
    between = (neuron.outputs[1:] + neuron.outputs[:-1]) / 2
    torch.testing.assert_close((-neuron.thresholds).rsqrt(), between, rtol=0.02, atol=0.0)


def test_neurons_that_have_nothing_to_say_are_silent() -> None:
    """A band of values that no calibration data reach: counts of all steps would mean 0 too, and cost spikes."""
    z = -torch.linspace(8, 20, 500).flip(0)
    for neuron in (staircase(torch.zeros_like, z, 4, "weighted", zero=True),
                   staircase_between(z, torch.zeros(500), 4, "weighted", zero=True),
                   staircase_between(z[None], torch.full((1, 500), 0.3), 4, "sorted", shape=(1,))):  # fmt: skip
        assert float(neuron.count(z).max()) == 0
        assert float(neuron(z).std()) == 0


@pytest.mark.parametrize("code", ["weighted", "sorted"])
def test_staircases_that_keep_zero(code: Code) -> None:
    torch.manual_seed(0)
    z = torch.cat([torch.full((4000,), -50.0), -3 * torch.rand(4000) ** 2]).sort().values
    a = torch.where(z > -50, z.exp(), 0)
    made = [staircase(lambda z: torch.where(z > -50, z.exp(), 0), z, 4, code, zero=True),
            staircase_between(z, a + 0.02 * torch.randn(8000).abs(), 4, code, zero=True)]  # fmt: skip
    for neuron in made:
        assert float(neuron(torch.tensor([-50.0]))) == 0
        assert float(neuron.outputs[0]) == 0
        wanted = (1 - math.exp(-3)) ** 2 / neuron.levels**2 / 12
        assert neuron.error < 3 * wanted + 4e-4
    assert float(staircase(torch.exp, z, 4, code).outputs[0]) > 0
