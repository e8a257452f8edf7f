"""What all tests share: real data beside the project, torchvision on the CPU build, quiet threads."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import pytest
import torch
import torchvision_operators
from browser import browser

__all__ = ["browser"]

SHARED = Path(__file__).resolve().parents[2] / "shared"

torchvision_operators.declare()

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


def pytest_collection_finish() -> None:
    """What is there before the first test stays: looking through torch and sympy for garbage took a twentieth of the
    tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights beside the project; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}, which are not part of the project")
    return SHARED


@pytest.fixture
def compiler() -> None:
    """Skips a test that compiles where torch cannot."""
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    if os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        pytest.skip("under ATEN_CPU_CAPABILITY=default torch.compile writes C++ that torch's headers do not compile")


@pytest.fixture
def not_compiled(monkeypatch):
    """Compiling takes seconds, and test_train_activation shows that it changes nothing; two threads would only wait
    for each other on networks of this size."""
    monkeypatch.setattr("parspike.train.activation._can_compile", lambda device: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The default recipe takes few gradient steps: on networks as small as the tests' it has time for all 1,600, which
    only tests that measure (`slow`) depend on. No fixture: those of a module, which convert too, would come first."""
    from parspike.calibrate import Reconstruct, auto

    measures = item.get_closest_marker("slow") is not None
    auto.Reconstruct = Reconstruct if measures else lambda **start: Reconstruct(steps=20, **start)
