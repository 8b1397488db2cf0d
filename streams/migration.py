"""After another release took over: the active users of a partition are scored again, the others when next touched.

After a roll-back those whom the bad release scored come first, active or not: nothing it said is to stay.

Who is left is read off the state, which names the release of every user's last profile. So a restart, a rebalance or
another announcement in the middle needs no bookkeeping: whoever has the partition looks again.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.active import ActiveUsers

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.store import PartitionStore
    from xplat_stream.event import UserId
    from xplat_stream.settings import ReleaseSettings
    from xplat_stream.state import Glance

_TOGETHER: Final = 8
"""Users scored again together: few, so that a chunk that comes meanwhile does not wait long. With 64, one ordinary
update in ten took 45 ms or more while users moved, and 20 before. Fewer cost more processor time each."""

_BURST_S: Final = 1.0
"""What is not taken for so long is lost: a worker that was busy catches up with its rate, and no further."""

_CATCHING_UP: Final = 2.0
"""Times its rate, at which it does: all at once, the parts of all lanes met, and chunks waited 60 ms behind them."""

_LEAST_WAIT_S: Final = 0.001
"""Of a fraction of a user, which no clock tells from nothing."""

_IDLE_S: Final = 1.0
_AWAY_S: Final = 1.0
_LOOK_AGAIN_S: Final = 30.0


class Budget:
    """A token bucket: how many users one worker scores again, all its partitions together."""

    def __init__(self, per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._clock = clock
        self._most = max(1.0, per_s * _BURST_S)
        self._held = 0.0
        self._at = self._next_at = clock()

    def take(self, most: int) -> int:
        """Take as many as there are, up to `most`; none too soon after others were taken."""
        self._fill()
        granted = min(most, int(self._held)) if self._at >= self._next_at else 0
        if granted:
            self._held -= granted
            self._next_at = self._at + granted / (_CATCHING_UP * self._per_s)
        return granted

    def give_back(self, count: int) -> None:
        """Return what was taken and not used."""
        self._held = min(self._most, self._held + count)
        self._next_at -= count / (_CATCHING_UP * self._per_s)

    def wait_s(self, wanted: int) -> float:
        """Return in how many seconds so many can be taken, or as many as it holds at the most."""
        self._fill()
        missing = min(wanted, int(self._most)) - self._held
        wait_s = max(missing / self._per_s, self._next_at - self._at)
        return max(_LEAST_WAIT_S, wait_s) if wait_s > 0 else 0.0

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

    Those whom a look does not hold, because they are too many, are found by looking again.
    """

    def __init__(
        self,
        store: PartitionStore,
        budget: Budget,
        settings: ReleaseSettings,
        *,
        waits: Callable[[UserId], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._budget = budget
        self._users = ActiveUsers(store, settings.active_days, now=now)
        self._waits = waits
        self._clock = clock
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
            if self._is_left(user_id, self._store.user(user_id).glance()):
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

    def _is_left(self, user_id: UserId, glance: Glance) -> bool:
        """Tell whether somebody is to be scored again here; the degraded are, anyway, as soon as that can be."""
        return glance.release != self.progress.release and (not glance.pending or self._waits(user_id))

    def _begin(self) -> None:
        self._looking = True
        self._left: deque[UserId] = deque()
        self._users.forget()

    def _look(self) -> None:
        found = self._users.look(self._is_left, withdrawn=self._withdrawn)
        if found is None:
            return
        active, scored = found.by_release.total(), found.by_release[self.progress.release]
        self.progress = Progress(self.progress.release, active, scored, scored == active)
        self._left.extend(found.users)
        self._looking = False
        if not self._left:
            self._rest(settled=scored == active)

    def _rest(self, *, settled: bool) -> None:
        """Look again only for those who are degraded: who is touched from now on is scored by this release."""
        self._looking = not settled
        self._again_at = self._clock() + (_LOOK_AGAIN_S if not settled else float("inf"))
