"""Accuracy of networks of IF and LIF neurons, which fire step by step: tables of docs/results.md and docs/hardware.md.

    python benchmarks/over_time.py resnet20 --seeds 0 1 2       # ../shared/weights, ../shared/data
    python benchmarks/over_time.py resnet56 --rows "IF, soft" --steps 8 16
    python benchmarks/over_time.py lite0 --images 128 --steps 16 32
    python benchmarks/over_time.py resnet20 --speed             # seconds for all test images at T = 32
    python benchmarks/over_time.py resnet20 --render docs/results.md docs/hardware.md

Rows: what others do (thresholds at the largest activation, v(0) = θ/2), what was exported before (the IF twin of a
network fitted for parallel neurons), and networks fitted for the neuron: `convert(…, neuron=…)` and no more.
Calibration images have no labels and are none of the test images. One JSON line a figure goes to
benchmarks/over_time.jsonl, kept with the code; what stands there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from few_steps import LOADERS, PHOTOGRAPHS, answers, figures, keep, render, spread
from torch import Tensor

import parspike
from parspike import IF, LIF, SNN, ClosedForm, Thresholds

FIGURES = Path(__file__).resolve().parent / "over_time.jsonl"

# row: kind of neurons, recipe (None: the default), engine (None: the network's own)
ROWS: dict[str, tuple[Any, Any, str | None]] = {
    "θ = max, v(0) = θ/2, soft": (IF(v_init="half"), Thresholds(), None),
    "IF twin of a parallel network, soft": (None, ClosedForm(), "serial-if"),
    "IF, soft": (IF(), None, None),
    "IF, soft, a bias for each step": (IF(bias="step"), None, None),
    "IF, hard": (IF(reset="zero"), None, None),
    "LIF, decay 0.9, soft": (LIF(0.9), None, None),
    "LIF, decay 0.9, hard": (LIF(0.9, reset="zero"), None, None),
}


@torch.no_grad()
def ran(snn: SNN, x: Tensor, engine: str | None) -> Tensor:
    """Answers for images, 50 at a time."""
    return torch.cat([snn.run(part, engine=engine).logits.argmax(1) for part in x.split(50)])


def measure(options: argparse.Namespace) -> None:
    done = {json.dumps(figure["key"]) for figure in figures(FIGURES)}
    for seed in options.seeds:
        model, train, test, labels = LOADERS[options.network](seed, options.images)
        own = answers(model, test)
        plan = parspike.plan(model, train[:2])
        batches = train.split(8 if options.network in PHOTOGRAPHS else 64)
        for row in options.rows:
            kind, recipe, engine = ROWS[row]
            for T in options.steps:
                key = [options.network, row, T, seed, len(train)]
                if json.dumps(key) in done:
                    continue
                start = time.perf_counter()
                snn = parspike.convert(plan, batches, T=T, neuron=kind, recipe=recipe, seed=seed)
                spent = time.perf_counter() - start
                start = time.perf_counter()
                got = ran(snn, test, engine)
                keep(FIGURES, key, snn, got, own, labels, seconds=spent, seconds_run=time.perf_counter() - start)


def speed(options: argparse.Namespace) -> None:
    """Seconds for all test images, T = 32, thresholds at the maximum: what runs is what counts, not what it answers."""
    model, train, test, _ = LOADERS[options.network](0, 64)
    snn = parspike.convert(model, train, T=32, neuron=IF(), recipe="max")
    ran(snn, test[:50], None)
    for _ in range(3):
        start = time.perf_counter()
        ran(snn, test, None)
        middle = time.perf_counter()
        answers(model, test)
        once = time.perf_counter() - middle
        spent = middle - start
        print(
            f"{len(test)} images, T = 32, {torch.get_num_threads()} threads: {spent:.1f} s, "
            f"{spent / once:.0f} × the network"
        )


def table(network: str, before: str) -> str:
    """Markdown: a row a kind of neurons, a column a T; mean ± standard deviation over seeds; agreement in brackets."""
    rows = [f for f in figures(FIGURES) if f["key"][0] == network]
    if not rows:
        return before.rstrip("\n")
    columns = sorted({f["key"][2] for f in rows})
    own = sorted({round(f["network"], 1) for f in rows})
    lines = [
        f"{network}: the network itself {' / '.join(map(str, own))} %. Top-1 accuracy on {rows[0]['images']} test "
        "images (agreement with the network), mean ± standard deviation over seeds.",
        "",
        "| neurons | calibration images | seeds | " + " | ".join(f"T = {T}" for T in columns) + " | seconds a fit |",
        "|---|---|---|" + "---|" * (len(columns) + 1),
    ]  # fmt: skip
    for label, count in dict.fromkeys((row, f["key"][4]) for row in ROWS for f in rows if f["key"][1] == row):
        mine = [f for f in rows if f["key"][1] == label and f["key"][4] == count]
        cells = []
        for column in columns:
            here = [f for f in mine if f["key"][2] == column]
            cells.append(spread(here))
        seconds = statistics.median(f["seconds"] for f in mine)
        lines.append(
            f"| {label} | {count} | {len({f['key'][3] for f in mine})} | " + " | ".join(cells) + f" | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=LOADERS)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--render", type=Path, nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.render:
        for page in options.render:
            render(page, "over_time", table)
    elif options.speed:
        speed(options)
    else:
        measure(options)


if __name__ == "__main__":
    main()
