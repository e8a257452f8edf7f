"""The `.parspike` file: one safetensors file whose metadata hold the graph as JSON (docs/format.md).

Loading runs no code from the file: operators are looked up by name in parspike's own table, and whatever does
not fit is a `FileError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from parspike.errors import FileError
from parspike.graph import Device, Graph, Input, Node, Param, Ref, Role, Size, leaves
from parspike.graph.ir import SIZE_OPERATIONS
from parspike.graph.ops import TABLE
from parspike.neurons import ParallelNeuron
from parspike.snn import SNN

__all__ = ["VERSION", "load", "save"]

VERSION = 1
CONSTANTS = {str(value): value for value in (torch.float16, torch.bfloat16, torch.float32, torch.float64,
             torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
             torch.strided, torch.contiguous_format, torch.preserve_format, torch.channels_last)}  # fmt: skip


def save(snn: SNN, path: str | Path, *, force: bool = False) -> Path:
    """Write an SNN. The file appears whole or not at all; an existing one is replaced only with force=True."""
    path = Path(path)
    if path.exists() and not force:
        raise FileError(f"'{path}' exists: choose another name, or pass force=True (command line: --force)")
    tensors = {f"synapses.{name}": tensor for name, tensor in snn.tensors().items()}
    neurons = {}
    for name, neuron in snn.neurons().items():
        neurons[name] = neuron.config()
        tensors |= {f"neurons.{name}.{key}": value for key, value in neuron.state_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    body = {
        "T": snn.T,
        "graph": _graph_to_json(snn.graph),
        "neurons": neurons,
        "provenance": snn.provenance,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    metadata = {"format": "parspike", "version": str(VERSION), "network": text, "sha256": _digest(text, tensors)}
    write_whole(path, to_bytes(tensors, metadata))
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that the name holds either the old content or all of the new."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = Path(stream.name)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise FileError(f"cannot write '{path}': {error.strerror or error}; the old file, if any, is as it was") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(path: str | Path) -> SNN:
    """Read an SNN from a `.parspike` file. Raises `FileError` on anything but a whole, untouched file."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"'{path}' is not a file")
    try:
        with safe_open(path, framework="pt") as content:
            metadata = content.metadata() or {}
            if metadata.get("format") != "parspike":
                raise FileError(f"'{path}' is not a parspike file")
            _check_version(path, metadata.get("version", ""))
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"'{path}' is truncated or not a parspike file ({error}); write or copy it again") from error
    text = metadata.get("network", "")
    if _digest(text, tensors) != metadata.get("sha256"):
        raise FileError(f"'{path}' was changed after it was written: its checksum differs; write or copy it again")
    try:
        return _network(json.loads(text), tensors)
    except FileError as error:
        raise FileError(f"'{path}': {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise FileError(f"'{path}' does not hold a valid network ({type(error).__name__}: {error})") from error


def _check_version(path: Path, text: str) -> None:
    if not text.isdecimal():
        raise FileError(f"'{path}' has no format version")
    if int(text) > VERSION:
        raise FileError(
            f"'{path}' has format version {text}, this parspike reads up to {VERSION}: pip install --upgrade parspike"
        )


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


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
        return {"dict": {str(key): _encode(item) for key, item in value.items()}}
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, Param):
        return {"param": value.path}
    if isinstance(value, Size):
        return {"size": value.tree}
    if isinstance(value, Device):
        return {"device": None}
    if str(value) in CONSTANTS:
        return {"constant": str(value)}
    raise FileError(f"a value of type {type(value).__name__} cannot be saved")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tuple":
        return tuple(_decode(item) for item in content)
    if kind == "dict":
        return {key: _decode(item) for key, item in content.items()}
    if kind == "size":
        return Size(_decode_size(content))
    plain = {"ref": Ref, "param": Param, "float": float, "device": lambda _: Device(), "constant": CONSTANTS.__getitem__}
    if kind not in plain:
        raise FileError(f"unknown kind of value '{kind}'")
    return plain[kind](content)


def _decode_size(tree: Any) -> Any:
    if isinstance(tree, list):
        if len(tree) < 3 or tree[0] not in SIZE_OPERATIONS:
            raise FileError(f"unknown size expression {tree}")
        return (tree[0], *(_decode_size(operand) for operand in tree[1:]))
    if isinstance(tree, bool) or not isinstance(tree, (int, str)):
        raise FileError(f"unknown size expression {tree}")
    return tree


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
                "args": _encode(list(node.args)), "kwargs": _encode(node.kwargs), "shape": _encode(list(node.shape)),
            }
            for node in graph.nodes
        ],
        "output": _encode(graph.output),
    }  # fmt: skip


