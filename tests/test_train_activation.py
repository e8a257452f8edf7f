"""`TrainQCFS`: the values of `neurons.QCFS`, for the price of four bits a neuron."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parspike.errors import OptionError
from parspike.neurons import QCFS
from parspike.train import TrainQCFS
from parspike.train.activation import STEPS

WINDOWS = pytest.mark.parametrize("window", ["inner", "outer"])


def currents(shape: tuple[int, ...] = (6, 5, 7, 7), dtype: torch.dtype = torch.float32) -> Tensor:
    """Random currents, and the places where the staircase and its windows jump."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2
    edges = torch.tensor([-0.17, 0.0, 0.17, 0.5, 1.35, 1.5, 1.7, -9.0, 9.0], dtype=dtype)
    z.view(-1)[: len(edges)] = edges
    return z


def both(window: Any, fused: bool, theta: float, levels: int, dtype: torch.dtype = torch.float32):
    results = []
    for made in (TrainQCFS(levels, theta, window, fused=fused), QCFS(levels, theta, window)):
        made = made.to(dtype)
        z = currents(dtype=dtype).requires_grad_()
        a = made(z)
        (a * torch.linspace(-1, 2, a.numel(), dtype=dtype).view_as(a)).sum().backward()
        results.append((a.detach(), z.grad, made.v_threshold.grad))
    return results


@WINDOWS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_qcfs(window, dtype):
    (a, to_z, to_theta), (a_ref, to_z_ref, to_theta_ref) = both(window, False, 1.35, 4, dtype)
    assert torch.equal(a, a_ref)
    assert torch.equal(to_z, to_z_ref)
    # Each neuron's residual is rounded to 1/14 of a level: the sum is off by at most Σ|grad| / (2 · 14 · L).
    bound = torch.linspace(-1, 2, a.numel()).abs().sum() / (2 * STEPS * 4)
    assert (to_theta - to_theta_ref).abs() < bound


@pytest.mark.usefixtures("compiler")
@WINDOWS
def test_the_compiled_form_counts_the_same(window):
    (a, to_z, to_theta), (a_ref, to_z_ref, _) = both(window, True, 1.35, 4)
    assert torch.equal(a, a_ref)
    assert torch.equal(to_z, to_z_ref)
    (_, _, to_theta_plain), _ = both(window, False, 1.35, 4)
    assert torch.allclose(to_theta, to_theta_plain, rtol=1e-4)


def test_the_thresholds_gradient_is_right_on_average():
    z = torch.randn(64, 16, 32, 32, generator=torch.Generator().manual_seed(1)) * 2
    weights = torch.rand(z.shape, generator=torch.Generator().manual_seed(2)) - 0.3
    ours, theirs = TrainQCFS(4, 1.35, fused=False), QCFS(4, 1.35)
    for act in (ours, theirs):
        (act(z) * weights).sum().backward()
    assert ours.v_threshold.grad is not None
    assert theirs.v_threshold.grad is not None
    assert torch.isclose(ours.v_threshold.grad, theirs.v_threshold.grad, rtol=1e-3)


def test_odd_shapes_are_kept_unpacked():
    for shape in ((3, 5), (3, 4), (5,), ()):
        z = torch.linspace(-1, 3, max(1, torch.Size(shape).numel())).view(shape)
        grads = []
        for act in (TrainQCFS(4, 1.35, fused=False), QCFS(4, 1.35)):
            x = z.clone().requires_grad_()
            act(x).sum().backward()
            grads.append(x.grad)
        assert torch.equal(*grads)


@given(levels=st.integers(1, 16), theta=st.floats(0.05, 20.0), seed=st.integers(0, 99))
def test_any_levels_and_threshold(levels, theta, seed):
    """Would catch an activation that trains for other levels than the `QCFS` of the same numbers has."""
    z = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * theta
    assert torch.equal(TrainQCFS(levels, theta, fused=False)(z), QCFS(levels, theta)(z))


def test_a_threshold_for_each_channel():
    theta = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0]).view(5, 1, 1)
    act = TrainQCFS(4, theta, fused=False)
    z = currents()
    a = act(z)
    for channel, alone in enumerate(theta.flatten().tolist()):
        assert torch.equal(a[:, channel], QCFS(4, alone)(z[:, channel]))
    a.sum().backward()
    grad = act.v_threshold.grad
    assert grad is not None
    assert grad.shape == (5, 1, 1)
    assert grad.abs().min() > 0


def test_a_threshold_for_the_only_channel():
    act = TrainQCFS(4, torch.ones(1, 1, 1), fused=False)
    act(currents((2, 1, 4, 4))).sum().backward()
    assert act.v_threshold.grad is not None
    assert act.v_threshold.grad.shape == (1, 1, 1)


def test_four_bits_a_neuron_are_kept_for_the_backward_pass():
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        TrainQCFS(4, fused=False)(currents().requires_grad_())
    assert sum(t.numel() * t.element_size() for t in kept) == currents().numel() / 2


def test_half_precision_decides_in_single():
    z = currents().bfloat16()
    a = TrainQCFS(4, 1.35, fused=False)(z)
    assert a.dtype == torch.bfloat16
    assert torch.equal(a, QCFS(4, 1.35)(z.float()).bfloat16())
    act = TrainQCFS(4, 2.3, fused=False)
    with torch.no_grad():
        assert torch.equal(act(z), QCFS(4, 2.3)(z.float()).bfloat16())


def test_a_threshold_must_be_above_zero():
    with pytest.raises(OptionError, match="above 0"):
        TrainQCFS(4, torch.tensor([1.0, 0.0]))
