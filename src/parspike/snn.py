"""`SNN`: a converted network as an `nn.Module`."""

from __future__ import annotations

import contextlib
import itertools
import math
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from parspike import engines
from parspike.engines import PACKED, Record, Run
from parspike.engines.int8 import EXACT
from parspike.engines.stages import Stages, check_chunk
from parspike.errors import InputError, OptionError, ParspikeWarning, UnsupportedError, meant
from parspike.graph import Graph, Input, device_of, leaves
from parspike.graph.cache import token_dims, with_cache
from parspike.graph.ir import BATCH
from parspike.graph.memory import memory_of
from parspike.graph.opened import LABELS
from parspike.neurons import Dynamics, Neuron, Simulation, SpikingLayer, twin
from parspike.notebook import html_table

if TYPE_CHECKING:
    from parspike.report import Plots

__all__ = ["SNN", "check_converted"]

_NUMBERS = itertools.count()
_WATCHED = ("self.graph", "self._pass.", "self._layers", "self._paths")
"""Of an `SNN`: its graph, what is made of it, and what never changes."""


def check_converted(snn: object, called: str) -> None:
    """Refuse what is no converted network. called: the function that it was given to."""
    if not isinstance(snn, SNN):
        raise InputError(f"{called} takes a converted network, got {type(snn).__name__}: parspike.convert makes one")


