"""Law: every activation has its part in the network (neuron, read-out, guard), maxima are exact where the plan says so,
a value that no spike makes weighs spikes, and the engines agree on all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike.errors import OptionError, UnsupportedError

D = torch.float64


class Made(nn.Module):
    """Layers by name, and a function of them and the inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor, m: Tensor | None = None) -> Any:
        return self.function(self, x) if m is None else self.function(self, x, m)


def made(function: Callable[..., Any], seed: int = 0, **layers: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Made(function, **{name: layer() for name, layer in layers.items()}).eval().double()


def uneven(into: int, out: int) -> Callable[[], nn.Module]:
    """A linear layer whose features differ a thousandfold in size, so that their thresholds do."""

    def layer() -> nn.Module:
        linear = nn.Linear(into, out)
        linear.weight.data *= torch.logspace(-2, 1, out)[torch.randperm(out)][:, None]
        return linear

    return layer


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [leaf for item in (output.values() if isinstance(output, dict) else output) for leaf in flat(item)]


def engines_agree(snn: parspike.SNN, *inputs: Tensor) -> None:
    count = flat(snn.run(*inputs, engine="count").logits)
    for engine in ("parallel", "serial"):
        for wanted, found in zip(count, flat(snn.run(*inputs, engine=engine).logits), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def becomes(plan: parspike.Plan, role: str) -> list[str]:
    return [row.becomes for row in plan.rows if row.role == role]


def neurons(plan: parspike.Plan) -> list[str]:
    return [plan.graph.by_name[name].layer for name in plan.spiking]


# ------------------------------------------------------------------------------------------------------- maxima

OVER_CHANNELS = {
    "max_pool1d over features": lambda h: F.max_pool1d(h, 2).flatten(1),
    "maxout": lambda h: h.unflatten(-1, (8, 2)).amax(-1).flatten(1),
    "maxout by reshape": lambda h: h.reshape(h.shape[0], 5, 2, 8).amax(2).flatten(1),
    "groups of features": lambda h: h.unflatten(-1, (4, 4)).amin(-1).flatten(1),
    "tokens and features": lambda h: h.amax((1, 2))[:, None],
    "the largest of all": lambda h: h.flatten(1).amax(1, keepdim=True),
    "features": lambda h: h.amax(-1),
    "features, first": lambda h: h.transpose(1, 2).amax(1),
    "features, permuted": lambda h: F.max_pool1d(h.permute(0, 2, 1).permute(0, 2, 1), 4).flatten(1),
    "a window of both": lambda h: F.max_pool2d(h.unsqueeze(1), (1, 2)).flatten(1),
    "adaptive": lambda h: F.adaptive_max_pool1d(h, 3).flatten(1),
    "two layers": lambda h: torch.maximum(h[..., :8], h[..., 8:]).flatten(1),
    "a vector of bounds": lambda h: torch.maximum(h, torch.linspace(0, 1, 16, dtype=D)).flatten(1),
}
OVER_PLACES = {
    "tokens": (lambda h: h.amax(1), "dimension 1"),
    "tokens, last": (lambda h: h.transpose(1, 2).amax(-1), "dimension 2"),
    "pool over tokens": (lambda h: F.max_pool1d(h.permute(0, 2, 1), 2, 1).flatten(1), "dimension 2"),
    "windows of tokens": (lambda h: F.max_pool2d(h.unsqueeze(1), (2, 1)).flatten(1), "dimension 2"),
    "the smallest": (lambda h: h.amin(1), "dimension 1"),
    "reshaped": (lambda h: h.reshape(h.shape[0], 1, 5, 16).amax((1, 2)), "dimension 1, 2"),
    "twice": (lambda h: h.transpose(1, 2).unsqueeze(2).amax(-1).amax(-1), "dimension 3"),
}  # fmt: skip


def pooled(function: Callable[[Tensor], Tensor]) -> tuple[Any, Tensor]:
    """A pool of neurons that are read elsewhere too, so that it cannot go before them."""
    x = noise(8, 5, 6)
    size = function(torch.zeros(1, 5, 16, dtype=D)).shape[1]

    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(h).mean(1) + self.c(function(h))

    return made(forward, a=uneven(6, 16), b=lambda: nn.Linear(16, 3), c=lambda: nn.Linear(size, 3)), x


@pytest.mark.parametrize("name", OVER_CHANNELS)
def test_maxima_across_thresholds_are_taken_of_the_means(name):
    model, x = pooled(OVER_CHANNELS[name])
    plan = parspike.plan(model, x)
    assert all("not nested" in said for said in becomes(plan, "order"))
    assert len(becomes(plan, "order")) == 1
    engines_agree(parspike.convert(plan, x, T=16, recipe="max"), x)


@pytest.mark.parametrize("name", OVER_PLACES)
def test_maxima_along_places_are_nested_and_name_the_dimension(name):
    function, dimension = OVER_PLACES[name]
    model, x = pooled(function)
    plan = parspike.plan(model, x)
    assert f"nested spike trains along {dimension}, exact" in becomes(plan, "order")[0]
    engines_agree(parspike.convert(plan, x, T=16, recipe="max"), x)


def test_the_fault_names_the_layer_and_the_dimension():
    model, x = pooled(OVER_CHANNELS["max_pool1d over features"])
    (said,) = becomes(parspike.plan(model, x), "order")
    assert said == (
        "max of the time-means, these trains are not nested: it compares channels of 'relu' (dimension 2), whose "
        "thresholds differ"
    )


@pytest.mark.parametrize(("pool", "exact"), [
    (lambda h: F.max_pool1d(h, 3), True), (lambda h: F.max_pool1d(h.transpose(1, 2), 4), False),
])  # fmt: skip
def test_a_scale_between_neurons_and_maximum_is_of_one_channel_or_compares(pool, exact):
    """The scales of a batch norm run along dimension 1, and may be negative."""

    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c((pool(self.norm(h))).flatten(1)) + self.b(h.flatten(1))

    model = made(forward, a=lambda: nn.Conv1d(3, 8, 3), norm=lambda: nn.BatchNorm1d(8), b=lambda: nn.Linear(48, 2),
                 c=lambda: nn.Linear(16 if exact else 12, 2))  # fmt: skip
    model.norm.weight.data.copy_(noise(8, seed=3))
    model.norm.running_var.copy_(noise(8, seed=4).square() + 0.2)
    x = noise(8, 3, 8)
    plan = parspike.plan(model, x)
    assert ("nested spike trains along" in becomes(plan, "order")[0]) is exact
    engines_agree(parspike.convert(plan, x, T=16, recipe="max"), x)


def test_a_scale_of_tokens_behind_neurons_of_features():
    """A batch norm over tokens: maxima along tokens compare unlike scales, although the thresholds are the same."""

    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(self.norm(h).amax(1)) + self.b(h.mean(1))

    model = made(forward, a=uneven(6, 16), norm=lambda: nn.BatchNorm1d(5), b=lambda: nn.Linear(16, 3))
    model.norm.weight.data.copy_(noise(5, seed=3))
    x = noise(8, 5, 6)
    plan = parspike.plan(model, x)
    assert "scales of 'norm' differ along dimension 1" in becomes(plan, "order")[0]
    engines_agree(parspike.convert(plan, x, T=16, recipe="max"), x)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.SiLU, lambda: parspike.QCFS(4, 1.0), nn.PReLU])
