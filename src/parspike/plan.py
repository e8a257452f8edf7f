"""What each node of a network becomes, or why it is refused: a table made before any data are read."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypedDict, get_args

from torch import Tensor, nn

from parspike.errors import InputError, OptionError, TraceError, UnsupportedError, meant
from parspike.graph import (
    Activation,
    Curve,
    Graph,
    Node,
    Quantised,
    Role,
    check_same,
    encodable,
    leaves,
    on_device_of,
    rewrite,
    trace,
    with_doubles,
)
from parspike.graph import with_encoders as insert_encoders
from parspike.graph.attention import taken_apart
from parspike.graph.encode import TURNS, Encode, computed, encoded, input_encoders, undivided
from parspike.graph.ir import expected_tensor
from parspike.graph.lookup import LOOKED_UP, Analog
from parspike.graph.opened import opened
from parspike.graph.ops import ACROSS_BATCH, ENCODE, HELD, HOLD, TABLE, WEIGHED_BY_SAMPLE
from parspike.graph.order import compared, unnested
from parspike.graph.quiet import outputs
from parspike.graph.refusals import remedy
from parspike.graph.roles import guards, reached_by, readouts, with_copies, with_weights_of_samples
from parspike.neurons import Kind, Parallel, Serial, check_kind
from parspike.notebook import html_table

__all__ = [
    "READOUT",
    "Example",
    "Keep",
    "LayerOption",
    "Plan",
    "PlanRow",
    "Planning",
    "Spike",
    "Steps",
    "plan",
    "plan_again",
    "rows_of",
    "with_encoders",
]  # fmt: skip


READOUT = "readout"
HEAD = ("layer", "operator", "role", "becomes", "shape", "source")


@dataclass(frozen=True)
class Keep:
    """Keep an activation analog: it is computed on the time-mean and sent on as a constant current."""


@dataclass(frozen=True)
class Steps:
    """Give a layer its own number of time-steps, at most the network's T; it is silent in the others."""

    T: int

    def __post_init__(self) -> None:
        if isinstance(self.T, bool) or not isinstance(self.T, int) or self.T < 1:
            raise OptionError(f"Steps takes an integer of at least 1, got {self.T!r}")


@dataclass(frozen=True)
class Spike:
    """Make neurons of an activation that the plan would compute on the time-mean: a read-out, or a guard."""


