"""The loop: a killed run goes on to the same weights, and what goes wrong stops with its place."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import signal
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from training import CPU, TEST, TRAIN, Network, constant_answer, network, recipe, stripes

import parspike
from parspike.errors import FileError, InputError, OptionError
from parspike.train import (
    LIF,
    Arrays,
    Decoder,
    DivergedError,
    Hub,
    HubStream,
    OnDemand,
    TrainingRecipe,
    decode,
    fit,
    make_network,
)

pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")

pytestmark = pytest.mark.usefixtures("not_compiled")


def train(folder: Path, made: TrainingRecipe | None = None, **options: object):
    made = made or recipe()
    return fit(made, network(made), TRAIN, TEST, folder, devices=CPU, **options)  # pyright: ignore[reportArgumentType]


class KilledError(Exception):
    pass


def killed_after(steps: int):
    def progress(what: str, done: int, total: int) -> None:
        if done == steps:
            raise KilledError

    return progress


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("steps", [4, 6, 11])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, steps, accumulate):
    made = recipe(optimiser__accumulate=accumulate)
    whole = train(tmp_path / "whole", made)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", made, progress=killed_after(steps), save_every=0.0)
    torch.manual_seed(steps)  # the state of the generator must not matter
    torch.rand(7)
    resumed = train(tmp_path / "killed", made, resume=True)
    one, other = load_file(whole.weights), load_file(resumed.weights)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.step == resumed.step == 18
    assert whole.accuracy == resumed.accuracy
    rows = [list(csv.DictReader((tmp_path / run / "log.csv").open())) for run in ("whole", "killed")]
    assert [r["epoch"] for r in rows[1]] == ["1", "2", "3"]


def test_it_learns_and_converts_without_loss(tmp_path):
    result = train(tmp_path, recipe(optimiser__epochs=6))
    assert result.accuracy > constant_answer(TEST.labels)
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "log.csv").open())]
    assert losses[-1] < min(losses[0], math.log(2))  # log 2: of a network that finds both classes equally likely
    made = network(recipe())
    made.load_state_dict(load_file(result.weights))
    made = made.double().eval()
    x = TEST.images.double() / 255
    snn = parspike.convert(made, example=x, T=4)
    assert torch.allclose(snn(x), made(x), atol=1e-12)
    assert float((snn(x).argmax(1) == TEST.labels).double().mean()) == result.accuracy
    about = json.loads((tmp_path / "weights.json").read_text())
    assert about["recipe"]["optimiser"]["epochs"] == 6
    assert about["accuracy"] == result.accuracy
    assert about["data_sha256"] == TRAIN.digest


def test_accumulated_parts_make_the_same_step(tmp_path):
    # Without batch norm and chance, a batch in four parts has the same gradient.
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.act(self.fc1(x.flatten(1))))

    ends = []
    for parts in (1, 4):
        made = recipe(optimiser__accumulate=parts, precision="64-true").replace(
            {"augment.crop_padding": 0, "augment.flip": False, "augment.cutout": 0, "activation.method": "relu"}
        )
        torch.manual_seed(0)
        result = fit(made, make_network(made, Plain()), TRAIN, TEST, tmp_path / str(parts), devices=CPU)
        ends.append(load_file(result.weights))
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-9) for name in ends[0])


def test_mixed_precision_runs(tmp_path):
    result = train(tmp_path, recipe(precision="bf16-mixed", optimiser__epochs=6))
    assert result.accuracy > constant_answer(TEST.labels)


def test_the_scale_of_half_precision_gradients_is_in_the_checkpoint(tmp_path, monkeypatch):
    """Fabric scales on GPUs only: a scaler of the CPU stands in, which doubles its scale every second step."""
    fabric = pytest.importorskip("lightning_fabric")
    scalers: list[Any] = []

    def make(*args: Any) -> Any:
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=2))
        plugin = fabric.plugins.MixedPrecision("16-mixed", "cpu", scalers[-1])
        return fabric.Fabric(accelerator="cpu", devices=1, plugins=plugin)

    monkeypatch.setattr("parspike.train.loop.make_fabric", make)
    made = recipe(precision="16-mixed", optimiser__epochs=2)
    whole = train(tmp_path / "whole", made)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", made, progress=killed_after(6), save_every=0.0)
    resumed = train(tmp_path / "killed", made, resume=True)
    assert scalers[0].get_scale() == scalers[2].get_scale() == 2.0**10
    one, other = load_file(whole.weights), load_file(resumed.weights)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_half_precision_needs_a_gpu(tmp_path):
    with pytest.raises(OptionError, match="16-mixed needs a GPU: set precision=bf16-mixed"):
        train(tmp_path, recipe(precision="16-mixed"))


def test_early_stop(tmp_path):
    made = recipe(optimiser__epochs=50, optimiser__patience=2, optimiser__lr=1e-9)
    result = train(tmp_path, made)
    assert result.epoch < 50
    assert len(list(csv.DictReader((tmp_path / "log.csv").open()))) == result.epoch
    assert train(tmp_path, made, resume=True).step == result.step


def test_a_run_killed_before_its_checkpoint_logs_each_epoch_once(tmp_path):
    made = recipe(optimiser__epochs=2)
    with pytest.raises(KilledError):
        train(tmp_path, made, progress=killed_after(7), save_every=1e9)
    with (tmp_path / "log.csv").open("a") as stream:
        stream.write("2,12,0.5,0.9,0.0,1.0\n")
    train(tmp_path, made, resume=True)
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "log.csv").open())] == ["1", "2"]


def test_the_random_state_is_left_alone(tmp_path):
    state = torch.get_rng_state()
    made = recipe(optimiser__epochs=1)
    torch.set_rng_state(state)
    fit(made, make_network(made), TRAIN, TEST, tmp_path, devices=CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_log_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    train(tmp_path, recipe(optimiser__epochs=1), tensorboard=True)
    assert any(path.name.startswith("events.out") for path in tmp_path.rglob("*"))


def test_a_folder_with_a_training_is_not_written_over(tmp_path):
    train(tmp_path, recipe(optimiser__epochs=1))
    with pytest.raises(FileError, match="--resume"):
        train(tmp_path, recipe(optimiser__epochs=1))


def test_resume_with_another_recipe_is_refused(tmp_path):
    train(tmp_path, recipe(optimiser__epochs=1))
    with pytest.raises(
        OptionError, match=r"optimiser\.epochs: 2 and 1\n.*seed: 5 and 0|seed: 5 and 0\n.*epochs: 2 and 1"
    ):
        train(tmp_path, recipe(optimiser__epochs=2, seed=5), resume=True)


def test_resume_with_another_network_lists_the_keys(tmp_path):
    train(tmp_path, made := recipe(optimiser__epochs=1))
    other: Any = Network()
    other.fc, other.extra = nn.Linear(4 * 64, 3), nn.Linear(2, 2)
    del other.bn1
    other.bn1 = nn.Identity()
    with pytest.raises(InputError) as error:
        fit(made, make_network(made, other), TRAIN, TEST, tmp_path, devices=CPU, resume=True)
    text = str(error.value)
    assert "missing: extra.weight" in text
    assert "unexpected: bn1.running_mean" in text
    assert "fc.weight is (2, 256), expected (3, 256)" in text


def test_resume_with_other_data_is_refused(tmp_path):
    train(tmp_path, made := recipe(optimiser__epochs=1))
    with pytest.raises(InputError, match="other training images"):
        fit(made, network(made), stripes(96, seed=7), TEST, tmp_path, devices=CPU, resume=True)


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path):
    train(tmp_path, made := recipe(optimiser__epochs=1))
    path = tmp_path / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileError, match="not a readable checkpoint"):
        train(tmp_path, made, resume=True)


def test_a_checkpoint_of_an_older_parspike_is_one_clear_error(tmp_path):
    train(tmp_path, made := recipe(optimiser__epochs=1))
    path = tmp_path / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    del saved["precision"]
    torch.save(saved, path)
    with pytest.raises(FileError, match="it lacks precision"):
        train(tmp_path, made, resume=True)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    made = recipe(optimiser__epochs=2)
    old_limit, old_handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(what: str, done: int, total: int) -> None:
        if done == 7:  # after the checkpoint of the first epoch
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old_limit[1]))

    try:
        with pytest.raises(FileError, match=r"checkpoint of step 12 cannot be written.*last\.ckpt, stays"):
            train(tmp_path, made, progress=fill, save_every=1e9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "log.csv"]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["step"] == 6
    assert train(tmp_path, made, resume=True).step == 12


def test_a_loss_that_is_not_finite_stops_with_step_and_layer(tmp_path):
    made = recipe()
    model = network(made)

    def poison(what: str, done: int, total: int) -> None:
        if done == 8:
            model.conv1.register_forward_hook(lambda m, a, out: out * float("inf"))

    with pytest.raises(DivergedError, match=r"step 8 \(epoch 2\): .*'conv1'; the last good checkpoint, .*last\.ckpt"):
        fit(made, model, TRAIN, TEST, tmp_path, devices=CPU, progress=poison)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["step"] == 6
    assert all(torch.isfinite(t).all() for t in saved["network"].values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    made = recipe(optimiser__epochs=2)
    model = network(made)

    def poison(what: str, done: int, total: int) -> None:
        if done == 12:
            model.fc.weight.data[0, 0] = float("nan")

    with pytest.raises(DivergedError, match=r"'fc\.weight' is not finite after step 12"):
        fit(made, model, TRAIN, TEST, tmp_path, devices=CPU, progress=poison)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 6


def test_colours_and_channels_that_grey_images_do_not_have(tmp_path):
    made = recipe(augment__policy="cifar10", augment__jitter=0.1)
    with pytest.raises(OptionError, match=r"augment\.policy and augment\.jitter .* 1 channel"):
        train(tmp_path, made)
    made = recipe(data__mean=[0.1, 0.2, 0.3])
    with pytest.raises(OptionError, match=r"data\.mean of the recipe has 3 values but the images have 1 channel"):
        train(tmp_path, made)


def test_a_threshold_that_fell_below_zero_is_never_saved(tmp_path):
    made = recipe(optimiser__epochs=2)
    model = network(made)

    def poison(what: str, done: int, total: int) -> None:
        if done == 12:
            model.act1.v_threshold.data.neg_()

    with pytest.raises(DivergedError, match=r"the threshold of layer 'act1' fell to 0 or below after step 12;"):
        fit(made, model, TRAIN, TEST, tmp_path, devices=CPU, progress=poison)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 6


def test_labels_the_classifier_cannot_learn(tmp_path):
    made = recipe()
    far = Arrays.of(TRAIN.images, TRAIN.labels * 5)
    with pytest.raises(InputError, match="labels run from 0 to 5, but the recipe has classes = 2"):
        fit(made, network(made), far, TEST, tmp_path, devices=CPU)
    one = Arrays.of(TRAIN.images, TRAIN.labels * 0)
    with pytest.raises(InputError, match=r"one class \(0\)"):
        fit(made, network(made), one, TEST, tmp_path, devices=CPU)


def test_options_that_do_not_fit_the_data(tmp_path):
    made = recipe(optimiser__batch_size=128)
    with pytest.raises(InputError, match="96 training images are fewer than batch_size = 128"):
        fit(made, network(made), TRAIN, TEST, tmp_path, devices=CPU)
    many = recipe(data__classes=10)
    with pytest.raises(InputError, match=r"gives \(16, 2\); expected logits \(B, 10\)"):
        fit(many, network(many), TRAIN, TEST, tmp_path, devices=CPU)


def test_decoded_images_are_kept_and_read_again(tmp_path):
    def batches():
        for rows in torch.arange(96).split(40):
            read.append(len(rows))
            yield TRAIN.take(rows)

    read: list[int] = []
    first = decode(batches(), 96, tmp_path / "cache" / "stripes.1")
    again = decode(batches(), 96, tmp_path / "cache" / "stripes.1")
    assert read == [40, 40, 16]
    assert sorted(os.listdir(tmp_path / "cache")) == [f"stripes.1.{kind}" for kind in ("images", "json", "labels.npy")]
    for arrays in (first, again):
        assert torch.equal(arrays.images, TRAIN.images)
        assert torch.equal(arrays.labels, TRAIN.labels)
        assert arrays.digest == TRAIN.digest


def test_what_cannot_be_decoded_into_one_array():
    with pytest.raises(InputError, match="no labels"):
        decode([(torch.rand(2, 1, 4, 4), None)], 2)
    with pytest.raises(InputError, match="unlike size"):
        decode([(torch.rand(2, 1, 4, 4), torch.zeros(2)), (torch.rand(2, 1, 4, 5), torch.zeros(2))], 4)
    with pytest.raises(InputError, match="no images"):
        decode([], 0)
    with pytest.raises(InputError, match="uint8"):
        replace(TRAIN, images=TRAIN.images.float())


def test_direct_training_runs_in_the_same_loop(tmp_path):
    made = recipe(activation__method="stbp", activation__T=3, optimiser__epochs=6)
    model = network(made)
    assert model.T == 3
    result = fit(made, model, TRAIN, TEST, tmp_path, devices=CPU)
    assert result.accuracy > constant_answer(TEST.labels)


def test_lif_neurons_by_hand():
    lif = LIF(3, tau=0.5, v_threshold=1.0)
    current = torch.tensor([[0.8], [0.8], [0.2]], requires_grad=True)
    spikes = lif(current)  # u = 0.8, then 0.4 + 0.8 = 1.2 fires, then 0 + 0.2
    assert spikes.flatten().tolist() == [0.0, 1.0, 0.0]
    spikes[1].sum().backward()
    # The rectangle is 1 at u(2) = 1.2; u(1) reaches it through the leak, and through the reset at u(1) = 0.8.
    assert current.grad is not None
    assert torch.allclose(current.grad.flatten(), torch.tensor([0.5 - 0.5 * 0.8, 1.0, 0.0]))
    with pytest.raises(InputError, match="no multiple of T = 3"):
        lif(torch.rand(4, 2))
    with pytest.raises(OptionError, match="T = 0"):
        LIF(0)


class Photos:
    """A source of images of unlike size."""

    names = tuple(f"photo {i}" for i in range(96))
    labels: Any = TRAIN.labels.tolist()

    def __init__(self) -> None:
        self.read_rows: list[int] = []

    def read(self, index: int, preprocess: Any) -> Tensor:
        self.read_rows.append(index)
        return torch.nn.functional.pad(TRAIN.images[index] / 255, (0, index % 3, 0, index % 2))


def test_images_decoded_on_demand_resume_to_the_same_weights(tmp_path):
    made = recipe(augment__resized_crop=8, augment__crop_padding=0)

    def go(folder: str, **options: Any) -> tuple[Any, Photos]:
        source = Photos()
        data = OnDemand(source, None, Decoder(resized_crop=8, threads=3))
        return fit(made, network(made), data, TEST, tmp_path / folder, devices=CPU, **options), source

    whole, _ = go("whole")
    with pytest.raises(KilledError):
        go("killed", progress=killed_after(10), save_every=0.0)
    resumed, source = go("killed", resume=True)
    one, other = load_file(whole.weights), load_file(resumed.weights)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(source.read_rows) <= (18 - 9 + 1) * 16  # what came before the checkpoint is not read again


def test_images_decoded_on_demand_say_what_is_wrong():
    rows = torch.arange(8)
    with pytest.raises(InputError, match=r"photo 1 is \(1, 9, 9\) but photo 0 is \(1, 8, 8\).*resized_crop"):
        OnDemand(Photos(), None).take(rows, 0)
    data = OnDemand(Photos(), None, Decoder(resized_crop=6))
    assert data.take(rows, 0)[0].shape == (8, 1, 6, 6)
    assert torch.equal(data.take(rows, 1)[0], data.take(rows, 1)[0])
    assert not torch.equal(data.take(rows, 1)[0], data.take(rows, 2)[0])
    unlabelled = Photos()
    unlabelled.labels = None
    with pytest.raises(InputError, match="no labels"):
        OnDemand(unlabelled, None)


def test_hugging_face_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pictures = [Image.fromarray(x[0].numpy()) for x in TRAIN.images[:12]]
    rows = datasets.Dataset.from_dict({"img": pictures, "label": TRAIN.labels[:12].tolist()}, features=features)
    rows.to_parquet(tmp_path / "some.parquet")
    source = Hub(f"{tmp_path}/some.parquet@train", "test")
    assert source.labels == TRAIN.labels[:12].tolist()
    data = OnDemand(source, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    x, y = data.take(torch.tensor([3, 1]), 0)
    assert torch.equal((x * 255).round().to(torch.uint8)[:, :1], TRAIN.images[[3, 1]])
    assert torch.equal(y, TRAIN.labels[[3, 1]])
    with pytest.raises(OptionError, match="hf:nowhere"):
        Hub(str(tmp_path / "nowhere.parquet").replace(str(tmp_path / "nowhere"), "nowhere"), "train")


def parquet(folder: Path, lengths: list[int], labels: Any = None, kind: Any = None) -> str:
    """TRAIN in several files, each image with its number in the corner; the pattern that names them."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "label": kind or datasets.ClassLabel(names=["across", "down"])}
    )
    folder.mkdir(exist_ok=True)
    start, labels = 0, labels or TRAIN.labels.tolist()
    for number, length in enumerate(lengths):
        pictures = [x[0].numpy().copy() for x in TRAIN.images[start : start + length]]
        for place, pixels in enumerate(pictures):
            pixels[0, 0] = start + place
        rows = {
            "img": [Image.fromarray(p) for p in pictures],
            "label": (labels or TRAIN.labels.tolist())[start : start + length],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"train-{number}.parquet")
        start += length
    return f"{folder}/train-*.parquet"


