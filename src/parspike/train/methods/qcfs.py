"""qcfs: networks whose activations are QCFS, which convert without loss at T = T̃.

Bu, Fang, Ding, Dai, Yu, Huang, "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural
Networks", ICLR 2022. Equation (5) of `docs/equations.md`; both published gradients, read in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Size, nn

from parspike.neurons.quantised import WINDOWS
from parspike.train.activation import TrainQCFS
from parspike.train.fields import among, at_least
from parspike.train.methods.base import Method, shaped_by
from parspike.train.replace import with_qcfs

__all__ = ["QCFSMethod"]


@dataclass(frozen=True)
class QCFSMethod(Method):
    """QCFS activations of `levels` levels with trained thresholds; the options are those of `with_qcfs`."""

    name: ClassVar[str] = "qcfs"
    levels: int = 8
    v_threshold: float | str = 8.0
    per_channel: bool = False
    window: str = "inner"
    pool: str = "keep"

    def __post_init__(self) -> None:
        at_least("activation.levels", self.levels, 1)
        among("activation.window", self.window, WINDOWS)
        among("activation.pool", self.pool, ("keep", "avg"))

    def network(self, base: nn.Module, example: Any) -> nn.Module:
        """`with_qcfs`."""
        return with_qcfs(
            base, self.levels, v_threshold=self.v_threshold, per_channel=self.per_channel, window=self.window,
            pool=self.pool, example=example,
        )  # fmt: skip

    def restored(self, base: nn.Module, example: Any, shapes: Mapping[str, Size]) -> nn.Module:
        """As `network`; thresholds, and how many a layer has, are the file's."""
        return shaped_by(replace(self, v_threshold=8.0, per_channel=False).network(base, example), TrainQCFS, shapes)
