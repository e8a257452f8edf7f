"""NIR out and in: what is written is read by the package nir and computed by an executor of this file's own; files of
others are run by their equations; hostile ones are refused."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Residual
from torch import Tensor, nn
from typer.testing import CliRunner

import parspike
from parspike import IF, LIF, Thresholds
from parspike.cli import app
from parspike.errors import FileError, InputError, OptionError, ParspikeError, UnsupportedError
from parspike.export import FORMATS
from parspike.nir import hdf5

h5py = pytest.importorskip("h5py")
nir = pytest.importorskip("nir")

T = 6
X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class OptionA(nn.Module):
    """A stage of a CIFAR ResNet: the shortcut takes every second pixel and pads channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.two, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.two(torch.relu(self.one(x)))
        x = torch.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Odd(nn.Module):
    """Concatenation, groups, an activation that rests below 0, crops, pools with padding, constants, a difference, the
    same value twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.c, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4 * 3 * 3, 3, bias=False)
        self.gain = nn.Parameter(torch.tensor([0.5, 1.0, 2.0, -1.0]).reshape(4, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        a = F.hardtanh(self.a(x), -0.5, 1.0)
        b = torch.relu(self.b(a) + 0.25)
        c = torch.relu(self.c(torch.cat([a, b], 1)) - 0.5 * b)
        c = F.avg_pool2d(c * self.gain, 3, 2, padding=1, count_include_pad=False)
        c = torch.relu(c + c - 0.125)[:, :, 1:, :3] / 2
        return self.head(torch.relu(c).flatten(1))


class Sequence(nn.Module):
    """Along one dimension: two branches of pools, a reversal of signs, a mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 5, 3, padding=1), nn.Conv1d(5, 6, 3, stride=2, dilation=2, padding=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(-self.a(x))
        x = torch.relu(self.b(x) + 0.5) + F.avg_pool1d(F.pad(x, (0, 0, 0, 1)), 2)
        return self.head(torch.relu(x).mean(2))


def rows() -> nn.Module:
    """Layers of vectors, one without a bias."""
    return nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "option-a": (OptionA, X),
    "odd": (Odd, X),
    "sequence": (Sequence, torch.randn(6, 2, 12, generator=torch.Generator().manual_seed(6))),
    "rows": (rows, torch.randn(6, 6, generator=torch.Generator().manual_seed(7))),
}
KINDS = {
    "if": IF(), "if-zero": IF(reset="zero"), "lif": LIF(0.9), "lif-zero": LIF(0.8, reset="zero"),
    "if-from-0": IF(reset="zero", v_init="zero"),
}  # fmt: skip


@functools.cache
def converted(name: str, given: str = "current") -> parspike.SNN:
    """The network for IF neurons; a conversion takes longer than all that is done with it here."""
    network, x = NETWORKS[name]
    torch.manual_seed(3)
    options: Any = {"neuron": IF(), "recipe": Thresholds(), "input": given}
    return parspike.convert(network().eval(), calibration=x, T=T, **options)


def made(name: str, kind: Any = None, fitted: bool = True, given: str = "current") -> tuple[parspike.SNN, Tensor]:
    """A network of this kind of neurons and its inputs. fitted: with start potentials, biases and amplitudes unlike
    those of a new neuron, as a recipe fits them."""
    base, kind = converted(name, given), kind or IF()
    neurons: dict[str, Any] = {
        node: kind.neuron(neuron.v_threshold, neuron.offset) for node, neuron in base.stateful().items()
    }
    torch.manual_seed(4)
    for neuron in neurons.values() if fitted else ():
        if kind.v_init != "zero":
            neuron.v_init.mul_(1 + 0.5 * torch.rand_like(neuron.v_init))
        neuron.bias.add_(0.05 * torch.rand_like(neuron.bias))
        neuron.v_post.mul_(1 + 0.1 * torch.rand_like(neuron.v_post))
    tensors = {path: tensor.detach() for path, tensor in base.tensors().items()}
    snn = parspike.SNN(replace(base.graph, tensors=tensors), neurons, simulation=parspike.Simulation(T))
    return snn, NETWORKS[name][1]


def run_nir(path: Path, x: Tensor, steps: int = T, ours: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    """What the file computes, from the package nir's own reading of it: NIR's equations, forward Euler with its dt;
    with `ours` also the reset by θ and the start potentials of the metadata. Spike counts by node, the mean output."""
    graph = nir.read(path, type_check=False)
    dt = float(graph.metadata["dt"])
    states: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    total: Any = 0.0
    order, left = [], dict(graph.nodes)
    while left:
        ready = [n for n in left if all(a not in left for a, b in graph.edges if b == n)]
        order += ready
        for n in ready:
            del left[n]
    for _ in range(steps):
        values: dict[str, Tensor] = {}
        for name in order:
            node = graph.nodes[name]
            z: Any = sum(values[a] for a, b in graph.edges if b == name)
            values[name] = x if isinstance(node, nir.Input) else z
            tensor = {k: torch.from_numpy(np.asarray(v)) for k, v in vars(node).items() if isinstance(v, np.ndarray)}
            whole = {k: [int(n) for n in np.asarray(v).reshape(-1)] for k, v in vars(node).items()
                     if k in ("stride", "padding", "dilation", "kernel_size")}  # fmt: skip
            if isinstance(node, (nir.Affine, nir.Linear)):
                values[name] = F.linear(z, tensor["weight"], tensor.get("bias"))
            elif isinstance(node, (nir.Conv1d, nir.Conv2d)):
                run: Any = F.conv1d if isinstance(node, nir.Conv1d) else F.conv2d
                values[name] = run(z, tensor["weight"], tensor["bias"], **whole, groups=int(node.groups))
            elif isinstance(node, nir.AvgPool2d):
                values[name] = F.avg_pool2d(z, **whole)
            elif isinstance(node, nir.Scale):
                values[name] = z * tensor["scale"]
            elif isinstance(node, nir.Flatten):
                end = int(node.end_dim) + 1 if node.end_dim >= 0 else -1
                values[name] = z.flatten(int(node.start_dim) + 1, end)
            elif isinstance(node, (nir.IF, nir.LIF)):
                said = node.metadata if ours else {}
                v = states.get(name, torch.as_tensor(said.get("v_init", 0.0)).expand_as(z))
                if isinstance(node, nir.LIF):
                    v = v + dt / tensor["tau"] * (tensor["v_leak"] - v + tensor["r"] * z)
                else:
                    v = v + dt * tensor["r"] * z
                soft = said.get("reset") == b"subtract" or said.get("reset") == "subtract"
                spike = (v >= tensor["v_threshold"]) if soft else (v > tensor["v_threshold"])
                states[name] = torch.where(spike, v - tensor["v_threshold"] if soft else tensor["v_reset"], v)
                values[name] = spike.float()
                counts[name] = counts.get(name, 0) + spike.float()
            elif isinstance(node, nir.Output):
                total = total + z
    return counts, total / steps


def close(counts: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """As many spikes everywhere, but for currents within rounding of a threshold."""
    assert len(counts) == len(wanted)
    for one, two in zip(counts.values(), wanted.values(), strict=True):
        assert one.shape == two.shape
        assert float((one != two).float().mean()) < 0.01
    assert any(count.any() for count in wanted.values())


# ------------------------------------------------------------------------------------------------------------- out


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("odd", kind) for kind in KINDS), ("sequence", "if-zero"),
     *((name, kind) for name in ("option-a", "rows") for kind in ("if", "lif-zero"))],
)  # fmt: skip
def test_a_file_computes_what_the_network_computes(name: str, kind: str, tmp_path: Path) -> None:
    snn, x = made(name, KINDS[kind])
    result = parspike.export(snn, tmp_path / "net.nir", example=x, dt=0.5 if kind == "lif" else 1.0)
    run = snn.run(x, record=True)
    assert result.file.samples == len(x)
    assert result.file.error < 0.02
    assert result.file.unlike < 0.01 * sum(row.counts for row in result.file.layers)
    assert [row.layer for row in result.file.layers] == [*run.counts]
    assert [row.spikes for row in result.file.layers] == [int(count.sum()) for count in run.counts.values()]
    # Nothing of parspike runs here. Where the reset is to a value, NIR's equations alone compute the network.
    counts, output = run_nir(tmp_path / "net.nir", x, ours=kind in ("if", "lif"))
    close({layer: counts[layer] for layer in run.counts}, dict(run.counts))
    assert torch.allclose(output, run.logits, atol=0.05 * float(run.logits.abs().max()))
    assert result.plain is not None
    if kind in ("if", "lif"):
        assert result.plain.error > 0.05
        assert "reset by θ" in str(result)
    else:
        assert result.plain.error < 0.02
        assert result.notes == () or "groups" in result.notes[0]


