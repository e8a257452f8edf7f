"""Staircases: where their steps go, what they count, what they send."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import parspike
from parspike.calibrate.staircase import (
    Sample,
    _best_cut,
    _edges,
    _even,
    _rising,
    free_steps,
    lloyd_max,
    staircase,
    staircase_between,
)
from parspike.errors import OptionError
from parspike.graph.course import turn_of
from parspike.graph.ops import TABLE, falling, rising
from parspike.neurons import ParallelNeuron, SignedNeuron, Staircase, joined


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
    """Would catch levels whose error is 1 % above that of an exhaustive search."""
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
    assert neuron.uniform_error > neuron.error


def test_steps_stand_between_few_recorded_currents_too():
    generator = torch.Generator().manual_seed(0)
    seen, others = (torch.randn(n, generator=generator, dtype=torch.float64).sort().values for n in (40, 4000))
    others = others[(others > seen[0]) & (others < seen[-1])]
    off = [float((staircase(torch.sigmoid, seen, T)(others) - torch.sigmoid(others)).abs().max()) for T in (64, 4096)]
    assert off[1] < off[0] / 16


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), T=st.integers(1, 20), code=st.sampled_from(["sorted", "onset", "weighted"]))
def test_spikes_carry_the_value(seed, T, code):
    """Would catch a train that carries another value than its step of the staircase."""
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


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def neighbours(x: torch.Tensor) -> torch.Tensor:
    """x and the next numbers of its dtype on both sides."""
    steps = torch.tensor([-1, 0, 1], dtype=BITS[x.element_size()])[:, None]
    return (x.view(steps.dtype) + steps).view(x.dtype).flatten()


def compared(z: torch.Tensor, neuron: Staircase) -> torch.Tensor:
    """The definition: how many thresholds a current reaches."""
    return (z[..., None] >= neuron.thresholds).sum(-1).to(z.dtype)


@settings(max_examples=60, deadline=None)
@example(200, 2, torch.float32, 50.0, -0.5, 4)
@given(
    seed=st.integers(0, 999), T=st.sampled_from([1, 2, 7, 64, 200]), dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 1.0, 50.0]), middle=st.sampled_from([0.0, -0.5, 100.0]), power=st.integers(1, 5),
)  # fmt: skip
def test_counting_is_comparing_with_every_threshold(seed, T, dtype, scale, middle, power):
    """Would catch a faster way to count that is off where thresholds lie close together."""
    generator = torch.Generator().manual_seed(seed)
    tau = torch.randn(T, generator=generator, dtype=torch.float64).pow(power) * scale + middle
    outputs = torch.randn(T + 1, generator=generator, dtype=torch.float64).sort().values.to(dtype)
    neuron = Staircase(T, tau.to(dtype).sort().values, outputs)
    span = float(tau.max() - tau.min())
    assert float((neuron.thresholds.double() - tau.to(dtype).double().sort().values).abs().max()) <= span / 1024 + 1e-4
    usual = (torch.randn(500, generator=generator, dtype=torch.float64) * 2 * scale + middle).to(dtype)
    extreme = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, *[torch.finfo(dtype).max] * 2], dtype=dtype)
    extreme[-1] *= -1
    z = torch.cat([usual, neighbours(neuron.thresholds.detach()), extreme])
    z = z[(z.abs() >= torch.finfo(dtype).tiny) | (z == 0)]
    z = torch.cat([z, -extreme[:1] * 0])  # inf · 0: one NaN
    count = neuron.count(z)
    assert count.dtype == dtype
    assert torch.equal(count[:-1], compared(z[:-1], neuron))
    assert torch.equal(neuron(z)[:-1], outputs[compared(z[:-1], neuron).long()])
    assert bool(count[-1].isnan())
    assert bool(neuron(z)[-1].isnan())
    assert bool(neuron.value(count)[-1].isnan())


def by_channel(z: torch.Tensor, neuron: Staircase) -> torch.Tensor:
    return (z >= neuron.thresholds.unsqueeze(1)).sum(0).to(z.dtype)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), T=st.sampled_from([1, 2, 7, 16]), dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(5, 1, 1), (5,), (1, 5), (1, 5, 1)]),
)  # fmt: skip
def test_channels_count_with_their_own_thresholds(seed, T, dtype, shape):
    """Would catch a channel that counts with another one's thresholds."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1e-3, 1.0, 30.0, 1.0, 1.0], dtype=torch.float64).reshape(shape)
    middle = torch.tensor([0.0, -2.0, 100.0, 0.0, 1e-4], dtype=torch.float64).reshape(shape)
    tau = torch.randn(T, *shape, generator=generator, dtype=torch.float64).sort(0).values * scale + middle
    tau[..., 3 : 4 if shape[-1] == 5 else None] = 0.25  # thresholds that are one, of one channel or of all
    outputs = torch.randn(T + 1, *shape, generator=generator, dtype=torch.float64).sort(0).values.to(dtype)
    neuron = Staircase(T, tau.to(dtype), outputs)
    span = tau[-1] - tau[0]
    assert bool(((neuron.thresholds.double() - tau.to(dtype).double()).abs() <= span / 50 + 1e-4).all())
    example = [5 if dim == 5 else 3 for dim in shape]
    z = (torch.randn(40, *example, generator=generator, dtype=torch.float64) * 2 * scale + middle).to(dtype)
    z[0], z[1], z[2] = neuron.thresholds[0].detach(), float("inf"), -float("inf")
    count = neuron.count(z)
    assert torch.equal(count, by_channel(z, neuron))
    wanted = outputs.expand(T + 1, *example).gather(0, count.long())
    assert torch.equal(neuron(z), wanted)
    assert torch.equal(neuron.value(count), wanted)
    z[0] = float("nan")
    assert bool(neuron(z)[0].isnan().all())
    assert bool(neuron.value(neuron.count(z))[0].isnan().all())
    assert torch.equal(neuron(z)[1:], wanted[1:])


