"""`with_qcfs`: a copy of any network with trainable QCFS in place of its activations, and nothing left out silently.

An activation is a call: `nn.ReLU`, `F.relu`, `x.relu_()` and `torch.clamp(x, min=0)` all pass through one of torch's
functions, which a `TorchFunctionMode` sees. One run on an example therefore finds every activation, with the layer
it stands in and the user's line. Where each is a module of its own, called once, the modules are replaced and the
network keeps its code. Otherwise (functions, or one module called several times) the network is wrapped, and the
wrapper puts neuron number i in the place of call number i; each use has its own threshold.
"""

from __future__ import annotations

import copy
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import isfunction, signature
from numbers import Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from parspike.errors import InputError, OptionError, ParspikeError
from parspike.neurons import QCFS
from parspike.neurons.percentile import MODES, rank_of, share_of
from parspike.train.activation import TrainQCFS

__all__ = ["Activations", "Rewired", "replace_activations", "with_qcfs"]

_RELU = (F.relu, F.relu6, F.leaky_relu, F.rrelu, F.prelu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus,
         F.hardswish, torch.relu, torch.prelu, torch.selu, torch.celu, torch.rrelu, Tensor.relu,
         Tensor.prelu)  # fmt: skip
_IN_PLACE = (torch.relu_, Tensor.relu_, F.relu_, F.leaky_relu_, F.elu_, F.selu_, F.celu_, torch.selu_, torch.celu_,
             torch.rrelu_)  # fmt: skip
_CLAMPS = (torch.clamp, Tensor.clamp, torch.clamp_min, Tensor.clamp_min, torch.clip, Tensor.clip, F.hardtanh)
_CLAMPS_IN_PLACE = (torch.clamp_, Tensor.clamp_, torch.clamp_min_, Tensor.clamp_min_, torch.clip_, Tensor.clip_,
                    F.hardtanh_)  # fmt: skip
# Not replaced: gates and signed outputs, which no staircase from 0 to θ can represent.
_KEPT = (torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh, F.hardsigmoid, F.logsigmoid, F.softsign, F.tanhshrink,
         F.softshrink, F.hardshrink, F.glu, F.sigmoid, F.tanh, torch.sigmoid_, Tensor.sigmoid_, torch.tanh_,
         Tensor.tanh_, torch.special.expit, torch.erf, Tensor.erf)  # fmt: skip
_THRESHOLDS = (F.threshold, torch.threshold)
_THRESHOLDS_IN_PLACE = (torch.threshold_,)
_LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_ACTIVATION_MODULES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
                       nn.Mish, nn.Softplus, nn.Hardswish, nn.Hardtanh, nn.Threshold)  # fmt: skip
_POOL_MODULES = {nn.MaxPool1d: nn.AvgPool1d, nn.MaxPool2d: nn.AvgPool2d, nn.MaxPool3d: nn.AvgPool3d}


@dataclass(frozen=True)
class Use:
    """One call of an activation: its layer, what was called, where in the user's code, is the layer a module of it.

    in_place: whether what reads the input later has to find the result there; without an example, whether the module
    was told to write it there.
    """

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

    example: a batch of inputs, a tensor, a tuple, or a dict by name. With it every activation is found, also
    `F.relu(x)` in the code; a module that is used twice gets a threshold for each use. Without it the modules are
    replaced, and an activation that is none raises `InputError` at the first forward pass, with its line.

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
    model = _copied(model)
    if any(isinstance(m, QCFS) for m in model.modules()):
        raise InputError("the network holds QCFS activations already")
    if any(getattr(m, "spikes_already", False) for m in model.modules()):
        raise InputError("the network has spiking neurons already: give the network that it was made from")
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
    read_again = example is not None and any(use.in_place for use in found.replaced)
    if all(use.module for use in found.replaced) and len(set(layers)) == len(layers) and not read_again:
        for layer, activation in zip(layers, made, strict=True):
            model = _put(model, layer, activation)
        _without_shortcuts(model, made)
        if example is None:
            _watch_first_forward(model)
    else:
        model = Rewired(model, made, found.replaced, pool)
    model.activations = found  # pyright: ignore[reportArgumentType]
    return model