def test_nir_reads_it_with_every_type_checked(tmp_path: Path) -> None:
    snn, x = made("option-a")
    parspike.export(snn, tmp_path / "net.nir", example=x)
    graph = nir.read(tmp_path / "net.nir")
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert (kinds.count("IF"), kinds.count("Input"), kinds.count("Output")) == (3, 1, 1)
    assert graph.nodes["input"].input_type["input"].tolist() == [3, 8, 8]
    assert graph.nodes["output"].output_type["output"].tolist() == [5]
    assert int(graph.metadata["T"]) == T
    assert float(graph.metadata["dt"]) == 1.0
    shortcut = [name for name in graph.nodes if name.endswith("_map")]
    assert len(shortcut) == 1
    conv = graph.nodes[shortcut[0]]
    assert conv.weight.shape == (8, 4, 1, 1)
    assert list(conv.stride) == [2, 2]
    assert sum(b == "relu_2" for _, b in graph.edges) == 0
    joined = next(name for name in graph.nodes if sum(b == name for _, b in graph.edges) == 2)
    assert isinstance(graph.nodes[joined], nir.IF)  # the sum is two edges into the neurons


def test_pools_and_scales_as_convolutions(tmp_path: Path) -> None:
    snn, x = made("odd", IF(reset="zero"))
    result = parspike.export(snn, tmp_path / "net.nir", example=x, as_convolutions=True)
    assert set(result.nodes) == {"Affine", "Conv2d", "Flatten", "IF", "Input", "Output", "Scale"}
    assert result.nodes["Scale"] <= 2  # of places that a pool with padding counts, and of a way that stands twice
    assert result.file.error < 0.02
    close(run_nir(tmp_path / "net.nir", x)[0], dict(snn.run(x, record=True).counts))


def test_one_number_for_all_neurons_takes_no_room(tmp_path: Path) -> None:
    snn, x = made("option-a", fitted=False)
    parspike.export(snn, tmp_path / "net.nir", example=x)
    with h5py.File(tmp_path / "net.nir") as file:
        arrays = [node["r"] for node in file["node/nodes"].values() if "r" in node]
        assert [array.id.get_storage_size() for array in arrays] == [0] * 3
        assert all((array[()] == 1).all() for array in arrays)
        assert "v_reset" not in next(n for n in file["node/nodes"].values() if "r" in n)  # older nir does not know it


def test_an_array_that_repeats_itself_is_read_into_little_memory(tmp_path: Path) -> None:
    """A threshold a channel stands in the file in the shape of the layer: read as such, it would take more memory than
    the weights of a large network."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        rng = np.random.default_rng(0)
        arrays = {
            "channels": np.broadcast_to(rng.normal(size=(5, 1, 1)), (5, 6, 7)), "one": np.full((4, 5), 2.5),
            "rows": np.broadcast_to(rng.normal(size=(5, 6, 1)), (5, 6, 7)), "vector": np.full(4, 1.5),
            "columns": np.broadcast_to(rng.normal(size=(1, 6, 1)), (5, 6, 7)), "all": rng.normal(size=(2, 2, 2)),
            "almost": np.ones((3, 4)) + np.eye(3, 4)[::-1] * 1e-6,
        }  # fmt: skip
        for name, array in arrays.items():
            file[name] = array
        reader = hdf5._Reader(h5py, 1 << 20)
        found = {name: reader._value(file[name], name) for name in arrays}
    for name, array in arrays.items():
        assert np.array_equal(found[name], array), name
    assert [0 in found[name].strides for name in ("channels", "rows", "one")] == [True] * 3
    assert not any(0 in found[name].strides for name in ("vector", "all", "almost"))


def test_spikes_at_the_input_are_if_nodes_too(tmp_path: Path) -> None:
    snn, x = made("rows", fitted=False, given="rate")
    result = parspike.export(snn, tmp_path / "net.nir", example=x)
    assert result.nodes["IF"] == 3
    counts, output = run_nir(tmp_path / "net.nir", x, ours=True)
    close(counts, dict(snn.run(x, record=True).counts))
    assert torch.allclose(output, snn(x), atol=1e-5)


def test_spikes_at_the_input_are_said_to_be_what_nir_alone_does_not_compute(tmp_path: Path) -> None:
    snn, x = made("rows", IF(reset="zero"), fitted=False, given="rate")
    first = next(iter(snn.stateful()))
    snn.stateful()[first].reset = "subtract"
    (note,) = parspike.export(snn, tmp_path / "net.nir", example=x).notes
    assert note.startswith("the neurons that make spikes of the input (input='rate') are reset by θ")
    assert "convert with input='current'" in note


class Heads(nn.Module):
    """Two outputs alike, of which the first takes a way of more nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.near = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.a(x))
        return self.c(torch.relu(self.b(x))), self.near(x)


