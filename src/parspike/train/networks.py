"""The networks of the paper, in their CIFAR and ImageNet forms, with ReLU: `with_qcfs` makes them trainable QCFS.

CIFAR: VGG-16 and ResNet-18 for 32×32 inputs without a strided stem, ResNet-20 of He et al. with 16, 32, 64 channels.
ImageNet: VGG-16 with batch norm, ResNet-18 and -34 with the 7×7 stem. Module names are those of torchvision and of
the published CIFAR networks (conv1, bn1, layer1.0.conv1, …), so that their weights load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parspike.errors import OptionError, meant

__all__ = ["NETWORKS", "VGG", "ResNet", "build"]

VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
VGG_SMALL = (32, 32, "pool", 64, 64, "pool", 96, 96, "pool", 128, 128, "pool")


class VGG(nn.Module):
    """3×3 convolutions with batch norm between poolings, three linear layers. size: height and width of the input."""

    def __init__(
        self,
        classes: int,
        size: int = 32,
        plan: Sequence[int | str] = VGG16,
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in plan:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                size //= 2
            else:
                layers += [nn.Conv2d(channels, entry, 3, padding=1, bias=False), nn.BatchNorm2d(entry), nn.ReLU()]
                channels = entry
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * size * size, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class _Pad(nn.Module):
    """Option A of He et al.: every second pixel, new channels filled with zeros; no parameters."""

    def __init__(self, new: int) -> None:
        super().__init__()
        self.new = new

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut. Each activation is its own module, so each gets its own threshold."""

    def __init__(self, before: int, after: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.act2 = nn.ReLU()
        if stride == 1 and before == after:
            self.downsample = nn.Identity()
        elif shortcut == "pad":
            self.downsample = _Pad(after - before)
        else:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(y + self.downsample(x))


class ResNet(nn.Module):
    """Stem, stages of basic blocks, mean pool, linear classifier.

    blocks: how many in each stage. width: channels of the first stage, doubled by each. stem: "cifar" (3×3) or
    "imagenet" (7×7, stride 2, max-pool). shortcut: "conv" (1×1 convolution) or "pad" (option A of He et al.).
    classifier: its name, "fc" in torchvision, "linear" in the published CIFAR networks.
    """

    def __init__(
        self,
        classes: int,
        blocks: Sequence[int],
        width: int = 64,
        stem: str = "cifar",
        shortcut: str = "conv",
        classifier: str = "fc",
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            pool: nn.Module = nn.MaxPool2d(3, 2, 1)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
            pool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.maxpool = pool
        self.stages, self.classifier = len(blocks), classifier
        before = width
        for number, count in enumerate(blocks, 1):
            after = width * 2 ** (number - 1)
            first = Block(before, after, 1 if number == 1 else 2, shortcut)
            rest = [Block(after, after, 1, shortcut) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            before = after
        self.add_module(classifier, nn.Linear(before, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.get_submodule(self.classifier)(x)


class _TransformerBlock(nn.Module):
    """Attention over all tokens, then a linear layer, GELU and a linear layer for each: both on normalised tokens."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A compact vision transformer for 32×32 images (after Hassani et al., arXiv 2104.05704): two convolutions of
    stride 2 make 64 tokens of the image, `depth` blocks of attention and GELU follow, and the mean token is classified.

    stem: channels of the first convolution; the second gives tokens of `width` features. hidden: features between the
    two linear layers of a block.
    """

    def __init__(
        self,
        classes: int,
        width: int = 96,
        depth: int = 4,
        heads: int = 3,
        hidden: int = 192,
        stem: int = 48,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(),
            nn.Conv2d(stem, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.place = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(_TransformerBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


class DigitsNet(nn.Module):
    """For 8×8 grey digits: small enough to train in seconds on one core."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.act2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(32 * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.pool(self.act2(self.bn2(self.conv2(x))))
        return self.fc(torch.flatten(x, 1))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "digits": DigitsNet,
    "vgg16-cifar": partial(VGG, size=32),
    "vgg-small-cifar": partial(VGG, size=32, plan=VGG_SMALL, hidden=128, dropout=0.1),
    "resnet18-cifar": partial(ResNet, blocks=(2, 2, 2, 2)),
    "resnet20-cifar": partial(ResNet, blocks=(3, 3, 3), width=16, shortcut="pad", classifier="linear"),
    "vit-cifar": ViT,
    "vgg16-imagenet": partial(VGG, size=224),
    "resnet18-imagenet": partial(ResNet, blocks=(2, 2, 2, 2), stem="imagenet"),
    "resnet34-imagenet": partial(ResNet, blocks=(3, 4, 6, 3), stem="imagenet"),
}
"""By the name that recipes use: a function from the number of classes to a ReLU network."""


def build(name: str, classes: int) -> nn.Module:
    """A ReLU network by name, with random weights.

    >>> sum(p.numel() for p in build("resnet20-cifar", classes=10).parameters())
    269722
    """
    if name not in NETWORKS:
        raise OptionError(
            f"there is no network {name!r}{meant(name, NETWORKS)}: choose one of {', '.join(NETWORKS)}, or give a SPEC"
        )
    if classes < 2:
        raise OptionError(f"a classifier needs at least 2 classes, got {classes}")
    return NETWORKS[name](classes)