def _copied(model: nn.Module) -> nn.Module:
    """A copy, also of a network whose `weight_norm` or pruning has left what it computed as an attribute, which is no
    parameter and which torch does not copy: the next forward pass computes it again."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed)


def _without_shortcuts(model: nn.Module, made: Sequence[nn.Module]) -> None:
    """Where an encoder layer's activation was replaced, let it not compute ReLU or GELU inside the one kernel that it
    calls in evaluation: it has noted which of them it had."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(module.activation is one for one in made):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # only that kernel reads nested tensors


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
            if self.training and not torch.compiler.is_compiling() and _checkpointed():
                raise InputError(f"activation {number + 1} ({name}) {REMEDY_CHECKPOINT}")
            number += 1
            a = self.neurons[number - 1](z)
            return _overwrite(z, a) if self.uses[number - 1].in_place else a

        with _Replacing(answer, self.pool):
            output = self.network(*args, **kwargs)
        if number != len(self.uses):
            raise InputError(f"{number} of {len(self.uses)} activations were called: {REMEDY_STATIC}")
        return output


REMEDY_STATIC = (
    "a network that calls other activations from one input to the next cannot be converted; make its path fixed"
)


REMEDY_CHECKPOINT = (
    "stands in a part that torch.utils.checkpoint computes again in the backward pass, where it would be what it was "
    "before: switch gradient checkpointing off, or write every activation as a module of its own (nn.ReLU)"
)


def _checkpointed() -> bool:
    """Whether a network that is being called is inside torch.utils.checkpoint."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not Rewired.forward.__code__:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


class _Replacing(TorchFunctionMode):
    """Replaces calls of activations by calls of the neurons."""

    def __init__(self, answer: Callable[[Tensor, str], Tensor], pool: str) -> None:
        super().__init__()
        self.answer, self.pool = answer, pool

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = _kind(func, args, kwargs)
        if kind == "replace":
            return self.answer(_input(args, kwargs), _name(func))
        if self.pool == "avg" and func in _POOLS:
            return _average_pool(func, *args, **kwargs)
        return func(*args, **kwargs)


class _Looking(TorchFunctionMode):
    """Records every activation in `found`; `layer` names the module that is being called."""

    def __init__(self, found: Callable[[Any, str, Any, Any, bool], None]) -> None:
        super().__init__()
        self.found = found
        self.linear: dict[int, bool] = {}
        """By number of dimensions: whether the last layer that gave so many has its channels last, not first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = _kind(func, args, kwargs)
        if not kind:
            result = func(*args, **kwargs)
            if func in _LAYERS:
                self.linear[result.dim()] = func is F.linear
            return result
        before = _input(args, kwargs)
        shape, asked = tuple(before.shape), _asked_in_place(func, args, kwargs)
        result = func(*args, **kwargs)
        self.found(func, kind, shape, result, asked)
        return result


def _kind(func: Any, args: Any, kwargs: Any) -> str:
    """ "replace", a reason to keep, or "" for what is no activation."""
    if func in _RELU or func in _IN_PLACE:
        return "replace"
    if func in _CLAMPS or func in _CLAMPS_IN_PLACE:
        low, high = _bounds(func, args, kwargs)
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            return "its bounds are tensors, and must be numbers"
        if low is None:
            return "it has no lower bound, which must be 0"
        return "replace" if low == 0 else f"it is clipped at {low} and not at 0"
    if func in _THRESHOLDS or func in _THRESHOLDS_IN_PLACE:
        given = dict(zip(("input", "threshold", "value"), args, strict=False)) | kwargs
        threshold, value = given["threshold"], given["value"]
        return "replace" if threshold == value == 0 else f"below {threshold} it is {value}, and not 0 below 0"
    return "a gate or a signed output, which no staircase from 0 to θ stands for" if func in _KEPT else ""


