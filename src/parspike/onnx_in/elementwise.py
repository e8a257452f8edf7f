"""Rules for operators that act on every element, and for sums, means and maxima over axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.onnx_in.rules import Site, dtype_of, number, rule
from parspike.onnx_in.sizes import axes_of

__all__: list[str] = []

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Neg": torch.neg, "Abs": torch.abs,
    "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log, "Reciprocal": torch.reciprocal, "Floor": torch.floor,
    "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos,
    "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh,
    "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh, "Erf": torch.erf,
    "Softplus": F.softplus, "HardSwish": F.hardswish, "Mish": F.mish, "Not": torch.logical_not,
    "IsNaN": torch.isnan, "BitwiseNot": torch.bitwise_not, "Identity": lambda x: x,
}  # fmt: skip


def _unary(run: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda site, x: run(x)


for _name, _run in UNARY.items():
    rule(_name)(_unary(_run))


@rule("Softsign")
def _softsign(site: Site, x: Tensor) -> Tensor:
    return x / (1 + x.abs())


@rule("LeakyRelu")
def _leaky_relu(site: Site, x: Tensor) -> Tensor:
    return F.leaky_relu(x, site.get("alpha", 0.01))


@rule("ThresholdedRelu")
def _thresholded_relu(site: Site, x: Tensor) -> Tensor:
    return F.threshold(x, site.get("alpha", 1.0), 0.0)


@rule("PRelu")
def _prelu(site: Site, x: Tensor, slope: Tensor) -> Tensor:
    channels = slope.dim() == x.dim() - 1 and x.dim() > 1 and math.prod(slope.shape[1:]) == 1
    if slope.numel() == 1 or channels:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


@rule("Elu")
def _elu(site: Site, x: Tensor) -> Tensor:
    return F.elu(x, site.get("alpha", 1.0))


@rule("Celu")
def _celu(site: Site, x: Tensor) -> Tensor:
    return F.celu(x, site.get("alpha", 1.0))


SELU = 1.67326319217681884765625, 1.05070102214813232421875


@rule("Selu")
def _selu(site: Site, x: Tensor) -> Tensor:
    alpha, gamma = site.get("alpha", SELU[0]), site.get("gamma", SELU[1])
    if (alpha, gamma) == SELU:
        return F.selu(x)
    return gamma * F.elu(x, alpha)


@rule("HardSigmoid")
def _hard_sigmoid(site: Site, x: Tensor) -> Tensor:
    alpha, beta = site.get("alpha", 0.2), site.get("beta", 0.5)
    if beta == 0.5 and abs(alpha - 1 / 6) < 1e-7:
        return F.hardsigmoid(x)
    return (alpha * x + beta).clamp(0.0, 1.0)


@rule("Gelu")
@rule("Gelu", domain="com.microsoft")
def _gelu(site: Site, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=site.get("approximate", "none"))


@rule("FastGelu BiasGelu", domain="com.microsoft")
def _bias_gelu(site: Site, x: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x if bias is None else x + bias
    return F.gelu(x, approximate="tanh" if site.call.op == "FastGelu" else "none")


@rule("Swish")
@rule("QuickGelu", domain="com.microsoft")
def _swish(site: Site, x: Tensor) -> Tensor:
    alpha = site.get("alpha", 1.702 if site.call.op == "QuickGelu" else 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@rule("Shrink")
def _shrink(site: Site, x: Tensor) -> Tensor:
    bias, limit = site.get("bias", 0.0), site.get("lambd", 0.5)
    if bias == limit:
        return F.softshrink(x, limit)
    if bias == 0:
        return F.hardshrink(x, limit)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


@rule("Clip", 1, 2)
def _clip(site: Site, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    if site.opset < 11:
        low, high = site.get("min"), site.get("max")
    else:
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            x = x if low is None else torch.maximum(x, site.tensor(low, x))
            return x if high is None else torch.minimum(x, site.tensor(high, x))
        low, high = number(site, low, "the lower bound"), number(site, high, "the upper bound")
    # Exporters write the ends of float32 where there is no bound.
    ends = torch.finfo(x.dtype).max if x.is_floating_point() else math.inf
    low = None if low is None or low <= -ends else low
    high = None if high is None or high >= ends else high
    if low is None and high is None:
        return x
    if low == 0 and high is None:
        return F.relu(x)
    if low == 0 and high == 6:
        return F.relu6(x)
    return torch.clamp(x, low, high)


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    floating = a.is_floating_point() or b.is_floating_point()
    return a / b if floating else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _quotient, "Equal": torch.eq, "Greater": torch.gt,
    "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip


def _binary(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda site, a, b: run(a, b)


for _name, _two in BINARY.items():
    rule(_name)(_binary(_two))


@rule("Pow", 1)
def _pow(site: Site, x: Tensor, exponent: Any) -> Tensor:
    if isinstance(exponent, Tensor) or exponent.size != 1:
        return _power(x, site.tensor(exponent))
    power = float(exponent.reshape(-1)[0])
    if not x.is_floating_point():
        return _power(x, site.tensor(exponent))
    if power == 2:
        return x * x
    made = torch.sqrt(x) if power == 0.5 else torch.pow(x, int(power) if power == int(power) else power)
    return made if exponent.ndim <= x.dim() else made.reshape((1,) * (exponent.ndim - x.dim()) + x.shape)


@rule("Mod")
def _mod(site: Site, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if site.get("fmod", 0) else torch.remainder(a, b)


@rule("Max Min Sum Mean")
def _over_inputs(site: Site, *given: Tensor) -> Tensor:
    run: Any = {"Max": torch.maximum, "Min": torch.minimum}.get(site.call.op, torch.add)
    total = functools.reduce(run, given)
    return total / len(given) if site.call.op == "Mean" else total


@rule("Where")
def _where(site: Site, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@rule("Cast")
def _cast(site: Site, x: Tensor) -> Tensor:
    return x.to(dtype_of(site, site.get("to", 0)))


@rule("CastLike")
def _cast_like(site: Site, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


@rule("Dropout", 1, 2)
def _dropout(site: Site, x: Tensor, ratio: Any = None, training: Any = None) -> Tensor:
    if number(site, training, "training_mode", False):
        raise site.refuse("it is in training mode: export the network in evaluation (model.eval())")
    return x


@rule("CumSum", 1)
def _cumsum(site: Site, x: Tensor, axis: Any) -> Tensor:
    dim = int(number(site, axis, "the axis"))
    x = x.flip(dim) if site.get("reverse", 0) else x
    made = torch.cumsum(x, dim, dtype=x.dtype)
    made = made - x if site.get("exclusive", 0) else made
    return made.flip(dim) if site.get("reverse", 0) else made


# ---------------------------------------------------------------------------------------------------- over axes


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dims, keep)
    return _quotient(x.sum(dims, keep, dtype=x.dtype), torch.tensor(math.prod(x.shape[d] for d in dims), dtype=x.dtype))


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted((d % x.dim() for d in dims), reverse=True):
        x = x.prod(dim, keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.sum(dims, keep, dtype=x.dtype)


OVER_AXES: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "ReduceMax": lambda x, dims, keep: x.amax(dims, keep),
    "ReduceMin": lambda x, dims, keep: x.amin(dims, keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, dims, keep: _sum(x.abs(), dims, keep),
    "ReduceL2": lambda x, dims, keep: torch.sqrt(_sum(x * x, dims, keep)),
    "ReduceSumSquare": lambda x, dims, keep: _sum(x * x, dims, keep),
    "ReduceLogSum": lambda x, dims, keep: torch.log(_sum(x, dims, keep)),
    "ReduceLogSumExp": lambda x, dims, keep: torch.logsumexp(x, dims, keep),
}


def _over_axes(run: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(site: Site, x: Tensor, axes: Any = None) -> Tensor:
        found = axes_of(site, None if axes is None else site.constant(axes, "an axis"))
        if not found:
            if site.get("noop_with_empty_axes", 0) or x.dim() == 0:
                return x
            found = list(range(x.dim()))
        if x.dtype == torch.bool:
            return run(x.to(torch.uint8), found, bool(site.get("keepdims", 1))).to(torch.bool)
        return run(x, found, bool(site.get("keepdims", 1)))

    return reduce


for _name, _over in OVER_AXES.items():
    rule(_name, 1)(_over_axes(_over))


def _of_rows(run: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Softmax and its kin: along one axis since opset 13; before, over all axes from that one on, as one."""

    def of(site: Site, x: Tensor) -> Tensor:
        if site.opset >= 13:
            return run(x, site.get("axis", -1))
        axis = site.get("axis", 1) % max(x.dim(), 1)
        if axis == x.dim() - 1:
            return run(x, axis)
        return run(x.flatten(axis), axis).reshape(x.shape)

    return of


