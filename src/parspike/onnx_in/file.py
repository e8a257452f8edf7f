"""An ONNX file → its graph: what stands in it is checked before anything is made of it.

A file is data of somebody else. Nothing is allocated by a number that the file claims: a tensor is made only where its
bytes are there. External data are read from the folder of the model alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parspike.errors import FileError, MissingExtraError, UnsupportedError, path_of

__all__ = ["Call", "File", "Given", "check_order", "read"]

OLDEST = 7
"""The first opset whose arithmetic broadcasts as NumPy does."""
MOST_NODES = 1_000_000
"""Nodes at most, after functions of the file are put in the place of their calls."""
LARGEST = 1 << 31
"""Bytes that a protobuf has less than."""
DTYPES: dict[int, tuple[str, str]] = {
    1: ("float32", "float_data"), 2: ("uint8", "int32_data"), 3: ("int8", "int32_data"), 4: ("uint16", "int32_data"),
    5: ("int16", "int32_data"), 6: ("int32", "int32_data"), 7: ("int64", "int64_data"), 9: ("bool", "int32_data"),
    10: ("float16", "int32_data"), 11: ("float64", "double_data"), 12: ("uint32", "uint64_data"),
    13: ("uint64", "uint64_data"), 16: ("bfloat16", "int32_data"), 21: ("uint4", "int32_data"),
    22: ("int4", "int32_data"),
}  # fmt: skip
"""TensorProto.DataType: the type of numbers, and the field that holds them where they are no raw bytes."""


@dataclass(frozen=True)
class Given:
    """An input of a graph. dtype: a name of NumPy's. shape: numbers where the file fixes them, names or "" where not;
    None where the file says nothing."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Call:
    """A node: the operator of a domain in the version that the file asks for, with its attributes."""

    op: str
    domain: str
    opset: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"node '{self.name}' ({self.domain + '.' if self.domain else ''}{self.op})"

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)


@dataclass(frozen=True)
class File:
    """What a file holds: nodes in the order in which they run, and constants. batch: the size of the batch where all
    inputs fix the same."""

    path: Path
    opset: int
    inputs: tuple[Given, ...]
    outputs: tuple[str, ...]
    calls: tuple[Call, ...]
    constants: Mapping[str, np.ndarray]
    batch: int | None = None


