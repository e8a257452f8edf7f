"""The result file of a bench: JSON lines, one a cell, which several processes write and a kill does not break.

The first line says which bench the file belongs to, in which format, and which version began it, a line for each
network what it was measured on; neither is ever changed, so figures of other data are refused and never mixed. They may
come again, as where the files of two machines were put together. Each line of figures says its own version and commit,
so a file goes on under a later version. Every line is appended by one write. A line that a kill cut short is the last
one, without its end of line; it is left out when the file is read, and cut off before the next is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parspike.bench.file import Cell
from parspike.errors import FileError
from parspike.together import Together
from parspike.version import __version__
from parspike.whole import told

__all__ = ["Lines", "Reference", "ResultFile"]

FORMAT = 1
BEGINS = b'{"parspike-bench": '


@dataclass(frozen=True)
class Reference:
    """The network itself with activations rounded to so many levels, fitted on the calibration images of a seed."""

    network: str
    levels: int
    seed: int

    def __str__(self) -> str:
        return f"{self.network}, quantised to {self.levels} levels, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {"network": self.network, "levels": self.levels, "seed": self.seed}


@dataclass
class Lines:
    """What a result file holds. networks: what each was measured on. cells, references: the last line of each."""

    header: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, Any] = field(default_factory=dict)
    cells: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    references: dict[Reference, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, bench: str) -> Lines:
        """The lines of a file that a bench of this name wrote. Raises `FileError` for a file of another kind, format or
        bench, and for a damaged line."""
        if path.exists() and not path.is_file():  # a device may never end
            raise FileError(f"{path} is no file to keep results in: give another name")
        try:
            text = path.read_bytes()
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror})") from error
        found = cls()
        for number, line in enumerate(text.split(b"\n")[:-1], 1):  # behind the last end of line is what a kill left
            try:
                found._add(json.loads(line), path, bench)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = "this is no result file of a bench" if number == 1 else "the line is damaged: take it out"
                raise FileError(f"{path}, line {number}: {why} ({type(error).__name__}: {str(error)[:200]})") from error
        return found

    def _add(self, line: dict[str, Any], path: Path, bench: str) -> None:
        if not self.header or "parspike-bench" in line:  # files of several machines, one behind the other
            if line["parspike-bench"] != FORMAT:
                found = str(line["parspike-bench"])[:40]
                raise FileError(f"{path}: the file has format {found}, this parspike writes {FORMAT}: give another")
            if line["bench"] != bench:
                found = str(line["bench"])[:80]
                raise FileError(f"{path} holds results of the bench '{found}', not of '{bench}': give another")
            self.header = self.header or line
        elif "data" in line:
            before = self.networks.setdefault(line["network"], line["data"])
            if before != line["data"]:
                raise _other_data(path, line["network"], before, line["data"])
        elif "cell" in line:
            _keep(self.cells, Cell.from_json(line["cell"]), line)
        elif "quantised" in line:
            _keep(self.references, Reference(**line["quantised"]), line)
        else:
            raise KeyError("cell")


class ResultFile:
    """A result file that this process, or the processes of a group together, write. Use it as a context.

    Raises `FileError` where another bench is writing it, and where it holds another bench or format.
    """

    def __init__(self, path: Path, bench: str, together: Together) -> None:
        self.path, self.bench, self.together = path, bench, together
        self._stream = self._claims = None

    def __enter__(self) -> ResultFile:
        try:
            self._enter()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _enter(self) -> None:
        with self.together.one_fate():
            if self.together.rank == 0:
                self._open(alone=True)
        with self.together.one_fate():
            if self.together.rank:
                self._open(alone=False)
            if self.together.size > 1:
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
                with told(self._claims_path):
                    self._claims = os.open(self._claims_path, flags, 0o666)

    def __exit__(self, *error: object) -> None:
        for number in (self._stream, self._claims):
            if number is not None:
                os.close(number)
        if self._claims is not None and self.together.rank == 0:
            with suppress(OSError):
                self._claims_path.unlink()

    @property
    def _claims_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.claims")

    def _open(self, *, alone: bool) -> None:
        """Open and lock the file. Every process of a bench holds a shared lock as long as it lives; the first one must
        get the lock for itself before, which it does not while a process of another bench lives."""
        try:
            import fcntl
        except ImportError as error:
            raise FileError(f"{self.path}: this system has no file locks, which keep two benches apart") from error
        try:
            self._stream = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written ({error.strerror})") from error
        try:
            if alone:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._begin()
            fcntl.flock(self._stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileError(f"another bench is writing {self.path}: wait for it, or give another file") from error

    def _begin(self) -> None:
        """Cut off what a kill left, and write or check the first line."""
        with suppress(OSError):
            self._claims_path.unlink()
        found, text = Lines.read(self.path, self.bench), self.path.read_bytes()
        if not found.header and not text.startswith(BEGINS[: len(text)]):
            raise FileError(f"{self.path} is no result file of a bench: give another name")
        os.truncate(self.path, text.rfind(b"\n") + 1)
        if not found.header:
            self.write({"parspike-bench": FORMAT, "bench": self.bench, "version": __version__})

    def lines(self) -> Lines:
        """What the file holds now, of all processes."""
        return Lines.read(self.path, self.bench)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line. Raises `FileError` where the disk is full."""
        made = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
        if self._stream is None:
            raise ValueError("the file is not open")
        _append(self.path, self._stream, made)

    def measured_on(self, network: str, data: Mapping[str, Any]) -> None:
        """Write down what a network is measured on. Raises `FileError` where the file has figures of other data."""
        told = json.loads(json.dumps(data))
        before = self.lines().networks.get(network)
        if before is None:
            self.write({"network": network, "data": told})
        elif before != told:
            raise _other_data(self.path, network, before, told)

    def claim(self, key: str) -> bool:
        """Whether this process is the first of its group to ask for a cell, which it then measures."""
        if self._claims is None:
            return True
        mine = json.dumps([key, self.together.rank])
        _append(self._claims_path, self._claims, (mine + "\n").encode())
        lines = self._claims_path.read_text().splitlines()
        return next(line for line in lines if json.loads(line)[0] == key) == mine


def _keep(lines: dict[Any, dict[str, Any]], key: Cell | Reference, line: dict[str, Any]) -> None:
    """The last line of a key counts, but where it failed and an earlier one did not, as on another machine."""
    if "failed" not in line or "failed" in lines.get(key, line):
        lines[key] = line


def _other_data(path: Path, network: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> FileError:
    unlike = [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in {**before, **now}
              if before.get(name) != now.get(name)]  # fmt: skip
    return FileError(
        f"{path} has figures of another network '{network}': {'; '.join(unlike)}. Give another file, or the network "
        "another name, so that they are not mixed"
    )


def _append(path: Path, stream: int, line: bytes) -> None:
    """Append a line by one write, so that lines of several processes do not mix."""
    try:
        written = os.write(stream, line)
    except OSError as error:
        raise FileError(f"cannot write '{path}': {error.strerror}; the lines before are as they were") from error
    if written < len(line):
        raise FileError(f"cannot write '{path}': the last line could not be written whole; is the disk full?")
