"""What the command line says, as a new user meets it: every message names the place and the remedy."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner, Result

import parspike
from parspike import errors
from parspike.calibrate import RECIPES
from parspike.cli import app, console, main, options
from parspike.cli.convert import _chosen as chosen
from parspike.cli.options import device_of
from parspike.errors import OptionError

NET = """
from torch import nn
from torch.nn import Conv2d

def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

def wide():
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3))

def batched():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

class Zoo:
    tiny = staticmethod(lambda: nn.Linear(4, 2))
"""
CONVERT = "convert net.py:small -o n.parspike"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def answer(text: str) -> dict[str, Any]:
    """What a command prints with --json."""
    outcome = run(*text.split(), "--json")
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout)


def error(text: str) -> str:
    """The one line on stderr of a command that is refused; nothing on stdout."""
    outcome = run(*text.split())
    assert (outcome.exit_code, outcome.stdout) == (1, ""), outcome.output
    *warnings, said = outcome.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    assert said.startswith("error: ")
    return said.removeprefix("error: ")


def process(*arguments: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own."""
    source = str(Path(parspike.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-m", "parspike", *arguments]
    return subprocess.run(command, capture_output=True, env=env, check=False, timeout=300)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.py and twelve images."""
    return folder(tmp_path, monkeypatch, 12)


def folder(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> Path:
    """The folder, with net.py and so many images, as the place where commands run."""
    monkeypatch.chdir(path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (path / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, 6, 6, 3), dtype=np.uint8)
    np.savez("data.npz", images=images, labels=rng.integers(0, 3, number))
    return path


# -------------------------------------------------------------------------------------------------- one look


def test_the_version() -> None:
    said = run("--version")
    assert (said.exit_code, said.stdout, said.stderr) == (0, f"parspike {parspike.__version__}\n", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("--versoin", ["--versoin", "--version", "--help"]),
        ("plann", ["'plann'", "'plan'", "--help"]),
        ("plan", ["'SPEC'", "plan --help"]),
        ("convert net.py:small", ["--output", "convert --help"]),
        ("convert net.py:small -o", ["-o", "requires an argument"]),
        (f"{CONVERT} --passe 3", ["--passe", "--passes"]),
        (f"{CONVERT} -T 2.5", ["-T must be a whole number from 1 to 16777216, got 2.5"]),
        (f"{CONVERT} -T 0", ["from 1 to 16777216, got 0"]),
        (f"{CONVERT} -T 1000000000", ["from 1 to 16777216, got 1000000000"]),
        (f"{CONVERT} --size x", ["--size must be a whole number of at least 1, got x"]),
        (f"{CONVERT} --seed -1", ["--seed must be a whole number of at least 0, got -1"]),
        (f"{CONVERT} --code fast", ["--code must be sorted, weighted or onset, got fast"]),
        (f"{CONVERT} --data data.npz --split exam", ["--split must be train, test or val, got exam"]),
        ("tune net.py:small --data data.npz --code fast", ["--code must be sorted, weighted or onset, got fast"]),
        ("tune net.py:small --data data.npz --drop nan", ["--drop must be a number from 0 to 100, got nan"]),
        (
            "eval n.parspike --data data.npz --engine warp",
            ["--engine must be count, integer, parallel, serial, serial-if or over-time"],
        ),
        ("train digits --data digits -o r --nodes 0", ["--nodes must be a whole number of at least 1, got 0"]),
        ("data chek", ["'chek'", "'check'"]),
        (f"{CONVERT} --device gpu", ["--device gpu", "choose auto, cpu, cuda, cuda:1"]),
        ("bench digits --device 0", ["--device 0", "choose auto"]),
    ],
)
def test_usage_errors_are_one_line(here: Path, text: str, says: list[str]) -> None:
    said = error(text)
    for part in says:
        assert part in said, said
    outcome = run(*text.split(), "--json") if text != "convert net.py:small -o" else None
    if outcome is not None:
        assert (outcome.exit_code, outcome.stderr) == (1, "")
        assert json.loads(outcome.stdout)["error"]["message"] == said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--operations --engine serial-if", "counts the converted network's spikes, not those of serial-if"),
        ("--measure perplexity --neurobench", "give --neurobench in a call of its own"),
        ("--measure cosine", "give it with --against SPEC"),
        ("--compile --engine serial", "leave it or --engine serial out"),
        ("--weights w.pt", "--weights belongs to the network of --against SPEC"),
    ],
)
def test_options_of_eval_that_do_not_go_together(here: Path, options: str, says: str) -> None:
    assert says in error(f"eval n.parspike --data data.npz {options}")


def test_what_there_was_no_time_for_is_told_with_the_remedy() -> None:
    closed = {"name": "closed-form", "weigh": "next", "free": True, "refit": False}
    tried = [{"recipe": closed, "distance": 0.25}, {"recipe": {"name": "daqcfs"}, "distance": 0.5},
             {"recipe": {"name": "reconstruct", "weigh": "own", "all_rows": True}, "skipped": "budget"}]  # fmt: skip
    assert chosen({"recipe": {"name": "auto"}, "search": {"tried": tried, "chosen": {**closed, "ridge": None}}}) == (
        "closed-form (weigh=next, free=True, refit=False); distance of the outputs on held-out images: closed-form "
        "(next, free, synapses as they are) 0.25, daqcfs 0.5; no time for reconstruct (own, all rows): --best, or "
        "--budget with more seconds, tries them"
    )
    assert chosen({"recipe": {"name": "max-norm"}}) == "max-norm"


@pytest.mark.parametrize("text", ["", "data"])
def test_without_a_command_the_help_is_shown(text: str) -> None:
    outcome = run(*text.split())
    assert outcome.exit_code == 1
    assert "Usage:" in outcome.stdout
    assert outcome.stderr == ""


@pytest.mark.parametrize(
    ("set_before", "wanted"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_sleep_soon_where_the_user_says_nothing(set_before, wanted, monkeypatch) -> None:
    """Would catch a setting of the user that is overruled; it has to be there before torch is loaded."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in set_before.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["parspike", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ.get("GOMP_SPINCOUNT") == wanted


def test_torch_is_not_imported_for_help_or_a_wrong_option(here: Path) -> None:
    save = "-o n.parspike"
    lines = [
        "--version", "--help", "convert --help", "train --help", "nope", "plan net.py:small", "plan nope --shape 1",
        "plan no.py:net --shape 1", "plan net.py:small --shape x", f"convert net.py:small {save}",
        f"convert net.py:small --data nowhere {save}", "convert net.py:small --data data.npz -o .",
        f"convert net.py:small --data data.npz -T 2.5 {save}",
        f"convert net.py:small --data data.npz --recipe x {save}",
        f"convert net.py:small --data data.npz --weights w.pt {save}",
        f"convert net.py:small --data data.npz --mean x {save}", f"convert net.py:small --data data.npz --std 0 {save}",
        f"convert net.py:small --data data.npz --recipe max --passes 2 {save}",
        "eval none.parspike --data data.npz", "tune net.py:small --data nowhere",
        "tune net.py:small --data data.npz -o .",
        "train nope --data digits -o r", "train digits --data nowhere -o r", "train digits --data digits -o r --set x",
        "train digits --data digits -o net.py", "data check nowhere",
    ]  # fmt: skip
    code = (
        "import sys\nfrom parspike.cli import app\n"
        "for line in sys.argv[1:]:\n"
        "    try: app(line.split())\n"
        "    except SystemExit: pass\n"
        "    if 'torch' in sys.modules: sys.exit(f'{line}: torch')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(parspike.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("error: ") == len(lines) - 4


def test_completion_knows_commands_options_and_values() -> None:
    def offered(line: str) -> set[str]:
        env = {"_PARSPIKE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return set(CliRunner().invoke(app, [], prog_name="parspike", env=env).stdout.split())

    assert {"plan", "convert", "eval", "tune", "train", "data", "demo"} <= offered("parspike ")
    assert offered("parspike convert --calib") == {"--calibration-images"}
    assert offered("parspike eval n.parspike --engine serial") == {"serial", "serial-if"}
    assert offered("parspike convert --recipe da") == {"daqcfs"}
    assert offered("parspike plan ti") == {"timm:"}
    assert "digits" in offered("parspike train dig")


def test_recipes_of_the_command_line_are_those_of_the_library() -> None:
    import parspike.baselines  # noqa: F401 - enters the published methods

    for name, recipe in RECIPES.items():
        assert options.RECIPES[name] == tuple(field.name for field in dataclasses.fields(recipe))
    assert options.RECIPES.keys() == RECIPES.keys()


COMMANDS = [
    "plan", "convert", "eval", "tune", "sweep", "report", "view", "demo", "train", "data check", "spikes write",
    "spikes show",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_that_is_understood(command: str) -> None:
    shown = run(*command.split(), "--help").stdout
    assert f"Example: parspike {command} " in shown
    group: Any = get_command(app)
    for part in command.split():
        group = group.commands[part]
    *_, words = group.epilog.partition(f"parspike {command} ")
    with group.make_context(command, words.split()) as context:  # typer checks every option
        assert context.params


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps"])
def test_a_device_that_torch_does_not_see_is_told(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    said = error(f"{CONVERT} --data data.npz --device {name}")
    assert f"--device {name}: torch sees no" in said
    assert "give --device cpu, or leave it out" in said


def test_processes_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank, number in (("0", 0), ("1", 1), ("2", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert device_of("auto") == device_of("cuda") == torch.device("cuda", number)
        assert device_of("cuda:1") == torch.device("cuda", 1)
        assert device_of("cpu") == torch.device("cpu")
    with pytest.raises(OptionError, match="torch sees 2 of them"):
        device_of("cuda:2")


@pytest.mark.parametrize("command", ["convert", "eval", "tune", "sweep", "report", "train"])
def test_options_stand_in_groups(command: str) -> None:
    shown = run(command, "--help").stdout
    ungrouped = shown.partition("─ Options ─")[2].partition("╰")[0]
    assert ungrouped.count("--") <= 2, "options without rich_help_panel"
    assert "The images" in shown
    assert "What comes out" in shown


def test_no_option_is_cut_where_the_terminal_is_narrow() -> None:
    shown = process("convert", "--help", COLUMNS="40").stdout.decode()
    group: Any = get_command(app)
    for parameter in group.commands["convert"].params:
        for option in parameter.opts if parameter.param_type_name == "option" else ():
            assert option in shown
    assert "…" not in shown


# ---------------------------------------------------------------------------------------------- stdout, stderr


def test_a_stdout_that_cannot_show_a_character_prints_another(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("plan", "net.py:small", "--shape", "3,6,6")
    whole = run(*arguments).stdout
    with monkeypatch.context() as patch:  # strict, as Python makes it where the terminal knows Latin-1
        patch.setattr(sys, "stdout", shown := io.TextIOWrapper(printed := io.BytesIO(), encoding="latin-1"))
        assert app(list(arguments), standalone_mode=False) == 0
        shown.flush()
    assert whole.encode("latin-1", "replace") == printed.getvalue()
    assert b"?" in printed.getvalue()
    (here / "θ.py").write_text(NET)
    spoken = process("convert", "θ.py:small", "--data", "data.npz", "-o", "n.parspike", "--recipe", "max", "--json",
                     PYTHONIOENCODING="latin-1", PYTHONUTF8="1")  # fmt: skip
    assert json.loads(spoken.stdout)["spec"] == "θ.py:small"


class Watched(io.StringIO):
    """What is not a terminal."""


def test_a_line_of_progress_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "EVERY", 0.01)
    monkeypatch.setattr(sys, "stderr", stream := Watched())
    until = time.monotonic() + 60
    with console.progress("calibrating") as progress:
        progress("daqcfs", 3, 12)
        while stream.getvalue().count("\n") < 2 and time.monotonic() < until:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("calibrating daqcfs 3/12, ") and line.endswith(" s") for line in lines)
    monkeypatch.setattr(console, "_silent", True)
    with console.progress("calibrating"):
        time.sleep(0.05)
    assert stream.getvalue().splitlines() == lines


def test_no_line_of_progress_in_a_short_command(here: Path) -> None:
    assert run(*CONVERT.split(), "--data", "data.npz", "--recipe", "max").stderr == ""


# ------------------------------------------------------------------------------------------------------ output


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_as_output_is_refused_before_the_work(
    here: Path, force: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parspike, "convert", lambda *a, **k: pytest.fail("it worked first"))
    (here / "out").mkdir()
    for command in ("convert", "tune"):
        said = error(" ".join([command, "net.py:small", "--data data.npz -o out", *force]))
        assert "out: this is a folder; name a file in it, such as out/net.parspike" in said
    snn = parspike.SNN.__new__(parspike.SNN)
    with pytest.raises(errors.FileError, match=r"is a folder: name a file in it"):
        parspike.SNN.save(snn, here / "out", force=bool(force))


def test_a_pipe_as_output_and_no_data_are_refused_before_the_work(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parspike, "convert", lambda *a, **k: pytest.fail("it worked first"))
    os.mkfifo(here / "pipe")
    assert "this is a device or a pipe" in error("convert net.py:small --data data.npz -o pipe --force")
    assert (here / "pipe").is_fifo()
    said = run("convert", "net.py:small", "--data", "", "-o", "n.parspike", "--json").stdout
    assert json.loads(said)["error"]["message"] == "--data is empty: name a folder or a file, '.' for this folder"


def test_a_foreign_name_is_warned_of(here: Path) -> None:
    common = ("convert", "net.py:small", "--data", "data.npz", "--recipe", "max", "-o")
    said = run(*common, "x.onnx")
    assert said.exit_code == 0
    assert said.stderr.startswith("warning: x.onnx will hold parspike's own format, not ONNX: call it x.parspike")
    assert "not PyTorch" in run(*common, "x.PT").stderr
    assert run(*common, "x.parspike").stderr == run(*common, "x.v2").stderr == ""


# ------------------------------------------------------------------------------------- networks and weights


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("net.py:nope", "net.py has no 'nope': it has small, wide, batched"),
        ("net.py:smal", "net.py has no 'smal' (did you mean 'small'?)"),
        ("net.py:Zoo.nope", "net.py has no 'Zoo.nope': it has tiny"),
        ("none.py:net", "there is no file none.py"),
        ("os.path:nope", "os.path has no 'nope': it has "),
        ("net.py:small --weights .", "--weights .: this is a folder; name a file in it"),
    ],
)
def test_a_network_that_is_not_there(here: Path, spec: str, says: str) -> None:
    assert says in error(f"plan {spec} --shape 3,6,6")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--budget 0", "--budget 0: give seconds above 0"),
        ("--fast --best", "--fast and --best say the same in two ways"),
        ("--budget 9 --best", "--budget and --best say the same in two ways"),
        ("--fast --recipe max", "leave it or --recipe max out"),
        ("--best --recipe daqcfs --passes 2", "leave it or --passes out"),
        ("--budget 9 --neuron if", "of parallel neurons: leave it out"),
    ],
)
def test_a_budget_that_nothing_can_spend(here: Path, options: str, says: str) -> None:
    assert says in error(f"{CONVERT} --shape 3,6,6 {options}")


def test_text_is_cut_and_nothing_else(here: Path) -> None:
    assert (
        error(f"{CONVERT} --data data.npz --tokens 5") == "--tokens 5 cuts text, and data.npz holds none: leave it out"
    )


def test_an_input_that_nothing_tells(here: Path) -> None:
    assert "--data" not in error("plan net.py:small")
    said = error(CONVERT)
    assert "--data" in said
    assert "--shape 3,224,224" in said
    assert "QCFS" in said


@pytest.mark.filterwarnings("ignore:behind the first batch norm")
def test_weights_that_were_forgotten(here: Path) -> None:
    """Would catch a random network that is converted, or compared with, as if it were the trained one."""
    module: dict[str, Any] = {}
    exec(NET, module)
    torch.manual_seed(0)
    for name in ("batched", "small"):
        model = module[name]()
        model(torch.randn(8, 3, 6, 6))  # its norms have seen a batch
        save_file(model.state_dict(), f"{name}.safetensors")
    common = ["--data", "data.npz", "--recipe", "max", "--force", "-o", "n.parspike"]
    forgotten = run("convert", "net.py:batched", *common)
    assert "warning: net.py:batched looks untrained, its norms are those of a new network" in forgotten.stderr
    assert "those of net.py:batched" in forgotten.stdout
    for name in ("batched", "small"):
        given = ["--weights", f"{name}.safetensors"]
        made = run("convert", f"net.py:{name}", *given, *common)
        assert "untrained" not in made.stderr
        assert f"{name}.safetensors" in made.stdout
        against = ("eval", "n.parspike", "--data", "data.npz", "--against", f"net.py:{name}")
        said = f"the spiking network was made from net.py:{name} with --weights {name}.safetensors"
        assert said in run(*against).stderr
        assert run(*against, *given).stderr == ""
    assert run(*against[:-1], "net.py:wide").stderr == ""  # another network, which may have no file


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_what_was_done_with_the_data_is_said(here: Path, kind: Any) -> None:
    """Would catch "x/255" where floats are taken as they are."""
    x = np.random.default_rng(0).integers(0, 256, (12, 3, 6, 6))
    np.savez("data.npz", images=(x.transpose(0, 2, 3, 1) if kind is np.uint8 else x).astype(kind))
    assert run(*CONVERT.split(), "--data", "data.npz", "--recipe", "max").exit_code == 0
    common = ("--data", "data.npz", "-o")
    said = run("spikes", "write", "n.parspike", *common, "n.npz").stdout
    assert run("report", "n.parspike", *common, "n.html").exit_code == 0
    done = "x/255" if kind is np.uint8 else "none"
    assert said.split("preprocessing")[1].split() == [done]
    assert f"12 images of data.npz, preprocessing: {done}" in Path("n.html").read_text()


def test_a_shape_beyond_memory_and_a_device_as_file(here: Path) -> None:
    said = error("plan net.py:small --shape 3,999999999,999999999")
    assert said == "--shape 3,999999999,999999999: two samples of this size do not fit into memory"
    os.mkfifo("pipe")
    assert error("eval pipe --data data.npz") == "'pipe' is no file"


def test_json_has_no_nan_and_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    console.result(True, {"error": math.inf, "rows": [{"a": math.nan, "b": np.float64(1.5)}], "T": 3}, "")
    said = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert said == {"error": None, "rows": [{"a": None, "b": 1.5}], "T": 3}


def test_a_mean_of_another_scale_is_told(here: Path) -> None:
    """Means of 0 … 255, as some libraries have them, made constant images, without a word."""
    np.savez("floats.npz", x=255 * np.random.default_rng(0).random((12, 3, 6, 6), dtype=np.float32))
    convert = f"{CONVERT} --recipe max --force --data"
    wrong, right = ("123.675,116.28,103.53 --std 58.4,57.1,57.4", "0.485,0.456,0.406 --std 0.229,0.224,0.225")
    said = run(*f"{convert} data.npz --mean {wrong}".split()).stderr
    assert "images are x/255, from 0 to 1, and a mean of 123.675 lies beyond: give means and deviations" in said
    assert run(*f"{convert} data.npz --mean {right}".split()).stderr == ""
    assert run(*f"{convert} floats.npz --mean {wrong}".split()).stderr == ""  # these are 0 … 255


@pytest.mark.filterwarnings("ignore:the network has no activation")
@pytest.mark.parametrize(
    "layers", ["nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 3)", "nn.Flatten(), nn.Linear(36, 3)"]
)
def test_grey_networks_are_told_how_images_become_grey(here: Path, layers: str) -> None:
    with open("net.py", "a") as file:
        file.write(f"\ndef grey():\n    return nn.Sequential({layers})\n")
    convert = "convert net.py:grey --recipe max --data data.npz"
    assert error(f"{convert} -o g.parspike").endswith("; to read the images in grey, give --shape 1,HEIGHT,WIDTH")
    assert answer(f"{convert} --shape 1,6,6 -o g.parspike")["preprocessing"]["channels"] == 1
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    parspike.convert(model, torch.rand(8, 1, 6, 6), recipe="max").save("own.parspike")
    assert error("eval own.parspike --data data.npz").endswith("in grey, give --shape 1,HEIGHT,WIDTH")
    assert answer("eval own.parspike --data data.npz --shape 1,6,6")["images"] == 12
    np.savez("grey.npz", images=np.zeros((12, 6, 6), np.uint8))
    said = error("convert net.py:small --recipe max --data grey.npz -o c.parspike")
    assert said.endswith("; to read the images in colour, give --shape 3,HEIGHT,WIDTH")


def test_floats_that_are_normalised_already_are_not_normalised_again(here: Path) -> None:
    """Would catch a network's mean and deviation applied to values that have had them: an accuracy by chance."""
    with open("net.py", "a") as file:
        file.write("\nimport torch\n\ndef own():\n    torch.manual_seed(0)\n    model = small()\n")
        file.write("    model.preprocessing = {'mean': [0.5], 'std': [0.25]}\n    return model\n")
    pixels = np.random.default_rng(0).random((12, 3, 6, 6), dtype=np.float32)
    pixels[:, 0, 0, :2] = 0, 1
    np.savez("pixels.npz", x=pixels, y=np.arange(12) % 3)
    np.savez("ready.npz", x=(pixels - 0.5) / 0.25, y=np.arange(12) % 3)
    convert, ready = "convert net.py:own --recipe max --data", "eval p.parspike --data ready.npz"
    said = error(f"{convert} ready.npz -o r.parspike")
    assert "ready.npz holds floats from -2 to 2, and the network's images are normalised, mean (0.5,), std" in said
    assert "give --mean 0 --std 1 where the values are as the network takes them" in said
    answer(f"{convert} ready.npz --mean 0 --std 1 -o r.parspike")
    answer(f"{convert} pixels.npz -o p.parspike")
    wanted = pytest.approx(answer("eval p.parspike --data pixels.npz --against net.py:own")["error"], 1e-4)
    assert answer("eval r.parspike --data ready.npz --against net.py:own")["error"] == wanted
    assert "ready.npz holds floats from -2 to 2" in error(ready)
    assert answer(f"{ready} --mean 0 --std 1 --against net.py:own")["error"] == wanted


def test_values_of_another_size_than_those_fitted_on(here: Path) -> None:
    """Would catch floats of 0 … 255 given to a network that was fitted on 0 … 1: an accuracy by chance, and no word."""
    x = np.random.default_rng(0).random((12, 3, 6, 6), dtype=np.float32)
    for name, factor in {"one": 1.0, "near": 3.0, "large": 255.0, "small": 0.01}.items():
        np.savez(f"{name}.npz", x=factor * x)
    assert run(*CONVERT.split(), "--data", "one.npz", "--recipe", "max").exit_code == 0
    for name, said in {"one": "", "near": "", "large": "values up to 255", "small": "values up to 0.01"}.items():
        warned = run("eval", "n.parspike", "--data", f"{name}.npz").stderr
        assert bool(warned) is bool(said)
        assert f"{said}, and the network was fitted on values up to 1: are they prepared alike" in warned or not said
    assert run("eval", "n.parspike", "--data", "data.npz").stderr == ""  # of bytes, which are prepared as ever
    snn = parspike.load("n.parspike")
    for wrong in ("1", 0.0, -1.0, True, None):  # anybody's file
        snn.provenance["command_line"]["largest"] = wrong
        snn.save("n.parspike", force=True)
        assert run("eval", "n.parspike", "--data", "large.npz").stderr == ""


class Harmful:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_weights_that_hold_code_are_not_run_and_nobody_is_told_to(here: Path) -> None:
    torch.save({"0.weight": Harmful()}, "code.pt")
    torch.save(nn.Sequential(nn.Linear(2, 2)), "whole.pt")
    torch.save({"epoch": np.float64(3), "state_dict": {}}, "array.pt")
    (here / "plain.pkl").write_bytes(pickle.dumps({"0.weight": Harmful()}))
    (here / "legacy.pt").touch()
    torch.save(nn.Linear(2, 2), "legacy.pt", _use_new_zipfile_serialization=False)
    torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save("script.pt")
    for name in ("code.pt", "whole.pt", "array.pt", "plain.pkl", "legacy.pt", "script.pt"):
        said = error(f"{CONVERT} --data data.npz --weights {name}")
        assert f"--weights {name}" in said
        assert "was not run" in said
        assert "model.state_dict()" in said
        assert "weights_only" not in said


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("data.npz", "this is an .npz of arrays (images, labels), which goes to --data"),
        ("one.npy", "this is a .npy array"),
        ("empty.pt", "this is an empty file"),
        ("cut.pt", "not a readable state dict"),
        ("cut.safetensors", "not a readable state dict"),
        ("garbage.pt", "not a readable state dict"),
        ("files.zip", "this is a .zip of other files (a.png)"),
        ("keras.h5", "this is an HDF5 file"),
        ("n.parspike", "this is a converted network (.parspike)"),
    ],
)
def test_what_is_given_as_weights(here: Path, name: str, says: str) -> None:
    np.save("one.npy", np.zeros(3))
    torch.save({"w": torch.zeros(300)}, "whole.pt")
    save_file({"w": torch.zeros(300)}, "whole.safetensors")
    for kind in ("pt", "safetensors"):
        (here / f"cut.{kind}").write_bytes((here / f"whole.{kind}").read_bytes()[:-200])
    (here / "empty.pt").touch()
    (here / "garbage.pt").write_bytes(b"garbage")
    (here / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    zipfile.ZipFile(here / "files.zip", "w").writestr("a.png", b"")
    if name == "n.parspike":
        parspike.convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval(), torch.rand(4, 2), T=2).save(name)
    said = error(f"convert net.py:small -o m.parspike --data data.npz --weights {name}")
    assert f"--weights {name}: {says}" in said
    assert "safetensors, or what torch.save(model.state_dict(), …) wrote" in said
    assert "0x" not in said


def test_safetensors_are_known_by_their_content(here: Path) -> None:
    sys.path.insert(0, str(here))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    save_file(model.state_dict(), "w.bin")
    assert run("plan", "net.py:small", "--shape", "3,6,6", "--weights", "w.bin").exit_code == 0


def test_weights_of_another_network_are_counted_and_three_named(here: Path) -> None:
    (here / "deep.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(*map(nn.Linear, *[[4] * 9] * 2))\n"
    )
    torch.save({f"layer{i}.weight": torch.zeros(4, 4) for i in range(5)} | {"0.bias": torch.zeros(7)}, "w.pt")
    said = error("plan deep.py:net --shape 4 --weights w.pt")
    assert "missing (17): 0.weight, 1.weight, 1.bias and 14 more" in said
    assert "unexpected (5): layer0.weight, layer1.weight, layer2.weight and 2 more" in said
    assert "wrong shape (1): 0.bias is (7,), expected (4,)" in said
    assert "--json lists all" in said
    outcome = run("plan", "deep.py:net", "--shape", "4", "--weights", "w.pt", "--json")
    whole = json.loads(outcome.stdout)["error"]
    assert whole["type"] == "InputError"
    assert [len(whole[key]) for key in ("missing", "unexpected", "wrong_shape")] == [17, 5, 1]
    assert whole["unexpected"][-1] == "layer4.weight"


# ------------------------------------------------------------------------------------------------------ images


def test_broken_images_are_counted_and_told_the_same_every_time(here: Path) -> None:
    for number in range(6):
        path = here / "pets" / "cat" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6)).save(path)
    (here / "pets/cat/2.png").write_bytes(b"")
    (here / "pets/cat/4.png").write_bytes(b"no picture")
    said = error(f"{CONVERT} --data pets")
    assert (
        "cat/2.png: cannot be decoded (the file is empty)" in said
        or "cat/4.png: cannot be decoded (it is no image)" in said
    )
    assert "--skip-broken" in said
    assert "2 of the 6 images cannot be decoded, parspike data check names them" in said
    assert "0x" not in said
    checked = json.loads(run("data", "check", "pets", "--json").stdout)["splits"][""]["broken"]
    assert checked == ["cat/2.png (the file is empty)", "cat/4.png (it is no image)"]
    left_out = run(*CONVERT.split(), "--data", "pets", "--skip-broken", "--recipe", "max")
    assert "2 images could not be decoded and were left out: cat/" in left_out.stderr


