"""Products as linear layers, convolutions of one place, and products of matrices, before a network goes into whole
numbers: those forms are all that a synapse and a product of two values have there.

A product is written in letters, as `einsum` takes them: "bhnd,hde->bhne" is one with a matrix for each head.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from parspike.graph import Graph, Node, Param, Ref, Role, Size
from parspike.graph.signature import named
from parspike.lower.prepared import free

__all__ = ["with_products"]

EINSUM, MATMUL = "aten.einsum.default", "aten.matmul.default"
ADDED = {"aten.baddbmm.default": ("batch1", "batch2"), "aten.addmm.default": ("mat1", "mat2")}
"""Operators that add something to a product, and the arguments that they multiply."""


def with_products(graph: Graph) -> Graph:
    """The graph with other products in the places of `matrix @ x`, of products with a matrix for each head, and of
    `einsum`: of a value with a tensor of the network a linear layer where every element weighs in the same way
    everywhere, else a convolution of one place with groups; of two values a product of matrices. Values are moved
    before and after. What a product adds beside, such as a mask, is a sum of its own."""
    tensors = dict(graph.tensors)
    shapes = {i.name: i.shape for i in graph.inputs} | {name: n.shape for name, n in graph.by_name.items()}
    taken, nodes = set(shapes), []
    for node in graph.nodes:
        made = _Made(node, taken)
        _apart(made)
        found = _letters(node, shapes, tensors)
        sized = None if found is None else _sized(found, node, shapes, tensors)
        if sized is not None and isinstance(other := sized[0][1][0], Param):
            path = free(f"matrix.{node.name}", tensors)
            weight = _weighted(made, *sized, path) if node.role is Role.SYNAPSE and not node.reason else None
            if weight is not None:
                tensors[path] = weight(tensors[other.path])
        elif sized is not None:
            _of_two(made, *sized)
        nodes.extend(made.finished())
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _apart(made: _Made) -> None:
    """A product of two values to which something is added, such as a mask, as a product and a sum."""
    if made.node.target not in ADDED:
        return
    given = named(made.node)
    added, *values = (given[argument] for argument in ("self", *ADDED[made.node.target]))
    if given["beta"] == given["alpha"] == 1 and all(isinstance(value, Ref) for value in values):
        how = {"role": made.node.role, "reason": made.node.reason}
        product = made.put(MATMUL, tuple(values), list(made.node.shape), **how)
        made.put("aten.add.Tensor", (product, added), list(made.node.shape))


Operand = tuple[Any, str]
"""A value or a tensor of the network, and a letter for each of its dimensions."""
Found = tuple[Operand, Operand, str]
"""Both operands, a tensor of the network last, and the letters of the result."""


@dataclass
class _Made:
    """What stands in the place of a product: each node reads the one before it, the last has the product's name."""

    node: Node
    taken: set[str]
    nodes: list[Node] = field(default_factory=list)

    def put(self, target: str, args: tuple[Any, ...], shape: list[Any], **changes: Any) -> Ref:
        name = f"{self.node.name}_part{len(self.nodes)}"
        name = free(name, self.taken)
        self.taken.add(name)
        like = replace(self.node, role=Role.SYNAPSE, reason="", channel_dims=(max(1, len(shape) - 1),))
        self.nodes.append(replace(like, name=name, target=target, args=args, kwargs={}, shape=tuple(shape), **changes))
        return Ref(name)

    def moved(self, value: Ref, one: list[str], other: list[str], size: Mapping[str, Any]) -> Ref:
        if one == other:
            return value
        order = [one.index(letter) for letter in other]
        return self.put("aten.permute.default", (value, order), [size[letter] for letter in other])

    def reshaped(self, value: Ref, one: list[Any], other: list[Any]) -> Ref:
        return value if one == other else self.put("aten.reshape.default", (value, other), other)

    def finished(self) -> list[Node]:
        if not self.nodes:
            return [self.node]
        last = replace(self.nodes[-1], name=self.node.name, shape=self.node.shape, channel_dims=self.node.channel_dims)
        return [*self.nodes[:-1], last]


def _letters(node: Node, shapes: Mapping[str, tuple[Any, ...]], tensors: Mapping[str, Tensor]) -> Found | None:
    """A product in letters; None of what is none, and of one that has a form in whole numbers as it is."""
    args: Any = node.args
    if node.target == EINSUM:
        if len(args[1]) != 2:
            return None
        given, arrow, out = args[0].replace(" ", "").partition("->")
        if not arrow:  # what stands there once, in the order of letters
            once = (letter for letter in given if letter.isalpha() and given.count(letter) == 1)
            out = "..." * ("..." in given) + "".join(sorted(once))
        spare = "".join(letter for letter in string.ascii_letters if letter not in given)
        operands, many = [], ""
        for leaf, letters in zip(args[1], given.split(","), strict=True):
            rank = len(tensors[leaf.path].shape if isinstance(leaf, Param) else shapes[leaf.name])
            # The dimensions of an ellipsis are counted from the last.
            more = spare[: rank - len(letters.replace("...", ""))][::-1] if "..." in letters else ""
            operands.append((leaf, letters.replace("...", more)))
            many = max(many, more, key=len)
        one, two = operands
        out = out.replace("...", many)
    elif node.target == MATMUL and any(isinstance(arg, Param) for arg in args):
        ranks = [len(tensors[arg.path].shape if isinstance(arg, Param) else shapes[arg.name]) for arg in args]
        if min(ranks) < 2 or (isinstance(args[1], Param) and ranks[1] == 2):
            return None
        lead = string.ascii_lowercase[: max(ranks) - 2]
        one, two = (
            (arg, lead[len(lead) - rank + 2 :] + end) for arg, rank, end in zip(args, ranks, ("XY", "YZ"), strict=True)
        )
        out = f"{lead}XZ"
    else:
        return None
    one, two = (one, two) if isinstance(one[0], Ref) else (two, one)
    return (one, two, out) if isinstance(one[0], Ref) else None


