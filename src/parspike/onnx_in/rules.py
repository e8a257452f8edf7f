"""What an operator of ONNX computes, as a function of torch: one rule an operator, kept by name.

A rule gets the `Site` of a node and its inputs, and returns an output or a tuple of them. An input is a tensor, None
where it is left out, or, in the places that the rule *prefers known*, an array of NumPy: a constant of the file, or
sizes of tensors, which `torch.export` leaves open. An array of sizes has the type `object` and holds ints of Python or
`torch.SymInt`. Sizes are computed by `sizes.py`, so that the traced graph holds no operator for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parspike.errors import TraceError, UnsupportedError
from parspike.onnx_in.file import Call

__all__ = ["MOST", "REFUSED", "RULES", "Rule", "Site", "as_tensor", "dtype_of", "number", "rule", "whole"]

MOST = 1 << 31
"""Elements at most of a tensor whose size a number in the file says."""
INTEGERS = (
    "it computes with whole numbers: export the network of floating numbers; parspike quantises by its time-steps"
)
BRANCH = "it runs a part of the graph by a value that is not constant"
RANDOM = "it draws random numbers, and a converted network computes the same every time"
REFUSED: dict[str, str] = {name: reason for reason, names in {
    INTEGERS: "ConvInteger MatMulInteger QLinearConv QLinearMatMul DynamicQuantizeLinear QLinearAdd QLinearMul "
              "QLinearGlobalAveragePool QLinearSigmoid QLinearLeakyRelu QLinearConcat QLinearAveragePool QGemm "
              "DynamicQuantizeMatMul MatMulNBits",
    BRANCH: "If Loop Scan SequenceMap",
    RANDOM: "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Multinomial Bernoulli",
}.items() for name in names.split()}  # fmt: skip
"""Operators that are refused for a reason of their own, by name."""

TORCH: dict[str, torch.dtype] = {
    "float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "int64": torch.int64, "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8,
    "uint16": torch.uint16, "uint32": torch.uint32, "uint64": torch.uint64, "bool": torch.bool,
    "int4": torch.int8, "uint4": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """How an operator is computed. known: positions of inputs that are given as arrays where they are known; the others
    are always tensors. outputs: as many of its outputs as it can make."""

    run: Callable[..., Any]
    known: tuple[int, ...] = ()
    outputs: int = 1


@dataclass(frozen=True)
class Site:
    """A node, and where it runs. batch: the size of the batch that it runs on, and the one that the file fixes. most:
    elements at most of a tensor whose size a number in the file says."""

    call: Call
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch: Any = None
    fixed_batch: int | None = None
    most: int = MOST

    @property
    def opset(self) -> int:
        """The version of its operators' rules."""
        return self.call.opset

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.call.get(name, default)

    def tensor(self, value: Any, like: Tensor | None = None) -> Tensor:
        """A value as a tensor, in the type of another if one is given."""
        made = value if isinstance(value, Tensor) else as_tensor(value, self.device)
        return made if like is None or made.dtype == like.dtype else made.to(like.dtype)

    def constant(self, value: Any, what: str) -> np.ndarray:
        """An array of numbers that must not depend on the network's inputs."""
        if isinstance(value, Tensor):
            raise TraceError(f"{self.call}: {what} depends on the values of the network's inputs: not supported")
        return np.asarray(value)

    def ints(self, value: Any, what: str) -> list[Any]:
        """Whole numbers: constants or sizes, which must not depend on values of the inputs."""
        return [v if isinstance(v, torch.SymInt) else int(v) for v in self.constant(value, what).reshape(-1)]

    def refuse(self, why: str) -> UnsupportedError:
        """The error that says why this node cannot be read."""
        return UnsupportedError(f"{self.call}: {why}")

    def checked(self, shape: Sequence[Any]) -> list[Any]:
        """A shape for a tensor that is made by numbers of the file: refused where it is beyond all measure."""
        known = math.prod(abs(d) for d in shape if isinstance(d, int))
        if known > self.most:
            raise self.refuse(f"it asks for a tensor of {known} elements")
        return list(shape)

    def of_batch(self, size: Any) -> Any:
        """The leading size of a shape that the file writes as a number, for the batch that runs."""
        return size if self.fixed_batch is None or size in (0, -1) else size * self.batch // self.fixed_batch


RULES: dict[tuple[str, str], Rule] = {}


def rule(names: str, *known: int, outputs: int = 1, domain: str = "") -> Callable[[Callable[..., Any]], Any]:
    """Register a function as the rule of operators."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        for name in names.split():
            RULES[domain, name] = Rule(run, known, outputs)
        return run

    return register


def whole(value: np.ndarray) -> np.ndarray:
    """An array of sizes as plain numbers, where none of them is open."""
    if value.dtype != object:
        return value
    flat = value.reshape(-1).tolist()
    if any(isinstance(v, (torch.SymInt, torch.SymFloat, torch.SymBool)) for v in flat):
        return value
    kind: Any = bool if flat and all(isinstance(v, (bool, np.bool_)) for v in flat) else (
        np.float32 if any(isinstance(v, float) for v in flat) else np.int64)  # fmt: skip
    return np.array(flat, kind).reshape(value.shape)


def as_tensor(value: Any, device: torch.device) -> Tensor:
    """An array as a tensor; open sizes stay open."""
    value = whole(np.asarray(value))
    if value.dtype != object:
        return torch.from_numpy(np.array(value, order="C")).to(device)
    flat = value.reshape(-1).tolist()
    kind = torch.float32 if any(isinstance(v, (float, torch.SymFloat)) for v in flat) else torch.int64
    parts = [torch.full((), v, dtype=kind, device=device) for v in flat]
    return torch.stack(parts).reshape(value.shape) if value.ndim else parts[0]


def number(site: Site, value: Any, what: str, default: Any = None) -> Any:
    """A single number, or the default where the input is left out."""
    if value is None:
        return default
    found = site.constant(value, what).reshape(-1)
    if len(found) != 1:
        raise site.refuse(f"{what} has {len(found)} numbers instead of one")
    return found[0] if found.dtype == object else found[0].item()


def dtype_of(site: Site, code: int) -> torch.dtype:
    """torch's type for a number of TensorProto.DataType."""
    from parspike.onnx_in.file import DTYPES

    name = DTYPES.get(code, ("",))[0]
    if name not in TORCH or name.endswith("int4"):
        raise site.refuse(f"the type {name or code} is not supported")
    return TORCH[name]
