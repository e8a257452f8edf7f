"""The HDF5 side of a NIR file: nodes, edges and arrays, read without trusting the file.

Written for files of the package `nir` (versions 0.2 to 1.0): a group `node` of the type NIRGraph with `nodes`, `edges`
and, below it, one group a node. Every size is looked at before a byte is read; links that leave the file, or turn back
in it, and filters and types that such files do not have are refused.
"""

from __future__ import annotations

import math
import mmap
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parspike.errors import FileError, MissingExtraError

__all__ = ["FIELDS", "Found", "Piece", "hdf5", "read"]

LEAST_ROOM = 1 << 30
"""Bytes that the arrays of a file may always claim: the constant parameters of 100 million neurons take little room in
a file."""
WINDOW = 1 << 22
"""Bytes of a file that are looked through at a time; a multiple of the size of a page."""
TIMES_SIZE = 16
"""A larger file may claim this many times its own bytes."""
MOST_NODES, MOST_EDGES, DEEPEST, LONGEST = 100_000, 1_000_000, 16, 1000
FEW_EDGES = 256
"""Edges read at a time: many may point to one long text, of which each would be a copy."""
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}

FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Affine": (("weight", "bias"), ()),
    "AvgPool2d": (("kernel_size", "stride", "padding"), ()),
    "Conv1d": (("weight", "stride", "padding", "dilation", "groups", "bias"), ("input_shape",)),
    "Conv2d": (("weight", "stride", "padding", "dilation", "groups", "bias"), ("input_shape",)),
    "CubaLI": (("tau_syn", "tau_mem", "r", "v_leak"), ("w_in",)),
    "CubaLIF": (("tau_syn", "tau_mem", "r", "v_leak", "v_threshold"), ("w_in", "v_reset")),
    "Flatten": (("start_dim", "end_dim"), ("input_type",)),
    "I": (("r",), ()),
    "IF": (("r", "v_threshold"), ("v_reset",)),
    "Input": (("shape",), ()),
    "LI": (("tau", "r", "v_leak"), ()),
    "LIF": (("tau", "r", "v_leak", "v_threshold"), ("v_reset",)),
    "Linear": (("weight",), ()),
    "Output": (("shape",), ()),
    "Scale": (("scale",), ()),
    "SumPool2d": (("kernel_size", "stride", "padding"), ()),
    "Threshold": (("threshold",), ()),
}
"""The entries of each kind of node: those that it must have, and those that it may have."""


@dataclass(frozen=True)
class Piece:
    """One node of a NIR graph. values: arrays, or texts such as the padding "same"; an array whose entries are all
    stored as one number, without any data, is that number."""

    kind: str
    values: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A whole NIR graph, its subgraphs put in place of the nodes that held them."""

    pieces: Mapping[str, Piece]
    edges: tuple[tuple[str, str], ...]
    metadata: Mapping[str, Any]


def hdf5() -> Any:
    """The package h5py. Raises `MissingExtraError` where it is absent."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", extra="export") from error
    return h5py


def read(path: Path) -> Found:
    """The graph of a NIR file. Raises `FileError`, which names the place in the file."""
    h5py = hdf5()
    try:
        _check_heaps(path)
        with h5py.File(path, "r", locking=False) as file:
            return _Reader(h5py, os.path.getsize(path)).graph(file)
    except FileError:
        raise
    except MemoryError as error:
        raise FileError("it does not fit into memory") from error
    # The library reports damage by many kinds of exceptions; each means that the file cannot be read.
    except Exception as error:
        raise FileError(f"it is no undamaged HDF5 file ({_line(error)})") from error


