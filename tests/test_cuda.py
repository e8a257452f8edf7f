"""What a GPU alone has: its kernels, tensor cores and recordings (`make gpu`). What it has in common with every device
is in `tests/test_device.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_device import NETWORKS, images, made, same_bits
from test_integer_engine import network
from torch import Tensor, nn

import parspike
from parspike.engines import tensor_cores
from parspike.engines.integer import Integer
from parspike.lower import integers
from parspike.neurons import IntegrateFire, ParallelNeuron, SignedNeuron, Staircase, fused, levels_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")


def test_under_autocast_counts_stay_close() -> None:
    model, x = made("convnet")
    snn = parspike.convert(model, x, T=8)
    with torch.autocast("cuda", torch.bfloat16):
        got = snn(x).float()
    own = snn(x)
    assert ((got - own).norm() / own.norm()) < 0.3


def test_the_command_line_takes_the_gpu_without_being_asked(tmp_path: Any, monkeypatch: Any) -> None:
    from typer.testing import CliRunner

    from parspike.cli import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\ndef net():\n    torch.manual_seed(0)\n    return nn.Sequential("
        "nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)).eval()\n"
    )
    rng = torch.Generator().manual_seed(0)
    import numpy as np

    images = torch.randint(0, 256, (160, 8, 8), generator=rng, dtype=torch.uint8).numpy()
    np.savez("data.npz", images=images, labels=np.arange(160) % 10)
    gpu, moved = torch.cuda.current_device(), []
    real = torch.nn.Module.to
    monkeypatch.setattr(nn.Module, "to", lambda self, *a, **k: (moved.append(a), real(self, *a, **k))[1])
    for words in (
        "convert nets.py:net --data data.npz -T 4 -o net.parspike --recipe closed-form",
        "eval net.parspike --data data.npz --against nets.py:net --operations",
        "sweep nets.py:net --data data.npz -T 2,4 --recipe closed-form",
        "tune nets.py:net --data data.npz --drop 50 --recipe closed-form",
        "diagnose net.parspike nets.py:net --data data.npz",
        "bench speed --network nets.py:net --shape 1,8,8 -T 4 --engines count,serial --rounds 1",
    ):
        moved.clear()
        done = CliRunner().invoke(app, [*words.split(), "--json"])
        assert done.exit_code in (0, 1), done.output
        assert "error" not in done.stdout[:20], done.output
        assert (torch.device("cuda", gpu),) in moved, words
        on_cpu = CliRunner().invoke(
            app, [*words.split(), "--json", "--device", "cpu", *(["--force"] if "-o " in words else [])]
        )
        assert on_cpu.exit_code == done.exit_code, on_cpu.output


def test_speed_counts_memory_and_energy_of_a_gpu() -> None:
    model, x = made("convnet")
    found = parspike.speed(model, x[:8], T=(4,), engines=("count", "parallel"), rounds=2, precision="bfloat16")
    assert all(row.memory_mib is not None and row.memory_mib > 0 for row in found.rows)
    assert "bfloat16" in found.machine


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_are_proved_on_this_gpu(dtype: torch.dtype) -> None:
    """Would catch kernels that are never used, for they do not compile or round otherwise than plain torch here."""
    pytest.importorskip("triton")
    assert fused.proved(torch.device("cuda", torch.cuda.current_device()), dtype) is not None


CASES = [(1, "sorted"), (31, "sorted"), (32, "sorted"), (33, "sorted"), (64, "sorted"), (4, "weighted"), (33, "onset")]
OTHERS = [(33, "sorted", torch.float64), (12, "weighted", torch.float64), (8, "onset", torch.float16)]
"""Each number type, T and code is compiled by itself, a second or so."""


@pytest.mark.parametrize(("T", "code", "dtype"), [*((*case, torch.float32) for case in CASES), *OTHERS])
def test_trains_written_by_a_kernel_are_those_of_plain_torch(code: Any, T: int, dtype: torch.dtype) -> None:
    """Would catch a count, a bit or an output that differs by anything, in any layout."""
    z = images(3, 5, 23, 29).cuda().to(dtype) * 3
    z[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    layouts = [z, z[:1], z[:0], z.to(memory_format=torch.channels_last), z[:, :, ::2, 1:], z.transpose(2, 3),
               z[:1, :, :1, :1].expand(2, 5, 4, 3)]  # fmt: skip
    levels = levels_of(T, code)
    for shape in ((), (5, 1, 1)):
        theta = (0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(1))).cuda().to(dtype)
        steps = torch.linspace(-2, 2, levels, dtype=dtype).cuda().reshape(-1, *[1] * len(shape)) * theta
        outputs = torch.arange(levels + 1.0, dtype=dtype).cuda().reshape(-1, *[1] * len(shape)) * theta
        neurons: list[Any] = [
            ParallelNeuron(T, theta, code=code), ParallelNeuron(T, theta, offset=-0.25, code=code),
            ParallelNeuron(T, theta, offset=theta / 3, code=code), SignedNeuron(T, theta, offset=theta / 3, code=code),
        ]  # fmt: skip
        if dtype != torch.float16:
            neurons.append(Staircase(T, steps, outputs, code=code))
        for neuron in neurons:
            if not isinstance(neuron, Staircase):
                neuron.shift.data += 0.1 * theta
                neuron.v_post.data += 0.3 * theta
            for part in layouts:
                count = neuron.count(part)
                value, trains = neuron.emit(part)
                torch.testing.assert_close(value, neuron.value(count), rtol=0, atol=0, equal_nan=True)
                wanted = neuron.pack(count.nan_to_num())
                assert torch.equal(trains.words, wanted.words)
                assert torch.equal(trains.unpack(), neuron.spikes(count.nan_to_num()))
                assert torch.equal(neuron.counted(trains), count.nan_to_num())


@pytest.mark.parametrize("code", ["sorted", "weighted", "onset"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_packed_run_on_a_gpu_is_the_run(network: str, code: Any) -> None:
    """Would catch an answer or a train that depends on how trains are kept."""
    model, x = made(network)
    snn = parspike.convert(model, x, T=8 if code != "weighted" else 4, code=code, recipe="max")
    run, packed = snn.run(x, record=True), snn.run(x, record="packed")
    torch.testing.assert_close(packed.logits, run.logits, rtol=1e-4, atol=1e-4)
    for layer, count in run.counts.items():
        # The kernels of a synapse may add in another order from run to run, so that a current may cross a threshold.
        different = packed.counts[layer] != count
        assert float(different.float().mean()) < 1e-3
        assert torch.equal(packed.spikes[layer].sum(0).int(), packed.packed[layer].sent())
        assert packed.packed[layer].words.device.type == "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"reset": "zero"}, {"offset": -0.25}], ids=str)
def test_steps_in_a_kernel_are_those_of_plain_torch(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Would catch a potential that is off by anything, in any layout and cut into any blocks."""
    z = images(9, 3, 5, 23, 29).cuda().to(dtype)
    theta = (0.5 + torch.arange(5.0) / 8).reshape(5, 1, 1).cuda().to(dtype)
    for shape in ((), (5, 1, 1)):
        neuron = IntegrateFire(theta if shape else theta[0, 0, 0], **options)
        for rows in (1, 9):
            bias = torch.linspace(-0.2, 0.3, rows, dtype=dtype).cuda().reshape(-1, *[1] * len(shape))
            neuron.bias.data = bias * neuron.v_threshold
            drive = neuron.bias - neuron.offset if neuron.offsets else neuron.bias
            for now in (z, z[:, :1], z[:, :, :, ::2, 1:], z.transpose(3, 4), z[:1].expand(9, *z.shape[1:]),
                        z.to(memory_format=torch.channels_last_3d)):  # fmt: skip
                v = neuron.start(now[0])["v"]
                wanted, train = fused.stepped(now, v, neuron.v_threshold, drive, neuron.decay, neuron.reset == "zero")
                with torch.no_grad():
                    state, current, spikes = neuron.advance(None, now)
                    first, _, before = neuron.advance(None, now[:4])
                    second, _, behind = neuron.advance(first, now[4:], 4)
                assert torch.equal(state["v"], wanted)
                assert torch.equal(spikes, train)
                assert torch.equal(current, train * neuron.v_post + neuron.offset)
                assert torch.equal(second["v"], wanted)
                assert torch.equal(torch.cat([before, behind]), train)


