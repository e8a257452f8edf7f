"""Staircases: what a neuron emits over all its steps, as a function of its mean input. Equations (5), (9).

All of them count with ``spike_count``, so that a network trained with ``QCFS`` and the spiking network
made of it round in the same place.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .arguments import check_choice, check_floating, check_positive, check_steps, like, threshold_like
from .pieces import compiled_for_cpu

if TYPE_CHECKING:  # jaxtyping is a development tool, not a dependency
    from jaxtyping import Float

Window = Literal["inner", "outer"]
WINDOWS = ("inner", "outer")
Line = tuple[Tensor, Tensor, Tensor]
"""Slope and start of the line whose floor is the count, and what one count is worth; or what makes it: θ, δ, θ + φ."""


def line_of(theta: Tensor, T: int, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """T/θ and δ T/θ + 1/2: slope and start of the line whose floor is the count."""
    # Detached, because a count is constant between its jumps: autograd has nothing to follow, and would
    # otherwise keep a copy for every step in place.
    ratio = T / theta.detach()
    return ratio, torch.full_like(ratio, 0.5) if shift is None else torch.add(shift.detach() * ratio, 0.5)


def line_at(T: int, theta: Tensor, shift: Tensor, post: Tensor) -> Line:
    """`line_of`, and post/T: what one count is worth."""
    theta, shift, post = theta.detach(), shift.detach(), post.detach()
    if compiled_for_cpu(theta):
        # Else the compiler puts the divisions of every channel into its loops, and divides at every neuron.
        return torch.ops.parspike.line(theta, T, shift, post)
    return *line_of(theta, T, shift), post / T


def lines_at(made_of: Mapping[str, tuple[int, Line]]) -> dict[str, Line]:
    """`line_at` of many layers by name, compiled for the CPU: one call for all of one T and dtype, for a call takes
    longer than what it computes."""
    groups: dict[tuple[int, torch.dtype], dict[str, list[Tensor]]] = {}
    for name, (T, own) in made_of.items():
        alike = torch.broadcast_tensors(*(one.detach() for one in own))
        groups.setdefault((T, own[0].dtype), {})[name] = list(alike)
    found: dict[str, Line] = {}
    for (T, _), group in groups.items():
        theta, shift, post = (
            torch.cat([one.reshape(-1) for one in ones]) for ones in zip(*group.values(), strict=True)
        )
        line = torch.ops.parspike.line(theta, T, shift, post)
        sizes = [own[0].numel() for own in group.values()]
        for (name, own), parts in zip(
            group.items(), zip(*(one.split(sizes) for one in line), strict=True), strict=True
        ):
            ratio, start, scale = (part.view(own[0].shape) for part in parts)
            found[name] = ratio, start, scale
    return found


@cache
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor: as a number of Python's every operator would convert it again."""
    return torch.tensor(value, dtype=dtype)


def _lines(theta: Tensor, T: int, shift: Tensor, post: Tensor) -> Line:
    """`line_at` in as few calls as it takes, for there is one a layer, whatever the layer's size."""
    if theta.dtype not in (torch.float32, torch.float64):  # others hold no large T
        return *line_of(theta, T, shift), post / T
    steps, half = _number(T, theta.dtype), _number(0.5, theta.dtype)
    ratio = theta.reciprocal().mul_(steps)  # what T / theta is
    return ratio, torch.mul(shift, ratio).add_(half), post / steps


_line = torch.library.Library("parspike", "FRAGMENT")  # less than half of what a call of a custom_op takes
_line.define("line(Tensor theta, int T, Tensor shift, Tensor post) -> (Tensor, Tensor, Tensor)")
_line.impl("line", _lines, "CPU")
torch.library.register_fake(
    "parspike::line", lambda theta, T, shift, post: (*line_of(theta, T, shift), post / T), lib=_line
)


def reached(z: Tensor, ratio: Tensor, start: Tensor, out: Tensor | None = None) -> Tensor:
    """u = start + z · ratio, unrounded, of a line of `line_of`; the only new tensor of z's size, and the caller's to
    overwrite."""
    if z.device.type == "cpu" and z.dtype in (torch.float32, torch.float64):
        # The CPU's addcmul is not vectorised where it broadcasts, and then fuses product and sum into one rounding.
        # Half precision needs it, since the product would be rounded to half precision.
        return torch.mul(z.detach(), ratio, out=out).add_(start)
    return torch.addcmul(start, z.detach(), ratio, out=out)


def _levels_reached(z: Tensor, theta: Tensor, T: int, shift: Tensor | None) -> Tensor:
    """u = (δ T/θ + 1/2) + z T/θ."""
    return reached(z, *line_of(theta, T, shift))


