"""What each recipe of the paper needs, by counting: no training is run.

    python benchmarks/reproduction_cost.py [--tflops 20]

Work: multiply-accumulates of all convolutions and linear layers, times 2, times 3 for forward and backward, times
images, times epochs. Memory: for each layer's output what training keeps of it (the convolution's output for the
batch norm, the activation for the next layer, four bits for QCFS), times the batch, in the recipe's precision.
Hours: work / --tflops, an assumption about one GPU that the output repeats.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from parspike.train import load_recipe, recipe_names
from parspike.train.networks import build

IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167}


def count(network: str, classes: int, side: int) -> tuple[int, int]:
    """Multiply-accumulates and kept values of one image."""
    work = kept = 0

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal work, kept
        if isinstance(module, nn.Conv2d | nn.Linear):
            work += output.numel() * module.weight[0].numel()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ReLU):
            kept += output.numel()

    with torch.device("meta"):
        model = build(network, classes).eval()
        for module in model.modules():
            module.register_forward_hook(add)
        model(torch.empty(1, 3, side, side))
    return work, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=20.0)
    tflops = parser.parse_args().tflops
    print(f"| recipe | 10⁹ MAC an image | 10¹⁸ operations | hours at {tflops:g} TFLOP/s | activations of a batch |")
    print("|---|---|---|---|---|")
    for name in recipe_names():
        recipe, data = load_recipe(name), name.split("-")[0]
        if data not in IMAGES or name.endswith(("short", "finetune")):
            continue
        work, kept = count(recipe.network, recipe.data.classes, 224 if data == "imagenet" else 32)
        total = 6 * work * IMAGES[data] * recipe.optimiser.epochs
        bytes_each = 4.25 if recipe.precision == "32-true" else 2.25
        memory = kept * bytes_each * recipe.optimiser.batch_size / 2**30
        print(
            f"| `{name}` | {work / 1e9:.2f} | {total / 1e18:.2f} | {total / tflops / 3.6e15:.1f} | {memory:.1f} GiB |"
        )


if __name__ == "__main__":
    main()
