"""What a network does to batches: to one sample alone, and to one batch after another."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from parspike.errors import TraceError
from parspike.graph.ir import BATCH, Graph, Ref, Size, leaves, map_tree
from parspike.graph.kept import Kept
from parspike.graph.ops import ACROSS_BATCH, Role
from parspike.graph.quiet import copied, outputs, quiet
from parspike.graph.read import plain
from parspike.graph.same import alike, equal_numbers, same, tensors_of, unlike
from parspike.graph.sizes import left_out, resized

__all__ = ["check_memory", "with_excepted", "with_one_sample"]


def with_one_sample(model: nn.Module, graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> Graph:
    """The graph, made to treat a batch of one sample as the network does: `x.squeeze()` drops that dimension too.

    torch.export traces with more than one sample and does not see this. Where the network's output for one sample
    differs in its shape alone, the graph is given that shape for it at the very end, behind everything that runs
    several time-steps as one batch. Where it differs otherwise, the graph is limited to more than one sample.
    """
    if graph.batch() != 1 or any(node.role is Role.UNKNOWN for node in graph.nodes):
        return graph
    one = [x[:1] for x in args], {name: x[:1] for name, x in kwargs.items()}
    changes: list[str] = []
    several = replace(graph, limits=(*graph.limits, Size((">", BATCH, 1))))
    try:
        if same(model, graph, *one, changes):
            check_memory(model, args, kwargs, changes)
            return graph
        of_model, of_graph = plain(outputs(model, *one)), graph.run(*one[0], **one[1])
        wanted, found = tensors_of(of_model), tensors_of(of_graph)
    except Exception:  # noqa: BLE001 - a network raises what it likes
        return several
    finally:
        check_memory(model, args, kwargs, changes)
    if not equal_numbers(of_model, of_graph):
        return several
    named = [leaf for leaf in leaves(graph.output) if isinstance(leaf, Ref)]
    nodes = list(graph.nodes)
    made: list[Any] = []
    for ref, a, b in zip(named, wanted, found, strict=True):
        dropped = _dropped(tuple(a.shape), tuple(b.shape))
        if dropped is None or ref.name not in graph.by_name or not alike([a], [b.reshape(a.shape)]):
            return several
        made.append(ref)
        if dropped:
            node = graph.by_name[ref.name]
            name = f"{node.name}_alone"
            if all(other.name != name for other in nodes):
                nodes.append(replace(
                    node, name=name, target="aten.squeeze.dims", args=(ref, dropped), kwargs={}, role=Role.ANALOG,
                    layer=f"{node.layer}.squeeze", reason=ACROSS_BATCH,
                ))  # fmt: skip
            made[-1] = Ref(name)
    names = iter(made)
    output = map_tree(lambda leaf: next(names) if isinstance(leaf, Ref) else leaf, graph.output)
    return replace(graph, nodes=tuple(nodes), output=output)


def with_excepted(model: nn.Module, graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> Graph:
    """The graph without limits that leave out single sizes, such as B ≠ 32 or x.2 ≠ y.2, where it computes there what
    the network does. A network asks whether sizes are those for which it keeps what it made before, as a detector its
    grid, or whether a value has the size already that it is resized to."""
    example = graph.bind(args, kwargs)
    excepting = [limit for limit in graph.limits if isinstance(limit.tree, tuple) and limit.tree[0] == "≠"]

    def without(some: Sequence[Size]) -> Graph | None:
        """The graph without these limits, if it does what the network does where they would not hold. What holds for
        all sizes that the others allow stays."""
        others = replace(graph, limits=tuple(other for other in graph.limits if other not in some))
        found = {limit: left_out(others, limit) for limit in some}
        if not all(found.values()):
            some = [limit for limit, sizes in found.items() if sizes]
            return without(some) if some else None
        with contextlib.suppress(Exception):  # a network raises what it likes
            for sizes in itertools.chain(*found.values()):
                env = {i.name: resized(example[i.name], i.shape, sizes) for i in graph.inputs}
                if not same(model, others, *graph.call_of(env)):
                    return None
            return others
        return None

    if len(excepting) > 1 and (made := without(excepting)) is not None:  # one may leave out what another does
        return made
    for limit in excepting:
        graph = without([limit]) or graph
    return graph


def _dropped(shape: tuple[int, ...], full: tuple[int, ...]) -> list[int] | None:
    """The dimensions of size 1 that the network drops for a batch of one; None where shapes differ otherwise."""
    if shape == full:
        return []
    ones = [d for d in range(1, len(full)) if full[d] == 1]
    for more in range(len(ones) + 1):
        for others in itertools.combinations(ones, more):
            if tuple(n for d, n in enumerate(full) if d not in (0, *others)) == shape:
                return [0, *others]
    return None


def check_memory(
    model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor], changes: Sequence[str]
) -> None:
    """Raise `TraceError` where a network's output depends on what it kept from the batch before.

    changes: the attributes that forward changes; without any it cannot remember.
    """
    if not changes:
        return
    first = [unlike(x[:2]) for x in (*args, *kwargs.values())]
    second = [x.flip(0) for x in first]

    def given(values: Sequence[Tensor]) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
        return copied(values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True)))

    def run(values: Sequence[Tensor]) -> Any:
        positional, keywords = given(values)
        return model(*positional, **keywords)

    with quiet(), Kept(model) as kept, kept.writing():
        run(first)
        after = run(second)
    alone = outputs(model, *given(second))
    if not alike(plain(after), plain(alone)):
        raise TraceError(
            f"{type(model).__name__} remembers one batch in the next, in '{changes[0]}': a spiking network keeps no "
            "state between batches; make it an input, or write it only in training (self.training)"
        )
