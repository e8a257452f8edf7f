"""parspike: trained networks → spiking networks by parallel conversion.

>>> import torch, parspike
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
>>> snn = parspike.convert(model, calibration=torch.rand(64, 4), T=8)
>>> snn(torch.rand(5, 4)).shape
torch.Size([5, 2])
"""

import typing

from parspike import errors
from parspike.errors import ParspikeError
from parspike.lazy import look_up_later
from parspike.version import __version__ as __version__

if typing.TYPE_CHECKING:  # the same names, for type checkers and editors
    from parspike.bench import Bench, Benched, BenchNetwork, Speed, bench, speed
    from parspike.calibrate import (
        DAQCFS,
        Auto,
        ClosedForm,
        Recipe,
        Reconstruct,
        Thresholds,
        recipe_from_json,
        recipe_to_json,
    )
    from parspike.convert import convert
    from parspike.diagnose import Diagnosis, diagnose
    from parspike.engines import Run
    from parspike.export import Exported, export
    from parspike.file import load
    from parspike.graph import register
    from parspike.language import LanguageModel, Tokenizer, generate, language
    from parspike.measure import Energy, NeuroBench, Perplexity, Report, Scores, measure, neurobench, perplexity
    from parspike.neurons import IF, LIF, QCFS, PackedTrains, Parallel, Simulation, kind_from_text
    from parspike.onnx_in import from_onnx
    from parspike.plan import Keep, Plan, Spike, Steps, plan
    from parspike.report import report
    from parspike.snn import SNN
    from parspike.spikes import Spikes, read_spikes, write_spikes
    from parspike.sweep import Sweep, sweep
    from parspike.target import TargetCheck, check
    from parspike.tune import Tuning, tune
    from parspike.view import view

__all__ = [
    "DAQCFS",
    "IF",
    "LIF",
    "QCFS",
    "SNN",
    "Auto",
    "Bench",
    "BenchNetwork",
    "Benched",
    "ClosedForm",
    "Diagnosis",
    "Energy",
    "Exported",
    "Keep",
    "LanguageModel",
    "NeuroBench",
    "PackedTrains",
    "Parallel",
    "ParspikeError",
    "Perplexity",
    "Plan",
    "Recipe",
    "Reconstruct",
    "Report",
    "Run",
    "Scores",
    "Simulation",
    "Speed",
    "Spike",
    "Spikes",
    "Steps",
    "Sweep",
    "TargetCheck",
    "Thresholds",
    "Tokenizer",
    "Tuning",
    "bench",
    "check",
    "convert",
    "diagnose",
    "errors",
    "export",
    "from_onnx",
    "generate",
    "kind_from_text",
    "language",
    "load",
    "measure",
    "neurobench",
    "perplexity",
    "plan",
    "read_spikes",
    "recipe_from_json",
    "recipe_to_json",
    "register",
    "report",
    "speed",
    "sweep",
    "tune",
    "view",
    "write_spikes",
]

look_up_later(
    __name__,
    {
        "baselines": (),
        "bench": ("Bench", "BenchNetwork", "Benched", "Speed", "bench", "speed"),
        "calibrate": (
            "DAQCFS", "Auto", "ClosedForm", "Recipe", "Reconstruct", "Thresholds", "recipe_from_json", "recipe_to_json",
        ),
        "convert": ("convert",),
        "diagnose": ("Diagnosis", "diagnose"),
        "engines": ("Run",),
        "export": ("Exported", "export"),
        "file": ("load",),
        "graph": ("register",),
        "language": ("LanguageModel", "Tokenizer", "generate", "language"),
        "lower": (),
        "measure": ("Energy", "NeuroBench", "Perplexity", "Report", "Scores", "measure", "neurobench", "perplexity"),
        "neurons": ("IF", "LIF", "PackedTrains", "Parallel", "QCFS", "Simulation", "kind_from_text"),
        "onnx_in": ("from_onnx",),
        "plan": ("Keep", "Plan", "Spike", "Steps", "plan"),
        "report": ("report",),
        "snn": ("SNN",),
        "spikes": ("Spikes", "read_spikes", "write_spikes"),
        "sweep": ("Sweep", "sweep"),
        "target": ("TargetCheck", "check"),
        "train": (),
        "tune": ("Tuning", "tune"),
        "view": ("view",),
    },
)  # fmt: skip
del look_up_later
