"""Rules for operators that move, choose, join and make values: `narrow`, `flip`, `roll`, `index`, `pad`, `scatter` …"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from parspike.export.onnx_model import Model, Refused, Rule, Value, arguments_of, kind_of, table_of
from parspike.graph import Node, Param, Ref, Size
from parspike.graph.ir import BATCH
from parspike.graph.signature import named

__all__ = ["LAYOUT"]

LAST = np.iinfo(np.int64).max


# Shapes.


def _reshape(model: Model, node: Node) -> Value:
    name, pairs = model.several(node.args[0])
    return model.reshaped(name, [*node.shape, *pairs])


def _permute(model: Model, node: Node) -> Value:
    rank = model.rank(node.args[0])
    order = list(range(rank))
    if node.target == "aten.permute.default":
        order = [d % rank for d in node.args[1]]
    elif node.target == "aten.t.default":
        order.reverse()
    elif node.target.startswith("aten.movedim"):
        order = _moved_dims(rank, *node.args[1:3])
    else:
        one, two = (d % rank for d in node.args[1:3])
        order[one], order[two] = order[two], order[one]
    name, pairs = model.several(node.args[0])
    return model.moved(name, [*order, *(rank for _ in pairs)])


def _moved_dims(rank: int, source: Any, destination: Any) -> list[int]:
    """The order of dimensions after torch's movedim."""
    sources, destinations = ([d % rank for d in ([x] if isinstance(x, int) else x)] for x in (source, destination))
    rest = iter(d for d in range(rank) if d not in sources)
    of = dict(zip(destinations, sources, strict=True))
    return [of[d] if d in of else next(rest) for d in range(rank)]


def _expand(model: Model, node: Node) -> Value:
    name = model.value(node.args[0])
    read = model.shape(node.args[0])
    read = (1,) * (len(node.shape) - len(read)) + read
    # A dimension that has its size already is one that Expand leaves alone.
    target = [1 if one == other else other for one, other in zip(read, node.shape, strict=True)]
    return model.op("Expand", name, model.sizes(target, known=False))


def _copy(model: Model, node: Node) -> Value:
    """What is written over a value, in its shape and type."""
    kept, written = node.args[:2]
    name = model.alike(written)[0]
    name = model.cast(name, model.kinds[model.value(kept)])
    return model.op("Expand", name, model.sizes(node.shape, known=False))


# Cutting into parts.


def _slice(model: Model, node: Node) -> Value:
    x, dim, start, end, step = arguments_of(node, "self dim start end step")
    axis = dim % model.rank(x)
    name, _ = model.several(x)
    return model.cut(name, axis, 0 if start is None else start, LAST if end is None else end, step)


def _narrow(model: Model, node: Node) -> Value:
    x, dim, start, length = arguments_of(node, "self dim start length")
    axis = dim % model.rank(x)
    if (start({BATCH: 1}) if isinstance(start, Size) else start) < 0:
        start = _sum(start, model.shape(x)[axis])
    return model.cut(model.several(x)[0], axis, start, _sum(start, length))


def _select(model: Model, node: Node) -> Value:
    x, dim, index = arguments_of(node, "self dim index")
    return model.picked(model.several(x)[0], int(index), dim % model.rank(x))


def _pieces(model: Model, node: Node) -> Value:
    """split, chunk, tensor_split, unbind: their results one by one."""
    given = named(node)
    x, dim = given["self"], given["dim"] % model.rank(given["self"])
    name, size = model.value(x), model.shape(x)[dim]
    if node.target == "aten.unbind.int":
        return tuple(model.picked(name, place, dim) for place in range(model.length(x, dim)))
    read = [other.args[1] for other in model.graph.nodes if other.target == "getitem" and Ref(node.name) in other.args]
    numbers = range(1 + max(read, default=0))  # along the batch their number is not in the graph
    if "split_sizes" in given or isinstance(given.get("split_size"), (list, tuple)):
        lengths = given["split_sizes" if "split_sizes" in given else "split_size"]
        ends = list(itertools.accumulate(lengths, _sum, initial=0))
    elif "sections" in given:
        parts = given["sections"]
        ends = [_sum(_size("*", place, _size("//", size, parts)), _size("min", place, _size("%", size, parts)))
                for place in range(parts + 1)]  # fmt: skip
    else:
        parts = given.get("chunks")
        each = given["split_size"] if parts is None else _size("//", _sum(size, parts - 1), parts)
        ends = [_size("*", place, each) for place in (*numbers, len(numbers))]  # a slice ends where its values do
    return tuple(model.cut(name, dim, start, end) for start, end in itertools.pairwise(ends))


