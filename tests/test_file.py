"""The `.parspike` file: round trip, the format in bytes (docs/format.md), and everything it refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import resource
import struct
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import parspike
from parspike import file
from parspike.errors import FileError, InputError
from parspike.graph import Role
from parspike.graph.ir import CONDITIONS, SIZE_OPERATIONS
from parspike.neurons.layer import CODES, KINDS

# ------------------------------------------------------------------------------------------------ networks


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.max_pool2d(F.relu(x + self.conv(x)), 2)
        return self.head(x.mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        hidden = self.left(x).relu() + F.hardtanh(self.right(y)) + torch.zeros(x.shape[0], 4, device=x.device)
        return {"logits": self.head(hidden), "parts": [hidden, (x, None)]}


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def quantised() -> nn.Module:
    convolution = nn.Conv2d(2, 4, 3)
    return nn.Sequential(convolution, parspike.QCFS(4, 1.0), nn.Flatten(), nn.Linear(64, 3)).eval()


def converted(kind: str, seed: int = 0) -> tuple[parspike.SNN, tuple[tuple[Any, ...], dict[str, Any]]]:
    """A small network of each kind and a batch for it."""
    torch.manual_seed(seed)
    images, rows = torch.randn(8, 2, 6, 6), torch.randn(16, 4)
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    if kind == "residual":
        return parspike.convert(Residual().eval(), images, T=8), ((images,), {})
    if kind == "linear":
        return parspike.convert(linear(), rows, T=8), ((rows,), {})
    if kind == "qcfs, T = levels":
        return parspike.convert(quantised(), T=4, example=images), ((images,), {})
    if kind == "qcfs, T ≠ levels":
        return parspike.convert(quantised(), images, T=7), ((images,), {})
    if kind == "kept":
        kept = {"stem.*": parspike.Keep()}
        return parspike.convert(Residual().eval(), images, T=8, layers=kept), ((images,), {})
    if kind == "two inputs":
        example = (x, y)
        return parspike.convert(TwoInputs().eval(), [example], T=8, example=example), ((x, y), {})
    if kind == "keyword inputs":
        example = {"x": x, "y": y}
        return parspike.convert(TwoInputs().eval(), [example], T=8, example=example), ((), example)
    if kind in ("weighted", "onset"):
        model = nn.Sequential(nn.Linear(4, 6), nn.Hardtanh(), nn.Linear(6, 3)).eval()
        return parspike.convert(model, rows, T=4, code=kind), ((rows,), {})
    if kind == "staircase":
        return parspike.convert(nn.Sequential(nn.Linear(4, 6), nn.Sigmoid()).eval(), rows, T=4), ((rows,), {})
    if kind == "double":
        return parspike.convert(linear().double(), rows.double(), T=8), ((rows.double(),), {})
    if kind == "half":
        return parspike.convert(linear().half(), rows.half(), T=8), ((rows.half(),), {})
    assert kind == "no neuron"
    return parspike.convert(nn.Linear(4, 2).eval(), rows, T=8), ((rows,), {})


NETWORKS = ["residual", "linear", "qcfs, T = levels", "qcfs, T ≠ levels", "kept", "two inputs", "keyword inputs",
         "double", "half", "no neuron", "weighted", "onset", *({"staircase"} & set(KINDS))]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of many parts: convolution, batch norm, residual, max-pool."""
    return converted("residual")[0].save(tmp_path_factory.mktemp("file") / "net.parspike")


# ------------------------------------------------- a stranger's reader and writer, after docs/format.md alone

NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
         "U8": "u1", "BOOL": "?"}  # fmt: skip


def read(path: Path, version: str = "2") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The network's JSON and the tensors of a file whose checksum is right."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert content[55:119].decode() == metadata["sha256"]
    blank = content[:55] + b"0" * 64 + content[119:]
    assert hashlib.sha256(blank).hexdigest() == metadata["sha256"]
    assert (metadata["format"], metadata["version"]) == ("parspike", version)
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        raw = content[8 + length + start : 8 + length + stop]
        tensors[name] = np.frombuffer(raw, NUMPY[entry["dtype"]]).reshape(entry["shape"])
    return json.loads(metadata["network"]), tensors


def write(path: Path, network: str, tensors: dict[str, np.ndarray], **more: Any) -> Path:
    """A file with a right checksum."""
    names = {np.dtype(value): key for key, value in NUMPY.items()}
    header: dict[str, Any] = {
        "__metadata__": {"format": "parspike", "sha256": "0" * 64, "version": "2", "network": network, **more}
    }
    data = b""
    for name, array in tensors.items():
        raw = array.tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": span}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = struct.pack("<Q", len(text)) + text + data
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content[:55] + digest + content[119:])
    return path


