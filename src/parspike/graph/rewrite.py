"""Rewriting that does not change the network's function and makes it send fewer spikes.

- a batch norm is a scale and a shift per channel, which goes into the weights of the synapse before it, else into
  those of the synapse after it (batch norm behind an activation), else stays, which is exact too;
- a max-pool behind an activation goes before it: both are monotone, so they commute exactly, and the neurons
  are those of the pooled map (method.md, facts beyond the paper);
- places of the largest values of an activation (max-pools that return indices, topk, argmax …), and comparisons, are
  those of the activation itself, computed beside the neurons: counts are often equal where activations are not;
- an activation that falls and then rises (SiLU, GELU …) becomes lowest + rising(x) + falling(−x), PReLU becomes
  ReLU(x) − w·ReLU(−x): two layers of neurons, each silent where the other fires;
- an activation written by hand (x·σ(x), log(1 + exp(x)), where(x > 20, 20, x·(x > 0)) …) becomes one activation, a
  clip where it is one;
- a quantiser written by hand (divide, floor or round, clamp, multiply) becomes QCFS;
- an einsum of three and more factors becomes products of two;
- a clamp whose bounds are tensors of one number becomes a clamp by numbers; without finite bounds it is removed.

All of it is computed in float64, compared there with the graph as it was read (`same.check_rewritten`), and narrowed
to the network's own types once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parspike.graph.course import Course, Turn, clip_of, course_of, turn_of
from parspike.graph.factors import EINSUM, in_pairs
from parspike.graph.ir import Graph, Node, Param, Ref, leaves, map_tree
from parspike.graph.levels import Levels, levels_of
from parspike.graph.ops import BESIDE, COMPARED, FAKE_QUANTISE, POINTWISE, TABLE, Role
from parspike.graph.order import PLACES, spans_channels, values_alone
from parspike.graph.pointwise import Written, evaluate, functions_of, numbers, polynomial, steps, uncast
from parspike.graph.same import check_rewritten
from parspike.graph.signature import Conv, Linear, arguments, with_weights
from parspike.graph.wide import wide, wide_dtype, widened

__all__ = ["merge_scales", "rewrite", "turn_of_function"]

BY_TENSORS = {
    "aten.clamp.Tensor": (1, 2), "aten.clamp_min.Tensor": (1, None), "aten.clamp_max.Tensor": (None, 1),
    "aten.maximum.default": (1, None), "aten.minimum.default": (None, 1),
    "aten.fmax.default": (1, None), "aten.fmin.default": (None, 1),
}  # fmt: skip
"""Where the arguments of a clamp by tensors hold the lower and the upper bound."""
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, OverflowError, ZeroDivisionError)
"""What an operator may raise when it is tried on numbers that never reach it in the network."""
FARTHEST = 1e4
"""Largest place of a function's turn, and largest value there. The two halves are added to that value, so a larger one
would round them away."""
PIECE = 256
"""Channels of a quantiser looked at together."""
AT_ONCE = 1 << 18
"""Elements of a weight that are multiplied in float64 at a time."""
RANKS = ("aten.topk.default", "aten.sort.default", "aten.kthvalue.default", "aten.median.dim")
"""Operators that give values in their order, and their places."""
CHOICES = (
    "aten.argmax.default", "aten.argmin.default", "aten.argsort.default",
    *(f"aten.{name}.{kind}" for name in ("eq", "ne", "lt", "le", "gt", "ge") for kind in ("Scalar", "Tensor")),
)  # fmt: skip
"""Operators that give places, or truth values, alone."""
KEEPS_CHANNELS = ("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default",
                  "aten.adaptive_avg_pool3d.default", "aten.mean.dim", "aten.reshape.default")  # fmt: skip


def rewrite(graph: Graph, args: Sequence[Tensor] = (), kwargs: Mapping[str, Tensor] | None = None) -> Graph:
    """Fold batch norms, move max-pools before their neuron, find what the module's docstring lists.

    args, kwargs: an example batch, on which the rewritten graph is compared with `graph`; without one it is not.
    Raises `TraceError` where they differ, which is a fault of parspike's.
    """
    draft = _Draft(widened(graph), graph)
    _rewrite(draft)
    made = draft.graph()
    if args or kwargs:
        check_rewritten(draft.source, made, draft.means, args, kwargs or {})
    return replace(made, tensors={path: draft.narrowed(path) for path in made.tensors}, norm=_first_norm(draft, made))


def merge_scales(graph: Graph) -> Graph:
    """The same function, each `scale_shift` in the weights of the synapse behind it where it can go there. Memory holds
    one copy more of the weights that change."""
    draft = _Draft(graph, graph)
    for node in graph.nodes:
        if node.name in draft.nodes:
            _merge_forward(draft, draft.nodes[node.name])
        if node.name in draft.nodes:  # whatever goes into its tensors came before it
            for path in draft.nodes[node.name].params:
                draft.tensors[path] = draft.narrowed(path)
    return draft.graph()


def _first_norm(draft: _Draft, made: Graph) -> tuple[str, Tensor] | None:
    """What `Graph.norm` holds."""
    first = next((node for node in draft.source.nodes if node.target == "parspike.batch_norm"), None)
    name = next((n.name for n in made.nodes if first is not None and draft.means.get(n.name) == first.name), None)
    if first is None or name is None:
        return None
    mean, var = (draft.source.tensors[param.path] for param in first.args[3:5])
    if not bool(mean.any()) and bool((var == 1).all()):  # as they are when they are made
        return None
    weight = torch.ones_like(var) if first.args[1] is None else draft.source.tensors[first.args[1].path]
    return name, weight.abs() * (var / (var + first.args[5])).sqrt()


def _rewrite(draft: _Draft) -> None:
    for step in (_factors, _norms, _bounds, _merge_backward, _written, _places, _monotone, _pool_first, _merge_forward):
        nodes = list(draft.nodes.values())
        # A function written by hand is found at its last operator.
        for node in reversed(nodes) if step is _written else nodes:
            if node.name in draft.nodes:
                step(draft, draft.nodes[node.name])


@dataclass
class _Draft:
    """A graph in the making. narrow: the graph as read. source: the same, its tensors in float64. means: of every node
    whose value is one of the source's, the node of the source. like: for every new tensor, the type that it takes at
    the end, or the tensor that has it. dtype: the one type of all real numbers in the network, None where it has
    several."""

    source: Graph
    narrow: Graph

    def __post_init__(self) -> None:
        self.nodes = {node.name: node for node in self.source.nodes}
        self.means = {node.name: node.name for node in self.source.nodes}
        self.like: dict[str, str | torch.dtype] = {}
        self.tensors = dict(self.source.tensors)
        self.output = self.source.output
        leaves_of = [leaf for n in self.narrow.nodes for leaf in leaves((n.args, n.kwargs))]
        types = {t.dtype for t in self.narrow.tensors.values()} | {i.dtype for i in self.narrow.inputs}
        types |= {leaf for leaf in leaves_of if isinstance(leaf, torch.dtype)}
        floating = [dtype for dtype in types if dtype.is_floating_point]
        self.dtype = floating[0] if len(floating) == 1 else None

    def has_one_type(self, types: Collection[torch.dtype]) -> bool:
        """Whether types named in a function are the network's one type, or that of this draft's tensors."""
        return not types or (self.dtype is not None and set(types) <= {self.dtype, torch.float64})

    def readers(self, name: str) -> list[Node]:
        found = [node for node in self.nodes.values() for ref in node.refs if ref == name]
        outputs = [leaf for leaf in leaves(self.output) if isinstance(leaf, Ref) and leaf.name == name]
        return found + [replace(self.nodes[name], target="output") for _ in outputs]

    def only_reader(self, name: str) -> Node | None:
        readers = self.readers(name)
        return readers[0] if len(readers) == 1 and readers[0].target != "output" else None

    def put(self, path: str, tensor: Tensor, like: str | torch.dtype) -> Param:
        """Add a tensor that only one node reads. like: the type that it shall have, or the path of a tensor that has
        it."""
        self.tensors[path] = tensor
        if path not in self.source.tensors:
            self.like.setdefault(path, like)
        return Param(path)

    def narrowed(self, path: str) -> Tensor:
        """A tensor in the type that the network gave it, or the one that it was made from."""
        tensor = self.tensors[path]
        if tensor is self.source.tensors.get(path):
            return self.narrow.tensors[path]
        origin: str | torch.dtype = path
        while isinstance(origin, str):
            origin = self.narrow.tensors[origin].dtype if origin in self.narrow.tensors else self.like[origin]
        return tensor.to(origin) if wide_dtype(origin) is not None else tensor

    def drop(self, node: Node, instead: str, *, same: bool = True) -> None:
        """Remove a node; its readers read `instead`. same: whether that has the removed node's value."""
        means = self.means.pop(node.name, None)
        if same and means is not None:
            self.means[instead] = means
        del self.nodes[node.name]
        swap = _renaming({node.name: instead})
        self.nodes = {name: n.mapped(swap) if node.name in n.refs else n for name, n in self.nodes.items()}
        self.output = map_tree(swap, self.output)

    def insert(self, name: str, made: list[Node]) -> None:
        """Put nodes in the place of one; the last of them has its name."""
        nodes: dict[str, Node] = {}
        for key, node in self.nodes.items():
            nodes.update({n.name: n for n in made} if key == name else {key: node})
        self.nodes = nodes

    def now(self) -> Graph:
        """The draft as a `Graph`, without a copy of its tensors."""
        return replace(self.source, nodes=tuple(self.nodes.values()), output=self.output, tensors=self.tensors)

    def prune(self) -> None:
        """Remove the nodes that no node and no output reads any more."""
        needed = {leaf.name for leaf in leaves(self.output) if isinstance(leaf, Ref)}
        for name in reversed(list(self.nodes)):
            if name in needed:
                needed.update(self.nodes[name].refs)
            else:
                del self.nodes[name]

    def own(self, node: Node, param: Param, suffix: str) -> Param:
        """The tensor of an argument, under a name that only this node reads."""
        users = [n for n in self.nodes.values() for path in n.params if path == param.path]
        path = param.path if len(users) == 1 else f"{node.name}.{suffix}"
        return self.put(path, self.tensors[param.path], param.path)

    def free(self, weight: str) -> str:
        """An unused name for the bias of a synapse that had none: that of its weight with "bias" for "weight" if
        free."""
        room, _, name = weight.rpartition(".")
        path = f"{room}.bias" if room and name == "weight" else f"{weight}_bias"
        while path in self.tensors:
            path += "_"
        return path

    def graph(self) -> Graph:
        nodes = tuple(self.nodes.values())
        read = dict.fromkeys(path for node in nodes for path in node.params)
        return replace(
            self.source, nodes=nodes, output=self.output, tensors={path: self.tensors[path] for path in read}
        )


