"""Each method of training against a reference of a few lines, its limits, and the loop that trains them all."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from training import CPU, TEST, TRAIN, stripes

import parspike.train.methods as methods
from parspike.errors import InputError, OptionError, ParspikeWarning
from parspike.neurons import fused_matrix, optimal_shift, parallel_neuron, pc_matrix
from parspike.train import METHODS, TrainingRecipe, fit, load_recipe, load_trained, make_network, with_qcfs
from parspike.train.direct import LIF, OverTime, lif
from parspike.train.loop import _mix as mixed
from parspike.train.methods import dspike
from parspike.train.methods.dspike import DspikeSurrogate
from parspike.train.methods.glif import GLIFNeuron
from parspike.train.methods.psn import MaskedPSNNeuron, PSNNeuron, SlidingPSNNeuron
from parspike.train.methods.recdis import RecDisNeuron, distribution_penalty
from parspike.train.methods.tab import AccumulatedNorm
from parspike.train.methods.tdbn import ThresholdNorm
from parspike.train.networks import NETWORKS, ResNet
from parspike.train.surrogate import Arctan, Rectangle, Surrogate, Triangle, spike

pytestmark = pytest.mark.usefixtures("not_compiled")

DIRECT = [name for name, method in METHODS.items() if issubclass(method, methods.Direct)]
FEW, FEW_TEST = stripes(48), stripes(32, seed=1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recipe(method: str, **options: Any) -> TrainingRecipe:
    return TrainingRecipe("digits").replace(
        {"activation.method": method, "data.classes": 2, "optimiser.epochs": 3, "optimiser.batch_size": 16}
        | {name.replace("__", ".") if "__" in name else f"activation.{name}": value for name, value in options.items()}
    )


def images(count: int = 4) -> Tensor:
    return FEW.images[:count] / 255


# --------------------------------------------------------------------------- neurons, one number at a time


def spikes_of(neuron: nn.Module, T: int) -> tuple[Tensor, Tensor]:
    """Random currents (T, B, C) and the spikes that the neurons answer with."""
    current = random(T, 5, 3) * 0.8 + 0.2
    return current, neuron.double()(current.flatten(0, 1)).unflatten(0, (T, -1))


def serially(current: Tensor, step: Callable[..., tuple[float, float]]) -> Tensor:
    """The spikes of `step(u, s, x, t, channel) → (u, s)` for each neuron by itself."""
    out = torch.zeros_like(current)
    for b in range(current.shape[1]):
        for c in range(current.shape[2]):
            u = s = 0.0
            for t in range(len(current)):
                u, s = step(u, s, float(current[t, b, c]), t, c)
                out[t, b, c] = s
    return out


@pytest.mark.parametrize(
    ("method", "tau", "theta", "reaches"),
    [
        (methods.STBP(T=6), 0.25, 0.5, False),
        (methods.STBP(T=6, tau=0.6, v_threshold=0.9), 0.6, 0.9, False),
        (methods.TdBN(T=6), 0.25, 0.5, False),
        (methods.RecDisStyle(T=6), 0.25, 0.5, False),
        (methods.Dspike(T=6), 0.25, 0.5, True),
        (methods.TAB(T=6), 0.9, 1.0, False),
        (methods.TET(T=6), 0.5, 1.0, False),
    ],
    ids=lambda value: value.name if isinstance(value, methods.Method) else None,
)
def test_leaky_neurons_spike_by_spike(method, tau, theta, reaches):
    def step(u: float, s: float, x: float, t: int, c: int) -> tuple[float, float]:
        u = tau * (0.0 if s else u) + x
        return u, float(u > theta or (reaches and u == theta))

    current, spikes = spikes_of(method.neurons(8.0), 6)
    assert torch.equal(spikes, serially(current, step))
    assert 0.05 < float(spikes.detach().mean()) < 0.95
    tie = torch.full((6, 1), theta)
    assert bool(method.neurons(8.0)(tie)[0]) == reaches


def test_gradients_pass_through_the_reset():
    """Would catch: a reset that is left out of the gradient, which the published code of STBP has in it."""
    tau, theta, slope = 0.25, 0.5, Triangle(1.0)
    x = torch.tensor([[0.4, 0.7], [0.45, 0.3]], dtype=torch.float64, requires_grad=True)  # (T, neurons)
    spikes, (first, second) = lif(x, tau, theta, slope)
    spikes[1].sum().backward()
    wanted = slope(second - theta) * tau * (1 - spikes[0] - first * slope(first - theta))
    assert torch.allclose(x.grad[0], wanted)
    assert not torch.allclose(wanted, slope(second - theta) * tau * (1 - spikes[0]))


def test_gated_neurons_spike_by_spike():
    T, neuron = 6, GLIFNeuron(6, torch.Size([3])).double()
    with torch.no_grad():
        for number, parameter in enumerate(neuron.parameters()):
            parameter.copy_(random(*parameter.shape, seed=number))
    alpha, beta, gamma = neuron.gates.sigmoid().tolist()
    tau, theta, linear, reset = neuron.values.sigmoid().tolist()
    g = neuron.conductance.sigmoid().tolist()

    def step(u: float, s: float, x: float, t: int, c: int) -> tuple[float, float]:
        u = (
            (1 - alpha[c] * (1 - tau[c])) * u * (1 - gamma[c] * s) - (1 - alpha[c]) * linear[c]
            + x * (1 - beta[c] * (1 - g[t][c])) - (1 - gamma[c]) * reset[c] * s
        )  # fmt: skip
        return u, float(u > theta[c])

    current, spikes = spikes_of(neuron, T)
    assert torch.equal(spikes, serially(current, step))
    assert 0.05 < float(spikes.detach().mean()) < 0.95


def test_gated_neurons_begin_as_published_and_at_their_limit_are_leaky_ones():
    neuron = GLIFNeuron(4)
    close = {"gates": [0.55, 0.65, 0.55], "values": [0.25, 0.5, 0.0625, 0.5], "conductance": [0.5] * 4}
    for name, values in close.items():
        assert getattr(neuron, name).sigmoid().tolist() == pytest.approx(values)
    drawn = GLIFNeuron(4, torch.Size([500]), random_gates=True).gates.sigmoid()
    assert drawn.detach().min() < 0.02 < 0.98 < drawn.detach().max()
    with torch.no_grad():  # α = 1, β = 0, γ = 1
        neuron.gates.copy_(torch.tensor([math.inf, -math.inf, math.inf]))
    current, spikes = spikes_of(neuron, 4)
    assert torch.equal(spikes, LIF(4, 0.25, 0.5).double()(current.flatten(0, 1)).view_as(spikes))


def psn_reference(current: Tensor, weight: list[list[float]], bias: list[float]) -> Tensor:
    out = torch.zeros_like(current)
    T = len(current)
    for t in range(T):
        h = bias[t] + sum(weight[t][j] * current[j] for j in range(T))
        out[t] = (h >= 0).double()
    return out


def test_parallel_neurons_spike_by_spike():
    neuron = PSNNeuron(5).double()
    with torch.no_grad():
        neuron.weight.copy_(random(5, 5, seed=1))
        neuron.bias.copy_(random(5, 1, seed=2))
    current, spikes = spikes_of(neuron, 5)
    assert torch.equal(spikes, psn_reference(current, neuron.weight.tolist(), neuron.bias.flatten().tolist()))
    assert bool(SlidingPSNNeuron(2, 1)(torch.ones(2, 3)).all())  # H = x − 1 = 0 is a spike
    assert 0.05 < float(spikes.detach().mean()) < 0.95


@pytest.mark.parametrize(("masking", "order"), [(0.0, 2), (0.25, 3), (1.0, 2), (1.0, 5)])
def test_masked_neurons_spike_by_spike(masking, order):
    neuron = MaskedPSNNeuron(5, order).double()
    neuron.masking.fill_(masking)
    with torch.no_grad():
        neuron.weight.copy_(random(5, 5, seed=1))
        neuron.bias.fill_(-0.1)
    weight = [
        [w * (1.0 if j <= i <= j + order - 1 else 1 - masking) for j, w in enumerate(row)]
        for i, row in enumerate(neuron.weight.tolist())
    ]
    current, spikes = spikes_of(neuron, 5)
    assert torch.equal(spikes, psn_reference(current, weight, [-0.1] * 5))


def test_masked_neurons_see_no_later_and_no_older_step_than_their_order():
    T, order = 5, 2
    neuron = MaskedPSNNeuron(T, order).double()
    neuron.masking.fill_(1.0)
    x = random(T, 3).requires_grad_()
    for t, out in enumerate(neuron(x)):
        (seen,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        assert [bool(row.any()) for row in seen] == [t - order < j <= t for j in range(T)]
    neuron.masking.fill_(0.5)
    (seen,) = torch.autograd.grad(neuron(x)[0].sum(), x)
    assert bool(seen.any(1).all())


def test_sliding_neurons_are_masked_ones_with_shared_weights():
    T, order = 6, 3
    sliding, masked = SlidingPSNNeuron(T, order).double(), MaskedPSNNeuron(T, order).double()
    assert sliding.weight.tolist() == [0.25, 0.5, 1.0]
    with torch.no_grad():
        sliding.weight.copy_(torch.tensor([-0.5, 0.8, 1.1]))
        sliding.bias.fill_(-0.3)
        masked.bias.fill_(-0.3)
        for i in range(T):
            for j in range(T):
                masked.weight[i, j] = sliding.weight[order - 1 - (i - j)] if 0 <= i - j < order else 7.0
    masked.masking.fill_(1.0)
    current, spikes = spikes_of(sliding, T)
    assert torch.equal(spikes, spikes_of(masked, T)[1])
    before = F.pad(current, (0, 0, 0, 0, order - 1, 0))
    w = sliding.weight.tolist()
    for t in range(T):  # H(t) = Σ w_i x(t − k + 1 + i) + β
        h = sum(w[i] * before[t + i] for i in range(order)) - 0.3
        assert torch.equal(spikes[t], (h >= 0).double())


def test_parallel_neurons_begin_as_published():
    for neuron in (PSNNeuron(32), MaskedPSNNeuron(32, 3)):
        assert neuron.bias.flatten().tolist() == [-1.0] * 32
        assert 0.97 < float(neuron.weight.detach().abs().max()) * math.sqrt(32) <= 1
    assert SlidingPSNNeuron(4, 3).bias.tolist() == -1.0


def test_masking_grows_from_the_first_epoch_to_the_last():
    model = nn.Sequential(MaskedPSNNeuron(4, 2))
    grown = {}
    for epoch, epochs in ((0, 1), (0, 2), (1, 2), (1, 5)):
        methods.MaskedPSN().before_epoch(model, epoch, epochs, lambda: (images(), FEW.labels))
        grown[epoch, epochs] = float(model[0].masking)
    assert grown == {(0, 1): 1.0, (0, 2): 0.0, (1, 2): 1.0, (1, 5): 0.25}
    assert list(model[0].state_dict()) == ["weight", "bias", "masking"]  # the mask follows from the order


def test_potentials_are_not_rounded_by_mixed_precision():
    neuron = PSNNeuron(1)
    with torch.no_grad():
        neuron.weight.fill_(1.0)
    x = torch.tensor([[1 - 2**-12, 1.0]])  # alike in bfloat16, and at θ
    with torch.autocast("cpu", torch.bfloat16):
        spikes = neuron(x)
    assert spikes.tolist() == [[0.0, 1.0]]


def test_neurons_and_surrogates_say_their_numbers():
    assert repr(DspikeSurrogate(1.5)) == "DspikeSurrogate(temperature=1.5)"
    assert repr(PSNNeuron(4)) == "PSNNeuron(T=4)"
    assert repr(MaskedPSNNeuron(4, 3)) == "MaskedPSNNeuron(T=4, order=3, masking=0)"
    assert repr(SlidingPSNNeuron(4, 3)) == "SlidingPSNNeuron(T=4, order=3)"


@pytest.mark.parametrize("matrix", [pc_matrix, fused_matrix])
def test_parallel_neurons_with_parspikes_matrix_are_parspikes_neurons(matrix):
    T, theta = 5, 0.7
    neuron = PSNNeuron(T).double()
    shift = optimal_shift(theta, T)
    with torch.no_grad():
        neuron.weight.copy_(matrix(T, torch.float64))
        neuron.bias.copy_((shift - theta)[:, None])
    current = random(T, 4, 50, seed=3) * 0.6 + 0.4
    if matrix is pc_matrix:  # Λ_PC is for a current that is the same at every step
        current = current[:1].expand(T, -1, -1).contiguous()
    ours = parallel_neuron(current, matrix(T, torch.float64), theta, shift)
    assert torch.equal(neuron(current.flatten(0, 1)).view(T, 4, 50).bool(), ours)
    assert len(ours.sum(0).unique()) == T + 1


# ------------------------------------------------------------------------------------------------ surrogates


def primitive_of_dspike(b: float) -> Callable[[Tensor], Tensor]:
    return lambda d: (torch.tanh(b * d.clamp(-0.5, 0.5)) + math.tanh(b / 2)) / (2 * math.tanh(b / 2))


@pytest.mark.parametrize(
    ("surrogate", "primitive"),
    [
        (Rectangle(), lambda d: (d + 0.5).clamp(0, 1)),
        (Rectangle(0.25), lambda d: (2 * d + 0.5).clamp(0, 1)),
        (Triangle(), lambda d: torch.where(d < 0, (1 + d).clamp(min=0) ** 2 / 2, 1 - (1 - d).clamp(min=0) ** 2 / 2)),
        (Triangle(2.0), lambda d: torch.where(d < 0, (2 + d).clamp(min=0) ** 2 / 8, 1 - (2 - d).clamp(min=0) ** 2 / 8)),
        (Arctan(), lambda d: torch.atan(math.pi * d) / math.pi + 0.5),
        (Arctan(0.7), lambda d: torch.atan(math.pi * 0.35 * d) / math.pi + 0.5),
        (DspikeSurrogate(1.0).double(), primitive_of_dspike(1.0)),
        (DspikeSurrogate(4.0).double(), primitive_of_dspike(4.0)),
    ],
)
def test_a_surrogate_is_the_derivative_of_its_smooth_step(surrogate: Surrogate, primitive):
    d = random(400) * 1.2
    smooth, hard = d.clone().requires_grad_(), d.clone().requires_grad_()
    weights = random(400, seed=1)
    (primitive(smooth) * weights).sum().backward()
    s = spike(hard, surrogate)
    (s * weights).sum().backward()
    assert torch.equal(s.detach(), (d > 0).double())
    assert torch.allclose(hard.grad, smooth.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", DIRECT)
def test_gradients_reach_every_step_and_every_parameter(method):
    made = recipe(method, T=3)
    model = make_network(made, example=images())
    output = made.activation.outputs(model, images())
    assert output.shape == (3, 4, 2)
    assert torch.equal(output.mean(0), model(images()))
    loss = made.activation.loss(output, torch.tensor([0, 1, 1, 0]), 0.0) + made.activation.penalty(model)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert bool(model.network.conv1.weight.grad.any())
    groups = made.activation.groups(model)
    assert sorted(id(p) for group in groups for p in group.parameters) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize(
    ("method", "surrogate"),
    [
        (methods.STBP(T=1), lambda d: (d.abs() < 0.5).double()),
        (methods.TdBN(T=1), lambda d: (d.abs() < 0.5).double()),
        (methods.RecDisStyle(T=1), lambda d: (d.abs() < 0.5).double()),
        (methods.TET(T=1), lambda d: (1 - d.abs()).clamp(min=0)),
        (methods.TET(T=1, width=2.0), lambda d: (2 - d.abs()).clamp(min=0) / 4),
        (methods.TAB(T=1), lambda d: (1 - d.abs()).clamp(min=0)),
        (methods.Dspike(T=1), lambda d: (1 - torch.tanh(d) ** 2) / (2 * math.tanh(0.5)) * (d.abs() <= 0.5)),
    ],
    ids=lambda value: value.name if isinstance(value, methods.Method) else None,
)
def test_each_method_has_the_surrogate_of_its_paper(method, surrogate):
    u = torch.linspace(-1, 3, 81, dtype=torch.float64)[:, None].requires_grad_()
    method.neurons(8.0).double()(u).sum().backward()
    assert torch.allclose(u.grad, surrogate(u.detach() - method.v_threshold), atol=1e-7)


def test_the_surrogate_of_dspike_ends_half_a_unit_from_the_threshold():
    edge, beyond = DspikeSurrogate(2.0)(torch.tensor([0.5, 0.5001])).tolist()
    assert edge == pytest.approx(2 * (1 - math.tanh(1) ** 2) / (2 * math.tanh(1)), rel=1e-6)
    assert beyond == 0


def test_the_temperature_is_that_whose_gradient_is_nearest():
    """Against differences and gradients that are computed here, for all weights of the first layer."""
    made = recipe("dspike", T=2, probes=0, change=0.9, epsilon=0.1)
    model, x, y = make_network(made, example=images()), images(16), FEW.labels[:16]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before_epoch = lambda: made.activation.before_epoch(model, 0, 3, lambda: (x, y))  # noqa: E731
    before_epoch()
    temperatures = {float(m.temperature) for m in model.modules() if isinstance(m, DspikeSurrogate)}
    assert len(temperatures) == 1
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert all(name.endswith("temperature") for name in changed)  # neither weights nor running statistics

    def gradient(b: float) -> Tensor:
        copy = make_network(made.replace({"activation.temperature": b}), example=images())
        (F.cross_entropy(copy(x), y)).backward()
        return copy.network.conv1.weight.grad.flatten()

    one = make_network(made, example=images())
    whole = one.network.conv1.weight.detach().clone()

    def loss_at(place: int, change: float) -> float:
        with torch.no_grad():
            one.network.conv1.weight.copy_(whole)
            one.network.conv1.weight.view(-1)[place] += change
            return float(F.cross_entropy(one(x), y))  # in training: statistics of the batch

    wanted = torch.tensor([(loss_at(i, 0.1) - loss_at(i, -0.1)) / 0.2 for i in range(144)])
    near = {b: float(F.cosine_similarity(gradient(b), wanted, dim=0)) for b in (0.1, 1.0, 1.9)}
    assert temperatures.pop() == pytest.approx(max(near, key=near.__getitem__))
    assert len({round(value, 4) for value in near.values()}) == 3


@pytest.mark.parametrize(("probes", "places"), [(7, [0, 24, 48, 72, 95, 119, 143]), (200, list(range(144)))])
def test_the_temperature_is_probed_at_weights_spread_evenly_over_the_first_layer(monkeypatch, probes, places):
    made = recipe("dspike", T=2, probes=probes)
    model, x, y = make_network(made, example=images()), images(16), FEW.labels[:16]
    asked = []

    def differences(weight, found, epsilon, loss):
        asked.append((weight is model.network.conv1.weight, found.tolist(), float(loss().detach())))
        return torch.ones(len(found))

    monkeypatch.setattr(dspike, "_differences", differences)
    made.activation.before_epoch(model, 0, 3, lambda: (x, y))
    assert not any(module._forward_pre_hooks for module in model.modules())
    ((first, found, loss),) = asked
    assert first
    assert found == places
    assert loss == pytest.approx(float(F.cross_entropy(model(x), y).detach()))  # no smoothing


@pytest.mark.parametrize(
    ("change", "like", "found"), [(0.9, 0.1, 0.1), (0.9, 1.0, 1.0), (0.9, 1.9, 1.9), (1.5, 0.5, 1.0)]
)
def test_the_temperature_of_the_nearest_gradient_is_taken_of_those_above_0(monkeypatch, change, like, found):
    """−0.5, 1.5 less than 1, would have the gradient of 0.5."""
    made = recipe("dspike", T=2, probes=0, change=change)
    x, y = images(16), FEW.labels[:16]
    other = make_network(made.replace({"activation.temperature": like}), example=images())
    F.cross_entropy(other(x), y).backward()
    monkeypatch.setattr(dspike, "_differences", lambda *given: other.network.conv1.weight.grad.flatten())
    model = make_network(made, example=images())
    made.activation.before_epoch(model, 0, 3, lambda: (x, y))
    (temperature,) = {float(m.temperature) for m in model.modules() if isinstance(m, DspikeSurrogate)}
    assert temperature == pytest.approx(found)


def test_central_differences_are_derivatives_and_leave_the_weight_as_it_was():
    weight = random(2, 3).requires_grad_()
    before = weight.detach().clone()
    found = dspike._differences(weight, torch.tensor([0, 4, 5]), 0.1, lambda: (weight**3).sum())
    wanted = 3 * before.flatten()[[0, 4, 5]] ** 2 + 0.1**2  # of a cube, and their third derivative's share
    assert close(found, wanted)
    assert torch.equal(weight, before)


def test_every_probe_sees_the_same_dropout(monkeypatch):
    method = methods.Dspike(T=2)
    base = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    losses = []

    def differences(weight, found, epsilon, loss):
        losses.extend((float(loss().detach()), float(loss().detach())))
        return torch.ones(len(found))

    monkeypatch.setattr(dspike, "_differences", differences)
    network = method.network(base, images()).train()
    method.before_epoch(network, 0, 3, lambda: (torch.rand(16, 1, 8, 8) * 4, FEW.labels[:16]))
    assert losses[0] == losses[1]


def test_a_temperature_is_not_searched_where_weights_are_divided_over_devices(monkeypatch):
    class Divided(nn.Parameter):
        """In place of what fsdp makes of a parameter."""

    model = make_network(recipe("dspike"), example=images())
    model.network.conv2.weight = Divided(model.network.conv2.weight.detach())
    monkeypatch.setattr(dspike, "DTensor", Divided)
    with pytest.raises(OptionError, match="fsdp divides: take ddp"):
        methods.Dspike().before_epoch(model, 0, 3, lambda: (images(16), FEW.labels[:16]))


# ------------------------------------------------------------------------------------------- batch norms


def fresh_norm(channels: int = 3) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).double()
    with torch.no_grad():
        norm.weight.copy_(random(channels, seed=4))
        norm.bias.copy_(random(channels, seed=5))
        norm.running_mean.copy_(random(channels, seed=6))
        norm.running_var.copy_(random(channels, seed=7).abs() + 0.5)
    return norm


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_threshold_batch_norm_is_batch_norm_over_time_and_batch_times_the_threshold(training):
    x = random(4 * 5, 3, 2, 2)
    ours, plain = ThresholdNorm(fresh_norm(), 1.0).double().train(training), fresh_norm().train(training)
    assert close(ours(x), plain(x))
    scaled, norm = ThresholdNorm(fresh_norm(), 0.3).double().train(training), fresh_norm()
    axes = (0, 2, 3)
    mean = x.mean(axes) if training else norm.running_mean
    var = x.var(axes, correction=0) if training else norm.running_var
    normal = (x - mean.view(-1, 1, 1)) / (var + norm.eps).sqrt().view(-1, 1, 1)
    wanted = norm.weight.view(-1, 1, 1) * 0.3 * normal + norm.bias.view(-1, 1, 1)
    assert torch.allclose(scaled(x), wanted, atol=1e-7)  # the factor is kept in float32
    without = ThresholdNorm(nn.BatchNorm2d(3, affine=False).double(), 0.5).double()
    assert close(without(x), nn.BatchNorm2d(3, affine=False).double()(x) * 0.5)


def test_batch_norms_before_an_addition_are_scaled_down():
    """The second norm of each residual block and that of its shortcut; also where a residual adds in place."""
    model = methods.TdBN(v_threshold=0.5).network(ResNet(2, blocks=(1, 1, 1), width=4), torch.rand(2, 3, 8, 8))
    scales = {
        n.removeprefix("network."): float(m.scale) for n, m in model.named_modules() if isinstance(m, ThresholdNorm)
    }
    assert len(scales) == 9
    for name, scale in scales.items():
        before_addition = name.endswith(("bn2", "downsample.1"))
        assert scale == pytest.approx(0.5 / math.sqrt(2) if before_addition else 0.5), name


@pytest.mark.parametrize("method", ["tdbn", "glif"])
def test_looking_for_additions_leaves_running_statistics_as_they_were(method):
    made = recipe(method, T=2)
    base = ResNet(2, blocks=(1, 1, 1), width=4).train()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = make_network(made, base, torch.rand(2, 3, 8, 8))
    norms = [module.norm for module in model.modules() if isinstance(module, ThresholdNorm)]
    assert all(int(norm.num_batches_tracked) == 0 for norm in norms)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert model.training


@pytest.mark.parametrize("add", [torch.add, Tensor.add_, lambda x, y: x + y, lambda x, y: y + x, lambda x, y: 2.0 + x])
def test_an_addition_is_found_however_it_is_written(add):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(add(self.one(x), x)) * F.relu(self.two(x))

    model = methods.TdBN(v_threshold=1.0).network(Two(), torch.rand(4, 3))
    scales = {name[-3:]: float(m.scale) for name, m in model.named_modules() if isinstance(m, ThresholdNorm)}
    assert scales == pytest.approx({"one": 1 / math.sqrt(2), "two": 1.0})


def test_accumulated_batch_norm_at_one_step_is_batch_norm():
    x, ours, plain = random(6, 3, 2, 2), AccumulatedNorm(fresh_norm(), 1).double(), fresh_norm()
    for _ in range(2):
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [norm(value) for norm, value in zip((ours, plain), inputs, strict=True)]
        assert close(*outputs)
        for output in outputs:
            (output * random(6, 3, 2, 2, seed=9)).sum().backward()
        assert close(inputs[0].grad, inputs[1].grad)
        assert close(ours.running_mean[0], plain.running_mean)
        assert close(ours.running_var[0], plain.running_var)
    assert close(ours.weight.grad[0], plain.weight.grad)
    assert close(ours.eval()(x), plain.eval()(x))


def test_accumulated_batch_norm_normalises_by_all_steps_so_far():
    T, x = 3, random(3, 5, 3, 2, 2) * torch.tensor([1.0, 3.0, 0.2]).view(3, 1, 1, 1, 1).double() + 1
    ours = AccumulatedNorm(fresh_norm(), T).double()
    with torch.no_grad():
        ours.step_scale.copy_(torch.tensor([1.0, -0.5, 2.0]))
        ours.weight[1] *= 3
        ours.bias[2] += 1
    got = ours(x.flatten(0, 1)).unflatten(0, (T, -1))
    for t in range(T):
        norm = fresh_norm()
        with torch.no_grad():
            norm.weight.copy_(ours.weight[t])
            norm.bias.copy_(ours.bias[t])
        so_far = norm(x[: t + 1].flatten(0, 1)).unflatten(0, (t + 1, -1))
        assert close(got[t], float(ours.step_scale[t]) ** 2 * so_far[t])
        assert close(ours.running_mean[t], norm.running_mean)
        assert close(ours.running_var[t], norm.running_var)
        assert close(
            ours.eval()(x.flatten(0, 1)).unflatten(0, (T, -1))[t], float(ours.step_scale[t]) ** 2 * norm.eval()(x[t])
        )
        ours.train()
    with pytest.raises(InputError, match="more than one value a channel"):
        AccumulatedNorm(nn.BatchNorm1d(3), 2)(torch.rand(2, 3))


# ------------------------------------------------------------------------------------------------- losses


def test_the_loss_of_each_step():
    output, y = random(4, 6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    method = methods.TET(T=4, regularisation=0.3, target=0.8)
    each = [F.cross_entropy(step, y, label_smoothing=0.1) for step in output]
    wanted = 0.7 * sum(each) / 4 + 0.3 * sum(float(o - 0.8) ** 2 for o in output.flatten()) / output.numel()
    assert close(method.loss(output, y, 0.1), wanted)
    alone = methods.TET(T=1, regularisation=0.0)
    assert close(alone.loss(output[:1], y, 0.0), F.cross_entropy(output[0], y))
    mean = methods.PSN(T=4)
    assert close(mean.loss(output, y, 0.0), F.cross_entropy(output.mean(0), y))
    assert not close(mean.loss(output, y, 0.0), methods.TET(T=4, regularisation=0.0).loss(output, y, 0.0))


def test_the_penalty_on_potentials():
    d = random(40, 2, 3) * torch.tensor([0.2, 3.0]).view(2, 1).double() + torch.tensor([0.1, 5.0]).view(2, 1).double()
    total = 0.0
    for c in range(2):
        values = d[:, c].flatten()
        m, sd = abs(float(values.mean())), float(values.std(correction=0))
        total += max(0, m - 0.5 * sd) ** 2 + max(0, 1.5 * sd - 0.5) ** 2 + max(0, 0.5 - m - 2 * sd) ** 2
    assert float(distribution_penalty(d, (0.5, 1.5, 2.0))) == pytest.approx(total / 2, rel=1e-5)

    method = methods.RecDisStyle(T=2, weight=0.5)
    network = nn.Sequential(nn.Linear(4, 3), method.neurons(8.0), nn.Linear(3, 3), method.neurons(8.0))
    x = torch.rand(6, 4)
    network.eval()(x)
    assert method.penalty(network) == 0.0
    network.train()(x)
    first = [module.noted[0].detach() for module in network if isinstance(module, RecDisNeuron)]
    assert float(method.penalty(network)) == pytest.approx(0.5 * float(sum(first)), rel=1e-6)
    assert method.penalty(network) == 0.0  # what was taken is not held any longer
    potentials = network[0](x).view(2, 3, 3)  # of the first layer, by hand
    spikes = (potentials[0] > 0.5).float()
    u = torch.stack([potentials[0], 0.25 * potentials[0] * (1 - spikes) + potentials[1]]).flatten(0, 1)
    assert float(first[0]) == pytest.approx(float(distribution_penalty(u - 0.5, (1.0, 1.0, 1.0))), rel=1e-5)


# --------------------------------------------------------------------------------------------------- the loop


class KilledError(Exception):
    pass


def train(folder: Path, made: TrainingRecipe, kill: int = 0, **options: Any) -> Any:
    def progress(what: str, done: int, total: int) -> None:
        if done == kill:
            raise KilledError

    model = make_network(made, example=images())
    return fit(made, model, FEW, FEW_TEST, folder, devices=CPU, progress=progress, **options)


# Chance in the images too, which the search of the temperature must meet again in a resumed run.
STRONG = {"dspike": {"change": 0.5, "probes": 8, "augment__crop_padding": 1, "augment__flip": True}}


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_same_weights_which_load(tmp_path, method):
    pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")
    made = recipe(method, optimiser__accumulate=2, **STRONG.get(method, {}))
    whole = train(tmp_path / "whole", made)
    weights = load_file(whole.weights)
    for kill in (4, 6):  # from the checkpoint of step 3, before the second epoch begins, and of step 5 within it
        folder = tmp_path / f"killed-{kill}"
        with pytest.raises(KilledError):
            train(folder, made, kill, save_every=0.0)
        other = load_file(train(folder, made, resume=True).weights)
        assert weights.keys() == other.keys()
        assert all(torch.equal(weights[name], other[name]) for name in weights), kill
    model = make_network(made, example=images())
    start = model.state_dict()
    (conv1,) = (name for name in weights if name.endswith("conv1.weight"))
    assert not torch.equal(start[conv1], weights[conv1])
    model.load_state_dict(weights)
    loaded = load_trained(tmp_path / "whole")  # without an example
    x = images(32)
    assert torch.equal(loaded(x), model.eval()(x))
    assert loaded(x).shape == (32, 2)
    right = float((loaded(FEW_TEST.images / 255).argmax(1) == FEW_TEST.labels).float().mean())
    assert right == pytest.approx(whole.accuracy)


def test_what_changes_from_epoch_to_epoch_is_in_the_weights(tmp_path):
    pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")
    masked = load_file(train(tmp_path / "masked", recipe("masked-psn"), save_every=1e9).weights)
    assert masked["network.act1.masking"] == masked["network.act2.masking"] == 1.0
    searched = load_file(train(tmp_path / "dspike", recipe("dspike", change=0.4, probes=8)).weights)
    steps = (float(searched["network.act1.surrogate.temperature"]) - 1) / 0.4
    assert steps == pytest.approx(round(steps), abs=1e-5)
    assert abs(round(steps)) <= 3
    model, seen = make_network(recipe("masked-psn"), example=images()), []
    for epoch in range(5):
        methods.MaskedPSN().before_epoch(model, epoch, 5, lambda: (images(), FEW.labels))
        seen.append(float(model.network.act1.masking))
    assert seen == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(("method", "option"), [("recdis-style", "weight"), ("tet", "regularisation")])
def test_the_loop_trains_with_the_loss_and_the_penalty_of_the_method(tmp_path, method, option):
    pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")
    first = []
    for value in (0.0, 0.5):
        made = recipe(method, optimiser__epochs=1, optimiser__batch_size=48, **{option: value})
        train(tmp_path / str(value), made)
        (row,) = csv.DictReader((tmp_path / str(value) / "log.csv").open())
        first.append(float(row["loss"]))  # of the only step, so of the same network on the same images
    made = recipe(method, **{option: 0.5})
    model = make_network(made, example=images())
    order = torch.randperm(48, generator=torch.Generator().manual_seed(mixed(0, 0)))
    output = made.activation.outputs(model, images(48)[order])
    wanted = made.activation.loss(output, FEW.labels[order], 0.0) + made.activation.penalty(model)
    assert first[1] == pytest.approx(float(wanted), rel=1e-4)
    assert abs(first[0] - first[1]) > 1e-3


def test_gates_have_a_learning_rate_of_their_own_and_no_decay(tmp_path):
    pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")
    made = recipe("glif", optimiser__epochs=2, optimiser__weight_decay=0.01, gate_rate=0.2)
    train(tmp_path, made)
    rest, gates, values = torch.load(tmp_path / "last.ckpt", weights_only=True)["optimiser"]["param_groups"]
    assert (rest["weight_decay"], gates["weight_decay"], values["weight_decay"]) == (0.01, 0, 0)
    assert gates["lr"] == pytest.approx(0.2 * rest["lr"])
    assert values["lr"] == rest["lr"] > 0
    assert (len(gates["params"]), len(values["params"])) == (2, 4)


@pytest.mark.parametrize("method", DIRECT)
def test_mixed_precision_trains_with_potentials_in_full_precision(tmp_path, method):
    pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")
    made = recipe(method, optimiser__epochs=1).replace({"precision": "bf16-mixed"})
    result = train(tmp_path, made)
    assert all(torch.isfinite(value).all() for value in load_file(result.weights).values())
    neuron = made.activation.neurons(8.0)
    half = (random(8, 5000) * 0.7 + 0.5).bfloat16()  # many, of which rounding would turn some
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        spikes = neuron(half)
    assert spikes.dtype == torch.bfloat16
    assert torch.equal(spikes.float(), neuron(half.float()))


@pytest.mark.parametrize("method", DIRECT)
def test_every_method_takes_a_residual_network(method):
    made = TrainingRecipe("resnet20-cifar").replace({"activation.method": method, "activation.T": 2})
    x = torch.rand(2, 3, 8, 8)
    model = make_network(made, example=x)
    made.activation.outputs(model, x).sum().backward()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    restored = made.activation.restored(NETWORKS["resnet20-cifar"](10), None, shapes)
    assert {name: value.shape for name, value in restored.state_dict().items()} == shapes
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored.eval()(x), model.eval()(x))


# -------------------------------------------------------------------------------------------- recipes and options


def test_options_are_a_table_of_their_method():
    made = load_recipe("digits")
    assert made.activation == methods.QCFSMethod(levels=4)
    psn = made.replace({"activation.T": 6, "activation.method": "psn"})  # in any order
    assert psn.activation == methods.PSN(T=6)
    assert psn.replace({"activation.T": 5, "optimiser.epochs": 2}).activation == methods.PSN(T=5)
    assert psn.replace({"activation.method": "tet"}).activation == methods.TET()
    assert psn.to_json()["activation"] == {"method": "psn", "T": 6}
    assert made.differences(psn) == [
        "activation.method: 'qcfs' and 'psn'", "activation.levels: 4 and '(none)'",
        "activation.v_threshold: 8.0 and '(none)'", "activation.per_channel: False and '(none)'",
        "activation.window: 'inner' and '(none)'", "activation.pool: 'keep' and '(none)'",
        "activation.T: '(none)' and 6",
    ]  # fmt: skip
    for name, method in METHODS.items():
        one = TrainingRecipe("digits").replace({"activation.method": name})
        assert one.activation == method()
        assert TrainingRecipe.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_recipes_of_earlier_versions_mean_what_they_meant(tmp_path, recwarn):
    earlier = {"levels": 4, "v_threshold": 8.0, "per_channel": False, "window": "outer", "pool": "keep", "T": 3}

    def read(**activation: Any) -> methods.Method:
        return TrainingRecipe.from_json({"network": "digits", "activation": activation}).activation

    assert read(method="qcfs", **earlier) == methods.QCFSMethod(levels=4, window="outer")
    assert read(**earlier) == methods.QCFSMethod(levels=4, window="outer")
    assert read(method="relu", **earlier) == methods.ReLUMethod()
    assert read(method="stbp", **earlier) == methods.STBP(T=3)  # whose θ was 0.5, whatever the table said
    assert not recwarn.list
    with pytest.warns(ParspikeWarning, match="method stbp has no levels: left out"):
        assert read(method="stbp", levels=4, T=2) == methods.STBP(T=2)
    assert read(method="stbp", v_threshold=0.7) == methods.STBP(v_threshold=0.7)


def test_thresholds_a_channel_load_without_an_example(tmp_path):
    pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")
    made = recipe("qcfs", per_channel=True, v_threshold="max", optimiser__epochs=1)
    train(tmp_path, made)
    loaded = load_trained(tmp_path)
    assert loaded.act1.v_threshold.shape == (16, 1, 1)
    model = make_network(made, example=images())
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(loaded(images()), model.eval()(images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "pns"}, r"'pns' \(did you mean .*'psn'.*\): choose one of qcfs, relu, stbp, tdbn"),
        ({"method": 3}, "activation.method = 3: choose one of"),
        ({"method": "psn", "order": 2}, r"of method psn: unknown order; known are T"),
        ({"method": "masked-psn", "ordr": 2}, r"unknown ordr; known are T, order \(did you mean 'order'\?\)"),
        ({"method": "masked-psn", "order": 5}, "activation.order = 5: there are only T = 4 steps"),
        ({"method": "sliding-psn", "order": 0}, "activation.order = 0: it must be at least 1"),
        ({"method": "psn", "T": 0}, "activation.T = 0: it must be at least 1"),
        ({"method": "tet", "tau": 1.5}, "activation.tau = 1.5: it must lie between 0 and 1"),
        ({"method": "tet", "regularisation": -1}, "activation.regularisation = -1.0"),
        ({"method": "tet", "regularisation": 1.5}, "activation.regularisation = 1.5"),
        ({"method": "tet", "width": 0}, "activation.width = 0.0: it must be above 0"),
        ({"method": "tab", "v_threshold": 0}, "activation.v_threshold = 0.0: it must be above 0"),
        ({"method": "glif", "gate_rate": 0}, "activation.gate_rate = 0.0: it must be above 0"),
        ({"method": "dspike", "probes": -1}, "activation.probes = -1: it must be at least 0"),
        ({"method": "dspike", "temperature": 0}, "activation.temperature = 0.0: it must be above 0"),
        ({"method": "dspike", "change": -1}, "activation.change = -1.0: it must be at least 0"),
        ({"method": "dspike", "epsilon": 0}, "activation.epsilon = 0.0: it must be above 0"),
        ({"method": "dspike", "temperature": "hot"}, "temperature = 'hot': expected a number"),
        ({"method": "recdis-style", "spread": [1.0, 2.0]}, "spread"),
        ({"method": "stbp", "tau": float("nan")}, "activation.tau = nan"),
        ({"method": "qcfs", "levels": 0}, "activation.levels = 0"),
        ({"method": "relu", "T_": 2}, "of method relu: unknown T_"),
    ],
)
def test_what_is_wrong_with_options_is_said(options, message):
    with pytest.raises(OptionError, match=message):
        TrainingRecipe.from_json({"network": "digits", "activation": options})


def test_what_a_method_cannot_do_without():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    for name in ("tdbn", "tab"):
        with pytest.raises(InputError, match=rf"method {name}: the network has no batch norm; .*method=stbp"):
            make_network(recipe(name), plain, images())
    for name in ("tdbn", "glif"):
        with pytest.raises(OptionError, match=rf"method {name} needs example="):
            make_network(recipe(name))
    averaging = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, momentum=None), nn.ReLU(), nn.Flatten())
    with pytest.raises(InputError, match=r"the batch norm 'network\.1' has no running statistics"):
        make_network(recipe("tab"), averaging, images())
    with pytest.raises(InputError, match="no multiple of T = 4"):
        PSNNeuron(4)(torch.rand(6, 2))
    with pytest.raises(InputError, match="holds QCFS"):
        make_network(recipe("psn"), with_qcfs(plain), images())


@pytest.mark.parametrize("method", ["psn", "dspike"])
def test_a_network_that_gives_no_logits_at_each_step_is_refused(tmp_path, method):
    pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")
    base, made = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), recipe(method)
    with pytest.raises(InputError, match=r"gives \(4, 16, 2, 6, 6\); expected logits \(T, B, 2\)"):
        fit(made, make_network(made, base, images()), TRAIN, TEST, tmp_path, devices=CPU)


@pytest.mark.parametrize("method", DIRECT)
def test_networks_in_double_precision_stay_so(method):
    """As the methods' parameters are in float32 at first, a product of the two would be an error of torch's."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double()
    made = recipe(method, T=3)
    model = make_network(made, base, images().double()).eval()
    assert model(images().double()).dtype == torch.float64


