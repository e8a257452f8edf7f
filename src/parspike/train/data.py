"""Training data: decoded once into a memory-mapped file, then any order costs nothing.

A `Source` gives images as the network's library decodes them; `decode` writes them as uint8 beside their labels.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from parspike.errors import FileError, InputError, OptionError
from parspike.whole import made_whole, told, write_whole

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, UInt8

__all__ = ["Arrays", "Examples", "check_channels", "check_labels", "check_pixels", "decode", "normalised"]

PIXEL = 1 / 510
"""Half of the step between two pixel values, which rounding may add."""

Batch = tuple[Tensor, "Tensor | None"]


class Examples(Protocol):
    """Images and labels by number, which the training loop reads: `Arrays` (decoded beforehand) or `OnDemand`."""

    @property
    def labels(self) -> Int64[Tensor, "N"]:
        """The class of each image."""
        ...

    @property
    def digest(self) -> str:
        """A hash of the data: resuming with other data is refused."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def take(self, rows: Tensor, seed: int) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """Images and labels of these rows for training, in [0, 1]; random crops depend on the seed alone."""
        ...

    def plain(self, rows: Tensor) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """Images and labels of these rows for scoring, without random crops."""
        ...


@dataclass(frozen=True)
class Arrays:
    """Images (N, C, H, W) uint8 and their labels (N,) int64; `digest` identifies both."""

    images: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, "N"]
    digest: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8 or len(self.images) != len(self.labels):
            raise InputError(
                f"expected images (N, C, H, W) uint8 and as many labels, got {tuple(self.images.shape)} "
                f"{self.images.dtype} and {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> Arrays:
        """From tensors in memory."""
        digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        return cls(images, labels, digest)

    def take(self, rows: Tensor, seed: int = 0) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """These rows, as floats in [0, 1]; nothing here depends on the seed."""
        return self.images[rows].float().div_(255), self.labels[rows]

    def plain(self, rows: Tensor) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """These rows, as floats in [0, 1]."""
        return self.take(rows)


def check_channels(x: Tensor, name: str, values: Sequence[float]) -> None:
    """Raise `OptionError` unless there is one value for all channels of images (B, C, H, W), or one for each. name: of
    the recipe's entry in [data]."""
    if len(values) not in (1, x.shape[1]):
        raise OptionError(
            f"data.{name} of the recipe has {len(values)} values but the images have {x.shape[1]} channel(s): give one "
            "value, or one a channel"
        )


