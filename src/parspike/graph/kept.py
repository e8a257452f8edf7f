"""The state of a network, put back after it ran: attributes, caches, hooks' memories, and numbers written in place.

A network may remember what it computed (`self.attention = …`), count its calls, append to a list in a hook, write into
a buffer. Tracing runs it on tensors without numbers, and comparing it with its graph runs it on samples of our making:
neither may change the user's model.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Kept"]

Entry = tuple[Callable[[], list[str]], Callable[[], None]]
"""Two functions: the names of what has changed, and a call that restores it."""
PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, types.BuiltinFunctionType)
NOTHING = object()


class Kept:
    """What a network holds when this is made, put back at the end of a `with`.

    It follows attributes, containers, objects, and the closures and globals of hooks and forward. Nothing large is
    copied: a tensor's numbers only when an operator is about to write into them, inside `writing`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.entries: list[Entry] = []
        self.storages: set[int] = set()
        self.copies: dict[int, tuple[Any, Any]] = {}
        self.constants: list[tuple[str, Tensor]] = []
        self._state = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._seen: dict[int, Any] = {}
        self._todo: deque[tuple[str, Any]] = deque([*model.named_modules(), ("", model)])
        while self._todo:
            name, value = self._todo.popleft()
            if not isinstance(value, PLAIN) and id(value) not in self._seen:
                self._seen[id(value)] = value  # kept alive, so that Python gives its id to no other value
                self._keep(name, value)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def changed(self) -> list[str]:
        """Names of what has changed."""
        return [name for changes, _ in self.entries for name in changes()]

    def restore(self) -> None:
        """Put everything back, and the numbers that were written inside `writing`."""
        for changes, back in self.entries:
            if changes():
                back()
        for storage, copy in self.copies.values():
            storage.copy_(copy)
        self.copies.clear()

    def writing(self) -> TorchDispatchMode:
        """Inside, numbers of the network's tensors are copied before an operator writes into them."""
        return _Writing(self)

    def copy_constants(self) -> None:
        """Copy the numbers of tensors that are neither parameters nor buffers: torch.export writes into them."""
        for _, tensor in self.constants:
            self.about_to_write(tensor)

    def about_to_write(self, tensor: Tensor) -> None:
        """Copy the numbers of a tensor if they are the network's."""
        with contextlib.suppress(RuntimeError, NotImplementedError):  # sparse and meta tensors have no storage
            storage = tensor.untyped_storage()
            at = storage.data_ptr()
            if at in self.storages and at not in self.copies:
                self.copies[at] = storage, storage.clone()

    def _entry(self, name: str, same: Callable[[], bool], back: Callable[[], Any]) -> None:
        self.entries.append((lambda: [] if same() else [name], back))

    def _add(self, name: str, values: Iterable[Any]) -> None:
        self._todo.extend((name, value) for value in values if not isinstance(value, PLAIN))

    def _keep(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensor(name, value)
        elif isinstance(value, (dict, list, set, deque)):
            self._container(name, value)
        elif isinstance(value, (tuple, frozenset)):
            self._add(name, value)
        elif isinstance(value, np.ndarray):
            copy = value.copy()
            self._entry(name, lambda: np.array_equal(value, copy), lambda: np.copyto(value, copy))
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._entry(name, lambda: torch.equal(value.get_state(), state), lambda: value.set_state(state))
        elif isinstance(value, types.MethodType):
            self._add(name, (value.__self__, value.__func__))
        elif isinstance(value, functools.partial):
            self._add(name, (value.func, value.args, value.keywords))
        elif isinstance(value, types.FunctionType):
            self._function(name, value)
        elif isinstance(value, type):
            self._class(name, value)
        elif isinstance(value, nn.Module) or not _foreign(type(value)):
            self._object(name, value)

    def _tensor(self, name: str, tensor: Tensor) -> None:
        if torch.nn.parameter.is_lazy(tensor):
            return
        if tensor.is_leaf:
            wanted = tensor.requires_grad
            self._entry(name, lambda: tensor.requires_grad == wanted, lambda: tensor.requires_grad_(wanted))
        with contextlib.suppress(RuntimeError, NotImplementedError):  # as above
            at, data = tensor.data_ptr(), tensor.data
            self.storages.add(tensor.untyped_storage().data_ptr())
            if id(tensor) not in self._state:
                self.constants.append((name, tensor))
            self._entry(
                name, lambda: tensor.data_ptr() == at and tensor.shape == data.shape,
                lambda: setattr(tensor, "data", data),
            )  # fmt: skip

    def _container(self, name: str, value: Any) -> None:
        before = list(value.items() if isinstance(value, dict) else value)

        def same() -> bool:
            if len(value) != len(before):
                return False
            if isinstance(value, dict):
                return all(k is k2 and v is v2 for (k, v), (k2, v2) in zip(value.items(), before, strict=True))
            return all(a is b for a, b in zip(value, before, strict=True))

        def back() -> None:
            # Not by a method, since the user's class may override it.
            kind: Any = _builtin(value)
            kind.clear(value)
            (kind.update if isinstance(value, (dict, set)) else kind.extend)(value, before)

        self._entry(name, same, back)
        if not isinstance(value, dict):
            self._add(name, value)
            return
        for key, item in before:
            inside = f"{name}.{key}".lstrip(".") if isinstance(key, str) else name
            self._add(inside, (item,))

    def _object(self, name: str, value: Any) -> None:
        state = getattr(value, "__dict__", None)
        if type(state) is dict:
            self._attributes(name, state)
        for kind in type(value).__mro__:
            if _foreign(kind):
                continue
            slots = kind.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                self._place(f"{name}.{slot}", value, slot)
            if isinstance(value, nn.Module):
                self._add(kind.__name__, (kind,))

    def _attributes(self, name: str, state: dict[str, Any]) -> None:
        before = dict(state)
        for key, item in before.items():
            self._add(f"{name}.{key}".lstrip("."), (item,))

        def changes() -> list[str]:
            apart = [key for key in {**before, **state} if state.get(key, NOTHING) is not before.get(key, NOTHING)]
            return [f"{name}.{key}".lstrip(".") for key in apart]

        def back() -> None:
            state.clear()
            state.update(before)

        self.entries.append((changes, back))

    def _place(self, name: str, owner: Any, attribute: str) -> None:
        before = _get(owner, attribute)
        self._entry(name, lambda: _get(owner, attribute) is before, lambda: _set(owner, attribute, before))
        self._add(name, (before,))

    def _function(self, name: str, function: types.FunctionType) -> None:
        """A hook, or a method: what it closes over, and the globals that it names."""
        self._add(name, (vars(function), function.__defaults__, function.__kwdefaults__))
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._place(variable, cell, "cell_contents")
        room = function.__globals__
        for variable in set(function.__code__.co_names) & room.keys():
            before = room[variable]
            if not isinstance(before, (type, types.ModuleType, types.FunctionType)):
                self._global(variable, room, before)

    def _global(self, name: str, room: dict[str, Any], before: Any) -> None:
        self._entry(name, lambda: room.get(name) is before, lambda: room.update({name: before}))
        self._add(name, (before,))

    def _class(self, name: str, kind: type) -> None:
        """A class of the user's modules: counters and caches that all of its modules share."""
        if _foreign(kind):
            return
        for key, value in list(vars(kind).items()):
            if isinstance(value, types.FunctionType):
                self._add(f"{name}.{key}", (value,))
            elif not key.startswith("__") and not hasattr(value, "__get__"):
                self._place(f"{name}.{key}", kind, key)


def _builtin(container: Any) -> Any:
    return next(kind for kind in (OrderedDict, dict, list, set, deque) if isinstance(container, kind))


def _foreign(kind: type) -> bool:
    """Whether a class is torch's or Python's own, whose state is not the network's."""
    room = kind.__module__.partition(".")[0]
    return room in ("torch", "numpy") or (room in sys.stdlib_module_names and room not in ("types", "__main__"))


def _get(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except (AttributeError, ValueError):  # a slot or a closure that holds nothing yet
        return NOTHING


def _set(owner: Any, name: str, value: Any) -> None:
    with contextlib.suppress(AttributeError, ValueError):
        delattr(owner, name) if value is NOTHING else setattr(owner, name, value)


class _Writing(TorchDispatchMode):
    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # A batch norm in training writes into its statistics although its schema does not declare it.
        trained = "batch_norm" in func.__name__ and any(arg is True for arg in args)
        if func._schema.is_mutable or trained:
            for place, argument in enumerate(func._schema.arguments):
                if trained or (argument.alias_info is not None and argument.alias_info.is_write):
                    value = args[place] if place < len(args) else kwargs.get(argument.name)
                    for tensor in value if isinstance(value, (list, tuple)) else (value,):
                        if isinstance(tensor, Tensor):
                            self.kept.about_to_write(tensor)
        return func(*args, **kwargs)
