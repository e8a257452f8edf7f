"""Engine "integer": the bits of `count`, on bytes and integer kernels."""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from networks import SHAPES, Dense, PreActivation, Quantised, Residual, planned
from torch import Tensor, nn

import parspike
from parspike import SNN
from parspike.engines import filtered, int8
from parspike.engines.integer import Integer
from parspike.engines.whole_steps import Chain
from parspike.errors import OptionError
from parspike.export.onnx import session, write
from parspike.graph import Node, Role
from parspike.graph.encode import Encode
from parspike.graph.signature import Conv, Linear
from parspike.lower import integers
from parspike.neurons import WholeNeuron

MODULE = sys.modules["parspike.engines.integer"]


class Wide(nn.Module):
    """Odd sizes, groups, depthwise and strided convolutions, an average pool, a linear layer on maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3, stride=2, padding=1), nn.Conv2d(10, 15, 3, groups=5, padding=1)
        self.c, self.d = nn.Conv2d(15, 15, 3, padding=2, dilation=2, groups=15), nn.Conv2d(15, 7, 1)
        self.head = nn.Linear(7 * 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu()).relu()
        y = (self.c(y) + y).relu()
        y = nn.functional.avg_pool2d(self.d(y).relu(), 2)
        return self.head(y.flatten(1))


class Signal(nn.Module):
    """One spatial dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(5, 9, 3, padding=1), nn.Conv1d(9, 6, 5), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu().mean(2))


class Padded(nn.Module):
    """Zeros around maps, moved counts, and a bias far beyond what is exact in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, groups=8)
        self.c, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6 * 5, 5)
        self.head.bias.data[0] = 12345.678

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(nn.functional.pad(x, (0, 1, 0, 1))).relu()
        y = self.b(nn.functional.pad(y, (1, 1, 2, 0))).relu()
        y = nn.functional.pixel_shuffle(y.flip(2).roll(1, 3), 2).narrow(3, 1, 9)
        y = self.c(nn.functional.pad(y, (1, 1))).relu()
        return self.head(y[:, :, ::2, ::2].flatten(1)[:, :30])


class Sided(nn.Module):
    """Zeros on unlike sides: by one, as TensorFlow's are, by the gaps of a kernel, and by more."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.even = nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, (4, 3), padding="same")
        self.gaps, self.odd = (
            nn.Conv2d(8, 8, (2, 3), dilation=3, padding="same"),
            nn.Conv2d(8, 8, 3, stride=2, groups=8),
        )
        self.deep, self.far = nn.Conv2d(8, 16, 3, padding=1, dilation=2, groups=2), nn.Conv2d(16, 8, (1, 3))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.even(self.same(x).relu()).relu()
        y = self.odd(nn.functional.pad(self.gaps(y).relu(), (0, 1, 1, 0))).relu()
        y = self.deep(nn.functional.pad(y, (2, 0, 0, 2))).relu()
        return self.head(self.far(nn.functional.pad(y, (2, 0, 1, 0))).relu().mean((2, 3)))