def _hardmax(x: Tensor, dim: int) -> Tensor:
    best = x.argmax(dim, keepdim=True)
    return torch.zeros_like(x).scatter(dim, best, 1.0)


rule("Softmax")(_of_rows(lambda x, dim: torch.softmax(x, dim)))
rule("LogSoftmax")(_of_rows(lambda x, dim: torch.log_softmax(x, dim)))
rule("Hardmax")(_of_rows(_hardmax))


@rule("ArgMax ArgMin")
def _arg(site: Site, x: Tensor) -> Tensor:
    axis, keep = site.get("axis", 0), bool(site.get("keepdims", 1))
    if site.get("select_last_index", 0):
        size = x.shape[axis]
        x = x.flip(axis)
        found = x.argmax(axis, keep) if site.call.op == "ArgMax" else x.argmin(axis, keep)
        return size - 1 - found
    return x.argmax(axis, keep) if site.call.op == "ArgMax" else x.argmin(axis, keep)


@rule("TopK", 1, outputs=2)
def _top_k(site: Site, x: Tensor, k: Any = None) -> tuple[Tensor, ...]:
    wanted = site.get("k") if site.opset < 10 else site.ints(k, "the number k")[0]
    return tuple(torch.topk(x, wanted, site.get("axis", -1), bool(site.get("largest", 1)), bool(site.get("sorted", 1))))


