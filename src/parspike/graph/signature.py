"""The arguments of convolutions, linear layers and pools by name. No other module reads them by position.

Names and defaults come from the operators' own schemas in torch; numbers that stand for all spatial dimensions are
written out, so `stride[d]` is the stride along spatial dimension d, also where the network gave one number for all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch

from parspike.graph.ir import Node, Param, Size

__all__ = ["SUMMED", "Conv", "Linear", "Pool", "adds_up", "arguments", "named", "with_weights"]

SPATIAL = re.compile(
    r"aten\.(conv_transpose|conv|max_pool|avg_pool|adaptive_max_pool|adaptive_avg_pool)([123])d(?:_with_indices)?\."
)
SUMMED = "whole.{}.pool.weight"
"""Path by node of the weights of a convolution or a linear layer that stands, in whole numbers, for an average pool or
for an interpolation."""
LINEAR = ("aten.linear.default", "aten.addmm.default", "aten.mm.default")


@dataclass(frozen=True)
class Conv:
    """A convolution over as many spatial dimensions as its tuples are long.

    input, weight, bias: `Ref` or `Param`; bias None: none. The weight is (out, in / groups, kernel …), or
    (in, out / groups, kernel …) where transposed. padding: zeros before and after; "same": as many as keep the size.
    """

    input: Any
    weight: Any
    bias: Any
    stride: tuple[int, ...]
    padding: tuple[int, ...] | Literal["same"]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def padded(self, kernel: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Zeros before and after along each spatial dimension, for a weight of this spatial shape.

        >>> Conv(None, None, None, (1,), "same", (3,), 1).padded([4])
        ((4, 5),)
        """
        if self.padding == "same":
            sums = [dilation * (size - 1) for dilation, size in zip(self.dilation, kernel, strict=True)]
            return tuple((total // 2, total - total // 2) for total in sums)
        return tuple((int(size), int(size)) for size in self.padding)


@dataclass(frozen=True)
class Linear:
    """input · weightᵀ + bias with the weight (out, in); where transposed, input · weight with the weight (in, out)."""

    input: Any
    weight: Any
    bias: Any
    transposed: bool = False


@dataclass(frozen=True)
class Pool:
    """A maximum or an average over windows along the last `rank` dimensions.

    kernel, stride, padding, dilation: one number a dimension. An adaptive pool has none of them (they are empty) and an
    `output_size` instead, None where a dimension keeps its size. divisor: of the average, None: the elements that it
    sums, padding among them where count_include_pad.
    """

    input: Any
    rank: int
    average: bool
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None
    output_size: tuple[Any, ...] = ()


def adds_up(node: Node) -> bool:
    """Whether a convolution or a linear layer only adds up the windows of a pool, or interpolates, in whole numbers: a
    wire and no synapse."""
    return SUMMED.format(node.name) in node.params


def arguments(node: Node) -> Conv | Linear | Pool | None:
    """The arguments of a convolution, a linear layer or a pool by name; None for every other operator, and for a
    convolution with groups for each sample.

    A product of matrices is a linear layer where its second factor is a tensor of the network.
    """
    if node.target in LINEAR:
        return _linear(node)
    match = SPATIAL.match(node.target)
    if match is None:
        return None
    kind, rank = match[1], int(match[2])
    given = named(node)
    if kind.startswith("conv"):
        if isinstance(given["groups"], Size):
            return None
        padding = given["padding"]
        return Conv(
            given["input"],
            given["weight"],
            given["bias"],
            _each(given["stride"], rank),
            "same" if padding == "same" else _each(0 if padding == "valid" else padding, rank),
            _each(given["dilation"], rank),
            int(given["groups"]),
            kind == "conv_transpose",
            _each(given["output_padding"], rank) if kind == "conv_transpose" else (0,) * rank,
        )
    average = "avg" in kind
    if kind.startswith("adaptive"):
        return Pool(given["self"], rank, average, output_size=_each(given["output_size"], rank))
    kernel = _each(given["kernel_size"], rank)
    return Pool(
        given["self"],
        rank,
        average,
        kernel,
        _each(given["stride"], rank) or kernel,
        _each(given["padding"], rank),
        _each(given.get("dilation", 1), rank),
        bool(given["ceil_mode"]),
        bool(given.get("count_include_pad", True)),
        given.get("divisor_override"),
    )


def with_weights(node: Node, weight: Any, bias: Any) -> Node:
    """The convolution, or the `aten.linear`, with another weight and bias."""
    args, kwargs, names = list(node.args), dict(node.kwargs), [name for name, _ in _schema(node.target)]
    for name, value in (("weight", weight), ("bias", bias)):
        place = names.index(name)
        if name in kwargs or place > len(args):
            kwargs[name] = value
        else:
            args[place : place + 1] = [value]
    return replace(node, args=tuple(args), kwargs=kwargs)


def _linear(node: Node) -> Linear | None:
    given = named(node)
    if node.target == "aten.linear.default":
        return Linear(given["input"], given["weight"], given["bias"])
    x, weight = (given["mat1"] if "mat1" in given else given["self"]), given["mat2"]
    if not isinstance(weight, Param) or isinstance(x, Param) or given.get("beta", 1) != 1 or given.get("alpha", 1) != 1:
        return None
    return Linear(x, weight, given["self"] if "mat1" in given else None, transposed=True)


@cache
def _schema(target: str) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of the arguments, in their order."""
    _, packet, overload = target.split(".")
    known = getattr(torch.ops.aten, packet)
    # The places of an adaptive maximum are an overload of the table's, with the arguments of torch's own.
    found = getattr(known, "default" if overload == "places" else overload)
    return tuple((argument.name, argument.default_value) for argument in found._schema.arguments)


def named(node: Node) -> dict[str, Any]:
    """Every argument of a node of torch's by the name that the operator's schema gives it, defaults among them."""
    schema = _schema(node.target)
    given = dict(schema) | node.kwargs
    return given | {name: value for (name, _), value in zip(schema, node.args, strict=False)}


def _each(value: Any, rank: int) -> tuple[Any, ...]:
    """One value a dimension, of a number or of a list that holds one for all; an empty list stays empty."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * rank if len(values) == 1 else values
