"""Spike codes: decode(encode) = identity, what travels has the neuron's value as its mean, engines agree in each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SHAPES, planned

import parspike
from parspike.neurons import CODES, ParallelNeuron, neuron_from


def neuron(code, T, offset=0.0):
    made_neuron = ParallelNeuron(T, torch.tensor([[[1.0]], [[0.75]]], dtype=torch.float64), offset=offset, code=code)
    made_neuron.v_post.mul_(1.25)
    return made_neuron


@settings(deadline=None)
@given(code=st.sampled_from(CODES), T=st.integers(1, 9), offset=st.sampled_from([0.0, -1.0]))
def test_every_count_is_sent_and_read_back(code, T, offset):
    """Would catch two counts that are sent as one train, and a train that carries another value than its count."""
    cell = neuron(code, T, offset)
    k = torch.arange(cell.levels + 1, dtype=torch.float64).reshape(-1, 1, 1, 1).expand(-1, 2, 1, 1)
    spikes = cell.spikes(k)
    assert spikes.shape == (T, *k.shape)
    assert spikes.dtype == torch.bool
    assert len(torch.unique(spikes[:, :, 0, 0, 0].T, dim=0)) == cell.levels + 1  # a train each
    torch.testing.assert_close(cell.current(k).mean(0), cell.value(k))
    if code == "onset":
        assert bool((spikes.sum(0) <= 1).all())
    if code == "sorted":
        assert torch.equal(spikes.sum(0).double(), k)


@settings(deadline=None)
@given(code=st.sampled_from(CODES), T=st.integers(1, 6), extra=st.integers(0, 5), cut=st.integers(0, 6))
def test_currents_in_slices_and_longer_windows(code, T, extra, cut):
    """Would catch a slice of time that starts at the wrong step, and a window whose extra steps change the mean."""
    cell, window = neuron(code, T), T + extra
    k = torch.arange(cell.levels + 1, dtype=torch.float64).reshape(-1, 1, 1, 1).expand(-1, 2, 1, 1)
    cut = min(cut, window)
    parts = [cell.current(k, 0, cut, window), cell.current(k, cut, window, window)]
    whole = torch.cat(parts)
    assert whole.shape[0] == window
    torch.testing.assert_close(whole.mean(0), cell.value(k))


def test_weighted_spikes_carry_2_to_n_minus_1_levels_most_significant_first():
    cell = neuron("weighted", 3)
    k = torch.tensor([5.0]).reshape(1, 1, 1, 1)
    assert cell.spikes(k)[:, 0, 0, 0, 0].tolist() == [True, False, True]
    theta = 1.25  # step j carries 2^(n−1−j) θ/(2^n − 1) of the sum over steps, 3 times that of their mean
    assert (cell.amplitudes()[:, 0, 0, 0] / 3).tolist() == pytest.approx([4 * theta / 7, 2 * theta / 7, theta / 7])


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_engines_agree_in_every_code(code, kind):
    _, x, plan = planned(kind, batch=8, dtype=torch.float64)
    snn = parspike.convert(plan, x, T=3, code=code, recipe="max")
    count = snn.run(x, record=True)
    for engine in ("parallel", "serial"):
        run = snn.run(x, engine=engine, record=True)
        torch.testing.assert_close(run.logits, count.logits, rtol=1e-9, atol=1e-9)
        assert all(torch.equal(run.counts[layer], k) for layer, k in count.counts.items())
        assert all(train.shape[0] == 3 for train in run.spikes.values())


@torch.no_grad()
def test_weighted_at_n_steps_is_sorted_at_2_to_n_minus_1():
    _, x, plan = planned(next(iter(SHAPES)), batch=8)
    weighted = parspike.convert(plan, x, T=4, code="weighted")
    plain = parspike.convert(plan, x, T=15)
    torch.testing.assert_close(weighted(x), plain(x))


@pytest.mark.parametrize("code", CODES)
def test_neurons_come_back_from_config_and_tensors(code):
    cell = neuron(code, 3, -0.5)
    twin = neuron_from(cell.config(), cell.state_dict())
    z = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    assert torch.equal(twin(z), cell(z))
    with pytest.raises(ValueError, match="unknown kind"):
        neuron_from({"kind": "x"}, {})


def test_weighted_code_has_a_limit():
    with pytest.raises(ValueError, match="at most T = 20"):
        ParallelNeuron(21, torch.tensor(1.0), code="weighted")
