"""The published methods whose neurons integrate and fire, and those that change parallel neurons: each against a few
lines that compute it by hand, and its limiting cases."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import parspike
from parspike.baselines import (
    FTBC,
    OPT,
    QCFSIF,
    RMP,
    RNL,
    SNNCAP,
    SNNCLP,
    SRP,
    TBC,
    Baseline,
    BNRecal,
    Phase,
    RobustNorm,
)  # fmt: skip
from parspike.baselines.bn_recal import restore
from parspike.baselines.phase import PhaseNeuron
from parspike.baselines.snnc import _drawn, least_error
from parspike.baselines.tbc import _read
from parspike.errors import CalibrationError, InputError, OptionError
from parspike.neurons import IntegrateFire, ParallelNeuron
from parspike.train import with_qcfs

METHODS = (RobustNorm, RMP, OPT, RNL, SNNCLP, SNNCAP, TBC, FTBC, BNRecal, Phase)
"""Those that take a ReLU network."""


def data(number: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(number, 6, generator=torch.Generator().manual_seed(seed))


@cache
def dense() -> Any:
    """Two layers of neurons, no convolution: what a few lines can follow."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):  # strong enough that every neuron fires for some inputs
            layer.weight.mul_(2)  # pyright: ignore[reportCallIssue]
            layer.bias.abs_()  # pyright: ignore[reportCallIssue]
    return model


@cache
def plan_of(kind: Any) -> Any:
    return parspike.plan(dense(), data(2), neuron=kind)


@torch.no_grad()
def activations(x: Tensor) -> tuple[Tensor, Tensor]:
    first = dense()[1](dense()[0](x))
    return first, dense()[3](dense()[2](first))


def made(recipe: Baseline, x: Any = None, T: int = 8) -> tuple[parspike.SNN, list[Any]]:
    snn = parspike.convert(plan_of(recipe.makes), data() if x is None else x, T=T, recipe=recipe)
    return snn, list(snn.neurons().values())


def fired(z: Tensor, theta: Tensor, start: Tensor, T: int, bias: Tensor | None = None) -> Tensor:
    """Spikes (T, B, C) of the currents z (T, B, C), one step after the other."""
    v, train = start.expand(z.shape[1:]), []
    for t in range(T):
        m = v + z[t] if bias is None else v + z[t] + bias[t if len(bias) > 1 else 0]
        train.append((m >= theta).float())
        v = m - theta * train[-1]
    return torch.stack(train)


def constant(x: Tensor, T: int) -> Tensor:
    """The current of the first neurons, at every step."""
    with torch.no_grad():
        return dense()[0](x).expand(T, len(x), 9)


class TestRobustNorm:
    @pytest.mark.parametrize("percentile", [99.0, 50.0])
    def test_the_percentile_is_of_what_is_not_zero(self, percentile: float) -> None:
        x = data(200)
        _, neurons = made(RobustNorm(percentile), x.split(70))
        for neuron, a in zip(neurons, activations(x), strict=True):
            ordered = a[a > 0].sort().values
            wanted = float(ordered[round(percentile / 100 * len(ordered)) - 1])
            assert neuron.v_threshold.unique().tolist() == pytest.approx([wanted], rel=1e-5)
            assert not bool(neuron.v_init.any())

    def test_later_layers_take_a_lower_percentile(self) -> None:
        x = data(200)
        second = [made(recipe, x)[1][1] for recipe in (RobustNorm(90, decline=20), RobustNorm(70))]
        assert torch.equal(second[0].v_threshold, second[1].v_threshold)
        with pytest.raises(OptionError, match="decline"):
            made(RobustNorm(30, decline=40), x)

    def test_a_layer_that_never_fires_is_no_fault(self) -> None:
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
        with torch.no_grad():
            model[0].bias.fill_(-100)  # pyright: ignore[reportArgumentType, reportCallIssue]
        snn = parspike.convert(model, data(), T=4, recipe=RobustNorm())
        assert torch.allclose(snn(data()), model(data()), atol=1e-6)


def test_rmp_thresholds_are_those_of_the_spiking_network() -> None:
    x, T = data(30), 8
    _, (one, two) = made(RMP(alpha=0.7), x.split(16), T)
    z = constant(x, T)
    theta = 0.7 * z.max()
    assert one.v_threshold.unique().tolist() == pytest.approx([float(theta)], rel=1e-5)
    with torch.no_grad():
        currents = dense()[2](fired(z, theta, torch.zeros(1), T) * theta)
    assert two.v_threshold.unique().tolist() == pytest.approx([0.7 * float(currents.max())], rel=1e-5)


