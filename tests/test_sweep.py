"""`parspike.sweep` and `parspike sweep`: every T in one table, beside the network quantised to as many levels."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Residual
from test_cli_messages import answer, error, folder, run
from torch import Tensor, nn

import parspike
from parspike.cli import options
from parspike.errors import CalibrationError, FileError, InputError, MissingExtraError, OptionError, ParspikeWarning
from parspike.neurons import CODES, ParallelNeuron, Staircase
from parspike.sweep.quantised import _rounded, quantised
from parspike.sweep.result import Sweep, SweepRow
from parspike.tables import SUFFIXES

CLOSED = parspike.ClosedForm()


class Mixed(nn.Module):
    """Levels from below 0 on, and uneven ones of a SiLU, which is two layers of neurons."""

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, groups=2)
        self.head = nn.Linear(6 * 16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardtanh(self.first(x), -0.5, 1.0)
        return self.head(nn.functional.silu(self.second(x)).flatten(1))


MODEL = Mixed().eval()
X = torch.randn(96, 2, 6, 6, generator=torch.Generator().manual_seed(1))
Y = (torch.arange(96) * 7) % 5
FIT, TEST = list(X[:64].split(16)), list(zip(X[64:].split(10), Y[64:].split(10), strict=True))


@functools.cache
def planned() -> parspike.Plan:
    """MODEL, traced once: a sweep of the plan is one of the network."""
    return parspike.plan(MODEL, X[:2])


def small(**changes: Any) -> Sweep:
    """A sweep that takes a second."""
    return parspike.sweep(planned(), FIT, TEST, **{"T": (1, 3), "recipe": "max", **changes})


def without_time(rows: tuple[SweepRow, ...]) -> list[dict[str, Any]]:
    return [{**vars(row), "seconds": 0.0} for row in rows]


def number(text: str) -> float:
    """12.3 of "12.30", 1500 of "1.5 k", 2e6 of "2 µJ"."""
    value, _, unit = text.replace(r"$\mu$", "µ").partition(" ")
    return float(value) * {"": 1, "k": 1e3, "M": 1e6, "pJ": 1, "nJ": 1e3, "µJ": 1e6}[unit]


# -------------------------------------------------------------------------------------------------------------- rows


@torch.no_grad()
def test_rows_are_those_of_single_conversions() -> None:
    shown: list[SweepRow] = []
    found = parspike.sweep(MODEL, FIT, TEST, T=(4, 1), codes=CODES, recipe=CLOSED, each=shown.append)  # pyright: ignore
    assert tuple(shown) == found.rows
    assert [(row.T, row.code, row.levels) for row in found.rows] == [
        (1, "sorted", 1), (1, "weighted", 1), (1, "onset", 1), (4, "sorted", 4), (4, "weighted", 15), (4, "onset", 4)
    ]  # fmt: skip
    x, y = X[64:], Y[64:]
    wanted = MODEL(x)
    assert found.network_accuracy == pytest.approx(100 * float((wanted.argmax(1) == y).double().mean()))
    assert (found.samples, found.classes, found.measure) == (32, 5, "accuracy")
    for row in found.rows:
        snn = parspike.convert(planned(), FIT, T=row.T, code=row.code, recipe=CLOSED)  # pyright: ignore[reportArgumentType]
        said, run = snn(x), snn.run(x, record=True)
        assert row.accuracy == pytest.approx(100 * float((said.argmax(1) == y).double().mean()))
        assert row.agreement == pytest.approx(100 * float((said.argmax(1) == wanted.argmax(1)).double().mean()))
        assert row.error == pytest.approx(100 * float((said - wanted).norm() / wanted.norm()), rel=1e-4)
        sent = torch.cat([count.flatten() for count in run.sent.values()])
        assert row.spikes == pytest.approx(float(sent.double().mean()), rel=1e-6)
        report = parspike.measure(snn, TEST)
        assert (row.synops, row.energy_pj) == pytest.approx((report.synops, report.energy_pj))
        assert found.network_energy_pj == pytest.approx(report.network_energy_pj)
        assert row.seconds > 0


def curves() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Sigmoid(), nn.Linear(5, 3), nn.Softplus(), nn.Linear(3, 3))


@functools.cache
def one_of(make: Any) -> tuple[nn.Module, Tensor, parspike.Plan]:
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(70, 3, 8, 8) if make is Residual else X[:70]
    return model, x, parspike.plan(model, x[:2])


@torch.no_grad()
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("recipe", ["max", "closed-form"])
@pytest.mark.parametrize("make", [Mixed, Residual, curves])
def test_the_count_engine_is_the_quantised_network(make: Any, recipe: str, code: Any) -> None:
    model, x, plan = one_of(make)
    snn = parspike.convert(plan, x[:64], T=3, code=code, recipe=recipe)
    (name,) = (i.name for i in snn.graph.inputs)
    found, wanted = quantised(snn)({name: x}), snn(x)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, model(x))
    # No layer is left out: with other parameters of any of them the outputs would differ.
    for neuron in snn.neurons().values():
        before = {key: tensor.clone() for key, tensor in neuron.state_dict().items()}
        for tensor in neuron.parameters():
            tensor.mul_(1.25)
        assert not torch.equal(quantised(snn)({name: x}), wanted)
        neuron.load_state_dict(before)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(), (1, 1), (3, 1, 1), (3, 1, 2)])
def test_uneven_levels_at_their_thresholds(shape: tuple[int, ...]) -> None:
    steps = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    thresholds = torch.stack([-0.5 * steps, 0.25 * steps, 0.25 * steps])
    outputs = torch.stack([-steps, torch.zeros(shape), steps, 3 * steps])
    neuron = Staircase(3, thresholds, outputs)
    z = torch.tensor([-9.0, -1.0, -0.5, 0.0, 0.25, 0.5, 9.0, torch.nan])
    z = torch.cat([z * k for k in range(1, 7)]).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 2)
    torch.testing.assert_close(_rounded(z, neuron), neuron(z), rtol=0, atol=0, equal_nan=True)
    assert _rounded(z, neuron).isnan().sum() == z.isnan().sum()


def test_the_column_tells_a_count_engine_that_counts_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantised network shares no neuron with the engines: a fault of these shows beside it."""
    right = small(codes=["sorted"])
    count = ParallelNeuron.count
    monkeypatch.setattr(ParallelNeuron, "count", lambda self, z: (count(self, z) - 1).clamp(min=0))
    for row, before in zip(small(codes=["sorted"]).rows, right.rows, strict=True):
        assert before.quantised_error == before.error
        assert row.quantised_error == before.quantised_error
        assert row.error != row.quantised_error