@pytest.mark.parametrize("code", ["sorted", "onset", "weighted"])
def test_spikes_of_channels_carry_their_values(code):
    levels = 7 if code == "weighted" else 3
    thresholds = torch.randn(levels, 4, 1, 1, dtype=torch.float64).sort(0).values
    outputs = torch.randn(levels + 1, 4, 1, 1, dtype=torch.float64).sort(0).values
    if code == "weighted":
        outputs = outputs[:1] + torch.arange(8, dtype=torch.float64).reshape(-1, 1, 1, 1) * (outputs[1:2] - outputs[:1])
    neuron = Staircase(3, thresholds, outputs, code=code)
    z = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    count = neuron.count(z)
    torch.testing.assert_close(neuron.current(count).mean(0), neuron(z))
    torch.testing.assert_close(neuron.current(count, window=9).mean(0), neuron(z))


def test_channels_of_their_own_run_in_every_engine_and_from_a_file(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Conv2d(6, 5, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 4)
    ).double().eval()  # fmt: skip
    x = torch.randn(64, 3, 8, 8, dtype=torch.float64)
    for code in ("sorted", "weighted", "onset"):
        snn = parspike.convert(model, x.split(16), T=3, code=code, recipe="closed-form")
        shapes = {name: tuple(neuron.thresholds.shape[1:]) for name, neuron in snn.neurons().items()}
        assert set(shapes.values()) == {(6, 1, 1), (5, 1, 1)}
        for engine in ("parallel", "serial"):
            torch.testing.assert_close(snn.run(x, engine=engine).logits, snn(x), rtol=1e-9, atol=1e-12)
        loaded = parspike.load(snn.save(tmp_path / f"{code}.parspike"))
        assert torch.equal(loaded(x), snn(x))
        layer = parspike.convert(model, x.split(16), T=3, code=code, recipe=parspike.ClosedForm(granularity="layer"))
        assert all(neuron.thresholds.dim() == 1 for neuron in layer.neurons().values())
    few = parspike.convert(model, x[:48].split(16), T=27, recipe="closed-form")  # too few currents for every channel
    assert {n.thresholds.dim() for n in few.neurons().values()} == {1, 4}
    few = parspike.convert(model, x[:47].split(16), T=3, recipe="closed-form")  # too few images
    assert {n.thresholds.dim() for n in few.neurons().values()} == {1}


