"""The scripts of benchmarks/: each starts, so that one whose module was moved or renamed is noticed here and not on the
day when its figures are wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text())
ELSEWHERE = {"external.py", "nir_readers.py", "synops_other_tools.py"}
"""Scripts for a Python of their own, with other people's packages."""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="only a checkout has benchmarks")
def test_every_script_finds_what_it_imports() -> None:
    code = "import importlib, sys; sys.path.insert(0, 'benchmarks'); " + "; ".join(
        f"importlib.import_module({Path(name).stem!r})" for name in SCRIPTS if name not in ELSEWHERE
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_every_part_for_a_gpu_runs_one_step_on_a_cpu(tmp_path: Path) -> None:
    data = ROOT.parent / "shared/data/cifar10-jpeg.zip"
    if not data.exists():
        pytest.skip("needs ../shared/data")
    packed, out = tmp_path / "mosaics.zip", tmp_path / "out"
    assert run("benchmarks/gpu.py", "--pack", str(data), str(packed)).returncode == 0
    words = ["--data", str(packed), "--out", str(out), "--device", "cpu", "--steps", "1"]
    done = run("benchmarks/gpu.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert json.loads((out / "speed-resnet18-single.json").read_text())["speed"]["rows"]
    again = run("benchmarks/gpu.py", *words)
    assert again.stdout.count("done before") == len(list(out.glob("*.json"))) == 20
