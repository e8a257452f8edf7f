"""The artefact: a converted network as an `nn.Module`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parspike import engines
from parspike.engines import Run
from parspike.engines.stages import Stages
from parspike.errors import InputError, OptionError
from parspike.graph import Graph
from parspike.neurons import Neuron
from parspike.notebook import html_table

__all__ = ["SNN"]


class SNN(nn.Module):
    """A spiking network: graph, synapses, neurons and where they come from. Made by `parspike.convert`.

    `snn(x)` gives the logits (B, K) of the count engine; `snn.run(x, engine=…, record=True)` also the spikes.
    T: time-steps. provenance: recipe, seed, versions, hash of the calibration data.
    State dict: `synapses.` with the names of the original network, `spiking.` with the layers of the neurons.
    """

    def __init__(
        self,
        graph: Graph,
        neurons: Mapping[str, Neuron],
        *,
        T: int,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._T, self.provenance = T, dict(provenance or {})
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
        return self._T

    @T.setter
    def T(self, value: Any) -> None:
        raise OptionError(
            f"this network was calibrated for T={self._T} time-steps, which cannot be changed afterwards: "
            f"convert again with T={value!r}"
        )

    def _run_as(self, graph: Graph) -> None:
        self.graph, neurons = graph, self.neurons()
        self._pass = engines.Pass.of(graph, neurons)
        sorted_code = [name for name, neuron in neurons.items() if neuron.code == "sorted"]
        self._stages = Stages.of(graph, tuple(neurons), sorted_code)

    def _apply(self, fn: Any, recurse: bool = True) -> SNN:
        before = self.dtype
        super()._apply(fn, recurse)
        after = None if before is None else fn(torch.empty(0, dtype=before)).dtype
        if before is not after:
            # Inputs, blanks and casts of the network's own dtype follow it.
            nodes = tuple(n.mapped(lambda leaf: after if leaf is before else leaf) for n in self.graph.nodes)
            inputs = tuple(replace(i, dtype=after) if i.dtype is before else i for i in self.graph.inputs)
            self._run_as(replace(self.graph, inputs=inputs, nodes=nodes))
        return self

    def tensors(self) -> dict[str, Tensor]:
        """The synapses' tensors by the names that the graph uses."""
        return {path: _find(self.synapses, path) for path in self._paths}

    def neurons(self) -> dict[str, Neuron]:
        """The spiking neurons by node name, in order."""
        return {name: _find(self.spiking, layer) for name, layer in self._layers.items()}

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Logits for a batch (B, …): the count engine, one pass whatever T is."""
        env = self._inputs(args, kwargs)
        if torch.compiler.is_compiling():
            return engines.count(self, env, self._pass).logits
        with self._explained(env):
            return engines.count(self, env, self._pass).logits

    @torch.no_grad()
    def run(
        self,
        *args: Tensor,
        engine: str = "count",
        record: bool = False,
        chunk: int | None = None,
        **kwargs: Tensor,
    ) -> Run:
        """Run a batch (B, …) and return logits and, with record=True, counts and spike trains by layer.

        engine: "count", one pass; "parallel", all spike trains with time folded into the batch; "serial", the
        same trains step by step; "serial-if", the twin with soft-reset IF neurons. chunk: time-steps at once in
        "parallel" (default: what keeps the largest tensor under 128 MiB). Same results in the first three.
        """
        env = self._inputs(args, kwargs)
        with self._explained(env):
            if engine == "count":
                return engines.count(self, env, self._pass, record=record)
            if engine == "parallel":
                return engines.parallel(self, env, self._stages, chunk=chunk, record=record)
            if engine == "serial":
                return engines.serial(self, env, self._stages, record=record)
            if engine == "serial-if":
                return engines.serial_if(self, env, record=record)
        raise OptionError(f"engine '{engine}' is unknown: choose one of {', '.join(engines.ENGINES)}")

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a `.parspike` file (docs/format.md); an existing file is replaced only with force=True."""
        from parspike.file import save

        return save(self, path, force=force)

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
        """Say of a failure at other sizes than the example's that they may be its cause: no limit knows of a table
        of positions that is too short."""
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

    def _inputs(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> dict[str, Any]:
        graph = self.graph
        positional, names = graph.signature
        if len(args) != positional or set(kwargs) != set(names):
            wanted = ", ".join((*(i.name for i in graph.inputs[:positional]), *(f"{name}=" for name in names)))
            raise InputError(f"this network takes the inputs ({wanted}), got {len(args)} positional, {list(kwargs)}")
        env = graph.bind(args, kwargs)
        if torch.compiler.is_compiling():
            return env
        graph.check(env, "run")
        return env

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating type of the network's inputs, else of its tensors; None where they have several."""
        inputs = {i.dtype for i in self.graph.inputs if i.dtype.is_floating_point}
        found = inputs or {p.dtype for p in self.parameters() if p.is_floating_point()}
        return next(iter(found)) if len(found) == 1 else None


def _place(root: nn.Module, path: str, value: Tensor | nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        child = root._modules.get(parent)
        if child is None:
            root.add_module(parent, child := nn.Module())
        root = child
    if isinstance(value, nn.Module):
        root.add_module(name, value)
    elif value.is_floating_point():
        root.register_parameter(name, nn.Parameter(value, requires_grad=False))
    else:
        root.register_buffer(name, value)


def _find(root: nn.Module, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name)
    return root
