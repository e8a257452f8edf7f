"""Mutators for `benchmarks/fuzz.py`: of bytes, of JSON, and of the formats that hide both behind checksums and lengths.

Every mutator keeps the outside of a file right (checksum, lengths, CRC), so that what lies behind it is tried.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    63,
    64,
    127,
    128,
    255,
    256,
    1000,
    65535,
    65536,
    10**6,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**40,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
    10**400,
]
FLOATS = [0.0, -0.0, 0.5, 1.0, -1.0, 1e-300, 1e-45, 1e38, 1e300, 3.5, 2.0**63]
TEXTS = [
    "",
    "x",
    "a.b",
    "../../etc/passwd",
    "/etc/passwd",
    "__class__",
    "é",
    "\x00",
    "a" * 300,
    "1e999",
    "nan",
    "-inf",
    "batch",
    "x.2",
    "torch.float32",
    "torch.strided",
    "%s%n",
    "{0}",
    "\ud800",
    "node",
    "relu",
    "NaN",
]
Rng = random.Random


def value(rng: Rng, pool: Sequence[Any] = ()) -> Any:
    """A JSON value: a number at an edge, a text, or a part of the file itself."""
    kind = rng.randrange(9)
    if kind < 3 and pool:
        return rng.choice(pool)
    if kind < 5:
        return rng.choice(NUMBERS)
    if kind == 5:
        return rng.choice(FLOATS)
    if kind == 6:
        return rng.choice(TEXTS)
    if kind == 7:
        return rng.choice([None, True, False, [], {}, [[]], [None] * 40])
    one = value(rng, pool)
    return rng.choice(
        [
            [one],
            {"ref": one},
            {"param": one},
            {"tuple": [one]},
            {"size": ["*", one, one]},
            {"dict": [[one, one]]},
            {"float": one},
            {"constant": one},
            {"size": ["//", one, 2]},
            {"x": one},
        ]
    )


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a tree with each of its keys."""
    found: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo:
        one = todo.pop()
        if isinstance(one, (dict, list)):
            keys = list(one) if isinstance(one, dict) else range(len(one))
            found += [(one, key) for key in keys]
            todo += [one[key] for key in keys]
    return found


def change_tree(rng: Rng, tree: Any) -> Any:
    """A tree of dicts and lists with some places changed, in place."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        where = places(tree)
        if not where:
            return value(rng)
        pool = [copied(one[key]) for one, key in rng.sample(where, min(6, len(where)))]  # else a tree could hold itself
        home, key = rng.choice(where)
        how = rng.randrange(8)
        if how < 3:
            home[key] = value(rng, pool)
        elif how == 3:
            del home[key]
        elif how == 4 and isinstance(home, list):
            home.insert(rng.randrange(len(home) + 1), rng.choice(pool))
        elif how == 4:
            home[rng.choice(TEXTS)] = rng.choice(pool)
        elif how == 5 and isinstance(home[key], (int, float)) and not isinstance(home[key], bool):
            home[key] = home[key] + rng.choice([-1, 1, 2]) if rng.random() < 0.7 else -home[key]
        elif how == 6:
            other, there = rng.choice(where)
            if there in other if isinstance(other, dict) else there < len(other):
                home[key], other[there] = copied(other[there]), copied(home[key])
        else:
            home[key] = rng.choice(pool)
    return tree


def to_json(tree: Any) -> str:
    """JSON text; a tree that turned into itself is cut."""
    try:
        return json.dumps(tree)
    except (ValueError, RecursionError):
        return json.dumps(str(type(tree)))


def copied(tree: Any) -> Any:
    """A copy of a JSON tree."""
    if isinstance(tree, dict):
        return {key: copied(item) for key, item in tree.items()}
    return [copied(item) for item in tree] if isinstance(tree, list) else tree


TOKENS = [
    b"[" * 500,
    b"{",
    b"}",
    b'"',
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"null",
    b",",
    b":",
    b"\\ud800",
    b"\xff",
    b"\x00",
    b"\n",
    b"=",
    b"[[",
    b"'''",
    b"0x",
    b"1979-05-27",
    b"true",
    b"-",
]


def change_text(rng: Rng, text: bytes) -> bytes:
    """A text with tokens put into it, numbers replaced, or parts doubled."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(text) + 1)
        how = rng.randrange(4)
        if how == 0:
            text = text[:at] + rng.choice(TOKENS) + text[at:]
        elif how == 1:
            stop = min(len(text), at + rng.choice([1, 2, 8, 60]))
            text = text[:at] + rng.choice([b"", text[at:stop] * 2]) + text[stop:]
        elif how == 2:
            digits = [i for i in range(max(0, at - 200), min(len(text), at + 200)) if text[i : i + 1].isdigit()]
            if digits:
                place = rng.choice(digits)
                text = text[:place] + str(rng.choice(NUMBERS)).encode() + text[place + 1 :]
        else:
            other = rng.randrange(len(text) + 1)
            text = text[:at] + text[other : other + rng.choice([4, 20, 100])] + text[at:]
    return text


