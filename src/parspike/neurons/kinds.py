"""Which neuron a network is converted for, as a value: `Parallel`, `IF`, `LIF`.

>>> IF(reset="zero").text, LIF(0.9).text, kind_from_text("if-zero") == IF(reset="zero")
('if-zero', 'lif:0.9', True)
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from parspike.errors import OptionError

from .arguments import check_choice
from .dynamics import IntegrateFire, Reset
from .layer import CODES, MAX_WEIGHTED, Code

__all__ = ["BELOW", "IF", "LIF", "MAX_T", "Kind", "Parallel", "Serial", "check_kind", "kind_from_text"]

BELOW = 1 - 2.0**-10
"""A share of a threshold that is below it however either is rounded."""
MAX_T = 1 << 24
"""Most time-steps: counts above it are not whole numbers in float32."""


@dataclass(frozen=True)
class Kind(ABC):
    """Base of the kinds of neurons that a network can be converted for. Raises `OptionError` on what no neuron has."""

    def __post_init__(self) -> None:
        try:
            self._check()
        except (TypeError, ValueError) as error:
            raise OptionError(f"{type(self).__name__}: {error}") from error

    @abstractmethod
    def _check(self) -> None:
        """Raise ValueError on options that no such neuron has."""

    def check(self, T: int) -> None:
        """Raise `OptionError` unless such neurons can run T time-steps."""
        if isinstance(T, bool) or not isinstance(T, int) or not 1 <= T <= MAX_T:
            raise OptionError(f"T must be an integer from 1 to {MAX_T}, got {T!r}")

    @property
    @abstractmethod
    def text(self) -> str:
        """A short name, such as "sorted" or "lif:0.9"."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What the plan calls such neurons."""


@dataclass(frozen=True)
class Parallel(Kind):
    """Parallel spiking neurons, the paper's: the count follows from the mean input. code: how a count is sent."""

    code: Code = "sorted"

    def _check(self) -> None:
        check_choice(self.code, CODES, "code")

    def check(self, T: int) -> None:
        super().check(T)
        if self.code == "weighted" and T > MAX_WEIGHTED:
            raise OptionError(f"the weighted code takes at most {MAX_WEIGHTED} steps (2^T − 1 levels), got T={T}")

    @property
    def text(self) -> str:
        return self.code

    @property
    def words(self) -> str:
        return "parallel spiking neuron"


@dataclass(frozen=True, kw_only=True)
class Serial(Kind):
    """Base of integrate-and-fire neurons, which fire step by step: m = λ v + z, a spike where m ≥ θ, then the reset.

    reset: "subtract", v = m − θ (soft), or "zero", v = 0 (hard). v_init: v(0), "half" a threshold, "zero", or "fitted"
    for every channel. bias: the constant current into each channel is fitted; "constant", one for all steps, which is
    the bias of the synapse before, or "step", one for each step, where a chip has it. refractory: steps after a spike
    in which a neuron ignores its input. signed: a neuron may take a spike back, by a spike of −1.
    """

    reset: Reset = "subtract"
    v_init: Literal["half", "zero", "fitted"] = "fitted"
    bias: Literal["constant", "step"] = "constant"
    refractory: int = 0
    signed: bool = False

    def _check(self) -> None:
        check_choice(self.v_init, ("half", "zero", "fitted"), "v_init")
        check_choice(self.bias, ("constant", "step"), "bias")
        self.neuron(torch.ones(()))

    @property
    def words(self) -> str:
        return f"{type(self).__name__} neuron, {'reset by θ' if self.reset == 'subtract' else 'reset to 0'}"

    @property
    @abstractmethod
    def leak(self) -> float:
        """λ, the share of the potential that a step keeps."""

    @property
    def highest(self) -> float:
        """The threshold of neurons that are to fire at every step, as a share of the current that they then get. From
        a potential of 0 that current just reaches a threshold as large as it, or just does not, as it is rounded, and
        half of the spikes hang on it."""
        return BELOW if self.reset == "zero" or self.v_init == "zero" else 1.0

    def neuron(self, v_threshold: Tensor, offset: float | Tensor = 0.0) -> IntegrateFire:
        """Neurons of this kind with a threshold θ, v(0) = θ/2 (0 where `v_init` says so), and nothing fitted."""
        neuron = IntegrateFire(
            v_threshold, reset=self.reset, decay=self.leak, refractory=self.refractory, signed=self.signed,
            offset=offset,
        )  # fmt: skip
        if self.v_init == "zero":
            neuron.v_init.data.zero_()
        return neuron

    def to_json(self) -> dict[str, Any]:
        """The kind as JSON-able data."""
        return {"kind": type(self).__name__, **{f.name: getattr(self, f.name) for f in fields(self)}}


@dataclass(frozen=True)
class IF(Serial):
    """Integrate-and-fire neurons, which keep their potential: λ = 1. Options: see `Serial`."""

    @property
    def leak(self) -> float:
        return 1.0

    @property
    def text(self) -> str:
        return "if" if self.reset == "subtract" else "if-zero"


@dataclass(frozen=True)
class LIF(Serial):
    """Leaky integrate-and-fire neurons. decay: λ, the share of its potential that a neuron keeps from one step to the
    next, above 0 and at most 1. Other options: see `Serial`."""

    decay: float = 0.9

    @property
    def leak(self) -> float:
        return self.decay

    @property
    def text(self) -> str:
        return f"{'lif' if self.reset == 'subtract' else 'lif-zero'}:{self.decay:g}"


def check_kind(neuron: object) -> None:
    """Raise `OptionError` unless `neuron` is a kind."""
    if not isinstance(neuron, Kind):
        raise OptionError(
            f"neuron is {neuron!r}: give parspike.IF(), parspike.LIF(0.9) or parspike.Parallel(); a word is read by "
            "parspike.kind_from_text"
        )


def kind_from_text(text: str) -> Kind:
    """The kind that a word says: "parallel", "if", "if-zero" (reset to 0), "lif:0.9" or "lif-zero:0.9" (decay 0.9).

    Raises `OptionError` on any other.
    """
    number = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
    found = re.fullmatch(rf"(parallel|if|if-zero|lif|lif-zero)(?::({number}))?", text.strip())
    if found is None or (found[2] is None) == found[1].startswith("lif"):
        raise OptionError(f"'{text}' is no neuron: choose parallel, if, if-zero, lif:0.9 or lif-zero:0.9 (0.9: decay)")
    if found[1] == "parallel":
        return Parallel()
    reset: Reset = "zero" if found[1].endswith("zero") else "subtract"
    return IF(reset=reset) if found[2] is None else LIF(float(found[2]), reset=reset)