class Bottlenecks(nn.Module):
    """Sums that no neuron cuts are read by 1×1 convolutions and a linear layer; pads of like and of unlike sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 6, 1)
        self.wide = nn.ModuleList(nn.Conv2d(6, 24, 1) for _ in range(3))
        self.deep = nn.ModuleList(nn.Conv2d(24, 24, 3, groups=24) for _ in range(3))
        self.back = nn.ModuleList(nn.Conv2d(24, 6, 1) for _ in range(3))
        self.into, self.out = nn.Linear(6, 33), nn.Linear(33, 5)
        for wide in self.wide:
            nn.init.uniform_(cast(Tensor, wide.bias), -3.0, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(nn.functional.relu6(self.stem(nn.functional.pad(x, (0, 1, 0, 1)))))
        for wide, deep, back in zip(self.wide, self.deep, self.back, strict=True):
            z = deep(nn.functional.pad(nn.functional.relu6(wide(y)), (1, 1, 1, 1)))
            y = y + back(nn.functional.relu6(z))
        return self.out(self.into(y.movedim(1, -1)).relu().mean((1, 2)))


SIZES: dict[type[nn.Module], tuple[int, ...]] = {
    Wide: (3, 13, 17), Signal: (5, 21), Padded: (3, 12, 14), Sided: (3, 15, 12), Bottlenecks: (3, 12, 14),
}  # fmt: skip


def network(kind: type[nn.Module], **options: Any) -> tuple[SNN, Tensor]:
    return copy.deepcopy(_network(kind, **options))


@functools.cache
def _planned(kind: type[nn.Module], encode: Encode = "none") -> tuple[nn.Module, Tensor, parspike.Plan]:
    if kind not in SIZES and encode == "none":
        return planned(kind, batch=9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = kind().eval(), torch.randn(9, *{**SHAPES, **SIZES}[kind])
    return model, x, parspike.plan(model, x, encode=encode)


@functools.cache
def _network(
    kind: type[nn.Module], weights: int = 8, inputs: int = 8, encode: Encode = "none", **options: Any
) -> tuple[SNN, Tensor]:
    _, x, plan = _planned(kind, encode)
    snn = parspike.convert(plan, x, recipe="max", **options)
    return integers(snn, x, weights=weights, inputs=inputs), x


def unlike(snn: SNN, x: Tensor) -> list[str]:
    """Where the two engines differ."""
    one, two = (snn.run(x, engine=engine, record=True) for engine in ("count", "integer"))
    found = [layer for layer, count in one.counts.items() if not torch.equal(count, two.counts[layer])]
    return found + ([] if torch.equal(one.logits, two.logits) else ["logits"])


CASES: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (Residual, {"T": 40, "weights": 4}),
    (Residual, {"T": 300, "weights": 6}),  # counts beyond bytes
    (PreActivation, {"T": 5}),  # streams of sums in float64
    (Dense, {"T": 3, "code": "weighted", "weights": 2}),  # many sums on a threshold
    (Quantised, {"T": 4, "inputs": 12}),
    (Wide, {"T": 5}),
    (Wide, {"T": 4, "weights": 10}),
    (Signal, {"T": 200}),
    (Padded, {"T": 6}),
    (Padded, {"T": 300}),  # pads and moves of 16 bits
    (Sided, {"T": 6}),
    (Sided, {"T": 300}),
    (Sided, {"T": 7, "code": "weighted", "encode": "all"}),
    (Bottlenecks, {"T": 32}),
    (Bottlenecks, {"T": 300}),
    (Bottlenecks, {"T": 32, "encode": "hidden"}),  # pairs, in bytes with a sign
    (Bottlenecks, {"T": 127, "encode": "all"}),
    (Bottlenecks, {"T": 128, "encode": "hidden"}),  # in 16 bits
    (Padded, {"T": 7, "code": "weighted", "encode": "all"}),
    (Residual, {"T": 8, "code": "weighted", "encode": "all"}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_it_has_the_bits_of_count(kind: type[nn.Module], options: dict[str, Any]) -> None:
    snn, x = network(kind, **options)
    assert unlike(snn, x) == []
    assert unlike(snn, 3 * x) == []  # beyond the range of the inputs, at the largest counts


@pytest.mark.parametrize("kind", [Residual, Wide, Padded, Bottlenecks])
def test_most_of_the_work_is_done_by_integer_kernels(kind: type[nn.Module]) -> None:
    snn, x = network(kind, T=5)
    snn.run(x, engine="integer")
    how = Integer.of(snn)
    made = [getattr(step, "step", step) for step in how.steps.values()]
    filters = [step for step in made if isinstance(step, filtered.Pointwise)]
    assert how.synapses[0] + len(filters) == how.synapses[1] >= 3
    assert len(filters) == (4 if kind is Bottlenecks else 0)
    paired, y = network(kind, T=5, encode="all")  # then every synapse reads counts, some below 0
    assert unlike(paired, y) == []
    assert Integer.of(paired).synapses[0] == Integer.of(paired).synapses[1]
    chains = [step for step in made if isinstance(step, (Chain, filtered.Settled, filtered.Pointwise))]
    assert len(chains) == len(snn.neurons())


def test_zeros_of_unlike_sides_need_no_map_of_their_own() -> None:
    snn, _ = network(Sided, T=6)
    how = Integer.of(snn)
    assert how.synapses == (6, 7)  # zeros before and after a kernel with gaps differ by one
    pads = [node.layer for node, _ in how.schedule.steps if node.target == "aten.pad.default"]
    assert pads == ["pad@3"]  # two zeros on one side


def on_thresholds(found: Conv | Linear, weight: Tensor, x: Tensor, seed: int) -> tuple[filtered.Behind, Tensor]:
    """Neurons whose sums lie on a threshold, or one below it, for one of their inputs each; their counts."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(found, Linear):
        sums = x.double() @ weight.double().T
    else:
        how: Any = found.stride, found.padding, found.dilation, found.groups
        sums = nn.functional.conv2d(x.double(), weight.double(), None, *how).movedim(1, -1)
    flat, outputs = sums.reshape(-1, len(weight)), len(weight)
    chosen = flat[torch.randint(0, len(flat), (outputs,), generator=generator), torch.arange(outputs)]
    factor = torch.randint(1, 9, (outputs,), generator=generator).double()
    step = ((flat.amax(0) - flat.amin(0)) * factor / 20 + 3).floor()
    constant = torch.randint(0, 12, (outputs,), generator=generator) * step - chosen * factor
    constant -= torch.arange(outputs) % 2
    reach = float(x.abs().max()) * weight.double().flatten(1).abs().sum(1)
    behind = filtered.Behind(found, weight.double(), factor, constant, step, 30, -reach, reach)
    return behind, ((sums * factor + constant) / step).floor().add(1).clamp(0, 30)


