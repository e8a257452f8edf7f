"""torchvision from PyPI beside the CPU build of torch, for the tests and the benchmarks."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from pathlib import Path

import torch


def declare() -> None:
    """After this, `import torchvision` works.

    torchvision's wheel from PyPI was built for another torch than the CPU build, which cannot load its compiled part;
    the rest imports once the two operators declared there are declared here. Where the two belong together the
    compiled part is loaded first: declared after ours, its operators would end the process.
    """
    package = find_spec("torchvision")
    for library in Path(package.origin).parent.glob("_C.*") if package is not None and package.origin else ():
        with contextlib.suppress(OSError):
            torch.ops.load_library(library)
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # declared already
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