def test_a_stranger_reads_tensors_and_checksum(tmp_path: Path) -> None:
    snn, _ = converted("residual")
    body, tensors = read(snn.save(tmp_path / "net.parspike"))
    ours = {f"synapses.{name}": tensor for name, tensor in snn.tensors().items()}
    for name, neuron in snn.neurons().items():
        ours |= {f"neurons.{name}.{key}": tensor for key, tensor in neuron.named_parameters()}
    assert set(tensors) == set(ours)
    for name, tensor in ours.items():
        assert np.array_equal(tensors[name], tensor.numpy())
    assert set(body) == {"T", "graph", "neurons", "provenance"}
    assert body["T"] == 8
    assert [node["name"] for node in body["graph"]["nodes"]] == [node.name for node in snn.graph.nodes]
    assert body["neurons"] == {name: neuron.config() for name, neuron in snn.neurons().items()}
    assert body["provenance"] == snn.provenance


def test_a_stranger_writes_what_load_reads(saved: Path, tmp_path: Path) -> None:
    body, tensors = read(saved)
    copy = parspike.load(write(tmp_path / "copy.parspike", json.dumps(body), tensors))
    x = torch.randn(5, 2, 6, 6)
    assert torch.equal(copy(x), parspike.load(saved)(x))


def test_safetensors_reads_it_too(saved: Path) -> None:
    _, tensors = read(saved)
    with safe_open(saved, framework="np") as content:
        assert content.metadata()["format"] == "parspike"
        assert {name: content.get_tensor(name).shape for name in content.keys()} == {  # noqa: SIM118
            name: array.shape for name, array in tensors.items()
        }


def test_the_page_names_everything_that_a_file_may_hold() -> None:
    page = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    words = set(re.findall(r"[\w%*/+.=≠<>≤≥-]+", page))
    assert {f"torch.{word}" for word in words} >= set(file.CONSTANTS)
    assert words >= {*file.DTYPES.values(), *SIZE_OPERATIONS, *CONDITIONS, *KINDS, *CODES}
    assert f"# The `.parspike` format, version {file.VERSION}" in page


# ---------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("kind", NETWORKS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    snn, (args, kwargs) = converted(kind)
    path = snn.save(tmp_path / "net.parspike")
    random = torch.get_rng_state()
    copy = parspike.load(path)
    assert torch.equal(torch.get_rng_state(), random)
    assert (copy.T, copy.provenance, copy.training) == (snn.T, snn.provenance, False)
    assert repr(copy) == repr(snn)
    for engine in ("count", "parallel", "serial-if"):
        ours = snn.run(*args, engine=engine, record=True, **kwargs)
        theirs = copy.run(*args, engine=engine, record=True, **kwargs)
        flat, spec = pytree.tree_flatten(ours.logits)
        other, other_spec = pytree.tree_flatten(theirs.logits)
        assert spec == other_spec
        assert all(a is b or torch.equal(a, b) for a, b in zip(flat, other, strict=True))
        assert list(ours.counts) == list(theirs.counts)
        assert all(torch.equal(ours.counts[layer], theirs.counts[layer]) for layer in ours.counts)
    assert copy.save(tmp_path / "again.parspike").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["residual", "qcfs, T ≠ levels", "keyword inputs"])
