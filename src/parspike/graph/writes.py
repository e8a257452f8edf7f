"""In-place operators of an exported program in their functional forms, where that is provably the same.

`run_decompositions` does it for every program, and traces the whole network once more for that. Most in-place
operators, such as `ReLU(inplace=True)`, write into a value of which no other view is read afterwards. They become the
functional operator, and later readers of the value read its result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from parspike.graph.ir import leaves

__all__ = ["pure", "without_writes"]

_fresh = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul batch_norm layer_norm
    group_norm instance_norm max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d relu6 selu softmax log_softmax scaled_dot_product_attention embedding
"""
FRESH = frozenset(_fresh.split())
"""Operators that torch composes of others, and whose output is never the input itself or a view of it."""


def pure(exported: Any) -> bool:
    """Whether no operator of the program writes into a tensor."""
    for fx in exported.graph.nodes:
        schema = getattr(fx.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            return False
        # Plain Python functions compute sizes; anything else without a schema is a control-flow operator with a graph
        # inside.
        if schema is None and fx.op == "call_function" and fx.target.__module__ not in ("_operator", "math", "torch"):
            return False
    return True


def without_writes(exported: Any) -> bool:
    """Replace all in-place operators by functional ones. Returns False, with nothing changed, where that is not
    provably the same."""
    graph = exported.graph
    inputs = set(exported.graph_signature.user_inputs)
    place = {fx: number for number, fx in enumerate(graph.nodes)}
    aliases = _Aliases()
    found: list[tuple[Any, OpOverload]] = []
    for fx in graph.nodes:
        if fx.op == "call_function" and not isinstance(fx.target, OpOverload) and fx.target.__module__ not in (
            "_operator", "math", "torch",
        ):  # fmt: skip
            return False
        aliases.add(fx)
        if not isinstance(fx.target, OpOverload) or not fx.target._schema.is_mutable:
            continue
        functional = _functional(fx)
        written = fx.args[0]
        if functional is None:
            return False
        # A former in-place operator gives the same tensor, so its readers read the new value too.
        whole, views = {written}, set()
        for other in aliases.of(written):
            (whole if _same_tensor(other, written, {one for one, _ in found}) else views).add(other)
        if any(other.op == "placeholder" and other.name not in inputs for other in whole | views):
            return False  # the network's own state, which the reader refuses with a message
        if any(place[user] > place[fx] for other in views - {fx} for user in other.users):
            return False
        found.append((fx, functional))
    for fx, functional in found:
        with graph.inserting_before(fx):
            made = graph.call_function(functional, fx.args, fx.kwargs)
        made.meta = dict(fx.meta)
        place[made] = place[fx]
        for other in {fx.args[0], fx}:
            for user in list(other.users):
                if place[user] > place[fx]:
                    user.replace_input_with(other, made)
        exported.graph_signature.replace_all_uses(fx.name, made.name)
        graph.erase_node(fx)
    exported.graph_module.recompile()
    return True


def _same_tensor(one: Any, other: Any, writers: set[Any]) -> bool:
    """Whether two values are one tensor under two names, since an in-place operator returns what it wrote into."""

    def origin(fx: Any) -> Any:
        while fx in writers:
            fx = fx.args[0]
        return fx

    return origin(one) is origin(other)


class _Aliases:
    """Which values of a program may share memory."""

    def __init__(self) -> None:
        self.group: dict[Any, set[Any]] = {}
        self.storages: dict[int, Any] = {}

    def of(self, fx: Any) -> set[Any]:
        return self.group[fx]

    def add(self, fx: Any) -> None:
        self.group[fx] = {fx}
        for source in _sources(fx):
            self._join(fx, source)
        for value in leaves(fx.meta.get("val")):
            if isinstance(value, Tensor) and value.layout is torch.strided:
                self._join(fx, self.storages.setdefault(value.untyped_storage()._cdata, fx))

    def _join(self, one: Any, other: Any) -> None:
        both = self.group[one] | self.group[other]
        for fx in both:
            self.group[fx] = both


def _sources(fx: Any) -> Iterator[Any]:
    """The arguments that an operator's output may be, or may be a view of."""
    if fx.op != "call_function":
        return
    schema = getattr(fx.target, "_schema", None)
    if schema is None:
        yield from fx.all_input_nodes
        return
    annotated = [argument for argument in schema.arguments if argument.alias_info is not None]
    composed = torch._C._dispatch_has_kernel_for_dispatch_key(fx.target.name(), "CompositeImplicitAutograd")
    if annotated:
        for number, argument in enumerate(schema.arguments):
            if argument in annotated:
                value = fx.args[number] if number < len(fx.args) else fx.kwargs.get(argument.name)
                yield from (leaf for leaf in leaves(value) if isinstance(leaf, torch.fx.Node))
    elif composed and fx.target._schema.name.split("::")[1] not in FRESH:
        yield from fx.all_input_nodes


def _functional(fx: Any) -> OpOverload | None:
    """The operator that computes what an in-place one writes, of the same type; None where that is not certain."""
    schema = fx.target._schema
    room, _, name = schema.name.partition("::")
    writes = [a for a in schema.arguments if a.alias_info is not None]
    if len(writes) != 1 or writes[0] is not schema.arguments[0] or not name.endswith("_") or not fx.args:
        return None
    packet = getattr(getattr(torch.ops, room), name.removesuffix("_"), None)
    if packet is None or schema.overload_name not in {o if o != "default" else "" for o in packet.overloads()}:
        return None
    found = getattr(packet, schema.overload_name or "default")
    names = [[a.name for a in s.arguments[1:]] for s in (schema, found._schema)]
    shared = any(a.alias_info is not None for a in (*found._schema.arguments, *found._schema.returns))
    if names[0] != names[1] or shared:
        return None
    written = fx.args[0].meta.get("val")
    others = [node.meta.get("val") for node in fx.all_input_nodes if node is not fx.args[0]]
    if not isinstance(written, Tensor) or not written.is_floating_point():
        return None
    # The result of an in-place operator keeps the type of what it writes into.
    if any(isinstance(x, Tensor) and torch.result_type(written, x) != written.dtype for x in others):
        return None
    return found
