"""Accuracy at few time-steps, recipe by recipe: the tables of docs/results.md.

    python benchmarks/few_steps.py resnet20                 # ../shared/weights, ../shared/data
    python benchmarks/few_steps.py resnet56 --recipes daqcfs closed-form
    python benchmarks/few_steps.py lite0 --seeds 0 1 2
    python benchmarks/few_steps.py mobilenet_v2 --seeds 0 1 2   # its weights are a package: docs/results.md
    python benchmarks/few_steps.py resnet20 --render docs/results.md
    python benchmarks/few_steps.py resnet20 --held-out --images 768 --recipes "closed-form, free"

The last line is for choices between recipes, which no test image may decide: it tests on images of the calibration part
that did not calibrate, and knows no labels.

One JSON line a figure goes to benchmarks/few_steps.jsonl, kept with the code; what stands there already is not run
again. `--render` writes the tables into the page, between the marks that name this command; a row of the page that has
no figures there (those from before 2026-11-26 were not kept) stays as it is.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagenet_networks
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import parspike
from parspike import DAQCFS, Auto, ClosedForm, Reconstruct, Thresholds
from parspike.train import Arrays

if TYPE_CHECKING:
    from parspike.cli.preprocess import Preprocessing

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
FIGURES = ROOT / "benchmarks" / "few_steps.jsonl"
sys.path.insert(0, str(ROOT / "examples"))

ALL, HELD_OUT = 1 << 30, 1500
"""Images of the calibration part: all, and those tested on at most with --held-out."""

CODES = {"T=1": (1, "sorted"), "T=2": (2, "sorted"), "T=4": (4, "sorted"), "T=8": (8, "sorted"),
         "T=15": (15, "sorted"), "weighted, 3": (3, "weighted"), "weighted, 4": (4, "weighted")}  # fmt: skip
RECIPES = {
    "max": Thresholds(),
    "max, layer": Thresholds(granularity="layer"),
    "99.9%": Thresholds("99.9%"),
    "99.9%, layer": Thresholds("99.9%", "layer"),
    "daqcfs, 99.9%": DAQCFS(mode="99.9%"),
    "daqcfs": DAQCFS(),
    "daqcfs, exact means": DAQCFS(means="exact"),
    "mse, no shift": ClosedForm(refit=False, shift=False, weigh="own"),
    "mse": ClosedForm(refit=False, weigh="own"),
    "mse, layer": ClosedForm(refit=False, granularity="layer", weigh="own"),
    "mse, next": ClosedForm(refit=False),
    "closed-form, own": ClosedForm(weigh="own"),
    "closed-form": ClosedForm(),
    "closed-form, free": ClosedForm(free=True),
    "closed-form, free, all rows": ClosedForm(free=True, all_rows=True),
    "reconstruct": Reconstruct(),
    "reconstruct, augmented": Reconstruct(augment="crop", steps=6400),
    "reconstruct, augmented, own": Reconstruct(augment="crop", steps=6400, weigh="own"),
    "auto": Auto(),
}


def cifar(name: str, seed: int, images: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Published network, calibration images drawn by the seed, test images and labels."""
    from cifar_resnet import MEAN, STD, resnet20, resnet56

    model = {"resnet20": resnet20, "resnet56": resnet56}[name]()
    model.load_state_dict(load_file(SHARED / "weights" / f"cifar10-{name}.safetensors"))
    data = np.load(SHARED / "data" / "cifar10-original-part.npz")

    def prepared(pixels: Any) -> Tensor:
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)

    order = torch.randperm(len(data["train_images"]), generator=torch.Generator().manual_seed(seed))[:images]
    train = prepared(data["train_images"][order.numpy()])
    return model.eval(), train, prepared(data["test_images"]), torch.from_numpy(data["test_labels"]).long()


