"""NIR out: a network of IF or LIF neurons as a graph of the neuromorphic intermediate representation.

Spikes are 0 or 1; what one causes stands in the synapses behind. A sum of branches has no node: several edges lead into
the same one. What NIR has no node for is written with those it has, where that is exact: slices, paddings and
concatenations as convolutions of zeros and ones, averages as pools or convolutions, constants as biases.

NIR's IF and LIF fire where v > θ and are reset to `v_reset`. A hard reset is written so that these equations alone
compute it: potentials counted from v(0) on, so that v starts at 0, and θ lowered by the last bit, which turns v ≥ θ
into v > θ. A reset by θ has no such form: it stands in metadata (`reset`, `fires`, `v_init`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parspike.errors import UnsupportedError
from parspike.graph import Graph, Node, Param, Ref, Role, Size, Stream, leaves
from parspike.graph.ops import TABLE, call
from parspike.graph.signature import Conv, Linear, Pool, arguments
from parspike.lower import unit
from parspike.neurons import IntegrateFire
from parspike.nir.hdf5 import hdf5
from parspike.nir.network import legal_names
from parspike.snn import SNN
from parspike.version import __version__
from parspike.whole import Disk

__all__ = ["Written", "write"]

LAYOUT = "1.0.8"
"""Version of the package `nir` whose layout of files this is."""
MOST = 1 << 26
"""Entries of the largest matrix of zeros and ones that is written for an operator without weights (256 MiB)."""


@dataclass
class Piece:
    """One NIR node to be written. arrays: by the names of NIR; shape: of one sample of its output."""

    kind: str
    arrays: dict[str, Any]
    shape: tuple[int, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Filled:
    """A tensor that broadcasts to a shape, written in that shape, which NIR asks for."""

    tensor: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """What NIR nodes give together: the sum of `sources`, of one sample's `shape`. own: those of them whose bias may be
    changed, since nothing else reads them. scale: a factor a channel, and picks: an operator without weights behind it,
    for each dimension the places of `sources` that its entries are taken from, −1 for a zero; neither is written yet.
    by: the layer of that operator.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    own: frozenset[str] = frozenset()
    scale: Tensor | None = None
    picks: tuple[Tensor, ...] | None = None
    by: str = ""


@dataclass(frozen=True)
class Written:
    """What `write` made. names: of the layers of neurons in the file, by node. kinds: how many nodes of each. notes:
    what is to be said of them."""

    names: Mapping[str, str]
    kinds: Mapping[str, int]
    notes: tuple[str, ...]


class RefusedError(Exception):
    """Why a node cannot be written, and what to do. where: its layer, if that is not the node in work."""

    def __init__(self, why: str, where: str = "") -> None:
        super().__init__(why)
        self.where = where


def write(snn: SNN, path: Path, dt: float = 1.0, as_convolutions: bool = False) -> Written:
    """Write the network to `path`, which is replaced. dt: seconds of one time-step. as_convolutions: write pools and
    scales as convolutions.

    Raises `UnsupportedError`, which names every layer that NIR cannot hold.
    """
    plain = all(isinstance(neuron, IntegrateFire) for neuron in snn.neurons().values())
    lowered = unit(snn) if plain else snn  # other neurons are refused below, with all else
    graph = lowered.graph.at_example("NIR states the shapes of inputs")
    made = _Writer(lowered, graph, dt, as_convolutions)
    made.run()
    if made.refused:
        lines = "\n".join(f"  {where}: {why}" for where, why in made.refused.items())
        error = UnsupportedError(f"NIR cannot hold {len(made.refused)} of the network's layers:\n{lines}")
        error.details = {"refused": [f"{where}: {why}" for where, why in made.refused.items()]}
        raise error
    ours = {"parspike": __version__, "T": snn.T, "dt": dt, "output": "the mean over the T time-steps"}
    _save(path, made.pieces, made.edges, {**ours, **({"read": snn.simulation.read} if snn.simulation.read else {})})
    kinds: dict[str, int] = {}
    for piece in made.pieces.values():
        kinds[piece.kind] = kinds.get(piece.kind, 0) + 1
    names = {name: made.file_names[node.name] for name, node in graph.by_name.items() if name in made.neurons}
    return Written(names, kinds, tuple(made.notes))


