"""Files of the neuromorphic intermediate representation (NIR): a spiking network made by another program, as an `SNN`.

Pedersen et al. 2024, "Neuromorphic intermediate representation: a unified instruction set for interoperable
brain-inspired computing", Nature Communications 15, 8122. docs/nir.md says what is read and how it is run.
"""

from __future__ import annotations

from pathlib import Path

from parspike.errors import FileError, OptionError
from parspike.nir import hdf5
from parspike.nir.network import DT, network
from parspike.snn import SNN

__all__ = ["DT", "read"]


def read(path: Path, *, T: int | None = None, dt: float | None = None, plain: bool = False) -> SNN:
    """The network of a NIR file. T: time-steps, needed where the file does not say them. dt: seconds of a step
    (default: what the file says, else 1e-4). plain: leave parspike's own metadata out, as other readers do.

    Raises `FileError` on a damaged file and on nodes that cannot be run, `OptionError` where T is missing or wrong.
    """
    try:
        return network(hdf5.read(path), T, dt, plain)
    except (FileError, OptionError) as error:
        raise type(error)(f"'{path}': {str(error)[:1000]}") from error
