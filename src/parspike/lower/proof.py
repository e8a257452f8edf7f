"""A run on spikes of 0 and 1 and whole weights alone, watched at every node.

The engines of parspike run counts, or spikes times an amplitude. Whoever doubts that a network needs spikes alone can
run `prove`: it goes through all T time-steps, gives every synapse the 0/1 tensor of a step, adds up what comes out as a
chip does (for the weighted code the sum is doubled between steps), compares with thresholds, and checks on the way that
every number is whole, every spike 0 or 1, and every count that of the network's own run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from parspike.engines import Steps
from parspike.errors import InputError, UnsupportedError
from parspike.graph import Node, Role, Stream, leaves, map_tree, nested, with_doubles
from parspike.graph.ops import REAL, TABLE, call
from parspike.neurons import Dynamics, Neuron, Pair
from parspike.snn import SNN, check_converted

__all__ = ["Proof", "Synapse", "prove"]


@dataclass(frozen=True)
class Synapse:
    """A synapse as it was seen at work. reads: "spikes", 0/1 tensors (−1 on the second
    line of a pair); "sums of spikes", whole numbers that are sums of
    spikes without a threshold between; or "the input". weight, sum: the largest magnitude of a weight and of a sum."""

    layer: str
    reads: str
    weight: int
    sum: int


@dataclass(frozen=True)
class Proof:
    """What `prove` saw. neurons: layers whose every spike was 0 or 1, with counts equal to the network's own run.
    steps: time-steps. sums: the largest magnitude of any whole number."""

    synapses: tuple[Synapse, ...]
    neurons: tuple[str, ...]
    steps: int
    sums: int

    def __str__(self) -> str:
        kinds = {
            kind: sum(s.reads == kind for s in self.synapses) for kind in ("spikes", "sums of spikes", "the input")
        }
        said = ", ".join(f"{number} read {kind}" for kind, number in kinds.items())
        width = max(len("synapse"), *(len(s.layer) for s in self.synapses))
        lines = [
            f"{self.steps} steps on whole numbers, the largest {self.sums:,} ({self.sums.bit_length() + 1} bits): "
            f"{len(self.neurons)} layers sent spikes of 0 and 1, counts as in the network's own run",
            f"{len(self.synapses)} synapses: {said}",
            f"{'synapse':<{width}}  {'reads':<14}  largest weight  largest sum",
        ]
        lines += [f"{s.layer:<{width}}  {s.reads:<14}  {s.weight:14,}  {s.sum:11,}" for s in self.synapses]
        return "\n".join(lines)


@torch.no_grad()
def prove(snn: SNN, *args: Tensor, **kwargs: Tensor) -> Proof:
    """Run a network in whole numbers (`integers`) on a batch, with spikes of 0 and 1 alone, and check every number.

    Inputs are given as in `snn(…)`. Raises `UnsupportedError` that names the first node whose numbers are not whole,
    whose spikes are not 0 or 1, or whose counts differ from the network's own; `InputError` for inputs that do not fit.
    """
    check_converted(snn, "prove")
    snn = with_doubles(snn)
    if snn.provenance.get("lowered") != "integers":
        raise UnsupportedError("this network computes with real numbers: parspike.lower.integers makes it whole")
    return _Watched(snn, args, kwargs).result()


@dataclass
class _Value:
    """What each step brings (`steps`, None: nothing changes over time), and what is there once, before the first. Each
    is a tensor, or a list of tensors where an operator has several results."""

    steps: list[Any] | None
    once: Any
    kind: str


class _Watched:
    def __init__(self, snn: SNN, args: Any, kwargs: Any) -> None:
        env = snn.named_inputs(args, kwargs)
        if timed := [name for name, x in env.items() if isinstance(x, Steps)]:
            raise InputError(f"prove takes inputs (B, …), the same at every step, and '{timed[0]}' is (T, B, …)")
        self.snn, self.graph, self.T = snn, snn.graph, snn.T
        self.counts = snn.run(*args, record=True, **kwargs).counts
        self.neurons = snn.neurons()
        self.tensors = snn.tensors()
        self.sizes = snn.graph.sizes(env)
        self.values = {name: _Value(None, x, "the input") for name, x in env.items()}
        self.synapses: list[Synapse] = []
        self.most = 0
        counting = snn.counting()
        self.sorted = [name for name, neuron in counting.items() if neuron.code == "sorted"]
        self.steps = {_worth(neuron) for neuron in counting.values()}
        if len(self.steps) > 1:
            raise UnsupportedError("its layers give unlike worth to a spike of the same step, so no sum can be shared")

    def result(self) -> Proof:
        for node in self.graph.nodes:
            if node.reason != REAL:  # the answer in real numbers, behind the last sum
                self.values[node.name] = self._fire(node) if node.name in self.neurons else self._run(node)
        layers = tuple(self.graph.by_name[name].layer for name in self.neurons)
        return Proof(tuple(self.synapses), layers, self.T, self.most)

    def _call(self, node: Node, pick: Callable[[_Value], Any]) -> Any:
        env = {ref: pick(self.values[ref]) for ref in node.refs}
        return call(node.target, *Stream(env, self.tensors, self.sizes).arguments(node))

    def _run(self, node: Node) -> _Value:
        read = [self.values[ref] for ref in node.refs]
        moving = [value for value in read if value.steps is not None]
        kind = "sums of spikes" if TABLE[node.target].weighted else _kind(moving or read)
        if all(value.kind == "the input" for value in read):
            kind = "the input"
        if not moving:
            made = _Value(None, self._call(node, lambda value: value.once), kind)
        elif node.role is Role.SYNAPSE:
            made = _Value(*self._affine(node), kind)
        elif node.role is Role.ORDER and nested(self.graph, node, self.sorted):
            steps = [self._call(node, lambda value, t=t: _at(value, t)) for t in range(self.T)]
            made = _Value(steps, _zeros(steps[0]), kind)
        else:
            made = _Value(None, self._call(node, self._total), "sums of spikes")
        self._check(node, read, made)
        return made

    def _affine(self, node: Node) -> tuple[list[Any], Any]:
        """What a synapse makes of every step; and of its bias, once: a chip puts it into the potential at the start."""
        if self.snn.over_time:
            steps = [self._call(node, lambda value, t=t: _at(value, t)) for t in range(self.T)]
            return steps, _zeros(steps[0])
        if (
            TABLE[node.target].product and len(node.refs) > 1
        ):  # at each spike of one it adds up what is held of the other
            steps = [self._call(node, lambda value, t=t: _at(value, t)) for t in range(self.T)]
            return steps, self._call(node, lambda value: value.once)
        silent = self._call(node, lambda value: _zeros(value.once))

        def moved(value: _Value, t: int) -> Any:
            return _zeros(value.once) if value.steps is None else value.steps[t]

        steps = [_added(self._call(node, lambda value, t=t: moved(value, t)), silent, -1) for t in range(self.T)]
        return steps, self._call(node, lambda value: value.once)

    def _total(self, value: _Value) -> Any:
        """Everything that a value brings in T steps."""
        if value.steps is None:
            return value.once
        worth = next((worth for _, worth in self.steps), ()) or (1,) * self.T
        total = value.once
        for step, times in zip(value.steps, worth, strict=False):
            total = _added(total, step, times)
        return total

    def _fire(self, node: Node) -> _Value:
        value, neuron = self.values[node.refs[0]], self.neurons[node.name]
        if not all(torch.equal(t, t.round()) for t in neuron.parameters()):
            raise UnsupportedError(f"{node.layer}: its thresholds are not whole")
        if isinstance(neuron, Dynamics):
            z = torch.stack([_at(value, t) for t in range(self.T)])
            spikes = neuron.advance(None, z)[2]
            count = spikes.sum(0)
        else:
            count = cast(Neuron, neuron).count(self._total(value))
            spikes = cast(Neuron, neuron).spikes(count).to(count.dtype)
        if not torch.equal(count, self.counts[node.layer].to(count.dtype)):
            raise UnsupportedError(f"{node.layer}: its counts differ from the network's own run: please report it")
        # Of a pair, 1 and −1 are a spike of 1 on either of its two lines.
        on_lines = spikes.abs() if isinstance(neuron, Pair) else spikes
        if not bool(((on_lines == 0) | (on_lines == 1)).all()):
            raise UnsupportedError(f"{node.layer}: it sends more than 0 or 1 in a step")
        steps = list(spikes) + [torch.zeros_like(count)] * (self.T - len(spikes))
        return _Value(steps, torch.zeros_like(count), "spikes")

    def _check(self, node: Node, read: Sequence[_Value], made: _Value) -> None:
        moving = [value for value in read if value.steps is not None]
        weights = [self.tensors[path] for path in node.params if not path.endswith(".grid")]
        rounds = any(path.endswith(".grid") for path in node.params)  # the input on its way to whole numbers
        tensors = [*weights, *leaves((made.steps or (), made.once))]
        if not rounds and not all(torch.equal(t, t.round()) for t in tensors if t.is_floating_point()):
            raise UnsupportedError(f"{node.layer} ({node.target}): its numbers are not whole")
        most = max(
            (int(t.abs().max()) for t in leaves((made.steps or (), self._total(made))) if t.is_floating_point()),
            default=0,
        )
        self.most = max(self.most, most)
        if TABLE[node.target].weighted:
            kind = _kind(moving or read)
            spikes = [step for value in moving for step in value.steps or ()]
            if kind == "spikes" and not all(bool(((s == 0) | (s.abs() == 1)).all()) for s in spikes):
                kind = "sums of spikes"
            held = weights or [value.once for value in read if value.steps is None] or [made.once]
            self.synapses.append(Synapse(node.layer, kind, int(held[0].abs().max()), most))


def _worth(neuron: Neuron) -> tuple[str, tuple[int, ...]]:
    """What a spike of each step is worth, in counts; sorted neurons of fewer steps are silent in the others."""
    if neuron.code == "sorted":
        return "sorted", ()
    steps = range(neuron.T)
    return neuron.code, tuple(2 ** (neuron.T - 1 - t) if neuron.code == "weighted" else neuron.T - t for t in steps)


def _kind(values: Sequence[_Value]) -> str:
    kinds = {value.kind for value in values}
    return kinds.pop() if len(kinds) == 1 else "sums of spikes"


def _zeros(value: Any) -> Any:
    return map_tree(torch.zeros_like, value)


def _added(one: Any, two: Any, times: int = 1) -> Any:
    """one + times · two, of tensors or of each of a list."""
    if isinstance(one, Tensor):
        return one + times * two
    return [_added(a, b, times) for a, b in zip(one, two, strict=True)]


def _at(value: _Value, t: int) -> Any:
    return value.once if value.steps is None else value.steps[t]
