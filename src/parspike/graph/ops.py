"""The op table: what each operator is for a spiking network. The only place that knows ATen's names.

A new operator is one row. A new activation is one row with a function that describes it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from parspike import neurons

if TYPE_CHECKING:
    from parspike.graph.ir import Node

__all__ = ["TABLE", "Activation", "Clip", "Op", "Quantised", "Role", "call", "judge"]


class Role(StrEnum):
    """What an operator is for a spiking network."""

    SYNAPSE = "synapse"
    """Affine in its input, so it acts on spikes as it does on their average."""
    NEURON = "neuron"
    """A monotone elementwise activation: becomes a spiking neuron."""
    ORDER = "order"
    """Picks the largest: exact on nested spike trains, else computed on the time-means."""
    ANALOG = "analog"
    """What a spike cannot do: computed on the time-means, always named."""
    UNKNOWN = "unknown"
    """Not in the table: refused."""


@dataclass(frozen=True)
class Clip:
    """The activation clip(z, low, high); high may be infinite (ReLU)."""

    low: float
    high: float


@dataclass(frozen=True)
class Quantised:
    """The activation QCFS, equation (5), with its number of levels and the path of its threshold."""

    levels: int
    v_threshold: str


Activation = Clip | Quantised


@dataclass(frozen=True)
class Op:
    """One row of the table.

    varying: positions of the arguments that may depend on the input (None: any). product: affine only while a
    single argument depends on the input. weighted: its cost is worth counting and not worth repeating.
    """

    role: Role
    run: Callable[..., Any]
    varying: tuple[int, ...] | None = None
    product: bool = False
    weighted: bool = False
    activation: Callable[[Node], Activation | str] | None = None
    reason: str = ""


def _aten(name: str) -> Callable[..., Any]:
    packet, overload = name.removeprefix("aten.").split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Per-channel scale·x + shift along dimension 1: a batch norm in evaluation."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    return x * scale.reshape(shape) + shift.reshape(shape)


def _number(value: Any, default: float) -> float:
    return default if value is None else float(value)


def _clamp(node: Node) -> Activation | str:
    bounds = [*node.args[1:], *([None] * 3)]
    low = _number(node.kwargs.get("min", bounds[0]), -math.inf)
    high = _number(node.kwargs.get("max", bounds[1]), math.inf)
    if not math.isfinite(low):
        return "a clamp without a lower bound has no smallest output, so no silent neuron"
    return Clip(low, high) if high > low else "the clamp's bounds leave no room between them"


def _hardtanh(node: Node) -> Activation | str:
    low, high = (*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :])
    return Clip(float(low), float(high)) if high > low else "the bounds leave no room between them"


def _qcfs(node: Node) -> Activation | str:
    _, threshold, levels = node.args
    path = getattr(threshold, "path", None)
    return "its threshold is not a tensor of the network" if path is None else Quantised(levels, path)


TABLE: dict[str, Op] = {}


def _rows(role: Role, names: str, **options: Any) -> None:
    for name in names.split():
        TABLE[f"aten.{name}"] = Op(role, _aten(f"aten.{name}"), **options)


_rows(Role.SYNAPSE, "conv1d.default conv2d.default conv3d.default conv2d.padding conv1d.padding conv3d.padding "
      "conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input linear.default",
      varying=(0,), weighted=True)  # fmt: skip
_rows(Role.SYNAPSE, "matmul.default mm.default bmm.default einsum.default", product=True, weighted=True)
_rows(Role.SYNAPSE, "mul.Tensor mul.Scalar", product=True)
_rows(Role.SYNAPSE, "div.Tensor div.Scalar", varying=(0,))
_rows(Role.SYNAPSE, "add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar neg.default cat.default stack.default")
_rows(Role.SYNAPSE, "avg_pool1d.default avg_pool2d.default avg_pool3d.default adaptive_avg_pool1d.default "
      "adaptive_avg_pool2d.default adaptive_avg_pool3d.default mean.dim mean.default sum.dim_IntList sum.default "
      "upsample_nearest1d.default upsample_nearest2d.default upsample_nearest2d.vec upsample_bilinear2d.default "
      "upsample_bilinear2d.vec pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default",
      varying=(0,))  # fmt: skip
_rows(Role.SYNAPSE, "reshape.default flatten.using_ints unflatten.int "
      "permute.default transpose.int t.default squeeze.dim squeeze.dims squeeze.default unsqueeze.default "
      "expand.default slice.Tensor select.int split.Tensor split_with_sizes.default chunk.default unbind.int "
      "narrow.default index_select.default roll.default flip.default repeat.default constant_pad_nd.default "
      "pad.default reflection_pad2d.default replication_pad2d.default clone.default contiguous.default "
      "alias.default detach.default _to_copy.default to.dtype lift_fresh_copy.default index.Tensor",
      varying=(0,))  # fmt: skip
_rows(Role.SYNAPSE, "zeros.default ones.default full.default arange.default arange.start arange.start_step",
      varying=())  # fmt: skip
_rows(Role.NEURON, "relu.default", activation=lambda node: Clip(0.0, math.inf))
_rows(Role.NEURON, "relu6.default", activation=lambda node: Clip(0.0, 6.0))
_rows(Role.NEURON, "clamp.default clamp_min.default", activation=_clamp)
_rows(Role.NEURON, "hardtanh.default", activation=_hardtanh)
_rows(Role.ORDER, "max_pool1d.default max_pool2d.default max_pool3d.default")
TABLE["getitem"] = Op(Role.SYNAPSE, operator.getitem, varying=(0,))
TABLE["parspike.scale_shift"] = Op(Role.SYNAPSE, scale_shift, varying=(0,))
TABLE["parspike.qcfs"] = Op(Role.NEURON, neurons.qcfs, varying=(0,), activation=_qcfs)

REMEDY = {
    Role.UNKNOWN: "replace it by an operator of the table (docs/operators.md), or keep the part of the network "
    "that needs it outside the model that is converted",
    Role.ANALOG: "",
}


def call(target: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run the operator."""
    return TABLE[target].run(*args, **kwargs)


def judge(target: str, varying: Sequence[bool]) -> tuple[Role, str]:
    """Role of an operator whose positional arguments depend on the network's input as `varying` says, and why."""
    row = TABLE.get(target)
    if row is None:
        return Role.UNKNOWN, f"no rule for {target}"
    count = sum(varying)
    if row.product and count > 1:
        return Role.UNKNOWN, "a product of two values that both depend on the input"
    if row.varying is not None and any(v for i, v in enumerate(varying) if i not in row.varying):
        return Role.UNKNOWN, "a weight or divisor that depends on the input"
    return row.role, row.reason