def read(path: str | os.PathLike[str]) -> File:
    """Read a file, and check what it holds.

    Raises `FileError` where it is no ONNX, is damaged, or asks for what a file may not ask for; `UnsupportedError` for
    an opset that is too old or unknown; `MissingExtraError` without the package onnx.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", extra="export") from error
    place = path_of(path)
    if not place.is_file():
        said = (
            "this is a folder" if place.is_dir() else "this is no file" if place.exists() else "there is no such file"
        )
        raise FileError(f"{place}: {said}; expected an ONNX file")
    try:
        if place.stat().st_size >= LARGEST:
            raise FileError(f"{place}: an ONNX file has less than 2 GiB; save the network with external data")
        data = place.read_bytes()
    except OSError as error:
        raise error if isinstance(error, FileError) else FileError(f"{place}: {error.strerror or error}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:
        raise FileError(f"{place}: no readable ONNX file: it is damaged, cut off, or of another kind") from error
    del data
    if not model.graph.node or not model.graph.output:
        raise FileError(f"{place}: no readable ONNX file: it holds no graph, so it is damaged, or of another kind")
    opsets = _opsets(place, model, onnx.defs.onnx_opset_version())
    if model.functions:
        model = _inlined(place, model)
    graph = model.graph
    if graph.sparse_initializer:
        raise UnsupportedError(f"{place}: it holds sparse tensors: export the network with dense weights")
    tensors = _Tensors(place)
    constants: dict[str, np.ndarray] = {}
    for proto in graph.initializer:
        if proto.name in constants:
            raise FileError(f"{place}: damaged: there are two tensors '{proto.name}'")
        constants[proto.name] = tensors.array(proto)
    inputs = tuple(_given(place, value) for value in graph.input if value.name not in constants)
    calls = _calls(place, graph.node, opsets, tensors)
    check_order(place, calls, [*constants, *(given.name for given in inputs)], [v.name for v in graph.output])
    first = {given.shape[0] if given.shape else None for given in inputs if given.shape != ()}
    batch = first.pop() if len(first) == 1 else None
    outputs = tuple(v.name for v in graph.output)
    return File(place, opsets[""], inputs, outputs, calls, constants, batch if isinstance(batch, int) else None)


def _opsets(place: Path, model: Any, newest: int) -> dict[str, int]:
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    version = opsets.setdefault("", 0)
    if version == 0:
        raise FileError(f"{place}: damaged: it does not say which opset its operators are of")
    if version > newest:
        raise UnsupportedError(
            f"{place}: it is of opset {version}, and the installed onnx knows up to {newest}: run  pip install -U onnx,"
            "  or export the network with an older opset"
        )
    if version < OLDEST:
        raise UnsupportedError(
            f"{place}: it is of opset {version}, from before {OLDEST}, whose rules were others: export the network "
            "again with opset 13 or later, or run onnx.version_converter"
        )
    return opsets


def _inlined(place: Path, model: Any) -> Any:
    """The model with its own functions in the place of their calls."""
    from onnx import inliner

    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], above: tuple[tuple[str, str], ...] = ()) -> int:
        if key not in functions:
            return 1
        if key in above or len(above) > 100:
            raise FileError(f"{place}: damaged: its function '{key[1]}' calls itself")
        if key not in sizes:
            sizes[key] = sum(size((node.domain, node.op_type), (*above, key)) for node in functions[key].node)
        return sizes[key]

    if sum(size((node.domain, node.op_type)) for node in model.graph.node) > MOST_NODES:
        raise FileError(f"{place}: its functions grow to more than {MOST_NODES} operators")
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:
        raise FileError(f"{place}: its functions cannot be put in the place of their calls ({error})") from error


def _given(place: Path, value: Any) -> Given:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise UnsupportedError(f"{place}: its input '{value.name}' is no tensor but a {kind}: inputs must be tensors")
    tensor = value.type.tensor_type
    if tensor.elem_type not in DTYPES:
        raise UnsupportedError(f"{place}: its input '{value.name}' holds {_type_name(tensor.elem_type)}, no numbers")
    dims = None
    if tensor.HasField("shape"):
        dims = tuple(d.dim_value if d.dim_value > 0 else d.dim_param for d in tensor.shape.dim)
    return Given(value.name, DTYPES[tensor.elem_type][0], dims)


def _type_name(number: int) -> str:
    import onnx

    return onnx.TensorProto.DataType.Name(number) if number in onnx.TensorProto.DataType.values() else f"type {number}"


class _Tensors:
    """Tensors of a file as arrays, where their bytes are there."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def array(self, proto: Any) -> np.ndarray:
        name = f"{self.place}: tensor '{proto.name}'"
        dims = tuple(proto.dims)
        if proto.data_type not in DTYPES:
            raise UnsupportedError(f"{name} holds {_type_name(proto.data_type)}, which is not supported")
        kind, where = DTYPES[proto.data_type]
        # Also of a tensor without elements: NumPy cannot hold one whose other sizes are beyond measure.
        if any(d < 0 for d in dims) or len(dims) > 32 or math.prod(d or 1 for d in dims) > 1 << 48:
            raise FileError(f"{name}: damaged: its shape is {list(dims[:33])}")
        number = math.prod(dims)
        bits = 4 if kind.endswith("int4") else 16 if kind == "bfloat16" else np.dtype(kind).itemsize * 8
        wanted = -(-number * bits // 8)
        if proto.data_location == 1:
            return self._numbers(self._external(proto, name, wanted), kind, number).reshape(dims)
        if proto.HasField("raw_data"):
            if len(proto.raw_data) != wanted:
                raise FileError(
                    f"{name}: damaged: it claims the shape {list(dims)}, {wanted} bytes, and holds "
                    f"{len(proto.raw_data)}"
                )
            return self._numbers(proto.raw_data, kind, number).reshape(dims)
        entries = getattr(proto, where)
        held = -(-number * bits // 8) if bits == 4 else number
        if len(entries) != held:
            raise FileError(
                f"{name}: damaged: it claims the shape {list(dims)}, {number} numbers, and holds {len(entries)}"
            )
        if kind in ("float16", "bfloat16"):  # the bits of each, as a whole number
            return self._numbers(np.array(entries, np.uint16).tobytes(), kind, number).reshape(dims)
        if bits == 4:
            return self._numbers(np.array(entries, np.uint8).tobytes(), kind, number).reshape(dims)
        return np.array(entries).astype(kind).reshape(dims)

    @staticmethod
    def _numbers(data: bytes, kind: str, number: int) -> np.ndarray:
        if kind == "bfloat16":
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        if kind.endswith("int4"):
            both = np.frombuffer(data, np.uint8)
            halves = np.stack([both & 15, both >> 4], -1).reshape(-1)[:number].astype(np.int8)
            return (
                np.where(halves > 7, halves - 16, halves).astype(np.int8) if kind == "int4" else halves.view(np.uint8)
            )
        return np.frombuffer(data, np.dtype(kind).newbyteorder("<")).astype(kind)

    def _external(self, proto: Any, name: str, wanted: int) -> bytes:
        entries = {entry.key: entry.value for entry in proto.external_data}
        location = entries.get("location", "")
        folder = self.place.parent
        parts = Path(location.replace("\\", "/")).parts
        path = folder / location
        if not location or Path(location).is_absolute() or location[1:2] == ":" or ".." in parts:
            raise FileError(
                f"{name} lies in '{location}', outside the folder of the model: refused; put the file beside the model"
            )
        steps = [folder.joinpath(*parts[: n + 1]) for n in range(len(parts))]
        try:
            linked, there = any(step.is_symlink() for step in steps), path.is_file()
        except OSError:  # a name that is too long for any file
            linked, there = False, False
        if linked or not there:
            what = "a symbolic link: refused; put the file itself" if linked else "not there: put it"
            raise FileError(f"{name} lies in '{location[:200]}', which is {what} beside the model")
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(wanted)))
        except ValueError as error:
            raise FileError(f"{name}: damaged: its place in '{location}' is no number") from error
        size = path.stat().st_size
        if offset < 0 or length != wanted or offset + wanted > size:
            raise FileError(
                f"{name}: damaged: it claims {wanted} bytes from {offset} on, and '{location}' has {size} bytes, "
                f"{length} of them for it"
            )
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(wanted)
        if len(data) != wanted:
            raise FileError(f"{name}: '{location}' ended before the tensor did")
        return data


