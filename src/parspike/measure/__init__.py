"""What a spiking network costs and how well it does: operations, energy, accuracy, error by layer."""

from parspike.measure.layers import measure, measured, same_operators
from parspike.measure.report import Energy, LayerRow, Report, joule, short
from parspike.measure.scores import Scores, answers_of

__all__ = [
    "Energy",
    "LayerRow",
    "Report",
    "Scores",
    "answers_of",
    "joule",
    "measure",
    "measured",
    "same_operators",
    "short",
]
