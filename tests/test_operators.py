"""The op table: a network for every row, the refusals, and random networks made of its rows."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import parspike
from parspike.errors import UnsupportedError
from parspike.graph import Role, leaves, trace
from parspike.graph.ops import (
    ACROSS_BATCH,
    ENCODE,
    EXP,
    FLOOR,
    HOLD,
    LARGEST,
    MASKED,
    RECIPROCAL,
    ROOT,
    ROTATE,
    RSQRT,
    SHARES,
    SIZE,
    TABLE,
    TIMES,
    USER,
    WEIGHTS,
)  # fmt: skip

# ------------------------------------------------------------------- a call of every row, by its ATen name

CALLS: dict[str, Callable[[Tensor], Any]] = {}


def calls(names: str, arguments: Callable[[Tensor], tuple[Any, ...]] = lambda x: (x,), **keywords: Any) -> None:
    """Networks that call each of the ATen operators on a value x (B, 4, 6, 6) of spikes."""
    for name in names.split():
        packet, overload = name.split(".")
        operator = getattr(getattr(torch.ops.aten, packet), overload)
        CALLS[f"aten.{name}"] = lambda x, operator=operator: operator(*arguments(x), **keywords)


PLACES, EDGES = torch.tensor([2, 0]), torch.tensor([0.1, 0.5], dtype=torch.float64)


def weight(*shape: int) -> Tensor:
    return torch.linspace(-1, 1.3, math.prod(shape), dtype=torch.float64).reshape(shape)


def line(x: Tensor) -> Tensor:
    return x.flatten(2)


def cube(x: Tensor) -> Tensor:
    return x.unflatten(3, (2, 3))


calls("conv1d.default", lambda x: (line(x), weight(3, 4, 3), None, [1], [1]))
calls("conv2d.default", lambda x: (x, weight(4, 2, 3, 3), weight(4), [2, 1], [1, 1], [1, 2], 2))
calls("conv3d.default", lambda x: (cube(x), weight(3, 4, 2, 2, 2)))
calls("conv1d.padding", lambda x: (line(x), weight(3, 4, 3), None, [1], "same"))
calls("conv2d.padding", lambda x: (x, weight(3, 4, 3, 3), None, [1, 1], "same"))
calls("conv3d.padding", lambda x: (cube(x), weight(3, 4, 2, 2, 2), None, [1, 1, 1], "valid"))
calls("conv_transpose1d.default", lambda x: (line(x), weight(4, 3, 3), None, [2]))
calls("conv_transpose2d.input", lambda x: (x, weight(4, 3, 3, 3), None, [2, 2], [1, 1], [1, 1]))
calls("conv_transpose3d.input", lambda x: (cube(x), weight(4, 3, 2, 2, 2)))
calls("linear.default matmul.default", lambda x: (x, weight(6, 6)))
calls("mm.default", lambda x: (x.flatten(1), weight(144, 3)))
calls("bmm.default", lambda x: (line(x), line(x).new_ones(x.shape[0], 36, 2)))
calls("einsum.default", lambda x: ("bchw,cd->bdhw", [x, weight(4, 3)]))
calls("addmm.default", lambda x: (weight(3), x.flatten(1), weight(144, 3)))
calls("baddbmm.default", lambda x: (weight(3), line(x), line(x).new_ones(x.shape[0], 36, 3)))
calls("mul.Tensor", lambda x: (x, weight(4, 1, 1)))
calls("mul.Scalar div.Scalar add.Scalar sub.Scalar rsub.Scalar", lambda x: (x, 1.5))
calls("addcmul.default", lambda x: (weight(4, 1, 1), x, weight(6)), value=2.0)
calls("div.Tensor", lambda x: (x, weight(4, 1, 1) + 2))
calls("add.Tensor sub.Tensor rsub.Tensor", lambda x: (x, x.flip(3)), alpha=2)
calls("neg.default")
calls("cat.default stack.default", lambda x: ([x, x * 2], 1))
calls("cumsum.default", lambda x: (x, 2))
calls("diff.default", lambda x: (x, 1, 2))
calls("lerp.Scalar", lambda x: (x, x.flip(2), 0.25))
calls("avg_pool1d.default", lambda x: (line(x), [3], [2]))
calls("avg_pool2d.default", lambda x: (x, [3, 3], [2, 2], [1, 1]))
calls("avg_pool3d.default", lambda x: (cube(x), [2, 2, 1]))
calls("adaptive_avg_pool1d.default", lambda x: (line(x), [5]))
calls("adaptive_avg_pool2d.default", lambda x: (x, [4, 1]))
calls("adaptive_avg_pool3d.default", lambda x: (cube(x), [2, 1, 1]))
calls("mean.dim sum.dim_IntList", lambda x: (x, [2, -1], True))
CALLS["aten.upsample_nearest1d.vec"] = lambda x: F.interpolate(line(x), scale_factor=2)
CALLS["aten.upsample_nearest2d.vec"] = lambda x: F.interpolate(x, scale_factor=2)
CALLS["aten.upsample_nearest3d.vec"] = lambda x: F.interpolate(cube(x), scale_factor=2)
CALLS["aten._upsample_nearest_exact2d.vec"] = lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact")
CALLS["aten.upsample_linear1d.vec"] = lambda x: F.interpolate(line(x), scale_factor=2, mode="linear")
CALLS["aten.upsample_bilinear2d.vec"] = lambda x: F.interpolate(x, size=(9, 7), mode="bilinear")
CALLS["aten._upsample_bilinear2d_aa.vec"] = lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True)
CALLS["aten.upsample_trilinear3d.vec"] = lambda x: F.interpolate(cube(x), scale_factor=2, mode="trilinear")
CALLS["aten.upsample_bicubic2d.vec"] = lambda x: F.interpolate(x, size=(9, 7), mode="bicubic")
CALLS["aten._upsample_bicubic2d_aa.vec"] = lambda x: F.interpolate(x, size=(3, 4), mode="bicubic", antialias=True)
calls("upsample_nearest1d.default", lambda x: (line(x), [40]))
calls("upsample_nearest2d.default _upsample_nearest_exact2d.default", lambda x: (x, [9, 8]))
calls("upsample_nearest3d.default", lambda x: (cube(x), [8, 4, 3]))
calls("upsample_linear1d.default", lambda x: (line(x), [40], False))
calls("upsample_bilinear2d.default _upsample_bilinear2d_aa.default upsample_bicubic2d.default "
      "_upsample_bicubic2d_aa.default", lambda x: (x, [9, 8], True))  # fmt: skip
calls("upsample_trilinear3d.default", lambda x: (cube(x), [8, 4, 3], False))
calls("grid_sampler.default grid_sampler_2d.default",
      lambda x: (x, weight(1, 5, 5, 2).expand(x.shape[0], 5, 5, 2) / 2, 0, 0, False))  # fmt: skip
calls("im2col.default", lambda x: (x, [3, 3], [1, 1], [1, 1], [2, 2]))
calls("col2im.default", lambda x: (line(x)[..., :25], [6, 6], [2, 2], [1, 1], [0, 0], [1, 1]))
calls("pixel_shuffle.default channel_shuffle.default", lambda x: (x, 2))
calls("pixel_unshuffle.default", lambda x: (x, 3))
calls("reshape.default", lambda x: (x, [x.shape[0], 8, 18]))
calls("permute.default", lambda x: (x, [0, 2, 3, 1]))
calls("transpose.int swapaxes.default", lambda x: (x, 1, 3))
calls("movedim.int", lambda x: (x, 1, -1))
calls("movedim.intlist", lambda x: (x, [1, 2], [2, 1]))
calls("squeeze.default", lambda x: (x[:, :1],))
calls("t.default", lambda x: (torch.ops.aten.t.default(x.flatten(1)) * 2,))
calls("squeeze.dim", lambda x: (x[:, :1], 1))
calls("squeeze.dims", lambda x: (x[:, :1, :1], [1, 2]))
calls("unsqueeze.default", lambda x: (x, 2))
calls("expand.default broadcast_to.default", lambda x: (x[:, :1], [x.shape[0], 3, 6, 6]))
calls("expand_as.default", lambda x: (x[:, :1], x))
calls("slice.Tensor", lambda x: (x, 2, 1, 6, 2))
calls("select.int", lambda x: (x, 1, -1))
calls("split.Tensor chunk.default tensor_split.sections unsafe_split.Tensor unsafe_chunk.default", lambda x: (x, 2, 1))
calls("split.sizes split_with_sizes.default", lambda x: (x, [1, 3], 1))
calls("unbind.int", lambda x: (x, 1))
calls("narrow.default", lambda x: (x, 2, 1, 3))
calls("index_select.default", lambda x: (x, 1, PLACES))
calls("gather.default", lambda x: (x, 3, PLACES.expand(x.shape[0], 4, 6, 2)))
calls("roll.default", lambda x: (x, [1, -2], [2, 3]))
calls("flip.default", lambda x: (x, [1, 3]))
calls("repeat.default", lambda x: (x, [1, 2, 1, 1]))
calls("tile.default", lambda x: (x, [2, 1]))
calls("repeat_interleave.self_int", lambda x: (x, 2, 1))
calls("constant_pad_nd.default", lambda x: (x, [1, 2], 0.5))
calls("pad.default", lambda x: (x, [1, 2, 0, 1], "circular"))
calls("reflection_pad1d.default replication_pad1d.default", lambda x: (line(x), [1, 2]))
calls("reflection_pad2d.default replication_pad2d.default", lambda x: (x, [1, 2, 0, 1]))
calls("reflection_pad3d.default replication_pad3d.default", lambda x: (cube(x), [1, 0, 1, 0, 1, 0]))
calls("unfold.default", lambda x: (x, 2, 3, 1))
calls("tril.default triu.default", lambda x: (x, 1))
calls("diagonal.default", lambda x: (x, 0, 2, 3))
calls("_to_copy.default", lambda x: (x,), dtype=torch.float64)
calls("to.dtype", lambda x: (x, torch.float32))
calls("type_as.default", lambda x: (x, x))
calls("index.Tensor", lambda x: (x, [None, PLACES]))
calls("masked_fill.Scalar", lambda x: (x, weight(6, 6) > 0, -2.0))
calls("slice_scatter.default", lambda x: (x, x[:, :, :2] * 2, 2, 1, 3))
calls("select_scatter.default", lambda x: (x, x[:, 0] * 2, 1, 2))
calls("copy.default", lambda x: (x, x * 2))
calls("index_put.default", lambda x: (x, [None, PLACES], x[:, :2] * 2))
calls("where.self", lambda x: (weight(6, 6) > 0, x, x * 2))
calls("where.ScalarOther", lambda x: (weight(6, 6) > 0, x, 0.5))
calls("where.ScalarSelf", lambda x: (weight(6, 6) > 0, 0.5, x))
calls("addmv.default", lambda x: (x.flatten(1)[:, 0], x.flatten(1), weight(144)))
calls("embedding.default", lambda x: (weight(5, 3), (x[:, 0] > 1).long()))
calls("zeros.default ones.default", lambda x: ([x.shape[0], 4, 6, 6],), dtype=torch.float64)
calls("full.default", lambda x: ([x.shape[0], 4, 6, 6], 0.5), dtype=torch.float64)
CALLS["aten.arange.default"] = lambda x: x[torch.ops.aten.arange.default(x.shape[0])]
CALLS["aten.arange.start"] = lambda x: x[torch.ops.aten.arange.start(1, x.shape[0] + 1) - 1]
CALLS["aten.arange.start_step"] = lambda x: x[(torch.ops.aten.arange.start_step(0, 2 * x.shape[0], 2) / 2).long()]
calls("relu.default relu6.default hardtanh.default elu.default celu.default selu.default hardsigmoid.default "
      "atan.default asinh.default erf.default expm1.default sinh.default sigmoid.default tanh.default softplus.default "
      "log_sigmoid.default leaky_relu.default abs.default silu.default mish.default hardswish.default "
      "gelu.default")  # fmt: skip
calls("clamp.default", lambda x: (x, None, 0.7))
calls("clamp_min.default", lambda x: (x, 0.2))
calls("clamp_max.default", lambda x: (x, 0.7))
calls("clamp.Tensor", lambda x: (x, weight(6), weight(6) + 0.5))
calls("clamp_min.Tensor clamp_max.Tensor", lambda x: (x, weight(6)))
calls("threshold.default", lambda x: (x, 0.5, 0.1))
calls("prelu.default", lambda x: (x, weight(4)))
calls("max_pool1d.default", lambda x: (line(x), [3], [2], [1], [1], True))
calls("max_pool2d.default", lambda x: (x, [3, 2], [2, 1], [1, 1], [1, 2]))
calls("max_pool3d.default", lambda x: (cube(x), [2, 2, 1]))
CALLS["aten.adaptive_max_pool1d.default"] = lambda x: F.adaptive_max_pool1d(line(x), 5)
CALLS["aten.adaptive_max_pool2d.default"] = lambda x: F.adaptive_max_pool2d(x, (2, 3))
CALLS["aten.adaptive_max_pool3d.default"] = lambda x: F.adaptive_max_pool3d(cube(x), (2, 1, 1))
for dims in "123":
    CALLS[f"aten.adaptive_max_pool{dims}d.places"] = lambda x, d=int(dims): torch.cat(
        [t.flatten(1).double() for t in getattr(F, f"adaptive_max_pool{d}d")(
            (line, lambda x: x, cube)[d - 1](x), 2, return_indices=True)], 1
    )  # fmt: skip
CALLS["aten.max_pool2d_with_indices.default"] = lambda x: F.max_pool2d(x, 2, return_indices=True)
CALLS["aten.max_pool3d_with_indices.default"] = lambda x: F.max_pool3d(cube(x), 2, return_indices=True)
CALLS["aten.max_unpool2d.default"] = lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)
CALLS["aten.max_unpool3d.default"] = lambda x: F.max_unpool3d(
    *F.max_pool3d(cube(x), 2, return_indices=True), 2, output_size=cube(x).shape[2:]
)
calls("amax.default amin.default", lambda x: (x, [2, 3]))
calls("maximum.default minimum.default fmax.default fmin.default", lambda x: (x, x.flip(2) * 2 - 1))
calls("softmax.int log_softmax.int", lambda x: (x, 1))
calls("_softmax.default _log_softmax.default", lambda x: (x, 1, False))
calls("logsumexp.default", lambda x: (x, [1]))
calls("layer_norm.default", lambda x: (x, [6], weight(6)))
calls("native_layer_norm.default", lambda x: (x, [6], weight(6), None, 1e-5))
calls("group_norm.default", lambda x: (x, 2))
calls("native_group_norm.default", lambda x: (x, None, None, x.shape[0], 4, 36, 2, 1e-5))
calls("instance_norm.default", lambda x: (x, None, None, None, None, True, 0.1, 1e-5, False))
calls("rms_norm.default", lambda x: (x, [6]))
calls("_fused_rms_norm.default", lambda x: (x, [6], weight(6), 1e-5))
calls("var.correction std.correction var_mean.correction", lambda x: (x, [1]), correction=1)
calls("var.dim std.dim", lambda x: (x, [1]))
calls("linalg_vector_norm.default", lambda x: (x, 2.0, [1]))
calls("norm.ScalarOpt_dim", lambda x: (x, 2.0, [1], True))
calls("cosine_similarity.default", lambda x: (x, x.flip(1)))
calls("scaled_dot_product_attention.default", lambda x: (x, x, x))
calls("_scaled_dot_product_flash_attention_for_cpu.default", lambda x: (x, x, x))
calls("glu.default", lambda x: (x, 1))
calls("cumprod.default prod.dim_int", lambda x: (x, 1))
calls("bilinear.default", lambda x: (x, x, weight(3, 6, 6), None))
calls("cdist.default", lambda x: (x, x.flip(1)))
calls("square.default exp.default exp2.default sin.default cos.default round.default floor.default ceil.default "
      "sign.default softshrink.default hardshrink.default trunc.default signbit.default cosh.default "
      "tan.default erfc.default i0.default")  # fmt: skip
calls("round.decimals", lambda x: (x,), decimals=1)
calls("copysign.Tensor hypot.default atan2.default", lambda x: (x, weight(6)))
calls("acosh.default lgamma.default digamma.default log10.default", lambda x: (x + 1.5,))
calls("atanh.default asin.default acos.default erfinv.default", lambda x: (x.tanh() * 0.5,))
calls("logcumsumexp.default cummax.default cummin.default mode.default", lambda x: (x, 1))
calls("kthvalue.default", lambda x: (x, 2, 1))
calls("scatter_reduce.two", lambda x: (x, 1, (x > 1).long(), x, "amax"))
calls("linalg_inv.default linalg_inv_ex.default linalg_det.default linalg_slogdet.default linalg_svdvals.default "
      "linalg_qr.default matrix_exp.default", lambda x: (x * 0.1 + torch.eye(6).to(x),))  # fmt: skip
calls("linalg_eigh.default linalg_cholesky.default", lambda x: (x @ x.transpose(2, 3) + torch.eye(6).to(x),))
calls("linalg_solve.default", lambda x: (x * 0.1 + torch.eye(6).to(x), x))
calls("matrix_power.default", lambda x: (x, 2))
CALLS["aten.linalg_svd.default"] = lambda x: torch.linalg.svd(x)[1]
CALLS["aten._fft_r2c.default"] = lambda x: torch.fft.rfft(x).abs()
CALLS["aten._fft_c2c.default"] = lambda x: torch.view_as_real(torch.fft.fft2(x)).abs()
CALLS["aten._fft_c2r.default"] = lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2)
CALLS["aten.view_as_real.default"] = lambda x: torch.fft.fft(x).imag.abs()
CALLS["aten.view_as_complex.default"] = lambda x: torch.view_as_complex(x.unflatten(-1, (3, 2))).abs()
CALLS["aten.complex.default"] = lambda x: torch.angle(torch.complex(x, x + 1))
CALLS["aten.polar.default"] = lambda x: torch.polar(x, x * 2).real
CALLS["aten.angle.default"] = CALLS["aten.complex.default"]
CALLS["aten._conj.default"] = lambda x: torch.view_as_real(torch.fft.fft(x).conj().resolve_conj()).abs()
calls("log.default log2.default log1p.default sqrt.default rsqrt.default reciprocal.default", lambda x: (x.abs() + 1,))
calls("pow.Tensor_Scalar remainder.Scalar fmod.Scalar", lambda x: (x, 3))
calls("pow.Tensor_Tensor remainder.Tensor", lambda x: (x.abs() + 1, weight(6)))
calls("pow.Scalar", lambda x: (2.0, x))
calls("div.Tensor_mode", lambda x: (x, weight(6) + 2), rounding_mode="floor")
calls("div.Scalar_mode", lambda x: (x, 0.5), rounding_mode="floor")
calls("floor_divide.default", lambda x: (x, weight(6) + 2))
calls("argmax.default argmin.default", lambda x: (x, 1))
calls("topk.default", lambda x: (x, 2, 1))
calls("sort.default argsort.default", lambda x: (x, 1))
calls("max.dim min.dim median.dim", lambda x: (x, 1))
calls("scatter.src scatter_add.default", lambda x: (x, 1, (x > 1).long(), x))
calls("scatter.value", lambda x: (x, 1, (x > 1).long(), 0.5))
calls("one_hot.default", lambda x: ((x > 1).long(), 2))
calls("bucketize.Tensor", lambda x: (x, EDGES))
calls("searchsorted.Tensor", lambda x: (EDGES, x.contiguous()))
calls("eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar", lambda x: (x, 0.5))
calls("eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor", lambda x: (x, x.flip(1)))
calls("logical_not.default bitwise_not.default", lambda x: (x > 0.5,))
calls("logical_and.default logical_or.default logical_xor.default bitwise_and.Tensor bitwise_or.Tensor "
      "bitwise_xor.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor",
      lambda x: (x > 0.5, x.flip(1) > 0.5))  # fmt: skip
calls("bitwise_and.Scalar bitwise_or.Scalar", lambda x: ((x > 0.5).long(), 1))
calls("isnan.default isinf.default")
calls("any.dim all.dim", lambda x: (x > 0.5, 1))
calls("any.dims", lambda x: (x > 0.5, [1, 2]))
calls("masked_fill.Tensor", lambda x: (x, x > 0.5, EDGES[0]))
CALLS["getitem"] = lambda x: x.split(2, 1)[1]
CALLS["parspike.qcfs"] = parspike.QCFS(4, 1.0).double()
CALLS["parspike.batch_norm"] = lambda x: F.batch_norm(x, weight(4).to(x), weight(4).to(x) + 2, None, None)

STEPS_OF, ZEROS = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.zeros(4, dtype=torch.int32)
calls("fake_quantize_per_tensor_affine.default", lambda x: (x, 0.25, 0, 0, 15))
calls("fake_quantize_per_tensor_affine.tensor_qparams", lambda x: (x, STEPS_OF[0], ZEROS[0], 0, 15))
calls("fake_quantize_per_channel_affine.default", lambda x: (x, STEPS_OF, ZEROS, 1, 0, 15))
calls("_fake_quantize_learnable_per_tensor_affine.default", lambda x: (x, STEPS_OF[:1], ZEROS[:1].float(), 0, 15, 1.0))

BAGS = {"aten._embedding_bag.default", "aten._embedding_bag_forward_only.default"}
PARTS = {"parspike.scale_shift", "parspike.rising", "parspike.falling", "parspike.pointwise"}
LATER = (
    PARTS
    | {ENCODE, EXP, FLOOR, HOLD, LARGEST, MASKED, RECIPROCAL, ROOT, ROTATE, RSQRT, SHARES, SIZE, TIMES, WEIGHTS}
    | BAGS
)
"""Rows whose networks stand elsewhere: what rewriting makes in the tests of activations, bags of tokens below,
inputs as spikes in test_over_time, attention taken apart in test_encode and test_lookup,
rows rotated and scaled in test_scaled."""


class Network(nn.Module):
    """conv → ReLU → every function of the group → the mean of each result."""

    def __init__(self, functions: list[Callable[[Tensor], Any]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.functions = nn.Conv2d(2, 4, 3, padding=1), functions

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = self.conv(x).relu()
        found = [leaf for function in self.functions for leaf in leaves(function(hidden)) if isinstance(leaf, Tensor)]
        return [
            leaf.double().flatten(1).mean(1) if leaf.dim() > 1 else leaf.double() + hidden[:, 0, 0, 0] for leaf in found
        ]


ALONE = ["aten.to.dtype", "aten.type_as.default", "aten._to_copy.default"]
"""Written another way where an operator of the network writes in place, and it is traced twice."""

REWRITTEN = [f"aten.{name}.default" for name in ("_fft_r2c", "_fft_c2c", "_fft_c2r", "view_as_real", "polar", "_conj")]
"""Reached by operators that the table lacks: torch then writes the whole network anew."""


def groups(size: int = 12) -> list[list[str]]:
    names = [name for name in CALLS if name not in (*ALONE, *REWRITTEN)]
    return [ALONE[:2], ALONE[2:], REWRITTEN, *(names[i : i + size] for i in range(0, len(names), size))]


@pytest.mark.parametrize("names", groups(), ids=lambda names: names[0].removeprefix("aten."))
def test_every_row_computes_what_the_network_does(names, monkeypatch):
    """Would catch an operator whose arguments are read wrongly, in any engine, and one without a gradient, which ended
    the gradient steps of the default recipe."""
    model = Network([CALLS[name] for name in names]).eval().double()
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    graph = trace(model, (x,))
    # A squeeze that would drop the batch of one sample is read as one of the other dimensions; type and size of another
    # tensor as a cast and an expansion.
    others = {"aten.squeeze.default", "aten.squeeze.dim", "aten.type_as.default", "aten.expand_as.default"}
    assert set(names) - others <= {node.target for node in graph.nodes}
    assert not [node.target for node in graph.nodes if node.role is Role.UNKNOWN or node.reason == ACROSS_BATCH]
    for found, wanted in zip(leaves(graph.run(x)), leaves(model(x)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    given = x.clone().requires_grad_()
    moved = [leaf.sum() for leaf in leaves(graph.run(given)) if leaf.requires_grad]
    torch.stack([given.sum(), *moved]).sum().backward()  # comparisons have none
    # What was just read is not traced once more.
    monkeypatch.setattr(importlib.import_module("parspike.plan"), "trace", lambda *given, **options: graph)
    snn = parspike.convert(model, x, T=2, recipe="max")
    count = snn(x)
    for engine in ("parallel", "serial"):
        for found, wanted in zip(leaves(snn.run(x, engine=engine).logits), leaves(count), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_every_row_has_a_network():
    assert set(TABLE) - set(USER) == set(CALLS) | LATER


# ------------------------------------------------------------------------- activations, and what stands for them


class Two(nn.Module):
    """conv → f → conv → f → linear."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(16, 5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.two(self.function(self.one(x)))).flatten(1))


X = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SINGLE, DOUBLE = "single", "double"
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sigmoid": (torch.sigmoid, SINGLE), "tanh": (torch.tanh, SINGLE), "softplus": (F.softplus, SINGLE),
    "elu": (F.elu, SINGLE), "celu": (F.celu, SINGLE), "selu": (F.selu, SINGLE),
    "leaky": (nn.LeakyReLU(0.1), SINGLE), "leaky, falling": (nn.LeakyReLU(-0.3), DOUBLE),
    "prelu": (nn.PReLU().double(), SINGLE), "prelu, channels": (nn.PReLU(4, -0.2).double(), DOUBLE),
    "hardsigmoid": (F.hardsigmoid, SINGLE), "hardtanh": (F.hardtanh, SINGLE), "logsigmoid": (F.logsigmoid, SINGLE),
    "softsign": (F.softsign, SINGLE), "clamp": (lambda x: x.clamp(-0.3, 0.4), SINGLE),
    "clamp, above": (lambda x: x.clamp(max=0.4), SINGLE), "threshold": (nn.Threshold(0.2, 0.1), SINGLE),
    "gelu": (F.gelu, DOUBLE), "gelu, tanh": (nn.GELU("tanh"), DOUBLE), "silu": (F.silu, DOUBLE),
    "mish": (F.mish, DOUBLE), "hardswish": (F.hardswish, DOUBLE), "abs": (torch.abs, DOUBLE),
    "x·(x > 0)": (lambda x: x * (x > 0), SINGLE), "x·σ(x)": (lambda x: x * torch.sigmoid(x), DOUBLE),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), DOUBLE),
    "gpt2 gelu": (lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x.pow(3)))), DOUBLE),
    "relu²": (lambda x: F.relu(x) ** 2, SINGLE), "where": (lambda x: torch.where(x > 0, x, 0.1 * x), SINGLE),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
