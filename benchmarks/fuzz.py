"""Every reader of files against files that nobody meant: forged, damaged, with right checksums (docs/security.md).

    python benchmarks/fuzz.py --inputs 1000000 --out /tmp/fuzz        # goes on where it stopped
    python benchmarks/fuzz.py --only nir,onnx --seconds 60
    python benchmarks/fuzz.py --again /tmp/fuzz/findings/nir-….bin --only nir      # one input, with its traceback

A reader may read an input or raise a `ParspikeError`. A finding is anything else: another exception, a crash of the
process, more than `CPU` seconds or `ROOM` bytes for one input, and, seen by Python's audit hook, a file opened for
writing, a file read that is not the input, a process started, a socket, a pickle or code that runs. Inputs are made by
the mutators of `fuzz_mutate.py` from small files that parspike and others wrote; an input whose answer (a message
without its names and numbers) was not seen before becomes one that others are made from.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_mutate as mutate
import numpy as np

CPU = 10
"""Seconds of the processor that one input may take."""
ROOM = 1 << 30
"""Bytes that one input may ask for, beyond what the process has; arrays of a NIR file may claim a GiB by themselves."""
SLICE = 40.0
"""Seconds for which one reader is tried before the next."""
KEPT = 400
"""Inputs of one reader from which others are made."""


@dataclass(frozen=True)
class Target:
    """A reader. name: of the file that it is given. seeds: files to begin with. change: a mutator. read: the reader,
    and what its user does next. share: of the time of the campaign. room: bytes for one input."""

    name: str
    seeds: Callable[[], Iterable[bytes]]
    change: Callable[[random.Random, bytes], bytes]
    read: Callable[[Path], Any]
    share: float = 1.0
    room: int = ROOM


# ----------------------------------------------------------------------------------------------------------- seeds


def networks() -> list[Any]:
    """Small converted networks of every kind of neuron and of several kinds of layers."""
    import torch
    from torch import nn

    import parspike

    torch.manual_seed(0)
    x, rows = torch.randn(4, 2, 6, 6), torch.randn(8, 4)
    conv = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)
    ).eval()
    flat = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    clamp = nn.Sequential(nn.Linear(4, 3), nn.Hardtanh(), nn.Linear(3, 2)).eval()
    quantised = nn.Sequential(nn.Linear(4, 3), parspike.QCFS(4, 1.0), nn.Linear(3, 2)).eval()

    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.conv(x).relu()
            y = nn.functional.interpolate(y, scale_factor=2.0) + torch.zeros(y.shape[0], 3, 1, 1)
            return {"out": self.head(y.flatten(2).mean(2).reshape(x.shape[0], -1))}

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.table, self.last = nn.Linear(4, 3), nn.Embedding(5, 2), nn.Linear(8, 2)
            for number in range(4):
                self.register_buffer(f"at{number}", torch.tensor([0, 2]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: Any = self.first(x).relu()
            seen = [y.index_select(1, self.at0), y[:, self.at1], y.gather(1, self.at2.expand(x.shape[0], 2))]
            return self.last(torch.cat([*seen, self.table(self.at3)[:1].expand(x.shape[0], 2)], 1))

    gates = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)).eval()
    return [
        parspike.convert(conv, x, T=4),
        parspike.convert(flat, rows, T=4, neuron=parspike.IF()),
        parspike.convert(flat, rows, T=4, neuron=parspike.LIF(0.9)),
        parspike.convert(clamp, rows, T=4, code="weighted"),
        parspike.convert(quantised, T=4, example=rows),
        parspike.convert(Free().eval(), x, T=3),
        parspike.convert(gates, rows, T=4),
        parspike.convert(Chosen().eval(), rows, T=4),
    ]


def made(snns: Iterable[Any], suffix: str, write: Callable[[Any, Path], Any]) -> Iterable[bytes]:
    """What `write` writes for each network that it can write."""
    import tempfile

    from parspike.errors import ParspikeError

    for snn in snns:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"file{suffix}"
            try:
                write(snn, path)
            except ParspikeError:
                continue
            yield path.read_bytes()


def parspike_files() -> Iterable[bytes]:
    return made(networks(), ".parspike", lambda snn, path: snn.save(path))


def nir_files() -> Iterable[bytes]:
    import nir
    import torch

    import parspike

    rows = torch.randn(4, 4)
    yield from made(networks()[1:3], ".nir", lambda snn, path: parspike.export(snn, path, example=rows))
    pair = {"tau_mem": np.full(3, 1e-2), "tau_syn": np.full(3, 5e-3), "r": np.ones(3), "v_leak": np.zeros(3)}
    theta = {"v_threshold": np.ones(3), "v_reset": np.zeros(3)}
    li = {"tau": np.full(3, 1e-2), "r": np.ones(3), "v_leak": np.zeros(3)}
    conv = nir.Conv2d((4, 4), np.ones((3, 1, 3, 3), np.float32), 1, 1, 1, 1, np.zeros(3, np.float32))
    nets = [
        [nir.Affine(np.ones((3, 4), np.float32), np.zeros(3, np.float32)), nir.CubaLIF(**pair, **theta), nir.LI(**li)],
        [nir.Linear(np.ones((3, 4), np.float32)), nir.LIF(**li, **theta), nir.Scale(np.ones(3)), nir.I(np.ones(3))],
        [
            conv,
            nir.IF(np.ones((3, 4, 4)), np.ones((3, 4, 4))),
            nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
            nir.Flatten({"input": np.array([3, 2, 2])}, 0, -1),
            nir.Threshold(np.ones(12)),
        ],
    ]
    for nodes in nets:
        graph = nir.NIRGraph.from_list(nir.Input(nodes[0].input_type["input"]), *nodes, type_check=False)
        stream = io.BytesIO()
        nir.write(stream, graph)
        yield stream.getvalue()


def onnx_files() -> Iterable[bytes]:
    from onnx import helper, numpy_helper

    node, arrays = helper.make_node, numpy_helper.from_array
    f4 = np.float32

    def file(nodes: list[Any], constants: dict[str, Any], shape: list[Any], functions: list[Any] = ()) -> bytes:
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", 1, shape)],
            [helper.make_tensor_value_info("y", 1, None)],
            [arrays(value, name) for name, value in constants.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions).SerializeToString()

    yield file(
        [
            node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
            node("Relu", ["c"], ["r"]),
            node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "v", "d"], ["y"], transB=1),
        ],
        {"w": np.ones((3, 2, 3, 3), f4), "b": np.zeros(3, f4), "v": np.ones((2, 27), f4), "d": np.zeros(2, f4)},
        ["n", 2, 6, 6],
    )
    yield file(
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "zero"], ["n"]),
            node("Unsqueeze", ["n", "ax"], ["n1"]),
            node("Concat", ["n1", "rest"], ["t"], axis=0),
            node("Reshape", ["x", "t"], ["m"]),
            node("ConstantOfShape", ["two"], ["k"], value=helper.make_tensor("v", 1, [1], [0.5])),
            node("Add", ["m", "k"], ["a"]),
            node("Range", ["zero", "eight", "one"], ["g"]),
            node("Cast", ["g"], ["gf"], to=1),
            node("Expand", ["gf", "shape"], ["e"]),
            node("Tile", ["e", "reps"], ["tile"]),
            node("ReduceSum", ["tile"], ["sum"], keepdims=0),
            node("Mul", ["a", "sum"], ["z"]),
            node("Relu", ["z"], ["y"]),
        ],
        {
            "zero": np.array(0),
            "one": np.array(1),
            "eight": np.array(8),
            "ax": np.array([0]),
            "rest": np.array([8]),
            "two": np.array([1, 8]),
            "shape": np.array([2, 8]),
            "reps": np.array([2, 2]),
        },
        ["n", 2, 4],
    )
    yes = helper.make_graph(
        [node("Mul", ["x", "k"], ["i"])],
        "yes",
        [],
        [helper.make_tensor_value_info("i", 1, None)],
        [arrays(np.array([2.0], f4), "k")],
    )
    no = helper.make_graph([node("Identity", ["x"], ["j"])], "no", [], [helper.make_tensor_value_info("j", 1, None)])
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    yield file(
        [
            node("If", ["c"], ["a"], then_branch=yes, else_branch=no),
            node("Twice", ["a"], ["h"], domain="own"),
            node("Pad", ["h", "pads"], ["p"], mode="constant"),
            node("Slice", ["p", "st", "en", "axes"], ["q"]),
            node("LayerNormalization", ["q", "g", "b"], ["l"]),
            node("Sigmoid", ["l"], ["y"]),
        ],
        {
            "c": np.array(True),
            "pads": np.array([0, 1, 0, 1]),
            "st": np.array([1]),
            "en": np.array([5]),
            "axes": np.array([1]),
            "g": np.ones(4, f4),
            "b": np.zeros(4, f4),
        },
        ["n", 4],
        [twice],
    )
    yield file(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            node("Resize", ["d", "", "sc"], ["u"], mode="nearest"),
            node("GlobalAveragePool", ["u"], ["g"]),
            node("Transpose", ["g"], ["t"], perm=[0, 2, 3, 1]),
            node("Squeeze", ["t", "axes"], ["v"]),
            node("MatMul", ["v", "w"], ["y"]),
        ],
        {
            "s": np.array(0.1, f4),
            "z": np.array(0, np.uint8),
            "sc": np.array([1, 1, 2, 2], f4),
            "axes": np.array([1, 2]),
            "w": np.ones((2, 3), f4),
        },
        [1, 2, 4, 4],
    )


def spike_files(suffix: str, form: str | None = None) -> Callable[[], Iterable[bytes]]:
    def run() -> Iterable[bytes]:
        import torch

        from parspike import write_spikes

        snns = networks()
        for snn, x in ((snns[0], torch.randn(3, 2, 6, 6)), (snns[1], torch.randn(3, 4)), (snns[3], torch.randn(3, 4))):
            how: Any = {"form": form}
            yield from made([snn], suffix, lambda snn, path, x=x, how=how: write_spikes(snn, x.split(2), path, **how))

    return run


def images() -> Iterable[bytes]:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    for mode in ("RGB", "L", "P", "RGBA", "1"):
        for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP"):
            stream = io.BytesIO()
            with contextlib.suppress(OSError):
                Image.fromarray(pixels).convert(mode).save(stream, kind)
                yield stream.getvalue()


def image_zips() -> Iterable[bytes]:
    few = list(images())[:3]
    for folders in (("a", "b"), ("train/a", "test/a"), ("", "")):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for number, content in enumerate(few):
                archive.writestr(f"{folders[number % 2]}/{number}.png".lstrip("/"), content)
        yield stream.getvalue()


def image_arrays() -> Iterable[bytes]:
    rng = np.random.default_rng(0)
    y = np.arange(4) % 2
    for arrays in (
        {"images": rng.integers(0, 255, (4, 8, 8), np.uint8), "labels": y},
        {"x": rng.random((4, 5), np.float32), "y": y},
        {
            "train_images": rng.integers(0, 255, (4, 8, 8, 3), np.uint8),
            "train_labels": y,
            "test_images": rng.integers(0, 255, (4, 8, 8, 3), np.uint8),
        },
        {"images": rng.integers(0, 9, (4, 6))},
    ):
        for save in (np.savez, np.savez_compressed):
            stream = io.BytesIO()
            save(stream, **arrays)
            yield stream.getvalue()


def factory() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).eval()


def state_dicts() -> Iterable[bytes]:
    import torch

    for state in (factory().state_dict(), {"state_dict": factory().state_dict(), "epoch": 3}):
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(state, stream, _use_new_zipfile_serialization=zipped)
            yield stream.getvalue()


def safetensors() -> Iterable[bytes]:
    from safetensors.torch import save

    yield save(factory().state_dict())


def package_files(*patterns: str) -> Callable[[], Iterable[bytes]]:
    def run() -> Iterable[bytes]:
        import parspike

        home = Path(parspike.__file__).parent
        for pattern in patterns:
            yield from (path.read_bytes() for path in sorted(home.glob(pattern)) if path.stat().st_size < 20_000)

    return run


BENCH = b"""T = [2, 4]
methods = ["closed-form", "max-norm", "short"]
seeds = [0, 1]
about = "a bench"
[networks.a]
spec = "a.py:make"
data = "digits"
calibration_images = 16
mean = [0.5]
[method.short]
recipe = {name = "reconstruct", steps = 4}
neurons = ["sorted", "if"]
[[published]]
network = "a"
method = "max-norm"
T = 4
accuracy = 90.5
source = "a paper"
"""
ENERGY = b"""ac = 0.9
mac = 4.6
memory = [[8, 10.0], [inf, 1300.0]]
name = "mine"
weight_bits = 8
"""


def bench_lines() -> Iterable[bytes]:
    cell = {"network": "a", "method": "max-norm", "recipe": {"name": "max-norm"}, "neuron": "sorted", "T": 2, "seed": 0}
    figures = {
        "accuracy": 93.0,
        "agreement": 95.0,
        "error": 21.0,
        "network_accuracy": 96.0,
        "steps": 2,
        "levels": 2,
        "bits": 2.0,
        "spikes": 0.5,
        "synops": 31390.7,
        "macs": 5808.0,
        "energy_pj": 5.4,
        "network_macs": 56016.0,
        "network_energy_pj": 2.5,
        "fit_seconds": 10.5,
        "fit_memory_mib": 14.1,
        "ratio": 12.3,
        "images": 360,
        "seconds_in_all": 96.1,
    }
    lines = [
        {"parspike-bench": 1, "bench": "file", "version": "0.1.0"},
        {"network": "a", "data": {"data": "digits"}},
        {"cell": cell, **figures},
        {"cell": {**cell, "T": 4, "seed": 1}, **figures},
        {"cell": {**cell, "T": 4}, "left_out": "a reason"},
        {"quantised": {"network": "a", "levels": 2, "seed": 0}, "accuracy": 90.0, "error": 3.0},
    ]
    yield ("\n".join(map(json.dumps, lines)) + "\n").encode()


def weights_json() -> Iterable[bytes]:
    from parspike.train import load_recipe

    recipe = load_recipe("digits")
    yield json.dumps({"recipe": recipe.to_json(), "seed": 0, "accuracy": 98.0, "step": 10, "seconds": 2}).encode()


# ----------------------------------------------------------------------------------------------------------- readers


def small(sizes: Iterable[Any]) -> bool:
    """Whether shapes are so small that running them is no matter of memory."""
    total = 0
    for shape in sizes:
        numbers = [int(n) for n in shape]
        if any(n > 1 << 12 for n in numbers):
            return False
        total += int(np.prod(numbers or [1], dtype=object))
    return total < 1 << 16


def read_network(path: Path) -> None:
    """Load, show, look up how its images were prepared, and run where nothing in it is large."""
    import torch

    import parspike
    from parspike.cli.preprocess import remembered
    from parspike.errors import OptionError
    from parspike.graph import Size

    try:
        snn = parspike.load(path)
    except OptionError:
        snn = parspike.load(path, T=4)  # a NIR file that does not say
    repr(snn)
    remembered(snn)
    sizes = {**snn.graph.example, "batch": 2}

    def shape(dims: Iterable[Any]) -> list[int]:
        return [dim(sizes) if isinstance(dim, Size) else int(dim) for dim in dims]

    every = [shape(one.shape) for one in (*snn.graph.inputs, *snn.graph.nodes)]
    if snn.T <= 64 and small(every):
        x = [torch.zeros(shape(i.shape), dtype=i.dtype) for i in snn.graph.inputs]
        names = snn.graph.signature[1]
        with torch.no_grad():
            snn.run(*x[: len(x) - len(names)], **dict(zip(names, x[len(x) - len(names) :], strict=True)))


def read_onnx(path: Path) -> None:
    import parspike

    network: Any = parspike.from_onnx(path)
    repr(network)
    every = [[2, *(n for n in (given.shape or ())[1:] if isinstance(n, int))] for given in network.given]
    if small(every):
        x = network.example(2)
        if path.stat().st_size % 16 == 0:  # planning takes a hundred times as long as reading
            with contextlib.suppress(parspike.errors.InputError):  # a network may ask for any size when it runs
                str(parspike.plan(network, x))


def read_spikes(path: Path) -> None:
    import parspike

    spikes = parspike.read_spikes(path)
    repr(spikes)
    spikes.summary()
    for number, layer in enumerate(spikes.layers):
        if layer.count("\n") == 0 and number < 3:
            spikes.amplitudes(layer)
            spikes.rest(layer)
            with contextlib.suppress(parspike.errors.OptionError):
                spikes.raster(layer)
    list(spikes.events())


def through(path: Path) -> None:
    """Images through the command line's reader."""
    from parspike.cli.images import open_images

    for _ in open_images(str(path), prefer="test"):
        pass