def test_outputs_are_read_back_in_their_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    snn = parspike.convert(Heads().eval(), calibration=x, T=T, neuron=IF(), recipe=Thresholds())
    result = parspike.export(snn, tmp_path / "net.nir", example=x)
    assert result.file.unlike == 0
    assert result.file.error < 1e-5
    found = parspike.load(tmp_path / "net.nir")(x)
    assert list(found) == ["output", "output_001"]
    for one, two in zip(found.values(), snn(x), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


class Upsampled(nn.Module):
    """An upsampling whose output is joined with another value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(8, 3, 1)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.c(torch.cat([self.up(torch.relu(self.b(x))), x], 1)).mean((2, 3))


def test_an_upsampling_is_named_and_not_what_joins_it(tmp_path: Path) -> None:
    assert list(refused_by_layer(refusal(Upsampled, tmp_path))) == ["up"]


def refused_by_layer(error: UnsupportedError) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in error.details["refused"])


def refusal(kind: type[nn.Module], folder: Path) -> UnsupportedError:
    torch.manual_seed(0)
    snn = parspike.convert(kind().eval(), calibration=X, T=T, neuron=IF(), recipe=Thresholds())
    with pytest.raises(UnsupportedError) as caught:
        parspike.export(snn, folder / "net.nir", example=X)
    return caught.value


def test_every_layer_that_nir_cannot_hold_is_named_at_once(tmp_path: Path) -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up = nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, 2)
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(torch.relu(self.conv(x)), 2)
            x = torch.relu(self.up(x)).flip(2)
            return self.head(self.norm(torch.relu(x).mean((2, 3))))

    refused = refusal(Many, tmp_path)
    said = str(refused)
    for word in (
        "max_pool2d: max_pool2d takes a maximum of sums",
        "net.onnx",
        "transposed",
        "flip: it takes",
        "norm: ",
        "average pool",
    ):
        assert word in said
    assert len(refused.details["refused"]) == 4
    assert list(tmp_path.iterdir()) == []


def test_what_nir_has_in_another_form_only_is_said_layer_by_layer(tmp_path: Path) -> None:
    """Would catch a file in which a pool, padding or sum stands that computes something else than the network."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.even = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 2, padding="same")
            self.rows, self.place = nn.Linear(8, 2), nn.Parameter(torch.randn(4, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x))
            made = (
                F.avg_pool2d(x, 3, 2, ceil_mode=True), F.adaptive_avg_pool2d(x, 3), self.even(x), x + self.place,
                self.rows(x), torch.cat([x, x], 1), x + x.mean((2, 3), keepdim=True),
            )  # fmt: skip
            return torch.cat([value.flatten(1) for value in made], 1)

    refused = refusal(Odd, tmp_path)
    said = str(refused)
    for word in (
        "avg_pool2d: its last windows reach over the edge", "adaptive_avg_pool2d: it averages (8, 8) to (3, 3)",
        "even: its padding is wider on one side", "add: it adds a constant that differs from place to place",
        "rows: it acts on the last dimension of (4, 8, 8)", "cat: it joins a value with itself",
        "add@2: it adds (4, 1, 1) to (4, 8, 8) by repeating it",
    ):  # fmt: skip
        assert word in said


def test_what_has_a_third_dimension_or_changes_shape_is_said(tmp_path: Path) -> None:
    """Would catch a layer along three dimensions that is written as one along two, and values in another order."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.deep, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv3d(1, 2, 3), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x))
            made = (
                self.deep(x.unsqueeze(1)), F.avg_pool3d(x.unsqueeze(1), 2), x.reshape(-1, 8, 4, 8),
                x @ x.transpose(2, 3), x.permute(0, 2, 1, 3), self.head(x.mean((1, 2))),
            )  # fmt: skip
            return torch.cat([value.flatten(1) for value in made], 1)

    said = str(refusal(Deep, tmp_path))
    for word in (
        "deep: NIR has convolutions along one and two dimensions, this one has three",
        "avg_pool3d: NIR has no average pool for (1, 4, 8, 8)",
        "reshape: it makes (8, 4, 8) of (4, 8, 8), and NIR can flatten only",
        "matmul: ", "permute: ",
    ):  # fmt: skip
        assert word in said


def test_a_number_less_a_value_and_a_sum_over_places_are_written(tmp_path: Path) -> None:
    """Would catch `1 - y` written as `y - 1`, and a sum written as the average that it is made of."""

    class Less(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.two(1.0 - torch.relu(self.one(x)))).sum((2, 3)))

    torch.manual_seed(0)
    snn = parspike.convert(Less().eval(), calibration=X, T=T, neuron=IF(), recipe=Thresholds())
    result = parspike.export(snn, tmp_path / "net.nir", example=X)
    assert result.file.unlike == 0
    assert result.file.error < 1e-4


class BatchElsewhere(nn.Module):
    """The batch stands second, as in ensembles and in torch's attention; then one of two values is read."""

    def __init__(self) -> None:
        super().__init__()
        self.many, self.head = nn.Parameter(torch.randn(3, 6, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm(x.expand(3, -1, -1), self.many).relu().transpose(0, 1)
        one, two = self.head(y.mean(1)).chunk(2, 1)
        return one + two.relu()


class Part(nn.Module):
    """Some of the entries of a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()[:, 2:7])


def test_what_follows_from_a_refused_layer_ends_in_no_other_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 6)
    snn = parspike.convert(BatchElsewhere().eval(), calibration=x, T=T, neuron=IF(), recipe=Thresholds())
    with pytest.raises(UnsupportedError, match="bmm has no batch in its first dimension"):
        parspike.export(snn, tmp_path / "net.nir", example=x)
    for target in ("loihi2", "speck"):
        assert parspike.check(snn, target).findings
    part = parspike.convert(Part().eval(), calibration=x, T=T, neuron=IF(), recipe=Thresholds())
    assert parspike.export(part, tmp_path / "part.nir", example=x).file.unlike == 0


def test_a_network_without_neurons_is_told_so(tmp_path: Path) -> None:
    """Would catch the remedy for parallel neurons, to convert for IF, which had been followed."""
    with pytest.warns(parspike.errors.ParspikeWarning, match="no activation"):
        snn = parspike.convert(nn.Linear(6, 2).eval(), torch.rand(8, 6), T=4, neuron=IF())
    with pytest.raises(UnsupportedError, match="it has no spiking neurons"):
        parspike.export(snn, tmp_path / "net.nir")


def test_a_value_times_what_the_input_gives_is_refused_by_name(tmp_path: Path) -> None:
    """Would catch Python's own error, of a factor that is no number: masks, and the first state of recurrent layers."""

    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.out(self.hidden(x).relu() * mask + self.hidden(x) * torch.zeros(x.shape[0], 4))

    x = torch.rand(9, 6), torch.ones(9, 4)
    snn = parspike.convert(Weighed().eval(), [x], T=4, neuron=IF(), recipe="max")
    with pytest.raises(UnsupportedError, match=r"mul: .*two values of the network(?s:.*)mul@2: "):
        parspike.export(snn, tmp_path / "net.nir", example=x)


def test_a_value_repeated_by_a_factor_is_refused_by_name(tmp_path: Path) -> None:
    """Would catch torch's own error, of a later reshape of what the file holds in another shape: positional features,
    behind a layer that is refused and behind one that is not."""

    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates, self.hidden, self.out = nn.Parameter(torch.rand(4)), nn.Linear(24, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, column: Tensor) -> Tensor:
            both = torch.cat([(x[..., None] * self.rates).flatten(1), (column * self.rates).flatten(1)], 1)
            return self.out(self.hidden(both).relu())

    x = torch.rand(9, 3), torch.rand(9, 3, 1)
    snn = parspike.convert(Waves().eval(), [x], T=4, neuron=IF(), recipe="max")
    with pytest.raises(UnsupportedError, match=r"unsqueeze: (?s:.*)mul@2: it makes \(3, 4\) of \(3, 1\)"):
        parspike.export(snn, tmp_path / "net.nir", example=x)


def test_an_output_that_depends_on_no_input_is_refused_by_name(tmp_path: Path) -> None:
    class Anchored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(6, 4), nn.Linear(4, 2)
            self.register_buffer("anchors", torch.rand(5, 2))

        def forward(self, x: Tensor) -> tuple[Tensor, Any]:
            return self.out(self.hidden(x).relu()), self.anchors

    snn = parspike.convert(Anchored().eval(), [torch.rand(9, 6)], T=4, neuron=IF(), recipe="max")
    with pytest.raises(UnsupportedError, match="anchors: this output depends on no input"):
        parspike.export(snn, tmp_path / "net.nir")


def test_a_table_looked_up_by_whole_numbers_is_refused_by_name(tmp_path: Path) -> None:
    """Would catch torch's own error, of places that are real numbers, where the layer is tried."""

    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.hidden, self.out = nn.Embedding(9, 6), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, token: Tensor) -> Tensor:
            return self.out(self.hidden(self.table(token)).relu())

    tokens = torch.arange(9)
    snn = parspike.convert(Looked().eval(), [tokens], T=4, neuron=IF(), recipe="max")
    with pytest.raises(UnsupportedError, match="table: it reads whole numbers, and what NIR's edges carry is real"):
        parspike.export(snn, tmp_path / "net.nir", example=tokens)


@pytest.mark.parametrize(
    ("kind", "word"),
    [(IF(refractory=1), "refractory"), (IF(signed=True), "take spikes back"), (IF(bias="step"), "bias a step")],
)
def test_neurons_that_nir_does_not_have(kind: IF, word: str, tmp_path: Path) -> None:
    snn, x = made("rows", kind, fitted=False)
    for neuron in snn.stateful().values():
        if kind.bias == "step":
            neuron.bias = nn.Parameter(torch.rand(T, *neuron.v_threshold.shape), requires_grad=False)
    with pytest.raises(UnsupportedError, match=word):
        parspike.export(snn, tmp_path / "net.nir", example=x)


def test_a_parallel_network_is_refused_or_written_as_its_twin(tmp_path: Path) -> None:
    network, x = NETWORKS["rows"]
    torch.manual_seed(0)
    model = network().eval()
    snn = parspike.convert(model, calibration=x, T=T, recipe=Thresholds())
    with pytest.raises(OptionError, match=r"neuron=parspike.IF\(\).*as_if=True"):
        parspike.export(snn, tmp_path / "net.nir", example=x)
    result = parspike.export(snn, tmp_path / "net.nir", example=x, as_if=True)
    twin = snn.run(x, engine="serial-if", record=True)
    wanted = float((twin.logits - snn(x)).norm() / snn(x).norm())
    assert result.file.error == pytest.approx(wanted, rel=1e-3)
    unlike = sum(int((twin.counts[k] != count).sum()) for k, count in snn.run(x, record=True).counts.items())
    assert result.file.unlike == unlike > 0
    assert "twin" in str(result)
    bent = parspike.convert(
        nn.Sequential(model, nn.Sigmoid(), nn.Linear(3, 2)), calibration=x, T=T, recipe=Thresholds()
    )
    with pytest.raises(UnsupportedError, match="unequal size"):
        parspike.export(bent, tmp_path / "bent.nir", example=x, as_if=True)


def test_counts_that_differ_are_told_by_layer(tmp_path: Path) -> None:
    """Would catch a difference of counts that is added up with its sign, and another layer's in the place of one."""
    snn, x = made("option-a", IF(reset="zero"))
    parspike.export(snn, tmp_path / "net.nir", example=x)
    other = parspike.load(tmp_path / "net.nir")
    with torch.no_grad():
        for neuron in other.neurons().values():
            neuron.v_threshold *= 1.25  # pyright: ignore[reportAttributeAccessIssue]
    result = importlib.import_module("parspike.export.result")
    names = dict(zip(snn.neurons(), (other.graph.by_name[name].layer for name in other.neurons()), strict=True))
    pieces = [{snn.graph.inputs[0].name: part} for part in x.split(4)]
    found = result.compare(snn, other, names, pieces)
    one, two = snn.run(x, record=True).counts, other.run(x, record=True).counts
    wanted = [
        (a.numel(), int(a.sum()), int(b.sum()), int((a != b).sum()))
        for a, b in zip(one.values(), two.values(), strict=True)
    ]
    assert [(row.counts, row.spikes, row.file_spikes, row.unlike) for row in found.layers] == wanted
    assert all(0 < unlike < counts for counts, *_, unlike in wanted)
    assert found.error == pytest.approx(float((other(x) - snn(x)).norm() / snn(x).norm()), rel=1e-5)


def test_a_network_that_is_read_back_leaves_no_memory_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors in a cycle of references would stay until Python looks for cycles, beside those of the second reading;
    and of a large network free memory is given back at every layer."""
    snn, x = made("option-a")
    result = importlib.import_module("parspike.export.result")
    released: list[int] = []
    monkeypatch.setattr(result, "release", lambda: released.append(1))
    parspike.export(snn, tmp_path / "net.nir", example=x)
    assert not released
    monkeypatch.setattr(result, "MOST_NEURONS", 100)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        parspike.export(snn, tmp_path / "net.nir", example=x[:1], force=True)
        gc.collect()
        assert not [each for each in gc.garbage if isinstance(each, Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert len(released) == 4 * len(snn.neurons())  # a run of all T steps at once, of two networks, twice


def test_without_an_example_noise_is_compared(tmp_path: Path) -> None:
    snn, _ = made("option-a")
    result = parspike.export(snn, tmp_path / "net.nir")
    assert result.noise
    assert "2 samples of noise" in str(result)
    assert "noise" in json.dumps(result.to_json())
    assert "IF" in result._repr_html_()


# --------------------------------------------------------------------------------------------------------- bad targets


def test_a_target_in_the_way(tmp_path: Path) -> None:
    snn, x = made("rows")
    for path, kind, word in (
        (tmp_path, OptionError, "format"), (tmp_path / "a.nri", OptionError, "did you mean '.nir'"),
        (tmp_path / "no" / "a.nir", FileError, "no folder"),
    ):  # fmt: skip
        with pytest.raises(kind, match=word):
            parspike.export(snn, path, example=x)
    folder, old = tmp_path / "folder.nir", tmp_path / "old.nir"
    folder.mkdir()
    old.write_text("old")
    with pytest.raises(FileError, match="is a folder"):
        parspike.export(snn, folder, example=x)
    with pytest.raises(FileError, match="force=True"):
        parspike.export(snn, old, example=x)
    assert old.read_text() == "old"
    parspike.export(snn, old, example=x, force=True)
    assert torch.allclose(parspike.load(old)(x), snn(x), atol=1e-4)
    with pytest.raises(InputError, match="shape"):
        parspike.export(snn, tmp_path / "b.nir", example=x[:, :3])
    with pytest.raises(InputError, match="inputs"):
        parspike.export(snn, tmp_path / "b.nir", example=[x, x])
    for dt in (0.0, -1, float("nan"), float("inf"), True):
        with pytest.raises(OptionError, match="dt"):
            parspike.export(snn, tmp_path / "b.nir", example=x, dt=dt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.nir", "old.nir"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writing beyond it fails in the same call."""
    snn, _ = made("rows")
    snn.save(tmp_path / "net.parspike")
    old = tmp_path / "net.nir"
    old.write_text("old")
    code = (
        "import resource, signal, sys, parspike, parspike.export.nir, h5py\n"
        "snn = parspike.load(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "for room in (0, 600, 5000, 20000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))\n"
        "    try:\n        parspike.export(snn, sys.argv[2], force=True)\n"
        "    except parspike.errors.FileError as error:\n        sys.stderr.write(str(error) + '\\n')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"  # what coverage writes
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "net.parspike"), str(old)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(parspike.__file__).parents[1])},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.splitlines()
    assert len(lines) == 4
    assert all(f"cannot write '{old}': " in line for line in lines)
    assert old.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.nir", "net.parspike"]


