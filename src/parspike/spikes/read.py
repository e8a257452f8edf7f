"""A spike file as a value: what it says, and its trains on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parspike.errors import FileError, OptionError, ParspikeError, meant, path_of
from parspike.spikes.containers import Hdf5File, NpzFile
from parspike.spikes.layout import VALUED, File, Header, Layer, check_bits, check_events, events_of, scattered, unpack
from parspike.spikes.show import LayerSummary, Watched, raster_lines
from parspike.spikes.text import TextFile
from parspike.whole import check_file

__all__ = ["Spikes", "read_spikes"]

MOST = 1 << 33
"""Elements of a train of all samples that is made of events, which may be far fewer than its elements: 8 GiB."""


@dataclass(frozen=True)
class Spikes:
    """The trains in a spike file. Made by `read_spikes`; the file is read again, and checked again, at each look-up.

    path: the file. T: time-steps. samples: how many. dt: microseconds of a step. form: "bits" or "events". layers: by
    name, with shape, T, code and type. note: what the writer noted.
    """

    path: Path
    header: Header
    tables: Mapping[str, np.ndarray]

    @property
    def T(self) -> int:
        """Time-steps."""
        return self.header.T

    @property
    def samples(self) -> int:
        """Samples of all batches."""
        return self.header.samples

    @property
    def dt(self) -> int:
        """Microseconds of a time-step."""
        return self.header.dt

    @property
    def form(self) -> str:
        """ "bits" or "events"."""
        return self.header.form

    @property
    def note(self) -> Mapping[str, Any]:
        """What the writer noted."""
        return self.header.note

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers by name, in the order of the network."""
        return {layer.name: layer for layer in self.header.layers}

    @property
    def spikes(self) -> Mapping[str, Tensor]:
        """The trains (T, N, …) of all samples by layer, as `run.spikes` has them: bool, int8 or int32."""
        return _Trains(self)

    def amplitudes(self, layer: str) -> Tensor | None:
        """The current that a spike of each step causes, float64 (T or 1, …), broadcasting against (T, one sample); None
        where the neurons' current is no multiple of their spikes."""
        return self._table("amplitudes", layer)

    def rest(self, layer: str) -> Tensor | None:
        """The constant current of a silent neuron, float64, broadcasting against one sample."""
        return self._table("rest", layer)

    def _table(self, what: str, layer: str) -> Tensor | None:
        table = self.tables.get(f"{what}/{self._number(layer):05d}")
        return None if table is None else torch.from_numpy(table.copy())

    def _number(self, layer: str) -> int:
        names = list(self.layers)
        if layer not in names:
            raise OptionError(f"'{self.path}' has no layer '{layer}'{meant(layer, names)}: it has {', '.join(names)}")
        return names.index(layer)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The trains batch by batch, (T, B, …) by layer: what fits into memory when the whole does not."""
        layers = self.header.layers
        for start, size, content in self._read():
            yield {
                layer.name: _tensor(_train(content, number, layer, start, size), layer)
                for number, layer in enumerate(layers)
            }

    def events(self) -> Iterator[np.ndarray]:
        """The events of every batch, a structured array sorted by its fields sample, step, layer and neuron; with a
        field value where neurons send several spikes in a step or take them back. Of a file in the form "bits" too."""
        layers = self.header.layers
        for start, _, content in self._read():
            if isinstance(content, np.ndarray):
                yield content
            else:
                trains = ((layer, unpack(content[number], layer)) for number, layer in enumerate(layers))
                yield events_of(trains, start, self.header.event)

    def summary(self) -> list[LayerSummary]:
        """Spikes, rate, silent neurons and first spikes of every layer."""
        watched = [Watched(layer) for layer in self.header.layers]
        for _, _, content in self._read():
            for number, one in enumerate(watched):
                one.add(content, number)
        return [one.summary(self.samples) for one in watched]

    def raster(self, layer: str, sample: int = 0, neurons: Sequence[int] | None = None, steps: int = 100) -> str:
        """The spikes of neurons of one layer for one sample: a line for each neuron, a character for each step.

        neurons: their numbers in the row-major order of one sample (default: the first 20). steps: the most that are
        shown. "." is no spike, "|" one, a digit several, "-" one that is taken back. Raises `OptionError` on a layer, a
        sample or a neuron that is not there.
        """
        number = self._number(layer)
        own = self.header.layers[number]
        neurons = list(range(min(20, own.neurons))) if neurons is None else list(neurons)
        for what, value, size in [("sample", sample, self.samples), *(("neuron", n, own.neurons) for n in neurons)]:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
                raise OptionError(f"layer '{layer}' has no {what} {value}: they are numbered 0 … {size - 1}")
        shown = min(own.T, max(1, steps))
        for start, size, content in self._read(number):
            if not start <= sample < start + size:
                continue
            if isinstance(content, np.ndarray):
                mine = (content["layer"] == number) & (content["sample"] == sample) & (content["step"] < shown)
                events = content[mine & np.isin(content["neuron"], neurons)]
                grid = np.zeros((len(neurons), shown), np.int64)
                values = events["value"] if events.dtype == VALUED else np.ones(len(events), np.int64)
                for place, neuron in enumerate(neurons):
                    at = events["neuron"] == neuron
                    grid[place, events["step"][at]] = values[at]
            else:
                train = unpack(content[number][:shown, sample - start], own)
                grid = train[:, neurons].astype(np.int64).T
            return "\n".join(raster_lines(grid, neurons))
        raise OptionError(f"'{self.path}' has no sample {sample}")

    def _read(self, only: int | None = None) -> Iterator[tuple[int, int, Mapping[int, np.ndarray] | np.ndarray]]:
        """First sample, samples and content of every batch, checked. only: one layer, where it can be read alone."""
        with _said(self.path), closing(_opened(self.path)) as file:
            if file.header != self.header:
                raise FileError("it has changed since it was opened")
            start = 0
            # Strictly: a text tells at its end how many events there were.
            for size, content in zip(self.header.batches, file.batches(only), strict=True):
                if isinstance(content, np.ndarray):
                    check_events(content, self.header, start, start + size)
                yield start, size, content
                start += size

    def __repr__(self) -> str:
        return f"Spikes('{self.path}': T={self.T}, {self.samples} samples, {len(self.layers)} layers, as {self.form})"


class _Trains(Mapping[str, Tensor]):
    """Trains of all samples, read at each look-up."""

    def __init__(self, file: Spikes) -> None:
        self.file = file

    def __getitem__(self, name: str) -> Tensor:
        number = self.file._number(name)
        layer = self.file.header.layers[number]
        if self.file.form == "events" and layer.T * self.file.samples * layer.neurons > MOST:
            raise FileError(
                f"'{self.file.path}': the train of '{name}' would have {layer.T} × {self.file.samples} × "
                f"{layer.neurons} elements: take events(), or batches()"
            )
        parts = [_train(content, number, layer, start, size) for start, size, content in self.file._read(number)]
        return _tensor(np.concatenate(parts, 1) if parts else np.empty((layer.T, 0, layer.neurons), layer.dtype), layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.layers)

    def __len__(self) -> int:
        return len(self.file.layers)


def read_spikes(path: str | Path) -> Spikes:
    """Open a file that `write_spikes` wrote and check all of it: every field, every batch, every event.

    Nothing in the file is code, nothing that it points to elsewhere is followed, and no memory is taken for what it
    only claims to hold. Raises `FileError` on anything but a whole file of spikes, `MissingExtraError` for HDF5 without
    h5py.
    """
    path = path_of(path)
    check_file(path)
    with _said(path), closing(_opened(path)) as file:
        spikes = Spikes(path, file.header, file.tables)
    for _, _, content in spikes._read():
        if not isinstance(content, np.ndarray):
            with _said(path):
                for number, layer in enumerate(spikes.header.layers):
                    check_bits(content[number], layer)
    return spikes


def _opened(path: Path) -> File:
    """A file by what reads it, told by its first bytes, since a name may say anything."""
    with path.open("rb") as stream:
        start = stream.read(8)
    kinds: tuple[tuple[bytes, Callable[[Path], File]], ...]
    kinds = ((b"PK\x03\x04", NpzFile), (b"\x89HDF\r\n\x1a\n", Hdf5File), (b"#!parspi", TextFile))
    for magic, kind in kinds:
        if start.startswith(magic):
            return kind(path)
    raise FileError("this is no file of spikes: expected an .npz, HDF5 or text that parspike wrote")


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Every error that a file can cause as a `FileError` that names it."""
    try:
        yield
    except FileError as error:
        raise FileError(f"'{path}': {str(error)[:1000]}") from error
    except ParspikeError:
        raise
    except MemoryError as error:
        raise FileError(f"'{path}' does not fit into memory: read it batch by batch") from error
    # A forged file may raise any exception in the readers of zip, npy, HDF5 and JSON.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise FileError(f"'{path}' is damaged, or no file of spikes ({reason})") from error


def _train(
    content: Mapping[int, np.ndarray] | np.ndarray, number: int, layer: Layer, start: int, samples: int
) -> np.ndarray:
    if isinstance(content, np.ndarray):
        return scattered(content, number, layer, start, samples)
    return unpack(content[number], layer)


def _tensor(train: np.ndarray, layer: Layer) -> Tensor:
    # A copy where the bytes are those of the file, which are read-only.
    return torch.from_numpy(train if train.flags.writeable else train.copy()).reshape(*train.shape[:2], *layer.shape)
