"""What `check` returns: what stands in the way of running a network on a chip, with grades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from parspike.notebook import html_table
from parspike.tables import Table

__all__ = ["GRADES", "Finding", "Grade", "TargetCheck"]

Grade = Literal["faithful", "approximate", "unsupported"]
GRADES: tuple[Grade, ...] = ("faithful", "approximate", "unsupported")
"""From the best to the worst: the chip computes the same; something near it; nothing public runs it."""
HEAD = ("grade", "layer", "what", "remedy", "source")


@dataclass(frozen=True)
class Finding:
    """One thing that a chip does otherwise, or cannot do.

    layer: where, "" for the whole network. about: the line of the table, such as "neurons" or "kernel". grade: of
    `GRADES`; "faithful" is a remark. what, remedy: in words. source: letters of docs/hardware.md, "Sources". verified:
    whether a public source says so; what is not verified is told and never counts for the grade of the network.
    """

    layer: str
    about: str
    grade: Grade
    what: str
    remedy: str = ""
    source: str = ""
    verified: bool = True


@dataclass(frozen=True)
class TargetCheck:
    """Whether a target can run a network. target, title: its name. findings: all of them, the worst first."""

    target: str
    title: str
    findings: tuple[Finding, ...]

    @property
    def grade(self) -> Grade:
        """The worst grade of what is verified; "faithful" where there is none."""
        worst = max((GRADES.index(one.grade) for one in self.findings if one.verified), default=0)
        return GRADES[worst]

    @property
    def ok(self) -> bool:
        """Whether nothing that is verified stands in the way."""
        return self.grade != "unsupported"

    @property
    def blockers(self) -> tuple[Finding, ...]:
        """What the target cannot run."""
        return tuple(one for one in self.findings if one.verified and one.grade == "unsupported")

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        findings = [asdict(one) for one in self.findings]
        return {"target": self.target, "title": self.title, "grade": self.grade, "ok": self.ok, "findings": findings}

    def _cells(self) -> list[tuple[str, ...]]:
        alike: dict[tuple[str, ...], list[str]] = {}
        for one in self.findings:
            key = (one.grade if one.verified else "not verified", one.what, one.remedy, one.source)
            alike.setdefault(key, []).append(one.layer or "(network)")
        return [(grade, _few(layers), *rest) for (grade, *rest), layers in alike.items()]

    def __str__(self) -> str:
        title = f"{self.title}: {self.grade}"
        if not self.findings:
            return f"{title}, nothing stands in the way"
        lines = Table(HEAD, self._cells(), frozenset(HEAD)).aligned()
        return "\n".join((title, "", *lines, "", "sources: docs/hardware.md; what is not verified never counts"))

    def _repr_html_(self) -> str:
        return html_table(f"{self.title}: {self.grade}", HEAD, self._cells())


def _few(layers: Sequence[str]) -> str:
    """The first of many layers, and how many more there are.

    >>> _few(["a", "b"]), _few(["a", "b", "c", "d"])
    ('a, b', 'a, b and 2 more')
    """
    return ", ".join(layers) if len(layers) < 4 else f"{layers[0]}, {layers[1]} and {len(layers) - 2} more"
