"""`parspike.bench`, `parspike bench`: cells that are measured once, lines that survive a kill, tables of the rows."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli_messages import answer, error, run
from torch import Tensor, nn

import parspike
from parspike import Bench, Benched, BenchNetwork
from parspike.bench import run as running
from parspike.bench.figure import PANELS
from parspike.bench.file import Cell, Method, NetworkTable, Published, Training
from parspike.bench.lines import Lines, ResultFile
from parspike.bench.result import TABLES
from parspike.calibrate import recipe_to_json
from parspike.errors import FileError, InputError, MissingExtraError, OptionError
from parspike.neurons import Simulation
from parspike.tables import COLOURS
from parspike.together import Together

SOURCE = Path(parspike.__file__).parents[1]
TIMES = {"fit_seconds", "fit_memory_mib", "seconds_per_image", "network_seconds_per_image", "ratio", "seconds_in_all",
         "machine", "commit"}  # fmt: skip


def small(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), activation(), nn.Conv2d(6, 4, 3), activation(), nn.Flatten(), nn.Linear(64, 5)
    ).eval()


MODEL = small()
X = torch.randn(80, 2, 6, 6, generator=torch.Generator().manual_seed(1))
Y = MODEL(X).argmax(1).where(torch.arange(80) % 4 > 0, 0)
FIT, TEST = list(X[:48].split(16)), list(zip(X[48:].split(10), Y[48:].split(10), strict=True))


def net(model: Any = MODEL, **identity: Any) -> BenchNetwork:
    return BenchNetwork(lambda: model, lambda seed: FIT, lambda seed: TEST, identity)


BENCH = Bench(
    "mine", T=(4,), methods=("closed-form", "weighted", "max-norm"),
    method={"weighted": Method("closed-form", neurons=("weighted",))},
    published=(Published("net", "max-norm", 4, 91.5, "A. Nobody, 2020"), Published("VGG", "qcfs", 2, 91.0, "B, 2022")),
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def briefly() -> Iterator[None]:
    """Times are not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "LEAST", 0.0)
        patch.setattr(running, "MOST", 0.0)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Benched]:
    """A bench that ran: its lines and what they say."""
    path = tmp_path_factory.mktemp("bench") / "mine.jsonl"
    return path, parspike.bench(BENCH, {"net": net()}, path)


def untimed(path: Path) -> dict[Any, dict[str, Any]]:
    """The lines of a file by their keys, without what a clock says."""
    found = Lines.read(path, json.loads(path.read_text().splitlines()[0])["bench"])
    return {str(key): {name: value for name, value in line.items() if name not in TIMES}
            for key, line in {**found.cells, **found.references}.items()}  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- rows


@torch.no_grad()
def test_rows_are_what_single_conversions_give(done: tuple[Path, Benched]) -> None:
    rows = {row["method"]: row for row in done[1].rows}
    x, y = X[48:], Y[48:]
    own = MODEL(x).argmax(1)
    for method, how in {
        "closed-form": {"recipe": "closed-form"}, "max-norm": {"recipe": "max-norm"},
        "weighted": {"recipe": "closed-form", "code": "weighted"},
    }.items():  # fmt: skip
        snn = parspike.convert(MODEL, FIT, T=4, **how)
        report, got, row = parspike.measure(snn, TEST, against=MODEL), snn(x).argmax(1), rows[method]
        assert row["accuracy"] == pytest.approx(100 * float((got == y).double().mean()))
        assert row["network_accuracy"] == pytest.approx(100 * float((own == y).double().mean()))
        assert row["agreement"] == pytest.approx(100 * float((got == own).double().mean()))
        assert row["spikes"] == pytest.approx(report.spikes_per_neuron)
        assert (row["synops"], row["energy_pj"]) == pytest.approx((report.synops, report.energy_pj))
        assert row["network_macs"] == pytest.approx(report.network_macs)
        assert (row["images"], row["calibration_images"], row["seed"], row["steps"]) == (32, 48, 0, 4)
        assert row["ratio"] == pytest.approx(row["seconds_per_image"] / row["network_seconds_per_image"])
        assert row["version_torch"] == torch.__version__
        assert row["machine"].startswith(os.uname().machine)
    levels_and_bits = {name: (row["levels"], row["bits"], row["neuron"]) for name, row in rows.items()}
    assert levels_and_bits == {
        "closed-form": (4, 4, "sorted"), "weighted": (15, 4, "weighted"), "max-norm": (4, 4, "if")
    }  # fmt: skip
    # Parallel neurons give what the network gives with as many levels; IF neurons stand beside the same one.
    assert rows["weighted"]["quantised_error"] == pytest.approx(rows["weighted"]["error"], rel=1e-4)
    assert rows["closed-form"]["quantised_error"] == pytest.approx(rows["closed-form"]["error"], rel=1e-4)
    assert rows["max-norm"]["quantised_error"] == rows["closed-form"]["quantised_error"]


def test_a_network_trained_for_these_levels_is_its_own_quantised_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 9), parspike.QCFS(4, 1.5), nn.Linear(9, 5)).eval()
    bench = Bench("q", T=(4, 2), methods=("max-norm",))
    found = parspike.bench(bench, {"net": net(model)}, tmp_path / "q.jsonl")
    four, two = (found.references[key] for key in sorted(found.references, key=lambda key: -key.levels))
    assert four["error"] == pytest.approx(0, abs=1e-4)
    assert four["agreement"] == 100
    assert two["error"] > 1
    assert {row["trained_for"] for row in found.rows} == {"QCFS"}


