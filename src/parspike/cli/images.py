"""`--data` → batches of images.

    text ──open_images──► Images ──iterate──► (x, y) batches: x (B, C, H, W) float32, y (B,) int64 or None

Of a network with several inputs a batch is a dict of tensors by their names, with the labels under "labels".

A source knows names, labels and how to read one item; `Images` chooses items, preprocesses and stacks them.
Files are decoded one batch at a time. torch is imported where a tensor is made, so that a wrong option is said at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from parspike.broken import BROKEN, decoded
from parspike.cli import console
from parspike.cli.preprocess import Preprocessing, noted_largest
from parspike.cli.sources import Inputs, NamedSource, Source, TextSource, check_data, classes_of, open_source
from parspike.errors import InputError, OptionError, TraceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Images",
    "check_apart",
    "class_folders",
    "explained",
    "inputs_of",
    "inputs_over_time",
    "open_images",
    "taken",
    "unlike_folders",
    "warn_of_few",
]

LABELS = "labels"
"""Their key in a batch of several inputs, as `parspike.measure` reads it."""
LOOK = 1000
"""Images that are looked at to say how many are broken, or how large their values are."""
UNLIKE = 8
"""Times that arrays of floats may differ in size before they seem to be prepared in another way: 0 … 1 and 0 … 255."""


@dataclass
class Images:
    """Batches (x, y) of preprocessed images; iterate as often as you like, the order is always the same.

    x is (B, C, H, W) float32 and y (B,) int64, or None where the source has no labels; both lie on `device`. Several
    inputs are a dict, see `taken`. `broken`
    names the files that were left out because they could not be decoded (only with `skip_broken`).
    """

    source: Source
    preprocess: Preprocessing = field(default_factory=Preprocessing)
    batch_size: int = 64
    limit: int | None = None
    shuffle: bool = False
    seed: int = 0
    skip_broken: bool = False
    device: torch.device | str = "cpu"
    broken: list[str] = field(default_factory=list, init=False)
    _first: tuple[Any, str] | None = field(default=None, init=False)

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
    def written(self) -> bool:
        """Whether the items are sequences of tokens."""
        return isinstance(self.source, TextSource)

    @property
    def several(self) -> bool:
        """Whether an item has several inputs, by their names."""
        return isinstance(self.source, NamedSource)

    @property
    def frames(self) -> frozenset[str]:
        """The names of the inputs that are another one at every time-step, (T, B, …) in a batch; "" where there is one
        input."""
        found = getattr(self.source, "frames", "")
        return frozenset(found if self.several else [""] if found == "steps" else [])

    @property
    def labelled(self) -> bool:
        """Whether the source knows the class of each image."""
        return self.source.labels is not None

    @property
    def maps(self) -> bool:
        """Whether the source knows a map of classes of each item, as one for each pixel."""
        return isinstance(self.source.labels, np.ndarray)

    @property
    def names(self) -> list[str]:
        """The images' names, in the order of iteration."""
        return [self.source.names[i] for i in self._order]

    @property
    def prepared(self) -> str:
        """What is done with every item before the network takes it, in words."""
        if self.several:
            arrays = self.source.arrays  # pyright: ignore[reportAttributeAccessIssue]
            shown = [name for name, array in arrays.items() if array.dtype == np.uint8]
            return f"{', '.join(shown)}: {self.preprocess.of('images')}" if shown else "none"
        images: Any = getattr(self.source, "images", None)
        if frames := getattr(self.source, "frames", ""):
            number, norm = images.shape[1], self.preprocess.of("inputs")
            how = f"{number} frames, one a time-step" if frames == "steps" else f"the mean of {number} frames"
            return how if norm == "none" else f"{how}, {norm}"
        kind = images.dtype.kind if isinstance(images, np.ndarray) and images.dtype != np.uint8 else ""
        return self.preprocess.of({"f": "inputs", "i": "numbers"}.get(kind, "images"))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value of some of the items, where they are rows of an array of floats, or 0."""
        images = getattr(self.source, "images", None)
        if not isinstance(images, np.ndarray) or images.dtype.kind != "f":
            return 0.0, 0.0
        ends = [(images[place].min(initial=0), images[place].max(initial=0)) for place in self._order[:LOOK]]
        return float(min((low for low, _ in ends), default=0)), float(max((high for _, high in ends), default=0))

    @property
    def largest(self) -> float | None:
        """The largest magnitude of some of the items, where they are rows of an array of floats."""
        images = getattr(self.source, "images", None)
        if not isinstance(images, np.ndarray) or images.dtype.kind != "f" or not self._order:
            return None
        return max(map(abs, self.range))

    @property
    def layout(self) -> str:
        """A hint for a refused shape: these float images seem to have their channels last, as uint8 images do. Else
        ""."""
        images = getattr(self.source, "images", None)
        if not isinstance(images, np.ndarray) or images.dtype == np.uint8 or images.ndim != 4:
            return ""
        if images.shape[3] not in (1, 3) or images.shape[1] in (1, 3):
            return ""
        return (
            f"float images are (N, C, H, W), and these, {images.shape}, look like (N, H, W, C): "
            "save images.transpose(0, 3, 1, 2)"
        )

    def without(self, other: Images, limit: int | None = None) -> Images:
        """The images of the source that `other` does not have, at most `limit` of them, chosen by this one's seed."""
        taken, rest = set(other.names), replace(self, limit=None, shuffle=True)
        rest._order = [i for i in rest._order if self.source.names[i] not in taken][:limit]
        if not self.shuffle:
            rest._order.sort()
        return rest

    def first(self) -> Tensor:
        """The first readable image, (C, H, W); of several inputs the first one."""
        x, _ = taken(next(iter(replace(self, batch_size=1))))
        return next(iter(x.values()))[0] if isinstance(x, dict) else x[0]

    def inputs(self) -> Iterator[Any]:
        """The batches without their labels: tensors, or dicts of them."""
        return (taken(item)[0] for item in self)

    def batches(self) -> Iterable[Any]:
        """The batches, as a sequence of which each can be read alone. With `skip_broken` they can only be read from the
        first one on, since each broken image moves the beginning of the batches behind it."""
        return _InOrder(self) if self.skip_broken else _Numbered(self)

    def __iter__(self) -> Iterator[Any]:
        read = False
        for item in self._read(self._order):
            read = True
            yield item
        if not read:
            raise InputError(f"none of {len(self)} images could be decoded, the first is {self.names[0]}")

    def _count_broken(self, index: int) -> str:
        """For a message: how many images cannot be decoded, of all or, to take seconds at most, of the `LOOK` from
        `index` on."""
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

    def _read(self, order: Sequence[int]) -> Iterator[Any]:
        labels = self.source.labels
        xs: list[Any] = []
        ys: list[Any] = []
        for index in order:
            name = self.source.names[index]
            read = partial(self.source.read, index, self.preprocess)
            x = decoded(name, read, self.skip_broken, self.broken, partial(self._count_broken, index))
            if x is None:
                continue
            one: Any = x if isinstance(x, dict) else {"": x}
            self._first = self._first or ({key: value.shape for key, value in one.items()}, name)
            shape: Any = self._first[0]
            shaped_by = self._first[1]
            if unlike := [key for key, value in one.items() if value.shape != shape[key]]:
                raise InputError(
                    f"{name} is {_times(one[unlike[0]].shape)} but {shaped_by} is {_times(shape[unlike[0]])}: "
                    "give --size and --crop (a recipe: data.size, data.crop), so that all images have one shape"
                )
            xs.append(x)
            if labels is not None:
                ys.append(labels[index] if isinstance(labels, np.ndarray) else int(labels[index]))
            if len(xs) == self.batch_size:
                yield self._batch(xs, ys)
                xs, ys = [], []
        if xs:
            yield self._batch(xs, ys)

    def _batch(self, xs: list[Any], ys: list[Any]) -> Any:
        import torch

        y = None if self.source.labels is None else torch.from_numpy(np.array(ys)).to(self.device)
        if not self.several:
            return torch.stack(xs, 1 if self.frames else 0).to(self.device), y
        x = {name: torch.stack([one[name] for one in xs], int(name in self.frames)).to(self.device) for name in xs[0]}
        return x if y is None else {**x, LABELS: y}


