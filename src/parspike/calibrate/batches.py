"""Calibration data as batches of the network's inputs, checked."""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from parspike.engines.base import Network
from parspike.errors import CalibrationError, InputError, ParspikeWarning, check_function
from parspike.graph import Graph, on_device_of
from parspike.graph.opened import LABELS
from parspike.together import Together

__all__ = ["Batches", "arguments_of", "bound", "inputs_of", "labels_of", "number_of", "readable_again", "signature_of"]

DICT_KEYS = ("input", "inputs", "image", "images", "x", "pixel_values")
SEEN = 32
"""Samples of which the spread of a value is known well enough to see that they are prepared otherwise than others."""


def readable_again(source: Any, batch_size: int = 64, *, name: str = "calibration") -> Iterable[Any]:
    """A source of data as an iterable of items that can be read several times.

    One tensor (N, …) and a `Dataset` of samples are cut into batches of `batch_size`; a generator, which can be read
    once, is kept as a list. name: the argument, for error messages.
    """
    if isinstance(source, Tensor):
        if source.layout is not torch.strided:
            raise CalibrationError(f"{name} is a sparse tensor ({source.layout}): pass x.to_dense()")
        return source.split(batch_size)
    if isinstance(source, np.ndarray):
        raise CalibrationError(f"{name} is a numpy array: pass torch.from_numpy(x)")
    if isinstance(source, Dataset) and not isinstance(source, Iterable):
        return DataLoader(source, batch_size, collate_fn=functools.partial(_collated, name))
    if not isinstance(source, Iterable) or isinstance(source, (str, bytes, Mapping, nn.Module)):
        one = ": put one batch into a list, [batch]" if isinstance(source, Mapping) else ""
        one = ": give tensors; the command line reads files (--data)" if isinstance(source, (str, Path)) else one
        one = ": the network comes first" if isinstance(source, nn.Module) else one
        raise CalibrationError(f"{name} must be an iterable of batches, got {type(source).__name__}{one}")
    if isinstance(source, (tuple, list)) and len(source) == 2 and _labelled(*source):
        raise CalibrationError(f"{name} is inputs and labels, which are one batch: put it into a list, [(x, y)]")
    return list(source) if iter(source) is source else source


def _collated(name: str, samples: list[Any]) -> Any:
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CalibrationError(
            f"the samples of {name} cannot be put into one batch ({said}): give the data set a transform that makes "
            "tensors of one size (torchvision.transforms: Resize, CenterCrop, ToTensor), or pass a DataLoader"
        ) from error


def number_of(source: Any) -> int:
    """The number of batches, 0 where the source does not say, as a loader of an `IterableDataset` does not."""
    try:
        return len(source)
    except TypeError:
        return 0


def _labelled(inputs: Any, labels: Any) -> bool:
    """Whether the second tensor holds a whole number for each row of the first."""
    if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor):
        return False
    return inputs.dim() > 1 and labels.shape == inputs.shape[:1] and not labels.is_floating_point()


def signature_of(
    model: nn.Module, item: Any, inputs: Callable[[Any], Any] | None = None
) -> tuple[int, tuple[str, ...]]:
    """How many inputs of an item are positional and which are keywords, as `model.forward` names them.

    A dict gives the entries that `forward` names, labels and None left out; one that has none of them but a usual key,
    or only the one input that `forward` asks for, gives that alone; any other item as many as `forward` asks for.
    """
    parameters = _parameters(model)
    asked = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    several = inputs is None and isinstance(item, (tuple, list)) and len(item) > 1
    if several and any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        raise InputError("forward takes *inputs: say with inputs= which entries of a calibration item it takes")
    keys: tuple[str, ...] = ()
    if isinstance(item, Mapping):
        named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        labels = {*LABELS, *(["y"] if "y" in named and named["y"].default is not inspect.Parameter.empty else [])}
        keys = tuple(key for key in item if key in named and key not in labels and item[key] is not None)
        if set(item) & set(DICT_KEYS) and not (len(keys) > 1 and set(asked) <= set(keys)):
            keys = ()
    return max(1, len(asked)), keys


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of `forward`; for a wrapper such as DataParallel, or what `with_qcfs` wrapped, those of the
    network inside."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except (AttributeError, TypeError, ValueError):
        return {}  # no network, or one without a Python signature: tracing says what is wrong with it
    within = next((own for name in ("module", "_orig_mod", "network") if (own := getattr(model, name, None))), None)
    handed = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    return _parameters(within) if handed and isinstance(within, nn.Module) else parameters


