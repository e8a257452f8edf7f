"""`check`: every layer of a network against what a target can run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from parspike.errors import OptionError, meant
from parspike.graph import Node, Role, Size
from parspike.graph.encode import input_encoders
from parspike.graph.ir import BATCH
from parspike.graph.ops import CASTS, ENCODE, TABLE
from parspike.graph.roles import reached_by
from parspike.graph.signature import Conv, Linear, Pool, arguments
from parspike.neurons import IntegrateFire, Neuron, Pair, ParallelNeuron, SignedNeuron, SortedTrain
from parspike.snn import SNN, check_converted
from parspike.target.result import GRADES, Finding, TargetCheck
from parspike.target.tables import table, targets

__all__ = ["check"]

SAME = ("aten.reshape.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.unsqueeze.default", "getitem",
        "aten.expand.default", *CASTS)  # fmt: skip
"""Wires that only rename elements."""
SUMS = ("aten.add.Tensor",)
CATS = ("aten.cat.default", "aten.stack.default")


def check(snn: SNN, target: str) -> TargetCheck:
    """Whether a chip, with its public tools, can run a converted network: every blocker at once.

        print(parspike.check(snn, target="speck"))

    target: loihi2, speck, spinnaker2, akida, hls4ml, or generic, integrate-and-fire neurons and 8-bit weights. Each
    finding is graded: "unsupported", "approximate" (it runs, and computes something near), or "faithful", a remark.
    The limits stand in target/targets.toml with their sources (docs/hardware.md); those that no source confirms are
    told and never block. Shapes are those of the example that the network was converted with.
    Raises `OptionError` for an unknown target, and for a network in whole numbers (`lower.integers`), whose pools and
    scales are synapses of their own: give the one that it was made from.
    """
    check_converted(snn, "check")
    if snn.provenance.get("lowered") == "integers":
        raise OptionError(
            "check: this network is in whole numbers, where pools and scales stand as synapses that no chip's tools "
            "would make: give the network that it was lowered from"
        )
    if target not in targets():
        raise OptionError(
            f"there is no target '{target}'{meant(target, targets())}: choose one of {', '.join(targets())}"
        )
    found = _Check(snn, table(target)).findings()
    order = sorted(found, key=lambda one: (not one.verified, -GRADES.index(one.grade)))
    return TargetCheck(target, table(target)["title"], tuple(dict.fromkeys(order)))


@dataclass(frozen=True)
class _Layer:
    """One synapse. kernel, stride … one number a dimension, () where it has none. words: of the kernel memory and the
    neuron memory of a core."""

    node: Node
    kind: str
    fan_in: int
    channels: tuple[int, ...]
    weights: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    in_size: tuple[int, ...] = ()
    out_size: tuple[int, ...] = ()
    pool: tuple[int, ...] = ()

    @property
    def words(self) -> tuple[int, int]:
        """Entries of kernel and neuron memory, each dimension filled up to a power of two (source Z)."""
        inner, outer = self.channels
        kernel = inner * 2 ** (_bits(math.prod(self.kernel)) + _bits(outer))
        return kernel, outer * 2 ** sum(_bits(size) for size in self.out_size)


def _bits(number: int) -> int:
    return max(0, number - 1).bit_length()


class _Check:
    def __init__(self, snn: SNN, limits: Mapping[str, Any]) -> None:
        self.snn, self.graph, self.limits = snn, snn.graph, limits
        self.neurons = snn.neurons()
        self.reached = reached_by(self.graph, self.neurons)
        self.fed = input_encoders(self.graph)
        self.tensors = snn.tensors()
        self.moving = {i.name for i in self.graph.inputs}
        for node in self.graph.nodes:
            if any(ref in self.moving for ref in node.refs):
                self.moving.add(node.name)
        self.before_work = self._before({*self.neurons} | {n.name for n in self.graph.nodes if _weighted(n)})

    def _before(self, names: set[str]) -> set[str]:
        """The nodes that any of these is computed from."""
        found: set[str] = set()
        for node in reversed(self.graph.nodes):
            if node.name in names or node.name in found:
                found.update(node.refs)
        return found

    def findings(self) -> Iterator[Finding]:
        """All of them."""
        yield from self._of_neurons()
        yield from self._of_inputs()
        if self.layers:
            bits, source = (self.limits["weights"][name] for name in ("bits", "source"))
            what = f"{bits} bits" if bits else "fixed point, of a width that you choose"
            yield Finding("", "weights", "approximate", f"weights are rounded to {what}", "", source)
        for node in self.graph.nodes:
            if node.name in self.moving and node.name not in self.neurons:
                yield from self._of_node(node)
        for layer in (*self.layers, *self.pools):
            yield from self._of_limits(layer)
        yield from self._of_totals()

    # ------------------------------------------------------------------------------------------------ neurons

    def _broken(self, part: str, layer: str, what: str, remedy: str = "", about: str = "") -> Finding:
        line = self.limits[part]
        return Finding(layer, about or part, line.get("grade", "unsupported"), what, remedy or line.get("remedy", ""),
                       line["source"], line.get("verified", True))  # fmt: skip

    def _of_neurons(self) -> Iterator[Finding]:
        line = self.limits["neurons"]
        for name, neuron in self.neurons.items():
            node = self.graph.by_name[name]
            if name in self.fed:
                continue  # a computer makes the spikes of the input
            kind = _kind(neuron)
            if kind == "quantised" and "quantised" in line["kinds"]:
                levels = neuron.levels_in(self.snn.T)
                what = f"parallel neurons of {levels} levels, as an activation of {levels.bit_length()} bits"
                if levels <= line["levels"]:
                    yield self._broken("neurons", node.layer, what)
                else:
                    yield Finding(node.layer, "neurons", "unsupported", f"{what}; at most {line['levels']} levels",
                                  line["remedy"], line["source"])  # fmt: skip
                continue
            if kind not in line["kinds"]:
                words = _words(neuron)
                remedy = line.get("remedy", "convert with neuron=parspike.IF()")
                if node.target == ENCODE:
                    remedy = f"{remedy}, without encode="
                yield Finding(node.layer, "neurons", "unsupported", f"no {words} neurons", remedy, line["source"],
                              line.get("verified", True))  # fmt: skip
            if isinstance(neuron, IntegrateFire):
                yield from self._of_integrate_fire(node.layer, neuron)

    def _of_integrate_fire(self, layer: str, neuron: IntegrateFire) -> Iterator[Finding]:
        if self.limits["v_init"]["value"] == "zero" and bool((neuron.v_init != 0).any()):
            yield self._broken("v_init", layer, "potentials start from 0, these do not",
                               'convert with v_init="zero", or add it to the bias of the first step')  # fmt: skip
        extras = {
            "signed": (neuron.signed, "spikes of −1", "convert with signed=False"),
            "refractory": (bool(neuron.refractory), "a refractory time", "convert with refractory=0"),
            "step-bias": (len(neuron.bias) > 1, "bias of its own for every step", 'convert with bias="constant"'),
        }
        for name, (has, words, remedy) in extras.items():
            if has and name not in self.limits["extras"]["have"]:
                yield self._broken("extras", layer, f"no {words}", remedy, about=name)
        if neuron.offsets:
            yield Finding(layer, "offset", "approximate", "silent neurons send a constant current, which goes into the "
                          "bias behind; inexact at padded borders")  # fmt: skip

    def _of_inputs(self) -> Iterator[Finding]:
        if self.limits["input"]["value"] == "any":
            return
        encoded = {ref for name in self.fed for ref in self.graph.by_name[name].refs}
        plain = [i.name for i in self.graph.inputs if i.name not in encoded]
        if plain:
            yield self._broken("input", "", f"input {', '.join(plain)} is real numbers, the chip takes spikes",
                               'convert with input="rate", or compute the first layer beside the chip')  # fmt: skip

    # ------------------------------------------------------------------------------------------------ operators

    def _of_node(self, node: Node) -> Iterator[Finding]:
        operator = node.target.removeprefix("aten.").removeprefix("parspike.").split(".")[0]
        spikes = node.name in self.reached or any(ref in self.neurons for ref in node.refs)
        last = node.name not in self.before_work
        if node.role in (Role.ANALOG, Role.NEURON):
            kept = "an activation without spikes" if node.role is Role.NEURON else "no operation on spikes"
            if last:
                yield Finding(node.layer, operator, "faithful", f"{operator} on the output, computed beside the chip")
            elif spikes:
                remedy = "convert without keeping it analog" if node.role is Role.NEURON else "another network"
                yield Finding(node.layer, operator, "unsupported", f"{operator}: {kept}", remedy)
            else:
                yield Finding(
                    node.layer, operator, "approximate", f"{operator} before the first spike, computed beside the chip"
                )
            return
        if _weighted(node):
            layer = next((one for one in self.layers if one.node is node), None)
            kind = "matmul" if layer is None else layer.kind
            have = self.limits["layers"]["have"]
            if kind not in have:
                yield self._broken("layers", node.layer, f"no {kind} among its layers ({', '.join(have)})")
            if any(self._from_synapse(ref) for ref in node.refs):
                yield Finding(node.layer, "chain", "unsupported", "two synapses without neurons between them",
                              "multiply their weights into one, or put an activation between")  # fmt: skip
            if last or not self._feeds_neurons(node):
                yield Finding(node.layer, "output", "faithful", "the last synapse has no neurons: add up its "
                              "output beside the chip, or read potentials")  # fmt: skip
            return
        wire = self._wire(node)
        if wire is None or last or not spikes:
            return
        if wire not in self.limits["wires"]["have"]:
            words = {
                "currents": "a sum of the outputs of several synapses",
                "sum": "a sum of spike trains",
                "max_pool": "a maximum",
                "avg_pool": "an average pool",
                "cat": "a concatenation",
            }
            remedy = {
                "max_pool": "train with average pooling or strided convolutions instead",
                "currents": "a network without residual sums, or neurons before the sum",
                "avg_pool": "a strided convolution with equal weights",
            }
            what = f"{words[wire]} ({operator})" if wire in words else f"the operator {operator}"
            remedied = "" if "remedy" in self.limits["wires"] else remedy.get(wire, "")
            yield self._broken("wires", node.layer, what, remedied, about=wire)

    def _from_synapse(self, name: str) -> bool:
        """Whether a value is a synapse's output with only wires between."""
        node = self.graph.by_name.get(name)
        if node is None or name in self.neurons or node.role is not Role.SYNAPSE:
            return False
        return _weighted(node) or any(self._from_synapse(ref) for ref in node.refs)

    def _feeds_neurons(self, node: Node) -> bool:
        readers = self.graph.consumers()
        return any(
            one.name in self.neurons or (not _weighted(one) and self._feeds_neurons(one)) for one in readers[node.name]
        )

    def _wire(self, node: Node) -> str | None:
        """Which wire an operator is; None for one that only renames elements, and for constants."""
        if node.target in SAME or not node.refs:
            return None
        pool = arguments(node)
        if node.role is Role.ORDER:
            return "max_pool"
        if (isinstance(pool, Pool) and pool.average) or node.target == "aten.mean.dim":
            return "avg_pool"
        if node.target in SUMS and sum(ref in self.moving for ref in node.refs) > 1:
            return "currents" if any(self._from_synapse(ref) for ref in node.refs) else "sum"
        return "cat" if node.target in CATS else "other"

    # ------------------------------------------------------------------------------------------------ limits

    @cached_property
    def layers(self) -> list[_Layer]:
        """The synapses that are convolutions or linear layers."""
        return [layer for node in self.graph.nodes if (layer := self._layer(node)) is not None]

    @cached_property
    def pools(self) -> list[_Layer]:
        """The pools, as layers that have nothing but a kernel."""
        found = []
        for node in self.graph.nodes:
            pool = arguments(node) if node.name in self.moving else None
            if isinstance(pool, Pool) and pool.kernel:
                found.append(_Layer(node, "avg_pool" if pool.average else "max_pool", 0, (), 0, pool=pool.kernel))
        return found

    def _size(self, name: str) -> tuple[Any, ...]:
        """The shape of one sample of a value, for inputs of the example's size. The batch may stand in any dimension,
        or share one with others (the heads of an attention), which stay."""
        found = self.graph.by_name.get(name) or next(i for i in self.graph.inputs if i.name == name)
        one = {**self.graph.example, BATCH: 1}
        shape = [(d(one), BATCH in d.symbols) if isinstance(d, Size) else (d, False) for d in found.shape]
        return tuple(size for size, batch in shape if not (batch and size == 1))

    def _layer(self, node: Node) -> _Layer | None:
        found = arguments(node) if _weighted(node) else None
        if not isinstance(found, (Conv, Linear)):
            return None
        path = getattr(found.weight, "path", None)
        if path is None or not node.refs:
            return None
        weight, read, made = self.tensors[path], node.refs[0], self._size(node.name)
        if isinstance(found, Conv):
            kernel = tuple(weight.shape[2:])
            outer, inner = (
                weight.shape[:2]
                if not found.transposed
                else (weight.shape[1] * found.groups, weight.shape[0] // found.groups)
            )
            rank = len(kernel)
            padding = tuple(max(pair) for pair in found.padded(kernel)) if not found.transposed else ()
            return _Layer(
                node, "transposed" if found.transposed else f"conv{rank}d", inner * math.prod(kernel),
                (inner * found.groups, outer), weight.numel(), kernel, found.stride, padding, found.dilation,
                (found.groups,), tuple(self._size(read)[-rank:]), tuple(made[-rank:]),
            )  # fmt: skip
        outer, inner = weight.shape[::-1] if found.transposed else weight.shape
        # Behind a flattened map the layer is a convolution with a kernel of the map's size.
        shape = self._unflattened(read)
        flattened = len(shape) == 3 and math.prod(shape) == inner
        channels, kernel = (shape[0], tuple(shape[1:])) if flattened else (inner, (1, 1))
        return _Layer(node, "linear", inner, (channels, outer), weight.numel(), kernel, out_size=(1, 1))

    def _unflattened(self, name: str) -> tuple[Any, ...]:
        node = self.graph.by_name.get(name)
        while node is not None and node.target in SAME and len(node.refs) == 1:
            name = node.refs[0]
            node = self.graph.by_name.get(name)
        return self._size(name)

    def _of_limits(self, layer: _Layer) -> Iterator[Finding]:
        if layer.node.name not in self.moving:
            return
        for rule in self.limits.get("rule", ()):
            if layer.kind not in rule["of"]:
                continue
            what = rule["what"]
            values = (
                (layer.fan_in,) if what == "fan_in" else tuple(v for v in getattr(layer, what) if isinstance(v, int))
            )
            most, choices = rule.get("most"), rule.get("one_of")
            wrong = [v for v in values if (most is not None and v > most) or (choices is not None and v not in choices)]
            uneven = rule.get("square", False) and len(set(values)) > 1
            if not wrong and not uneven:
                continue
            limit = f"one of {', '.join(map(str, choices))}" if choices is not None else f"at most {most}"
            limit += ", alike along all dimensions" if rule.get("square") else ""
            named = {"fan_in": "fan-in", "in_size": "input size", "out_size": "output size"}.get(what, what)
            yield Finding(
                layer.node.layer, what, "unsupported",
                f"{layer.kind}: {named} {'×'.join(map(str, values))}, {limit}", "",
                rule["source"], rule.get("verified", True),
            )  # fmt: skip

    def _of_totals(self) -> Iterator[Finding]:
        alive = [layer for layer in self.layers if layer.node.name in self.moving]
        units = sum(
            math.prod(self._size(name)) * neuron.lines for name, neuron in self.neurons.items() if name not in self.fed
        )
        outputs = {layer.node.name: math.prod(self._size(layer.node.name)) for layer in alive}
        have = {
            "layers": len(alive), "neurons": units, "weights": sum(layer.weights for layer in alive),
            "synapses": sum(layer.fan_in * outputs[layer.node.name] for layer in alive),
        }  # fmt: skip
        for rule in self.limits.get("total", ()):
            name, most = rule["what"], rule["most"]
            if have[name] > most:
                what, remedy = f"{have[name]:,} {name}, at most {most:,}", "a smaller network, or several chips"
                yield Finding("", name, "unsupported", what, remedy, rule["source"], rule.get("verified", True))
        if "cores" in self.limits:
            yield from self._of_cores(alive)

    def _of_cores(self, layers: Sequence[_Layer]) -> Iterator[Finding]:
        line = self.limits["cores"]
        cores = list(zip(line["kernel"], line["neurons"], strict=True))
        fits = [
            [c for c, (k, n) in enumerate(cores) if layer.words[0] <= k and layer.words[1] <= n] for layer in layers
        ]
        for layer, possible in zip(layers, fits, strict=True):
            if not possible:
                kernel, neurons = layer.words
                yield Finding(
                    layer.node.layer, "memory", "unsupported",
                    f"{kernel / 1024:,.4g} Ki words of weights and {neurons / 1024:,.4g} Ki of neurons fit in no core "
                    f"({', '.join(f'{k // 1024}/{n // 1024}' for k, n in dict.fromkeys(cores))} Ki)",
                    "fewer channels, or a smaller map", line["source"],
                )  # fmt: skip
        placed: dict[int, int] = {}

        def place(layer: int, tried: set[int]) -> bool:
            for core in fits[layer]:
                if core not in tried:
                    tried.add(core)
                    if core not in placed or place(placed[core], tried):
                        placed[core] = layer
                        return True
            return False

        homeless = [layers[i].node.layer for i, possible in enumerate(fits) if possible and not place(i, set())]
        if homeless:
            yield Finding(
                "",
                "memory",
                "unsupported",
                f"no core is left for {', '.join(homeless)}",
                "fewer or smaller layers",
                line["source"],
            )


def _weighted(node: Node) -> bool:
    return node.role is Role.SYNAPSE and TABLE[node.target].weighted


def _kind(neuron: Any) -> str:
    """The name of a kind of neurons in the table of targets."""
    if isinstance(neuron, IntegrateFire):
        return ("if" if neuron.decay == 1 else "lif") + ("" if neuron.reset == "subtract" else "-zero")
    if isinstance(neuron, ParallelNeuron):
        return "quantised"
    if isinstance(neuron, Pair):
        return SignedNeuron.kind
    return "staircase" if isinstance(neuron, Neuron) else neuron.kind


def _words(neuron: Any) -> str:
    if isinstance(neuron, IntegrateFire):
        leak = "integrate-and-fire" if neuron.decay == 1 else "leaky"
        return f"{leak} (reset {'by θ' if neuron.reset == 'subtract' else 'to 0'})"
    if isinstance(neuron, Pair):
        return "pairs of parallel"
    return "parallel" if isinstance(neuron, (Neuron, SortedTrain)) else neuron.kind