@torch.no_grad()
def test_activations_become_neurons_that_approach_them(name):
    function, kind = ACTIVATIONS[name]
    model = Two(function).eval().double()
    plan = parspike.plan(model, X)
    assert len(plan.spiking) == (2 if kind == SINGLE else 4)
    assert not [row for row in plan.rows if row.role not in ("synapse", "neuron")]
    graph, wanted = plan.graph, model(X)
    torch.testing.assert_close(graph.run(X), wanted, rtol=1e-9, atol=1e-9)
    error = [float((parspike.convert(plan, X, T=T)(X) - wanted).norm() / wanted.norm()) for T in (8, 512)]
    assert error[1] < 4e-3
    assert error[1] < error[0]
    snn = parspike.convert(plan, X, T=3)
    for engine in ("parallel", "serial"):
        torch.testing.assert_close(snn.run(X, engine=engine).logits, snn(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("code", ["weighted", "onset"])
@torch.no_grad()
def test_staircases_in_every_code(code, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    model = model.eval().double()
    snn = parspike.convert(model, X, T=9, code=code)
    torch.testing.assert_close(snn.run(X, engine="parallel").logits, snn(X), rtol=1e-9, atol=1e-9)
    assert float((snn(X) - model(X)).norm() / model(X).norm()) < (0.01 if code == "weighted" else 0.2)
    again = parspike.load(snn.save(tmp_path / "net.parspike"))
    assert torch.equal(again(X), snn(X))
    assert "mean squared error" in repr(snn)


def test_x_times_its_sign_is_relu_itself():
    plan = parspike.plan(Two(lambda x: x * (x > 0)).eval().double(), X)
    assert [node.target for node in plan.graph.neurons] == ["aten.relu.default"] * 2


def test_keep_means_both_halves_of_an_activation():
    model = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2)).eval()
    plan = parspike.plan(model, torch.randn(2, 3), layers={"1": parspike.Keep()})
    assert [plan.graph.by_name[name].layer for name in plan.kept] == ["1+", "1-"]


# ------------------------------------------------------------------------------------ analog, read-out, refused


def plan_of(function: Callable[[Tensor], Any], **options: Any) -> parspike.Plan:
    return parspike.plan(Two(function).eval().double(), X, **options)


@pytest.mark.parametrize(
    ("function", "operator", "reason"),
    [
        (lambda x: x.softmax(1), "softmax", "weighs its values against each other"),
        (lambda x: F.layer_norm(x, x.shape[1:]), "layer_norm", "divides by"),
        (lambda x: x * x.mean((2, 3), keepdim=True), "mul", "product of two values"),
        (lambda x: x / (1 + x.square().mean(1, keepdim=True)), "div", "divisor that depends on the input"),
        (lambda x: F.scaled_dot_product_attention(x, x, x), "scaled_dot_product_attention", "attention"),
        (lambda x: torch.sin(x), "sin", "not piecewise monotone"),
    ],
)
def test_analog_operators_are_named_and_strict_refuses_them(function, operator, reason):
    plan = plan_of(lambda x: function(x.relu()))
    rows = [row for row in plan.rows if row.operator == operator and row.role == "analog"]
    assert plan.ok
    assert len(rows) == 1 + (operator != "div")  # the first divisor depends on no spike
    assert all(reason in row.becomes and "on the time-mean" in row.becomes for row in rows)
    strict = plan_of(lambda x: function(x.relu()), strict=True)
    with pytest.raises(UnsupportedError) as error:
        strict.check()
    assert operator in str(error.value)
    assert "strict=False" in str(error.value)


@pytest.mark.parametrize("last", [nn.Softmax(-1), nn.LogSoftmax(-1), nn.Sigmoid(), nn.Tanh()])
def test_a_squashing_at_the_output_is_a_readout(last):
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2), last).eval()
    x = torch.randn(5, 3)
    plan = parspike.plan(model, x, strict=True)
    plan.check()
    assert [row.role for row in plan.rows] == ["synapse", "neuron", "synapse", "readout"]
    assert "1 read-out" in str(plan)
    torch.testing.assert_close(parspike.convert(plan, x, T=1024)(x), model(x), atol=2e-3, rtol=0)


