"""What is said of a network that cannot be traced: the user's line, and the operators that it runs."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from parspike.graph import ops
from parspike.graph.ops import Role
from parspike.graph.quiet import outputs
from parspike.graph.refusals import EXPERTS, PADDED

__all__ = ["ASSIGNED", "IN_TRAINING", "asks_values", "explain", "frames", "keeps_state", "seen", "user_line"]

ASSIGNED = ".data of a tensor is assigned"
IN_TRAINING = "write it only in training (self.training)"


def explain(model: nn.Module, error: Exception) -> str:
    """The message for a network that could not be traced: the cause, the user's line, and what to do."""
    text = str(error)
    line = user_line(text) or user_line("".join(frames(error)))
    place = f" at {line}" if line else ""
    first = next((part.strip() for part in text.splitlines() if part.strip()), type(error).__name__)
    name = type(model).__name__
    if "pack_padded_sequence" in line or ("'size'" in text and any("modules/rnn.py" in f for f in frames(error))):
        return f"{name} packs sequences{place}, whose lengths are numbers in a tensor: {PADDED}"
    if ".numpy() is not supported" in text:
        return (
            f"{name}: the code takes numbers out of a tensor{place}, which would be the example's for every input: "
            "compute with the tensor itself, without .numpy()"
        )
    if asks_values(error):
        if "expert" in line and any(hasattr(module, "set_experts_implementation") for module in model.modules()):
            return f"{name}: the code loops over the experts that its values choose{place}: {EXPERTS} first"
        return (
            f"{name}: the code branches on the values of a tensor{place} ({first}). A spiking network has one fixed "
            "graph: replace the branch by tensor operations, or convert the part of the model around it"
        )
    if text == ASSIGNED:
        return (
            f"{name} assigns .data of a tensor{place}, which tracing cannot follow: of a weight, do that in training "
            "only (if self.training), or once before it is converted; of a value, compute another one (y = 2 * x)"
        )
    if "exported program constant's list" in text:
        return (
            f"{name} computes with a tensor that tracing cannot follow, such as one inside torch.vmap: write its "
            "products with torch.einsum or bmm"
        )
    if "is mutated in the forward" in text:
        return f"{name} writes into a tensor of its own in forward ({first}): a spiking network keeps no state"
    if (unknown := re.search(r"Found <class '([^']+)'> in output", text)) is not None:
        kind = unknown[1].rpartition(".")[2]
        if getattr(getattr(model, "config", None), "use_cache", False):
            return f"{name} returns a {kind} beside its outputs: set model.config.use_cache = False, then convert"
        return (
            f"{name} returns a {kind}, whose tensors cannot be found: return tensors in tuples, lists, dicts or data "
            "classes, from a module around it"
        )
    return f"{name} could not be traced{place}: {first}"


def keeps_state(model: nn.Module, name: str, uses: str, remedy: str = IN_TRAINING) -> str:
    """The message for a network that writes into a tensor of its own, and uses it."""
    return (
        f"{type(model).__name__} writes into '{name}' in forward, and {uses}: a spiking network keeps no state between "
        f"batches; {remedy}"
    )


def asks_values(error: Exception) -> bool:
    """Whether tracing failed since code asks for the numbers of a tensor."""
    return any(part in str(error) for part in ("data-dependent", "GuardOnDataDependent", "Could not guard"))


class _Watch(TorchDispatchMode):
    """Counts the operators that a network runs, by what the table says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        row = ops.TABLE.get(ops.target_of(func))
        if row is None or row.weighted or row.role is not Role.SYNAPSE:
            self.counts[func.__name__.split(".")[0] + (f" ({row.role})" if row else "")] += 1
        return func(*args, **(kwargs or {}))


def seen(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> str:
    """The operators that an untraceable network runs in an ordinary forward pass, up to its first error, as text."""
    with contextlib.suppress(Exception), _Watch() as watch:
        outputs(model, args, kwargs)
    found = ", ".join(f"{number} {name}" for name, number in watch.counts.most_common(12))
    return f". It runs: {found}" if found else ""


def frames(error: Exception) -> Iterator[str]:
    """The stack of an error, as Python prints it."""
    for frame in traceback.extract_tb(error.__traceback__):
        yield f'File "{frame.filename}", line {frame.lineno}, in {frame.name}\n    {frame.line}\n'


def user_line(stack: str) -> str:
    """The innermost line of a stack that belongs to the user's code, not to torch, its algebra of sizes, einops or
    parspike."""
    found, here = "", Path(__file__).parent
    pattern = r'File "([^"]+)", line (\d+), in (\S+)(?:\s*\n\s+(?!File)(\S[^\n]*))?'
    for path, line, _, code in re.findall(pattern, stack):
        # The layers of an ONNX file have names, and no lines.
        not_theirs = (Path(torch.__file__).parent, Path(sympy.__file__).parent, here, here.parent / "onnx_in")
        if path.startswith("<") or "einops" in Path(path).parts or any(f"{place}" in path for place in not_theirs):
            continue
        found = f"{'/'.join(Path(path).parts[-2:])}:{line}" + (f"  {code.strip()}" if code else "")
    return found