def arguments_of(
    item: Any, place: str, inputs: Callable[[Any], Any] | None = None, signature: tuple[int, tuple[str, ...]] = (1, ())
) -> Any:
    """The model's input in one item: a tensor, a tuple of inputs, or a dict of keyword inputs."""
    chosen = _chosen(item, place, inputs, signature)
    several = chosen.values() if isinstance(chosen, Mapping) else chosen if isinstance(chosen, tuple) else (chosen,)
    if any(isinstance(x, np.ndarray) for x in several):
        raise CalibrationError(f"{place} is a numpy array: pass torch.from_numpy(x)")
    return chosen


def _chosen(item: Any, place: str, inputs: Callable[[Any], Any] | None, signature: tuple[int, tuple[str, ...]]) -> Any:
    positional, names = signature
    check_function(inputs, "inputs")
    if inputs is not None:
        return inputs(item)
    item = _opened(item)
    if isinstance(item, Mapping):
        if names and set(names) <= set(item):
            return {name: item[name] for name in names}
        key = next((key for key in DICT_KEYS if key in item), None)
        if key is None:
            raise CalibrationError(
                f"{place} is a dict with the keys {list(item)}: none is one of {', '.join(DICT_KEYS)}; pass "
                f"inputs=, a function that takes the inputs out, such as lambda batch: batch[{next(iter(item), 'x')!r}]"
            )
        return item[key]
    if isinstance(item, (tuple, list)):
        return tuple(item[: max(1, positional)])
    return item


def _opened(item: Any) -> Any:
    """Of an item whose first entry holds all the inputs, ({"image": x, "meta": m}, y), that entry."""
    return item[0] if _holds(item) else item


