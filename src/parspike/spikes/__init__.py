"""Spike files: the trains of a run as packed bits or as address events, in an `.npz`, HDF5 or a text (docs/spikes.md).

    write_spikes(snn, images, "trains.npz")      a batch at a time, whole or not at all
    trains = read_spikes("trains.npz")           every field checked against the bytes that are there
    trains.spikes["layer1.0.relu"]               bool (T, N, …), as `run.spikes` has them

``layout``      what a file holds, whatever its container: header, packed bits, events, and everything that is refused
``containers``  `.npz` and HDF5: named arrays
``text``        events as lines
``write``, ``read``, ``raster``
"""

from __future__ import annotations

from parspike.spikes.read import Spikes, read_spikes
from parspike.spikes.write import write_spikes

__all__ = ["Spikes", "read_spikes", "write_spikes"]