def test_maxima_say_where_they_are_exact():
    def becomes(function):
        plan = plan_of(function)
        return next(row.becomes for row in plan.rows if row.role == "order")

    assert "nested spike trains" in becomes(lambda x: F.max_pool2d(y := x.relu(), 3, 1, 1) + y)
    assert "before the neuron" in becomes(lambda x: F.max_pool2d(x.relu(), 3, 1, 1))
    assert "not nested" in becomes(lambda x: torch.maximum(y := x.relu(), 0.5 * y.flip(1)))
    assert "not nested" in becomes(lambda x: x.relu().amax(1, keepdim=True) + x)


# ------------------------------------------------------------------------------------------ shapes and signatures


class Outputs(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.one, self.two, self.form = nn.Linear(4, 4), nn.Linear(3, 4), form

    def forward(self, x: Tensor, *, y: Tensor) -> Any:
        a = self.one(x).relu() + self.two(y).sigmoid()
        if self.form == "dict":
            return {"a": a, "parts": (a * 2, None)}
        return Pair(a, a * 2) if self.form == "named" else Record(a, [a * 2])


@dataclasses.dataclass
class Record:
    a: Tensor
    parts: Any


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@pytest.mark.parametrize(("form", "keys"), [("dict", ["a", "parts"]), ("named", ["a", "b"]), ("data", ["a", "parts"])])
def test_several_inputs_and_structured_outputs(form, keys, tmp_path):
    model = Outputs(form).eval()
    batch = {"y": torch.randn(5, 3), "x": torch.randn(5, 4)}
    snn = parspike.convert(model, [batch], example=batch, T=512)
    out = snn(**batch)
    assert sorted(out) == keys
    wanted = model(**batch)
    wanted = wanted if form == "dict" else wanted._asdict() if form == "named" else vars(wanted)
    torch.testing.assert_close(out["a"], wanted["a"], atol=0.02, rtol=0)
    assert torch.equal(parspike.load(snn.save(tmp_path / "n.parspike"))(**batch)["a"], out["a"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_channels_last(dtype):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    model = model.eval().to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = X.to(dtype).contiguous(memory_format=torch.channels_last)
    snn = parspike.convert(model, x, T=64)
    assert snn(x).dtype == dtype
    torch.testing.assert_close(snn(x).double(), model(x).double(), atol=0.08, rtol=0)


def test_tokens_and_waveforms():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.GELU(), nn.Flatten(), nn.Linear(48, 2)).eval()
    tokens = torch.randint(0, 20, (4, 6))
    snn = parspike.convert(model, tokens, T=512)
    torch.testing.assert_close(snn(tokens), model(tokens), atol=0.01, rtol=0)
    model = nn.Sequential(
        nn.Conv1d(1, 4, 9, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(3), nn.Conv1d(4, 2, 3)
    ).eval()
    wave = torch.randn(3, 1, 100)
    torch.testing.assert_close(parspike.convert(model, wave, T=512)(wave), model(wave), atol=0.01, rtol=0)


# ------------------------------------------------------------------------------- random networks made of the rows

Layer = Callable[[Tensor], Tensor]
LAYERS: dict[str, Layer] = {
    "relu": torch.relu, "silu": F.silu, "tanh": torch.tanh, "leaky": F.leaky_relu, "relu6": F.relu6,
    "max": lambda x: F.max_pool2d(x, 3, 1, 1), "mean": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "roll": lambda x: x.roll(1, 3), "swap": lambda x: x.transpose(2, 3),
    "halves": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "scale": lambda x: x * weight(4, 1, 1).to(x), "norm": lambda x: F.layer_norm(x, x.shape[2:]),
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), "softmax": lambda x: x.softmax(1),
    "shuffle": lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2),
    "upper": lambda x: x.amax(3, keepdim=True) + x,
}  # fmt: skip


class Random(nn.Module):
    """Layers of the table in any order, a convolution before each, a skip around some."""

    def __init__(self, names: list[str], skips: list[bool], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.names, self.skips = names, skips
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in names)
        self.stem, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(144, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for name, skip, conv in zip(self.names, self.skips, self.convs, strict=True):
            y = LAYERS[name](conv(x))
            x = x + y if skip else y
        return self.head(x.flatten(1))


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@torch.no_grad()
def test_random_networks(data):
    """Would catch operators that are right alone and wrong behind one another."""
    names = data.draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4))
    skips = data.draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    model = Random(names, skips, data.draw(st.integers(0, 99))).eval().double()
    plan = parspike.plan(model, X)
    wanted = model(X)
    torch.testing.assert_close(plan.graph.run(X), wanted, rtol=1e-6, atol=1e-9)
    fine = parspike.convert(plan, X, T=4096, recipe="max")
    # Softmax and norms of nearly equal values amplify; four layers of them stay below this.
    assert float((fine(X) - wanted).norm() / wanted.norm()) < 0.05
    snn = parspike.convert(plan, X, T=3, recipe="max")
    count = snn.run(X, record=True)
    for engine in ("parallel", "serial"):
        run = snn.run(X, engine=engine, record=True)
        for layer, counts in count.counts.items():
            assert float((counts != run.counts[layer]).double().mean()) < 1e-3
        torch.testing.assert_close(run.logits, count.logits, rtol=1e-6, atol=1e-6)


