"""What became of networks trained with `parspike train` on CIFAR-10, row by row.

    parspike train cifar10-resnet20-finetune --from ../shared/weights/cifar10-resnet20.safetensors \\
        --data ../shared/data/cifar10-jpeg.zip -o runs/resnet20-L4
    python benchmarks/cifar_qcfs.py runs/resnet20-L4 --data ../shared/data/cifar10-jpeg.zip \\
        --markdown docs/results-training.md

Each folder is one that `parspike train` wrote. Rows: the network; its spiking network at T = T̃, with the number of
spike counts that differ from the network's own; other T without calibration and with each of the recipes; the serial
IF network.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import parspike
from parspike.cli.data import Preprocessing, open_images
from parspike.neurons import QCFS
from parspike.train import Arrays, Recipe, decode, load_trained

RECIPES = ('{"name": "daqcfs", "passes": 5}', '{"name": "daqcfs", "means": "exact"}')


def load(folder: Path) -> tuple[nn.Module, Recipe, dict[str, Any]]:
    about = json.loads((folder / "weights.json").read_text())
    return load_trained(folder), Recipe.from_json(about["recipe"]), about


def images(data: str, split: str, cache: Path) -> Arrays:
    source = open_images(data, Preprocessing(), split=split, batch_size=256)
    return decode(source, len(source), cache / f"{Path(data).stem}-{split}-all")


def batches(arrays: Arrays, recipe: Recipe, step: int = 1, dtype: torch.dtype = torch.float32) -> Iterator[Any]:
    mean, std = (torch.tensor(v, dtype=dtype).view(-1, 1, 1) for v in (recipe.data.mean, recipe.data.std))
    for start in range(0, len(arrays), 200 * step):
        rows = torch.arange(start, min(start + 200 * step, len(arrays)), step)
        x, y = arrays.take(rows)
        yield (x.to(dtype) - mean) / std, y


@torch.no_grad()
def accuracy(run: Any, data: Iterator[Any]) -> float:
    right = total = 0
    for x, y in data:
        right += int((run(x).argmax(1) == y).sum())
        total += len(y)
    return right / total


@torch.no_grad()
def differing(model: nn.Module, snn: parspike.SNN, data: Iterator[Any]) -> tuple[int, int, int]:
    """Counts that differ from the network's own, all counts, and images whose class differs."""
    own: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, QCFS):

            def record(module: QCFS, args: Any, a: Tensor, name: str = name) -> None:
                own[name] = (a * (module.levels / module.v_threshold)).round()

            module.register_forward_hook(record)
    wrong = total = classes = 0
    for x, _ in data:
        logits, run = model(x), snn.run(x, record=True)
        classes += int((logits.argmax(1) != run.logits.argmax(1)).sum())
        for layer, counts in run.counts.items():
            wrong += int((counts != own[layer]).sum())
            total += counts.numel()
    return wrong, total, classes