@torch.no_grad()
def test_the_quantised_network_is_what_a_reader_would_write() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8, dtype=torch.float64), nn.ReLU(), nn.Linear(8, 2, dtype=torch.float64)).eval()
    x = torch.randn(200, 3, dtype=torch.float64)
    snn = parspike.convert(model, x, T=2, code="weighted", recipe="max")
    (neuron,) = snn.counting().values()
    hidden, top = model[0](x), model[0](x).relu().amax(0)
    by_hand = model[2]((hidden / top * 3).round().clamp(0, 3) * top / 3)
    torch.testing.assert_close(quantised(snn)({snn.graph.inputs[0].name: x}), by_hand)
    assert neuron.levels == 3


def test_items_without_labels_have_no_accuracy() -> None:
    found = parspike.sweep(planned(), FIT, X[64:], T=[2], recipe="max")
    assert found.measure == "agreement"
    assert found.network_accuracy is None
    for row in found.rows:
        assert row.accuracy is row.quantised_accuracy is None
        assert row.agreement == row.quantised_agreement
        assert 0 < (row.error or 0) == pytest.approx(row.quantised_error)
    assert "accuracy" not in str(found)


@pytest.mark.parametrize("labels", [None, torch.rand(96)])
def test_values_have_an_error_alone(labels: Tensor | None) -> None:
    model = nn.Sequential(Mixed(1), nn.Flatten(0)).eval()
    items = X.split(12) if labels is None else list(zip(X.split(12), labels.split(12), strict=True))
    found = parspike.sweep(model, items, T=[1, 8], recipe="max", codes=["sorted"])
    assert (found.measure, found.classes, found.samples) == ("error", 0, 24)
    first, last = found.rows
    assert first.accuracy is first.agreement is first.quantised_agreement is None
    assert (first.error or 0) > (last.error or 0) > 0
    assert [row.error for row in found.rows] == [row.quantised_error for row in found.rows]