ALIASES: dict[str, tuple[Callable[[Tensor], Tensor], Role]] = {
    "mT": (lambda x: x.mT, Role.SYNAPSE),
    "swapdims": (lambda x: x.swapdims(1, 2), Role.SYNAPSE),
    "moveaxis": (lambda x: x.moveaxis(1, 2), Role.SYNAPSE),
    "hstack": (lambda x: torch.hstack([x, x * 2]), Role.SYNAPSE),
    "concat": (lambda x: torch.concat([x, x * 2], 1), Role.SYNAPSE),
    "multiply": (lambda x: torch.multiply(x, 2), Role.SYNAPSE),
    "subtract": (lambda x: torch.subtract(1, x), Role.SYNAPSE),
    "rot90": (lambda x: torch.rot90(x, 1, (2, 3)), Role.SYNAPSE),
    "index_add": (lambda x: x.index_add(1, PLACES, x[:, :2]), Role.SYNAPSE),
    "nansum": (lambda x: x.nansum(1), Role.ANALOG),
    "alpha_dropout": (lambda x: F.alpha_dropout(x, 0.5, False), Role.SYNAPSE),
    "clip": (lambda x: (x - 0.5).clip(0, 0.3), Role.NEURON),
    "special.expit": (torch.special.expit, Role.NEURON),
    "rrelu": (lambda x: F.rrelu(x - 0.5), Role.NEURON),
    "max of two": (lambda x: torch.max(x, x.flip(2)), Role.ORDER),
    "max_pool2d, with places": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], Role.ORDER),
    "special.softmax": (lambda x: torch.special.softmax(x, 1), Role.ANALOG),
    "einsum of a value with itself": (lambda x: torch.einsum("bchw,bdhw->bcd", x, x), Role.ANALOG),
    "to whole numbers": (lambda x: (3 * x).int().float(), Role.ANALOG),
    "spectrogram": (lambda x: torch.stft(x.flatten(1), 16, window=HANN, return_complex=True).abs(), Role.ANALOG),
    "what falls at its threshold": (lambda x: F.threshold(F.avg_pool2d(x, 2), 0.1, 0.2), Role.ANALOG),
}
HANN = torch.hann_window(16)


