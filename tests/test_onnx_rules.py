"""Each operator that ONNX files can hold: the file against torch on random shapes, at several batch sizes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from parspike.errors import UnsupportedError
from parspike.export.onnx_model import Model
from parspike.graph import Graph, Input, Node, Param, Ref, Role, Size, leaves, map_tree
from parspike.graph.ops import TABLE, USER

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from parspike.export.onnx import RULES, session

BATCH = Size("batch")
Rng = np.random.Generator


@dataclass(frozen=True)
class Given:
    """An input of the network, (B, …); all other tensors are the network's own."""

    x: Tensor

    def of(self, batch: int) -> Tensor:
        """Another batch, of the same samples in another order."""
        return self.x[[(3 * place + batch) % len(self.x) for place in range(batch)]].contiguous()


def run(op: str, args: Any, options: Any, batch: int) -> Any:
    def filled(leaf: Any) -> Any:
        return leaf.of(batch) if isinstance(leaf, Given) else leaf({"batch": batch}) if isinstance(leaf, Size) else leaf

    return TABLE[op].run(*map_tree(filled, args), **map_tree(filled, options))


def graph_of(op: str, args: Any, options: Any) -> Graph:
    """A network of one operator, its sizes found by running it on two batches."""
    given: dict[str, Given] = {}
    tensors: dict[str, Tensor] = {}

    def named(leaf: Any) -> Any:
        if isinstance(leaf, Given):
            given[name := f"x{len(given)}"] = leaf
            return Ref(name)
        if isinstance(leaf, Tensor):
            tensors[path := f"t{len(tensors)}"] = leaf
            return Param(path)
        return leaf

    def shape(one: Tensor, other: Tensor) -> tuple[Any, ...]:
        return tuple(
            n if n == m else BATCH if n == 4 else Size(("*", n // 4, "batch"))
            for n, m in zip(one.shape, other.shape, strict=True)
        )

    made = Node("y", op, map_tree(named, args), map_tree(named, options), Role.SYNAPSE, "y")
    found = [[leaf for leaf in leaves(run(op, args, options, batch)) if isinstance(leaf, Tensor)] for batch in (4, 6)]
    shapes = [shape(one, other) for one, other in zip(*found, strict=True)]
    several = not isinstance(run(op, args, options, 4), Tensor)
    nodes = [Node("y", op, made.args, made.kwargs, Role.SYNAPSE, "y", shape=shapes[0])]
    if several:
        nodes += [
            Node(f"y{n}", "getitem", (Ref("y"), n), {}, Role.SYNAPSE, f"y{n}", shape=one)
            for n, one in enumerate(shapes)
        ]
    inputs = tuple(Input(name, (BATCH, *g.x.shape[1:]), g.x.dtype) for name, g in given.items())
    output = [Ref(node.name) for node in nodes[1:]] if several else [Ref("y")]
    return Graph(inputs, tuple(nodes), output, tensors)


def check(
    op: str,
    *args: Any,
    alone: int | None = None,
    tolerance: float = 2e-5,
    batches: Sequence[int] = (1, 4, 7),
    **options: Any,
) -> Any:
    """An operator by the file and by torch, for some batches. alone: how many results the file has, from the
    first on."""
    graph = graph_of(op, args, options)
    if alone is not None:
        kept = graph.nodes[: 1 + alone]
        graph = Graph(graph.inputs, kept, [Ref(node.name) for node in kept[1:]], graph.tensors)
    model = Model(graph, graph.tensors, {}, RULES)
    for node in graph.nodes:
        model.add(node)
    written = model.finished()
    go = session(written.model)
    for batch in batches:
        inputs = [leaf.of(batch) for leaf in leaves((args, options)) if isinstance(leaf, Given)]
        got = go(list(graph.outputs), {f"x{n}": x.numpy() for n, x in enumerate(inputs)})
        wanted = [leaf for leaf in leaves(run(op, args, options, batch)) if isinstance(leaf, Tensor)]
        for one, other in zip(got, wanted[:alone], strict=True):
            assert one.shape == tuple(other.shape), (op, args, options)
            if other.is_floating_point():
                np.testing.assert_allclose(
                    one, other.numpy(), rtol=tolerance, atol=tolerance, err_msg=f"{op} {options}"
                )
            else:
                np.testing.assert_array_equal(one, other.numpy(), err_msg=f"{op} {options}")
    return written


# ------------------------------------------------------------------------------------------------ a draw of every rule

DRAWS: dict[str, Callable[[Rng], Any]] = {}


def draw(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that draws shapes and arguments and checks: called with the operator's name."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names.split():
            full = name if name.startswith("parspike") or name == "getitem" else f"aten.{name}"
            DRAWS[full] = functools.partial(function, full)
        return function

    return register


def values(rng: Rng, *shape: int, low: float = -3, high: float = 3) -> Tensor:
    return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))


def halves(rng: Rng, *shape: int) -> Tensor:
    """Values with many ties, zeros and halves among them."""
    return torch.from_numpy(rng.integers(-6, 7, shape) / 2).float()


def whole(rng: Rng, *shape: int, below: int = 5) -> Tensor:
    return torch.from_numpy(rng.integers(0, below, shape))


def given(rng: Rng, *shape: int, **range_: float) -> Given:
    return Given(values(rng, 7, *shape, **range_))


def sizes(rng: Rng, least: int = 1, most: int = 3, low: int = 2, high: int = 6) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(low, high, rng.integers(least, most + 1)))


def either(rng: Rng, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def some(rng: Rng, shape: tuple[int, ...]) -> int:
    """A dimension after the batch, counted from either end."""
    dim = int(rng.integers(1, len(shape) + 1))
    return either(rng, dim, dim - len(shape) - 1)


def number(rng: Rng, low: float = -2, high: float = 2) -> float:
    return float(rng.uniform(low, high))


# Synapses.


@draw("conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding conv3d.padding")
def convolution(op: str, rng: Rng) -> None:
    rank, groups, padded = int(op[9]), either(rng, 1, 2), op.endswith("padding")
    kernel, size = [int(n) for n in rng.integers(1, 4, rank)], [int(n) for n in rng.integers(6, 8, rank)]
    padding = either(rng, "same", "valid") if padded else either(rng, [1] * rank, [0] * rank)
    stride = [1] * rank if padded else [int(n) for n in rng.integers(1, 3, rank)]
    weight, bias = values(rng, 2 * groups, 2, *kernel), either(rng, None, values(rng, 2 * groups))
    check(op, given(rng, 2 * groups, *size), weight, bias, stride, padding, [either(rng, 1, 2)] * rank, groups,
          tolerance=1e-4)  # fmt: skip


@draw("conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input")
def transposed(op: str, rng: Rng) -> None:
    rank, groups = int(op.split("d.")[0][-1]), either(rng, 1, 2)
    kernel, stride = [int(n) for n in rng.integers(2, 4, rank)], [either(rng, 2, 3)] * rank
    bias = either(rng, None, values(rng, 3 * groups))
    check(op, given(rng, 2 * groups, *[4] * rank), values(rng, 2 * groups, 3, *kernel), bias, stride,
          [either(rng, 0, 1)] * rank, [either(rng, 0, 1)] * rank, groups, tolerance=1e-4)  # fmt: skip


@draw("linear.default")
def linear(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), values(rng, 3, shape[-1]), either(rng, None, values(rng, 3)), tolerance=1e-4)


