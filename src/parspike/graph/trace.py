"""A network and an example → `Graph`, with a dynamic batch, and free sizes where the network allows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from parspike.errors import InputError, TraceError
from parspike.graph.batch import with_excepted
from parspike.graph.explain import frames, user_line
from parspike.graph.export import export
from parspike.graph.forget import and_forget
from parspike.graph.free import of_one_size, with_free_sizes
from parspike.graph.ir import Graph
from parspike.graph.memory import memory_of, ran_out
from parspike.graph.quiet import outputs
from parspike.graph.read import Reader, unreadable
from parspike.graph.same import two_samples

__all__ = ["trace"]


@and_forget
def trace(
    model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor] | None = None, *, free_sizes: bool = True
) -> Graph:
    """Capture a network as a `Graph` with a dynamic batch (dimension 0 of every input).

    args, kwargs: an example batch, tensors of shape (B, …), B ≥ 1. The model is not changed. free_sizes: leave the
    other sizes of inputs free where the network allows it (see `sizes`), else all as in the example.
    Raises `InputError` for a model in train mode or with NaN or Inf in its tensors, `TraceError` where
    `torch.export` cannot follow the code or the network mixes samples of a batch, `InsufficientMemoryError`.
    """
    with memory_of("plan", "give an example of fewer or smaller samples"):
        return _traced(model, args, dict(kwargs or {}), free_sizes)


def _traced(model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor], free_sizes: bool) -> Graph:
    check_model(model)
    model = within(model)
    args, kwargs = two_samples(args), dict(zip(kwargs, two_samples(list(kwargs.values())), strict=True))
    try:
        graph, fixed = with_free_sizes(model, args, kwargs) if free_sizes else (None, ())
        if graph is None:
            reader = Reader(model, export(model, args, kwargs), args, kwargs)
            graph = of_one_size(model, reader, reader.graph(), args, kwargs)
    except TraceError as error:
        if ran_out(error):
            raise
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if (said := unreadable(tensor)) is not None:
                raise InputError(f"'{name}' {said}") from error
        # Not before tracing: a network that can be traced takes its example, so the check would be wasted.
        _check_example(model, args, kwargs)
        _check_recurrent(model, error)
        raise
    if (name := graph.unfit()) is not None:
        raise _unfit(name)
    return replace(with_excepted(model, graph, args, kwargs), fixed=fixed)


def _check_example(model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> None:
    """Raise `InputError` if the network itself fails on the example, so that the message blames the example and not
    tracing."""
    try:
        outputs(model, args, kwargs)
    except (AttributeError, NameError, ImportError):
        return  # the code's own fault, which tracing explains
    except Exception as error:
        weights = {p.dtype for p in model.parameters() if p.is_floating_point()}
        floats = {x.dtype for x in (*args, *kwargs.values()) if x.is_floating_point()}
        if len(weights) == 1 and len(floats) == 1 and weights != floats:
            given, wanted = floats.pop(), weights.pop()
            raise InputError(
                f"the example input is {given}, the network's weights are {wanted}, and it fails on this input: give "
                f"x.to({wanted}), or model.to({given})"
            ) from error
        said = (str(error).splitlines() or [type(error).__name__])[0]
        whole = {x.dtype for x in (*args, *kwargs.values()) if not x.is_floating_point()}
        if len(weights) == 1 and whole and ("same dtype" in said or "should be the same" in said):
            given = whole.pop()
            such = "torch.view_as_real(x)" if given.is_complex else "x.float() / 255 of images"
            raise InputError(
                f"the example input is {given}, the network's weights are {weights.pop()}, and it fails on this input: "
                f"give it as in training, such as {such}"
            ) from error
        given = [f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in (*args, *kwargs.values())]
        line = user_line("".join(frames(error)))
        raise InputError(
            f"{type(model).__name__} fails on the example, {', '.join(given) or 'no inputs'}"
            f"{f' at {line}' if line else ''}: {said.removesuffix(', but expected one of:')}. {_remedy(said)}"
        ) from error


def _check_recurrent(model: nn.Module, error: TraceError) -> None:
    """Raise the error with its remedy where a recurrent layer takes the batch for the steps of a sequence."""
    for name, module in model.named_modules():
        named = any(part in str(error) for part in (f"layer '{name}", "fixes the batch size"))
        if isinstance(module, nn.RNNBase) and not module.batch_first and named:
            raise TraceError(
                f"{error}. {type(module).__name__} in layer '{name}' takes sequences as (steps, batch, …): make it "
                "with batch_first=True, or transpose what it reads and returns"
            ) from error


def _remedy(said: str) -> str:
    """What to do where a network fails on its example: arguments in another form than `forward` takes them, a GPU that
    is not there, else another shape."""
    if "missing" in said and "required positional argument" in said:
        return (
            "Inputs of one call come together in a tuple, such as plan(model, (a, b)) and calibration=[(a, b), …]; a "
            "tuple as calibration is several batches of one input"
        )
    if "unexpected keyword argument" in said or "'str'" in said:
        return (
            "A dict gives the arguments of forward by name: convert a module around a network that takes one, with "
            "def forward(self, x): return self.network({'x': x})"
        )
    if any(part in said for part in ("is ambiguous", "converted to an index", "invalid combination of arguments")):
        return (
            "Inputs are batches, (B, …); a switch or a number that forward takes is none: convert a module around the "
            "network that passes it on, such as def forward(self, x): return self.network(x, flag=True)"
        )
    if "CUDA" in said or "NVIDIA" in said:
        return "Where forward moves something to a GPU by itself, let it ask its input, .to(x.device)"
    return "Inputs are batches, (B, …), B ≥ 1"


def within(model: nn.Module) -> nn.Module:
    """The network inside `DataParallel` or `DistributedDataParallel`."""
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    return within(model.module) if isinstance(model, wrappers) else model


def check_model(model: nn.Module) -> None:
    """Refuse a model that would convert wrongly without a word (train mode, NaN, Inf) or that cannot be read at all."""
    if not isinstance(model, nn.Module):
        if isinstance(model, type) and issubclass(model, nn.Module):
            raise InputError(f"{model.__name__} is the class of a network: make one first, {model.__name__}(…)")
        raise InputError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(getattr(model, "graph", None), Graph):
        raise InputError(f"this {type(model).__name__} is converted already: give the network that it was made from")
    tables: set[str] = set()
    for name, module in model.named_modules():
        _check_kind(name, module)
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            own = (*module.named_buffers(recurse=False), *module.named_parameters(recurse=False))
            tables |= {f"{name}.{key}".removeprefix(".") for key, tensor in own
                       if not isinstance(tensor, nn.Parameter)
                       or (not torch.nn.parameter.is_lazy(tensor) and tensor.numel() == 1)}  # fmt: skip
        stateful = nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd
        between = isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1
        if (isinstance(module, stateful) or between) and module.training:
            raise InputError(
                f"layer '{name}' ({type(module).__name__}) is in train mode, where its output depends on the rest of "
                "the batch or on chance: call model.eval() first, then convert"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise InputError(f"'{name}' is not initialised yet: run the model once on a batch, then convert")
        if tensor.is_meta or tensor.layout is not torch.strided:
            continue  # refused in reading, if forward reads it
        # Masks and bounds in buffers may be infinite where nothing multiplies by them, which `Graph.unfit` checks
        # later.
        if tensor.is_floating_point() and bool(tensor.isnan().any() if name in tables else ~tensor.isfinite().all()):
            raise _unfit(name)


def _check_kind(name: str, module: nn.Module) -> None:
    place = f"layer '{name}' ({type(module).__name__})" if name else f"this network ({type(module).__name__})"
    room = type(module).__module__
    # Tracing follows a part that torch.jit.trace made, and none that torch.jit.script made.
    if isinstance(module, torch.jit.ScriptModule) and (not name or isinstance(module, torch.jit.RecursiveScriptModule)):
        raise InputError(f"{place} is a TorchScript program, which has no Python code: give the network it was made of")
    if getattr(module, "spikes_already", False):
        raise InputError(
            f"{place} has spiking neurons already: run it as it is, or convert a network "
            "without spikes, such as one of method qcfs"
        )
    if room.startswith(("torch.ao.nn", "torch.nn")) and ".quantized" in room and ".qat" not in room:
        raise InputError(
            f"{place} computes with whole numbers (torch.ao.quantization): give the network of floating numbers that "
            "it was made of; parspike quantises by its time-steps itself"
        )


def _unfit(name: str) -> InputError:
    return InputError(f"'{name}' holds NaN or Inf: the network cannot be converted; check its weights")
