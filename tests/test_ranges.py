"""The range of an activation: both its ends from the data, channel by channel, whatever their size."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import parspike
from parspike.calibrate.channels import unit_of
from parspike.calibrate.distance import relative_error
from parspike.calibrate.percentile import WIDTHS, Selection
from parspike.errors import CalibrationError, FileError
from parspike.file.network import neuron_from_json
from parspike.neurons import ParallelNeuron

RECIPES = {
    "max": "max",
    "max, a layer": parspike.Thresholds(granularity="layer"),
    "99%": "99%",
    "95%, a layer": parspike.Thresholds("95%", "layer"),
    "daqcfs": parspike.DAQCFS(),
    "daqcfs, exact": parspike.DAQCFS(means="exact", mode="99%"),
    "thresholds alone": parspike.ClosedForm(refit=False),
    "closed form": parspike.ClosedForm(),
    "closed form, a layer": parspike.ClosedForm(granularity="layer", weigh="own"),
    "reconstruct": parspike.Reconstruct(steps=4),
    "auto": parspike.Auto(budget=1e-6),
}


class Clamped(nn.Module):
    """Layers of channels of unlike ranges, with a function behind each but the last."""

    def __init__(self, clamp, width=16, seed=1):
        super().__init__()
        self.clamp = clamp
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((6, width), (width, width), (width, 3)))
        with torch.no_grad():
            self.layers[0].weight *= torch.logspace(-1, 1, width)[:, None]
            self.layers[0].bias += torch.linspace(-2, 2, width)

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.clamp(layer(x))
        return self.layers[-1](x)


def inputs(number=192, seed=0):
    return torch.randn(number, 6, generator=torch.Generator().manual_seed(seed))


def neurons(snn):
    return list(snn.neurons().values())


def parameters(snn):
    return {name: tensor.clone() for name, tensor in snn.state_dict().items()}


@functools.cache
def planned(name):
    return parspike.plan(Clamped(CLAMPS[name]), inputs(48))


def converted(name, recipe):
    return parspike.convert(planned(name), inputs().split(48), T=4, recipe=recipe)


CLAMPS = {
    "±1e4": lambda x: x.clamp(-1e4, 1e4),
    "±65504": lambda x: x.clamp(-65504, 65504),
    "±the largest number": lambda x: x.clamp(torch.finfo(x.dtype).min, torch.finfo(x.dtype).max),
    "±1e30": lambda x: x.clamp(-1e30, 1e30),
    "hardtanh ±1000": lambda x: F.hardtanh(x, -1000.0, 1000.0),
    "from −500 on": lambda x: x.clamp(min=-500),
    "from below 0 on, asymmetric": lambda x: x.clamp(-1e6, 300.0),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_bounds_that_no_value_comes_near_do_not_matter(recipe):
    """The clamps leave every value as it is, so all of them are one network, and become the same neurons."""
    found = [parameters(converted(name, RECIPES[recipe])) for name in CLAMPS]
    assert any(name.endswith(".offset") for name in found[0])
    for other in found[1:]:
        for (name, one), two in zip(found[0].items(), other.values(), strict=True):
            assert torch.equal(one, two), name


@torch.no_grad()
def test_the_range_is_that_of_each_channel_or_of_the_layer():
    x, model = inputs(), Clamped(CLAMPS["±1e4"])
    a = model.layers[0](x)
    first = neurons(parspike.convert(model, x.split(48), T=4, recipe="max"))[0]
    torch.testing.assert_close(first.offset, a.amin(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.v_threshold, a.amax(0) - a.amin(0), rtol=1e-5, atol=1e-5)
    first = neurons(parspike.convert(model, x.split(48), T=4, recipe=RECIPES["max, a layer"]))[0]
    torch.testing.assert_close(first.offset, a.min().expand(16), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.v_threshold, (a.max() - a.min()).expand(16), rtol=1e-5, atol=1e-4)
    for neuron in neurons(parspike.convert(model, x.split(48), T=4, recipe=RECIPES["closed form, a layer"])):
        assert neuron.v_threshold.unique().numel() == 1


@torch.no_grad()
def test_percentiles_leave_out_as_many_below_as_above():
    x, model = inputs(200), Clamped(CLAMPS["±1e4"])
    model.layers[0].weight[3] *= 0
    x[7] *= 100  # one value far out in every channel but the constant one
    a = model.layers[0](x).sort(0).values
    first = neurons(parspike.convert(model, x.split(40), T=4, recipe="99%"))[0]
    torch.testing.assert_close(first.offset, a[2], rtol=1e-5, atol=1e-5)
    width = a[197] - a[2]
    width[3] = width.max()  # never anything else: the layer's largest, so that it stays silent
    torch.testing.assert_close(first.v_threshold, width, rtol=1e-5, atol=1e-5)
    assert torch.equal(first(a)[:, 3], a[:, 3])
    below = neurons(parspike.convert(model, x.split(40), T=4, recipe="30%"))[0]
    torch.testing.assert_close(below.offset, a[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(below.v_threshold[0], a[59, 0] - a[0, 0], rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_percentiles_of_one_value_are_refused():
    model = nn.Sequential(nn.Linear(2, 1), nn.Hardtanh(-1.0, 1e4), nn.Linear(1, 2)).eval()
    model[0].weight.fill_(1.0)
    model[0].bias.fill_(-9.0)
    x = torch.zeros(100, 2)
    x[0] = 5.0
    with pytest.raises(CalibrationError, match=r"layer '1': 98% of its outputs are at the lower end"):
        parspike.convert(model, x, T=4, recipe="98%")
    snn = parspike.convert(model, x, T=4, recipe="max")
    torch.testing.assert_close(snn(x), model(x))


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.99, 1.0])
def test_a_selection_orders_values_below_and_above_zero(share):
    x = torch.randn(3, 1001, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-30], [1.0], [1e30]])
    x[:, :9] = -0.0
    selection = Selection(share)
    for _ in WIDTHS:
        for part in x.split(300, 1):
            selection.add(part)
        selection.settle()
    assert torch.equal(selection.value, x.kthvalue(max(1, round(share * 1001)), 1).values)
    assert torch.equal(selection.lowest, x.amin(1))
    assert torch.equal(selection.largest, x.amax(1))


@pytest.mark.parametrize("recipe", RECIPES)
def test_bounds_that_values_reach_are_the_range(recipe):
    snn = parspike.convert(Clamped(lambda x: x.clamp(-0.05, 0.05)), inputs().split(48), T=4, recipe=RECIPES[recipe])
    first = neurons(snn)[0]
    assert first.offset == -0.05
    assert first.config()["offset"] == -0.05
    if recipe == "max":
        torch.testing.assert_close(first.v_threshold, torch.full((16,), 0.1))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0.0, 6.0), lambda x: x.clamp(min=0)])
def test_a_bound_of_zero_stays_even_where_a_channel_is_never_silent(activation):
    model = Clamped(activation)
    with torch.no_grad():
        model.layers[0].bias[0] = 100.0
    for recipe in ("max", "99%", "closed-form"):
        for neuron in neurons(parspike.convert(model, inputs().split(48), T=4, recipe=recipe)):
            assert neuron.offset == 0.0
            assert "offset" not in neuron.state_dict()


@pytest.mark.parametrize("bound", [1e4, math.inf])
def test_a_bound_may_be_infinite_above_or_on_both_sides(bound):
    x = inputs()
    given = [
        parspike.convert(Clamped(clamp), x.split(48), T=4, recipe="max")
        for clamp in (CLAMPS["±1e4"], lambda x: F.hardtanh(x, -bound, math.inf))
    ]
    assert torch.equal(given[0](x), given[1](x))


class Maps(nn.Module):
    """Clamps between convolutions, under a max-pool, in a sum and before a mean; the head's neurons have tokens."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.c, self.d = nn.Linear(6, 5), nn.Linear(5, 3)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.a(x).clamp(-1e4, 1e4)
        y = x + self.b(x).clamp(-50.0, 1e4)
        y = self.pool(y.clamp(min=-1e4))
        return self.d(self.c(y.flatten(2).mT).clamp(-1e4, 1e4)).mean(1)


