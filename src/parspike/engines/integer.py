"""Counts as bytes, through integer kernels: networks in whole numbers, bit for bit as `count` runs them.

A network of `parspike.lower.integers` holds whole numbers alone, in float32 or float64. Here the counts of its neurons
are uint8, or int16 beyond 255, and synapses with weights of at most 8 bits go through int8 convolutions and products,
which add in 32 bits: oneDNN's on a CPU, those of `parspike.engines.tensor_cores` on a GPU. Everything else (a stream of
sums that no neuron cuts, the answer) runs as in `count`, on a CPU in float32 where that holds it exactly; on a GPU its
weighted layers in float64, where no sum rounds.

On a CPU neurons behind one synapse are computed in the kernel's last step: k = round((z − first + ½) / step + ½) in
float32. z and first are whole, so the exact quotient is at least ½ / step away from every point where the rounding
changes. Where the weights do not prove that float32 errs by less, `parspike.engines.filtered` finds the counts that may
be wrong. What keeps sums exact says `parspike.engines.int8`; what is computed of several sums, and on wider numbers,
`parspike.engines.whole_steps`. Elsewhere `WholeNeuron.count` runs on all of the sum.

What could prove this wrong: a count that differs from that of engine "count" (tests/test_integer_engine.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.engines import filtered, tensor_cores, whole_steps
from parspike.engines.base import Network, Record, Run, kept_of, recorded
from parspike.engines.count import Pass, count
from parspike.engines.int8 import BYTE, EXACT, HALF, WHOLE, OnGPU, Synapse, bytes_of, digits, exact
from parspike.engines.replay import Replay
from parspike.engines.whole_steps import Step
from parspike.graph import Graph, Node, Param, Ref, Role, Schedule, Stream, map_tree, walk
from parspike.graph.ops import CASTS, REAL, TABLE
from parspike.graph.signature import Conv, Linear, arguments, named
from parspike.neurons import PackedTrains, Whole, WholeNeuron, WholePair

__all__ = ["Integer", "exactly", "forget", "integer"]

CLIP = "aten.clamp.Tensor"
MOVERS = {
    "aten.reshape.default", "aten.permute.default", "aten.transpose.int", "aten.movedim.int", "aten.swapaxes.default",
    "aten.cat.default", "aten.slice.Tensor", "aten.narrow.default", "aten.select.int", "aten.unsqueeze.default",
    "aten.squeeze.dim", "aten.squeeze.dims", "aten.expand.default", "aten.repeat.default", "aten.roll.default",
    "aten.flip.default", "aten.pixel_shuffle.default",
}  # fmt: skip
PADS = {"aten.constant_pad_nd.default", "aten.pad.default"}
POOL = "aten.max_pool2d.default"
"""Operators that do to bytes what they do to numbers; those of PADS where they put in zeros."""


def integer(net: Network, env: dict[str, Any], plain: Pass, *, record: Record = False) -> Run:
    """One pass for the inputs in `env`, in integers. net: in whole numbers (`parspike.lower.integers`). plain: how it
    runs where it no longer holds whole numbers alone, since a tensor was changed: as `count`, for sums that round
    depend on their order."""
    how = Integer.of(net)
    if not how.whole:
        with exactly(net, "count"):
            return count(net, env, plain, record=record)
    spiking = net.counting()

    def passed(env: dict[str, Any]) -> tuple[Any, dict[str, Tensor | PackedTrains]]:
        kept: dict[str, Tensor | PackedTrains] = {}

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
        return net.graph.collect(stream.env, stream.sizes), kept

    if how.gpu is None or how.gpu.type != "cuda":
        logits, kept = passed(env)
    else:
        with torch.cuda.device(how.gpu):  # kernels are launched on the current one
            logits, kept = passed(env) if record else how.replay(passed, env)
    return recorded(logits, net, "integer", kept if record else None)


_made: WeakKeyDictionary[Any, tuple[list[tuple[Tensor, int, int | Tensor]], Integer]] = WeakKeyDictionary()


def _unchanged(tensor: Tensor, seen: tuple[Tensor, int, int | Tensor]) -> bool:
    """Whether a tensor is the one that was seen, with the numbers that it had: seen, with its place and its version."""
    before, place, version = seen
    if tensor is not before or tensor.data_ptr() != place:
        return False
    return torch.equal(tensor, version) if isinstance(version, Tensor) else tensor._version == version


@dataclass(frozen=True)
class Integer:
    """A network made ready for integer kernels. steps: by node name, what other than its operator a node computes.
    dtype: of whole numbers that are no bytes. synapses: how many of the weighted ones run in integers, of how many.
    gpu: the GPU that all tensors are on, None elsewhere. whole: whether all numbers are whole, and all sums that are
    bounded exact in `dtype`; without that nothing else holds."""

    schedule: Schedule
    steps: Mapping[str, Step]
    dtype: torch.dtype
    synapses: tuple[int, int]
    gpu: torch.device | None
    whole: bool = True
    replay: Replay = field(default_factory=Replay)

    @classmethod
    def of(cls, net: Network) -> Integer:
        """That of a network, made at its first run and again when a tensor of it was replaced or changed in place."""
        own = (p for neuron in net.neurons().values() for p in neuron._parameters.values() if p is not None)
        tensors = [*net.tensors().values(), *own]
        before = _made.get(net)
        if before is None or len(before[0]) != len(tensors) or not all(map(_unchanged, tensors, before[0])):
            # Tensors that are made in inference mode count no versions.
            state = [(t, t.data_ptr(), t.clone() if t.is_inference() else t._version) for t in tensors]
            _made[net] = before = state, _Maker(net).made()
        return before[1]


@dataclass
class _Term:
    """factor · value, one part of what a neuron reads; factor: for every channel, or one number."""

    name: str
    factor: Tensor


class _Maker:
    """`Integer` in the making."""

    def __init__(self, net: Network) -> None:
        self.graph: Graph = net.graph
        self.placed, self.neurons = net.tensors(), net.counting()
        self.tensors = {path: t.detach().cpu() for path, t in self.placed.items()}  # what is decided, is decided there
        self.readers = self.graph.consumers()
        self.ranges: dict[str, tuple[float, float]] = {}
        self.narrow: set[str] = set()
        """Values that are held in 8 or 16 bits."""
        self.light: set[str] = set()
        """Other values that float32 holds exactly where the network's numbers are float64."""
        self.synapses: dict[str, Synapse | OnGPU] = {}
        wide = any(tensor.dtype is torch.float64 for tensor in self.placed.values())  # also where no layer is neurons
        self.dtype = torch.float64 if wide else torch.float32
        devices = {t.device for t in self.placed.values()}
        self.gpu = devices.pop() if len(devices) == 1 and all(map(_is_gpu, devices)) else None
        self.here = self.gpu is not None or ({d.type for d in devices} <= {"cpu"} and exact())

    def made(self) -> Integer:
        weighted = 0
        if not self._whole():
            return self._other()
        for node in self.graph.nodes:
            self._range(node)
            self._is_narrow(node)
            weighted += TABLE[node.target].weighted
            if self.here and (synapse := self._synapse(node)) is not None:
                self.synapses[node.name] = synapse
            if self._is_light(node):
                self.light.add(node.name)
        whole = [self.ranges[node.name] for node in self.graph.nodes if node.reason != REAL]
        if any(EXACT[self.dtype] <= max(map(abs, ends)) < torch.inf for ends in whole):
            return self._other()
        nodes = {node.name: node for node in self.graph.nodes}
        steps: dict[str, Step] = {}
        for node in self.graph.nodes:
            if node.name in self.narrow and node.name in self.neurons:
                step, reads, gone = self._neuron(node)
                steps[node.name] = step
                nodes[node.name] = replace(node, args=tuple(Ref(name) for name in reads), kwargs={})
                for name in gone:
                    nodes.pop(name, None)
        for node in nodes.values():
            if node.name in steps:
                continue
            if node.name in self.synapses:
                kind = torch.float32 if node.name in self.light else self.dtype
                steps[node.name] = whole_steps.sums_of(self.synapses[node.name], kind)
                nodes[node.name] = replace(node, args=(self.synapses[node.name].found.input,), kwargs={})
            elif node.name in self.neurons:
                continue
            elif self.gpu is not None and TABLE[node.target].weighted:
                steps[node.name] = whole_steps.widened(node, self._given(node), torch.float64, self.dtype)
            elif node.target == CLIP and node.name in self.narrow:
                steps[node.name] = whole_steps.as_bytes(*self.ranges[node.name])
            elif node.target in CASTS and node.name in self.narrow:
                steps[node.name] = whole_steps.as_it_is
            elif node.target == POOL and node.name in self.narrow:
                steps[node.name] = whole_steps.pooled(node, self.ranges[node.name][1])
            elif node.name in self.light and node.target in CASTS:
                steps[node.name] = whole_steps.single
            elif node.name in self.light:
                steps[node.name] = whole_steps.widened(node, self._given(node), torch.float32, torch.float32)
            elif node.target not in CASTS and not self.light.isdisjoint(node.refs):
                steps[node.name] = whole_steps.widened(node, self._given(node), self.dtype, self.dtype)
            elif node.name not in self.narrow and not self.narrow.isdisjoint(node.refs):
                steps[node.name] = whole_steps.widened(node, self._given(node), self.dtype)
        for node in nodes.values():
            if node.reason == REAL:
                steps[node.name] = whole_steps.in_rows(node, self._given(node), steps.get(node.name))
        read = {ref for node in nodes.values() for ref in node.refs} | set(self.graph.outputs)
        kept = [node for node in nodes.values() if node.target not in PADS or node.name in read]
        schedule = Schedule.of(kept, self.graph.outputs)
        return Integer(schedule, steps, self.dtype, (len(self.synapses), weighted), self.gpu)

    def _other(self) -> Integer:
        return Integer(Schedule.of([], self.graph.outputs), {}, self.dtype, (0, 0), self.gpu, whole=False)

    def _whole(self) -> bool:
        """Whether there are whole numbers alone, but for the ends, where real ones come in and go out: a user may have
        put others in, such as noise on weights, or thresholds that no neuron of theirs has."""
        real = {path for node in self.graph.nodes if node.reason == REAL for path in node.params}
        tensors = [t for path, t in self.tensors.items() if path not in real and not path.endswith(".grid")]
        for neuron in self.neurons.values():
            tensors += [p.detach().cpu() for p in neuron._parameters.values() if p is not None]
            if isinstance(neuron, WholeNeuron) and not bool((neuron.step > 0).all()):
                return False
        finite = all(bool(t.isfinite().all()) for t in self.tensors.values() if t.is_floating_point())
        return finite and all(torch.equal(t, t.round()) for t in tensors if t.is_floating_point())

    def _given(self, node: Node) -> dict[str, Any]:
        """The keyword arguments of a node."""
        return map_tree(lambda leaf: self.placed[leaf.path] if isinstance(leaf, Param) else leaf, dict(node.kwargs))

    # What is known of the values.

    def _range(self, node: Node) -> None:
        """The smallest and the largest whole number that a node's value may hold, as far as it is known."""
        infinite = -torch.inf, torch.inf
        given = [self.ranges.get(ref, infinite) for ref in node.refs]
        found: tuple[float, float] = infinite
        neuron = self.neurons.get(node.name)
        if isinstance(neuron, Whole):
            found = float(neuron.lowest), float(neuron.levels)
        elif node.target == CLIP and all(isinstance(arg, Param) for arg in node.args[1:]) and len(node.args) == 3:
            low, high = (self.tensors[arg.path] for arg in node.args[1:])
            found = float(low.min()), float(high.max())
        elif node.refs and (_moves(node) or node.target in CASTS or node.role is Role.ORDER):
            zero = [(0.0, 0.0)] if node.target in PADS else []
            found = min(low for low, _ in given + zero), max(high for _, high in given + zero)
        elif node.target == "aten.mul.Tensor" and isinstance(node.args[1], Param) and len(given) == 1:
            factor = self.tensors[node.args[1].path]
            ends = [float(end) * f for end in given[0] for f in (float(factor.min()), float(factor.max()))]
            found = (min(ends), max(ends)) if all(end == end for end in ends) else infinite
        elif node.target == "aten.add.Tensor" and len(node.refs) == 2 and not node.kwargs:
            found = given[0][0] + given[1][0], given[0][1] + given[1][1]
        elif node.target == "aten.add.Tensor" and len(given) == 1 and isinstance(node.args[1], Param):
            added = self.tensors[node.args[1].path]
            found = given[0][0] + float(added.min()), given[0][1] + float(added.max())
        elif node.target == "aten.embedding.default" and isinstance(node.args[0], Param):
            table = self.tensors[node.args[0].path]
            found = float(table.min()), float(table.max())
        elif node.target == "aten.sum.dim_IntList" and len(given) == 1:
            sizes = self._shape(node.refs[0])
            summed = [sizes[d] for d in cast(list[int], node.args[1])] if sizes and node.args[1] else [None]
            if all(isinstance(size, int) for size in summed):
                number = math.prod(cast(list[int], summed))
                found = given[0][0] * number, given[0][1] * number
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

    def _is_narrow(self, node: Node) -> None:
        neuron = self.neurons.get(node.name)
        if isinstance(neuron, Whole):
            if self.here and neuron.levels <= tensor_cores.SMALL:
                self.narrow.add(node.name)
        elif node.target == CLIP:
            single_ends = all(self.tensors[path].numel() == 1 for path in node.params)
            low, high = self.ranges[node.name]
            if self.here and single_ends and ((low >= -HALF and high < HALF) or (low >= 0 and high <= BYTE)):
                self.narrow.add(node.name)
        elif self._keeps(node) and node.refs and self.narrow.issuperset(node.refs):
            self.narrow.add(node.name)

    def _keeps(self, node: Node) -> bool:
        """Whether a node hands bytes on as they are held; a cast to what whole numbers are of elsewhere does."""
        same = node.target in CASTS and node.kwargs == {"dtype": self.dtype}
        return _moves(node) or node.target == POOL or same

    def _is_light(self, node: Node) -> bool:
        if self.gpu is not None or self.dtype is not torch.float64 or node.name in self.graph.outputs:
            return False
        if max(map(abs, self.ranges[node.name])) >= WHOLE or node.name in self.narrow:
            return False
        if node.target in CASTS:
            return len(node.args) == 1 and node.kwargs == {"dtype": self.dtype}
        synapse = self.synapses.get(node.name)
        if synapse is not None:
            return isinstance(synapse, Synapse) and not synapse.wide
        if _moves(node) and node.refs:
            return self.light.issuperset(node.refs)
        if (
            node.kwargs
            or node.target not in ("aten.add.Tensor", "aten.mul.Tensor")
            or not self.light.issuperset(node.refs)
        ):
            return False
        # A product or sum of whole numbers below 2^24 is exact where it is below 2^24 itself.
        return all(float(self.tensors[path].abs().max()) < WHOLE for path in node.params)

    def _synapse(self, node: Node) -> Synapse | OnGPU | None:
        """The synapse, where integer kernels compute it exactly."""
        found = arguments(node)
        if not isinstance(found, (Conv, Linear)) or found.transposed or not isinstance(found.weight, Param):
            return None
        if not isinstance(found.input, Ref) or (found.bias is not None and not isinstance(found.bias, Param)):
            return None
        weight = self.tensors[found.weight.path]
        if isinstance(found, Conv):
            padded = self._with_pad(found, weight.shape[2:])
            if padded is None:
                return None
            found, zeros = padded
            weight = F.pad(weight, zeros)
        low, high = self.ranges.get(found.input.name, (-torch.inf, torch.inf))
        if self._sum_range(node, (low, high)) is None:
            return None
        bias = weight.new_zeros(len(weight)) if found.bias is None else self.tensors[found.bias.path]
        if float(weight.abs().max()) > 127:
            return None
        # Products and sums stay below it, whatever parts of them are formed first.
        most = weight.double().flatten(1).abs().sum(1) * max(-low, high) + bias.double().abs()
        if self.gpu is not None:
            kind = tensor_cores.kind_of(low, high)
            if kind is None or float(most.max()) >= tensor_cores.LARGEST or len(getattr(found, "stride", ())) > 2:
                return None
            core = tensor_cores.Synapse(found, weight, kind, self.gpu)
            return OnGPU(found, bias.double(), most, core, core.last(torch.ones(1), bias, dtype=self.dtype))
        wide = float(most.max()) >= WHOLE or (low >= 0 and high > BYTE)
        largest = float(weight.abs().max())
        if wide:
            each = weight.double().flatten(1).abs().sum(1)
            parts, zero = digits(low, high, float(each.max()), largest)
        else:
            parts, zero = bytes_of(low, high, largest)
        bias = bias.double() if wide else bias.float()
        return None if parts is None else Synapse(node, found, weight, bias, most, parts, zero, wide)

    def _with_pad(self, found: Conv, kernel: Sequence[int]) -> tuple[Conv, list[int]] | None:
        """A convolution with the same zeros before and after, among them those that a pad before it puts in, and the
        zeros that its kernel gets for that, as `F.pad` takes them; None where there is none.

        Sides that differ by one, as TensorFlow's do, become like with a kernel larger by one: a 3×3 kernel behind zeros
        on the right and below is a 4×4 kernel, zero on the left and above, behind zeros all around. This takes half to
        nine tenths of the time of a pad before a 3×3 kernel (EfficientNet-Lite0's five, one image or eight).
        """
        ways = [(found, found.padded(kernel))]
        pad = self.graph.by_name.get(found.input.name)
        if pad is not None and pad.target in PADS and _moves(pad):
            given = list(named(pad)["pad"])[::-1]  # the last dimension came first
            around = list(zip(given[1::2], given[0::2], strict=True))
            if len(around) == len(found.stride) and all(isinstance(n, int) and n >= 0 for n in given):
                both = tuple((a + c, b + d) for (a, b), (c, d) in zip(ways[0][1], around, strict=True))
                ways.insert(0, (replace(found, input=Ref(pad.refs[0])), both))
        for way, sides in ways:
            more = [after - before for before, after in sides]
            most = found.dilation if self.gpu is None else [0] * len(more)  # not measured on a GPU
            if all(abs(d) in (0, gap) for d, gap in zip(more, most, strict=True)):
                zeros = [int(end > 0) for d in reversed(more) for end in (d, -d)]
                return replace(way, padding=tuple(max(ends) for ends in sides)), zeros
        return None

    # Neurons, with what is before them.

    def _neuron(self, node: Node) -> tuple[Step, list[str], list[str]]:
        """What gives a neuron's counts as bytes; the values it reads, and the nodes it stands for besides its own.
        Kernels count from 0 on; what a pair counts is moved there, and back at the end."""
        neuron = cast(Whole, self.neurons[node.name])  # others send no bytes
        fused = None
        if isinstance(neuron, WholeNeuron):
            fused = self._before_pool(node, neuron) or self._fused(node, neuron)
        if fused is not None:
            step, reads, gone = fused
            return whole_steps.Centred(step, neuron.levels) if isinstance(neuron, WholePair) else step, reads, gone
        return whole_steps.counted(neuron, self.dtype), [node.refs[0]], []

    def _before_pool(self, node: Node, neuron: WholeNeuron) -> tuple[Step, list[str], list[str]] | None:
        """Neurons behind a maximum over windows count before it, and the maximum is one of counts: a larger sum has no
        smaller count."""
        pool = self.graph.by_name.get(node.refs[0])
        if pool is None or pool.target != POOL or pool.refs[0] not in self.graph.by_name:
            return None
        if len(self.readers[pool.name]) != 1 or pool.name in self.graph.outputs:
            return None
        before = replace(node, args=(Ref(pool.refs[0]), *node.args[1:]), shape=self._shape(pool.refs[0]))
        fused = self._fused(before, neuron)
        if fused is None:
            return None
        step, reads, gone = fused
        maxima = whole_steps.pooled(pool, neuron.levels - neuron.lowest)
        return whole_steps.Pooled(step, maxima, pool.args[1:]), reads, [*gone, pool.name]

    def _fused(self, node: Node, neuron: WholeNeuron) -> tuple[Step, list[str], list[str]] | None:
        axis = self._axis(node)
        width = node.shape[axis]
        first, step = (_vector(t.detach().cpu().double(), len(node.shape), axis) for t in (neuron.first, neuron.step))
        if first is None or step is None or not isinstance(width, int):
            return None
        terms: list[_Term] = []
        gone: list[str] = []
        constant = self._terms(node.refs[0], torch.ones(1).double(), axis, terms, gone)
        if constant is None or not terms:
            terms, gone, constant = [_Term(node.refs[0], torch.ones(1).double())], [], torch.zeros(1).double()
        # Of every term the largest magnitude; what a count depends on lies where the largest is bounded by the others.
        sizes = torch.stack([self._most(term).expand(width) for term in terms]).sort(0).values
        constant, levels = constant - first - neuron.lowest * step, neuron.levels - neuron.lowest
        spiking = (levels + 2) * step
        near = sizes[:-1].sum(0) + constant.abs() + step + spiking
        pieces = [(self._only(term.name), term.factor.expand(width)) for term in terms]
        all_whole = all(torch.equal(f, f.round()) for _, f in pieces)
        if self.gpu is not None:
            if not all_whole or not bool((sizes.sum(0) + near + step < tensor_cores.LARGEST).all()):
                return None
            made = whole_steps.Behind.of(pieces, constant.expand(width), step.expand(width), levels, axis, self.gpu)
            if made is None:
                return None
            return self._reading(terms, pieces, gone, made)
        pieces = cast("list[tuple[Synapse | None, Tensor]]", pieces)
        sums = sizes.sum(0) + near < 2.0**52
        if len(terms) == 1 and all_whole and bool(sums.all()):
            alone = self._alone(terms[0], pieces[0][1], constant.expand(width), step.expand(width), levels, axis)
            if alone is not None:
                step_of_all, read = alone
                return step_of_all, [read], [*gone, terms[0].name]
        # Sums are exact, or so large that nothing brings them back to where counts change.
        bound, kind = (2 * near < WHOLE) & (2 * spiking < WHOLE), torch.float32
        if not bool(bound.all()) or any(synapse is not None and synapse.wide for synapse, _ in pieces):
            bound, kind = sums, torch.float64
        if not all_whole or not bool(bound.all()):
            return None
        chain = whole_steps.Chain(pieces, constant.expand(width), step.expand(width), levels, axis, kind)
        return self._reading(terms, pieces, gone, chain)

    def _alone(
        self, term: _Term, factor: Tensor, constant: Tensor, step: Tensor, levels: int, axis: int
    ) -> tuple[Step, str] | None:
        """Neurons behind a synapse that nothing else reads, where its kernel can give their counts, and what it
        reads."""
        node = self.graph.by_name.get(term.name)
        if node is None or levels > BYTE or len(self.readers[term.name]) != 1 or term.name in self.graph.outputs:
            return None
        synapse = self.synapses.get(term.name)
        found = arguments(node) if synapse is None else synapse.found
        if not isinstance(found, (Conv, Linear)) or not isinstance(found.weight, Param) or not bool((factor > 0).all()):
            return None
        reach = self._sum_range(node, self.ranges.get(node.refs[0], (-torch.inf, torch.inf)))
        if reach is None:
            return None
        weight = synapse.weight if isinstance(synapse, Synapse) else self.tensors[found.weight.path]
        weight, bias = weight.double(), torch.zeros(1).double()
        if found.bias is not None:
            bias = self.tensors[found.bias.path].double()
        behind = filtered.Behind(
            found, weight, factor, constant + factor * bias, step, levels, reach[0] - bias, reach[1] - bias
        )
        if isinstance(synapse, Synapse) and synapse.clips and [sign for _, sign in synapse.parts] == [1]:
            return filtered.Settled(behind, synapse.parts[0][0], partial(synapse.counting, levels)), found.input.name
        most = float(weight.abs().max())
        if synapse is not None or not self._pointwise(node, found):
            return None
        if most > 127 or BYTE * float(weight.flatten(1).abs().sum(1).max()) >= 2.0**31:
            return None
        bits = 8 if exact(pairs=True) else 7
        if not filtered.works(bits):
            return None
        largest = max(map(abs, self.ranges[node.refs[0]]))
        return filtered.Pointwise(behind, axis, bits, largest), node.refs[0]

    def _pointwise(self, node: Node, found: Conv | Linear) -> bool:
        """Whether a synapse reads one place of its input for each of its outputs."""
        if not self.here or len(node.refs) != 1 or found.transposed:
            return False
        if isinstance(found, Linear):
            return True
        kernel = self.tensors[found.weight.path].shape[2:]
        ones = [*kernel, *found.stride, found.groups]
        return set(ones) == {1} and not any(map(any, found.padded(list(kernel))))

    def _reading(
        self, terms: list[_Term], pieces: Sequence[tuple[Synapse | OnGPU | None, Tensor]], gone: list[str], step: Step
    ) -> tuple[Step, list[str], list[str]]:
        """A step with the values that it reads, and the nodes it stands for."""
        reads: list[str] = []
        for term, (synapse, _) in zip(terms, pieces, strict=True):
            reads.append(term.name if synapse is None else synapse.found.input.name)
            gone += [] if synapse is None else [term.name]
        return step, reads, gone

    def _most(self, term: _Term) -> Tensor:
        low, high = self.ranges.get(term.name, (-torch.inf, torch.inf))
        synapse = self.synapses.get(term.name)
        most = torch.tensor(max(-low, high)).double() if synapse is None else synapse.most
        return most * term.factor.abs()

    def _only(self, name: str) -> Synapse | OnGPU | None:
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


