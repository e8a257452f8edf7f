"""The op table: what each operator is for a spiking network. The only place that knows ATen's names.

A new operator is one row. A new activation is one row with a function that describes it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike import neurons
from parspike.neurons.pieces import compiled_for_cpu, in_pieces, runs_here

if TYPE_CHECKING:
    from parspike.graph.ir import Node

__all__ = [
    "CASTS",
    "ENCODE",
    "FRESH",
    "HOLD",
    "SHARES",
    "SUMS",
    "TABLE",
    "TIMES",
    "WEIGHTS",
    "Activation",
    "Clip",
    "Curve",
    "Op",
    "Quantised",
    "Role",
    "call",
    "call_over",
    "target_of",
]


class Role(StrEnum):
    """What an operator is for a spiking network."""

    SYNAPSE = "synapse"
    """Affine in its input, so it acts on spikes as it does on their average."""
    NEURON = "neuron"
    """A monotone elementwise activation: becomes a spiking neuron."""
    ORDER = "order"
    """Picks the largest: exact on nested spike trains, else computed on the time-means."""
    ANALOG = "analog"
    """No operation on spikes: computed on the means over time, and listed in the plan."""
    UNKNOWN = "unknown"
    """Not in the table: refused."""


@dataclass(frozen=True)
class Clip:
    """The activation clip(z, low, high); high may be infinite (ReLU)."""

    low: float
    high: float


@dataclass(frozen=True)
class Quantised:
    """The activation QCFS, equation (5), with its number of levels and the path of its threshold."""

    levels: int
    v_threshold: str


@dataclass(frozen=True)
class Curve:
    """Any other activation that never falls; its operator computes it.

    zero: whether its smallest output is 0, and has to be 0 to the bit in neurons too (the weight of what a mask hides).
    above: given where an error counts as a share of the output plus this number: for 1/b, since what it scales, a,
    grows with b, so that a/b is as large for large b as for small.
    """

    zero: bool = False
    above: float | None = None


Activation = Clip | Quantised | Curve


@dataclass(frozen=True)
class Op:
    """One row of the table.

    varying: positions of the arguments that may depend on the input (None: any). product: affine only while a single
    argument depends on the input. weighted: costly enough that its operations are counted and its result is kept for
    several readers. weighs: it has weights, or adds up weighted values, in another way than as a synapse whose cost is
    counted. activation: what a neuron's node computes, or why it cannot be one. turn: of an activation that falls, then
    rises, from its keyword arguments: where it turns, and its value there. inverse: of a user's activation, where they
    gave one. reason: why it is analog. sources: elements of the input that an element of an unweighted synapse's output
    is made of: "one", times a factor; "sum" of as many for every output, equally weighted; "window", other factors
    along each spatial dimension, alike for all channels; "many", anything else. macs: multiply-accumulates of an analog
    operator that is no product, from its arguments and output (None: one for every element of its largest tensor).
    out: of an elementwise operator, the same with its result written into `out=`, which may be one of its arguments.
    """

    role: Role
    run: Callable[..., Any]
    varying: tuple[int, ...] | None = None
    product: bool = False
    weighted: bool = False
    weighs: bool = False
    activation: Callable[[Node], Activation | str] | None = None
    turn: Callable[[dict[str, Any]], tuple[float, float]] | None = None
    inverse: Callable[[Tensor], Tensor] | None = None
    reason: str = ""
    sources: Literal["one", "sum", "window", "many"] = "one"
    macs: Callable[[Sequence[Any], Any], int] | None = None
    out: Callable[..., Tensor] | None = None


def _aten(name: str) -> Callable[..., Any]:
    packet, overload = name.removeprefix("aten.").split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Per-channel scale·x + shift along dimension 1: a batch norm in evaluation."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    return x * scale.reshape(shape) + shift.reshape(shape)


def batch_norm(x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """A batch norm in evaluation, by the network's own kernel; `rewrite` turns it into a `scale_shift`."""
    return torch.nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


ENCODE, HOLD = "parspike.encode", "parspike.hold"
MASKED, WEIGHTS, SHARES = "parspike.masked", "parspike.softmax_weights", "parspike.softmax_shares"
TIMES, LARGEST, FLOOR = "parspike.times", "parspike.largest", "parspike.at_least"
SIZE, ROTATE = "parspike.size", "parspike.rotate"
EXP, RECIPROCAL, RSQRT, ROOT = "parspike.exp", "parspike.reciprocal", "parspike.rsqrt", "parspike.root"
LOWEST = -50.0
"""exp of it is 2e-22 of the largest weight of a softmax: below it a weight is 0."""
NOTHING = 2 * math.exp(LOWEST)
"""Weights up to here are 0."""


