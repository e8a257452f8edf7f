"""Rules for LSTM, GRU and RNN, as torch's own layers, which tracing unrolls (`graph.recurrent`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.onnx_in.rules import Site, rule

__all__: list[str] = []

GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where torch's gates stand among those of ONNX: i, f, g, o in i, o, f, c; r, z, n in z, r, h."""
USUAL = {"LSTM": [["Sigmoid", "Tanh", "Tanh"]], "GRU": [["Sigmoid", "Tanh"]], "RNN": [["Tanh"], ["Relu"]]}


@rule("LSTM", 4, outputs=3)
def _lstm(
    site: Site, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Any = None,
    hidden: Tensor | None = None, held: Tensor | None = None, peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    if peepholes is not None or site.get("input_forget", 0):
        raise site.refuse("peepholes (P) and input_forget are not supported: export an LSTM without them")
    return _run(site, "LSTM", x, w, r, b, lengths, [hidden, held])


@rule("GRU RNN", 4, outputs=2)
def _gru_or_rnn(
    site: Site, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Any = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _run(site, site.call.op, x, w, r, b, lengths, [hidden])


def _run(
    site: Site, kind: str, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Any,
    start: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:  # fmt: skip
    direction = site.get("direction", "forward")
    ways, size = 1 + (direction == "bidirectional"), r.shape[-1]
    rows = len(GATES[kind]) * size
    # torch's kernels do not check all of these.
    wanted = [(w, (ways, rows, x.shape[-1])), (r, (ways, rows, size)), (b, (ways, 2 * rows))]
    if x.dim() != 3 or size == 0 or any(t is not None and tuple(t.shape) != shape for t, shape in wanted):
        found = ", ".join(str(tuple(t.shape)) for t, _ in wanted if t is not None)
        raise site.refuse(f"its weights have shapes {found}, which do not fit {ways} direction(s) of {size} outputs")
    names = list(site.get("activations") or USUAL[kind][0] * ways)
    usual = next((known for known in USUAL[kind] if names == known * ways), None)
    if usual is None or site.get("clip", 0):
        raise site.refuse(f"activations {names} with clip {site.get('clip', 0)} are not supported: only torch's own")
    inside = bool(site.get("layout", 0))
    x = x.transpose(0, 1) if inside else x
    if lengths is not None and any(n != x.shape[0] for n in site.ints(lengths, "the lengths of its sequences")):
        raise site.refuse("sequences of unlike lengths (sequence_lens) are not supported: pad them")
    begin = [x.new_zeros(ways, x.shape[1], size) if s is None else s.transpose(0, 1) if inside else s for s in start]
    if any(s.dim() != 3 or s.shape[0] != ways or s.shape[2] != size for s in begin):
        raise site.refuse(f"its first states have shapes {', '.join(str(tuple(s.shape)) for s in begin)}")
    begin = [s.expand(-1, x.shape[1], -1) for s in begin]
    back = direction == "reverse"
    x = x.flip(0) if back else x
    params = []
    for way in range(ways):
        parts = [_in_torchs_order(kind, tensor[way]) for tensor in (w, r)]
        params.extend([*parts, *(() if b is None else (_in_torchs_order(kind, p) for p in b[way].chunk(2)))])
    options = (b is not None, 1, 0.0, False, ways == 2, False)
    if kind == "LSTM":
        made, *last = torch.lstm(x, begin, params, *options)
    elif kind == "GRU" and not site.get("linear_before_reset", 0):
        made, *last = _reset_first(x, begin[0], params, b is not None)
    else:
        run = torch.gru if kind == "GRU" else torch.rnn_relu if usual == ["Relu"] else torch.rnn_tanh
        made, *last = run(x, begin[0], params, *options)
    made = made.flip(0) if back else made
    made = made.unflatten(-1, (ways, size))
    if inside:
        return made.transpose(0, 1), *(state.transpose(0, 1) for state in last)
    return made.transpose(1, 2), *last


def _in_torchs_order(kind: str, tensor: Tensor) -> Tensor:
    gates = tensor.chunk(len(GATES[kind]))
    return torch.cat([gates[g] for g in GATES[kind]])


def _reset_first(x: Tensor, start: Tensor, params: Sequence[Tensor], biased: bool) -> tuple[Tensor, Tensor]:
    """A GRU whose reset gate scales the state before its product, n = tanh(W x + b + U (r h) + b), which torch's does
    behind it."""
    ways = start.shape[0]
    each = len(params) // ways
    made, last = [], []
    for way in range(ways):
        w, u, *more = params[way * each : (way + 1) * each]
        b_w, b_u = more if biased else (None, None)
        cut = [2 * start.shape[2], start.shape[2]]
        u_gates, u_new = u.split(cut)
        b_gates, b_new = (None, None) if b_u is None else b_u.split(cut)
        currents = F.linear(x, w, b_w).unbind(0)
        state, found = start[way], []
        for current in reversed(currents) if way else currents:
            gates, new = current.split(cut, -1)
            reset, keep = (gates + F.linear(state, u_gates, b_gates)).sigmoid().chunk(2, -1)
            new = (new + F.linear(reset * state, u_new, b_new)).tanh()
            state = new + keep * (state - new)
            found.append(state)
        made.append(torch.stack(found[::-1] if way else found))
        last.append(state)
    return torch.cat(made, -1), torch.stack(last)
