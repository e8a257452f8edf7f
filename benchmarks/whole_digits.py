"""A vision transformer, and a network with gates and hard-swish, in whole numbers alone: a table of docs/lowering.md.

    python benchmarks/whole_digits.py                    # three seeds, ten minutes on one thread
    python benchmarks/whole_digits.py --render docs/lowering.md

Trained here on four fifths of scikit-learn's handwritten digits, for 30 epochs; the other fifth is what is counted. 512
of the training images, without labels, calibrate (recipe closed-form) and fit the whole weights of 8 bits. Cells:
accuracy in %, in brackets the agreement with the network, means over the seeds with the largest distance from them. One
JSON line a figure goes to benchmarks/whole_digits.jsonl; what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import few_steps
import torch
import torch.nn.functional as F
from recurrent import parts, shown, trained
from torch import Tensor, nn

import parspike
from parspike.lower import integers, prove

FIGURES = Path(__file__).with_suffix(".jsonl")
EPOCHS, CALIBRATION, STEPS = 30, 512, (4, 6)
WIDTH, HEADS = 32, 4


class Block(nn.Module):
    """Attention and an MLP, each behind a layer norm (Dosovitskiy et al., 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.one(x)).unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.two(x))))


class Transformer(nn.Module):
    """Rows of an image are its tokens; a class token is read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, WIDTH), nn.Parameter(0.02 * torch.randn(1, 9, WIDTH))
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.blocks, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


class Gated(nn.Module):
    """A MobileNetV3 block (Howard et al., 2019): hard-swish, a depthwise convolution, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(1, 24, 3, padding=1), nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24)
        self.one, self.two = nn.BatchNorm2d(24), nn.BatchNorm2d(24)
        self.down, self.up = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.back, self.wide, self.head = nn.Conv2d(24, 16, 1), nn.Conv2d(16, 48, 1), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.one(self.stem(x[:, None])))
        x = F.hardswish(self.two(self.deep(x)))
        x = self.back(x * F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))))
        return self.head(F.hardswish(self.wide(x)).mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "vision transformer, neurons everywhere": (Transformer, {"encode": "all", "analog": "lookup"}),
    "hard-swish and gates": (Gated, {}),
}


def share(one: Tensor, two: Tensor) -> float:
    return 100 * float((one == two).float().mean())


def lines() -> dict[tuple[Any, ...], dict[str, Any]]:
    text = FIGURES.read_text() if FIGURES.exists() else ""
    return {tuple(line["key"]): line for line in map(json.loads, text.splitlines())}


def measure(name: str, seed: int, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, others, answers = data
    missing = [T for T in STEPS if (name, seed, T) not in lines()]
    if not missing:
        return
    make, options = NETWORKS[name]
    model, calibration = trained(make, seed, x, y, EPOCHS), x[:CALIBRATION].split(64)
    for T in missing:
        snn = parspike.convert(model, calibration, T=T, code="weighted", recipe="closed-form", **options)
        chip = integers(snn, calibration)
        with torch.no_grad():
            told = [made(others).argmax(1) for made in (model, snn, chip)]
        proof = prove(chip, others[:4])
        line = {
            "key": [name, seed, T], "accuracy": [share(one, answers) for one in told],
            "agreement": [share(one, told[0]) for one in told], "images": len(others),
            "accumulator": proof.sums.bit_length() + 1,
        }  # fmt: skip
        with FIGURES.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def table() -> str:
    found = lines()
    heads = [f"weighted, {T}: real numbers | 8 bits" for T in STEPS]
    rows = [f"| digits | network | {' | '.join(heads)} |", "|---" * (2 + 2 * len(STEPS)) + "|"]
    for name in NETWORKS:
        of = {T: [line for key, line in found.items() if key[0] == name and key[2] == T] for T in STEPS}
        cells = [shown([line["accuracy"][0] for line in of[STEPS[0]]])]
        for T in STEPS:
            for place in (1, 2):
                agreeing = statistics.mean([line["agreement"][place] for line in of[T]])
                cells.append(f"{shown([line['accuracy'][place] for line in of[T]])} ({agreeing:.1f})")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--render", type=Path)
    options = parser.parse_args()
    if options.render is not None:
        few_steps.put(options.render, "whole digits", lambda _: table())
        return
    warnings.simplefilter("ignore")
    data = parts()
    for seed in options.seeds:
        for name in NETWORKS:
            measure(name, seed, data)


if __name__ == "__main__":
    main()
