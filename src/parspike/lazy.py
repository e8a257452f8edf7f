"""Names of a package that are looked up when they are first used: importing the package imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["look_up_later"]


def look_up_later(package: str, homes: Mapping[str, Sequence[str]]) -> None:
    """Make names, and the modules they come from, attributes of `package` that are imported on first use.

    homes: public names by the module of the package that defines them.
    """
    home = {name: module for module, names in homes.items() for name in names}

    class Package(ModuleType):
        """A package whose public names are not replaced by its modules of the same names when these are imported."""

        def __getattr__(self, name: str) -> Any:
            if name in home:
                value = getattr(import_module(f"{package}.{home[name]}"), name)
                setattr(self, name, value)
                return value
            if name in homes:
                return import_module(f"{package}.{name}")
            raise AttributeError(f"module {package!r} has no attribute {name!r}")

        def __setattr__(self, name: str, value: Any) -> None:
            # Importing a submodule binds it in its package. A public function of the same name, such as `convert`, is
            # kept instead.
            if name in home and isinstance(value, ModuleType):
                value = getattr(value, name)
            super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *home, *homes})

    sys.modules[package].__class__ = Package