class TestOPT:
    def test_thresholds_and_the_extra_current(self) -> None:
        for T_ref, steps in ((None, 8), (32, 32)):
            for neuron, a in zip(made(OPT(T_ref))[1], activations(data()), strict=True):
                assert neuron.v_threshold.unique().tolist() == pytest.approx([float(a.max())], rel=1e-5)
                assert torch.allclose(neuron.bias, neuron.v_threshold / (2 * steps))
                assert not bool(neuron.v_init.any())

    def test_on_a_constant_current_it_is_half_a_threshold_at_the_start(self) -> None:
        """Both round T z/θ; behind the first layer currents change and they part."""
        x, T = data(60), 8
        first = made(OPT(), T=T)[1][0]
        half = IntegrateFire(first.v_threshold.data)
        z = constant(x, T)
        counts = [neuron.advance(None, z)[2].sum(0) for neuron in (first, half)]
        assert torch.equal(*counts)
        assert len(counts[0].unique()) > 5


def test_rnl_is_a_moving_average_of_maxima() -> None:
    x = data(50)
    _, neurons = made(RNL(p=1.0, momentum=0.3), x.split(20))
    for neuron, a in zip(neurons, activations(x), strict=True):
        first, second, third = (float(part.max()) for part in a.split(20))
        running = 0.7 * (0.7 * first + 0.3 * second) + 0.3 * third
        assert neuron.v_threshold.unique().tolist() == pytest.approx([running / (1 + 2.718281828**-1)], rel=1e-5)


def test_the_ends_of_what_is_allowed_are_allowed() -> None:
    assert RNL(p=-100, momentum=1).p == -RNL(p=100).p
    assert RobustNorm(decline=100).decline == RobustNorm(100).percentile
    assert RMP(alpha=10).alpha == 10
    assert SRP(probe=1).probe == 1


@cache
def quantised(levels: int = 4) -> Any:
    return with_qcfs(dense(), levels, v_threshold="max", example=data(), fused=False).eval()


@cache
def quantised_plan(kind: Any) -> Any:
    return parspike.plan(quantised(), data(2), neuron=kind)


class TestQCFSIF:
    @pytest.mark.parametrize("T", [1, 4, 16])
    def test_on_a_constant_input_it_is_the_quantised_network(self, T: int) -> None:
        """One layer of neurons, which gets the same current at every step."""
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
        model = with_qcfs(model, T, v_threshold="max", example=data(), fused=False).eval()
        snn = parspike.convert(model, example=data(2), T=T, recipe="qcfs-if")
        x = data(30, seed=2)
        assert torch.allclose(snn(x), model(x), atol=1e-5)

    def test_thresholds_are_the_trained_ones(self) -> None:
        snn = parspike.convert(quantised(), example=data(2), T=4, recipe=QCFSIF())
        for neuron, trained in zip(snn.stateful().values(), (quantised()[1], quantised()[3]), strict=True):
            assert isinstance(neuron, IntegrateFire)
            assert torch.equal(neuron.v_threshold.flatten(), trained.v_threshold.flatten())
            assert torch.equal(neuron.v_init, neuron.v_threshold / 2)


