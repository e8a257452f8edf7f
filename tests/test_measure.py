"""Operations against brute force: every spike of the trains, pushed alone through synapses whose weights are 1."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import SHAPES, made, planned
from test_operators import ALONE, CALLS
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import parspike
from parspike.errors import InputError, OptionError, ParspikeError
from parspike.graph import Graph, Node, Role, Schedule, Stream, leaves, map_tree, nested, trace, walk
from parspike.graph.ops import TABLE, call
from parspike.measure.wires import carry, fan_out
from parspike.neurons import CODES, ParallelNeuron, Simulation

# --------------------------------------------------------------------------------------- brute force on a graph


def lit(value: Any) -> Any:
    return map_tree(lambda leaf: (leaf.abs() > 1e-6).double(), value)


def unit(snn: parspike.SNN) -> dict[str, Tensor]:
    """Its weights all 1, its biases 0: what is left of a synapse is where it leads."""
    return {path: torch.full_like(t, float(t.dim() > 1), dtype=torch.float64) for path, t in snn.tensors().items()}


def outcome(node: Node, env: dict[str, Any], tensors: Any, size: int) -> Any:
    """What a node makes of the values in `env`, without the constant part; others that it reads are 0."""
    results = []
    for lamp in (1.0, 0.0):
        values = {n: map_tree(lambda leaf, lamp=lamp: leaf.double() * lamp, value) for n, value in env.items()}
        args, kwargs = Stream(values, tensors, {"batch": size}).arguments(node)
        results.append(call(node.target, args, kwargs))
    dark = iter(list(leaves(results[1])))
    return map_tree(lambda leaf: torch.nan_to_num(leaf.double() - next(dark).double(), 0.0, 0.0, 0.0), results[0])


def lone_spikes(shape: Any) -> Tensor:
    """One sample for every element, in which it alone is 1."""
    return torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)


def brute(snn: parspike.SNN, x: Tensor) -> dict[str, float]:
    """Synaptic operations of every node for a batch, spike by spike, from the parallel engine's trains.

    A spike goes alone through the wires, as an element that is 1 among zeros, and every element that it reaches is
    1 again. At a weighted synapse each of these makes, alone, as many operations as there are outputs that it changes.
    """
    graph, run, tensors = snn.graph, snn.run(x, engine="parallel", record=True), unit(snn)
    trains = {node.name: run.spikes[node.layer] for node in graph.neurons}
    sorted_code = [name for name, neuron in snn.neurons().items() if neuron.code == "sorted"]
    pools = [n for n in graph.nodes if n.role is Role.ORDER and nested(graph, n, sorted_code)]
    for node in pools:  # a pooled train starts anew
        steps = [call(node.target, (step.float(), *node.args[1:]), {}) for step in trains[node.refs[0]]]
        trains[node.name] = torch.stack(steps).bool()
    found = dict.fromkeys([node.name for node in graph.nodes], 0.0)
    for name, train in trains.items():
        spikes, values = train.sum((0, 1)).flatten().double(), {name: lone_spikes(train.shape[2:])}
        size = len(spikes)
        for node in graph.nodes:
            if not any(ref in values for ref in node.refs) or node in pools:
                continue
            env = {ref: values.get(ref, torch.zeros(size, *shape_of(graph, ref))) for ref in node.refs}
            if TABLE[node.target].weighted:
                (reached,) = env.values()
                alone = {node.refs[0]: lone_spikes(reached.shape[1:])}
                targets = lit(outcome(node, alone, tensors, reached[0].numel())).flatten(1).sum(1)
                found[node.name] += float(spikes @ (reached.flatten(1) @ targets))
            elif node.role is Role.SYNAPSE:
                values[node.name] = lit(outcome(node, env, tensors, size))
            else:
                found[node.name] += sum(float(spikes @ value.flatten(1).sum(1)) for value in env.values())
    return found


def shape_of(graph: Graph, name: str) -> Any:
    return (graph.by_name[name] if name in graph.by_name else graph.inputs[0]).shape[1:]


class Layers(nn.Module):
    """image → conv → ReLU → back → ReLU → head, on maps or on lines."""

    def __init__(self, back: nn.Module, lines: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv1d(2, 4, 3, padding=1) if lines else nn.Conv2d(2, 4, 3, padding=1)
        self.back, self.lines = back, lines

    def forward(self, x: Tensor) -> Tensor:
        return self.back(F.relu(self.stem(x))).relu().flatten(1).mean(1, keepdim=True)


class Skips(nn.Module):
    """A residual sum, a concatenation and a linear bottleneck: two weighted synapses without neurons between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x) + x)
        return self.two(self.one(torch.cat([x, y], 1)) + F.pad(y, (0, 0, 0, 0))[:, :2])


