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
from parspike.errors import FileError, InputError, OptionError, ParspikeError

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
