"""Laws of ``parspike.neurons``; ``docs/equations.md`` maps equations to these tests.

Currents are whole numbers and thresholds odd ones wherever counts are compared through a division: Σ + θ/2
is then never a multiple of θ, so no neuron sits on its threshold and rounding can't decide a spike.
"""

import importlib
import inspect
import itertools
import types

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import parspike.neurons as neurons
from parspike.neurons import (
    QCFS,
    ParallelNeuron,
    SignedNeuron,
    average_rate,
    bisect_count,
    charge,
    count_of,
    da_qcfs,
    fire,
    first_spike,
    fused_matrix,
    if_neuron,
    lif_matrix,
    lif_neuron,
    optimal_shift,
    parallel_neuron,
    pc_matrix,
    pre_matrix,
    qcfs,
    soft_reset_step,
    sorted_train,
    spike_count,
    spikes_at_once,
)
from parspike.neurons.arguments import like
from parspike.neurons.parallel import VARIANTS
from parspike.neurons.quantised import line_at, lines_at

f64 = torch.float64
law = settings(max_examples=60, deadline=None)
steps = st.integers(1, 17)
odd = st.integers(0, 6).map(lambda i: float(2 * i + 1))
orders = st.sampled_from(["late", "early"])
seeds = st.integers(0, 2**32 - 1)


def whole(shape: tuple[int, ...], low: int = -30, high: int = 30) -> st.SearchStrategy[Tensor]:
    return npst.arrays("int64", shape, elements=st.integers(low, high)).map(lambda a: torch.from_numpy(a).to(f64))


@st.composite
def currents(draw: st.DrawFn, *space: int) -> Tensor:
    return draw(whole((draw(steps), *(space or (5,)))))


@st.composite
def counts(draw: st.DrawFn, *space: int) -> tuple[Tensor, int]:
    T = draw(steps)
    return draw(whole(space or (5,), 0, T)), T


