"""`--data`: real files in, batches out; wrong files give one error that names the file and the remedy."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import parspike
from parspike.cli import app
from parspike.cli.images import Images, open_images
from parspike.cli.options import ImageOptions
from parspike.cli.preprocess import Preprocessing
from parspike.errors import FileError, InputError, OptionError, ParspikeWarning


def picture(path: Path, value: int, size: tuple[int, int] = (12, 10)) -> Path:
    """A picture of one colour, (W, H), lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for value, name in enumerate(["cat/a", "cat/b", "dog/a", "eel/a", "eel/b"]):
        picture(root / f"{name}.png", 10 * value)
    (root / "README.txt").write_text("no image")
    return root


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def everything(images: Images) -> tuple[Tensor, list[int]]:
    batches = list(images)
    labels = [int(n) for _, y in batches if y is not None for n in y]
    return torch.cat([x for x, _ in batches]), labels


def test_a_folder_gives_every_image_once_with_its_class(folder: Path) -> None:
    images = open_images(str(folder), batch_size=2)
    x, y = everything(images)
    assert len(images) == 5
    assert x.shape == (5, 3, 10, 12)
    assert x.dtype == torch.float32
    assert y == [0, 0, 1, 2, 2]
    assert torch.equal(x[:, 0, 0, 0], torch.arange(5) * 10 / 255)
    assert [len(b) for b, _ in images] == [2, 2, 1]


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_a_zip_equals_its_folder(folder: Path, tmp_path: Path, prefix: str) -> None:
    x, y = everything(open_images(str(folder)))
    zx, zy = everything(open_images(str(zipped(folder, tmp_path / "pets.zip", prefix))))
    assert torch.equal(x, zx)
    assert y == zy


def test_numbered_folders_are_their_number(tmp_path: Path) -> None:
    picture(tmp_path / "007_shark" / "a.png", 0)
    picture(tmp_path / "412" / "a.png", 0)
    assert everything(open_images(str(tmp_path)))[1] == [7, 412]


def test_two_folders_of_one_number_are_refused(tmp_path: Path) -> None:
    """They were one class, without a word."""
    picture(tmp_path / "3d_prints" / "a.png", 0)
    picture(tmp_path / "3d_models" / "a.png", 0)
    with pytest.raises(InputError, match="folders 3d_models and 3d_prints both begin with 3, which would make"):
        open_images(str(tmp_path))


def test_folders_of_numbers_that_are_no_classes_are_in_their_order(tmp_path: Path) -> None:
    picture(tmp_path / "20261129112233445566" / "a.png", 0)
    picture(tmp_path / "20261128112233445566" / "a.png", 0)
    assert everything(open_images(str(tmp_path)))[1] == [0, 1]


@pytest.mark.parametrize("split", ["test", "train", "val"])
@pytest.mark.parametrize("zip_it", [False, True])
def test_a_class_that_a_split_lacks_shifts_no_numbers(tmp_path: Path, split: str, zip_it: bool) -> None:
    for path in ("train/ant", "train/bee", "train/cat", "test/bee", "val/cat", "val/dog"):
        picture(tmp_path / "pets" / path / "a.png", 0)
    data = zipped(tmp_path / "pets", tmp_path / "pets.zip") if zip_it else tmp_path / "pets"
    images = open_images(str(data), split=split)
    assert everything(images)[1] == {"train": [0, 1, 2], "test": [1], "val": [2, 3]}[split]
    assert images.source.ordered == 4  # pyright: ignore[reportAttributeAccessIssue]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    images = open_images(str(tmp_path))
    assert not images.labelled
    assert next(iter(images))[1] is None


