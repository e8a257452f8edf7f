"""Thousands of conversions in one process: does its memory grow? (docs/faults.md)

    python benchmarks/long_run.py --conversions 24000 --each 10 --minutes 90 --out build/long_run.csv

Tiny networks of seven structures, each of another size than the last. Each is read once (`plan`, a tenth of a second
at least, which is `torch.export`) and converted `--each` times (some hundredths of a second), in turn with three
recipes, two kinds of neurons and two numbers of steps; every conversion is run. Of every tenth network one conversion
is also saved, loaded, measured and written as spikes, and a network that is refused is tried. A line for each hundred:
conversions, networks read, seconds, memory (MiB of resident pages, after a garbage collection) and objects that
Python's collector knows. Ends with 1 if memory grew by more than 10 MiB per thousand conversions over the second half.
Linux (reads /proc).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import parspike

MOST = 10.0
"""MiB per thousand conversions over the second half."""


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.head(torch.relu(self.second(h) + h))


class Branches(nn.Module):
    """Refused: which way it takes depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x


def networks() -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Networks without end, and the shape of one sample."""
    for number in itertools.count():
        w = 4 + number % 29
        yield nn.Sequential(nn.Linear(6, w), nn.ReLU(), nn.Linear(w, 3)), (6,)
        yield nn.Sequential(nn.Conv2d(1, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                            nn.Linear(w * 9, 3)), (1, 6, 6)  # fmt: skip
        yield nn.Sequential(nn.Linear(6, w), nn.SiLU(), nn.Linear(w, 3)), (6,)
        yield Residual(w), (6,)
        yield (
            nn.Sequential(nn.Conv1d(2, w, 3), nn.ReLU6(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(w, 3)),
            (2, 9),
        )
        yield nn.Sequential(nn.Linear(6, w), nn.LayerNorm(w), nn.GELU(), nn.Linear(w, 3)), (6,)
        yield nn.Sequential(nn.Linear(6, w), parspike.QCFS(4), nn.Linear(w, 3)), (6,)


def resident() -> float:
    """MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def conversions(each: int, folder: Path) -> Iterator[int]:
    """Conversions without end; yields the number of networks read until then."""
    number = 0
    for read, (model, shape) in enumerate(networks(), 1):
        x = torch.randn(24, *shape)
        plan = parspike.plan(model.eval(), x)
        for _ in range(each):
            recipe = ("closed-form", "max", "99.9%")[number % 3]
            kind = parspike.IF() if number // 3 % 2 else parspike.Parallel()
            snn = parspike.convert(plan, x, T=8 if number // 6 % 2 else 4, recipe=recipe, neuron=kind)
            snn(x)
            number += 1
            if read % 10 == 1 and number % each == 0:
                used(snn, model, x, folder)
            yield read


def used(snn: parspike.SNN, model: nn.Module, x: Tensor, folder: Path) -> None:
    snn.save(folder / "net.parspike", force=True)
    again = parspike.load(folder / "net.parspike")
    again.run(x, record=True)
    parspike.write_spikes(again, x, folder / "net.npz", force=True)
    parspike.measure(again, x, against=model)
    try:
        parspike.plan(Branches(), x)
    except parspike.errors.TraceError:
        return
    raise SystemExit("a network that takes two ways was converted")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--conversions", type=int, default=24000)
    parser.add_argument("--each", type=int, default=10, help="conversions of each network that is read")
    parser.add_argument("--minutes", type=float, default=90.0, help="stop after this long, whatever was reached")
    parser.add_argument("--out", type=Path, default=Path("build/long_run.csv"))
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    start, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder, given.out.open("w", encoding="utf-8") as out:
        print("conversions,networks,seconds,MiB,objects", file=out, flush=True)
        several = itertools.islice(conversions(given.each, Path(folder)), given.conversions)
        for number, read in enumerate(several, 1):
            if number % 100 == 0:
                gc.collect()
                rows.append((number, read, time.monotonic() - start, resident(), len(gc.get_objects())))
                print("{},{},{:.0f},{:.1f},{}".format(*rows[-1]), file=out, flush=True)
                if rows[-1][2] > 60 * given.minutes:
                    break
    half = np.array(rows[len(rows) // 2 :])
    if len(half) < 2:
        raise SystemExit("too few conversions to say anything: at least 300")
    grown = np.polyfit(half[:, 0] / 1000, half[:, 3], 1)[0]
    last = rows[-1]
    print(f"{last[0]} conversions of {last[1]} networks in {last[2] / 60:.0f} min: {rows[0][3]:.0f} MiB after 100, "
          f"{half[0, 3]:.0f} half way, {last[3]:.0f} at the end; {grown:+.2f} MiB per 1,000 over the second half; "
          f"objects {rows[0][4]:,} → {last[4]:,}")  # fmt: skip
    return int(grown > MOST)


if __name__ == "__main__":
    sys.exit(main())
