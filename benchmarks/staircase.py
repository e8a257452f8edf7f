"""What a staircase costs beside the activation that it stands for, in `count`: ratios of one run.

python benchmarks/staircase.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.calibrate.staircase import staircase

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "softplus": F.softplus, "elu": F.elu, "selu": F.selu,
    "logsigmoid": F.logsigmoid, "softsign": F.softsign, "leaky_relu": F.leaky_relu, "hardsigmoid": F.hardsigmoid,
}  # fmt: skip
SHAPE = (32, 64, 28, 28)
ROUNDS = 15


def seconds(functions: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Best of several rounds, all functions in turn, so that a busy machine is busy for all of them."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(ROUNDS):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def main() -> None:
    torch.set_num_threads(1)
    z = torch.randn(SHAPE)
    print(f"float32 {SHAPE}, one thread, ns per element; staircase / activation in brackets")
    print("activation      itself   T=8             T=64            T=1024          searched, T=1024")
    for name, function in ACTIVATIONS.items():
        neurons = {T: staircase(function, z.flatten().sort().values, T) for T in (8, 64, 1024)}
        search = neurons[1024].thresholds
        best = seconds({
            "itself": lambda f=function: f(z),
            **{str(T): lambda n=neuron: n(z) for T, neuron in neurons.items()},
            "searched": lambda s=search: torch.bucketize(z, s, right=True),
        })  # fmt: skip
        itself = best.pop("itself")
        cells = [f"{t / z.numel() * 1e9:7.2f} ({t / itself:5.2f})" for t in best.values()]
        print(f"{name:14} {itself / z.numel() * 1e9:7.2f}  " + " ".join(cells))


if __name__ == "__main__":
    main()
