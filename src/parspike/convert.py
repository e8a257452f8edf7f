"""The front door: network → plan → calibration → SNN."""

from __future__ import annotations

import contextlib
import inspect
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils.data import DistributedSampler

from parspike.calibrate import Auto, Batches, Draft, Recipe, recipe_from_json, recipe_to_json
from parspike.calibrate.batches import SEEN, arguments_of, readable_again, signature_of
from parspike.calibrate.recipe import Progress
from parspike.calibrate.student import ByCount, Input, OverTime
from parspike.errors import (
    CalibrationError,
    InputError,
    OptionError,
    ParspikeWarning,
    TraceError,
    check_function,
    check_seed,
    meant,
)
from parspike.graph import Curve, Graph, Schedule, Stream, device_of, walk, with_doubles
from parspike.graph.memory import memory_of
from parspike.graph.opened import LABELS, opened
from parspike.graph.ops import ENCODE
from parspike.neurons import CODES, Code, Kind, Parallel, Serial, Simulation, SpikingLayer, check_kind
from parspike.plan import Example, Plan, Planning, plan, with_encoders
from parspike.snn import SNN
from parspike.together import Together
from parspike.version import __version__

__all__ = ["convert", "plan_of"]


def convert(
    model: nn.Module | Plan,
    calibration: Any = None,
    T: int = 8,
    *,
    neuron: Kind | None = None,
    code: Code | None = None,
    input: Input = "current",
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    example: Example | None = None,
    inputs: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    group: ProcessGroup | None = None,
    **planning: Unpack[Planning],
) -> SNN:
    """Turn a trained network into a spiking network of T time-steps. The model is not changed.

        snn = parspike.convert(model, calibration=images, T=8)                          # parallel neurons
        snn = parspike.convert(model, calibration=images, T=8, neuron=parspike.IF())    # a chip's, step by step

    model: the network, or its `Plan`. calibration: inputs without labels, as an iterable of tensors (B, …), (x, y)
    tuples or dicts, one tensor (N, …), or a `Dataset` of samples; of a tuple the first entries are taken, as many as
    `forward` asks for, of a dict those that `forward` names, or one under a usual key; where `forward` takes one dict,
    tuple or list of tensors, all of it but labels; None where none are needed (QCFS networks with T = T̃, given an
    `example`). Batches are moved to the network's device. inputs: a function from an item of calibration to the model's
    inputs.

    neuron: what the network is converted for: `Parallel(code)` (the default), `IF()` or `LIF()`. code: the short form
    of `Parallel(code)`: "sorted" as in the paper, "weighted" (2^T − 1 levels in T steps) or "onset" (one spike a
    neuron), see `neurons.layer`. input: what the first synapses of a network of IF or LIF neurons are fed with:
    "current", the real values at every step, or spikes, as "rate" (an IF neuron for each value) or "sorted" (all at the
    end).

    recipe: how parameters are found, an object, a name or JSON (default: `Auto`, which tries several within two minutes
    and keeps what images held out confirm). example: a batch of inputs for tracing (default: the first of calibration).
    seed: for recipes and shuffling loaders; the global random state is left as it was. progress: called as
    progress(what, done, total). group: processes that calibrate together, all calling this with the same arguments
    (`torch.distributed.group.WORLD`); each reads its part of the batches, and each gets the network that one process
    would make (docs/calibration.md). Without it no other process is waited for. planning: encode=, analog=,
    layers=, strict= and free_sizes= of `plan`.
    Raises `UnsupportedError` with every refusal at once, `TraceError`, `InputError`, `CalibrationError`, `OptionError`.
    """
    own = model
    model = with_doubles(model) if isinstance(model, nn.Module) else model
    chosen = Auto() if recipe is None else recipe if isinstance(recipe, Recipe) else recipe_from_json(recipe)
    kind = _kind(neuron, code, model, chosen)
    kind.check(T)
    check_seed(seed)
    check_function(progress, "progress")
    if input not in get_args(Input):
        raise OptionError(f"input must be one of {', '.join(get_args(Input))}, got {input!r}")
    if input != "current" and not isinstance(kind, Serial):
        raise OptionError(
            f"input='{input}' makes spikes of the network's inputs for neurons that run step by step: give "
            "neuron=parspike.IF() too"
        )
    known = Planning.__optional_keys__
    for name in planning:
        if name not in known:
            own = [p for p in inspect.signature(convert).parameters if p != "planning"]
            raise OptionError(f"convert has no option '{name}'{meant(name, [*own, *known])}")
    if isinstance(model, Plan) and (planning or example is not None):
        given = ", ".join(f"{name}=" for name in (*planning, *(["example"] if example is not None else [])))
        raise OptionError(f"{given} belongs to the plan: give it to parspike.plan")
    together = Together(group)
    less = "give batches of fewer samples (batch_size= of the loader, --batch-size), or fewer samples"
    less += ", or fewer time-steps (T=, -T)" if isinstance(kind, Serial) else ""
    with together.one_fate(), torch.random.fork_rng(), torch.no_grad(), memory_of("convert", less):
        source = None if calibration is None else readable_again(calibration)
        if together.size > 1 and isinstance(getattr(source, "sampler", None), DistributedSampler):
            raise CalibrationError(
                "the calibration loader deals its images out to processes, and so does convert: "
                "give all processes the same loader, without DistributedSampler"
            )
        torch.manual_seed(seed)
        made = model if isinstance(model, Plan) else _plan(model, source, example, inputs, {**planning, "neuron": kind})
        made.check()
        if isinstance(kind, Serial) and made.steps:
            layer = made.graph.by_name[next(iter(made.steps))].layer
            raise OptionError(f"layer '{layer}' has time-steps of its own, which only parallel neurons have")
        if isinstance(kind, Serial) and any(node.target == ENCODE for node in made.graph.nodes):
            raise OptionError(
                "the plan was made with encode=, whose encoders need parallel neurons: make it without, or leave "
                "neuron= out"
            )
        made = made if input == "current" else with_encoders(made)
        if not made.spiking and not made.kept and together.rank == 0:
            warnings.warn(
                "the network has no activation that becomes neurons, so its conversion sends no spikes and computes "
                "what the network computes: print(parspike.plan(model, example)) says what each operator is",
                ParspikeWarning,
                stacklevel=2,
            )
        why = f"recipe '{chosen.name}' has a threshold for every neuron, so other sizes are fixed"
        graph = made.graph.at_example(why) if chosen.one_size else made.graph
        activations = {node.name: made.activation(node) for node in graph.neurons if node.name in made.spiking}
        curves = [graph.by_name[name].layer for name, a in activations.items() if isinstance(a, Curve)]
        if isinstance(kind, Serial) and curves and together.rank == 0:
            warnings.warn(
                f"{len(curves)} layers of neurons stand for activations that are no clipped line, '{curves[0]}' "
                "first; an IF or LIF neuron can only send such a line, which costs accuracy at every T: "
                f"layers={{'{curves[0]}': parspike.Keep()}} (--keep {curves[0]}) computes the activation exactly, "
                "without spikes",
                ParspikeWarning,
                stacklevel=2,
            )
        torch.manual_seed(seed)
        batches = None if source is None else Batches(source, graph, inputs=inputs, together=together)
        draft = Draft(
            graph, activations, T, _code(kind), dict(graph.tensors), {}, progress or (lambda what, done, total: None),
            steps=_steps(made, T), student=OverTime(kind, input) if isinstance(kind, Serial) else ByCount(),
        )  # fmt: skip
        with _checked(chosen, draft):
            chosen.fit(draft, batches)
        _agree(draft, together)
        if batches is not None and together.rank == 0:
            _warn_of_other_preparation(graph, batches)
        if batches is not None and batches.count > 1 and not batches.varied and together.rank == 0:
            warnings.warn(
                f"all {batches.count} calibration samples are equal, so thresholds are fitted to one of them: give "
                "samples like those that the network will see",
                ParspikeWarning,
                stacklevel=2,
            )
    provenance = {
        "recipe": recipe_to_json(chosen),
        "T": T,
        **({"neuron": kind.to_json(), "input": input} if isinstance(kind, Serial) else {"code": kind.text}),
        **({"encode": made.encode} if made.encode != "none" else {}),
        **({"analog": made.analog} if made.analog != "computed" else {}),
        "seed": seed,
        "model": "" if isinstance(model, Plan) else f"{type(model).__module__}.{type(model).__qualname__}",
        **({"search": draft.notes} if draft.notes else {}),
        "kept": [graph.by_name[name].layer for name in made.kept],
        "calibration": None if batches is None else {"samples": batches.count, "sha256": batches.hash},
        "versions": {"parspike": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    student = replace(graph, tensors=draft.tensors)
    neurons = {name: draft.neurons[name] for name in draft.activations}
    snn = SNN(student, neurons, simulation=draft.simulation or Simulation(T), provenance=provenance)
    if model is own or isinstance(own, Plan):
        return snn
    return snn.to(device_of((*own.parameters(), *own.buffers())))


NARROW, WIDE = 0.6, 1.7
"""Spread behind the first batch norm, as a multiple of that on the training data. Photographs prepared as the network
expects gave 0.84 to 1.0 on four networks, other preparations 0.04 to 0.49 and 2.1 and more (docs/calibration.md)."""


def _warn_of_other_preparation(graph: Graph, batches: Batches) -> None:
    """Warn where calibration samples are spread otherwise behind the first batch norm than its running statistics."""
    if graph.norm is None or sum(len(next(iter(env.values()))) for env in batches.first) < SEEN:
        return
    name, deviation = graph.norm
    last = [node.name for node in graph.nodes].index(name)
    rows = []
    for env in batches.first:
        stream = Stream(dict(env), graph.tensors, graph.sizes(env))
        walk(Schedule.of(graph.nodes[: last + 1], [name]), [stream])
        rows.append(graph.by_name[name].over_channels(stream.env[name]).double())
    spread = torch.cat(rows, 1).std(1)
    known = deviation.to(spread)
    alive = known > 1e-3 * known.max()
    ratio = float((spread[alive] / known[alive]).median()) if bool(alive.any()) else 1.0
    if NARROW <= ratio <= WIDE:
        return
    warnings.warn(
        f"behind the first batch norm (layer '{graph.by_name[name].layer}') the calibration samples are spread "
        f"{ratio:.2g} times as wide as the samples that the network was trained on: are they prepared as it expects "
        "(range 0 … 1 or 0 … 255, mean and standard deviation subtracted and divided)?",
        ParspikeWarning,
        stacklevel=3,
    )


@contextlib.contextmanager
def _checked(recipe: Recipe, draft: Draft) -> Iterator[None]:
    """Check what a recipe has left. One of the user's that changed the network itself is refused, and the network is as
    it was."""
    own = type(recipe).__module__.partition(".")[0] != "parspike"
    before = {path: tensor.detach().clone() for path, tensor in draft.graph.tensors.items()} if own else {}
    changed: list[str] = []
    try:
        yield
    finally:
        for path, kept in before.items():
            now = draft.graph.tensors[path].detach()
            if not torch.equal(now, kept) and not torch.equal(now.nan_to_num(), kept.nan_to_num()):
                now.copy_(kept)
                changed.append(path)
    said = f"recipe '{recipe.name}'"
    if changed:
        raise OptionError(
            f"{said} changed the network's own '{changed[0]}': put a new tensor into "
            f"draft.tensors['{changed[0]}'] instead"
        )
    for name in draft.activations:
        neuron, layer = draft.neurons.get(name), draft.graph.by_name[name].layer
        if not isinstance(neuron, SpikingLayer):
            found = "no neurons" if neuron is None else f"a {type(neuron).__name__}, which is no layer of neurons,"
            raise OptionError(
                f"{said} left {found} for layer '{layer}': draft.neurons['{name}'] must be one, as "
                "draft.student.neuron(…) makes it"
            )
        if any(bool(x.isnan().any()) for x in neuron.state_dict().values() if x.is_floating_point()):
            raise CalibrationError(f"{said} left NaN in the neurons of layer '{layer}'")
    for path, tensor in draft.tensors.items() if own else ():
        shape = draft.graph.tensors[path].shape if path in draft.graph.tensors else None
        if getattr(tensor, "shape", None) != shape:
            raise OptionError(
                f"{said} put {tuple(tensor.shape) if isinstance(tensor, Tensor) else repr(tensor)[:80]} into "
                f"draft.tensors['{path}'], "
                + ("a name that the network does not have" if shape is None else f"whose shape is {tuple(shape)}")
            )


def _agree(draft: Draft, together: Together) -> None:
    """Copy rank 0's parameters to all processes, since sums on unlike devices, or on a GPU, may differ in their last
    bits."""
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


def _kind(neuron: Kind | None, code: Code | None, model: nn.Module | Plan, recipe: Recipe) -> Kind:
    """The kind of neurons to convert for. Raises `OptionError` where the arguments name two."""
    if recipe.makes is not None:
        if neuron not in (None, recipe.makes) or code is not None:
            given = f"neuron={neuron!r}" if neuron is not None else f"code={code!r}"
            raise OptionError(
                f"recipe '{recipe.name}' makes neurons of its own, {given} asks for others: leave one of them out"
            )
        neuron = recipe.makes
    if neuron is not None:
        check_kind(neuron)
    if code is not None and code not in CODES:
        raise OptionError(f"code must be one of {', '.join(CODES)}, got {code!r}")
    if code is not None and neuron not in (None, Parallel(code)):
        raise OptionError(f"code='{code}' is short for neuron=parspike.Parallel('{code}'): give one of the two")
    asked = Parallel(code) if code is not None else neuron
    planned = model.neuron if isinstance(model, Plan) else None
    other = asked is not None and planned is not None and asked != planned
    if other and not (isinstance(asked, Parallel) and isinstance(planned, Parallel)):  # the plan depends on no code
        raise OptionError(f"the plan was made for {planned!r}, and neuron is {asked!r}: give one of the two")
    return asked or planned or Parallel()


def _code(kind: Kind) -> Code:
    """How a count is sent. Neurons with a state count their spikes, as the sorted code does."""
    return kind.code if isinstance(kind, Parallel) else "sorted"


def _whole(item: Any) -> list[Any]:
    """What of an item may be the one input of a network, a dict, a tuple or a list: without and with labels."""
    if isinstance(item, Mapping):
        return [{key: x for key, x in item.items() if key not in labels} for labels in ((*LABELS, "y"), LABELS, ())]
    return [*_whole(item[0]), item] if isinstance(item, (tuple, list)) and item else []


def plan_of(
    model: nn.Module, first: Any, inputs: Callable[[Any], Any] | None = None, **planning: Unpack[Planning]
) -> Plan:
    """The plan of a network with the inputs in the first item of calibration. inputs, planning: see `convert`."""
    try:
        example = arguments_of(first, "calibration batch 0", inputs, signature_of(model, first, inputs))
        return plan(model, example, **planning)
    except (InputError, TraceError, CalibrationError):
        # Of a dict or a tuple that is the network's one input, `arguments_of` chose some of the tensors, or none.
        if inputs is not None or (found := opened(model, _whole(first))) is None:
            raise
        return plan(*found, **planning)


def _plan(
    model: nn.Module, source: Iterable[Any] | None, example: Any, inputs: Callable[[Any], Any] | None, how: Any
) -> Plan:
    if example is None:
        if source is None:
            raise CalibrationError("pass calibration= (a batch iterable), or example= where no calibration is needed")
        try:
            first = next(iter(source))
        except StopIteration:
            raise CalibrationError("the calibration set is empty: give at least one batch of inputs") from None
        return plan_of(model, first, inputs, **how)
    return plan(model, example, **how)
