"""The compiled count engine beside the compiled network, many interleaved pairs: ratio of times, and memory.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py lite0 --batch 1 --pairs 150
    OMP_NUM_THREADS=1 python benchmarks/compiled.py smollm2 --pairs 40                   # after language_files.py

Seconds are those of the process. smollm2: the first layers of SmolLM2-135M, 4 × 256 tokens, encoders, weighted 6 steps;
its head is cut to 64 words, for it has all of the network's words and would be most of two layers' time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import imagenet_networks
import torch
import torchvision_operators
from torch import Tensor, nn

import parspike
from parspike.bench.run import Memory

FILES = Path(__file__).resolve().parents[2] / "ext" / "lm"


def of_images(name: str, batch: int) -> tuple[nn.Module, Any, Tensor]:
    """A network of 224² pixels, its conversion at T = 32, and a batch."""
    model, x = getattr(imagenet_networks, name)(), torch.randn(batch, 3, 224, 224)
    return model, parspike.convert(model, x, T=32, recipe="max"), x


def of_tokens(files: Path, layers: int) -> tuple[nn.Module, Any, Tensor]:
    """The first layers of a language model, their conversion, and a batch of text."""
    model: Any = parspike.language(files / "smollm2")
    for part in list(model.modules()):
        if isinstance(getattr(part, "layers", None), nn.ModuleList):
            part.layers = part.layers[:layers]
        if hasattr(part, "lm_head"):
            part.lm_head = nn.Linear(part.lm_head.in_features, 64, bias=False)
    x = model.tokenizer.sequences(files / "text" / "calibration", 256)[:4]
    plan = parspike.plan(model, model.example(), encode="all")
    return model, parspike.convert(plan, x, T=6, code="weighted", recipe="max"), x


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["lite0", "resnet18", "resnet50", "mobilenet_v2", "smollm2"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--files", type=Path, default=FILES)
    options = parser.parse_args()
    torch.manual_seed(0)
    torchvision_operators.declare()
    tokens = options.network == "smollm2"
    model, snn, x = of_tokens(options.files, options.layers) if tokens else of_images(options.network, options.batch)
    calls = {"network": torch.compile(model), "count": copy.deepcopy(snn).compile()}
    for call in 2 * list(calls.values()):
        call(x)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(options.pairs):
        for name in sorted(calls, reverse=number % 2 == 0):
            start = time.process_time()
            calls[name](x)
            times[name].append(time.process_time() - start)
    ratios = sorted(own / other for own, other in zip(times["count"], times["network"], strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"count / network, compiled: {middle:.3f}, quartiles {low:.3f} and {high:.3f}, {options.pairs} pairs")
    for name, call in calls.items():
        memory = Memory(x.device)
        call(x)
        grown = memory.grown()
        told = "" if grown is None else f", memory grows by {grown:.1f} MiB"
        print(f"{name}: {1000 * statistics.median(times[name]):.1f} ms{told}")


if __name__ == "__main__":
    main()
