"""Published conversion methods, each one file and one recipe for `parspike.convert`.

    snn = parspike.convert(model, calibration=images, T=32, recipe="max-norm")

A method brings neurons of its own, which fire step by step as its authors' do, so `neuron=` and `code=` stay out. Every
method walks the same graph, gets the same calibration images and is measured in the same way as ours, which is what a
comparison needs. What differs from the authors' program (pooling, the last layer, training) stands in its docstring.
"""

from parspike.baselines.adafire import AdaFire
from parspike.baselines.base import Baseline
from parspike.baselines.bn_recal import BNRecal
from parspike.baselines.burst import Burst
from parspike.baselines.cos import COS
from parspike.baselines.dcgs import DCGS
from parspike.baselines.ecmt import ECMT
from parspike.baselines.ftbc import FTBC
from parspike.baselines.h_mt import HMT
from parspike.baselines.max_norm import MaxNorm
from parspike.baselines.opt import OPT
from parspike.baselines.phase import Phase
from parspike.baselines.qcfs_if import QCFSIF
from parspike.baselines.rmp import RMP
from parspike.baselines.rnl import RNL
from parspike.baselines.robust_norm import RobustNorm
from parspike.baselines.snm import SNM
from parspike.baselines.snnc import SNNCAP, SNNCLP
from parspike.baselines.srp import SRP
from parspike.baselines.tbc import TBC

__all__ = [
    "COS", "DCGS", "ECMT", "FTBC", "HMT", "OPT", "QCFSIF", "RMP", "RNL", "SNM", "SNNCAP", "SNNCLP", "SRP", "TBC",
    "AdaFire", "BNRecal", "Baseline", "Burst", "MaxNorm", "Phase", "RobustNorm",
]  # fmt: skip