def _renaming(names: dict[str, str]) -> Callable[[Any], Any]:
    return lambda leaf: Ref(names.get(leaf.name, leaf.name)) if isinstance(leaf, Ref) else leaf


def _scales(draft: _Draft, node: Node) -> tuple[Tensor, Tensor]:
    scale, shift = (draft.tensors[param.path] for param in node.args[1:3])
    return scale, shift


def _factors(draft: _Draft, node: Node) -> None:
    """An einsum of three and more factors → products of two."""
    if node.target != EINSUM or len(node.args[1]) < 3:
        return
    now = draft.now()
    shapes = {i.name: i.shape for i in now.inputs} | {name: n.shape for name, n in now.by_name.items()}
    varying = {i.name for i in now.inputs}
    for other in now.nodes:
        varying.update(() if varying.isdisjoint(other.refs) else (other.name,))
    found = in_pairs(node, shapes, draft.tensors, varying, shapes)
    if found is not None:
        made, new = found
        for path, tensor in new.items():
            draft.put(path, tensor, next(leaf.path for leaf in node.args[1] if isinstance(leaf, Param)))
        draft.insert(node.name, made)


def _norms(draft: _Draft, node: Node) -> None:
    """A batch norm in evaluation, (x − mean)·weight/√(var + ε) + bias → scale·x + shift."""
    if node.target != "parspike.batch_norm":
        return
    weight, bias = (None if p is None else draft.tensors[p.path] for p in node.args[1:3])
    mean, var = (draft.tensors[p.path] for p in node.args[3:5])
    scale = 1 / torch.sqrt(var + node.args[5])
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    params = (draft.put(f"constants.{node.name}.{kind}", value, node.args[3].path)
              for kind, value in (("scale", scale), ("shift", shift)))  # fmt: skip
    draft.nodes[node.name] = replace(node, target="parspike.scale_shift", args=(node.args[0], *params))


