"""`torch.export` of a network, in operators that the table has."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, _trace
from torch.utils import _pytree as pytree

from parspike.errors import TraceError
from parspike.graph.explain import asks_values, explain, keeps_state, seen
from parspike.graph.forget import let_go
from parspike.graph.kept import Kept
from parspike.graph.python import ASKED, Flags, left_to_torch, observe_nothing, sizes_kept, without_branches
from parspike.graph.quiet import outputs, quiet
from parspike.graph.read import known
from parspike.graph.recurrent import unroll
from parspike.graph.writes import pure, without_writes

__all__ = ["export"]


ITEMS = torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default


def export(
    model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], opened: Sequence[set[int]] | None = None
) -> Any:
    """opened: of every input, the dimensions beside the batch that may vary."""
    dims = [dict.fromkeys({0, *more}, Dim.AUTO) for more in opened or [set()] * (len(args) + len(kwargs))]
    shapes = (tuple(dims[: len(args)]), dict(zip(kwargs, dims[len(args) :], strict=True)))
    try:
        # torch remembers what operators give for which sizes. With free sizes it hardly ever asks for it again, and
        # keeping it is a quarter of the time that a small network takes.
        uncached = config.patch(fake_tensor_cache_enabled=False)
        with quiet(), _without_dumps(), _shapes_at_once(), uncached, Kept(model) as kept, without_branches():
            kept.copy_constants()
            _name_keywords(model, kwargs)
            observe_nothing(model)
            exported, asked = _exported(model, args, kwargs, _by_parameter(model, *shapes), kept.constants)
            exported = _in_known_operators(exported)
            exported.graph_module.meta[ASKED] = asked
            left_to_torch(exported)
            let_go(exported)
            return exported
    except TraceError as error:
        let_go(error)
        raise
    except Exception as error:
        let_go(error)
        runs = seen(model, args, kwargs) if opened is None else ""
        raise TraceError(explain(model, error) + runs) from error


def _exported(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: dict[str, Tensor],
    shapes: Any,
    constants: Sequence[tuple[str, Tensor]],
) -> tuple[Any, set[str]]:
    """The program, and the network's own tensors whose numbers its code asked for."""
    try:
        exported = _as_it_is(model, args, kwargs, shapes)
        if not any(exported.graph.find_nodes(op="call_function", target=asks) for asks in ITEMS):
            return exported, set()
        let_go(exported)
    except Exception as error:
        if not asks_values(error):
            raise
        let_go(error)
        # Outside of this block, so that an error of the second trace is not one that came of the first.
    with Flags(model, constants) as flags:
        exported = _as_it_is(model, args, kwargs, shapes)
    if own := flags.asked & {name for name, _ in constants}:
        # torch.export refuses what is written into, and says nothing of a name that is given to another tensor.
        changes: list[str] = []
        outputs(model, args, kwargs, changes)
        for name in own:
            if any(name == change or name.startswith(f"{change}.") for change in changes):
                raise TraceError(keeps_state(model, name, "asks for its numbers"))
    return exported, flags.asked


def _as_it_is(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], shapes: Any) -> Any:
    with sizes_kept(model) as changed:
        try:
            return _with_outputs_known(model, args, kwargs, shapes)
        except TraceError:
            raise
        except Exception:
            if not changed:
                raise
    # Code may ask for Python's own numbers: f"{len(x):d}".
    return _with_outputs_known(model, args, kwargs, shapes)


def _with_outputs_known(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], shapes: Any) -> Any:
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception:
        if not _register_outputs(model, args, kwargs):
            raise
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def _without_dumps() -> Iterator[None]:
    """Suppress the graph that torch.export prints when tracing fails, since the error names the place already."""
    room: Any = _trace
    room.print = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del room.print


