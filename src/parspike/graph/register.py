"""The user's own activations: a function or a class of modules becomes a row of the op table."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from parspike.errors import OptionError
from parspike.graph.course import turn_of
from parspike.graph.ops import TABLE, USER, Curve, Op, Role

__all__ = ["register"]

_functions: dict[str, Callable[[Tensor], Tensor]] = {}


def register(activation: Any, *, name: str | None = None, inverse: Callable[[Tensor], Tensor] | None = None) -> Any:
    """Make an elementwise activation of your own convertible. Use what is returned; works as a decorator.

    activation: a function of one tensor, or a class of modules without parameters. It must never fall, or fall and
    then rise once, which is checked on all numbers, however far out a step or a cap stands. name: how graphs and files
    call it (default: its own name). A file holds the name alone, so that a program that loads it registers the
    activation first. inverse: from outputs to the smallest input that gives them, where bisection would be too slow.
    Raises `OptionError` where the activation is not elementwise or not monotone, and says where.

    >>> @register
    ... def softer(x):
    ...     return x.clamp(min=0) ** 1.5
    >>> softer(torch.tensor([-1.0, 4.0]))
    tensor([0., 8.])
    """
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        return _register_class(activation, name, inverse)
    kind = type(activation).__name__
    if isinstance(activation, nn.Module) or not callable(activation):
        raise OptionError(f"register takes a function or a class of modules, got a {kind}: register its class")
    return _register_function(cast(Any, activation), name or getattr(activation, "__name__", ""), inverse)


def _register_class(kind: type[nn.Module], name: str | None, inverse: Any) -> type[nn.Module]:
    forward = kind.forward

    def stateless(x: Tensor) -> Tensor:
        return forward(kind(), x)

    try:
        parameters = list(kind().parameters())
    except TypeError as error:
        raise OptionError(f"{kind.__name__} needs arguments to be made: register a function of one tensor") from error
    if parameters:
        raise OptionError(f"{kind.__name__} has parameters: write it with activations of torch, or register a function")
    wrapped = _register_function(stateless, name or kind.__name__, inverse)
    kind.forward = functools.wraps(forward)(lambda self, x: wrapped(x))  # pyright: ignore[reportAttributeAccessIssue]
    return kind


def _register_function(function: Callable[[Tensor], Tensor], name: str, inverse: Any) -> Callable[[Tensor], Tensor]:
    target = f"parspike.{name}"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise OptionError(f"'{name}' is no name for an activation: pass name= with letters, digits and underscores")
    if hasattr(nn.Module, name):  # a module will hold its neurons under this name
        raise OptionError(f"'{name}' is a method of torch's modules: pass another name=")
    if target in TABLE and target not in USER:
        raise OptionError(f"'{name}' is an operator of parspike: pass another name=")
    turn = _check(function, name, inverse)
    line = torch.linspace(-5, 5, 101, dtype=torch.float64)
    if name in _functions and not torch.equal(_functions[name](line), function(line)):
        raise OptionError(f"another activation is registered as '{name}': pass another name=")
    _functions[name] = function
    if target not in USER:
        _define(name)
    row = Op(Role.NEURON, lambda x: _functions[name](x), varying=(0,), activation=lambda node: Curve(), inverse=inverse)
    USER[target] = TABLE[target] = row if turn is None else replace(row, activation=None, turn=lambda options: turn)

    @functools.wraps(function)
    def wrapper(x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return getattr(torch.ops.parspike, name)(x)
        return function(x)

    return wrapper


def _define(name: str) -> None:
    """Make the function one operator, so that torch.export sees one node instead of what the function computes with."""

    def run(x: Tensor) -> Tensor:
        return _functions[name](x).clone()

    run.__annotations__ = {"x": Tensor, "return": Tensor}
    operator = torch.library.custom_op(f"parspike::{name}", run, mutates_args=())
    operator.register_fake(torch.empty_like)


def _check(function: Callable[[Tensor], Tensor], name: str, inverse: Any) -> Any:
    x = torch.linspace(-5, 5, 12, dtype=torch.float64)
    try:
        with torch.no_grad():
            line, square, turned = function(x), function(x.reshape(3, 4)), function(x.flip(0))
            alike = torch.equal(square.flatten(), line) and torch.equal(turned.flip(0), line)
            turn = turn_of(function) if alike or not bool(line.isfinite().all()) else None
    except Exception as error:
        raise OptionError(f"'{name}' fails on a tensor of numbers: {error}") from error
    if isinstance(turn, str):
        raise OptionError(
            f"'{name}' cannot be a spiking neuron: {turn}. Register a function that never falls (−f for one that "
            "always falls), or one that falls and then rises once"
        )
    if not alike:
        raise OptionError(f"'{name}' is not elementwise: a value's output depends on its neighbours or its place")
    if inverse is not None:
        if turn is not None:
            raise OptionError(f"'{name}' falls before it rises, so it has no inverse: leave inverse= out")
        again = function(inverse(line))
        if not torch.allclose(again, line, rtol=1e-6, atol=1e-9):
            at = int((again - line).abs().argmax())
            raise OptionError(f"'{name}': its inverse is wrong at the output {float(line[at]):.6g}")
    return turn
