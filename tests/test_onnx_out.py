"""ONNX out: the file computes what the count network computes; in whole numbers, to the bit."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Dense, PreActivation, Quantised, Residual, planned
from torch import Tensor, nn
from typer.testing import CliRunner

import parspike
from parspike import IF
from parspike.cli import app
from parspike.errors import FileError, InputError, MissingExtraError, OptionError, UnsupportedError
from parspike.export.result import Compared
from parspike.lower import integers

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")
ort = pytest.importorskip("onnxruntime")


class Curves(nn.Module):
    """Activations that become staircases and analog operators, on sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.k, self.norm, self.head = (
            nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.silu(self.a(x))
        scores = torch.softmax(self.q(y) @ self.k(y).transpose(1, 2) / 2, -1)
        return self.head(self.norm(scores @ y).sigmoid()).mean(1)


class Tokens(nn.Module):
    """A layer of a transformer on tokens, with a spectrum beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.register_buffer("window", torch.hann_window(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.embed(x))
        heard = torch.stft(y.flatten(1), 8, 4, window=self.window, return_complex=True).abs().mean((1, 2))
        return self.head(y.mean(1)) + heard[:, None]


@pytest.mark.parametrize("options", [{}, {"encode": "all", "analog": "lookup"}], ids=["analog", "in spikes"])
def test_tokens_attention_and_a_spectrum(options: dict[str, Any], tmp_path: Path) -> None:
    """Would catch a rule that is right alone and wrong behind another, and neurons that send spikes of both signs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Tokens().eval(), torch.randint(0, 20, (12, 5))
    snn = parspike.convert(model, x, T=5, recipe="max", **options)
    made = parspike.export(snn, tmp_path / "net.onnx", example=x)
    assert made.file.layers
    assert made.file.unlike <= sum(row.counts for row in made.file.layers) / 500
    session = ort.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        (y,) = session.run(None, {session.get_inputs()[0].name: x[:batch].numpy()})
        assert np.allclose(y, snn(x[:batch]).numpy(), atol=0.05 * float(snn(x).abs().max()))


@functools.cache
def curves() -> tuple[nn.Module, Tensor, parspike.Plan]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Curves().eval(), torch.randn(12, 5, 6)
    return model, x, parspike.plan(model, x)


def network(kind: type[nn.Module], **options: Any) -> tuple[parspike.SNN, Tensor]:
    _, x, plan = curves() if kind is Curves else planned(kind, batch=12)
    return parspike.convert(plan, x, recipe="max", **options), x


@pytest.mark.parametrize("options", [{"T": 5}, {"T": 3, "code": "weighted"}], ids=["sorted", "weighted"])
@pytest.mark.parametrize("kind", [Residual, PreActivation, Dense, Quantised, Curves])
def test_the_file_counts_as_the_network_does(kind: type[nn.Module], options: dict[str, Any], tmp_path: Path) -> None:
    snn, x = network(kind, **options)
    made = parspike.export(snn, tmp_path / "net.onnx", example=x)
    counts = sum(row.counts for row in made.file.layers)
    assert len(made.file.layers) == len(snn.neurons())
    assert made.file.unlike <= counts / 1000  # a current within rounding of a threshold
    # Another runtime, another batch, nothing but the file: the reference of the onnx package.
    other = reference.ReferenceEvaluator(str(tmp_path / "net.onnx"))
    y = other.run(None, {other.input_names[0]: x[:1].numpy()})[0]
    assert np.allclose(y, snn(x[:1]).numpy(), atol=0.05 * float(snn(x).abs().max()))


class Chosen(nn.Module):
    """One place of a sequence, as networks along time end."""

    def __init__(self, dim: int, place: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(6, 7, 3, padding=1), nn.Linear(7 if dim == 2 else 5, 3)
        self.dim, self.place = dim, place

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().select(self.dim, self.place))


class Written(nn.Module):
    """An image network, and a function of its features (B, 8, 6, 6), in which the operators of other networks stand."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.function = nn.Conv2d(3, 8, 3, padding=1), nn.LazyLinear(4), function
        self.query, self.table = nn.Parameter(torch.randn(1, 5, 8)), nn.Embedding(9, 6)
        self.norm = nn.GroupNorm(4, 8)
        self(torch.zeros(2, 3, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, self.conv(x).relu()).flatten(1))


def attended(s: Any, h: Tensor) -> Tensor:
    h = h.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(s.query.expand(len(h), -1, -1), h, h)


def masked(s: Any, h: Tensor) -> Tensor:
    n = h.shape[3]
    near = (torch.arange(n)[None] - torch.arange(n)[:, None]).abs()
    scores = (h @ h.transpose(2, 3) + s.table(near)[..., 0]).masked_fill(~torch.ones(n, n).bool().tril(), -torch.inf)
    return scores.softmax(-1) @ h


HALVES: dict[str, Callable[[Tensor, int], Any]] = {
    "chunk": lambda both, n: both.chunk(2),
    "split": lambda both, n: both.split(n),
    "split into sizes": lambda both, n: both.split([n, n]),
    "tensor_split": lambda both, n: both.tensor_split(2),
    "narrow": lambda both, n: (both.narrow(0, 0, n), both.narrow(0, n, n)),
    "narrow from the end": lambda both, n: (both.narrow(0, 0, n), both.narrow(0, -n, n)),
}


def halves(h: Tensor, cut: Callable[[Tensor, int], Any]) -> Tensor:
    """Two views of an image in one batch, as networks of pairs make it."""
    one, two = cut(torch.cat([h, h.flip(3)]), h.shape[0])
    return one - 2 * two


WRITTEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "split": lambda s, h: torch.cat([part * k for k, part in enumerate(h.split(3, 1))], 1),
    "sizes": lambda s, h: torch.cat(h.split([1, 2, 5], 1)[::-1], 1),
    "chunk": lambda s, h: h.chunk(3, 2)[1] * h.chunk(3, -2)[-1],
    "unbind": lambda s, h: torch.stack(h.unbind(2)[1:4], 2),
    "einsum": lambda s, h: torch.einsum("bchw, bdhw -> bcd", h, h),
    "bilinear": lambda s, h: F.interpolate(h, size=(9, 4), mode="bilinear"),
    "corners": lambda s, h: F.interpolate(h, size=(11, 6), mode="bilinear", align_corners=True),
    "bicubic": lambda s, h: F.interpolate(h, scale_factor=2, mode="bicubic"),
    "chosen": lambda s, h: torch.where(h.mean((2, 3), keepdim=True) > 0.3, h, -h),
    "length": lambda s, h: h / (h.norm(dim=1, keepdim=True) + 1),
    "repeat": lambda s, h: h.repeat(1, 2, 1, 3),
    "learnt, repeated": lambda s, h: torch.cat([s.query.repeat(h.shape[0], 1, 1), h.flatten(2)[:, :, :8]], 1),
    "attention": attended,
    "mask": masked,
    "rolled": lambda s, h: h.roll((1, -2), (2, 3)),
    "gated": lambda s, h: F.glu(h, 1),
    "norm": lambda s, h: s.norm(h) + F.instance_norm(h),
    "filled": lambda s, h: torch.cat([h, torch.full((h.shape[0], 1, 6, 6), 0.5)], 1),
    **{f"{name} along the batch": (lambda s, h, cut=cut: halves(h, cut)) for name, cut in HALVES.items()},
    "root": lambda s, h: h * ((h - h.mean(1, keepdim=True)).pow(2).mean(1, keepdim=True) + 0.1).rsqrt(),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_operators_of_other_networks_are_written(name: str, tmp_path: Path) -> None:
    """Catches a rule whose operator means something else in ONNX, and a batch that the file holds fixed."""
    model, x = Written(WRITTEN[name]).eval(), torch.rand(12, 3, 6, 6)
    snn = parspike.convert(model, x, T=6, recipe="closed-form")
    made = parspike.export(snn, tmp_path / "net.onnx", example=x)
    assert made.file.unlike <= sum(row.counts for row in made.file.layers) / 1000
    other = reference.ReferenceEvaluator(str(tmp_path / "net.onnx"))
    for batch in (1, 3):
        y = other.run(None, {other.input_names[0]: x[:batch].numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(y), snn(x[:batch]), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("dim", "place"), [(2, -1), (2, 0), (1, 3), (1, -2)])
def test_one_place_is_chosen_without_its_dimension(dim: int, place: int, tmp_path: Path) -> None:
    """A place that is written as a vector keeps the dimension: runtimes refuse the file, or give (B, 1, 3)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Chosen(dim, place).eval(), torch.randn(12, 6, 5)
    snn = parspike.convert(model, x, T=3, recipe="max")
    for weights in (None, 8):
        made = parspike.export(snn, tmp_path / "net.onnx", example=x, weights=weights, force=True)
        assert made.file.unlike == 0
        other = reference.ReferenceEvaluator(str(tmp_path / "net.onnx"))
        assert other.run(None, {other.input_names[0]: x.numpy()})[0].shape == (12, 3)


PLACES = torch.tensor([2, 0, 1, 1])
MOVES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "chunk": (lambda a, b: torch.cat([b.chunk(2, 1)[1], a.chunk(2, 1)[0]], 1), 4),
    "unbind": (lambda a, b: torch.stack([*a.unbind(1)[:3], b.unbind(1)[0]], 1), 4),
    "narrow": (lambda a, b: torch.cat([a.narrow(1, 1, 2), b.split([1, 3], 1)[1]], 1), 5),
    "roll": (lambda a, b: a.roll((1, -2), (2, 3)) + a.flip(3), 4),
    "index": (lambda a, b: a[:, PLACES], 4),
    "shuffle": (lambda a, b: torch.channel_shuffle(torch.cat([a, b], 1), 2), 8),
    "pixel_shuffle": (lambda a, b: torch.pixel_shuffle(a, 2), 1),
    "nearest": (lambda a, b: torch.nn.functional.interpolate(a, scale_factor=2), 4),
    "pixel_unshuffle": (lambda a, b: torch.pixel_unshuffle(a, 2), 16),
}  # fmt: skip


