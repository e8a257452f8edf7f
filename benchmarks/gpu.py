"""What a machine with a GPU is asked for, in at most eight minutes: `make gpu`.

    python benchmarks/gpu.py --pack ../shared/data/cifar10-jpeg.zip cifar10-mosaics.zip     # before: 62 MB become 30
    python benchmarks/gpu.py --data cifar10-mosaics.zip --out gpu-results                   # there
    python benchmarks/gpu.py --out gpu-results --render docs/gpu.md                     # after
    python benchmarks/gpu.py --data cifar10-mosaics.zip --out /tmp/try --device cpu --steps 1   # one step of each part

Parts, each of which writes OUT/PART.json when it is done and is skipped where that file is there:

- tests: tests/test_device.py, tests/test_cuda.py
- speed-resnet18-single and so on: every engine beside the network, batch 8, 224², as `parspike bench speed` measures;
  SpikingJelly's spiking ResNet in the same run where it is installed
- train-resnet20, train-vgg16: QCFS with four levels on CIFAR-10 (recompressed images, see ../shared/data/README.md),
  the images on the device, bf16, channels-last, as many epochs as fit into the part's seconds
- convert-resnet20, convert-vgg16: what was trained, converted at T = 1, 2, 4, 8 and in the weighted code, on the test
  images

The data are packed as mosaics of 1,024 images, JPEG of quality 90 at full colour resolution, since what travels to a
lent machine is limited; that costs another 1.2 of 255 grey levels on average.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagenet_networks
import numpy as np
import torch
from few_steps import put
from torch import Tensor, nn

import parspike
from parspike.bench.speed import Speed, SpeedRow

ROOT = Path(__file__).resolve().parents[1]
SIDE, TILES = 32, 32
BATCH = 8
SPEED = ("resnet18", "lite0", "resnet50")
HALF = {"compiled": True, "precision": "bfloat16", "channels_last": True}
RUNS: dict[str, dict[str, Any]] = {
    "single": {"T": (4, 32, 256), "engines": ("count", "packed", "integer"), "others": True},
    "steps": {"T": (32,), "engines": ("count", "parallel", "serial", "serial-if")},
    # What is compiled costs the same at any T, and compiling takes a minute.
    "compiled": {"T": (32,), "engines": ("compiled",), "compiled": True},
    "bfloat16": {"T": (32,), "engines": ("count", "compiled", "integer"), **HALF},
    "bfloat16-128": {"T": (32,), "engines": ("integer",), "batch": 128, **HALF},
}
"""Runs whose rows are compared with each other, by name."""
TRAINED = {"resnet20": ("cifar10-resnet20", 60.0), "vgg16": ("cifar10-vgg16", 150.0)}
"""The recipe of a network, and the seconds that its training may take."""


def pack(source: Path, target: Path) -> None:
    """All images of a .zip of split/CLASS/name.jpg, as mosaics split/CLASS-number.jpg and the numbers of images."""
    from PIL import Image

    groups: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    with zipfile.ZipFile(source) as images, zipfile.ZipFile(target, "w") as out:
        for name in sorted(n for n in images.namelist() if n.endswith(".jpg")):
            split, label = name.split("/")[-3:-1]
            groups.setdefault(f"{split}/{label}", []).append(name)
        for group, names in groups.items():
            for number, start in enumerate(range(0, len(names), TILES * TILES)):
                part = names[start : start + TILES * TILES]
                mosaic = Image.new("RGB", (SIDE * TILES, SIDE * TILES))
                for place, name in enumerate(part):
                    with Image.open(io.BytesIO(images.read(name))) as one:
                        mosaic.paste(one.convert("RGB"), (place % TILES * SIDE, place // TILES * SIDE))
                packed = io.BytesIO()
                mosaic.save(packed, "JPEG", quality=90, subsampling=0)
                counts[f"{group}-{number}"] = len(part)
                out.writestr(f"{group}-{number}.jpg", packed.getvalue())
        out.writestr("counts.json", json.dumps(counts))
    print(f"{target}: {sum(counts.values()):,} images, {target.stat().st_size / 1e6:.1f} MB")


def unpacked(path: Path, split: str, device: str) -> Any:
    """The images of a split as `Arrays` on a device."""
    from PIL import Image

    from parspike.train import Arrays

    parts, labels = [], []
    with zipfile.ZipFile(path) as packed:
        counts = json.loads(packed.read("counts.json"))
        classes = sorted({name.split("/")[1].rpartition("-")[0] for name in counts})
        for name, count in counts.items():
            if name.startswith(f"{split}/"):
                with Image.open(io.BytesIO(packed.read(f"{name}.jpg"))) as mosaic:
                    grid = np.asarray(mosaic).reshape(TILES, SIDE, TILES, SIDE, 3).transpose(0, 2, 4, 1, 3)
                parts.append(torch.from_numpy(grid.reshape(-1, 3, SIDE, SIDE)[:count].copy()))
                labels += [classes.index(name.split("/")[1].rpartition("-")[0])] * count
    made = Arrays.of(torch.cat(parts), torch.tensor(labels))
    return Arrays(made.images.to(device), made.labels.to(device), made.digest)


def tests(options: argparse.Namespace) -> dict[str, Any]:
    chosen = ["tests/test_device.py", "tests/test_cuda.py", *(["--collect-only"] if options.steps else [])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, "-q", "-rf", "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    return {"exit": done.returncode, "said": done.stdout.strip().splitlines()[-1:], "failed": failed}


def speed(name: str, run: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every engine beside the network, of which only what `run` names is measured."""
    few, device, how = bool(options.steps), options.device, dict(RUNS[run])
    batch = how.pop("batch", BATCH)
    model = getattr(imagenet_networks, name)().to(device)
    x = torch.randn(2 if few else batch, 3, 64 if few else 224, 64 if few else 224, device=device)
    if how.pop("others", False):
        how["beside"] = spikingjelly(name, device) | (onnxruntime(model, x) if device == "cpu" else {})
    if few:
        how |= {"T": how["T"][:1], "engines": how["engines"][:1], "compiled": False}
    rounds = 1 if few else options.rounds
    return {"speed": parspike.speed(model, x, rounds=rounds, cpu_time=device == "cpu", **how).to_dict()}


