"""`--data` → batches of images: folders, `.zip`, `.npz`, and the built-in `digits` and `photos`.

    text ──open_images──► Images ──iterate──► (x, y) batches: x (B, C, H, W) float32, y (B,) int64 or None

A source knows names, labels and how to read one item; `Images` chooses items, preprocesses and stacks them.
Files are decoded one batch at a time. torch is imported where a tensor is made, so that a wrong option is said at once.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from parspike.broken import BROKEN, decoded
from parspike.errors import FileError, InputError, MissingExtraError, OptionError, ParspikeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Images", "Preprocessing", "check_data", "open_images"]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SPLITS = ("train", "test", "val")
NPZ = "images and labels, x and y, or train_images, train_labels, test_images, test_labels"
"""The keys of an .npz; labels may be missing."""
LOOK = 1000
"""Images that are looked at to say how many are broken."""
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network sees it, in this order.

    channels (1 grey, 3 colour; None: files as colour, arrays as they are) → short side to `size` →
    centre `crop` → values to [0, 1] → (x − mean) / std.

    >>> Preprocessing(size=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).crop
    224
    """

    size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: str = "bilinear"
    channels: int | None = None

    def __post_init__(self) -> None:
        for name in ("size", "crop"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"--{name} {value}: give a number of pixels, at least 1")
        if not all(s > 0 for s in self.std):
            raise OptionError(f"--std {self.std}: every value must be above 0")
        if self.channels not in (None, 1, 3):
            raise OptionError(f"images have 1 or 3 channels, not {self.channels}")
        if self.interpolation not in FILTERS:
            raise OptionError(f"interpolation {self.interpolation!r}: choose one of {', '.join(FILTERS)}")

    def __str__(self) -> str:
        colour = {None: [], 1: ["grey"], 3: ["colour"]}[self.channels]
        size = [f"short side {self.size} ({self.interpolation})"] if self.size else []
        crop = [f"centre {self.crop}"] if self.crop else []
        norm = [] if (self.mean, self.std) == ((0.0,), (1.0,)) else [f"mean {self.mean}", f"std {self.std}"]
        return ", ".join([*colour, *size, *crop, "x/255", *norm])

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_json`.

        >>> p = Preprocessing(size=40, mean=(0.5,))
        >>> Preprocessing.from_json(p.to_json()) == p
        True
        """
        as_made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        try:
            return cls(**as_made)
        except TypeError as error:
            raise OptionError(f"the preprocessing {fields} cannot be understood: {error}") from error

    def __call__(self, image: np.ndarray | Image.Image) -> Tensor:
        """One image, (H, W[, C]) uint8, → (C, H, W) float32."""
        import torch

        pil = image if isinstance(image, Image.Image) else Image.fromarray(image)
        if self.channels is not None:
            pil = pil.convert({1: "L", 3: "RGB"}[self.channels])
        if self.size is not None:
            pil = pil.resize(_short_side(pil.size, self.size), FILTERS[self.interpolation])
        if self.crop is not None:
            pil = pil.crop(_centre(pil.size, self.crop))
        pixels = np.asarray(pil, dtype=np.float32)
        x = torch.from_numpy(pixels / np.float32(255))
        x = x.unsqueeze(0) if x.ndim == 2 else x.permute(2, 0, 1).contiguous()
        return self.normalise(x)

    def normalise(self, x: Tensor) -> Tensor:
        """(x − mean) / std along the channels, the first axis of x."""
        import torch

        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, x.shape[0]):
                raise InputError(
                    f"--{name} has {len(values)} values but the images have {x.shape[0]} channel(s): "
                    "give one value, or one a channel"
                )
        shape = (-1,) + (1,) * (x.ndim - 1)
        return (x - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)


class Source(Protocol):
    """Where images come from."""

    names: Sequence[str]  # one an item, for messages
    labels: Sequence[int] | None

    def read(self, index: int, preprocess: Preprocessing) -> Tensor:
        """One item as the network takes it; BROKEN if the file is damaged."""
        ...


@dataclass
class ArraySource:
    """Images of an array, (N, H, W[, C]) uint8, or one network input a row if float."""

    images: Sequence[np.ndarray] | np.ndarray
    labels: Sequence[int] | None
    names: Sequence[str]

    def read(self, index: int, preprocess: Preprocessing) -> Tensor:
        import torch

        image = np.asarray(self.images[index])
        if image.dtype == np.uint8:
            return preprocess(image)
        if preprocess.size or preprocess.crop:
            raise InputError(
                f"{self.names[index]}: float arrays are taken as ready network inputs; "
                "--size and --crop need uint8 images"
            )
        return preprocess.normalise(torch.from_numpy(image.astype(np.float32)))


@dataclass
class FileSource:
    """Image files in a folder, or members of a zip; `labels` from the folder of each.

    ordered: number of class folders, if their numbers are their places in the sorted order; else 0.
    """

    root: Path
    names: Sequence[str]
    labels: Sequence[int] | None
    archive: zipfile.ZipFile | None = None
    ordered: int = 0

    def read(self, index: int, preprocess: Preprocessing) -> Tensor:
        name = self.names[index]
        data = self.archive.read(name) if self.archive else (self.root / name).read_bytes()
        if not data:
            raise EOFError("the file is empty")
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return preprocess(image.convert("RGB"))


@dataclass
class Images:
    """Batches (x, y) of preprocessed images; iterate as often as you like, the order is always the same.

    x is (B, C, H, W) float32 and y (B,) int64, or None where the source has no labels. `broken` names the
    files that were left out because they could not be decoded (only with `skip_broken`).
    """

    source: Source
    preprocess: Preprocessing = field(default_factory=Preprocessing)
    batch_size: int = 64
    limit: int | None = None
    shuffle: bool = False
    seed: int = 0
    skip_broken: bool = False
    broken: list[str] = field(default_factory=list, init=False)
    _first: tuple[torch.Size, str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise OptionError(f"--batch-size {self.batch_size}: at least 1")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"{self.limit} images asked for: at least 1")
        # A seeded choice: the first N of a folder in class order would be a single class.
        order = np.random.default_rng(self.seed).permutation(len(self.source.names))[: self.limit]
        self._order = [int(i) for i in (order if self.shuffle else np.sort(order))]

    def __len__(self) -> int:
        """Number of images that an iteration visits."""
        return len(self._order)

    @property
    def labelled(self) -> bool:
        """Whether the source knows the class of each image."""
        return self.source.labels is not None

    @property
    def names(self) -> list[str]:
        """The images' names, in the order of iteration."""
        return [self.source.names[i] for i in self._order]

    @property
    def layout(self) -> str:
        """What a refused shape may come from: floats with the channels last, as images of uint8 have them. Else ""."""
        images = getattr(self.source, "images", None)
        if not isinstance(images, np.ndarray) or images.dtype == np.uint8 or images.ndim != 4:
            return ""
        if images.shape[3] not in (1, 3) or images.shape[1] in (1, 3):
            return ""
        return (
            f"float images are (N, C, H, W), and these, {images.shape}, look like (N, H, W, C): "
            "save images.transpose(0, 3, 1, 2)"
        )

    def first(self) -> Tensor:
        """The first readable image, (C, H, W)."""
        return next(iter(replace(self, batch_size=1)))[0][0]

    def batches(self) -> Iterable[tuple[Tensor, Tensor | None]]:
        """The batches; a sequence of them, each read alone, unless the ends of one depend on broken images before."""
        return _Batches(self) if self.skip_broken else _Numbered(self)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        read = 0
        for x, y in self._read(self._order):
            read += len(x)
            yield x, y
        if not read:
            raise InputError(f"none of {len(self)} images could be decoded, the first is {self.names[0]}")

    def _count_broken(self, index: int) -> str:
        """How many images cannot be decoded: of all, or of so many from `index` on as take a few seconds."""
        few = len(self._order) <= LOOK
        looked, number = self._order if few else self._order[self._order.index(index) :][:LOOK], 0
        for other in looked:
            try:
                self.source.read(other, self.preprocess)
            except InputError:
                continue  # it does not fit, which is another matter
            except BROKEN:
                number += 1
        of = f"the {len(looked)} images" if few else f"{len(looked)} images from there on"
        return f"; {number} of {of} cannot be decoded, parspike data check names them"

    def _read(self, order: Sequence[int]) -> Iterator[tuple[Tensor, Tensor | None]]:
        import torch

        labels = self.source.labels
        xs: list[Tensor] = []
        ys: list[int] = []
        for index in order:
            name = self.source.names[index]
            read = partial(self.source.read, index, self.preprocess)
            x = decoded(name, read, self.skip_broken, self.broken, partial(self._count_broken, index))
            if x is None:
                continue
            self._first = self._first or (x.shape, name)
            shape, shaped_by = self._first
            if x.shape != shape:
                raise InputError(
                    f"{name} is {_times(x.shape)} but {shaped_by} is {_times(shape)}: "
                    "give --size and --crop (a recipe: data.size, data.crop), so that all images have one shape"
                )
            xs.append(x)
            if labels is not None:
                ys.append(int(labels[index]))
            if len(xs) == self.batch_size:
                yield torch.stack(xs), torch.tensor(ys) if labels is not None else None
                xs, ys = [], []
        if xs:
            yield torch.stack(xs), torch.tensor(ys) if labels is not None else None


@dataclass(frozen=True)
class _Batches:
    images: Images

    def __len__(self) -> int:
        return -(-len(self.images) // self.images.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return iter(self.images)


class _Numbered(_Batches, Sequence[Any]):
    def __getitem__(self, number: Any) -> Any:
        start = range(0, len(self.images), self.images.batch_size)[number]
        return next(self.images._read(self.images._order[start : start + self.images.batch_size]))


def open_images(
    data: str,
    preprocess: Preprocessing | None = None,
    *,
    split: str | None = None,
    prefer: str | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    skip_broken: bool = False,
) -> Images:
    """The images that `data` names: a folder, a `.zip`, an `.npz`, `digits` or `photos`.

    `split` must exist; `prefer` is the split that is taken if nothing is asked and the data have it.

    >>> images = open_images("digits", split="test", batch_size=100)
    >>> x, y = next(iter(images))
    >>> len(images), tuple(x.shape), y[:5].tolist()
    (360, (100, 1, 8, 8), [0, 5, 0, 5, 0])
    """
    check_data(data, split)
    return Images(
        _source(data, split, prefer),
        preprocess or Preprocessing(),
        batch_size=batch_size,
        limit=limit,
        shuffle=shuffle,
        seed=seed,
        skip_broken=skip_broken,
    )


def check_data(data: str, split: str | None = None) -> None:
    """Refuse data that are not there, before anything is loaded. Whether they can be read shows when they are."""
    if split is not None and split not in SPLITS:
        raise OptionError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    path = Path(data)
    if data in BUILT_IN or path.is_dir():
        return
    if not path.exists():
        raise FileError(f"--data {data}: no such file or folder (built in are: {', '.join(BUILT_IN)})")
    if path.suffix not in (".npz", ".zip"):
        raise OptionError(f"--data {data}: expected a folder, .zip, .npz, or one of {', '.join(BUILT_IN)}")


def _source(data: str, split: str | None, prefer: str | None) -> Source:
    if data in BUILT_IN:
        return BUILT_IN[data](split, prefer)
    path = Path(data)
    if path.is_dir():
        files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        return _files(path, files, None, split, prefer)
    if path.suffix == ".npz":
        return _npz(path, split, prefer)
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise FileError(f"{path}: not a readable zip ({error})") from error
    return _files(path, sorted(n for n in archive.namelist() if not n.endswith("/")), archive, split, prefer)


def _files(
    root: Path, files: Sequence[str], archive: zipfile.ZipFile | None, split: str | None, prefer: str | None
) -> FileSource:
    """[SPLIT/]CLASS/IMAGE; images without a class folder have no label."""
    images = [PurePosixPath(f) for f in files if PurePosixPath(f).suffix.lower() in SUFFIXES]
    images = [p for p in images if not any(part.startswith((".", "__MACOSX")) for part in p.parts)]
    if not images:
        raise InputError(f"{root}: no images in it (looked for {', '.join(sorted(SUFFIXES))})")
    depth = 0
    # A zip of a folder usually holds that folder.
    if archive and len({p.parts[0] for p in images}) == 1 and all(len(p.parts) > 2 for p in images):
        depth = 0 if images[0].parts[0] in SPLITS else 1
    tops = {p.parts[depth] for p in images if len(p.parts) > depth + 1}
    chosen = _choose(str(root), tops if tops <= set(SPLITS) else set(), split, prefer)
    everything = images
    if chosen:
        images, depth = [p for p in images if p.parts[depth] == chosen], depth + 1
    names = [str(p) for p in images]
    with_class = [len(p.parts) > depth + 1 for p in images]
    if not any(with_class):
        return FileSource(root, names, None, archive)
    if not all(with_class):
        raise InputError(
            f"{root}: {names[with_class.index(False)]} lies beside class folders; "
            "put every image into its class's folder"
        )
    # Over all splits, so that a class that one of them lacks does not shift the numbers of the others.
    number, ordered = _class_numbers({p.parts[depth] for p in everything if len(p.parts) > depth + 1})
    return FileSource(root, names, [number[p.parts[depth]] for p in images], archive, len(number) if ordered else 0)


def _class_numbers(folders: set[str]) -> tuple[dict[str, int], bool]:
    """The place of each in the sorted order and True; or the number that every name begins with and False.

    >>> _class_numbers({"dog", "cat"}) == ({"cat": 0, "dog": 1}, True)
    True
    >>> _class_numbers({"007", "012_lynx"}) == ({"007": 7, "012_lynx": 12}, False)
    True
    """
    said = {name: int(match.group()) for name in folders if (match := re.match(r"\d+", name))}
    if len(said) == len(folders):
        return said, False
    return {name: place for place, name in enumerate(sorted(folders))}, True


def _npz(path: Path, split: str | None, prefer: str | None) -> ArraySource:
    """Keys `images` and `labels`, `x` and `y`, or these two with `train_`, `test_`, `val_` before them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = set(file.files)
            chosen = _choose(str(path), {s for s in SPLITS if f"{s}_images" in keys}, split, prefer)
            pairs = [(f"{chosen}_images", f"{chosen}_labels")] if chosen else [("images", "labels"), ("x", "y")]
            pair = next((p for p in pairs if p[0] in keys), None)
            if pair is None:
                raise InputError(f"{path}: has {', '.join(sorted(keys)) or 'no arrays'}; expected {NPZ}")
            images = file[pair[0]]
            labels = file[pair[1]] if pair[1] in keys else None
    except ParspikeError:
        raise
    except BROKEN as error:
        raise FileError(f"{path}: not a readable .npz ({error})") from error
    images = _check_images(f"{path}: {pair[0]}", images)
    names = [f"{path.name}:{pair[0]}[{i}]" for i in range(len(images))]
    return ArraySource(images, _check_labels(f"{path}: {pair[1]}", labels, len(images)), names)


def _check_images(where: str, images: np.ndarray) -> np.ndarray:
    if images.ndim < 2 or len(images) == 0:
        raise InputError(f"{where} has shape {images.shape}; expected one image a row, at least one")
    if images.dtype == np.uint8:
        if images.ndim == 4 and images.shape[3] == 1:
            images = images[..., 0]
        if images.ndim != 3 and not (images.ndim == 4 and images.shape[3] == 3):
            raise InputError(f"{where} has shape {images.shape}; uint8 images are (N, H, W) or (N, H, W, 3)")
    elif not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"{where} is {images.dtype}; expected uint8 images, or floats as the network takes them")
    return images


def _check_labels(where: str, labels: np.ndarray | None, n: int) -> list[int] | None:
    if labels is None:
        return None
    if labels.shape != (n,):
        raise InputError(f"{where} has shape {labels.shape} for {n} images; expected one label each")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where} is {labels.dtype}; expected whole numbers, the class of each image")
    return labels.tolist()


def _choose(where: str, splits: set[str], split: str | None, prefer: str | None) -> str | None:
    """The split to take: as asked, else the preferred one, else the only one; None where there are none."""
    if not splits:
        if split is not None:
            raise OptionError(f"--split {split}: {where} is not divided into splits; leave --split out")
        return None
    if split is None:
        split = prefer if prefer in splits else "val" if prefer == "test" and "val" in splits else None
        if split is None and len(splits) == 1:
            (split,) = splits
    if split not in splits:
        asked = f"--split {split}: " if split else ""
        raise OptionError(f"{asked}{where} is divided into {', '.join(sorted(splits))}: choose with --split")
    return split


def _digits(split: str | None, prefer: str | None) -> ArraySource:
    """1,797 handwritten digits, (8, 8), 17 grey levels spread over 0 … 255; every fifth is a test image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="demo") from error
    digits: Any = load_digits()
    chosen = _choose("digits", {"train", "test"}, split, prefer)
    test = np.arange(len(digits.target)) % 5 == 0
    kept = np.flatnonzero(test if chosen == "test" else ~test)
    images = np.rint(digits.images[kept] * (255 / 16)).astype(np.uint8)
    return ArraySource(images, digits.target[kept].tolist(), [f"digits[{i}]" for i in kept])


def _photos(split: str | None, prefer: str | None) -> ArraySource:
    """Eight photographs that lie inside the two packages' wheels; no labels."""
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise MissingExtraError(error.name or "scikit-image", extra="demo") from error
    _choose("photos", set(), split, prefer)
    photos = {
        "astronaut": data.astronaut(),
        "camera": np.repeat(data.camera()[..., None], 3, axis=2),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "motorcycle": data.stereo_motorcycle()[0],
        "rocket": data.rocket(),
        "flower": load_sample_image("flower.jpg"),
        "temple": load_sample_image("china.jpg"),
    }
    return ArraySource(list(photos.values()), None, list(photos))


BUILT_IN = {"digits": _digits, "photos": _photos}


def _short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(W, H) with the short side `short`, the ratio kept.

    >>> _short_side((640, 427), 256)
    (383, 256)
    """
    w, h = size
    return (short, max(short, short * h // w)) if w <= h else (max(short, short * w // h), short)


def _centre(size: tuple[int, int], crop: int) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of the centre crop of an image (W, H)."""
    w, h = size
    if crop > min(w, h):
        raise InputError(f"the image is {h}×{w} (H×W), smaller than the crop {crop}: give --size {crop} or more")
    left, top = round((w - crop) / 2), round((h - crop) / 2)
    return left, top, left + crop, top + crop


def _times(shape: Sequence[int]) -> str:
    return "×".join(str(n) for n in shape)