class Moves(nn.Module):
    """Two layers of neurons whose values are moved, and a third that reads them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.move, channels = MOVES[name]
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.head = nn.Conv2d(channels, 4, 3, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        return self.head(self.c(self.move(a, self.b(a).relu())).relu().amax((2, 3)))


@pytest.mark.parametrize("name", MOVES)
def test_values_are_moved_in_both_files(name: str, tmp_path: Path) -> None:
    """Would catch a layout that goes another way in the file, and channels of unlike grids that are mixed up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Moves(name).eval(), torch.randn(12, 3, 8, 8)
    snn = parspike.convert(model, x, T=15, recipe="max")
    made = parspike.export(snn, tmp_path / "net.onnx", example=x)
    assert made.file.unlike <= sum(row.counts for row in made.file.layers) / 1000
    with torch.no_grad():
        lowered = integers(snn, x)
        assert float((lowered(x) - snn(x)).norm() / snn(x).norm()) < 0.15
    whole = parspike.export(snn, tmp_path / "whole.onnx", example=x, weights=8)
    assert whole.file.equal


@pytest.mark.parametrize("options", [{"T": 5}, {"T": 3, "code": "weighted"}], ids=["sorted", "weighted"])
@pytest.mark.parametrize("kind", [Residual, Dense, Quantised])
def test_whole_numbers_are_equal_to_the_bit(kind: type[nn.Module], options: dict[str, Any], tmp_path: Path) -> None:
    snn, x = network(kind, **options)
    made = parspike.export(snn, tmp_path / "net.onnx", example=x, weights=8)
    assert made.file.unlike == 0
    assert made.file.error == 0
    lowered = integers(snn, x, weights=8)
    other = reference.ReferenceEvaluator(str(tmp_path / "net.onnx"))
    y = other.run(None, {other.input_names[0]: x.numpy()})[0]
    assert np.array_equal(y, lowered(x).numpy())
    model = onnx.load(tmp_path / "net.onnx")
    weights = [t for t in model.graph.initializer if len(t.dims) == 4]
    assert weights
    assert all(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights if tensor.dims[0] > 1)
    assert "to the bit" in str(made)