@draw("matmul.default mm.default bmm.default")
def products(op: str, rng: Rng) -> None:
    a, b, c = (int(n) for n in rng.integers(2, 6, 3))
    if "mm." in op and "bmm" not in op:
        check(op, given(rng, a), values(rng, a, b), tolerance=1e-4)
    else:
        check(op, given(rng, a, b), given(rng, b, c), tolerance=1e-4)
    if op == "aten.matmul.default":
        check(op, given(rng, a, b, c), values(rng, c), tolerance=1e-4)


@draw("addmm.default addmv.default baddbmm.default")
def added_products(op: str, rng: Rng) -> None:
    a, b, c = (int(n) for n in rng.integers(2, 6, 3))
    options = either(rng, {}, {"beta": number(rng), "alpha": 2}, {"beta": 0, "alpha": 0.5})
    if op == "aten.addmm.default":
        check(op, values(rng, b), given(rng, a), values(rng, a, b), tolerance=1e-4, **options)
    elif op == "aten.addmv.default":
        check(op, Given(values(rng, 7)), given(rng, a), values(rng, a), tolerance=1e-4, **options)
    else:
        check(op, given(rng, a, c), given(rng, a, b), given(rng, b, c), tolerance=1e-4, **options)


@draw("einsum.default")
def einsum(op: str, rng: Rng) -> None:
    a, b, c = (int(n) for n in rng.integers(2, 6, 3))
    check(op, "bchw, cd -> bdhw", [given(rng, a, b, c), values(rng, a, 3)], tolerance=1e-4)
    check(op, "b...i,b...j->b...ij", [given(rng, a, b), given(rng, a, c)], tolerance=1e-4)


@draw("bilinear.default")
def bilinear(op: str, rng: Rng) -> None:
    lead = sizes(rng, 1, 2)
    check(op, given(rng, *lead, 3), given(rng, *lead, 4), values(rng, 2, 3, 4), either(rng, None, values(rng, 2)),
          tolerance=1e-4)  # fmt: skip


@draw("addcmul.default lerp.Scalar")
def mixed(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    if "lerp" in op:
        check(op, given(rng, *shape), given(rng, *shape), number(rng))
    else:
        check(op, given(rng, *shape), given(rng, *shape), values(rng, shape[-1]), value=either(rng, 1, number(rng)))


@draw("add.Tensor sub.Tensor rsub.Tensor")
def sums(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    other = either(rng, given(rng, *shape), values(rng, shape[-1]), Given(whole(rng, 7, *shape)))
    check(op, given(rng, *shape), other, **either(rng, {}, {"alpha": 2}, {"alpha": 0.5}))
    check(op, Given(whole(rng, 7, *shape)), whole(rng, shape[-1]), **either(rng, {}, {"alpha": 3}))


@draw("add.Scalar sub.Scalar rsub.Scalar")
def shifts(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), either(rng, 2, number(rng)), either(rng, 1, 3))
    check(op, Given(whole(rng, 7, *shape)), either(rng, 2, 0.5))


@draw("mul.Tensor div.Tensor maximum.default minimum.default fmax.default fmin.default pow.Tensor_Tensor")
def pairs(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    low = 0.5 if "pow" in op or "div" in op else -3
    x = given(rng, *shape, low=low)
    check(
        op,
        x,
        either(rng, given(rng, *shape, low=low), values(rng, shape[-1], low=low), Given(1 + whole(rng, 7, *shape))),
    )
    if "mul" in op or "div" in op:
        check(op, Given(whole(rng, 7, *shape)), Given(1 + whole(rng, 7, *shape)))
    if "mul" in op:
        check(op, x, Given(values(rng, 7, *shape) > 0))
        check(op, Given(values(rng, 7, *shape) > 0), Given(values(rng, 7, *shape) > 0))


@draw("mul.Scalar div.Scalar pow.Tensor_Scalar")
def scales(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng), low=0.2), either(rng, 2, 3, number(rng, 0.5)))
    if "pow" not in op:
        check(op, Given(whole(rng, 7, 3)), either(rng, 2, 1.5))


@draw("pow.Scalar")
def power(op: str, rng: Rng) -> None:
    check(op, either(rng, 2, number(rng, 0.3)), given(rng, *sizes(rng)))


@draw("remainder.Scalar remainder.Tensor fmod.Scalar div.Tensor_mode div.Scalar_mode floor_divide.default")
def quotients(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    divisor = either(rng, -1.5, 0.1, 0.5, 3)
    other = (
        divisor
        if "Scalar" in op
        else either(
            rng, torch.tensor(float(divisor)), values(rng, shape[-1], low=0.3), -values(rng, shape[-1], low=0.3)
        )
    )
    options = {"rounding_mode": either(rng, "floor", "trunc")} if "mode" in op else {}
    # Multiples of the divisor among them, where a quotient is a whole number, or a rounding below it.
    x = Given(torch.cat([values(rng, 3, *shape), torch.from_numpy(rng.integers(-9, 9, (4, *shape))) * divisor]).float())
    check(op, x, other, **options)
    whole_ = 3 if "Scalar" in op else Given(1 + whole(rng, 7, *shape))
    if options.get("rounding_mode") != "trunc" or "Scalar" not in op:
        check(op, Given(whole(rng, 7, *shape, below=30) - 15), whole_, **options)


@draw("parspike.scale_shift")
def scale_shift(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), values(rng, shape[0]), values(rng, shape[0]))


@draw("parspike.batch_norm")
def batch_norm(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    weight, bias = either(rng, (None, None), (values(rng, shape[0]), values(rng, shape[0])))
    check(op, given(rng, *shape), weight, bias, values(rng, shape[0]), values(rng, shape[0], low=0.1), 1e-3)


# Functions of one number.


@draw(
    "neg.default relu.default abs.default sign.default round.default floor.default ceil.default trunc.default "
    "square.default signbit.default"
)
def stepped(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    x = halves(rng, 7, *shape)
    x[0] = -0.0
    check(op, Given(x))
    if op not in ("aten.signbit.default", "aten.relu.default"):
        check(op, Given(whole(rng, 7, *shape) - 2))


@draw(
    "sigmoid.default tanh.default exp.default erf.default sin.default cos.default sinh.default cosh.default "
    "atan.default asinh.default expm1.default exp2.default erfc.default mish.default selu.default silu.default "
    "hardswish.default hardsigmoid.default log_sigmoid.default relu6.default isnan.default isinf.default"
)
def unary(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng), low=-5, high=8))


@draw(
    "sqrt.default log.default reciprocal.default rsqrt.default log1p.default log2.default log10.default acosh.default"
)
def positive(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng), low=1.01, high=9))


@draw("tan.default asin.default acos.default atanh.default")
def bounded(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng), low=-0.9, high=0.9))


@draw("copysign.Tensor hypot.default atan2.default")
def signed(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    x, y = halves(rng, 7, *shape), halves(rng, 7, *shape)
    x[0], y[1] = -0.0, -0.0
    check(op, Given(x), Given(y))
    check(op, given(rng, *shape), values(rng, shape[-1]))


@draw("round.decimals")
def decimals(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng), low=-300, high=300), decimals=either(rng, -2, -1, 0, 1, 2))


@draw("elu.default")
def elu(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng)), *either(rng, (), (number(rng, 0.2),), (0.5, 1.5, 2.0)))


@draw("celu.default leaky_relu.default softshrink.default hardshrink.default")
def one_option(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng)), *either(rng, (), (number(rng, 0.2),)))


@draw("softplus.default")
def softplus(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng), low=-9, high=30), *either(rng, (), (2.0,), (0.5, 3.0)))


