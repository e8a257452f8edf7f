"""The whole idea on one page: read this file first.

A network with ReLUs becomes a spiking network. In place of each activation stands a layer of neurons that answer with
a spike or none at each of T time-steps, instead of with a number. The next layer sums what arrives. No weight is
trained; a batch of inputs tells how large the values are that the spikes must stand for.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import parspike

torch.manual_seed(0)
T = 8  # time-steps
MODEL = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()  # yours would be trained
X = torch.rand(64, 4)  # its inputs; no labels


@pytest.fixture(scope="module")
def snn() -> parspike.SNN:
    return parspike.convert(MODEL, X, T=T)


def test_a_layer_answers_with_spikes(snn):
    run = snn.run(X, engine="parallel", record=True)
    spikes, counts = run.spikes["1"], run.counts["1"]  # "1" is the ReLU's name in MODEL
    assert spikes.shape == (T, 64, 16)  # time, batch, neuron
    assert spikes.dtype == torch.bool
    assert torch.equal(spikes.sum(0), counts)  # what a neuron says is how often it fires
    assert (spikes[1:] >= spikes[:-1]).all()  # sorted: once it fires, it fires to the end
    assert 0 < counts.float().mean() < T


def test_the_answer_comes_near_the_networks_and_nearer_with_more_time(snn):
    wanted = MODEL(X)

    def error(converted: parspike.SNN) -> torch.Tensor:
        return (converted(X) - wanted).norm() / wanted.norm()

    assert error(parspike.convert(MODEL, X, T=128)) < error(snn) / 4 < 0.05


def test_all_steps_at_once_or_one_by_one(snn):
    """The neurons compute their whole train from the mean of what arrives, so no step waits for the one before it."""
    count, parallel, serial = (snn.run(X, engine=name, record=True) for name in ("count", "parallel", "serial"))
    for run in (parallel, serial):  # "count" makes no trains, only how many spikes are in them
        assert torch.equal(run.counts["1"], count.counts["1"])
        torch.testing.assert_close(run.logits, count.logits)


def test_a_file_holds_the_network_and_no_code(snn, tmp_path):
    loaded = parspike.load(snn.save(tmp_path / "net.parspike"))
    assert torch.equal(loaded(X), snn(X))


def test_what_cannot_be_is_refused_with_the_reason(snn):
    with pytest.raises(parspike.ParspikeError, match="this network takes"):
        snn(torch.rand(64, 5))  # five inputs for four
    with pytest.raises(parspike.ParspikeError, match="T"):
        parspike.convert(MODEL, X, T=0)
