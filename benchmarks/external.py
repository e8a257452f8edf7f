"""Other converters, each by its own rules, on the network and images of our figures: "Other tools" in docs/bench.md.

    python -m venv /tmp/ext                                  # outside the tree: none of this is needed by parspike
    /tmp/ext/bin/pip install -c constraints.txt torch==2.13.0 -e . torchvision scikit-learn scipy h5py tqdm loguru \
        matplotlib requests packaging pbr
    /tmp/ext/bin/pip install --no-deps spikingjelly==2.0.0 sinabs==3.1.3 nir==1.0.4 "nirtorch<2"
    /tmp/ext/bin/python benchmarks/external.py spikingjelly --network example     # first: is the tool used rightly?
    /tmp/ext/bin/python benchmarks/external.py spikingjelly --T 4 16 32           # then the ResNet-20
    /tmp/ext/bin/python benchmarks/external.py sinabs --T 64 --images 50
    /tmp/ext/bin/python benchmarks/external.py --render docs/bench.md

One JSON line a figure goes to benchmarks/external.jsonl; what stands there already is not run again. A run to the
largest T gives the figures of all smaller ones, since both tools add up the output step by step; `run_seconds` is the
time of the whole run, `run_steps` its T, `seconds` the time of the conversion.

What had to be changed in the published ResNet-20, and why (its outputs stay the same, which is checked on every run):
- A module `nn.ReLU` for each use instead of `F.relu`. SpikingJelly refuses the function; sinabs passes it over silently
  and the network stays as it was. One module used twice would in sinabs be one neuron with two inputs.
- The shortcut that takes every second pixel and adds empty channels is a 1×1 convolution of zeros and ones, since
  SpikingJelly refuses slicing and padding in the traced graph.
- Batch norm is folded into the convolutions: SpikingJelly does so itself, and sinabs' `bias_rescaling` reaches the
  biases of convolutions and linear layers only.

Rules of the tools that decide what comes out:
- SpikingJelly: normalised image in every step, outputs summed, `reset_net` before every batch. `RateCodingRecipe`
  leaves v(0) = 0 and takes a layer's threshold from a moving average over batches; its ImageNet example has thresholds
  by channel, v(0) = θ/2, and a read-out that starts later ("delayed": `estimate_delay_start`).
  `LocalThresholdBalancingRecipe` raises thresholds from zero batch by batch, so it needs many batches: its example has
  about 390, and 1,024 images in batches of 64 are 16. "25 passes" shows it the same images 25 times.
- sinabs: no calibration and one threshold, 1, for all layers; a neuron may send several spikes in a step
  (`MultiSpike`). Its page on weight scaling advises to make the first layer 2 to 10 times larger. In a network with
  biases this keeps the function only when all later biases grow as much, which is what `bias_rescaling` is for.
  `normalize_weights` of the same page is for a plain chain without biases; it would change what a ResNet computes.
  `from_model` bounds the potential from below at −1 (`min_v_mem`), so charge below is lost; None takes the bound off.
  States go on from call to call: `reset_states` before every batch.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import few_steps
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

FIGURES = few_steps.ROOT / "benchmarks" / "external.jsonl"
BATCH = {"spikingjelly": 50, "sinabs": 10}  # the fastest on a CPU: sinabs holds all steps of a batch at once


class Block(nn.Module):
    """A block of few_steps' ResNet, of modules only."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = fuse_conv_bn_eval(block.conv1, block.bn1), fuse_conv_bn_eval(block.conv2, block.bn2)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if block.new:
            before, after = block.conv1.in_channels, block.conv1.out_channels
            self.shortcut = nn.Conv2d(before, after, 1, 2, bias=False)
            with torch.no_grad():
                self.shortcut.weight.zero_()[block.new : block.new + before, :, 0, 0] = torch.eye(before)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.conv2(self.relu1(self.conv1(x))) + self.shortcut(x))


def of_modules(net: Any) -> nn.Sequential:
    """The ResNet of examples/cifar_resnet.py as modules that both tools take; same outputs."""
    blocks = [Block(block) for stage in (net.layer1, net.layer2, net.layer3) for block in stage]
    stem = [fuse_conv_bn_eval(net.conv1, net.bn1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), deepcopy(net.linear)]
    return nn.Sequential(*stem, *blocks, *head).eval()


