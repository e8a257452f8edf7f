"""What a chip can run: every line of the table of targets, right values by hand, and the table against its page."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Residual, made
from torch import Tensor, nn
from typer.testing import CliRunner

import parspike
from parspike.cli import app
from parspike.errors import InputError, OptionError
from parspike.neurons import IntegrateFire, ParallelNeuron, Simulation
from parspike.plan import with_encoders
from parspike.target import targets
from parspike.target.check import _Check
from parspike.target.tables import HOME

ROOT = Path(__file__).parents[1]


class Net(nn.Module):
    """conv → ReLU → average pool → conv → ReLU → linear, each given."""

    def __init__(self, one: nn.Module, pool: nn.Module, two: nn.Module, features: int) -> None:
        super().__init__()
        self.one, self.pool, self.two, self.head = one, pool, two, nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.pool(self.one(x).relu())).relu().flatten(1))


PLANS: dict[tuple[nn.Module, torch.Size], parspike.Plan] = {}


def plan_of(model: nn.Module, x: Tensor) -> parspike.Plan:
    """The plan of a network for inputs of this size alone, read once."""
    if (model, x.shape) not in PLANS:
        PLANS[model, x.shape] = parspike.plan(model.eval(), x, free_sizes=False)
    return PLANS[model, x.shape]


def spiking(model: nn.Module, x: Tensor, *, encoded: bool = False, **options: Any) -> parspike.SNN:
    """A network of IF neurons with v(0) = 0, not fitted to anything. encoded: its inputs are spikes."""
    plan = plan_of(model, x)
    plan = with_encoders(plan) if encoded else plan
    neurons = {}
    for name in plan.spiking:
        neurons[name] = IntegrateFire(torch.ones(()), **options)
        neurons[name].v_init.data.zero_()
    return parspike.SNN(plan.graph, neurons, simulation=Simulation(4))


@cache
def small() -> tuple[nn.Module, Tensor]:
    return Net(nn.Conv2d(2, 4, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(4, 8, 3), 8 * 2 * 2), torch.zeros(1, 2, 8, 8)


def about(found: parspike.TargetCheck) -> dict[str, str]:
    """The grades of the findings that are verified, by what they are about; the worst counts."""
    grades: dict[str, str] = {}
    for one in found.findings:
        if one.verified:
            grades.setdefault(one.about, one.grade)
    return grades


# --------------------------------------------------------------------------------------------------- the targets


def test_a_network_that_fits_has_remarks_alone():
    model, x = small()
    found = parspike.check(spiking(model, x, encoded=True), target="speck")
    assert about(found) == {"weights": "approximate", "output": "faithful"}
    assert found.ok
    assert found.grade == "approximate"
    assert not found.blockers


def test_every_blocker_is_told_at_once():
    """Real inputs, leaky neurons, a kernel of 17, a stride of 3, a padding of 8 and a pool of 3."""
    net = Net(nn.Conv2d(1, 4, 17, padding=8), nn.AvgPool2d(3), nn.Conv2d(4, 8, 3, stride=3), 8 * 2 * 2)
    found = parspike.check(spiking(net, torch.zeros(1, 1, 20, 20), decay=0.9), target="speck")
    said = {name for name, grade in about(found).items() if grade == "unsupported"}
    assert said == {"input", "neurons", "kernel", "stride", "padding", "pool"}
    assert len(found.blockers) == 7  # two layers of neurons
    assert not found.ok
    assert {one.layer for one in found.blockers if one.about == "kernel"} == {"one"}


@pytest.mark.parametrize(
    ("target", "options", "grade"),
    [
        ("speck", {}, None),
        ("speck", {"reset": "zero"}, None),
        ("speck", {"decay": 0.9}, "unsupported"),
        ("loihi2", {}, "unsupported"),
        ("loihi2", {"reset": "zero"}, None),
        ("loihi2", {"reset": "zero", "decay": 0.9}, None),
        ("spinnaker2", {"decay": 0.9}, None),
        ("spinnaker2", {"reset": "zero"}, None),
        ("akida", {}, "unsupported"),
        ("hls4ml", {"decay": 0.9, "reset": "zero"}, None),
        ("generic", {"decay": 0.9}, None),
    ],
)
def test_neurons_and_their_reset(target, options, grade):
    model, x = small()
    assert about(parspike.check(spiking(model, x, **options), target)).get("neurons") == grade


def test_parallel_neurons_are_of_no_chip_but_are_quantised_activations():
    model, x = small()
    plan = plan_of(model, x)

    def parallel(T: int, code: Any) -> parspike.SNN:
        neurons = {name: ParallelNeuron(T, torch.ones(()), code=code) for name in plan.spiking}
        return parspike.SNN(plan.graph, neurons, simulation=Simulation(T))

    snn = parallel(4, "weighted")
    for target in targets():
        grade = "approximate" if target == "akida" else "unsupported"
        assert about(parspike.check(snn, target))["neurons"] == grade, target
    # 15 levels fit into 4 bits, 16 do not.
    assert about(parspike.check(parallel(15, "sorted"), "akida"))["neurons"] == "approximate"
    assert about(parspike.check(parallel(16, "sorted"), "akida"))["neurons"] == "unsupported"


def test_what_a_neuron_has_beside_its_threshold():
    model, x = small()
    snn = spiking(model, x, signed=True)
    assert about(parspike.check(snn, "generic"))["signed"] == "unsupported"
    snn = spiking(model, x, refractory=1)
    assert about(parspike.check(snn, "speck"))["refractory"] == "unsupported"
    assert "refractory" not in about(parspike.check(snn, "generic"))
    snn = spiking(model, x)
    assert "v_init" not in about(parspike.check(snn, "hls4ml"))
    neuron: Any = next(iter(snn.neurons().values()))
    neuron.v_init.data.fill_(0.5)
    assert about(parspike.check(snn, "hls4ml"))["v_init"] == "approximate"
    assert "v_init" not in about(parspike.check(snn, "speck"))
    neuron.bias = nn.Parameter(torch.zeros(4), requires_grad=False)
    assert about(parspike.check(snn, "generic"))["step-bias"] == "unsupported"


def test_inputs_as_numbers_where_a_chip_takes_spikes():
    model, x = small()
    assert about(parspike.check(spiking(model, x), "speck"))["input"] == "unsupported"
    assert "input" not in about(parspike.check(spiking(model, x, encoded=True), "speck"))
    assert "input" not in about(parspike.check(spiking(model, x), "loihi2"))


# --------------------------------------------------------------------------------------------------- operators


class Odd(nn.Module):
    """A residual sum of currents, a sum of spikes, a maximum, a synapse behind a synapse, a softmax between and one at
    the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.d, self.e, self.head = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        one = self.a(x).relu()
        two = (self.b(one) + one).relu()
        three = self.d(self.c(one + two)).relu()
        four = torch.nn.functional.max_pool2d(three, 2).softmax(1)
        return self.head(self.e(four).relu().flatten(1)).softmax(1)


