"""Code of a user, by the name of its module or as a file that is run; an error in it is told with its line. And names
of other programs as names of Python."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import keyword
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from parspike.errors import FileError, InputError, OptionError, meant

__all__ = [
    "METHODS_OF_PACKAGES", "RECIPES_OF_PACKAGES", "call_users", "checked_class", "class_of_package", "digest_of",
    "identifier", "place_of", "registered", "users_class", "users_module",
]  # fmt: skip

DIGEST = "__parspike_sha256__"
"""The attribute of a module from a file that says what was in the file when it was run."""

LIBRARY = sysconfig.get_paths()["stdlib"]
"""The folder of Python's own library."""

RECIPES_OF_PACKAGES, METHODS_OF_PACKAGES = "parspike.recipes", "parspike.methods"
"""Entry points under which packages register recipes, and methods of training."""


def users_module(where: str, said: str, *, once: bool = False) -> ModuleType:
    """The module `package.module`, or that of a file `file.py`, which is run. said: what the user wrote, for messages.
    once: a file that was run before and has not changed since is not run again.

    Raises `FileError` where there is no such file, `OptionError` where there is no such module, `InputError` on any
    error in it.
    """
    return _run(Path(where), said, once) if where.endswith(".py") else _import(where, said)


def users_class(place: str, base: type, said: str) -> Any:
    """A class of the user's by its place, `file.py:Class` or `package.module:Class`: a dataclass that extends `base`
    and has a name. said: what it is, for messages. Raises what `users_module` raises, and `OptionError` where there is
    no such class in it."""
    where, _, wanted = place.rpartition(":")
    said = f"{said} {place}"
    found = vars(users_module(where, said, once=True))
    own = [n for n, v in found.items() if isinstance(v, type) and issubclass(v, base) and "name" in vars(v)]
    if wanted not in found:
        raise OptionError(f"{said}: {where} has no '{wanted}'{meant(wanted, own)}; it has {', '.join(own) or 'none'}")
    return checked_class(found[wanted], base, said)


def class_of_package(name: str, group: str, base: type, said: str) -> Any:
    """The class that an installed package has registered under a name, None where there is none."""
    points = entry_points(group=group)
    if name not in points.names:
        return None
    found = call_users(f"{said} '{name}'", points[name].load)
    return checked_class(found, base, f"{said} '{name}' of the entry points '{group}'")


def checked_class(found: Any, base: type, said: str) -> Any:
    """A dataclass that extends `base`, lacks nothing and has a name; `OptionError` says what is wrong with another."""
    if not (isinstance(found, type) and issubclass(found, base)):
        raise OptionError(f"{said} is no subclass of {base.__module__}.{base.__name__}")
    if not isinstance(vars(found).get("name"), str) or "__dataclass_fields__" not in vars(found):
        raise OptionError(f'{said} needs name: ClassVar[str] = "…", and @dataclass(frozen=True) above the class')
    if inspect.isabstract(found):
        raise OptionError(f"{said} lacks {', '.join(sorted(found.__abstractmethods__))}")
    return found


def registered(cls: Any, known: dict[str, Any], said: str) -> None:
    """Put a class that has a name of its own among the others, by that name. Raises `OptionError` where another class
    has it."""
    if "name" not in vars(cls):
        return
    before = known.get(cls.name)
    if before is not None and (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
        raise OptionError(
            f"{place_of(cls)}: there is a {said} '{cls.name}' already, {place_of(before)}: give yours another name"
        )
    known[cls.name] = cls


def place_of(cls: type) -> str:
    """Where a class stands, as `users_class` takes it: `file.py:Class` of a file that was run, else `module:Class`."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None) if hasattr(module, DIGEST) else None
    return f"{file or cls.__module__}:{cls.__qualname__}"


def digest_of(cls: type) -> str | None:
    """SHA-256 of the file that a class stands in, as it was when it was run; None where it stands in no file."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    try:
        return getattr(module, DIGEST, None) or (file and hashlib.sha256(Path(file).read_bytes()).hexdigest())
    except OSError:
        return None


def call_users(said: str, call: Callable[[], Any]) -> Any:
    """Call the user's code; any exception, and an end of the program, becomes one `InputError` with the line."""
    try:
        return call()
    except (Exception, SystemExit) as error:  # any error of foreign code, told with its place
        places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)[1:]]
        own = [place for place in places if "site-packages" not in place[0] and not place[0].startswith(("<", LIBRARY))]
        places, text = own or places[-1:], str(error)
        if isinstance(error, SystemExit):
            text += ": the code ends the program: put what only `python file.py` does under if __name__ == '__main__'"
        if isinstance(error, SyntaxError):
            text, places = error.msg, [(error.filename, error.lineno)] if error.filename else []
        place = " ({}, line {})".format(*places[-1]) if places else ""
        raise InputError(f"{said}: {type(error).__name__}: {text}{place}") from error


def _run(path: Path, said: str, once: bool) -> ModuleType:
    if not path.is_file():
        raise FileError(f"{said}: there is no file {path}")
    # Files of one name in two folders are two modules, so that classes of one do not pass for those of the other.
    folder = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    found = importlib.util.spec_from_file_location(f"parspike_user_{path.stem}_{folder}", path)
    if found is None or found.loader is None:
        raise FileError(f"{said}: {path} is not a Python file")
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    if once and getattr(before := sys.modules.get(found.name), DIGEST, None) == digest:
        return before  # pyright: ignore[reportReturnType]
    module = importlib.util.module_from_spec(found)
    setattr(module, DIGEST, digest)
    # As `python file.py` does: its neighbours can be imported, and its classes find their module.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[found.name] = module
    try:
        # Not the loader: its compiled copy stands for any file of the same size that was written in the same second.
        call_users(said, lambda: exec(compile(source, str(path), "exec"), module.__dict__))
    except BaseException:
        del sys.modules[found.name]
        raise
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
