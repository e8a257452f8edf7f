"""`with_qcfs` finds every activation, replaces it or says why not, and leaves the given network alone."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

import parspike
from parspike import train
from parspike.calibrate.batches import signature_of
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

    torch.manual_seed(0)  # some draws of the weights give nothing above 0
    x = torch.randn(8, 4)
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


class Overwriting(nn.Module):
    """Reads the input of an activation that wrote its result over it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.out = nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.out(self.act(z)) + z


def table(rows: int = 16) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))


def test_what_an_activation_wrote_over_its_input_is_read_there():
    network, x = Overwriting(), table()
    made = with_qcfs(network, 1 << 16, v_threshold="max", example=x)
    assert torch.allclose(made(x), network(x), atol=1e-3)
    apart = nn.Sequential(network.first, network.act, network.out)
    assert type(with_qcfs(apart, 4, example=x)) is nn.Sequential
    with pytest.warns(UserWarning, match=r"'act' wrote .*inplace=True.*self\.act\(z\)\) \+ z.*example="):
        with_qcfs(network, 4)(x)


@pytest.mark.parametrize("example", [True, False])
def test_an_encoder_layer_in_evaluation_computes_what_replaced_its_activation(example):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1)
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(3, 5, dtype=torch.bool)
    padded[0, 3:] = True
    made = with_qcfs(encoder, 2, v_threshold=1.0, example=x if example else None).eval()
    trained = made(x, src_key_padding_mask=padded)
    with torch.no_grad():
        evaluated = made(x, src_key_padding_mask=padded)
    assert torch.allclose(evaluated[~padded], trained[~padded], atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.clamp_(x * 1, min=0),
        lambda x: torch.clamp(input=x, min=0),
        lambda x: F.threshold(x, 0, 0),
        lambda x: torch.threshold_(x * 1, threshold=0, value=0),
        nn.Threshold(0, 0),
        lambda x: x.prelu(torch.zeros(1)),
    ],
)
def test_activations_in_other_ways_of_writing(function):
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = function

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x)

    x = table()
    assert torch.allclose(with_qcfs(Network(), 1 << 16, v_threshold="max", example=x)(x), F.relu(x), atol=1e-3)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x.clamp(max=1), "it has no lower bound"),
        (lambda x: x.clamp(min=torch.zeros(())), "its bounds are tensors"),
        (lambda x: F.threshold(x, 0, -1), "below 0 it is -1"),
        (lambda x: torch.sigmoid_(x * 1), "a gate"),
        (lambda x: torch.erf(x), "a gate or a signed output"),
    ],
)
def test_what_is_not_replaced_says_why(function, why):
    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(F.relu(x))

    with pytest.warns(UserWarning, match=rf"^not replaced: .*\): {why}[^:]*$"):
        with_qcfs(Network(), example=table())


def test_a_first_pass_that_failed_does_not_hide_an_activation_from_the_second():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.act(x))

    made = with_qcfs(Network(), 4)
    for _ in range(2):
        with pytest.raises(InputError, match=r"F\.relu\(self\.act\(x\)\)"):
            made(table())


def test_a_first_pass_that_was_interrupted_watches_no_other_network():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    made = with_qcfs(Network(), 4)
    with pytest.raises(KeyboardInterrupt):
        made(table())
    try:
        assert F.relu(table()).min() == 0
    finally:
        made.__dict__["_watch"].__exit__(None, None, None)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activations_that_are_computed_again_in_the_backward_pass_are_refused(reentrant):
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 8)

        def part(self, x: Tensor) -> Tensor:
            return F.relu(self.first(x))

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=reentrant)

    x = table().requires_grad_()
    made = with_qcfs(Network(), 4, example=x.detach())
    with pytest.raises(InputError, match=r"activation 1 \(relu\).*switch gradient checkpointing off"):
        made.train()(x)


def test_a_network_with_weight_norm_is_copied_after_it_ran():
    network = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 8)), nn.ReLU())
    x = table()
    network(x)
    made = with_qcfs(network, 1 << 16, v_threshold="max", example=x)
    assert torch.allclose(made(x), network(x), atol=1e-3)
    made(x).sum().backward()
    assert made[0].weight_g.grad is not None


def test_a_compiled_network_is_looked_at_as_it_is_written():
    network, x = Functional(), torch.rand(2, 3, 8, 8)
    made = with_qcfs(torch.compile(network, backend="eager"), 4, example=x)
    assert len(made.activations.replaced) == 5


def test_examples_by_name_and_wrong_ones():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.out(F.relu(x - y))

    x = table()
    made = with_qcfs(Network(), 4, v_threshold="max", example={"y": x.flip(0), "x": x}).eval()
    snn = parspike.convert(made, example={"y": x.flip(0), "x": x}, T=4)
    assert torch.equal(snn(y=x.flip(0), x=x), made(x, x.flip(0)))
    with pytest.raises(InputError, match=r"cannot take example= \(\(16, 4\)\).*'y'.*a tuple of tensors"):
        with_qcfs(Network(), example=x)
    with pytest.raises(InputError, match="no samples"):
        with_qcfs(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), v_threshold="max", example=x[:0])


def test_a_wrapped_network_takes_as_many_inputs_as_it_did():
    images = torch.rand(2, 3, 8, 8)
    made = with_qcfs(Functional(), 4, example=images)
    assert signature_of(made, (images, torch.zeros(2))) == (1, ())


def test_per_channel_knows_channels_that_are_last():
    x = torch.rand(2, 5, 6, 4)
    with pytest.raises(OptionError, match=r"layer '1' has shape \(2, 5, 6, 8\), whose channel dimension is not known"):
        with_qcfs(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), 4, per_channel=True, example=x)


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
    snn = parspike.convert(nn.Sequential(nn.Linear(4, 4), parspike.QCFS(4, 1.0), nn.Linear(4, 2)).eval(), table(), T=4)
    with pytest.raises(InputError, match="spiking neurons already"):
        with_qcfs(snn, example=table())
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
