"""One exported program → `Graph`."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from parspike.errors import InputError, TraceError
from parspike.graph import ops
from parspike.graph.explain import IN_TRAINING, keeps_state, user_line
from parspike.graph.features import with_channels
from parspike.graph.ir import BATCH, Device, Graph, Input, Node, Param, Ref, Size, Stream, leaves, map_tree
from parspike.graph.ops import Role
from parspike.graph.order import values_alone
from parspike.graph.python import ASKED
from parspike.graph.refusals import REFUSED, judge
from parspike.graph.sizes import size_tree
from parspike.graph.wide import implied_eps

__all__ = ["Reader", "UndecidedError", "known", "plain", "unreadable"]

BATCH_NORMS = ("aten._native_batch_norm_legit_no_training.default", "aten.batch_norm.default")

IDENTITIES = ("aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default",
              "aten.lift_fresh_copy.default", "aten.dropout.default", "aten.feature_dropout.default",
              "aten.alpha_dropout.default", "aten.feature_alpha_dropout.default",
              "aten._assert_tensor_metadata.default")  # fmt: skip

CASTS = ("aten.to.device", "aten.to.dtype_layout", "aten.to.other", "aten.to.prim_Device", "aten.type_as.default")

RESHAPES = ("aten.flatten.using_ints", "aten.unflatten.int", "aten.view_as.default", "aten.reshape_as.default")

RMS_NORM = "aten.rms_norm.default"

SCALAR = "aten.scalar_tensor.default"

SQUEEZES = ("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")


MADE = ("aten.zeros.default", "aten.ones.default", "aten.full.default", "aten.arange.default", "aten.arange.start",
        "aten.arange.start_step")  # fmt: skip

BLANKS = {f"aten.{form}.default": kind for kind, forms in {
    "zeros": ("zeros_like", "new_zeros", "empty_like", "new_empty"), "ones": ("ones_like", "new_ones"),
    "full": ("full_like", "new_full"),
}.items() for form in forms}  # fmt: skip

# Operators that return maxima and their indices, and their names in the table where the indices are read.
WITH_PLACES = {
    "aten.max.dim": "aten.max.dim", "aten.min.dim": "aten.min.dim",
    **{f"aten.max_pool{d}d_with_indices.default": f"aten.max_pool{d}d_with_indices.default" for d in "23"},
    **{f"aten.adaptive_max_pool{d}d.default": f"aten.adaptive_max_pool{d}d.places" for d in "123"},
}  # fmt: skip


class UndecidedError(TraceError):
    """The size of a slice is not known of sizes that were left open, or depends on values."""


class Reader:
    """Turns one exported program into a `Graph`. numbers: sizes, as torch's symbols, that are to be these
    numbers of sympy."""

    def __init__(
        self, model: nn.Module, exported: Any, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor],
        numbers: Mapping[Any, Any] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.exported = model, exported
        self.numbers = dict(numbers or {})
        self.signature = (len(args), tuple(kwargs))
        self.shapes = [x.shape for x in (*args, *kwargs.values())]
        self.placeholders: list[Any] = []
        self.example: dict[str, int] = {}
        self.tensors: dict[str, Tensor] = {}
        self.symbols: dict[Any, str] = {}
        self.value: dict[str, Any] = {}  # fx name -> Ref, Param, Size or plain value
        self.nodes: list[Node] = []
        self.by_name: dict[str, Node] = {}
        self.inputs: list[Input] = []
        self.returned: dict[str, Ref] = {}
        self.varying: set[str] = set()
        self.firsts: set[str] = set()
        self.used_layers: dict[str, int] = {}
        self.paths = {name for name, _ in model.named_modules()}
        self.limits: list[Size] = []
        mutated = exported.graph_signature
        # Tensors that forward writes into, and constants computed from them, each with the name of the first.
        self.written = {
            name: name for name in (*mutated.buffers_to_mutate.values(), *mutated.parameters_to_mutate.values())
        }

    def graph(self) -> Graph:
        output: Any = None
        self._placeholders()
        for fx in self.exported.graph.nodes:
            if fx.op == "call_function":
                self._call(fx)
            elif fx.op == "output":
                # torch.export returns an input that forward writes into before the outputs; it is no output of the
                # network.
                specs = self.exported.graph_signature.output_specs
                output = [self._output(value) for value, spec in zip(fx.args[0], specs, strict=True)
                          if spec.kind is OutputKind.USER_OUTPUT]  # fmt: skip
        structure = plain(pytree.tree_unflatten(output, self.exported.call_spec.out_spec))
        found = list(leaves(structure))
        if not any(isinstance(leaf, Ref) for leaf in found):
            raise TraceError(
                f"{type(self.model).__name__} returns {_kinds(found)}: at least one output must be a tensor (B, …) "
                "that depends on the input; return the others by another method"
            )
        structure = map_tree(lambda leaf: self._returned(leaf) if isinstance(leaf, Param) else leaf, structure)
        nodes = _live(self.nodes, structure)
        self._check_state(nodes)
        return with_channels(
            Graph(tuple(self.inputs), nodes, structure, self._used(nodes), self.signature, self.example)
        )

    def _check_state(self, nodes: Sequence[Node]) -> None:
        """Refuse a network whose output, or a branch of its code, reads a tensor that forward writes into. A count of
        calls, or an average of what was seen, that no output reads may be written: the graph leaves it out."""
        asked = sorted({*self.written.values()} & self.exported.graph_module.meta.get(ASKED, set()))
        read = sorted({self.written[path] for node in nodes for path in node.params if path in self.written})
        if not (found := [*asked, *read]):
            return
        observers = ".activation_post_process." in f".{found[0]}"
        remedy = "call model.apply(torch.ao.quantization.disable_observer) first" if observers else IN_TRAINING
        uses = "asks for its numbers" if asked else "its output reads it"
        raise TraceError(keeps_state(self.model, found[0], uses, remedy))

    def _placeholders(self) -> None:
        signature = self.exported.graph_signature
        state = {**self.exported.state_dict, **self.exported.constants}
        paths = {spec.arg.name: spec.target for spec in signature.input_specs if spec.target is not None}
        for fx in self.exported.graph.nodes:
            if fx.op == "placeholder":
                path = paths.get(fx.name)
                if path is not None and not isinstance(state[path], Tensor):
                    kind = type(state[path]).__name__
                    raise TraceError(f"{type(self.model).__name__} reads a {kind} in forward: only tensors can be read")
                if path is not None:
                    if fx.users and (said := unreadable(state[path])) is not None:
                        raise InputError(f"'{path}' {said}")
                    self.tensors[path] = state[path].detach()
                    self.value[fx.name] = Param(path)
                else:
                    self._input(fx)

    def _input(self, fx: Any) -> None:
        value = fx.meta.get("val")
        if not isinstance(value, Tensor):
            raise TraceError(f"input '{fx.name}' is a {type(value).__name__}: inputs must be tensors (B, …)")
        batch: Any = value.shape[0]
        if isinstance(batch, int) or batch.node.expr.is_Integer:
            raise TraceError(
                f"the network fixes the batch size of input '{fx.name}' at {batch} (a shape written as a "
                "number, len(x), a loop over samples, or a program that was exported for one size): use x.shape[0] or "
                "-1 where the batch size stands in the code"
            )
        self.placeholders.append(fx)
        for position, dim in enumerate(value.shape):
            if isinstance(dim, int) or dim.node.expr in self.symbols or dim.node.expr in self.numbers:
                continue
            if position == 0:
                self.symbols[dim.node.expr] = BATCH
            elif dim.node.expr.is_Symbol:  # anything else is computed from the sizes of other inputs
                self.symbols[dim.node.expr] = name = f"{fx.name}.{position}"
                self.example[name] = self.shapes[len(self.inputs)][position]
        self.value[fx.name] = Ref(fx.name)
        self.varying.add(fx.name)
        self.inputs.append(Input(fx.name, tuple(self._size(dim) for dim in value.shape), value.dtype))

    def _size(self, value: Any) -> Any:
        return value if isinstance(value, int) else self._expression(value.node.expr)

    def _expression(self, expression: Any) -> Any:
        # torch has a symbol for the batch of every input; with one for all, B // B is 1, and no batch.
        batch = [symbol for symbol, name in self.symbols.items() if name == BATCH and symbol.is_Symbol]
        one = expression.xreplace({**dict.fromkeys(batch[1:], batch[0] if batch else None), **self.numbers})
        tree = size_tree(one, self.symbols)
        return tree if isinstance(tree, int) else Size(tree)

    def _arguments(self, tree: Any) -> Any:
        if isinstance(tree, tuple):
            return tuple(self._arguments(item) for item in tree)
        if isinstance(tree, list):  # fx's immutable lists become plain ones
            return [self._arguments(item) for item in tree]
        if isinstance(tree, dict):
            return {key: self._arguments(item) for key, item in tree.items()}
        if isinstance(tree, torch.fx.Node):
            return self.value[tree.name]
        if isinstance(tree, torch.device):
            return Device()
        if isinstance(tree, (torch.SymFloat, torch.SymBool)):
            raise TraceError(f"it computes with {_kind(tree)} made of its sizes: not supported")
        return self._size(tree) if isinstance(tree, torch.SymInt) else tree

    def _output(self, value: Any) -> Any:
        meta = value.meta.get("val") if isinstance(value, torch.fx.Node) else value
        if isinstance(meta, (torch.SymFloat, torch.SymBool)):
            raise TraceError(
                f"{type(self.model).__name__} returns {_kind(meta)} made of its sizes: return the whole number that it "
                "is made of, such as x.shape[0]"
            )
        return self._arguments(value)

    def _call(self, fx: Any) -> None:
        meta = fx.meta.get("val")
        self._refuse_values(fx, meta)
        if isinstance(meta, (torch.SymFloat, torch.SymBool)):
            # What sizes alone are made of, such as math.floor(n / 2), is read from the size that comes of it.
            symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
            if not all(isinstance(user.meta.get("val"), symbols) or user.op == "output" for user in fx.users):
                line = user_line(fx.meta.get("stack_trace") or "")
                place = f" at {line}" if line else ""
                raise TraceError(f"it computes with {_kind(meta)} made of its sizes{place}: not supported")
            return
        if isinstance(meta, (torch.SymInt, int, float, bool)):
            self.value[fx.name] = self._size(meta) if isinstance(meta, torch.SymInt) else meta
            return
        target = ops.target_of(fx.target)
        args, kwargs = self._arguments(fx.args), self._arguments(fx.kwargs)
        args, kwargs = _positional(fx.target, args, kwargs)
        if target in IDENTITIES and not ("dropout" in target and args[2]):
            self.value[fx.name] = args[0] if fx.users else None
            return
        if meta is None and not fx.users:
            return
        if target == "getitem" and self._is_first(args[0]):  # of its outputs only the first is used
            self.value[fx.name] = args[0]
            return
        if target == "getitem" and isinstance(args[0], list):  # computed here, by `_compute`
            self.value[fx.name] = args[0][operator.index(args[1])]  # pyright: ignore[reportArgumentType]
            return
        if target in SQUEEZES:
            dims = self._ones(fx.args[0].meta["val"].shape, args[1:])
            if not dims:
                self.value[fx.name] = args[0]
                return
            target, args, kwargs = "aten.squeeze.dims", (args[0], dims), {}
        self._node(fx, *self._in_one_form(fx, target, args, kwargs))

    def _refuse_values(self, fx: Any, meta: Any) -> None:
        """Raise `TraceError` where a number or a size depends on what a tensor holds."""
        if meta is None or not free_unbacked_symbols(meta):
            return
        place = user_line(fx.meta.get("stack_trace") or "")
        if fx.target in (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default):
            raise TraceError(
                f"{type(self.model).__name__}: the code takes a number out of a tensor at {place}, which would be "
                "the example's for every input: compute with the tensor itself, without .item() or float()"
            )
        refused = UndecidedError if fx.target is torch.ops.aten.slice.Tensor else TraceError
        raise refused(
            f"{type(self.model).__name__}: the size of {ops.target_of(fx.target)} at {place} depends on values: "
            "index by places (torch.nonzero outside forward) instead of a mask, or use torch.where"
        )

    def _in_one_form(
        self, fx: Any, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """An operator that torch has several of, or that leaves something out, as the one that the rest knows."""
        if target == "aten.rrelu.default" and (slope := _rrelu_slope(*args[1:4])) is not None:
            return "aten.leaky_relu.default", (args[0], slope), {}
        if target == RMS_NORM and (len(args) < 4 or args[3] is None):
            # Left out, it follows from the type, and the graph also runs in others (`wide`).
            eps = implied_eps(fx.args[0].meta["val"].dtype)
            return target, (*args[:2], args[2] if len(args) > 2 else None, eps), kwargs
        if target in RESHAPES:
            return "aten.reshape.default", (args[0], [self._size(dim) for dim in fx.meta["val"].shape]), {}
        if target == "aten.expand_as.default":  # takes only the sizes of its second argument, not its values
            return "aten.expand.default", (args[0], [self._size(dim) for dim in fx.meta["val"].shape]), {}
        if target in CASTS:
            return "aten.to.dtype", (args[0], fx.meta["val"].dtype), {}
        if target in WITH_PLACES:
            return *self._largest(fx, target, args), kwargs
        if target in BLANKS:  # takes only the type and the sizes of its first argument, not its values
            return self._blank(target, args, fx.meta["val"])
        if target == SCALAR:
            return "aten.full.default", ([], args[0]), {"dtype": fx.meta["val"].dtype, "device": Device()}
        if target in MADE and kwargs.get("dtype") is None:  # left out, it is torch's default, which .to() keeps
            return target, args, {**kwargs, "dtype": fx.meta["val"].dtype}
        if target in BATCH_NORMS and not self._of_weights(args):
            self.firsts.add(fx.name)
            return "parspike.batch_norm", self._batch_norm(args, self._place(fx)), {}
        return target, args, kwargs

    def _node(self, fx: Any, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compute an operator that depends on no input; else add its node."""
        meta = fx.meta.get("val")
        refs = [leaf.name for leaf in leaves((args, kwargs)) if isinstance(leaf, Ref)]
        sized = any(isinstance(leaf, Size) for leaf in leaves((args, kwargs)))
        random = torch.Tag.nondeterministic_seeded in getattr(fx.target, "tags", ())
        if not refs and not sized and not random:
            self._compute(fx, target, args, kwargs)
            return
        varying = [sum(isinstance(le, Ref) and le.name in self.varying for le in leaves(arg)) for arg in args]
        if any(varying) or any(name in self.varying for name in refs):
            self.varying.add(fx.name)
        role, reason = judge(target, varying)
        row = ops.TABLE.get(target)
        linear = row is not None and row.role not in (Role.UNKNOWN, Role.ANALOG)  # where nothing but one value varies
        if linear and any(varying) and (said := _no_current(fx, role)):
            role, reason = Role.ANALOG, said
        shape = meta if isinstance(meta, Tensor) else next((m for m in meta or () if isinstance(m, Tensor)), None)
        layer = self._layer(fx, target)
        node = Node(
            name=fx.name, target=target, args=args, kwargs=kwargs, role=role, layer=layer,
            source=user_line(fx.meta.get("stack_trace") or ""),
            shape=tuple(self._size(dim) for dim in shape.shape) if shape is not None else (),
            reason=reason,
        )  # fmt: skip
        if row is not None and role is Role.NEURON:
            activation = ops.OF_SIZE if sized else None if row.activation is None else row.activation(node)
            if isinstance(activation, str):
                node = replace(node, role=Role.ANALOG, reason=activation)
        self.nodes.append(node)
        self.by_name[node.name] = node
        self.value[fx.name] = Ref(fx.name)

    def _ones(self, shape: Sequence[Any], asked: tuple[Any, ...]) -> list[int]:
        """The dimensions that a squeeze removes for every size of the inputs. The batch is not among them, so a batch
        of one keeps it up to the output (`batch.with_one_sample`); nor is another free size, which then must not be
        1."""
        dims = range(len(shape)) if not asked else [asked[0]] if isinstance(asked[0], int) else asked[0]
        dims = [d % len(shape) for d in dims] if len(shape) else []
        sizes = [self._size(shape[d]) for d in dims]
        self.limits.extend(Size((">", size.tree, 1)) for size in sizes
                           if isinstance(size, Size) and BATCH not in size.symbols)  # fmt: skip
        return [d for d, size in zip(dims, sizes, strict=True) if isinstance(size, int) and size == 1]

    def _largest(self, fx: Any, target: str, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        """A maximum with values and indices as an operator with the values alone, where no node reads the indices."""
        asked = {user.args[1] for user in fx.users if ops.target_of(user.target) == "getitem" and user.users}
        if asked != {0}:
            return WITH_PLACES[target], args
        self.firsts.add(fx.name)
        return values_alone(WITH_PLACES[target], args)

    def _blank(self, target: str, args: tuple[Any, ...], meta: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        shape = [self._size(dim) for dim in meta.shape]
        kind = BLANKS[target]
        value = (args[2 if "new" in target else 1],) if kind == "full" else ()
        return f"aten.{kind}.default", (shape, *value), {"dtype": meta.dtype, "device": Device()}

    def _is_first(self, value: Any) -> bool:
        return isinstance(value, Ref) and value.name in self.firsts

    def _of_weights(self, args: Any) -> bool:
        """Whether a batch norm standardises weights, as NFNet does: it is computed now, with their own statistics."""
        return not any(isinstance(leaf, Ref) for leaf in leaves(args)) and args[3] is None and args[4] is None

    def _batch_norm(self, args: Any, place: str) -> tuple[Any, ...]:
        """The input, weight, bias, mean, variance and ε of a batch norm in evaluation."""
        eps = args[7] if isinstance(args[5], bool) else args[6]
        weight, bias, mean, var = (a if isinstance(a, Param) else None for a in args[1:5])
        if mean is None or var is None:
            raise TraceError(
                f"{place} has no running statistics (track_running_stats=False), so its answer for a sample depends on "
                "the rest of the batch, in evaluation too: train it with them, or use a GroupNorm"
            )
        if isinstance(args[5], bool) and args[5]:
            raise TraceError(f"{place} uses the statistics of its batch: call model.eval() first")
        return args[0], weight, bias, mean, var, eps

    def _compute(self, fx: Any, target: str, args: Any, kwargs: Any) -> None:
        stream = Stream({}, self.tensors, {})
        node = Node(fx.name, "", args, kwargs, Role.SYNAPSE, "")
        with torch.no_grad():
            run = ops.TABLE[target].run if target in ops.TABLE else fx.target
            result = run(*stream.arguments(node)[0], **stream.arguments(node)[1])
        if isinstance(result, Tensor):
            self.value[fx.name] = self._constant(fx.name, result)
        else:  # several tensors: each is looked up when its getitem comes
            self.value[fx.name] = [self._constant(f"{fx.name}_{i}", item) for i, item in enumerate(result)]
        state = [self.written[path] for path in node.params if path in self.written]
        made = self.value[fx.name]
        self.written.update((param.path, state[0]) for param in leaves(made) if state)

    def _constant(self, name: str, tensor: Tensor) -> Param:
        # A module will hold it under this name, which therefore must be no method of modules: `to`, `type` …
        path = f"constants.{name}_" if hasattr(nn.Module, name) else f"constants.{name}"
        # Contiguous, as a file stores it, since another memory layout would sum in another order.
        self.tensors[path] = tensor.contiguous()
        return Param(path)

    def _returned(self, param: Param) -> Ref:
        """A value that depends on no input, such as the anchors of a detector, as an output: a node that makes it."""
        if param.path not in self.returned:
            layer = param.path.removeprefix("constants.")
            name = f"{layer.replace('.', '_')}_returned"
            while name in self.value:
                name += "_"
            shape = self.tensors[param.path].shape
            node = Node(name, "aten.reshape.default", (param, list(shape)), {}, Role.SYNAPSE, layer, "", tuple(shape))
            self.nodes.append(node)
            self.value[name] = self.returned[param.path] = Ref(name)
        return self.returned[param.path]

    def _layer(self, fx: Any, target: str) -> str:
        stack = [path for path, _ in (fx.meta.get("nn_module_stack") or {}).values()]
        path = next((p for p in reversed(stack) if p in self.paths), "")
        kind = target.split(".")[1] if "." in target else target
        module = self.model.get_submodule(path) if path else self.model
        leaf = path and not any(True for _ in module.children())
        name = path if leaf else f"{path}.{kind}".lstrip(".")
        self.used_layers[name] = count = self.used_layers.get(name, 0) + 1
        return name if count == 1 else f"{name}@{count}"

    def _place(self, fx: Any) -> str:
        stack = [path for path, _ in (fx.meta.get("nn_module_stack") or {}).values() if path in self.paths and path]
        return f"the batch norm in layer '{stack[-1]}'" if stack else "a batch norm"

    def _used(self, nodes: Sequence[Node]) -> dict[str, Tensor]:
        """The tensors that nodes read, copied, so that training the model later changes nothing here."""
        names = dict.fromkeys(path for node in nodes for path in node.params)
        return {name: self.tensors[name].clone() for name in names}


def unreadable(tensor: Tensor) -> str | None:
    """Why a tensor of a network cannot be read, with the remedy."""
    if tensor.is_meta:
        return (
            "is on the meta device, so it has no numbers: load the weights first "
            "(model.load_state_dict(weights, assign=True))"
        )
    if tensor.layout is not torch.strided:
        return f"is a sparse tensor ({tensor.layout}): make it dense with .to_dense()"
    return None


def _no_current(fx: Any, role: Role) -> str:
    """Why an operator that is linear, or an activation, on real numbers is not here: it reads or returns complex or
    whole numbers; "" if it is."""

    def kinds(tree: Any) -> list[torch.dtype]:
        return [value.dtype for value in leaves(tree) if isinstance(value, Tensor)]

    read, made = kinds([node.meta.get("val") for node in fx.all_input_nodes]), kinds(fx.meta.get("val"))
    if any(dtype.is_complex for dtype in read + made):
        return ops.COMPLEX
    real = role is Role.NEURON or any(dtype.is_floating_point for dtype in read)
    if real and not any(dtype.is_floating_point for dtype in made):
        return ops.WHOLE
    return ""


def plain(tree: Any) -> Any:
    """Tuples, lists and dicts in place of named tuples, shapes and data classes, whose classes a file cannot hold."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, (Ref, Param, Size)):
        return {field.name: plain(getattr(tree, field.name)) for field in dataclasses.fields(tree)}
    if isinstance(tree, tuple) and (names := getattr(tree, "_fields", None)) is not None:
        return {name: plain(value) for name, value in zip(names, tree, strict=True)}
    if isinstance(tree, torch.Size):
        return tuple(tree)
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return type(tree)([plain(item) for item in tree]) if isinstance(tree, (tuple, list)) else tree


def _kind(number: torch.SymFloat | torch.SymBool) -> str:
    return "a number with a fraction" if isinstance(number, torch.SymFloat) else "a truth value"


def _kinds(found: Sequence[Any]) -> str:
    names = {Ref: "a tensor", Param: "a constant", Size: "a size"}
    return ", ".join(names.get(type(leaf), repr(leaf)) for leaf in found) or "nothing"


def known(operator_: Any) -> bool:
    """Whether the reader needs no decomposition of an operator: it has a row or a refusal of its own, or is random."""
    target = ops.target_of(operator_)
    groups = (ops.TABLE, IDENTITIES, SQUEEZES, CASTS, RESHAPES, BLANKS, WITH_PLACES, BATCH_NORMS, (SCALAR,))
    return (
        any(target in group for group in groups)
        or target.split(".")[1] in REFUSED
        or torch.Tag.nondeterministic_seeded in operator_.tags
    )


def _rrelu_slope(lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> float | None:
    """The slope below zero in evaluation; random in training."""
    return None if training else (lower + upper) / 2


def _positional(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with every argument in its place, so that the table can judge it."""
    schema = getattr(target, "_schema", None)
    if schema is None or not kwargs:
        return args, kwargs
    places = [argument for argument in schema.arguments if not argument.kwarg_only]
    named = [number for number, argument in enumerate(places) if argument.name in kwargs]
    missing = places[len(args) : max(named, default=-1) + 1]
    filled = (*args, *(kwargs.get(argument.name, argument.default_value) for argument in missing))
    return filled, {k: v for k, v in kwargs.items() if k not in {argument.name for argument in places}}


def _live(nodes: Sequence[Node], output: Any) -> tuple[Node, ...]:
    needed = {leaf.name for leaf in leaves(output) if isinstance(leaf, Ref)}
    kept = []
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.refs)
            kept.append(node)
    return tuple(reversed(kept))
