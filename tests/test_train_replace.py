"""`with_qcfs` finds every activation, replaces it or says why not, and leaves the given network alone."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike import train
from parspike.errors import InputError, OptionError
from parspike.train import TrainQCFS
from parspike.train.networks import build

pytestmark = pytest.mark.usefixtures("not_compiled")
with_qcfs: Any = train.with_qcfs  # the attributes of what it returns are checked when the tests run


class Functional(nn.Module):
    """Activations in all the ways that code writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        x = F.relu(x * 1.5 - 0.2)
        x = (x - 0.1).clamp(min=0)
        y = x * 1.0 - 0.05
        y.relu_()
        x = F.max_pool2d(self.act(y), 2)
        return self.out(x.mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def trained_a_little(model: nn.Module, x: Tensor, shrink: float = 1.0) -> nn.Module:
    """Batch norms and thresholds away from their start values."""
    model.train()
    for _ in range(2):
        model(x)
    for module in model.modules():
        if isinstance(module, TrainQCFS):
            module.v_threshold.data *= shrink
    return model.eval()


def same_counts(model: nn.Module, x: Tensor, levels: int) -> bool:
    """The converted network at T = T̃ gives the network's own output, in double precision."""
    model, x = model.double(), x.double()
    snn = parspike.convert(model, example=x, T=levels)
    return torch.allclose(snn(x), model(x), atol=1e-12) and len(snn.neurons()) > 0


def test_modules_are_replaced_where_they_stand(images):
    model = build("resnet20-cifar", 10)
    before = copy.deepcopy(model.state_dict())
    made = with_qcfs(model, levels=4)
    assert type(made) is type(model)
    assert sum(isinstance(m, TrainQCFS) for m in made.modules()) == 19
    assert not any(isinstance(m, nn.ReLU) for m in made.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 19
    assert same_counts(trained_a_little(made, images, 0.2), images, 4)


def test_every_use_in_the_code_is_found_and_has_its_own_threshold(images):
    made = with_qcfs(Functional(), levels=4, v_threshold="max", example=images)
    assert [use.function for use in made.activations.replaced] == ["relu", "relu", "clamp", "relu_", "relu"]
    assert "x = F.relu(x * 1.5 - 0.2)" in str(made.activations)
    thresholds = [p for name, p in made.named_parameters() if name.endswith("v_threshold")]
    assert len(thresholds) == 5
    made(images).sum().backward()
    assert all(p.grad is not None for p in thresholds)
    assert same_counts(made.eval(), images, 4)


def test_an_activation_of_one_number_a_sample_is_replaced():
    class Price(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.out(x).squeeze(1))

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for start in ("max", 2.0):
        made = with_qcfs(Price(), levels=4, v_threshold=start, example=x)
        assert made(x).shape == (8,)
    with pytest.raises(OptionError, match=r"per_channel.*shape \(8,\)"):
        with_qcfs(Price(), levels=4, per_channel=True, example=x)


def test_without_an_example_a_function_is_refused_at_the_first_forward_pass(images):
    made = with_qcfs(Functional(), levels=4)
    with pytest.raises(InputError, match=r"relu at .*F\.relu\(x \* 1\.5 - 0\.2\).*example="):
        made(images)


def test_without_an_example_a_module_used_twice_is_said(images):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.act(x) - 1)

    made = with_qcfs(Twice(), levels=4)
    again = copy.deepcopy(made)
    with pytest.warns(UserWarning, match=r"used several times.*act.*example="):
        made(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(images)
    with pytest.warns(UserWarning, match="used several times"):
        again(images)
    with_example = with_qcfs(Twice(), levels=4, example=images)
    assert len(with_example.neurons) == 2


def test_what_is_not_replaced_is_named(images):
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) * torch.sigmoid(x) + torch.clamp(x, -1, 1)

    with pytest.warns(UserWarning, match="not replaced") as said:
        made = with_qcfs(Gate(), example=images)
    texts = [str(w.message) for w in said if "not replaced" in str(w.message)]
    assert len(texts) == 2
    assert "sigmoid" in texts[0]
    assert "clipped at -1 and not at 0" in texts[1]
    assert made.activations.kept


def test_thresholds_from_data(images):
    conv = nn.Conv2d(3, 4, 3)
    torch.nn.init.constant_(conv.weight, 0.1)
    model = nn.Sequential(conv, nn.ReLU())
    largest = with_qcfs(model, v_threshold="max", example=images)[1].v_threshold
    assert torch.isclose(largest, model(images).max())
    most = with_qcfs(model, v_threshold="90%", example=images)[1].v_threshold
    assert torch.isclose((model(images) <= most).float().mean(), torch.tensor(0.9), atol=0.01)
    channels = with_qcfs(model, v_threshold="max", per_channel=True, example=images)[1].v_threshold
    assert torch.allclose(channels.flatten(), model(images).amax((0, 2, 3)))


def test_per_channel_converts_without_loss(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    assert same_counts(with_qcfs(model, 4, v_threshold="max", per_channel=True, example=images), images, 4)


@pytest.mark.parametrize("example", [True, False])
def test_max_pools_become_average_pools_when_asked(images, example):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    made = with_qcfs(model, pool="avg", example=images if example else None)
    assert [type(m) for m in made][2] is nn.AvgPool2d
    network = Functional()
    functional = with_qcfs(network, 4, v_threshold="max", pool="avg", example=images).eval()
    assert not torch.equal(functional(images), with_qcfs(network, 4, v_threshold="max", example=images)(images))
    assert same_counts(functional, images, 4)


def test_another_path_than_the_examples_is_refused(images):
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(x)
            return F.relu(x) if len(x) > 4 else x

    made = with_qcfs(Branch(), example=images)
    with pytest.raises(InputError, match="1 of 2 activations were called"):
        made(images[:2])


def test_wrong_options():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(OptionError, match="keep or avg"):
        with_qcfs(model, pool="max")
    with pytest.raises(OptionError, match=r"'max', or a percentile"):
        with_qcfs(model, v_threshold="99", example=torch.rand(2, 4))
    with pytest.raises(OptionError, match="need example="):
        with_qcfs(model, v_threshold="max")
    with pytest.raises(InputError, match="no activation"):
        with_qcfs(nn.Linear(4, 4))
    with pytest.raises(InputError, match="QCFS activations already"):
        with_qcfs(with_qcfs(model))
    with pytest.raises(InputError, match="silent"):
        with_qcfs(nn.ReLU(), v_threshold="max", example=-torch.rand(2, 4))


@pytest.mark.parametrize("name", ["resnet18-cifar", "vgg-small-cifar"])
def test_networks_of_the_paper_convert_without_loss(name, images):
    x = F.interpolate(images[:2], size=32)
    assert same_counts(with_qcfs(build(name, 10), 4, v_threshold="max", example=x).eval(), x, 4)


def test_published_cifar_weights_load(shared):
    from safetensors.torch import load_file

    state = load_file(shared / "weights" / "cifar10-resnet20.safetensors")
    build("resnet20-cifar", 10).load_state_dict(state)


def test_imagenet_networks_have_torchvisions_shapes():
    counts = {"resnet34-imagenet": 21_797_672, "resnet18-imagenet": 11_689_512}
    with torch.device("meta"):
        for name, wanted in counts.items():
            assert sum(p.numel() for p in build(name, 1000).parameters()) == wanted
        # torchvision's vgg16_bn has biases before its batch norms, which do nothing.
        assert sum(p.numel() for p in build("vgg16-imagenet", 1000).parameters()) == 138_365_992 - 4224
