"""The commands end to end: a network in a file, images in a file, a converted file, and every exit."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import parspike
import parspike.__main__
from parspike.cli import app
from parspike.cli.spec import load
from parspike.errors import CalibrationError

NET = """
import torch
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )

def analog():
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Softmax(-1), nn.Linear(8, 3))

def quantised():
    from parspike import QCFS
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), QCFS(4), nn.Linear(8, 3))
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def answer(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    """The one JSON object on stdout."""
    outcome = run(*arguments, "--json")
    assert outcome.exit_code == exit_code, outcome.stderr
    return json.loads(outcome.stdout)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with mynet.py, its weights, and twelve labelled images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mynet.py").write_text(NET)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(36, 3)
    )
    save_file({k.replace("3.", "4."): v for k, v in model.state_dict().items()}, "w.safetensors")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    np.savez("data.npz", images=images, labels=rng.integers(0, 3, 12))
    return tmp_path


@pytest.fixture
def converted(here: Path) -> Path:
    made = run("convert", "mynet.py:net", "--weights", "w.safetensors", "--data", "data.npz", "-o", "n.parspike")
    assert made.exit_code == 0, made.stderr
    return here / "n.parspike"


def test_plan_shows_every_layer(here: Path) -> None:
    shown = run("plan", "mynet.py:net", "--shape", "3,6,6")
    assert shown.exit_code == 0
    for word in ("conv2d", "relu", "max_pool2d", "parallel spiking neuron", "1 spiking"):
        assert word in shown.stdout
    said = answer("plan", "mynet.py:net", "--shape", "3,6,6")
    assert said["ok"]
    assert "relu" in [row["operator"] for row in said["rows"]]


def test_plan_ends_with_1_where_a_layer_is_refused(here: Path) -> None:
    refused = run("plan", "mynet.py:analog", "--shape", "3,6,6", "--strict")
    assert refused.exit_code == 1
    assert "softmax" in refused.stdout
    assert not answer("plan", "mynet.py:analog", "--shape", "3,6,6", "--strict", exit_code=1)["ok"]


def test_convert_writes_what_the_library_would_make(converted: Path) -> None:
    snn = parspike.load(converted)
    assert snn.T == 8
    assert snn.provenance["calibration"]["samples"] == 12
    assert snn.provenance["command_line"]["spec"] == "mynet.py:net"


def test_eval_counts_operations(converted: Path) -> None:
    common = ("eval", "n.parspike", "--data", "data.npz", "--against", "mynet.py:net", "--weights", "w.safetensors")
    said = answer(*common, "--operations")
    report = said["operations"]
    assert report["accuracy"] == said["accuracy"]
    assert report["spikes_per_neuron"] == pytest.approx(said["spikes_per_neuron"])
    assert [(row["operator"], row["kind"]) for row in report["rows"]] == [
        ("conv2d", "synapse"), ("relu", "neuron"), ("linear", "synapse")
    ]  # fmt: skip
    assert report["rows"][2]["synops"] == pytest.approx(3 * report["spikes"])
    shown = run(*common, "--operations")
    assert "SynOps" in shown.stdout
    assert "operations" not in answer(*common)
    refused = answer(*common, "--operations", "--engine", "serial-if", exit_code=1)
    assert "leave one out" in refused["error"]["message"]


def test_eval_agrees_with_the_network_after_many_steps(here: Path) -> None:
    common = ("--weights", "w.safetensors", "--data", "data.npz")
    said = answer("convert", "mynet.py:net", *common, "-T", 512, "-o", "n.parspike")
    assert (said["T"], said["images"], said["spiking_layers"]) == (512, 12, 1)
    assert said["bytes"] == (here / "n.parspike").stat().st_size
    score = answer("eval", "n.parspike", *common, "--against", "mynet.py:net")
    assert score["agreement"] == 1
    assert score["accuracy"] == score["network_accuracy"]
    assert score["images"] == 12
    assert 0 < score["spikes_per_neuron"] < 512
    assert score["seconds_per_image"] > 0
    text = run("eval", "n.parspike", "--data", "data.npz").stdout
    assert "spikes per neuron" in text
    assert "agreement" not in text


def test_engines_give_one_answer(converted: Path) -> None:
    scores = [
        answer("eval", converted, "--data", "data.npz", "--engine", engine)
        for engine in ("count", "parallel", "serial")
    ]
    assert len({(s["accuracy"], s["spikes_per_neuron"]) for s in scores}) == 1
    assert answer("eval", converted, "--data", "data.npz", "--engine", "serial-if")["engine"] == "serial-if"


