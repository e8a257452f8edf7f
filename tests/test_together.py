"""Two processes against one: the same files, the same figures, and one fate."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from networks import Quantised, Residual, made
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from typer.testing import CliRunner

import parspike
from parspike.baselines import phase
from parspike.calibrate import auto, layerwise, staircase
from parspike.calibrate.staircase import Sample
from parspike.cli import app
from parspike.errors import CalibrationError, MissingExtraError, ParspikeError
from parspike.together import Together, _told

NET = """
import torch

def net():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
"""
EVAL = ("eval", "net.parspike", "--data", "data.npz", "--against", "net.py:net", "--batch-size", "5", "--operations",
        "--json")  # fmt: skip
CONVERT = ("convert", "net.py:net", "--data", "data.npz", "--recipe", "closed-form", "--batch-size", "7")


class Curved(nn.Module):
    """A staircase, and neurons with evenly spaced levels behind it."""

    __module__ = "curved"  # files name the network, whoever imports this

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(3, 4, 3), nn.Linear(144, 20), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.relu(self.fc(torch.sigmoid(self.conv(x)).flatten(1))))


class Stream:
    """What can be read from its beginning only."""

    def __init__(self, batches: list[torch.Tensor], fault: int = -1) -> None:
        self.batches, self.fault = batches, fault

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            if number == self.fault:
                raise RuntimeError("the disk is gone")
            yield batch


def batches(*sizes: int, shape: tuple[int, ...] = (3, 8, 8)) -> list[torch.Tensor]:
    return list(torch.randn(sum(sizes), *shape, generator=torch.Generator().manual_seed(1)).split(sizes))


ODD = (20, 20, 20, 20, 7)
CASES: dict[str, tuple[Any, Any, Any]] = {
    "max": (Residual, parspike.Thresholds(), batches(*ODD)),
    "percentile": (Residual, parspike.Thresholds("99%"), batches(*ODD)),
    "exact": (Residual, parspike.DAQCFS(means="exact", passes=2), batches(*ODD)),
    "moving": (Quantised, parspike.DAQCFS(), batches(*ODD, shape=(1, 8, 8))),
    "closed-form": (Residual, parspike.ClosedForm(), Stream(batches(*ODD))),
    "ridge": (Residual, parspike.ClosedForm(ridge=1e-3), batches(*ODD)),
    "staircase": (Curved, parspike.ClosedForm(), batches(*ODD)),
    "reconstruct": (Quantised, parspike.Reconstruct(steps=2), batches(3, 3, shape=(1, 8, 8))),
    "auto": (Curved, parspike.Auto(budget=1e-6), batches(*[1] * 70)),
    "if": (Residual, parspike.ClosedForm(), batches(*ODD)),
    "lif, rate": (Curved, parspike.ClosedForm(refit=False, granularity="layer"), Stream(batches(*ODD))),
    "if-zero, auto": (Curved, parspike.Auto(budget=1e-6), batches(*[5] * 14)),
    **{
        name: (Residual, parspike.recipe_from_json({"name": name, **options}), batches(*ODD))
        for name, options in {
            "rmp": {},
            "rnl": {},
            "robust-norm": {},
            "snnc-lp": {},
            "snnc-ap": {"steps": 2},
            "tbc": {"iterations": 7},
            "ftbc": {"iterations": 5},
            "bn-recal": {},
            "phase": {},
            "snm": {},
            "dcgs": {},
            "adafire": {"most": 2, "wanted": 1},
        }.items()
    },
    "one batch": (Curved, parspike.ClosedForm(), batches(6)),
    "one batch, percentile": (Residual, parspike.DAQCFS(mode="90%", means="exact"), batches(6)),
}

SERIAL: dict[str, dict[str, Any]] = {
    "if": {"neuron": parspike.IF(bias="step")},
    "lif, rate": {"neuron": parspike.LIF(0.9), "input": "rate"},
    "if-zero, auto": {"neuron": parspike.IF(reset="zero")},
}


def network(kind: type[nn.Module]) -> nn.Module:
    if kind is not Curved:
        return made(kind)[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Curved().eval()


@functools.cache
def planned(kind: type[nn.Module]) -> parspike.Plan:
    return parspike.plan(network(kind), batches(2, shape=(1, 8, 8) if kind is Quantised else (3, 8, 8))[0])


def convert(name: str, path: Path, group: Any = None) -> None:
    kind, recipe, data = CASES[name]
    parspike.convert(planned(kind), data, T=3, recipe=recipe, group=group, **SERIAL.get(name, {})).save(path)


def few(set_name: Any) -> None:
    """So few samples and rows that which of them are taken counts."""
    set_name(staircase, "Sample", partial(Sample, limit=1000))
    set_name(layerwise, "ELEMENTS", 1 << 14)
    set_name(phase, "MOST", 1000)


def work(folder: Path) -> None:
    """What each of the two processes does: the command line, the recipes, what fails, and one that is killed."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    shown = CliRunner().invoke(app, EVAL)
    said: dict[str, Any] = {"eval": shown.stdout + shown.stderr, "exit": shown.exit_code}
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    world: Any = dist.group.WORLD
    bad = batches(4, 4, 4, 4)
    bad[3] = bad[3][:, :2]
    loader = DataLoader(batches(4), sampler=DistributedSampler(range(1), num_replicas=2, rank=rank))  # pyright: ignore
    for name, data in {"shape": bad, "defect": Stream(bad, fault=2), "sampler": loader, "empty": []}.items():
        try:
            parspike.convert(planned(Residual), data, T=3, recipe="thresholds", group=world)
        except (ParspikeError, RuntimeError) as error:
            said[name] = [type(error).__name__, str(error)]
    try:
        said["outside"] = Together(dist.new_group([0])).size
    except ParspikeError as error:
        said["outside"] = str(error)
    few(setattr)
    for name in CASES:
        convert(name, folder / f"{name} {rank}", world)
    try:
        if rank == 1:
            (folder / "1.json").write_text(json.dumps(said))
            os._exit(0)
        Together(world).exchange(None)
    except ParspikeError as error:
        said["gone"] = str(error)
    said["kept"] = list(torch.distributed.nn.functional.broadcast.__defaults__ or ())[-1] is not None
    (folder / "0.json").write_text(json.dumps(said))
    os._exit(0)  # a group whose other process is gone cannot be taken down in order


