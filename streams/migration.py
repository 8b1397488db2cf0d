"""After another release took over: the active users of a partition are scored again, the others when next touched.

After a roll-back those whom the bad release scored come first, active or not: nothing it said is to stay.

Who is left is read off the state, which names the release of every user's last profile. So a restart, a rebalance or
another announcement in the middle needs no bookkeeping: whoever has the partition looks again.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.store import PartitionStore
    from xplat_stream.event import UserId
    from xplat_stream.settings import ReleaseSettings
    from xplat_stream.state import Glance

_TOGETHER: Final = 16
"""Users scored again together: few, so that a chunk that comes meanwhile does not wait long. With 64, one ordinary
update in ten took 45 ms or more while users moved, and 20 before."""

_LOOKED_AT: Final = 500
"""Users looked at between two chances for a chunk to be handled: a few milliseconds."""

_HELD: Final = 100_000
"""Users found and held in memory, the most recently active ones; the others are found by looking again."""

_BURST_S: Final = 1.0
"""What is not taken for so long is lost: a worker that was busy catches up with its rate, and no further."""

_LEAST_WAIT_S: Final = 0.001
"""Of a fraction of a user, which no clock tells from nothing."""

_IDLE_S: Final = 1.0
_AWAY_S: Final = 1.0
_LOOK_AGAIN_S: Final = 30.0
_HOUR_MS: Final = 3_600_000


class Budget:
    """A token bucket: how many users one worker scores again, all its partitions together."""

    def __init__(self, per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._clock = clock
        self._most = max(1.0, per_s * _BURST_S)
        self._held = 0.0
        self._at = clock()

    def take(self, most: int) -> int:
        """Take as many as there are, up to `most`."""
        self._fill()
        granted = min(most, int(self._held))
        self._held -= granted
        return granted

    def give_back(self, count: int) -> None:
        """Return what was taken and not used."""
        self._held = min(self._most, self._held + count)

    def wait_s(self, wanted: int) -> float:
        """Return in how many seconds so many can be taken, or as many as it holds at the most."""
        self._fill()
        missing = min(wanted, int(self._most)) - self._held
        return max(_LEAST_WAIT_S, missing / self._per_s) if missing > 0 else 0.0

    def _fill(self) -> None:
        now = self._clock()
        self._held = min(self._most, self._held + (now - self._at) * self._per_s)
        self._at = now


class Progress(NamedTuple):
    """How far a partition is on its way to a release.

    `settled`: a look at every user found none left, so `scored` is `active`.
    """

    release: int = 0
    active: int = 0
    scored: int = 0
    settled: bool = False


class Migration:
    """The users of one partition whom another release scored last. One lane owns it.

    Active are those whose newest event is within `active_days` of the newest of all (event time, so that a recorded
    log migrates like a live one; the clock only keeps one wrong date in the future from making everybody inactive).
    """

    def __init__(
        self,
        store: PartitionStore,
        budget: Budget,
        settings: ReleaseSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._budget = budget
        self._active_hours = settings.active_days * 24
        self._clock = clock
        self._now = now
        self.progress = Progress()
        self._withdrawn = 0
        self._again_at = clock()
        self._begin()

    def wait_s(self, release: int, withdrawn: int = 0) -> float:
        """Return for how long `take` has nothing to do; never so long that another release goes unnoticed."""
        if release == 0:
            return _IDLE_S
        if (release, withdrawn) != (self.progress.release, self._withdrawn):
            return 0.0
        wait_s = max(0.0, self._again_at - self._clock())
        if not self._looking and self._left:
            wait_s = max(wait_s, self._budget.wait_s(min(_TOGETHER, len(self._left))))
        return min(_IDLE_S, wait_s)

    def take(self, release: int, withdrawn: int = 0) -> list[UserId]:
        """Return users to be scored by this release now: those of a withdrawn one, then the most recently active.

        None while it is still looking for them, while the budget is spent, and when all are through.
        """
        if (release, withdrawn) != (self.progress.release, self._withdrawn):
            self.progress, self._withdrawn = Progress(release), withdrawn
            self._again_at = self._clock()
            self._begin()
        if self._clock() < self._again_at:
            return []
        if self._looking:
            self._look()
            return []
        if self._budget.wait_s(min(_TOGETHER, len(self._left))) > 0:
            return []  # a part costs much the same whatever its size: rather later than smaller
        granted = self._budget.take(_TOGETHER)
        users: list[UserId] = []
        while self._left and len(users) < granted:
            user_id = self._left.popleft()
            if self._is_left(self._store.user(user_id).glance()):
                users.append(user_id)
        self._budget.give_back(granted - len(users))
        if not self._left:
            self._begin()
        return users

    def note(self, scored: int) -> None:
        """Note how many of those taken are through."""
        progress = self.progress
        self.progress = progress._replace(scored=min(progress.active, progress.scored + scored))

    def put_back(self, users: list[UserId]) -> None:
        """Take users back who could not be scored now."""
        if self._looking:  # they were the last ones, and a look will find them
            self._begin()
        else:
            self._left.extendleft(reversed(users))
        self._again_at = self._clock() + _AWAY_S

    def _is_left(self, glance: Glance) -> bool:
        """Tell whether somebody is to be scored again here; `pending` ones are, anyway, as the degraded are."""
        return glance.release != self.progress.release and not glance.pending

    def _begin(self) -> None:
        self._looking = True
        self._after: UserId | None = None
        self._found: list[tuple[bool, int, UserId]] = []
        self._left: deque[UserId] = deque()
        self._seen: Counter[int] = Counter()
        self._seen_scored: Counter[int] = Counter()
        self._seen_withdrawn: Counter[int] = Counter()

    def _look(self) -> None:
        glances = self._store.glances(limit=_LOOKED_AT, after=self._after)
        for user_id, glance in glances:
            hour = glance.end // _HOUR_MS
            withdrawn = glance.release == self._withdrawn != 0
            self._seen[hour] += 1
            self._seen_withdrawn[hour] += withdrawn
            if glance.release == self.progress.release:
                self._seen_scored[hour] += 1
            elif self._is_left(glance):
                if len(self._found) < _HELD:
                    heappush(self._found, (withdrawn, glance.end, user_id))
                else:
                    heappushpop(self._found, (withdrawn, glance.end, user_id))
        if len(glances) == _LOOKED_AT:
            self._after = glances[-1][0]
            return
        newest = min(max(self._seen, default=0), self._now() * 1000 // _HOUR_MS)
        start = newest - self._active_hours
        active = sum(count for hour, count in self._seen.items() if hour >= start)
        active += sum(count for hour, count in self._seen_withdrawn.items() if hour < start)
        scored = sum(count for hour, count in self._seen_scored.items() if hour >= start)
        ordered = sorted(self._found, reverse=True)
        self._left = deque(user_id for withdrawn, end, user_id in ordered if withdrawn or end // _HOUR_MS >= start)
        self.progress = Progress(self.progress.release, active, scored, scored == active)
        self._found.clear()
        self._seen.clear()
        self._seen_scored.clear()
        self._seen_withdrawn.clear()
        self._looking = False
        if not self._left:
            self._rest(settled=scored == active)

    def _rest(self, *, settled: bool) -> None:
        """Look again only for those who are pending: who is touched from now on is scored by this release."""
        self._looking, self._after = not settled, None
        self._again_at = self._clock() + (_LOOK_AGAIN_S if not settled else float("inf"))
