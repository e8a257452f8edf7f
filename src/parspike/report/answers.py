"""How well a network answers: one pass over the data, beside the network it came from and the quantised one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parspike.calibrate.batches import inputs_of, labels_of, number_of
from parspike.calibrate.distance import class_scores, values_of
from parspike.calibrate.recipe import Progress
from parspike.engines import OVER_TIME, Pass, count, over_time
from parspike.errors import InputError, OptionError
from parspike.graph import Graph, map_tree
from parspike.graph.ir import elements
from parspike.measure import Scores, answers_of
from parspike.neurons import ParallelNeuron, Staircase
from parspike.snn import SNN
from parspike.sweep.quantised import quantised

__all__ = ["MEASURES", "Answers", "Classes", "Example", "answers", "interval"]

Classes = Sequence[str] | Mapping[int, str]
"""Names of classes: of all, in order, or of some by their numbers."""

MEASURES = ("accuracy", "agreement", "error")
FIRST, MORE = 6, 6
"""Examples: the first samples, and samples on which the answers part."""
MOST_KEPT = 1 << 26
"""Elements of the outputs of a batch after every step, above which only the last answer is looked at."""


@dataclass(frozen=True)
class Example:
    """One sample with the answers to it. index: its place in the data. x: its first input, without the batch. own,
    network: the answers as text, None where there is no network. label: None without labels. differs: whether the
    answer is another than the network's, or without a network than the label."""

    index: int
    x: Tensor
    own: str
    network: str | None
    label: str | None
    differs: bool


@dataclass
class Answers:
    """Scores over all samples. own: of the spiking network. network: whether there is one to compare with. rival: of
    the network quantised to as many levels; None of neurons that no evenly
    or unevenly spaced levels describe, such as those with a state. steps:
    of neurons with a state the scores after each step from `first` on. gained, lost: answers that the spiking network
    alone, and that the network alone has right; None unless both and labels are known."""

    own: Scores
    network: bool
    rival: Scores | None
    samples: int = 0
    steps: list[Scores] = field(default_factory=list)
    first: int = 1
    gained: int | None = None
    lost: int | None = None
    examples: list[Example] = field(default_factory=list)

    @property
    def measure(self) -> str | None:
        """The first of accuracy, agreement and error that is known; None where there is nothing to compare with."""
        return next((name for name in MEASURES if getattr(self.own, name) is not None), None)

    @property
    def network_score(self) -> float | None:
        """What the network itself reaches in `measure`."""
        if self.measure == "accuracy":
            return self.own.network_accuracy
        return {"agreement": 1.0, "error": 0.0}.get(self.measure or "")


def interval(share: float, number: int) -> tuple[float, float]:
    """The 95 % interval of a share that was seen in so many independent samples (Wilson 1927, JASA 22, 209-212).

    >>> [round(100 * bound, 1) for bound in interval(0.5, 100)]
    [40.4, 59.6]
    """
    z = 1.959964
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return max(0.0, middle - half), min(1.0, middle + half)


@torch.no_grad()
def answers(
    snn: SNN,
    source: Iterable[Any],
    *,
    reference: Graph | None = None,
    inputs: Callable[[Any], Any] | None = None,
    classes: Classes | None = None,
    progress: Progress | None = None,
) -> Answers:
    """The answers to all items of `source`. reference: the graph of the network to compare with. classes: their names;
    `OptionError` where there are names for all and the network knows another number of classes."""
    neurons = snn.counting().values()
    known = bool(neurons) and all(isinstance(neuron, (ParallelNeuron, Staircase)) for neuron in neurons)
    rival = quantised(snn) if known else None
    how = None if snn.over_time else Pass.of(snn.graph, tuple(snn.counting()))
    found = Answers(Scores(), reference is not None, None if rival is None else Scores())
    total = number_of(source)
    for number, item in enumerate(source):
        env = inputs_of(item, f"batch {number} of the data", snn, inputs)
        labels = labels_of(item, inputs, snn.graph.signature)
        output, wanted = _output(snn, env, how, found), None
        if reference is not None:
            wanted = reference.run_on(inputs_of(item, f"batch {number} of the data", reference, inputs))
        found.own.add(output[-1], wanted, labels)
        named = classes if classes is None or not isinstance(classes, Mapping) else None
        if named is not None and found.own.classes not in (0, len(named)):
            raise OptionError(f"classes has {len(named)} names and the network knows {found.own.classes} classes")
        for place, one in enumerate(output):
            if len(output) > 1:
                if len(found.steps) <= place:
                    found.steps.append(Scores())
                found.steps[place].add(one, wanted, labels)
        if rival is not None and found.rival is not None:
            found.rival.add(rival(env), wanted, labels)
        _compare(found, output[-1], wanted, labels)
        _examples(found, env, output[-1], wanted, labels, classes)
        found.samples += next(iter(env.values())).shape[0]
        if progress:
            progress("answers", number + 1, total)
    if not found.samples:
        raise InputError("the data are empty: give at least one batch of inputs")
    return found


