"""Calibration data as batches of the network's inputs, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

from torch import Tensor

from parspike.errors import CalibrationError
from parspike.graph import Graph

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

    @property
    def length(self) -> int:
        """Number of batches, 0 where the source does not say."""
        return len(self.source) if isinstance(self.source, Sized) else 0

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
        args: Any = self._arguments(item, place)
        positional, names = self.graph.signature
        if isinstance(args, Mapping):
            args, kwargs = (), {name: args[name] for name in names if name in args}
        else:
            args, kwargs = args if isinstance(args, tuple) else (args,), {}
        env = self.graph.bind(args[:positional], kwargs)
        self.graph.check(env, place)
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
