"""The pictures of docs/gallery.md, of a network trained here on handwritten digits.

python benchmarks/gallery.py      # docs/gallery/*.svg, a minute
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

import parspike
from parspike.tables import drawn, new_figure

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "gallery"


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The network of docs/tutorials/convert.md, the first training images, and batches of test images."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), 0.005)
    for _ in range(6):
        for rows in torch.randperm(1437).split(64):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    tests = [(x[rows], y[rows]) for rows in torch.arange(1437, len(x)).split(64)]
    return model.eval(), x[:512], y[:512], tests


def keep(name: str, figure: Figure) -> None:
    (FOLDER / f"{name}.svg").write_bytes(drawn(figure, ".svg"))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    model, x, y, tests = network()
    batches = list(zip(x.split(64), y.split(64), strict=True))
    swept = parspike.sweep(model, batches, T=[1, 2, 4, 8], data=tests, recipe="closed-form")
    keep("sweep", swept.figure())
    snn = parspike.convert(model, x, T=8, recipe="closed-form")
    chip = parspike.convert(model, x, T=32, recipe="max", neuron=parspike.IF())
    sample = tests[0][0][:1]
    for name, draw in {
        "rates": lambda ax: snn.plot.rates(tests, ax=ax),
        "error": lambda ax: snn.plot.error(tests, model=model, ax=ax),
        "energy": lambda ax: snn.plot.energy(tests, ax=ax),
        "raster-parallel": lambda ax: snn.plot.raster(sample, "5", ax=ax),
        "raster-if": lambda ax: chip.plot.raster(sample, "5", ax=ax),
        "steps": lambda ax: chip.plot.accuracy(tests, model=model, ax=ax),
    }.items():
        figure = new_figure(6, 3)
        draw(figure.subplots())
        keep(name, figure)


if __name__ == "__main__":
    main()