def _set_synapse(draft: _Draft, node: Node, synapse: Conv | Linear, weight: Tensor, bias: Tensor) -> None:
    """Give a synapse other weights."""
    param = draft.own(node, synapse.weight, "weight")
    bias_param = Param(draft.free(param.path)) if synapse.bias is None else draft.own(node, synapse.bias, "bias")
    draft.put(param.path, weight, param.path)
    draft.put(bias_param.path, bias, param.path)
    draft.nodes[node.name] = with_weights(node, param, bias_param)


def _synapse_to_fold_into(node: Node | None) -> Conv | Linear | None:
    """The synapse, whose weight is (out, in, …), if a batch norm beside it can go into its weights; else None."""
    synapse = None if node is None else arguments(node)
    if not isinstance(synapse, (Conv, Linear)) or synapse.transposed:
        return None
    own = isinstance(synapse.weight, Param) and (synapse.bias is None or isinstance(synapse.bias, Param))
    return synapse if own else None


def _bounds(draft: _Draft, node: Node) -> None:
    """A clamp by tensors of one number → the clamp by these numbers, which is an activation."""
    if node.target not in BY_TENSORS:
        return
    if isinstance(node.args[0], Param) and "clamp" not in node.target:  # a maximum has no order
        node = replace(node, args=(node.args[1], node.args[0]))
    if not isinstance(node.args[0], Ref):
        return
    bounds: list[float | None] = []
    for place, none in zip(BY_TENSORS[node.target], (-math.inf, math.inf), strict=True):
        bound = node.args[place] if place is not None and len(node.args) > place else None
        if isinstance(bound, Ref) or (isinstance(bound, Param) and draft.tensors[bound.path].numel() != 1):
            return
        value = none if bound is None else float(draft.tensors[bound.path])
        bounds.append(None if value == none else value)
    if bounds == [None, None]:
        draft.drop(node, node.args[0].name, same=False)
        return
    made = replace(node, target="aten.clamp.default", args=(node.args[0], *bounds), role=Role.NEURON, reason="")
    draft.nodes[node.name] = made


