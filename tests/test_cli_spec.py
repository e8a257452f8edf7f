"""SPEC → network: real files and libraries; each mistake gives one error that says what to do."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from parspike.cli.preprocess import Preprocessing
from parspike.cli.spec import load_network, parse_shape
from parspike.errors import FileError, InputError, MissingExtraError, OptionError

FILE = """
from torch import nn
from neighbour import WIDTH

def net():
    return nn.Sequential(nn.Linear(4, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

class Zoo:
    small = staticmethod(lambda: nn.Linear(4, 2))

ready = nn.Sequential(nn.Linear(4, 2), nn.Dropout())
number = 7

def text():
    return "a network"

def fails():
    raise KeyError("no such layer")

def needs(argument):
    return nn.Linear(1, 1)
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    (tmp_path / "mynet.py").write_text(FILE)
    return str(tmp_path / "mynet.py")


def test_a_file_with_a_factory(file: str) -> None:
    network = load_network(f"{file}:net")
    assert not any(module.training for module in network.model.modules())
    assert network.model(torch.zeros(2, 4)).shape == (2, 2)
    assert not network.random_weights
    assert network.shape is network.preprocess is None
    assert isinstance(load_network(f"{file}:Zoo.small").model, nn.Linear)


def test_a_network_object_is_copied(file: str) -> None:
    network = load_network(f"{file}:ready")
    assert not network.model.training
    (module,) = (m for name, m in sys.modules.items() if getattr(m, "__file__", None) == file)
    assert module.ready.training


def test_a_package(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "nets.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(2, 2)\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_network("pack.nets:net").model, nn.Linear)
    with pytest.raises(OptionError, match=r"no module 'pack\.other'"):
        load_network("pack.other:net")


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("nett", OptionError, r"has no 'nett' \(did you mean 'net'\?\)"),
        ("number", OptionError, "number is a int"),
        ("text", OptionError, r"text\(\) gave a str"),
        ("fails", InputError, r"KeyError: 'no such layer' \(.*mynet\.py, line 18\)"),
        ("needs", OptionError, r"missing a required argument: 'argument'; name a function .* return needs\(…\)"),
    ],
)
def test_a_wrong_factory(file: str, name: str, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        load_network(f"{file}:{name}")


@pytest.mark.parametrize(
    ("source", "line"),
    [("import argparse\nargparse.ArgumentParser().parse_args(['x'])\n", 2), ("def net():\n    exit(3)\n", 2)],
)
def test_a_file_that_ends_the_program_is_told_with_its_line(tmp_path: Path, source: str, line: int) -> None:
    """Would catch a command that ends without a word of its own."""
    (tmp_path / "net.py").write_text(source)
    with pytest.raises(InputError, match=rf"SystemExit: \d: .*__name__ == '__main__' \(.*net\.py, line {line}\)$"):
        load_network(f"{tmp_path / 'net.py'}:net")


@pytest.mark.parametrize("spec", ["resnet18", "", ":net", "timm:", "file.py:"])
def test_a_wrong_spec_shows_the_forms(spec: str) -> None:
    with pytest.raises(OptionError, match=r"expected package\.module:factory"):
        load_network(spec)


def test_files_that_do_not_run(tmp_path: Path, file: str) -> None:
    with pytest.raises(FileError, match="no file"):
        load_network(f"{tmp_path / 'absent.py'}:net")
    (tmp_path / "broken.py").write_text("x = 1\ndef net(:\n")
    with pytest.raises(InputError, match=r"SyntaxError.*broken\.py, line 2"):
        load_network(f"{tmp_path / 'broken.py'}:net")
    (tmp_path / "wants.py").write_text("import no_such_package\n")
    with pytest.raises(InputError, match=r"no_such_package.*wants\.py, line 1"):
        load_network(f"{tmp_path / 'wants.py'}:net")
    (tmp_path / "zeros.py").write_bytes(b"x = 1\0")
    # Lines of Python's own machinery are no place to look at.
    with pytest.raises(InputError, match=r"SyntaxError: [^(]*null bytes[^(]*$"):
        load_network(f"{tmp_path / 'zeros.py'}:net")


def test_a_folder_and_a_converted_network_are_no_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only_images").mkdir()
    with pytest.raises(OptionError, match=r"only_images is a folder and no module; .* only_images/FILE\.py"):
        load_network("only_images:net")
    with pytest.raises(OptionError, match="this is a converted network; name the one that it was made from"):
        load_network("net.parspike")


WRAPPED = {"data-parallel": "module.", "compiled": "_orig_mod.", "both": "module._orig_mod."}


@pytest.mark.parametrize("kind", ["safetensors", "pt", "checkpoint", *WRAPPED])
def test_weights_reach_the_network(file: str, tmp_path: Path, kind: str) -> None:
    trained = load_network(f"{file}:net").model
    state = {k: v for k, v in trained.state_dict().items() if "num_batches_tracked" not in k}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "checkpoint":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        torch.save({WRAPPED.get(kind, "") + k: v for k, v in state.items()}, path)
    loaded = load_network(f"{file}:net", str(path)).model
    for key, value in state.items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_one_error_lists_every_key_that_does_not_fit(file: str, tmp_path: Path) -> None:
    state = load_network(f"{file}:net").model.state_dict()
    state["extra"] = state.pop("0.bias")
    state["3.weight"] = torch.zeros(5, 5)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError) as error:
        load_network(f"{file}:net", str(tmp_path / "w.pt"))
    message = str(error.value)
    assert "missing (1): 0.bias" in message
    assert "unexpected (1): extra" in message
    assert "wrong shape (1): 3.weight is (5, 5), expected (2, 3)" in message


class Harmful:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('code ran')",))


def test_weights_run_no_code(file: str, tmp_path: Path) -> None:
    torch.save({"0.weight": Harmful()}, tmp_path / "w.pt")
    with pytest.raises(FileError, match=r"w\.pt: the file holds more than tensors \(exec\) and was not run"):
        load_network(f"{file}:net", str(tmp_path / "w.pt"))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_weights_that_are_none(file: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match="no such file"):
        load_network(f"{file}:net", str(tmp_path / name))
    (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(FileError, match="not a readable state dict"):
        load_network(f"{file}:net", str(tmp_path / name))


def test_a_file_that_holds_something_else(file: str, tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "w.pt")
    with pytest.raises(FileError, match="holds no state dict"):
        load_network(f"{file}:net", str(tmp_path / "w.pt"))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_states_its_input(library: str) -> None:
    pytest.importorskip(library)
    network = load_network(f"{library}:resnet18")
    assert network.random_weights
    assert network.shape == (3, 224, 224)
    assert network.preprocess is not None
    assert network.preprocess.crop == 224
    assert network.preprocess.mean == (0.485, 0.456, 0.406)
    with pytest.raises(OptionError, match=r"no .*'resnett18' \(did you mean .*'resnet18'"):
        load_network(f"{library}:resnett18")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_installed(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'parspike\[vision\]'"):
        load_network(f"{library}:resnet18")


def test_a_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(OptionError, match=r"built for another torch.*pip install.*file\.py:factory"):
        load_network("torchvision:resnet18")


@pytest.mark.parametrize("text", ["", "3,x", "3,,4", "0,4", "-1"])
def test_a_wrong_shape(text: str) -> None:
    with pytest.raises(OptionError, match="such as 3,224,224"):
        parse_shape(text)


def test_a_network_says_how_its_images_are_prepared(tmp_path: Path) -> None:
    numbers = itertools.count()

    def of(said: str) -> Any:
        file = tmp_path / f"net{next(numbers)}.py"  # a file is run once
        file.write_text(
            "from torch import nn\n"
            f"def make():\n    model = nn.Linear(2, 2)\n    model.preprocessing = {said}\n    return model\n"
        )
        return load_network(f"{file}:make").preprocess

    assert of("{'mean': [0.5], 'std': [0.25], 'crop': 24}") == Preprocessing(mean=(0.5,), std=(0.25,), crop=24)
    assert of("{'steps': 3}") is None  # something of the network's own
    assert of("nn.ReLU()") is None
    with pytest.raises(OptionError, match=r"attribute `preprocessing`.*std.*above 0"):
        of("{'std': [0.0]}")
