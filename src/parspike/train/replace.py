"""`with_qcfs`: a copy of any network with trainable QCFS in place of its activations, and nothing left out silently.

An activation is a call: `nn.ReLU`, `F.relu`, `x.relu_()` and `torch.clamp(x, min=0)` all pass through one of torch's
functions, which a `TorchFunctionMode` sees. One run on an example therefore finds every activation, with the layer
it stands in and the user's line. Where each is a module of its own, called once, the modules are replaced and the
network keeps its code. Otherwise (functions, or one module called several times) the network is wrapped, and the
wrapper puts neuron number i in the place of call number i; each use has its own threshold.
"""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from parspike.errors import InputError, OptionError
from parspike.neurons import QCFS
from parspike.neurons.percentile import MODES, rank_of, share_of
from parspike.train.activation import TrainQCFS

__all__ = ["Activations", "Rewired", "replace_activations", "with_qcfs"]

_RELU = (F.relu, F.relu6, F.leaky_relu, F.rrelu, F.prelu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus,
         F.hardswish, torch.relu, torch.prelu, torch.selu, torch.celu, torch.rrelu, Tensor.relu)  # fmt: skip
_IN_PLACE = (torch.relu_, Tensor.relu_, F.relu_, F.leaky_relu_, F.elu_, F.selu_, F.celu_, torch.selu_, torch.celu_)
_CLAMPS = (torch.clamp, Tensor.clamp, torch.clamp_min, Tensor.clamp_min, torch.clip, Tensor.clip, F.hardtanh)
_CLAMPS_IN_PLACE = (Tensor.clamp_, Tensor.clamp_min_, Tensor.clip_, F.hardtanh_)
# Not replaced: gates and signed outputs, which no staircase from 0 to θ can represent.
_KEPT = (torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh, F.hardsigmoid, F.logsigmoid, F.softsign, F.tanhshrink,
         F.softshrink, F.hardshrink, F.glu, F.sigmoid, F.tanh)  # fmt: skip
_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_ACTIVATION_MODULES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
                       nn.Mish, nn.Softplus, nn.Hardswish, nn.Hardtanh)  # fmt: skip
_POOL_MODULES = {nn.MaxPool1d: nn.AvgPool1d, nn.MaxPool2d: nn.AvgPool2d, nn.MaxPool3d: nn.AvgPool3d}


@dataclass(frozen=True)
class Use:
    """One call of an activation: its layer, what was called, where in the user's code, is the layer a module of it."""

    layer: str
    function: str
    source: str
    module: bool
    in_place: bool
    shape: tuple[int, ...]


@dataclass
class Activations:
    """What was found: `replaced` in the order of the calls, and `kept` with the reason in words. samples: of the
    example, 0 without."""

    replaced: list[Use] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    samples: int = 0

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} activations replaced"]
        lines += [f"  {use.layer}: {use.function} at {use.source or 'unknown line'}" for use in self.replaced]
        return "\n".join(lines + [f"not replaced: {text}" for text in self.kept])


def with_qcfs(
    model: nn.Module,
    levels: int = 8,
    *,
    v_threshold: float | str = 8.0,
    per_channel: bool = False,
    window: str = "inner",
    pool: str = "keep",
    example: Any = None,
    fused: bool | None = None,
) -> nn.Module:
    """A copy of the network with trainable QCFS activations; the network itself is not touched.

    levels: T̃. v_threshold: the start value, 8.0 as in Bu et al. 2022; or "max" or a percentile such as "99.9%" of
    each activation's output on `example` (for networks that are trained already). per_channel: one threshold a
    channel instead of one a layer. window: where the gradient passes, "inner" 0 ≤ z ≤ θ or "outer"
    −θ/2L ≤ z < θ + θ/2L (both were published, see `neurons.qcfs`). pool: "keep" max-pools (they convert exactly) or
    "avg". fused: see `TrainQCFS`.

    example: a batch of inputs, a tensor or a tuple. With it every activation is found, also `F.relu(x)` in the
    code; a module that is used twice gets a threshold for each use. Without it the modules are replaced, and an
    activation that is none raises `InputError` at the first forward pass, with its line.

    ReLU, ReLU6, hardtanh or clamp from 0, leaky ReLU, PReLU, (C/S)ELU, GELU, SiLU, Mish, hard-swish and softplus are
    replaced. A warning names every activation that is not (sigmoid, tanh, clamps that don't start at 0).
    The result's attribute `activations` lists both.

    >>> model = with_qcfs(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), levels=4)
    >>> model[1].v_threshold
    Parameter containing:
    tensor(8., requires_grad=True)
    """
    make = partial(TrainQCFS, levels, window=window, fused=fused)  # pyright: ignore[reportArgumentType]
    return replace_activations(
        model,
        lambda start: make(v_threshold=start),
        example=example,
        v_threshold=v_threshold,
        per_channel=per_channel,
        pool=pool,
    )


