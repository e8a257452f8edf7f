"""Which activations of a network are neurons, which are read-outs, and which only guard another operator.

- **Read-out.** An activation behind which no operator with weights comes acts on the network's output as a decision
  would: it is computed on the mean current. Where such a value is read inside the network as well, the graph gets a
  copy of the activation: the copy is the read-out, the activation itself spikes.
- **Guard.** An activation is no neuron where its input is made by no synapse (a mask, an input, a norm, a variance:
  `clamp(min=1e-9)` of a number of tokens), where it is read by nothing but divisions (as the divisor), logarithms and
  roots, whose slope has no bound, so that the error of a level has none either, or where it stands between spikes and
  a power or another analog function alone.
- **Weights of a sample.** A product of what spikes make with what no spike makes (a mask, the adjacency of a graph) is
  a synapse, whose weights each sample brings with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from parspike.graph.ir import Graph, Node, Param, Ref, Size, elements, leaves, map_tree
from parspike.graph.ops import (
    BESIDE,
    FUNCTIONS,
    HELD,
    HOLD,
    ON_MEANS,
    POINTWISE,
    SCALES,
    STEEP,
    TABLE,
    WEIGHED_BY_SAMPLE,
    Role,
)
from parspike.graph.refusals import judge
from parspike.graph.same import across_batch_marked, two_samples

__all__ = ["guards", "reached_by", "readouts", "with_copies", "with_weights_of_samples"]

NONE, FUNCTION, SUM, SPIKES = range(4)
"""What a value is made of: of no synapse; a function of what a synapse makes; what synapses make, or several neurons
together; the spikes of neurons themselves."""
NO_SYNAPSE = "its input is made by no synapse"
DIVISOR = "only divisors, logarithms and roots read it"
REQUANTISED = "it reads spikes, and only analog functions read it"


def guards(graph: Graph, asked: Collection[str]) -> dict[str, str]:
    """Activations that are no neurons, and why. asked: activations that the user wants as neurons all the same."""
    made = _made_of(graph, asked)
    found = {
        node.name: NO_SYNAPSE
        for node in graph.neurons
        if node.name not in asked and made.get(node.refs[0], NONE) == NONE
    }
    readers, steep = graph.consumers(), set[str]()
    """Values that end, directly or through other operators, in nothing but divisors, logarithms and roots."""
    for node in reversed(graph.nodes):
        behind = readers[node.name]
        if not behind or node.name in graph.outputs or node.name in asked:
            continue
        if all(_is_steep(reader, node.name) or reader.name in steep for reader in behind):
            row = TABLE.get(node.target)
            if node.role is Role.NEURON:
                found.setdefault(node.name, DIVISOR)
                steep.add(node.name)
            elif row is not None and row.role is Role.SYNAPSE and not row.weighted:
                steep.add(node.name)
        elif node.role is Role.NEURON and made.get(node.refs[0]) == SPIKES and all(map(_is_function, behind)):
            found.setdefault(node.name, REQUANTISED)
    return found


def _is_steep(reader: Node, name: str) -> bool:
    """Whether an operator's slope in this argument has no bound."""
    if reader.target in ("aten.div.Tensor", "aten.div.Tensor_mode", "aten.floor_divide.default"):
        dividend, divisor = reader.args[:2]
        return divisor == Ref(name) and dividend != Ref(name)
    if reader.target == "aten.pow.Tensor_Scalar":
        return isinstance(reader.args[1], Size) or reader.args[1] < 1
    return reader.target in STEEP


def _is_function(reader: Node) -> bool:
    return reader.target in TABLE and TABLE[reader.target].reason == FUNCTIONS


def _made_of(graph: Graph, asked: Collection[str]) -> dict[str, int]:
    """What every value is made of, see `NONE`; inputs are made of no synapse."""
    made: dict[str, int] = {}
    weighed: set[str] = set()
    """Inputs times a weight for each of their elements: what a sum makes of them is the value of a synapse."""
    for node in graph.nodes:
        made[node.name] = _kind(graph, node, made, weighed, asked)
    return made


