"""ONNX files: every operator against onnxruntime on random shapes and attributes, whole networks, and hostile files."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
import re
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
    return helper.make_tensor_value_info(
        name, kind, list(array.shape) if shape is None and array is not None else shape
    )


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
    node = helper.make_node(
        op, names, [f"y{i}" for i in range(outputs)], name="node", domain=domain, **(attributes or {})
    )
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


def agree_at_another_size(nodes: list[Any], constants: dict[str, Array], rng: Rng, folder: Path) -> None:
    """Check a file of images x (B, 3, H, W) and its SNN beside onnxruntime, at the traced size and at another."""
    inputs, outputs = [info("x", shape=["B", 3, "H", "W"], dtype=1)], [onnx.ValueInfoProto(name="y")]
    model = file_of(nodes, inputs, outputs, constants, 18)
    network = parspike.from_onnx(save(model, folder))
    snn = parspike.convert(network, torch.from_numpy(values(rng, 8, 3, 7, 10)), T=512, recipe="max")
    for size in ((7, 10), (12, 5)):
        one = values(rng, 2, 3, *size)
        wanted = by_onnxruntime(model, {"x": one})[0]
        np.testing.assert_allclose(network(torch.from_numpy(one)).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(snn(torch.from_numpy(one)).numpy(), wanted, rtol=0.05, atol=0.05)


def values(rng: Rng, *shape: int, low: float = -3, high: float = 3) -> Array:
    return rng.uniform(low, high, shape).astype(np.float32)


def some_shape(rng: Rng, least: int = 1, most: int = 4) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(1, 6, rng.integers(least, most + 1)))


def either(rng: Rng, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


@draw(
    "Relu Sigmoid Tanh Neg Abs Exp Floor Ceil Round Sign Sin Cos Atan Sinh Cosh Asinh Erf Softplus Softsign HardSwish "
    "Mish Identity"
)
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
        "LeakyRelu": {"alpha": 0.3},
        "Elu": {"alpha": 0.7},
        "Celu": {"alpha": 1.3},
        "Selu": {"alpha": 1.2, "gamma": 1.1},
        "ThresholdedRelu": {"alpha": 0.8},
        "HardSigmoid": either(rng, {"alpha": 0.3, "beta": 0.4}, {"alpha": 1 / 6}),
        "Shrink": {"bias": either(rng, 0.0, 0.6, 1.5), "lambd": 0.6},
        "Gelu": {"approximate": either(rng, "none", "tanh")},
        "Hardmax": {"axis": int(rng.integers(-x.ndim, x.ndim))},
    }[op]
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
    compare(
        op,
        [values(rng, 5, 6), indices, values(rng, 3, 3)],
        folder,
        options,
        opset=opset,
        constant=either(rng, (1,), ()),
    )


@draw("GatherND ScatterND")
def by_places(op: str, rng: Rng, folder: Path) -> None:
    x, indices = values(rng, 4, 5, 3), np.array([[0, 1], [3, -1], [2, 2]])
    if op == "GatherND":
        compare(op, [x, either(rng, indices, indices[:, :1])], folder)
    else:
        compare(op, [x, indices, values(rng, 3, 3)], folder, {"reduction": either(rng, "none", "add")}, opset=18)


@draw("Expand")
def expand(op: str, rng: Rng, folder: Path) -> None:
    compare(
        op, [values(rng, 3, 1, 2), np.array(either(rng, [4, 1], [2, 3, 4, 2], [3, 5, 1], [1]))], folder, constant=(1,)
    )


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
        compare(
            op, [x], folder, {"mode": mode, "pads": pads, **({"value": 1.5} if mode == "constant" else {})}, opset=10
        )
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
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["n"]),
        helper.make_node(op, ["zero", "n", "step"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=1),
        helper.make_node("ReduceSum", ["f"], ["t"], keepdims=0),
        helper.make_node("Add", ["x", "t"], ["y"]),
    ]
    constants = {
        "one": np.array(1),
        "zero": np.array(int(rng.integers(-2, 2))),
        "step": np.array(int(rng.integers(1, 3))),
    }
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
    compare(
        op, [values(rng, 2, 4, 5), np.array(rng.integers(-2, 3))], folder, {"upper": either(rng, 0, 1)}, constant=(1,)
    )


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
            del options["dilations"]  # onnxruntime takes none here
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
    c = either(
        rng, values(rng, 5), values(rng, 3, 5), values(rng, 3, 1), values(rng, 1), values(rng), values(rng, 1, 5)
    )
    options = {"transA": left, "transB": right, "alpha": either(rng, 1.0, 0.5), "beta": either(rng, 1.0, 2.0)}
    given_ = [a.T.copy() if left else a, b.T.copy() if right else b, c][: either(rng, 2, 3, 3)]
    compare(op, given_, folder, options, constant=either(rng, (1, 2)[: len(given_) - 1], ()))


@draw("MatMul")
def matmul(op: str, rng: Rng, folder: Path) -> None:
    a, b = either(rng, ((2, 3, 4), (4, 5)), ((4,), (4, 3)), ((2, 1, 3, 4), (2, 4, 2)), ((3, 4), (4,)))
    compare(op, [values(rng, *a), values(rng, *b)], folder, constant=either(rng, (), (1,), (0,)))


@draw("Einsum")
def einsum(op: str, rng: Rng, folder: Path) -> None:
    equation, shapes = either(
        rng,
        ("bij, bjk -> bik", ((2, 3, 4), (2, 4, 5))),
        ("bhid,bhjd->bhij", ((1, 2, 3, 4),) * 2),
        ("ij->ji", ((3, 4),)),
        ("...ij,jk->...ik", ((2, 3, 4), (4, 2))),
    )
    compare(op, [values(rng, *s) for s in shapes], folder, {"equation": equation})


@draw("BatchNormalization")
def batch_norm(op: str, rng: Rng, folder: Path) -> None:
    given_ = [values(rng, 2, 3, *some_shape(rng, 0, 3)), *(values(rng, 3) for _ in range(3)), values(rng, 3, low=0.1)]
    opset = either(rng, 7, 9, 15)
    compare(
        op, given_, folder, {"epsilon": either(rng, 1e-5, 1e-2)}, constant=(1, 2, 3, 4), opset=opset, tolerance=1e-4
    )


@draw("LSTM GRU RNN")
def recurrent(op: str, rng: Rng, folder: Path) -> None:
    direction = either(rng, "forward", "reverse", "bidirectional")
    ways, gates, outputs = 1 + (direction == "bidirectional"), {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 + (op == "LSTM")
    start = [values(rng, ways, 2, 3) if rng.random() < 0.5 else None for _ in range(outputs - 1)]
    bias = values(rng, ways, 2 * gates * 3) if rng.random() < 0.7 else None
    lengths = np.full(2, 4, np.int32) if rng.random() < 0.3 else None
    given_ = [values(rng, 4, 2, 5), values(rng, ways, gates * 3, 5), values(rng, ways, gates * 3, 3), bias, lengths]
    more = {"linear_before_reset": int(rng.integers(2))} if op == "GRU" else {}
    more |= {"activations": ["Relu"] * ways} if op == "RNN" and rng.random() < 0.5 else {}
    compare(
        op, [*given_, *start], folder, {"hidden_size": 3, "direction": direction, **more}, constant=(1, 2, 3, 4),
        outputs=outputs, opset=either(rng, 7, 14),
    )  # fmt: skip


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

    half = {"mode": "nearest", "nearest_mode": either(rng, "round_prefer_floor", "round_prefer_ceil")}
    compare(op, [values(rng, 1, 1, 4, 6), None, np.array([1, 1, 0.5, 0.5], np.float32)], folder, half, constant=(2,))


@draw("Upsample")
def upsample(op: str, rng: Rng, folder: Path) -> None:
    mode = either(rng, "nearest", "linear")
    compare(op, [values(rng, 2, 3, 4, 5), np.array([1, 1, 2, 3], np.float32)], folder, {"mode": mode}, opset=9,
            constant=(1,), tolerance=1e-4)  # fmt: skip
    compare(
        op, [values(rng, 2, 3, 4, 5)], folder, {"mode": mode, "scales": [1.0, 1.0, 2.0, 2.0]}, opset=7, tolerance=1e-4
    )


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
        compare(
            name,
            [values(rng, 2, 3, 6, 6), values(rng, 4, 3, 3, 3), values(rng, 4)],
            folder,
            {"activation": "Relu", "kernel_shape": [3, 3]},
            constant=(1, 2),
            domain="com.microsoft",
            tolerance=1e-4,
        )
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


MANY = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "Resize", "Slice", "Pad", "LSTM", "GRU", "RNN")
"""Operators with more rules than a few draws reach."""


@pytest.mark.parametrize("op", list(DRAWS))
def test_an_operator_computes_what_onnxruntime_does(op: str, tmp_path: Path) -> None:
    number = 24 if op in MANY else 4

    @settings(
        max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        DRAWS[op](np.random.default_rng(seed), tmp_path)

    check()


ON_CONSTANTS: list[tuple[str, list[Array], dict[str, Any]]] = [
    ("Div", [np.array([-7, 7, -7, 6]), np.array([2, -2, -2, 3])], {}),
    ("Div", [np.array([-7.0, 7.0], np.float32), np.array([2.0, 4.0], np.float32)], {}),
    ("Sub", [np.array([3, 4]), np.array(5)], {}),
    ("Max", [np.array([3, 4]), np.array([5, 1])], {}),
    ("Min", [np.array([3, 4]), np.array([5, 1])], {}),
    ("GreaterOrEqual", [np.array([3, 4]), np.array([5, 4])], {}),
    ("Floor", [np.array([-1.5, 1.5], np.float32)], {}),
    ("Cast", [np.array([-1.7, 1.7], np.float32)], {"to": TensorProto.INT64}),
    ("Gather", [np.array([5, 6, 7]), np.array([-1, 0])], {}),
    ("Slice", [np.arange(7), np.array([5]), np.array([-100]), np.array([0]), np.array([-2])], {}),
    ("Slice", [np.arange(7), np.array([-3]), np.array([(1 << 63) - 1])], {}),
    ("Slice", [np.arange(7), np.array([-9]), np.array([-100]), np.array([0]), np.array([-1])], {}),
    ("Flatten", [np.arange(24).reshape(2, 3, 4)], {"axis": 2}),
    ("Unsqueeze", [np.arange(3), np.array([0, 2])], {}),
    ("ReduceProd", [np.array([2, 3, 4])], {"keepdims": 0}),
    ("Split", [np.arange(5), np.array([2, 3])], {}),
    ("Range", [np.array(5), np.array(0), np.array(-2)], {}),
    ("Expand", [np.array([[1], [2]]), np.array([2, 1, 3])], {}),
    ("Where", [np.array([True, False]), np.array([1, 2]), np.array([3, 4])], {}),
    ("And", [np.array([True, False]), np.array([True, True])], {}),
    ("Or", [np.array([True, False]), np.array([False, False])], {}),
    ("Xor", [np.array([True, False]), np.array([True, True])], {}),
    ("Identity", [np.array([3, 4])], {}),
    ("Neg", [np.array([-3, 4])], {}),
    ("Abs", [np.array([-3, 4])], {}),
    ("Ceil", [np.array([-1.5, 1.5], np.float32)], {}),
    ("Squeeze", [np.arange(3).reshape(1, 3, 1), np.array([-1])], {}),
    ("Squeeze", [np.arange(3).reshape(1, 3, 1)], {}),
    ("Reshape", [np.arange(6).reshape(2, 3), np.array([0, -1, 1])], {}),
    ("Transpose", [np.arange(24).reshape(2, 3, 4)], {}),
    ("Transpose", [np.arange(24).reshape(2, 3, 4)], {"perm": [0, 2, 1]}),
    ("ReduceSum", [np.arange(4)], {"noop_with_empty_axes": 1}),
    ("ReduceMax", [np.arange(6).reshape(2, 3), np.array([1])], {}),
    ("Split", [np.arange(6)], {"num_outputs": 2}),
]


@pytest.mark.parametrize(("op", "given_", "attributes"), ON_CONSTANTS)
def test_constants_are_folded_to_what_onnxruntime_computes(
    op: str, given_: list[Array], attributes: dict[str, Any], tmp_path: Path
) -> None:
    names = [f"c{i}" for i in range(len(given_))]
    outs = ["y0", "y1"] if op == "Split" else ["y0"]
    nodes = [helper.make_node(op, names, outs, **attributes), helper.make_node("Relu", ["x"], ["z"])]
    outputs = [onnx.ValueInfoProto(name=name) for name in (*outs, "z")]
    model = file_of(nodes, [info("x", shape=["B"], dtype=1)], outputs, dict(zip(names, given_, strict=True)), 18)
    network = parspike.from_onnx(save(model, tmp_path))
    assert [call.op for _, call in network.order] == ["Relu"]
    x = np.zeros(2, np.float32)
    for got, wanted in zip(network(torch.from_numpy(x)), by_onnxruntime(model, {"x": x}), strict=True):
        np.testing.assert_array_equal(got.detach().numpy(), wanted)


X3, X4 = (
    np.arange(12.0, dtype=np.float32).reshape(3, 4) - 5,
    np.arange(120.0, dtype=np.float32).reshape(1, 2, 6, 10) % 7,
)
W4 = np.linspace(-1, 1, 54, dtype=np.float32).reshape(3, 2, 3, 3)
RARE_FORMS: dict[str, tuple[str, list[Array], dict[str, Any]]] = {
    "Selu's own numbers": ("Selu", [X3], {}),
    "a shrink with another bias": ("Shrink", [X3], {"lambd": 1.5, "bias": 0.5}),
    "a clip that clips nothing": ("Clip", [X3, np.float32(-3.5e38).reshape(()), np.float32(3.5e38).reshape(())], {}),
    "the mean of whole numbers": ("ReduceMean", [X3.astype(np.int32), np.array([1])], {}),
    "the maximum of no numbers": ("ReduceMax", [X3 > 0, np.array([1])], {}),
    "nothing to reduce": ("ReduceSum", [X3, np.zeros(0, np.int64)], {"noop_with_empty_axes": 1}),
    "scales of blocks": (
        "DequantizeLinear", [X3.astype(np.int8), np.array([[1, 2]] * 3, np.float32)], {"axis": 1, "block_size": 2}
    ),
    "a type without a zero": ("QuantizeLinear", [X3, np.float32(0.5).reshape(())], {"output_dtype": TensorProto.INT8}),
    "all in one row": ("Flatten", [X3], {"axis": 0}),
    "sizes of one, not named": ("Squeeze", [X3[:, None]], {}),
    "places from the end": ("Gather", [X3, np.array([[0, -1]])], {"axis": 1}),
    "windows beyond the end": (
        "MaxPool", [X4[..., :5, :9]], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}
    ),
    "larger by corners": ("Resize", [X4, np.array([1, 1, 2, 2], np.float32)],
                          {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    "a scale of one": ("Resize", [X4, np.ones(4, np.float32)], {"mode": "linear"}),
    "a leaky convolution": ("FusedConv", [X4, W4], {"activation": "LeakyRelu", "activation_params": [0.1]}),
    "a clipped convolution": ("FusedConv", [X4, W4], {"activation": "Clip", "activation_params": [-1.0, 2.0]}),
    "a sigmoid convolution": ("FusedConv", [X4, W4], {"activation": "Sigmoid"}),
    "a tanh convolution": ("FusedConv", [X4, W4], {"activation": "Tanh"}),
    "an output made larger": (
        "ConvTranspose", [X4, W4.reshape(2, 3, 3, 3)], {"output_shape": [14, 22], "strides": [2, 2]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RARE_FORMS)
def test_rare_forms_compute_what_onnxruntime_does(name: str, tmp_path: Path) -> None:
    """Would catch a branch of a rule that no draw reaches: an activation of a convolution, a block of scales."""
    op, inputs, attributes = RARE_FORMS[name]
    given_ = [*inputs[:1], None, *inputs[1:]] if op == "Resize" else inputs
    compare(op, given_, tmp_path, attributes, constant=range(1, len(given_)), opset=20 if "Fused" in op else NEWEST,
            domain="com.microsoft" if "Fused" in op else "", tolerance=1e-4)  # fmt: skip


REFUSED_FORMS: list[tuple[str, list[Array | None], dict[str, Any], int, str]] = [
    ("Conv", [X4, W4], {"pads": [-1, 0, 0, 0]}, 13, r"negative pads \[-1, 0, 0, 0\] are not supported"),
    ("AveragePool", [X3], {"kernel_shape": [1]}, 13, "its input has 2 axes; supported are 3 to 5"),
    ("AveragePool", [X4], {"kernel_shape": [2, 2], "dilations": [2, 1]}, 19, r"dilations \[2, 1\] are not supported"),
    ("ConvTranspose", [X4, W4.reshape(2, 3, 3, 3)], {"output_padding": [3, 3]}, 13, "not below its strides"),
    ("BatchNormalization", [X4, *[np.ones(2, np.float32)] * 4], {"training_mode": 1}, 15, "training mode"),
    ("BatchNormalization", [X4, *[np.ones(2, np.float32)] * 4], {"spatial": 0}, 7, "spatial=0 is not supported"),
    ("Resize", [X4], {}, 19, "neither scales nor sizes"),
    ("Resize", [X4, None, np.array([1, 1, 0, 1], np.float32)], {}, 19, "a scale of 0"),
    ("Resize", [X4, None, None, np.array([1, 2, 3, 3])], {"mode": "spline"}, 19, "mode 'spline' is not supported"),
    ("Resize", [X4, None, None, np.array([1, 2, 3, 3])], {"keep_aspect_ratio_policy": "not_larger"}, 19, "keep_aspect"),
    (
        "Resize",
        [X4, None, None, np.array([1, 2, 3, 3])],
        {"coordinate_transformation_mode": "tf_crop_and_resize"},
        19,
        "coordinate_transformation_mode 'tf_crop_and_resize' is not supported",
    ),
    ("GridSample", [X4, np.zeros((1, 2, 2, 2), np.float32)], {"mode": "cubic"}, 20, "mode 'cubic' is not supported"),
    ("Slice", [X3, np.array([0]), np.array([2]), np.array([0]), np.array([0])], {}, 13, "a step of 0"),
    ("GatherND", [X3, np.array([[0], [1], [2]])], {"batch_dims": 1}, 13, "batch_dims above 0 is not supported"),
    ("ScatterND", [X3, np.array([[0]]), X3[:1]], {"reduction": "max"}, 18, "reduction 'max' is not supported"),
    ("Pad", [X3, np.array([0, 1, 0, 1])], {"mode": "mirror"}, 18, "mode 'mirror' is not supported"),
    ("Pad", [X3, np.array([0, -1, 0, 1])], {"mode": "reflect"}, 18, "in mode 'reflect': not supported"),
    ("Dropout", [X3, np.array(0.5, np.float32), np.array(True)], {}, 13, "training mode"),
    ("Dropout", [X3, np.array(0.5, np.float32), np.array([True, False])], {}, 13, "has 2 numbers instead of one"),
    ("Cast", [X3], {"to": TensorProto.FLOAT8E4M3FN}, 19, "the type .* is not supported"),
    ("DequantizeLinear", [X3.astype(np.int8), np.ones((2, 2), np.float32)], {}, 19, r"a scale of shape \(2, 2\)"),
    ("com.microsoft.FusedConv", [X4, W4], {"activation": "HardSigmoid"}, 13, "activation 'HardSigmoid' is not"),
    ("com.microsoft.FusedMatMul", [X4, X4], {"transBatchA": 1}, 13, "transposed batches are not supported"),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "opset", "says"), REFUSED_FORMS)
def test_forms_without_a_rule_are_refused_with_the_node(
    op: str, inputs: list[Array | None], attributes: dict[str, Any], opset: int, says: str, tmp_path: Path
) -> None:
    """Would catch a form that is computed as if it were another one."""
    domain, _, name = op.rpartition(".")
    names = ["" if a is None else f"x{i}" for i, a in enumerate(inputs)]
    node = helper.make_node(name, names, ["y"], name="n", domain=domain, **attributes)
    constants = {n: a for n, a in zip(names[1:], inputs[1:], strict=True) if a is not None}
    first = inputs[0]
    assert first is not None
    model = file_of([node], [info("x0", first)], [onnx.ValueInfoProto(name="y")], constants, opset)
    with pytest.raises(UnsupportedError, match=rf"node 'n' \({re.escape(op)}\).*{says}"):
        parspike.from_onnx(save(model, tmp_path))(torch.from_numpy(first))


def test_sizes_that_a_file_multiplies_and_divides_stay_free(tmp_path: Path) -> None:
    """Would catch a product, a largest size or half of a size that is fixed to the example's."""
    n, rng = helper.make_node, np.random.default_rng(2)
    nodes = [
        n("Conv", ["x", "w"], ["a"]), n("Relu", ["a"], ["b"]), n("Shape", ["b"], ["s"]),
        n("Slice", ["s", "two", "four"], ["hw"]), n("ReduceProd", ["hw"], ["places"]),
        n("ReduceMax", ["hw"], ["most"]), n("ReduceSum", ["hw"], ["all"]), n("Sub", ["all", "most"], ["least"]),
        n("Slice", ["s", "zero", "two"], ["front"]), n("Concat", ["front", "places"], ["flat.shape"], axis=0),
        n("Reshape", ["b", "flat.shape"], ["flat"]),
        n("Div", ["places", "halves"], ["half"]), n("Slice", ["flat", "zero", "half", "two"], ["first"]),
        n("ReduceMean", ["first", "two"], ["mean"], keepdims=0),
        n("Concat", ["front", "least", "most"], ["turned.shape"], axis=0),
        n("Reshape", ["b", "turned.shape"], ["turned"]), n("ReduceMax", ["turned", "two"], ["tops"], keepdims=0),
        n("ReduceMean", ["tops", "two"], ["top"], keepdims=0), n("Add", ["mean", "top"], ["y"]),
    ]  # fmt: skip
    constants = {"w": values(rng, 4, 3, 1, 1), "zero": np.array([0]), "two": np.array([2]), "four": np.array([4]),
                 "halves": np.array([2])}  # fmt: skip
    agree_at_another_size(nodes, constants, rng, tmp_path)