def change_bytes(rng: Rng, data: bytes) -> bytes:
    """Bits flipped, integers at edges written over, parts moved, cut off."""
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 12])):
        if not made:
            return bytes(rng.randbytes(rng.randrange(64)))
        at = rng.randrange(len(made))
        how = rng.randrange(9)
        if how < 3:
            made[at] ^= 1 << rng.randrange(8)
        elif how == 3:
            made[at] = rng.choice([0, 255, 127, 128, rng.randrange(256)])
        elif how < 6:
            width = rng.choice([2, 4, 8])
            number = (rng.choice(NUMBERS) % 256**width).to_bytes(width, rng.choice(["little", "big"]))
            made[at : at + width] = number
        elif how == 6:
            stop = at + rng.choice([1, 4, 16, 64])
            made[at:stop] = b"" if rng.random() < 0.5 else made[at:stop] * 2
        elif how == 7:
            other = rng.randrange(len(made))
            made[at : at + 16] = made[other : other + 16]
        else:
            del made[rng.randrange(len(made)) :]
    return bytes(made)


# ------------------------------------------------------------------------------------------------------- safetensors


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(header: str, tensors: bytes) -> bytes:
    """The inverse."""
    text = header.encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + tensors


def change_safetensors(rng: Rng, data: bytes) -> bytes:
    """A header with right lengths and changed entries, or changed bytes."""
    header, tensors = split_safetensors(data)
    if rng.random() < 0.2:
        return join_safetensors(change_text(rng, json.dumps(header).encode()).decode("utf-8", "replace"), tensors)
    if rng.random() < 0.2:
        return join_safetensors(json.dumps(header), change_bytes(rng, tensors))
    return join_safetensors(to_json(change_tree(rng, header)), tensors)


def right_checksum(data: bytes) -> bytes:
    """A `.parspike` file with the checksum of what it holds."""
    blank = data[:55] + b"0" * 64 + data[119:]
    return data[:55] + hashlib.sha256(blank).hexdigest().encode() + data[119:]


