"""relu: the network as it is, which the others start from or are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from parspike.train.methods.base import Method

__all__ = ["ReLUMethod"]


@dataclass(frozen=True)
class ReLUMethod(Method):
    """Trains the network itself; nothing is replaced and there are no options."""

    name: ClassVar[str] = "relu"

    def network(self, base: nn.Module, example: Any) -> nn.Module:
        """The very network that was given."""
        return base