@pytest.mark.parametrize("name", ALIASES)
def test_other_names_for_operators_of_the_table(name):
    function, role = ALIASES[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), Then(function), nn.LazyLinear(3), nn.ReLU())
    x = torch.randn(8, 2, 6, 6)
    model.eval()(x)
    plan = parspike.plan(model, x)
    # The first two neurons of the five modules are their ReLUs; what is between them is the function.
    roles = {node.role for node in plan.graph.nodes if node.layer.startswith("2")} or {Role.SYNAPSE}
    assert role in roles if role is not Role.ORDER else Role.ORDER in {node.role for node in plan.graph.nodes}
    assert role is not Role.SYNAPSE or roles == {Role.SYNAPSE}
    snn = parspike.convert(plan, [x], T=1024, recipe="max")
    with torch.no_grad():
        assert float((snn(x) - (wanted := model(x))).norm() / wanted.norm()) < 0.01
        assert torch.allclose(snn.run(x, engine="serial").logits, snn(x), atol=1e-3, rtol=1e-2)


class Then(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x + torch.rand_like(x), ["random numbers", "make them an input"]),
        (lambda x: F.dropout(x, 0.5, True), ["random numbers"]),
        (lambda x: x * torch.rand(6, generator=torch.Generator()), ["Generator", "only tensors"]),
        (lambda x: x[:, torch.tensor([True, False, True, False])], ["depends on values", "test_operators.py"]),
    ],
)
def test_operators_that_no_graph_can_hold(function, words):
    with pytest.raises((parspike.errors.UnsupportedError, parspike.errors.TraceError)) as found:
        parspike.plan(
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), Then(function)).eval(), torch.randn(2, 2, 8, 8)
        ).check()
    assert all(word in str(found.value) for word in words)


