"""Algorithm 1 against an independent transcription, thresholds, independence of batches, options."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Quantised, Residual, made, planned
from torch import Tensor, nn

import parspike
from parspike.calibrate.batches import signature_of
from parspike.calibrate.percentile import WIDTHS, Selection
from parspike.errors import CalibrationError, InputError, OptionError
from parspike.neurons.percentile import MODES


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(3 * 4 * 4, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        return self.out(F.relu(self.fc(F.relu(self.conv(x)).flatten(1))))


def transcription(model, batches, T, alpha, passes):
    """Algorithm 1 for the network above, written out from method.md without any of the package."""
    conv, fc = model.conv, model.fc
    theta = [0.0, 0.0]
    for x in batches:
        a1 = F.relu(conv(x))
        a2 = F.relu(fc(a1.flatten(1)))
        theta[0] = torch.maximum(torch.as_tensor(theta[0]), a1.amax((0, 2, 3)))
        theta[1] = torch.maximum(torch.as_tensor(theta[1]), a2.amax(0))
    delta = [torch.zeros(3), torch.zeros(5)]
    phi = [torch.zeros(3), torch.zeros(5)]

    def student(z, l):
        shape = (1, -1, 1, 1) if z.dim() == 4 else (1, -1)
        t, d, p = (v.view(shape) for v in (theta[l], delta[l], phi[l]))
        return (t + p) / T * torch.clamp(torch.floor(((z + d) * T + t / 2) / t), 0, T)

    for _ in range(passes):
        for x in batches:
            a, s = x, x
            for l, layer in enumerate((conv, fc)):
                if l == 1:
                    a, s = a.flatten(1), s.flatten(1)
                dims = (0, 2, 3) if l == 0 else (0,)
                z, zs = layer(a), layer(s)
                delta[l] = alpha * delta[l] + (1 - alpha) * (z - zs).mean(dims)
                a, s = F.relu(z), student(zs, l)
                phi[l] = alpha * phi[l] + (1 - alpha) * (a - s).mean(dims)
    return theta, delta, phi


@pytest.mark.parametrize(("alpha", "passes"), [(0.99, 1), (0.5, 3)])
@torch.no_grad()
def test_algorithm_1_is_the_papers(alpha, passes):
    torch.manual_seed(0)
    model = Two().eval()
    batches = [torch.randn(8, 2, 6, 6) for _ in range(4)]
    snn = parspike.convert(model, batches, T=4, recipe=parspike.DAQCFS(momentum=alpha, passes=passes))
    theta, delta, phi = transcription(model, batches, 4, alpha, passes)
    for l, neuron in enumerate(snn.neurons().values()):
        torch.testing.assert_close(neuron.v_threshold.flatten(), theta[l])
        torch.testing.assert_close(neuron.shift.flatten(), delta[l], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(neuron.v_post.flatten(), theta[l] + phi[l], rtol=1e-3, atol=1e-5)
    assert any(bool(d.abs().max() > 1e-4) for d in delta)


@torch.no_grad()
def test_exact_means_do_not_depend_on_order_or_size_of_batches():
    torch.manual_seed(0)
    model, x = Two().eval().double(), torch.randn(24, 2, 6, 6).double()
    recipe = parspike.DAQCFS(means="exact")
    one = parspike.convert(model, x.split(24), T=3, recipe=recipe)
    other = parspike.convert(model, x.flip(0).split(5), T=3, recipe=recipe)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_exact_means_are_the_fixed_point_of_the_moving_ones():
    torch.manual_seed(1)
    model, x = Two().eval(), torch.randn(16, 2, 6, 6)
    exact = parspike.convert(model, [x], T=4, recipe=parspike.DAQCFS(means="exact"))
    moving = parspike.convert(model, [x], T=4, recipe=parspike.DAQCFS(momentum=0.9, passes=400))
    for one, other in zip(exact.neurons().values(), moving.neurons().values(), strict=True):
        torch.testing.assert_close(one.shift, other.shift, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(one.v_post, other.v_post, rtol=1e-2, atol=1e-3)


def test_qcfs_at_another_T_calibrates_shift_per_channel_and_keeps_its_threshold():
    model, x = made(Quantised, batch=32)
    snn = parspike.convert(model, x, T=2)
    first = next(iter(snn.neurons().values()))
    assert first.v_threshold.shape == ()
    assert float(first.v_threshold) == pytest.approx(1.3)
    assert first.shift.shape == first.v_post.shape == (6, 1, 1)
    assert bool(first.v_post.ne(1.3).any())


def test_one_activation_that_was_not_trained_for_T_needs_data():
    """Would catch a layer of 8 levels that is left uncalibrated at T = 4, because the layer before it needs no data."""
    for other in (parspike.QCFS(8, 1.0), nn.ReLU()):
        model = nn.Sequential(nn.Linear(3, 4), parspike.QCFS(4, 1.0), nn.Linear(4, 4), other, nn.Linear(4, 2)).eval()
        with pytest.raises(CalibrationError, match="pass calibration="):
            parspike.convert(model, T=4, example=torch.randn(2, 3))


def test_thresholds_are_the_channel_maxima():
    model, x = made(Residual)
    snn = parspike.convert(model, x.split(2), T=8, recipe="max")
    with torch.no_grad():
        a = F.relu(model.bn1(model.conv1(x)))
    torch.testing.assert_close(snn.spiking.act.v_threshold.flatten(), a.amax((0, 2, 3)))


def select(x, share, parts):
    selection = Selection(share)
    for _ in WIDTHS:
        for part in x.split(parts, 1):
            selection.add(part)
        selection.settle()
    return selection.value


@pytest.mark.parametrize("share", [0.001, 0.5, 0.9, 0.999])
def test_a_selection_is_the_value_of_nearest_rank_however_the_set_is_cut(share):
    torch.manual_seed(0)
    x = torch.randn(3, 2001).relu() * torch.tensor([1.0, 1e-30, 1e4])[:, None]
    x[:, :5] = x[:, 5:10]  # ties
    value = select(x, share, 2001)
    assert torch.equal(value, x.kthvalue(round(share * 2001), 1).values)
    for interpolation, compare in (("lower", torch.ge), ("higher", torch.le)):
        assert compare(value, x.quantile(max(0.0, (share * 2001 - 1) / 2000), 1, interpolation=interpolation)).all()
    assert torch.equal(select(x[:, torch.randperm(2001)], share, 17), value)


@torch.no_grad()
def test_thresholds_are_percentiles_of_all_outputs_zeros_included():
    model, x, plan = planned(Residual, batch=8)
    a = F.relu(model.bn1(model.conv1(x)))
    rows = a.movedim(1, 0).flatten(1)

    def theta(mode, granularity, parts=2):
        snn = parspike.convert(plan, x.split(parts), T=8, recipe=parspike.Thresholds(mode, granularity))
        return snn.spiking.act.v_threshold.flatten()

    rank = round(0.9 * rows.shape[1])
    torch.testing.assert_close(theta("90%", "channel"), rows.kthvalue(rank, 1).values)
    torch.testing.assert_close(theta("90%", "channel", parts=8), theta("90%", "channel", parts=3))
    whole = rows.flatten().kthvalue(round(0.9 * rows.numel())).values
    torch.testing.assert_close(theta("90%", "layer"), whole.expand(8))
    torch.testing.assert_close(theta("max", "layer"), rows.max().expand(8))
    torch.testing.assert_close(theta("100%", "channel"), theta("max", "channel"))


@torch.no_grad()
def test_a_source_that_says_how_many_samples_it_has_gives_what_its_batches_give():
    """Would catch a length taken for that of batches: synapses were re-fitted on a 64th of their rows, in `parspike
    sweep` and `tune`, whose images say how many they are."""

    class Images:
        def __iter__(self):
            return iter(batches)

        def __len__(self):
            return 256

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    batches = torch.rand(256, 3, 8, 8).split(64)
    made = [parspike.convert(model.eval(), x, T=2, recipe="closed-form") for x in (Images(), list(batches))]
    assert torch.equal(made[0](batches[0]), made[1](batches[0]))


@torch.no_grad()
@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 2.0)])
def test_no_threshold_lies_above_what_an_activation_can_be(low, high):
    """Would catch ends that are put above the largest value seen, in case that others are larger: none is."""
    torch.manual_seed(0)
    activation = nn.Hardtanh(low, high)
    model = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 5), activation, nn.Linear(5, 3)).eval()
    model[0].weight *= 8
    model[2].weight *= 3
    x, other = torch.randn(512, 6), torch.randn(2000, 6)
    snn = parspike.convert(model, x.split(64), T=256, recipe=parspike.ClosedForm(refit=False))
    for neuron in snn.neurons().values():
        assert float(neuron.v_threshold.max()) <= high - low
    assert float((snn(other) - model(other)).norm() / model(other).norm()) < 0.006


@torch.no_grad()
def test_percentiles_cut_both_ends_but_a_bound_that_is_reached_and_keep_the_dtype():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Hardtanh(-1.0, 2.0), nn.Linear(2, 2)).eval().double()
    x = torch.randn(50, 3).double()
    snn = parspike.convert(model, x, T=4, recipe="80%")
    neuron = next(iter(snn.neurons().values()))
    a = F.hardtanh(model[0](x), -1.0, 2.0).sort(0).values
    assert a[0, 0] == -1 < a[0, 1]
    low = torch.stack([a[0, 0], a[10, 1]])
    assert neuron.v_threshold.dtype == neuron.offset.dtype == torch.float64
    torch.testing.assert_close(neuron.offset, low, rtol=1e-6, atol=0)
    torch.testing.assert_close(neuron.v_threshold, a[39] - low, rtol=1e-6, atol=0)


@torch.no_grad()
def test_algorithm_1_may_start_from_percentiles():
    _, x, plan = planned(Residual, batch=8)
    start = parspike.convert(plan, x, T=4, recipe=parspike.Thresholds("95%", "layer"))
    for means in ("moving", "exact"):
        recipe = parspike.DAQCFS(means=means, mode="95%", granularity="layer")
        snn = parspike.convert(plan, x, T=4, recipe=recipe)
        for one, other in zip(snn.neurons().values(), start.neurons().values(), strict=True):
            assert torch.equal(one.v_threshold, other.v_threshold)
        assert any(bool(neuron.shift.ne(0).any()) for neuron in snn.neurons().values())


def test_a_percentile_of_zero_is_refused_for_a_layer_and_mended_for_a_channel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.rand(40, 3)
    with torch.no_grad():
        model[0].bias[1] -= model[0](x)[:, 1].sort().values[-2:].mean()  # fires for one sample
        a = F.relu(model[0](x))
    assert int((a[:, 1] > 0).sum()) == 1
    snn = parspike.convert(model, x, T=4, recipe="95%")
    theta = next(iter(snn.neurons().values())).v_threshold
    assert theta[1] == theta.max() > 0
    with torch.no_grad():
        model[0].bias -= a.amax(0) * 0.9
    with pytest.raises(CalibrationError, match=r"layer '1': 20% of its outputs are 0: give a higher percentile"):
        parspike.convert(model, x, T=4, recipe="20%")


def test_a_percentile_does_not_hide_infinity():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    nn.init.ones_(model[0].weight)
    with pytest.raises(CalibrationError, match="layer '1' gives NaN or Inf"):
        parspike.convert(model, [torch.full((4, 3), 3e38)], T=4, recipe="50%")


class Elementwise(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function", [lambda x: F.softplus(x, 0.0), lambda x: F.leaky_relu(x, float("nan"))], ids=["log(2) / 0", "NaN"]
)
def test_an_activation_that_is_no_number_anywhere_is_named(function):
    layers = nn.Linear(3, 4), Elementwise(function), nn.Linear(4, 2)
    with pytest.raises(CalibrationError, match="layer '1' gives NaN or Inf"):
        parspike.convert(nn.Sequential(*layers).eval(), torch.randn(16, 3), T=4)


class Shares(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6, bias=False), nn.Linear(6, 3), nn.Linear(3, 2)

    def forward(self, x):
        y = self.first(x).relu()
        return self.third(self.second(y / y.sum(1, keepdim=True)).tanh())


def test_currents_that_spikes_make_nan_are_told_with_their_layer():
    """Would catch the fit of NaN, which ended in a ValueError of the neurons."""
    torch.manual_seed(0)
    model, x = Shares().eval(), torch.rand(64, 4)
    nn.init.uniform_(model.first.weight)
    parspike.convert(model, x, T=4)
    x[3] *= 1e-4  # too little for a spike
    with pytest.raises(CalibrationError, match=r"layer 'tanh' is given NaN once .* \(x / \(s \+ 1e-6\)\)"):
        parspike.convert(model, x, T=4)


def test_a_silent_channel_gets_a_threshold_above_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].bias[1] = -100.0
    x = torch.rand(16, 3)
    snn = parspike.convert(model, x, T=4)
    theta = next(iter(snn.neurons().values())).v_threshold
    assert bool((theta > 0).all())
    assert torch.isfinite(snn(x)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 1.0}, {"momentum": -0.1}, {"passes": 0}, {"passes": True}, {"means": "exactly"},
        {"mode": "most"}, {"granularity": "pixel"},
    ],
)  # fmt: skip
def test_options_are_checked_when_made(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        parspike.DAQCFS(**options)


@pytest.mark.parametrize("mode", ["99.9", "0%", "101%", "nan%", "median", "%", 0.999, None])
@pytest.mark.parametrize("recipe", [parspike.Thresholds, parspike.DAQCFS])
def test_what_is_no_mode_is_refused(recipe, mode):
    with pytest.raises(OptionError) as caught:
        recipe(mode=mode)
    assert str(caught.value) == f"mode = {mode!r}: give {MODES}"


@pytest.mark.parametrize("recipe", [parspike.Thresholds, parspike.DAQCFS, parspike.ClosedForm])
def test_what_is_no_granularity_is_refused(recipe):
    with pytest.raises(OptionError, match="granularity must be 'channel' or 'layer', got 'pixel'"):
        recipe(granularity="pixel")


def test_a_mode_is_short_for_its_recipe():
    assert parspike.recipe_from_json("max") == parspike.Thresholds()
    assert parspike.recipe_from_json("99.9%") == parspike.Thresholds("99.9%")
    assert parspike.recipe_from_json({"name": "max", "granularity": "layer"}) == parspike.Thresholds("max", "layer")
    with pytest.raises(OptionError, match="mode"):
        parspike.recipe_from_json({"name": "max", "mode": "99%"})
    with pytest.raises(OptionError, match="'max', or a percentile"):
        parspike.recipe_from_json("99.9")


def test_recipes_round_trip_as_json():
    recipe = parspike.DAQCFS(passes=3, means="exact")
    for one in (recipe, parspike.Thresholds("99.9%", "layer"), parspike.ClosedForm(weigh="next")):
        assert parspike.recipe_from_json(parspike.recipe_to_json(one)) == one
    assert parspike.recipe_from_json('{"name": "daqcfs", "passes": 3, "means": "exact"}') == recipe


class Streamed(torch.utils.data.IterableDataset):
    """Samples of which nobody knows how many there are."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __iter__(self):
        return iter(self.x)