def test_splits_of_a_folder(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "cat" / "a.png", 0)
    picture(tmp_path / "test" / "cat" / "b.png", 0)
    assert open_images(str(tmp_path), split="test").names == ["test/cat/b.png"]
    assert open_images(str(tmp_path), prefer="train").names == ["train/cat/a.png"]
    with pytest.raises(OptionError, match="divided into test, train: choose with --split"):
        open_images(str(tmp_path))
    with pytest.raises(OptionError, match=r"--split val: .* is divided into test, train"):
        open_images(str(tmp_path), split="val")


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_same_seed_gives_the_same_images(folder: Path, shuffle: bool) -> None:
    def names(seed: int) -> list[str]:
        return open_images(str(folder), limit=3, shuffle=shuffle, seed=seed).names

    assert names(3) == names(3)
    assert len({tuple(names(seed)) for seed in range(20)}) > 3
    if not shuffle:
        assert names(3) == sorted(names(3))


def test_images_are_decoded_a_batch_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images(str(folder), batch_size=2)
    read: list[int] = []
    source_read = images.source.read
    monkeypatch.setattr(images.source, "read", lambda i, p: read.append(i) or source_read(i, p))
    batches: Iterator = iter(images)
    assert read == []
    next(batches)
    assert read == [0, 1]


def test_preprocessing_resizes_crops_and_normalises() -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 20:] = 255
    x = Preprocessing(size=10, crop=8, mean=(0.5,), std=(0.25,))(wide)
    assert x.shape == (3, 8, 8)
    assert torch.equal(x[:, :, 0], torch.full((3, 8), -2.0))
    assert torch.equal(x[:, :, -1], torch.full((3, 8), 2.0))
    grey = Preprocessing(channels=1)(wide)
    assert grey.shape == (1, 20, 40)
    a_channel = Preprocessing(mean=(0.0, 0.5, 1.0), std=(1.0, 1.0, 2.0))(wide)
    assert a_channel[:, 0, 0].tolist() == [0.0, -0.5, -0.5]


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"crop": -1}, {"std": (0.0,)}, {"channels": 2}, {"interpolation": "magic"}]
)
def test_preprocessing_is_checked_when_made(wrong: dict) -> None:
    with pytest.raises(OptionError):
        Preprocessing(**wrong)


