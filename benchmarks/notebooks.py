"""docs/tutorials/*.ipynb: each tutorial as a notebook, made from its page, so that there is one source.

    python benchmarks/notebooks.py

Every ```python block becomes a cell of code, all between them a cell of text; the first cell installs parspike with the
extras that the page needs. No outputs are stored: the page shows them as text. `tests/test_notebooks.py` compares the
files with the pages, and runs them in `make test-all`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
EXTRAS = {"convert": "demo", "train": "demo", "hardware": "demo,export"}
BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def notebook(page: str, extras: str) -> dict[str, Any]:
    """A notebook of format 4.5 from the text of a page in Markdown."""
    cells = [_code(f"%pip install --quiet 'parspike[{extras}]'", ["install"])]
    for number, part in enumerate(BLOCK.split(page)):
        if part.strip():
            cells.append(_code(part.strip("\n")) if number % 2 else _cell("markdown", part.strip("\n")))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": python, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def _code(source: str, tags: list[str] | None = None) -> dict[str, Any]:
    return _cell("code", source, tags) | {"execution_count": None, "outputs": []}


def _cell(kind: str, source: str, tags: list[str] | None = None) -> dict[str, Any]:
    return {"cell_type": kind, "metadata": {"tags": tags} if tags else {}, "source": source.splitlines(keepends=True)}


def made() -> dict[Path, str]:
    """The text of each notebook, by its path."""
    return {
        TUTORIALS / f"{name}.ipynb": json.dumps(
            notebook((TUTORIALS / f"{name}.md").read_text("utf-8"), extras), indent=1, ensure_ascii=False
        ) + "\n"
        for name, extras in EXTRAS.items()
    }  # fmt: skip


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text, "utf-8")
