"""The table of targets (`targets.toml`) as data."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["HOME", "table", "targets"]

HOME = Path(__file__).with_name("targets.toml")


@cache
def _tables() -> Mapping[str, Mapping[str, Any]]:
    with HOME.open("rb") as stream:
        return tomllib.load(stream)


def targets() -> tuple[str, ...]:
    """The names of the targets."""
    return tuple(_tables())


def table(target: str) -> Mapping[str, Any]:
    """What one target can run; docs/hardware.md says where each line comes from."""
    return _tables()[target]
