"""The tests of conversion and engines once more, as another processor computes.

Kernels of torch and oneDNN are chosen when a process starts, by what the processor can do. Each child process here is
told to be a lesser one, so that a check which only this machine's rounding passes fails on this machine already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
TOLD = "PARSPIKE_TESTED_AS"
FILES = [
    "test_processors",
    "test_train_pretrained",
    "test_faithful",
    "test_integer_engine",
]
LONG = [
    "test_onnx_out",
    "test_graph",
    "test_rewrite_faults",
    "test_lower",
    "test_engines",
    "test_codes",
    "test_baselines",
    "test_baselines_neurons",
    "test_students",
]
"""Laws that hold within one process, whatever its kernels: minutes, in `make test-all`."""
LESSER = {"default": "SSE41", "avx2": "AVX2"}
"""Kernels of torch, and with them those of oneDNN."""


def lesser() -> list[str]:
    """The capabilities below this machine's own, from which torch lets a process choose."""
    own = torch.backends.cpu.get_cpu_capability().lower()
    return [name for name in LESSER if name != own and own.startswith("avx")]


def chosen() -> list[Any]:
    """The least of them, which differs the most, in `make test`, the others in `make test-all`."""
    names = lesser()
    return [*names[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in names[1:])]


@pytest.mark.skipif(TOLD in os.environ, reason="this process is such a child")
@pytest.mark.parametrize("files", [FILES, pytest.param(LONG, marks=pytest.mark.slow)], ids=["files", "long"])
@pytest.mark.parametrize("capability", chosen())
def test_conversion_and_engines_on_a_lesser_processor(capability, files):
    told = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": LESSER[capability], TOLD: capability}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, *(f"tests/{name}.py" for name in files)],
        cwd=ROOT, env=environment | told, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


@pytest.mark.skipif(TOLD not in os.environ, reason="only in a child process of the test above")
def test_the_child_is_the_processor_that_it_was_told_to_be():
    assert torch.backends.cpu.get_cpu_capability().lower() == os.environ[TOLD]