@pytest.mark.parametrize("pool", [lambda h: F.max_pool1d(h, 2).flatten(1), lambda h: h.amax(1)])
def test_pools_that_alone_read_an_activation(pool, activation):
    """A pool goes before the neuron only where one neuron stands for all that it compares."""
    size = pool(torch.zeros(1, 5, 16)).shape[1]
    model = made(lambda self, x: self.b(pool(self.act(self.a(x)))), a=uneven(6, 16), act=activation,
                 b=lambda: nn.Linear(size, 3))  # fmt: skip
    x = noise(8, 5, 6)
    plan = parspike.plan(model, x)
    torch.testing.assert_close(plan.graph.run(x), model(x), rtol=1e-9, atol=1e-9)
    engines_agree(parspike.convert(plan, x, T=4, recipe="max"), x)


# ---------------------------------------------------------------------------------------------------- read-outs

LAST = {
    "clamp": lambda x: x.clamp(0, 1), "relu": F.relu, "relu6": F.relu6, "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid, "leaky": F.leaky_relu, "clamp, above": lambda x: x.clamp(max=0.2), "gelu": F.gelu,
    "softplus": F.softplus, "two clamps": lambda x: x.clamp(min=0).clamp(max=1), "sigmoid": torch.sigmoid,
    "clamp and shuffle": lambda x: 2 * x.clamp(0, 1).unflatten(1, (5, 1)).flip(1), "prelu": nn.PReLU().double(),
    "by hand": lambda x: x * torch.sigmoid(x),
    "softmax of relu": lambda x: F.relu(x).softmax(1), "normalised": lambda x: F.layer_norm(F.relu(x), (5,)),
    "quantised": parspike.QCFS(3, 0.8).double(), "abs": torch.abs, "unit length": lambda x: F.normalize(F.relu(x)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAST)
def test_a_last_activation_acts_on_the_mean_output(name):
    """The output is the activation of what the last synapse gives, not one of T + 1 levels of it."""
    function = LAST[name]
    model = made(lambda self, x: function(self.b(self.a(x).relu())), a=lambda: nn.Linear(6, 12),
                 b=lambda: nn.Linear(12, 5))  # fmt: skip
    x = noise(9, 6)
    plan = parspike.plan(model, x)
    assert neurons(plan) == ["relu"]
    assert "read-out, computed on the mean output" in becomes(plan, "readout")
    body = made(lambda self, x: self.b(self.a(x).relu()), a=lambda: nn.Linear(6, 12), b=lambda: nn.Linear(12, 5))
    current = parspike.convert(body, x, T=3, recipe="max")(x)
    snn = parspike.convert(plan, x, T=3, recipe="max")
    torch.testing.assert_close(snn(x), function(current), rtol=1e-9, atol=1e-9)
    engines_agree(snn, x)
    torch.testing.assert_close(parspike.convert(plan, x, T=512, recipe="max").run(x, engine="serial-if").logits,
                               model(x), rtol=0, atol=0.06)  # fmt: skip


def test_a_network_whose_only_activation_is_the_output_runs():
    model = made(lambda self, x: self.a(x).relu(), a=lambda: nn.Linear(6, 12))
    x = noise(9, 6)
    snn = parspike.convert(model, x, T=4, recipe="max")
    assert not snn.neurons()
    torch.testing.assert_close(snn(x), model(x), rtol=1e-9, atol=1e-9)
    engines_agree(snn, x)


def test_what_attention_reads_is_no_last_step():
    """Products with weights come behind it, although these are analog and end the network."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return (self.a(x).relu() @ self.b(x).relu().mT).softmax(-1)

    model = made(forward, a=lambda: nn.Linear(6, 12), b=lambda: nn.Linear(6, 12))
    assert neurons(parspike.plan(model, noise(4, 7, 6))) == ["relu", "relu@2"]


def test_who_asks_gets_neurons_at_the_output():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5), nn.ReLU6()).double().eval()
    x = noise(9, 6)
    plan = parspike.plan(model, x, layers={"3": parspike.Spike()})
    assert neurons(plan) == ["1", "3"]
    assert parspike.convert(plan, x, T=3, recipe="max")(x).unique().numel() <= 4 * 5
    with pytest.raises(OptionError, match=r"layers\['3'\].*no neurons.*Spike"):
        parspike.plan(model, x, layers={"3": parspike.Steps(2)})
    assert dict(parspike.plan(model, x, layers={"*": parspike.Steps(2)}).steps) == {plan.spiking[0]: 2}


# ---------------------------------------------------------------------------- outputs that are read inside too

SHARED = {
    "sigmoid": lambda y: y.sigmoid(), "relu": F.relu, "silu": F.silu, "clamps": lambda y: y.clamp(min=0).clamp(max=1),
    "relu, pooled": lambda y: F.max_pool1d(F.relu(y), 2), "scaled": lambda y: 2 * torch.tanh(y) + 1,
    "softmax of relu": lambda y: F.relu(y).softmax(-1),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("form", [lambda c, y: (c, y), lambda c, y: {"contour": c, "notes": [y, c]}])
def test_an_output_that_is_read_inside_is_exact_and_spikes(name, form):
    function = SHARED[name]
    size = function(torch.zeros(1, 8, dtype=D)).shape[1]

    def notes(self: Any, contour: Tensor) -> Tensor:
        return self.c(contour)

    def contour(self: Any, x: Tensor) -> Tensor:
        return function(self.b(self.a(x).relu()))

    layers: dict[str, Any] = {"a": lambda: nn.Linear(6, 12), "b": lambda: nn.Linear(12, 8),
                              "c": lambda: nn.Linear(size, 3)}  # fmt: skip
    model = made(lambda self, x: form(c := contour(self, x), notes(self, c)), **layers)
    x = noise(9, 6)
    plan = parspike.plan(model, x)
    inner = parspike.plan(made(lambda self, x: notes(self, contour(self, x)), **layers), x)
    assert neurons(plan) == neurons(inner)
    torch.testing.assert_close(flat(plan.graph.run(x)), flat(model(x)), rtol=1e-9, atol=1e-9)
    body = made(lambda self, x: self.b(self.a(x).relu()), a=lambda: nn.Linear(6, 12), b=lambda: nn.Linear(12, 8))
    current = parspike.convert(body, x, T=3, recipe="max")(x)
    snn = parspike.convert(plan, x, T=3, recipe="max")
    output = snn(x)
    shown = output["contour"] if isinstance(output, dict) else output[0]
    torch.testing.assert_close(shown, function(current), rtol=1e-9, atol=1e-9)
    spoken = output["notes"][0] if isinstance(output, dict) else output[1]
    torch.testing.assert_close(spoken, parspike.convert(inner, x, T=3, recipe="max")(x), rtol=1e-9, atol=1e-9)
    engines_agree(snn, x)


def test_features_of_a_backbone_are_exact_each(tmp_path):
    """Shortcuts carry spikes: the read-out of a feature acts on the mean current that the neurons get."""

    def forward(self: Any, x: Tensor) -> list[Tensor]:
        one = self.a(x).relu()
        two = (self.b(one) + one).relu()
        three = (self.c(two) + two).relu()
        return [one, two, three, self.d(three)]

    wide = lambda: nn.Linear(8, 8)  # noqa: E731
    model = made(forward, a=lambda: nn.Linear(6, 8), b=wide, c=wide, d=wide)
    x = noise(9, 6)
    plan = parspike.plan(model, x)
    assert neurons(plan) == ["relu", "relu@2", "relu@3"]
    assert [row.layer for row in plan.rows if row.role == "readout"] == [
        "relu@output", "relu@2@output", "relu@3@output"
    ]  # fmt: skip
    snn = parspike.convert(plan, x, T=3, recipe="max")
    one, two, _, _ = snn(x)
    spikes = [neuron.value(snn.run(x, record=True).counts[layer]) for layer, neuron in
              zip(neurons(plan), snn.neurons().values(), strict=True)]  # fmt: skip
    torch.testing.assert_close(one, model.a(x).relu(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(two, (model.b(spikes[0]) + spikes[0]).relu(), rtol=1e-9, atol=1e-9)
    engines_agree(snn, x)
    again = parspike.load(snn.save(tmp_path / "net.parspike"))
    torch.testing.assert_close(again(x), snn(x), rtol=0, atol=0)
    assert parspike.measure(snn, [x], against=model).rows
    with_kept = parspike.plan(model, x, layers={"relu": parspike.Keep()})
    assert neurons(with_kept) == ["relu@2", "relu@3"]
    assert [with_kept.graph.by_name[name].layer for name in with_kept.kept] == ["relu"]


# ------------------------------------------------------------------------------------------------------- guards


def length(h: Tensor) -> Tensor:
    return (h * h).sum(-1, keepdim=True)


def norm_by_hand(h: Tensor) -> Tensor:
    centre = h.mean(-1, keepdim=True)
    spread = (h.square().mean(-1, keepdim=True) - centre.square()).clamp(min=0)
    return (h - centre) / torch.sqrt(spread + 1e-5)


GUARDED = {
    "normalize": lambda h: F.normalize(h, dim=-1), "normalize, 1": lambda h: F.normalize(h, p=1.0, dim=-1),
    "maximum": lambda h: h / torch.maximum(h.norm(dim=-1, keepdim=True), torch.tensor(1e-6, dtype=D)),
    "length": lambda h: h / length(h).clamp(min=1e-9).sqrt(), "rsqrt": lambda h: h * length(h).clamp(min=1e-9).rsqrt(),
    "power": lambda h: h * length(h).clamp(min=1e-9).pow(-0.5),
    "sum of sizes": lambda h: h / h.abs().sum(-1, keepdim=True).clamp(min=1e-9),
    "layer norm": norm_by_hand,
    "log": lambda h: h.exp().sum(-1, keepdim=True).clamp(min=1e-6).log() + h,
    "probabilities": lambda h: h.softmax(-1).clamp(min=1e-6).log(),
}  # fmt: skip


@pytest.mark.parametrize("name", GUARDED)
def test_guards_are_no_neurons(name):
    """They act as in the network on what the spikes gave."""
    function = GUARDED[name]

    def body(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())

    layers: dict[str, Any] = {"a": lambda: nn.Linear(6, 12), "b": lambda: nn.Linear(12, 8),
                              "c": lambda: nn.Linear(8, 3)}  # fmt: skip
    model = made(lambda self, x: self.c(function(body(self, x))), **layers)
    x = noise(9, 6)
    plan = parspike.plan(model, x)
    assert neurons(plan) == ["relu"]
    current = parspike.convert(made(body, **layers), x, T=3, recipe="max")(x)
    snn = parspike.convert(plan, x, T=3, recipe="max")
    torch.testing.assert_close(snn(x), model.c(function(current)), rtol=1e-9, atol=1e-9)
    engines_agree(snn, x)


def test_guards_say_why_and_who_asks_gets_neurons():
    model = made(lambda self, x: self.b(F.normalize(self.a(x).relu())), a=lambda: nn.Linear(6, 12),
                 b=lambda: nn.Linear(12, 3))  # fmt: skip
    x = noise(9, 6)
    plan = parspike.plan(model, x)
    (row,) = [row for row in plan.rows if row.operator.startswith("clamp")]
    assert row.role == "analog"
    assert row.becomes == "analog on the time-mean: its input is made by no synapse"
    assert "Spike()" in row.remedy
    with pytest.raises(UnsupportedError, match="clamp"):
        parspike.plan(model, x, strict=True).check()
    asked = parspike.plan(model, x, layers={row.layer: parspike.Spike()})
    assert neurons(asked) == ["relu", row.layer]
    engines_agree(parspike.convert(asked, x, T=3, recipe="max"), x)


def test_a_guard_between_spikes_and_a_learned_power_is_no_neuron():
    """Generalised-mean pooling: its clamp would make levels of levels."""

    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(h.clamp(min=1e-6).pow(self.p.weight[0]).mean(1).pow(1 / self.p.weight[0])) + self.b(h.mean(1))

    model = made(forward, a=lambda: nn.Linear(6, 12), b=lambda: nn.Linear(12, 3), p=lambda: nn.Linear(1, 1))
    model.p.weight.data.fill_(3.0)
    x = noise(9, 5, 6)
    plan = parspike.plan(model, x)
    assert neurons(plan) == ["relu"]
    engines_agree(parspike.convert(plan, x, T=3, recipe="max"), x)


def test_a_logarithm_of_the_inputs_is_computed_before_any_spike():
    model = made(lambda self, x: self.b(self.a((x**2).clamp(min=1e-6).log()).relu()), a=lambda: nn.Linear(6, 12),
                 b=lambda: nn.Linear(12, 3))  # fmt: skip
    x = noise(9, 6)
    plan = parspike.plan(model, x)
    assert neurons(plan) == ["relu"]
    snn = parspike.convert(plan, x, T=3, recipe="max")
    wanted = parspike.convert(made(lambda self, x: self.b(self.a(x).relu()), a=lambda: nn.Linear(6, 12),
                                   b=lambda: nn.Linear(12, 3)), (x**2).log(), T=3, recipe="max")  # fmt: skip
    torch.testing.assert_close(snn(x), wanted((x**2).clamp(min=1e-6).log()), rtol=1e-9, atol=1e-9)


ACTIVE: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "behind layer norm": (lambda self, x: self.norm(self.a(x)).relu(), 1),
    "before layer norm": (lambda self, x: self.norm(F.gelu(self.a(x))), 2),
    "behind a norm by hand": (lambda self, x: norm_by_hand(self.a(x)).relu(), 1),
    "behind attention": (lambda self, x: ((y := self.a(x)) @ y.mT).softmax(-1).matmul(y).relu(), 1),
    "behind one call of it": (lambda self, x: F.scaled_dot_product_attention(y := self.a(x), y, y).relu(), 1),
    "residual": (lambda self, x: (self.a(x).relu() + self.a(x)).relu(), 2),
    "of averages": (lambda self, x: self.a(x).relu().mean(1, keepdim=True).clamp(max=0.5), 2),
    "of an embedding by products": (lambda self, x: (x[..., None] * self.a.weight.T).sum(-2).relu(), 1),
    "of several copies": (lambda self, x: (x[..., :1] * self.a.bias).relu(), 1),
    "gate": (lambda self, x: (y := self.a(x)) * self.e(y.mean(1, keepdim=True)).sigmoid(), 1),
    "gated linear unit": (lambda self, x: F.glu(torch.cat([y := self.a(x), y], -1)).mean(1, keepdim=True).tanh(), 1),
    "linear attention": (lambda self, x: (q := self.a(x).relu()) / (q @ q.mT.sum(-1, keepdim=True) + 1), 1),
    "shares": (lambda self, x: (q := self.a(x).relu()) / (q.sum(-1, keepdim=True) + 1), 1),
    "batch norm": (lambda self, x: self.bn(x @ torch.ones(6, 8, dtype=D)).relu(), 1),
    "chosen": (lambda self, x: self.a(x).topk(8, -1).values.relu(), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVE)
def test_activations_of_synapses_stay_neurons(name):
    function, wanted = ACTIVE[name]
    model = made(lambda self, x: self.c(function(self, x)).mean(1), a=lambda: nn.Linear(6, 8),
                 c=lambda: nn.Linear(8, 3), e=lambda: nn.Linear(8, 8), norm=lambda: nn.LayerNorm(8),
                 bn=lambda: nn.BatchNorm1d(5))  # fmt: skip
    x = noise(9, 5, 6)
    plan = parspike.plan(model, x)
    assert len(plan.spiking) == wanted
    engines_agree(parspike.convert(plan, x, T=5, recipe="max"), x)


def test_tokens_looked_up_are_made_by_a_synapse():
    model = made(lambda self, t: self.b(self.table(t).mean(1).relu()), table=lambda: nn.Embedding(9, 8),
                 b=lambda: nn.Linear(8, 3))  # fmt: skip
    assert neurons(parspike.plan(model, torch.randint(0, 9, (4, 6)))) == ["relu"]


# --------------------------------------------------------------------------- weights that a sample brings with it

MASK = (torch.arange(7) < torch.tensor([[3], [7], [5], [1]])).to(D)
WEIGHED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "mask": (lambda h, m: h * m[..., None], "mul"),
    "mean of what counts": (lambda h, m: ((h * m[..., None]).sum(1) / m.sum(1, keepdim=True).clamp(min=1e-9))[:, None],
                            "div"),
    "adjacency": (lambda h, m: (m[:, :, None] * m[:, None]) @ h, "matmul"),
    "adjacency, einsum": (lambda h, m: torch.einsum("bij,bjd->bid", m[:, :, None] * m[:, None], h), "einsum"),
    "filled": (lambda h, m: h.masked_fill(m[..., None] == 0, 0.5), "masked_fill"),
    "either": (lambda h, m: torch.where(m[..., None] > 0, h, -h), "where"),
    "last": (lambda h, m: h[torch.arange(h.shape[0]), m.sum(1).long() - 1][:, None], "index"),
    "gathered": (lambda h, m: h.gather(1, (m.sum(1).long() - 1)[:, None, None].expand(-1, 1, 8)), "gather"),
    "softmax of positions": (lambda h, m: (m * torch.arange(7)).softmax(1)[:, None] @ h, "matmul"),
    "transposed": (lambda h, m: (h.transpose(0, 1) * m.T[..., None]).transpose(0, 1), "mul"),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHED)
def test_a_weight_that_no_spike_makes_is_of_a_synapse(name, tmp_path):
    function, operator = WEIGHED[name]
    model = made(lambda self, x, m: self.c(self.b(function(self.a(x).relu(), m)).relu()).sum(1),
                 a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 8), c=lambda: nn.Linear(8, 3))  # fmt: skip
    x = noise(4, 7, 6)
    plan = parspike.plan(model, (x, MASK))
    rows = [row for row in plan.rows if row.operator == operator and row.role == "synapse"]
    assert [row.becomes for row in rows] == ["synapse: its weights depend on the sample, and on no spike"]
    assert neurons(plan) == ["relu", "relu@2"]
    snn = parspike.convert(plan, [(x, MASK)], inputs=lambda item: item, T=5, recipe="max")
    engines_agree(snn, x, MASK)
    assert bool((snn.run(x, MASK, engine="parallel", chunk=2).logits - snn(x, MASK)).abs().max() < 1e-9)
    many = parspike.convert(plan, [(x, MASK)], inputs=lambda item: item, T=512, recipe="max")
    for engine in ("count", "serial-if"):
        torch.testing.assert_close(many.run(x, MASK, engine=engine).logits, model(x, MASK), rtol=0, atol=0.1)
    again = parspike.load(snn.save(tmp_path / "net.parspike"))
    torch.testing.assert_close(again(x, MASK), snn(x, MASK), rtol=0, atol=0)
    assert parspike.measure(snn, [(x, MASK)], inputs=lambda item: item).rows


@pytest.mark.filterwarnings("error:Casting complex values")
def test_a_complex_factor_that_no_spike_makes_is_of_no_synapse():
    """Would catch SynOps counted of the real part alone."""
    model = made(lambda self, x, m: self.b(torch.fft.irfft(torch.fft.rfft(self.a(x).relu()) * torch.fft.rfft(m), n=8)),
                 a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 3))  # fmt: skip
    x, m = noise(4, 6), noise(4, 8)
    plan = parspike.plan(model, (x, m))
    [row] = [row for row in plan.rows if row.operator == "mul"]
    assert row.becomes == "analog on the time-mean: complex numbers are no currents"
    snn = parspike.convert(plan, [(x, m)], inputs=lambda item: item, T=512, recipe="max")
    torch.testing.assert_close(snn(x, m), model(x, m), rtol=0, atol=0.1)
    assert parspike.measure(snn, [(x, m)], inputs=lambda item: item).rows


def test_operations_of_a_synapse_whose_weights_the_sample_brings():
    """A matrix (7, 7) of the sample times spikes (7, 8): each spike reaches the seven tokens."""
    model = made(lambda self, x, m: self.b(m @ self.a(x).relu()).sum(1), a=lambda: nn.Linear(6, 8),
                 b=lambda: nn.Linear(8, 3))  # fmt: skip
    x, adjacency = noise(4, 7, 6), noise(4, 7, 7).abs()
    plan = parspike.plan(model, (x, adjacency))
    snn = parspike.convert(plan, [(x, adjacency)], T=5, recipe="max", inputs=lambda item: item)
    report = parspike.measure(snn, [(x, adjacency)], inputs=lambda item: item)
    row = next(row for row in report.rows if row.operator == "matmul")
    spikes = float(snn.run(x, adjacency, record=True).sent["relu"].sum()) / 4
    assert row.kind == "synapse"
    assert row.synops == pytest.approx(7 * spikes)
    assert row.macs == 0
    assert row.network_macs == 7 * 7 * 8


def test_a_product_of_spikes_stays_analog():
    model = made(lambda self, x: self.b((h := self.a(x).relu()) * h.mean(1, keepdim=True)).sum(1),
                 a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 3))  # fmt: skip
    plan = parspike.plan(model, noise(4, 7, 6))
    assert "analog on the time-mean: a product of two values that both depend on the input" in becomes(plan, "analog")


def test_a_product_across_the_batch_stays_on_the_means():
    """Heads joined with the batch, head outermost: time-steps cannot be laid along the same dimension."""

    def forward(self: Any, x: Tensor, m: Tensor) -> Tensor:
        h = self.a(x).relu()
        heads = torch.cat(h.split(4, -1), 0)
        seen = torch.cat([m, m], 0)[:, None] @ heads
        return self.b(torch.cat(seen.chunk(2, 0), -1)[:, 0])

    model = made(forward, a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 3))
    x = noise(4, 7, 6)
    plan = parspike.plan(model, (x, MASK))
    engines_agree(parspike.convert(plan, [(x, MASK)], inputs=lambda item: item, T=5, recipe="max"), x, MASK)
