"""A recipe outside the package: by file, by module, by entry point; and what is wrong with one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import parspike
import parspike.baselines  # its names are known before `_forget` looks which there are
from parspike.calibrate import RECIPES
from parspike.cli import app
from parspike.errors import CalibrationError, FileError, InputError, OptionError
from parspike.foreign import users_module
from parspike.train import METHODS, TrainingRecipe, load_recipe, load_trained

ROOT = Path(__file__).parents[1]
EXAMPLE = f"{ROOT / 'examples' / 'own_method.py'}:MeanAndDeviation"
CLASS = """
from dataclasses import dataclass
from typing import ClassVar
import parspike

@dataclass(frozen=True)
class Mine(parspike.Recipe):
    name: ClassVar[str] = "{name}"
    share: float = 1.0

    def fit(self, draft, batches):
        parspike.Thresholds().fit(draft, batches)
"""


@pytest.fixture(autouse=True)
def _forget() -> Any:
    before = dict(RECIPES)
    yield
    RECIPES.clear()
    RECIPES.update(before)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def images() -> torch.Tensor:
    return torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def test_the_example_of_the_page() -> None:
    page = (ROOT / "docs" / "own-method.md").read_text()
    shown = page.split("<!-- example -->\n```python\n")[1].split("```\n<!-- end -->")[0]
    assert shown == (ROOT / "examples" / "own_method.py").read_text()
    model: Any
    model, x = network(), images()
    snn = parspike.convert(model, x.split(16), T=16, recipe=json.dumps({"name": EXAMPLE, "deviations": 3}))
    (neuron,) = snn.neurons().values()
    a = torch.relu(model[0](x))
    wanted = a.mean(0) + 3 * a.std(0, correction=0)
    alive = a.amax(0) > 0
    assert torch.allclose(torch.as_tensor(neuron.v_threshold)[alive], wanted[alive], rtol=1e-4)
    assert snn.provenance["recipe"] == {"name": "mean-and-deviation", "deviations": 3}


def test_the_example_for_other_neurons_and_networks() -> None:
    x = images()
    snn = parspike.convert(network(), x.split(16), T=64, recipe=EXAMPLE, neuron=parspike.IF())
    assert (snn(x) - network()(x)).norm() < 0.2 * network()(x).norm()
    with pytest.raises(OptionError, match="layer '1"):
        parspike.convert(nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 2)), x, T=4, recipe=EXAMPLE)


def test_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CLASS.format(name="mine"))
    factory = "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))\n"  # noqa: E501
    (tmp_path / "net.py").write_text(factory)
    found = CliRunner().invoke(
        app,
        ["convert", f"{tmp_path / 'net.py'}:net", "-o", str(tmp_path / "out.parspike"), "--data", "digits",
         "--calibration-images", "64", "--recipe", f"{tmp_path / 'mine.py'}:Mine", "--json"],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert parspike.load(tmp_path / "out.parspike").provenance["recipe"]["name"] == "mine"


def test_on_a_bench(tmp_path: Path) -> None:
    """By a path from the bench file's folder, beside a published method."""
    (tmp_path / "mine.py").write_text(CLASS.format(name="mine"))
    (tmp_path / "b.toml").write_text(
        'T = [4]\nmethods = ["max-norm", "own", "mine.py:Mine"]\n'
        '[method.own]\nrecipe = {name = "mine.py:Mine", share = 0.5}\n'
    )
    bench = parspike.Bench.read(tmp_path / "b.toml")
    items = [(part, part.argmax(1) % 3) for part in images().split(16)]
    network_of = parspike.BenchNetwork(network, lambda seed: images().split(16), lambda seed: items, {"data": "here"})
    done = parspike.bench(bench, {"net": network_of}, tmp_path / "b.jsonl")
    figures = {line.method: line.mean("agreement") for line in done.lines}
    assert set(figures) == {"max-norm", "own", "mine.py:Mine"}
    assert figures["own"] == figures["mine.py:Mine"] is not None
    with pytest.raises(OptionError, match="no option 'shares'"):
        parspike.Bench.from_toml('[method.own]\nrecipe = {name = "mine.py:Mine", shares = 1}', tmp_path / "b.toml")


