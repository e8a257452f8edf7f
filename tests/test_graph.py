"""Tracing, rewriting and the walk: the graph computes what the network computes, and says what it is made of."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import SHAPES, Dense, PreActivation, Quantised, Residual, made
from torch import nn

import parspike
from parspike.graph import Clip, Role, rewrite, trace


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("batch", [1, 5])
def test_graph_without_neurons_is_the_model(kind, batch):
    model, x = made(kind)
    model, x = model.double(), x.double()
    graph = rewrite(trace(model, (x[:batch],)))
    y = torch.randn(7, *SHAPES[kind], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(graph.run(y), model(y), rtol=1e-10, atol=1e-10)


def test_every_form_of_an_activation_is_one_neuron():
    model, x = made(Residual)
    made_plan = parspike.plan(model, x)
    kinds = [made_plan.activation(node) for node in made_plan.graph.neurons]
    assert kinds == [Clip(0, float("inf")), Clip(0, float("inf")), Clip(0, 6), Clip(0, 1.5), Clip(0, 1)]
    assert [node.layer for node in made_plan.graph.neurons] == ["act", "act@2", "relu6", "clamp", "hardtanh"]
    assert all("networks.py" in node.source for node in made_plan.graph.neurons)


def test_batch_norm_dropout_and_pools_are_rewritten():
    model, x = made(Residual)
    graph = parspike.plan(model, x).graph
    targets = [node.target for node in graph.nodes]
    assert "parspike.scale_shift" not in targets
    assert not any("dropout" in target or "clone" in target for target in targets)
    pool = next(node for node in graph.nodes if node.role is Role.ORDER)
    after = [node for node in graph.nodes if pool.name in node.refs]
    assert [node.layer for node in after] == ["act@2"]
    assert graph.by_name[pool.refs[0]].role is Role.SYNAPSE


def test_batch_norm_behind_an_activation_goes_forward_where_it_can():
    class Net(nn.Module):
        def __init__(self, padding):
            super().__init__()
            self.a, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
            self.b, self.bn2 = nn.Conv2d(4, 3, 3, padding=padding), nn.BatchNorm2d(3)
            self.fc = nn.Linear(3 * 4 * 4 if padding == 0 else 3 * 6 * 6, 5)

        def forward(self, x):
            x = self.b(self.bn(F.relu(self.a(x))))
            return self.fc(self.bn2(F.relu(x)).flatten(1))

    for padding, left in ((0, 0), (1, 1)):  # zeros are padded in behind the shift, so it must stay there
        torch.manual_seed(0)
        model = Net(padding).eval()
        for bn in (model.bn, model.bn2):
            nn.init.uniform_(bn.running_mean, -1, 1)
            nn.init.uniform_(bn.bias, -1, 1)
        x = torch.randn(3, 2, 8, 8)
        graph = parspike.plan(model, x).graph
        assert sum(node.target == "parspike.scale_shift" for node in graph.nodes) == left
        torch.testing.assert_close(graph.run(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_convolution_used_twice_folds_two_norms():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
            self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            nn.init.uniform_(self.two.running_var, 2, 3)

        def forward(self, x):
            return self.two(self.conv(F.relu(self.one(self.conv(x)))))

    model, x = Net().eval(), torch.randn(2, 3, 5, 5)
    graph = parspike.plan(model, x).graph
    assert not any(node.target == "parspike.scale_shift" for node in graph.nodes)
    torch.testing.assert_close(graph.run(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_pool_that_others_look_past_stays_behind_its_neuron():
    class Net(nn.Module):
        def forward(self, x):
            y = F.relu(x)
            return F.max_pool2d(y, 2).flatten(1) + y[:, :, ::2, ::2].flatten(1)

    x = torch.randn(3, 2, 6, 6)
    graph = parspike.plan(Net().eval(), x).graph
    assert [node.role for node in graph.nodes if node.role in (Role.NEURON, Role.ORDER)] == [Role.NEURON, Role.ORDER]
    torch.testing.assert_close(graph.run(x), Net()(x))


@pytest.mark.parametrize("kind", [Residual, Dense, PreActivation, Quantised])
def test_converting_leaves_the_model_as_it_was(kind):
    model, x = made(kind)
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    parspike.convert(model, x, T=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_the_graph_does_not_share_the_models_memory():
    model, x = made(Quantised)
    snn = parspike.convert(model, T=4, example=x)
    before = snn(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(snn(x), before)


def test_plan_reads_as_a_table():
    model, x = made(Residual)
    text = str(parspike.plan(model, x, layers={"relu6": parspike.Keep()}))
    assert "act@2" in text
    assert "kept analog" in text
    assert "networks.py:" in text
    assert "4 spiking, 1 kept analog, 1 max" in text


def test_compiled_modules_are_traced_as_they_are_written():
    """Wherever they lie: compiling them for the fake tensors of a tracing had ended the process."""

    class Compiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.body = nn.Linear(5, 8), torch.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))

        def forward(self, x):
            return self.body(torch.relu(self.first(x)))

    x = torch.randn(3, 5)
    for model in (Compiled().eval(), torch.compile(Compiled().eval())):
        graph = trace(model, (x,))
        assert len(graph.neurons) == 2
        with torch.compiler.set_stance("force_eager"):
            assert torch.allclose(graph.run(x), model(x), atol=1e-6)