def _merge_backward(draft: _Draft, node: Node) -> None:
    if node.target != "parspike.scale_shift" or not isinstance(node.args[0], Ref):
        return
    before = draft.nodes.get(node.args[0].name)
    synapse = _synapse_to_fold_into(before)
    if before is None or draft.only_reader(before.name) is None or synapse is None:
        return
    if isinstance(synapse, Linear) and len(before.shape) != 2:
        return
    scale, shift = _scales(draft, node)
    weight = draft.tensors[synapse.weight.path]
    bias = torch.zeros_like(shift) if synapse.bias is None else draft.tensors[synapse.bias.path]
    _set_synapse(draft, before, synapse, weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias * scale + shift)
    draft.drop(node, before.name)


def _merge_forward(draft: _Draft, node: Node) -> None:
    """Fold into the next convolution without padding, or linear layer, directly or behind an average pool."""
    if node.target != "parspike.scale_shift" or not isinstance(node.args[0], Ref):
        return
    path: list[Node] = []
    reader = draft.only_reader(node.name)
    while reader is not None and reader.target in KEEPS_CHANNELS:
        if reader.target == "aten.mean.dim" and 1 in [d % len(node.shape) for d in reader.args[1]]:
            return
        if reader.target == "aten.reshape.default" and not _flattens(path[-1] if path else node, reader):
            return
        path.append(reader)
        reader = draft.only_reader(reader.name)
    synapse = _synapse_to_fold_into(reader)
    if reader is None or synapse is None:
        return
    scale, shift = map(wide, _scales(draft, node))
    weight = draft.tensors[synapse.weight.path]
    groups = 1
    if isinstance(synapse, Conv):
        padded, groups = synapse.padding == "same" or any(synapse.padding), synapse.groups
        if path or (padded and bool(shift.any())):
            return  # zero padding is put in behind the shift, so the shift cannot move past it
    else:
        if len(reader.shape) != 2 or weight.shape[1] % len(scale):
            return
        repeat = weight.shape[1] // len(scale)  # flattened maps: each channel's pixels lie side by side
        scale, shift = scale.repeat_interleave(repeat), shift.repeat_interleave(repeat)
    # Of every output the inputs that it reads, those of its group.
    scale, shift = (v.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0) for v in (scale, shift))
    bias = shift.new_zeros(len(weight))
    if bool(shift.any()):
        extra = wide(weight)
        bias = ((extra.flatten(2).sum(2) if weight.dim() > 2 else extra) * shift).sum(1)
    if synapse.bias is not None:
        bias = bias + draft.tensors[synapse.bias.path]
    _set_synapse(draft, reader, synapse, _times(weight, scale.reshape(*scale.shape, *[1] * (weight.dim() - 2))), bias)
    for between in path:
        draft.means.pop(between.name, None)  # these are now of the value before the scale and the shift
    draft.drop(node, node.args[0].name, same=False)


