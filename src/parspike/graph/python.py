"""Ordinary Python that torch.export does not follow, made followable while it runs.

`len(x)` of a tensor and `int(x.shape[0] / 4)` give Python's own numbers, so a batch size that they are made of would be
the example's in every batch. While a network is traced, its functions call others in their place, which give the size
itself, for example B instead of 2:

    self.token.expand(len(x), -1, -1)                        # B tokens
    int(windows.shape[0] / (64 / 4 / 4))                     # B, of 4·B windows

Questions that torch itself asks of values or of the batch, and that change no answer, are not asked. A branch on the
network's own flags (`if self.initialized.item() == 0`, the switches of FakeQuantize) has one way for every input, which
`Flags` takes.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import math
import sys
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from parspike.graph.explain import ASSIGNED
from parspike.graph.sizes import whole_number

__all__ = ["ASKED", "Flags", "left_to_torch", "observe_nothing", "sizes_kept", "without_branches"]

ASKED = "asked"
"""In the meta of a program's module: the names of the network's own tensors that its code branched on."""
FEW = 64
"""Elements of a tensor at most that branches are taken on: a switch, a counter, a bound; not the weights."""


FUNCTIONS = 256
"""Items at most of a container that is searched for functions: more are data."""


def _len(x: Any) -> Any:
    return x.shape[0] if isinstance(x, Tensor) and x.dim() else len(x)


def _int(*args: Any, **kwargs: Any) -> Any:
    value = args[0] if len(args) == 1 and not kwargs else None
    if isinstance(value, torch.SymInt):
        return value
    if isinstance(value, torch.SymFloat) and (whole := whole_number(value.node.expr)) is not None:
        return value.node.shape_env.create_symintnode(whole, hint=None)
    return int(*args, **kwargs)


CALLED = {"len": ("_parspike_len", _len), "int": ("_parspike_int", _int)}
"""By name in the user's code: another one, and what it means."""


def _renamed(code: types.CodeType, own: Collection[str]) -> types.CodeType:
    """The code with these names changed where they are called. Where a code also reads one otherwise, as a type
    (isinstance(n, int)) or as an attribute (x.int()), it keeps that name. own: names that mean something else here."""
    uses: dict[str, list[bool]] = {}
    for step in dis.get_instructions(code):
        if step.opcode in dis.hasname and step.argval in CALLED and step.argval not in own:
            uses.setdefault(step.argval, []).append(step.opname == "LOAD_GLOBAL" and bool((step.arg or 0) & 1))
    names = tuple(CALLED[name][0] if uses.get(name) and all(uses[name]) else name for name in code.co_names)
    consts = tuple(_renamed(const, own) if isinstance(const, types.CodeType) else const for const in code.co_consts)
    same = names == code.co_names and all(a is b for a, b in zip(consts, code.co_consts, strict=True))
    return code if same else code.replace(co_names=names, co_consts=consts)


def _functions(model: nn.Module) -> Iterator[types.FunctionType]:
    """The functions of the user's that the network's modules have, and those that these name."""
    found = [value for module in model.modules() for kind in type(module).__mro__ if not _foreign(kind.__module__)
             for value in (*vars(kind).values(), *vars(module).values())]  # fmt: skip
    seen: dict[int, Any] = {}  # keeps what it names, so that ids stay their own
    while found:
        value = found.pop()
        function = getattr(value, "__func__", value)
        if id(function) in seen:
            continue
        seen[id(function)] = function
        if (inside := _held(function)) is not None:
            found.extend(inside)
            continue
        if not isinstance(function, types.FunctionType) or _foreign(function.__module__):
            continue
        yield function
        room, codes = function.__globals__, [function.__code__]
        for code in codes:
            found.extend(room[name] for name in code.co_names if name in room)
            codes.extend(const for const in code.co_consts if isinstance(const, types.CodeType))
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # one that holds nothing yet
                found.append(cell.cell_contents)


def _held(value: Any) -> Iterable[Any] | None:
    """What may hold functions in a container, a partial function or a property; None for anything else."""
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, property):
        return (value.fget,)
    if isinstance(value, (dict, types.MappingProxyType)):
        return tuple(value.values()) if len(value) <= FUNCTIONS else ()
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(value) if len(value) <= FUNCTIONS else ()
    return None


def _foreign(room: str | None) -> bool:
    root = (room or "").partition(".")[0]
    return root in ("torch", "numpy", "parspike") or (root in sys.stdlib_module_names and root != "__main__")


