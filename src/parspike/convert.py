"""The front door: network → plan → calibration → SNN."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils.data import DistributedSampler

from parspike.calibrate import Auto, Batches, Draft, Recipe, recipe_from_json, recipe_to_json
from parspike.calibrate.batches import arguments_of, readable_again, signature_of
from parspike.calibrate.recipe import Progress
from parspike.errors import CalibrationError, OptionError, ParspikeWarning
from parspike.neurons import CODES, Code, Kind, Parallel, Serial, Simulation
from parspike.calibrate.student import ByCount, OverTime
from parspike.neurons.layer import MAX_WEIGHTED
from parspike.plan import LayerOption, Plan, plan
from parspike.snn import SNN
from parspike.together import Together
from parspike.version import __version__

__all__ = ["convert"]

MAX_T = 1 << 24
"""Counts above it are not whole in float32."""


def convert(
    model: nn.Module | Plan,
    calibration: Any = None,
    T: int = 8,
    *,
    neuron: Kind | None = None,
    code: Code = "sorted",
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    layers: Mapping[str, LayerOption] | None = None,
    example: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    strict: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    group: ProcessGroup | None = None,
) -> SNN:
    """Turn a trained network into a spiking network of T time-steps. The model is not changed.

    calibration: inputs without labels, as an iterable of tensors (B, …), (x, y) tuples or dicts, or one tensor (N,
    …); of a tuple the first entries are taken, as many as `forward` asks for, of a dict those that `forward` names,
    or one under a usual key; None where none are needed (QCFS networks with T = T̃, given an `example`). inputs: a
    function from an item of calibration to the model's inputs. recipe: how parameters are found, an object, a name
    or JSON (default: `Auto`, which tries several within two minutes and keeps what images held out confirm). code:
    how a count is sent as spikes, "sorted" as in the paper, "weighted" (2^T − 1 levels in T steps) or "onset" (one
    spike a neuron); see `neurons.layer`. layers: options by pattern of layer name, {"stem.*": Keep(), "head.*":
    Steps(4)}. example: a batch of inputs for tracing (default: the first of calibration). strict: refuse analog
    operators. seed: for recipes and shuffling loaders; the global random state is left as it was. progress: called
    as progress(what, done, total). group: processes that calibrate together, all calling this with the same
    arguments (`torch.distributed.group.WORLD`); each reads its part of the batches, and each gets the network that
    one process would make (docs/calibration.md). Without it no other process is waited for.
    Raises `UnsupportedError` with every refusal at once, `TraceError`, `InputError`, `CalibrationError`,
    `OptionError`.
    """
    if isinstance(T, bool) or not isinstance(T, int) or not 1 <= T <= MAX_T:
        raise OptionError(f"T must be an integer from 1 to {MAX_T}, got {T!r}")
    if code not in CODES:
        raise OptionError(f"code must be one of {', '.join(CODES)}, got {code!r}")
    if code == "weighted" and T > MAX_WEIGHTED:
        raise OptionError(f"the weighted code takes at most {MAX_WEIGHTED} steps (2^T − 1 levels), got T={T}")
    if isinstance(model, Plan) and (layers is not None or strict or example is not None):
        raise OptionError("layers=, strict= and example= belong to the plan: give them to parspike.plan")
    chosen = Auto() if recipe is None else recipe if isinstance(recipe, Recipe) else recipe_from_json(recipe)
    together = Together(group)
    with together.one_fate(), torch.random.fork_rng(), torch.no_grad():
        source = None if calibration is None else readable_again(calibration)
        if together.size > 1 and isinstance(getattr(source, "sampler", None), DistributedSampler):
            raise CalibrationError(
                "the calibration loader deals its images out to processes, and so does convert: "
                "give all processes the same loader, without DistributedSampler"
            )
        torch.manual_seed(seed)
        made = model if isinstance(model, Plan) else _plan(model, source, example, inputs, layers, strict)
        made.check()
        if not made.spiking and not made.kept and together.rank == 0:
            warnings.warn(
                "the network has no activation that becomes neurons, so its conversion sends no spikes and computes "
                "what the network computes: print(parspike.plan(model, example)) says what each operator is",
                ParspikeWarning,
                stacklevel=2,
            )
        torch.manual_seed(seed)
        graph = made.graph
        batches = None if source is None else Batches(source, graph, inputs=inputs, together=together)
        draft = Draft(
            graph,
            {node.name: made.activation(node) for node in graph.neurons if node.name in made.spiking},
            T, code, dict(graph.tensors), {}, progress or (lambda what, done, total: None),
            steps=_steps(made, T),
            student=OverTime(neuron, T) if isinstance(neuron, Serial) else ByCount(code),
        )  # fmt: skip
        chosen.fit(draft, batches)
        _agree(draft, together)
    provenance = {
        "recipe": recipe_to_json(chosen),
        "T": T,
        "code": code,
        "seed": seed,
        "model": "" if isinstance(model, Plan) else f"{type(model).__module__}.{type(model).__qualname__}",
        **({"search": draft.notes} if draft.notes else {}),
        "kept": [graph.by_name[name].layer for name in made.kept],
        "calibration": None if batches is None else {"samples": batches.count, "sha256": batches.hash},
        "versions": {"parspike": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    student = replace(graph, tensors=draft.tensors)
    return SNN(student, {name: draft.neurons[name] for name in draft.activations}, simulation=Simulation(T), provenance=provenance)


def _agree(draft: Draft, together: Together) -> None:
    """The first process' numbers in all: sums on unlike devices, or on a GPU, may differ in their last bits."""
    if together.size == 1:
        return
    new = [path for path, tensor in draft.tensors.items() if tensor is not draft.graph.tensors[path]]
    states = {name: draft.neurons[name].state_dict() for name in draft.activations}
    own = [draft.tensors[path] for path in new] + [tensor for state in states.values() for tensor in state.values()]
    first = iter(together.gather({0: own} if together.rank == 0 else {})[0])
    draft.tensors.update({path: next(first).to(draft.tensors[path].device) for path in new})
    for name, state in states.items():
        draft.neurons[name].load_state_dict({key: next(first) for key in state})


def _steps(made: Plan, T: int) -> Mapping[str, int]:
    for name, steps in made.steps.items():
        if steps > T:
            layer = made.graph.by_name[name].layer
            raise OptionError(f"layer '{layer}' asks for {steps} time-steps, the network has T={T}: give a larger T")
    return made.steps


def _plan(
    model: nn.Module, source: Iterable[Any] | None, example: Any, inputs: Callable[[Any], Any] | None,
    layers: Mapping[str, LayerOption] | None, strict: bool,
) -> Plan:  # fmt: skip
    if example is None:
        if source is None:
            raise CalibrationError("pass calibration= (a batch iterable), or example= where no calibration is needed")
        first = next(iter(source), None)
        if first is None:
            raise CalibrationError("the calibration set is empty: give at least one batch of inputs")
        example = arguments_of(first, "calibration batch 0", inputs, signature_of(model, first, inputs))
    return plan(model, example, layers=layers, strict=strict)
