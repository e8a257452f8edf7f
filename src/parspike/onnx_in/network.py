"""An ONNX file → a network of torch: its nodes run one after the other, each as a module of its own.

Constants are folded when the file is read. What depends on sizes alone is computed on sizes (`sizes.py`), so that
`torch.export` sees the layers, with free sizes where the file leaves them free.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parspike.errors import (
    FileError,
    InputError,
    InsufficientMemoryError,
    OptionError,
    ParspikeError,
    UnsupportedError,
    check_list,
    meant,
)
from parspike.foreign import identifier
from parspike.onnx_in import elementwise, layers, recurrent, shapes  # noqa: F401 - they register the rules
from parspike.onnx_in.file import Call, File, Given, check_order, read
from parspike.onnx_in.rules import MOST, REFUSED, RULES, TORCH, Rule, Site, as_tensor
from parspike.onnx_in.sizes import LARGEST, ON_SIZES, NotHere

__all__ = ["OnnxNetwork", "from_onnx"]

LISTED = 20
"""Nodes that a message names for each unsupported operator."""
FOLDED = 1 << 26
"""Elements at most of a tensor that is computed from constants when a file is read."""


def from_onnx(
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Read an ONNX file as a network in evaluation mode, which `plan` and `convert` take like any other.

        net = parspike.from_onnx("net.onnx")
        snn = parspike.convert(net, calibration=images, T=8)

    Its `forward` takes the inputs of the file under their names and returns its output, or a tuple of several. Each
    node is a layer under its name. Sizes that the file leaves free stay free; a batch that the file fixes is opened,
    and `plan` checks that samples do not mix. inputs, outputs: names of values that take the place of the file's inputs
    and outputs, so that a network can be taken without its preparation and its decoding. fixed: inputs that are made
    constants, by name, as numbers or arrays: thresholds and rates that are no data.

    Needs the package onnx (extra `export`), and neither runs code of the file nor reads outside of its folder. Raises
    `FileError` where the file is damaged or asks for what is refused, `UnsupportedError` with every operator at once
    that has no rule, `OptionError` for unknown names, `MissingExtraError` without onnx.
    """
    for name, values in {"inputs": inputs, "outputs": outputs}.items():
        if values is not None:
            check_list(values, name, str, "['name']")
    if fixed is not None and not isinstance(fixed, Mapping):
        raise OptionError(f"fixed= must be a dict of inputs by name, such as {{'rate': 0.5}}, got {str(fixed)[:80]}")
    file = _part(_with_fixed(read(path), dict(fixed or {})), inputs, outputs)
    return OnnxNetwork.of(file).eval()