@pytest.mark.parametrize("mean", ["", " --mean 0.5,0.5,0.5"])
def test_floats_with_the_channels_last(here: Path, mean: str) -> None:
    np.savez("float.npz", train_images=np.random.default_rng(0).random((12, 6, 6, 3), dtype=np.float32))
    said = error(f"{CONVERT} --data float.npz{mean}")
    assert "float images are (N, C, H, W), and these, (12, 6, 6, 3), look like (N, H, W, C)" in said
    assert "images.transpose(0, 3, 1, 2)" in said
    assert said.count("transpose") == 1


def test_floats_that_only_look_so_are_taken(here: Path) -> None:
    (here / "odd.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))\n"
    )
    np.savez("float.npz", x=np.random.default_rng(0).random((12, 6, 6, 3), dtype=np.float32))
    made = run("convert", "odd.py:net", "--data", "float.npz", "--recipe", "max", "-o", "n.parspike")
    assert (made.exit_code, made.stderr) == (0, "")


def test_the_keys_of_an_npz_are_said(here: Path) -> None:
    np.savez("other.npz", pictures=np.zeros(3))
    said = error(f"{CONVERT} --data other.npz")
    assert "has pictures; expected images and labels, x and y, or train_images, train_labels" in said
    assert "(images, labels)" in " ".join(run("eval", "--help").stdout.replace("│", " ").split())