LayerOption = Keep | Steps | Spike


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan. becomes: what stands there in the SNN; shape: per batch, of the example's size.

    role: see `graph.Role`, or `READOUT`: an activation or analog operator behind the last neuron and synapse, which
    acts on the network's output as a decision would. `graph.roles` says which activations are neurons.
    """

    layer: str
    operator: str
    role: str
    becomes: str
    source: str
    shape: tuple[int | str, ...]
    remedy: str = ""


@dataclass(frozen=True)
class Plan:
    """What a conversion will do with every operator of a network.

    graph: the rewritten graph. spiking: names of the nodes that become spiking neurons. kept: of those that stay analog
    by the user's wish. rows: the table. strict: whether analog operators between neurons are refused. steps: time-steps
    of the nodes that have their own. neuron: the kind of neurons that the plan was made for; None if the caller gave
    none, so that `convert` chooses. encode: where encoders stand. analog: whether functions of one number are neurons.
    """

    graph: Graph
    spiking: tuple[str, ...]
    kept: tuple[str, ...]
    rows: tuple[PlanRow, ...]
    strict: bool = False
    steps: Mapping[str, int] = field(default_factory=dict)
    neuron: Kind | None = None
    encode: Encode = "none"
    analog: Analog = "computed"

    @property
    def refusals(self) -> list[PlanRow]:
        """The rows that stand in the way of a conversion."""
        refused = (Role.UNKNOWN, Role.ANALOG) if self.strict else (Role.UNKNOWN,)
        return [row for row in self.rows if row.role in refused]

    @property
    def ok(self) -> bool:
        """Whether the network can be converted."""
        return not self.refusals

    def check(self) -> None:
        """Raise one `UnsupportedError` that lists every refusal, if there is one."""
        if self.ok:
            return
        lines = [f"{len(self.refusals)} operator(s) of the network cannot be converted:"]
        for row in self.refusals:
            lines.append(f"  layer '{row.layer}': {row.operator} at {row.source or 'unknown line'}: {row.becomes}")
            lines.append(f"      remedy: {row.remedy}")
        raise UnsupportedError("\n".join(lines))

    def activation(self, node: Node) -> Activation:
        """What the activation of a neuron node computes."""
        describe = TABLE[node.target].activation
        result = describe(node) if describe is not None else "no activation"
        if isinstance(result, str):
            raise UnsupportedError(f"layer '{node.layer}': {result}")
        return result

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON-able data."""
        return {
            "ok": self.ok,
            "neurons": len(self.spiking),
            "inputs": {i.name: [d if isinstance(d, int) else str(d) for d in i.shape] for i in self.graph.inputs},
            "limits": [str(limit) for limit in self.graph.limits],
            "fixed": list(self.graph.fixed),
            "rows": [asdict(row) for row in self.rows],
        }

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (row.layer, row.operator, row.role, row.becomes, "×".join(str(dim) for dim in row.shape), row.source)
            for row in self.rows
        ]

    def __str__(self) -> str:
        head, table = HEAD, [HEAD, *self._cells()]
        widths = [max(len(line[i]) for line in table) for i in range(len(head) - 1)]
        lines = [
            "  ".join((*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1])).rstrip()
            for line in table
        ]
        lines.insert(1, "  ".join("─" * w for w in (*widths, len(head[-1]))))
        return "\n".join((*lines, *self._remarks()))

    def _repr_html_(self) -> str:
        return html_table("Plan", HEAD, self._cells(), self._remarks())

    def _remarks(self) -> list[str]:
        count = Counter(row.role for row in self.rows)
        lines = [
            f"{len(self.spiking)} spiking, {len(self.kept)} kept analog, {count[Role.ORDER]} max, "
            f"{count[Role.ANALOG]} analog operators, {count[READOUT]} read-out, {len(self.refusals)} refused",
            f"inputs: {self.graph.taken}",
        ]
        return [*lines, *(f"refused: layer '{row.layer}', {row.operator}: {row.remedy}" for row in self.refusals)]


Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""A batch (B, …), a tuple of several inputs, or a dict of keyword inputs."""


class Planning(TypedDict, total=False):
    """The options of `plan` that `convert` hands on to it."""

    encode: Encode
    analog: Analog
    layers: Mapping[str, LayerOption] | None
    strict: bool
    free_sizes: bool


def plan(
    model: nn.Module,
    example: Example,
    *,
    neuron: Kind | None = None,
    encode: Encode = "none",
    analog: Analog = "computed",
    layers: Mapping[str, LayerOption] | None = None,
    strict: bool = False,
    free_sizes: bool = True,
) -> Plan:
    """What a conversion will do with a network, before any data are read.

    example: a batch (B, …), a tuple of several inputs, or a dict of keyword inputs; values do not matter. A network
    whose one input is a dict, a tuple or a list of tensors is given that, and each tensor is an input of the plan.
    neuron: the kind of neurons to plan for, as in `convert`; it changes the words of the table alone. encode: "all"
    puts encoders, spiking neurons for the identity, wherever a weighted synapse or a product of two values (attention)
    reads real values, so that spikes drive every product; "hidden" leaves the network's own inputs real
    (`graph.encode`). analog: "lookup", beside encode=, also takes softmax, norms and divisions apart and makes neurons
    of what is a function of one number in them, exp, 1/b, 1/√b, so that a sum and a maximum are all of them that stays
    analog (`graph.lookup`).
    layers: options by pattern of layer name, such as {"stem.*": Keep(), "head.*": Steps(4), "out": Spike()}: keep an
    activation analog, give it a number of time-steps, turn one into neurons that the plan would compute on the mean.
    Encoders have layers too, "norm1@spikes". strict: refuse analog operators too. free_sizes: leave height, width,
    length or tokens free where the network allows it, which the plan says; False for a network of the example's sizes
    alone.
    Raises `TraceError`, `InputError`, and `OptionError` for a pattern that matches no activation.
    """
    if encode not in get_args(Encode):
        raise OptionError(f"encode must be one of {', '.join(get_args(Encode))}, got {encode!r}")
    if analog not in get_args(Analog):
        known = get_args(Analog)
        raise OptionError(f"analog must be one of {', '.join(known)}, got {analog!r}{meant(analog, known)}")
    if analog != "computed" and encode == "none":
        raise OptionError(
            f"analog='{analog}' makes neurons of what encoders leave analog, and there are none: give encode='all' too"
        )
    if neuron is not None:
        check_kind(neuron)
    if encode != "none" and isinstance(neuron, Serial):
        raise OptionError(
            f"encode='{encode}' needs parallel neurons, which know the mean of their input before they fire: leave "
            "neuron= out"
        )
    model = with_doubles(model) if isinstance(model, nn.Module) else model
    graph, args, kwargs = _read(model, example, free_sizes=free_sizes)
    encodes = encode != "none"
    graph = taken_apart(graph, args, kwargs, lookup=analog == "lookup") if encodes else graph
    options = _options(graph, layers or {}, strict=not encodes)
    kept, asked = ({name for name, option in options.items() if isinstance(option, kind)} for kind in (Keep, Spike))
    asked |= {node.name for node in graph.neurons if node.target in LOOKED_UP}
    graph, guarded = undivided(graph, computed(graph, asked)) if encodes else (graph, {})
    guarded |= guards(graph, asked)
    graph = with_copies(graph, guarded, asked)
    last = readouts(graph, kept, asked)
    fires = {n.name for n in graph.neurons if n.name not in last and n.name not in {*kept, *guarded}}
    if encodes:
        sent = [name for name, why in guarded.items() if why == TURNS and analog == "lookup" and name not in last]
        graph = encoded(graph, fires, encode, sent)
        options = _options(graph, layers or {})
        kept = {name for name, option in options.items() if isinstance(option, Keep)}
        fires |= {n.name for n in graph.nodes if n.target == ENCODE} - kept
        last = readouts(graph, kept, asked | fires)  # what an encoder reads is no read-out any more
    spiking = tuple(n.name for n in graph.neurons if n.name in fires)
    graph = with_weights_of_samples(graph, spiking, args, kwargs)
    steps = {name: option.T for name, option in options.items() if isinstance(option, Steps)}
    _check_steps(graph, layers or {}, steps, spiking)
    words = (neuron or Parallel()).words, isinstance(neuron, Serial)
    place = _Place(graph, frozenset(spiking), frozenset(kept), last, guarded, reached_by(graph, spiking), *words)
    rows = tuple(row for node in graph.nodes if (row := _row(node, place)) is not None)
    steps = {name: T for name, T in steps.items() if name in spiking}
    return Plan(
        graph, spiking, tuple(n.name for n in graph.neurons if n.name in kept), rows, strict, steps, neuron, encode,
        analog,
    )  # fmt: skip


def _read(model: nn.Module, example: Any, *, free_sizes: bool) -> tuple[Graph, tuple[Tensor, ...], dict[str, Tensor]]:
    """The rewritten graph of a network, and the inputs of its example."""
    try:
        args, kwargs = _arguments(model, example)
        read = trace(model, args, kwargs, free_sizes=free_sizes)
        check_same(model, read, args, kwargs)
        return rewrite(read, args, kwargs), args, kwargs
    except (InputError, TraceError) as error:
        if (found := opened(model, [example])) is not None:
            return _read(*found, free_sizes=free_sizes)
        args, kwargs = _arguments(model, example)
        if not _one_sample(model, args, kwargs):
            raise
        given = ", ".join(str(tuple(x.shape)) for x in (*args, *kwargs.values()))
        raise InputError(
            f"{type(model).__name__} takes batches, (B, …), B ≥ 1, and the example, {given}, looks like one sample: "
            "pass x[None]"
        ) from error


def plan_again(model: nn.Module | Plan, example: Example, provenance: Mapping[str, Any]) -> Plan:
    """The plan of the network that a converted one was made from, with the encoders that it has, so that both have the
    same operators. A plan stays as it is. provenance: the converted network's."""
    if isinstance(model, Plan):
        return model
    how = {name: provenance[name] for name in ("encode", "analog") if name in provenance}
    return plan(model, example, **how)


