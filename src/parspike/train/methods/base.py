"""What a method of training decides: the network, its loss, its parameter groups, and what changes from epoch to epoch.

A method is one file here: a frozen dataclass whose fields are its options, which are the entries of the recipe's table
[activation] beside `method`, its name. `Direct` is the base of methods that train spiking neurons over T time-steps.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Size, Tensor, nn

from parspike.errors import InputError, OptionError, ParspikeWarning, meant
from parspike.foreign import METHODS_OF_PACKAGES, class_of_package, registered, users_class
from parspike.train.direct import LIF, OverTime
from parspike.train.fields import above, at_least, read, within
from parspike.train.replace import replace_activations

__all__ = [
    "METHODS",
    "Batch",
    "Direct",
    "Group",
    "Leaky",
    "Method",
    "check_logits",
    "method_from",
    "method_name",
    "shaped_by",
    "swapped",
]

METHODS: dict[str, type[Method]] = {}
"""By name; a class that extends `Method` and has a `name` is entered here when it is defined. Two of one name are
refused."""

Batch = Callable[[], tuple[Tensor, Tensor]]
"""Gives the first inputs and labels of the epoch, (B, …) and (B,), the same in every process."""


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike. rate: share of the learning rate. decay: whether weight decay acts on them."""

    parameters: list[nn.Parameter]
    rate: float = 1.0
    decay: bool = True


@dataclass(frozen=True)
class Method(ABC):
    """A method of training: options that are checked when they are made, and what the training loop asks for.

    State that a method changes from epoch to epoch stands in buffers of the network, so that it is in checkpoints and
    weights; `before_epoch` may depend on nothing else but its arguments.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        registered(cls, METHODS, "method")

    @abstractmethod
    def network(self, base: nn.Module, example: Any) -> nn.Module:
        """The network that is trained, from a ReLU network. Its forward(x) gives logits (B, K).

        example: inputs (B, …), or None. Raises `OptionError` where the method cannot do without.
        """

    def restored(self, base: nn.Module, example: Any, shapes: Mapping[str, Size]) -> nn.Module:
        """The network for weights from a file, which has tensors of these shapes: what comes from data needs none."""
        return self.network(base, example)

    def outputs(self, network: nn.Module, x: Tensor) -> Tensor:
        """What the loss is computed of: `leading` dimensions, then classes."""
        return network(x)

    def leading(self, batch: int) -> tuple[int, ...]:
        """The dimensions before the classes in `outputs` of a batch."""
        return (batch,)

    def loss(self, output: Tensor, y: Tensor, smoothing: float) -> Tensor:
        """The loss of `outputs` and labels (B,). smoothing: share of the target spread over all classes."""
        return F.cross_entropy(output, y, label_smoothing=smoothing)

    def penalty(self, network: nn.Module) -> Tensor | float:
        """What is added to the loss, from what the network's neurons noted in this pass."""
        return 0.0

    def groups(self, network: nn.Module) -> list[Group]:
        """All of the network's parameters, by how they are trained."""
        return [Group(list(network.parameters()))]

    def before_epoch(self, network: nn.Module, epoch: int, epochs: int, batch: Batch) -> None:  # noqa: B027
        """Change what the method changes from epoch to epoch (counted from 0), before its first step."""