@pytest.mark.parametrize("code", ["sorted", "weighted", "onset"])
@torch.no_grad()
def test_engines_and_files_agree_on_offsets_of_channels(code, tmp_path):
    x = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    layers = {"*": parspike.Steps(3)} if code == "sorted" else None
    snn = parspike.convert(Maps().double().eval(), x.split(8), T=5, code=code, recipe="closed-form", layers=layers)
    assert [tuple(n.offset.shape) for n in neurons(snn)] == [(6, 1, 1), (6, 1, 1), (6, 1, 1), (1, 5)]
    wanted = snn.run(x[:4], record=True)
    for engine in ("parallel", "serial"):
        run = snn.run(x[:4], engine=engine, record=True)
        torch.testing.assert_close(run.logits, wanted.logits, rtol=1e-9, atol=1e-9)
        for layer, count in wanted.counts.items():
            assert torch.equal(run.counts[layer], count)
    read = parspike.load(snn.save(tmp_path / "net.parspike"))
    assert torch.equal(read(x), snn(x))
    again = read.save(tmp_path / "again.parspike")
    assert again.read_bytes() == (tmp_path / "net.parspike").read_bytes()
    report = parspike.measure(snn, x.split(8), against=Maps().double().eval())
    assert report.error == pytest.approx(float((snn(x) - Maps().double()(x)).norm() / Maps().double()(x).norm()))