@torch.no_grad()
def test_more_steps_do_not_err_more():
    """Would catch channels that lose thresholds of their own above 16 levels: the error then rose from 16 steps to 24.
    From 33 on all channels share them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 4)).eval()
    model[0].weight *= torch.logspace(-1, 1, 24)[:, None]  # channels of unlike widths
    x, other = torch.randn(2048, 8), torch.randn(512, 8)
    errors = {}
    for T in (16, 24, 32, 33):
        snn = parspike.convert(model, x.split(256), T=T, recipe="closed-form")
        errors[T] = float((snn(other) - model(other)).norm() / model(other).norm())
        assert {neuron.thresholds.dim() for neuron in snn.neurons().values()} == {2 if T < 33 else 1}
    assert errors[24] < errors[16]
    assert errors[32] < errors[24]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), levels=st.integers(1, 6))
def test_the_best_cut_of_every_channel_is_found(seed, levels):
    """Would catch a search that ends at a cut which is not the best."""
    a = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).pow(3).sort(1).values
    a[1] = 0.5
    outputs = _best_cut(a, levels, torch.ones(40))
    assert bool((outputs.diff() >= 0).all())
    for row, found in zip(a, outputs, strict=True):
        error = float((row[:, None] - found).square().amin(1).mean())
        assert error == pytest.approx(best(row.tolist(), levels), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(number=st.integers(1, 3000), cells=st.integers(2, 300))
def test_cells_hold_every_value_once_and_the_extremes_alone(number, cells):
    edges = _edges(number, cells, torch.device("cpu"))
    assert (int(edges[0]), int(edges[-1])) == (0, number)
    assert len(edges) <= cells + 1
    counts = edges.diff()
    assert int(counts.min()) >= 1
    if cells >= 16:
        assert (int(counts[0]), int(counts[-1])) == (1, 1)
    if cells >= 200:
        assert int(counts.max()) <= 2 * -(-number // cells)


def test_a_value_that_is_counted_several_times_is_as_several_values():
    """Would catch means over cells that hold unequally many values as if they held equally many."""
    a = torch.tensor([-2.0, -1.5, 0.0, 0.3, 0.4, 1.0, 5.0, 9.0], dtype=torch.float64)
    counts = torch.tensor([1, 7, 3, 9, 2, 4, 1, 1])
    each, ones = a.repeat_interleave(counts), torch.ones(28)
    for levels in (1, 3):
        torch.testing.assert_close(_best_cut(a[None], levels, counts), _best_cut(each[None], levels, ones))
        torch.testing.assert_close(_even(a[None], levels, counts), _even(each[None], levels, ones))
        torch.testing.assert_close(lloyd_max(a, levels, counts), lloyd_max(each, levels))
    falling = a.flip(0)
    pooled = _rising(falling, counts.flip(0))
    torch.testing.assert_close(pooled, torch.full_like(a, float(each.mean())))
    within = _rising(a[torch.tensor([0, 2, 1, 3, 4, 5, 6, 7])], torch.tensor([1, 3, 7, 9, 2, 4, 1, 1]))
    assert within[1:3].tolist() == pytest.approx([-1.05, -1.05])


def long_tailed() -> torch.Tensor:
    """Currents (8, 16384) after Student's t with 3 degrees of freedom."""
    normal = torch.randn(4, 8, 16384, generator=torch.Generator().manual_seed(0))
    return normal[0] / normal[1:].square().mean(0).sqrt()


@pytest.mark.parametrize("levels", [16, 32, 64])
def test_levels_reach_the_few_largest_currents(levels):
    """Would catch cells in which the largest values are lumped together: at 16, 32 and 64 levels the mean squared error
    was 6, 24 and 23 times as large."""
    z = long_tailed()
    a = F.elu(z)
    shape = (8, 1) if levels <= 32 else None
    neuron = staircase_between(z, a, levels, shape=shape)
    fine = staircase(F.elu, z.flatten().sort().values, levels)
    assert neuron.error < 1.1 * fine.error


