"""Whether a chip can run a converted network: every blocker at once, from a table with sources."""

from parspike.target.check import check
from parspike.target.result import GRADES, Finding, TargetCheck
from parspike.target.tables import targets

__all__ = ["GRADES", "Finding", "TargetCheck", "check", "targets"]