def test_eval_prepares_images_as_convert_did(here: Path) -> None:
    prepared = ("--data", "data.npz", "--mean", "0.5,0.4,0.3", "--std", "0.2")
    answer("convert", "mynet.py:net", *prepared, "-o", "n.parspike")
    told = answer("eval", "n.parspike", *prepared)
    untold = answer("eval", "n.parspike", "--data", "data.npz")
    assert untold["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert untold["spikes_per_neuron"] == told["spikes_per_neuron"]
    other = answer("eval", "n.parspike", "--data", "data.npz", "--mean", "0")
    assert other["preprocessing"] | {"mean": None} == untold["preprocessing"] | {"mean": None}
    assert other["spikes_per_neuron"] != told["spikes_per_neuron"]


def test_convert_twice_gives_the_same_file(here: Path) -> None:
    common = ("convert", "mynet.py:net", "--data", "data.npz", "--weights", "w.safetensors")
    answer(*common, "-o", "a.parspike", "--batch-size", 5)
    answer(*common, "-o", "b.parspike", "--batch-size", 5)
    assert (here / "a.parspike").read_bytes() == (here / "b.parspike").read_bytes()


def test_recipe_and_passes_reach_the_file(here: Path) -> None:
    said = answer(
        "convert",
        "mynet.py:net",
        "--data",
        "data.npz",
        "-o",
        "n.parspike",
        "--recipe",
        "daqcfs",
        "--passes",
        3,
    )
    assert "3" in json.dumps(said["provenance"]["recipe"])
    error = answer("convert", "mynet.py:net", "--data", "data.npz", "-o", "m.parspike", "--recipe", "max",
                   "--passes", 3, exit_code=1)["error"]  # fmt: skip
    assert error["type"] == "OptionError"
    assert "makes no passes" in error["message"]


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("99%", parspike.Thresholds("99%")),
        ('{"name": "thresholds", "mode": "99%", "granularity": "layer"}', parspike.Thresholds("99%", "layer")),
        ('{"name": "closed-form", "refit": false, "weigh": "next"}', parspike.ClosedForm(refit=False, weigh="next")),
    ],
)
def test_options_of_thresholds_reach_the_file(here: Path, text: str, made: parspike.Recipe) -> None:
    answer("convert", "mynet.py:net", "--data", "data.npz", "-o", "n.parspike", "--recipe", text)
    assert parspike.recipe_from_json(parspike.load("n.parspike").provenance["recipe"]) == made


def test_a_qcfs_network_needs_no_data_at_its_own_levels(here: Path) -> None:
    common = ("convert", "mynet.py:quantised", "--shape", "3,6,6", "-o", "n.parspike")
    assert answer(*common, "-T", 4)["images"] == 0
    error = answer(*common, "-T", 8, "--force", exit_code=1)["error"]
    assert error["type"] == "CalibrationError"
    assert "--data" in error["message"]


def test_an_existing_file_stays_unless_forced(converted: Path) -> None:
    before = converted.read_bytes()
    common = ("convert", "mynet.py:net", "--data", "data.npz", "-T", 4, "-o", converted)
    refused = run(*common)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("error: ")
    assert "--force" in refused.stderr
    assert refused.stdout == ""
    assert converted.read_bytes() == before
    assert run(*common, "--force").exit_code == 0
    assert parspike.load(converted).T == 4


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ("plan mynet.py:net", "OptionError", "--shape 3,224,224"),
        ("plan mynet.py:net --shape 3,x", "OptionError", "--shape 3,x"),
        ("convert mynet.py:net --data data.npz -o n.parspike -T 0", "OptionError", "from 1 to"),
        ("convert mynet.py:net --data data.npz -o n.parspike -T many", "OptionError", "from 1 to 16777216, got many"),
        ("convert mynet.py:net --data data.npz", "MissingParameter", "--output"),
        ("convert mynet.py:net --data data.npz -o no/n.parspike", "FileError", "no folder no"),
        ("convert mynet.py:net --data data.npz -o n.parspike --keep zz", "OptionError", "zz"),
        ("convert mynet.py:net --data data.npz -o n.parspike --recipe zz", "OptionError", "zz"),
        ("convert mynet.py:net --data data.npz -o n.parspike --mean a,b", "OptionError", "--mean a,b"),
        ("convert mynet.py:net --data data.npz -o n --calibration-images 0", "OptionError", "at least 1"),
        ("eval absent.parspike --data data.npz", "FileError", "absent.parspike"),
        ("eval data.npz --data data.npz", "FileError", "data.npz"),
    ],
)  # fmt: skip
def test_one_clear_error(here: Path, arguments: str, kind: str, says: str) -> None:
    error = answer(*arguments.split(), exit_code=1)["error"]
    assert kind in error["type"]
    assert says in error["message"]
    assert list(here.glob("*.parspike*")) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--engine warp", "--engine must be count, integer, parallel, serial, serial-if or over-time, got warp"),
        ("--weights w.safetensors", "--against"),
        ("--size 9 --crop 9", r"shape"),
        ("--against mynet.py:net --limit 0", "at least 1"),
    ],
)
def test_eval_refuses(converted: Path, arguments: str, says: str) -> None:
    error = answer("eval", converted, "--data", "data.npz", *arguments.split(), exit_code=1)["error"]
    assert says in error["message"]


