"""dspike: LIF neurons whose surrogate is sharpened or flattened at the start of each epoch.

Li, Guo, Zhang, Deng, Hai, Gu, "Differentiable Spike: Rethinking Gradient-Descent for Training Spiking Neural Networks",
NeurIPS 2021.

    ∂s/∂u = b (1 − tanh²(b (u − θ)))/(2 tanh(b/2)) for |u − θ| ≤ 1/2, else 0        (area 1; b the temperature)
    At the start of each epoch, on one batch: g_i = (L(w + ε e_i) − L(w − ε e_i))/2ε for weights w of the first layer;
    of b − Δ, b, b + Δ the one is taken whose surrogate gradient of w has the largest cosine similarity with g.
    u(t) = τ u(t−1) (1 − s(t−1)) + x(t),   s(t) = [u(t) ≥ θ],   loss = cross-entropy(mean over t of the output)

Verified: the surrogate was read in three third-party codes, the search in the paper's algorithm as quoted by a
reproduction. From memory: one b for all layers, starting at 1 with Δ = 0.2 (low confidence), τ = 0.25, θ = 0.5 and ≥.
Our choices: ε = 0.05, and that g is computed for `probes` weights spread evenly over the first layer, since each costs
two passes; probes = 0 takes all of them, as the paper does. The batch norms here act over time and batch together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parspike.errors import InputError, OptionError
from parspike.train.direct import LIF
from parspike.train.fields import above, at_least
from parspike.train.methods.base import Batch, Leaky, check_logits

__all__ = ["Dspike", "DspikeSurrogate"]


@dataclass(frozen=True)
class Dspike(Leaky):
    """Direct training of LIF neurons with a searched surrogate.

    tau: leak τ. v_threshold: θ. temperature: b at the start. change: Δ. epsilon: ε. probes: see above.
    """

    name: ClassVar[str] = "dspike"
    temperature: float = 1.0
    change: float = 0.2
    epsilon: float = 0.05
    probes: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("temperature", "epsilon"):
            above(f"activation.{name}", getattr(self, name))
        at_least("activation.change", self.change, 0)
        at_least("activation.probes", self.probes, 0)

    def neurons(self, start: float | Tensor) -> nn.Module:
        """LIF with the surrogate above."""
        return LIF(self.T, self.tau, self.v_threshold, DspikeSurrogate(self.temperature), at_threshold=True)

    def before_epoch(self, network: nn.Module, epoch: int, epochs: int, batch: Batch) -> None:
        """Search the temperature. Raises `OptionError` where weights are divided over devices (fsdp), and `InputError`
        where no layer has trained weights."""
        if any(isinstance(parameter, DTensor) for parameter in network.parameters()):
            raise OptionError("method dspike changes single weights, which --strategy fsdp divides: take ddp")
        x, y = batch()
        with _buffers_kept(network):
            temperature = self._search(network, x, y)
        for module in network.modules():
            if isinstance(module, DspikeSurrogate):
                module.temperature.fill_(temperature)

    def _search(self, network: nn.Module, x: Tensor, y: Tensor) -> float:
        def loss() -> Tensor:
            torch.manual_seed(0)  # the same dropout in each pass; the loop seeds each step anew
            output = self.outputs(network, x)
            check_logits(self, output, len(x), int(y.max()) + 1)
            return self.loss(output, y, 0.0)

        surrogates = [module for module in network.modules() if isinstance(module, DspikeSurrogate)]
        with _first_weight(network) as found:
            value = loss()
        if not found:
            raise InputError(
                "method dspike: the network has no convolution or linear layer whose weights are trained, from which "
                "the temperature is found; train it with activation.method=stbp"
            )
        weight = found[0]
        number = min(self.probes or weight.numel(), weight.numel())
        probes = torch.linspace(0, weight.numel() - 1, number, device=weight.device).round().long()
        now = float(surrogates[0].temperature)
        gradients: dict[float, Tensor] = {}
        for temperature in (now, now - self.change, now + self.change):
            if temperature > 0:
                for surrogate in surrogates:  # the backward pass alone asks for it
                    surrogate.temperature.fill_(temperature)
                (gradient,) = torch.autograd.grad(value, weight, retain_graph=True)
                gradients[temperature] = gradient.flatten()[probes]
        wanted = _differences(weight, probes, self.epsilon, loss)
        # Of equally good ones the first, which is the present one.
        return max(gradients, key=lambda b: float(F.cosine_similarity(gradients[b], wanted, dim=0)))


class DspikeSurrogate(nn.Module):
    """The surrogate above. temperature: b, a buffer, so that it is in checkpoints and weights."""

    temperature: Tensor

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, d: Tensor) -> Tensor:
        b = self.temperature.to(d.dtype)
        inside = b * (1 - torch.tanh(b * d).square()) / (2 * torch.tanh(b / 2))
        return inside * (d.abs() <= 0.5)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature.item():.3g}"


@torch.no_grad()
def _differences(weight: Tensor, places: Tensor, epsilon: float, loss: Any) -> Tensor:
    """Central differences of the loss by the weights at these places."""
    before, out = weight.detach().clone(), []
    try:
        for place in zip(*torch.unravel_index(places, weight.shape), strict=True):
            sides = []
            for side in (epsilon, -epsilon):
                weight.copy_(before)
                weight[place] += side
                sides.append(loss())
            out.append((sides[0] - sides[1]) / (2 * epsilon))
    finally:
        weight.copy_(before)
    return torch.stack(out)


@contextmanager
def _first_weight(network: nn.Module) -> Iterator[list[Tensor]]:
    """The weight of the first convolution or linear layer that is called, of those that are trained."""
    found: list[Tensor] = []
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    handles = [
        module.register_forward_pre_hook(lambda module, args: found.append(module.weight))  # pyright: ignore[reportArgumentType]
        for module in network.modules() if isinstance(module, layers) and module.weight.requires_grad
    ]  # fmt: skip
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """Puts back what passes change: running statistics of batch norms."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