def test_constants_may_stand_in_nodes_of_every_form(tmp_path: Path) -> None:
    """What torch's older exporter writes instead of initializers."""
    n = helper.make_node
    nodes = [
        n("Constant", [], ["rows"], value=numpy_helper.from_array(np.array([[1.0], [-2.0]], np.float32))),
        n("Constant", [], ["factor"], value_float=1.5),
        n("Constant", [], ["bias"], value_floats=[0.5, -0.5, 2.0]),
        n("Constant", [], ["place"], value_int=1),
        n("Constant", [], ["shape"], value_ints=[0, 2, 3]),
        n("Reshape", ["x", "shape"], ["a"]),
        n("Mul", ["a", "factor"], ["b"]),
        n("Add", ["b", "bias"], ["c"]),
        n("Mul", ["c", "rows"], ["d"]),
        n("Gather", ["d", "place"], ["y"], axis=1),
    ]
    feed = {"x": values(np.random.default_rng(0), 4, 6)}
    network = same_as_onnxruntime(nodes, feed, {}, tmp_path)
    assert [call.op for _, call in network.order] == ["Reshape", "Mul", "Add", "Mul", "Gather"]
    nodes[1] = n("Constant", [], ["factor"], value_string="one and a half", name="words")
    inputs, outputs = [info("x", shape=["B", 6], dtype=1)], [onnx.ValueInfoProto(name="y")]
    with pytest.raises(UnsupportedError, match=r"words.* holds no numbers"):
        parspike.from_onnx(save(file_of(nodes, inputs, outputs, {}, NEWEST), tmp_path))


