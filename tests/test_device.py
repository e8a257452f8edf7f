"""What another device than the CPU must give: the laws of a CPU, in every recipe, engine, kind of neurons and file.

It is a GPU where torch sees one (`make gpu`). Elsewhere `tests/test_other_device.py` runs these tests in a process that
has the device of `tests/other_device.cpp`, where a tensor that was left on the CPU ends a test as it does on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import other_device
import pytest
import torch
from networks import Dense, PreActivation, Residual
from test_integer_engine import Signal, Wide, network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import parspike
from parspike import IF, LIF, Auto, ClosedForm, Reconstruct
from parspike.lower import integers

DEVICE = "cuda" if torch.cuda.is_available() else other_device.NAME
pytestmark = pytest.mark.skipif(
    DEVICE != "cuda" and not other_device.registered(),
    reason="needs a GPU, or tests/test_other_device.py",
)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean(1))


def convolutions(activation: Any) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), activation(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4), activation(), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2), activation(), nn.Flatten(), nn.Linear(144, 5),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "hardtanh": (lambda: convolutions(nn.Hardtanh), (3, 16, 16)),
    "convnet": (Residual, (3, 16, 16)),
    "silu": (lambda: convolutions(nn.SiLU), (3, 16, 16)),
    "attention": (Attention, (6, 8)),
    "routed": (lambda: Routed(), (8,)),
}


class Routed(nn.Module):
    """Of four branches each sample takes the one whose gate is the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.gate, self.branches = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 20)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.hidden(x))
        chosen = torch.sigmoid(self.gate(h)).argmax(1)
        return self.branches(h).view(-1, 4, 5)[torch.arange(len(x), device=x.device), chosen]


def made(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    return build().eval().to(DEVICE), images(96, *shape).to(DEVICE)


def pairs(others: Iterable[Any]) -> list[tuple[str, Any]]:
    """Networks with what is tried on them: all with all on a GPU, elsewhere the first with all and all with the first,
    which takes a fifth of the time."""
    names, others = list(NETWORKS), list(others)
    every = [(name, other) for name in names for other in others]
    return [pair for pair in every if DEVICE == "cuda" or pair[0] == names[0] or pair[1] is others[0]]


def near(snn: nn.Module, other: nn.Module, model: nn.Module, x: Tensor) -> None:
    """Whether a network on the device errs no more than another one, on the CPU, beside what both were made of."""
    got = snn(x)
    assert got.device.type == DEVICE
    own = model.cpu()(x.cpu())
    error, on_cpu = ((y.cpu() - own).norm() / own.norm() for y in (got, other(x.cpu())))
    assert error < 1.3 * on_cpu + 0.02


RECIPES = {
    "max": "max",
    "99.9%": "99.9%",
    "daqcfs": "daqcfs",
    "exact": parspike.DAQCFS(means="exact"),
    "closed-form": ClosedForm(),
    "layer": ClosedForm(granularity="layer", weigh="own"),
    "reconstruct": Reconstruct(steps=6),
    "free": Reconstruct(steps=6, free=True),
    "auto": Auto(budget=20),
}


@pytest.mark.parametrize(("network", "recipe"), pairs(RECIPES))
def test_every_recipe_gives_what_it_gives_on_a_cpu(network: str, recipe: str) -> None:
    model, x = made(network)
    snn = parspike.convert(model, x, T=8, recipe=RECIPES[recipe])
    assert {t.device.type for t in snn.state_dict().values()} == {DEVICE}
    near(snn, parspike.convert(model.cpu(), x.cpu(), T=8, recipe=RECIPES[recipe]), model, x)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("attention", {"encode": "hidden"}),
        ("attention", {"encode": "all"}),
        ("attention", {"encode": "all", "analog": "lookup", "code": "weighted"}),
        ("silu", {"encode": "all", "code": "onset"}),
        ("routed", {"code": "weighted"}),
    ],
    ids=str,
)
def test_encoders_tables_and_places(network: str, options: Any) -> None:
    model, x = made(network)
    snn = parspike.convert(model, x, T=6, recipe="closed-form", **options)
    near(snn, parspike.convert(model.cpu(), x.cpu(), T=6, recipe="closed-form", **options), model, x)


@pytest.mark.parametrize(("network", "code"), pairs(["sorted", "weighted", "onset"]))
def test_the_engines_agree(network: str, code: Any) -> None:
    model, x = made(network)
    model, x = model.double(), x.double()
    snn = parspike.convert(model, x, T=8 if code != "weighted" else 4, code=code, recipe="max")
    counts = {name: snn.run(x, engine=name) for name in ("count", "serial", "parallel")}
    for other in ("serial", "parallel"):
        torch.testing.assert_close(counts[other].logits, counts["count"].logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("network", "neuron"), pairs([IF(), IF(reset="zero"), IF(bias="step"), LIF(0.9)]), ids=str)
@pytest.mark.filterwarnings("ignore::parspike.errors.ParspikeWarning")
def test_neurons_with_a_state(network: str, neuron: Any) -> None:
    model, x = made(network)
    snn = parspike.convert(model, x, T=8, neuron=neuron)
    assert snn.run(x, every_step=True).logits.shape[:2] == (8, 96)
    near(snn, parspike.convert(model.cpu(), x.cpu(), T=8, neuron=neuron), model, x)