def replace_activations(
    model: nn.Module,
    make: Callable[[float | Tensor], nn.Module],
    *,
    example: Any = None,
    v_threshold: float | str = 8.0,
    per_channel: bool = False,
    pool: str = "keep",
) -> nn.Module:
    """A copy of the network with `make(start value of the threshold)` for each activation; see `with_qcfs`."""
    if pool not in ("keep", "avg"):
        raise OptionError(f"pool = {pool!r}: choose keep or avg")
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, got {model!r}"[:200])
    share = _share(v_threshold)
    if example is None and (share is not None or per_channel):
        raise OptionError("thresholds from data or per channel need example=, a batch of inputs")
    model = copy.deepcopy(model)
    if any(isinstance(m, QCFS) for m in model.modules()):
        raise InputError("the network holds QCFS activations already")
    if example is None:
        found = _modules(model)
        start: list[float | Tensor] = [float(v_threshold)] * len(found.replaced)
    else:
        found, start = _look(model, example, share, v_threshold, per_channel)
    if not found.replaced:
        remedy = f"; if they are functions in its code, {REMEDY}" if example is None else ""
        raise InputError(
            "no activation was found that can be replaced" + "".join(f"; {t}" for t in found.kept) + remedy
        )
    for text in found.kept:
        warnings.warn(f"not replaced: {text}", stacklevel=3)
    made = [make(value) for value in start]
    layers = [use.layer for use in found.replaced]
    if pool == "avg":
        _average(model)
    if all(use.module for use in found.replaced) and len(set(layers)) == len(layers):
        for layer, activation in zip(layers, made, strict=True):
            model = _put(model, layer, activation)
        if example is None:
            _watch_first_forward(model)
    else:
        model = Rewired(model, made, found.replaced, pool)
    model.activations = found  # pyright: ignore[reportArgumentType]
    return model


class Rewired(nn.Module):
    """A network whose i-th activation call is replaced by `neurons[i]`, for networks that call functions or reuse
    modules.

    The network's own parameters keep their names behind `network.`.
    """

    def __init__(
        self, network: nn.Module, neurons: Sequence[nn.Module], uses: Sequence[Use], pool: str = "keep"
    ) -> None:
        super().__init__()
        self.network, self.neurons = network, nn.ModuleList(neurons)
        self.uses, self.pool = tuple(uses), pool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        number = 0

        def answer(z: Tensor, name: str) -> Tensor:
            nonlocal number
            if number >= len(self.uses):
                raise InputError(f"activation {number + 1} ({name}) was not called on the example: {REMEDY_STATIC}")
            number += 1
            return self.neurons[number - 1](z)

        with _Replacing(answer, self.pool):
            output = self.network(*args, **kwargs)
        if number != len(self.uses):
            raise InputError(f"{number} of {len(self.uses)} activations were called: {REMEDY_STATIC}")
        return output


REMEDY_STATIC = (
    "a network that calls other activations from one input to the next cannot be converted; make its path fixed"
)


class _Replacing(TorchFunctionMode):
    """Replaces calls of activations by calls of the neurons."""

    def __init__(self, answer: Callable[[Tensor, str], Tensor], pool: str) -> None:
        super().__init__()
        self.answer, self.pool = answer, pool

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = _kind(func, args, kwargs)
        if kind == "replace":
            z = _input(args, kwargs)
            a = self.answer(z, _name(func))
            return _overwrite(z, a) if _in_place(func) else a
        if self.pool == "avg" and func in _POOLS:
            return _average_pool(func, *args, **kwargs)
        return func(*args, **kwargs)


