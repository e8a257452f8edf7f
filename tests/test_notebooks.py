"""The tutorials as notebooks: made from the pages as they are now, and run as Jupyter runs them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import notebooks
import pytest

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMES = sorted(notebooks.EXTRAS)
LAST = {
    "convert": "equal outputs: True",
    "train": "largest difference of an output",
    "hardware": "read back and run on 16 samples: the same spike counts",
}
"""What only a notebook whose last part ran can have printed."""


def test_notebooks_are_those_of_the_pages() -> None:
    """Would catch a page that was changed and its notebook not, and a tutorial without a notebook."""
    made = notebooks.made()
    assert {path.stem for path in made} == {path.stem for path in notebooks.TUTORIALS.glob("*.md")}
    for path, text in made.items():
        assert path.read_text("utf-8") == text, "python benchmarks/notebooks.py"
        assert f"]({path.name})" in path.with_suffix(".md").read_text("utf-8"), "the page names its notebook"


@pytest.mark.parametrize("name", NAMES)
def test_all_code_and_all_words_of_a_page_are_in_its_notebook(name: str) -> None:
    page = (notebooks.TUTORIALS / f"{name}.md").read_text("utf-8")
    cells = notebooks.notebook(page, "demo")["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code[0] == "%pip install --quiet 'parspike[demo]'"
    assert code[1:] == [block.rstrip("\n") for block in BLOCK.findall(page)]
    words = " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert words.split() == re.sub(BLOCK, "", page).split()


@pytest.mark.slow  # a process each, and what the pages train
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a cell that runs as Python but not in a kernel, and a file that Jupyter refuses."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(Path(notebooks.__file__).parents[1] / "src"), prepend=os.pathsep)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(notebooks.TUTORIALS / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    book.cells = [cell for cell in book.cells if "install" not in cell.metadata.get("tags", [])]
    nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(out.get("text", "") for cell in book.cells for out in cell.get("outputs", []))
    assert LAST[name] in said
