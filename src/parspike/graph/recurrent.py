"""Recurrent layers, unrolled: one copy of the cell for every step of the sequence that was traced.

    LSTM    i, f, g, o = W x + U h + b    c' = σ(f) c + σ(i) tanh g          h' = σ(o) tanh c', times a matrix if given
    GRU     r, z = σ(W x + U h + b)       n = tanh(W x + b + r (U h + b))    h' = n + z (h − n)
    RNN     h' = tanh(W x + U h + b), or ReLU

The equations are those of torch.nn.LSTM, GRU and RNN. What comes of it has no state: synapses, neurons (σ, tanh, ReLU)
and products, which `rewrite` and the walk know. The length of the sequence is that of the example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx import Node

from parspike.graph.ir import leaves, map_tree

__all__ = ["unroll"]

Cell = Callable[..., tuple[Node, ...]]
"""cell(put, W x, state, U, b of U, matrix behind the output) -> next state, whose first value is the output"""
aten = torch.ops.aten
LINEAR, ADD, MUL, SUB = aten.linear.default, aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor
SIGMOID, TANH, RELU = aten.sigmoid.default, aten.tanh.default, aten.relu.default
NARROW, SELECT, STACK, CAT = aten.narrow.default, aten.select.int, aten.stack.default, aten.cat.default


def unroll(exported: Any) -> None:
    """Put, in the place of every recurrent layer and cell of a program, the operators that it is made of.

    torch's decompositions do it too, and trace the whole program twice for that: planning an LSTM of 50 steps took four
    times as long.
    """
    graph = exported.graph
    found = [fx for fx in graph.nodes if fx.target in _UNROLLED]
    for fx in found:
        with graph.inserting_before(fx):
            made = _UNROLLED[fx.target](_Put(fx), *fx.args, **fx.kwargs)
        for old, new in [(fx, made)] if isinstance(made, Node) else [(u, made[u.args[1]]) for u in list(fx.users)]:
            old.replace_all_uses_with(new)
            exported.graph_signature.replace_all_uses(old.name, new.name)
            graph.erase_node(old)
        if not isinstance(made, Node):
            graph.erase_node(fx)
    if found:
        graph.eliminate_dead_code()
        exported.graph_module.recompile()


class _Put:
    """Puts an operator in front of a node of a program, with what the program knows of its value."""

    def __init__(self, before: Node) -> None:
        self.before = before

    def __call__(self, target: Any, *args: Any) -> Node:
        node = self.before.graph.call_function(target, args)
        values = map_tree(_value, args)
        mode: Any = detect_fake_mode([leaf for leaf in leaves(values) if isinstance(leaf, torch.Tensor)])
        with mode, torch.no_grad():
            node.meta = {**self.before.meta, "val": target(*values)}
        return node

    def parts(self, x: Node, size: int, *numbers: int) -> list[Node]:
        """A value cut along its last dimension, each part a number of times `size`."""
        starts = [sum(numbers[:i]) for i in range(len(numbers))]
        return [self(NARROW, x, -1, a * size, n * size) for a, n in zip(starts, numbers, strict=True)]


def _value(leaf: Any) -> Any:
    return leaf.meta["val"] if isinstance(leaf, Node) else leaf


def _width(x: Node) -> int:
    return x.meta["val"].shape[-1]


def _gated(put: _Put, x: Node, state: Sequence[Node], u: Node, bias: Node | None, out: Node | None) -> Any:
    hidden, held = state
    made = put(ADD, x, put(LINEAR, hidden, u, bias))
    size = _width(held)
    both, new, shown = put.parts(made, size, 2, 1, 1)
    let, keep = put.parts(put(SIGMOID, both), size, 1, 1)
    held = put(ADD, put(MUL, keep, held), put(MUL, let, put(TANH, new)))
    hidden = put(MUL, put(SIGMOID, shown), put(TANH, held))
    return (hidden if out is None else put(LINEAR, hidden, out)), held


def _reset(put: _Put, x: Node, state: Sequence[Node], u: Node, bias: Node | None, _: Node | None) -> Any:
    (hidden,) = state
    size = _width(hidden)
    own, own_new = put.parts(put(LINEAR, hidden, u, bias), size, 2, 1)
    both, new = put.parts(x, size, 2, 1)
    reset, keep = put.parts(put(SIGMOID, put(ADD, both, own)), size, 1, 1)
    new = put(TANH, put(ADD, new, put(MUL, reset, own_new)))
    return (put(ADD, new, put(MUL, keep, put(SUB, hidden, new))),)


def _plain(
    activation: Any, put: _Put, x: Node, state: Sequence[Node], u: Node, bias: Node | None, _: Node | None
) -> Any:
    return (put(activation, put(ADD, x, put(LINEAR, state[0], u, bias))),)


def _layers(
    cell: Cell, put: _Put, x: Node, start: Node | Sequence[Node], params: Sequence[Node], biased: bool, layers: int,
    dropout: float, train: bool, both_ways: bool, batch_first: bool,
) -> tuple[Node, ...]:  # fmt: skip
    """The outputs of the last layer, and the last states of all: what torch.lstm, torch.gru and torch.rnn_* return."""
    start = (start,) if isinstance(start, Node) else start
    time, ways = int(batch_first), 1 + both_ways
    steps = range(x.meta["val"].shape[time])
    each = len(params) // (layers * ways)
    last: list[tuple[Node, ...]] = []
    for layer in range(layers):
        if layer and dropout and train:
            x = put(aten.dropout.default, x, dropout, True)
        made = []
        for way in range(ways):
            number = layer * ways + way
            w, u, *more = params[number * each : (number + 1) * each]
            b_w, b_u = more[:2] if biased else (None, None)
            out = more[-1] if each == 3 + 2 * biased else None
            state = tuple(put(SELECT, value, 0, number) for value in start)
            currents, found = put(LINEAR, x, w, b_w), {}
            for step in reversed(steps) if way else steps:
                state = cell(put, put(SELECT, currents, time, step), state, u, b_u, out)
                found[step] = state[0]
            last.append(state)
            made.append(put(STACK, [found[step] for step in steps], time))
        x = put(CAT, made, -1) if both_ways else made[0]
    return x, *(put(STACK, list(states)) for states in zip(*last, strict=True))


def _one_step(
    cell: Cell, put: _Put, x: Node, state: Node | Sequence[Node], w: Node, u: Node, b_w: Node | None = None,
    b_u: Node | None = None,
) -> Any:  # fmt: skip
    made = cell(put, put(LINEAR, x, w, b_w), (state,) if isinstance(state, Node) else state, u, b_u, None)
    return made[0] if isinstance(state, Node) else made


_tanh, _relu = partial(_plain, TANH), partial(_plain, RELU)
_UNROLLED: dict[Any, Callable[..., Any]] = {
    form: partial(run, cell) for cell, run, form in (
        (_gated, _layers, aten.lstm.input), (_gated, _one_step, aten.lstm_cell.default),
        (_reset, _layers, aten.gru.input), (_reset, _one_step, aten.gru_cell.default),
        (_tanh, _layers, aten.rnn_tanh.input), (_tanh, _one_step, aten.rnn_tanh_cell.default),
        (_relu, _layers, aten.rnn_relu.input), (_relu, _one_step, aten.rnn_relu_cell.default),
    )
}  # fmt: skip
