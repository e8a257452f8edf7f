"""Values as whole numbers on grids, and what brings them together: nodes of the network in the making.

Real value = grid · whole number. A grid is finer by a whole factor where branches of a sum meet, and even along what is
added up. Where sums would reach 2^53, what is multiplied is rounded to fewer bits (`Grids.coarse`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parspike.graph import Input, Node, Param, Ref, Role, Size, Stream
from parspike.graph.ops import TABLE, WHOLE, call
from parspike.graph.signature import Conv, arguments
from parspike.lower.neurons import EVEN, Refused, quanta
from parspike.lower.prepared import SUMS, free, without_casts, without_constants
from parspike.lower.products import with_products
from parspike.neurons import Even, IntegrateFire, SpikingLayer
from parspike.snn import SNN

__all__ = [
    "ALIKE", "FIXED", "PRECISE", "UNLIKE", "Grids", "Value", "chooses", "grids_of", "input_node", "reach", "sample",
    "squeezed",
]  # fmt: skip

FIXED = "whole numbers are made for the sizes of the images that integers was given"
PAIR = ("parspike.rising", "parspike.falling")
"""Operators of the two layers of neurons of an activation that falls and then rises."""
FINEST = 10
"""Bits by which the grid of a sum may be finer than that of its finer branch."""
PRECISE = 1 << 4
"""Fineness of a grid from which on the factors of a sum's branches may be rounded."""
ALIKE = 1 << 6
"""Fineness of a grid for all channels against the finest of theirs: factors are rounded as weights of 7 bits are."""
UNLIKE = 1 << 16
"""Parts of the largest of several values below which the grid of another one is not looked at."""
ROOM = 1 << 20
"""Largest sum up to which a grid is made finer for the sake of precision: float32 then still holds the sums behind."""


@dataclass(frozen=True)
class Value:
    """Real value = grid · whole number. name: the node that holds the whole number. like: the node of the real value.
    grid: float64, above 0, broadcasts against (1, one sample). most: the largest magnitude of the whole number. parts:
    the grids of the results of an operator that has several, whole (1, one sample); its grid is that of the first.
    function: a node that is still to be computed of it, by the neurons behind."""

    name: str
    like: Node
    grid: Tensor
    most: float
    parts: tuple[Tensor, ...] = ()
    function: Node | None = None


