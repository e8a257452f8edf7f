"""The graph of a network, and the one walk over it.

A `Graph` is a list of `Node`s in the order in which they run. A node's arguments are plain values and three
kinds of reference: `Ref` (the value of an earlier node or of an input), `Param` (a tensor of the network) and
`Size` (an integer that depends on the sizes of the inputs, such as the batch).

`walk` runs the nodes. What parspike does to a network (recording, calibrating, counting spikes, running in
time, counting operations) is a function placed `at` some nodes of this walk, never another interpreter.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from parspike.errors import InputError
from parspike.graph import ops
from parspike.neurons.pieces import holds_double

__all__ = [
    "Device", "Graph", "Input", "Node", "Param", "Ref", "Schedule", "Size", "Stream", "device_of", "map_tree",
    "on_device_of", "walk", "with_doubles",
]  # fmt: skip

BATCH = "batch"
MOST_TRIED = 4096
"""Batch sizes looked at for one that the limits allow."""


@dataclass(frozen=True)
class Ref:
    """The value of the node or input `name`."""

    name: str


@dataclass(frozen=True)
class Param:
    """The tensor `path` of the network (a parameter, a buffer, or a constant computed when the graph was read)."""

    path: str


@dataclass(frozen=True)
class Device:
    """The device that the network runs on."""


SIZE_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "*": operator.mul, "//": operator.floordiv, "%": operator.mod, "max": max, "min": min,
}  # fmt: skip
CONDITIONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "≠": operator.ne, "<": operator.lt, "≤": operator.le, ">": operator.gt, "≥": operator.ge,
    "and": operator.and_, "or": operator.or_,
}  # fmt: skip
_OPERATIONS = {**SIZE_OPERATIONS, **CONDITIONS}


@dataclass(frozen=True)
class Size:
    """An integer computed from the input sizes, or a condition that they must meet.

    `tree` is an int, a symbol ("batch", or "x.2" for dimension 2 of input x), or (operation, operand, operand …).
    """

    tree: Any

    def __call__(self, sizes: Mapping[str, int]) -> int:
        return _evaluate(self.tree, sizes)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether sizes meet a condition. One that divides by 0 for them is not met."""
        try:
            return bool(self(sizes))
        except ZeroDivisionError:
            return False

    @property
    def symbols(self) -> set[str]:
        """The input sizes that it depends on."""
        return {leaf for leaf in leaves(self.tree) if isinstance(leaf, str) and leaf not in _OPERATIONS}

    def at(self, sizes: Mapping[str, int]) -> Size | int:
        """The expression with some input sizes filled in; an int if no symbol is left."""
        tree = _partial(self.tree, sizes)
        return tree if isinstance(tree, int) else Size(tree)

    def __str__(self) -> str:
        return "B" if self.tree == BATCH else _format(self.tree)


