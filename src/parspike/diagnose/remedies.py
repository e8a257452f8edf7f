"""What may help a layer to blame, and whether it does: each remedy is a network that is made, run and compared.

Thresholds are chosen on one half of the images, and every figure is of the other half. A recipe that re-fits weights
fits them to the neurons as they are, so a change of neurons alone would show little of what it is worth: then the
network is converted again on the first half, with the remedy and without it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parspike.calibrate import RECIPES, recipe_from_json
from parspike.calibrate.staircase import counted, staircase_between
from parspike.convert import convert
from parspike.diagnose.examine import answer, outcome, with_neurons
from parspike.diagnose.result import Outcome, Remedy
from parspike.errors import ParspikeWarning
from parspike.graph import Clip, Graph, Hook, Node, Schedule, Stream, walk
from parspike.graph.ops import TABLE
from parspike.measure import Scores
from parspike.neurons import (
    IF,
    LIF,
    MAX_T,
    IntegrateFire,
    Kind,
    Neuron,
    Parallel,
    ParallelNeuron,
    SpikingLayer,
    Staircase,
)
from parspike.neurons.layer import MAX_WEIGHTED
from parspike.plan import Plan
from parspike.snn import SNN

__all__ = ["Item", "remedies"]

STEP, MOST = 1.25, 6
"""Thresholds are made larger or smaller by this factor, again and again as long as the error falls, so often at
most."""
SAMPLES = 1 << 18
"""Values of a layer that more levels are fitted to."""

Item = tuple[Mapping[str, Tensor], Tensor | None]
"""Inputs by name, and labels if there are any."""


@dataclass(frozen=True)
class _Trial:
    """Tries networks. made: the plan that the network was converted by, None where it is not known. fit, held: images
    to choose by, and to measure on. refitted: whether the conversion changed weights, and can be repeated."""

    snn: SNN
    reference: Graph
    made: Plan | None
    fit: Sequence[Item]
    held: Sequence[Item]
    said: Callable[[str], None]
    refitted: bool = False

    def of(self, snn: SNN, items: Sequence[Item], what: str) -> Outcome:
        """How a network does on some images."""
        scores = Scores()
        for env, labels in items:
            scores.add(answer(snn, env), self.reference.run_on(env), labels)
        self.said(what)
        return outcome(scores)

    def network(
        self, neurons: Mapping[str, SpikingLayer], T: int | None, note: Mapping[str, Any], steps: Mapping[str, int]
    ) -> SNN:
        """The network with these neurons; where weights were re-fitted, converted again with these layers spiking and
        these time-steps in them."""
        if not self.refitted:
            return with_neurons(self.snn, neurons, T, note)
        return self.again(tuple(neurons), self.snn.T if T is None else T, steps)

    def again(self, spiking: Sequence[str], T: int, steps: Mapping[str, int]) -> SNN:
        """Converts as the network was converted, on the images to choose by."""
        made, said = self.made, self.snn.provenance
        if made is None:
            raise ValueError("a network that is not known cannot be converted again")
        kept = [name for name in made.spiking if name not in spiking]
        own = {name: n for name, n in steps.items() if n != T and name in made.graph.by_name}
        plan = replace(
            made,
            spiking=tuple(n for n in made.spiking if n in spiking),
            kept=(*made.kept, *kept),
            steps=own,
            neuron=None,
        )
        recipe = recipe_from_json(_recipe(said))
        names = self.snn.graph.signature[1]

        def inputs(env: Mapping[str, Tensor]) -> Any:
            values = [env[i.name] for i in self.snn.graph.inputs]
            return dict(zip(names, values, strict=True)) if names else tuple(values)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ParspikeWarning)
            return convert(
                plan, [env for env, _ in self.fit], T, neuron=None if recipe.makes else _kind(said),
                input=said.get("input", "current"), recipe=recipe, seed=said.get("seed", 0),
                inputs=inputs,
            )  # fmt: skip


def _kind(said: Mapping[str, Any]) -> Kind:
    """The kind of neurons that a provenance names."""
    if "neuron" not in said:
        return Parallel(said["code"])
    options = dict(said["neuron"])
    return {"IF": IF, "LIF": LIF}[options.pop("kind")](**options)


def _repeatable(snn: SNN, reference: Graph, made: Plan | None) -> bool:
    """Whether the conversion changed weights of synapses and can be done again: its recipe is known, and all inputs
    have names or all have none."""
    positional, names = snn.graph.signature
    own = snn.tensors()
    changed = any(
        path in own and own[path].shape == tensor.shape and not torch.equal(own[path], tensor)
        for path, tensor in reference.tensors.items()
    )
    said = snn.provenance
    # A recipe in a file may name code on this machine, which nobody has asked to run.
    known = _recipe(said).get("name") in RECIPES and ("code" in said or "neuron" in said)
    return made is not None and changed and known and not (positional and names)


def _recipe(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe that a provenance names, of a search the one that it chose; empty where it names none."""
    search = said.get("search")
    found = (search.get("chosen") if isinstance(search, Mapping) else None) or said.get("recipe")
    return found if isinstance(found, Mapping) and isinstance(found.get("name"), str) else {}


