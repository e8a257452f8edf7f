"""Where images come from: folders, `.zip`, `.npz`, and the built-in `digits` and `photos`; and text, in `.txt` files.

A source knows names, labels and how to read one item. torch is imported where a tensor is made, so that a wrong option
is said at once.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from PIL import Image

from parspike.broken import BROKEN, in_colour
from parspike.cli.preprocess import Preprocessing, Text
from parspike.errors import FileError, InputError, MissingExtraError, OptionError, ParspikeError, ParspikeWarning
from parspike.foreign import identifier

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SPLITS",
    "ArraySource",
    "FileSource",
    "Inputs",
    "NamedSource",
    "Source",
    "TextSource",
    "check_data",
    "classes_of",
    "open_source",
]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SPLITS = ("train", "test", "val")
CLASSES = ("y", "label", "labels", "target", "targets")
"""Names of answers: of arrays, and of optional inputs of networks that are given them, for a loss."""
LARGEST_FILE = 1 << 28
"""Bytes of an image in a zip, more than any has."""
DEFLATE = 1032
"""Bytes at most that a byte of a deflated member becomes."""
PAIRS = (("images", "labels"), ("x", "y"), ("frames", "labels"))
NPZ = "images and labels, x and y, or train_images, train_labels, test_images, test_labels; frames in place of images"
"""The keys of an .npz; labels may be missing. frames: recordings, (N, T, …)."""

Labels = Sequence[int] | np.ndarray
"""The class of each item; or an array of whole numbers (N, …), a class for each answer of an item, as of each pixel."""


class Source(Protocol):
    """Where images come from."""

    names: Sequence[str]  # one an item, for messages

    @property
    def labels(self) -> Labels | None:
        """Classes, None where there are none."""
        ...

    def read(self, index: int, preprocess: Preprocessing) -> Any:
        """One item as the network takes it, a tensor, or tensors by the names of its inputs; BROKEN if the file is
        damaged."""
        ...


@dataclass(frozen=True)
class Inputs:
    """The names of a network's inputs: those that it needs, and those that it takes too where the data have them.

    frames: what recordings (N, T, …) become: "steps", another input at every time-step of neurons that have a state;
    "mean", one input, what the network itself gets; "" where the command takes none. T: the network's time-steps, of
    "steps". ranks: dimensions of one sample of the inputs, where they are known; an array with one more is a recording.
    largest: the largest magnitude of the array of floats that a converted network was fitted on, where that is noted.
    """

    needed: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    frames: Literal["steps", "mean", ""] = ""
    T: int | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    largest: float | None = None


@dataclass
class ArraySource:
    """Images of an array, (N, H, W[, C]) uint8, or one network input a row if of floats or of wider whole numbers.
    frames: see `Inputs`, where the rows are recordings (T, …)."""

    images: Sequence[np.ndarray] | np.ndarray
    labels: Labels | None
    names: Sequence[str]
    frames: str = ""

    def read(self, index: int, preprocess: Preprocessing) -> Tensor:
        import torch

        image = np.asarray(self.images[index])
        if self.frames:
            return _recording(image, preprocess, self.names[index], mean=self.frames == "mean")
        if image.dtype == np.uint8:
            return preprocess(image)
        if np.issubdtype(image.dtype, np.integer):
            return torch.from_numpy(np.array(image))  # tokens, or bytes
        if preprocess.size or preprocess.crop:
            raise InputError(
                f"{self.names[index]}: float arrays are taken as ready network inputs; "
                "--size and --crop need uint8 images"
            )
        return preprocess.normalise(torch.from_numpy(image.astype(np.float32)))


def _recording(frames: np.ndarray, preprocess: Preprocessing, name: str, *, mean: bool) -> Tensor:
    """Frames (T, C, …) as float32 of their own numbers, such as counts of events; mean: over them, (C, …)."""
    import torch

    if preprocess.size or preprocess.crop:
        raise InputError(f"{name}: frames are taken as ready network inputs; --size and --crop need uint8 images")
    x = torch.from_numpy(frames.astype(np.float32))
    # Where nothing is subtracted and divided by, vectors and channels need no telling apart.
    if (preprocess.mean, preprocess.std) != ((0.0,), (1.0,)):
        x = torch.stack([preprocess.normalise(one) for one in x])
    return x.mean(0) if mean else x


@dataclass
class NamedSource:
    """Items of several inputs: an array for each, by its name, one input a row. Images of uint8 are prepared as files
    are, and other numbers taken as they are. frames: those of the names whose rows are recordings (T, …)."""

    arrays: dict[str, np.ndarray]
    labels: Labels | None
    names: Sequence[str]
    frames: Collection[str] = ()

    def read(self, index: int, preprocess: Preprocessing) -> dict[str, Tensor]:
        import torch

        found = {}
        for name, array in self.arrays.items():
            one = np.asarray(array[index])
            if name in self.frames:
                found[name] = torch.from_numpy(one.astype(np.float32))
                continue
            wide = one.astype(np.float32) if np.issubdtype(one.dtype, np.floating) else np.array(one)
            found[name] = preprocess(one) if one.dtype == np.uint8 else torch.from_numpy(wide)
        return found


@dataclass
class FileSource:
    """Image files in a folder, or members of a zip; `labels` from the folder of each.

    ordered: number of class folders, if their numbers are their places in the sorted order; else 0. sums: a checksum of
    each file that was read, so that one that changes between two readings is told.
    """

    root: Path
    names: Sequence[str]
    labels: Labels | None
    archive: zipfile.ZipFile | None = None
    ordered: int = 0
    sums: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros(len(self.names), np.int64)

    def read(self, index: int, preprocess: Preprocessing) -> Tensor:
        name = self.names[index]
        data = _member(self.archive, name) if self.archive else (self.root / name).read_bytes()
        said = 1 + zlib.crc32(data)
        before, self.sums[index] = self.sums[index], said
        if before not in (0, said):
            raise InputError(
                "the file was changed after it was read before, so figures of both would be mixed: start again, and "
                "leave the data as they are until the end"
            )
        if not data:
            raise EOFError("the file is empty")
        return preprocess(_decoded(data))


def _decoded(data: bytes) -> Image.Image:
    """An image of a file's bytes, as colour. Raises what `BROKEN` holds, also where Pillow raises something else."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if most is not None and pixels > most:  # Pillow itself only warns, up to twice as many
                raise Image.DecompressionBombError(
                    f"it says that it has {pixels:,} pixels; if it has, raise PIL.Image.MAX_IMAGE_PIXELS, {most:,}"
                )
            image.load()
            return in_colour(image)
    except BROKEN:
        raise
    except Exception as error:  # of a damaged file its decoders raise many kinds
        raise OSError(f"{type(error).__name__}: {error}") from error


