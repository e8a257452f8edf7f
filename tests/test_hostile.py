"""Files that were forged: inputs that once broke a reader, a short campaign, and what no mutator finds by itself."""

from __future__ import annotations

import io
import json
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import parspike
from parspike.cli.images import open_images
from parspike.cli.preprocess import remembered
from parspike.errors import (
    FileError,
    InputError,
    InsufficientMemoryError,
    OptionError,
    ParspikeError,
    UnsupportedError,
)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))
import fuzz  # noqa: E402
import fuzz_mutate  # noqa: E402

SEEDS = sorted((HERE / "hostile").iterdir())
CHEAP = ["onnx", "images", "images-zip", "images-npz", "weights", "bench", "bench-lines", "recipe", "energy"]
"""Readers whose seeds need no conversion."""


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.stem)
def test_what_once_broke_a_reader(seed: Path, tmp_path: Path) -> None:
    name = next(name for name in sorted(fuzz.TARGETS, key=len, reverse=True) if seed.name.startswith(f"{name}-"))
    target = fuzz.TARGETS[name]
    path = tmp_path / target.name
    path.write_bytes(seed.read_bytes())
    try:
        target.read(path)
    except ParspikeError as error:
        assert len(str(error)) < 1000  # noqa: PT017 (a file that is read is right too)


@pytest.mark.parametrize("name", CHEAP)
def test_a_short_campaign(name: str, tmp_path: Path) -> None:
    target, rng = fuzz.TARGETS[name], random.Random(0)
    seeds = list(target.seeds())
    path = tmp_path / target.name
    refused = 0
    for seed in seeds:
        path.write_bytes(seed)
        if name not in ("images",):
            target.read(path)
    for _ in range(25):
        path.write_bytes(target.change(rng, rng.choice(seeds)))
        try:
            target.read(path)
        except ParspikeError:
            refused += 1
    assert refused


def test_the_audit_sees_what_a_reader_must_not_do(tmp_path: Path) -> None:
    watch = fuzz._Allowed()
    watch.armed, watch.folder = True, str(tmp_path)
    watch("open", (str(tmp_path / "in"), "r", 0))
    assert not watch.seen
    for event in (
        ("open", ("/etc/passwd", "r", 0)),
        ("open", (str(tmp_path / "out"), "wb", 0)),
        ("subprocess.Popen", ("sh",)),
        ("pickle.find_class", ("os", "system")),
    ):
        watch.seen = []
        watch(*event)
        assert watch.seen


# ------------------------------------------------------------------------------------------------ one by one


def network() -> parspike.SNN:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    return parspike.convert(model, torch.randn(16, 4), T=4)


def forged(path: Path, change: Any) -> Path:
    """A saved network whose JSON was changed; the checksum is right."""
    data = network().save(path).read_bytes()
    header, tensors = fuzz_mutate.split_safetensors(data)
    body = json.loads(header["__metadata__"]["network"])
    change(body)
    header["__metadata__"]["network"] = json.dumps(body)
    first = {key: header["__metadata__"][key] for key in ("format", "sha256", "version", "network")}
    text = json.dumps({**header, "__metadata__": first}, separators=(",", ":"))
    path.write_bytes(fuzz_mutate.right_checksum(fuzz_mutate.join_safetensors(text, tensors)))
    return path


def test_a_size_that_would_take_minutes_to_compute(tmp_path: Path) -> None:
    def change(body: Any) -> None:
        body["graph"]["nodes"][0]["shape"][1] = {"size": ["*", *[2**62] * 200_000]}

    with pytest.raises(FileError, match="a size is computed in over 100000 characters"):
        parspike.load(forged(tmp_path / "net.parspike", change))


@pytest.mark.parametrize(
    ("entry", "value"),
    [("search", "x"), ("recipe", 3), ("kept", "all"), ("command_line", []), ("largest", "many"), ("versions", None)],
)
def test_a_provenance_of_another_kind(entry: str, value: Any, tmp_path: Path) -> None:
    path = forged(tmp_path / "net.parspike", lambda body: body["provenance"].update({entry: value}))
    with pytest.raises(FileError, match=f"'{entry}' of the provenance"):
        parspike.load(path)


def test_a_provenance_may_hold_what_a_user_noted(tmp_path: Path) -> None:
    snn = network()
    snn.provenance |= {"note": "mine", "figures": [1, {"a": None}]}
    assert parspike.load(snn.save(tmp_path / "net.parspike")).provenance == snn.provenance