def test_eval_refuses_labels_that_the_network_does_not_know(converted: Path) -> None:
    np.savez("other.npz", images=np.zeros((2, 6, 6, 3), np.uint8), labels=np.array([0, 7]))
    error = answer("eval", converted, "--data", "other.npz", exit_code=1)["error"]
    assert "a class 7 but the network knows 3" in error["message"]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array([0, -1]), "a class -1 but the network knows 3"),
        (np.array([0, 2**63], np.uint64), "labels holds 9223372036854775808, which is no class"),
    ],
)
def test_eval_refuses_labels_that_are_no_class(converted: Path, labels: np.ndarray, says: str) -> None:
    np.savez("other.npz", images=np.zeros((2, 6, 6, 3), np.uint8), labels=labels)
    error = answer("eval", converted, "--data", "other.npz", exit_code=1)["error"]
    assert error["type"] == "InputError"
    assert says in error["message"]


def test_a_network_that_does_not_take_the_images_is_told(converted: Path) -> None:
    """An error of torch's ended the command."""
    (converted.parent / "other.py").write_text("import torch\nflat = torch.nn.Linear(7, 3)\n")
    error = answer("eval", converted, "--data", "data.npz", "--against", "other.py:flat", exit_code=1)["error"]
    assert error["type"] == "InputError"
    assert error["message"].startswith("SPEC other.py:flat fails on inputs (12, 3, 6, 6), which the converted network")
    assert error["message"].endswith("Is it the network that it was made from?")


def test_eval_warns_where_class_folders_may_be_missing(converted: Path) -> None:
    for folders, said in ((["bee", "cat"], True), (["0_ant", "2_cat"], False), (["ant", "bee", "cat"], False)):
        root = converted.parent / "-".join(folders)
        for name in folders:
            (root / name).mkdir(parents=True)
            Image.new("RGB", (6, 6)).save(root / name / "a.png")
        outcome = run("eval", converted, "--data", root)
        assert outcome.exit_code == 0, outcome.stderr
        assert ("2 class folders, numbered 0 … 1 in their order, but the network knows 3" in outcome.stderr) is said


def test_eval_tells_the_time_of_the_smallest_network(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(1000))  # one step of 12 µs for each batch
    monkeypatch.setattr("parspike.cli.evaluate.time.perf_counter", lambda: next(times) * 12e-6)
    assert "0.00100 ms an image" in run("eval", converted, "--data", "data.npz").stdout


def test_random_weights_are_said_on_stderr_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    outcome = run("plan", "timm:resnet18", "--json")  # which does not look at them
    assert outcome.stderr == ""
    assert json.loads(outcome.stdout)["ok"]
    load("timm:resnet18", None)
    out, err = capsys.readouterr()
    assert out == ""
    assert "timm:resnet18 has random weights: give trained ones with --weights FILE" in err


def test_interrupted_leaves_no_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parspike, "convert", interrupted)
    outcome = run("convert", "mynet.py:net", "--data", "data.npz", "-o", "n.parspike")
    assert outcome.exit_code == 130
    assert "interrupted" in outcome.stderr
    assert list(here.glob("*.parspike*")) == []


