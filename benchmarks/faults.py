"""What a kill, a full disk, a folder without rights and a second writer do to the work (docs/faults.md).

    python benchmarks/faults.py kill --kills 200    # kill -9 at random moments of every kind of work
    python benchmarks/faults.py full                # a disk with 0, 1, 2, … pages left (root: it mounts one in memory)
    python benchmarks/faults.py rights              # a disk that may only be read (root)
    python benchmarks/faults.py two                 # two processes that write one file

Each piece of work is a command of `parspike` in a process of its own, forked from one that has imported everything.
After a fault the file under the name must be the old one or a whole new one, never a half; work that can go on must end
with the bytes of work that was never stopped. Anything else is printed as a fault and ends the script with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PAGE = 4096
NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(),
                         nn.Flatten(), nn.Linear(36, 10)).eval()
"""
BENCH = """methods = ["max-norm", "opt", "snm"]
T = [2, 4]
[networks.net]
spec = "net.py:make"
data = "data.npz"
calibration_images = 64
batch_size = 32
"""


@dataclass(frozen=True)
class Work:
    """A command that writes. output: the file under its name. check: raises unless the file is whole. resumes: whether
    it goes on where it stopped, with this command."""

    name: str
    command: tuple[str, ...]
    output: str
    check: Callable[[Path], object]
    resumes: tuple[str, ...] | None = None


def loads(path: Path) -> object:
    import parspike

    return parspike.load(path)


