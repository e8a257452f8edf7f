"""`test_device.py` on a device that is not the CPU, where there is no GPU to run it on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import other_device
import pytest
import torch

HERE = Path(__file__).parent
SINGLE = "max or closed-form or data_of_the_cpu or exported or file or another_device"
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_device.py runs on the GPU"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    built = tmp_path_factory.mktemp("device") / "other_device.so"
    other_device.build(built)
    return str(built)


def run(library: str, *chosen: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/test_device.py"]
    done = subprocess.run(
        [*command, *chosen], env={**os.environ, **environment, other_device.LIBRARY: library}, capture_output=True,
        text=True, check=False, cwd=HERE.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


def test_another_device_gives_what_a_cpu_gives(library: str) -> None:
    """Would catch a tensor that is made on the CPU and meets one of the device."""
    run(library)


def test_a_device_without_float64_gives_what_a_cpu_gives(library: str) -> None:
    """As Apple's GPUs are."""
    run(library, "-k", f"({SINGLE}) and not engines", **{other_device.SINGLE: "1"})
