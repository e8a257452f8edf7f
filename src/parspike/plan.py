"""Which node becomes what, and why not: a table that needs no data."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from parspike.errors import InputError, OptionError, TraceError, UnsupportedError
from parspike.graph import Activation, Curve, Graph, Node, Role, check_same, leaves, nested, rewrite, trace
from parspike.graph.ir import expected_tensor
from parspike.graph.ops import TABLE, UNFOLDABLE, remedy

__all__ = ["READOUT", "Keep", "LayerOption", "Plan", "PlanRow", "Steps", "plan"]


READOUT = "readout"


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


LayerOption = Keep | Steps


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan. becomes: what stands there in the SNN; shape: per batch, of the example's size.

    role: see `graph.Role`, or `READOUT`: an analog operator behind the last neuron and synapse, which acts on the
    network's output as a decision would.
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

    graph: the rewritten graph. spiking: names of the nodes that become spiking neurons. kept: of those that stay
    analog by the user's wish. rows: the table. strict: whether analog operators between neurons are refused.
    steps: time-steps of the nodes that have their own.
    """

    graph: Graph
    spiking: tuple[str, ...]
    kept: tuple[str, ...]
    rows: tuple[PlanRow, ...]
    strict: bool = False
    steps: Mapping[str, int] = field(default_factory=dict)

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

    def __str__(self) -> str:
        head = ("layer", "operator", "role", "becomes", "shape", "source")
        table: list[tuple[str, ...]] = [head]
        for row in self.rows:
            shape = "×".join(str(dim) for dim in row.shape)
            table.append((row.layer, row.operator, row.role, row.becomes, shape, row.source))
        widths = [max(len(line[i]) for line in table) for i in range(len(head) - 1)]
        lines = [
            "  ".join((*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1])).rstrip()
            for line in table
        ]
        lines.insert(1, "  ".join("─" * w for w in (*widths, len(head[-1]))))
        count = Counter(row.role for row in self.rows)
        lines.append(
            f"{len(self.spiking)} spiking, {len(self.kept)} kept analog, {count[Role.ORDER]} max, "
            f"{count[Role.ANALOG]} analog operators, {count[READOUT]} read-out, {len(self.refusals)} refused"
        )
        lines.append(f"inputs: {self.graph.taken}")
        lines.extend(f"refused: layer '{row.layer}', {row.operator}: {row.remedy}" for row in self.refusals)
        return "\n".join(lines)


def plan(
    model: nn.Module,
    example: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    *,
    layers: Mapping[str, LayerOption] | None = None,
    strict: bool = False,
    free_sizes: bool = True,
) -> Plan:
    """What a conversion will do with a network, before any data are read.

    example: a batch (B, …), a tuple of several inputs, or a dict of keyword inputs; values do not matter.
    layers: options by pattern of layer name, such as {"stem.*": Keep(), "head.*": Steps(4)}. strict: refuse analog
    operators too. free_sizes: leave height, width, length or tokens free where the network allows it, which the plan
    says; False for a network of the example's sizes alone.
    Raises `TraceError`, `InputError`, and `OptionError` for a pattern that matches no activation.
    """
    args, kwargs = arguments(example)
    try:
        graph = rewrite(trace(model, args, kwargs, free_sizes=free_sizes))
        check_same(model, graph, args, kwargs)
    except (InputError, TraceError) as error:
        if not _one_sample(model, args, kwargs):
            raise
        given = ", ".join(str(tuple(x.shape)) for x in (*args, *kwargs.values()))
        raise InputError(
            f"{type(model).__name__} takes batches, (B, …), B ≥ 1, and the example, {given}, looks like one sample: "
            "pass x[None]"
        ) from error
    options = _options(graph, layers or {})
    kept = tuple(name for name, option in options.items() if isinstance(option, Keep))
    last = _readout(graph, kept)
    spiking = tuple(node.name for node in graph.neurons if node.name not in kept and node.name not in last)
    place = _Place(graph, frozenset(spiking), frozenset(kept), last, _reached(graph, spiking))
    rows = tuple(row for node in graph.nodes if (row := _row(node, place)) is not None)
    steps = {name: option.T for name, option in options.items() if isinstance(option, Steps)}
    return Plan(graph, spiking, kept, rows, strict, steps)


