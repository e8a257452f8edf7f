"""The integer engine as it runs on a GPU, on a CPU: from float64, and through Triton's interpreter."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import Dense, PreActivation, Residual
from test_integer_engine import Bottlenecks, Signal, Wide, network, unlike
from torch import nn

import parspike
from parspike.engines import tensor_cores
from parspike.engines.integer import Integer
from parspike.engines.whole_steps import Behind
from parspike.graph.signature import Conv, Linear

KERNELS = "parspike.engines.gpu_kernels"
MODULE = sys.modules["parspike.engines.integer"]
CPU = torch.device("cpu")


@pytest.fixture(params=["float64", "interpreted"])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A CPU that takes itself for a GPU: without kernels, and with them in Triton's interpreter."""
    monkeypatch.setattr(MODULE, "_is_gpu", lambda device: True)
    if request.param == "float64":
        monkeypatch.setattr(tensor_cores, "_proven", lambda *form: False)
    else:
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("kernels that were compiled for the GPU cannot be interpreted (tests/test_cuda.py runs them)")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        if "Interpreted" not in type(getattr(sys.modules.get(KERNELS), "of_channels", None)).__name__:
            # Triton decides when a kernel is defined, and another test may have imported them.
            sys.modules.pop(KERNELS, None)
            vars(parspike.engines).pop("gpu_kernels", None)
            tensor_cores._proven.cache_clear()
    yield request.param
    MODULE._made.clear()


CASES: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (Residual, {"T": 40, "weights": 4}),
    (Residual, {"T": 300, "weights": 6}),
    (PreActivation, {"T": 5}),
    (Dense, {"T": 3, "code": "weighted", "weights": 2}),
    (Wide, {"T": 5}),
    (Wide, {"T": 200}),
    (Wide, {"T": 1000}),
    (Signal, {"T": 100}),
    (Wide, {"T": 40, "encode": "all"}),  # counts below 0
    (Bottlenecks, {"T": 100, "encode": "hidden"}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_it_has_the_bits_of_count(kind: type[nn.Module], options: dict[str, Any], way: str) -> None:
    """Would catch a place, a padding, a half of a count or a factor of a branch that is read wrongly."""
    snn, x = network(kind, **options)
    assert unlike(snn, x[:3]) == []
    assert unlike(snn, 3 * x[:1]) == []
    how = Integer.of(snn)
    assert how.synapses[0] >= how.synapses[1] - 2
    behind = sum(isinstance(getattr(step, "step", step), Behind) for step in how.steps.values())
    assert behind >= (0 if kind is PreActivation else 2)  # whose streams of sums go beyond 32 bits


def test_inputs_of_any_layout(way: str) -> None:
    snn, x = network(Wide, T=5)
    x = x[:2]
    wanted = snn.run(x, engine="count").logits
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    for given in (turned, x.contiguous(memory_format=torch.channels_last), x.flip(0).flip(0)):
        assert torch.equal(snn.run(given, engine="integer").logits, wanted)


def test_the_interpreter_runs_the_kernels(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch kernels that fail and are replaced in silence."""
    runs = []
    launch = tensor_cores.Synapse.launch
    monkeypatch.setattr(tensor_cores.Synapse, "launch", lambda self, *given: runs.append(launch(self, *given)))
    snn, x = network(Wide, T=5)
    snn.run(x[:2], engine="integer")
    assert (len(runs) >= 5) == (way == "interpreted")


@pytest.mark.parametrize("tile", tensor_cores.TILES, ids=str)
def test_kernels_of_every_tile(tile: tensor_cores.Tile, way: str) -> None:
    if way == "float64":
        pytest.skip("no kernel")
    for kind, even in (("signed", True), ("byte", False), ("wide", False)):
        form = tensor_cores.Form(*tile, 32, even)
        assert tensor_cores.reproduces(form, kind, False, tile[1] > 64 and not even, CPU), kind


def test_a_kernel_that_errs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a check of kernels that none can fail."""
    form = tensor_cores.Form(64, 16, 4, 32, False)
    right = tensor_cores.Synapse.plain

    def wrong(self: Any, *given: Any) -> torch.Tensor:
        found = right(self, *given)
        found.view(-1)[-1] += 1
        return found

    monkeypatch.setattr(tensor_cores.Synapse, "launch", lambda self, form, image, out, *rest: out.copy_(
        wrong(self, image, *rest)))  # fmt: skip
    assert not tensor_cores.reproduces(form, "signed", False, False, CPU)


@pytest.mark.parametrize("kind", ["signed", "byte", "wide"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5, 9, 7), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 3)}),
        ((6, 8, 8), {"groups": 3, "padding": (1, 1)}),
        ((20, 6, 5), {"groups": 20, "stride": (2, 2), "padding": (1, 1)}),
        ((40, 4, 4), {}),
    ],
)
def test_sums_are_those_of_a_convolution(kind: Any, shape: tuple[int, ...], options: dict[str, Any], way: str) -> None:
    low, high = {"signed": (-128, 127), "byte": (0, 255), "wide": (0, tensor_cores.SMALL)}[kind]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(low, high + 1, (2, *shape), generator=generator).double()
    groups = options.get("groups", 1)
    for outputs, taps in ((shape[0], 3), (2 * groups, 1)):
        weight = torch.randint(-127, 128, (outputs, shape[0] // groups, taps, taps), generator=generator).double()
        given = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), **options}
        found = Conv(None, None, None, given["stride"], given["padding"], given["dilation"], groups)
        bias = torch.arange(outputs).double()
        made = tensor_cores.Synapse(found, weight, kind, CPU)
        wanted = nn.functional.conv2d(x, weight, bias, groups=groups, **{k: given[k] for k in options if k != "groups"})
        assert torch.equal(made(x, made.last(torch.ones(1), bias)).double(), wanted)


def test_sums_are_those_of_a_linear_layer(way: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 4, 33), generator=generator)
    weight = torch.randint(-127, 128, (10, 33), generator=generator).double()
    made = tensor_cores.Synapse(Linear(None, None, None), weight, "byte", CPU)
    for given in (x.to(torch.uint8), x.float(), x.to(torch.uint8).transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(made(given, made.last(torch.ones(1), torch.zeros(1))).double(), x.double() @ weight.T)


def test_a_copy_and_changed_weights(way: str) -> None:
    snn, x = network(Signal, T=100)
    before = snn.run(x[:2], engine="integer").logits
    with torch.no_grad():
        next(t for path, t in snn.tensors().items() if path.endswith("weight")).neg_()
    assert not torch.equal(snn.run(x[:2], engine="integer").logits, before)
    assert unlike(copy.deepcopy(snn), x[:2]) == []
