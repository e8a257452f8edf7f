"""`parspike demo`: its comparison of spike counts can fail, and does not."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from training import constant_answer

import parspike
from parspike.cli import demo
from parspike.cli.images import open_images
from parspike.cli.preprocess import Preprocessing
from parspike.errors import MissingExtraError

EPOCHS = 3


@pytest.fixture(scope="module")
def trained():
    x, y = demo._stacked("train")
    return demo.train_digits(x, y, EPOCHS, lambda what, done, total: None).double()


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return demo._stacked("test")[0].double()


def test_part_a_shows_no_difference_and_the_serial_twin_does():
    found = demo.run_digits(EPOCHS)
    rows = {row.network: row for row in found.rows}
    trained = rows.pop("trained network")
    twin = rows.pop("serial-if")
    assert trained.accuracy > constant_answer(demo._stacked("test")[1])
    assert set(rows) == {"count", "parallel", "serial"}
    for row in rows.values():
        assert row.differing == 0
        assert row.accuracy == trained.accuracy
    assert twin.differing is not None
    assert 0 < twin.differing < found.counts
    assert f"0 of {found.counts:,}" in demo.digits_text(found)


def test_every_neuron_of_every_layer_is_compared(trained, digits):
    snn = parspike.convert(trained, T=demo.LEVELS, example=digits[:2])
    _, levels = demo.activation_levels(trained, digits)
    run = snn.run(digits, record=True)
    assert run.counts.keys() == levels.keys()
    assert len(levels) == 5
    assert all(run.counts[layer].shape == level.shape for layer, level in levels.items())
    for level in levels.values():
        assert level.min() == 0
        assert level.max() == demo.LEVELS


@pytest.mark.parametrize("layer", range(5))
def test_the_comparison_sees_one_changed_threshold(trained, digits, layer):
    snn = parspike.convert(trained, T=demo.LEVELS, example=digits[:2])
    _, levels = demo.activation_levels(trained, digits)
    list(snn.neurons().values())[layer].v_threshold.mul_(1.02)
    assert demo.differing(snn.run(digits, record=True).counts, levels) > 0


def test_hooks_leave_the_trained_network(trained, digits):
    demo.activation_levels(trained, digits[:2])
    assert not any(module._forward_hooks for module in trained.modules())


def test_training_does_not_touch_the_random_state():
    x, y = demo._stacked("test")
    before = torch.get_rng_state()
    demo.train_digits(x, y, 1, lambda what, done, total: None)
    assert torch.equal(torch.get_rng_state(), before)


def test_class_names():
    names = demo.class_names()
    assert len(names) == len(set(names)) == 1000
    assert all(name and name == name.strip() for name in names)
    # The order is that of the weights: a shift by one would name everything wrongly.
    known = {
        0: "tench",
        1: "goldfish",
        285: "Egyptian cat",
        812: "space shuttle",
        967: "espresso",
        999: "toilet tissue",
    }
    assert {i: names[i] for i in known} == known


def test_random_crops_are_inputs_of_the_network():
    preprocess = Preprocessing(size=40, crop=32, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, channels=3)
    images = open_images("photos", preprocess)
    crops = demo.random_crops(images, 16)
    assert crops.shape == (16, 3, 32, 32)
    assert crops.min() >= -127 / 128 - 1e-6
    assert crops.max() <= 1 + 1e-6
    assert torch.equal(crops, demo.random_crops(images, 16))
    assert not torch.equal(crops, demo.random_crops(images, 16, seed=1))


def photos(answer: str) -> demo.Photos:
    network = [demo.Answer("coffee", "espresso", 0.95), demo.Answer("rocket", "missile", 0.27)]
    answers = [demo.Answer("coffee", "espresso", 0.9), demo.Answer("rocket", answer, 0.1)]
    row = demo.PhotosRow(8, answers, 1 + (answer == "missile"), 1.7, 7.0)
    engines = [demo.EngineRow("count", 0.01, "espresso", None), demo.EngineRow("serial", 0.5, "espresso", 1e-5)]
    return demo.Photos(256, 3.0, network, [row], "coffee", 8, engines, 100, 0)


def test_a_disagreement_is_marked():
    assert "≠ flagpole 10 %" in demo.photos_text(photos("flagpole"))
    assert "≠ missile" not in demo.photos_text(photos("missile"))


def test_json_is_one_object(monkeypatch, capsys):
    made = demo.Digits(4, 1, 1, 1.0, 10, [demo.DigitsRow("count", 1.0, 0.5, 0)])
    monkeypatch.setattr(demo, "run_digits", lambda: made)
    monkeypatch.setattr(demo, "run_photos", lambda: photos("flagpole"))
    demo.demo(json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["digits"]["rows"][0]["differing"] == 0
    assert answer["photos"]["rows"][0]["answers"][1]["answer"] == "flagpole"


def test_a_missing_package_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setattr(demo, "run_digits", lambda: pytest.fail("the demo began"))
    with pytest.raises(MissingExtraError, match=r"scikit-image.*parspike\[demo\]"):
        demo.demo()