def remedies(
    snn: SNN, reference: Graph, made: Plan | None, layer: str, fit: Sequence[Item], held: Sequence[Item],
    said: Callable[[str], None],
) -> tuple[Remedy, ...]:  # fmt: skip
    """The remedies for one layer, each tried. made: the network's plan. said: told what is being tried."""
    trial = _Trial(snn, reference, made, fit, held, said, _repeatable(snn, reference, made))
    names = [name for name in snn.neurons() if _base(snn.graph.by_name[name].layer) == _base(layer)]
    before, again = trial.of(snn, held, "as it is"), None
    if trial.refitted:
        again = trial.of(trial.again(tuple(snn.neurons()), snn.T, _steps(snn)), held, "converted again")
    tried = (
        *_thresholds(trial, layer, names), *_more_steps(trial, layer, names), *_everywhere(trial, layer),
        *_keep(trial, layer, names),
    )  # fmt: skip
    return tuple(
        Remedy(
            kind,
            layer,
            what,
            how,
            before,
            trial.of(network, held, what),
            network,
            None if kind == "threshold" else again,
        )
        for kind, what, how, network in tried
    )


def _steps(snn: SNN) -> dict[str, int]:
    """The time-steps of the layers of parallel neurons."""
    return {name: neuron.T for name, neuron in snn.counting().items()}


_Made = tuple[str, str, str, SNN]
"""The name of a remedy, what it is, how to have it, and the network with it."""


def _base(layer: str) -> str:
    """The activation that a layer's neurons stand for; one that falls and then rises has two, "act+" and "act-"."""
    return layer[:-1] if layer[-1:] in ("+", "-") else layer


def _thresholds(trial: _Trial, layer: str, names: Sequence[str]) -> Iterator[_Made]:
    neurons = trial.snn.neurons()

    def network(factor: float) -> SNN | None:
        scaled = {name: _scaled(trial.snn.graph.by_name[name], neurons[name], factor) for name in names}
        if any(one is None for one in scaled.values()):
            return None
        note = {"layer": layer, "remedy": "threshold", "factor": factor}
        return with_neurons(trial.snn, {**_copied(neurons), **{n: m for n, m in scaled.items() if m}}, note=note)

    def harm(factor: float) -> float:
        made = network(factor)
        return float("inf") if made is None else trial.of(made, trial.fit, f"{layer}, thresholds × {factor:.3g}").harm

    if network(1.0) is None:
        return
    tried = {STEP: harm(STEP), 1 / STEP: harm(1 / STEP)}
    direction = min(tried, key=tried.__getitem__)
    best = direction
    while len(tried) < MOST and (further := best * direction) not in tried:
        tried[further] = harm(further)
        if tried[further] >= tried[best]:
            break
        best = further
    made = network(best)
    if made is not None:
        how = (
            "the thresholds of these neurons are changed in Remedy.snn (parspike diagnose … -o FILE writes it); or "
            f"convert again with other calibration images or another recipe, which fits {layer} otherwise"
        )
        yield "threshold", f"thresholds × {best:.3g}", how, made


def _scaled(node: Node, neuron: SpikingLayer, factor: float) -> SpikingLayer | None:
    """The neurons with thresholds and outputs made larger alike; None where that is another activation."""
    describe = TABLE[node.target].activation
    if not isinstance(None if describe is None else describe(node), Clip) and not isinstance(neuron, ParallelNeuron):
        return None
    made: Any = copy.deepcopy(neuron)
    if type(neuron) is ParallelNeuron:
        names = ("v_threshold", "v_post")
    elif type(neuron) is IntegrateFire:
        names = ("v_threshold", "v_init", "v_post")
    elif type(neuron) is Staircase:
        low = neuron.outputs[0]
        thresholds, outputs = (low + (t - low) * factor for t in (neuron.thresholds, neuron.outputs))
        return Staircase(neuron.T, thresholds, outputs, code=neuron.code)
    else:
        return None
    for name in names:
        getattr(made, name).data.mul_(factor)
    return made


def _copied(neurons: Mapping[str, SpikingLayer]) -> dict[str, SpikingLayer]:
    return {name: copy.deepcopy(neuron) for name, neuron in neurons.items()}


