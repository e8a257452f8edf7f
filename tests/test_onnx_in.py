"""ONNX files: every operator against onnxruntime on random shapes and attributes, whole networks, and hostile files."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import parspike
from parspike.errors import FileError, InputError, MissingExtraError, OptionError, UnsupportedError
from parspike.onnx_in.rules import RULES

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - the line above skips where it is absent

NEWEST = 22
Array = np.ndarray
Rng = np.random.Generator

# ------------------------------------------------------------------------------------------------------- making files


def info(name: str, array: Array | None = None, shape: Any = None, dtype: int | None = None) -> Any:
    kind = dtype or helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, list(array.shape) if shape is None and array is not None else shape)


def file_of(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: dict[str, Array], opset: int
) -> Any:
    made = [numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape), name) for name, a in constants.items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), made)
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def save(model: Any, folder: Path, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def by_onnxruntime(model: Any, feed: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)


def compare(
    op: str, inputs: Sequence[Array | None], folder: Path, attributes: dict[str, Any] | None = None, *,
    opset: int = NEWEST, constant: Sequence[int] = (), outputs: int = 1, domain: str = "", tolerance: float = 2e-5,
) -> list[Array]:  # fmt: skip
    """Run a node by onnxruntime and by parspike. constant: positions of inputs that are constants of the file."""
    names = ["" if a is None else f"x{i}" for i, a in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], name="node", domain=domain, **(attributes or {}))
    # A number alone has no batch, so it can only be a constant.
    fixed = {n: a for i, (n, a) in enumerate(zip(names, inputs, strict=True)) if n and (i in constant or a.ndim == 0)}
    varying = {n: a for n, a in zip(names, inputs, strict=True) if n and n not in fixed}
    outs = [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)]
    # Sizes are left open, so that nothing but the rule decides.
    given_ = [info(n, a, [f"{n}_{d}" for d in range(a.ndim)]) for n, a in varying.items()]
    model = file_of([node], given_, outs, fixed, opset)
    wanted = by_onnxruntime(model, varying)
    network = parspike.from_onnx(save(model, folder))
    with torch.no_grad():
        got = network(*(torch.from_numpy(a.copy()) for a in varying.values()))
    got = got if isinstance(got, tuple) else (got,)
    for one, other in zip(got, wanted, strict=True):
        assert tuple(one.shape) == other.shape, (op, attributes)
        if np.issubdtype(other.dtype, np.floating):
            assert one.numpy().dtype == other.dtype, (op, attributes)
            np.testing.assert_allclose(one.numpy(), other, rtol=tolerance, atol=tolerance, err_msg=f"{op} {attributes}")
        else:
            np.testing.assert_array_equal(one.numpy().astype(other.dtype), other, err_msg=f"{op} {attributes}")
    return wanted


# ------------------------------------------------------------------------------------------------ a draw of every rule

DRAWS: dict[str, Callable[[Rng, Path], Any]] = {}


def draw(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that draws shapes and attributes and compares: called with the operator's name."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        for name in names.split():
            DRAWS[name] = functools.partial(run, name)
        return run

    return register


def values(rng: Rng, *shape: int, low: float = -3, high: float = 3) -> Array:
    return rng.uniform(low, high, shape).astype(np.float32)


def some_shape(rng: Rng, least: int = 1, most: int = 4) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(1, 6, rng.integers(least, most + 1)))


def either(rng: Rng, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


@draw("Relu Sigmoid Tanh Neg Abs Exp Floor Ceil Round Sign Sin Cos Atan Sinh Cosh Asinh Erf Softplus Softsign HardSwish "
      "Mish Identity")  # fmt: skip
def unary(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, *some_shape(rng))
    if op == "Round":
        x = np.round(x * 2) / 2  # halves are rounded to the even number
    compare(op, [x], folder)


@draw("Sqrt Log Reciprocal Acosh")
def positive(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, *some_shape(rng), low=1.01, high=4)], folder)


@draw("Asin Acos Atanh Tan")
def within_one(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, *some_shape(rng), low=-0.9, high=0.9)], folder)


@draw("IsNaN")
def is_nan(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, 3, 4)
    x[rng.integers(3), rng.integers(4)] = np.nan
    compare(op, [x], folder)


@draw("Not")
def negation(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [rng.random(some_shape(rng)) > 0.5], folder)


@draw("LeakyRelu Elu Celu Selu ThresholdedRelu HardSigmoid Shrink Gelu Hardmax")
def with_options(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, *some_shape(rng))
    options = {
        "LeakyRelu": {"alpha": 0.3}, "Elu": {"alpha": 0.7}, "Celu": {"alpha": 1.3}, "Selu": {"alpha": 1.2, "gamma": 1.1},
        "ThresholdedRelu": {"alpha": 0.8}, "HardSigmoid": either(rng, {"alpha": 0.3, "beta": 0.4}, {"alpha": 1 / 6}),
        "Shrink": {"bias": either(rng, 0.0, 0.6, 1.5), "lambd": 0.6}, "Gelu": {"approximate": either(rng, "none", "tanh")},
        "Hardmax": {"axis": int(rng.integers(-x.ndim, x.ndim))},
    }[op]  # fmt: skip
    compare(op, [x], folder, either(rng, {}, options), tolerance=1e-4)


@draw("Add Sub Mul Div Equal Greater Less GreaterOrEqual LessOrEqual")
def binary(op: str, rng: Rng, folder: Path) -> None:
    shape = some_shape(rng)
    other = tuple(either(rng, n, 1) for n in shape[int(rng.integers(len(shape))) :])
    if rng.random() < 0.4:
        kind = either(rng, np.int64, np.int32)
        a, b = rng.integers(-7, 8, shape).astype(kind), rng.integers(1, 5, other).astype(kind) * either(rng, 1, -1)
    else:
        a, b = np.round(values(rng, *shape)), values(rng, *other, low=0.5)
        b = np.round(b) if op != "Div" else b
    compare(op, either(rng, [a, b], [b, a]) if op != "Div" else [a, b], folder, constant=either(rng, (), (1,), (0,)))


@draw("And Or Xor")
def logic(op: str, rng: Rng, folder: Path) -> None:
    shape = some_shape(rng, 2)
    compare(op, [rng.random(shape) > 0.5, rng.random(shape[1:]) > 0.5], folder)


@draw("Mod")
def modulo(op: str, rng: Rng, folder: Path) -> None:
    shape = some_shape(rng)
    if rng.random() < 0.5:
        compare(op, [rng.integers(-9, 9, shape), rng.integers(1, 5, shape) * either(rng, 1, -1)], folder,
                {"fmod": either(rng, 0, 1)})  # fmt: skip
    else:
        compare(op, [values(rng, *shape), values(rng, *shape, low=0.5)], folder, {"fmod": 1})


@draw("Pow")
def power(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, *some_shape(rng), low=0.2)
    exponent = np.array(either(rng, 2.0, 0.5, 3.0, -1.0, 1.7), either(rng, np.float32, np.int64))
    compare(op, [x, either(rng, exponent, exponent.reshape(1))], folder, constant=(1,))
    compare(op, [x, values(rng, x.shape[-1])], folder)
    compare(op, [rng.integers(1, 5, (3,)), np.array(2, np.int64)], folder, constant=(1,))


@draw("Max Min Sum Mean")
def variadic(op: str, rng: Rng, folder: Path) -> None:
    shape = some_shape(rng, 2)
    compare(op, [values(rng, *either(rng, shape, shape[1:])) for _ in range(int(rng.integers(1, 4)))], folder)


@draw("Clip")
def clip(op: str, rng: Rng, folder: Path) -> None:
    x, low, high = values(rng, *some_shape(rng), low=-8, high=8), *either(rng, (-1, 2), (0, 6), (0, 1), (0.5, 3))
    opset = either(rng, 6, 10) if rng.random() < 0.3 else NEWEST
    if opset < 11:
        compare(op, [x], folder, either(rng, {"min": float(low)}, {"max": float(high)}, {"min": -1.0, "max": 2.0}),
                opset=max(opset, 7))  # fmt: skip
    else:
        bounds = [np.array(b, np.float32) for b in (low, high)]
        given_ = either(rng, [x, *bounds], [x, bounds[0]], [x, None, bounds[1]], [x])
        compare(op, given_, folder, constant=either(rng, (1, 2), ())[: max(0, len(given_) - 1)])


@draw("PRelu")
def prelu(op: str, rng: Rng, folder: Path) -> None:
    slope = values(rng, *either(rng, (1,), (4, 1, 1), (1,), (3, 5), (4, 3, 5)))
    compare(op, [values(rng, 2, 4, 3, 5), slope], folder, constant=either(rng, (1,), ()))


@draw("Where")
def where(op: str, rng: Rng, folder: Path) -> None:
    shape = some_shape(rng)
    compare(op, [rng.random(shape) > 0.5, values(rng, *shape), values(rng, *shape[1:])], folder,
            constant=either(rng, (), (2,)))  # fmt: skip


@draw("Cast")
def cast(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, *some_shape(rng))
    for kind in (TensorProto.INT64, TensorProto.INT32, TensorProto.DOUBLE, TensorProto.BOOL, TensorProto.FLOAT16):
        compare(op, [x], folder, {"to": kind}, tolerance=2e-3)


@draw("CastLike")
def cast_like(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 3), np.zeros(1, np.int64)], folder)


@draw("CumSum")
def cumsum(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, *some_shape(rng))
    options = {"exclusive": either(rng, 0, 1), "reverse": either(rng, 0, 1)}
    compare(op, [x, np.array(rng.integers(-x.ndim, x.ndim))], folder, options, constant=(1,), tolerance=1e-4)


@draw("Dropout")
def dropout(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 3, 4)], folder)


@draw("ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum "
      "ReduceLogSumExp")  # fmt: skip
def reduce(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, *some_shape(rng), low=0.5, high=2)
    axes = [int(a) for a in rng.permutation(x.ndim)[: rng.integers(0, x.ndim + 1)]]
    axes = [a - either(rng, 0, x.ndim) for a in axes]
    options: dict[str, Any] = {"keepdims": either(rng, 0, 1)}
    if rng.random() < 0.5:  # axes are an attribute: of ReduceSum before opset 13, of the others before 18
        compare(op, [x], folder, {**options, **({"axes": axes} if axes else {})}, opset=11, tolerance=1e-4)
    else:
        given_ = [x, np.array(axes, np.int64)] if axes or rng.random() < 0.5 else [x]
        options["noop_with_empty_axes"] = either(rng, 0, 1)
        if not axes and options["noop_with_empty_axes"] and op not in ("ReduceSum", "ReduceMean", "ReduceMax"):
            options["noop_with_empty_axes"] = 0  # onnxruntime and the text of the operator differ on these
        compare(op, given_, folder, options, opset=18, constant=(1,) if len(given_) > 1 else (), tolerance=1e-4)


@draw("Softmax LogSoftmax")
def softmax(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, *some_shape(rng, 2))
    for opset in (11, 13):
        compare(op, [x], folder, either(rng, {}, {"axis": int(rng.integers(x.ndim))}), opset=opset)


@draw("ArgMax ArgMin")
def arg(op: str, rng: Rng, folder: Path) -> None:
    x = np.round(values(rng, *some_shape(rng)))
    compare(op, [x], folder, {"axis": int(rng.integers(-x.ndim, x.ndim)), "keepdims": either(rng, 0, 1),
                              "select_last_index": either(rng, 0, 1)})  # fmt: skip


@draw("TopK")
def top_k(op: str, rng: Rng, folder: Path) -> None:
    x = rng.permutation(60).reshape(3, 4, 5).astype(np.float32)
    compare(op, [x, np.array([2])], folder, {"axis": int(rng.integers(-3, 3)), "largest": either(rng, 0, 1)},
            constant=(1,), outputs=2)  # fmt: skip


@draw("DequantizeLinear")
def dequantize(op: str, rng: Rng, folder: Path) -> None:
    x = rng.integers(-100, 100, (3, 4)).astype(np.int8)
    single = np.float32(0.1).reshape(()), np.int8(3).reshape(())
    each = values(rng, 4, low=0.01, high=0.2), rng.integers(-5, 5, 4).astype(np.int8)
    compare(op, [x, *single], folder, constant=(1, 2), opset=19)
    compare(op, [x, *each], folder, {"axis": either(rng, 1, -1)}, constant=(1, 2), opset=19)


@draw("QuantizeLinear")
def quantize(op: str, rng: Rng, folder: Path) -> None:
    kind = either(rng, np.uint8, np.int8)
    compare(op, [values(rng, 3, 4, high=40), np.array(0.25, np.float32), np.array(3, kind)], folder, constant=(1, 2))
    compare(op, [values(rng, 3, 4), values(rng, 3, low=0.1, high=1), np.zeros(3, kind)], folder, {"axis": 0},
            constant=(1, 2))  # fmt: skip


# shapes


@draw("Shape")
def shape_of(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 2, 3, 4)], folder, either(rng, {}, {"start": 1}, {"start": -2, "end": 3}))


@draw("Size")
def size_of(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 2, 3, 4)], folder)


@draw("Reshape")
def reshape(op: str, rng: Rng, folder: Path) -> None:
    wanted = either(rng, [0, -1], [2, 3, 20], [0, 0, 5, 4], [-1], [4, 0, 10][::1], [0, 3, -1, 2])
    compare(op, [values(rng, 2, 3, 20), np.array([6, 20] if wanted == [4, 0, 10] else wanted)], folder, constant=(1,))
    compare(op, [values(rng, 0, 3), np.array([3, 0])], folder, {"allowzero": 1}, constant=(1,))


@draw("Flatten")
def flatten(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 2, 3, 4)], folder, {"axis": int(rng.integers(-3, 4))})


@draw("Squeeze Unsqueeze")
def squeeze(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, 2, 1, 3, 1)
    axes = either(rng, [1], [3], [-1, 1], [1, 3]) if op == "Squeeze" else either(rng, [0], [2, 0], [-1, 1])
    if rng.random() < 0.5:
        compare(op, [x], folder, {"axes": axes}, opset=11)
    else:
        compare(op, [x, np.array(axes)], folder, constant=(1,))


@draw("Transpose")
def transpose(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, *some_shape(rng))
    compare(op, [x], folder, either(rng, {}, {"perm": [int(a) for a in rng.permutation(x.ndim)]}))


@draw("Concat")
def concat(op: str, rng: Rng, folder: Path) -> None:
    shape, axis = list(some_shape(rng)), 0
    axis = int(rng.integers(-len(shape), len(shape)))
    given_ = []
    for _ in range(int(rng.integers(1, 4))):
        shape[axis] = int(rng.integers(1, 4))
        given_.append(values(rng, *shape))
    compare(op, given_, folder, {"axis": axis}, constant=either(rng, (), (0,)) if len(given_) > 1 else ())


@draw("Split")
def split(op: str, rng: Rng, folder: Path) -> None:
    x, axis = values(rng, 4, 6), int(rng.integers(-2, 2))
    parts = [1, x.shape[axis] - 1]
    compare(op, [x], folder, {"axis": axis, "split": parts}, opset=11, outputs=2)
    compare(op, [x, np.array(parts)], folder, {"axis": axis}, opset=13, constant=(1,), outputs=2)
    compare(op, [values(rng, 7, 5)], folder, {"axis": axis, "num_outputs": 3}, opset=18, outputs=3)


@draw("Slice")
def slice_(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, 5, 7)
    far = either(rng, 9, (1 << 31) - 1, (1 << 63) - 1)
    starts, ends, steps = [], [], []
    for n in x.shape:
        step = int(either(rng, 1, 1, 2, 3, -1, -2))
        one, two = int(rng.integers(-n - 1, n + 1)), int(rng.integers(-n - 1, n + 1))
        starts.append(either(rng, one, far) if step < 0 else one)
        ends.append(either(rng, two, -far) if step < 0 else either(rng, two, far))
        steps.append(step)
    if rng.random() < 0.3:
        compare(op, [x], folder, {"starts": [1], "ends": [-1], "axes": [int(rng.integers(2))]}, opset=9)
    else:
        axes = either(rng, [0, 1], [-2, -1], [1, 0])
        places = [axis % 2 for axis in axes]
        given_ = [np.array([v[p] for p in places]) for v in (starts, ends)]
        compare(op, [x, *given_, np.array(axes), np.array([steps[p] for p in places])], folder, constant=(1, 2, 3, 4))


@draw("Gather")
def gather(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, 5, 4, 5)
    axis = int(rng.integers(-3, 3))
    n = x.shape[axis]
    indices = rng.integers(-n, n, either(rng, (), (3,), (2, 2)))
    compare(op, [x, indices], folder, {"axis": axis}, constant=either(rng, (1,), ()))
    compare(op, [values(rng, 6, 3), rng.integers(0, 6, (2, 5))], folder, constant=(0,))


@draw("GatherElements ScatterElements Scatter")
def elements(op: str, rng: Rng, folder: Path) -> None:
    axis = int(rng.integers(-2, 2))
    n = (5, 6)[axis]
    if op == "GatherElements":
        compare(op, [values(rng, 5, 6), rng.integers(-n, n, (3, 4))], folder, {"axis": axis})
        return
    indices = rng.permutation(n)[:3] - either(rng, 0, n)
    indices = np.repeat(indices[:, None], 3, 1) if axis in (0, -2) else np.repeat(indices[None], 3, 0)
    options = {"axis": axis}
    opset = 10 if op == "Scatter" else 18
    if op != "Scatter":
        options["reduction"] = either(rng, "none", "add", "mul", "max", "min")
    compare(op, [values(rng, 5, 6), indices, values(rng, 3, 3)], folder, options, opset=opset, constant=either(rng, (1,), ()))


@draw("GatherND ScatterND")
def by_places(op: str, rng: Rng, folder: Path) -> None:
    x, indices = values(rng, 4, 5, 3), np.array([[0, 1], [3, -1], [2, 2]])
    if op == "GatherND":
        compare(op, [x, either(rng, indices, indices[:, :1])], folder)
    else:
        compare(op, [x, indices, values(rng, 3, 3)], folder, {"reduction": either(rng, "none", "add")}, opset=18)


@draw("Expand")
def expand(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 3, 1, 2), np.array(either(rng, [4, 1], [2, 3, 4, 2], [3, 5, 1], [1]))], folder, constant=(1,))


@draw("Tile")
def tile(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 3, 2), rng.integers(1, 4, 2)], folder, constant=(1,))


@draw("Pad")
def pad(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, 2, 3, 4, 5)
    mode = either(rng, "constant", "reflect", "edge", "wrap")
    pads = [int(p) for p in rng.integers(0, 3, 8)]
    if mode != "constant":
        pads = [min(p, n - 1) for p, n in zip(pads, x.shape * 2, strict=True)]
    if rng.random() < 0.3 and mode != "wrap":
        compare(op, [x], folder, {"mode": mode, "pads": pads, **({"value": 1.5} if mode == "constant" else {})}, opset=10)
    elif rng.random() < 0.5:
        compare(op, [x, np.array(pads), np.array(2.5, np.float32)], folder, {"mode": mode}, constant=(1, 2), opset=19)
    else:
        given_ = [x, np.array([1, 2, 0, 1]), None, np.array(either(rng, [2, 3], [-1, -2]))]
        compare(op, given_, folder, {"mode": mode}, constant=(1, 3), opset=19)
    compare(op, [x, np.array([0, 0, -1, 1, 0, 0, 1, -2])], folder, constant=(1,), opset=13)


@draw("ConstantOfShape")
def constant_of_shape(op: str, rng: Rng, folder: Path) -> None:
    value = numpy_helper.from_array(np.array([3], either(rng, np.float32, np.int64)))
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node(op, ["s"], ["c"], value=value),
             helper.make_node("Cast", ["c"], ["f"], to=1), helper.make_node("Add", ["x", "f"], ["y"])]  # fmt: skip
    same_as_onnxruntime(nodes, {"x": values(rng, 2, 3)}, {}, folder)


@draw("Range")
def range_(op: str, rng: Rng, folder: Path) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "one"], ["n"]),
             helper.make_node(op, ["zero", "n", "step"], ["r"]), helper.make_node("Cast", ["r"], ["f"], to=1),
             helper.make_node("ReduceSum", ["f"], ["t"], keepdims=0), helper.make_node("Add", ["x", "t"], ["y"])]  # fmt: skip
    constants = {"one": np.array(1), "zero": np.array(int(rng.integers(-2, 2))), "step": np.array(int(rng.integers(1, 3)))}
    same_as_onnxruntime(nodes, {"x": values(rng, 2, int(rng.integers(3, 9)))}, constants, folder)


@draw("EyeLike")
def eye_like(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 3, 5)], folder, {"k": int(rng.integers(-2, 3))})


@draw("OneHot")
def one_hot(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [rng.integers(-4, 4, (2, 3)), np.array(4), np.array([-1, 2], np.float32)], folder,
            {"axis": int(rng.integers(-3, 3))}, constant=(1, 2))  # fmt: skip


@draw("Trilu")
def trilu(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 2, 4, 5), np.array(rng.integers(-2, 3))], folder, {"upper": either(rng, 0, 1)}, constant=(1,))


@draw("DepthToSpace SpaceToDepth")
def depth(op: str, rng: Rng, folder: Path) -> None:
    x = values(rng, 2, 8, 4, 6)
    compare(op, [x], folder, {"blocksize": 2, **({"mode": either(rng, "DCR", "CRD")} if op == "DepthToSpace" else {})})


# layers


def windows(rng: Rng, dims: int, size: Sequence[int], *, dilated: bool = True) -> dict[str, Any]:
    kernel = [int(k) for k in rng.integers(1, 4, dims)]
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": [int(s) for s in rng.integers(1, 4, dims)]}
    if dilated and rng.random() < 0.4:
        options["dilations"] = [int(d) for d in rng.integers(1, 3, dims)]
    how = rng.random()
    if how < 0.4:
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, options.get("dilations", [1] * dims), strict=True)]
        options["pads"] = [int(rng.integers(0, min(k, (r + 1) // 2, 2) + 0)) if k > 1 else 0
                           for k, r in zip(kernel * 2, reach * 2, strict=True)]  # fmt: skip
    elif how < 0.8:
        options["auto_pad"] = either(rng, "SAME_UPPER", "SAME_LOWER", "VALID")
        # onnxruntime refuses strides above the window here.
        options["strides"] = [min(s, k) for s, k in zip(options["strides"], kernel, strict=True)]
        if options["auto_pad"] != "VALID" and options.get("dilations") and max(options["dilations"]) > 1:
            options["strides"] = [1] * dims  # onnxruntime takes no others here
    return options


@draw("Conv")
def conv(op: str, rng: Rng, folder: Path) -> None:
    dims, groups = int(rng.integers(1, 4)), either(rng, 1, 2, 4)
    size = [int(n) for n in rng.integers(7, 10, dims)]
    options = windows(rng, dims, size)
    weight = values(rng, 4, 4 // groups, *options["kernel_shape"])
    given_ = [values(rng, 2, 4, *size), weight, values(rng, 4)][: either(rng, 2, 3)]
    compare(op, given_, folder, {**options, "group": groups}, constant=range(1, len(given_)), tolerance=1e-4)


@draw("ConvTranspose")
def conv_transpose(op: str, rng: Rng, folder: Path) -> None:
    dims = int(rng.integers(1, 3))
    kernel, strides = [int(k) for k in rng.integers(2, 4, dims)], [int(s) for s in rng.integers(1, 4, dims)]
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "group": either(rng, 1, 2)}
    how = rng.random()
    if how < 0.3:
        options["pads"] = [int(p) for p in rng.integers(0, 2, 2 * dims)]
    elif how < 0.6:
        options["pads"] = [1] * (2 * dims)
        options["output_padding"] = [s - 1 for s in strides]
    elif how < 0.8:
        options["auto_pad"] = either(rng, "SAME_UPPER", "SAME_LOWER")
        options["kernel_shape"] = kernel = [max(k, s) for k, s in zip(kernel, strides, strict=True)]
    size = [int(n) for n in rng.integers(4, 7, dims)]
    weight = values(rng, 4, 3, *kernel)
    given_ = [values(rng, 2, 4, *size), weight, values(rng, 3 * options["group"])][: either(rng, 2, 3)]
    compare(op, given_, folder, options, constant=range(1, len(given_)), tolerance=1e-4)


@draw("MaxPool")
def max_pool(op: str, rng: Rng, folder: Path) -> None:
    dims = int(rng.integers(1, 4))
    size = [int(n) for n in rng.integers(6, 9, dims)]
    options = windows(rng, dims, size)
    options |= {"ceil_mode": 1} if "auto_pad" not in options and rng.random() < 0.3 else {}
    compare(op, [values(rng, 2, 3, *size)], folder, options)


@draw("AveragePool")
def average_pool(op: str, rng: Rng, folder: Path) -> None:
    dims = int(rng.integers(1, 4))
    size = [int(n) for n in rng.integers(6, 9, dims)]
    options = windows(rng, dims, size, dilated=False)
    if "auto_pad" not in options:
        options["count_include_pad"] = either(rng, 0, 1)
        options["ceil_mode"] = 1 if "pads" not in options and rng.random() < 0.5 else 0
    compare(op, [values(rng, 2, 3, *size)], folder, options)


@draw("GlobalAveragePool GlobalMaxPool")
def global_pool(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 2, 3, *some_shape(rng, 1, 3))], folder)


@draw("Gemm")
def gemm(op: str, rng: Rng, folder: Path) -> None:
    left, right = either(rng, 0, 1), either(rng, 0, 1)
    a, b = values(rng, 3, 4), values(rng, 4, 5)
    c = either(rng, values(rng, 5), values(rng, 3, 5), values(rng, 3, 1), values(rng, 1), values(rng), values(rng, 1, 5))
    options = {"transA": left, "transB": right, "alpha": either(rng, 1.0, 0.5), "beta": either(rng, 1.0, 2.0)}
    given_ = [a.T.copy() if left else a, b.T.copy() if right else b, c][: either(rng, 2, 3, 3)]
    compare(op, given_, folder, options, constant=either(rng, (1, 2)[: len(given_) - 1], ()))


@draw("MatMul")
def matmul(op: str, rng: Rng, folder: Path) -> None:
    a, b = either(rng, ((2, 3, 4), (4, 5)), ((4,), (4, 3)), ((2, 1, 3, 4), (2, 4, 2)), ((3, 4), (4,)))
    compare(op, [values(rng, *a), values(rng, *b)], folder, constant=either(rng, (), (1,), (0,)))


@draw("Einsum")
def einsum(op: str, rng: Rng, folder: Path) -> None:
    equation, shapes = either(rng, ("bij, bjk -> bik", ((2, 3, 4), (2, 4, 5))), ("bhid,bhjd->bhij", ((1, 2, 3, 4),) * 2),
                              ("ij->ji", ((3, 4),)), ("...ij,jk->...ik", ((2, 3, 4), (4, 2))))  # fmt: skip
    compare(op, [values(rng, *s) for s in shapes], folder, {"equation": equation})


@draw("BatchNormalization")
def batch_norm(op: str, rng: Rng, folder: Path) -> None:
    given_ = [values(rng, 2, 3, *some_shape(rng, 0, 3)), *(values(rng, 3) for _ in range(3)), values(rng, 3, low=0.1)]
    opset = either(rng, 7, 9, 15)
    compare(op, given_, folder, {"epsilon": either(rng, 1e-5, 1e-2)}, constant=(1, 2, 3, 4), opset=opset, tolerance=1e-4)


@draw("InstanceNormalization")
def instance_norm(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 2, 3, 4, 5), values(rng, 3), values(rng, 3)], folder, {"epsilon": 1e-2}, constant=(1, 2),
            tolerance=1e-4)  # fmt: skip


@draw("LayerNormalization")
def layer_norm(op: str, rng: Rng, folder: Path) -> None:
    axis = int(rng.integers(-3, 0))
    shape = (2, 3, 4)[axis:]
    given_ = [values(rng, 2, 3, 4), values(rng, *shape), values(rng, *shape)][: either(rng, 2, 3)]
    compare(op, given_, folder, {"axis": axis, "epsilon": 1e-3}, constant=range(1, len(given_)), tolerance=1e-4)


@draw("GroupNormalization")
def group_norm(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 2, 6, 4), values(rng, 6), values(rng, 6)], folder,
            {"num_groups": either(rng, 2, 3)}, constant=(1, 2), opset=21, tolerance=1e-4)  # fmt: skip


@draw("MeanVarianceNormalization")
def mean_variance(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 2, 3, 4, 5)], folder, either(rng, {}, {"axes": [2, 3]}), opset=13, tolerance=1e-4)


@draw("LpNormalization")
def lp_norm(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 2, 3, 4)], folder, {"axis": int(rng.integers(-3, 3)), "p": either(rng, 1, 2)})


@draw("LRN")
def lrn(op: str, rng: Rng, folder: Path) -> None:
    compare(op, [values(rng, 2, 6, 4, 3)], folder, {"size": either(rng, 3, 5), "alpha": 0.3, "beta": 0.6, "bias": 1.5},
            tolerance=1e-4)  # fmt: skip


MODES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")


@draw("Resize")
def resize(op: str, rng: Rng, folder: Path) -> None:
    how = either(rng, "nearest", "linear", "cubic")
    size = [int(n) for n in rng.integers(3, 7, 2)]
    options = {"mode": how, "coordinate_transformation_mode": either(rng, *MODES)}
    if how == "nearest":
        options["nearest_mode"] = either(rng, "floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    if how == "cubic":
        options["cubic_coeff_a"] = either(rng, -0.5, -0.75)
        options["exclude_outside"] = either(rng, 0, 1)
    x = values(rng, 2, 3, *size)
    if rng.random() < 0.5:
        scale = either(rng, [1, 1, 2, 2], [1, 1, 3, 1], [1, 1, 0.5, 2], [1, 1, 1.5, 0.75])
        compare(op, [x, None, np.array(scale, np.float32)], folder, options, constant=(2,), opset=19, tolerance=1e-4)
    else:
        wanted = [2, 3, *(int(n) for n in rng.integers(1, 10, 2))]
        compare(op, [x, None, None, np.array(wanted)], folder, options, constant=(3,), opset=19, tolerance=1e-4)
    compare(op, [x, np.array([1, 1, 2, 3], np.float32)], folder, {"mode": either(rng, "nearest", "linear")}, opset=10,
            constant=(1,), tolerance=1e-4)  # fmt: skip


@draw("Upsample")
def upsample(op: str, rng: Rng, folder: Path) -> None:
    mode = either(rng, "nearest", "linear")
    compare(op, [values(rng, 2, 3, 4, 5), np.array([1, 1, 2, 3], np.float32)], folder, {"mode": mode}, opset=9,
            constant=(1,), tolerance=1e-4)  # fmt: skip
    compare(op, [values(rng, 2, 3, 4, 5)], folder, {"mode": mode, "scales": [1.0, 1.0, 2.0, 2.0]}, opset=7, tolerance=1e-4)


@draw("GridSample")
def grid_sample(op: str, rng: Rng, folder: Path) -> None:
    options = {"mode": either(rng, "linear", "nearest"), "padding_mode": either(rng, "zeros", "border", "reflection"),
               "align_corners": either(rng, 0, 1)}  # fmt: skip
    compare(op, [values(rng, 2, 3, 5, 6), values(rng, 2, 4, 4, 2, low=-1.2, high=1.2)], folder, options, opset=20,
            tolerance=1e-3)  # fmt: skip


@draw("com.microsoft.Gelu com.microsoft.QuickGelu com.microsoft.FastGelu com.microsoft.BiasGelu")
def microsoft(op: str, rng: Rng, folder: Path) -> None:
    given_ = [values(rng, 3, 4), values(rng, 4)]
    name = op.rpartition(".")[2]
    two = name in ("BiasGelu", "FastGelu")
    compare(name, given_[: 1 + two], folder, {"alpha": 1.3} if name == "QuickGelu" else {}, domain="com.microsoft",
            constant=(1,) if two else (), tolerance=1e-3)  # fmt: skip


@draw("com.microsoft.FusedMatMul com.microsoft.FusedConv com.microsoft.SkipLayerNormalization")
def microsoft_layers(op: str, rng: Rng, folder: Path) -> None:
    name = op.rpartition(".")[2]
    if name == "FusedMatMul":
        compare(name, [values(rng, 2, 4, 3), values(rng, 2, 4, 5)], folder, {"transA": 1, "alpha": 0.5},
                domain="com.microsoft")  # fmt: skip
    elif name == "FusedConv":
        compare(name, [values(rng, 2, 3, 6, 6), values(rng, 4, 3, 3, 3), values(rng, 4)], folder,
                {"activation": "Relu", "kernel_shape": [3, 3]}, constant=(1, 2), domain="com.microsoft", tolerance=1e-4)  # fmt: skip
    else:
        compare(name, [values(rng, 2, 3, 4), values(rng, 2, 3, 4), values(rng, 4), values(rng, 4)], folder,
                {"epsilon": 1e-3}, constant=(2, 3), domain="com.microsoft", tolerance=1e-4)  # fmt: skip


def same_as_onnxruntime(
    nodes: Sequence[Any], feed: dict[str, Array], constants: dict[str, Array], folder: Path, opset: int = NEWEST,
    tolerance: float = 1e-4,
) -> nn.Module:  # fmt: skip
    """A network whose last node makes y, with all sizes of its inputs open, by both."""
    inputs = [info(name, a, [f"{name}_{d}" for d in range(a.ndim)]) for name, a in feed.items()]
    model = file_of(nodes, inputs, [onnx.ValueInfoProto(name="y")], constants, opset)
    network = parspike.from_onnx(save(model, folder))
    with torch.no_grad():
        got = network(*(torch.from_numpy(a.copy()) for a in feed.values()))
    np.testing.assert_allclose(got.numpy(), by_onnxruntime(model, feed)[0], rtol=tolerance, atol=tolerance)
    return network


WITHOUT_ORACLE = {
    # onnxruntime's CPU has no kernel of these; BY_HAND has the value.
    "Swish", "RMSNormalization", "SimplifiedLayerNormalization", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot",
}  # fmt: skip


def test_every_rule_has_a_draw() -> None:
    names = {f"{domain}.{name}" if domain else name for domain, name in RULES}
    assert names - WITHOUT_ORACLE == set(DRAWS)


@pytest.mark.parametrize("op", list(DRAWS))
def test_an_operator_computes_what_onnxruntime_does(op: str, tmp_path: Path) -> None:
    @settings(max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        DRAWS[op](np.random.default_rng(seed), tmp_path)

    check()


_ = (copy, json, math, pickle, struct, FileError, InputError, MissingExtraError, OptionError, UnsupportedError)