def test_bits_count_signs_and_steps_that_are_not_read() -> None:
    snn = parspike.convert(MODEL, FIT, T=4, neuron=parspike.IF(signed=True), recipe="max")
    assert running.bits_of(snn) == pytest.approx(4 * math.log2(3))
    snn.simulation = Simulation(4, probe=3)
    assert running.bits_of(snn) == pytest.approx(7 * math.log2(3))
    assert running.levels_of(snn) == 4
    mixed = parspike.convert(MODEL, FIT, T=4, recipe="max", layers={"1": parspike.Steps(1)})
    assert running.bits_of(mixed) == pytest.approx((216 * 1 + 64 * 4) / 280)  # 6·6·6 and 4·4·4 neurons


def test_seeds_draw_their_own_calibration_images_and_make_one_row(tmp_path: Path) -> None:
    drawn: list[int] = []

    def fit(seed: int) -> list[Tensor]:
        drawn.append(seed)
        return list(X[:48].roll(seed * 16, 0)[:32].split(16))

    network = BenchNetwork(lambda: MODEL, fit, lambda seed: TEST)
    bench = Bench("s", T=(2,), methods=("closed-form",), seeds=(0, 1))
    found = parspike.bench(bench, {"net": network}, tmp_path / "s.jsonl")
    (line,) = found.lines
    assert set(drawn) == {0, 1}
    assert len(line.figures) == len(line.references) == 2
    one, two = line.all("error")
    assert one != two
    assert line.mean("error") == (one + two) / 2
    assert found.table("cells").rows[0][found.table("cells").head.index("seeds")] == "2"


# ----------------------------------------------------------------------------------------------------- going on


def test_what_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said = tmp_path / "b.jsonl", []
    parspike.bench(BENCH, {"net": net()}, path, only=["max-norm"])
    before = path.read_bytes()
    assert list(untimed(path)) == ["net, max-norm, if, T=4, seed 0", "net, quantised to 4 levels, seed 0"]
    found = parspike.bench(BENCH, {"net": net()}, path, each=said.append)
    assert path.read_bytes().startswith(before)
    assert [line.partition(":")[0] for line in said] == [
        "3/4 net, closed-form, sorted, T=4, seed 0", "4/5 net, weighted, weighted, T=4, seed 0",
        "5/5 net, quantised to 15 levels, seed 0",
    ]  # fmt: skip
    assert [line.rpartition("; ")[2] for line in said][-1] == "done"
    assert found.waiting == 0
    monkeypatch.setattr(running, "_Loaded", lambda *_: pytest.fail("loaded again"))
    again = parspike.bench(BENCH, {"net": net()}, path)
    assert again.rows == found.rows


def test_a_cell_that_fails_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    path, silu = tmp_path / "f.jsonl", small(nn.SiLU)
    found = parspike.bench(BENCH, {"net": net(silu)}, path)
    assert [row["method"] for row in found.rows] == ["closed-form", "weighted"]
    (left_out,) = found.left_out
    assert left_out.startswith("net, max-norm, if: recipe 'max-norm' knows the activation ReLU")
    assert left_out.endswith("(T=4)")
    assert f"left out: {left_out}" in found.markdown()
    lines = path.read_text()
    said: list[str] = []
    parspike.bench(BENCH, {"net": net(silu)}, path, each=said.append)
    assert (said, path.read_text()) == ([], lines)
    # The method comes to know the network: only a retry finds out, and its line replaces the other.
    parspike.bench(BENCH, {"net": net(MODEL)}, path, retry=True, each=said.append)
    assert [line.split(": ")[0] for line in said] == ["5/5 net, max-norm, if, T=4, seed 0"]
    assert not Benched.read(BENCH, path).left_out


def test_any_error_of_a_cell_is_one_line(tmp_path: Path) -> None:
    def load() -> nn.Module:
        raise RuntimeError("no\nweights here")

    broken = BenchNetwork(load, lambda seed: FIT, lambda seed: TEST)
    bench = replace(BENCH, published=(), methods=("max-norm",))
    found = parspike.bench(bench, {"a": broken, "b": net()}, tmp_path / "b.jsonl")
    assert found.left_out == ["a, max-norm, if: RuntimeError: no weights here (T=4)"]
    assert [row["network"] for row in found.rows] == ["b"]
    ends = BenchNetwork(lambda: exit(3), lambda seed: FIT, lambda seed: TEST)
    assert parspike.bench(bench, {"a": ends}, tmp_path / "x.jsonl").left_out == ["a, max-norm, if: SystemExit: 3 (T=4)"]
    empty = {name: BenchNetwork(lambda: MODEL, lambda seed, fit=fit: fit, lambda seed, test=test: test)
             for name, fit, test in (("c", [], TEST), ("d", FIT, []))}  # fmt: skip
    found = parspike.bench(bench, empty, tmp_path / "e.jsonl")
    assert found.left_out == [
        "c, max-norm, if: the calibration set is empty: give at least one batch of inputs (T=4)",
        "d, max-norm, if: data is empty: give at least one batch of inputs (T=4)",
    ]


