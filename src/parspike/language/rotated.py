"""The residual stream of a language model with RMS norms, along other axes.

A norm x/√(mean x² + ε) · w is the same for Q x as for x, Q orthogonal, but for its weights w, and these fold into the
linear layers behind. So with E the embedding, every layer that writes into the stream as Qᵀ W, and every one that
reads it behind a norm as W diag(w) Q, E Q gives the same function (SliceGPT, Ashkboos and others 2024; QuaRot rotates
with Hadamard matrices for integer networks). What changes are the values that encoders see: a few large channels of
the stream are spread over all.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from parspike.errors import UnsupportedError

__all__ = ["orthogonal", "with_rotated_stream"]

READ = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
"""The norms of a block, and the linear layers that read each."""
WRITE = ("self_attn.o_proj", "mlp.down_proj")
SAME = 1e-4
"""Outputs differ by less, as a share of the largest: transformers computes norms in float32, whatever the weights."""


def orthogonal(size: int) -> Tensor:
    """An orthogonal matrix (size, size), float64, whose entries are of one size: a Hadamard matrix of the largest power
    of two that divides the size, times a cosine transform for the rest."""
    odd = size // (size & -size)
    at = torch.arange(odd, dtype=torch.float64)
    made = (math.pi / odd * (at[None] + 0.5) * at[:, None]).cos() * (2 / odd) ** 0.5
    made[0] = odd**-0.5
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)]) * 0.5**0.5
    return made


@torch.no_grad()
def with_rotated_stream(net: nn.Module, x: Tensor) -> nn.Module:
    """The same function of token numbers, of a causal network of transformers built as LLaMA is; a copy.

    x: token numbers (B, tokens), on which both are compared. Raises `UnsupportedError` where a block is built
    otherwise, or the outputs differ: norms with means or other weights, further norms behind a layer.
    """
    made: Any = copy.deepcopy(net)
    stack, kind = made.get_decoder(), type(net).__name__
    try:
        blocks = [
            ([(block.get_submodule(norm), [block.get_submodule(one) for one in names]) for norm, names in READ.items()],
             [block.get_submodule(one) for one in WRITE])
            for block in stack.layers
        ]  # fmt: skip
        embedding, last, head = stack.embed_tokens, stack.norm, made.get_output_embeddings()
    except AttributeError as error:
        raise UnsupportedError(
            f"{kind}: the stream of a network as LLaMA is rotated, and this one lacks: {error}"
        ) from error
    turn = orthogonal(embedding.weight.shape[1])
    own = nn.Linear(*reversed(head.weight.shape), bias=head.bias is not None)  # tied weights are two from here on
    own.load_state_dict(head.state_dict())
    made.set_output_embeddings(own.to(head.weight))
    made.config.tie_word_embeddings = False
    norms = [*(pair for read, _ in blocks for pair in read), (last, [own])]
    for norm, linears in norms:
        for linear in linears:
            _put(linear, linear.weight.double() * norm.weight.double() @ turn)
        norm.weight.fill_(1)
    for linear in (linear for _, written in blocks for linear in written):
        _put(linear, turn.T @ linear.weight.double())
        if linear.bias is not None:
            linear.bias.copy_(linear.bias.double() @ turn)
    _put(embedding, embedding.weight.double() @ turn)
    _check(kind, net, made, x)
    return cast("nn.Module", made)


def _put(layer: Any, weight: Tensor) -> None:
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)


def _check(kind: str, net: nn.Module, made: nn.Module, x: Tensor) -> None:
    one, two = (each(input_ids=x, use_cache=False).logits.double() for each in (net, made))
    far = float((one - two).abs().max() / one.abs().max())
    if not far < SAME:
        raise UnsupportedError(
            f"{kind}: with its stream rotated its outputs differ by {far:.1g} of the largest, so its blocks are not "
            "those of LLaMA (norms behind layers, or with other weights): use it as it is"
        )