BACKS: dict[str, tuple[nn.Module, bool]] = {
    "conv, stride": (nn.Conv2d(4, 3, 3, 2, 1), False),
    "conv, groups, dilation": (nn.Conv2d(4, 6, (3, 2), (1, 2), (2, 0), (2, 1), 2), False),
    "depthwise": (nn.Conv2d(4, 4, 3, 1, "same", groups=4), False),
    "transposed": (nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), False),
    "conv1d": (nn.Conv1d(4, 3, 3, 2, 1), True),
    "transposed 1d": (nn.ConvTranspose1d(4, 2, 4, 3), True),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(144, 5)), False),
    "linear on the last dimension": (nn.Linear(6, 5), False),
    "average pool": (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 3, 3, padding=1)), False),
    "average pool, overlapping": (nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 3, 2)), False),
    "adaptive pool": (nn.Sequential(nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten(), nn.Linear(16, 3)), False),
    "max-pool": (nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 3, 2)), False),
    "upsample": (nn.Sequential(nn.Upsample(scale_factor=1.5, mode="bilinear"), nn.Conv2d(4, 3, 3)), False),
    "skips": (Skips(), False),
    "tanh with offset": (nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 3, 1, 1)), False),
}


def check(model: nn.Module, x: Tensor) -> None:
    # The spikes pushed alone below have the shapes of the nodes, and reach neurons at the output too.
    plan = parspike.plan(model, x, free_sizes=False, layers={"*": parspike.Spike()})
    names = {(node.layer, node.target.split(".")[1]): node.name for node in plan.graph.nodes}
    for code in CODES:
        snn = parspike.convert(plan, x, T=3, code=code, recipe="max")
        report = parspike.measure(snn, [x[:2], x[2:]])
        seen = {names[row.layer, row.operator]: row.synops * len(x) for row in report.rows}
        wanted = brute(snn, x)
        assert sum(wanted.values()) > 0
        for name, synops in wanted.items():
            assert seen.get(name, 0.0) == pytest.approx(synops, abs=1e-6), (name, code)
        trains = snn.run(x, engine="parallel", record=True).spikes
        assert report.spikes * len(x) == pytest.approx(sum(float(train.sum()) for train in trains.values()))
        assert report.updates == 3 * report.neurons


@pytest.mark.parametrize("kind", ["conv, stride", "average pool, overlapping", "max-pool", "skips"])
def test_another_size_costs_what_a_network_of_that_size_costs(kind):
    model, x, larger = Layers(*BACKS[kind]).eval(), torch.randn(3, 2, 6, 6), torch.randn(3, 2, 10, 8)
    free = parspike.convert(model, x, T=3, recipe="max")
    fixed = parspike.convert(parspike.plan(model, larger, free_sizes=False), larger, T=3, recipe="max")
    fixed.load_state_dict(free.state_dict())
    seen, wanted = (parspike.measure(snn, larger) for snn in (free, fixed))
    assert wanted.synops > 0
    assert seen.to_json()["rows"] == wanted.to_json()["rows"]


@pytest.mark.parametrize("kind", BACKS)
def test_every_spike_pushed_alone(kind):
    back, lines = BACKS[kind]
    check(Layers(back, lines).eval(), torch.randn(3, 2, *((9,) if lines else (6, 6))))


