"""The ONNX model in the making: values by the names of the graph's nodes, their types, constants, sizes of the batch.

A rule (`onnx_layout`, `onnx_values`) writes one operator of the graph as nodes of ONNX. torch's operators take tensors
of unlike types and give several results; ONNX's take equal types. So the model knows of each value whether it holds
real numbers (float32 in the file), whole ones (int64), truth values, or complex numbers, which ONNX has only as a last
dimension of two.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from parspike.errors import MissingExtraError, UnsupportedError
from parspike.graph import Graph, Node, Param, Ref, Size, leaves
from parspike.graph.ops import CASTS
from parspike.graph.signature import named
from parspike.neurons import (
    Even,
    Neuron,
    Staircase,
    Whole,
    WholeCurve,
    WholeNeuron,
    WholeStaircase,
)
from parspike.version import __version__

__all__ = ["Kind", "Model", "Refused", "Rule", "Value", "Written", "onnx_package"]

OPSET, IR_VERSION = 21, 10
MOST_BYTES = (1 << 31) - (1 << 20)
"""A protobuf message holds less than 2 GiB."""
BATCH = "batch"

Kind = Literal["bool", "int", "float", "complex"]
KINDS: tuple[Kind, ...] = ("bool", "int", "float", "complex")
"""In the order in which torch widens them."""
CODES: dict[Kind, int] = {"bool": 9, "int": 7, "float": 1}
"""TensorProto's numbers of bool, int64 and float32."""
WIDE = 11
"""That of float64."""
EXACT = 1 << 24
"""Below it float32 holds every whole number."""
MOVED = ("aten.reshape.default", "aten.permute.default", "aten.max_pool2d.default", "aten.pad.default")
"""Operators that make no number larger."""
NUMBERS: dict[str, Callable[[Any], Any]] = {"bool": bool, "int": int, "float": float}
INPUTS = {
    torch.float32: 1, torch.float64: 11, torch.float16: 10, torch.int64: 7, torch.int32: 6, torch.int16: 5,
    torch.int8: 3, torch.uint8: 2, torch.bool: 9, torch.bfloat16: 16,
}  # fmt: skip
TRUTHS = (
    "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "And", "Or", "Xor", "Not", "IsNaN", "IsInf",
)  # fmt: skip
"""Operators of ONNX whose result is a truth value."""
WHOLE = ("ArgMax", "ArgMin", "Shape")
"""Those whose result is a whole number, whatever they read."""

Value = str | tuple[str | None, ...]
"""The name of a value in the file, or of each result of an operator that has several; None: one without a form."""


@dataclass(frozen=True)
class Written:
    """A model. nodes: how many of each operator. counts: by node of the network's graph, the name of the value that
    holds the neurons' counts in the model."""

    model: Any
    nodes: Mapping[str, int]
    counts: Mapping[str, str]


class Refused(Exception):  # noqa: N818 (control flow, never seen outside)
    """Why a node has no form in ONNX."""


def onnx_package() -> Any:
    """The package onnx, or `MissingExtraError`."""
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingExtraError("onnx", extra="export") from error
    return onnx


def kind_of(dtype: torch.dtype) -> Kind:
    """What a tensor of torch's holds."""
    if dtype.is_complex:
        return "complex"
    return "float" if dtype.is_floating_point else "bool" if dtype is torch.bool else "int"


