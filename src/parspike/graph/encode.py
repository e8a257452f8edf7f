"""Encoders: spiking neurons for the identity, where a real value meets a weighted synapse.

`encode="all"` puts one wherever an operator with weights reads a value that is not made of spikes alone, and at both
operands of every product of two values (attention), for example:

    norm ──► linear             becomes   norm ──► encoder ──► linear
    query ──► matmul ◄── key    becomes   query ──► encoder ──► matmul ◄── held mean ◄── encoder ◄── key

A value is made of spikes alone where everything between it and neurons only moves, scales or adds up their spikes: such
operators fold into the weights behind. Several synapses that read one value share its encoder. In a product the spikes
of the left operand arrive over time, and each adds up what is held of the right one: its mean, which its spikes said.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from parspike.graph.features import with_channels
from parspike.graph.ir import Graph, Node, Ref
from parspike.graph.ops import CASTS, ENCODE, HELD, HOLD, SUMS, TABLE, TIMES, WEIGHTS, Role
from parspike.graph.order import nested

__all__ = [
    "PASSED",
    "TURNS",
    "Encode",
    "computed",
    "encodable",
    "encoded",
    "halves",
    "input_encoders",
    "scales",
    "undivided",
    "with_encoders",
]

Encode = Literal["none", "hidden", "all"]
"""Where neurons for the identity stand: nowhere; where synapses read real values other than the network's inputs; where
they read any real values."""
PRODUCTS = ("aten.matmul.default", "aten.bmm.default", "aten.mm.default", "aten.einsum.default")
MOVERS = ("aten.reshape.default", "aten.permute.default", "aten.transpose.int", "aten.t.default", "aten.expand.default",
          "aten.repeat_interleave.self_int", "aten.repeat.default", "aten.unsqueeze.default", "aten.squeeze.dims",
          "aten.movedim.int", "aten.swapaxes.default")  # fmt: skip
"""Operators that only move values: an encoder goes before them, where there are fewest values to encode."""
PASSED = (*CASTS, "aten.reshape.default", "aten.expand.default")
"""Operators between a softmax and the product that it weighs."""
SMALL = 2**-4
"""Up to here the weights of a softmax have neurons of their own, with as many levels as those above. Many small weights
share what few large ones leave: with one neuron for both, 15 levels of 1/15, weights below 1/30 were 0, which was 11 %
of all weight in a sentence embedder of six layers. The cosine between its vectors and those with weights of 2 × 15
levels was 0.9998, of 15 levels 0.989; of SMALL from 1/2 to 1/32, 1/16 was best at 2, 4 and 6 weighted steps."""
GATE = "only a product with another value reads it, and neurons encode that"
TURNS = "it falls and then rises, so it is computed, and neurons encode its value"


def encodable(graph: Graph) -> tuple[str, ...]:
    """The inputs that spikes may stand for: real numbers, read only by operators that are linear in them alone."""
    readers = graph.consumers()
    return tuple(
        i.name
        for i in graph.inputs
        if i.dtype.is_floating_point
        and i.name not in graph.outputs
        and readers[i.name]
        and all(reader.role is Role.SYNAPSE and len(reader.refs) == 1 for reader in readers[i.name])
    )


def with_encoders(graph: Graph, inputs: Sequence[str]) -> Graph:
    """The graph with a neuron's node, of the same shape, behind each of these inputs."""
    names = {name: f"{name}_spikes" for name in inputs}
    made = [_encoder(i.name, names[i.name], names[i.name], i.shape) for i in graph.inputs if i.name in names]
    moved = [
        node.mapped(lambda leaf: Ref(names[leaf.name]) if isinstance(leaf, Ref) and leaf.name in names else leaf)
        for node in graph.nodes
    ]
    return with_channels(replace(graph, nodes=(*made, *moved)))


def input_encoders(graph: Graph) -> set[str]:
    """The neurons that make spikes of the network's inputs, not of values inside it."""
    inputs = {i.name for i in graph.inputs}
    return {node.name for node in graph.nodes if node.target == ENCODE and inputs.issuperset(node.refs)}


def _encoder(value: str, name: str, layer: str, shape: Sequence[Any]) -> Node:
    """A neuron's node for the identity behind a value; `with_channels` finds its channels."""
    return Node(name, ENCODE, (Ref(value),), {}, Role.NEURON, layer, shape=tuple(shape))


def computed(graph: Graph, asked: Collection[str]) -> dict[str, str]:
    """Activations that are no neurons where encoders stand, and why.

    One that only scales another value, element by element (the gate of a gated layer): the product is encoded, and two
    roundings cost more than one. One that falls and then rises (GELU, SiLU): its two halves would each have all levels
    of one neuron, for the small part below 0 too, where a pair of neurons shares them out over the whole range. asked:
    activations that the user wants as neurons all the same.
    """
    readers, gate = graph.consumers(), set[str]()
    found = {
        node.name: TURNS
        for node in graph.neurons
        if node.target in ("parspike.rising", "parspike.falling") and node.name not in asked
    }
    for node in reversed(graph.nodes):
        behind, row = readers[node.name], TABLE.get(node.target)
        if not behind or node.name in graph.outputs or node.name in asked or row is None:
            continue
        if all(scales(reader) or reader.name in gate for reader in behind):
            if node.role is Role.NEURON:
                found[node.name] = GATE
            elif node.role is Role.SYNAPSE and not row.weighted and not row.weighs:
                gate.add(node.name)
    return found