@pytest.mark.parametrize("method", ["stbp", "recdis-style", "tet", "dspike", "psn"])
def test_an_activation_may_have_one_number_a_sample(method):
    class Price(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(64, 1), nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.relu(self.one(x.flatten(1)).squeeze(1))[:, None])

    made = recipe(method, T=3)
    model = make_network(made, Price(), images()).train()
    output = made.activation.outputs(model, images())
    assert output.shape == (3, 4, 2)
    loss = made.activation.loss(output, torch.tensor([0, 1, 1, 0]), 0.0) + made.activation.penalty(model)
    assert bool(loss.isfinite())


def test_the_gradient_of_the_penalty_is_finite_where_all_potentials_are_equal():
    d = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    distribution_penalty(d, (1.0, 1.0, 1.0)).backward()
    assert bool(d.grad.isfinite().all())


def test_the_penalty_of_one_channel():
    d = random(50)
    assert float(distribution_penalty(d, (1.0, 1.0, 1.0))) == float(distribution_penalty(d[:, None], (1.0, 1.0, 1.0)))


@pytest.mark.parametrize("method", [name for name in DIRECT if name not in ("tdbn", "tab", "glif")])
def test_samples_along_another_dimension_are_refused(method):
    """Neurons would take places of a sequence for time-steps, wherever T divides their number."""

    class Second(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.relu(self.one(x[:, 0].transpose(0, 1)))).mean(0)

    with pytest.raises(InputError, match=r"relu at .* has shape \(8, 3, 5\) for 3 samples.*batch_first=True"):
        make_network(recipe(method), Second(), images(3))