def _calls(place: Path, nodes: Any, opsets: Mapping[str, int], tensors: _Tensors) -> tuple[Call, ...]:
    calls: list[Call] = []
    taken: dict[str, int] = {}
    for number, node in enumerate(nodes):
        domain = "" if node.domain == "ai.onnx" else node.domain
        name = node.name or f"{node.op_type}_{number}"
        taken[name] = count = taken.get(name, 0) + 1
        name = name if count == 1 else f"{name}@{count}"
        attributes = {a.name: _attribute(place, name, a, opsets, tensors) for a in node.attribute}
        outputs = list(node.output)
        while outputs and not outputs[-1]:
            outputs.pop()
        inputs = list(node.input)
        while inputs and not inputs[-1]:
            inputs.pop()
        calls.append(Call(node.op_type, domain, opsets.get(domain, 1), name, tuple(inputs), tuple(outputs), attributes))
    return tuple(calls)


def _attribute(place: Path, node: str, proto: Any, opsets: Mapping[str, int], tensors: _Tensors) -> Any:
    kind = proto.type
    if proto.ref_attr_name:
        raise FileError(f"{place}: damaged: node '{node}' reads the attribute of a function outside of one")
    if kind == 1:
        return float(proto.f)
    if kind == 2:
        return int(proto.i)
    if kind == 3:
        return proto.s.decode("utf-8", "replace")
    if kind == 4:
        return tensors.array(proto.t)
    if kind == 5:  # a branch of If, a body of Loop or Scan
        constants = {t.name: tensors.array(t) for t in proto.g.initializer}
        inputs = tuple(_given(place, v) for v in proto.g.input if v.name not in constants)
        outputs = tuple(v.name for v in proto.g.output)
        return File(place, opsets[""], inputs, outputs, _calls(place, proto.g.node, opsets, tensors), constants)
    if kind == 6:
        return tuple(float(v) for v in proto.floats)
    if kind == 7:
        return tuple(int(v) for v in proto.ints)
    if kind == 8:
        return tuple(s.decode("utf-8", "replace") for s in proto.strings)
    raise UnsupportedError(f"{place}: the attribute '{proto.name}' of node '{node}' is of a kind that is not supported")


def check_order(place: Path, calls: Sequence[Call], known: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse a graph whose nodes read what no node before them has made: a cycle, or a damaged file."""
    made = {"", *known}
    for call in calls:
        inner = [name for value in call.attributes.values() if isinstance(value, File) for name in _outer(value)]
        if (missing := next((name for name in (*call.inputs, *inner) if name not in made), None)) is not None:
            later = any(missing in other.outputs for other in calls)
            why = "which only a later node makes: the graph has a cycle, or its nodes are out of order" if later else (
                "which nothing in the file makes: it is damaged")  # fmt: skip
            raise FileError(f"{place}: {call} reads '{missing}', {why}")
        if (twice := next((name for name in call.outputs if name and name in made), None)) is not None:
            raise FileError(f"{place}: damaged: {call} makes '{twice}', which is there already")
        made.update(call.outputs)
    if (missing := next((name for name in outputs if not name or name not in made), None)) is not None:
        raise FileError(f"{place}: damaged: nothing makes its output '{missing}'")


def _outer(graph: File) -> set[str]:
    """The values of the graph around it that a branch reads."""
    made = {"", *graph.constants, *(given.name for given in graph.inputs)}
    read: set[str] = set()
    for call in graph.calls:
        read.update(name for name in call.inputs if name not in made)
        for value in call.attributes.values():
            if isinstance(value, File):
                read.update(_outer(value) - made)
        made.update(call.outputs)
    return read | {name for name in graph.outputs if name not in made}
