"""A NIR graph as a spiking network: its nodes as nodes of the one graph that parspike runs, its neurons with a state.

`Affine`, `Linear`, `Conv1d`, `Conv2d`, `Scale`, `SumPool2d`, `AvgPool2d` and `Flatten` become operators; several edges
into one node a sum. `IF` and `LIF` become `IntegrateFire` where that computes the same to the bit, and `CurrentBased`
elsewhere, as do `LI`, `I`, `CubaLIF`, `CubaLI` and `Threshold`.

NIR states differential equations, and no time-step. Here one step of length dt is forward Euler: a LIF neuron computes
v + dt/τ · (v_leak − v + R z), an IF neuron v + R z. Metadata that `parspike.export` writes say the rest: T, dt, the
start potentials, and the reset by θ, which NIR does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parspike.errors import FileError, OptionError
from parspike.graph import Graph, Input, Node, Param, Ref, Role, Size, map_tree
from parspike.graph.ops import ENCODE, call
from parspike.neurons import MAX_T, CurrentBased, Dynamics, IntegrateFire, Simulation
from parspike.nir.hdf5 import FIELDS, Found, Piece
from parspike.snn import SNN

__all__ = ["DT", "legal_names", "network"]

DT = 1e-4
"""Seconds of a step where nothing says otherwise: the step that snnTorch writes and reads NIR files with."""
BATCH = Size("batch")
NEURONS = ("IF", "LIF", "LI", "I", "CubaLIF", "CubaLI", "Threshold")
CLOSE = 1e-6


def network(found: Found, T: int | None, dt: float | None, plain: bool = False) -> SNN:
    """The network of a NIR graph. T, dt: see `parspike.nir.read`. plain: without parspike's own metadata, as a reader
    computes that knows NIR alone. Raises `FileError` on what no such network is, all unknown nodes at once."""
    ours = found.metadata if "parspike" in found.metadata and not plain else {}
    steps = T if T is not None else ours.get("T")
    if steps is None:
        raise OptionError(
            "the file does not say for how many time-steps it runs: load it with T=8, or as many as fit (`parspike "
            "eval` takes -T 8; for other commands parspike.load(file, T=8).save('net.parspike') makes one that says it)"
        )
    steps = _whole(steps, 1, MAX_T, "T")
    stated = dt if dt is not None else ours.get("dt")
    if isinstance(stated, np.ndarray) and stated.size == 1:
        stated = stated.item()
    if stated is not None and not (isinstance(stated, (int, float, np.number)) and 0 < float(stated) < 1e9):
        raise OptionError(f"dt must be the seconds of a step, above 0, got {str(stated)[:40]}")
    order = _order(found)
    maker = _Maker(found, None if stated is None else float(stated), bool(ours))
    for name in order:
        maker.add(name)
    return maker.network(Simulation(steps, read=_whole(ours.get("read", 0), 0, steps, "read")), plain)


def _whole(value: Any, least: int, most: int, name: str) -> int:
    number = value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
        raise OptionError(f"{name} must be a whole number from {least} to {most}, got {str(value)[:40]}")
    return number


def _order(found: Found) -> list[str]:
    """The nodes, each behind those that it reads. Raises `FileError` for unknown kinds, cycles, and loose ends."""
    pieces = found.pieces
    unknown = [f"'{name}' ({piece.kind[:40]})" for name, piece in pieces.items() if piece.kind not in FIELDS]
    readers: dict[str, list[str]] = {name: [] for name in pieces}
    waits = dict.fromkeys(pieces, 0)
    for one, two in found.edges:
        readers[one].append(two)
        waits[two] += 1
    order = [name for name in pieces if not waits[name]]
    for name in order:
        for reader in readers[name]:
            waits[reader] -= 1
            if not waits[reader]:
                order.append(reader)
    problems = [f"no such nodes can be run: {_few(unknown)}"] if unknown else []
    if left := set(pieces) - set(order):
        cycle = [f"'{name}'" for name in _in_cycles(left, readers)]
        problems.append(f"connections lead back to themselves, and recurrent networks cannot be run: {_few(cycle)}")
    if problems:
        raise FileError("; ".join(problems))
    fed = {two for _, two in found.edges}
    loose = [f"'{name}'" for name, piece in pieces.items() if piece.kind != "Input" and name not in fed]
    loose += [f"'{name}'" for name, piece in pieces.items() if piece.kind == "Input" and name in fed]
    if loose:
        raise FileError(f"only Input nodes begin a network, and nothing leads into them: {_few(loose)}")
    ends = [f"'{name}'" for name, piece in pieces.items() if piece.kind == "Output" and readers[name]]
    if ends:
        raise FileError(f"nodes read the Output {_few(ends)}")
    for kind in ("Input", "Output"):
        if not any(piece.kind == kind for piece in pieces.values()):
            raise FileError(f"it has no {kind} node")
    return order


def _in_cycles(left: set[str], readers: Mapping[str, Sequence[str]]) -> list[str]:
    """Those of the nodes that can be reached from themselves: what is merely behind a cycle is cut away."""
    kept = set(left)
    while True:
        ends = {name for name in kept if not any(reader in kept for reader in readers[name])}
        if not ends:
            return sorted(kept)
        kept -= ends


def _few(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:120] for name in names[:most]) + more


class _Maker:
    """Builds the graph node by node. values: the node or input that has the value of a NIR node."""

    def __init__(self, found: Found, dt: float | None, ours: bool) -> None:
        self.found, self.dt, self.ours = found, dt, ours
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.neurons: dict[str, Dynamics] = {}
        self.values: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.outputs: dict[str, Ref] = {}
        self.sources: dict[str, list[str]] = {name: [] for name in found.pieces}
        for one, two in found.edges:
            self.sources[two].append(one)
        self.layers = legal_names([name for name in found.pieces if found.pieces[name].kind not in ("Input", "Output")])
        self.taken: set[str] = set()

    def network(self, simulation: Simulation, plain: bool) -> SNN:
        """The network of the nodes added so far."""
        # In the order of the file, since that in which they can be computed is another one.
        outputs = {name: self.outputs[name] for name in self.found.pieces if name in self.outputs}
        output = next(iter(outputs.values())) if len(outputs) == 1 else outputs
        graph = Graph(tuple(self.inputs), tuple(self.nodes), output, self.tensors, (len(self.inputs), ()))
        if not self.neurons:
            raise FileError("it has no neurons, so nothing in it runs over time")
        origin = {"name": "nir", **({"plain": True} if plain else {})}
        return SNN(graph, self.neurons, simulation=simulation, provenance={"recipe": origin})

    def add(self, name: str) -> None:
        """Append what a NIR node computes."""
        piece = self.found.pieces[name]
        try:
            self._add(name, piece)
        except FileError as error:
            raise FileError(f"node '{name[:120]}' ({piece.kind}): {error}") from error
        except (ValueError, RuntimeError, TypeError, IndexError, KeyError, OverflowError) as error:
            text = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise FileError(f"node '{name[:120]}' ({piece.kind}) cannot run: {text}") from error

    def _add(self, name: str, piece: Piece) -> None:
        kind, get = piece.kind, piece.values
        if kind == "Input":
            shape = _sizes(get["shape"])
            self.values[name] = key = self._free("x" if not self.inputs else name)
            self.shapes[key] = shape
            self.inputs.append(Input(key, (BATCH, *shape), torch.float32))
            return
        x = self._sum(name)
        shape = self.shapes[x]
        if kind == "Output":
            stated = _sizes(get["shape"])
            if np.prod(stated) != np.prod(shape):
                raise FileError(f"it has the shape {stated}, and {shape} arrives")
            self.outputs[name] = Ref(x)
        elif kind in NEURONS:
            self._neurons(name, piece, x)
        else:
            target, args = self._operator(name, piece, x, shape)
            self.values[name] = self._node(self.layers[name], target, args)

    def _operator(self, name: str, piece: Piece, x: str, shape: tuple[int, ...]) -> tuple[str, tuple[Any, ...]]:
        kind, get = piece.kind, piece.values
        if kind in ("Affine", "Linear"):
            weight = self._tensor(name, "weight", get["weight"], 2)
            bias = self._tensor(name, "bias", get["bias"], 1) if kind == "Affine" else None
            if len(shape) != 1:
                raise FileError(f"it takes a vector, and {shape} arrives: a Flatten node is missing before it")
            return "aten.linear.default", (Ref(x), weight, bias)
        if kind == "Scale":
            scale = _compact(_floats(get["scale"]), shape, "scale")
            return "aten.mul.Tensor", (Ref(x), self._put(name, "scale", scale))
        if kind in ("Conv1d", "Conv2d"):
            rank = int(kind[4])
            weight = self._tensor(name, "weight", get["weight"], rank + 2)
            bias = self._tensor(name, "bias", get["bias"], 1)
            if self.tensors[bias.path].shape != self.tensors[weight.path].shape[:1]:
                # torch compares the two only where tensors have data, which those that find shapes have not.
                raise FileError(
                    f"its bias has {self.tensors[bias.path].shape[0]} values for {self.tensors[weight.path].shape[0]} "
                    "outputs, expected one an output"
                )
            padding: Any = get["padding"]
            padded = isinstance(padding, str)
            if padded and padding not in ("same", "valid"):
                raise FileError(f"its padding is '{padding[:40]}', expected numbers, 'same' or 'valid'")
            stride, dilation = (_each(get[key], rank, key, 1) for key in ("stride", "dilation"))
            groups = _each(get["groups"], 1, "groups", 1)[0]
            padding = padding if padded else list(_each(padding, rank, "padding", 0))
            if len(shape) != rank + 1:
                raise FileError(f"it takes {rank + 1} dimensions, and {shape} arrives")
            target = f"aten.conv{rank}d.{'padding' if padded else 'default'}"
            return target, (Ref(x), weight, bias, list(stride), padding, list(dilation), groups)
        if kind in ("SumPool2d", "AvgPool2d"):
            kernel, stride = (list(_each(get[key], 2, key, 1)) for key in ("kernel_size", "stride"))
            padding = list(_each(get["padding"], 2, "padding", 0))
            if len(shape) != 3:
                raise FileError(f"it takes images (C, H, W), and {shape} arrives")
            divisor = 1 if kind == "SumPool2d" else None
            return "aten.avg_pool2d.default", (Ref(x), kernel, stride, padding, False, True, divisor)
        start, end = (int(_scalar(get[key], key)) for key in ("start_dim", "end_dim"))
        rank = len(shape)
        start, end = start % rank if -rank <= start < rank else -1, end % rank if -rank <= end < rank else -1
        if not 0 <= start <= end:
            raise FileError(f"it flattens dimensions {get['start_dim']} to {get['end_dim']} of {shape}")
        flat = (*shape[:start], int(np.prod(shape[start : end + 1])), *shape[end + 1 :])
        return "aten.reshape.default", (Ref(x), [BATCH, *flat])

    def _neurons(self, name: str, piece: Piece, x: str) -> None:
        layer = self.layers[name]
        shape = self.shapes[x]
        neuron = _neuron(piece, shape, self.dt, self.ours)
        key = self._node(layer, ENCODE, (Ref(x),), Role.NEURON)
        self.values[name] = key
        self.neurons[key] = neuron

    def _sum(self, name: str) -> str:
        """The value that arrives at a node: that of its one source, or the sum of several."""
        first, *others = (self.values[source] for source in self.sources[name])
        for number, other in enumerate(others):
            if self.shapes[first] != self.shapes[other]:
                raise FileError(f"values of the shapes {self.shapes[first]} and {self.shapes[other]} are added")
            layer = f"{self.layers.get(name, 'output')}_sum{number or ''}"
            first = self._node(layer, "aten.add.Tensor", (Ref(first), Ref(other)))
        return first

    def _node(self, layer: str, target: str, args: tuple[Any, ...], role: Role = Role.SYNAPSE) -> str:
        """Append a node; its shape is found by running it on two samples without data."""
        sizes = {"batch": 2}

        def meta(leaf: Any) -> Any:
            if isinstance(leaf, Ref):
                return torch.empty((2, *self.shapes[leaf.name]), device="meta")
            if isinstance(leaf, Param):
                return self.tensors[leaf.path].to("meta")
            return leaf(sizes) if isinstance(leaf, Size) else leaf

        with torch.no_grad():
            made = call(target, [map_tree(meta, arg) for arg in args], {})
        if 0 in made.shape:
            raise FileError(f"nothing is left of {tuple(self.shapes[args[0].name])} behind it")
        key = self._free(layer)
        self.shapes[key] = tuple(made.shape[1:])
        self.nodes.append(Node(key, target, args, {}, role, layer, shape=(BATCH, *made.shape[1:])))
        return key

    def _tensor(self, name: str, key: str, value: Any, rank: int) -> Param:
        tensor = torch.from_numpy(np.ascontiguousarray(_floats(value)))
        if tensor.dim() != rank:
            raise FileError(f"its {key} has the shape {tuple(tensor.shape)}, expected {rank} dimensions")
        return self._put(name, key, tensor)

    def _put(self, name: str, key: str, tensor: Tensor) -> Param:
        path = f"{self.layers[name]}.{key}"
        self.tensors[path] = tensor
        return Param(path)

    def _free(self, layer: str) -> str:
        name = re.sub(r"\W", "_", layer)[:190] or "node"
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def legal_names(names: Sequence[str]) -> dict[str, str]:
    """For each name of a node one that a module of torch's can have: its own, wherever that is possible."""
    dotted = {name: tuple(name.split(".")) for name in names}
    inner = {parts[:n] for parts in dotted.values() for n in range(1, len(parts))}
    layers: dict[str, str] = {}
    taken: set[str] = set()
    for name, parts in dotted.items():
        fits = all(parts) and parts not in inner
        made = ".".join(_legal(part) for part in parts) if fits else _legal(name.replace(".", "_"))
        while made in taken or tuple(made.split(".")) in inner:
            made += "_"
        taken.add(made)
        layers[name] = made
    return layers


