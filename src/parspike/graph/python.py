"""Ordinary Python that torch.export does not follow, made followable while it runs.

`len(x)` of a tensor and `int(x.shape[0] / 4)` give Python's own numbers, so a batch size that they are made of would be
the example's in every batch. While a network is traced, its functions call others in their place, which give the size
itself, for example B instead of 2:

    self.token.expand(len(x), -1, -1)                        # B tokens
    int(windows.shape[0] / (64 / 4 / 4))                     # B, of 4·B windows

Questions that torch itself asks of values or of the batch, and that change no answer, are not asked.
"""

from __future__ import annotations

import contextlib
import dis
import sys
import types
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from parspike.graph.sizes import whole_number

__all__ = ["left_to_torch", "sizes_kept", "without_branches"]


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
    seen: set[int] = set()
    while found:
        function = found.pop()
        function = getattr(function, "__func__", function)
        if not isinstance(function, types.FunctionType) or id(function) in seen or _foreign(function.__module__):
            continue
        seen.add(id(function))
        yield function
        room, codes = function.__globals__, [function.__code__]
        for code in codes:
            found.extend(room[name] for name in code.co_names if name in room)
            codes.extend(const for const in code.co_consts if isinstance(const, types.CodeType))
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # one that holds nothing yet
                found.append(cell.cell_contents)


def _foreign(room: str | None) -> bool:
    root = (room or "").partition(".")[0]
    return root in ("torch", "numpy", "parspike") or (root in sys.stdlib_module_names and root != "__main__")


class _ByProducts(TorchFunctionMode):
    """Distances by products of matrices. By itself torch chooses these where there are more than 25 rows, which would
    be a condition on the batch and changes no more than rounding; `left_to_torch` lets it choose again."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.functional.cdist and kwargs.get("compute_mode") == AS_NEEDED and kwargs.get("p") == 2:
            kwargs["compute_mode"] = "use_mm_for_euclid_dist"
        return func(*args, **kwargs)


AS_NEEDED = "use_mm_for_euclid_dist_if_necessary"


def left_to_torch(exported: Any) -> None:
    """Let torch choose in an exported program how distances are computed."""
    for fx in exported.graph.find_nodes(op="call_function", target=torch.ops.aten.cdist.default):
        fx.args = fx.args[:3]


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
    """While a network is traced: distances are computed in one way, and distributions do not ask whether what they are
    given is in their range, which would be a branch on values."""
    check, checks = Distribution.__dict__["_validate_sample"], Distribution._validate_args
    try:
        Distribution._validate_sample = lambda self, value: None
        Distribution.set_default_validate_args(False)
        with _ByProducts():
            yield
    finally:
        Distribution._validate_sample = check
        Distribution.set_default_validate_args(checks)