@pytest.mark.parametrize("source", ["list", "pairs", "dicts", "loader", "generator", "set", "stream"])
def test_calibration_sources_give_the_same_network(source):
    model, x = made(Residual, batch=8)
    parts = list(x.split(4))
    data = {
        "list": parts,
        "pairs": [(p, torch.zeros(4)) for p in parts],
        "dicts": [{"image": p} for p in parts],
        "loader": torch.utils.data.DataLoader(x, batch_size=4),
        "set": torch.utils.data.TensorDataset(x, torch.zeros(8)),
        "generator": (p for p in parts),
        "stream": torch.utils.data.DataLoader(Streamed(x), batch_size=4),  # its len() raises a TypeError
    }[source]
    reference = parspike.convert(model, x if source == "set" else parts, T=4)  # a set is cut as a tensor is
    snn = parspike.convert(model, data, T=4, example=x)
    assert torch.equal(snn(x), reference(x))
    assert snn.provenance["calibration"] == reference.provenance["calibration"]
    assert snn.provenance["calibration"]["samples"] == 8


@pytest.mark.parametrize("run", [
    lambda snn, model, loader: parspike.measure(snn, loader, against=model).samples,
    lambda snn, model, loader: parspike.diagnose(snn, model, loader, cure=False).samples,
    lambda snn, model, loader: parspike.sweep(model, [*loader], loader, T=[2], recipe="max").samples,
])  # fmt: skip
def test_a_loader_that_does_not_know_its_length_is_read(run):
    model, x = made(Residual, batch=8)
    snn = parspike.convert(model, x, T=2, recipe="max")
    assert run(snn, model, torch.utils.data.DataLoader(Streamed(x), batch_size=4)) == 8