def read_image(path: Path) -> None:
    from parspike.cli.images import Images
    from parspike.cli.sources import FileSource

    for _ in Images(FileSource(path.parent, [path.name], [0])):
        pass


def read_weights(path: Path) -> None:
    from parspike.cli.spec import set_state

    set_state(factory(), "net.py:make", str(path))


def read_bench(path: Path) -> None:
    from parspike import Bench

    bench = Bench.read(path)
    if len(bench.T) * len(bench.seeds) * len(bench.methods) < 1000:
        list(bench.cells())


def read_lines(path: Path) -> None:
    from parspike import Bench, Benched

    benched = Benched.read(Bench.from_toml(BENCH.decode(), "file.toml"), path)
    str(benched)
    for table in ("kinds", "training-free", "cells", "levels"):
        str(benched.table(table))
    list(benched.rows)


def read_recipe(path: Path) -> None:
    from parspike.train import load_recipe

    load_recipe(path)


def read_energy(path: Path) -> None:
    from parspike import Energy

    Energy.named(str(path))


def read_trained(path: Path) -> None:
    from safetensors.torch import save_file

    from parspike.train import load_recipe, load_trained, make_network

    weights = path.with_suffix(".safetensors")
    if not weights.exists():
        armed, ALLOWED.armed = ALLOWED.armed, False
        save_file(make_network(load_recipe("digits")).state_dict(), weights)
        ALLOWED.armed = armed
    load_trained(weights)


