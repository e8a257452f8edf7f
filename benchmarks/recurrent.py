"""LSTM and GRU networks that read handwritten digits row by row, converted by the default: a table of docs/results.md.

    python benchmarks/recurrent.py                    # three seeds, a quarter of an hour on one thread

Networks of 48 units are trained here on four fifths of scikit-learn's digits (8 steps of 8 values), for 25 epochs.
512 of the training images, without labels, calibrate; the other fifth of the digits is what is counted. Cells: accuracy
in %, in brackets the agreement with the network, means over the seeds with the largest distance from them.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import parspike
from parspike.neurons import Code

KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "LSTM": (nn.LSTM, {}),
    "GRU, both directions": (nn.GRU, {"bidirectional": True}),
}
COLUMNS: tuple[tuple[int, Code], ...] = ((4, "sorted"), (8, "sorted"), (4, "weighted"), (6, "weighted"))
UNITS, EPOCHS, CALIBRATION = 48, 25, 512


class Reader(nn.Module):
    """A recurrent layer over the rows of an image, and a linear layer behind its last step."""

    def __init__(self, kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
        super().__init__()
        self.rnn: Any = kind(8, UNITS, batch_first=True, **options)  # pyright: ignore
        self.head = nn.Linear(UNITS * (2 if self.rnn.bidirectional else 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def trained(make: Callable[[], nn.Module], seed: int, x: Tensor, y: Tensor, epochs: int = EPOCHS) -> nn.Module:
    torch.manual_seed(seed)
    model = make()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model.eval()


def shown(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.1f} ± {max(abs(v - mean) for v in values):.1f}"


def parts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits (B, 8, 8) and classes to train on, and others to count."""
    digits: Any = load_digits()
    images, labels = torch.tensor(digits.images).float() / 16, torch.tensor(digits.target)
    test = torch.arange(len(images)) % 5 == 4
    return images[~test], labels[~test], images[test], labels[test]


@torch.no_grad()
def row(name: str, seeds: Sequence[int], data: tuple[Tensor, Tensor, Tensor, Tensor]) -> str:
    x, y, others, answers = data
    found: dict[Any, list[tuple[float, float]]] = {column: [] for column in COLUMNS}
    own: list[float] = []
    for seed in seeds:
        with torch.enable_grad():
            model = trained(lambda: Reader(*KINDS[name]), seed, x, y)
        said = model(others).argmax(1)
        own.append(100 * float((said == answers).float().mean()))
        for column in COLUMNS:
            T, code = column
            snn = parspike.convert(model, x[:CALIBRATION].split(64), T=T, code=code)
            told = snn(others).argmax(1)
            right, agreeing = (100 * float((told == other).float().mean()) for other in (answers, said))
            found[column].append((right, agreeing))
            print(f"# {name}, seed {seed}, T = {T}, {code}: {found[column][-1]}, network {own[-1]:.1f}", flush=True)
    cells = [
        f"{shown([right for right, _ in of])} ({statistics.mean([agreeing for _, agreeing in of]):.1f})"
        for of in found.values()
    ]
    return f"| {name} | {shown(own)} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    data = parts()
    heads = [f"T={T}" if code == "sorted" else f"{code}, {T}" for T, code in COLUMNS]
    lines = [f"| layer | network | {' | '.join(heads)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    print("\n".join([*lines, *(row(name, options.seeds, data) for name in KINDS)]))


if __name__ == "__main__":
    main()
