"""The weights in the package: small, with their origin stated, and lossless at T = T̃."""

from __future__ import annotations

import json

import pytest
import torch

import parspike
from parspike.train import pretrained

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILES = sorted(pretrained.FOLDER.glob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_is_small_and_says_where_it_comes_from(path):
    assert path.stat().st_size < 2e6
    about = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert {"recipe", "seed", "data", "accuracy", "licence", "command"} <= about.keys()
    assert "JPEG" in about["data"]
    if "started_from" in about:
        assert (pretrained.FOLDER / "LICENSE-pytorch_resnet_cifar10.txt").is_file()


@pytest.mark.parametrize(("make", "levels"), [("cifar10_resnet20", 4), ("cifar10_resnet20_8", 8)])
def test_the_spiking_network_has_the_very_logits_of_the_network(not_compiled, make, levels):
    model = getattr(pretrained, make)()
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # In float32 a current that the fold rounds across a threshold moves a count, and the layers behind carry it on.
    exact = parspike.convert(model.double(), example=x.double(), T=levels)
    torch.testing.assert_close(exact(x.double()), model(x.double()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("make", "right"), [("cifar10_resnet20", 175), ("cifar10_resnet20_8", 176)])
def test_right_answers_for_200_original_images(shared, make, right):
    import numpy as np

    # In float64 no processor's rounding moves a count, so that the number of right answers is one everywhere.
    model = getattr(pretrained, make)().double()
    data = np.load(shared / "data" / "cifar10-original-part.npz")
    x = torch.from_numpy(data["test_images"][:200]).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        said = torch.cat([model(part).argmax(1) for part in ((x - mean) / std).split(100)])
    assert int((said == torch.from_numpy(data["test_labels"][:200])).sum()) == right
