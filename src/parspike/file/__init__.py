"""The `.parspike` file: one safetensors file whose metadata hold the graph as JSON (docs/format.md).

Loading runs no code from the file: operators are looked up by name in parspike's own table, every field is checked, the
network is run once on tensors without data, and anything that does not fit raises a `FileError`. Saving passes the same
checks, so that no file is written that could not be read.
"""

from __future__ import annotations

import json
from pathlib import Path

from parspike.errors import FileError, OptionError, path_of
from parspike.file.bytes import DTYPES, VERSION, container, contents, parse
from parspike.file.graph import CONSTANTS
from parspike.file.network import network_from_json, network_to_json, of_version
from parspike.snn import SNN
from parspike.whole import check_file, check_free, write_whole

__all__ = ["CONSTANTS", "DTYPES", "VERSION", "load", "save"]


def save(snn: SNN, path: str | Path, *, force: bool = False) -> Path:
    """Write an SNN. The file appears whole or not at all; force=True replaces an existing one."""
    path = path_of(path)
    check_free(path, force, "net.parspike")
    try:
        body, tensors, version = network_to_json(snn)
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        network_from_json(of_version(parse(text), version), tensors)
        chunks = container(text, tensors, version)
    except (ValueError, TypeError, RecursionError, FileError) as error:
        raise FileError(f"cannot save this network as '{path}': {error}") from error
    write_whole(path, chunks)
    return path


def load(path: str | Path, *, T: int | None = None, dt: float | None = None) -> SNN:
    """Read an SNN from a `.parspike` file, or from a NIR file of any program (`.nir`, docs/nir.md).

    T, dt: of a NIR file, the time-steps, needed where it does not say them, and the seconds of one. Raises `FileError`
    on anything but a whole, untouched file, and on a NIR file with nodes that cannot be run; `OptionError` where T is
    missing, or given for a `.parspike` file.
    """
    path = path_of(path)
    check_file(path)
    if path.suffix.lower() == ".nir":
        from parspike.nir import read

        return read(path, T=T, dt=dt)
    if T is not None or dt is not None:
        raise OptionError(f"'{path}': T and dt are for NIR files (.nir); a .parspike file says its own")
    try:
        header, tensors = contents(path)
        text = header["__metadata__"]["network"]
        if set(header["__metadata__"]) != {"format", "sha256", "version", "network"}:
            raise FileError("its metadata have unknown entries")
        body = of_version(parse(text), int(header["__metadata__"]["version"]))
        json.dumps(body, ensure_ascii=False).encode()  # refuses half characters, which could not be shown
        return network_from_json(body, tensors)
    except FileError as error:
        raise FileError(f"'{path}': {str(error)[:1000]}") from error
    except MemoryError as error:
        raise FileError(f"'{path}' does not fit into memory") from error
    except OSError as error:
        raise FileError(f"cannot read '{path}': {error.strerror or error}") from error
    # A forged network may raise any exception while it is checked; each means that the file holds no network.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:500]}"
        raise FileError(f"'{path}' holds no valid network ({reason})") from error