def _times(weight: Tensor, scale: Tensor) -> Tensor:
    """The product in the weight's type, some rows at a time: of large weights no copy in float64 is made."""
    made = torch.empty_like(weight)
    rows = max(1, AT_ONCE // max(1, weight[0].numel()))
    for start in range(0, len(weight), rows):
        made[start : start + rows] = wide(weight[start : start + rows]) * scale[start : start + rows]
    return made


def _flattens(before: Node, node: Node) -> bool:
    """Whether a reshape lays the pixels of each channel side by side and leaves the batch alone."""
    return len(node.shape) == 2 and node.shape[0] == before.shape[0]


def _written(draft: _Draft, node: Node) -> None:
    """A function written by hand → one activation. The largest that can be one is taken.

    It replaces operators that were analog, a maximum, or several activations in a row; a function that fits no rule
    stays unchanged. An operator that is linear by itself ends a function only where no other node reads a value inside
    the function.
    """
    alone = node.target in FAKE_QUANTISE or node.role is Role.ORDER
    before = (draft.nodes.get(name) for name in node.refs)
    if node.target not in POINTWISE or not (alone or any(n is not None and n.target in POINTWISE for n in before)):
        return
    for written in functions_of(draft.now(), node):
        roles = [n.role for n in written.curved]
        lacking = Role.ANALOG in roles or Role.ORDER in roles
        if written.a_single_step or not (lacking or len(roles) > 1 or written.joins):
            continue
        if (node.role is Role.SYNAPSE or not lacking) and _read_elsewhere(draft, written):
            continue
        made = _as_levels(draft, node, written) or _as_activation(draft, node, written)
        if made is None or (not lacking and not written.joins and len(made) > 1):
            continue
        if made:
            draft.insert(node.name, made)
        else:
            draft.drop(node, written.source)
        draft.prune()
        return


def _read_elsewhere(draft: _Draft, written: Written) -> bool:
    """Whether an activation inside a function is read outside it too."""
    names = {node.name for node in written.inside}
    last = written.inside[0]
    return any(
        reader.name not in names or reader.target == "output"
        for node in written.curved
        if node is not last
        for reader in draft.readers(node.name)
    )


def _as_levels(draft: _Draft, node: Node, written: Written) -> list[Node] | None:
    """scale · QCFS(x + shift) + lowest, if the function is a quantiser."""
    dtype = draft.dtype
    if dtype is None or not draft.has_one_type(written.casts | written.filled):
        return None
    channels = node.channels if written.per_channel else 1
    found = _quantiser(written, channels)
    if found is None:
        return None
    made: list[Node] = []
    at: Any = Ref(written.source)

    def then(suffix: str, operator: str, values: Tensor, neutral: float) -> None:
        nonlocal at
        if bool((values == neutral).all()):
            return
        number = (
            float(values[0])
            if len(values) == 1
            else draft.put(f"constants.{node.name}_{suffix}", node.per_channel(values), dtype)
        )
        made.append(_linear(node, suffix, f"aten.{operator}.{'Scalar' if len(values) == 1 else 'Tensor'}", at, number))
        at = Ref(made[-1].name)

    then("shift", "add", found.shift, 0)
    theta = found.v_threshold.reshape(()) if channels == 1 else node.per_channel(found.v_threshold).squeeze(0)
    threshold = draft.put(f"constants.{node.name}_threshold", theta, dtype)
    made.append(
        replace(
            node, name=f"{node.name}_levels", target="parspike.qcfs", args=(at, threshold, found.levels), kwargs={},
            role=Role.NEURON, reason="",
        )
    )  # fmt: skip
    at = Ref(made[-1].name)
    then("scale", "mul", found.scale, 1)
    then("lowest", "add", found.lowest, 0)
    return [*made[:-1], replace(made[-1], name=node.name)]


def _quantiser(written: Written, channels: int) -> Levels | None:
    """The quantiser that a function is; None if it is none, or cannot be computed on numbers."""
    if not steps(written.tree):
        return None
    if not written.per_channel:
        return _look_at(written.tree).levels
    tree, found = uncast(written.tree), []
    for i in range(0, channels, PIECE):
        part = map_tree(lambda leaf, i=i: leaf[i : i + PIECE] if isinstance(leaf, Tensor) else leaf, tree)
        levels = _levels_of(part, min(PIECE, channels - i))
        if levels is None or (found and levels.levels != found[0].levels):
            return None
        found.append(levels)
    joined = (torch.cat([getattr(f, name) for f in found]) for name in ("v_threshold", "shift", "scale", "lowest"))
    return Levels(found[0].levels, *joined)


def _levels_of(tree: Any, channels: int) -> Levels | None:
    try:
        return levels_of(lambda x: evaluate(x, tree), channels)
    except FAILURES:
        return None


@dataclass(frozen=True)
class _Seen:
    """What is known of a function; it holds in every network. turn: see `turn_of`."""

    levels: Levels | None
    clip: tuple[float, float] | None
    turn: Turn | str | None


_seen: dict[str, _Seen] = {}
"""By the function's text: the layers of a network have one activation."""


def _look_at(tree: Any) -> _Seen:
    key = repr(tree)
    if key not in _seen:
        if len(_seen) >= 1 << 10:
            _seen.clear()
        wide = uncast(tree)
        levels = _levels_of(wide, 1) if steps(tree) else None
        try:
            course = course_of(lambda x: evaluate(x, wide))
            turn = turn_of(lambda x: evaluate(x, wide), course)
        except FAILURES as error:
            course, turn = "", f"it cannot be computed on numbers: {error}"
        clip = clip_of(course, numbers(tree)) if polynomial(tree) and isinstance(course, Course) else None
        if isinstance(course, Course) and turn is None and _jumps_above_zero(course):
            turn = "it jumps just above 0"
        _seen[key] = _Seen(levels, clip, turn)
    return _seen[key]


def turn_of_function(tree: Any) -> Turn | None:
    """Where an activation written by hand (`parspike.pointwise`) turns, and its value there; None where it does not."""
    turn = _look_at(tree).turn
    return None if isinstance(turn, str) else turn


def _jumps_above_zero(course: Course) -> bool:
    """Whether the value at exactly 0, the current of a silent layer, differs from that just above 0. No threshold can
    separate the two."""
    zero, near = (int(torch.searchsorted(course.x, at, right=True)) for at in (0.0, 1e-9))
    here, above, there = (float(course.y[i]) for i in (zero - 1, zero, near))
    return above - here > max(0.5 * (there - here), 1e-9 * max(abs(here), abs(there)))


def _as_activation(draft: _Draft, node: Node, written: Written) -> list[Node] | None:
    """A clip, another activation, or the two halves of one that turns; nothing for the identity."""
    if written.per_channel or not draft.has_one_type(written.filled):
        return None
    seen, x = _look_at(written.tree), Ref(written.source)
    if seen.clip is not None and draft.has_one_type(written.casts):
        low, high = (None if math.isinf(bound) else bound for bound in seen.clip)
        clip = replace(node, target="aten.clamp.default", args=(x, low, high), kwargs={}, role=Role.NEURON, reason="")
        if low is None and high is None:
            return None if written.casts else []
        return [replace(clip, target="aten.relu.default", args=(x,)) if (low, high) == (0, None) else clip]
    if isinstance(seen.turn, str) or (seen.turn is not None and max(map(abs, seen.turn)) > FARTHEST):
        return None
    made = replace(node, target="parspike.pointwise", args=(x, written.tree), kwargs={}, role=Role.NEURON, reason="")
    return [made] if seen.turn is None else _halves(made, seen.turn)


def _monotone(draft: _Draft, node: Node) -> None:
    """An activation that is not monotone → the sum of two that are."""
    row = TABLE.get(node.target)
    if row is None or node.role is not Role.NEURON or not isinstance(node.args[0], Ref):
        return
    if row.turn is not None:
        draft.insert(node.name, _halves(node, row.turn(node.kwargs)))
    elif node.target in ("aten.prelu.default", "aten.leaky_relu.default"):
        x, slope = (*node.args, 0.01)[:2]
        exact = torch.float64
        values = draft.tensors[slope.path] if isinstance(slope, Param) else torch.tensor(float(slope), dtype=exact)
        if not bool(values.isfinite().all()):
            return  # the fit names a layer that gives NaN
        if bool((values >= 0).all()) and values.numel() == 1:
            leaky = "aten.leaky_relu.default"
            draft.nodes[node.name] = replace(node, target=leaky, args=(x, float(values)))
        else:
            like = slope.path if isinstance(slope, Param) else ""
            draft.insert(node.name, _two_relus(draft, node, values, like))


def _halves(node: Node, turn: tuple[float, float]) -> list[Node]:
    """f(x) = lowest + rising(x) + falling(−x), f falling up to where it turns and rising from there."""
    x = node.args[0]
    function = (node.target, *turn, *node.args[1:])
    mirrored, right, left = _sides(node, x)
    right = replace(right, target="parspike.rising", args=(x, *function))
    left = replace(left, target="parspike.falling", args=(Ref(mirrored.name), *function))
    both = _linear(node, "both", "aten.add.Tensor", Ref(right.name), Ref(left.name))
    return [right, mirrored, left, both, replace(_linear(node, "", "aten.add.Scalar", Ref(both.name), turn[1]))]


def _two_relus(draft: _Draft, node: Node, slope: Tensor, like: str) -> list[Node]:
    """ReLU(x) − slope·ReLU(−x), exact for any slopes of the channels."""
    mirrored, right, left = _sides(node, node.args[0])
    right = replace(right, target="aten.relu.default", args=(node.args[0],))
    left = replace(left, target="aten.relu.default", args=(Ref(mirrored.name),))
    if slope.numel() == 1:
        scaled = _linear(node, "scaled", "aten.mul.Scalar", Ref(left.name), -float(slope))
    else:
        param = draft.put(f"constants.{node.name}_slope", -slope.reshape(-1, *[1] * (len(node.shape) - 2)), like)
        scaled = _linear(node, "scaled", "aten.mul.Tensor", Ref(left.name), param)
    return [right, mirrored, left, scaled, _linear(node, "", "aten.add.Tensor", Ref(right.name), Ref(scaled.name))]


def _sides(node: Node, x: Any) -> tuple[Node, Node, Node]:
    mirrored = _linear(node, "mirrored", "aten.neg.default", x)
    right = replace(node, name=f"{node.name}_right", layer=f"{node.layer}+")
    return mirrored, right, replace(node, name=f"{node.name}_left", layer=f"{node.layer}-")


def _linear(node: Node, suffix: str, target: str, *args: Any) -> Node:
    name = f"{node.name}_{suffix}" if suffix else node.name
    return replace(node, name=name, target=target, args=args, kwargs={}, role=Role.SYNAPSE)


def _places(draft: _Draft, node: Node) -> None:
    """neuron → maxima with their places becomes neuron → maxima, and activation → places."""
    if node.target not in (*PLACES, *RANKS, *CHOICES):
        return
    nodes = list(draft.nodes.values())
    before = nodes[: nodes.index(node)]
    counted = _counted(before)
    needed = counted.intersection(node.refs)
    if not needed:
        return
    for n in reversed(before):
        if n.name in needed and n.role is not Role.NEURON:
            needed |= counted.intersection(n.refs)
    exact = _renaming({name: f"{name}_compared" for name in needed})
    made: list[Node] = []
    for n in before:
        if n.name in needed and f"{n.name}_compared" not in draft.nodes:
            copy = replace(n, name=f"{n.name}_compared", layer=n.layer + BESIDE[0])
            spiking = n.role is Role.NEURON
            made.append(replace(copy, role=Role.ANALOG, reason=COMPARED) if spiking else copy.mapped(exact))
    values = [n for n in draft.readers(node.name) if n.target == "getitem" and n.args[1] == 0]
    if node.target in PLACES:
        target, args = values_alone(node.target, node.args)
        for n in values:
            draft.nodes[n.name] = replace(n, target=target, args=args, role=TABLE[target].role, reason="")
    elif values and node.target in RANKS:
        made.append(replace(node, name=f"{node.name}_values", layer=node.layer + BESIDE[1]))
        draft.nodes |= {n.name: n.mapped(_renaming({node.name: f"{node.name}_values"})) for n in values}
    draft.insert(node.name, [*made, node.mapped(exact)])
    draft.prune()


def _counted(nodes: Sequence[Node]) -> set[str]:
    """The values that are made of what neurons send, without a synapse with weights between."""
    found: set[str] = set()
    for node in nodes:
        row = TABLE.get(node.target)
        passes = row is not None and not row.weighted and not row.weighs
        if node.role is Role.NEURON or (passes and not found.isdisjoint(node.refs)):
            found.add(node.name)
    return found


def _pool_first(draft: _Draft, node: Node) -> None:
    """neuron → max-pool becomes max-pool → neuron, where the pool is the neuron's only reader."""
    if node.role is not Role.ORDER or len(node.refs) != 1 or not isinstance(node.args[0], Ref) or node.params:
        return  # with a constant: the activation of the constant would have to go with it
    neuron = draft.nodes.get(node.args[0].name)
    if neuron is None or neuron.role is not Role.NEURON or draft.only_reader(neuron.name) is None:
        return
    if spans_channels(neuron, node) or any(draft.tensors[path].numel() != 1 for path in neuron.params):
        return  # its thresholds, or parameters of the activation itself, are not those of one neuron
    pool = replace(node, name=neuron.name, args=(neuron.args[0], *node.args[1:]))
    fire = replace(
        neuron, name=node.name, args=(Ref(pool.name), *neuron.args[1:]), shape=node.shape,
        channel_dims=node.channel_dims,
    )  # fmt: skip
    swapped = {}
    for name, n in draft.nodes.items():
        swapped[name] = pool if name == neuron.name else fire if name == node.name else n
    draft.nodes = swapped
    draft.means.pop(neuron.name, None)
