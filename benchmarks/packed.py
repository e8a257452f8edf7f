"""What it costs to write the trains of every neuron as bits, and the paper's three variants of a neuron, interleaved.

OMP_NUM_THREADS=1 python benchmarks/packed.py --batch 8 --cpu-time
python benchmarks/packed.py --batch 8 --device cuda --no-compile
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from imagenet_networks import resnet18

import parspike
from parspike.neurons import fused, spikes_at_once
from parspike.neurons.parallel import VARIANTS


def interleaved(calls: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float], cuda: bool) -> None:
    """Print the median seconds of every call, and the median ratio to the first one's of the same round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-2, rounds):  # two rounds before, in which kernels are compiled and memory is taken
        for name, call in calls.items():
            start = clock()
            call()
            if cuda:
                torch.cuda.synchronize()
            if number >= 0:
                times[name].append(clock() - start)
    first = next(iter(times.values()))
    for name, own in times.items():
        ratios = sorted(mine / one for mine, one in zip(own, first, strict=True))
        least, middle, most = ratios[0], statistics.median(ratios), ratios[-1]
        seconds = 1000 * statistics.median(own)
        print(f"{name:28} {seconds:9.2f} ms   ratio {middle:.2f} ({least:.2f} … {most:.2f})", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("-T", type=int, default=32)
    parser.add_argument("--code", default="sorted")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="seconds that the process computed, all threads")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--paper", action="store_true", help="also engine parallel, which takes T passes")
    options = parser.parse_args()
    clock, cuda = time.process_time if options.cpu_time else time.perf_counter, options.device.startswith("cuda")
    torch.manual_seed(0)
    model, x = resnet18().to(options.device), torch.randn(options.batch, 3, 224, 224).to(options.device)
    snn = parspike.convert(model, x, T=options.T, code=options.code, recipe="max")
    calls: dict[str, Callable[[], object]] = {
        "count": lambda: snn.run(x),
        "network": lambda: model(x),
        "count, record=True": lambda: snn.run(x, record=True),
        "count, record='packed'": lambda: snn.run(x, record="packed"),
    }
    if not options.no_compile:
        compiled = copy.deepcopy(snn).compile()
        calls["compiled count"] = lambda: compiled.run(x)
        calls["compiled, record='packed'"] = lambda: compiled.run(x, record="packed")
    if options.paper:
        calls["parallel, record='packed'"] = lambda: snn.run(x, engine="parallel", record="packed")
    proved = fused.proved(x.device, x.dtype) is not None if cuda else False
    print(f"ResNet-18, batch {options.batch}, T = {options.T}, {options.code}, torch {torch.__version__}, "
          f"{torch.cuda.get_device_name() if cuda else f'{torch.get_num_threads()} threads'}, "
          f"neurons in {'one Triton kernel' if proved else 'plain torch'}")  # fmt: skip
    interleaved(calls, options.rounds, clock, cuda)
    current = torch.randn(options.T, options.batch, 64, 56, 56, device=x.device)
    print(f"a neuron's spikes from a current {tuple(current.shape)}")
    interleaved(
        {variant: lambda variant=variant: spikes_at_once(current, 1.0, variant) for variant in reversed(VARIANTS)},
        options.rounds, clock, cuda,
    )  # fmt: skip


if __name__ == "__main__":
    main()