def test_only_selects_by_names_and_T(tmp_path: Path) -> None:
    bench = replace(BENCH, T=(2, 4))
    assert len(bench.chosen(networks=["net"])) == 6
    assert [(c.method, c.T) for c in bench.chosen(["T=4", "max-norm", "weighted"], ["net"])] == [
        ("weighted", 4), ("max-norm", 4)
    ]  # fmt: skip
    with pytest.raises(OptionError, match="no 'max-nrom' \\(did you mean 'max-norm'\\?\\)"):
        bench.chosen(["max-nrom"], ["net"])
    with pytest.raises(OptionError, match="no cell of the bench is max-norm, sorted at once"):
        bench.chosen(["max-norm", "sorted"], ["net"])


def test_all_are_the_files_methods_and_the_published_ones() -> None:
    bench = replace(BENCH, methods=("daqcfs", "all"))
    methods = bench.methods_of("net")
    assert methods[:2] == ["daqcfs", "weighted"]
    published = {name for name, recipe in parspike.calibrate.RECIPES.items() if hasattr(recipe, "cite")}
    assert "max-norm" in published
    assert set(methods) - {"daqcfs", "weighted"} == published


# ------------------------------------------------------------------------------------------------- the result file


def test_two_benches_do_not_write_one_file(done: tuple[Path, Benched]) -> None:
    before = done[0].read_bytes()
    with ResultFile(done[0], "mine", Together()), pytest.raises(FileError, match=r"another bench is writing .*: wait"):
        parspike.bench(BENCH, {"net": net()}, done[0])
    assert done[0].read_bytes() == before
    with ResultFile(done[0], "mine", Together()) as file:  # the lock went with the first
        assert file.lines().header["bench"] == "mine"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network": net(data="other images")}, "another network 'net': data was None, is 'other images'"),
        ({"bench": replace(BENCH, name="other")}, "holds results of the bench 'mine', not of 'other'"),
        ({"format": 99}, "has format 99, this parspike writes 1"),
        ({"text": b"my notes\nand more"}, "line 1: this is no result file of a bench"),
        ({"text": b"my notes"}, "is no result file of a bench"),
    ],
)
def test_figures_of_something_else_are_refused_and_kept(
    done: tuple[Path, Benched], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "b.jsonl"
    header, rest = done[0].read_bytes().split(b"\n", 1)
    first = {**json.loads(header), **({"parspike-bench": change["format"]} if "format" in change else {})}
    text = change.get("text", json.dumps(first).encode() + b"\n" + rest)
    path.write_bytes(text)
    with pytest.raises(FileError, match=says):
        parspike.bench(change.get("bench", BENCH), {"net": change.get("network", net())}, path)
    assert path.read_bytes() == text


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no devices in this system")
def test_a_device_is_no_result_file() -> None:
    """Would catch: /dev/zero, /dev/full or a terminal read until memory is full."""
    with pytest.raises(FileError, match="/dev/null is no file to keep results in"):
        parspike.bench(BENCH, {"net": net()}, "/dev/null")
    with pytest.raises(FileError, match="is no file to keep results in"):
        Benched.read(BENCH, "/dev/zero")


def test_files_of_two_machines_are_joined(done: tuple[Path, Benched], tmp_path: Path) -> None:
    """Would catch: a second header taken for damage, figures of other data mixed in without a word, and a figure lost
    because the other machine failed."""
    path, text = tmp_path / "b.jsonl", done[0].read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    failed = [{"cell": line["cell"], "failed": "no memory"} if "cell" in line else line for line in lines]
    for rest in (text, "".join(json.dumps(line) + "\n" for line in failed)):
        path.write_text(text + rest)
        assert Benched.read(BENCH, path).rows == done[1].rows
        path.write_text(rest + text)
        assert Benched.read(BENCH, path).rows == done[1].rows
    for line in lines:
        if "data" in line:
            line["data"] = {"data": "another"}
    path.write_text(text + "".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(FileError, match=r"figures of another network 'net': data was .*, is 'another'"):
        Benched.read(BENCH, path)
    path.write_text(text + text.replace(f'"bench": "{BENCH.name}"', '"bench": "other"'))
    with pytest.raises(FileError, match="holds results of the bench 'other'"):
        Benched.read(BENCH, path)


def test_a_file_of_an_earlier_version_goes_on_and_lines_say_theirs(done: tuple[Path, Benched], tmp_path: Path) -> None:
    """Would catch figures of an earlier version that are lost, measured again, or shown as this version's."""
    path, before = tmp_path / "b.jsonl", [json.loads(line) for line in done[0].read_text().splitlines()]
    kept = [line for line in before if line.get("cell", {}).get("method") != "max-norm"]
    for line in kept:
        line |= {name: {"version": "0.1.0", "versions": {**line.get("versions", {}), "parspike": "0.1.0"}}[name]
                 for name in ("version", "versions") if name in line}  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in kept)
    path.write_text(text)
    found = parspike.bench(BENCH, {"net": net()}, path)
    assert path.read_text().startswith(text)
    assert path.read_text().count("\n") == len(before)
    assert {row["method"]: row["version_parspike"] for row in found.rows} == {
        "closed-form": "0.1.0", "weighted": "0.1.0", "max-norm": parspike.__version__
    }  # fmt: skip
    shown = str(found)
    assert "parspike 0.1.0" in shown
    assert f"parspike {parspike.__version__}" in shown


def test_half_a_line_is_cut_off_and_a_damaged_one_is_named(done: tuple[Path, Benched], tmp_path: Path) -> None:
    path, text = tmp_path / "b.jsonl", done[0].read_bytes()
    for half in (text[:20], text[:-30], text + b'{"cell": {"net'):
        path.write_bytes(half)
        parspike.bench(BENCH, {"net": net()}, path)
        assert untimed(path) == untimed(done[0])
    for line in (b'{"other": 1}', b'{"cell": 3}'):
        path.write_bytes(text + line + b"\n")
        with pytest.raises(FileError, match="the line is damaged: take it out"):
            Benched.read(BENCH, path)
    path.write_bytes(text + b'{"cell": {"net\n')
    with pytest.raises(FileError, match=f"line {text.count(bytes([10])) + 1}: the line is damaged: take it out"):
        Benched.read(BENCH, path)


def test_of_processes_that_share_a_file_one_claims_a_cell(tmp_path: Path) -> None:
    one, two = (ResultFile(tmp_path / "b.jsonl", "mine", Together()) for _ in range(2))
    for rank, file in enumerate((one, two)):
        file.together.size, file.together.rank = 2, rank  # pyright: ignore
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        file._claims = os.open(file._claims_path, flags)
    assert [one.claim("a"), two.claim("a"), two.claim("b"), one.claim("b")] == [True, False, True, False]
    two.__exit__()
    one.__exit__()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- the bench file

TOML = """
T = [2, 4]
methods = ["max-norm", "short"]

[networks.tiny]
spec = "net.py:small"
data = "data.npz"
calibration_images = 16
batch_size = 10

[method.short]
recipe = {name = "closed-form", refit = false}
neurons = ["sorted", "weighted"]
T = [3]

[[published]]
network = "tiny"
method = "max-norm"
T = 4
accuracy = 50.5
source = "nobody"
"""


def test_a_bench_file_says_its_cells() -> None:
    bench = Bench.from_toml(TOML, "here/b.toml")
    assert (bench.name, bench.folder, bench.networks["tiny"].batch_size) == ("b", Path("here"), 10)
    assert [str(cell) for cell in bench.cells()] == [
        "tiny, max-norm, if, T=2, seed 0", "tiny, max-norm, if, T=4, seed 0",
        "tiny, short, sorted, T=3, seed 0", "tiny, short, weighted, T=3, seed 0",
    ]  # fmt: skip
    assert bench.recipe("short") == parspike.ClosedForm(refit=False)
    cell = next(bench.cells())
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


def test_a_line_of_before_a_recipe_had_an_option_is_of_the_same_cell() -> None:
    """It would catch figures that are measured again, and left out of tables, since a recipe has a new option."""
    recipe = recipe_to_json(parspike.ClosedForm(weigh="own"))
    cell = Cell("n", "m", json.dumps(recipe, sort_keys=True), "sorted", 4, 0)
    line = cell.to_json()
    for option in ("all_rows", "ridge"):
        del line["recipe"][option]
    assert Cell.from_json(line) == cell
    line["recipe"]["weigh"] = "next"
    assert Cell.from_json(line) != cell
    users = {**line, "recipe": {"name": "nowhere.py:Mine", "share": 2}}
    assert json.loads(Cell.from_json(users).recipe) == users["recipe"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("T = [2, 4]", "T = [2, 4", r"b.toml: no valid TOML: .*line 3"),
        ("methods =", "metods =", r"line 3: unknown key 'metods' \(did you mean 'methods'"),
        ("batch_size", "batchsize", r"line 9: unknown key 'batchsize' in \[networks.tiny\] \(did you mean"),
        ('"max-norm", "short"', '"max-nrom"', r"line 3: there is no method 'max-nrom' \(did you mean 'max-norm'\?\)"),
        ('"max-norm", "short"', '"max-norm", "shrt"', r"line 3: there is no method 'shrt' \(did you mean 'short'\?\)"),
        ("refit", "refot", r"line 12: recipe 'closed-form' has no option 'refot' \(did you mean 'refit'\?\)"),
        ('spec = "net.py:small"\n', "", r"line 5: \[networks.tiny\] has no spec: add it"),
        ("calibration_images = 16", 'calibration_images = "16"', "line 8: calibration_images = '16': give a whole"),
        ("T = [2, 4]", "T = [2, true]", r"line 2: T = \[2, True\]: give a whole number"),
        ("T = [2, 4]", "T = [2, 0]", r"line 2: T holds 0: give whole numbers from 1"),
        ("T = [2, 4]", "T = [2, 2]", r"line 2: T = \[2, 2\] holds a number twice"),
        ("T = [2, 4]", "T = []", "line 2: T holds nothing: give one entry at least"),
        ('"weighted"]', '"wieghted"]', "method 'short': 'wieghted' are no neurons: choose sorted, weighted"),
        ('"closed-form", refit = false', '"max-norm"', "method 'short': its recipe makes neurons of its own"),
        ("accuracy = 50.5", "acuracy = 50.5", r"line 20: unknown key 'acuracy' in \[\[published\]\]"),
        ("calibration_images = 16", "limit = 0", "line 8: network 'tiny': limit is 0: give 1 at least"),
        ("calibration_images = 16", "T = [0]", "line 8: network 'tiny': T holds 0: give whole numbers from 1"),
        ('name = "closed-form"', 'name = "no.py:X"', "line 12: recipe no.py:X: there is no file .*no.py"),
        ('"max-norm", "short"', '"no.py:X"', "line 3: recipe no.py:X: there is no file .*no.py"),
        ("[networks.tiny]", "[network.tiny]", r"line 5: unknown key 'network' \(did you mean 'networks'"),
        ("calibration_images = 16", "calibration_images = 0", "line 8: network 'tiny': calibration_images is 0"),
        ('name = "closed-form", ', "", "method 'short': its recipe has no name: give recipe"),
        ('"weighted"]', '"weighted", "weighted"]', "method 'short': neurons holds 'weighted' twice: give each once"),
        ("T = [3]", 'networks = ["tini"]', r"line 14: method 'short': there is no network 'tini' \(did you"),
    ],
)  # fmt: skip
def test_a_typo_is_told_with_its_line_and_remedy(old: str, new: str, says: str) -> None:
    assert old in TOML
    with pytest.raises((OptionError, FileError), match=says):
        Bench.from_toml(TOML.replace(old, new, 1), "b.toml")