def _part(file: File, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> File:
    """The part of a file between values."""
    made = {name for call in file.calls for name in call.outputs if name}
    known = {given.name: given for given in file.inputs}
    for option, names, there in (("inputs", inputs, {*made, *known}), ("outputs", outputs, made)):
        if names is not None and not names:
            raise OptionError(f"{option} names no value: leave it out, or name at least one")
        for name in names or ():
            if name not in there:
                own = ", ".join(known if option == "inputs" else file.outputs)
                raise OptionError(f"{file.path} has no value '{name}'{meant(name, there)}; its {option} are {own}")
    file = replace(file, outputs=tuple(file.outputs if outputs is None else outputs))
    if inputs is None:
        return file
    given = tuple(known.get(name) or Given(name, "float32", None) for name in inputs)
    calls = [call for call in file.calls if not set(call.outputs) & set(inputs)]
    file = replace(file, inputs=given, calls=tuple(calls))
    needed = _needed(file)
    there = {*file.constants, *inputs, *(name for call in needed for name in call.outputs), ""}
    if lacking := next((name for call in needed for name in call.inputs if name not in there), None):
        raise OptionError(f"inputs: the outputs need '{lacking}' too: name it among the inputs, or take other outputs")
    return file


def _with_fixed(file: File, fixed: dict[str, Any]) -> File:
    constants = dict(file.constants)
    known = {given.name: given for given in file.inputs}
    for name, value in fixed.items():
        if name not in known:
            raise OptionError(f"{file.path} has no input '{name}'{meant(name, known)}; it has {', '.join(known)}")
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise OptionError(f"fixed['{name}'] must be a number or an array of numbers, got {value!r}")
        wanted = known[name].shape
        if wanted is not None and len(wanted) != array.ndim:
            raise OptionError(f"fixed['{name}'] has {array.ndim} axes, the file's input has {len(wanted)}")
        constants[name] = array.astype(known[name].dtype)
    return replace(file, constants=constants, inputs=tuple(g for g in file.inputs if g.name not in fixed))


class Operator(nn.Module):
    """One node."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    @property
    def rule(self) -> Rule:
        """What the operator computes."""
        return RULES[self.call.domain, self.call.op]

    def extra_repr(self) -> str:
        """The operator, its inputs and its outputs."""
        return f"{self.call.op}: {', '.join(self.call.inputs)} → {', '.join(self.call.outputs)}"

    def forward(self, site: Site, *values: Any) -> Any:
        """What the rule makes of the inputs, with the node's name in any error."""
        return _run(site, self.rule, values)


def _run(site: Site, rule: Rule, values: Sequence[Any]) -> tuple[Any, ...]:
    try:
        made = rule.run(site, *values)
    except ParspikeError:
        raise
    except Exception as error:
        shapes = [tuple(v.shape) if v is not None else None for v in values]
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"{site.call} fails on inputs of shape {', '.join(map(str, shapes))[:400]}: {first[:200]}"
        ) from error
    return made if isinstance(made, tuple) else (made,)


@functools.cache
def _takes(rule: Rule) -> tuple[int, float]:
    """How many inputs a rule needs, and how many it takes at most."""
    kinds = list(inspect.signature(rule.run).parameters.values())[1:]  # the first is the site
    several = any(p.kind is p.VAR_POSITIONAL for p in kinds)
    needed = sum(p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in kinds)
    # Operators of any number of inputs need one; beside a named one, more are those that may be left out.
    return max(needed, 1), math.inf if several else len(kinds)


def _check_inputs_of(file: File, call: Call) -> None:
    """Refuse a node that leaves an input out that it needs, or has one that it does not know."""
    rule = RULES.get((call.domain, call.op))
    if rule is None:
        return
    needed, most = _takes(rule)
    if len(call.inputs) > most:
        raise FileError(f"{file.path}: {call} has {len(call.inputs)} inputs, and takes {most:.0f} at most")
    if len(call.inputs) < needed or not all(call.inputs[:needed]):
        given = sum(map(bool, call.inputs[:needed]))
        raise FileError(f"{file.path}: damaged: {call} needs its first {needed} inputs, and has {given} of them")