class SNN(nn.Module):
    """A spiking network: graph, synapses, neurons and where they come from. Made by `parspike.convert`.

    `snn(x)` gives the logits (B, K): of parallel neurons in one pass over their counts, of networks in whole numbers on
    integer kernels, of neurons with a state (IF, LIF) after T steps (`engine` names which).
    `snn.run(x, engine=…, record=True)` also gives the spikes.
    simulation: T, and which steps the output is read from. provenance: recipe, seed, versions, hash of the calibration
    data. Neurons are all parallel, or all have a state.
    State dict: `synapses.` with the names of the original network, `spiking.` with the layers of the neurons.
    """

    spikes_already = True
    """So that neither a conversion nor a training takes it for a network of real values."""

    def __init__(
        self,
        graph: Graph,
        neurons: Mapping[str, SpikingLayer],
        *,
        simulation: Simulation,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.simulation, self.provenance = simulation, dict(provenance or {})
        self._compiled: Callable[..., tuple[Any, Any]] | None = None
        self._compiled_from: Any = None
        self._parts: dict[Any, int] = {}
        self.over_time = any(isinstance(neuron, Dynamics) for neuron in neurons.values())
        """Whether the neurons have a state, so that the network runs step by step."""
        if self.over_time and not all(isinstance(neuron, Dynamics) for neuron in neurons.values()):
            raise ValueError("some neurons have a state and some have none: a network has neurons of one kind")
        if not self.over_time and simulation != Simulation(simulation.T):
            raise ValueError(
                "probe, read and paid are of neurons with a state; parallel ones are read from all T steps"
            )
        self._paths = tuple(graph.tensors)
        self._layers = {name: graph.by_name[name].layer for name in neurons}
        self.synapses, self.spiking = nn.Module(), nn.Module()
        for path, tensor in graph.tensors.items():
            _place(self.synapses, path, tensor)
        for name, neuron in neurons.items():
            _place(self.spiking, self._layers[name], neuron)
        # The module holds the tensors; the graph keeps only their names.
        self._run_as(replace(graph, tensors={}))
        self.eval()

    @property
    def T(self) -> int:
        """Time-steps. The neurons' parameters were calibrated for them, so they are no option of a run."""
        return self.simulation.T

    @T.setter
    def T(self, value: Any) -> None:
        raise OptionError(
            f"this network was calibrated for T={self.T} time-steps, which cannot be changed afterwards: "
            f"convert again with T={value!r}"
        )

    @property
    def engine(self) -> str:
        """The engine of `snn(x)`, and of `run` without engine=: "over-time" where neurons have a state, "integer" for
        networks in whole numbers on a CPU or an NVIDIA GPU, else, and after `compile` or while a weight requires a
        gradient, "count"."""
        if self.over_time:
            return engines.OVER_TIME
        if not self._whole or self.compiled or self._trained:
            return "count"
        first = next(itertools.chain(self.parameters(), self.buffers()), None)
        return "integer" if first is None or first.device.type in ("cpu", "cuda") else "count"

    @property
    def _whole(self) -> bool:
        """Whether the network is in whole numbers."""
        return self.provenance.get("lowered") == "integers"

    @property
    def _trained(self) -> bool:
        """Whether an optimizer may change weights."""
        return any(p.requires_grad for p in self.parameters())

    def _run_as(self, graph: Graph) -> None:
        self.graph = graph
        if self.over_time:
            return
        self._pass = engines.Pass.of(graph, self.counting())
        self._known_stages: Stages | None = None

    @property
    def _stages(self) -> Stages:
        """How it runs over time, made when it first does: seconds, for a language model."""
        if self._known_stages is None:
            neurons = self.counting()
            sorted_code = [name for name, neuron in neurons.items() if neuron.code == "sorted"]
            self._known_stages = Stages.of(self.graph, tuple(neurons), sorted_code)
        return self._known_stages

    def _apply(self, fn: Any, recurse: bool = True) -> SNN:
        before = self.dtype
        super()._apply(self._holding(fn) if self._whole else fn, recurse)
        after = None if before is None else fn(torch.empty(0, dtype=before)).dtype
        if before is not after:
            # Inputs, blanks and casts of the network's own dtype follow it.
            nodes = tuple(n.mapped(lambda leaf: after if leaf is before else leaf) for n in self.graph.nodes)
            inputs = tuple(replace(i, dtype=after) if i.dtype is before else i for i in self.graph.inputs)
            self._run_as(replace(self.graph, inputs=inputs, nodes=nodes))
        return self

    def _holding(self, fn: Any) -> Any:
        """What changes tensors, such as a cast, without losing bits of whole numbers."""
        made = {dtype: fn(torch.empty(0, dtype=dtype)).dtype for dtype in (torch.float32, torch.float64)}
        if all(now in (dtype, torch.float64) for dtype, now in made.items()):
            return fn
        if set(made.values()) == {torch.float32}:
            if self.provenance.get("largest", math.inf) * self.T < EXACT[torch.float32]:
                return fn
            if self.dtype is not torch.float64:  # it takes and gives float32 already; what is wider inside stays
                return lambda tensor: tensor.to(fn(tensor.new_empty(0)).device)
        raise OptionError(
            f"{made[torch.float32]} does not hold the numbers of this network in whole numbers, which have as many "
            "bits as they need: leave their type as it is (snn.to(device) moves them), or load it again if .double() "
            "made it wider"
        )

    def tensors(self) -> dict[str, Tensor]:
        """The synapses' tensors by the names that the graph uses."""
        root = self.synapses
        return {path: _find(root, path) for path in self._paths}

    def neurons(self) -> dict[str, SpikingLayer]:
        """The spiking neurons by node name, in order."""
        root = self.spiking
        return {name: _find(root, layer) for name, layer in self._layers.items()}

    def counting(self) -> dict[str, Neuron]:
        """The neurons whose counts follow from their mean input: all of them, or none where they have a state."""
        return {name: neuron for name, neuron in self.neurons().items() if isinstance(neuron, Neuron)}

    def stateful(self) -> dict[str, Dynamics]:
        """The neurons that have a state: all of them, or none."""
        return {name: neuron for name, neuron in self.neurons().items() if isinstance(neuron, Dynamics)}

    def compile(self, **options: Any) -> SNN:
        """Compile the count engine with `torch.compile`, for `snn(x)` and `snn.run(x)`; returns this network.

        The first call takes the time to compile (seconds to minutes) and needs a C++ compiler. Batches of any size run
        in the same code, apart from a batch of one, which has its own; another size of the other dimensions, and
        record=True, are compiled when they come. The code stays with this network until the process ends; a copy and a
        saved file are without it. options: of `torch.compile`, such as mode or backend.

        Fused operations round less often, so a current that lies within rounding of a threshold may count one more or
        one less than without `compile`; networks in whole numbers have equal bits, and a warning, for integer kernels,
        which they run on by themselves, are faster. Raises `OptionError` where the neurons have a state, for a loop
        over T steps would be unrolled.
        """
        if self.over_time:
            raise OptionError(
                "compile is for parallel neurons, which run in one pass, and this network's fire step by step: leave "
                "it out, or convert without neuron="
            )
        if self.engine == "integer":
            warnings.warn(
                "this network is in whole numbers and runs on integer kernels, which take less time than compiled "
                "code: leave compile out",
                ParspikeWarning,
                stacklevel=2,
            )
        # Code of its own, for torch keeps what it compiled with the code that it came from: networks would be looked up
        # among all others, of which it holds eight, and the sizes that one met would be free in the next one.
        own = SNN._count.__code__
        own = types.FunctionType(own.replace(co_name=f"{own.co_name}_{next(_NUMBERS)}"), globals())
        self._compiled = torch.compile(types.MethodType(own, self), **_watching(options))
        self._compiled_from = self.graph, self._pass, options
        return self

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called."""
        return self._compiled is not None

    def _count(self, env: dict[str, Any], record: Record) -> tuple[Any, Any]:
        return engines.counted(self, env, self._pass, record=record)

    def _passed(self, env: dict[str, Any], record: Record) -> Run:
        """A run of the count engine, compiled if `compile` was called."""
        if self._compiled is None or torch.compiler.is_compiling():
            return engines.count(self, env, self._pass, record=record)
        graph, how, options = self._compiled_from
        if graph is not self.graph or how is not self._pass:
            self.compile(**options)
        for x in env.values():
            torch._dynamo.maybe_mark_dynamic(x, 0)
        logits, kept = self._compiled(env, record)
        return engines.recorded(logits, self, "count", kept)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled": None, "_compiled_from": None, "_parts": {}}  # of this process

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Logits for a batch (B, …): parallel neurons in one pass for any T, neurons with a state in T steps. Several
        inputs come one by one, or in one dict by their names, or in one tuple or list. To neurons with a state
        an input may also be another one at every step, (T, B, …), such as events of a camera: see `run`."""
        env = self.named_inputs(args, kwargs)
        engine = self.engine
        if engine == "integer" and _followed(env):
            engine = "count"
        elif engine == "count" and self._whole and not torch.compiler.is_compiling() and self._trained:
            engines.forget(self)  # fused optimizers change weights without a trace

        def run(env: dict[str, Any]) -> Run:
            if engine == "count":
                return self._passed(env, False)
            with torch.no_grad():
                if engine == "integer":
                    return engines.integer(self, env, self._pass)
                return engines.over_time(self, env, self.stateful(), self.simulation, engine=engine)

        if torch.compiler.is_compiling():
            return run(env).logits
        with self._explained(env):
            return self._fitting(run, env, engine, "answers").logits

    def _fitting(self, run: Callable[[dict[str, Any]], Run], env: dict[str, Any], *kind: Any) -> Run:
        """A run, in parts of the batch where memory does not hold all of it. kind: the engine, and what else makes runs
        that take as much memory."""
        key = (*kind, *(tuple(x.shape[1:]) for x in env.values()))
        least = "give a batch with fewer or smaller samples, or record=False"
        if kind[0] == "parallel":
            least += ", or a smaller chunk="
        exactly = engines.exactly(self, kind[0]) if self._whole else contextlib.nullcontext()
        with memory_of("run", least), exactly:
            done, part = engines.in_parts(run, self.graph, env, self._parts.get(key))
        size = self.graph.sizes(env).get(BATCH, 1)
        if part < min(self._parts.get(key, size), size):
            self._parts[key] = part
            warnings.warn(
                f"memory ran out with a batch of {size}, so it is run in parts of {part}, now and in later calls: "
                f"batches of at most {part} save the trial",
                ParspikeWarning,
                stacklevel=4,
            )
        return done

    @torch.no_grad()
    def run(
        self,
        *args: Tensor,
        engine: str | None = None,
        record: Record = False,
        every_step: bool = False,
        chunk: int | None = None,
        **kwargs: Tensor,
    ) -> Run:
        """Run a batch (B, …) and return logits and, with record=True, counts and spike trains by layer.

        Where the neurons have a state, an input with one dimension more, (T, B, …), is another one at every time-step:
        T slices of the time that the events of a sensor are counted in. Else it is the same at every step.

        record: True keeps counts, which trains are made from when they are asked for; "packed" keeps the trains of
        parallel neurons as bits (`run.packed`), which each layer writes in one step for all T, up to 8 times smaller.
        engine: of parallel neurons "count", one pass (the default); "parallel", all spike trains with time in the
        batch; "serial", the same trains step by step; all with the same results up to the rounding of sums
        (docs/speed.md, "How equal the engines are"); and "serial-if", the twin with soft-reset IF neurons. Networks in
        whole numbers (`parspike.lower.integers`) also have "integer", their default: `count` on integer kernels, with
        the same bits (docs/lowering.md). Neurons with a state have one, "over-time". every_step: logits after each
        step, (T, B, …), the mean of the output so far; of "over-time" and "serial-if". chunk: time-steps at once
        in "parallel" (default: what keeps the largest tensor under 128 MiB), "over-time" and "serial-if" (what stays in
        the cache).

        Where memory runs out the batch is run in parts, with a warning; the result is the same. Raises
        `InsufficientMemoryError` where it does not hold one sample.
        """
        engine = engine or self.engine
        if engine not in (*engines.ENGINES, engines.OVER_TIME):
            near = meant(engine, engines.ENGINES)
            raise OptionError(f"engine '{engine}' is unknown{near}: choose one of {', '.join(engines.ENGINES)}")
        if self.over_time != (engine == engines.OVER_TIME):
            raise OptionError(
                f"engine '{engine}' runs parallel neurons, and this network's fire step by step: leave engine= out, or "
                "convert without neuron= for parallel ones"
                if self.over_time
                else "engine 'over-time' runs neurons with a state, and this network's are parallel: leave engine= "
                "out, give engine='serial-if' for its IF twin, or convert for IF neurons with neuron=parspike.IF()"
            )
        if every_step and engine not in (engines.OVER_TIME, "serial-if"):
            raise OptionError(
                f"every_step=True needs neurons that fire step by step; engine '{engine}' has its answer after all T "
                "steps: give engine='serial-if', or convert with neuron=parspike.IF()"
            )
        if engine == "integer" and not self._whole:
            raise OptionError(
                "engine 'integer' runs networks in whole numbers, and this one computes with real numbers: "
                "parspike.lower.integers(snn, images), or `parspike lower`, makes one of it"
            )
        check_chunk(chunk)
        if not isinstance(record, bool) and record != PACKED:
            raise OptionError(f"record must be True, False or 'packed', got {record!r}")
        if record == PACKED and engine in (engines.OVER_TIME, "serial-if"):
            raise OptionError(
                f"record='packed' is for parallel neurons, whose trains follow from their counts, and engine "
                f"'{engine}' fires step by step: give record=True"
            )
        env = self.named_inputs(args, kwargs)
        options = {"chunk": chunk, "record": record, "every_step": every_step}
        twins = self._twin() if engine == "serial-if" else {}

        def run(env: dict[str, Any]) -> Run:
            if engine == "count":
                return self._passed(env, record)
            if engine == "integer":
                return engines.integer(self, env, self._pass, record=record)
            if engine == "parallel":
                return engines.parallel(self, env, self._stages, chunk=chunk, record=record)
            if engine == "serial":
                return engines.serial(self, env, self._stages, record=record)
            if engine == "serial-if":
                return engines.over_time(self, env, twins, Simulation(self.T), engine=engine, **options)
            return engines.over_time(self, env, self.stateful(), self.simulation, engine=engine, **options)

        with self._explained(env):
            return self._fitting(run, env, engine, record, every_step, chunk)

    def _twin(self) -> dict[str, Dynamics]:
        neurons = self.neurons()
        found = twin(neurons)
        if len(found) < len(neurons):
            warnings.warn(
                f"{len(neurons) - len(found)} of {len(neurons)} layers of neurons have steps of unequal size, or "
                "spikes of both signs, which no IF neuron has, so in engine 'serial-if' they stay as they are: convert "
                "with recipe='closed-form' for equal steps where the activation is a ReLU, or for IF neurons with "
                "neuron=parspike.IF()",
                ParspikeWarning,
                stacklevel=4,
            )
        return found

    @torch.no_grad()
    def watched(self, env: Mapping[str, Any], watch: engines.Watch) -> Run:
        """Run inputs by name through neurons with a state; `watch` is called for every layer and block of steps."""
        neurons = self.stateful()
        return engines.over_time(self, dict(env), neurons, self.simulation, engine=engines.OVER_TIME, watch=watch)

    def with_cache(self) -> tuple[SNN, SNN]:
        """This network, for texts that grow token by token, as two that share its neurons and synapses.

            first, then = snn.with_cache()
            out = first(tokens)                          # (B, n) int64: {"output": logits, "cache": keys and values}
            out = then(new, *out["cache"])               # (B, 1): logits of the new token, and the longer cache

        The logits are those of the whole text, up to the rounding of sums. Raises `UnsupportedError` where a layer
        takes tokens together in a way that no cache is known for, where the network takes texts of one length alone,
        and where what it keeps of a token depends on those behind it, which is tried on a few tokens.
        """
        made = "its neurons have a state" if self.over_time else with_cache(replace(self.graph, tensors=self.tensors()))
        if isinstance(made, str):
            raise UnsupportedError(f"this network can keep no keys and values: {made}")
        first, then = (
            SNN(graph, self.neurons(), simulation=self.simulation, provenance=self.provenance) for graph in made
        )
        if not _is_causal(first, then):
            raise UnsupportedError(
                "this network can keep no keys and values: what it computes for a token depends on the tokens behind it"
            )
        return first, then

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a `.parspike` file (docs/format.md); an existing file is replaced only with force=True."""
        from parspike.file import save

        return save(self, path, force=force)

    @property
    def plot(self) -> Plots:
        """The figures of this network as matplotlib axes, such as `snn.plot.rates(images)` (docs/report.md)."""
        from parspike.report import Plots

        return Plots(self)

    def extra_repr(self) -> str:
        recipe = self.provenance.get("search", {}).get("chosen", self.provenance.get("recipe", {}))
        name = recipe.get("name", "?") if isinstance(recipe, Mapping) else recipe
        return f"T={self.T}, neuron layers={len(self._layers)}, recipe={name}"

    def _cells(self) -> Iterator[tuple[str, str, str]]:
        for name, neuron in self.neurons().items():
            node = self.graph.by_name[name]
            yield node.layer, "×".join(str(dim) for dim in self.graph.shape_of(node)[1:]), neuron.extra_repr()

    def __repr__(self) -> str:
        lines = [f"  {layer}: {shape} neurons, {parameters}" for layer, shape, parameters in self._cells()]
        return "\n".join((f"SNN({self.extra_repr()})", *lines))

    def _repr_html_(self) -> str:
        notes = [f"inputs: {self.graph.taken}"]
        return html_table(f"SNN({self.extra_repr()})", ("layer", "neurons", "parameters"), self._cells(), notes)

    @contextlib.contextmanager
    def _explained(self, env: Mapping[str, Any]) -> Iterator[None]:
        """Raise `InputError` for a failure at other sizes than the example's, and name the sizes as its likely cause:
        no limit covers a table of positions that is too short."""
        shapes = {name: tuple(x.shape) for name, x in env.items()}
        usual = self.graph.sizes(env).items() >= self.graph.example.items()
        try:
            yield
        except (RuntimeError, IndexError) as error:
            if usual:
                raise
            raise InputError(
                f"run: inputs of shape {shapes} fail in this network, traced with {dict(self.graph.example)}: "
                f"{(str(error).splitlines() or [''])[0]}"
            ) from error

    def named_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Tensor]) -> dict[str, Any]:
        """The inputs of a call, `snn(*args, **kwargs)`, by name, checked. Raises `InputError` where they do not fit."""
        graph = self.graph
        positional, names = graph.signature
        if len(args) == 1 and not kwargs and isinstance(args[0], Mapping):
            labels = {*LABELS, "y"}.difference(i.name for i in graph.inputs)
            args, kwargs = (), {key: x for key, x in args[0].items() if key not in labels}
        elif len(args) == 1 and not kwargs and isinstance(args[0], (tuple, list)):
            args = tuple(args[0])
        own = [i.name for i in graph.inputs[:positional]]
        if len(args) > positional or set(kwargs) != {*own[len(args) :], *names}:
            wanted = ", ".join((*own, *(f"{name}=" for name in names)))
            given = ", ".join([f"{len(args)} without a name", *(f"{name}=" for name in kwargs)])
            fixed = f"; T = {self.T} was chosen when it was converted" if "T" in kwargs else ""
            raise InputError(f"this network takes the inputs ({wanted}), got {given}{fixed}")
        env = graph.bind(args, kwargs)
        return env if torch.compiler.is_compiling() else self.checked(env, "run")

    def checked(self, env: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Inputs by name, as `graph.check` takes them; where the neurons have a state, one with a dimension more,
        (T, B, …), is another one at every step, `Steps`. Raises `InputError`, which names `place`."""
        timed = {i.name for i in self.graph.inputs if self._is_timed(i, env.get(i.name))} if self.over_time else set()
        for name in timed:
            self._check_steps(name, env[name], place)
        self._check_device(env, place)
        for step in range(self.T if timed else 1):
            self.graph.check({name: x[step] if name in timed else x for name, x in env.items()}, place)
        return {name: engines.Steps(x) if name in timed else x for name, x in env.items()}

    def _check_device(self, env: Mapping[str, Any], place: str) -> None:
        device = next((tensor.device for tensor in self.parameters()), None)
        for name, x in env.items():
            if device is None or not isinstance(x, Tensor) or x.is_meta or x.device == device:
                continue
            if (only := device_of((*self.parameters(), *self.buffers()))) is not None:
                raise InputError(
                    f"{place}: input '{name}' lies on {x.device}, the network on {only}: pass x.to('{only}'), or move "
                    f"the network, snn.to('{x.device}')"
                )

    @staticmethod
    def _is_timed(i: Input, x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() == len(i.shape) + 1

    def _check_steps(self, name: str, x: Tensor, place: str) -> None:
        shape = next(i.shape_text for i in self.graph.inputs if i.name == name)
        wanted = f"(T, {shape[1:]}"
        if len(x) != self.T:
            turned = ", such as x.transpose(0, 1) of this one" if x.shape[1] == self.T else ""
            raise InputError(
                f"{place}: input '{name}' has shape {tuple(x.shape)}, which over time is {len(x)} steps, and this "
                f"network runs T={self.T}: give {wanted} with as many steps{turned}, or {shape} for the same input at "
                "every step"
            )
        if self.simulation.probe:
            raise InputError(
                f"{place}: input '{name}' has shape {tuple(x.shape)}, another one at every step, and these neurons run "
                f"{self.simulation.probe} steps of the same input first: give {shape}"
            )

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating type of the network's inputs, else of its tensors; None where they have several."""
        inputs = {i.dtype for i in self.graph.inputs if i.dtype.is_floating_point}
        found = inputs or {p.dtype for p in self.parameters() if p.is_floating_point()}
        return next(iter(found)) if len(found) == 1 else None


@torch.no_grad()
def _is_causal(first: SNN, then: SNN) -> bool:
    """Whether a network that `with_cache` gave computes for a token what it did before another one came."""
    (given,) = first.graph.inputs
    device = next((p.device for p in first.parameters()), None)
    text = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 1, 1, 0, 0, 0]], dtype=given.dtype, device=device)
    out = first(text)
    early = [value.narrow(d, 0, 4) for value, d in zip(out["cache"], token_dims(then.graph), strict=True)]
    if not all(torch.allclose(one[0], one[1], rtol=1e-5, atol=1e-6) for one in early):
        return False
    step = then(text[:, 4:5], *early)
    step = then(text[:, 5:], *step["cache"])
    both = (leaves(step["output"]), leaves(out["output"]))
    pairs = [(a[:, -1], b[:, -1]) for a, b in zip(*both, strict=True) if isinstance(a, Tensor)]
    # Sums are rounded otherwise, and a current on a threshold may count one more.
    return all(float((a - b).norm()) <= 0.1 * float(b.norm()) for a, b in pairs)