@draw("threshold.default")
def threshold(op: str, rng: Rng) -> None:
    check(op, Given(halves(rng, 7, *sizes(rng))), either(rng, 0.5, number(rng)), number(rng))


@draw("prelu.default")
def prelu(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), values(rng, either(rng, 1, shape[0])))


@draw("gelu.default")
def gelu(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng)), approximate=either(rng, "none", "tanh"))


@draw("glu.default")
def glu(op: str, rng: Rng) -> None:
    shape = tuple(2 * n for n in sizes(rng))
    check(op, given(rng, *shape), some(rng, shape))


@draw("clamp.default")
def clamp(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng)), *either(rng, (-0.5, 1.25), (None, 1), (0,), (-1, None)))
    check(op, Given(whole(rng, 7, 3)), *either(rng, (1, 3), (1.5,)))


@draw("clamp_min.default clamp_max.default")
def clamp_one(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng)), either(rng, 0, number(rng)))


@draw("clamp.Tensor clamp_min.Tensor clamp_max.Tensor")
def clamp_tensors(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    low = either(rng, values(rng, shape[-1]), values(rng, 1)[0], given(rng, *shape))
    args = (low,) if op != "aten.clamp.Tensor" else (low, either(rng, None, values(rng, *shape, low=0)))
    check(op, given(rng, *shape), *args)


@draw("hardtanh.default")
def hardtanh(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng)), *either(rng, (), (-0.5, 2.0), (0, 6)))


@draw("parspike.qcfs")
def qcfs(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng)), torch.tensor(1.3), either(rng, 4, 15))


@draw("parspike.encode parspike.hold")
def encode(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng)), *either(rng, (), (-1.0,), (-1.0, 1.5)))


@draw("parspike.rising parspike.falling")
def parts(op: str, rng: Rng) -> None:
    name, options = either(rng, ("silu", {}), ("gelu", {"approximate": "tanh"}), ("abs", {}))
    at, lowest = TABLE[f"aten.{name}.default"].turn(options)  # type: ignore[misc]
    check(op, given(rng, *sizes(rng)), f"aten.{name}.default", at, lowest, **options)


@draw("parspike.pointwise")
def pointwise(op: str, rng: Rng) -> None:
    gate = ["aten.sigmoid.default", [["aten.mul.Tensor", ["x", 1.7], {}]], {}]
    tree = either(
        rng, ["aten.mul.Tensor", ["x", gate], {}],
        ["aten.where.self", [["aten.gt.Scalar", ["x", 0.5], {}], "x", 0.25], {}],
        ["aten.maximum.default", [["aten.add.Tensor", ["x", 1.0], {"alpha": 2}], 0.0], {}],
    )  # fmt: skip
    check(op, given(rng, *sizes(rng)), tree)


@draw("parspike.exp parspike.at_least")
def from_low(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng)), *either(rng, (-1.0,), () if op.endswith("exp") else (0.5,),
                                               (-2.0, 0.25, 1.5) if op.endswith("exp") else (0.0,)))  # fmt: skip


@draw("parspike.reciprocal parspike.rsqrt")
def inverse(op: str, rng: Rng) -> None:
    more = either(rng, (), (0.5,) if op.endswith("rsqrt") else (0.5, 2.0))
    check(op, given(rng, *sizes(rng), low=-4, high=1), 0.3, *more)


@draw("parspike.root")
def root(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng), low=-1, high=4))


@draw("parspike.times parspike.softmax_shares")
def by_element(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    other = halves(rng, 7, *shape)
    check(op, given(rng, *shape), Given(other.abs()))


@draw(
    "fake_quantize_per_tensor_affine.default fake_quantize_per_tensor_affine.tensor_qparams "
    "fake_quantize_per_channel_affine.default _fake_quantize_learnable_per_tensor_affine.default"
)
def fake_quantised(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    x, scale, zero = given(rng, *shape), number(rng, 0.1, 0.6), int(rng.integers(0, 9))
    if "per_channel" in op:
        args: Any = (values(rng, shape[0], low=0.1), whole(rng, shape[0]).int(), 1, 0, 15)
    elif "learnable" in op:
        args = (torch.tensor([scale]), torch.tensor([zero + 0.3]), -8, 7, 1.0)
    elif "qparams" in op:
        args = (torch.tensor(scale), torch.tensor(zero).int(), 0, 15)
    else:
        args = (scale, zero, 0, 15)
    check(op, x, *args)


# Along dimensions.


@draw("mean.dim sum.dim_IntList amax.default amin.default logsumexp.default")
def reductions(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    dims = either(rng, [some(rng, shape)], list(range(1, len(shape) + 1)))
    check(op, given(rng, *shape), dims, bool(either(rng, 0, 1)))
    if "sum.dim" in op:
        check(op, Given(values(rng, 7, *shape) > 0), dims)


@draw("prod.dim_int")
def prod(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), some(rng, shape), bool(either(rng, 0, 1)))


@draw("any.dim all.dim any.dims")
def truth(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    dim = some(rng, shape)
    check(op, Given(values(rng, 7, *shape) > 1), [dim] if op.endswith("dims") else dim, bool(either(rng, 0, 1)))


@draw("var.correction std.correction var_mean.correction")
def spread(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), [some(rng, shape)], correction=either(rng, 0, 1), keepdim=bool(either(rng, 0, 1)))


@draw("var.dim std.dim")
def spread_of_dims(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), [some(rng, shape)], bool(either(rng, 0, 1)), bool(either(rng, 0, 1)))


@draw("linalg_vector_norm.default norm.ScalarOpt_dim")
def norms(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    order = either(rng, 0, 1, 2, 3, math.inf, -math.inf)
    check(op, Given(halves(rng, 7, *shape)), order, [some(rng, shape)], bool(either(rng, 0, 1)))


@draw("cdist.default")
def cdist(op: str, rng: Rng) -> None:
    a, b, c = (int(n) for n in rng.integers(2, 6, 3))
    check(
        op,
        given(rng, a, c),
        either(rng, given(rng, b, c), values(rng, b, c)),
        either(rng, 1.0, 2.0, 3.0, math.inf),
        None,
    )


@draw("cosine_similarity.default")
def cosine(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), either(rng, given(rng, *shape), values(rng, *shape)), some(rng, shape), 1e-8)


@draw("softmax.int log_softmax.int")
def softmax(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), some(rng, shape))


@draw("_softmax.default _log_softmax.default")
def old_softmax(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), some(rng, shape), False)


@draw("layer_norm.default native_layer_norm.default")
def layer_norm(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    last = list(shape[-either(rng, 1, len(shape)) :])
    weight = either(rng, None, values(rng, *last))
    check(op, given(rng, *shape), last, weight, None if weight is None else either(rng, None, values(rng, *last)), 1e-4)


@draw("rms_norm.default")
def rms_norm(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), list(shape[-1:]), either(rng, None, values(rng, shape[-1])), either(rng, None, 1e-4))


@draw("_fused_rms_norm.default")
def fused_rms_norm(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), list(shape[-1:]), values(rng, shape[-1]), 1e-4)


@draw("group_norm.default")
def group_norm(op: str, rng: Rng) -> None:
    channels, rest = 2 * int(rng.integers(1, 4)), sizes(rng)
    own = either(rng, (), (values(rng, channels), values(rng, channels)))
    check(op, given(rng, channels, *rest), either(rng, 1, 2, channels), *own)


