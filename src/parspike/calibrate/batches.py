"""Calibration data as batches of the network's inputs, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from parspike.errors import CalibrationError, InputError
from parspike.graph import Graph, Size

__all__ = ["Batches"]

DICT_KEYS = ("input", "inputs", "image", "images", "x", "pixel_values")


class Batches:
    """An iterable of the network's inputs by name, from what a user has.

    source: tensors (B, …), (x, y) tuples, dicts with one of the usual keys, or one tensor (N, …) that is cut into
    batches of `batch_size`. inputs: a function from an item to the model's input, a tuple of inputs or a dict of
    keyword inputs. The source is read several times; a generator, which can be read once, is kept as a list.
    """

    def __init__(
        self, source: Any, graph: Graph, *, inputs: Callable[[Any], Any] | None = None, batch_size: int = 64
    ) -> None:
        self.graph, self.inputs = graph, inputs
        if isinstance(source, Tensor):
            source = source.split(batch_size)
        elif not isinstance(source, Iterable):
            raise CalibrationError(f"calibration must be an iterable of batches, got {type(source).__name__}")
        elif iter(source) is source:
            source = list(source)
        self.source: Iterable[Any] = source
        self.count = 0  # samples, known after the first pass
        self.hash = ""  # of the inputs, known after the first pass

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        count, digest = 0, hashlib.sha256()
        for number, item in enumerate(self.source):
            env = self._item(item, number)
            if not self.hash:
                for name, x in env.items():
                    digest.update(name.encode() + x.detach().cpu().contiguous().numpy().tobytes())
            count += next(iter(env.values())).shape[0]
            yield env
        if count == 0:
            raise CalibrationError("the calibration set is empty: give at least one batch of inputs")
        self.count, self.hash = count, self.hash or digest.hexdigest()

    def _item(self, item: Any, number: int) -> dict[str, Tensor]:
        place = f"calibration batch {number}"
        args = self._arguments(item, place)
        positional, names = self.graph.signature
        values = dict(args) if isinstance(args, Mapping) else None
        args = () if values is not None else args if isinstance(args, tuple) else (args,)
        if values is None and len(args) < positional or values is not None and set(values) < set(names):
            raise CalibrationError(f"{place} does not give the {len(self.graph.inputs)} inputs of the network")
        env = self.graph.bind(args[:positional], values or {})
        for i in self.graph.inputs:
            x = env.get(i.name)
            if not isinstance(x, Tensor):
                raise CalibrationError(f"{place}: input '{i.name}' is {type(x).__name__}, expected a tensor (B, …)")
            fixed = [d for d, n in zip(i.shape, x.shape, strict=False) if not isinstance(d, Size) and d != n]
            if x.dim() != len(i.shape) or fixed:
                shape = "(" + ", ".join(str(dim) for dim in i.shape) + ")"
                raise InputError(f"{place}: input '{i.name}' has shape {tuple(x.shape)}, the network takes {shape}")
            if x.is_floating_point() != i.dtype.is_floating_point or (x.is_floating_point() and x.dtype != i.dtype):
                raise InputError(f"{place}: input '{i.name}' is {x.dtype}, the network takes {i.dtype}")
            if x.is_floating_point() and not torch.isfinite(x).all():
                raise InputError(f"{place}: input '{i.name}' holds NaN or Inf")
        return env

    def _arguments(self, item: Any, place: str) -> Any:
        if self.inputs is not None:
            return self.inputs(item)
        if isinstance(item, Mapping):
            names = self.graph.signature[1]
            if names and set(names) <= set(item):
                return {name: item[name] for name in names}
            key = next((key for key in DICT_KEYS if key in item), None)
            if key is None:
                raise CalibrationError(
                    f"{place} is a dict with the keys {list(item)}: none is one of {', '.join(DICT_KEYS)}; pass inputs="
                )
            return item[key]
        if isinstance(item, (tuple, list)):
            return tuple(item[: max(1, self.graph.signature[0])])
        return item
