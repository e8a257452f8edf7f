"""SPEC → a network in eval mode, with the input it expects.

    package.module:factory    file.py:factory    timm:NAME    torchvision:NAME    net.onnx    net.onnx:OUTPUT
    hf:FOLDER    hf:net.gguf    hf:FOLDER:HEAD

`file.py` is the user's own code and is run like a script; `--weights`, `.onnx` files and `hf:` are data and run none.
torch is imported where a network is made, so that a wrong SPEC is said at once.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from parspike.cli.console import FEW, few, warn
from parspike.cli.preprocess import FILTERS, Preprocessing, noted_weights
from parspike.cli.sources import CLASSES, Inputs
from parspike.errors import FileError, InputError, MissingExtraError, OptionError, meant
from parspike.foreign import call_users, users_module

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Network", "check_spec", "load", "load_network", "parse_shape", "set_state"]

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""First bytes of files of torch.save from before it wrote .zip files: a pickled number."""
LIBRARIES = ("timm", "torchvision")
EXPECTED = "expected safetensors, or what torch.save(model.state_dict(), …) wrote"
FORMS = "package.module:factory, file.py:factory, timm:NAME, torchvision:NAME, net.onnx or hf:FOLDER"
ONNX = re.compile(r"(.+\.onnx)(?::(.+))?", re.IGNORECASE)
"""A file, and where given one of its values, which may have colons in its name."""
HEADS = ("causal", "classes", "hidden", "sentence")
"""A copy of `parspike.language.HEADS`, whose module imports torch; a test compares the two."""
HUGGING = re.compile(rf"hf:(.+?)(?::({'|'.join(HEADS)}))?")
"""A folder or file, and where given what the network returns."""


@dataclass(frozen=True)
class Network:
    """A network in eval mode; `shape` (C, H, W) and `preprocess` where its library states them. example: of a file that
    states its inputs, the function that makes them from a number of samples and the shape that is asked for."""

    model: nn.Module
    spec: str
    random_weights: bool
    shape: tuple[int, ...] | None = None
    preprocess: Preprocessing | None = None
    example: Callable[[int, tuple[int, ...] | None], Any] | None = None

    @property
    def inputs(self) -> Inputs:
        """The names that `forward` gives its inputs."""
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        known = [p for p in inspect.signature(self.model.forward).parameters.values() if p.kind in kinds]
        needed = tuple(p.name for p in known if p.default is p.empty)
        return Inputs(needed, tuple(p.name for p in known if p.name not in (*needed, *CLASSES)))

    def answer(self, *args: Tensor, **named: Tensor) -> Any:
        """What the network itself returns. Raises `InputError` where it does not take what the converted one takes."""
        try:
            return self.model(*args, **named)
        except Exception as error:  # any error of foreign code
            shapes = ", ".join(str(tuple(x.shape)) for x in (*args, *named.values()))
            raise InputError(
                f"SPEC {self.spec} fails on inputs {shapes}, which the converted network takes: "
                f"{(str(error).splitlines() or [type(error).__name__])[0]}. Is it the network that it was made from?"
            ) from error

    def zeros(self, shape: str | None) -> Any:
        """Two samples of zeros in the shape asked for, else in the one that the library or the file states."""
        import torch

        if self.example is not None:
            try:
                return self.example(2, parse_shape(shape) if shape else None)
            except OptionError as error:
                if HUGGING.fullmatch(self.spec):
                    raise
                raise OptionError(f"{error}: give one sample's shape with --shape 3,224,224") from error
        if len(needed := self.inputs.needed) > 1:
            raise InputError(
                f"{self.spec} takes the inputs {', '.join(needed)}, and --shape makes one: give --data FILE.npz with "
                "an array for each under its name"
            )
        one = parse_shape(shape) if shape else self.shape
        try:
            return torch.zeros(2, *(one or ()))  # `checks.network` has seen to it that there is one
        except RuntimeError as error:
            raise OptionError(f"--shape {shape}: two samples of this size do not fit into memory") from error


def load(spec: str, weights: str | None, beside: Any = None) -> Network:
    """The network of a SPEC, with a warning where its weights are random.

    beside: the converted network that it is compared with. A warning, too, where that one had a file of weights.
    """
    network = load_network(spec, weights)
    if network.random_weights:
        warn(f"{spec} has random weights: give trained ones with --weights FILE")
    elif weights is None and beside is not None and (file := noted_weights(beside, spec)):
        warn(f"the spiking network was made from {spec} with --weights {file}, and no --weights is given here")
    elif weights is None and network.example is None and _untrained(network.model):
        warn(f"{spec} looks untrained, its norms are those of a new network: give trained weights with --weights FILE")
    return network


