"""Time and memory of every engine against the network, side by side: ratios of one run.

python benchmarks/speed.py                      # ResNet-18, batch 8, 224²
python benchmarks/speed.py --compile            # also compiled by torch.compile, both
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torchvision_operators

import parspike
from parspike.bench.run import Memory

torchvision_operators.declare()


def network() -> torch.nn.Module:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return resnet18().eval()


def batch(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Each call once to warm up, then in turn: what the machine does meanwhile meets all alike."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


@torch.no_grad()
def peak(kind: str, size: int) -> None:
    """Print the most memory that one forward pass takes above what lay there before, in MiB."""
    model, x = network(), batch(size)
    call = model if kind == "network" else parspike.convert(model, batch(2), T=32, recipe="max")
    if kind != "network":
        del model
    memory = Memory()
    call(x)
    print(memory.grown())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peak", choices=("network", "count"))
    options = parser.parse_args()
    if options.peak:
        peak(options.peak, options.batch)
        return
    model, x = network(), batch(options.batch)
    plan_time = seconds(lambda: parspike.plan(model, x[:2]))
    plan = parspike.plan(model, x[:2])
    few, many = (parspike.convert(plan, batch(2), T=T, recipe="max") for T in (32, 256))
    calls = {"network": lambda: model(x), "count, T=32": lambda: few(x), "count, T=256": lambda: many(x)}
    if options.compile:
        compiled_model, compiled = torch.compile(model), torch.compile(few, fullgraph=True)
        calls |= {"network, compiled": lambda: compiled_model(x), "count, T=32, compiled": lambda: compiled(x)}
    times = interleaved(calls, options.rounds)
    base = times["network"]
    print(f"ResNet-18, batch {options.batch}, 224², {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"planning: {plan_time:.1f} s\n")
    print("| | median s | ratio to the network, round by round: min / median / max |\n|---|---|---|")
    for name, values in times.items():
        ratios = sorted(v / b for v, b in zip(values, base, strict=True))
        low, middle, high = ratios[0], statistics.median(ratios), ratios[-1]
        print(f"| {name} | {statistics.median(values):.3f} | {low:.2f} / {middle:.2f} / {high:.2f} |")
    single = x[:1]
    count = min(seconds(lambda: few(single)) for _ in range(3))
    for engine in ("parallel", "serial", "serial-if"):
        slow = seconds(lambda engine=engine: few.run(single, engine=engine))
        print(f"| {engine}, T=32, one image | {slow:.2f} | {slow / count:.0f} × count |")
    peaks = {}
    for kind in ("network", "count"):
        command = [sys.executable, __file__, "--peak", kind, "--batch", str(options.batch)]
        peaks[kind] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"\npeak memory of a pass: network {peaks['network']:.0f} MiB, count {peaks['count']:.0f} MiB, "
          f"ratio {peaks['count'] / peaks['network']:.2f}")  # fmt: skip
    print(f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
