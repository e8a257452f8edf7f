"""The kernels of `parspike.neurons.kernels` against plain torch, through Triton's interpreter: no GPU is needed.

Skipped without Triton, which torch for CPUs does not bring along: pip install --no-deps triton.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parspike.errors import ParspikeWarning
from parspike.neurons import IntegrateFire, ParallelNeuron, SignedNeuron, Staircase, fused
from parspike.neurons.quantised import line_of

STEPS = [1, 7, 8, 9, 16, 31, 32, 33, 64]


@pytest.fixture(scope="module")
def kernels() -> Any:
    """A copy of the module that is interpreted, so that others of this process may compile theirs."""
    pytest.importorskip("triton")
    path, name = Path(fused.__file__).with_name("kernels.py"), "parspike.neurons.interpreted"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
        yield module
    del sys.modules[name]


def inputs() -> dict[str, Tensor]:
    """Currents (B, 5, …) in every layout."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(3, 5, 7, 11, generator=draw) * 3
    return {
        "images": z,
        "one": z[:1],
        "channels last": z.to(memory_format=torch.channels_last),
        "with gaps": torch.randn(6, 5, 7, 22, generator=draw)[::2, :, :, ::2],
        "turned": torch.randn(3, 7, 11, 5, generator=draw).permute(0, 3, 2, 1),
        "repeated": z[:1, :, :, :1].expand(3, 5, 7, 4),
        "a number": z[:1, :, :1, :1],
        "many": torch.randn(2, 5, 30, 31, generator=draw),
    }


def assert_same(made: Any, neuron: Any, z: Tensor) -> None:
    value, trains = made
    count = neuron.count(z)
    torch.testing.assert_close(value, neuron.value(count), rtol=0, atol=0, equal_nan=True)
    assert value.shape == z.shape
    wanted = neuron.pack(count.nan_to_num())
    assert torch.equal(trains.words, wanted.words)
    assert trains.words.dtype == wanted.words.dtype
    assert (trains.negative is None) == (wanted.negative is None)
    if trains.negative is not None:
        assert torch.equal(trains.negative, wanted.negative)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", inputs())
@pytest.mark.parametrize("shape", [(), (1,), (5, 1, 1)])
@pytest.mark.parametrize("signed", [False, True])
def test_even_neurons(kernels: Any, shape: tuple[int, ...], layout: str, dtype: torch.dtype, signed: bool) -> None:
    """Would catch a neuron that takes another channel's threshold, in any layout, and an output of another one."""
    z, draw = inputs()[layout].to(dtype), torch.Generator().manual_seed(1)
    if z.is_contiguous() and z.numel() > 9:
        z.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    theta = (0.5 + torch.rand(shape, generator=draw)).to(dtype)
    codes: list[tuple[int, Any]] = [(6, "sorted"), (4, "weighted"), (9, "onset")]
    for T, code in codes:
        neuron: Any
        if signed:
            neuron = SignedNeuron(T, theta, offset=theta / 3, code=code)
        else:
            neuron = ParallelNeuron(T, theta, offset=-0.25 if shape else theta / 4, code=code)
        neuron.shift.data += 0.1 * theta
        neuron.v_post.data += 0.3 * theta
        ratio, start = line_of(neuron.v_threshold, neuron.levels, neuron.shift - neuron.offset)
        offset = torch.as_tensor(neuron.offset, dtype=dtype)
        how = {"axis": fused._axis(z, theta), "lowest": neuron.lowest, "levels": neuron.levels, "T": T, "code": code}
        made = kernels.even(z, ratio, start, neuron.v_post / neuron.levels, offset, fma=False, **how)
        assert_same(made, neuron, z)
        alone, none = kernels.even(
            z, ratio, start, neuron.v_post / neuron.levels, offset, fma=False, trains=False, **how
        )
        torch.testing.assert_close(alone, made[0], rtol=0, atol=0, equal_nan=True)
        assert none is None