def _untrained(model: nn.Module) -> bool:
    """Whether there are norms, and none of them has seen a batch or a gradient. Training moves them all."""
    from torch.nn.modules import batchnorm, normalization
    from torch.nn.parameter import is_lazy

    kinds = (batchnorm._NormBase, normalization.LayerNorm, normalization.GroupNorm, normalization.RMSNorm)
    start = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
    norms = [dict(m.named_parameters()) | dict(m.named_buffers()) for m in model.modules() if isinstance(m, kinds)]
    known = [
        (tensor, start[name])
        for state in norms
        for name, tensor in state.items()
        if name in start and not is_lazy(tensor) and not tensor.is_meta  # which have no values
    ]
    return bool(known) and all(bool((tensor == value).all()) for tensor, value in known)


def load_network(spec: str, weights: str | None = None) -> Network:
    """The network that `spec` names, with the state of the file `weights` if one is given."""
    library, name = check_spec(spec, weights)
    shape, preprocess = None, None
    if ONNX.fullmatch(spec):
        return _from_onnx(spec, library, name)
    if HUGGING.fullmatch(spec):
        return _hugging(spec, library, name)
    if library == "timm":
        model, shape, preprocess = _timm(name)
    elif library == "torchvision":
        model, shape, preprocess = _torchvision(name)
    else:
        model = _from_factory(spec, library, name)
        preprocess = _stated(model)
    if weights is not None:
        set_state(model, spec, weights)
    random = weights is None and library in LIBRARIES
    return Network(model.eval(), spec, random, shape, preprocess)


def check_spec(spec: str, weights: str | None = None) -> tuple[str, str]:
    """SPEC in two, at its last colon; of an ONNX file, the file and the value of it that is asked for, or "". Refuses
    what can be refused before anything is imported."""
    if found := ONNX.fullmatch(spec):
        if not Path(found[1]).is_file():
            raise FileError(f"SPEC {spec}: there is no file {found[1]}")
        if weights is not None:
            raise OptionError(f"--weights {weights}: {found[1]} has its own weights: leave --weights out")
        return found[1], found[2] or ""
    if found := HUGGING.fullmatch(spec):
        if not Path(found[1]).exists():
            raise FileError(
                f"SPEC {spec}: there is no folder or file {found[1]}; parspike downloads nothing, so fetch it "
                "elsewhere (hf download NAME --local-dir FOLDER)"
            )
        if weights is not None:
            raise OptionError(f"--weights {weights}: {found[1]} has its own weights: leave --weights out")
        return found[1], found[2] or ""
    if spec.endswith(".parspike"):
        raise OptionError(f"SPEC {spec}: this is a converted network; name the one that it was made from, {FORMS}")
    where, separator, name = spec.rpartition(":")
    if not separator or not where or not name:
        raise OptionError(f"SPEC {spec!r}: expected {FORMS}")
    if where.endswith(".py") and not Path(where).is_file():
        raise FileError(f"SPEC {spec}: there is no file {where}")
    if weights is not None and not Path(weights).is_file():
        there = "this is a folder; name a file in it" if Path(weights).is_dir() else "there is no such file"
        raise FileError(f"--weights {weights}: {there}")
    return where, name


def states_input(spec: str) -> bool:
    """Whether the network's library, or its file, says which input it takes."""
    return bool(ONNX.fullmatch(spec) or HUGGING.fullmatch(spec)) or spec.partition(":")[0] in LIBRARIES


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


def _from_onnx(spec: str, file: str, name: str) -> Network:
    from parspike import from_onnx

    model = from_onnx(file, outputs=[name] if name else None)
    given: Any = model.given
    shape = given[0].shape[1:] if len(given) == 1 and given[0].shape else ()
    channels = shape[0] if len(shape) == 3 and shape[0] in (1, 3) else None
    preprocess = Preprocessing(channels=channels) if channels else None
    return Network(model, spec, False, None, preprocess, model.example)  # pyright: ignore[reportArgumentType]