@pytest.mark.parametrize("name", ["benchmarks/cifar10.toml", "benchmarks/imagenet500.toml", "digits"])
def test_the_benches_that_come_along_can_be_read(name: str) -> None:
    root = SOURCE.parent
    bench = Bench.read(root / name if "/" in name else name)
    assert bench.about
    assert "max-norm" in {cell.method for cell in bench.cells()}
    for table in bench.networks.values():
        where = table.spec.rpartition(":")[0]
        assert not where.endswith(".py") or bench.path(where).is_file()


def test_an_unknown_bench_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no bench 'digit' \(did you mean 'digits'\?\)"):
        Bench.read("digit")
    with pytest.raises(FileError, match="there is no file"):
        Bench.read("nowhere.toml")
    (tmp_path / "b.toml").write_bytes(b"T = [1]  # \xff")
    with pytest.raises(FileError, match=r"b\.toml: cannot be read"):
        Bench.read(tmp_path / "b.toml")
    for key, give in (("networks", r"tables \[networks\.NAME\]"), ("published", r"tables \[\[published\]\]")):
        with pytest.raises(OptionError, match=f"line 1: '{key}' is 3: give {give}"):
            Bench.from_toml(f"{key} = 3\nT = [1]\nmethods = ['max']", "b.toml")
    with pytest.raises(OptionError, match=r"'training' is 3: give a table \[training\]"):
        Bench.from_toml("T = [1]\nmethods = ['max']\ntraining = 3", "b.toml")
    with pytest.raises(OptionError, match=r"the bench has no network 'nt' \(did you mean 'net'\?\)"):
        parspike.bench(
            replace(BENCH, networks={"net": NetworkTable("n.py:n", "d")}), {"nt": net()}, tmp_path / "b.jsonl"
        )


