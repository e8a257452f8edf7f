"""Neurons with a state, spike by spike against a loop in plain Python, in any blocks of steps; and their kinds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parspike.errors import OptionError
from parspike.neurons import (
    IF,
    LIF,
    Dynamics,
    IntegrateFire,
    Kind,
    Parallel,
    ParallelNeuron,
    SignedNeuron,
    Simulation,
    SortedTrain,
    kind_from_text,
    neuron_from,
    qcfs,
    spike_count,
    twin,
)
from parspike.neurons.current_based import CurrentBased
from parspike.neurons.kinds import MAX_T

T = 7


def fired(
    z: list[float], *, theta: float, v: float, post: float, bias: list[float], offset: float, decay: float, reset: str,
    refractory: int, signed: bool,
) -> tuple[list[float], list[float], list[float]]:  # fmt: skip
    """What one neuron sends for its input currents: currents, spikes, and the potential after every step."""
    currents, spikes, potentials = [], [], []
    waits = sent = 0
    for t, now in enumerate(z):
        spike = 0
        if waits:
            waits -= 1
        else:
            v = v * decay + now + (bias[t] if len(bias) > 1 else bias[0]) - offset
            if v >= theta:
                spike = 1
            elif signed and v < 0 and sent > 0:
                spike = -1
            if spike:
                v = v - spike * theta if reset == "subtract" else 0.0
                waits = refractory
                sent += spike
        currents.append(spike * post + offset)
        spikes.append(spike)
        potentials.append(v)
    return currents, spikes, potentials


OPTIONS: dict[str, dict[str, Any]] = {
    "soft": {},
    "hard": {"reset": "zero"},
    "leaks": {"decay": 0.75},
    "leaks, hard": {"decay": 0.5, "reset": "zero"},
    "refractory": {"refractory": 2},
    "refractory, hard, leaks": {"refractory": 1, "reset": "zero", "decay": 0.875},
    "signed": {"signed": True},
    "signed, refractory, leaks": {"signed": True, "refractory": 1, "decay": 0.75},
    "offset": {"offset": -0.25},
    "offset of each channel": {"offset": torch.tensor([[-0.5], [0.25], [0.0]], dtype=torch.float64)},
    "offset, hard": {"offset": 0.5, "reset": "zero"},
    "offset, signed": {"offset": -0.25, "signed": True},
}


def sixteenths(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Numbers whose sums are exact, so that what is compared is the arithmetic and no rounding."""
    return torch.randint(int(16 * low), int(16 * high) + 1, shape, generator=generator).double() / 16


def drawn(options: dict[str, Any], biases: int, seed: int) -> tuple[IntegrateFire, Tensor]:
    """Neurons of three channels with parameters of their own, and input currents (T, B, C, N) for them."""
    draw = torch.Generator().manual_seed(seed)
    neuron = IntegrateFire(sixteenths(draw, 0.5, 1.5, 3, 1), **options)
    neuron.v_init.data = sixteenths(draw, -0.5, 1, 3, 1)
    neuron.v_post.data = sixteenths(draw, 0.25, 2, 3, 1)
    neuron.bias = torch.nn.Parameter(sixteenths(draw, -0.25, 0.25, biases, 3, 1), requires_grad=False)
    return neuron, sixteenths(draw, -1, 1.75, T, 2, 3, 4)