def _evaluate(tree: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(tree, str):
        return sizes[tree]
    if isinstance(tree, int):
        return tree
    operation, *operands = tree
    return functools.reduce(_OPERATIONS[operation], [_evaluate(operand, sizes) for operand in operands])


def _partial(tree: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(tree, str):
        return sizes.get(tree, tree)
    if isinstance(tree, int):
        return tree
    operation, *operands = tree
    operands = [_partial(operand, sizes) for operand in operands]
    if all(isinstance(operand, int) for operand in operands):
        return functools.reduce(_OPERATIONS[operation], operands)
    return (operation, *operands)


def _format(tree: Any) -> str:
    if isinstance(tree, str):
        return "B" if tree == BATCH else tree
    if isinstance(tree, int):
        return str(tree)
    operation, *operands = tree
    texts = [_format(operand) for operand in operands]
    if operation in ("max", "min"):
        return f"{operation}({', '.join(texts)})"
    less = [_negative(operand) for operand in operands] if operation == "+" else [None]
    if any(part is not None for part in less) and None in less:
        first = [text for text, part in zip(texts, less, strict=True) if part is None]
        return "(" + " - ".join((" + ".join(first), *(_format(part) for part in less if part is not None))) + ")"
    return "(" + f" {operation} ".join(texts) + ")"


def _negative(tree: Any) -> Any:
    """What is subtracted, of a term that is below 0 by a factor; else None."""
    if isinstance(tree, int):
        return -tree if tree < 0 else None
    if isinstance(tree, str) or tree[0] != "*" or not isinstance(tree[1], int) or tree[1] >= 0:
        return None
    rest = tree[2:] if tree[1] == -1 else (-tree[1], *tree[2:])
    return ("*", *rest) if len(rest) > 1 else rest[0]


SEEN, SMALL, FEW, WIDE = 1024, 128, 4, 48
"""Conditions whose numbers are at most SMALL are told by what they allow of the sizes 1 … SEEN: a range or multiples,
without FEW of them at most."""


@functools.lru_cache(maxsize=64)
def _told(limits: tuple[Size, ...]) -> tuple[str, ...]:
    """The limits in words. Several on one size are told as what they come to, if that is a range or its multiples.

    >>> half = ("//", "x.2", 2)
    >>> _told((Size((">", half, 0)), Size(("≠", half, 1)), Size(("≠", "x.2", half))))
    ('x.2 ≥ 4',)
    """
    told: list[str] = []
    of: dict[frozenset[str], list[Size]] = {}
    for limit in limits:
        if len(limit.symbols) != 2 or not _follows(limit, limits):
            of.setdefault(frozenset(limit.symbols), []).append(limit)
    for symbols, group in of.items():
        short = _allowed(next(iter(symbols)), group) if len(symbols) == 1 else None
        # One of several that are joined by "and"; an "or" stays in its brackets.
        told.extend([str(limit)[1:-1] if limit.tree[0] != "or" else str(limit) for limit in group]
                    if short is None else short)  # fmt: skip
    return tuple(told)


def _follows(limit: Size, limits: Sequence[Size]) -> bool:
    """Whether a limit on two sizes holds for all sizes up to WIDE that those on one size allow, so need not be told."""
    one, two = sorted(limit.symbols)
    numbers = [leaf for leaf in leaves(limit.tree) if isinstance(leaf, int)]
    if max(map(abs, numbers), default=0) > WIDE // 2:
        return False

    def fit(symbol: str) -> list[int]:
        own = [other for other in limits if other.symbols == {symbol}]
        return [n for n in range(1, WIDE + 1) if all(other.holds({symbol: n}) for other in own)]

    places = fit(one), fit(two)
    return all(places) and all(limit.holds({one: n, two: m}) for n in places[0] for m in places[1])


def _allowed(symbol: str, limits: Sequence[Size]) -> list[str] | None:
    """What limits on one size come to; None if they are short as they are, or that is not said in a few words."""
    parts = [leaf for limit in limits for leaf in leaves(limit.tree)]
    if len(parts) <= 3 or max((abs(n) for n in parts if isinstance(n, int)), default=0) > SMALL:
        return None
    fit = [n for n in range(1, SEEN + 1) if all(limit.holds({symbol: n}) for limit in limits)]
    if not fit:
        return None
    name, first, last = _format(symbol), fit[0], fit[-1]
    step = fit[-1] - fit[-2] if len(fit) > 1 else 1
    left_out = sorted({*range(first, last + 1, step)}.difference(fit))
    if first % step or len(left_out) + len(fit) != len(range(first, last + 1, step)) or len(left_out) > FEW:
        return None
    open_above = last + step > SEEN
    return [
        *([f"({name} % {step}) = 0"] if step > 1 else []),
        *([f"{name} ≥ {first}"] if first > step else []),
        *([] if open_above else [f"{name} ≤ {last}"]),
        *(f"{name} ≠ {n}" for n in left_out),
    ]


@dataclass(frozen=True)
class Input:
    """One tensor input of the network: its per-sample shape has `Size`s where it may vary."""

    name: str
    shape: tuple[Any, ...]
    dtype: torch.dtype

    @property
    def shape_text(self) -> str:
        """The shape as written in messages, such as (B, 3, x.2, x.3)."""
        return _shape(self.shape)


@dataclass(frozen=True)
class Node:
    """One operation.

    name: unique in the graph. target: the operator's name in the op table. args, kwargs: trees of plain values, `Ref`,
    `Param`, `Size`. role: what becomes of it in a spiking network (see `ops.Role`). layer: where in the user's model.
    source: the user's source line. shape: of the (first) output, `Size` where it varies. channel_dims: the dimensions
    that per-channel parameters of a neuron run along (`graph.features` finds them); (0,) where they are shared by all.
    reason: why the role is analog or unknown.
    """

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    role: ops.Role
    layer: str
    source: str = ""
    shape: tuple[Any, ...] = ()
    channel_dims: tuple[int, ...] = (1,)
    reason: str = ""

    @functools.cached_property
    def refs(self) -> tuple[str, ...]:
        """Names of the nodes and inputs that this node reads."""
        return tuple(leaf.name for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Ref))

    @functools.cached_property
    def params(self) -> tuple[str, ...]:
        """Paths of the network's tensors that this node reads."""
        return tuple(leaf.path for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Param))

    def mapped(self, function: Callable[[Any], Any]) -> Node:
        """The node with `function` applied to every leaf of its arguments."""
        return replace(self, args=map_tree(function, self.args), kwargs=map_tree(function, self.kwargs))

    @property
    def factors(self) -> tuple[str, ...]:
        """Paths of the tensors that the operator multiplies by, or takes as those of an activation."""
        row = ops.TABLE.get(self.target)
        multiplies = row is not None and (row.weighted or row.product or row.run in (ops.batch_norm, ops.scale_shift))
        if not multiplies and self.role is not ops.Role.NEURON:
            return ()
        read = self.args[1:] if self.target in ops.SUMS else self.args
        return tuple(leaf.path for leaf in leaves((read, self.kwargs)) if isinstance(leaf, Param))

    @property
    def batch_dim(self) -> int | None:
        """The dimension of the output that the batch runs along, None where the output does not depend on it."""
        return next((d for d, dim in enumerate(self.shape) if isinstance(dim, Size) and BATCH in dim.symbols), None)

    @property
    def _along(self) -> tuple[int, ...]:
        """The dimensions of its channels, none where their number is not fixed."""
        return tuple(d for d in self.channel_dims if 0 < d < len(self.shape) and isinstance(self.shape[d], int))

    @property
    def channels(self) -> int:
        """Number of channels of this node's output along `channel_dims`; 1 where their number is not fixed."""
        return math.prod(self.shape[d] for d in self._along)

    def per_channel(self, vector: Tensor) -> Tensor:
        """Reshape a vector (C,) so that it broadcasts along the channels of this node's output (B, …)."""
        shape = [1] * max(1, len(self.shape))
        for d in self._along:
            shape[d] = self.shape[d]
        return vector.reshape(shape)

    def over_channels(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """A value of this node's shape as (C, everything else). places: which of everything else, (N,), all by
        default; only those are read."""
        along = self._along
        if places is not None:
            last = x.movedim(along, tuple(range(-len(along), 0))) if along else x
            shape = last.shape[: last.dim() - len(along)]
            return last[torch.unravel_index(places, shape)].reshape(len(places), -1).T.contiguous()
        if not along:
            return x.reshape(1, -1)
        return x.movedim(along, tuple(range(len(along)))).flatten(0, len(along) - 1).flatten(1)


def elements(shape: Sequence[Any], sizes: Mapping[str, int]) -> int:
    """Elements of one sample of a shape, for inputs of these sizes."""
    one = {**sizes, BATCH: 1}
    return math.prod(dim(one) if isinstance(dim, Size) else dim for dim in shape)


def leaves(tree: Any) -> Iterator[Any]:
    """Every leaf of a tree of tuples, lists and dicts."""
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from leaves(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from leaves(item)
    else:
        yield tree


def map_tree(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree with `function` applied to its leaves."""
    if isinstance(tree, (tuple, list)):
        return type(tree)([map_tree(function, item) for item in tree])
    if isinstance(tree, dict):
        return {key: map_tree(function, item) for key, item in tree.items()}
    return function(tree)


def device_of(tensors: Iterable[Tensor]) -> torch.device | None:
    """The device that all tensors lie on; None where they lie on several, or there are none."""
    devices = {tensor.device for tensor in tensors}
    return devices.pop() if len(devices) == 1 else None


def on_device_of(tensors: Iterable[Tensor], tree: Any) -> Any:
    """The same tree with its tensors moved to the device that all of `tensors` lie on, so that data that a loader gives
    on the CPU go into a network on a GPU. As it is where these lie on several devices."""
    device = device_of(tensors)
    if device is None or device.type == "meta":
        return tree
    return map_tree(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) and not leaf.is_meta else leaf, tree)


Module = TypeVar("Module", bound=nn.Module)


def with_doubles(module: Module) -> Module:
    """The module itself; where its device has no numbers of 64 bits, as Apple's GPUs, a copy on the CPU."""
    device = device_of((*module.parameters(), *module.buffers()))
    return module if device is None or holds_double(device) else copy.deepcopy(module).cpu()


@dataclass
class Graph:
    """A network as data: inputs, nodes in running order, the tree of outputs, and the tensors that nodes read.

    example: the free input sizes of the example that was traced. limits: conditions that input sizes must meet.
    fixed: in words, why other dimensions of an input cannot vary. norm: of the first batch norm, the node that has its
    value and the standard deviation (C,) that it had on the training data; None where there is none, or untrained.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    output: Any
    tensors: dict[str, Tensor] = field(repr=False)
    signature: tuple[int, tuple[str, ...]] = (1, ())
    """Number of positional inputs, then the names of the keyword inputs."""
    example: Mapping[str, int] = field(default_factory=dict)
    limits: tuple[Size, ...] = ()
    fixed: tuple[str, ...] = ()
    norm: tuple[str, Tensor] | None = None

    def __post_init__(self) -> None:
        self.by_name = {node.name: node for node in self.nodes}

    @property
    def neurons(self) -> tuple[Node, ...]:
        """The activations, in order."""
        return tuple(node for node in self.nodes if node.role is ops.Role.NEURON)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the nodes that the output tree refers to."""
        return tuple(leaf.name for leaf in leaves(self.output) if isinstance(leaf, Ref))

    def unfit(self) -> str | None:
        """The first tensor that no spiking network can compute with: it holds NaN, or Inf where a product or a neuron
        reads it. Masks of attention and the bounds of a clamp may be infinite."""
        finite = {path for node in self.nodes for path in node.factors}
        return next(
            (
                path
                for path, tensor in self.tensors.items()
                if bool((torch.isnan(tensor) if path not in finite else ~torch.isfinite(tensor)).any())
            ),
            None,
        )

    @property
    def constant(self) -> frozenset[str]:
        """The nodes whose values depend on no input, nor on the size of the batch."""
        found: set[str] = set()
        for node in self.nodes:
            sizes = (leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, Size))
            if found.issuperset(node.refs) and not any(BATCH in size.symbols for size in sizes):
                found.add(node.name)
        return frozenset(found)

    def consumers(self) -> dict[str, list[Node]]:
        """For every value, the nodes that read it (a node that reads it twice stands there twice)."""
        table: dict[str, list[Node]] = {name: [] for name in (*(i.name for i in self.inputs), *self.by_name)}
        for node in self.nodes:
            for name in node.refs:
                table[name].append(node)
        return table

    def shape_of(self, node: Node) -> tuple[int | str, ...]:
        """A node's shape for inputs of the example's sizes, for tables: all numbers but the batch."""
        shape = (dim.at(self.example) if isinstance(dim, Size) else dim for dim in node.shape)
        return tuple(dim if isinstance(dim, int) else str(dim) for dim in shape)

    @property
    def taken(self) -> str:
        """The inputs with their shapes, and what is known of their sizes, as one line of text."""
        shapes = ", ".join(f"{i.name} {i.shape_text}" for i in self.inputs)
        return "; ".join(filter(None, (shapes, self.about_sizes)))

    @property
    def about_sizes(self) -> str:
        """Which sizes of inputs may vary, within which limits, and why others may not; "" if nothing is known."""
        parts = [f"free: {', '.join(self.example)}"] if self.example else []
        if told := _told(self.limits):
            parts.append("where " + " and ".join(told))
        return "; ".join((*parts, *self.fixed))

    def __str__(self) -> str:
        lines = [f"input {i.name}: {i.shape_text} {str(i.dtype).removeprefix('torch.')}" for i in self.inputs]
        for node in self.nodes:
            reads = ", ".join((*node.refs, *node.params))
            lines.append(f"{node.name} = {node.target}({reads})  [{node.role}] {node.layer} {_shape(node.shape)}")
        return "\n".join((*lines, "output " + ", ".join(self.outputs)))

    def run(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """The network itself, without any neuron: same outputs as the model that was traced."""
        return self.run_on(self.bind(args, kwargs))

    def run_on(self, env: Mapping[str, Any], at: Mapping[str, Hook] | None = None) -> Any:
        """The output for inputs by name; at: what other than its operator a node computes, by name (see `walk`)."""
        stream = Stream(dict(env), self.tensors, self.sizes(env))
        walk(Schedule.of(self.nodes, self.outputs), [stream], at)
        return self.collect(stream.env, stream.sizes)

    def bind(self, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> dict[str, Any]:
        """A call's arguments by the names of the graph's inputs. Positional ones may come by their names too."""
        positional, names = self.signature
        env = {i.name: arg for i, arg in zip(self.inputs[:positional], args, strict=False)}
        env.update({i.name: kwargs[i.name] for i in self.inputs[len(args) : positional] if i.name in kwargs})
        for i, name in zip(self.inputs[positional:], names, strict=True):
            if name in kwargs:
                env[i.name] = kwargs[name]
        return env

    def call_of(self, env: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Inputs by name as the positional and the keyword arguments of the network: the inverse of `bind`."""
        positional, names = self.signature
        values = [env[i.name] for i in self.inputs]
        return tuple(values[:positional]), dict(zip(names, values[positional:], strict=True))

    def check(self, env: Mapping[str, Any], place: str) -> None:
        """Raise `InputError` naming `place` unless `env` holds every input, in its shape and type, all finite."""
        for i in self.inputs:
            x = env.get(i.name)
            if not isinstance(x, Tensor):
                raise InputError(f"{place}: input '{i.name}' is {type(x).__name__}, {expected_tensor(x)}")
            if x.is_meta or x.layout is not torch.strided:
                kind = "on the meta device, without numbers" if x.is_meta else f"a sparse tensor ({x.layout})"
                raise InputError(f"{place}: input '{i.name}' is {kind}: pass a dense tensor with numbers, x.to_dense()")
            fixed = [d for d, n in zip(i.shape, x.shape, strict=False) if not isinstance(d, Size) and d != n]
            if x.dim() != len(i.shape) or fixed or 0 in x.shape:
                raise self._refused(i, x, place)
            if x.dtype != i.dtype:
                raise InputError(
                    f"{place}: input '{i.name}' is {x.dtype}, this network takes {i.dtype}: pass x.to({i.dtype}), "
                    "prepared as for the network"
                )
            # The sum first: it takes a thirtieth of the time, and is finite only where all values are. Where it is not,
            # large values may have left the range of numbers.
            if x.is_floating_point() and not math.isfinite(x.detach().sum()) and not (finite := x.isfinite()).all():
                first = int(finite.flatten(1).all(1).logical_not().nonzero()[0]) if x.dim() > 1 else 0
                raise InputError(
                    f"{place}: input '{i.name}' holds NaN or Inf, in sample {first} first: leave such samples out"
                )
        sizes = self.sizes(env)
        for i in self.inputs:
            for dim, n in zip(i.shape[1:], env[i.name].shape[1:], strict=True):
                if isinstance(dim, Size) and dim(sizes) != n:
                    raise self._refused(i, env[i.name], place)
        broken = next((limit for limit in self.limits if not limit.holds(sizes)), None)
        if broken is not None:
            read = {str(dim) for dim in broken.symbols}
            i = next((i for i in self.inputs if any(str(dim) in read for dim in i.shape[1:])), self.inputs[0])
            raise self._refused(i, env[i.name], place)

    def _refused(self, i: Input, x: Tensor, place: str) -> InputError:
        said = f"; {self.about_sizes}" if self.about_sizes else ""
        sizes = zip(i.shape[1:], x.shape, strict=False)
        if x.dim() == len(i.shape) - 1 and all(isinstance(d, Size) or d == n for d, n in sizes):
            said = ": it looks like one sample, pass x[None]"
        least = "" if any(BATCH in limit.symbols for limit in self.limits) else ", B ≥ 1"
        return InputError(
            f"{place}: input '{i.name}' has shape {tuple(x.shape)}, this network takes {i.shape_text}{least}{said}"
        )

    def at_example(self, why: str) -> Graph:
        """The same for inputs of the example's sizes alone, of any batch. why: in words, what fixes them."""
        if not self.example:
            return self

        def fill(leaf: Any) -> Any:
            return leaf.at(self.example) if isinstance(leaf, Size) else leaf

        inputs = (replace(i, shape=tuple(map(fill, i.shape))) for i in self.inputs)
        nodes = (replace(node.mapped(fill), shape=tuple(map(fill, node.shape))) for node in self.nodes)
        limits = tuple(limit for limit in map(fill, self.limits) if isinstance(limit, Size))
        return replace(
            self, inputs=tuple(inputs), nodes=tuple(nodes), output=map_tree(fill, self.output), example={},
            limits=limits, fixed=(*self.fixed, why),
        )  # fmt: skip

    def batch(self, least: int = 1) -> int:
        """The smallest batch from `least` on that the limits allow with the example's other sizes."""
        sizes = (n for n in range(least, least + MOST_TRIED) if self.allows({**self.example, BATCH: n}))
        return next(sizes, least)

    def allows(self, sizes: Mapping[str, int]) -> bool:
        """Whether inputs of these sizes meet every limit."""
        return all(limit.holds(sizes) for limit in self.limits)

    def sizes(self, env: Mapping[str, Tensor]) -> dict[str, int]:
        """The value of every symbol of the input shapes."""
        return {
            dim.tree: env[i.name].shape[position]
            for i in reversed(self.inputs)  # reversed, so that the first input with a size sets it
            for position, dim in enumerate(i.shape)
            if isinstance(dim, Size) and isinstance(dim.tree, str)
        }

    def collect(self, env: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
        """The output tree, with a value for every reference, and a number for every size of the inputs."""

        def value(leaf: Any) -> Any:
            return env[leaf.name] if isinstance(leaf, Ref) else leaf(sizes) if isinstance(leaf, Size) else leaf

        return map_tree(value, self.output)


def _shape(shape: tuple[Any, ...]) -> str:
    return "(" + ", ".join(str(dim) for dim in shape) + ")"


@dataclass(frozen=True)
class Schedule:
    """Nodes in running order. After each node, the values whose memory can be freed because no later node reads
    them."""

    steps: tuple[tuple[Node, tuple[str, ...]], ...]

    @classmethod
    def of(cls, nodes: Sequence[Node], keep: Sequence[str], *, seeds: Sequence[str] = ()) -> Schedule:
        """The schedule of `nodes`. Never freed: values named in `keep`, and `seeds`, which the caller put in and
        owns."""
        held, last = {*keep, *seeds}, {}
        for node in nodes:
            for name in (node.name, *node.refs):
                last[name] = node.name
        dead: dict[str, list[str]] = {}
        for name, node_name in last.items():
            if name not in held:
                dead.setdefault(node_name, []).append(name)
        return cls(tuple((node, tuple(dead.get(node.name, ()))) for node in nodes))


@dataclass
class Stream:
    """One run of the graph in progress: values so far, the tensors it reads, the input sizes."""

    env: dict[str, Any]
    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, int]

    def arguments(self, node: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The node's arguments, with a value for every reference."""
        return self._resolve(node.args), self._resolve(node.kwargs)

    def _resolve(self, tree: Any) -> Any:
        if isinstance(tree, Ref):
            return self.env[tree.name]
        if isinstance(tree, Param):
            return self.tensors[tree.path]
        if isinstance(tree, Size):
            return tree(self.sizes)
        if isinstance(tree, Device):
            tensors = (*self.env.values(), *self.tensors.values())
            return next((value.device for value in tensors if isinstance(value, Tensor)), torch.device("cpu"))
        if isinstance(tree, tuple):
            return tuple([self._resolve(item) for item in tree])
        if isinstance(tree, list):
            return [self._resolve(item) for item in tree]
        if isinstance(tree, dict):
            return {key: self._resolve(item) for key, item in tree.items()}
        return tree


Hook = Callable[..., Sequence[Any]]
"""hook(node, *args of each stream) -> output of each stream"""


def walk(schedule: Schedule, streams: Sequence[Stream], at: Mapping[str, Hook] | None = None) -> None:
    """Run a schedule, all streams in lockstep.

    Where a node's name is in `at`, that function is called with the node and, for every stream, the tuple of the
    node's arguments; it returns the outputs, one a stream. Elsewhere the operator itself runs, unless a stream has the
    node's value already.
    """
    at = at or {}
    for node, dead in schedule.steps:
        hook = at.get(node.name)
        if hook is None:
            for stream in streams:
                if node.name not in stream.env:
                    args, kwargs = stream.arguments(node)
                    stream.env[node.name] = ops.call(node.target, args, kwargs)
        else:
            outputs = hook(node, *[stream.arguments(node)[0] for stream in streams])
            for stream, output in zip(streams, outputs, strict=True):
                stream.env[node.name] = output
        for stream in streams:
            for name in dead:
                stream.env.pop(name, None)


def flattened(value: Mapping[Any, Any] | Sequence[Any]) -> str:
    """The remedy for a network whose one input is a dict, a tuple or a list of tensors.

    >>> flattened({"image": 0, "meta.data": 0}).partition("such as ")[2]
    "def forward(self, image, meta_data): return self.network({'image': image, 'meta.data': meta_data})"
    """
    if isinstance(value, Mapping):
        names = [re.sub(r"\W|^(?=\d)", "_", str(key)) for key in value]
        made = ", ".join(f"{key!r}: {name}" for key, name in zip(value, names, strict=True))
        made = f"{{{made}}}"
    else:
        names = list(string.ascii_lowercase[: len(value)])
        inside = ", ".join(names)
        made = f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(names) == 1)})"
    return (
        "convert a module around the network whose forward takes each tensor by itself, such as "
        f"def forward(self, {', '.join(names)}): return self.network({made})"
    )


def expected_tensor(value: object) -> str:
    """What a message tells a caller who passed something other than a tensor."""
    remedy = ""
    if type(value).__module__ == "numpy":
        remedy = ": pass torch.from_numpy(x)"
    elif type(value).__module__.partition(".")[0] == "PIL":
        remedy = ": pass torchvision.transforms.functional.to_tensor(x)[None], prepared as for the network"
    elif isinstance(value, (Mapping, list, tuple)):
        remedy = f": {flattened(value)}"
    elif isinstance(value, (bool, int, float, str)):
        remedy = f": convert a module around the network whose forward passes {value!r} on"
    elif value is None:
        remedy = ": leave out what forward does without"
    return "expected a tensor (B, …)" + remedy