# ------------------------------------------------------------------------------------------------ tables and figures


def test_tables_hold_the_numbers_of_the_rows(done: tuple[Path, Benched], tmp_path: Path) -> None:
    found = done[1]
    rows = {row["method"]: row for row in found.rows}
    table = found.table("cells", "net")
    for cells in table.rows:
        shown = dict(zip(table.head, cells, strict=True))
        row = rows[shown["method"]]
        assert shown["accuracy %"] == f"{row['accuracy']:.2f}"
        assert shown["quantised %"] == f"{row['quantised_accuracy']:.2f}"
        assert (shown["levels"], shown["bits"]) == (str(row["levels"]), f"{row['bits']:g}")
        assert float(shown["drop"].replace("−", "-")) == pytest.approx(
            row["network_accuracy"] - row["accuracy"], abs=0.01
        )
        assert shown["published"] == ("91.5 at T=4" if row["method"] == "max-norm" else "")
    by_T = found.table("training-free")
    assert by_T.head == ["network", "method", "neuron", "kind of learning", "T=4", "published"]
    cells = {line[1]: line for line in by_T.rows}
    assert cells["weighted"][4].endswith("{15}")
    assert cells["max-norm"][4:] == [cells["max-norm"][4], "91.5 at T=4"]
    assert cells["quantised to T levels"][4] == f"{rows['closed-form']['quantised_accuracy']:.2f}"
    assert "published: A. Nobody, 2020" in by_T.remarks
    assert found.table("qcfs").rows == [["VGG", "qcfs", "", "not run here", "–", "91 at T=2"]]
    kinds = {line[1]: line for line in found.table("kinds").rows}
    assert set(kinds) == {"parallel conversion", "serial conversion"}
    by_levels = {line[1]: line for line in found.table("levels").rows}
    assert set(by_levels) == {"4", "15"}
    read = list(csv.DictReader(io.StringIO(found.csv())))
    assert [float(line["accuracy"]) for line in read] == [row["accuracy"] for row in found.rows]
    assert found.save(tmp_path / "b.json").is_file()
    told = json.loads((tmp_path / "b.json").read_text())
    assert told["rows"] == found.rows
    latex = found.latex()
    assert latex.count(r"\begin{tabular}") == len([name for name in TABLES if found.table(name).rows])
    assert r"accuracy \%" in latex
    assert "_" not in latex.replace(r"\_", "").replace("x86_64", "")
    with pytest.raises(OptionError, match=r"no table 'celles' \(did you mean 'cells'"):
        found.table("celles")
    with pytest.raises(OptionError, match="no network 'nett' was measured"):
        found.table("cells", "nett")
    with pytest.raises(FileError, match="exists"):
        found.save(tmp_path / "b.json")


