"""A network in whole numbers: weights of a few bits, whole thresholds, sums that no rounding can touch.

Every value between two layers of neurons is held as a whole number and a *grid*: real value = grid · whole number, the
grid a constant of each channel that is known beforehand. Neurons send counts, whole by themselves; a synapse takes the
grid of what it reads into its weights, which are then rounded to `weights` bits on a grid of each of its outputs; a
sum brings its branches to one grid by whole factors; an average is a sum on a grid as many times finer; a threshold is
divided by the grid and rounded (`parspike.lower.neurons`); a product of two values has the product of their grids.
Values that are added up along a dimension in which their grid varies are brought to one grid first. Where sums would
reach 2^53, what is multiplied is rounded to fewer bits. What a user sees is still a network from real inputs to real
outputs: the first nodes round the input to its grid, the last ones multiply by theirs.

The nodes are those that every engine runs, on whole numbers in float32 where no sum can reach 2^24, else in float64
(2^53): addition of such numbers is exact in any order, so results are equal to the bit on every machine. What could
prove this wrong: a value that is not whole, or counts that differ between two engines (tests/test_lower.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from parspike.engines.int8 import EXACT
from parspike.errors import OptionError, UnsupportedError
from parspike.graph import Node, Param, Ref, Role, Size, Stream, leaves, map_tree
from parspike.graph.lookup import TAKEN
from parspike.graph.ops import CASTS, ENCODE, FLOOR, HOLD, LARGEST, MASKED, REAL, RSQRT, TABLE, TIMES
from parspike.graph.resized import weights_along
from parspike.graph.rewrite import turn_of_function
from parspike.graph.signature import SUMMED, Conv, Linear, Pool, arguments, named, with_weights
from parspike.lower.grids import ALIKE, FIXED, PRECISE, UNLIKE, Value, chooses, grids_of, input_node, sample, squeezed
from parspike.lower.masks import Masks
from parspike.lower.neurons import EVEN, Refused, aligned, curve, on_whole, quanta
from parspike.lower.prepared import FACTORS, FILLS, SUMS, batches_of, free, is_real, largest_of
from parspike.lower.rounding import JOINS, Fitting, finest, in_parts, largest_joined, one_by_one
from parspike.neurons import Even
from parspike.snn import SNN, check_converted

__all__ = ["integers"]

USEFUL = 1 << 12
"""Parts of one count of a neuron that a weight, times the largest number that it is given, is rounded to, at most:
finer weights would only make sums larger."""
COARSE = 1 << 8
"""Parts of one count below which a threshold that is no whole number of them would be rounded too much."""
ROOM_ABOVE = 8
"""How many times as large as the largest that the images hold of a feature its inputs may be without being clipped,
where the largest of all features is as large."""
ROOMS = (
    *((2.0**bits, False) for bits in (44, 38, 34, 30, 27, 24, 22, 20, 18, 16)),
    *((2.0**bits, True) for bits in (38, 34, 30, 27, 24, 22, 20, 18)),
)
"""Largest values that are multiplied, by weights or by each other, the first under which all sums are exact: what
weights prove of a value is often some hundred times what arises, so few of its bits are left out where any are. Last
those that also hold for values on one grid for all channels, where small channels may lose all bits."""
UNEVEN = 8
"""How many times as large as another's the whole numbers of a joined value are at least for the other's to be brought
near them."""
CONSTANTS = {"aten.add.Scalar": (1, 1), "aten.sub.Scalar": (1, -1), "aten.rsub.Scalar": (-1, 1)}
CHOOSE = ("aten.index.Tensor", "aten.index_select.default", "aten.gather.default")
"""Operators that may read a tensor of the network without changing values: places."""
BEYOND = 2
"""How many times as large as √n, the largest that a norm of n features gives, what it gives in whole numbers may be:
its 1/√ is a staircase. Without that end, what weights prove of a norm would be as many times what they prove of the one
before it as the layers between are wide."""
EMBEDDING = "aten.embedding.default"
PADS = ("aten.pad.default", "aten.constant_pad_nd.default")
EVERYWHERE = ("aten.zeros.default", "aten.ones.default", "aten.full.default")
"""Operators that make a tensor of one number."""
NEAREST = ("aten.upsample_nearest", "aten._upsample_nearest_exact")
"""Operators of windows of one value each."""
MIX = ("aten.lerp.Scalar",)
"""Operators that are no layer, and move no values either."""
SHIFTS, DIVISIONS = ("aten.add.Tensor", "aten.add.Scalar"), ("aten.div.Tensor", "aten.div.Scalar")
"""What may stand between the squares of a norm and its root."""
EXTREMES = ("aten.amax.default", "aten.amin.default")
ELEMENTS = ("aten.mul.Tensor", TIMES)
MATRICES = ("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
"""Products of two values: element by element, and of matrices."""


def integers(
    snn: SNN,
    images: Any,
    *,
    weights: int = 8,
    inputs: int = 8,
    refit: bool = True,
) -> SNN:
    """The same network in whole numbers.

    images: a batch (B, …) as the network takes it, or several, each a tensor, a tuple or a mapping as for `convert`;
    the largest magnitude of every channel of the inputs is read from them, and synapses are fitted on them. weights:
    bits of a weight, 2 … 16, one sign among them: at 4 bits −7 … 7. inputs: bits of an input. refit: whether synapses
    are fitted to what they read once the layers before them are rounded, and weights make good for each other's
    rounding (`parspike.lower.rounding`); without it they are rounded to the nearest. Input sizes are those
    of the images.

    Returns a network of `Whole` neurons (or of IF neurons whose parameters are whole), which runs, saves and loads like
    any other; its outputs are real again. What stands behind the last layer and has no form in whole numbers, such as a
    softmax, is computed of the answer in real numbers (`provenance["real"]` names it). Inputs of a whole type, such as
    uint8 images or tokens, are taken as they are. Raises `UnsupportedError` that lists every operator and neuron that
    whole numbers cannot carry, `OptionError` on bits out of range and images of several sizes.
    """
    check_converted(snn, "integers")
    for name, bits in (("weights", weights), ("inputs", inputs)):
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
            raise OptionError(f"{name} must be a number of bits from 2 to 16, got {bits!r}")
    if snn.provenance.get("lowered") == "integers":
        raise OptionError("this network is in whole numbers already: lower the one that it was made from")
    batches = batches_of(snn, images)
    snn = _at_sizes_of(snn, batches)
    device = next((t.device for t in snn.tensors().values()), torch.device("cpu"))
    if device.type != "cpu":  # rounded there, so that a network has the same numbers wherever it was made
        moved = [{name: x.cpu() for name, x in env.items()} for env in batches]
        here = copy.deepcopy(snn).cpu()
        return integers(here, cast(Any, moved), weights=weights, inputs=inputs, refit=refit).to(device)
    source, given = aligned(snn).double(), snn.graph.at_example(FIXED).inputs
    first = _Whole(source, weights, given, ROOMS[0])
    joined = largest_joined(first.source, first.neurons, snn.T, batches)

    def begun(room: tuple[float, bool]) -> _Whole:
        made = _Whole(source, weights, given, room)
        made.joined = joined
        made.read(batches, inputs)
        return made

    for room in ROOMS:
        made = begun(room)
        made.add_all()
        spare = 8 if refit else 1  # fitted weights make other grids
        if made.refused or made.most * snn.T * spare < EXACT[torch.float64]:
            break
    if refit and not made.refused:
        made = begun(room)
        made.follow(batches)
        made.add_all()
    about = {"lowered": "integers", "weights": weights, "inputs": inputs, "refit": refit}
    return made.finished({**snn.provenance, **about})


def _at_sizes_of(snn: SNN, batches: list[dict[str, Tensor]]) -> SNN:
    """The network with the sizes of these inputs for its example's."""
    graph = snn.graph
    each = [{name: graph.sizes(env)[name] for name in graph.example} for env in batches]
    for number, sizes in enumerate(each):
        if sizes != each[0]:
            raise OptionError(
                f"images, batch {number}: {sizes} where batch 0 has {each[0]}: whole numbers are made for one size of "
                "the inputs, so give images of that size alone"
            )
    if each[0] == graph.example:
        return snn
    made = copy.deepcopy(snn)
    made.graph = replace(made.graph, example=each[0])
    return made


