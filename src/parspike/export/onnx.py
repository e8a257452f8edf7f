"""The count network as ONNX: one pass over spike counts, in any runtime.

    x → Conv → z → Floor(z · L/θ + …) → Clip(0, L) → counts · amplitude → Conv → …

A parallel network becomes a graph of real numbers; its neurons are products, floors and clips. A network in whole
numbers (`parspike.lower.integers`) becomes a quantised graph: weights are int8 (int16 beyond 8 bits) behind
`DequantizeLinear` with scale 1, biases int32, counts pass through `QuantizeLinear` to uint8 and back. Every number in
it is whole and below 2^24, so a runtime that adds float32 numbers in any order gives the bits of parspike's own run.

The batch is free; other sizes are those of the example. Opset 21, which brought int16 to these operators.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parspike.errors import MissingExtraError, UnsupportedError
from parspike.graph import Graph, Node, Param, Ref, Size, leaves
from parspike.graph.signature import Conv, Linear, Pool, arguments
from parspike.neurons import Neuron, ParallelNeuron, Staircase, WholeNeuron
from parspike.snn import SNN
from parspike.version import __version__

__all__ = ["Written", "load", "session", "write"]

OPSET, IR_VERSION = 21, 10
EXACT = 1 << 24
MOST_BYTES = (1 << 31) - (1 << 20)
"""A protobuf message holds less than 2 GiB."""


@dataclass(frozen=True)
class Written:
    """A model. nodes: how many of each operator. counts: by node of the network's graph, the name of the value that
    holds the neurons' counts in the model."""

    model: Any
    nodes: Mapping[str, int]
    counts: Mapping[str, str]


def write(snn: SNN) -> Written:
    """The ONNX model of a network of parallel neurons.

    Raises `UnsupportedError` that lists every operator and kind of neurons without a rule here.
    """
    made = _Model(snn)
    for node in made.graph.nodes:
        made.add(node)
    return made.finished()


def load(path: Path) -> Any:
    """The model of a file that `write` made."""
    return _onnx().load(path, format="protobuf", load_external_data=False)


