"""The count network as a package of compiled code: torch's AOTInductor, a `.pt2` file.

It runs without parspike, in Python (`torch._inductor.aoti_load_package`) and in C++. It is made by a C++ compiler for
the processor that it is made on. The batch is free.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parspike.errors import FileError, UnsupportedError
from parspike.snn import SNN

__all__ = ["load", "write"]


class _InOrder(nn.Module):
    """A package takes inputs by their places."""

    def __init__(self, snn: SNN) -> None:
        super().__init__()
        self.snn = snn

    def forward(self, *args: Tensor) -> Any:
        given, named = self.snn.graph.call_of({i.name: x for i, x in zip(self.snn.graph.inputs, args, strict=True)})
        return self.snn(*given, **named)


@torch.no_grad()
def write(snn: SNN, path: Path, env: Mapping[str, Tensor]) -> None:
    """Compile the network for inputs like `env` (by name), of any batch. Raises `UnsupportedError` with torch's own
    sentence where that fails."""
    args = tuple(x.repeat(2, *[1] * (x.dim() - 1)) if len(x) == 1 else x for x in env.values())
    batch = tuple({0: torch.export.Dim.DYNAMIC} for _ in args)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(_InOrder(snn), args, dynamic_shapes={"args": batch})
            made = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "network.pt2"))
            content = Path(made).read_bytes()
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedError(f"torch cannot compile this network into a package: {said}") from error
    path.write_bytes(content)


def load(path: Path) -> Callable[..., Any]:
    """The compiled network of a package."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = Path(folder) / "network.pt2"  # torch warns of other names, and what is not finished has one
        try:
            named.symlink_to(path.absolute())
            return torch._inductor.aoti_load_package(str(named))
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FileError(f"the package that was written cannot be loaded: {said}") from error