@draw("native_group_norm.default")
def native_group_norm(op: str, rng: Rng) -> None:
    channels, rest = 2 * int(rng.integers(1, 4)), sizes(rng)
    check(
        op, given(rng, channels, *rest), values(rng, channels), None, BATCH, channels, math.prod(rest), 2, 1e-5, alone=1
    )


@draw("instance_norm.default")
def instance_norm(op: str, rng: Rng) -> None:
    channels, rest = int(rng.integers(1, 5)), sizes(rng, 1, 2)
    own = either(rng, (None, None), (values(rng, channels), values(rng, channels)))
    kept = (values(rng, channels), values(rng, channels, low=0.2))
    used = bool(either(rng, 0, 1))
    check(op, given(rng, channels, *rest), *own, *((None, None) if used else kept), used, 0.1, 1e-4, False)


@draw("scaled_dot_product_attention.default")
def attention(op: str, rng: Rng) -> None:
    heads, rows, columns, e, v = (int(n) for n in rng.integers(2, 5, 5))
    q, k, x = given(rng, heads, rows, e), given(rng, heads, columns, e), given(rng, heads, columns, v)
    mask = either(
        rng, None, values(rng, rows, columns), values(rng, rows, columns) > 0, values(rng, rows, columns) > -9
    )
    options = either(rng, {}, {"scale": 0.3})
    check(op, q, k, x, mask, 0.0, mask is None and bool(either(rng, 0, 1)), **options)
    check(op, given(rng, 2 * heads, rows, e), k, x, enable_gqa=True)


@draw("_scaled_dot_product_flash_attention_for_cpu.default")
def flash(op: str, rng: Rng) -> None:
    heads, rows, e = (int(n) for n in rng.integers(2, 5, 3))
    q, k, x = (given(rng, heads, rows, e) for _ in range(3))
    check(op, q, k, x, 0.0, bool(either(rng, 0, 1)), alone=1)


@draw("parspike.masked")
def masked(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), either(rng, values(rng, shape[-1]), values(rng, shape[-1]) > 0))


@draw("parspike.softmax_weights parspike.largest parspike.size")
def of_row(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    x = values(rng, 7, *shape)
    if not op.endswith("size"):
        x[0] = -math.inf
    check(op, Given(x), some(rng, shape))


@draw("parspike.rotate")
def rotate(op: str, rng: Rng) -> None:
    check(op, given(rng, *either(rng, (3, 8), (12,), (5,), (1024,))), tolerance=1e-4)


# Images.


@draw(
    "max_pool1d.default max_pool2d.default max_pool3d.default max_pool2d_with_indices.default "
    "max_pool3d_with_indices.default"
)
def max_pool(op: str, rng: Rng) -> None:
    rank = int(op.split("d")[0][-1])
    size = [int(n) for n in rng.integers(6, 9, rank)]
    kernel, stride = ([int(n) for n in rng.integers(2, 4, rank)] for _ in range(2))
    padding, dilation = [either(rng, 0, 1)] * rank, [either(rng, 1, 2)] * rank
    check(op, given(rng, 2, *size), kernel, either(rng, [], stride), padding, dilation, bool(either(rng, 0, 1)))
    if op == "aten.max_pool1d.default":
        check(op, given(rng, 8), [2], [2])


@draw("avg_pool1d.default avg_pool2d.default avg_pool3d.default")
def avg_pool(op: str, rng: Rng) -> None:
    rank = int(op.split("d.")[0][-1])
    size = [int(n) for n in rng.integers(6, 9, rank)]
    kernel, stride = ([int(n) for n in rng.integers(2, 4, rank)] for _ in range(2))
    padding, ceil = [either(rng, 0, 1)] * rank, bool(either(rng, 0, 1))
    check(op, given(rng, 2, *size), kernel, either(rng, [], stride), padding, ceil, bool(either(rng, 0, 1)))
    if rank > 1:
        check(op, given(rng, 2, *size), kernel, stride, padding, False, bool(either(rng, 0, 1)), 5)


@draw(" ".join(f"adaptive_{kind}_pool{d}d.default" for kind in ("max", "avg") for d in "123"))
def adaptive(op: str, rng: Rng) -> None:
    rank = int(op.split("d.")[0][-1])
    size, out = ([int(n) for n in rng.integers(low, high, rank)] for low, high in ((6, 9), (1, 6)))
    check(op, given(rng, 2, *size), out)
    check(op, given(rng, 2, *[2 * n for n in out]), out)


@draw(" ".join(f"adaptive_max_pool{d}d.places" for d in "123"))
def adaptive_places(op: str, rng: Rng) -> None:
    rank = int(op.split("d.")[0][-1])
    out = [int(n) for n in rng.integers(1, 5, rank)]
    check(op, given(rng, 2, *[2 * n for n in out]), out)


@draw("max_unpool2d.default max_unpool3d.default")
def unpool(op: str, rng: Rng) -> None:
    rank = int(op.split("d.")[0][-1])
    out = [2 * int(n) for n in rng.integers(1, 4, rank)]
    pool = getattr(torch.nn.functional, f"max_pool{rank}d")
    x, places = pool(values(rng, 7, 2, *out), 2, return_indices=True)
    check(op, Given(x), Given(places), out, *([[2] * rank, [0] * rank] if rank == 3 else []))


UPSAMPLED = (
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d "
    "upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa"
)


@draw(" ".join(f"{name}.{form}" for name in UPSAMPLED.split() for form in ("default", "vec")))
def upsampled(op: str, rng: Rng) -> Any:
    rank = int(op.replace("_aa", "").split("d.")[0][-1])
    size, out = ([int(n) for n in rng.integers(low, 10, rank)] for low in (3, 2))
    corners = () if "nearest" in op else (bool(either(rng, 0, 1)),)
    x = given(rng, 2, *size)
    if op.endswith("default"):
        return check(op, x, either(rng, out, [2 * n for n in size]), *corners, tolerance=1e-4)
    factors = [either(rng, 2.0, 1.5, 1.7, 0.6) for _ in range(rank)]
    return check(op, x, *either(rng, (out, *corners, None), (None, *corners, factors)), tolerance=1e-4)


@draw("grid_sampler.default grid_sampler_2d.default")
def grid_sampler(op: str, rng: Rng) -> None:
    grid = given(rng, 3, 4, 2, low=-1.3, high=1.3)
    check(
        op,
        given(rng, 2, 5, 6),
        grid,
        either(rng, 0, 1, 2),
        either(rng, 0, 1, 2),
        bool(either(rng, 0, 1)),
        tolerance=1e-4,
    )
    if op == "aten.grid_sampler.default":
        cube = given(rng, 2, 3, 4, 3, low=-1.3, high=1.3)
        check(
            op,
            given(rng, 2, 3, 5, 6),
            cube,
            either(rng, 0, 1),
            either(rng, 0, 1, 2),
            bool(either(rng, 0, 1)),
            tolerance=1e-4,
        )


@draw("im2col.default")
def im2col(op: str, rng: Rng) -> None:
    check(
        op,
        given(rng, 3, 7, 6),
        [either(rng, 2, 3), 2],
        [either(rng, 1, 2)] * 2,
        [either(rng, 0, 1), 1],
        [1, either(rng, 1, 2)],
    )


@draw("col2im.default")
def col2im(op: str, rng: Rng) -> None:
    kernel, dilation, padding, stride = (
        [either(rng, 2, 3), 2],
        [either(rng, 1, 2)] * 2,
        [either(rng, 0, 1), 1],
        [1, either(rng, 1, 2)],
    )
    columns = torch.ops.aten.im2col(torch.zeros(1, 2, 7, 6), kernel, dilation, padding, stride)
    check(op, given(rng, *columns.shape[1:]), [7, 6], kernel, dilation, padding, stride)


@draw("pixel_shuffle.default")
def pixel_shuffle(op: str, rng: Rng) -> None:
    factor, size = either(rng, 2, 3), sizes(rng, 2, 2)
    check(op, given(rng, 2 * factor**2, *size), factor)
    check(op, given(rng, 2, factor**2, *size), factor)


@draw("pixel_unshuffle.default")
def pixel_unshuffle(op: str, rng: Rng) -> None:
    factor, size = either(rng, 2, 3), sizes(rng, 3, 3)
    check(op, given(rng, size[0], factor * size[1], factor * size[2]), factor)


@draw("channel_shuffle.default")
def channel_shuffle(op: str, rng: Rng) -> None:
    groups = either(rng, 2, 3)
    check(op, given(rng, groups * int(rng.integers(1, 4)), *sizes(rng, 1, 2)), groups)


# Moved, chosen, joined.


@draw("reshape.default")
def reshape(op: str, rng: Rng) -> None:
    a, b, c = sizes(rng, 3, 3)
    check(op, given(rng, a, b, c), either(rng, [BATCH, a * b, c], [BATCH, -1], [-1, c], [BATCH, c, a, b]))
    check(op, given(rng, a, b), [1, BATCH, 1, a * b])


@draw("permute.default")
def permute(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), [0, *(int(n) + 1 for n in rng.permutation(len(shape)))])


