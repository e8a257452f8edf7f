"""Faults put into the rewriting, one at a time: the comparison with the graph as it was read must catch each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike.errors import TraceError
from parspike.graph import Graph, Ref, rewrite, trace
from parspike.graph import rewrite as rewriting_function
from parspike.graph.ops import Role

rewriting = __import__(rewriting_function.__module__, fromlist=["rewrite"])


class Everything(nn.Module):
    """What each step of the rewriting acts on, once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.twin = nn.BatchNorm2d(6)
        self.behind, self.next = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)
        self.padded, self.wide = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.prelu, self.scalar = nn.PReLU(8), nn.PReLU(init=-0.3)
        self.pooled, self.head = nn.BatchNorm2d(8), nn.Linear(8 * 9, 5)
        self.register_buffer("low", torch.tensor(-0.31))
        self.register_buffer("high", torch.tensor(0.77))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    nn.init.normal_(tensor, std=0.5)
                nn.init.uniform_(module.running_var, 0.05, 2)
            if isinstance(module, nn.PReLU) and module.num_parameters > 1:
                nn.init.normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        # The same convolution twice, with a batch norm of its own behind each; the second is also read as it is.
        again = self.conv(x)
        x = F.relu(self.norm(self.conv(x))) + F.silu(self.twin(again)) + again
        x = self.next(self.behind(F.max_pool2d(F.relu(x), 2)))
        x = self.wide(self.padded(F.gelu(x, approximate="tanh")))
        x = self.prelu(x) + self.scalar(x.flip(1)) + F.leaky_relu(x, -0.2)
        x = x.flip(2).clamp(self.low, self.high) + x * torch.sigmoid(1.7 * x)
        return self.head(F.adaptive_avg_pool2d(self.pooled(x), 3).flatten(1))