@dataclass(frozen=True)
class Direct(Method):
    """Base of the methods that train spiking neurons over T time-steps with surrogate gradients.

    Every activation becomes spiking neurons, the input is the same at each step, and the answer is the mean output over
    time. T: time-steps.
    """

    T: int = 4

    def __post_init__(self) -> None:
        at_least("activation.T", self.T, 1)

    @abstractmethod
    def neurons(self, start: float | Tensor) -> nn.Module:
        """The neurons in place of one activation, from currents (T·B, …) to spikes of the same shape.

        start: a number, or, where the method asks `replace_activations` for it, a tensor (C, 1, 1) a channel.
        """

    def network(self, base: nn.Module, example: Any) -> nn.Module:
        """`OverTime` of a copy of the network with these neurons for its activations."""
        return OverTime(replace_activations(base, self.neurons, example=example), self.T)

    def outputs(self, network: nn.Module, x: Tensor) -> Tensor:
        """The output of each step, (T, B, K)."""
        return network(x, per_step=True)

    def leading(self, batch: int) -> tuple[int, ...]:
        """(T, B)."""
        return self.T, batch

    def loss(self, output: Tensor, y: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy of the mean output over time."""
        return F.cross_entropy(output.mean(0), y, label_smoothing=smoothing)


@dataclass(frozen=True)
class Leaky(Direct):
    """Base of the methods whose neurons are `LIF`. tau: leak τ. v_threshold: θ."""

    tau: float = 0.25
    v_threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        within("activation.tau", self.tau, 0, 1)
        above("activation.v_threshold", self.v_threshold)

    def neurons(self, start: float | Tensor) -> nn.Module:
        """LIF with a rectangle for the derivative of a spike."""
        return LIF(self.T, self.tau, self.v_threshold)


def check_logits(method: Method, output: Any, batch: int, classes: int) -> None:
    """Raise `InputError` unless this is one tensor with what a method's loss is computed of, for so many classes."""
    leading = method.leading(batch)
    fits = isinstance(output, Tensor) and output.shape[:-1] == leading and output.shape[-1] >= classes
    if not fits:
        given = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InputError(
            f"the network gives {given}; expected logits ({'T, ' * (len(leading) - 1)}B, {classes}): "
            "set data.classes in the recipe or another last layer"
        )


EARLIER = {"levels", "v_threshold", "per_channel", "window", "pool", "T"}
"""The options of qcfs, relu and stbp, which stood in one table until each method got its own."""


def method_from(values: Any, where: str) -> Method:
    """A method from the table [activation]: its entry `method` (without it: qcfs) and that method's options.

    >>> method_from({"method": "stbp", "T": 2}, "")
    STBP(T=2, tau=0.25, v_threshold=0.5)
    """
    if not isinstance(values, Mapping):
        raise OptionError(f"{where}: expected a table, got {repr(values)[:80]}")
    options = {name: value for name, value in values.items() if name != "method"}
    name = values.get("method", "qcfs")
    found = METHODS.get(name) if isinstance(name, str) else None
    if found is None and isinstance(name, str):
        found = class_of_package(name, METHODS_OF_PACKAGES, Method, "method")
    if found is None:
        known = [*METHODS, *entry_points(group=METHODS_OF_PACKAGES).names]
        raise OptionError(
            f"activation.method = {repr(name)[:80]}{meant(name, known)}: choose one of {', '.join(known)}, or "
            "file.py:Class for your own (in Python, import its file)"
        )
    return read(found, _of_earlier_versions(name, options), f"{where} of method {name}")


def method_name(asked: Any) -> Any:
    """The name of the method that a recipe asks for: that of the class, whose file is run, for `file.py:Class` or
    `package.module:Class`. Files that `parspike train` wrote hold names alone, so reading them runs no code."""
    return users_class(asked, Method, "method").name if isinstance(asked, str) and ":" in asked else asked


def _of_earlier_versions(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Without the entries of `EARLIER` that are another method's; they had no effect then."""
    own = {"qcfs": EARLIER - {"T"}, "relu": set(), "stbp": {"T"}}.get(name)
    if own is None:
        return options
    foreign = (EARLIER - own) & options.keys()
    if name == "stbp" and foreign == {"v_threshold"}:  # that of LIF neurons, which is an option of stbp now
        return options
    if foreign and not options.keys() >= EARLIER:  # a table with all of them was written by an earlier version
        left_out = ", ".join(sorted(foreign))
        warnings.warn(f"method {name} has no {left_out}: left out", ParspikeWarning, stacklevel=6)
    return {option: value for option, value in options.items() if option not in foreign}


def shaped_by(network: nn.Module, kind: type[nn.Module], shapes: Mapping[str, Size]) -> nn.Module:
    """The network, whose modules of this kind take the shapes of their parameters from a file: how many channels."""
    for name, module in network.named_modules():
        for own, parameter in list(module.named_parameters(name, recurse=False)) if isinstance(module, kind) else ():
            if own in shapes and shapes[own] != parameter.shape:
                made = nn.Parameter(parameter.detach().new_ones(shapes[own]))
                setattr(module, own.rpartition(".")[2], made)
    return network


def swapped(network: nn.Module, kind: type[nn.Module], make: Callable[[str, Any], nn.Module]) -> int:
    """Put make(name, module) in the place of each module of a kind, in place; how many there were."""
    made: dict[int, nn.Module] = {}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, kind):
            parent, _, last = name.rpartition(".")
            if id(module) not in made:  # a module with two names is replaced by one
                made[id(module)] = make(name, module)
            setattr(network.get_submodule(parent), last, made[id(module)])
    return len(made)
