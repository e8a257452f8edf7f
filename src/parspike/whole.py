"""Writing a file whole or not at all: its name holds the old content or all of the new, whatever stops the work."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from parspike.errors import FileError

__all__ = ["Disk", "check_file", "check_free", "check_no_device", "made_whole", "move_whole", "told", "write_whole"]


def check_free(path: Path, force: bool, example: str) -> None:
    """Refuse the name of a folder or a device, and that of a file that may not be replaced. example: a file's name, for
    a message.

    The questions are those of os.path, which takes what may not be looked at for absent: writing then says why.
    """
    if os.path.isdir(path):
        raise FileError(f"'{path}' is a folder: name a file in it, such as '{path / example}'")
    check_no_device(path)
    if os.path.exists(path) and not force:
        raise FileError(f"'{path}' exists: choose another name, or pass force=True (command line: --force)")


def check_no_device(path: Path) -> None:
    """Refuse a device or a pipe, such as /dev/null: a file under its name would take its place for all programs."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise FileError(f"'{path}' is no file but a device or a pipe, whose place a file would take: name a file")


def write_whole(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file so that the name holds either the old content or all of the new."""
    with made_whole(path) as temporary, told(path), temporary.open("wb") as stream:
        stream.writelines(chunks)


def check_file(path: Path) -> None:
    """Refuse a name under which no file can be read."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return
        said = f"'{path}' is a folder: name a file in it" if path.is_dir() else f"'{path}' is no file"
    except (FileNotFoundError, NotADirectoryError):
        said = f"there is no file '{path}'"
    except (OSError, ValueError) as error:  # it may not be looked at, or the name is too long
        said = f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}"
    raise FileError(said)


@contextlib.contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """A temporary file to write into, which gets the name `path` at the end; after an error, or Ctrl-C, it is gone and
    the name holds what it held. What writes into it stands under `told(path)`."""
    check_no_device(path)
    temporary = None
    try:
        with told(path):
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            temporary = Path(name)
            os.close(handle)
        yield temporary
        with told(path):
            temporary.chmod(0o666 & ~_umask())
            move_whole(temporary, path)
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns an error of the system in writing `path` into a `FileError`."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        lacks = isinstance(error, (FileNotFoundError, NotADirectoryError)) and not path.parent.is_dir()
        reason = f"there is no folder '{path.parent}'" if lacks else error.strerror
        raise FileError(f"cannot write '{path}': {reason or error}; the old file, if any, is as it was") from error


def move_whole(temporary: Path, path: Path) -> None:
    """Give a finished file its name, which holds either the old content or all of the new, also after a power cut."""
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Disk(io.RawIOBase):
    """A file for libraries that do not survive an error of a write: HDF5 may end the process, and zipfile tries again
    when it is thrown away. After one this keeps it in `error`, and takes all further bytes without keeping them."""

    def __init__(self, stream: io.FileIO) -> None:
        super().__init__()
        self.stream, self.at, self.size = stream, 0, 0
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        self._do(lambda: self.stream.truncate(self.size))
        return self.size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self.stream.seek(self.at)
        got = self.stream.readinto(view) or 0
        view[got:] = bytes(len(view) - got)
        self.at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")

        def all_of_it() -> None:
            self.stream.seek(self.at)
            done = 0
            while done < len(view):
                done += self.stream.write(view[done:])

        self._do(all_of_it)
        self.at += len(view)
        self.size = max(self.size, self.at)
        return len(view)

    def _do(self, call: Callable[[], object]) -> None:
        if self.error is None:
            try:
                call()
            except OSError as error:
                self.error = error
