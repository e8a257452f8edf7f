"""A converted network computes what the network does, or an error says why it cannot: networks that users write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import parspike
from parspike.errors import CalibrationError, InputError, OptionError, TraceError

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Modules and tensors with a function of them and the input."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module, **tensors: Tensor) -> None:
        super().__init__()
        self.m, self.function = nn.ModuleList(modules), function
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def norm(width: int) -> nn.BatchNorm1d:
    made = nn.BatchNorm1d(width)
    for tensor, low, high in ((made.running_mean, -1, 1), (made.running_var, 0.5, 2), (made.bias.data, -1, 1)):
        assert tensor is not None
        tensor.uniform_(low, high)
    return made


def off(model: nn.Module, x: Tensor = X, **options: Any) -> float:
    snn = parspike.convert(model.eval(), [x], **{"T": 1024, "recipe": "max", **options})
    with torch.no_grad():
        return float((snn(x) - model(x)).norm() / model(x).norm())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("parametrised", [weight_norm, spectral_norm])
def test_batch_norms_behind_parametrised_weights_keep_their_own_shifts(parametrised):
    layers = [parametrised(nn.Linear(8, 8, bias=False)), norm(8), nn.ReLU()]
    layers += [parametrised(nn.Linear(8, 8, bias=False)), norm(8), nn.ReLU()]
    assert off(nn.Sequential(*layers)) < 0.01


def test_batch_norms_behind_bare_weights_take_no_name_of_the_users():
    weight, bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6))
    model = Net(lambda s, x: F.relu(s.m[0](F.linear(x, s.weight)) + s.bias), norm(6), weight=weight, bias=bias)
    assert off(nn.Sequential(model)) < 0.01
    assert off(Net(lambda s, x: F.relu(s.m[0](F.linear(x, s.weight))), norm(6), weight=weight)) < 0.01


def test_batch_norms_do_not_move_past_a_reshape_that_changes_the_batch():
    model = Net(lambda s, x: s.m[1](s.m[0](F.relu(x)).reshape(-1, 8)).reshape(x.shape[0], -1), norm(4), nn.Linear(8, 3))
    assert off(model, torch.randn(16, 4, 8)) < 0.01


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: torch.minimum(F.relu(s.m[0](x)), s.c - 0.3),
        lambda s, x: torch.maximum(torch.tanh(s.m[0](x) * 3), s.c),
        lambda s, x: torch.minimum(s.c, torch.sigmoid(s.m[0](x))),
        lambda s, x: torch.fmax(torch.sigmoid(s.m[0](x)), s.v),
    ],
)
def test_the_larger_of_an_activation_and_a_constant(function):
    model = Net(function, nn.Linear(8, 6), c=torch.tensor(0.6), v=torch.rand(6))
    assert off(model) < 0.01


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y * (y * y - 1),
        lambda y: y * (y - 1.5).exp(),
        lambda y: y * F.relu6(100 - y),
        lambda y: F.elu(y, -1.0),
    ],
)
def test_functions_that_fall_a_little_or_far_out(function):
    assert off(nn.Sequential(Net(lambda s, x: function(s.m[0](x)), nn.Linear(8, 6)), nn.Linear(6, 3))) < 0.01


def test_a_function_with_a_dip_cannot_be_registered():
    with pytest.raises(OptionError, match="cannot be a spiking neuron"):
        parspike.register(lambda x: x**3 - x, name="with_a_dip")


def test_another_function_cannot_take_a_registered_name():
    parspike.register(lambda x: x * 2, name="twice_as_much")
    parspike.register(lambda x: x * 2, name="twice_as_much")
    with pytest.raises(OptionError, match="another activation is registered as 'twice_as_much'"):
        parspike.register(lambda x: x**3, name="twice_as_much")


@pytest.mark.parametrize("recipe", ["max", "thresholds", "daqcfs", "closed-form", None])
def test_a_channel_that_hardly_fires_spoils_no_other(recipe):
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data[1] = 1e-40
    model[0].bias.data[1] = 0
    assert off(model, T=64, recipe=recipe) < 0.05


@pytest.mark.parametrize("function", [lambda x: x / float(x.shape[0]), lambda x: x * sum(1 for _ in x)])
def test_a_number_made_from_the_batch_size_is_refused(function):
    with pytest.raises(TraceError, match="batch"):
        parspike.plan(Net(lambda s, x: function(F.relu(s.m[0](x))), nn.Linear(8, 6)).eval(), X)


def test_a_network_that_writes_into_its_buffers_is_refused():
    # The answer depends on what was written; a mere counter of calls is taken (tests/test_tracing.py).
    model = Net(
        lambda s, x: (s.seen.add_(1), F.relu(s.m[0](x)) * s.seen)[1], nn.Linear(8, 6), seen=nn.Buffer(torch.zeros(()))
    )
    with pytest.raises(TraceError, match="writes into 'seen' in forward"):
        parspike.plan(model.eval(), X)


def test_options_of_a_plan_are_given_to_the_plan():
    plan = parspike.plan(nn.Sequential(nn.Linear(8, 6), nn.ReLU()).eval(), X)
    for options in ({"strict": True}, {"layers": {"1": parspike.Keep()}}, {"example": X}):
        with pytest.raises(OptionError, match=r"parspike\.plan"):
            parspike.convert(plan, [X], T=4, **options)


def test_labels_of_another_shape_than_the_answers_are_no_accuracy():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    items = [(x, model(x).argmax(1)[:, None]) for x in X.split(16)]
    with pytest.raises(CalibrationError, match=r"labels are \(16, 1\), the network's answers \(16,\)"):
        parspike.tune(model, items, measure="accuracy", recipe="max", most=1)


def test_outputs_that_are_whole_numbers_need_another_recipe():
    model = Net(lambda s, x: s.m[1](F.relu(s.m[0](x))).argmax(1), nn.Linear(8, 6), nn.Linear(6, 3)).eval()
    with pytest.raises(CalibrationError, match=r"whole numbers.*recipe='max'"):
        parspike.convert(model, X.split(16), T=4)
    snn = parspike.convert(model, X.split(16), T=256, recipe="max")
    assert float((snn(X) == model(X)).float().mean()) > 0.9


@pytest.mark.parametrize(
    "example", [torch.zeros(2, 8).long(), torch.zeros(2, 9), torch.zeros(2, 8, dtype=torch.cfloat)]
)
def test_an_example_that_the_network_does_not_take_is_named(example, capfd):
    said = (
        r"fails on the example, \(2, .\) float32|input is torch\.int64, the network's .* x\.float\(\)"
        r"|input is torch\.complex64, the network's .*view_as_real"
    )
    with pytest.raises(InputError, match=said):
        parspike.plan(nn.Sequential(nn.Linear(8, 6), nn.ReLU()).eval(), example)
    assert capfd.readouterr().err == ""


def test_arguments_in_another_form_are_told_with_the_form_that_helps():
    """Would catch "Inputs are batches" where the inputs are, but come in a list of two, or in a dict."""
    pair = Pair().eval()
    with pytest.raises(InputError, match=r"come together in a tuple, such as plan\(model, \(a, b\)\)"):
        parspike.convert(pair, (X, X), T=4)
    snn = parspike.convert(pair, [(X, X)], T=4, recipe="max")
    assert snn(X, X).shape == (len(X), 3)
    of_dict = Net(lambda s, batch: s.m[0](batch["x"]).relu(), nn.Linear(8, 3)).eval()
    assert parspike.plan(of_dict, {"x": X}).graph.inputs[0].name == "x"
    with pytest.raises(InputError, match=r"self\.network\(\{'x': x\}\)"):
        parspike.plan(of_dict, X)
    with pytest.raises(CalibrationError, match=r"got dict: put one batch into a list, \[batch\]"):
        parspike.convert(pair, {"a": X, "b": X}, T=4)


def test_shrinkage_becomes_neurons():
    """Would catch the two counted among functions that are not monotone, which kept LISTA without a spike."""
    torch.manual_seed(0)
    layers = nn.Linear(8, 16), nn.Softshrink(0.2), nn.Linear(16, 16), nn.Hardshrink(0.1), nn.Linear(16, 3)
    model = nn.Sequential(*layers).eval()
    plan = parspike.plan(model, X)
    assert [node.target for node in plan.graph.neurons] == ["aten.softshrink.default", "aten.hardshrink.default"]
    snn = parspike.convert(plan, X, T=1024, recipe="max")
    wanted = model(X)
    assert len(snn.neurons()) == 2
    assert (snn(X) - wanted).norm() < 0.02 * wanted.norm()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, a, b):
        return self.head(torch.relu(self.layer(a) - self.layer(b)))


def test_a_converted_network_is_not_converted_again():
    snn = parspike.convert(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3)).eval(), [X], T=4, recipe="max")
    with pytest.raises(InputError, match="converted already"):
        parspike.plan(snn, X)


def test_blanks_and_casts_follow_the_networks_dtype():
    def function(s: Any, x: Tensor) -> Tensor:
        state = s.m[1](torch.zeros(x.shape[0], 6) + (x[:, :6] > 0).float())
        return s.m[1](torch.relu(s.m[0](x) + state))

    snn = parspike.convert(Net(function, nn.Linear(8, 6), nn.Linear(6, 6)).eval(), [X], T=4, recipe="max")
    before = snn(X)
    assert snn.double()(X.double()).dtype == torch.float64
    torch.testing.assert_close(snn(X.double()).float(), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(snn.run(X.double(), engine="serial").logits.float(), snn(X.double()).float())


def test_weights_in_another_order_are_saved_as_they_run(tmp_path):
    a, b, c = (nn.Parameter(torch.randn(*shape)) for shape in ((16, 8), (16, 16), (16, 4)))
    model = Net(lambda s, x: F.relu(x @ s.a.T @ s.b.T) @ s.c, a=a, b=b, c=c).eval()
    snn = parspike.convert(model, [X], T=4, recipe="max")
    assert torch.equal(parspike.load(snn.save(tmp_path / "net.parspike"))(X), snn(X))


def test_options_that_are_no_options():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU()).eval()
    with pytest.raises(OptionError, match="expected options by pattern"):
        parspike.plan(model, X, layers=["1"])  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="method of torch's modules"):
        parspike.register(torch.tanh, name="float")
    with pytest.raises(OptionError, match="budget"):
        parspike.Auto(budget=float("nan"))


def test_inputs_without_number_are_asked_for():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 3)

        def forward(self, *xs: Tensor) -> Tensor:
            return self.last(sum(xs).relu())  # type: ignore[union-attr]

    with pytest.raises(InputError, match="inputs="):
        parspike.convert(Sum().eval(), [(X, X)], T=4, recipe="max")
    snn = parspike.convert(Sum().eval(), [(X, X)], T=4, recipe="max", inputs=lambda item: (item[0], item[1]))
    assert snn(X, X).shape == (64, 3)
