"""docs/operators.md from the op table:  python -m parspike.graph.page > docs/operators.md"""

from __future__ import annotations

import sys

from parspike.graph.ops import TABLE, USER, Role
from parspike.graph.refusals import REFUSED, remedy

__all__ = ["page"]

HEAD = """# What becomes of every operator

Rendered from the op table: `python -m parspike.graph.page > docs/operators.md`. `parspike.plan(model, example)` says
the same of your own network, layer by layer, before any data is read. `tests/test_operators.py` has a network for
each row. Names are those of ATen, which `torch.export` reduces every way of writing an operator to: `F.relu`,
`nn.ReLU`, `x.relu_()` and `torch.relu` are all `relu`. An operator that is not listed is written in those that are,
where torch knows how (`clip` as `clamp`, `hstack` as `cat`, `x.mT` as `transpose`, `stft` as Fourier transforms);
what then has no row is refused.

**Sizes of inputs.** Height, width, length and number of tokens stay free where the network allows it, and the last line
of the plan says so: `inputs: x (B, 3, x.2, x.3); free: x.2, x.3; where (x.2 % 32) = 0`, with x.2 for dimension 2 of the
input x. A linear layer behind `flatten` or a number written in the code fixes them: `x.2 = 32, x.3 = 32 fixed by layer
'fc' at net.py:12`. So do loops over a size, other numbers than whole ones computed from it (`1 / x.shape[1]`,
`x.shape[1] ** 0.5`), and networks that ask more than 40 conditions of their sizes (windows and paddings). An activation
with a free size in it, such as boxes clamped to the image, `clamp(0, x.shape[-1])`, is computed and no neuron. A
network may return sizes beside its tensors (`return y, x.shape[0]`): they are those of each input.

**The batch** may have any size, and one more than another has no effect on a sample. A branch on its size (`if len(x)`
fixes it and is refused, `if x.shape[0] > 16` is followed for the example's side) is a limit, `where B ≤ 16`, that every
engine checks. A network that drops the dimension of a single sample (`x.squeeze()`) does so in every engine.

**Branches** on numbers of the network's own (`if self.initialized.item() == 0`, `if self.gates[i] > 0.5`, the switches
of `FakeQuantize`, whose observers must be off) have one way for every input, which the graph takes, and so does
`self.scale.exp().item()`: tensors of at most 64 elements that forward does not write into, also those that are no
buffers (a detector's `self.stride = torch.tensor([8., 16.])`). A branch on what the input makes of it is refused.

**Writing in place** (`x.div_(255)`, `h[:, 0] = 0`, `ReLU(inplace=True)`, `out=`) is followed, and your batch stays as
it was. A network may write into buffers that its output does not read (a count of calls, an average of what it saw);
one whose output reads them, or that remembers one batch in the next, is refused. Casts and `torch.autocast` inside
forward stay where they are.

**Recurrent layers** (`nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells, also in both directions, in several layers, with a
projection or a start of your own) are unrolled: one copy of the cell for every step of the example's sequence, whose
length is fixed by that. Gates are neurons (sigmoid and tanh as staircases, or ReLU), products of a gate and a state are
analog, and no neuron keeps a state. Each step of a cell is four layers of neurons for an LSTM, two for a GRU, so long
sequences take long to plan and to fit. Packed sequences are refused: give the layer the padded batch.
"""
SYNAPSE = """## Synapses

Linear in what comes from spikes, so they act on a spike as on an average. Weights, indices and masks must not depend
on spikes; where they do, the operator is analog. They may depend on the input in another way (padding masks, the
adjacency of a graph, functions of positions): the plan says of such an operator that its weights depend on the
sample. Batch norm in evaluation is folded into its neighbour, or stays
as a scale and a shift, which is exact too. A table looked up by tokens (`embedding`) is a constant current. An
operator that joins or splits along the batch (attention of several heads written that way) acts on the time-means,
which changes nothing.
"""
NEURON = """## Neurons

`relu`, `relu6`, `hardtanh`, `clamp` with a lower bound and `parspike.QCFS` become parallel spiking neurons with
evenly spaced levels, one threshold a channel. **Every other activation that never falls** becomes a staircase with a
threshold for every level, placed by optimal one-dimensional quantisation of what the layer was seen to compute
(evenly spaced where that is better, and for the weighted code); `repr(snn)` gives the error of both. At few levels
the closed form gives every channel a staircase of its own ([calibration.md](calibration.md)). **Signed
outputs** are exact through an offset: the smallest output seen is a constant current beside the spikes, which the next
synapse takes in like a bias; no spike is negative. **Activations that fall and then rise** (\\*) become two
layers of neurons, `layer+` and `layer-`: f(x) = lowest + rising(x) + falling(−x), each silent where the other fires.
`prelu` is ReLU(x) − w·ReLU(−x).

**Written by hand**, an activation is found as a function of one number, made of any of this page's elementwise
operators that take one value and numbers, and converted the same way: `log(1 + exp(x))`,
`1 / (1 + exp(-x))`, `x * sigmoid(x)`, GPT-2's GELU, `relu(x) ** 2`, `x / (1 + |x|)`, `max(0.1 * x, x)` and
`where(x > 0, x, exp(x) - 1)` are neurons. What equals ReLU or a clip is that: `x * (x > 0)`, `(x + |x|) / 2`,
`maximum(x, zeros_like(x))`, `where(x > 20, 20, relu(x))`, `relu6(relu(x))`. Whether a function never falls is decided
on all numbers of float64, with every bound, limit and turn of its operators met exactly, so a cap at 65504 stays one. A
single analog operator stays analog with a scale or a shift too (`exp(2 * x)`, `sqrt(x + eps)`). So does
what jumps just above 0 (`(x > 0).float()`): a threshold at 0 would fire for a current of exactly 0.

**Quantised networks** of other authors are networks of QCFS, and the plan says with how many levels ("QCFS with
L = 4"): divide, round or floor, clamp, multiply, in any order (LSQ, DoReFa, PACT, the published code of QCFS,
`fake_quantize_per_tensor_affine`), with a step or bound for the layer or for every channel, whether it is a number, a
buffer or a parameter. Any quantiser with evenly spaced jumps and values is scale · QCFS(x + shift) + lowest: `floor`
without 1/2 moves the input by half a level, one of −Q … Q has L = 2Q levels above its lowest value. At T = L nothing
is lost and no data are needed; at other T they are calibrated as QCFS is. A current exactly half-way between two
levels counts as the upper one, where `round` takes the even one. Unevenly spaced levels become a staircase.

**Your own**: `parspike.register(function_or_class, name=…, inverse=…)` checks that it is elementwise and never falls,
or falls once and then rises, and makes it one operator. A file holds its name; a program that loads the file
registers it first.

**No neurons** are three kinds of activation, and the plan says so:

- a *read-out*: behind it comes no operator with weights, so it is the network's last step (the clamp of an image, the
  ReLU of a regressor, a sigmoid, a quantiser). It is computed on the mean output, exactly as in the network. An output
  that is read inside the network too (a sigmoid returned beside what the next layer makes of it, features of a
  backbone) is both: what is returned is the read-out (`layer@output` in the plan), and the neurons beside it spike.
- a *guard* whose input is made by no synapse: an input, a mask, a length, a variance, a softmax. `clamp(min=1e-9)` of
  a number of tokens, the eps of `F.normalize`, `clamp(min=0)` of a variance. An activation behind a synapse is a
  neuron also where a normalisation, a sum of branches, a maximum or attention lies between.
- a *guard* that only divisions (as the divisor), logarithms and roots read: their slope has no bound near 0, where a
  spike count has one level. So has the `clamp(min=eps)` between spikes and a learned power (generalised-mean pooling).

Guards are computed on the time-means, or once where they depend on no spike. `layers={"name": parspike.Spike()}` makes
neurons of a read-out or a guard, `parspike.Keep()` keeps any activation analog.
"""
ORDER = """## Maxima

Sorted trains of neurons that share thresholds are nested, so their maximum step by step is the train of the largest
count. Thresholds run along one dimension, the channels of a convolution or the features of a linear layer, so this
holds for maxima along the other dimensions, and the plan names them. A max-pool along these, behind an activation, goes
before it, on the current, where no other operator reads the activation; both are exact. Any other maximum (across
channels, as in maxout; of two layers; behind a batch norm of the compared dimension) is taken of the time-means, and
the plan says why.
"""
ANALOG = """## Analog

Computed on the time-means, named in the plan and counted as such; `strict=True` refuses them. Behind the last neuron
and synapse they are the read-out, which is no refusal.

**Places and comparisons** (`topk`, `argmax`, `sort`, a max-pool that returns indices, `h1 > h2`) ask which value is
larger, and at few steps the counts of most neurons are equal. So they read the activations themselves, computed beside
the neurons from the same currents (`layer@compared` in the plan): a router that takes two of 24 experts by a sigmoid
then errs by 0.12 in place of 0.49 at T = 8. What else reads the activation reads spikes.
"""
UNKNOWN = """## Refused

Everything else: the plan lists all refusals with layer, source line and remedy at once.
"""