def with_encoders(made: Plan) -> Plan:
    """The plan with neurons that make spikes of the network's inputs, for `convert(…, input="rate")`.

    Raises `OptionError` where no input is read by synapses alone.
    """
    inputs = encodable(made.graph)
    if not inputs:
        raise OptionError(
            "no input of this network is read by linear operators alone, so none can arrive as spikes: leave input= out"
        )
    graph = insert_encoders(made.graph, inputs)
    names = [node.name for node in graph.nodes if node.target == ENCODE]
    rows = tuple(_encoder(graph, graph.by_name[name]) for name in names)
    return replace(made, graph=graph, spiking=(*names, *made.spiking), rows=(*rows, *made.rows))


def rows_of(
    graph: Graph, spiking: Collection[str], kept: Collection[str], neuron: str, *, serial: bool
) -> tuple[PlanRow, ...]:
    """The table of a network that was converted before, such as one read from a file.

    graph: with its tensors. spiking, kept: nodes that are neurons, and that the user kept analog. neuron: what the
    table calls a neuron. serial: whether neurons fire step by step.
    """
    known = frozenset(spiking)
    place = _Place(
        graph, known, frozenset(kept), readouts(graph, kept, spiking), guards(graph, spiking),
        reached_by(graph, spiking), neuron, serial,
    )  # fmt: skip
    fed = input_encoders(graph)
    made = (_encoder(graph, node) if node.name in fed else _row(node, place) for node in graph.nodes)
    return tuple(row for row in made if row is not None)