def session(model: Any, wanted: Sequence[str] = ()) -> Callable[[list[str], Mapping[str, Any]], list[Any]]:
    """run(names, inputs) → values of a model, by onnxruntime, or by onnx's own reference where that is not installed.
    wanted: names of values that are no outputs, and may be asked for too."""
    onnx = _onnx()
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    for name in wanted:
        shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        reference = ReferenceEvaluator(shown)
        return lambda names, feed: list(reference.run(names, dict(feed)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        engine = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedError(
            f"onnxruntime refuses the file ({(str(error).splitlines() or [type(error).__name__])[0]}): please report "
            "it, with the network"
        ) from error
    return lambda names, feed: list(engine.run(names, dict(feed)))


def _onnx() -> Any:
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingExtraError("onnx", extra="export") from error
    return onnx


class _Refused(Exception):  # noqa: N818 (control flow, never seen outside)
    """Why a node has no form in ONNX."""


class _Model:
    """The model in the making. Every value of the graph has its node's name."""

    def __init__(self, snn: SNN) -> None:
        self.onnx = _onnx()
        self.snn, self.neurons = snn, snn.counting()
        self.graph: Graph = snn.graph.at_example("an exported file has one size of its inputs")
        self.tensors = {path: tensor.detach().cpu() for path, tensor in snn.tensors().items()}
        self.whole = snn.provenance.get("lowered") == "integers"
        largest = snn.provenance.get("largest", 0)
        if self.whole and largest >= EXACT:
            raise UnsupportedError(
                f"the whole numbers of this network reach {largest:.3g}, and the float32 sums of ONNX are exact below "
                "2^24 alone: lower it with fewer bits (weights=6, inputs=6), or write the network of real numbers"
            )
        self.shapes = {i.name: i.shape for i in self.graph.inputs} | {n.name: n.shape for n in self.graph.nodes}
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.counts: dict[str, str] = {}
        self.refused: list[str] = []
        self.number = 0

    # Building blocks.

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        self.number += 1
        name = out or f"/{kind}_{self.number}"  # no node of the graph begins so
        self.nodes.append(
            self.onnx.helper.make_node(kind, list(inputs), [name], name=f"{kind}_{self.number}", **attributes)
        )
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A tensor or number as an initializer; equal ones are stored once."""
        array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
        dtype = dtype or (np.float32 if array.dtype.kind == "f" else np.int64)
        array = np.array(array, dtype, order="C")  # a number stays one, which ascontiguousarray would make a vector
        key = f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
        if key not in self.constants:
            self.constants[key] = self.onnx.numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        return self.constants[key].name

    def integers(self, value: Tensor, *, bias: bool = False) -> str:
        """Whole numbers as the smallest integers that hold them, widened where they are read."""
        most = int(value.abs().max())
        dtype = np.int32 if bias or most > 32767 else np.int16 if most > 127 else np.int8
        stored = self.constant(value, dtype)
        return self.op("DequantizeLinear", stored, self.constant(1.0))

    def value(self, leaf: Any, *, bias: bool = False) -> str:
        """An argument that is a value of the network, a tensor or a number."""
        if isinstance(leaf, Ref):
            return leaf.name
        if isinstance(leaf, Param):
            tensor = self.tensors[leaf.path]
            if self.whole and leaf.path.startswith("whole.") and not leaf.path.endswith(".grid"):
                return self.integers(tensor, bias=bias)
            return self.constant(tensor.float() if tensor.is_floating_point() else tensor)
        return self.constant(float(leaf))

    def shape(self, name: str) -> tuple[Any, ...]:
        return self.shapes[name]

    def rank(self, leaf: Any) -> int:
        return len(self.shape(leaf.name)) if isinstance(leaf, Ref) else self.tensors[leaf.path].dim()

    def sizes(self, shape: Sequence[Any]) -> str:
        """A target shape, in which at most one size depends on the batch."""
        free = [place for place, dim in enumerate(shape) if isinstance(dim, Size)]
        if len(free) > 1:
            raise _Refused("several sizes of its output depend on the batch")
        return self.constant(np.array([-1 if isinstance(dim, Size) else int(dim) for dim in shape], np.int64))

    # Nodes.

    def add(self, node: Node) -> None:
        try:
            if node.name in self.neurons:
                self.fire(node, self.neurons[node.name])
            else:
                rule = RULES.get(node.target)
                if rule is None:
                    raise _Refused("no rule writes this operator")
                rule(self, node)
        except _Refused as error:
            self.refused.append(f"  {node.layer or node.name} ({node.target}): {error}")

    def fire(self, node: Node, neuron: Neuron) -> None:
        """The neurons of one layer: their counts, and what these are worth."""
        z = node.args[0].name
        count = f"/{node.name}/count"
        if isinstance(neuron, ParallelNeuron):
            theta, levels = neuron.v_threshold.detach(), neuron.levels
            scale = levels / theta
            moved = self.op("Mul", z, self.constant(scale.cpu()))
            moved = self.op("Add", moved, self.constant((neuron._shift().detach() * scale + 0.5).cpu()))
            self.clipped(self.op("Floor", moved), levels, count)
            mean = self.op(
                "Mul",
                count,
                self.constant((neuron.v_post.detach() / levels).cpu()),
                out="" if neuron.offsets else node.name,
            )
            if neuron.offsets:
                self.op("Add", mean, self.constant(torch.as_tensor(neuron.offset).float().cpu()), out=node.name)
        elif isinstance(neuron, WholeNeuron):
            above = self.op("Sub", z, self.constant(neuron.first.detach().float().cpu()))
            steps = self.op("Div", above, self.constant(neuron.step.detach().float().cpu()))
            steps = self.op("Add", self.op("Floor", steps), self.constant(1.0))
            self.clipped(steps, neuron.levels, count)
            if neuron.levels > 65535:
                self.op("Identity", count, out=node.name)
            else:
                dtype = np.uint8 if neuron.levels < 256 else np.uint16
                one, zero = self.constant(1.0), self.constant(0, dtype)
                self.op("DequantizeLinear", self.op("QuantizeLinear", count, one, zero), one, zero, out=node.name)
        elif isinstance(neuron, Staircase):
            rank = len(node.shape)

            def each(table: Tensor) -> str:
                """(S, …) against (S, B, …)"""
                rest = table.detach().cpu().float()
                return self.constant(rest.reshape(len(rest), *[1] * (rank - rest.dim() + 1), *rest.shape[1:]))

            many = self.op("Unsqueeze", z, self.constant(np.array([0])))
            reached = self.op("Cast", self.op("GreaterOrEqual", many, each(neuron.thresholds)), to=1)
            axes = self.constant(np.array([0]))
            self.op("ReduceSum", reached, axes, out=count, keepdims=0)
            worth = self.op("ReduceSum", self.op("Mul", reached, each(neuron.outputs.diff(dim=0))), axes, keepdims=0)
            lowest = neuron.outputs[0].detach().cpu().float()
            self.op("Add", worth, self.constant(lowest), out=node.name)
        else:
            raise _Refused(f"neurons of the kind '{neuron.kind}' have no rule")
        self.counts[node.name] = count

    def clipped(self, value: str, most: float, out: str) -> None:
        self.op("Clip", value, self.constant(0.0), self.constant(float(most)), out=out)

    def finished(self) -> Written:
        if self.refused:
            raise UnsupportedError("\n".join(("ONNX files cannot hold these parts of the network:", *self.refused)))
        helper = self.onnx.helper
        kinds = {torch.float32: 1, torch.float64: 11, torch.int64: 7, torch.int32: 6, torch.float16: 10, torch.bool: 9}

        def info(name: str, shape: Sequence[Any], dtype: torch.dtype) -> Any:
            return helper.make_tensor_value_info(
                name, kinds[dtype], ["batch" if isinstance(d, Size) else d for d in shape]
            )

        inputs = [info(i.name, i.shape, i.dtype) for i in self.graph.inputs]
        names = list(dict.fromkeys(self.graph.outputs))
        outputs = [info(name, self.shape(name), torch.float32) for name in names]
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


Rule = Callable[[_Model, Node], None]


def _argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _conv(model: _Model, node: Node) -> None:
    found = arguments(node)
    if not isinstance(found, Conv) or not isinstance(found.weight, Param):
        raise _Refused("its weights are no tensor of the network")
    kernel = list(model.tensors[found.weight.path].shape[2:])
    pads = found.padded(kernel)
    common = {
        "kernel_shape": kernel, "strides": list(found.stride), "dilations": list(found.dilation), "group": found.groups,
        "pads": [before for before, _ in pads] + [after for _, after in pads],
    }  # fmt: skip
    inputs = [model.value(found.input), model.value(found.weight)]
    if found.bias is not None:
        inputs.append(model.value(found.bias, bias=True))
    if found.transposed:
        model.op("ConvTranspose", *inputs, out=node.name, output_padding=list(found.output_padding), **common)
    else:
        model.op("Conv", *inputs, out=node.name, **common)


def _linear(model: _Model, node: Node) -> None:
    found = arguments(node)
    if not isinstance(found, Linear) or not isinstance(found.weight, Param):
        _matmul(model, node)
        return
    weight = model.value(found.weight)
    if not found.transposed:
        weight = model.op("Transpose", weight, perm=[1, 0])
    product = model.op("MatMul", model.value(found.input), weight, out=node.name if found.bias is None else "")
    if found.bias is not None:
        model.op("Add", product, model.value(found.bias, bias=True), out=node.name)


def _matmul(model: _Model, node: Node) -> None:
    if node.target not in ("aten.matmul.default", "aten.mm.default", "aten.bmm.default") or node.kwargs:
        raise _Refused("no rule writes this form of it")
    model.op("MatMul", *(model.value(arg) for arg in node.args), out=node.name)


def _binary(kind: str, *, turned: bool = False) -> Rule:
    def rule(model: _Model, node: Node) -> None:
        if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2 or node.kwargs.get("rounding_mode"):
            raise _Refused("no rule writes this form of it")
        sides = [model.value(arg) for arg in node.args]
        model.op(kind, *(sides[::-1] if turned else sides), out=node.name)

    return rule


def _unary(kind: str, **attributes: Any) -> Rule:
    def rule(model: _Model, node: Node) -> None:
        model.op(kind, model.value(node.args[0]), out=node.name, **attributes)

    return rule


def _scale_shift(model: _Model, node: Node) -> None:
    shape = [1, -1] + [1] * (len(node.shape) - 2)
    scale, shift = (model.tensors[param.path].float().reshape(shape) for param in node.args[1:3])
    model.op(
        "Add", model.op("Mul", model.value(node.args[0]), model.constant(scale)), model.constant(shift), out=node.name
    )


def _pool(model: _Model, node: Node) -> None:
    pool = arguments(node)
    if not isinstance(pool, Pool):
        raise _Refused("no rule writes this form of it")
    shape, kind = model.shape(pool.input.name), "AveragePool" if pool.average else "MaxPool"
    kernel, stride, padding, dilation = pool.kernel, pool.stride, pool.padding, pool.dilation
    if pool.output_size:
        inside = shape[-pool.rank :]
        wanted = [size if out is None else out for size, out in zip(inside, pool.output_size, strict=True)]
        if any(isinstance(size, Size) or size % out for size, out in zip(inside, wanted, strict=True)):
            raise _Refused("its windows are of unlike sizes")
        kernel = stride = tuple(size // out for size, out in zip(inside, wanted, strict=True))
        padding, dilation = (0,) * pool.rank, (1,) * pool.rank
    if pool.divisor is not None:
        raise _Refused("it divides by a number of its own")
    if len(shape) != pool.rank + 2:
        raise _Refused("its input has no batch")
    more: dict[str, Any] = {"count_include_pad": int(pool.count_include_pad)} if pool.average else {}
    if not pool.average or any(d != 1 for d in dilation):
        more["dilations"] = list(dilation)
    model.op(
        kind, pool.input.name, out=node.name, kernel_shape=list(kernel), strides=list(stride),
        pads=[*padding, *padding], ceil_mode=int(pool.ceil_mode), **more,
    )  # fmt: skip


def _reduce(kind: str) -> Rule:
    def rule(model: _Model, node: Node) -> None:
        rank = model.rank(node.args[0])
        given = _argument(node, 1, "dim")
        given = [given] if isinstance(given, int) else given
        dims = [d % rank for d in (given if given else range(rank))]
        keep = int(bool(_argument(node, 2, "keepdim", False)))
        model.op(kind, model.value(node.args[0]), model.constant(np.array(dims)), out=node.name, keepdims=keep)

    return rule


def _reshape(model: _Model, node: Node) -> None:
    model.op("Reshape", model.value(node.args[0]), model.sizes(node.shape), out=node.name)


def _permute(model: _Model, node: Node) -> None:
    rank = model.rank(node.args[0])
    order = list(range(rank))
    if node.target == "aten.permute.default":
        order = [d % rank for d in node.args[1]]
    elif node.target == "aten.t.default":
        order.reverse()
    else:
        one, two = (d % rank for d in node.args[1:3])
        order[one], order[two] = order[two], order[one]
    model.op("Transpose", model.value(node.args[0]), out=node.name, perm=order)


def _expand(model: _Model, node: Node) -> None:
    read = model.shape(node.args[0].name)
    if any(isinstance(dim, Size) for dim in node.shape) and not any(isinstance(dim, Size) for dim in read):
        raise _Refused("it repeats a constant along the batch")
    target = [1 if isinstance(dim, Size) else int(dim) for dim in node.shape]
    model.op("Expand", model.value(node.args[0]), model.constant(np.array(target)), out=node.name)


def _cat(model: _Model, node: Node) -> None:
    parts = node.args[0]
    axis = _argument(node, 1, "dim", 0) % len(node.shape)
    model.op("Concat", *(model.value(part) for part in parts), out=node.name, axis=axis)


def _slice(model: _Model, node: Node) -> None:
    axis = _argument(node, 1, "dim", 0) % len(node.shape)
    start, end, step = (_argument(node, place, name, default) for place, name, default in
                        ((2, "start", None), (3, "end", None), (4, "step", 1)))  # fmt: skip
    ends = [0 if start is None else start, np.iinfo(np.int64).max if end is None else end, axis, step]
    if any(isinstance(end, Size) for end in ends):
        raise _Refused("where it cuts depends on the batch")
    model.op("Slice", model.value(node.args[0]), *(model.constant(np.array([int(n)])) for n in ends), out=node.name)


def _select(model: _Model, node: Node) -> None:
    axis = node.args[1] % model.rank(node.args[0])
    model.op("Gather", model.value(node.args[0]), model.constant(np.array(int(node.args[2]))), out=node.name, axis=axis)


def _pad(model: _Model, node: Node) -> None:
    pads = list(node.args[1])
    mode, number = "constant", _argument(node, 2, "value", 0)
    if node.target == "aten.pad.default":
        mode, number = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value", None)
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.get(mode)
    if mode is None or any(isinstance(n, Size) for n in pads):
        raise _Refused("no rule writes this form of it")
    rank = model.rank(node.args[0])
    before, after = [0] * rank, [0] * rank
    for place in range(len(pads) // 2):
        before[rank - 1 - place], after[rank - 1 - place] = int(pads[2 * place]), int(pads[2 * place + 1])
    inputs = [model.value(node.args[0]), model.constant(np.array(before + after))]
    if mode == "constant":
        inputs.append(model.constant(float(number or 0)))
    model.op("Pad", *inputs, out=node.name, mode=mode)


def _clamp(model: _Model, node: Node) -> None:
    low, high = (
        ([*node.args[1:], None, None][:2])
        if node.target != "aten.hardtanh.default"
        else [*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :]]
    )
    low, high = node.kwargs.get("min", low), node.kwargs.get("max", high)
    if node.target == "aten.relu6.default":
        low, high = 0.0, 6.0
    ends = []
    for end in (low, high):
        if isinstance(end, (Ref, Param)) and (isinstance(end, Ref) or model.tensors[end.path].numel() != 1):
            raise _Refused("its bounds are tensors")
        ends.append(
            ""
            if end is None
            else model.constant(float(model.tensors[end.path]) if isinstance(end, Param) else float(end))
        )
    model.op("Clip", model.value(node.args[0]), *ends, out=node.name)


def _softmax(model: _Model, node: Node) -> None:
    axis = node.args[1] % len(node.shape)
    model.op("LogSoftmax" if "log" in node.target else "Softmax", model.value(node.args[0]), out=node.name, axis=axis)


def _layer_norm(model: _Model, node: Node) -> None:
    x, normalized = node.args[:2]
    weight, bias, eps = (_argument(node, place, name, default) for place, name, default in
                         ((2, "weight", None), (3, "bias", None), (4, "eps", 1e-5)))  # fmt: skip
    ones = model.constant(np.ones([int(n) for n in normalized], np.float32)) if weight is None else model.value(weight)
    inputs = [model.value(x), ones] + ([] if bias is None else [model.value(bias)])
    model.op("LayerNormalization", *inputs, out=node.name, axis=-len(normalized), epsilon=float(eps))


def _gelu(model: _Model, node: Node) -> None:
    model.op("Gelu", model.value(node.args[0]), out=node.name, approximate=node.kwargs.get("approximate", "none"))


def _silu(model: _Model, node: Node) -> None:
    x = model.value(node.args[0])
    model.op("Mul", x, model.op("Sigmoid", x), out=node.name)


def _upsample(model: _Model, node: Node) -> None:
    shape = model.shape(node.args[0].name)
    if any(isinstance(dim, Size) for dim in (*shape[1:], *node.shape[1:])):
        raise _Refused("its sizes vary")
    factors = [1.0, 1.0, *(out / size for out, size in zip(node.shape[2:], shape[2:], strict=True))]
    if any(factor != int(factor) for factor in factors):
        raise _Refused("its factors are no whole numbers")
    model.op("Resize", model.value(node.args[0]), "", model.constant(np.array(factors, np.float32)), out=node.name,
             mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip


def _identity(model: _Model, node: Node) -> None:
    dtypes = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, torch.dtype)]
    if any(dtype not in (torch.float32, torch.float64) for dtype in dtypes):
        raise _Refused("the file computes in float32")
    model.op("Identity", model.value(node.args[0]), out=node.name)


def _rules() -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    for names, rule in (
        ("conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding conv3d.padding "
         "conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input", _conv),
        ("linear.default addmm.default mm.default matmul.default bmm.default", _linear),
        ("add.Tensor add.Scalar", _binary("Add")), ("sub.Tensor sub.Scalar", _binary("Sub")),
        ("rsub.Tensor rsub.Scalar", _binary("Sub", turned=True)), ("mul.Tensor mul.Scalar", _binary("Mul")),
        ("div.Tensor div.Scalar", _binary("Div")), ("pow.Tensor_Scalar", _binary("Pow")),
        ("maximum.default", _binary("Max")), ("minimum.default", _binary("Min")),
        ("neg.default", _unary("Neg")), ("relu.default", _unary("Relu")), ("sigmoid.default", _unary("Sigmoid")),
        ("tanh.default", _unary("Tanh")), ("exp.default", _unary("Exp")), ("erf.default", _unary("Erf")),
        ("sqrt.default", _unary("Sqrt")), ("abs.default", _unary("Abs")), ("log.default", _unary("Log")),
        ("reciprocal.default", _unary("Reciprocal")), ("round.default", _unary("Round")),
        ("floor.default", _unary("Floor")), ("ceil.default", _unary("Ceil")),
        ("hardswish.default", _unary("HardSwish")),
        ("hardsigmoid.default", _unary("HardSigmoid", alpha=1 / 6, beta=0.5)), ("mish.default", _unary("Mish")),
        (" ".join(f"{kind}_pool{d}d.default" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for d in "123"),
         _pool),
        ("mean.dim", _reduce("ReduceMean")), ("sum.dim_IntList", _reduce("ReduceSum")),
        ("amax.default", _reduce("ReduceMax")), ("amin.default", _reduce("ReduceMin")),
        ("reshape.default squeeze.dim squeeze.dims squeeze.default unsqueeze.default", _reshape),
        ("permute.default transpose.int t.default swapaxes.default", _permute),
        ("expand.default", _expand), ("cat.default", _cat), ("slice.Tensor", _slice), ("select.int", _select),
        ("constant_pad_nd.default pad.default", _pad),
        ("clamp.default clamp.Tensor clamp_min.default hardtanh.default relu6.default", _clamp),
        ("softmax.int _softmax.default log_softmax.int _log_softmax.default", _softmax),
        ("layer_norm.default", _layer_norm), ("gelu.default", _gelu), ("silu.default", _silu),
        ("upsample_nearest2d.vec upsample_nearest2d.default upsample_nearest1d.vec upsample_nearest1d.default",
         _upsample),
        ("clone.default contiguous.default _to_copy.default to.dtype", _identity),
    ):  # fmt: skip
        table |= {f"aten.{name}": rule for name in names.split()}
    table["parspike.scale_shift"] = _scale_shift
    return table


RULES = _rules()
"""By the operators of the graph."""
