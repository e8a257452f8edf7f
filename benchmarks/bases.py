"""What learned amplitudes would gain for the weighted code: mean squared error of an activation rounded to 2^T levels.

    python benchmarks/bases.py       # ../shared/weights, ../shared/data; a minute; the table of docs/results.md

Levels are the sums of the amplitudes of those steps at which a neuron fires. Three choices, each of least error on the
same samples: amplitudes in the ratios 1, 2, 4 … (the weighted code), any T amplitudes, and any 2^T levels, which no T
amplitudes can give in general.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize
from torch.overrides import TorchFunctionMode

from parspike.calibrate.staircase import lloyd_max

Samples = NDArray[Any]
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]


def error(levels: Samples, x: Samples) -> float:
    """Mean squared error of x, each rounded to the nearest level."""
    levels = np.sort(levels)
    return float(np.mean((x - levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]) ** 2))


def sums(T: int) -> Samples:
    """(2^T, T): which steps fire, for every level."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=T)))


def weighted(x: Samples, T: int) -> tuple[float, float]:
    """The least error with amplitudes θ, 2θ, 4θ …, and θ."""
    largest = float(x.max()) / (2**T - 1)
    return min((error(np.arange(2.0**T) * theta, x), theta) for theta in np.linspace(0.05, 1.5, 150) * largest)


def learned(x: Samples, T: int) -> float:
    """The least error found with any T amplitudes, from six starts."""
    _, theta = weighted(x, T)
    random = np.random.default_rng(0)
    starts = [theta * 2.0 ** np.arange(T) * np.exp(0.3 * (i > 0) * random.standard_normal(T)) for i in range(6)]
    options = {"maxiter": 1500, "xatol": 1e-6, "fatol": 1e-12}
    return min(
        minimize(lambda a: error(sums(T) @ np.abs(a), x), start, method="Nelder-Mead", options=options).fun
        for start in starts
    )


def free(x: Samples, T: int) -> float:
    """The error of 2^T levels that no small change improves."""
    return error(lloyd_max(torch.from_numpy(np.sort(x)), 2**T - 1).numpy(), x)


def activations(images: int = 64, channels: int = 4) -> list[Samples]:
    """Outputs of ReLU above zero in ResNet-20: some channels of every layer, 2,000 values each."""
    from few_steps import cifar

    model, train, *_ = cifar("resnet20", 0, images)
    found: list[Samples] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is F.relu:
                for channel in torch.linspace(0, out.shape[1] - 1, channels).long():
                    x = out[:, channel].flatten()
                    x = x[x > 0].double().numpy()
                    if len(x) >= 2000:
                        found.append(np.random.default_rng(0).choice(x, 2000, replace=False))
            return out

    with torch.no_grad(), Watch():
        model(train)
    return found


def main() -> None:
    quantiles = (np.arange(5000) + 0.5) / 5000
    laws = {"half-normal": stats.halfnorm, "exponential": stats.expon, "gamma, shape ½": stats.gamma(0.5)}
    kinds = {name: [np.asarray(law.ppf(quantiles))] for name, law in laws.items()}
    real = activations()
    kinds[f"ResNet-20, {len(real)} channels (median)"] = real
    print("| values above zero | T | learned amplitudes | any levels |\n|---|---|---|---|")
    for (name, samples), T in itertools.product(kinds.items(), (3, 4)):
        own = [weighted(x, T)[0] for x in samples]
        shares = [
            statistics.median(f(x, T) / base for x, base in zip(samples, own, strict=True)) for f in (learned, free)
        ]
        print(f"| {name} | {T} | {shares[0]:.3f} | {shares[1]:.3f} |")


if __name__ == "__main__":
    main()