def test_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package.py").write_text(CLASS.format(name="theirs"))
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[parspike.recipes]\ntheirs = their_package:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = parspike.recipe_from_json({"name": "theirs", "share": 0.5})
    assert parspike.recipe_to_json(recipe) == {"name": "theirs", "share": 0.5}
    with pytest.raises(OptionError, match="theirs"):
        parspike.recipe_from_json("their")
    sys.modules.pop("their_package")


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    def refused(text: str, name: str = "Mine") -> str:
        path = tmp_path / "mine.py"
        path.write_text(text)
        with pytest.raises((OptionError, InputError)) as caught:
            parspike.recipe_from_json(f"{path}:{name}")
        return str(caught.value)

    good = CLASS.format(name="mine")
    assert "did you mean 'Mine'" in refused(good, "Mien")
    assert "no subclass of parspike.calibrate.recipe.Recipe" in refused("Mine = 3")
    assert "lacks fit" in refused(good.split("    def fit")[0])
    assert "@dataclass" in refused(good.replace("@dataclass(frozen=True)", "").replace("share: float = 1.0", ""))
    assert "there is a recipe 'max-norm' already" in refused(CLASS.format(name="max-norm"))
    assert "line 2" in refused("\n1 / 0")
    with pytest.raises(FileError, match="no file"):
        parspike.recipe_from_json("nowhere.py:Mine")
    with pytest.raises(OptionError, match="no module 'nowhere'"):
        parspike.recipe_from_json("nowhere:Mine")


def test_a_file_that_is_read_twice_gives_the_same_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CLASS.format(name="mine"))
    one, two = (parspike.recipe_from_json(f"{path}:Mine") for _ in range(2))
    assert parspike.recipe_to_json(one) == parspike.recipe_to_json(two)


def test_two_files_of_one_name_are_two_methods(tmp_path: Path) -> None:
    """Would catch: a class of one file taken for that of another with the same file name, class and recipe name."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(CLASS.format(name="mine"))
    first = parspike.recipe_from_json(f"{tmp_path / 'a' / 'mine.py'}:Mine")
    with pytest.raises(InputError, match=r"b.mine\.py:Mine: there is a recipe 'mine' already, .*a.mine\.py:Mine"):
        parspike.recipe_from_json(f"{tmp_path / 'b' / 'mine.py'}:Mine")
    (tmp_path / "b" / "mine.py").write_text(CLASS.format(name="theirs"))
    second = parspike.recipe_from_json(f"{tmp_path / 'b' / 'mine.py'}:Mine")
    assert type(first) is not type(second)
    assert parspike.recipe_from_json("mine") == first


def test_a_file_that_was_changed_is_measured_anew(tmp_path: Path) -> None:
    """Would catch: figures of an earlier text of the user's file shown as those of the present one."""
    path, results = tmp_path / "mine.py", tmp_path / "b.jsonl"
    path.write_text(CLASS.format(name="mine") + "\nprint('run')\n")
    x = images()
    network_of = parspike.BenchNetwork(network, lambda seed: x.split(16), lambda seed: [x], {"data": "here"})

    def figures() -> list[float | None]:
        bench = parspike.Bench.from_toml('T = 4\nmethods = ["mine.py:Mine"]', tmp_path / "b.toml")
        return [line.mean("spikes") for line in parspike.bench(bench, {"net": network_of}, results).lines]

    before = figures()
    cells = results.read_text().count('{"cell"')
    assert figures() == before
    assert results.read_text().count('{"cell"') == cells == 1
    path.write_text(path.read_text().replace("Thresholds()", 'Thresholds("50%")'))
    after = figures()
    assert len(after) == 1
    assert after != before
    assert results.read_text().count('{"cell"') == 2


def test_a_file_is_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(CLASS.format(name="mine") + "\nprint('run')\n")
    bench = parspike.Bench.from_toml('T = [2, 4]\nmethods = ["mine.py:Mine", "max-norm"]', tmp_path / "b.toml")
    assert len(bench.chosen((), ["net"])) == 4
    assert capsys.readouterr().out == "run\n"


def test_a_class_that_inherits_its_name_is_refused(tmp_path: Path) -> None:
    """Would catch: a class without a name of its own that is written down, and then run, as the one it extends."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom parspike.baselines import MaxNorm\n\n"
        "@dataclass(frozen=True)\nclass Mine(MaxNorm):\n    share: float = 1.0\n"
    )
    with pytest.raises(OptionError, match="needs name"):
        parspike.recipe_from_json(f"{tmp_path / 'mine.py'}:Mine")


METHOD = """
from dataclasses import dataclass
from typing import ClassVar
from parspike.train.direct import LIF
from parspike.train.methods import Direct

@dataclass(frozen=True)
class Mine(Direct):
    name: ClassVar[str] = "{name}"
    tau: float = 0.5

    def neurons(self, start):
        return LIF(self.T, self.tau)
