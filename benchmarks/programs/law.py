"""The window law as a user of any stream processor would write it: the last 50 events within 90 days, a set.

An event that is there already changes nothing, so a program that reads some events again after a crash still comes to
the right windows. Standard library only: it runs in every environment.
"""

from __future__ import annotations

from bisect import insort
from datetime import datetime
from typing import Any, Final

KEEP: Final = 50
HORIZON_MS: Final = 90 * 86_400_000

Kept = list[Any]
"""``[milliseconds, CloudEvents id, action, object id]``; lists of them are ordered by time, then id."""


def kept(event: dict[str, Any]) -> Kept:
    """Return what is kept of a decoded event."""
    data = event["data"]
    at_ms = round(datetime.fromisoformat(event["time"]).timestamp() * 1000)
    return [at_ms, event["id"], data["action"], data["object"]["id"]]


def fold(window: list[Kept], event: Kept) -> None:
    """Add one event to a window, in place."""
    if not window or event > window[-1]:
        window.append(event)
    elif event not in window:
        insort(window, event)
    drop = max(0, len(window) - KEEP)
    start = window[-1][0] - HORIZON_MS
    while window[drop][0] < start:
        drop += 1
    if drop:
        del window[:drop]


def summary(window: list[Kept]) -> dict[str, int]:
    """Return what is published of a window: when its newest event was, and how many it holds."""
    return {"end": window[-1][0], "events": len(window)}
