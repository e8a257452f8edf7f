"""Staircases: where their steps go, what they count, what they send."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import parspike
from parspike.calibrate.staircase import Sample, lloyd_max, staircase
from parspike.errors import OptionError
from parspike.graph.ops import TABLE, falling, rising
from parspike.graph.pointwise import turn_of
from parspike.neurons import Staircase


def turn(target: str, **options: Any) -> tuple[float, float]:
    known = TABLE[target].turn
    assert known is not None
    return known(options)


def best(values: list[float], levels: int) -> float:
    """Smallest squared error of any quantiser of sorted values with levels + 1 outputs, every cut tried."""
    n = len(values)
    sums = [0.0]
    squares = [0.0]
    for v in values:
        sums.append(sums[-1] + v)
        squares.append(squares[-1] + v * v)

    def cost(i: int, j: int) -> float:
        return squares[j] - squares[i] - (sums[j] - sums[i]) ** 2 / (j - i)

    error = [0.0] + [cost(0, j) for j in range(1, n + 1)]
    for _ in range(levels):
        error = [0.0] + [min(error[i] + (cost(i, j) if i < j else 0) for i in range(j + 1)) for j in range(1, n + 1)]
    return error[n] / n


def placed(a: torch.Tensor, levels: int) -> float:
    outputs = lloyd_max(a, levels)
    return float((a[:, None] - outputs).square().amin(1).mean())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), levels=st.integers(1, 6))
def test_placement_is_close_to_the_optimum(seed, levels):
    a = torch.randn(60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).pow(3).sort().values
    optimum = best(a.tolist(), levels)
    assert optimum - 1e-12 <= placed(a, levels) <= 1.01 * optimum + 1e-12


def test_placement_beats_even_steps_and_says_so():
    z = torch.randn(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort().values
    for function in (torch.sigmoid, lambda x: rising(x, "aten.silu.default", *turn("aten.silu.default"))):
        for T in (2, 8, 64):
            neuron = staircase(function, z, T)
            found = float((neuron(z) - function(z)).square().mean())
            assert 0 < neuron.error <= neuron.uniform_error
            assert found == pytest.approx(neuron.error, rel=0.1, abs=1e-7)
    assert neuron.uniform_error > 1.5 * neuron.error


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), T=st.integers(1, 20), code=st.sampled_from(["sorted", "onset", "weighted"]))
def test_spikes_carry_the_value(seed, T, code):
    T = min(T, 8) if code == "weighted" else T
    generator = torch.Generator().manual_seed(seed)
    levels = 2**T - 1 if code == "weighted" else T
    thresholds = torch.randn(levels, generator=generator, dtype=torch.float64).sort().values
    outputs = torch.randn(levels + 1, generator=generator, dtype=torch.float64).sort().values
    if code == "weighted":
        outputs = torch.linspace(-0.3, 1.2, levels + 1, dtype=torch.float64)
    neuron = Staircase(T, thresholds, outputs, code=code)
    z = torch.randn(3, 5, generator=generator, dtype=torch.float64) * 2
    count = neuron.count(z)
    assert count.min() >= 0
    assert count.max() <= levels
    torch.testing.assert_close(neuron.current(count).mean(0), neuron.value(count))
    torch.testing.assert_close(neuron.current(count, window=T + 3).mean(0), neuron.value(count))
    assert torch.equal(neuron(z), neuron.value(count))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), T=st.sampled_from([1, 2, 7, 64, 1024]))
def test_counting_is_comparing_with_every_threshold(seed, T):
    generator = torch.Generator().manual_seed(seed)
    neuron = Staircase(T, torch.randn(T, generator=generator).sort().values, torch.arange(T + 1.0))
    z = torch.randn(500, generator=generator) * 1.5
    compared = (z[:, None] >= neuron.thresholds).sum(1)
    away = (z[:, None] - neuron.thresholds).abs().amin(1) > 1e-5
    assert torch.equal(neuron.count(z)[away], compared[away].float())


def test_counting_does_not_hold_a_comparison_for_every_level():
    neuron = Staircase(1024, torch.linspace(-2, 2, 1024), torch.linspace(-1, 1, 1025))
    z = torch.randn(1 << 14)
    with torch.profiler.profile(profile_memory=True) as profile:
        neuron(z)
    assert max(event.self_cpu_memory_usage for event in profile.events() or []) <= 4 * z.numel() * z.element_size()


def test_extreme_currents_and_flat_activations():
    neuron = staircase(torch.tanh, torch.linspace(-3, 3, 100), 4)
    assert neuron.count(torch.tensor([-1e30, 1e30])).tolist() == [0, 4]
    flat = staircase(torch.zeros_like, torch.linspace(-3, 3, 100), 4)
    assert torch.equal(flat(torch.randn(5)), torch.zeros(5))


def test_loading_a_state_makes_the_tables_anew():
    a = staircase(torch.tanh, torch.linspace(-3, 3, 500), 4)
    b = staircase(torch.sigmoid, torch.linspace(-1, 5, 500), 4)
    b.load_state_dict(a.state_dict())
    z = torch.randn(50)
    assert torch.equal(a(z), b(z))


def test_a_staircase_must_not_fall():
    up, down = torch.linspace(0, 1, 4), torch.linspace(1, 0, 4)
    with pytest.raises(ValueError, match="must not fall"):
        Staircase(4, down, torch.linspace(0, 1, 5))
    with pytest.raises(ValueError, match="one output more"):
        Staircase(4, up, up)
    with pytest.raises(ValueError, match="evenly spaced"):
        Staircase(2, torch.linspace(0, 1, 3), torch.tensor([0.0, 0.1, 0.5, 1.0]), code="weighted")


def test_samples_are_bounded_and_keep_the_extremes():
    sample = Sample(limit=1000)
    for seed in range(30):
        sample.add(torch.randn(777, generator=torch.Generator().manual_seed(seed)))
    sample.add(torch.tensor([-50.0, 70.0]))
    values = sample.sorted()
    assert len(values) <= 2002
    assert (float(values[0]), float(values[-1])) == (-50, 70)
    assert abs(float(values[2:-2].std()) - 1) < 0.1


@pytest.mark.parametrize("name", ["silu", "mish", "hardswish", "gelu", "abs"])
@pytest.mark.parametrize("options", [{}, {"approximate": "tanh"}])
def test_turning_points(name, options):
    options = options if name == "gelu" else {}
    target = f"aten.{name}.default"
    row = TABLE[target]
    found, stored = turn_of(lambda x: row.run(x, **options)), turn(target, **options)
    assert found == pytest.approx(stored, abs=1e-6)
    x = torch.randn(1000, dtype=torch.float64) * 3
    both = rising(x, target, *stored, **options) + falling(-x, target, *stored, **options) + stored[1]
    torch.testing.assert_close(both, row.run(x, **options))


# ----------------------------------------------------------------------------------------- the user's activations


@parspike.register
def soft_log(x):
    return torch.where(x > 0, x.clamp(min=0).log1p(), 0.1 * x)


@parspike.register
class Bump(torch.nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(2 * x)


cubic = parspike.register(lambda x: x + x**3, name="cubic", inverse=None)
rooted = parspike.register(lambda x: x.sign() * x.abs().sqrt(), name="rooted", inverse=lambda y: y * y.abs())


class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(5))
        self.bump = Bump()

    def forward(self, x):
        a, b, c, d, e = self.layers
        return e(rooted(d(cubic(c(self.bump(b(soft_log(a(x)))))))))


@torch.no_grad()
def test_own_activations(tmp_path, monkeypatch):
    model, x = Own().eval(), torch.randn(64, 6)
    plan = parspike.plan(model, x)
    assert [row.operator for row in plan.rows if row.role == "neuron"] == [
        "soft_log", "rising", "falling", "cubic", "rooted",
    ]  # fmt: skip
    snn = parspike.convert(plan, x, T=2048)
    assert float((snn(x) - model(x)).norm() / model(x).norm()) < 0.01
    path = snn.save(tmp_path / "own.parspike")
    assert torch.equal(parspike.load(path)(x), snn(x))
    monkeypatch.delitem(TABLE, "parspike.soft_log")
    with pytest.raises(parspike.errors.FileError, match=r"parspike\.register"):
        parspike.load(path)


@pytest.mark.parametrize(
    ("activation", "options", "says"),
    [
        (torch.sin, {"name": "wave"}, "falls from"),
        (lambda x: -x, {"name": "down"}, "falls from 60 at -60"),
        (torch.log, {"name": "log_"}, "NaN"),
        (lambda x: x - x.mean(), {"name": "centred"}, "not elementwise"),
        (lambda x: x, {}, "no name"),
        (torch.relu, {"name": "qcfs"}, "operator of parspike"),
        (torch.tanh, {"name": "tanh_", "inverse": lambda y: y}, "inverse is wrong"),
        (torch.nn.functional.silu, {"name": "silu_", "inverse": lambda y: y}, "no inverse"),
        (torch.nn.PReLU, {}, "has parameters"),
        (torch.nn.ReLU(), {}, "register its class"),
        (lambda x: x.nothing, {"name": "nothing"}, "fails on a tensor"),
    ],
)
def test_what_cannot_be_registered(activation, options, says):
    with pytest.raises(OptionError, match=says):
        parspike.register(activation, **options)
