"""A sample of users is scored by a second release too, and what the two say is compared.

Only after a profile is out, in a task of its own, past the circuit breaker and with vectors of its own: whatever the
second release does, no profile is later or other for it. What is asked of one is asked of both, in the same batch, so
that a model server that is slow or away counts alike for both.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zlib import crc32

from xplat_stream.comparison import Comparison
from xplat_stream.errors import InvalidScores, TritonUnavailable
from xplat_stream.event import NEGATIVE_ACTIONS
from xplat_stream.failpoints import reached
from xplat_stream.serving.features import head_inputs
from xplat_stream.serving.texts import TextVectors
from xplat_stream.state import TextEntry
from xplat_stream.window import event_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from streams.store import PartitionStore
    from xplat_stream.comparison import Side
    from xplat_stream.event import Millis, TextHash, UserId
    from xplat_stream.metrics import Metrics
    from xplat_stream.serving.releases import Release
    from xplat_stream.serving.scorer import Scorer
    from xplat_stream.taxonomy import Taxonomy
    from xplat_stream.window import BehaviorWindow, Row

log = logging.getLogger("xplat.worker")

_WAITING: Final = 2000
"""Windows that wait to be compared at the most; about 3 kB each, and most of them are in the store's memory anyway."""

_TOGETHER: Final = 64
_REMEMBERED: Final = 20_000
"""Users whose last scores are kept until they do something: 500 bytes each."""

_TEXTS: Final = 100_000
_SALT: Final = 0x5AD0


def is_sampled(user_id: UserId, share: float) -> bool:
    """Tell whether a user belongs to the share of all users that is shadowed: the same on every worker, at any time."""
    return crc32(user_id.encode(), _SALT) < share * 2**32


class Pair(NamedTuple):
    """The two releases compared. `until`: when that ends; None: when another announcement says so."""

    active: Release
    other: Release
    until: datetime | None


class _Waiting(NamedTuple):
    user_id: UserId
    window: BehaviorWindow
    comparison: Comparison
    """Where it counts: its partition's, as it was when the window came."""


class _Said(NamedTuple):
    end: Millis
    active: NDArray[Any]
    other: NDArray[Any]


