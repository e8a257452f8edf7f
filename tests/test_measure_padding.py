"""Zeros that padding puts around a value have no edges, whichever operator puts them there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BACK = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Padded(nn.Module):
    """conv → ReLU → conv, with something before each."""

    def __init__(self, before, dims: int = 2, padding: int = 0, second: type[nn.Module] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = CONV[dims](1, 8, 3, padding=padding)
        self.two = (second or CONV[dims])(8, 4, 3, padding=padding)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.before(self.one(self.before(x)).relu()))


def measured(model: nn.Module, x: Tensor, **options) -> parspike.Report:
    return parspike.measure(parspike.convert(model.eval(), x, T=4, recipe="max", **options), x)


def operations(report: parspike.Report) -> tuple[float, float, float]:
    return report.network_macs, report.macs, report.synops


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_padding_of_its_own_costs_what_the_convolutions_padding_costs(dims):
    x = torch.randn(2, 1, *[6] * dims)
    wanted = operations(measured(Padded(lambda x: x, dims, padding=1), x))
    edges = (3 * 6 - 2) ** dims  # of three taps at six places, two fall on a border
    assert wanted[0] == 8 * edges + 8 * 4 * edges
    pads = {
        "zeros": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)[dims - 1](1),
        "constant": lambda x: F.pad(x, (1, 1) * dims, value=0.0),
        "side by side": lambda x: F.pad(F.pad(x, (1, 0) * dims), (0, 1) * dims),
        "cut again": lambda x: F.pad(F.pad(x, (2, 2) * dims), (-1, -1) * dims),
        "scaled": lambda x: 0.5 * F.pad(2 * x, (1, 1) * dims),
        "joined": lambda x: torch.cat([F.pad(x[:, :0], (1, 1) * dims), F.pad(x, (1, 1) * dims)], 1),
    }
    for name, pad in pads.items():
        assert operations(measured(Padded(pad, dims), x)) == pytest.approx(wanted), name


def test_the_example_of_two_padded_convolutions():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 12, 12)
    for pad, padding in ((nn.ZeroPad2d(1), 0), (nn.Identity(), 1)):
        model = nn.Sequential(
            pad, nn.Conv2d(1, 8, 3, padding=padding), nn.ReLU(), pad, nn.Conv2d(8, 4, 3, padding=padding), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 10),
        )  # fmt: skip
        assert measured(model, x).network_macs == 47_680


def test_efficientnet_lite0_has_the_edges_that_exist():
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    x = torch.randn(1, 3, 224, 224)
    report = measured(lite.EfficientNet.from_name("efficientnet-lite0"), x)
    assert report.network_macs / 1e6 == pytest.approx(381.24, abs=0.005)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "constant one"])
def test_what_is_repeated_at_a_border_has_edges(mode):
    """A constant that is not 0 is multiplied too."""

    def pad(x: Tensor) -> Tensor:
        return F.pad(x, (1,) * 4, value=1.0) if mode == "constant one" else F.pad(x, (1,) * 4, mode=mode)

    assert measured(Padded(pad), torch.randn(2, 1, 6, 6)).network_macs == 40 * 9 * 36


def ones(before, x: Tensor) -> Tensor:
    """Where operators leave an image other than 0, be it above or below."""
    image = torch.rand_like(x) + 1
    return ((before(image) != 0) | (before(-image) != 0)).float()


@pytest.mark.parametrize(
    "before",
    [
        lambda x: F.max_pool2d(F.pad(x, (4,) * 4), 3, 1),
        lambda x: F.avg_pool2d(F.pad(x, (4,) * 4), 3, 1),
        lambda x: -F.max_pool2d(-F.pad(x, (4,) * 4), 3, 3),
        lambda x: F.interpolate(F.pad(x, (1,) * 4), scale_factor=2),
        lambda x: F.pad(x, (1,) * 4)[:, :, 2:, :-1],
        lambda x: F.pad(x, (1,) * 4).roll(2, 3).flip(2),
        lambda x: F.pad(x, (1, 1, 1, 1, 0, x.shape[1]))[:, ::2],
        lambda x: F.pad(x, (1,) * 4) * torch.tensor([0.0, 1.0]).repeat(4),
        lambda x: F.pad(x, (1,) * 4) + torch.tensor([0.0, 0.0, 1.0, 0.0]).repeat(2),
    ],
    ids=["max-pool", "average pool", "smallest", "upsampled", "cut", "moved", "channels", "masked", "filled"],
)
def test_zeros_stay_zeros_through_what_cannot_change_them(before):
    """Brute force: ones where something may stand, through weights of 1."""
    x = torch.randn(2, 2, 6, 6)
    conv = nn.Conv2d(before(x).shape[1], 3, 3)
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(3, 2, 1))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(before(x))

    seen = ones(before, x[:1])
    assert bool((seen == 0).any())
    wanted = float(F.conv2d(seen, torch.ones_like(conv.weight)).sum())
    first = next(row for row in measured(Net(), x).rows if row.layer == "model.0")
    assert first.network_macs == wanted


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_transposed_convolution_behind_padding(dims):
    x, pad = torch.randn(2, 1, *[5] * dims), (1, 1) * dims
    report = measured(Padded(lambda x: F.pad(x, pad), dims, second=BACK[dims]), x)
    second = next(row for row in report.rows if row.layer == "two")
    assert second.network_macs == 8 * 4 * 3**dims * 5**dims


def test_an_activation_that_is_0_at_0_keeps_the_zeros_and_another_does_not():
    x = torch.randn(2, 1, 6, 6)

    class Before(Padded):
        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.before(self.one(self.before(x))).relu())

    pad, wanted = nn.ZeroPad2d(1), measured(Padded(lambda x: x, padding=1), x).network_macs
    assert measured(Before(pad), x).network_macs == wanted
    kept = measured(Before(pad), x, layers={"*": parspike.Keep()})
    assert kept.network_macs == kept.macs == wanted
    squashed = nn.Sequential(nn.Conv2d(1, 8, 3), pad, nn.Sigmoid(), nn.Conv2d(8, 4, 3))
    assert measured(squashed, x).rows[-1].network_macs == 8 * 4 * 9 * 16