def two(folder: Path) -> None:
    """Two copies of this process, which has imported torch and traced the networks: that takes the longest."""
    torch.set_num_threads(1)
    for kind in (Residual, Quantised, Curved):
        planned(kind)
    copies = []
    for rank in range(2):
        os.environ["RANK"] = str(rank)
        copies.append(os.fork())
        if copies[-1] == 0:
            try:
                work(folder)  # ends its process where all goes well
            except BaseException:  # noqa: BLE001 - told, and the process ends
                traceback.print_exc()
            os._exit(1)
    codes = [os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) for copy in copies]
    sys.exit(codes != [0, 0])


@pytest.fixture(autouse=True)
def all_gradient_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own take the default recipe's steps, so this one does too."""
    monkeypatch.setattr(auto, "Reconstruct", parspike.Reconstruct)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a network and its conversion; and what two processes made of CASES and EVAL."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (38, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=rng.integers(0, 3, 38))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the processes below: sums of several threads round differently
        assert CliRunner().invoke(app, [*CONVERT, "-o", "net.parspike"]).exit_code == 0
        torch.set_num_threads(threads)
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    # As torchrun sets them.
    env = environment() | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
                           "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
    subprocess.run([sys.executable, __file__, str(folder)], env=env, cwd=folder, check=True, timeout=300)
    return folder


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def said(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", CASES)
def test_two_processes_write_the_file_of_one(name: str, folder: Path, tmp_path: Path, monkeypatch) -> None:
    few(monkeypatch.setattr)
    convert(name, tmp_path / "alone")
    alone = (tmp_path / "alone").read_bytes()
    assert (folder / f"{name} 0").read_bytes() == alone
    assert (folder / f"{name} 1").read_bytes() == alone


def test_two_processes_score_as_one(folder: Path, said: list[dict[str, Any]], monkeypatch) -> None:
    assert [each["exit"] for each in said] == [0, 0]
    assert said[1]["eval"] == ""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    alone, together = json.loads(CliRunner().invoke(app, EVAL).stdout), json.loads(said[0]["eval"])
    for name in ("seconds_per_image", "network_seconds_per_image"):
        assert alone.pop(name) > 0
        assert together.pop(name) > 0
    assert together == alone
    assert alone["images"] == 38


def test_what_one_process_cannot_read_stops_both(said: list[dict[str, Any]]) -> None:
    kind, message = said[1]["shape"]
    assert message.startswith("calibration batch 3: ")
    assert said[0]["shape"] == [kind, f"process 1: {message}"]
    assert said[0]["defect"] == ["RuntimeError", "the disk is gone"]
    assert said[1]["defect"][0] in ("RuntimeError", "ParspikeError")
    for each in said:
        assert "without DistributedSampler" in each["sampler"][1]
        assert "the calibration set is empty" in each["empty"][1]


def test_a_process_outside_the_group_is_told(said: list[dict[str, Any]]) -> None:
    """It has the rank -1, whose share of a list would be every item, read from its end."""
    assert said[0]["outside"] == 1
    assert "this process is not in the group" in said[1]["outside"]


def test_a_process_that_is_gone_is_not_waited_for(said: list[dict[str, Any]]) -> None:
    assert said[0]["gone"].startswith("another process of the group ended")


def test_torch_keeps_no_group_that_was_made_after_parspike_came(said: list[dict[str, Any]]) -> None:
    assert not said[0]["kept"]


def test_devices_starts_the_processes(folder: Path) -> None:
    command = [sys.executable, "-m", "parspike", *CONVERT, "--devices", "2", "-o", "two.parspike"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("two.parspike") == 1
    assert (folder / "two.parspike").read_bytes() == (folder / "net.parspike").read_bytes()


@pytest.mark.parametrize(("failure", "code"), [("ChildFailedError", 1), ("SignalException", 130)])
def test_devices_ends_as_its_processes_do(failure: str, code: int, folder: Path, monkeypatch) -> None:
    from torch.distributed.elastic import multiprocessing
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    started = []

    class Launch:
        def __init__(self, config: Any, entry: str) -> None:
            assert config.nproc_per_node == 3
            assert config.max_restarts == 0

        def __call__(self, *command: str) -> None:
            started.append(command)
            if failure == "ChildFailedError":
                raise ChildFailedError("parspike", {0: None})  # pyright: ignore[reportArgumentType]
            raise multiprocessing.SignalException("", 2)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", Launch)
    monkeypatch.setattr(ChildFailedError, "__init__", lambda self, *args: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(folder)  # files that are not there are refused before
    assert CliRunner().invoke(app, [*EVAL[:-1], "--devices", "3"]).exit_code == code
    assert len(started) == 1


def test_devices_beside_torchrun(monkeypatch, folder: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    outcome = CliRunner().invoke(app, [*EVAL, "--devices", "2"])
    assert "torchrun has started 4 processes" in json.loads(outcome.stdout)["error"]["message"]


def test_alone_everything_is_ones_own() -> None:
    alone = Together()
    assert list(alone.share("ab")) == [(0, "a"), (1, "b")]
    assert alone.exchange("a") == ["a"]
    x, y = torch.rand(2, 3)
    gathered = alone.gather({5: [y], 2: [x]})
    assert gathered[0][0] is x
    assert gathered[1][0] is y


def test_of_a_sequence_only_the_own_items_are_read() -> None:
    read = []

    class Recorded(list):
        def __getitem__(self, number):
            read.append(number)
            return super().__getitem__(number)

    second = Together()
    second.rank, second.size = 1, 3
    items = Recorded("abcdefgh")
    assert list(second.share(items)) == [(1, "b"), (4, "e"), (7, "h")]
    assert read == [1, 4, 7]
    assert list(second.share(iter("abcdefgh"))) == [(1, "b"), (4, "e"), (7, "h")]


def test_an_error_keeps_its_kind() -> None:
    error = _told(2, "CalibrationError", "no images")
    assert isinstance(error, CalibrationError)
    assert str(error) == "process 2: no images"
    assert type(_told(0, "MissingExtraError", str(MissingExtraError("timm", extra="vision")))) is ParspikeError
    assert str(_told(1, "KeyError", "'x'")) == "process 1 failed with KeyError: 'x'"


def test_a_sample_does_not_tell_the_order_of_its_batches() -> None:
    parts = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (500, 3, 2000, 70, 1)]
    one, other = Sample(limit=100), Sample(limit=100)
    for part in parts:
        one.add(part)
    for part in reversed(parts):
        other.add(part)
    assert torch.equal(one.sorted(), other.sorted())
    assert 60 < len(one.sorted()) <= 202
    many = Sample(limit=2)
    for part in torch.rand(50, 1):
        many.add(part)
    assert len(many.sorted()) == 52


if __name__ == "__main__":
    two(Path(sys.argv[1]))