def _one_sample(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a network, refused with these inputs, gives a batch of outputs for x[None], and none for x."""
    if not isinstance(model, nn.Module):
        return False

    def batched(args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> bool:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                out = deepcopy(model)(*args, **kwargs)  # a copy: networks may write into their buffers
            except Exception:  # noqa: BLE001 (whatever it raises, it does not take them)
                return False
        sizes = {x.shape[:1] for x in (*args, *kwargs.values())}
        return all(leaf.shape[:1] in sizes for leaf in leaves(out) if isinstance(leaf, Tensor))

    return not batched(args, kwargs) and batched([x[None] for x in args], {k: x[None] for k, x in kwargs.items()})


@dataclass(frozen=True)
class _Place:
    """What a row needs to know beside its node. readout: see `PlanRow`. reached: the values that spikes act on."""

    graph: Graph
    spiking: frozenset[str]
    kept: frozenset[str]
    readout: frozenset[str]
    reached: frozenset[str]


def _readout(graph: Graph, kept: Collection[str]) -> frozenset[str]:
    """Analog operators and squashing activations behind which neither a neuron nor a weighted synapse comes."""
    readers = graph.consumers()
    tail: set[str] = set()
    for node in reversed(graph.nodes):
        row = TABLE.get(node.target)
        if row is None or not all(reader.name in tail for reader in readers[node.name]):
            continue
        ends = node.role in (Role.ANALOG, Role.ORDER) or (node.role is Role.SYNAPSE and not row.weighted)
        if ends or node.name in kept or (node.role is Role.NEURON and row.readout):
            tail.add(node.name)
    return frozenset(name for name in tail if graph.by_name[name].role in (Role.ANALOG, Role.NEURON)) - set(kept)


def _reached(graph: Graph, spiking: Collection[str]) -> frozenset[str]:
    reached: set[str] = set()
    for node in graph.nodes:
        if node.name in spiking or any(name in reached for name in node.refs):
            reached.add(node.name)
    return frozenset(reached)


def arguments(example: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword inputs of an example or a batch."""
    args = () if isinstance(example, Mapping) else tuple(example) if isinstance(example, (tuple, list)) else (example,)
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    for x in (*args, *kwargs.values()):
        if not isinstance(x, Tensor):
            raise InputError(f"an example input is {type(x).__name__}, {expected_tensor(x)}")
    return args, kwargs


def _options(graph: Graph, layers: Mapping[str, LayerOption]) -> dict[str, LayerOption]:
    chosen: dict[str, LayerOption] = {}
    if not isinstance(layers, Mapping):
        raise OptionError(f"layers is {layers!r}: expected options by pattern, such as {{'stem.*': parspike.Keep()}}")
    for pattern, option in layers.items():
        if not isinstance(option, LayerOption):
            raise OptionError(f"layers['{pattern}'] is {option!r}: expected parspike.Keep() or parspike.Steps(T)")
        matched = [node for node in graph.neurons if _matches(node.layer, pattern)]
        if not matched:
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
    if node.role is Role.SYNAPSE:
        if row is None or not row.weighted:
            return None
        becomes = "synapse"
    elif node.name in place.readout:
        role, becomes = READOUT, "read-out, computed on the mean output"
    elif node.role is Role.NEURON:
        becomes = "kept analog" if node.name in place.kept else _neuron(node)
    elif node.role is Role.ORDER:
        becomes = _order(node, place)
    elif node.role is Role.ANALOG and row is not None and node.reason == UNFOLDABLE:
        role, becomes = str(Role.SYNAPSE), f"{row.role} on the time-mean: {node.reason}"
    elif node.role is Role.ANALOG:
        where = "on the time-mean" if node.name in place.reached else "once, before any spike"
        becomes, what = f"analog {where}: {node.reason}", remedy(node.target, node.role)
    else:
        becomes, what = f"refused: {node.reason}", remedy(node.target, node.role)
    return PlanRow(node.layer, operator, role, becomes, node.source, shape, what)


def _neuron(node: Node) -> str:
    describe = TABLE[node.target].activation
    if describe is None or not isinstance(describe(node), Curve):
        return "parallel spiking neuron"
    return "parallel spiking neuron, a threshold for every level"


def _order(node: Node, place: _Place) -> str:
    if node.refs[0] in place.reached and nested(place.graph, node, place.spiking):
        return "max of nested spike trains, exact"
    readers = place.graph.consumers()[node.name]
    if len(node.refs) == 1 and readers and all(reader.name in place.spiking for reader in readers):
        return "max of the current, before the neuron, exact"
    return "max of the time-means: these trains are not nested"
