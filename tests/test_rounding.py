"""Weights rounded one after the other, each making good for the errors of those before it."""

from __future__ import annotations

import pytest
import torch
from networks import Residual, made
from torch import Tensor, nn

import parspike
from parspike.lower import integers
from parspike.lower.rounding import finest, one_by_one


def rows(number: int, features: int, mixed: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, number, features, generator=generator, dtype=torch.float64)
    if mixed:
        x = x @ torch.rand(2, features, features, generator=generator, dtype=torch.float64)
    return nn.functional.pad(x, (0, 1), value=1.0)


def weights() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    return weight, torch.randn(2, 5, generator=generator, dtype=torch.float64)


def error(x: Tensor, weight: Tensor, bias: Tensor, whole: Tensor, grid: Tensor, added: Tensor) -> float:
    out = [x[:, :, :-1] @ w.mT + b[:, None] for w, b in ((weight, bias), (whole * grid[:, :, None], added))]
    return float((out[0] - out[1]).square().mean())


@pytest.mark.parametrize("top", [1, 3, 7, 127])
def test_outputs_err_less_than_rounded_to_the_nearest(top: int) -> None:
    x, (weight, bias) = rows(500, 12, mixed=True), weights()
    grid = weight.abs().amax(2) / top
    whole, added = one_by_one(weight, bias, grid, x, top)
    assert torch.equal(whole, whole.round())
    assert float(whole.abs().max()) <= top
    nearest = (weight / grid[:, :, None]).round()
    assert error(x, weight, bias, whole, grid, added) < 0.25 * error(x, weight, bias, nearest, grid, bias)


def test_inputs_that_have_nothing_in_common_are_rounded_to_the_nearest() -> None:
    weight, bias = weights()
    x = torch.cat([torch.eye(13), -torch.eye(13)]).double().expand(2, -1, -1).contiguous()
    grid = weight.abs().amax(2) / 7
    whole, added = one_by_one(weight, bias, grid, x, 7)
    assert torch.equal(whole, (weight / grid[:, :, None]).round())
    assert torch.allclose(added, bias)


def test_grids_end_where_the_rounding_errs_least() -> None:
    weight = torch.tensor([[[1.0, 0.31, -0.33, 0.29, 0.3]]], dtype=torch.float64)
    heavy = torch.diag(torch.tensor([1e-6, 1.0, 1.0, 1.0, 1.0])).double()[None]
    assert float(finest(weight, None, 1)[0, 0]) == 1.0
    assert float(finest(weight, heavy.diagonal(dim1=1, dim2=2), 1)[0, 0]) == pytest.approx(
        0.4
    )  # the large weight carries nothing
    assert (
        float(finest(weight, heavy.flip(1, 2).diagonal(dim1=1, dim2=2), 1)[0, 0]) == 1.0
    )  # the large one carries as much as the others


def test_a_network_of_few_bits_is_nearer_to_the_real_one_on_images_it_has_not_seen() -> None:
    model, x = made(Residual, batch=64)
    snn = parspike.convert(model, x[:48], recipe="max", T=8)
    wanted, seen = snn(x[48:]), x[:48]
    made_of = [integers(snn, seen, weights=3, refit=how) for how in (False, True)]
    apart = [float((whole(x[48:]) - wanted).square().mean()) for whole in made_of]
    assert apart[1] < 0.6 * apart[0]