BY_HAND: dict[str, tuple[list[Array], dict[str, Any], Callable[..., Array]]] = {
    "Swish": ([np.array([[-1.0, 2.0]], np.float32)], {"alpha": 1.5}, lambda x: x / (1 + np.exp(-1.5 * x))),
    "RMSNormalization": (
        [np.array([[3.0, 4.0]], np.float32), np.array([1.0, 2.0], np.float32)], {"epsilon": 0.5},
        lambda x, scale: x / np.sqrt(12.5 + 0.5) * scale,
    ),
    "BitwiseAnd": ([np.array([[12, 10]]), np.array([[10, 3]])], {}, np.bitwise_and),
    "BitwiseOr": ([np.array([[12, 10]]), np.array([[10, 3]])], {}, np.bitwise_or),
    "BitwiseXor": ([np.array([[12, 10]]), np.array([[10, 3]])], {}, np.bitwise_xor),
    "BitwiseNot": ([np.array([[12, 10]])], {}, np.bitwise_not),
}  # fmt: skip


@pytest.mark.parametrize("op", list(BY_HAND))
def test_an_operator_that_onnxruntime_lacks_computes_its_formula(op: str, tmp_path: Path) -> None:
    given_, attributes, formula = BY_HAND[op]
    names = [f"x{i}" for i in range(len(given_))]
    node = helper.make_node(op, names, ["y"], **attributes)
    model = file_of(
        [node], [info(n, a) for n, a in zip(names, given_, strict=True)], [onnx.ValueInfoProto(name="y")], {}, 24
    )
    got = parspike.from_onnx(save(model, tmp_path))(*(torch.from_numpy(a) for a in given_))
    np.testing.assert_allclose(got.numpy(), formula(*given_), rtol=1e-6)


def test_bounds_of_a_clip_may_depend_on_the_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["low"], keepdims=0),
        helper.make_node("Clip", ["x", "low"], ["y"]),
    ]
    same_as_onnxruntime(nodes, {"x": values(rng, 3, 4)}, {}, tmp_path)


# ------------------------------------------------------------------------------------------------------------ networks


