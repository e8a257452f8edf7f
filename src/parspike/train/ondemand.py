"""Training data that are too large to be decoded beforehand: read when a step needs them, by several threads.

Any image can be asked for by its number, so a resumed run finds its place without reading what came before, and
each of several processes reads its own share and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.errors import InputError, MissingExtraError, OptionError

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

__all__ = ["Hub", "OnDemand", "Source"]

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of a random resized crop, as everybody trains on ImageNet."""


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


@dataclass(frozen=True)
class OnDemand:
    """The images of a source, decoded when asked for.

    resized_crop: side of a random resized crop (of `take`, not of `plain`); 0: none, all images of one size.
    """

    source: Source
    preprocess: Any
    resized_crop: int = 0
    threads: int = 8
    labels: Int64[Tensor, "N"] = field(init=False)
    digest: str = field(init=False)
    pool: ThreadPoolExecutor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.source.labels is None:
            raise InputError("the images have no labels: put them into one folder a class")
        labels = [int(label) for label in self.source.labels]
        object.__setattr__(self, "labels", torch.tensor(labels))
        about = json.dumps([list(self.source.names), labels, str(self.preprocess)])
        object.__setattr__(self, "digest", hashlib.sha256(about.encode()).hexdigest())
        object.__setattr__(self, "pool", ThreadPoolExecutor(self.threads))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor, seed: int) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """These rows, cropped by chance; the same rows and seed give the same pixels."""
        images = self.pool.map(lambda row: self._read(int(row), seed), rows.tolist())
        return self._stack(list(images), rows), self.labels[rows]

    def plain(self, rows: Tensor) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """These rows, without chance."""
        return self._stack(list(self.pool.map(self._decode, rows.tolist())), rows), self.labels[rows]

    def _decode(self, row: int) -> Tensor:
        try:
            return self.source.read(row, self.preprocess)
        except InputError:
            raise
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise InputError(f"{self.source.names[row]}: cannot be decoded ({error})") from error

    def _read(self, row: int, seed: int) -> Tensor:
        image = self._decode(row)
        if not self.resized_crop:
            return image
        # A generator of its own, since threads finish in any order.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + row)
        top, left, height, width = _box(image.shape[1], image.shape[2], generator)
        cut = image[None, :, top : top + height, left : left + width]
        side = (self.resized_crop, self.resized_crop)
        return F.interpolate(cut, side, mode="bilinear", antialias=True)[0].clamp_(0, 1)

    def _stack(self, images: list[Tensor], rows: Tensor) -> Tensor:
        for image, row in zip(images, rows.tolist(), strict=True):
            if image.shape != images[0].shape:
                names = self.source.names
                raise InputError(
                    f"{names[row]} is {tuple(image.shape)} but {names[int(rows[0])]} is {tuple(images[0].shape)}: give "
                    "data.size and data.crop in the recipe, or augment.resized_crop"
                )
        return torch.stack(images)


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


class Hub:
    """A data set of Hugging Face `datasets`: NAME, NAME:CONFIG or a .parquet file, and @SPLIT where it is another.

    Rows lie memory-mapped on the disk and are decoded one at a time. The columns are found by their types: the first
    of images, and the first of class labels (else one called label, labels, fine_label or y).
    """

    def __init__(self, name: str, split: str) -> None:
        try:
            import datasets
        except ImportError as error:
            raise MissingExtraError("datasets", extra="train") from error
        name, _, other = name.partition("@")
        split = other or split
        try:
            if name.endswith(".parquet"):
                rows: Any = datasets.load_dataset("parquet", data_files={split: name}, split=split)
            else:
                path, _, config = name.partition(":")
                rows = datasets.load_dataset(path, config or None, split=split)
        except (OSError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise OptionError(f"hf:{name}, split {split}: {type(error).__name__}: {reason}") from error
        kinds = {column: type(feature).__name__ for column, feature in rows.features.items()}
        self.image = next((c for c, kind in kinds.items() if kind == "Image"), None)
        label = next((c for c, kind in kinds.items() if kind == "ClassLabel"), None)
        label = label or next((c for c in ("label", "labels", "fine_label", "y") if c in kinds), None)
        if self.image is None:
            raise InputError(f"hf:{name} has no column of images; it has {kinds}")
        self.rows = rows
        self.labels: Sequence[int] | None = None if label is None else [int(v) for v in rows.with_format(None)[label]]
        self.names: Sequence[str] = [f"hf:{name} {split}[{i}]" for i in range(len(rows))]

    def read(self, index: int, preprocess: Any) -> Tensor:
        """One image, (C, H, W) in [0, 1] after `preprocess`."""
        return preprocess(self.rows[index][self.image].convert("RGB"))
