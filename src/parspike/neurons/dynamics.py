"""Neurons with a state, which compute one time-step after the other: integrate-and-fire, with and without leak.

A chip's neuron adds its input current to a potential v, fires where v reaches θ, and resets v. What it sends at step t
therefore depends on when its input came, not only on its mean, and no count can be computed in one pass.

    neuron = IntegrateFire(torch.tensor(1.0))
    state, current, spikes = neuron.advance(None, z)     # z (T, B, …): the input current of each step

`advance` runs a block of steps; given the state that it returned, it goes on with the next block, and the results do
not depend on how the steps are cut into blocks.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from parspike.errors import OptionError

from . import fused
from .arguments import check_choice, check_steps
from .layer import ParallelNeuron, SpikingLayer

__all__ = ["RESETS", "Dynamics", "IntegrateFire", "Reset", "Simulation", "SortedTrain", "State", "twin"]

Reset = Literal["subtract", "zero"]
RESETS: tuple[str, ...] = get_args(Reset)

State = dict[str, Tensor]
"""What a neuron keeps from one step to the next, each tensor (B, …)."""


@dataclass(frozen=True)
class Simulation:
    """How long a network of neurons with a state runs, and which steps its output is read from.

    T: time-steps. probe: steps of a first phase that is not read, after which each neuron starts anew with what it
    keeps of it (`Dynamics.next_phase`). read: the output is the mean of the last so many steps (0: of all T). paid:
    steps that the neurons look at before they send anything. A method that needs them costs `total` steps.
    """

    T: int
    probe: int = 0
    read: int = 0
    paid: int = 0

    def __post_init__(self) -> None:
        check_steps(self.T)
        for name in ("probe", "read", "paid"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise OptionError(f"{name} must be an integer of at least 0, got {value!r}")
        if self.read > self.T:
            raise OptionError(f"read = {self.read} steps are more than T = {self.T}")

    @property
    def total(self) -> int:
        """Time-steps that an answer costs."""
        return self.probe + self.T + self.paid


class Dynamics(SpikingLayer):
    """Base of the neurons with a state. Final subclasses define `start` and `step`."""

    lookahead: int = 1
    """Steps of input that a neuron must be given at once."""
    takes_back: bool = False
    """Whether it sends spikes of −1."""
    largest: int = 1
    """Most spikes that it sends in one step."""

    @property
    def messages(self) -> int:
        """How many different things a neuron can send in one step, silence included: 2 where it is a spike or none."""
        return 1 + self.largest * (1 + self.takes_back)

    def levels_in(self, T: int) -> int:
        return T * self.largest

    def bits_in(self, steps: int) -> float:
        return math.log2(self.messages) * steps

    @abstractmethod
    def start(self, z: Tensor) -> State:
        """The state before the first step, for an input current of one step z (B, …)."""

    @abstractmethod
    def step(self, state: State, z: Tensor, t: int) -> tuple[State, Tensor, Tensor]:
        """One step with the input current z (B, …), t the number of the step from 0 on.

        Returns the new state, the current that the synapses behind receive (B, …), and the spikes sent (B, …), whole
        numbers, below 0 where a spike takes an earlier one back. The current is not always a multiple of the spikes.
        """

    @abstractmethod
    def rest(self) -> float | Tensor:
        """The constant current of a silent neuron; broadcasts against one sample."""

    def amplitudes(self) -> Tensor | None:
        """The current that one spike causes beside `rest`: (1, …), the same at every step, broadcasting against (1, one
        sample); None where the current is no multiple of the spikes."""
        return None

    def advance(self, state: State | None, z: Tensor, t: int = 0) -> tuple[State, Tensor, Tensor]:
        """The steps t, t + 1, … with the input currents z (steps, B, …): state, currents and spikes (steps, B, …).

        state: None before the first step.
        """
        state = self.start(z[0]) if state is None else state
        currents, spikes = [], []
        for number, now in enumerate(z, t):
            state, current, spike = self.step(state, now, number)
            currents.append(current)
            spikes.append(spike)
        return state, torch.stack(currents), torch.stack(spikes)

    def next_phase(self, state: State) -> State | None:
        """The state at the start of the second phase of a `Simulation` with a probe; None: as at the very first."""
        return None

    def example(self, z: Tensor) -> Tensor:
        return self.advance(None, z[None])[1][0]


class _Fire(torch.autograd.Function):
    """H(m − θ), whose gradient is that of a ramp of the width 2·`width`·θ around the threshold (a surrogate)."""

    @staticmethod
    def forward(ctx: Any, above: Tensor, theta: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(above, theta)
        return (above >= 0).to(above.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        above, theta = ctx.saved_tensors
        return grad * (above.abs() < theta / 2) / theta, None


class IntegrateFire(Dynamics):
    """Integrate-and-fire neurons, equation (1): m = λ v + z, one spike where m ≥ θ, then the reset.

    v_threshold: θ. reset: "subtract", v = m − θ after a spike (soft); "zero", v = 0 (hard). decay: λ, the share of
    the potential that a step keeps; 1 never leaks. refractory: steps after a spike in which the neuron ignores its
    input and keeps its potential. signed: a neuron whose potential falls below 0 takes back a spike that it has sent,
    as a spike of −1. offset: constant current that the neuron sends beside its spikes, the activation's smallest
    output. The tensors broadcast against one sample, such as (C, 1, 1):

    - v_init: v(0). - v_post: the current of one spike. - bias (1, …) or (T, …): current added to the input, the same
      at every step or one for each.
    """

    kind = "integrate-fire"
    leading = ("bias",)
    offset: float | Tensor

    def __init__(
        self, v_threshold: Tensor, *, reset: Reset = "subtract", decay: float = 1.0, refractory: int = 0,
        signed: bool = False, offset: float | Tensor = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice(reset, RESETS, "reset")
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay <= 1:
            raise ValueError(f"decay must be a number above 0 and at most 1, got {decay!r}")
        if isinstance(refractory, bool) or not isinstance(refractory, int) or refractory < 0:
            raise ValueError(f"refractory must be a number of steps of at least 0, got {refractory!r}")
        if not isinstance(signed, bool):
            raise ValueError(f"signed must be True or False, got {signed!r}")
        if signed and reset == "zero":
            raise ValueError("signed spikes need reset='subtract': a reset to zero forgets what could be taken back")
        self.reset, self.decay, self.refractory, self.signed = reset, float(decay), refractory, signed
        self.takes_back = signed
        if isinstance(offset, Tensor):
            self.register_buffer("offset", offset.detach().to(v_threshold).clone())
        else:
            self.offset = float(offset)
        theta = v_threshold.detach()
        self.v_threshold = nn.Parameter(theta.clone(), requires_grad=False)
        self.v_init = nn.Parameter(theta / 2, requires_grad=False)
        self.v_post = nn.Parameter(theta.clone(), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros_like(theta)[None], requires_grad=False)

    @property
    def offsets(self) -> bool:
        """Whether silent neurons emit a current."""
        return isinstance(self.offset, Tensor) or self.offset != 0

    def rest(self) -> float | Tensor:
        return self.offset

    def amplitudes(self) -> Tensor:
        return self.v_post[None]

    def start(self, z: Tensor) -> State:
        state = {"v": self.v_init.to(z.dtype).expand_as(z).clone()}
        if self.refractory:
            state["waits"] = torch.zeros_like(z)
        if self.signed:
            state["sent"] = torch.zeros_like(z)
        return state

    def step(self, state: State, z: Tensor, t: int) -> tuple[State, Tensor, Tensor]:
        v, theta = state["v"], self.v_threshold
        # The input is counted from the smallest output on.
        drive = (self.bias - self.offset if self.offsets else self.bias)[min(t, len(self.bias) - 1)]
        m = (v * self.decay if self.decay != 1 else v) + z + drive
        if self.refractory:
            rests = state["waits"] > 0
            m = torch.where(rests, v, m)
        spike = _Fire.apply(m - theta, theta)
        if self.refractory:
            spike = torch.where(rests, 0.0, spike)
        if self.signed:
            back = _Fire.apply(-m, theta) * (m != 0) * (state["sent"] > 0)
            spike = spike - (torch.where(rests, 0.0, back) if self.refractory else back)
        now = {"v": m - spike * theta if self.reset == "subtract" else m * (1 - spike)}
        if self.refractory:
            now["waits"] = torch.where(spike != 0, float(self.refractory), (state["waits"] - 1).clamp(min=0))
        if self.signed:
            now["sent"] = state["sent"] + spike.detach()
        current = spike * self.v_post
        return now, current + self.offset if self.offsets else current, spike

    def advance(self, state: State | None, z: Tensor, t: int = 0) -> tuple[State, Tensor, Tensor]:
        if torch.is_grad_enabled() or self.refractory or self.signed:
            return super().advance(state, z, t)
        offset = self.offset if self.offsets else None
        drive = self.bias if offset is None else self.bias - offset
        v = self.start(z[0])["v"] if state is None else state["v"]
        rest, to_zero = drive[min(t, len(drive) - 1) :], self.reset == "zero"
        made = fused.integrate(
            z, v, self.v_threshold, self.v_post, rest, offset, decay=self.decay, to_zero=to_zero
        )  # fmt: skip
        if made is not None:
            return {"v": made[0]}, made[1], made[2]
        v, spikes = fused.stepped(z, v if state is None else v.clone(), self.v_threshold, rest, self.decay, to_zero)
        current = spikes * self.v_post
        return {"v": v}, current if offset is None else current.add_(offset), spikes

    def unfit(self, T: int) -> str | None:
        if self.bias.shape[:1] in ((1,), (T,)):
            return None
        return f"bias {tuple(self.bias.shape)} is not for one step or for all {T}"

    @property
    def label(self) -> str:
        name = "if" if self.decay == 1 else "lif"
        return f"{name}{'' if self.reset == 'subtract' else '-zero'}{'' if self.decay == 1 else f':{self.decay:g}'}"

    def extra_repr(self) -> str:
        leak = f", keeps {self.decay:g} of its potential" if self.decay != 1 else ""
        more = (", signed" if self.signed else "") + (f", refractory {self.refractory}" if self.refractory else "")
        theta = f"θ {float(self.v_threshold.min()):.4g} … {float(self.v_threshold.max()):.4g}"
        return f"{theta}, reset {'by θ' if self.reset == 'subtract' else 'to 0'}{leak}{more}"

    def config(self) -> dict[str, Any]:
        offset = None if isinstance(self.offset, Tensor) else self.offset
        names = ("kind", "reset", "decay", "refractory", "signed")
        return {**{name: getattr(self, name) for name in names}, "offset": offset}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> IntegrateFire:
        theta = tensors["v_threshold"]
        offset = tensors["offset"] if config["offset"] is None else config["offset"]
        if not isinstance(offset, Tensor) and not math.isfinite(offset):
            raise ValueError("the offset must be finite")
        if not bool((theta > 0).all()):
            raise ValueError("thresholds must be above 0")
        if any(tensor.dtype != theta.dtype for tensor in tensors.values()):
            raise ValueError("the tensors have unlike dtypes")
        options = {name: config[name] for name in ("reset", "decay", "refractory", "signed")}
        neuron = cls(theta, offset=offset, **options)
        for name in ("v_init", "v_post", "bias"):
            setattr(neuron, name, nn.Parameter(tensors[name].clone(), requires_grad=False))
        return neuron


class SortedTrain(Dynamics):
    """Parallel neurons of the sorted code, for an input that is the same at every step: silent first, then k spikes.

    neuron: the parallel neurons, of T time-steps. They count what the first step brings.
    """

    kind = "sorted-train"

    def __init__(self, neuron: ParallelNeuron) -> None:
        super().__init__()
        if neuron.code != "sorted":
            raise ValueError(f"a sorted train is of neurons with the sorted code, got '{neuron.code}'")
        self.neuron = neuron

    def rest(self) -> float | Tensor:
        return self.neuron.rest()

    def amplitudes(self) -> Tensor:
        return self.neuron.v_post[None]

    def start(self, z: Tensor) -> State:
        return {"count": self.neuron.count(z)}

    def step(self, state: State, z: Tensor, t: int) -> tuple[State, Tensor, Tensor]:
        spike = self.neuron.spikes(state["count"], t, t + 1)[0].to(z.dtype)
        current = spike * self.neuron.v_post
        return state, current + self.neuron.offset if self.neuron.offsets else current, spike

    def unfit(self, T: int) -> str | None:
        return None if T == self.neuron.T else f"they send trains of {self.neuron.T} steps, the network has {T}"

    @property
    def label(self) -> str:
        return "sorted"

    def extra_repr(self) -> str:
        return "the input as sorted trains"

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "neuron": self.neuron.config()}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SortedTrain:
        if config["neuron"]["kind"] != ParallelNeuron.kind:
            raise ValueError("a sorted train is of parallel neurons")
        own = {name.removeprefix("neuron."): tensor for name, tensor in tensors.items()}
        return cls(ParallelNeuron.restore(config["neuron"], own))


def twin(neurons: Mapping[str, SpikingLayer]) -> dict[str, Dynamics]:
    """For each parallel neuron the soft-reset IF neuron of the same threshold, v(0) = θ/2, by the same names.

    Parallel conversion is compared with these neurons, which have no calibrated shift or amplitude. A staircase has no
    such twin.
    """
    return {
        name: IntegrateFire(neuron.v_threshold, offset=neuron.offset)
        for name, neuron in neurons.items()
        if isinstance(neuron, ParallelNeuron)
    }