def _watching(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of torch.compile with which its code doesn't ask at every call whether the graph is still the same: that
    is a thousand values of a network, takes longer than all its other questions, and `SNN` watches it."""
    mode, given = options.get("mode"), options.get("options")
    if mode is not None and (given or options.get("backend", "inductor") != "inductor"):
        return {"fullgraph": True, **options}  # torch takes no mode together with options, which this would be one of
    chosen = {"guard_filter_fn": _changeable, **(given or {})}
    if mode not in (None, "default"):
        from torch._inductor import list_mode_options

        chosen |= list_mode_options(mode, options.get("dynamic"))
    return {"fullgraph": True, **options, "mode": None, "options": chosen}


def _changeable(guards: Sequence[Any]) -> list[bool]:
    """Which of the compiler's questions are not of what `SNN._compiled_from` watches."""
    return [not guard.name.replace("L['self']", "self").startswith(_WATCHED) for guard in guards]


def _followed(env: Mapping[str, Any]) -> bool:
    """Whether something follows how the answer is computed, which it could not through integer kernels: gradients,
    torch.compile, torch.jit.trace, or a kind of tensor of its own."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    kept = torch.is_grad_enabled()
    return any(type(x) not in (Tensor, nn.Parameter) or (kept and x.requires_grad) for x in env.values())


def _place(root: nn.Module, path: str, value: Tensor | nn.Module) -> None:
    # Straight into the tables: `add_module` refuses layers that are called as a method of modules is, such as "to".
    *parents, name = path.split(".")
    if "" in (*parents, name):
        raise KeyError(f"'{path}' is no name of a layer")
    for parent in parents:
        root = cast(nn.Module, root._modules.setdefault(parent, nn.Module()))
    if isinstance(value, nn.Module):
        root._modules[name] = value
    elif value.is_floating_point():
        root.register_parameter(name, nn.Parameter(value, requires_grad=False))
    else:
        root.register_buffer(name, value)


def _find(root: nn.Module, path: str) -> Any:
    *rooms, name = path.split(".")
    for room in rooms:
        root = cast(nn.Module, root._modules[room])
    for held in (root._parameters, root._buffers, root._modules):
        if name in held:
            return held[name]
    return getattr(root, name)  # torch.nn.utils.prune and parametrize put a value there that they make of parameters
