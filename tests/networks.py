"""Small networks shared by several tests; their weights are drawn from a seed."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike


class Residual(nn.Module):
    """Stem, functional and in-place activations, a module used twice, skip, concat, max-pool, dropout, BN."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(2 * width, 5)
        for bn in (self.bn1, self.bn2):
            nn.init.uniform_(bn.running_mean, -0.2, 0.2)
            nn.init.uniform_(bn.running_var, 0.5, 2.0)
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.uniform_(bn.bias, -0.2, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.pool(self.act(y))
        z = F.relu6(self.conv3(y))
        z = torch.cat([z, y.clamp(min=0.0, max=1.5)], dim=1)
        z = F.hardtanh(z.mean((2, 3)), 0.0, 1.0)
        return self.head(self.drop(z))


class PreActivation(nn.Module):
    """A residual stream that never passes an activation: its currents are needed by several stages."""

    def __init__(self, width: int = 6, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(blocks))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + conv(torch.relu(norm(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Dense(nn.Module):
    """Concatenated feature maps, average pools, max-pool on a concatenation and before an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.c = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4 * 2 * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        b = self.b(a).relu_()
        c = F.max_pool2d(torch.cat([a, b], 1), 3, stride=2, padding=1)
        c = torch.relu(F.max_pool2d(self.c(c), 2))
        return self.head(F.avg_pool2d(c, 2).view(x.size(0), -1))


class Quantised(nn.Module):
    """A network trained for conversion: QCFS activations with 4 levels, max-pool, a skip."""

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.act1 = parspike.QCFS(levels, 1.3)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.act2 = parspike.QCFS(levels, 0.9)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(6 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(x))
        x = self.pool(self.act2(self.conv2(x) + x))
        return self.head(x.flatten(1))


Planned = tuple[nn.Module, Tensor, parspike.Plan]
SHAPES = {Residual: (3, 8, 8), PreActivation: (2, 8, 8), Dense: (3, 16, 16), Quantised: (1, 8, 8)}


def made(kind: type[nn.Module], seed: int = 0, batch: int = 6) -> tuple[nn.Module, Tensor]:
    """A network in evaluation and a batch for it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().eval(), torch.randn(batch, *SHAPES[kind])


@functools.cache
def planned(kind: type[nn.Module], seed: int = 0, batch: int = 6, dtype: torch.dtype = torch.float32) -> Planned:
    """`made`, in a type, with its plan: traced once for all tests that convert it and leave it as it is."""
    model, x = made(kind, seed, batch)
    model, x = model.to(dtype), x.to(dtype)
    return model, x, parspike.plan(model, x)


def exact(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same network with small integer weights, neutral norms and power-of-two thresholds: sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if name.endswith("v_threshold"):
            parameter.fill_(2.0)
        else:
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.running_var.fill_(1.0)
            module.weight.fill_(1.0)
            module.bias.zero_()
            module.eps = 0.0
    return model