def in_blocks(neuron: Dynamics, z: Tensor, size: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    state, parts = None, []
    for start in range(0, len(z), size):
        state, *now = neuron.advance(state, z[start : start + size], start)
        parts.append(now)
    assert state is not None
    return state, torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


@pytest.mark.parametrize("biases", [1, T])
@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
@torch.no_grad()
def test_every_spike_is_that_of_the_loop(name: str, biases: int, seed: int) -> None:
    """Would catch a step that fires, resets or leaks otherwise than the equation written as a loop."""
    options = OPTIONS[name]
    neuron, z = drawn(options, biases, seed)
    runs = [in_blocks(neuron, z, size) for size in (1, 3, T)]
    for b, c, n in itertools.product(range(2), range(3), range(4)):
        offset = options.get("offset", 0.0)
        currents, spikes, potentials = fired(
            z[:, b, c, n].tolist(), theta=float(neuron.v_threshold[c]), v=float(neuron.v_init[c]),
            post=float(neuron.v_post[c]), bias=neuron.bias[:, c, 0].tolist(), decay=options.get("decay", 1.0),
            offset=float(offset[c]) if isinstance(offset, Tensor) else offset,
            reset=options.get("reset", "subtract"), refractory=options.get("refractory", 0),
            signed=options.get("signed", False),
        )  # fmt: skip
        for state, current, sent in runs:
            assert sent[:, b, c, n].tolist() == spikes
            assert current[:, b, c, n].tolist() == currents
            assert float(state["v"][b, c, n]) == potentials[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_block_computes_the_bits_of_the_steps(name: str, dtype: torch.dtype) -> None:
    neuron, _ = drawn({"decay": 0.9, **OPTIONS[name]}, T, 0)
    neuron = neuron.to(dtype)
    z = torch.randn(T, 5, 3, 40, dtype=dtype, generator=torch.Generator().manual_seed(3)) + 0.3
    with torch.no_grad():
        whole = neuron.advance(None, z)
    with torch.enable_grad():
        state, currents, spikes = neuron.start(z[0]), [], []
        for t in range(T):
            state, current, spike = neuron.step(state, z[t], t)
            currents.append(current)
            spikes.append(spike)
    assert torch.equal(whole[0]["v"], state["v"])
    assert torch.equal(whole[1], torch.stack(currents))
    assert torch.equal(whole[2], torch.stack(spikes))
    assert 0 < float(whole[2].abs().mean()) < 1


def test_a_block_leaves_its_input_and_the_state_before_it() -> None:
    neuron, z = drawn({}, 1, 1)
    with torch.no_grad():
        state, _, _ = neuron.advance(None, z[:3])
        kept, given = state["v"].clone(), z.clone()
        neuron.advance(state, z[3:], 3)
    assert torch.equal(state["v"], kept)
    assert torch.equal(z, given)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
@torch.no_grad()
def test_if_with_a_constant_input_counts_as_qcfs(steps: int) -> None:
    z = torch.arange(-64, 129, dtype=torch.float64)[:, None] / 64
    theta = torch.tensor([1.0, 0.5], dtype=torch.float64)
    spikes = IF(v_init="half").neuron(theta).advance(None, z.expand(steps, len(z), 2))[2]
    assert torch.equal(spikes.sum(0), spike_count(z.expand(-1, 2), theta, steps))
    assert torch.allclose(spikes.mean(0) * theta, qcfs(z.expand(-1, 2), theta, steps), rtol=1e-12, atol=0)


@torch.no_grad()
def test_a_leak_of_none_is_if() -> None:
    z = torch.randn(9, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor(0.8, dtype=torch.float64)
    for reset in ("subtract", "zero"):
        one, other = LIF(1.0, reset=reset).neuron(theta), IF(reset=reset).neuron(theta)
        assert torch.equal(one.advance(None, z)[2], other.advance(None, z)[2])
        leaks = LIF(0.5, reset=reset).neuron(theta).advance(None, z)[2]
        assert not torch.equal(leaks, other.advance(None, z)[2])


def test_the_gradient_is_that_of_a_ramp_around_the_threshold() -> None:
    theta = torch.tensor(0.5, dtype=torch.float64)
    neuron = IntegrateFire(theta)
    neuron.v_init.data.zero_()
    z = torch.tensor([0.1, 0.26, 0.5, 0.74, 0.76, 3.0], dtype=torch.float64, requires_grad=True)
    neuron.advance(None, z[None])[2].sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [0, 2, 2, 2, 0, 0]  # 1/θ where |z − θ| < θ/2


def test_the_gradient_goes_back_through_time_and_to_what_is_fitted() -> None:
    neuron = IntegrateFire(torch.ones((), dtype=torch.float64), decay=0.5)
    z = torch.tensor([0.125, 0.25, 0.75], dtype=torch.float64, requires_grad=True)
    for parameter in neuron.parameters():
        parameter.requires_grad_()
    # m = 0.375, 0.4375, 0.96875: only the last is within θ/2 of the threshold, so the others pass on what they leak.
    neuron.advance(None, z[:, None])[1][-1].sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [0.25, 0.5, 1.0]
    assert float(neuron.bias.grad or 0) == 1.75
    assert float(neuron.v_post.grad or 0) == 0  # no spike was sent
    z = z.detach() * 2
    neuron.advance(None, z[:, None])[1].sum().backward()
    assert float(neuron.v_post.grad or 0) == 1


# --------------------------------------------------------------------------------------- the input as sorted trains


@pytest.mark.parametrize("size", [1, 3, T])
@pytest.mark.parametrize("offset", [0.0, -0.5])
@torch.no_grad()
def test_a_sorted_train_is_silent_first(size: int, offset: float) -> None:
    parallel = ParallelNeuron(T, torch.tensor([[1.0], [0.5]], dtype=torch.float64), offset=offset)
    z = torch.randn(3, 2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    count = parallel.count(z)
    _, current, spikes = in_blocks(SortedTrain(parallel), z.expand(T, *z.shape), size)
    for t in range(T):
        assert torch.equal(spikes[t], (count > T - 1 - t).double())
    assert torch.allclose(current.mean(0), parallel(z), rtol=1e-12, atol=1e-12)
    assert 0 < float(count.mean()) < T
    assert bool((current[0][count < T] == offset).all())


def test_a_sorted_train_needs_the_sorted_code() -> None:
    with pytest.raises(ValueError, match="sorted code, got 'weighted'"):
        SortedTrain(ParallelNeuron(3, torch.ones(()), code="weighted"))


# ----------------------------------------------------------------------------------------- what a file keeps of them


def neurons() -> dict[str, Dynamics]:
    made: dict[str, Dynamics] = {name: drawn(options, T, 4)[0] for name, options in OPTIONS.items()}
    made["sorted"] = SortedTrain(ParallelNeuron(T, torch.tensor([[1.0], [0.5], [2.0]]).double(), offset=-0.25))
    return made


@pytest.mark.parametrize("name", neurons())
@torch.no_grad()
def test_config_and_tensors_make_the_same_neurons(name: str) -> None:
    neuron, z = neurons()[name], drawn({}, 1, 8)[1]
    again = neuron_from(neuron.config(), neuron.state_dict())
    assert isinstance(again, type(neuron))
    assert again.config() == neuron.config()
    assert (again.label, again.extra_repr()) == (neuron.label, neuron.extra_repr())
    assert all(torch.equal(a, b) for a, b in zip(again.advance(None, z)[1:], neuron.advance(None, z)[1:], strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reset": "soft"}, "reset must be"),
        ({"decay": 0}, "decay must be a number above 0 and at most 1, got 0"),
        ({"decay": 1.5}, "at most 1, got 1.5"),
        ({"decay": math.nan}, "got nan"),
        ({"decay": True}, "got True"),
        ({"decay": "0.9"}, "got '0.9'"),
        ({"refractory": -1}, "refractory must be a number of steps of at least 0, got -1"),
        ({"refractory": 1.0}, "got 1.0"),
        ({"refractory": True}, "got True"),
        ({"signed": 1}, "signed must be True or False"),
        ({"signed": True, "reset": "zero"}, "signed spikes need reset='subtract'"),
    ],
)
def test_options_that_no_neuron_has(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        IntegrateFire(torch.ones(()), **options)
    neuron = IntegrateFire(torch.ones(()))
    with pytest.raises(ValueError, match=says):
        IntegrateFire.restore({**neuron.config(), **options}, neuron.state_dict())


@pytest.mark.parametrize(
    ("config", "tensors", "says"),
    [
        ({}, {"v_threshold": torch.zeros(())}, "thresholds must be above 0"),
        ({}, {"v_threshold": -torch.ones(())}, "thresholds must be above 0"),
        ({}, {"v_post": torch.ones(()).double()}, "unlike dtypes"),
        ({"offset": math.inf}, {}, "offset must be finite"),
    ],
)
def test_tensors_that_no_neuron_has(config: dict[str, Any], tensors: dict[str, Tensor], says: str) -> None:
    neuron = IntegrateFire(torch.ones(()))
    with pytest.raises(ValueError, match=says):
        IntegrateFire.restore({**neuron.config(), **config}, {**neuron.state_dict(), **tensors})


@pytest.mark.parametrize("name", ["offset", "shift", "v_post"])
def test_parallel_neurons_of_unlike_dtypes_are_refused(name: str) -> None:
    """Would catch a file whose output amplitudes have another precision than the currents that they are sent into."""
    for neuron in (
        ParallelNeuron(3, torch.ones(()), offset=torch.zeros(())),
        SignedNeuron(3, torch.ones(()), offset=torch.zeros(())),
    ):
        with pytest.raises(ValueError, match=f"{name} and v_threshold have unlike dtypes"):
            type(neuron).restore(neuron.config(), {**neuron.state_dict(), name: torch.zeros(()).double()})


def test_neurons_without_a_threshold_are_refused() -> None:
    for neuron in ParallelNeuron(3, torch.ones(())), SignedNeuron(3, torch.ones(()), offset=torch.zeros(())):
        for theta in (torch.zeros(()), -torch.ones(()), torch.tensor(math.nan)):
            with pytest.raises(ValueError, match="thresholds must be above 0"):
                type(neuron).restore(neuron.config(), {**neuron.state_dict(), "v_threshold": theta})


def test_a_sorted_train_of_other_neurons_is_refused() -> None:
    sorted_train = SortedTrain(ParallelNeuron(3, torch.ones(())))
    inner = IntegrateFire(torch.ones(()))
    with pytest.raises(ValueError, match="of parallel neurons"):
        SortedTrain.restore({**sorted_train.config(), "neuron": inner.config()}, inner.state_dict())


def test_the_twin_has_the_threshold_and_nothing_fitted() -> None:
    parallel = ParallelNeuron(4, torch.tensor([[2.0]]), offset=-0.5)
    parallel.shift.data.fill_(0.3)
    parallel.v_post.data.fill_(9.0)
    (name,) = made = twin({"relu": parallel})
    assert name == "relu"
    neuron = made["relu"]
    assert isinstance(neuron, IntegrateFire)
    found = [neuron.v_threshold, neuron.v_init, neuron.v_post, neuron.bias]
    assert [float(value) for value in found] == [2.0, 1.0, 2.0, 0.0]
    assert (neuron.offset, neuron.reset, neuron.decay) == (-0.5, "subtract", 1.0)


# ------------------------------------------------------------------------------------------------- values of a user


@pytest.mark.parametrize(
    "options",
    [{"T": 0}, {"T": True}, {"T": 2.0}, {"T": 4, "probe": -1}, {"T": 4, "read": 5}, {"T": 4, "paid": True},
     {"T": 4, "probe": 1.5}, {"T": 4, "read": -1}],
)  # fmt: skip
def test_a_simulation_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"T|probe|read|paid"):
        Simulation(**options)


def test_what_a_simulation_costs() -> None:
    assert Simulation(4).total == 4
    assert Simulation(4, probe=3, read=2, paid=5).total == 12
    assert Simulation(4, read=4).read == 4


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("parallel", Parallel()), ("if", IF()), (" if ", IF()), ("if-zero", IF(reset="zero")), ("lif:0.9", LIF(0.9)),
        ("lif:1", LIF(1.0)), ("lif:1e-1", LIF(0.1)), ("lif-zero:.5", LIF(0.5, reset="zero")),
    ],
)  # fmt: skip
def test_a_kind_from_a_word(text: str, kind: Kind) -> None:
    assert kind_from_text(text) == kind


@pytest.mark.parametrize("kind", [IF(), IF(reset="zero"), LIF(0.9), LIF(0.25, reset="zero")])
def test_a_kind_says_its_word(kind: Kind) -> None:
    assert kind_from_text(kind.text) == kind


@pytest.mark.parametrize(
    "text", ["lif", "if:0.9", "parallel:1", "IF", "fast", "", "lif:", "lif:x", "lif:.", "lif:1e", "lif:-", "lif-zero"]
)
def test_a_word_that_is_no_kind(text: str) -> None:
    with pytest.raises(OptionError) as error:
        kind_from_text(text)
    assert f"'{text}' is no neuron" in str(error.value)
    assert "choose parallel, if, if-zero, lif:0.9" in str(error.value)


@pytest.mark.parametrize("text", ["lif:0", "lif:2", "lif:-0.5", "lif-zero:1.01", "lif:1e999"])
def test_a_decay_that_cannot_be(text: str) -> None:
    with pytest.raises(OptionError, match="LIF: decay must be a number above 0 and at most 1"):
        kind_from_text(text)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: IF(reset="soft"), "IF: reset must be"),
        (lambda: IF(v_init="full"), "IF: v_init must be"),
        (lambda: IF(bias="none"), "IF: bias must be"),
        (lambda: IF(refractory=-1), "IF: refractory must be"),
        (lambda: IF(signed=True, reset="zero"), "IF: signed spikes need reset='subtract'"),
        (lambda: LIF("0.9"), "LIF: decay must be"),
        (lambda: LIF(0.0), "LIF: decay must be"),
        (lambda: LIF(0.9, reset="hard"), "LIF: reset must be"),
        (lambda: Parallel("fast"), "Parallel: code must be"),
        (lambda: IF().check(0), f"T must be an integer from 1 to {MAX_T}, got 0"),
        (lambda: IF().check(True), "got True"),
        (lambda: LIF().check(MAX_T + 1), f"got {MAX_T + 1}"),
        (lambda: Parallel("weighted").check(21), "at most 20 steps"),
    ],
)
def test_what_a_kind_refuses(make: Any, says: str) -> None:
    with pytest.raises(OptionError) as error:
        make()
    assert says in str(error.value)


