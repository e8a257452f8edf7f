"""Constants that are added, masks of attention, and values that are whole by themselves: tokens, bytes, truth values.

Scores that a mask hides lie, in whole numbers, so far below all others that the softmax behind gives them no weight,
however the mask is written: −∞ or a large number that is added or filled in, constant or computed of tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from parspike.graph import Node, Param, Ref
from parspike.graph.ops import CASTS, LARGEST, LOWEST, MASKED, WEIGHTS, call
from parspike.lower.grids import Grids, Value, input_node, reach, sample
from parspike.lower.neurons import Refused
from parspike.lower.prepared import FILLS

__all__ = ["Masks"]

ROUNDED = 1e-6
"""By how much, as a share, a constant may differ from a whole number: it was held in float32."""
WHOLE_TYPES = {torch.bool: (0.0, 1.0), torch.uint8: (0.0, 255.0), torch.int8: (-128.0, 127.0)}
"""What numbers of the small whole types may be; of the others what images hold decides."""
SOFTMAX = (LARGEST, "aten.softmax.int", "aten._softmax.default", WEIGHTS)
"""Operators of a softmax that read its scores."""
SHUT = -1e4
"""A number that scores are replaced by to hide them; no larger one is taken for that."""


def _outweighs(most: float) -> float:
    """How far from 0 a number hides or outweighs, before a softmax, all scores of magnitudes up to `most`."""
    return 2 * most - 2 * LOWEST


class Masks(Grids):
    """Rules for what adds constants, hides scores, or computes with values that are whole by themselves."""

    def plus(self, node: Node, value: Value, number: Tensor) -> Value:
        number = number.reshape([1] * (len(node.shape) - number.dim()) + list(number.shape))
        if any(n not in (1, size) for n, size in zip(number.shape, sample(node), strict=True)):
            raise Refused("it adds a constant of another shape")
        hidden = self._hidden(node, value, number)
        if hidden is not None:
            value = self.coarse(node, value, "hidden")
            value = self.times(value, (~hidden).to(value.grid), f"_shown_for_{node.name}")
            number = number.masked_fill(hidden, 0.0)
        whole = number / value.grid
        if bool(((whole - whole.round()).abs() > ROUNDED * whole.abs()).any()):
            finer = self.bits_of_room(max(value.most, float(whole.abs().max())))
            value = self.times(
                value, torch.full([1] * len(node.shape), finer, dtype=number.dtype), f"_finer_for_{node.name}"
            )
            value = replace(value, grid=value.grid / finer)
        whole = (number / value.grid).round()
        if hidden is not None:
            largest = reach(value) + float(number.abs().max())
            whole = torch.where(hidden, (-_outweighs(largest) / value.grid).floor(), whole)
        name = self.emit(node, "", "aten.add.Tensor", Ref(value.name), self.put(node, "bias", whole))
        return Value(name, node, value.grid, value.most + float(whole.abs().max()))

    def _hidden(self, node: Node, value: Value, number: Tensor) -> Tensor | None:
        """Where a constant that is added to scores hides them from the softmax behind: −∞, or so far below all others
        that their weight is 0 (−10^9, the smallest number of a type). None where it hides nothing."""
        hidden = number == -math.inf
        least = _outweighs(reach(value))
        while True:
            shown = number.masked_fill(hidden, 0.0).abs()
            more = number < -(least + shown.masked_fill(number < -least, 0.0).max())
            if torch.equal(more | hidden, hidden):
                break
            hidden = hidden | more
        if not bool(hidden.any()):
            return None
        alone, dim = self.softmax_reads(node)
        if alone and not bool(hidden.expand(sample(node)).all(dim).any()):
            return hidden
        if bool((number == -math.inf).any()):
            raise Refused("its mask hides all of a row" if alone else "it adds −∞ to what no softmax alone reads")
        return None

    def softmax_reads(self, node: Node) -> tuple[bool, int]:
        """Whether a softmax alone reads a value, and along which dimension."""
        softmax = next((reader for reader in self.readers[node.name] if reader.target in SOFTMAX), None)
        if softmax is None:
            return False, -1
        alone = all(reader is softmax or softmax.name in reader.refs for reader in self.readers[node.name])
        return alone, cast(int, softmax.args[1]) if len(softmax.args) > 1 else -1

    def no_further_than_hidden(self, node: Node) -> list[Value]:
        """The branches of a sum. Where a softmax alone reads it, one step of a branch that outweighs all of the other
        branch is made as small as still does: (1 − mask) times the smallest number of a type."""
        one, two = (self.values[ref] for ref in node.refs)
        if self.softmax_reads(node)[0]:
            ends = [_outweighs(reach(value)) for value in (two, one)]
            if bool((one.grid > ends[0]).all()):
                one = replace(one, grid=torch.full_like(one.grid, ends[0]))
            elif bool((two.grid > ends[1]).all()):
                two = replace(two, grid=torch.full_like(two.grid, ends[1]))
        return [one, two]

    def hidden_by_tokens(self, node: Node) -> Value:
        """Scores of an attention of which truth values, computed of tokens, hide some."""
        if node.target == MASKED:
            scores, mask, shows = node.args[0], node.args[1], True
        else:
            condition, true, false = (node.args[place] for place in FILLS[node.target])
            shows = isinstance(true, Ref) and true.name in self.values
            scores, mask, number = (true, condition, false) if shows else (false, condition, true)
            number = self.source.tensors[number.path] if isinstance(number, Param) else number
            if isinstance(number, Ref) or float(torch.as_tensor(number).max()) > SHUT:
                raise Refused("it chooses by tokens")
        if not isinstance(scores, Ref) or scores.name not in self.values or not isinstance(mask, Ref):
            raise Refused("it makes real numbers of tokens, which whole numbers only look up in tables")
        if self.met[0].env[mask.name].dtype != torch.bool:
            raise Refused("its mask of numbers depends on the input: give one of true and false")
        if not self.softmax_reads(node)[0]:
            raise Refused("it hides values from what no softmax alone reads")
        value, like = self.coarse(node, self.values[scores.name], "hidden"), self._made_of(mask.name)
        like = replace(like, name=f"{mask.name}_for_{node.name}")
        if not shows:
            mask = Ref(self.emit(like, "_turned", "aten.logical_not.default", mask))
        shown = self.emit(like, "", CASTS[0], mask, kwargs={"dtype": torch.float32})
        self.entries.append(shown)
        less = self.emit(like, "_less", "aten.add.Tensor", Ref(shown), self.put(like, "less", torch.tensor([-1.0])))
        low = float((_outweighs(reach(value)) / value.grid.min()).ceil())
        by = self.put(like, "low", torch.tensor([low]).double())
        hidden = self.emit(like, "_low", "aten.mul.Tensor", Ref(less), by)
        kept = self.emit(node, "_kept", "aten.mul.Tensor", Ref(value.name), Ref(shown))
        name = self.emit(node, "", "aten.add.Tensor", Ref(kept), Ref(hidden))
        return replace(value, name=name, like=node, most=max(value.most, low))

    def filled(self, node: Node) -> Value:
        """Values of which a mask of the network's replaces some, by a constant or by other values."""
        condition, *places = FILLS[node.target]
        chosen = [node.args[place] for place in places]
        true = self.source.tensors[cast(Param, node.args[condition]).path]  # no value is a truth value
        true = true.reshape([1] * (len(node.shape) - true.dim()) + list(true.shape)).bool()
        kept: list[Value] = []
        number = torch.zeros([1] * len(node.shape)).double()
        for place, (leaf, here) in enumerate(zip(chosen, (true, ~true), strict=True)):
            if isinstance(leaf, Ref):
                shown = self.times(self.values[leaf.name], here.double(), f"_{place}_of_{node.name}")
                kept.append(replace(shown, like=node))
            else:
                other = self.source.tensors[leaf.path] if isinstance(leaf, Param) else torch.tensor(cast(float, leaf))
                number = torch.where(here, other.double(), number)
        if len(kept) == 1:
            return self.plus(node, kept[0], number)
        left, right = self.on_one_grid(node, kept)
        name = self.emit(node, "", "aten.add.Tensor", Ref(left.name), Ref(right.name))
        return Value(name, node, left.grid, max(left.most, right.most))

    def masked(self, node: Node) -> Value:
        """Scores of an attention with a constant mask: one of true and false, or of numbers that are added."""
        mask = node.args[1]
        if not isinstance(mask, Param):
            raise Refused("its mask depends on the input")
        number = self.source.tensors[mask.path]
        if number.dtype == torch.bool:
            number = torch.zeros(number.shape).masked_fill(~number, -math.inf)
        if number.dim() > len(node.shape):
            raise Refused("its mask is of another shape")
        return self.plus(node, self.values[node.refs[0]], number.double())

    def real_of(self, tokens: str, like: Node) -> Value:
        """Tokens as a value that is computed with, on a grid of 1. like: with the name and the layer it gets."""
        like, met = replace(like, shape=self._made_of(tokens).shape), [met.env[tokens] for met in self.met]
        most = max(float(one.double().abs().max()) for one in met)
        low, high = WHOLE_TYPES.get(met[0].dtype, (-most, most))
        name = self.emit(like, "", CASTS[0], Ref(tokens), kwargs={"dtype": torch.float32})
        ends = (self.put(like, end, torch.tensor(number).double()) for end, number in (("least", low), ("most", high)))
        self.entries.append(self.emit(like, "_whole", "aten.clamp.Tensor", Ref(name), *ends))
        return Value(self.entries[-1], like, torch.ones([1] * len(like.shape)).double(), max(-low, high))

    def _made_of(self, tokens: str) -> Node:
        """The node that makes a value; for an input one that stands for it."""
        found = self.source.by_name.get(tokens)
        return found or input_node(next(i for i in self.source.inputs if i.name == tokens))

    def stays_whole(self, node: Node) -> bool:
        """Whether what a node makes of tokens is of a whole type; it is then computed as in the network."""
        if node.name in self.neurons:
            return False
        made = [call(node.target, *met.arguments(node)) for met in self.met]
        if not all(isinstance(one, Tensor) and not one.is_floating_point() and not one.is_complex() for one in made):
            return False
        for met, one in zip(self.met, made, strict=True):
            met.env[node.name] = one
        return True