class Ways(nn.Module):
    """Spikes that reach an element along two ways: a pool behind an up-sampling."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.a, self.b, self.twice = nn.Conv1d(2, 3, 1), nn.Linear(5, 4), twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.b(F.avg_pool1d(F.interpolate(y, scale_factor=2), 2) if self.twice else y)


def test_a_spike_counts_once_for_each_way_to_an_element():
    x, synops = torch.randn(16, 2, 5, generator=torch.Generator().manual_seed(0)), {}
    for twice in (False, True):
        torch.manual_seed(0)
        snn = parspike.convert(Ways(twice=twice).eval(), x, T=3, recipe="max")
        synops[twice] = parspike.measure(snn, x).synops
    assert synops[False] > 0
    assert synops[True] == 2 * synops[False]


class Pooled(nn.Module):
    """Average pools behind neurons, one of which is padded and divides by less at its edge."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.a(x).relu(), 3, 1, 1, count_include_pad=False)
        return self.c(F.adaptive_avg_pool2d(self.b(x).relu(), 1).flatten(1))


class NamedPool(nn.Module):
    """A convolution that is called as the sum of a pool is in whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.head = nn.ModuleDict({"pool": nn.Conv2d(2, 4, 3)}), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.whole["pool"](x).relu())


def test_a_convolution_called_pool_is_a_synapse():
    x = torch.randn(8, 2, 5, 5)
    report = parspike.measure(parspike.convert(NamedPool().eval(), x, T=3, recipe="max"), x)
    assert report.macs == 9 * 18 * 4


class Interpolated(nn.Module):
    """Up-sampling between two layers, and an average over windows of unlike sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.a(x).relu(), scale_factor=2, mode="bilinear")
        return self.head(F.adaptive_avg_pool2d(self.b(y).relu(), (4, 1)).mean((2, 3)))


@pytest.mark.parametrize("kind", [None, parspike.IF()], ids=["parallel", "if"])
@pytest.mark.parametrize("model", [Pooled, Interpolated])
def test_pools_in_whole_numbers_are_wires_too(model, kind):
    torch.manual_seed(0)
    x = torch.randn(16, 2, 6, 6)
    snn = parspike.convert(model().eval(), x, T=4, recipe="closed-form", neuron=kind)
    chip = parspike.lower.integers(snn, x, weights=16, inputs=16)
    real, whole = parspike.measure(snn, x), parspike.measure(chip, x)
    rows = [[row for row in found.rows if row.kind in ("synapse", "neuron")] for found in (real, whole)]
    assert [row.operator for row in rows[0]] == [row.operator for row in rows[1]]
    for one, two in zip(*rows, strict=True):
        assert two.synops == pytest.approx(one.synops, rel=0.02)
        assert (two.macs, two.network_macs, two.bits) == (one.macs, one.network_macs, one.bits)
    assert whole.weights == real.weights
    ours, theirs = parspike.neurobench(snn, x), parspike.neurobench(chip, x)
    assert theirs.dense == ours.dense
    assert theirs.effective_macs == pytest.approx(ours.effective_macs, rel=0.02)


@pytest.mark.parametrize("kind", SHAPES)
def test_every_spike_of_whole_networks(kind):
    check(*made(kind, batch=3))


WIRES = [name for name, row in TABLE.items()
         if name in CALLS and row.role is Role.SYNAPSE and not row.weighted and row.sources != "many"]  # fmt: skip


class Wires(nn.Module):
    def forward(self, x: Tensor) -> Any:
        found = [leaf for name in WIRES if name not in ALONE for leaf in leaves(CALLS[name](x * 1.0))]
        return [leaf for leaf in found if isinstance(leaf, Tensor)]


