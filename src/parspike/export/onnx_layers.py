"""Rules for layers: synapses, norms, attention, pools and other sizes of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from parspike.export.onnx_model import CODES, EXACT, WIDE, Model, Refused, Rule, Value, arguments_of, table_of
from parspike.graph import Node, Param
from parspike.graph.resized import scales_of, weights_along
from parspike.graph.signature import Conv, Linear, Pool, arguments, named

__all__ = ["LAYERS"]

HADAMARD = 256
"""Rows of the largest Hadamard matrix that is written as one constant."""


# Synapses.


def _conv(model: Model, node: Node) -> Value:
    found = arguments(node)
    if not isinstance(found, Conv) or not isinstance(found.weight, Param):
        raise Refused("its weights are no tensor of the network")
    kernel = list(model.tensors[found.weight.path].shape[2:])
    pads = found.padded(kernel)
    common = {
        "kernel_shape": kernel, "strides": list(found.stride), "dilations": list(found.dilation), "group": found.groups,
        "pads": [before for before, _ in pads] + [after for _, after in pads],
    }  # fmt: skip
    if found.transposed:
        common["output_padding"] = list(found.output_padding)
    kind = "ConvTranspose" if found.transposed else "Conv"
    if model.wide:
        return _in_parts(model, kind, found, common)
    inputs = [model.value(found.input), model.value(found.weight)]
    if found.bias is not None:
        inputs.append(model.value(found.bias, bias=True))
    return model.op(kind, *inputs, **common)


def _in_parts(model: Model, kind: str, found: Conv, common: dict[str, Any]) -> str:
    """A convolution of whole numbers whose sums go beyond float32, the one type that onnxruntime convolves: of a few
    bits of the numbers at a time, put together in float64."""
    weight = model.tensors[found.weight.path]
    each = weight.unflatten(0, (found.groups, -1)).transpose(1, 2).flatten(0, 1) if found.transposed else weight
    most = max(1, int(each.flatten(1).abs().sum(1).max()))
    bits = (EXACT // most).bit_length() - 1
    if bits < 1:
        raise Refused("sums of its weights alone go beyond float32")
    parts = -(-model.bound(found.input).bit_length() // bits)
    held = model.op("Cast", model.value(found.weight), to=CODES["float"])
    rest, made = model.value(found.input), ""
    for part in range(parts):
        here = rest
        if part < parts - 1:
            # To the nearest: rounded down, what is left of −1 is −1, times 2^48 in the last part.
            rest = model.op("Round", model.times(rest, 2.0**-bits))
            here = model.op("Sub", here, model.times(rest, 2.0**bits))
        summed = model.op(kind, model.op("Cast", here, to=CODES["float"]), held, **common)
        summed = model.times(model.op("Cast", summed, to=WIDE), 2.0 ** (bits * part))
        made = model.op("Add", made, summed) if made else summed
    if found.bias is None:
        return made
    return model.op("Add", made, model.reshaped(model.value(found.bias, bias=True), [1, -1, *[1] * (weight.dim() - 2)]))


def _linear(model: Model, node: Node) -> Value:
    found = arguments(node)
    if not isinstance(found, Linear) or not isinstance(found.weight, Param):
        return _product(model, node)
    weight = model.value(found.weight)
    if not found.transposed:
        weight = model.op("Transpose", weight, perm=[1, 0])
    made = model.op("MatMul", model.value(found.input), weight)
    return made if found.bias is None else model.op("Add", made, model.value(found.bias, bias=True))


def _product(model: Model, node: Node) -> Value:
    """Products of matrices: of two values, and β · a + α · (b @ c)."""
    given = named(node)
    added = "beta" in given
    one, two = list(given.values())[1:3] if added else list(given.values())[:2]
    made = model.op("MatMul", model.value(one), model.value(two))
    if node.target == "aten.linear.default":
        raise Refused("its weights are no tensor of the network")
    if not added:
        return made
    made = model.times(made, given["alpha"])
    return model.op("Add", made, model.times(model.value(given["self"]), given["beta"])) if given["beta"] else made


def _einsum(model: Model, node: Node) -> Value:
    equation, tensors = node.args[:2]
    return model.op("Einsum", *model.alike(*tensors), equation=equation.replace(" ", ""))


def _bilinear(model: Model, node: Node) -> Value:
    one, two, weight, bias = arguments_of(node, "input1 input2 weight bias")
    made = model.op("Einsum", *(model.value(leaf) for leaf in (one, weight, two)), equation="...i,oij,...j->...o")
    return made if bias is None else model.op("Add", made, model.value(bias))


def _addcmul(model: Model, node: Node) -> Value:
    added, one, two, value = arguments_of(node, "self tensor1 tensor2 value")
    return model.op("Add", model.value(added), model.times(model.op("Mul", *model.alike(one, two)), value))


def _lerp(model: Model, node: Node) -> Value:
    start, end, weight = arguments_of(node, "self end weight")
    away = model.op("Sub", *model.alike(end, start))
    return model.op("Add", model.value(start), model.times(away, weight))


def _scale_shift(model: Model, node: Node) -> Value:
    shape = [1, -1] + [1] * (len(node.shape) - 2)
    scale, shift = (model.tensors[param.path].float().reshape(shape) for param in node.args[1:3])
    return model.op("Add", model.op("Mul", model.value(node.args[0]), model.constant(scale)), model.constant(shift))


def _batch_norm(model: Model, node: Node) -> Value:
    x, weight, bias, mean, var, eps = node.args
    mean, var = (model.tensors[param.path].double() for param in (mean, var))
    scale = (var + eps).rsqrt() * (1 if weight is None else model.tensors[weight.path].double())
    shift = (0 if bias is None else model.tensors[bias.path].double()) - mean * scale
    shape = [1, -1] + [1] * (len(node.shape) - 2)
    scale, shift = (model.constant(t.float().reshape(shape)) for t in (scale, shift))
    return model.op("Add", model.op("Mul", model.value(x), scale), shift)


# Norms.


def _layer_norm(model: Model, node: Node) -> Value:
    x, normalized, weight, bias, eps = arguments_of(node, "input normalized_shape weight bias eps")
    ones = np.ones([int(n) for n in normalized], np.float32)
    inputs = [model.value(x), model.constant(ones) if weight is None else model.value(weight)]
    inputs += [] if bias is None else [model.value(bias)]
    how = {"axis": -len(normalized), "epsilon": float(eps)}
    if node.target == "aten.layer_norm.default":
        return model.op("LayerNormalization", *inputs, **how)
    return tuple(model.ops("LayerNormalization", *inputs, out=("", "", ""), **how))


def _rms_norm(model: Model, node: Node) -> Value:
    x, normalized, weight, eps = arguments_of(node, "input normalized_shape weight eps")
    name = model.value(x)
    axes = list(range(model.rank(x) - len(normalized), model.rank(x)))
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    mean = model.plus(model.reduced("ReduceMean", model.op("Mul", name, name), axes), eps)
    inverse = model.op("Reciprocal", model.op("Sqrt", mean))
    made = model.op("Mul", name, inverse)
    made = made if weight is None else model.op("Mul", made, model.value(weight))
    return (made, inverse) if "fused" in node.target else made


def _group_norm(model: Model, node: Node) -> Value:
    """Each group of channels as one channel of an instance norm; then the channels' own scales and shifts."""
    given = named(node)
    x, weight, bias, eps = (given[name] for name in ("input", "weight", "bias", "eps"))
    groups = given["num_groups"] if "num_groups" in given else given["group"]
    shape = model.shape(x)
    rest = [model.length(x, d) for d in range(1, len(shape))]
    name = model.reshaped(model.value(x), [shape[0], groups, math.prod(rest) // groups])
    ones, zeros = (model.constant(np.full(groups, n, np.float32)) for n in (1, 0))
    name = model.op("InstanceNormalization", name, ones, zeros, epsilon=float(eps))
    made = _affine(model, model.reshaped(name, shape), weight, bias, len(shape))
    return made if "native" not in node.target else (made, None, None)


def _affine(model: Model, name: str, weight: Any, bias: Any, rank: int) -> str:
    if weight is not None:
        name = model.op("Mul", name, model.per(weight, 1, rank))
    return name if bias is None else model.op("Add", name, model.per(bias, 1, rank))


def _instance_norm(model: Model, node: Node) -> Value:
    x, weight, bias, mean, var, own, eps = arguments_of(
        node, "input weight bias running_mean running_var use_input_stats eps"
    )
    rank = model.rank(x)
    if own:
        channels = model.length(x, 1)
        ones, zeros = (model.constant(np.full(channels, n, np.float32)) for n in (1, 0))
        made = model.op("InstanceNormalization", model.value(x), ones, zeros, epsilon=float(eps))
    else:
        made = model.op("Sub", model.value(x), model.per(mean, 1, rank))
        made = model.op("Div", made, model.op("Sqrt", model.plus(model.per(var, 1, rank), eps)))
    return _affine(model, made, weight, bias, rank)


# Attention.


def _attention(model: Model, node: Node) -> Value:
    given = named(node)
    query, key, value, mask, scale = (given[name] for name in ("query", "key", "value", "attn_mask", "scale"))
    rank = model.rank(query)
    keys, values = model.value(key), model.value(value)
    if given.get("enable_gqa") and model.shape(query)[-3] != model.shape(key)[-3]:
        heads, each = model.length(key, -3), model.length(query, -3) // model.length(key, -3)
        keys, values = (model.picked(name, np.arange(heads).repeat(each), rank - 3) for name in (keys, values))
    scale = model.length(query, -1) ** -0.5 if scale is None else scale
    across = model.moved(keys, [*range(model.rank(key) - 2), model.rank(key) - 1, model.rank(key) - 2])
    scores = model.op("MatMul", model.times(model.value(query), float(scale)), across)
    if given["is_causal"]:
        rows, columns = model.length(query, -2), model.length(key, -2)
        hidden = torch.full((rows, columns), -math.inf).triu(1)
        scores = model.op("Add", scores, model.constant(hidden))
    if mask is not None:
        scores = _masked_by(model, scores, model.value(mask))
    weights = _weights(model, scores, rank - 1)
    total = model.reduced("ReduceSum", weights, [rank - 1])
    made = _shared(model, model.op("MatMul", weights, values), total)
    return made if "flash" not in node.target else (made, None)


def _masked_by(model: Model, scores: str, mask: str) -> str:
    if model.kinds[mask] != "bool":
        return model.op("Add", scores, mask)
    return model.op("Where", mask, scores, model.constant(-math.inf))


def _masked(model: Model, node: Node) -> Value:
    scores, mask = node.args
    return _masked_by(model, model.value(scores), model.value(mask))


def _largest_of(model: Model, x: str, axis: int) -> str:
    most = model.reduced("ReduceMax", x, [axis])
    none = model.op("IsInf", most, detect_positive=0)
    return model.op("Where", none, model.constant(0.0), most)


def _weights(model: Model, x: str, axis: int) -> str:
    """exp(x − max x) along a dimension; 0 where all of it is −∞."""
    return model.op("Exp", model.op("Sub", x, _largest_of(model, x, axis)))


def _shared(model: Model, weighed: str, total: str) -> str:
    none = model.op("Equal", total, model.constant(0.0))
    return model.op("Div", weighed, model.op("Where", none, model.constant(1.0), total))


def _softmax_shares(model: Model, node: Node) -> Value:
    return _shared(model, *(model.value(leaf) for leaf in node.args))


def _softmax_weights(model: Model, node: Node) -> Value:
    x, dim = node.args
    return _weights(model, model.value(x), dim % model.rank(x))


def _largest(model: Model, node: Node) -> Value:
    x, dim = node.args
    return _largest_of(model, model.value(x), dim % model.rank(x))


def _size(model: Model, node: Node) -> Value:
    x, dim = node.args
    most = model.reduced("ReduceMax", model.op("Abs", model.value(x)), [dim % model.rank(x)])
    return model.clip(most, torch.finfo(torch.float32).tiny * 4, math.inf)


def _rotate(model: Model, node: Node) -> Value:
    """Times the Hadamard matrix of each row's largest power of two, that of a · b as those of a and b."""
    length = model.length(node.args[0], -1)
    left = length & -length
    factors = []
    while left > 1:
        factors.append(min(left, HADAMARD))
        left //= factors[-1]
    name = model.value(node.args[0])
    for place, size in enumerate(factors):
        after = math.prod(factors[place + 1 :])
        name = model.reshaped(name, [*node.shape[:-1], length // (size * after), size, after])
        matrix = torch.ones(1, 1)
        while len(matrix) < size:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        name = model.along(name, matrix / size**0.5, len(node.shape), len(node.shape) + 2)
    return model.reshaped(name, node.shape) if factors else name


# Pools and sizes of images.


def _pool(model: Model, node: Node) -> Value:
    pool = arguments(node)
    if not isinstance(pool, Pool):
        raise Refused("no rule writes this form of it")
    shape, kind = model.shape(pool.input), "AveragePool" if pool.average else "MaxPool"
    kernel, stride, padding, dilation = pool.kernel, pool.stride, pool.padding, pool.dilation
    name = model.value(pool.input)
    places = node.target.endswith(".places") or "with_indices" in node.target
    if pool.output_size:
        inside = [model.length(pool.input, d) for d in range(len(shape) - pool.rank, len(shape))]
        wanted = [size if out is None else int(out) for size, out in zip(inside, pool.output_size, strict=True)]
        if any(size % out for size, out in zip(inside, wanted, strict=True)):
            if places:
                raise Refused("its windows are of unlike sizes")
            return _unlike_windows(model, name, node, pool.average, inside, wanted, len(shape))
        kernel = stride = tuple(size // out for size, out in zip(inside, wanted, strict=True))
        padding, dilation = (0,) * pool.rank, (1,) * pool.rank
    if pool.divisor is not None and pool.ceil_mode:
        raise Refused("it divides by a number of its own, also where a window reaches over the edge")
    if len(shape) == pool.rank + 1:  # the batch takes the place of the channels
        name = model.op("Unsqueeze", name, model.constant([0]))
    elif len(shape) != pool.rank + 2:
        raise Refused("its input has no batch")
    whole = pool.count_include_pad or pool.divisor is not None
    more: dict[str, Any] = {"count_include_pad": int(whole)} if pool.average else {}
    if not pool.average or any(d != 1 for d in dilation):
        more["dilations"] = list(dilation)
    made = model.ops(
        kind, name, out=("", "") if places else ("",), kernel_shape=list(kernel), strides=list(stride),
        pads=[*padding, *padding], ceil_mode=int(pool.ceil_mode), **more,
    )  # fmt: skip
    if pool.divisor is not None:
        made[0] = model.times(made[0], math.prod(kernel) / pool.divisor)
    if len(shape) == pool.rank + 1:
        made = [model.op("Squeeze", one, model.constant([0])) for one in made]
    if not places:
        return made[0]
    # ONNX counts places through the whole batch, torch through one channel of one sample.
    plane = math.prod(model.length(pool.input, d) for d in range(len(shape) - pool.rank, len(shape)))
    return made[0], model.op("Mod", made[1], model.constant(plane))


def _unlike_windows(
    model: Model, name: str, node: Node, average: bool, inside: Sequence[int], wanted: Sequence[int], rank: int
) -> str:
    """An adaptive pool along one dimension after the other: its windows are all pairs of those of the dimensions."""
    for axis, (size, out) in enumerate(zip(inside, wanted, strict=True), rank - len(inside)):
        ends = [(n * size // out, -(-(n + 1) * size // out)) for n in range(out)]
        if average:
            name = model.along(name, weights_along(node, inside, axis - rank + len(inside)), axis, rank)
        else:
            parts = [model.reduced("ReduceMax", model.cut(name, axis, *pair), [axis]) for pair in ends]
            name = model.op("Concat", *parts, axis=axis)
    return name


def _unpool(model: Model, node: Node) -> Value:
    x, places = node.args[:2]
    shape, out = model.shape(x), node.shape
    rank = 2 if "2d" in node.target else 3
    lead, area = list(shape[: len(shape) - rank]), math.prod(int(n) for n in out[len(out) - rank :])
    inside = math.prod(int(n) for n in shape[len(shape) - rank :])
    values, at = (model.reshaped(model.value(leaf), [*lead, inside]) for leaf in (x, places))
    empty = model.op("Expand", model.constant(0.0), model.sizes([*lead, area], known=False))
    return model.reshaped(model.op("ScatterElements", empty, at, values, axis=len(lead)), out)


def _upsample(model: Model, node: Node) -> Value:
    """Values of another size of image. Along each dimension an output is a weighted sum of inputs, whose weights are
    torch's own: of the operator at one input of 1 among zeros, for each input."""
    given = named(node)
    x, rank = node.args[0], len(node.shape) - 2
    name = model.value(x)
    inside = [model.length(x, d) for d in range(2, 2 + rank)]
    outside = [int(n) for n in node.shape[2:]]
    # onnxruntime has no Resize of float64.
    if not model.wide and "nearest" in node.target and "exact" not in node.target and not any(
        out % size for out, size in zip(outside, inside, strict=True)
    ) and not any(scales_of(given, rank)[axis] not in (None, out / size)
                  for axis, (out, size) in enumerate(zip(outside, inside, strict=True))):  # fmt: skip
        factors = [1.0, 1.0, *(out / size for out, size in zip(outside, inside, strict=True))]
        return model.op("Resize", name, "", model.constant(np.array(factors, np.float32)), mode="nearest",
                        coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    for axis, (size, out) in enumerate(zip(inside, outside, strict=True)):
        matrix = weights_along(node, inside, axis)
        if "nearest" in node.target:
            name = model.picked(name, matrix.argmax(1).numpy(), 2 + axis)
        elif size != out or not torch.equal(matrix, torch.eye(size)):
            name = model.along(name, matrix, 2 + axis, 2 + rank)
    return name


def _grid_sampler(model: Model, node: Node) -> Value:
    x, grid, mode, padding, corners = arguments_of(node, "input grid interpolation_mode padding_mode align_corners")
    return model.op(
        "GridSample", model.value(x), model.value(grid), mode=("linear", "nearest", "cubic")[mode],
        padding_mode=("zeros", "border", "reflection")[padding], align_corners=int(corners),
    )  # fmt: skip


def _rules() -> dict[str, Rule]:
    pools = [f"{kind}_pool{d}d.default" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for d in "123"]
    pools += [f"adaptive_max_pool{d}d.places" for d in "123"]
    pools += [f"max_pool{d}d_with_indices.default" for d in "23"]
    upsampled = "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d "
    upsampled += "upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d "
    upsampled += "_upsample_bicubic2d_aa"
    return table_of(
        ("conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding conv3d.padding "
         "conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input", _conv),
        ("linear.default addmm.default mm.default matmul.default bmm.default", _linear),
        ("addmv.default baddbmm.default", _product), ("einsum.default", _einsum), ("bilinear.default", _bilinear),
        ("addcmul.default", _addcmul), ("lerp.Scalar", _lerp),
        ("parspike.scale_shift", _scale_shift), ("parspike.batch_norm", _batch_norm),
        ("layer_norm.default native_layer_norm.default", _layer_norm),
        ("rms_norm.default _fused_rms_norm.default", _rms_norm),
        ("group_norm.default native_group_norm.default", _group_norm), ("instance_norm.default", _instance_norm),
        ("scaled_dot_product_attention.default _scaled_dot_product_flash_attention_for_cpu.default", _attention),
        ("parspike.masked", _masked), ("parspike.softmax_weights", _softmax_weights), ("parspike.largest", _largest),
        ("parspike.softmax_shares", _softmax_shares), ("parspike.size", _size), ("parspike.rotate", _rotate),
        (" ".join(pools), _pool), ("max_unpool2d.default max_unpool3d.default", _unpool),
        (" ".join(f"{name}.{form}" for name in upsampled.split() for form in ("default", "vec")), _upsample),
        ("grid_sampler.default grid_sampler_2d.default", _grid_sampler),
    )  # fmt: skip


LAYERS = _rules()
"""By the operators of the graph."""