class Channels(nn.Module):
    """As many channels as tensor cores take at once, residual sums, strides, a max-pool, a global average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3)
        self.a, self.b = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.c, self.d, self.e = (
            nn.Conv2d(64, 128, 3, 2, 1),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.Conv2d(64, 128, 1, 2),
        )
        self.f, self.head = nn.Conv2d(128, 72, 1), nn.Linear(72, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.max_pool2d(self.stem(x).relu(), 3, 2, 1)
        y = (self.b(self.a(y).relu()) + y).relu()
        y = (self.d(self.c(y).relu()) + self.e(y)).relu()
        return self.head(self.f(y).relu().mean((2, 3)))


def whole(kind: type[nn.Module], **options: Any) -> tuple[parspike.SNN, Tensor]:
    if kind is not Channels:
        return network(kind, **options)
    torch.manual_seed(0)
    model, x = Channels().eval(), images(9, 3, 40, 36)
    return integers(parspike.convert(model, x, recipe="max", **options), x), x


@pytest.mark.parametrize("T", [16, 200, 256])
def test_channels_of_whole_blocks_have_a_cpus_bits(T: int) -> None:
    same_bits(*whole(Channels, T=T), fine=T < 50)


def test_the_tensor_cores_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch kernels that fail and are replaced in silence."""
    pytest.importorskip("triton")
    plain = []
    monkeypatch.setattr(tensor_cores.Synapse, "_launched", counted(plain, tensor_cores.Synapse._launched))
    for T in (16, 200, 256):
        snn, x = whole(Channels, T=T)
        snn = snn.cuda()
        snn.run(x.cuda(), engine="integer")
        assert Integer.of(snn).synapses == (8, 8)
    assert len(plain) >= 24
    assert all(plain)


