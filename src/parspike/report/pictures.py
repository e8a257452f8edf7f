"""One input of a network as something to look at: an image, a line, or text."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from parspike.errors import InputError

__all__ = ["Picture", "picture_of"]

LARGEST = 224
"""Pixels of the longer side; larger images are made smaller."""
POINTS = 200
"""Points of a line; of more values the smallest and largest of each group are drawn."""
MOST_WORDS = 24


@dataclass(frozen=True)
class Picture:
    """One of three is not empty. image: a data URI. line: the points of an SVG polyline in a box of 200 by 100. text:
    the values themselves."""

    image: str = ""
    line: str = ""
    text: str = ""


def picture_of(x: Tensor, draw: Callable[[Tensor], Tensor] | None = None) -> Picture:
    """A picture of one input, without batch.

    draw: from the input to an image (H, W), (1, H, W) or (3, H, W) with values in 0 … 1. Without it (C, H, W) is an
    image, its values stretched to what it holds where they lie outside 0 … 1 (of more than three channels their mean);
    (C, L) is one too; (L,) and (1, L) are a line; whole numbers are text. Raises `InputError` where `draw` gives
    something else.
    """
    if draw is not None:
        image = draw(x)
        if not isinstance(image, Tensor) or image.dim() not in (2, 3):
            raise InputError("picture= gives no image: expected a tensor (H, W) or (C, H, W) with values in 0 … 1")
        return Picture(image=_png(image.detach().cpu().float().clamp(0, 1)))
    if not x.is_floating_point():
        flat = x.flatten().tolist()
        return Picture(text=" ".join(map(str, flat[:MOST_WORDS])) + (" …" if len(flat) > MOST_WORDS else ""))
    x = x.detach().cpu().float()
    while x.dim() > 1 and x.shape[0] == 1 and x.dim() != 3:
        x = x[0]
    if x.dim() == 3 and x.shape[0] == 1 and x.shape[1] == 1:
        x = x[0, 0]
    if x.dim() == 0 or x.numel() == 1:
        return Picture(text=f"{float(x):.4g}")
    if x.dim() == 1:
        return Picture(line=_line(x))
    while x.dim() > 3:
        x = x[0]
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        x = (x - low) / max(high - low, 1e-12)
    return Picture(image=_png(x))


def _png(x: Tensor) -> str:
    from PIL import Image

    if x.dim() == 3:
        x = x[0] if x.shape[0] == 1 else x.movedim(0, 2) if x.shape[0] == 3 else x.mean(0)
    image = Image.fromarray((x.numpy() * 255).round().astype(np.uint8))
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _line(x: Tensor) -> str:
    low, high = float(x.min()), float(x.max())
    up = 95 - 90 * (x - low) / max(high - low, 1e-12)
    if len(up) > POINTS:
        groups = up[: len(up) // (POINTS // 2) * (POINTS // 2)].reshape(POINTS // 2, -1)
        up = torch.stack([groups.min(1).values, groups.max(1).values], 1).flatten()
    along = torch.linspace(2, 198, len(up))
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(along.tolist(), up.tolist(), strict=True))