def test_evenly_spaced_outputs_do_not_follow_a_single_extreme():
    """Would catch an extreme that counts for a hundred values, in place of one: the mean squared error was 2.5 times as
    large."""
    a = F.elu(long_tailed().flatten().repeat(3)).sort().values
    neuron = staircase(F.elu, long_tailed().flatten().repeat(3).sort().values, 4, "weighted")
    best = _even(a.double()[None], 15, torch.ones_like(a))[0]
    error = (a.double()[:, None] - best).square().amin(1).mean()
    assert neuron.error < 1.02 * float(error)


@pytest.mark.parametrize(("levels", "most"), [(4, 0.3), (8, 0.19), (16, 0.13)])
def test_free_steps_reach_the_few_largest_currents(levels, most):
    """Their shares of the activations were 0.32, 0.28 and 0.26 where the largest 256th was one cell."""
    z = long_tailed()
    a = z.relu()
    cuts = a.amax(1, keepdim=True) / 3 * (torch.arange(levels) + 0.5) / levels
    thresholds, outputs = free_steps(a, z, cuts)
    error = (a - outputs.gather(1, torch.searchsorted(thresholds, z, right=True))).square().mean(1)
    assert float((error / a.square().mean(1)).sqrt().mean()) < most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traced_channels_count_the_same(dtype):
    neuron = Staircase(3, torch.randn(3, 4, 1).sort(0).values.to(dtype), torch.randn(4, 4, 1).sort(0).values.to(dtype))
    z = torch.randn(7, 4, 9).to(dtype)
    compiled = torch.compile(neuron, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z), neuron(z), rtol=0, atol=0)
    exported = torch.export.export(neuron, (z,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    torch.testing.assert_close(exported(z), neuron(z), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_traced_staircase_counts_the_same(dtype):
    neuron = Staircase(64, torch.randn(64).sort().values.to(dtype), torch.randn(65).sort().values.to(dtype))
    edges = neighbours(neuron.thresholds.detach())
    z = torch.cat([edges, torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0], dtype=dtype)])
    compiled = torch.compile(neuron, fullgraph=True, backend="eager")
    exported = torch.export.export(neuron, (z,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    for traced in (compiled, exported):
        torch.testing.assert_close(traced(z), neuron(z), rtol=0, atol=0, equal_nan=True)


def test_currents_of_half_precision_meet_thresholds_of_single():
    neuron = Staircase(64, torch.randn(64).sort().values, torch.arange(65.0))
    for dtype in (torch.float16, torch.bfloat16):
        z = torch.randn(3, 1000).to(dtype)
        assert torch.equal(neuron.count(z), (z.float()[..., None] >= neuron.thresholds).sum(-1).float())


@pytest.mark.parametrize("layout", ["dense", "channels_last", "expanded", "sliced", "permuted", "empty", "scalar"])
def test_large_currents_of_any_layout_are_counted_in_pieces(layout, monkeypatch):
    monkeypatch.setattr("parspike.neurons.pieces.PIECE", 1000)
    z = {
        "dense": torch.randn(5, 8, 9, 9),
        "channels_last": torch.randn(5, 8, 9, 9).to(memory_format=torch.channels_last),
        "expanded": torch.randn(5, 8, 9, 1).expand(5, 8, 9, 9),
        "sliced": torch.randn(5, 8, 9, 20)[..., 1::2],
        "permuted": torch.randn(9, 5, 8, 9).permute(1, 2, 3, 0),
        "empty": torch.randn(0, 8, 9, 9),
        "scalar": torch.tensor(0.3),
    }[layout]
    steps = Staircase(7, torch.randn(7).sort().values, torch.randn(8).sort().values)
    assert torch.equal(steps.count(z), compared(z, steps))
    if layout != "scalar":
        own = Staircase(7, torch.randn(7, 8, 1, 1).sort(0).values, torch.randn(8, 8, 1, 1).sort(0).values)
        assert torch.equal(own.count(z), by_channel(z, own))
        assert torch.equal(own(z), own.value(own.count(z)))
    for theta in (torch.tensor(1.3), torch.rand(8, 1, 1) + 0.5)[: 1 if layout == "scalar" else 2]:
        for offset in (0.0, -0.4):
            neuron = ParallelNeuron(4, theta, offset=offset)
            assert torch.equal(neuron(z), neuron.value(neuron.count(z)))


@pytest.mark.parametrize("shape", [(), (1,), (30,), (8, 1, 1), (1, 20, 1), (8, 20, 1), (8, 1, 30)])
def test_neurons_may_write_over_their_current(shape, monkeypatch):
    """Would catch pieces that take the thresholds of other channels, or read what was written already."""
    monkeypatch.setattr("parspike.neurons.pieces.PIECE", 500)
    theta, offset = torch.rand(shape) + 0.5, torch.rand(shape) - 0.5
    stairs = [torch.randn(5, *shape).sort(0).values, torch.randn(6, *shape).sort(0).values]
    neurons = [ParallelNeuron(5, theta), ParallelNeuron(5, theta, offset=offset, code="weighted")]
    for neuron in (*neurons, SignedNeuron(5, theta, offset=offset), Staircase(5, *stairs)):
        for strides in ((4800, 600, 30, 1), (4800, 1, 240, 8), (30, 90, 720, 1)):
            z = torch.empty_strided((3, 8, 20, 30), strides).normal_()
            before = z.clone()
            wanted = neuron.value(neuron.count(z))
            assert torch.equal(neuron(z), wanted)
            assert torch.equal(z, before)  # `forward` leaves what others read
            assert torch.equal(neuron.over(z), wanted)
        z = torch.randn(3, 8, 20, 1).expand(3, 8, 20, 30)
        assert torch.equal(neuron.over(z), neuron.value(neuron.count(z)))


@pytest.mark.parametrize("change", ["in place", "through data", "another dtype", "inference mode"])
def test_tables_follow_the_thresholds_and_outputs(change):
    neuron = Staircase(4, torch.tensor([-1.0, 0.0, 0.5, 2.0]), torch.arange(5.0))
    z = torch.randn(2, 300) * 2
    before = neuron(z)
    if change == "in place":
        with torch.no_grad():
            neuron.thresholds.add_(0.75)
            neuron.outputs.mul_(3)
    elif change == "through data":
        neuron.thresholds.data[0] = -1.5
        neuron.outputs.data[-1] = 9
    elif change == "inference mode":
        with torch.inference_mode():
            neuron.thresholds.sub_(0.25)
            neuron.outputs.add_(1)
            assert torch.equal(neuron(z), neuron.outputs[compared(z, neuron).long()])
    else:
        neuron, z = neuron.double(), z.double()
        neuron.thresholds.data += 0.125
    assert not torch.equal(neuron(z), before.to(z.dtype))
    assert torch.equal(neuron(z), neuron.outputs[compared(z, neuron).long()])
    assert torch.equal(neuron.count(z), compared(z, neuron))


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
    with pytest.raises(ValueError, match="too many"):
        Staircase(4, torch.zeros(4, 1 << 18), torch.zeros(5, 1 << 18))
    with pytest.raises(ValueError, match="finite"):
        Staircase(4, torch.tensor([0.0, 1.0, 2.0, float("inf")]), torch.linspace(0, 1, 5))
    with pytest.raises(ValueError, match="one output more"):
        Staircase(4, up, up)
    with pytest.raises(ValueError, match="evenly spaced"):
        Staircase(2, torch.linspace(0, 1, 3), torch.tensor([0.0, 0.1, 0.5, 1.0]), code="weighted")
    with pytest.raises(ValueError, match="evenly spaced"):
        Staircase(2, torch.linspace(0, 1, 3).double(), torch.tensor([0.0, 1.0, 2.0, 4.0]).double(), code="weighted")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weighted_staircase_that_was_cast_to_a_wider_dtype_is_saved_and_loaded(dtype, tmp_path):
    outputs = (torch.linspace(-0.3, 1.1, 16, dtype=torch.float64) + torch.tensor([[0.0], [1e3]])).T.to(dtype)
    thresholds = torch.linspace(-1, 1, 15, dtype=dtype).expand(2, -1).T
    neuron = Staircase(4, thresholds, outputs, code="weighted").double()
    assert set(neuron.state_dict()) == {"thresholds", "outputs"}  # tables for the look-up are made anew
    again = Staircase.restore(neuron.config(), neuron.state_dict())
    assert torch.equal(again.outputs, outputs.double())


@pytest.mark.parametrize(
    ("config", "tensors", "says"),
    [
        ({"error": math.nan}, {}, "errors must be finite"),
        ({"uniform_error": -1.0}, {}, "errors must be finite"),
        ({"error": "0.1"}, {}, "errors must be finite"),
        ({}, {"outputs": torch.arange(5.0).double()}, "unlike dtypes"),
        ({}, {"thresholds": torch.tensor([0.0, 2.0, 1.0, 3.0])}, "threshold"),
    ],
)
def test_files_that_hold_no_staircase_are_refused(config, tensors, says):
    neuron = Staircase(4, torch.arange(4.0), torch.arange(5.0))
    assert Staircase.restore(neuron.config(), neuron.state_dict()).levels == 4
    with pytest.raises(ValueError, match=says):
        Staircase.restore({**neuron.config(), **config}, {**neuron.state_dict(), **tensors})


def test_a_network_of_weighted_staircases_is_saved_in_double_precision(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval(), torch.randn(64, 6)
    snn = parspike.convert(model, x, T=4, code="weighted", recipe="closed-form").double()
    again = parspike.load(snn.save(tmp_path / "wide.parspike"))
    assert torch.equal(again(x.double()), snn(x.double()))


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
    for name in ("Bump", "soft_log"):  # the first is written as its two parts, and named by them alone
        monkeypatch.delitem(TABLE, f"parspike.{name}")
        said = rf"'parspike\.{name}', which is not in the table: register the activation first, with parspike\.register"
        with pytest.raises(parspike.errors.FileError, match=said):
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


@pytest.mark.parametrize("code", ["sorted", "weighted"])
def test_a_staircase_between_noisy_currents_and_outputs_is_the_best_of_its_kind(code):
    """Against thresholds moved one by one, and outputs that are the means of what is counted as them."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(40_000, generator=generator, dtype=torch.float64)
    a = torch.tanh(0.8 * z - 0.3 + 0.4 * torch.randn(40_000, generator=generator, dtype=torch.float64))
    neuron = staircase_between(z, a, 2, code)

    def error(thresholds, outputs):
        return float((a - outputs[torch.searchsorted(thresholds, z, right=True)]).square().mean())

    thresholds, outputs = neuron.thresholds.detach(), neuron.outputs.detach()
    least = error(thresholds, outputs)
    assert neuron.error == pytest.approx(least, rel=1e-6)
    assert neuron.error <= neuron.uniform_error
    assert float((neuron(z) - a).square().mean()) == pytest.approx(least, rel=1e-6)
    blind = staircase(torch.tanh, z.sort().values, 2, code)
    assert least < float((blind(z) - a).square().mean())
    for level in range(neuron.levels):
        for move in (-0.1, 0.1):
            moved = thresholds.clone()
            moved[level] += move
            assert error(moved, outputs) > least - 1e-4
    if code == "sorted":
        counts = neuron.count(z).long()
        means = torch.stack([a[counts == k].mean() for k in range(neuron.levels + 1)])
        assert torch.allclose(means, outputs, atol=0.005)


def test_a_staircase_between_what_falls_does_not_fall():
    z = torch.linspace(-1, 1, 500)
    neuron = staircase_between(z, -z + 0.01 * torch.sin(40 * z), 4)
    assert bool((neuron.outputs.diff() >= 0).all())
    assert neuron.outputs[0] == pytest.approx(0.0, abs=1e-2)


def test_equal_currents_are_worth_the_mean_of_what_they_stand_for_in_whatever_order_they_come():
    """Currents of few values, as single spikes make: the order among equal ones had been taken for a slope."""
    z = torch.tensor([0.0, 1.0]).repeat_interleave(1000)
    wanted = torch.linspace(0, 2, 2000)
    for seed in range(4):
        order = torch.randperm(2000, generator=torch.Generator().manual_seed(seed))
        neuron = staircase_between(z[order], wanted[order], 8)
        assert torch.allclose(neuron(torch.tensor([0.0, 1.0])), torch.tensor([0.5, 1.5]), atol=1e-3)
    alike = staircase_between(torch.ones(100), torch.linspace(-1, 1, 100), 2)
    assert float(alike(torch.ones(1))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("code", ["sorted", "weighted"])
def test_wanted_outputs_that_differ_by_rounding_give_a_staircase(code):
    """In float64 their slope, rounded, had been below 0: a staircase that falls, and a ValueError."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(200, generator=generator, dtype=torch.float64)
        middle = 10 * torch.randn(1, generator=generator, dtype=torch.float64)
        a = middle * (1 + 2.2e-16 * torch.randint(3, (200,), generator=generator))
        assert float((staircase_between(z, a, 5, code)(z) - middle).abs().max()) < 1e-12


@pytest.mark.parametrize("code", ["sorted", "weighted"])
def test_each_channel_gets_the_staircase_that_it_would_get_alone(code):
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(4, 6000, generator=generator, dtype=torch.float64)
    a = torch.stack([
        torch.tanh(z[0] + 0.3 * z[1]), 40 * z[1].clamp(min=0), torch.full_like(z[2], -7.3), z[3].round(),
    ])  # fmt: skip
    a[2] += 1e-15 * torch.randint(3, (6000,), generator=generator)
    z[3] = z[3].round()
    levels = 3
    neuron = staircase_between(z, a, 3 if code == "sorted" else 2, code, shape=(4, 1, 1))
    got = neuron(z.T.reshape(-1, 4, 1, 1)).reshape(-1, 4).T
    errors = (got - a).square().mean(1)
    assert neuron.error == pytest.approx(float(errors.mean()), rel=1e-9)
    for channel, error in enumerate(errors.tolist()):
        alone = staircase_between(z[channel], a[channel], neuron.T, code)
        assert alone.levels == levels
        assert error <= 1.02 * alone.error + 1e-20


def test_even_outputs_of_half_precision_may_be_subnormal():
    outputs = (torch.arange(8.0) * 3.1e-7).half()
    neuron = Staircase(3, torch.linspace(-1, 1, 7).half(), outputs, code="weighted")
    assert torch.equal(neuron(torch.full((1,), 2.0).half()), outputs[-1:])


def two(seed: int, T: int, dtype: torch.dtype, shape: tuple[int, ...] = (), scale: float = 1.0) -> list[Staircase]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(2):
        tau = torch.randn(T, *shape, generator=generator, dtype=torch.float64) * scale + 0.3
        outputs = torch.randn(T + 1, *shape, generator=generator, dtype=torch.float64)
        made.append(Staircase(T, tau.sort(0).values.to(dtype), outputs.sort(0).values.to(dtype)))
    return made


def around(right: Staircase, left: Staircase) -> torch.Tensor:
    """Currents (n, …) at every threshold of both and next to it, and far from all."""
    dtype, shape = right.thresholds.dtype, right.thresholds.shape[1:]
    points = torch.cat([right.thresholds.detach(), -left.thresholds.detach()])
    usual = torch.randn(200, *shape, dtype=torch.float64).to(dtype) * 3
    extreme = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, torch.nan], dtype=dtype).reshape(-1, *[1] * len(shape))
    return torch.cat([usual, neighbours(points.flatten()).reshape(-1, *shape), extreme.expand(5, *shape)])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), T=st.sampled_from([1, 2, 7, 64]), dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(), (3,), (3, 1, 1)]), scale=st.sampled_from([1e-3, 1.0, 50.0]),
    lowest=st.sampled_from([0.0, -0.28]),
)  # fmt: skip
def test_two_staircases_in_one_look_up_are_their_sum(seed, T, dtype, shape, scale, lowest):
    """Would catch a table of the sum that is off by an entry."""
    right, left = two(seed, T, dtype, shape, scale)
    z = around(right, left)
    wanted = right(z) + left(-z)
    wanted = wanted + lowest if lowest else wanted
    torch.testing.assert_close(joined(right, left, lowest, z), wanted, rtol=0, atol=0, equal_nan=True)


