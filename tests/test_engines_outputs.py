"""What a network returns is the same in every engine, whatever names it has and wherever else it is read."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import parspike
from parspike.engines import ENGINES as EVERY
from parspike.engines.memory import in_parts
from parspike.errors import OptionError, TraceError
from parspike.graph import leaves
from parspike.lower import integers
from parspike.neurons import IF

ENGINES = tuple(engine for engine in EVERY if engine != "integer")  # that one is for whole numbers

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Linear → ReLU → linear, then what `ends` makes of the hidden values and the scores."""

    def __init__(self, ends) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.ends = nn.Linear(8, 16), nn.Linear(16, 3), ends

    def forward(self, x: Tensor):
        hidden = self.first(x).relu()
        return self.ends(x, hidden, self.last(hidden))


OUTPUTS = {
    "two names": lambda x, h, y: {"logits": y, "prediction": y},
    "twice in a tuple": lambda x, h, y: (y, y),
    "nested": lambda x, h, y: {"a": {"b": y}, "c": [y, (y, h)]},
    "views": lambda x, h, y: (y, y.view(-1, 3), y[:, :2]),
    "read inside": lambda x, h, y: (h, y),
    "read behind": lambda x, h, y: (y, y.relu() @ torch.eye(3), y),
    "the input": lambda x, h, y: (x, y, x),
    "no tensor": lambda x, h, y: {"logits": y, "loss": None},
    "whole numbers": lambda x, h, y: (y, y.argmax(1)),
    "masks": lambda x, h, y: (y > 0, y),
    "whole numbers inside": lambda x, h, y: (y.topk(2)[1], y.gather(1, y.topk(2)[1]), y.argmax(1).float()),
    "complex": lambda x, h, y: torch.fft.rfft(y),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_engine_gives_every_output_once(kind):
    model = Net(OUTPUTS[kind]).eval()
    snn, wanted = parspike.convert(model, [X], T=64, recipe="max"), list(leaves(model(X)))
    for engine in ENGINES:
        found = list(leaves(snn.run(X, engine=engine).logits))
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            if b is None:
                assert a is None
                continue
            assert (a.dtype, a.shape) == (b.dtype, b.shape), engine
            if b.is_floating_point() or b.is_complex():
                assert float((a - b).norm() / b.norm()) < 0.05, engine
            else:
                assert float((a == b).float().mean()) > 0.9, engine


CONSTANTS = torch.tensor([[0.1, 0.7], [0.3, 0.2]]), torch.tensor(0.0), torch.arange(3), torch.eye(2).bool()


@torch.no_grad()
def test_what_depends_on_no_input_is_given_back_as_it_is(tmp_path):
    """Such as a detector's anchors, or the loss of a mixture of experts, which is 0 in evaluation."""
    model = Net(lambda x, h, y: {"logits": y, "constants": (*CONSTANTS, CONSTANTS[0])}).eval()
    snn = parspike.convert(model, [X], T=4, recipe="closed-form")
    networks = [
        snn,
        parspike.load(snn.save(tmp_path / "net.parspike")),
        parspike.convert(model, [X], recipe="max", neuron=IF()),
    ]
    runs = [network.run(X, engine=engine) for network in networks[:2] for engine in ENGINES]
    whole = integers(parspike.convert(model, [X], T=4, recipe="max"), X)
    runs += [networks[2].run(X), whole.run(X), whole.run(X, engine="serial")]
    for run in runs:
        torch.testing.assert_close(run.logits["logits"], model(X)["logits"], atol=0.5, rtol=0)
        for found, wanted in zip(run.logits["constants"], (*CONSTANTS, CONSTANTS[0]), strict=True):
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
    assert "real" not in whole.provenance
    report = parspike.measure(snn, [(X, torch.zeros(32, dtype=torch.long))], against=model)
    assert report.agreement is not None


class Sizes(nn.Module):
    """Returns sizes and numbers beside a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv1d(1, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(torch.relu(self.conv(x)).mean(2))
        n = x.shape[2]
        return {"y": y, "n": [n, (len(x), n // 2 + 1, 2 * x.numel())], "shape": x.shape, "fixed": (x.shape[1], 7, 0.5)}


def numbers(output):
    return [output[name] for name in ("n", "shape", "fixed")]


@torch.no_grad()
def test_sizes_as_outputs_are_those_of_each_input(tmp_path):
    torch.manual_seed(0)
    model, x = Sizes().eval(), torch.rand(16, 1, 12)
    snn = parspike.convert(model, x, T=4, recipe="max")
    loaded = parspike.load(snn.save(tmp_path / "net.parspike"))
    over_time = parspike.convert(model, x, T=4, recipe="max", neuron=IF())
    for shape in ((5, 1, 12), (1, 1, 12), (3, 1, 7), (1, 1, 30)):
        other = torch.rand(shape)
        wanted = numbers(model(other))
        wanted[1] = tuple(wanted[1])
        runs = [net.run(other, engine=engine) for net in (snn, loaded) for engine in ENGINES]
        for run in (*runs, over_time.run(other), over_time.run(other, every_step=True)):
            assert numbers(run.logits) == wanted, (shape, run.engine)


def test_sizes_as_outputs_are_those_of_the_whole_batch_where_it_is_run_in_parts():
    model, x = Sizes().eval(), torch.rand(5, 1, 12)
    snn = parspike.convert(model, x, T=4, recipe="max")
    run, part = in_parts(lambda env: snn.run(**env), snn.graph, {"x": x}, 2)
    assert part == 2
    assert run.logits["y"].shape == (5, 3)
    assert numbers(run.logits) == numbers(snn(x))


@pytest.mark.parametrize("name", ["net.onnx", "net.nir"])
def test_a_file_of_tensors_says_that_sizes_are_not_in_it(name, tmp_path):
    pytest.importorskip(name[4:])
    x = torch.rand(16, 1, 12)
    neuron = IF() if name == "net.nir" else None
    snn = parspike.convert(Sizes().eval(), x, T=4, recipe="max", neuron=neuron)
    made = parspike.export(snn, tmp_path / name, example=x)
    assert "sizes and texts that the network returns" in str(made)
    assert made.file.error < 1e-5


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (lambda x: x.shape[0] / 2, r"Net returns a number with a fraction made of its sizes: .* such as x.shape\[0\]"),
        (lambda x: x.shape[0] > 5, r"Net returns a truth value made of its sizes"),
        (lambda x: int(x.shape.numel()), "fixes the batch size of input 'x' at 32"),
        (lambda x: float(x.shape.numel()), "fixes the batch size of input 'x' at 32"),
    ],
)
def test_numbers_of_the_batch_that_would_be_the_examples_are_refused(beside, message):
    with pytest.raises(TraceError, match=message):
        parspike.plan(Net(lambda x, h, y: (y, beside(x))).eval(), X)


def test_an_output_of_sizes_alone_is_refused():
    with pytest.raises(TraceError, match="Net returns a size: at least one output must be a tensor"):
        parspike.plan(Net(lambda x, h, y: x.shape[0]).eval(), X)


def test_a_run_without_record_says_how_to_get_the_spikes():
    snn = parspike.convert(Net(OUTPUTS["two names"]).eval(), [X], T=4, recipe="max")
    for engine in ENGINES:
        run = snn.run(X, engine=engine)
        for name in ("spikes", "counts", "sent", "firing_rate"):
            with pytest.raises(OptionError, match="record=True"):
                getattr(run, name)
        recorded = snn.run(X, engine=engine, record=True)
        assert recorded.spikes["relu"].shape == (4, 32, 16)
        assert torch.equal(recorded.spikes["relu"].sum(0).float(), recorded.sent["relu"])
        assert recorded.firing_rate["relu"] == pytest.approx(float(recorded.counts["relu"].mean()) / 4)
        text = repr(recorded)
        assert "{logits: (32, 3), prediction: (32, 3)}" in text
        assert engine in text
        assert "1 layer recorded" in text
        assert "not recorded" in repr(run)
        assert "\n" not in text + repr(run)


def test_time_steps_are_fixed_at_conversion():
    snn = parspike.convert(Net(OUTPUTS["twice in a tuple"]).eval(), [X], T=16, recipe="max")
    with pytest.raises(OptionError, match=r"T=16 .*convert again with T=8"):
        snn.T = 8
    neuron = next(iter(snn.neurons().values()))
    for name, value in (("T", 8), ("code", "weighted"), ("levels", 8)):
        before = getattr(neuron, name)
        with pytest.raises(AttributeError, match="convert the network again"):
            setattr(neuron, name, value)
        assert getattr(neuron, name) == before
    for other in (snn, copy.deepcopy(snn)):
        assert other.T == 16
        torch.testing.assert_close(other(X), snn.run(X, engine="parallel").logits)
