"""Neurons that need the previous step to compute the next one: equations (1), (3) and (4).

Equation numbers here and in the rest of this room are those of the parallel-conversion paper, written out
in ``docs/equations.md``. Spikes are ``bool``; their amplitude is the caller's factor. None of these
functions has a surrogate gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .arguments import check_over_time, check_steps, like, threshold_like

if TYPE_CHECKING:  # jaxtyping is a development tool, not a dependency
    from jaxtyping import Bool, Float


def soft_reset_step(
    v: Float[Tensor, "*n"],
    current: Float[Tensor, "*n"],
    v_threshold: float | Tensor,
    decay: float | Tensor = 1.0,
) -> tuple[Bool[Tensor, "*n"], Float[Tensor, "*n"]]:
    """One step of equation (1): m = λ v + I, s = H(m − θ), v = m − θ s, with H(0) = 1.

    ``v``, ``v_threshold`` and ``current`` share one unit. A tensor ``v_threshold`` or ``decay`` must have
    the dtype of ``v`` and broadcast against it. Checks nothing, since it runs once a step and layer;
    torch raises ``RuntimeError`` on shapes that don't broadcast.

    >>> soft_reset_step(torch.tensor([0.5, 0.0]), torch.tensor([0.75, 0.75]), 1.0)
    (tensor([ True, False]), tensor([0.2500, 0.7500]))
    """
    leaks = isinstance(decay, Tensor) or decay != 1
    m = v * decay + current if leaks else v + current
    spike = m >= v_threshold
    return spike, torch.where(spike, m - v_threshold, m)


def lif_neuron(
    current: Float[Tensor, "T *n"],
    v_threshold: float | Tensor,
    decay: float | Tensor,
    v_init: float | Tensor = 0.0,
) -> tuple[Bool[Tensor, "T *n"], Float[Tensor, "*n"]]:
    """Equation (1) over T steps: LIF neuron with soft reset; returns the spikes and the last potential.

    ``decay`` is λ, the share of the potential that a step keeps; ``v_init`` is v(0), in the unit of
    ``current``, and broadcasts against one step.

    Raises ``TypeError`` on a current that isn't floating, ``ValueError`` on a current without a step or a
    threshold that is a number and not above 0.

    >>> spikes, v = lif_neuron(torch.tensor([1.0, 1.0, 1.0]), v_threshold=1.5, decay=0.5)
    >>> spikes, v
    (tensor([False,  True, False]), tensor(1.))
    """
    steps = check_over_time(current)
    theta = threshold_like(v_threshold, current)
    leak = like(decay, current) if isinstance(decay, Tensor) else decay
    v = like(v_init, current).expand(current.shape[1:])
    spikes = torch.empty(current.shape, dtype=torch.bool, device=current.device)
    for t in range(steps):
        spikes[t], v = soft_reset_step(v, current[t], theta, leak)
    return spikes, v


def if_neuron(
    current: Float[Tensor, "T *n"], v_threshold: float | Tensor, v_init: float | Tensor = 0.0
) -> tuple[Bool[Tensor, "T *n"], Float[Tensor, "*n"]]:
    """Equation (1) with λ = 1 over T steps: IF neuron with soft reset; spikes and last potential.

    With ``v_init`` = θ/2 and a constant current the number of spikes is ``spike_count`` (equation 5 with
    T = T̃; Bu et al. 2022). Arguments and errors as in ``lif_neuron``.

    >>> if_neuron(torch.full((4,), 0.5), v_threshold=1.0, v_init=0.5)[0]
    tensor([ True, False,  True, False])
    """
    return lif_neuron(current, v_threshold, 1.0, v_init)


def average_rate(
    mean_current: Float[Tensor, "*n"], v_init: float | Tensor, v_final: Float[Tensor, "*n"], T: int
) -> Float[Tensor, "*n"]:
    """Equations (3)-(4): r = Ī − (v(T) − v(0)) / T, the mean output θ · count / T of an IF neuron.

    ``mean_current`` is Ī, the mean input over the T steps, in the unit of the potentials ``v_init`` = v(0)
    and ``v_final`` = v(T). What a conversion loses is the second term: the residual potential.
    Holds for λ = 1 only. Raises ``ValueError`` unless T is an int of at least 1.
    """
    return mean_current - (v_final - v_init) / check_steps(T)
