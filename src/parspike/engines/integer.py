"""Counts as bytes, through integer kernels: networks in whole numbers, bit for bit as `count` runs them.

A network of `parspike.lower.integers` holds whole numbers alone, in float32 or float64. Here the counts of its neurons
are uint8, and synapses with weights of at most 8 bits go through oneDNN's int8 convolutions and products, which add in
32 bits. Everything else (a value of more than 8 bits, the answer) runs as in `count`.

Two things could make a result differ from exact arithmetic; neither is left to chance:

- Processors without VNNI add pairs of products of 8 bits in 16 bits, which saturate. Where two such products may not
  fit, the input is split into two parts of 7 bits, whose sums are added. And before the first run the library has to
  reproduce exact sums on this machine (`exact`); where it does not, its kernels are not used.
- Neurons behind one synapse are computed in the kernel's last step: k = round((z − first + ½) / step + ½) in float32. z
  and first are whole, so the exact quotient is at least ½ / step away from every point where the rounding changes. It
  is done so where the weights prove that float32 errs by less. Neurons behind a sum of several values are computed
  piece by piece, where the weights prove that every sum near a threshold is below 2^24, so exact in float32. Elsewhere
  `WholeNeuron.count` runs on all of the sum.

What could prove this wrong: a count that differs from that of engine "count" (tests/test_integer_engine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.engines.base import Network, Record, Run, kept_of, recorded
from parspike.graph import Graph, Node, Param, Ref, Role, Schedule, Stream, map_tree, walk
from parspike.graph.ops import TABLE, call
from parspike.graph.signature import Conv, Linear, arguments
from parspike.neurons import PackedTrains, WholeNeuron

__all__ = ["Integer", "exact", "integer"]

BYTE, HALF = 255, 128
PAIR = (1 << 15) - 1
"""The largest sum of two products that a processor without VNNI holds."""
TILE = 1 << 15
"""Elements of a piece of an elementwise chain: 128 KiB of float32, a part of the second-level cache."""
WHOLE = 1 << 24
"""Whole numbers below it, and their sums, are exact in float32."""
ULP = 2.0**-24
CLIP = "aten.clamp.Tensor"
MOVERS = {
    "aten.reshape.default", "aten.permute.default", "aten.transpose.int", "aten.cat.default", "aten.slice.Tensor",
    "aten.select.int", "aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.dims",
}  # fmt: skip
"""Operators that do to bytes what they do to numbers."""


def integer(net: Network, env: dict[str, Any], *, record: Record = False) -> Run:
    """One pass for the inputs in `env`, in integers. net: in whole numbers (`parspike.lower.integers`)."""
    how = Integer.of(net)
    kept: dict[str, Tensor | PackedTrains] = {}
    spiking = net.counting()

    def run(node: Node, args: tuple[Any, ...]) -> list[Any]:
        value = how.steps[node.name](args)
        if record and node.name in spiking:
            kept[node.name] = kept_of(spiking[node.name], value.to(how.dtype), record)
        return [value]

    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        neuron, z = spiking[node.name], args[0]
        count = neuron.count(z.to(how.dtype))
        if record:
            kept[node.name] = kept_of(neuron, count, record)
        return [neuron.value(count)]

    stream = Stream(env, net.tensors(), net.graph.sizes(env))
    walk(how.schedule, [stream], dict.fromkeys(spiking, fire) | dict.fromkeys(how.steps, run))
    return recorded(net.graph.collect(stream.env), net, "integer", kept if record else None)


Step = Callable[[tuple[Any, ...]], Any]
"""A node's value from its arguments, of which those that are counts may be bytes."""
_made: WeakKeyDictionary[Any, tuple[list[tuple[Any, ...]], Integer]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Integer:
    """A network made ready for integer kernels. steps: by node name, what other than its operator a node computes.
    dtype: of whole numbers that are no bytes. synapses: how many of the weighted ones run in integers, of how many."""

    schedule: Schedule
    steps: Mapping[str, Step]
    dtype: torch.dtype
    synapses: tuple[int, int]

    @classmethod
    def of(cls, net: Network) -> Integer:
        """That of a network, made at its first run and again when a tensor of it was replaced or changed in place."""
        tensors = [*net.tensors().values(), *(p for neuron in net.neurons().values() for p in neuron.parameters())]
        state = [(t, t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors]
        before = _made.get(net)
        if before is None or len(before[0]) != len(state) or any(
            a[0] is not b[0] or a[1:] != b[1:] for a, b in zip(before[0], state, strict=True)
        ):  # fmt: skip
            before = state, _Maker(net).made()
            _made[net] = before
        return before[1]


@dataclass
class _Synapse:
    """A convolution or linear layer with weights of at most 8 bits that reads whole numbers.

    most: the largest |sum|, for every output. parts: the input as bytes, each with the sign that its sum has.
    """

    node: Node
    found: Conv | Linear
    weight: Tensor
    bias: Tensor
    most: Tensor
    parts: tuple[tuple[Callable[[Tensor], Tensor], int], ...]

    def __post_init__(self) -> None:
        whole = self.weight.detach().to(torch.int8)
        self.ones = torch.ones(len(self.bias))
        self.zeros = torch.zeros(len(self.bias), dtype=torch.int32)
        if isinstance(self.found, Conv):
            pads = [before for before, _ in self.found.padded(list(self.weight.shape[2:]))]
            self.how = list(self.found.stride), pads, list(self.found.dilation), self.found.groups
            self.packed = _ops().qconv_prepack(whole, self.ones, 1.0, 0, *self.how, None)
        else:
            self.packed = _ops().qlinear_prepack(whole, None)

    @property
    def clips(self) -> bool:
        """Whether its kernel can also clip, which those of two spatial dimensions alone do."""
        return isinstance(self.found, Conv) and len(self.found.stride) == 2

    def sums(self, x: Tensor, scale: Tensor | None, bias: Tensor, *, clip: int | None = None) -> Tensor:
        """scale · (sum of the products) + bias in float32; clip: rounded, as bytes 0 … clip. Scales are above 0."""
        post = ("none", [], "") if clip is None else ("hardtanh", [0.0, float(clip)], "")
        kind = torch.float32 if clip is None else torch.uint8
        factor = self.ones if scale is None else scale
        (first, _), *others = self.parts
        total = self._run(first(x), factor, bias, kind, post)
        for part, sign in others:
            total.add_(self._run(part(x), factor, torch.zeros_like(bias), kind, post), alpha=sign)
        return total

    def _run(self, x: Tensor, scale: Tensor, bias: Tensor, kind: torch.dtype, post: tuple[Any, ...]) -> Tensor:
        if isinstance(self.found, Conv):
            return _ops().qconv_pointwise(
                x, 1.0, 0, self.packed, scale, self.zeros, bias, *self.how, 1.0, 0, kind, *post
            )
        flat = x.reshape(-1, x.shape[-1])
        made = _ops().qlinear_pointwise(flat, 1.0, 0, self.packed, scale, self.zeros, bias, 1.0, 0, kind, *post)
        return made.view(*x.shape[:-1], -1)


def _ops() -> Any:
    return torch.ops.onednn


@cache
def exact(pairs: bool = False) -> bool:
    """Whether the kernels of this machine reproduce exact sums; pairs: also of two products beyond 16 bits.

    Convolutions (plain, grouped, depthwise, 1×1, of 1 and 3 dimensions) and products with the largest and with random
    numbers are compared with float64.
    """
    generator = torch.Generator().manual_seed(0)
    most = BYTE if pairs else HALF
    try:
        for rank, channels, outputs, kernel, groups in (
            (2, 64, 32, 3, 1), (2, 64, 32, 1, 1), (2, 32, 32, 3, 32), (2, 16, 16, 3, 2), (2, 3, 8, 3, 1),
            (1, 5, 7, 3, 1), (3, 4, 3, 3, 1), (0, 64, 10, 1, 1), (0, 7, 5, 1, 1),
        ):  # fmt: skip
            shape = (outputs, channels // groups, *[kernel] * rank)
            for weight, x in (
                (torch.full(shape, 127), torch.full((2, channels, *[9] * rank), most)),
                (torch.randint(-127, 128, shape, generator=generator),
                 torch.randint(0, most + 1, (2, channels, *[9] * rank), generator=generator)),
            ):  # fmt: skip
                weight, x, bias = weight.double(), x.double(), torch.arange(outputs).double() - 3
                if rank:
                    conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
                    right = conv(x, weight, bias, 1, kernel // 2, 1, groups)
                    found: Conv | Linear = Conv(
                        None, None, None, (1,) * rank, (kernel // 2,) * rank, (1,) * rank, groups
                    )
                else:
                    right, found = F.linear(x, weight, bias), Linear(None, None, None)
                like = Node("probe", "", (), {}, Role.SYNAPSE, "", "", tuple(right.shape))
                made = _Synapse(like, found, weight, bias, bias, ((_bytes, 1),))
                if not torch.equal(made.sums(x, None, bias.float()).double(), right):
                    return False
                if rank != 2:
                    continue
                step = 1001.0
                wanted = ((right + 5) / step).floor().add(1).clamp(0, 40)
                scale, added = torch.full((outputs,), 1 / step), ((bias + 5.5) / step + 0.5).float()
                if not torch.equal(made.sums(x, scale, added, clip=40).double(), wanted):
                    return False
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def _bytes(x: Tensor) -> Tensor:
    return x.to(torch.uint8)


def _above(x: Tensor) -> Tensor:
    return x.clamp(min=0).to(torch.uint8)


def _below(x: Tensor) -> Tensor:
    return x.neg().clamp_(min=0).to(torch.uint8)


def _first_half(x: Tensor) -> Tensor:
    return x.clamp(max=HALF).to(torch.uint8)


def _second_half(x: Tensor) -> Tensor:
    return (x.clamp(min=HALF) - HALF).to(torch.uint8)


@dataclass
class _Term:
    """factor · value, one part of what a neuron reads; factor: for every channel, or one number."""

    name: str
    factor: Tensor


class _Maker:
    """`Integer` in the making."""

    def __init__(self, net: Network) -> None:
        self.graph: Graph = net.graph
        self.tensors, self.neurons = net.tensors(), net.counting()
        self.readers = self.graph.consumers()
        self.ranges: dict[str, tuple[float, float]] = {}
        self.bytes: set[str] = set()
        self.synapses: dict[str, _Synapse] = {}
        self.dtype = next((n.first.dtype for n in self.neurons.values() if isinstance(n, WholeNeuron)), torch.float32)
        self.here = all(t.device.type == "cpu" for t in self.tensors.values()) and exact()

    def made(self) -> Integer:
        weighted = 0
        for node in self.graph.nodes:
            self._range(node)
            self._is_bytes(node)
            weighted += TABLE[node.target].weighted
            if self.here and (synapse := self._synapse(node)) is not None:
                self.synapses[node.name] = synapse
        nodes = {node.name: node for node in self.graph.nodes}
        steps: dict[str, Step] = {}
        for node in self.graph.nodes:
            if node.name in self.bytes and node.name in self.neurons:
                step, reads, gone = self._neuron(node)
                steps[node.name] = step
                nodes[node.name] = replace(node, args=tuple(Ref(name) for name in reads), kwargs={})
                for name in gone:
                    nodes.pop(name, None)
        for node in nodes.values():
            if node.name in steps:
                continue
            if node.name in self.synapses:
                steps[node.name] = _sums_of(self.synapses[node.name], self.dtype)
                read = self.synapses[node.name].found.input
                nodes[node.name] = replace(node, args=(read,), kwargs={})
            elif node.name not in self.neurons and node.name not in self.bytes and not self.bytes.isdisjoint(node.refs):
                steps[node.name] = _widened(node, self.dtype)
        schedule = Schedule.of(list(nodes.values()), self.graph.outputs)
        return Integer(schedule, steps, self.dtype, (len(self.synapses), weighted))

    # What is known of the values.

    def _range(self, node: Node) -> None:
        """The smallest and the largest whole number that a node's value may hold, as far as it is known."""
        infinite = -torch.inf, torch.inf
        given = [self.ranges.get(ref, infinite) for ref in node.refs]
        found: tuple[float, float] = infinite
        neuron = self.neurons.get(node.name)
        if isinstance(neuron, WholeNeuron):
            found = 0.0, float(neuron.levels)
        elif node.target == CLIP and all(isinstance(arg, Param) for arg in node.args[1:]) and len(node.args) == 3:
            low, high = (self.tensors[arg.path] for arg in node.args[1:])
            found = float(low.min()), float(high.max())
        elif node.target in MOVERS or node.target == "aten._to_copy.default" or node.role is Role.ORDER:
            found = min(low for low, _ in given), max(high for _, high in given)
        elif node.target == "aten.mul.Tensor" and isinstance(node.args[1], Param) and len(given) == 1:
            factor = self.tensors[node.args[1].path]
            ends = [float(end) * f for end in given[0] for f in (float(factor.min()), float(factor.max()))]
            found = (min(ends), max(ends)) if all(end == end for end in ends) else infinite
        elif node.target == "aten.add.Tensor" and len(node.refs) == 2 and not node.kwargs:
            found = given[0][0] + given[1][0], given[0][1] + given[1][1]
        else:
            sums = self._sum_range(node, given[0] if given else infinite)
            if sums is not None:
                found = float(sums[0].min()), float(sums[1].max())
        self.ranges[node.name] = found

    def _sum_range(self, node: Node, given: tuple[float, float]) -> tuple[Tensor, Tensor] | None:
        """The smallest and the largest sum of every output of a synapse with weights of its own."""
        found = arguments(node)
        if not isinstance(found, (Conv, Linear)) or not isinstance(found.weight, Param) or found.transposed:
            return None
        if max(map(abs, given)) == torch.inf:
            return None
        weight = self.tensors[found.weight.path].double().flatten(1)
        low, high = min(given[0], 0.0), max(given[1], 0.0)  # zeros may be put in at the edge
        up, down = weight.clamp(min=0).sum(1), weight.clamp(max=0).sum(1)
        bias = 0.0 if found.bias is None else self.tensors[found.bias.path].double()
        return up * low + down * high + bias, up * high + down * low + bias

    def _is_bytes(self, node: Node) -> None:
        neuron = self.neurons.get(node.name)
        if isinstance(neuron, WholeNeuron):
            if self.here and neuron.levels <= BYTE:
                self.bytes.add(node.name)
        elif node.target in MOVERS and node.refs and all(ref in self.bytes for ref in node.refs):
            self.bytes.add(node.name)

    def _synapse(self, node: Node) -> _Synapse | None:
        """The synapse, where integer kernels compute it exactly."""
        found = arguments(node)
        if not isinstance(found, (Conv, Linear)) or found.transposed or not isinstance(found.weight, Param):
            return None
        if not isinstance(found.input, Ref) or (found.bias is not None and not isinstance(found.bias, Param)):
            return None
        if isinstance(found, Conv) and found.padding == "same":
            return None  # its padding may differ before and after
        low, high = self.ranges.get(found.input.name, (-torch.inf, torch.inf))
        sums = self._sum_range(node, (low, high))
        if sums is None:
            return None
        weight = self.tensors[found.weight.path]
        bias = weight.new_zeros(len(weight)) if found.bias is None else self.tensors[found.bias.path]
        if not all(torch.equal(t, t.round()) for t in (weight, bias)) or float(weight.abs().max()) > 127:
            return None
        # Sums and products are exact in float32 whatever parts of them are formed first.
        most = weight.double().flatten(1).abs().sum(1) * max(-low, high) + bias.double().abs()
        if float(most.max()) >= WHOLE:
            return None
        wide = float(weight.abs().max())
        if low >= 0 and high <= BYTE and (2 * high * wide <= PAIR or exact(pairs=True)):
            parts: tuple[tuple[Any, int], ...] = ((_bytes, 1),)
        elif low >= 0 and high <= BYTE:
            parts = (_first_half, 1), (_second_half, 1)
        elif low >= -HALF and high <= HALF:
            parts = (_above, 1), (_below, -1)
        else:
            return None
        return _Synapse(node, found, weight, bias.float(), most, parts)

    # Neurons, with what is before them.

    def _neuron(self, node: Node) -> tuple[Step, list[str], list[str]]:
        """What gives a neuron's counts as bytes; the values it reads, and the nodes it stands for besides its own."""
        neuron = cast(WholeNeuron, self.neurons[node.name])  # others send no bytes
        fused = self._fused(node, neuron)
        if fused is not None:
            return fused
        return _counted(neuron, self.dtype), [node.refs[0]], []

    def _fused(self, node: Node, neuron: WholeNeuron) -> tuple[Step, list[str], list[str]] | None:
        axis = self._axis(node)
        width = node.shape[axis]
        first, step = (_vector(t.double(), len(node.shape), axis) for t in (neuron.first, neuron.step))
        if first is None or step is None or not isinstance(width, int):
            return None
        terms: list[_Term] = []
        gone: list[str] = []
        constant = self._terms(node.refs[0], torch.ones(1).double(), axis, terms, gone)
        if constant is None or not terms:
            terms, gone, constant = [_Term(node.refs[0], torch.ones(1).double())], [], torch.zeros(1).double()
        # Of every term the largest magnitude; what a count depends on lies where the largest is bounded by the others.
        sizes = torch.stack([self._most(term).expand(width) for term in terms]).sort(0).values
        constant = constant - first
        spiking = (neuron.levels + 2) * step
        near = sizes[:-1].sum(0) + constant.abs() + step + spiking
        pieces = [(self._only(term.name), term.factor.expand(width)) for term in terms]
        alone = len(terms) == 1 and _alone(*pieces[0])
        if alone:
            # Two roundings of the product, one each of what is added, of the sum and of the last step.
            added = constant.abs() + self.synapses[terms[0].name].bias.double().abs() * terms[0].factor
            bound = 5 * (added + spiking) * ULP < 0.5
        else:
            # Sums are exact, or so large that nothing brings them back to where counts change.
            bound = (2 * near < WHOLE) & (2 * spiking < WHOLE)
            bound &= torch.stack([f == f.round() for _, f in pieces]).all(0)
        if not bool(bound.all()):
            return None
        reads: list[str] = []
        for term, (synapse, _) in zip(terms, pieces, strict=True):
            reads.append(term.name if synapse is None else synapse.found.input.name)
            gone += [] if synapse is None else [term.name]
        return _Chain(pieces, constant.expand(width), step.expand(width), neuron.levels, axis, alone), reads, gone

    def _most(self, term: _Term) -> Tensor:
        low, high = self.ranges.get(term.name, (-torch.inf, torch.inf))
        synapse = self.synapses.get(term.name)
        most = torch.tensor(max(-low, high)).double() if synapse is None else synapse.most
        return most * term.factor.abs()

    def _only(self, name: str) -> _Synapse | None:
        """The integer synapse of this name, if one node alone reads it."""
        if len(self.readers[name]) != 1 or name in self.graph.outputs:
            return None
        return self.synapses.get(name)

    def _axis(self, node: Node) -> int:
        """The dimension of a value along which its channels lie."""
        name = node.refs[0]
        while name in self.graph.by_name:
            found = arguments(self.graph.by_name[name])
            if isinstance(found, (Conv, Linear)):
                return 1 if isinstance(found, Conv) else len(node.shape) - 1
            if self.graph.by_name[name].target not in ("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"):
                break
            name = self.graph.by_name[name].refs[0]
        return min(1, len(node.shape) - 1)

    def _terms(self, name: str, factor: Tensor, axis: int, terms: list[_Term], gone: list[str]) -> Tensor | None:
        """Take a value apart into factor · value + …; returns the constant, None where its parts have no such form."""
        node = self.graph.by_name.get(name)
        none = torch.zeros(1).double()
        single = len(self.readers[name]) == 1 and name not in self.graph.outputs
        if node is None or not single or node.kwargs or len(node.args) != 2:
            terms.append(_Term(name, factor))
            return none
        left, right = node.args
        if node.target in ("aten.add.Tensor", "aten.sub.Tensor") and isinstance(left, Ref):
            sign = -1 if node.target == "aten.sub.Tensor" else 1
            if isinstance(right, Ref) and self.graph.by_name.get(right.name) and right != left:
                if any(self._shape(side.name) != node.shape for side in (left, right)):
                    return None
                one = self._terms(left.name, factor, axis, terms, gone)
                two = self._terms(right.name, factor * sign, axis, terms, gone)
                gone.append(name)
                return None if one is None or two is None else one + two
            if isinstance(right, Param) and self._shape(left.name) == node.shape:
                added = _vector(self.tensors[right.path].double(), len(node.shape), axis)
                one = None if added is None else self._terms(left.name, factor, axis, terms, gone)
                gone.append(name)
                return None if one is None or added is None else one + sign * factor * added
        if node.target == "aten.mul.Tensor" and isinstance(left, Ref) and isinstance(right, Param):
            times = _vector(self.tensors[right.path].double(), len(node.shape), axis)
            if times is not None and self._shape(left.name) == node.shape:
                gone.append(name)
                return self._terms(left.name, factor * times, axis, terms, gone)
        terms.append(_Term(name, factor))
        return none

    def _shape(self, name: str) -> tuple[Any, ...]:
        return self.graph.by_name[name].shape if name in self.graph.by_name else ()


def _vector(value: Tensor, rank: int, axis: int) -> Tensor | None:
    """A tensor that broadcasts against one value, as a vector along one of its dimensions; None where it varies along
    another."""
    shape = [1] * (rank - value.dim()) + list(value.shape)
    if any(size != 1 for d, size in enumerate(shape) if d != axis):
        return None
    return value.reshape(-1)


def _sums_of(synapse: _Synapse, dtype: torch.dtype) -> Step:
    def step(args: tuple[Any, ...]) -> Tensor:
        return synapse.sums(args[0], None, synapse.bias).to(dtype)

    return step


def _widened(node: Node, dtype: torch.dtype) -> Step:
    """The node itself, on numbers where it reads bytes."""

    def wide(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.dtype == torch.uint8 else leaf

    def step(args: tuple[Any, ...]) -> Any:
        return call(node.target, map_tree(wide, args), dict(node.kwargs))

    return step


def _counted(neuron: WholeNeuron, dtype: torch.dtype) -> Step:
    def step(args: tuple[Any, ...]) -> Tensor:
        z = args[0].to(dtype)
        # NaN has no count in whole numbers, and none arises: inputs are finite.
        return neuron.count(z).to(torch.uint8)

    return step


def _alone(synapse: _Synapse | None, factor: Tensor) -> bool:
    """Whether a synapse's kernel gives the counts of the neurons behind it."""
    if synapse is None or not synapse.clips:
        return False
    return [sign for _, sign in synapse.parts] == [1] and bool((factor > 0).all())


class _Chain:
    """clip(⌊(Σ factor · value + constant) / step⌋ + 1, 0, levels) as bytes: in a synapse's kernel where it is `alone`.

    pieces: of every term the synapse that makes its value, None where the value is there, and its factor. All numbers
    are whole; constant: −first is in it.
    """

    def __init__(
        self, pieces: list[tuple[_Synapse | None, Tensor]], constant: Tensor, step: Tensor, levels: int, axis: int,
        alone: bool,
    ) -> None:  # fmt: skip
        self.levels, self.axis = levels, axis
        self.alone: _Synapse | None = None
        for synapse, factor in pieces:
            if synapse is not None:
                constant = constant + synapse.bias.double() * factor
        if alone:
            (self.alone, factor), *_ = pieces
            self.scale, self.added = (factor / step).float(), ((constant + 0.5) / step + 0.5).float()
            return
        repeats = max(1, TILE // len(step))
        self.row, self.steps = (t.float().repeat(repeats) for t in (constant + step, step))
        self.none = torch.zeros(len(step))
        # A kernel's factor is above 0, and the sums of two parts are exact before they are multiplied. All other values
        # are multiplied piece by piece.
        self.order = sorted(range(len(pieces)), key=lambda i: pieces[i][0] is None)
        self.terms: list[tuple[_Synapse | None, Tensor | None, Tensor | None]] = []
        for synapse, factor in (pieces[i] for i in self.order):
            if synapse is not None and len(synapse.parts) == 1 and bool((factor > 0).all()):
                self.terms.append((synapse, factor.float(), None))
            else:
                one = synapse is not None and bool((factor == 1).all())
                self.terms.append((synapse, None, None if one else factor.float().repeat(repeats)))

    def __call__(self, args: tuple[Any, ...]) -> Tensor:
        if self.alone is not None:
            return self.alone.sums(args[0], self.scale, self.added, clip=self.levels)
        values = []
        for place, (synapse, scale, factors) in zip(self.order, self.terms, strict=True):
            x = args[place]
            values.append((x if synapse is None else synapse.sums(x, scale, self.none), factors))
        return self._added(values)

    def _added(self, values: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Elementwise, piece by piece, channels innermost."""
        flat = [(value.movedim(self.axis, -1).contiguous(), factors) for value, factors in values]
        out = torch.empty(flat[0][0].shape, dtype=torch.uint8)
        target, size = out.view(-1), len(self.row)
        pieces = [(value.view(-1), factors) for value, factors in flat]
        spare, wide = torch.empty(size), torch.empty(size)
        for start in range(0, len(target), size):
            number = min(size, len(target) - start)
            total, other, before = spare[:number], wide[:number], self.row[:number]
            for value, factors in pieces:
                piece = value[start : start + number]
                if factors is None:
                    torch.add(before, piece, out=total)
                else:
                    piece = piece if piece.dtype == torch.float32 else other.copy_(piece)
                    torch.addcmul(before, piece, factors[:number], out=total)
                before = total
            target[start : start + number].copy_(total.div_(self.steps[:number]).clamp_(0, self.levels + 0.5))
        return out.movedim(-1, self.axis)
