"""The mathematics of the neurons as functions of tensors: no graph.

``serial``     step by step: equation (1), the identity (3)-(4)
``quantised``  the staircase over all steps: equations (5), (9), the closed-form spike count, ``QCFS``
``parallel``   all steps at once: equations (2), (6)-(8), theorem 4.1, charging and firing of section 4.3
``packed``     trains as bits
``fused``      output and trains of a layer in one kernel of a GPU (``kernels``, in Triton), where it is proved equal
``trains``     sorted spike trains and their counts: equation (7)
``staircase``  neurons with a free threshold for every level, for any monotone activation
``percentile`` thresholds from data: "max", "99.9%"
``layer``      the neurons of one layer with their parameters
``signed``     two neurons for one value that has both signs
``dynamics``   neurons that compute step by step, with a potential: IF and LIF, soft and hard reset
``current_based`` neurons that are read from files of others: a synapse with a decay, a reset to any value
``whole``      neurons that count whole numbers, for integer arithmetic
``kinds``      which neuron a network is converted for, as a value

Time is the first axis, ``(T, ...)``; thresholds broadcast against one step. ``docs/equations.md`` lists
each equation with its function and the test that proves it.
"""

from .current_based import CurrentBased
from .dynamics import Dynamics, IntegrateFire, Simulation, SortedTrain, State, twin
from .kinds import BELOW, IF, LIF, MAX_T, Kind, Parallel, Serial, check_kind, kind_from_text
from .layer import CODES, Code, Even, Neuron, ParallelNeuron, SpikingLayer, levels_of, neuron_from
from .packed import PackedTrains, joined_trains
from .parallel import (
    bisect_count,
    charge,
    fire,
    fused_matrix,
    lif_matrix,
    optimal_shift,
    parallel_neuron,
    pc_matrix,
    pre_matrix,
    spikes_at_once,
)
from .quantised import QCFS, da_qcfs, qcfs, spike_count
from .serial import average_rate, if_neuron, lif_neuron, soft_reset_step
from .signed import Pair, SignedNeuron
from .staircase import Staircase, joined
from .trains import count_of, first_spike, sorted_train
from .whole import Whole, WholeCurve, WholeNeuron, WholePair, WholeStaircase

__all__ = [
    "BELOW",
    "CODES",
    "IF",
    "LIF",
    "MAX_T",
    "QCFS",
    "Code",
    "CurrentBased",
    "Dynamics",
    "Even",
    "IntegrateFire",
    "Kind",
    "Neuron",
    "PackedTrains",
    "Pair",
    "Parallel",
    "ParallelNeuron",
    "Serial",
    "SignedNeuron",
    "Simulation",
    "SortedTrain",
    "SpikingLayer",
    "Staircase",
    "State",
    "Whole",
    "WholeCurve",
    "WholeNeuron",
    "WholePair",
    "WholeStaircase",
    "average_rate",
    "bisect_count",
    "charge",
    "check_kind",
    "count_of",
    "da_qcfs",
    "fire",
    "first_spike",
    "fused_matrix",
    "if_neuron",
    "joined",
    "joined_trains",
    "kind_from_text",
    "levels_of",
    "lif_matrix",
    "lif_neuron",
    "neuron_from",
    "optimal_shift",
    "parallel_neuron",
    "pc_matrix",
    "pre_matrix",
    "qcfs",
    "soft_reset_step",
    "sorted_train",
    "spike_count",
    "spikes_at_once",
    "twin",
]