@pytest.mark.parametrize("learnt", [True, False])
def test_bags_of_tokens(learnt, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    model.requires_grad_(learnt)
    tokens = torch.randint(0, 20, (6, 5))
    plan = parspike.plan(model, tokens)
    assert BAGS & {node.target for node in plan.graph.nodes}
    snn = parspike.convert(plan, [tokens], T=1024, recipe="max")
    with torch.no_grad():
        assert torch.allclose(snn(tokens), model(tokens), atol=0.01)
        again = parspike.load(snn.save(tmp_path / "bags.parspike"))
        assert torch.equal(again(tokens[:4, :3]), snn(tokens[:4, :3]))


def test_bags_of_one_token_of_a_table(tmp_path):
    """Catches a bag's kernel that reads a column of a table as if it lay in memory in one piece (DLRM)."""
    torch.manual_seed(0)
    bags = nn.ModuleList(nn.EmbeddingBag(20, 4, mode="sum") for _ in range(3))
    model = Columns(bags, nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))).eval()
    tokens = torch.randint(0, 20, (6, 3))
    snn = parspike.convert(model, [tokens], T=1024, recipe="max")
    with torch.no_grad():
        assert torch.allclose(snn(tokens), model(tokens), atol=0.01)
        assert torch.allclose(snn.run(tokens, engine="serial").logits, snn(tokens), atol=1e-5)