def tensor_off(kind: str, change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    """A fault in one of the two numbers of every batch norm."""

    def fault(patch: Any) -> None:
        right = rewriting._scales

        def wrong(draft: Any, node: Any) -> tuple[Tensor, Tensor]:
            scale, shift = right(draft, node)
            return (change(scale), shift) if kind == "scale" else (scale, change(shift))

        patch.setattr(rewriting, "_scales", wrong)

    return fault


def node_off(target: str, change: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
    """A fault in the first node of an operator, once everything is rewritten."""

    def fault(patch: Any) -> None:
        right = rewriting._rewrite

        def wrong(draft: Any) -> None:
            right(draft)
            node = next(node for node in draft.nodes.values() if node.target == target)
            draft.nodes[node.name] = change(draft, node)

        patch.setattr(rewriting, "_rewrite", wrong)

    return fault


def form_forgotten(patch: Any) -> None:
    right = rewriting._halves
    patch.setattr(rewriting, "_halves", lambda node, turn: right(replace(node, kwargs={}), turn))


def turn_off(patch: Any, *, at: float = 0.0, lowest: float = 0.0) -> None:
    right = rewriting._halves
    patch.setattr(rewriting, "_halves", lambda node, turn: right(node, (turn[0] + at, turn[1] + lowest)))


def wrong_sign(patch: Any) -> None:
    right = rewriting._two_relus
    patch.setattr(rewriting, "_two_relus", lambda draft, node, slope, *rest: right(draft, node, -slope, *rest))


def not_mirrored(patch: Any) -> None:
    right = rewriting._sides

    def wrong(node: Any, x: Any) -> Any:
        mirrored, *rest = right(node, x)
        return (replace(mirrored, target="aten.mul.Scalar", args=(x, 1.0)), *rest)

    patch.setattr(rewriting, "_sides", wrong)


def shared_weights(patch: Any) -> None:
    patch.setattr(rewriting._Draft, "own", lambda self, node, param, suffix: param)


def bias_lost(patch: Any) -> None:
    right = rewriting._set_synapse
    patch.setattr(
        rewriting, "_set_synapse", lambda draft, node, *rest: right(draft, node, *rest[:2], torch.zeros_like(rest[2]))
    )


def wrong_order(patch: Any) -> None:
    each = Tensor.repeat_interleave
    patch.setattr(Tensor, "repeat_interleave", lambda self, n, *dim: each(self, n, *dim) if dim else self.repeat(n))


def past_padding(patch: Any) -> None:
    patch.setattr(rewriting, "any", lambda values: False, raising=False)


def past_another_reader(patch: Any) -> None:
    patch.setattr(rewriting._Draft, "only_reader", lambda self, name: next(iter(self.readers(name)), None))


def another(target: str) -> Callable[[Any, Any], Any]:
    return lambda draft, node: replace(node, target=target)


def argument(place: int, change: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda draft, node: replace(
        node, args=(*node.args[:place], change(node.args[place]), *node.args[place + 1 :])
    )


FAULTS: dict[str, Callable[[Any], None]] = {
    "a batch norm's scale 0.1 % off": tensor_off("scale", lambda x: x * 1.001),
    "a batch norm's shift 0.1 % off": tensor_off("shift", lambda x: x * 1.001),
    "a batch norm's shift lost": tensor_off("shift", torch.zeros_like),
    "a batch norm's scale rounded to single precision": tensor_off("scale", lambda x: x.float().double()),
    "two channels of a batch norm exchanged": tensor_off("shift", lambda x: x.roll(1)),
    "PReLU's slopes with the wrong sign": wrong_sign,
    "SiLU's and GELU's turn 1e-3 off": lambda patch: turn_off(patch, at=1e-3),
    "SiLU's and GELU's lowest value 1e-6 off": lambda patch: turn_off(patch, lowest=1e-6),
    "the falling half not mirrored": not_mirrored,
    "a weight that two layers share changed for both": shared_weights,
    "the bias of a folded synapse lost": bias_lost,
    "the pixels of channels in another order": wrong_order,
    "a shift moved past zero padding": past_padding,
    "a value with two readers taken for one with one": past_another_reader,
    "a max-pool of another window": node_off("aten.max_pool2d.default", argument(1, lambda window: [1, 1])),
    "a max-pool made an average": node_off("aten.max_pool2d.default", another("aten.avg_pool2d.default")),
    "a bound of a clamp rounded": node_off("aten.clamp.default", argument(1, lambda low: round(low, 1))),
    "GELU's form forgotten": form_forgotten,
    "a residual read from another layer": node_off(
        "aten.add.Tensor", lambda draft, node: replace(node, args=(node.args[0], node.args[0]))
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def everything() -> tuple[Graph, tuple[Tensor]]:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return trace(Everything().eval(), (x,)), (x,)


def test_without_a_fault_nothing_is_refused(everything):
    rewrite(*everything)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_rewriting_is_caught(everything, monkeypatch, fault):
    FAULTS[fault](monkeypatch)
    with pytest.raises(TraceError, match=r"rewriting changed .* report"):
        rewrite(*everything)


class Faint(nn.Module):
    """A network whose output hardly depends on its layers: 1e-12 of them, beside a constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return 1 + 1e-12 * self.last(F.relu(self.norm(self.first(x)))).mean((2, 3))


def test_a_fault_is_caught_where_the_output_hides_it(monkeypatch):
    x = torch.randn(2, 3, 8, 8)
    graph = trace(Faint().eval(), (x,))
    rewrite(graph, (x,))
    FAULTS["a batch norm's shift 0.1 % off"](monkeypatch)
    with pytest.raises(TraceError, match=r"layer '(first|norm)'.*rewriting changed"):
        rewrite(graph, (x,))


class Steps(nn.Module):
    """Batch norms among operators that jump: a difference in the last bit of a value is a large one behind them."""

    def __init__(self, jump: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.jump = jump
        self.first, self.norm, self.last = nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)
        self.qcfs = parspike.QCFS(4)
        self.norm.running_mean.copy_(torch.randn(32))

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.first(x))
        match self.jump:
            case "argmax":
                return self.last(F.one_hot(z.argmax(1), 32).to(z.dtype) + z.relu())
            case "sign":
                return self.last(z.sign() * z.relu())
            case "round":
                return self.last((40 * z).round() / 40 + z.relu())
            case "topk":
                return self.last(z.relu().topk(32, 1).values * z.topk(32, 1).indices)
            case "attention":
                q = z.relu().unflatten(1, (4, 8))
                return self.last(F.scaled_dot_product_attention(q, q, q).flatten(1))
        return self.last(self.qcfs(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("jump", ["argmax", "sign", "round", "topk", "attention", "qcfs"])
def test_networks_that_jump_are_neither_refused_nor_changed(jump, dtype):
    model = Steps(jump).eval().to(dtype)
    for seed in range(2):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
        made = parspike.plan(model, x)
        assert not made.refusals
        wide, given = Steps(jump).eval().to(dtype).double(), x.double()
        assert {tensor.dtype for tensor in made.graph.tensors.values()} <= {dtype, torch.int64}
        if dtype is torch.float64:
            torch.testing.assert_close(made.graph.run(given), wide(given), rtol=1e-9, atol=1e-9)


def test_a_tie_of_the_example_decides_nothing():
    model = Steps("sign").eval()
    # The first value of the example is exactly the batch norm's mean: its sign is that of a rounding.
    model.first.weight.data.zero_()
    model.first.bias.data.copy_(model.norm.running_mean * 1.0)
    model.first.weight.data[1:] = torch.randn(31, 6)
    assert not parspike.plan(model, torch.randn(4, 6)).refusals


def test_integer_inputs_are_compared_as_they_are():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.norm, self.head = nn.Embedding(9, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
            self.mix = nn.Conv1d(6, 6, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(F.relu(self.norm(self.mix(self.table(tokens).mT))).mean(2))

    made = parspike.plan(Tokens().eval(), torch.randint(0, 9, (3, 7)))
    assert [node.layer for node in made.graph.nodes if node.role is Role.NEURON] == ["relu"]
    assert all(not isinstance(node.args[0], Ref) or node.target != "parspike.batch_norm" for node in made.graph.nodes)