def counted(results: list[bool], function: Any) -> Any:
    def call(*given: Any) -> bool:
        results.append(function(*given))
        return results[-1]

    return call


def test_integers_played_back_on_batches_of_any_size_and_layout() -> None:
    """Would catch a recording that is played with old inputs or weights, or whose answer is written over."""
    snn, _ = whole(Channels, T=16)
    snn, x = snn.cuda(), images(70, 3, 40, 36, seed=1).cuda()
    sizes = (70, 70, 70, 33, 33, 33, 1, 1, 1, 70, 33, 33, 1)
    parts = [x[:size] for size in sizes for _ in range(2)]
    parts[1::2] = [x[-size:].contiguous(memory_format=torch.channels_last) for size in sizes]
    kept = [(snn.run(part, engine="integer").logits, part) for part in parts]
    for got, part in kept:
        assert torch.equal(got, snn.run(part, engine="count").logits)
    with torch.no_grad():
        next(t for path, t in snn.tensors().items() if path.endswith("weight")).neg_()
    for _ in range(3):
        assert torch.equal(snn.run(x, engine="integer").logits, snn.run(x, engine="count").logits)


def test_integers_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_cores, "_proven", lambda *form: False)
    snn, x = whole(Channels, T=200)
    wanted = snn.run(x, engine="integer").logits
    assert torch.equal(snn.cuda().run(x.cuda(), engine="integer").logits.cpu(), wanted)
