"""How a recipe is chosen best on few held-out images: a table of docs/results.md, and why `Auto` asks for more than
chance.

    OMP_NUM_THREADS=1 python benchmarks/choosing.py      # minutes; goes on where it was stopped
    python benchmarks/choosing.py --render docs/results.md

Small networks of many kinds, trained here on four fifths of scikit-learn's digits. For every network, T and draw of 256
training images, each variant that `Auto` tries before gradient steps is fitted on three quarters of them. Distances
(`calibrate.distance.judged`) on the last quarter are what may choose; those on all other training images tell how good
the choice was. Closed forms count as fitted again on all 256 images, as `Auto` does with the one it has chosen. No
label and no test image is read after the training.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import few_steps
import torch
from recurrent import parts, trained
from torch import Tensor, nn

import parspike
from parspike.calibrate.distance import judged

FIGURES = Path(__file__).with_suffix(".jsonl")
IMAGES, STEPS, DRAWS, EPOCHS = 256, (4, 8), (0, 1, 2), 15


class Mixed(nn.Module):
    """Two layers over places and two over features, each behind a layer norm (Tolstikhin et al., 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 24), nn.Linear(24, 10)
        self.places = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2))
        self.features = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for places, features in zip(self.places, self.features, strict=True):
            y = y + places(y.mT).mT
            y = y + features(y)
        return self.head(y.mean(1))


class Attends(nn.Module):
    """Rows of the image as tokens, one block of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 24), nn.Linear(24, 10)
        self.block = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, activation="relu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean(1))


class Recurs(nn.Module):
    """An LSTM over the rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Residual(nn.Module):
    """A stem and two residual blocks of convolutions with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16),
            ) for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x[:, None])
        for block in self.blocks:
            y = (y + block(y)).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


def convolutions(activation: Callable[[], nn.Module]) -> nn.Module:
    """Three convolutions, each with an activation behind it."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 16, 3, padding=1), activation(),
        nn.Conv2d(16, 24, 3, stride=2), activation(), nn.Conv2d(24, 32, 3), activation(),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def layers(activation: Callable[[], nn.Module]) -> nn.Module:
    """Three layers, an activation between them."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), activation(), nn.Linear(48, 32), activation(), nn.Linear(32, 10)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "layers, ReLU": lambda: layers(nn.ReLU),
    "layers, Softplus": lambda: layers(nn.Softplus),
    "convolutions, ReLU": lambda: convolutions(nn.ReLU),
    "convolutions, LeakyReLU": lambda: convolutions(lambda: nn.LeakyReLU(0.1)),
    "convolutions, SiLU": lambda: convolutions(nn.SiLU),
    "convolutions, tanh": lambda: convolutions(nn.Tanh),
    "residual, ReLU": Residual,
    "mixer, GELU": Mixed,
    "attention": Attends,
    "LSTM": Recurs,
}
RULES: dict[str, float | None] = {"always the first": None, "the nearest": 0.0, "nearer by half a standard error": 0.5,
         "by one": 1.0, "by two": 2.0}  # fmt: skip


def known() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FIGURES.read_text().splitlines()] if FIGURES.is_file() else []


def variants(model: nn.Module, images: Tensor, T: int) -> list[parspike.Recipe]:
    """The recipes that `Auto` tries on a network before gradient steps, in their order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the budget, which leaves the rest of the search out
        snn = parspike.convert(model, images[:64], T=T, recipe=parspike.Auto(budget=1e-6))
    return [parspike.recipe_from_json(note["recipe"]) for note in snn.provenance["search"]["tried"]][:-1]


@torch.no_grad()
def measured(model: nn.Module, images: Tensor, others: Tensor, T: int) -> list[dict[str, Any]]:
    """For every variant its distances on held-out images, and its mean distance on others."""
    held, found = torch.arange(IMAGES) % 4 == 3, []
    for recipe in variants(model, images, T):
        alone = parspike.convert(model, images[~held], T=T, recipe=recipe)
        whole = parspike.convert(model, images, T=T, recipe=recipe) if recipe.name == "closed-form" else alone
        near = judged(alone(images[held]), model(images[held]))
        far = float(judged(whole(others), model(others)).mean())
        found.append({"recipe": recipe.name, "held": [round(d, 6) for d in near.tolist()], "others": far})
    return found


def chosen(found: list[dict[str, Any]], errors: float | None) -> int:
    """Which variant is kept where a later one has to be nearer by so many standard errors; None: the first."""
    kept = 0
    for number in range(1, len(found)) if errors is not None else ():
        gained = [a - b for a, b in zip(found[kept]["held"], found[number]["held"], strict=True)]
        if statistics.mean(gained) > (errors or 0.0) * statistics.stdev(gained) / math.sqrt(len(gained)):
            kept = number
    return kept


def table(before: str) -> str:
    """How much farther than the best variant each rule's choice is."""
    del before
    runs = known()
    lines = ["| a later variant is kept | farther than the best one, mean | worst | by more than a tenth |",
             "| --- | ---: | ---: | ---: |"]  # fmt: skip
    for rule, errors in RULES.items():
        far = []
        for run in runs:
            distances = [variant["others"] for variant in run["variants"]]
            far.append(distances[chosen(run["variants"], errors)] / min(distances) - 1)
        share = sum(more > 0.1 for more in far)
        lines.append(f"| {rule} | {statistics.mean(far):.1%} | {max(far):.0%} | {share} of {len(far)} |")
    lines += ["", f"- {len(NETWORKS)} networks, T = {' and '.join(map(str, STEPS))}, {len(DRAWS)} draws of images"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", type=Path)
    page = parser.parse_args().render
    if page:
        few_steps.put(page, "choosing", table)
        return
    x, y, *_ = parts()
    done = {(run["network"], run["T"], run["draw"]) for run in known()}
    for name, make in NETWORKS.items():
        wanted = [(T, draw) for T in STEPS for draw in DRAWS if (name, T, draw) not in done]
        model = trained(make, 0, x, y, EPOCHS) if wanted else None
        for T, draw in wanted:
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(draw))
            found = measured(model, x[order[:IMAGES]], x[order[IMAGES:]], T)
            with FIGURES.open("a") as stream:
                stream.write(json.dumps({"network": name, "T": T, "draw": draw, "variants": found}) + "\n")
            print(name, T, draw, [round(variant["others"], 4) for variant in found], flush=True)


if __name__ == "__main__":
    main()