def _moves(node: Node) -> bool:
    if node.target not in PADS:
        return node.target in MOVERS
    given = named(node)
    return given.get("mode", "constant") == "constant" and not given.get("value")


def _vector(value: Tensor, rank: int, axis: int) -> Tensor | None:
    """A tensor that broadcasts against one value, as a vector along one of its dimensions; None where it varies along
    another."""
    shape = [1] * (rank - value.dim()) + list(value.shape)
    if any(size != 1 for d, size in enumerate(shape) if d != axis):
        return None
    return value.reshape(-1)


def forget(net: Network) -> None:
    """Make a network ready anew at its next run."""
    _made.pop(net, None)


@contextlib.contextmanager
def exactly(net: Network, engine: str) -> Iterator[None]:
    """Whole numbers stay whole in what torch computes inside: no autocast, and on a GPU no products in float32 that
    round their factors (TF32), nor convolutions that go through fractions (Winograd, FFT), as cuDNN's may in float32.
    Engine "integer" has kernels of its own there, and uses cuDNN in float64 alone."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if engine != "integer" and torch.cuda.is_available():
            before = torch.backends.cudnn.enabled, torch.get_float32_matmul_precision()
            stack.callback(_set_precision, *before)
            wide = all(t.dtype == torch.float64 for path, t in net.tensors().items() if path.endswith("weight"))
            _set_precision(before[0] and wide, "highest")
        yield


def _set_precision(cudnn: bool, products: str) -> None:
    torch.backends.cudnn.enabled = cudnn
    torch.set_float32_matmul_precision(products)


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"
