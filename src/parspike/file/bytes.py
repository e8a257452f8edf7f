"""The bytes of a `.parspike` file: safetensors container, checksum, strict JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor

from parspike.errors import FileError

__all__ = ["DTYPES", "VERSION", "container", "contents", "parse"]

VERSION = 7
"""The newest version that is read."""

# The file starts with the header's length, this, 64 hexadecimal digits, and the version.
MAGIC = b'{"__metadata__":{"format":"parspike","sha256":"'
DIGEST = slice(8 + len(MAGIC), 8 + len(MAGIC) + 64)
VERSION_FIELD = re.compile(rb'","version":"([1-9][0-9]{0,5})",')

MOST_HEADER = 100_000_000
"""Bytes of the longest header that safetensors reads."""
CHANGED = "it is truncated, or was changed after it was written: write or copy it again"

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
          torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
          torch.bool: "BOOL", torch.complex64: "C64"}  # fmt: skip


def container(text: str, tensors: Mapping[str, Tensor], version: int) -> list[bytes | memoryview]:
    """The bytes of the file, in pieces."""
    # Not by safetensors' own writer: the order of its metadata changes from run to run.
    # Wide types first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {
        "__metadata__": {"format": "parspike", "sha256": "0" * 64, "version": str(version), "network": text}
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
    if len(encoded) > MOST_HEADER:
        raise FileError(f"its graph takes {len(encoded):,} bytes, and the format has room for {MOST_HEADER:,}")
    head = len(encoded).to_bytes(8, "little") + encoded
    digest = hashlib.sha256(head)
    for piece in data:
        digest.update(piece)
    return [head[: DIGEST.start], digest.hexdigest().encode(), head[DIGEST.stop :], *data]


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors. The file is read once, so the bytes that were checked are the bytes that are used."""
    with path.open("rb") as stream:
        start = stream.read(DIGEST.stop + 20)  # 20: the version at its longest
        length = int.from_bytes(start[:8], "little")
        # Nine bytes are the fewest that tell a file of ours, cut short, from another.
        if len(start) < 9 or start[8 : DIGEST.start] != MAGIC[: len(start) - 8]:
            raise FileError("this is not a parspike file: expected what snn.save or `parspike convert` wrote")
        version = VERSION_FIELD.match(start, DIGEST.stop)
        if version is not None and int(version[1]) > VERSION:
            raise FileError(
                f"its format has version {int(version[1])}, this parspike reads up to {VERSION}: "
                "pip install --upgrade parspike"
            )
        if version is None:
            raise FileError("it is truncated or damaged; write or copy it again")
        size = os.fstat(stream.fileno()).st_size
        head = start[8:] + stream.read(max(0, min(length, MOST_HEADER) - len(start) + 8))
        if length > MOST_HEADER or 8 + length + _end(head[:length]) != size:  # before memory is taken for the rest
            raise FileError(CHANGED)
        stream.seek(0)
        content = stream.read()
    digest = hashlib.sha256(memoryview(content)[: DIGEST.start])
    digest.update(b"0" * 64)
    digest.update(memoryview(content)[DIGEST.stop :])
    if digest.hexdigest().encode() != content[DIGEST]:
        raise FileError(CHANGED)
    try:
        return parse(content[8 : 8 + length].decode()), from_bytes(content)
    except SafetensorError as error:
        raise FileError(f"it is no valid safetensors file ({error})") from error


def _end(header: bytes) -> int:
    """Where the data of the tensors end, behind the header; −1 where it says nothing that can be read."""
    try:
        entries = json.loads(header)
        return max((entries[name]["data_offsets"][1] for name in entries if name != "__metadata__"), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return -1


def parse(text: str) -> Any:
    """Parse JSON strictly: no repeated keys, no NaN, no number that overflows a float."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise FileError("a JSON object has the same key twice")
        return table

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise FileError(f"{number[:80]} is no finite number")
        return value

    return json.loads(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)
