"""The same file on two versions of torch and two sets of processor kernels: are counts equal?

    python benchmarks/versions.py make FOLDER                                       # convert, count, keep the counts
    ATEN_CPU_CAPABILITY=default python benchmarks/versions.py compare FOLDER        # here, with other kernels
    OTHER/bin/python benchmarks/versions.py compare FOLDER                          # with another version of torch

ResNet-20 of ../shared, closed form on 128 images, T = 8; 200 test images. In whole numbers (engine integer) all counts
must be equal; in float32 it prints the share that differs, and by how much at most.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from few_steps import cifar
from torch import Tensor

import parspike
from parspike.lower import integers


def main() -> None:
    _, what, folder = sys.argv
    at = Path(folder)
    model, fitted, test, _ = cifar("resnet20", 0, 128)
    test = test[:200]
    if what == "make":
        at.mkdir(exist_ok=True)
        snn = parspike.convert(model, fitted, T=8, recipe="closed-form")
        snn.save(at / "net.parspike", force=True)
        integers(snn, fitted).save(at / "chip.parspike", force=True)
    snn, chip = (parspike.load(at / name) for name in ("net.parspike", "chip.parspike"))
    counts = dict(snn.run(test, record=True).counts)
    whole = dict(chip.run(test, engine="integer", record=True).counts)
    if what == "make":
        torch.save((counts, whole), at / "counts.pt")
    kept, kept_whole = torch.load(at / "counts.pt", weights_only=True)
    wrong = [name for name in whole if not torch.equal(whole[name], kept_whole[name])]
    differ = sum(int((counts[name] != kept[name]).sum()) for name in kept)
    most = max(int((counts[name] - kept[name]).abs().max()) for name in kept)
    share = differ / sum(count.numel() for count in kept.values())
    print(f"torch {torch.__version__}, kernels {torch.backends.cpu.get_cpu_capability()}: whole numbers "
          f"{'equal' if not wrong else 'DIFFER in ' + ', '.join(wrong)} ({digest(whole)}); float32: "
          f"{share:.1e} of the counts differ, by at most {most}")  # fmt: skip
    if wrong:
        raise SystemExit(1)


def digest(counts: dict[str, Tensor]) -> str:
    """SHA-256 of all counts, its first digits."""
    data = b"".join(count.to(torch.int32).contiguous().numpy().tobytes() for count in counts.values())
    return hashlib.sha256(data).hexdigest()[:12]


if __name__ == "__main__":
    main()
