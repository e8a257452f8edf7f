"""docs/operators.md from the op table:  python -m parspike.graph.page > docs/operators.md"""

from __future__ import annotations

import sys

from parspike.graph.ops import REFUSED, TABLE, USER, Role, remedy

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
'fc' at net.py:12`. So do numbers computed from a size that are no whole numbers (`interpolate` by 1.5,
`x.shape[1] ** 0.5`), and networks that ask more than 40 conditions of their sizes (windows and paddings).

**The batch** may have any size, and one more than another has no effect on a sample. A branch on its size (`if len(x)`
fixes it and is refused, `if x.shape[0] > 16` is followed for the example's side) is a limit, `where B ≤ 16`, that every
engine checks. A network that drops the dimension of a single sample (`x.squeeze()`) does so in every engine.

**Writing in place** (`x.div_(255)`, `h[:, 0] = 0`, `ReLU(inplace=True)`, `out=`) is followed, and your batch stays as
it was. A network that writes into its own buffers, or remembers one batch in the next, is refused. Casts and
`torch.autocast` inside forward stay where they are.
"""
SYNAPSE = """## Synapses

Linear in what comes from spikes, so they act on a spike as on an average. Weights, indices and masks must not depend
on the input; where they do, the operator is analog. Batch norm in evaluation is folded into its neighbour, or stays
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
outputs** are exact through an offset: the activation's smallest output is a constant current beside the spikes, which
the next synapse takes in like a bias; no spike is negative. **Activations that fall and then rise** (\\*) become two
layers of neurons, `layer+` and `layer-`: f(x) = lowest + rising(x) + falling(−x), each silent where the other fires.
`prelu` is ReLU(x) − w·ReLU(−x).

**Written by hand**, an activation is found as a function of one number, and taken the same way: `x * (x > 0)` is ReLU
itself; `x * sigmoid(x)`, GPT-2's GELU, `relu(x) ** 2`, `x / (1 + |x|)`, `where(x > 0, x, 0.1 * x)` are neurons too.

**Your own**: `parspike.register(function_or_class, name=…, inverse=…)` checks that it is elementwise and never falls,
or falls once and then rises, and makes it one operator. A file holds its name; a program that loads the file
registers it first.

A squashing activation at the network's output (†) is a read-out: computed on the mean output, no neuron.
"""
ORDER = """## Maxima

Sorted trains of neurons that share thresholds are nested, so their maximum step by step is the train of the largest
count. A max-pool behind an activation goes before it, on the current, where nobody else reads the activation; both
are exact. Any other maximum is taken of the time-means. The plan says which.
"""
ANALOG = """## Analog

Computed on the time-means, named in the plan and counted as such; `strict=True` refuses them. Behind the last neuron
and synapse they are the read-out, which is no refusal.
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
    mark = "\\*" if row.turn is not None else "†" if row.readout else ""
    return f"`{target.removeprefix('aten.').split('.')[0] if target.startswith('aten.') else target}`{mark}"


def _wrapped(names: list[str], width: int = 120) -> str:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) + 2 > width:
            lines.append("")
        lines[-1] += ("" if not lines[-1] else " ") + name + ("," if name != names[-1] else "")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
