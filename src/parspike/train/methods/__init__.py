"""The methods of training, one file each: METHODS by the name that recipes use, `Method` to write another.

    qcfs, relu                                 networks made for conversion, and what they start from
    stbp, tdbn, recdis-style, dspike, glif,
    tab, tet, psn, masked-psn, sliding-psn     direct training of spiking neurons over T time-steps, for comparison

`docs/training.md` has a table of them.
"""

# Methods are imported in the order in which messages list them.
# isort: off
from parspike.train.methods.base import METHODS, Direct, Group, Method, method_from, method_name
from parspike.train.methods.qcfs import QCFSMethod
from parspike.train.methods.relu import ReLUMethod
from parspike.train.methods.stbp import STBP
from parspike.train.methods.tdbn import TdBN
from parspike.train.methods.recdis import RecDisStyle
from parspike.train.methods.dspike import Dspike
from parspike.train.methods.glif import GLIF
from parspike.train.methods.tab import TAB
from parspike.train.methods.tet import TET
from parspike.train.methods.psn import PSN, MaskedPSN, SlidingPSN
# isort: on

__all__ = [
    "GLIF",
    "METHODS",
    "PSN",
    "STBP",
    "TAB",
    "TET",
    "Direct",
    "Dspike",
    "Group",
    "MaskedPSN",
    "Method",
    "QCFSMethod",
    "ReLUMethod",
    "RecDisStyle",
    "SlidingPSN",
    "TdBN",
    "method_from",
    "method_name",
]
