"""Every T from one call: accuracy, spikes and energy of conversions of one network, beside the network quantised to as
many levels."""

from parspike.sweep.result import Sweep, SweepRow
from parspike.sweep.run import sweep

__all__ = ["Sweep", "SweepRow", "sweep"]