def resnet20(tool: str, images: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    net, train, test, labels = few_steps.cifar("resnet20", 0, 1024)
    model = of_modules(net)
    with torch.no_grad():
        torch.testing.assert_close(model(test[:8]), net(test[:8]), atol=1e-3, rtol=1e-3)
    return model, train, test[:images], labels[:images]


@torch.enable_grad()  # measure has none
def example(tool: str, images: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The network of the tool's own MNIST example, trained here on scikit-learn's digits enlarged to 28×28."""
    digits: Any = importlib.import_module("sklearn.datasets").load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 16
    x, y = nn.functional.interpolate(x, (28, 28), mode="bilinear"), torch.from_numpy(digits.target)
    train, test = torch.arange(1297), torch.arange(1297, len(x))  # the last 500 are of other writers
    torch.manual_seed(0)
    if tool == "spikingjelly":
        model = importlib.import_module("spikingjelly.activation_based.ann2snn.sample_models.mnist_cnn").CNN()
    else:  # docs/tutorials/weight_transfer_mnist.ipynb
        layers = [nn.Conv2d(1, 20, 5, bias=False), nn.Conv2d(20, 32, 5, bias=False), nn.Conv2d(32, 128, 3, bias=False)]
        stages = [part for layer in layers for part in (layer, nn.ReLU(), nn.AvgPool2d(2))]
        head = [nn.Flatten(), nn.Linear(128, 500, bias=False), nn.ReLU(), nn.Linear(500, 10, bias=False)]
        model = nn.Sequential(*stages, *head)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(12):
        for chosen in train[torch.randperm(len(train))].split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimiser.step()
    return model.eval(), x[train], x[test[:images]], y[test[:images]]


NETWORKS = {"example": example, "resnet20": resnet20}


@dataclass(frozen=True)
class Run:
    """A converted network: `steps` gives what it puts out in each of T steps, [T, B, classes], for images [B, ...]."""

    steps: Callable[[Tensor, int], Tensor]
    delay: Callable[[int], int] | None = None
    """Steps, of T, that a later read-out leaves out; its figures stand beside those of all steps."""


def jelly(recipe: str, passes: int = 1, later: bool = False, **options: Any) -> Callable[..., Run]:
    def convert(model: nn.Module, calibration: Tensor) -> Run:
        ann2snn = importlib.import_module("spikingjelly.activation_based.ann2snn")
        functional = importlib.import_module("spikingjelly.activation_based.functional")
        batches = [part for _ in range(passes) for part in calibration.split(64)]
        snn = ann2snn.FXConverter(getattr(ann2snn, recipe)(dataloader=batches, **options)).convert(deepcopy(model))

        def steps(x: Tensor, T: int) -> Tensor:
            functional.reset_net(snn)
            return torch.stack([snn(x) for _ in range(T)])

        return Run(steps, (lambda T: ann2snn.estimate_delay_start(snn, batches, "cpu", T)) if later else None)

    return convert


def synsense(larger: float = 1.0, spikes: bool = False, **options: Any) -> Callable[..., Run]:
    """larger: factor of the first layer. spikes: each pixel is a spike with its value as the probability."""

    def convert(model: nn.Module, calibration: Tensor) -> Run:
        from_model = importlib.import_module("sinabs.from_torch").from_model
        reset = importlib.import_module("sinabs").reset_states
        model = deepcopy(model)
        if larger != 1:
            first: Any = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
            with torch.no_grad():  # from_model makes the bias larger with the others
                first.weight *= larger
        made: dict[int, Any] = {}  # its neurons are built for a number of time-steps

        def steps(x: Tensor, T: int) -> Tensor:
            if T not in made:
                made[T] = from_model(model, num_timesteps=T, bias_rescaling=1 / larger, **options).eval()
            reset(made[T])
            frames = x.repeat_interleave(T, 0)  # sinabs' order: all steps of an image, then the next image
            frames = (torch.rand_like(frames) < frames).float() if spikes else frames
            return made[T](frames).unflatten(0, (len(x), T)).transpose(0, 1)

        return Run(steps)

    return convert


CHANNELS = {"mode": "99.9%", "channel_wise": True, "pre_spike_maxpool": True, "half_threshold": True}
BALANCED = "LocalThresholdBalancingRecipe"
MODES: dict[str, dict[str, Callable[..., Run]]] = {
    "spikingjelly": {
        "rate coding, max": jelly("RateCodingRecipe", mode="max"),
        "rate coding, 99.9 %": jelly("RateCodingRecipe", mode="99.9%"),
        "rate coding, 99.9 %, by channel, θ/2": jelly("RateCodingRecipe", later=True, **CHANNELS),
        "balanced thresholds": jelly(BALANCED),
        "balanced thresholds, 25 passes": jelly(BALANCED, passes=25, later=True),
    },
    "sinabs": {
        "as it is": synsense(),
        "no lower bound": synsense(min_v_mem=None),
        "first layer × 2": synsense(larger=2),
        "first layer × 10": synsense(larger=10),
        "as it is, spikes in and out": synsense(spikes=True, add_spiking_output=True),
    },
}


@torch.no_grad()
def measure(options: argparse.Namespace) -> None:
    tool = options.tool
    model, calibration, test, labels = NETWORKS[options.network](tool, options.images)
    own = few_steps.answers(model, test)
    done = {json.dumps(figure["key"]) for figure in few_steps.figures(FIGURES)}
    for mode in options.modes or MODES[tool]:
        if "spikes in" in mode and options.network != "example":
            continue  # a normalised image has negative pixels, which are no probabilities
        keys = {T: [options.network, tool, mode, T, len(calibration), len(test)] for T in sorted(options.T)}
        missing = [T for T, key in keys.items() if json.dumps(key) not in done]
        if not missing:
            continue
        torch.manual_seed(0)
        start = time.perf_counter()
        run = MODES[tool][mode](model, calibration)
        seconds, start = time.perf_counter() - start, time.perf_counter()
        out = torch.cat([run.steps(part, missing[-1]) for part in test.split(BATCH[tool])], 1)
        spent = time.perf_counter() - start
        for T in missing:
            readouts = {mode: 0} if run.delay is None else {mode: 0, f"{mode}, delayed": run.delay(T)}
            lines = ""
            for label, skipped in readouts.items():
                got = out[skipped:T].sum(0).argmax(1)
                figure = {
                    "key": [*keys[T][:2], label, *keys[T][3:]],
                    "version": importlib.metadata.version(tool), "skipped": skipped,
                    "accuracy": float((got == labels).float().mean()) * 100,
                    "agreement": float((got == own).float().mean()) * 100,
                    "network": float((own == labels).float().mean()) * 100,
                    "seconds": seconds, "run_seconds": spent, "run_steps": missing[-1], "images": len(test),
                    "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
                }  # fmt: skip
                lines += json.dumps(figure, ensure_ascii=False) + "\n"
                print(figure["key"], f"accuracy {figure['accuracy']:.1f} of {figure['network']:.1f}", flush=True)
            with FIGURES.open("a") as stream:  # both read-outs at once, so that a run which was stopped goes on rightly
                stream.write(lines)


def table(network: str) -> str:
    """Markdown: a row a mode; a column a T and, where fewer images than usual were run, their number."""
    rows = [figure for figure in few_steps.figures(FIGURES) if figure["key"][0] == network]
    most = max(figure["images"] for figure in rows)
    full = {figure["key"][3] for figure in rows if figure["images"] == most}
    columns = [(T, most) for T in sorted(full)]
    columns += sorted({(f["key"][3], f["images"]) for f in rows if f["images"] < most and f["key"][3] not in full})
    heads = [f"T={T}" if images == most else f"T={T}, first {images} images" for T, images in columns]
    own = {figure["key"][1]: f"{figure['network']:.1f}" for figure in rows if figure["images"] == most}
    itself = ", ".join(f"{own[tool]} % ({tool})" for tool in MODES if tool in own)
    lines = [
        f"**{network}**: the network itself {itself}. Top-1 accuracy on {most} test images "
        f"(agreement with the network); {rows[0]['key'][4]} calibration images.",
        "", "| tool | mode | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads),
    ]  # fmt: skip
    versions = {figure["key"][1]: figure["version"] for figure in rows}
    for tool, known in MODES.items():
        for label in (name for mode in known for name in (mode, f"{mode}, delayed")):
            mine = [figure for figure in rows if figure["key"][1:3] == [tool, label]]
            cells = [[f for f in mine if (f["key"][3], f["images"]) == column] for column in columns]
            if mine:
                filled = " | ".join(map(few_steps.spread, cells))
                lines.append(f"| {tool} {versions[tool]} | {label} | {filled} |")
    return "\n".join(lines)


def render(page: Path) -> None:
    """Put the tables between `<!-- external -->` and `<!-- end -->`."""
    few_steps.put(page, "external", lambda before: "\n\n".join(table(network) for network in NETWORKS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=MODES, nargs="?")
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--modes", nargs="+")
    parser.add_argument("--T", nargs="+", type=int, default=[4, 16, 32])
    parser.add_argument("--images", type=int, default=761)
    parser.add_argument("--render", type=Path)
    options = parser.parse_args()
    if options.render:
        render(options.render)
    elif options.tool is None:
        parser.error(f"which tool? {', '.join(MODES)}")
    elif unknown := set(options.modes or []) - set(MODES[options.tool]):
        parser.error(f"{options.tool} has no mode {sorted(unknown)}; its modes: {list(MODES[options.tool])}")
    else:
        measure(options)


if __name__ == "__main__":
    main()