def test_a_file_moves_between_the_device_and_a_cpu(tmp_path: Any) -> None:
    model, x = made("convnet")
    snn = parspike.convert(model, x, T=4)
    snn.save(tmp_path / "a.parspike")
    loaded = parspike.load(tmp_path / "a.parspike")
    snn.cpu().save(tmp_path / "b.parspike")
    assert (tmp_path / "a.parspike").read_bytes() == (tmp_path / "b.parspike").read_bytes()
    assert torch.equal(loaded.to(DEVICE)(x), snn.to(DEVICE)(x))


def test_data_of_the_cpu_go_into_a_network_on_the_device() -> None:
    """As a `DataLoader` gives them."""
    model, x = made("convnet")
    loader = DataLoader(TensorDataset(x.cpu(), model(x).argmax(1).cpu()), 32)
    snn = parspike.convert(model, loader, T=8, recipe="closed-form")
    assert torch.equal(snn(x), parspike.convert(model, x.split(32), T=8, recipe="closed-form")(x))
    assert parspike.plan(model, x.cpu()).spiking == parspike.plan(model, x).spiking
    report = parspike.measure(snn, loader, against=model)
    assert report.accuracy == report.agreement == parspike.measure(snn, x, against=model).agreement
    there = [(images.to(DEVICE), labels) for images, labels in loader]
    assert str(parspike.diagnose(snn, model, loader)) == str(parspike.diagnose(snn, model, there))
    assert parspike.tune(model, x.cpu().split(16), drop=30, most=8, recipe="closed-form").trials
    for row in parspike.sweep(model, x.cpu().split(16), T=(1, 3), recipe="closed-form").rows:
        assert row.error == pytest.approx(row.quantised_error, rel=0.2)  # a current rounded across a threshold


@pytest.mark.filterwarnings("ignore::parspike.errors.ParspikeWarning")
def test_a_network_on_the_device_is_exported_and_timed(tmp_path: Any) -> None:
    """A file is run on the CPU to be compared, whatever the network lies on, which stays there."""
    model, x = convolutions(nn.ReLU).eval().to(DEVICE), images(96, 3, 16, 16)
    snn = parspike.convert(model, x, T=4, recipe="max")
    for name, options in (("a.onnx", {}), ("b.onnx", {"example": x[:4], "weights": 8})):
        assert parspike.export(snn, tmp_path / name, **options).file.unlike == 0
    stateful = parspike.convert(model, x, T=4, neuron=IF())
    for example in (x[:4], x[:4].to(DEVICE), None):
        assert parspike.export(stateful, tmp_path / "a.nir", example=example, force=True).file.unlike == 0
    assert {t.device.type for t in (*snn.state_dict().values(), *stateful.state_dict().values())} == {DEVICE}
    assert parspike.write_spikes(snn, [x[:4]], tmp_path / "a.npz").is_file()
    assert parspike.speed(model, x[:4], T=(4,), rounds=1).rows


@pytest.mark.parametrize("call", [lambda snn, x: snn(x), lambda snn, x: snn.run(x, engine="serial")])
def test_an_input_on_another_device_is_an_error_with_a_remedy(call: Callable[..., Any]) -> None:
    model, x = made("convnet")
    snn = parspike.convert(model, x, T=4, recipe="max")
    with pytest.raises(parspike.errors.InputError, match=rf"lies on cpu, the network on {DEVICE}:0: pass x.to\("):
        call(snn, x.cpu())
    with pytest.raises(parspike.errors.InputError, match=rf"lies on {DEVICE}:0, the network on cpu: pass x.to\("):
        call(snn.cpu(), x)


WHOLE: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (Residual, {"T": 40, "weights": 4}),
    (Residual, {"T": 300, "weights": 6}),
    (PreActivation, {"T": 5}),
    (Dense, {"T": 3, "code": "weighted", "weights": 2}),
    (Wide, {"T": 5}),
    (Wide, {"T": 4, "weights": 10}),
    (Wide, {"T": 200}),
    (Wide, {"T": 1000}),
    (Signal, {"T": 200}),
]


@pytest.mark.parametrize(("kind", "options"), WHOLE, ids=lambda v: getattr(v, "__name__", str(v)))
def test_whole_numbers_have_a_cpus_bits(kind: type[nn.Module], options: dict[str, Any]) -> None:
    """Would catch TF32, Winograd, a kernel's padding, a half of a count, an edge of a block."""
    snn, x = network(kind, **options)
    same_bits(snn, x, fine=options["T"] < 50)


def same_bits(snn: parspike.SNN, x: Tensor, *, fine: bool) -> None:
    """Whether a network in whole numbers counts on the device what it counts on the CPU."""
    cpu = snn.run(x, engine="integer", record=True)
    snn = snn.to(DEVICE)
    torch.backends.cudnn.allow_tf32 = True
    for engine in ("integer", "count", "parallel" if fine else "count"):
        there = snn.run(x.to(DEVICE), engine=engine, record=True)
        assert [layer for layer, n in cpu.counts.items() if not torch.equal(there.counts[layer].cpu(), n)] == [], engine
        assert torch.equal(there.logits.cpu(), cpu.logits), engine


def test_integers_are_made_there_as_on_a_cpu() -> None:
    model, x = made("convnet")
    snn = parspike.convert(model, x, T=8, recipe="max")
    chip = integers(snn, x)
    assert {t.device.type for t in chip.state_dict().values()} == {DEVICE}
    cpu = integers(snn.cpu(), x.cpu())
    assert all(torch.equal(t.cpu(), cpu.state_dict()[path]) for path, t in chip.state_dict().items())
    assert torch.equal(chip.run(x, engine="integer").logits.cpu(), cpu.run(x.cpu(), engine="integer").logits)
