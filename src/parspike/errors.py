"""Every error that parspike raises on purpose.

    ParspikeError
    ├── TraceError          the network could not be turned into a graph
    ├── UnsupportedError    the graph holds operators that no spiking network can carry (all listed at once)
    ├── InputError          a tensor, a model or a batch is not what it should be (also a ValueError)
    ├── OptionError         an option is out of its range or names nothing (also a ValueError)
    ├── CalibrationError    the calibration data cannot be used (also a ValueError)
    ├── FileError           a file cannot be read or written as asked (also an OSError)
    ├── MissingExtraError   an optional dependency is absent; says the command that installs it
    └── InsufficientMemoryError  memory ran out; says what takes less (also a MemoryError)

What is possible, but probably not meant, draws a `ParspikeWarning`.

Each message names the place and says what to do.
"""

from __future__ import annotations

import difflib
import errno
import operator
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

__all__ = [
    "CalibrationError",
    "FileError",
    "InputError",
    "InsufficientMemoryError",
    "MissingExtraError",
    "OptionError",
    "ParspikeError",
    "ParspikeWarning",
    "TraceError",
    "UnsupportedError",
]


class ParspikeError(Exception):
    """Base of every error that parspike raises on purpose.

    details: what the message only counts, in full, by name; `--json` prints them.
    """

    details: Mapping[str, Sequence[str]] = {}


class TraceError(ParspikeError):
    """`torch.export` could not capture the network; names the user's line and the remedy."""


class UnsupportedError(ParspikeError):
    """The network holds operators that cannot be converted; lists every one with its remedy."""


class InputError(ParspikeError, ValueError):
    """A tensor, model or batch has the wrong shape, dtype or values."""


class OptionError(ParspikeError, ValueError):
    """An option is out of range, or a pattern matches nothing."""


class CalibrationError(ParspikeError, ValueError):
    """The calibration data are empty or unusable."""


class FileError(ParspikeError, OSError):
    """A file is truncated, tampered with, too new, in the way, or cannot be written."""


class MissingExtraError(ParspikeError, ImportError):
    """An optional dependency is missing.

    >>> print(MissingExtraError("timm", extra="vision"))
    'timm' is not installed: run  pip install 'parspike[vision]'
    """

    def __init__(self, module: str, *, extra: str) -> None:
        super().__init__(f"'{module}' is not installed: run  pip install 'parspike[{extra}]'")


class InsufficientMemoryError(ParspikeError, MemoryError):
    """Memory ran out, and no smaller part of the work could be done instead."""


class ParspikeWarning(UserWarning):
    """Something works otherwise than the caller may expect; the message says what follows and what to do."""


def meant(name: object, known: Iterable[str]) -> str:
    """What a message about an unknown name adds where it is close to a known one.

    >>> meant("pases", ["momentum", "passes"]), meant("zz", ["momentum", "passes"])
    (" (did you mean 'passes'?)", '')
    """
    near = difflib.get_close_matches(str(name), list(known))
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def path_of(value: object) -> Path:
    """A file's name as a path. Raises `FileError` for what is none."""
    if not isinstance(value, (str, os.PathLike)):
        raise FileError(f"a path must be text or a pathlib.Path, got {_kind(value)}")
    try:
        os.lstat(value)
    except ValueError:  # a NUL character
        raise FileError(f"no file can have the name {str(value)[:80]!r}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise FileError(f"no file can have so long a name: {str(value)[:80]!r} …") from None
    return Path(value)


def check_list(value: object, name: str, kind: type, example: str) -> None:
    """Raise `OptionError` unless an argument is several of a kind, and no text. example: one, for the message."""
    text = isinstance(value, (str, bytes, bytearray))
    if text or not isinstance(value, Collection) or not all(isinstance(item, kind) for item in value):
        raise OptionError(f"{name}= must be a list, such as {example}, got {str(value)[:80]}")


def check_function(value: object, name: str) -> None:
    """Raise `OptionError` unless an argument is a function, or None."""
    if value is not None and not callable(value):
        raise OptionError(f"{name}= must be a function, got {_kind(value)}")


def check_seed(value: object) -> None:
    """Raise `OptionError` unless an argument can be a seed of torch."""
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or not -(2**63) <= number < 2**64:
        said = value if isinstance(value, (int, float, str)) else _kind(value)
        raise OptionError(f"seed= must be a whole number from −2^63 to 2^64 − 1, got {str(said)[:80]}")


def _kind(value: object) -> str:
    """What was given in place of something else, for a message."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
