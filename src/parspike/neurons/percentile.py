"""Thresholds from data are asked for as "max" or as a percentile such as "99.9%"."""

from __future__ import annotations

__all__ = ["MODES", "rank_of", "share_of"]

MODES = "'max', or a percentile such as '99.9%'"
"""For messages."""


def share_of(mode: object) -> float | None:
    """The share of the values that do not exceed the threshold: 1 for "max", 0.999 for "99.9%"; None for no mode.

    >>> share_of("max"), share_of("99.5%"), share_of("101%")
    (1.0, 0.995, None)
    """
    if mode == "max":
        return 1.0
    if not isinstance(mode, str) or not mode.endswith("%"):
        return None
    try:
        share = float(mode.removesuffix("%")) / 100
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def rank_of(share: float, count: int) -> int:
    """Which of `count` values in ascending order, the first being 1, is the percentile: the nearest rank."""
    return max(1, min(count, round(share * count)))
