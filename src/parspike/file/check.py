"""The checks of a file whose bytes are undamaged: fields, names, references, roles, nodes that cannot run.

Nothing in a file is believed: a forged one may hold any JSON and any tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from parspike.errors import FileError
from parspike.graph import Input, Node, Param, Ref, Role, Schedule, Size, Stream, leaves, walk
from parspike.graph.ir import BATCH
from parspike.graph.ops import ON_MEANS, TABLE
from parspike.graph.quiet import unlogged
from parspike.graph.refusals import judge
from parspike.graph.roles import weighed_by_sample
from parspike.snn import SNN

__all__ = ["check_example", "check_leaves", "check_role", "check_run", "check_symbols", "expect", "fields", "new_name"]

ONCE_ANALOG = ("aten.softshrink.default", "aten.hardshrink.default")
"""Activations that were analog in the table when older files were written, which hold no neurons for them."""


ONE_TYPE = {"aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.layer_norm.default",
            "aten.native_layer_norm.default"}  # fmt: skip
"""Operators beside those with weights that take tensors of one floating type, which torch does not always check where
tensors have no data."""


ALONG = ("aten.index_select.default", "aten.gather.default", "aten.scatter.src", "aten.scatter.value",
         "aten.scatter_add.default", "aten.scatter_reduce.two")  # fmt: skip
"""Operators of a value, a dimension of it, and places along it."""
INTO = ("aten.index.Tensor", "aten.index_put.default")
"""Operators of a value, and for each of its first dimensions the places along it, or None."""
SHAPED = ("aten.expand.default", "aten.reshape.default", "aten.unsqueeze.default", "aten.permute.default")
"""Operators that leave the numbers of a constant as they are."""


def expect(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    """The value, which must be of this type; true and false are no integers."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise FileError(f"{what} is {str(value)[:80]!r}, expected {' or '.join(k.__name__ for k in kinds)}")
    return value


def fields(value: Any, what: str, **kinds: Any) -> list[Any]:
    """The values of an object that has these keys, of these types, and no others."""
    if set(expect(value, dict, what)) != set(kinds):
        odd = set(value) ^ set(kinds)
        raise FileError(f"{what} has missing or unknown entries: {', '.join(sorted(odd))[:200]}")
    return [expect(value[key], kind, f"{what}, {key}") for key, kind in kinds.items()]


def new_name(value: Any, what: str, taken: Iterable[str]) -> str:
    """The value, which must be a short word that nothing before it in the file has as its name."""
    if not re.fullmatch(r"\w{1,200}", expect(value, str, what)) or value in taken:
        raise FileError(f"{what} has the name '{value[:80]}', which is no name or is given twice")
    return value


def check_example(example: Mapping[Any, Any], inputs: Iterable[Input]) -> None:
    """Every free size is a dimension of an input, and has a value to check the network with."""
    places = {f"{i.name}.{d}" for i in inputs for d, dim in enumerate(i.shape) if d and dim == Size(f"{i.name}.{d}")}
    if set(example) - places:
        raise FileError(f"the size '{sorted(set(example) - places)[0][:80]}' is no dimension of an input")
    if not all(expect(n, int, "a size of the example") >= 1 for n in example.values()):
        raise FileError("the example has a size below 1")


def check_symbols(place: str, tree: Any, symbols: set[str]) -> None:
    """Every size in the tree is computed from the batch and the free sizes that the file names."""
    unknown = [name for leaf in leaves(tree) if isinstance(leaf, Size) for name in leaf.symbols - symbols]
    if unknown:
        raise FileError(f"{place} depends on the size '{unknown[0][:80]}', which is not in the example")


def check_leaves(place: str, tree: Any, known: set[str], tensors: Mapping[str, Tensor]) -> None:
    """The tree reads only values of earlier nodes, and tensors that the file holds."""
    for leaf in leaves(tree):
        if isinstance(leaf, Ref) and leaf.name not in known:
            raise FileError(f"{place} reads '{leaf.name[:80]}', which no earlier node gives")
        if isinstance(leaf, Param) and leaf.path not in tensors:
            raise FileError(f"{place} reads the tensor '{leaf.path[:80]}', which is not in the file")