# ----------------------------------------------------------------------------------------- recipes and files


def test_a_misspelt_recipe_or_option_of_one(here: Path) -> None:
    common = ["convert", "net.py:small", "-o", "n.parspike", "--data", "data.npz", "--recipe"]
    for wrong, says in (
        (
            '{"name": "daqcfs", "pases": 3}',
            "recipe 'daqcfs' has no option 'pases' (did you mean 'passes'?); it has momentum",
        ),
        ("dacqfs", "there is no recipe 'dacqfs' (did you mean 'daqcfs'"),
        ("150%", "recipe '150%': a percentile lies above 0 and at most at 100, such as '99.9%'"),
    ):
        assert says in run(*common, wrong).stderr
        with pytest.raises(errors.OptionError) as caught:
            parspike.recipe_from_json(wrong)
        assert says in str(caught.value)
    assert "not valid JSON" in run(*common, '{"name": ').stderr


@pytest.mark.parametrize("content", [b"", b"abc", b"garbage\n", b"garbage in, garbage out" * 50])
def test_garbage_is_no_parspike_file(here: Path, content: bytes) -> None:
    (here / "g.parspike").write_bytes(content)
    assert error("eval g.parspike --data data.npz") == (
        "'g.parspike': this is not a parspike file: expected what snn.save or `parspike convert` wrote"
    )