def _size(operation: str, *operands: int | Size) -> int | Size:
    """A size computed from others; a number where none of them depends on the input."""
    return Size((operation, *(n.tree if isinstance(n, Size) else int(n) for n in operands))).at({})


def _sum(one: int | Size, other: int | Size) -> int | Size:
    return _size("+", one, other)


def _getitem(model: Model, node: Node) -> Value:
    results = model.results(node.args[0])
    found = results[node.args[1]]
    if found is None:
        raise Refused("this result of the operator has no form in the file")
    return found


# Joining.


def _cat(model: Model, node: Node) -> Value:
    parts, dim = arguments_of(node, "tensors dim")
    # An empty vector joins with anything, in torch.
    parts = [part for part in parts if model.shape(part) != (0,)]
    return model.op("Concat", *model.alike(*parts), axis=dim % len(node.shape))


def _stack(model: Model, node: Node) -> Value:
    parts, dim = arguments_of(node, "tensors dim")
    axis = dim % len(node.shape)
    return model.op(
        "Concat", *(model.op("Unsqueeze", name, model.constant([axis])) for name in model.alike(*parts)), axis=axis
    )


def _repeat(model: Model, node: Node) -> Value:
    x, times = node.args[:2]
    name, rank = model.value(x), model.rank(x)
    if len(times) > rank:
        name = model.op("Unsqueeze", name, model.constant(list(range(len(times) - rank))))
    return model.op("Tile", name, model.sizes([1] * (rank - len(times)) + list(times), known=False))


def _repeat_interleave(model: Model, node: Node) -> Value:
    x, times, dim = arguments_of(node, "self repeats dim")
    if dim is None:
        name, size, axis = model.reshaped(model.value(x), [-1]), None, 0
        if isinstance(times, Size) or any(isinstance(n, Size) for n in model.shape(x)):
            raise Refused("it works along the batch")
        size = math.prod(model.shape(x))
    else:
        axis = dim % model.rank(x)
        name, size = model.value(x), model.length(x, axis)
    return model.picked(name, np.repeat(np.arange(size), int(times)), axis)


# Choosing places along a dimension.


def _flip(model: Model, node: Node) -> Value:
    x, dims = node.args[:2]
    axes = [d % model.rank(x) for d in dims]
    if not axes:
        return model.value(x)
    first, last, step = ([n] * len(axes) for n in (-1, np.iinfo(np.int64).min, -1))
    return model.op("Slice", model.value(x), *(model.constant(np.array(n)) for n in (first, last, axes, step)))


def _roll(model: Model, node: Node) -> Value:
    x, shifts, dims = arguments_of(node, "self shifts dims")
    shifts, dims = ([n] if isinstance(n, int) else list(n) for n in (shifts, dims))
    name, shape = model.value(x), node.shape
    if not dims:
        if any(isinstance(n, Size) for n in shape):
            raise Refused("it works along the batch")
        rolled = np.roll(np.arange(math.prod(shape)), shifts[0])
        return model.reshaped(model.picked(model.reshaped(name, [-1]), rolled, 0), shape)
    for shift, dim in zip(shifts, dims, strict=True):
        axis = dim % len(shape)
        by = int(shift) % model.length(x, axis)
        if by:
            parts = model.cut(name, axis, -by, LAST), model.cut(name, axis, 0, -by)
            name = model.op("Concat", *parts, axis=axis)
    return name


