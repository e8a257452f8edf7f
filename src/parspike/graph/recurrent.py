"""Recurrent layers, unrolled: one copy of the cell for every step of the sequence that was traced.

    LSTM    i, f, g, o = W x + U h + b        c' = σ(f) c + σ(i) tanh g        h' = σ(o) tanh c', times a matrix if given
    GRU     r, z = σ(W x + U h + b)           n = tanh(W x + b + r (U h + b))  h' = n + z (h − n)
    RNN     h' = tanh(W x + U h + b), or ReLU

The equations are those of torch.nn.LSTM, GRU and RNN. What comes of it has no state: synapses, neurons (σ, tanh, ReLU)
and products, which `rewrite` and the walk know. The length of the sequence is that of the example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["UNROLLED"]

Cell = Callable[..., tuple[Tensor, ...]]
"""cell(W x, state, U, b of U, matrix behind the output) -> next state, whose first tensor is the output"""


def _gated(x: Tensor, state: Sequence[Tensor], weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Any:
    hidden, held = state
    made = x + F.linear(hidden, weight, bias)
    size = held.shape[-1]
    let, keep = made.narrow(-1, 0, 2 * size).sigmoid().chunk(2, -1)
    held = keep * held + let * made.narrow(-1, 2 * size, size).tanh()
    hidden = made.narrow(-1, 3 * size, size).sigmoid() * held.tanh()
    return (hidden if out is None else F.linear(hidden, out)), held


def _reset(x: Tensor, state: Sequence[Tensor], weight: Tensor, bias: Tensor | None, _: Tensor | None) -> Any:
    (hidden,) = state
    size = hidden.shape[-1]
    own = F.linear(hidden, weight, bias)
    reset, keep = (x.narrow(-1, 0, 2 * size) + own.narrow(-1, 0, 2 * size)).sigmoid().chunk(2, -1)
    new = (x.narrow(-1, 2 * size, size) + reset * own.narrow(-1, 2 * size, size)).tanh()
    return (new + keep * (hidden - new),)


def _plain(
    function: Callable[[Tensor], Tensor],
    x: Tensor, state: Sequence[Tensor], weight: Tensor, bias: Tensor | None, _: Tensor | None,
) -> Any:  # fmt: skip
    return (function(x + F.linear(state[0], weight, bias)),)


def _layers(
    cell: Cell, x: Tensor, start: Sequence[Tensor], params: Sequence[Tensor], biased: bool, layers: int, dropout: float,
    train: bool, both_ways: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The outputs of the last layer, and the last states of all: what torch.lstm, torch.gru and torch.rnn_* return."""
    time, ways = int(batch_first), 1 + both_ways
    each = len(params) // (layers * ways)
    last: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        if layer and dropout and train:
            x = F.dropout(x, dropout, True)
        made = []
        for way in range(ways):
            number = layer * ways + way
            w, u, *more = params[number * each : (number + 1) * each]
            b_w, b_u = more[:2] if biased else (None, None)
            out = more[-1] if each == 3 + 2 * biased else None
            state = tuple(tensor[number] for tensor in start)
            found = []
            currents = F.linear(x, w, b_w).unbind(time)
            for current in reversed(currents) if way else currents:
                state = cell(current, state, u, b_u, out)
                found.append(state[0])
            last.append(state)
            made.append(torch.stack(found[::-1] if way else found, time))
        x = torch.cat(made, -1) if both_ways else made[0]
    return x, *(torch.stack(states) for states in zip(*last, strict=True))


def _one_step(
    cell: Cell, x: Tensor, state: Any, w: Tensor, u: Tensor, b_w: Tensor | None = None, b_u: Tensor | None = None
) -> Any:
    if isinstance(state, Tensor):
        return cell(F.linear(x, w, b_w), (state,), u, b_u, None)[0]
    return cell(F.linear(x, w, b_w), state, u, b_u, None)


def _with_one_state(cell: Cell, x: Tensor, start: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _layers(cell, x, (start,), *rest)


_aten = torch.ops.aten
_tanh, _relu = partial(_plain, torch.tanh), partial(_plain, torch.relu)
UNROLLED: dict[Any, Callable[..., Any]] = {
    _aten.lstm.input: partial(_layers, _gated), _aten.lstm_cell.default: partial(_one_step, _gated),
    _aten.gru.input: partial(_with_one_state, _reset), _aten.gru_cell.default: partial(_one_step, _reset),
    _aten.rnn_tanh.input: partial(_with_one_state, _tanh), _aten.rnn_tanh_cell.default: partial(_one_step, _tanh),
    _aten.rnn_relu.input: partial(_with_one_state, _relu), _aten.rnn_relu_cell.default: partial(_one_step, _relu),
}  # fmt: skip
"""Operator of torch's -> the same in operators of the table."""
