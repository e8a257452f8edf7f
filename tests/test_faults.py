"""Faults from outside: a disk that is full at each writing step, a folder that may not be written, two writers, a
worker that dies, data that change. `benchmarks/faults.py` does the same to whole commands (docs/faults.md).
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import parspike
from parspike.bench.lines import ResultFile
from parspike.calibrate.lockstep import Lockstep
from parspike.cli.images import Images
from parspike.cli.sources import FileSource
from parspike.errors import CalibrationError, FileError, InputError
from parspike.tables import SUFFIXES
from parspike.tables import save as save_table
from parspike.together import Together
from parspike.train import decode, log
from parspike.whole import check_file, write_whole


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)).eval()


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def snn(rows: Tensor) -> parspike.SNN:
    return parspike.convert(network(), rows, T=4, recipe="max")


@pytest.fixture(scope="module")
def serial(rows: Tensor) -> parspike.SNN:
    return parspike.convert(network(), rows, T=4, recipe="max", neuron=parspike.IF())


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the system answers a write as it does on a full disk, with an error or
    with fewer bytes than were given."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def onnx(snn: Any, serial: Any, path: Path) -> None:
    pytest.importorskip("onnxruntime")
    parspike.export(snn, path, force=True)


def page(snn: Any, serial: Any, path: Path) -> None:
    pytest.importorskip("jinja2")
    parspike.report(snn, torch.randn(4, 4), path, force=True, seconds=0.01)


def package(snn: Any, serial: Any, path: Path) -> None:
    """torch's compiler, which takes half a minute, is left out: it hands over 5 kB."""

    def compiled(program: Any, package_path: str) -> str:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit[1], limit[1]))
        Path(package_path).write_bytes(bytes(5000))
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        return package_path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._inductor, "aoti_compile_and_package", compiled)
        parspike.export(snn, path, force=True)


WRITERS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "net.parspike": lambda snn, serial, path: snn.save(path, force=True),
    "net.nir": lambda snn, serial, path: parspike.export(serial, path, force=True),
    "net.onnx": onnx,
    "net.pt2": package,
    "report.html": page,
    **{
        f"s{end}": lambda snn, serial, path: parspike.write_spikes(snn, torch.randn(64, 4), path, force=True)
        for end in (".npz", ".h5", ".aedat.txt")
    },
    **{
        f"table{end}": lambda snn, serial, path: save_table(
            path, lambda suffix: "x" * 5000, force=True, example="a.csv"
        )
        for end in SUFFIXES
    },
}


@pytest.mark.parametrize("left", [0, 700])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_error_that_names_the_file(
    name: str, left: int, snn: parspike.SNN, serial: parspike.SNN, tmp_path: Path
) -> None:
    """Would catch: half a file under the name, the old one gone, a bare OSError, a temporary file that stays."""
    path = tmp_path / name
    path.write_bytes(b"old")
    with room(left), pytest.raises(FileError) as caught:
        WRITERS[name](snn, serial, path)
    assert f"cannot write '{path}'" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("left", [0, 10])
def test_a_full_disk_while_a_bench_writes_lines(left: int, tmp_path: Path) -> None:
    """Would catch: a bare OSError, and lines before that cannot be read any more."""
    path = tmp_path / "b.jsonl"
    with ResultFile(path, "b", Together()) as file:
        file.write({"network": "a", "data": {"data": "digits"}})
        with room(path.stat().st_size + left), pytest.raises(FileError, match="cannot write") as caught:
            file.write({"network": "b", "data": {"data": "digits"}})
    assert str(path) in str(caught.value)
    with ResultFile(path, "b", Together()) as file:  # cuts off half a line
        assert list(file.lines().networks) == ["a"]
        file.write({"network": "b", "data": {"data": "digits"}})
        assert list(file.lines().networks) == ["a", "b"]


def test_a_full_disk_while_a_training_logs(tmp_path: Path) -> None:
    """Would catch: half a row, which a resumed training stumbles over."""
    path = tmp_path / "log.csv"
    log.append(path, {"epoch": 1, "step": 10, "loss": 0.5})
    before = path.read_bytes()
    with room(len(before) + 3), pytest.raises(FileError, match="cannot write"):
        log.append(path, {"epoch": 2, "step": 20, "loss": 0.25})
    assert path.read_bytes() == before
    log.append(path, {"epoch": 2, "step": 20, "loss": 0.25})
    assert path.read_text().split() == ["epoch,step,loss", "1,10,0.5", "2,20,0.25"]
    log.drop_after(path, 10)
    assert path.read_bytes() == before
    path.write_bytes(before + b"2,2")  # as an older version left it when it was killed
    log.drop_after(path, 10)
    assert path.read_bytes() == before