# -------------------------------------------------------------------------------------------------------------- in


def of(*nodes: Any, path: Path, names: list[str] | None = None) -> Path:
    """A file by the package nir: these nodes one after the other."""
    shape = nodes[0].input_type["input"]
    graph = nir.NIRGraph.from_list(nir.Input(shape), *nodes, type_check=False)
    nir.write(path, graph)
    return path


def lif(n: int, **values: float) -> Any:
    usual = {"tau": 1e-3, "r": 10.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}
    return nir.LIF(**{key: np.full(n, value, np.float32) for key, value in {**usual, **values}.items()})


def test_neurons_follow_their_equations(tmp_path: Path) -> None:
    """Each kind against a loop in plain Python, forward Euler with dt = 1e-4."""
    dt, steps, weight = 1e-4, 12, np.array([[1.0], [0.6], [-0.4]], np.float32)
    x = torch.tensor([[0.7], [1.9]])

    def loop(step: Callable[[dict[str, float], float], float]) -> list[list[float]]:
        rows = []
        for value in x[:, 0].tolist():
            rows.append([])
            for w in weight[:, 0].tolist():
                state: dict[str, float] = {"v": 0.0, "i": 0.0}
                rows[-1].append(sum(step(state, w * value) for _ in range(steps)) / steps)
        return rows

    def fire(state: dict[str, float], theta: float, back: float) -> float:
        if state["v"] > theta:
            state["v"] = back
            return 1.0
        return 0.0

    def of_lif(state: dict[str, float], z: float) -> float:
        state["v"] += dt / 2e-3 * (0.3 - state["v"] + 9.0 * z)
        return fire(state, 0.5, -0.2)

    def of_if(state: dict[str, float], z: float) -> float:
        state["v"] += 2.0 * z
        return fire(state, 1.5, 0.25)

    def of_cuba(state: dict[str, float], z: float) -> float:
        state["i"] += dt / 3e-4 * (2.0 * z - state["i"])
        state["v"] += dt / 5e-4 * (0.1 - state["v"] + 3.0 * state["i"])
        return fire(state, 0.9, 0.1)

    def of_li(state: dict[str, float], z: float) -> float:
        state["v"] += dt / 2e-3 * (0.5 - state["v"] + 4.0 * z)
        return state["v"]

    def of_threshold(state: dict[str, float], z: float) -> float:
        return float(z > 0.65)

    full = {key: np.full(3, value, np.float32) for key, value in (
        ("tau", 2e-3), ("tau_syn", 3e-4), ("tau_mem", 5e-4), ("one", 1.0))}  # fmt: skip
    one = full["one"]
    cases = [
        (lif(3, tau=2e-3, r=9.0, v_leak=0.3, v_threshold=0.5, v_reset=-0.2), of_lif),
        (nir.IF(r=2 * one, v_threshold=1.5 * one, v_reset=0.25 * one), of_if),
        (nir.CubaLIF(tau_syn=full["tau_syn"], tau_mem=full["tau_mem"], r=3 * one, v_leak=0.1 * one,
                     v_threshold=0.9 * one, v_reset=0.1 * one, w_in=2 * one), of_cuba),
        (nir.LI(tau=full["tau"], r=4 * one, v_leak=0.5 * one), of_li),
        (nir.Threshold(threshold=0.65 * one), of_threshold),
    ]  # fmt: skip
    for number, (node, step) in enumerate(cases):
        path = of(nir.Linear(weight=weight), node, path=tmp_path / f"{number}.nir")
        snn = parspike.load(path, T=steps)
        wanted = torch.tensor(loop(step))
        assert torch.allclose(snn(x), wanted, atol=1e-5), type(node).__name__
        assert wanted.any()
        again = parspike.load(snn.save(tmp_path / f"{number}.parspike"))
        assert torch.equal(again(x), snn(x))


