"""A converted network in the terms of a chip: what NIR, ONNX and the integer engine start from.

``unit``      spikes of 0 and 1: every scale of a spike in the weights behind it
``integers``  whole numbers alone: weights of a few bits, whole thresholds
``prove``     a run of those on spikes of 0 and 1 alone, every number checked

Both give an `SNN`, which the same engines run and the same file holds.
"""

from parspike.lower.integers import integers
from parspike.lower.proof import Proof, prove
from parspike.lower.unit import unit

__all__ = ["Proof", "integers", "prove", "unit"]