def _hugging(spec: str, where: str, head: str) -> Network:
    from parspike import language
    from parspike.cli.preprocess import Text

    model = language(where, head=head or None)  # pyright: ignore[reportArgumentType]
    try:
        vocabulary = model.tokenizer.vocabulary
    except FileError:  # without text no tokenizer is needed, and with text its absence is told
        vocabulary = None
    text = Text(model.path, None, model.context, vocabulary, model.head)

    def example(samples: int, shape: tuple[int, ...] | None) -> Tensor:
        if shape is not None and (len(shape) != 1 or shape[0] > (model.context or shape[0])):
            most = f", {model.context} at most" if model.context else ""
            raise OptionError(f"--shape {','.join(map(str, shape))}: {spec} takes a number of tokens{most}")
        return model.example(samples, shape[0] if shape else min(16, model.context or 16))

    return Network(model, spec, False, None, Preprocessing(text=text), example)


def _from_factory(spec: str, where: str, name: str) -> nn.Module:
    from torch import nn

    module = users_module(where, f"SPEC {spec}")
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise OptionError(f"SPEC {spec}: {where} has no {name!r}{_choice(found, part)}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return copy.deepcopy(found)  # eval() below must not reach the user's own object
    if not callable(found):
        raise OptionError(f"SPEC {spec}: {name} is a {type(found).__name__}; expected a function that makes a network")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise OptionError(
            f"SPEC {spec}: {name} is {error}; name a function that gives it, such as def make(): return {name}(…)"
        ) from error
    except ValueError:
        pass  # written in C, without a signature: the call says what it lacks
    model = call_users(f"SPEC {spec}", found)
    if not isinstance(model, nn.Module):
        raise OptionError(f"SPEC {spec}: {name}() gave a {type(model).__name__}; expected a torch.nn.Module")
    return model


def _choice(found: Any, name: str) -> str:
    """For a message: the name in a module or class that was probably meant, else a list of those that make networks."""
    from torch import nn

    home = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", None)
    public = {n: v for n, v in vars(found).items() if not n.startswith("_")}
    networks = [n for n, v in public.items() if isinstance(v, nn.Module)]
    # What was imported from elsewhere is not what the file is for, unless it has nothing else.
    made = [n for n, v in public.items() if _makes(v) and f"{_home(v)}.".startswith(f"{home}.")]
    have = [*made, *networks] or [n for n, v in public.items() if _makes(v)]
    if said := meant(name, have):
        return said
    return f": it has {few(have, 10)}" if have else ": it has no function that makes a network"


def _makes(value: Any) -> bool:
    from torch import nn

    return isinstance(value, (FunctionType, staticmethod)) or (isinstance(value, type) and issubclass(value, nn.Module))


def _home(value: Any) -> str | None:
    return inspect.unwrap(getattr(value, "__func__", value)).__module__


def _stated(model: nn.Module) -> Preprocessing | None:
    """How a network's images are prepared, if its attribute `preprocessing` says so in the words of `Preprocessing`."""
    says = getattr(model, "preprocessing", None)
    known = {field.name for field in fields(Preprocessing)} - {"text"}
    if not isinstance(says, dict) or not says or not known.issuperset(says):
        return None  # something of the network's own
    try:
        return Preprocessing.from_json(says)
    except OptionError as error:
        raise OptionError(f"the network's attribute `preprocessing`, {says}: {error}") from error


def _timm(name: str) -> tuple[nn.Module, tuple[int, ...], Preprocessing]:
    timm = _vision("timm")
    if not timm.is_model(name):
        raise OptionError(f"timm has no network {name!r}{meant(name, timm.list_models())}")
    model = call_users(f"SPEC timm:{name}", lambda: timm.create_model(name, pretrained=False))
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
            f"torchvision has no classification network {name!r}{meant(name, models.list_models(module=models))}"
        )
    model = call_users(f"SPEC torchvision:{name}", lambda: models.get_model(name, weights=None))
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
        import torch

        raise OptionError(
            f"{library}: the installed torchvision was built for another torch than {torch.__version__} "
            f"({error}). Install a pair that belongs together with  pip install --force-reinstall "
            "torch torchvision --index-url https://download.pytorch.org/whl/cpu  or name the network as "
            "file.py:factory"
        ) from error