def grey(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image))[None, :, :, 0] / 255


def stream(name: str, decoder: Decoder | None = None) -> HubStream:
    return HubStream(name, "train", 2, grey, decoder or Decoder(threads=2))


def numbers(x: Tensor) -> list[int]:
    return (x[:, 0, 0, 0] * 255).round().int().tolist()


@pytest.fixture
def no_waiting(monkeypatch):
    """At the end of each pass, datasets waits five seconds for threads of Arrow that may not have ended."""
    monkeypatch.setattr(pytest.importorskip("datasets").config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("lengths", [[24, 24, 24, 24], [90, 3, 3]])  # own files each; every second image of all
def test_a_stream_gives_each_image_to_one_process_once_an_epoch(tmp_path, lengths):
    name = parquet(tmp_path / "data", lengths)
    orders = []
    for seed in (1, 2):
        shares = []
        for rank in (0, 1):
            read = stream(name)
            batches = [read.take(8, after, seed, rank, 2) for after in range(0, 48, 8)]
            shares.append([number for x, _ in batches for number in numbers(x)])
            labels = torch.cat([y for _, y in batches])
            assert torch.equal(labels, TRAIN.labels[shares[-1]])
        assert sorted(shares[0] + shares[1]) == list(range(96))
        orders.append(shares[0])
    assert orders[0] != orders[1] != sorted(orders[1])
    # From the middle, as a resumed run asks, and where a share has come to its end.
    middle = stream(name).take(8, 16, 1, 0, 2)[0]
    assert numbers(middle) == orders[0][16:24]
    assert numbers(stream(name).take(4, 46, 1, 0, 2)[0]) == [*orders[0][46:], *orders[0][:2]]


@pytest.mark.usefixtures("no_waiting")
def test_a_stream_resumes_in_mid_epoch_to_the_same_weights(tmp_path):
    name, made = parquet(tmp_path / "data", [50, 46]), recipe(augment__resized_crop=8, optimiser__accumulate=2)

    def go(folder: str, **options: Any) -> Any:
        read = stream(name, Decoder(resized_crop=8, threads=3))
        return fit(made, network(made), read, TEST, tmp_path / folder, devices=CPU, **options)

    whole = go("whole")
    with pytest.raises(KilledError):
        go("killed", progress=killed_after(10), save_every=0.0)
    one, other = load_file(whole.weights), load_file(go("killed", resume=True).weights)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.step == 18
    with pytest.raises(InputError, match="other training images"):
        fit(made, network(made), stream(parquet(tmp_path / "few", [90])), TEST, tmp_path / "whole", devices=CPU,
            resume=True)  # fmt: skip


@pytest.mark.usefixtures("no_waiting")
def test_a_stream_says_what_is_wrong(tmp_path):
    datasets = pytest.importorskip("datasets")
    far = stream(parquet(tmp_path / "far", [96], [7] * 96, datasets.Value("int64")))
    with pytest.raises(InputError, match="labels run from 7 to 7, but the recipe has classes = 2"):
        far.take(8, 0, 0)
    with pytest.raises(InputError, match=r"column 'label' holds .*string.*; expected whole numbers"):
        stream(parquet(tmp_path / "text", [96], ["a"] * 96, datasets.Value("string")))
    for number in range(2):
        picture = tmp_path / "train" / f"class{number}" / "a.png"
        picture.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(picture)
    with pytest.raises(OptionError, match=r"does not say how many images it has.*--on-demand"):
        stream(str(tmp_path / "train"))


@pytest.mark.parametrize("error", [zipfile.BadZipFile, zlib.error, Image.DecompressionBombError])
def test_what_zips_and_pillow_raise_is_a_broken_image(error):
    class Broken(Photos):
        def read(self, index: int, preprocess: Any) -> Tensor:
            if index == 1:
                raise error("damaged")
            return TRAIN.images[index] / 255

    with pytest.raises(InputError, match=r"photo 1: cannot be decoded \(damaged\).*--skip-broken"):
        OnDemand(Broken(), None).plain(torch.arange(3))
    data = OnDemand(Broken(), None, Decoder(skip_broken=True))
    assert len(data.plain(torch.arange(3))[0]) == 2
    assert data.decoder.broken == ["photo 1"]


def test_broken_images_on_demand_are_left_out_and_named():
    class Broken(Photos):
        def read(self, index: int, preprocess: Any) -> Tensor:
            if index % 4 == 1:
                raise OSError("no image")
            return TRAIN.images[index] / 255

    rows = torch.arange(8)
    with pytest.raises(InputError, match=r"photo 1: cannot be decoded \(no image\).*--skip-broken"):
        OnDemand(Broken(), None).take(rows, 0)
    data = OnDemand(Broken(), None, Decoder(skip_broken=True))
    x, y = data.take(rows, 0)  # full, because a step has to be
    assert torch.equal(x, TRAIN.images[[0, 2, 3, 4, 6, 7, 0, 2]] / 255)
    assert torch.equal(y, TRAIN.labels[[0, 2, 3, 4, 6, 7, 0, 2]])
    x, y = data.plain(rows)
    assert torch.equal(x, TRAIN.images[[0, 2, 3, 4, 6, 7]] / 255)
    assert torch.equal(y, TRAIN.labels[[0, 2, 3, 4, 6, 7]])
    assert sorted(data.decoder.broken) == ["photo 1", "photo 5"]
    with pytest.raises(InputError, match="none of 1 images could be decoded, the first is photo 1"):
        data.plain(torch.tensor([1]))
