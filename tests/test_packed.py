"""Trains as bits: every code and T, every kind of neurons, every engine, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Residual, planned
from torch import Tensor, nn

import parspike
from parspike import engines
from parspike.baselines.phase import PhaseNeuron
from parspike.errors import OptionError, ParspikeWarning
from parspike.lower import integers
from parspike.neurons import (
    Neuron,
    PackedTrains,
    ParallelNeuron,
    SignedNeuron,
    Staircase,
    WholeCurve,
    WholeNeuron,
    WholePair,
    WholeStaircase,
    joined_trains,
    levels_of,
)
from parspike.neurons.layer import KINDS

STEPS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]
ONE = torch.tensor(1.0)


def made(T: int, code: Any) -> dict[str, Neuron]:
    """Neurons of every kind whose counts are what they are given, by kind."""
    levels = levels_of(T, code)
    steps = torch.arange(levels, dtype=torch.float32)
    found: dict[str, Neuron] = {
        "parallel": ParallelNeuron(T, ONE * levels, code=code),
        "signed": SignedNeuron(T, ONE * levels, offset=ONE, code=code),
        "staircase": Staircase(T, steps, torch.arange(levels + 1.0), code=code),
        "whole": WholeNeuron(T, ONE, ONE, code=code),
        "whole-pair": WholePair(T, ONE, ONE, code=code),
        "whole-staircase": WholeStaircase(T, steps + 1, code=code),
        "whole-curve": WholeCurve(
            T, -levels * ONE, torch.tensor([levels + 1.0]), torch.arange(1.0 - levels, levels + 1), code=code
        ),
    }
    if code == "weighted":
        found["phase"] = PhaseNeuron(T, ONE * levels, 2 * ONE)
    return found


def test_every_kind_of_neurons_is_among_them() -> None:
    """Would catch a new kind whose trains nobody packs."""
    ours = {name for name, kind in KINDS.items() if issubclass(kind, Neuron) and kind.__module__.startswith("parspike")}
    assert ours == set(made(4, "weighted"))


@pytest.mark.parametrize("T", STEPS)
@pytest.mark.parametrize("code", ["sorted", "onset", "weighted"])
def test_bits_are_the_train(code: Any, T: int) -> None:
    """Would catch a bit at the wrong step, a word too few, and a count that is read back as another one."""
    if code == "weighted" and T > 9:
        T = min(T, 12)
    for kind, neuron in made(T, code).items():
        count = torch.arange(neuron.lowest, neuron.levels + 1.0)
        trains, train = neuron.pack(count), neuron.spikes(count)
        assert trains.shape == train.shape
        assert torch.equal(trains.unpack(), train), kind
        assert trains.unpack().dtype == train.dtype
        assert torch.equal(trains.sent(), neuron.sent(count).int()), kind
        assert torch.equal(neuron.counted(trains), count), kind
        again = PackedTrains.of(train)
        assert torch.equal(again.words, trains.words)
        assert (again.negative is None) == (trains.negative is None)
        assert len(trains.words) == -(-T // 32)
        assert trains.words.element_size() == (1 if T <= 8 else 2 if T <= 16 else 4)


@settings(max_examples=40, deadline=None)
@given(T=st.integers(1, 70), seed=st.integers(0, 99), signed=st.booleans(), data=st.data())
def test_any_train_and_any_slice_come_back(T: int, seed: int, signed: bool, data: st.DataObject) -> None:
    """Would catch bits that depend on the train being of a code, and slices that begin at another step."""
    draw = torch.Generator().manual_seed(seed)
    train = torch.rand(T, 3, 5, generator=draw) < 0.4
    if signed:
        train = torch.where(torch.rand(3, 5, generator=draw) < 0.5, -train.to(torch.int8), train.to(torch.int8))
    trains = PackedTrains.of(train)
    start = data.draw(st.integers(0, T))
    stop = data.draw(st.integers(start, T))
    assert torch.equal(trains.unpack(start, stop), train[start:stop])
    assert torch.equal(trains.unpack(), train)
    assert torch.equal(trains.sent(), (train != 0).sum(0).int())
    assert torch.equal(joined_trains([trains, trains], 1).unpack(), torch.cat([train, train], 2))
    assert trains.nbytes == trains.words.nbytes + 15 * signed


def test_what_packed_trains_refuse() -> None:
    trains = PackedTrains.of(torch.ones(4, 2, dtype=torch.bool))
    for bad in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(ValueError, match="slice"):
            trains.unpack(*bad)
    both = torch.tensor([[1], [-1]], dtype=torch.int8)
    for wrong in (both, both * 2, torch.ones(3, 2)):
        with pytest.raises(ValueError, match="one sign"):
            PackedTrains.of(wrong)
    for none in (torch.ones(0, 2, dtype=torch.bool), torch.tensor(True)):
        with pytest.raises(ValueError, match="T >= 1"):
            PackedTrains.of(none)
    assert repr(trains) == "PackedTrains((4, 2), 2 bytes)"


@pytest.mark.parametrize("T", [1, 4, 8, 12])
@pytest.mark.parametrize("code", ["sorted", "onset", "weighted"])
def test_what_neurons_emit_is_their_output_and_their_train(code: Any, T: int) -> None:
    """Would catch an output that is not that of the train beside it. NaN stays NaN, and sends nothing."""
    for kind, neuron in made(T, code).items():
        z = torch.linspace(-2.0 * neuron.levels, 2.0 * neuron.levels, 999).reshape(3, 333)
        z[1, 5] = float("nan")
        value, trains = neuron.emit(z)
        torch.testing.assert_close(value, neuron(z), rtol=0, atol=0, equal_nan=True)
        count = neuron.count(z).nan_to_num()
        assert torch.equal(trains.unpack(), neuron.spikes(count)), kind
        assert not trains.unpack()[:, 1, 5].any()
        assert value[1, 5].isnan()
        assert neuron.emit(z[:0])[1].unpack().shape == (T, 0, 333)


def networks(code: Any, T: int) -> tuple[parspike.SNN, Tensor]:
    _, x, plan = planned(Residual)
    return parspike.convert(plan, x, T=T, code=code, recipe="max"), x


@pytest.mark.parametrize("engine", ["count", "parallel", "serial"])
@pytest.mark.parametrize(("code", "T"), [("sorted", 6), ("sorted", 33), ("weighted", 4), ("onset", 9)])
def test_a_packed_run_is_the_run(engine: str, code: Any, T: int) -> None:
    """Would catch counts, trains or an answer that depend on how trains are kept."""
    snn, x = networks(code, T)
    wide = torch.randn(2, x.shape[1], 9, 15)
    inputs = [x, x[:1], x.to(memory_format=torch.channels_last), wide[:, :, :, ::2]]
    for batch in inputs[:1] if engine == "serial" else inputs:
        run, packed = snn.run(batch, engine=engine, record=True), snn.run(batch, engine=engine, record="packed")
        assert packed.engine == engine
        assert (packed.as_bits, run.as_bits) == (True, False)
        assert torch.equal(packed.logits, run.logits)
        assert list(packed.packed) == list(run.counts)
        for layer, count in run.counts.items():
            assert torch.equal(packed.counts[layer], count)
            assert torch.equal(packed.sent[layer], run.sent[layer].int())
            assert torch.equal(packed.spikes[layer], run.spikes[layer])
            assert torch.equal(packed.packed[layer].unpack(), run.spikes[layer])
        assert packed.firing_rate == pytest.approx(run.firing_rate)


def test_layers_of_few_steps_signed_neurons_and_whole_numbers() -> None:
    """Would catch words as wide as the network's T where a layer has its own, and a lost sign."""
    torch.manual_seed(0)
    first = [nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7)]
    model = nn.Sequential(*first, nn.Tanh(), nn.Linear(7, 3)).eval()
    x = torch.randn(40, 6)
    snn = parspike.convert(model, x, T=20, recipe="max", layers={"1": parspike.Steps(5)})
    assert snn.run(x, record="packed").packed["1"].shape == (5, 40, 9)
    coded = parspike.convert(model, x, T=20, recipe="max", encode="all")
    assert any(isinstance(neuron, SignedNeuron) for neuron in coded.neurons().values())
    whole = integers(parspike.convert(nn.Sequential(*first).eval(), x, T=8, recipe="max"), x)
    for net, engine in ((snn, "count"), (coded, "count"), (whole, "count"), (whole, "integer")):
        run, packed = net.run(x, engine=engine, record=True), net.run(x, engine=engine, record="packed")
        for layer, count in run.counts.items():
            assert torch.equal(packed.counts[layer], count)
            assert torch.equal(packed.spikes[layer], run.spikes[layer])
        assert torch.equal(packed.logits, run.logits)


