"""Law: the engines agree; trains exist, are sorted and add up; QCFS at T = T̃ is lossless."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SHAPES, Dense, PreActivation, Quantised, Residual, exact, made, planned
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import parspike
from parspike import engines
from parspike.neurons import spike_count

TRAINED = ("count", "parallel", "serial")


def assert_counts_agree(snn, one, other, *, ulps=64):
    """Equal counts, except where the current lies within `ulps` of the threshold that would change the count."""
    for layer, count in one.counts.items():
        different = count != other.counts[layer]
        assert (count - other.counts[layer]).abs().max() <= 1
        share = different.float().mean()
        assert share <= ulps * torch.finfo(count.dtype).eps * snn.T * 100, (layer, float(share))


@functools.cache
def exactly(kind):
    model, x = made(kind)
    return parspike.plan(exact(model), x)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("T", [1, 2, 8])
def test_engines_are_equal_where_sums_are_exact(kind, T):
    """Would catch an engine that counts, sends or adds otherwise than `count`, by a single spike."""
    _, x = made(kind)
    x = torch.randint(-3, 4, x.shape).to(x.dtype)
    snn = parspike.convert(exactly(kind), x, T=T, recipe="max")
    for neuron in snn.neurons().values():  # powers of two, so that every sum and product is exact
        for parameter in (neuron.v_threshold, neuron.v_post):
            parameter.copy_(torch.full_like(parameter, 4.0))
        neuron.shift.copy_(torch.full_like(neuron.shift, 0.5))
    runs = {engine: snn.run(x, engine=engine, record=True) for engine in TRAINED}
    assert torch.equal(snn(x), runs["count"].logits)
    for engine in ("parallel", "serial"):
        for layer, count in runs["count"].counts.items():
            assert torch.equal(count, runs[engine].counts[layer]), (engine, layer)
        assert torch.equal(runs[engine].logits, runs["count"].logits)


@pytest.mark.parametrize("kind", SHAPES)
def test_engines_agree_on_real_weights(kind):
    """Would catch engines that agree on whole numbers alone."""
    model, x = made(kind, seed=1, batch=16)
    model, x = model.double(), x.double()
    snn = parspike.convert(model, x, T=6)
    count = snn.run(x, record=True)
    for engine in ("parallel", "serial"):
        run = snn.run(x, engine=engine, record=True)
        assert_counts_agree(snn, count, run)
        torch.testing.assert_close(run.logits, count.logits, rtol=1e-9, atol=1e-9)


class Gated(nn.Module):
    """Attention, a LayerNorm and a GELU, whose every product encoders drive with spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, nn.functional.gelu, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def kept(currents, name, count, z):
    currents[name] = z.clone()
    return count(z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_engines_differ_by_the_rounding_of_sums_alone(dtype):
    """Would catch a current that an engine computes of something else than the means: up to the first layer in which a
    neuron counts otherwise, currents are equal up to the order of their sums, and in float64 no neuron does."""
    torch.manual_seed(0)
    model, x = Gated().eval().to(dtype), torch.randn(32, 6, 16, dtype=dtype)
    snn = parspike.convert(model, [x], T=6, code="weighted", recipe="max", encode="all")
    neurons, seen = snn.neurons(), []
    for engine in TRAINED:
        currents = {}
        for name, neuron in neurons.items():
            vars(neuron)["count"] = functools.partial(kept, currents, name, neuron.count)
        seen.append((snn.run(x, engine=engine, record=True).counts, currents))
        for neuron in neurons.values():
            del vars(neuron)["count"]
    (counts, currents), *others = seen
    assert len(currents) == len(neurons) > 8
    for other_counts, other_currents in others:
        for node in (node for node in snn.graph.neurons if node.name in neurons):
            z, difference = currents[node.name], (counts[node.layer] - other_counts[node.layer]).abs().max()
            assert (z - other_currents[node.name]).abs().max() <= 64 * torch.finfo(dtype).eps * z.abs().max()
            if difference > 0:
                assert dtype is torch.float32
                assert difference == 1
                break


class Shared(nn.Module):
    """Values that are read again, in part or in another shape, behind an operator that could overwrite them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        shifted = x * 2
        y = self.a(shifted)
        part = y[:, ::2]
        z = self.b(torch.relu(y)) + y * 0.5
        gate = torch.sigmoid(z.unsqueeze(1))
        return self.c(torch.relu(z * 3) * gate.squeeze(1)) + part, shifted


@pytest.mark.parametrize("kind", [*SHAPES, Shared])
def test_values_are_overwritten_only_where_nobody_reads_them_again(kind):
    """Would catch an operator that overwrites an input, an output, a weight, or what another one reads later."""
    if kind is Shared:
        model, x = Shared().eval(), torch.randn(6, 3)
        snn = parspike.convert(model, x, T=6, layers={"sigmoid": parspike.Keep()})
    else:
        _, x, plan = planned(kind)
        snn = parspike.convert(plan, x, T=6, recipe="max")
    assert snn._pass.over
    given, held = x.clone(), copy.deepcopy(snn.state_dict())
    wanted = snn.run(x, record=True).logits  # nothing is overwritten
    for _ in range(2):
        torch.testing.assert_close(snn(x), wanted, rtol=0, atol=0)
    assert torch.equal(x, given)
    assert all(torch.equal(held[name], value) for name, value in snn.state_dict().items())
    wide = x.clone().requires_grad_()  # what autograd keeps is not overwritten either
    out = snn(wide)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    if kind is Shared:
        out[0].sum().backward()


class Beside(nn.Module):
    """The input itself beside spikes, places as in transformers, and a free length that an operator behind asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.places = nn.Linear(4, 4), nn.Linear(2, 3), nn.Parameter(torch.randn(9, 4))

    def forward(self, x):
        mixed = x + torch.relu(self.a(x)) + torch.tanh(self.places[: x.shape[1]])
        return self.head(mixed.reshape(mixed.shape[0], 2 * mixed.shape[1], 2))


def test_an_input_beside_spikes_is_the_same_at_every_step():
    """Would catch steps that are put into another dimension of an input than its batch, and lengths lost on the way."""
    x = torch.randn(8, 5, 4)
    model = Beside().eval()
    snn = parspike.convert(model, x, T=7, recipe="max")
    for inputs in (x, torch.randn(3, 9, 4)):  # another batch and another length
        wanted = snn.run(inputs, record=True)
        for run in (
            snn.run(inputs, engine="parallel", chunk=3, record=True), snn.run(inputs, engine="serial", record=True)
        ):  # fmt: skip
            assert_counts_agree(snn, wanted, run)
            torch.testing.assert_close(run.logits, wanted.logits)
    chip = parspike.convert(model, x, T=4, neuron=parspike.IF(), recipe="max")
    torch.testing.assert_close(chip.run(x, chunk=4).logits, chip.run(x, chunk=1).logits)


@settings(max_examples=15, deadline=None)
@given(T=st.integers(1, 12), chunk=st.integers(1, 14), seed=st.integers(0, 5))
def test_chunks_of_time_do_not_matter(T, chunk, seed):
    """Would catch a chunk that begins at the wrong step or forgets what the one before left."""
    _, x, plan = planned(PreActivation, seed, 3, torch.float64)
    snn = parspike.convert(plan, x, T=T, recipe="max")
    whole = snn.run(x.double(), engine="parallel", record=True)
    cut = snn.run(x.double(), engine="parallel", record=True, chunk=chunk)
    assert_counts_agree(snn, whole, cut)
    torch.testing.assert_close(cut.logits, whole.logits, rtol=1e-9, atol=1e-9)


def test_qcfs_at_its_own_T_is_lossless():
    model, x = made(Quantised, batch=32)
    snn = parspike.convert(model, T=4, example=x)
    with torch.no_grad():
        torch.testing.assert_close(snn(x), model(x), rtol=1e-5, atol=1e-5)
    seen = {}
    model.conv1.register_forward_hook(lambda _m, _i, z: seen.update(act1=z))
    with torch.no_grad():
        model(x)
    counts = snn.run(x, engine="parallel", record=True).counts
    assert torch.equal(counts["act1"], spike_count(seen["act1"], model.act1.v_threshold, 4))


def test_trains_are_sorted_and_carry_the_counts():
    _, x, plan = planned(Residual)
    snn = parspike.convert(plan, x, T=5)
    for engine in TRAINED:
        run = snn.run(x, engine=engine, record=True)
        for layer, train in run.spikes.items():
            assert train.shape == (5, *run.counts[layer].shape)
            assert train.dtype == torch.bool
            assert torch.equal(train.sum(0).to(x.dtype), run.counts[layer])
            assert bool((train[1:] >= train[:-1]).all())


def test_what_travels_is_the_train():
    """The parallel engine sends the trains: a neuron whose train lies changes its successors' counts."""
    _, x, plan = planned(Residual)
    snn = parspike.convert(plan, x, T=4)
    honest = snn.run(x, engine="parallel", record=True)
    first = snn.neurons()[next(iter(snn.neurons()))]
    original = type(first).spikes
    try:
        type(first).spikes = lambda self, count, start=0, stop=None: ~original(self, count, start, stop)
        lying = snn.run(x, engine="parallel")
    finally:
        type(first).spikes = original
    assert not torch.allclose(lying.logits, honest.logits)


def test_serial_if_twin_is_the_published_neuron():
    """On a chain whose first layer has constant input, it fires as v(0) = θ/2 and soft reset say."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x, T = torch.randn(5, 3), 7
    snn = parspike.convert(model, x, T=T, recipe="max")
    run = snn.run(x, engine="serial-if", record=True)
    theta = next(iter(snn.neurons().values())).v_threshold
    z, v, total = model[0](x), theta / 2, 0
    for t in range(T):
        m = v + z
        s = (m >= theta).float()
        v = m - theta * s
        assert torch.equal(run.spikes["1"][t], s.bool())
        total = total + model[2](theta * s)
    torch.testing.assert_close(run.logits, total / T)


def test_serial_if_approaches_the_network_with_max_pool_between():
    model, x = made(Dense, batch=4)
    snn = parspike.convert(model, x, T=256, recipe="max")
    out = snn.run(x, engine="serial-if").logits
    assert (out - model(x)).abs().max() < 0.05 * model(x).abs().max()


def test_large_T_runs_and_approaches_the_network():
    model, x, plan = planned(Residual)
    x = x[:2]
    snn = parspike.convert(plan, x, T=1024)
    reference = model(x)
    for engine in ("count", "parallel", "serial", "serial-if"):
        run = snn.run(x, engine=engine)
        assert (run.logits - reference).norm() < 0.01 * reference.norm(), engine


def test_parallel_engine_folds_no_more_than_the_chunk_into_the_batch(monkeypatch):
    from parspike.graph import ops

    _, x, plan = planned(Residual)
    x = x[:2]
    snn = parspike.convert(plan, x, T=64)
    seen = []
    original = ops.TABLE["aten.conv2d.default"].run
    spy = lambda z, *rest: (seen.append(z.shape[0]), original(z, *rest))[1]  # noqa: E731
    row = copy.copy(ops.TABLE["aten.conv2d.default"])
    object.__setattr__(row, "run", spy)
    monkeypatch.setitem(ops.TABLE, "aten.conv2d.default", row)
    snn.run(x, engine="parallel", chunk=8)
    assert seen[0] == 2  # the first synapse, on a constant input, runs once
    assert max(seen) == 16
    assert seen.count(16) == 2 * 64 // 8
    seen.clear()
    snn.run(x, engine="serial")
    assert set(seen) == {2}


def test_kept_activations_stay_analog():
    model, x = made(Residual)
    snn = parspike.convert(model, x, T=4, layers={"act": parspike.Keep(), "relu6": parspike.Keep()})
    run = snn.run(x, record=True)
    assert set(run.counts) == {"act@2", "clamp", "hardtanh"}
    for engine in ("parallel", "serial"):
        torch.testing.assert_close(snn.run(x, engine=engine).logits, run.logits, rtol=1e-4, atol=1e-4)


def test_snn_is_a_module(tmp_path):
    _, x, plan = planned(Residual)
    snn = parspike.convert(plan, x, T=4)
    keys = set(snn.state_dict())
    assert {"synapses.conv1.weight", "spiking.act.v_threshold", "spiking.act@2.shift"} <= keys
    twin = copy.deepcopy(snn)
    twin.load_state_dict(snn.state_dict())
    assert torch.equal(twin(x), snn(x))
    twin.spiking.act.v_threshold.mul_(2)
    assert not torch.equal(twin(x), snn(x))
    assert snn.double()(x.double()).dtype == torch.float64
    replica = nn.parallel.DataParallel(twin)
    assert torch.equal(replica(x), twin(x))


def test_zeros_that_forward_makes_follow_the_dtype():
    """Would catch a network in float64 that multiplies by a one-hot matrix of float32."""

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.table = nn.Linear(6, 4), nn.Embedding(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x).relu()
            chosen = torch.zeros(y.shape[0], 4, device=x.device).scatter(1, y.argmax(1, keepdim=True), 1)
            return torch.matmul(chosen, self.table.weight)

    x = torch.randn(8, 6)
    model = Quantised().eval()
    snn = parspike.convert(model, [x], T=256)
    assert snn(x).dtype == torch.float32
    torch.testing.assert_close(snn.double()(x.double()), model(x).detach().double())


def test_networks_of_two_dtypes_take_what_they_were_traced_with(tmp_path):
    class Table(nn.Module):
        """A table of float32 in a network of float64."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("a_table", torch.ones(6))
            self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(8, 3).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x * self.a_table).relu())

    x = torch.randn(8, 6, dtype=torch.float64)
    snn = parspike.convert(Table().eval(), [x], T=4)
    assert snn(x).dtype == torch.float64
    with pytest.raises(parspike.errors.InputError, match=r"float32, this network takes torch.float64"):
        snn(x.float())
    assert torch.equal(parspike.load(snn.save(tmp_path / "two.parspike"))(x), snn(x))
    assert snn.half()(x.half()).dtype == torch.float16