def test_samples_that_make_no_batch_are_one_clear_error():
    """Would catch a set of PIL images that ends in torch's own error."""
    model, x = made(Residual, batch=8)
    for samples in ([object(), object()], [x[0], x[0, :, :4]]):
        data = [(sample, 0) for sample in samples]
        whole = torch.utils.data.Subset(data, range(2))  # pyright: ignore[reportArgumentType]
        with pytest.raises(CalibrationError, match=r"samples of calibration cannot be put into one batch.*transform"):
            parspike.convert(model, whole)


def test_progress_names_layers_and_totals():
    _, x, plan = planned(Residual, batch=8)
    seen = []
    parspike.convert(plan, x.split(2), T=2, recipe=parspike.DAQCFS(means="exact"), progress=lambda *a: seen.append(a))
    assert ("recording ranges", 4, 4) in seen
    assert ("act@2", 1, 5) in seen


def test_memory_holds_one_batch_not_the_set():
    """Activations of one batch at a time: the walk frees what nobody reads any more."""
    import weakref

    model, x = made(Residual, batch=8)
    alive: list[weakref.ref] = []
    most = 0

    def batches():
        nonlocal most
        for part in x.split(1):
            most = max(most, sum(ref() is not None for ref in alive))
            part = part.clone()
            alive.append(weakref.ref(part))
            yield part

    class Source:
        def __iter__(self):
            return batches()

    parspike.convert(model, Source(), T=2, example=x)
    assert most <= 3