@pytest.mark.parametrize(("least", "most"), [(-60, 60), (-1, 200_000), (-(1 << 25), 1 << 25), (-(1 << 36), 1 << 35)])
@pytest.mark.parametrize("bits", [7, 8])
def test_sums_on_a_threshold_are_counted_exactly(
    bits: int, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an error bound that is too small, parts of a number that are lost, blocks put together wrongly."""
    if bits == 8 and not int8.exact(pairs=True):
        pytest.skip("two products of 8 bits saturate on this processor")
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randint(-127, 128, (52, 19), generator=generator)
    x = torch.randint(least, most + 1, (400, 19), generator=generator).double()
    behind, counts = on_thresholds(Linear(None, None, None), weight, x, seed=most)
    one = filtered.Pointwise(behind, 1, bits, most)
    assert torch.equal(one((x,)).double(), counts)
    assert torch.equal(one((x[:0],)).double(), counts[:0])
    monkeypatch.setattr(filtered, "BLOCK", 52 * 7)
    assert torch.equal(one((x,)).double(), counts)
    maps = x.T.reshape(1, 19, 20, 20).contiguous(memory_format=torch.channels_last)
    of_maps = filtered.Pointwise(replace(behind, weight=behind.weight[:, :, None, None]), 1, bits, most)((maps,))
    assert torch.equal(of_maps.double(), counts.T.reshape(1, 52, 20, 20))
    if most > 100:  # without the bound some of them are wrong
        monkeypatch.setattr(filtered, "ULP", 0.0)
        assert not torch.equal(filtered.Pointwise(behind, 1, bits, most)((x,)).double(), counts)


def test_thresholds_at_the_end_of_what_a_sum_may_be_are_counted_exactly() -> None:
    """Would catch neurons that are held to be constant while one sum that arises, and no other, makes them fire."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randint(-127, 128, (300, 8), generator=generator).double()
    x = torch.cat([torch.zeros(1, 8).double(), 60_000 * weight.sign(), -60_000 * weight.sign()])
    reach = 60_000 * weight.abs().sum(1)
    step = (3 * reach).floor()
    for end in (reach, -reach):
        constant = 5 * step - end - torch.arange(300) % 2
        behind = filtered.Behind(
            Linear(None, None, None), weight, torch.ones(300).double(), constant, step, 30, -reach, reach
        )
        counts = ((x @ weight.T + constant) / step).floor().add(1).clamp(0, 30)
        assert counts.unique().tolist() == [5.0, 6.0]
        assert torch.equal(filtered.Pointwise(behind, 1, 7, 60_000)((x,)).double(), counts)


@pytest.mark.parametrize(
    "found",
    [
        Conv(None, None, None, (2, 1), (1, 2), (1, 2), 1), Conv(None, None, None, (1, 2), (2, 0), (2, 1), 12),
        Conv(None, None, None, (1, 1), (1, 1), (1, 1), 3),
    ],
    ids=["plain", "depthwise", "groups"],
)  # fmt: skip
def test_convolutions_count_sums_on_a_threshold_exactly(found: Conv, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a count that is computed anew from other places of the map, or from another channel's weights."""
    generator = torch.Generator().manual_seed(found.groups)
    x = torch.randint(0, 129, (2, 12, 9, 11), generator=generator).to(torch.uint8)
    weight = torch.randint(-127, 128, (12, 12 // found.groups, 3, 2), generator=generator)
    behind, counts = on_thresholds(found, weight, x, seed=1)
    synapse = int8.Synapse(
        Node("conv", "", (), {}, Role.SYNAPSE, "", "", ()), found, weight.double(), torch.zeros(12), torch.zeros(12),
        ((int8.as_bytes, 1),),
    )  # fmt: skip
    again = filtered.Behind.settled
    anew = []

    def settled(self: filtered.Behind, low: Tensor, high: Tensor, *rest: Any) -> Tensor:
        anew.append(int((low != high).sum()))
        return again(self, low, high, *rest)

    monkeypatch.setattr(filtered.Behind, "settled", settled)
    for ulp in (filtered.ULP, 2.0**-13):  # with the second bound many are computed anew
        monkeypatch.setattr(filtered, "ULP", ulp)
        step = filtered.Settled(behind, int8.as_bytes, functools.partial(synapse.counting, 30))
        assert torch.equal(step((x,)).movedim(1, -1).double(), counts)
    assert max(anew) > 50


def test_batches_of_one_and_inputs_of_any_layout() -> None:
    snn, x = network(Wide, T=5)
    wanted = snn(x)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    gaps = torch.zeros(18, *x.shape[1:])[::2].copy_(x)
    for given in (turned, gaps, x.contiguous(memory_format=torch.channels_last), x.flip(0).flip(0)):
        assert torch.equal(snn.run(given, engine="integer").logits, wanted)
    alone = torch.cat([snn.run(one, engine="integer").logits for one in x.split(1)])
    assert torch.equal(alone, wanted)


class Products(nn.Module):
    """Weights that are held (in, out), or along their columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 20), nn.Linear(20, 8)
        self.b.weight = nn.Parameter(self.b.weight.detach().T.contiguous().T)
        self.w, self.v, self.u = (nn.Parameter(torch.randn(n, m) / 3) for n, m in ((8, 7), (7, 6), (6, 3)))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.mm(self.b(self.a(x).relu()).relu(), self.w).relu()
        return torch.addmm(self.u[0], (y @ self.v).relu(), self.u)


@pytest.mark.parametrize("refit", [True, False])
def test_weights_that_lie_otherwise_in_memory(refit: bool) -> None:
    """Would catch a kernel that is given weights along their columns, which it takes for rows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Products().eval(), torch.rand(64, 10)
    snn = parspike.convert(model, x, T=7, recipe="closed-form")
    chip = integers(snn, x, refit=refit)
    assert {t.is_contiguous() for t in chip.tensors().values()} == {True, False}
    assert unlike(chip, x) == []
    assert Integer.of(chip).synapses == (5, 5)
    assert float((chip(x) - snn(x)).norm()) < 0.1 * float(snn(x).norm())


class Averaged(nn.Module):
    """Real numbers that are added up behind the last layer, in an order that follows from how they lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()).clamp(0.1, 0.9).mean((1, 2, 3))


def test_what_is_added_up_of_the_answer_has_the_same_bits() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Averaged().eval(), torch.rand(40, 3, 12, 12)
    chip = integers(parspike.convert(model, x, T=7, recipe="closed-form"), x)
    assert chip.provenance["real"] == ["clamp", "mean"]
    assert torch.equal(chip.run(x, engine="count").logits, chip(x))


class Trend(nn.Module):
    """A moving average and what is left of it, each through a linear layer, as in DLinear: no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.average, self.left, self.trend = nn.AvgPool1d(5, 1, 2), nn.Linear(24, 6), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.average(x)
        return self.left(x - mean) + self.trend(mean)


@pytest.mark.filterwarnings("ignore:the network has no activation")
def test_sums_beyond_float32_where_no_layer_is_neurons() -> None:
    """Would catch numbers in float32 beside float64, which was read from the neurons."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Trend().eval(), torch.randn(16, 3, 24)
    chip = integers(parspike.convert(model, x, T=4), x)
    assert any(tensor.dtype == torch.float64 for tensor in chip.state_dict().values())
    assert torch.equal(chip.run(x, engine="count").logits, chip(x))


@pytest.mark.parametrize("T", [256, 1000])
def test_counts_beyond_a_byte_stay_in_integer_kernels(T: int) -> None:
    """Would catch a part of a count that is lost, or added with another factor."""
    snn, x = network(Wide, T=T)
    assert unlike(snn, 2 * x) == []
    assert unlike(snn, x[:1].contiguous(memory_format=torch.channels_last)) == []
    how = Integer.of(snn)
    assert how.synapses[0] >= how.synapses[1] - 1  # the first one's sums are small, the average's may be too large
    counts = snn.run(3 * x, engine="integer", record=True).counts
    assert max(int(count.max()) for count in counts.values()) == T


def test_autocast_rounds_no_whole_number() -> None:
    """Would catch sums in bfloat16, which holds whole numbers to 256."""
    for options in ({"T": 5}, {"T": 4, "weights": 10}):
        snn, x = network(Wide, **options)
        wanted = snn.run(x, engine="count").logits
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(snn(x), wanted)
            assert unlike(snn, x) == []
        assert torch.equal(snn.run(x, engine="integer").logits, wanted)


def test_threads_do_not_matter() -> None:
    snn, x = network(Wide, T=5)
    before = torch.get_num_threads()
    try:
        answers = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            answers.append(snn.run(x, engine="integer").logits)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_the_order_of_channels_does_not_matter() -> None:
    snn, x = network(Signal, T=200)
    wanted = snn.run(x, engine="integer").logits
    weights = {path: t for path, t in snn.tensors().items() if path.startswith("whole.conv")}
    one, two = sorted(path for path in weights if path.endswith("weight"))
    bias = one.replace("weight", "bias")
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    first = next(iter(snn.neurons().values()))
    assert isinstance(first, WholeNeuron)
    with torch.no_grad():
        weights[one].copy_(weights[one][order])
        weights[bias].copy_(weights[bias][order])
        weights[two].copy_(weights[two][:, order])
        first.first.copy_(first.first.expand(9, 1)[order] if first.first.numel() == 9 else first.first)
        first.step.copy_(first.step.expand(9, 1)[order] if first.step.numel() == 9 else first.step)
    assert torch.equal(snn.run(x, engine="integer").logits, wanted)


@pytest.mark.parametrize("able", [lambda pairs=False: not pairs, lambda pairs=False: False], ids=["no-pairs", "none"])
def test_processors_without_the_kernels_get_the_same_bits(
    able: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (MODULE, int8):
        monkeypatch.setattr(room, "exact", able)
    snn, x = network(Wide, T=200)
    assert unlike(snn, 3 * x) == []
    maker = MODULE._Maker(snn)
    maker.made()
    parts = [len(synapse.parts) for synapse in maker.synapses.values()]
    # The average's weights are 1: no two products saturate. What it makes goes beyond a byte.
    assert parts == ([2, 2, 2, 2, 1, 2] if able() else [])
    assert unlike(*network(Bottlenecks, T=32)) == []


def test_onnxruntime_has_the_same_bits() -> None:
    pytest.importorskip("onnxruntime")
    snn, x = network(Wide, T=5)
    run = session(write(snn).model)
    (answer,) = run([], {snn.graph.inputs[0].name: x.numpy()})
    assert np.array_equal(answer, snn.run(x, engine="integer").logits.numpy())


def test_weights_and_thresholds_that_change_are_seen(tmp_path: Path) -> None:
    snn, x = network(Quantised, T=4, inputs=12)
    before = snn.run(x, engine="integer").logits
    with torch.no_grad():
        next(t for path, t in snn.tensors().items() if path.endswith("weight")).neg_()
    assert not torch.equal(snn.run(x, engine="integer").logits, before)
    assert unlike(snn, x) == []
    neuron = next(iter(snn.neurons().values()))
    assert isinstance(neuron, WholeNeuron)
    neuron.first.data = neuron.first.data + 500
    assert unlike(snn, x) == []
    loaded = parspike.load(snn.save(tmp_path / "net.parspike"))
    assert torch.equal(loaded.run(x, engine="count").logits, snn(x))


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "fractions": lambda t: t.add_(0.3),
    "one fraction": lambda t: t.view(-1)[:1].add_(0.5),
    "below one": lambda t: t.mul_(0.01),
    "0": torch.Tensor.zero_,
    "of the other sign": torch.Tensor.neg_,
    "much larger": lambda t: t.mul_(1000),
    "NaN": lambda t: t.view(-1)[:1].fill_(torch.nan),
    "infinite": lambda t: t.view(-1)[:1].fill_(torch.inf),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_is_put_into_a_tensor_counts_are_those_of_count(name: str) -> None:
    """Would catch weights, thresholds and ends of the input that integer kernels take for whole ones, and a step of 0;
    sums of fractions that are added up in another order."""
    for kind, options in ((Residual, {"T": 5}), (Wide, {"T": 300}), (Bottlenecks, {"T": 6, "encode": "all"})):
        snn, x = network(kind, **options)
        kinds: dict[str, list[str]] = {}
        for path, _ in snn.named_parameters():
            kinds.setdefault(path.rpartition(".")[2].rstrip("_0123456789"), []).append(path)
        for paths in kinds.values():
            path = paths[len(paths) // 2]  # one of each kind, to save time
            tensor = snn.get_parameter(path)
            before = tensor.detach().clone()
            with torch.no_grad():
                CHANGES[name](tensor)
            one, two = (snn.run(x, engine=engine, record=True) for engine in ("count", "integer"))
            unlike = [layer for layer, count in one.counts.items() if not same(count, two.counts[layer])]
            assert unlike == [], path
            assert same(one.logits, two.logits), path
            with torch.no_grad():
                tensor.copy_(before)
        assert snn.run(x).engine == "integer"


def same(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one.nan_to_num(7e7), two.nan_to_num(7e7))


def test_sums_that_no_longer_fit_round_as_in_count() -> None:
    snn, x = network(Residual, T=5)
    with torch.no_grad():
        next(t for path, t in snn.tensors().items() if path.endswith("real.grid")).fill_(1e12)
    assert snn.run(x).engine == "integer"  # the answer is no sum
    bias = next(t for path, t in snn.tensors().items() if path.endswith("bias"))
    with torch.no_grad():
        bias.fill_(int8.EXACT[bias.dtype])
    assert snn.run(x).engine == "count"


def test_types_that_do_not_hold_whole_numbers_are_refused() -> None:
    """Would catch casts inside a network to float64 whose weights became float32, an error of torch; and numbers beyond
    2^24 in float32."""
    for options in ({"T": 5}, {"T": 300}):
        snn, x = network(Wide, **options)
        wanted = snn(x)
        types = {path: t.dtype for path, t in snn.state_dict().items()}
        assert torch.equal(copy.deepcopy(snn).float()(x), wanted)
        assert {path: t.dtype for path, t in copy.deepcopy(snn).float().state_dict().items()} == types
        wide = copy.deepcopy(snn).double()
        assert torch.allclose(wide(x.double()).float(), wanted)
        for dtype in (torch.float16, torch.bfloat16):
            with pytest.raises(OptionError, match="does not hold the numbers"):
                snn.to(dtype)
        if torch.float64 in types.values():
            with pytest.raises(OptionError, match="does not hold the numbers"):
                wide.float()
        else:
            assert torch.equal(wide.float()(x), wanted)
        assert torch.equal(snn(x), wanted)


def test_a_call_takes_integer_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, x = network(Wide, T=5)
    assert snn.engine == snn.run(x).engine == "integer"
    run, called = int8.Synapse._run, []

    def watched(synapse: int8.Synapse, *given: Any) -> Tensor:
        called.append(synapse)
        return run(synapse, *given)

    monkeypatch.setattr(int8.Synapse, "_run", watched)
    answer = snn(x)
    assert called
    wanted = snn.run(x, engine="count").logits
    assert torch.equal(answer, wanted)
    # Nothing could follow integer kernels: gradients, tracing, compiling.
    assert snn(x.clone().requires_grad_()).requires_grad
    assert not snn.run(x.clone().requires_grad_()).logits.requires_grad
    assert torch.equal(torch.export.export(snn, (x,)).module()(x), wanted)
    called.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on numbers that are fixed
        assert torch.equal(torch.jit.trace(snn, x, check_trace=False)(x), wanted)
    assert torch.equal(torch.compile(snn, backend="eager", fullgraph=True)(x), wanted)
    assert not called


def test_weights_that_an_optimizer_changed_without_a_trace_are_seen() -> None:
    """Would catch kernels of the weights before, for fused optimizers change no version of a tensor."""
    snn, x = network(Wide, T=5)
    before = snn(x)
    last = next(t for path, t in snn.tensors().items() if path.endswith("bias")).requires_grad_()
    snn(x).sum().backward()
    last.grad = torch.full_like(last, 5000.0)
    version = last._version
    torch.optim.SGD([last], lr=1.0, fused=True).step()
    assert last._version == version
    wanted = snn.run(x, engine="count").logits
    assert not torch.equal(before, wanted)
    with torch.no_grad():
        assert torch.equal(snn(x), wanted)
    last.requires_grad_(False)
    assert snn.engine == "integer"
    assert torch.equal(snn(x), wanted)


def test_changes_in_inference_mode_are_seen(tmp_path: Path) -> None:
    """Would catch kernels of the weights before: tensors that are made there count no versions."""
    snn, x = network(Residual, T=5)
    snn.save(tmp_path / "net.parspike")
    with torch.inference_mode():
        loaded = parspike.load(tmp_path / "net.parspike")
        before = loaded(x)
        next(t for path, t in loaded.tensors().items() if path.endswith("weight")).neg_()
        assert not torch.equal(loaded(x), before)
        assert unlike(loaded, x) == []


def test_the_last_weights_have_gradients() -> None:
    snn, x = network(Wide, T=5)
    [*snn.synapses.parameters()][-1].requires_grad_()
    assert snn(x).requires_grad


def test_networks_of_real_numbers_are_refused() -> None:
    _, x, plan = _planned(Quantised)
    snn = parspike.convert(plan, x, T=4, recipe="max")
    with pytest.raises(OptionError, match=r"parspike\.lower\.integers"):
        snn.run(x, engine="integer")


PROBE = Node("probe", "", (), {}, Role.SYNAPSE, "", "", ())
UNUSUAL = {
    "a stride that leaves one column": (256, (48, 256, 3, 3), (2, 2), (1, 1), (1, 1), 1, (4, 2)),
    "groups of 24 channels": (48, (256, 24, 3, 3), (2, 2), (2, 1), (2, 1), 2, (5, 12)),
    "outputs that read padding alone": (48, (16, 48, 2, 1, 3), (2, 1, 1), (1, 0, 1), (2, 1, 1), 1, (1, 5, 12)),
    "more padding than the kernel has places": (1, (16, 1, 3, 1), (3, 3), (3, 2), (1, 2), 1, (4, 1)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_convolutions_of_unusual_forms_are_exact(name: str) -> None:
    """Would catch oneDNN's kernels for AMX, which give other sums for two forms, and end the process at two."""
    channels, weights, stride, pads, dilation, groups, size = UNUSUAL[name]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-9, 10, weights, generator=generator).double()
    x = torch.randint(0, 16, (3, channels, *size), generator=generator).double()
    bias, found = torch.arange(len(weight)).double(), Conv(None, None, None, stride, pads, dilation, groups)
    made = int8.Synapse(PROBE, found, weight, bias.float(), bias, ((int8.as_bytes, 1),))
    right = torch.convolution(x, weight, bias, stride, pads, dilation, False, [0] * len(stride), groups)
    assert torch.equal(made.whole(x, torch.float64), right)
    if len(size) == 2:
        counts = made.clipped(int8.as_bytes(x), made.ones / 64, (bias / 64 + 1 / 128).float(), levels=15)
        assert torch.equal(counts.double(), (right / 64 + 1 / 128).round().clamp(0, 15))


def test_kernels_are_compared_once_a_process() -> None:
    """Would catch a comparison that asks for itself: it went a hundred levels deep, three seconds of the first run."""
    int8.exact.cache_clear()
    int8._tried.cache_clear()
    int8.exact(pairs=True)
    assert int8.exact.cache_info().misses == 1


def test_a_network_whose_last_map_has_one_column_counts_as_count_does() -> None:
    """Would catch a re-identification network (strides down to 2×1 places) that answered with an error of 32 %."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(2, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
        model, x = nn.Sequential(*layers).eval(), torch.rand(8, 2, 4, 2)
    whole = integers(parspike.convert(model, x, T=4, code="weighted", recipe="max"), x, refit=False)
    for batch in (1, 8):
        assert torch.equal(whole.run(x[:batch]).logits, whole.run(x[:batch], engine="count").logits)