@pytest.mark.parametrize(
    "last", [lambda x: x.softmax(1), lambda x: (x.sigmoid(), x), lambda x: F.normalize(x).argmax(1)]
)
def test_what_is_computed_of_the_answer_in_real_numbers_may_round(last: Any, tmp_path: Path) -> None:
    """Would catch a network of whole numbers that ends in a softmax, refused for the last bit of it, and other numbers
    in front of it."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Any:
            return last(self.b(self.a(x).relu()))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Ends().eval(), torch.randn(40, 6)
    made = parspike.export(parspike.convert(model, x, T=7, recipe="max"), tmp_path / "net.onnx", example=x, weights=8)
    assert made.file.unlike == 0
    assert (made.file.error or 0) < 1e-6
    assert ("computed of the answer in real numbers" in str(made)) == (not made.file.equal)


def test_counts_of_both_signs_are_read_behind_a_reshape(tmp_path: Path) -> None:
    """Would catch a zero point of int8 that onnxruntime moves behind the reshape as one of uint8, and refuses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 3)).eval()
        x = torch.randn(40, 3, 6, 6)
    snn = parspike.convert(model, x, T=7, recipe="max", encode="all")
    assert parspike.export(snn, tmp_path / "net.onnx", example=x, weights=8).file.equal
    with torch.no_grad():
        torch.testing.assert_close(parspike.from_onnx(tmp_path / "net.onnx")(x), integers(snn, x)(x))


