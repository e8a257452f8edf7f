"""The command line with neurons that fire step by step: plan, convert, tune, eval, and what each refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli_messages import answer, error, folder

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
