"""Networks as files of other programs. The format follows from the file's name; one module a format."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parspike.errors import InputError, OptionError, UnsupportedError, meant, path_of
from parspike.export.result import Compared, Drift, Exported, Theirs, compare, in_pieces, tally, unlike
from parspike.graph import Graph, Ref, Size, leaves, on_device_of
from parspike.graph.encode import input_encoders
from parspike.graph.forget import release
from parspike.neurons import Simulation, twin
from parspike.snn import SNN, check_converted
from parspike.whole import check_free, made_whole, told

__all__ = ["FORMATS", "Compared", "Drift", "Exported", "export"]

FORMATS = {".nir": "NIR", ".onnx": "ONNX", ".pt2": "AOTInductor package"}
"""The formats by the ending of the file's name."""
SAMPLES = 2
ROUNDED = 1e-5
"""By how much, as a share, what is computed of the same answer in float32 differs by rounding."""
"""Samples of noise that the file is run on where no example is given."""


def export(
    snn: SNN,
    path: str | Path,
    *,
    example: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    weights: int | None = None,
    as_if: bool = False,
    dt: float = 1.0,
    as_convolutions: bool = False,
    force: bool = False,
) -> Exported:
    """Write a spiking network as a file of another format, read it back, run it, and say how the two runs compare.

    path: its ending says the format: `.nir`, for IF and LIF neurons over time; `.onnx` or `.pt2` (a package of compiled
    code, by torch's AOTInductor), for parallel neurons in one pass over counts. example: inputs (B, …) to run the
    network and the file on, such as a few images, in their order or by their names; without, the two are compared on
    noise. weights: of an ONNX file, the bits of its weights: it then holds whole numbers alone
    (`parspike.lower.integers`), whose inputs' range is that of the example, and has the bits of parspike's own run.
    as_if: of a parallel network as NIR, write its twin of IF neurons with the same thresholds, and compare with the
    parallel network; a network that was converted for IF neurons loses less. dt: the seconds of one time-step that a
    NIR file states. as_convolutions: in a NIR file, write pools and scales as convolutions, which more programs read.
    force: replace an existing file. docs/nir.md and docs/onnx.md tell what other programs make of the file.

    Raises `UnsupportedError`, which names every layer that the format cannot hold; `OptionError` for an unknown ending,
    an option of another format and neurons that the format does not have; `FileError` where the file cannot be
    written; `InputError` for an example that does not fit. The file appears whole or not at all.

    >>> import parspike
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    >>> snn = parspike.convert(model, calibration=x, T=8, neuron=parspike.IF())
    >>> parspike.export(snn, "net.nir", example=x, force=True).file.unlike  # doctest: +SKIP
    0
    """
    path = path_of(path)
    check_converted(snn, "export")
    _check_path(path, force)
    suffix = path.suffix.lower()
    if weights is not None and suffix != ".onnx":
        raise OptionError(f"weights={weights!r} is of ONNX files: name one, net.onnx, or leave it out")
    if weights is not None and snn.provenance.get("lowered") == "integers":
        raise OptionError(f"this network is in whole numbers already: leave weights={weights!r} out")
    for name, given in (("as_if", as_if), ("as_convolutions", as_convolutions)):
        if given and suffix != ".nir":
            raise OptionError(f"{name}=True is of NIR files: name one, net.nir, or leave it out")
    if suffix in (".nir", ".onnx") and any(tensor.device.type != "cpu" for tensor in snn.parameters()):
        snn = copy.deepcopy(snn).cpu()  # the file is run on the CPU, to compare it
    if suffix == ".nir":
        return _to_nir(snn, path, example, as_if, dt, as_convolutions)
    if snn.over_time:
        raise OptionError(
            f"{FORMATS[suffix]} files hold one pass over spike counts, and this network's neurons fire step by step: "
            "convert without neuron= (--neuron), or name a NIR file, net.nir"
        )
    return _to_onnx(snn, path, example, weights) if suffix == ".onnx" else _to_package(snn, path, example)


def _to_nir(snn: SNN, path: Path, example: Any, as_if: bool, dt: float, as_convolutions: bool) -> Exported:
    if isinstance(dt, bool) or not isinstance(dt, (int, float)) or not 0 < dt < float("inf"):
        raise OptionError(f"dt must be the seconds of a time-step, above 0, got {dt!r}")
    written = snn if snn.over_time or not snn.neurons() else _as_if(snn, as_if)  # without neurons `write` refuses it
    from parspike.export import nir
    from parspike.nir import read

    batches = in_pieces(_example(snn, example), snn.graph)
    with made_whole(path) as temporary, told(path):
        made = nir.write(written, temporary, float(dt), as_convolutions)
        release()
        loaded = read(temporary)
        code = snn.over_time or all(neuron.code == "sorted" for neuron in snn.counting().values())
        found = compare(snn, loaded, made.names if code else {}, batches)
        del loaded
        release()
        plain = compare(snn, read(temporary, T=snn.T, dt=dt, plain=True), {}, batches)
        size = temporary.stat().st_size
    notes = [*made.notes, *_notes(written, plain), *_beside(snn)]
    if written is not snn:
        notes.insert(
            0, "written with the IF twins of its parallel neurons; converted with neuron=parspike.IF() it loses less"
        )
    return Exported(path, "NIR", made.kinds, size, found, plain, tuple(notes), example is None)