def test_a_kind_makes_its_neurons() -> None:
    theta = torch.tensor([2.0, 4.0])
    neuron = LIF(0.5, reset="zero", refractory=2).neuron(theta, 0.25)
    assert (neuron.decay, neuron.reset, neuron.refractory, neuron.offset) == (0.5, "zero", 2, 0.25)
    assert neuron.v_init.tolist() == [1.0, 2.0]
    assert IF(v_init="zero").neuron(theta).v_init.tolist() == [0.0, 0.0]
    assert IF(signed=True).neuron(theta).signed


def current_based(**given: float) -> CurrentBased:
    """Numbers that float64 holds exactly."""
    numbers = {"decay": 0.5, "gain": 0.25, "drive": 0.125, "v_init": 0.5, **given}
    return CurrentBased(**{name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()})


def test_current_based_neurons_fire_beyond_their_threshold_and_reset() -> None:
    """Would catch a spike at the threshold itself, which NIR's neurons do not send, and a reset that subtracts."""
    neuron = current_based(synapse_decay=0.5, synapse_gain=2.0, v_threshold=1.0, v_reset=-0.25)
    inputs = [1.25, 0.5, 2.0, 1.0, -1.0, 4.0]
    state, i, v, sent = neuron.start(torch.zeros(1, dtype=torch.float64)), 0.0, 0.5, []
    for t, z in enumerate(inputs):
        i = 0.5 * i + 2.0 * z
        v = 0.5 * v + 0.25 * i + 0.125
        spike = float(v > 1.0)
        sent.append((v, spike))
        v = -0.25 if spike else v
        state, current, spikes = neuron.step(state, torch.tensor([z], dtype=torch.float64), t)
        assert (state["i"].item(), state["v"].item(), current.item(), spikes.item()) == (i, v, spike, spike)
    assert sent[0] == (1.0, 0.0)  # at the threshold
    assert {spike for _, spike in sent} == {0.0, 1.0}
    assert (neuron.label, neuron.fires) == ("cuba-lif", True)


