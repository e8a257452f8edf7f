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
from collections.abc import Iterable, Mapping, Sequence

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
