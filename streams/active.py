"""One look at all users of a partition, a few at a time: who is active, and by which release they were scored.

Active are those whose newest event is within `active_days` of the newest of all (event time, so that a recorded log is
treated like a live one; the clock only keeps one wrong date in the future from making everybody inactive). Since when
that is, is known at the end of a look alone: so users are counted by hour, and the most recent ones held.
"""

from __future__ import annotations

from collections import Counter
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.store import PartitionStore
    from xplat_stream.event import UserId
    from xplat_stream.state import Glance

HELD: Final = 100_000
"""Users found and held in memory, the most recently active ones."""

_LOOKED_AT: Final = 500
"""Users looked at between two chances for a chunk to be handled: a few milliseconds."""

_HOUR_MS: Final = 3_600_000


class Active(NamedTuple):
    """What a look has found."""

    users: list[UserId]
    """Those that were looked for, a withdrawn release's before all, then the most recently active; at most `HELD`."""
    by_release: Counter[int]
    """How many active users there are, by the release of their last profile."""


class ActiveUsers:
    """The users of one partition. A look at them begins when none is under way."""

    def __init__(self, store: PartitionStore, active_days: float, *, now: Callable[[], float]) -> None:
        self._store = store
        self._active_hours = active_days * 24
        self._now = now
        self.forget()

    def forget(self) -> None:
        """Give up the look that is under way."""
        self._after: UserId | None = None
        self._found: list[tuple[bool, int, UserId]] = []
        self._seen: Counter[tuple[int, int]] = Counter()

    def look(self, wanted: Callable[[UserId, Glance], bool] = lambda *_: True, *, withdrawn: int = 0) -> Active | None:
        """Look at some more users; return what was found when all have been seen.

        `wanted`: whom to look for. `withdrawn`: a release whose users count as active, however long ago they were,
        and come first; 0 for none.
        """
        glances = self._store.glances(limit=_LOOKED_AT, after=self._after)
        for user_id, glance in glances:
            self._seen[glance.end // _HOUR_MS, glance.release] += 1
            if wanted(user_id, glance):
                place = (glance.release == withdrawn != 0, glance.end, user_id)
                (heappush if len(self._found) < HELD else heappushpop)(self._found, place)
        if len(glances) == _LOOKED_AT:
            self._after = glances[-1][0]
            return None
        newest = min(max((hour for hour, _ in self._seen), default=0), self._now() * 1000 // _HOUR_MS)
        start = newest - self._active_hours
        by_release: Counter[int] = Counter()
        for (hour, release), count in self._seen.items():
            by_release[release] += count if hour >= start or release == withdrawn != 0 else 0
        ordered = sorted(self._found, reverse=True)
        users = [user_id for first, end, user_id in ordered if first or end // _HOUR_MS >= start]
        self.forget()
        return Active(users, by_release)
