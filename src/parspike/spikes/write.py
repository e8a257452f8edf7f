"""A run's spike trains into a file, a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from parspike.calibrate.batches import inputs_of, number_of, readable_again
from parspike.calibrate.recipe import Progress
from parspike.engines import Run
from parspike.errors import InputError, OptionError, check_function, path_of
from parspike.graph import Size, with_doubles
from parspike.graph.ir import BATCH
from parspike.neurons import Neuron, SpikingLayer, twin
from parspike.snn import SNN, check_converted
from parspike.spikes.containers import Hdf5Sink, NpzSink
from parspike.spikes.layout import FORMS, LARGEST, Header, Layer, Sink, table_names
from parspike.spikes.text import SUFFIX, TextSink
from parspike.version import __version__
from parspike.whole import check_free, made_whole, told

__all__ = ["SINKS", "Form", "write_spikes"]

Form = Literal["bits", "events"]
SINKS: Mapping[str, type[Sink]] = {".npz": NpzSink, ".h5": Hdf5Sink, ".hdf5": Hdf5Sink, SUFFIX: TextSink}
"""What writes a file, by the ending of its name."""


def write_spikes(
    snn: SNN,
    data: Any,
    path: str | Path,
    *,
    form: Form | None = None,
    engine: str | None = None,
    dt: int = 1000,
    note: Mapping[str, Any] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the spike trains of a network into a file that `read_spikes` reads, a batch at a time (docs/spikes.md).

    data: what `measure` takes: an iterable of tensors (B, …), (x, y) tuples or dicts, or one tensor (N, …); or a `Run`
    of this network that recorded its spikes. path: ends in `.npz`, `.h5` or `.aedat.txt`. form: "bits", eight neurons a
    byte, or "events", one entry for each spike; by default bits, and events in a text, which has no other form. engine:
    as in `snn.run`. dt: microseconds of a time-step, for the chip or simulator that plays the events. note: anything
    JSON can hold, kept in the file. inputs, progress: as in `measure`. An existing file is replaced only with
    force=True, and the file appears whole or not at all.

    Raises `OptionError` on another ending or form, `InputError` on data that do not fit the network, `FileError` where
    the file cannot be written, `MissingExtraError` for HDF5 without h5py.
    """
    path = path_of(path)
    kind = _checked(snn, path, form, dt, force)
    snn = with_doubles(snn)
    check_function(progress, "progress")
    if note is not None and not isinstance(note, Mapping):
        raise OptionError(f"note= must be a dict that JSON can hold, got {str(note)[:80]}")
    about = {"made_by": f"parspike {__version__}", **(note or {})}
    try:
        json.dumps(about, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"note cannot be written as JSON: {error}") from error
    runs = _runs(snn, data, engine, inputs, progress)
    run = next(runs, None)
    if run is None:
        raise InputError("the data are empty: give at least one batch of inputs")
    neurons = _neurons(snn, run)
    layers = tuple(_layer(name, neurons[name], train) for name, train in _trains(snn, run))
    header = Header(form or ("events" if kind is TextSink else "bits"), run.T, dt, layers, (), about)
    tables = {
        table_names(place)[what]: value
        for place, layer in enumerate(layers)
        for what, value in _tables(layer, neurons[layer.name], run.T)
    }
    batches: list[int] = []
    with made_whole(path) as temporary:
        with told(path):
            sink = kind(temporary, header, tables)
        try:
            while run is not None:
                size = _samples(snn, run)
                with told(path):
                    sink.batch(len(batches), _fitting(layers, _trains(snn, run), size), sum(batches))
                batches.append(size)
                if sum(batches) >= LARGEST:
                    raise InputError(f"'{path}' would hold over 2^32 samples: write several files")
                del run  # before the next batch needs its memory
                run = next(runs, None)
            with told(path):
                sink.end(replace(header, batches=tuple(batches)))
        except BaseException:
            with suppress(Exception):  # the file is thrown away
                sink.close()
            raise
        with told(path):
            sink.close()
    return path


def _checked(snn: SNN, path: Path, form: object, dt: object, force: bool) -> type[Sink]:
    """What writes a file of this name. Refuses what can be refused before the network runs."""
    check_converted(snn, "write_spikes")
    kind = next((kind for ending, kind in SINKS.items() if path.name.lower().endswith(ending)), None)
    if kind is None:
        raise OptionError(f"'{path}': a file of spikes ends in {', '.join(SINKS)}")
    if form is not None and form not in FORMS:
        raise OptionError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if kind is TextSink and form == "bits":
        raise OptionError(f"'{path}': a text holds events; for bits end its name in .npz or .h5")
    if isinstance(dt, bool) or not isinstance(dt, int) or not 1 <= dt < 1 << 31:
        raise OptionError(f"dt must be a whole number of microseconds from 1 to 2^31 − 1, got {dt!r}")
    check_free(path, force, "trains.npz")
    if not snn.neurons():
        raise InputError("this network has no spiking neurons: there is nothing to write")
    for node in snn.graph.neurons:
        batch = node.batch_dim
        if node.name in snn.neurons() and batch is not None and node.shape[batch] != Size(BATCH):
            raise InputError(
                f"layer '{node.layer}' has {node.shape[batch]} rows for a batch, since windows, places or heads share "
                "its dimension, and a file of spikes holds the neurons of samples: take run.spikes of snn.run"
            )
    return kind


