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


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_device.py runs on the GPU")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++")
def test_another_device_gives_what_a_cpu_gives(tmp_path: Path) -> None:
    """Would catch a tensor that is made on the CPU and meets one of the device."""
    library = tmp_path / "other_device.so"
    other_device.build(library)
    environment = {**os.environ, other_device.LIBRARY: str(library)}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(HERE / "test_device.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
