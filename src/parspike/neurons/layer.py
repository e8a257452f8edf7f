"""The spiking neurons of one layer: their parameters, what they count, and the spikes they send.

A neuron maps its mean input current to a *count* k in 0 … `levels`, and sends k as spikes over T steps in a *code*:

- ``sorted``: k spikes, silent first (7): T levels in T steps, trains nested;
- ``weighted``: the binary digits of k, most significant first: 2^T − 1 levels in T steps, one spike a step at most;
- ``onset``: one spike, whose time is k: T levels in T steps, one event a neuron.

In every code, a spike of step t carries the amplitude `amplitudes()[t]`, one scale for all neurons of a channel, so a
synapse only ever accumulates; the mean over the T steps of these currents is `value(k)`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from . import fused
from .arguments import check_choice, check_steps
from .packed import PackedTrains, counts_of, words_of
from .pieces import in_pieces, runs_here
from .quantised import Line, line_at, line_of, reached, spike_count
from .trains import first_spike, sorted_train

__all__ = ["CODES", "Code", "Even", "Neuron", "ParallelNeuron", "SpikingLayer", "levels_of", "neuron_from"]

Code = Literal["sorted", "weighted", "onset"]
CODES: tuple[str, ...] = get_args(Code)
MAX_WEIGHTED = 20
"""Steps of the weighted code: counts up to 2^20 − 1 are exact in float32 with room for sums."""

KINDS: dict[str, type[SpikingLayer]] = {}


def levels_of(T: int, code: str) -> int:
    """The largest count that a code sends in T steps.

    >>> levels_of(4, "sorted"), levels_of(4, "weighted")
    (4, 15)
    """
    return 2**T - 1 if code == "weighted" else T


class SpikingLayer(nn.Module):
    """Base of the neurons of one layer, of every kind: what is written into a file and read from it.

    `Neuron`: its count follows from the mean of its input. `Dynamics`: it has a state and computes step by step.
    """

    kind: ClassVar[str]
    lines: ClassVar[int] = 1
    """Neurons that stand for one value, each with a line for its spikes."""
    leading: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that have one dimension more than the others, their first: levels, or time-steps."""

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    @property
    @abstractmethod
    def label(self) -> str:
        """A word for how these neurons send their output: the code, or the kind of neurons with a state."""

    @abstractmethod
    def example(self, z: Tensor) -> Tensor:
        """An output for an input current z (B, …): of its shape and dtype, to check a network with."""

    @abstractmethod
    def levels_in(self, T: int) -> int:
        """How many outputs above its smallest one a neuron can have in a network of T steps: the levels of an
        activation that is as fine."""

    @abstractmethod
    def bits_in(self, steps: int) -> float:
        """The bits that one neuron sends in a network that runs so many steps in all."""

    def unfit(self, T: int) -> str | None:
        """Why these neurons cannot stand in a network of T time-steps; None where they can."""
        return None

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What the tensors do not say, as JSON-able data: arguments of `restore`."""

    @classmethod
    @abstractmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SpikingLayer:
        """The neurons that `config` and `state_dict` describe. Raises ValueError or KeyError on anything else."""


class Neuron(SpikingLayer):
    """Base of the neurons whose count follows from their mean input. T: time-steps. code: how a count is sent."""

    def __init__(self, T: int, code: Code = "sorted") -> None:
        super().__init__()
        self._T: int = check_steps(T)
        self._code: Code = code
        check_choice(code, CODES, "code")
        if code == "weighted" and T > MAX_WEIGHTED:
            raise ValueError(f"the weighted code takes at most T = {MAX_WEIGHTED} steps (2^T − 1 levels), got T={T}")

    @property
    def T(self) -> int:
        """Time-steps."""
        return self._T

    @T.setter
    def T(self, value: Any) -> None:
        raise _fixed("T", value)

    @property
    def code(self) -> Code:
        """How a count is sent."""
        return self._code

    @code.setter
    def code(self, value: Any) -> None:
        raise _fixed("code", value)

    @property
    def levels(self) -> int:
        """The largest count."""
        return levels_of(self._T, self._code)

    @levels.setter
    def levels(self, value: Any) -> None:
        raise _fixed("levels", value)

    @property
    def lowest(self) -> int:
        """The smallest count."""
        return 0

    @abstractmethod
    def count(self, z: Tensor) -> Tensor:
        """Whole numbers 0 … levels for a mean input current z (B, …), in z's dtype."""

    @abstractmethod
    def value(self, count: Tensor) -> Tensor:
        """Mean output current of neurons that count `count`."""

    @abstractmethod
    def amplitudes(self) -> Tensor:
        """What a spike of each step carries: (T, …), broadcasting against (T, one sample)."""

    @abstractmethod
    def rest(self) -> float | Tensor:
        """The constant current of a silent neuron: the activation's smallest output; broadcasts against one sample."""

    @property
    def label(self) -> str:
        return self.code

    def levels_in(self, T: int) -> int:
        return self.levels

    def bits_in(self, steps: int) -> float:
        return self.T

    def unfit(self, T: int) -> str | None:
        return None if self.T <= T else f"they take {self.T} steps, the network {T}"

    def example(self, z: Tensor) -> Tensor:
        return self.value(self.count(z))

    def forward(self, z: Tensor) -> Tensor:
        """`value(count(z))`."""
        return self.value(self.count(z))

    def over(self, z: Tensor) -> Tensor:
        """The same, which may be written over z: nobody else reads the current."""
        return self(z)

    def line(self) -> Line | None:
        """θ, δ from the smallest output on, and θ + φ, which `line_at` takes, of neurons that count evenly spaced
        levels; None of other kinds."""
        return None

    def along(self, z: Tensor, line: Line) -> Tensor:
        """`forward`, with what `line_at` made of `line()`."""
        del line
        return self(z)

    def spikes(self, count: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Spikes of steps start … stop − 1: bool (stop − start, B, …)."""
        stop = self.T if stop is None else stop
        if self.code == "sorted":
            return sorted_train(count, self.T, start=start, stop=stop)
        steps = torch.arange(start, stop, device=count.device).reshape(-1, *[1] * count.dim())
        if self.code == "onset":
            return steps == first_spike(count, self.T)
        digits = torch.bitwise_right_shift(count.to(torch.int64), self.T - 1 - steps)
        return (digits % 2).bool()

    def sent(self, count: Tensor) -> Tensor:
        """How many spikes each count is sent as: (B, …) in count's dtype, without making the trains."""
        if self.code == "sorted":
            return count
        if self.code == "onset":
            return (count > 0).to(count.dtype)
        digits = count.to(torch.int64)
        return sum(((digits >> place) & 1 for place in range(self.T)), torch.zeros_like(digits)).to(count.dtype)

    def pack(self, count: Tensor) -> PackedTrains:
        """The trains of `spikes` as bits. A kind with another `spikes` has its own, and its own `counted`."""
        return PackedTrains(words_of(count, self.T, self.code), self.T)

    def counted(self, trains: PackedTrains) -> Tensor:
        """The counts (B, …) that were packed, in the dtype of the neurons' parameters; 0 for a NaN."""
        return counts_of(trains.words, self.code, trains.sent()).to(next(self.parameters()).dtype)

    def emit(self, z: Tensor) -> tuple[Tensor, PackedTrains]:
        """All T steps for a mean input current z (B, …): the mean of the output current, as `forward`, and trains."""
        if (made := self._at_once(z, trains=True)) and made[1]:
            return made[0], made[1]
        count = self.count(z)
        return self.value(count), self.pack(count)

    def _at_once(self, z: Tensor, trains: bool) -> tuple[Tensor, PackedTrains | None] | None:
        """The output and the trains out of one kernel of a GPU; None where plain torch is to compute them."""
        if not z.is_cuda or torch.compiler.is_compiling() or type(z) is not Tensor:
            return None
        return self._kernel(z, trains)

    def _kernel(self, z: Tensor, trains: bool) -> tuple[Tensor, PackedTrains | None] | None:
        """`_at_once` for z on a GPU, of a kind of neurons that has a kernel."""
        return None

    def current(self, count: Tensor, start: int = 0, stop: int | None = None, window: int | None = None) -> Tensor:
        """Output current of steps start … stop − 1: (stop − start, B, …).

        window: steps that the network runs, at least T; the neuron is silent after its T and its spikes carry
        window/T as much, so that the mean over the window is `value(count)`.
        """
        window = self.T if window is None else window
        stop = window if stop is None else stop
        begin, end = min(start, self.T), min(stop, self.T)
        amplitudes = self.amplitudes()[begin:end] * (window / self.T)
        missing = count.dim() - amplitudes.dim() + 1
        amplitudes = amplitudes.reshape(len(amplitudes), *[1] * missing, *amplitudes.shape[1:])
        current = self.spikes(count, begin, end) * amplitudes
        if stop - start > end - begin:
            current = torch.cat([current, current.new_zeros(stop - start - end + begin, *count.shape)])
        rest = self.rest()
        return current if isinstance(rest, float) and not rest else current + rest


def _fixed(name: str, value: Any) -> AttributeError:
    return AttributeError(
        f"{name} = {value!r}: T, code and levels of neurons are fixed when they are made, for their thresholds belong "
        "to them: convert the network again with another T or code"
    )


def even_values(
    z: Tensor, line: Line, offset: float | Tensor | None, levels: int, *, lowest: int = 0, over: bool = False
) -> Tensor:
    """Mean outputs of neurons with evenly spaced counts lowest … levels for z (B, …), of the parameters' dtype.

    line: of `line_at`. offset: None for 0. over: on the CPU they are written over z.
    """
    if not runs_here(z):
        mean = reached(z, *line[:2]).floor_().clamp_(lowest, levels).mul_(line[2])
        return mean if offset is None else mean.add_(offset)

    # In place, since only this function holds the counts, and memory traffic is the cost of a neuron.
    def fill(out: Tensor, z: Tensor, ratio: Tensor, start: Tensor, scale: Tensor, rest: Any = offset) -> None:
        reached(z, ratio, start, out).floor_().clamp_(lowest, levels).mul_(scale)
        if rest is not None:
            out.add_(rest)

    middle = (offset,) if isinstance(offset, Tensor) else ()
    return in_pieces(fill, z.detach(), z.dtype, *line, *middle, over=over)


def even_amplitudes(v_post: Tensor, T: int, code: str) -> Tensor:
    """What a spike of each step carries where counts are evenly spaced and a full one stands for v_post: (T, …)."""
    steps = torch.arange(T, dtype=v_post.dtype, device=v_post.device)
    if code == "sorted":
        scale = torch.ones_like(steps)
    elif code == "onset":
        scale = T - steps
    else:
        scale = 2.0 ** (T - 1 - steps) * (T / levels_of(T, code))
    return scale.reshape(-1, *[1] * v_post.dim()) * v_post


class Even(Neuron):
    """Base of the neurons with evenly spaced levels.

    offset: the output of the count 0, a constant current: a number for all neurons, or a tensor. v_threshold: θ,
    pre-threshold. shift: δ. v_post: θ + φ, the sum of a full count's amplitudes divided by T (post-threshold). Each is
    a scalar or broadcasts against one sample, such as (C, 1, 1).
    """

    offset: float | Tensor

    def __init__(self, T: int, v_threshold: Tensor, *, offset: float | Tensor, code: Code = "sorted") -> None:
        super().__init__(T, code)
        if isinstance(offset, Tensor):
            self.register_buffer("offset", offset.detach().to(v_threshold).clone())
        else:
            self.offset = float(offset)
        self.v_threshold = nn.Parameter(v_threshold.detach().clone(), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros_like(v_threshold), requires_grad=False)
        self.v_post = nn.Parameter(v_threshold.detach().clone(), requires_grad=False)

    @abstractmethod
    def _forward(self, z: Tensor, over: bool = False, line: Line | None = None) -> Tensor:
        """`forward`, `over` and `along`."""

    def forward(self, z: Tensor) -> Tensor:
        return self._forward(z)

    def over(self, z: Tensor) -> Tensor:
        return self._forward(z, over=True)

    def along(self, z: Tensor, line: Line) -> Tensor:
        return self._forward(z, line=line)

    def line(self) -> Line:
        return self.v_threshold, self._shift(), self.v_post

    def _shift(self) -> Tensor:
        """δ from the output of the count 0 on."""
        return self.shift - self.offset

    def amplitudes(self) -> Tensor:
        return even_amplitudes(self.v_post, self.T, self.code)

    def rest(self) -> float | Tensor:
        return self.offset

    @classmethod
    def _restored(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], offset: float | Tensor) -> Self:
        theta = tensors["v_threshold"]
        if not bool((theta > 0).all()):
            raise ValueError("thresholds must be above 0")
        for name in ("shift", "v_post", *(["offset"] if isinstance(offset, Tensor) else [])):
            if tensors[name].dtype != theta.dtype:
                raise ValueError(f"{name} and v_threshold have unlike dtypes")
        neuron = cls(config["T"], theta, offset=offset, code=config["code"])
        for name in ("shift", "v_post"):
            setattr(neuron, name, nn.Parameter(tensors[name].clone(), requires_grad=False))
        return neuron


