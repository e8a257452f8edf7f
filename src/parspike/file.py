"""The `.parspike` file: one safetensors file whose metadata hold the graph as JSON (docs/format.md).

Loading runs no code from the file: operators are looked up by name in parspike's own table, every field is
checked, the network is run once on tensors without data, and whatever does not fit is a `FileError`. Saving
passes the same checks, so that no file is written that could not be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from parspike.errors import FileError
from parspike.graph import Device, Graph, Input, Node, Param, Ref, Role, Schedule, Size, Stream, leaves, walk
from parspike.graph.ir import BATCH, CONDITIONS, MOST_TRIED, SIZE_OPERATIONS
from parspike.graph.ops import ON_MEANS, TABLE, judge
from parspike.graph.quiet import unlogged
from parspike.graph.roles import weighed_by_sample
from parspike.neurons import Neuron, neuron_from
from parspike.snn import SNN

__all__ = ["VERSION", "load", "save"]

VERSION = 2
MAX_T = 1 << 24
"""Largest T: counts above it are not whole numbers in float32."""
ONE_TYPE = {"aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.layer_norm.default",
            "aten.native_layer_norm.default"}  # fmt: skip
"""Operators beside those with weights that take tensors of one floating type, which torch does not always check where
tensors have no data."""
MAX_DEPTH = 64
"""Deepest nesting of an argument; a traced network has a handful."""

# The file starts with the header's length, this, 64 hexadecimal digits, and the version.
MAGIC = b'{"__metadata__":{"format":"parspike","sha256":"'
DIGEST = slice(8 + len(MAGIC), 8 + len(MAGIC) + 64)
FREE_SIZE = re.compile(r"\w{1,200}\.[0-9]{1,2}")
VERSION_FIELD = re.compile(rb'","version":"([1-9][0-9]{0,5})",')

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
          torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
          torch.bool: "BOOL"}  # fmt: skip
DTYPE_NAMES = {str(dtype): dtype for dtype in DTYPES}
LAYOUTS = (torch.strided, torch.contiguous_format, torch.preserve_format, torch.channels_last)
CONSTANTS = {**DTYPE_NAMES, **{str(value): value for value in LAYOUTS}}


def save(snn: SNN, path: str | Path, *, force: bool = False) -> Path:
    """Write an SNN. The file appears whole or not at all; force=True replaces an existing one."""
    path = Path(path)
    if path.is_dir():
        raise FileError(f"'{path}' is a folder: name a file in it, such as '{path / 'net.parspike'}'")
    if path.exists() and not force:
        raise FileError(f"'{path}' exists: choose another name, or pass force=True (command line: --force)")
    tensors = {f"synapses.{name}": tensor for name, tensor in snn.tensors().items()}
    for name, neuron in snn.neurons().items():
        tensors |= {f"neurons.{name}.{key}": value for key, value in neuron.state_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        body = {
            "T": snn.T,
            "graph": _graph_to_json(snn.graph),
            "neurons": {name: neuron.config() for name, neuron in snn.neurons().items()},
            "provenance": snn.provenance,
        }
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        _network(_parse(text), tensors)
        chunks = _container(text, tensors)
    except (ValueError, TypeError, RecursionError, FileError) as error:
        raise FileError(f"cannot save this network as '{path}': {error}") from error
    write_whole(path, chunks)
    return path


def write_whole(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file so that the name holds either the old content or all of the new."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = Path(stream.name)
            stream.writelines(chunks)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror if path.parent.is_dir() else f"there is no folder '{path.parent}'"
        raise FileError(f"cannot write '{path}': {reason or error}; the old file, if any, is as it was") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _container(text: str, tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """The bytes of the file, in pieces."""
    # Not by safetensors' own writer: the order of its metadata changes from run to run.
    # Wide types first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {
        "__metadata__": {"format": "parspike", "sha256": "0" * 64, "version": str(VERSION), "network": text}
    }
    data: list[memoryview] = []
    start = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise FileError(f"the tensor '{name}' is {tensor.dtype}, which the format does not have")
        stop = start + tensor.numel() * tensor.element_size()
        entry = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        header[name] = entry
        data.append(tensor.flatten().view(torch.uint8).numpy().data)
        start = stop
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    head = len(encoded).to_bytes(8, "little") + encoded
    digest = hashlib.sha256(head)
    for piece in data:
        digest.update(piece)
    return [head[: DIGEST.start], digest.hexdigest().encode(), head[DIGEST.stop :], *data]


def load(path: str | Path) -> SNN:
    """Read an SNN from a `.parspike` file. Raises `FileError` on anything but a whole, untouched file."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"'{path}' is a folder" if path.is_dir() else f"there is no file '{path}'")
    try:
        header, tensors = _contents(path)
        text = header["__metadata__"]["network"]
        if set(header["__metadata__"]) != {"format", "sha256", "version", "network"}:
            raise FileError("its metadata have unknown entries")
        body = _of_version(_parse(text), int(header["__metadata__"]["version"]))
        json.dumps(body, ensure_ascii=False).encode()  # refuses half characters, which could not be shown
        return _network(body, tensors)
    except FileError as error:
        raise FileError(f"'{path}': {error}") from error
    except MemoryError as error:
        raise FileError(f"'{path}' does not fit into memory") from error
    except OSError as error:
        raise FileError(f"cannot read '{path}': {error.strerror or error}") from error
    # Whatever a forged network raises says that it is none; the cause is chained.
    except Exception as error:
        raise FileError(f"'{path}' holds no valid network ({type(error).__name__}: {error})") from error


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, of one reading, so that what was checked is what is used."""
    with path.open("rb") as stream:
        start = stream.read(DIGEST.stop + 20)  # 20: the version at its longest
        length = int.from_bytes(start[:8], "little")
        # Nine bytes are the fewest that tell a file of ours, cut short, from another.
        if len(start) < 9 or start[8 : DIGEST.start] != MAGIC[: len(start) - 8]:
            raise FileError("this is not a parspike file")
        version = VERSION_FIELD.match(start, DIGEST.stop)
        if version is not None and int(version[1]) > VERSION:
            raise FileError(
                f"its format has version {int(version[1])}, this parspike reads up to {VERSION}: "
                "pip install --upgrade parspike"
            )
        if version is None:
            raise FileError("it is truncated or damaged; write or copy it again")
        content = start + stream.read()
    digest = hashlib.sha256(content[: DIGEST.start])
    digest.update(b"0" * 64)
    digest.update(memoryview(content)[DIGEST.stop :])
    if digest.hexdigest().encode() != content[DIGEST]:
        raise FileError("it is truncated, or was changed after it was written: write or copy it again")
    try:
        return _parse(content[8 : 8 + length].decode()), from_bytes(content)
    except SafetensorError as error:
        raise FileError(f"it is no valid safetensors file ({error})") from error


def _of_version(body: Any, version: int) -> Any:
    """The body as this version writes it. Version 1 knew one size of every input."""
    graph = body.get("graph") if isinstance(body, dict) else None
    if version == 1 and isinstance(graph, dict):
        if {"example", "limits"} & set(graph):
            raise FileError("the graph has entries that version 1 does not know")
        graph |= {"example": {}, "limits": []}
    return body


def _parse(text: str) -> Any:
    """JSON of one meaning: no repeated keys, no NaN, no number beyond a float."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise FileError("a JSON object has the same key twice")
        return table

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise FileError(f"{number} is no finite number")
        return value

    return json.loads(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item)] for key, item in value.items()]}
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, Param):
        return {"param": value.path}
    if isinstance(value, Size):
        return {"size": value.tree}
    if isinstance(value, Device):
        return {"device": None}
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)) and str(value) in CONSTANTS:
        return {"constant": str(value)}
    raise FileError(f"a value of type {type(value).__name__} cannot be saved")


