"""A device of its own for tests, as a GPU is one to torch: its memory is the CPU's, and operators that read tensors of
two devices fail (`other_device.cpp`). It stays registered while a process lives, so its tests have one of their own.
"""

from __future__ import annotations

import os
import subprocess
import types
from pathlib import Path

import torch

NAME = "other"
LIBRARY = "OTHER_DEVICE"
"""Of the environment: the built library, where the device is to be registered."""


def build(library: Path) -> None:
    """Compile the device; a minute on a slow machine."""
    torch_ = Path(torch.__file__).parent
    command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O0", "-w", f"-I{torch_ / 'include'}"]
    command += [str(Path(__file__).with_suffix(".cpp")), "-o", str(library)]
    subprocess.run(
        [*command, f"-L{torch_ / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch_ / 'lib'}"], check=True
    )


def registered() -> bool:
    """Whether this process has the device."""
    return LIBRARY in os.environ


def _register(library: str) -> None:
    torch.utils.rename_privateuse1_backend(NAME)
    torch.ops.load_library(library)
    none = torch.empty(0)
    module = types.SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, device_count=lambda: 1, current_device=lambda: 0,
        _is_in_bad_fork=lambda: False, manual_seed_all=lambda seed: None, get_rng_state=lambda device=0: none,
        set_rng_state=lambda state, device=0: None, get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
    )  # fmt: skip
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)


if registered():
    _register(os.environ[LIBRARY])