def _more_steps(trial: _Trial, layer: str, names: Sequence[str]) -> Iterator[_Made]:
    snn, neurons = trial.snn, trial.snn.neurons()
    if snn.over_time:
        T = 2 * snn.T
        if any(neuron.unfit(T) for neuron in neurons.values()):
            return
        note = {"layer": layer, "remedy": "steps", "T": T}
        how = f"convert again with T={T}: neurons with a state have one T in all layers"
        yield "steps", f"T = {T} in all layers", how, trial.network(_copied(neurons), T, note, {})
        return
    own = {name: neuron for name, neuron in snn.counting().items() if name in names}
    T = _more(own)
    if T is None:
        return
    finer = {name: None if trial.refitted else _finer(trial, name, neuron, T) for name, neuron in own.items()}
    if not trial.refitted and any(one is None for one in finer.values()):
        return
    total = max(T, snn.T)
    rest = [(snn.graph.by_name[name].layer, one.T) for name, one in snn.counting().items() if name not in own]
    others = {other: steps for other, steps in rest if steps < total}
    alike = set(others.values())
    steps = {**({"*": alike.pop()} if len(alike) == 1 else others), _base(layer): T}
    words = ", ".join(f"{name!r}: parspike.Steps({n})" for name, n in steps.items())
    note = {"layer": layer, "remedy": "steps", "T": T}
    every = {**_copied(neurons), **{n: m for n, m in finer.items() if m}}
    made = trial.network(every, total, note, {**_steps(snn), **dict.fromkeys(names, T)})
    yield "steps", f"T = {T} in this layer", f"parspike.convert(…, T={total}, layers={{{words}}})", made


def _everywhere(trial: _Trial, layer: str) -> Iterator[_Made]:
    """More steps in all layers, where the error is spread over them."""
    neurons = trial.snn.counting()
    plain = trial.refitted or all(type(one) is ParallelNeuron for one in neurons.values())
    T = _more(neurons) if len(neurons) > 1 and plain else None
    if T is None:
        return
    finer: dict[str, SpikingLayer] = dict(neurons)
    if not trial.refitted:
        finer = {name: made for name, one in neurons.items() if (made := _finer(trial, name, one, T)) is not None}
    note = {"layer": layer, "remedy": "all-steps", "T": T}
    yield "all-steps", f"T = {T} in all layers", f"parspike.convert(…, T={T})", trial.network(finer, T, note, {})


def _more(neurons: Mapping[str, Neuron]) -> int | None:
    """Time-steps beyond those that neurons have; None where they have as many as can be."""
    now = max(one.T for one in neurons.values())
    weighted = any(one.code == "weighted" for one in neurons.values())
    more, most = (now + 1, MAX_WEIGHTED) if weighted else (2 * now, MAX_T)
    return more if more <= most else None


def _finer(trial: _Trial, name: str, neuron: SpikingLayer, T: int) -> SpikingLayer | None:
    """The neurons with T time-steps of their own: the same threshold, shift and amplitude at more levels, (9). Those of
    a staircase are fitted anew."""
    if type(neuron) is ParallelNeuron:
        made = ParallelNeuron(T, neuron.v_threshold, offset=neuron.offset, code=neuron.code)
        for part in ("shift", "v_post"):
            getattr(made, part).data.copy_(getattr(neuron, part))
        return made
    if type(neuron) is not Staircase:
        return None
    node, shape = trial.snn.graph.by_name[name], tuple(neuron.thresholds.shape[1:])
    channels = max(1, neuron.thresholds[0].numel())
    if channels not in (1, node.channels):
        return None
    z, a = _seen(trial, node, SAMPLES // len(trial.fit))
    describe = TABLE[node.target].activation
    errors = counted(describe(node) if describe is not None else None)
    if channels == 1:
        return staircase_between(z.flatten(), a.flatten(), T, neuron.code, shape=None, **errors)
    return staircase_between(z, a, T, neuron.code, shape=shape, **errors)


def _seen(trial: _Trial, node: Node, most: int) -> tuple[Tensor, Tensor]:
    """The mean input of a layer in the spiking network and the network's activation, (C, N) each."""
    snn, neurons, parts = trial.snn, trial.snn.counting(), []
    until = [n.name for n in snn.graph.nodes].index(node.name)
    schedule = Schedule.of(snn.graph.nodes[: until + 1], [node.name, *node.refs])

    def fire(here: Node, args: Any) -> list[Tensor]:
        return [args[0] if here is node else neurons[here.name](args[0])]

    at: dict[str, Hook] = dict.fromkeys(neurons, fire)
    for env, _ in trial.fit:
        sizes = snn.graph.sizes(env)
        student, network = Stream(dict(env), snn.tensors(), sizes), Stream(dict(env), trial.reference.tensors, sizes)
        walk(schedule, [student], at)
        walk(schedule, [network])
        pair = [node.over_channels(stream.env[node.name]) for stream in (student, network)]
        stride = max(1, pair[0].numel() // most)
        parts.append([one[:, ::stride] for one in pair])
    z, a = (torch.cat(list(one), 1) for one in zip(*parts, strict=True))
    return z, a


def _keep(trial: _Trial, layer: str, names: Sequence[str]) -> Iterator[_Made]:
    rest = {name: one for name, one in _copied(trial.snn.neurons()).items() if name not in names}
    how = (
        f"parspike.convert(…, layers={{{_base(layer)!r}: parspike.Keep()}}), on the command line --keep {_base(layer)}"
    )
    note = {"layer": layer, "remedy": "keep"}
    yield "keep", "analog, without spikes", how, trial.network(rest, None, note, _steps(trial.snn))