def _bounds(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    low, high = ("min_val", "max_val") if "hardtanh" in _name(func) else ("min", "max")
    values = dict(zip(("input", low, high), args, strict=False)) | kwargs
    default = (-1.0, 1.0) if low == "min_val" else (None, None)
    return values.get(low, default[0]), values.get(high, default[1])


def _input(args: Any, kwargs: Any) -> Tensor:
    return args[0] if args else kwargs["input"]


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def _in_place(func: Any) -> bool:
    return func in _IN_PLACE or func in _CLAMPS_IN_PLACE or func in _THRESHOLDS_IN_PLACE


def _asked_in_place(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call says inplace=True, as `nn.ReLU(inplace=True)` does."""
    if not isfunction(func):  # torch's own functions have no such argument
        return False
    return bool(signature(func).bind(*args, **kwargs).arguments.get("inplace", False))


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
            elif isinstance(module, nn.Threshold) and not module.threshold == module.value == 0:
                below = f"below {module.threshold} it is {module.value}, and not 0 below 0"
                found.kept.append(f"layer '{name}' (Threshold): {below}")
            else:
                in_place = bool(getattr(module, "inplace", False))
                found.replaced.append(Use(name, type(module).__name__, "", True, in_place, ()))
    return found


def _look(
    model: nn.Module, example: Any, share: float | None, v_threshold: float | str, per_channel: bool
) -> tuple[Activations, list[float | Tensor]]:
    """With an example: every call, and its first threshold."""
    found = Activations()
    start: list[float | Tensor] = []
    in_place: list[bool] = []

    def use(func: Any, kind: str, shape: tuple[int, ...], result: Tensor, asked: bool) -> None:
        layer, module = stack[-1] if stack else ("", model)
        of_module = isinstance(module, _ACTIVATION_MODULES)
        if kind != "replace":
            found.kept.append(f"layer '{layer}' ({_name(func)} at {_user_line()}): {kind}")
            return
        dims = len(shape)
        if per_channel and (dims not in (2, 4, 5) or (dims > 2 and looking.linear.get(dims, False))):
            place = f"layer '{layer}'" if layer else f"{_name(func)} at {_user_line()}"
            raise OptionError(
                f"per_channel: {place} has shape {shape}, whose channel dimension is not known: take per_channel=False"
            )
        in_place.append(asked)
        found.replaced.append(Use(layer, _name(func), _user_line(), of_module, _in_place(func), shape))
        channels = (shape[1], *(1,) * (len(shape) - 2)) if per_channel else None
        if share is None:
            start.append(torch.full(channels, float(v_threshold)) if channels else float(v_threshold))
        else:
            rows = result.detach().float().movedim(1, 0).flatten(1) if per_channel else result.detach().float()[None]
            start.append(_quantile(rows.flatten(1), share, channels, layer))

    training, looking = model.training, _Looking(use)
    args, named = _arguments(model, example)
    first = next((x for x in (*args, *named.values()) if isinstance(x, Tensor) and x.dim()), None)
    found.samples = 0 if first is None else len(first)
    if first is not None and not len(first):
        raise InputError("example= holds no samples: give a batch of some")
    model.eval()
    # A compiled network is looked at as it is written, for the compiler follows none of this.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        with _named_calls(model) as stack, looking:
            output = _given(model, args, named)
        if any(in_place):
            with _OutOfPlace():
                apart = _given(model, args, named)
            if not _equal(output, apart):
                uses = zip(found.replaced, in_place, strict=True)
                found.replaced = [replace(use, in_place=use.in_place or asked) for use, asked in uses]
    model.train(training)
    return found, start


class _OutOfPlace(TorchFunctionMode):
    """Lets calls with inplace=True leave their input as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _kind(func, args, kwargs) == "replace" and _asked_in_place(func, args, kwargs):
            given = signature(func).bind(*args, **kwargs)
            given.arguments["inplace"] = False
            return func(*given.args, **given.kwargs)
        return func(*args, **kwargs)


def _arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the network is called with: by order and by name. A dict is one input unless its keys name several."""
    if isinstance(example, Mapping) and example.keys() <= signature(model.forward).parameters.keys():
        return (), dict(example)
    return tuple(example) if isinstance(example, tuple | list) else (example,), {}


def _given(model: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """What the network returns for copies of these inputs, since it may write into them. Raises `InputError` where it
    cannot take them."""
    args, named = tree_map_only(Tensor, Tensor.clone, (args, dict(named)))
    try:
        return model(*args, **named)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        if isinstance(error, ParspikeError):
            raise
        shapes: Any = tree_map(
            lambda x: tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__, [*args, *named.values()]
        )
        why = (str(error) or type(error).__name__).splitlines()[0]
        given = ", ".join(str(x) for x in shapes)
        raise InputError(
            f"the network cannot take example= ({given}): {why}. Give a batch of its inputs: a "
            "tensor, a tuple of tensors, or a dict of them by name"
        ) from error


def _equal(one: Any, two: Any) -> bool:
    """Whether two outputs have the same bits, whatever they are made of."""
    (tensors, shape), (others, other) = tree_flatten(one), tree_flatten(two)
    pairs = zip(tensors, others, strict=False)
    return shape == other and all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


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
        self.model = weakref.ref(model)
        self.calls: dict[str, int] = {}
        self.overwritten: list[tuple[weakref.ref[Tensor], str]] = []
        self.inside = 0  # of a replacement, whose own arithmetic is no activation
        self.handles = []
        found: Any = model.activations
        for use in found.replaced:
            module = model.get_submodule(use.layer)
            self.handles.append(module.register_forward_pre_hook(partial(self.enter, use.layer)))
            self.handles.append(module.register_forward_hook(partial(self.leave, use), always_call=True))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, Tensor) and self.overwritten and not self.inside and self.running():
            for layer in [name for z, name in self.overwritten if any(x is z() for x in args)]:
                self.overwritten.clear()  # once is enough
                text = f"layer '{layer}' wrote its result over its input (inplace=True), and its replacement does not; "
                text += f"{_name(func)} at {_user_line()} reads that input: {REMEDY}"
                warnings.warn(text, stacklevel=2)
        return result

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        self.inside += 1
        self.calls[name] = self.calls.get(name, 0) + 1

    def leave(self, use: Use, module: nn.Module, args: Any, output: Any) -> None:
        self.inside -= 1
        if use.in_place and args:
            self.overwritten.append((weakref.ref(args[0]), use.layer))

    def running(self) -> bool:
        """Whether this is a call from the network: after an interrupt (Ctrl-C) no hook says that the pass has ended."""
        if torch.compiler.is_compiling():  # which follows no frames
            return True
        frame, model = sys._getframe(1), self.model()
        while frame is not None and frame.f_locals.get("self") is not model:
            frame = frame.f_back
        return frame is not None

    def complain(self, func: Any, kind: str, shape: Any, result: Any, asked: bool) -> None:
        if self.inside or not self.running():
            return
        text = f"{_name(func)} at {_user_line()}"
        if kind == "replace":
            raise InputError(f"{text} is an activation that is no module, so it was not replaced: {REMEDY}")
        warnings.warn(f"not replaced: {text}: {kind}", stacklevel=2)

    def finish(self, said: bool) -> None:
        for handle in self.handles:
            handle.remove()
        if said and (several := [name for name, number in self.calls.items() if number > 1]):
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
        # A pass that ended in an error gives None here. It has not seen all: the next one is watched too.
        module.__dict__["_watch"] = "once" if output is None else "done"
        watch.finish(said=output is not None)


def _watch_first_forward(model: nn.Module) -> None:
    # Hooks without a reference to the model, so that a copy of the model watches the copy.
    model.__dict__["_watch"] = "once"
    model.register_forward_pre_hook(_start_watching)
    model.register_forward_hook(_stop_watching, always_call=True)
