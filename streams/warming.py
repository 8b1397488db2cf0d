"""Vectors of an encoder made and kept before they are needed, partition by partition, while others score.

A candidate that brings an encoder is announced as shadow. Until it is promoted, workers have the texts of their active
users encoded by it, under a rate budget, and write the vectors into the texts' records and with them into the
changelog: who takes the release up, or the partition over, encodes nothing again. What was warmed is read off the
state, as what is left to be re-scored is; so a restart or a rebalance in between needs no bookkeeping.

Without a candidate it is the active release's encoder, for texts of active users who were not scored by it yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.active import ActiveUsers
from xplat_stream.errors import InvalidScores, TritonUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.migration import Budget
    from streams.store import PartitionStore
    from xplat_stream.event import TextHash, UserId
    from xplat_stream.serving.releases import Release
    from xplat_stream.serving.scorer import Scorer
    from xplat_stream.serving.texts import TextVectors
    from xplat_stream.settings import ReleaseSettings

log = logging.getLogger("xplat.worker")

_TOGETHER: Final = 16
"""Texts encoded together: two calls on a CPU."""

_READ_AT_ONCE: Final = 50
"""Users whose texts are read between two chances for a chunk to be handled: a few milliseconds."""

_IDLE_S: Final = 1.0
_BETWEEN_S: Final = 0.05
_AWAY_S: Final = 5.0
_LOOK_AGAIN_S: Final = 30.0


class Warmth(NamedTuple):
    """How far a partition is with the vectors of an encoder.

    `warm`: a look at every active user found no text of theirs without one.
    """

    encoder: int = 0
    texts: int = 0
    warmed: int = 0
    warm: bool = False


class Warmer:
    """What all partitions of a worker share: which encoder is warmed, and who asks it.

    The circuit breaker does not hear of it: whatever a candidate's encoder does, no profile is degraded for it.
    """

    def __init__(self, scorer: Scorer, live: TextVectors) -> None:
        self._scorer = scorer
        self._live = live
        self._candidate = 0
        self.release: Release | None = None
        """The release whose encoder is warmed; None before any."""

    def aim(self, active: Release, candidate: Release | None = None) -> None:
        """Warm the encoder of a candidate from now on, or that of the active release where it brings none."""
        coming = candidate.encoder if candidate is not None and candidate.encoder != active.encoder else 0
        if self._candidate not in {0, coming, active.encoder}:
            self._live.forget_encoder(self._candidate)
        self._candidate = coming
        self.release = candidate if candidate is not None and coming else active

    @property
    def expects(self) -> bool:
        """Whether it is a coming encoder that is warmed."""
        return self._candidate != 0

    async def vectors(
        self, release: Release, store: PartitionStore, hashes: Sequence[TextHash]
    ) -> dict[TextHash, bytes]:
        """Return vectors by a release's encoder of texts a store holds: those in memory, and the others made.

        Empty where they cannot be made now. Raises nothing.
        """
        live = self._live.of(release.encoder)
        entries = store.texts(hashes)
        absent = [one for one in entries if one not in live]
        try:
            made = dict(
                zip(absent, await self._scorer.encode(release, [entries[one].text for one in absent]), strict=True)
            )
        except (TritonUnavailable, InvalidScores) as error:
            log.debug("texts are not encoded ahead for release %d now: %s", release.number, error)
            return {}
        except Exception:  # a candidate may hold anything, and must not stop the worker
            log.exception("the encoder of release %d is not warmed", release.number)
            return {}
        found = {one: live[one] for one in entries if one in live} | made
        live.update(made)
        return found


class Warming:
    """The texts of one partition's active users that lack a vector. One lane owns it.

    Of very many active users, the most recent ones that a look holds.
    """

    def __init__(
        self,
        store: PartitionStore,
        warmer: Warmer,
        budget: Budget,
        settings: ReleaseSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._warmer = warmer
        self._budget = budget
        self._users = ActiveUsers(store, settings.active_days, now=now)
        self._clock = clock
        self.progress = Warmth()
        self._again_at = 0.0
        self._making: asyncio.Task[dict[TextHash, bytes]] | None = None
        self._taken: list[TextHash] = []
        self._begin()

    def wait_s(self) -> float:
        """Return for how long `step` has nothing to do; never so long that another release goes unnoticed."""
        release = self._warmer.release
        if release is None:
            return _IDLE_S
        if self._making is not None:
            return 0.0 if self._making.done() else _BETWEEN_S
        if release.encoder != self.progress.encoder:
            return 0.0
        wait_s = max(0.0, self._again_at - self._clock())
        if not self._looking and self._left:
            wait_s = max(wait_s, self._budget.wait_s(min(_TOGETHER, len(self._left))))
        return min(_IDLE_S, wait_s)

    def step(self) -> bool:
        """Go a little further, waiting for nothing. Tell whether the store has texts with new vectors to write."""
        release = self._warmer.release
        if release is None:
            return False
        if self._making is not None:
            return self._making.done() and self._keep(release.encoder)
        if release.encoder != self.progress.encoder:
            self.progress = Warmth(release.encoder)
            self._again_at = self._clock()
            self._begin()
        if self._clock() < self._again_at:
            return False
        if self._looking:
            self._look(release.encoder)
            return False
        granted = self._budget.take(min(_TOGETHER, len(self._left)))
        if granted:
            self._taken = [self._left.popleft() for _ in range(granted)]
            self._making = asyncio.create_task(self._warmer.vectors(release, self._store, self._taken))
        return False

    def close(self) -> None:
        """Let go of what is being made."""
        if self._making is not None:
            self._making.cancel()
            self._making = None

    def _keep(self, encoder: int) -> bool:
        """Put the vectors that were made beside those the texts have."""
        assert self._making is not None  # noqa: S101 - as `step` has seen
        made, self._making = self._making.result(), None
        if encoder != self.progress.encoder:
            return False
        if not made:
            self._left.extendleft(reversed(self._taken))
            self._again_at = self._clock() + _AWAY_S
            return False
        for text_hash, entry in self._store.texts(made).items():
            self._store.put_text(text_hash, entry.with_vector(encoder, made[text_hash]))
        self.progress = self.progress._replace(warmed=self.progress.warmed + len(made))
        if not self._left:
            self._begin()
        return True

    def _begin(self) -> None:
        self._looking = True
        self._users.forget()
        self._unread: deque[UserId] | None = None
        self._seen: set[TextHash] = set()
        self._warmed = 0
        self._left: deque[TextHash] = deque()

    def _look(self, encoder: int) -> None:
        """Look for active users, and then at some of their texts."""
        if self._unread is None:
            found = self._users.look()
            self._unread = None if found is None else deque(found.users)
            return
        self._read([self._unread.popleft() for _ in range(min(_READ_AT_ONCE, len(self._unread)))], encoder)
        if self._unread:
            return
        self.progress = Warmth(encoder, len(self._seen), self._warmed, not self._left)
        self._looking = False
        if not self._left:
            self._begin()
            # Texts that come from now on are kept with the active encoder's vector anyway.
            self._again_at = self._clock() + (_LOOK_AGAIN_S if self._warmer.expects else float("inf"))

    def _read(self, users: Sequence[UserId], encoder: int) -> None:
        hashes = {one for user_id in users for one in self._store.user(user_id).window.text_hashes()} - self._seen
        for text_hash, entry in self._store.texts(hashes).items():
            self._seen.add(text_hash)
            if encoder in entry.vectors:
                self._warmed += 1
            else:
                self._left.append(text_hash)