@pytest.mark.parametrize("T", STEPS)
@pytest.mark.parametrize("code", ["sorted", "onset", "weighted"])
def test_every_T(kernels: Any, code: Any, T: int) -> None:
    """Would catch a word that is missing, or whose bits stand elsewhere."""
    T = min(T, 12) if code == "weighted" else T
    neuron = ParallelNeuron(T, torch.tensor(2.0), code=code)
    z = torch.cat([torch.linspace(-1, 3, 1500), torch.arange(neuron.levels + 1) * (2 / neuron.levels)])
    ratio, start = line_of(neuron.v_threshold, neuron.levels, neuron.shift)
    for lowest in (0, -neuron.levels):
        made = kernels.even(
            z - int(lowest != 0), ratio, start, neuron.v_post / neuron.levels, None, axis=0, lowest=lowest,
            levels=neuron.levels, T=T, code=code, fma=False,
        )  # fmt: skip
        same = SignedNeuron(T, torch.tensor(2.0), offset=torch.tensor(0.0), code=code) if lowest else neuron
        assert_same(made, same, z - int(lowest != 0))


@pytest.mark.parametrize("layout", inputs())
@pytest.mark.parametrize("channels", [False, True])
def test_staircases(kernels: Any, layout: str, channels: bool) -> None:
    """Would catch a bisection that is off by one, at either end or for one channel."""
    z, draw = inputs()[layout], torch.Generator().manual_seed(2)
    if z.is_contiguous() and z.numel() > 9:
        z.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    codes: list[tuple[int, Any]] = [(1, "sorted"), (6, "sorted"), (33, "sorted"), (4, "weighted"), (9, "onset")]
    for T, code in codes:
        levels = 15 if code == "weighted" else T
        shape = (5, 1, 1) if channels else ()
        steps = torch.randn(levels, *shape, generator=draw).sort(0).values
        outputs = torch.arange(levels + 1.0).reshape(-1, *[1] * len(shape)).expand(-1, *shape) - 0.5
        neuron = Staircase(T, steps, outputs, code=code)
        tables = [table.reshape(len(table), -1) for table in neuron._made_of]
        exact = neuron.thresholds.reshape(levels, -1)[:, -1:]
        on = z.clone().reshape(-1) if z.is_contiguous() else None
        if on is not None and on.numel() > levels + 9 and not channels:
            on[5 : 5 + levels] = exact[:, 0]
            z = on.view(z.shape)
        made = kernels.stairs(z, *tables, axis=fused._axis(z, neuron.thresholds[0]), T=T, code=code)
        assert_same(made, neuron, z)


@pytest.mark.parametrize("layout", inputs())
@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"reset": "zero", "offset": -0.25}])
@pytest.mark.parametrize("channels", [False, True])
def test_neurons_with_a_state(kernels: Any, layout: str, options: dict[str, Any], channels: bool) -> None:
    """Would catch a step that is left out or takes another one's bias, and a block that begins elsewhere."""
    z = inputs()[layout]
    # The steps of a block need not lie one behind the other; a constant current is one step, repeated.
    turned = torch.stack([z, z], 1).transpose(0, 1)
    currents = [torch.stack([z, -z, z * 0.3, z]), z.expand(3, *z.shape), turned, z[None]]
    theta = 0.5 + torch.arange(5.0).reshape(5, 1, 1) / 8 if channels else torch.tensor(1.0)
    neuron = IntegrateFire(theta, **options)
    for rows in (1, 3, 8):
        neuron.bias.data = torch.linspace(-0.2, 0.3, rows).reshape(-1, *[1] * theta.dim()) * theta
        for now in currents:
            state, current, spikes = neuron.advance(None, now)
            offset = torch.tensor(neuron.offset) if neuron.offsets else None
            drive = (neuron.bias - neuron.offset).reshape(rows, -1)
            start = neuron.start(now[0])["v"]
            made = kernels.integrate(
                now, start, neuron.v_threshold, neuron.v_post, drive, offset, axis=fused._axis(now[0], theta),
                decay=neuron.decay, to_zero=neuron.reset == "zero",
            )  # fmt: skip
            assert torch.equal(made[0], state["v"])
            assert torch.equal(made[1], current)
            assert torch.equal(made[2], spikes)
            assert torch.equal(start, neuron.start(now[0])["v"])  # the state of the block before may be used again


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_proof_holds_for_them_and_sees_a_fault(kernels: Any, dtype: torch.dtype) -> None:
    """Would catch a proof that proves nothing: a count, a bit or an output that is off has to be seen."""
    cpu = torch.device("cpu")
    assert fused.agree(kernels, cpu, dtype, False)

    class Wrong:
        def __init__(self, what: str) -> None:
            self.what = what

        def even(self, z: Tensor, ratio: Tensor, start: Tensor, *rest: Any, **options: Any) -> Any:
            if self.what == "line":  # by a unit in the last place, as another rounding would
                ratio = ratio * (1 + 2 * torch.finfo(dtype).eps)
            value, trains = kernels.even(z, ratio, start, *rest, **options)
            if self.what == "alone" and trains is None:
                return value + torch.finfo(dtype).eps, None
            if self.what == "bit" and trains is not None:
                trains.words.view(-1)[-1] ^= 1
            return (value + torch.finfo(dtype).eps if self.what == "value" else value), trains

        def stairs(self, z: Tensor, steps: Tensor, *rest: Any, **options: Any) -> Any:
            if self.what == "steps":
                steps = steps * (1 + torch.finfo(dtype).eps)
            return kernels.stairs(z, steps, *rest, **options)

        def integrate(self, z: Tensor, v: Tensor, theta: Tensor, *rest: Any, **options: Any) -> Any:
            if self.what == "potential":
                v = v * (1 + 4 * torch.finfo(dtype).eps)
            return kernels.integrate(z, v, theta, *rest, **options)

    for what in ("line", "bit", "alone", "value", "steps", "potential"):
        assert not fused.agree(Wrong(what), cpu, dtype, False), what
    assert fused.agree(Wrong("nothing"), cpu, dtype, False)