def _decode(value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise FileError(f"values are nested more than {MAX_DEPTH} deep")
    if isinstance(value, list):
        return [_decode(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise FileError(f"a value has the kinds {sorted(value)}, expected one")
    ((kind, content),) = value.items()
    if kind == "tuple":
        return tuple(_decode(_is(content, list, kind), depth + 1))
    if kind == "dict":
        table = {_is(key, (str, int), "a key"): _decode(item, depth + 1) for key, item in _is(content, list, kind)}
        if len(table) != len(content):
            raise FileError("a dict has the same key twice")
        return table
    if kind == "size":
        return Size(_decode_size(content))
    if kind == "device" and content is None:
        return Device()
    text = _is(content, str, f"a {kind}")
    if kind == "ref":
        return Ref(text)
    if kind == "param":
        return Param(text)
    if kind == "float" and text in ("inf", "-inf", "nan"):
        return float(text)
    if kind == "constant" and text in CONSTANTS:
        return CONSTANTS[text]
    raise FileError(f"unknown value {kind} {text!r}")


def _decode_size(tree: Any, depth: int = 0, operations: Container[str] = SIZE_OPERATIONS) -> Any:
    if isinstance(tree, list) and len(tree) >= 3 and depth < MAX_DEPTH:
        operation = _is(tree[0], str, "an operation on sizes")
        if operation in operations:
            inner = operations if operation in ("and", "or") else SIZE_OPERATIONS
            return (operation, *(_decode_size(operand, depth + 1, inner) for operand in tree[1:]))
    if isinstance(tree, str) and (tree == BATCH or FREE_SIZE.fullmatch(tree)):
        return tree
    if isinstance(tree, int) and not isinstance(tree, bool) and operations is SIZE_OPERATIONS:
        return tree
    raise FileError(f"unknown size expression {str(tree)[:80]}")


def _is(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    """The value, which must be of this type; true and false are no integers."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise FileError(f"{what} is {str(value)[:80]!r}, expected {' or '.join(k.__name__ for k in kinds)}")
    return value


def _fields(value: Any, what: str, **kinds: Any) -> list[Any]:
    """The values of an object that has these keys, of these types, and no others."""
    if set(_is(value, dict, what)) != set(kinds):
        odd = set(value) ^ set(kinds)
        raise FileError(f"{what} has missing or unknown entries: {', '.join(sorted(odd))[:200]}")
    return [_is(value[key], kind, f"{what}, {key}") for key, kind in kinds.items()]


def _name(value: Any, what: str, taken: Iterable[str]) -> str:
    if not re.fullmatch(r"\w{1,200}", _is(value, str, what)) or value in taken:
        raise FileError(f"{what} has the name '{value[:80]}', which is no name or is given twice")
    return value


def _shape(value: Any, what: str) -> tuple[Any, ...]:
    shape = tuple(_decode(_is(value, list, what)))
    for dim in shape:
        if not isinstance(dim, Size) and _is(dim, int, what) < 0:
            raise FileError(f"{what} has a negative size")
    return shape


def _graph_to_json(graph: Graph) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": i.name, "shape": _encode(list(i.shape)), "dtype": str(i.dtype)} for i in graph.inputs
        ],
        "signature": [graph.signature[0], list(graph.signature[1])],
        "nodes": [
            {
                "name": node.name, "target": node.target, "role": str(node.role), "layer": node.layer,
                "source": node.source, "reason": node.reason, "channel_dim": node.channel_dim,
                "args": _encode(list(node.args)), "kwargs": _encode(node.kwargs),
                "shape": _encode(list(node.shape)),
            }
            for node in graph.nodes
        ],
        "output": _encode(graph.output),
        "example": dict(graph.example),
        "limits": [_encode(limit) for limit in graph.limits],
    }  # fmt: skip


def _graph_from_json(body: Any, tensors: dict[str, Tensor], spiking: set[str]) -> Graph:
    inputs, signature, items, output, example, limits = _fields(
        body, "the graph", inputs=list, signature=list, nodes=list, output=object, example=dict, limits=list
    )
    known: set[str] = set()
    symbols = {BATCH, *example}
    made = []
    for item in inputs:
        name, shape, dtype = _fields(item, "an input", name=str, shape=list, dtype=str)
        shape = _shape(shape, f"the shape of input '{name}'")
        if not shape or not isinstance(shape[0], Size) or dtype not in DTYPE_NAMES:
            raise FileError(f"input '{name}' has no batch dimension or the unknown type {dtype}")
        _check_symbols(f"input '{name}'", shape, symbols)
        made.append(Input(_name(name, "an input", known), shape, DTYPE_NAMES[dtype]))
        known.add(name)
    _check_example(example, made)
    positional, names = signature
    keywords = {_is(name, str, "a name of the signature") for name in _is(names, list, "the signature")}
    if len(keywords) != len(names) or not 0 <= _is(positional, int, "the signature") == len(made) - len(names):
        raise FileError("the signature does not match the inputs")
    varying, reached = set(known), set(spiking)
    nodes = []
    for item in items:
        node = _node(item, known)
        _check_leaves(f"node '{node.name}'", (node.args, node.kwargs, node.shape), known, tensors)
        _check_symbols(f"node '{node.name}'", (node.args, node.kwargs, node.shape), symbols)
        _check_role(node, varying, reached)
        if any(name in varying for name in node.refs):
            varying.add(node.name)
        if any(name in reached for name in node.refs):
            reached.add(node.name)
        known.add(node.name)
        nodes.append(node)
    tree = _decode(output)
    _check_leaves("the output", tree, known, tensors)
    if not all(isinstance(leaf, (Ref, str, int, float, type(None))) for leaf in leaves(tree)):
        raise FileError("the output is no tree of values of the network")
    if not any(isinstance(leaf, Ref) for leaf in leaves(tree)) or not made:
        raise FileError("the network has no input or no output")
    unread = set(tensors).difference(*(node.params for node in nodes))
    if unread:
        raise FileError(f"no node reads the tensor '{unread.pop()}'")
    conditions = tuple(_limit(limit, example, symbols) for limit in limits)
    return Graph(tuple(made), tuple(nodes), tree, tensors, (positional, tuple(names)), example, conditions)


def _check_example(example: Mapping[Any, Any], inputs: Iterable[Input]) -> None:
    """Every free size is a dimension of an input, and has a value to check the network with."""
    places = {f"{i.name}.{d}" for i in inputs for d, dim in enumerate(i.shape) if d and dim == Size(f"{i.name}.{d}")}
    if set(example) - places:
        raise FileError(f"the size '{sorted(set(example) - places)[0][:80]}' is no dimension of an input")
    if not all(_is(n, int, "a size of the example") >= 1 for n in example.values()):
        raise FileError("the example has a size below 1")


def _check_symbols(place: str, tree: Any, symbols: set[str]) -> None:
    unknown = [name for leaf in leaves(tree) if isinstance(leaf, Size) for name in leaf.symbols - symbols]
    if unknown:
        raise FileError(f"{place} depends on the size '{unknown[0][:80]}', which is not in the example")


def _limit(value: Any, example: Mapping[str, int], symbols: set[str]) -> Size:
    (tree,) = _fields(value, "a limit", size=list)
    limit = Size(_decode_size(tree, operations=CONDITIONS))
    _check_symbols("a limit", limit, symbols)
    if not limit.symbols or not any(limit({**example, BATCH: batch}) for batch in range(1, MOST_TRIED)):
        raise FileError(f"the limit {str(limit)[:80]} does not hold for the example, or is of no size of it")
    return limit


def _node(item: Any, known: set[str]) -> Node:
    name, target, role, layer, source, reason, channel_dim, args, kwargs, shape = _fields(
        item, "a node", name=str, target=str, role=str, layer=str, source=str, reason=str, channel_dim=int,
        args=list, kwargs=dict, shape=list,
    )  # fmt: skip
    _name(name, "a node", known)
    if target not in TABLE:
        own = target.startswith("parspike.")
        hint = ": register the activation first, with parspike.register" if own else ""
        raise FileError(f"node '{name}' uses the operator '{target[:80]}', which is not in the table{hint}")
    if role not in list(Role):
        raise FileError(f"node '{name}' has the unknown role '{role[:80]}'")
    shape = _shape(shape, f"the shape of node '{name}'")
    if not 0 <= channel_dim < max(1, len(shape)):
        raise FileError(f"node '{name}' has no dimension {channel_dim}")
    keywords = _is(_decode(kwargs), dict, f"the keywords of node '{name}'")
    if not all(isinstance(key, str) for key in keywords):
        raise FileError(f"a keyword of node '{name}' is no text")
    made = tuple(_decode(args))
    return Node(name, target, made, keywords, Role(role), layer, source, shape, channel_dim, reason)


def _check_role(node: Node, varying: set[str], reached: set[str]) -> None:
    """The role in the file must be what the table says, as if the network had just been traced.

    varying, reached: names of the values that depend on the network's input, and on its spikes.
    """
    if any(isinstance(leaf, Ref) for leaf in leaves(node.kwargs)):  # the table judges positional arguments
        raise FileError(f"node '{node.name}' takes a value of the network by keyword")
    changes = [sum(isinstance(leaf, Ref) and leaf.name in varying for leaf in leaves(arg)) for arg in node.args]
    role, reason = judge(node.target, changes)
    describe = TABLE[node.target].activation
    if role is Role.NEURON and describe is not None and isinstance(answer := describe(node), str):
        role, reason = Role.ANALOG, answer
    if weighed_by_sample(node, reached):
        return
    if node.reason in ON_MEANS and node.role is Role.ANALOG and role is not Role.UNKNOWN:
        return  # tracing saw what the table cannot; on the time-means it does the same as in the network
    if role is not node.role or role is Role.UNKNOWN:
        said = f"{role}, {reason}" if reason else role
        raise FileError(f"node '{node.name}' ({node.target}) has the role {node.role}, the table says {said}")


def _check_leaves(place: str, tree: Any, known: set[str], tensors: Mapping[str, Tensor]) -> None:
    for leaf in leaves(tree):
        if isinstance(leaf, Ref) and leaf.name not in known:
            raise FileError(f"{place} reads '{leaf.name[:80]}', which no earlier node gives")
        if isinstance(leaf, Param) and leaf.path not in tensors:
            raise FileError(f"{place} reads the tensor '{leaf.path[:80]}', which is not in the file")


def _network(body: Any, tensors: Mapping[str, Tensor]) -> SNN:
    steps, graph, configs, provenance = _fields(body, "the network", T=int, graph=dict, neurons=dict, provenance=dict)
    if not 1 <= steps <= MAX_T:
        raise FileError(f"T is {steps}, expected 1 … {MAX_T}")
    synapses: dict[str, Tensor] = {}
    states: dict[str, dict[str, Tensor]] = {name: {} for name in configs}
    for name, tensor in tensors.items():
        room, _, rest = name.partition(".")
        node, _, key = rest.partition(".")
        if room == "synapses":
            synapses[rest] = tensor
        elif room == "neurons" and node in states:
            if not bool(tensor.isfinite().all()):
                raise FileError(f"the tensor '{name}' holds NaN or Inf")
            states[node][key] = tensor
        else:
            raise FileError(f"the tensor '{name[:80]}' belongs to nothing in the network")
    made = _graph_from_json(graph, synapses, set(configs))
    if (unfit := made.unfit()) is not None:
        raise FileError(f"the tensor 'synapses.{unfit}' holds NaN or Inf")
    neurons = {
        node.name: _neuron(node, configs[node.name], states[node.name], steps)
        for node in made.neurons
        if node.name in configs
    }
    unknown = set(configs) - set(neurons)
    if unknown:
        raise FileError(f"neurons stand at '{unknown.pop()[:80]}', which is no activation of the graph")
    snn = SNN(made, neurons, T=steps, provenance=provenance)
    if any(snn.neurons()[name] is not neuron for name, neuron in neurons.items()):
        raise FileError("two layers of neurons have the same name")
    try:
        _check_run(snn)
    except FileError:
        inputs = _inputs_as_cast(made, tensors)
        if inputs == made.inputs:
            raise
        snn = SNN(replace(made, inputs=inputs), neurons, T=steps, provenance=provenance)
        _check_run(snn)
    return snn


def _inputs_as_cast(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple[Input, ...]:
    """The inputs, floating ones in the type of the tensors. `snn.half()` once left the inputs' type as it was traced,
    and the network took the other one: so its files say."""
    types = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(types) != 1 or len({i.dtype for i in graph.inputs if i.dtype.is_floating_point}) != 1:
        return graph.inputs
    (cast,) = types
    return tuple(replace(i, dtype=cast) if i.dtype.is_floating_point else i for i in graph.inputs)


def _neuron(node: Node, config: Any, state: Mapping[str, Tensor], steps: int) -> Neuron:
    place = f"the neurons of '{node.layer}'"
    floats = all(tensor.is_floating_point() for tensor in state.values())
    try:
        neuron = neuron_from(config, state)
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        raise FileError(f"{place} cannot be read: {str(error)[:200]}") from error
    if neuron.config() != config or set(neuron.state_dict()) != set(state) or not floats:
        raise FileError(f"{place} hold fields or tensors of another kind of neuron")
    sample = node.shape[1:]
    for name, tensor in state.items():
        dims = tuple(tensor.shape)[1 if name in neuron.per_level else 0 :]
        sizes = zip(reversed(dims), reversed(sample), strict=False)
        if len(dims) > len(sample) or not all(dim in (1, size) for dim, size in sizes):
            raise FileError(f"{place}: {name} {tuple(tensor.shape)} does not fit the layer's channels")
    if steps < neuron.T:
        raise FileError(f"{place} take {neuron.T} steps, the network {steps}")
    return neuron


def _check_types(node: Node, stream: Stream) -> None:
    if node.target not in ONE_TYPE and not TABLE[node.target].weighted:
        return
    read = [leaf for leaf in leaves(stream.arguments(node)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    # A transposed convolution adds a bias of any type.
    types = dict.fromkeys(tensor.dtype for tensor in (read[:2] if "conv_transpose" in node.target else read))
    if "layer_norm" in node.target and read[0].itemsize == 2:
        types.pop(torch.float32, None)  # half precision may be scaled by float32
    if len(types) > 1:
        raise TypeError(f"it takes {' and '.join(str(dtype) for dtype in types)}, which have to be one type")


def _check_run(snn: SNN) -> None:
    """Run the network on two samples without data, of the example's sizes.

    Operators take their arguments, shapes are as stated.
    """
    graph, neurons, sizes = snn.graph, snn.neurons(), {**snn.graph.example, BATCH: 2}

    def size(shape: Iterable[Any]) -> tuple[int, ...]:
        return tuple(dim(sizes) if isinstance(dim, Size) else dim for dim in shape)

    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        neuron = neurons[node.name]
        return [neuron.value(neuron.count(args[0]))]

    # The mode that torch.export traces in, so every operator of a traced network can run in it.
    mode = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
    with unlogged(), mode, torch.no_grad():
        env: dict[str, Any] = {}
        for i in graph.inputs:
            env[i.name] = torch.empty(size(i.shape), dtype=i.dtype)
        stream = Stream(env, snn.tensors(), sizes)
        for node in graph.nodes:
            try:
                _check_types(node, stream)
                walk(Schedule(((node, ()),)), [stream], dict.fromkeys(neurons, fire))
                first = next(leaf for leaf in leaves(env[node.name]) if isinstance(leaf, Tensor))
            except Exception as error:  # torch raises whatever it likes on forged arguments
                text = (str(error).splitlines() or [""])[0][:200]
                raise FileError(f"node '{node.name}' ({node.target}) cannot run: {text}") from error
            if tuple(first.shape) != size(node.shape):
                wrong = f"gives {tuple(first.shape)}, the file says {str(size(node.shape))[:80]}"
                raise FileError(f"node '{node.name}' {wrong}")
        for name in graph.outputs:
            if env[name].dim() == 0 or env[name].shape[0] != 2:
                raise FileError(f"the output '{name}' has no batch dimension")