class _Tokens(nn.Module):
    """A network as those of transformers: keyword inputs, labels among the arguments."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 12)
        self.hidden, self.out = nn.Linear(12, 24), nn.Linear(24, 3)

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        x = (self.table(input_ids) * attention_mask[..., None]).mean(1)
        return self.out(torch.relu(self.hidden(x)))


class _Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.out = nn.Linear(5, 16), nn.Linear(3, 16), nn.Linear(16, 4)

    def forward(self, x, y, scale=1.0):
        return self.out(torch.relu(self.one(x) + self.other(y)) * scale)


@torch.no_grad()
def test_what_forward_asks_for_tells_the_inputs_of_an_item():
    """Dicts of tokens with labels, and items of two inputs and labels, without example= or inputs=."""
    tokens = [
        {"input_ids": torch.randint(20, (16, 7)), "attention_mask": torch.ones(16, 7), "labels": torch.zeros(16).long()}
        for _ in range(8)
    ]
    model = _Tokens().eval()
    snn = parspike.convert(model, tokens, T=16)
    args = {name: tokens[0][name] for name in ("input_ids", "attention_mask")}
    assert float((snn(**args) - model(**args)).norm() / model(**args).norm()) < 0.2
    assert parspike.tune(model, tokens, drop=50.0, most=4, codes=("sorted",)).trials

    two = [(torch.randn(16, 5), torch.randn(16, 3), torch.zeros(16)) for _ in range(8)]
    model = _Two().eval()
    snn = parspike.convert(model, two, T=16)
    x, y, _ = two[0]
    assert float((snn(x, y) - model(x, y)).norm() / model(x, y).norm()) < 0.2
    tuned = parspike.tune(model, two, drop=50.0, most=4, codes=("sorted",))
    assert 0 < tuned.trials[0].spikes <= 4
    labelled = [(x, y, model(x, y).argmax(1)) for x, y, _ in two]
    assert parspike.tune(model, labelled, drop=50.0, most=4, codes=("sorted",), measure="accuracy").network == 100
    nested = [((x, y), labels) for x, y, labels in labelled]
    keyword = [({"x": x, "y": y}, labels) for x, y, labels in labelled]
    for items in (nested, keyword):
        tuned = parspike.tune(
            model, items, inputs=lambda item: item[0], drop=50.0, most=1, codes=("sorted",), measure="accuracy"
        )
        assert tuned.network == 100


class _Masked(nn.Module):
    """A mask, and labels under a usual short name, that forward can do without."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x, mask=None, y=None):
        h = torch.relu(self.one(x))
        return self.out(h if mask is None else h * mask) if y is None else (self.out(h), y)


