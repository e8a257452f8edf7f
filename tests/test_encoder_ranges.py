"""Ranges of encoders reach what few of many samples have, and what `Auto` tries where encoders stand everywhere."""

import warnings
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import parspike
from parspike.calibrate import auto
from parspike.calibrate.thresholds import Samples, fit_encoder
from parspike.graph import Node, Ref, Role
from parspike.graph.ops import ENCODE
from parspike.neurons import SignedNeuron

UNFITTED = {"name": "closed-form", "refit": False}


class _Once:
    """As many batches as `Samples` asks for."""

    length = 1

    def gather(self, parts: list) -> list:
        return parts


def tailed(*shape: int) -> Tensor:
    """Values of which few are thirty times as large as most, as those that a gated MLP's last layer reads."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return x * torch.randn(*shape, generator=torch.Generator().manual_seed(1)).exp()


def fitted(z: Tensor, T: int) -> SignedNeuron:
    node = Node("n", ENCODE, (Ref("x"),), {}, Role.NEURON, "n", shape=("B", z.shape[1]), channel_dims=(1,))
    neuron = SignedNeuron(T, torch.ones(z.shape[1]), offset=torch.zeros(z.shape[1]), code="weighted")
    samples = Samples(node, cast(Any, _Once()), len(z))
    samples.add(z, z[None])
    fit_encoder(neuron, samples)
    return neuron


def least(z: Tensor, levels: int) -> Tensor:
    """The least mean squared error of evenly spaced levels for every channel, over many ranges around 0."""
    errors = []
    for share in torch.linspace(0.02, 1, 200).tolist():
        step = 2 * share * z.abs().amax(0) / levels
        errors.append(((z / step).round().clamp(-levels // 2, levels // 2) * step - z).square().mean(0))
    return torch.stack(errors).amin(0)


@pytest.mark.parametrize("T", [3, 6])
@pytest.mark.parametrize("number", [1500, 16384])
def test_a_range_is_that_of_least_error_over_all_samples(T: int, number: int) -> None:
    """At T = 6 from few samples the best range on others is wider, as the next test says."""
    z = tailed(number, 4)
    error = (fitted(z, T)(z) - z).square().mean(0)
    most = 1.1 if T == 3 or number > 1500 else 1.4
    assert float((error / least(z, 2 * (2**T - 1))).log().mean().exp()) < most


def test_a_range_leaves_room_for_values_that_were_not_sampled() -> None:
    """It would catch a range that ends at the extremes of 400 samples: the error on others was 40 times the least."""
    torch.manual_seed(0)
    z, other = torch.randn(400, 8), torch.randn(50_000, 8)
    error = (fitted(z, 8)(other) - other).square().mean(0)
    assert float(error.mean() / least(other, 2 * (2**8 - 1)).mean()) < 6


def test_few_values_among_equal_ones() -> None:
    z = torch.zeros(8000, 2)
    z[::100, 0], z[:, 1] = 3.0, 5.0
    torch.testing.assert_close(fitted(z, 4)(z), z)


def test_a_conversion_fits_encoders_on_all_tokens() -> None:
    x = tailed(64, 256, 3)
    model = nn.Sequential(nn.Linear(3, 3)).eval()
    recipe = parspike.ClosedForm(refit=False)
    snn = parspike.convert(model, x.split(4), T=6, code="weighted", encode="all", recipe=recipe)
    (neuron,) = snn.neurons().values()
    values = x.flatten(0, 1)
    error = (neuron(x) - x).square().mean((0, 1))
    assert float((error / least(values, 126)).log().mean().exp()) < 1.1


class Gated(nn.Module):
    """A linear layer behind a product of two values, and a ReLU behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.down(torch.sigmoid(self.gate(x)) * self.up(x))))


def searched(number: int, budget: float = 120.0) -> dict[str, Any]:
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(number, 5, 6)
    recipe = parspike.Auto(budget=budget)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        snn = parspike.convert(model, x.split(8), T=3, code="weighted", encode="all", recipe=recipe)
    return snn.provenance["search"]


def test_few_samples_leave_synapses_as_they_are_behind_encoders() -> None:
    chosen = searched(16)["chosen"]
    assert UNFITTED.items() <= chosen.items()


def test_a_search_tries_unfitted_synapses_and_knows_that_they_cost_less(monkeypatch: pytest.MonkeyPatch) -> None:
    expected: dict[str, float] = {}
    real = auto._Search._fits

    def fits(self: Any, recipe: Any, seconds: float) -> bool:
        expected[repr(recipe)] = seconds
        return real(self, recipe, seconds)

    monkeypatch.setattr(auto._Search, "_fits", fits)
    tried = [note["recipe"] for note in searched(80)["tried"]]
    assert any(UNFITTED.items() <= recipe.items() for recipe in tried)
    own, unfitted = (
        expected[repr(recipe)] for recipe in (parspike.ClosedForm(weigh="own"), parspike.ClosedForm(refit=False))
    )
    assert unfitted == pytest.approx(own * auto.UNFITTED / auto.PASSES)


def test_where_only_encoders_stand_the_search_begins_with_unfitted_synapses() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)).eval()
    snn = parspike.convert(model, torch.randn(80, 5, 6).split(8), T=3, code="weighted", encode="all")
    tried = [note["recipe"] for note in snn.provenance["search"]["tried"]]
    assert UNFITTED.items() <= tried[0].items()
    assert any(recipe["name"] == "closed-form" and recipe["refit"] for recipe in tried)