@torch.no_grad()
def rows(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    model, recipe, about = load(folder)
    test, train = images(args.data, "test", args.cache), images(args.data, "train", args.cache)
    levels, example = recipe.activation.levels, next(batches(test, recipe))[0][:2]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (recipe.data.mean, recipe.data.std))
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: args.calibration]
    calibration = list(((train.take(chosen)[0] - mean) / std).split(64))
    said: dict[str, Any] = {"folder": str(folder), "about": about, "levels": levels, "T": {}, "serial-if": {}}
    said["network"] = accuracy(model, batches(test, recipe))
    print(f"{folder}: network {said['network']:.4f} on {len(test)} images", flush=True)
    snn = parspike.convert(model, example=example, T=levels)
    said["lossless"] = accuracy(snn, batches(test, recipe))
    folded = parspike.plan(model, example).graph
    said["folded"] = sum(int((folded.run(x) == snn(x)).all(1).sum()) for x, _ in batches(test, recipe))
    double, example64 = load(folder)[0].double(), example.double()
    snn64 = parspike.convert(double, example=example64, T=levels)
    said["differing"] = differing(double, snn64, batches(test, recipe, dtype=torch.float64))
    said["differing in float32"] = differing(load(folder)[0], snn, batches(test, recipe))
    print(f"  T = T̃: {said['lossless']:.4f}, differing {said['differing']}, {said['differing in float32']}", flush=True)
    for T in args.T:
        row = said["T"][T] = {}
        bare = parspike.convert(model, example=example, T=T, calibration=calibration, recipe="max")
        row["no calibration"] = accuracy(bare, batches(test, recipe, step=args.step))
        for text in args.recipes if levels != T else ():
            start = time.perf_counter()
            snn = parspike.convert(model, calibration=calibration, T=T, recipe=text)
            row[name_of(text)] = accuracy(snn, batches(test, recipe, step=args.step))
            print(f"  T = {T}, {name_of(text)}: {time.perf_counter() - start:.0f} s", flush=True)
        print(f"  T = {T}: {row}", flush=True)
    for T in args.serial:
        snn = parspike.convert(model, example=example, T=T, calibration=calibration[:1], recipe="max")
        run = lambda x, snn=snn: snn.run(x, engine="serial-if").logits  # noqa: E731 (one line, used once)
        said["serial-if"][T] = accuracy(run, batches(test, recipe, step=args.step))
        print(f"  serial IF, T = {T}: {said['serial-if'][T]:.4f}", flush=True)
    said["some"] = len(range(0, len(test), args.step))
    said["calibration"], said["test"] = args.calibration, len(test)
    return said


def name_of(text: str) -> str:
    if not text.startswith("{"):
        return text
    options = json.loads(text)
    rest = ", ".join(f"{k} {v}" for k, v in options.items() if k != "name")
    return f"{options['name']} ({rest})" if rest else options["name"]


def table(said: dict[str, Any]) -> str:
    about, levels = said["about"], said["levels"]
    recipe, percent = about["recipe"], lambda value: "" if value is None else f"{100 * value:.2f}"
    columns = list(dict.fromkeys(name for row in said["T"].values() for name in row))
    wrong, total, classes = said["differing"]
    wrong32, _, classes32 = said["differing in float32"]
    lines = [
        f"## {recipe['network']}, T̃ = {levels} (`{said['folder']}`)",
        "",
        f"{recipe['about']}; {recipe['optimiser']['epochs']} epochs, seed {recipe['seed']}, {about['seconds']} s.",
        f"Accuracy in % of {said['test']} test images (JPEG-recompressed CIFAR-10).",
        "",
        f"- network: **{percent(said['network'])}**",
        f"- spiking network at T = T̃ = {levels}: **{percent(said['lossless'])}**; counts that differ from the "
        f"network's own: **{wrong}** of {total:,} in float64, classes that differ: {classes}; in float32 {wrong32} "
        f"counts and {classes32} classes, because folding the batch norms rounds some currents to the other side of a "
        f"threshold; {said['folded']} of {said['test']} images have the very logits of the folded network in float32",
        "",
        f"| T | {' | '.join(columns)} | serial IF |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for T in sorted({*said["T"], *said["serial-if"]}):
        row = said["T"].get(T, {})
        cells = [percent(row.get(name)) for name in columns]
        lines.append(f"| {T} | {' | '.join(cells)} | {percent(said['serial-if'].get(T))} |")
    lines += [
        "",
        f"Table: every {said['test'] // said['some']}th test image ({said['some']}), calibrated on "
        f"{said['calibration']} training images without labels. Serial IF: soft reset, v(0) = θ/2.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--data", default="../shared/data/cifar10-jpeg.zip")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--T", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--serial", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--step", type=int, default=5, help="take every n-th test image for the rows of the table")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--markdown", type=Path, help="write the tables here, below the file's first section")
    args = parser.parse_args()
    tables = [table(rows(folder, args)) for folder in args.folders]
    print("\n\n".join(tables))
    if args.markdown:
        head = args.markdown.read_text().split("\n## ")[0].rstrip() if args.markdown.exists() else "# Results"
        args.markdown.write_text(head + "\n\n" + "\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
