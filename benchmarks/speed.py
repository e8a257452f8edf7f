"""The engines' time and memory on a CPU, of two networks at 224², batch 8 and 1: rows of docs/speed.md.

    OMP_NUM_THREADS=1 python benchmarks/speed.py resnet50-8 resnet50-1 lite0-8 lite0-1      # minutes each
    OMP_NUM_THREADS=1 python benchmarks/speed.py lite0-8-hidden lite0-1-hidden      # neurons at its linear bottlenecks
    python benchmarks/speed.py --render docs/speed.md

What `parspike bench speed --engines count,compiled,integer,serial-if -T 32 --cpu-time` measures, one JSON line a run in
benchmarks/speed.jsonl, where benchmarks/gpu.py's older runs stand too. A run that stands there is made again with
--again alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any, cast

import imagenet_networks
import torch
from few_steps import put

import parspike
from parspike.bench.speed import Speed, SpeedRow
from parspike.graph.encode import Encode

FIGURES = Path(__file__).with_name("speed.jsonl")
NETWORKS = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "lite0": "EfficientNet-Lite0"}
ENGINES = ("count", "compiled", "integer", "serial-if")
SIDE = 224


def known() -> dict[str, dict[str, Any]]:
    """The runs in the file, by name; of several of one name the last."""
    lines = [json.loads(line) for line in FIGURES.read_text().splitlines()] if FIGURES.is_file() else []
    return {line["part"]: line for line in lines}


def measure(part: str, rounds: int) -> None:
    """A line of the file."""
    name, batch, *encode = part.split("-")
    torch.manual_seed(0)
    x = torch.randn(int(batch), 3, SIDE, SIDE)
    engines = ENGINES[: 3 if encode else None]  # IF neurons take no encoders
    made = parspike.speed(
        getattr(imagenet_networks, name)(), x, T=(32,), engines=engines, compiled=True, rounds=rounds, cpu_time=True,
        encode=cast(Encode, encode[0] if encode else "none"),
    )  # fmt: skip
    line = {"part": f"cpu-{part}", "date": str(datetime.datetime.now(tz=datetime.UTC).date()), "speed": made.to_dict()}
    with FIGURES.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print(part, made, sep="\n", flush=True)


def table(before: str) -> str:
    """All runs below each other, each with the machine that it ran on."""
    del before
    lines: list[str] = []
    for part, line in known().items():
        if part.startswith("cpu-"):
            name, batch, *encode = part.removeprefix("cpu-").split("-")
            made = line["speed"]
            rows = tuple(SpeedRow(**row) for row in made["rows"])
            told = {**made, "rows": rows, "left_out": tuple(made["left_out"]), "shape": tuple(made["shape"])}
            title = NETWORKS[name] + (", neurons at its bottlenecks" if encode else "")
            lines += [f"**{title}, batch {batch}**, {line['date']}", "", Speed(**told).markdown().strip(), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="NETWORK-BATCH or NETWORK-BATCH-ENCODE, of " + ", ".join(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="also runs that the file has: their last line counts")
    parser.add_argument("--render", type=Path)
    options = parser.parse_args()
    for part in options.runs:
        if f"cpu-{part}" in known() and not options.again:
            print(f"{part} stands in {FIGURES.name}; --again measures it anew")
        else:
            measure(part, options.rounds)
    if options.render:
        put(options.render, "speed", table)


if __name__ == "__main__":
    sys.exit(main())
