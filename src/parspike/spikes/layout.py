"""What a spike file holds, whatever its container (docs/spikes.md), and what is refused.

Arrays are those of numpy: a file is read without a device, and its trains become tensors when they are asked for.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parspike.errors import FileError
from parspike.neurons import MAX_T

__all__ = [
    "EVENT",
    "FORMS",
    "LARGEST",
    "VALUED",
    "File",
    "Header",
    "Layer",
    "Sink",
    "check_bits",
    "check_events",
    "check_table",
    "events_of",
    "pack",
    "scattered",
    "table_names",
    "unpack",
]

FORMAT, VERSION = "parspike-spikes", 1
FORMS = ("bits", "events")
EVENT = np.dtype([("sample", "<u4"), ("step", "<u4"), ("layer", "<u2"), ("neuron", "<u4")])
"""An event: a spike of a neuron. 14 bytes, without gaps, in the order in which events are sorted."""
VALUED = np.dtype([*EVENT.descr, ("value", "<i4")])
"""The same where neurons send several spikes in a step, or take them back: how many, −1 for one taken back."""
TYPES = {"bool": np.dtype(bool), "int8": np.dtype("i1"), "int32": np.dtype("<i4")}
"""What a train is made of, by its name in the header."""
LARGEST = 1 << 32
"""Neurons of a layer, and samples, are fewer: their numbers are u4."""


@dataclass(frozen=True)
class Layer:
    """A layer of neurons. shape: of one sample. T: steps that it sends in, of all T. code: how it sends a count, or the
    kind of its neurons. type: "bool", or "int8" or "int32" where neurons send several spikes in a step or take them
    back."""

    name: str
    shape: tuple[int, ...]
    T: int
    code: str
    type: str

    @property
    def neurons(self) -> int:
        """Neurons of one sample."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """numpy's dtype of a train."""
        return TYPES[self.type]

    def stored(self, samples: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of a batch in the form "bits": eight neurons a byte, or one value for each."""
        if self.type == "bool":
            return (self.T, samples, -(-self.neurons // 8)), np.dtype("u1")
        return (self.T, samples, self.neurons), self.dtype


@dataclass(frozen=True)
class Header:
    """What a file says of its trains. T: time-steps. dt: microseconds of one. batches: samples of each batch."""

    form: str
    T: int
    dt: int
    layers: tuple[Layer, ...]
    batches: tuple[int, ...]
    note: Mapping[str, Any]

    @property
    def samples(self) -> int:
        """Samples of all batches."""
        return sum(self.batches)

    @property
    def event(self) -> np.dtype[Any]:
        """The dtype of an event."""
        return EVENT if all(layer.type == "bool" for layer in self.layers) else VALUED

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        layers = [{**vars(layer), "shape": list(layer.shape)} for layer in self.layers]
        return {
            "format": FORMAT, "version": VERSION, "form": self.form, "T": self.T, "dt": self.dt, "layers": layers,
            "batches": list(self.batches), "note": dict(self.note),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Any) -> Header:
        """The header that `to_json` gave; a `FileError` on anything else."""
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise FileError("this is no file of spikes of parspike")
        if _whole(value.get("version"), "version", 1, 1 << 31) > VERSION:
            raise FileError(
                f"its format has version {value['version']}, this parspike reads {VERSION}: "
                "pip install --upgrade parspike"
            )
        _keys(value, ("format", "version", "form", "T", "dt", "layers", "batches", "note"), "the header")
        if value["form"] not in FORMS:
            raise FileError(f"its form is {str(value['form'])[:40]!r}, expected bits or events")
        T = _whole(value["T"], "T", 1, MAX_T)
        dt = _whole(value["dt"], "dt", 1, 1 << 31)
        layers, batches = (_list(value[name], name) for name in ("layers", "batches"))
        made = tuple(_layer(layer, T) for layer in layers)
        if len(made) > 1 << 16:
            raise FileError("it has over 2^16 layers")
        if len({layer.name for layer in made}) < len(made):
            raise FileError("two of its layers have the same name")
        sizes = tuple(_whole(size, "a batch", 1, LARGEST - 1) for size in batches)
        if sum(sizes) >= LARGEST:
            raise FileError("it has over 2^32 samples")
        if not isinstance(value["note"], dict):
            raise FileError("its note is no object")
        return cls(value["form"], T, dt, made, sizes, value["note"])


def _layer(value: Any, T: int) -> Layer:
    _keys(value, ("name", "shape", "T", "code", "type"), "a layer")
    for name in ("name", "code"):
        if not isinstance(value[name], str) or not re.fullmatch(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,1000}", value[name]):
            raise FileError(f"the {name} of a layer is no line of text")
    if value["type"] not in TYPES:
        raise FileError(f"layer '{value['name']}': its type is none of {', '.join(TYPES)}")
    shape = tuple(_whole(dim, f"a size of '{value['name']}'", 0, LARGEST) for dim in _list(value["shape"], "shape"))
    if len(shape) > 16 or math.prod(shape) >= LARGEST:
        raise FileError(f"layer '{value['name']}' has over 2^32 neurons, or over 16 dimensions")
    steps = _whole(value["T"], f"T of '{value['name']}'", 1, T)
    return Layer(value["name"], shape, steps, value["code"], value["type"])


def _keys(value: Any, keys: Sequence[str], what: str) -> None:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise FileError(f"{what} has other entries than {', '.join(keys)}")


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise FileError(f"{what} is no list")
    return value


def _whole(value: Any, what: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FileError(f"{what} is {str(value)[:40]}, expected a whole number from {least} to {most}")
    return value


def table_names(number: int) -> dict[str, str]:
    """The names of the arrays that a layer may have beside its trains, by what they hold."""
    return {"amplitudes": f"amplitudes/{number:05d}", "rest": f"rest/{number:05d}"}


def check_table(layer: Layer, what: str, table: np.ndarray) -> np.ndarray:
    """The amplitudes or the rest of a layer, float64, which must broadcast against (T, one sample) and one sample."""
    dims, leading = table.shape, what == "amplitudes"
    if leading and (not dims or dims[0] not in (1, layer.T)):
        raise FileError(f"layer '{layer.name}': its amplitudes {dims} are not for 1 or {layer.T} steps")
    own = dims[1:] if leading else dims
    if len(own) != len(layer.shape) or any(dim not in (1, size) for dim, size in zip(own, layer.shape, strict=True)):
        raise FileError(f"layer '{layer.name}': its {what} {dims} does not fit its shape {layer.shape}")
    if not np.isfinite(table).all():
        raise FileError(f"layer '{layer.name}': its {what} hold NaN or Inf")
    return table


def pack(train: np.ndarray, layer: Layer) -> np.ndarray:
    """A train (T, B, neurons) as it is stored."""
    if layer.type == "bool":
        return np.packbits(train, axis=-1, bitorder="big")
    return np.ascontiguousarray(train, layer.dtype)


def unpack(stored: np.ndarray, layer: Layer) -> np.ndarray:
    """The train (T, B, neurons) of stored bits or values, which were checked."""
    if layer.type != "bool":
        return stored
    return np.unpackbits(stored, axis=-1, count=layer.neurons, bitorder="big").view(bool)


def check_bits(stored: np.ndarray, layer: Layer) -> None:
    """Raise `FileError` where bits behind the last neuron are set."""
    over = -layer.neurons % 8
    if layer.type == "bool" and over and stored.size and (stored[..., -1] & ((1 << over) - 1)).any():
        raise FileError(f"layer '{layer.name}': bits behind its last neuron are set")


def events_of(trains: Trains, start: int, dtype: np.dtype[Any]) -> np.ndarray:
    """The events of a batch, after `start` samples, sorted by sample, step, layer and neuron."""
    parts = [np.empty(0, dtype)]
    for number, (_, train) in enumerate(trains):
        step, sample, neuron = np.nonzero(train)
        part = np.empty(len(step), dtype)
        part["sample"], part["step"], part["layer"], part["neuron"] = sample + start, step, number, neuron
        if dtype == VALUED:
            part["value"] = train[step, sample, neuron]
        parts.append(part)
    events = np.concatenate(parts)
    return events[np.lexsort((events["neuron"], events["layer"], events["step"], events["sample"]))]


def check_events(events: np.ndarray, header: Header, start: int, stop: int) -> None:
    """Raise `FileError` unless these are events of the samples start … stop − 1, each once and in order."""
    if not len(events):
        return
    if (events["layer"] >= len(header.layers)).any():
        raise FileError("an event is of a layer that the header does not name")
    steps, neurons = (np.array([getattr(l, n) for l in header.layers], np.int64) for n in ("T", "neurons"))
    layer = events["layer"]
    for name, wrong in (
        ("sample", (events["sample"] < start) | (events["sample"] >= stop)),
        ("step", events["step"] >= steps[layer]),
        ("neuron", events["neuron"] >= neurons[layer]),
    ):
        if wrong.any():
            place = int(np.argmax(wrong))
            raise FileError(
                f"an event has the {name} {int(events[name][place])}, which layer "
                f"'{header.layers[int(layer[place])].name}' of the batch does not have"
            )
    if "value" in (events.dtype.names or ()):
        bounds = {"bool": (1, 1), "int8": (-128, 127), "int32": (-(1 << 31), (1 << 31) - 1)}
        least, most = (np.array([bounds[l.type][i] for l in header.layers], np.int64) for i in (0, 1))
        value = events["value"].astype(np.int64)
        if ((value == 0) | (value < least[layer]) | (value > most[layer])).any():
            raise FileError("an event has a value that its layer's neurons cannot send")
    later = np.zeros(len(events) - 1, bool)
    same = np.ones(len(events) - 1, bool)
    for name in EVENT.names or ():
        before, now = events[name][:-1], events[name][1:]
        later |= same & (now > before)
        same &= now == before
    if not later.all():
        raise FileError(
            f"event {int(np.argmin(later)) + 1} of a batch does not come after the one before: events are sorted by "
            "sample, step, layer and neuron, each once"
        )


def scattered(events: np.ndarray, number: int, layer: Layer, start: int, samples: int) -> np.ndarray:
    """The train (T, B, neurons) of a layer in a batch's events, which were checked."""
    train = np.zeros((layer.T, samples, layer.neurons), layer.dtype)
    own = events[events["layer"] == number]
    values = own["value"] if "value" in (own.dtype.names or ()) else True
    train[own["step"], own["sample"] - start, own["neuron"]] = values
    return train


Trains = Iterable[tuple[Layer, np.ndarray]]


class Sink(ABC):
    """What writes a file: made with the path, the header without its batches, and the tables by name."""

    def __init__(self, path: Path, header: Header, tables: Mapping[str, np.ndarray]) -> None:
        self.header = header

    @abstractmethod
    def batch(self, number: int, trains: Trains, start: int) -> None:
        """Add a batch: the trains (T, B, neurons) of every layer, after `start` samples."""

    @abstractmethod
    def end(self, header: Header) -> None:
        """Add what is known at the end: the header with its batches."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


class File(ABC):
    """What reads a file: opened with its path. header: checked; tables: by name, checked."""

    header: Header
    tables: Mapping[str, np.ndarray]

    @abstractmethod
    def batches(self, only: int | None = None) -> Iterator[Mapping[int, np.ndarray] | np.ndarray]:
        """The stored trains of every batch by the number of the layer (only: of one layer), or its events; of the
        shapes and dtypes that the header says, else not yet checked."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""
