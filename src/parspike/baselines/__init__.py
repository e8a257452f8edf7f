"""Published conversion methods, each one file and one recipe for `parspike.convert`.

    snn = parspike.convert(model, calibration=images, T=32, recipe="max-norm")

A method brings neurons of its own, which fire step by step as its authors' do, so `neuron=` and `code=` stay out. Every
method walks the same graph, gets the same calibration images and is measured in the same way as ours, which is what a
comparison needs. What differs from the authors' program (pooling, the last layer, training) stands in its docstring.
"""

from parspike.baselines.adafire import AdaFire
from parspike.baselines.base import Baseline
from parspike.baselines.burst import Burst
from parspike.baselines.cos import COS
from parspike.baselines.dcgs import DCGS
from parspike.baselines.ecmt import ECMT
from parspike.baselines.h_mt import HMT
from parspike.baselines.max_norm import MaxNorm
from parspike.baselines.snm import SNM
from parspike.baselines.srp import SRP

__all__ = ["COS", "DCGS", "ECMT", "HMT", "SNM", "SRP", "AdaFire", "Baseline", "Burst", "MaxNorm"]