def encode(x: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """The identity. It marks the place where a neuron turns a value into spikes, or where its mean is held. low: what
    the value is known to be at least. high: where the neuron's range ends: min(max(x, low), high)."""
    return x if math.isinf(high) else x.clamp(low, high)


def times(spikes: Tensor, held: Tensor) -> Tensor:
    """A product of two values, element by element."""
    return spikes * held


def largest(x: Tensor, dim: int) -> Tensor:
    """max x along a dimension, which stays, of size 1; 0 where all of it is −∞."""
    most = x.amax(dim, keepdim=True)
    return torch.where(torch.isneginf(most), 0.0, most)


def at_least(x: Tensor, low: float) -> Tensor:
    """max(x, low)."""
    return x.clamp(min=low)


def size(x: Tensor, dim: int) -> Tensor:
    """max |x| along a dimension, which stays, of size 1; at least the smallest number whose reciprocal is finite."""
    return x.abs().amax(dim, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny * 4)


def rotate(x: Tensor) -> Tensor:
    """Each row along the last dimension, in pieces of n values, times the symmetric Hadamard matrix / √n, n the largest
    power of two that divides the row's length. Twice is the identity.

    The matrix's entries are 1 and −1, and it is made of sums and differences of two values, of two of these, and so on
    (Sylvester 1867): log2 n additions for each value.
    """
    size = x.shape[-1] & -x.shape[-1]
    if compiled_for_cpu(x):
        # A compiler that fuses the pieces' reshapes into loops finds each place by two divisions, and vectorises none.
        # The factor it does fuse.
        return _rotate_node(x) * size**-0.5
    return (_rotated(x.reshape(-1, size)) * size**-0.5).reshape(x.shape)


@torch.library.custom_op("parspike::rotate", mutates_args=())
def _rotate_node(x: Tensor) -> Tensor:
    return _rotated(x.reshape(-1, x.shape[-1] & -x.shape[-1])).reshape(x.shape)


@_rotate_node.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_rotate_node.register_autograd(lambda ctx, grad: _rotate_node(grad))  # the matrix is symmetric


def _rotated(rows: Tensor) -> Tensor:
    """Rows (N, n) times the Hadamard matrix, that of n = a · b as the one of a along a dimension, that of b along
    another."""
    size = rows.shape[1]
    most = min(size, 32)
    matrix = rows.new_ones(1, 1)
    while len(matrix) < most:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    if size == most:
        return rows @ matrix
    return (matrix @ _rotated(rows.reshape(-1, size // most)).view(-1, most, size // most)).view(-1, size)


def exponential(x: Tensor, low: float = -math.inf, least: float = 0.0, most: float = math.inf) -> Tensor:
    """exp x; 0 where x is at most `low`. least, most: only its increase from the one to the other."""
    made = torch.exp(x) if math.isinf(low) else torch.where(x > low, torch.exp(x), 0.0)
    return _increase(made, least, most)


def reciprocal(negative: Tensor, least: float, low: float = 0.0, high: float = math.inf) -> Tensor:
    """1/b of −b, b at least `least`: it never falls. low, high: only its increase from the one to the other."""
    return _increase((-negative).clamp(min=least).reciprocal(), low, high)


def _increase(x: Tensor, low: float, high: float) -> Tensor:
    """Of a value of at least 0, what of it lies between the two."""
    return x if low == 0 and math.isinf(high) else x.clamp(low, high) - low


def _inverse(node: Node) -> Activation:
    low = node.args[2] if len(node.args) > 2 else 0.0
    return Curve(zero=low > 0, above=low)


def reciprocal_root(negative: Tensor, least: float, plus: float = 0.0) -> Tensor:
    """1/(√b + plus) of −b, b at least `least`: it never falls."""
    b = (-negative).clamp(min=least)
    return (b.sqrt() + plus).reciprocal() if plus else b.rsqrt()


def root(x: Tensor) -> Tensor:
    """√x; 0 where rounding made x negative."""
    return x.clamp(min=0).sqrt()


def masked(scores: Tensor, mask: Tensor) -> Tensor:
    """The scores of an attention with its mask: −∞ where a mask of true and false is false; one of numbers is added."""
    if mask.dtype != torch.bool:
        return scores + mask
    if compiled_for_cpu(scores):
        # Else the compiler puts what makes the mask into the loops over every head, twice, in 64-bit integers.
        mask = torch.ops.parspike.written(mask.to(scores.dtype)) > 0
    return torch.where(mask, scores, -math.inf)


_written = torch.library.Library("parspike", "FRAGMENT")
_written.define("written(Tensor value) -> Tensor")
_written.impl("written", lambda value: value.clone(memory_format=torch.contiguous_format), "CPU")
torch.library.register_fake(
    "parspike::written",
    lambda value: torch.empty_like(value, memory_format=torch.contiguous_format),
    lib=_written,
)


def _masked_into(scores: Tensor, mask: Tensor, *, out: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return torch.add(scores, mask, out=out)
    (out if out is scores else out.copy_(scores)).masked_fill_(mask.logical_not(), -math.inf)
    return out


def softmax_weights(x: Tensor, dim: int) -> Tensor:
    """exp(x − max x) along a dimension; 0 where all of it is −∞, as fused attention has it, and where the difference
    is below `LOWEST`."""
    # The CPU's exp takes ten times as long at −∞, and forty where its result has lost digits to underflow.
    return F.threshold(torch.exp((x - largest(x, dim)).clamp(min=LOWEST)), NOTHING, 0.0)


def _softmax_weights_into(x: Tensor, dim: int, *, out: Tensor) -> Tensor:
    def fill(out: Tensor, x: Tensor) -> None:
        torch.sub(x, largest(x, dim), out=out).clamp_(min=LOWEST).exp_()
        F.threshold(out, NOTHING, 0.0, inplace=True)

    if out is x and dim % x.dim() == x.dim() - 1:
        return in_pieces(fill, x, x.dtype, over=True, rows=1)
    fill(out, x)
    return out


def softmax_shares(weighed: Tensor, total: Tensor) -> Tensor:
    """A sum of weighted values divided by the sum of the weights; 0 where that is 0."""
    return weighed / torch.where(total == 0, 1.0, total)


def _number(value: Any, default: float) -> float:
    return default if value is None else float(value)


def _clamp(node: Node) -> Activation | str:
    low, high = [*node.args[1:], None, None][:2]
    low, high = _number(low, -math.inf), _number(high, math.inf)
    if high <= low:
        return "the clamp's bounds leave no room between them"
    return Clip(low, high) if math.isfinite(low) else Curve()


def _hardtanh(node: Node) -> Activation | str:
    low, high = (*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :])
    return Clip(float(low), float(high)) if high > low else "the bounds leave no room between them"


def _elu(node: Node) -> Activation | str:
    alpha, scale, steeper = (*node.args[1:], *(1.0, 1.0, 1.0)[len(node.args) - 1 :])
    return Curve() if alpha * steeper >= 0 and scale >= 0 else "it falls where its alpha or scale is below 0"


def _qcfs(node: Node) -> Activation | str:
    _, threshold, levels = node.args
    path = getattr(threshold, "path", None)
    return "its threshold is not a tensor of the network" if path is None else Quantised(levels, path)


def _threshold(node: Node) -> Activation | str:
    limit, value = node.args[1:3]
    return Curve() if value <= limit else "it falls at its threshold, so it is not monotone"


def _gelu_turn(options: dict[str, Any]) -> tuple[float, float]:
    if options.get("approximate", "none") == "tanh":
        return -0.7524614220710163, -0.17004075057125405
    return -0.7517915246935645, -0.16997120747990366


def rising(x: Tensor, name: str, at: float, lowest: float, *rest: Any, **options: Any) -> Tensor:
    """The part of an activation right of where it turns: 0 up to there, then its increase from there."""
    return TABLE[name].run(x.clamp(min=at), *rest, **options) - lowest


def falling(x: Tensor, name: str, at: float, lowest: float, *rest: Any, **options: Any) -> Tensor:
    """The part of an activation left of where it turns, mirrored so that it rises: f(x) = lowest + rising(x) +
    falling(−x)."""
    return TABLE[name].run((-x).clamp(max=at), *rest, **options) - lowest


def _part(node: Node) -> Activation | str:
    name, rest = node.args[1], node.args[4:]
    row = TABLE.get(name) if isinstance(name, str) else None
    if row is None or row.role is not Role.NEURON:
        return "its activation is not in the table"
    answer = None if row.activation is None else row.activation(replace(node, args=(node.args[0], *rest)))
    return answer if isinstance(answer, str) else Curve()


TABLE: dict[str, Op] = {}


def _rows(role: Role, names: str, **options: Any) -> None:
    for name in names.split():
        TABLE[f"aten.{name}"] = Op(role, _aten(f"aten.{name}"), **options)


# Synapses: weighted sums with constant weights.
_rows(Role.SYNAPSE, "conv1d.default conv2d.default conv3d.default conv2d.padding conv1d.padding conv3d.padding "
      "conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input linear.default",
      varying=(0,), weighted=True)  # fmt: skip
_rows(Role.SYNAPSE, "matmul.default mm.default bmm.default einsum.default addmm.default addmv.default "
      "baddbmm.default", product=True, weighted=True)  # fmt: skip
CASTS = ("aten._to_copy.default", "aten.to.dtype")
"""Casts to another type. The first is the one that lowering writes, and exports know."""
SUMS = ("aten.addmm.default", "aten.addmv.default", "aten.baddbmm.default")
"""Products to which the first argument is added, such as a mask of −∞ by nn.MultiheadAttention."""
_rows(Role.SYNAPSE, "mul.Tensor mul.Scalar addcmul.default", product=True)
_rows(Role.SYNAPSE, "div.Tensor div.Scalar", varying=(0,))
_rows(Role.SYNAPSE, "add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar rsub.Tensor neg.default cat.default "
      "stack.default lerp.Scalar")  # fmt: skip
_rows(Role.SYNAPSE, "cumsum.default diff.default", sources="many")
_rows(Role.SYNAPSE, "mean.dim sum.dim_IntList", varying=(0,), sources="sum")
_rows(Role.SYNAPSE, "avg_pool1d.default avg_pool2d.default avg_pool3d.default adaptive_avg_pool1d.default "
      "adaptive_avg_pool2d.default adaptive_avg_pool3d.default "
      "upsample_nearest1d.default upsample_nearest1d.vec upsample_nearest2d.default upsample_nearest2d.vec "
      "upsample_nearest3d.default upsample_nearest3d.vec _upsample_nearest_exact2d.default "
      "_upsample_nearest_exact2d.vec upsample_linear1d.default upsample_linear1d.vec upsample_bilinear2d.default "
      "upsample_bilinear2d.vec _upsample_bilinear2d_aa.default _upsample_bilinear2d_aa.vec "
      "upsample_trilinear3d.default upsample_trilinear3d.vec upsample_bicubic2d.default upsample_bicubic2d.vec "
      "_upsample_bicubic2d_aa.default _upsample_bicubic2d_aa.vec", varying=(0,), sources="window")  # fmt: skip
_rows(Role.SYNAPSE, "grid_sampler.default grid_sampler_2d.default col2im.default", varying=(0,), sources="many")
_rows(Role.SYNAPSE, "im2col.default pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default "
      "reshape.default "
      "permute.default transpose.int t.default movedim.int movedim.intlist swapaxes.default "
      "squeeze.dim squeeze.dims squeeze.default unsqueeze.default "
      "expand.default expand_as.default broadcast_to.default slice.Tensor select.int split.Tensor split.sizes "
      "split_with_sizes.default chunk.default tensor_split.sections unsafe_split.Tensor unsafe_chunk.default "
      "unbind.int narrow.default index_select.default gather.default roll.default flip.default "
      "repeat.default tile.default repeat_interleave.self_int constant_pad_nd.default pad.default "
      "reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default replication_pad1d.default "
      "replication_pad2d.default replication_pad3d.default unfold.default tril.default triu.default diagonal.default "
      "_to_copy.default to.dtype "
      "type_as.default index.Tensor masked_fill.Scalar slice_scatter.default "
      "select_scatter.default index_put.default copy.default ",
      varying=(0,))  # fmt: skip
TABLE["aten.slice_scatter.default"] = replace(TABLE["aten.slice_scatter.default"], varying=(0, 1))
TABLE["aten.select_scatter.default"] = replace(TABLE["aten.select_scatter.default"], varying=(0, 1))
TABLE["aten.copy.default"] = replace(TABLE["aten.copy.default"], varying=(0, 1))
TABLE["aten.index_put.default"] = replace(TABLE["aten.index_put.default"], varying=(0, 2), sources="many")
_rows(Role.SYNAPSE, "where.self where.ScalarOther where.ScalarSelf", varying=(1, 2))
# Looked up by tokens: a constant current.
_rows(Role.SYNAPSE, "embedding.default _embedding_bag.default _embedding_bag_forward_only.default",
      varying=(1, 2), sources="many", weighs=True)  # fmt: skip


def _bag(name: str) -> Callable[..., Any]:
    """Its kernel reads tokens one behind the other in memory, where a column of a table does not lie."""

    def run(table: Tensor, tokens: Tensor, *rest: Any) -> Any:
        return _aten(name)(table, tokens.contiguous(), *rest)

    return run


for _name in ("aten._embedding_bag.default", "aten._embedding_bag_forward_only.default"):
    TABLE[_name] = replace(TABLE[_name], run=_bag(_name))
_rows(Role.SYNAPSE, "zeros.default ones.default full.default arange.default arange.start arange.start_step",
      varying=())  # fmt: skip

# Neurons: activations. A row with `turn` falls, then rises: rewriting makes two monotone ones of it.
_rows(Role.NEURON, "relu.default", activation=lambda node: Clip(0.0, math.inf))
_rows(Role.NEURON, "relu6.default", activation=lambda node: Clip(0.0, 6.0))
_rows(Role.NEURON, "clamp.default clamp_min.default", varying=(0,), activation=_clamp)
_rows(Role.NEURON, "hardtanh.default", varying=(0,), activation=_hardtanh)
_rows(Role.NEURON, "elu.default", varying=(0,), activation=_elu)
_rows(Role.NEURON, "clamp_max.default celu.default selu.default hardsigmoid.default "
      "atan.default asinh.default erf.default expm1.default sinh.default "
      "sigmoid.default tanh.default softplus.default log_sigmoid.default softshrink.default hardshrink.default",
      varying=(0,), activation=lambda node: Curve())  # fmt: skip
_rows(Role.NEURON, "threshold.default", varying=(0,), activation=_threshold)
# Rewriting splits a leaky ReLU whose slope is negative, and makes two ReLUs of a PReLU.
_rows(Role.NEURON, "leaky_relu.default", varying=(0,), activation=lambda node: Curve())
_rows(Role.NEURON, "prelu.default", varying=(0,))
_rows(Role.NEURON, "abs.default", turn=lambda options: (0.0, 0.0))
_rows(Role.NEURON, "silu.default", turn=lambda options: (-1.2784645427610738, -0.27846454276107379))
_rows(Role.NEURON, "mish.default", turn=lambda options: (-1.19243121451549521, -0.30884341301725041))
_rows(Role.NEURON, "hardswish.default", turn=lambda options: (-1.5, -0.375))
_rows(Role.NEURON, "gelu.default", turn=_gelu_turn)

# Order: maxima.
_rows(Role.ORDER, "max_pool1d.default max_pool2d.default max_pool3d.default amax.default amin.default maximum.default "
      "minimum.default fmax.default fmin.default")  # fmt: skip

# Analog: computed on the time-means, and named.
COMPLEX = "complex numbers are no currents"
FUNCTIONS = "a function that is not piecewise monotone in the table"
_analog = {
    "a softmax weighs its values against each other": "softmax.int _softmax.default",
    "the logarithm of a softmax": "log_softmax.int _log_softmax.default logsumexp.default",
    "a normalisation divides by a deviation that depends on the input":
        "layer_norm.default native_layer_norm.default group_norm.default native_group_norm.default "
        "instance_norm.default rms_norm.default _fused_rms_norm.default var.correction std.correction "
        "var_mean.correction var.dim std.dim linalg_vector_norm.default norm.ScalarOpt_dim "
        "cosine_similarity.default",
    "attention multiplies values that all depend on the input":
        "scaled_dot_product_attention.default _scaled_dot_product_flash_attention_for_cpu.default",
    "a product of two values that both depend on the input":
        "glu.default cumprod.default prod.dim_int bilinear.default cdist.default square.default",
    FUNCTIONS:
        "exp.default exp2.default log.default log2.default log1p.default sqrt.default rsqrt.default "
        "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar reciprocal.default sin.default cos.default "
        "trunc.default round.decimals signbit.default copysign.Tensor "
        "log10.default hypot.default atan2.default logcumsumexp.default cosh.default tan.default acosh.default "
        "atanh.default asin.default acos.default erfc.default erfinv.default lgamma.default digamma.default i0.default "
        "round.default floor.default ceil.default sign.default remainder.Scalar remainder.Tensor "
        "fmod.Scalar div.Tensor_mode div.Scalar_mode floor_divide.default",
    "a decomposition of matrices":
        "linalg_inv.default linalg_inv_ex.default linalg_det.default linalg_slogdet.default linalg_svdvals.default "
        "linalg_svd.default linalg_qr.default linalg_eigh.default linalg_cholesky.default linalg_solve.default "
        "matrix_power.default matrix_exp.default",
    "a Fourier transform":
        "_fft_r2c.default _fft_c2c.default _fft_c2r.default",
    COMPLEX:
        "view_as_real.default view_as_complex.default complex.default polar.default angle.default _conj.default",
    "a clamp by tensors":
        "clamp.Tensor clamp_min.Tensor clamp_max.Tensor",
    "sorting and choosing":
        "argmax.default argmin.default topk.default sort.default argsort.default max.dim min.dim median.dim "
        "cummax.default cummin.default mode.default kthvalue.default max_pool2d_with_indices.default "
        "max_pool3d_with_indices.default max_unpool2d.default max_unpool3d.default scatter_reduce.two "
        "scatter.src scatter.value scatter_add.default "
        "one_hot.default bucketize.Tensor searchsorted.Tensor",
    "a comparison":
        "eq.Scalar eq.Tensor ne.Scalar ne.Tensor lt.Scalar lt.Tensor le.Scalar le.Tensor gt.Scalar gt.Tensor "
        "ge.Scalar ge.Tensor logical_not.default logical_and.default logical_or.default bitwise_not.default "
        "bitwise_and.Tensor bitwise_or.Tensor bitwise_and.Scalar isnan.default any.dim all.dim "
        "masked_fill.Tensor any.dims isinf.default __and__.Tensor __or__.Tensor __xor__.Tensor logical_xor.default "
        "bitwise_xor.Tensor bitwise_or.Scalar ",
}  # fmt: skip
for _reason, _names in _analog.items():
    _rows(Role.ANALOG, _names, reason=_reason)

for _name in ("bilinear", "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"):
    TABLE[f"aten.{_name}.default"] = replace(TABLE[f"aten.{_name}.default"], weighs=True)
TABLE["aten._conj.default"] = replace(TABLE["aten._conj.default"], run=torch.conj_physical)  # a copy
# These two have no gradient, which gradient steps of a calibration need.
TABLE["aten.copy.default"] = replace(
    TABLE["aten.copy.default"], run=lambda x, source, non_blocking=False: source.to(x).expand_as(x)
)
TABLE["aten.floor_divide.default"] = replace(
    TABLE["aten.floor_divide.default"], run=lambda x, y: torch.div(x, y, rounding_mode="floor")
)

for _names, _macs in {
    "softmax.int _softmax.default log_softmax.int _log_softmax.default layer_norm.default native_layer_norm.default "
    "group_norm.default native_group_norm.default instance_norm.default rms_norm.default _fused_rms_norm.default":
        lambda args, output: 2 * args[0].numel(),  # one in the sum over the others, one in the scaling
    "scaled_dot_product_attention.default _scaled_dot_product_flash_attention_for_cpu.default":
        lambda args, output: args[0][..., 0].numel() * args[1].shape[-2] * (args[1].shape[-1] + 2 + args[2].shape[-1]),
    "bilinear.default": lambda args, output: output.numel() * args[2][0].numel(),
    "cdist.default": lambda args, output: output.numel() * args[0].shape[-1],
}.items():  # fmt: skip
    for _name in _names.split():
        TABLE[f"aten.{_name}"] = replace(TABLE[f"aten.{_name}"], macs=_macs)

for _dims in "123":  # their second output, the places, is dropped in tracing
    _both = _aten(f"aten.adaptive_max_pool{_dims}d.default")
    TABLE[f"aten.adaptive_max_pool{_dims}d.default"] = Op(Role.ORDER, lambda *args, both=_both: both(*args)[0])
    TABLE[f"aten.adaptive_max_pool{_dims}d.places"] = Op(Role.ANALOG, _both, reason="sorting and choosing")


def _fake_quantise(name: str) -> Callable[..., Any]:
    def run(x: Tensor, scale: Any, zero: Any, *rest: Any) -> Tensor:
        if x.dtype == torch.float64:  # torch's own rounds the inverse of the scale to float32
            axis, least, most = rest if "per_channel" in name else (0, *rest[:2])
            shape = [-1] + [1] * (x.dim() - 1 - axis % x.dim()) if "per_channel" in name else []
            scale, zero = (torch.as_tensor(t).float().double().reshape(shape) for t in (scale, zero))
            return ((torch.round(x / scale) + zero).clamp(least, most) - zero) * scale
        # It wants the scale in float32, also where the network and its tensors were cast to another type.
        scale = scale.float() if isinstance(scale, Tensor) else scale
        zero = zero.to(torch.float32 if "learnable" in name else torch.int32) if isinstance(zero, Tensor) else zero
        return _aten(name)(x, scale, zero, *rest)

    return run


FAKE_QUANTISE = tuple(f"aten.{name}" for name in (
    "fake_quantize_per_tensor_affine.default", "fake_quantize_per_tensor_affine.tensor_qparams",
    "fake_quantize_per_channel_affine.default", "_fake_quantize_learnable_per_tensor_affine.default",
))  # fmt: skip
"""Rewriting makes neurons of those whose levels are evenly spaced, which is all whose scale is no input."""

# torch has no rule for the shape of what these give, and so cannot trace them where a size is free.
_shapes = torch.library.Library("aten", "IMPL")
for _name, _both in {
    "fake_quantize_per_tensor_affine_cachemask": True, "_fake_quantize_learnable_per_tensor_affine": False,
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": True,
    "fake_quantize_per_channel_affine_cachemask": True,
}.items():  # fmt: skip
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{_name}", "Meta"):
        _shapes.impl(
            _name,
            lambda x, *rest, both=_both: (torch.empty_like(x), torch.empty_like(x, dtype=torch.bool))
            if both else torch.empty_like(x),
            "Meta",
        )  # fmt: skip
for _name in FAKE_QUANTISE:
    TABLE[_name] = Op(Role.ANALOG, _fake_quantise(_name), varying=(0,), reason="it rounds to a few levels")

# Elementwise operators: what a function written by hand may be made of (graph/pointwise.py).
_pointwise = """
    mul.Tensor mul.Scalar div.Tensor div.Scalar add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar rsub.Tensor
    neg.default abs.default square.default pow.Tensor_Scalar reciprocal.default exp.default expm1.default log1p.default
    sqrt.default rsqrt.default sin.default cos.default erf.default atan.default asinh.default sigmoid.default
    tanh.default softplus.default log_sigmoid.default relu.default relu6.default clamp.default clamp_min.default
    clamp_max.default hardtanh.default hardsigmoid.default elu.default celu.default selu.default leaky_relu.default
    silu.default mish.default gelu.default hardswish.default threshold.default gt.Scalar ge.Scalar lt.Scalar le.Scalar
    where.self where.ScalarOther where.ScalarSelf maximum.default minimum.default _to_copy.default to.dtype
    type_as.default softshrink.default hardshrink.default sign.default masked_fill.Scalar zeros.default ones.default
    full.default log.default floor.default round.default ceil.default trunc.default div.Tensor_mode div.Scalar_mode
    floor_divide.default gt.Tensor ge.Tensor lt.Tensor le.Tensor clamp.Tensor clamp_min.Tensor clamp_max.Tensor
    fmax.default fmin.default masked_fill.Tensor logical_and.default logical_or.default logical_not.default
    bitwise_and.Tensor bitwise_or.Tensor __and__.Tensor __or__.Tensor remainder.Scalar pow.Scalar exp2.default
    log2.default log10.default sinh.default cosh.default erfc.default
"""
POINTWISE = frozenset(f"aten.{name}" for name in _pointwise.split()) | frozenset(FAKE_QUANTISE)

_steep = "log log2 log10 sqrt rsqrt reciprocal acos asin acosh atanh"
STEEP = frozenset(f"aten.{name}.default" for name in _steep.split())
"""Functions whose slope has no bound, such as √x at 0. An activation that keeps their argument away from such a place
is a guard and no neuron."""
_scales = """
    layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm _fused_rms_norm glu round floor
    ceil trunc softshrink hardshrink topk sort kthvalue median cummax cummin _fft_r2c _fft_c2c _fft_c2r view_as_real
    view_as_complex
"""
SCALES = frozenset([*(f"aten.{name}.default" for name in _scales.split()), "aten.max.dim", "aten.min.dim",
                    "aten.median.dim", "aten.round.decimals", "aten.scatter.src", "aten.scatter_add.default",
                    "aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default",
                    "aten.max_unpool2d.default", "aten.max_unpool3d.default", "aten.masked_fill.Tensor",
                    "aten.clamp.Tensor", "aten.clamp_min.Tensor", "aten.clamp_max.Tensor",
                    *(f"aten.adaptive_max_pool{d}d.places" for d in "123")])  # fmt: skip
"""Analog operators whose output counts as the same current still: they scale, round, choose or transform it."""

TABLE["getitem"] = Op(Role.SYNAPSE, operator.getitem, varying=(0,))
TABLE["parspike.batch_norm"] = Op(Role.SYNAPSE, batch_norm, varying=(0,))
TABLE["parspike.scale_shift"] = Op(Role.SYNAPSE, scale_shift, varying=(0,))
USER: dict[str, Op] = {}
"""Rows that `parspike.register` added, by target."""
TABLE["parspike.rising"] = Op(Role.NEURON, rising, varying=(0,), activation=_part)
TABLE["parspike.falling"] = Op(Role.NEURON, falling, varying=(0,), activation=_part)
TABLE[ENCODE] = Op(Role.NEURON, encode, varying=(0,), activation=lambda node: Clip(
    *(*node.args[1:], *(-math.inf, math.inf)[len(node.args) - 1 :])))  # fmt: skip
TABLE[HOLD] = Op(Role.ANALOG, encode, reason="its mean over time is held", macs=lambda args, output: 0)
TABLE[MASKED] = Op(Role.SYNAPSE, masked, varying=(0,))
TABLE[WEIGHTS] = Op(Role.ANALOG, softmax_weights, reason="a softmax weighs its values against each other")
TABLE[SHARES] = Op(Role.ANALOG, softmax_shares, reason="a weight or divisor that depends on the input")
TABLE[TIMES] = Op(Role.SYNAPSE, times, product=True, weighted=True)
TABLE[SIZE] = Op(Role.ANALOG, size, reason="the largest value of a row is computed")
TABLE[ROTATE] = Op(
    Role.ANALOG, rotate, reason="its values are added and subtracted before any spike",
    macs=lambda args, output: output.numel() * ((output.shape[-1] & -output.shape[-1]).bit_length() - 1),
)  # fmt: skip
TABLE[LARGEST] = Op(Role.ORDER, largest)
TABLE[FLOOR] = Op(Role.ORDER, at_least)
TABLE[EXP] = Op(Role.NEURON, exponential, varying=(0,), activation=lambda node: Curve(zero=len(node.args) > 1))
TABLE[RECIPROCAL] = Op(Role.NEURON, reciprocal, varying=(0,), activation=_inverse)
TABLE[RSQRT] = Op(Role.NEURON, reciprocal_root, varying=(0,), activation=lambda node: Curve(above=0.0))
TABLE[ROOT] = Op(Role.NEURON, root, varying=(0,), activation=lambda node: Curve())
TABLE["parspike.qcfs"] = Op(Role.NEURON, neurons.qcfs, varying=(0,), activation=_qcfs)

for _names, _out in {
    "aten.add.Tensor aten.add.Scalar": torch.add, "aten.sub.Tensor aten.sub.Scalar": torch.sub,
    f"aten.mul.Tensor aten.mul.Scalar {TIMES}": torch.mul, "aten.div.Tensor aten.div.Scalar": torch.div,
    "aten.neg.default": torch.neg, "aten.silu.default": torch.ops.aten.silu.out,
    "aten.gelu.default": torch.ops.aten.gelu.out, "aten.sigmoid.default": torch.sigmoid,
    "aten.tanh.default": torch.tanh, MASKED: _masked_into, WEIGHTS: _softmax_weights_into,
}.items():  # fmt: skip
    for _name in _names.split():
        TABLE[_name] = replace(TABLE[_name], out=_out)
_fresh = """
    conv1d.default conv2d.default conv3d.default conv2d.padding conv1d.padding conv3d.padding conv_transpose1d.default
    conv_transpose2d.input conv_transpose3d.input linear.default matmul.default mm.default bmm.default addmm.default
    baddbmm.default cat.default embedding.default max_pool2d.default layer_norm.default pow.Tensor_Scalar rsqrt.default
    exp.default mean.dim sum.dim_IntList
"""
FRESH = frozenset([*(f"aten.{name}" for name in _fresh.split()), "parspike.batch_norm", "parspike.scale_shift", SHARES,
                   SIZE, *(name for name, row in TABLE.items() if row.out is not None)])  # fmt: skip
"""Operators whose result never shares its memory with another tensor."""

ACROSS_BATCH = "it joins or splits values along the batch"
"""Why an operator cannot run on a batch that holds several time-steps; the words are part of the files."""
WHOLE = "it rounds to whole numbers, or compares"
REAL = "it makes a real number of a whole one"
COMPARED = "its values are compared, and equal counts would hide which is larger"
OF_SIZE = "a number in it is computed from the size of an input: with free_sizes=False it becomes neurons"
ON_MEANS = (ACROSS_BATCH, COMPLEX, WHOLE, REAL, COMPARED, OF_SIZE)
"""Reasons for computing on the means over time that only tracing, rewriting or lowering finds; the table of operators
does not imply them."""
BESIDE = ("@compared", "@values", "@output")
"""How the layers of nodes end that rewriting and planning put beside those of the network."""
WEIGHED_BY_SAMPLE = "its weights depend on the sample, and on no spike"
"""Why an operator is a synapse although what it multiplies by depends on the network's input."""
HELD = "it adds up, at every spike of one operand, what is held of the other: its mean"
"""Why a product of two values that spikes stand for is a synapse."""


def target_of(target: Any) -> str:
    """The name in the table of an operator of torch's."""
    if target is operator.getitem:
        return "getitem"
    name = str(target)
    if name in ("aten.view.default", "aten._unsafe_view.default"):
        return "aten.reshape.default"  # a view's strides are valid only for the memory layout that was traced
    return name.removesuffix(".default") if name.startswith("parspike.") else name


def call(target: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run the operator."""
    return TABLE[target].run(*args, **kwargs)


def call_over(target: str, args: Sequence[Any], place: int) -> Any:
    """The same for an elementwise operator, its result written over the argument at a place, whose memory nobody else
    reads: on the CPU, where new memory costs more than the operator."""
    into, out = args[place], TABLE[target].out
    plain = out is not None and runs_here(into) and not any(getattr(arg, "requires_grad", False) for arg in args)
    if out is None or not plain or any(torch.result_type(into, arg) is not into.dtype for arg in args):
        return call(target, args, {})
    return out(*args, out=into)
