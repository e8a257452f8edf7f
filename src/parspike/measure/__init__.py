"""What a spiking network costs and how well it does: operations, energy, accuracy, error by layer."""

from parspike.measure.energy import Energy
from parspike.measure.layers import measure, measured, same_operators
from parspike.measure.neurobench import NeuroBench, neurobench
from parspike.measure.perplexity import Perplexity, perplexity
from parspike.measure.report import LayerRow, Report, joule, short
from parspike.measure.scores import Scores, answers_of

__all__ = [
    "Energy",
    "LayerRow",
    "NeuroBench",
    "Perplexity",
    "Report",
    "Scores",
    "answers_of",
    "joule",
    "measure",
    "measured",
    "neurobench",
    "perplexity",
    "same_operators",
    "short",
]