@contextlib.contextmanager
def _shapes_at_once() -> Iterator[None]:
    """Give torch the shape of batch norms and of a few activations, which is their input's: with free sizes it computes
    them on shapes step by step, by all their sums and products, half of the time that a network of many takes."""
    aten, table = torch.ops.aten, getattr(fake_impls, "get_fast_op_impls", dict)()
    mine: dict[Any, Any] = dict.fromkeys(
        (aten._prelu_kernel.default, aten.leaky_relu.default, aten.relu.default), _shaped
    )
    mine[aten._native_batch_norm_legit_no_training.default] = _normed
    new = {operator_: made for operator_, made in mine.items() if operator_ not in table}
    try:
        table.update(new)
        yield
    finally:
        for operator_ in new:
            table.pop(operator_, None)


def _shaped(mode: FakeTensorMode, x: Tensor, *others: Any, **options: Any) -> Tensor:
    with mode:
        return torch.empty_like(x)


def _normed(mode: FakeTensorMode, x: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    with mode:  # in evaluation nothing is kept of the statistics
        none = torch.empty(0, dtype=x.dtype, device=x.device)
        return torch.empty_like(x), none, torch.empty_like(none)


def _in_known_operators(exported: Any) -> Any:
    """Remove in-place operators, and replace operators that the table lacks by torch's decompositions into others:
    `clip` is a `clamp`, `hstack` a `cat`, `mT` a `transpose`. Each decomposition traces the whole network again."""
    tried: set[Any] = set()
    unroll(exported)
    writes = not (pure(exported) or without_writes(exported))
    while (lacking := _lacking(exported) - tried) or writes:
        said = torch.export.default_decompositions()
        table = {operator_: said[operator_] for operator_ in lacking if operator_ in said}
        for operator_ in lacking - table.keys():
            if torch._C._dispatch_has_kernel_for_dispatch_key(operator_.name(), "CompositeImplicitAutograd"):
                table[operator_] = operator_.decompose
        tried |= lacking
        # Tracing the conditions too, in which min(64, n) is a branch, would add others, n < 64 beside n ≤ 64.
        exported._guards_code = []
        exported = exported.run_decompositions(table) if table or writes else exported
        unroll(exported)  # those inside of torch.autocast, whose part of the program was a graph of its own
        writes = False
    return exported


def _lacking(exported: Any) -> set[Any]:
    """Operators on what depends on the inputs that the reader does not know."""
    varying = set(exported.graph_signature.user_inputs)
    found = set()
    for fx in exported.graph.nodes:
        if fx.op != "call_function" or not any(node.name in varying for node in fx.all_input_nodes):
            continue  # what depends on weights alone is computed once, by the operator itself
        varying.add(fx.name)
        size = isinstance(fx.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))
        # Decomposition replaces an in-place operator by its functional form, also if the table lacks it.
        its_own = isinstance(fx.target, torch._ops.OpOverload) and not fx.target._schema.is_mutable
        if not size and its_own and not known(fx.target):
            found.add(fx.target)
    return found


def _register_outputs(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> bool:
    """Register the data class that the network returns with torch.export. Returns whether there was a new one."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Kept(model):
        fake = pytree.tree_map(mode.from_tensor, (args, kwargs))
        try:
            output = model(*fake[0], **fake[1])
        except Exception:  # noqa: BLE001 - torch.export reports the same error with its place
            return False
    unknown = dataclasses.is_dataclass(output) and type(output) not in pytree.SUPPORTED_NODES
    if unknown:
        torch.export.register_dataclass(type(output))
    return unknown


def _name_keywords(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Give a forward that takes **kwargs their names, which torch.export asks for: until the state is put back."""
    signature, forward = inspect.signature(model.forward), model.forward
    parameters = signature.parameters.values()
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    new = [name for name in kwargs if name not in {p.name for p in named}]
    if len(named) == len(parameters) or not new:
        return

    @functools.wraps(forward)
    def by_name(*args: Any, **given: Any) -> Any:
        return forward(*args, **given)

    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in new]
    vars(by_name)["__signature__"] = signature.replace(parameters=[*named, *more])
    vars(model)["forward"] = by_name


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parameters = inspect.signature(model.forward).parameters
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = args[len(names) :]
    variadic = {n: rest for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL and rest}
    return {**dict(zip(names, args, strict=False)), **variadic, **kwargs}
