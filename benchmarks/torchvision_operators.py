"""torchvision from PyPI beside the CPU build of torch, for the tests and the benchmarks."""

from __future__ import annotations

import contextlib

import torch


def declare() -> None:
    """After this, `import torchvision` works.

    torchvision's wheel from PyPI was built for another torch than the CPU build: it imports once these two operators
    are declared. The matching pair declares them itself, hence the guard.
    """
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