def real(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def clear_of_jumps(u: Tensor) -> Tensor:
    return (u - u.round()).abs() > 1e-9


# --- matrices, equations (2), (6)-(8) -----------------------------------------------------------------------


@given(steps)
@law
def test_fused_matrix_is_pc_times_pre(T):
    """Would catch a wrong factor where the two matrices are made one."""
    torch.testing.assert_close(fused_matrix(T, f64), pc_matrix(T, f64) @ pre_matrix(T, f64), rtol=1e-14, atol=0)


def test_pc_matrix_is_equation_6_entry_by_entry():
    for T in range(1, 9):
        rows = [[T / (x * (T - x + 1)) if j <= x else 0.0 for j in range(1, T + 1)] for x in range(1, T + 1)]
        torch.testing.assert_close(pc_matrix(T, f64), torch.tensor(rows, dtype=f64), rtol=1e-15, atol=0)


@given(steps, whole((5,)))
@law
def test_pc_row_divides_a_constant_current_by_the_spikes_left(T, I):
    """Would catch a row of the matrix that divides by another number of steps."""
    m = pc_matrix(T, f64) @ I.expand(T, 5)
    left = torch.arange(T, 0, -1, dtype=f64)[:, None]
    torch.testing.assert_close(m, T * I / left, rtol=1e-13, atol=0)


@given(currents(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
@law
def test_lif_matrix_is_a_lif_neuron_that_never_fires(current, decay):
    """Would catch a decay of the wrong power."""
    m = lif_matrix(len(current), decay, f64) @ current
    spikes, v = lif_neuron(current, 1e9, decay)
    assert not spikes.any()
    assert torch.equal(m[-1], v)
    assert torch.equal(parallel_neuron(current, lif_matrix(len(current), decay, f64), 4.0), m >= 4.0)


# --- lossless conversion, theorem 4.1 -----------------------------------------------------------------------


@given(currents(), odd, st.randoms(use_true_random=False))
@law
def test_parallel_counts_equal_qcfs_for_any_order_of_the_input(current, theta, random):
    """Would catch a count that depends on when the current comes."""
    T = len(current)
    mean = current.sum(0) / T
    spikes = parallel_neuron(current, fused_matrix(T, f64), theta, optimal_shift(theta, T))
    k = spike_count(mean, theta, T)
    assert torch.equal(count_of(spikes), k.long())
    assert torch.equal(spikes, sorted_train(k, T, "late"))
    assert torch.equal(k * (theta / T), qcfs(mean, theta, T))
    shuffled = current[random.sample(range(T), T)]
    assert torch.equal(parallel_neuron(shuffled, fused_matrix(T, f64), theta, optimal_shift(theta, T)), spikes)
    unfused = torch.tensordot(pre_matrix(T, f64), current, 1)
    assert torch.equal(parallel_neuron(unfused, pc_matrix(T, f64), theta, optimal_shift(theta, T)), spikes)


@given(currents(2, 3, 2), st.tuples(odd, odd, odd))
@law
def test_parallel_counts_equal_qcfs_with_a_threshold_per_channel(current, thetas):
    """Would catch thresholds that stand at the wrong channel."""
    T, theta = len(current), torch.tensor(thetas, dtype=f64).reshape(3, 1)
    shift = optimal_shift(theta, T)
    assert shift.shape == (T, 3, 1)
    spikes = parallel_neuron(current, fused_matrix(T, f64), theta, shift)
    assert torch.equal(count_of(spikes), spike_count(current.sum(0) / T, theta, T).long())


@given(seeds, steps, st.floats(0.01, 100))
@law
def test_parallel_counts_equal_qcfs_on_real_currents(seed, T, theta):
    """Would catch a count that is right on whole numbers alone."""
    current = 2 * theta * real(seed, T, 50)
    mean = current.mean(0)
    away = clear_of_jumps(mean * T / theta + 0.5)
    spikes = parallel_neuron(current, fused_matrix(T, f64), theta, optimal_shift(theta, T))
    k = spike_count(mean, theta, T)
    assert torch.equal(count_of(spikes)[away], k[away].long())
    assert torch.equal(spikes[:, away], sorted_train(k, T)[:, away])


def staircase_by_spikes(z: Tensor, theta: float, T: int) -> Tensor:
    current = torch.zeros(T, *z.shape, dtype=f64)
    current[T // 2] = z * T
    return count_of(fire(charge(current), theta, optimal_shift(theta, T))).to(f64) * theta / T


def midpoints(T: int, levels: int) -> Tensor:
    """Cells of [0, 1] whose borders hold every jump of both staircases."""
    cells = 4 * T * levels
    return (torch.arange(cells, dtype=f64) + 0.5) / cells


@given(steps, steps, odd)
@law
def test_theorem_ii_equal_in_expectation_for_uniform_input(T, levels, theta):
    """Would catch a shift that is not half a step."""
    z = theta * midpoints(T, levels)
    mean = staircase_by_spikes(z, theta, T).mean()
    torch.testing.assert_close(mean, qcfs(z, theta, levels).mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean, z.mean(), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 8), st.sampled_from([1, 3, 5]), odd, st.data())
@law
def test_theorem_ii_equal_in_expectation_for_input_uniform_on_each_bin(levels, finer, theta, data):
    """Would catch a shift that is right for uniform inputs alone."""
    T = levels * finer  # an odd multiple: the bins of T levels subdivide those of T̃
    z = theta * midpoints(T, levels)
    density = data.draw(whole((levels + 1,), 0, 9))
    density[-1] = density[0]  # the two half bins at the ends
    weight = density[spike_count(z, theta, levels).long()]
    got = (weight * staircase_by_spikes(z, theta, T)).sum()
    torch.testing.assert_close(got, (weight * qcfs(z, theta, levels)).sum(), rtol=1e-12, atol=1e-12)


# --- charging and firing, section 4.3 -----------------------------------------------------------------------


@given(currents(), odd)
@law
def test_hadamard_charge_equals_matrix_charge(current, theta):
    """Would catch a charge that is computed faster and otherwise."""
    b = optimal_shift(theta, len(current))
    by_matrix, by_mean = charge(current, "matrix"), charge(current, "hadamard")
    torch.testing.assert_close(by_matrix, by_mean, rtol=1e-13, atol=1e-13)
    assert torch.equal(fire(by_matrix, theta, b), fire(by_mean, theta, b))


@given(currents(2, 3), odd, st.booleans())
@law
def test_bisection_equals_scan(current, theta, per_channel):
    """Would catch a bisection that is off by one at either end."""
    T = len(current)
    v = torch.tensor([theta, theta + 2, theta + 4], dtype=f64) if per_channel else theta
    b, m = optimal_shift(v, T), charge(current)
    assert torch.equal(fire(m, v, b, method="bisection"), fire(m, v, b, method="scan"))
    assert torch.equal(fire(m, v, None, method="bisection"), fire(m, v, None, method="scan"))


@given(currents(2, 3), odd, st.booleans(), st.booleans())
@law
def test_three_variants_are_one_neuron(current, theta, per_channel, shifted):
    """Would catch a variant that fires at another step, or takes the shift otherwise."""
    v = torch.tensor([theta, theta + 2, theta + 4], dtype=f64) if per_channel else theta
    # Added at every step, this leaves the sum a whole number.
    shift = 2.0 / len(current) if shifted else None
    spikes = [spikes_at_once(current, v, variant, shift) for variant in VARIANTS]
    k = spike_count(current.sum(0) + (2.0 if shifted else 0.0), v * len(current), len(current))
    for one in spikes:
        assert torch.equal(one, sorted_train(k, len(current)))


@given(seeds, steps, st.floats(0.01, 100), st.sampled_from([torch.float16, torch.float32, f64]))
@law
def test_bisected_count_equals_closed_form_bit_for_bit(seed, T, theta, dtype):
    """Would catch two ways to count that round differently at a threshold."""
    z = (real(seed, 200) * theta).to(dtype)
    z[:50] = ((torch.arange(50) - 10.5) * theta / T).to(dtype)  # on the jumps, where one ulp decides
    assert torch.equal(bisect_count(z, theta, T, 0.1 * theta), spike_count(z, theta, T, 0.1 * theta))
    assert torch.equal(bisect_count(z, theta, T), spike_count(z, theta, T))


def test_bisection_takes_logarithmically_many_tests():
    parallel = importlib.import_module("parspike.neurons.parallel")
    for T in [*range(1, 40), 255, 256]:
        truth, tests = torch.arange(T + 1), []

        def fires(step, truth=truth, tests=tests):
            tests.append(step)
            return step >= truth

        first = parallel._first_step(fires, (T + 1,), T, torch.device("cpu"))
        assert torch.equal(first, torch.arange(T + 1))
        assert len(tests) == T.bit_length()  # ⌈log₂(T + 1)⌉


# --- sorted trains ------------------------------------------------------------------------------------------


@given(counts(), orders, st.data())
@law
def test_train_of_a_count_and_back_in_chunks(count_and_T, order, data):
    """Would catch spikes lost or doubled where a train is cut."""
    k, T = count_and_T
    train = sorted_train(k, T, order)
    assert train.dtype == torch.bool
    assert train.shape == (T, 5)
    assert torch.equal(count_of(train), k.long())
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, T), max_size=4))), T]
    chunks = [sorted_train(k, T, order, a, b) for a, b in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat(chunks), train)
    assert torch.equal(sum((count_of(c) for c in chunks), torch.zeros(5)), k.float())
    for dtype in (torch.uint8, torch.int32, torch.float16):
        assert torch.equal(sorted_train(k.to(dtype), T, order), train)


