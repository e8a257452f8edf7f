"""A causal network of tokens as two: one that also returns its keys and values, one that takes them and a new token.

In a causal network what is computed for a token depends on it and the tokens before it. So of a longer text the values
of earlier tokens are those of before, and only two kinds of products ask for them again: queries @ keys and weights @
values. The second network computes every value for its one token alone, and has the right operand of these products,
held before, as an input. Which dimension of a value the tokens run along is followed from the input on through every
operator; one for which no rule is known, or that takes tokens together in another way, is a reason to keep no cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from parspike.graph.features import ATTENTION, PRODUCTS, groups_of, permuted
from parspike.graph.ir import Graph, Input, Node, Param, Ref, Size, map_tree
from parspike.graph.ops import HOLD, LARGEST, MASKED, POINTWISE, ROTATE, SHARES, SIZE, TABLE, TIMES, WEIGHTS, Role

__all__ = ["token_dims", "with_cache"]

BY_ELEMENT = frozenset((HOLD, MASKED, SHARES, TIMES, "parspike.at_least", "aten.clone.default", "aten.addcmul.default"))
ALONG = ("aten.softmax.int", "aten._softmax.default", WEIGHTS, LARGEST, SIZE)
NORMS = ("aten.layer_norm.default", "aten.rms_norm.default")
SUMS = ("aten.sum.dim_IntList", "aten.mean.dim", "aten.amax.default", "aten.amin.default")
SPLITS = ("aten.split.Tensor", "aten.chunk.default", "aten.split_with_sizes.default")
WHOLE = 1 << 31
"""An end of a slice behind which nothing is left out."""


class _UnknownError(Exception):
    """Why no cache can be kept."""


def with_cache(graph: Graph) -> tuple[Graph, Graph] | str:
    """The graph with keys and values beside its output, and that of the next token; or why there is none.

    graph: with its tensors, of one input (B, tokens). The first returns {"output", "cache"}, cache a tuple; the second
    takes a token (B, 1) and that cache, and returns the same with the token's own keys and values at the cache's end.
    """
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) != 2:
        return "it takes more than token numbers (B, tokens)"
    tokens = graph.inputs[0].shape[1]
    if not isinstance(tokens, Size) or not isinstance(tokens.tree, str):
        return "it takes texts of one length alone"
    try:
        return _Next(graph, tokens.tree).graphs()
    except _UnknownError as reason:
        return str(reason)


def token_dims(then: Graph) -> tuple[int, ...]:
    """Along which dimension of every part of a cache the tokens run. then: the second graph of `with_cache`."""
    (past,) = then.example
    return tuple(i.shape.index(Size(past)) for i in then.inputs[1:])


class _Next:
    """The graph of the next token. at: of every value that is of one token, the dimension that tokens run along."""

    def __init__(self, graph: Graph, symbol: str) -> None:
        self.graph, self.symbol = graph, symbol
        self.shapes: dict[str, Sequence[Any]] = {i.name: i.shape for i in graph.inputs}
        self.shapes |= {node.name: node.shape for node in graph.nodes}
        self.at: dict[str, int] = {graph.inputs[0].name: 1}
        self.nodes: list[Node] = []
        self.cached: dict[str, tuple[str, int]] = {}
        """By the value that is kept, the name of its input and the dimension of the tokens."""
        self.sliced: dict[tuple[str, int], str] = {}
        self.past = ""

    def graphs(self) -> tuple[Graph, Graph]:
        for node in self.graph.nodes:  # what is kept, whose first part says how long the text before is
            self._rule(node)
        if not self.cached:
            raise _UnknownError("no product of it reads the tokens before")
        name, dim = next(iter(self.cached.values()))
        self.past = f"{name}.{dim}"
        self.at = {self.graph.inputs[0].name: 1}
        for node in self.graph.nodes:
            self._take(node)
        for name in self.graph.outputs:
            if self.at.get(name) != 1:
                raise _UnknownError("its output has no row for each token")
        kept = tuple(Ref(name) for name in self.cached)
        first = replace(self.graph, output={"output": self.graph.output, "cache": kept})
        output = map_tree(self._whole, self.graph.output)
        (given,) = self.graph.inputs
        dtype = next((t.dtype for t in self.graph.tensors.values() if t.is_floating_point()), torch.float32)
        inputs = [replace(given, shape=(given.shape[0], 1))]
        for value, (name, dim) in self.cached.items():
            shape = [self._whole(n) for n in self.shapes[value]]
            shape[dim] = Size(self.past)
            inputs.append(Input(name, tuple(shape), dtype))
        joined = tuple(Ref(f"{value}_joined") for value in self.cached)
        then = replace(
            self.graph, inputs=tuple(inputs), nodes=tuple(self.nodes), signature=(len(inputs), ()),
            output={"output": output, "cache": joined},
            example={self.past: max(1, self.graph.example.get(self.symbol, 2) - 1)},
            limits=tuple(self._whole(limit) for limit in self.graph.limits),
        )  # fmt: skip
        read = {path for node in then.nodes for path in node.params}
        return first, replace(then, tensors={p: t for p, t in then.tensors.items() if p in read})

    def _whole(self, leaf: Any) -> Any:
        """A size of the whole text in place of the number of its tokens."""
        if not isinstance(leaf, Size) or not self.past:
            return leaf
        return Size(_put(leaf.tree, self.symbol, ("+", self.past, 1)))

    def _take(self, node: Node) -> None:
        made = self._rule(node)
        dim = self.at.get(node.name)
        shape = [self._whole(n) for n in node.shape]
        if dim is not None and shape:
            shape[dim] = 1
        self.nodes.append(replace(made.mapped(self._whole), shape=tuple(shape)))

    def _rule(self, node: Node) -> Node:
        """The node for one token; notes in `at` along which dimension it runs."""
        moving = [name for name in node.refs if name in self.at]
        if not moving:
            return node
        name, args = node.target, cast(Any, node.args)
        row = TABLE.get(name)
        first = args[0]
        x = first if isinstance(first, Ref) else Ref(moving[0])
        d = self.at.get(x.name, -1)
        rank = len(self.shapes[x.name])
        if name in BY_ELEMENT or name in POINTWISE or (row is not None and row.role is Role.NEURON):
            return self._by_element(node, moving)
        if name in PRODUCTS or name in ATTENTION[:1]:
            return self._product(node)
        if name == "aten.embedding.default":
            return self._known(node, self.at[moving[0]])
        if name == "aten.cat.default":
            return self._joined(node, moving)
        if len(set(moving)) != 1 or d < 0:
            raise self._unknown(node)
        if name == "aten.linear.default" and d < rank - 1:
            return self._known(node, d)
        if name in NORMS and d < rank - len(args[1]):
            return self._known(node, d)
        if name == ROTATE and d < rank - 1:
            return self._known(node, d)
        if name in ALONG and args[1] % rank != d:
            return self._known(node, d)
        if name in SUMS and len(args) > 1 and args[1] and d not in (gone := {k % rank for k in args[1]}):
            return self._known(node, d if len(args) > 2 and args[2] else d - sum(k < d for k in gone))
        if (order := permuted(node, rank)) is not None:
            return self._known(node, order.index(d))
        if name == "aten.unsqueeze.default":
            return self._known(node, d + (d >= args[1] % (rank + 1)))
        if name == "aten.squeeze.dims" and d not in (gone := {k % rank for k in args[1]}):
            return self._known(node, d - sum(k < d for k in gone))
        if name == "aten.slice.Tensor":
            dim, start, end = (*args[1:4], *(0, 0, WHOLE)[len(args) - 1 :])
            if dim % rank != d or (start in (0, None) and isinstance(end, int) and end >= WHOLE):
                return self._known(node, d)
        if name in ("aten.select.int", "aten.unbind.int") and (k := (*args[1:2], 0)[0] % rank) != d:
            return self._known(node, d - (k < d))
        if name in SPLITS and (args[2] if len(args) > 2 else 0) % rank != d:
            return self._known(node, d)
        if name == "getitem":
            return self._known(node, d)
        if name == "aten.repeat_interleave.self_int" and args[2] % rank != d:
            return self._known(node, d)
        if name == "aten.expand.default":
            now = d + len(args[1]) - rank
            return self._known(replace(node, args=(x, [-1 if k == now else n for k, n in enumerate(args[1])])), now)
        if name == "aten.reshape.default":
            return self._reshaped(node, d)
        raise self._unknown(node)

    def _unknown(self, node: Node) -> _UnknownError:
        operator = node.target.removeprefix("aten.").split(".")[0]
        return _UnknownError(
            f"layer '{node.layer}' ({operator}) takes tokens together in a way that no cache is known for"
        )

    def _known(self, node: Node, dim: int) -> Node:
        self.at[node.name] = dim
        return node

    def _by_element(self, node: Node, moving: Sequence[str]) -> Node:
        """Dimensions are aligned at the right; of values for all tokens the last is taken."""
        places = {self.at[name] - len(self.shapes[name]) for name in moving}
        if len(places) != 1:
            raise self._unknown(node)
        (place,) = places

        def last(leaf: Any) -> Any:
            return leaf if isinstance(leaf, Ref) and leaf.name in self.at else self._last(node, leaf, place)

        return self._known(node.mapped(last), len(node.shape) + place)

    def _last(self, node: Node, leaf: Any, place: int) -> Any:
        """The last token's part of a value of all tokens, `place` dimensions from the right."""
        if isinstance(leaf, Param):
            shape: Sequence[Any] = self.graph.tensors[leaf.path].shape
        elif isinstance(leaf, Ref):
            shape = self.shapes[leaf.name]
        else:
            return leaf
        if len(shape) < -place or shape[place] == 1:
            return leaf
        if not isinstance(leaf, Ref) or shape[place] != Size(self.symbol):
            raise self._unknown(node)
        dim = len(shape) + place
        key = leaf.name, dim
        if self.past and key not in self.sliced:
            name = f"{leaf.name}_last{dim}"
            source = self.graph.by_name[leaf.name]
            size = [self._whole(n) for n in shape]
            size[dim] = 1
            self.nodes.append(replace(
                source, name=name, target="aten.slice.Tensor", args=(leaf, dim, -1, 1 << 62), kwargs={},
                role=Role.SYNAPSE, reason="", shape=tuple(size),
            ))  # fmt: skip
            self.sliced[key] = name
        return Ref(self.sliced[key]) if self.past else leaf

    def _product(self, node: Node) -> Node:
        """Rows of the left operand are of the new token; the right one is joined to what was kept of it."""
        left, *rest = node.args
        number = 1 if node.target in PRODUCTS else 2
        rank = len(self.shapes[left.name]) if isinstance(left, Ref) else 0
        if not isinstance(left, Ref) or self.at.get(left.name) != rank - 2:
            raise self._unknown(node)
        for place in range(number):
            value = rest[place]
            if isinstance(value, Ref) and value.name in self.at:
                rest[place] = self._all(node, value)
        made = replace(node, args=(left, *rest))
        if node.target in ATTENTION:
            mask, dropout, _ = (*rest[2:], *(None, 0.0, False)[len(rest) - 2 :])
            # One token at the end sees all of them, so that a causal mask hides nothing from it.
            made = replace(node, args=(left, *rest[:2], self._last(node, mask, -2), dropout, False))
        return self._known(made, len(node.shape) - 2)

    def _all(self, node: Node, value: Ref) -> Ref:
        """The value of all tokens: what was kept, and the new token's."""
        dim, shape = self.at[value.name], self.shapes[value.name]
        if dim < len(shape) - 2:
            raise self._unknown(node)
        known = {*self.graph.by_name, *(i.name for i in self.graph.inputs)}
        if value.name not in self.cached:
            name = f"kept_{len(self.cached)}"
            while name in known:
                name += "_"
            self.cached[value.name] = name, dim
        joined = f"{value.name}_joined"
        if self.past and all(n.name != joined for n in self.nodes):
            source = self.graph.by_name[value.name]
            self.nodes.append(replace(
                source, name=joined, target="aten.cat.default", args=([Ref(self.cached[value.name][0]), value], dim),
                kwargs={}, role=Role.SYNAPSE, reason="", shape=tuple(self._whole(n) for n in shape),
            ))  # fmt: skip
        return Ref(joined)

    def _joined(self, node: Node, moving: Sequence[str]) -> Node:
        values, dim = node.args[0], (*node.args[1:], 0)[0] % len(node.shape)
        places = {self.at[name] for name in moving}
        if len(places) != 1 or dim in places:
            raise self._unknown(node)
        (d,) = places
        made = [v if isinstance(v, Ref) and v.name in self.at else self._last(node, v, d - len(node.shape))
                for v in values]  # fmt: skip
        return self._known(replace(node, args=(made, dim)), d)

    def _reshaped(self, node: Node, d: int) -> Node:
        old, new = self.shapes[node.args[0].name], node.shape
        for ours, theirs in groups_of(old, new):
            if d in ours:
                if len(ours) != 1 or len(theirs) != 1:
                    break
                sizes = [1 if k == theirs[0] else n for k, n in enumerate(node.args[1])]
                return self._known(replace(node, args=(node.args[0], sizes)), theirs[0])
        raise self._unknown(node)


def _put(tree: Any, symbol: str, instead: Any) -> Any:
    return map_tree(lambda leaf: instead if leaf == symbol else leaf, tree)
