"""Rules for layers: convolutions, linear layers, pools, normalisations, and changes of an image's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.onnx_in.rules import Site, rule

__all__: list[str] = []

LOWEST = -3.0e38
"""What surrounds the input of a max-pool where torch's own padding does not fit: below every float32 that counts."""


def _window(site: Site, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[Any], list[Any]]:
    """Strides, dilations, and pads before and after, of a window over the spatial axes."""
    dims = len(kernel)
    strides = list(site.get("strides") or [1] * dims)
    dilations = list(site.get("dilations") or [1] * dims)
    auto = site.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            reach = d * (k - 1) + 1
            # As much as gives ⌈n / s⌉ outputs.
            total = max(reach - 1, 0) if s == 1 else _at_least_0((-(-n // s) - 1) * s + reach - n)
            less = total // 2
            one, two = (less, total - less) if auto == "SAME_UPPER" else (total - less, less)
            before.append(one)
            after.append(two)
        return strides, dilations, before, after
    pads = [0] * (2 * dims) if auto == "VALID" else list(site.get("pads") or [0] * (2 * dims))
    if any(p < 0 for p in pads):
        raise site.refuse(f"negative pads {pads} are not supported")
    return strides, dilations, pads[:dims], pads[dims:]


def _at_least_0(value: Any) -> Any:
    return torch.sym_max(value, 0) if isinstance(value, torch.SymInt) else max(value, 0)


def _padded(site: Site, x: Tensor, before: Sequence[Any], after: Sequence[Any], value: float = 0.0) -> Tensor:
    site.checked([*x.shape[:2], *(n + b + a for n, b, a in zip(x.shape[2:], before, after, strict=True))])
    flat = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    return x if all(isinstance(p, int) and p == 0 for p in flat) else F.pad(x, flat, value=value)


def _even(before: Sequence[Any], after: Sequence[Any]) -> bool:
    return all(isinstance(p, int) for p in (*before, *after)) and list(before) == list(after)


CONV: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: Any = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _spatial(site: Site, x: Tensor) -> int:
    dims = x.dim() - 2
    if dims not in (1, 2, 3):
        raise site.refuse(f"its input has {x.dim()} axes; supported are 3 to 5")
    return dims


@rule("Conv")
def _conv(site: Site, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dims = _spatial(site, x)
    strides, dilations, before, after = _window(site, x, weight.shape[2:])
    if not _even(before, after):
        x, before = _padded(site, x, before, after), [0] * dims
    return CONV[dims](x, weight, bias, strides, before, dilations, site.get("group", 1))


@rule("FusedConv", domain="com.microsoft")
def _fused_conv(
    site: Site, x: Tensor, weight: Tensor, bias: Tensor | None = None, more: Tensor | None = None
) -> Tensor:
    made = _conv(site, x, weight, bias)
    made = made if more is None else made + more
    name, numbers = site.get("activation", ""), list(site.get("activation_params", ()))
    if name in ("", "Relu"):
        return F.relu(made) if name else made
    if name == "LeakyRelu":
        return F.leaky_relu(made, numbers[0])
    if name == "Clip":
        return made.clamp(numbers[0], numbers[1])
    if name in ("Sigmoid", "Tanh"):
        return torch.sigmoid(made) if name == "Sigmoid" else torch.tanh(made)
    raise site.refuse(f"activation '{name}' is not supported")


@rule("ConvTranspose")
def _conv_transpose(site: Site, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dims = _spatial(site, x)
    kernel = weight.shape[2:]
    strides = list(site.get("strides") or [1] * dims)
    dilations = list(site.get("dilations") or [1] * dims)
    more = list(site.get("output_padding") or [0] * dims)
    auto, asked = site.get("auto_pad", "NOTSET"), site.get("output_shape")
    full = [s * (n - 1) + d * (k - 1) + 1 + m
            for n, k, s, d, m in zip(x.shape[2:], kernel, strides, dilations, more, strict=True)]  # fmt: skip
    if asked or auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = list(asked)[-dims:] if asked else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        total = [f - w for f, w in zip(full, wanted, strict=True)]
        if any(isinstance(t, int) and t < 0 for t in total):
            more = [m - min(t, 0) for m, t in zip(more, total, strict=True)]
            total = [max(t, 0) for t in total]
        less = [t // 2 for t in total]
        rest = [t - l for t, l in zip(total, less, strict=True)]
        before, after = (less, rest) if auto == "SAME_UPPER" else (rest, less)
    else:
        pads = [0] * (2 * dims) if auto == "VALID" else list(site.get("pads") or [0] * (2 * dims))
        before, after = pads[:dims], pads[dims:]
    groups = site.get("group", 1)
    fits = all(m < max(s, d) for m, s, d in zip(more, strides, dilations, strict=True))
    if not fits:
        raise site.refuse(f"output_padding {more} is not below its strides or dilations: not supported")
    if _even(before, after):
        return CONV_TRANSPOSE[dims](x, weight, bias, strides, before, more, groups, dilations)
    made = CONV_TRANSPOSE[dims](x, weight, bias, strides, [0] * dims, more, groups, dilations)
    cut = [slice(b, n - a) for b, a, n in zip(before, after, made.shape[2:], strict=True)]
    return made[(slice(None), slice(None), *cut)]


@rule("Gemm")
def _gemm(site: Site, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = site.get("alpha", 1.0), site.get("beta", 1.0)
    a = a.t() if site.get("transA", 0) else a
    b = b if site.get("transB", 0) else b.t()
    b = b if alpha == 1.0 else b * alpha
    c = c if c is None or beta == 1.0 else c * beta
    if c is not None and (c.dim() == 1 or (c.dim() == 2 and c.shape[0] == 1)) and c.shape[-1] == b.shape[0]:
        return F.linear(a, b, c.reshape(-1))
    made = F.linear(a, b)
    return made if c is None else made + c


@rule("MatMul")
def _matmul(site: Site, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@rule("FusedMatMul", domain="com.microsoft")
def _fused_matmul(site: Site, a: Tensor, b: Tensor) -> Tensor:
    if site.get("transBatchA", 0) or site.get("transBatchB", 0):
        raise site.refuse("transposed batches are not supported")
    a = a.transpose(-1, -2) if site.get("transA", 0) else a
    b = b.transpose(-1, -2) if site.get("transB", 0) else b
    return torch.matmul(a, b) * site.get("alpha", 1.0)


@rule("Einsum")
def _einsum(site: Site, *given: Tensor) -> Tensor:
    return torch.einsum(site.get("equation").replace(" ", ""), *given)


# ------------------------------------------------------------------------------------------------------- pools

MAX_POOL: Any = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOL: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@rule("MaxPool")
def _max_pool(site: Site, x: Tensor) -> Tensor:
    dims = _spatial(site, x)
    kernel = list(site.get("kernel_shape"))
    strides, dilations, before, after = _window(site, x, kernel)
    ceil = bool(site.get("ceil_mode", 0))
    pool = MAX_POOL[dims]
    if _even(before, after) and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        return pool(x, kernel, strides, before, dilations, ceil_mode=ceil)
    if (
        not ceil
        and not any(before)
        and all(isinstance(a, int) and a == s - 1 for a, s in zip(after, strides, strict=True))
    ):
        # Windows that reach beyond the end by less than a stride are those of rounding up.
        return pool(x, kernel, strides, 0, dilations, ceil_mode=True)
    return pool(_padded(site, x, before, after, LOWEST), kernel, strides, 0, dilations, ceil_mode=ceil)


@rule("AveragePool")
def _average_pool(site: Site, x: Tensor) -> Tensor:
    dims = _spatial(site, x)
    kernel = list(site.get("kernel_shape"))
    strides, dilations, before, after = _window(site, x, kernel)
    if any(d != 1 for d in dilations):
        raise site.refuse(f"dilations {dilations} are not supported")
    ceil, counted = bool(site.get("ceil_mode", 0)), bool(site.get("count_include_pad", 0))
    pool = AVERAGE_POOL[dims]
    if _even(before, after) and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        return pool(x, kernel, strides, before, ceil_mode=ceil, count_include_pad=counted)
    padded = _padded(site, x, before, after)
    made = pool(padded, kernel, strides, 0, ceil_mode=ceil)
    if counted:
        return made
    there = _padded(site, torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype, device=x.device), before, after)
    return made / pool(there, kernel, strides, 0, ceil_mode=ceil)


@rule("GlobalAveragePool")
def _global_average(site: Site, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


@rule("GlobalMaxPool")
def _global_max(site: Site, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


# ----------------------------------------------------------------------------------------------- normalisations


@rule("BatchNormalization")
def _batch_norm(site: Site, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if site.get("training_mode", 0) or site.get("is_test", 1) == 0:
        raise site.refuse("it is in training mode: export the network in evaluation (model.eval())")
    if site.get("spatial", 1) == 0:
        raise site.refuse("spatial=0 is not supported")
    return F.batch_norm(x, mean, var, scale, shift, False, 0.0, site.get("epsilon", 1e-5))


@rule("InstanceNormalization")
def _instance_norm(site: Site, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=shift, eps=site.get("epsilon", 1e-5))


@rule("LayerNormalization")
def _layer_norm(site: Site, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    axis = site.get("axis", -1) % x.dim()
    shape = x.shape[axis:]
    if scale.shape == shape and (shift is None or shift.shape == shape):
        return F.layer_norm(x, shape, scale, shift, site.get("epsilon", 1e-5))
    made = F.layer_norm(x, shape, None, None, site.get("epsilon", 1e-5)) * scale
    return made if shift is None else made + shift


@rule("SkipLayerNormalization", domain="com.microsoft")
def _skip_layer_norm(
    site: Site, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    x = x + skip if bias is None else x + skip + bias
    return F.layer_norm(x, x.shape[-1:], scale, shift, site.get("epsilon", 1e-12))


@rule("RMSNormalization")
@rule("SimplifiedLayerNormalization")
def _rms_norm(site: Site, x: Tensor, scale: Tensor) -> Tensor:
    dims = list(range(site.get("axis", -1) % x.dim(), x.dim()))
    return x * torch.rsqrt((x * x).mean(dims, keepdim=True) + site.get("epsilon", 1e-5)) * scale


@rule("GroupNormalization")
def _group_norm(site: Site, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    groups = site.get("num_groups")
    if site.opset < 21:  # a scale for each group; since 21 for each channel
        scale, shift = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, shift))
    return F.group_norm(x, groups, scale, shift, site.get("epsilon", 1e-5))


@rule("MeanVarianceNormalization")
def _standardised(site: Site, x: Tensor) -> Tensor:
    axes = list(site.get("axes", (0, 2, 3)))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt((centred * centred).mean(axes, keepdim=True)) + 1e-9)


@rule("LpNormalization")
def _lp_norm(site: Site, x: Tensor) -> Tensor:
    axis, p = site.get("axis", -1), site.get("p", 2)
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else torch.sqrt((x * x).sum(axis, keepdim=True))
    return x / norm


@rule("LRN")
def _local_response(site: Site, x: Tensor) -> Tensor:
    size, alpha = site.get("size"), site.get("alpha", 1e-4)
    before = (size - 1) // 2
    squares = F.pad((x * x).flatten(2).transpose(1, 2), (before, size - 1 - before))
    total = F.avg_pool1d(squares, size, 1).transpose(1, 2).reshape(x.shape)
    return x / torch.pow(total * alpha + site.get("bias", 1.0), site.get("beta", 0.75))


# ------------------------------------------------------------------------------------------------- other sizes


def _sources(site: Site, mode: str, out: Any, size: Any, scale: float, device: torch.device) -> Tensor:
    """Where in the input each of `out` outputs lies, by the coordinate mode of Resize."""
    x = torch.arange(out, dtype=torch.float64, device=device)
    if mode == "asymmetric":
        return x / scale
    if mode == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        single = isinstance(out, int) and out == 1
        return x * 0.0 if single else (x + 0.5) / scale - 0.5
    if mode == "align_corners":
        return x * ((size - 1) / (out - 1)) if not (isinstance(out, int) and out == 1) else x * 0.0
    if mode == "half_pixel_symmetric":
        adjust = out / (scale * size)
        return size / 2 * (1 - adjust) + (x + 0.5) / scale - 0.5
    raise site.refuse(f"coordinate_transformation_mode '{mode}' is not supported")


NEAREST = {
    "floor": torch.floor, "ceil": torch.ceil, "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
}  # fmt: skip


def _taps(site: Site, how: str, source: Tensor, size: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Which input elements an output is made of along one axis, and their weights."""
    if how == "nearest":
        mode = site.get("nearest_mode", "round_prefer_floor") if site.opset >= 11 else "floor"
        return [(NEAREST[mode](source), None)]
    low = torch.floor(source)
    t = source - low
    if how == "linear":
        return [(low, 1 - t), (low + 1, t)]
    a = site.get("cubic_coeff_a", -0.75)
    offsets = [-1, 0, 1, 2]
    weights = []
    for offset in offsets:  # Keys, Cubic convolution interpolation, 1981
        d = (t - offset).abs()
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weights.append(near if offset in (0, 1) else far)
    if site.get("exclude_outside", 0):
        inside = [((low + o >= 0) & (low + o < size)).to(t.dtype) for o in offsets]
        weights = [w * i for w, i in zip(weights, inside, strict=True)]
        total = sum(weights[1:], weights[0])
        weights = [w / total for w in weights]
    return [(low + o, w) for o, w in zip(offsets, weights, strict=True)]


def _along_axis(site: Site, x: Tensor, axis: int, out: Any, scale: float, how: str, mode: str) -> Tensor:
    size = x.shape[axis]
    source = _sources(site, mode, out, size, scale, x.device)
    if how == "linear" or how == "nearest":
        source = source.clamp(min=0).clamp(max=size - 1) if how == "linear" else source
    shape = [1] * x.dim()
    shape[axis] = -1
    total = None
    for places, weights in _taps(site, how, source, size):
        part = x.index_select(axis, places.clamp(min=0).clamp(max=size - 1).long())
        part = part if weights is None else part * weights.to(x.dtype).reshape(shape)
        total = part if total is None else total + part
    return x if total is None else total


@rule("Upsample", 1)
def _upsample(site: Site, x: Tensor, scales: Any = None) -> Tensor:
    found = list(site.get("scales", ())) if scales is None else site.constant(scales, "a scale").reshape(-1).tolist()
    return _resized(site, x, [float(s) for s in found], None, list(range(x.dim())), "asymmetric")


@rule("Resize", 1, 2, 3)
def _resize(site: Site, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    if site.opset < 11:
        found = site.constant(roi, "a scale").reshape(-1)  # its second input
        return _resized(site, x, [float(s) for s in found], None, list(range(x.dim())), "asymmetric")
    if site.get("antialias", 0):
        raise site.refuse("antialias is not supported")
    if site.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise site.refuse("keep_aspect_ratio_policy is not supported")
    axes = [a % x.dim() for a in site.get("axes") or range(x.dim())]
    mode = site.get("coordinate_transformation_mode", "half_pixel")
    scales = None if scales is None or np.size(site.constant(scales, "a scale")) == 0 else scales
    if scales is not None:
        found = [float(s) for s in site.constant(scales, "a scale").reshape(-1)]
        return _resized(site, x, found, None, axes, mode)
    if sizes is None:
        raise site.refuse("it has neither scales nor sizes")
    return _resized(site, x, None, site.ints(sizes, "a size"), axes, mode)


def _resized(site: Site, x: Tensor, scales: list[float] | None, sizes: list[Any] | None, axes: list[int], mode: str):
    how = site.get("mode", "nearest")
    if how not in ("nearest", "linear", "cubic", "bilinear"):
        raise site.refuse(f"mode '{how}' is not supported")
    how = "linear" if how == "bilinear" else how
    target: dict[int, Any] = {}
    factor: dict[int, Any] = {}
    for place, axis in enumerate(axes):
        n = x.shape[axis]
        if scales is not None:
            scale = scales[place]
            if scale <= 0:
                raise site.refuse(f"a scale of {scale}")
            if scale == 1:
                continue
            out = n * int(scale) if scale == int(scale) else math.floor(n * scale)
        else:
            out = (sizes or ())[place]
            if isinstance(out, int) and isinstance(n, int) and out == n:
                continue
            if (axis < 2 and not isinstance(out, int)) or (axis == 0 and out == site.fixed_batch):
                continue  # a batch or channels as they are
            scale = out / n
        target[axis], factor[axis] = out, scale
    site.checked([target.get(d, n) for d, n in enumerate(x.shape)])
    spatial = list(range(2, x.dim()))
    nearest_mode = site.get("nearest_mode", "round_prefer_floor") if site.opset >= 11 else "floor"
    grows = all(isinstance(f, (int, float)) and f == int(f) for f in factor.values())
    alike = grows and (
        (mode == "asymmetric" and nearest_mode == "floor")
        or (mode in ("half_pixel", "pytorch_half_pixel") and nearest_mode.startswith("round"))
    )
    plain = set(target) <= set(spatial) and 1 <= len(spatial) <= 3
    size = [target.get(d, x.shape[d]) for d in spatial]
    if not target:
        return x
    if how == "nearest" and alike and plain:
        return F.interpolate(x, size=size, mode="nearest")
    wide = all(not (isinstance(n, int) and n == 1) for n in size)
    exact = sizes is not None or grows  # torch takes out / n for the scale, the file may have rounded it
    if (
        how == "linear"
        and plain
        and exact
        and (mode in ("half_pixel", "pytorch_half_pixel") and (wide or mode[0] == "h"))
    ):
        name = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(spatial)]
        return F.interpolate(x, size=size, mode=name, align_corners=False)
    if how == "linear" and plain and mode == "align_corners" and wide:
        name = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(spatial)]
        return F.interpolate(x, size=size, mode=name, align_corners=True)
    for axis in target:
        x = _along_axis(site, x, axis, target[axis], factor[axis], how, mode)
    return x


@rule("GridSample")
def _grid_sample(site: Site, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest"}.get(site.get("mode", "linear"))
    if mode is None:
        raise site.refuse(f"mode '{site.get('mode')}' is not supported")
    return F.grid_sample(
        x, grid, mode=mode, padding_mode=site.get("padding_mode", "zeros"),
        align_corners=bool(site.get("align_corners", 0)),
    )  # fmt: skip
