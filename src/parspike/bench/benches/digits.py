"""The networks of digits.toml: 8×8 handwritten digits, trained in seconds when they are made, alike each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from parspike.neurons import QCFS


def relu() -> nn.Module:
    """Three convolutions with ReLU."""
    return _trained(lambda: nn.ReLU())


def qcfs() -> nn.Module:
    """The same with QCFS activations of 4 levels, made for conversion at T = 4."""
    return _trained(lambda: QCFS(4, v_threshold=2.0))


def _trained(activation: Callable[[], nn.Module]) -> nn.Module:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    train = np.arange(len(digits.target)) % 5 > 0  # the part "train" of --data digits
    x = torch.from_numpy(np.rint(digits.images[train] * (255 / 16)) / 255).float()[:, None]
    y = torch.from_numpy(digits.target[train])
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), activation(), nn.Conv2d(12, 24, 3, 2, padding=1), activation(),
            nn.Conv2d(24, 24, 3, 2, padding=1), activation(), nn.Flatten(), nn.Linear(96, 10),
        )  # fmt: skip
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        for _ in range(8):
            for chosen in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(model(x[chosen]), y[chosen]).backward()
                optimiser.step()
    return model.eval()
