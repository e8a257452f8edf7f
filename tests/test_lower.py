"""Lowering: a converted network in the terms of a chip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import SHAPES, Dense, PreActivation, Quantised, Residual, made
from torch import Tensor, nn

import parspike
from parspike import IF, LIF, SNN
from parspike.errors import UnsupportedError
from parspike.lower import unit
from parspike.neurons import IntegrateFire, ParallelNeuron


class Separable(nn.Module):
    """A depthwise convolution behind neurons, an activation whose smallest output is not 0, and a plain sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.c, self.head = nn.Conv2d(12, 12, 3, padding=1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu()).clamp(-0.5, 2.0)
        y = (self.c(y) + y).relu()
        return self.head(y.mean((2, 3)))


def convert(module: type[nn.Module], **options: Any) -> tuple[SNN, Tensor]:
    """In float64, where no count of the two networks lies within rounding of a threshold."""
    model, x = made(module, batch=12)
    return parspike.convert(model, x, recipe="max", **options).double(), x.double()


SHAPES[Separable] = (3, 8, 8)
CONVERSIONS: dict[str, dict[str, Any]] = {
    "sorted": {"T": 6},
    "weighted": {"T": 3, "code": "weighted"},
    "if": {"T": 6, "neuron": IF()},
    "lif-zero": {"T": 6, "neuron": LIF(0.9, reset="zero")},
}


@pytest.mark.parametrize("how", CONVERSIONS)
@pytest.mark.parametrize("module", [Residual, PreActivation, Dense, Quantised, Separable])
def test_unit_spikes_make_the_same_network(module: type[nn.Module], how: str) -> None:
    snn, x = convert(module, **CONVERSIONS[how])
    lowered = unit(snn)
    ours, theirs = snn.run(x, record=True), lowered.run(x, record=True)
    for layer, count in ours.counts.items():
        assert torch.equal(count, theirs.counts[layer]), layer
    assert torch.allclose(ours.logits, theirs.logits, rtol=1e-9, atol=1e-9)
    for neuron in lowered.neurons().values():
        assert isinstance(neuron, (ParallelNeuron, IntegrateFire))
        assert bool((neuron.v_post == 1).all())
        assert not neuron.offsets or not bool(torch.as_tensor(neuron.offset).any())


def test_a_scale_goes_into_the_weights_of_every_group_and_stays_before_a_sum() -> None:
    snn, _ = convert(Separable, T=4)
    targets = [node.target for node in unit(snn).graph.nodes]
    # a → b is grouped, b → c is padded and shifted, b + … is a sum, the last one goes through the mean.
    assert targets.count("parspike.scale_shift") == 2
    assert len(targets) == len(snn.graph.nodes) + 2


def test_levels_that_are_not_even_are_refused_by_name() -> None:
    class Curved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).sigmoid())

    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Curved().eval()
    with pytest.raises(UnsupportedError, match=r"(?s)sigmoid.*code='weighted'"):
        unit(parspike.convert(model, x, T=4, recipe="max"))
    snn = parspike.convert(model, x, T=3, recipe="max", code="weighted").double()
    lowered = unit(snn)
    assert torch.allclose(lowered(x.double()), snn(x.double()), rtol=1e-9)
    for neuron in lowered.counting().values():
        assert torch.equal(neuron.amplitudes().flatten(), torch.tensor([4.0, 2.0, 1.0]).double() * 3 / 7)
