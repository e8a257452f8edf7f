"""tdbn: LIF neurons behind batch norms that scale their output by the neuron's threshold.

Zheng, Wu, Deng, Hu, Li, "Going Deeper With Directly-Trained Larger Spiking Neural Networks", AAAI 2021.

    y = γ α θ (x − μ)/√(σ² + ε) + β,   μ and σ² of a channel over time, batch and space together,
    α = 1, and α = 1/√2 where y is a summand of an addition (both branches of a residual block)

The neuron is that of stbp. Verified: the equation and α were read in public codes (STBP-simple, which is by the side of
the authors, and that of GLIF). In SpikingJelly's version γ starts at αθ instead of being multiplied by it, which is the
same function at the start and trains otherwise; here γ is multiplied. θ = 0.5 and τ = 0.25 are from memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from parspike.errors import InputError, OptionError
from parspike.train.methods.base import Leaky, swapped

__all__ = ["TdBN", "ThresholdNorm", "threshold_norms"]

_ADDITIONS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)


@dataclass(frozen=True)
class TdBN(Leaky):
    """Direct training of LIF neurons with threshold-dependent batch norm. tau: leak τ. v_threshold: θ.

    Needs an example, on which it is found which batch norms stand before an addition.
    """

    name: ClassVar[str] = "tdbn"

    def network(self, base: nn.Module, example: Any) -> nn.Module:
        """With a `ThresholdNorm` for each batch norm. Raises `InputError` where there is none."""
        if example is None:
            raise OptionError("method tdbn needs example=, a batch of inputs, to find batch norms before additions")
        return self._normed(super().network(base, example), example)

    def restored(self, base: nn.Module, example: Any, shapes: Mapping[str, Size]) -> nn.Module:
        """As `network`; the scales αθ are the file's."""
        return self._normed(super().network(base, example), None)

    def _normed(self, network: nn.Module, example: Any) -> nn.Module:
        if not threshold_norms(network, self.v_threshold, example):
            raise InputError("method tdbn: the network has no batch norm; train it with activation.method=stbp")
        return network


def threshold_norms(network: nn.Module, v_threshold: float, example: Any) -> int:
    """Replace each batch norm by a `ThresholdNorm`, in place; how many there were. Without an example α is 1."""
    before = set() if example is None else _summands(network, example)
    return swapped(
        network, _BatchNorm, lambda name, norm: ThresholdNorm(norm, v_threshold / math.sqrt(2 if name in before else 1))
    )


class ThresholdNorm(nn.Module):
    """γ αθ x̂ + β for a batch norm γ x̂ + β: (1 − αθ) β + αθ (γ x̂ + β).

    The factor is a buffer, so that it is saved with the weights.
    """

    scale: Tensor

    def __init__(self, norm: Any, scale: float) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        y, scale = self.norm(x), self.scale
        if self.norm.bias is None:
            return (y * scale).to(y.dtype)
        bias = self.norm.bias.view(-1, *[1] * (y.ndim - 2))
        return (y * scale + (1 - scale) * bias).to(y.dtype)

    def extra_repr(self) -> str:
        return f"scale={self.scale.item():.3g}"


class _Additions(TorchFunctionMode):
    """Notes in `summands` which batch norms' outputs are added to something."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, str]] = {}  # with the tensor, so that its id is not given again
        self.summands: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ADDITIONS:
            self.summands |= {self.made[id(arg)][1] for arg in args[:2] if id(arg) in self.made}
        return func(*args, **(kwargs or {}))


def _summands(network: nn.Module, example: Any) -> set[str]:
    """The names of the batch norms whose output is a summand."""
    mode, handles = _Additions(), []
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):

            def note(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                mode.made[id(output)] = output, name

            handles.append(module.register_forward_hook(note))
    training = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad(), mode:
            network.eval()(*(example if isinstance(example, tuple | list) else (example,)))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode_before in training.items():
            module.training = mode_before
    return mode.summands
