"""Ways to run a spiking network, one law: equal results.

`count` makes one pass over spike counts, `parallel` sends every spike train through every synapse with time
folded into the batch, `serial` sends the same trains one step at a time, `serial-if` is the twin with soft-reset
integrate-and-fire neurons that parallel conversion is compared with.
"""

from __future__ import annotations

from parspike.engines.base import ENGINES, Network, Run
from parspike.engines.count import Pass, count
from parspike.engines.serial_if import serial_if
from parspike.engines.stages import parallel, serial

__all__ = ["ENGINES", "Network", "Pass", "Run", "count", "parallel", "serial", "serial_if"]
