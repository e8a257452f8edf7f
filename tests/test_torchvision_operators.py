"""What tests and benchmarks do before they import torchvision."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import pytest
import torch
import torchvision_operators


@pytest.mark.parametrize("belongs", [True, False], ids=["of this torch", "of another torch"])
def test_torchvisions_own_operators_come_first(monkeypatch, tmp_path, belongs):
    calls = []

    def load(path):
        calls.append(path.name)
        if not belongs:
            raise OSError("undefined symbol")

    def define(name, schema):
        calls.append(name)
        if belongs:
            raise RuntimeError("declared twice")

    (tmp_path / "_C.so").touch()
    found = ModuleSpec("torchvision", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(torchvision_operators, "find_spec", lambda name: found)
    monkeypatch.setattr(torch.ops, "load_library", load)
    monkeypatch.setattr(torch.library, "define", define)
    torchvision_operators.declare()
    assert calls == ["_C.so", "torchvision::nms", "torchvision::qnms"]


def test_nothing_of_torchvision_is_needed(monkeypatch):
    monkeypatch.setattr(torchvision_operators, "find_spec", lambda name: None)
    torchvision_operators.declare()
