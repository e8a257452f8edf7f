"""Whether a graph computes what its network does, and which of its operators take several time-steps as one batch."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from parspike.errors import InputError, TraceError
from parspike.graph import ops
from parspike.graph.ir import Graph, Node, Schedule, Stream, leaves, walk
from parspike.graph.ops import Role
from parspike.graph.quiet import outputs, quiet
from parspike.graph.read import plain
from parspike.graph.sizes import other_sizes, resized
from parspike.graph.wide import Wide, WithEps, wide, wide_dtype, widened

__all__ = [
    "across_batch_marked",
    "alike",
    "check_rewritten",
    "check_same",
    "equal_numbers",
    "same",
    "tensors_of",
    "two_samples",
    "unlike",
]


NEAR = 1e-6
"""How far network and graph may be apart in float64, as a share of the largest value: other kernels round otherwise."""
EXACT = 1e-9
"""How far a value may be moved by rewriting, in float64, as a share of its tensor's largest."""
CANCELLED = 1e-5
"""Values that are smaller than this share of what they were summed from are compared as if they were as large: SiLU of
1e-8 is 0.278 above its lowest value, less 0.278."""
NEARLY = 1e-4
"""How far a sample's value may be moved by the other samples of its batch, as a share of the largest: kernels round by
its place."""
CLOSE = {torch.float16: 2e-2, torch.bfloat16: 2e-2}
"""How far network and graph may be apart in their own type, where they cannot be compared in float64."""


def same(
    model: nn.Module, graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor],
    changes: list[str] | None = None,
) -> bool:  # fmt: skip
    """Whether a graph, before any rewriting, computes what its network does. It runs the same kernels in the same
    order, so the bits should be equal; where they are not, the values must agree in float64, or, if the network cannot
    run in float64, be close.

    A tolerance on the outputs would not do: in a network with rounding, maxima or thresholds the last bit may grow to a
    large difference, and a tolerance above that would also accept a wrong constant. changes: see `quiet.outputs`.
    """
    of_model = plain(outputs(model, args, kwargs, changes))
    with quiet():
        of_graph = graph.run(*args, **kwargs)
        if not equal_numbers(of_model, of_graph):
            return False
        wanted, found = tensors_of(of_model), tensors_of(of_graph)
        if _apart(wanted, found) == 0:
            return True
        try:
            twin = copy.deepcopy(model).to(torch.float64)
            given, named = pytree.tree_map(wide, (tuple(args), dict(kwargs)))
            floats = [x.dtype for x in (*args, *kwargs.values(), *model.parameters()) if x.is_floating_point()]
            with Wide(), WithEps(floats[0] if floats else torch.float32):
                wanted_wide = tensors_of(plain(outputs(twin, given, named)))
                return _apart(wanted_wide, tensors_of(widened(graph).run(*given, **named))) < _allowed(graph, floats)
        except Exception:  # noqa: BLE001 - a network that cannot be copied, or has a kernel without float64
            return alike(wanted, found)


def _allowed(graph: Graph, floats: Sequence[torch.dtype]) -> float:
    """How far network and graph may be apart in float64: where forward rounds weights to half precision (autocast), the
    graph holds them rounded, and the network in float64 does not."""
    rounded = {t.dtype for t in graph.tensors.values() if t.dtype in CLOSE}.difference(floats)
    return max((CLOSE[dtype] for dtype in rounded), default=NEAR)