def pickled(rng: random.Random, name: str, content: bytes) -> bytes:
    return mutate.change_bytes(rng, content)


def member(rng: random.Random, name: str, content: bytes) -> bytes:
    if name.endswith(".json"):
        return mutate.change_json(rng, content)
    return mutate.change_npy(rng, content) if name.endswith(".npy") else mutate.change_image(rng, content)


TARGETS = {
    "parspike": Target("net.parspike", parspike_files, mutate.change_parspike, read_network, 2.0),
    "nir": Target("net.nir", nir_files, mutate.change_hdf5, read_network, 2.0, 5 << 30),
    "onnx": Target("net.onnx", onnx_files, mutate.change_onnx, read_onnx, 2.0),
    "spikes-npz": Target("s.npz", spike_files(".npz"), mutate.change_zip(member), read_spikes),
    "spikes-events": Target("s.npz", spike_files(".npz", "events"), mutate.change_zip(member), read_spikes),
    "spikes-h5": Target("s.h5", spike_files(".h5"), mutate.change_hdf5, read_spikes),
    "spikes-text": Target("s.aedat.txt", spike_files(".aedat.txt"), mutate.change_lines, read_spikes),
    "images": Target("a.png", images, mutate.change_image, read_image, 1.0, 4 << 30),
    "images-zip": Target("a.zip", image_zips, mutate.change_zip(member), through, 1.0, 4 << 30),
    "images-npz": Target("a.npz", image_arrays, mutate.change_zip(member), through),
    "weights": Target("w.safetensors", safetensors, mutate.change_safetensors, read_weights),
    "weights-pt": Target("w.pt", state_dicts, mutate.change_zip(pickled), read_weights),
    "bench": Target("file.toml", lambda: [BENCH], mutate.change_toml, read_bench),
    "bench-lines": Target("file.jsonl", bench_lines, mutate.change_lines, read_lines),
    "recipe": Target("recipe.toml", package_files("train/recipes/*.toml"), mutate.change_toml, read_recipe),
    "energy": Target("energy.toml", lambda: [ENERGY], mutate.change_toml, read_energy, 0.5),
    "trained": Target("weights.json", weights_json, mutate.change_json, read_trained, 0.5),
}