@pytest.mark.parametrize("said", [{}, *({"preprocessing": one} for one in (3, {"mean": ["a"]}, {"x": 1}))])
def test_a_preprocessing_that_is_none(said: dict[str, Any], tmp_path: Path) -> None:
    path = forged(tmp_path / "net.parspike", lambda body: body["provenance"].update(command_line={"spec": "a", **said}))
    with pytest.raises(OptionError, match="cannot be understood"):
        remembered(parspike.load(path))


def test_diagnosis_runs_no_code_that_a_file_names(tmp_path: Path) -> None:
    from parspike.diagnose.remedies import _recipe, _repeatable

    marker = tmp_path / "ran"
    code = tmp_path / "evil.py"
    code.write_text(f"open({str(marker)!r}, 'w')\n")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    made = parspike.plan(model, torch.randn(16, 4))
    snn = parspike.convert(made, torch.randn(64, 4), T=2, recipe="closed-form")
    assert _repeatable(snn, made.graph, made)
    snn.provenance["recipe"] = {"name": f"{code}:Class"}
    loaded = parspike.load(snn.save(tmp_path / "net.parspike"))
    assert not _repeatable(loaded, made.graph, made)
    for odd in ({"recipe": "text"}, {"search": {"chosen": 3}, "recipe": {}}, {"recipe": {"name": []}}):
        assert not _recipe(odd)
    assert not marker.exists()


def npz(path: Path, head: str, *, size: int = 0, name: str = "images") -> Path:
    content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(size)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("shape", ["(1000000000000, 8, 8)", "(-1, 8, 8)", f"({2**70}, 8)", "(True, 8, 8)", "(1.5, 8)"])
