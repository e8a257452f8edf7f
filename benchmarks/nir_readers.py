"""What other programs make of a NIR file of ours: the tables of docs/nir.md.

    python benchmarks/nir_readers.py write FOLDER            # with parspike: files, images, and its own answers
    PYTHON_WITH_READERS benchmarks/nir_readers.py read FOLDER   # with nirtorch, norse, snntorch, sinabs (no parspike)
    python benchmarks/nir_readers.py resnet50                # time and memory of a large export

`write` takes the ResNet-20 of ../shared, converted for T = 8, and a small network of the digits of scikit-learn. `read`
loads each file as each program's own documentation says, gives it the same image at every step, and compares the spikes
of every layer that it can look into, and the class.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
T, IMAGES, RECIPE = 8, 8, "closed-form"


def write(folder: Path) -> None:
    """The files, the images, and what parspike computes."""
    sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]
    import few_steps
    from sklearn.datasets import load_digits

    import parspike

    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 16
    y = torch.from_numpy(digits.target)
    torch.manual_seed(0)
    small = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AvgPool2d(2), torch.nn.Conv2d(8, 16, 3),
        torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(small.parameters(), 3e-3)
    for _ in range(150):
        at = torch.randperm(1200)[:128]
        loss = torch.nn.functional.cross_entropy(small(x[at]), y[at])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model, train, test, _ = few_steps.LOADERS["resnet20"](0, 256)
    networks = {"digits": (small.eval(), x[:256], x[1200:]), "resnet20": (model, train, test)}
    kinds = {
        "soft": parspike.IF(),
        "hard": parspike.IF(reset="zero"),
        "hard, v(0) = 0": parspike.IF(reset="zero", v_init="zero"),
        "lif": parspike.LIF(0.9, reset="zero", v_init="zero"),
    }
    for network, (made, calibration, images) in networks.items():
        if not torch.is_tensor(images):
            images = torch.cat([batch[0] if isinstance(batch, (tuple, list)) else batch for batch in images])
        chosen = images[:IMAGES]
        with torch.no_grad():
            answers = made(chosen).argmax(1).numpy()
        for kind, neuron in kinds.items():
            name = f"{network}-{kind.replace(', v(0) = 0', '-from-0')}"
            dt = 1e-4 if kind == "lif" else 1.0
            snn = parspike.convert(made, calibration, T=T, neuron=neuron, recipe=RECIPE)
            result = parspike.export(
                snn, folder / f"{name}.nir", example=chosen, force=True, dt=dt, as_convolutions=True
            )
            run = snn.run(chosen, record=True)
            counts = {
                row.layer: count.numpy() for row, count in zip(result.file.layers, run.counts.values(), strict=True)
            }
            with (folder / f"{name}.npz").open("wb") as stream:
                np.savez(stream, x=chosen.numpy(), logits=run.logits.numpy(), answers=answers,
                         **{f"layer {number}": count for number, count in enumerate(counts.values())})  # fmt: skip
            print(f"{name}: {result}\n")


def _norse(graph: Any, x: torch.Tensor, dt: float) -> torch.Tensor:
    import norse.torch as norse

    return _stepped(norse.from_nir(graph, dt=dt, ignore_warnings=True), x)


def _snntorch(graph: Any, x: torch.Tensor, dt: float) -> torch.Tensor:
    from snntorch.import_nir import import_from_nir

    return _stepped(import_from_nir(graph), x)


def _sinabs(graph: Any, x: torch.Tensor, dt: float) -> torch.Tensor:
    import sinabs.nir

    module = sinabs.nir.from_nir(graph, batch_size=len(x))
    over = x[:, None].expand(-1, T, *x.shape[1:]).flatten(0, 1)
    made = module(over)
    made = made[0] if isinstance(made, tuple) else made
    return made.unflatten(0, (len(x), T)).mean(1)


def _nirtorch(graph: Any, x: torch.Tensor, dt: float) -> torch.Tensor:
    """nirtorch's interpreter, with NIR's equations for the nodes that it leaves to its caller, image by image: its
    Flatten is torch's and would flatten the batch. Its Affine forgets the bias, so that is given too."""
    import nir
    import nirtorch

    class Neurons(torch.nn.Module):
        def __init__(self, node: Any) -> None:
            super().__init__()
            self.tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in vars(node).items()
                            if isinstance(v, np.ndarray)}  # fmt: skip

        def forward(self, z: torch.Tensor, state: Any = None) -> Any:
            p = self.tensors
            v = torch.zeros_like(z) if state is None else state
            share = dt / p["tau"] if "tau" in p else None
            v = v + dt * p["r"] * z if share is None else v + share * (p["v_leak"] - v + p["r"] * z)
            spike = v > p["v_threshold"]
            return spike.float(), torch.where(spike, p.get("v_reset", torch.zeros(())), v)

    class Scale(torch.nn.Module):
        def __init__(self, node: Any) -> None:
            super().__init__()
            self.scale = torch.from_numpy(node.scale)

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z * self.scale

    def affine(node: Any) -> torch.nn.Module:
        made = torch.nn.Linear(node.weight.shape[1], node.weight.shape[0])
        made.weight.data, made.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
        return made

    nodes = {nir.IF: Neurons, nir.LIF: Neurons, nir.Scale: Scale, nir.Affine: affine}
    return torch.stack([_stepped(nirtorch.nir_to_torch(graph, nodes), one) for one in x])


