"""`snn.compile()`: the count engine through torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import Dense, Residual, planned

import parspike
from parspike.errors import InputError, OptionError, ParspikeWarning
from parspike.graph.ir import Ref
from parspike.graph.ops import masked
from parspike.lower import integers
from parspike.neurons import ParallelNeuron
from parspike.neurons.signed import SignedNeuron


def converted(T: int) -> tuple[parspike.SNN, torch.Tensor]:
    """A network of two layers of neurons, which compiles in a quarter of the time of a residual one."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
    )
    x = torch.rand(9, 5)
    return parspike.convert(model.eval(), x, T=T, recipe="max"), x


def test_any_batch_is_one_graph() -> None:
    _, x, plan = planned(Residual, batch=9)
    snn = parspike.convert(plan, x, T=6, recipe="max")
    compiled = copy.deepcopy(snn).compile(backend="eager")
    torch._dynamo.utils.counters.clear()
    for part in (x, x[:5], x[:1], x[:4]):
        run, again = snn.run(part, record=True), compiled.run(part, record=True)
        assert torch.equal(again.logits, run.logits)
        assert all(torch.equal(again.counts[layer], count) for layer, count in run.counts.items())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # any batch, and a batch of one


@pytest.mark.slow
def test_compiled_and_eager_count_alike(compiler: None) -> None:
    _, x, plan = planned(Residual, batch=9)
    snn = parspike.convert(plan, x, T=6, recipe="max")
    whole = integers(snn, x)
    run, wanted = snn.run(x, record=True), whole(x)
    again = snn.compile().run(x, record=True)
    for layer, count in run.counts.items():
        apart = (again.counts[layer] - count).abs()
        assert float(apart.max()) <= 1, layer
        assert float((apart > 0).float().mean()) < 1e-3, layer
    assert torch.allclose(again.logits, run.logits, rtol=1e-3, atol=1e-3)
    with pytest.warns(ParspikeWarning, match="integer kernels"):
        assert whole.compile() is whole
    assert whole.engine == "count"
    assert torch.equal(whole(x), wanted)


def test_what_a_compiled_network_keeps_to(tmp_path) -> None:
    _, x, plan = planned(Residual, batch=9)
    snn = parspike.convert(plan, x, T=4, recipe="max").compile(backend="eager")
    wanted = snn(x)
    with pytest.raises(InputError, match="this network takes"):
        snn(x[:, :2])
    for other in (copy.deepcopy(snn), parspike.load(snn.save(tmp_path / "net.parspike"))):
        assert other._compiled is None
        assert torch.equal(other(x), wanted)
    assert torch.equal(snn.double()(x.double()).argmax(1), wanted.argmax(1))
    steps = parspike.convert(plan, x, T=4, recipe="max", neuron=parspike.IF())
    with pytest.raises(OptionError, match="step by step"):
        steps.compile()


@pytest.mark.parametrize(("dtype", "share", "apart"), [(torch.bfloat16, 0.1, 6), (torch.float16, 0.03, 3)], ids=str)
def test_under_autocast_few_neurons_count_otherwise(dtype: torch.dtype, share: float, apart: int) -> None:
    """Would catch neurons that compare in the short type: their thresholds would be off by as much as a count."""
    for kind in (Residual, Dense):
        _, x, plan = planned(kind, batch=9)
        snn = parspike.convert(plan, x, T=32, recipe="max")
        own = snn.run(x, record=True).counts
        with torch.autocast("cpu", dtype):
            got = snn.run(x, record=True).counts
        off = torch.cat([(own[layer] - got[layer].float()).abs().flatten() for layer in own])
        assert float((off > 0).float().mean()) < share
        assert float(off.max()) <= apart