def test_direct_training_stands_beside(done: tuple[Path, Benched], tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"how": {"method": "tdBN"}, "steps": 4, "top1": 88.25, "seconds": 61.0, "memory_mib": 512}\n'
    )
    training = Training("t.jsonl", method="how.method", T="steps", accuracy="top1")
    found = Benched.read(replace(BENCH, training=training, folder=tmp_path), done[0])
    row = dict(zip(*(lambda t: (t.head, t.rows[-1]))(found.table("kinds")), strict=True))
    assert (row["kind of learning"], row["method"], row["training or fit, s"]) == ("direct training", "tdBN", "61")
    assert (row["memory, MiB"], row["accuracy %"], row["steps"]) == ("512", "88.25", "4")
    table = found.table("qcfs")
    assert ["tdBN", "88.25"] in [[line[1], line[table.head.index("T=4")]] for line in table.rows]
    with (tmp_path / "t.jsonl").open("a") as stream:
        stream.write('{"how": {"method": "tdBN"}, "steps": 4, "top1": 90.25, "seconds": 63.0}\n')
        stream.write('{"how": {"method": "relu"}, "steps": null, "top1": 99.0}\n')
    (several,) = Benched.read(replace(BENCH, training=training, folder=tmp_path), done[0]).trained
    assert (several.shown, several.seconds, several.memory, several.runs) == ("89.25 ± 1.41", 62.0, 512, 2)
    shares = replace(training, share=True)
    assert Benched.read(replace(BENCH, training=shares, folder=tmp_path), done[0]).trained[0].accuracy == 8925
    wrong = replace(BENCH, training=Training("t.jsonl", accuracy="best"), folder=tmp_path)
    with pytest.raises(FileError, match="line 1: no row of training"):
        Benched.read(wrong, done[0]).table("kinds")
    with pytest.raises(FileError, match=r"\[training\] file = 'no.jsonl'"):
        Benched.read(replace(BENCH, training=Training("no.jsonl")), done[0]).table("kinds")


def test_the_table_of_kinds_takes_the_fewest_steps_near_the_network(tmp_path: Path) -> None:
    path, made = tmp_path / "k.jsonl", {"versions": {"torch": "2", "parspike": "0"}, "commit": None, "machine": "m"}
    bench = Bench("k", T=(2, 4, 8), methods=("daqcfs", "max-norm"))
    lines: list[dict[str, Any]] = [{"parspike-bench": 1, "bench": "k", "version": "0"}]
    accuracy = {("daqcfs", 2): 88.0, ("daqcfs", 4): 89.5, ("daqcfs", 8): 90.5,
                ("max-norm", 2): 10.0, ("max-norm", 4): 60.0, ("max-norm", 8): 70.0}  # fmt: skip
    for cell in bench.cells(["n"]):
        figures = {"accuracy": accuracy[cell.method, cell.T], "network_accuracy": 90.0, "steps": cell.T, "levels": 4,
                   "images": 1, "calibration_images": 1, "network_macs": 1, "network_energy_pj": 1}  # fmt: skip
        lines.append({"cell": cell.to_json(), **figures, **made})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = Benched.read(bench, path).table("kinds")
    shown = {line[1]: dict(zip(table.head, line, strict=True)) for line in table.rows}
    assert {kind: (row["steps"], row["accuracy %"], row["drop"]) for kind, row in shown.items()} == {
        "parallel conversion": ("4", "89.50", "0.50"), "serial conversion": ("8", "70.00", "20.00")
    }  # fmt: skip


def test_the_figure_shows_the_rows(done: tuple[Path, Benched]) -> None:
    pytest.importorskip("matplotlib")
    found = done[1]
    made = found.figure()
    accuracy, levels, speed, when = made.axes
    rows = {(row["method"], row["neuron"]): row for row in found.rows}
    for axes, along, up in (
        (accuracy, "steps", "accuracy"), (levels, "levels", "accuracy"), (speed, "T", "ratio"),
        (when, "ratio", "accuracy"),
    ):  # fmt: skip
        drawn = {line.get_label(): line for line in axes.get_lines()}
        for key, row in rows.items():
            assert drawn[", ".join(key)].get_xydata().tolist() == [[row[along], row[up]]]
        own = found.rows[0]["network_accuracy"] if up == "accuracy" else 1
        assert list(drawn["network"].get_ydata()) == [own, own]
    drawn = {line.get_label(): line for line in levels.get_lines()}
    assert list(drawn["quantised network"].get_xdata()) == [4, 15]
    lines = [line for line in accuracy.get_lines() if line.get_label() != "network"]
    assert [line.get_color() for line in lines] == list(COLOURS[:3])
    assert len({line.get_marker() for line in lines}) == 3
    assert len(found.figure(["speed"], ["net"]).axes) == 1
    with pytest.raises(OptionError, match=r"no 'sped' to draw \(did you mean 'speed'"):
        found.figure(["sped"])
    with pytest.raises(InputError, match="no measured cell to draw"):
        Benched(BENCH, Lines()).figure()
    assert set(PANELS) == {"accuracy", "levels", "speed", "time"}