class Columns(nn.Module):
    def __init__(self, bags: nn.ModuleList, head: nn.Module) -> None:
        super().__init__()
        self.bags, self.head = bags, head

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.cat([bag(tokens[:, i : i + 1]) for i, bag in enumerate(self.bags)], 1))


class Causal(nn.Module):
    """One head of attention with a causal mask of −∞ in a buffer, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out((q @ k.mT / 8**0.5 + self.mask).softmax(-1) @ v)
        return x + self.down(self.up(x).relu())


def test_a_mask_may_be_infinite(tmp_path):
    model, x = Causal().eval().double(), torch.randn(4, 5, 8, dtype=torch.float64)
    snn = parspike.convert(model, x, T=1024, recipe="max")
    with torch.no_grad():
        wanted = model(x)
        assert float((snn(x) - wanted).norm() / wanted.norm()) < 0.001
        assert torch.allclose(snn.run(x, engine="serial").logits, snn(x))
        again = parspike.load(snn.save(tmp_path / "causal.parspike"))
        assert torch.equal(again(x), snn(x))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
        return self.head(self.attention(x, x, x, attn_mask=mask)[0])


@pytest.mark.parametrize("encode", ["none", "all"])
def test_the_attention_of_torch_adds_its_mask_to_a_product(encode):
    """Catches "holds NaN or Inf" for the first argument of baddbmm, which nothing multiplies by."""
    model, x = Attending().eval().double(), torch.randn(4, 5, 8, dtype=torch.float64)
    snn = parspike.convert(model, x, T=1024, recipe="max", encode=encode)
    with torch.no_grad():
        wanted = model(x)
        assert float((snn(x) - wanted).norm() / wanted.norm()) < 0.005
        assert torch.allclose(snn.run(x, engine="serial").logits, snn(x), atol=1e-4)


class Bounds(nn.Module):
    """A clamp whose bounds are buffers between two linear layers."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().clamp(self.low, self.high))


@pytest.mark.parametrize(
    ("low", "high", "clamped"),
    [
        (-math.inf, math.inf, None), (0.1, 0.6, Role.NEURON), (-math.inf, 0.6, Role.NEURON),
        ([0.1] * 16, [0.6] * 16, Role.ANALOG),
    ],
)  # fmt: skip
def test_clamps_by_tensors(low, high, clamped):
    model = Bounds(torch.tensor(low), torch.tensor(high)).eval().double()
    x = torch.randn(64, 8, dtype=torch.float64)
    plan = parspike.plan(model, x)
    assert {row["role"] for row in plan.to_dict()["rows"] if row["operator"].startswith("clamp")} == (
        {clamped} if clamped else set()
    )
    with torch.no_grad():
        wanted = model(x)
        assert float((parspike.convert(plan, [x], T=1024, recipe="max")(x) - wanted).norm() / wanted.norm()) < 0.002


def test_the_page_is_the_table():
    from parspike.graph.page import page

    assert (Path(__file__).parents[1] / "docs" / "operators.md").read_text() == page()


def test_a_network_that_cannot_be_traced_says_what_it_runs():
    def branching(x: Tensor) -> Tensor:
        x = F.gelu(x.relu())
        return x * 2 if x.mean() > 0 else x

    with pytest.raises(parspike.errors.TraceError, match=r"It runs: .*relu \(neuron\).*") as error:
        plan_of(branching)
    assert "branches on the values" in str(error.value)
    assert "gelu (neuron)" in str(error.value)