def _sized(
    found: Found, node: Node, shapes: Mapping[str, tuple[Any, ...]], tensors: Mapping[str, Tensor]
) -> tuple[Found, dict[str, Any]] | None:
    """The product with the size of every letter. Where one value of an operand is for all along a letter, a tensor is
    without that letter, and a value has another letter there, of size 1. None where no letter says what happens: one
    twice in an operand, or one value for all in a product of two values."""
    *operands, out = found
    shape_of = [tensors[leaf.path].shape if isinstance(leaf, Param) else shapes[leaf.name] for leaf, _ in operands]
    if any(len({*letters}) < len(letters) for letters in (*(letters for _, letters in operands), out)):
        return None
    size: dict[str, Any] = dict(zip(out, node.shape, strict=True))
    for (_, letters), shape in zip(operands, shape_of, strict=True):
        for letter, number in zip(letters, shape, strict=True):
            if size.get(letter, 1) == 1:
                size[letter] = number
    (value, letters), (other, own) = operands
    if isinstance(other, Param):
        own = "".join(x for x, number in zip(own, shape_of[1], strict=True) if number == size[x])
        spare = iter(x for x in string.ascii_letters if x not in size)
        for x, number in zip(letters, shape_of[0], strict=True):
            if number == 1 != size[x]:
                one = next(spare)
                letters, own = letters.replace(x, one), own + one
                size[one] = 1
        return ((value, letters), (other, own), out), size
    alike = all(
        number == size[x] for (_, of), shape in zip(operands, shape_of, strict=True)
        for x, number in zip(of, shape, strict=True)
    )  # fmt: skip
    return (found, size) if alike else None


def _weighted(made: _Made, found: Found, size: Mapping[str, Any], path: str) -> Callable[[Tensor], Tensor] | None:
    """The nodes of a product with a tensor of the network, and what makes their weights, of this path, of the tensor;
    None where a letter stands in one operand alone."""
    (value, letters), (_, own), out = found
    shared = [x for x in letters if x in own and x in out]
    inner = [x for x in letters if x in own and x not in out]
    rest, new = [x for x in letters if x not in own], [x for x in own if x not in letters]
    batch = [x for x in rest if isinstance(size[x], Size)]
    fixed = all(isinstance(size[x], int) for x in own)
    if {*out} != {*shared, *rest, *new} or not fixed or (shared and len(batch) != 1):
        return None
    groups, many, outputs = (math.prod(size[x] for x in each) for each in (shared, inner, new))
    last = value
    if not shared:
        last = made.moved(last, list(letters), [*rest, *inner], size)
        lead = [size[x] for x in rest]
        last = made.reshaped(last, [*lead, *(size[x] for x in inner)], [*lead, many])
        last = made.put("aten.linear.default", (last, Param(path)), [*lead, outputs])
        last = made.reshaped(last, [*lead, outputs], [*lead, *(size[x] for x in new)])
        made.moved(last, [*rest, *new], list(out), size)
        shape = [outputs, many]
    else:  # each group of a convolution of one place has weights of its own
        places = [x for x in rest if x not in batch]
        order = [*batch, *shared, *inner, *places]
        last = made.moved(last, list(letters), order, size)
        first, length = size[batch[0]], math.prod(size[x] for x in places)
        last = made.reshaped(last, [size[x] for x in order], [first, groups * many, length])
        args = (last, Param(path), None, [1], [0], [1], groups)
        last = made.put("aten.conv1d.default", args, [first, groups * outputs, length], channel_dims=(1,))
        order = [*batch, *shared, *new, *places]
        last = made.reshaped(last, [first, groups * outputs, length], [size[x] for x in order])
        made.moved(last, order, list(out), size)
        shape = [groups * outputs, many, 1]
    places_of = [own.index(x) for x in (*shared, *new, *inner)]
    sizes = [size[x] for x in own]
    return lambda tensor: tensor.reshape(sizes).permute(places_of).reshape(shape).contiguous()


def _of_two(made: _Made, found: Found, size: Mapping[str, Any]) -> None:
    """The nodes of a product of two values; none where a letter stands in one operand alone, or the batch beside
    another one where they become one dimension."""
    (one, left), (two, right), out = found
    shared, inner = ([x for x in left if x in right and (x in out) == both] for both in (True, False))
    rows, columns = [x for x in left if x not in right], [x for x in right if x not in left]
    if {*out} != {*shared, *rows, *columns}:
        return
    if any(len(group) != 1 and not all(isinstance(size[x], int) for x in group) for group in (inner, rows, columns)):
        return
    lead = [size[x] for x in shared]
    row, many, column = (
        size[group[0]] if len(group) == 1 else math.prod(size[x] for x in group) for group in (rows, inner, columns)
    )
    order = [*shared, *rows, *inner]
    first = made.moved(one, list(left), order, size)
    first = made.reshaped(first, [size[x] for x in order], [*lead, row, many])
    order = [*shared, *inner, *columns]
    second = made.moved(two, list(right), order, size)
    second = made.reshaped(second, [size[x] for x in order], [*lead, many, column])
    how = {"role": made.node.role, "reason": made.node.reason}
    last = made.put(MATMUL, (first, second), [*lead, row, column], **how)
    order = [*shared, *rows, *columns]
    last = made.reshaped(last, [*lead, row, column], [size[x] for x in order])
    made.moved(last, order, list(out), size)
