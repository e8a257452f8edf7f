"""The graph as JSON, and back: every field is checked, operators are names in parspike's own table (docs/format.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from parspike.errors import FileError
from parspike.file.bytes import DTYPES
from parspike.file.check import check_example, check_leaves, check_role, check_symbols, expect, fields, new_name
from parspike.graph import Device, Graph, Input, Node, Param, Ref, Role, Size, leaves
from parspike.graph.ir import BATCH, CONDITIONS, MOST_TRIED, SIZE_OPERATIONS
from parspike.graph.ops import HOLD, TABLE

__all__ = ["CONSTANTS", "graph_from_json", "graph_to_json"]

MAX_DEPTH = 64
"""Deepest nesting of an argument; a traced network has a handful."""
LONGEST_SIZE = 100_000
"""Characters of a size that is computed from others: what is multiplied in it grows with each operand."""
FREE_SIZE = re.compile(r"\w{1,200}\.[0-9]{1,2}")

DTYPE_NAMES = {str(dtype): dtype for dtype in DTYPES}
LAYOUTS = (torch.strided, torch.contiguous_format, torch.preserve_format, torch.channels_last)
CONSTANTS = {**DTYPE_NAMES, **{str(value): value for value in LAYOUTS}}


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
        raise FileError(f"a value has the kinds {sorted(value)}"[:200] + ", expected one")
    ((kind, content),) = value.items()
    if kind == "tuple":
        return tuple(_decode(expect(content, list, kind), depth + 1))
    if kind == "dict":
        table = {
            expect(key, (str, int), "a key"): _decode(item, depth + 1) for key, item in expect(content, list, kind)
        }
        if len(table) != len(content):
            raise FileError("a dict has the same key twice")
        return table
    if kind == "size":
        return _size(content)
    if kind == "device" and content is None:
        return Device()
    text = expect(content, str, f"a {kind[:80]}")
    if kind == "ref":
        return Ref(text)
    if kind == "param":
        return Param(text)
    if kind == "float" and text in ("inf", "-inf", "nan"):
        return float(text)
    if kind == "constant" and text in CONSTANTS:
        return CONSTANTS[text]
    raise FileError(f"unknown value {kind[:80]} {text[:80]!r}")


def _size(tree: Any, operations: Container[str] = SIZE_OPERATIONS) -> Size:
    if len(str(tree)) > LONGEST_SIZE:
        raise FileError(f"a size is computed in over {LONGEST_SIZE} characters")
    return Size(_decode_size(tree, operations=operations))


def _decode_size(tree: Any, depth: int = 0, operations: Container[str] = SIZE_OPERATIONS) -> Any:
    if isinstance(tree, list) and len(tree) >= 3 and depth < MAX_DEPTH:
        operation = expect(tree[0], str, "an operation on sizes")
        if operation in operations:
            inner = operations if operation in ("and", "or") else SIZE_OPERATIONS
            return (operation, *(_decode_size(operand, depth + 1, inner) for operand in tree[1:]))
    if isinstance(tree, str) and (tree == BATCH or FREE_SIZE.fullmatch(tree)):
        return tree
    if isinstance(tree, int) and not isinstance(tree, bool) and operations is SIZE_OPERATIONS:
        return tree
    raise FileError(f"unknown size expression {str(tree)[:80]}")


def _shape(value: Any, what: str) -> tuple[Any, ...]:
    shape = tuple(_decode(expect(value, list, what)))
    for dim in shape:
        if not isinstance(dim, Size) and expect(dim, int, what) < 0:
            raise FileError(f"{what} has a negative size")
    return shape


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """What `graph_from_json` reads; raises `FileError` for a value that JSON and the format do not have."""
    return {
        "inputs": [
            {"name": i.name, "shape": _encode(list(i.shape)), "dtype": str(i.dtype)} for i in graph.inputs
        ],
        "signature": [graph.signature[0], list(graph.signature[1])],
        "nodes": [
            {
                "name": node.name, "target": node.target, "role": str(node.role), "layer": node.layer,
                "source": node.source, "reason": node.reason,
                "channel_dim": _alone(node.channel_dims),
                "args": _encode(list(node.args)), "kwargs": _encode(node.kwargs),
                "shape": _encode(list(node.shape)),
            }
            for node in graph.nodes
        ],
        "output": _encode(graph.output),
        "example": dict(graph.example),
        "limits": [_encode(limit) for limit in graph.limits],
    }  # fmt: skip


def _alone(dims: tuple[int, ...]) -> int | list[int]:
    """One dimension as a number, as files of all versions have it."""
    return dims[0] if len(dims) == 1 else list(dims)


def graph_from_json(body: Any, tensors: dict[str, Tensor], spiking: set[str]) -> Graph:
    """The graph over these tensors, or a `FileError`. spiking: names of the nodes that the file has neurons for."""
    inputs, signature, items, output, example, limits = fields(
        body, "the graph", inputs=list, signature=list, nodes=list, output=object, example=dict, limits=list
    )
    known: set[str] = set()
    symbols = {BATCH, *example}
    made = []
    for item in inputs:
        name, shape, dtype = fields(item, "an input", name=str, shape=list, dtype=str)
        shape = _shape(shape, f"the shape of input '{name}'")
        if not shape or not isinstance(shape[0], Size) or BATCH not in shape[0].symbols or dtype not in DTYPE_NAMES:
            raise FileError(f"input '{name}' has no batch dimension or the unknown type {dtype[:80]}")
        check_symbols(f"input '{name}'", shape, symbols)
        made.append(Input(new_name(name, "an input", known), shape, DTYPE_NAMES[dtype]))
        known.add(name)
    if made and not any(one.shape[0] == Size(BATCH) for one in made):  # else nothing says how large the batch is
        raise FileError("no input has the batch as its first size")
    check_example(example, made)
    positional, names = signature
    keywords = {expect(name, str, "a name of the signature") for name in expect(names, list, "the signature")}
    if len(keywords) != len(names) or not 0 <= expect(positional, int, "the signature") == len(made) - len(names):
        raise FileError("the signature does not match the inputs")
    varying, reached = set(known), set(spiking)
    nodes = []
    for item in items:
        node = _node(item, known)
        check_leaves(f"node '{node.name}'", (node.args, node.kwargs, node.shape), known, tensors)
        check_symbols(f"node '{node.name}'", (node.args, node.kwargs, node.shape), symbols)
        check_role(node, varying, reached)
        if any(name in varying for name in node.refs):
            varying.add(node.name)
        if node.target != HOLD and any(name in reached for name in node.refs):
            reached.add(node.name)
        known.add(node.name)
        nodes.append(node)
    tree = _decode(output)
    check_leaves("the output", tree, known, tensors)
    check_symbols("the output", tree, symbols)
    if not all(isinstance(leaf, (Ref, Size, str, int, float, type(None))) for leaf in leaves(tree)):
        raise FileError("the output is no tree of values of the network")
    if not any(isinstance(leaf, Ref) for leaf in leaves(tree)) or not made:
        raise FileError("the network has no input or no output")
    unread = set(tensors).difference(*(node.params for node in nodes))
    if unread:
        raise FileError(f"no node reads the tensor '{unread.pop()}'")
    conditions = tuple(_limit(limit, example, symbols) for limit in limits)
    return Graph(tuple(made), tuple(nodes), tree, tensors, (positional, tuple(names)), example, conditions)


def _limit(value: Any, example: Mapping[str, int], symbols: set[str]) -> Size:
    (tree,) = fields(value, "a limit", size=list)
    limit = _size(tree, CONDITIONS)
    check_symbols("a limit", limit, symbols)
    if not limit.symbols or not any(limit.holds({**example, BATCH: batch}) for batch in range(1, MOST_TRIED)):
        raise FileError(f"the limit {str(limit)[:80]} does not hold for the example, or is of no size of it")
    return limit


def _node(item: Any, known: set[str]) -> Node:
    name, target, role, layer, source, reason, channels, args, kwargs, shape = fields(
        item, "a node", name=str, target=str, role=str, layer=str, source=str, reason=str, channel_dim=(int, list),
        args=list, kwargs=dict, shape=list,
    )  # fmt: skip
    new_name(name, "a node", known)
    parts = [arg for arg in args if isinstance(arg, str) and arg.startswith("parspike.")]  # of an activation that turns
    for used in (target, *parts):
        if used not in TABLE:
            own = used.startswith("parspike.")
            hint = ": register the activation first, with parspike.register" if own else ""
            raise FileError(f"node '{name}' uses the operator '{used[:80]}', which is not in the table{hint}")
    if role not in list(Role):
        raise FileError(f"node '{name}' has the unknown role '{role[:80]}'")
    shape = _shape(shape, f"the shape of node '{name}'")
    dims = tuple(expect(d, int, f"a dimension of node '{name}'")
                 for d in (channels if isinstance(channels, list) else [channels]))  # fmt: skip
    if not all(0 <= d < max(1, len(shape)) for d in dims) or list(dims) != sorted(set(dims)) or not dims:
        raise FileError(f"node '{name}' has no dimension {channels}"[:200])
    keywords = expect(_decode(kwargs), dict, f"the keywords of node '{name}'")
    if not all(isinstance(key, str) for key in keywords):
        raise FileError(f"a keyword of node '{name}' is no text")
    if keywords.get("pin_memory"):
        raise FileError(f"node '{name}' asks for pinned memory, which not every machine has")
    made = tuple(_decode(args))
    return Node(name, target, made, keywords, Role(role), layer, source, shape, dims, reason)