def small_cnn(rng: Rng, *, batch: Any = "B", size: Any = ("H", "W"), opset: int = 13) -> Any:
    """Convolution, batch norm, hard swish written by hand, squeeze and excitation, upsampling to the size of an earlier
    value through Shape, Slice and Concat, and a classifier behind a global mean."""
    c = {
        "w1": values(rng, 8, 3, 3, 3, low=-0.4, high=0.4),
        "scale": values(rng, 8, low=0.5, high=2),
        "shift": values(rng, 8),
        "mean": values(rng, 8),
        "var": values(rng, 8, low=0.5, high=2),
        "three": np.array(3, np.float32),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "w2": values(rng, 8, 8, 1, 1, low=-0.5, high=0.5),
        "w3": values(rng, 8, 8, 3, 3, low=-0.2, high=0.2),
        "b3": values(rng, 8),
        "w4": values(rng, 8, 5),
        "b4": values(rng, 5),
        "two": np.array([2]),
        "four": np.array([4]),
        "axes": np.array([2, 3]),
    }
    n = helper.make_node
    nodes = [
        n("Conv", ["x", "w1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1], name="stem.conv"),
        n("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], name="stem.norm"),
        n("Add", ["b", "three"], ["c"]),
        n("Clip", ["c", "zero", "six"], ["d"]),
        n("Mul", ["b", "d"], ["e"]),
        n("Div", ["e", "six"], ["f"]),
        n("GlobalAveragePool", ["f"], ["g"]),
        n("Conv", ["g", "w2"], ["h"]),
        n("HardSigmoid", ["h"], ["i"]),
        n("Mul", ["f", "i"], ["j"]),
        n("MaxPool", ["j"], ["k"], kernel_shape=[2, 2], strides=[2, 2]),
        n("Conv", ["k", "w3", "b3"], ["l"], pads=[1, 1, 1, 1], name="low"),
        n("Relu", ["l"], ["m"], name="low.relu"),
        n("Shape", ["j"], ["s1"]),
        n("Slice", ["s1", "two", "four"], ["s2"]),
        n("Shape", ["m"], ["s3"]),
        n("Slice", ["s3", "zero_", "two"], ["s4"]),
        n("Concat", ["s4", "s2"], ["s5"], axis=0),
        n("Resize", ["m", "", "", "s5"], ["o"], mode="linear"),
        n("Add", ["o", "j"], ["p"]),
        n("Relu", ["p"], ["q"]),
        n("ReduceMean", ["q"], ["r"], axes=[2, 3], keepdims=0),
        n("Gemm", ["r", "w4", "b4"], ["y"], name="head"),
    ]
    c["zero_"] = np.array([0])
    return file_of(nodes, [info("x", shape=[batch, 3, *size], dtype=1)], [info("y", shape=["B", 5], dtype=1)], c, opset)


def test_a_network_of_images_keeps_its_sizes_free_and_converts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = small_cnn(rng)
    network = parspike.from_onnx(save(model, tmp_path))
    x = torch.from_numpy(values(rng, 8, 3, 32, 24, low=-1, high=1))
    plan = parspike.plan(network, x[:2])
    assert {row.layer for row in plan.rows} >= {"stem_conv", "low", "low_relu", "head"}
    assert not any("onnx_in" in row.source for row in plan.rows)
    assert plan.graph.example == {"x.2": 32, "x.3": 24}
    snn = parspike.convert(plan, x, T=256, recipe="max")
    for size in ((32, 24), (21, 37)):
        one = values(rng, 3, 3, *size, low=-1, high=1)
        wanted = by_onnxruntime(model, {"x": one})[0]
        np.testing.assert_allclose(network(torch.from_numpy(one)).detach().numpy(), wanted, rtol=1e-3, atol=1e-4)
        assert float(np.abs(snn(torch.from_numpy(one)).numpy() - wanted).max() / np.abs(wanted).max()) < 0.05


def test_what_a_file_computes_of_free_sizes_stays_free(tmp_path: Path) -> None:
    """Would catch a size that is rounded or chosen otherwise than the file says, or fixed to the example's."""
    n, rng = helper.make_node, np.random.default_rng(1)
    nodes = [
        n("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]), n("Relu", ["a"], ["b"]), n("Shape", ["b"], ["s"]),
        n("Gather", ["s", "two"], ["h"]), n("Gather", ["s", "three"], ["wide"]),
        n("Cast", ["h"], ["h.real"], to=TensorProto.FLOAT), n("Div", ["h.real", "part"], ["h.part"]),
        n("Floor", ["h.part"], ["h.floor"]), n("Cast", ["h.floor"], ["h.whole"], to=TensorProto.INT64),
        n("Max", ["h", "wide"], ["most"]), n("Min", ["h", "wide"], ["least"]),
        n("Sub", ["most", "least"], ["gap"]), n("Add", ["wide", "gap"], ["w.sum"]),
        n("Unsqueeze", ["h.whole", "zero"], ["h.out"]),
        n("Unsqueeze", ["w.sum", "zero"], ["w.out"]), n("Gather", ["s", "first"], ["front"]),
        n("Concat", ["front", "h.out", "w.out"], ["size"], axis=0),
        n("Resize", ["b", "", "", "size"], ["c"], mode="linear"),
        n("ReduceMean", ["c", "last"], ["y"], keepdims=0),
    ]  # fmt: skip
    constants = {
        "w": values(rng, 4, 3, 3, 3), "two": np.array(2), "three": np.array(3), "part": np.array(2, np.float32),
        "zero": np.array([0]), "first": np.array([0, 1]), "last": np.array([2, 3]),
    }  # fmt: skip
    agree_at_another_size(nodes, constants, rng, tmp_path)


def test_a_batch_of_one_that_the_file_fixes_is_opened(tmp_path: Path) -> None:
    """A class token as often as the batch, a shape with its size, and heads within the batch's axis."""
    rng = np.random.default_rng(1)
    n = helper.make_node
    c = {
        "w": values(rng, 6, 8),
        "token": values(rng, 1, 1, 8),
        "position": values(rng, 1, 5, 8),
        "q": values(rng, 8, 8),
        "heads": np.array([1, 5, 2, 4]),
        "rows": np.array([2, 5, 4]),
        "back": np.array([1, 2, 5, 4]),
        "flat": np.array([1, 5, 8]),
        "head": values(rng, 8, 3),
        "patches": np.array([1, 4, 6]),
        "zero": np.array(0),
    }
    nodes = [
        n("Reshape", ["x", "patches"], ["a"]),
        n("MatMul", ["a", "w"], ["b"]),
        n("Concat", ["token", "b"], ["d"], axis=1),
        n("Add", ["d", "position"], ["e"]),
        n("MatMul", ["e", "q"], ["f"]),
        n("Reshape", ["f", "heads"], ["g"]),
        n("Transpose", ["g"], ["h"], perm=[0, 2, 1, 3]),
        n("Reshape", ["h", "rows"], ["i"]),
        n("Transpose", ["i"], ["j"], perm=[0, 2, 1]),
        n("MatMul", ["i", "j"], ["k"]),
        n("Softmax", ["k"], ["l"], axis=-1),
        n("MatMul", ["l", "i"], ["m"]),
        n("Reshape", ["m", "back"], ["o"]),
        n("Transpose", ["o"], ["p"], perm=[0, 2, 1, 3]),
        n("Reshape", ["p", "flat"], ["q_"]),
        n("Relu", ["q_"], ["r"]),
        n("Gather", ["r", "zero"], ["s"], axis=1),
        n("MatMul", ["s", "head"], ["y"]),
    ]
    model = file_of(nodes, [info("x", shape=[1, 24], dtype=1)], [info("y", shape=[1, 3], dtype=1)], c, 13)
    network = parspike.from_onnx(save(model, tmp_path))
    x = values(rng, 4, 24)
    wanted = np.concatenate([by_onnxruntime(model, {"x": one[None]})[0] for one in x])
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), wanted, rtol=1e-4, atol=1e-4)
    plan = parspike.plan(network, torch.from_numpy(x))
    assert len(plan.spiking) == 1
    assert plan.graph.inputs[0].shape[1] == 24


def test_samples_that_a_fixed_batch_mixes_are_refused(tmp_path: Path) -> None:
    n = helper.make_node
    nodes = [
        n("Reshape", ["x", "shape"], ["a"]),
        n("Relu", ["a"], ["b"]),
        n("ReduceSum", ["b", "axes"], ["c"], keepdims=1),
        n("Add", ["x", "c"], ["y"]),
    ]
    c = {"shape": np.array([-1, 2]), "axes": np.array([0])}
    model = file_of(nodes, [info("x", shape=[1, 2], dtype=1)], [info("y", shape=[1, 2], dtype=1)], c, 13)
    network = parspike.from_onnx(save(model, tmp_path))
    with pytest.raises(parspike.errors.TraceError, match="mixes the samples"):
        parspike.plan(network, torch.rand(2, 2))


def tokens(rng: Rng) -> Any:
    """Embedding, positions by Range, layer norm by hand, GELU by hand, and a mask as a second input."""
    n = helper.make_node
    c = {"table": values(rng, 20, 8), "positions": values(rng, 16, 8), "one": np.array(1), "zero": np.array(0),
         "two": np.array(2.0, np.float32), "eps": np.array(1e-5, np.float32), "w": values(rng, 8, 12),
         "root": np.array(math.sqrt(2), np.float32), "unit": np.array(1, np.float32), "half": np.array(0.5, np.float32),
         "v": values(rng, 12, 4), "last": np.array([2]), "middle": np.array([1])}  # fmt: skip
    nodes = [
        n("Gather", ["table", "ids"], ["a"]),
        n("Shape", ["ids"], ["s"]),
        n("Gather", ["s", "one"], ["length"]),
        n("Range", ["zero", "length", "one"], ["places"]),
        n("Gather", ["positions", "places"], ["b"]),
        n("Add", ["a", "b"], ["c"]),
        n("ReduceMean", ["c"], ["d"], axes=[-1]),
        n("Sub", ["c", "d"], ["e"]),
        n("Pow", ["e", "two"], ["f"]),
        n("ReduceMean", ["f"], ["g"], axes=[-1]),
        n("Add", ["g", "eps"], ["h"]),
        n("Sqrt", ["h"], ["i"]),
        n("Div", ["e", "i"], ["j"]),
        n("MatMul", ["j", "w"], ["k"]),
        n("Div", ["k", "root"], ["l"]),
        n("Erf", ["l"], ["m"]),
        n("Add", ["m", "unit"], ["o"]),
        n("Mul", ["k", "o"], ["p"]),
        n("Mul", ["p", "half"], ["q"]),
        n("Cast", ["mask"], ["r"], to=1),
        n("Unsqueeze", ["r", "last"], ["t"]),
        n("Mul", ["q", "t"], ["u"]),
        n("ReduceSum", ["u", "middle"], ["z"], keepdims=0),
        n("MatMul", ["z", "v"], ["y"]),
    ]
    given_ = [
        info("ids", shape=["B", "L"], dtype=TensorProto.INT64),
        info("mask", shape=["B", "L"], dtype=TensorProto.INT64),
    ]
    return file_of(nodes, given_, [info("y", shape=["B", 4], dtype=1)], c, 13)


def test_a_network_of_tokens_with_a_mask_converts(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    model = tokens(rng)
    network = parspike.from_onnx(save(model, tmp_path))
    ids, mask = rng.integers(0, 20, (16, 9)), (rng.random((16, 9)) > 0.2).astype(np.int64)
    wanted = by_onnxruntime(model, {"ids": ids, "mask": mask})[0]
    pair = torch.from_numpy(ids), torch.from_numpy(mask)
    np.testing.assert_allclose(network(*pair).detach().numpy(), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(network(mask=pair[1], ids=pair[0]).detach().numpy(), wanted, rtol=1e-4, atol=1e-4)
    snn = parspike.convert(network, calibration=[pair], T=256, recipe="max")
    assert len(snn.neurons()) == 2  # GELU is two
    got = snn(*pair).numpy()
    assert float(np.abs(got - wanted).max() / np.abs(wanted).max()) < 0.1
    one, other = ids[:3, :5], mask[:3, :5]
    wanted = by_onnxruntime(model, {"ids": one, "mask": other})[0]
    got = snn(torch.from_numpy(one), torch.from_numpy(other)).numpy()
    assert float(np.abs(got - wanted).max() / np.abs(wanted).max()) < 0.1


def test_a_part_of_a_network_between_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = save(small_cnn(rng), tmp_path)
    x = torch.from_numpy(values(rng, 2, 3, 16, 16))
    whole, first = parspike.from_onnx(path), parspike.from_onnx(path, outputs=["j"])
    second = parspike.from_onnx(path, inputs=["j"], outputs=["q", "y"])
    torch.testing.assert_close(second(first(x))[1], whole(x))
    with pytest.raises(OptionError, match="the outputs need 'x' too"):
        parspike.from_onnx(path, inputs=["m"])
    with pytest.raises(OptionError, match=r"has no value 'yy' \(did you mean 'y'\?\)"):
        parspike.from_onnx(path, outputs=["yy"])
    with pytest.raises(OptionError, match="inputs names no value"):
        parspike.from_onnx(path, inputs=[])


def test_an_input_that_is_a_number_is_made_a_constant(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "gain"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    given_ = [info("x", shape=["B", 3], dtype=1), info("gain", shape=[], dtype=1)]
    path = save(file_of(nodes, given_, [info("y", shape=["B", 3], dtype=1)], {}, 13), tmp_path)
    with pytest.raises(UnsupportedError, match=r"its input 'gain' is a single number.*fixed=\{'gain'"):
        parspike.from_onnx(path)
    x = torch.tensor([[1.0, -2.0, 3.0]])
    torch.testing.assert_close(parspike.from_onnx(path, fixed={"gain": 2})(x), torch.relu(2 * x))
    with pytest.raises(OptionError, match="has no input 'gian'"):
        parspike.from_onnx(path, fixed={"gian": 2})
    with pytest.raises(OptionError, match="has 1 axes, the file's input has 0"):
        parspike.from_onnx(path, fixed={"gain": [2.0]})
    with pytest.raises(OptionError, match="must be a number or an array"):
        parspike.from_onnx(path, fixed={"gain": "two"})


def test_inputs_of_another_type_or_shape_are_refused(tmp_path: Path) -> None:
    network = parspike.from_onnx(save(tokens(np.random.default_rng(0)), tmp_path))
    ids = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(InputError, match=r"input 'ids' is torch.int32, the file asks for torch.int64: convert"):
        network(ids.int(), ids)
    with pytest.raises(InputError, match=r"input 'mask' has the shape \(2, 4, 1\), the file asks for \(B, L\)"):
        network(ids, ids[..., None])
    with pytest.raises(InputError, match="must be a tensor, got list"):
        network([[1]], ids)


def test_a_network_can_be_copied_pickled_and_moved(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    network = parspike.from_onnx(save(small_cnn(rng), tmp_path))
    x = torch.from_numpy(values(rng, 2, 3, 16, 16))
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):  # noqa: S301 - our own bytes
        torch.testing.assert_close(other(x), network(x))
        assert list(other.state_dict()) == list(network.state_dict())
    assert network.double()(x.double()).dtype == torch.float64
    assert "Conv" in repr(network)
    assert "GlobalAveragePool: f → g" in repr(dict(network.named_modules())["GlobalAveragePool_6"])


def test_a_branch_whose_condition_is_constant_is_taken(tmp_path: Path) -> None:
    out = [onnx.ValueInfoProto(name="inner")]
    weight = numpy_helper.from_array(np.array([2.0], np.float32), "k")
    yes = helper.make_graph([helper.make_node("Mul", ["x", "k"], ["inner"], name="m")], "yes", [], out, [weight])
    no = helper.make_graph([helper.make_node("Loop", ["x"], ["inner"], name="never", body=yes)], "no", [], out)
    nodes = [
        helper.make_node("Greater", ["one", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["a"], name="if", then_branch=yes, else_branch=no),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    constants = {"one": np.array(1.0, np.float32), "zero": np.array(0.0, np.float32)}
    out = [info("y", shape=["B", 3], dtype=1)]
    path = save(file_of(nodes, [info("x", shape=["B", 3], dtype=1)], out, constants, 13), tmp_path)
    x = torch.tensor([[1.0, -2.0, 3.0]])
    torch.testing.assert_close(parspike.from_onnx(path)(x), torch.relu(2 * x))
    nodes[0] = helper.make_node("Greater", ["total", "zero"], ["c"])
    nodes.insert(0, helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0))
    path = save(file_of(nodes, [info("x", shape=["B", 3], dtype=1)], out, constants, 13), tmp_path)
    with pytest.raises(
        UnsupportedError, match=r"If \(it runs a part of the graph by a value that is not constant\): if\."
    ):
        parspike.from_onnx(path)


def test_functions_of_a_file_stand_in_the_place_of_their_calls(tmp_path: Path) -> None:
    double = helper.make_function("own", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
                                  [helper.make_opsetid("", 13)])  # fmt: skip
    nodes = [helper.make_node("Double", ["x"], ["h"], domain="own"), helper.make_node("Relu", ["h"], ["y"])]
    model = file_of(nodes, [info("x", shape=["B", 3], dtype=1)], [info("y", shape=["B", 3], dtype=1)], {}, 13)
    model.functions.append(double)
    x = torch.tensor([[1.0, -2.0, 3.0]])
    torch.testing.assert_close(parspike.from_onnx(save(model, tmp_path))(x), torch.relu(2 * x))


def test_quantised_weights_are_folded(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    c = {"q": rng.integers(-100, 100, (4, 3)).astype(np.int8), "s": np.array([0.1, 0.2, 0.3], np.float32),
         "z": np.array([1, 2, 3], np.int8)}  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    network = same_as_onnxruntime(nodes, {"x": values(rng, 2, 4)}, c, tmp_path, 13)
    assert len(network.order) == 1


def test_four_bits_and_bfloat16_are_unpacked(tmp_path: Path) -> None:
    numbers = np.array([[-8, 7, 3], [0, -1, 5]])
    four = helper.make_tensor("q", TensorProto.INT4, [2, 3], numbers.reshape(-1).tolist())
    brain = TensorProto(name="s", data_type=TensorProto.BFLOAT16, dims=[], raw_data=struct.pack("<H", 0x3FC0))  # 1.5
    nodes = [helper.make_node("DequantizeLinear", ["q", "s_"], ["w"]), helper.make_node("Cast", ["s"], ["s_"], to=1)][
        ::-1
    ]
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"]))
    model = file_of(nodes, [info("x", shape=["B", 2], dtype=1)], [info("y", shape=["B", 3], dtype=1)], {}, 21)
    model.graph.initializer.extend([four, brain])
    got = parspike.from_onnx(save(model, tmp_path))(torch.eye(2))
    np.testing.assert_allclose(got.detach().numpy(), numbers * 1.5)


# ----------------------------------------------------------------------------------------------------- the command line


def command(*args: str) -> tuple[int, dict[str, Any]]:
    from typer.testing import CliRunner

    from parspike.cli import app

    done = CliRunner().invoke(app, [*args, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_the_command_line_takes_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    path = str(save(small_cnn(rng, size=(8, 8)), tmp_path))
    np.savez(tmp_path / "data.npz", x=values(rng, 24, 3, 8, 8), y=rng.integers(0, 5, 24))
    data, out = str(tmp_path / "data.npz"), str(tmp_path / "net.parspike")
    code, answer = command("convert", path, "-o", out, "--data", data, "-T", "64", "--recipe", "max")
    assert (code, answer["spec"]) == (0, path)
    code, answer = command("eval", out, "--data", data, "--against", path)
    assert code == 0
    assert answer["agreement"] > 0.8
    code, answer = command("plan", f"{path}:k")
    assert code == 0
    layers = {row["layer"] for row in answer["rows"]}
    assert "stem_conv" in layers
    assert "low" not in layers


def test_the_command_line_takes_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["a"]), helper.make_node("Flatten", ["a"], ["f"]),
             helper.make_node("MatMul", ["f", "w"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "v"], ["y"])]  # fmt: skip
    c = {"table": values(rng, 20, 4), "w": values(rng, 24, 8), "v": values(rng, 8, 3)}
    given_ = [info("ids", shape=["B", 6], dtype=TensorProto.INT32)]
    path = str(save(file_of(nodes, given_, [info("y", shape=["B", 3], dtype=1)], c, 13), tmp_path))
    assert command("plan", path)[0] == 0  # the file says type and shape
    np.savez(tmp_path / "data.npz", x=rng.integers(0, 20, (24, 6)).astype(np.int32), y=rng.integers(0, 3, 24))
    data, out = str(tmp_path / "data.npz"), str(tmp_path / "net.parspike")
    assert command("convert", path, "-o", out, "--data", data, "-T", "64", "--recipe", "max")[0] == 0
    assert command("eval", out, "--data", data, "--against", path)[1]["agreement"] > 0.8


def two_inputs(rng: Rng, outputs: Sequence[tuple[str, list[Any]]]) -> Any:
    """scores and total of two inputs, one with a name that Python has not."""
    nodes = [
        helper.make_node("MatMul", ["image.in", "u"], ["a"]), helper.make_node("MatMul", ["meta", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["scores"]),
        helper.make_node("ReduceSum", ["r", "axes"], ["total"], keepdims=0),
    ]  # fmt: skip
    c = {"u": values(rng, 4, 8), "v": values(rng, 5, 8), "w": values(rng, 8, 3), "axes": np.array([1])}
    given = [info(name, shape=["B", n], dtype=1) for name, n in (("image.in", 4), ("meta", 5))]
    return file_of(nodes, given, [info(name, shape=shape, dtype=1) for name, shape in outputs], c, 13)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Array]:
    """one.onnx with one output, two.onnx with two, and data for both by the files' own names."""
    monkeypatch.chdir(tmp_path)
    save(two_inputs(np.random.default_rng(8), [("scores", ["B", 3])]), tmp_path, "one.onnx")
    save(two_inputs(np.random.default_rng(8), [("scores", ["B", 3]), ("total", ["B"])]), tmp_path, "two.onnx")
    rng = np.random.default_rng(9)
    arrays = {"image.in": values(rng, 24, 4), "meta": values(rng, 24, 5)}
    np.savez("data.npz", **arrays, labels=rng.integers(0, 3, 24))
    np.savez("split.npz", **{f"test_{name}": array for name, array in arrays.items()})
    return arrays


def test_several_inputs_go_by_the_names_in_the_file(two: dict[str, Array]) -> None:
    """Catches inputs in each other's place, and names with dots that no array could match."""
    assert command("plan", "one.onnx", "--data", "data.npz")[0] == 0
    assert (
        command("convert", "one.onnx", "--data", "data.npz", "-o", "n.parspike", "--recipe", "max", "-T", "64")[0] == 0
    )
    snn = parspike.load("n.parspike")
    wanted = by_onnxruntime(onnx.load("one.onnx"), two)[0]
    found = snn(image_in=torch.from_numpy(two["image.in"]), meta=torch.from_numpy(two["meta"]))
    assert np.linalg.norm(found.numpy() - wanted) < 0.1 * np.linalg.norm(wanted)
    for data in ("data.npz", "split.npz"):
        code, answer = command("eval", "n.parspike", "--data", data, "--against", "one.onnx", "--operations")
        assert (code, answer["images"]) == (0, 24)
        assert answer["error"] == pytest.approx(
            float(np.linalg.norm(found.numpy() - wanted) / np.linalg.norm(wanted)), rel=1e-3
        )
        assert (answer["accuracy"] is None) == (data == "split.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta": None}, "has image.in, and the network takes image_in, meta: save an array for each under its name"),
        ({"mask": np.zeros((24, 5))}, "has mask beside the inputs image_in, meta, and the network takes no such input"),
        ({"image_in": np.zeros((24, 4))}, "image.in and image_in may both be the network's input image_in"),
        ({"meta": np.zeros((24, 6))}, "input 'meta' has (the )?shape .*6.*, (the file asks for|this network takes)"),
        ({"meta": np.zeros((24, 5), np.int64)}, "input 'meta' is torch.int64, "),
        ({"meta": np.full((24, 5), "a")}, "meta is <U1; expected uint8 images, or floats"),
        ({"meta": np.zeros((20, 5))}, "image.in has 24 rows and meta has 20; expected one row an item in each"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_the_inputs_of_a_file(two: dict[str, Array], change: Any, message: str) -> None:
    assert command("convert", "one.onnx", "--data", "data.npz", "-o", "n.parspike", "--recipe", "max")[0] == 0
    np.savez("bad.npz", **{name: array for name, array in {**two, **change}.items() if array is not None})
    calls = (
        ("plan", "one.onnx"),
        ("convert", "one.onnx", "-o", "m.parspike", "--recipe", "max"),
        ("eval", "n.parspike"),
    )
    for call in calls:
        code, answer = command(*call, "--data", "bad.npz")
        assert code == 1
        assert re.search(message, answer["error"]["message"]), answer


def test_a_file_with_several_outputs_says_what_is_measured(two: dict[str, Array]) -> None:
    from typer.testing import CliRunner

    from parspike.cli import app

    for spec, name in (("two.onnx", "two"), ("two.onnx:scores", "one")):
        assert command("convert", spec, "--data", "data.npz", "-o", f"{name}.parspike", "--recipe", "max")[0] == 0
    common = ("--data", "data.npz", "--against")
    answer = command("eval", "two.parspike", *common, "two.onnx")[1]
    assert (answer["accuracy"], answer["agreement"]) == (None, None)
    assert 0 < answer["error"] < 0.5
    said = CliRunner().invoke(app, ["eval", "two.parspike", *common, "two.onnx"]).stdout
    assert "2, none named logits, so all are values without accuracy; net.onnx:NAME is one of a file" in said
    assert command("eval", "one.parspike", *common, "two.onnx:scores")[1]["accuracy"] is not None
    for file, spec in (("two", "two.onnx:scores"), ("one", "two.onnx")):
        code, answer = command("eval", f"{file}.parspike", *common, spec)
        assert code == 1
        assert re.search(r"against= gives .*, and this network .*: compare it with", answer["error"]["message"])


def test_the_command_line_names_inputs_as_the_reader_does() -> None:
    from parspike.foreign import identifier
    from parspike.onnx_in.network import _identifiers

    for name in ("input.1", "x", "class", "serving_default:0", "0", "", "self", "größe", "a/b c"):
        assert (identifier(name),) == _identifiers([name])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("no.onnx",), "there is no file no.onnx"),
        (("net.onnx", "--weights", "net.onnx"), "has its own weights: leave --weights out"),
        (
            ("net.onnx",),
            r"leaves sizes of its input 'x' open: (3, H, W): give one sample's shape with --shape 3,224,224",
        ),
        (("net.onnx:nothing", "--shape", "3,8,8"), "has no value 'nothing'"),
    ],
)
def test_what_the_command_line_refuses(
    args: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(small_cnn(np.random.default_rng(0)), tmp_path)
    code, answer = command("plan", *args)
    assert code == 1
    assert message in answer["error"]["message"]


# ---------------------------------------------------------------------------------------------------------- bad files


def line_of(model: Any, folder: Path, kind: type[Exception] = FileError) -> str:
    with pytest.raises(kind) as caught:
        parspike.from_onnx(save(model, folder))
    said = str(caught.value)
    assert "\n" not in said
    assert str(folder / "net.onnx") in said
    return said


def simple(*nodes: Any, opset: int = 13, **constants: Array) -> Any:
    given_ = [info("x", shape=["B", 3], dtype=1)]
    return file_of(nodes or [helper.make_node("Relu", ["x"], ["y"], name="r")], given_,
                   [info("y", shape=["B", 3], dtype=1)], constants, opset)  # fmt: skip


def test_all_unsupported_operators_are_named_at_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Loop", ["x"], ["a"], name="cell"),
        helper.make_node("Det", ["a"], ["b"], name="d1"),
        helper.make_node("Det", ["b"], ["c"], name="d2"),
        helper.make_node("Odd", ["c"], ["e"], name="odd", domain="my"),
        helper.make_node("MaxPool", ["e"], ["f", "places"], name="pool", kernel_shape=[2]),
        helper.make_node("Add", ["f", "places"], ["y"]),
        helper.make_node("Unused", ["x"], ["z"]),
    ]
    said = line_of(simple(*nodes), tmp_path, UnsupportedError)
    assert "4 operators are not supported" in said
    for part in (
        "Loop (it runs a part of the graph by a value",
        "Det: d1, d2",
        "my.Odd: odd",
        "MaxPool with 2 outputs: pool",
    ):
        assert part in said
    assert "Unused" not in said
    with pytest.raises(UnsupportedError) as caught:
        parspike.from_onnx(save(simple(*nodes), tmp_path))
    assert caught.value.details["Det"] == ["d1", "d2"]


def last_state(rng: Rng, rows: int = 12, width: int = 4) -> Any:
    """The last state of an LSTM, and a layer behind it."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["s"], name="steps", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["s", "w", "r", "b"], ["", "h"], name="cell", hidden_size=3),
        helper.make_node("Squeeze", ["h", "axis"], ["q"], name="last"),
        helper.make_node("Gemm", ["q", "hw", "hb"], ["y"], name="head", transB=1),
    ]
    weights = {"w": values(rng, 1, rows, width), "r": values(rng, 1, 12, 3), "b": values(rng, 1, 24)}
    weights |= {"axis": np.array([0]), "hw": values(rng, 2, 3), "hb": values(rng, 2)}
    return file_of(nodes, [info("x", shape=["B", 3, 4], dtype=1)], [info("y", shape=["B", 2], dtype=1)], weights, 14)


def test_a_recurrent_layer_of_a_file_spikes(tmp_path: Path) -> None:
    """Catches an LSTM that runs and is not unrolled, and weights that torch's kernel reads past their end."""
    model, x = last_state(np.random.default_rng(0)), values(np.random.default_rng(1), 32, 3, 4, low=-1, high=1)
    snn = parspike.convert(parspike.from_onnx(save(model, tmp_path)), torch.from_numpy(x), T=256, recipe="max")
    assert len(snn.neurons()) == 12
    wanted = by_onnxruntime(model, {"x": x})[0]
    assert np.linalg.norm(snn(torch.from_numpy(x)).numpy() - wanted) < 0.01 * np.linalg.norm(wanted)
    for rows, width in ((0, 4), (10, 4), (12, 5)):
        network = parspike.from_onnx(save(last_state(np.random.default_rng(0), rows, width), tmp_path))
        with pytest.raises(UnsupportedError, match=rf"'cell' \(LSTM\): its weights have shapes \(1, {rows}, {width}\)"):
            network(torch.from_numpy(x))


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_is_one_error_or_a_network(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Would catch a damaged file that ends in anything but one `ParspikeError`."""
    folder = tmp_path_factory.mktemp("damaged")
    whole = bytearray(small_cnn(np.random.default_rng(0)).SerializeToString())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "net.onnx"
    path.write_bytes(bytes(whole))
    try:
        network = parspike.from_onnx(path)
        network(torch.zeros(1, 3, 8, 8))
    except parspike.ParspikeError as error:
        assert str(error)  # noqa: PT017 - a network that is still whole is right too


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04" + b"a" * 50, b"hello", b"\x89HDF\r\n\x1a\n" * 9])
def test_what_is_no_onnx_is_said(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(FileError, match="no readable ONNX file"):
        parspike.from_onnx(path)
    with pytest.raises(FileError, match="this is a folder"):
        parspike.from_onnx(tmp_path)
    with pytest.raises(FileError, match="there is no such file"):
        parspike.from_onnx(tmp_path / "none.onnx")


def test_a_tensor_that_claims_more_than_its_bytes_is_refused(tmp_path: Path) -> None:
    for proto in (
        TensorProto(name="w", data_type=1, dims=[1 << 40, 1 << 20], raw_data=b"\0" * 16),
        TensorProto(name="w", data_type=1, dims=[1 << 40], float_data=[1.0, 2.0]),
        TensorProto(name="w", data_type=TensorProto.INT4, dims=[7], raw_data=b"\0" * 3),
        TensorProto(name="w", data_type=1, dims=[-4], raw_data=b"\0" * 16),
    ):
        model = simple(helper.make_node("Add", ["x", "w"], ["y"]))
        model.graph.initializer.append(proto)
        assert "tensor 'w': damaged" in line_of(model, tmp_path)
    model = simple()
    model.graph.initializer.append(TensorProto(name="s", data_type=8, dims=[1], string_data=[b"a"]))
    assert "tensor 's' holds STRING" in line_of(model, tmp_path, UnsupportedError)


BOMBS = {
    "ConstantOfShape": [helper.make_node("ConstantOfShape", ["big"], ["a"])],
    "Expand": [helper.make_node("Expand", ["one", "big"], ["a"])],
    "Tile": [helper.make_node("Tile", ["one", "big"], ["a"])],
    "Range": [helper.make_node("Range", ["start", "limit", "step"], ["a"])],
    "Pad": [helper.make_node("Pad", ["one", "pads"], ["a"])],
    "OneHot": [helper.make_node("OneHot", ["places", "limit", "pair"], ["a"])],
    "Resize": [helper.make_node("Resize", ["one", "", "", "big"], ["a"])],
    "MatMul": [helper.make_node("MatMul", ["tall", "wide"], ["a"])],
}


@pytest.mark.parametrize("op", list(BOMBS))
def test_numbers_of_a_file_allocate_nothing_beyond_measure(op: str, tmp_path: Path) -> None:
    """As constants, which are folded when the file is read."""
    c = {
        "big": np.array([1 << 20, 1 << 20]),
        "one": np.ones((1, 1), np.float32),
        "start": np.array(0),
        "limit": np.array(1 << 40),
        "step": np.array(1),
        "pads": np.array([0, 0, 1 << 20, 1 << 20]),
        "places": np.array([1, 2]),
        "pair": np.array([0, 1], np.float32),
        "tall": np.ones((60_000, 1), np.float32),
        "wide": np.ones((1, 60_000), np.float32),
    }
    used = {name: c[name] for name in BOMBS[op][0].input if name}
    nodes = [
        *BOMBS[op],
        helper.make_node("ReduceSum", ["a"], ["t"], keepdims=0),
        helper.make_node("Cast", ["t"], ["f"], to=1),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    with pytest.raises(UnsupportedError, match=r"it asks for a tensor of \d{8,} elements"):
        parspike.from_onnx(save(simple(*nodes, **used), tmp_path))


def test_numbers_of_a_file_allocate_nothing_when_it_runs(tmp_path: Path) -> None:
    nodes = [helper.make_node("Pad", ["x", "pads"], ["p"]), helper.make_node("Relu", ["p"], ["y"])]
    network = parspike.from_onnx(save(simple(*nodes, pads=np.array([0, 1 << 40, 0, 1 << 40])), tmp_path))
    with pytest.raises(UnsupportedError, match=r"node 'Pad_0' \(Pad\): it asks for a tensor of"):
        network(torch.zeros(2, 3))


def external(folder: Path, **entries: str) -> Any:
    proto = TensorProto(name="w", data_type=1, dims=[3], data_location=1)
    for key, value in entries.items():
        proto.external_data.add(key=key, value=value)
    model = simple(helper.make_node("Add", ["x", "w"], ["y"]))
    model.graph.initializer.append(proto)
    return model


def test_external_data_are_read_from_the_models_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.bin").write_bytes(np.array([9, 1, 2, 3], "<f4").tobytes())
    model = external(tmp_path, location="sub/weights.bin", offset="4", length="12")
    got = parspike.from_onnx(save(model, tmp_path))(torch.zeros(1, 3))
    assert got.tolist() == [[1.0, 2.0, 3.0]]


def test_external_data_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 64)
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "short.bin").write_bytes(b"\0" * 8)
    for entries, said in (
        ({"location": str(secret)}, "outside the folder of the model: refused"),
        ({"location": "../secret.bin"}, "outside the folder of the model: refused"),
        ({"location": "a/../../secret.bin"}, "outside the folder of the model: refused"),
        ({"location": "C:\\secret.bin"}, "outside the folder of the model: refused"),
        ({}, "outside the folder of the model: refused"),
        ({"location": "link.bin"}, "a symbolic link: refused"),
        ({"location": "linked/secret.bin"}, "a symbolic link: refused"),
        ({"location": "absent.bin"}, "not there"),
        ({"location": "short.bin"}, "claims 12 bytes from 0 on, and 'short.bin' has 8 bytes"),
        ({"location": "short.bin", "offset": "-8"}, "damaged"),
        ({"location": "short.bin", "offset": "many"}, "is no number"),
        ({"location": "short.bin", "length": "8"}, "damaged"),
    ):
        assert said in line_of(external(folder, **entries), folder)


def test_a_cycle_and_values_that_nothing_makes_are_refused(tmp_path: Path) -> None:
    cycle = [helper.make_node("Add", ["x", "b"], ["a"], name="one"), helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("Relu", ["b"], ["y"])]  # fmt: skip
    assert "node 'one' (Add) reads 'b', which only a later node makes: the graph has a cycle" in line_of(
        simple(*cycle), tmp_path
    )
    assert "reads 'nothing', which nothing in the file makes" in line_of(
        simple(helper.make_node("Add", ["x", "nothing"], ["y"])), tmp_path
    )
    twice = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]
    assert "makes 'y', which is there already" in line_of(simple(*twice), tmp_path)
    assert "nothing makes its output 'y'" in line_of(simple(helper.make_node("Relu", ["x"], ["z"])), tmp_path)


def test_operators_with_too_few_or_too_many_inputs_are_refused(tmp_path: Path) -> None:
    few = "node 'n' (Add) needs its first 2 inputs, and has 1 of them"
    assert few in line_of(simple(helper.make_node("Add", ["x"], ["y"], name="n")), tmp_path)
    assert few in line_of(simple(helper.make_node("Add", ["", "x"], ["y"], name="n")), tmp_path)
    many = simple(helper.make_node("Relu", ["x", "x"], ["y"], name="n"))
    assert "node 'n' (Relu) has 2 inputs, and takes 1 at most" in line_of(many, tmp_path)


def test_what_a_file_leaves_out_is_said(tmp_path: Path) -> None:
    model = simple()
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].type.tensor_type.ClearField("shape")
    network = parspike.from_onnx(save(model, tmp_path))
    with pytest.raises(OptionError, match="does not say the shape of its input 'x'"):
        network.example()
    assert network.example(3, (4,)).shape == (3, 4)
    model = simple(helper.make_node("Relu", ["c"], ["y"]), c=np.zeros((2, 3), np.float32))
    del model.graph.input[:]
    assert "it has no input: nothing to convert" in line_of(model, tmp_path, UnsupportedError)
    model = simple(helper.make_node("Add", ["x", "c"], ["y"]), c=np.zeros(3, np.float32))
    model.graph.initializer.append(model.graph.initializer[0])
    assert "there are two tensors 'c'" in line_of(model, tmp_path)


def test_what_only_functions_and_training_have_is_refused(tmp_path: Path) -> None:
    model = simple()
    entries = (
        helper.make_tensor("s", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("p", TensorProto.INT64, [1], [0]),
    )
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(*entries, [3]))
    assert "holds sparse tensors: export the network with dense weights" in line_of(model, tmp_path, UnsupportedError)
    model = simple(helper.make_node("LeakyRelu", ["x"], ["y"], name="r", alpha=0.5))
    model.graph.node[0].attribute[0].ref_attr_name = "slope"
    assert "node 'r' reads the attribute of a function outside of one" in line_of(model, tmp_path)
    model = simple(helper.make_node("Relu", ["x"], ["y"], name="r"))
    model.graph.node[0].attribute.append(helper.make_attribute("of", helper.make_tensor_type_proto(1, [3])))
    assert "the attribute 'of' of node 'r' is of a kind" in line_of(model, tmp_path, UnsupportedError)
    # Names that are left out at the end are as good as none, and words of a node that no rule reads are no fault.
    model = simple(helper.make_node("Clip", ["x", "", ""], ["y", ""], name="r", words=["a", "b"]))
    x = torch.randn(2, 3)
    assert torch.equal(parspike.from_onnx(save(model, tmp_path))(x), x)


@pytest.mark.parametrize(
    ("opset", "kind", "said"),
    [
        (6, UnsupportedError, "from before 7"),
        (999, UnsupportedError, "the installed onnx knows up to"),
        (0, FileError, "damaged"),
    ],
)
def test_an_unknown_opset_is_refused(opset: int, kind: type[Exception], said: str, tmp_path: Path) -> None:
    assert said in line_of(simple(opset=opset), tmp_path, kind)


def test_functions_that_grow_or_call_themselves_are_refused(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)]

    def function(name: str, inner: str, number: int) -> Any:
        calls_ = [helper.make_node(inner, [f"v{i}"], [f"v{i + 1}"], domain="own") for i in range(number)]
        return helper.make_function("own", name, ["v0"], [f"v{number}"], calls_, opsets)

    model = simple(helper.make_node("f0", ["x"], ["y"], domain="own"))
    model.functions.append(function("f0", "f0", 1))
    assert "its function 'f0' calls itself" in line_of(model, tmp_path)
    model = simple(helper.make_node("f0", ["x"], ["y"], domain="own"))
    model.functions.extend(function(f"f{i}", f"f{i + 1}", 10) for i in range(9))
    assert "its functions grow to more than 1000000 operators" in line_of(model, tmp_path)


def test_inputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    model = simple()
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", 1, None))
    assert "its input 'x' is no tensor but a sequence_type" in line_of(model, tmp_path, UnsupportedError)
    model.graph.input[0].CopyFrom(info("x", shape=["B"], dtype=TensorProto.STRING))
    assert "its input 'x' holds STRING, no numbers" in line_of(model, tmp_path, UnsupportedError)


def test_training_mode_and_options_without_a_rule_are_refused_with_the_node(tmp_path: Path) -> None:
    network = parspike.from_onnx(save(simple(helper.make_node("Resize", ["x", "", "s"], ["y"], name="up", antialias=1),
                                             s=np.array([1, 2], np.float32), opset=18), tmp_path))  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"node 'up' \(Resize\): antialias is not supported"):
        network(torch.zeros(2, 3))
    network = parspike.from_onnx(save(simple(helper.make_node("MatMul", ["x", "w"], ["y"], name="fc"),
                                             w=np.ones((4, 2), np.float32)), tmp_path))  # fmt: skip
    with pytest.raises(InputError, match=r"node 'fc' \(MatMul\) fails on inputs of shape \(2, 3\), \(4, 2\): "):
        network(torch.zeros(2, 3))


def test_without_onnx_the_install_command_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(simple(), tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'parspike\[export\]'"):
        parspike.from_onnx(path)


def test_the_page_lists_the_operators_that_are_read() -> None:
    page = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text()
    listed = re.findall(
        r"`(\w+)`", page.partition("<!-- operators -->")[2].partition("<!-- end -->")[0].partition("com.micro")[0]
    )
    assert set(listed) == {name for domain, name in RULES if not domain} | {"Constant"}