@given(counts())
@law
def test_late_is_sorted_and_early_is_late_reversed(count_and_T):
    """Would catch an order of spikes under the wrong name."""
    k, T = count_and_T
    late = sorted_train(k, T, "late")
    assert (late[1:] >= late[:-1]).all()
    assert torch.equal(sorted_train(k, T, "early"), late.flip(0))
    assert torch.equal(late, torch.stack([k >= T - t for t in range(T)]))  # fires at x iff k ≥ T − x + 1


@given(counts(), orders)
@law
def test_first_spike_is_the_first_true_step(count_and_T, order):
    """Would catch a first spike that is off by one, and a silent neuron that has one."""
    k, T = count_and_T
    train = sorted_train(k, T, order)
    expected = torch.where(train.any(0), train.int().argmax(0), T)
    assert torch.equal(first_spike(k, T, order), expected)


def test_narrow_integer_counts_do_not_overflow():
    k = torch.tensor([0, 1, 255], dtype=torch.uint8)
    assert count_of(sorted_train(k, 300)).tolist() == [0, 1, 255]
    assert first_spike(k, 300).tolist() == [300, 299, 45]


@given(counts(), st.data(), orders)
@law
def test_trains_are_nested(count_and_T, data, order):
    """Would catch a larger count whose train lacks a spike of a smaller one, which max-pools rely on."""
    small, T = count_and_T
    large = torch.maximum(small, data.draw(whole((5,), 0, T)))
    assert (sorted_train(small, T, order) <= sorted_train(large, T, order)).all()