class TestSNNC:
    @pytest.mark.parametrize("T", [4, 16])
    def test_the_threshold_of_least_error(self, T: int) -> None:
        a = data(300).relu()[:, :3].T
        found = least_error(a, T)
        for row, theta in zip(a.tolist(), found.tolist(), strict=True):
            top = max(row)

            def error(theta: float, row: list[float] = row) -> float:
                return sum((v - theta / T * int(min(v / theta * T, T))) ** 2 for v in row)

            errors = [error(top * (1 - 0.01 * i)) for i in range(95)]
            assert error(theta) <= min(errors) * 1.01
            assert theta < 0.995 * top

    def test_the_threshold_is_averaged_over_batches(self) -> None:
        x = data(60)
        neuron = made(SNNCLP(momentum=0.8), x.split(20))[1][0]
        one, two, three = (float(least_error(a.reshape(1, -1), 8)) for a in activations(x)[0].split(20))
        wanted = 0.8 * (0.8 * one + 0.2 * two) + 0.2 * three
        assert neuron.v_threshold.unique().tolist() == pytest.approx([wanted], rel=1e-5)

    def test_a_bias_brings_the_means_of_channels_together(self) -> None:
        x, T = data(400), 8
        a, _ = activations(x)

        def gap(rounds: int) -> float:
            neuron = made(SNNCLP(rounds=rounds), x.split(150), T)[1][0]
            sent = fired(constant(x, T), neuron.v_threshold, torch.zeros(1), T, neuron.bias) * neuron.v_threshold
            return float((sent.mean((0, 1)) - a.mean(0)).abs().max())

        none, one, many = gap(0), gap(1), gap(8)
        assert one < 0.6 * none
        assert many < 0.1 * none

    def test_without_a_correction_it_is_the_shift_alone(self) -> None:
        for neuron in made(SNNCLP(rounds=0))[1]:
            assert torch.allclose(neuron.bias, neuron.v_threshold / 16)

    def test_potentials_are_what_the_steps_lacked(self) -> None:
        x, T = data(50), 8
        _, (one, two) = made(SNNCAP(steps=0), x.split(20), T)
        z, (a, b) = constant(x, T), activations(x)
        theta = one.v_threshold
        sent = fired(z, theta, torch.zeros(1), T, one.bias) * theta
        assert torch.allclose(one.v_init, T * (a.mean(0) - sent.mean((0, 1))), atol=1e-4)
        with torch.no_grad():
            z = dense()[2](fired(z, theta, one.v_init, T, one.bias) * theta)
        sent = fired(z, two.v_threshold, torch.zeros(1), T, two.bias) * two.v_threshold
        assert torch.allclose(two.v_init, T * (b.mean(0) - sent.mean((0, 1))), atol=1e-4)

    @pytest.mark.parametrize("second", [False, True], ids=["samples first", "samples second"])
    @pytest.mark.parametrize("recipe", [SNNCLP(), SNNCAP(steps=0)], ids=lambda r: r.name)
    def test_means_are_those_of_the_whole_set_however_it_is_cut(self, recipe: Baseline, second: bool) -> None:
        class Sequence(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()

            def forward(self, x: Tensor) -> Tensor:
                x = x.transpose(0, 1) if second else x.reshape(-1, 4)
                a = self.one(x).relu()
                return self.two(a).mean(0) if second else self.two(a).unflatten(0, (-1, 3)).mean(1)

        torch.manual_seed(0)
        model, T = Sequence().eval(), 8
        x = torch.randn(20, 3, 4, dtype=torch.float64)
        x[16:] *= 4
        snn = parspike.convert(model, [x[:16], x[16:]], T=T, recipe=recipe)
        (neuron,) = snn.stateful().values()
        assert isinstance(neuron, IntegrateFire)
        with torch.no_grad():
            z = model.one(x.reshape(-1, 4))
        theta = neuron.v_threshold.flatten()
        sent = fired(z.expand(T, -1, -1), theta, torch.zeros(1), T, theta[None] / (2 * T)) * theta
        lacking = z.relu().mean(0) - sent.mean((0, 1))
        got = neuron.bias.flatten() - theta / (2 * T) if recipe.name == "snnc-lp" else neuron.v_init.flatten() / T
        assert torch.allclose(got, lacking)

    def test_samples_are_drawn_along_their_dimension(self) -> None:
        x = torch.arange(6.0)[:, None].expand(6, 3)
        parts = [(x, x.T.clone(), torch.ones(4)), (x[:2] + 10, x.T[:, :2] + 10, torch.ones(4))]
        found = set()
        for seed in range(20):
            a, b, c = _drawn(parts, [0, 1, None], 2, torch.Generator().manual_seed(seed))
            assert torch.equal(a, b.T)
            assert a.shape == (2, 3)
            assert torch.equal(c, torch.ones(4))
            found |= set(a.flatten().tolist())
        assert found == {0, 1, 2, 3, 4, 5, 10, 11}

    def test_weights_move_towards_the_activations(self) -> None:
        x, T = data(200), 4
        before, after = (made(SNNCAP(steps=steps, rate=3e-3), x.split(100), T)[0] for steps in (0, 60))
        theta = after.state_dict()["spiking.1.v_threshold"]
        a, _ = activations(x)

        def error(snn: parspike.SNN) -> float:
            weight, bias = (snn.tensors()[f"0.{name}"] for name in ("weight", "bias"))
            level = ((x @ weight.T + bias) * T / theta).clamp(0, T).floor()
            return float((level * theta / T - a).square().sum(1).mean())

        assert torch.equal(before.tensors()["0.weight"], dense()[0].weight)
        assert torch.equal(after.tensors()["0.bias"], dense()[0].bias)
        assert error(after) < 0.9 * error(before)

    def test_a_threshold_may_be_far_below_the_largest_activation(self) -> None:
        a = torch.cat([torch.ones(5000), torch.tensor([5.0])])[None]  # all but one value are at the 20th of 100 parts
        assert float(least_error(a, 1)) == pytest.approx(1.0, rel=1e-5)

    def test_weights_are_those_of_gradient_steps_by_hand(self) -> None:
        """Of two layers: the second learns from what the first sends, towards what the network itself gives."""
        x, T, steps, rate, size = data(20).double(), 4, 25, 1e-2, 6
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).double()
        model.eval().requires_grad_(False)
        snn = parspike.convert(model, [x[:8], x[8:]], T=T, recipe=SNNCAP(steps=steps, rate=rate, batch_size=size))
        one, two = (n.v_threshold.flatten() for n in snn.stateful().values())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]

        def fitted(layer: nn.Linear, theta: Tensor, x: Tensor, a: Tensor) -> Tensor:
            weight, generator = layer.weight.clone(), torch.Generator().manual_seed(0)
            m, v = torch.zeros_like(weight), torch.zeros_like(weight)
            for step in range(steps):
                second = bool(torch.multinomial(torch.tensor([8.0, 12.0]), 1, generator=generator))
                part = slice(8, 20) if second else slice(8)
                rows = torch.randint(len(x[part]), (size,), generator=generator)
                level = (x[part][rows] @ weight.T + layer.bias) * T / theta
                wrong = level.clamp(0, T).floor() * theta / T - a[part][rows]
                gradient = (2 * wrong * ((level >= 0) & (level <= T)) / size).T @ x[part][rows]
                m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
                move = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                weight = weight - rate * (1 + math.cos(math.pi * step / steps)) / 2 * move
            return weight

        a, b = model[:2](x), model[:4](x)
        first = fitted(model[0], one, x, a)
        assert torch.allclose(snn.tensors()["0.weight"], first, atol=1e-10)
        z = (x @ first.T + model[0].bias).expand(T, 20, 9)
        sent = fired(z, one, torch.zeros(1), T, one[None] / (2 * T)) * one
        second = fitted(model[2], two, sent.mean(0), b)
        assert torch.allclose(snn.tensors()["2.weight"], second, atol=1e-10)

    def test_of_two_weights_that_are_added_the_last_is_fitted(self) -> None:
        class Sum(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two, self.out = nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.out((self.one(x) + self.two(x)).relu())

        torch.manual_seed(0)
        model = Sum().eval()
        snn = parspike.convert(model, data(20), T=4, recipe=SNNCAP(steps=3, rate=1e-2))
        assert torch.equal(snn.tensors()["one.weight"], model.one.weight)
        assert not torch.equal(snn.tensors()["two.weight"], model.two.weight)

    def test_a_network_of_any_size_is_calibrated_for_one(self, tmp_path: Any) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
        ).eval()
        x = torch.randn(8, 2, 6, 6)
        snn = parspike.convert(model, x, T=4, recipe=SNNCAP(steps=1))
        loaded = parspike.load(snn.save(tmp_path / "net.parspike"))
        assert torch.equal(loaded(x), snn(x))
        with pytest.raises(InputError, match=r"takes \(B, 2, 6, 6\)"):
            loaded(torch.randn(2, 2, 9, 9))
        with pytest.raises(InputError, match="calibration batch 1"):
            parspike.convert(model, [x, torch.randn(8, 2, 9, 9)], T=4, recipe=SNNCAP(steps=0))
        assert parspike.convert(model, [x, torch.randn(8, 2, 9, 9)], T=4, recipe=SNNCLP()).T == 4


