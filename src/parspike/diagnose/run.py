"""`diagnose`: examine all layers, blame one, try what may help it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from parspike.calibrate.batches import arguments_of, inputs_of, labels_of, readable_again
from parspike.calibrate.recipe import Progress
from parspike.diagnose.examine import Examination, outcome
from parspike.diagnose.remedies import Item, remedies
from parspike.diagnose.result import EXACT, STANDS_OUT, Diagnosis, LayerFault
from parspike.errors import InputError, check_function
from parspike.graph import Graph, with_doubles
from parspike.graph.encode import input_encoders
from parspike.measure import same_operators
from parspike.plan import Plan, plan_again, with_encoders
from parspike.snn import SNN, check_converted

__all__ = ["diagnose"]


@torch.no_grad()
def diagnose(
    snn: SNN,
    model: nn.Module | Plan | None,
    images: Any,
    *,
    inputs: Callable[[Any], Any] | None = None,
    cure: bool = True,
    progress: Progress | None = None,
) -> Diagnosis:
    """Where a converted network's error comes from, by layer, and what helps against the worst.

        found = parspike.diagnose(snn, model, images)
        print(found)
        found.remedy.snn.save("better.parspike")

    model: the network that was converted, or its plan; None: the converted network's own weights with exact activations
    are the reference, which says nothing about re-fitted weights. images: as for `measure`, labels not needed; other
    than those that the conversion was fitted on. Half of them choose remedies, the other half judge them, so give at
    least two. inputs: a function from an item to the inputs. cure: whether remedies are tried. progress: called as
    progress(what, done, total). Every layer costs about one run of the network; of neurons with a state it is one run
    of T steps. docs/diagnose.md explains the figures.
    Raises `InputError` for inputs that do not fit and for a network that this one was not made of.
    """
    check_converted(snn, "diagnose")
    check_function(progress, "progress")
    snn = with_doubles(snn)
    source = readable_again(images, name="images")
    first = next(iter(source), None)
    if first is None:
        raise InputError("there are no images: give at least one batch of inputs")
    made = None
    if model is not None:
        example = arguments_of(first, "batch 0 of images", inputs, snn.graph.signature)
        made = plan_again(model, example, snn.provenance)
    reference = _reference(snn, made)
    items = [
        (inputs_of(item, f"batch {number} of images", snn, inputs), labels_of(item, inputs, snn.graph.signature))
        for number, item in enumerate(source)
    ]
    examination, done = Examination(snn, reference), 0

    def said(what: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(what, done, 0 if done > len(items) * len(examination.sums) else len(items) * len(examination.sums))

    for env, labels in items:
        examination.add(env, labels, said)
    rows, now = examination.rows(), outcome(examination.scores)
    blame = _blamed(rows, now.harm)
    fit, held = _halves(reference, items) if cure and blame is not None else ([], [])
    tried = remedies(snn, reference, made, blame, fit, held, said) if blame is not None and fit and held else ()
    return Diagnosis(
        samples=examination.samples,
        held_out=sum(_size(item) for item in held) if tried else 0,
        T=snn.T,
        codes=tuple(dict.fromkeys(neuron.label for neuron in snn.neurons().values())),
        compared_with="own" if model is None else "network",
        outcome=now,
        network_accuracy=examination.scores.network_accuracy,
        rows=rows,
        blame=blame,
        remedies=tried,
        classes=examination.scores.classes,
    )


def _reference(snn: SNN, made: Plan | None) -> Graph:
    """The network's graph, which has the nodes of the spiking network's."""
    if made is None:
        return replace(snn.graph, tensors=snn.tensors())
    if snn.over_time and input_encoders(snn.graph):
        made = with_encoders(made)
    if not same_operators(made.graph, snn.graph):
        raise InputError(
            "the network has other operators than this converted network, so their layers cannot be compared: give the "
            "network that it was converted from, with the weights of then, or its plan; or leave it out, and the "
            "converted network is compared with its own weights"
        )
    return made.graph


def _blamed(rows: Sequence[LayerFault], harm: float) -> str | None:
    """The layer that costs most at the output: the one without whose error the output is best, or, where none stands
    out by that, the one that alone makes the largest error. None where the output is exact."""
    if harm <= EXACT or not rows:
        return None
    worst = min(rows, key=lambda row: row.without.harm)
    if worst.without.harm <= (1 - STANDS_OUT) * harm:
        return worst.layer
    worst = max(rows, key=lambda row: row.alone.harm)
    return worst.layer if worst.alone.harm > EXACT else None


def _size(item: Item) -> int:
    return next(iter(item[0].values())).shape[0]


def _halves(graph: Graph, items: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """Images to choose remedies by, and images to judge them on: every other batch, or the halves of a single one.
    None of them where a batch cannot be cut."""
    if len(items) > 1:
        return items[::2], items[1::2]
    (env, labels), half = items[0], _size(items[0]) // 2
    if not half or (labels is not None and len(labels) != _size(items[0])):
        return [], []
    parts = [
        ({name: x[cut] for name, x in env.items()}, None if labels is None else labels[cut])
        for cut in (slice(half), slice(half, None))
    ]
    if not all(graph.allows(graph.sizes(part)) for part, _ in parts):
        return [], []
    return parts[:1], parts[1:]