@given(counts(2, 3, 4, 4), whole((3, 1, 1), -4, 4), whole((3, 1, 1), -4, 4), orders)
@law
def test_max_pool_of_trains_is_train_of_max_pooled_counts(count_and_T, factor, offset, order):
    """Would catch a max-pool that is not exact on spikes."""
    k, T = count_and_T
    train = sorted_train(k, T, order).to(f64)
    by_step = F.max_pool2d(train.flatten(0, 1), 2).unflatten(0, (T, 2))
    assert torch.equal(by_step.bool(), sorted_train(F.max_pool2d(k, 2), T, order))
    # a per-channel affine map with factors of either sign between the spikes and the pooling
    by_step = F.max_pool2d((factor * train + offset).flatten(0, 1), 2).unflatten(0, (T, 2))
    assert torch.equal(by_step.sum(0), F.max_pool2d(factor * k + T * offset, 2))


# --- serial neurons, equations (1), (3)-(4) -----------------------------------------------------------------


@given(currents(), odd, st.integers(-3, 3))
@law
def test_average_rate_of_if_neuron(current, theta, v_init):
    """Would catch charge that is lost or made by a reset."""
    T = len(current)
    spikes, v = if_neuron(current, theta, v_init / 2)
    rate = count_of(spikes).to(f64) * theta / T
    torch.testing.assert_close(average_rate(current.mean(0), v_init / 2, v, T), rate, rtol=1e-12, atol=1e-12)


@given(steps, whole((20,), -80, 200), st.integers(-2, 3))
@law
def test_if_neuron_on_constant_current_counts_as_qcfs(T, z, exponent):
    """Would catch an IF neuron that is not the published one where both must agree."""
    theta, z = 2.0**exponent, z / 64  # dyadic, so both sides are exact even on a jump when T/θ is
    spikes, _ = if_neuron(z.expand(T, 20), theta, theta / 2)
    assert torch.equal(count_of(spikes), spike_count(z, theta, T).long())


@given(currents(), odd, st.sampled_from([0.0, 0.5, 1.0]))
@law
def test_lif_neuron_is_its_equation(current, theta, decay):
    """Would catch a leak before instead of after the charge."""
    v = torch.full((5,), 0.5, dtype=f64)
    spikes, last = lif_neuron(current, theta, decay, 0.5)
    for t, I in enumerate(current):
        m = decay * v + I
        s = (m >= theta).to(f64)
        v = m - theta * s
        assert torch.equal(spikes[t], s.bool())
    assert torch.equal(last, v)


def test_step_fires_on_the_threshold_and_subtracts_it_once():
    v = torch.tensor([0.0, 0.0, 0.0], dtype=f64)
    spike, v = soft_reset_step(v, torch.tensor([0.5, 1.0, 2.5], dtype=f64), 1.0)
    assert spike.tolist() == [False, True, True]
    assert v.tolist() == [0.5, 0.0, 1.5]
    assert v.dtype == f64


def test_number_thresholds_keep_double_precision():
    _, v = soft_reset_step(torch.zeros(1, dtype=f64), torch.tensor([0.35], dtype=f64), 0.1)
    assert v.tolist() == [0.35 - 0.1]
    assert optimal_shift(0.1, 3).tolist() == [0.05 / 3, 0.05 / 2, 0.05]


def test_a_threshold_goes_where_its_reference_is():
    there = torch.empty(3, dtype=f64, device="meta")
    for value in (0.5, torch.ones(2)):
        assert (like(value, there).device, like(value, there).dtype) == (there.device, f64)


def test_lif_parameters_broadcast_per_channel():
    current = torch.ones(6, 2, 3, 4, 4)
    theta = torch.tensor([1.0, 2.0, 3.0], dtype=f64).reshape(3, 1, 1)
    spikes, v = if_neuron(current, theta)
    assert count_of(spikes)[0, :, 0, 0].tolist() == [6, 3, 2]
    assert v.dtype == current.dtype
    assert v.shape == (2, 3, 4, 4)


# --- staircases, equations (5), (9) -------------------------------------------------------------------------