def _graph_from_json(body: Mapping[str, Any], tensors: dict[str, Tensor]) -> Graph:
    inputs = tuple(Input(i["name"], tuple(_decode(i["shape"])), CONSTANTS[i["dtype"]]) for i in body["inputs"])
    known = {i.name for i in inputs}
    symbols = {d.tree for i in inputs for d in i.shape if isinstance(d, Size) and isinstance(d.tree, str)}
    nodes = []
    for item in body["nodes"]:
        node = Node(
            name=item["name"], target=item["target"], args=tuple(_decode(item["args"])), kwargs=_decode(item["kwargs"]),
            role=Role(item["role"]), layer=item["layer"], source=item["source"], shape=tuple(_decode(item["shape"])),
            channel_dim=int(item["channel_dim"]), reason=item["reason"],
        )  # fmt: skip
        if node.target not in TABLE or node.role is Role.UNKNOWN:
            raise FileError(f"node '{node.name}' uses the operator '{node.target}', which is not in the table")
        if node.name in known:
            raise FileError(f"two nodes are named '{node.name}'")
        _check_leaves(node.name, (node.args, node.kwargs, node.shape), known, tensors, symbols)
        known.add(node.name)
        nodes.append(node)
    output = _decode(body["output"])
    _check_leaves("output", output, known, tensors, symbols)
    positional, names = body["signature"]
    if positional + len(names) != len(inputs):
        raise FileError("the signature does not match the inputs")
    return Graph(inputs, tuple(nodes), output, tensors, (int(positional), tuple(names)))


def _check_leaves(place: str, tree: Any, known: set[str], tensors: Mapping[str, Tensor], symbols: set[str]) -> None:
    for leaf in leaves(tree):
        if isinstance(leaf, Ref) and leaf.name not in known:
            raise FileError(f"'{place}' reads '{leaf.name}', which no earlier node gives")
        if isinstance(leaf, Param) and leaf.path not in tensors:
            raise FileError(f"'{place}' reads the tensor '{leaf.path}', which is not in the file")
        if isinstance(leaf, Size):
            unknown = _symbols(leaf.tree) - symbols
            if unknown:
                raise FileError(f"'{place}' depends on the unknown size '{unknown.pop()}'")


def _symbols(tree: Any) -> set[str]:
    if isinstance(tree, str):
        return {tree}
    return set().union(*(_symbols(item) for item in tree[1:])) if isinstance(tree, tuple) else set()


def _network(body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SNN:
    synapses = {name.removeprefix("synapses."): t for name, t in tensors.items() if name.startswith("synapses.")}
    graph = _graph_from_json(body["graph"], synapses)
    T = body["T"]
    neurons = {}
    for node in graph.neurons:
        if node.name in body["neurons"]:
            neurons[node.name] = _neuron(node, body["neurons"][node.name], tensors)
    unknown = set(body["neurons"]) - set(neurons)
    if unknown:
        raise FileError(f"neurons stand at '{unknown.pop()}', which is no activation of the graph")
    if isinstance(T, bool) or not isinstance(T, int) or T < 1:
        raise FileError(f"T is {T!r}")
    if not isinstance(body["provenance"], dict):
        raise FileError("the provenance is no object")
    return SNN(graph, neurons, T=T, provenance=body["provenance"])


def _neuron(node: Node, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ParallelNeuron:
    place = f"neurons.{node.name}."
    state = {name.removeprefix(place): t for name, t in tensors.items() if name.startswith(place)}
    if config["kind"] != "parallel":
        raise FileError(f"layer '{node.layer}' has neurons of the unknown kind '{config['kind']}'")
    theta = state["v_threshold"]
    channels = 1
    for dim in theta.shape:
        channels *= dim
    if channels not in (1, node.shape[node.channel_dim]) or not bool((theta > 0).all()):
        raise FileError(f"layer '{node.layer}' has thresholds that do not fit its channels or are not above 0")
    neuron = ParallelNeuron(int(config["T"]), theta, offset=float(config["offset"]))
    neuron.to(theta.dtype).load_state_dict(state)
    return neuron
