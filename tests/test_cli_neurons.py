"""The command line with neurons that fire step by step: plan, convert, tune, eval, and what each refuses."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli_messages import answer, error, folder, run

import parspike

CONVERT = "convert net.py:small --data data.npz -o n.parspike"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.py and eighty images."""
    return folder(tmp_path, monkeypatch, 80)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("--neuron fast", ["--neuron fast: choose one of parallel, if, if-zero, lif:0.9", "the decay, above 0"]),
        ("--neuron lif", ["--neuron lif: choose one of"]),
        ("--neuron if:0.9", ["--neuron if:0.9: choose one of"]),
        ("--neuron lif:0", ["--neuron lif:0: choose one of"]),
        ("--neuron lif:1.5", ["above 0, at most 1"]),
        ("--neuron lif:1.2.3", ["--neuron lif:1.2.3: choose one of"]),
        ("--neuron if --code sorted", ["--code sorted is of parallel neurons", "leave it out"]),
        ("--neuron if --passes 2", ["--passes 2 is of parallel neurons", "leave it out"]),
        ("--input rate", ["--input rate makes spikes for neurons that run step by step", "give --neuron if"]),
        ("--neuron if --input spikes", ["--input must be current, rate or sorted, got spikes"]),
        ("--neuron if --recipe daqcfs", ["'daqcfs'", "for parallel neurons", "leave recipe= out"]),
    ],
)
def test_what_convert_refuses(here: Path, text: str, says: list[str]) -> None:
    said = error(f"{CONVERT} {text}")
    assert all(part in said for part in says), said
    assert not (here / "n.parspike").exists()


def test_what_the_others_refuse(here: Path) -> None:
    assert "--neuron fast: choose one of" in error("plan net.py:small --shape 3,6,6 --neuron fast")
    assert "--neuron lif:2: choose one of" in error("tune net.py:small --data data.npz --neuron lif:2")
    for option in ("--code onset", "--mixed"):
        said = error(f"tune net.py:small --data data.npz --neuron if {option}")
        assert said == f"{option} is of parallel neurons: leave it out beside --neuron if"
    answer(f"{CONVERT} --recipe max --neuron if")
    said = error("eval n.parspike --data data.npz --engine count")
    assert "engine 'count' runs parallel neurons, and this network's fire step by step" in said
    answer("convert net.py:small --data data.npz -o p.parspike --recipe max")
    assert "engine 'over-time' runs neurons with a state" in error("eval p.parspike --data data.npz --engine over-time")


@pytest.mark.parametrize(
    ("word", "becomes"),
    [("if", "IF neuron, reset by θ"), ("lif:0.9", "LIF neuron, reset by θ"), ("if-zero", "IF neuron, reset to 0")],
)
def test_plan_names_the_neurons(here: Path, word: str, becomes: str) -> None:
    rows = answer(f"plan net.py:small --shape 3,6,6 --neuron {word}")["rows"]
    assert [row["becomes"] for row in rows if row["role"] == "neuron"] == [becomes]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("--neuron if", parspike.IF()),
        ("--neuron lif-zero:0.5 --input rate --recipe closed-form", parspike.LIF(0.5, reset="zero")),
    ],
)
def test_what_is_converted_is_evaluated(here: Path, options: str, kind: parspike.IF | parspike.LIF) -> None:
    made = answer(f"{CONVERT} -T 6 {options}")
    assert made["provenance"]["neuron"] == kind.to_json()
    assert made["provenance"]["input"] == ("rate" if "rate" in options else "current")
    snn = parspike.load("n.parspike")
    assert (snn.T, snn.over_time, made["spiking_layers"]) == (6, True, 2 if "rate" in options else 1)
    found = answer("eval n.parspike --data data.npz --against net.py:small --operations --batch-size 32")
    assert found["engine"] == "over-time"
    assert found["images"] == 80
    with np.load("data.npz") as data:
        x, y = torch.from_numpy(data["images"]).permute(0, 3, 1, 2) / 255, torch.from_numpy(data["labels"])
    answers = snn(x).argmax(1)
    assert found["accuracy"] == pytest.approx(float((answers == y).double().mean()), abs=1 / 80)
    sent = snn.run(x, record=True).sent.values()
    spikes = sum(float(count.sum()) for count in sent) / sum(count.numel() for count in sent)
    assert found["spikes_per_neuron"] == pytest.approx(spikes, rel=0.01)
    head = next(row for row in found["operations"]["rows"] if row["layer"] == "3")
    assert head["synops"] == pytest.approx(3 * float(list(sent)[-1].sum()) / 80, rel=0.01)
    assert answer("eval n.parspike --data data.npz --engine over-time")["accuracy"] == found["accuracy"]


