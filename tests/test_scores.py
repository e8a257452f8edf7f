"""A measure is used where it says something: answers of class scores, the error of values."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import answer, run
from torch import Tensor, nn

import parspike
from parspike.calibrate.batches import labels_of
from parspike.calibrate.distance import apart, class_scores, judged, values_of
from parspike.errors import CalibrationError, InputError, OptionError, ParspikeWarning
from parspike.measure import Scores, answers_of

B, K = 6, 4


@dataclass
class Output:
    logits: Tensor
    states: Tensor


def of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


WHOLE, REAL = torch.arange(B) % K, torch.rand(B)
KINDS: dict[str, tuple[Any, Tensor | None, tuple[int, ...] | None]] = {
    # outputs, labels, the shape of the answers (None: values)
    "scores": (of(B, K), WHOLE, (B,)),
    "scores, no labels": (of(B, K), None, (B,)),
    "coordinates": (of(B, 2), REAL, None),
    "coordinates, two labels a sample": (of(B, 2), of(B, 2), None),
    "several classes at once": (of(B, K), (of(B, K) > 0).long(), None),
    "one value": (of(B, 1), REAL, None),
    "one value, no labels": (of(B, 1), None, None),
    "one value and classes": (of(B, 1), WHOLE, None),
    "one number": (of(B), None, None),
    "segmentation": (of(B, K, 5, 5), torch.randint(K, (B, 5, 5)), (B, 5, 5)),
    "an image": (of(B, 3, 5, 5), None, None),
    "an image of an image of a class": (of(B, 3, 5, 5), WHOLE, None),
    "tokens": (of(B, 7, K), None, None),
    "whole numbers": (torch.arange(B), WHOLE, (B,)),
    "a map of whole numbers": (torch.ones(B, 5, 5).long(), None, (B, 5, 5)),
    "scores and their largest": ((of(B, K), of(B, K).argmax(1)), WHOLE, (B,)),
    "several outputs": ((of(B, 9), of(B, K)), WHOLE, None),
    "logits among several": ({"states": of(B, 9), "logits": of(B, K)}, WHOLE, (B,)),
    "logits in a class": (Output(of(B, K), of(B, 9)), None, (B,)),
    "complex": (torch.complex(of(B, K), of(B, K)), None, None),
    "nothing": ({"loss": None}, None, None),
}


@pytest.mark.parametrize(
    ("output", "network"),
    [
        ((of(B, K), of(B)), of(B, K)),
        (of(B, K), (of(B, K), of(B))),
        (of(B, 1), of(B)),
        (of(B, 3, 5, 5), of(B, 3, 6, 6)),
        (of(B, K), of(B, K + 1)),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(output: Any, network: Any) -> None:
    """They were left out of the error and of the agreement without a word."""
    with pytest.raises(InputError, match=r"against= gives \(6,.*, and this network \(6,.*: compare it with"):
        Scores().add(output, network)


@pytest.mark.parametrize("wrong", [-1, K])
def test_labels_that_are_no_class_are_refused(wrong: int) -> None:
    """A label below 0 counted as a wrong answer, so that labels from 1 on, less 2, gave an accuracy near 0."""
    labels = WHOLE.clone()
    labels[2] = wrong
    with pytest.raises(InputError, match=f"a class {wrong} but the network knows 4 classes, counted from 0 on"):
        Scores().add(of(B, K), None, labels)


@pytest.mark.parametrize("border", [-100, -1, 255])
def test_pixels_without_a_class_count_in_no_accuracy(border: int) -> None:
    """They were wrong answers of both networks."""
    output = of(2, K, 3, 5)
    network = output + 0.8 * of(3, K, 3, 5)[:2]
    labels = output.argmax(1)
    labels[:, 0] = (labels[:, 0] + 1) % K  # 10 of 30 pixels are wrong
    labels[:, 2] = border
    found = Scores()
    found.add(output[:1], network[:1], labels[:1])
    last = Scores()
    last.add(output[1:], network[1:], labels[1:])
    found = Scores.merged([found, last])
    assert (found.answers, found.judged) == (30, 20)
    assert found.accuracy == 0.5
    assert found.network_accuracy == float((network.argmax(1) == labels)[:, :2].double().mean())
    assert found.agreement == float((network.argmax(1) == output.argmax(1)).double().mean())
    none = Scores()
    none.add(output, network, torch.full_like(labels, border))
    assert none.accuracy is None
    assert none.network_accuracy is None


def test_a_network_that_answers_with_nan_is_no_reference() -> None:
    """The agreement with it was that with class 0, and the error NaN, which is no JSON either."""
    right, wrong = of(B, K), of(B, K).clone()
    wrong[1, 2] = torch.nan
    with pytest.raises(InputError, match=r"the one of against= answers with NaN where this network does not"):
        Scores().add(right, wrong)
    with pytest.raises(InputError, match=r"this network answers with NaN where the one of against= does not"):
        Scores().add(wrong, right)
    both = Scores()
    both.add(2 * wrong, wrong)
    assert both.error == pytest.approx(1)
    assert both.agreement == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_output_is(kind):
    output, labels, wanted = KINDS[kind]
    found = answers_of(output, labels)
    assert (None if found is None else tuple(found.shape)) == wanted
    scores = class_scores(output)
    if found is not None:
        assert torch.equal(found, output if scores is None else scores.argmax(1))


def test_one_output_under_two_names_is_one():
    y = of(B, K)
    assert class_scores({"logits": y, "prediction": y, "states": of(B, 9)}) is y
    assert len(values_of((y, y, of(B, 9)))) == 2
    first = answers_of((of(B), y), sure=True)
    assert first is not None
    assert torch.equal(first, y.argmax(1))
    assert answers_of((of(B), of(B, 1)), sure=True) is None


def test_shares_and_errors_of_batches_add_up():
    said, network, labels = of(12, K), of(12, K) + of(4, 3, K).view(12, K) / 2, torch.arange(12) % K
    whole, first, last = Scores(), Scores(), Scores()
    whole.add((said, said[:, 0]), (network, network[:, 0] / 100), labels)
    assert (whole.accuracy, whole.agreement) == (None, None)  # two outputs of real numbers, none named logits
    assert whole.error is not None
    assert whole.error > 10  # of several outputs the largest
    whole = Scores()
    for score, part in ((whole, slice(0, 12)), (first, slice(0, 5)), (last, slice(5, 12))):
        score.add(said[part], network[part], labels[part])
    both = Scores.merged([first, last])
    assert both.accuracy == whole.accuracy == float((said.argmax(1) == labels).double().mean())
    assert both.network_accuracy == whole.network_accuracy == float((network.argmax(1) == labels).double().mean())
    assert both.agreement not in (None, 0, 1)
    assert both.agreement == whole.agreement == float((said.argmax(1) == network.argmax(1)).double().mean())
    assert both.error == pytest.approx(float((said - network).norm() / network.norm()), rel=1e-6)
    assert whole.error == pytest.approx(both.error)
    assert Scores.merged([last, first]).error == both.error  # to the last bit, whoever added which batches
    assert both.kept == pytest.approx(whole.kept)
    assert both.kept == pytest.approx(kept(said, network) / 100, rel=1e-6)
    same = Scores()
    same.add(said * 0 + 2.2, said * 0 + 2)  # all samples alike: what is compared with is their square
    assert same.kept == pytest.approx(0.99)
    last.add(said, network)
    assert last.accuracy is None  # some have no label
    assert last.agreement is not None
    sizes = Scores()
    for image in (of(2, 3, 4, 4), of(2, 3, 5, 5)):
        sizes.add(1.1 * image, image)
    assert sizes.kept == pytest.approx(0.99)
    masked = Scores()
    hidden = torch.where(torch.eye(K).bool().repeat(3, 1), -torch.inf, said)
    masked.add(hidden, hidden)
    assert (masked.error, masked.agreement, masked.kept) == (0.0, 1.0, 1.0)


def test_a_mask_of_minus_infinity_is_no_distance():
    teacher = torch.where(torch.eye(K).bool(), -torch.inf, of(K, K))
    student = (teacher + 0.1 * of(K, K)).requires_grad_()
    for distance in (apart, judged):
        assert float(distance(teacher, teacher).mean()) == pytest.approx(0, abs=1e-6)
        assert 0 < float(distance(student, teacher).detach().mean()) < 0.1
    (slope,) = torch.autograd.grad(apart(student, teacher), student)
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("kind", [lambda y: y.numpy(), lambda y: y.tolist()])
def test_labels_that_are_no_tensor_are_told(kind: Any) -> None:
    """An accuracy was missing without a word."""
    snn = parspike.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, K)), torch.rand(8, 4), recipe="max")
    with pytest.warns(ParspikeWarning, match=r"labels are read from tensors, and these are a .*torch.as_tensor\(y\)"):
        assert parspike.measure(snn, [(torch.rand(B, 4), kind(WHOLE))]).accuracy is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parspike.measure(snn, [(torch.rand(B, 4), ["a.png"] * B)]).accuracy is None
        assert parspike.measure(snn, [(torch.rand(B, 4), WHOLE)]).accuracy is not None


def test_steps_in_a_call_are_told_to_be_those_of_the_conversion() -> None:
    snn = parspike.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, K)), torch.rand(8, 4), recipe="max")
    with pytest.raises(InputError, match=r"got 1 without a name, T=; T = 8 was chosen when it was converted"):
        snn.run(torch.rand(2, 4), T=4)


def test_labels_stand_behind_the_inputs():
    x, y, z = of(B, 3), WHOLE, of(B)
    assert labels_of((x, y)) is y
    assert labels_of((x, y, z)) is y
    assert labels_of((x, z, y), signature=(2, ())) is y
    assert labels_of((x, y), signature=(2, ())) is None  # two inputs, no labels
    assert labels_of(((x, z), y), inputs=lambda item: item[0]) is y
    assert labels_of({"x": x, "labels": y}) is y
    assert labels_of({"x": x}) is labels_of(x) is labels_of((x, "name")) is labels_of((x, None)) is None


# ------------------------------------------------------------------------------------------------------------ tune


class Head(nn.Module):
    """A network of one hidden layer whose outputs are what `ends` makes of five values a sample."""

    def __init__(self, ends) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.ends = nn.Linear(8, 32), nn.Linear(32, 5), ends

    def forward(self, x: Tensor) -> Any:
        return self.ends(self.last(torch.relu(self.first(x))))


def kept(found: Any, wanted: Any) -> float:
    """Per cent of R²."""
    pairs = zip(values_of(found), values_of(wanted), strict=True)
    return min(100 * (1 - float((a - b).square().sum() / (b - b.mean(0)).square().sum())) for a, b in pairs)


def relative(found: Any, wanted: Any) -> float:
    pairs = zip(values_of(found), values_of(wanted), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


X = torch.randn(128, 8, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
@pytest.mark.parametrize(
    ("ends", "labels", "measure"),
    [
        (lambda y: y[:, :1], None, "values"),
        (lambda y: y[:, 0], None, "values"),
        (lambda y: y[:, :2], torch.rand(128, 2), "values"),
        (lambda y: y[:, :2] + 9 * torch.tensor([0.0, 1.0]), None, "both"),
        (lambda y: y, torch.arange(128) % 5, "agreement"),
        (lambda y: y[:, :4].reshape(-1, 1, 2, 2), None, "values"),
        (lambda y: {"box": y[:, :4], "score": y[:, 4:]}, None, "values"),
        (lambda y: y.argmax(1), None, "agreement"),
    ],
    ids=["(B, 1)", "(B,)", "(B, 2) and values", "(B, 2)", "classes", "image", "two outputs", "whole"],
)
def test_tune_keeps_what_the_outputs_are(ends, labels, measure):
    model = Head(ends).eval()
    items = X.split(16) if labels is None else list(zip(X.split(16), labels.split(16), strict=True))
    found = parspike.tune(model, items, recipe="max", codes=("weighted",), drop=5.0)
    assert (found.measure, found.network) == (measure, 100)
    assert found.chosen is not None
    assert found.snn is not None
    held = torch.cat(X.split(16)[3::4])
    said, wanted = found.snn(held), model(held)
    chosen = found.chosen
    assert chosen.score >= 95
    assert all(trial.score < 95 for trial in found.trials if trial.T < chosen.T)
    if measure in ("values", "both"):
        assert chosen.error == pytest.approx(100 * relative(said, wanted), rel=1e-3)
        share = kept(said, wanted)
        assert chosen.score == pytest.approx(
            share if measure == "values" else min(share, chosen.agreement or 0), rel=1e-5
        )
        assert "values (R²) on held-out images" in str(found)
    else:
        answers = [value if not value.is_floating_point() else value.argmax(1) for value in (said, wanted)]
        share = float((answers[0] == answers[1]).float().mean())
        assert chosen.agreement == chosen.score == pytest.approx(100 * share)
    assert json.loads(json.dumps(found.to_dict()))["chosen"]["score"] == chosen.score


def test_agreement_alone_would_have_said_that_two_values_are_kept():
    """The largest of two values far apart is always the same: why (B, 2) without labels is held to its values too."""
    plan = parspike.plan(Head(lambda y: y[:, :2] + 9 * torch.tensor([0.0, 1.0])).eval(), X[:16])
    options = {"recipe": "max", "codes": ("weighted",), "drop": 5.0}
    blind, seeing = (parspike.tune(plan, X.split(16), measure=m, **options) for m in ("agreement", None))
    assert blind.snn is not None
    assert seeing.snn is not None
    assert blind.snn.T < seeing.snn.T
    held = torch.cat(X.split(16)[3::4])
    wanted = plan.graph.run(held)
    assert kept(blind.snn(held), wanted) < 95 <= kept(seeing.snn(held), wanted)
    assert relative(blind.snn(held), wanted) < 0.05  # nor would the error as a share of values far from 0
    assert "measure='agreement' if they are" in str(seeing)


@pytest.mark.parametrize(
    ("ends", "measure", "says"),
    [
        (lambda y: y[:, 0], "agreement", r"outputs are \(16,\).*measure='values'"),
        (lambda y: y[:, :1], "both", r"outputs are \(16, 1\).*measure='values'"),
        (lambda y: y.argmax(1), "values", "whole numbers.*measure='agreement'"),
        (lambda y: y, "right", "one of agreement, accuracy, values, both"),
    ],
)
def test_a_measure_that_says_nothing_of_these_outputs_is_refused(ends, measure, says):
    with pytest.raises((CalibrationError, OptionError), match=says):
        parspike.tune(Head(ends).eval(), X.split(16), measure=measure, recipe="max", most=1)


@torch.no_grad()
@pytest.mark.parametrize("wrong", [{"drop": "1"}, {"drop": -1}, {"most": None}, {"most": 0}, {"codes": []}])
def test_options_of_tune_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="give at least one code, a drop of 0 to 100 per cent points and most of"):
        parspike.tune(nn.Linear(4, 2), X.split(32), **wrong)


def test_a_report_of_values_has_an_error_and_no_agreement():
    for ends, labels in ((lambda y: y[:, 0], REAL), (lambda y: y[:, :2], of(B, 2)), (lambda y: (y[:, :2], y), WHOLE)):
        model = Head(ends).eval()
        snn = parspike.convert(model, X, T=8, recipe="max")
        report = parspike.measure(snn, [(X[:B], labels)], against=model)
        assert report.accuracy is report.network_accuracy is report.agreement is None
        assert report.error == pytest.approx(relative(snn(X[:B]), model(X[:B])), rel=1e-4)


@torch.no_grad()
def test_auto_notes_no_agreement_of_values():
    for ends, known in ((lambda y: y[:, :1], False), (lambda y: y, True)):
        snn = parspike.convert(Head(ends).eval(), X.split(32), T=4, recipe=parspike.Auto(budget=1e-6))
        (tried, *_) = snn.provenance["search"]["tried"]
        assert (tried["agreement"] is not None) is known


# ------------------------------------------------------------------------------------------------------- warnings


def warned(work) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(w.message) for w in caught if issubclass(w.category, ParspikeWarning)]


def test_few_images_and_networks_without_neurons_are_warned_of_once():
    model, linear = Head(lambda y: y).eval(), nn.Sequential(nn.Linear(8, 3)).eval()
    (few,) = warned(lambda: parspike.convert(model, X[:3], T=4))
    assert "3 calibration images are too few" in few
    assert "the closed form without re-fitted synapses" in few
    assert "64" in few
    (none,) = warned(lambda: parspike.convert(linear, X[:3], T=4))
    assert "no activation that becomes neurons" in none
    assert len(warned(lambda: parspike.tune(model, X[:8].split(2), most=3, drop=0))) == 1
    for work in (
        lambda: parspike.convert(model, X, T=4, recipe=parspike.Auto(budget=5)),
        lambda: parspike.convert(model, X[:3], T=4, recipe="max"),
        lambda: parspike.convert(model, X, T=4, recipe="max", layers={"*": parspike.Keep()}),
        lambda: parspike.convert(nn.Sequential(nn.Linear(8, 4), parspike.QCFS(4), nn.Linear(4, 2)).eval(), X[:3], T=4),
    ):
        assert warned(work) == []
    with pytest.warns(ParspikeWarning, match="no spikes"):
        report = parspike.measure(parspike.convert(linear, X, T=4, recipe="max"), X)
    assert "no spiking neurons" in str(report)


# --------------------------------------------------------------------------------------------- the command line

NET = """
from torch import nn

