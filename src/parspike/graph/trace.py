"""`torch.export` with a dynamic batch, and free sizes where the network allows them → `Graph`."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import logging
import operator
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from parspike.errors import InputError, TraceError
from parspike.graph import ops
from parspike.graph.ir import BATCH, Device, Graph, Input, Node, Param, Ref, Schedule, Size, Stream, leaves, walk
from parspike.graph.ops import Role
from parspike.graph.sizes import GuardWatch, conditions, other_sizes, resized, size_tree

__all__ = ["check_same", "trace", "unlogged"]

BATCH_NORMS = ("aten._native_batch_norm_legit_no_training.default", "aten.batch_norm.default")
IDENTITIES = ("aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default",
              "aten.lift_fresh_copy.default", "aten.dropout.default", "aten.feature_dropout.default",
              "aten.alpha_dropout.default", "aten.feature_alpha_dropout.default",
              "aten._assert_tensor_metadata.default")  # fmt: skip

CASTS = ("aten.to.device", "aten.to.dtype_layout", "aten.to.other", "aten.to.prim_Device")
RESHAPES = ("aten.flatten.using_ints", "aten.unflatten.int", "aten.view_as.default", "aten.reshape_as.default")
REDUCTIONS = ("aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default", "aten.amin.default")
BLANKS = {f"aten.{form}.default": kind for kind, forms in {
    "zeros": ("zeros_like", "new_zeros", "empty_like", "new_empty"), "ones": ("ones_like", "new_ones"),
    "full": ("full_like", "new_full"),
}.items() for form in forms}  # fmt: skip

TURNS = 4
"""Tracings at most to find the sizes that may be free."""
PROOFS = 3
"""Other sizes tried at most, where the network fails on the first."""

# Operators that also give the places of their maxima: what they are called where those are used.
WITH_PLACES = {
    "aten.max.dim": "aten.max.dim", "aten.min.dim": "aten.min.dim",
    **{f"aten.max_pool{d}d_with_indices.default": f"aten.max_pool{d}d_with_indices.default" for d in "23"},
    **{f"aten.adaptive_max_pool{d}d.default": f"aten.adaptive_max_pool{d}d.places" for d in "123"},
}  # fmt: skip


def trace(
    model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor] | None = None, *, free_sizes: bool = True
) -> Graph:
    """Capture a network as a `Graph` with a dynamic batch (dimension 0 of every input).

    args, kwargs: an example batch, tensors of shape (B, …), B ≥ 1. The model is not changed. free_sizes: leave the
    other sizes of inputs free where the network allows it (see `sizes`), else all as in the example.
    Raises `InputError` for a model in train mode or with NaN or Inf in its tensors, `TraceError` where
    `torch.export` cannot follow the code or the network mixes samples of a batch.
    """
    kwargs = dict(kwargs or {})
    check_model(model)
    weights = {p.dtype for p in model.parameters() if p.is_floating_point()}
    for x in (*args, *kwargs.values()):
        if isinstance(x, Tensor) and x.is_floating_point() and len(weights) == 1 and x.dtype not in weights:
            raise InputError(f"the example input is {x.dtype}, the network's weights are {weights.pop()}: convert one")
    args, kwargs = two_samples(args), dict(zip(kwargs, two_samples(list(kwargs.values())), strict=True))
    _check_example(model, args, kwargs)
    graph, fixed = _free(model, args, kwargs) if free_sizes else (None, ())
    if graph is None:
        graph = _fold(_Reader(model, _export(model, args, kwargs), args, kwargs).graph(), args, kwargs)
    if (name := graph.unfit()) is not None:
        raise _unfit(name)
    return replace(graph, fixed=fixed)


def _free(
    model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> tuple[Graph | None, tuple[str, ...]]:
    """The graph with free sizes, None where there are none; and why sizes are fixed."""
    inputs = (*args, *kwargs.values())
    fixed: dict[tuple[int, int], str] = {}
    names: list[str] = []
    try:
        # Every turn fixes a size or ends, and each costs a tracing.
        for _ in range(TURNS):
            opened = [{d for d in range(1, x.dim()) if (i, d) not in fixed} for i, x in enumerate(inputs)]
            if not any(opened):
                break
            watch = GuardWatch(model)
            with watch.watching():
                exported = _export(model, args, kwargs, opened)
            reader = _Reader(model, exported, args, kwargs)
            graph = reader.graph()
            names = [i.name for i in graph.inputs]
            found = conditions(reader.placeholders, opened, watch)
            for place, (layer, line) in found.fixed.items():
                fixed[place] = _reason(graph, layer, line) or f"{type(model).__name__}.forward"
            if not any(isinstance(dim, Size) for i in graph.inputs for dim in i.shape[1:]):
                break
            if any(isinstance(graph.inputs[i].shape[d], Size) for i, d in found.fixed):
                continue
            wide = _without_channels(graph)
            if wide is None:
                graph = replace(graph, limits=found.as_sizes(reader.symbols))
                graph = _proved(model, _fold(graph, args, kwargs), args, kwargs)
                return graph, _reasons(fixed, names, inputs)
            sizes = {symbol for symbol in wide.shape[wide.channel_dim].symbols if symbol != BATCH}
            for i, made in enumerate(graph.inputs):
                for d, dim in enumerate(made.shape):
                    if d and isinstance(dim, Size) and dim.symbols & sizes:
                        fixed[i, d] = f"the neurons of layer '{wide.layer}', whose channels run along it"
    except TraceError as error:
        return None, (f"sizes as in the example, since with free ones {error}",)
    return None, _reasons(fixed, names, inputs)


def _reason(graph: Graph, layer: str, line: str) -> str:
    source = next((n.source for n in graph.nodes if layer and n.layer == layer and n.source), "") or _user_place(line)
    return " at ".join(part for part in (f"layer '{layer}'" if layer else "", source) if part)


def _user_place(line: str) -> str:
    return "" if "torch/" in line else line.rpartition("/")[2]


def _reasons(fixed: Mapping[tuple[int, int], str], names: Sequence[str], inputs: Sequence[Tensor]) -> tuple[str, ...]:
    """One text for every cause, the dimensions that it fixes first."""
    grouped: dict[str, list[str]] = {}
    for (i, d), reason in sorted(fixed.items()):
        grouped.setdefault(reason, []).append(f"{names[i]}.{d} = {inputs[i].shape[d]}")
    return tuple(f"{', '.join(sizes)} fixed by {reason}" for reason, sizes in grouped.items())


def _without_channels(graph: Graph) -> Node | None:
    """An activation whose channels would run along a free size."""
    for node in graph.neurons:
        dim = node.shape[node.channel_dim] if node.channel_dim < len(node.shape) else 1
        if node.channel_dim and isinstance(dim, Size) and dim.symbols - {BATCH}:
            return node
    return None


def _proved(model: nn.Module, graph: Graph, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Graph:
    """The graph, if it computes on another size what the model does; else a `TraceError`."""
    unknown = next((node for node in graph.nodes if node.role is Role.UNKNOWN), None)
    if unknown is not None:
        raise TraceError(f"{unknown.target} has no rule")
    example = graph.bind(args, kwargs)
    said = "no other size meets its conditions"
    for sizes in itertools.islice(other_sizes(graph), PROOFS):
        env = {i.name: resized(example[i.name], i.shape, sizes) for i in graph.inputs}
        values = list(env.values())
        try:
            same = _same(model, graph, values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True)))
        except (RuntimeError, IndexError, ValueError) as error:
            said = f"another size fails ({(str(error).splitlines() or [''])[0]})"
            continue
        if not same:
            raise TraceError(f"its output for inputs of shape {[tuple(x.shape) for x in values]} is another")
        return graph
    raise TraceError(said)


def _same(model: nn.Module, graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> bool:
    """Whether network and graph give the same outputs, up to rounding."""
    with _quiet():
        wanted, found = _plain(model(*args, **kwargs)), graph.run(*args, **kwargs)
    return _alike(*([leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)] for tree in (wanted, found)))


def _check_example(model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> None:
    """Say of an example that the network itself does not take that this is so, before tracing blames the code."""
    try:
        with _quiet():
            model(*args, **kwargs)
    except (AttributeError, NameError, ImportError):
        return  # the code's own fault, which tracing explains
    except Exception as error:
        given = [f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in (*args, *kwargs.values())]
        line = _user_line("".join(_frames(error)))
        raise InputError(
            f"{type(model).__name__} fails on the example, {', '.join(given)}{f' at {line}' if line else ''}: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}. Inputs are batches, (B, …), B ≥ 1"
        ) from error


def check_same(model: nn.Module, graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> None:
    """Raise `TraceError` unless the graph computes what the network does, on a batch of three samples."""
    if any(node.role is Role.UNKNOWN for node in graph.nodes):
        return
    given = [torch.cat([x[:2], x[:1]]) for x in two_samples([*args, *kwargs.values()])]
    args, kwargs = given[: len(args)], dict(zip(kwargs, given[len(args) :], strict=True))
    try:
        same = _same(model, graph, args, kwargs)
    except (RuntimeError, IndexError, ValueError) as error:
        raise TraceError(
            f"{type(model).__name__} takes no batch of 3 (a shape written as a number, or computed from the batch size "
            f"with len or int): use x.shape[0] or -1 there ({(str(error).splitlines() or [''])[0]})"
        ) from error
    if not same:
        raise TraceError(
            f"the graph of {type(model).__name__} gives another output than the network on a batch of 3: a number that "
            "forward computes from the batch size or the values (len, int, .item()) was fixed in tracing; if there is "
            "none, please report it, with the network"
        )


def check_model(model: nn.Module) -> None:
    """Refuse what would make a silently wrong network: train mode, NaN and Inf."""
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(getattr(model, "graph", None), Graph):
        raise InputError(f"this {type(model).__name__} is converted already: give the network that it was made from")
    tables: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            tables |= {f"{name}.{buffer}".removeprefix(".") for buffer, _ in module.named_buffers(recurse=False)}
        stateful = nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd
        if isinstance(module, stateful) and module.training:
            raise InputError(
                f"layer '{name}' ({type(module).__name__}) is in train mode, where its output depends on the rest of "
                "the batch or on chance: call model.eval() first, then convert"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise InputError(f"'{name}' is not initialised yet: run the model once on a batch, then convert")
        # Masks and bounds in buffers may be infinite, if nothing multiplies by them: `Graph.unfit` sees to that.
        if tensor.is_floating_point() and bool(tensor.isnan().any() if name in tables else ~tensor.isfinite().all()):
            raise _unfit(name)


def _unfit(name: str) -> InputError:
    return InputError(f"'{name}' holds NaN or Inf: the network cannot be converted; check its weights")


def two_samples(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors with at least two different samples, since torch.export fixes a batch of one."""
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise InputError(f"example inputs must be tensors of shape (batch, …), got {type(tensor).__name__}")
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            raise InputError(f"an example input has shape {tuple(tensor.shape)}: it needs at least one sample, (B, …)")
    if all(tensor.shape[0] > 1 for tensor in tensors):
        return tuple(tensors)
    return tuple(torch.cat([t[:1], t[:1].flip(-1)]) if t.dim() > 1 else t[:1].repeat(2) for t in tensors)


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Without torch's own report of an operator that refuses its arguments: the error says it."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Run a network for what it computes alone: no gradients, reports or warnings, and random numbers as they were."""
    generator = torch.random.get_rng_state()
    try:
        # Compiled modules run as they are written: compiling for the fake tensors of a tracing ends the process.
        with unlogged(), warnings.catch_warnings(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.random.set_rng_state(generator)


def _export(
    model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], opened: Sequence[set[int]] | None = None
) -> Any:
    """opened: of every input, the dimensions beside the batch that may vary."""
    dims = [dict.fromkeys({0, *more}, Dim.AUTO) for more in opened or [set()] * (len(args) + len(kwargs))]
    shapes = (tuple(dims[: len(args)]), dict(zip(kwargs, dims[len(args) :], strict=True)))
    try:
        with _quiet():
            _register_outputs(model, args, kwargs)
            exported = torch.export.export(
                model, args, kwargs, dynamic_shapes=_by_parameter(model, *shapes), strict=False
            )
            # Only to be rid of in-place operators: it traces the whole network a second time.
            return _in_known_operators(exported if _pure(exported) else exported.run_decompositions({}))
    except TraceError:
        raise
    except Exception as error:
        seen = _seen(model, args, kwargs) if opened is None else ""
        raise TraceError(_explain(model, error) + seen) from error