@draw("transpose.int swapaxes.default")
def transpose(op: str, rng: Rng) -> None:
    shape = sizes(rng, 2, 4)
    check(op, given(rng, *shape), some(rng, shape), some(rng, shape))


@draw("t.default")
def t(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng, 1, 1)))


@draw("movedim.int movedim.intlist")
def movedim(op: str, rng: Rng) -> None:
    shape = sizes(rng, 3, 4)
    if op.endswith("intlist"):
        one, two = (rng.permutation(len(shape))[:2] + 1 for _ in range(2))
        check(op, given(rng, *shape), [int(n) for n in one], [int(n) - either(rng, 0, len(shape) + 1) for n in two])
    else:
        check(op, given(rng, *shape), some(rng, shape), some(rng, shape))


@draw("squeeze.default squeeze.dim squeeze.dims unsqueeze.default")
def squeezed(op: str, rng: Rng) -> Any:
    shape = (*sizes(rng, 1, 1), 1, *sizes(rng, 1, 1), 1)
    rest: Any = {"dim": (either(rng, 2, -1),), "dims": ([2, -1],), "default": (some(rng, shape),)}[op.split(".")[-1]]
    if op == "aten.squeeze.default":  # torch squeezes a batch of one too, which tracing reads as the other dimensions
        return check(op, given(rng, *shape), batches=(4, 7))
    return check(op, given(rng, *shape), *rest)


@draw("expand.default broadcast_to.default")
def expand(op: str, rng: Rng) -> None:
    a, b = sizes(rng, 2, 2)
    check(op, given(rng, 1, b), [BATCH, a, b])
    check(op, given(rng, 1), [3, BATCH, a])
    check(op, given(rng, 1, 1, b), [BATCH, 2, a, b])


@draw("expand_as.default")
def expand_as(op: str, rng: Rng) -> None:
    a, b = sizes(rng, 2, 2)
    check(op, given(rng, 1, b), given(rng, a, b))
    check(op, values(rng, b), given(rng, a, b))


@draw("copy.default")
def copy(op: str, rng: Rng) -> None:
    a, b = sizes(rng, 2, 2)
    check(op, given(rng, a, b), either(rng, given(rng, a, b), values(rng, b), Given(whole(rng, 7, 1, b))))


@draw("slice.Tensor")
def slice_(op: str, rng: Rng) -> None:
    shape = sizes(rng, low=4, high=8)
    check(
        op,
        given(rng, *shape),
        some(rng, shape),
        either(rng, None, 0, 1, -3),
        either(rng, None, -1, 3, 99),
        either(rng, 1, 2),
    )
    check(op, given(rng, *shape), 0, 0, either(rng, BATCH, Size(("//", ("+", "batch", 1), 2))))


@draw("narrow.default")
def narrow(op: str, rng: Rng) -> None:
    shape = sizes(rng, low=4, high=8)
    check(op, given(rng, *shape), some(rng, shape), either(rng, 0, 1, -3), either(rng, 1, 2, 3))


@draw("select.int")
def select(op: str, rng: Rng) -> None:
    shape = sizes(rng, 2, 3)
    check(op, given(rng, *shape), some(rng, shape), either(rng, 0, 1, -1))


@draw("split.Tensor chunk.default tensor_split.sections unsafe_split.Tensor unsafe_chunk.default")
def split(op: str, rng: Rng) -> None:
    shape = sizes(rng, low=3, high=9)
    check(op, given(rng, *shape), either(rng, 1, 2, 3, 4), some(rng, shape))


@draw("split.sizes split_with_sizes.default")
def split_sizes(op: str, rng: Rng) -> None:
    lengths = [int(n) for n in rng.integers(1, 4, 3)]
    check(op, given(rng, 3, sum(lengths)), lengths, either(rng, 2, -1))


@draw("unbind.int getitem")
def unbind(op: str, rng: Rng) -> None:
    shape = sizes(rng, 2, 3)
    check("aten.unbind.int", given(rng, *shape), some(rng, shape))


@draw("cat.default stack.default")
def joined(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    dim = some(rng, shape)
    check(op, [given(rng, *shape), Given(whole(rng, 7, *shape)), given(rng, *shape)], dim)
    if op == "aten.cat.default":
        longer = list(shape)
        longer[dim % (len(shape) + 1) - 1] += 2
        check(op, [given(rng, *shape), given(rng, *longer)], dim)


@draw("repeat.default tile.default")
def repeat(op: str, rng: Rng) -> None:
    a, b = sizes(rng, 2, 2)
    check(op, given(rng, a, b), either(rng, [1, 2, 3], [2, 1, 2], [3, 1, 1, 2]))
    if "tile" in op:
        check(op, given(rng, a, b), [2])


@draw("repeat_interleave.self_int")
def repeat_interleave(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), either(rng, 2, 3), some(rng, shape))


@draw("flip.default")
def flip(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), either(rng, [some(rng, shape)], list(range(1, len(shape) + 1)), []))


@draw("roll.default")
def roll(op: str, rng: Rng) -> None:
    shape = sizes(rng, 2, 3)
    check(op, given(rng, *shape), [int(n) for n in rng.integers(-9, 10, 2)], [1, -1])


@draw("index_select.default")
def index_select(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), some(rng, shape), whole(rng, 5, below=2))


@draw("gather.default")
def gather(op: str, rng: Rng) -> None:
    shape = sizes(rng, 2, 2)
    check(op, given(rng, *shape), some(rng, shape), Given(whole(rng, 7, 2, 2, below=2)))


@draw("index.Tensor")
def index(op: str, rng: Rng) -> None:
    a, b, c = sizes(rng, 3, 3)
    x, i = given(rng, a, b, c), whole(rng, 4, below=2)
    j = either(rng, whole(rng, 4, below=2), whole(rng, 3, 1, below=2), torch.tensor(1))
    check(op, x, either(rng, [None, i - 1], [None, None, whole(rng, 2, 3, below=2)], [None, i, j], [None, None, i, j],
                        [None, i, None, j], [None, i, j, i]))  # fmt: skip
    check(op, x, [Given(whole(rng, 7, below=1))])
    check(op, x, [Given(whole(rng, 7, below=1)), Given(whole(rng, 7, below=2))])


