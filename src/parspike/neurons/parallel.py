"""Neurons that compute all T steps at once: equations (2), (6)-(8), theorem 4.1 and section 4.3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .arguments import (
    check_choice,
    check_floating,
    check_over_time,
    check_positive,
    check_steps,
    like,
    threshold_like,
)
from .quantised import _levels_reached
from .trains import sorted_train

if TYPE_CHECKING:  # jaxtyping is a development tool, not a dependency
    from jaxtyping import Bool, Float

VARIANTS = ("matrix", "hadamard", "bisection")


def _spikes_left(T: int, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    """T − x + 1 for x = 1..T: how many spikes a neuron that starts to fire at step x will have fired."""
    return torch.arange(T, 0, -1, device=device).to(dtype or torch.get_default_dtype())


def lif_matrix(
    T: int, decay: float, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Float[Tensor, "T T"]:
    """Λ of equation (2) for a LIF neuron that never resets: Λ[i, j] = λ^(i−j) for i ≥ j, else 0.

    Source: Fang et al. 2023, section 3 of the paper. Raises ``ValueError`` on T below 1.

    >>> lif_matrix(3, 0.5)
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 1.0000, 0.0000],
            [0.2500, 0.5000, 1.0000]])
    """
    t = torch.arange(check_steps(T), device=device)
    age = (t[:, None] - t[None, :]).clamp_(min=0).to(dtype or torch.get_default_dtype())
    return torch.pow(decay, age).tril_()


def pc_matrix(
    T: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Float[Tensor, "T T"]:
    """Λ_PC, equation (6): lower triangular, row x is T / (x (T − x + 1)), x times.

    At step x only the first x inputs have arrived; the row extrapolates their mean to T steps and divides
    by the T − x + 1 spikes in question, equation (7). Exact if the current is the same at every step,
    which ``pre_matrix`` sees to. Raises ``ValueError`` on T below 1.

    >>> pc_matrix(2)
    tensor([[1., 0.],
            [1., 1.]])
    """
    left = _spikes_left(check_steps(T), dtype, device)
    row = T / (left.flip(0) * left)
    return row[:, None].expand(T, T).tril()


def pre_matrix(
    T: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Float[Tensor, "T T"]:
    """Λ_PRE, equation (8): 1/T everywhere; replaces the current at every step by its mean over time.

    Raises ``ValueError`` on T below 1.
    """
    return torch.full((check_steps(T), T), 1 / T, dtype=dtype or torch.get_default_dtype(), device=device)


def fused_matrix(
    T: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Float[Tensor, "T T"]:
    """Λ̂ = Λ_PC Λ_PRE, equation (8): row x is 1 / (T − x + 1) everywhere.

    Raises ``ValueError`` on T below 1.

    >>> fused_matrix(2)
    tensor([[0.5000, 0.5000],
            [1.0000, 1.0000]])
    """
    return (1 / _spikes_left(check_steps(T), dtype, device))[:, None].repeat(1, T)


def optimal_shift(v_threshold: float | Tensor, T: int, shift: float | Tensor | None = None) -> Tensor:
    """b_x of theorem 4.1 for x = 1..T: b_x = ψ / (T − x + 1) with ψ = θ/2; shape ``(T, *θ.shape)``.

    Dtype and device of a tensor θ; float64 for a number.

    Why: the neuron must fire at step x iff it has at least n = T − x + 1 spikes to fire. A T-level QCFS
    has them iff Σ_t I(t) + ψ ≥ n θ, that is Σ/n + ψ/n ≥ θ, and Σ/n is row x of equation (8).

    (i) T = T̃: the neuron and the activation it replaces are one staircase: equal for every input.
    (ii) T ≠ T̃: the same derivation makes the neuron a T-level staircase, beside one of T̃ levels. They share the form
    of ψ because θ/2 puts each jump in the middle of two levels, for any number of levels: on a bin where the input is
    uniform the mean output is the mean input for either, so the two are equal in expectation; for one input they differ
    by up to half a level of each.

    With ``shift`` = δ (equation 9) the bias over all steps is δ T + θ/2: b_x = (δ T + θ/2) / (T − x + 1).

    Raises ``ValueError`` on T below 1 or a threshold that is a number and not above 0.

    >>> optimal_shift(1.0, T=4)
    tensor([0.1250, 0.1667, 0.2500, 0.5000], dtype=torch.float64)
    """
    check_steps(T)
    if not isinstance(v_threshold, Tensor):
        # In float64, so that ``fire`` rounds it once, to the dtype of the charge.
        v_threshold = torch.tensor(check_positive(v_threshold), dtype=torch.float64)
    bias = v_threshold / 2 if shift is None else v_threshold / 2 + shift * T
    left = _spikes_left(T, bias.dtype, bias.device)
    return bias / left.reshape(T, *[1] * bias.ndim)


def charge(current: Float[Tensor, "T *n"], method: Literal["matrix", "hadamard"] = "hadamard") -> Float[Tensor, "T *n"]:
    """Charging phase of equation (8): m_x = Σ_t I(t) / (T − x + 1) for x = 1..T; unit of ``current``.

    ``"matrix"`` is the product Λ̂ I, T² multiply-accumulates a neuron. ``"hadamard"`` uses that all columns
    of Λ̂ are equal: the sum over time, then one factor a step, T operations (section 4.3). The two differ
    by rounding only.

    Raises ``ValueError`` on an unknown method or a current without a step, ``TypeError`` on a current that
    isn't floating.

    >>> charge(torch.tensor([1.0, 0.0, 2.0]))
    tensor([1.0000, 1.5000, 3.0000])
    """
    T = check_over_time(current)
    if check_choice(method, ("matrix", "hadamard"), "method") == "matrix":
        return torch.tensordot(fused_matrix(T, current.dtype, current.device), current, dims=1)
    left = _spikes_left(T, current.dtype, current.device)
    return current.sum(0) / left.reshape(T, *[1] * (current.ndim - 1))


def _over_time(shift: Tensor, reference: Tensor) -> Tensor:
    """A ``(T, ...)`` shift with its later axes aligned to the last ones of ``reference``, as torch would."""
    T, *rest = shift.shape
    if len(rest) >= reference.ndim or reference.shape[0] != T:
        raise ValueError(
            f"shift must be (T, ...) with T = {reference.shape[0]} and at most {reference.ndim} axes, got "
            f"{tuple(shift.shape)}; optimal_shift(v_threshold, T) makes one"
        )
    return shift.reshape(T, *[1] * (reference.ndim - shift.ndim), *rest)


def _first_step(fires: Callable[[Tensor], Tensor], shape: Sequence[int], T: int, device: torch.device) -> Tensor:
    """First step (from 0) at which ``fires`` holds, T if none, by bisection: section 4.3.

    ``fires(step)`` must be False up to some step and True from there on. ⌈log₂(T + 1)⌉ calls.
    """
    silent_until = torch.zeros(shape, dtype=torch.int64, device=device)
    size = 1 << (T.bit_length() - 1)
    # Strides of powers of two instead of two pointers: every neuron needs the same number of tests.
    while size:
        step = silent_until + (size - 1)
        silent = (step < T) & ~fires(step.clamp_(max=T - 1))
        silent_until += silent * size
        size >>= 1
    return silent_until


def fire(
    charge: Float[Tensor, "T *n"],
    v_threshold: float | Tensor,
    shift: Tensor | None = None,
    post_threshold: float | Tensor | None = None,
    method: Literal["scan", "bisection"] = "scan",
) -> Tensor:
    """Firing phase: s(x) = H(m_x + b_x − θ) for all x, equations (2) and (7); ``(T, ...)``.

    ``shift`` is b, of shape ``(T, ...)`` as ``optimal_shift`` makes it. ``v_threshold`` = θ_c is the
    pre-threshold, the one that is tested. Without ``post_threshold`` the spikes are ``bool``; with it each
    spike has that amplitude, θ_c + φ_c for DA-QCFS (algorithm 1), in the dtype of ``charge``.

    ``"scan"`` compares all T steps and takes any charge. ``"bisection"`` (section 4.3) does
    ⌈log₂(T + 1)⌉ threshold tests a neuron to find the first spike and sets all later steps; it requires a
    charge that stays above the threshold once it has reached it, as that of equation (8) with theorem
    4.1's shift does.

    Raises ``ValueError`` on an unknown method, a shift whose first axis isn't T or a threshold that is a
    number and not above 0; ``TypeError`` on a charge that isn't floating.

    >>> m = charge(torch.tensor([1.0, 0.0, 2.0]))
    >>> fire(m, 2.0, shift=optimal_shift(2.0, T=3), method="bisection")
    tensor([False,  True,  True])
    """
    T = check_over_time(charge, "charge")
    check_choice(method, ("scan", "bisection"), "method")
    theta = threshold_like(v_threshold, charge)
    b = None if shift is None else _over_time(like(shift, charge), charge)
    if method == "scan":
        spikes = (charge if b is None else charge + b) >= theta
    else:
        b_everywhere = None if b is None else b.expand_as(charge)

        def fires(step: Tensor) -> Tensor:
            at = step.unsqueeze(0)
            m = charge.gather(0, at)
            return ((m if b_everywhere is None else m + b_everywhere.gather(0, at)) >= theta).squeeze(0)

        first = _first_step(fires, charge.shape[1:], T, charge.device)
        steps = torch.arange(T, device=charge.device).reshape(T, *[1] * (charge.ndim - 1))
        spikes = steps >= first
    return spikes if post_threshold is None else spikes * like(post_threshold, charge)


def parallel_neuron(
    current: Float[Tensor, "T *n"],
    matrix: Float[Tensor, "T T"],
    v_threshold: float | Tensor,
    shift: Tensor | None = None,
) -> Bool[Tensor, "T *n"]:
    """Parallel spiking neuron, equation (2): m = Λ I, s = H(m + b − θ), all T steps at once.

    ``matrix`` is Λ (``fused_matrix``, ``lif_matrix`` or a learnt one), cast to the current's dtype;
    ``shift`` is b as in ``fire``. Source: Fang et al. 2023.

    Raises ``ValueError`` on a matrix that isn't T × T, else as ``fire``.

    >>> parallel_neuron(torch.tensor([1.0, 0.0, 2.0]), fused_matrix(3), 2.0, optimal_shift(2.0, T=3))
    tensor([False,  True,  True])
    """
    T = check_over_time(current)
    if matrix.shape != (T, T):
        raise ValueError(f"matrix must be (T, T) = ({T}, {T}) for a current of {T} steps, got {tuple(matrix.shape)}")
    return fire(torch.tensordot(like(matrix, current), current, dims=1), v_threshold, shift)


def spikes_at_once(
    current: Float[Tensor, "T *n"],
    v_threshold: float | Tensor,
    variant: Literal["matrix", "hadamard", "bisection"] = "bisection",
    shift: float | Tensor | None = None,
) -> Bool[Tensor, "T *n"]:
    """The paper's neuron on a current of T steps, in one of the three ways that it gives: the same spikes.

    ``"matrix"``: the product with Λ̂ of equation (8), then a threshold test at each of the T steps: 𝒪(T²) operations a
    neuron. ``"hadamard"``: the sum over time and one factor a step, then the T tests: 𝒪(T). ``"bisection"``: the mean
    over time, ⌈log₂(T + 1)⌉ tests for the first spike, and ones from there on (section 4.3). ``shift`` = δ of equation
    (9). They round in different places: a current within a few units in the last place of a threshold may count one
    more or less. Errors as in ``fire``.

    >>> current = torch.tensor([1.0, 0.0, 2.0])
    >>> [spikes_at_once(current, 2.0, variant).tolist() for variant in VARIANTS]
    [[False, True, True], [False, True, True], [False, True, True]]
    """
    T = check_over_time(current)
    if check_choice(variant, VARIANTS, "variant") == "bisection":
        return sorted_train(bisect_count(current.mean(0), v_threshold, T, shift), T)
    shifts = optimal_shift(v_threshold, T, shift)
    if variant == "matrix":
        return parallel_neuron(current, fused_matrix(T, current.dtype, current.device), v_threshold, shifts)
    return fire(charge(current), v_threshold, shifts)


def bisect_count(
    mean_current: Float[Tensor, "*n"],
    v_threshold: float | Tensor,
    T: int,
    shift: float | Tensor | None = None,
) -> Float[Tensor, "*n"]:
    """``spike_count`` by the threshold tests of section 4.3 instead of a floor, ⌈log₂(T + 1)⌉ of them.

    Charging by the mean and bisection together, without a tensor of T steps. Arguments and errors as in
    ``spike_count``, and equal to it bit for bit except on NaN, which fires never and counts 0.
    """
    check_floating(mean_current, "mean_current")
    check_steps(T)
    theta = threshold_like(v_threshold, mean_current)
    delta = None if shift is None else like(shift, mean_current)
    u = _levels_reached(mean_current, theta, T, delta)
    first = _first_step(lambda step: u >= T - step, u.shape, T, u.device)
    return (T - first).to(u.dtype)
