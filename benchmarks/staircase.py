"""What neurons cost beside the activation that they stand for, in `count`: ratios of one run.

MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 python benchmarks/staircase.py

The two settings let freed memory be used again. Without them it is chance which of the functions is given fresh
pages, which cost six times as much as a ReLU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.calibrate.staircase import staircase
from parspike.graph.ops import TABLE, falling, rising
from parspike.neurons import ParallelNeuron, joined

Function = Callable[[Tensor], Tensor]
MONOTONE: dict[str, Function] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "softplus": F.softplus, "elu": F.elu, "celu": F.celu, "selu": F.selu,
    "leaky_relu": F.leaky_relu, "hardsigmoid": F.hardsigmoid, "logsigmoid": F.logsigmoid, "softsign": F.softsign,
    "threshold": partial(F.threshold, threshold=0.5, value=0.1),
}  # fmt: skip
CLIPPED: dict[str, tuple[Function, float, float]] = {
    "hardtanh": (F.hardtanh, -1.0, 1.0), "clamp": (partial(torch.clamp, min=-0.5, max=2.0), -0.5, 2.0),
}  # fmt: skip
TURNING: dict[str, dict[str, str]] = {
    "gelu": {}, "gelu (tanh)": {"approximate": "tanh"}, "silu": {}, "mish": {}, "hardswish": {},
}  # fmt: skip
SHAPES = ((8, 128, 14, 14), (32, 64, 56, 56))
STEPS = (8, 64, 1024)
SECONDS = 0.6
"""Measured for each activation and shape."""


def pairs(channels: int) -> dict[str, tuple[Function, Mapping[int, Function]]]:
    """Every activation, and the neurons that stand for it at every T."""
    seen = torch.randn(20_000).sort().values
    mirrored = -seen.flip(0)
    found: dict[str, tuple[Function, Mapping[int, Function]]] = {}
    found |= {name: (f, {T: staircase(f, seen, T) for T in STEPS}) for name, f in MONOTONE.items()}
    for name, (f, low, high) in CLIPPED.items():
        found[name] = f, {T: ParallelNeuron(T, torch.tensor(high - low), offset=low) for T in STEPS}
    for name, options in TURNING.items():
        target = f"aten.{name.split()[0]}.default"
        row = TABLE[target]
        turn = row.turn(options) if row.turn else (0.0, 0.0)
        right, left = (partial(half, name=target, at=turn[0], lowest=turn[1], **options) for half in (rising, falling))
        two = {T: (staircase(right, seen, T), staircase(left, mirrored, T)) for T in STEPS}
        found[name] = partial(row.run, **options), {T: partial(joined, *n, turn[1]) for T, n in two.items()}
    slopes = torch.full((channels,), 0.2)
    theta = torch.full((channels, 1, 1), 2.0)
    found["prelu"] = (
        partial(F.prelu, weight=slopes),
        {
            T: partial(_two_relus, ParallelNeuron(T, theta), ParallelNeuron(T, theta), -slopes.reshape(-1, 1, 1))
            for T in STEPS
        },
    )
    return found


def _two_relus(right: Function, left: Function, slopes: Tensor, z: Tensor) -> Tensor:
    return right(z) + left(-z) * slopes


def rounds(functions: list[Function], z: Tensor) -> list[list[float]]:
    """CPU seconds of every function, round by round, all in turn: what disturbs one of a round disturbs all."""
    for function in functions:
        function(z)
    times: list[list[float]] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 7:
        times.append([])
        for function in functions:
            begin = time.thread_time()
            function(z)
            times[-1].append(time.thread_time() - begin)
    return times


def main() -> None:
    torch.set_num_threads(1)
    for shape in SHAPES:
        z = torch.randn(shape)
        print(f"\nfloat32 {shape}, one thread. Neurons / activation: median of the rounds (quartiles)")
        print(f"activation    ns/element  {''.join(f'T = {T:<18}' for T in STEPS)}")
        for name, (itself, neurons) in pairs(shape[1]).items():
            times = rounds([itself, *neurons.values()], z)
            cells = []
            for i in range(1, len(STEPS) + 1):
                low, middle, high = statistics.quantiles([t[i] / t[0] for t in times], n=4)
                cells.append(f"{middle:6.2f} ({low:.2f} – {high:.2f})".ljust(22))
            each = statistics.median(t[0] for t in times) / z.numel() * 1e9
            print(f"{name:13} {each:9.2f} {''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
