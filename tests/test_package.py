"""What strangers install: versions, workflow files and the Makefile agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_that_exist(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text("utf-8"))["jobs"]
    called = set()
    for job in jobs.values():
        targets = job.get("strategy", {}).get("matrix", {}).get("target", [])
        for command in (step.get("run", "") for step in job["steps"]):
            for name in re.findall(r"make (\S+|\$\{\{[^}]*\}\})", command):
                called |= set(targets) if name == "${{" else {name}
    assert called
    assert called <= TARGETS


def test_make_targets_are_phony_or_files() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == TARGETS


def test_the_docker_file_runs_targets_that_exist() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert {"demo", "test"} <= set(re.findall(r'(?:parspike |")make"?,? "?([a-z]+)', text)) <= TARGETS


def test_one_version_everywhere() -> None:
    version = re.search(r'__version__ = "(.*)"', (ROOT / "src/parspike/version.py").read_text("utf-8"))
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert version is not None
    assert cited["version"] == version[1]
    assert cited["license"] == PROJECT["project"]["license"] == "MIT"


def test_types_and_readme_go_with_the_package() -> None:
    assert (ROOT / "src/parspike/py.typed").is_file()
    fragments = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["fragments"]
    for fragment in fragments:
        for place in (fragment[key] for key in ("end-before", "start-at") if key in fragment):
            assert (ROOT / fragment["path"]).read_text("utf-8").count(place) == 1
    for name in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / name).exists(), name