# ------------------------------------------------------------------------------------------------------------ worker


class Hang(BaseException):
    """An input took more than `CPU` seconds."""


class _Allowed:
    """What the audit hook lets pass while an input is read."""

    def __init__(self) -> None:
        self.armed, self.folder, self.seen = False, "", []
        self.libraries = tuple(
            {os.path.realpath(p) for p in sys.path if p} | {sys.prefix, sys.base_prefix, "/usr/lib", "/proc", "/sys"}
        )

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open" and isinstance(args[0], (str, bytes)):
            name = os.path.realpath(os.fsdecode(args[0]))
            mode, flags = args[1] if isinstance(args[1], str) else "", args[2] or 0
            writes = bool(set(mode) & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR))
            if writes or not name.startswith((self.folder, *self.libraries)):
                self.seen.append(f"open {name} {args[1]}")
        elif event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "os.fork",
            "socket.connect",
            "pickle.find_class",
            "os.remove",
            "os.rename",
            "os.rmdir",
            "shutil.rmtree",
            "os.mkdir",
            "ctypes.dlopen",
        ):
            self.seen.append(f"{event} {str(args)[:200]}")


ALLOWED = _Allowed()


def memory() -> int:
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def told(error: BaseException) -> str:
    """A finding by its kind and place, so that the same one is kept once."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "parspike" in f.filename and "fuzz" not in f.filename] or frames[-1:]
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].name}:{ours[-1].lineno}"


def shape_of(text: str) -> str:
    """A message without what changes from input to input."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|-?\d[\d.e+,]*|\([^()]*\)|\[[^\[\]]*\]", "#", text)[:100]