def test_count_engine_is_one_graph():
    _, x, plan = planned(Residual)
    snn = parspike.convert(plan, x, T=4)
    exported = torch.export.export(snn, (x,), dynamic_shapes={"args": ({0: torch.export.Dim.AUTO},)}, strict=False)
    y = torch.randn(9, *x.shape[1:])
    assert torch.equal(exported.module()(y), snn(y))
    compiled = torch.compile(snn, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), snn(x))


class Mirrored(nn.Module):
    """Sums of two activations, where the second has the negative of what the first has, or of something else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), self.b(x)
        pair = torch.relu(a) + torch.relu(-a)
        return self.c(pair + (torch.relu(a + 1) + torch.relu(-b)))


def test_only_neurons_of_one_current_are_run_as_a_pair() -> None:
    """Would catch two neurons that are taken for the sides of one value because one of their currents is negated."""
    torch.manual_seed(0)
    x = torch.randn(9, 4, dtype=torch.float64)
    snn = parspike.convert(Mirrored().double().eval(), x, 4, recipe="max")
    assert len(engines.Pass.of(snn.graph, snn.counting()).pairs) == 1
    torch.testing.assert_close(snn.run(x).logits, snn.run(x, engine="parallel").logits)


class Negated(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return -weight


def test_pruned_and_parametrized_synapses_are_read(tmp_path: Path) -> None:
    """Would catch weights looked for among parameters alone, where torch's tools put what they make of them."""
    _, x, plan = planned(Residual)
    snn = parspike.convert(plan, x, T=4, recipe="max")
    wanted = copy.deepcopy(snn)
    name = next(path.removesuffix(".weight") for path in snn.tensors() if path.endswith(".weight"))
    layer, other = (s.synapses.get_submodule(name) for s in (snn, wanted))
    prune.l1_unstructured(layer, "weight", 0.5)
    with torch.no_grad():
        other.weight.mul_(layer.weight_mask)
    assert torch.equal(snn(x), wanted(x))
    assert torch.equal(parspike.load(snn.save(tmp_path / "net.parspike"))(x), wanted(x))
    prune.remove(layer, "weight")
    assert torch.equal(snn(x), wanted(x))
    parametrize.register_parametrization(layer, "weight", Negated())
    with torch.no_grad():
        other.weight.neg_()
    assert torch.equal(snn(x), wanted(x))
