"""Direct training: a network that runs over T time-steps, and the leaky integrate-and-fire neuron.

Time is in the batch, (T·B, …), so the network between the neurons runs as it is, and its batch norms take their
statistics over time and batch together. Which neuron, norm and loss: one file a method in `train/methods`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parspike.errors import InputError, OptionError
from parspike.neurons import MAX_T
from parspike.train.replace import Activations, replace_activations
from parspike.train.surrogate import Rectangle, Surrogate, spike

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["LIF", "OverTime", "lif", "over_steps", "widened", "with_lif"]


def over_steps(x: Float[Tensor, "T*B ..."], T: int) -> Float[Tensor, "T B ..."]:
    """Time, folded into the first dimension, as a dimension of its own. Raises `InputError` if T does not divide it."""
    if len(x) % T:
        raise InputError(f"{len(x)} rows are no multiple of T = {T}: the first dimension must be T·B")
    return x.unflatten(0, (T, -1))


def widened(x: Tensor) -> Tensor:
    """Half precision as float32, since a potential rounded to 8 bits meets its threshold at other inputs."""
    return x if x.dtype == torch.float64 else x.float()


def lif(
    x: Float[Tensor, "T B ..."], tau: float, v_threshold: float, surrogate: Surrogate, at_threshold: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """u(t) = τ u(t−1) (1 − s(t−1)) + x(t),  s(t) = H(u(t) − θ),  u(0) = s(0) = 0: the spikes and the potentials u of
    each step.

    A spike resets the potential to 0 (hard reset); gradients pass through the reset too, as in the code of STBP-simple.
    """
    u, s, potentials, spikes = None, None, [], []
    for current in x:
        u = current if u is None or s is None else tau * u * (1 - s) + current
        s = spike(u - v_threshold, surrogate, at_threshold=at_threshold)
        potentials.append(u)
        spikes.append(s)
    return spikes, potentials


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons with hard reset, see `lif`: from (T·B, …) to spikes of the same shape.

    T: time-steps. tau: the leak τ. v_threshold: θ. surrogate: what stands for the derivative of a spike.
    at_threshold: whether u = θ is a spike.
    """

    def __init__(
        self, T: int, tau: float = 0.25, v_threshold: float = 0.5, surrogate: Surrogate | None = None,
        at_threshold: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        numbers = all(isinstance(n, (int, float)) for n in (T, tau, v_threshold))
        if not numbers or not 1 <= T <= MAX_T or not 0 <= tau <= 1 or not v_threshold > 0:
            given = f"T = {T}, tau = {tau}, v_threshold = {v_threshold}"
            raise OptionError(f"{given}: T from 1 to {MAX_T}, 0 ≤ tau ≤ 1, v_threshold > 0")
        self.T, self.tau, self.v_threshold = T, tau, v_threshold
        self.surrogate, self.at_threshold = surrogate or Rectangle(), at_threshold

    def forward(self, x: Float[Tensor, "T*B ..."]) -> Float[Tensor, "T*B ..."]:
        over_time = over_steps(widened(x), self.T)
        spikes, _ = lif(over_time, self.tau, self.v_threshold, self.surrogate, self.at_threshold)
        return torch.cat(spikes).to(x.dtype)

    def extra_repr(self) -> str:
        return f"T={self.T}, tau={self.tau:g}, v_threshold={self.v_threshold:g}"


class OverTime(nn.Module):
    """Runs a network of spiking neurons: the same input at every step, the output averaged over time.

    forward(x, per_step=True) gives the output of each step, (T, B, K): what some losses are computed of. Raises
    `InputError` where samples do not run along the first dimension of an activation, as far as an example shows it.
    """

    spikes_already = True
    """So that no conversion takes it for a network of real values."""

    def __init__(self, network: nn.Module, T: int) -> None:
        super().__init__()
        found = getattr(network, "activations", None)
        found = found if isinstance(found, Activations) else Activations()
        for use in found.replaced if found.samples > 1 else ():
            if not use.shape or use.shape[0] % found.samples:
                raise InputError(
                    f"{use.function} at {use.source} has shape {use.shape} for {found.samples} samples: time runs with "
                    "the samples, which must be the first dimension there (batch_first=True, no transpose before it)"
                )
        self.network, self.T = network, T

    def forward(self, x: Float[Tensor, "B ..."], per_step: bool = False) -> Tensor:
        over_time = x.expand(self.T, *x.shape).flatten(0, 1)
        output = self.network(over_time)
        if not isinstance(output, Tensor):
            raise InputError(
                f"the network gives a {type(output).__name__}; direct training needs one tensor (B, K), such as "
                "logits: put it into a module whose forward returns that one"
            )
        output = over_steps(output, self.T)
        return output if per_step else output.mean(0)


def with_lif(model: nn.Module, T: int, *, tau: float = 0.25, v_threshold: float = 0.5, example: Any = None) -> OverTime:
    """A copy of the network with LIF neurons for its activations, run over T steps. example: see `with_qcfs`.

    >>> model = with_lif(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), T=4)
    >>> model(torch.rand(3, 4)).shape
    torch.Size([3, 2])
    """
    return OverTime(replace_activations(model, lambda _: LIF(T, tau, v_threshold), example=example), T)