def change_parspike(rng: Rng, data: bytes) -> bytes:
    """A `.parspike` file whose checksum is right and whose network is not."""
    how = rng.random()
    if how < 0.1:
        return right_checksum(change_bytes(rng, data))
    header, tensors = split_safetensors(data)
    about = header["__metadata__"]
    if how < 0.7:
        about["network"] = to_json(change_tree(rng, json.loads(about["network"])))
    elif how < 0.8:
        about["network"] = change_text(rng, about["network"].encode()).decode("utf-8", "replace")
    elif how < 0.9:
        entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
        header = {"__metadata__": about, **(found if isinstance(found := change_tree(rng, entries), dict) else {})}
    else:
        made = bytearray(tensors)
        for _ in range(rng.choice([1, 2, 8])):
            if len(made) >= 4:
                at = rng.randrange(len(made) // 4) * 4
                number = rng.choice([0.0, -1.0, 1e-38, 1e-45, 3e38, float("nan"), float("inf"), 1e30])
                made[at : at + 4] = struct.pack("<f", number)
        tensors = bytes(made)
    if rng.random() < 0.05:
        about["version"] = rng.choice(["1", "2", "3", "4", "5"])
    first = {"format": "parspike", "sha256": "0" * 64, "version": about["version"], "network": about["network"]}
    text = json.dumps({**header, "__metadata__": first}, separators=(",", ":"), ensure_ascii=True)
    # The metadata stand first in a file that parspike wrote.
    text = json.dumps(
        {"__metadata__": first, **{k: v for k, v in json.loads(text).items() if k != "__metadata__"}},
        separators=(",", ":"),
    )
    return right_checksum(join_safetensors(text, tensors))


# --------------------------------------------------------------------------------------------------------------- zip


def change_zip(change: Callable[[Rng, str, bytes], bytes]) -> Callable[[Rng, bytes], bytes]:
    """A mutator of zip files, with right CRCs. change: what happens to the content of a member."""

    def run(rng: Rng, data: bytes) -> bytes:
        if rng.random() < 0.15:
            return change_bytes(rng, data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        for _ in range(rng.choice([1, 1, 2])):
            if not members:
                break
            at = rng.randrange(len(members))
            name, content = members[at]
            how = rng.randrange(10)
            if how < 6:
                members[at] = name, change(rng, name, content)
            elif how == 6:
                members[at] = (
                    rng.choice(["../../evil", "/tmp/evil", "a/../../b.npy", name.upper(), "", name + "x"]),
                    content,
                )
            elif how == 7:
                del members[at]
            elif how == 8:
                members.insert(at, (name + rng.choice(["", "2", ".npy"]), content))
            else:
                other = rng.randrange(len(members))
                members[at], members[other] = (name, members[other][1]), (members[other][0], content)
        stream = io.BytesIO()
        kind = zipfile.ZIP_STORED if rng.random() < 0.9 else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(stream, "w", kind) as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name or "x", (1980, 1, 1, 0, 0, 0)), content, kind)
        return stream.getvalue()

    return run


SHAPES = [
    "()",
    "(0,)",
    "(1,)",
    "(2, 3)",
    "(1000000000000,)",
    "(2147483648, 2147483648)",
    "(-1,)",
    "(4, 8, 8)",
    "(1, 1, 1, 3)",
    "(99999999,)",
    "(1,)*9",
    "(True,)",
    "(1.5,)",
    "[1]",
    "(" + "1, " * 70 + ")",
]
DTYPES = [
    "<f4",
    "<f8",
    "|u1",
    "<i8",
    ">i4",
    "|O",
    "|S5",
    "<U1000000",
    "|V8",
    "<c16",
    "<M8[s]",
    "|b1",
    "<f2",
    "<u8",
    "|S0",
    "[('a', '<f4')]",
    "<i5",
]


def change_npy(rng: Rng, data: bytes) -> bytes:
    """An array in numpy's format: another shape, type or order in its head, or other bytes."""
    how = rng.random()
    if how < 0.3 or not data.startswith(b"\x93NUMPY"):
        return change_bytes(rng, data)
    length = int.from_bytes(data[8:10], "little")
    head, body = data[10 : 10 + length].decode("latin1"), data[10 + length :]
    if how < 0.6:
        start, stop = head.find("("), head.find(")")
        head = head[:start] + rng.choice(SHAPES) + head[stop + 1 :]
    elif how < 0.85:
        start = head.find("'descr': ") + 9
        stop = head.find(", 'fortran")
        kind = rng.choice(DTYPES)
        head = head[:start] + (kind if kind.startswith("[") else repr(kind)) + head[stop:]
    else:
        head = change_text(rng, head.encode("latin1")).decode("latin1")
    raw = head.encode("latin1", "replace")[:60000]
    return data[:8] + len(raw).to_bytes(2, "little") + raw + body