def test_where_kernels_are_not_for() -> None:
    """Would catch kernels on tensors that they cannot read."""
    z = torch.zeros(2, 5, 3)
    assert fused._axis(z, torch.ones(()), torch.ones(5, 1)) == 1
    assert fused._axis(z, torch.ones(3)) == 2
    assert fused._axis(z, torch.ones(1)) == 2
    assert fused._axis(z, torch.ones(5, 1), torch.ones(3)) is None
    assert fused._axis(z, torch.ones(5, 3)) is None
    assert fused._axis(z, torch.ones(4, 1)) is None
    assert fused._axis(z, torch.ones(2, 1, 1, 1, 1)) is None
    assert fused._axis(torch.zeros(()), torch.ones(())) is None
    one = torch.ones(())
    assert fused.even(z, one, one, one, None, levels=4, T=4, code="sorted") is None
    assert fused.stairs(z, torch.ones(2), torch.ones(3), T=2, code="sorted") is None


def test_kernels_that_do_not_run_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a machine without a compiler that cannot run a network at all."""
    pytest.importorskip("triton")

    def fails(*args: Any) -> bool:
        raise RuntimeError("no C compiler\nat all")

    monkeypatch.setattr(fused, "agree", fails)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    with pytest.warns(ParspikeWarning, match="run in plain torch on cpu.*RuntimeError: no C compiler$"):
        assert fused.proved.__wrapped__(torch.device("cpu"), torch.float32) is None


def test_what_a_layer_keeps_follows_its_parameters() -> None:
    """Would catch a kernel that counts with the thresholds of before a fit, a cast or a copy."""
    neuron = ParallelNeuron(4, torch.tensor([1.0, 2.0]), offset=torch.tensor([0.5, 0.0]))

    def same() -> bool:
        wanted = *line_of(neuron.v_threshold, 4, neuron.shift - neuron.offset), neuron.v_post / 4
        return all(torch.equal(one, other) for one, other in zip(neuron._line(), wanted, strict=True))

    assert same()
    assert neuron._line()[0] is neuron._line()[0]
    for name in ("v_threshold", "shift", "v_post"):
        getattr(neuron, name).data.add_(0.25)
        getattr(neuron, name).data = getattr(neuron, name).data.clone()
        assert same(), name
        with torch.no_grad():
            getattr(neuron, name).mul_(2)
        assert same(), name
    neuron.double()
    assert same()
    assert neuron._line()[0].dtype == torch.float64
    neuron = copy.deepcopy(neuron)
    neuron.offset.add_(1)
    assert same()