class Shadow:
    """The second release of a worker, and what comparing it has given, partition by partition."""

    def __init__(
        self,
        share: float,
        *,
        scorer: Scorer,
        vectors: TextVectors,
        taxonomy: Taxonomy,
        metrics: Metrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._share = share
        self._scorer = scorer
        self._live = vectors
        self._own = TextVectors(scorer, max_texts=_TEXTS)
        self._label_index = {label: index for index, label in enumerate(taxonomy.ids())}
        self._metrics = metrics
        self._now = now
        self._pair: Pair | None = None
        self._comparisons: dict[int, Comparison] = {}
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._said: OrderedDict[UserId, _Said] = OrderedDict()
        self._turn = 0
        self.generation = 0
        """Grows whenever counting begins at zero: with other partitions, and with another pair."""
        self.counted: tuple[int, int] = (0, 0)
        """Of which pair the counts are, active release first; zeros before any."""
        self.since = datetime(1970, 1, 1, tzinfo=UTC)
        """When that pair was announced."""

    @property
    def pair(self) -> Pair | None:
        """The two releases that are compared now."""
        if self._pair is not None and self._pair.until is not None and self._now() >= self._pair.until:
            self._end()
        return self._pair

    def use(
        self, active: Release, other: Release | None, *, since: datetime | None = None, until: datetime | None = None
    ) -> None:
        """Compare these two from now on, as announced at `since`; with None, nothing.

        The same announcement again goes on counting.
        """
        if other is None or not self._share or active.number == other.number:
            self._end()
            return
        announced = (active.number, other.number), since or self.since
        same = announced == (self.counted, self.since)
        self._pair = Pair(active, other, until)
        self.counted, self.since = announced
        self._metrics.shadow = other.number
        self._own.forget_encoders({other.encoder})
        if not same:
            self.begin()
        if self.pair is not None:
            log.info("release %d is compared with %d on %g of the users", active.number, other.number, self._share)

    def _end(self) -> None:
        self._pair = None
        self._metrics.shadow = 0
        self._waiting.clear()
        self._said.clear()

    def begin(self) -> None:
        """Count from zero: what was counted before is another owner's to go on with."""
        self.generation += 1
        self._comparisons = {}
        self._waiting.clear()
        self._said.clear()

    def comparison(self, partition: int) -> Comparison:
        """Return what has been counted for a partition since `begin`."""
        return self._comparisons.setdefault(partition, Comparison())

    def follow(
        self,
        store: PartitionStore,
        partition: int,
        additions: Mapping[UserId, Sequence[tuple[str, Row]]],
        texts: Mapping[TextHash, TextEntry],
    ) -> None:
        """Take in whose profiles are out, with the events that led to them.

        What both releases said of a user before is measured against these events; then the window waits for its turn.
        """
        pair = self.pair
        if pair is None:
            return
        comparison = self.comparison(partition)
        for user_id, rows in additions.items():
            if not is_sampled(user_id, self._share):
                continue
            self._judge(user_id, rows, texts, comparison)
            state = store.user(user_id)
            if len(self._waiting) < _WAITING:
                self._waiting.append(_Waiting(user_id, state.window, comparison))
            else:
                comparison.skipped += 1
        if self._waiting:
            self._arrived.set()

    def _judge(
        self,
        user_id: UserId,
        rows: Sequence[tuple[str, Row]],
        texts: Mapping[TextHash, TextEntry],
        comparison: Comparison,
    ) -> None:
        said = self._said.get(user_id)
        if said is None:
            return
        labels: set[int] = set()
        for event in (event_of(platform, row) for platform, row in rows):
            if event.occurred_at > said.end and event.action not in NEGATIVE_ACTIONS and event.text_hash in texts:
                found = texts[event.text_hash].labels
                labels.update(self._label_index[label] for label in found if label in self._label_index)
        if labels:
            comparison.judge(said.active.tolist(), said.other.tolist(), labels)
            del self._said[user_id]

    async def run(self) -> None:
        """Compare what waits, for ever."""
        while True:
            await self._arrived.wait()
            await self.compare_next()
            if not self._waiting:
                self._arrived.clear()

    async def compare_next(self) -> None:
        """Let both releases score the windows that have waited longest. Raises nothing."""
        pair = self.pair
        batch = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
        if pair is None or not batch:
            return
        try:
            await self._compare(pair, batch)
        except Exception:
            # Not only the errors of a model server: a second release may hold anything, and must not stop the worker.
            log.exception("release %d cannot be compared, and is not from now on", pair.other.number)
            if self._pair is pair:
                self._end()

    async def _compare(self, pair: Pair, batch: Sequence[_Waiting]) -> None:
        sides: list[tuple[Callable[[Comparison], Side], Release]]
        sides = [(lambda one: one.active, pair.active), (lambda one: one.other, pair.other)]
        answers: dict[int, NDArray[Any]] = {}
        self._turn += 1  # who is asked first pays for waking the model server: each in turn
        for side_of, release in sides if self._turn % 2 else reversed(sides):
            scores, took_s = await self._scores(release, [one.window for one in batch])
            for one in batch:
                side_of(one.comparison).asked += 1
                side_of(one.comparison).failed += scores is None
            if scores is not None:
                answers[release.number] = scores
                side_of(batch[0].comparison).add_call(took_s)
        if len(answers) < len(sides):
            return
        active, other = answers[pair.active.number], answers[pair.other.number]
        for row, one in enumerate(batch):
            one.comparison.add(active[row].tolist(), other[row].tolist())
            if self._pair is pair:
                self._said[one.user_id] = _Said(one.window.end, active[row].copy(), other[row].copy())
                self._said.move_to_end(one.user_id)
        while len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)
        self._metrics.shadowed += len(batch)
        reached("shadow.compared")

    async def _scores(self, release: Release, windows: Sequence[BehaviorWindow]) -> tuple[NDArray[Any] | None, float]:
        """Return a release's scores, None where it gives no valid ones, and how long its head took."""
        manifest = release.manifest
        try:
            inputs = head_inputs(
                windows,
                await self._vectors(release, {one for window in windows for one in window.text_hashes()}),
                platforms=manifest.platforms,
                width=manifest.width,
                max_events=manifest.max_events,
            )
            began = time.perf_counter()
            scores = await self._scorer.score(release, inputs)
            return scores, time.perf_counter() - began
        except (TritonUnavailable, InvalidScores) as error:
            log.debug("release %d fails beside the other: %s", release.number, error)
            return None, 0.0

    async def _vectors(self, release: Release, hashes: set[TextHash]) -> Mapping[TextHash, bytes]:
        """Return the vectors of texts by a release's encoder: those the worker holds, the others made here."""
        live = self._live.of(release.encoder)
        absent = [one for one in hashes if one not in live]
        if not absent:
            return live
        known = self._live.known
        texts = {one: TextEntry(known[one].text, known[one].labels) for one in absent if one in known}
        made = await self._own.encode(release, texts)
        self._own.forget_oldest()
        return {one: live[one] for one in hashes if one in live} | {one: entry.vector for one, entry in made.items()}
