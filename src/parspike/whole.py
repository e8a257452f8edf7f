"""Writing a file whole or not at all: its name holds the old content or all of the new, whatever stops the work."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from parspike.errors import FileError

__all__ = ["made_whole", "move_whole", "told", "write_whole"]


def write_whole(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file so that the name holds either the old content or all of the new."""
    with made_whole(path) as temporary, told(path), temporary.open("wb") as stream:
        stream.writelines(chunks)


@contextlib.contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """A temporary file to write into, which gets the name `path` at the end; after an error, or Ctrl-C, it is gone and
    the name holds what it held. What writes into it stands under `told(path)`."""
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
        reason = error.strerror if path.parent.is_dir() else f"there is no folder '{path.parent}'"
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