def undivided(graph: Graph, found: Mapping[str, str]) -> tuple[Graph, dict[str, str]]:
    """The graph with every activation in one node whose two halves, right(x) + left(−x) + lowest, are both computed,
    and why each is: a network of many layers spends a tenth of its time on halves. found: see `computed`."""
    readers, why = graph.consumers(), dict(found)
    nodes = {node.name: node for node in graph.nodes}
    for last in graph.nodes:
        both = graph.by_name.get(last.refs[0]) if last.target == "aten.add.Scalar" else None
        parts = None if both is None or both.name in graph.outputs else halves(graph, both, found)
        if parts is None or both is None or len(readers[both.name]) > 1:
            continue
        right, mirrored, left = parts
        alone = all(len(readers[part.name]) == 1 and part.name not in graph.outputs for part in parts)
        function = right.args[1:]
        if not alone or right.target != "parspike.rising" or left.args[1:] != function or last.args[1] != function[2]:
            continue
        for gone in (right, mirrored, left, both):
            del nodes[gone.name]
        nodes[last.name] = replace(
            right, name=last.name, layer=last.layer, target=function[0], args=(right.args[0], *function[3:])
        )
        why[last.name] = why.pop(right.name)
        del why[left.name]
    return replace(graph, nodes=tuple(nodes.values())), why


def halves(graph: Graph, both: Node, names: Collection[str]) -> tuple[Node, Node, Node] | None:
    """The nodes right(x), −x and left(−x), where `both` is the sum of right and left, two of these names."""
    if both.target != "aten.add.Tensor" or both.kwargs or len(both.refs) != 2 or not all(r in names for r in both.refs):
        return None
    right, left = (graph.by_name[name] for name in both.refs)
    mirrored = graph.by_name.get(left.refs[0])
    if right is left or mirrored is None or mirrored.target != "aten.neg.default" or mirrored.refs != right.refs:
        return None
    return right, mirrored, left


def scales(node: Node) -> bool:
    """Whether a node multiplies two values element by element."""
    row = TABLE.get(node.target)
    return node.role is Role.ANALOG and row is not None and row.product and not row.weighted


def encoded(graph: Graph, spiking: Collection[str], where: Encode, behind: Collection[str] = ()) -> Graph:
    """The graph with encoders, see above, and with what products hold. spiking: activations that are neurons. behind:
    computed ones that an encoder sends to whatever reads them."""
    driven, outer = _driven(graph, {*spiking, *behind})
    dtypes = {i.name: i.dtype for i in graph.inputs}
    readers = graph.consumers()
    moved: dict[str, dict[int, str]] = {}
    """By node, which of its operands is encoded, by place."""
    roots: dict[str, None] = dict.fromkeys(behind)
    products: set[str] = set()
    for node in graph.nodes:
        operands = _operands(graph, node)
        if operands and node.role is Role.ANALOG:
            products.add(node.name)
        for place, name in operands:
            if name in driven or (where == "hidden" and name in outer):
                continue
            reader, at = node, place
            while (before := graph.by_name.get(name)) is not None and _moves(graph, readers, before):
                reader, at, name = before, 0, before.refs[0]
            if name in dtypes and not dtypes[name].is_floating_point:
                continue
            roots[name] = None
            moved.setdefault(reader.name, {})[at] = name
    names = _names(graph, roots)
    shapes = {i.name: i.shape for i in graph.inputs} | {node.name: node.shape for node in graph.nodes}
    encoder = {name: [_encoder(name, names[name], _layer(graph, name), shapes[name])] for name in roots}
    for name in encoder:
        if _is_weights(graph, name):
            encoder[name] = _of_weights(graph, names[name], name, shapes[name])
    nodes = [node for i in graph.inputs for node in encoder.get(i.name, ())]
    for node in graph.nodes:
        now = node.mapped(lambda leaf: Ref(names[leaf.name]) if isinstance(leaf, Ref) and leaf.name in behind else leaf)
        for place, name in moved.get(node.name, {}).items():
            now = _with_operand(now, place, names[name])
        nodes.extend(_held(now, shapes[_right(node).name]) if node.name in products else [now])
        nodes.extend(encoder.get(node.name, ()))
    return with_channels(replace(graph, nodes=tuple(nodes)))