def test_what_others_write_computes_what_the_equations_say(tmp_path: Path) -> None:
    """Convolution, pools, scale, flatten: with an IF behind, against torch's own operators."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(4, 2, 3, 3, generator=generator), torch.rand(3, 2, 9, 9, generator=generator)
    scale = torch.rand(4, 4, 4, generator=generator)
    head = torch.randn(5, 16, generator=generator)
    ones = np.ones((4, 9, 9), np.float32)
    path = of(
        nir.Conv2d((9, 9), weight.numpy(), 1, 1, 1, 1, np.zeros(4, np.float32)),
        nir.IF(r=ones, v_threshold=ones),
        nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        nir.Scale(scale.numpy()),
        nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        nir.Flatten({"input": np.array([4, 2, 2])}, 0, -1),
        nir.Affine(head.numpy(), np.ones(5, np.float32)),
        path=tmp_path / "net.nir",
    )
    snn = parspike.load(path, T=8)
    z, v, total = F.conv2d(x, weight, padding=1), torch.zeros(3, 4, 9, 9), torch.zeros(3, 5)
    for _ in range(8):
        v = v + z
        spikes = (v > 1).float()
        v = v * (1 - spikes)
        pooled = F.avg_pool2d(F.avg_pool2d(spikes, 2, divisor_override=1) * scale, 2)
        total += F.linear(pooled.flatten(1), head, torch.ones(5)) / 8
    assert torch.allclose(snn(x), total, atol=1e-5)
    assert spikes.any()
    run = snn.run(x, record=True)
    assert run.spikes["if"].shape == (8, 3, 4, 9, 9)
    report = parspike.measure(snn, x)
    assert report.rows[0].layer == "conv2d"
    assert sum(row.synops for row in report.rows) > 0


def test_events_are_another_input_at_every_step(tmp_path: Path) -> None:
    """Would catch steps in another order, a first synapse that is computed once, and samples mixed with steps."""
    generator = torch.Generator().manual_seed(0)
    weight, head = torch.randn(4, 2, 3, 3, generator=generator), torch.randn(5, 64, generator=generator)
    events = (torch.rand(8, 3, 2, 8, 8, generator=generator) < 0.15).float()  # (T, B, polarity, height, width)
    full = {key: np.full((4, 8, 8), value, np.float32) for key, value in (
        ("tau", 4e-4), ("r", 1.0), ("v_leak", 0.0), ("v_threshold", 0.4), ("v_reset", 0.0))}  # fmt: skip
    path = of(
        nir.Conv2d((8, 8), weight.numpy(), 1, 1, 1, 1, np.zeros(4, np.float32)),
        nir.LIF(**full),
        nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        nir.Flatten({"input": np.array([4, 4, 4])}, 0, -1),
        nir.Affine(head.numpy(), np.ones(5, np.float32)),
        path=tmp_path / "net.nir",
    )
    snn = parspike.load(path, T=8)
    v, spikes, total = torch.zeros(3, 4, 8, 8), [], torch.zeros(3, 5)
    for x in events:
        v = v + 1e-4 / 4e-4 * (F.conv2d(x, weight, padding=1) - v)
        spikes.append((v > 0.4).float())
        v = v * (1 - spikes[-1])
        pooled = F.avg_pool2d(spikes[-1], 2, divisor_override=1)
        total += F.linear(pooled.flatten(1), head, torch.ones(5)) / 8
    trains = torch.stack(spikes)
    assert 0.02 < float(trains.mean()) < 0.5
    assert not torch.equal(trains, trains.flip(0))
    for chunk in (None, 1, 3, 8):
        run = snn.run(events, record=True, chunk=chunk)
        assert torch.equal(run.spikes["lif"].float(), trains)
        assert torch.allclose(run.logits, total, atol=1e-5)
    assert torch.allclose(snn(events), total, atol=1e-5)
    last = snn.run(events, every_step=True).logits
    assert last.shape == (8, 3, 5)
    assert torch.allclose(last[-1], total, atol=1e-5)
    # The same at every step is the constant input; a batch of any size.
    assert torch.allclose(snn(events[:1].expand(8, 3, 2, 8, 8)), snn(events[0]), atol=1e-6)
    assert torch.allclose(snn(events[:, 1:2]), total[1:2], atol=1e-5)
    for wrong, says in (
        (events[:5], r"5 steps, and this network runs T=8: give \(T, B, 2, 8, 8\)"),
        (events[:, :, :1], r"has shape \(3, 1, 8, 8\)"),
        (events.double(), "float64"),
        (torch.where(torch.arange(8).reshape(8, 1, 1, 1, 1) == 6, torch.nan, events), "NaN"),
    ):
        with pytest.raises(InputError, match=says):
            snn(wrong)


def test_subgraphs_stand_in_their_place(tmp_path: Path) -> None:
    inner = nir.NIRGraph(
        {"input": nir.Input([3]), "fire": lif(3), "output": nir.Output([3])}, [("input", "fire"), ("fire", "output")]
    )
    graph = nir.NIRGraph(
        {"in": nir.Input([2]), "a": nir.Linear(np.ones((3, 2), np.float32)), "sub": inner,
         "b": nir.Linear(np.ones((1, 3), np.float32)), "out": nir.Output([1])},
        [("in", "a"), ("a", "sub"), ("sub", "b"), ("b", "out")],
    )  # fmt: skip
    nir.write(tmp_path / "net.nir", graph)
    snn = parspike.load(tmp_path / "net.nir", T=9)
    assert list(snn.run(torch.ones(1, 2), record=True).counts) == ["sub.fire"]
    assert snn(torch.ones(1, 2)).item() == 3.0  # v = 2 > 1 at every step


def test_steps_and_time_constants(tmp_path: Path) -> None:
    path = of(nir.Linear(np.ones((1, 1), np.float32)), lif(1), path=tmp_path / "net.nir")
    with pytest.raises(OptionError, match="time-steps it runs: load it with T=8"):
        parspike.load(path)
    for wrong in (0, -1, 1.5, True, "8"):
        with pytest.raises(OptionError, match="T must be"):
            parspike.load(path, T=wrong)  # pyright: ignore[reportArgumentType]
    for dt in (0.0, -1e-4, float("nan"), "fast"):
        with pytest.raises(OptionError, match="dt must be the seconds of a step"):
            parspike.load(path, T=8, dt=dt)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FileError, match=r"load it with dt="):
        parspike.load(path, T=8, dt=0.1)
    assert parspike.load(path, T=8, dt=1e-3)(torch.ones(1, 1)).item() == 1.0  # λ = 0, v = 10
    snn, _ = made("rows")
    with pytest.raises(OptionError, match="NIR"):
        parspike.load(snn.save(tmp_path / "net.parspike"), T=8)


def test_recurrent_networks_and_unknown_nodes_are_named_together(tmp_path: Path) -> None:
    graph = nir.NIRGraph(
        {"in": nir.Input([2]), "fire": lif(2), "back": nir.Linear(np.eye(2, dtype=np.float32)),
         "late": nir.Delay(np.ones(2, np.float32)), "end": lif(2), "out": nir.Output([2])},
        [("in", "fire"), ("fire", "back"), ("back", "fire"), ("fire", "late"), ("late", "end"), ("end", "out")],
        type_check=False,
    )  # fmt: skip
    nir.write(tmp_path / "net.nir", graph)
    with pytest.raises(FileError) as caught:
        parspike.load(tmp_path / "net.nir", T=4)
    assert "'late' (Delay)" in str(caught.value)
    assert "recurrent networks cannot be run: 'back', 'fire'" in str(caught.value)
    assert "end" not in str(caught.value)


def written(path: Path, nodes: dict[str, Any], edges: str) -> Path:
    """A file of the package nir; edges: "in-a a-out"."""
    graph = nir.NIRGraph(nodes, [tuple(edge.split("-")) for edge in edges.split()], type_check=False)
    nir.write(path, graph)
    return path


ENDS = {"in": nir.Input([2]), "out": nir.Output([3])}
DENSE = nir.Linear(np.ones((3, 2), np.float32))
IMAGE = nir.Input([2, 4, 4])
CONV = nir.Conv2d((4, 4), np.ones((3, 2, 3, 3), np.float32), 1, 0, 1, 1, np.zeros(3, np.float32))
TURNED = nir.NIRGraph({"input": ENDS["in"], "output": nir.Output([2])}, [("input", "output")], type_check=False)


@pytest.mark.parametrize(
    ("nodes", "edges", "says"),
    [
        ({**ENDS, "in": IMAGE, "a": DENSE, "fire": lif(3)}, "in-a a-fire fire-out", "a Flatten node is missing"),
        ({**ENDS, "a": CONV, "fire": lif(3)}, "in-a a-fire fire-out", "it takes 3 dimensions, and (2,) arrives"),
        ({**ENDS, "a": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), "fire": lif(2)},
         "in-a a-fire fire-out", "it takes images (C, H, W), and (2,) arrives"),
        ({**ENDS, "a": nir.Flatten({"input": np.array([2])}, 2, 1), "fire": lif(2)}, "in-a a-fire fire-out",
         "it flattens dimensions 2 to 1 of (2,)"),
        ({**ENDS, "a": DENSE, "b": nir.Linear(np.ones((4, 2), np.float32)), "fire": lif(3)},
         "in-a in-b a-fire b-fire fire-out", "values of the shapes (3,) and (4,) are added"),
        ({**ENDS, "a": DENSE}, "in-a a-out", "it has no neurons"),
        ({"in": ENDS["in"], "a": DENSE, "fire": lif(3)}, "in-a a-fire", "it has no Output node"),
        ({**ENDS, "a": DENSE, "fire": lif(3), "late": lif(3)}, "in-a a-fire fire-out out-late",
         "nodes read the Output 'out'"),
        ({**ENDS, "turn": TURNED, "a": DENSE, "fire": lif(3)}, "in-turn turn-a a-fire fire-out",
         "straight to its Output"),
    ],
    ids=["vector", "image", "pool", "flatten", "sum", "analog", "no end", "behind the end", "turned"],
)  # fmt: skip
def test_graphs_that_cannot_run_say_where(nodes: dict[str, Any], edges: str, says: str, tmp_path: Path) -> None:
    """What a mistake in the program that wrote the file ends in: one sentence, not an error of torch's later."""
    assert says in refused(written(tmp_path / "net.nir", nodes, edges))