def _legal(part: str) -> str:
    """A name that an attribute of a module can have."""
    part = re.sub(r"[^\w@-]", "_", part)[:150] or "_"
    return f"{part}_" if hasattr(nn.Module, part) or hasattr(nn.Module(), part) else part


def _floats(value: Any) -> np.ndarray[Any, Any]:
    """An array as float32, which must hold its numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise FileError(f"it holds {array.dtype}, expected numbers")
    with np.errstate(over="ignore"):
        made = array.astype(np.float32, copy=False)
    if not np.isfinite(made).all():
        raise FileError("it holds a number that is too large for float32")
    return made


def _compact(array: np.ndarray[Any, Any], shape: tuple[int, ...], what: str) -> Tensor:
    """A parameter of one sample's shape as the smallest tensor that broadcasts to it: one number, one a channel."""
    if array.size == 1:
        return torch.from_numpy(np.array(array.reshape((1,) * len(shape))))
    if array.ndim != len(shape) or any(one not in (1, all_) for one, all_ in zip(array.shape, shape, strict=True)):
        raise FileError(f"{what} has the shape {array.shape}, and values {shape} arrive")
    for axis in reversed(range(array.ndim)):
        first = array.take([0], axis)
        if (array == first).all():
            array = first
    return torch.from_numpy(np.ascontiguousarray(array))


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in np.asarray(value).reshape(-1))
    if np.asarray(value).dtype.kind not in "iu" or not sizes or len(sizes) > 8 or min(sizes) < 1:
        raise FileError(f"its shape is {sizes[:9]}, expected sizes of at least 1")
    if np.prod(sizes, dtype=float) > 2**40:
        raise FileError(f"its shape is {sizes}, which is too large")
    return sizes