@draw("index_put.default")
def index_put(op: str, rng: Rng) -> None:
    a, b, c = 4, 3, 5
    x, add = given(rng, a, b, c), bool(either(rng, 0, 1))
    i, j = torch.tensor([0, 3]), torch.tensor([2, 1])
    check(op, x, [None, i], either(rng, given(rng, 2, b, c), values(rng, 1, c)), add)
    check(op, x, [None, i, j], given(rng, 2, c), add)
    check(op, x, [None, None, j, i], given(rng, a, 2), add)
    check(op, x, [None, i, None, j], either(rng, values(rng, b), values(rng, 1)[0]), add)


@draw("slice_scatter.default")
def slice_scatter(op: str, rng: Rng) -> None:
    a = int(rng.integers(5, 8))
    start, end, step = either(rng, (1, 4, 1), (None, -1, 2), (-3, None, 1), (0, 99, 3))
    length = len(range(a)[slice(start, end, step)])
    check(op, given(rng, 2, a), given(rng, 2, length), either(rng, 2, -1), start, end, step)


@draw("select_scatter.default")
def select_scatter(op: str, rng: Rng) -> None:
    shape = sizes(rng, 2, 3)
    dim = int(rng.integers(1, len(shape) + 1))
    check(op, given(rng, *shape), given(rng, *shape[: dim - 1], *shape[dim:]), dim, either(rng, 0, 1, -1))


@draw("scatter.src scatter.value scatter_add.default scatter_reduce.two")
def scatter(op: str, rng: Rng) -> None:
    a, b = sizes(rng, 2, 2, low=4)
    index = torch.from_numpy(
        rng.permuted(np.tile(np.arange(a), (7, b, 1)), axis=2).transpose(0, 2, 1)[:, :3]
    ).contiguous()
    source = 0.5 if op.endswith("value") else given(rng, *either(rng, (3, b), (5, b)))
    rest = (either(rng, "sum", "prod", "amax", "amin"),) if op.endswith("two") else ()
    check(op, given(rng, a, b), either(rng, 1, -2), Given(index), source, *rest)
    if op.endswith(("add.default", "two")):
        check(op, given(rng, a, b), 1, Given(whole(rng, 7, 3, b, below=2)), given(rng, 3, b), *rest)


@draw("unfold.default")
def unfold(op: str, rng: Rng) -> None:
    shape = sizes(rng, low=4, high=8)
    check(op, given(rng, *shape), some(rng, shape), either(rng, 2, 3), either(rng, 1, 2))


@draw("tril.default triu.default")
def triangle(op: str, rng: Rng) -> None:
    check(op, given(rng, *sizes(rng, 2, 3)), int(rng.integers(-2, 3)))


@draw("diagonal.default")
def diagonal(op: str, rng: Rng) -> None:
    shape = sizes(rng, 3, 3, low=3)
    one, two = either(rng, (1, 2), (2, 3), (-1, 1), (3, 1))
    check(op, given(rng, *shape), int(rng.integers(-1, 2)), one, two)


@draw("constant_pad_nd.default pad.default")
def pad(op: str, rng: Rng) -> None:
    pads = [int(n) for n in rng.integers(-1, 3, either(rng, 2, 4))]
    mode = () if op != "aten.pad.default" else either(rng, ("constant",), ("reflect",), ("replicate",), ("circular",))
    if mode and mode[0] != "constant":
        pads = [int(n) for n in rng.integers(0, 3, 4)]
        check(op, given(rng, 2, 5, 6), pads, *mode)
    else:
        check(op, given(rng, 2, 5, 6), pads, *mode, either(rng, 0, 0.5))


@draw(" ".join(f"{kind}_pad{d}d.default" for kind in ("reflection", "replication") for d in "123"))
def edges(op: str, rng: Rng) -> None:
    rank = int(op.split("d.")[0][-1])
    check(op, given(rng, 2, *sizes(rng, rank, rank, low=4, high=7)), [int(n) for n in rng.integers(0, 3, 2 * rank)])


# Looked up, made, run along.


@draw("embedding.default")
def embedding(op: str, rng: Rng) -> None:
    check(op, values(rng, 9, 4), Given(whole(rng, 7, *sizes(rng, 1, 2), below=9)), *either(rng, (), (2,)))


@draw("_embedding_bag.default _embedding_bag_forward_only.default")
def bags(op: str, rng: Rng) -> None:
    # Bags over one list of tokens: their number is fixed, the tokens are the batch's.
    offsets = torch.tensor([0, 0, 1])
    args = (False, either(rng, 0, 1), False, None, False, either(rng, -1, 2))
    check(op, values(rng, 9, 4), Given(whole(rng, 7, below=4)), offsets, *args, alone=1)
    last = torch.tensor([0, 1, 1])
    check(op, values(rng, 9, 4), Given(whole(rng, 7, below=4)), last, False, 0, False, None, True, alone=1)
    check(
        op, values(rng, 9, 4), Given(whole(rng, 7, below=4)), offsets, False, 0, False, Given(values(rng, 7)), alone=1
    )


@draw("zeros.default ones.default")
def filled(op: str, rng: Rng) -> None:
    check_made(op, rng, [BATCH, 3], **either(rng, {}, {"dtype": torch.int64}, {"dtype": torch.bool}))


@draw("full.default")
def full(op: str, rng: Rng) -> None:
    check_made(op, rng, [2, BATCH], either(rng, 0.5, 2, True))


@draw("arange.default arange.start arange.start_step")
def arange(op: str, rng: Rng) -> None:
    args = {"default": (BATCH,), "start": (1, Size(("+", "batch", 1))), "start_step": (0, Size(("*", 2, "batch")), 2)}
    check_made(op, rng, *args[op.split(".")[-1]], **either(rng, {}, {"dtype": torch.float32}))


def check_made(op: str, rng: Rng, *args: Any, **options: Any) -> None:
    """Of an operator that reads sizes alone: behind an input whose batch it has."""
    graph = graph_of(op, args, options)
    graph = Graph((Input("x", (BATCH, 2), torch.float32),), graph.nodes, graph.output, {})
    model = Model(graph, {}, {}, RULES)
    for node in graph.nodes:
        model.add(node)
    go = session(model.finished().model)
    for batch in (1, 5):
        (got,) = go(["y"], {"x": np.zeros((batch, 2), np.float32)})
        wanted = run(op, args, options, batch)
        np.testing.assert_array_equal(got, wanted.numpy())
        assert got.dtype == wanted.numpy().dtype


@draw("cumsum.default cumprod.default logcumsumexp.default")
def running(op: str, rng: Rng) -> None:
    shape = sizes(rng, high=9)
    check(op, given(rng, *shape), some(rng, shape), tolerance=1e-4)
    if op == "aten.cumsum.default":
        check(op, Given(values(rng, 7, *shape) > 0), some(rng, shape))


@draw("cummax.default cummin.default")
def extreme_so_far(op: str, rng: Rng) -> None:
    shape = sizes(rng, high=9)
    check(op, given(rng, *shape), some(rng, shape), alone=1)


@draw("diff.default")
def diff(op: str, rng: Rng) -> None:
    shape = sizes(rng, 2, 2, low=4)
    dim = some(rng, shape)
    check(op, given(rng, *shape), either(rng, 1, 2), dim)
    check(op, given(rng, *shape), 1, dim, given(rng, *shape))


