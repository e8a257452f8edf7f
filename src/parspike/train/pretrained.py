"""Small networks trained with `parspike train`, whose weights come with the package.

    parspike convert parspike.train.pretrained:cifar10_resnet20 --shape 3,32,32 -T 4 -o net.parspike

The .json beside each file of `src/parspike/weights` states recipe, seed, data, accuracy and licence.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from parspike.train.make import load_trained

__all__ = ["FOLDER", "cifar10_resnet20", "cifar10_resnet20_8"]

FOLDER = Path(__file__).parents[1] / "weights"


def cifar10_resnet20() -> nn.Module:
    """ResNet-20 on CIFAR-10 (recompressed), T̃ = 4."""
    return load_trained(FOLDER / "cifar10-resnet20-L4.safetensors")


def cifar10_resnet20_8() -> nn.Module:
    """ResNet-20 on CIFAR-10 (recompressed), T̃ = 8."""
    return load_trained(FOLDER / "cifar10-resnet20-L8.safetensors")
