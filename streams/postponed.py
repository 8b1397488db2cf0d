"""Users whose scoring can wait, because the new events cannot move what is published beyond the tolerance.

A user who waits has a new profile already, with the new window and the scores of an earlier one, marked ``stale``; and
is marked pending in the state, so that a restart, another owner or a lost host scores them at once: what is known here
is in memory alone. Everybody is scored before the staleness limit, by time and by number of events, whatever is
expected; whoever is expected to change most goes first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from xplat_stream.event import ACTION_INDEX, hash_text
from xplat_stream.serving.sensitivity import Additions, Estimator, leads, logits_of, tops
from xplat_stream.window import event_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from xplat_stream.event import Millis, TextHash, UserId
    from xplat_stream.serving.features import HeadInputs
    from xplat_stream.serving.releases import Release
    from xplat_stream.settings import ScoreSettings
    from xplat_stream.state import UserState
    from xplat_stream.taxonomy import Taxonomy
    from xplat_stream.window import Row, WindowEvent

_KNOWN: Final = 20_000
"""Users whose sums are held, those touched last: 4 kB each. Of the others nothing is expected, so they are scored."""

_AT_ONCE: Final = 8
"""More new events than this in one chunk are scored without looking."""

_HOUR_MS: Final = 3_600_000
_NO_TEXT: Final = hash_text("")
_AHEAD_S: Final = 2.0
"""So much before the limit scoring is due: a lane looks once a second, and scoring takes a moment."""


@dataclass(slots=True)
class _Known:
    """One user since the last scoring."""

    row: int
    """Of `_Sums`."""
    end: Millis
    revision: int
    """Which was scored: where another one was published since, this is not about what consumers see."""
    since: int = 0
    """Events not scored."""


class _Sums(NamedTuple):
    """What is known of all of them in numbers, a row each."""

    sums: NDArray[np.float32]  # (users, kinds, columns)
    base: NDArray[np.float32]  # (users, labels), the logits last scored minus what the map says of that window
    top: NDArray[np.bool_]  # (users, labels)


class _Looked(NamedTuple):
    """What a user did."""

    events: list[tuple[WindowEvent, int]]
    """By time, each with how many of the window before are newer."""
    kept: float
    """How much of the window has not fallen out."""


class Postponed:
    """Who waits, until when, and what is known of everybody. One instance serves all partitions of a worker."""

    def __init__(
        self, settings: ScoreSettings, taxonomy: Taxonomy, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._published = [place for place, label in enumerate(taxonomy.labels) if not label.sensitive]
        self._clock = clock
        self._waiting: dict[int, dict[UserId, tuple[float, float]]] = {}
        self._known: OrderedDict[UserId, _Known] = OrderedDict()
        self._free = list(range(_KNOWN))
        self._sums: _Sums
        self._release = 0
        self._estimator: Estimator | None = None
        self._platforms: dict[str, int] = {}
        self._width = 0
        self._margin = 0.0
        self._most_events = 0

    def count(self, partition: int) -> int:
        """Return how many users of a partition wait."""
        return len(self._waiting.get(partition, ()))

    def waits(self, partition: int, user_id: UserId) -> bool:
        """Tell whether a user waits here, and is scored when that is due."""
        return user_id in self._waiting.get(partition, ())

    def discard(self, partition: int, users: Iterable[UserId]) -> None:
        """Let users wait no longer, where they did: they were scored sooner, or cannot be."""
        waiting = self._waiting.get(partition, {})
        for user_id in users:
            waiting.pop(user_id, None)

    def due(self, partition: int, *, most: int) -> list[UserId]:
        """Take users out whose limit has come, those that are expected to change most first, at most `most`."""
        waiting = self._waiting.get(partition)
        if not waiting:
            return []
        now = self._clock()
        over = []
        for user_id, (due_at, lead) in waiting.items():  # in the order in which they began to wait
            if due_at > now:
                break
            over.append((lead, user_id))
        users = [user_id for _, user_id in sorted(over)[:most]]
        for user_id in users:
            del waiting[user_id]
        return users

    def keep(self, partitions: Collection[int]) -> None:
        """Forget who waits in any other partition: it is another worker's now."""
        for partition in self._waiting.keys() - set(partitions):
            del self._waiting[partition]

    def choose(
        self,
        release: Release | None,
        partition: int,
        vectors: Mapping[TextHash, bytes],
        users: Mapping[UserId, tuple[UserState, UserState, Sequence[tuple[str, Row]]]],
    ) -> set[UserId]:
        """Return those of the users who can wait. `users`: each with the state before, the new one and the new rows.

        Nobody is chosen whose text the encoder has not seen, or of whom nothing is known since the last scoring.
        """
        self._use(release)
        estimator = self._estimator
        looked_at = {} if estimator is None else self._looked_at(users, vectors)
        waiting = self._waiting.setdefault(partition, {})
        chosen: set[UserId] = set()
        if estimator is not None and looked_at:
            for user_id, lead in self._expected(estimator, looked_at, vectors).items():
                known = self._known[user_id]
                if lead > self._margin * known.since**0.5:
                    chosen.add(user_id)
                    due_at = waiting[user_id][0] if user_id in waiting else self._due_at()
                    waiting[user_id] = due_at, lead
        for user_id in users.keys() - chosen:
            waiting.pop(user_id, None)
            self._forget(user_id)
        return chosen

    def scored(
        self, release: Release, users: Iterable[tuple[UserId, UserState]], inputs: HeadInputs, scores: NDArray[Any]
    ) -> None:
        """Take in what the head said of users, with the revision that it is of: from here on change is counted."""
        self._use(release)
        if self._estimator is None:
            return
        sums = self._estimator.sums(inputs)
        logits = logits_of(scores)
        rows = []
        for user_id, state in users:
            self._forget(user_id)
            if not self._free:
                self._forget(next(iter(self._known)))
            rows.append(self._free.pop())
            self._known[user_id] = _Known(rows[-1], state.window.end, state.publication.revision)
        self._sums.sums[rows] = sums
        self._sums.base[rows] = logits - self._estimator.logits(sums)
        self._sums.top[rows] = tops(logits, self._published)

    def _forget(self, user_id: UserId) -> None:
        known = self._known.pop(user_id, None)
        if known is not None:
            self._free.append(known.row)

    def _use(self, release: Release | None) -> None:
        number = release.number if release is not None else 0
        if number == self._release:
            return
        self._release, self._estimator = number, None
        self._known.clear()
        self._free = list(range(_KNOWN))
        manifest = release.manifest if release is not None else None
        if manifest is None or manifest.sensitivity is None:
            return
        sensitivity = manifest.sensitivity
        margin = sensitivity.margin(self._settings.tolerance)
        if margin is None:
            return
        labels = len(manifest.labels)
        self._estimator = Estimator(sensitivity, platforms=len(manifest.platforms), width=manifest.width, labels=labels)
        self._sums = _Sums(
            np.empty((_KNOWN, *self._estimator.shape), np.float32),  # memory is taken row by row, as users come
            np.empty((_KNOWN, labels), np.float32),
            np.empty((_KNOWN, labels), np.bool_),
        )
        self._platforms = {platform: number for number, platform in enumerate(manifest.platforms, 1)}
        self._width = manifest.width
        self._margin = margin
        self._most_events = min(self._settings.stale_events, sensitivity.most_events)

    def _due_at(self) -> float:
        return self._clock() + max(self._settings.stale_s / 2, self._settings.stale_s - _AHEAD_S)

    def _looked_at(
        self,
        users: Mapping[UserId, tuple[UserState, UserState, Sequence[tuple[str, Row]]]],
        vectors: Mapping[TextHash, bytes],
    ) -> dict[UserId, _Looked]:
        """Return the users whose change can be told, with their new events by time and how much of the window stays."""
        found = {}
        for user_id, (before, state, rows) in users.items():
            known = self._known.get(user_id)
            if (
                known is None
                or len(rows) > _AT_ONCE
                or known.since + len(rows) >= self._most_events
                or known.end != before.window.end
                or known.revision != before.publication.scored_revision
            ):
                continue
            events = sorted((event_of(*row) for row in rows), key=lambda event: event.occurred_at)
            length, grown = len(before.window) + len(rows), len(state.window)
            # What is newer than all there was is new for sure; of what is older, only where nothing fell out.
            new = grown == length or events[0].occurred_at > known.end
            if new and all(event.text_hash in vectors or event.text_hash == _NO_TEXT for event in events):
                looked_at = [(event, before.window.newer_than(event.occurred_at)) for event in events]
                found[user_id] = _Looked(looked_at, grown / length)
        return found

    def _expected(
        self,
        estimator: Estimator,
        looked_at: Mapping[UserId, _Looked],
        vectors: Mapping[TextHash, bytes],
    ) -> dict[UserId, float]:
        """Bring the sums up to date; return by how many logits each user's published labels are expected to lead."""
        users = list(looked_at)
        known = [self._known[user_id] for user_id in users]
        rows = [one.row for one in known]
        sums = self._sums.sums[rows]
        round_, nothing = 0, bytes(2 * self._width)
        while inside := [row for row, user_id in enumerate(users) if len(looked_at[user_id].events) > round_]:
            new = [looked_at[users[row]].events[round_] for row in inside]
            packed = b"".join([vectors.get(event.text_hash, nothing) for event, _ in new])
            since_ms = [event.occurred_at - known[row].end for row, (event, _) in zip(inside, new, strict=True)]
            hours = np.array(since_ms, np.float32) / _HOUR_MS
            added = Additions(
                np.frombuffer(packed, np.float16).reshape(-1, self._width).astype(np.float32),
                np.array([self._platforms.get(event.platform, 0) for event, _ in new], np.int32),
                np.array([ACTION_INDEX[event.action] + 1 for event, _ in new], np.int32),
                np.maximum(hours, 0),
                np.maximum(-hours, 0),
                np.array([newer for _, newer in new], np.float32),
            )
            sums[inside] = estimator.advance(sums[inside], added)
            for row, (event, _) in zip(inside, new, strict=True):
                known[row].end = max(known[row].end, event.occurred_at)
                known[row].since += 1
            round_ += 1
        kept = np.array([looked_at[user_id].kept for user_id in users], np.float32)
        if (kept < 1).any():
            sums = estimator.shrink(sums, kept)
        self._sums.sums[rows] = sums
        logits = self._sums.base[rows] + estimator.logits(sums)
        lead = leads(logits, self._sums.top[rows], self._published)
        return dict(zip(users, lead.tolist(), strict=True))