def test_tune_finds_the_steps(here: Path) -> None:
    options = "--neuron if --recipe closed-form --drop 90 --most 4 --batch-size 16"
    found = answer(f"tune net.py:small --data data.npz {options} -o t.parspike")
    assert found["chosen"]["code"] == "if"
    assert found["chosen"]["T"] == parspike.load("t.parspike").T


# ------------------------------------------------------------------------------------------------------ recordings


@pytest.fixture
def recordings(here: Path) -> np.ndarray:
    """Events (N, T, 3, 6, 6) as uint8, in events.npz with labels, and a network with the same weights each time."""
    text = (here / "net.py").read_text()
    (here / "seeded.py").write_text(f"import torch{text}".replace("():\n", "():\n    torch.manual_seed(0)\n"))
    rng = np.random.default_rng(1)
    frames = rng.poisson(0.4, (20, 6, 3, 6, 6)).astype(np.uint8)
    np.savez("events.npz", frames=frames, labels=rng.integers(0, 3, 20))
    return frames


@pytest.mark.parametrize("key", ["frames", "x"])
def test_frames_are_run_step_by_step_and_calibrated_on_their_mean(recordings: np.ndarray, key: str) -> None:
    """Catches images in place of counts, batch and time in each other's place, a mean where steps belong."""
    made = answer("convert seeded.py:small --data events.npz --neuron if -T 6 --recipe max -o n.parspike")
    assert made["images"] == 20
    frames = torch.from_numpy(recordings).float()
    with np.load("events.npz") as data:
        y = torch.from_numpy(data["labels"])
        np.savez("again.npz", **{key: data["frames"].astype(np.float32), "labels": data["labels"]})
    data = "again.npz" if key == "frames" else "events.npz"
    found = answer(f"eval n.parspike --data {data} --against seeded.py:small --operations --neurobench --batch-size 6")
    snn = parspike.load("n.parspike")
    by_hand = parspike.convert(model(), [frames.mean(1)], T=6, neuron=parspike.IF(), recipe="max")
    x = frames.transpose(0, 1)
    torch.testing.assert_close(snn(x), by_hand(x))
    report = parspike.measure(snn, [(x, y)], against=model())
    assert found["images"] == 20
    assert found["accuracy"] == pytest.approx(report.accuracy)
    assert found["network_accuracy"] == pytest.approx(report.network_accuracy)
    assert found["agreement"] == pytest.approx(report.agreement)
    assert found["error"] == pytest.approx(report.error, rel=1e-5)
    assert found["operations"]["synops"] == pytest.approx(report.synops) != 0
    assert found["operations"]["rows"][0]["macs"] == 0
    assert found["neurobench"]["synaptic_operations"]["Dense"] > 0
    assert answer("plan seeded.py:small --data events.npz")["ok"]


def model() -> torch.nn.Module:
    return importlib.import_module("seeded").small().eval()