def test_whole_numbers_have_agreement_alone() -> None:
    class Answers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = Mixed()

        def forward(self, x: Tensor) -> Tensor:
            return self.scores(x).argmax(1)

    (row,) = parspike.sweep(Answers().eval(), FIT, X[64:], T=[8], codes=["sorted"], recipe="max").rows
    assert row.error is row.accuracy is None
    assert row.agreement is not None
    assert row.agreement == row.quantised_agreement > 50


def test_without_data_every_fourth_batch_is_held_out() -> None:
    items = list(zip(X.split(12), Y.split(12), strict=True))
    found = parspike.sweep(planned(), items, T=[2], recipe="max")
    fit, rest = [item for i, item in enumerate(items) if i % 4 != 3], items[3::4]
    assert found.samples == 24
    assert without_time(found.rows) == without_time(parspike.sweep(planned(), fit, rest, T=[2], recipe="max").rows)
    with pytest.raises(CalibrationError, match="3 calibration batches are too few"):
        parspike.sweep(planned(), items[:3])
    assert parspike.sweep(planned(), items[:1], rest, T=[1], recipe="max").samples == 24


def test_one_tensor_is_cut_so_that_some_are_held_out() -> None:
    """Would catch the 60 samples of one tensor, or of a data set, refused as one batch."""
    found = parspike.sweep(planned(), X[:60], T=[2], recipe="max")
    assert found.samples == 15
    pairs = torch.utils.data.TensorDataset(X[:60], Y[:60])
    assert parspike.tune(planned(), pairs, most=1, recipe="max").measure == "agreement"
    with pytest.raises(CalibrationError, match="1 calibration batch is too few"):
        parspike.sweep(planned(), X[:1])
    with pytest.raises(CalibrationError, match="calibration must be an iterable of batches, got NoneType"):
        parspike.sweep(planned(), None)
    with pytest.raises(CalibrationError, match="calibration set is empty"):
        parspike.sweep(planned(), [])


def test_the_network_is_planned_once_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    plan = parspike.plan
    monkeypatch.setattr(sys.modules["parspike.convert"], "plan", lambda *args: calls.append(args) or plan(*args))
    state = torch.random.get_rng_state()
    shuffled = torch.utils.data.DataLoader(X[:64], batch_size=16, shuffle=True)  # pyright: ignore[reportArgumentType]
    found = parspike.sweep(MODEL, shuffled, TEST, T=(1, 2), recipe="closed-form")
    assert len(calls) == 1
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    again = parspike.sweep(planned(), shuffled, TEST, T=(1, 2), recipe="closed-form")
    assert without_time(found.rows) == without_time(again.rows)


def test_loaders_that_shuffle_hold_out_the_same_images() -> None:
    shuffled = torch.utils.data.DataLoader(X, batch_size=16, shuffle=True)  # pyright: ignore[reportArgumentType]
    one, other = [], []
    for rows in (one, other):
        torch.rand(5)
        rows += without_time(parspike.sweep(planned(), shuffled, T=[1], recipe="max").rows)
    assert one == other


def test_layers_with_fewer_steps_and_kept_ones() -> None:
    plan = parspike.plan(MODEL, X[:2], layers={"hardtanh*": parspike.Keep(), "silu*": parspike.Steps(2)})
    (row,) = parspike.sweep(plan, FIT, TEST, T=[4], codes=["sorted"], recipe="max").rows
    assert row.error == row.quantised_error
    with pytest.raises(OptionError, match="asks for 2 time-steps, the network has T=1"):
        parspike.sweep(plan, FIT, TEST, T=[4, 1])


def test_inputs_and_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Mixed()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.net(x + y)

    items = [(X[i : i + 8], X[i : i + 8] / 2, Y[i : i + 8]) for i in range(0, 96, 8)]
    found = parspike.sweep(Two().eval(), items, T=[2], recipe="max")
    turned = [{"second": b, "first": a, "labels": y} for a, b, y in items]
    chosen = parspike.sweep(Two().eval(), turned, T=[2], recipe="max", inputs=lambda d: (d["first"], d["second"]))
    assert found.measure == "accuracy"
    assert without_time(found.rows) == without_time(chosen.rows)