def _output(snn: SNN, env: Mapping[str, Tensor], how: Pass | None, found: Answers) -> list[Any]:
    """The outputs after each step that counts, the last one last. how: a pass through parallel neurons."""
    if how is not None:
        return [count(snn, dict(env), how).logits]
    size = sum(elements(snn.graph.by_name[name].shape, snn.graph.sizes(env)) for name in set(snn.graph.outputs))
    room = snn.T * size * len(next(iter(env.values()))) <= MOST_KEPT if not found.samples else bool(found.steps)
    every, simulation = room and snn.T > 1, snn.simulation
    logits = over_time(snn, dict(env), snn.stateful(), simulation, engine=OVER_TIME, every_step=every).logits
    if not every:
        return [logits]
    found.first = 1 + (simulation.T - simulation.read if simulation.read else 0)

    def at(step: int) -> Any:
        return map_tree(lambda leaf: leaf[step] if isinstance(leaf, Tensor) else leaf, logits)

    return [at(step) for step in range(found.first - 1, snn.T)]


def _compare(found: Answers, output: Any, wanted: Any, labels: Tensor | None) -> None:
    """Count the answers that one of the two alone has right."""
    if wanted is None or labels is None:
        return
    said, known = answers_of(output, labels), answers_of(wanted, labels)
    if said is None or known is None or not said.shape == known.shape == labels.shape:
        return
    labels = labels.to(said.device)
    right, network = said == labels, known == labels
    found.gained = (found.gained or 0) + int((right & ~network).sum())
    found.lost = (found.lost or 0) + int((network & ~right).sum())


def _examples(
    found: Answers, env: Mapping[str, Tensor], output: Any, wanted: Any, labels: Tensor | None,
    classes: Classes | None,
) -> None:  # fmt: skip
    said = answers_of(output, labels)
    known = None if wanted is None else answers_of(wanted, labels)
    x = next((x for x in env.values() if x.is_floating_point()), next(iter(env.values())))
    other = known if known is not None else labels
    parts = torch.zeros(len(x), dtype=torch.bool)
    if said is not None and said.dim() == 1 and other is not None and other.shape == said.shape:
        parts = (said != other.to(said.device)).cpu()
    several = sum(example.differs and example.index >= FIRST for example in found.examples)
    for place in range(len(x)):
        index, differs = found.samples + place, bool(parts[place])
        if index >= FIRST and not (differs and several < MORE):
            continue
        several += index >= FIRST
        label = None
        if labels is not None and labels.dim() == 1 and len(labels) == len(x):
            label = _name(labels[place].item(), classes) if said is not None else f"{labels[place].item():.4g}"
        found.examples.append(
            Example(
                index, x[place].detach().cpu().clone(), _told(output, said, place, classes),
                None if wanted is None else _told(wanted, known, place, classes), label, differs,
            )
        )  # fmt: skip


def _name(answer: float, classes: Classes | None) -> str:
    number = int(answer)
    known = classes if isinstance(classes, Mapping) else dict(enumerate(classes or ()))
    return str(known.get(number, f"class {number}"))


def _told(output: Any, said: Tensor | None, place: int, classes: Classes | None) -> str:
    """One sample's answer in words: the class with its share of the softmax, or the first values."""
    if said is not None and said.dim() == 1:
        scores, name = class_scores(output), _name(said[place].item(), classes)
        if scores is None or scores.dim() != 2:
            return name
        return f"{name}, {100 * float(scores[place].double().softmax(0)[said[place]]):.0f} %"
    if said is not None:
        return f"a class for each of {'×'.join(map(str, said.shape[1:]))} places"
    values = values_of(output)
    if not values:
        return "–"
    flat = values[0][place].flatten()
    more = " …" if flat.numel() > 4 else ""
    return ", ".join(f"{value:.3g}" for value in flat[:4].tolist()) + more
