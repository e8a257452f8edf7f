"""Which node becomes what, and why not: a table that needs no data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from parspike.errors import OptionError, UnsupportedError
from parspike.graph import Activation, Graph, Node, Role, rewrite, trace
from parspike.graph.ops import TABLE, remedy

__all__ = ["Keep", "LayerOption", "Plan", "PlanRow", "plan"]


@dataclass(frozen=True)
class Keep:
    """Keep an activation analog: it is computed on the time-mean and sent on as a constant current."""


LayerOption = Keep


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan. role: see `graph.Role`; becomes: what stands there in the SNN; shape: per batch."""

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
    analog by the user's wish. rows: the table.
    """

    graph: Graph
    spiking: tuple[str, ...]
    kept: tuple[str, ...]
    rows: tuple[PlanRow, ...]
    strict: bool = False

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
        return {"ok": self.ok, "neurons": len(self.spiking), "rows": [asdict(row) for row in self.rows]}

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
        count = {role: sum(row.role == role for row in self.rows) for role in Role}
        lines.append(
            f"{len(self.spiking)} spiking, {len(self.kept)} kept analog, {count[Role.ORDER]} max, "
            f"{count[Role.ANALOG]} analog operators, {len(self.refusals)} refused"
        )
        lines.extend(f"refused: layer '{row.layer}', {row.operator}: {row.remedy}" for row in self.refusals)
        return "\n".join(lines)


def plan(
    model: nn.Module,
    example: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    *,
    layers: Mapping[str, LayerOption] | None = None,
    strict: bool = False,
) -> Plan:
    """What a conversion will do with a network, before any data are read.

    example: a batch (B, …), a tuple of several inputs, or a dict of keyword inputs; values do not matter.
    layers: options by pattern of layer name, such as {"stem.*": Keep()}. strict: refuse analog operators too.
    Raises `TraceError`, `InputError`, and `OptionError` for a pattern that matches no activation.
    """
    args, kwargs = arguments(example)
    graph = rewrite(trace(model, args, kwargs))
    options = _options(graph, layers or {})
    kept = tuple(name for name, option in options.items() if isinstance(option, Keep))
    spiking = tuple(node.name for node in graph.neurons if node.name not in kept)
    rows = tuple(row for node in graph.nodes if (row := _row(node, node.name in kept)) is not None)
    return Plan(graph, spiking, kept, rows, strict)


def arguments(example: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword inputs of an example or a batch."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def _options(graph: Graph, layers: Mapping[str, LayerOption]) -> dict[str, LayerOption]:
    chosen: dict[str, LayerOption] = {}
    for pattern, option in layers.items():
        if not isinstance(option, LayerOption):
            raise OptionError(f"layers['{pattern}'] is {option!r}: expected parspike.Keep()")
        matched = [node for node in graph.neurons if fnmatchcase(node.layer, pattern)]
        if not matched:
            names = [node.layer for node in graph.neurons]
            near = difflib.get_close_matches(pattern, names, n=3) or names[:5]
            raise OptionError(
                f"the pattern '{pattern}' matches no activation; there are, for example: {', '.join(near)}"
            )
        chosen.update({node.name: option for node in matched})
    return chosen


def _row(node: Node, kept: bool) -> PlanRow | None:
    row = TABLE.get(node.target)
    operator = node.target.removeprefix("aten.").split(".")[0]
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in node.shape)
    what = ""
    if node.role is Role.SYNAPSE:
        if row is None or not row.weighted:
            return None
        becomes = "synapse"
    elif node.role is Role.NEURON:
        becomes = "kept analog" if kept else "parallel spiking neuron"
    elif node.role is Role.ORDER:
        becomes = "max, exact"
    elif node.role is Role.ANALOG:
        becomes, what = f"analog on the time-mean: {node.reason}", remedy(node.target, node.role)
    else:
        becomes, what = f"refused: {node.reason}", remedy(node.target, node.role)
    return PlanRow(node.layer, operator, str(node.role), becomes, node.source, shape, what)
