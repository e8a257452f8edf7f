"""Where the error of a converted network comes from: layer by layer, which one to blame, and what helps."""

from parspike.diagnose.result import Diagnosis, LayerFault, Outcome, Remedy
from parspike.diagnose.run import diagnose

__all__ = ["Diagnosis", "LayerFault", "Outcome", "Remedy", "diagnose"]
