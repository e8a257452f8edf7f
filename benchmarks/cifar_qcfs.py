"""What became of networks trained with `parspike train` on CIFAR-10, row by row.

    parspike train cifar10-resnet20-finetune --from ../shared/weights/cifar10-resnet20.safetensors \\
        --data ../shared/data/cifar10-jpeg.zip -o runs/resnet20-L4
    python benchmarks/cifar_qcfs.py runs/resnet20-L4 --data ../shared/data/cifar10-jpeg.zip \\
        --markdown docs/results-training.md

Each argument is a folder that `parspike train` wrote, or a .safetensors of the package. Measured are the network; its
spiking network at T = T̃, with the number of spike counts that differ from the network's own; other T without
calibration and with each of the recipes; the serial IF network. Every figure is kept in --results as soon as it is
there, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike.cli.images import open_images
from parspike.cli.preprocess import Preprocessing
from parspike.neurons import QCFS
from parspike.train import Arrays, TrainingRecipe, decode, load_trained

RECIPES = ('{"name": "daqcfs", "passes": 5}', '{"name": "daqcfs", "means": "exact"}', "closed-form", "auto")
BARE = "no calibration"


@dataclass(frozen=True)
class Bench:
    """One trained network and the images it is measured on."""

    weights: Path
    test: Arrays
    train: Arrays
    args: argparse.Namespace

    @property
    def about(self) -> dict[str, Any]:
        file = self.weights / "weights.json" if self.weights.is_dir() else self.weights.with_suffix(".json")
        return json.loads(file.read_text())

    @property
    def recipe(self) -> TrainingRecipe:
        return TrainingRecipe.from_json(self.about["recipe"])

    def model(self) -> nn.Module:
        return load_trained(self.weights)

    def normal(self, x: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(v, dtype=x.dtype).view(-1, 1, 1) for v in (self.recipe.data.mean, self.recipe.data.std)
        )
        return (x - mean) / std

    def batches(self, step: int = 1, dtype: torch.dtype = torch.float32) -> Iterator[Any]:
        """Every `step`-th test image."""
        for rows in torch.arange(0, len(self.test), step).split(100):
            x, y = self.test.take(rows)
            yield self.normal(x.to(dtype)), y

    def calibration(self) -> list[Tensor]:
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return list(self.normal(self.train.take(chosen[: self.args.calibration])[0]).split(64))

    def convert(self, T: int, recipe: str) -> parspike.SNN:
        return parspike.convert(self.model(), calibration=self.calibration(), T=T, recipe=recipe)

    def accuracy(self, run: Callable[[Tensor], Tensor], step: int) -> float:
        right = [float((run(x).argmax(1) == y).float().sum()) for x, y in self.batches(step)]
        return sum(right) / len(range(0, len(self.test), step))

    def cells(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Name and measurement, the quick ones first."""
        args, levels = self.args, self.recipe.activation.levels
        yield "network", lambda: self.accuracy(self.model(), args.step)
        yield "float64", lambda: self.differing(torch.float64)
        yield "float32", lambda: self.differing(torch.float32)
        yield "folded", self.folded
        for T in args.T:
            yield f"{T} {BARE}", lambda T=T: self.accuracy(self.convert(T, "max"), args.step)
        for T in args.T:
            for text in args.recipes if levels != T else ():
                yield f"{T} {name_of(text)}", lambda T=T, r=text: self.accuracy(self.convert(T, r), args.step)
        for T in args.serial:
            yield f"{T} serial IF", lambda T=T: self.serial(T)
        yield "all", lambda: self.accuracy(self.model(), 1)

    def serial(self, T: int) -> float:
        snn = self.convert(T, "max")
        return self.accuracy(lambda x: snn.run(x, engine="serial-if").logits, self.args.step)

    def folded(self) -> list[int]:
        """Images whose logits are bit for bit those of the network with folded batch norms, and all images."""
        model, example = self.model(), next(self.batches())[0][:2]
        graph = parspike.plan(model, example).graph
        snn = parspike.convert(model, example=example, T=self.recipe.activation.levels)
        same = [(graph.run(x) == snn(x)).all(1) for x, _ in self.batches(self.args.step)]
        return [int(torch.cat(same).sum()), sum(map(len, same))]

    def differing(self, dtype: torch.dtype) -> list[int]:
        """Counts that differ from the network's own, all counts, images whose class differs, all images."""
        model, example = self.model().to(dtype), next(self.batches(dtype=dtype))[0][:2]
        snn = parspike.convert(model, example=example, T=self.recipe.activation.levels)
        own: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if isinstance(module, QCFS):

                def record(module: QCFS, args: Any, a: Tensor, name: str = name) -> None:
                    own[name] = (a * (module.levels / module.v_threshold)).round()

                module.register_forward_hook(record)
        wrong = total = classes = images = 0
        for x, _ in self.batches(self.args.step, dtype):
            logits, run = model(x), snn.run(x, record=True)
            classes += int((logits.argmax(1) != run.logits.argmax(1)).sum())
            images += len(x)
            for layer, counts in run.counts.items():
                # A max-pool behind an activation goes before its neurons: theirs are the counts of the pooled map.
                pooled = counts.shape[2:] != own[layer].shape[2:]
                wanted = F.adaptive_max_pool2d(own[layer], counts.shape[2:]) if pooled else own[layer]
                wrong += int((counts != wanted).sum())
                total += counts.numel()
        return [wrong, total, classes, images]