def test_what_forward_can_do_without_is_taken_where_an_item_has_it():
    """It would catch a mask that an item brings and the conversion leaves out without a word."""
    x, mask = torch.randn(64, 5), (torch.rand(64, 8) > 0.5).float()
    model = _Masked().eval()
    snn = parspike.convert(model, [{"x": x, "mask": mask, "y": torch.zeros(64)}], T=12, code="weighted", recipe="max")
    with torch.no_grad():
        torch.testing.assert_close(snn(x=x, mask=mask), model(x, mask), rtol=0, atol=0.01)
    plain = parspike.convert(model, [{"x": x, "mask": None, "y": torch.zeros(64)}], T=2, recipe="max")
    assert plain(x).shape == plain(x=x).shape == (64, 3)
    with pytest.raises(InputError, match=r"forward passes 2\.0 on"):
        parspike.convert(model, [{"x": x, "mask": 2.0}], T=2)


def test_items_of_names_for_a_plan_of_positions():
    model, x, y = _Two().eval(), torch.randn(16, 5), torch.randn(16, 3)
    plan = parspike.plan(model, (x, y))
    snn = parspike.convert(plan, [{"y": y, "x": x, "labels": torch.zeros(16)}], T=4, recipe="max")
    assert torch.equal(snn(x, y), parspike.convert(plan, [(x, y)], T=4, recipe="max")(x, y))
    assert torch.equal(snn(x, y=y), snn(y=y, x=x))
    with pytest.raises(InputError, match=r"takes the inputs \(x, y\), got 1 without a name, x="):
        snn(x, x=x)


