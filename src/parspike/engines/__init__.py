"""Ways to run a spiking network. `count`, `parallel` and `serial` give equal results, up to the rounding of sums.

`integer` is `count` on the integer kernels of the processor, for networks in whole numbers, with the same bits.
`count` makes one pass over spike counts, `parallel` sends every spike train through every synapse with time in the
batch, `serial` sends the same trains one step at a time. `over_time` runs neurons with a state: those of a network that
was converted for them, or, as `serial-if`, the twin with soft-reset integrate-and-fire neurons that parallel conversion
is compared with.
"""

from __future__ import annotations

from parspike.engines.base import ENGINES, OVER_TIME, PACKED, Network, Record, Run, recorded
from parspike.engines.count import Pass, count, counted
from parspike.engines.folded import Steps
from parspike.engines.integer import exactly, forget, integer
from parspike.engines.memory import in_parts
from parspike.engines.over_time import Block, Watch, changing, over_time
from parspike.engines.stages import parallel, serial

__all__ = [
    "ENGINES",
    "OVER_TIME",
    "PACKED",
    "Block",
    "Network",
    "Pass",
    "Record",
    "Run",
    "Steps",
    "Watch",
    "changing",
    "count",
    "counted",
    "exactly",
    "forget",
    "in_parts",
    "integer",
    "over_time",
    "parallel",
    "recorded",
    "serial",
]