class ParallelNeuron(Even):
    """Parallel spiking neurons with evenly spaced levels, equations (7)-(9). offset: the smallest output, 0 for ReLU;
    the rest as in `Even`."""

    kind = "parallel"
    _kept: tuple[Any, tuple[Tensor, Tensor, Tensor], list[Tensor]] | None = None

    def __init__(self, T: int, v_threshold: Tensor, *, offset: float | Tensor = 0.0, code: Code = "sorted") -> None:
        super().__init__(T, v_threshold, offset=offset, code=code)

    def count(self, z: Tensor) -> Tensor:
        return spike_count(z, self.v_threshold, self.levels, self._shift())

    @property
    def offsets(self) -> bool:
        """Whether silent neurons emit a current. A tensor is not looked at, which would wait for the device."""
        return isinstance(self.offset, Tensor) or self.offset != 0

    def above(self, z: Tensor) -> Tensor:
        """z (…, one sample) as counted from the smallest output on."""
        return z - self.offset if self.offsets else z

    def _shift(self) -> Tensor:
        return self.shift - self.offset if self.offsets else self.shift

    def value(self, count: Tensor) -> Tensor:
        mean = count * (self.v_post / self.levels)
        return mean + self.offset if self.offsets else mean

    def _forward(self, z: Tensor, over: bool = False, line: Line | None = None) -> Tensor:
        if made := self._at_once(z, trains=False):
            return made[0]
        if z.dtype != self.v_threshold.dtype:
            mean = self.count(z).mul_(self.v_post.detach() / self.levels)
            return mean.add_(self.offset) if self.offsets else mean
        offset = self.offset if self.offsets else None
        return even_values(z, line or line_at(self.levels, *self.line()), offset, self.levels, over=over)

    def _kernel(self, z: Tensor, trains: bool) -> tuple[Tensor, PackedTrains | None] | None:
        offset = self.offset if self.offsets else None
        return fused.even(z, *self._line(), offset, levels=self.levels, T=self.T, code=self.code, trains=trains)

    def _line(self) -> tuple[Tensor, Tensor, Tensor]:
        """T/θ, δ T/θ + 1/2 and the mean output of one count. Kept until a parameter changes, for each is a small kernel
        of a GPU, which takes as long as a large one to ask for."""
        own = [self.v_threshold, self.shift, self.v_post, *([self.offset] if isinstance(self.offset, Tensor) else [])]
        known = not any(one.is_inference() for one in own)  # their changes are not counted
        key = [(one.data_ptr(), one._version, one.dtype, one.device) for one in own] if known else None
        if self._kept is None or key is None or self._kept[0] != key:
            line = *line_of(self.v_threshold, self.levels, self._shift()), self.v_post.detach() / self.levels
            # With the parameters, so that no other one comes to lie at their address.
            self._kept = key, line, [one.detach() for one in own]
        return self._kept[1]

    def extra_repr(self) -> str:
        theta = f"θ {float(self.v_threshold.min()):.4g} … {float(self.v_threshold.max()):.4g}"
        if not isinstance(self.offset, Tensor):
            return theta
        return f"{theta}, from {float(self.offset.min()):.4g} … {float(self.offset.max()):.4g} on"

    def config(self) -> dict[str, Any]:
        offset = None if isinstance(self.offset, Tensor) else self.offset
        return {"kind": self.kind, "T": self.T, "code": self.code, "offset": offset}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ParallelNeuron:
        offset = tensors["offset"] if config["offset"] is None else config["offset"]
        if not isinstance(offset, Tensor) and not math.isfinite(offset):
            raise ValueError("the offset must be finite")
        return cls._restored(config, tensors, offset)


def neuron_from(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SpikingLayer:
    """Neurons of any kind from their `config` and `state_dict`. Raises ValueError or KeyError."""
    kind = config["kind"]
    if kind not in KINDS:
        raise ValueError(f"unknown kind of neuron '{kind}': if it is your own, import the module that defines it first")
    return KINDS[kind].restore(config, tensors)