def page() -> str:
    """The page as Markdown."""
    rows = {name: row for name, row in TABLE.items() if name not in USER}
    parts = [HEAD]
    for role, text in ((Role.SYNAPSE, SYNAPSE), (Role.NEURON, NEURON), (Role.ORDER, ORDER)):
        names = sorted({_name(name) for name, row in rows.items() if row.role is role})
        parts += [text, _wrapped(names), ""]
    parts += [ANALOG, "| why | operators |", "|---|---|"]
    reasons: dict[str, set[str]] = {}
    for name, row in rows.items():
        if row.role is Role.ANALOG:
            reasons.setdefault(row.reason, set()).add(_name(name))
        elif row.product:
            reasons.setdefault("a product of two values that both depend on the input", set()).add(_name(name))
    parts += [f"| {reason} | {', '.join(sorted(names))} |" for reason, names in reasons.items()]
    parts += ["", UNKNOWN, "| operators | why | remedy |", "|---|---|---|"]
    for why in dict.fromkeys(REFUSED.values()):
        names = sorted(name for name, reason in REFUSED.items() if reason == why)
        parts.append(f"| {', '.join(names)} | {why} | {remedy(f'aten.{names[0]}.default', Role.UNKNOWN)} |")
    parts.append(f"| any other | no rule | {remedy('', Role.UNKNOWN)} |")
    return "\n".join(parts) + "\n"


def _name(target: str) -> str:
    row = TABLE[target]
    mark = "\\*" if row.turn is not None else ""
    return f"`{target.removeprefix('aten.').split('.')[0] if target.startswith('aten.') else target}`{mark}"


def _wrapped(names: list[str]) -> str:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) + 2 > 120:
            lines.append("")
        lines[-1] += ("" if not lines[-1] else " ") + name + ("," if name != names[-1] else "")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