def _to_onnx(snn: SNN, path: Path, example: Any, weights: int | None) -> Exported:
    from parspike.export import onnx
    from parspike.lower import integers

    env, notes, written = _example(snn, example), [], snn
    batches = in_pieces(env, snn.graph)
    if weights is not None:
        if example is None:
            raise OptionError("whole numbers need the range of the inputs: give example= (--data), a few images")
        written = integers(snn, env, weights=weights)
        found = tally(snn, list(snn.counting()), batches, _of(written))
        notes.append(f"in whole numbers, weights of {weights} bits, against the network of real numbers: {found.text}")
    made = onnx.write(written)
    shown = list(made.counts.values())
    with made_whole(path) as temporary, told(path):
        temporary.write_bytes(made.model.SerializeToString())
        model = onnx.load(temporary)
        go, names = onnx.session(model, shown), [output.name for output in model.graph.output]

        def theirs(env: Mapping[str, Tensor], mine: dict[str, Tensor]) -> tuple[dict[str, tuple[int, int]], Any]:
            values = go([*names, *shown], {name: x.numpy() for name, x in env.items()})
            outputs = dict(zip(names, map(torch.from_numpy, values), strict=False))
            _check_shapes(written, env, outputs)
            counts = dict(zip(made.counts, values[len(names) :], strict=True))
            return unlike(mine, counts), written.graph.collect(outputs, written.graph.sizes(env))

        file = tally(written, list(made.counts), batches, theirs)
        whole = written.provenance.get("lowered") == "integers"
        rounded = written.provenance.get("real") if whole and not file.equal else None  # behind the last whole number
        alike = bool(rounded) and not file.unlike and (file.error or 0) <= ROUNDED
        if whole and not (file.equal or alike):
            raise UnsupportedError(
                f"this runtime computes other whole numbers than parspike ({file.text}): please report it, with the "
                "network; without weights= the file holds real numbers"
            )
        size = temporary.stat().st_size
    if whole and rounded:
        notes.append(
            f"every count equals parspike's to the bit; what stands behind the last layer ({', '.join(rounded)}) is "
            "computed of the answer in real numbers, whose last bits differ between runtimes"
        )
    elif whole:
        notes.append("every count and output equals parspike's to the bit")
    notes += _beside(snn)
    notes.append(_timed(written, batches[0], lambda env: go(names, {name: x.numpy() for name, x in env.items()})))
    return Exported(path, "ONNX", made.nodes, size, file, None, tuple(notes), example is None)


def _beside(snn: SNN) -> list[str]:
    """What is said of numbers that a network returns."""
    beside = any(not isinstance(leaf, (Ref, type(None))) for leaf in leaves(snn.graph.output))
    said = "the numbers, sizes and texts that the network returns beside its tensors are not in the file"
    return [said] if beside else []


