"""What the closed form costs, in forward passes of its calibration images: a table of docs/results.md.

    python benchmarks/fit_cost.py                     # all networks, T = 8
    python benchmarks/fit_cost.py resnet20 --steps 4

Each network is fitted three times, a forward pass of the same images, in the same batches, timed before and after every
fit: the ratio is the fit's seconds over the mean of the two, by the clock on the wall and by the processor's time,
which counts on a busy machine. Weights of the large networks are random (torchvision's
initialisation, batch norms set by the images), since the time depends on shapes alone. Memory: the largest resident
set of the process, less that before the fit. System time over user time says how often memory is taken from the kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from few_steps import LOADERS
from torch import Tensor, nn

import parspike
from parspike import ClosedForm

FIGURES = Path(__file__).resolve().parent / "fit_cost.jsonl"
IMAGES = {"resnet20": (1024, 64), "resnet56": (1024, 64), "lite0": (250, 25), "mobilenet_v2": (250, 25),
          "resnet50": (250, 10)}  # fmt: skip


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network and its calibration images."""
    images, _ = IMAGES[name]
    if name in LOADERS:
        model, train, *_ = LOADERS[name](0, images)
        return model, train
    import torchvision_operators

    torchvision_operators.declare()
    import torchvision

    torch.manual_seed(0)
    model, x = getattr(torchvision.models, name)(), torch.randn(images, 3, 224, 224)
    with torch.no_grad():
        for part in x[:32].split(16):
            model(part)
    return model.eval(), x


class Clock:
    """Seconds since it was made, of the clock on the wall and of the processor."""

    def __init__(self) -> None:
        self.start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def spent(self) -> tuple[float, float]:
        return tuple(now - start for now, start in zip(self._now(), self.start, strict=True))


@torch.no_grad()
def passed(model: nn.Module, batches: tuple[Tensor, ...]) -> tuple[float, float]:
    clock = Clock()
    for batch in batches:
        model(batch)
    return clock.spent()


def measure(name: str, T: int, repeats: int) -> dict[str, Any]:
    model, x = network(name)
    batches = x.split(IMAGES[name][1])
    plan = parspike.plan(model, batches[0][:2])
    passed(model, batches)
    ratios: list[float] = []
    of_processor: list[float] = []
    seconds: list[float] = []
    shares: list[float] = []
    passed(model, batches)  # the next one finds its memory in place
    before = passed(model, batches)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(repeats):
        used, clock = os.times(), Clock()
        parspike.convert(plan, batches, T=T, recipe=ClosedForm())
        spent, now = clock.spent(), os.times()
        after = passed(model, batches)
        wall, processor = (2 * fit / (first + last) for fit, first, last in zip(spent, before, after, strict=True))
        ratios.append(wall)
        of_processor.append(processor)
        shares.append((now.system - used.system) / (now.user - used.user))
        seconds.append(spent[0])
        before = after
    return {
        "key": [name, T, len(x)], "ratio": statistics.median(ratios), "ratios": ratios, "seconds": seconds,
        "processor": statistics.median(of_processor), "system": statistics.median(shares),
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) * 1024,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(IMAGES))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, help="as many instead of those of the table")
    parser.add_argument("--keep", action="store_true", help=f"add the figures to {FIGURES.name}")
    options = parser.parse_args()
    for name in options.networks:
        if name not in IMAGES:
            sys.exit(f"there is no network {name!r}: choose of {', '.join(IMAGES)}")
        if options.images:
            IMAGES[name] = (options.images, IMAGES[name][1])
        figure = measure(name, options.steps, options.repeats)
        if options.keep:
            with FIGURES.open("a") as stream:
                stream.write(json.dumps(figure) + "\n")
        print(
            f"{name}, {figure['key'][2]} images: {figure['ratio']:.1f} forward passes "
            f"({', '.join(f'{r:.1f}' for r in figure['ratios'])}), by the processor's time {figure['processor']:.1f}, "
            f"{statistics.median(figure['seconds']):.0f} s, system/user {figure['system']:.2f}, "
            f"{figure['memory'] / 2**30:.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