def test_operators_between_neurons():
    x = torch.zeros(1, 1, 8, 8)
    snn = spiking(Odd(), x)
    found = parspike.check(snn, "generic")
    assert {one.about: one.layer for one in found.blockers} == {
        "chain": "d", "max_pool": "max_pool2d", "softmax": "softmax"
    }  # fmt: skip
    grades = [one.grade for one in found.findings if one.about == "softmax"]
    assert grades == ["unsupported", "faithful"]  # between neurons, and on the output
    speck = parspike.check(snn, "speck")
    assert "currents" in {one.about for one in speck.blockers}
    assert "sum" not in {one.about for one in speck.blockers}
    assert {"currents", "sum"} <= {one.about for one in parspike.check(snn, "loihi2").blockers}


def test_a_layer_that_is_kept_analog_is_no_layer_of_a_chip():
    model, x = small()
    plan = plan_of(model, x)
    snn = parspike.SNN(plan.graph, {plan.spiking[0]: IntegrateFire(torch.ones(()))}, simulation=Simulation(4))
    (blocker,) = parspike.check(snn, "generic").blockers
    assert (blocker.layer, blocker.about) == ("relu@2", "relu")
    snn = parspike.SNN(plan.graph, {plan.spiking[1]: IntegrateFire(torch.ones(()))}, simulation=Simulation(4))
    found = parspike.check(snn, "generic")
    assert not found.blockers  # before the first spike: a computer beside the chip
    assert about(found)["relu"] == "approximate"


def test_what_is_not_verified_never_blocks():
    net = Net(nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.AvgPool2d(2), nn.Conv2d(4, 8, 3, groups=2), 8 * 2 * 2)
    found = parspike.check(spiking(net, torch.zeros(1, 2, 8, 8), encoded=True), "speck")
    assert {one.about for one in found.findings if not one.verified} == {"dilation", "groups"}
    assert found.ok
    assert "not verified" in str(found)


# --------------------------------------------------------------------------------------------------- memory


def words(found: parspike.TargetCheck) -> list[str]:
    return [one.what for one in found.findings if one.about == "memory"]


def test_memory_of_a_core_by_hand():
    """The example of sinabs' page: 16 channels to 32, kernel 3×3, map 64×64: 16 · 2⁴ · 32 = 8 Ki words of weights, and
    32 · 64 · 64 = 128 Ki of neurons, which no core has."""
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Conv2d(32, 2, 1))
    found = parspike.check(spiking(model, torch.zeros(1, 16, 64, 64), encoded=True), "speck")
    (said,) = words(found)
    assert said.startswith("8 Ki words of weights and 128 Ki of neurons fit in no core")
    # Half of the channels fit.
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Conv2d(16, 2, 1))
    assert not words(parspike.check(spiking(model, torch.zeros(1, 16, 64, 64), encoded=True), "speck"))


def test_sizes_are_filled_up_to_powers_of_two():
    """5 channels to 9, kernel 3×3 (9 → 16), map 33×5 (→ 64·8): 5 · 16 · 16 = 1280 words, 9 · 512 = 4608."""
    from parspike.target.check import _Check
    from parspike.target.tables import table

    model = nn.Sequential(nn.Conv2d(5, 9, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 33 * 5, 7))
    first, last = _Check(spiking(model, torch.zeros(1, 5, 33, 5)), table("speck")).layers
    assert first.words == (5 * 16 * 16, 9 * 64 * 8)
    # The linear layer is a convolution with a kernel of the map's size, 165 → 256, to 7 → 8.
    assert last.kernel == (33, 5)
    assert last.words == (9 * 256 * 8, 7)