def onnxruntime(model: nn.Module, x: Tensor) -> dict[tuple[str, int], Callable[[Tensor], object]]:
    """onnxruntime's run of the network in whole numbers, with weights of 6 bits, for which its sums suffice: it has one
    kernel for all up to 8. Empty where it is not installed."""
    try:
        engine = importlib.import_module("onnxruntime")
    except ImportError as error:
        print(f"onnxruntime: left out ({error})")
        return {}
    snn = parspike.convert(model, x, T=32, recipe="max")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        parspike.export(snn, file, example=x[:2], weights=6)
        how = engine.SessionOptions()
        how.intra_op_num_threads = torch.get_num_threads()
        session = engine.InferenceSession(str(file), how, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return {("onnxruntime, int8", 0): lambda y: session.run(None, {given.name: y.numpy()})}


def spikingjelly(name: str, device: str) -> dict[tuple[str, int], Callable[[Tensor], object]]:
    """SpikingJelly's own spiking ResNet with IF neurons over 32 steps: all steps layer by layer (m), and step by step
    (s). Empty where it is not installed or has no such network."""
    try:
        functional = importlib.import_module("spikingjelly.activation_based.functional")
        neuron = importlib.import_module("spikingjelly.activation_based.neuron")
        networks = importlib.import_module("spikingjelly.activation_based.model.spiking_resnet")
        make = getattr(networks, f"spiking_{name}")
    except (ImportError, AttributeError) as error:
        print(f"SpikingJelly, {name}: left out ({error})")
        return {}
    T, calls = 32, {}
    for mode in ("m", "s"):
        net = make(spiking_neuron=neuron.IFNode).eval().to(device)
        functional.set_step_mode(net, mode)

        def run(x: Tensor, net: nn.Module = net, mode: str = mode) -> Tensor:
            y = net(x.expand(T, *x.shape)).mean(0) if mode == "m" else sum(net(x) for _ in range(T)) / T
            functional.reset_net(net)
            return y  # pyright: ignore[reportReturnType]

        calls[f"SpikingJelly, {mode}", T] = run
    return calls


def train(name: str, options: argparse.Namespace) -> dict[str, Any]:
    from parspike.train import Devices, fit, load_recipe, make_network

    recipe_name, budget = TRAINED[name]
    data = [unpacked(options.data, split, options.device) for split in ("train", "test")]
    recipe = load_recipe(recipe_name).replace({
        "optimiser.batch_size": 512 if not options.steps else 8, "optimiser.lr": 0.2, "optimiser.warmup": 1.0,
        "augment.policy": "", "precision": "32-true" if options.steps else "bf16-mixed", "optimiser.epochs": 1,
    })  # fmt: skip
    devices = Devices("cpu" if options.device == "cpu" else "cuda", 1)

    def run(epochs: int, rows: int, folder: Path) -> Any:
        made: Any = make_network(recipe)
        made = made.to(memory_format=torch.channels_last)
        chosen = recipe.replace({"optimiser.epochs": epochs})
        step = max(1, len(data[0]) // rows)
        part = type(data[0])(data[0].images[::step], data[0].labels[::step], f"{data[0].digest}, every {step}")
        test = data[1] if not options.steps else type(data[1])(data[1].images[::999], data[1].labels[::999], "few")
        return fit(chosen, made, part, test, folder, devices=devices, resume=True, save_every=1e9), chosen

    rows, folder = (8 if options.steps else len(data[0])), options.out / f"trained-{name}"
    epochs = 1
    if not options.steps:
        # The second of two epochs says how long one takes once everything is warm.
        trial = run(2, rows, options.out / f"trial-{name}")[0]
        epochs = max(3, int(budget / (trial.seconds / 2)))
    result, chosen = run(epochs, rows, folder)
    return {
        "recipe": chosen.to_json(), "epochs": epochs, "seconds": result.seconds, "accuracy": 100 * result.accuracy,
        "images": rows,
    }  # fmt: skip


@torch.no_grad()
def convert(name: str, options: argparse.Namespace) -> dict[str, Any]:
    from parspike.train import load_trained

    model = load_trained(options.out / f"trained-{name}").to(options.device)
    recipe = json.loads((options.out / f"trained-{name}" / "weights.json").read_text())["recipe"]["data"]
    mean, std = (torch.tensor(recipe[key]).view(-1, 1, 1).to(options.device) for key in ("mean", "std"))

    def prepared(split: str, step: int, most: int) -> tuple[Tensor, Tensor]:
        data = unpacked(options.data, split, options.device)
        x = (data.images[::step][:most].float() / 255 - mean) / std
        return x, data.labels[::step][:most]

    few = bool(options.steps)
    calibration, _ = prepared("train", 48, 16 if few else 1024)
    x, y = prepared("test", 1, 16 if few else 10_000)

    def accuracy(net: nn.Module) -> float:
        return 100 * float(torch.cat([net(part).argmax(1) for part in x.split(500)]).eq(y).float().mean())

    plan = parspike.plan(model, x[:2])
    rows: dict[str, Any] = {}
    for T, code in ((1, "sorted"), (2, "sorted"), (4, "sorted"), (8, "sorted"), (2, "weighted"), (3, "weighted")):
        start = time.perf_counter()
        how = "max" if few else parspike.Auto(budget=20)
        snn = parspike.convert(plan, calibration.split(64), T=T, code=code, recipe=how)  # pyright: ignore[reportArgumentType]
        spent = time.perf_counter() - start
        rows[f"{code}, {T}"] = {"accuracy": accuracy(snn), "seconds": spent}
    return {"network": accuracy(model), "images": len(x), "rows": rows}


def parts(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every part by name, the cheap ones first."""
    yield "tests", lambda: tests(options)
    for name in SPEED:
        for run in RUNS:
            yield f"speed-{name}-{run}", lambda name=name, run=run: speed(name, run, options)
    for name in TRAINED:
        yield f"train-{name}", lambda name=name: train(name, options)
        yield f"convert-{name}", lambda name=name: convert(name, options)


def rendered(out: Path) -> str:
    """The tables of what was run; what no GPU has run is named as not run."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    lines = [f"Machine: {next(iter(found.values()))['machine']}." if found else "No GPU has run this.", ""]
    if "tests" in found:
        lines += [f"Tests on the GPU: {' '.join(found['tests']['said'])}", ""]
    for name in SPEED:
        for run in RUNS:
            if made := found.get(f"speed-{name}-{run}", {}).get("speed"):
                rows = tuple(SpeedRow(**row) for row in made["rows"])
                told = {**made, "rows": rows, "left_out": tuple(made["left_out"]), "shape": tuple(made["shape"])}
                lines += [f"**{name}**, {run}", "", Speed(**told).markdown(), ""]
    lines += ["| network | epochs | seconds | accuracy | T = 1 | T = 2 | T = 4 | T = 8 | weighted, 2 | weighted, 3 |",
              "|---|" + "---|" * 9]  # fmt: skip
    for name in TRAINED:
        trained, made = found.get(f"train-{name}"), found.get(f"convert-{name}")
        cells = ["not run"] * 3 if trained is None else [
            str(trained["epochs"]), f"{trained['seconds']:.0f}", f"{trained['accuracy']:.1f}"]  # fmt: skip
        columns = ("sorted, 1", "sorted, 2", "sorted, 4", "sorted, 8", "weighted, 2", "weighted, 3")
        cells += [f"{made['rows'][c]['accuracy']:.1f}" if made else "not run" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", nargs=2, type=Path, metavar=("ZIP", "OUT"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=0, help="with 1: the smallest form of every part, to try it")
    parser.add_argument("--parts", nargs="+")
    parser.add_argument("--rounds", type=int, default=9, help="of the speed parts")
    parser.add_argument("--render", type=Path, metavar="PAGE")
    options = parser.parse_args()
    if options.pack:
        pack(*options.pack)
        return
    if options.render:
        put(options.render, "gpu", lambda before: rendered(options.out))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU: this is for a machine with one (--device cpu --steps 1 tries it here)")
    options.out.mkdir(parents=True, exist_ok=True)
    known, failed = dict(parts(options)), []
    for name in options.parts or known:
        target = options.out / f"{name}.json"
        if target.exists():
            print(f"{name}: done before")
            continue
        if name.startswith(("train", "convert")) and options.data is None:
            print(f"{name}: left out, it needs --data")
            continue
        start = time.perf_counter()
        try:
            found = known[name]()
        except Exception as error:  # noqa: BLE001 (the other parts go on: a lent machine is not lent twice)
            print(f"{name}: FAILED {type(error).__name__}: {error}", flush=True)
            failed.append(name)
            continue
        machine = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
        found |= {"machine": f"{machine}, torch {torch.__version__}", "part_seconds": time.perf_counter() - start}
        partial = target.with_suffix(".part")
        partial.write_text(json.dumps(found, indent=1))
        partial.replace(target)
        print(f"{name}: {found['part_seconds']:.0f} s", *found.get("said", ()), flush=True)
        failed += [name] if found.get("exit") else []
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