def change_json(rng: Rng, data: bytes) -> bytes:
    """A JSON text, as a tree mostly."""
    try:
        tree = json.loads(data) if rng.random() < 0.8 else None
    except ValueError:
        tree = None
    return change_text(rng, data) if tree is None else to_json(change_tree(rng, tree)).encode()


def change_lines(rng: Rng, data: bytes) -> bytes:
    """Lines, most of which are JSON, perhaps behind "# " or "# end "."""
    lines = data.split(b"\n")
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(lines))
        how = rng.randrange(6)
        if how < 3 and b"{" in lines[at]:
            start = lines[at].index(b"{")
            lines[at] = lines[at][:start] + change_json(rng, lines[at][start:])
        elif how < 4:
            lines[at] = change_text(rng, lines[at])
        elif how == 4:
            del lines[at]
            lines = lines or [b""]
        else:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
    return b"\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- TOML


def to_toml(tree: Any) -> str:
    """A table as TOML, nested ones in braces; what TOML does not have is left out."""

    def one(item: Any) -> str:
        if isinstance(item, bool):
            return "true" if item else "false"
        if isinstance(item, dict):
            return "{" + ", ".join(f"{json.dumps(str(k))} = {one(v)}" for k, v in item.items() if v is not None) + "}"
        if isinstance(item, (list, tuple)):
            return "[" + ", ".join(one(v) for v in item if v is not None) + "]"
        return json.dumps(item if isinstance(item, (int, float)) else str(item))

    return "".join(f"{json.dumps(str(k))} = {one(v)}\n" for k, v in tree.items() if v is not None)


def change_toml(rng: Rng, data: bytes) -> bytes:
    """A TOML text, as a tree mostly."""
    import tomllib

    if rng.random() < 0.7:
        try:
            tree = change_tree(rng, tomllib.loads(data.decode()))
            return (to_toml(tree) if isinstance(tree, dict) else str(tree)).encode("utf-8", "replace")
        except (ValueError, RecursionError):
            pass
    return change_text(rng, data)


# ------------------------------------------------------------------------------------------------------------ images