def name_of(text: str) -> str:
    if not text.startswith("{"):
        return text
    options = json.loads(text)
    rest = ", ".join(f"{k} {v}" for k, v in options.items() if k != "name")
    return f"{options['name']} ({rest})" if rest else options["name"]


def table(bench: Bench, said: dict[str, Any]) -> str:
    about, levels, step = bench.about, bench.recipe.activation.levels, bench.args.step
    images = len(range(0, len(bench.test), step))

    def percent(name: str) -> str:
        return f"{100 * said[name]:.2f}" if name in said else "–"

    lines = [
        f"## {bench.recipe.network}, T̃ = {levels} (`{bench.weights}`)",
        "",
        f"Recipe: {bench.recipe.about}; {bench.recipe.optimiser.epochs} epochs, lr {bench.recipe.optimiser.lr:g}, seed "
        f"{bench.recipe.seed}. Network, in %: {100 * about['accuracy']:.2f} of all test images in the training's "
        f"precision, {percent('all')} in float32; **{percent('network')}** of the {images} images of the table.",
        "",
    ]
    if "float64" in said:
        wrong, total, classes, images = said["float64"]
        lines += [
            f"T = T̃ = {levels} against the network itself: **{wrong}** of {total:,} counts and {classes} of {images} "
            "classes differ in float64.",
        ]
    if "float32" in said:
        wrong, total, classes, images = said["float32"]
        lines += [
            "In float32, where folding the batch norms rounds some currents to the other side of a threshold, "
            f"{wrong:,} of {total:,} counts and {classes} of {images} classes do.",
        ]
    if "folded" in said:
        same, images = said["folded"]
        lines += [
            f"Against the network with folded batch norms, {same} of {images} images have the same logits bit for bit, "
            "also in float32.",
        ]
    columns = [BARE, *map(name_of, bench.args.recipes), "serial IF"]
    lines += ["", f"| T | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for T in sorted({*bench.args.T, *bench.args.serial}):
        lines.append(f"| {T} | {' | '.join(percent(f'{T} {name}') for name in columns)} |")
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--data", default="../shared/data/cifar10-jpeg.zip")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--T", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--serial", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--step", type=int, default=5, help="measure on every n-th test image")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/cifar_qcfs.json"))
    parser.add_argument("--markdown", type=Path, help="write the tables here, below the file's first section")
    parser.add_argument("--render", action="store_true", help="measure nothing more")
    args = parser.parse_args()
    splits = []
    for split in ("test", "train"):
        source = open_images(args.data, Preprocessing(), split=split, batch_size=256)
        splits.append(decode(source, len(source), args.cache / f"{Path(args.data).stem}-{split}-all"))
    said = json.loads(args.results.read_text()) if args.results.exists() else {}
    benches = [Bench(weights, splits[0], splits[1], args) for weights in args.weights]

    def render(page: str = "") -> str:
        """The page with a table for every network that has figures; its other sections stay as they are."""
        head, *sections = page.rstrip().split("\n## ")
        found = {section.partition("\n")[0]: f"## {section.rstrip()}" for section in sections}
        for bench in benches:
            if figures := said.get(key(bench)):
                made = table(bench, figures)
                found[made.removeprefix("## ").partition("\n")[0]] = made
        return "\n\n".join(filter(None, [head.rstrip(), *found.values()])) + "\n"

    def key(bench: Bench) -> str:
        return f"{bench.weights} step {args.step} calibration {args.calibration}"

    for bench in () if args.render else benches:
        mine = said.setdefault(key(bench), {})
        for name, measure in bench.cells():
            if name in mine:
                continue
            mine[name] = measure()
            print(f"{bench.weights}, {name}: {mine[name]}", flush=True)
            args.results.write_text(json.dumps(said, indent=1))
    print(render())
    if args.markdown:
        args.markdown.write_text(render(args.markdown.read_text() if args.markdown.exists() else "# Results"))


if __name__ == "__main__":
    main()