class TestTBC:
    def test_thresholds_by_hand(self) -> None:
        x = data(60)
        _, neurons = made(TBC(iterations=5), x.split(20))
        theta = [torch.zeros(9), torch.zeros(7)]
        parts = x.split(20)
        with torch.no_grad():
            for number in range(5):
                here = parts[number % 3]
                for position in (0, 1):
                    a = dense()[2 * position](here).relu()
                    theta[position] = theta[position] + 2 * (a - theta[position]).clamp(min=0).mean(0)
                    here = torch.minimum(a, theta[position])
        for neuron, wanted in zip(neurons, theta, strict=True):
            assert torch.allclose(neuron.v_threshold, wanted, rtol=1e-5)
            assert torch.allclose(neuron.v_init, wanted / 2, rtol=1e-5)
            assert torch.allclose(neuron.v_post, wanted, rtol=1e-5)

    def test_thresholds_never_fall_and_come_to_the_largest_activation(self) -> None:
        x = data(60)
        largest = activations(x)[0].amax(0)
        ways = [made(TBC(iterations=n, delay=False), x)[1][0].v_threshold.data for n in (1, 3, 30, 300)]
        for before, after in pairwise(ways):
            assert bool((after >= before).all())
        assert bool((ways[-1] > 0.9 * largest).all())
        assert bool((ways[-1] <= largest * 1.001).all())
        assert bool((ways[0] < 0.8 * largest).any())

    def test_a_potential_at_the_threshold_does_not_fire(self) -> None:
        tbc = made(TBC())[1][0]
        plain = IntegrateFire(tbc.v_post.data)
        z = (tbc.v_post / 2).expand(1, 1, -1)  # v(0) + z = θ
        assert not bool(tbc.advance(None, z)[2].any())
        assert bool(plain.advance(None, z)[2].all())

    def test_of_images_of_several_sizes_the_shortest_wait_counts(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
        ).eval()
        with torch.no_grad():
            model[0].bias.fill_(-0.8)  # pyright: ignore[reportArgumentType, reportCallIssue] (activations are rare)
        sets, T = (torch.randn(8, 2, 6, 6), torch.randn(5, 2, 9, 7), torch.randn(4, 2, 6, 6)), 64
        snn = parspike.convert(model, list(sets), T=T, recipe=TBC())
        (neuron,) = snn.stateful().values()
        assert isinstance(neuron, IntegrateFire)
        waits = []
        with torch.no_grad():
            for x in (torch.cat([sets[0], sets[2]]), sets[1]):
                mean = model[0](x).relu().mean(0)
                waits.append(float(((neuron.v_threshold - neuron.v_init) / mean).min()))
        assert 0 < int(min(waits)) < int(max(waits))
        assert snn.simulation.read == T - int(min(waits))

    def test_places_in_the_batch_are_no_samples_of_their_own(self) -> None:
        """Rows of (B·3, C) have one mean each: the delay is that of the mean over them."""

        class Folded(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(4, 6), nn.Linear(18, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.two(self.one(x.reshape(-1, 4)).relu().reshape(-1, 18))

        torch.manual_seed(0)
        model, x, T = Folded().eval(), torch.randn(30, 3, 4), 64
        snn = parspike.convert(model, [x[:20], x[20:]], T=T, recipe=TBC())
        (neuron,) = snn.stateful().values()
        assert isinstance(neuron, IntegrateFire)
        with torch.no_grad():
            mean = model.one(x.reshape(-1, 4)).relu().mean(0)
        wait = float(((neuron.v_threshold - neuron.v_init) / mean).min())
        assert int(wait) != int(wait / 3)
        assert snn.simulation.read == T - int(wait)

    def test_reads_when_the_first_spikes_have_come(self) -> None:
        x = data(60)
        snn, neurons = made(TBC(), x.split(20), T=128)
        waits = [
            float(((n.v_threshold - n.v_init) / a.mean(0)).min()) for n, a in zip(neurons, activations(x), strict=True)
        ]
        assert snn.simulation.read == 128 - int(sum(waits))
        assert made(TBC(delay=False), T=128)[0].simulation.read == 0
        assert [_read(T, 6.5) for T in (3, 8, 10, 11, 64)] == [0, 4, 4, 5, 58]
        assert _read(64, 0.5) == 0


class TestFTBC:
    def test_with_no_bias_it_is_an_if_neuron(self) -> None:
        x = data(20, seed=3)
        ftbc, plain = (
            parspike.convert(quantised_plan(recipe.makes), data(), T=6, recipe=recipe)
            for recipe in (FTBC(iterations=0), QCFSIF())
        )
        runs = [snn.run(x, record=True) for snn in (ftbc, plain)]
        assert all(torch.equal(runs[0].spikes[layer], runs[1].spikes[layer]) for layer in runs[0].spikes)
        corrected = parspike.convert(quantised_plan(FTBC.makes), data(), T=6, recipe=FTBC()).run(x, record=True)
        assert any(not torch.equal(corrected.spikes[layer], runs[1].spikes[layer]) for layer in corrected.spikes)

    def test_biases_by_hand(self) -> None:
        x, T, alpha = data(30), 5, 0.4
        _, neurons = made(FTBC(alpha=alpha, iterations=3, thresholds="max"), x.split(15), T)
        theta = [float(n.v_threshold.max()) for n in neurons]
        b = [torch.zeros(T, 9), torch.zeros(T, 7)]
        with torch.no_grad():
            for part in (0, 1, 0):
                sent = [x.split(15)[part]] * T
                for place, wanted in enumerate(activations(x.split(15)[part])):
                    v, train = torch.full_like(wanted, theta[place] / 2), []
                    for t in range(T):
                        z = dense()[2 * place](sent[t])
                        spike = (v + z - b[place][t] >= theta[place]).float()
                        b[place][t] += alpha * (theta[place] * spike - wanted).mean(0)
                        m = v + z - b[place][t]
                        spike = (m >= theta[place]).float()
                        v = m - theta[place] * spike
                        train.append(theta[place] * spike)
                    sent = train
        for neuron, wanted in zip(neurons, b, strict=True):
            assert torch.allclose(neuron.bias, -wanted, atol=1e-5)

    @pytest.mark.parametrize("granularity", ["layer", "channel"])
    def test_thresholds_of_least_error_are_those_of_snnc(self, granularity: Any) -> None:
        ours, theirs = (
            made(recipe, data().split(15))[1]
            for recipe in (FTBC(granularity=granularity), SNNCLP(granularity=granularity))
        )
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.v_threshold, other.v_threshold)
            assert (len(one.v_threshold.unique()) > 1) == (granularity == "channel")

    def test_every_step_comes_to_the_mean_activation(self) -> None:
        x, T = data(400), 4
        a, _ = activations(x)

        def gap(iterations: int) -> Tensor:
            neuron = made(FTBC(alpha=0.2, iterations=iterations), x, T)[1][0]
            sent = neuron.advance(None, constant(x, T))[1]
            return (sent.mean(1) - a.mean(0)).abs().mean()

        assert gap(40) < 0.5 * gap(0)


class TestBNRecal:
    def test_channels_get_back_mean_and_deviation(self) -> None:
        torch.manual_seed(0)
        z, given = torch.randn(500, 3) * torch.tensor([1.0, 2.0, 0.5]) + 0.3, torch.randn(500, 3)
        node: Any = plan_of(None).graph.neurons[0]
        node = replace(node, shape=(node.shape[0], 3))
        mean = torch.stack([z.double().mean(0), given.double().mean(0)])
        spread = torch.stack([z.double().std(0, correction=0), given.double().std(0, correction=0)])
        neuron = ParallelNeuron(8, torch.tensor([1.5, 2.5, 1.0]))
        before = ParallelNeuron(8, neuron.v_threshold.data)
        restore(neuron, node, mean, spread)
        corrected = ((given - given.mean(0)) * (z.std(0) / given.std(0)) + z.mean(0)).float()
        assert (neuron.count(given) != before.count(corrected)).float().mean() < 0.002
        assert (neuron.count(given) != before.count(given)).float().mean() > 0.1
        assert torch.equal(neuron.v_post, before.v_post)

    def test_every_layer_gets_back_its_statistics(self) -> None:
        x, T = data(300), 2
        snn, neurons = made(BNRecal(bias=False), x, T)
        with torch.no_grad():
            first, _ = activations(x)
            z, zs = dense()[2](first), dense()[2](neurons[0](dense()[0](x)))
        # z'' = (z' + δ) θ₀/θ, in which θ₀ is the threshold before: the largest activation of each channel.
        largest = dense()[3](z).amax(0)
        corrected = (zs + neurons[1].shift) * largest / neurons[1].v_threshold
        assert torch.allclose(corrected.mean(0), z.mean(0), atol=1e-3)
        assert torch.allclose(corrected.std(0), z.std(0), rtol=1e-3)
        assert not torch.allclose(zs.std(0), z.std(0), rtol=2e-2)
        assert snn.counting()

    def test_a_bias_lowers_the_error(self) -> None:
        x, T = data(300), 2
        _, b = activations(x)

        def error(bias: bool) -> float:
            _, neurons = made(BNRecal(bias=bias), x, T)
            with torch.no_grad():
                return float((neurons[1](dense()[2](neurons[0](dense()[0](x)))) - b).square().mean())

        assert error(True) < 0.98 * error(False)

    def test_a_network_trained_for_its_steps_stays_lossless(self) -> None:
        snn = parspike.convert(quantised(), data(), T=4, recipe=BNRecal())
        assert torch.allclose(snn(data(20, 3)), quantised()(data(20, 3)), atol=1e-5)


class TestPhase:
    def test_the_fit_ends_where_a_turn_changes_nothing(self) -> None:
        """Would catch rounds=10**9, which never came back, and a fit that ends before it is one."""
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), torch.rand(64, 4)
        found = [parspike.convert(model, x, T=3, recipe=Phase(rounds=n))(x) for n in (40, 10**9)]
        assert torch.equal(*found)
        assert not torch.equal(found[0], parspike.convert(model, x, T=3, recipe=Phase(rounds=1))(x))

    @pytest.mark.parametrize("T", [1, 3, 6])
    def test_with_base_2_it_is_the_weighted_code(self, T: int) -> None:
        torch.manual_seed(0)
        z, tau = torch.randn(400, 5), torch.tensor([0.7, 1.0, 1.3, 2.0, 3.1])
        phase = PhaseNeuron(T, tau, torch.full_like(tau, 2.0))
        weighted = ParallelNeuron(T, tau * (1 - 2.0**-T), code="weighted")
        assert torch.equal(phase.count(z), weighted.count(z))
        assert torch.allclose(phase(z), weighted(z), atol=1e-6)
        assert torch.allclose(phase.amplitudes(), weighted.amplitudes(), rtol=1e-5)
        assert torch.equal(phase.spikes(phase.count(z)), weighted.spikes(weighted.count(z)))

    def test_spike_by_spike(self) -> None:
        torch.manual_seed(1)
        T, tau, base = 5, 1.7, 1.6
        z = torch.randn(200).abs()
        neuron = PhaseNeuron(T, torch.tensor(tau), torch.tensor(base))
        train = neuron.spikes(neuron.count(z))
        for place, value in enumerate(z.tolist()):
            m, sent = value + tau * 2 ** -(T + 1), 0.0
            for t in range(T):
                spike = m >= tau * base ** -(t + 1)
                m, sent = (m - tau * base ** -(t + 1), sent + tau * base ** -(t + 1)) if spike else (m, sent)
                assert bool(train[t, place]) == spike
            assert float(neuron(z[place : place + 1])) == pytest.approx(sent, abs=1e-5)
        assert torch.equal(neuron(z), neuron.value(neuron.count(z)))
        assert bool(neuron(z.sort().values).diff().ge(0).all())
        assert bool(neuron(torch.tensor([float("nan")])).isnan())

    @pytest.mark.parametrize("T", [1, 3])
    def test_a_potential_at_the_threshold_fires(self, T: int) -> None:
        z = torch.arange(0, 2 ** (T + 1) + 2) * 2.0 ** -(T + 1)  # every sum is exact, and every second one a tie
        phase = PhaseNeuron(T, torch.tensor(1.0), torch.tensor(2.0))
        assert phase.count(z).tolist() == [min((i + 1) // 2, 2**T - 1) for i in range(len(z))]

    def test_the_fit_finds_a_base_again(self) -> None:
        """Activations that are what neurons of a base send."""
        torch.manual_seed(0)
        made_by = PhaseNeuron(5, torch.tensor([[2.0], [0.3]]), torch.tensor([[1.5], [1.9]]))
        a = made_by(torch.rand(1, 2, 2000) * torch.tensor([[4.0], [0.4]]))[0]
        top, base = Phase()._fitted(a, 5)
        assert base.tolist() == pytest.approx([1.5, 1.9])
        assert torch.allclose(top, a.amax(1))

    @pytest.mark.parametrize("granularity", ["layer", "channel"])
    def test_a_fitted_base_has_the_least_error(self, granularity: Any) -> None:
        x = data(400)
        a, _ = activations(x)
        errors = {}
        for base in (None, 2.0, 1.5):
            neuron: Any = made(Phase(granularity, base=base), x, 4)[1][0]
            errors[base] = float((neuron(a) - a).square().mean())
            assert base is None or neuron.base.unique().tolist() == [base]
        assert errors[None] <= min(errors.values()) * 1.001

    def test_a_layer_may_have_steps_of_its_own(self) -> None:
        snn = parspike.convert(dense(), data(), T=5, recipe=Phase(), layers={"1": parspike.Steps(3)})
        other = parspike.convert(dense(), data(), T=3, recipe=Phase())
        one, two = snn.neurons().values()
        assert isinstance(one, PhaseNeuron)
        assert (one.T, two.T) == (3, 5)  # pyright: ignore[reportAttributeAccessIssue]
        first = next(iter(other.neurons().values()))
        assert torch.equal(one.v_threshold, first.v_threshold)  # pyright: ignore[reportArgumentType]

    def test_what_goes_into_synapses_may_be_encoded(self) -> None:
        snn = parspike.convert(dense(), data(), T=8, recipe=Phase(), encode="all")
        with torch.no_grad():
            assert (snn(data()) - dense()(data())).norm() < 0.1 * dense()(data()).norm()

    def test_engines_agree(self) -> None:
        snn, _ = made(Phase(), T=4)
        x = data(20, seed=5)
        count, parallel, serial = (snn.run(x, engine=engine, record=True) for engine in ("count", "parallel", "serial"))
        assert torch.allclose(count.logits, parallel.logits, atol=1e-5)
        assert torch.allclose(count.logits, serial.logits, atol=1e-5)
        assert all(torch.equal(count.counts[layer], serial.counts[layer]) for layer in count.counts)
        assert {neuron.label for neuron in snn.neurons().values()} == {"phase"}

    def test_a_qcfs_layer_keeps_its_threshold(self) -> None:
        phase = parspike.convert(quantised(15), data(), T=4, recipe=Phase())
        weighted = parspike.convert(quantised(15), data(), T=4, recipe="thresholds", code="weighted")
        assert torch.allclose(phase(data(20, 3)), weighted(data(20, 3)), atol=1e-5)

    def test_a_forged_file_is_refused(self) -> None:
        good = PhaseNeuron(4, torch.ones(3, 1, 1), torch.full((3, 1, 1), 1.5))
        for name, value in (("v_threshold", 0.0), ("base", 1.0)):
            state = {**good.state_dict(), name: torch.full((3, 1, 1), value)}
            with pytest.raises(ValueError, match="above"):
                PhaseNeuron.restore(good.config(), state)


class TestEveryMethod:
    @pytest.mark.parametrize("method", [m for m in METHODS if m not in (Phase, BNRecal)], ids=lambda m: m.name)
    def test_an_input_that_becomes_spikes_keeps_its_neurons(self, method: type[Baseline]) -> None:
        """A method changes the neurons of activations, not those that send the input's values, which may be below 0."""
        x = data(60)
        snn = parspike.convert(plan_of(method.makes), x, T=64, recipe=method(), input="rate")
        sends, *_ = snn.stateful().values()
        assert isinstance(sends, IntegrateFire)
        assert float(sends.rest().min()) == pytest.approx(float(x.min()), rel=1e-5)  # pyright: ignore[reportAttributeAccessIssue]
        assert torch.equal(sends.v_init, sends.v_threshold / 2)
        assert not bool(sends.bias.any())
        if method is not RMP:  # whose thresholds are above what these steps can send
            with torch.no_grad():
                assert (snn(x) - dense()(x)).norm() < 0.3 * dense()(x).norm()

    @pytest.mark.parametrize("method", [m for m in METHODS if m not in (Phase, BNRecal)], ids=lambda m: m.name)
    def test_a_qcfs_layer_keeps_its_trained_threshold(self, method: type[Baseline]) -> None:
        snn = parspike.convert(quantised_plan(method.makes), data(), T=4, recipe=method())
        for neuron, trained in zip(snn.neurons().values(), (quantised()[1], quantised()[3]), strict=True):
            assert isinstance(neuron, IntegrateFire)
            assert torch.equal(neuron.v_threshold.flatten(), trained.v_threshold.flatten())

    @pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
    def test_values_that_are_no_numbers_are_refused_by_layer(self, method: type[Baseline]) -> None:
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).eval()
        with torch.no_grad():
            model[0].weight.fill_(1e38)  # pyright: ignore[reportCallIssue]
        with pytest.raises(CalibrationError, match="layer '1'"):
            parspike.convert(model, data() + 3, T=2, recipe=method())

    @pytest.mark.parametrize("recipe", [SNNCLP(), SNNCAP(steps=0), Phase(rounds=1), RobustNorm(), TBC()], ids=str)
    def test_the_size_of_activations_does_not_matter(self, recipe: Baseline) -> None:
        plain: Any = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False)).eval()
        plan = parspike.plan(plain, data(2), neuron=recipe.makes)
        tiny, usual, huge = (
            parspike.convert(plan, data() * unit, T=4, recipe=recipe)(data() * unit) / unit
            for unit in (1e-12, 1.0, 1e12)
        )
        assert torch.allclose(tiny, usual, rtol=1e-3, atol=1e-3)
        assert torch.allclose(huge, usual, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: RobustNorm(0), "percentile"),
        (lambda: RobustNorm(decline=-1), "decline"),
        (lambda: RobustNorm(decline=100.5), "decline"),
        (lambda: RMP(alpha=0), "alpha"),
        (lambda: RMP(alpha=10.5), "alpha"),
        (lambda: RMP(alpha="1"), "alpha"),  # pyright: ignore[reportArgumentType]
        (lambda: OPT(T_ref=0), "T_ref"),
        (lambda: OPT(granularity="row"), "granularity"),  # pyright: ignore[reportArgumentType]
        (lambda: RNL(p=-100.5), "p must"),
        (lambda: RNL(p=100.5), "p must"),
        (lambda: RNL(momentum=0), "momentum"),
        (lambda: RNL(momentum=1.5), "momentum"),
        (lambda: SNNCLP(granularity="row"), "granularity"),  # pyright: ignore[reportArgumentType]
        (lambda: SNNCLP(rounds=-1), "rounds"),
        (lambda: SNNCAP(rate=0), "rate"),
        (lambda: SNNCAP(batch_size=True), "batch_size"),
        (lambda: TBC(iterations=0), "iterations"),
        (lambda: TBC(delay=1), "delay"),  # pyright: ignore[reportArgumentType]
        (lambda: FTBC(alpha=1.5), "alpha"),
        (lambda: FTBC(thresholds="mean"), "thresholds"),  # pyright: ignore[reportArgumentType]
        (lambda: BNRecal(bias=None), "bias"),  # pyright: ignore[reportArgumentType]
        (lambda: Phase(base=1), "base"),
    ],
)
def test_options_are_checked_when_a_recipe_is_made(make: Any, word: str) -> None:
    with pytest.raises(OptionError, match=word):
        make()


