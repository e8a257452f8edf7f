"""How long an answer takes in each engine at several numbers of time-steps, on this machine."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parspike.engines import OVER_TIME, Pass, count, over_time, parallel, serial
from parspike.engines.stages import Stages
from parspike.errors import OptionError
from parspike.graph import Graph
from parspike.graph.opened import taking
from parspike.neurons import MAX_T, Neuron, ParallelNeuron, Simulation, Staircase, levels_of
from parspike.neurons.layer import MAX_WEIGHTED
from parspike.snn import SNN

__all__ = ["NETWORK", "Times", "times"]

NETWORK = "network"
ROUNDS = 9
AT_ONCE = 8
"""Samples of one run."""
_BY_STEPS = ("parallel", "serial", OVER_TIME)
"""The engines that take as much longer as there are more steps."""
FEW = 5
"""Most numbers of time-steps."""


@dataclass(frozen=True)
class Times:
    """Median seconds of one sample by engine (`NETWORK`: the network itself, whose T is 0) and T. samples: of one run.
    rounds: how often each was run, in turn with all others. T: of the network that was timed. machine: in words.
    left_out: what would have taken too long."""

    seconds: Mapping[tuple[str, int], float]
    samples: int
    rounds: int
    T: int
    machine: str
    left_out: tuple[tuple[str, int], ...] = ()

    def of(self, engine: str) -> list[tuple[int, float]]:
        """Time-steps and seconds of an engine, the fewest steps first."""
        return sorted((T, seconds) for (name, T), seconds in self.seconds.items() if name == engine)

    @property
    def engines(self) -> list[str]:
        """The engines that were timed, the network itself left out."""
        return list(dict.fromkeys(name for name, _ in self.seconds if name != NETWORK))


@dataclass
class _Network:
    """What an engine takes: a network's graph and synapses with other neurons."""

    graph: Graph
    synapses: Mapping[str, Tensor]
    layers: Mapping[str, Neuron]
    T: int

    def tensors(self) -> Mapping[str, Tensor]:
        return self.synapses

    def neurons(self) -> Mapping[str, Any]:
        return self.layers

    def counting(self) -> Mapping[str, Neuron]:
        return self.layers


@torch.inference_mode()
def times(
    snn: SNN, env: Mapping[str, Tensor], *, model: Callable[..., Any] | None = None, seconds: float = 8.0
) -> Times:
    """Time all engines that a network has, in turn, so that what else the machine does meets all alike.

    env: inputs by name, of which a few samples are taken. model: the network itself, timed beside them. seconds: for
    all rounds, of which there is at least one. Parallel neurons are also timed at fewer steps and at twice as many,
    for which each layer gets as many of its levels as they can send: such a network answers worse, its time is that of
    a network converted for these steps. Neurons with a state are also timed for the first of their steps.
    Raises `OptionError` unless `seconds` is above 0.
    """
    if not isinstance(seconds, (int, float)) or not seconds > 0:
        raise OptionError(f"seconds is {seconds!r}: give the seconds that timing may take, above 0")
    env = {name: x[:AT_ONCE] for name, x in env.items()}
    samples = len(next(iter(env.values())))
    calls = _calls(snn, env)
    if model is not None:
        args, kwargs = snn.graph.call_of(env)
        network = taking(model, args, kwargs)
        calls = {(NETWORK, 0): lambda: network(*args, **kwargs), **calls}
    cuda = any(x.is_cuda for x in env.values())
    before: dict[str, tuple[int, float]] = {}
    left_out = []
    for key in sorted(calls, key=lambda key: key[1]):  # once to warm up; what would take too long is left out
        engine, T = key
        steps, spent = before.get(engine, (T, 0.0))
        expected = spent * (T / steps if engine in _BY_STEPS else 1)
        if expected > (seconds if T == snn.T else seconds / 8):
            del calls[key]
            left_out.append(key)
            continue
        before[engine] = T, _seconds(calls[key], cuda)
    taken: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    start, rounds = time.perf_counter(), 0
    while not rounds or (rounds < ROUNDS and time.perf_counter() - start < seconds * (1 - 1 / (rounds + 1))):
        rounds += 1
        for key, call in calls.items():
            taken[key].append(_seconds(call, cuda))
    found = {key: statistics.median(values) / samples for key, values in taken.items()}
    return Times(found, samples, rounds, snn.T, machine(next(iter(env.values())).device), tuple(left_out))


