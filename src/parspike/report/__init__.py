"""What a network does, for people: figures as matplotlib axes (`snn.plot`), and one page with all of them."""

from parspike.report.make import report
from parspike.report.plots import Plots

__all__ = ["Plots", "report"]