class Grids:
    """The network in the making: its nodes and tensors so far, and the whole numbers that stand for each value."""

    def __init__(self, snn: SNN, bits: int, given: tuple[Input, ...], room: tuple[float, bool]) -> None:
        self.given = given
        self.room, self.tight = room
        fixed = replace(snn.graph.at_example(FIXED), tensors=dict(snn.tensors()))
        self.source = with_products(without_constants(without_casts(fixed)))
        self.neurons, self.simulation, self.over_time = snn.neurons(), snn.simulation, snn.over_time
        self.top, self.provenance = 2 ** (bits - 1) - 1, snn.provenance
        self.readers = self.source.consumers()
        self.outer = {i.name for i in given}
        self.rooms = {path.partition(".")[0] for path in self.source.tensors}
        self.nodes: dict[str, Node] = {}
        self.tensors: dict[str, Tensor] = {}
        self.made: dict[str, SpikingLayer] = {}
        self.values: dict[str, Value] = {}
        self.tokens: set[str] = set()
        """Values that are whole by themselves: inputs of a whole type, and what is computed of them alone and is of
        such a type too."""
        self.met: list[Stream] = []
        """These values for the images given."""
        self.tail: dict[str, Node] = {}
        """What is computed of the answer in real numbers: no neuron and no synapse comes behind it."""
        self.entries: list[str] = []
        """Nodes of float32 where real numbers have become whole."""
        self.ahead: set[str] = set()
        """Nodes of the network in front of a neuron or a synapse."""
        for node in reversed(self.source.nodes):
            if any(r.name in self.ahead or self.computes(r) for r in self.readers[node.name]):
                self.ahead.add(node.name)
        self.refused: list[str] = []
        self.most, self.widest = 1.0, ""

    def computes(self, node: Node) -> bool:
        return node.name in self.neurons or TABLE[node.target].weighted

    def put(self, node: Node, suffix: str, value: Tensor) -> Param:
        path = f"{free('whole', self.rooms)}.{node.name}.{suffix}"
        self.tensors[path] = value.detach().clone()
        return Param(path)

    def emit(self, like: Node, suffix: str, target: str, *args: Any, **changes: Any) -> str:
        row = TABLE[target]
        name = free(like.name + suffix, self.outer)
        node = replace(like, name=name, target=target, args=args, kwargs={}, role=row.role, reason=row.reason)
        node = replace(node, **changes)
        self.nodes[node.name] = node
        return node.name

    def keep(self, node: Node, instead: Mapping[str, Value] | None = None) -> str:
        """The node itself on the whole numbers of what it reads; instead: on these in place of them, by name."""
        read = {**self.values, **(instead or {})}

        def renamed(leaf: Any) -> Any:
            return Ref(read[leaf.name].name) if isinstance(leaf, Ref) and leaf.name in read else leaf

        self.nodes[node.name] = node.mapped(renamed)
        self.tensors |= {
            path: self.source.tensors[path] for path in self.nodes[node.name].params if path not in self.tensors
        }
        return node.name

    def times(self, value: Value, factor: Tensor, suffix: str) -> Value:
        """The value on a grid that is finer by whole factors, which may be negative or 0."""
        if bool((factor == 1).all()):
            return value
        if any(n not in (1, size) for n, size in zip(factor.shape, sample(value.like), strict=True)):
            raise Refused("its branches have grids that no factor of one branch can bring together")
        name = self.emit(
            value.like, suffix, "aten.mul.Tensor", Ref(value.name), self.put(value.like, suffix[1:], factor)
        )
        return replace(value, name=name, most=value.most * float(factor.abs().max()))

    def on_one_grid(self, node: Node, values: list[Value]) -> list[Value]:
        """The branches on one grid. The grid is finer than the finest of them, so that the factors of the others, which
        are rounded, are large. Where one branch has a single value for many of another's, the grid cannot vary."""
        values = [self.coarse(node, value, f"branch{i}") for i, value in enumerate(values)]
        shapes = [sample(value.like)[::-1] for value in values]
        for d, size in enumerate(sample(node)[::-1]):
            if size > 1 and any(len(shape) <= d or shape[d] == 1 for shape in shapes):
                values = [
                    self.even(node, value, [-1 - d], f"branch{i}_{d}") if len(shape) > d else value
                    for i, (value, shape) in enumerate(zip(values, shapes, strict=True))
                ]
        others = [value for value in values if value.most] or values  # 0 lies on every grid
        finest = others[0].grid
        for value in others[1:]:
            finest = torch.minimum(finest, value.grid)
        values = [value if value.most else replace(value, grid=finest) for value in values]
        if all(torch.equal(value.grid.expand_as(finest), finest) for value in values):
            return values
        if self._halves(node) and not self.over_time:  # finer than the larger counts is finer than their rounding
            least = torch.maximum(values[0].grid, values[1].grid)
            values = [self._no_finer(node, value, least, f"branch{i}") for i, value in enumerate(values)]
            finest = torch.minimum(values[0].grid, values[1].grid)
        sizes = torch.stack([value.most * value.grid.expand_as(finest) / finest for value in values])
        sizes = sizes.amax(0).clamp(min=1)
        finer = self.bits_of_room(float(sizes.max()))
        if finer < PRECISE and not all(_whole(value.grid / finest) for value in values):
            finer = PRECISE  # whatever it costs: a factor of 1.4 is not 1
        if finer >= PRECISE:
            # Whole numbers of every channel as large as the largest: weights behind have one grid for all channels.
            each = finer * 2.0 ** (sizes.max() / sizes).log2().floor()
            grid = self.fitted(node, finest / each, round_up=False)
        else:
            grid = finest
        return [
            replace(
                self.times(value, (value.grid / grid).round().clamp(min=1), f"_branch{i}_of_{node.name}"), grid=grid
            )
            for i, value in enumerate(values)
        ]

    def _halves(self, node: Node) -> bool:
        """Whether a sum adds the two halves of one activation that falls and then rises: what two layers of neurons
        send, each with a scale and a shift of its own."""
        made = [self.source.by_name[ref] for ref in node.refs if ref in self.source.by_name]
        sent = [name for one in made for name in (one.name, *one.refs[:1]) if name in self.neurons]
        return {self.source.by_name[name].target for name in sent} == {*PAIR}

    def _no_finer(self, node: Node, value: Value, least: Tensor, what: str) -> Value:
        """The value, rounded by powers of two where its grid is finer than `least`."""
        by = (least / value.grid).log2().floor().clamp(0, FINEST)
        most = float(by.max())
        if not most:
            return value
        value = self.times(value, 2.0 ** (most - by), f"_apart_for_{node.name}_{what}")
        value = self._divided(value, 2.0**most, f"_rounded_for_{node.name}_{what}")
        return replace(value, grid=value.grid / 2.0 ** (most - by))

    def bits_of_room(self, most: float) -> float:
        return 2.0 ** max(0, min(FINEST, math.floor(math.log2(ROOM / max(most, 1)))))

    def fitted(self, node: Node, grid: Tensor, most: float = math.inf, *, round_up: bool) -> Tensor:
        """The grid, changed a little so that one count of the neurons that the value goes to is a whole number of it,
        at most `most`. round_up: to a coarser grid, never to a finer one."""
        neuron = self.goes_to(node)
        if neuron is None:
            return grid
        quantum = (neuron.v_threshold / quanta(neuron)).double()
        quantum = quantum.reshape([1] * (grid.dim() - quantum.dim()) + list(quantum.shape))
        if any(n > m for n, m in zip(quantum.shape, grid.shape, strict=True)):
            return grid
        parts = (quantum / grid).clamp(max=most)
        parts = (parts.floor() if round_up else parts.round()).clamp(min=1)
        return torch.where(quantum >= grid, quantum / parts, grid)

    def beside(self, node: Node) -> Value | None:
        """The other branch of the sum that alone reads a value, where its grid is known already and broadcasts."""
        readers = self.readers[node.name]
        if len(readers) != 1 or readers[0].target not in SUMS or node.name in self.source.outputs:
            return None
        others = [self.values[ref] for ref in readers[0].refs if ref in self.values]
        fits = bool(others) and all(
            n in (1, dim) for n, dim in zip(others[0].grid.shape, self.channels_alone(node), strict=False)
        )
        return others[0] if fits and others[0].grid.dim() == len(node.shape) else None

    def channels_alone(self, node: Node) -> list[int]:
        """The shape of a synapse's grid: a number a channel."""
        along = 1 if isinstance(arguments(node), Conv) else len(node.shape) - 1
        return [size if d == along else 1 for d, size in enumerate(sample(node))]

    def goes_to(self, node: Node) -> Even | IntegrateFire | None:
        """The neurons that alone read a value, or a sum or a maximum of it."""
        while len(readers := self.readers[node.name]) == 1 and node.name not in self.source.outputs:
            (node,) = readers
            neuron = self.neurons.get(node.name)
            if neuron is not None:
                return neuron if isinstance(neuron, EVEN) else None
            if node.target not in SUMS and node.role is not Role.ORDER:
                return None
        return None

    def coarse(self, node: Node, value: Value, what: str = "", room: float | None = None) -> Value:
        """The value, rounded to fewer bits where it may be larger than there is room for before it is multiplied."""
        by = 2.0 ** max(0, math.ceil(math.log2(max(value.most, 1) / (room or self.room))))
        if by == 1:
            return value
        if self.over_time:
            raise Refused("its sums reach beyond 2^53, and a part of a value that changes over time is no whole number")
        return self._divided(value, by, f"_coarse_for_{node.name}{what and '_'}{what}")

    def _divided(self, value: Value, by: float, suffix: str) -> Value:
        """The value on a grid that is coarser by a power of two, rounded."""
        half = self.put(value.like, f"half{suffix}", torch.full([1] * len(value.like.shape), by / 2).double())
        added = self.emit(value.like, f"_half{suffix}", "aten.add.Tensor", Ref(value.name), half)
        name = self.emit(
            value.like, suffix, "aten.div.Scalar_mode", Ref(added), by, kwargs={"rounding_mode": "floor"}, reason=WHOLE
        )
        return replace(value, name=name, grid=value.grid * by, most=math.floor(value.most / by + 0.5))

    def even(self, node: Node, value: Value, dims: list[int], what: str = "") -> Value:
        """The value on a grid that does not vary along these dimensions, finer than the finest there, since the factors
        of the others are rounded; but for what is so small beside the largest that it does not count."""
        if torch.equal(value.grid.amin(dims, keepdim=True), value.grid.amax(dims, keepdim=True)):
            return replace(value, grid=value.grid.amin(dims, keepdim=True))
        room = self.room / ALIKE if self.tight else self.room
        value = self.coarse(node, value, f"even{what and '_'}{what}", room)
        most = value.grid.amax(dims, keepdim=True)
        least = torch.maximum(value.grid.amin(dims, keepdim=True), most / UNLIKE)
        grid = least / ALIKE
        if self.tight:
            grid = torch.maximum(grid, most * max(value.most, 1) / self.room)
        factors = (value.grid / grid).round()
        return replace(self.times(value, factors, f"_even_for_{node.name}{what and '_'}{what}"), grid=grid)

    def run(self, node: Node, *values: Tensor | tuple[Tensor, ...]) -> Any:
        env = dict(zip(dict.fromkeys(node.refs), values, strict=True))
        return call(node.target, *Stream(env, self.source.tensors, {"batch": 1}).arguments(node))