def test_files_that_are_not_there(here: Path) -> None:
    assert error("eval none.parspike --data data.npz") == "there is no file 'none.parspike'"
    assert error("eval . --data data.npz") == "'.' is a folder: name a file in it"
    with pytest.raises(errors.FileError, match=r"^there is no file 'none\.parspike'$"):
        parspike.load("none.parspike")
    assert "--weights w.pt: there is no such file" in error(f"{CONVERT} --data data.npz --weights w.pt")


# ----------------------------------------------------------------------------------------------- from Python

SMALL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
X = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "given", [X.numpy(), [X.numpy()], [(X.numpy(), 1)], [{"x": X.numpy()}], [X, X.numpy()], iter([X.numpy()])]
)
def test_numpy_is_told_the_way(given: Any) -> None:
    with pytest.raises(errors.CalibrationError, match=r"calibration.*is a numpy array: pass torch\.from_numpy\(x\)"):
        parspike.convert(SMALL, given, T=2, recipe="max")


@pytest.mark.parametrize("together", [tuple, list])
def test_inputs_and_labels_without_a_list_around_them(together: Any) -> None:
    """They were read as two batches: "batch 1 has shape (8,)"."""
    snn, given = parspike.convert(SMALL, X, T=2, recipe="max"), together((X, torch.arange(8) % 3))
    for call in (lambda: parspike.convert(SMALL, given, T=2), lambda: parspike.measure(snn, given)):
        with pytest.raises(errors.CalibrationError, match=r"one batch: put it into a list, \[\(x, y\)\]"):
            call()
    assert parspike.measure(snn, [given]).accuracy is not None
    assert parspike.measure(snn, together((X, X))).samples == 16