class _Writer:
    """Goes through the graph once. values: what stands for a node of the graph; refused: by layer, why it cannot."""

    def __init__(self, snn: SNN, graph: Graph, dt: float, as_convolutions: bool) -> None:
        self.graph, self.dt, self.as_convolutions = graph, dt, as_convolutions
        self.neurons, self.tensors = snn.neurons(), snn.tensors()
        self.readers = graph.consumers()
        self.shown = set(graph.outputs)
        self.pieces: dict[str, Piece] = {}
        self.edges: list[tuple[str, str]] = []
        self.values: dict[str, Value] = {}
        self.refused: dict[str, str] = {}
        self.notes: dict[str, None] = {}
        self.taken = {"input", "output"}
        wanted = legal_names([node.layer for node in graph.nodes])
        self.file_names = {node.name: wanted[node.layer] for node in graph.nodes}
        if snn.simulation.probe or snn.simulation.paid:
            self.refused["the network"] = "it runs a first phase that is not read, which NIR does not have"

    def run(self) -> None:
        """Write every node, or say why not."""
        if not self.neurons:
            self.refused["the network"] = "it has no spiking neurons"
        for number, i in enumerate(self.graph.inputs):
            name = "input" if number == 0 else self._name(f"input_{number:03}")
            shape = tuple(int(n) for n in i.shape[1:])
            self.pieces[name] = Piece("Input", {"shape": np.array(shape)}, shape)
            self.values[i.name] = Value((name,), shape)
        lost: set[str] = set()  # values that no node of the file has, of which even the shape may not be known
        places = {i.name for i in self.graph.inputs if not i.dtype.is_floating_point}
        for node in self.graph.nodes:
            try:
                value = self._written(node)
                if not lost.isdisjoint(node.refs):
                    lost.add(node.name)
            except RefusedError as why:
                self.refused[why.where or node.layer] = str(why)
                value = self._lost(node, lost)
            except (RuntimeError, IndexError, TypeError, ValueError):
                if not places.isdisjoint(node.refs):
                    self.refused[node.layer] = "it reads whole numbers, and what NIR's edges carry is real"
                elif lost.isdisjoint(node.refs):
                    raise
                value = self._lost(node, lost)
            alone = len(self.readers[node.name]) + (node.name in self.shown) == 1
            self.values[node.name] = value if alone else replace(value, own=frozenset())
        for number, leaf in enumerate(leaf for leaf in leaves(self.graph.output) if isinstance(leaf, Ref)):
            name = "output" if number == 0 else self._name(f"output_{number:03}")
            value = self._settled(self.values[leaf.name], f"{name}_map")
            self.pieces[name] = Piece("Output", {"shape": np.array(value.shape)}, value.shape)
            self.edges += [(source, name) for source in value.sources]

    def _lost(self, node: Node, lost: set[str]) -> Value:
        lost.add(node.name)
        return Value((), tuple(n for n in node.shape[1:] if isinstance(n, int)))

    def _written(self, node: Node) -> Value:
        name = self.file_names[node.name]
        batch_first = [isinstance(n, Size) for n in node.shape] == [True] + [False] * (len(node.shape) - 1)
        if node.name in self.neurons and batch_first:
            return self._fire(node, name)
        why = self._unwritable(node, batch_first=batch_first)
        if why is not None:
            raise RefusedError(why)
        match arguments(node):
            case Conv() as conv:
                return self._conv(node, conv, name)
            case Linear() as linear:
                return self._linear(node, linear, name)
            case Pool() as pool:
                return self._pool(node, pool, name)
            case _:
                return self._weightless(node, name)

    def _unwritable(self, node: Node, *, batch_first: bool) -> str | None:
        if node.role is Role.NEURON and node.name not in self.neurons:
            return (
                "this activation is computed without neurons: convert without Keep(), and one at the input or the "
                "output with layers={'*': parspike.Spike()}, or end the network before it"
            )
        if node.role is Role.ORDER:
            return (
                f"{_plain(node.target)} takes a maximum of sums over time, and no NIR node does: the largest spike of "
                "each step is another one. Train the network with an average pool or a strided convolution there, or "
                "convert without neuron= and write an ONNX file (net.onnx), which holds maxima"
            )
        if node.role is not Role.SYNAPSE and node.name not in self.neurons:
            return (
                f"{_plain(node.target)} is computed on means over time ({node.reason}), which no NIR node does: end "
                "the network before it, and apply it to the output"
            )
        if node.name in self.shown and node.name in self.graph.constant:
            return (
                "this output depends on no input, and every value of NIR is a current: convert a module around the "
                "network that leaves it out, and keep it beside the file"
            )
        if not node.refs or (node.shape and not batch_first):
            return f"{_plain(node.target)} has no batch in its first dimension, which NIR nodes leave out"
        return None

    # ------------------------------------------------------------------------------------------------- nodes of NIR

    def _name(self, name: str) -> str:
        while name in self.taken or name.replace(".", "_") in self.taken:
            name += "_"
        self.taken |= {name, name.replace(".", "_")}  # nirtorch writes "_" for "."
        return name

    def _add(self, name: str, piece: Piece, sources: Iterable[str], *, own: bool = False) -> Value:
        name = self._name(name)
        self.pieces[name] = piece
        self.edges += [(source, name) for source in sources]
        return Value((name,), piece.shape, frozenset({name}) if own else frozenset())

    def _fire(self, node: Node, name: str) -> Value:
        neuron = self.neurons[node.name]
        if not isinstance(neuron, IntegrateFire):
            raise RefusedError(
                f"its neurons are '{neuron.label}', NIR has IF and LIF: convert with neuron=parspike.IF()"
            )
        if neuron.refractory:
            raise RefusedError("its neurons are refractory, which NIR's are not: convert without refractory=")
        if neuron.signed:
            raise RefusedError("its neurons take spikes back, which NIR's do not: convert without signed=True")
        if len(neuron.bias) > 1 and bool((neuron.bias != neuron.bias[:1]).any()):
            raise RefusedError(
                "its neurons have a bias a step, NIR has one for all steps: convert with bias='constant'"
            )
        before = self.values[node.refs[0]]
        bias = neuron.bias[0]
        value = self._shifted(self._settled(before, name), bias, name) if bool((bias != 0).any()) else before
        value = self._settled(value, name)
        shape = value.shape
        theta, start = neuron.v_threshold.float(), neuron.v_init.float()
        metadata: dict[str, Any] = {"layer": node.layer, "dt": self.dt}
        back = torch.zeros(())
        if neuron.reset == "subtract":
            metadata |= {"reset": "subtract", "fires": ">=", "v_init": start}
        else:
            # v(0) = 0 in potentials counted from v(0) on; where v > the number below θ, v ≥ θ.
            theta, back = theta - start, -start
            theta = torch.nextafter(theta, torch.full_like(theta, -math.inf))
            metadata |= {"reset": "value", "fires": ">", "v_init": torch.zeros(())}
        if neuron.decay == 1:
            arrays: dict[str, Any] = {"r": torch.full((), 1 / self.dt)}
        else:
            tau, gain = self.dt / (1 - neuron.decay), 1 / (1 - neuron.decay)
            arrays = {"tau": torch.full((), tau), "r": torch.full((), gain), "v_leak": back}
        arrays["v_threshold"] = theta
        if bool((back != 0).any()):
            arrays["v_reset"] = back  # nir before 1.0.5 does not know it
        filled = {key: Filled(_of_rank(tensor, len(shape)), shape) for key, tensor in arrays.items()}
        piece = Piece("IF" if neuron.decay == 1 else "LIF", filled, shape, metadata)
        made = self._add(name, piece, value.sources)
        self.file_names[node.name] = made.sources[0]
        return made

    def _conv(self, node: Node, conv: Conv, name: str) -> Value:
        rank = len(conv.stride)
        if conv.transposed:
            raise RefusedError("NIR has no transposed convolution")
        if rank > 2:
            raise RefusedError("NIR has convolutions along one and two dimensions, this one has three")
        if not isinstance(conv.weight, Param):
            raise RefusedError("its weights depend on the input")
        value = self._settled(self._value(conv.input), name)
        if len(value.shape) != rank + 1:
            raise RefusedError(f"its input {value.shape} has no channels")
        weight = self.tensors[conv.weight.path]
        bias = self._tensor(conv.bias)
        padded = conv.padded(weight.shape[2:])
        if any(one != two for one, two in padded):
            raise RefusedError("its padding is wider on one side, which NIR does not have")
        if conv.groups > 1:
            self.notes[
                "it holds convolutions in groups, which the package nir refuses by default: read it with "
                "nir.read(path, type_check=False)"
            ] = None
        padding, shape = [one for one, _ in padded], self._shape(node)
        return self._placed(name, weight, value, shape, conv.stride, padding, conv.dilation, conv.groups, bias)

    def _linear(self, node: Node, linear: Linear, name: str) -> Value:
        if not isinstance(linear.weight, Param) or not isinstance(linear.input, Ref):
            raise RefusedError("its weights depend on the input")
        value = self._settled(self._value(linear.input), name)
        if len(value.shape) != 1:
            raise RefusedError(f"it acts on the last dimension of {value.shape}, and NIR's Affine takes a vector")
        weight = self.tensors[linear.weight.path]
        weight = weight.T if linear.transposed else weight
        bias = self._tensor(linear.bias)
        bias = None if bias is None else bias.expand(len(weight))
        arrays = {"weight": weight} if bias is None else {"weight": weight, "bias": bias.detach().float()}
        kind = "Linear" if bias is None else "Affine"
        return self._add(name, Piece(kind, arrays, self._shape(node)), value.sources, own=True)

    def _pool(self, node: Node, pool: Pool, name: str) -> Value:
        value = self._settled(self._value(pool.input), name)
        size, shape = value.shape[1:], self._shape(node)
        if pool.rank == 3 or len(size) != pool.rank:
            raise RefusedError(f"NIR has no average pool for {value.shape}")
        if pool.output_size:
            given = [n if wanted is None else int(wanted) for n, wanted in zip(size, pool.output_size, strict=True)]
            if any(n % wanted for n, wanted in zip(size, given, strict=True)):
                raise RefusedError(f"it averages {size} to {tuple(given)}, in windows of unlike sizes")
            kernel = stride = tuple(n // wanted for n, wanted in zip(size, given, strict=True))
            padding = (0,) * pool.rank
        else:
            kernel, stride, padding = pool.kernel, pool.stride or pool.kernel, pool.padding
        floor = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, kernel, stride, strict=True))
        if floor != shape[1:]:
            raise RefusedError("its last windows reach over the edge (ceil_mode), which NIR's pools do not")
        made = self._average(value, kernel, stride, padding, shape, name)
        factor = math.prod(kernel) / pool.divisor if pool.divisor else None
        if factor is None and any(padding) and not pool.count_include_pad:
            ones = torch.ones(1, 1, *size)
            run = torch.nn.functional.avg_pool2d if pool.rank == 2 else torch.nn.functional.avg_pool1d
            share = run(ones, kernel, stride, padding)[0]
            return self._scaled(made, 1 / share, f"{name}_scale")
        return made if factor in (None, 1) else self._scaled(made, torch.tensor(factor), f"{name}_scale")

    def _average(
        self, value: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
        shape: tuple[int, ...], name: str,
    ) -> Value:  # fmt: skip
        if len(kernel) == 2 and not self.as_convolutions:
            pairs = {"kernel_size": kernel, "stride": stride, "padding": padding}
            arrays = {key: np.array(found) for key, found in pairs.items()}
            return self._add(name, Piece("AvgPool2d", arrays, shape), value.sources)
        size = value.shape[0] ** 2 * math.prod(kernel)
        if size > MOST:
            raise RefusedError(f"written as a convolution this average would have {size:,} weights")
        weight = torch.eye(value.shape[0]).reshape(value.shape[0], -1, *(1 for _ in kernel)) / math.prod(kernel)
        weight = weight.expand(-1, -1, *kernel)
        return self._placed(name, weight, value, shape, stride, padding)

    def _placed(
        self, name: str, weight: Tensor, value: Value, shape: tuple[int, ...], stride: Sequence[int] = (),
        padding: Sequence[int] = (), dilation: Sequence[int] = (), groups: int = 1, bias: Tensor | None = None,
    ) -> Value:  # fmt: skip
        """A convolution with these weights; of a vector, a linear layer."""
        rank = len(value.shape) - 1
        if not rank:
            return self._add(name, Piece("Linear", {"weight": weight}, shape), value.sources, own=True)
        pairs = {"stride": stride or [1] * rank, "padding": padding or [0] * rank, "dilation": dilation or [1] * rank}
        size = value.shape[1:] if rank > 1 else value.shape[1]
        arrays: dict[str, Any] = {key: np.array(n if rank > 1 else n[0]) for key, n in pairs.items()}
        arrays |= {"weight": weight, "groups": int(groups), "input_shape": np.array(size)}
        arrays["bias"] = torch.zeros(len(weight)) if bias is None else bias.detach().float()
        return self._add(name, Piece(f"Conv{rank}d", arrays, shape), value.sources, own=True)

    def _mixed(self, name: str, matrix: Tensor, value: Value) -> Value:
        """Channels times a matrix, at every place."""
        return self._placed(name, matrix.reshape(*matrix.shape, *[1] * (len(value.shape) - 1)), value, value.shape)

    def _scaled(self, value: Value, scale: Tensor, name: str) -> Value:
        if bool((scale == 1).all()):
            return value
        scale = _of_rank(scale.detach().float(), len(value.shape))
        if scale.dim() and scale[:1].numel() == 1:
            value = value if value.picks is None else self._settled(value, name)
            return replace(value, scale=scale if value.scale is None else value.scale * scale, own=frozenset())
        return self._multiplied(self._settled(value, name), scale, name)

    def _multiplied(self, value: Value, scale: Tensor, name: str) -> Value:
        size = value.shape[0]
        if self.as_convolutions and scale[:1].numel() == 1 and size**2 <= MOST:
            return self._mixed(name, torch.diag(scale.reshape(-1).expand(size)), value)
        filled = Filled(scale, value.shape)
        return self._add(name, Piece("Scale", {"scale": filled}, value.shape), value.sources)

    def _shifted(self, value: Value, shift: Tensor, name: str) -> Value:
        """value + shift: in the bias of a synapse that gives it, or of one more that changes nothing else."""
        value = self._settled(value, name)
        if not value.shape:
            return value
        shift = _of_rank(shift.detach().float(), len(value.shape))
        vector = shift.expand(value.shape[0], *shift.shape[1:]).reshape(value.shape[0], -1)
        if vector.numel() and bool((vector != vector[:, :1]).any()):
            raise RefusedError("it adds a constant that differs from place to place, where NIR has one a channel")
        bias = vector[:, 0]
        if not value.own:
            size = value.shape[0]
            if size**2 > MOST:
                raise RefusedError(f"it adds a constant to {size} channels that no synapse before it can take in")
            value = self._mixed(f"{name}_bias", torch.eye(size), value)
        target = self.pieces[min(value.own, key=value.sources.index)]
        if target.kind == "Linear":
            target.kind, target.arrays["bias"] = "Affine", bias.clone()
        else:
            target.arrays["bias"] = target.arrays["bias"] + bias
        return value

    # ------------------------------------------------------------------------------- operators that have no NIR node

    def _weightless(self, node: Node, name: str) -> Value:
        target, row = node.target, TABLE[node.target]
        args, kwargs = self._arguments(node)
        if target == "parspike.scale_shift":
            scaled = self._scaled(self._value(node.args[0]), _channels(args[1], node), f"{name}_scale")
            shift = _channels(args[2], node)
            return self._shifted(scaled, shift, name) if bool((shift != 0).any()) else scaled
        if target in ("aten.add.Tensor", "aten.add.Scalar", "aten.sub.Tensor", "aten.sub.Scalar", "aten.rsub.Scalar",
                      "aten.rsub.Tensor"):  # fmt: skip
            return self._sum(node, args, kwargs, name)
        if target in ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar", "aten.neg.default"):
            factor = -1 if "neg" in target else args[1] if isinstance(node.args[0], Ref) else args[0]
            varies = node.args[0] if isinstance(node.args[0], Ref) else node.args[1]
            if isinstance(factor, Ref):
                raise RefusedError("it takes two values of the network times each other, which no NIR node does")
            if (read := self._value(varies).shape) != self._shape(node):
                raise RefusedError(f"it makes {self._shape(node)} of {read} by repeating it, which no NIR node does")
            scale = torch.as_tensor(factor, dtype=torch.float32)
            scale = 1 / scale if "div" in target else scale
            return self._scaled(self._value(varies), self._of_sample(scale, node), name)
        if target in ("aten.mean.dim", "aten.sum.dim_IntList"):
            return self._mean(node, args, name)
        if target in ("aten.cat.default", "aten.stack.default") and all(isinstance(x, Ref) for x in node.args[0]):
            return self._joined(node, name)
        if row.role is Role.SYNAPSE and not row.weighted and len(node.refs) == 1:
            return self._taken(node, name)
        raise RefusedError(f"NIR has no node for {_plain(target)}")

    def _arguments(self, node: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The node's arguments for one sample; values of the network stay references."""
        env = {ref: Ref(ref) for ref in node.refs}
        return Stream(env, self.tensors, {"batch": 1}).arguments(node)

    def _value(self, leaf: Any) -> Value:
        if not isinstance(leaf, Ref):
            raise RefusedError("it acts on a constant, not on a value of the network")
        return self.values[leaf.name]

    def _tensor(self, leaf: Any) -> Tensor | None:
        if isinstance(leaf, Ref):
            raise RefusedError("its weights depend on the input")
        return None if leaf is None else self.tensors[leaf.path]

    def _shape(self, node: Node) -> tuple[int, ...]:
        return tuple(int(n) for n in node.shape[1:])

    def _of_sample(self, constant: Tensor, node: Node) -> Tensor:
        """A constant of an operator, (1, …) or broadcasting against one sample, without the batch."""
        rank = len(node.shape)
        if constant.dim() == rank:
            if constant.shape[0] != 1:
                raise RefusedError("its constant differs from sample to sample")
            constant = constant[0]
        return constant

    def _sum(self, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Value:
        alpha = kwargs.get("alpha", args[2] if len(args) > 2 else 1)
        signs = [1.0, float(alpha)] if "add" in node.target else [1.0, -float(alpha)]
        if "rsub" in node.target:
            signs = [-float(alpha), 1.0]
        shape, found = self._shape(node), Value((), self._shape(node))
        constants: list[Tensor] = []
        for number, (leaf, arg, sign) in enumerate(zip(node.args[:2], args[:2], signs, strict=True)):
            if not isinstance(leaf, Ref):
                constants.append(sign * self._of_sample(torch.as_tensor(arg, dtype=torch.float32), node))
                continue
            value = self._scaled(self.values[leaf.name], torch.tensor(sign), f"{name}_{number}")
            value = self._settled(value, f"{name}_{number}")
            if value.shape != shape:
                raise RefusedError(f"it adds {value.shape} to {shape} by repeating it, which no edge does")
            if set(value.sources) & set(found.sources):
                # An edge stands once: the second way gets a node of its own.
                ones = Filled(torch.ones((1,) * len(shape)), shape)
                value = self._add(f"{name}_again", Piece("Scale", {"scale": ones}, shape), value.sources)
            found = Value((*found.sources, *value.sources), shape, found.own | value.own)
        for constant in constants:
            if bool((constant != 0).any()):
                found = self._shifted(found, constant, name)
        return found

    def _mean(self, node: Node, args: Sequence[Any], name: str) -> Value:
        value = self._settled(self._value(node.args[0]), name)
        rank = len(value.shape) + 1
        dims = args[1] if len(args) > 1 and args[1] is not None else list(range(rank))
        over = sorted({int(dim) % rank for dim in ([dims] if isinstance(dims, int) else dims)})
        if over != list(range(2, rank)) or rank not in (3, 4):
            raise RefusedError(f"it averages {('B', *value.shape)} over the dimensions {over}, NIR's pools images")
        size = value.shape[1:]
        flat = (value.shape[0], *(1 for _ in size))
        value = self._average(value, size, size, [0] * len(size), flat, name)
        if node.target.startswith("aten.sum"):
            value = self._scaled(value, torch.tensor(float(math.prod(size))), f"{name}_scale")
        return value if len(self._shape(node)) == len(flat) else self._flat(value, self._shape(node), f"{name}_flat")

    def _flat(self, value: Value, shape: tuple[int, ...], name: str) -> Value:
        value = self._settled(value, name)
        for start in range(len(value.shape)):
            for end in range(start + 1, len(value.shape)):
                merged = (*value.shape[:start], math.prod(value.shape[start : end + 1]), *value.shape[end + 1 :])
                if merged == shape:
                    arrays: dict[str, Any] = {"start_dim": start, "end_dim": end if end + 1 < len(value.shape) else -1}
                    arrays["input_type"] = np.array(value.shape)
                    return self._add(name, Piece("Flatten", arrays, shape), value.sources)
        raise RefusedError(f"it makes {shape} of {value.shape}, and NIR can flatten only")

    def _joined(self, node: Node, name: str) -> Value:
        """A concatenation: each branch in its place among zeros, and their sum."""
        shape, found = self._shape(node), Value((), self._shape(node))
        for number, leaf in enumerate(node.args[0]):
            value = self.values[leaf.name]
            picks = self._picks(node, {leaf.name}, number)
            found_one = self._settled(self._composed(value, picks, shape, node.layer), f"{name}_{number}")
            if set(found_one.sources) & set(found.sources):
                raise RefusedError("it joins a value with itself")
            found = Value((*found.sources, *found_one.sources), shape, found.own | found_one.own)
        return found

    def _taken(self, node: Node, name: str) -> Value:
        """An operator without weights that takes its entries from one value: slices, paddings, reshapes."""
        ref = node.refs[0]
        value, shape = self.values[ref], self._shape(node)
        total = math.prod(value.shape)
        if total >= 1 << 24:
            raise RefusedError(f"{_plain(node.target)} of {value.shape} is too large to be written as a convolution")
        places = torch.arange(1, total + 1, dtype=torch.float32).reshape(1, *value.shape)
        made = self._run(node, {ref: places})
        if torch.equal(made.flatten(), places.flatten()):
            if shape == value.shape:
                return value
            squeezed = tuple(n for n in shape if n != 1) == tuple(n for n in value.shape if n != 1)
            if len(shape) < len(value.shape) or not squeezed:
                return self._flat(value, shape, name)
            raise RefusedError(f"it makes {shape} of {value.shape}, and NIR can flatten only")
        if len(shape) != len(value.shape):
            raise RefusedError(f"{_plain(node.target)} makes {shape} of {value.shape}, and NIR can flatten only")
        return self._composed(value, self._picks(node, {ref}), shape, node.layer)

    def _run(self, node: Node, env: Mapping[str, Tensor]) -> Tensor:
        args, kwargs = Stream(dict(env), self.tensors, {"batch": 1}).arguments(node)
        made = call(node.target, args, kwargs)
        if not isinstance(made, Tensor):
            raise RefusedError(f"{_plain(node.target)} gives several values, and NIR has no node for it")
        return made

    def _picks(self, node: Node, refs: set[str], number: int = 0) -> tuple[Tensor, ...]:
        """Where an operator takes its entries from, dimension by dimension: found by running it on the places
        themselves, and compared on random numbers. number: which of the values it joins."""
        (ref,) = refs
        shape = self.values[ref].shape
        blank = {other: torch.zeros(1, *self.values[other].shape) for other in node.refs}
        if len(set(node.refs)) != len(node.refs):
            raise RefusedError("it joins a value with itself")
        picks = []
        for axis, n in enumerate(shape):
            places = torch.arange(1, n + 1, dtype=torch.float32)
            places = places.reshape([-1 if d == axis else 1 for d in range(len(shape))]).expand(shape)
            made = self._run(node, {**blank, ref: places[None]})[0]
            if made.dim() != len(shape):
                raise RefusedError(f"NIR has no node for {_plain(node.target)}")
            lines = made.movedim(axis, 0).reshape(made.shape[axis], -1)
            picks.append(lines.amax(1).round().long() - 1)
        probe = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        if not torch.equal(self._run(node, {**blank, ref: probe})[0], _take(probe[0], picks)):
            raise RefusedError(f"NIR has no node for {_plain(node.target)}")
        return tuple(picks)

    def _composed(self, value: Value, picks: tuple[Tensor, ...], shape: tuple[int, ...], by: str) -> Value:
        """An operator that takes entries, behind another one or none."""
        if not value.sources:  # refused before: what is behind it is looked at all the same
            for places, n in zip(picks[1:], value.shape[1:], strict=True):
                _steps(places, n)
        if value.picks is not None:
            if value.sources and not _takeable(value.picks[1:], self.pieces[value.sources[0]].shape[1:]):
                by = value.by  # it is that one which no convolution can take the place of
            picks = tuple(
                torch.where(now >= 0, before[now.clamp(min=0)], -1)
                for before, now in zip(value.picks, picks, strict=True)
            )
        return replace(value, shape=shape, picks=picks, by=by, own=frozenset())

    def _settled(self, value: Value, name: str) -> Value:
        """The value with what is not written yet: a factor, or an operator that takes entries, as a convolution."""
        if not value.sources:
            return replace(value, picks=None, scale=None)
        if value.picks is None:
            return value if value.scale is None else self._multiplied(value, value.scale, f"{name}_scale")
        before = self.pieces[value.sources[0]].shape
        channels, *spatial = value.picks
        matrix = (channels[:, None] == torch.arange(before[0])).float()
        matrix = matrix if value.scale is None else matrix * value.scale.reshape(-1)
        try:
            steps = [_steps(place, n) for place, n in zip(spatial, before[1:], strict=True)]
        except RefusedError as why:
            raise RefusedError(str(why), value.by) from why
        kernel = [k for _, _, k, _ in steps]
        if matrix.numel() * math.prod(kernel) > MOST:
            raise RefusedError(f"written as a convolution it would have {matrix.numel() * math.prod(kernel):,} weights")
        plain = Value(value.sources, before)
        weight = torch.zeros(*matrix.shape, *kernel)
        weight[(..., *(tap for _, _, _, tap in steps))] = matrix
        strides, padding = [s for s, _, _, _ in steps], [p for _, p, _, _ in steps]
        return self._placed(f"{name}_map", weight, plain, value.shape, strides, padding)


def _steps(places: Tensor, size: int) -> tuple[int, int, int, int]:
    """Stride, padding, kernel size and the tap that is 1 of the convolution along one dimension that takes these places
    of `size`, −1 for a zero."""
    n = len(places)
    found = [(i, int(place)) for i, place in enumerate(places) if place >= 0]
    if not found:
        raise RefusedError("nothing of its input is left")
    (i, first), (j, last) = found[0], found[-1]
    stride = (last - first) // (j - i) if j > i else 1
    start = first - i * stride
    line = [start + k * stride for k in range(n)]
    taken = [place if 0 <= place < size else -1 for place in line]
    if stride < 1 or taken != places.tolist():
        raise RefusedError("it takes entries that no convolution takes")
    padding = max(-start, line[-1] - size + 1, 0)
    tap = start + padding
    return stride, padding, max(tap + 1, size + 2 * padding - stride * n + 1), tap


def _takeable(picks: Sequence[Tensor], sizes: Sequence[int]) -> bool:
    """Whether a convolution takes these places of an image of these sizes."""
    try:
        for places, n in zip(picks, sizes, strict=True):
            _steps(places, n)
    except RefusedError:
        return False
    return True


def _take(x: Tensor, picks: Sequence[Tensor]) -> Tensor:
    """The entries of x at these places, zeros where there is none."""
    for axis, places in enumerate(picks):
        keep = (places >= 0).reshape([-1 if d == axis else 1 for d in range(x.dim())])
        x = x.index_select(axis, places.clamp(min=0)) * keep
    return x


def _of_rank(tensor: Tensor, rank: int) -> Tensor:
    """The tensor with ones before its shape."""
    return tensor.reshape((1,) * (rank - tensor.dim()) + tuple(tensor.shape))


def _channels(vector: Tensor, node: Node) -> Tensor:
    """A vector (C,) as (C, 1, …) of one sample."""
    return vector.reshape(-1, *[1] * (len(node.shape) - 2))


def _plain(target: str) -> str:
    """An operator's name as users know it."""
    return target.removeprefix("aten.").removeprefix("parspike.").split(".")[0]


# ------------------------------------------------------------------------------------------------------- into the file


def _save(
    path: Path, pieces: Mapping[str, Piece], edges: Sequence[tuple[str, str]], metadata: Mapping[str, Any]
) -> None:
    """Write an HDF5 file in the layout of the package nir, one array after the other, so that memory holds one copy."""
    h5py = hdf5()
    text = h5py.string_dtype()
    with path.open("w+b", buffering=0) as stream:
        disk = Disk(stream)
        with h5py.File(disk, "w") as file:
            file.create_dataset("version", data=LAYOUT, dtype=text)
            top = file.create_group("node")
            top.create_dataset("type", data="NIRGraph", dtype=text)
            top.create_dataset("edges", data=np.array(edges, dtype=object).reshape(-1, 2), dtype=text)
            _entries(top.create_group("metadata"), metadata, text)
            nodes = top.create_group("nodes")
            for name, piece in pieces.items():
                if disk.error is not None:
                    break
                group = nodes.create_group(name)
                group.create_dataset("type", data=piece.kind, dtype=text)
                _entries(group, piece.arrays, text)
                if piece.metadata:
                    _entries(group.create_group("metadata"), piece.metadata, text)
        if disk.error is not None:
            raise disk.error


def _entries(group: Any, values: Mapping[str, Any], text: Any) -> None:
    for key, value in values.items():
        if isinstance(value, str):
            group.create_dataset(key, data=value, dtype=text)
        elif isinstance(value, Filled):
            _filled(group, key, value)
        elif isinstance(value, Tensor):
            group.create_dataset(key, data=value.detach().cpu().float().numpy())
        else:
            group.create_dataset(key, data=value)


def _filled(group: Any, key: str, value: Filled) -> None:
    """An array that repeats a smaller one: one number without stored data, or compressed."""
    small = value.tensor.detach().cpu().float().numpy()
    if small.size == 1:
        options = {"chunks": True, "fillvalue": small.reshape(()).item()}
        group.create_dataset(key, shape=value.shape, dtype=np.float32, **options)
        return
    full = np.broadcast_to(small, value.shape)
    packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if small.size < full.size else {}
    group.create_dataset(key, data=full, **packed)
