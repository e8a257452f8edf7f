"""`.npz` and HDF5 as containers of named arrays. Nothing is allocated by a number that a file states before the bytes
are found to be there: arrays stand in both uncompressed, so each is as large as its place in the file."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from parspike.errors import FileError, MissingExtraError
from parspike.file.bytes import parse
from parspike.spikes.layout import File, Header, Sink, Trains, check_table, events_of, pack, table_names
from parspike.whole import Disk

__all__ = ["Hdf5File", "Hdf5Sink", "NpzFile", "NpzSink"]

HEADER = "header.json"
NAME = re.compile(r"[a-z]+(/[0-9]{5,}){1,2}")
LONGEST = 10_000
"""Bytes of the head of an array: ours have 128."""


class _ArraySink(Sink):
    """Named arrays, and the header as bytes at the end."""

    def __init__(self, path: Path, header: Header, tables: Mapping[str, np.ndarray]) -> None:
        super().__init__(path, header, tables)
        self.disk = Disk(path.open("w+b", buffering=0))
        self._open()
        try:
            for name, table in tables.items():
                self._add(name, table)
            self._written()
        except BaseException:
            with suppress(Exception):  # the file is thrown away
                self.close()
            raise

    def _written(self) -> None:
        """Raise the error of a write, if there was one."""
        if self.disk.error is not None:
            raise self.disk.error

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _add(self, name: str, array: np.ndarray) -> None: ...

    @abstractmethod
    def _add_header(self, text: bytes) -> None: ...

    def batch(self, number: int, trains: Trains, start: int) -> None:
        if self.header.form == "events":
            self._add(f"events/{number:05d}", events_of(trains, start, self.header.event))
        else:
            for place, (layer, train) in enumerate(trains):
                self._add(f"spikes/{number:05d}/{place:05d}", pack(train, layer))
        self._written()

    def end(self, header: Header) -> None:
        self._add_header(json.dumps(header.to_json(), ensure_ascii=False, allow_nan=False).encode())

    @abstractmethod
    def _end(self) -> None:
        """Write what the library still holds."""

    def close(self) -> None:
        try:
            self._end()
        finally:
            self.disk.stream.close()
        self._written()


class _ArrayFile(File):
    """Named arrays. `_array` gives one of a dtype and shape (None: of any length), or a `FileError`."""

    def __init__(self, path: Path) -> None:
        self._open(path)
        try:
            self.header = Header.from_json(parse(self._header().decode()))
            self._check_names()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _open(self, path: Path) -> None:
        """Open the file and set `names`."""

    @abstractmethod
    def _header(self) -> bytes: ...

    @abstractmethod
    def _array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None = None) -> np.ndarray: ...

    names: frozenset[str]

    def _check_names(self) -> None:
        header, batches = self.header, len(self.header.batches)
        each = len(header.layers) if header.form == "bits" else 1
        found: dict[str, np.ndarray] = {}
        for number, layer in enumerate(header.layers):
            for what, name in table_names(number).items():
                if name in self.names:
                    found[name] = check_table(layer, what, self._array(name, np.dtype("<f8")))
        if len(self.names) != batches * each + len(found):
            raise FileError(f"it has {len(self.names)} arrays, expected {batches * each + len(found)} for its batches")
        trains = (name for number in range(batches) for name in self._trains_of(number))
        if lacking := next((name for name in trains if name not in self.names), None):
            raise FileError(f"its array '{lacking}' is missing")
        self.tables = found

    def _trains_of(self, number: int) -> list[str]:
        if self.header.form == "events":
            return [f"events/{number:05d}"]
        return [f"spikes/{number:05d}/{place:05d}" for place in range(len(self.header.layers))]

    def batches(self, only: int | None = None) -> Iterator[Mapping[int, np.ndarray] | np.ndarray]:
        for number, size in enumerate(self.header.batches):
            names = self._trains_of(number)
            if self.header.form == "events":
                yield self._array(names[0], self.header.event)
                continue
            chosen = range(len(names)) if only is None else [only]
            trains: dict[int, np.ndarray] = {}
            for place in chosen:
                shape, dtype = self.header.layers[place].stored(size)
                trains[place] = self._array(names[place], dtype, shape)
            yield trains


class NpzSink(_ArraySink):
    """Each array is a member NAME.npy, which numpy.load reads too; stored, without dates, so that equal trains give
    equal files."""

    def _open(self) -> None:
        self.zip = zipfile.ZipFile(self.disk, "w", zipfile.ZIP_STORED)

    def _member(self, name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        info.external_attr = 0o644 << 16
        return info

    def _add(self, name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array)
        with self.zip.open(self._member(f"{name}.npy"), "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
            stream.write(array.reshape(-1).view(np.uint8).data)

    def _add_header(self, text: bytes) -> None:
        self.zip.writestr(self._member(HEADER), text)

    def _end(self) -> None:
        self.zip.close()


class NpzFile(_ArrayFile):
    """Members that are compressed, encrypted, larger than the file or pickled are refused."""

    def _open(self, path: Path) -> None:
        self.zip = zipfile.ZipFile(path)
        members = self.zip.infolist()
        self.members = {info.filename: info for info in members}
        if len(self.members) < len(members):
            raise FileError("two of its members have the same name")
        for info in members:
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise FileError(
                    f"its member '{info.filename[:80]}' is compressed; arrays of spikes are stored as they are"
                )
        if sum(info.file_size for info in members) > path.stat().st_size:
            raise FileError("its members are larger than the file")
        own = [name.removesuffix(".npy") for name in self.members if name != HEADER]
        if HEADER not in self.members:
            raise FileError("this is no file of spikes: it has no header.json")
        if odd := next((name for name in own if not NAME.fullmatch(name) or f"{name}.npy" not in self.members), None):
            raise FileError(f"its member '{odd[:80]}' belongs to no file of spikes")
        self.names = frozenset(own)

    def _header(self) -> bytes:
        return self.zip.read(HEADER)

    def _array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None = None) -> np.ndarray:
        content = self.zip.read(f"{name}.npy")
        stream = io.BytesIO(content)
        try:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("not version 1.0 of the format .npy")
            found, fortran, kind = np.lib.format.read_array_header_1_0(stream, max_header_size=LONGEST)
        except (ValueError, SyntaxError, RecursionError, TypeError) as error:
            raise FileError(f"its array '{name}' has no head that numpy knows ({str(error)[:100]})") from error
        _check(name, found, kind, dtype, shape)
        if fortran and len(found) > 1:
            raise FileError(f"its array '{name}' is not stored row by row")
        if len(content) - stream.tell() != math.prod(found) * dtype.itemsize:
            raise FileError(f"its array '{name}' of the shape {found} has {len(content) - stream.tell()} bytes")
        return np.frombuffer(content, dtype, offset=stream.tell()).reshape(found)

    def close(self) -> None:
        self.zip.close()


class Hdf5Sink(_ArraySink):
    """Each array is a contiguous dataset NAME; the header is a dataset of its bytes."""

    def _open(self) -> None:
        self.file = _h5py().File(self.disk, "w")

    def _add(self, name: str, array: np.ndarray) -> None:
        self.file.create_dataset(name, data=array, track_times=False)

    def _add_header(self, text: bytes) -> None:
        self._add(HEADER, np.frombuffer(text, np.uint8))

    def _end(self) -> None:
        self.file.close()


class Hdf5File(_ArrayFile):
    """Links to other files or names, virtual and external data, compressed or sparse datasets are refused."""

    def _open(self, path: Path) -> None:
        self.h5py = _h5py()
        self.file = self.h5py.File(path, "r", locking=False)
        self.size = path.stat().st_size
        self.sets: dict[str, Any] = {}
        self._look(self.file, "", 0)
        if HEADER not in self.sets:
            raise FileError("this is no file of spikes: it has no dataset header.json")
        if odd := next((name for name in self.sets if name != HEADER and not NAME.fullmatch(name)), None):
            raise FileError(f"its dataset '{odd[:80]}' belongs to no file of spikes")
        if sum(self._bytes(name) for name in self.sets) > self.size:
            raise FileError("its datasets are larger than the file")
        self.names = frozenset(self.sets) - {HEADER}

    def _look(self, group: Any, before: str, depth: int) -> None:
        for key in group:
            name = f"{before}{key}"
            if not isinstance(group.get(key, getlink=True), self.h5py.HardLink):
                raise FileError(f"'{name[:80]}' is a link to another place, which is not followed")
            found = group[key]
            if isinstance(found, self.h5py.Group) and depth < 2:
                self._look(found, f"{name}/", depth + 1)
            elif isinstance(found, self.h5py.Dataset):
                self.sets[name] = found
            else:
                raise FileError(f"'{name[:80]}' belongs to no file of spikes")

    def _bytes(self, name: str) -> int:
        """The bytes of a dataset, all of which are in the file."""
        found = self.sets[name]
        plan = found.id.get_create_plist()
        if plan.get_layout() != self.h5py.h5d.CONTIGUOUS or plan.get_external_count() or plan.get_nfilters():
            raise FileError(f"its dataset '{name}' is not stored as it is, in one piece and in this file")
        if found.shape is None or found.dtype.hasobject:
            raise FileError(f"its dataset '{name}' holds no numbers")
        wanted = math.prod(found.shape) * found.dtype.itemsize
        offset = found.id.get_offset()
        # Without values in it a dataset has no place in the file.
        if wanted and (found.id.get_storage_size() != wanted or offset is None or offset + wanted > self.size):
            raise FileError(f"its dataset '{name}' says that it has {wanted} bytes, which the file does not hold")
        return wanted

    def _header(self) -> bytes:
        size = self.sets[HEADER].shape
        return self._array(HEADER, np.dtype("u1"), size if len(size) == 1 else (0,)).tobytes()

    def _array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None = None) -> np.ndarray:
        found = self.sets[name]
        _check(name, found.shape, found.dtype, dtype, shape)
        return found[()]

    def close(self) -> None:
        self.file.close()


def _check(
    name: str, found: tuple[int, ...], kind: np.dtype[Any], dtype: np.dtype[Any], shape: tuple[int, ...] | None
) -> None:
    if kind != dtype:
        raise FileError(f"its array '{name}' holds {str(kind)[:80]}, expected {dtype}")
    if shape is not None and found != shape:
        raise FileError(f"its array '{name}' has the shape {found}, expected {shape}")


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", extra="export") from error
    return h5py
