"""Install a wheel and an sdist in venvs of their own and use them there, with no extra, and with one: does it bring
what it needs, and does a user who lacks an extra read what to install?

    python benchmarks/install.py build/package/*                    # make package does this
    python benchmarks/install.py build/package/* --extra all        # then each extra, in a venv of its own on top
    python benchmarks/install.py build/package/* --extra together --lowest    # lower bounds of pyproject.toml

Without an extra: convert, run, save and load in Python; the command line; no torchvision; what PyPI will show of it,
without links that lead nowhere; types, as pyright sees them in the installed package; and each extra's command, which
must end with 1 and the one line that names the extra. With an extra: the same command must do its work; `together` has
all extras in one venv. A line of a table for each; ends with 1 if one failed. The first package gets a venv with its
dependencies; the others stand in venvs that see that one.

Versions are those of constraints.txt, or with --lowest the lowest that pyproject.toml accepts, of parspike's own
dependencies and of the extra's. --torch takes another torch than these say. PyPI's torch brings gigabytes of CUDA; pip
takes one for CPUs from PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PIN = re.compile(r"^([A-Za-z0-9_-]+)(?:\[.*\])?[=>]=([^,; ]+)$")

USE = """
import importlib.util, numpy, torch, parspike
def make():
    torch.manual_seed(0)
    first, second = torch.nn.Linear(64, 8), torch.nn.Linear(8, 10)
    return torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.ReLU(), second).eval()
if __name__ == "__main__":
    model, x = make(), torch.rand(64, 1, 8, 8)
    snn = parspike.convert(model, x, T=8)
    snn.save("n.parspike")
    assert torch.equal(parspike.load("n.parspike")(x), snn(x))
    serial, count = (snn.run(x, engine=engine, record=True).counts["2"] for engine in ("serial", "count"))
    assert torch.equal(serial, count)
    parspike.convert(model, x, T=8, neuron=parspike.IF(reset="zero"), recipe="closed-form").save("if.parspike")
    images = numpy.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=numpy.uint8)
    numpy.savez("x.npz", images=images, labels=numpy.arange(64) % 10)
"""
BARE = "import importlib.util as u; assert not any(map(u.find_spec, ('torchvision', 'timm', 'matplotlib', 'h5py')))"
SHOWN = r"""
import importlib.metadata, parspike, re
told = importlib.metadata.metadata("parspike")
text = told["Description"] or told.get_payload()
assert told["Version"] == parspike.__version__, told["Version"]
assert told["Description-Content-Type"] == "text/markdown" and "pip install parspike" in text and "## Python" in text
assert not (dead := re.findall(r"\]\((?!https?://)[^)]*\)", text)), f"links that lead nowhere on PyPI: {dead}"
"""
"""What PyPI shows."""
TYPED = """# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnknownMemberType=false
from typing import assert_type

import torch

import parspike