def test_interrupted_before_the_command_begins(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch Python's traceback, or silence, where Ctrl-C falls into imports or into reading the options."""

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("parspike.cli.OneClearError.make_context", interrupted)
        outcome = run("plan", "mynet.py:net", "--shape", "3,6,6", "--json")
    assert outcome.exit_code == 130
    assert json.loads(outcome.stdout)["error"]["message"] == "interrupted"
    monkeypatch.setattr("parspike.cli.main", interrupted)
    with pytest.raises(SystemExit) as ended:
        parspike.__main__.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_defect_is_json_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(parspike, "plan", defective)
    outcome = run("plan", "mynet.py:net", "--shape", "3,6,6", "--json")
    assert outcome.exit_code == 1
    assert json.loads(outcome.stdout)["error"] == {"type": "RuntimeError", "message": "a bug"}


def test_an_error_keeps_its_brackets(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise CalibrationError("x[0] and 'parspike[demo]' " + "w" * 100)

    monkeypatch.setattr(parspike, "plan", refuse)
    stderr = run("plan", "mynet.py:net", "--shape", "3,6,6").stderr
    assert stderr == "error: x[0] and 'parspike[demo]' " + "w" * 100 + "\n"


NAMED = """
import torch
from torch import nn

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.row, self.out = nn.Conv2d(1, 6, 3), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, image, row, scale=None):
        z = self.conv(image).relu().mean((2, 3)) + self.row(row).relu()
        return self.out(z if scale is None else z * scale)
"""


@pytest.fixture
def named(here: Path) -> Path:
    """A network with two inputs and a third that it may have, and data for them."""
    (here / "named.py").write_text(NAMED)
    rng = np.random.default_rng(0)
    arrays = {"image": rng.integers(0, 256, (40, 6, 6), np.uint8), "row": rng.random((40, 5))}
    np.savez("named.npz", **arrays, labels=rng.integers(0, 3, 40))
    np.savez("scaled.npz", **arrays, scale=rng.random((40, 6)))
    return here


@pytest.mark.parametrize("data", ["named.npz", "scaled.npz"])
def test_a_network_with_several_inputs_takes_arrays_by_their_names(named: Path, data: str) -> None:
    """Catches a command that hands one input on, or the inputs in another order or without one of them."""
    assert answer("plan", "named.py:Named", "--data", data)["ok"]
    recipe = ("--recipe", "closed-form", "-T", 64)
    made = answer("convert", "named.py:Named", "--data", data, *recipe, "-o", "n.parspike")
    assert made["images"] == 40
    said = answer("eval", "n.parspike", "--data", data, "--against", "named.py:Named", "--operations")
    assert said["error"] < 0.05
    assert said["operations"]["error"] == pytest.approx(said["error"], rel=1e-4)
    assert (said["accuracy"] is None) == (data == "scaled.npz")
    arrays = np.load(data)
    given = {key: torch.from_numpy(arrays[key]).float() for key in arrays if key != "labels"}
    given["image"] = given["image"][:, None] / 255
    model = importlib.import_module("named").Named().eval()
    with torch.no_grad():
        wanted, found = model(**given), parspike.load("n.parspike")(**given)
    assert float((found - wanted).norm() / wanted.norm()) == pytest.approx(said["error"], rel=0.2)


def test_the_other_commands_take_several_inputs_too(named: Path) -> None:
    recipe = ("--data", "named.npz", "--recipe", "closed-form")
    assert run("convert", "named.py:Named", *recipe, "-T", 4, "-o", "n.parspike").exit_code == 0
    swept = answer("sweep", "named.py:Named", *recipe, "-T", 4, "--codes", "sorted", "--batch-size", 10)
    assert len(swept["rows"]) == 1
    assert answer("diagnose", "n.parspike", "named.py:Named", "--data", "named.npz")["samples"] == 40
    assert answer("lower", "n.parspike", "--data", "named.npz", "-o", "whole.parspike")["images"] == 40
    assert answer("export", "n.parspike", "n.onnx", "--data", "named.npz")["read_back"]["unlike_counts"] == 0
    assert run("spikes", "write", "n.parspike", "--data", "named.npz", "-o", "spikes.npz").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("convert named.py:Named --data data.npz -o n.parspike", "takes image, row: save an array for each"),
        ("convert named.py:Named --data digits -o n.parspike", "np.savez('data.npz', image=…, row=…, labels=…)"),
        ("convert named.py:Named --data short.npz -o n.parspike", "image has 40 rows and row has 30"),
        ("plan named.py:Named --shape 1,6,6", "takes the inputs image, row, and --shape makes one"),
        ("plan named.py:Named --data named.npz --shape 1,6,6", "give one of the two"),
    ],
)
def test_data_that_lack_an_input_say_which(named: Path, arguments: str, says: str) -> None:
    np.savez("short.npz", image=np.zeros((40, 1, 6, 6)), row=np.zeros((30, 5)))
    outcome = run(*arguments.split())
    assert outcome.exit_code == 1
    assert says in outcome.stderr.replace("\n", " ")


def test_the_one_input_of_a_network_is_found_by_its_name(here: Path) -> None:
    """Catches a network whose forward(pixels) needed the key 'x'."""
    (here / "one.py").write_text(
        NAMED.replace("image, row, scale=None", "image").replace(
            "z = self.conv(image).relu().mean((2, 3)) + self.row(row).relu()",
            "z, scale = self.conv(image).relu().mean((2, 3)), None",
        )
    )
    np.savez("one.npz", image=np.random.default_rng(0).random((40, 1, 6, 6)), labels=np.arange(40) % 3)
    assert (
        run(
            "convert", "one.py:Named", "--data", "one.npz", "-T", 4, "--recipe", "closed-form", "-o", "n.parspike"
        ).exit_code
        == 0
    )
    assert answer("eval", "n.parspike", "--data", "one.npz")["images"] == 40