"""


@pytest.fixture
def _forget_methods() -> Any:
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.usefixtures("_forget_methods", "not_compiled")
def test_a_method_of_training_by_its_file(tmp_path: Path) -> None:
    """`activation.method=file.py:Class` trains; what is written names the class, and network.py runs its file."""
    pytest.importorskip("lightning_fabric")
    pytest.importorskip("sklearn")
    place = f"{tmp_path / 'mine.py'}:Mine"
    (tmp_path / "mine.py").write_text(METHOD.format(name="mine"))
    (tmp_path / "r.toml").write_text(f'network = "digits"\n[activation]\nmethod = {json.dumps(place)}\ntau = 0.25\n')
    assert load_recipe(tmp_path / "r.toml").to_json()["activation"] == {"method": "mine", "T": 4, "tau": 0.25}
    found = CliRunner().invoke(
        app,
        ["train", "digits", "--data", "digits", "-o", str(tmp_path / "run"), "--cache", str(tmp_path), "--devices", "1",
         "--accelerator", "cpu", "--set", "optimiser.epochs=1", "--set", f"activation.method={place}",
         "--set", "activation.T=2"],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    del sys.modules[METHODS.pop("mine").__module__]  # as in another process
    with pytest.raises(FileError, match=r"'mine'.*import its file"):
        load_trained(tmp_path / "run")  # weights.json holds a name; nothing in it is run
    made = users_module(str(tmp_path / "run" / "network.py"), "network").network()
    assert made(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    with pytest.raises(InputError, match="has spiking neurons already"):
        parspike.convert(made, torch.zeros(3, 1, 8, 8), T=2)


@pytest.mark.usefixtures("_forget_methods")
def test_what_is_wrong_with_a_method_of_training(tmp_path: Path) -> None:
    def refused(text: str, name: str = "Mine", **options: Any) -> str:
        (tmp_path / "mine.py").write_text(text)
        asked = {"activation.method": f"{tmp_path / 'mine.py'}:{name}"} | options
        with pytest.raises((OptionError, InputError)) as caught:
            TrainingRecipe("digits").replace(asked)
        return str(caught.value)

    good = METHOD.format(name="mine")
    assert "did you mean 'Mine'" in refused(good, "Mien")
    assert "no subclass of parspike.train.methods.base.Method" in refused(good, "LIF")
    assert "there is a method 'stbp' already" in refused(METHOD.format(name="stbp"))
    assert "tau = 'no': expected a number" in refused(good, **{"activation.tau": "no"})
    assert "needs name" in refused(good.replace('    name: ClassVar[str] = "mine"\n', ""))


@pytest.mark.usefixtures("_forget_methods")
def test_a_method_of_training_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_methods.py").write_text(METHOD.format(name="theirs"))
    about = tmp_path / "their_methods-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[parspike.methods]\ntheirs = their_methods:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OptionError, match="did you mean 'theirs'"):
        TrainingRecipe("digits").replace({"activation.method": "their"})
    made = TrainingRecipe("digits").replace({"activation.method": "theirs", "activation.tau": 1})
    assert made.to_json()["activation"] == {"method": "theirs", "T": 4, "tau": 1.0}
    sys.modules.pop("their_methods")


class Wrong(parspike.Recipe):
    """Fits as it should, then does something to the draft. Without a name of the class, so that nobody knows it."""

    def __init__(self, wrong: Any) -> None:
        object.__setattr__(self, "name", "wrong")
        object.__setattr__(self, "wrong", wrong)

    def fit(self, draft: Any, batches: Any) -> None:
        parspike.Thresholds().fit(draft, batches)
        self.wrong(draft)


def no_neurons(draft: Any) -> None:
    draft.neurons.pop(next(iter(draft.activations)))


def a_module(draft: Any) -> None:
    draft.neurons[next(iter(draft.activations))] = nn.ReLU()


def no_numbers(draft: Any) -> None:
    for neuron in draft.neurons.values():
        neuron.v_threshold.data.fill_(float("nan"))


def another_shape(draft: Any) -> None:
    draft.tensors["2.weight"] = draft.tensors["2.weight"][:, :5]


def another_name(draft: Any) -> None:
    draft.tensors["3.weight"] = torch.zeros(2)


def in_place(draft: Any) -> None:
    draft.tensors["0.weight"].data.zero_()


def in_place_and_raises(draft: Any) -> None:
    in_place(draft)
    raise KeyError("in the middle")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (no_neurons, r"'wrong' left no neurons for layer '1': draft.neurons\['relu'\] must be"),
        (a_module, "left a ReLU, which is no layer of neurons, for layer '1'"),
        (no_numbers, "left NaN in the neurons of layer '1'"),
        (another_shape, r"put \(3, 5\) into draft.tensors\['2.weight'\], whose shape is \(3, 8\)"),
        (another_name, r"draft.tensors\['3.weight'\], a name that the network does not have"),
        (in_place, r"changed the network's own '0.weight': put a new tensor into draft.tensors\['0.weight'\]"),
        (in_place_and_raises, "in the middle"),
    ],
)
def test_what_a_recipe_leaves_is_checked(wrong: Any, said: str) -> None:
    """Would catch: a recipe that spoils the network, so that every later cell of a bench measures another one."""
    model: Any = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises((OptionError, CalibrationError, KeyError), match=said):
        parspike.convert(model, images().split(16), T=4, recipe=Wrong(wrong))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