def _each(value: Any, rank: int, what: str, least: int) -> tuple[int, ...]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.size not in (1, rank):
        raise FileError(f"{what} is {str(value)[:60]}, expected {rank} whole numbers")
    found = tuple(int(n) for n in array.reshape(-1)) * (rank if array.size == 1 else 1)
    if min(found) < least or max(found) > 2**31:
        raise FileError(f"{what} is {found}, expected numbers of at least {least}")
    return found


def _scalar(value: Any, what: str) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise FileError(f"{what} is no number")
    return array.reshape(()).item()


def _neuron(piece: Piece, shape: tuple[int, ...], dt: float | None, ours: bool) -> Dynamics:
    """The neurons of a node, for values of one sample's shape."""
    kind, get, said = piece.kind, piece.values, piece.metadata if ours else {}

    def given(key: str, default: float | None = None) -> np.ndarray[Any, Any]:
        if key not in get and default is not None:
            return np.full((1,) * len(shape), default)
        array = _compact(_floats(get[key]), shape, key).numpy()
        return array.astype(np.float64)  # what is computed from them is rounded once

    step = DT if dt is None else dt
    reset = said.get("reset", "value")
    if reset not in ("value", "subtract"):
        raise FileError(f"its reset is {str(reset)[:40]!r}, expected 'value' or 'subtract'")
    keeps, gain, drive = np.zeros(1), np.ones(1), np.zeros(1)
    tau = next((key for key in ("tau", "tau_mem") if key in get), None)
    if tau is not None:
        share = step / _positive(given(tau), tau, step)
        keeps, gain, drive = 1 - share, share * given("r"), share * given("v_leak")
    elif kind in ("IF", "I"):
        keeps, gain = np.ones(1), given("r") * (1.0 if dt is None else dt)
    synapse = None
    if "tau_syn" in get:
        share = step / _positive(given("tau_syn"), "tau_syn", step)
        synapse = 1 - share, share * given("w_in", 1.0)
    theta = given("threshold" if kind == "Threshold" else "v_threshold") if kind not in ("LI", "I", "CubaLI") else None
    back = given("v_reset", 0.0)
    start = _compact(_floats(said["v_init"]), shape, "v_init").numpy() if "v_init" in said else np.zeros(1)
    fits = synapse is None and keeps.size == 1 and bool((keeps > 0).all()) and np.allclose(gain, 1, rtol=CLOSE, atol=0)
    fits = fits and theta is not None and bool((theta > 0).all())
    if theta is not None and fits and (reset == "subtract" or not back.any()):
        # NIR fires where v > θ: of numbers of one type this is v ≥ the next one above θ.
        at = theta.astype(np.float32)
        at = at if said.get("fires") == ">=" else np.nextafter(at, np.full_like(at, np.inf))
        neuron = IntegrateFire(
            torch.from_numpy(at), reset="subtract" if reset == "subtract" else "zero",
            decay=float(np.float32(keeps.item())),
        )  # fmt: skip
        for name, value in (("v_init", start), ("v_post", np.ones(1)), ("bias", drive[None])):
            full = _tensor_of(value, len(shape) + (name == "bias"))
            setattr(neuron, name, nn.Parameter(full, requires_grad=False))
        return neuron
    if reset == "subtract":
        raise FileError("its metadata ask for a reset by θ, which such neurons do not have")
    tensors = {"decay": keeps, "gain": gain, "drive": drive, "v_init": start}
    if synapse is not None:
        tensors |= {"synapse_decay": synapse[0], "synapse_gain": synapse[1]}
    if theta is not None:
        tensors |= {"v_threshold": theta, "v_reset": back}
    return CurrentBased(**{key: _tensor_of(value, len(shape)) for key, value in tensors.items()})


def _positive(array: np.ndarray[Any, Any], name: str, step: float) -> np.ndarray[Any, Any]:
    """Time constants, none shorter than a step: the potential would turn its sign at every step."""
    if not (array > 0).all():
        raise FileError(f"{name} is {float(array.min()):.4g}: a time constant must be above 0")
    if (array < step * (1 - CLOSE)).any():
        raise FileError(
            f"{name} is {float(array.min()):.4g} s and a step {step:.4g} s: load it with dt= of at most "
            "the time constant"
        )
    return np.maximum(array, step)


def _tensor_of(value: np.ndarray[Any, Any], rank: int) -> Tensor:
    made = value.astype(np.float32)
    return torch.from_numpy(made.reshape((1,) * (rank - made.ndim) + made.shape))
