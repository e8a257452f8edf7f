"""Free sizes: one conversion, every height and width, length and number of tokens that the network takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import Eq, Symbol
from torch import Tensor, nn
from torch.utils._sympy.functions import Min, Mod

import parspike
from parspike.errors import InputError
from parspike.graph import Curve, sizes


class UNet(nn.Module):
    """Two levels down and up again, with skips: sides must be multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.up = nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        b = self.b(F.max_pool2d(a, 2)).relu()
        c = torch.relu(self.c(F.max_pool2d(b, 2)))
        b = torch.relu(self.up(c) + b)
        return self.out(torch.cat([F.interpolate(b, scale_factor=2), a], 1))


class Segmenter(nn.Module):
    """Strides, then back to the size of the input, as FCN does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
            nn.Conv2d(6, 6, 3, stride=2, dilation=2), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.head(self.body(x))
        return {"out": F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)}


class Excited(nn.Module):
    """Depthwise convolutions with squeeze and excitation, sums divided by the sizes, adaptive pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(8 * 4 + 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        x = F.relu6(self.deep(x))
        x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        mean = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
        return self.head(torch.cat([F.adaptive_avg_pool2d(x, (2, 2)).flatten(1), mean], 1))


class Audio(nn.Module):
    """A stack of strided convolutions on a waveform, a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 6, 9, stride=4), nn.Conv1d(6, 6, 3, padding="same", dilation=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean(-1))


class Tokens(nn.Module):
    """A layer of a transformer on embedded tokens with a table of positions and a mask of their length."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(32, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
        x = self.layer(x) * mask.unsqueeze(-1)
        return self.head(x.sum(1) / x.shape[1])


class Head(nn.Module):
    """A linear layer on flattened maps, made for one size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(self.conv(x).relu(), 4).flatten(1))


class Divided(nn.Module):
    """Numbers of the example's size in the code: kept where they do not matter, else the size is fixed."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.conv, self.where = nn.Conv2d(3, 4, 3, padding=1), where

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        if self.where == "number":  # the network's own number, the same for every size
            return x.sum((2, 3)) / 256
        if self.where == "window":
            return F.avg_pool2d(x, tuple(x.shape[2:])).flatten(1)
        if self.where == "view":
            return x.view(x.shape[0], 4, 256).mean(-1)
        if self.where == "windows":
            return x.unflatten(2, (x.shape[2] // 4, 4)).amax(3).mean((2, 3))
        if self.where == "branch":
            return (x * 2 if x.shape[2] > 12 else x).mean((2, 3))
        if self.where == "root":
            return x.mean((2, 3)) * x.shape[2] ** 0.5
        if self.where == "branches":
            for n in range(20, 64):
                x = x * 2 if x.shape[2] % n == 5 else x
            return self.conv(x[:, :3]).mean((2, 3))
        return F.interpolate(x, scale_factor=1.5).mean((2, 3))


def images(*shape: int) -> tuple[Tensor]:
    return (torch.randn(*shape),)


def tokens(batch: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 20, (batch, length)), (torch.rand(batch, length) > 0.3).float()


NETWORKS = {
    "unet": (UNet, images(2, 3, 16, 16), [images(1, 3, 8, 20), images(3, 3, 24, 12), images(2, 3, 32, 4)]),
    "fcn": (Segmenter, images(2, 3, 24, 24), [images(1, 3, 17, 30), images(2, 3, 33, 21), images(2, 3, 48, 25)]),
    "excited": (Excited, images(2, 3, 16, 16), [images(1, 3, 9, 22), images(2, 3, 31, 14), images(3, 3, 32, 8)]),
    "audio": (Audio, images(2, 1, 200), [images(1, 1, 1000), images(3, 1, 33), images(2, 1, 201)]),
    "tokens": (Tokens, tokens(2, 8), [tokens(1, 20), tokens(3, 5), tokens(2, 32)]),
}


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...], list[tuple[Tensor, ...]]]:
    kind, example, others = NETWORKS[name]
    torch.manual_seed(0)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model, example, others


@functools.cache
def planned(name: str) -> parspike.Plan:
    model, example, _ = network(name)
    return parspike.plan(model, example)


@pytest.mark.parametrize("name", NETWORKS)
def test_with_every_activation_kept_it_is_the_network_on_every_size(name: str, tmp_path: Path) -> None:
    model, example, others = network(name)
    plan = planned(name)
    assert plan.ok, plan
    assert "free: " in str(plan)
    snn = parspike.convert(replace(plan, spiking=()), [example], T=2)
    loaded = parspike.load(snn.save(tmp_path / "net.parspike"))
    for args in (example, *others):
        with torch.no_grad():
            wanted = model(*args)
        for engine in ("count", "parallel", "serial", "serial-if"):
            torch.testing.assert_close(snn.run(*args, engine=engine).logits, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loaded(*args), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_engines_agree_on_another_size(name: str, tmp_path: Path) -> None:
    _, example, others = network(name)
    snn = parspike.convert(planned(name), [example], T=4, recipe="daqcfs", inputs=lambda item: item).double()
    loaded = parspike.load(snn.save(tmp_path / "net.parspike"))
    for args in map(doubled, others):
        count = snn.run(*args, record=True)
        assert count.spikes
        for run in (
            snn.run(*args, engine="parallel", record=True), snn.run(*args, engine="parallel", chunk=3, record=True),
            snn.run(*args, engine="serial", record=True), loaded.run(*args, record=True),
        ):  # fmt: skip
            torch.testing.assert_close(run.logits, count.logits, rtol=1e-9, atol=1e-9)
            assert all(torch.equal(run.counts[layer], count.counts[layer]) for layer in count.counts)


def doubled(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in args)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_changes_for_the_size_of_the_example(name: str) -> None:
    model, example, others = network(name)
    free, fixed = planned(name), parspike.plan(model, example, free_sizes=False)
    assert free.rows == fixed.rows
    assert fixed.graph.example == {}
    one, two = (parspike.convert(p, [example], T=4, inputs=lambda item: item) for p in (free, fixed))
    torch.testing.assert_close(one(*example), two(*example), rtol=0, atol=0)
    with pytest.raises(InputError, match="this network takes"):
        two(*others[0])


def test_a_fixed_head_says_why() -> None:
    plan = parspike.plan(Head().eval(), torch.randn(2, 3, 16, 16))
    assert plan.graph.inputs[0].shape[1:] == (3, 16, 16)
    (why,) = (text for text in plan.graph.fixed if "x.2" in text)
    assert "x.2 = 16, x.3 = 16 fixed by layer 'fc' at" in why
    assert "test_sizes.py" in why
    assert "self.fc(" in why
    assert why in str(plan)
    assert why in plan.to_dict()["fixed"]


def test_a_size_beyond_the_limits_is_one_clear_error() -> None:
    snn = parspike.convert(planned("unet"), [network("unet")[1]], T=2)
    with pytest.raises(InputError) as error:
        snn(torch.randn(2, 3, 18, 16))
    text = str(error.value)
    assert "run: input 'x' has shape (2, 3, 18, 16), this network takes (B, 3, x.2, x.3)" in text
    assert "free: x.2, x.3" in text
    assert "(x.2 % 4) = 0" in text
    with pytest.raises(InputError, match=r"\(2, 4, 16, 16\), this network takes \(B, 3, x.2, x.3\)"):
        snn(torch.randn(2, 4, 16, 16))
    with pytest.raises(InputError, match=r"\(2, 3, 16, 0\)"):
        snn(torch.randn(2, 3, 16, 0))


def test_two_inputs_share_a_size() -> None:
    snn = parspike.convert(planned("tokens"), [network("tokens")[1]], T=2, inputs=lambda item: item)
    assert list(snn.graph.example) == ["x.1"]
    words, _ = tokens(2, 9)
    with pytest.raises(InputError, match=r"input 'mask' has shape \(2, 8\), this network takes \(B, x.1\)"):
        snn(words, torch.ones(2, 8))


def test_more_tokens_than_positions() -> None:
    snn = parspike.convert(planned("tokens"), [network("tokens")[1]], T=2, inputs=lambda item: item)
    with pytest.raises(InputError, match=r"\(1, 33\).*fail in this network, traced with {'x.1': 8}: index out"):
        snn(*tokens(1, 33))


@pytest.mark.parametrize(
    ("where", "free", "said"),
    [
        ("number", True, "free: x.2, x.3"),
        ("window", True, "free: x.2, x.3"),
        ("view", False, "x.2 = 16, x.3 = 16 fixed by Divided.forward"),
        ("windows", True, "(x.2 % 4) = 0"),
        ("branch", True, "x.2 ≥ 13"),
        ("root", False, "since with free ones it computes"),
        ("branches", False, "since with free ones it asks more than"),
        ("scale", True, "free: x.2, x.3"),
    ],
)
def test_numbers_in_the_code(where: str, free: bool, said: str) -> None:
    torch.manual_seed(0)
    model = Divided(where).eval()
    graph = parspike.plan(model, torch.randn(2, 3, 16, 16)).graph
    assert bool(graph.example) == free
    assert said in graph.about_sizes
    for shape in ((1, 3, 16, 16), (3, 3, 20, 24)):
        x = torch.randn(shape)
        if free or shape[2] == 16:
            with torch.no_grad():
                torch.testing.assert_close(graph.run(x), model(x))
        else:
            with pytest.raises(InputError):
                graph.check({"x": x}, "run")


def test_neurons_have_a_fixed_number_of_channels() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.act = nn.Embedding(20, 8), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.words(x)).mean(1)

    graph = parspike.plan(Words().eval(), torch.randint(0, 20, (2, 6))).graph
    # Behind an embedding the channels are its features, so the number of words is free.
    assert graph.example == {"x.1": 6}
    assert [node.channels for node in graph.neurons] == [8]


def test_what_cannot_be_proved_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is wrong on other sizes, as a mistake of tracing would make it."""
    from parspike.graph import ops

    model, example, _ = network("audio")
    row = ops.TABLE["aten.mean.dim"]

    def wrong(x: Tensor, *args: object) -> Tensor:
        return row.run(x, *args) * (x.shape[-1] / 48)

    monkeypatch.setitem(ops.TABLE, "aten.mean.dim", replace(row, run=wrong))
    graph = parspike.plan(model, example).graph
    assert graph.example == {}
    assert "its output for inputs of shape" in graph.about_sizes


@pytest.mark.parametrize(
    "recipe", ["daqcfs", "closed-form", {"name": "reconstruct", "steps": 12, "batch_size": 4}, "auto"]
)
def test_calibration_batches_of_several_sizes(recipe: object) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    batches = [torch.randn(8, 2, side, 20 - side) for side in (8, 10, 12) for _ in range(3)]
    plan = parspike.plan(model, batches[0])
    assert any(isinstance(plan.activation(node), Curve) for node in plan.graph.neurons)
    snn = parspike.convert(plan, batches, T=32, recipe=recipe)  # pyright: ignore[reportArgumentType]
    for x in batches[::3]:
        wanted = model(x).detach()
        assert (snn(x) - wanted).norm() < 0.1 * wanted.norm()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
def test_any_size_is_computed_or_refused(height: int, width: int, batch: int) -> None:
    """Would catch a size at which the graph computes something else than the network."""
    x, graph = torch.randn(batch, 3, height, width), planned("fcn").graph
    try:
        graph.check({"x": x}, "run")
    except InputError:
        assert min(height, width) < 13  # torch.export asks for maps of two, the network would take one
    else:
        torch.testing.assert_close(graph.run(x)["out"], network("fcn")[0](x)["out"].detach(), rtol=1e-4, atol=1e-5)


class Places(nn.Module):
    """A network whose code computes with the size of its maps."""

    def __init__(self, function: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.a, self.function, self.b = nn.Conv2d(3, 4, 3, stride=2, padding=1), function, nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = 9 * self.a(x)
        return self.b(self.function(y, y.shape[-1]))


POOLED = {
    "average": lambda y, n: F.avg_pool2d(y.relu(), y.size()[2:]),
    "maximum": lambda y, n: F.max_pool2d(y.relu(), kernel_size=(y.shape[2], n), stride=(y.shape[2], n)),
    "norm": lambda y, n: F.lp_pool2d(y.relu() + 0.1, 2, y.size()[2:]),
    "norm of a side": lambda y, n: F.lp_pool2d(y.relu() + 0.1, 3, (y.shape[2], n)),
    "largest magnitude": lambda y, n: F.lp_pool2d(y, math.inf, y.size()[2:]),
    "one dimension": lambda y, n: F.max_pool1d(y.relu().flatten(2), y.shape[2] * n)[..., None],
}


@pytest.mark.parametrize("name", POOLED)
def test_a_pool_over_all_places_leaves_sizes_free(name: str) -> None:
    """Would catch sizes that torch makes numbers of, as it does of a pool's kernel."""
    torch.manual_seed(0)
    model = Places(POOLED[name]).eval()
    graph = parspike.plan(model, torch.randn(4, 3, 16, 16)).graph
    assert "free: x.2, x.3" in graph.taken
    x = torch.randn(3, 3, 16, 22)
    torch.testing.assert_close(graph.run(x), model(x).detach())


LENGTHS = {
    "halved": nn.MaxPool1d(2),
    "overlapping": nn.MaxPool1d(3, 2, padding=1),
    "rounded up": nn.MaxPool1d(3, stride=2, ceil_mode=True),
    "with gaps": nn.MaxPool1d([2], [1], dilation=(3,)),
    "of an example": lambda y: torch.stack([F.max_pool1d(one, 2) for one in (y[0], y[-1])]),
}


class Cut(nn.Module):
    """A pool of a signal: `pool` stands in the network, or in its code."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.a, self.b, self.pool = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 3, 1), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.pool(self.a(x).relu())).relu()


@pytest.mark.parametrize("name", LENGTHS)
def test_a_maximum_over_windows_of_a_signal_leaves_its_length_free(name: str) -> None:
    """Would catch lengths that torch fixes in max_pool1d, and another operator in its place."""
    torch.manual_seed(0)
    model, x = Cut(LENGTHS[name]).eval(), torch.randn(4, 2, 16)
    plan = parspike.plan(model, x)
    assert "free: x.2" in plan.graph.taken
    assert [n.target for n in plan.graph.nodes if "pool" in n.target][:1] == ["aten.max_pool1d.default"]
    assert not [n for n in plan.graph.nodes if "squeeze" in n.target]
    y = torch.randn(4, 2, 23)
    torch.testing.assert_close(plan.graph.run(y), model(y).detach())
    snn = parspike.convert(plan, x, T=4096, recipe="max")
    assert snn.run(y, engine="serial-if").logits.shape == model(y).shape
    wanted = model(x).detach()
    assert float((snn(x) - wanted).norm() / wanted.norm()) < 1e-3


def test_a_pool_of_one_side_is_no_pool_over_all_places() -> None:
    """Would catch maps that are wider than high averaged as a whole."""
    model = Places(lambda y, n: F.avg_pool2d(y.relu(), n)).eval()
    graph = parspike.plan(model, torch.randn(4, 3, 16, 8)).graph
    x = torch.randn(3, 3, 16, 8)
    assert graph.run(x).shape[-2:] == (2, 1)
    torch.testing.assert_close(graph.run(x), model(x).detach())


def test_a_pool_of_the_height_leaves_the_side_of_squares_free() -> None:
    """Would catch `F.avg_pool2d(x, x.shape[2])` fixing the size, and images that are no squares averaged as a whole."""
    torch.manual_seed(0)
    model = Places(lambda y, n: F.avg_pool2d(y.relu(), n)).eval()
    graph = parspike.plan(model, torch.randn(4, 3, 16, 16)).graph
    for side in (16, 22):
        x = torch.randn(3, 3, side, side)
        graph.check({"x": x}, "run")
        torch.testing.assert_close(graph.run(x), model(x).detach())
    with pytest.raises(InputError, match=r"\(3, 3, 32, 16\), this network takes \(B, 3, x.2, "):
        graph.check({"x": torch.randn(3, 3, 32, 16)}, "run")


def test_a_size_is_fixed_by_the_equation_and_not_by_a_least_size() -> None:
    """Would catch the convolution named, whose window only asks that images be large enough."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return F.lp_pool2d(y, 2, (y.shape[2], y.shape[3] // 2))

    model = Whole().eval()
    (why,) = (text for text in parspike.plan(model, torch.randn(4, 3, 16, 16)).graph.fixed if "x.2" in text)
    assert "layer 'a'" not in why


class Padded(nn.Module):
    """Audio that is padded to a length that strided layers lead back to, as Demucs does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv1d(1, 4, 8, stride=4), nn.ConvTranspose1d(4, 1, 8, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        frames = max(math.ceil((x.shape[-1] - 8) / 4) + 1, 1)
        padded = F.pad(x, (0, (frames - 1) * 4 + 8 - x.shape[-1]))
        return self.up(F.relu(self.down(padded)))[..., : x.shape[-1]]


def test_the_ceiling_of_what_may_be_below_zero_leaves_sizes_free() -> None:
    """Would catch the length fixed, and a wrong one for audio shorter than a window."""
    model = Padded().eval()
    graph = parspike.plan(model, torch.randn(4, 1, 50)).graph
    assert "free: x.2" in graph.taken
    for length in (3, 8, 9, 49, 53):
        x = torch.randn(2, 1, length)
        torch.testing.assert_close(graph.run(x), model(x).detach())


BOUNDED = {
    "clamp": lambda y, n: y.clamp(0, n),
    "upper": lambda y, n: y.clamp(max=n),
    "clamp_max": torch.clamp_max,
    "hardtanh": lambda y, n: F.hardtanh(y, 0, n),
    "leaky": F.leaky_relu,
    "elu": F.elu,
    "threshold": lambda y, n: F.threshold(y, n, 0),
    "softplus": F.softplus,
    "celu": F.celu,
    "hardshrink": F.hardshrink,
    "power": lambda y, n: y.relu() ** (n - 6),
    "levels": lambda y, n: (y * n).round().clamp(0, n) / n,
}


@pytest.mark.parametrize("name", BOUNDED)
def test_an_activation_with_a_size_in_it_is_computed(name: str, tmp_path: Path) -> None:
    """Would catch boxes that are clamped to the image ending in an error of Python's: a free size is no number."""
    torch.manual_seed(0)
    model = Places(BOUNDED[name]).eval()
    example = torch.randn(16, 3, 16, 16)
    snn = parspike.load(parspike.convert(model, example, T=4, recipe="max").save(tmp_path / "n.parspike"))
    for x in (example, torch.randn(3, 3, 22, 24)):
        torch.testing.assert_close(snn(x), model(x).detach(), rtol=1e-4, atol=1e-4)
    assert parspike.plan(model, example, free_sizes=False).spiking or name in ("power", "levels")


class Kept(nn.Module):
    """A grid that is kept as long as batches have the size of the one before, as detectors keep theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shape = nn.Conv2d(3, 4, 3, stride=2, padding=1), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.shape != y.shape:
            self.grid, self.shape = torch.arange(y.shape[2] * y.shape[3]).view(y.shape[2:]) / 10, y.shape
        return y + self.grid


def test_a_batch_as_large_as_the_one_before_is_taken() -> None:
    """Would catch a detector that was run on batches of 50, and refuses these alone when converted on 32."""
    x = torch.randn(50, 3, 16, 16)
    model = Kept().eval()
    model(x)
    graph = parspike.plan(model, x[:32]).graph
    assert not [limit for limit in graph.limits if "≠" in str(limit)]
    torch.testing.assert_close(graph.run(x), model(x).detach())
    torch.testing.assert_close(graph.run(x[:3]), model(x[:3]).detach())


def test_a_batch_at_which_the_network_does_something_else_stays_left_out() -> None:
    x = torch.randn(50, 3, 16, 16)
    model = Places(lambda y, n: y.relu() if y.shape[0] != 50 else y.relu() + 1).eval()
    graph = parspike.plan(model, x[:32]).graph
    assert "B ≠ 50" in graph.taken
    with pytest.raises(InputError, match="where B ≠ 50"):
        graph.check({"x": x}, "run")


def test_conditions_are_told_as_what_they_come_to() -> None:
    """Would catch x.1 = min(5000, x.1), and conditions on the batch that hold for every batch of two inputs."""
    x, one, two = (Symbol(name, positive=True, integer=True) for name in ("x", "one", "two"))
    # As torch compares them: `Eq` would decide of what `Min` and `x` have in common.
    most = Eq(x, Min(5000, x), evaluate=False)
    assert sizes._condition(most, {x: "x.1"}) == ("≤", "x.1", 5000)
    assert sizes._plain(sizes._one_batch(Eq(Mod(16 * one * x, 2 * two * x), 0), {one, two})) == True  # noqa: E712
    assert sizes._plain(Eq(Mod(15 * x, 2 * x), 0)) != True  # noqa: E712


class Length(nn.Module):
    """A function of the maps of a signal, and of further signals."""

    def __init__(self, then: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.h, self.then = nn.Conv1d(3, 4, 3, padding=1), nn.Linear(4, 2), then

    def forward(self, *signals: Tensor) -> Tensor:
        return self.h(self.then(*(self.a(x).relu() for x in signals)).mean(2))


def weighed(*parts: Tensor) -> Tensor:
    return torch.cat([part.mean(2, keepdim=True) * (number + 1) for number, part in enumerate(parts)], 2)


PARTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "chunk": (lambda y: weighed(*y.chunk(2, 2)), "x.2 ≥ 2"),
    "chunk in three": (lambda y: weighed(*y.chunk(3, 2)), "x.2 ≥ 3 and x.2 ≠ 4"),
    "halves": (lambda y: weighed(*y.split(y.shape[2] // 2, 2)), "(x.2 % 2) = 0"),
    "sum of halves": (lambda y: torch.add(*y.chunk(2, 2)), "(x.2 % 2) = 0"),
    "the rest": (lambda y: weighed(*y.split([8, y.shape[2] - 8], 2)), "x.2 ≥ 8"),
    "pairs": (lambda y: y.reshape(y.shape[0], 4, -1, 2).amax(3), "(x.2 % 2) = 0"),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_size_that_grow_with_it_leave_it_free(name: str) -> None:
    """Would catch `x.chunk(2, 2)` fixing the size, and sizes that give another number of parts."""
    then, where = PARTS[name]
    model = Length(then).eval()
    graph = parspike.plan(model, torch.randn(4, 3, 24)).graph
    assert f"free: x.2; where {where};" in graph.taken.replace("signals_0", "x")
    for length in range(1, 31):
        x = torch.randn(3, 3, length)
        try:
            graph.check({graph.inputs[0].name: x}, "run")
        except InputError:
            continue
        torch.testing.assert_close(graph.run(x), model(x).detach(), equal_nan=True)  # the mean of a part of length 0
    assert graph.allows({**graph.example, next(iter(graph.example)): 30, "batch": 1})


def test_parts_of_a_written_size_fix_what_they_are_cut_from() -> None:
    (why,) = (
        text
        for text in parspike.plan(Length(lambda y: weighed(*y.split(8, 2))).eval(), torch.randn(4, 3, 24)).graph.fixed
        if "24" in text
    )
    assert "fixed by" in why


def centre(x: Tensor, y: Tensor) -> Tensor:
    begin = (x.shape[2] - y.shape[2]) // 2
    return x[:, :, begin : begin + y.shape[2]] + y


def test_a_crop_to_the_middle_leaves_both_sizes_free() -> None:
    """Would catch the sizes fixed since the place of a slice is a difference of them, as in the first U-Net."""
    model = Length(centre).eval()
    graph = parspike.plan(model, (torch.randn(4, 3, 30), torch.randn(4, 3, 24))).graph
    names = [i.name for i in graph.inputs]
    assert len(graph.example) == 2
    for one, other in ((30, 24), (24, 24), (31, 8), (9, 2), (40, 39)):
        given = torch.randn(3, 3, one), torch.randn(3, 3, other)
        graph.check(dict(zip(names, given, strict=True)), "run")
        torch.testing.assert_close(graph.run(*given), model(*given).detach())
    with pytest.raises(InputError, match=r"\(3, 3, 24\), this network takes"):
        graph.check(dict(zip(names, (torch.randn(3, 3, 24), torch.randn(3, 3, 30)), strict=True)), "run")


def resized_if(x: Tensor, y: Tensor) -> Tensor:
    if x.shape[2] != y.shape[2]:
        x = F.interpolate(x, size=y.shape[2], mode="linear")
    return x * y


def doubled_if(x: Tensor, y: Tensor) -> Tensor:
    if x.shape[2] != y.shape[2]:
        x = 2 * F.interpolate(x, size=y.shape[2], mode="linear")
    return x * y


@pytest.mark.parametrize("then", [resized_if, doubled_if])
def test_equal_sizes_are_taken_where_the_network_does_nothing_else_for_them(then: Any) -> None:
    """Would catch signals of equal length refused, as they need not be resized, or given what others are."""
    model = Length(then).eval()
    graph = parspike.plan(model, (torch.randn(4, 3, 30), torch.randn(4, 3, 24))).graph
    given = torch.randn(3, 3, 20), torch.randn(3, 3, 20)
    env = dict(zip((i.name for i in graph.inputs), given, strict=True))
    if then is resized_if:
        assert not graph.limits
        torch.testing.assert_close(graph.run(*given), model(*given).detach())
        return
    with pytest.raises(InputError, match=r"where \S+ ≠ \S+;"):
        graph.check(env, "run")


def test_differences_are_told_as_such_and_one_of_two_conditions_in_brackets() -> None:
    less = ("+", -2, "x.3", ("*", -2, "x.2"), ("*", -1, "x.2", "x.3"))
    limits = (
        sizes.Size((">", less, 0)),
        sizes.Size(("or", (">", "x.2", 3), ("<", "x.3", ("+", -1, ("*", -1, "x.2"))))),
    )
    graph = replace(parspike.plan(nn.ReLU(), torch.randn(2, 3)).graph, limits=limits, example={"x.2": 9, "x.3": 50})
    said = "where (x.3 - 2 - (2 * x.2) - (x.2 * x.3)) > 0 and ((x.2 > 3) or (x.3 < (-1 + (-1 * x.2))))"
    assert said in graph.about_sizes


def test_a_condition_that_divides_by_zero_is_not_met() -> None:
    limit = sizes.Size(("=", ("//", "x.2", ("+", "x.2", -2)), 2))
    assert not limit.holds({"x.2": 2})
    assert limit.holds({"x.2": 4})


def windows(y: Tensor) -> Tensor:
    """Windows of 4 of a signal that is padded to a multiple of 4, and cut to its length again, as Swin's."""
    n = y.shape[2]
    padded = torch.roll(F.pad(y, (0, (4 - n % 4) % 4)), -2, 2)
    parts = padded.view(y.shape[0], 4, -1, 4)
    whole = (parts * parts.amax(3, keepdim=True)).reshape(y.shape[0], 4, -1)
    return y + torch.roll(whole, 2, 2)[:, :, :n].contiguous()


FOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "places from −1 to 1": lambda y: y * torch.linspace(-1, 1, y.shape[2]),
    "places from 0 to the last": lambda y: y * torch.linspace(0, y.shape[2] - 1, steps=y.shape[2], dtype=torch.float32),
    "a tensor of a size": lambda y: y / torch.tensor(y.shape[2]),
    "a tensor of sizes": lambda y: y * torch.tensor([y.shape[1], y.shape[2]]).sum(),
    "as_tensor": lambda y: y / torch.as_tensor(y.shape[2], dtype=y.dtype, device=y.device),
    "new_tensor": lambda y: y * y.new_tensor([y.shape[2], 0.5]).sum(),
    "windows": windows,
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_torch_makes_numbers_of_is_followed(name: str) -> None:
    """Would catch lengths fixed by the number of places, by a tensor of sizes, or since `contiguous` asks for them."""
    model = Length(FOLLOWED[name]).eval()
    graph = parspike.plan(model, torch.randn(4, 3, 16)).graph
    assert "free: signals_0.2" in graph.taken
    for length in range(2, 20):
        x = torch.randn(3, 3, length)
        graph.check({graph.inputs[0].name: x}, "run")
        torch.testing.assert_close(graph.run(x), model(x).detach())


def test_a_value_that_is_written_into_behind_contiguous_keeps_what_it_writes() -> None:
    """Would catch `x.contiguous()`, which is x itself, taken for a copy."""

    def written(y: Tensor) -> Tensor:
        y.contiguous().mul_(2)
        return y + 1

    model = Length(written).eval()
    x = torch.randn(4, 3, 16)
    torch.testing.assert_close(parspike.plan(model, x).graph.run(x), model(x).detach())


def test_a_condition_on_two_sizes_that_always_holds_is_not_told() -> None:
    always = sizes.Size(("or", (">", "x.2", 1), (">", ("+", "x.3", 3), 2)))
    follows = sizes.Size(("≠", ("*", "x.2", "x.3"), 1))
    told = sizes.Size(("<", "x.2", "x.3"))
    graph = replace(parspike.plan(nn.ReLU(), torch.randn(2, 3)).graph, example={"x.2": 9, "x.3": 50})
    least = sizes.Size((">", "x.2", 1))
    said = replace(graph, limits=(least, always, follows, told)).about_sizes
    assert said.endswith("where x.2 > 1 and x.2 < x.3")
    assert "(x.2 * x.3) ≠ 1" in replace(graph, limits=(follows,)).about_sizes


def square(y: Tensor) -> Tensor:
    """The middle of an image that is higher than wide."""
    side = min(y.shape[2], y.shape[3])
    top, left = (y.shape[2] - side) // 2, (y.shape[3] - side) // 2
    return y[:, :, top : top + side, left : left + side]


def test_several_conditions_may_leave_out_the_same_sizes() -> None:
    """Would catch squares refused by two conditions, each of which stays for the other."""
    model = Places(lambda y, n: square(y.relu())).eval()
    graph = parspike.plan(model, torch.randn(4, 3, 12, 10)).graph
    for shape in ((12, 10), (9, 9), (20, 5)):
        x = torch.randn(2, 3, *shape)
        graph.check({"x": x}, "run")
        torch.testing.assert_close(graph.run(x), model(x).detach())
    assert "≠" not in graph.about_sizes


class Table(nn.Module):
    """A table of 32 places, cut to the length and turned round."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.places = nn.Conv1d(3, 8, 3, padding=1), nn.Embedding(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).relu() + self.places.weight[: x.shape[2]].T.flip(1)


def test_a_table_is_taken_in_all_its_length() -> None:
    """Would catch a length of 32 refused, since tracing the condition n = min(32, n) again asks whether n < 32."""
    model = Table().eval()
    graph = parspike.plan(model, torch.randn(4, 3, 24)).graph
    assert "where x.2 ≤ 32;" in graph.taken
    for length in (1, 31, 32):
        x = torch.randn(2, 3, length)
        graph.check({"x": x}, "run")
        torch.testing.assert_close(graph.run(x), model(x).detach())
    with pytest.raises(InputError, match=r"x.2 ≤ 32"):
        graph.check({"x": torch.randn(2, 3, 33)}, "run")


def test_whole_windows_are_told_as_multiples() -> None:
    """Would catch `x.3 * x.2 = 4 * (x.3 // 2) * (x.2 // 2)`, a multiple that is refused, and another size taken."""

    def best(y: Tensor, n: int) -> Tensor:
        b, c, h, w = y.shape
        return y.relu().view(b, c, h // 2, 2, w // 4, 4).amax((3, 5))

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return best(self.a(x), 0)

    model = Whole().eval()
    graph = parspike.plan(model, torch.randn(4, 3, 12, 8)).graph
    assert "where (x.3 % 4) = 0 and (x.2 % 2) = 0;" in graph.taken
    for height, width, fits in ((2, 4, True), (6, 12, True), (3, 8, False), (4, 6, False)):
        assert graph.allows({"x.2": height, "x.3": width, "batch": 2}) is fits
    x = torch.randn(2, 3, 6, 12)
    torch.testing.assert_close(graph.run(x), model(x).detach())


def test_a_number_with_a_fraction_is_named_with_its_line() -> None:
    """Would catch an expression of torch's, IntTrueDiv(1, s53), as the reason of fixed sizes."""
    graph = parspike.plan(Length(lambda y: y * (1 / y.shape[2])).eval(), torch.randn(4, 3, 16)).graph
    assert "computes with a number with a fraction made of its sizes at " in graph.about_sizes
    assert "IntTrueDiv" not in graph.about_sizes