def _runs(
    snn: SNN, data: Any, engine: str | None, inputs: Callable[[Any], Any] | None, progress: Progress | None
) -> Iterator[Run]:
    if isinstance(data, Run):
        if engine not in (None, data.engine):
            raise OptionError(f"this run is of engine '{data.engine}', not '{engine}': leave engine= out")
        if unlike := set(data.spikes) - {snn.graph.by_name[name].layer for name in snn.neurons()}:
            raise InputError(
                f"the run has a layer '{unlike.pop()}' that this network has not: pass the network that ran"
            )
        yield data
        return
    # A generator is read once here, so its items need not be kept.
    source = data if isinstance(data, Iterator) else readable_again(data, name="data")
    total = number_of(source)
    for number, item in enumerate(source):
        env = inputs_of(item, f"batch {number} of the data", snn, inputs)
        count, names = snn.graph.signature
        given = [env[i.name] for i in snn.graph.inputs]
        options: dict[str, Any] = {"engine": engine, "record": True, **dict(zip(names, given[count:], strict=True))}
        yield snn.run(*given[:count], **options)
        if progress:
            progress("", number + 1, total)


def _neurons(snn: SNN, run: Run) -> dict[str, SpikingLayer]:
    """The neurons that made a run's trains, by layer."""
    neurons: dict[str, SpikingLayer] = dict(snn.neurons())
    if run.engine == "serial-if":
        neurons |= twin(neurons)
    return {snn.graph.by_name[name].layer: neuron for name, neuron in neurons.items()}


def _trains(snn: SNN, run: Run) -> Iterator[tuple[str, Tensor]]:
    """The trains of every layer as (T, B, …), made one after the other: bool, int8 or int32."""
    batch = {node.layer: node.batch_dim or 0 for node in snn.graph.neurons}
    for name, train in run.spikes.items():
        yield name, train.movedim(batch[name] + 1, 1)


def _layer(name: str, neuron: SpikingLayer, train: Tensor) -> Layer:
    kind = {torch.bool: "bool", torch.int8: "int8", torch.int32: "int32"}[train.dtype]
    return Layer(name, tuple(train.shape[2:]), len(train), neuron.label, kind)


def _tables(layer: Layer, neuron: SpikingLayer, T: int) -> Iterator[tuple[str, np.ndarray]]:
    """Amplitudes (T or 1, …) and rest (…) of a layer, with the dimensions of one sample, float64."""
    # Both kinds of neurons, `Neuron` and `Dynamics`, have these.
    own: Any = neuron
    amplitudes, rest = own.amplitudes(), own.rest()
    if amplitudes is not None:
        # Neurons of fewer steps than the network are silent afterwards, and their spikes carry as much more.
        scale = T / layer.T if isinstance(neuron, Neuron) else 1.0
        yield "amplitudes", _aligned(amplitudes.double() * scale, 1, layer)
    yield "rest", _aligned(torch.as_tensor(rest, dtype=torch.float64), 0, layer)


def _aligned(value: Tensor, leading: int, layer: Layer) -> np.ndarray:
    missing = len(layer.shape) + leading - value.dim()
    shape = (*value.shape[:leading], *[1] * missing, *value.shape[leading:])
    return value.detach().cpu().reshape(shape).numpy()


def _samples(snn: SNN, run: Run) -> int:
    name, counts = next(iter(run.counts.items()))
    return counts.shape[next(node.batch_dim or 0 for node in snn.graph.neurons if node.layer == name)]


def _fitting(
    layers: Sequence[Layer], trains: Iterable[tuple[str, Tensor]], size: int
) -> Iterator[tuple[Layer, np.ndarray]]:
    """Each layer with its train (T, B, neurons). Raises `InputError` where a batch has another shape than the first."""
    for layer, (_, train) in zip(layers, trains, strict=True):
        if tuple(train.shape) != (layer.T, size, *layer.shape):
            raise InputError(
                f"layer '{layer.name}' has {tuple(train.shape[2:])} neurons for {train.shape[1]} samples, expected "
                f"{layer.shape} for {size}: a file of spikes holds inputs of one size, each with its own neurons"
            )
        yield layer, train.reshape(layer.T, size, layer.neurons).cpu().numpy()