def change_image(rng: Rng, data: bytes) -> bytes:
    """Any image file; chunks of a PNG get right CRCs."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.2:
        return change_bytes(rng, data)
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(rng.choice([1, 1, 2])):
        place = rng.randrange(len(chunks))
        kind, body = chunks[place]
        how = rng.randrange(6)
        if kind == b"IHDR" and how < 4 and len(body) >= 13:
            numbers = [rng.choice(NUMBERS[:20]) % 2**31 for _ in range(2)]
            body = rng.choice([struct.pack(">II", *numbers) + body[8:], body[:8] + rng.randbytes(1) + body[9:]])
        elif kind == b"IDAT" and how < 3:
            try:
                body = zlib.compress(change_bytes(rng, zlib.decompress(body)))
            except zlib.error:
                body = change_bytes(rng, body)
        elif how == 4:
            chunks.insert(place, chunks[rng.randrange(len(chunks))])
        elif how == 5:
            kind = rng.choice([b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"fdAT", b"eXIf", b"IEND", b"iTXt"])
        else:
            body = change_bytes(rng, body)
        chunks[place] = kind, body
    made = data[:8]
    for kind, body in chunks:
        made += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return made


# -------------------------------------------------------------------------------------------------------------- HDF5


def read_tree(group: Any) -> dict[str, Any]:
    """An HDF5 group as dicts of arrays and texts."""
    import h5py

    return {
        name: read_tree(item) if isinstance(item, h5py.Group) else item[()] if item.shape is not None else None
        for name, item in group.items()
    }


ODD = (
    "soft",
    "external",
    "ancestor",
    "huge",
    "gzip",
    "null",
    "virtual",
    "fill",
    "compound",
    "varlen",
    "outside",
    "self",
)


def write_tree(tree: dict[str, Any]) -> bytes:
    """The inverse; a pair ("odd", kind) becomes something that no such file has."""
    import h5py

    def write(group: Any, tree: dict[Any, Any], above: list[Any]) -> None:
        for name, item in tree.items():
            name = str(name).replace("\x00", "0") or "x"
            try:
                if isinstance(item, dict):
                    write(group.require_group(name), item, [*above, group])
                elif isinstance(item, tuple) and item[:1] == ("odd",):
                    odd(group, name, item[1], above)
                elif isinstance(item, (str, bytes)):
                    group.create_dataset(name, data=item)
                else:
                    group[name] = item
            except (ValueError, TypeError, OSError, RuntimeError, OverflowError, KeyError):
                continue  # two names of one place, or values that HDF5 has not

    def odd(group: Any, name: str, kind: str, above: list[Any]) -> None:
        if kind == "soft":
            group[name] = h5py.SoftLink("/node")
        elif kind == "external":
            group[name] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind in ("ancestor", "self"):
            group[name] = above[0] if kind == "ancestor" and above else group
        elif kind == "huge":
            group.create_dataset(name, (2**40,), "f8", chunks=(1024,))
        elif kind == "gzip":
            group.create_dataset(name, data=np.zeros(100_000), compression="gzip")
        elif kind == "null":
            group[name] = h5py.Empty("f4")
        elif kind == "fill":
            group.create_dataset(name, (2**20, 16), "f4", chunks=(2**20, 16), fillvalue=float("nan"))
        elif kind == "compound":
            group[name] = np.zeros(3, [("a", "f4"), ("b", "i8")])
        elif kind == "varlen":
            group.create_dataset(name, (3,), h5py.vlen_dtype(np.int32))
        elif kind == "outside":
            group.create_dataset(name, (8,), "u1", external=[("/etc/passwd", 0, 8)])
        else:
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
            group.create_virtual_dataset(name, layout)

    with h5py.File("fuzz", "w", driver="core", backing_store=False) as file:
        write(file, tree, [])
        file.flush()
        return file.id.get_file_image()


def change_hdf5(rng: Rng, data: bytes) -> bytes:
    """An HDF5 file: as a tree mostly."""
    import h5py

    if rng.random() < 0.4:
        return change_bytes(rng, data)
    with h5py.File(io.BytesIO(data), "r") as file:
        tree = read_tree(file)
    for _ in range(rng.choice([1, 1, 2])):
        where = places(tree)
        if not where:
            break
        home, key = rng.choice(where)
        if not isinstance(home, dict):
            continue
        item = home[key]
        how = rng.randrange(9)
        if how == 0:
            del home[key]
        elif how == 1:
            home[rng.choice([*TEXTS[:10], *[str(k) for _, k in where]])] = copied(item)
        elif how == 2:
            home[key] = ("odd", rng.choice(ODD))
        elif how == 3 and isinstance(item, (bytes, str)):
            home[key] = rng.choice(
                [*TEXTS, "IF", "LIF", "CubaLIF", "Linear", "Conv2d", "NIRGraph", "Input", "Output", "Flatten"]
            )
        elif how == 4:
            other, there = rng.choice(where)
            home[key] = copied(other[there])  # else a tree could hold itself
        elif isinstance(item, np.ndarray) and item.size and item.dtype.kind in "fiu":
            item = item.copy()
            if how == 5:
                item = item.astype(rng.choice(["f2", "f8", "i1", "i8", "u8", "c16", "?", "f4"]))
            elif how == 6:
                item = item.reshape(rng.choice([(-1,), (1, *item.shape), (*item.shape, 1), (-1, 1)]))
            else:
                with np.errstate(all="ignore"):
                    item.flat[rng.randrange(item.size)] = np.array(rng.choice([*FLOATS, *NUMBERS[:24]])).astype(
                        item.dtype
                    )
            home[key] = item
        elif isinstance(item, np.ndarray) and item.ndim == 2 and item.dtype.kind == "O":
            item = item.copy()
            item.flat[rng.randrange(item.size)] = rng.choice([*item.ravel().tolist(), b"nothing", b"a.b"])
            home[key] = item
        else:
            home[key] = rng.choice(
                [np.int64(rng.choice(NUMBERS[:24])), np.float32(rng.choice(FLOATS)), np.zeros((0, 2)), "text"]
            )
    made = write_tree(tree)
    return change_bytes(rng, made) if rng.random() < 0.1 else made


# -------------------------------------------------------------------------------------------------------------- ONNX


def change_onnx(rng: Rng, data: bytes) -> bytes:
    """An ONNX file, by the fields of its messages."""
    import onnx

    if rng.random() < 0.15:
        return change_bytes(rng, data)
    model = onnx.ModelProto()
    model.ParseFromString(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        messages = [model]
        for message in messages:
            for field, item in message.ListFields():
                if field.type == field.TYPE_MESSAGE:
                    messages.extend([item] if not field.is_repeated else item)
        message = rng.choice(messages)
        fields = [field for field, _ in message.ListFields()]
        every = list(message.DESCRIPTOR.fields)
        field = rng.choice(fields if fields and rng.random() < 0.85 else every)
        texts = [
            "Relu",
            "Conv",
            "Reshape",
            "Shape",
            "ConstantOfShape",
            "Range",
            "Expand",
            "Loop",
            "If",
            "Tile",
            "Pad",
            "Resize",
            *TEXTS[:10],
        ]
        texts += [
            t
            for m in rng.sample(messages, min(8, len(messages)))
            for f, v in m.ListFields()
            if f.type == f.TYPE_STRING
            for t in ([v] if not f.is_repeated else list(v))
        ]
        try:
            _change_field(rng, message, field, messages, texts)
        except (ValueError, TypeError, IndexError, AttributeError):
            continue
    return model.SerializeToString()


def _change_field(rng: Rng, message: Any, field: Any, messages: Sequence[Any], texts: Sequence[str]) -> None:
    def drawn() -> Any:
        if field.type == field.TYPE_STRING:
            return rng.choice(texts)
        if field.type == field.TYPE_BYTES:
            return rng.choice([b"", b"\x00" * 4, rng.randbytes(8), struct.pack("<q", rng.choice(NUMBERS[:24]) % 2**63)])
        if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
            return rng.choice([*FLOATS, float("nan"), float("inf")])
        low, high = (
            (-(2**31), 2**31 - 1) if field.type in (field.TYPE_INT32, field.TYPE_ENUM) else (-(2**63), 2**63 - 1)
        )
        number = rng.choice(NUMBERS) if rng.random() < 0.6 else rng.randrange(-3, 12)
        return min(max(number, low), high)

    name = field.name
    if field.type == field.TYPE_MESSAGE:
        same = [m for m in messages if m.DESCRIPTOR is field.message_type]
        kept = None
        if same:  # copied first: what is cleared or moved below may hold it, or lie in it
            kept = type(chosen := rng.choice(same))()
            kept.CopyFrom(chosen)
        if not field.is_repeated:
            message.ClearField(name)
            if kept is not None and rng.random() < 0.8:
                getattr(message, name).CopyFrom(kept)
            return
        items = getattr(message, name)
        how = rng.randrange(4)
        if how == 0 and items:
            del items[rng.randrange(len(items))]
        elif how == 1 and kept is not None:
            items.add().CopyFrom(kept)
        elif how == 2 and kept is not None and len(items):
            items[rng.randrange(len(items))].CopyFrom(kept)
        else:
            items.add()
        return
    if field.is_repeated:
        items = getattr(message, name)
        how = rng.randrange(3)
        if how == 0 and items:
            del items[rng.randrange(len(items))]
        elif how == 1 and items:
            items[rng.randrange(len(items))] = drawn()
        else:
            items.append(drawn())
    elif field.type == field.TYPE_BYTES and rng.random() < 0.6:
        setattr(message, name, change_bytes(rng, getattr(message, name)))
    elif rng.random() < 0.1:
        message.ClearField(name)
    else:
        setattr(message, name, drawn())