@pytest.mark.parametrize("method", DIRECT)
def test_a_network_with_two_outputs_is_refused(method):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm, self.two = nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a = F.relu(self.norm(self.one(x.flatten(1))))
            return self.two(a), a

    with pytest.raises(InputError, match=r"gives a tuple; direct training needs one tensor"):
        make_network(recipe(method), Two(), images())(images())


def test_a_quantised_network_with_two_outputs_is_refused(tmp_path):
    pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.act, self.two = nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a = self.act(self.one(x.flatten(1)))
            return self.two(a), a

    with pytest.raises(InputError, match=r"gives a tuple; expected logits \(B, 2\)"):
        fit(recipe("qcfs"), make_network(recipe("qcfs"), Two(), images()), FEW, FEW_TEST, tmp_path, devices=CPU)


def test_the_temperature_needs_trained_weights():
    made = recipe("dspike", T=2, probes=4)
    model = make_network(made, example=images())
    model.network.conv1.weight.requires_grad_(False)
    made.activation.before_epoch(model, 0, 3, lambda: (images(), FEW.labels[:4]))  # those of the next layer
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(InputError, match="no convolution or linear layer whose weights are trained"):
        made.activation.before_epoch(model, 0, 3, lambda: (images(), FEW.labels[:4]))


def test_functions_in_the_code_become_neurons_too():
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(108, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.bn(self.conv(x))).flatten(1))

    for name in DIRECT:
        model = make_network(recipe(name), Functions(), images())
        assert isinstance(model, OverTime)
        assert len(model.network.neurons) == 1
        assert model(images()).shape == (4, 2)


def test_a_method_of_the_users_own(tmp_path):
    """A class in one file outside the package is a method by its name."""
    pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")

    @dataclass(frozen=True)
    class Binary(methods.Direct):
        name: ClassVar[str] = "binary-of-a-test"
        level: float = 0.3

        def neurons(self, start: float | Tensor) -> nn.Module:
            return LIF(self.T, 0.0, self.level, Triangle())

    try:
        made = recipe("binary-of-a-test", level=0.4, optimiser__epochs=1)
        assert made.activation == replace(Binary(), level=0.4)
        train(tmp_path, made)
        assert load_trained(tmp_path)(images()).shape == (4, 2)
    finally:
        del METHODS["binary-of-a-test"]