def _kind(graph: Graph, node: Node, made: Mapping[str, int], weighed: set[str], asked: Collection[str]) -> int:
    row = TABLE.get(node.target)
    kinds = [made.get(name, NONE) for name in _acting(node)]
    most = max(kinds, default=NONE)
    if node.role is Role.NEURON:
        return SPIKES if most > NONE or node.name in asked else NONE
    if row is None or row.weighted or row.weighs or node.target == "parspike.scale_shift":
        return SUM
    if row.role is Role.SYNAPSE:
        if row.product and len(node.refs) > len(set(node.refs)):
            return min(most, FUNCTION)  # a square
        if sum(kind > FUNCTION for kind in kinds) > 1:
            return SUM
        if any(name in weighed for name in node.refs):
            weighed.add(node.name)
        if most == NONE and row.product and _has_weights(graph, node):
            weighed.add(node.name)
            if _wider(graph, node):
                return SUM
        if row.sources == "one":
            return most
        # A sum of squares is a length, of other functions a mean: no sum of currents.
        return SUM if most > FUNCTION or node.name in weighed else NONE
    if row.role is Role.ORDER or node.target in SCALES:
        return most
    return min(most, FUNCTION) if row.reason == FUNCTIONS or node.target in POINTWISE else NONE


def _acting(node: Node) -> list[str]:
    """The values that a node reads as currents, without its weights, masks and divisors."""
    row = TABLE.get(node.target)
    places = range(len(node.args)) if row is None or row.varying is None else row.varying
    return [leaf.name for i in places if i < len(node.args) for leaf in leaves(node.args[i]) if isinstance(leaf, Ref)]


def _has_weights(graph: Graph, node: Node) -> bool:
    return any(isinstance(arg, Param) and graph.tensors[arg.path].numel() > 1 for arg in node.args)


def _wider(graph: Graph, node: Node) -> bool:
    """Whether a product with weights has more elements than what it reads: several weighted copies."""
    shapes = {i.name: i.shape for i in graph.inputs} | {name: n.shape for name, n in graph.by_name.items()}
    sizes = [elements(shape, graph.example) for shape in (node.shape, *(shapes[name] for name in node.refs))]
    return sizes[0] > max(sizes[1:])


def readouts(graph: Graph, kept: Collection[str], asked: Collection[str]) -> frozenset[str]:
    """Activations and analog operators behind which neither a neuron nor an operator with weights comes.

    kept, asked: activations that the user wants analog, and as neurons. A product with weights that depend on the
    input (attention) is a read-out itself, but what it reads is not the network's last step.
    """
    readers, late = graph.consumers(), _late(graph, asked)
    tail: set[str] = set()
    for node in reversed(graph.nodes):
        row = TABLE.get(node.target)
        if row is None or not all(reader.name in tail for reader in readers[node.name]):
            continue
        ends = node.role in (Role.ANALOG, Role.ORDER) or (node.role is Role.SYNAPSE and not row.weighted)
        if ends or node.name in kept or (node.role is Role.NEURON and node.name in late):
            tail.add(node.name)
    return frozenset(name for name in tail if graph.by_name[name].role in (Role.ANALOG, Role.NEURON)) - set(kept)


def _late(graph: Graph, asked: Collection[str]) -> set[str]:
    """Values made behind the last operators with weights, which only the output reads."""
    readers, late = graph.consumers(), set[str]()
    for node in reversed(graph.nodes):
        if _weightless(node) and node.name not in asked and all(r.name in late for r in readers[node.name]):
            late.add(node.name)
    return late


def _weightless(node: Node) -> bool:
    row = TABLE.get(node.target)
    return row is not None and not row.weighted and not row.weighs