@dataclass(frozen=True)
class _InOrder:
    images: Images

    def __len__(self) -> int:
        return -(-len(self.images) // self.images.batch_size)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.images)


class _Numbered(_InOrder, Sequence[Any]):
    def __getitem__(self, number: Any) -> Any:
        start = range(0, len(self.images), self.images.batch_size)[number]
        return next(self.images._read(self.images._order[start : start + self.images.batch_size]))


def taken(item: Any) -> tuple[Any, Tensor | None]:
    """The inputs and the labels of a batch: a tensor, or a dict by the names of the network's inputs."""
    if isinstance(item, dict):
        return {name: x for name, x in item.items() if name != LABELS}, item.get(LABELS)
    return item


def inputs_of(snn: Any) -> Inputs:
    """The names of a converted network's inputs."""
    return Inputs(tuple(i.name for i in snn.graph.inputs), largest=noted_largest(snn))


def inputs_over_time(snn: Any) -> Inputs:
    """The same with what tells that items are recordings, for commands that run them through neurons with a state."""
    ranks = {i.name: len(i.shape) - 1 for i in snn.graph.inputs}
    return replace(inputs_of(snn), frames="steps", T=snn.T, ranks=ranks) if snn.over_time else inputs_of(snn)


def open_images(
    data: str,
    preprocess: Preprocessing | None = None,
    *,
    inputs: Inputs | None = None,
    split: str | None = None,
    prefer: str | None = None,
    batch_size: int | None = 64,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    skip_broken: bool = False,
    asked: bool = True,
) -> Images:
    """The images that `data` names: a folder, a `.zip`, an `.npz`, `digits` or `photos`; or sequences of tokens, of a
    `.txt` file or a folder of them.

    inputs: the network's, where they are known; of several an `.npz` has an array for each, by its name.
    `split` must exist; `prefer` is the split that is taken if nothing is asked and the data have it. batch_size: None
    for 32 images, or 4 sequences. asked: whether the user of this command says how images are normalised; else the
    network or its file does, of pixels.

    >>> images = open_images("digits", split="test", batch_size=100)
    >>> x, y = next(iter(images))
    >>> len(images), tuple(x.shape), y[:5].tolist()
    (360, (100, 1, 8, 8), [0, 5, 0, 5, 0])
    """
    check_data(data, split)
    preprocess = preprocess or Preprocessing()
    source = open_source(data, split, prefer, preprocess.text, inputs)
    written = isinstance(source, TextSource)
    images = Images(
        source,
        # What was stated for text says nothing about images.
        preprocess if written else replace(preprocess, text=None),
        batch_size=(4 if written else 32) if batch_size is None else batch_size,
        limit=limit,
        shuffle=shuffle,
        seed=seed,
        skip_broken=skip_broken,
    )
    fitted, found = inputs.largest if inputs else None, images.largest
    if not asked and (fitted is None or fitted <= 1):
        _check_pixels(data, images)
    counted = written or bool(getattr(source, "frames", ""))
    if found is None and not counted and (mean := max(images.preprocess.mean)) > 1:
        console.warn(
            f"images are x/255, from 0 to 1, and a mean of {mean:g} lies beyond: give means and deviations of that "
            "scale, each divided by 255"
        )
    if fitted is not None and found is not None and (found >= fitted * UNLIKE or found <= fitted / UNLIKE):
        console.warn(
            f"{data} holds values up to {found:.3g}, and the network was fitted on values up to {fitted:.3g}: are they "
            "prepared alike (0 … 1 or 0 … 255, mean and standard deviation)?"
        )
    return images


def _check_pixels(data: str, images: Images) -> None:
    """Refuse floats that would be normalised once more: those of a network that says how its pixels are, and no pixels
    from 0 to 1."""
    said, (low, high) = images.preprocess, images.range
    if (said.mean, said.std) == ((0.0,), (1.0,)) or not (low < 0 or high > 1):
        return
    raise InputError(
        f"{data} holds floats from {low:.3g} to {high:.3g}, and the network's images are normalised, "
        f"{said.of('inputs')}: give --mean 0 --std 1 where the values are as the network takes them, else uint8 "
        "images, or floats from 0 to 1"
    )


@contextmanager
def explained(images: Images | None) -> Iterator[None]:
    """Adds to an error about shapes that the images seem to have their axes in another order, or are in colour where
    the network takes grey ones."""
    try:
        yield
    except (InputError, TraceError) as error:
        hint = "" if images is None else images.layout or _colours(images, str(error))
        if not hint or hint in str(error):
            raise
        raise type(error)(f"{error}; {hint}") from error


def _colours(images: Images, said: str) -> str:
    """What to give where images have three channels and the network takes one, or the other way round. said: the
    error, of torch or of parspike."""
    array = getattr(images.source, "images", None)
    if images.written or images.several or (isinstance(array, np.ndarray) and array.dtype != np.uint8):
        return ""
    if found := re.search(r"to have (\d+) channels, but got (\d+) channels", said):
        wanted, got = map(int, found.groups())
    elif found := re.search(r"has shape \(\d+, (\d+), \d+, \d+\), this network takes \(B, (\d+),", said):
        got, wanted = map(int, found.groups())
    elif found := re.search(r"cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", said):
        long, short = map(int, found.groups())
        got, wanted = (3, 1) if long == 3 * short else (1, 3) if short == 3 * long else (0, 0)
    else:
        return ""
    if {got, wanted} != {1, 3}:
        return ""
    return f"to read the images {'in grey' if wanted == 1 else 'in colour'}, give --shape {wanted},HEIGHT,WIDTH"


def check_apart(calibration: str, fit: Images, data: str, measured: Images) -> None:
    """Refuse to measure a conversion on images that it is fitted on, which would make it look better than it is."""
    if Path(calibration).resolve() != Path(data).resolve():
        return
    if same := set(fit.names) & set(measured.names):
        raise OptionError(
            f"--calibration {calibration} and --data {data}: {len(same)} images are in both, and a conversion looks "
            "better on images that it is fitted on: give other images, or leave --calibration out, so that every "
            "fourth batch of --data is held out"
        )


def warn_of_few(images: Images, data: str, classes: int) -> None:
    """Warn of fewer class folders than the network has classes. data: the images' name."""
    if 0 < (folders := getattr(images.source, "ordered", 0)) < classes:
        console.warn(
            f"{data} has {folders} class folders, numbered 0 … {folders - 1} in their order, but the network knows "
            f"{classes} classes: if some are missing, the accuracy is wrong; begin the folders' names with the numbers "
            "of the classes"
        )


def unlike_folders(train: Images, other: Images) -> str:
    """The classes that have different numbers in training and test images, as text; "" if there are none. Classes are
    numbered within each data set, so a class that one lacks shifts all labels after it."""
    ours, theirs = class_folders(train), class_folders(other)
    if not ours or not theirs:
        return ""
    unlike = [
        f"{name} is {ours[name]} and {theirs[name]}" if name in ours else f"{name} has no training images"
        for name in theirs
        if ours.get(name) != theirs[name]
    ]
    return ", ".join(unlike)


def class_folders(images: Images) -> dict[str, int]:
    """The label of each class folder; empty where folders don't tell."""
    labels: dict[str, int] = {}
    for name, label in zip(images.source.names, classes_of(images.source), strict=False):
        folder = PurePosixPath(name).parent.name
        if not folder or labels.setdefault(folder, label) != label:
            return {}
    return labels


def _times(shape: Sequence[int]) -> str:
    return "×".join(str(n) for n in shape)
