"""The nodes that an operator is taken apart into."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from parspike.graph.ir import Node, Ref, leaves
from parspike.graph.refusals import judge

__all__ = ["part_of"]


def part_of(
    node: Node, suffix: str, target: str, shape: Sequence[Any], args: tuple[Any, ...], varying: Collection[str], *,
    kwargs: dict[str, Any] | None = None, taken: Collection[str] = (),
) -> Node:  # fmt: skip
    """A part of a node, with the role that the table gives it.

    suffix: what its name and layer add to the node's; "" for the last part, which has both of them. varying: the values
    that depend on the network's input. taken: names that are given already.
    """
    name = f"{node.name}_{suffix}" if suffix else node.name
    while suffix and name in taken:
        name += "_"
    refs = [[leaf for leaf in leaves(arg) if isinstance(leaf, Ref)] for arg in args]
    role, reason = judge(target, [sum(ref.name in varying for ref in each) for each in refs])
    layer = f"{node.layer}.{suffix}" if suffix else node.layer
    return replace(node, name=name, target=target, args=args, kwargs=kwargs or {}, role=role, reason=reason,
                   layer=layer, shape=tuple(shape))  # fmt: skip