@torch.no_grad()
def test_the_serial_twin_emits_the_offsets_of_channels():
    """One layer of IF neurons, T steps by hand: v(0) = θ/2, current above the offset, offset beside the spikes."""
    model, x, T = Clamped(CLAMPS["±1e4"]).double(), inputs().double(), 6
    model.layers = nn.ModuleList([model.layers[0], model.layers[2]])
    snn = parspike.convert(model, x.split(48), T=T, recipe="max")
    neuron = neurons(snn)[0]
    z = model.layers[0](x) - neuron.offset
    v, mean = (neuron.v_threshold / 2).expand_as(z), torch.zeros_like(z)
    for _ in range(T):
        v = v + z
        spike = (v >= neuron.v_threshold).double()
        v, mean = v - spike * neuron.v_threshold, mean + spike * neuron.v_threshold / T
    twin = snn.run(x, engine="serial-if").logits
    torch.testing.assert_close(twin, model.layers[1](mean + neuron.offset))


@torch.no_grad()
def test_offsets_of_channels_follow_casts_copies_and_compilers():
    model, x = Clamped(CLAMPS["±1e4"]), inputs()
    snn = parspike.convert(model, x.split(48), T=4, recipe="max")
    assert snn.double().spiking is not None
    assert all(neuron.offset.dtype == torch.float64 for neuron in neurons(snn))
    snn = snn.float()
    other = parspike.convert(Clamped(CLAMPS["±1e4"], seed=5), x.split(48), T=4, recipe="max")
    assert not torch.equal(other(x), snn(x))
    other.load_state_dict(snn.state_dict())
    assert torch.equal(other(x), snn(x))
    exported = torch.export.export(snn, (x,)).module()
    torch.testing.assert_close(exported(x), snn(x))


def test_a_forged_offset_is_refused(tmp_path):
    x = inputs()
    snn = parspike.convert(Clamped(CLAMPS["±1e4"]), x.split(48), T=4, recipe="max")
    config = neurons(snn)[0].config()
    state = neurons(snn)[0].state_dict()
    assert config["offset"] is None
    for forged in (
        {**state, "offset": torch.zeros(15)},
        {**state, "offset": torch.zeros(2, 16)},
        {**state, "offset": torch.zeros(16).double()},
        {**state, "offset": torch.zeros(16, dtype=torch.int64)},
        {name: value for name, value in state.items() if name != "offset"},
    ):
        node = snn.graph.by_name[next(iter(snn.neurons()))]
        with pytest.raises(FileError, match=r"the neurons of 'clamp' cannot be read|does not fit"):
            neuron_from_json(node, config, forged, 4)
    path = snn.save(tmp_path / "net.parspike")
    neurons(snn)[0].offset[3] = math.nan
    with pytest.raises(FileError, match=r"neurons\.clamp\.offset' holds NaN or Inf"):
        snn.save(path, force=True)
    assert bool(neurons(parspike.load(path))[0].offset.isfinite().all())


class Digits(nn.Module):
    def __init__(self, clamp=None):
        super().__init__()
        self.clamp = clamp
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((64, 48), (48, 48), (48, 10)))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = layer(x).relu()
            x = x if self.clamp is None else self.clamp(x)
        return self.layers[-1](x)