def test_every_wire_of_the_op_table_leads_where_a_lone_spike_goes():
    """A row whose `sources` is wrong fails here: an element counts the spikes that have a share in it."""
    x = torch.rand(2, 4, 6, 6, dtype=torch.float64)
    graph = trace(Wires().eval(), (x,))
    varying, env = {graph.inputs[0].name}, {graph.inputs[0].name: x}
    walk(
        Schedule.of(graph.nodes, [n.name for n in graph.nodes], seeds=list(env)),
        [Stream(env, graph.tensors, {"batch": 2})],
    )
    seen = set()
    for node in graph.nodes:
        sources = [ref for ref in node.refs if ref in varying]
        varying |= {node.name} if sources else set()
        if node.target not in WIRES or node.role is not Role.SYNAPSE or not sources or node.target in seen:
            continue
        seen.add(node.target)
        args, kwargs = Stream(env, graph.tensors, {"batch": 2}).arguments(node)
        spikes = [map_tree(lambda v: torch.randint(0, 4, v.shape).double(), env[name]) for name in sources]
        found = list(leaves(carry(node, args, kwargs, spikes, varying)))
        wanted = [torch.zeros_like(leaf) for leaf in found]
        constant = {ref: env[ref] for ref in node.refs if ref not in sources}
        dark = {ref: map_tree(lambda v: torch.zeros_like(v.double()), env[ref]) for ref in sources}
        nothing = list(leaves(_run(node, {**constant, **dark}, graph)))
        for name, signal in zip(sources, spikes, strict=True):
            for number, leaf in enumerate(leaves(signal)):
                for place, here in enumerate(leaf.flatten().tolist()):
                    lone = [torch.zeros(v.shape, dtype=torch.float64) for v in leaves(signal)]
                    lone[number].view(-1)[place] = 1.0
                    queue = iter(lone)
                    one = {**dark, name: map_tree(lambda _, queue=queue: next(queue), signal)}
                    for k, out in enumerate(leaves(_run(node, {**constant, **one}, graph))):
                        wanted[k] += here * ((out.double() - nothing[k].double()).abs() > 1e-6)
        for a, b in zip(found, wanted, strict=True):
            assert torch.equal(a.abs(), b), (node.target, TABLE[node.target].sources)
    assert len(seen) > 80


def _run(node: Node, env: dict[str, Any], graph: Graph) -> Any:
    args, kwargs = Stream(env, graph.tensors, {"batch": 2}).arguments(node)
    return call(node.target, args, kwargs)


@torch.no_grad()
def test_a_maximum_behind_a_negative_factor_passes_a_spike_where_all_fire():
    norm, conv = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 2)
    norm.weight.fill_(-1.0)
    model, x = Layers(nn.Sequential(norm, nn.MaxPool2d(2), conv)).eval(), torch.randn(3, 2, 6, 6) + 1
    snn = parspike.convert(model, x, T=4, recipe="max")
    train = snn.run(x, engine="parallel", record=True).spikes["relu"].flatten(0, 1).float()
    wanted = F.conv2d(-F.max_pool2d(-train, 2), torch.ones_like(conv.weight)).sum()
    assert wanted > 0
    row = next(row for row in parspike.measure(snn, x).rows if row.layer == "back.2")
    assert row.synops * 3 == float(wanted)


# ------------------------------------------------------------------------------------- what is no spike, and scores