def _check_heaps(path: Path) -> None:
    """Raise `FileError` where the places of texts are damaged so that the HDF5 library would never come back.

    Texts lie in collections, each a chain of objects with their sizes ("global heap", HDF5 file format specification,
    III.E). The library follows a size of 0 forever.
    """
    with path.open("rb") as stream:
        if os.path.getsize(path) < 16:
            raise FileError("it is no undamaged HDF5 file (it is too short)")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            widths = content[13:15] if content[8] < 2 else content[9:11]
            if content[:4] == b"\x89HDF" and widths != b"\x08\x08":
                raise FileError("it is no undamaged HDF5 file (its sizes are not of 8 bytes)")
            for start in range(0, len(content), WINDOW):
                end = min(start + WINDOW + 4, len(content))
                place = content.find(b"GCOL\x01", start, end)
                while place >= 0:
                    _check_heap(content, place)
                    place = content.find(b"GCOL\x01", place + 1, end)
                if hasattr(content, "madvise"):  # else memory would hold the whole file for a while
                    content.madvise(mmap.MADV_DONTNEED, start, min(WINDOW, len(content) - start))


def _check_heap(content: Any, place: int) -> None:
    """Follow the objects of one collection, as the library does."""
    size = int.from_bytes(content[place + 8 : place + 16], "little")
    end = place + size
    if end > len(content) or size < 16:
        return  # the library refuses it, or these are other data that happen to look so
    at = place + 16
    while at + 16 <= end:
        number = int.from_bytes(content[at : at + 2], "little")
        length = int.from_bytes(content[at + 8 : at + 16], "little")
        step = length if number == 0 else 16 + -(-length // 8) * 8
        if step < 16 or at + step > end:
            raise FileError("it is no undamaged HDF5 file (its texts overlap)")
        at += step


class _Reader:
    """Reads one file. left: bytes that arrays may still claim. seen: addresses of the groups on the way here."""

    def __init__(self, h5py: Any, size: int) -> None:
        self.h5py = h5py
        self.room = max(LEAST_ROOM, TIMES_SIZE * size)
        self.left = self.room
        self.seen: set[Any] = set()
        self.nodes = 0

    def graph(self, file: Any) -> Found:
        """The graph at `node`."""
        top = self._entries(file, "the file")
        if "node" not in top or not isinstance(top["node"], self.h5py.Group):
            raise FileError("it holds no NIR graph: there is no group 'node'")
        entries = self._entries(top["node"], "'node'")
        if self._text(entries.get("type"), "'node/type'") != "NIRGraph":
            raise FileError("its 'node' is no NIRGraph")
        return self._subgraph(entries, "", 0)

    def _subgraph(self, entries: dict[str, Any], inside: str, depth: int) -> Found:
        where = f"the graph '{inside}'" if inside else "the graph"
        if depth > DEEPEST:
            raise FileError(f"graphs lie more than {DEEPEST} deep in each other")
        self._expect(entries, where, ("nodes", "edges", "type"), ("metadata",))
        if not isinstance(entries["nodes"], self.h5py.Group):
            raise FileError(f"{where} has no group 'nodes'")
        pieces: dict[str, Piece] = {}
        nested: dict[str, Found] = {}
        for name, group in self._entries(entries["nodes"], f"the nodes of {where}").items():
            self.nodes += 1
            if self.nodes > MOST_NODES or len(name) > LONGEST:
                raise FileError(f"it has more than {MOST_NODES} nodes, or a name longer than {LONGEST}")
            place = f"node '{inside}{name}'"
            if not isinstance(group, self.h5py.Group):
                raise FileError(f"{place} is no group")
            own = self._entries(group, place)
            kind = self._text(own.get("type"), f"the type of {place}")
            if kind == "NIRGraph":
                nested[name] = self._subgraph(own, f"{inside}{name}.", depth + 1)
            else:
                pieces[name] = self._piece(kind, own, place)
        edges = self._edges(entries["edges"], where)
        known = {*pieces, *nested}
        for edge in edges:
            for end in edge:
                if end not in known:
                    raise FileError(f"{where} has an edge {edge[0]!r} → {edge[1]!r}, and no node '{end[:80]}'")
        if len(set(edges)) != len(edges):
            twice = Counter(edges).most_common(1)[0][0]
            raise FileError(f"{where} has the edge {twice[0]!r} → {twice[1]!r} twice")
        found = Found(pieces, edges, self._metadata(entries, where))
        return _inlined(found, nested) if nested else found

    def _piece(self, kind: str, entries: dict[str, Any], place: str) -> Piece:
        if kind not in FIELDS:
            return Piece(kind, {})  # refused by name later, all at once
        needed, optional = FIELDS[kind]
        self._expect(entries, f"{place} ({kind})", (*needed, "type"), (*optional, "metadata"))
        values = {
            name: self._value(entries[name], f"'{name}' of {place}") for name in (*needed, *optional) if name in entries
        }
        return Piece(kind, values, self._metadata(entries, place))

    def _metadata(self, entries: dict[str, Any], place: str) -> dict[str, Any]:
        """Metadata of one level; what others nest there is not ours."""
        group = entries.get("metadata")
        if not isinstance(group, self.h5py.Group):
            return {}
        found = self._entries(group, f"the metadata of {place}")
        return {
            name: self._value(item, f"the entry '{name}' of the metadata of {place}")
            for name, item in found.items()
            if isinstance(item, self.h5py.Dataset)
        }

    def _expect(self, entries: dict[str, Any], place: str, needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
        missing = [name for name in needed if name not in entries]
        other = [name for name in entries if name not in (*needed, *optional)]
        if missing or other:
            said = [f"lacks {', '.join(missing)}"] if missing else []
            said += [f"has the unknown entries {', '.join(sorted(other))[:200]}"] if other else []
            raise FileError(f"{place} {' and '.join(said)}")

    def _entries(self, group: Any, place: str) -> dict[str, Any]:
        """What a group holds. Links that point by name, into this file or another one, are refused."""
        address = self.h5py.h5o.get_info(group.id).addr
        if address in self.seen:
            raise FileError(f"{place} is a group that the file has in two places")
        self.seen.add(address)
        if len(group) > MOST_NODES:
            raise FileError(f"{place} has more than {MOST_NODES} entries")
        found: dict[str, Any] = {}
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, self.h5py.HardLink):
                outside = " to another file" if isinstance(link, self.h5py.ExternalLink) else ""
                raise FileError(f"'{name[:80]}' of {place} is a link{outside}, which is not followed")
            found[name] = group[name]
        return found

    def _value(self, item: Any, place: str) -> Any:
        """An array as numpy has it, a number for one without stored data, or a text."""
        if not isinstance(item, self.h5py.Dataset):
            raise FileError(f"{place} is no array")
        if item.external or item.is_virtual:
            raise FileError(f"{place} lies in another file, which is not read")
        if item.shape is None:
            raise FileError(f"{place} is empty")
        chain = item.id.get_create_plist()
        for number in range(chain.get_nfilters()):
            if (code := chain.get_filter(number)[0]) not in FILTERS:
                raise FileError(f"{place} is compressed by filter {code}: only {', '.join(FILTERS.values())} are read")
        kind = item.dtype.kind
        if self.h5py.check_string_dtype(item.dtype) is not None or kind == "S":
            if item.shape != ():
                raise FileError(f"{place} holds texts, expected numbers")
            return self._text(item, place)
        if kind not in "fiub" or item.dtype.itemsize > 8:
            raise FileError(f"{place} holds {str(item.dtype)[:60]}, expected numbers of at most 64 bits")
        width = max(4, item.dtype.itemsize)
        self._claim(width * max(item.size, math.prod(item.chunks or ())), place)
        one = item.size > 1 and item.id.get_storage_size() == 0
        value = np.broadcast_to(np.asarray(item.fillvalue), item.shape) if one else np.asarray(item[()])
        if kind == "f" and not np.isfinite(value[(0,) * value.ndim] if one else value).all():
            raise FileError(f"{place} holds NaN or Inf")
        return _repeated(value)

    def _claim(self, size: int, place: str) -> None:
        self.left -= size
        if self.left < 0:
            raise FileError(
                f"{place} brings the arrays of the file to more than {self.room / 1e9:.1f} GB, far more than the file "
                "itself holds"
            )

    def _text(self, item: Any, place: str) -> str:
        if not isinstance(item, self.h5py.Dataset) or item.shape != () or item.external or item.is_virtual:
            raise FileError(f"{place} is no text")
        if self.h5py.check_string_dtype(item.dtype) is None or item.dtype.itemsize > LONGEST:
            raise FileError(f"{place} is no short text")
        value = item[()]
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        if len(text) > LONGEST:
            raise FileError(f"{place} is no short text")
        return text

    def _edges(self, item: Any, where: str) -> tuple[tuple[str, str], ...]:
        place = f"'edges' of {where}"
        if not isinstance(item, self.h5py.Dataset) or item.external or item.is_virtual or item.shape is None:
            raise FileError(f"{place} are no table of names")
        if item.size == 0:
            return ()
        if item.ndim != 2 or item.shape[1] != 2 or item.shape[0] > MOST_EDGES:
            raise FileError(f"{place} have the shape {item.shape}, expected at most {MOST_EDGES} pairs of names")
        if self.h5py.check_string_dtype(item.dtype) is None or item.dtype.itemsize > LONGEST:
            raise FileError(f"{place} are no texts")
        self._claim(max(item.size, math.prod(item.chunks or ())) * max(16, item.dtype.itemsize), place)
        pairs: list[tuple[str, str]] = []
        for start in range(0, item.shape[0], FEW_EDGES):
            for pair in item[start : start + FEW_EDGES]:
                one, two = (end.decode("utf-8", "replace") if isinstance(end, bytes) else str(end) for end in pair)
                if max(len(one), len(two)) > LONGEST:
                    raise FileError(f"{place} hold a name longer than {LONGEST} characters")
                pairs.append((one, two))
        return tuple(pairs)


def _repeated(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same array; one that repeats itself along dimensions, as a threshold a channel does in the shape that NIR
    asks for, without the memory for it."""
    small = value
    for axis in range(value.ndim - 1, 0, -1):
        first = small.take([0], axis)
        # The first two tell most arrays apart from such.
        if small.shape[axis] > 1 and (
            small[(0,) * small.ndim] != small.take(1, axis).flat[0] or (small != first).any()
        ):
            break
        small = first
    return value if small.size == value.size else np.broadcast_to(small, value.shape)


def _inlined(outer: Found, nested: Mapping[str, Found]) -> Found:
    """The graph with its subgraphs' nodes in place of them: what goes into a subgraph goes to what its Input feeds."""
    pieces, edges = dict(outer.pieces), []
    into: dict[str, list[str]] = {}
    out_of: dict[str, list[str]] = {}
    for name, inner in nested.items():
        ends = {key: piece.kind for key, piece in inner.pieces.items() if piece.kind in ("Input", "Output")}
        for kind in ("Input", "Output"):
            if list(ends.values()).count(kind) != 1:
                raise FileError(f"the graph '{name}' inside the graph has not one {kind} node")
        for key, piece in inner.pieces.items():
            if key not in ends:
                full = f"{name}.{key}"
                if full in pieces:
                    raise FileError(f"two nodes have the name '{full[:80]}'")
                pieces[full] = piece
        into[name] = [f"{name}.{b}" for a, b in inner.edges if ends.get(a) == "Input" and ends.get(b) != "Output"]
        out_of[name] = [f"{name}.{a}" for a, b in inner.edges if ends.get(b) == "Output" and ends.get(a) != "Input"]
        if any(ends.get(a) == "Input" and ends.get(b) == "Output" for a, b in inner.edges):
            raise FileError(f"the graph '{name}' inside the graph leads from its Input straight to its Output")
        edges += [(f"{name}.{a}", f"{name}.{b}") for a, b in inner.edges if a not in ends and b not in ends]
    for a, b in outer.edges:
        edges += [(one, two) for one in out_of.get(a, [a]) for two in into.get(b, [b])]
    return Found(pieces, tuple(edges), outer.metadata)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