class _Options(nn.Module):
    def forward(self, x, /, y, *more, z=1.0, labels=None, **options):
        return x


@pytest.mark.parametrize(
    ("model", "item", "signature"),
    [
        (_Two(), {"x": 1, "y": 2, "labels": 3}, (2, ("x", "y"))),  # a usual key among several that are asked for
        (_Tokens(), {"x": 1, "labels": 2}, (1, ())),
        (_Options(), {"x": 1, "y": 2, "more": 3, "z": 4, "options": 5, "labels": 6}, (2, ())),
        (_Options(), {"y": 2, "more": 3, "z": 4, "options": 5, "labels": 6}, (2, ("y", "z"))),
        (nn.DataParallel(_Two()), (1, 2, 3), (2, ())),
        (torch.optim.swa_utils.AveragedModel(_Tokens()), {"input_ids": 1, "labels": 2}, (1, ("input_ids",))),
        (torch.compile(_Two(), backend="eager"), (1, 2, 3), (2, ())),
        (torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), (1, 2), (1, ())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_signature_of(model, item, signature):
    assert signature_of(model, item) == signature


@pytest.mark.parametrize("run", [parspike.convert, parspike.tune])
def test_what_is_no_network_is_one_clear_error(run):
    with pytest.raises(InputError, match="Module, got str"):
        run("net.pt", torch.ones(300, 5))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def trained_on(x: Tensor) -> nn.Module:
    """A network whose batch norm has seen these samples."""
    torch.manual_seed(0)
    model: Any = Normed().train()
    with torch.no_grad():
        model(x)
        model.bn.weight.uniform_(0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize(("scale", "warned"), [(1.0, False), (0.8, False), (1.25, False), (0.3, True), (200.0, True)])
def test_samples_prepared_otherwise_than_in_training_are_told(scale: float, warned: bool) -> None:
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = trained_on(x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        parspike.convert(model, (x * scale).split(8), T=4, recipe="max")
    told = [str(w.message) for w in said if "first batch norm" in str(w.message)]
    assert bool(told) is warned
    assert not told or f"{scale:.2g} times as wide" in told[0]


def test_a_batch_norm_that_was_never_trained_says_nothing_of_samples() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.randn(64, 3, 8, 8)
        parspike.convert(Normed().eval(), (x * 50).split(8), T=4, recipe="max")
