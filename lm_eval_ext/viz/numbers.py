"""Numbers as figures, tables and sentences print them."""

from __future__ import annotations


def points(share: float) -> str:
    """A change in percentage points, with its sign: `+3.1`, `−0.4`, `0.0`."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def points_interval(change: float, low: float, high: float) -> str:
    """A change with its interval, in points: `+3.1 [+0.2, +6.0]`."""
    return f"{points(change)} [{points(low)}, {points(high)}]"