def test_a_figure_of_many_methods_can_be_read(done: tuple[Path, Benched]) -> None:
    """Would catch: a legend that the figure cuts off, numbers of an axis on top of one another, a method in the colour
    of the network itself, and two methods that look alike."""
    pytest.importorskip("matplotlib")
    bench = Bench("many", T=(2, 4), methods=("all",))
    figure, lines = dict(done[1].lines[0].figures[0]), Lines()
    for number, cell in enumerate(bench.cells(["net"])):
        more = {"levels": 2 ** (1 + number % 16), "ratio": 1.5 + number / 60, "steps": cell.T}
        lines.cells[cell] = {**figure, "cell": cell.to_json(), **more}
    made = Benched(bench, lines).figure()
    made.canvas.draw()
    (legend,) = made.legends
    box, whole = legend.get_window_extent(), made.bbox
    assert whole.y0 <= box.y0
    assert box.x1 <= whole.x1
    assert [text.get_text() for text in legend.get_texts()][-1] == "network"
    looks = [(line.get_color(), line.get_marker()) for line in made.axes[0].get_lines() if line.get_marker() != "None"]
    assert len(looks) == len(set(looks)) >= 20
    assert "#000000" not in dict(looks)
    for axes in made.axes:
        for axis, sides in ((axes.xaxis, ("x0", "x1")), (axes.yaxis, ("y0", "y1"))):
            low, high = sorted(axis.get_view_interval())
            ticks = [(place, text) for place, text in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
                     if low <= place <= high]  # fmt: skip
            shown = [text.get_window_extent() for _, text in sorted(ticks, key=lambda tick: tick[0])]
            assert len(shown) >= 2
            assert all(getattr(a, sides[1]) <= getattr(b, sides[0]) for a, b in pairwise(shown))
            assert not any(text.get_text() for text in axis.get_ticklabels(minor=True))


