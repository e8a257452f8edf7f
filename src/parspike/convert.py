"""The front door: network → plan → calibration → SNN."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from parspike.calibrate import DAQCFS, Batches, Draft, Recipe, recipe_from_json, recipe_to_json
from parspike.calibrate.recipe import Progress
from parspike.errors import CalibrationError, OptionError
from parspike.neurons import CODES, Code
from parspike.neurons.layer import MAX_WEIGHTED
from parspike.plan import LayerOption, Plan, plan
from parspike.snn import SNN

__all__ = ["convert"]


def convert(
    model: nn.Module | Plan,
    calibration: Any = None,
    T: int = 8,
    *,
    code: Code = "sorted",
    recipe: Recipe | str | None = None,
    layers: Mapping[str, LayerOption] | None = None,
    example: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    strict: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> SNN:
    """Turn a trained network into a spiking network of T time-steps. The model is not changed.

    calibration: inputs without labels, as an iterable of tensors (B, …), (x, y) tuples or dicts, or one tensor
    (N, …); None where none are needed (QCFS networks with T = T̃, given an `example`). inputs: a function from an
    item of calibration to the model's inputs. recipe: how parameters are found, an object, a name or JSON
    (default: Algorithm 1 of the paper). code: how a count is sent as spikes, "sorted" as in the paper, "weighted"
    (2^T − 1 levels in T steps) or "onset" (one spike a neuron); see `neurons.layer`. layers: options by pattern of layer name, {"stem.*": Keep()}. example: a
    batch of inputs for tracing (default: the first of calibration). strict: refuse analog operators. seed: for
    recipes and shuffling loaders; the global random state is left as it was. progress: called as
    progress(what, done, total).
    Raises `UnsupportedError` with every refusal at once, `TraceError`, `InputError`, `CalibrationError`,
    `OptionError`.
    """
    if isinstance(T, bool) or not isinstance(T, int) or T < 1:
        raise OptionError(f"T must be an integer of at least 1, got {T!r}")
    if code not in CODES:
        raise OptionError(f"code must be one of {', '.join(CODES)}, got {code!r}")
    if code == "weighted" and T > MAX_WEIGHTED:
        raise OptionError(f"the weighted code takes at most {MAX_WEIGHTED} steps (2^T − 1 levels), got T={T}")
    chosen = DAQCFS() if recipe is None else recipe_from_json(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(chosen, Recipe):
        raise OptionError(f"recipe must be a recipe, its name or its JSON, got {type(chosen).__name__}")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        made = model if isinstance(model, Plan) else _plan(model, calibration, example, inputs, layers, strict)
        made.check()
        torch.manual_seed(seed)
        graph = made.graph
        batches = None if calibration is None else Batches(calibration, graph, inputs=inputs)
        draft = Draft(
            graph,
            {node.name: made.activation(node) for node in graph.neurons if node.name in made.spiking},
            T, code, dict(graph.tensors), {}, progress or (lambda what, done, total: None),
        )  # fmt: skip
        chosen.fit(draft, batches)
    provenance = {
        "recipe": recipe_to_json(chosen),
        "T": T,
        "code": code,
        "seed": seed,
        "model": "" if isinstance(model, Plan) else f"{type(model).__module__}.{type(model).__qualname__}",
        "kept": [graph.by_name[name].layer for name in made.kept],
        "calibration": None if batches is None else {"samples": batches.count, "sha256": batches.hash},
        "versions": {"parspike": _version(), "torch": torch.__version__, "python": platform.python_version()},
    }
    student = type(graph)(graph.inputs, graph.nodes, graph.output, draft.tensors, graph.signature)
    return SNN(student, {name: draft.neurons[name] for name in draft.activations}, T=T, provenance=provenance)


def _plan(
    model: nn.Module, calibration: Any, example: Any, inputs: Callable[[Any], Any] | None,
    layers: Mapping[str, LayerOption] | None, strict: bool,
) -> Plan:  # fmt: skip
    if example is None:
        if calibration is None:
            raise CalibrationError("pass calibration= (a batch iterable), or example= where no calibration is needed")
        example = first_input(calibration, inputs)
    return plan(model, example, layers=layers, strict=strict)


def first_input(calibration: Any, inputs: Callable[[Any], Any] | None = None) -> Any:
    """The model's input in the first item of a calibration set."""
    from parspike.calibrate.batches import DICT_KEYS

    if isinstance(calibration, Tensor):
        return calibration[:2]
    iterator = iter(calibration)
    if iterator is calibration:
        raise CalibrationError("calibration is a generator, which can be read once: pass example= too, or a list")
    item = next(iterator, None)
    if item is None:
        raise CalibrationError("the calibration set is empty: give at least one batch of inputs")
    if inputs is not None:
        return inputs(item)
    if isinstance(item, Mapping):
        key = next((key for key in DICT_KEYS if key in item), None)
        return item if key is None else item[key]
    return item[0] if isinstance(item, (tuple, list)) else item


def _version() -> str:
    try:
        return version("parspike")
    except PackageNotFoundError:
        return "unknown"
