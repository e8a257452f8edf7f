"""Where a training runs: Lightning Fabric for the devices asked for, and parameters that several of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parspike.errors import MissingExtraError, OptionError
from parspike.train.recipe import TrainingRecipe

__all__ = ["Devices", "local", "make_fabric"]

SHARDED = ("32-true", "bf16-mixed")
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""The parameters of each are gathered on their own."""


@dataclass(frozen=True)
class Devices:
    """Where to train, as Fabric names it. strategy: "auto", "ddp", "fsdp", …"""

    accelerator: str = "auto"
    devices: int | str = "auto"
    nodes: int = 1
    strategy: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.nodes, int) or self.nodes < 1:
            raise OptionError(f"--nodes {self.nodes!r}: a whole number, at least 1")


def make_fabric(recipe: TrainingRecipe, devices: Devices) -> Any:
    """Fabric, launched where there are several processes. Raises `OptionError` for devices that are not there."""
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import ModelParallelStrategy
    except ImportError as error:
        raise MissingExtraError("lightning-fabric", extra="train") from error
    strategy: Any = devices.strategy
    if strategy == "fsdp":
        if recipe.precision not in SHARDED:
            raise OptionError(f"--strategy fsdp trains in precision {' or '.join(SHARDED)}, not {recipe.precision}")
        # Fabric's own "fsdp" is the older FSDP, which refuses CPUs and parameters without a dimension (thresholds).
        strategy = ModelParallelStrategy(_shard, save_distributed_checkpoint=False)
    try:
        fabric = Fabric(
            accelerator=devices.accelerator, devices=devices.devices, num_nodes=devices.nodes,
            strategy=strategy, precision=recipe.precision,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise OptionError(f"these devices cannot be used: {str(error).splitlines()[0]}") from error
    if recipe.precision == "16-mixed" and fabric.device.type == "cpu":
        raise OptionError("precision 16-mixed needs a GPU: set precision=bf16-mixed, or 32-true")
    if not fabric.strategy.__class__.__name__.startswith("SingleDevice"):
        fabric.launch()
    return fabric


def _shard(network: nn.Module, mesh: Any) -> nn.Module:
    """FSDP2 over all processes; each layer is gathered when it is needed.

    Thresholds of one number cannot be divided: every process keeps them, and the loop averages their gradients.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    everyone = init_device_mesh(mesh.device_type, (torch.distributed.get_world_size(),))
    whole = {p for p in network.parameters() if not p.ndim}
    for module in [m for m in network.modules() if isinstance(m, LAYERS)] + [network]:
        fully_shard(module, mesh=everyone, ignored_params=whole)
    return network


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a parameter."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