def test_cores_are_given_out_so_that_all_layers_fit_where_they_can():
    """Three cores have 64 Ki of neurons: three such layers fit, a fourth does not, whatever the order."""

    def chain(large: int) -> parspike.SNN:
        layers: list[nn.Module] = []
        for _ in range(large):
            layers += [nn.Conv2d(16, 16, 1), nn.ReLU()]
        return spiking(
            nn.Sequential(*layers, nn.AvgPool2d(4), nn.Conv2d(16, 1, 1)), torch.zeros(1, 16, 64, 64), encoded=True
        )

    assert not words(parspike.check(chain(3), "speck"))
    assert len(words(parspike.check(chain(4), "speck"))) == 1


def test_more_layers_than_cores():
    layers = [layer for _ in range(9) for layer in (nn.Linear(4, 4), nn.ReLU())]
    nine = spiking(nn.Sequential(*layers[:-1]), torch.zeros(1, 4), encoded=True)
    ten = spiking(nn.Sequential(*layers, nn.Linear(4, 4)), torch.zeros(1, 4), encoded=True)
    assert "layers" not in about(parspike.check(nine, "speck"))
    assert about(parspike.check(ten, "speck"))["layers"] == "unsupported"


# --------------------------------------------------------------------------------------------------- the table


def test_every_line_of_the_table_has_a_source_on_the_page():
    page = (ROOT / "docs" / "hardware.md").read_text()
    known = set(re.findall(r"^- ([A-Z]) ", page.split("## Sources")[1], re.MULTILINE))
    tables = tomllib.loads(HOME.read_text())
    assert set(tables) == {"loihi2", "speck", "spinnaker2", "akida", "hls4ml", "generic"}
    for name, target in tables.items():
        lines = [line for line in target.values() if isinstance(line, dict)]
        lines += [*target.get("rule", []), *target.get("total", [])]
        for line in lines:
            letters = [letter for letter in line["source"].split(", ") if letter]
            assert set(letters) <= known, (name, line)
            assert bool(letters) is (name != "generic"), (name, line)


def test_the_command_line_offers_the_targets_of_the_table():
    told = CliRunner().invoke(app, ["check", "--help"], env={"COLUMNS": "300"}).output
    assert all(name in told for name in targets())


def test_bad_input():
    model, x = small()
    snn = spiking(model, x)
    with pytest.raises(OptionError, match=r"no target 'loihi'.*did you mean 'loihi2'"):
        parspike.check(snn, "loihi")
    with pytest.raises(InputError, match=r"parspike\.convert makes one"):
        parspike.check(model, "speck")  # pyright: ignore[reportArgumentType]


def test_a_network_in_whole_numbers_is_not_judged_by_the_synapses_that_stand_for_its_pools():
    x = torch.randn(16, 2, 8, 8)
    snn = parspike.convert(small()[0].eval(), x, T=4, neuron=parspike.IF(), input="rate", recipe="max")
    parspike.check(snn, "speck")
    with pytest.raises(OptionError, match="the network that it was lowered from"):
        parspike.check(parspike.lower.integers(snn, x), "speck")


def test_any_network_can_be_checked_for_any_target():
    model, x = made(Residual)
    for snn in (
        parspike.convert(model, x, T=3, recipe="max"),
        parspike.convert(model, x.abs(), T=3, neuron=parspike.LIF(), input="rate", recipe="max"),
    ):
        for target in targets():
            found = parspike.check(snn, target)
            assert json.loads(json.dumps(found.to_json()))["grade"] == found.grade
            assert found.title in str(found)
            assert "<table>" in found._repr_html_()


def test_neurons_are_counted_where_the_batch_stands_in_another_dimension():
    """3 members of 8 neurons, (3, B, 8), beside 5 of a plain layer."""

    class Members(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(3, 6, 8)), nn.Linear(8, 5)
            self.last = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.head(torch.bmm(x.expand(3, -1, -1), self.weight).relu().mean(0)).relu())

    snn = spiking(Members(), torch.randn(2, 6))
    checked = _Check(snn, {})
    assert {name: checked._size(name) for name in snn.neurons()} == {"relu": (3, 8), "relu_1": (5,)}
    assert all(parspike.check(snn, target).findings for target in targets())


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, x = small()
    spiking(model, x, encoded=True).save("net.parspike")
    run = CliRunner().invoke
    done = run(app, ["check", "net.parspike", "--target", "speck", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["grade"] == "approximate"
    done = run(app, ["check", "net.parspike", "--target", "loihi2"])
    assert done.exit_code == 1
    assert done.stdout.startswith("Loihi 2 (Intel), as far as Lava and lava-dl are public: unsupported")
    done = run(app, ["check", "net.parspike", "--target", "tpu", "--json"])
    assert done.exit_code == 1