def check_same(model: nn.Module, graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> None:
    """Raise `TraceError` unless the graph computes what the network does, on three samples, or on the next larger batch
    that its limits allow."""
    if any(node.role is Role.UNKNOWN for node in graph.nodes):
        return
    number = graph.batch(3)
    places = torch.arange(number) % 2
    given = [x[places.to(x.device)] for x in two_samples([*args, *kwargs.values()])]
    args, kwargs = given[: len(args)], dict(zip(kwargs, given[len(args) :], strict=True))
    try:
        is_same = same(model, graph, args, kwargs)
    except Exception as error:  # the user's code may raise any exception
        raise TraceError(
            f"{type(model).__name__} takes no batch of {number} (a shape written as a number, or computed from the "
            f"batch size with len or int): use x.shape[0] or -1 there ({(str(error).splitlines() or [''])[0]})"
        ) from error
    if not is_same:
        raise TraceError(
            f"the traced graph of {type(model).__name__} gives another output than the network on a batch of {number}: "
            "tracing fixed a number that forward computes from the batch size or from values (len, int, .item()); "
            "use x.shape[0] or tensor operations there. If there is none, please report it, with the network"
        )


def check_rewritten(
    source: Graph, made: Graph, means: Mapping[str, str], args: Sequence[Tensor], kwargs: Mapping[str, Tensor]
) -> None:
    """Raise `TraceError` unless a rewritten graph has the values of the one that it was made from, both in float64.

    means: of every node of `made` whose value is one of `source`'s, the node of `source`. Each such value is compared
    by itself, made of values that are the source's to the bit: what a rewriting changes is seen where it stands, also
    in a network whose output hardly depends on it, and no rounding grows on its way through later layers.
    Of four samples two have noise added, so that a tie of the example's values cannot decide. Inputs are small, to save
    time: a rewriting is right for all sizes or for none. Where the network does not take the size or the values (it
    makes places in a table of them), the example's size is taken, then noise within the range that the example has at
    each place (columns of a table are not alike), then the example itself.
    """
    if any(node.role is Role.UNKNOWN for node in source.nodes):
        return
    example = source.bind(args, kwargs)
    for seed in range(2):
        noisy = {name: _with_noise(x, seed) for name, x in example.items()}
        within = {name: _within(x, example[name]) for name, x in noisy.items()}
        smaller = {name: _with_noise(x, seed) for name, x in _smaller(source, example).items()}
        itself = {name: _with_noise(x, seed, 0.0) for name, x in example.items()}
        for given in (smaller, noisy, within, itself):
            try:
                differs = _first_difference(source, made, means, {name: wide(x) for name, x in given.items()})
            except (RuntimeError, IndexError):
                if given is itself:
                    raise
                continue
            if differs is None or differs[2]:
                break
        if differs is None:
            return
    node, difference, _ = differs
    raise TraceError(
        f"layer '{node.layer}', {node.target} at {node.source or 'unknown line'}: rewriting changed its value by "
        f"{difference:.2g} of its largest (allowed: {EXACT:g}). This is a fault of parspike: report it, with the "
        "network"
    )


def _first_difference(
    source: Graph, made: Graph, means: Mapping[str, str], given: Mapping[str, Tensor]
) -> tuple[Node, float, bool] | None:
    """The first node of `made` whose value is another than its node's of `source`, by how much, and whether the latter
    is defined (no NaN)."""
    order = {node.name: place for place, node in enumerate(source.nodes)}
    turns: list[tuple[bool, Node]] = []  # whether a node is one of `made`
    place = 0
    for node in made.nodes:
        until = order.get(means.get(node.name, ""), -1) + 1
        turns += [(False, source.nodes[i]) for i in range(place, until)]
        place = max(place, until)
        turns.append((True, node))
    last: dict[tuple[bool, str], int] = {}
    for turn, (is_made, node) in enumerate(turns):
        last.update({(is_made, name): turn for name in (node.name, *node.refs)})
        if is_made and node.name in means:
            last[False, means[node.name]] = turn
    streams = {
        False: Stream(dict(given), source.tensors, source.sizes(given)),
        True: Stream(dict(given), made.tensors, made.sizes(given)),
    }
    gone: dict[int, list[tuple[bool, str]]] = {}
    for key, turn in last.items():
        gone.setdefault(turn, []).append(key)
    with quiet(), Wide(), _alone():
        for turn, (is_made, node) in enumerate(turns):
            stream = streams[is_made]
            args, kwargs = stream.arguments(node)
            value = ops.call(node.target, args, kwargs)
            if is_made and node.name in means:
                wanted = streams[False].env[means[node.name]]
                difference = _apart(tensors_of(wanted), tensors_of(value))
                if difference > EXACT:
                    difference = _apart(tensors_of(wanted), tensors_of(value), CANCELLED * _largest(args))
                if difference > EXACT:
                    return node, difference, not any(bool(x.isnan().any()) for x in tensors_of(wanted))
                value = wanted
            stream.env[node.name] = value
            for side, name in gone.get(turn, ()):
                streams[side].env.pop(name, None)
    return None


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Run on one thread. torch runs a grouped convolution of float64 group by group; on busy cores, threads that wait
    for each other at every group take a hundred times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _smaller(graph: Graph, env: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs cut to the smallest sizes that meet the graph's limits."""
    own = math.prod(graph.example.values())
    for sizes in itertools.islice(other_sizes(graph), 1):
        if math.prod(sizes.values()) < own:
            return {i.name: resized(env[i.name], i.shape, sizes) for i in graph.inputs}
    return env


def _with_noise(x: Tensor, seed: int, much: float = 1.0) -> Tensor:
    """Two samples as they are, then two with noise; inputs of whole numbers get no noise. much: the noise's deviation,
    of the values' own."""
    x = x[:2]
    if not x.is_floating_point():
        return torch.cat([x, x])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    spread = much * (x.std() if x.numel() > 1 and bool(x.std() > 0) else 1.0)
    return torch.cat([x if seed == 0 else x + 1e-3 * spread * noise.flip(0), x + spread * noise])


def _within(x: Tensor, example: Tensor) -> Tensor:
    """Values moved into the range that an example has at their place in a sample."""
    return x.clamp(example.amin(0), example.amax(0)) if example.is_floating_point() else x


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of a tree, in order."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def equal_numbers(wanted: Any, found: Any) -> bool:
    """Whether two outputs have the same numbers beside their tensors, such as sizes of the input."""
    one, two = ([leaf for leaf in leaves(tree) if isinstance(leaf, (int, float))] for tree in (wanted, found))
    return len(one) == len(two) and all(a == b or (a != a and b != b) for a, b in zip(one, two, strict=True))


def _largest(tree: Any) -> float:
    """The largest finite number that a node reads."""
    numbers = [float(torch.nan_to_num(x.double(), 0, 0, 0).abs().max()) for x in tensors_of(tree)
               if x.numel() and not x.is_complex()]  # fmt: skip
    return max((*numbers, *(abs(x) for x in leaves(tree) if isinstance(x, float) and math.isfinite(x))), default=0.0)


def _apart(wanted: Sequence[Tensor], found: Sequence[Tensor], least: float = 0.0) -> float:
    """The largest difference of two lists of tensors as a share of the largest value of its tensor, or of `least`
    where that is more; 0: equal bits."""
    largest = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return math.inf
        if torch.equal(a, b):
            continue
        if wide_dtype(a.dtype) is None:
            return math.inf
        a, b = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in (wide(a), wide(b)))
        if not torch.equal(a.isnan(), b.isnan()):
            return math.inf
        difference = torch.where((a == b) | a.isnan(), 0.0, (a - b).abs())
        size = torch.nan_to_num(a, nan=0, posinf=0, neginf=0).abs().max().clamp(min=least)
        largest = max(largest, float(difference.max() / size.clamp(min=torch.finfo(a.dtype).tiny)))
    return largest


def across_batch_marked(graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> Graph:
    """The graph, with `ACROSS_BATCH` as the reason of each operator that cannot run on several time-steps as one batch.

    The engines that send spikes lay the time-steps of a run one after the other in the batch dimension, (T·B, …). Here
    two batches take the part of two time-steps: each operator runs on either and on both as one. One that gives another
    result on both together, such as a reshape that joins heads and batch, becomes analog and runs on the time-means.
    Raises `TraceError` where the output for a sample depends on the other samples of the batch.
    """
    if any(node.role is Role.UNKNOWN for node in graph.nodes):
        return graph
    given = {name: value[:2] for name, value in graph.bind(args, kwargs).items()}
    try:
        return _across_batch_marked(graph, {name: unlike(value) for name, value in given.items()})
    except _FailsError as error:
        try:  # the network may not take other values than the example's
            return _across_batch_marked(graph, given)
        except _FailsError:
            raise TraceError(str(error)) from error.__cause__


class _FailsError(Exception):
    """An operator failed on two samples, or on four."""


def _across_batch_marked(graph: Graph, one: dict[str, Tensor]) -> Graph:
    # The second sample twice, and the first one twice: the largest of a batch may be in either.
    two, other = ({name: value[i : i + 1].repeat(2, *[1] * (value.dim() - 1)) for name, value in one.items()}
                  for i in (1, 0))  # fmt: skip
    both = {name: torch.cat([one[name], two[name]]) for name in one}
    streams = [Stream(env, graph.tensors, graph.sizes(env)) for env in (one, two, both, other)]
    varying, across, mixing = set(one), set(), list[Node]()
    with quiet():
        for step in Schedule.of(graph.nodes, graph.outputs).steps:
            node = step[0]
            try:
                walk(Schedule((step,)), streams)
            except (RuntimeError, IndexError, ValueError) as error:
                raise _FailsError(
                    f"layer '{node.layer}', {node.target} at {node.source or 'unknown line'} takes no other batch size "
                    "than the example's (a shape written as a number, or a loop over samples): use x.shape[0] or -1 "
                    f"where the batch size stands in the code ({str(error).splitlines()[0]})"
                ) from error
            if node.name not in both or not any(ref in varying for ref in node.refs):
                continue  # computed from sizes alone, so computed anew for every batch
            found = next(iter(tensors_of(one[node.name])), None)
            if found is not None and found.dim() != len(node.shape):
                # torch does so for `unbind` along a free size of 1.
                raise _FailsError(
                    f"layer '{node.layer}', {node.target} at {node.source or 'unknown line'} has {found.dim()} "
                    f"dimensions, and torch traces it with {len(node.shape)}"
                )
            varying.add(node.name)
            if node.batch_dim is None:
                mixing.append(node)
                if any(not x.is_floating_point() and not x.is_complex() for x in tensors_of(both[node.name])):
                    raise TraceError(_mixes([node]))  # a place or a number of them may be the same in any two batches
                continue
            repeated = _repeated(one[node.name], two[node.name], node, 1)
            before = _repeated(one[node.name], other[node.name], node, 0)
            if repeated is two[node.name] and before is other[node.name]:
                mixing.append(node)
            two[node.name], other[node.name] = repeated, before
            joined = _joined(one[node.name], two[node.name], node.batch_dim)
            if node.role is not Role.ANALOG and not alike(joined, both[node.name], NEARLY):
                across.add(node.name)
            both[node.name] = joined
    none = dict.fromkeys(graph.constant)
    for sample, twice in ((1, two), (0, other)):
        both = [graph.collect({**env, **none}, streams[0].sizes) for env in (one, twice)]
        _check_samples(both[0], both[1], sample, mixing)
    nodes = [replace(n, role=Role.ANALOG, reason=ops.ACROSS_BATCH) if n.name in across else n for n in graph.nodes]
    return replace(graph, nodes=tuple(nodes))


def _repeated(one: Any, twice: Any, node: Node, place: int) -> Any:
    """The value that a sample has in `one`, twice, where `twice` equals it up to rounding. Kernels round a sample
    differently at another place of the batch, and thresholds behind would make a large difference of that. A dimension
    may hold more than the batch (windows of each image). place: of the sample, 0 or 1."""
    dim = node.batch_dim
    if not isinstance(one, Tensor) or dim is None or one.shape[dim] % 2 or not one.is_floating_point():
        return twice
    half = one.shape[dim] // 2
    sample = one.narrow(dim, place * half, half)
    expected = torch.cat([sample, sample], dim)
    return expected if _apart([expected], [twice]) <= CLOSE.get(one.dtype, NEARLY) else twice


def _joined(one: Any, two: Any, dim: int) -> Any:
    if isinstance(one, Tensor):
        return torch.cat([one, two], dim) if one.dim() > dim else one
    return type(one)([_joined(a, b, dim) for a, b in zip(one, two, strict=True)])


def alike(wanted: Any, found: Any, near: float = 1e-2) -> bool:
    """Whether two trees of tensors are equal up to rounding in their own type, of the largest value. near: how far they
    may be apart where their type has 24 bits or more."""
    pairs = list(zip(tensors_of(wanted), tensors_of(found), strict=True))
    return all(_apart([a], [b]) <= CLOSE.get(a.dtype, near) for a, b in pairs)


def unlike(x: Tensor) -> Tensor:
    """Two samples that differ: where the example's are equal (all zero, say), noise is added to one."""
    if not x.is_floating_point() or not torch.equal(x[0], x[1]):
        return x
    noise = torch.randn(x[1:].shape, generator=torch.Generator().manual_seed(0)).to(x)
    return torch.cat([x[:1], x[1:] + noise])


def _check_samples(one: Any, twice: Any, sample: int, mixing: Sequence[Node]) -> None:
    """Raise `TraceError` where a sample's output depends on the others. one: outputs for two samples; twice: for one of
    them, `sample`, given twice. mixing: the nodes that may be why."""
    for a, b in zip(leaves(one), leaves(twice), strict=True):
        if not isinstance(a, Tensor):
            continue
        if a.dim() == 0 or a.shape[0] != 2 or not alike(torch.cat([a[sample : sample + 1]] * 2), b, NEARLY):
            raise TraceError(_mixes(mixing))


def _mixes(mixing: Sequence[Node]) -> str:
    place = f" at {mixing[0].source}" if mixing and mixing[0].source else ""
    where = f", in layer '{mixing[0].layer}'{place}" if mixing else ""
    return (
        f"the network mixes the samples of a batch{where} (its output for one sample depends on the others, or has no "
        "batch dimension first): the first dimension of every input and output must be the batch"
    )


def two_samples(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors with at least two different samples, since torch.export fixes a batch of one."""
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise InputError(f"example inputs must be tensors of shape (batch, …), got {type(tensor).__name__}")
        if tensor.dim() == 0:
            raise InputError(
                "an example input is a tensor of one number, without a batch: inputs are batches, (B, …); convert a "
                f"module around the network whose forward passes {tensor.item() if not tensor.is_meta else 'it'} on"
            )
        if tensor.shape[0] == 0:
            raise InputError(f"an example input has shape {tuple(tensor.shape)}: it needs at least one sample, (B, …)")
        if tensor.is_meta or tensor.layout is not torch.strided:
            kind = "on the meta device" if tensor.is_meta else f"sparse ({tensor.layout})"
            raise InputError(f"an example input is {kind}: give a dense tensor with numbers, such as x.to_dense()")
    if all(tensor.shape[0] > 1 for tensor in tensors):
        return tuple(tensors)
    return tuple(torch.cat([t[:1], t[:1].flip(-1)]) if t.dim() > 1 else t[:1].repeat(2) for t in tensors)