def with_copies(graph: Graph, guarded: Collection[str], asked: Collection[str]) -> Graph:
    """The graph with a copy of every activation that the output shows and an inner operator reads: see above.

    What stands between it and the output is copied with it. Names of copies end in "_out", their layers in "@output".
    """
    late, neurons = _late(graph, asked), {node.name for node in graph.neurons} - set(guarded) - set(asked)
    on_way, todo = set[str](), list(graph.outputs)
    while todo:
        node = graph.by_name.get(todo.pop())
        if node is None or node.name in on_way or not _weightless(node) or node.name in asked:
            continue
        on_way.add(node.name)
        # A copied activation acts on the mean of the same current, so the spikes behind it are those of the network.
        if node.name not in neurons or _in_series(graph, node, neurons):
            todo.extend(node.refs)
    names = {node.name for node in graph.nodes} | {i.name for i in graph.inputs}
    copies: dict[str, str] = {}

    def renamed(leaf: Any) -> Any:
        return Ref(copies[leaf.name]) if isinstance(leaf, Ref) and leaf.name in copies else leaf

    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name in late:
            nodes.append(node.mapped(renamed))
            continue
        nodes.append(node)
        if node.name not in on_way or not (node.name in neurons or any(ref in copies for ref in node.refs)):
            continue
        copies[node.name] = name = _free_name(f"{node.name}_out", names)
        inner = node.name in neurons and not _in_series(graph, node, neurons)
        copy = node if inner else node.mapped(renamed)
        nodes.append(replace(copy, name=name, layer=node.layer + BESIDE[2]))
    return replace(graph, nodes=tuple(nodes), output=map_tree(renamed, graph.output)) if copies else graph


def _in_series(graph: Graph, node: Node, neurons: Collection[str]) -> bool:
    """Whether an activation acts directly on another one's value, with no sum between, as in a clamp written as two."""
    here: Node | None = node
    while here is not None and len(here.refs) == 1:
        here = graph.by_name.get(here.refs[0])
        if here is not None and here.name in neurons:
            return True
        row = None if here is None else TABLE.get(here.target)
        if row is None or row.weighted or row.weighs or row.sources != "one":
            return False
    return False


def _free_name(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    names.add(name)
    return name


def reached_by(graph: Graph, spiking: Collection[str]) -> frozenset[str]:
    """The values that spikes act on. What is held of such a value is a weight, which spikes of another act on."""
    reached: set[str] = set()
    for node in graph.nodes:
        if node.name in spiking or (node.target != HOLD and any(name in reached for name in node.refs)):
            reached.add(node.name)
    return frozenset(reached)


def with_weights_of_samples(
    graph: Graph, spiking: Collection[str], args: Sequence[Tensor], kwargs: Mapping[str, Tensor]
) -> Graph:
    """The graph with products as synapses where all but one of the values depend on no spike.

    args, kwargs: an example batch, on which such a product is tried with several time-steps as one batch.
    """
    reached = reached_by(graph, spiking)
    nodes = [
        replace(node, role=Role.SYNAPSE, reason=WEIGHED_BY_SAMPLE)
        if node.reason != HELD and weighed_by_sample(node, reached)
        else node
        for node in graph.nodes
    ]
    if all(new is old for new, old in zip(nodes, graph.nodes, strict=True)):
        return graph
    pair = two_samples([*args, *kwargs.values()])
    named = dict(zip(kwargs, pair[len(args) :], strict=True))
    return across_batch_marked(replace(graph, nodes=tuple(nodes)), pair[: len(args)], named)


def weighed_by_sample(node: Node, reached: Collection[str]) -> bool:
    """Whether an operator that is analog by what depends on the input is a synapse by what depends on spikes."""
    row = TABLE.get(node.target)
    analog = node.role is Role.ANALOG and node.reason not in ON_MEANS
    marked = node.role is Role.SYNAPSE and node.reason in (WEIGHED_BY_SAMPLE, HELD)
    if row is None or row.role is not Role.SYNAPSE or not (analog or marked):
        return False
    counts = [sum(isinstance(leaf, Ref) and leaf.name in reached for leaf in leaves(arg)) for arg in node.args]
    return (marked or any(counts)) and judge(node.target, counts)[0] is Role.SYNAPSE


def currents(node: Node, reached: Collection[str], varying: Collection[str]) -> Collection[str]:
    """Those values of `varying` that a node reads as currents; what only weights them is not among them."""
    if node.reason not in (WEIGHED_BY_SAMPLE, HELD):
        return varying
    row = TABLE[node.target]
    return (set(node.refs) & set(reached) or set(node.refs[:1])) if row.product else set(_acting(node)) & set(varying)