def test_one_seed_one_file(kind: str, tmp_path: Path) -> None:
    files = [converted(kind)[0].save(tmp_path / name).read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert files[0] != converted(kind, seed=1)[0].save(tmp_path / "three").read_bytes()


def test_the_file_does_not_depend_on_the_process(tmp_path: Path) -> None:
    path = tmp_path / "theirs.parspike"
    code = f"import test_file; test_file.converted('linear')[0].save({str(path)!r})"
    folders = f"{Path(parspike.__file__).parents[1]}{os.pathsep}{Path(__file__).parent}"
    env = {**os.environ, "PYTHONPATH": folders, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    ours = converted("linear")[0].save(tmp_path / "ours.parspike")
    assert path.read_bytes() == ours.read_bytes()


# ------------------------------------------------------------------------------- damage that no one intended


def refused(path: Path) -> str:
    """The message of the one error that load may raise; it names the file."""
    with pytest.raises(FileError) as error:
        parspike.load(path)
    assert type(error.value) is FileError
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


def buckets(distance: Tensor) -> Tensor:
    """Distances as T5 counts them: near ones one by one, far ones by their logarithm."""
    far = 2 + ((distance.abs().float() / 2).log() * 1.5).to(torch.int64)
    return torch.where(distance.abs() < 2, distance.abs(), torch.minimum(far, torch.full_like(far, 5)))


class Distances(nn.Module):
    """A table looked up by distances, which are of the places alone, or of whole numbers that an item gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.row, self.out = nn.Embedding(6, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        places = torch.arange(x.shape[1])[None] if at is None else at
        near = self.table(buckets(places[:, None] - places[:, :, None]))
        return self.out((self.row(x).relu()[:, None] * near).sum(2))


class Filter(nn.Module):
    """Rows filtered by a complex weight on their Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.row, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.row(x).relu())
        kept = torch.zeros(*spectrum.shape, dtype=torch.cfloat)
        kept[..., :4] = (spectrum * self.weight)[..., :4]
        return self.out(torch.fft.irfft(kept, n=8))


@pytest.mark.parametrize(
    ("model", "more"),
    [(Filter(), {}), (Distances(), {}), (Distances(), {"at": torch.arange(112).reshape(16, 7) * 5 % 9})],
    ids=["complex", "places", "whole numbers"],
)
def test_what_is_computed_beside_currents_is_saved(model: nn.Module, more: dict[str, Tensor], tmp_path: Path) -> None:
    """Catches complex weights that the format lacked, and distances that were written as neurons of whole numbers."""
    given = {"x": torch.rand(16, 7, 3), **more}
    snn = parspike.convert(model.eval(), [given], T=64, recipe="closed-form")
    assert list(snn.neurons()) == ["relu"]
    with torch.no_grad():
        assert (snn(**given) - model(**given)).norm() < 0.05 * model(**given).norm()
    again = parspike.load(snn.save(tmp_path / "n.parspike"))
    assert torch.equal(again(**given), snn(**given))


def test_every_truncation(saved: Path, tmp_path: Path) -> None:
    content, path = saved.read_bytes(), tmp_path / "cut"
    for length in (*range(160), *range(160, len(content), 211), len(content) - 1):
        path.write_bytes(content[:length])
        refused(path)


def test_every_region_flipped(saved: Path, tmp_path: Path) -> None:
    content, path = saved.read_bytes(), tmp_path / "flipped"
    for position in (*range(160), *range(160, len(content), 97)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        refused(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_edit_of_the_bytes(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Would catch a damaged file that is read as whole, or that ends in anything but a `FileError`."""
    content, path = saved.read_bytes(), tmp_path / "edited"
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 40)))
    edited = content[:start] + data.draw(st.binary(max_size=40)) + content[stop:]
    path.write_bytes(edited)
    if edited == content:
        parspike.load(path)
    else:
        refused(path)


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    assert "there is no file" in refused(tmp_path / "absent")
    assert "is a folder" in refused(tmp_path)
    save_file({"w": torch.zeros(2)}, tmp_path / "other")
    torch.save({"w": torch.zeros(2)}, tmp_path / "pickle")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("other", "pickle", "empty"):
        assert "not a parspike file" in refused(tmp_path / name)


def test_a_huge_declared_header_costs_nothing(saved: Path, tmp_path: Path) -> None:
    content, path = saved.read_bytes(), tmp_path / "huge"
    for length in (2**63 - 1, 2**64 - 1, len(content)):
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        assert "truncated" in refused(path)
        forged = path.read_bytes()
        digest = hashlib.sha256(forged[:55] + b"0" * 64 + forged[119:]).hexdigest().encode()
        path.write_bytes(forged[:55] + digest + forged[119:])
        assert "truncated" in refused(path)


def test_a_file_that_is_longer_than_its_header_says_is_not_read(saved: Path, tmp_path: Path) -> None:
    """Would catch memory that is taken for a file of a terabyte without data (sparse), before it is refused."""
    content, path = saved.read_bytes(), tmp_path / "sparse"
    header = struct.pack("<Q", 2**39) + content[8:]  # the header as long as that
    for beginning in (content, header):
        path.write_bytes(beginning)
        os.truncate(path, 2**40)
        assert "truncated" in refused(path)


def test_a_graph_that_is_too_large_to_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, _ = converted("linear")
    monkeypatch.setattr("parspike.file.bytes.MOST_HEADER", 1000)
    with pytest.raises(FileError, match="the format has room for 1,000"):
        snn.save(tmp_path / "large.parspike")


def test_versions(saved: Path, tmp_path: Path) -> None:
    body, tensors = read(saved)
    text, path = json.dumps(body), tmp_path / "version"
    assert "pip install --upgrade parspike" in refused(write(path, text, tensors, version=str(file.VERSION + 1)))
    changed = bytearray(write(path, text, tensors, version="12").read_bytes())
    changed[-1] ^= 1  # a newer format may compute its checksum in another way
    path.write_bytes(changed)
    assert "version 12" in refused(path)
    for version in ("0", "01", "-1", "1.5", "", "١", "9" * 5000):
        refused(write(path, text, tensors, version=version))
    refused(write(path, text, tensors, more="entries"))


def test_version_1_knew_one_size_of_every_input(tmp_path: Path) -> None:
    snn, (args, kwargs) = converted("qcfs, T ≠ levels")
    body, tensors = read(snn.save(tmp_path / "net.parspike"))
    assert (body["graph"]["example"], body["graph"]["limits"]) == ({}, [])
    refused(write(tmp_path / "mixed", json.dumps(body), tensors, version="1"))
    del body["graph"]["example"], body["graph"]["limits"]
    refused(write(tmp_path / "mixed", json.dumps(body), tensors))
    old = parspike.load(write(tmp_path / "old", json.dumps(body), tensors, version="1"))
    assert torch.equal(old(*args, **kwargs), snn(*args, **kwargs))


SAVED = Path(__file__).parent / "saved" / "0.1.0"


@pytest.mark.parametrize("name", sorted(path.stem for path in SAVED.glob("*.parspike")))
def test_files_of_the_release_before_stay_readable(name: str, tmp_path: Path) -> None:
    """Would catch a change of the format that forgets the files that people have: parspike 0.1.0 wrote these, one
    at least of every version of the format from 2 to 6, and `answers.npz` holds inputs and what came out."""
    path = SAVED / f"{name}.parspike"
    with np.load(SAVED / "answers.npz") as kept:
        mine = {key.partition("/")[2]: torch.from_numpy(kept[key]) for key in kept if key.startswith(f"{name}/")}
    snn = parspike.load(path)
    run = snn.run(mine.pop("x"), record=True)
    torch.testing.assert_close(run.logits, mine.pop("logits"), atol=1e-5, rtol=1e-5)
    assert run.counts.keys() == mine.keys()
    assert all(torch.equal(run.counts[layer], count) for layer, count in mine.items())
    assert snn.save(tmp_path / "again.parspike").read_bytes() == path.read_bytes()


def test_every_version_of_the_format_that_was_released_is_among_them() -> None:
    found = {int(re.search(rb'"version":"(\d+)"', path.read_bytes())[1]) for path in SAVED.glob("*.parspike")}  # pyright: ignore
    assert found == set(range(2, 7))


# ------------------------------------------------------------- forgery: the checksum is right, the rest is not


Body = dict[str, Any]
Tensors = dict[str, np.ndarray]
Edit = Callable[[Body, Tensors], Any]


def node_of(body: Body, target: str) -> dict[str, Any]:
    return next(node for node in body["graph"]["nodes"] if target in node["target"])


def set_node(target: str, /, **fields: Any) -> Edit:
    return lambda body, _: node_of(body, target).update(fields)


def set_argument(target: str, position: int, value: Any) -> Edit:
    return lambda body, _: node_of(body, target)["args"].__setitem__(position, value)


def set_body(**fields: Any) -> Edit:
    return lambda body, _: body.update(fields)


def set_graph(**fields: Any) -> Edit:
    return lambda body, _: body["graph"].update(fields)


def set_input(**fields: Any) -> Edit:
    return lambda body, _: body["graph"]["inputs"][0].update(fields)


def set_output(beside: Any) -> Edit:
    """The network's output, and another value beside it."""
    return lambda body, _: body["graph"].update(output=[body["graph"]["output"], beside])


def set_limits(*limits: Any) -> Edit:
    return lambda body, _: body["graph"].update(limits=[{"size": limit} for limit in limits])


def set_neuron(**fields: Any) -> Edit:
    return lambda body, _: body["neurons"]["relu"].update(fields)


def set_tensor(name: str, value: Any) -> Edit:
    return lambda _, tensors: tensors.update({name: np.asarray(value)})


def entry(name: str, index: int, value: float) -> Edit:
    def edit(_: Body, tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[index] = value

    return edit


def weigh(body: Body, _: Tensors) -> None:
    body["T"] = 99
    body["neurons"]["relu"].update(T=99, code="weighted")


THETA, WEIGHT = "neurons.relu.v_threshold", "synapses.conv.weight"
MISFIT = "does not fit|cannot be read|another kind"
FORGED: dict[str, tuple[Edit, str]] = {
    # T
    "T zero": (set_body(T=0), "T is 0"),
    "T true": (set_body(T=True), "T is 'True'"),
    "T a float": (set_body(T=8.0), "T is '8.0'"),
    "T text": (set_body(T="8"), "expected int"),
    "T huge": (set_body(T=10**30), "T is 1000"),
    "T of 5000 digits": (lambda body, _: body.update(T=None), "T is 'None'"),
    # operators
    "unknown target": (set_node("conv2d", target="aten.bernoulli.p"), "not in the table"),
    "dunder target": (set_node("conv2d", target="__import__"), "not in the table"),
    "module target": (set_node("conv2d", target="os.system"), "not in the table"),
    "attribute of a target": (set_node("conv2d", target="aten.conv2d.default.__class__"), "not in the table"),
    "target no text": (set_node("conv2d", target=["aten.conv2d.default"]), "expected str"),
    # roles
    "role of another operator": (set_node("conv2d", role="neuron"), "the table says synapse"),
    "neuron as synapse": (set_node("relu", role="synapse"), "the table says neuron"),
    "pool as synapse": (set_node("max_pool2d", role="synapse"), "the table says order"),
    "role unknown": (set_node("conv2d", role="unknown"), "the table says synapse"),
    "role of no kind": (set_node("conv2d", role="magic"), "unknown role"),
    "weight that varies": (set_argument("linear", 1, {"ref": "mean"}), "weight or divisor that depends on the input"),
    "product of two values": (
        set_node("add.", target="aten.mul.Tensor", args=[{"ref": "relu"}, {"ref": "relu"}], kwargs={"dict": []}),
        "both depend on the input",
    ),
    "value by keyword": (set_node("add.", kwargs={"dict": [["other", {"ref": "relu"}]]}), "by keyword"),
    # references
    "later node": (set_argument("conv2d", 0, {"ref": "linear"}), "no earlier node gives"),
    "itself": (set_argument("relu", 0, {"ref": "relu"}), "no earlier node gives"),
    "dunder reference": (set_argument("conv2d", 0, {"ref": "__class__"}), "no earlier node gives"),
    "reference no text": (set_argument("conv2d", 0, {"ref": 3}), "expected str"),
    "no such tensor": (set_argument("conv2d", 1, {"param": "nothing"}), "not in the file"),
    "missing tensor": (lambda _, tensors: tensors.pop(WEIGHT), "not in the file"),
    "extra synapse": (set_tensor("synapses.more", np.zeros(3)), "no node reads the tensor 'more'"),
    "extra neuron tensor": (set_tensor("neurons.relu.more", np.zeros(1)), "tensors of another kind"),
    "bias of one value": (set_tensor("synapses.stem.0.bias", np.zeros(1, np.float32)), "expected bias to be 1-dim"),
    "extra tensor": (set_tensor("more", np.zeros(3)), "belongs to nothing"),
    # names
    "duplicate node": (set_node("conv2d", name="x"), "given twice"),
    "duplicate input": (lambda body, _: body["graph"]["inputs"].append(body["graph"]["inputs"][0]), "given twice"),
    "no name": (set_input(name=""), "no name"),
    "dotted name": (set_input(name="x.y"), "no name"),
    "two layers of one name": (
        lambda body, _: [n.update(layer="same") for n in body["graph"]["nodes"] if n["role"] == "neuron"],
        "same name",
    ),
    "layer without a name": (set_node("relu", layer=""), "'' is no name of a layer"),
    "layer of dots": (set_node("relu", layer="a..b"), "'a..b' is no name of a layer"),
    # values
    "unknown kind of value": (set_argument("conv2d", 0, {"module": "os"}), "unknown value module"),
    "value of two kinds": (set_argument("conv2d", 0, {"ref": "x", "param": "x"}), "expected one"),
    "value of no kind": (set_argument("conv2d", 0, {}), "expected one"),
    "unknown constant": (set_argument("conv2d", 0, {"constant": "torch.load"}), "unknown value constant"),
    "float of words": (set_argument("conv2d", 0, {"float": "1e3"}), "unknown value float"),
    "device by name": (set_argument("conv2d", 0, {"device": "cuda:0"}), "unknown value device"),
    "dict with a list as key": (set_node("conv2d", kwargs={"dict": [[[], 1]]}), "a key"),
    "dict with a key twice": (set_node("conv2d", kwargs={"dict": [["a", 1], ["a", 2]]}), "same key twice"),
    "dict of singles": (set_node("conv2d", kwargs={"dict": [[1]]}), ""),
    "keyword no text": (set_node("conv2d", kwargs={"dict": [[1, 1]]}), "no text"),
    "keywords no dict": (set_node("conv2d", kwargs={"tuple": []}), "expected dict"),
    # sizes
    "size of an unknown operation": (set_node("conv2d", shape=[{"size": ["**", 9, 9]}]), "unknown size"),
    "size of one operand": (set_node("conv2d", shape=[{"size": ["+", 9]}]), "unknown size"),
    "size of an unknown symbol": (set_node("conv2d", shape=[{"size": "x"}]), "unknown size"),
    "size of a float": (set_node("conv2d", shape=[{"size": 1.5}]), "unknown size"),
    "size divided by zero": (set_argument("mean", 1, [{"size": ["//", "batch", 0]}, 3]), "cannot run"),
    "size beyond 64 bits": (set_argument("mean", 1, [{"size": ["*", 2**62, 2**62]}, 3]), "cannot run"),
    "shape divided by zero": (set_node("conv2d", shape=[{"size": ["//", "batch", 0]}, 4, 6, 6]), "cannot run"),
    "output divided by zero": (set_output({"size": ["%", 3, ["+", "batch", -2]]}), "cannot be computed"),
    "output of an unknown size": (set_output({"size": "x.9"}), "the output depends on the size 'x.9'"),
    "negative size": (set_node("conv2d", shape=[{"size": "batch"}, -4, 6, 6]), "negative size"),
    # shapes and dimensions
    "wrong shape": (set_node("conv2d", shape=[{"size": "batch"}, 5, 6, 6]), "gives (2, 4, 6, 6)"),
    "shape without end": (set_node("conv2d", shape=[1] * 1000), "gives"),
    "no such dimension": (set_node("relu", channel_dim=7), "no dimension 7"),
    "negative dimension": (set_node("relu", channel_dim=-1), "no dimension -1"),
    "dimension true": (set_node("relu", channel_dim=True), "expected int"),
    # arguments
    "too few arguments": (set_node("mean", args=[]), "cannot run"),
    "neuron without an input": (set_node("relu", args=[]), ""),
    "pool without an input": (set_node("max_pool2d", args=[]), ""),
    "argument of another type": (set_argument("conv2d", 3, "two"), "cannot run"),
    "stride zero": (set_argument("conv2d", 3, [0, 0]), "cannot run"),
    "stride huge": (set_argument("conv2d", 3, [10**40, 1]), "cannot run"),
    "unknown keyword": (set_node("conv2d", kwargs={"dict": [["__class__", 1]]}), "cannot run"),
    # inputs and outputs
    "input of an unknown type": (set_input(dtype="torch.complex32"), "unknown type"),
    "input of a layout as type": (set_input(dtype="torch.strided"), "unknown type"),
    "input without a batch": (set_input(shape=[2, 2, 6, 6]), "no batch dimension"),
    "input without a shape": (set_input(shape=[]), "no batch dimension"),
    "input of other channels": (lambda body, _: body["graph"]["inputs"][0]["shape"].__setitem__(1, 3), "cannot run"),
    "no input": (set_graph(inputs=[], signature=[0, []], example={}), "no earlier node|not in the example"),
    "signature of two": (set_graph(signature=[2, []]), "signature"),
    "signature negative": (set_graph(signature=[-1, ["a", "b"]]), "signature"),
    "signature with a name twice": (set_graph(signature=[-1, ["a", "a"]]), "signature"),
    "signature of true": (set_graph(signature=[True, []]), "signature"),
    "signature of one part": (set_graph(signature=[1]), ""),
    "output of a later node": (set_graph(output={"ref": "nothing"}), "the output reads"),
    "output of a tensor": (set_graph(output={"param": "conv.weight"}), "no tree of values"),
    "output of a device": (set_graph(output=[{"device": None}]), "no tree of values"),
    "output of nothing": (set_graph(output=None), "no output"),
    "output of another kind": (set_graph(output={"class": "os"}), "unknown value"),
    # objects
    "missing entry": (lambda body, _: body.pop("provenance"), "provenance"),
    "unknown entry": (set_body(more=1), "more"),
    "unknown entry of a node": (set_node("conv2d", code="import os"), "code"),
    "graph a list": (set_body(graph=[]), "expected dict"),
    "provenance a list": (set_body(provenance=[]), "expected dict"),
    "nodes an object": (set_graph(nodes={}), "expected list"),
    "a node a number": (set_graph(nodes=[1]), "expected dict"),
    # neurons
    "size of no input": (lambda body, _: body["graph"]["example"].update({"x.1": 2}), "no dimension of an input"),
    "size below 1": (lambda body, _: body["graph"]["example"].update({"x.2": 0}), "below 1"),
    "size of text": (lambda body, _: body["graph"]["example"].update({"x.2": "6"}), "expected int"),
    "size forgotten": (lambda body, _: body["graph"]["example"].pop("x.3"), "not in the example"),
    "size beyond the example": (
        set_node("conv2d", shape=[{"size": "batch"}, 4, {"size": "y.2"}, {"size": "x.3"}]), "not in the example"
    ),
    "limit that the example breaks": (set_limits([">", "x.2", 6]), "does not hold"),
    "limit of an unknown size": (set_limits([">", "x.4", 1]), "not in the example"),
    "limit divided by zero": (set_limits(["=", ["//", "x.2", 0], 6]), "does not hold for the example"),
    "limit of an unknown kind": (set_limits(["is", "x.2", 6]), "unknown size expression"),
    "limit that no batch meets": (set_limits(["<", "batch", 1]), "does not hold"),
    "limit of the batch on a size of none": (set_limits(["=", ["%", "batch", "x.7"], 0]), "not in the example"),
    "limit that depends on nothing": (set_limits(["<", 1, 2]), "of no size"),
    "limit that is a size": (set_limits(["+", "x.2", 6]), "unknown size expression"),
    "size that is a limit": (
        set_node("conv2d", shape=[{"size": "batch"}, 4, {"size": [">", "x.2", 1]}, {"size": "x.3"}]),
        "unknown size expression",
    ),
    "unknown neuron": (set_neuron(kind="serial"), "unknown kind of neuron 'serial'"),
    "neuron of another T": (set_neuron(T=9), "take 9 steps, the network 8"),
    "neuron without time": (set_neuron(T=0), "T must be"),
    "neuron of T true": (set_neuron(T=True), "T must be"),
    "unknown code": (set_neuron(code="morse"), "code must be one of"),
    "weighted code of many steps": (weigh, "at most T = 20"),
    "neurons a list": (lambda body, _: body["neurons"].update(relu=[]), "cannot be read"),
    "kind a list": (set_neuron(kind=[]), "cannot be read"),
    "offset beyond a float": (set_neuron(offset=10**400), "OverflowError|cannot be read"),
    "field of another kind": (set_neuron(more=1), "fields or tensors of another kind"),
    "offset of text": (set_neuron(offset="0"), "cannot be read"),
    "offset missing": (lambda body, _: body["neurons"]["relu"].pop("offset"), "offset"),
    "neurons nowhere": (
        lambda body, _: body["neurons"].update(conv2d=body["neurons"]["relu"]),
        "cannot be read|activation",
    ),
    "neurons at nothing": (lambda body, _: body["neurons"].update(no=body["neurons"]["relu"]), "no activation"),
    "neurons forgotten": (lambda body, _: body["neurons"].pop("relu"), "belongs to nothing"),
    "threshold missing": (lambda _, tensors: tensors.pop(THETA), "cannot be read: 'v_threshold'"),
    "threshold zero": (entry(THETA, 1, 0.0), "above 0"),
    "threshold negative": (entry(THETA, 0, -1.0), "above 0"),
    "threshold NaN": (entry(THETA, 0, np.nan), "NaN or Inf"),
    "threshold Inf": (entry(THETA, 0, np.inf), "NaN or Inf"),
    "amplitude NaN": (entry("neurons.relu.v_post", 0, np.nan), "NaN or Inf"),
    "weight NaN": (entry(WEIGHT, 3, np.nan), f"'{WEIGHT}' holds NaN or Inf"),
    "threshold of other channels": (set_tensor(THETA, np.ones((3, 1, 1), np.float32)), MISFIT),
    "threshold of a batch": (set_tensor(THETA, np.ones((2, 4, 1, 1), np.float32)), MISFIT),
    "threshold of whole numbers": (set_tensor(THETA, np.ones((4, 1, 1), np.int64)), MISFIT),
    "threshold of nothing": (set_tensor(THETA, np.ones((0, 1, 1), np.float32)), MISFIT),
    "weight of another shape": (set_tensor(WEIGHT, np.ones((4, 9), np.float32)), "cannot run"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forgery(
    name: str, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    edit, expected = FORGED[name]
    body, tensors = read(saved)
    edit(body, tensors)
    message = refused(write(tmp_path / "forged.parspike", json.dumps(body), tensors))
    assert any(part in message for part in expected.split("|")), message
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"T":8', '"T":8,"T":9', "same key twice"),
        ('"T":8', f'"T":{"9" * 5000}', ""),
        ('"offset":0.0', '"offset":NaN', "no finite number"),
        ('"offset":0.0', '"offset":-Infinity', "no finite number"),
        ('"offset":0.0', '"offset":1e999', "no finite number"),
        ('"provenance":{', '"provenance":{"deep":' + "[" * 200_000 + "]" * 200_000 + ",", ""),
        ('"kwargs":{"dict":[]}', '"kwargs":' + "[" * 900 + "]" * 900, "expected dict"),
        ('"kwargs":{"dict":[]}', '"kwargs":' + '{"tuple":[' * 300 + "]}" * 300, "nested"),
        ('{"size":"batch"}', '{"size":' + '["+",1,' * 300 + "1" + "]" * 300 + "}", "unknown size"),
        ("{", "", ""),
        ('"layer":"conv"', '"layer":"\\ud800"', ""),
    ],
    ids=["key twice", "long number", "NaN", "Inf", "1e999", "deep", "deep list", "deep tuple", "deep size",
         "no JSON", "surrogate"],
)  # fmt: skip
def test_forged_json(old: str, new: str, expected: str, saved: Path, tmp_path: Path) -> None:
    body, tensors = read(saved)
    text = json.dumps(body, separators=(",", ":"))
    assert old in text
    assert expected in refused(write(tmp_path / "forged.parspike", text.replace(old, new, 1), tensors))


def json_values() -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    kinds = st.sampled_from(["ref", "param", "tuple", "dict", "size", "float", "constant", "device"])
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(kinds, inner, max_size=1), max_leaves=6
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever stands in the JSON: a network that runs, or FileError; never another error."""
    body, tensors = read(saved)
    place: Any = body
    while True:
        key = data.draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
        if not place[key] or not isinstance(place[key], (dict, list)) or data.draw(st.integers(0, 4)) == 0:
            break
        place = place[key]
    place[key] = data.draw(json_values())
    path = write(tmp_path / "forged.parspike", json.dumps(body), tensors)
    try:
        snn = parspike.load(path)
    except FileError:
        refused(path)
    else:
        assert tuple(snn(torch.zeros(2, 2, 6, 6)).shape) == (2, 3)


def test_a_limit_of_the_batch_is_read_and_kept(saved: Path, tmp_path: Path) -> None:
    body, tensors = read(saved)
    set_limits(["=", ["%", "batch", 3], 0])(body, tensors)
    snn = parspike.load(write(tmp_path / "limited.parspike", json.dumps(body), tensors))
    assert torch.equal(snn(torch.ones(3, 2, 6, 6)), parspike.load(saved)(torch.ones(3, 2, 6, 6)))
    with pytest.raises(InputError, match=r"\(B % 3\) = 0"):
        snn(torch.ones(4, 2, 6, 6))


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_nothing_in_a_file_is_executed(saved: Path, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "net.parspike"
    payload = pickle.dumps(Payload(marker))
    body, tensors = read(saved)
    torch.save(Payload(marker), path)
    refused(path)
    path.write_bytes(payload)
    refused(path)
    path.write_bytes(saved.read_bytes() + payload)
    refused(path)
    tensors["synapses.payload"] = np.frombuffer(payload, np.uint8)
    refused(write(path, json.dumps(body), tensors))
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    for field in ("target", "layer", "source", "reason", "name", "role"):
        body, tensors = read(saved)
        body["graph"]["nodes"][0][field] = code
        if field in ("source", "reason", "layer"):  # text to show; the layer of a synapse is no more
            assert code in repr(parspike.load(write(path, json.dumps(body), tensors)).graph.nodes[0])
        else:
            refused(write(path, json.dumps(body), tensors))
    assert not marker.exists()


# -------------------------------------------------------------------------------------------------- writing


def only(folder: Path, *names: str) -> bool:
    return {item.name for item in folder.iterdir()} == set(names)


def test_an_existing_file_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "net.parspike"
    path.write_text("old")
    snn, _ = converted("linear")
    with pytest.raises(FileError, match=r"exists: .*force=True"):
        snn.save(path)
    assert path.read_text() == "old"
    assert snn.save(str(path), force=True) == path
    assert parspike.load(path).T == 8
    assert only(tmp_path, "net.parspike")


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = converted("linear")[0].save(tmp_path / "net.parspike")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "no" / "net.parspike"
    with pytest.raises(FileError, match="there is no folder"):
        converted("linear")[0].save(path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise error

    path = tmp_path / "net.parspike"
    snn, _ = converted("linear")
    old = snn.save(path).read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    expected = FileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        converted("residual")[0].save(path, force=True)
    if isinstance(error, OSError):
        assert f"cannot write '{path}': No space left on device" in str(caught.value)
    with pytest.raises(expected):
        snn.save(tmp_path / "new.parspike")
    assert path.read_bytes() == old
    assert only(tmp_path, "net.parspike")


def test_the_system_refuses_to_write_more(tmp_path: Path) -> None:
    """A real limit, that of the process on the size of files."""
    path = tmp_path / "net.parspike"
    path.write_text("old")
    snn, _ = converted("residual")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(FileError, match="the old file, if any, is as it was"):
            snn.save(path, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert only(tmp_path, "net.parspike")


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "net.parspike"
    snn, _ = converted("linear")
    snn.provenance["note"] = float("nan")
    with pytest.raises(FileError, match="cannot save"):
        snn.save(path)
    snn.provenance["note"] = path
    with pytest.raises(FileError, match="cannot save"):
        snn.save(path)
    snn, _ = converted("linear")
    snn.get_parameter("spiking.1.v_threshold")[0] = 0
    with pytest.raises(FileError, match=r"neurons of '1'.*above 0"):
        snn.save(path)
    snn, _ = converted("linear")
    snn.simulation = parspike.Simulation(7)
    with pytest.raises(FileError, match="take 8 steps, the network 7"):
        snn.save(path)
    assert only(tmp_path)


def test_activations_that_older_files_hold_as_analog_are_read(tmp_path: Path) -> None:
    """Would catch a file of before softshrink was an activation that is now refused for its role."""
    x = torch.randn(8, 4)
    model = nn.Sequential(nn.Linear(4, 6), nn.Softshrink(0.2), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    snn = parspike.convert(model, x, T=4, recipe="max", layers={"1": parspike.Keep()})
    nodes = tuple(
        replace(node, role=Role.ANALOG) if node.target == "aten.softshrink.default" else node
        for node in snn.graph.nodes
    )
    graph = replace(snn.graph, nodes=nodes, tensors=snn.tensors())
    older = parspike.SNN(graph, snn.neurons(), simulation=snn.simulation)
    assert torch.equal(parspike.load(older.save(tmp_path / "older.parspike"))(x), snn(x))