def test_a_compiled_network_packs_the_same_trains() -> None:
    snn, x = networks("sorted", 8)
    run = snn.run(x, record=True)
    snn.compile(backend="eager")
    torch._dynamo.utils.counters.clear()
    for part in (x, x[:3], x[:4]):
        packed = snn.run(part, record="packed")
        for layer, count in run.counts.items():
            assert torch.equal(packed.counts[layer], count[: len(part)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # any batch


def test_parts_of_a_batch_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, x = networks("sorted", 6)
    x = x[:5]
    whole = snn.run(x, record="packed")
    real = engines.count

    def run(net: Any, env: dict[str, Tensor], *rest: Any, **options: Any) -> Any:
        if len(next(iter(env.values()))) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(net, env, *rest, **options)

    monkeypatch.setattr(engines, "count", run)
    with pytest.warns(ParspikeWarning, match="parts of 2"):
        parts = snn.run(x, record="packed")
    for layer, trains in whole.packed.items():
        assert torch.equal(parts.packed[layer].words, trains.words)
        assert torch.equal(parts.spikes[layer], whole.spikes[layer])


def test_a_file_of_a_packed_run_is_that_of_the_run(tmp_path: Any) -> None:
    snn, x = networks("onset", 6)
    records: dict[str, Any] = {"one": True, "other": "packed"}
    for name, record in records.items():
        parspike.write_spikes(snn, snn.run(x, record=record), tmp_path / f"{name}.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()


def test_what_is_refused() -> None:
    snn, x = networks("sorted", 4)
    for wrong in ("bits", 1, None):
        with pytest.raises(OptionError, match="record must be True, False or 'packed'"):
            snn.run(x, record=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(OptionError, match="serial-if"):
        snn.run(x, engine="serial-if", record="packed")
    with pytest.raises(OptionError, match="record='packed'"):
        _ = snn.run(x, record=True).packed
    with pytest.raises(OptionError, match="record"):
        _ = snn.run(x).packed
