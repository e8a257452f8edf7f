"""Install a wheel in a venv of its own and use it there, with no extra, or with one: does it bring what it needs?

    python benchmarks/install.py build/package/*.whl                        # no extra; make package does this
    python benchmarks/install.py build/package/*.whl --extra export report  # each in one more venv
    python benchmarks/install.py build/package/*.whl --lowest               # the lower bounds of pyproject.toml

Prints a line of a table for each Ends with 1 if one failed. Versions are
those of constraints.txt; with --lowest, of what parspike itself asks for, the lowest that it accepts but for torch.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USE = """
import torch, parspike
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
x = torch.rand(64, 4)
snn = parspike.convert(model, x, T=8, recipe="closed-form")
snn.save("n.parspike")
assert torch.equal(parspike.load("n.parspike")(x), snn(x))
assert torch.equal(snn.run(x, engine="serial").counts["1"], snn.run(x).counts["1"])
"""
OF_EXTRA = {
    "": "import importlib.util as u; assert not any(map(u.find_spec, ('torchvision', 'timm', 'matplotlib', 'h5py')))",
    "vision": "import timm, torchvision",
    "demo": "import sklearn, skimage, efficientnet_lite_pytorch",
    "report": "parspike.report(snn, x, 'r.html', model=model)",
    "export": "parspike.export(parspike.convert(model, x, T=8, neuron=parspike.IF()), 'n.nir', example=x)",
    "view": "import bokeh, tornado, parspike.view",
    "train": "import parspike.train; parspike.train.with_qcfs(model)",
    "lm": "import transformers, gguf, accelerate, parspike.language",
}


def lowest() -> list[str]:
    """Constraints: the lower bound of each dependency. torch stays the one of constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [need.replace(">=", "==") for need in project["dependencies"] if not need.startswith("torch")]


def tried(wheel: Path, extra: str, lower: bool) -> str:
    """What went wrong, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python, constraints = Path(folder, "bin", "python"), ROOT / "constraints.txt"
        if lower:
            constraints = Path(folder, "lowest.txt")
            torch = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
            constraints.write_text("\n".join([*torch, *lowest()]), "utf-8")
        target = f"{wheel.resolve()}[{extra}]" if extra else str(wheel.resolve())
        for command in (
            ["-m", "pip", "install", "--quiet", "-c", str(constraints), target],
            ["-m", "parspike", "--help"],
            ["-c", USE + OF_EXTRA[extra]],
        ):
            done = subprocess.run([python, *command], cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                return (done.stderr.strip().splitlines() or ["no message"])[-1]
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--extra", nargs="*", choices=[name for name in OF_EXTRA if name], default=[""])
    parser.add_argument("--lowest", action="store_true")
    given = parser.parse_args()
    wrong = 0
    print("| extra | versions | installed and used |\n|---|---|---|")
    for extra in given.extra:
        said = tried(given.wheel, extra, given.lowest)
        wrong += bool(said)
        print(f"| {extra or 'none'} | {'lowest' if given.lowest else 'pinned'} | {said or 'yes'} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