def _of_weights(graph: Graph, name: str, weights: str, shape: Sequence[Any]) -> list[Node]:
    """Two encoders for the weights w of a softmax, w = min(w, SMALL) + max(w − SMALL, 0), and their sum.

    What a mask hides weighs 0, to the bit, in both: else a causal network would read what stands behind a token.
    """
    layer = _layer(graph, weights)

    def node(suffix: str, target: str, *args: Any) -> Node:
        made = name + suffix
        while made in graph.by_name:
            made += "_"
        return Node(made, target, args, {}, Role.SYNAPSE, layer, shape=tuple(shape))

    small = node("_small", ENCODE, Ref(weights), 0.0, SMALL)
    rest = node("_rest", "aten.sub.Tensor", Ref(weights), SMALL)
    large = node("_large", ENCODE, Ref(rest.name), 0.0, 1 - SMALL)
    both = replace(node("", "aten.add.Tensor", Ref(small.name), Ref(large.name)), name=name)
    encoders = (replace(n, role=Role.NEURON, layer=layer + sign) for n, sign in ((small, "-"), (large, "+")))
    return [next(encoders), rest, next(encoders), both]


def _with_operand(node: Node, place: int, name: str) -> Node:
    """The node with another value as one of its operands."""
    if node.target == "aten.einsum.default":
        values = list(node.args[1])
        values[place] = Ref(name)
        return replace(node, args=(node.args[0], values, *node.args[2:]))
    return replace(node, args=(*node.args[:place], Ref(name), *node.args[place + 1 :]))


def _driven(graph: Graph, spiking: Collection[str]) -> tuple[set[str], set[str]]:
    """The values that are constants or made of spikes alone, and those that are the network's inputs, moved, scaled and
    added up."""
    outer = {i.name for i in graph.inputs}
    driven: set[str] = set()
    varying = set(outer)  # all others are constants, whatever they are computed by: queries that are learnt
    sorted_code = set(spiking)
    for node in graph.nodes:
        row = TABLE.get(node.target)
        if varying.isdisjoint(node.refs):
            driven.add(node.name)
            continue
        varying.add(node.name)
        plain = node.role is Role.SYNAPSE and row is not None and not row.weighted and not row.weighs
        moved = plain or (node.role is Role.ORDER and nested(graph, node, sorted_code))
        if node.name in spiking or (moved and all(name in driven for name in node.refs)):
            driven.add(node.name)
        elif plain and all(name in outer or name in driven for name in node.refs):
            outer.add(node.name)
    return driven, outer


def _operands(graph: Graph, node: Node) -> list[tuple[int, str]]:
    """What neurons have to say to a node, by the place of the argument: what its weights multiply, or both operands of
    a product; nothing where it is no such operator. An einsum's are counted in its list."""
    row = TABLE.get(node.target)
    if node.target == "aten.sum.dim_IntList" and _is_weights(graph, node.refs[0]):
        return [(0, node.refs[0])]  # the sum that a softmax divides by is one of the same spikes, else it is too large
    if row is None or not row.weighted:
        return []
    values = node.args[1] if node.target == "aten.einsum.default" else node.args
    added = 0 if node.target in SUMS else None
    found = [(i, value.name) for i, value in enumerate(values) if isinstance(value, Ref) and i != added]
    if node.role is Role.SYNAPSE:  # of two values one is a constant, made of sizes alone
        return found
    of_two = node.target != "aten.einsum.default" or len(values) == 2  # of three a spike would meet products
    if node.role is not Role.ANALOG or len(found) != 2 or not of_two:
        return []
    # Element by element the spikes of one value meet one number each, which may stay the sum that it is.
    return found if node.target in PRODUCTS else found[:1] if node.target == TIMES else []


def _is_weights(graph: Graph, name: str) -> bool:
    """Whether a value is the weights of a softmax, moved perhaps."""
    node = graph.by_name.get(name)
    while node is not None and node.target in PASSED and len(node.refs) == 1:
        node = graph.by_name.get(node.refs[0])
    return node is not None and node.target == WEIGHTS


def _moves(graph: Graph, readers: Mapping[str, Sequence[Node]], node: Node) -> bool:
    """Whether a node only moves one value, for one reader."""
    return (
        node.target in MOVERS
        and node.role is Role.SYNAPSE
        and len(node.refs) == 1
        and len(readers[node.name]) == 1
        and node.name not in graph.outputs
    )


def _names(graph: Graph, roots: Collection[str]) -> dict[str, str]:
    """A name for the encoder of every one of these values."""
    known = {*graph.by_name, *(i.name for i in graph.inputs)}
    made: dict[str, str] = {}
    for name in roots:
        new = f"{name}_spikes"
        while new in known:
            new += "_"
        known.add(new)
        made[name] = new
    return made


def _layer(graph: Graph, name: str) -> str:
    return f"{graph.by_name[name].layer}@spikes" if name in graph.by_name else f"{name}_spikes"


def _right(product: Node) -> Ref:
    return product.args[1][1] if product.target == "aten.einsum.default" else product.args[1]


def _held(product: Node, shape: Sequence[Any]) -> list[Node]:
    """The node that holds the mean of a product's right operand, of this shape, and the product with it."""
    right = _right(product)
    hold = replace(
        product, name=f"{product.name}_held", target=HOLD, args=(right,), kwargs={}, role=Role.ANALOG,
        reason=TABLE[HOLD].reason, layer=f"{product.layer}@held", shape=tuple(shape),
    )  # fmt: skip
    return [hold, replace(_with_operand(product, 1, hold.name), role=Role.SYNAPSE, reason=HELD)]
