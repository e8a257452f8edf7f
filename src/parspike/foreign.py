"""Code of a user, by the name of its module or as a file that is run; an error in it is told with its line. And names
of other programs as names of Python."""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from parspike.errors import FileError, InputError, OptionError

__all__ = ["RECIPES_OF_PACKAGES", "call_users", "identifier", "users_module"]

RECIPES_OF_PACKAGES = "parspike.recipes"
"""Entry points under which packages register recipes."""


def users_module(where: str, said: str) -> ModuleType:
    """The module `package.module`, or that of a file `file.py`, which is run. said: what the user wrote, for messages.

    Raises `FileError` where there is no such file, `OptionError` where there is no such module, `InputError` on any
    error in it.
    """
    return _run(Path(where), said) if where.endswith(".py") else _import(where, said)


def call_users(said: str, call: Callable[[], Any]) -> Any:
    """Call the user's code; any exception becomes one `InputError` with the line."""
    try:
        return call()
    except Exception as error:  # any error of foreign code, told with its place
        places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)[1:]]
        places = [place for place in places if "site-packages" not in place[0] and place[0][:1] != "<"] or places[-1:]
        text = str(error)
        if isinstance(error, SyntaxError):
            text, places = error.msg, [(error.filename, error.lineno)] if error.filename else []
        place = " ({}, line {})".format(*places[-1]) if places else ""
        raise InputError(f"{said}: {type(error).__name__}: {text}{place}") from error


def _run(path: Path, said: str) -> ModuleType:
    if not path.is_file():
        raise FileError(f"{said}: there is no file {path}")
    found = importlib.util.spec_from_file_location(f"parspike_user_{path.stem}", path)
    if found is None or found.loader is None:
        raise FileError(f"{said}: {path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    # As `python file.py` does: its neighbours can be imported, and its classes find their module.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[found.name] = module
    call_users(said, lambda: found.loader.exec_module(module))  # pyright: ignore[reportOptionalMemberAccess]
    return module


def _import(name: str, said: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not have it; `python -m` would
    try:
        module = call_users(said, lambda: importlib.import_module(name))
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            raise OptionError(f"{said}: no module {cause.name!r}; a file is named with its .py") from cause
        raise
    if getattr(module, "__file__", None) is None and hasattr(module, "__path__"):
        raise OptionError(f"{said}: {name} is a folder and no module; a file in it is named {name}/FILE.py")
    return module


def identifier(name: str) -> str:
    """A name of an ONNX file as an argument of a Python function.

    >>> [identifier(name) for name in ("serving_default:0", "0", "class")]
    ['serving_default_0', 'input_0', 'class_']
    """
    text = re.sub(r"\W", "_", name) or "input"
    text = f"input_{text}" if text[0].isdigit() else text
    return f"{text}_" if keyword.iskeyword(text) or text == "self" else text
