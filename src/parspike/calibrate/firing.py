"""Threshold, v(0), bias and amplitude of neurons with a state, chosen for the mean of what they send in T steps.

No formula gives the spikes of an IF neuron whose input changes over time. So the fit runs the neuron step by step, with
each choice that it tries, on an even subset of the input currents that the layer gets in the student. Of every channel
the choice is kept whose error e = a − v_post · k/T is smallest, a the teacher's activation and k the spikes sent; the
amplitude v_post is the least-squares one. `weigh` is that of `calibrate.thresholds`.

θ is looked for on a grid below the channel's largest activation; then θ, v(0) and the bias are moved in turns, each by
smaller and smaller steps, as long as the error falls.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parspike.calibrate.channels import above_zero, node_shape, unit_of
from parspike.calibrate.thresholds import COARSE, Offer, Samples, Wanted, Weigh
from parspike.neurons import BELOW, IntegrateFire, Serial

__all__ = ["fit_firing"]

STEPS = (0.25, 0.12, 0.06, 0.03)
"""Moves of θ and v(0) as shares of θ, of the bias as shares of what makes one spike more in T steps."""


@dataclass
class _Choice(Offer):
    """A choice for neurons with a state: θ, v(0) and bias too, (C,)."""

    theta: Tensor
    start: Tensor
    bias: Tensor


class _Search:
    """Runs neurons on samples a (C, N) and z (T or 1, C, N), both counted from the smallest output on.

    curve: the bias of each step (T, C) that is there already, or None. best: the choice to begin with.
    """

    def __init__(
        self, neuron: IntegrateFire, a: Tensor, z: Tensor, T: int, curve: Tensor | None, best: _Choice, *, layer: bool,
        weigh: Weigh,
    ) -> None:  # fmt: skip
        self.neuron, self.layer, self.wanted, self.best = neuron, layer, Wanted(a, T, weigh), best
        self.z = z.expand(T, *z.shape[1:])
        if curve is not None:
            self.z = self.z + curve[:, :, None]

    def attempt(self, theta: Tensor, start: Tensor, bias: Tensor) -> None:
        """Try θ, v(0) and bias (C,)."""
        neuron = self.neuron
        for name, value in (("v_threshold", theta), ("v_init", start), ("v_post", theta)):
            getattr(neuron, name).data = value[:, None]
        neuron.bias.data = bias[None, :, None]
        k = neuron.advance(None, self.z)[2].sum(0)
        self.best.offer(_Choice(*self.wanted.fit(k, theta), theta, start, bias), together=self.layer)


def fit_firing(
    neuron: IntegrateFire, kind: Serial, samples: Samples, T: int, *, shift: bool = True, layer: bool = False,
    weigh: Weigh = "own",
) -> None:  # fmt: skip
    """Set the parameters of a layer of neurons from samples (a, z over time). T: time-steps.

    shift: fit the bias too. layer: one θ for all channels. The kind says whether v(0) is fitted, and whether every
    step has a bias of its own.
    """
    rest = neuron.rest()
    if isinstance(rest, Tensor):
        rest = rest.reshape(-1, 1)
    a, z = samples.tensors()
    a, z = a - rest, z - rest
    largest = above_zero(a.amax(1), T)
    unit = unit_of(largest.max().expand_as(largest) if layer else largest)
    a, z, top = a / unit[:, None], z / unit[:, None], largest / unit
    curve = None
    if kind.bias == "step" and len(z) > 1:
        # The same mean current at every step as over all of them: the neuron then fires as evenly as it can.
        mean = z.mean(2)
        curve = mean.mean(0) - mean
    best = _found(copy.deepcopy(neuron), kind, a, z, T, curve, top, shift=shift, layer=layer, weigh=weigh)
    bias = best.bias[None] if curve is None else best.bias + curve
    node = samples.node
    for name, value in (("v_threshold", best.theta), ("v_init", best.start), ("v_post", best.post)):
        parameter = getattr(neuron, name)
        parameter.data = node_shape(value * unit, node).clone()
    shaped = [node_shape(now * unit, node) for now in bias]
    neuron.bias = nn.Parameter(torch.stack(shaped), requires_grad=False)


def _found(
    neuron: IntegrateFire, kind: Serial, a: Tensor, z: Tensor, T: int, curve: Tensor | None, top: Tensor, *,
    shift: bool, layer: bool, weigh: Weigh,
) -> _Choice:  # fmt: skip
    if isinstance(neuron.offset, Tensor):
        del neuron._buffers["offset"]
    neuron.offset = 0.0
    highest = (top.max().expand_as(top) if layer else top) * kind.highest
    none, half = torch.zeros_like(top), 0.0 if kind.v_init == "zero" else 0.5
    first = _Choice(top, torch.full_like(top, torch.inf), highest, highest * half, none)
    search = _Search(neuron, a, z, T, curve, first, layer=layer, weigh=weigh)
    for fraction in COARSE:
        theta = highest * fraction
        search.attempt(theta, theta * half, none)
    for size in STEPS:
        for sign in (1, -1):
            for what in ("theta", "start", "bias"):
                if (what == "start" and kind.v_init != "fitted") or (what == "bias" and not shift):
                    continue
                theta, start, bias = search.best.theta, search.best.start, search.best.bias
                move = sign * size * theta
                if what == "theta":
                    theta = theta + move
                    start = start if kind.v_init == "fitted" else theta * half
                elif what == "start":
                    start = start + 2 * move
                    # At θ the current 0 makes a spike or none, as it is rounded; above θ it does.
                    start = torch.where((start - theta).abs() < (1 - BELOW) * theta, theta / BELOW, start)
                else:
                    bias = bias + 4 * move / T
                search.attempt(theta, start, bias)
    return search.best