def batches(n: int = 4, side: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    for part in torch.linspace(0, 1, side * side * n).reshape(n, 1, 1, side, side).expand(n, 16, 1, side, side):
        yield part, torch.zeros(16, dtype=torch.int64)


def test_a_full_disk_while_images_are_decoded(tmp_path: Path) -> None:
    """Would catch: a process killed by a page of a mapped file that finds no room, and a file that stays and fills the
    disk further."""
    cache = tmp_path / "c"
    with room(1000), pytest.raises(FileError, match=r"cannot write '.*c\.images'"):
        decode(batches(), 64, cache)
    assert os.listdir(tmp_path) == []

    def watched() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(batches(side=64)):
            if number == 1:
                (file,) = tmp_path.iterdir()
                assert 512 * file.stat().st_blocks >= 64 * 64 * 64, "pages that find no room when they are written"
            yield batch

    decode(watched(), 64, tmp_path / "large")
    for path in tmp_path.iterdir():
        path.unlink()
    made = decode(batches(), 64, cache)
    assert sorted(os.listdir(tmp_path)) == ["c.images", "c.json", "c.labels.npy"]
    again = decode(iter(()), 64, cache)
    assert again.digest == made.digest
    assert torch.equal(again.images, decode(batches(), 64).images)


def test_decoded_images_that_are_damaged_are_told(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    decode(batches(), 64, cache)
    os.truncate(tmp_path / "c.images", 100)
    with pytest.raises(FileError, match=r"delete .*c\.\*, and it is decoded again"):
        decode(batches(), 64, cache)


def test_two_processes_that_decode_the_same_images(tmp_path: Path) -> None:
    """Would catch: one that writes into the other's file."""
    cache, wanted = tmp_path / "c", decode(batches(), 64)
    children = []
    for _ in range(2):
        if not (child := os.fork()):
            code = 1
            with suppress(BaseException):
                code = 0 if torch.equal(decode(batches(), 64, cache).images, wanted.images) else 2
            os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert sorted(os.listdir(tmp_path)) == ["c.images", "c.json", "c.labels.npy"]


def test_a_checkpoint_of_a_reconstruction_is_whole_or_refused(rows: Tensor, tmp_path: Path) -> None:
    """Would catch: half a checkpoint, which the next conversion stumbles over with torch's words."""
    path = tmp_path / "r.ckpt"
    recipe = parspike.Reconstruct(steps=20, checkpoint=str(path))
    made = parspike.convert(network(), rows, T=2, recipe=recipe)
    with room(500), pytest.raises(FileError, match=r"cannot write '.*r\.ckpt'"):
        parspike.convert(network(), rows, T=2, recipe=parspike.Reconstruct(steps=40, checkpoint=str(path)))
    assert os.listdir(tmp_path) == ["r.ckpt"]
    again = parspike.convert(network(), rows, T=2, recipe=recipe)
    assert torch.equal(again(rows), made(rows))
    other = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with pytest.raises(FileError, match=r"r\.ckpt: it is no checkpoint of this reconstruction"):
        parspike.convert(other, rows, T=2, recipe=recipe)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(FileError, match=r"r\.ckpt: not a readable checkpoint of a reconstruction: delete it"):
        parspike.convert(network(), rows, T=2, recipe=recipe)


def test_what_is_printed_to_a_full_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from parspike.cli import main

    full = open("/dev/full", "w")  # noqa: SIM115 - closing it fails as printing does
    monkeypatch.setattr(sys, "argv", ["parspike", "--help"])
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(SystemExit) as ended:
        main()
    with suppress(OSError):
        full.close()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "error: cannot write what this command prints: No space left on device" in said
    assert "Traceback" not in said


# --------------------------------------------------------------------------------------------------------- a folder


@contextmanager
def ordinary() -> Iterator[None]:
    """As a user who is not root, who may write anywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that may be entered and not written, with one in it that may not be entered."""
    root = Path(os.path.realpath("/tmp")) / f"parspike-{os.getpid()}-locked"
    inner = root / "inner"
    (inner / "deep").mkdir(parents=True)
    for folder in (root, inner, inner / "deep"):
        (folder / "old.parspike").write_bytes(b"old")
    inner.chmod(0)
    root.chmod(0o555)
    yield root
    root.chmod(0o755), inner.chmod(0o755)
    shutil.rmtree(root)


@pytest.mark.parametrize("where", [".", "inner", "inner/deep"])
def test_a_folder_that_may_not_be_written_or_entered(where: str, snn: parspike.SNN, locked: Path) -> None:
    """Would catch: a bare PermissionError, from writing or from asking whether a file is there."""
    for path in (locked / where / "net.parspike", locked / where / "old.parspike"):
        with ordinary(), pytest.raises(FileError, match=r"cannot write '.*': Permission denied"):
            snn.save(path, force=True)
        with ordinary(), pytest.raises(FileError, match="Permission denied"):
            save_table(path.with_suffix(".csv"), lambda suffix: "x", example="a.csv")
        with ordinary(), pytest.raises(FileError, match="Permission denied"):
            write_whole(path, [b"x"])
    with ordinary(), pytest.raises(FileError, match=r"Permission denied|there is no file"):
        parspike.load(locked / where / "net.parspike")
    if where != ".":
        with ordinary(), pytest.raises(FileError, match="Permission denied"):
            check_file(locked / where / "old.parspike")


# ---------------------------------------------------------------------------------------------------- two writers


@pytest.mark.parametrize("write", [lambda snn, path: snn.save(path, force=True), lambda _, path: write_whole(path, [])])
def test_a_pipe_or_a_device_is_no_place_for_a_file(write: Any, snn: parspike.SNN, tmp_path: Path) -> None:
    """As root, `-o /dev/null --force` put a file in the place of the machine's /dev/null."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(FileError, match="pipe' is no file but a device or a pipe, whose place a file would take"):
        write(snn, path)
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_one_whole_file_of_two_writers(tmp_path: Path) -> None:
    """Would catch: a file that is written under its name, of which a reader sees half, or a mixture."""
    path = tmp_path / "file"
    write_whole(path, [b"0" * 20_000])
    children = []
    for letter in (b"1", b"2"):
        if not (child := os.fork()):
            with suppress(BaseException):
                for _ in range(100):
                    write_whole(path, [letter * 10_000] * 2)
                os._exit(0)
            os._exit(1)
        children.append(child)
    seen = set()
    while children:
        content = path.read_bytes()
        assert len(content) == 20_000
        assert len(set(content)) == 1
        seen.add(content[:1])
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended in children:
            assert status == 0
            children.remove(ended)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes()[:1] in (b"1", b"2")


# ------------------------------------------------------------------------------------------- workers and data


class Rows(Dataset[Tensor]):
    """64 rows; the process that reads row `dies` is killed."""

    def __init__(self, rows: Tensor, dies: int) -> None:
        self.rows, self.dies, self.home = rows, dies, os.getpid()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        if index == self.dies and os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.rows[index]


def test_a_worker_of_a_loader_that_dies(rows: Tensor) -> None:
    """Would catch: torch's words alone, and a conversion that goes on with the data that came before."""
    model = network()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(InputError, match=r"a process that reads the data ended \(.* num_workers=0"):
        parspike.convert(model, DataLoader(Rows(rows, 40), batch_size=8, num_workers=1), T=2, recipe="max")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    whole = parspike.convert(model, DataLoader(Rows(rows, -1), batch_size=8, num_workers=1), T=2, recipe="max")
    assert torch.equal(whole(rows), parspike.convert(model, rows.split(8), T=2, recipe="max")(rows))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (RuntimeError("shapes do not fit"), False),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (EOFError("Caught EOFError in DataLoader worker process 0."), False),
    ],
)
def test_errors_of_the_data_set_itself_stay_as_they_are(
    error: Exception, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: an error in the user's own code that is told as a worker that died, and the other way round."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    class Loader:
        num_workers = 1

        def __iter__(self) -> Iterator[Tensor]:
            yield torch.zeros(1)
            raise error

    with pytest.raises(InputError if told else type(error)) as caught:
        list(Together().share(Loader()))
    assert told or caught.value is error


class Changing:
    """A loader whose batches are others from its second reading on; tracing reads the first batch once more."""

    def __init__(self, first: list[Tensor], then: list[Tensor]) -> None:
        self.first, self.then, self.whole = first, then, 0

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.then if self.whole else self.first
        self.whole += 1


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ((8, 8), "calibration batch 2 had 8 samples when the data were first read, and has none now"),
        ((8, 8, 4), "calibration batch 2 had 8 samples when the data were first read, and has 4 samples now"),
        ((8, 8, 8, 8), "calibration batch 3 had none when the data were first read, and has 8 samples now"),
    ],
)
def test_calibration_data_that_change_between_two_readings(
    then: tuple[int, ...], said: str, rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: means over other samples than those that were counted. Where all of it can be held, the closed form
    reads once."""
    first = list(rows[:24].split(8))
    source = Changing(first, list(rows[: sum(then)].split(list(then))))
    once, same = (parspike.convert(network(), data, T=2, recipe="closed-form") for data in (source, first))
    assert torch.equal(once(rows), same(rows))
    source.whole = 0
    monkeypatch.setattr(Lockstep.__init__, "__kwdefaults__", {"teacher": None, "memory": 0})
    with pytest.raises(CalibrationError, match=said):
        parspike.convert(network(), source, T=2, recipe="closed-form")


def test_an_image_that_changes_between_two_epochs(tmp_path: Path) -> None:
    """Would catch: figures of two data sets in one."""
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        Image.new("L", (8, 8), 40 * number).save(tmp_path / str(number) / "a.png")
    source = FileSource(tmp_path, ["0/a.png", "1/a.png", "2/a.png"], [0, 1, 2])
    images = Images(source)
    first = [x.clone() for x, _ in images]
    assert all(torch.equal(one, two) for one, (two, _) in zip(first, images, strict=True))
    Image.new("L", (8, 8), 200).save(tmp_path / "1" / "a.png")
    with pytest.raises(InputError, match=r"1/a\.png: the file was changed after it was read before"):
        list(images)
    (tmp_path / "2" / "a.png").unlink()
    images = Images(FileSource(tmp_path, ["2/a.png"], [2]))
    with pytest.raises(InputError, match=r"2/a\.png: .*No such file"):
        list(images)