# ---------------------------------------------------------------------------------------------------- few levels


def _along(site: Site, value: Tensor, x: Tensor, axis: int) -> Tensor:
    """A scale or a zero point so that it meets its axis of x."""
    if value.dim() == 0 or value.numel() == 1:
        return value.reshape(())
    if value.dim() == 1:
        shape = [1] * x.dim()
        shape[axis % x.dim()] = -1
        return value.reshape(shape)
    block = site.get("block_size", 0)
    if value.dim() == x.dim() and block:
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    raise site.refuse(f"a scale of shape {tuple(value.shape)} for a tensor of shape {tuple(x.shape)}")


@rule("DequantizeLinear")
def _dequantize(site: Site, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = site.get("axis", 1)
    made = x.to(scale.dtype)
    if zero is not None:
        made = made - _along(site, zero, x, axis).to(scale.dtype)
    return made * _along(site, scale, x, axis)


@rule("QuantizeLinear")
def _quantize(site: Site, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    # The whole numbers stay of the type of x, so that rounding, clamping and scaling are one function of it.
    dtype = torch.uint8 if zero is None else zero.dtype
    if zero is None and site.get("output_dtype", 0):
        dtype = dtype_of(site, site.get("output_dtype"))
    axis, limits = site.get("axis", 1), torch.iinfo(dtype)
    made = torch.round(x / _along(site, scale, x, axis))
    if zero is not None:
        made = made + _along(site, zero, x, axis).to(x.dtype)
    return torch.clamp(made, limits.min, limits.max)