def test_one_look_up_for_two_staircases_is_used_and_follows_changes():
    right, left = two(0, 8, torch.float32)
    z = torch.randn(50)
    before = joined(right, left, -0.1, z)
    kept = right._joined[1]
    assert kept is not None
    joined(right, left, -0.1, z)
    assert right._joined[1] is kept
    left.outputs.data *= 2
    after = joined(right, left, -0.1, z)
    assert torch.equal(after, right(z) + left(-z) - 0.1)
    assert not torch.equal(after, before)
    # Steps of another size than the other's: no grid is fine enough for one and small enough for both.
    # A side that no current reaches has its steps at the smallest number.
    for factor in (1e-7, 1e-30):
        right.thresholds.data *= factor
        assert torch.equal(joined(right, left, -0.1, z), right(z) + left(-z) - 0.1)
        assert right._joined[1] is None
    theta = ParallelNeuron(8, torch.tensor(1.0))
    assert torch.equal(joined(theta, left, 0.0, z), theta(z) + left(-z))


@pytest.mark.parametrize("shape", [(), (3, 1, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_network_compares_where_levels_are_few(shape, dtype, monkeypatch):
    right, left = two(1, 16, dtype, shape)
    z = around(right, left)
    wanted = right(z), right.count(z)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(right, "_cells", None)
    for found, value in zip((right(z), right.count(z)), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=0, equal_nan=True)


def test_activations_that_turn_take_one_look_up_each():
    torch.manual_seed(0)
    gate = lambda x: x * torch.sigmoid(x)  # noqa: E731

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.gelu(self.first(x))
            return self.last(gate(self.second(x)) + nn.functional.hardswish(x))

    x = torch.randn(64, 6)
    for code in ("sorted", "onset"):
        snn = parspike.convert(Net().eval(), x, T=6, code=code)
        assert len(snn._pass.pairs) == 3
        assert len(snn._pass.short.steps) == len(snn._pass.schedule.steps) - 3 * 4
        recorded = snn.run(x, record=True)
        assert len(recorded.counts) == 6
        assert torch.equal(snn(x), recorded.logits)
        assert torch.equal(snn.double()(x.double()), snn.run(x.double(), record=True).logits)


@pytest.mark.parametrize("function", [F.softplus, F.elu, lambda z: F.leaky_relu(z, 0.1)])
def test_evenly_spaced_outputs_leave_out_what_is_rare(function):
    """With few levels over the whole range of values, of which a few are large, most values would share two levels."""
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).pow(3).sort().values
    a = function(z).double()
    made = staircase(function, z, 4, "weighted")
    whole = torch.linspace(float(a[0]), float(a[-1]), 16, dtype=a.dtype)
    nearest = (a[:, None] - whole).abs().argmin(1)
    error = float((a - whole[nearest]).square().mean())
    got = float((a - made(z).double()).square().mean())
    assert got < 0.5 * error
    assert made.error == pytest.approx(got, rel=0.05)
    assert made.uniform_error == made.error


@pytest.mark.parametrize("bias", [-8.0, 1.0])
@pytest.mark.parametrize("activation", [nn.Mish(), nn.GELU(approximate="tanh")])
def test_where_a_function_is_flat_its_thresholds_do_not_fall(activation: nn.Module, bias: float) -> None:
    """Would catch inverses that fall by rounding: Mish in float64 was an error of its neurons."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, x = nn.Linear(4, 6), torch.randn(64, 4).double()
        model = nn.Sequential(first, activation, nn.Linear(6, 3)).double().eval()
        nn.init.constant_(first.bias, bias)
    snn = parspike.convert(model, x, T=31, recipe="max")
    wanted = model(x).detach()
    assert float((snn(x) - wanted).norm() / wanted.norm()) < 0.03