def _index_select(model: Model, node: Node) -> Value:
    x, dim, index = arguments_of(node, "self dim index")
    return model.op("Gather", model.value(x), model.value(index), axis=dim % model.rank(x))


def _gather(model: Model, node: Node) -> Value:
    x, dim, index = arguments_of(node, "self dim index")
    return model.op("GatherElements", model.value(x), model.value(index), axis=dim % model.rank(x))


def _unfold(model: Model, node: Node) -> Value:
    x, dim, size, step = arguments_of(node, "self dimension size step")
    rank, axis = model.rank(x), dim % model.rank(x)
    starts = np.arange(0, model.length(x, axis) - size + 1, step)
    name = model.picked(model.value(x), starts[:, None] + np.arange(size), axis)
    return model.moved(name, [d for d in range(rank + 1) if d != axis + 1] + [axis + 1])


def _diagonal(model: Model, node: Node) -> Value:
    x, offset, one, two = arguments_of(node, "self offset dim1 dim2")
    rank = model.rank(x)
    one, two = one % rank, two % rank
    rows, columns = model.length(x, one), model.length(x, two)
    rest = [d for d in range(rank) if d not in (one, two)]
    shape = [model.shape(x)[d] for d in rest]
    name = model.reshaped(model.moved(model.value(x), [*rest, one, two]), [*shape, rows * columns])
    places = np.arange(rows * columns).reshape(rows, columns).diagonal(offset)
    return model.picked(name, places, len(rest))


def _triangle(upper: bool) -> Rule:
    def rule(model: Model, node: Node) -> Value:
        x, diagonal = arguments_of(node, "self diagonal")
        return model.op("Trilu", model.value(x), model.constant(np.array(int(diagonal))), upper=int(upper))

    return rule


def _indexed(model: Model, node: Node, indices: Sequence[Any]) -> tuple[list[int], list[str], list[int]]:
    """Which dimensions are indexed, by which values, of which ranks."""
    places = [place for place, index in enumerate(indices) if index is not None]
    names = [model.value(indices[place]) for place in places]
    if any(model.kinds[name] == "bool" for name in names):
        raise Refused("how many values a mask chooses depends on the values")
    return places, names, [model.rank(indices[place]) for place in places]


def _coordinates(model: Model, names: list[str], ranks: list[int]) -> tuple[str, int]:
    """Indices that broadcast against each other, as one tensor whose last dimension runs along them; and their rank."""
    rank = max(ranks)
    nothing = None
    for name in names:
        zero = model.op("Mul", name, model.constant(0))
        nothing = zero if nothing is None else model.op("Add", nothing, zero)
    last = model.constant([rank])
    return model.op(
        "Concat", *(model.op("Unsqueeze", model.op("Add", name, str(nothing)), last) for name in names), axis=rank
    ), rank


def _together(places: list[int]) -> bool:
    return places == list(range(places[0], places[0] + len(places)))


def _index(model: Model, node: Node) -> Value:
    x, indices = node.args[:2]
    places, names, ranks = _indexed(model, node, indices)
    if len(names) == 1:
        return model.op("Gather", model.value(x), names[0], axis=places[0])
    rank = model.rank(x)
    rest = [d for d in range(rank) if d not in places]
    coordinates, wide = _coordinates(model, names, ranks)
    found = model.op("GatherND", model.moved(model.value(x), [*places, *rest]), coordinates)
    # torch puts the new dimensions where the indexed ones were, if these lie side by side, else first.
    before = [d for d in rest if d < places[0]] if _together(places) else []
    order = [wide + rest.index(d) for d in before] + list(range(wide))
    return model.moved(found, order + [wide + rest.index(d) for d in rest if d not in before])