@dataclass
class TextSource:
    """Texts cut in sequences of tokens, each an item, (tokens,) int64; no labels."""

    sequences: Tensor
    names: Sequence[str]
    labels: Sequence[int] | None = None

    def read(self, index: int, preprocess: Preprocessing) -> Tensor:
        return self.sequences[index]


def check_data(data: str, split: str | None = None, option: str = "--data") -> None:
    """Raise an error for missing data before anything is loaded. Damaged data are found later, when they are read."""
    if split is not None and split not in SPLITS:
        raise OptionError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    if not data:
        raise OptionError(f"{option} is empty: name a folder or a file, '.' for this folder")
    path = Path(data)
    if data in BUILT_IN or path.is_dir():
        return
    if not path.exists():
        raise FileError(f"{option} {data}: no such file or folder (built in are: {', '.join(BUILT_IN)})")
    if path.suffix not in (".npz", ".zip", ".txt"):
        raise OptionError(f"{option} {data}: expected a folder, .zip, .npz, .txt, or one of {', '.join(BUILT_IN)}")


def open_source(
    data: str, split: str | None, prefer: str | None, text: Text | None = None, inputs: Inputs | None = None
) -> Source:
    """The source that `data` names; which split, see `open_images`. text: how text becomes tokens, where a tokenizer is
    known. inputs: the network's, where they are known."""
    path, inputs = Path(data), inputs or Inputs()
    if len(inputs.needed) > 1 and path.suffix != ".npz":
        raise InputError(
            f"{data} has one input for each item, and the network takes {', '.join(inputs.needed)}: give an .npz with "
            f"an array for each, {_saved(inputs)}"
        )
    if data in BUILT_IN:
        return BUILT_IN[data](split, prefer)
    if path.suffix == ".txt":
        return _texts(path, [path], text, _choose(data, set(), split, prefer))
    if path.is_dir():
        files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        if not any(PurePosixPath(f).suffix.lower() in SUFFIXES for f in files):
            written = [f for f in files if f.endswith(".txt")]
            if written or text is not None:
                tops = {PurePosixPath(f).parts[0] for f in written}
                chosen = _choose(data, tops if tops <= set(SPLITS) else set(), split, prefer)
                return _texts(path, [path / f for f in written], text, chosen)
        return _files(path, files, None, split, prefer)
    if path.suffix == ".npz":
        return _npz(path, split, prefer, inputs)
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damage, a version or an encoding that is not known: each has its own kind
        raise FileError(f"{path}: not a readable zip ({str(error)[:200] or type(error).__name__})") from error
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


