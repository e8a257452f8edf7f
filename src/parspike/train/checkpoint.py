"""What a training writes to disk: checkpoints, from which it resumes, and the weights at its end."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parspike.errors import FileError, InputError, OptionError
from parspike.train.recipe import TrainingRecipe
from parspike.whole import move_whole, write_whole

__all__ = ["check_checkpoint", "save_checkpoint", "save_weights", "stays"]


def save_checkpoint(fabric: Any, path: Path, everything: dict[str, Any]) -> None:
    """Write the values of all processes; the old checkpoint stays under the name until the new one is complete."""
    temporary = path.with_suffix(".part")
    try:
        fabric.save(temporary, everything)
        if fabric.is_global_zero:
            move_whole(temporary, path)
    except (OSError, RuntimeError) as error:
        if fabric.is_global_zero:  # the others end before the first one has moved it
            with suppress(OSError):  # half a checkpoint would fill the disk further
                temporary.unlink()
        if isinstance(error, RuntimeError) and "write" not in str(error).lower():
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "the disk is full" if full else str(error).splitlines()[0]
        raise FileError(
            f"{path}: the checkpoint of step {everything['step']} cannot be written ({why}){stays(path)}. "
            "Free some space and resume"
        ) from error
    fabric.barrier()


def stays(path: Path) -> str:
    """What a message about a failed training adds where there is a checkpoint."""
    return f"; the last good checkpoint, {path}, stays" if path.exists() else ""


def check_checkpoint(path: Path, recipe: TrainingRecipe, network: nn.Module, data: str) -> None:
    """Raise an error that lists every difference, unless network, recipe and data are those of the checkpoint."""
    try:
        # mmap: only the recipe and the names are read.
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        before, state = TrainingRecipe.from_json(json.loads(saved["recipe"])), saved["network"]
        if missing := {"optimiser", "data", "precision"} - saved.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}, an older parspike made it: train anew")
    except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileError(f"{path}: not a readable checkpoint ({reason})") from error
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    have = {name: tuple(t.shape) for name, t in state.items()}
    problems = [f"missing: {name}" for name in expected if name not in have]
    problems += [f"unexpected: {name}" for name in have if name not in expected]
    problems += [
        f"{name} is {have[name]}, expected {expected[name]}"
        for name in expected if name in have and have[name] != expected[name]
    ]  # fmt: skip
    if problems:
        raise InputError(f"{path} is a checkpoint of another network:\n  " + "\n  ".join(problems))
    if different := recipe.differences(before):
        raise OptionError(
            f"{path} was begun with another recipe (now and then):\n  " + "\n  ".join(different)
            + "\nresume with the old recipe, or train into another folder"
        )  # fmt: skip
    if saved["data"] != data:
        raise InputError(f"{path} was begun with other training images: resume with those, or choose another folder")


def save_weights(
    path: Path, tensors: dict[str, Tensor], recipe: TrainingRecipe, state: dict[str, Any], data: str
) -> None:
    """weights.safetensors, and weights.json beside it with how they were made."""
    from safetensors.torch import save

    tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
    about = {
        "recipe": recipe.to_json(), "seed": recipe.seed, "accuracy": state["accuracy"], "step": state["step"],
        "seconds": round(state["seconds"]), "data_sha256": data, "torch": torch.__version__,
    }  # fmt: skip
    write_whole(path, [save(tensors)])
    write_whole(path.with_suffix(".json"), [(json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()])