@pytest.mark.parametrize(("suffix", "begins"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_figure_is_a_file_equal_for_equal_rows(
    done: tuple[Path, Benched], tmp_path: Path, suffix: str, begins: bytes
) -> None:
    pytest.importorskip("matplotlib")
    one, two = (done[1].save(tmp_path / f"{n}.{suffix}").read_bytes() for n in (1, 2))
    assert one.startswith(begins)
    assert one == two


def test_tables_need_no_matplotlib(done: tuple[Path, Benched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done[1].save(tmp_path / "b.md")
    with pytest.raises(MissingExtraError, match=r"parspike\[report\]"):
        done[1].save(tmp_path / "b.pdf")


def test_a_page_is_rendered_between_its_marks(done: tuple[Path, Benched], tmp_path: Path) -> None:
    page, found = tmp_path / "page.md", done[1]
    page.write_text("a\n<!-- bench mine cells net -->\nold\n<!-- end -->\nb\n<!-- bench other cells -->\nc\n"
                    "<!-- end -->\n<!-- bench mine levels -->\n<!-- end -->\n")  # fmt: skip
    for _ in range(2):  # what was rendered is replaced
        found.render(page)
        text = page.read_text()
        assert text.count(found.table("cells", "net").markdown()) == 1
        assert text.count(found.table("levels").markdown()) == 1
        assert "old" not in text
        assert "b\n<!-- bench other cells -->\nc\n<!-- end -->" in text
    for wrong, says in (
        ("nothing", "has no mark"), ("<!-- bench mine cells -->\n", "has no <!-- end -->"),
        ("<!-- bench mine cells -->\n<!-- bench mine kinds -->\n<!-- end -->", "has no <!-- end -->"),
    ):  # fmt: skip
        page.write_text(wrong)
        with pytest.raises(FileError, match=says):
            found.render(page)

    page.write_bytes(b"\xff")
    with pytest.raises(FileError, match=r"page\.md: cannot be read"):
        found.render(page)
    assert "<table" in found._repr_html_()


def test_a_line_that_the_disk_does_not_take_is_told(
    done: tuple[Path, Benched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch half a line of a full disk taken for a whole one, and an error of the system without a file."""
    path = tmp_path / "b.jsonl"
    path.write_bytes(done[0].read_bytes())
    write = os.write
    with ResultFile(path, "mine", Together()) as file:
        monkeypatch.setattr(os, "write", lambda stream, line: write(stream, line[:5]))
        with pytest.raises(FileError, match=r"cannot write .*b\.jsonl': the last line could not be written whole"):
            file.write({"a": "b" * 20})

        def full(stream: int, line: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(FileError, match="No space left on device; the lines before are as they were"):
            file.write({})
    monkeypatch.undo()
    with (
        pytest.raises(FileError, match=r"cannot be written \("),
        ResultFile(tmp_path / "none" / "b", "mine", Together()),
    ):
        pass


# -------------------------------------------------------------------------------------------------- the command line

NET = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bench, its network in a file, and 40 labelled images that are not divided."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "b.toml").write_text(TOML)
    (tmp_path / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    np.savez("data.npz", images=rng.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8), labels=rng.integers(0, 3, 40))
    return tmp_path


def started(*words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "parspike", *words]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_bench_goes_on_after_a_kill_and_processes_share_its_cells(here: Path) -> None:
    path = here / "killed.jsonl"
    process = started("bench", "b.toml", "--results", str(path))
    until = time.monotonic() + 300  # two cells take seconds, but not where other work has the cores
    while sum('"cell"' in line for line in lines_of(path)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = path.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert 2 <= before.count(b'"cell"') < 4
    shared = started("bench", "b.toml", "--results", "shared.jsonl", "--jobs", "2")  # meanwhile
    told = answer(f"bench b.toml --results {path}")
    assert path.read_bytes().startswith(before)
    assert (len(told["rows"]), told["waiting"], told["left_out"]) == (4, 0, [])
    keys = [json.dumps(json.loads(line).get("cell")) for line in lines_of(path)[2:]]
    assert len([key for key in keys if key != "null"]) == 4
    assert sorted(line["levels"] for line in told["quantised"]) == [2, 3, 4, 7]
    assert {row["images"] for row in told["rows"]} == {24}  # 16 of 40 to fit on, all others measured
    _, stderr = shared.communicate(timeout=240)
    assert shared.returncode == 0, stderr
    assert untimed(here / "shared.jsonl") == untimed(path)
    assert not list(here.glob(".*claims"))


def test_the_command_writes_tables_and_renders_without_running(here: Path) -> None:
    outcome = run("bench", "b.toml", "--only", "T=2,T=3", "--out", "t.md", "--out", "t.tex", "--out", "t.csv")
    assert outcome.exit_code == 0, outcome.output
    assert "3/6 tiny, short, weighted, T=3, seed 0: accuracy " in outcome.stderr
    assert "1 cells have not been run" in outcome.stdout
    assert "written: t.md" in outcome.stdout
    before = (here / "b.jsonl").read_bytes()
    assert before.count(b'"cell"') == 3
    Path("page.md").write_text("<!-- bench b training-free -->\n<!-- end -->\n")
    told = answer("bench b.toml --render page.md --out u.md")
    assert told["written"] == ["page.md", "u.md"]
    assert told["waiting"] == 1
    assert (here / "b.jsonl").read_bytes() == before
    assert "| tiny | max-norm | if | serial conversion |" in Path("page.md").read_text()
    assert Path("u.md").read_text() == Path("t.md").read_text()


def test_a_bench_that_could_measure_nothing_ends_with_1(here: Path) -> None:
    with np.load("data.npz") as file:
        np.savez("low.npz", images=file["images"], labels=file["labels"] - 1)
    Path("low.toml").write_text(TOML.replace("data.npz", "low.npz"))
    outcome = run("bench", "low.toml", "--only", "T=3")
    assert "left out: tiny, short, weighted: the data have a class -1" in outcome.stdout
    assert outcome.exit_code == 1


def test_other_data_are_refused_on_the_command_line(here: Path) -> None:
    assert run("bench", "b.toml", "--only", "T=3").exit_code == 0
    with np.load("data.npz") as file:
        images, labels = file["images"], file["labels"]
    np.savez("data.npz", images=images[::-1], labels=labels)
    assert "b.jsonl has figures of another network 'tiny': data was" in error("bench b.toml --only T=3")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("bench no.toml", "there is no file 'no.toml'"),
        ("bench digit", "there is no bench 'digit' (did you mean 'digits'?)"),
        ("bench b.toml --only tini", "the bench has no 'tini' (did you mean 'tiny'?)"),
        ("bench b.toml --out t.mdd", "--out t.mdd: a file ends in .csv"),
        ("bench b.toml --render page.md", "there is no file 'page.md'"),
        ("bench b.toml --render b.toml --retry", "--render runs nothing"),
        ("bench b.toml --render b.toml", "b.jsonl: cannot be read"),
        ("bench lost.toml", "lost.toml, [networks.tiny]: data lost.npz: no such file"),
        ("bench wrong.toml", "wrong.toml, line 3: unknown key 'metods' (did you mean 'methods'"),
        ("bench empty.toml", "empty.toml: the bench has no network: add a table [networks.NAME]"),
    ],
)
def test_wrong_options_are_refused(here: Path, words: str, says: str) -> None:
    Path("lost.toml").write_text(TOML.replace("data.npz", "lost.npz"))
    Path("wrong.toml").write_text(TOML.replace("methods", "metods"))
    Path("empty.toml").write_text('methods = ["max-norm"]')
    assert says in error(words)
    assert not Path("b.jsonl").exists()


def test_a_split_source_is_measured_on_its_test_part(here: Path) -> None:
    from parspike.cli.bench import _network

    with np.load("data.npz") as file:
        images, labels = file["images"], file["labels"]
    np.savez("split.npz", train_images=images[:30], train_labels=labels[:30], test_images=images[30:],
             test_labels=labels[30:])  # fmt: skip
    tables = {"t": NetworkTable("net.py:small", "split.npz", calibration_images=20, limit=6)}
    network = _network(Bench("b", networks=tables), "t", "b.toml", torch.device("cpu"))
    assert [len(x) for x, _ in network.calibration(1)] == [20]
    one, two = (torch.cat([x for x, _ in network.calibration(seed)]) for seed in (0, 1))
    assert not torch.equal(one, two)
    items, again = (torch.cat([x for x, _ in network.data(seed)]) for seed in (0, 1))
    assert torch.equal(items, again)  # every seed is measured on the same images
    test = torch.from_numpy(images[30:]).permute(0, 3, 1, 2).float() / 255
    assert len(items) == 6
    assert all(any(torch.equal(x, y) for y in test) for x in items)