def check_role(node: Node, varying: set[str], reached: set[str]) -> None:
    """The role in the file must be what the table says, as if the network had just been traced.

    varying, reached: names of the values that depend on the network's input, and on its spikes.
    """
    if any(isinstance(leaf, Ref) for leaf in leaves(node.kwargs)):  # the table judges positional arguments
        raise FileError(f"node '{node.name}' takes a value of the network by keyword")
    changes = [sum(isinstance(leaf, Ref) and leaf.name in varying for leaf in leaves(arg)) for arg in node.args]
    role, reason = judge(node.target, changes)
    if node.reason in ON_MEANS and node.role is Role.ANALOG and role is not Role.UNKNOWN:
        return  # only tracing finds these reasons, and on the means over time the network's own operator runs
    describe = TABLE[node.target].activation
    if role is Role.NEURON and describe is not None and isinstance(answer := describe(node), str):
        role, reason = Role.ANALOG, answer
    if weighed_by_sample(node, reached):
        return
    if node.target in ONCE_ANALOG and node.role is Role.ANALOG:
        return
    if role is not node.role or role is Role.UNKNOWN:
        said = f"{role}, {reason}" if reason else role
        raise FileError(f"node '{node.name}' ({node.target}) has the role {node.role}, the table says {said}")


def _check_types(node: Node, stream: Stream) -> None:
    if node.target not in ONE_TYPE and not TABLE[node.target].weighted:
        return
    read = [leaf for leaf in leaves(stream.arguments(node)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    # A transposed convolution adds a bias of any type.
    types = dict.fromkeys(tensor.dtype for tensor in (read[:2] if "conv_transpose" in node.target else read))
    if "layer_norm" in node.target and read[0].itemsize == 2:
        types.pop(torch.float32, None)  # half precision may be scaled by float32
    if len(types) > 1:
        raise TypeError(f"it takes {' and '.join(str(dtype) for dtype in types)}, which have to be one type")


def _places(node: Node, stream: Stream) -> list[tuple[Tensor, int, int]]:
    """Tensors that are places along a dimension, with the first place and the size of it."""
    args, kwargs = stream.arguments(node)
    if kwargs:
        return []
    if node.target in ALONG:
        size = args[0].shape[args[1]] if args[0].dim() else 1
        return [(args[2], 0, size)]
    if node.target in INTO:
        return [(places, -n, n) for places, n in zip(args[1], args[0].shape, strict=False) if places is not None]
    return [(args[1], 0, args[0].shape[0])] if node.target == "aten.embedding.default" else []


def check_run(snn: SNN) -> None:
    """Run the network on two samples without data, of the example's sizes. Raises `FileError` where an operator refuses
    its arguments or gives another shape than the file states.
    """
    graph, neurons, sizes = snn.graph, snn.neurons(), {**snn.graph.example, BATCH: 2}

    def size(shape: Iterable[Any]) -> tuple[int, ...]:
        return tuple(dim(sizes) if isinstance(dim, Size) else dim for dim in shape)

    def fire(node: Node, args: tuple[Any, ...]) -> list[Tensor]:
        neuron = neurons[node.name]
        return [neuron.example(args[0])]

    # The mode that torch.export traces in, so every operator of a traced network can run in it.
    mode = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
    constants = {id(tensor): tensor for tensor in snn.tensors().values()}
    found: list[tuple[Node, Tensor, int, int]] = []
    with unlogged(), mode, torch.no_grad():
        env: dict[str, Any] = {}
        for i in graph.inputs:
            env[i.name] = torch.empty(size(i.shape), dtype=i.dtype)
        stream = Stream(env, snn.tensors(), sizes)
        for node in graph.nodes:
            try:
                _check_types(node, stream)
                walk(Schedule(((node, ()),)), [stream], dict.fromkeys(neurons, fire))
                first = next(leaf for leaf in leaves(env[node.name]) if isinstance(leaf, Tensor))
                for at, least, most in _places(node, stream):
                    if id(at) in constants:
                        found.append((node, constants[id(at)], least, most))
                if node.target in SHAPED and id(of := stream.arguments(node)[0][0]) in constants:
                    constants[id(first)] = constants[id(of)]
                said = size(node.shape)
            except Exception as error:  # torch may raise any exception on forged arguments
                text = (str(error).splitlines() or [""])[0][:200]
                raise FileError(f"node '{node.name}' ({node.target}) cannot run: {text}") from error
            if tuple(first.shape) != said:
                wrong = f"gives {tuple(first.shape)}, the file says {str(said)[:80]}"
                raise FileError(f"node '{node.name}' {wrong}")
        try:
            graph.collect(env, sizes)
        except ArithmeticError as error:
            raise FileError(f"the output holds a size that cannot be computed: {error}") from error
        for name in graph.outputs:
            if name not in graph.constant and (env[name].dim() == 0 or env[name].shape[0] != 2):
                raise FileError(f"the output '{name}' has no batch dimension")
    for node, places, least, most in found:  # torch compares them only where tensors have data
        if places.dtype is not torch.bool and not bool(((places >= least) & (places < most)).all()):
            raise FileError(f"node '{node.name}' takes a value from a place that is not among {most}")
