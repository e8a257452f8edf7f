"""Training data that are too large to be decoded beforehand: read when a step needs them, by several threads.

Any image can be asked for by its number, so a resumed run finds its place without reading what came before, and
each of several processes reads its own share and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.broken import decoded
from parspike.errors import InputError, OptionError
from parspike.train.data import check_pixels

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

__all__ = ["Decoder", "OnDemand", "Source"]

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Range of area and aspect ratio of a random resized crop, as usual in training on ImageNet."""


class Source(Protocol):
    """Where images come from."""

    @property
    def names(self) -> Sequence[str]:
        """One an image, for messages."""
        ...

    @property
    def labels(self) -> Sequence[int] | None:
        """One an image."""
        ...

    def read(self, index: int, preprocess: Any) -> Tensor:
        """One image, (C, H, W) in [0, 1] after `preprocess`."""
        ...


@dataclass
class Decoder:
    """Decodes images in threads, and crops them by chance.

    resized_crop: side of a random resized crop; 0: none, all images of one size. skip_broken: leave out images that
    cannot be decoded, by name in `broken`, instead of stopping.
    """

    resized_crop: int = 0
    skip_broken: bool = False
    threads: int = 8
    broken: list[str] = field(default_factory=list)
    pool: ThreadPoolExecutor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.threads, int) or self.threads < 1:
            raise OptionError(f"threads is {self.threads!r}: give how many decode at once, at least 1")
        self.pool = ThreadPoolExecutor(self.threads)

    def __call__(
        self, names: Sequence[str], reads: Sequence[Callable[[], Tensor]], seeds: Sequence[int] | None
    ) -> tuple[Float[Tensor, "B C H W"], list[int]]:
        """The images that could be decoded, and their places in `names`. seeds: of the crops; None: no crops."""
        tasks = zip(names, reads, seeds or [None] * len(names), strict=True)
        images = list(self.pool.map(lambda task: self._one(*task), tasks))
        good = [place for place, image in enumerate(images) if image is not None]
        if not good:
            raise InputError(f"none of {len(names)} images could be decoded, the first is {names[0]}")
        kept = [image for image in images if image is not None]
        for place, image in zip(good, kept, strict=True):
            if image.shape != kept[0].shape:
                raise InputError(
                    f"{names[place]} is {tuple(image.shape)} but {names[good[0]]} is {tuple(kept[0].shape)}: give "
                    "data.size and data.crop in the recipe, or augment.resized_crop"
                )
        return torch.stack(kept), good

    def filled(
        self, names: Sequence[str], reads: Sequence[Callable[[], Tensor]], seeds: Sequence[int]
    ) -> tuple[Float[Tensor, "B C H W"], list[int]]:
        """The same for training, where other images of the batch replace broken ones, so that every step has its full
        batch."""
        images, good = self(names, reads, seeds)
        places = [place % len(good) for place in range(len(names))]
        return images[places], [good[place] for place in places]

    def _one(self, name: str, read: Callable[[], Tensor], seed: int | None) -> Tensor | None:
        image = decoded(name, read, self.skip_broken, self.broken)
        if image is not None:
            check_pixels(image, image.shape, f"those of {name}")
        if image is None or seed is None or not self.resized_crop:
            return image
        # One generator for each image, since threads finish in any order.
        generator = torch.Generator().manual_seed(seed)
        top, left, height, width = _box(image.shape[1], image.shape[2], generator)
        cut = image[None, :, top : top + height, left : left + width]
        side = (self.resized_crop, self.resized_crop)
        return F.interpolate(cut, side, mode="bilinear", antialias=True)[0].clamp_(0, 1)


@dataclass(frozen=True)
class OnDemand:
    """The images of a source, decoded when asked for. decoder: how; crops are those of `take`, not of `plain`."""

    source: Source
    preprocess: Any
    decoder: Decoder = field(default_factory=Decoder)
    labels: Int64[Tensor, "N"] = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if self.source.labels is None:
            raise InputError("the images have no labels: put them into one folder a class")
        labels = [int(label) for label in self.source.labels]
        object.__setattr__(self, "labels", torch.tensor(labels))
        about = json.dumps([list(self.source.names), labels, str(self.preprocess)])
        object.__setattr__(self, "digest", hashlib.sha256(about.encode()).hexdigest())

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor, seed: int) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """These rows, cropped by chance; the same rows and seed give the same pixels."""
        seeds = [seed * 1_000_003 + row for row in rows.tolist()]
        images, places = self.decoder.filled(*self._reads(rows), seeds)
        return images, self.labels[rows[places]]

    def plain(self, rows: Tensor) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """These rows, without chance; fewer if some cannot be decoded."""
        images, places = self.decoder(*self._reads(rows), None)
        return images, self.labels[rows[places]]

    def _reads(self, rows: Tensor) -> tuple[list[str], list[Callable[[], Tensor]]]:
        names = [str(self.source.names[row]) for row in rows.tolist()]
        return names, [partial(self.source.read, row, self.preprocess) for row in rows.tolist()]


def _box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """top, left, height, width of a random resized crop; the whole image after ten attempts that don't fit."""
    for _ in range(10):
        chance = torch.rand(4, generator=generator).tolist()
        area = height * width * (AREA[0] + chance[0] * (AREA[1] - AREA[0]))
        low, high = math.log(RATIO[0]), math.log(RATIO[1])
        ratio = math.exp(low + chance[1] * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(chance[2] * (height - h + 1)), int(chance[3] * (width - w + 1)), h, w
    return 0, 0, height, width