@given(whole((40,), -200, 400), st.integers(-2, 3), st.integers(0, 4), whole((1,), -8, 8))
@law
def test_spike_count_is_its_formula_on_exact_data(z, exponent, log_T, shift):
    """Would catch a count that rounds where the formula takes the floor."""
    theta, T, z, shift = 2.0**exponent, 2**log_T, z / 64, shift / 64
    expected = [min(max(((x + shift.item()) * T + theta / 2) // theta, 0), T) for x in z.tolist()]
    assert spike_count(z, theta, T, shift).tolist() == expected


@given(seeds, st.floats(0.01, 100), steps)
@law
def test_a_float_and_a_tensor_threshold_count_the_same(seed, theta, T):
    """Would catch a threshold that is rounded otherwise as a number than as a tensor."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32, f64):
        z = (real(seed, 100) * theta).to(dtype)
        as_tensor = spike_count(z, torch.tensor(theta, dtype=dtype), T)
        assert torch.equal(spike_count(z, torch.tensor(theta, dtype=dtype).item(), T), as_tensor)
        assert as_tensor.dtype == dtype


@given(currents(2, 3, 2), st.tuples(odd, odd, odd), whole((3, 1), -3, 3), whole((3, 1), -2, 5))
@law
def test_da_qcfs_is_a_neuron_with_pre_and_post_threshold(current, thetas, shift, scale):
    """Would catch thresholds before and after the spike that are exchanged, and a shift on the wrong side."""
    T, theta = len(current), torch.tensor(thetas, dtype=f64).reshape(3, 1)
    mean, post = current.sum(0) / T, theta + scale
    out = fire(charge(current), theta, optimal_shift(theta, T, shift), post, method="bisection")
    assert out.dtype == f64
    expected = da_qcfs(mean, theta, shift, scale, T)
    torch.testing.assert_close(out.mean(0), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(expected, spike_count(mean, theta, T, shift) * (post / T))
    by_formula = post / T * torch.floor(((mean + shift) * T + theta / 2) / theta).clamp(0, T)
    torch.testing.assert_close(expected, by_formula, rtol=1e-12, atol=1e-12)


def ste_floor(x: Tensor) -> Tensor:
    return x + (x.floor() - x).detach()


def reference(z, theta, shift, scale, T, window):
    if window == "inner":
        x = torch.clamp((z + shift) / theta, 0, 1)
        return (theta + scale) * ste_floor(x * T + 0.5) / T
    return (theta + scale) * torch.clamp(ste_floor((z + shift) / theta * T + 0.5), 0, T) / T


def leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.clone().requires_grad_() for t in tensors)


def grad_of(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


@given(whole((4, 3, 5), -100, 200), st.integers(0, 3), seeds, st.sampled_from(["inner", "outer"]), st.booleans())
@law
def test_qcfs_gradient_equals_autograd_of_a_reference(z, log_L, seed, window, per_channel):
    """Would catch a gradient by hand that is not that of the formula."""
    theta = torch.tensor([[0.5], [1.0], [2.0]], dtype=f64) if per_channel else torch.tensor(1.0, dtype=f64)
    L, grad, zero = 2**log_L, real(seed, 4, 3, 5), torch.tensor(0.0, dtype=f64)
    (z1, theta1), (z2, theta2) = leaves(z / 64, theta), leaves(z / 64, theta)
    a = qcfs(z1, theta1, L, window)
    b = reference(z2, theta2, zero, zero, L, window)
    assert torch.equal(a, b)
    a.backward(grad)
    b.backward(grad)
    assert torch.equal(grad_of(z1), grad_of(z2))
    assert grad_of(theta1).shape == theta.shape
    torch.testing.assert_close(grad_of(theta1), grad_of(theta2), rtol=1e-12, atol=1e-12)


@given(whole((4, 3, 5), -100, 200), st.integers(0, 3), seeds, whole((3, 1), -20, 20), whole((3, 1), -20, 20))
@law
def test_da_qcfs_gradient_equals_autograd_of_a_reference(z, log_T, seed, shift, scale):
    """Would catch a gradient of shift or scale that is summed over the wrong dimensions."""
    theta = torch.tensor([[0.5], [1.0], [2.0]], dtype=f64)
    T, grad = 2**log_T, real(seed, 4, 3, 5)
    start = (z / 64, theta, shift / 64, scale / 64)
    ours, theirs = leaves(*start), leaves(*start)
    a = da_qcfs(ours[0], ours[1], ours[2], ours[3], T)
    b = reference(theirs[0], theirs[1], theirs[2], theirs[3], T, "outer")
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
    a.backward(grad)
    b.backward(grad)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad_of(x), grad_of(y), rtol=1e-12, atol=1e-12)


@given(seeds, steps, st.floats(0.1, 10), st.sampled_from(["inner", "outer"]))
@law
def test_qcfs_gradient_is_the_published_formula(seed, L, theta, window):
    """Would catch a window of the gradient that is wider or narrower than the published one."""
    z = theta * real(seed, 60)
    below, above = (0.0, theta) if window == "inner" else (-theta / (2 * L), theta + theta / (2 * L))
    for i in range(z.numel()):
        x, lam = leaves(z[i], torch.tensor(theta, dtype=f64))
        qcfs(x, lam, L, window).backward()
        level = (z[i] * L / theta + 0.5).floor().clamp(0, L) / L
        if z[i] < below:
            expected = (0.0, 0.0)
        elif z[i] > above:
            expected = (0.0, 1.0)
        else:
            expected = (1.0, (level - z[i] / theta).item())
        assert (grad_of(x).item(), grad_of(lam).item()) == pytest.approx(expected, abs=1e-9)


def test_windows_differ_exactly_in_half_a_bin_at_each_end():
    edges = [-0.125, -0.126, -0.1, 0.0, 1.0, 1.1, 1.1249, 1.125]
    z = torch.tensor(edges, dtype=f64)
    grads = {}
    for window in ("inner", "outer"):
        (x,) = leaves(z)
        qcfs(x, 1.0, 4, window).sum().backward()
        grads[window] = grad_of(x).tolist()
    assert grads["outer"] == [1, 0, 1, 1, 1, 1, 1, 0]
    assert grads["inner"] == [0, 0, 0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(("learn_threshold", "bytes_a_neuron"), [(True, 4), (False, 1)])
def test_qcfs_keeps_little_for_the_backward_pass(learn_threshold, bytes_a_neuron):
    z, theta = torch.randn(1000, requires_grad=True), torch.tensor(1.0, requires_grad=learn_threshold)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        qcfs(z, theta, 8)
    assert sum(kept) <= bytes_a_neuron * 1000 + 8


class Allocations(TorchDispatchMode):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.storages = size, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel() >= self.size:
            self.storages.add(out.untyped_storage().data_ptr())
        return out


@pytest.mark.parametrize("shift", [None, 0.1, torch.zeros(3, 1)])
def test_spike_count_allocates_one_tensor_and_leaves_its_input(shift):
    z = torch.randn(4, 3, 100)
    before = z.clone()
    with Allocations(z.numel()) as seen:
        k = spike_count(z, torch.ones(3, 1), 8, shift)
    assert seen.storages - {z.untyped_storage().data_ptr()} == {k.untyped_storage().data_ptr()}
    assert torch.equal(z, before)


def test_spike_count_has_no_gradient_and_works_on_leaves():
    z, theta = torch.randn(5, requires_grad=True), nn.Parameter(torch.tensor(1.0))
    assert not spike_count(z, theta, 4, torch.zeros(1, requires_grad=True)).requires_grad


def test_nan_is_not_hidden():
    assert spike_count(torch.tensor([float("nan")]), 1.0, 4).isnan().all()
    assert spike_count(torch.tensor([float("inf"), -float("inf")]), 1.0, 4).tolist() == [4, 0]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no batching rule for clamp_
def test_qcfs_under_function_transforms():
    z, theta = torch.randn(6, dtype=f64), torch.tensor(1.0, dtype=f64)
    per_sample = torch.func.vmap(torch.func.grad(lambda x, v: qcfs(x, v, 4), 1), (0, None))(z, theta)
    (v,) = leaves(theta)
    qcfs(z, v, 4).sum().backward()
    torch.testing.assert_close(per_sample.sum(), v.grad)


# --- the QCFS module ----------------------------------------------------------------------------------------


def test_qcfs_module_trains_its_threshold():
    layer = QCFS(levels=4, v_threshold=1.0, window="outer")
    z = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(z), qcfs(z, 1.0, 4, "outer"))
    layer(z).sum().backward()
    assert layer.v_threshold.shape == ()
    assert layer.v_threshold.grad is not None
    assert repr(layer) == "QCFS(levels=4, v_threshold=1, window='outer')"
    assert [*QCFS().state_dict()] == ["v_threshold"]


@pytest.mark.parametrize("training", [False, True])
def test_export_sees_one_node_with_a_dynamic_batch(training):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), QCFS(4, 2.0), nn.Flatten(), nn.Linear(144, 10)).train(training)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    program = program.run_decompositions({})
    called = [n.target for n in program.graph.nodes if n.op == "call_function"]
    ops = torch.ops.aten, torch.ops.parspike
    assert called.count(ops[1].qcfs.default) == 1
    assert not any(t in called for t in (ops[0].floor.default, ops[0].clamp.default, ops[0].mul.Tensor))
    x = 3 * torch.randn(5, 3, 8, 8)
    assert torch.equal(program.module()(x), net(x))


def test_custom_op_obeys_torch_library_rules():
    args = (torch.randn(2, 3), torch.tensor(1.0), 4)
    torch.library.opcheck(torch.ops.parspike.qcfs.default, args)
    line = torch.rand(3, 1) + 0.5, 4, torch.randn(3, 1), torch.ones(3, 1)
    torch.library.opcheck(torch.ops.parspike.line.default, line)
    torch.library.opcheck(torch.ops.parspike.written.default, (torch.rand(2, 3).T,))
    torch.library.opcheck(torch.ops.parspike.rotate.default, (torch.randn(2, 3, 24, requires_grad=True),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_compiled_neurons_have_the_numbers_of_eager_ones(dtype: torch.dtype) -> None:
    """Would catch a slope that is rounded otherwise, or a T that the type does not hold."""
    theta, shift, post = torch.rand(3, 500, generator=torch.Generator().manual_seed(0)).add(0.01).to(dtype)
    for T in (1, 7, 32, 1000, 16383):
        wanted = T / theta, shift * (T / theta) + 0.5, post / T
        found = torch.ops.parspike.line(theta, T, shift, post)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_the_lines_of_many_layers_are_those_of_each() -> None:
    """Would catch a layer that gets the line of another one, of another T, or in another shape."""
    layers = {}
    for number, (T, *shapes) in enumerate(
        [
            (4, (3, 1), (3, 1), (3, 1)),
            (7, (), (), ()),
            (4, (), (2, 1, 1), ()),
            (4, (5,), (), (5,)),
            (7, (1,), (2, 1), (1,)),
        ]
    ):
        for dtype in (torch.float32, torch.float64):
            theta, shift, post = (torch.rand(shape, dtype=dtype) + 0.1 for shape in shapes)
            layers[f"{number} {dtype}"] = T, (theta, shift, post)
    torch._dynamo.reset()
    found = torch.compile(lambda layers: lines_at(layers), backend="aot_eager", fullgraph=True)(layers)
    assert found.keys() == layers.keys()
    for name, (T, own) in layers.items():
        for one, other in zip(found[name], line_at(T, *own), strict=True):
            torch.testing.assert_close(one, other.expand_as(one), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_neurons_count_the_same_and_follow_their_parameters(dtype):
    """Would catch a line made once, when the network is compiled, and one that is not the neuron's."""
    theta, middle = torch.rand(4, 1) + 0.5, torch.randn(4, 1)
    for neuron in (ParallelNeuron(5, theta, offset=-0.2), SignedNeuron(5, theta, offset=middle)):
        torch._dynamo.reset()
        compiled = torch.compile(neuron, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            z = torch.randn(6, 4, 9, dtype=dtype)
            torch.testing.assert_close(compiled(z), neuron(z), rtol=0, atol=0)
            neuron.v_threshold.mul_(0.5)
            neuron.shift.add_(0.1)


def test_spike_count_is_exported_with_its_threshold_as_input():
    class Count(nn.Module):
        def forward(self, z, theta):
            return spike_count(z, theta, 8)

    example = (torch.randn(2, 3, 4), torch.ones(3, 1))
    program = torch.export.export(Count(), example, dynamic_shapes=({0: torch.export.Dim("b")}, None))
    z, theta = torch.randn(7, 3, 4), torch.tensor([[0.5], [1.0], [2.0]])
    assert torch.equal(program.run_decompositions({}).module()(z, theta), spike_count(z, theta, 8))


# --- shapes, dtypes, errors ---------------------------------------------------------------------------------

current = torch.ones(4, 2, 3)
VALID_CALLS = {
    "average_rate": (current[0], 0.0, current[0], 4),
    "bisect_count": (current, 1.0, 4),
    "charge": (current,),
    "count_of": (current.bool(),),
    "da_qcfs": (current, 1.0, 0.0, 0.0, 4),
    "fire": (current, 1.0, optimal_shift(1.0, 4)),
    "first_spike": (current.int(), 4),
    "fused_matrix": (4,),
    "if_neuron": (current, 1.0),
    "lif_matrix": (4, 0.5),
    "lif_neuron": (current, 1.0, 0.5),
    "optimal_shift": (1.0, 4),
    "parallel_neuron": (current, fused_matrix(4), 1.0),
    "pc_matrix": (4,),
    "pre_matrix": (4,),
    "qcfs": (current, 1.0, 4),
    "soft_reset_step": (current[0], current[0], 1.0),
    "sorted_train": (current, 4),
    "spike_count": (current, 1.0, 4),
    "spikes_at_once": (current, 1.0),
}


@pytest.mark.parametrize("name", VALID_CALLS)
def test_signatures_state_the_shapes(name):
    function = getattr(neurons, name)
    # jaxtyping is no dependency of the package: its names exist only for this check
    known = {**vars(jaxtyping), **vars(inspect.getmodule(function))}
    checked = types.FunctionType(function.__code__, known, name, function.__defaults__)
    checked.__annotations__ = inspect.get_annotations(function, globals=known, eval_str=True)
    jaxtyping.jaxtyped(typechecker=beartype)(checked)(*VALID_CALLS[name])


def test_every_public_function_of_tensors_has_its_signature_checked():
    public = {n for n in neurons.__all__ if inspect.isfunction(getattr(neurons, n))}
    assert {*VALID_CALLS} == public - {
        "check_kind",
        "joined",
        "joined_trains",
        "kind_from_text",
        "levels_of",
        "neuron_from",
        "twin",
    }  # these take no tensor, or whole neurons


@pytest.mark.parametrize("T", [0, -1, 2.0, True])
def test_steps_must_be_a_positive_int(T):
    z = torch.ones(3)
    for call in (
        lambda: spike_count(z, 1.0, T),
        lambda: bisect_count(z, 1.0, T),
        lambda: qcfs(z, 1.0, T),
        lambda: da_qcfs(z, 1.0, 0.0, 0.0, T),
        lambda: average_rate(z, 0.0, z, T),
        lambda: lif_matrix(T, 0.5),
        lambda: pc_matrix(T),
        lambda: pre_matrix(T),
        lambda: fused_matrix(T),
        lambda: optimal_shift(1.0, T),
        lambda: sorted_train(z, T),
        lambda: first_spike(z, T),
        lambda: QCFS(levels=T),
    ):
        with pytest.raises(ValueError, match="int of at least 1"):
            call()


@pytest.mark.parametrize("theta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_number_must_be_positive(theta):
    z = torch.ones(3)
    for call in (
        lambda: spike_count(z, theta, 4),
        lambda: qcfs(z, theta, 4),
        lambda: da_qcfs(z, theta, 0.0, 0.0, 4),
        lambda: optimal_shift(theta, 4),
        lambda: fire(z, theta),
        lambda: if_neuron(z, theta),
        lambda: QCFS(v_threshold=theta),
    ):
        with pytest.raises(ValueError, match="finite and above 0"):
            call()


def test_wrong_arguments_are_refused_with_a_remedy():
    z = torch.ones(3)
    for call in (
        lambda: qcfs(z, 1.0, 4, "both"),  # pyright: ignore[reportArgumentType]
        lambda: QCFS(window="both"),  # pyright: ignore[reportArgumentType]
        lambda: charge(z, "fft"),  # pyright: ignore[reportArgumentType]
        lambda: fire(z, 1.0, method="fft"),  # pyright: ignore[reportArgumentType]
        lambda: sorted_train(z, 3, "random"),  # pyright: ignore[reportArgumentType]
        lambda: first_spike(z, 3, "random"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match="must be one of"):
            call()
    for start, stop in [(-1, 2), (2, 1), (0, 4)]:
        with pytest.raises(ValueError, match="0 <= start <= stop <= T"):
            sorted_train(z, 3, start=start, stop=stop)
    with pytest.raises(ValueError, match="time first"):
        if_neuron(torch.ones(0, 3), 1.0)
    with pytest.raises(ValueError, match="optimal_shift"):
        fire(torch.ones(3, 2), 1.0, torch.ones(4))
    with pytest.raises(ValueError, match="matrix must be"):
        parallel_neuron(z, fused_matrix(4), 1.0)
    for name, call in (
        ("mean_current", lambda: spike_count(z.int(), 1.0, 4)),
        ("z", lambda: qcfs(z.int(), 1.0, 4)),
        ("z", lambda: da_qcfs(z.int(), 1.0, 0.0, 1.0, 4)),
        ("current", lambda: charge(z.int())),
        ("current", lambda: if_neuron(z.int(), 1.0)),
    ):
        with pytest.raises(TypeError, match=rf"^{name} .*\.float\(\)"):
            call()
    with pytest.raises(TypeError, match="must be bool"):
        count_of(z)
