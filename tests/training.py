"""A small training shared by several tests: data, recipe, network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parspike.train import Arrays, Devices, TrainingRecipe, make_network

CPU = Devices("cpu", 1)


def stripes(count: int, seed: int = 0) -> Arrays:
    """8×8 images of two classes, horizontal and vertical stripes under noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (count,), generator=generator)
    pattern = (torch.arange(8) % 2 * 120).expand(8, 8)
    x = torch.where(y.view(-1, 1, 1) == 1, pattern, pattern.T) + torch.randint(
        0, 130, (count, 8, 8), generator=generator
    )
    return Arrays.of(x.to(torch.uint8).unsqueeze(1), y)


TRAIN, TEST = stripes(96), stripes(64, seed=1)


def constant_answer(labels: Tensor) -> float:
    """The accuracy of the best network that doesn't look at its input: whatever has learnt anything has more."""
    return float(labels.bincount().max()) / len(labels)


def recipe(**changes: object) -> TrainingRecipe:
    names = {name.replace("__", "."): value for name, value in changes.items()}
    base = {"data.classes": 2, "optimiser.epochs": 3, "optimiser.batch_size": 16, "optimiser.lr": 0.05,
            "activation.levels": 4, "activation.v_threshold": 2.0, "augment.crop_padding": 1, "augment.flip": True,
            "augment.cutout": 2}  # fmt: skip
    return TrainingRecipe("digits").replace(base | names)


class Network(nn.Module):
    """With dropout, so that chance inside the network counts too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act1, self.drop = nn.ReLU(), nn.Dropout(0.2)
        self.fc = nn.Linear(4 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.act1(self.bn1(self.conv1(x)))).flatten(1))


def network(made: TrainingRecipe) -> Any:
    torch.manual_seed(0)
    return make_network(made, Network())
