"""The page of a network: what it says, what it refuses, and how it looks in a real browser."""

from __future__ import annotations

import errno
import json
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import opened
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import parspike
from parspike.cli import app
from parspike.errors import FileError, InputError, MissingExtraError, OptionError
from parspike.report.pictures import picture_of

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&amp;$x^2$"


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(page.read_text())
        self.text = " ".join(" ".join(self.parts).replace("\N{NO-BREAK SPACE}", " ").split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.parts.append(data)


def network(classes=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, classes),
    ).eval()  # fmt: skip


def items(labels=True):
    drawn = torch.Generator().manual_seed(1)
    x, y = torch.rand(40, 3, 8, 8, generator=drawn), torch.randint(5, (40,), generator=drawn)
    return list(zip(x.split(16), y.split(16), strict=True)) if labels else list(x.split(16))


def report(snn, data, path, **options):
    return parspike.report(snn, data, path, seconds=0.05, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def plan():
    return parspike.plan(network(), items()[0][0], free_sizes=False)


@pytest.fixture(scope="module")
def snn(plan):
    return parspike.convert(plan, items(labels=False), T=3, code="weighted", recipe="max")


@pytest.fixture(scope="module")
def diagnosis(snn, plan):
    return parspike.diagnose(snn, plan, items())


@pytest.fixture(scope="module")
def made(snn, plan, diagnosis, folder):
    """A page of a parallel network with everything, and what `report` returned."""
    sweep = parspike.sweep(plan, items(labels=False)[:1], items()[1:], T=(1, 3), codes=["weighted"], recipe="max")
    path = folder / "all.html"
    return path, report(
        snn, items(), path, model=plan, classes=list("abcde"), sweep=sweep, diagnosis=diagnosis
    )  # fmt: skip


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their figures, which take two seconds a page: a test of words needs none. Gives their names."""
    names = []

    def no_figure(draw, name, label):
        names.append(name)
        return f"<svg aria-label='{name}'></svg>"

    monkeypatch.setattr(sys.modules["parspike.report.page"], "inline", no_figure)
    return names


@pytest.fixture(scope="module")
def hostile(folder):
    """A page on which every text that comes from outside is an attack, of neurons with a state."""
    model = network()
    model.add_module("1", nn.Sequential())
    model[1].add_module(HOSTILE, nn.ReLU())
    model.__class__ = type("Net", (nn.Sequential,), {"__qualname__": HOSTILE})
    snn = parspike.convert(model, items(labels=False), T=3, neuron=parspike.IF(), recipe="max", free_sizes=False)
    assert HOSTILE in str(snn)
    snn.provenance |= {HOSTILE: {HOSTILE: [HOSTILE]}, "kept": HOSTILE, "search": 3}
    path = folder / "hostile.html"
    report(
        snn, items(), path, classes=dict.fromkeys(range(5), HOSTILE), title=HOSTILE, commands=[HOSTILE],
        about=[(HOSTILE, HOSTILE)], layers=[f"1.{HOSTILE}"],
    )  # fmt: skip
    return path


# ------------------------------------------------------------------------------------------------- what it says


def test_the_page_says_what_was_measured(made, snn, plan):
    path, costs = made
    page = Parsed(path)
    measured = parspike.measure(snn, items(), against=plan)
    assert costs == measured
    wanted = [
        f"{100 * measured.accuracy:.2f} % of 40 answers are right; the network itself has "
        f"{100 * measured.network_accuracy:.2f} % right. {100 * measured.agreement:.2f} % of 40 answers are those of "
        "the network itself",
        f"{measured.spikes_per_neuron:.3f}", f"{100 * measured.error:.2f} %", "Accuracy against T", "Error by layer",
        "Firing rate by layer", "parallel neurons, code weighted", "Estimated energy of a sample", "3 time-steps",
        "parallel spiking neuron", "Time against T on this machine",
        "sha256 " + snn.provenance["calibration"]["sha256"],
    ]  # fmt: skip
    for text in wanted:
        assert text in page.text
    for row in measured.rows:
        if row.kind == "neuron":
            assert f"{row.firing_rate:.3f}" in page.text
            assert f"{100 * row.error:.1f} %" in page.text


def test_the_page_needs_nothing_else(made, hostile):
    for path in (made[0], hostile):
        page = Parsed(path)
        kinds = [tag for tag, _ in page.tags]
        assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(kinds)
        for _, attributes in page.tags:
            for name, value in attributes.items():
                assert not name.startswith("on")
                if name in ("src", "href", "xlink:href", "data", "action"):
                    assert (value or "").startswith(("#", "data:image/png;base64,"))
        (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert "@import" not in path.read_text()
        assert set(re.findall(r"url\(([^)]*)\)", path.read_text())) == {
            f"url(#{one})"[4:-1] for one in ids if f"url(#{one})" in path.read_text()
        }


def test_the_page_says_where_the_error_comes_from(made, diagnosis):
    page = Parsed(made[0])
    worst = diagnosis.worst
    said = page.text.partition("to reproduce it")[2].partition("Where the error comes from")[2].partition("Spikes")[0]
    assert f"o blame: {worst.layer}. " in said
    for row in diagnosis.rows:
        cells = [f"{getattr(row, name):.3f}" for name in ("error", "clipping", "quantisation")]
        assert f"{row.layer} {row.neurons:,.0f} {' '.join(cells)}" in said
    assert len(diagnosis.remedies) > 1
    for one in diagnosis.remedies:
        mark = " take this" if one is diagnosis.remedy else ""
        assert f"{one.what} {one.again or one.before} {one.after}{mark}" in said
    assert diagnosis.remedy is None or diagnosis.remedy.how in said


def test_texts_from_outside_are_text(hostile):
    page = Parsed(hostile)
    shown = " ".join(HOSTILE.split())
    # title, heading, class names, layer of the plan and of the operations, provenance three times, about twice, command
    assert page.text.count(shown) >= 12
    assert [tag for tag, _ in page.tags].count("title") == 1
    assert {a.get("alt", "")[:5] for tag, a in page.tags if tag == "img"} == {"input"}


def test_labels_without_a_network(snn, undrawn, tmp_path):
    costs = report(snn, items(), tmp_path / "page.html")
    page = Parsed(tmp_path / "page.html")
    assert costs.agreement is None
    assert f"{100 * (costs.accuracy or 0):.2f} % of 40 answers are right." in page.text
    assert "95 % interval" in page.text
    assert "Errors by layer need the network" in page.text
    assert undrawn == ["score", "rates", "raster0", "raster1", "energy", "time"]


def test_a_network_without_labels(snn, plan, undrawn, tmp_path):
    costs = report(snn, items(labels=False), tmp_path / "page.html", model=plan)
    page = Parsed(tmp_path / "page.html")
    assert costs.accuracy is None
    assert f"of the answers are the network’s {100 * (costs.agreement or 0):.2f} %" in page.text
    assert undrawn == ["score", "error", "rates", "raster0", "raster1", "energy", "time"]
    assert "Agreement at T = 3" in page.text
    assert "label" not in page.text.partition("Examples The first")[2].partition("The network")[0]


def test_neither_labels_nor_a_network(snn, undrawn, tmp_path):
    report(snn, items(labels=False), tmp_path / "page.html")
    page = Parsed(tmp_path / "page.html")
    assert "This page cannot say how well the network answers" in page.text
    assert "accuracy is not known" in page.text
    assert undrawn == ["rates", "raster0", "raster1", "energy", "time"]


def test_values_and_lines(undrawn, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    x = torch.randn(30, 12)
    made = parspike.plan(model, x[:2])
    snn = parspike.convert(made, x, T=4, recipe="max")
    costs = report(snn, x, tmp_path / "page.html", model=made)
    page = Parsed(tmp_path / "page.html")
    assert f"they differ from the network’s by {100 * (costs.error or 0):.1f} %" in page.text
    assert [tag for tag, _ in page.tags].count("polyline") == 6
    assert f"{model(x[:1]).item():.3g}" in page.text


def test_a_network_without_neurons(undrawn, tmp_path):
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    x = torch.randn(8, 4)
    with pytest.warns(parspike.errors.ParspikeWarning, match="no activation"):
        snn = parspike.convert(model, x, T=2, recipe="max")
    report(snn, x, tmp_path / "page.html", model=model)
    assert "no spiking neurons" in Parsed(tmp_path / "page.html").text
    assert undrawn == ["score", "energy", "time"]


def test_another_network_is_compared_by_its_outputs(snn, undrawn, tmp_path):
    torch.manual_seed(1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    other = parspike.plan(other, items()[0][0], free_sizes=False)
    report(snn, items()[:1], tmp_path / "page.html", model=other)
    assert "has another structure, so only its outputs are compared" in Parsed(tmp_path / "page.html").text


# -------------------------------------------------------------------------------------------------- pictures


def test_pictures():
    import base64
    import io

    from PIL import Image

    def pixels(picture):
        raw = base64.b64decode(picture.image.removeprefix("data:image/png;base64,"))
        return np.asarray(Image.open(io.BytesIO(raw)))

    x = torch.rand(3, 5, 4)
    assert np.array_equal(pixels(picture_of(x)), (x.movedim(0, 2).numpy() * 255).round().astype(np.uint8))
    assert pixels(picture_of(x[:1])).shape == (5, 4)
    stretched = pixels(picture_of(10 * x[:1] - 5))
    assert (stretched.min(), stretched.max()) == (0, 255)
    assert pixels(picture_of(torch.rand(7, 5, 4))).shape == (5, 4)
    assert max(pixels(picture_of(torch.rand(3, 500, 300))).shape) == 224
    assert np.array_equal(pixels(picture_of(x, lambda x: x / 2)), (x.movedim(0, 2).numpy() * 127.5).round())
    assert picture_of(torch.arange(3)).text == "0 1 2"
    assert picture_of(torch.zeros(())).text == "0"
    line = picture_of(torch.tensor([0.0, 1.0, 0.5])).line
    assert line == "2.0,95.0 100.0,5.0 198.0,50.0"
    assert picture_of(torch.rand(1, 1, 9000)).line.count(",") == 200
    with pytest.raises(InputError, match="picture="):
        picture_of(x, lambda x: x.sum())


# ------------------------------------------------------------------------------------------------- refusals


def test_an_existing_page_is_replaced_with_force_alone(snn, undrawn, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(FileError, match="exists: choose another name, or pass force=True"):
        report(snn, items(), path)
    assert path.read_text() == "mine"
    report(snn, items()[:1], path, force=True)
    assert "<!doctype html>" in path.read_text()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("page.pdf", OptionError, "whose name ends in .html"), ("none/page.html", FileError, "there is no folder"),
        ("folder.html", FileError, "is a folder"),
    ],
)  # fmt: skip
def test_places_are_refused_before_anything_is_measured(snn, tmp_path, name, error, says):
    (tmp_path / "folder.html").mkdir()

    def never():
        raise AssertionError("the data were read")
        yield

    with pytest.raises(error, match=says):
        report(snn, never(), tmp_path / name)


def test_a_full_disk_leaves_the_old_page(snn, undrawn, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="No space left on device; the old file, if any, is as it was"):
        report(snn, items()[:1], path, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(snn, tmp_path, monkeypatch, module):
    maker = sys.modules["parspike.report.make"]
    monkeypatch.setattr(maker, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(MissingExtraError, match=rf"'{module}' is not installed: run  pip install 'parspike\[report\]'"):
        report(snn, items(), tmp_path / "page.html")


def test_wrong_arguments(snn, tmp_path):
    with pytest.raises(InputError, match=r"converted network, got Sequential: parspike\.convert"):
        report(network(), items(), tmp_path / "page.html")
    with pytest.raises(OptionError, match="is no layer of neurons"):
        report(snn, items(), tmp_path / "page.html", layers=["nope"])
    with pytest.raises(InputError, match="the data are empty"):
        report(snn, [], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_deep_and_long_provenance_is_cut():
    text = sys.modules["parspike.report.page"]._text
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert text(deep) == "[[[[[[[…]]]]]]]"
    assert len(text("x" * 10_000)) < 1000
    assert text({"a": True, "b": [1, None], "c": {"d": 0.5}}) == "a yes, b [1, –], c (d 0.5)"


# ------------------------------------------------------------------------------------------- in the real browser

OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg.figure')) {
    const box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim());
    const boxes = texts.map(t => t.getBoundingClientRect());
    const name = i => svg.getAttribute('aria-label').slice(0, 30) + ': ' + texts[i].textContent;
    boxes.forEach((b, i) => {
      if (b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1)
        found.push('cut off in ' + name(i));
      for (let j = 0; j < i; j++) {
        const c = boxes[j];
        if (Math.min(b.right, c.right) - Math.max(b.left, c.left) > 1
            && Math.min(b.bottom, c.bottom) - Math.max(b.top, c.top) > 2.5)
          found.push(name(i) + ' over ' + texts[j].textContent);
      }
    });
  }
  return found;
}"""
DRAWN = """() => [...document.querySelectorAll('svg.figure, .examples img')].map(e => {
  const box = e.getBoundingClientRect();
  const marks = e.tagName === 'IMG' ? e.naturalWidth
    : [...e.querySelectorAll('path, use, polyline, text')].filter(m => m.getBoundingClientRect().width > 0).length;
  return [box.width, box.height, marks];
})"""


def drawn(seen):
    """Every figure has an extent and something in it, no text lies over another, nothing is wider than the page."""
    boxes = seen.page.evaluate(DRAWN)
    assert len(boxes) >= 6
    assert all(width > 20 and height > 20 and marks > 0 for width, height, marks in boxes)
    assert seen.page.evaluate(OVERLAPS) == []
    assert seen.overflow() <= 0


def ink_and_paper(seen):
    return seen.page.evaluate(
        "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
    )


def brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", ["made", "hostile"])
def test_in_a_browser(browser, request, page, width, scheme):
    found = request.getfixturevalue(page)
    path = found[0] if isinstance(found, tuple) else found
    with opened(browser, path.as_uri(), width=width, scheme=scheme) as seen:
        seen.page.on("dialog", lambda dialog: seen.wrong.append(f"dialog: {dialog.message}"))
        seen.page.reload()
        drawn(seen)
        ink, paper = (brightness(colour) for colour in ink_and_paper(seen))
        assert (ink < paper) == (scheme == "light")
        text = seen.page.locator("svg.figure text").first.evaluate("e => getComputedStyle(e).fill")
        assert brightness(text) == ink
        assert seen.page.locator("script").count() == 0


def test_in_print(browser, made):
    with opened(browser, made[0].as_uri(), width=690, scheme="dark") as seen:
        seen.page.emulate_media(media="print", color_scheme="dark")
        drawn(seen)
        ink, paper = (brightness(colour) for colour in ink_and_paper(seen))
        assert ink < paper
        # What scrolls on a screen stands on paper whole.
        assert all(seen.page.evaluate(
            "[...document.querySelectorAll('.scroll')].map(e => e.scrollHeight <= e.clientHeight + 1)"
        ))  # fmt: skip
        pdf = seen.page.pdf(format="A4")
        pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
        assert pdf.startswith(b"%PDF")
        assert 2 <= pages <= 12


def test_the_page_runs_without_scripts_too(browser, made):
    with opened(browser, made[0].as_uri(), scripts=False) as seen:
        assert seen.page.title().endswith("as a spiking network")


# ---------------------------------------------------------------------------------------------- command line


NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
"""


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a network in a file, its weights, its conversion, and images to fit and to measure on."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        Path("mynet.py").write_text(NET)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        save_file(model.state_dict(), "w.safetensors")
        rng = np.random.default_rng(0)
        for name in ("train", "test"):
            images = rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
            np.savez(f"{name}.npz", images=images, labels=rng.integers(0, 3, 12))
        done = run("convert", "mynet.py:net", "--weights", "w.safetensors", "--data", "train.npz", "--recipe", "max",
                   "-T", "2", "--mean", "0.5", "--std", "0.25", "-o", "n.parspike")  # fmt: skip
        assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def here(prepared, tmp_path, undrawn, monkeypatch):
    """A copy of that folder, as the place where commands run."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys.modules["parspike.report.make"].times, "__kwdefaults__", {"model": None, "seconds": 0.05})
    return tmp_path


def test_the_command(here):
    Path("names.txt").write_text("cat\ndog\nowl\n")
    against = ["--against", "mynet.py:net", "--weights", "w.safetensors"]
    done = run("report", "n.parspike", "--data", "test.npz", *against, "--classes", "names.txt", "--sweep", "1",
               "--calibration", "train.npz", "--layers", "1", "--diagnose", "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    said = json.loads(run("eval", "n.parspike", "--data", "test.npz", *against, "--json").stdout)
    for name in ("accuracy", "network_accuracy", "agreement", "spikes_per_neuron", "images"):
        assert answer[name] == pytest.approx(said[name])
    assert answer["page"] == "report.html"
    assert answer["bytes"] == Path("report.html").stat().st_size
    page = Parsed(Path("report.html"))
    for text in (
        "n.parspike: a spiking network",
        "Accuracy against T",
        "To blame: 1.",
        "owl",
        "12 images of test.npz, preprocessing: x/255, mean (0.5,)",
    ):
        assert text in page.text
    # The commands of the page make the same network and the same page again.
    lines = re.findall(r"parspike ((?:convert|report) .*?)\n", "".join(page.parts))
    assert len(lines) == 2
    first = Path("n.parspike").read_bytes()
    done = run(*shlex.split(lines[0]), "--force")
    assert done.exit_code == 0, done.stderr
    assert Path("n.parspike").read_bytes() == first
    assert "exists: write over it with --force" in run(*shlex.split(lines[1])).stderr
    assert run(*shlex.split(lines[1]), "--force").exit_code == 0
    again = Parsed(Path("report.html"))
    assert again.text.partition("What it costs")[0] == page.text.partition("What it costs")[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--data test.npz -o page.txt", "a report is a page, whose name ends in .html"),
        ("--data test.npz -o none/page.html", "there is no folder none"),
        ("--data test.npz --weights w.safetensors", "--weights belongs to the network of --against SPEC"),
        ("--data test.npz --sweep 1,2", "give it with --against SPEC"),
        ("--data test.npz --sweep 1,x", "--sweep 1,x: 'x' is no whole number"),
        ("--data test.npz --calibration train.npz", "--calibration is for --sweep"),
        ("--data test.npz --classes no.txt", "--classes no.txt: there is no file"),
        ("--data test.npz --layers nope", "'nope' is no layer of neurons"),
        ("--data test.npz --against mynet.py:net --sweep 1", "images are in both"),
        ("--data nope.npz", "no such file or folder"),
        ("--data test.npz --classes n.parspike", "--classes n.parspike: no text ("),
        ("--data test.npz --classes empty.txt", "--classes empty.txt: the file is empty"),
    ],
)
def test_wrong_options(here, options, says):
    Path("empty.txt").write_text("\n\n")
    done = run("report", "n.parspike", *options.split())
    assert done.exit_code == 1
    assert says in done.stderr
    assert not list(Path().glob("*.html"))


def test_a_file_does_not_choose_code_that_runs(here):
    """A recipe of one's own is a Python file; one that a network's file names is not run by a sweep."""
    Path("bad.py").write_text("raise SystemExit('ran')")
    snn = parspike.load("n.parspike")
    snn.provenance["recipe"] = {"name": "bad.py:Recipe"}
    snn.save("n.parspike", force=True)
    done = run("report", "n.parspike", "--data", "test.npz", "--against", "mynet.py:net", "--weights", "w.safetensors",
               "--sweep", "1", "--calibration", "train.npz")  # fmt: skip
    assert done.exit_code == 1
    assert "'bad.py:Recipe' is none of parspike's own" in done.stderr