def set_state(model: nn.Module, spec: str, weights: str) -> None:
    """Loads the file into the model. One error counts the keys that do not fit; `details` has all of them."""
    state, expected = _read_state(Path(weights)), model.state_dict()
    # Files older than PyTorch 0.4.1 lack the counter, and inference never reads it.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    shapes = [
        f"{k} is {tuple(v.shape)}, expected {tuple(expected[k].shape)}"
        for k, v in state.items()
        if k in expected and v.shape != expected[k].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    problems = [f"{title} ({len(keys)}): {few(keys)}" for title, keys in wrong.items() if keys]
    if problems:
        cut = "; --json lists all" if max(map(len, wrong.values())) > FEW else ""
        error = InputError(f"{weights} does not fit {spec}: {'; '.join(problems)}{cut}")
        error.details = {title.replace(" ", "_"): keys for title, keys in wrong.items()}
        raise error
    model.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    import torch
    from torch import Tensor

    try:
        with path.open("rb") as stream:
            head = stream.read(64)
        if said := _no_weights(path, head):
            raise FileError(f"--weights {path}: this is {said}; {EXPECTED}")
        if path.suffix == ".safetensors" or _is_safetensors(head):
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            file = _before_zips(path) if head.startswith(LEGACY) else path
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileError:
        raise
    except Exception as error:  # each reader raises its own kinds on a damaged file
        # torch's own message advises to run the file's code, so it is not repeated.
        if isinstance(error, pickle.UnpicklingError) and (zipfile.is_zipfile(path) or head.startswith(LEGACY)):
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            more = f"more than tensors ({found[1]})" if found else "more than tensors"
            raise FileError(
                f"--weights {path}: the file holds {more} and was not run; "
                "where it was made, save the weights alone: torch.save(model.state_dict(), …)"
            ) from error
        reason = str(error)[:200] if _is_safetensors(head) else "it is damaged, or of another kind"
        raise FileError(f"--weights {path}: not a readable state dict ({reason}); {EXPECTED}") from error
    for key in ("state_dict", "model", "model_state_dict"):  # training scripts save more than the weights
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FileError(f"--weights {path}: holds no state dict; save it with torch.save(model.state_dict(), …)")
    for wrapper in ("_orig_mod.", "module.", "_orig_mod."):  # torch.compile around or inside nn.DataParallel
        if state and all(k.startswith(wrapper) for k in state):
            state = {k.removeprefix(wrapper): v for k, v in state.items()}
    return dict(state)


def _before_zips(path: Path) -> io.BytesIO:
    """A file from before torch.save wrote .zip files, in memory. Before torch reads them it takes memory for a text of
    the length that the file says, which it does not where the bytes are in memory, and for the values of a tensor,
    whose number is compared here."""
    content = path.read_bytes()
    stream, numbers = io.BytesIO(content), []
    for _ in range(4):  # pickles: two numbers of the format, where it was written, and the tensors without their values
        for code, value, _ in pickletools.genops(stream):
            if code.name == "BINPERSID" and max(numbers, default=0) > len(content):
                raise FileError(f"--weights {path}: damaged: it claims more than it holds; {EXPECTED}")
            if code.name in ("MARK", "BINPERSID"):
                numbers = []
            elif isinstance(value, int):
                numbers.append(value)
    return io.BytesIO(content)


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _no_weights(path: Path, head: bytes) -> str:
    """What a file holds instead of a state dict of PyTorch, told by its first bytes or its members."""
    if head.startswith(b'{"__metadata__":{"format":"parspike"', 8):
        return "a converted network (.parspike)"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file, as Keras writes"
    if head.startswith(b"\x93NUMPY"):
        return "a .npy array"
    if head.startswith(b"\x80") and not head.startswith(LEGACY):
        return "a Python pickle, which can hold code and was not run; where it was made, save model.state_dict()"
    if zipfile.is_zipfile(path):
        from parspike.cli.sources import DEFLATE

        with zipfile.ZipFile(path) as archive:
            names, size = archive.namelist(), path.stat().st_size
            # torch takes memory for what the zip says of a member before it reads it.
            if any(
                one.compress_size > size or one.file_size > DEFLATE * one.compress_size for one in archive.infolist()
            ):
                raise FileError(f"--weights {path}: damaged: it claims more than it holds; {EXPECTED}")
        if names and all(name.endswith(".npy") for name in names):
            return f"an .npz of arrays ({few([name.removesuffix('.npy') for name in names])}), which goes to --data"
        if any(name.endswith("/constants.pkl") for name in names):
            return "a TorchScript program, which was not run"
        if not any(name.endswith("/data.pkl") for name in names):
            return f"a .zip of other files ({few(names)})"
    return "an empty file" if not head else ""
