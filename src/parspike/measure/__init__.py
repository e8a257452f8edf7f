"""What a spiking network costs and how well it does: operations, energy, accuracy, error by layer."""

from parspike.measure.layers import answer_of, measure
from parspike.measure.report import Energy, LayerRow, Report

__all__ = ["Energy", "LayerRow", "Report", "answer_of", "measure"]