def _index_put(model: Model, node: Node) -> Value:
    x, indices, written, accumulate = arguments_of(node, "self indices values accumulate")
    places, names, ranks = _indexed(model, node, indices)
    rank, wide = model.rank(x), max(ranks)
    rest = [d for d in range(rank) if d not in places]
    before = [d for d in rest if d < places[0]] if _together(places) else []
    coordinates, _ = _coordinates(model, names, ranks)
    data = model.moved(model.value(x), [*places, *rest])
    # The shape of what is chosen: the indices' own, then the rest.
    shape = model.op("Shape", model.op("GatherND", data, coordinates))
    name = model.cast(model.value(written), model.kinds[data])
    missing = wide + len(rest) - model.rank(written)
    if missing:
        name = model.op("Unsqueeze", name, model.constant(list(range(missing))))
    order = list(range(len(before), len(before) + wide)) + list(range(len(before)))
    name = model.moved(name, order + list(range(len(before) + wide, wide + len(rest))))
    name = model.op("Expand", name, shape)
    made = model.op("ScatterND", data, coordinates, name, reduction="add" if accumulate else "none")
    back = [*places, *rest]
    return model.moved(made, [back.index(d) for d in range(rank)])


def _written_over(model: Model, x: Any, name: str, axis: int, places: Sequence[int]) -> str:
    """x with other values at some places along a dimension."""
    data, size = model.value(x), model.length(x, axis)
    chosen = np.arange(size)
    chosen[np.asarray(places, np.int64)] = size + np.arange(len(places))
    joined = model.op("Concat", data, model.cast(name, model.kinds[data]), axis=axis)
    return model.picked(joined, chosen, axis)


def _slice_scatter(model: Model, node: Node) -> Value:
    x, src, dim, start, end, step = arguments_of(node, "self src dim start end step")
    axis = dim % model.rank(x)
    if model.shape(src) == model.shape(x):  # all of it, as `y[:, i]` writes along the batch
        return model.cast(model.value(src), model.kinds[model.value(x)])
    if isinstance(start, Size) or isinstance(end, Size):
        raise Refused("it works along the batch")
    places = range(model.length(x, axis))[slice(start, end, step)]
    return _written_over(model, x, model.value(src), axis, places)


def _select_scatter(model: Model, node: Node) -> Value:
    x, src, dim, index = arguments_of(node, "self src dim index")
    axis = dim % model.rank(x)
    name = model.op("Unsqueeze", model.value(src), model.constant([axis]))
    return _written_over(model, x, name, axis, [int(index) % model.length(x, axis)])


def _scatter(reduction: str) -> Rule:
    def rule(model: Model, node: Node) -> Value:
        given = named(node)
        x, dim, index = given["self"], given["dim"], given["index"]
        data, places, how = model.value(x), model.value(index), reduction
        if how == "reduce":
            kinds = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}
            if given["reduce"] not in kinds or not given["include_self"]:
                raise Refused("no rule writes this form of it")
            how = kinds[given["reduce"]]
        if "value" in given:
            src = model.op(
                "Expand", model.cast(model.value(given["value"]), model.kinds[data]), model.op("Shape", places)
            )
        else:
            # torch's source may be larger than the indices, which say how much of it is read.
            src = model.cast(model.value(given["src"]), model.kinds[data])
            shape, read = model.shape(index), model.shape(given["src"])
            for axis, (one, other) in enumerate(zip(shape, read, strict=True)):
                if one != other:
                    src = model.cut(src, axis, 0, one)
        return model.op("ScatterElements", data, places, src, axis=dim % model.rank(x), reduction=how)

    return rule


# Padding.