class OnnxNetwork(nn.Module):
    """The network of an ONNX file.

    given: its inputs, as the file declares them. weights: its constants. The other submodules are its nodes.
    """

    given: tuple[Given, ...]

    @staticmethod
    def of(file: File) -> OnnxNetwork:
        """The network of a file, its constants folded. Raises `UnsupportedError` with all operators without a rule."""
        _check_inputs(file)
        network = _empty(_identifiers([given.name for given in file.inputs]))
        network._build(file)
        return network

    def _build(self, file: File) -> None:
        self.path, self.given, self.results = str(file.path), file.inputs, file.outputs
        self.fixed_batch = file.batch
        self.known: dict[str, np.ndarray] = {}
        self.paths: dict[str, str] = {}
        self.order: list[tuple[str, Call]] = []
        self.weights = nn.Module()
        file = replace(file, calls=_needed(file))
        constants, calls = _folded(file)
        _check_rules(file, calls)
        check_order(file.path, calls, [*constants, *(given.name for given in file.inputs)], file.outputs)
        used: set[str] = set()
        for call in calls:
            rule = RULES[call.domain, call.op]
            name = _module_name(self, call.name)
            self.add_module(name, Operator(call))
            self.order.append((name, call))
            for place, read_name in enumerate(call.inputs):
                if read_name in constants:
                    used.add(read_name)
                    small = constants[read_name].size <= LARGEST
                    if small or place in rule.known:
                        self.known[read_name] = constants[read_name]
                    if place not in rule.known:
                        # A mean and a variance are no weights: training does not change them by gradients.
                        self._weigh(
                            read_name, constants[read_name], not (call.op == "BatchNormalization" and place > 2)
                        )
        for name in file.outputs:
            if name in constants:
                self._weigh(name, constants[name])

    def _weigh(self, name: str, array: np.ndarray, trained: bool = True) -> None:
        if name in self.paths:
            return
        path = _module_name(self.weights, name)
        tensor = as_tensor(array, torch.device("cpu"))
        if trained and tensor.is_floating_point() and tensor.dim():
            self.weights.register_parameter(path, nn.Parameter(tensor))
        else:
            self.weights.register_buffer(path, tensor)
        self.paths[name] = path

    def run(self, inputs: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """The outputs for inputs in the order of the file."""
        for given, x in zip(self.given, inputs, strict=True):
            self._check(given, x)
        device = inputs[0].device
        tensors: dict[str, Tensor] = {given.name: x for given, x in zip(self.given, inputs, strict=True)}
        known: dict[str, Any] = dict(self.known)
        batch = inputs[0].shape[0] if inputs[0].dim() else None
        for name, path in self.paths.items():
            tensors[name] = getattr(self.weights, path)
        last = self._last()
        for number, (module, call) in enumerate(self.order):
            operator = getattr(self, module)
            site = Site(call, device, batch, self.fixed_batch)
            results = self._on_sizes(site, known, tensors)
            if results is None:
                values = []
                for place, name in enumerate(call.inputs):
                    if not name:
                        values.append(None)
                    elif place in operator.rule.known and name in known:
                        values.append(known[name])
                    elif name in tensors:
                        values.append(tensors[name])
                    else:
                        values.append(site.tensor(known[name]))
                results = operator(site, *values)
            for name, value in zip(call.outputs, results, strict=False):
                (tensors if isinstance(value, Tensor) else known)[name] = value
            for name in last[number]:
                tensors.pop(name, None)
        made = tuple(tensors[name] if name in tensors else as_tensor(known[name], device) for name in self.results)
        return made[0] if len(made) == 1 else made

    def _check(self, given: Given, x: Tensor) -> None:
        """Refuse an input of another type or shape than the file declares; the batch is free."""
        wanted = TORCH[given.dtype]
        if not isinstance(x, Tensor):
            raise InputError(f"input '{given.name}' must be a tensor, got {type(x).__name__}")
        if x.is_floating_point() != wanted.is_floating_point or (not wanted.is_floating_point and x.dtype != wanted):
            raise InputError(
                f"input '{given.name}' is {x.dtype}, the file asks for {wanted}: convert it with .to({wanted})"
            )
        if given.shape is not None and (
            x.dim() != len(given.shape)
            # A size that the file fixes becomes fixed in the traced graph by this comparison.
            or any(isinstance(n, int) and x.shape[d] != n for d, n in enumerate(given.shape) if d)
        ):
            said = ", ".join(["B", *(str(n or "?") for n in given.shape[1:])])
            raise InputError(f"input '{given.name}' has the shape {tuple(x.shape)}, the file asks for ({said})")

    def _on_sizes(self, site: Site, known: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Any, ...] | None:
        """The outputs of a node that reads sizes and small constants alone; None where it needs tensors."""
        call = site.call
        if call.domain or call.op not in ON_SIZES or any(name and name not in known for name in call.inputs):
            return None
        return _small(site, [known[name] if name else None for name in call.inputs])

    def _last(self) -> list[list[str]]:
        """For each node the tensors that no later one reads, so that their memory is free again."""
        seen = set(self.results)
        last: list[list[str]] = []
        for _, call in reversed(self.order):
            names = {name for name in (*call.inputs, *call.outputs) if name} - seen
            last.append([name for name in names if name not in self.paths])
            seen |= names
        return last[::-1]

    def example(self, batch: int = 2, shape: Sequence[int] | None = None) -> Tensor | tuple[Tensor, ...]:
        """Inputs of zeros in the types that the file asks for. shape: that of one sample, for the first input.

        Raises `OptionError` where the file leaves a size open that `shape` does not give.
        """
        made: list[Tensor] = []
        for place, given in enumerate(self.given):
            sizes = tuple(shape) if shape is not None and not place else (given.shape or ())[1:]
            if given.shape is None and (shape is None or place):
                raise OptionError(f"{self.path} does not say the shape of its input '{given.name}'")
            if any(not isinstance(size, int) for size in sizes):
                free = ", ".join(str(size or "?") for size in sizes)
                raise OptionError(f"{self.path} leaves sizes of its input '{given.name}' open: ({free})")
            wanted = [batch, *(int(n) for n in sizes)]
            try:
                made.append(torch.zeros(wanted, dtype=TORCH[given.dtype]))
            except RuntimeError as error:
                raise InsufficientMemoryError(
                    f"{self.path}: memory ran out for its input '{given.name}' of the shape {wanted}: take a smaller "
                    "batch or shape"
                ) from error
        return made[0] if len(made) == 1 else tuple(made)

    def __reduce__(self) -> Any:
        return _empty, (tuple(inspect.signature(type(self).forward).parameters)[1:],), self.__dict__

    def __repr__(self) -> str:
        counts = Counter(call.op for _, call in self.order)
        return f"OnnxNetwork({self.path}: {', '.join(f'{n} {op}' for op, n in counts.most_common())})"


@functools.lru_cache(maxsize=64)
def _forward_for(names: tuple[str, ...]) -> Any:
    """A `forward` with the names of a file's inputs, as tracing and calibration read them off its signature."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])

    def forward(*args: Any, **named: Any) -> Any:
        """Run the network."""
        self, *inputs = signature.bind(*args, **named).args
        return self.run(inputs)

    forward.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return forward


@functools.lru_cache(maxsize=64)
def _class_for(names: tuple[str, ...]) -> type[OnnxNetwork]:
    return type("OnnxNetwork", (OnnxNetwork,), {"forward": _forward_for(names), "__module__": __name__})


def _empty(names: tuple[str, ...]) -> OnnxNetwork:
    """A network whose `forward` has given names, without nodes: what copies and pickles are filled into."""
    return _class_for(names)()


def _identifiers(names: Sequence[str]) -> tuple[str, ...]:
    """Names of inputs as names of Python.

    >>> _identifiers(["input.1", "x", "class", "serving_default:0"])
    ('input_1', 'x', 'class_', 'serving_default_0')
    >>> _identifiers(["class_", "class", "a.b", "a_b"])
    ('class_', 'class__', 'a_b', 'a_b_')
    """
    made: list[str] = []
    for name in names:
        text = identifier(name)
        while text in made:
            text += "_"
        made.append(text)
    return tuple(made)


def _module_name(home: nn.Module, name: str) -> str:
    """A name of the file as one of a submodule or tensor: no dots, nothing that the module has already."""
    # A converter that joins several layers writes all their names, with semicolons.
    text = re.sub(r"[^0-9A-Za-z_]+", "_", name.partition(";")[0]).strip("_") or "node"
    text = f"n{text}" if text[0].isdigit() else text
    made, number = text, 2
    while hasattr(home, made) or hasattr(nn.Module, made):
        made, number = f"{text}_{number}", number + 1
    return made


def _check_inputs(file: File) -> None:
    if not file.inputs:
        raise UnsupportedError(f"{file.path}: it has no input: nothing to convert")
    for given in file.inputs:
        if given.shape == ():
            raise UnsupportedError(
                f"{file.path}: its input '{given.name}' is a single number, without a batch: make it a constant, "
                f"parspike.from_onnx(path, fixed={{'{given.name}': …}})"
            )
        if math.prod(n for n in given.shape or () if isinstance(n, int)) > MOST:
            raise FileError(
                f"{file.path}: its input '{given.name}' has the shape {list(given.shape or ())}, which is too large"
            )


def _needed(file: File) -> tuple[Call, ...]:
    """The nodes that the outputs need."""
    needed = set(file.outputs)
    kept: list[Call] = []
    for call in reversed(file.calls):
        if needed.intersection(call.outputs):
            kept.append(call)
            needed.update(call.inputs)
            needed.update(
                name for value in call.attributes.values() if isinstance(value, File) for name in _reads(value)
            )
    return tuple(reversed(kept))


def _reads(branch: File) -> set[str]:
    inner = [
        name for call in branch.calls for v in call.attributes.values() if isinstance(v, File) for name in _reads(v)
    ]
    return {name for call in branch.calls for name in call.inputs} | set(branch.outputs) | set(inner)


def _folded(file: File) -> tuple[dict[str, np.ndarray], list[Call]]:
    """Constants, with all that follows from them alone, and the other nodes. A branch whose condition is constant takes
    the place of its If."""
    constants = dict(file.constants)
    calls: list[Call] = []
    waiting = list(reversed(file.calls))
    while waiting:
        call = waiting.pop()
        if call.op == "Constant" and not call.domain:
            constants[call.outputs[0]] = _constant(file, call)
            continue
        if call.op == "If" and not call.domain and call.inputs and call.inputs[0] in constants:
            taken = call.get("then_branch" if bool(constants[call.inputs[0]].reshape(-1)[0]) else "else_branch")
            branch, more = _branch(file, call, taken)
            constants.update(more)
            waiting.extend(reversed(branch))
            continue
        _check_inputs_of(file, call)
        values = [constants.get(name) if name else None for name in call.inputs]
        supported = (call.domain, call.op) in RULES
        if supported and call.inputs and all(not n or v is not None for n, v in zip(call.inputs, values, strict=True)):
            made = _computed(call, values)
            if made is not None:
                constants.update({name: a for name, a in zip(call.outputs, made, strict=False) if name})
                continue
        calls.append(call)
    return constants, calls


def _constant(file: File, call: Call) -> np.ndarray:
    for key, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64),
                       ("value_ints", np.int64)):  # fmt: skip
        if key in call.attributes:
            return np.array(call.attributes[key], dtype)
    value = call.get("value")
    if not isinstance(value, np.ndarray):
        raise UnsupportedError(f"{file.path}: {call} holds no numbers: not supported")
    return value


def _branch(file: File, call: Call, branch: Any) -> tuple[list[Call], dict[str, np.ndarray]]:
    """The nodes of a branch with names of their own, and its outputs under those of the If."""
    if not isinstance(branch, File) or len(branch.outputs) != len(call.outputs):
        raise FileError(f"{file.path}: damaged: {call} has no branch with as many outputs as it has")
    own = {name for inner in branch.calls for name in inner.outputs if name} | set(branch.constants)
    names = {name: f"{call.name}/{name}" for name in own}
    calls = [
        replace(
            inner,
            name=f"{call.name}/{inner.name}",
            inputs=tuple(names.get(name, name) for name in inner.inputs),
            outputs=tuple(names.get(name, name) for name in inner.outputs),
        )
        for inner in branch.calls
    ]
    for number, (inside, outside) in enumerate(zip(branch.outputs, call.outputs, strict=True)):
        name = f"{call.name}/out{number}"
        calls.append(Call("Identity", "", call.opset, name, (names.get(inside, inside),), (outside,)))
    return calls, {names[name]: array for name, array in branch.constants.items()}


def _computed(call: Call, values: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...] | None:
    """What a node makes of constants; None where that cannot be kept."""
    site, rule = Site(call, most=FOLDED), RULES[call.domain, call.op]
    if not call.domain and call.op in ON_SIZES and (small := _small(site, values)) is not None:
        return small
    if sum(0 if v is None else v.size for v in values) > LARGEST:
        _check_growth(site, rule, values)
    with torch.no_grad():
        given = [v if v is None or place in rule.known else as_tensor(v, site.device) for place, v in enumerate(values)]
        made = _run(site, rule, given)
    if any(isinstance(a, Tensor) and a.dtype is torch.bfloat16 for a in made):
        return None  # NumPy has no such numbers: it is computed when the network runs
    return _arrays(site, made)


def _arrays(site: Site, made: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Results as arrays. Raises `FileError` on one that NumPy cannot hold, such as one without elements whose other
    sizes are beyond measure."""
    try:
        return tuple(a.contiguous().numpy() if isinstance(a, Tensor) else np.asarray(a) for a in made)
    except Exception as error:
        raise FileError(f"{site.call} fails: {(str(error).splitlines() or [type(error).__name__])[0][:200]}") from error


def _check_growth(site: Site, rule: Rule, values: Sequence[np.ndarray | None]) -> None:
    """Refuse constants that grow beyond measure when they are folded; looked at without memory for their numbers."""
    with torch.device("meta"):
        given = [
            v if v is None or place in rule.known else torch.empty(v.shape, dtype=torch.from_numpy(v[:0]).dtype)
            for place, v in enumerate(np.atleast_1d(v) if v is not None and v.ndim == 0 else v for v in values)
        ]
        try:
            made = _run(replace(site, device=torch.device("meta")), rule, given)
        except UnsupportedError:
            raise
        except Exception:  # noqa: BLE001 - what cannot be looked at without numbers is small, or fails below
            return
    site.checked([sum(a.numel() for a in made if isinstance(a, Tensor))])


def _small(site: Site, values: Sequence[np.ndarray | None]) -> tuple[Any, ...] | None:
    if any(v is not None and v.size > LARGEST for v in values):
        return None
    try:
        made = ON_SIZES[site.call.op](site, *values)
    except NotHere:
        return None
    except ParspikeError:
        raise
    except Exception as error:
        raise FileError(f"{site.call} fails: {(str(error).splitlines() or [type(error).__name__])[0][:200]}") from error
    return made if isinstance(made, tuple) else (made,)


def _check_rules(file: File, calls: Sequence[Call]) -> None:
    """Refuse all operators that have no rule at once, and outputs that a rule does not make."""
    lacking: dict[str, list[str]] = {}
    for call in calls:
        rule = RULES.get((call.domain, call.op))
        operator = f"{call.domain}.{call.op}" if call.domain else call.op
        if rule is None:
            lacking.setdefault(operator, []).append(call.name)
        elif any(call.outputs[rule.outputs :]):
            lacking.setdefault(f"{operator} with {len(call.outputs)} outputs", []).append(call.name)
    if not lacking:
        return
    lines = []
    for operator, names in lacking.items():
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        reason = f" ({REFUSED[operator]})" if operator in REFUSED else ""
        lines.append(f"{operator}{reason}: {', '.join(names[:LISTED])}{more}")
    error = UnsupportedError(
        f"{file.path}: {len(lacking)} operators are not supported: {'; '.join(lines)}. Take the part of the network "
        "before them with outputs=, or replace them where it was exported (docs/onnx.md lists what is supported)"
    )
    error.details = lacking
    raise error
