"""Whether a graph computes what its network does, and whether time may be folded into its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from parspike.errors import InputError, TraceError
from parspike.graph import ops
from parspike.graph.ir import Graph, Schedule, Stream, leaves, walk
from parspike.graph.ops import Role
from parspike.graph.quiet import outputs, quiet
from parspike.graph.read import plain

__all__ = ["alike", "check_same", "same", "time_folded", "two_samples", "unlike"]


def same(
    model: nn.Module, graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor],
    changes: list[str] | None = None,
) -> bool:  # fmt: skip
    """Whether network and graph give the same outputs, up to rounding. changes: see `quiet.outputs`."""
    wanted = plain(outputs(model, args, kwargs, changes))
    with quiet():
        found = graph.run(*args, **kwargs)
    return alike(*([leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)] for tree in (wanted, found)))


def check_same(model: nn.Module, graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> None:
    """Raise `TraceError` unless the graph computes what the network does, on three samples or as many as it takes."""
    if any(node.role is Role.UNKNOWN for node in graph.nodes):
        return
    number = graph.batch(3)
    given = [x[torch.arange(number) % 2] for x in two_samples([*args, *kwargs.values()])]
    args, kwargs = given[: len(args)], dict(zip(kwargs, given[len(args) :], strict=True))
    try:
        is_same = same(model, graph, args, kwargs)
    except Exception as error:  # whatever the network raises
        raise TraceError(
            f"{type(model).__name__} takes no batch of {number} (a shape written as a number, or computed from the "
            f"batch size with len or int): use x.shape[0] or -1 there ({(str(error).splitlines() or [''])[0]})"
        ) from error
    if not is_same:
        raise TraceError(
            f"the graph of {type(model).__name__} gives another output than the network on a batch of {number}: a "
            "number that forward computes from the batch size or the values (len, int, .item()) was fixed in tracing; "
            "if there is none, please report it, with the network"
        )


def time_folded(graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> Graph:
    """The graph, proved to run with time folded into its batch; operators that cannot are marked as analog.

    Two batches are run by themselves and as one, time outermost. An operator that gives another result on both
    together (it joins or splits along the batch) runs on the time-means. A network whose output for a sample
    changes with its place or its neighbour mixes samples, and is refused.
    """
    if any(node.role is Role.UNKNOWN for node in graph.nodes):
        return graph
    one = {name: unlike(value[:2]) for name, value in graph.bind(args, kwargs).items()}
    two = {name: value[1:].repeat(2, *[1] * (value.dim() - 1)) for name, value in one.items()}
    both = {name: torch.cat([one[name], two[name]]) for name in one}
    streams = [Stream(env, graph.tensors, graph.sizes(env)) for env in (one, two, both)]
    varying, unfoldable = set(one), set()
    with quiet():
        for step in Schedule.of(graph.nodes, graph.outputs).steps:
            node = step[0]
            try:
                walk(Schedule((step,)), streams)
            except (RuntimeError, IndexError, ValueError) as error:
                raise TraceError(
                    f"layer '{node.layer}', {node.target} at {node.source or 'unknown line'} takes no other batch size "
                    "than the example's (a shape written as a number, or a loop over samples): use x.shape[0] or -1 "
                    f"where the batch size stands in the code ({str(error).splitlines()[0]})"
                ) from error
            if node.name not in both or not any(ref in varying for ref in node.refs):
                continue  # made of sizes alone, so made anew for every batch
            varying.add(node.name)
            if node.batch_dim is None:
                continue
            joined = _joined(one[node.name], two[node.name], node.batch_dim)
            if node.role is not Role.ANALOG and not alike(joined, both[node.name]):
                unfoldable.add(node.name)
            both[node.name] = joined
    _check_samples(graph.collect(one), graph.collect(two))
    nodes = [replace(n, role=Role.ANALOG, reason=ops.UNFOLDABLE) if n.name in unfoldable else n for n in graph.nodes]
    return replace(graph, nodes=tuple(nodes))


def _joined(one: Any, two: Any, dim: int) -> Any:
    if isinstance(one, Tensor):
        return torch.cat([one, two], dim) if one.dim() > dim else one
    return type(one)([_joined(a, b, dim) for a, b in zip(one, two, strict=True)])


def alike(wanted: Any, found: Any) -> bool:
    """Whether two trees of tensors are equal up to rounding: 1 % of the largest value."""
    for a, b in zip(leaves(wanted), leaves(found), strict=True):
        if a.shape != b.shape:
            return False
        if a.is_complex() and b.is_complex():
            a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
        if torch.equal(a, b):
            continue
        if not a.is_floating_point():
            return False
        size = torch.nan_to_num(a, posinf=0, neginf=0).abs().max() if a.numel() else 0
        if not torch.allclose(a, b, rtol=1e-2, atol=1e-2 * float(size), equal_nan=True):
            return False
    return True


def unlike(x: Tensor) -> Tensor:
    """Two samples that differ, since an example's values are the user's and may all be zero."""
    if not x.is_floating_point() or not torch.equal(x[0], x[1]):
        return x
    noise = torch.randn(x[1:].shape, generator=torch.Generator().manual_seed(0)).to(x)
    return torch.cat([x[:1], x[1:] + noise])


def _check_samples(one: Any, two: Any) -> None:
    """one: outputs for two samples; two: for the second of them, twice."""
    for a, b in zip(leaves(one), leaves(two), strict=True):
        if isinstance(a, Tensor) and (a.dim() == 0 or a.shape[0] != 2 or not alike(torch.cat([a[1:], a[1:]]), b)):
            raise TraceError(
                "the network mixes the samples of a batch (its output for one sample depends on the others, or has no "
                "batch dimension first): the first dimension of every input and output must be the batch"
            )


def two_samples(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors with at least two different samples, since torch.export fixes a batch of one."""
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise InputError(f"example inputs must be tensors of shape (batch, …), got {type(tensor).__name__}")
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            raise InputError(f"an example input has shape {tuple(tensor.shape)}: it needs at least one sample, (B, …)")
        if tensor.is_meta or tensor.layout is not torch.strided:
            kind = "on the meta device" if tensor.is_meta else f"sparse ({tensor.layout})"
            raise InputError(f"an example input is {kind}: give a dense tensor with numbers, such as x.to_dense()")
    if all(tensor.shape[0] > 1 for tensor in tensors):
        return tuple(tensors)
    return tuple(torch.cat([t[:1], t[:1].flip(-1)]) if t.dim() > 1 else t[:1].repeat(2) for t in tensors)