def _holds(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and bool(item) and isinstance(item[0], (Mapping, tuple, list))


def labels_of(
    item: Any, inputs: Callable[[Any], Any] | None = None, signature: tuple[int, tuple[str, ...]] = (1, ())
) -> Tensor | None:
    """The labels in one item: right behind the inputs of a tuple (its last entry where `inputs` finds the inputs), or
    under a usual key of a dict; None where there are none."""
    found = None
    if isinstance(item, Mapping):
        found = next((item[key] for key in LABELS if key in item and key not in signature[1]), None)
    elif isinstance(item, (tuple, list)):
        place = max(1, len(item) - 1) if inputs is not None else 1 if _holds(item) else max(1, signature[0])
        found = item[place] if len(item) > place else None
    numbers = isinstance(found, (list, tuple)) and bool(found) and all(isinstance(one, (int, float)) for one in found)
    if numbers or isinstance(found, np.ndarray):
        warnings.warn(
            f"labels are read from tensors, and these are a {type(found).__name__}, so there is no accuracy: pass "
            "torch.as_tensor(y)",
            ParspikeWarning,
            stacklevel=2,
        )
    return found if isinstance(found, Tensor) else None


class Batches:
    """An iterable of the network's inputs by name, each batch checked: of several processes each reads its own.

    source: what `readable_again` gives. inputs: a function from an item to the model's input, a tuple of inputs or
    a dict of keyword inputs; by default an item is a tensor (B, …), an (x, y) tuple or a dict with a usual key.
    together: the processes that share the source, which is the same in all of them.
    """

    def __init__(
        self, source: Iterable[Any], graph: Graph, *, inputs: Callable[[Any], Any] | None = None,
        together: Together | None = None,
    ) -> None:  # fmt: skip
        self.source, self.graph, self.inputs = source, graph, inputs
        self.together = together or Together()
        self.sizes: dict[int, int] = {}  # samples of every batch by its number, known after the first pass
        self.hash = ""  # of the inputs, known after the first pass
        self.varied = True  # whether any two samples differ, known after the first pass
        self.first: list[dict[str, Tensor]] = []  # copies of the first `SEEN` samples that were read

    @property
    def length(self) -> int:
        """Number of batches, counted by the first pass; before it what the source says, 0 where it does not. Some say
        how many samples they have."""
        return len(self.sizes) or number_of(self.source)

    @property
    def told(self) -> bool:
        """Whether `length` is the number of batches for sure: a source of another kind may say how many samples it has,
        until a pass has counted."""
        return bool(self.sizes) or type(self.source) in (list, tuple, DataLoader)

    @property
    def rounds(self) -> int:
        """Number of batches of one process, 0 where the source does not say."""
        return -(-self.length // self.together.size)

    @property
    def count(self) -> int:
        """Number of samples in all processes, 0 before the first pass."""
        return sum(self.sizes.values())

    def samples(self) -> int:
        """Number of samples in all processes; reads the source only where no pass has been made yet."""
        if not self.sizes:
            for _ in self:
                pass
        return self.count

    def numbers(self) -> list[int]:
        """The numbers of this process's batches, in order."""
        self.samples()
        return [number for number in self.sizes if number % self.together.size == self.together.rank]

    def gather(self, parts: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        """From one part for every batch of this process, in order, the parts of all batches, in order."""
        return self.together.gather(dict(zip(self.numbers(), parts, strict=True)))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._pass(self.together)

    def everywhere(self) -> Iterator[dict[str, Tensor]]:
        """All batches in every process, for recipes whose next step depends on the one before."""
        return self._pass(Together())

    def _pass(self, among: Together) -> Iterator[dict[str, Tensor]]:
        seen: dict[int, tuple[int, bytes, bytes]] = {}
        known, last = dict(self.sizes), -1
        for number, env in self._read(among):
            size, last = len(next(iter(env.values()))), number
            if known and known.get(number) != size:
                raise CalibrationError(_changed(number, known.get(number), size))
            if (room := SEEN - sum(len(next(iter(read.values()))) for read in self.first)) > 0:
                self.first.append({name: x[:room].clone() for name, x in env.items()})
            if not self.sizes:
                alike = all(bool((x == x[:1]).all()) for x in env.values())
                one = _digest({name: x[:1] for name, x in env.items()}) if alike else b""
                seen[number] = next(iter(env.values())).shape[0], _digest(env), one
            yield env
        if lacking := [number for number in known if number > last and number % among.size == among.rank]:
            raise CalibrationError(_changed(lacking[0], known[lacking[0]], None))
        if not self.sizes:
            known = sorted((n, *about) for part in among.exchange(seen) for n, about in part.items())
            if not known:
                raise CalibrationError("the calibration set is empty: give at least one batch of inputs")
            self.sizes = {number: size for number, size, *_ in known}
            self.hash = hashlib.sha256(b"".join(digest for _, _, digest, _ in known)).hexdigest()
            ones = {one for *_, one in known}
            self.varied = len(ones) > 1 or b"" in ones

    def _read(self, among: Together) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for number, item in among.share(self.source):
            yield number, inputs_of(item, f"calibration batch {number}", self.graph, self.inputs)


def _changed(number: int, before: int | None, now: int | None) -> str:
    had, has = (f"{size} samples" if size else "none" for size in (before, now))
    return (
        f"calibration batch {number} had {had} when the data were first read, and has {has} now: give data that are "
        "the same every time, such as list(loader)"
    )


def inputs_of(
    item: Any,
    place: str,
    net: Graph | Network,
    inputs: Callable[[Any], Any] | None = None,
) -> dict[str, Tensor]:
    """The network's inputs in one item, by name, on its device, checked."""
    env = bound(item, place, net, inputs)
    (net if isinstance(net, Graph) else net.graph).check(env, place)
    return env


def bound(item: Any, place: str, net: Graph | Network, inputs: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """The same before they are checked: `SNN.checked` also takes inputs over time."""
    graph, tensors = (net, net.tensors) if isinstance(net, Graph) else (net.graph, net.tensors())
    positional, names = graph.signature
    item = item if inputs is not None else _opened(item)
    if inputs is None and isinstance(item, Mapping) and not names and all(i.name in item for i in graph.inputs):
        item = tuple(item[i.name] for i in graph.inputs)
    args: Any = arguments_of(item, place, inputs, graph.signature)
    if isinstance(args, Mapping):
        args, kwargs = (), {name: args[name] for name in names if name in args}
    else:
        args, kwargs = args if isinstance(args, tuple) else (args,), {}
    return on_device_of(tensors.values(), graph.bind(args[:positional], kwargs))


def _digest(env: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name, x in env.items():
        digest.update(name.encode() + x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