def _texts(root: Path, files: Sequence[Path], text: Text | None, chosen: str | None) -> TextSource:
    """[SPLIT/]…/name.txt; each file is cut by itself."""
    import torch

    from parspike.language.tokens import read_text

    if text is None:
        looked = "" if root.is_file() else f"no images in it (looked for {', '.join(sorted(SUFFIXES))}); "
        raise InputError(
            f"{root}: {looked}to read text its network's tokenizer is needed: name the network as hf:FOLDER, or give "
            "--tokenizer FOLDER"
        )
    if chosen:
        files = [file for file in files if file.relative_to(root).parts[0] == chosen]
    if not files:
        raise InputError(f"{root}: there are no .txt files in it")
    length, tokenizer = text.checked().length, text.opened()
    names, found, texts = [], [], []
    for file in files:
        texts.append((file.name, read_text(file)))
        cut = tokenizer.cut(texts[-1][1], length)
        found += cut
        names += [f"{file}, sequence {number}" for number in range(len(cut))]
    if not found:
        raise InputError(tokenizer.too_short(texts, length, str(root)))
    return TextSource(torch.tensor(found, dtype=torch.long), names)


def _class_numbers(folders: set[str]) -> tuple[dict[str, int], bool]:
    """The place of each in the sorted order and True; or the number that every name begins with and False. Raises
    `InputError` where two begin with the same.

    >>> _class_numbers({"dog", "cat"}) == ({"cat": 0, "dog": 1}, True)
    True
    >>> _class_numbers({"007", "012_lynx"}) == ({"007": 7, "012_lynx": 12}, False)
    True
    """
    said = {name: int(match.group()) for name in folders if (match := re.match(r"\d{1,18}(?!\d)", name))}
    if len(said) == len(folders):
        first: dict[int, str] = {}
        for name, number in sorted(said.items()):
            if (other := first.setdefault(number, name)) != name:
                raise InputError(
                    f"the folders {other} and {name} both begin with {number}, which would make them one class: give "
                    "each a number of its own, or names that begin with a letter"
                )
        return said, False
    return {name: place for place, name in enumerate(sorted(folders))}, True


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member of a zip; `BadZipFile` where it cannot be read, or is larger than any image."""
    if archive.getinfo(name).file_size > LARGEST_FILE:
        raise zipfile.BadZipFile(f"it says that it has over {LARGEST_FILE >> 20} MiB")
    try:
        return archive.read(name)
    except Exception as error:  # damage, a password, a compression that is not known: each has its own kind
        raise zipfile.BadZipFile(str(error) or type(error).__name__) from error


def _arrays(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an .npz. What its head says is compared with what the file can hold before memory is taken for it."""
    info, size = archive.getinfo(f"{name}.npy"), path.stat().st_size
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.compress_size > size:
        raise ValueError(f"'{name}' is compressed in a way that numpy does not write, or claims more than the file has")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        heads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in heads:
            raise ValueError(f"'{name}' is of version {version} of the format .npy")
        shape, _, dtype = heads[version](stream)
        if not all(isinstance(dim, int) and 0 <= dim < 1 << 63 for dim in shape) or dtype.hasobject:
            raise ValueError(f"'{name}' holds {str(dtype)[:60]} in the shape {str(shape)[:60]}")
        wanted = math.prod(shape) * dtype.itemsize
        if wanted > info.file_size or wanted > DEFLATE * info.compress_size:
            raise ValueError(f"'{name}' has the shape {shape}, {wanted:,} bytes, which the file does not hold")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _npz(path: Path, split: str | None, prefer: str | None, inputs: Inputs) -> ArraySource | NamedSource:
    """Keys `images` and `labels`, `x` and `y`, or the names of the network's inputs and `labels`; or these with
    `train_`, `test_`, `val_` before them."""
    try:
        with zipfile.ZipFile(path) as file:
            keys = {name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")}
            called = _called(path, keys, inputs)
            names, labels_key = _keys(path, called, inputs)
            chosen = _choose(str(path), {s for s in SPLITS if f"{s}_{names[0]}" in called}, split, prefer)
            found = {name: f"{chosen}_{name}" if chosen else name for name in names}
            if missing := [key for key in found.values() if key not in called]:
                raise InputError(f"{path}: has {', '.join(sorted(keys))}, and no {missing[0]} beside them")
            found = {name: called[key] for name, key in found.items()}
            arrays = {name: _arrays(path, file, key) for name, key in found.items()}
            key = f"{chosen}_{labels_key}" if chosen else labels_key
            labels = _arrays(path, file, key) if key in keys else None
    except ParspikeError:
        raise
    except MemoryError as error:
        raise FileError(f"{path} does not fit into memory") from error
    except Exception as error:  # the readers of zip and .npy raise exceptions of many kinds on a damaged file
        raise FileError(f"{path}: not a readable .npz ({str(error)[:200] or type(error).__name__})") from error
    n = len(next(iter(arrays.values()))) if all(array.ndim for array in arrays.values()) else 0
    one = len(names) == 1
    frames = {name for name, array in arrays.items() if _is_frames(name, array, inputs)}
    arrays = {
        name: _check_frames(f"{path}: {found[name]}", array, inputs, _rank(name, inputs))
        if name in frames
        else _check_images(f"{path}: {found[name]}", array, one=one)
        for name, array in arrays.items()
    }
    if unlike := [f"{found[name]} has {len(array)}" for name, array in arrays.items() if len(array) != n]:
        raise InputError(f"{path}: {found[names[0]]} has {n} rows and {unlike[0]}; expected one row an item in each")
    items = [f"{path.name}:{next(iter(found.values()))}[{i}]" for i in range(n)]
    classes = _check_labels(f"{path}: {key}", labels, n)
    if one:
        return ArraySource(arrays[names[0]], classes, items, inputs.frames if frames else "")
    return NamedSource(arrays, classes, items, frames)


def _called(path: Path, keys: set[str], inputs: Inputs) -> dict[str, str]:
    """The arrays' keys by the names that the network's inputs have: an ONNX file may call `image_in` image.in. Raises
    `InputError` where two arrays may be one input."""
    known = {*inputs.needed, *inputs.taken}
    found: dict[str, str] = {}
    for key in sorted(keys):
        split = next((f"{s}_" for s in SPLITS if key.startswith(f"{s}_")), "")
        own = identifier(key.removeprefix(split))
        name = f"{split}{own}" if own in known and key not in known else key
        if (other := found.setdefault(name, key)) != key:
            raise InputError(
                f"{path}: {other} and {key} may both be the network's input {own}: name the arrays as the network "
                f"does, {', '.join((*inputs.needed, *inputs.taken))}"
            )
    return found


def _keys(path: Path, called: Mapping[str, str], inputs: Inputs) -> tuple[tuple[str, ...], str]:
    """The names of the arrays that are the network's inputs, and of the labels. called: see `_called`."""
    keys = set(called)
    there = keys | {key.removeprefix(f"{split}_") for key in keys for split in SPLITS}
    labels = "labels" if "labels" in there or "y" in inputs.needed else "y"
    if inputs.needed and set(inputs.needed) <= there:
        names = (*inputs.needed, *(name for name in inputs.taken if name in there))
        known = {*names, *CLASSES, *(f"{split}_{name}" for split in SPLITS for name in (*names, *CLASSES))}
        if len(names) > 1 and (more := sorted(keys - known)):
            raise InputError(
                f"{path}: has {', '.join(more)} beside the inputs {', '.join(names)}, and the network takes no such "
                "input: leave it out of the file, or correct its name"
            )
        return names, labels
    has = ", ".join(sorted(called.values())) or "no arrays"
    if len(inputs.needed) > 1:
        raise InputError(
            f"{path}: has {has}, and the network takes {', '.join(inputs.needed)}: save an array for each under its "
            f"name, {_saved(inputs)}"
        )
    pair = next((pair for pair in PAIRS if pair[0] in there), None)
    if pair is None:
        raise InputError(f"{path}: has {has}; expected {NPZ}")
    return (pair[0], *(name for name in inputs.taken if name in there)), pair[1]


def _saved(inputs: Inputs) -> str:
    arrays = ", ".join(f"{name}=…" for name in inputs.needed)
    return f"np.savez('data.npz', {arrays}, labels=…), labels where there are classes"


def _check_images(where: str, images: np.ndarray, *, one: bool = True) -> np.ndarray:
    """one: whether they are the network's only input, else one number an item and truth values are taken too."""
    others = () if one else (np.bool_,)
    if images.ndim < (2 if one else 1) or len(images) == 0:
        raise InputError(f"{where} has shape {images.shape}; expected one image a row, at least one")
    if images.dtype == np.uint8:
        if images.ndim == 4 and images.shape[3] == 1:
            images = images[..., 0]
        if images.ndim != 3 and not (images.ndim == 4 and images.shape[3] == 3):
            raise InputError(f"{where} has shape {images.shape}; uint8 images are (N, H, W) or (N, H, W, 3)")
    elif not np.issubdtype(images.dtype, np.floating) and images.dtype not in (np.int32, np.int64, *others):
        raise InputError(
            f"{where} is {images.dtype}; expected uint8 images, or floats, int32 or int64 as the network takes them"
        )
    return images


def _is_frames(name: str, array: np.ndarray, inputs: Inputs) -> bool:
    """Whether the rows of an array are recordings, (T, …): by its name, or by one dimension more than the input has."""
    if name == "frames" and name not in (*inputs.needed, *inputs.taken):
        return True
    return inputs.frames == "steps" and array.ndim == (_rank(name, inputs) or array.ndim) + 2


def _rank(name: str, inputs: Inputs) -> int | None:
    """Dimensions of one sample of an input; the only one may stand under another name."""
    only = next(iter(inputs.ranks.values())) if len(inputs.ranks) == 1 else None
    return inputs.ranks.get(name, only)


def _check_frames(where: str, frames: np.ndarray, inputs: Inputs, rank: int | None) -> np.ndarray:
    if not inputs.frames:
        raise InputError(
            f"{where} are frames over time, which `parspike eval` runs through a network whose neurons have a state "
            "(convert --neuron if, or a .nir file), and whose mean `plan` and `convert` take; for any other command "
            "save one input an item as images or x"
        )
    if frames.ndim < 3 or 0 in frames.shape:
        raise InputError(f"{where} has shape {frames.shape}; expected frames, (N, T, C, H, W) or (N, T, features)")
    if rank is not None and frames.ndim != rank + 2:
        raise InputError(
            f"{where} has shape {frames.shape}; expected (N, T, …), and behind them the {rank} dimensions of one "
            "sample as the network takes it"
        )
    if not (np.issubdtype(frames.dtype, np.number) or frames.dtype == np.bool_) or frames.dtype.kind == "c":
        raise InputError(f"{where} is {frames.dtype}; expected numbers, such as how many events a pixel has in a step")
    if inputs.T is not None and frames.shape[1] != inputs.T:
        raise InputError(
            f"{where} has shape {frames.shape}, {frames.shape[1]} frames an item, and this network runs T={inputs.T} "
            f"steps: cut the recordings into {inputs.T} slices of time, or run it with -T {frames.shape[1]} (convert; "
            "eval of a .nir file)"
        )
    return frames


def classes_of(source: Source) -> Sequence[int]:
    """The class of each item; empty where there are none, or a map of classes for each."""
    return source.labels if source.labels is not None and not isinstance(source.labels, np.ndarray) else ()


def _check_labels(where: str, labels: np.ndarray | None, n: int) -> Labels | None:
    if labels is None:
        return None
    if np.issubdtype(labels.dtype, np.floating) and labels.shape[:1] == (n,):
        warnings.warn(
            f"{where} is {labels.dtype}, values and no classes, so it is not read: whole numbers give an accuracy",
            ParspikeWarning,
            stacklevel=2,
        )
        return None
    if labels.shape[:1] != (n,):
        raise InputError(
            f"{where} has shape {labels.shape} for {n} images; expected one label each, or a map of labels for each"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where} is {labels.dtype}; expected whole numbers, the class of each image")
    if (largest := int(labels.max())) > np.iinfo(np.int64).max:
        raise InputError(f"{where} holds {largest}, which is no class: classes are numbered 0, 1, 2, …")
    return labels.tolist() if labels.ndim == 1 else labels.astype(np.int64)


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