class _Whole(Masks):
    """The network in the making, node by node."""

    fitting: Fitting | None = None
    joined: Mapping[str, float] = {}
    """The largest magnitudes of the real values that are joined to others."""
    looked_up = False
    """Whether something was refused that look-ups would have stood for."""

    def read(self, batches: list[dict[str, Tensor]], bits: int) -> None:
        top, largest = 2 ** (bits - 1) - 1, largest_of(batches)
        self.met = [Stream({}, self.source.tensors, self.source.sizes(env)) for env in batches]
        for i in self.source.inputs:
            if not i.dtype.is_floating_point:
                for met, env in zip(self.met, batches, strict=True):
                    met.env[i.name] = env[i.name]
                self.tokens.add(i.name)
                continue
            most, kinds = largest[i.name], {type(self._layer(reader)) for reader in self.readers[i.name]}
            if kinds == {Linear}:  # features, of which some may be in other units
                each = [env[i.name].double().abs().flatten(0, -2).amax(0) for env in batches]
                most = torch.stack(each).amax(0).reshape([1] * (most.dim() - 1) + [-1])
                most = torch.minimum(most * ROOM_ABOVE, most.max())
            elif kinds != {Conv}:
                most = most.amax(keepdim=True).reshape([1] * most.dim())  # dimension 1 may be anything
            grid = grids_of(most, top)
            like = input_node(i)
            # A product rounds alike on every machine, which not every runtime's division does.
            name = self.emit(like, "_on_grid", "aten.mul.Tensor", Ref(i.name), self.put(like, "parts.grid", 1 / grid))
            name = self.emit(like, "_rounded", "aten.round.default", Ref(name))
            ends = (
                self.put(like, end, torch.tensor(value, dtype=grid.dtype))
                for end, value in (("least", -top), ("most", top))
            )
            name = self.emit(like, "_whole", "aten.clamp.Tensor", Ref(name), *ends)
            self.entries.append(name)
            self.values[i.name] = Value(name, like, grid, top)

    def add_all(self) -> None:
        for node in self.source.nodes:
            self.add(node)

    def add(self, node: Node) -> None:
        """Put what a node computes into the new graph; or note why that cannot be done. What follows from a refused
        node is not refused again."""
        if not all(ref in self.values or ref in self.tokens or ref in self.tail for ref in node.refs):
            return
        given_back = not node.refs and not self.readers[node.name] and self._one_tensor(node)  # a constant output
        if given_back or not self.tail.keys().isdisjoint(node.refs):
            self.tail[node.name] = node
            return
        before = set(self.nodes)
        try:
            if self.tokens.issuperset(node.refs) and self.stays_whole(node):
                self.tokens.add(self.keep(node))
            else:
                self.values[node.name] = value = self._rule(node)(node)
                self.reaches(node, value.most)
        except Refused as error:
            if node.name in self.ahead or self.computes(node) or not node.refs:
                self.refused.append(f"  {node.layer or node.name} ({node.target}): {error}")
                self.looked_up |= node.target in TAKEN
            else:
                self.tail[node.name] = node
            return
        if self.fitting is not None and not self.refused:
            self._passed(node, before)

    def reaches(self, node: Node, most: float) -> None:
        """Note how large a node's values may be."""
        if most > self.most:
            self.most, self.widest = most, node.layer or node.name

    def follow(self, batches: list[dict[str, Tensor]]) -> None:
        """Fit every synapse on these inputs."""
        self.fitting = Fitting(self.source, self.neurons, self.simulation.T, batches)
        self.fitting.start(list(self.nodes.values()), self.tensors)

    def _passed(self, node: Node, before: set[str]) -> None:
        new = [made for name, made in self.nodes.items() if name not in before]
        later = self.source.nodes[self.source.nodes.index(node) + 1 :]
        read = {ref for other in later for ref in other.refs} | set(self.source.outputs)
        kept = {self.values[name].name for name in read if name in self.values} | (self.tokens & read)
        cast(Fitting, self.fitting).passed(node, new, self.tensors, self.made, kept)

    def _rule(self, node: Node) -> Callable[[Node], Value]:
        if not self.tokens.isdisjoint(node.refs):
            return self._of_tokens
        if node.name in self.neurons:
            return self._neuron
        if not node.refs:
            rest = self._number if node.target in EVERYWHERE else self._unknown
            return self._constant if self._one_tensor(node) else rest
        if node.role is Role.NEURON and node.target != "aten.relu.default" and self._only_neurons_read(node):
            return self._computed
        if arithmetic := self._arithmetic(node):
            return arithmetic
        found = self._layer(node)
        if isinstance(found, (Conv, Linear)):
            return self._synapse
        if TABLE[node.target].product:
            return self._product
        if isinstance(found, Pool) and found.average:
            return self._average
        if node.target in ("aten.mean.dim", "aten.sum.dim_IntList"):
            return self._total
        if TABLE[node.target].sources == "window" and "upsample" in node.target and not self._moves(node):
            return self._interpolated
        if node.target == FLOOR:
            return self._floor
        if node.target == "aten.cumsum.default":
            return self._running
        if node.role is Role.ORDER:
            return self._order
        if node.target == MASKED:
            return self.masked
        if node.target in FILLS:
            return self.filled
        if node.target in ("aten.relu.default", HOLD):
            return self._unchanged
        if not self._moves(node):
            return self._unknown
        return self._padded if node.target in PADS else self._moved

    def _layer(self, node: Node) -> Conv | Linear | Pool | None:
        """`arguments`, also of a product with a matrix of the network."""
        if node.target != MATRICES[0] or not isinstance(node.args[0], Ref) or not isinstance(node.args[1], Param):
            return arguments(node)
        matrix = self.source.tensors[node.args[1].path].dim() == 2
        return Linear(node.args[0], node.args[1], None, transposed=True) if matrix else None

    def _arithmetic(self, node: Node) -> Callable[[Node], Value] | None:
        if node.target in SUMS and len(node.refs) == 2:
            return self._sum
        if node.target in SUMS or node.target in CONSTANTS:
            return self._shifted
        return self._scaled if node.target in FACTORS or node.target == "parspike.scale_shift" else None

    @property
    def remedy(self) -> str:
        """What to convert with so that an activation that others than neurons read is no real number."""
        asked = self.provenance.get("encode") is not None
        if not asked:
            return "without Keep(), or with encode='hidden', analog='lookup'"
        rest = " or with analog='lookup' beside it," if self.provenance.get("analog") != "lookup" else ""
        return f"without encode=,{rest} and without Keep()"

    def _moves(self, node: Node) -> bool:
        """Whether a node leaves values as they are, at other places."""
        row = TABLE[node.target]
        return (
            row.role is Role.SYNAPSE
            and (row.sources == "one" or node.target.startswith(NEAREST))
            and not (row.weighted or row.product or row.weighs)
            and all(node.target in CHOOSE and chooses(self.source.tensors[path]) for path in node.params)
            and node.target not in MIX
        )

    def _one_tensor(self, node: Node) -> bool:
        """Whether a node that reads no value only moves or repeats real numbers of the network."""
        real = len(node.params) == 1 and (is_real(node) or self.source.tensors[node.params[0]].is_floating_point())
        row = TABLE[node.target]
        return real and row.role is Role.SYNAPSE and row.sources == "one" and not (row.weighted or row.product)

    def _unknown(self, node: Node) -> Value:
        if node.role is Role.NEURON:
            raise Refused(
                "the activation is computed without neurons, and only ReLU has a form in whole numbers where no "
                f"neurons alone read it: convert {self.remedy}; layers={{'{node.layer}': parspike.Spike()}} makes "
                "neurons of one at the input or the output"
            )
        raise Refused(node.reason or "whole numbers have no form of it")

    def _sum(self, node: Node) -> Value:
        if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
            raise Refused("a sum with a factor")
        left, right = self.on_one_grid(node, self.no_further_than_hidden(node))
        name = self.emit(node, "", node.target, Ref(left.name), Ref(right.name))
        return Value(name, node, left.grid, left.most + right.most)

    def _shifted(self, node: Node) -> Value:
        if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
            raise Refused("a sum with a factor")
        signs, args = {**SUMS, **CONSTANTS}[node.target], list(node.args)
        left, right = args[:2]
        first = isinstance(left, Ref)
        value = self.values[node.refs[0]]
        mine, other = signs if first else signs[::-1]
        turned = torch.full([1] * len(node.shape), float(mine), dtype=value.grid.dtype)
        value = self.times(value, turned, f"_turned_for_{node.name}")
        return self.plus(node, value, other * self._constant_in(right if first else left))

    def _constant_in(self, constant: Any) -> Tensor:
        """A constant that an operator is given, in float64; a number has the digits of float32."""
        tensor = self.source.tensors[constant.path] if isinstance(constant, Param) else torch.tensor(float(constant))
        return tensor.double()

    def _scaled(self, node: Node) -> Value:
        if len(node.refs) != 1:
            return self._product(node)
        value = self.values[node.refs[0]]
        if node.target == "parspike.scale_shift":
            scale, shift = (self.source.tensors[param.path].double() for param in node.args[1:3])
            along = [1, -1] + [1] * (len(node.shape) - 2)
            scaled = self._factor(node, value, scale.reshape(along))
            return self.plus(node, scaled, shift.reshape(along)) if bool(shift.any()) else scaled
        if node.target == "aten.neg.default":
            return self._factor(node, value, torch.tensor(-1.0).double())
        if not isinstance(node.args[0], Ref) and node.target.startswith("aten.div"):
            raise Refused("it divides by a value that depends on the input")
        number = self._constant_in(node.args[1] if isinstance(node.args[0], Ref) else node.args[0])
        return self._factor(node, value, 1 / number if node.target.startswith("aten.div") else number)

    def _product(self, node: Node) -> Value:
        """A product of whole numbers is whole, on the product of their grids; one of matrices where each operand has
        one grid for all that is added up."""
        if node.target.startswith("aten.div"):
            raise Refused("it divides by a value that depends on the input")
        if node.target not in (*ELEMENTS, *MATRICES) or not all(isinstance(arg, Ref) for arg in node.args):
            remedy = "" if len(node.refs) > 1 else ": write it as x @ matrix or as a linear layer, with the matrix last"
            raise Refused(f"a product of this form has none in whole numbers{remedy}")
        if self.over_time:
            raise Refused("a product of values that change over time is no whole number")
        left, right = (
            self.coarse(node, self.values[arg.name], side)
            for arg, side in zip(node.args, ("left", "right"), strict=True)
        )
        number = 1
        if node.target in MATRICES:
            if min(len(value.like.shape) for value in (left, right)) < 2:
                raise Refused("a product with a vector has no form in whole numbers")
            number = sample(left.like)[-1]
            left, right = self.even(node, left, [-1], "left"), self.even(node, right, [-2], "right")
        grid = left.grid @ right.grid if node.target in MATRICES else left.grid * right.grid
        name = self.emit(node, "", node.target, Ref(left.name), Ref(right.name), role=node.role, reason=node.reason)
        made = Value(name, node, grid, left.most * right.most * number)
        number = self._normal_of(node)
        return made if number is None else self._within(made, BEYOND * math.sqrt(number))

    def _normal_of(self, node: Node) -> float | None:
        """n of a product x/√(Σx²/n + ε), as `graph.lookup` writes norms; None of others."""
        by_name = self.source.by_name

        def made(leaf: Any) -> Node | None:
            """What a value is, without the neurons that send it and what `lower.unit` makes of their spikes."""
            found = by_name.get(leaf.name) if isinstance(leaf, Ref) else None
            if found is None or len(found.refs) != 1:
                return found
            before = found.name.partition("_for_")[0]
            if found.target in (HOLD, ENCODE) or (before != found.name and before in self.neurons):
                return made(Ref(found.refs[0]))
            return found

        def alike(one: Node | None, two: Node | None, depth: int = 3) -> bool:
            """Whether two values are the same by how they are made: x − mean x may be written twice."""
            if one is None or two is None or one is two or not depth:
                return one is two is not None
            first, second = (
                [n.target, n.kwargs, [None if isinstance(leaf, Ref) else leaf for leaf in leaves(n.args)]]
                for n in (one, two)
            )
            refs = zip(one.refs, two.refs, strict=False)  # as many of each, where all else is equal
            return first == second and all(a == b or alike(made(Ref(a)), made(Ref(b)), depth - 1) for a, b in refs)

        inverse, x = (made(arg) for arg in node.args)
        here, number = inverse if inverse is not None and inverse.target == RSQRT else None, 1.0
        while here is not None and here.target in (RSQRT, "aten.neg.default", *SHIFTS, *DIVISIONS):
            constant = here.args[1] if here.target in (*SHIFTS, *DIVISIONS) else 0
            if not isinstance(here.args[0], Ref) or not isinstance(constant, (int, float)) or constant < 0:
                return None
            number *= constant if here.target in DIVISIONS else 1
            here = made(here.args[0])
        if x is None or here is None or here.target not in ("aten.mean.dim", "aten.sum.dim_IntList"):
            return None
        squares = made(here.args[0])
        if squares is None or squares.target != TIMES or not all(alike(made(arg), x) for arg in squares.args):
            return None
        if here.target == "aten.mean.dim":
            number *= math.prod(sample(squares)[d] for d in cast("list[int]", here.args[1]))
        return number

    def _within(self, value: Value, most: float) -> Value:
        """The value clipped to a magnitude that it cannot have as a real number, where weights prove less of it."""
        end = (most / value.grid).ceil()
        if float(end.max()) >= value.most:
            return value
        ends = (self.put(value.like, name, t) for name, t in (("lowest", -end), ("highest", end)))
        name = self.emit(value.like, "_within", "aten.clamp.Tensor", Ref(value.name), *ends)
        return replace(value, name=name, most=float(end.max()))

    def _floor(self, node: Node) -> Value:
        if self.over_time:
            raise Refused("a maximum of currents that change over time is no whole number")
        value = self.values[node.refs[0]]
        least = self.put(node, "floor", (cast(float, node.args[1]) / value.grid).round())
        name = self.emit(node, "", "aten.clamp_min.Tensor", Ref(value.name), least)
        return Value(name, node, value.grid, value.most)

    def _factor(self, node: Node, value: Value, factor: Tensor) -> Value:
        """A factor goes into the grid; its sign, or 0, stays a factor."""
        factor = factor.reshape([1] * (len(node.shape) - factor.dim()) + list(factor.shape))
        if sample(value.like) != sample(node):  # one number has several factors
            wide = [-1 if isinstance(size, Size) else size for size in node.shape]
            like = replace(node, name=f"{node.name}_repeated")
            value = replace(value, name=self.emit(like, "", "aten.expand.default", Ref(value.name), wide), like=like)
        value = self.times(value, factor.sign(), f"_signs_of_{node.name}")
        return replace(value, like=node, grid=value.grid * torch.where(factor == 0, 1.0, factor.abs()))

    def _synapse(self, node: Node) -> Value:
        found = cast("Conv | Linear", self._layer(node))
        if not isinstance(found.input, Ref) or not isinstance(found.weight, Param):
            raise Refused("its weights are no tensor of the network")
        value = self.coarse(node, self.values[found.input.name])
        weight = self.source.tensors[found.weight.path].double()
        bias = None if found.bias is None else self.source.tensors[found.bias.path].double()
        rows = None
        if self.fitting is not None and not self.refused:
            grids = {name: (v.name, v.grid) for name, v in self.values.items()}
            rows = self.fitting.rows(node, weight, grids)
        if rows is not None:
            weight, bias = rows.solve(weight, bias)
        along = 1 if isinstance(found, Conv) else value.grid.dim() - 1
        if others := [d for d, size in enumerate(value.grid.shape) if size > 1 and d != along]:
            value = self.even(node, value, others, "places")
        weights, places = _by_output(found, weight), math.prod(weight.shape[2:])
        groups, outputs, features = weights.shape
        units = value.grid.flatten().expand(groups * features // places).reshape(groups, 1, -1)
        units = units.repeat_interleave(places, 2)  # the grid of every feature, which the weights take up
        scaled, read = weights * units, None
        if rows is not None:  # in whole numbers, 1 last: (groups, N, features + 1)
            read = rows.all.x.double()
            read = torch.cat([read[:, :, :-1] / units, read[:, :, -1:]], 2)
        number = torch.zeros(groups * outputs).double() if bias is None else bias
        grid = self._grid(node, scaled, number, value.most, read)
        each = grid.reshape(groups, outputs)
        if read is None:
            whole = (scaled / each[:, :, None]).round()
        else:
            whole, number = one_by_one(scaled, number.reshape(each.shape), each, rows=read, top=self.top)
        added = (number.flatten() / each.flatten()).round()
        of_weight = self.put(node, "weight", _as_weight(found, whole, weight.shape))
        of_bias = None if bias is None else self.put(node, "bias", added)
        if isinstance(found, Linear):
            name = self.emit(node, "", "aten.linear.default", Ref(value.name), of_weight, of_bias)
        else:
            name, reads = node.name, replace(node, args=(Ref(value.name), *node.args[1:]))
            self.nodes[name] = with_weights(reads, of_weight, of_bias)
        most = float((whole.abs().sum(2).flatten() * value.most + added.abs()).max())
        return Value(name, node, grid, most)

    def _grid(self, node: Node, scaled: Tensor, bias: Tensor, most: float, read: Tensor | None) -> Tensor:
        """The grid of every output of a synapse, broadcasting against one sample.

        scaled: the weights (groups, outputs, features) that are rounded; bias (all outputs,). most: the largest number
        that the weights are given. read (groups, N, features + 1): what they are given, 1 last, if that is known."""
        power = None if read is None else read[:, :, :-1].square().sum(1)
        least = self._at_least(node, finest(scaled, power, self.top).flatten(), scaled.flatten(0, 1), bias, most)
        grid = self.fitted(node, least.reshape(self.channels_alone(node)), USEFUL * most, round_up=True)
        if (beside := self.beside(node)) is not None:
            reach = beside.most * float((beside.grid / grid).max())
            if self.bits_of_room(max(reach, self.top * most * scaled.shape[2])) < PRECISE:
                # The sum behind has no room for a finer grid: this one becomes a whole part or multiple of the other.
                grid = torch.where(
                    beside.grid >= grid,
                    beside.grid / (beside.grid / grid).floor(),
                    beside.grid * (grid / beside.grid).ceil(),
                ).expand(grid.shape)
        return grid

    def _at_least(self, node: Node, grid: Tensor, scaled: Tensor, bias: Tensor, most: float) -> Tensor:
        """The grid of every output (outputs,), coarser where its weights are so small, or 0, that the bias is nearly
        all of it: on a grid of the weights, its whole numbers would be much larger than those of the others.

        scaled: the weights (outputs, features). most: the largest number that they are given."""
        dead = ~scaled.any(1)
        grid = torch.where(dead, grid[~dead].min() if not bool(dead.all()) else 1.0, grid)
        own = bias.abs() / (self.top * max(most, 1) * math.sqrt(scaled.shape[1]))
        alone = bias.abs() > scaled.abs().sum(1) * most
        if self.goes_to(node) is not None:  # one count of theirs is a whole number of the grid
            return torch.where(alone & dead, own, grid)
        return torch.where(alone, own, grid.clamp(min=float(grid.max()) / UNLIKE))

    def _average(self, node: Node) -> Value:
        pool = cast(Pool, arguments(node))
        value = self.values[node.refs[0]]
        sizes, spatial = sample(value.like), list(range(len(node.shape) - pool.rank, len(node.shape)))
        kernel, stride, padding = pool.kernel, pool.stride, pool.padding
        if len(node.shape) != pool.rank + 2:
            raise Refused("what it sums up has no dimension of the batch")
        if pool.output_size:
            wanted = [sizes[d] if n is None else n for d, n in zip(spatial, pool.output_size, strict=True)]
            if any(sizes[d] % n for d, n in zip(spatial, wanted, strict=True)):
                return self._interpolated(node)
            kernel = stride = tuple(sizes[d] // n for d, n in zip(spatial, wanted, strict=True))
            padding = (0,) * pool.rank
        lines = zip(spatial, kernel, stride, padding, strict=True)
        if any((sizes[d] + 2 * p - k) // s + 1 != node.shape[d] for d, k, s, p in lines):
            return self._interpolated(node)  # the last windows reach over the edge (ceil_mode)
        value = self.even(node, value, spatial)
        # A sum is a convolution with ones, exact, where an average pool would divide and round.
        ones = Param(SUMMED.format(node.name))
        self.tensors[ones.path] = torch.ones(sizes[1], 1, *kernel).double()
        args = (Ref(value.name), ones, None, list(stride), list(padding), [1] * pool.rank, sizes[1])
        name = self.emit(node, "", f"aten.conv{pool.rank}d.default", *args)
        grid = value.grid / math.prod(kernel)
        if pool.divisor or not pool.count_include_pad:  # what a window at the edge is divided by may be less
            there = torch.ones(1, 1, *sizes[2:]).double()
            kind: Any = (torch.conv1d, torch.conv2d, torch.conv3d)[pool.rank - 1]
            summed = kind(there, torch.ones(1, 1, *kernel).double(), None, list(stride), list(padding))
            grid = value.grid * squeezed(self.run(node, there) / summed)
        return Value(name, node, grid, value.most * math.prod(kernel))

    def _interpolated(self, node: Node) -> Value:
        """An interpolation, or an average over windows of unlike sizes: a linear layer along one dimension after the
        other, of weights that are whole multiples of a fraction."""
        value = self.values[node.refs[0]]
        rank, inside = len(node.shape) - 2, sample(value.like)[2:]
        value = self.even(node, self.coarse(node, value), list(range(2, rank + 2)))
        pool = arguments(node)
        grid = value.grid / (pool.divisor or 1) if isinstance(pool, Pool) else value.grid
        name, most, shape = value.name, value.most, list(value.like.shape)
        for axis in range(rank):
            matrix = weights_along(node, inside, axis, torch.float64)
            if torch.equal(matrix, torch.eye(inside[axis]).double()):
                continue
            whole, parts = in_parts(matrix, self.top)
            like, dim = replace(node, name=f"{node.name}_along{axis}"), 2 + axis
            turned = [d for d in range(rank + 2) if d != dim] + [dim]
            back = [turned.index(d) for d in range(rank + 2)]
            shape[dim] = len(matrix)
            weight = Param(SUMMED.format(like.name))
            self.tensors[weight.path] = whole
            before, after = [
                [sizes[d] for d in turned] for sizes in ([*shape[:dim], inside[axis], *shape[dim + 1 :]], shape)
            ]
            if axis < rank - 1:
                name = self.emit(like, "_turned", "aten.permute.default", Ref(name), turned, shape=tuple(before))
            name = self.emit(like, "", "aten.linear.default", Ref(name), weight, shape=tuple(after))
            if axis < rank - 1:
                name = self.emit(like, "_back", "aten.permute.default", Ref(name), back, shape=tuple(shape))
            grid, most = grid / parts, most * float(whole.abs().sum(1).max())
        return Value(name, node, grid, most)

    def _total(self, node: Node) -> Value:
        value, sizes = self.values[node.refs[0]], sample(self.values[node.refs[0]].like)
        given = node.args[1] if len(node.args) > 1 else None
        dims = [d % len(sizes) for d in (given or range(len(sizes)))]
        mixed = any(isinstance(value.like.shape[d], Size) for d in dims)  # all other sizes are numbers
        if mixed or node.kwargs.get("dtype") is not None:
            raise Refused("it sums over the batch" if mixed else "it changes the type")
        value = self.even(node, self.coarse(node, value), dims)
        keepdim = bool((*node.args[2:3], node.kwargs.get("keepdim", False))[0])
        number = math.prod(sizes[d] for d in dims)
        name = self.emit(node, "", "aten.sum.dim_IntList", Ref(value.name), dims, keepdim)
        grid = value.grid.sum(dims, keepdim) / (number if "mean" in node.target else 1)
        return Value(name, node, grid, value.most * number)

    def _order(self, node: Node) -> Value:
        if node.params:
            raise Refused("it compares with a constant")
        if self.over_time:
            raise Refused("a maximum of currents that change over time is no whole number")
        values = [self.values[ref] for ref in node.refs]
        if len(values) == 2:
            values = self.on_one_grid(node, values)
            name = self.emit(node, "", node.target, *(Ref(value.name) for value in values))
            return Value(name, node, values[0].grid, max(value.most for value in values))
        (value,) = values
        if node.target == LARGEST:
            value = self.even(node, value, [cast(int, node.args[1])])
        elif node.target in EXTREMES:
            value = self.even(node, value, list(named(node)["dim"]) or list(range(value.grid.dim())))
        name = self.keep(node, {node.refs[0]: value})
        grids = value.grid.expand(sample(value.like))
        largest, smallest = self.run(node, grids), -self.run(node, -grids)
        if not torch.equal(largest, smallest):
            raise Refused("what it compares has other grids at other places")
        return Value(name, node, squeezed(largest), value.most)

    def _constant(self, node: Node) -> Value:
        """A constant of the network, such as a class token, on a grid of its own."""
        (path,) = node.params
        number = self.source.tensors[path].double()
        top = float(number.abs().max()) or 1.0
        whole = self.put(node, "constant", (number * (ALIKE**2 / top)).round())
        if is_real(node):  # of places that are counted: the type is chosen anew
            node = replace(node, target="aten.expand.default", args=(whole, list(node.shape)), kwargs={})
        self.nodes[node.name] = node.mapped(lambda leaf: whole if isinstance(leaf, Param) else leaf)
        return Value(node.name, node, torch.full([1] * len(node.shape), top / ALIKE**2).double(), ALIKE**2)

    def _number(self, node: Node) -> Value:
        """One number at every place, such as the first state of a recurrent layer."""
        made = self.run(node)
        if not made.is_floating_point() or not bool(made.isfinite().all()):
            raise Refused("it makes numbers that are not real and finite")
        number = float(made.flatten()[0]) if made.numel() else 0.0
        unit, kwargs = math.copysign(float(number != 0), number), {**node.kwargs, "dtype": torch.float32}
        self.entries.append(self.emit(node, "", "aten.full.default", node.args[0], unit, kwargs=kwargs))
        grid = torch.full([1] * len(node.shape), abs(number) or 1.0).double()
        return Value(node.name, node, grid, float(number != 0))

    def _of_tokens(self, node: Node) -> Value:
        """What becomes of numbers that are whole by themselves: real ones, or a row of a table for each, rounded as
        weights are, on a grid of each of its features."""
        if node.target == MASKED or node.target in FILLS:
            return self.hidden_by_tokens(node)
        if is_real(node):
            return self.real_of(node.refs[0], node)
        arithmetic, given = self._arithmetic(node), self.tokens.intersection(node.refs)
        if arithmetic is not None:
            self.values |= {name: self.real_of(name, replace(node, name=f"{name}_for_{node.name}")) for name in given}
            try:
                return arithmetic(node)
            finally:  # elsewhere they are tokens still
                for name in given:
                    del self.values[name]
        table = node.args[0]
        if not self.tokens.issuperset(node.refs):
            raise Refused("it chooses by tokens")
        if node.target != EMBEDDING or not isinstance(table, Param):
            raise Refused("it makes real numbers of tokens, which whole numbers only look up in tables")
        number = self.source.tensors[table.path].double()
        grid = grids_of(number.abs().amax(0), self.top)
        whole = self.put(node, "weight", (number / grid).round())
        self.nodes[node.name] = node.mapped(lambda leaf: whole if isinstance(leaf, Param) else leaf)
        return Value(node.name, node, grid.reshape([1] * (len(node.shape) - 1) + [-1]), self.top)

    def _padded(self, node: Node) -> Value:
        """Values with others put in beside them: zeros, to which a constant is added where they are none."""
        given = named(node)
        if not given["value"] or given.get("mode", "constant") != "constant":
            return self._moved(node)
        number = self.run(node, torch.zeros(sample(self.values[node.refs[0]].like)).double())
        alone = replace(node, name=free(f"{node.name}_zeros", self.outer), args=node.args[:2], kwargs={})
        return self.plus(node, self._moved(alone), number)

    def _running(self, node: Node) -> Value:
        """Sums of a value and all before it along a dimension."""
        value, dim = self.values[node.refs[0]], cast(int, node.args[1])
        if isinstance(value.like.shape[dim], Size) or node.kwargs.get("dtype") is not None:
            raise Refused("it sums over the batch, or changes the type")
        value = self.even(node, self.coarse(node, value), [dim % len(node.shape)])
        name = self.emit(node, "", node.target, Ref(value.name), dim)
        return Value(name, node, value.grid, value.most * sample(value.like)[dim])

    def _moved(self, node: Node) -> Value:
        values = [self.values[ref] for ref in dict.fromkeys(node.refs)]
        if node.target in JOINS:
            values = self._alike(node, values)
        if node.target == "aten.pixel_shuffle.default":  # channels become places, which have one grid
            values = [self.even(node, value, list(range(len(node.shape)))) for value in values]
        values, grids = self._beside_the_batch(node, values)
        if not isinstance(grids, Tensor):
            parts = tuple(part.clone() for part in grids)
            return Value(self.keep(node), node, parts[0], max(value.most for value in values), parts)
        if grids.is_complex():
            raise Refused("it makes complex numbers")
        if bool((grids < 0).any()):
            raise Refused("it changes values")
        if not grids.numel():  # nothing of it is left, which any grid suits
            grids = torch.ones([1] * grids.dim(), dtype=grids.dtype)
        # Where zeros are put in, any grid is right: that of the channel.
        if grids.dim() > 2:
            grids = torch.where(
                grids == 0, grids.flatten(2).amax(2).reshape(*grids.shape[:2], *[1] * (grids.dim() - 2)), grids
            )
        grids = torch.where(grids == 0, grids.max(), grids)
        instead = dict(zip(dict.fromkeys(node.refs), values, strict=True))
        return Value(self.keep(node, instead), node, squeezed(grids), max(value.most for value in values))

    def _beside_the_batch(self, node: Node, values: list[Value]) -> tuple[list[Value], Any]:
        """What a node moves, and the grids that it gives: of dimensions that become one with the batch, such as heads,
        each on one grid, for no factor can follow them there."""
        size = sample(node)
        mixed = [d for d, given in enumerate(node.shape) if isinstance(given, Size) and size[d] > 1]
        ranks = range(max((len(value.like.shape) for value in values), default=0))
        dims = iter([d for d in ranks if not any(isinstance(n, Size) for v in values for n in v.like.shape[d : d + 1])])
        while True:
            grids = self.run(node, *(value.parts or value.grid.expand(sample(value.like)) for value in values))
            if not mixed or not isinstance(grids, Tensor) or grids.is_complex():
                return values, grids
            dim = next(dims, None)
            if dim is None or torch.equal(grids.amin(mixed), grids.amax(mixed)):
                return values, grids
            values = [
                self.even(node, value, [dim], f"beside{i}_{dim}") if dim < len(value.like.shape) else value
                for i, value in enumerate(values)
            ]

    def _alike(self, node: Node, values: list[Value]) -> list[Value]:
        """The branches of a join, those with much smaller whole numbers on finer grids. The weights behind have one
        grid for all of them: on grids a thousand times as coarse as the others', such as that of ones beside counts
        with a shift, a branch would take all bits from the weights of the rest."""
        sizes = [
            min(self.joined.get(ref, math.inf) / float(value.grid.max()), value.most)
            for ref, value in zip(dict.fromkeys(node.refs), values, strict=True)
        ]
        made, largest = [], max(sizes)
        for value, size in zip(values, sizes, strict=True):
            finer = 2.0 ** math.floor(math.log2(largest / size)) if size else 1.0
            finer = min(finer, 2.0 ** max(0, math.floor(math.log2(self.room / max(value.most, 1)))))
            if finer < UNEVEN:
                made.append(value)
                continue
            factor = torch.full([1] * value.grid.dim(), finer).double()
            value = self.times(value, factor, f"_alike_for_{node.name}")
            made.append(replace(value, grid=value.grid / finer))
        return made

    def _unchanged(self, node: Node) -> Value:
        """On the same grid: a ReLU that was kept."""
        return replace(self.values[node.refs[0]], name=self.keep(node), like=node)

    def _only_neurons_read(self, node: Node) -> bool:
        made = [self.neurons.get(reader.name) for reader in self.readers[node.name]]
        fit = all(isinstance(neuron, Even) for neuron in made)
        return fit and len(node.refs) == 1 and node.name not in self.source.outputs and not self.over_time

    def _computed(self, node: Node) -> Value:
        """Neurons alone read the activation: they count what it computes."""
        value = self.values[node.refs[0]]
        if value.function is not None:
            raise Refused("an activation of an activation, both kept")
        return replace(value, function=node)

    def _curve(self, node: Node, value: Value) -> Value:
        """Neurons that count what a function makes of a value, as steps of the value itself."""
        neuron, function = cast(Even, self.neurons[node.name]), cast(Node, value.function)

        def count(whole: Tensor) -> Tensor:
            """Of whole numbers (N, …), which broadcast against the grid of one sample."""
            return neuron.count(self.run(function, whole * value.grid))

        turn = _turn(function)
        lowest = None if turn is None else (turn / value.grid[0]).floor()
        shape = count(torch.zeros_like(value.grid))[0].shape
        # Beyond it the network is made anew with less room, or refused.
        most = int(min(value.most, EXACT[torch.float64] - 1))
        made = curve(count, shape, most, lowest, neuron)
        if made is None:
            raise Refused("neurons behind it would need thresholds of more than one turn")
        self.made[node.name] = made
        name = self.keep(node, {node.refs[0]: replace(value, function=None)})
        return Value(name, node, torch.full([1] * len(node.shape), 1 / neuron.levels).double(), neuron.levels)

    def _neuron(self, node: Node) -> Value:
        value, neuron = self.values[node.refs[0]], self.neurons[node.name]
        if value.function is not None:
            return self._curve(node, value)
        if isinstance(neuron, EVEN):
            step = (neuron.v_threshold / quanta(neuron)).double() / value.grid[0]
            if float(step.min()) < COARSE and not torch.equal(step, step.round()):
                finer = self.bits_of_room(value.most)
                ones = torch.ones([1] * len(node.shape), dtype=step.dtype)
                value = self.times(value, finer * ones, f"_finer_for_{node.name}")
                value = replace(value, grid=value.grid / finer)
        made, grid, most, reach = on_whole(neuron, value.grid[0], value.most, self.simulation.T)
        self.made[node.name] = made
        self.reaches(node, reach)
        name = self.keep(node, {node.refs[0]: value})
        return Value(name, node, torch.full([1] * len(node.shape), grid).double(), most)

    def finished(self, provenance: Mapping[str, Any]) -> SNN:
        """The network, its outputs real again."""
        if self.refused:
            said = "whole numbers cannot carry these parts of the network:"
            remedy = "norms and softmax: convert with code='weighted', encode='all', analog='lookup' (docs/lowering.md)"
            looked_up = self.looked_up and provenance.get("analog") != "lookup"
            raise UnsupportedError("\n".join((said, *self.refused, *([remedy] if looked_up else []))))
        dtype = torch.float32 if self.most * self.simulation.T < EXACT[torch.float32] else torch.float64
        if self.most * self.simulation.T >= EXACT[torch.float64]:
            cut = "" if provenance.get("encode") else (
                ", or, where no activation cuts what is added up from block to block, convert with code='weighted', "
                "encode='hidden', analog='lookup'"
            )  # fmt: skip
            raise UnsupportedError(
                f"as far as weights prove it, sums of layer '{self.widest}' reach {self.most:.3g}, and with T = "
                f"{self.simulation.T} steps more than 2^53: give fewer bits (weights=, inputs=){cut}"
            )
        wide = dtype is torch.float64  # inside alone: the input is rounded, and the answer made, in float32
        double = [
            free(f"{i.name}_whole", self.outer) for i in self.given if i.dtype is torch.float64
        ]  # rounded in that type
        for name in self.entries if wide else [name for name in self.entries if name in double]:
            self._widened(self.nodes[name], dtype)
        names: dict[str, str] = {}
        how = {"role": Role.ANALOG, "reason": REAL}  # once, on the mean over time: at every step it would round
        of_tail = (ref for node in self.tail.values() for ref in node.refs)
        for name in dict.fromkeys((*self.source.outputs, *of_tail)):
            if name not in self.values:
                continue
            value = self.values[name]
            like, whole = replace(value.like, name=name), value.name
            if wide:
                whole = self.emit(like, "_narrow", CASTS[0], Ref(whole), kwargs={"dtype": torch.float32}, **how)
            grid = self.put(like, "real.grid", value.grid)
            names[name] = self.emit(like, "_real", "aten.mul.Tensor", Ref(whole), grid, **how)

        def real(leaf: Any) -> Any:
            return Ref(names.get(leaf.name, leaf.name)) if isinstance(leaf, Ref) else leaf

        for node in self.tail.values():
            self.nodes[node.name] = replace(node.mapped(real), **how)
            self.tensors |= {path: self.source.tensors[path] for path in node.params}
        output = map_tree(real, self.source.output)
        read = {path for node in self.nodes.values() for path in node.params}
        narrow = (".grid", ".least", ".most", *(path for node in self.tail.values() for path in node.params))
        tensors = {
            path: tensor
            if not tensor.is_floating_point()  # places and truth values
            else tensor.to(torch.float32 if path.endswith(narrow) or not wide else dtype)
            for path, tensor in self.tensors.items()
            if path in read
        }
        graph = replace(
            self.source, inputs=self.given, nodes=tuple(self.nodes.values()), output=output, tensors=tensors, norm=None
        )
        made = {name: neuron.to(dtype) for name, neuron in self.made.items()}
        about = {**provenance, "largest": int(self.most)}
        if computed := [node.layer or node.name for node in self.tail.values() if node.refs]:
            about["real"] = list(dict.fromkeys(computed))
        return SNN(graph, made, simulation=self.simulation, provenance=about)

    def _widened(self, node: Node, dtype: torch.dtype) -> None:
        """Put a cast between a node and all that read it."""
        nodes, wide = dict(self.nodes), free(f"{node.name}_wide", self.outer)
        self.nodes = {}
        for name, other in nodes.items():
            self.nodes[name] = other.mapped(
                lambda leaf: Ref(wide) if isinstance(leaf, Ref) and leaf.name == node.name else leaf
            )
            if name == node.name:
                self.emit(node, "_wide", CASTS[0], Ref(node.name), kwargs={"dtype": dtype})


def _turn(function: Node) -> float | None:
    """Where an activation that falls and then rises turns; None for one that rises."""
    known = TABLE[function.target].turn
    if known is not None:
        return known(dict(function.kwargs))[0]
    found = turn_of_function(function.args[1]) if function.target == "parspike.pointwise" else None
    return None if found is None else found[0]


def _by_output(found: Conv | Linear, weight: Tensor) -> Tensor:
    """The weights by what every output reads: (groups, outputs of the group, features)."""
    if isinstance(found, Linear):
        return (weight.T if found.transposed else weight)[None]
    each = weight.unflatten(0, (found.groups, -1))
    return (each.movedim(1, 2) if found.transposed else each).flatten(2)


def _as_weight(found: Conv | Linear, rows: Tensor, shape: Sequence[int]) -> Tensor:
    """`_by_output` undone, for weights of this shape; a linear layer's are (outputs, features)."""
    if isinstance(found, Linear):
        return rows[0]
    if not found.transposed:
        return rows.reshape(shape)
    return rows.unflatten(2, (-1, *shape[2:])).movedim(2, 1).flatten(0, 1)