# ---------------------------------------------------------------------------------------------------------- hostile


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A small file of the package nir, to be damaged."""
    return of(
        nir.Affine(np.ones((3, 2), np.float32), np.zeros(3, np.float32)), lif(3), path=tmp_path / "good.nir"
    )  # fmt: skip


def refused(path: Path) -> str:
    """The one sentence that refuses a file."""
    with pytest.raises(ParspikeError) as caught:
        parspike.load(path, T=4)
    assert isinstance(caught.value, (FileError, OptionError))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_size_bombs(good: Path) -> None:
    with h5py.File(good, "a") as file:
        node = file["node/nodes/affine"]
        del node["weight"]
        node.create_dataset("weight", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(64, 64), fillvalue=1.0)
    assert "more than 1.1 GB" in refused(good)


def test_a_chunk_larger_than_its_array(good: Path) -> None:
    with h5py.File(good, "a") as file:
        node = file["node/nodes/affine"]
        del node["bias"]
        node.create_dataset("bias", shape=(3,), maxshape=(None,), dtype="f4", chunks=(1 << 29,))
    assert "more than 1.1 GB" in refused(good)


def test_groups_and_links_that_turn_back_or_lead_away(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    with h5py.File(good, "a") as file:
        file["node/nodes/loop"] = file["node"]
    assert "in two places" in refused(good)
    (tmp_path / "other.h5").write_bytes(content)
    for link, word in (
        (h5py.ExternalLink("other.h5", "/node/nodes/lif"), "link to another file"), (h5py.SoftLink("/node"), "a link"),
    ):  # fmt: skip
        good.write_bytes(content)
        with h5py.File(good, "a") as file:
            del file["node/nodes/lif"]
            file["node/nodes/lif"] = link
        assert word in refused(good)


def test_data_outside_the_file(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    (tmp_path / "secret").write_bytes(b"\0" * 64)
    with h5py.File(good, "a") as file:
        del file["node/nodes/affine/bias"]
        file["node/nodes/affine"].create_dataset(
            "bias", shape=(3,), dtype="f4", external=[(str(tmp_path / "secret"), 0, 12)]
        )
    assert "lies in another file" in refused(good)
    good.write_bytes(content)
    layout = h5py.VirtualLayout(shape=(3,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", shape=(3,))
    with h5py.File(good, "a") as file:
        del file["node/nodes/affine/bias"]
        file["node/nodes/affine"].create_virtual_dataset("bias", layout)
    assert "lies in another file" in refused(good)


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("affine/weight", np.full((3, 2), np.nan, np.float32), "NaN or Inf"),
        ("affine/weight", np.array([[b"a", b"b"]] * 3), "expected numbers"),
        ("affine/weight", np.ones((3, 2), np.complex64), "expected numbers"),
        ("affine/weight", np.full((3, 2), 1e300), "too large for float32"),
        ("affine/weight", np.ones((3, 2, 1), np.float32), "expected 2 dimensions"),
        ("affine/weight", np.ones((3, 5), np.float32), "cannot run"),
        ("affine/bias", np.ones(4, np.float32), "cannot run"),
        ("affine/bias", h5py.Empty("f4"), "is empty"),
        ("affine/type", np.arange(3), "is no text"),
        ("affine/type", "Affine" * 1000, "no short text"),
        ("lif/tau", np.zeros(3, np.float32), "above 0"),
        ("lif/tau", np.ones((3, 1), np.float32), "has the shape"),
        ("lif/tau", np.array(["x"], dtype=object), "expected numbers"),
        ("input/shape", np.array([-2]), "at least 1"),
        ("input/shape", np.array([2.5]), "sizes"),
        ("input/shape", np.array([1 << 21, 1 << 21]), "too large"),
        ("output/shape", np.array([7]), "arrives"),
        ("lif/type", "NIRGraph", "lacks"),
        ("lif/type", "Nothing", "no such nodes"),
    ],
)
def test_wrong_values(path: str, value: Any, word: str, good: Path) -> None:
    with h5py.File(good, "a") as file:
        nodes = file["node/nodes"]
        del nodes[path]
        if isinstance(value, np.ndarray) and value.dtype == object:
            nodes.create_dataset(path, data=value, dtype=h5py.string_dtype())
        else:
            nodes.create_dataset(path, data=value)
    assert word in refused(good)


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("node/type", "Conv2d", "its 'node' is no NIRGraph"),
        ("node/nodes", np.arange(3), "the graph has no group 'nodes'"),
        ("node/nodes/lif", np.arange(3), "node 'lif' is no group"),
        ("node/nodes/" + "n" * 1001, None, "a name longer than"),
        ("node/nodes/affine/bias", None, "is no array"),
        ("node/nodes/affine/type", np.arange(1)[0], "is no short text"),
        ("node/edges", None, "'edges' of the graph are no table of names"),
        ("node/edges", np.array(["input", "lif"], dtype=object), "have the shape (2,), expected at most"),
        ("node/edges", np.arange(4).reshape(2, 2), "'edges' of the graph are no texts"),
    ],
)
def test_what_is_of_another_kind_than_nir_has_there(path: str, value: Any, word: str, good: Path) -> None:
    """Would catch a part of a file that is taken for what its name says, whatever it is."""
    with h5py.File(good, "a") as file:
        if path in file:
            del file[path]
        if value is None:
            file.create_group(path)
        elif isinstance(value, np.ndarray) and value.dtype == object:
            file.create_dataset(path, data=value, dtype=h5py.string_dtype())
        else:
            file[path] = value
    assert word in refused(good)


def test_missing_and_unknown_entries_and_edges(good: Path) -> None:
    content = good.read_bytes()
    names = h5py.string_dtype()

    def edges(file: Any, pairs: list[tuple[str, str]]) -> None:
        del file["node/edges"]
        file["node"].create_dataset("edges", data=np.array(pairs, dtype=object), dtype=names)

    usual = [("input", "affine"), ("affine", "lif"), ("lif", "output")]
    for change, word in (
        (lambda f: f["node/nodes/affine"].pop("bias"), "lacks bias"),
        (lambda f: f["node/nodes/affine"].create_dataset("gain", data=1.0), "unknown entries gain"),
        (lambda f: f.pop("node"), "no group 'node'"),
        (lambda f: f["node"].pop("nodes"), "lacks nodes"),
        (lambda f: f["node"].pop("edges"), "lacks edges"),
        (lambda f: edges(f, [*usual, ("lif", "nowhere")]), "no node 'nowhere'"),
        (lambda f: edges(f, [*usual, usual[0]]), "twice"),
        (lambda f: edges(f, usual[1:]), "only Input nodes begin"),
        (lambda f: edges(f, [("input", "a" * 5000)]), "longer than"),
        (lambda f: edges(f, [*usual, ("output", "lif")]), "recurrent"),
        (lambda f: f["node/nodes"].pop("output"), "no node 'output'"),
    ):
        good.write_bytes(content)
        with h5py.File(good, "a") as file:
            change(file)
        assert word in refused(good)


def test_damage_anywhere_is_refused_or_harmless(good: Path) -> None:
    content = good.read_bytes()
    x = torch.rand(2, 2)
    for place in range(0, len(content), max(1, len(content) // 150)):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        good.write_bytes(bytes(changed))
        try:
            loaded = parspike.load(good, T=4)
        except ParspikeError:
            continue
        assert loaded(x).shape == (2, 3)
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        good.write_bytes(content[:size])
        refused(good)
    good.write_text("no HDF5")
    assert "no undamaged HDF5 file" in refused(good)


def test_other_compressions_are_not_looked_for(good: Path) -> None:
    with h5py.File(good, "a") as file:
        node = file["node/nodes/affine"]
        del node["bias"]
        chain = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        chain.set_chunk((3,))
        chain.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((3,))
        h5py.h5d.create(node.id, b"bias", h5py.h5t.IEEE_F32LE, space, chain)
    assert "filter 32001" in refused(good)


# -------------------------------------------------------------------------------------------------------- command line


def test_the_command_line(tmp_path: Path) -> None:
    snn, _ = made("rows")
    snn.save(tmp_path / "net.parspike")
    run = CliRunner().invoke
    source, out = str(tmp_path / "net.parspike"), str(tmp_path / "net.nir")
    done = run(app, ["export", source, out, "--json"])
    answer = json.loads(done.stdout)
    assert done.exit_code == 0
    assert (answer["format"], answer["on_noise"], answer["nodes"]["IF"]) == ("NIR", True, 2)
    assert "exists" in run(app, ["export", source, out]).stderr
    assert "read back and run" in run(app, ["export", source, out, "--force", "--as-convolutions"]).stdout
    assert "format" in run(app, ["export", source, str(tmp_path / "net.pth")]).stderr
    network = parspike.convert(rows().eval(), calibration=NETWORKS["rows"][1], T=T, recipe=Thresholds())
    network.save(tmp_path / "parallel.parspike")
    parallel = str(tmp_path / "parallel.parspike")
    assert "--as-if" in run(app, ["export", parallel, out, "--force"]).stderr
    assert "twin" in run(app, ["export", parallel, out, "--force", "--as-if"]).stdout


def test_the_command_line_knows_the_formats() -> None:
    from parspike.cli.options import EXPORTS

    assert set(EXPORTS) == set(FORMATS)


def test_residual_with_its_maximum_taken_out(tmp_path: Path) -> None:
    """A network of other tests, with batch norms, in-place activations and read-outs."""
    torch.manual_seed(0)
    model = Residual().eval()
    model.pool = nn.AvgPool2d(2)  # pyright: ignore[reportAttributeAccessIssue]
    snn = parspike.convert(model, calibration=X, T=T, neuron=IF(reset="zero"), recipe=Thresholds())
    result = parspike.export(snn, tmp_path / "net.nir", example=X)
    assert result.file.error < 0.02
    counts, output = run_nir(tmp_path / "net.nir", X)
    assert torch.allclose(output, snn(X), atol=0.05 * float(output.abs().max()))
    assert sum(int(count.sum()) for count in counts.values()) == pytest.approx(
        sum(row.spikes for row in result.file.layers), rel=0.01
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_of_every_type_are_written(dtype: torch.dtype, tmp_path: Path) -> None:
    """Would catch inputs of the network's type that are given to the file's, which is float32: an error of torch's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype).eval()
        x = torch.rand(24, 4, dtype=dtype)
    snn = parspike.convert(model, x, T=4, neuron=IF(), recipe="max")
    made = parspike.export(snn, tmp_path / "net.nir", example=x)
    assert made.file.error is not None
    assert made.file.error < 0.05
    assert made.file.samples == 24