class Attention(nn.Module):
    """Two heads written by hand, or torch's own product."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.qkv = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 24)
        self.out, self.head, self.fused = nn.Linear(8, 8), nn.Linear(8, 3), fused

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.head(torch.relu(x).mean(1))


def test_attention_is_named_and_costs_what_its_products_do():
    x = torch.randn(2, 5, 6)
    reports = {}
    for fused in (False, True):
        model = Attention(fused).eval()
        snn = parspike.convert(model, x, T=4, recipe="max")
        reports[fused] = parspike.measure(snn, x, against=model)
    rows = {(row.layer, row.operator): row for row in reports[False].analog}
    assert [operator for _, operator in rows] == ["layer_norm", "matmul", "softmax", "matmul"]
    costs = [row.macs for row in rows.values()]
    assert costs == [2 * 5 * 8, 2 * 5 * 5 * 4, 2 * 2 * 5 * 5, 2 * 5 * 5 * 4]
    fused = reports[True]
    assert [row.operator for row in fused.analog] == ["layer_norm", "scaled_dot_product_attention"]
    assert fused.macs == reports[False].macs
    assert fused.network_macs == reports[False].network_macs
    macs = {row.layer: row.macs for row in fused.rows if row.kind == "synapse"}
    # the image, what the norm gives and what the attention gives are real numbers; the head gets spikes
    assert macs == {"stem": 5 * 6 * 8, "qkv": 5 * 8 * 24, "out": 5 * 8 * 8, "head": 0}
    arriving = {row.layer: row.synops for row in fused.rows}
    spikes = {row.layer: row.spikes for row in fused.rows if row.neurons}
    # the norm averages the first layer's spikes, the skip brings them to the second layer's neurons
    assert arriving["norm"] == pytest.approx(spikes["relu"])
    assert arriving["relu@2"] == pytest.approx(spikes["relu"])
    assert arriving["head"] == pytest.approx(3 * spikes["relu@2"])
    assert "layer_norm" in str(fused)
    assert "norm (layer_norm)" in fused.to_json()["analog"]


def test_the_image_costs_multiply_accumulates_once_and_bottlenecks_too():
    model = Layers(BACKS["skips"][0]).eval()
    x = torch.randn(2, 2, 6, 6)
    few, many = (parspike.measure(parspike.convert(model, x, T=T, recipe="max"), x) for T in (2, 8))
    row = {row.layer: row for row in few.rows}
    edges = 4 * 2 * (6 + 5 + 5) ** 2  # of a 3 × 3 convolution on 6 × 6 with zeros around: 16 along each side
    assert (row["stem"].macs, row["stem"].network_macs) == (edges, edges)
    assert (row["back.one"].macs, row["back.one"].synops > 0) == (0, True)
    assert row["back.two"].macs == row["back.two"].network_macs == 2 * 4 * 9 * 16
    assert few.macs == many.macs
    assert many.synops > few.synops


def test_network_macs_are_those_of_torch_without_padding():
    from torch.utils.flop_counter import FlopCounterMode

    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2, 2, groups=2), nn.ReLU(), nn.Flatten(),
                          nn.Linear(16, 3)).eval()  # fmt: skip
    x = torch.randn(3, 2, 6, 6)
    report = parspike.measure(parspike.convert(model, x, T=2, recipe="max"), x)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert report.network_macs == counter.get_total_flops() / 2 / len(x)


def test_a_copy_for_the_output_costs_the_network_nothing():
    """It would catch a softmax that the output shows and a layer reads counted twice in the network's own figures."""

    class Net(nn.Module):
        def __init__(self, shown: bool) -> None:
            super().__init__()
            self.a, self.b, self.shown = nn.Linear(4, 6), nn.Linear(6, 3), shown

        def forward(self, x):
            shares = self.a(x).relu().softmax(1)
            return (shares, self.b(shares)) if self.shown else self.b(shares)

    x = torch.rand(8, 4)
    copied, plain = (
        parspike.measure(parspike.convert(Net(shown).eval(), x, T=4, recipe="max"), x) for shown in (True, False)
    )
    assert [row.layer for row in copied.rows if row.layer.endswith("@output")] == [
        "relu@output", "softmax@output"
    ]  # fmt: skip
    assert copied.network_macs == plain.network_macs


def test_kept_activations_are_analog_and_so_is_what_they_feed():
    model, x = made(next(iter(SHAPES)), batch=2)
    snn = parspike.convert(model, x, T=4, recipe="max", layers={"*": parspike.Keep()})
    report = parspike.measure(snn, x, against=model)
    assert report.synops == report.spikes == report.neurons == 0
    assert report.macs == report.network_macs
    assert len(report.analog) == 5
    assert report.error == pytest.approx(0, abs=1e-5)


@torch.no_grad()
def test_accuracy_agreement_and_error_by_layer():
    model, x = made(next(iter(SHAPES)), batch=16)
    snn = parspike.convert(model, x, T=2, recipe="max")
    y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % 5
    report = parspike.measure(snn, [(x[:10], y[:10]), (x[10:], y[10:])], against=model)
    said, wanted = snn(x), model(x)
    assert report.samples == 16
    assert report.network_accuracy == 0.75
    assert report.accuracy == float((said.argmax(1) == y).float().mean())
    assert report.agreement == float((said.argmax(1) == wanted.argmax(1)).float().mean())
    assert report.error == pytest.approx(float((said - wanted).norm() / wanted.norm()), rel=1e-5)
    activation = F.relu(model.bn1(model.conv1(x)))
    neuron = next(iter(snn.neurons().values()))
    count = snn.run(x, record=True).counts["act"]
    error = float((neuron.value(count) - activation).norm() / activation.norm())
    first = next(row for row in report.rows if row.layer == "act")
    assert first.error == pytest.approx(error, rel=1e-4)
    assert parspike.measure(snn, x).accuracy is None
    other = parspike.measure(snn, x, against=nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval())
    assert other.agreement is not None
    assert all(row.error is None for row in other.rows)


