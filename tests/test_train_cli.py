"""`parspike train` and `parspike data check`, as a user types them."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from parspike.cli import app
from parspike.errors import FileError, InputError
from parspike.train import load_trained
from parspike.train.networks import build

pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")
pytest.importorskip("sklearn", reason="the digits need pip install 'parspike[demo]'")

SHORT = ("--data", "digits", "--devices", "1", "--accelerator", "cpu", "--set", "optimiser.epochs=2")
PROGRAM = "from parspike.cli import main; main()"
pytestmark = pytest.mark.usefixtures("not_compiled")


def invoke(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, result.output
    return result


def run(*args: object, code: int = 0) -> str:
    return invoke(*args, code=code).output


def answer(*args: object, code: int = 0) -> dict:
    return json.loads(invoke(*args, "--json", code=code).stdout)


def error(*args: object) -> str:
    return answer(*args, code=1)["error"]["message"]


def picture(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def test_digits(tmp_path):
    said = answer("train", "digits", *SHORT, "-o", tmp_path / "run")
    log = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert float(log[-1]["loss"]) < min(float(log[0]["loss"]), math.log(10))  # log 10: ten classes equally likely
    assert said["accuracy"] == float(log[-1]["accuracy"])
    assert said["recipe"]["optimiser"]["epochs"] == 2
    assert load_file(said["weights"])["act1.v_threshold"].shape == ()
    text = run("train", "digits", *SHORT, "-o", tmp_path / "run", "--resume")
    assert f"{100 * said['accuracy']:.2f} % of 360 test images" in text
    assert "--resume" in error("train", "digits", *SHORT, "-o", tmp_path / "run")


def test_what_was_trained_converts_from_the_command_line(tmp_path):
    # The network says how its images were prepared, so that no later command is told again.
    prepared = ("--set", "data.mean=[0.4]", "--set", "data.std=[0.02]")
    trained = answer("train", "digits", *SHORT, *prepared, "-o", tmp_path / "run")
    spec, spiking = f"{tmp_path}/run/network.py:network", tmp_path / "net.parspike"
    answer("convert", spec, "--shape", "1,8,8", "-T", 4, "-o", spiking)
    scored = answer("eval", spiking, "--data", "digits", "--against", spec)
    assert scored["accuracy"] == scored["network_accuracy"] == pytest.approx(trained["accuracy"])
    assert scored["agreement"] == 1.0


def test_weights_that_do_not_fit_their_recipe(tmp_path):
    trained = answer("train", "digits", *SHORT, "-o", tmp_path / "run")
    about = Path(trained["weights"]).with_suffix(".json")
    about.write_text(about.read_text().replace('"classes": 10', '"classes": 12'))
    with pytest.raises(InputError, match=r"these differ: fc\.bias, fc\.weight"):
        load_trained(tmp_path / "run")
    about.unlink()
    with pytest.raises(FileError, match=r"needs its \.json"):
        load_trained(tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_by_the_system_goes_on_to_the_same_weights(tmp_path):
    def command(folder: str, *more: str) -> list[str]:
        args = ["train", "digits", *SHORT, "--set", "optimiser.epochs=40", "--save-every", "0", "-o"]
        return [sys.executable, "-c", PROGRAM, *args, str(tmp_path / folder), *more]

    environment = os.environ | {"TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(command("killed"), env=environment, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if (tmp_path / "killed" / "last.ckpt").exists():
            break
        time.sleep(0.1)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    done = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["step"]
    assert 0 < done < 880
    args = ["train", "digits", *SHORT, "--set", "optimiser.epochs=40"]
    run(*args, "-o", tmp_path / "killed", "--resume")
    run(*args, "-o", tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_fine_tuning_from_a_relu_network(tmp_path):
    relu = answer("train", "digits", *SHORT, "--set", "activation.method=relu", "-o", tmp_path / "relu")
    fine = answer(
        "train", "digits", *SHORT, "--from", relu["weights"], "-o", tmp_path / "qcfs",
        "--set", "activation.v_threshold=99.9%", "--set", "optimiser.epochs=1", "--set", "optimiser.lr=1e-9",
    )  # fmt: skip
    begun, tuned = load_file(relu["weights"]), load_file(fine["weights"])
    weights = [name for name in begun if name.endswith("weight")]
    assert all(torch.allclose(tuned[name], begun[name], rtol=0, atol=1e-6) for name in weights)
    thresholds = [float(value) for name, value in tuned.items() if name.endswith("v_threshold")]
    assert len(set(thresholds)) == len(thresholds) > 1  # each its own percentile, where 8.0 is what stands without one


def test_weights_of_another_network_are_listed(tmp_path):
    state = build("digits", 10).state_dict()
    state["fc.weight"] = torch.zeros(10, 3)
    state["extra"] = torch.zeros(1)
    del state["bn1.weight"]
    save_file(state, tmp_path / "other.safetensors")
    text = error("train", "digits", *SHORT, "-o", tmp_path / "run", "--from", tmp_path / "other.safetensors")
    for part in ("missing (1): bn1.weight", "unexpected (1): extra", "fc.weight is (10, 3), expected (10, 512)"):
        assert part in text


def test_a_network_of_the_user(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch.nn.functional as F\nfrom torch import nn\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.a = nn.Linear(64, 32); self.b = nn.Linear(32, 10)\n"
        "    def forward(self, x):\n        return self.b(F.relu(self.a(x.flatten(1))))\n"
    )
    said = answer("train", "digits", *SHORT, "--network", f"{tmp_path}/mine.py:Mine", "-o", tmp_path / "run")
    assert "neurons.0.v_threshold" in load_file(said["weights"])


def test_wrong_arguments(tmp_path):
    out = ("-o", tmp_path / "run")
    assert "choose" in error("train", "nothing", *SHORT, *out)
    assert "NAME=VALUE" in error("train", "digits", *SHORT, *out, "--set", "seed")
    assert "unknown epoch" in error("train", "digits", *SHORT, *out, "--set", "optimiser.epoch=3")
    assert "--devices none" in error("train", "digits", "--data", "digits", *out, "--devices", "none")
    assert "classes = 5" in error("train", "digits", *SHORT, *out, "--set", "data.classes=5")


def test_a_broken_image_is_named_and_can_be_left_out(tmp_path):
    for split, count in (("train", 40), ("test", 10)):
        for number in range(count):
            picture(tmp_path / "data" / split / f"class{number % 2}" / f"{number:02d}.png", number)
    broken = tmp_path / "data" / "train" / "class1" / "05.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    args = ("train", "digits", *SHORT, "--data", tmp_path / "data", "--set", "data.classes=2",
            "--set", "optimiser.batch_size=13",
            "--network", f"{tmp_path}/net.py:net", "--cache", tmp_path / "cache")  # fmt: skip
    assert "train/class1/05.png: cannot be decoded" in error(*args, "-o", tmp_path / "run")
    said = answer(*args, "-o", tmp_path / "run", "--skip-broken")
    assert said["step"] == 6
    picture(tmp_path / "data" / "test" / "class00" / "a.png", 0)
    text = error(*args, "-o", tmp_path / "again", "--skip-broken")
    assert "class00 has no training images" in text
    for number in range(13):  # and a class that only the test images lack
        picture(tmp_path / "data" / "train" / "a class" / f"{number}.png", number)
        picture(tmp_path / "data" / "train" / "class00" / f"{number}.png", number)
    four = ("--set", "data.classes=4")
    # A file of its own: one of the same size written in the same second has the bytecode of the old one.
    (tmp_path / "net4.py").write_text((tmp_path / "net.py").read_text().replace("(8, 2)", "(8, 4)"))
    args = (*args, "--network", f"{tmp_path}/net4.py:net")
    assert answer(*args, *four, "-o", tmp_path / "again", "--skip-broken")["step"] == 10
    (tmp_path / "data" / "test").rename(tmp_path / "apart")
    text = error(*args, *four, "--test-data", tmp_path / "apart", "-o", tmp_path / "third", "--skip-broken")
    assert "class1 is 3 and 2" in text


def test_data_check_says_what_is_there(tmp_path):
    for number in range(6):
        picture(tmp_path / "train" / f"class{number % 2}" / f"{number}.png", number)
    picture(tmp_path / "test" / "class0" / "a.png", 0)
    picture(tmp_path / "test" / "class2" / "b.png", 0, (9, 8))
    (tmp_path / "test" / "class0" / "c.png").write_bytes(b"no image")
    said = answer("data", "check", tmp_path, code=1)
    assert said["splits"]["train"]["classes"] == {"0": 3, "1": 3}
    assert said["splits"]["test"]["sizes"] == {"3×8×8": 1, "3×9×8": 1}
    assert said["splits"]["test"]["broken"][0].startswith("test/class0/c.png")
    text = "\n".join(said["problems"])
    assert "1 images cannot be decoded" in text
    assert "2 sizes" in text
    assert "class2 has no training images" in text
    assert "2 sizes" not in "\n".join(answer("data", "check", tmp_path, "--size", 8, "--crop", 8, code=1)["problems"])


def test_data_check_one_class_and_no_labels(tmp_path):
    picture(tmp_path / "one" / "cat" / "a.png", 0)
    assert answer("data", "check", tmp_path / "one", code=1)["problems"] == ["all images are of one class"]
    picture(tmp_path / "flat" / "a.png", 0)
    assert "one folder a class" in answer("data", "check", tmp_path / "flat", code=1)["problems"][0]
    picture(tmp_path / "flat" / "cat" / "a.png", 0)
    assert "lies beside class folders" in error("data", "check", tmp_path / "flat")


def test_what_a_user_gets_wrong_is_one_clear_error(tmp_path):
    for number in range(20):
        picture(tmp_path / "data" / f"class{number % 2}" / f"{number}.png", number)
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU())\n"
    )
    args = ("train", "digits", *SHORT, "--data", tmp_path / "data", "--set", "data.classes=2",
            "--set", "optimiser.batch_size=10", "--cache", tmp_path / "cache")  # fmt: skip
    mine = ("--network", f"{tmp_path}/net.py:net")
    assert "digits cannot take these images, (3, 8, 8) (C, H, W)" in error(*args, "-o", tmp_path / "run")
    (tmp_path / "file").touch()
    assert "no folder can be made there" in error(*args, *mine, "-o", tmp_path / "file")
    assert "has no test images: the accuracy is that of the training images" in run(*args, *mine, "-o", tmp_path / "r")
    assert "these devices cannot be used" in error(*args, *mine, "-o", tmp_path / "x", "--strategy", "none")
    assert "--nodes must be" in error(*args, *mine, "-o", tmp_path / "x", "--nodes", 0)
    assert "take --on-demand" in error(*args, *mine, "-o", tmp_path / "x", "--stream")
    (tmp_path / "data" / "deeper").mkdir()
    for name in ("class0", "class1"):
        (tmp_path / "data" / name).rename(tmp_path / "data" / "deeper" / name)
    assert "images lie in train/CLASS/ and test/CLASS/" in error(*args, *mine, "-o", tmp_path / "x")


@pytest.mark.parametrize("how", [[], ["--on-demand"]])
def test_values_that_are_no_pixels_are_refused(tmp_path: Path, how: list[str]) -> None:
    """What had been normalised before was cut to 0 … 1 without a word, and `eval` of the network did not cut it."""
    x = np.random.default_rng(0).random((60, 1, 8, 8), dtype=np.float32)
    x[:, 0, 0, :2] = 0, 1  # each image has both, so that the one that is told first may be any
    args = ("train", "digits", *SHORT[2:], "--set", "data.classes=2", "-o", tmp_path / "run", "--cache", tmp_path / "c")
    for wrong, says in (
        (2 * x - 0.5, r"hold values from -0.5 to 1.5, which would be cut: give uint8 images, or floats divided by 255"),
        (255 * x, "hold values from 0 to 255"),
        (np.where(x > 0.9, np.nan, x), "hold values from nan to nan"),
        (x.reshape(60, 64), "have the shape (64,): give image files, or uint8 arrays"),
    ):
        np.savez(tmp_path / "data.npz", images=wrong.astype(np.float32), labels=np.arange(60) % 2)
        said = error(*args, *how, "--data", tmp_path / "data.npz")
        assert says in said
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_hugging_face_rows_checked_and_streamed(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split in ("train", "test"):
        for number in range(20):
            picture(tmp_path / split / f"{number}.png", number)
        rows = {"image": [str(p) for p in sorted((tmp_path / split).iterdir())], "label": [0, 1] * 10}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    said = answer("data", "check", f"hf:{tmp_path}/train.parquet")
    assert said["splits"][""] | {"broken": []} == {
        "images": 20, "classes": {"0": 10, "1": 10}, "sizes": {"3×8×8": 20}, "broken": [], "not_finite": []
    }  # fmt: skip
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 2))\n"
    )
    said = answer(
        "train", "digits", *SHORT, "--data", f"hf:{tmp_path}/train.parquet", "--stream",
        "--test-data", f"hf:{tmp_path}/test.parquet", "-o", tmp_path / "run", "--set", "data.classes=2",
        "--set", "optimiser.batch_size=10", "--network", f"{tmp_path}/net.py:net",
    )  # fmt: skip
    assert said["step"] == 4


def test_data_check_of_good_data():
    text = run("data", "check", "digits")
    assert "1437 images, 10 classes with" in text


def test_data_check_of_images_smaller_than_the_crop(tmp_path: Path) -> None:
    """They were images that cannot be decoded, and had no labels."""
    picture(tmp_path / "data" / "a" / "0.png", 0)
    said = error("data", "check", tmp_path / "data", "--crop", 16)
    assert said == "a/0.png: the image is 8×8 (H×W), smaller than the crop 16: give --size 16 or more"


def test_data_check_of_values_and_labels_that_a_network_would_stumble_over(tmp_path):
    """Would catch NaN, and classes that are not counted from 0, of which nothing was said."""
    x = np.random.default_rng(0).random((6, 3), dtype=np.float32)
    labels = np.array([5, 6, 7] * 2)
    np.savez(tmp_path / "late.npz", x=x, y=labels)
    assert "6 images, 3 classes, numbered 5 … 7, with 2 images each" in run("data", "check", tmp_path / "late.npz")
    np.savez(tmp_path / "low.npz", x=x, y=labels - 6)
    assert answer("data", "check", tmp_path / "low.npz", code=1)["problems"] == [
        "a class -1; classes are numbered 0, 1, 2, …"
    ]
    x[[1, 4], 2] = np.nan, np.inf
    np.savez(tmp_path / "nan.npz", x=x, y=labels - 5)
    assert answer("data", "check", tmp_path / "nan.npz", code=1)["problems"] == [
        "2 hold NaN or Inf, nan.npz:x[1] first; leave them out"
    ]