def counts(z: Tensor, v_threshold: Tensor, T: int, shift: Tensor | None, *, lowest: int = 0) -> Tensor:
    """``spike_count`` without its checks. lowest: the smallest count."""
    return _levels_reached(z, v_threshold, T, shift).floor_().clamp_(lowest, T)


def spike_count(
    mean_current: Float[Tensor, "*n"],
    v_threshold: float | Tensor,
    T: int,
    shift: float | Tensor | None = None,
) -> Float[Tensor, "*n"]:
    """Number of spikes in T steps, in closed form: k = clip(⌊(z + δ) · T/θ + 1/2⌋, 0, T).

    Equation (5) without its factor, section 4.3 of the paper; with ``shift`` = δ the count of equation (9).
    ``mean_current`` is z, the mean over time of the input with its bias, in the unit of θ and δ; all
    broadcast against it. Returns whole numbers in z's dtype (exact up to T = 2048 in float16, 256 in
    bfloat16), without gradient; NaN stays NaN. Allocates one tensor of z's size.

    Evaluated as ``(shift * (T / v_threshold) + 0.5) + z * (T / v_threshold)``, then floor, then clamp:
    ``qcfs``, ``da_qcfs`` and ``bisect_count`` share it, so their counts are equal bit for bit. A compiler that
    fuses the product and the sum rounds once instead of twice: z within an ulp of a jump may then count one
    differently.

    Raises ``TypeError`` on a current that isn't floating, ``ValueError`` on T below 1 or a threshold that
    is a number and not above 0, ``RuntimeError`` (torch) on shapes that don't broadcast.

    >>> spike_count(torch.tensor([-1.0, 0.2, 0.25, 0.6, 3.0]), v_threshold=1.0, T=2)
    tensor([0., 0., 1., 1., 2.])
    """
    check_floating(mean_current, "mean_current")
    check_steps(T)
    theta = threshold_like(v_threshold, mean_current)
    delta = None if shift is None else like(shift, mean_current)
    return counts(mean_current, theta, T, delta)


def _inside(z: Tensor, theta: Tensor, T: int, shift: Tensor | None, window: Window) -> Tensor:
    """Where the staircase passes gradient to z."""
    if window == "outer":
        u = _levels_reached(z, theta, T, shift)
        return (u >= 0).logical_and_(u < T + 1)
    x = z if shift is None else z + shift
    return (x >= 0).logical_and_(x <= theta)


