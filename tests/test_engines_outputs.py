"""What a network returns is the same in every engine, whatever names it has and wherever else it is read."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import parspike
from parspike.engines import ENGINES as EVERY
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


def test_a_size_as_output_is_refused():
    model = Net(lambda x, h, y: (y, x.shape[0])).eval()
    with pytest.raises(TraceError, match=r"Net returns a tensor, a size: .* none a size of it"):
        parspike.plan(model, X)


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