model, x = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()), torch.zeros(8, 4)
assert_type(parspike.plan(model, x), parspike.Plan)
snn = parspike.convert(model, x, T=8, neuron=parspike.IF())
assert_type(snn, parspike.SNN)
assert_type(snn.run(x).counts["1"], torch.Tensor)
assert_type(parspike.measure(snn, x), parspike.Report)
assert_type(parspike.load("n.parspike"), parspike.SNN)
parspike.convert(model, x, T="8")  # pyright: ignore[reportArgumentType]
parspike.convrt(model)  # pyright: ignore[reportAttributeAccessIssue]
"""
LANGUAGE = """
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
words = Tokenizer(models.WordLevel({word: number for number, word in enumerate("? a spike is sent".split())}, "?"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained("llama")
small = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}
LlamaForCausalLM(LlamaConfig(vocab_size=5, max_position_embeddings=64, **small)).save_pretrained("llama")
"""
"""A language model of one layer, with its tokenizer, in a folder."""
DIGITS = "train digits --data x.npz -o run --set optimiser.epochs=1 --set optimiser.batch_size=16"
COMMANDS = {
    "vision": ["plan timm:resnet18 --shape 3,32,32", "plan torchvision:resnet18 --shape 3,32,32"],
    "demo": ["demo", "eval n.parspike --data digits"],
    "train": [f"{DIGITS} --tensorboard", "train cifar10-resnet20-short --data x.npz -o run2", "data check hf:folder"],
    "report": ["report n.parspike --data x.npz -o r.html", "sweep use.py:make --data x.npz --T 2 --out s.pdf"],
    "export": ["export if.parspike n.nir", "export n.parspike n.onnx", "spikes write n.parspike --data x.npz -o s.h5"],
    "view": ["view n.parspike --data x.npz --no-browser"],
    "lm": ["plan hf:llama --shape 8"],
}
"""What each extra is for. What needs the network, or hours, is only tried without the extra."""
WITHOUT_ALONE = {"train cifar10-resnet20-short --data x.npz -o run2", "data check hf:folder"}


def constraints(lowest: bool, torch: str | None) -> str:
    """One pin a line."""
    if lowest:
        needs = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
        pins = {found[1]: found[2] for need in needs if (found := PIN.match(need))}
    else:
        lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        pins = {found[1]: found[2] for line in lines if (found := PIN.match(line))}
    if torch:
        pins["torch"] = torch
        pins.pop("torchvision", None)  # the one that belongs to it asks for it
    return "\n".join(f"{name}=={version}" for name, version in pins.items())


class InstallError(Exception):
    """What went wrong."""


class Place:
    """A venv with a package in it, and the folder in which it is used."""

    def __init__(self, folder: Path, target: str, pins: Path, below: Place | None = None, *options: str) -> None:
        self.folder, self.python = folder, folder / "venv" / "bin" / "python"
        venv.create(folder / "venv", with_pip=below is None)
        if below is not None:
            link = self._packages() / "below.pth"
            link.write_text(f"{below._packages()}\n", "utf-8")
        (folder / "use.py").write_text(USE, "utf-8")
        self.run("-m", "pip", "install", "--quiet", "--no-compile", "-c", str(pins), *options, target)

    def _packages(self) -> Path:
        return next(self.folder.glob("venv/lib/python*/site-packages"))

    def run(self, *args: str, python: Path | None = None) -> str:
        done = self.ended(*args, python=python)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise InstallError(f"{' '.join(args)[:60]}: {said}")
        return done.stdout

    def ended(self, *args: str, python: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python or self.python, *args], cwd=self.folder, capture_output=True, text=True, check=False
        )

    def lacks(self, extra: str) -> None:
        """Each command of the extra ends with the one line that says what to install."""
        if extra == "lm":  # the folder is looked at before the extra is
            (self.folder / "llama").mkdir()
            (self.folder / "llama" / "config.json").write_text("{}", "utf-8")
            (self.folder / "llama" / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
        for command in COMMANDS[extra]:
            done = self.ended("-m", "parspike", *command.split())
            says = rf"(warning: .*\n)*error: '[\w.-]+' is not installed: run  pip install 'parspike\[{extra}\]'\n"
            if done.returncode != 1 or not re.fullmatch(says, done.stderr):
                raise InstallError(f"without {extra}, {command}: {done.returncode}, {done.stderr.strip()[-200:]}")

    def has(self, extra: str) -> None:
        """Each command of the extra does its work."""
        if extra == "lm":
            self.run("-c", LANGUAGE)
        for command in COMMANDS[extra]:
            if extra == "view":
                self.serves(command)
            elif command not in WITHOUT_ALONE:
                self.run("-m", "parspike", *command.split())

    def serves(self, command: str) -> None:
        call = [self.python, "-m", "parspike", *command.split()]
        with subprocess.Popen(call, cwd=self.folder, stdout=subprocess.PIPE, text=True) as process:
            try:
                address = process.stdout.readline().strip() if process.stdout else ""
                with urllib.request.urlopen(address, timeout=60) as page:
                    if b"<html" not in page.read():
                        raise InstallError("view served no page")
                process.send_signal(signal.SIGINT)
                if process.wait(60):
                    raise InstallError("view did not end with Ctrl-C")
            finally:
                process.kill()


def used(place: Place) -> None:
    place.run("use.py")
    place.run("-m", "parspike", "plan", "use.py:make", "--shape", "1,8,8")


def bare(place: Place) -> None:
    used(place)
    place.run("-c", BARE)
    place.run("-c", SHOWN)
    (place.folder / "typed.py").write_text(TYPED, "utf-8")
    place.run("-m", "pyright", "--pythonpath", str(place.python), "typed.py", python=Path(sys.executable))
    for extra in COMMANDS:
        place.lacks(extra)


def with_extras(place: Place, extras: list[str]) -> None:
    used(place)
    for extra in extras:
        place.has(extra)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("package", type=Path, nargs="+", help="wheels, sdists")
    parser.add_argument("--extra", nargs="*", choices=[*COMMANDS, "all", "together"], default=[])
    parser.add_argument("--lowest", action="store_true")
    parser.add_argument("--torch", metavar="VERSION")
    given = parser.parse_args()
    extras = dict.fromkeys(e for some in given.extra for e in (COMMANDS if some == "all" else [some]))
    versions, wrong = "lowest" if given.lowest else "pinned", 0

    def tell(what: str, work: Callable[[], None]) -> None:
        nonlocal wrong
        try:
            work()
            said = "yes"
        except InstallError as error:
            said, wrong = str(error), wrong + 1
        print(f"| {what} | {versions} | {said} |", flush=True)

    with contextlib.ExitStack() as stack:

        def folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory()))

        pins = folder() / "pins.txt"
        pins.write_text(constraints(given.lowest, given.torch), "utf-8")
        first, *others = [path.resolve() for path in sorted(given.package, key=lambda path: path.suffix != ".whl")]
        base = Place(folder(), str(first), pins)
        versions += ", torch " + base.run("-c", "import torch; print(torch.__version__)").strip()
        print("| package, extra | versions | installed and used |\n|---|---|---|", flush=True)
        tell(first.name, lambda: bare(base))
        for other in others:
            own = "--no-deps", "--force-reinstall"
            tell(other.name, lambda: used(Place(folder(), str(other), pins, base, *own)))  # noqa: B023 - called at once
        for extra in extras:
            names = list(COMMANDS) if extra == "together" else [extra]
            target = f"{first}[{','.join(names)}]"
            tell(extra, lambda: with_extras(Place(folder(), target, pins, base), names))  # noqa: B023
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