def test_energy_is_operations_times_their_constants():
    model, x, plan = planned(next(iter(SHAPES)), batch=2)
    snn = parspike.convert(plan, x, T=4, recipe="max")
    report = parspike.measure(snn, x, against=model, energy=parspike.Energy(ac=2.0, mac=3.0))
    assert report.energy_pj == pytest.approx(2 * report.synops + 3 * report.macs)
    assert report.network_energy_pj == pytest.approx(3 * report.network_macs)
    assert report.update_energy_pj == 2 * report.updates
    said = json.loads(json.dumps(report.to_json()))
    assert (said["energy"]["ac"], said["energy"]["mac"]) == (2.0, 3.0)
    assert said["synops"] == pytest.approx(sum(row["synops"] for row in said["rows"]))
    assert math.isfinite(said["error"])
    with pytest.raises(OptionError, match="at least 0 pJ"):
        parspike.Energy(ac=-1.0)


@pytest.mark.parametrize(
    ("act", "code", "uneven"),
    [(nn.Sigmoid(), "sorted", ("1",)), (nn.Sigmoid(), "weighted", ()), (nn.ReLU(), "sorted", ())],
)
def test_levels_that_are_uneven_are_told_to_cost_more(act, code, uneven):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 2)).eval(), torch.randn(32, 4)
    report = parspike.measure(parspike.convert(model, x, T=4, code=code, recipe="closed-form"), x)
    assert report.uneven == uneven
    assert report.to_json()["uneven"] == uneven
    assert ("uneven levels in 1: a spike carries another amplitude" in str(report)) == bool(uneven)


def test_layers_with_fewer_steps_update_less_often():
    model, x = made(next(iter(SHAPES)), batch=2)
    snn = parspike.convert(model, x, T=8, recipe="max", layers={"hardtanh": parspike.Steps(2)})
    rows = {row.layer: row for row in parspike.measure(snn, x).rows}
    assert rows["hardtanh"].updates == 2 * rows["hardtanh"].neurons
    assert rows["act"].updates == 8 * rows["act"].neurons


def test_samples_of_unlike_sizes_are_counted_each_by_its_own():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).eval()
    small, large = torch.randn(2, 2, 6, 6), torch.randn(1, 2, 9, 7)
    snn = parspike.convert(model, small, T=2, recipe="max")
    parts = [(2, parspike.measure(snn, small)), (1, parspike.measure(snn, large))]
    both = parspike.measure(snn, [small, large], against=model)
    for name in ("neurons", "spikes", "synops", "macs", "network_macs", "updates"):
        wanted = sum(samples * getattr(part, name) for samples, part in parts) / 3
        assert getattr(both, name) == pytest.approx(wanted), name
    assert parts[1][1].neurons == 4 * 9 * 7


@pytest.mark.parametrize("code", CODES)
def test_spikes_sent_are_those_of_the_trains(code):
    neuron = ParallelNeuron(5, torch.tensor(1.0), code=code)
    counts = torch.arange(neuron.levels + 1).float()
    assert torch.equal(neuron.sent(counts), neuron.spikes(counts).sum(0).float())


def test_firing_rate_is_of_spikes_not_of_counts():
    _, x, plan = planned(next(iter(SHAPES)), batch=2)
    run = parspike.convert(plan, x, T=4, code="weighted", recipe="max").run(x, record=True)
    assert run.firing_rate == pytest.approx({layer: float(t.float().mean()) for layer, t in run.spikes.items()})


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "the loader is empty"),
        (3, "loader must be an iterable"),
        ([torch.zeros(2, 4, 8, 8)], "batch 0 of the loader: input 'x' has shape"),
        ([torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), math.nan)], "batch 1 of the loader: input 'x' holds NaN"),
    ],
)
def test_bad_loaders(loader, message):
    _, x, plan = planned(next(iter(SHAPES)), batch=2)
    snn = parspike.convert(plan, x, T=2, recipe="max")
    with pytest.raises(ParspikeError, match=message):
        parspike.measure(snn, loader)