def _in_known_operators(exported: Any) -> Any:
    """The program with operators that the table lacks written in others, where torch says how: `clip` is a `clamp`,
    `hstack` a `cat`, `mT` a `transpose`."""
    tried: set[Any] = set()
    while lacking := _lacking(exported) - tried:
        said = torch.export.default_decompositions()
        table = {operator_: said[operator_] for operator_ in lacking if operator_ in said}
        for operator_ in lacking - table.keys():
            if torch._C._dispatch_has_kernel_for_dispatch_key(operator_.name(), "CompositeImplicitAutograd"):
                table[operator_] = operator_.decompose
        tried |= lacking
        exported = exported.run_decompositions(table) if table else exported
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
        if not size and isinstance(fx.target, torch._ops.OpOverload) and not _known(fx.target):
            found.add(fx.target)
    return found


def _known(operator_: Any) -> bool:
    """Whether the reader takes an operator as it is: by a rule, by a refusal of its own, or because it is random."""
    target = _target(operator_)
    return (
        any(target in group for group in (ops.TABLE, IDENTITIES, CASTS, RESHAPES, BLANKS, WITH_PLACES, BATCH_NORMS))
        or target.split(".")[1] in ops.REFUSED
        or torch.Tag.nondeterministic_seeded in operator_.tags
    )