class OnViews(nn.Module):
    """Activations in place on parts of a value: each is written back along every dimension, the batch too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(-1, 4, 4)
        torch.relu_(y[:, ::2])
        y[:, 3].clamp_(0, 1)
        return self.b(y.flatten(1))


def test_what_is_written_into_views_is_in_the_file(tmp_path: Path) -> None:
    """Would catch a refusal of what writes the whole batch, or a file that writes elsewhere (`export` compares)."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    snn = parspike.convert(OnViews().eval(), x, T=3, recipe="max")
    assert parspike.export(snn, tmp_path / "net.onnx", example=x).file.unlike == 0


def test_what_it_cannot_hold_is_said_at_once(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            pair = torch.cat([y, y])[x.shape[0]]
            return self.b(torch.special.i0(y) + torch.lgamma(y + 1) + pair - pair + y.roll(x.shape[0], 1))

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    snn = parspike.convert(Odd().eval(), x, T=3, recipe="max")
    with pytest.raises(UnsupportedError, match=r"(?s)i0.*lgamma.*roll.*takes a number from"):
        parspike.export(snn, tmp_path / "net.onnx", example=x)
    assert not list(tmp_path.iterdir())
    small, x = network(Quantised, T=3, neuron=IF())
    with pytest.raises(OptionError, match="step by step"):
        parspike.export(small, tmp_path / "net.onnx", example=x)
    snn, x = network(PreActivation, T=4)
    with pytest.raises(OptionError, match="range of the inputs"):
        parspike.export(snn, tmp_path / "net.onnx", weights=8)
    with pytest.raises(OptionError, match="ONNX files"):
        parspike.export(snn, tmp_path / "net.nir", example=x, weights=8)
    small, x = network(Quantised, T=3)
    chip = integers(small, x)
    with pytest.raises(OptionError, match="whole numbers already: leave weights=8 out"):
        parspike.export(chip, tmp_path / "net.onnx", example=x, weights=8)
    with pytest.raises(OptionError, match="in whole numbers already"):
        integers(chip, x)
    with pytest.raises(UnsupportedError, match=r"takes bfloat16.*snn\.float\(\)"):
        parspike.export(small.bfloat16(), tmp_path / "net.onnx", example=x.bfloat16())
    parspike.export(small.float(), tmp_path / "wide.onnx", example=x)
    (tmp_path / "net.onnx").write_text("mine")
    with pytest.raises(FileError, match="exists"):
        parspike.export(snn, tmp_path / "net.onnx", example=x)
    assert (tmp_path / "net.onnx").read_text() == "mine"


def test_without_onnxruntime_the_reference_runs_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a file that is taken unseen where onnxruntime is not installed, and an extra that is not named."""
    snn, x = network(Quantised, T=3)
    wanted = parspike.export(snn, tmp_path / "a.onnx", example={"x" if i else "input": x for i in range(2)})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    made = parspike.export(snn, tmp_path / "b.onnx", example=x)
    assert [row.counts for row in made.file.layers] == [row.counts for row in wanted.file.layers]
    assert made.file.unlike <= sum(row.counts for row in made.file.layers) / 1000
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"'onnx' is not installed: run  pip install 'parspike\[export\]'"):
        parspike.export(snn, tmp_path / "c.onnx", example=x)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_examples_and_options_that_a_file_cannot_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, x = network(Quantised, T=3)
    path = tmp_path / "net.onnx"
    for option in ("as_if", "as_convolutions"):
        with pytest.raises(OptionError, match=rf"{option}=True is of NIR files: name one, net\.nir, or leave it out"):
            parspike.export(snn, path, example=x, **{option: True})
    with pytest.raises(InputError, match=r"example has 2 inputs, this network takes"):
        parspike.export(snn, path, example=(x, x))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, text = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), tokens()
    speaks = parspike.convert(model, text, T=3, recipe="max")
    with pytest.raises(InputError, match=r"is torch\.int32, for which noise has no meaning: give example="):
        parspike.export(speaks, path)
    assert parspike.export(speaks, path, example=text).file.unlike == 0  # whole numbers of 32 bits are cast in the file
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(int32)"

    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator\nat all")

    monkeypatch.setattr(ort, "InferenceSession", refuses)
    with pytest.raises(UnsupportedError, match=r"onnxruntime refuses the file \(no such operator\): please report it"):
        parspike.export(snn, tmp_path / "other.onnx", example=x)


def tokens() -> Tensor:
    return torch.randint(0, 20, (12, 5), generator=torch.Generator().manual_seed(0)).int()


def test_circular_padding_stands_in_the_file(tmp_path: Path) -> None:
    """Would catch a border that is taken from the wrong side."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(2, 4, 3, padding=(2, 1), padding_mode="circular")
        model, x = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 3, 1)).eval(), torch.randn(8, 2, 5, 6)
    snn = parspike.convert(model, x, T=6, recipe="max")
    made = parspike.export(snn, tmp_path / "net.onnx", example=x)
    assert made.file.unlike <= 2
    assert made.file.error < 1e-3


