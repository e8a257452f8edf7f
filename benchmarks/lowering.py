"""What whole numbers cost: the published ResNet-20 on CIFAR-10, lowered to 8, 6 and 4 bits, weights rounded to the
nearest and re-fitted for their rounding; EfficientNet-Lite0 with and without neurons at its linear bottlenecks.

    python benchmarks/lowering.py                          # or: python benchmarks/lowering.py lite0
    python benchmarks/lowering.py --render docs/lowering.md

Calibrated and lowered on 1,024 training images (Lite0: 250 photographs), without labels; measured on the 761 original
test images (Lite0: 250 others). One JSON line a figure goes to benchmarks/lowering.jsonl; what stands there is not run
again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import few_steps
import torch
from torch import Tensor

import parspike
from parspike.lower import integers, prove

FIGURES = Path(__file__).with_suffix(".jsonl")
BITS = (0, 8, 6, 4)
CELLS = [[bits] if not bits else [bits, *how] for how in ([], ["refit"]) for bits in BITS if bits or not how]
"""Bits of a weight, 0 for real numbers; "refit": not rounded to the nearest."""
FEW = [[0], [8, "refit"]]
ROWS = {
    "resnet20": {"sorted, T = 4": {"T": 4}, "sorted, T = 8": {"T": 8},
                 "weighted, 4 steps": {"T": 4, "code": "weighted"}, "IF, T = 8": {"T": 8, "neuron": parspike.IF()}},
    "lite0": {"Lite0, sorted, T = 32": {"T": 32},
              "Lite0, sorted, T = 32, encoders": {"T": 32, "encode": "hidden"},
              "Lite0, weighted, 7 steps": {"T": 7, "code": "weighted"},
              "Lite0, weighted, 7 steps, encoders": {"T": 7, "code": "weighted", "encode": "hidden"}},
}  # fmt: skip


def share(one: Tensor, two: Tensor) -> float:
    return 100 * float((one == two).float().mean())


def measure(network: str, name: str) -> None:
    have = {tuple(json.loads(line)["key"]) for line in FIGURES.read_text().splitlines()} if FIGURES.exists() else set()
    missing = [cell for cell in (CELLS if network == "resnet20" else FEW) if (name, *cell) not in have]
    if not missing:
        return
    lite0 = network == "lite0"
    model, calibration, x, y = few_steps.lite0(0, 250) if lite0 else few_steps.cifar("resnet20", 0, 1024)
    snn = parspike.convert(model, calibration.split(64), recipe="closed-form", **ROWS[network][name])
    with torch.no_grad():
        wanted = torch.cat([model(part) for part in x.split(64)]).argmax(1)
    for bits, *how in missing:
        made = integers(snn, calibration.split(64), weights=bits, refit=bool(how)) if bits else snn
        start = time.perf_counter()
        with torch.no_grad():
            answer = torch.cat([made(part) for part in x.split(64)]).argmax(1)
        seconds = time.perf_counter() - start
        line = {"key": [name, bits, *how], "accuracy": share(answer, y), "agreement": share(answer, wanted),
                "network": share(wanted, y), "images": len(x), "seconds": seconds}  # fmt: skip
        if bits:
            seen = prove(made, x[: 1 if lite0 else 4])
            line |= {"largest": made.provenance["largest"], "accumulator": seen.sums.bit_length() + 1}
        with FIGURES.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def table() -> str:
    lines = {tuple(line["key"]): line for line in map(json.loads, FIGURES.read_text().splitlines())}

    def cell(*key: object) -> str:
        line = lines.get(key)
        return f"{line['accuracy']:.1f} ({line['agreement']:.1f})" if line else "–"

    def said(network: str) -> list[dict[str, Any]]:
        return [line for key, line in lines.items() if key[0] in ROWS[network]]

    first = said("resnet20")[0]
    rows = [
        f"ResNet-20, recipe closed-form; the network {first['network']:.1f} %. Top-1 accuracy on {first['images']} "
        "test images (agreement with the network): rounded to the nearest → re-fitted (the default).", "",
        "| spikes | real numbers | 8 bits | 6 bits | 4 bits |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name in ROWS["resnet20"]:
        cells = [cell(name, 0), *(f"{cell(name, bits)} → {cell(name, bits, 'refit')}" for bits in BITS if bits)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    if found := said("lite0"):
        rows += [
            "", f"EfficientNet-Lite0, recipe closed-form; the network {found[0]['network']:.1f} % of "
            f"{found[0]['images']} photographs. "
            '"Encoders": neurons at its linear bottlenecks too (`encode="hidden"`).', "",
            "| spikes | real numbers | 8 bits, re-fitted |", "|---|---|---|",
        ]  # fmt: skip
        for name in ROWS["lite0"]:
            rows.append(f"| {name.removeprefix('Lite0, ')} | {cell(name, 0)} | {cell(name, 8, 'refit')} |")
    seen = [line["accumulator"] for network in ROWS for line in said(network) if "accumulator" in line]
    rows += ["", f"The largest sums that were seen take {min(seen)} to {max(seen)} bits."]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--render", type=Path)
    options = parser.parse_args()
    if options.render is None:
        for network in options.networks:
            for name in ROWS[network]:
                measure(network, name)
    else:
        few_steps.put(options.render, "lowering", lambda _: table())


if __name__ == "__main__":
    main()