def test_numpy_is_told_the_way_everywhere() -> None:
    snn = parspike.convert(SMALL, X, T=2, recipe="max")
    for call in (snn, snn.run, lambda x: parspike.plan(SMALL, x), lambda x: parspike.plan(SMALL, {"input": x})):
        with pytest.raises(errors.InputError, match=r"ndarray, expected a tensor \(B, …\): pass torch\.from_numpy"):
            call(X.numpy())
    with pytest.raises(errors.InputError, match=r"is list, expected a tensor \(B, …\): convert a module around"):
        parspike.plan(SMALL, [[1.0]])


GREY = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
CONVOLUTIONS = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
ROWS = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


@pytest.mark.parametrize(("model", "x"), [(SMALL, X), (GREY, X[:, :1]), (CONVOLUTIONS, X), (ROWS, torch.rand(8, 4))])
def test_one_sample_is_told_to_become_a_batch(model: nn.Module, x: torch.Tensor) -> None:
    rule = r"\(B, .*B ≥ 1.*looks like one sample.*pass x\[None\]"
    with pytest.raises(errors.InputError, match=rule):
        parspike.plan(model, x[0])
    with pytest.raises(errors.InputError, match=rule):
        parspike.convert(model, [x[0]], T=2)
    snn = parspike.convert(model, x, T=2, recipe="max")
    with pytest.raises(errors.InputError, match=rule):
        snn.run(x[0])
    assert len(snn(x[0][None])) == 1  # what the message says works, in plan as in run
    assert parspike.plan(model, x[0][None]).ok
    with pytest.raises(errors.InputError, match=r"calibration batch 1.*looks like one sample"):
        parspike.convert(model, [x, x[0]], T=2, recipe="max")


def test_other_wrong_shapes_are_not_taken_for_one_sample() -> None:
    with pytest.raises(errors.InputError) as caught:
        parspike.plan(SMALL, torch.rand(2, 3, 9, 9))
    assert "B ≥ 1" in str(caught.value)
    assert "x[None]" not in str(caught.value)
    snn = parspike.convert(SMALL, X, T=2, recipe="max")
    with pytest.raises(errors.InputError) as caught:
        snn.run(torch.rand(3, 9, 9))
    assert "x[None]" not in str(caught.value)