class _OneWay(TorchFunctionMode):
    """Distances by products of matrices. By itself torch chooses these where there are more than 25 rows, which would
    be a condition on the batch and changes no more than rounding; `left_to_torch` lets it choose again. A pool over all
    places, `F.avg_pool2d(x, x.size()[2:])`, as a mean or a maximum, for torch makes numbers of a pool's sizes. And a
    maximum over windows of a free length as one over windows of a height of 1, for torch fixes the length in the first;
    `left_to_torch` turns it back. `x.data` is `x.detach()`, for tracing does not see the first; nor does it see what is
    assigned to it, which is refused. A tensor of sizes, `torch.as_tensor([h, w])`, and places between two numbers,
    `torch.linspace(-1, 1, w)`, are made of operators that take sizes, for in these torch makes numbers of them.
    `x.contiguous()` is a copy, for it asks how x lies in memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__self__", None) is Tensor.data:
            if func.__name__ != "__get__":
                raise RuntimeError(ASSIGNED)
            return args[0].detach()
        if func is Tensor.contiguous and not kwargs and len(args) == 1 and _is_free(args[0]):
            return args[0].clone(memory_format=torch.contiguous_format)
        if func is torch.as_tensor and (made := _of_sizes(*args, **kwargs)) is not None:
            return made
        if func is Tensor.new_tensor:
            kind = {"dtype": args[0].dtype, "device": args[0].device}
            if (made := _of_sizes(*args[1:], **{**kind, **kwargs})) is not None:
                return made
        if func is torch.linspace and (made := _places_between(*args, **kwargs)) is not None:
            return made
        if func in POOLS and _over_all(POOLS[func][1], *args, **kwargs):
            whole, dims = POOLS[func]
            return whole(args[0] if args else kwargs["input"], tuple(range(-dims, 0)), keepdim=True)
        if func in (F.max_pool1d, torch.max_pool1d) and (made := _flat_pool(*args, **kwargs)) is not None:
            return made
        if func in NORMS and len(args) == 3 and _over_all(NORMS[func], args[0], args[2], **kwargs):
            x, power, dims = *args[:2], tuple(range(-NORMS[func], 0))
            if math.isinf(power):
                return (torch.amax if power > 0 else torch.amin)(x.abs(), dims, keepdim=True)
            return x.pow(power).sum(dims, keepdim=True).pow(1.0 / power)
        if func is torch.functional.cdist and kwargs.get("compute_mode") == AS_NEEDED and kwargs.get("p") == 2:
            kwargs["compute_mode"] = "use_mm_for_euclid_dist"
        return func(*args, **kwargs)


def _is_free(x: Tensor) -> bool:
    return any(isinstance(size, torch.SymInt) for size in x.shape[1:])


def _of_sizes(data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor | None:
    """A tensor of a size, or of a list of numbers with sizes among them; None where there are none."""
    numbers = data if isinstance(data, (list, tuple)) else [data]
    free = any(isinstance(n, torch.SymInt) for n in numbers)
    if not free or not all(isinstance(n, (int, float, torch.SymInt)) for n in numbers):
        return None
    if dtype is None:
        dtype = torch.get_default_dtype() if any(isinstance(n, float) for n in numbers) else torch.int64
    made = [torch.full((), n, dtype=dtype, device=device) for n in numbers]  # pyright: ignore[reportArgumentType]
    return torch.stack(made) if isinstance(data, (list, tuple)) else made[0]


def _places_between(
    start: Any, end: Any, steps: Any = None, *, dtype: Any = None, device: Any = None, **options: Any
) -> Tensor | None:
    """`torch.linspace` of a free number of places between two numbers; None where it is another."""
    if not isinstance(steps, torch.SymInt) or not all(isinstance(n, (int, float, torch.SymInt)) for n in (start, end)):
        return None
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        return None
    numbers: tuple[Any, ...] = (start, end, steps - 1)
    start, end, last = (torch.full((), n, dtype=dtype, device=device) for n in numbers)
    place = torch.arange(steps, dtype=dtype, device=device)  # pyright: ignore[reportCallIssue, reportArgumentType]
    step = (end - start) / last.clamp(min=1)
    # The way of torch's own kernel, from both ends, and of one place the start.
    return torch.where(place * 2 < steps, start + place * step, end - (last - place) * step)


POOLS: dict[Any, tuple[Any, int]] = {
    torch.avg_pool1d: (torch.mean, 1), F.avg_pool2d: (torch.mean, 2), F.avg_pool3d: (torch.mean, 3),
    F.max_pool1d: (torch.amax, 1), F.max_pool2d: (torch.amax, 2), F.max_pool3d: (torch.amax, 3),
}  # fmt: skip
"""What a pool over all places is, and over how many dimensions."""

NORMS: dict[Any, int] = {F.lp_pool1d: 1, F.lp_pool2d: 2, F.lp_pool3d: 3}
"""Pools that torch computes with those above, out of sight, and over how many dimensions."""


def _over_all(
    dims: int, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *more: Any, **options: Any
) -> bool:
    """Whether a pool's kernel is as large as what it pools, in free sizes."""
    plain = {"dilation": 1, "return_indices": False, "divisor_override": None}
    others = any(options.get(name, value) != value for name, value in plain.items())
    if others or padding not in (0, (0,) * dims) or more[2:] not in ((), (None,)):
        return False
    kernel = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,) * dims
    pairs = list(zip(kernel, input.shape[-dims:], strict=True))
    if not all(isinstance(size, torch.SymInt) for pair in pairs for size in pair):
        return False
    # `F.avg_pool2d(x, x.shape[2])` is one over all places where images are square, a condition on their sizes.
    return all(_hint(size) == _hint(place) for size, place in pairs) and all(size == place for size, place in pairs)