def test_on_the_command_line(tmp_path: Path) -> None:
    snn, x = network(Quantised, T=4)
    snn.save(tmp_path / "net.parspike")
    np.savez(tmp_path / "data.npz", images=(x.movedim(1, -1) * 30 + 128).clamp(0, 255).byte().numpy())
    file, data, out = (str(tmp_path / name) for name in ("net.parspike", "data.npz", "net.onnx"))
    done = CliRunner().invoke(
        app, ["export", file, out, "--data", data, "--weights", "6", "--mean", "0.5", "--std", "0.2"]
    )
    assert done.exit_code == 0, done.output
    assert "to the bit" in done.stdout


@pytest.mark.parametrize(("error", "shown"), [(0.0, "0 %"), (8.9e-8, "8.9e-06 %"), (0.0312, "3.1 %"), (1.1, "110 %")])
def test_an_error_is_shown_in_two_digits_and_without_a_power_of_ten_above_a_hundred(error: float, shown: str) -> None:
    assert Compared(16, (), error, None).text == f"outputs differ by {shown}"


@pytest.mark.slow
def test_a_package_of_compiled_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[Any] = []
    monkeypatch.setattr("torch.export.pt2_archive._package.logger.warning", lambda *said: warned.append(said))
    snn, x = network(Residual, T=5)
    made = parspike.export(snn, tmp_path / "net.pt2", example=x)
    assert warned == []  # torch warns of a package whose name has not its ending yet
    assert made.file.error < 1e-3
    run = torch._inductor.aoti_load_package(str(tmp_path / "net.pt2"))
    for batch in (1, 5, 12):
        assert torch.allclose(run(x[:batch]), snn(x[:batch]), atol=1e-4)
