"""glif: neurons that learn how they leak, integrate and reset, as mixtures of two ways of each.

Yao, Li, Mo, Cheng, "GLIF: A Unified Gated Leaky Integrate-and-Fire Neuron for Spiking Neural Networks", NeurIPS 2022.

    I(t) = x(t) (1 − β (1 − g_t))
    u(t) = (1 − α (1 − τ)) u(t−1) (1 − γ s(t−1)) − (1 − α) l + I(t) − (1 − γ) r s(t−1),   u(0) = s(0) = 0
    s(t) = [u(t) > θ],   ∂s/∂u = [|u − θ| < 1/2],   loss = cross-entropy(mean over t of the output)

α, β, γ are gates; τ (exponential leak), θ, l (linear leak), r (soft reset) and g (a factor a step) are values. Each is
the sigmoid of a trained number, one a channel. α = γ = 1 and β = 0 is the LIF neuron of stbp. Gates are trained at a
tenth of the learning rate, and weight decay acts on no parameter of the neurons.

Verified: equations, start values (τ = 0.25, θ = 0.5, l = θ/8, r = θ, g = 0.5, gates 0.55, 0.65, 0.55 or uniform at
random), batch norms as tdbn with θ = 0.5, learning rates and decay were read in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn

from parspike.errors import OptionError
from parspike.train.direct import OverTime, over_steps, widened
from parspike.train.fields import above, within
from parspike.train.methods.base import Direct, Group, shaped_by
from parspike.train.methods.tdbn import threshold_norms
from parspike.train.replace import replace_activations
from parspike.train.surrogate import Rectangle, spike

__all__ = ["GLIF", "GLIFNeuron"]

NORM_THRESHOLD = 0.5  # of the batch norms; the neurons' own threshold is learnt
GATES = (0.55, 0.65, 0.55)


@dataclass(frozen=True)
class GLIF(Direct):
    """Direct training of gated LIF neurons.

    per_channel: parameters of each channel, or of each layer. random_gates: draw the gates uniformly from 0 … 1 at the
    start. gate_rate: share of the learning rate that gates are trained with. Needs an example, for the channels and to
    find which batch norms stand before an addition.
    """

    name: ClassVar[str] = "glif"
    per_channel: bool = True
    random_gates: bool = False
    gate_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        within("activation.gate_rate", self.gate_rate, 0, 1)
        above("activation.gate_rate", self.gate_rate)

    def neurons(self, start: float | Tensor) -> nn.Module:
        """`GLIFNeuron`, with a parameter a channel where `start` is one."""
        return GLIFNeuron(self.T, start.shape if isinstance(start, Tensor) else Size(), self.random_gates)

    def network(self, base: nn.Module, example: Any) -> nn.Module:
        """With a `ThresholdNorm` for each batch norm."""
        if example is None:
            raise OptionError("method glif needs example=, a batch of inputs, to find channels and additions")
        return self._made(base, example, example)

    def restored(self, base: nn.Module, example: Any, shapes: Mapping[str, Size]) -> nn.Module:
        """As `network`; how many channels there are, and the scales of the batch norms, are the file's."""
        return shaped_by(replace(self, per_channel=False)._made(base, example, None), GLIFNeuron, shapes)

    def _made(self, base: nn.Module, example: Any, watched: Any) -> nn.Module:
        made = replace_activations(base, self.neurons, example=example, per_channel=self.per_channel)
        network = OverTime(made, self.T)
        threshold_norms(network, NORM_THRESHOLD, watched)
        return network

    def groups(self, network: nn.Module) -> list[Group]:
        """The gates, the neurons' other parameters, and all the rest, which comes first."""
        neurons = [module for module in network.modules() if isinstance(module, GLIFNeuron)]
        gates = [neuron.gates for neuron in neurons]
        values = [value for neuron in neurons for value in (neuron.values, neuron.conductance)]
        own = {id(parameter) for parameter in (*gates, *values)}
        rest = [parameter for parameter in network.parameters() if id(parameter) not in own]
        return [Group(rest), Group(gates, self.gate_rate, decay=False), Group(values, decay=False)]


class GLIFNeuron(nn.Module):
    """Gated LIF neurons, from currents (T·B, C, …) to spikes of the same shape.

    gates: α, β, γ, shape (3, …). values: τ, θ, l, r, (4, …). conductance: g, (T, …); all before the sigmoid, and … the
    shape of one parameter, (C, 1, 1) a channel of images or () a layer.
    """

    def __init__(self, T: int, shape: Size = Size(), random_gates: bool = False) -> None:  # noqa: B008 (immutable)
        super().__init__()
        self.T = T

        def before_sigmoid(*numbers: float) -> nn.Parameter:
            column = torch.tensor(numbers).view(-1, *[1] * len(shape))
            return nn.Parameter(column.expand(len(numbers), *shape).logit().clone())

        self.gates = before_sigmoid(*GATES)
        self.values = before_sigmoid(0.25, 0.5, 0.5 / 8, 0.5)
        self.conductance = before_sigmoid(*[0.5] * T)
        if random_gates:
            with torch.no_grad():
                self.gates.copy_(torch.rand_like(self.gates).clamp(1e-6, 1 - 1e-6).logit())

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta, gamma = self.gates.sigmoid()
        tau, theta, linear, reset = self.values.sigmoid()
        factors = 1 - beta * (1 - self.conductance.sigmoid())
        keep, sink = 1 - alpha * (1 - tau), (1 - alpha) * linear
        u, s, spikes = None, None, []
        for current, factor in zip(over_steps(widened(x), self.T), factors, strict=True):
            u_next = current * factor - sink
            if u is not None and s is not None:
                u_next = keep * u * (1 - gamma * s) + u_next - (1 - gamma) * reset * s
            u = u_next
            s = spike(u - theta, Rectangle())
            spikes.append(s)
        return torch.cat(spikes).to(x.dtype)

    def extra_repr(self) -> str:
        return f"T={self.T}, channels={self.gates[0].numel()}"