def test_warnings_are_given_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parspike.sweep(planned(), [X[:8]], TEST, T=(1, 2))
    assert len([w for w in caught if issubclass(w.category, ParspikeWarning)]) == 1


# --------------------------------------------------------------------------------------------- neurons with a state


@torch.no_grad()
def test_neurons_with_a_state_beside_as_many_free_levels() -> None:
    stateful = parspike.plan(MODEL, X[:2], neuron=parspike.IF())
    snns = [parspike.convert(stateful, FIT, T=T, recipe="max") for T in (2, 6)]
    frees = [parspike.convert(planned(), FIT, T=T, recipe="max") for T in (2, 6)]
    for model, neuron in ((MODEL, parspike.IF()), (stateful, None)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ParspikeWarning)
            found = parspike.sweep(model, FIT, TEST, T=(2, 6), neuron=neuron, recipe="max")
        assert [(row.T, row.code, row.levels) for row in found.rows] == [(2, "if", 2), (6, "if", 6)]
        for row, snn, free in zip(found.rows, snns, frees, strict=True):
            wanted = MODEL(X[64:])
            errors = [100 * float((net(X[64:]) - wanted).norm() / wanted.norm()) for net in (snn, free)]
            assert (row.error, row.quantised_error) == pytest.approx(tuple(errors), rel=1e-4)
            assert row.error != row.quantised_error
        assert "free of the dynamics" in str(found)


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((), "T is empty"),
        ((2, 4, 2), "T holds 2 more than once"),
        ((0, 1), r"T holds 0: give whole numbers of at least 1"),
        ((4, -2), "T holds -2"),
        ((1, 2.0), r"T holds 2\.0"),
        ((True,), "T holds True"),
        ("1,2", "T is '1,2': give the time-steps to try"),
        (8, "T is 8: give the time-steps to try"),
        ((1 << 30,), "T must be an integer from 1 to"),
    ],
)
def test_faulty_lists_of_steps(steps: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        small(T=steps)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"codes": ()}, "at least one"),
        ({"codes": "sorted"}, "codes is 'sorted': give the codes to try"),
        ({"codes": ["sorted", "sorted"]}, "codes has 'sorted' more than once"),
        ({"codes": ["fast"]}, "code must be one of"),
        ({"codes": ["sorted"], "neuron": parspike.IF()}, "codes= is of parallel neurons.*leave one out"),
        ({"neuron": "if"}, r"neuron is 'if': give parspike\.IF\(\)"),
        ({"codes": ["weighted"], "T": (2, 21)}, "the weighted code takes at most 20 steps"),
        ({"recipe": "slow"}, "slow"),
    ],
)
def test_faulty_codes_neurons_and_recipes(given: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        small(**given)


def test_a_code_that_cannot_run_a_T_is_left_out_by_name() -> None:
    found = small(T=(2, 21))
    assert [(row.T, row.code) for row in found.rows] == [(2, "sorted"), (2, "weighted"), (21, "sorted")]
    (left,) = found.left_out
    assert left.startswith("weighted, T = 21: the weighted code takes at most 20 steps")
    assert left in str(found)
    assert found.to_dict()["left_out"] == [left]


def test_data_that_say_nothing() -> None:
    with pytest.raises(OptionError, match="data is the calibration set itself"):
        parspike.sweep(planned(), FIT, FIT)
    with pytest.raises(InputError, match="data is empty"):
        parspike.sweep(planned(), FIT, [])
    with pytest.raises(CalibrationError, match="the calibration set is empty"):
        parspike.sweep(planned(), [], TEST)
    with pytest.raises(InputError, match="a class 5 but the network knows 5 classes, counted from 0 on"):
        parspike.sweep(planned(), FIT, [(X[:4], torch.tensor([0, 1, 5, 2]))])
    with pytest.raises(InputError, match="the data that it is measured on"):
        parspike.sweep(planned(), FIT, torch.rand(4, 3, 6, 6))


def test_a_plan_for_neurons_with_a_state_is_tuned_for_them() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    plan = parspike.plan(model, X[:2], neuron=parspike.IF())
    assert {t.code for t in parspike.tune(plan, X.split(12), recipe="max", most=2).trials} == {"if"}
    with pytest.raises(OptionError, match="neuron is 'if'"):
        parspike.tune(model, X.split(12), neuron="if")  # pyright: ignore[reportArgumentType]


# ----------------------------------------------------------------------------------------------------------- tables


def test_tables_hold_the_same_numbers(tmp_path: Path) -> None:
    found = small(codes=["sorted", "weighted"], T=(1, 3, 21))
    data = json.loads(found.save(tmp_path / "s.json").read_text())
    assert data == found.to_dict()
    assert data["rows"] == [vars(row) for row in found.rows]
    assert data["network_accuracy"] == found.network_accuracy
    lines = list(csv.DictReader(io.StringIO(found.save(tmp_path / "s.csv").read_text())))
    for line, row in zip(lines, data["rows"], strict=True):
        assert {name: line[name] if name == "code" else float(line[name]) for name in row} == row
        assert float(line["network_accuracy"]) == found.network_accuracy
    latex, markdown = (found.save(tmp_path / f"s.{end}").read_text() for end in ("tex", "md"))
    written = [
        [line.removesuffix(r" \\").split(" & ") for line in latex.splitlines() if line.endswith(r"\\")],
        [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|") and "---" not in line],
        [re.split(r" {2,}", line.strip()) for line in str(found).split("\n\n")[0].splitlines() if "─" not in line],
    ]
    names = {"T": "T", "levels": "levels", "accuracy %": "accuracy", "quantised %": "quantised_accuracy",
             "agreement %": "agreement", "error %": "error", "spikes/neuron": "spikes", "SynOps": "synops",
             "energy": "energy_pj", "fit, s": "seconds"}  # fmt: skip
    for head, *rows in written:
        assert len(rows) == 5
        for cells, row in zip(rows, found.rows, strict=True):
            cell = {name.replace("\\", ""): text for name, text in zip(head, cells, strict=True)}
            assert cell.pop("code") == row.code
            assert cell.keys() == names.keys()
            for name, text in cell.items():
                assert number(text) == pytest.approx(getattr(row, names[name]), rel=1e-2, abs=0.051)
    body = latex[latex.index(r"\begin{tabular}{rlrrrrrrrrr}") :]
    assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")] == [1] * 4
    assert not re.search(r"(?<!\\)[%µ_#]", body)
    assert all(line.startswith("%") for line in latex.splitlines()[: latex[: latex.index(body)].count("\n")])
    assert f"accuracy {found.network_accuracy:.2f} %" in str(found)
    assert "<table>" in found._repr_html_()


def test_files_are_named_for_what_they_hold(tmp_path: Path) -> None:
    found = small(T=[1])
    path = found.save(tmp_path / "s.csv")
    with pytest.raises(FileError, match=r"exists.*force=True"):
        found.save(path)
    assert found.save(str(path), force=True) == path
    with pytest.raises(OptionError, match=r"ends in '\.xls'.*take \.csv, \.json"):
        found.save(tmp_path / "s.xls")
    with pytest.raises(OptionError, match="ends in ''"):
        found.save(tmp_path / "s")
    (tmp_path / "f.csv").mkdir()
    with pytest.raises(FileError, match="is a folder: name a file in it"):
        found.save(tmp_path / "f.csv")
    with pytest.raises(FileError):
        found.save(tmp_path / "none" / "s.csv")


# ----------------------------------------------------------------------------------------------------------- figure


@pytest.mark.parametrize(("labels", "own"), [(True, None), (False, 100.0)])
def test_the_figure_shows_the_rows(labels: bool, own: float | None) -> None:
    pytest.importorskip("matplotlib")
    found = small() if labels else parspike.sweep(planned(), FIT, X[64:], T=(1, 3), recipe="max")
    left, right, energy = found.figure().axes
    lines = {line.get_label(): line for line in left.get_lines()}
    own = found.network_accuracy if own is None else own
    assert set(map(float, lines["network"].get_ydata())) == {own}
    for code in ("sorted", "weighted"):
        rows = [row for row in found.rows if row.code == code]
        shown = [(label, getattr(row, name)) for row in rows for label, name in (
            (code, found.measure), (f"{code}: quantised network", f"quantised_{found.measure}"))]  # fmt: skip
        for label in (code, f"{code}: quantised network"):
            assert list(lines[label].get_xdata()) == [1, 3]
            assert list(lines[label].get_ydata()) == [value for name, value in shown if name == label]
        costs = {line.get_label(): list(line.get_ydata()) for axes in (right, energy) for line in axes.get_lines()}
        assert costs[f"{code}: spikes"] == [row.spikes for row in rows]
        assert costs[f"{code}: energy"] == [row.energy_pj / 1e6 for row in rows]
    assert [text.get_text() for text in left.get_xticklabels()] == ["1", "3"]


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_a_figure_is_a_file_of_its_kind_equal_for_equal_rows(tmp_path: Path, suffix: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib")
    found = small(T=[2])
    files = [found.save(tmp_path / f"{name}{suffix}").read_bytes() for name in "ab"]
    assert files[0].startswith(begins)
    assert files[0] == files[1]
    assert "matplotlib.pyplot" not in sys.modules or "pyplot" not in str(found.figure().canvas)


def test_a_network_without_neurons_has_a_figure_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 5)).eval()
    with pytest.warns(ParspikeWarning, match="no activation that becomes neurons"):
        found = parspike.sweep(model, FIT, TEST, T=(1, 2), recipe="max", codes=["sorted"])
    assert [(row.spikes, row.error) for row in found.rows] == [(0, 0)] * 2
    assert found.save(tmp_path / "s.png").exists()


def test_a_figure_needs_matplotlib_and_a_table_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = small(T=[1])
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'parspike\[report\]'"):
        found.save(tmp_path / "s.png")
    assert not (tmp_path / "s.png").exists()
    assert found.save(tmp_path / "s.csv").exists()


# ------------------------------------------------------------------------------------------------------ command line

SWEEP = "sweep net.py:small --data data.npz --recipe max --batch-size 8"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.py and eighty images."""
    return folder(tmp_path, monkeypatch, 80)


def test_rows_come_as_they_are_done_and_the_table_last(here: Path) -> None:
    outcome = run(*SWEEP.split(), "--T", "1,2", "--out", "s.csv", "--out", "s.tex", "--out", "s.csv")
    assert outcome.exit_code == 0, outcome.output
    said = [line for line in outcome.stderr.splitlines() if line.startswith("T=")]
    assert [line.split(":")[0] for line in said] == ["T=1 sorted", "T=1 weighted", "T=2 sorted", "T=2 weighted"]
    assert re.fullmatch(r"T=1 sorted: accuracy [\d.]+ %, quantised [\d.]+ %, [\d.]+ spikes a neuron, [\d.]+ s", said[0])
    table = outcome.stdout.splitlines()
    assert table[0].split()[:3] == ["T", "code", "levels"]
    assert table[-2:] == ["written: s.csv", "written: s.tex"]
    rows = list(csv.DictReader(Path("s.csv").read_text().splitlines()))
    assert [(row["T"], row["code"]) for row in rows] == [("1", "sorted"), ("1", "weighted"), ("2", "sorted"),
                                                         ("2", "weighted")]  # fmt: skip
    assert r"\toprule" in Path("s.tex").read_text()


def test_json_holds_what_the_library_finds(here: Path) -> None:
    found = answer(f"{SWEEP} --T 1,3 --codes onset")
    assert [(row["T"], row["code"], row["levels"]) for row in found["rows"]] == [(1, "onset", 1), (3, "onset", 3)]
    assert found["samples"] == 16  # two of ten batches
    assert found["network_accuracy"] is not None
    stateful = answer(f"{SWEEP} --T 2 --neuron lif:0.9")
    assert [row["code"] for row in stateful["rows"]] == ["lif:0.9"]


def test_calibration_images_of_their_own(here: Path) -> None:
    with Path("net.py").open("a") as file:
        file.write("\nfrom torch import manual_seed\nmanual_seed(0)\n")
    with np.load("data.npz") as data:
        images, labels = data["images"], data["labels"]
    np.savez("fit.npz", images=images[:40])
    np.savez("test.npz", images=images[40:], labels=labels[40:])
    np.savez(
        "both.npz", train_images=images[:40], train_labels=labels[:40], test_images=images[40:], test_labels=labels[40:]
    )
    apart = answer("sweep net.py:small --calibration fit.npz --data test.npz --recipe max --T 2")
    assert apart["samples"] == 40
    divided = answer("sweep net.py:small --calibration both.npz --data both.npz --recipe max --T 2")
    for one, other in zip(apart["rows"], divided["rows"], strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    few = answer("sweep net.py:small --calibration fit.npz --data test.npz --recipe max --T 2 --limit 10")
    assert few["samples"] == 10
    said = error("sweep net.py:small --calibration data.npz --data ./data.npz --recipe max")
    assert "--calibration data.npz and --data ./data.npz: 80 images are in both" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("--T 1,x", "--T 1,x: 'x' is no whole number from 1 to"),
        ("--T 1,2,", "--T 1,2,: '' is no whole number"),
        ("--T 0,1", "--T 0,1: '0' is no whole number"),
        ("--T -1", "'-1' is no whole number"),
        ("--T 2.5", "'2.5' is no whole number"),
        ("--T 4,2,4", "--T 4,2,4: 4 stands there more than once"),
        ("--codes fast", "--codes fast: 'fast' is none of sorted, weighted, onset"),
        ("--codes sortd", "did you mean 'sorted'?"),
        ("--codes onset,onset", "onset stands there more than once"),
        ("--codes sorted --neuron if", "--codes sorted is of parallel neurons: leave it out beside --neuron if"),
        ("--codes weighted --T 30", "the weighted code takes at most 20 steps"),
        ("--neuron fast", "--neuron fast: choose one of"),
        ("--out s.xls", "--out s.xls: a file ends in .csv, .json"),
        ("--out s.cvs", "did you mean '.csv'"),
        ("--out none/s.csv", "there is no folder none"),
        ("--out net.py.csv", "net.py.csv exists: write over it with --force"),
        ("--limit 3", "--limit 3 says how many images of --data are measured beside --calibration"),
        ("--calibration nowhere", "--calibration nowhere: no such file or folder"),
        ("--recipe slow", "there is no recipe 'slow'"),
    ],
)
def test_what_the_command_refuses(here: Path, text: str, says: str) -> None:
    Path("net.py.csv").touch()
    assert says in error(f"sweep net.py:small --data data.npz {text}")
    assert sorted(path.name for path in here.glob("s.*")) == []


def test_a_figure_without_matplotlib_is_refused_before_the_work(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parspike.cli.checks.find_spec", lambda name: None)
    assert "pip install 'parspike[report]'" in error("sweep nowhere.py:small --data data.npz --out s.png")


def test_the_command_lines_lists_are_those_of_the_library() -> None:
    assert options.CODES == CODES
    assert options.TABLES == SUFFIXES


# ------------------------------------------------------------------------------------------------ measure, many batches


class Gate(nn.Module):
    """Activations weighed by what the sample says, which may be 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)) * mask)


@pytest.mark.parametrize("gated", [True, False])
def test_operations_of_a_batch_do_not_depend_on_those_before(gated: bool) -> None:
    """`measure` keeps what follows from shapes alone from batch to batch, and nothing else."""
    torch.manual_seed(1)
    if gated:
        model, batches = Gate().eval(), [(torch.randn(n, 6), (torch.rand(n, 6) > 0.5).float()) for n in (5, 5, 3, 5)]
    else:
        model, batches = Residual().eval(), [(torch.randn(n, 3, size, 8),) for n, size in ((4, 8), (4, 8), (2, 10))]
    snn = parspike.convert(model, batches, T=3, recipe="max")
    whole, parts = parspike.measure(snn, batches), [parspike.measure(snn, [batch]) for batch in batches]
    for name in ("synops", "macs", "network_macs", "spikes", "updates"):
        each = sum(getattr(part, name) * part.samples for part in parts) / whole.samples
        assert getattr(whole, name) == pytest.approx(each, rel=1e-12)
        assert each > 0