def one():
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 1))

def maps():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import numpy as np
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    Path("values.py").write_text(NET)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 6, 6, 3), dtype=np.uint8)
    np.savez("data.npz", images=pixels, labels=np.arange(32) % 4)
    scope: dict[str, Any] = {}
    exec(NET, scope)
    for name in ("one", "maps"):
        torch.manual_seed(0)
        save_file(scope[name]().state_dict(), f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", ["one", "maps"])
def test_the_command_line_tells_the_error_of_values(here, name):
    network = (f"values.py:{name}", "--weights", f"{name}.safetensors")
    data = ("--data", "data.npz", "--batch-size", 8)
    # Without --batch-size: 32 images are less than the four batches that tune needs.
    tuned = run("tune", *network, "--data", "data.npz", "--recipe", "max", "--drop", 20, "-o", "n.parspike")
    assert "values (R²) on held-out images" in tuned.stdout
    assert "warning" not in tuned.stderr
    said = answer("eval", "n.parspike", *data, "--against", network[0], *network[1:], "--operations")
    assert said["accuracy"] is said["agreement"] is said["network_accuracy"] is None
    assert 0 < said["error"] <= 0.5
    assert said["operations"]["error"] == pytest.approx(said["error"], rel=1e-4)
    assert "relative error" in run("eval", "n.parspike", *data, "--against", network[0], *network[1:]).stdout
    alone = run("eval", "n.parspike", *data).stdout
    assert "values, no class scores" in alone
    assert "accuracy" not in alone
    few = run("convert", *network, *data, "--calibration-images", 3, "-o", "f.parspike")
    assert few.stderr.count("warning:") == 1
    assert "3 calibration images are too few" in few.stderr
    assert "warnings.warn" not in few.stderr


# ------------------------------------------------------------------------------------------------------- notebooks


class Reader(HTMLParser):
    """Cells of a table, and whether every tag is closed by its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert not attrs
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_notebooks_show_tables_in_which_nothing_of_the_user_is_markup():
    evil = "<script>alert('1')</script>&amp;"
    model = nn.Sequential()
    model.add_module("a", nn.Linear(8, 4))
    model.add_module(evil, nn.ReLU())
    model.add_module("b", nn.Linear(4, 3))
    model.eval()
    plan = parspike.plan(model, X)
    snn = parspike.convert(plan, X, T=4, recipe="max")
    snn.provenance["recipe"] = evil
    report = parspike.measure(snn, X, against=model)
    layer = next(row.layer for row in plan.rows if "script" in row.layer)
    for shown, rows in ((plan, 3), (snn, 1), (report, 4)):
        read = Reader(shown._repr_html_())
        assert read.tags <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td"}
        assert len(read.rows) == rows + 1
        assert len({len(row) for row in read.rows}) == 1
        assert layer in [row[0] for row in read.rows]
    assert Reader(report._repr_html_()).rows[-1][0] == "total"
