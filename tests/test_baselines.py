"""The published methods: laws that each of them keeps, and their limiting cases."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import parspike
from parspike.baselines import Baseline, BNRecal, MaxNorm
from parspike.calibrate import RECIPES
from parspike.errors import CalibrationError, OptionError, ParspikeWarning
from parspike.neurons import IntegrateFire, Parallel, Simulation, SpikingLayer
from parspike.train import with_qcfs

METHODS = [recipe for recipe in RECIPES.values() if issubclass(recipe, Baseline)]
T = 8


def images(number: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(number, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    """Convolution, batch norm, shortcut, average pool; ReLU."""
    torch.manual_seed(0)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
            self.two, self.head = nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5 * 9, 4)
            self.first, self.second = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(self.norm(self.one(x)))
            x = self.second(self.two(x) + x)
            return self.head(nn.functional.avg_pool2d(x, 2).flatten(1))

    made = Small().train()
    with torch.no_grad():
        made(images(64, seed=1))
    return made.eval()


def model_for(method: type[Baseline], levels: int = 4) -> nn.Module:
    if not method.needs_qcfs:
        return network()
    return with_qcfs(network(), levels, v_threshold="max", example=images(), fused=False).eval()


@cache
def converted(method: type[Baseline], T: int = T, levels: int = 4, **options: Any) -> tuple[Any, parspike.SNN]:
    """A network and its conversion, which no test changes."""
    model = model_for(method, levels)
    return model, parspike.convert(model, images().split(8), T=T, recipe=method(**options))


def neurons(snn: parspike.SNN) -> list[SpikingLayer]:
    return list(snn.neurons().values())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
class TestEveryMethod:
    def test_comes_near_the_network_with_many_steps(self, method: type[Baseline]) -> None:
        # The weighted code has as many levels in fewer steps. Of a QCFS network, many steps come near its clipped ReLU,
        # and so does a network of as many levels.
        many = 10 if isinstance(method.makes, Parallel) and method.makes.code == "weighted" else 128
        model, snn = converted(method, T=many, levels=128)
        x = images(8, seed=2)
        assert (snn(x) - model(x)).norm() < 0.15 * model(x).norm()

    def test_runs_the_same_in_any_blocks_of_steps(self, method: type[Baseline]) -> None:
        snn = converted(method)[1]
        if not snn.over_time:
            pytest.skip("its neurons have no state")
        x = images(4, seed=2)
        least = max(neuron.lookahead for neuron in snn.stateful().values())
        runs = [snn.run(x, record=True, chunk=chunk) for chunk in (least, T)]
        assert torch.allclose(runs[0].logits, runs[1].logits, atol=1e-5)
        assert all(torch.equal(runs[0].spikes[layer], runs[1].spikes[layer]) for layer in runs[0].spikes)

    def test_is_saved_and_loaded(self, method: type[Baseline], tmp_path: Any) -> None:
        snn = converted(method)[1]
        x = images(4, seed=2)
        loaded = parspike.load(snn.save(tmp_path / "net.parspike"))
        assert torch.equal(loaded(x), snn(x))
        assert loaded.simulation == snn.simulation

    def test_is_measured(self, method: type[Baseline]) -> None:
        model, snn = converted(method)
        report = parspike.measure(snn, images(8, seed=2).split(4), against=model)
        sent = sum(float(s.sum()) for s in snn.run(images(8, seed=2), record=True).sent.values()) / 8
        spikes = sum(row.spikes for row in report.rows)
        assert spikes >= sent * 0.999 if snn.simulation.probe else spikes == pytest.approx(sent)
        error = (snn(images(8, seed=2)) - model(images(8, seed=2))).norm() / model(images(8, seed=2)).norm()
        assert report.error == pytest.approx(float(error), rel=1e-3, abs=1e-5)

    def test_the_levels_are_those_that_it_can_send(self, method: type[Baseline]) -> None:
        snn = converted(method)[1]
        for layer, count in snn.run(images(24), record=True).counts.items():
            neuron: Any = next(n for name, n in snn.neurons().items() if snn.graph.by_name[name].layer == layer)
            levels = neuron.levels_in(T) if snn.over_time else snn.counting()[next(iter(snn.counting()))].levels
            assert 0 < int(count.max()) <= levels

    def test_no_output_exceeds_the_bound_of_relu6(self, method: type[Baseline]) -> None:
        """Currents far above the bound, and batches of one image, of which a few have activations far below it."""
        if method.needs_qcfs:
            pytest.skip("its network has no ReLU6")
        if method is BNRecal:
            pytest.skip("its amplitudes are those of Algorithm 1, which corrects the mean output")
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU6(), nn.Linear(8, 3)).eval()
        model[0].weight.data *= 8
        x, steps = torch.randn(48, 6), 8 if isinstance(method.makes, Parallel) else 64
        for size in (1, 16):
            snn = parspike.convert(model, x.split(size), T=steps, recipe=method())
            neuron: Any = next(iter(snn.neurons().values()))
            z = torch.full((1, 8), 60.0)
            sent = neuron(z) if not snn.over_time else neuron.advance(None, z.expand(steps, 1, 8))[1].mean(0)
            assert float(sent.max()) <= 6.0001

    def test_takes_samples_along_another_dimension(self, method: type[Baseline], tmp_path: Any) -> None:
        class Sequence(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two, self.act = nn.Linear(4, 6), nn.Linear(6, 3), nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                return self.two(self.act(self.one(x.transpose(0, 1)))).mean(0)

        torch.manual_seed(0)
        model, x = Sequence().eval(), torch.randn(21, 3, 4)
        if method.needs_qcfs:
            model = with_qcfs(model, 4, v_threshold="max", example=x, fused=False).eval()
        snn = parspike.convert(model, [x[:16], x[16:]], T=T, recipe=method())
        loaded = parspike.load(snn.save(tmp_path / "net.parspike"))
        for number in (1, 7):
            assert torch.equal(loaded(x[:number]), snn(x[:number]))
            assert snn(x[:number]).shape == (number, 3)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
    def test_computes_in_the_precision_of_the_network(self, method: type[Baseline], dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        x = torch.randn(12, 5)
        if method.needs_qcfs:
            model = with_qcfs(model, 4, v_threshold="max", example=x, fused=False).eval()
        snn = parspike.convert(model.to(dtype), x.to(dtype), T=4, recipe=method())
        assert snn(x.to(dtype)).dtype == dtype
        assert all(value.dtype == dtype for value in neurons(snn)[0].state_dict().values())

    def test_a_network_without_neurons_is_no_fault(self, method: type[Baseline]) -> None:
        """Its only activation is its output, so nothing looks at steps and nothing is waited for."""
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
        x = torch.randn(9, 4)
        if method.needs_qcfs:
            model = with_qcfs(model, 4, v_threshold="max", example=x, fused=False).eval()
        with pytest.warns(ParspikeWarning, match="no activation that becomes neurons"):
            snn = parspike.convert(model, x, T=T, recipe=method())
        assert torch.allclose(snn(x), model(x))
        assert snn.simulation == Simulation(T)

    def test_names_its_source(self, method: type[Baseline]) -> None:
        assert method.cite[-4:].isdigit()

    def test_neurons_that_are_asked_for_are_refused(self, method: type[Baseline]) -> None:
        with pytest.raises(OptionError, match="neurons of its own"):
            parspike.convert(network(), images(), T=4, recipe=method(), neuron=parspike.LIF(0.5))

    def test_an_activation_that_it_does_not_know_is_refused_by_name(self, method: type[Baseline]) -> None:
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
        with pytest.raises(OptionError, match=r"'1.' first"):
            parspike.convert(model, images(), T=4, recipe=method())


def test_data_are_asked_for() -> None:
    with pytest.raises(CalibrationError, match="max-norm"):
        parspike.convert(network(), example=images(2), T=4, recipe="max-norm")


def test_the_largest_activation_is_the_threshold() -> None:
    model: Any
    model, snn = converted(MaxNorm)
    first = neurons(snn)[0]
    assert isinstance(first, IntegrateFire)
    largest = model.first(model.norm(model.one(images()))).max()
    assert float(first.v_threshold.max()) == pytest.approx(float(largest), rel=1e-5)
    assert not bool(first.v_init.any())
    assert snn.simulation == Simulation(T)


def test_by_weights_as_the_authors_write_it() -> None:
    """W λ_{l−1}/λ_l, b/λ_l and θ = 1 send the same spikes as θ_l = λ_l."""
    model: Any = nn.Sequential(
        nn.Flatten(), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4)
    ).eval()
    x = images(6)
    snn = parspike.convert(model, x, T=T, recipe="max-norm")
    one, two = (float(n.v_threshold.max()) for n in snn.stateful().values())
    layers: Any = (model[1], model[3])
    potentials, trains = [torch.zeros(6, 9), torch.zeros(6, 7)], ([], [])
    for _ in range(T):
        sent = x.flatten(1)
        for place, (layer, before, here) in enumerate(zip(layers, (1.0, one), (one, two), strict=True)):
            m = potentials[place] + sent @ (layer.weight * before / here).T + layer.bias / here
            sent = (m >= 1).float()
            potentials[place] = m - sent
            trains[place].append(sent)
    spikes = snn.run(x, record=True).spikes
    for layer, train in zip(spikes, trains, strict=True):
        assert (spikes[layer].float() != torch.stack(train)).float().mean() < 0.002


def test_reset_to_zero_is_an_option() -> None:
    snn = converted(MaxNorm, reset="zero")[1]
    assert all(isinstance(n, IntegrateFire) and n.reset == "zero" for n in neurons(snn))
    with pytest.raises(OptionError, match="reset"):
        MaxNorm(reset="soft")  # pyright: ignore[reportArgumentType]


def test_a_sweep_takes_a_method() -> None:
    sweep = parspike.sweep(network(), images(64).split(8), T=(2, 4), recipe="max-norm")
    assert [(row.T, row.code) for row in sweep.rows] == [(2, "if"), (4, "if")]