class Model:
    """The model in the making. graph: for inputs of one size, apart from the batch. tensors: what it reads, by path.
    neurons: by node. whole: whether all its numbers are whole (`parspike.lower.integers`); largest: how large they may
    be. Where float32 does not hold them, they are float64 in the file too, but where the graph rounds to float32."""

    wide = False
    """Whether real numbers of the node that is written are float64."""

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        neurons: Mapping[str, Neuron],
        rules: Mapping[str, Rule],
        *,
        whole: bool = False,
        largest: int = 0,
    ) -> None:
        self.onnx, self.largest = onnx_package(), largest
        self.beyond = whole and largest >= EXACT
        self.narrow = {i.name for i in graph.inputs if i.dtype is not torch.float64}
        """Values that are no float64, where others are."""
        self.graph, self.neurons, self.rules, self.whole = graph, neurons, rules, whole
        self.tensors = {path: tensor.detach().cpu() for path, tensor in tensors.items()}
        self.shapes = {i.name: i.shape for i in graph.inputs} | {n.name: n.shape for n in graph.nodes}
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.values: dict[str, Value] = {}
        self.kinds: dict[str, Kind] = {}
        self.counts: dict[str, str] = {}
        self.refused: list[str] = []
        self.number = 0
        for i in graph.inputs:
            kind = kind_of(i.dtype)
            self.values[i.name], self.kinds[i.name] = i.name, kind
            if i.dtype not in (torch.float32, torch.int64, torch.bool):
                self.wide = self.beyond and i.dtype is torch.float64
                self.values[i.name] = self.op("Cast", i.name, to=self.code(kind))

    # Building blocks.

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """A node with one result; its name."""
        return self.ops(kind, *inputs, out=(out,), **attributes)[0]

    def ops(self, kind: str, *inputs: str, out: Sequence[str], **attributes: Any) -> list[str]:
        """A node with several results; their names, those of `out` where it gives one."""
        self.number += 1
        auto = f"/{kind}_{self.number}"  # no node of the graph begins so
        names = [name or (auto if len(out) == 1 else f"{auto}_{place}") for place, name in enumerate(out)]
        self.nodes.append(
            self.onnx.helper.make_node(kind, list(inputs), names, name=f"{kind}_{self.number}", **attributes)
        )
        like = inputs[{"Where": 1, "OneHot": 2}.get(kind, 0)]
        made: Kind = (
            "bool" if kind in TRUTHS
            else "int" if kind in WHOLE
            else "float" if kind == "Cast" and attributes["to"] == WIDE
            else KINDS[[9, 7, 1].index(attributes["to"])] if kind == "Cast"
            else self.kinds[like]
        )  # fmt: skip
        self.kinds |= dict.fromkeys(names, made)
        if kind in ("TopK", "MaxPool"):
            self.kinds |= dict.fromkeys(names[1:], "int")
        return names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A tensor or number as an initializer; equal ones are stored once. Real numbers as float32 or, where the node
        is wide, float64, whole ones as int64."""
        if isinstance(value, Tensor):
            value = (value.double() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
        array = np.asarray(value)
        kind: Kind = "float" if array.dtype.kind == "f" else "bool" if array.dtype.kind == "b" else "int"
        real = np.float64 if self.wide else np.float32
        dtype = dtype or {"float": real, "bool": np.bool_, "int": np.int64}[kind]
        array = np.array(array, dtype, order="C")  # a number stays one, which ascontiguousarray would make a vector
        key = f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
        if key not in self.constants:
            self.constants[key] = self.onnx.numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        name = self.constants[key].name
        self.kinds[name] = kind
        return name

    def integers(self, value: Tensor, *, bias: bool = False) -> str:
        """Whole numbers as the smallest integers that hold them, widened where they are read."""
        most = int(value.abs().max())
        dtype = np.int32 if bias or most > 32767 else np.int16 if most > 127 else np.int8
        if self.wide:
            return self.op("Cast", self.constant(value, np.int64 if most >= 1 << 31 else dtype), to=WIDE)
        name = self.op("DequantizeLinear", self.constant(value, dtype), self.constant(1.0))
        self.kinds[name] = "float"
        return name

    def results(self, leaf: Ref) -> tuple[str | None, ...]:
        """The results of an operator that has several."""
        value = self.values[leaf.name]
        return value if isinstance(value, tuple) else (value,)

    def value(self, leaf: Any, *, bias: bool = False, pairs: bool = False) -> str:
        """An argument that is a value of the network, a tensor or a number. pairs: also complex numbers."""
        name = self._value(leaf, bias)
        if self.kinds[name] == "complex" and not pairs:
            raise Refused("no rule writes it for complex numbers")
        return name

    def _value(self, leaf: Any, bias: bool) -> str:
        if isinstance(leaf, Ref):
            found = self.values[leaf.name]
            found = found[0] if isinstance(found, tuple) else found
            if found is None:
                raise Refused("it reads a result of an operator that has no form in the file")
            return found
        if isinstance(leaf, Param):
            tensor = self.tensors[leaf.path]
            if tensor.is_complex():
                name = self.constant(torch.view_as_real(tensor.resolve_conj()).float())
                self.kinds[name] = "complex"
                return name
            if self.whole and leaf.path.startswith("whole.") and not leaf.path.endswith(".grid"):
                return self.integers(tensor, bias=bias)
            return self.constant(tensor)
        if isinstance(leaf, Size):
            return self.op("Squeeze", self.size(leaf), self.constant([0]))
        if not isinstance(leaf, (bool, int, float)):
            raise Refused("no rule writes this form of it")
        return self.constant(leaf)

    def several(self, leaf: Any) -> tuple[str, list[int]]:
        """A value of real or of complex numbers, and the sizes that its shape has more in the file: the pairs of
        these."""
        name = self.value(leaf, pairs=True)
        return name, [2] if self.kinds[name] == "complex" else []

    def cast(self, name: str, kind: Kind) -> str:
        """A value as one of another type."""
        return name if self.kinds[name] == kind else self.op("Cast", name, to=self.code(kind))

    def code(self, kind: Kind) -> int:
        """TensorProto's number of a type."""
        return WIDE if kind == "float" and self.wide else CODES[kind]

    def real(self, leaf: Any) -> str:
        """An argument as real numbers."""
        return self.cast(self.value(leaf), "float")

    def alike(self, *arguments: Any, least: Kind = "bool") -> list[str]:
        """Arguments as values of one type, the one that torch would widen them to. A number never widens a tensor of
        its own sort: 2 times a real number is real."""
        numbers = (bool, int, float)
        names = [None if isinstance(leaf, numbers) else self.value(leaf) for leaf in arguments]
        own: list[Kind] = [
            kind_of(torch.tensor(leaf).dtype) if name is None else self.kinds[name]
            for leaf, name in zip(arguments, names, strict=True)
        ]
        kind = max((least, *own), key=KINDS.index)
        return [
            self.constant(NUMBERS[kind](leaf)) if name is None else self.cast(name, kind)
            for leaf, name in zip(arguments, names, strict=True)
        ]

    def shape(self, leaf: Any) -> tuple[Any, ...]:
        """The shape of an argument; its batch, and what follows from it, as `Size`."""
        return tuple(self.shapes[leaf.name]) if isinstance(leaf, Ref) else tuple(self.tensors[leaf.path].shape)

    def rank(self, leaf: Any) -> int:
        return len(self.shape(leaf))

    def length(self, leaf: Any, dim: int) -> int:
        """The size along a dimension, which the batch has no part in."""
        size = self.shape(leaf)[dim]
        if isinstance(size, Size):
            raise Refused("it works along the batch")
        return int(size)

    # Sizes.

    def size(self, dim: int | Size) -> str:
        """A size as a vector of one whole number."""
        return self.constant([int(dim)]) if not isinstance(dim, Size) else self._size(dim.tree)

    def _size(self, tree: Any) -> str:
        if isinstance(tree, int):
            return self.constant([tree])
        if isinstance(tree, str):
            found = (
                (i.name, place) for i in self.graph.inputs for place, dim in enumerate(i.shape)
                if isinstance(dim, Size) and dim.tree == tree
            )  # fmt: skip
            name, place = next(found)
            return self.op("Shape", name, start=place, end=place + 1)
        operation, *operands = tree
        made, *rest = (self._size(operand) for operand in operands)
        for other in rest:
            if operation == "//":  # ONNX's own division truncates; its remainder has the divisor's sign
                made = self.op("Div", self.op("Sub", made, self.op("Mod", made, other)), other)
            else:
                kinds = {"+": "Add", "*": "Mul", "%": "Mod", "max": "Max", "min": "Min"}
                made = self.op(kinds[operation], made, other)
        return made

    def sizes(self, shape: Sequence[Any], *, known: bool = True) -> str:
        """A shape as a vector of whole numbers. known: whether the number of elements is known from elsewhere, so that
        one size that depends on the batch may be −1."""
        free = [place for place, dim in enumerate(shape) if isinstance(dim, Size)]
        if len(free) > 1 or (free and not known):
            return self.op("Concat", *(self.size(dim) for dim in shape), axis=0)
        return self.constant(np.array([-1 if isinstance(dim, Size) else int(dim) for dim in shape], np.int64))

    # Blocks that several rules are made of.

    def moved(self, name: str, order: Sequence[int]) -> str:
        """Dimensions in another order."""
        return name if list(order) == sorted(order) else self.op("Transpose", name, perm=list(order))

    def reshaped(self, name: str, shape: Sequence[Any]) -> str:
        return self.op("Reshape", name, self.sizes(shape))

    def picked(self, name: str, places: Any, axis: int) -> str:
        """Values at constant places along a dimension; a number for `places` drops it."""
        return self.op("Gather", name, self.constant(np.asarray(places, np.int64)), axis=axis)

    def cut(self, name: str, axis: int, start: Any, end: Any, step: int = 1) -> str:
        """A slice; start and end may be sizes."""
        ends = [self.size(n) for n in (start, end, axis, step)]
        return self.op("Slice", name, *ends)

    def along(self, name: str, matrix: Tensor, axis: int, rank: int) -> str:
        """A matrix (out, in) times the values along a dimension."""
        order = [d for d in range(rank) if d != axis] + [axis]
        made = self.op("MatMul", self.moved(name, order), self.constant(matrix.T.float()))
        return self.moved(made, [order.index(d) for d in range(rank)])

    def reduced(self, kind: str, name: str, axes: Sequence[int], *, keep: bool = True) -> str:
        return self.op(kind, name, self.constant(np.array(list(axes), np.int64)), keepdims=int(keep))

    def times(self, name: str, factor: float) -> str:
        return name if factor == 1 else self.op("Mul", name, self.constant(float(factor)))

    def plus(self, name: str, number: float) -> str:
        return self.op("Add", name, self.constant(float(number)))

    def clip(self, name: str, low: float, high: float) -> str:
        """min(max(x, low), high); an end may be infinite."""
        return self.op("Clip", name, *("" if math.isinf(end) else self.constant(float(end)) for end in (low, high)))

    def per(self, leaf: Any, axis: int, rank: int) -> str:
        """A vector of the network as one value for each place along a dimension."""
        return self.reshaped(self.real(leaf), [1] * axis + [-1] + [1] * (rank - axis - 1))

    def by_rule(self, target: str, like: Node, *arguments: Any, **options: Any) -> str:
        """The value that a rule writes for another operator than the node's own. Arguments may be names of values."""
        made = []
        for place, argument in enumerate(arguments):
            if isinstance(argument, str):
                name = f"/argument_{self.number}_{place}"
                self.values[name], self.shapes[name] = argument, like.shape
                made.append(Ref(name))
            elif isinstance(argument, Tensor):
                path = f"/tensor_{self.number}_{place}"
                self.tensors[path] = argument
                made.append(Param(path))
            else:
                made.append(argument)
        if target not in self.rules:
            raise Refused(f"no rule writes {target}, which it is made of")
        found = self.rules[target](self, replace(like, target=target, args=tuple(made), kwargs=options))
        return found if isinstance(found, str) else str(found[0])

    # Nodes.

    def add(self, node: Node) -> None:
        """Write a node of the graph, or note why that cannot be done."""
        lost = any(name not in self.values for name in node.refs)
        self.wide = self.beyond and not self._narrow(node)
        if not self.wide:
            self.narrow.add(node.name)
        rule = self.rules.get(node.target)
        try:
            if node.name in self.neurons:
                if not lost:
                    self._bind(node.name, self.fire(node, self.neurons[node.name]))
            elif rule is None:
                raise Refused("no rule writes this operator")
            elif not lost and self.beyond and node.target in CASTS:
                kind = kind_of(next(leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, torch.dtype)))
                self._bind(node.name, self.op("Cast", self.value(node.args[0]), to=self.code(kind)))
            elif not lost:  # what follows from a refused node is not refused again
                self._bind(node.name, rule(self, node))
        except Refused as error:
            self.refused.append(f"  {node.layer or node.name} ({node.target}): {error}")
        except TypeError:  # of int(size)
            if not any(isinstance(leaf, Size) for leaf in leaves((node.args, node.kwargs))):
                raise
            self.refused.append(f"  {node.layer or node.name} ({node.target}): it takes a number from the batch")

    def _narrow(self, node: Node) -> bool:
        """Whether a node gives real numbers of float32."""
        types = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, torch.dtype)]
        found = {name: self.results(Ref(name))[0] for name in node.refs if name in self.values}
        real = [name for name, value in found.items() if value is not None and self.kinds[value] == "float"]
        if real and node.target not in CASTS:
            return self.narrow.issuperset(real)
        return torch.float64 not in [*types, *(self.tensors[path].dtype for path in node.params)]

    def bound(self, leaf: Any) -> int:
        """How large the whole numbers of a value may be."""
        node = self.graph.by_name.get(leaf.name) if isinstance(leaf, Ref) else None
        while node is not None and node.name not in self.neurons and node.target in MOVED:
            node = self.graph.by_name.get(node.refs[0])
        neuron = None if node is None else self.neurons.get(node.name)
        return self.largest if neuron is None else max(neuron.levels, -neuron.lowest)

    def _bind(self, name: str, value: Value) -> None:
        """Give a value the name of its node, where it is what was made last."""
        last = self.nodes[-1] if self.nodes else None
        if isinstance(value, str) and last is not None and value.startswith("/") and list(last.output) == [value]:
            self.kinds[name] = self.kinds[value]
            value = last.output[0] = name
        self.values[name] = value

    def fire(self, node: Node, neuron: Neuron) -> str:
        """The neurons of one layer: their counts, and what these are worth."""
        z = self.value(node.args[0])
        count = f"/{node.name}/count"
        if isinstance(neuron, Even):
            theta, levels, offset = neuron.v_threshold.detach(), neuron.levels, torch.as_tensor(neuron.offset).float()
            scale = levels / theta
            moved = self.op("Mul", z, self.constant(scale.cpu()))
            shift = (neuron.shift - neuron.offset).detach() * scale + 0.5
            moved = self.op("Add", moved, self.constant(shift.cpu()))
            self.counted(self.op("Floor", moved), levels, count, neuron.lowest)
            value = self.op("Mul", count, self.constant((neuron.v_post.detach() / levels).cpu()))
            if bool((offset != 0).any()):
                value = self.op("Add", value, self.constant(offset.cpu()))
        elif isinstance(neuron, WholeNeuron):
            above = self.op("Sub", z, self.constant(neuron.first.detach().cpu()))
            steps = self.op("Div", above, self.constant(neuron.step.detach().cpu()))
            steps = self.op("Add", self.op("Floor", steps), self.constant(1.0))
            self.counted(steps, neuron.levels, count, neuron.lowest)
            value = self.as_counts(neuron, count)
        elif isinstance(neuron, WholeStaircase):
            self.reached(node, z, neuron.thresholds, count)
            value = self.as_counts(neuron, count)
        elif isinstance(neuron, WholeCurve):
            down, up = f"{count}/falling", f"{count}/rising"
            self.reached(node, z, neuron.falling, down)
            self.reached(node, z, neuron.rising, up)
            fallen = self.op("Sub", self.constant(neuron.start.detach().cpu()), down)
            self.counted(self.op("Add", fallen, up), neuron.levels, count, neuron.lowest)
            value = self.as_counts(neuron, count)
        elif isinstance(neuron, Staircase):
            reached = self.reached(node, z, neuron.thresholds, count)
            worth = self.op("Mul", reached, self.constant(self.each(node, neuron.outputs.diff(dim=0))))
            worth = self.op("ReduceSum", worth, self.constant(np.array([0])), keepdims=0)
            lowest = neuron.outputs[0].detach().cpu().float()
            value = self.op("Add", worth, self.constant(lowest))
        else:
            raise Refused(f"neurons of the kind '{neuron.kind}' have no rule")
        self.counts[node.name] = count
        return value

    def each(self, node: Node, table: Tensor) -> Tensor:
        """A table (S, …) of a node's neurons against (S, B, …)."""
        rest = table.detach().cpu()
        return rest.reshape(len(rest), *[1] * (len(node.shape) - rest.dim() + 1), *rest.shape[1:])

    def reached(self, node: Node, z: str, thresholds: Tensor, count: str) -> str:
        """Which of the thresholds (S, …) each z reaches, as numbers (S, B, …); count: the name of their sum."""
        axes = self.constant(np.array([0]))
        many = self.op("Unsqueeze", z, axes)
        reached = self.op("GreaterOrEqual", many, self.constant(self.each(node, thresholds)))
        reached = self.op("Cast", reached, to=self.code("float"))
        self.op("ReduceSum", reached, axes, out=count, keepdims=0)
        return reached

    def as_counts(self, neuron: Whole, count: str) -> str:
        """Counts as the whole numbers of few bits that they are, where the file has a type for them."""
        kinds = (np.int8, np.int16) if neuron.lowest < 0 else (np.uint8, np.uint16)
        dtype = next((kind for kind in kinds if neuron.levels <= np.iinfo(kind).max), None)
        if dtype is None or self.wide:
            return self.op("Identity", count)
        one = self.constant(1.0)
        if neuron.lowest < 0:  # no zero point: onnxruntime takes one of bytes behind it where it moves these operators
            code = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            value = self.op("DequantizeLinear", self.op("QuantizeLinear", count, one, output_dtype=code), one)
        else:
            zero = self.constant(0, dtype)
            value = self.op("DequantizeLinear", self.op("QuantizeLinear", count, one, zero), one, zero)
        self.kinds[value] = "float"
        return value

    def counted(self, value: str, most: float, out: str, least: float = 0.0) -> None:
        self.op("Clip", value, self.constant(float(least)), self.constant(float(most)), out=out)

    def finished(self) -> Written:
        """The model. Raises `UnsupportedError` that lists all that was refused."""
        names = list(dict.fromkeys(self.graph.outputs))
        for name in names:
            if name in self.values and self._pairs(name):
                self.refused.append(f"  output {name}: complex numbers have no form in the file")
        if self.refused:
            raise UnsupportedError("\n".join(("ONNX files cannot hold these parts of the network:", *self.refused)))
        helper = self.onnx.helper

        def info(name: str, shape: Sequence[Any], code: int) -> Any:
            # Sizes that follow from the batch, such as 2 · batch, have no name in a file: they stay open.
            batch = (BATCH if dim == Size(BATCH) else None if isinstance(dim, Size) else dim for dim in shape)
            return helper.make_tensor_value_info(name, code, list(batch))

        inputs = [info(i.name, i.shape, INPUTS[i.dtype]) for i in self.graph.inputs]
        outputs = []
        for name in names:
            value = self.value(Ref(name))
            if value != name:
                self.op("Identity", value, out=name)
            outputs.append(info(name, self.shapes[name], CODES[self.kinds[value]]))
        size = sum(len(tensor.raw_data) for tensor in self.constants.values())
        if size > MOST_BYTES:
            raise UnsupportedError(
                f"the weights take {size / 1e9:.1f} GB, and an ONNX file without others holds less than 2"
            )
        graph = helper.make_graph(self.nodes, "parspike", inputs, outputs, list(self.constants.values()))
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name="parspike", producer_version=__version__)
        model.ir_version = IR_VERSION
        self.onnx.checker.check_model(model)
        return Written(model, dict(Counter(node.op_type for node in self.nodes)), self.counts)

    def _pairs(self, name: str) -> bool:
        value = self.values[name]
        return isinstance(value, str) and self.kinds[value] == "complex"


Rule = Callable[[Model, Node], Value]
"""rule(model, node) → the value's name, after the nodes that compute it were put into the model."""


def arguments_of(node: Node, names: str) -> Iterator[Any]:
    """Arguments of an operator of torch's by their names in its schema."""
    given = named(node)
    return (given[name] for name in names.split())


def table_of(*rows: tuple[str, Rule]) -> dict[str, Rule]:
    """Rules by the operators of the graph, from rows of the operators' names and their rule."""
    own = ("parspike.", "getitem")
    return {name if name.startswith(own) else f"aten.{name}": rule for names, rule in rows for name in names.split()}


def dims_of(given: Any, rank: int) -> list[int]:
    """Dimensions as a list counted from 0; None or an empty list: all."""
    given = [given] if isinstance(given, int) else given
    return sorted(d % rank for d in (given or range(rank)))