def test_an_array_that_claims_more_than_the_file_holds(shape: str, tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n")
    with pytest.raises(FileError, match=r"a\.npz: not a readable \.npz"):
        open_images(str(path))


def test_a_packed_array_is_read(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "a.npz", "{'descr': '|u1', 'fortran_order': False, 'shape': (4000, 32, 32)}\n", size=4000 * 1024
    )
    assert path.stat().st_size < 10_000
    assert len(open_images(str(path))) == 4000


def test_members_of_a_zip_that_cannot_be_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/0.png", stream.getvalue())
        archive.writestr("b/0.png", stream.getvalue())
    data = path.read_bytes()
    for place, value in ((8, 99), (6, 1)):  # the compression, and the flag of a password, of the first member
        central = data.index(b"PK\x01\x02")
        made = bytearray(data)
        made[place] = made[central + place + 2] = value
        path.write_bytes(made)
        with pytest.raises(InputError, match=r"a/0\.png: cannot be decoded"):
            list(open_images(str(path)))


def test_an_image_that_claims_to_be_huge(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("1", (12000, 9000)).save(tmp_path / "a" / "0.png")  # 14 kB, and 1.3 GB as a float tensor
    with pytest.raises(InputError, match="108,000,000 pixels"):
        list(open_images(str(tmp_path)))


def test_numbers_in_bench_files_are_numbers(tmp_path: Path) -> None:
    for line in ("calibration_images = []", "limit = [3]", 'batch_size = "8"'):
        text = f'methods = ["max-norm"]\n[networks.a]\nspec = "a.py:make"\ndata = "digits"\n{line}\n'
        with pytest.raises(OptionError, match=r"line 5: .*give a whole number"):
            parspike.Bench.from_toml(text)
    with pytest.raises(OptionError, match="recipe has no name"):
        parspike.Bench.from_toml("[method.a]\nrecipe = {steps = 3}\n")


def test_weights_for_more_classes_than_the_file_has(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from parspike.train import load_recipe, load_trained

    save_file({"fc.weight": torch.zeros(10, 512)}, tmp_path / "weights.safetensors")
    recipe = load_recipe("digits").to_json()
    recipe["data"]["classes"] = 10**12
    (tmp_path / "weights.json").write_text(json.dumps({"recipe": recipe}))
    with pytest.raises(FileError, match="for 1000000000000 classes"):
        load_trained(tmp_path)


def test_floats_and_whole_numbers_of_a_table_of_energies(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text(f"ac = {10**400}\n")
    with pytest.raises(OptionError, match="finite"):
        parspike.Energy.named(str(path))
    path.write_text("ac = " + "9" * 5000)
    with pytest.raises(FileError, match="cannot be read as TOML"):
        parspike.Energy.named(str(path))
    assert np.isclose(parspike.Energy.named("int8-45nm").ac, 0.03, atol=1)


# ------------------------------------------------------------------------------ kinds that a campaign found once


def test_a_bias_of_another_length_in_a_nir_file(tmp_path: Path) -> None:
    """torch compares the two only where tensors have data, and none has when a file is checked."""
    nir = pytest.importorskip("nir")
    for values in (1, 2, 4):
        conv = nir.Conv2d((4, 4), np.ones((3, 1, 3, 3), np.float32), 1, 1, 1, 1, np.zeros(values, np.float32))
        neurons = nir.IF(np.ones((3, 4, 4)), np.ones((3, 4, 4)))
        graph = nir.NIRGraph.from_list(nir.Input(np.array([1, 4, 4])), conv, neurons, type_check=False)
        nir.write(tmp_path / "net.nir", graph)
        with pytest.raises(FileError, match=f"its bias has {values} values for 3 outputs"):
            parspike.load(tmp_path / "net.nir", T=2)


def onnx_file(path: Path, nodes: list[Any], constants: dict[str, Any], shape: list[Any], output: str = "y") -> Path:
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info(output, 1, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("op", "inputs", "said"),
    [
        ("Identity", [""], "needs its first 1 inputs, and has 0"),
        ("Add", ["k"], "needs its first 2 inputs, and has 1"),
        ("Add", ["k", ""], "needs its first 2 inputs, and has 1"),
        ("Where", ["", "k", "k"], "needs its first 3 inputs, and has 2"),
        ("Concat", [], "needs its first 1 inputs, and has 0"),
        ("Relu", ["k", "k"], "has 2 inputs, and takes 1 at most"),
    ],
)
def test_inputs_that_an_onnx_node_lacks(op: str, inputs: list[str], said: str, tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node(op, inputs, ["a"], name="odd"), helper.make_node("Mul", ["x", "a"], ["y"])]
    path = onnx_file(tmp_path / "net.onnx", nodes, {"k": np.ones(2, np.float32)}, ["n", 2])
    with pytest.raises(FileError, match=rf"node 'odd' \({op}\) {said}"):
        parspike.from_onnx(path)


def test_an_onnx_output_without_a_name(tmp_path: Path) -> None:
    from onnx import helper

    path = onnx_file(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, ["n", 2], output="")
    with pytest.raises(FileError, match="nothing makes its output ''"):
        parspike.from_onnx(path)


@pytest.mark.parametrize(
    ("op", "sizes"),
    [
        ("Tile", [0, 2**62]),
        ("Expand", [0, 2**62, 2]),
        ("ConstantOfShape", [0, 2**62, 2**62]),
        ("Reshape", [0, 2**62, 2**62]),
    ],
)
def test_sizes_beyond_measure_of_onnx_tensors_without_elements(op: str, sizes: list[int], tmp_path: Path) -> None:
    """A product of 0 elements hides the other sizes from a check of the product."""
    from onnx import helper

    inputs = {"ConstantOfShape": ["s"], "Reshape": ["e", "s"]}.get(op, ["k", "s"])
    more: Any = {"allowzero": 1} if op == "Reshape" else {}
    nodes = [helper.make_node(op, inputs, ["a"], **more), helper.make_node("Mul", ["x", "a"], ["y"])]
    constants = {"k": np.ones((1, 2), np.float32), "e": np.zeros((0, 2), np.float32), "s": np.array(sizes, np.int64)}
    with pytest.raises((FileError, UnsupportedError, InputError)):
        parspike.from_onnx(onnx_file(tmp_path / "net.onnx", nodes, constants, ["n", 2]))


def test_onnx_tensors_without_elements_that_claim_sizes_beyond_measure(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    path = onnx_file(tmp_path / "net.onnx", [helper.make_node("Mul", ["x", "k"], ["y"])], {"k": np.ones(2, "f4")}, [2])
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = b""
    for dims in ([0, 2**62], [2**40, 0, 2**40], [1] * 40):
        model.graph.initializer[0].dims[:] = dims
        path.write_bytes(model.SerializeToString())
        with pytest.raises(FileError, match="damaged: its shape is"):
            parspike.from_onnx(path)


def test_an_onnx_input_larger_than_any_memory(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(FileError, match=r"its input 'x' has the shape \[1, 9223372036854775807, 4\], which is too"):
        parspike.from_onnx(onnx_file(tmp_path / "net.onnx", nodes, {}, [1, 2**63 - 1, 4]))
    network: Any = parspike.from_onnx(onnx_file(tmp_path / "net.onnx", nodes, {}, ["n", 4]))
    with pytest.raises(InsufficientMemoryError, match="memory ran out for its input 'x'"):
        network.example(2, [2**62, 4])


def test_an_onnx_location_that_no_file_can_have(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    path = onnx_file(tmp_path / "net.onnx", [helper.make_node("Mul", ["x", "k"], ["y"])], {"k": np.ones(2, "f4")}, [2])
    model = onnx.load(path)
    tensor: Any = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    entry = tensor.external_data.add()
    entry.key = "location"
    for entry.value in ("a" * 5000, "a\0b"):
        path.write_bytes(model.SerializeToString())
        with pytest.raises(FileError, match="not there: put it beside the model"):
            parspike.from_onnx(path)


def test_an_input_of_a_parspike_file_whose_first_size_is_no_batch(tmp_path: Path) -> None:
    for size, said in ((2, "has no batch dimension"), (["*", "batch", 2], "no input has the batch as its first size")):

        def change(body: Any, size: Any = size) -> None:
            body["graph"]["inputs"][0]["shape"][0] = {"size": size}

        with pytest.raises(FileError, match=said):
            parspike.load(forged(tmp_path / f"{len(said)}.parspike", change))


def test_zips_of_an_unknown_version_or_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/0.png", b"")
    data = path.read_bytes()
    central = data.index(b"PK\x01\x02")
    for place, value in ((central + 6, 99), (central + 9, 8)):  # the version that is needed; names in UTF-8
        made = bytearray(data)
        made[place] = value
        made[central + 46] = 0x80
        path.write_bytes(made)
        with pytest.raises(FileError, match="not a readable zip"):
            open_images(str(path))


def test_weights_that_claim_more_than_their_file_holds(tmp_path: Path) -> None:
    """torch takes memory for a size in a zip, or in a file from before it wrote zips, before it reads what is there."""
    from parspike.cli.spec import _read_state

    state, path = {"w": torch.arange(280.0)}, tmp_path / "w.pt"
    for zipped in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        assert torch.equal(_read_state(path)["w"], state["w"])
        data = path.read_bytes()
        if zipped:
            head = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
            while not data[head + 46 :].startswith(b"w/data/0"):
                head = data.index(b"PK\x01\x02", head + 1)
            path.write_bytes(data[: head + 24] + b"\xff\xff\xff\x7f" + data[head + 28 :])
        else:
            number = b"M\x18\x01N"  # 280 values, seen whole
            assert data.count(number) == 1
            path.write_bytes(data.replace(number, b"J\xff\xff\xff\x7fN"))
        with pytest.raises(FileError, match="it claims more than it holds"):
            _read_state(path)


def test_names_of_any_length_are_cut(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from parspike.cli.spec import set_state

    save_file({"n" * 20_000: torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"unexpected \(1\): nnn") as caught:
        set_state(nn.Linear(1, 1), "net.py:make", str(tmp_path / "w.safetensors"))
    assert len(str(caught.value)) < 1000
    assert caught.value.details["unexpected"] == ["n" * 20_000]


class Chosen(nn.Module):
    """Values by places that are constants, in every way that the table has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table, self.last = nn.Linear(4, 3), nn.Embedding(5, 4), nn.Linear(9, 2)
        for number in range(4):
            self.register_buffer(f"at{number}", torch.tensor([0, 2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: Any = self.first(x).relu()
        flat = self.at2.expand(x.shape[0], 2)
        named = y + self.table(self.at3)[:, :3].sum(0)
        return self.last(torch.cat([y.index_select(1, self.at0), y[:, self.at1], y.gather(1, flat), named], 1))


@pytest.mark.parametrize("worst", [5, 2**62, -7])
def test_places_in_a_parspike_file_that_are_not_there(worst: int, tmp_path: Path) -> None:
    """Would catch: a network that is read, and fails with torch's words when it runs (on a GPU for good)."""
    torch.manual_seed(0)
    snn = parspike.convert(Chosen().eval(), torch.randn(16, 4), T=4)
    data = snn.save(tmp_path / "net.parspike").read_bytes()
    parspike.load(tmp_path / "net.parspike")
    header, tensors = fuzz_mutate.split_safetensors(data)
    names = [name for name in header if name.startswith("synapses.at")]
    assert names
    first = {key: header["__metadata__"][key] for key in ("format", "sha256", "version", "network")}
    text = json.dumps({**header, "__metadata__": first}, separators=(",", ":"))
    for name in names:
        made, start = bytearray(tensors), header[name]["data_offsets"][0]
        made[start : start + 8] = worst.to_bytes(8, "little", signed=True)
        path = tmp_path / "forged.parspike"
        path.write_bytes(fuzz_mutate.right_checksum(fuzz_mutate.join_safetensors(text, bytes(made))))
        with pytest.raises(FileError, match="takes a value from a place that is not among"):
            parspike.load(path)