def test_digits_are_read_behind_a_safety_clamp():
    """A clamp of ±1e4 behind each ReLU: the same as a clamp at the data's own range, and as none."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(data.data / 16).float()[:1200], torch.tensor(data.target)[:1200]
    trained = Digits()
    optimiser = torch.optim.Adam(trained.parameters(), 5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(trained(x), y).backward()
        optimiser.step()
    with torch.no_grad():
        first = trained.layers[0](x).relu()
        bound = 1.001 * max(float(first.max()), float(trained.layers[1](first).max()))
        for recipe in ("max", "daqcfs", "closed-form"):
            logits = []
            for clamp in (None, lambda x: x.clamp(-bound, bound), lambda x: x.clamp(-1e4, 1e4)):
                model = Digits(clamp).eval()
                model.load_state_dict(trained.state_dict())
                logits.append(parspike.convert(model, x.split(200), T=4, recipe=recipe)(x))
            assert torch.equal(logits[0], logits[2])
            assert torch.equal(logits[1], logits[2])


# Scale


def scaled(activation, c):
    """The network whose every activation is c times as large; its outputs are too."""
    model = Clamped(activation).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.bias *= c
    return model


ACTIVATIONS = {"relu": nn.ReLU(), "clamp": CLAMPS["±the largest number"], "staircase": nn.LeakyReLU(0.1)}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("recipe", ["max", "99%", "daqcfs", "closed form", "closed form, a layer", "thresholds alone"])
@torch.no_grad()
def test_networks_of_any_size_are_calibrated_alike(recipe, activation):
    x, activation = inputs(), ACTIVATIONS[activation]

    def outputs(c):
        return parspike.convert(scaled(activation, c), (x * c).split(48), T=4, recipe=RECIPES[recipe])(x * c) / c

    wanted, network = outputs(1.0), scaled(activation, 1.0)(x)
    for c in (2.0**-70, 2.0**70, 1e-20) if recipe == "closed form" else (2.0**-70, 2.0**70):
        found = outputs(c)
        if recipe in ("closed form", "closed form, a layer"):
            # The penalty of a re-fitted bias is in the inputs' unit, which steps of two are rounded to.
            assert float((found - network).norm()) < 1.15 * float((wanted - network).norm())
        else:
            assert torch.equal(found, wanted)


@torch.no_grad()
def test_one_layer_may_be_of_another_size_than_its_neighbours():
    x, found = inputs(), []
    for c in (1.0, 2.0**-70, 2.0**70):
        model = Clamped(nn.ReLU())
        model.layers[0].weight *= c
        model.layers[0].bias *= c
        model.layers[1].weight /= c
        snn = parspike.convert(model, x.split(48), T=4, recipe="closed-form")
        found.append(float((snn(x) - model(x)).norm() / model(x).norm()))
    assert max(found) < 1.15 * found[0]


def test_gradient_steps_lead_as_far_at_any_size(monkeypatch):
    """From the largest activations, which leave something to gain; the outputs (B, 1, 3) are no class scores."""
    monkeypatch.setattr(parspike.ClosedForm, "fit", lambda self, *given: parspike.Thresholds().fit(*given))
    x, found = inputs(), {}
    for c in (1.0, 2.0**-70, 2.0**70):
        model = nn.Sequential(scaled(CLAMPS["±1e30"], c), nn.Unflatten(1, (1, 3))).eval()
        for recipe in ("max", parspike.Reconstruct(steps=60, rate=0.02)):
            snn = parspike.convert(model, (x * c).split(48), T=2, recipe=recipe)
            with torch.no_grad():
                found.setdefault(c, []).append(float(relative_error(snn(x * c), model(x * c))))
    for start, end in found.values():
        assert end < start
        assert start == pytest.approx(found[1.0][0], rel=1e-5)
        assert end == pytest.approx(found[1.0][1], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_unit_is_exact_and_one_near_one(dtype):
    info = torch.finfo(dtype)
    values = torch.tensor([0.0, 1.0, 0.51, 2.0, info.max, info.smallest_normal, math.inf], dtype=dtype)
    unit = unit_of(values)
    assert torch.equal(unit[:4], torch.ones(4, dtype=dtype))
    assert unit[-1] == 1
    assert bool((torch.frexp(unit).mantissa == 0.5).all())
    assert bool(((values / unit)[4:6] >= 1).all())
    assert bool(((values / unit)[4:6] <= 2).all())


@pytest.mark.parametrize("c", [1e-30, 1e-20, 1e20, 1e30])
def test_a_relative_error_has_no_size(c):
    x, target = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).chunk(2)
    assert float(relative_error(x * c, target * c)) == pytest.approx(float(relative_error(x, target)), rel=1e-4)


def test_an_offset_of_one_element_counts_as_a_number():
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    number = ParallelNeuron(4, torch.tensor(1.5), offset=-0.75)
    tensor = ParallelNeuron(4, torch.tensor(1.5), offset=torch.tensor([-0.75]))
    assert "θ 1.5 … 1.5)" in repr(number)
    assert "θ 1.5 … 1.5, " in repr(tensor)
    many = ParallelNeuron(4, torch.full((5,), 1.5), offset=torch.full((5,), -0.75))
    for other in (tensor, many):
        assert torch.equal(other(z), number(z))
        assert torch.equal(other.value(other.count(z)), number(z))
        assert torch.equal(other.current(other.count(z)).mean(0), number.current(number.count(z)).mean(0))