def test_compiled_code_follows_the_network() -> None:
    """Would catch code that keeps a threshold, an offset, a kind of neurons or a graph of when it was compiled: what
    the compiler asks about the graph is left out."""
    snn, x = converted(4)
    compiled = copy.deepcopy(snn).compile(backend="aot_eager")
    first, *_, last = snn._layers.values()

    def layer(net: parspike.SNN, path: str = first) -> ParallelNeuron:
        return net.spiking.get_submodule(path)  # pyright: ignore[reportReturnType]

    def replaced(net: parspike.SNN, name: str, factor: float) -> None:
        setattr(layer(net), name, torch.nn.Parameter(getattr(layer(net), name) * factor, requires_grad=False))

    def at_address(net: parspike.SNN) -> None:
        layer(net).v_post.data = layer(net).v_post * 1.2

    def other_kind(net: parspike.SNN) -> None:
        *parents, name = last.split(".")
        parent = net.spiking.get_submodule(".".join(parents))
        setattr(parent, name, SignedNeuron(4, layer(net, last).v_threshold.detach(), offset=torch.tensor(0.1)))

    def other_graph(net: parspike.SNN) -> None:
        node = next(node for node in net.graph.nodes if net.graph.by_name[node.name].name in net._layers)
        net._run_as(replace(net.graph, output=Ref(node.name)))

    changes: list[Callable[[parspike.SNN], object]] = [
        lambda net: layer(net).v_threshold.mul_(0.7),
        lambda net: layer(net).shift.data.add_(0.1),
        at_address,
        lambda net: replaced(net, "v_threshold", 1.3),
        lambda net: setattr(layer(net), "offset", -0.25),
        lambda net: net.load_state_dict({k: v * 0.9 for k, v in net.state_dict().items()}, assign=True),
        other_kind,
        other_graph,
        lambda net: net.double(),
    ]
    with torch.no_grad():
        before = compiled(x)
        for number, change in enumerate(changes):
            change(snn)
            change(compiled)
            x = x.to(snn.dtype)
            wanted, found = snn(x), compiled(x)
            torch.testing.assert_close(found, wanted, msg=str(number))
            assert found.shape != before.shape or not torch.equal(found, before), number
            before = found


def test_many_networks_are_compiled_each_by_itself() -> None:
    """Would catch code of one network that runs another, and torch's limit of eight compilations of one function."""
    torch._dynamo.reset()
    for T in range(1, 11):
        snn, x = converted(T)
        wanted = snn(x)
        assert torch.equal(snn.compile(backend="eager")(x), wanted)


@pytest.mark.parametrize(
    "how", [{"mode": "default"}, {"mode": "reduce-overhead"}, {"options": {"trace.enabled": False}}]
)
def test_options_of_the_compiler_reach_it(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a mode that is lost, since torch takes none together with options."""
    _, x, plan = planned(Residual, batch=3)
    snn = parspike.convert(plan, x, T=4, recipe="max")
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda gm, *_, **how: seen.append(how) or gm.forward)
    seen: list[dict[str, Any]] = []
    snn.compile(**how)(x)
    plain: list[dict[str, Any]] = []
    seen, plain = plain, seen
    torch.compile(torch.nn.Linear(2, 2), **how)(torch.ones(1, 2))
    assert seen[0]["config_patches"] == plain[0]["config_patches"]


def test_a_bias_is_added_where_neurons_read_it_alone() -> None:
    """Would catch a bias that is lost, one of a convolution that other operators read, and a current that is wider than
    the network's under autocast."""
    for kind in (Residual, Dense):
        _, x, plan = planned(kind, batch=9)
        snn = parspike.convert(plan, x, T=32, recipe="max")
        readers = snn.graph.consumers()
        convolutions = [node for node in snn.graph.nodes if node.target.startswith("aten.conv")]
        assert any(node.name in snn._pass.biased for node in convolutions)
        for name in snn._pass.biased:
            assert all(node.name in snn._layers or node.target == "aten.add.Tensor" for node in readers[name])
        wanted = snn(x)
        with torch.autocast("cpu", torch.bfloat16):
            short = snn(x)
        snn.compile(backend="aot_eager")
        torch.testing.assert_close(snn(x), wanted, rtol=0.02, atol=0.02)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(snn(x), short)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_compiled_mask_hides_what_the_mask_hides(dtype: torch.dtype) -> None:
    """Would catch a mask that is added, which leaves NaN of an infinite score, and one of another head or sample."""
    scores = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[0, :, 0, 4], scores[1, :, 2, 3] = torch.inf, torch.nan
    hidden = torch.ones(5, 5).tril().bool() & torch.tensor([1, 1, 0]).bool().reshape(3, 1, 1, 1)
    torch._dynamo.reset()
    compiled = torch.compile(masked, backend="aot_eager", fullgraph=True)
    for mask in (hidden, hidden.expand(scores.shape), scores > 0, hidden.to(dtype)):
        torch.testing.assert_close(compiled(scores, mask), masked(scores, mask), rtol=0, atol=0, equal_nan=True)


def test_channels_last_stays() -> None:
    """Would catch neurons that lay their counts out anew: each convolution behind would turn them back."""
    _, x, plan = planned(Residual, batch=9)
    snn = parspike.convert(plan, x, T=6, recipe="max")
    wanted = snn(x)
    snn, x = snn.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    counts = [n for n in snn.run(x, record=True).counts.values() if n.dim() == 4]
    assert all(n.is_contiguous(memory_format=torch.channels_last) for n in counts)
    assert len(counts) >= 3
    torch.testing.assert_close(snn(x), wanted)