@pytest.mark.parametrize("shape", [(6,), (6, 2)])
def test_values_in_place_of_classes_are_said_and_not_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Data of a regression: no conversion reads labels, so it is no reason to refuse."""
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 3), np.float32), y=np.full(shape, 0.5))
    with pytest.warns(ParspikeWarning, match="y is float64, values and no classes"):
        images = open_images(str(tmp_path / "a.npz"))
    assert not images.labelled
    assert len(everything(images)[0]) == 6


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("train_images", "train_labels")])
def test_an_npz(tmp_path: Path, keys: tuple[str, str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", **{keys[0]: pixels, keys[1]: np.arange(5)})
    x, y = everything(open_images(str(tmp_path / "d.npz")))
    assert torch.equal(x, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert y == [0, 1, 2, 3, 4]


def test_floats_in_an_npz_are_ready_inputs(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 7))
    np.savez(tmp_path / "d.npz", x=rows)
    images = open_images(str(tmp_path / "d.npz"))
    assert torch.equal(everything(images)[0], torch.from_numpy(rows).float())
    assert not images.labelled
    with pytest.raises(InputError, match="--size and --crop need uint8"):
        open_images(str(tmp_path / "d.npz"), Preprocessing(size=3)).first()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"pictures": np.zeros(3)}, "has pictures; expected images and labels"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"\(N, H, W, 3\)"),
        ({"images": np.zeros((2, 4, 4), np.int16)}, "int16"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "at least one"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, "one label each"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2, bool)}, "whole numbers"),
    ],
)
def test_a_wrong_npz(tmp_path: Path, arrays: dict, says: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=says):
        open_images(str(tmp_path / "d.npz"))


def test_an_npz_cannot_run_code(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.array([print], dtype=object))
    with pytest.raises(FileError, match=r"d\.npz"):
        open_images(str(tmp_path / "d.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing"])
@pytest.mark.parametrize("suffix", [".zip", ".npz"])
def test_a_damaged_archive(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"d{suffix}").write_bytes(content)
    with pytest.raises(FileError, match=f"d{suffix}: not a readable"):
        open_images(str(tmp_path / f"d{suffix}"))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_8_bits_are_not_cut(dtype: type, tmp_path: Path) -> None:
    """Of 65,536 grey values all above 255 were white, without a word; floats of 0 … 1 were black."""
    name = "deep.png" if dtype is np.uint16 else "deep.tiff"
    steps = np.linspace(0, 1 if dtype is np.float32 else 65535, 64).reshape(8, 8)
    (tmp_path / "a").mkdir()
    picture(tmp_path / "b" / "fine.png", 3, (8, 8))
    Image.fromarray(steps.astype(dtype)).save(tmp_path / "a" / name)
    with pytest.raises(InputError, match=rf"a/{name}: cannot be decoded \(its grey values have more than 8 bits"):
        everything(open_images(str(tmp_path)))
    images = open_images(str(tmp_path), skip_broken=True)
    assert everything(images)[1] == [1]
    assert images.broken == [f"a/{name}"]
    if dtype is not np.float32:  # as deep, and no value that would be cut
        Image.fromarray((steps / 257).astype(dtype)).save(tmp_path / "a" / name)
        x, _ = everything(open_images(str(tmp_path)))
        assert torch.equal(x[0, 0], torch.from_numpy((steps / 257).astype(np.uint8) / np.float32(255)))


def test_one_error_names_the_broken_image(folder: Path) -> None:
    whole = (folder / "dog" / "a.png").read_bytes()
    (folder / "dog" / "a.png").write_bytes(whole[:50])
    with pytest.raises(InputError, match=r"dog/a\.png: cannot be decoded.*--skip-broken"):
        everything(open_images(str(folder)))
    images = open_images(str(folder), batch_size=2, skip_broken=True)
    for _ in range(2):
        x, y = everything(images)
        assert len(x) == 4
        assert y == [0, 0, 2, 2]
        assert images.broken == ["dog/a.png"]


def test_nothing_but_broken_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no png")
    with pytest.raises(InputError, match=r"none of 1 images could be decoded, the first is a\.png"):
        list(open_images(str(tmp_path), skip_broken=True))


def test_batches_are_read_one_by_one_or_in_a_row(folder: Path) -> None:
    images = open_images(str(folder), batch_size=2, shuffle=True)
    batches = images.batches()
    assert isinstance(batches, Sequence)
    assert len(batches) == 3
    for number, (x, y) in enumerate(images):
        assert torch.equal(batches[number][0], x)
        assert torch.equal(batches[number][1], y)
    with pytest.raises(IndexError):
        batches[3]
    # Where a broken image is left out, the next one moves up into its batch.
    (folder / "cat" / "a.png").write_bytes(b"no picture")
    batches = open_images(str(folder), batch_size=2, skip_broken=True).batches()
    assert not isinstance(batches, Sequence)
    assert [len(x) for x, _ in batches] == [2, 2]


@pytest.mark.parametrize(("given", "sizes"), [(None, [2, 2, 1]), (4, [4, 1]), (1, [1] * 5)])
def test_few_images_come_in_as_many_batches_as_are_needed(folder: Path, given: int | None, sizes: list[int]) -> None:
    """Would catch a command that refuses few images for want of batches, and one that overrules --batch-size."""
    options = ImageOptions(batch_size=given)
    assert [len(x) for x, _ in options.open(str(folder), Preprocessing(size=8, crop=8), parts=2)] == sizes
    assert len(list(ImageOptions().open(str(folder), Preprocessing(size=8, crop=8)))) == 1


def test_images_of_different_shapes(folder: Path) -> None:
    picture(folder / "eel" / "c.png", 0, size=(30, 20))
    with pytest.raises(InputError, match=r"eel/c\.png is 3×20×30 but cat/a\.png is 3×10×12: give --size"):
        everything(open_images(str(folder)))
    assert everything(open_images(str(folder), Preprocessing(size=8, crop=8)))[0].shape == (6, 3, 8, 8)


def test_an_image_smaller_than_the_crop(folder: Path) -> None:
    with pytest.raises(InputError, match=r"cat/a\.png: the image is 10×12 .* give --size 11"):
        open_images(str(folder), Preprocessing(crop=11)).first()


def test_an_image_beside_class_folders(folder: Path) -> None:
    picture(folder / "stray.png", 0)
    with pytest.raises(InputError, match=r"stray\.png lies beside class folders"):
        open_images(str(folder))


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        ("nowhere", FileError, "no such file or folder .*digits, photos"),
        ("empty", InputError, "no images in it"),
        ("notes.doc", OptionError, "expected a folder"),
        ("notes.txt", InputError, "to read text its network's tokenizer is needed"),
    ],
)
def test_wrong_data(tmp_path: Path, data: str, error: type, says: str) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("notes.doc", "notes.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(error, match=says):
        open_images(str(tmp_path / data))


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"limit": 0}, {"split": "exam"}])
def test_wrong_options(folder: Path, option: dict) -> None:
    with pytest.raises(OptionError):
        open_images(str(folder), **option)


def test_a_mean_for_other_channels(folder: Path) -> None:
    with pytest.raises(InputError, match="--mean has 2 values but the images have 3"):
        open_images(str(folder), Preprocessing(mean=(0.5, 0.5))).first()


def test_digits_and_photos_are_built_in() -> None:
    pytest.importorskip("skimage")
    x, y = everything(open_images("digits", split="train"))
    assert x.shape == (1437, 1, 8, 8)
    assert (x.min(), x.max()) == (0, 1)
    assert set(y) == set(range(10))
    photos = open_images("photos", Preprocessing(size=64, crop=64))
    assert everything(photos)[0].shape == (8, 3, 64, 64)
    assert "cat" in photos.names
    assert not photos.labelled


def test_the_real_archives(shared: Path) -> None:
    imagenet = open_images(str(shared / "data" / "imagenet-500.zip"), Preprocessing(crop=224), limit=4)
    x, y = everything(imagenet)
    assert x.shape == (4, 3, 224, 224)
    assert [int(name[:3]) for name in imagenet.names] == y
    assert len(open_images(str(shared / "data" / "imagenet-500.zip"))) == 500
    cifar = open_images(str(shared / "data" / "cifar10-jpeg.zip"), prefer="test", limit=50)
    assert everything(cifar)[0].shape == (50, 3, 32, 32)
    original = open_images(str(shared / "data" / "cifar10-original-part.npz"), prefer="test")
    assert len(original) == 761
    assert original.first().shape == (3, 32, 32)


SEGMENTER = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
"""