class _Looking(TorchFunctionMode):
    """Records every activation in `found`; `layer` names the module that is being called."""

    def __init__(self, found: Callable[[Any, str, Any, Any], None]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = _kind(func, args, kwargs)
        if not kind:
            return func(*args, **kwargs)
        before = _input(args, kwargs)
        shape = tuple(before.shape)
        result = func(*args, **kwargs)
        self.found(func, kind, shape, result)
        return result


def _kind(func: Any, args: Any, kwargs: Any) -> str:
    """ "replace", a reason to keep, or "" for what is no activation."""
    if func in _RELU or func in _IN_PLACE:
        return "replace"
    if func in _CLAMPS or func in _CLAMPS_IN_PLACE:
        low, high = _bounds(func, *args, **kwargs)
        if isinstance(low, int | float) and low == 0 and not isinstance(high, Tensor):
            return "replace"
        return f"it is clipped at {low} and not at 0"
    return "a gate or a signed output, which no staircase from 0 to θ stands for" if func in _KEPT else ""


def _bounds(func: Any, z: Any, *rest: Any, **kwargs: Any) -> tuple[Any, Any]:
    low, high = ("min_val", "max_val") if "hardtanh" in _name(func) else ("min", "max")
    values = dict(zip((low, high), rest, strict=False)) | kwargs
    default = (-1.0, 1.0) if low == "min_val" else (None, None)
    return values.get(low, default[0]), values.get(high, default[1])


def _input(args: Any, kwargs: Any) -> Tensor:
    return args[0] if args else kwargs["input"]


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def _in_place(func: Any) -> bool:
    return func in _IN_PLACE or func in _CLAMPS_IN_PLACE


def _overwrite(z: Tensor, a: Tensor) -> Tensor:
    # The op table has no row for aten.copy; what an export sees must be affine.
    return z.mul_(0).add_(a) if torch.compiler.is_exporting() else z.copy_(a)


def _average_pool(
    func: Any, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor:  # fmt: skip
    if return_indices or any(d != 1 for d in (dilation if isinstance(dilation, tuple | list) else (dilation,))):
        raise OptionError(f"pool='avg': {_name(func)} with indices or dilation has no average form; use pool='keep'")
    average = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[int(_name(func)[-2])]
    return average(x, kernel_size, stride, padding, ceil_mode)


def _average(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        kind = _POOL_MODULES.get(type(module))
        if kind is None:
            continue
        if module.return_indices or module.dilation not in (1, (1, 1), (1, 1, 1)):
            raise OptionError(f"pool='avg': layer '{name}' has indices or dilation; use pool='keep'")
        _put(model, name, kind(module.kernel_size, module.stride, module.padding, module.ceil_mode))


def _share(v_threshold: float | str) -> float | None:
    """The quantile that a text asks for, None for a number."""
    if not isinstance(v_threshold, str):
        if not isinstance(v_threshold, Real) or not v_threshold > 0:
            raise OptionError(f"v_threshold = {v_threshold!r}: it must be a number above 0")
        return None
    share = share_of(v_threshold)
    if share is None:
        raise OptionError(f"v_threshold = {v_threshold!r}: give a number, {MODES}")
    return share


def _modules(model: nn.Module) -> Activations:
    """Without an example: the modules that are activations."""
    found, seen = Activations(), set()
    for name, module in model.named_modules():
        if isinstance(module, _ACTIVATION_MODULES) and id(module) not in seen:
            seen.add(id(module))
            if isinstance(module, nn.Hardtanh) and module.min_val != 0:
                found.kept.append(f"layer '{name}' ({type(module).__name__}): clipped at {module.min_val} and not at 0")
            else:
                found.replaced.append(Use(name, type(module).__name__, "", True, False, ()))
    return found


def _look(
    model: nn.Module, example: Any, share: float | None, v_threshold: float | str, per_channel: bool
) -> tuple[Activations, list[float | Tensor]]:
    """With an example: every call, and its first threshold."""
    found = Activations()
    start: list[float | Tensor] = []

    def use(func: Any, kind: str, shape: tuple[int, ...], result: Tensor) -> None:
        layer, module = stack[-1] if stack else ("", model)
        of_module = isinstance(module, _ACTIVATION_MODULES)
        if kind != "replace":
            found.kept.append(f"layer '{layer}' ({_name(func)} at {_user_line()}): {kind}")
            return
        if per_channel and len(shape) not in (2, 4, 5):
            place = f"layer '{layer}'" if layer else f"{_name(func)} at {_user_line()}"
            raise OptionError(
                f"per_channel: {place} has shape {shape}, whose channel dimension is not known: take per_channel=False"
            )
        found.replaced.append(Use(layer, _name(func), _user_line(), of_module, _in_place(func), shape))
        channels = (shape[1], *(1,) * (len(shape) - 2)) if per_channel else None
        if share is None:
            start.append(torch.full(channels, float(v_threshold)) if channels else float(v_threshold))
        else:
            rows = result.detach().float().movedim(1, 0).flatten(1) if per_channel else result.detach().float()[None]
            start.append(_quantile(rows.flatten(1), share, channels, layer))

    training = model.training
    args = tuple(example) if isinstance(example, tuple | list) else (example,)
    found.samples = len(args[0]) if args and isinstance(args[0], Tensor) and args[0].dim() else 0
    with _named_calls(model) as stack, torch.no_grad(), _Looking(use):
        model.eval()(*args)
    model.train(training)
    return found, start


def _quantile(rows: Tensor, share: float, channels: tuple[int, ...] | None, layer: str) -> float | Tensor:
    # Not torch.quantile, which refuses more than 16 million values.
    values = rows.max(1).values if share == 1 else rows.kthvalue(rank_of(share, rows.shape[1]), 1).values
    if not torch.isfinite(values).all():
        raise InputError(f"layer '{layer}' gives NaN or Inf on the example")
    largest = values.max()
    if largest <= 0:
        raise InputError(f"layer '{layer}' is silent on the example: give more inputs, or v_threshold as a number")
    values = torch.where(values > 0, values, largest)
    return float(values[0]) if channels is None else values.reshape(channels)


@contextmanager
def _named_calls(model: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """A stack of the modules that are being called, with their names."""
    stack: list[tuple[str, nn.Module]] = []
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, _, n=name: stack.append((n, m))))
        handles.append(module.register_forward_hook(lambda *_: (stack.pop(), None)[1], always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _user_line() -> str:
    own = (str(Path(torch.__file__).parent), str(Path(__file__)))
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(own) and not frame.filename.startswith("<"):
            return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}  {frame.line}"
    return "unknown line"


def _put(model: nn.Module, layer: str, module: nn.Module) -> nn.Module:
    if not layer:
        return module
    parent, _, name = layer.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
    return model


REMEDY = "give example=, a batch of inputs"


class _FirstForward(_Looking):
    """Watches one forward pass for what the modules alone did not show."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(self.complain)
        self.calls: dict[str, int] = {}
        self.inside = 0  # of a replacement, whose own arithmetic is no activation
        self.handles = []
        found: Any = model.activations
        for name in (use.layer for use in found.replaced):
            module = model.get_submodule(name)
            self.handles.append(module.register_forward_pre_hook(partial(self.enter, name)))
            self.handles.append(module.register_forward_hook(self.leave, always_call=True))

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        self.inside += 1
        self.calls[name] = self.calls.get(name, 0) + 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside -= 1

    def complain(self, func: Any, kind: str, shape: Any, result: Any) -> None:
        if self.inside:
            return
        text = f"{_name(func)} at {_user_line()}"
        if kind == "replace":
            raise InputError(f"{text} is an activation that is no module, so it was not replaced: {REMEDY}")
        warnings.warn(f"not replaced: {text}: {kind}", stacklevel=2)

    def finish(self) -> None:
        for handle in self.handles:
            handle.remove()
        if several := [name for name, number in self.calls.items() if number > 1]:
            text = f"used several times, with one threshold for all uses: {', '.join(several)}; {REMEDY}"
            warnings.warn(text, stacklevel=2)


def _start_watching(module: nn.Module, args: Any) -> None:
    if module.__dict__.get("_watch") == "once":
        module.__dict__["_watch"] = watch = _FirstForward(module)
        watch.__enter__()


def _stop_watching(module: nn.Module, args: Any, output: Any) -> None:
    watch = module.__dict__.get("_watch")
    if isinstance(watch, _FirstForward):
        watch.__exit__(None, None, None)
        module.__dict__["_watch"] = "done"
        watch.finish()


def _watch_first_forward(model: nn.Module) -> None:
    # Hooks without a reference to the model, so that a copy of the model watches the copy.
    model.__dict__["_watch"] = "once"
    model.register_forward_pre_hook(_start_watching)
    model.register_forward_hook(_stop_watching, always_call=True)