# Chosen by value.


@draw("argmax.default argmin.default max.dim min.dim")
def best(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), some(rng, shape), bool(either(rng, 0, 1)))


@draw("topk.default")
def topk(op: str, rng: Rng) -> None:
    shape = sizes(rng, low=3)
    check(op, given(rng, *shape), either(rng, 1, 2, 3), some(rng, shape), bool(either(rng, 0, 1)))


@draw("sort.default argsort.default")
def sort(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), some(rng, shape), bool(either(rng, 0, 1)))


@draw("median.dim")
def median(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), some(rng, shape), bool(either(rng, 0, 1)))


@draw("kthvalue.default")
def kthvalue(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(op, given(rng, *shape), either(rng, 1, 2), some(rng, shape), bool(either(rng, 0, 1)))


@draw("one_hot.default")
def one_hot(op: str, rng: Rng) -> None:
    check(op, Given(whole(rng, 7, *sizes(rng, 1, 2))), either(rng, 5, 8))


@draw("bucketize.Tensor")
def bucketize(op: str, rng: Rng) -> None:
    check(op, Given(halves(rng, 7, *sizes(rng))), torch.tensor([-1.0, 0.5, 0.7, 2]), right=bool(either(rng, 0, 1)))


@draw("searchsorted.Tensor")
def searchsorted(op: str, rng: Rng) -> None:
    check(op, torch.tensor([-1.0, 0.5, 0.7, 2]), Given(halves(rng, 7, *sizes(rng))), right=bool(either(rng, 0, 1)))
    edges_ = Given(values(rng, 7, 3, 5).sort(-1)[0])
    check(op, edges_, given(rng, 3, 2), **either(rng, {}, {"side": "right"}))


@draw(" ".join(f"{name}.{form}" for name in ("eq", "ne", "lt", "le", "gt", "ge") for form in ("Scalar", "Tensor")))
def comparisons(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    other = (
        either(rng, 0, 0.5)
        if op.endswith("Scalar")
        else either(rng, Given(halves(rng, 7, *shape)), halves(rng, shape[-1]), Given(whole(rng, 7, *shape)))
    )
    check(op, Given(halves(rng, 7, *shape)), other)
    if op.endswith("Scalar"):
        check(op, Given(whole(rng, 7, *shape)), other)


@draw(
    "logical_and.default logical_or.default logical_xor.default bitwise_and.Tensor bitwise_or.Tensor "
    "bitwise_xor.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor"
)
def logic(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    check(
        op,
        Given(values(rng, 7, *shape) > 0),
        either(rng, Given(values(rng, 7, *shape) > 0), values(rng, shape[-1]) > 0),
    )
    if "logical" not in op:
        check(op, Given(whole(rng, 7, *shape, below=99)), Given(whole(rng, 7, *shape, below=99)))


@draw("logical_not.default bitwise_not.default")
def not_(op: str, rng: Rng) -> None:
    check(op, Given(values(rng, 7, *sizes(rng)) > 0))
    check(op, Given(whole(rng, 7, 3, below=3)))


@draw("bitwise_and.Scalar bitwise_or.Scalar")
def bits(op: str, rng: Rng) -> None:
    check(op, Given(whole(rng, 7, *sizes(rng), below=99)), int(rng.integers(0, 99)))


@draw("where.self where.ScalarOther where.ScalarSelf")
def where(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    one: Any = given(rng, *shape)
    two: Any = either(rng, given(rng, *shape), values(rng, shape[-1]), Given(whole(rng, 7, *shape)))
    one, two = {"self": (one, two), "ScalarOther": (one, 0.5), "ScalarSelf": (2.0, one)}[op.split(".")[-1]]
    check(op, either(rng, Given(values(rng, 7, *shape) > 0), values(rng, shape[-1]) > 0), one, two)


@draw("masked_fill.Scalar masked_fill.Tensor")
def masked_fill(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    value = either(rng, -2.0, 3, -math.inf)
    mask = either(rng, Given(values(rng, 7, *shape) > 0), values(rng, shape[-1]) > 0)
    check(op, given(rng, *shape), mask, torch.tensor(float(value)) if op.endswith("Tensor") else value)


@draw("to.dtype _to_copy.default type_as.default")
def cast(op: str, rng: Rng) -> None:
    shape = sizes(rng)
    x = either(rng, given(rng, *shape), Given(whole(rng, 7, *shape)), Given(values(rng, 7, *shape) > 0))
    dtype = either(rng, torch.float32, torch.int64, torch.bool)
    if op == "aten.type_as.default":
        check(op, x, torch.zeros(2, dtype=dtype))
    else:
        check(op, x, dtype=dtype) if op.startswith("aten._") else check(op, x, dtype)


# Matrices and complex numbers.


@draw("linalg_det.default matrix_power.default")
def matrices(op: str, rng: Rng) -> None:
    n = int(rng.integers(2, 5))
    check(
        op, given(rng, *sizes(rng, 0, 1), n, n), *([int(rng.integers(1, 4))] if "power" in op else []), tolerance=1e-3
    )


def through(op: str, x: Tensor, *steps: tuple[str, tuple[Any, ...]]) -> None:
    """Operators one behind another, for values that no file can return."""
    nodes, value = [], "x0"
    for n, (name, args) in enumerate(steps):
        nodes.append(Node(f"n{n}", name, (Ref(value), *args), {}, Role.ANALOG, f"n{n}"))
        value = f"n{n}"

    def values_of(batch: int) -> dict[str, Any]:
        env = {"x0": Given(x).of(batch)}
        for node in nodes:
            args = map_tree(lambda leaf: env[leaf.name] if isinstance(leaf, Ref) else leaf, node.args)
            env[node.name] = TABLE[node.target].run(*args)
        return env

    shapes = {name: (BATCH, *made.shape[1:]) for name, made in values_of(4).items()}
    nodes = [replace(node, shape=shapes[node.name]) for node in nodes]
    graph = Graph((Input("x0", (BATCH, *x.shape[1:]), x.dtype),), tuple(nodes), [Ref(value)], {})
    model = Model(graph, {}, {}, RULES)
    for node in nodes:
        model.add(node)
    go = session(model.finished().model)
    (got,) = go([value], {"x0": Given(x).of(6).numpy()})
    np.testing.assert_allclose(got, values_of(6)[value].numpy(), rtol=1e-4, atol=1e-4, err_msg=op)


@draw(
    "_fft_r2c.default _fft_c2c.default _fft_c2r.default view_as_real.default view_as_complex.default complex.default "
    "polar.default angle.default _conj.default"
)
def fourier(op: str, rng: Rng) -> None:
    x = values(rng, 7, *sizes(rng, 2, 2, low=3, high=9))
    code, n = int(rng.integers(0, 3)), x.shape[-1]
    real, first = ("aten.view_as_real.default", ()), ("aten._fft_r2c.default", ([2], code, True))
    chains: dict[str, tuple[Any, ...]] = {
        "_fft_r2c": (("aten._fft_r2c.default", (either(rng, [2], [1, 2]), code, bool(rng.integers(2)))), real),
        "_fft_c2c": (first, ("aten._fft_c2c.default", (either(rng, [1], [1, 2]), code, bool(rng.integers(2)))), real),
        "_fft_c2r": (first, ("aten._fft_c2r.default", (either(rng, [2], [1, 2]), code, n))),
        "view_as_real": (
            first, ("aten.transpose.int", (1, 2)), ("aten.slice.Tensor", (1, 1, None)),
            ("aten.unsqueeze.default", (1,)),
            ("aten.select.int", (2, 0)), ("aten.reshape.default", ([-1, x.shape[1]],)), real,
        ),
        "view_as_complex": (("aten.unsqueeze.default", (3,)), ("aten.repeat.default", ([1, 1, 1, 2],)),
                            ("aten.view_as_complex.default", ()), ("aten.abs.default", ())),
        "complex": (("aten.complex.default", (Ref("x0"),)), real),
        "polar": (("aten.abs.default", ()), ("aten.polar.default", (Ref("x0"),)), real),
        "angle": (first, ("aten.mul.Tensor", (Ref("n0"),)), ("aten.angle.default", ()), ("aten.cos.default", ())),
        "_conj": (first, ("aten._conj.default", ()), ("aten.mul.Tensor", (0.5,)), real),
    }  # fmt: skip
    through(op, x, *chains[op.split(".")[1]])


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("op", sorted(RULES))
def test_the_file_computes_what_torch_does(op: str) -> None:
    """Would catch an argument that is read wrongly, another rounding of halves, a batch that is frozen in the file."""
    DRAWS[op](np.random.default_rng(sum(op.encode())))


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(RULES))
def test_the_file_computes_what_torch_does_on_more_draws(op: str) -> None:
    """As above, for the forms of arguments that one draw does not meet."""
    for seed in range(8):
        DRAWS[op](np.random.default_rng(seed))


def forms() -> dict[str, tuple[Any, ...]]:
    """Forms of arguments that the one draw of an operator does not meet, each of which has code of its own."""
    rng = np.random.default_rng(0)
    x, row = given(rng, 3, 4, 5), Given(halves(rng, 7, 6))
    norm = (values(rng, 3), values(rng, 3), values(rng, 3), values(rng, 3, low=0.2))
    q, k, v = given(rng, 2, 3, 4), given(rng, 2, 5, 4), given(rng, 2, 5, 6)
    return {
        "a steeper ELU": ("elu.default", x, 0.5, 1.5, 2.0),
        "from the end": ("narrow.default", x, 2, -3, 2),
        "kept statistics": ("instance_norm.default", x, *norm, False, 0.1, 1e-4, False),
        "a mask of numbers": ("scaled_dot_product_attention.default", q, k, v, values(rng, 3, 5)),
        "a mask": ("scaled_dot_product_attention.default", q, k, v, values(rng, 3, 5) > -2),
        "how many are not 0": ("linalg_vector_norm.default", row, 0, [1]),
        "the sum of magnitudes": ("linalg_vector_norm.default", row, 1, [1]),
        "the smallest magnitude": ("linalg_vector_norm.default", row, -math.inf, [1]),
        "beside a vector": ("cosine_similarity.default", x, values(rng, 5), -1, 1e-8),
        "a mean in other numbers": ("mean.dim", PLACES, [1], True, {"dtype": torch.float32}),
        "a whole slice": ("slice_scatter.default", row, row, 1, 0, 6),
        "copied": ("_to_copy.default", row),
        "the conjugate of a real number": ("_conj.default", row),
        "clipped at the top": ("parspike.exp", x, -1.0, 0.0, 2.0),
    }


X = Given(torch.arange(7 * 2 * 4 * 4).reshape(7, 2, 4, 4).float())
ROWS = Given(torch.arange(7 * 4).reshape(7, 4).float())
PLACES = Given(torch.arange(7 * 4).reshape(7, 4) % 4)
REFUSED = {
    "an alpha below 0": (("celu.default", ROWS, -1.0), "its alpha is not above 0"),
    "a variance of one": (("var.correction", Given(torch.ones(7, 3, 1)), [2], {"correction": 1}), "divides by 0"),
    "the largest of all": (("argmax.default", ROWS, None), "one place of the whole batch"),
    "classes that values tell": (("one_hot.default", PLACES, -1), "how many classes there are"),
    "a half": (("to.dtype", ROWS, torch.float16), "the file computes in float32"),
    "complex": (("to.dtype", ROWS, torch.complex64), "complex numbers"),
    "bytes": (("to.dtype", PLACES, torch.int8), "do not run over as torch.int8 does"),
    "an inverse": (("matrix_power.default", Given(torch.eye(4).repeat(7, 1, 1)), -1), "no inverse of a matrix"),
    "flat repeats": (("repeat_interleave.self_int", ROWS, 2), "works along the batch"),
    "a flat roll": (("roll.default", ROWS, [1]), "works along the batch"),
    "a mask": (("index.Tensor", ROWS, [None, torch.tensor([True, False, True, True])]), "how many values a mask"),
    "a mean of what meets": (("scatter_reduce.two", ROWS, 1, PLACES, ROWS, "mean"), "this form of it"),
    "patches of one image": (
        ("im2col.default", Given(torch.ones(7, 4, 4)), [2, 2], [1, 1], [0, 0], [1, 1]),
        "no batch",
    ),
    "patches of one image, back": (
        ("col2im.default", Given(torch.ones(7, 8)), [1, 9], [1, 2], [1, 1], [0, 0], [1, 1]),
        "no batch",
    ),
    "channels that are samples": (("pixel_shuffle.default", Given(torch.ones(7, 2, 2)), 1), "works along the batch"),
    "made complex": (("full.default", [BATCH, 2], 1.0, {"dtype": torch.complex64}), "complex numbers"),
    "another order": (
        ("searchsorted.Tensor", torch.arange(4.0), ROWS, {"sorter": torch.arange(4)}),
        "this form of it",
    ),
    "rows that depend on the input": (("linear.default", ROWS, ROWS), "weights are no tensor"),
    "weights that depend on the input": (("conv2d.default", X, Given(torch.ones(7, 2, 1, 1))), "weights are no tensor"),
    "a divisor over the edge": (("avg_pool2d.default", X, [3], [2], [0], True, True, 5), "reaches over the edge"),
    "unlike windows": (("adaptive_max_pool2d.places", X, [3, 3]), "windows are of unlike sizes"),
}


FORMS = forms()


@pytest.mark.parametrize("what", FORMS)
def test_other_forms_of_arguments(what: str) -> None:
    """Would catch an argument that is passed over where it is not the usual one."""
    op, *args = FORMS[what]
    options = args.pop() if isinstance(args[-1], dict) else {}
    check(op if op.startswith("parspike") else f"aten.{op}", *args, **options)


@pytest.mark.parametrize("what", REFUSED)
def test_a_form_that_the_file_cannot_hold_is_refused(what: str) -> None:
    """Would catch a file that computes something near."""
    (op, *args), says = REFUSED[what]
    options = args.pop() if isinstance(args[-1], dict) else {}
    graph = graph_of(f"aten.{op}", tuple(args), options)
    model = Model(graph, graph.tensors, {}, RULES)
    for node in graph.nodes:
        model.add(node)
    with pytest.raises(UnsupportedError, match=says):
        model.finished()


NO_FORM = """
    erfinv.default lgamma.default digamma.default i0.default mode.default linalg_inv.default linalg_inv_ex.default
    linalg_slogdet.default linalg_svdvals.default linalg_svd.default linalg_qr.default linalg_eigh.default
    linalg_cholesky.default linalg_solve.default matrix_exp.default
"""
"""Operators that ONNX has no exact form for."""


def test_every_operator_has_a_rule_or_a_reason() -> None:
    """Would catch a new row of the table that nobody wrote a rule for."""
    assert set(RULES) == set(DRAWS)
    assert set(TABLE) - set(USER) - set(RULES) == {f"aten.{name}" for name in NO_FORM.split()}