def _encoder(graph: Graph, node: Node) -> PlanRow:
    return PlanRow(
        node.layer, "encode", str(node.role), "neurons that make spikes of the input", "", graph.shape_of(node)
    )


def _one_sample(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a network, refused with these inputs, gives a batch of outputs for x[None], and none for x."""
    if not isinstance(model, nn.Module):
        return False

    def batched(args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> bool:
        try:
            out = outputs(model, args, kwargs)
        except Exception:  # noqa: BLE001 (whatever it raises, it does not take them)
            return False
        sizes = {x.shape[:1] for x in (*args, *kwargs.values())}
        return all(leaf.shape[:1] in sizes for leaf in leaves(out) if isinstance(leaf, Tensor))

    return not batched(args, kwargs) and batched([x[None] for x in args], {k: x[None] for k, x in kwargs.items()})


@dataclass(frozen=True)
class _Place:
    """The context of a row beside its node. readout: see `PlanRow`. guards: activations that are no neurons, and why.
    reached: the values that spikes act on. neuron: what the table calls a neuron; lines: whether it can only be a
    clipped line."""

    graph: Graph
    spiking: frozenset[str]
    kept: frozenset[str]
    readout: frozenset[str]
    guards: Mapping[str, str]
    reached: frozenset[str]
    neuron: str
    lines: bool


def _check_steps(
    graph: Graph, layers: Mapping[str, LayerOption], steps: Mapping[str, int], spiking: Collection[str]
) -> None:
    """Refuse time-steps for layers without neurons, which would change nothing."""
    for pattern, option in layers.items():
        named = [name for name in steps if _matches(graph.by_name[name].layer, pattern)]
        if isinstance(option, Steps) and named and not any(name in spiking for name in named):
            raise OptionError(
                f"layers['{pattern}'] gives time-steps to activations that are no neurons (read-outs, or guards of a "
                "division): see print(parspike.plan(…)); parspike.Spike() makes neurons of them"
            )


def _arguments(model: nn.Module, example: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The inputs of an example, on the network's device."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return on_device_of(tensors, arguments(example))


def arguments(example: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword inputs of an example or a batch."""
    args = () if isinstance(example, Mapping) else tuple(example) if isinstance(example, (tuple, list)) else (example,)
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    for x in (*args, *kwargs.values()):
        if not isinstance(x, Tensor):
            raise InputError(f"an example input is {type(x).__name__}, {expected_tensor(x)}")
    return args, kwargs


def _options(graph: Graph, layers: Mapping[str, LayerOption], *, strict: bool = True) -> dict[str, LayerOption]:
    """The options by node. strict: refuse a pattern that matches no activation."""
    chosen: dict[str, LayerOption] = {}
    if not isinstance(layers, Mapping):
        raise OptionError(f"layers is {layers!r}: expected options by pattern, such as {{'stem.*': parspike.Keep()}}")
    for pattern, option in layers.items():
        if not isinstance(option, LayerOption):
            raise OptionError(f"layers['{pattern}'] is {option!r}: expected parspike.Keep(), Spike() or Steps(T)")
        matched = [node for node in graph.neurons if _matches(node.layer, pattern)]
        if not matched and strict:
            names = [node.layer for node in graph.neurons]
            near = difflib.get_close_matches(pattern, names, n=3) or names[:5]
            raise OptionError(
                f"the pattern '{pattern}' matches no activation; there are, for example: {', '.join(near)}"
            )
        chosen.update({node.name: option for node in matched})
    return chosen


def _matches(layer: str, pattern: str) -> bool:
    """Whether a pattern means a layer; the two halves "act+" and "act-" of an activation are also meant by "act"."""
    return fnmatchcase(layer, pattern) or (layer[-1:] in ("+", "-") and fnmatchcase(layer[:-1], pattern))


def _row(node: Node, place: _Place) -> PlanRow | None:
    row = TABLE.get(node.target)
    operator = node.target.removeprefix("aten.").removeprefix("parspike.").split(".")[0]
    shape = place.graph.shape_of(node)
    role, what = str(node.role), ""
    if node.target == HOLD:
        return None
    if node.role is Role.SYNAPSE:
        by_sample = node.reason in (WEIGHED_BY_SAMPLE, HELD)
        if row is None or not (row.weighted or by_sample):
            return None
        becomes = f"synapse: {node.reason}" if by_sample else "synapse"
    elif node.name in place.readout:
        role, becomes = READOUT, "read-out, computed on the mean output"
    elif node.role is Role.NEURON and node.name in place.guards and node.name not in place.kept:
        role, becomes = str(Role.ANALOG), f"analog {_where(node, place)}: {place.guards[node.name]}"
        what = f"{remedy(node.target, Role.ANALOG)}, or make neurons of it: layers={{'{node.layer}': Spike()}}"
    elif node.role is Role.NEURON:
        becomes = "kept analog" if node.name in place.kept else _neuron(node, place)
    elif node.role is Role.ORDER:
        becomes = _order(node, place)
    elif node.role is Role.ANALOG and row is not None and node.reason == ACROSS_BATCH:
        role, becomes = str(Role.SYNAPSE), f"{row.role} on the time-mean: {node.reason}"
    elif node.role is Role.ANALOG:
        becomes, what = f"analog {_where(node, place)}: {node.reason}", remedy(node.target, node.role)
    else:
        becomes, what = f"refused: {node.reason}", remedy(node.target, node.role)
    return PlanRow(node.layer, operator, role, becomes, node.source, shape, what)


def _where(node: Node, place: _Place) -> str:
    return "on the time-mean" if node.name in place.reached else "once, before any spike"


def _neuron(node: Node, place: _Place) -> str:
    if node.target == ENCODE:
        return f"encoder, {place.neuron} for each of {_features(node, place.graph)}"
    describe = TABLE[node.target].activation
    activation = None if describe is None else describe(node)
    if isinstance(activation, Quantised):
        return f"{place.neuron}, QCFS with L = {activation.levels}"
    if isinstance(activation, Curve):
        return f"{place.neuron}, {'the nearest clipped line' if place.lines else 'a threshold for every level'}"
    return place.neuron


def _features(node: Node, graph: Graph) -> str:
    """The channels of a node, in words."""
    dims = [d for d in node.channel_dims if d]
    if not dims:
        return "its values, one threshold for all"
    shape = graph.shape_of(node)
    along = " × ".join(str(shape[d]) for d in dims)
    return f"{along} channels (dimension {', '.join(map(str, dims))})"


def _order(node: Node, place: _Place) -> str:
    if node.name not in place.reached:
        readers = place.graph.consumers()[node.name]
        if len(node.refs) == 1 and readers and all(reader.name in place.spiking for reader in readers):
            return "max of the current, before the neuron, exact"
        return "max once, before any spike"
    fault = "an IF neuron's spikes come when its input does" if place.lines else unnested(
        place.graph, node, place.spiking
    )  # fmt: skip
    if not fault:
        before = place.graph.by_name[node.refs[0]]
        dims = ", ".join(str(d) for d in sorted(compared(before, node)))
        return f"max of nested spike trains along dimension {dims}, exact"
    readers = place.graph.consumers()[node.name]
    if len(node.refs) == 1 and readers and all(reader.name in place.spiking for reader in readers):
        return "max of the current, before the neuron, exact"
    return f"max of the time-means, these trains are not nested: {fault}"