def test_maps_of_labels_give_the_accuracy_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the labels of a segmentation refused, or pixels without a class counted as wrong."""
    monkeypatch.chdir(tmp_path)
    Path("seg.py").write_text(SEGMENTER)
    rng = np.random.default_rng(0)
    pixels, maps = rng.integers(0, 256, (24, 6, 6, 3), np.uint8), rng.integers(0, 4, (24, 6, 6), np.uint8)
    maps[:, 0] = 255
    np.savez("d.npz", images=pixels, labels=maps)
    run = CliRunner().invoke
    made = run(app, ["convert", "seg.py:net", "--data", "d.npz", "-T", "8", "-o", "seg.parspike"])
    assert made.exit_code == 0, made.output
    for more in ([], ["--operations"]):
        outcome = run(app, ["eval", "seg.parspike", "--data", "d.npz", "--json", *more])
        assert outcome.exit_code == 0, outcome.output
        found = json.loads(outcome.stdout)
        answers = parspike.load("seg.parspike")(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
        wanted = (answers == maps)[:, 1:].mean()
        assert found["accuracy"] == pytest.approx(wanted, abs=1e-3)
    outcome = run(app, ["eval", "seg.parspike", "--data", "d.npz", "--crop", "4", "--json"])
    assert json.loads(outcome.stdout)["accuracy"] is None
    assert "the maps of labels in d.npz are no classes of this network's answers" in outcome.stderr
    for command in (["data", "check", "d.npz"], ["train", "digits", "--data", "d.npz", "-o", "out"]):
        outcome = run(app, command)
        assert outcome.exit_code == 1
        assert "Traceback" not in outcome.output
        assert "class for each image" in outcome.output
