"""The code on the pages of the documentation runs, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import parspike
import parspike.lower

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the Python blocks of a page one after the other, in a folder of its own; what they made, by name."""
    text = (DOCS / page).read_text("utf-8")
    blocks = BLOCK.findall(text)
    assert blocks, f"{page} has no code"
    monkeypatch.chdir(folder)
    made: dict[str, Any] = {"__name__": "page"}
    threads = torch.get_num_threads()
    try:
        for number, block in enumerate(blocks, 1):
            # The file has as many lines before the block as the page, so that an error names the page's line.
            before = text[: text.index(block)].count("\n")
            code = compile("\n" * before + block, f"docs/{page}, block {number}", "exec")
            exec(code, made)
    finally:
        torch.set_num_threads(threads)
    return made


def test_quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = run("quick-start.md", tmp_path, monkeypatch)
    shares = [float(share) for share in re.findall(r"([\d.]+)%", capsys.readouterr().out)]
    assert len(shares) == 2
    assert min(shares) > 85
    assert made["snn"].T == 8
    assert len(BLOCK.findall((DOCS / "quick-start.md").read_text("utf-8"))[0].splitlines()) <= 13


def test_the_first_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("index.md", tmp_path, monkeypatch)
    assert capsys.readouterr().out == "torch.Size([64, 2])\ntorch.Size([8, 64, 8])\n"


def test_convert_your_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run("tutorials/convert.md", tmp_path, monkeypatch)
    said = capsys.readouterr().out
    own, spiking = made["accuracy"](made["model"]), made["accuracy"](made["snn"])
    assert own > 0.9
    assert spiking > own - 0.03
    assert "counts differ between the engines: 0" in said
    assert "equal outputs: True" in said
    assert "2 spiking, 0 kept analog, 1 max, 0 analog operators, 0 read-out, 0 refused" in said
    assert (tmp_path / "digits.parspike").is_file()


@pytest.mark.usefixtures("not_compiled")  # a minute of a C++ compiler, which a longer training makes good
def test_train_and_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = run("tutorials/train.md", tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert made["accuracy"](made["model"]) > 0.9
    assert made["difference"] < 1e-4
    counts = set(re.findall(r"^(?:count|parallel|serial) (.*)$", said, re.MULTILINE))
    assert len(counts) == 1


def test_to_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    made = run("tutorials/hardware.md", tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert made["accuracy"](made["model"]) > 0.9
    assert made["accuracy"](made["back"]) == pytest.approx(made["accuracy"](made["chip"]), abs=0.02)
    assert "read back and run on 16 samples" in said
    assert made["logits"].shape == (16, 360, 10)


@pytest.mark.parametrize("page", ["choose", "keep", "own-activation", "from-spikingjelly"])
def test_how_to(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(f"how-to/{page}.md", tmp_path, monkeypatch)
    said = capsys.readouterr().out
    if page == "choose":
        assert said.rstrip().endswith("True")
    elif page == "keep":
        assert len(made["snn"].neurons()) == 1
        assert "1 spiking, 1 kept analog" in said
    elif page == "own-activation":
        assert float(said.rsplit(maxsplit=1)[-1]) < 0.2
    else:
        assert said == "torch.Size([8, 4]) torch.Size([32, 8, 4]) True\n"


def test_choosing_t_shows_the_figures_of_the_results() -> None:
    """They were those of an earlier default recipe."""
    results = (DOCS / "results.md").read_text("utf-8")
    shown = (DOCS / "how-to/choose.md").read_text("utf-8")
    for name in ("ResNet-20", "ResNet-56"):
        table = results[results.index(f"<!-- few_steps {name.lower().replace('-', '')} -->") :]
        measured = re.findall(r"[\d.]+", re.sub(r" ±[^|]*|\([^)]*\)", "", re.findall(r"^\| auto .*$", table, re.M)[0]))
        row = re.findall(rf"^\| {name}, .*$", shown, re.MULTILINE)[0]
        assert re.findall(r"\| ([\d.]+) (?=\|)", row) == measured[2:6], name


def test_links_lead_somewhere() -> None:
    """What `mkdocs build --strict` checks, without mkdocs: every page of the navigation and every link is there."""
    pages = sorted(DOCS.rglob("*.md"))
    for page in pages:
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in LINK.findall(re.sub(r"`[^`]*`", "", text)):
            path = link.partition("#")[0]
            if path and "://" not in path:
                assert (page.parent / path).exists(), f"{page}: {link}"
    config = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    named = set(re.findall(r": ([\w/.-]+\.md)$", config, re.MULTILINE))
    assert named == {page.relative_to(DOCS).as_posix() for page in pages}


def test_every_public_name_stands_on_the_page_of_reference() -> None:
    """Would catch a name that is public and that no page tells, or one that was taken away and is still told."""
    told = set(re.findall(r"^::: ([\w.]+)$", (DOCS / "reference.md").read_text("utf-8"), re.MULTILINE))
    public = (parspike, parspike.train, parspike.lower)
    found = {getattr(module, name) for module in public for name in module.__all__ if name not in ("METHODS", "errors")}
    made = {f"{one.__module__}.{one.__qualname__}" for one in found if one is not parspike.ParspikeError}
    assert told == {*made, "parspike.errors"}


def test_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = run("../README.md", tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "torch.Size([64, 8]) torch.Size([8, 64, 8])" in said
    assert said.rstrip().endswith("torch.Size([8, 64, 2])")
    assert torch.equal(made["snn"](made["x"]), made["logits"])
