"""Products in front of linear layers are encoded row by row, rotated and in units of their largest value
(`graph.scaled`)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike.graph.ops import ENCODE, ROTATE, SIZE, rotate


class Gated(nn.Module):
    """The gated layer of a language model; twice: two layers that read one product."""

    def __init__(self, *, bias: bool = True, twice: bool = False) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(6, 16, bias=False), nn.Linear(6, 16, bias=False)
        self.down = nn.Linear(16, 5, bias=bias)
        self.other = nn.Linear(16, 3) if twice else None

    def forward(self, x: Tensor) -> Tensor:
        product = F.relu(self.gate(x)) * self.up(x)
        down = self.down(product)
        return down if self.other is None else torch.cat([down, self.other(product)], -1)


def made(**options: bool) -> tuple[Gated, Tensor]:
    torch.manual_seed(0)
    return Gated(**options).eval(), torch.randn(64, 7, 6)


def targets(plan: parspike.Plan) -> list[str]:
    return [node.target for node in plan.graph.nodes]


def test_small_rows_are_told_as_well_as_large_ones() -> None:
    model, x = made(bias=False)
    x[:, ::2] *= 8  # products 64 times as large for every other token
    snn = parspike.convert(model, x, 4, code="weighted", encode="hidden", recipe="closed-form")
    with torch.no_grad():
        wanted, found = model(x), snn(x)
    errors = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    # With one range for all rows, small ones would get the levels next to 0 alone.
    assert float(errors[:, 1::2].median()) < 2 * float(errors[:, ::2].median())


def hadamard(n: int) -> Tensor:
    """Entry i, j is −1 to the number of places where both i and j have a binary digit 1."""
    rows = [[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]
    return torch.tensor(rows, dtype=torch.float64) / n**0.5


@pytest.mark.parametrize(("wide", "piece"), [(1, 1), (7, 1), (6, 2), (24, 8), (64, 64), (96, 32), (1536, 512)])
def test_a_rotation_is_a_hadamard_matrix_on_every_piece(wide: int, piece: int) -> None:
    """What it would catch: pieces of another size or in another order, or a scale, which weights behind undo only if
    they were turned alike; files say which matrix it is."""
    x = torch.randn(2, 3, wide, dtype=torch.float64)
    wanted = (x.reshape(2, 3, -1, piece) @ hadamard(piece)).reshape(x.shape)
    torch.testing.assert_close(rotate(x), wanted)
    torch.testing.assert_close(rotate(rotate(x)), x)
    assert rotate(x[:0]).shape == (0, 3, wide)
    given = x.clone().requires_grad_()  # a compiled network calls it as one operator, with this gradient
    torch._dynamo.reset()
    out = torch.compile(rotate, backend="aot_eager", fullgraph=True)(given)
    torch.testing.assert_close(out, rotate(x))
    out.square().sum().backward()
    torch.testing.assert_close(given.grad, 2 * x)


def test_one_large_value_of_few_rows_is_sent_whole() -> None:
    """What it would catch: a range of one channel, chosen for most rows, that cuts a value of few rows off."""
    model, _ = made(bias=False)
    with torch.no_grad():
        model.gate.weight[3], model.up.weight[3] = torch.tensor([[30.0] + 5 * [0.0]] * 2).unbind()
    x = 5 * torch.randn(64, 128, 6)
    x[..., 0] = 0.01 + 0.01 * torch.rand(64, 128)
    x[::32, 0, 0] = 10  # 90,000 in two rows of 8,192, at most 0.4 in the others, where the largest is mostly above 5
    snn = parspike.convert(model, x.split(8), 3, code="weighted", encode="hidden",
                           recipe=parspike.ClosedForm(refit=False))  # fmt: skip
    with torch.no_grad():
        wanted, found = model(x), snn(x)
    errors = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert float(errors[::32, 0].max()) < 0.1
    assert float(errors.median()) < 0.1


def test_weights_that_others_read_too_stay_as_they_are() -> None:
    """What it would catch: rotated weights under a path that another operator reads."""

    class Tied(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + F.linear(F.relu(x @ self.gate.weight.T), self.down.weight)

    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(4, 7, 6)
    snn = parspike.convert(model, x, 12, code="weighted", encode="all", recipe="max")
    with torch.no_grad():
        wanted = model(x)
    torch.testing.assert_close(snn(x), wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))


def test_what_a_rotation_costs_is_counted() -> None:
    model, x = made()
    snn = parspike.convert(model, x, 4, code="weighted", encode="all", recipe="max")
    (row,) = [row for row in parspike.measure(snn, x).rows if row.layer == "mul.rotated"]
    assert row.macs == 7 * 16 * 4  # tokens, values, log2 of 16 additions each


@pytest.mark.parametrize("bias", [True, False])
def test_the_function_is_the_same_and_engines_agree(bias: bool) -> None:
    model, x = made(bias=bias)
    x[3] = 0  # a product of zeros has no largest value
    snn = parspike.convert(model, x, 12, code="weighted", encode="all", recipe="max")
    with torch.no_grad():
        wanted = model(x)
    found = snn(x)
    assert bool(found.isfinite().all())
    near = {"rtol": 0, "atol": 0.01 * float(wanted.abs().max())}
    torch.testing.assert_close(found, wanted, **near)
    for engine in ("parallel", "serial"):
        # A current on a threshold may be rounded to either side.
        torch.testing.assert_close(snn.run(x, engine=engine).logits, found, **near)


def test_layers_that_read_one_product_share_its_size_and_its_encoder() -> None:
    model, x = made(twice=True)
    plan = parspike.plan(model, x, encode="all")
    assert targets(plan).count(SIZE) == targets(plan).count(ROTATE) == 1
    assert [n.layer for n in plan.graph.nodes if n.target == ENCODE and "share" in n.layer] == ["mul.share@spikes"]
    assert {"down", "other"} <= {node.layer for node in plan.graph.nodes}  # the names that users know


def test_where_no_encoder_stands_nothing_is_scaled() -> None:
    model, x = made()
    assert SIZE not in targets(parspike.plan(model, x))
    # With lookup a division would become neurons of its own.
    assert SIZE not in targets(parspike.plan(model, x, encode="all", analog="lookup"))
    linear = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    assert SIZE not in targets(parspike.plan(linear, x, encode="all"))
