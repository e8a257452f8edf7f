"""Float64 in place of every narrower floating type, for comparisons that rounding cannot decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from parspike.graph.ir import Graph

__all__ = ["Wide", "WithEps", "implied_eps", "wide", "wide_dtype", "widened"]


def wide_dtype(dtype: torch.dtype) -> torch.dtype | None:
    """The type that takes the place of a floating or complex one; None for whole numbers and booleans."""
    return torch.complex128 if dtype.is_complex else torch.float64 if dtype.is_floating_point else None


def wide(value: Any) -> Any:
    """A tensor or a type in float64 (complex128); anything else unchanged."""
    if isinstance(value, torch.dtype):
        return wide_dtype(value) or value
    if isinstance(value, Tensor) and (dtype := wide_dtype(value.dtype)) is not None:
        return value.to(dtype)
    return value


def widened(graph: Graph) -> Graph:
    """The graph with its tensors in float64. Run it within `Wide`, which takes care of the types in its arguments."""
    return replace(graph, tensors={path: wide(tensor) for path, tensor in graph.tensors.items()})


class Wide(TorchDispatchMode):
    """Runs every operator in float64, also where the code names a narrower type (`x.half()`, `dtype=torch.float32`)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = pytree.tree_map_only(torch.dtype, wide, (args, kwargs or {}))
        return pytree.tree_map_only(Tensor, wide, func(*named[0], **named[1]))


def implied_eps(dtype: torch.dtype) -> float:
    """The ε of torch.rms_norm where none is given: of float32 for half precision too, which it computes in float32."""
    return torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps


class WithEps(TorchFunctionMode):
    """Gives torch.rms_norm the ε of another type where none is given: of the network that runs in float64 here."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = implied_eps(dtype)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.rms_norm and all(eps is None for eps in (*args[3:], kwargs.get("eps"))):
            args, kwargs = args[:3], {**kwargs, "eps": self.eps}
        return func(*args, **kwargs)
