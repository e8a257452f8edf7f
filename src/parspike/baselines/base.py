"""What the published methods share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from parspike.calibrate import Batches, Draft, Recipe
from parspike.errors import CalibrationError, OptionError
from parspike.graph import Clip, Quantised
from parspike.graph.ops import ENCODE
from parspike.neurons import IF, Kind

__all__ = ["Baseline", "Own"]


@dataclass(frozen=True, kw_only=True)
class Own(IF):
    """Neurons that a published method brings. method: the name of its recipe. Spikes of the network's inputs
    (`input="rate"`) are made by IF neurons."""

    method: str

    @property
    def text(self) -> str:
        return self.method

    @property
    def words(self) -> str:
        return f"neuron of '{self.method}'"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.method}


class Baseline(Recipe):
    """Base of the published conversion methods. cite: authors, title, place and year.

    They know ReLU, clipped ReLU and QCFS, so `fit` refuses other activations by name before `fill` is called.
    """

    cite: ClassVar[str]
    makes: ClassVar[Kind | None] = IF(v_init="zero")
    needs_qcfs: ClassVar[bool] = False
    """Whether the method starts from a network trained with QCFS activations, and takes its thresholds from it."""

    def fit(self, draft: Draft, batches: Batches | None) -> None:
        """Check that the method fits the network, then `fill` the draft."""
        wanted = "QCFS" if self.needs_qcfs else "ReLU, clipped ReLU or QCFS"
        odd = [
            draft.graph.by_name[name].layer
            for name, a in draft.activations.items()
            if draft.graph.by_name[name].target != ENCODE
            and not (isinstance(a, Quantised) or (not self.needs_qcfs and isinstance(a, Clip) and a.low == 0))
        ]
        if odd:
            raise OptionError(
                f"recipe '{self.name}' knows the activation {wanted} alone, and {len(odd)} layers have another, "
                f"'{odd[0]}' first: "
                + (
                    "train with parspike.train.with_qcfs, or take another recipe"
                    if self.needs_qcfs
                    else f"layers={{'{odd[0]}': parspike.Keep()}} computes it without spikes; recipe=None knows all"
                )
            )
        if batches is None and not all(isinstance(a, Quantised) for a in draft.activations.values()):
            raise CalibrationError(f"recipe '{self.name}' needs data: pass calibration= (images, no labels)")
        self.fill(draft, batches)

    @abstractmethod
    def fill(self, draft: Draft, batches: Batches | None) -> None:
        """Fill `draft.neurons`, and `draft.simulation` where not all of T steps are read. batches: None only where all
        activations are QCFS and the caller gave none."""
