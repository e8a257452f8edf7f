"""`parspike bench speed`: every engine beside the network, in one run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import parspike
from parspike.bench.speed import Speed, SpeedRow
from parspike.cli import app
from parspike.errors import InputError, OptionError

SOURCE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()

def running():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        def forward(self, x):
            return self.b(self.a(x).relu().cumprod(1))  # a running product has no form in whole numbers
    return Running().eval()
"""


def test_every_engine_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(SOURCE)
    command = ["bench", "speed", "--network", "nets.py:net", "--shape", "3,6,6", "-T", "5", "--rounds", "2", "--json"]
    done = CliRunner().invoke(app, [*command, "--engines", "count,integer,parallel", "--out", "s.csv", "--out", "s.md"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    engines = [(row["run"], row["T"]) for row in answer["rows"]]
    assert engines == [("network", 0), ("count", 5), ("integer", 5), ("parallel", 5)]
    assert (answer["batch"], answer["shape"]) == (8, [3, 6, 6])
    for row in answer["rows"]:
        assert 0 < row["least"] <= row["ratio"] <= row["most"]
        assert row["samples"] == pytest.approx(8 / row["seconds"])
    assert answer["rows"][0]["ratio"] == 1
    assert len(Path("s.csv").read_text().splitlines()) == 5
    assert "| integer | 5 |" in Path("s.md").read_text()
    how = ["--engines", "count", "--cpu-time", "--precision", "bfloat16", "--channels-last", "--encode", "hidden"]
    done = CliRunner().invoke(app, [*command, *how])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["machine"].endswith("bfloat16, channels last, encode='hidden'")


def test_what_is_asked_wrongly_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(SOURCE)
    for words, said in (
        (["bench", "speed"], "--network SPEC"),
        (["bench", "digits", "--network", "nets.py:net"], "bench speed"),
        (["bench", "speed", "--network", "nets.py:net"], "--shape"),
        (["bench", "speed", "--network", "nets.py:net", "--shape", "3,6,6", "-T", "two"], "whole numbers"),
        (["bench", "speed", "--network", "nets.py:net", "--shape", "3,6,6", "--engines", "fast"], "'fast' is unknown"),
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code != 0
        assert said in " ".join(done.output.split()), done.output


def test_the_network_keeps_its_mode_and_x_is_a_tensor() -> None:
    """Would catch a network that goes on training with the statistics of evaluation."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(8, 4)
    parspike.speed(model, x, T=(2,), rounds=1)
    assert model.training
    assert model[1].training
    with pytest.raises(InputError, match=r"x is list, expected a tensor \(B, …\)"):
        parspike.speed(model, [x], T=(2,), rounds=1)  # pyright: ignore[reportArgumentType]


def test_an_engine_that_cannot_run_is_left_out_and_named(tmp_path: Path) -> None:
    scope: dict[str, object] = {}
    exec(SOURCE, scope)
    made_by = scope["running"]
    model = made_by() if callable(made_by) else None
    assert isinstance(model, nn.Module)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(8, 3)
    made = parspike.speed(model, x, T=(3,), engines=("count", "integer"), rounds=1)
    assert [row.run for row in made.rows] == ["network", "count"]
    assert "cannot carry" in made.left_out[0]
    assert "left out: integer, T=3" in str(made)
    with pytest.raises(OptionError, match="at least 1"):
        parspike.speed(model, x, T=(0,))


def test_memory_is_what_a_batch_adds_at_most() -> None:
    """Would catch a size that counts what was there before, what was freed before, or nothing."""

    def grows(y: torch.Tensor) -> torch.Tensor:
        return torch.ones(60 << 18).sum() + y.sum()  # 60 MiB

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.ones(2, 3, 2, 2)
    beside = {("large", 0): grows, ("small", 0): torch.sum}
    rows = {row.run: row.memory_mib for row in parspike.speed(model, x, T=(2,), rounds=1, beside=beside).rows}
    if rows["large"] is None:
        pytest.skip("this system does not count it")
    assert rows["large"] == pytest.approx(60, abs=6)
    assert all(0 <= rows[name] < 6 for name in ("network", "count", "small"))


def test_table_and_figure_hold_the_rows(tmp_path: Path) -> None:
    """Would catch a curve of another engine's rows, a bar on the wrong side, and a column that is lost."""
    pytest.importorskip("matplotlib")
    rows = (
        SpeedRow("network", 0, 0.5, 1.0, 1.0, 1.0, 16.0, 0.1, None, 8.0, None),
        SpeedRow("network, compiled", 0, 0.25, 0.5, 0.4, 0.625, 32.0, 0.05, 1.0, 7.0, None),
        *(SpeedRow("count", T, 0.55, 1.1, 1.0, 1.25, 14.5, 0.1, None, 9.0, None) for T in (4, 32)),
        SpeedRow("serial", 32, 5.0, 10.0, 9.5, 11.0, 1.6, 0.9, None, None, 0.002),
    )
    made = Speed(rows, 8, (3, 6, 6), 3, "a machine", ("integer, T=4: no",))
    axes = made.figure().axes[0]
    curves = {bar.get_label(): bar for bar in axes.containers}
    assert set(curves) == {"count", "serial"}
    line, _, (bars,) = curves["count"].lines
    assert line.get_xydata().tolist() == [[4, 1.1], [32, 1.1]]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[pytest.approx(1.0), 1.25]] * 2
    flat = {str(one.get_label()): one.get_ydata()[0] for one in axes.lines if len(set(one.get_ydata())) == 1}
    assert (flat["network"], flat["network, compiled"]) == (1.0, 0.5)
    table = made.markdown().splitlines()
    assert (
        table[0] == "| run | T | ratio | least … most | samples/s | latency, ms | / compiled | memory, MiB | J/sample |"
    )
    assert table[3] == "| network, compiled | – | 0.50 | 0.40 … 0.62 | 32 | 50 | 1.00 | 7 | – |"
    assert table[6] == "| serial | 32 | 10.00 | 9.50 … 11.00 | 1.6 | 900 | – | – | 0.002 |"
    assert "left out: integer, T=4: no" in made.markdown()
    assert made.save(tmp_path / "s.tex").read_text() == made.latex()
    assert "J/sample" in made._repr_html_()


def test_the_compiled_network_stands_beside_compiled_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a column `/ compiled` that is the ratio to the network as it is, or to another round's."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda network, **options: compiled.append(network) or network)
    monkeypatch.setattr(parspike.SNN, "compile", lambda snn, **options: snn)
    seconds = {"network": [4.0, 8.0, 6.0], "network, compiled": [2.0, 1.0, 3.0], "compiled": [3.0, 3.0, 3.0]}
    room = importlib.import_module("parspike.bench.speed")  # the name is the function's in its package
    monkeypatch.setattr(
        room, "_interleaved", lambda calls, *how: {key: dict(enumerate(seconds[key[0]])) for key in calls}
    )
    made = parspike.speed(model, torch.rand(8, 3), T=(2,), engines=("compiled",), compiled=True)
    assert compiled == [model]
    assert [(row.run, row.ratio, row.to_compiled) for row in made.rows] == [
        ("network", 1, None), ("network, compiled", 0.5, 1), ("compiled", 0.5, 1.5)
    ]  # fmt: skip


def test_half_precision_channels_last_and_other_calls() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval(),
        torch.rand(4, 3, 6, 6),
    )
    seen: list[tuple[torch.dtype, bool]] = []

    def other(y: torch.Tensor) -> torch.Tensor:
        out = model(y)
        seen.append((out.dtype, y.is_contiguous(memory_format=torch.channels_last)))
        return out

    made = parspike.speed(
        model, x, T=(4,), rounds=2, precision="bfloat16", channels_last=True, beside={("mine", 0): other}
    )
    assert [(row.run, row.T) for row in made.rows] == [("network", 0), ("count", 4), ("mine", 0)]
    assert set(seen) == {(torch.bfloat16, True)}
    assert "bfloat16, channels last" in made.machine
    assert all(row.joules is None for row in made.rows)  # counted on a GPU alone
    assert next(model.parameters()).is_contiguous()  # the user's own network keeps its layout
    with pytest.raises(OptionError, match="batches of images"):
        parspike.speed(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.rand(2, 3), channels_last=True)
    with pytest.raises(OptionError, match="choose one of float32"):
        parspike.speed(model, x, precision="half")
