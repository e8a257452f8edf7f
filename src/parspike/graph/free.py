"""Which input sizes stay free in a graph: leave all open, fix those that the code relies on, test the rest."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sympy import Integer
from torch import Tensor, nn

from parspike.errors import TraceError
from parspike.graph.batch import check_memory, with_one_sample
from parspike.graph.export import export
from parspike.graph.ir import BATCH, Graph, Size
from parspike.graph.ops import Role
from parspike.graph.read import Reader, UndecidedError
from parspike.graph.same import across_batch_marked, same
from parspike.graph.sizes import GuardWatch, batch_limits, conditions, other_sizes, resized

__all__ = ["of_one_size", "with_free_sizes"]

TURNS = 4
"""Tracings at most to find the sizes that may be free."""

PROOFS = 3
"""Other sizes tried at most, where the network fails on the first."""


def with_free_sizes(
    model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> tuple[Graph | None, tuple[str, ...]]:
    """The graph with every size free that may vary, and why the others are fixed. The graph is None where the network
    has to be traced with all sizes of the example."""
    inputs = (*args, *kwargs.values())
    fixed: dict[tuple[int, int], str] = {}
    names: list[str] = []
    oblivious = True
    try:
        # Each round traces the network once, and either fixes a size or ends.
        for _ in range(TURNS):
            opened = [{d for d in range(1, x.dim()) if (i, d) not in fixed} for i, x in enumerate(inputs)]
            if not any(opened):
                break
            watch = GuardWatch(model)
            with watch.watching(oblivious=oblivious):
                exported = export(model, args, kwargs, opened)
            reader = Reader(model, exported, args, kwargs)
            try:
                graph = reader.graph()
            except UndecidedError:
                if not oblivious:
                    raise
                oblivious = False
                continue
            names = [i.name for i in graph.inputs]
            found = conditions(reader.placeholders, opened, watch)
            for place, (layer, line) in found.fixed.items():
                fixed[place] = _reason(graph, layer, line) or f"{type(model).__name__}.forward"
            if not any(isinstance(dim, Size) for i in graph.inputs for dim in i.shape[1:]):
                return of_one_size(model, reader, graph, args, kwargs), _reasons(fixed, names, inputs)
            if any(isinstance(graph.inputs[i].shape[d], Size) for i, d in found.fixed):
                if len(fixed) == sum(x.dim() - 1 for x in inputs):
                    return _with_numbers(model, exported, reader, args, kwargs), _reasons(fixed, names, inputs)
                continue
            limits = dict.fromkeys((*found.as_sizes(reader.symbols), *reader.limits))
            graph = _proved(model, replace(graph, limits=tuple(limits)), args, kwargs)
            return graph, _reasons(fixed, names, inputs)
    except TraceError as error:
        return None, (f"sizes as in the example, since with free ones {error}",)
    return None, _reasons(fixed, names, inputs)


def _with_numbers(
    model: nn.Module, exported: Any, reader: Reader, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> Graph | None:
    """The graph of a program that was traced with open sizes, all of which turned out to be fixed: those of the example
    in their place, which saves the time of tracing again.

    None where that is not what tracing with the example's sizes gives: with open ones the code may take another way, or
    ask something of the batch; nor where an operator without a rule keeps it from being compared.
    """
    numbers = {symbol: Integer(reader.example[name]) for symbol, name in reader.symbols.items() if name != BATCH}
    try:
        reader = Reader(model, exported, args, kwargs, numbers)
        graph = of_one_size(model, reader, reader.graph(), args, kwargs)
    except TraceError:
        return None
    if graph.limits or any(node.role is Role.UNKNOWN for node in graph.nodes):
        return None
    return graph if same(model, graph, args, kwargs) else None


def of_one_size(
    model: nn.Module, reader: Reader, graph: Graph, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> Graph:
    """A graph whose sizes, but for the batch, are those of the example: with its limits on the batch, and with the
    operators across the batch marked."""
    graph = replace(graph, limits=(*batch_limits(reader.placeholders, reader.symbols, reader.numbers), *reader.limits))
    return with_one_sample(model, across_batch_marked(graph, args, kwargs), args, kwargs)


def _reason(graph: Graph, layer: str, line: str) -> str:
    source = next((n.source for n in graph.nodes if layer and n.layer == layer and n.source), "") or _user_place(line)
    return " at ".join(part for part in (f"layer '{layer}'" if layer else "", source) if part)


def _user_place(line: str) -> str:
    return "" if "torch/" in line else line.rpartition("/")[2]


def _reasons(fixed: Mapping[tuple[int, int], str], names: Sequence[str], inputs: Sequence[Tensor]) -> tuple[str, ...]:
    """One line of text for each cause: the dimensions that it fixes, then the cause."""
    grouped: dict[str, list[str]] = {}
    for (i, d), reason in sorted(fixed.items()):
        grouped.setdefault(reason, []).append(f"{names[i]}.{d} = {inputs[i].shape[d]}")
    return tuple(f"{', '.join(sizes)} fixed by {reason}" for reason, sizes in grouped.items())


def _proved(model: nn.Module, graph: Graph, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Graph:
    """The graph, if it computes on another size what the model does; else a `TraceError`."""
    unknown = next((node for node in graph.nodes if node.role is Role.UNKNOWN), None)
    if unknown is not None:
        raise TraceError(f"{unknown.target} has no rule")
    example = graph.bind(args, kwargs)
    said = "no other size meets its conditions"
    for sizes in itertools.islice(other_sizes(graph), PROOFS):
        # A batch of one is tested separately, since networks may treat it in a way of their own (`batch.py`).
        for batch in dict.fromkeys((sizes[BATCH], graph.batch(2))):
            env = {i.name: resized(example[i.name], i.shape, {**sizes, BATCH: batch}) for i in graph.inputs}
            changes: list[str] = []
            try:
                is_same = same(model, graph, *graph.call_of(env), changes)
            except Exception as error:  # noqa: BLE001 - a network raises what it likes
                said = f"another size fails ({(str(error).splitlines() or [''])[0]})"
                continue
            if not is_same:
                said = f"its output for inputs of shape {[tuple(x.shape) for x in env.values()]} is another"
                continue
            check_memory(model, args, kwargs, changes)
            # What runs across the batch does not depend on these sizes, and the example's may be large.
            two = {i.name: resized(example[i.name], i.shape, {**sizes, BATCH: 2}) for i in graph.inputs}
            graph = across_batch_marked(graph, *graph.call_of(two))
            return graph if batch == sizes[BATCH] else with_one_sample(model, graph, args, kwargs)
        if "is another" in said:
            break
    raise TraceError(said)
