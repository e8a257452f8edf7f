"""`snn.compile()`: the count engine through torch.compile."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import Dense, Residual, planned

import parspike
from parspike.errors import InputError, OptionError
from parspike.lower import integers


def test_any_batch_is_one_graph() -> None:
    _, x, plan = planned(Residual, batch=9)
    snn = parspike.convert(plan, x, T=6, recipe="max")
    compiled = copy.deepcopy(snn).compile(backend="eager")
    torch._dynamo.utils.counters.clear()
    for part in (x, x[:5], x[:1], x[:4]):
        run, again = snn.run(part, record=True), compiled.run(part, record=True)
        assert torch.equal(again.logits, run.logits)
        assert all(torch.equal(again.counts[layer], count) for layer, count in run.counts.items())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # any batch, and a batch of one


@pytest.mark.slow
def test_compiled_and_eager_count_alike(compiler: None) -> None:
    _, x, plan = planned(Residual, batch=9)
    snn = parspike.convert(plan, x, T=6, recipe="max")
    whole = integers(snn, x)
    run, wanted = snn.run(x, record=True), whole(x)
    again = snn.compile().run(x, record=True)
    for layer, count in run.counts.items():
        apart = (again.counts[layer] - count).abs()
        assert float(apart.max()) <= 1, layer
        assert float((apart > 0).float().mean()) < 1e-3, layer
    assert torch.allclose(again.logits, run.logits, rtol=1e-3, atol=1e-3)
    assert whole.compile() is whole
    assert torch.equal(whole(x), wanted)


def test_what_a_compiled_network_keeps_to(tmp_path) -> None:
    _, x, plan = planned(Residual, batch=9)
    snn = parspike.convert(plan, x, T=4, recipe="max").compile(backend="eager")
    wanted = snn(x)
    with pytest.raises(InputError, match="this network takes"):
        snn(x[:, :2])
    for other in (copy.deepcopy(snn), parspike.load(snn.save(tmp_path / "net.parspike"))):
        assert other._compiled is None
        assert torch.equal(other(x), wanted)
    assert torch.equal(snn.double()(x.double()).argmax(1), wanted.argmax(1))
    steps = parspike.convert(plan, x, T=4, recipe="max", neuron=parspike.IF())
    with pytest.raises(OptionError, match="step by step"):
        steps.compile()


@pytest.mark.parametrize(("dtype", "share", "apart"), [(torch.bfloat16, 0.1, 6), (torch.float16, 0.03, 3)], ids=str)
def test_under_autocast_few_neurons_count_otherwise(dtype: torch.dtype, share: float, apart: int) -> None:
    """Would catch neurons that compare in the short type: their thresholds would be off by as much as a count."""
    for kind in (Residual, Dense):
        _, x, plan = planned(kind, batch=9)
        snn = parspike.convert(plan, x, T=32, recipe="max")
        own = snn.run(x, record=True).counts
        with torch.autocast("cpu", dtype):
            got = snn.run(x, record=True).counts
        off = torch.cat([(own[layer] - got[layer].float()).abs().flatten() for layer in own])
        assert float((off > 0).float().mean()) < share
        assert float(off.max()) <= apart


def test_channels_last_stays() -> None:
    """Would catch neurons that lay their counts out anew: each convolution behind would turn them back."""
    _, x, plan = planned(Residual, batch=9)
    snn = parspike.convert(plan, x, T=6, recipe="max")
    wanted = snn(x)
    snn, x = snn.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    counts = [n for n in snn.run(x, record=True).counts.values() if n.dim() == 4]
    assert all(n.is_contiguous(memory_format=torch.channels_last) for n in counts)
    assert len(counts) >= 3
    torch.testing.assert_close(snn(x), wanted)
