"""What is done when memory runs out: a batch is run in parts.

Samples of a batch do not depend on each other (`graph.same` proved it when the network was traced), so the parts one
behind the other are what the whole batch would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from parspike.engines.base import Run
from parspike.graph import Graph, Ref, Size
from parspike.graph.ir import BATCH
from parspike.graph.memory import ran_out
from parspike.neurons import joined_trains

__all__ = ["in_parts"]


def in_parts(
    run: Callable[[dict[str, Any]], Run], graph: Graph, env: Mapping[str, Any], most: int | None = None
) -> tuple[Run, int]:
    """The run of a batch, and the largest part of it that was run at once.

    run: of inputs by name. most: the largest part to try, all of the batch if None. Where memory runs out the part is
    halved, down to one sample; then the error is raised as it came. So it is where a batch is no dimension of an
    output, which cannot be put together from parts.
    """
    size = graph.sizes(env).get(BATCH, 1)
    part = min(most or size, size)
    while True:
        try:
            runs = [run(piece) for piece in _pieces(graph, env, part, size)]
            return _joined(runs, graph, graph.sizes(env)), part
        except (RuntimeError, MemoryError) as error:
            smaller = (part + 1) // 2
            if not ran_out(error) or part == 1 or not _divides(graph, graph.sizes(env), smaller):
                raise
        # Outside of `except`, so that the tensors of the run that failed are free.
        part = smaller


def _divides(graph: Graph, sizes: Mapping[str, int], part: int) -> bool:
    """Whether the network takes parts of a batch, the last of which may be smaller, and every output that depends on
    an input has a batch."""
    rest = sizes[BATCH] % part or part
    takes = all(graph.allows({**sizes, BATCH: n}) for n in (part, rest))
    return takes and all(_place(graph, name) is not None or name in graph.constant for name in graph.outputs)


def _place(graph: Graph, name: str) -> int | None:
    """The dimension of a value that is the batch and nothing else."""
    return next((d for d, dim in enumerate(_shape(graph, name)) if isinstance(dim, Size) and dim.tree == BATCH), None)


def _shape(graph: Graph, name: str) -> tuple[Any, ...]:
    inputs = {i.name: i.shape for i in graph.inputs}
    return inputs[name] if name in inputs else graph.by_name[name].shape


def _pieces(graph: Graph, env: Mapping[str, Any], part: int, size: int) -> Iterator[dict[str, Any]]:
    if part == size:
        yield dict(env)
        return
    places = {name: _place(graph, name) for name in env}
    for start in range(0, size, part):
        length = min(part, size - start)
        yield {
            name: x if (d := places[name]) is None else x.narrow(d, start, length) for name, x in env.items()
        }  # fmt: skip


def _joined(runs: Sequence[Run], graph: Graph, sizes: Mapping[str, int]) -> Run:
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    logits = _output(graph.output, [run.logits for run in runs], graph, sizes)
    if not first.recorded:
        return Run(logits, first.T, first.engine)
    # A batch may be merged with other dimensions here, as in attention in windows; samples lie in a row along it, which
    # `graph.same` compared.
    places = {node.layer: node.batch_dim for node in graph.neurons}
    return Run(
        logits, first.T, first.engine, lines=first.lines,
        counts=_Parts([run.counts for run in runs], places, 0),
        spikes=_Parts([run.spikes for run in runs], places, 1),
        sent=_Parts([run.sent for run in runs], places, 0),
        packed=_Parts([run.packed for run in runs], places, 0, joined_trains) if first.as_bits else None,
    )  # fmt: skip


def _output(tree: Any, parts: Sequence[Any], graph: Graph, sizes: Mapping[str, int]) -> Any:
    """The outputs of parts one behind the other. tree: the graph's output, of the same form. sizes: of the whole."""
    if isinstance(tree, Ref):
        place = _place(graph, tree.name)
        if place is None:  # the same for each part
            return parts[0]
        # Outputs after every step have time as their first dimension.
        return torch.cat(list(parts), place + parts[0].dim() - len(_shape(graph, tree.name)))
    if isinstance(tree, Mapping):
        return {key: _output(item, [part[key] for part in parts], graph, sizes) for key, item in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)([_output(item, [part[at] for part in parts], graph, sizes) for at, item in enumerate(tree)])
    return tree(sizes) if isinstance(tree, Size) else parts[0]


@dataclass(frozen=True)
class _Parts(Mapping[str, Any]):
    """Records of parts by layer, put together at each look-up. places: the batch of each layer's neurons. times: how
    many dimensions stand in front of it. join: of values along a dimension."""

    parts: Sequence[Mapping[str, Any]]
    places: Mapping[str, int | None]
    times: int
    join: Callable[..., Any] = torch.cat

    def __getitem__(self, layer: str) -> Any:
        place = self.places[layer]
        values = [part[layer] for part in self.parts]
        return values[0] if place is None else self.join(values, place + self.times)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts[0])

    def __len__(self) -> int:
        return len(self.parts[0])
