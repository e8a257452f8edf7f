"""What an operation costs: tables of picojoules, as data (`energies.toml`) and from the user's own file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from parspike.errors import FileError, OptionError, meant, path_of

__all__ = ["DEFAULT", "Energy"]

DEFAULT = "float32-45nm"
HOME = Path(__file__).with_name("energies.toml")
WORD = 64
"""Bits of one access to memory that a table gives the energy of."""


@dataclass(frozen=True)
class Energy:
    """Picojoules of an operation.

        Energy()                                  # 32-bit floats in 45 nm: an addition 0.9 pJ, a multiplication 3.7 pJ
        Energy.named("int8-45nm")                 # 8-bit weights, 32-bit accumulators
        Energy.named("my.toml")                   # a file with the fields below

    ac: of an accumulate, what a spike costs at one edge. mac: of a multiply-accumulate. int_add, int_multiply: of the
    network whose activations are quantised: one addition, and one multiplication of 8 by 8 bits; one of b by w bits
    takes b·w/64 of it, as its array of adders does. weight_bits, potential_bits, activation_bits, event_bits: how wide
    a weight, a potential, an activation of the network itself and a spike's address are. memory: pairs of a size in KiB
    and the picojoules of an access of 64 bits to a memory of at most that size, the last pair for all that are larger.
    name, title, source: where the figures come from. Default: Horowitz, ISSCC 2014 (measure/energies.toml).
    """

    ac: float = 0.9
    mac: float = 4.6
    int_add: float = 0.1
    int_multiply: float = 0.2
    weight_bits: int = 32
    potential_bits: int = 32
    activation_bits: int = 32
    event_bits: int = 32
    memory: tuple[tuple[float, float], ...] = ((8, 10.0), (32, 20.0), (1024, 100.0), (math.inf, 1300.0))
    name: str = ""
    title: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("ac", "mac", "int_add", "int_multiply"):
            if not (_number(value := getattr(self, name)) and value >= 0 and math.isfinite(value)):
                raise OptionError(f"energies are finite and at least 0 pJ, got {name}={repr(value)[:80]}")
        for name in ("weight_bits", "potential_bits", "activation_bits", "event_bits"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or not 1 <= value <= 64:
                raise OptionError(f"{name} is a whole number from 1 to 64, got {repr(value)[:80]}")
        for name in ("name", "title", "source"):
            if not isinstance(value := getattr(self, name), str):
                raise OptionError(f"{name} is text, got {repr(value)[:80]}")
        pairs = self.memory
        right = isinstance(pairs, (list, tuple)) and bool(pairs) and all(_pair(pair) for pair in pairs)
        sizes = [pair[0] for pair in pairs] if right else []
        if not right or sizes != sorted(set(sizes)):
            raise OptionError(
                f"memory is {str(pairs)[:200]}: give pairs [KiB, pJ of an access of 64 bits], the sizes above 0 and "
                "rising, such as [[8, 10.0], [inf, 1300.0]]"
            )
        object.__setattr__(self, "memory", tuple((float(size), float(cost)) for size, cost in pairs))

    @classmethod
    def named(cls, name: str | Path) -> Energy:
        """A table by its name, or from a TOML file of your own with fields of this class.

        Raises `OptionError` for a name that is neither and for entries that no table has, `FileError` for a file that
        cannot be read.
        """
        tables, path = _tables(), path_of(name)
        if str(name) in tables:
            return cls(**tables[str(name)], name=str(name))
        if path.suffix != ".toml":
            raise OptionError(
                f"there is no energy table '{name}'{meant(name, tables)}: choose one of {', '.join(tables)}, or give a "
                ".toml file with the entries of one (docs/measure.md)"
            )
        own = _read(path)
        known = [field.name for field in fields(cls)]
        for entry in own:
            if entry not in known:
                said = f"unknown entry '{entry[:80]}'{meant(entry, known)}"
                raise OptionError(f"{path}: {said}; it has {', '.join(known)}")
        try:
            return cls(**{"name": path.stem, **own})
        except OptionError as error:
            raise OptionError(f"{path}: {error}") from error

    def quantised_mac(self, bits: int) -> float:
        """Picojoules of a multiply-accumulate of an activation of so many bits, in integers."""
        return self.int_add + self.int_multiply * bits * self.quantised_weight_bits / 64

    @property
    def quantised_weight_bits(self) -> int:
        """How wide the weights of the network with quantised activations are: as in this table, at most 8."""
        return min(self.weight_bits, 8)

    def access(self, bits: float, kib: float) -> float:
        """Picojoules of moving so many bits from or to a memory of this size."""
        cost = next((cost for size, cost in self.memory if kib <= size), self.memory[-1][1])
        return cost * bits / WORD

    def to_json(self) -> dict[str, Any]:
        """The entries as JSON-able data; a memory of any size is [null, pJ]."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**own, "memory": [[size if math.isfinite(size) else None, cost] for size, cost in self.memory]}


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 2**1000  # a larger one is no float


def _pair(pair: Any) -> bool:
    two = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(_number(one) for one in pair)
    return two and pair[0] > 0 and pair[1] >= 0 and math.isfinite(pair[1])


@cache
def _tables() -> Mapping[str, dict[str, Any]]:
    return _read(HOME)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError as error:
        raise FileError(f"there is no energy table {path}") from error
    except (OSError, ValueError, RecursionError) as error:  # also numbers of 5,000 digits, and lists 1,000 deep
        raise FileError(f"{path} cannot be read as TOML: {error}") from error
