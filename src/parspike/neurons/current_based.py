"""Neurons with an exponential synapse, a leak for each neuron and a reset to any value: what NIR files of others hold.

`IntegrateFire` stays the neuron that networks are converted for. These are read, not made by a calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .dynamics import Dynamics, State

__all__ = ["CurrentBased"]

OWN = ("decay", "gain", "drive", "v_init")
SYNAPSE = ("synapse_decay", "synapse_gain")
SPIKE = ("v_threshold", "v_reset")


class CurrentBased(Dynamics):
    """Leaky neurons with a current of their own, one step of which computes, for an input z:

        i = α i + w z        (i = z without a synapse)
        v = λ v + g i + d
        where v > θ: one spike, and v = v_reset

    The tensors, each one number or broadcasting against one sample: `decay` λ, 0 ≤ λ ≤ 1; `gain` g; `drive` d, a
    constant current; `v_init` v(0). `synapse_decay` α, 0 ≤ α ≤ 1, and `synapse_gain` w of the synapse, None without
    one; i(0) = 0. `v_threshold` θ and `v_reset` of neurons that fire, None for integrators: these send no spikes, the
    current that they cause is v itself. A spike causes the current 1.

    With α = 1 − dt/τ_syn, w = w_in dt/τ_syn, λ = 1 − dt/τ_mem, g = R dt/τ_mem and d = v_leak dt/τ_mem this is a step
    of the forward Euler method for the neurons CubaLIF, CubaLI, LIF and LI of the neuromorphic intermediate
    representation (Pedersen et al. 2024, Nature Communications 15, 8122).
    """

    kind = "current-based"
    decay: Tensor
    gain: Tensor
    drive: Tensor
    v_init: Tensor
    synapse_decay: Tensor | None
    synapse_gain: Tensor | None
    v_threshold: Tensor | None
    v_reset: Tensor | None

    def __init__(
        self, *, decay: Tensor, gain: Tensor, drive: Tensor, v_init: Tensor, synapse_decay: Tensor | None = None,
        synapse_gain: Tensor | None = None, v_threshold: Tensor | None = None, v_reset: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        given = {
            "decay": decay, "gain": gain, "drive": drive, "v_init": v_init, "synapse_decay": synapse_decay,
            "synapse_gain": synapse_gain, "v_threshold": v_threshold, "v_reset": v_reset,
        }  # fmt: skip
        for pair, what in ((SYNAPSE, "a synapse has a decay and a gain"), (SPIKE, "spikes have a threshold and reset")):
            if (given[pair[0]] is None) != (given[pair[1]] is None):
                raise ValueError(f"{what}: give both or neither of {' and '.join(pair)}")
        for name in ("decay", "synapse_decay"):
            if (share := given[name]) is not None and not bool(((share >= 0) & (share <= 1)).all()):
                raise ValueError(f"{name} is a share that a step keeps: it must be from 0 to 1")
        for name, tensor in given.items():
            made = None if tensor is None else nn.Parameter(tensor.detach().clone(), requires_grad=False)
            self.register_parameter(name, made)  # the names above are for readers and type checkers

    @property
    def fires(self) -> bool:
        """Whether it sends spikes; else its potential is the current that it causes."""
        return self.v_threshold is not None

    def rest(self) -> float | Tensor:
        return 0.0

    def start(self, z: Tensor) -> State:
        state = {"v": self.v_init.to(z.dtype).expand_as(z).clone()}
        if self.synapse_decay is not None:
            state["i"] = torch.zeros_like(z)
        return state

    def step(self, state: State, z: Tensor, t: int) -> tuple[State, Tensor, Tensor]:
        now: State = {}
        if self.synapse_decay is not None and self.synapse_gain is not None:
            z = now["i"] = state["i"] * self.synapse_decay + z * self.synapse_gain
        v = state["v"] * self.decay + z * self.gain + self.drive
        if self.v_threshold is None or self.v_reset is None:
            return {**now, "v": v}, v, torch.zeros_like(v)
        fires = v > self.v_threshold
        spike = fires.to(v.dtype)
        return {**now, "v": torch.where(fires, self.v_reset, v)}, spike, spike

    @property
    def label(self) -> str:
        name = "lif" if self.fires else "li"
        return name if self.synapse_decay is None else f"cuba-{name}"

    def extra_repr(self) -> str:
        keeps = _range(self.decay)
        fires = f"θ {_range(self.v_threshold)}, reset to {_range(self.v_reset)}, " if self.fires else "no spikes, "
        return f"{fires}keeps {keeps} of its potential" + (
            "" if self.synapse_decay is None else f" and {_range(self.synapse_decay)} of its current"
        )

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "synapse": self.synapse_decay is not None, "fires": self.fires}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CurrentBased:
        names = (*OWN, *(SYNAPSE if config["synapse"] else ()), *(SPIKE if config["fires"] else ()))
        if len({tensor.dtype for tensor in tensors.values()}) > 1:
            raise ValueError("the tensors have unlike dtypes")
        return cls(**{name: tensors[name] for name in names})


def _range(tensor: Any) -> str:
    low, high = float(tensor.min()), float(tensor.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g}"
