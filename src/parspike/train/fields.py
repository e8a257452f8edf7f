"""Tables of a recipe → frozen dataclasses, with errors that name the place, what is known there and what was meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from parspike.errors import OptionError, meant

__all__ = ["above", "among", "at_least", "read", "within"]

WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def read(cls: Any, values: Any, where: str) -> Any:
    """The dataclass `cls` from a table of its entries.

    A field whose default is another dataclass is a table of its own; one with `metadata["read"]` is read by that.
    """
    if not isinstance(values, Mapping):
        raise OptionError(f"{where}: expected a table, got {repr(values)[:80]}")
    known = {f.name: f for f in fields(cls)}
    if unknown := [name for name in values if name not in known]:
        near = "".join(meant(name, known) or _elsewhere(name, known) for name in unknown)
        raise OptionError(f"{where}: unknown {', '.join(unknown)[:200]}; known are {', '.join(known)}{near}")
    if missing := [
        n for n, f in known.items() if n not in values and f.default is f.default_factory is dataclasses.MISSING
    ]:
        raise OptionError(f"{where}: {', '.join(missing)} is missing")
    made = {}
    for name, value in values.items():
        default, own = known[name].default_factory, known[name].metadata.get("read")
        if own is not None:
            made[name] = own(value, f"{where}, [{name}]")
        elif isinstance(default, type) and dataclasses.is_dataclass(default):
            made[name] = read(default, value, f"{where}, [{name}]")
        else:
            made[name] = _typed(value, known[name], f"{where}: {name}")
    return cls(**made)


def _elsewhere(name: str, known: Mapping[str, Any]) -> str:
    """What a message adds where a table of this one has the entry."""
    tables = {table: f.default_factory for table, f in known.items() if dataclasses.is_dataclass(f.default_factory)}
    homes = [table for table, cls in tables.items() if name in {f.name for f in fields(cls)}]
    return f" (it stands in {' or '.join(f'{table}.{name}' for table in homes)})" if homes else ""


def _typed(value: Any, known: Any, where: str) -> Any:
    """The value in the type of the field, told by the field's annotation."""
    wanted = (
        known.type.__name__ if isinstance(known.type, type) else str(known.type)
    )  # no `from __future__` in its file
    try:
        if isinstance(value, list | tuple):
            value = tuple(float(v) if isinstance(v, int | float) else v for v in value)
        elif wanted.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
    except OverflowError as error:
        raise OptionError(f"{where}: a number is larger than any float") from error
    kinds = {
        "str": str, "bool": bool, "int": int, "float": (int, float), "int | None": (int, type(None)),
        "float | str": (int, float, str), "tuple[float, ...]": tuple,
    }  # fmt: skip
    if not isinstance(value, kinds.get(wanted, object)) or (isinstance(value, bool) and wanted != "bool"):
        raise OptionError(f"{where} = {repr(value)[:80]}: expected {WORDS.get(wanted, wanted)}")
    return value


def among(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `OptionError` unless the value is one of the choices."""
    if value not in choices:
        raise OptionError(f"{name} = {repr(value)[:80]}: choose one of {', '.join(c or '(none)' for c in choices)}")


def at_least(name: str, value: Any, least: float) -> None:
    """Raise `OptionError` unless the value is a number of at least `least`."""
    if not value >= least:
        raise OptionError(f"{name} = {value!r}: it must be at least {least}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raise `OptionError` unless low ≤ value ≤ high."""
    if not low <= value <= high:
        raise OptionError(f"{name} = {value!r}: it must lie between {low} and {high}")


def above(name: str, value: float) -> None:
    """Raise `OptionError` unless the value is above 0."""
    if not value > 0:
        raise OptionError(f"{name} = {value!r}: it must be above 0")