def input_node(i: Input) -> Node:
    """A node that stands for an input, to name what is made of it."""
    return Node(i.name, "", (), {}, Role.SYNAPSE, i.name, "", i.shape)


def chooses(tensor: Tensor) -> bool:
    """Whether a tensor holds places, not truth values or numbers."""
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype is not torch.bool


def grids_of(most: Tensor, top: int) -> Tensor:
    """Grids on which magnitudes up to `most` are whole numbers up to `top`; where all is 0 one as fine as the finest of
    the others, so that weights that read it are not large on it."""
    return torch.where(most > 0, most, float(most[most > 0].min()) if bool(most.any()) else 1.0) / top


def reach(value: Value) -> float:
    """The largest magnitude of the real value."""
    return float((value.most * value.grid).max())


def sample(node: Node) -> list[int]:
    """The shape of a node's value for one sample, (1, …)."""
    return [dim({"batch": 1}) if isinstance(dim, Size) else dim for dim in node.shape]


def _whole(ratio: Tensor) -> bool:
    """Whether ratios are whole numbers, up to the rounding of float64."""
    return bool(((ratio - ratio.round()).abs() <= 1e-9 * ratio).all())


def squeezed(grid: Tensor) -> Tensor:
    """The same grid with one entry along each dimension in which it does not vary."""
    for dim in range(grid.dim()):
        if bool((grid == grid.narrow(dim, 0, 1)).all()):
            grid = grid.narrow(dim, 0, 1)
    return grid.clone()