def machine(device: torch.device) -> str:
    """The processor or GPU, threads and torch's version, as text."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        named = (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
        threads = torch.get_num_threads()
        name = f"{next(named, platform.machine())}, {threads} {'thread' if threads == 1 else 'threads'}"
    return f"{name}, torch {torch.__version__}"


def _lines(path: str) -> Sequence[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return ()


def _seconds(call: Callable[[], object], cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _calls(snn: SNN, env: Mapping[str, Tensor]) -> dict[tuple[str, int], Callable[[], object]]:
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    if snn.over_time:
        neurons, alone = snn.stateful(), snn.simulation == Simulation(snn.T)
        alone = alone and all(neuron.lookahead == 1 for neuron in neurons.values())
        for T in _some(snn.T, snn.T) if alone else [snn.T]:
            simulation = replace(snn.simulation, T=T)
            calls[OVER_TIME, T] = lambda simulation=simulation: over_time(
                snn, dict(env), neurons, simulation, engine=OVER_TIME
            )
        return calls
    neurons = snn.counting()
    most = min(2 * snn.T, MAX_WEIGHTED if any(neuron.code == "weighted" for neuron in neurons.values()) else MAX_T)
    known = all(isinstance(neuron, (ParallelNeuron, Staircase)) for neuron in neurons.values())
    for T in _some(snn.T, most) if known else [snn.T]:
        made = {name: neuron if T == snn.T else _with(neuron, max(1, neuron.T * T // snn.T))
                for name, neuron in neurons.items()}  # fmt: skip
        net = _Network(snn.graph, snn.tensors(), made, T)
        how = Pass.of(snn.graph, tuple(made))
        stages = Stages.of(snn.graph, tuple(made), [name for name, n in made.items() if n.code == "sorted"])
        calls["count", T] = lambda net=net, how=how: count(net, dict(env), how)
        calls["parallel", T] = lambda net=net, stages=stages: parallel(net, dict(env), stages)
        calls["serial", T] = lambda net=net, stages=stages: serial(net, dict(env), stages)
    return calls


def _some(T: int, most: int) -> list[int]:
    """A few numbers of time-steps up to `most`, T among them.

    >>> _some(4, 8), _some(32, 64), _some(1, 1)
    ([1, 2, 4, 8], [1, 4, 16, 32, 64], [1])
    """
    powers = [1 << place for place in range(T.bit_length()) if 1 << place < T]
    thinned = powers[:: -(-len(powers) // (FEW - 2))] if powers else []
    return sorted({*thinned, T, most})


def _with(neuron: Neuron, T: int) -> Neuron:
    """Neurons like these for T time-steps: evenly spaced ones have their threshold, others some of their levels."""
    if isinstance(neuron, ParallelNeuron):
        other = ParallelNeuron(T, neuron.v_threshold, offset=neuron.offset, code=neuron.code)
        other.shift, other.v_post = (
            nn.Parameter(t.clone(), requires_grad=False) for t in (neuron.shift, neuron.v_post)
        )
        return other
    if isinstance(neuron, Staircase):
        levels = levels_of(T, neuron.code)
        place = torch.linspace(0, neuron.levels - 1, levels).round().long()
        first, last = neuron.outputs[0], neuron.outputs[-1]
        share = torch.linspace(0, 1, levels + 1, dtype=first.dtype).reshape(-1, *[1] * first.dim()).to(first.device)
        outputs = torch.cummax(first + (last - first) * share, 0).values
        return Staircase(T, neuron.thresholds[place.to(first.device)], outputs, code=neuron.code)
    raise TypeError(f"{type(neuron).__name__} neurons are of one T")