def _check_shapes(snn: SNN, env: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
    """Refuse a file whose outputs have other shapes than the network's, since a comparison of values may broadcast."""
    sizes = snn.graph.sizes(env)
    for name, value in outputs.items():
        shape = tuple(dim(sizes) if isinstance(dim, Size) else dim for dim in _shape(snn.graph, name))
        if tuple(value.shape) != shape:
            raise UnsupportedError(
                f"the file's output has shape {tuple(value.shape)} where the network's has {shape}: please report it, "
                "with the network"
            )


def _shape(graph: Graph, name: str) -> Sequence[Any]:
    return graph.by_name[name].shape if name in graph.by_name else next(i.shape for i in graph.inputs if i.name == name)


def _to_package(snn: SNN, path: Path, example: Any) -> Exported:
    from parspike.export import pt2

    env = _example(snn, example)
    batches = in_pieces(env, snn.graph)
    with made_whole(path) as temporary, told(path):
        pt2.write(snn, temporary, batches[0])
        run = pt2.load(temporary)
        file = tally(snn, (), batches, lambda env, mine: ({}, run(*env.values())))
        size = temporary.stat().st_size
    note = _timed(snn, batches[0], lambda env: run(*env.values()))
    return Exported(path, "AOTInductor package", {"graph": 1}, size, file, None, (note,), example is None)


def _of(snn: SNN) -> Theirs:
    layer = {name: snn.graph.by_name[name].layer for name in snn.counting()}

    def runs(env: Mapping[str, Tensor], mine: dict[str, Tensor]) -> tuple[dict[str, tuple[int, int]], Any]:
        args, named = snn.graph.call_of(env)
        run = snn.run(*args, record=True, **named)
        return unlike(mine, {name: run.counts[of] for name, of in layer.items()}), run.logits

    return runs


def _timed(snn: SNN, env: Mapping[str, Tensor], other: Callable[[Mapping[str, Tensor]], Any]) -> str:
    """The times of one batch here and by the file's runtime, in turns: the least of five each."""
    times: dict[str, list[float]] = {"here": [], "there": []}
    args, named = snn.graph.call_of(env)
    for _ in range(5):
        for who, go in (("here", lambda env: snn.run(*args, **named)), ("there", other)):
            start = time.perf_counter()
            go(env)
            times[who].append(time.perf_counter() - start)
    here, there = (1e3 * min(times[who]) for who in ("here", "there"))
    samples = len(next(iter(env.values())))
    return (
        f"a batch of {samples} takes {there:.3g} ms from the file, {here:.3g} ms in parspike's count engine "
        f"({torch.get_num_threads()} threads)"
    )


def _check_path(path: Path, force: bool) -> None:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise OptionError(f"'{path}': the file's name says the format: {', '.join(FORMATS)}{meant(suffix, FORMATS)}")
    check_free(path, force, f"net{suffix}")


def _as_if(snn: SNN, asked: bool) -> SNN:
    """The twin of a parallel network, or the error that says how to get a network for IF neurons."""
    if not asked:
        raise OptionError(
            "this network's neurons are parallel, and NIR has IF and LIF neurons: convert with neuron=parspike.IF() "
            "(command line: --neuron if), or pass as_if=True (--as-if) to write IF neurons with the same thresholds "
            "and see what that costs"
        )
    neurons = snn.neurons()
    twins = twin(neurons)
    if len(twins) < len(neurons):
        left = [snn.graph.by_name[name].layer for name in neurons if name not in twins]
        error = UnsupportedError(
            f"{len(left)} layers have steps of unequal size, which no IF neuron has: {', '.join(left[:5])}"
            f"{' …' if len(left) > 5 else ''}; convert with neuron=parspike.IF()"
        )
        error.details = {"refused": left}
        raise error
    tensors = {name: tensor.detach() for name, tensor in snn.tensors().items()}
    return SNN(replace(snn.graph, tensors=tensors), twins, simulation=Simulation(snn.T), provenance=snn.provenance)


def _example(snn: SNN, example: Any) -> dict[str, Tensor]:
    """Inputs by name, on the network's device: the caller's, or noise of the example's sizes."""
    graph = snn.graph
    if example is not None:
        names = [i.name for i in graph.inputs]
        if isinstance(example, Mapping) and set(names) <= set(example):
            example = [example[name] for name in names]
        given = tuple(example) if isinstance(example, (tuple, list)) else (example,)
        if len(given) != len(names) or isinstance(example, Mapping):
            raise InputError(f"export: example has {len(given)} inputs, this network takes {graph.taken}")
        env = dict(zip(names, given, strict=True))
        graph.check(env, "export: example")
        fixed = graph.at_example("an exported file has one size of its inputs")
        fixed.check(env, "export: example")
        return on_device_of(snn.parameters(), env)
    generator = torch.Generator().manual_seed(0)
    fixed, env = graph.at_example("an exported file has one size of its inputs"), {}
    for i in fixed.inputs:
        if not i.dtype.is_floating_point:
            raise InputError(f"export: input '{i.name}' is {i.dtype}, for which noise has no meaning: give example=")
        env[i.name] = torch.randn(SAMPLES, *(int(n) for n in i.shape[1:]), generator=generator).to(i.dtype)
    return on_device_of(snn.parameters(), env)


def _notes(snn: SNN, plain: Compared) -> list[str]:
    soft = {name for name, neuron in snn.stateful().items() if getattr(neuron, "reset", "") == "subtract"}
    if not soft:
        return []
    why = (
        "are reset by θ where v ≥ θ; NIR's are reset to v_reset where v > θ. What they do stands in metadata (reset, "
        "fires, v_init), which other readers may not look at: for those, "
    )
    if soft <= set(input_encoders(snn.graph)):
        return [
            f"the neurons that make spikes of the input (input='rate') {why}compute these spikes elsewhere, or convert "
            "with input='current'; all behind them is what NIR's own equations compute"
        ]
    return [f"these neurons {why}convert with neuron=parspike.IF(reset='zero'), which NIR's own equations compute"]