class _Staircase(torch.autograd.Function):
    """a = (θ + φ)/T · k(z + δ), with the floor's gradient taken as 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, theta: Tensor, shift: Tensor | None, scale: Tensor | None, T: int, window: Window) -> Tensor:
        amplitude = theta if scale is None else theta + scale
        return spike_count(z, theta, T, shift).mul_(amplitude / T)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, theta, shift, scale, ctx.T, ctx.window = inputs
        ctx.needs_levels = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        # z is enough to compute everything again; without a gradient for θ or φ one byte a neuron is.
        kept = z if ctx.needs_levels else _inside(z, theta, ctx.T, shift, ctx.window)
        ctx.z_shape = z.shape
        ctx.save_for_backward(kept, theta, shift, scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        kept, theta, shift, scale = ctx.saved_tensors
        inside = _inside(kept, theta, ctx.T, shift, ctx.window) if ctx.needs_levels else kept
        slope = None if scale is None else (theta + scale) / theta
        through = grad * inside if slope is None else grad * inside * slope
        to_z = to_theta = to_shift = to_scale = None
        if ctx.needs_input_grad[0]:
            to_z = through.sum_to_size(ctx.z_shape)
        if shift is not None and ctx.needs_input_grad[2]:
            to_shift = through.sum_to_size(shift.shape)
        if ctx.needs_levels:
            rate = grad * (spike_count(kept, theta, ctx.T, shift) / ctx.T)
            if scale is not None and ctx.needs_input_grad[3]:
                to_scale = rate.sum_to_size(scale.shape)
            if ctx.needs_input_grad[1]:
                x = kept if shift is None else kept + shift
                to_theta = (rate - through * (x / theta)).sum_to_size(theta.shape)
        return to_z, to_theta, to_shift, to_scale, None, None


def qcfs(
    z: Float[Tensor, "*n"], v_threshold: float | Tensor, levels: int, window: Window = "inner"
) -> Float[Tensor, "*n"]:
    """Equation (5), quantise-clip-floor-shift: a = θ/L · clip(⌊z L/θ + 1/2⌋, 0, L), with L = ``levels``.

    z, θ and a share one unit; θ broadcasts against z. Source: Bu et al., ICLR 2022. Equal to
    ``spike_count(z, θ, L) * (θ / L)`` bit for bit, so at T = L conversion loses nothing.

    The floor's gradient is 1 inside a window and 0 outside; the authors published both windows:
    ``"inner"`` clips before the floor, 0 ≤ z ≤ θ; ``"outer"`` clips after it, −θ/2L ≤ z < θ + θ/2L.
    ∂a/∂z = 1 inside, else 0; ∂a/∂θ = a/θ − z/θ inside, else a/θ; summed to θ's shape.
    Keeps z for the backward pass, or one byte a neuron where θ needs no gradient.

    Raises ``ValueError`` on levels below 1, an unknown window or a threshold that is a number and not
    above 0; ``TypeError`` on z that isn't floating.

    >>> qcfs(torch.tensor([-1.0, 0.2, 0.3, 3.0]), v_threshold=1.0, levels=4)
    tensor([0.0000, 0.2500, 0.2500, 1.0000])
    """
    check_floating(z, "z")
    check_steps(levels, "levels")
    check_choice(window, WINDOWS, "window")
    return _staircase(z, threshold_like(v_threshold, z), None, None, levels, window)


def da_qcfs(
    z: Float[Tensor, "*n"],
    v_threshold: float | Tensor,
    shift: float | Tensor,
    scale: float | Tensor,
    T: int,
) -> Float[Tensor, "*n"]:
    """Equation (9), distribution-aware QCFS: a = (θ + φ)/T · clip(⌊((z + δ) T + θ/2) / θ⌋, 0, T).

    ``shift`` is δ, ``scale`` is φ; both, like θ, have z's unit and broadcast against z, ``(C, 1, 1)`` for
    channels. Equal to ``spike_count(z, θ, T, δ) * ((θ + φ) / T)`` bit for bit.

    Straight-through gradient, clipped after the floor as the equation is written (the ``"outer"`` window):
    with w = 1 inside and 0 outside, ∂a/∂z = ∂a/∂δ = w (θ + φ)/θ, ∂a/∂φ = k/T,
    ∂a/∂θ = k/T − w (θ + φ)(z + δ)/θ²; each summed to its argument's shape. Errors as in ``qcfs``.

    >>> da_qcfs(torch.tensor([0.2, 0.6]), v_threshold=1.0, shift=0.1, scale=0.5, T=2)
    tensor([0.7500, 0.7500])
    """
    check_floating(z, "z")
    check_steps(T)
    return _staircase(z, threshold_like(v_threshold, z), like(shift, z), like(scale, z), T, "outer")


def _staircase(z: Tensor, theta: Tensor, shift: Tensor | None, scale: Tensor | None, T: int, window: Window) -> Tensor:
    # torch leaves Function.apply untyped.
    return _Staircase.apply(z, theta, shift, scale, T, window)  # pyright: ignore[reportReturnType]


@torch.library.custom_op("parspike::qcfs", mutates_args=())
def _qcfs_node(z: Tensor, v_threshold: Tensor, levels: int) -> Tensor:
    """What ``torch.export`` sees of a ``QCFS`` module: one node, ``parspike::qcfs``."""
    theta = threshold_like(v_threshold, z)
    return spike_count(z, theta, levels).mul_(theta / levels)


@_qcfs_node.register_fake
def _(z: Tensor, v_threshold: Tensor, levels: int) -> Tensor:
    return torch.empty_like(z)


class QCFS(nn.Module):
    """Equation (5) as an activation with one learnable threshold a layer (``v_threshold``, a 0-d parameter).

    ``forward(z)`` is ``qcfs(z, v_threshold, levels, window)`` on a tensor of any shape. Under
    ``torch.export`` it is the single node ``parspike::qcfs(z, v_threshold, levels)``, which evaluates the
    same arithmetic and has no gradient. Defaults: L = 8 and θ = 8.0, the start value of Bu et al. 2022.

    Raises ``ValueError`` on levels below 1, a threshold not above 0 or an unknown window.
    """

    def __init__(self, levels: int = 8, v_threshold: float = 8.0, window: Window = "inner") -> None:
        super().__init__()
        self.levels = check_steps(levels, "levels")
        check_choice(window, WINDOWS, "window")
        self.window: Window = window
        self.v_threshold = nn.Parameter(torch.tensor(float(check_positive(v_threshold))))

    def forward(self, z: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        if torch.compiler.is_exporting():
            return _qcfs_node(z, self.v_threshold, self.levels)
        return qcfs(z, self.v_threshold, self.levels, self.window)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, v_threshold={self.v_threshold.item():g}, window={self.window!r}"