def _stepped(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The mean output of T steps of a module that takes and gives a state."""
    state, total = None, 0.0
    for _ in range(T):
        made = module(x, state)
        value, state = made if isinstance(made, tuple) else (made, None)
        total = total + value
    return total / T


READERS: dict[str, Callable[[Any, torch.Tensor, float], torch.Tensor]] = {
    "nirtorch": _nirtorch, "norse": _norse, "snntorch": _snntorch, "sinabs": _sinabs,
}  # fmt: skip


def read(folder: Path) -> None:
    """Markdown: a row a file and a column a reader."""
    import nir

    warnings.simplefilter("ignore")
    print("| file | " + " | ".join(READERS) + " |\n|---|" + "---|" * len(READERS))
    for path in sorted(folder.glob("*.nir")):
        stored = np.load(path.with_suffix(".npz"))
        x, wanted, answers = (torch.from_numpy(stored[key]) for key in ("x", "logits", "answers"))
        cells = []
        for reader in READERS.values():
            try:
                graph = nir.read(str(path))
                dt = float(graph.metadata["dt"])
                with torch.no_grad():
                    made = reader(graph, x, dt).reshape(wanted.shape)
                error = float((made - wanted).norm() / wanted.norm())
                same = int((made.argmax(1) == answers).sum())
                cells.append(f"{100 * error:.2g} %, {same} of {len(x)}")
            except Exception as error:  # noqa: BLE001 (what a reader raises is the result)
                cells.append(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:90]}")
        own = int((wanted.argmax(1) == answers).sum())
        print(f"| {path.stem} ({own} of {len(x)} here) | " + " | ".join(cells) + " |", flush=True)


def resnet50() -> None:
    """Seconds and memory of the export of ResNet-50 at 224², its max-pool an average pool."""
    import torchvision_operators

    import parspike
    from parspike import Thresholds

    torchvision_operators.declare()
    from torchvision.models import resnet50 as network

    torch.manual_seed(0)
    model = network().eval()
    x = torch.randn(2, 3, 224, 224)
    snn = parspike.convert(model, x, T=T, neuron=parspike.IF(), recipe=Thresholds())
    try:
        parspike.export(snn, "resnet50.nir", example=x[:1], force=True)
    except parspike.errors.UnsupportedError as error:
        print(error)
    model.maxpool = torch.nn.AvgPool2d(3, 2, 1)
    snn = parspike.convert(model, x, T=T, neuron=parspike.IF(), recipe=Thresholds())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in snn.tensors().values())
    snn.save("resnet50.parspike", force=True)
    print(f"weights {weights / 1e6:.0f} MB")


def export(source: str) -> None:
    """Print time, peak memory above what the loaded network takes, and the result."""
    import parspike

    snn = parspike.load(source)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in snn.tensors().values())
    x = torch.randn(1, 3, 224, 224)
    before, start = _resident(), time.perf_counter()
    result = parspike.export(snn, "resnet50.nir", example=x, force=True)
    spent, peak = time.perf_counter() - start, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = {"seconds": round(spent, 1), "weights_mb": weights / 1e6, "before_mb": before / 1e6, "peak_mb": peak / 1e6}
    print(json.dumps(answer))
    print(result)


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "read", "resnet50", "export"))
    parser.add_argument("where", nargs="?", default="/tmp/nir-readers")
    options = parser.parse_args()
    {"write": lambda: write(Path(options.where)), "read": lambda: read(Path(options.where)), "resnet50": resnet50,
     "export": lambda: export(options.where)}[options.what]()  # fmt: skip


if __name__ == "__main__":
    main()