FOUND = [RMP(), RNL(), RobustNorm(), TBC(iterations=2), FTBC(iterations=1), SNNCLP()]
"""Methods that find thresholds of their own."""


@pytest.mark.parametrize("recipe", FOUND, ids=lambda recipe: recipe.name)
def test_activations_that_are_no_numbers_are_refused_by_the_layer(recipe: Any) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()  # NaN below 0

    model = nn.Sequential(nn.Linear(6, 9), Root(), nn.ReLU(), nn.Linear(9, 3)).eval()
    with pytest.raises(CalibrationError, match="'2' gives NaN or Inf"):
        parspike.convert(model, data(20).split(5), T=4, recipe=recipe)


@pytest.mark.parametrize("recipe", FOUND, ids=lambda recipe: recipe.name)
def test_a_quantised_layer_beside_others_keeps_its_threshold(recipe: Any) -> None:
    model = dense()
    model[1] = parspike.QCFS(4, 0.7)
    first, second = parspike.convert(model, data(20).split(5), T=4, recipe=recipe).stateful().values()
    assert torch.equal(first.v_threshold, torch.full_like(first.v_threshold, 0.7))
    assert not bool((second.v_threshold == 0.7).any())


def test_methods_that_correct_with_data_ask_for_them() -> None:
    for recipe in (SNNCLP(), SNNCAP(), FTBC()):
        with pytest.raises(CalibrationError, match=recipe.name):
            parspike.convert(quantised_plan(recipe.makes), T=4, recipe=recipe)


def test_names_are_known_before_anything_is_converted() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import parspike; print(parspike.recipe_from_json('rmp'))"], capture_output=True,
        text=True, check=True, env={**os.environ, "PYTHONPATH": str(Path(parspike.__file__).parents[1])},
    )  # fmt: skip
    assert said.stdout.strip() == repr(RMP())