def table(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    if len(lines) < 4 or len({line.count(",") for line in lines}) != 1:
        raise ValueError(f"{len(lines)} lines of a table")


def spikes(path: Path) -> None:
    import parspike

    parspike.read_spikes(path)


def onnx(path: Path) -> None:
    import parspike

    parspike.from_onnx(path)


def page(path: Path) -> None:
    if not path.read_text("utf-8").rstrip().endswith("</html>"):
        raise ValueError("half a page")


def weights(path: Path) -> None:
    from safetensors.torch import load_file

    load_file(path)


def lines(path: Path) -> None:
    import parspike

    benched = parspike.Benched.read(parspike.Bench.read(path.parent / "b.toml"), path)
    if benched.waiting:
        raise ValueError(f"{benched.waiting} cells are missing")


CONVERT = ("convert", "net.py:make", "--data", "data.npz", "-T", "4", "--batch-size", "32")
TRAIN = ("train", "digits", "--data", "digits", "-o", "run", "--set", "optimiser.epochs=2")
WORKS = (
    Work("calibration", (*CONVERT, "--recipe", "closed-form", "-o", "c.parspike", "--force"), "c.parspike", loads),
    Work(
        "reconstruction",
        (*CONVERT, "--recipe", '{"name": "reconstruct", "steps": 60}', "-o", "r.parspike", "--force"),
        "r.parspike",
        loads,
    ),
    Work("training", TRAIN, "run/weights.safetensors", weights, (*TRAIN, "--resume")),
    Work(
        "sweep",
        (
            "sweep",
            "net.py:make",
            "--data",
            "data.npz",
            "--T",
            "1,2,4",
            "--recipe",
            "closed-form",
            "--out",
            "s.csv",
            "--force",
        ),
        "s.csv",
        table,
    ),
    Work(
        "bench",
        ("bench", "b.toml", "--results", "b.jsonl"),
        "b.jsonl",
        lines,
        ("bench", "b.toml", "--results", "b.jsonl"),
    ),
    Work("export", ("export", "if.parspike", "e.nir", "--force"), "e.nir", loads),
    *(
        Work(
            f"spikes{end}",
            ("spikes", "write", "net.parspike", "-o", f"s{end}", "--data", "data.npz", "--force"),
            f"s{end}",
            spikes,
        )
        for end in (".npz", ".h5", ".aedat.txt")
    ),
    Work("onnx", ("export", "net.parspike", "e.onnx", "--force"), "e.onnx", onnx),
    Work(
        "tune",
        ("tune", *CONVERT[1:4], "--drop", "50", "--most", "8", "--recipe", "max", "-o", "t.parspike", "--force"),
        "t.parspike",
        loads,
    ),
    Work("report", ("report", "net.parspike", "--data", "data.npz", "-o", "r.html", "--force"), "r.html", page),
)
TIMED = ("bench", "sweep", "report")
"""Work whose output has times in it, so that two runs differ."""


def prepare(folder: Path) -> None:
    """The network, the data and the files that commands read."""
    import parspike

    (folder / "net.py").write_text(NET)
    (folder / "b.toml").write_text(BENCH)
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", images=rng.integers(0, 255, (256, 8, 8), np.uint8), labels=rng.integers(0, 10, 256))
    space: dict[str, object] = {}
    exec(NET, space)
    x = parspike.cli.images.open_images(str(folder / "data.npz"), limit=64).first().expand(64, 1, 8, 8)  # pyright: ignore
    model = space["make"]()  # pyright: ignore
    parspike.convert(model, x, T=4, recipe="closed-form").save(folder / "net.parspike")
    parspike.convert(model, x, T=4, recipe="closed-form", neuron=parspike.IF(reset="zero")).save(folder / "if.parspike")


def start(command: tuple[str, ...], folder: Path) -> int:
    """A child that runs a command in a folder; its words go into a file in the folder for temporary files."""
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        out = os.open(f"{tempfile.gettempdir()}/said-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(out, 1), os.dup2(out, 2)
        from parspike.cli import main

        sys.argv = ["parspike", *command]
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:  # noqa: BLE001 (told by its traceback)
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def ended(number: int, after: float | None = None) -> int | None:
    """How a child ended, or None where it was killed after so many seconds."""
    begin = time.monotonic()
    while True:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if after is not None and time.monotonic() - begin >= after:
            os.killpg(number, signal.SIGKILL)
            os.waitpid(number, 0)
            return None
        time.sleep(0.005)


def said(number: int) -> str:
    """What a child printed."""
    path = Path(tempfile.gettempdir()) / f"said-{number}.txt"
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    path.unlink(missing_ok=True)
    return text


class Faults:
    """What went wrong, and what did not."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()

    def must(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(what)
            print(f"FAULT {what}", flush=True)


def fresh(home: Path, root: Path) -> Path:
    """A copy of the prepared folder."""
    folder = Path(tempfile.mkdtemp(dir=root))
    shutil.copytree(home, folder, dirs_exist_ok=True)
    return folder


def whole(home: Path, root: Path, works: tuple[Work, ...]) -> dict[str, tuple[bytes, float]]:
    """What each piece of work writes when nothing stops it, and how long it takes."""
    made = {}
    for work in works:
        folder, begin = fresh(home, root), time.monotonic()
        number = start(work.command, folder)
        if ended(number):
            raise SystemExit(f"{work.name} fails by itself:\n{said(number)[-2000:]}")
        work.check(folder / work.output)
        made[work.name] = (folder / work.output).read_bytes(), time.monotonic() - begin
        shutil.rmtree(folder)
        print(f"{work.name}: {made[work.name][1]:.1f} s by itself", flush=True)
    return made


def same(work: Work, one: bytes, two: bytes) -> bool:
    """Whether two outputs are equal; lines and tables have times in them."""
    return work.name in TIMED or one == two


def kill(faults: Faults, home: Path, root: Path, works: tuple[Work, ...], kills: int, rng: random.Random) -> None:
    """Kill at random moments, until there were so many kills; work that resumes is driven to its end in between."""
    made = whole(home, root, works)
    while sum(faults.counts.values()) < kills:
        for work in works:
            wanted, seconds = made[work.name]
            folder = fresh(home, root)
            output = folder / work.output
            if work.resumes is None:
                old = rng.random() < 0.5
                if old:
                    output.write_bytes(wanted)
                for _ in range(3):
                    number = start(work.command, folder)
                    killed = ended(number, rng.uniform(0, 1.05 * seconds)) is None
                    said(number)
                    faults.counts[work.name] += killed
                    faults.must(not old or output.exists(), f"{work.name}: the old file is gone")
                    if output.exists():
                        _check(faults, work, output, wanted)
                        old = True
            else:
                for _ in range(6):
                    goes_on = (folder / "run" / "last.ckpt").exists() or work.name != "training"
                    if not goes_on:
                        shutil.rmtree(folder / "run", ignore_errors=True)
                    number = start(work.resumes if goes_on else work.command, folder)
                    code = ended(number, rng.uniform(0, 1.05 * seconds))
                    text = said(number)
                    faults.counts[work.name] += code is None
                    faults.must(code in (None, 0), f"{work.name} does not go on ({code}): {text[-600:]}")
                    if code == 0:
                        break
                goes_on = (folder / "run" / "last.ckpt").exists() or work.name != "training"
                number = start(work.resumes if goes_on else work.command, folder)
                faults.must(ended(number) == 0, f"{work.name} does not end: {said(number)[-600:]}")
                _check(faults, work, output, wanted)
            shutil.rmtree(folder)
        print(f"{sum(faults.counts.values())} kills, {len(faults.wrong)} faults", flush=True)


def _check(faults: Faults, work: Work, output: Path, wanted: bytes) -> None:
    try:
        work.check(output)
    except Exception as error:  # noqa: BLE001 (this is what is looked for)
        faults.must(False, f"{work.name}: half a file under the name ({type(error).__name__}: {error})")
    faults.must(same(work, output.read_bytes(), wanted), f"{work.name}: other bytes than those of work never stopped")


@contextlib.contextmanager
def mounted(folder: Path, pages: int) -> Iterator[None]:
    """A file system in memory over a folder, for root alone."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={pages * PAGE}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def refused(faults: Faults, work: Work, what: str, code: int | None, text: str) -> None:
    """A command must end with one line that says what is wrong."""
    faults.must(
        code == 1 and "error:" in text and "Traceback" not in text, f"{work.name}, {what} ({code}): {text[-900:]}"
    )


def full(faults: Faults, home: Path, root: Path, works: tuple[Work, ...]) -> None:
    """A disk with so many pages of 4 KiB left, from none to enough."""
    for work in works:
        for left in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 512):
            folder = root / "disk"
            folder.mkdir(exist_ok=True)
            with mounted(folder, 1024):
                shutil.copytree(home, folder, dirs_exist_ok=True)
                output = folder / work.output
                old = "/" not in work.output and work.resumes is None
                if old:
                    output.write_bytes(b"old")
                with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as stream:
                    while stream.write(b"x" * PAGE):
                        pass
                size = (folder / "filler").stat().st_size
                os.truncate(folder / "filler", max(0, size - left * PAGE))
                number = start(work.command, folder)
                code, text = ended(number), said(number)
                faults.counts[f"{work.name} {'done' if code == 0 else 'refused'}"] += 1
                if code == 0:
                    work.check(output)
                    break
                refused(faults, work, f"{left} pages", code, text)
                faults.must(
                    not old or output.read_bytes() == b"old", f"{work.name}, {left} pages: the old file is gone"
                )
                parts = [path.name for path in folder.rglob(f".{output.name}.*")]
                faults.must(not parts, f"{work.name}, {left} pages: {parts} stay")
                if work.resumes is not None:  # room again: it goes on
                    (folder / "filler").unlink()
                    goes_on = (folder / "run" / "last.ckpt").exists() or work.name != "training"
                    if not goes_on:
                        shutil.rmtree(folder / "run", ignore_errors=True)
                    number = start(work.resumes if goes_on else work.command, folder)
                    code, text = ended(number), said(number)
                    faults.must(code == 0, f"{work.name}, {left} pages, does not go on: {text[-900:]}")
                    work.check(output)
        print(f"{work.name}: done, {left} pages are enough; {len(faults.wrong)} faults", flush=True)


def rights(faults: Faults, home: Path, root: Path, works: tuple[Work, ...]) -> None:
    """A file system that is mounted for reading alone."""
    for work in works:
        folder = root / "disk"
        folder.mkdir(exist_ok=True)
        with mounted(folder, 1024):
            shutil.copytree(home, folder, dirs_exist_ok=True)
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            number = start(work.command, folder)
            code, text = ended(number), said(number)
            faults.counts[work.name] += 1
            refused(faults, work, "read-only", code, text)
        print(f"{work.name}: {text.strip().splitlines()[-1][:150] if text.strip() else ''}", flush=True)


def two(faults: Faults, home: Path, root: Path, works: tuple[Work, ...]) -> None:
    """Two processes that write one file at the same time."""
    made = whole(home, root, works)
    for work in works:
        folder = fresh(home, root)
        both = [start(work.command, folder) for _ in range(2)]
        codes = [ended(number) for number in both]
        texts = [said(number) for number in both]
        faults.counts[work.name] += 1
        faults.must(0 in codes and set(codes) <= {0, 1}, f"{work.name} {codes}: {texts[0][-400:]} {texts[1][-400:]}")
        faults.must(all("Traceback" not in text for text in texts), f"{work.name}: {texts[0][-800:]} {texts[1][-800:]}")
        _check(faults, work, folder / work.output, made[work.name][0])
        print(f"{work.name}: {codes}", flush=True)
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("kill", "full", "rights", "two"))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(work.name for work in WORKS), help="kinds of work, with commas")
    given = parser.parse_args()
    chosen = tuple(work for work in WORKS if work.name in given.only.split(","))
    import torch

    import parspike.cli.images
    import parspike.train
    import parspike.train.activation

    torch.set_num_threads(1)
    # Half a minute of a C++ compiler in every child would be what is killed most.
    parspike.train.activation._can_compile = lambda device: False  # pyright: ignore
    faults = Faults()
    with tempfile.TemporaryDirectory() as name:
        home, root = Path(name) / "home", Path(name) / "runs"
        home.mkdir(), root.mkdir()
        Path(name).chmod(0o755)
        prepare(home)
        if given.what == "kill":
            kill(faults, home, root, chosen, given.kills, random.Random(given.seed))
        else:
            {"full": full, "rights": rights, "two": two}[given.what](faults, home, root, chosen)
    print(", ".join(f"{name} {number}" for name, number in sorted(faults.counts.items()) if number))
    print(f"{len(faults.wrong)} faults")
    sys.exit(bool(faults.wrong))


if __name__ == "__main__":
    main()