def normalised(x: Float[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "B C H W"]:
    """(x − mean) / std by channel. Raises `OptionError` where there are several values and not one a channel."""
    check_channels(x, "mean", mean)
    check_channels(x, "std", std)
    shift, scale = (torch.tensor(values, device=x.device).view(-1, 1, 1) for values in (mean, std))
    return (x - shift) / scale


def check_labels(labels: Int64[Tensor, "N"], classes: int) -> None:
    """Raise `InputError` for labels from which a classifier of so many classes cannot learn."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(f"the labels run from {low} to {high}, but the recipe has classes = {classes} (0 … n−1)")
    if low == high:
        raise InputError(
            f"all {len(labels)} images are of one class ({low}): there is nothing to learn; "
            "images lie in train/CLASS/ and test/CLASS/, or in CLASS/"
        )


def check_pixels(pixels: Tensor, shape: Sequence[int], name: str) -> None:
    """Raise `InputError` unless these are pixels of images (C, H, W), from 0 to 1. shape: of one image. name: theirs,
    for the message."""
    if len(shape) != 3:
        raise InputError(
            f"training takes images (C, H, W), and {name} have the shape {tuple(shape)}: give image files, or uint8 "
            "arrays (N, H, W) or (N, H, W, 3)"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not -PIXEL <= low <= high <= 1 + PIXEL:
        raise InputError(
            f"training takes pixels from 0 to 1, and {name} hold values from {low:.3g} to {high:.3g}, which would be "
            "cut: give uint8 images, or floats divided by 255; data.mean and data.std of the recipe normalise them"
        )


def decode(
    batches: Iterable[Batch],
    count: int,
    cache: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Arrays:
    """The images of a source, decoded once.

    batches: (x, y) with x (B, C, H, W) in [0, 1] and labels y; every image of one shape. count: images expected
    (fewer is fine). cache: a path; PATH.images, PATH.labels.npy and PATH.json are written, and read
    instead of decoding when they exist. None: in memory.
    """
    if cache is None:
        images, labels, digest = _decoded(batches, count, lambda shape: np.empty(shape, np.uint8), progress)
        return Arrays(torch.from_numpy(images), labels, digest)
    if _beside(cache, "json").is_file():
        return _cached(cache)
    place = _beside(cache, "images")
    with told(place):
        cache.parent.mkdir(parents=True, exist_ok=True)
    with made_whole(place) as temporary:
        images, labels, digest = _decoded(batches, count, lambda shape: _mapped(temporary, place, shape), progress)
        with told(place):
            images.base.flush()
        shape = images.shape
        del images
    stream = io.BytesIO()
    np.save(stream, labels.numpy())
    write_whole(_beside(cache, "labels.npy"), [stream.getbuffer()])
    # Written last, since its presence says that decoding was completed.
    write_whole(_beside(cache, "json"), [json.dumps({"shape": list(shape), "sha256": digest}).encode()])
    return _cached(cache)


def _decoded(
    batches: Iterable[Batch],
    count: int,
    room: Callable[[tuple[int, ...]], Any],
    progress: Callable[[str, int, int], None],
) -> tuple[Any, Tensor, str]:
    """Images, labels, and the hash of both. room: makes the array that images of a shape (N, C, H, W) go into."""
    labels: list[Tensor] = []
    images: Any = None
    done = 0
    digest = hashlib.sha256()
    for x, y in batches:
        if y is None:
            raise InputError("the images have no labels: put them into one folder a class")
        check_pixels(x, x.shape[1:], "the images")
        pixels = x.mul(255).round_().clamp_(0, 255).to(torch.uint8).numpy()
        if images is None:
            images = room((count, *pixels.shape[1:]))
        elif pixels.shape[1:] != images.shape[1:]:
            raise InputError(f"images of unlike size: {pixels.shape[1:]} and {images.shape[1:]}; give size and crop")
        images[done : done + len(pixels)] = pixels
        digest.update(pixels.tobytes())
        labels.append(y)
        done += len(pixels)
        progress("decoding", done, count)
    if images is None:
        raise InputError("there are no images")
    every = torch.cat(labels)
    digest.update(every.numpy().tobytes())
    return images[:done], every, digest.hexdigest()


def _beside(cache: Path, suffix: str) -> Path:
    # Not Path.with_suffix, which would cut a name with a dot in it.
    return cache.parent / f"{cache.name}.{suffix}"


def _mapped(temporary: Path, place: Path, shape: tuple[int, ...]) -> Any:
    """An array in the file `temporary`, which will be `place`."""
    with told(place), temporary.open("r+b") as stream:
        size = math.prod(shape)
        if hasattr(os, "posix_fallocate"):
            # A full disk is an error here; when pages of a mapped file find no room, the process is killed.
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)
        return np.memmap(stream, np.uint8, "r+", shape=shape)


def _cached(cache: Path) -> Arrays:
    try:
        about = json.loads(_beside(cache, "json").read_text())
        # Copy on write, because torch has no read-only tensors.
        images = np.memmap(_beside(cache, "images"), np.uint8, "c", shape=tuple(about["shape"]))
        labels = np.load(_beside(cache, "labels.npy"), allow_pickle=False)
        return Arrays(torch.from_numpy(images), torch.from_numpy(labels), about["sha256"])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise FileError(
            f"{cache}.json: what was decoded before cannot be read ({str(error)[:200]}): delete {cache}.*, and it is "
            "decoded again"
        ) from error