def test_integrators_send_their_potential_and_no_spikes() -> None:
    neuron = current_based()
    z = torch.tensor([3.0, -1.0], dtype=torch.float64)
    state, current, spikes = neuron.step(neuron.start(z), z, 0)
    assert current.tolist() == state["v"].tolist() == [0.5 * 0.5 + 0.25 * z + 0.125 for z in (3.0, -1.0)]
    assert spikes.tolist() == [0.0, 0.0]
    assert "i" not in state
    assert (neuron.label, neuron.fires, neuron.rest()) == ("li", False, 0.0)


def test_current_based_neurons_are_restored_from_their_tensors_and_no_others() -> None:
    for numbers in ({}, {"v_threshold": 1.0, "v_reset": 0.0}, {"synapse_decay": 0.5, "synapse_gain": 1.0}):
        neuron = current_based(**numbers)
        again = neuron_from(neuron.config(), neuron.state_dict())
        assert (again.config(), repr(again)) == (neuron.config(), repr(neuron))
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in neuron.state_dict().items())
        with pytest.raises(ValueError, match="unlike dtypes"):
            neuron_from(neuron.config(), {**neuron.state_dict(), "gain": torch.tensor(0.25)})
    for one, other in (("synapse_decay", "synapse_gain"), ("v_threshold", "v_reset")):
        for name in (one, other):
            with pytest.raises(ValueError, match=f"both or neither of {one} and {other}"):
                current_based(**{name: 0.5})
    for name, more in (("decay", {}), ("synapse_decay", {"synapse_gain": 1.0})):
        for share in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match=f"{name} is a share"):
                current_based(**{name: share, **more})
