"""SPEC → a network in eval mode, with the input it expects.

    package.module:factory    file.py:factory    timm:NAME    torchvision:NAME

`file.py` is the user's own code and is run like a script; `--weights` files are data and run nothing. torch is imported
where a network is made, so that a wrong SPEC is said at once.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from parspike.cli.data import FILTERS, Preprocessing
from parspike.errors import FileError, InputError, MissingExtraError, OptionError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Network", "load_network", "parse_shape"]

FORMS = "package.module:factory, file.py:factory, timm:NAME or torchvision:NAME"


@dataclass(frozen=True)
class Network:
    """A network in eval mode; `shape` (C, H, W) and `preprocess` where its library states them."""

    model: nn.Module
    spec: str
    random_weights: bool
    shape: tuple[int, ...] | None = None
    preprocess: Preprocessing | None = None


def load_network(spec: str, weights: str | None = None) -> Network:
    """The network that `spec` names, with the state of the file `weights` if one is given."""
    library, separator, name = spec.rpartition(":")
    if not separator or not library or not name:
        raise OptionError(f"SPEC {spec!r}: expected {FORMS}")
    shape, preprocess = None, None
    if library == "timm":
        model, shape, preprocess = _timm(name)
    elif library == "torchvision":
        model, shape, preprocess = _torchvision(name)
    else:
        model = _from_factory(spec, library, name)
    if weights is not None:
        _set_state(model, spec, weights)
    random = weights is None and library in ("timm", "torchvision")
    return Network(model.eval(), spec, random, shape, preprocess)


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape of one sample.

    >>> parse_shape("3,224,224")
    (3, 224, 224)
    """
    try:
        shape = tuple(int(n) for n in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise OptionError(f"--shape {text}: expected the shape of one sample without batch, such as 3,224,224")
    return shape


def _from_factory(spec: str, where: str, name: str) -> nn.Module:
    module = _run_file(spec, Path(where)) if where.endswith(".py") else _import(spec, where)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            have = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            raise OptionError(f"SPEC {spec}: {where} has no {name!r}{_perhaps(name, have)}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return copy.deepcopy(found)  # eval() below must not reach the user's own object
    if not callable(found):
        raise OptionError(f"SPEC {spec}: {name} is a {type(found).__name__}; expected a function that makes a network")
    model = _users_code(spec, found)
    if not isinstance(model, nn.Module):
        raise OptionError(f"SPEC {spec}: {name}() gave a {type(model).__name__}; expected a torch.nn.Module")
    return model


def _run_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise FileError(f"SPEC {spec}: no file {path}")
    found = importlib.util.spec_from_file_location(f"parspike_user_{path.stem}", path)
    if found is None or found.loader is None:
        raise FileError(f"SPEC {spec}: {path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    # As `python file.py` does: its neighbours can be imported, and its classes find their module.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[found.name] = module
    _users_code(spec, lambda: found.loader.exec_module(module))  # pyright: ignore[reportOptionalMemberAccess]
    return module


def _import(spec: str, name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not have it; `python -m` would
    try:
        return _users_code(spec, lambda: importlib.import_module(name))
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            raise OptionError(f"SPEC {spec}: no module {cause.name!r}; a file is named with its .py") from cause
        raise


def _users_code(spec: str, call: Callable[[], Any]) -> Any:
    """Calls the user's code; whatever it raises becomes one error with its line."""
    try:
        return call()
    except Exception as error:  # any error of foreign code, told with its place
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1])
        place = f"{last.filename}, line {last.lineno}"
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{error.filename}, line {error.lineno}"
        raise InputError(f"SPEC {spec}: {type(error).__name__}: {error} ({place})") from error


def _timm(name: str) -> tuple[nn.Module, tuple[int, ...], Preprocessing]:
    timm = _vision("timm")
    if not timm.is_model(name):
        raise OptionError(f"timm has no network {name!r}{_perhaps(name, timm.list_models())}")
    model = _users_code(f"timm:{name}", lambda: timm.create_model(name, pretrained=False))
    says = timm.data.resolve_model_data_config(model)
    shape = tuple(says["input_size"])
    preprocess = Preprocessing(
        size=int(shape[-1] / says["crop_pct"]),
        crop=shape[-1],
        mean=tuple(says["mean"]),
        std=tuple(says["std"]),
        interpolation=says["interpolation"] if says["interpolation"] in FILTERS else "bicubic",
        channels=shape[0] if shape[0] in (1, 3) else None,
    )
    return model, shape, preprocess


def _torchvision(name: str) -> tuple[nn.Module, tuple[int, ...], Preprocessing]:
    models = _vision("torchvision").models
    if name not in models.list_models(module=models):
        raise OptionError(
            f"torchvision has no classification network {name!r}{_perhaps(name, models.list_models(module=models))}"
        )
    model = _users_code(f"torchvision:{name}", lambda: models.get_model(name, weights=None))
    says = models.get_model_weights(name).DEFAULT.transforms()
    (crop,) = says.crop_size
    preprocess = Preprocessing(
        size=says.resize_size[0],
        crop=crop,
        mean=tuple(says.mean),
        std=tuple(says.std),
        interpolation=says.interpolation.value,
        channels=3,
    )
    return model, (3, crop, crop), preprocess


def _vision(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or library, extra="vision") from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise OptionError(
            f"{library}: the installed torchvision was built for another torch than {torch.__version__} "
            f"({error}). Install a pair that belongs together with  pip install --force-reinstall "
            "torch torchvision --index-url https://download.pytorch.org/whl/cpu  or name the network as "
            "file.py:factory"
        ) from error


def _set_state(model: nn.Module, spec: str, weights: str) -> None:
    """Loads the file into the model; every key that does not fit is named in one error."""
    state, expected = _read_state(Path(weights)), model.state_dict()
    problems = []
    # Files older than PyTorch 0.4.1 lack the counter, and inference never reads it.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    shapes = [
        f"{k} is {tuple(v.shape)}, expected {tuple(expected[k].shape)}"
        for k, v in state.items()
        if k in expected and v.shape != expected[k].shape
    ]
    for title, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)):
        if keys:
            problems.append(f"  {title} ({len(keys)}): {', '.join(keys)}")
    if problems:
        raise InputError(f"{weights} does not fit {spec}:\n" + "\n".join(problems))
    model.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileError(f"--weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader raises its own kinds on a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(
            f"--weights {path}: not a readable state dict ({reason}); "
            "expected safetensors, or what torch.save(model.state_dict(), …) wrote"
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):  # training scripts save more than the weights
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FileError(f"--weights {path}: holds no state dict; save it with torch.save(model.state_dict(), …)")
    if state and all(k.startswith("module.") for k in state):  # written by nn.DataParallel
        return {k.removeprefix("module."): v for k, v in state.items()}
    return dict(state)


def _perhaps(name: str, have: list[str]) -> str:
    near = difflib.get_close_matches(name, have, n=3)
    return f"; perhaps {', '.join(near)}" if near else ""
