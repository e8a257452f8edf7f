"""Augmentation of whole batches, by kornia."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parspike.errors import MissingExtraError, OptionError
from parspike.train.data import check_channels
from parspike.train.recipe import Augment

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Augmentation"]

# kornia draws one sub-policy of AutoAugment for each call, and images of one batch should not all share it.
PER_POLICY = 8


class Augmentation(nn.Module):
    """Batches of images (B, C, H, W) in [0, 1] → the same shape, or `resized_crop` squared.

    All chance comes from torch's global generator, which the loop seeds for every step.
    """

    def __init__(self, steps: Augment, mean: tuple[float, ...]) -> None:
        super().__init__()
        self.steps, self.mean = steps, mean
        self.layers: list[Any] = []

    def build(self, side: tuple[int, int]) -> list[Any]:
        """kornia's layers for images of this height and width; imported only if the recipe asks for augmentation."""
        if self.steps == Augment():
            return []
        try:
            import kornia.augmentation as K
            from kornia.augmentation.auto import AutoAugment
        except ImportError as error:
            raise MissingExtraError("kornia", extra="train") from error
        steps, layers = self.steps, []
        if steps.resized_crop:
            layers.append(K.RandomResizedCrop((steps.resized_crop, steps.resized_crop), scale=(0.08, 1.0)))
            side = (steps.resized_crop, steps.resized_crop)
        if steps.crop_padding:
            layers.append(K.RandomCrop(side, padding=steps.crop_padding))
        if steps.flip:
            layers.append(K.RandomHorizontalFlip())
        if steps.jitter:
            layers.append(K.ColorJitter(steps.jitter, steps.jitter, steps.jitter, 0.0, p=1.0))
        if steps.policy:
            layers.append(_InParts(AutoAugment(steps.policy)))
        if steps.cutout:
            layers.append(_Cutout(steps.cutout, self.mean))
        return layers

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        if not self.layers and self.steps != Augment():
            check_channels(x, "mean", self.mean)  # with which cutout fills
            coloured = [f"augment.{name}" for name in ("policy", "jitter") if getattr(self.steps, name)]
            if coloured and x.shape[1] != 3:
                raise OptionError(
                    f"{' and '.join(coloured)} of the recipe change colours, which these images of {x.shape[1]} "
                    "channel(s) do not have: leave it out"
                )
            self.layers = self.build((x.shape[2], x.shape[3]))
        for layer in self.layers:
            x = layer(x)
        return x


class _InParts(nn.Module):
    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.policy(part) for part in x.split(PER_POLICY)]).clamp(0, 1)


class _Cutout(nn.Module):
    """One square an image, centred anywhere, so that it may reach over the edge (DeVries and Taylor 2017).

    kornia's RandomErasing keeps the square inside the image and cannot take the mean colour.
    """

    def __init__(self, side: int, mean: tuple[float, ...]) -> None:
        super().__init__()
        self.side, self.mean = side, mean

    def forward(self, x: Tensor) -> Tensor:
        hidden = []
        for dim in (2, 3):
            centre = torch.randint(x.shape[dim], (len(x), 1), device=x.device)
            start = centre - self.side // 2
            place = torch.arange(x.shape[dim], device=x.device)
            hidden.append((place >= start) & (place < start + self.side))
        mask = (hidden[0][:, :, None] & hidden[1][:, None, :])[:, None]
        return torch.where(mask, torch.tensor(self.mean, device=x.device).view(-1, 1, 1), x)
