"""One network of each kind of the zoo (docs/zoo.md): planned, converted, compared. `make zoo` does the rest.

What it would catch: code as torchvision and timm write it that is no longer read, or converted to something else."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("timm")

import zoo

KINDS = {
    "torchvision/resnet18": (17, set()),
    "torchvision/mobilenet_v3_small": (61, {"mul"}),
    "timm/convnext": (18, {"layer_norm"}),
    "timm/vision_transformer": (12, {"layer_norm", "scaled_dot_product_attention"}),
    "own/unet": (10, set()),
    "own/pointnet": (5, set()),
    "own/audio_cnn": (3, set()),
    "own/mlp_mixer": (16, {"layer_norm"}),
}
DEAR = ("torchvision/mobilenet_v3_small", "timm/convnext")
"""Converted in `make test-all` alone: every operator of them that the others lack is in test_operators."""


def assert_planned(name, result):
    neurons, analog = KINDS[name]
    assert result["neurons"] == neurons
    assert set(result["analog"]) == analog


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in DEAR)) for name in KINDS])
def test_a_network_of_each_kind(name):
    result = zoo.run(name)
    assert result.get("error", 1) < 0.01, result
    assert result["engines"] < 1e-6
    assert_planned(name, result)


@pytest.mark.parametrize("name", DEAR)
def test_a_network_that_takes_long_is_planned(name):
    assert_planned(name, zoo.run(name, planned=True))


def test_every_family_of_timm_is_in_the_zoo():
    import timm

    assert {name.removeprefix("timm/") for name in zoo.ZOO if name.startswith("timm/")} == set(timm.list_modules())


def test_the_page_counts_what_it_lists():
    results = [
        {"name": "a", "class": "A", "parameters": 2_000_000, "neurons": 3, "analog": {"mul": 2}, "gain": 1.0,
         "error": 0.02, "finer": 0.001, "engines": 1e-16},
        {"name": "b", "class": "B", "parameters": 1000, "refused": "UnsupportedError: no | rule"},
        {"name": "c", "failed": "took more than 1500 s"},
    ]  # fmt: skip
    text = zoo.page(results)
    assert "**1 of 3 networks convert**" in text
    assert "**0 have an error below 1 % at T = 1024, 1 at T = 16384.**" in text
    assert "refused: UnsupportedError: no / rule" in text
    assert "2 % (0.1 %)" in text