def silu(seed: int, images: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """ResNet-20 with SiLU, fine-tuned here; recompressed images, every fifth one of the test."""
    from cifar_resnet import MEAN, STD, resnet20_silu

    from parspike.cli.images import open_images
    from parspike.cli.preprocess import Preprocessing
    from parspike.train import decode, load_trained

    def split(name: str) -> Arrays:
        source = open_images(str(SHARED / "data" / "cifar10-jpeg.zip"), Preprocessing(), split=name, batch_size=256)
        return decode(source, len(source), ROOT / "runs" / "cache" / f"cifar10-jpeg-{name}-all")

    def prepared(x: Tensor) -> Tensor:
        return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)

    train, test = split("train"), split("test")
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:images]
    x, y = test.take(torch.arange(0, len(test), 5))
    return (
        load_trained(ROOT / "runs" / "resnet20-silu", resnet20_silu()),
        prepared(train.take(drawn)[0]),
        prepared(x),
        y,
    )


def lite0(seed: int, images: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """EfficientNet-Lite0; photographs by the seed."""
    from parspike.cli.preprocess import Preprocessing

    shift, scale = 127 / 255, 128 / 255  # (x − 127)/128 for x in 0 … 255
    how = Preprocessing(size=256, crop=224, mean=(shift,) * 3, std=(scale,) * 3, interpolation="bicubic")
    return imagenet_networks.lite0(), *photographs(how, seed, images)


def mobilenet_v2(seed: int, images: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """MobileNetV2 with torchvision's ImageNet weights; photographs by the seed."""
    from parspike.cli.preprocess import Preprocessing

    how = Preprocessing(size=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    try:
        return imagenet_networks.mobilenet_v2(), *photographs(how, seed, images)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error


def photographs(how: Preprocessing, seed: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """500 ImageNet photographs, split in two by the seed: up to 250 to calibrate with; 250 to test and their labels."""
    from parspike.cli.images import open_images

    pairs = list(open_images(str(SHARED / "data" / "imagenet-500.zip"), preprocess=how, batch_size=50))
    x, y = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs if y is not None])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    fitted, tested = order[: min(images, 250)], order[250:]
    return x[fitted], x[tested], y[tested]


PHOTOGRAPHS = {"lite0": lite0, "mobilenet_v2": mobilenet_v2}  # images of 224², so batches must be smaller
LOADERS = {"resnet20": partial(cifar, "resnet20"), "resnet56": partial(cifar, "resnet56"), "silu": silu, **PHOTOGRAPHS}


@torch.no_grad()
def answers(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net(part).argmax(1) for part in x.split(50)])


def measure(options: argparse.Namespace) -> None:
    done = {json.dumps(figure["key"]) for figure in figures()}
    for seed in options.seeds:
        model, train, test, labels = LOADERS[options.network](seed, ALL if options.held_out else options.images)
        if options.held_out:
            train, test = train[: options.images], train[options.images :][:HELD_OUT]
        own = answers(model, test)
        if options.held_out:
            labels = own
        plan = parspike.plan(model, train[:2])
        batches = train.split(25 if options.network in PHOTOGRAPHS else 64)
        for label in options.recipes:
            for column in options.columns:
                key = [options.network + ", held out" * options.held_out, label, column, seed, len(train)]
                if json.dumps(key) in done:
                    continue
                T, code = CODES[column]
                start = time.perf_counter()
                snn = parspike.convert(plan, batches, T=T, code=code, recipe=RECIPES[label], seed=seed)
                spent = time.perf_counter() - start
                got = answers(snn, test)
                keep(FIGURES, key, snn, got, own, labels, seconds=spent)


def keep(
    path: Path, key: list[Any], snn: parspike.SNN, got: Tensor, own: Tensor, labels: Tensor, **seconds: float
) -> None:
    """Write a figure as a line of a file, and print it. got, own: answers of the spiking network and of the network."""
    figure = {
        "key": key, **seconds, "images": len(labels),
        "accuracy": float((got == labels).float().mean()) * 100,
        "agreement": float((got == own).float().mean()) * 100,
        "network": float((own == labels).float().mean()) * 100,
        "recipe": snn.provenance["recipe"], "search": snn.provenance.get("search", {}),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }  # fmt: skip
    with path.open("a") as stream:
        stream.write(json.dumps(figure, ensure_ascii=False) + "\n")
    scores = f"accuracy {figure['accuracy']:.1f} agreement {figure['agreement']:.1f}"
    print(key, scores, f"{seconds['seconds']:.0f} s", flush=True)


def figures(path: Path = FIGURES) -> list[dict[str, Any]]:
    """The figures that a file holds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(network: str, before: str) -> str:
    """Markdown: a row a recipe, a column a code; mean over seeds ± their standard deviation; agreement in brackets.

    before: the table as it was, whose rows stay where there are no figures for them.
    """
    rows = [f for f in figures() if f["key"][0] == network]
    if not rows:
        return before.rstrip("\n")
    columns = list(CODES)
    own = sorted({round(f["network"], 1) for f in rows})
    lines = [
        f"{network}: the network itself {' / '.join(map(str, own))} %. Top-1 accuracy on {rows[0]['images']} test "
        "images (agreement with the network), mean ± standard deviation over seeds; every activation converted.",
        "", "| recipe | calibration images | seeds | " + " | ".join(columns) + " | seconds a conversion |",
        "|---|---|---|" + "---|" * (len(columns) + 1),
    ]  # fmt: skip
    known = dict.fromkeys((f["key"][1], f["key"][4]) for f in rows)
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in before.splitlines()]
    for cells in split[4:]:
        if (cells[0], int(cells[1])) not in known:
            old = dict(zip(split[2], cells, strict=True))  # by name, since columns were added
            lines.append("| " + " | ".join([*cells[:3], *(old.get(c, "–") for c in columns), cells[-1]]) + " |")
    for label, count in known:
        mine = [f for f in rows if f["key"][1] == label and f["key"][4] == count]
        cells = []
        for column in columns:
            here = [f for f in mine if f["key"][2] == column]
            cells.append(spread(here))
        seconds = statistics.median(f["seconds"] for f in mine)
        seeds = len({f["key"][3] for f in mine})
        lines.append(f"| {label} | {count} | {seeds} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    return "\n".join(lines)


def spread(here: list[dict[str, Any]]) -> str:
    """A cell: the mean accuracy of some figures ± its standard deviation, and their mean agreement."""
    if not here:
        return "–"
    accuracy = [figure["accuracy"] for figure in here]
    deviation = f" ± {statistics.stdev(accuracy):.1f}" if len(accuracy) > 1 else ""
    agreement = statistics.mean(figure["agreement"] for figure in here)
    return f"{statistics.mean(accuracy):.1f}{deviation} ({agreement:.0f})"


def put(page: Path, mark: str, make: Callable[[str], str]) -> None:
    """Replace what stands between `<!-- MARK -->` and `<!-- end -->` in a page. make: from what stands there now."""
    start, end = f"<!-- {mark} -->\n", "<!-- end -->"
    before, rest = page.read_text().split(start, 1)
    place = rest.index(end)
    page.write_text(before + start + (make(rest[:place]).strip("\n") + "\n").lstrip("\n") + rest[place:])


def render(page: Path, mark: str, table: Callable[[str, str], str]) -> None:
    """Put tables between `<!-- MARK NETWORK -->` and `<!-- end -->`. table: from a network and what stands there."""
    for network in LOADERS:
        if f"<!-- {mark} {network} -->\n" in page.read_text():
            put(page, f"{mark} {network}", partial(table, network))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=LOADERS)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--columns", nargs="+", choices=CODES, default=list(CODES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--held-out", action="store_true", help="agreement on images of the calibration part")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, help="seconds of auto; 240 on one thread stand for its 120 on two")
    parser.add_argument("--render", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.budget:
        RECIPES["auto"] = Auto(budget=options.budget)
    if options.render:
        render(options.render, "few_steps", table)
    else:
        measure(options)


if __name__ == "__main__":
    main()
