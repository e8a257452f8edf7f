"""Where and by how much the engines `count` and `parallel` differ: a table of docs/speed.md.

    OMP_NUM_THREADS=1 python benchmarks/engines_agree.py

Five small networks with random weights, fitted by the closed form, run in float32 on batches that they were not fitted
on; and two of these batches in float64, fitted so. For every batch the first layer is looked for in which one neuron
counts otherwise: how many do there, and how far apart the currents of the two engines are, in units in the last place
of the layer's largest current. Everything behind that layer differs because of it.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike

BATCHES = 6


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int, stride: int) -> nn.Sequential:
            depth = nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False), nn.BatchNorm2d(i), nn.ReLU6()
            return nn.Sequential(*depth, nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU6())

        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6())
        self.blocks = nn.Sequential(block(16, 32, 2), block(32, 48, 1), block(48, 64, 2), block(64, 64, 1))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def branch() -> nn.Sequential:
            first = nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()
            return nn.Sequential(*first, nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24))

        self.stem, self.head = nn.Conv2d(3, 24, 3, padding=1), nn.Linear(24, 10)
        self.branches = nn.ModuleList([branch() for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for branch in self.branches:
            x = F.relu(x + branch(x))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kind = {"activation": F.gelu, "batch_first": True, "norm_first": True}
        self.embed, self.head = nn.Linear(16, 32), nn.Linear(32, 10)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(32, 4, 64, 0.0, **kind) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def gelu() -> nn.Sequential:
    hidden = nn.Linear(20, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 128), nn.SiLU()
    return nn.Sequential(*hidden, nn.Linear(128, 10))


def normed() -> nn.Sequential:
    hidden = nn.Linear(20, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()
    return nn.Sequential(*hidden, nn.Linear(64, 10))


NETWORKS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "depthwise": (Depthwise, (64, 3, 16, 16), {}),
    "residual": (Residual, (64, 3, 16, 16), {}),
    "LayerNorm": (normed, (512, 20), {}),
    'GELU, `encode="all"`': (gelu, (512, 20), {"encode": "all"}),
    'attention, `encode="all"`': (Transformer, (64, 12, 16), {"encode": "all"}),
}


@contextlib.contextmanager
def currents(snn: parspike.SNN) -> Iterator[dict[str, Tensor]]:
    """The mean current of every layer of neurons, while the network runs."""
    seen: dict[str, Tensor] = {}
    for name, neuron in snn.neurons().items():
        vars(neuron)["count"] = lambda z, name=name, own=neuron.count: (seen.update({name: z.clone()}), own(z))[1]
    yield seen
    for neuron in snn.neurons().values():
        del vars(neuron)["count"]


def compared(snn: parspike.SNN, x: Tensor) -> tuple[int, int, float, float]:
    """Neurons that count otherwise in all, in the first layer with such, the largest distance of currents up to there
    in units in the last place, and the distance of the outputs."""
    with currents(snn) as one:
        count = snn.run(x, record=True)
    with currents(snn) as other:
        parallel = snn.run(x, engine="parallel", record=True)
    first, total, apart = 0, 0, 0.0
    for node in (node for node in snn.graph.neurons if node.name in one):
        unlike = int((count.counts[node.layer] != parallel.counts[node.layer]).sum())
        if not total:
            z = one[node.name]
            apart = max(apart, float((z - other[node.name]).abs().max() / z.abs().max() / torch.finfo(z.dtype).eps))
            first = unlike
        total += unlike
    return total, first, apart, float((count.logits - parallel.logits).norm() / count.logits.norm())


def main() -> None:
    print("| network | T, code | neurons × samples | batches unlike | in the first layer | ulps | outputs | wide |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name, (make, shape, options) in NETWORKS.items():
        torch.manual_seed(0)
        model = make()
        for _ in range(3):
            model(torch.randn(shape))
        x, others = torch.randn(shape), [torch.randn(shape) for _ in range(BATCHES)]
        for T, code in ((8, "sorted"), (6, "weighted")):
            snn = parspike.convert(model.eval(), [x], T=T, code=code, recipe="closed-form", **options)
            found = [compared(snn, other) for other in others]
            double = copy.deepcopy(model).double()
            wide = parspike.convert(double, [x.double()], T=T, code=code, recipe="closed-form", **options)
            unlike = sum(compared(wide, other.double())[0] for other in others[:2])
            size = sum(count.numel() for count in snn.run(x, record=True).counts.values())
            outputs = [distance for *_, distance in found]
            print(
                f"| {name} | {T}, {code} | {size:,} | {sum(total > 0 for total, *_ in found)} of {BATCHES} | "
                f"{max(first for _, first, *_ in found)} | {max(apart for *_, apart, _ in found):.1f} | "
                f"{min(outputs):.0e} … {max(outputs):.0e} | {unlike} |",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