def test_eval_says_what_was_done_with_frames(recordings: np.ndarray) -> None:
    made = "convert seeded.py:small --data events.npz --neuron if -T 6 --recipe max -o n.parspike"
    done = run(*made.split())
    assert "the mean of 6 frames" in done.stdout
    said = run("eval", "n.parspike", "--data", "events.npz").stdout
    assert "recordings" in said
    assert "6 frames, one a time-step" in said
    assert "ms a recording" in said
    normal = answer("eval n.parspike --data events.npz --mean 0.5 --std 0.25 --operations")["operations"]
    snn, x = parspike.load("n.parspike"), torch.from_numpy(recordings).float().transpose(0, 1)
    assert normal["spikes"] == pytest.approx(parspike.measure(snn, (x - 0.5) / 0.25).spikes)
    sizes = answer("data check events.npz")["splits"][""]["sizes"]
    assert sizes == {"6×3×6×6": 20}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("eval n.parspike --data five.npz", "5 frames an item, and this network runs T=6 steps: cut the recordings"),
        (
            "eval n.parspike --data small.npz",
            "has shape (20, 6, 3, 6); expected (N, T, …), and behind them the 3 dimensions",
        ),
        ("eval n.parspike --data grey.npz", "has shape (1, 1, 6, 6), this network takes (B, 3, 6, 6)"),
        ("eval n.parspike --data flat.npz", "has shape (20, 6); expected frames, (N, T, C, H, W)"),
        ("eval n.parspike --data words.npz", "expected numbers, such as how many events"),
        ("eval n.parspike --data events.npz --size 4", "--size and --crop need uint8 images"),
        ("eval p.parspike --data events.npz", "a network whose neurons have a state (convert --neuron if"),
        ("diagnose n.parspike --data events.npz", "for any other command save one input an item"),
        ("sweep seeded.py:small --data events.npz", "for any other command save one input an item"),
    ],
)
def test_frames_that_do_not_fit(recordings: np.ndarray, text: str, says: str) -> None:
    np.savez("five.npz", frames=recordings[:, :5])
    np.savez("small.npz", frames=recordings[:, :, :, :, 0])
    np.savez("grey.npz", frames=recordings[:, :, :1])
    np.savez("flat.npz", frames=recordings[:, :, 0, 0, 0])
    np.savez("words.npz", frames=np.full((2, 6, 3, 6, 6), "a"))
    for name, options in (("n", "--neuron if"), ("p", "")):
        if f"{name}.parspike" in text:
            answer(f"convert seeded.py:small --data events.npz {options} -T 6 --recipe max -o {name}.parspike")
    assert says in error(text)


def test_frames_of_several_inputs_are_told_by_their_dimensions(here: Path) -> None:
    (here / "two.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Two(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        torch.manual_seed(0)\n"
        "        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 3)\n\n"
        "    def forward(self, events, row):\n        return self.c((self.a(events) + self.b(row)).relu())\n"
    )
    rng = np.random.default_rng(0)
    events, row = rng.poisson(0.5, (20, 6, 4)), rng.random((20, 5)).astype(np.float32)
    np.savez("mean.npz", events=events.mean(1), row=row)
    np.savez("steps.npz", events=events, row=row)
    answer("convert two.py:Two --data mean.npz --neuron if -T 6 --recipe max -o n.parspike")
    found = answer("eval n.parspike --data steps.npz --against two.py:Two --operations --batch-size 6")
    snn = parspike.load("n.parspike")
    steps = torch.from_numpy(events).float().transpose(0, 1)
    report = parspike.measure(snn, [{"events": steps, "row": torch.from_numpy(row)}])
    assert (found["images"], found["operations"]["synops"]) == (20, pytest.approx(report.synops))
    assert found["error"] < 0.3


def test_a_nir_file_is_run_on_frames(recordings: np.ndarray) -> None:
    pytest.importorskip("h5py")
    answer("convert seeded.py:small --data events.npz --neuron if-zero -T 6 --recipe max -o n.parspike")
    answer("export n.parspike net.nir")
    found, own = (answer(f"eval {name} --data events.npz --operations") for name in ("net.nir", "n.parspike"))
    assert found["accuracy"] == own["accuracy"]
    assert found["operations"]["synops"] == pytest.approx(own["operations"]["synops"], rel=0.01)
    assert found["operations"]["macs"] == own["operations"]["macs"] == 0
    assert "6 frames an item, and this network runs T=5" in error("eval net.nir -T 5 --data events.npz")
