"""Data sets of Hugging Face `datasets`: fetched once and kept (`Hub`), or read while they arrive (`HubStream`)."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from parspike.broken import in_colour
from parspike.errors import InputError, MissingExtraError, OptionError
from parspike.train.ondemand import Decoder

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

__all__ = ["Hub", "HubStream"]

BUFFER = 1000
"""Images that wait undecoded in a stream's shuffle."""


def _open(name: str, split: str, streaming: bool) -> tuple[Any, str, str]:
    """Rows of NAME, NAME:CONFIG or .parquet files, of @SPLIT where it is another; their columns of images and labels.

    The columns are found by their types: the first of images, and the first of class labels (else one called label,
    labels, fine_label or y; "" if there is none).
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", extra="train") from error
    name, _, other = name.partition("@")
    split = other or split
    try:
        if name.endswith(".parquet"):
            rows: Any = datasets.load_dataset("parquet", data_files={split: name}, split=split, streaming=streaming)
        else:
            path, _, config = name.partition(":")
            rows = datasets.load_dataset(path, config or None, split=split, streaming=streaming)
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OptionError(f"hf:{name}, split {split}: {type(error).__name__}: {reason}") from error
    features = rows.features or {}
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    image = next((c for c, kind in kinds.items() if kind == "Image"), None)
    if image is None:
        raise InputError(f"hf:{name} has no column of images; it has {kinds}")
    label = next((c for c, kind in kinds.items() if kind == "ClassLabel"), None)
    label = label or next((c for c in ("label", "labels", "fine_label", "y") if c in kinds), "")
    if label and getattr(features[label], "dtype", "").rstrip("0123456789") not in ("int", "uint"):
        raise InputError(f"hf:{name}: column '{label}' holds {features[label]}; expected whole numbers, the classes")
    return rows, image, label


class Hub:
    """NAME, NAME:CONFIG or a .parquet file (also a pattern of several), and @SPLIT where it is another.

    Rows lie memory-mapped on the disk and are decoded one at a time.
    """

    def __init__(self, name: str, split: str) -> None:
        self.rows, self.image, label = _open(name, split, streaming=False)
        self.labels: Sequence[int] | None = [int(v) for v in self.rows.with_format(None)[label]] if label else None
        self.names: Sequence[str] = [f"hf:{name} {split}[{i}]" for i in range(len(self.rows))]

    def read(self, index: int, preprocess: Any) -> Tensor:
        """One image, (C, H, W) in [0, 1] after `preprocess`."""
        return preprocess(in_colour(self.rows[index][self.image]))


class HubStream:
    """Training images that are read from first to last in each epoch, and never kept.

    Each process reads its own share: its own files where their number can be divided by that of the processes, else
    every n-th image of all. Files are shuffled, and images within a buffer of 1,000, by seed and epoch. A resumed run
    reads over what came before in its epoch, and goes on with the same images.
    """

    def __init__(self, name: str, split: str, classes: int, preprocess: Any, decoder: Decoder) -> None:
        self.name, self.classes, self.preprocess, self.decoder = f"hf:{name}", classes, preprocess, decoder
        import datasets

        rows, self.image, self.label = _open(name, split, streaming=True)
        if not self.label:
            raise InputError(f"{self.name} has no column of labels")
        self.count = _count(rows, name, split)
        undecoded = rows.cast_column(self.image, datasets.Image(decode=False))
        self.rows = undecoded.select_columns([self.image, self.label])
        about = json.dumps([name, split, self.count, rows.num_shards, str(preprocess)])
        self.digest = hashlib.sha256(about.encode()).hexdigest()
        self.place: tuple[Any, ...] = ()
        self.rest: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return self.count

    def take(
        self, size: int, after: int, seed: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, "B"]]:
        """The `size` images that follow the first `after` of process `rank`'s share; `seed` orders the epoch."""
        if self.place != (after, seed, rank, world):
            self.rest = self._share(seed, rank, world)
            for _ in range(after):
                next(self.rest)
        rows = [next(self.rest) for _ in range(size)]
        self.place = (after + size, seed, rank, world)
        labels = torch.tensor([row[self.label] for row in rows])
        if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise InputError(
                f"{self.name}: labels run from {int(labels.min())} to {int(labels.max())}, but the recipe has "
                f"classes = {self.classes} (0 … n−1)"
            )
        names = [row[self.image].get("path") or f"{self.name}[{after + i}]" for i, row in enumerate(rows)]
        reads = [partial(self._decode, row[self.image]) for row in rows]
        seeds = [seed * 1_000_003 + (after + i) * world + rank for i in range(size)]
        images, places = self.decoder.filled(names, reads, seeds)
        return images, labels[places]

    def _share(self, seed: int, rank: int, world: int) -> Iterator[Any]:
        """Starts again from the beginning when the share is shorter than the epoch, since files differ in length."""
        from datasets.distributed import split_dataset_by_node

        share = split_dataset_by_node(self.rows.shuffle(seed=seed % 2**32, buffer_size=BUFFER), rank, world)
        while True:
            row = None
            for row in share:
                yield row
            if row is None:
                raise InputError(f"{self.name} has no images for process {rank} of {world}")

    def _decode(self, image: dict[str, Any]) -> Tensor:
        from PIL import Image

        data = image["bytes"]
        with Image.open(io.BytesIO(data) if data is not None else image["path"]) as opened:
            return self.preprocess(in_colour(opened))


def _count(rows: Any, name: str, split: str) -> int:
    """The number of images, as the data set states it, or as its files on this disk do."""
    name, _, other = name.partition("@")
    split = other or split
    stated = (rows.info.splits or {}).get(split)
    if stated is not None and stated.num_examples:
        return stated.num_examples
    files = sorted(Path().glob(name) if not Path(name).is_absolute() else Path("/").glob(name.lstrip("/")))
    if name.endswith(".parquet") and files:
        from pyarrow.parquet import ParquetFile

        return sum(ParquetFile(file).metadata.num_rows for file in files)
    raise OptionError(f"hf:{name} does not say how many images it has, which a stream has to know: use --on-demand")