def _hint(size: Any) -> int | None:
    return size.node.hint


def _flat_pool(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:  # fmt: skip
    """`F.max_pool1d` of a free length, by `F.max_pool2d`; None where it is another."""
    given = kernel_size, kernel_size if stride in (None, [], ()) else stride, padding, dilation
    sizes = [size[0] if isinstance(size, (tuple, list)) else size for size in given]
    if return_indices or not isinstance(input.shape[-1], torch.SymInt) or not all(type(n) is int for n in sizes):
        return None
    kernel, step, zeros, gap = sizes
    pooled = F.max_pool2d(input.unsqueeze(FLAT), (1, kernel), (1, step), (0, zeros), (1, gap), ceil_mode)
    return pooled.squeeze(FLAT)


FLAT = -2
"""The dimension of the height of 1."""
AS_NEEDED = "use_mm_for_euclid_dist_if_necessary"


def left_to_torch(exported: Any) -> None:
    """Let torch choose in an exported program how distances are computed, and how maxima over windows of a length."""
    aten = torch.ops.aten
    for fx in exported.graph.find_nodes(op="call_function", target=aten.cdist.default):
        fx.args = fx.args[:3]
    for fx in exported.graph.find_nodes(op="call_function", target=aten.max_pool2d.default):
        (image, kernel, *rest), (last, *others) = fx.args, fx.users
        if others or kernel[0] != 1 or (last.target, last.args[1:]) != (aten.squeeze.dim, (FLAT,)):
            continue
        if (image.target, image.args[1:]) != (aten.unsqueeze.default, (FLAT,)) or len(image.users) > 1:
            continue
        more = [size[1:] if isinstance(size, (list, tuple)) else size for size in rest]
        with exported.graph.inserting_before(last):
            made = exported.graph.call_function(aten.max_pool1d.default, (image.args[0], kernel[1:], *more))
        made.meta, name = last.meta, last.name
        last.replace_all_uses_with(made)
        for gone in (last, fx, image):
            exported.graph.erase_node(gone)
        made._rename(name)  # what an output is called


@contextlib.contextmanager
def sizes_kept(model: nn.Module) -> Iterator[bool]:
    """While a network is traced: `len` and `int` of sizes are sizes in its functions. Yields whether any calls them."""
    changed: list[tuple[types.FunctionType, types.CodeType]] = []
    try:
        for function in _functions(model):
            code = function.__code__
            if (renamed := _renamed(code, function.__globals__)) is not code:
                changed.append((function, code))
                function.__globals__.update(CALLED.values())
                function.__code__ = renamed
        yield bool(changed)
    finally:
        for function, code in changed:
            function.__code__ = code
            for name, _ in CALLED.values():
                function.__globals__.pop(name, None)


@contextlib.contextmanager
def without_branches() -> Iterator[None]:
    """While a network is traced: distances are computed in one way, distributions do not ask whether what they are
    given is in their range, and transformers do not ask whether a mask is the causal one, for which they would choose
    another kernel of the same values: these would be branches on values."""
    check, checks = Distribution.__dict__["_validate_sample"], Distribution._validate_args
    asks = transformer._detect_is_causal_mask
    try:
        transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
        Distribution._validate_sample = lambda self, value: None
        Distribution.set_default_validate_args(False)
        with _OneWay():
            yield
    finally:
        transformer._detect_is_causal_mask = asks
        Distribution._validate_sample = check
        Distribution.set_default_validate_args(checks)


def observe_nothing(model: nn.Module) -> None:
    """Let layers that observe and quantise in one operator, which writes by its schema, quantise alone where observing
    is switched off: until the network's state is put back."""
    room = sys.modules.get("torch.ao.quantization.fake_quantize")
    fused = getattr(room, "FusedMovingAvgObsFakeQuantize", ())
    for module in model.modules():
        if isinstance(module, fused) and not bool(module.observer_enabled):
            vars(module)["forward"] = types.MethodType(getattr(room, "FakeQuantize").forward, module)  # noqa: B009


class Flags(TorchFunctionMode):
    """While a network is traced: what depends on few numbers of its own parameters, buffers and constants alone is
    known, so code may branch on it. constants: by name, the tensors that it has beside parameters and buffers.
    `asked`: the names of those that were branched on."""

    def __init__(self, model: nn.Module, constants: Iterable[tuple[str, Tensor]] = ()) -> None:
        super().__init__()
        own = (*model.named_parameters(), *model.named_buffers())
        self.numbers = {name: tensor.detach().clone() for name, tensor in own if _few(tensor)}
        self.asked: set[str] = set()
        self._places = [(name, *_place(model, name)) for name in self.numbers]
        self._constants = {id(t): (t, t.detach().clone(), frozenset((n,))) for n, t in constants if _few(t)}
        self._known: dict[int, tuple[Tensor, Tensor, frozenset[str]]] = {}

    def _find(self, tensor: Tensor) -> tuple[Tensor, Tensor, frozenset[str]] | None:
        """The tensor, kept alive so that its id stays its own, its numbers, and of which of the network's they are."""
        if id(tensor) not in self._known:
            # Tracing puts tensors of its own in the network's place, other ones each time. Nothing is asked of their
            # sizes, which would be a condition on the input's.
            name = next((name for name, tensors, key in self._places if tensors.get(key) is tensor), None)
            if name is not None:
                self._known[id(tensor)] = tensor, self.numbers[name], frozenset((name,))
        return self._known.get(id(tensor)) or self._constants.get(id(tensor))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, dict(kwargs or {}))
        if isinstance(func, torch._ops.OpOverload):  # torch's own work on what it traces
            return func(*args, **given[1])
        if func in FILLS:
            given = self._filled(func, *given)
            args = given[0]
        tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
        known = [self._find(tensor) for tensor in tensors]
        sources = frozenset[str]().union(*(found[2] for found in known if found is not None))
        if None in known or not sources:
            if _writes(func, given[1]):
                self._known.clear()  # views of what it writes are known under names of their own
            return func(*args, **given[1])
        with _disable_current_modes():
            drawn = torch.get_rng_state()
            numbers_of = {id(tensor): found[1] for tensor, found in zip(tensors, known, strict=True) if found}
            copies = pytree.tree_map_only(Tensor, lambda tensor: numbers_of[id(tensor)].clone(), given)
            numbers = func(*copies[0], **copies[1])
            chance = not torch.equal(torch.get_rng_state(), drawn)
        if chance:
            return func(*args, **given[1])
        if func in ASKS:
            self.asked |= sources
            return numbers
        if _writes(func, given[1]):
            self._known.clear()
        result = func(*args, **given[1])
        # Several where a tensor is iterated over.
        for made, real in zip(pytree.tree_leaves(result), pytree.tree_leaves(numbers), strict=False):
            if isinstance(made, Tensor) and isinstance(real, Tensor) and _few(real):
                self._known[id(made)] = made, real, sources
        return result

    def _filled(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments of one of `FILLS`, with numbers in place of the network's own."""
        first = 0 if func in (torch.arange, torch.linspace) else 1

        def number(value: Any) -> Any:
            found = self._find(value) if isinstance(value, Tensor) and value.dim() == 0 else None
            if found is None:
                return value
            self.asked |= found[2]
            return found[1].item()

        return (*args[:first], *map(number, args[first:])), {name: number(value) for name, value in kwargs.items()}


FILLS = (torch.full, torch.full_like, Tensor.new_full, torch.arange, torch.linspace)
"""Functions that ask a tensor for its number where they are given one in place of a number."""
ASKS = (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item, Tensor.tolist)
"""What code asks of a tensor's numbers."""


def _writes(func: Any, options: Mapping[str, Any]) -> bool:
    """Whether a function may write into one of its tensors: x.add_(y), x += y, x[0] = y, out=x, inplace=True."""
    name = getattr(func, "__name__", "")
    own = name.endswith("_") and not name.endswith("__")
    return own or name in SETS or options.get("out") is not None or bool(options.get("inplace"))


SETS = frozenset(
    ("__setitem__", "__delitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__",
     "__idiv__", "__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__")
)  # fmt: skip
"""Python's names of what writes into a tensor."""


def _place(model: nn.Module, name: str) -> tuple[Mapping[str, Any], str]:
    """Where the tensor of this name stands at any time: the tensors of its module, and its key among them."""
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._parameters if key in module._parameters else module._buffers), key


def _few(tensor: Tensor) -> bool:
    lazy = torch.nn.parameter.is_lazy(tensor)
    return not lazy and not tensor.is_meta and tensor.layout is torch.strided and tensor.numel() <= FEW
