"""ResNets of He et al. for CIFAR with option-A shortcuts, as in the published weights in ../shared/weights.

parspike plan examples/cifar_resnet.py:resnet20 --weights ../shared/weights/cifar10-resnet20.safetensors
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation of x / 255 that the published weights were trained with."""

Activation = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """Two 3×3 convolutions; where the shape changes, the shortcut takes every second pixel and pads channels."""

    def __init__(self, before: int, after: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.new = (after - before) // 2 if stride != 1 or before != after else 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new, self.new)) if self.new else x
        return self.activation(y + shortcut)


class ResNet(nn.Module):
    """Stem with 16 channels, three stages of n blocks with 16, 32, 64 channels, mean pool, linear classifier."""

    def __init__(self, blocks: int, classes: int = 10, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages = []
        for before, after in ((16, 16), (16, 32), (32, 64)):
            first = Block(before, after, 1 if before == after else 2, activation)
            stages.append(nn.Sequential(first, *[Block(after, after, 1, activation) for _ in range(blocks - 1)]))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def resnet20() -> ResNet:
    """ResNet-20 with random weights."""
    return ResNet(3)


def resnet20_silu() -> ResNet:
    """ResNet-20 with SiLU in place of ReLU, random weights."""
    return ResNet(3, activation=F.silu)


def resnet56() -> ResNet:
    """ResNet-56 with random weights."""
    return ResNet(9)