def test_a_network_that_is_not_converted():
    with pytest.raises(ParspikeError, match=r"parspike\.convert makes one"):
        parspike.measure(nn.Linear(2, 2), torch.zeros(2, 2))


def test_fan_out_of_a_padded_convolution_is_less_at_its_border():
    graph = trace(nn.Sequential(nn.Conv2d(1, 5, 3, padding=1)).eval(), (torch.zeros(2, 1, 4, 4),))
    (node,) = graph.nodes
    stream = Stream({graph.inputs[0].name: torch.zeros(2, 1, 4, 4)}, graph.tensors, {"batch": 2})
    edges = fan_out(node, *stream.arguments(node), {graph.inputs[0].name})
    side = torch.tensor([2.0, 3.0, 3.0, 2.0], dtype=torch.float64)
    assert torch.equal(edges[0, 0], 5 * side[:, None] * side)


# ------------------------------------------------------------------------------------------ inputs over time


class Slices(nn.Module):
    """A pool and a synapse on events, two synapses without neurons between, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2)
        self.c, self.head = nn.Conv2d(4, 3, 1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c(self.b(self.a(F.avg_pool2d(x, 2)).relu())).relu()
        return self.head(h.mean((2, 3)))


STEPS = 6


@cache
def slices() -> tuple[nn.Module, parspike.SNN, Tensor]:
    """A network of IF neurons and events (T, B, 2, 12, 12): how many there are at a place in a step."""
    model = Slices().eval()
    events = torch.poisson(torch.full((STEPS, 5, 2, 12, 12), 0.3), torch.Generator().manual_seed(1))
    snn = parspike.convert(model, events.mean(0), T=STEPS, neuron=parspike.IF(), recipe="max")
    return model, snn, events


def edges(layer: nn.Conv2d | nn.Linear, x: Tensor) -> float:
    """Operations of values at a synapse, by the synapse itself with weights that are all 1."""
    lit = copy.deepcopy(layer)
    nn.init.ones_(lit.weight)
    nn.init.zeros_(lit.bias)
    with torch.no_grad():
        return float(lit(x).double().sum())


def test_events_are_accumulates_in_the_step_in_which_they_come():
    """Would catch a mean in place of the events, an input whose events are multiplied, and one that is counted once."""
    model, snn, events = slices()
    y = torch.arange(5)
    report = parspike.measure(snn, [(events[:, :2], y[:2]), (events[:, 2:], y[2:])], against=model)
    run = snn.run(events, record=True)
    first, second = (train.float() for train in run.spikes.values())
    reached = 4 * F.avg_pool2d(events.flatten(0, 1), 2)  # the pool is a wire: each event goes on as it is
    rows = {row.layer: row for row in report.rows}
    assert rows["a"].synops * 5 == edges(model.a, reached) > 0
    assert rows["b"].synops * 5 == edges(model.b, first.flatten(0, 1)) > 0
    assert rows["head"].synops * 5 == edges(model.head, second.flatten(0, 1).sum((2, 3))) > 0
    # Behind another synapse there are real values, which the neurons need at every step.
    once = edges(model.c, torch.ones(1, 4, 2, 2))
    assert (rows["c"].macs, rows["c"].kept_macs, rows["c"].network_macs) == (STEPS * once, once, once)
    assert report.macs == STEPS * once
    assert report.energy_pj == pytest.approx(0.9 * report.synops + 4.6 * report.macs)
    assert report.driven == 1 - once / report.network_macs
    assert report.spikes * 5 == first.sum() + second.sum()
    assert report.accuracy == pytest.approx(float((run.logits.argmax(1) == y).double().mean()))
    assert report.network_accuracy == pytest.approx(float((model(events.mean(0)).argmax(1) == y).double().mean()))
    assert report.error == pytest.approx(parspike_error(run.logits, model(events.mean(0))), rel=1e-5)
    assert parspike.measure(snn, events).rows == parspike.measure(snn, [events]).rows


def parspike_error(output: Tensor, wanted: Tensor) -> float:
    return float((output - wanted).detach().norm() / wanted.detach().norm())


def test_frames_of_real_values_are_multiplied_at_every_step():
    model, snn, events = slices()
    frames = 0.37 * events
    rows = {row.layer: row for row in parspike.measure(snn, frames).rows}
    once = edges(model.a, torch.ones(1, 2, 6, 6))
    assert (rows["a"].synops, rows["a"].macs, rows["a"].network_macs) == (0, STEPS * once, once)
    still = {row.layer: row for row in parspike.measure(snn, frames[0]).rows}
    assert (still["a"].synops, still["a"].macs) == (0, once)


def test_the_same_events_at_every_step_are_the_same_spikes():
    _, snn, events = slices()
    still, moving = (parspike.measure(snn, x) for x in (events[0], events[:1].expand(STEPS, *events.shape[1:])))
    for one, two in zip(still.rows, moving.rows, strict=True):
        assert (one.spikes, one.updates) == (two.spikes, two.updates)
        assert one.layer == "a" or one.synops == two.synops


def test_neurobench_reads_every_step_of_the_input():
    model, snn, events = slices()
    found = parspike.neurobench(snn, events)
    first, second = (train.float() for train in snn.run(events, record=True).spikes.values())
    amplitude = snn.neurons()[snn.graph.neurons[0].name].v_post
    acs = macs = 0.0
    for t in range(STEPS):
        read = {
            model.a: F.avg_pool2d(events[t], 2), model.b: first[t], model.c: model.b(first[t] * amplitude),
            model.head: second[t].mean((2, 3)),
        }  # fmt: skip
        for layer, x in read.items():
            operations = edges(layer, (x != 0).float())
            only = bool(((x == 0) | (x == 1)).all())
            acs, macs = acs + operations * only, macs + operations * (not only)
    assert found.effective_acs * 5 == acs > 0
    assert found.effective_macs * 5 == macs > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[:4], r"batch 0 of the loader: .* is 4 steps, and this network runs T=6"),
        (lambda x: x.transpose(0, 1), r"such as x.transpose\(0, 1\)"),
        (lambda x: x[:, :, :1], r"has shape \(5, 1, 12, 12\), this network takes"),
        (lambda x: x.long(), r"is torch.int64, this network takes torch.float32"),
        (lambda x: x.masked_fill(x > 2, math.inf), "NaN or Inf"),
    ],
)
@pytest.mark.parametrize("measure", [parspike.measure, parspike.neurobench])
def test_inputs_over_time_that_do_not_fit(measure, change, says):
    _, snn, events = slices()
    with pytest.raises(InputError, match=says):
        measure(snn, [change(events)])


def test_an_input_over_time_that_weighs_others_is_refused():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return self.two(self.one(x).relu() * gate)

    x, gate = torch.rand(3, 4), torch.rand(3, 4)
    snn = parspike.convert(Gated().eval(), [(x, gate)], T=4, neuron=parspike.IF(), recipe="max")
    steps = x.expand(4, 3, 4)
    assert parspike.measure(snn, [(steps, gate)]).synops > 0
    with pytest.raises(InputError, match="multiplies by an input that is another one at every step"):
        parspike.measure(snn, [(steps, gate.expand(4, 3, 4))])
    tokens = parspike.convert(
        nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(),
        torch.randint(0, 9, (8, 3)), T=4, neuron=parspike.IF(), recipe="max",
    )  # fmt: skip
    with pytest.raises(InputError, match="only real numbers have a mean over time"):
        parspike.measure(tokens, [torch.randint(0, 9, (4, 2, 3))])


@pytest.mark.parametrize("T", [STEPS, 64])
def test_samples_of_a_data_set_are_told_to_bring_time_first(T):
    """Batches of 64 recordings of 64 steps would be read in the wrong order without a word."""
    _, snn, events = slices()
    snn = parspike.SNN(replace(snn.graph, tensors=snn.tensors()), snn.neurons(), simulation=Simulation(T))
    x = events.new_zeros(64, T, *events.shape[2:])
    with pytest.raises(InputError, match=r"such as x.transpose\(0, 1\)"):
        parspike.measure(snn, TensorDataset(x, torch.zeros(64)))
    items = DataLoader(TensorDataset(x[:2], torch.zeros(2).long()), 2)
    assert parspike.measure(snn, items, inputs=lambda item: item[0].transpose(0, 1)).accuracy is not None