def _pad(model: Model, node: Node) -> Value:
    given = named(node)
    pads, value = list(given["pad" if "pad" in given else "padding"]), given.get("value", 0)
    mode = given.get("mode", "constant")
    mode = "reflect" if "reflection" in node.target else "replicate" if "replication" in node.target else mode
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    if any(isinstance(n, Size) for n in pads):
        raise Refused("how much it pads depends on the batch")
    x = given.get("self")
    rank = model.rank(x)
    before, after = [0] * rank, [0] * rank
    for place in range(len(pads) // 2):
        before[rank - 1 - place], after[rank - 1 - place] = int(pads[2 * place]), int(pads[2 * place + 1])
    name = model.value(x)
    if mode == "wrap":  # negative pads cut, and onnxruntime's own wrap does not
        for axis in range(rank):
            if before[axis] or after[axis]:
                size = model.length(x, axis)
                name = model.picked(name, np.arange(-before[axis], size + after[axis]) % size, axis)
        return name
    inputs = [name, model.constant(np.array(before + after))]
    if mode == "constant":
        inputs.append(model.cast(model.constant(value or 0), model.kinds[name]))
    return model.op("Pad", *inputs, mode=mode)


# Channels and places.


def _shuffled(model: Model, node: Node) -> Value:
    """pixel_shuffle, pixel_unshuffle, channel_shuffle: dimensions taken apart, put in another order, and joined."""
    x, factor = node.args[:2]
    shape = model.shape(x)
    name = model.value(x)
    if node.target == "aten.channel_shuffle.default":
        lead, (channels, *rest) = list(shape[:1]), shape[1:]
        apart, order = [factor, channels // factor, *rest], [1, 0, *range(2, 2 + len(rest))]
    else:
        lead, (channels, h, w) = list(shape[:-3]), shape[-3:]
        if any(isinstance(n, Size) for n in (channels, h, w)):
            raise Refused("it works along the batch")
        if node.target == "aten.pixel_shuffle.default":
            apart, order = [channels // factor**2, factor, factor, h, w], [0, 3, 1, 4, 2]
            if len(lead) == 1:
                return model.op("DepthToSpace", name, blocksize=factor, mode="CRD")
        else:
            apart, order = [channels, h // factor, factor, w // factor, factor], [0, 2, 4, 1, 3]
    name = model.reshaped(name, [*lead, *apart])
    name = model.moved(name, [*range(len(lead)), *(len(lead) + d for d in order)])
    return model.reshaped(name, node.shape)


def _im2col(model: Model, node: Node) -> Value:
    x, kernel, dilation, padding, stride = arguments_of(node, "self kernel_size dilation padding stride")
    if model.rank(x) != 4:
        raise Refused("its input has no batch")
    channels, (high, wide) = model.length(x, 1), kernel
    # Each place of the window by a kernel of its own: one 1, all others 0.
    weight = np.tile(np.eye(high * wide, dtype=np.float32).reshape(-1, 1, high, wide), (channels, 1, 1, 1))
    pads = [*padding, *padding]
    made = model.op(
        "Conv", model.value(x), model.constant(weight), kernel_shape=list(kernel), dilations=list(dilation),
        pads=pads, strides=list(stride), group=channels,
    )  # fmt: skip
    return model.reshaped(made, node.shape)


def _col2im(model: Model, node: Node) -> Value:
    x, size, kernel, dilation, padding, stride = arguments_of(
        node, "self output_size kernel_size dilation padding stride"
    )
    if model.rank(x) != 3:
        raise Refused("its input has no batch")
    ends = (model.constant([int(n) for n in size]), model.constant([int(n) for n in kernel]))
    return model.op(
        "Col2Im", model.value(x), *ends, dilations=list(dilation), pads=[*padding, *padding], strides=list(stride)
    )


# Looked up, and made.


def _embedding(model: Model, node: Node) -> Value:
    weight, indices = arguments_of(node, "weight indices")
    return model.op("Gather", model.value(weight), model.value(indices), axis=0)


def _embedding_bag(model: Model, node: Node) -> Value:
    """Sums or means of rows of a table: a row of 0 and 1 for each bag, which says what is in it, times the rows."""
    weight, indices, offsets, mode, weights, last, padding = arguments_of(
        node, "weight indices offsets mode per_sample_weights include_last_offset padding_idx"
    )
    if mode == 2:
        raise Refused("it takes the largest value of a bag")
    places, starts = (model.cast(model.value(leaf), "int") for leaf in (indices, offsets))
    one = model.constant(1)
    at = model.op("Range", model.constant(0), model.op("Squeeze", model.op("Shape", places), model.constant([0])), one)
    model.kinds[at] = "int"
    rows = model.op("Unsqueeze", starts, model.constant([1]))
    # A place belongs to the last bag that begins at or before it.
    begun = model.cast(model.op("LessOrEqual", rows, at), "float")
    later = model.cut(begun, 0, 1, LAST)
    if last:  # the last offset is where the last bag ends
        begun = model.cut(begun, 0, 0, -1)
    else:
        later = model.op("Pad", later, model.constant([0, 0, 1, 0]), model.constant(0.0))
    belongs = model.op("Sub", begun, later)
    if padding >= 0:
        kept = model.op("Not", model.op("Equal", places, model.constant(int(padding))))
        belongs = model.op("Mul", belongs, model.cast(kept, "float"))
    share = belongs
    if weights is not None:
        share = model.op("Mul", share, model.value(weights))
    made = model.op("MatMul", share, model.op("Gather", model.value(weight), places, axis=0))
    if mode == 1:
        many = model.reduced("ReduceSum", belongs, [1])
        made = model.op("Div", made, model.op("Max", many, model.constant(1.0)))
    return (made, None, None, None)


def _filled(value: float | None) -> Rule:
    def rule(model: Model, node: Node) -> Value:
        given = named(node)
        number = given["fill_value"] if value is None else value
        dtype = given["dtype"]
        if dtype is None:
            dtype = torch.get_default_dtype() if value is not None else torch.full((), number).dtype
        if isinstance(number, (Ref, Param)):
            raise Refused("no rule writes this form of it")
        kind = {"bool": bool, "int": int, "float": float}.get(kind_of(dtype))
        if kind is None:
            raise Refused("no rule writes it for complex numbers")
        return model.op("Expand", model.constant(kind(number)), model.sizes(given["size"], known=False))

    return rule


def _arange(model: Model, node: Node) -> Value:
    given = named(node)
    ends = [given.get("start", 0), given["end"], given.get("step", 1)]
    dtype = given["dtype"]
    whole = kind_of(dtype) == "int" if dtype is not None else not any(isinstance(n, float) for n in ends)
    made = [model.cast(model.value(n), "int" if whole else "float") for n in ends]
    return model.op("Range", *made)


def _rules() -> dict[str, Rule]:
    return table_of(
        ("getitem", _getitem),
        ("reshape.default squeeze.dim squeeze.dims squeeze.default unsqueeze.default", _reshape),
        ("permute.default transpose.int t.default swapaxes.default movedim.int movedim.intlist", _permute),
        ("expand.default expand_as.default broadcast_to.default", _expand), ("copy.default", _copy),
        ("slice.Tensor", _slice), ("narrow.default", _narrow), ("select.int", _select),
        ("split.Tensor split.sizes split_with_sizes.default chunk.default tensor_split.sections unsafe_split.Tensor "
         "unsafe_chunk.default unbind.int", _pieces),
        ("cat.default", _cat), ("stack.default", _stack), ("repeat.default tile.default", _repeat),
        ("repeat_interleave.self_int", _repeat_interleave), ("flip.default", _flip), ("roll.default", _roll),
        ("index_select.default", _index_select), ("gather.default", _gather), ("unfold.default", _unfold),
        ("diagonal.default", _diagonal), ("tril.default", _triangle(False)), ("triu.default", _triangle(True)),
        ("index.Tensor", _index), ("index_put.default", _index_put), ("slice_scatter.default", _slice_scatter),
        ("select_scatter.default", _select_scatter), ("scatter.src scatter.value", _scatter("none")),
        ("scatter_add.default", _scatter("add")), ("scatter_reduce.two", _scatter("reduce")),
        ("constant_pad_nd.default pad.default reflection_pad1d.default reflection_pad2d.default "
         "reflection_pad3d.default replication_pad1d.default replication_pad2d.default replication_pad3d.default",
         _pad),
        ("pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default", _shuffled),
        ("im2col.default", _im2col), ("col2im.default", _col2im), ("embedding.default", _embedding),
        ("_embedding_bag.default _embedding_bag_forward_only.default", _embedding_bag),
        ("zeros.default", _filled(0.0)), ("ones.default", _filled(1.0)), ("full.default", _filled(None)),
        ("arange.default arange.start arange.start_step", _arange),
    )  # fmt: skip


LAYOUT = _rules()
"""By the operators of the graph."""
