"""docs/licences.md: the licence of every package that parspike asks for, with what those bring, from their metadata.

    python benchmarks/licences.py     # in an environment with everything: make test makes one

The tables of weights and data at the end of the page are written by hand and stay.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
BEGIN, END = "<!-- packages -->\n", "<!-- end -->"


def licence(name: str) -> str:
    """By the package's own metadata: the expression, else the classifiers, else the first line of the text, or of the
    file LICENSE beside it."""
    told = importlib.metadata.metadata(name)
    classified = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or [] if c.startswith("License :: ")]
    said = told.get("License-Expression") or ", ".join(c for c in classified if c != "OSI Approved")
    if not said and (text := (told.get("License") or "").strip()) not in ("", "UNKNOWN"):
        said = text.splitlines()[0][:60]
    if not said:
        files = [f for f in importlib.metadata.files(name) or [] if f.name.upper().startswith(("LICENSE", "LICENCE"))]
        said = f"{files[0].read_text().strip().splitlines()[0][:60]} (its LICENSE file)" if files else "not said"
    return said


def needs(name: str) -> Iterator[str]:
    """What a package asks for without extras, in this environment."""
    for need in map(Requirement, importlib.metadata.requires(name) or []):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            yield canonicalize_name(need.name)


def closure(names: list[str]) -> dict[str, str]:
    """Version by name of the packages, and of all that they ask for."""
    found: dict[str, str] = {}
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
            continue
        waiting.extend(needs(name))
    return found


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = {"every installation": project["dependencies"], **project["optional-dependencies"]}
    by: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    for extra, lines in asked.items():
        found = closure([Requirement(line).name for line in lines if not line.startswith("parspike[")])
        versions |= found
        for name in found:
            by.setdefault(name, []).append(extra)
    rows = ["| package | version | licence, as it says itself | comes with |", "|---|---|---|---|"]
    for name in sorted(versions):
        extras = by[name][:1] if by[name][0] == "every installation" else by[name]
        if versions[name]:
            rows.append(f"| {name} | {versions[name]} | {licence(name).replace('|', '/')} | {', '.join(extras)} |")
        else:
            rows.append(f"| {name} | – | not installed where this table was made | {', '.join(extras)} |")
    text = PAGE.read_text("utf-8")
    table = BEGIN + "\n".join(rows) + "\n" + END
    PAGE.write_text(re.sub(BEGIN + ".*?" + END, lambda _: table, text, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main()