def _pure(exported: Any) -> bool:
    """Whether no operator of the graph writes into a tensor."""
    for fx in exported.graph.nodes:
        schema = getattr(fx.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            return False
        # Arithmetic of sizes is plain Python; anything else without a schema holds a graph of its own.
        if schema is None and fx.op == "call_function" and fx.target.__module__ not in ("_operator", "math", "torch"):
            return False
    return True


def _register_outputs(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    """Tell torch.export about the data classes that the network returns."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = pytree.tree_map(mode.from_tensor, (args, kwargs))
        try:
            output = model(*fake[0], **fake[1])
        except Exception:  # noqa: BLE001 - whatever is wrong with it, torch.export says it better
            return
    if dataclasses.is_dataclass(output) and type(output) not in pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(type(output))


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parameters = inspect.signature(model.forward).parameters
    variadic = next((n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL), None)
    if variadic is not None:
        return {variadic: args, **kwargs}
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _explain(model: nn.Module, error: Exception) -> str:
    text = str(error)
    line = _user_line(text) or _user_line("".join(_frames(error)))
    place = f" at {line}" if line else ""
    first = next((part.strip() for part in text.splitlines() if part.strip()), type(error).__name__)
    name = type(model).__name__
    if "data-dependent" in text or "GuardOnDataDependent" in text or "Could not guard" in text:
        return (
            f"{name}: the code branches on the values of a tensor{place} ({first}). A spiking network has one fixed "
            "graph: replace the branch by tensor operations, or convert the part of the model around it"
        )
    return f"{name} could not be traced{place}: {first}"


class _Watch(TorchDispatchMode):
    """Counts the operators that a network runs, by what the table says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        row = ops.TABLE.get(_target(func))
        if row is None or row.weighted or row.role is not Role.SYNAPSE:
            self.counts[func.__name__.split(".")[0] + (f" ({row.role})" if row else "")] += 1
        return func(*args, **(kwargs or {}))


def _seen(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> str:
    """What a network that cannot be traced runs all the same, as far as it comes."""
    with contextlib.suppress(Exception), _quiet(), _Watch() as watch:
        model(*args, **kwargs)
    found = ", ".join(f"{number} {name}" for name, number in watch.counts.most_common(12))
    return f". It runs: {found}" if found else ""


def _frames(error: Exception) -> Iterator[str]:
    for frame in traceback.extract_tb(error.__traceback__):
        yield f'File "{frame.filename}", line {frame.lineno}, in {frame.name}\n    {frame.line}\n'


def _user_line(stack: str) -> str:
    """The innermost line of a stack that is not torch's or parspike's own."""
    found = ""
    pattern = r'File "([^"]+)", line (\d+), in (\S+)(?:\s*\n\s+(?!File)(\S[^\n]*))?'
    for path, line, _, code in re.findall(pattern, stack):
        if f"{Path(torch.__file__).parent}" in path or f"{Path(__file__).parent}" in path or path.startswith("<"):
            continue
        found = f"{'/'.join(Path(path).parts[-2:])}:{line}" + (f"  {code.strip()}" if code else "")
    return found


def _fold(graph: Graph, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> Graph:
    """The graph, proved to run with time folded into its batch; operators that cannot are marked as analog.

    Two batches are run by themselves and as one, time outermost. An operator that gives another result on both
    together (it joins or splits along the batch) runs on the time-means. A network whose output for a sample
    changes with its place or its neighbour mixes samples, and is refused.
    """
    if any(node.role is Role.UNKNOWN for node in graph.nodes):
        return graph
    one = {name: _unlike(value[:2]) for name, value in graph.bind(args, kwargs).items()}
    two = {name: value[1:].repeat(2, *[1] * (value.dim() - 1)) for name, value in one.items()}
    both = {name: torch.cat([one[name], two[name]]) for name in one}
    streams = [Stream(env, graph.tensors, graph.sizes(env)) for env in (one, two, both)]
    varying, unfoldable = set(one), set()
    with _quiet():
        for step in Schedule.of(graph.nodes, graph.outputs).steps:
            node = step[0]
            try:
                walk(Schedule((step,)), streams)
            except (RuntimeError, IndexError, ValueError) as error:
                raise TraceError(
                    f"layer '{node.layer}', {node.target} at {node.source or 'unknown line'} takes no other batch size "
                    "than the example's (a shape written as a number, or a loop over samples): use x.shape[0] or -1 "
                    f"where the batch size stands in the code ({str(error).splitlines()[0]})"
                ) from error
            if node.name not in both or not any(ref in varying for ref in node.refs):
                continue  # made of sizes alone, so made anew for every batch
            varying.add(node.name)
            if node.batch_dim is None:
                continue
            joined = _joined(one[node.name], two[node.name], node.batch_dim)
            if node.role is not Role.ANALOG and not _alike(joined, both[node.name]):
                unfoldable.add(node.name)
            both[node.name] = joined
    _check_samples(graph.collect(one), graph.collect(two))
    nodes = [replace(n, role=Role.ANALOG, reason=ops.UNFOLDABLE) if n.name in unfoldable else n for n in graph.nodes]
    return replace(graph, nodes=tuple(nodes))


def _joined(one: Any, two: Any, dim: int) -> Any:
    if isinstance(one, Tensor):
        return torch.cat([one, two], dim) if one.dim() > dim else one
    return type(one)([_joined(a, b, dim) for a, b in zip(one, two, strict=True)])


def _alike(wanted: Any, found: Any) -> bool:
    for a, b in zip(leaves(wanted), leaves(found), strict=True):
        if a.shape != b.shape:
            return False
        if a.is_complex() and b.is_complex():
            a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return False
            continue
        size = torch.nan_to_num(a, posinf=0, neginf=0).abs().max() if a.numel() else 0
        if not torch.allclose(a, b, rtol=1e-2, atol=1e-2 * float(size), equal_nan=True):
            return False
    return True


def _unlike(x: Tensor) -> Tensor:
    """Two samples that differ, since an example's values are the user's and may all be zero."""
    if not x.is_floating_point() or not torch.equal(x[0], x[1]):
        return x
    noise = torch.randn(x[1:].shape, generator=torch.Generator().manual_seed(0)).to(x)
    return torch.cat([x[:1], x[1:] + noise])


def _check_samples(one: Any, two: Any) -> None:
    """one: outputs for two samples; two: for the second of them, twice."""
    for a, b in zip(leaves(one), leaves(two), strict=True):
        if isinstance(a, Tensor) and (a.dim() == 0 or a.shape[0] != 2 or not _alike(torch.cat([a[1:], a[1:]]), b)):
            raise TraceError(
                "the network mixes the samples of a batch (its output for one sample depends on the others, or has no "
                "batch dimension first): the first dimension of every input and output must be the batch"
            )


def _no_current(fx: Any) -> str:
    """Why an operator that is linear on real numbers is not on what this one reads or gives; "" if it is."""

    def kinds(tree: Any) -> list[torch.dtype]:
        return [value.dtype for value in leaves(tree) if isinstance(value, Tensor)]

    read, made = kinds([node.meta.get("val") for node in fx.all_input_nodes]), kinds(fx.meta.get("val"))
    if any(dtype.is_complex for dtype in read + made):
        return ops.COMPLEX
    if any(dtype.is_floating_point for dtype in read) and not any(dtype.is_floating_point for dtype in made):
        return ops.WHOLE
    return ""


class _Reader:
    """Turns one exported program into a `Graph`."""

    def __init__(self, model: nn.Module, exported: Any, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        self.model, self.exported = model, exported
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
        self.varying: set[str] = set()
        self.firsts: set[str] = set()
        self.used_layers: dict[str, int] = {}
        self.paths = {name for name, _ in model.named_modules()}

    def graph(self) -> Graph:
        output: Any = None
        written = sorted({
            *self.exported.graph_signature.buffers_to_mutate.values(),
            *self.exported.graph_signature.parameters_to_mutate.values(),
        })  # fmt: skip
        if written:
            raise TraceError(
                f"{type(self.model).__name__} writes into '{written[0]}' in forward: a spiking network keeps no state "
                "between batches; write it only in training (self.training)"
            )
        self._placeholders()
        for fx in self.exported.graph.nodes:
            if fx.op == "call_function":
                self._call(fx)
            elif fx.op == "output":
                output = self._arguments(fx.args[0])
        structure = _plain(pytree.tree_unflatten(list(output), self.exported.call_spec.out_spec))
        found = list(leaves(structure))
        if not any(isinstance(leaf, Ref) for leaf in found) or any(isinstance(leaf, (Param, Size)) for leaf in found):
            raise TraceError(
                f"{type(self.model).__name__} returns {_kinds(found)}: every output must be a tensor (B, …) that "
                "depends on the input; return the others by another method"
            )
        nodes = _live(self.nodes, structure)
        return Graph(tuple(self.inputs), nodes, structure, self._used(nodes), self.signature, self.example)

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
                    self.tensors[path] = state[path].detach()
                    self.value[fx.name] = Param(path)
                else:
                    self._input(fx)

    def _input(self, fx: Any) -> None:
        value = fx.meta.get("val")
        if not isinstance(value, Tensor):
            raise TraceError(f"input '{fx.name}' is a {type(value).__name__}: inputs must be tensors (B, …)")
        if isinstance(value.shape[0], int):
            raise TraceError(
                f"the network fixes the batch size of input '{fx.name}' at {value.shape[0]} (a shape written as a "
                "number, or a loop over samples): use x.shape[0] or -1 where the batch size stands in the code"
            )
        self.placeholders.append(fx)
        for position, dim in enumerate(value.shape):
            if isinstance(dim, int) or dim.node.expr in self.symbols:
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
        tree = size_tree(expression, self.symbols)
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
            raise TraceError(f"it computes {tree} from its sizes: not supported")
        return self._size(tree) if isinstance(tree, torch.SymInt) else tree

    def _call(self, fx: Any) -> None:
        meta = fx.meta.get("val")
        if meta is not None and free_unbacked_symbols(meta):
            place = _user_line(fx.meta.get("stack_trace") or "")
            raise TraceError(
                f"{type(self.model).__name__}: the size of {_target(fx.target)} at {place} depends on values: index by "
                "places (torch.nonzero outside forward) instead of a mask, or fill what is masked (torch.where)"
            )
        if isinstance(meta, (torch.SymFloat, torch.SymBool)):
            if fx.users:
                raise TraceError(f"it computes {meta} from its sizes: not supported")
            return
        if isinstance(meta, (torch.SymInt, int, float, bool)):
            self.value[fx.name] = self._size(meta) if isinstance(meta, torch.SymInt) else meta
            return
        target = _target(fx.target)
        args, kwargs = self._arguments(fx.args), self._arguments(fx.kwargs)
        args, kwargs = _positional(fx.target, args, kwargs)
        if target in IDENTITIES and not ("dropout" in target and args[2]):
            self.value[fx.name] = args[0] if fx.users else None
            return
        if meta is None and not fx.users:
            return
        if target == "aten.rrelu.default" and (slope := _rrelu_slope(*args[1:4])) is not None:
            target, args, kwargs = "aten.leaky_relu.default", (args[0], slope), {}
        if target in RESHAPES:
            target, args, kwargs = (
                "aten.reshape.default",
                (args[0], [self._size(dim) for dim in fx.meta["val"].shape]),
                {},
            )
        if target in CASTS:
            target, args, kwargs = "aten.to.dtype", (args[0], fx.meta["val"].dtype), {}
        if target in WITH_PLACES:
            target, args = self._largest(fx, target, args)
        if target in BLANKS:  # takes only the type and the sizes of its first argument, not its values
            target, args, kwargs = self._blank(target, args, meta)
        if target == "getitem" and self._is_first(args[0]):  # of its outputs only the first is used
            self.value[fx.name] = args[0]
            return
        if target == "getitem" and isinstance(args[0], list):  # folded
            self.value[fx.name] = args[0][operator.index(args[1])]  # pyright: ignore[reportArgumentType]
            return
        if target in BATCH_NORMS:
            target, args, kwargs = "parspike.scale_shift", (args[0], *self._batch_norm(fx.name, args)), {}
            self.firsts.add(fx.name)
        refs = [leaf.name for leaf in leaves((args, kwargs)) if isinstance(leaf, Ref)]
        sized = any(isinstance(leaf, Size) for leaf in leaves((args, kwargs)))
        random = torch.Tag.nondeterministic_seeded in getattr(fx.target, "tags", ())
        if not refs and not sized and not random:
            self._fold(fx, target, args, kwargs)
            return
        varying = [sum(isinstance(le, Ref) and le.name in self.varying for le in leaves(arg)) for arg in args]
        if any(varying) or any(name in self.varying for name in refs):
            self.varying.add(fx.name)
        role, reason = ops.judge(target, varying)
        if role not in (Role.UNKNOWN, Role.ANALOG) and any(varying) and (said := _no_current(fx)):
            role, reason = Role.ANALOG, said
        shape = meta if isinstance(meta, Tensor) else next((m for m in meta or () if isinstance(m, Tensor)), None)
        layer = self._layer(fx, target)
        node = Node(
            name=fx.name, target=target, args=args, kwargs=kwargs, role=role, layer=layer,
            source=_user_line(fx.meta.get("stack_trace") or ""),
            shape=tuple(self._size(dim) for dim in shape.shape) if shape is not None else (),
            reason=reason,
        )  # fmt: skip
        node = replace(node, channel_dim=self._channel_dim(node))
        row = ops.TABLE.get(target)
        if row is not None and row.activation is not None and role is Role.NEURON:
            activation = row.activation(node)
            if isinstance(activation, str):
                node = replace(node, role=Role.ANALOG, reason=activation)
        self.nodes.append(node)
        self.by_name[node.name] = node
        self.value[fx.name] = Ref(fx.name)

    def _largest(self, fx: Any, target: str, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        """A maximum as an operator with one output, where nobody asks for the places."""
        asked = {user.args[1] for user in fx.users if _target(user.target) == "getitem" and user.users}
        if asked != {0}:
            return WITH_PLACES[target], args
        self.firsts.add(fx.name)
        if "with_indices" in target:
            return target.replace("_with_indices", ""), args
        if target in ("aten.max.dim", "aten.min.dim"):
            return f"aten.a{target[5:8]}.default", (args[0], [args[1]], *args[2:])
        return target, args

    def _blank(self, target: str, args: tuple[Any, ...], meta: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        shape = [self._size(dim) for dim in meta.shape]
        kind = BLANKS[target]
        value = (args[2 if "new" in target else 1],) if kind == "full" else ()
        return f"aten.{kind}.default", (shape, *value), {"dtype": meta.dtype, "device": Device()}

    def _is_first(self, value: Any) -> bool:
        return isinstance(value, Ref) and value.name in self.firsts

    def _batch_norm(self, name: str, args: Any) -> tuple[Param, Param]:
        # In evaluation a batch norm is (x − mean)·weight/√(var + eps) + bias, computed once in float64.
        if isinstance(args[5], bool) and args[5]:
            raise TraceError("a batch norm uses the statistics of its batch: call model.eval() first")
        eps = args[7] if isinstance(args[5], bool) else args[6]
        weight, bias, mean, var = (self.tensors[a.path] if isinstance(a, Param) else None for a in args[1:5])
        if mean is None or var is None:
            raise TraceError("a batch norm without running statistics depends on its batch: train it with them")
        scale = 1 / torch.sqrt(var.double() + eps)
        scale = scale if weight is None else scale * weight.double()
        shift = -mean.double() * scale if bias is None else bias.double() - mean.double() * scale
        return tuple(self._constant(f"{name}.{kind}", value.to(mean.dtype))
                     for kind, value in (("scale", scale), ("shift", shift)))  # type: ignore[return-value]  # fmt: skip

    def _fold(self, fx: Any, target: str, args: Any, kwargs: Any) -> None:
        stream = Stream({}, self.tensors, {})
        node = Node(fx.name, "", args, kwargs, Role.SYNAPSE, "")
        with torch.no_grad():
            run = ops.TABLE[target].run if target in ops.TABLE else fx.target
            result = run(*stream.arguments(node)[0], **stream.arguments(node)[1])
        if isinstance(result, Tensor):
            self.value[fx.name] = self._constant(fx.name, result)
        else:  # several tensors: each taken by a getitem, folded when it comes
            self.value[fx.name] = [self._constant(f"{fx.name}_{i}", item) for i, item in enumerate(result)]

    def _constant(self, name: str, tensor: Tensor) -> Param:
        # As a module holds it, it must not be called like a method of modules: `to`, `type` …
        path = f"constants.{name}_" if hasattr(nn.Module, name) else f"constants.{name}"
        # As a file holds it: another layout is another order of sums.
        self.tensors[path] = tensor.contiguous()
        return Param(path)

    def _layer(self, fx: Any, target: str) -> str:
        stack = [path for path, _ in (fx.meta.get("nn_module_stack") or {}).values()]
        path = next((p for p in reversed(stack) if p in self.paths), "")
        kind = target.split(".")[1] if "." in target else target
        module = self.model.get_submodule(path) if path else self.model
        leaf = path and not any(True for _ in module.children())
        name = path if leaf else f"{path}.{kind}".lstrip(".")
        self.used_layers[name] = count = self.used_layers.get(name, 0) + 1
        return name if count == 1 else f"{name}@{count}"

    def _channel_dim(self, node: Node) -> int:
        dims = len(node.shape)
        if node.target in ("aten.linear.default", "aten.matmul.default", "aten.mm.default", "aten.bmm.default"):
            return max(dims - 1, 0)
        if "conv" in node.target or node.target == "parspike.scale_shift":
            return 1
        before = self._first_read(node)
        if before is None or not before.shape:
            return min(1, max(dims - 1, 0))
        if node.target == "aten.permute.default":
            order = [d % dims for d in node.args[1]]
            return order.index(before.channel_dim)
        if node.target == "aten.transpose.int":
            one, two = (d % dims for d in node.args[1:3])
            return {one: two, two: one}.get(before.channel_dim, before.channel_dim)
        dim = before.channel_dim
        if node.target in REDUCTIONS and len(node.args) > 1 and node.args[1] is not None:
            gone = [d % len(before.shape) for d in node.args[1]]
            keep = len(node.args) > 2 and node.args[2]
            return min(dim if keep else dim - sum(d < dim for d in gone), max(dims - 1, 0))
        if dims > dim and len(before.shape) > dim and before.shape[dim] == node.shape[dim]:
            return dim
        last = dims == 2 or dim == len(before.shape) - 1
        return dims - 1 if last else min(1, dims - 1)

    def _first_read(self, node: Node) -> Node | None:
        return self.by_name.get(node.refs[0]) if node.refs else None

    def _used(self, nodes: Sequence[Node]) -> dict[str, Tensor]:
        """The tensors that nodes read, copied, so that training the model later changes nothing here."""
        names = dict.fromkeys(path for node in nodes for path in node.params)
        return {name: self.tensors[name].clone() for name in names}


def _plain(tree: Any) -> Any:
    """Tuples, lists and dicts in place of named tuples and data classes, whose classes a file cannot hold."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, (Ref, Param, Size)):
        return {field.name: _plain(getattr(tree, field.name)) for field in dataclasses.fields(tree)}
    if isinstance(tree, tuple) and (names := getattr(tree, "_fields", None)) is not None:
        return {name: _plain(value) for name, value in zip(names, tree, strict=True)}
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return type(tree)([_plain(item) for item in tree]) if isinstance(tree, (tuple, list)) else tree


def _kinds(found: Sequence[Any]) -> str:
    names = {Ref: "a tensor", Param: "a parameter of its own", Size: "a size"}
    return ", ".join(names.get(type(leaf), repr(leaf)) for leaf in found) or "nothing"


def _target(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    name = str(target)
    if name in ("aten.view.default", "aten._unsafe_view.default"):
        return "aten.reshape.default"  # a view's strides hold for the traced layout alone
    return name.removesuffix(".default") if name.startswith("parspike.") else name


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