def attempt(target: Target, path: Path, data: bytes) -> tuple[str, str]:
    """Read one input. Returns a finding, or "", and the answer in short."""
    from parspike.errors import ParspikeError

    path.write_bytes(data)
    ALLOWED.seen, ALLOWED.folder = [], os.path.realpath(path.parent)
    signal.setitimer(signal.ITIMER_PROF, CPU)
    finding, answer = "", "read"
    try:
        ALLOWED.armed = True
        target.read(path)
    except ParspikeError as error:
        answer = f"{type(error).__name__}: {shape_of(str(error).replace(str(path), ''))}"
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError) or "can't allocate memory" in str(cause):
                finding = f"memory, {told(cause)}"
            cause = cause.__cause__ or cause.__context__
        if len(str(error)) > 5000:
            finding = f"message of {len(str(error)) // 1000} kB, {told(error)}"
    except Hang as error:
        finding = f"hang, {told(error)}"
    except Exception as error:  # noqa: BLE001 (this is what is looked for)
        finding = told(error)
    finally:
        ALLOWED.armed = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    if ALLOWED.seen:
        finding = f"audit: {ALLOWED.seen[0]}"
    return finding, answer


def worker(name: str, out: Path, scratch: Path, seconds: float, most: int, seed: int) -> None:
    """Try one reader for some seconds; the current input lies in `scratch`, so that a crash is not lost."""
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"
    import torch

    torch.set_num_threads(1)
    target, rng = TARGETS[name], random.Random(seed)
    path = scratch / "in" / target.name
    path.parent.mkdir(parents=True, exist_ok=True)
    store = out / "corpus" / name
    store.mkdir(parents=True, exist_ok=True)
    if not any(store.iterdir()):
        for number, data in enumerate(target.seeds()):
            (store / f"seed-{number:03d}").write_bytes(data)
    seeds = [p.read_bytes() for p in sorted(store.glob("seed-*"))]
    corpus = [p.read_bytes() for p in sorted(store.glob("new-*"))]
    known = (
        set(json.loads((out / "answers.json").read_text()).get(name, [])) if (out / "answers.json").exists() else set()
    )
    for data in seeds:  # also imports what is imported late
        with contextlib.suppress(Exception):
            path.write_bytes(data)
            target.read(path)
    sys.addaudithook(ALLOWED)

    def hang(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, hang)
    limit = memory() + target.room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for data in seeds:
        if finding := attempt(target, path, data)[0]:
            print(json.dumps({"finding": f"SEED {finding}", "file": ""}), flush=True)
    begin, count, answers = time.monotonic(), 0, collections.Counter()
    while time.monotonic() - begin < seconds and count < most:
        base = rng.choice(corpus) if corpus and rng.random() < 0.5 else rng.choice(seeds)
        try:
            data = target.change(rng, base)
        except Hang:
            raise
        except Exception:  # noqa: BLE001 (a base that no longer has the structure that the mutator knows)
            data = mutate.change_bytes(rng, base)
        if len(data) > 1 << 20:
            continue
        count += 1
        finding, answer = attempt(target, path, data)
        answers["read" if answer == "read" else "refused" if not finding else "finding"] += 1
        if finding:
            short = hashlib.sha256(finding.encode()).hexdigest()[:10]
            file = out / "findings" / f"{name}-{short}.bin"
            if not file.exists():
                file.write_bytes(data)
            print(json.dumps({"finding": finding, "file": file.name}), flush=True)
        elif answer not in known:
            known.add(answer)
            if len(corpus) < KEPT and len(data) < 1 << 16:
                corpus.append(data)
                (store / f"new-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
        if count % 200 == 0:
            print(json.dumps({"count": count}), flush=True)
    print(
        json.dumps({"count": count, "answers": answers, "known": sorted(known), "seconds": time.monotonic() - begin}),
        flush=True,
    )


# -------------------------------------------------------------------------------------------------------- supervisor


def campaign(names: list[str], out: Path, inputs: int, seconds: float, seed: int) -> None:
    """Readers in turn, each in a process of its own, until the inputs or the time are through."""
    (out / "findings").mkdir(parents=True, exist_ok=True)
    state_file = out / "state.json"
    state = json.loads(state_file.read_text()) if state_file.exists() else {"counts": {}, "findings": {}, "turns": 0}
    begin = time.monotonic()
    while sum(state["counts"].values()) < inputs and time.monotonic() - begin < seconds:
        name = names[state["turns"] % len(names)]
        state["turns"] += 1
        scratch = Path(f"/dev/shm/parspike-fuzz-{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        command = [
            sys.executable,
            __file__,
            "--worker",
            name,
            "--out",
            str(out),
            "--scratch",
            str(scratch),
            "--seconds",
            str(SLICE * TARGETS[name].share),
            "--seed",
            str(1_000_000 * seed + state["turns"]),
        ]
        counted, done = run(command, name, out, scratch, state)
        one = state["counts"].get(name, 0)
        state["counts"][name] = one + counted
        shutil.rmtree(scratch, ignore_errors=True)
        if done:
            answers = out / "answers.json"
            every = json.loads(answers.read_text()) if answers.exists() else {}
            every[name] = done["known"]
            answers.write_text(json.dumps(every))
            table = state.setdefault("answers", {}).setdefault(name, {})
            for kind, number in done["answers"].items():
                table[kind] = table.get(kind, 0) + number
            state.setdefault("seconds", {})
            state["seconds"][name] = state["seconds"].get(name, 0) + done["seconds"]
        state_file.write_text(json.dumps(state, indent=1))
        print(
            f"{time.strftime('%H:%M:%S')} {name}: {counted} inputs, {sum(state['counts'].values()):,} in all, "
            f"{len(state['findings'])} findings",
            flush=True,
        )


def run(command: list[str], name: str, out: Path, scratch: Path, state: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """One worker: how many inputs it tried, and its last words."""
    counted, done = 0, {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(out / "stderr.txt").open("w"), text=True) as process:
        import threading

        def watch() -> None:
            """Kill a worker that hangs in code that no signal of Python interrupts."""
            path, before, spent = scratch / "in" / TARGETS[name].name, None, 0.0
            while process.poll() is None:
                time.sleep(1)
                with contextlib.suppress(OSError, IndexError, ValueError):
                    stat = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
                    now, used = path.stat().st_mtime_ns, (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
                    if now != before:
                        before, spent = now, used
                    elif used - spent > 3 * CPU + 20:
                        process.kill()

        threading.Thread(target=watch, daemon=True).start()
        for line in process.stdout or ():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            counted = said.get("count", counted)
            done = said if "answers" in said else done
            if "finding" in said:
                key = f"{name}: {said['finding']}"
                one = state["findings"].setdefault(key, {"file": said["file"], "times": 0})
                one["times"] += 1
                if one["times"] == 1:
                    print(f"FINDING {key}  {said['file']}", flush=True)
    if process.returncode:
        current = scratch / "in" / TARGETS[name].name
        kind = signal.Signals(-process.returncode).name if process.returncode < 0 else f"exit {process.returncode}"
        data = current.read_bytes() if current.exists() else b""
        file = out / "findings" / f"{name}-{kind}-{hashlib.sha256(data).hexdigest()[:8]}.bin"
        file.write_bytes(data)
        (file.with_suffix(".txt")).write_text((out / "stderr.txt").read_text()[-5000:])
        key = f"{name}: process ended with {kind}"
        state["findings"].setdefault(key, {"file": file.name, "times": 0})["times"] += 1
        print(f"FINDING {key}  {file.name}", flush=True)
    return counted, done


def again(name: str, file: Path) -> None:
    """One input with its traceback."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / TARGETS[name].name
        path.write_bytes(file.read_bytes())
        TARGETS[name].read(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--only", default=",".join(TARGETS), help="readers, with commas")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--again", type=Path, help="read one input again and show the traceback")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help="of the inputs: another one gives others")
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.out, given.scratch, given.seconds, 10**9, given.seed)
    elif given.again:
        again(given.only, given.again)
    else:
        campaign(given.only.split(","), given.out, given.inputs, given.seconds, given.seed)


if __name__ == "__main__":
    main()
