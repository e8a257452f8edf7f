"""Products of three and more factors as products of two, such as `einsum("bhnd,bhde,bhn->bhne", q, kv, z)`.

torch contracts the first two, then that with the third, and so on; so do these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from parspike.graph.ir import Node, Param, Ref
from parspike.graph.parts import part_of

__all__ = ["EINSUM", "in_pairs"]

EINSUM = "aten.einsum.default"


def in_pairs(
    node: Node, shapes: Mapping[str, Sequence[Any]], tensors: Mapping[str, Tensor], varying: Collection[str],
    taken: Collection[str],
) -> tuple[list[Node], dict[str, Tensor]] | None:  # fmt: skip
    """The products of two that an einsum of more is made of, the last with its name, and new tensors by path: products
    of the network's own. None where an equation has an ellipsis or a letter twice in an operand.

    shapes: of all values. varying: those that depend on the network's input. taken: names that are given already.
    """
    given, arrow, out = node.args[0].replace(" ", "").partition("->")
    letters = given.split(",")
    if not arrow or "..." in given or any(len({*each}) < len(each) for each in letters):
        return None
    size: dict[str, Any] = {}
    for leaf, each in zip(node.args[1], letters, strict=True):
        shape = tensors[leaf.path].shape if isinstance(leaf, Param) else shapes[leaf.name]
        size |= {letter: n for letter, n in zip(each, shape, strict=True) if size.get(letter, 1) == 1}
    made, new, inside = list[Node](), dict[str, Tensor](), {*varying}
    first, mine = node.args[1][0], letters[0]
    for number, (other, own) in enumerate(zip(node.args[1][1:], letters[1:], strict=True), 2):
        last = number == len(letters)
        after = out if last else "".join(letters[number:]) + out
        kept = out if last else "".join(dict.fromkeys(x for x in mine + own if x in after))
        equation = f"{mine},{own}->{kept}"
        if isinstance(first, Param) and isinstance(other, Param):
            path = f"{node.name}.factor{number}"
            new[path] = torch.einsum(equation, *({**tensors, **new}[leaf.path] for leaf in (first, other)))
            first, mine = Param(path), kept
            continue
        args = equation, [first, other]
        suffix, shape = "" if last else f"factor{number}", node.shape if last else [size[x] for x in kept]
        made.append(part_of(node, suffix, EINSUM, shape, args, inside, taken=taken))
        if not inside.isdisjoint(made[-1].refs):
            inside.add(made[-1].name)
        first, mine = Ref(made[-1].name), kept
    return made, new
