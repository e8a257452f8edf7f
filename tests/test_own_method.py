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
from parspike.calibrate import RECIPES
from parspike.cli import app
from parspike.errors import FileError, InputError, OptionError

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
    assert "no subclass of parspike.Recipe" in refused("Mine = 3")
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
