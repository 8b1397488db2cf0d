"""What the encoder has to read before a window can be scored, and who waits for that.

No lane waits for the encoder. Whoever has a text without a vector is published with the last scores and is marked
pending in the state. Meanwhile the texts are read, many together; whose vectors are all there is scored. Those who were
touched come first, first come, first served. What is known here is in memory alone: whom a restart forgets, and whom
there is no room for, is found by the mark.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from xplat_stream.errors import InvalidScores, TritonUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from streams.store import PartitionStore
    from xplat_stream.event import TextHash, UserId
    from xplat_stream.serving.releases import Release
    from xplat_stream.serving.texts import TextVectors
    from xplat_stream.state import TextEntry

log = logging.getLogger("xplat.worker")

MOST_WAITING: Final = 10_000
"""Users of a partition who are held here: 100 bytes each, of those who were touched and of the others."""

_TOGETHER: Final = 256
"""Users looked at, and texts read, at once: of many texts those of like length go together."""

_OTHERS_TOGETHER: Final = 64
"""Users looked at who were not touched, however many wait who were: none of them waits for ever."""

_MOST_READY: Final = 1000
_AWAY_S: Final = 1.0
_REFUSED_S: Final = 60.0
_MOST_REFUSED: Final = 1000
_IDLE_S: Final = 1.0


@dataclass(slots=True)
class _Queue:
    """Who waits in one partition, and what is being read."""

    touched: dict[UserId, None] = field(default_factory=dict)
    others: dict[UserId, None] = field(default_factory=dict)
    ready: dict[UserId, None] = field(default_factory=dict)
    asked: Mapping[TextHash, TextEntry] = field(default_factory=dict)
    by_others: bool = False
    """Whether some of what was asked for was being read for another partition already."""
    task: asyncio.Task[object] | None = None
    most: int = _TOGETHER
    failing: bool = False
    again_at: float = 0.0

    @property
    def waiting(self) -> int:
        """Users whose texts are not all read, as far as is known."""
        return len(self.touched) + len(self.others)


class Reading:
    """Who waits for the encoder. One instance serves all partitions of a worker."""

    def __init__(self, vectors: TextVectors, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._vectors = vectors
        self._clock = clock
        self._queues: dict[int, _Queue] = {}
        self._refused: dict[tuple[int, TextHash], float] = {}  # until when; the last one is refused longest

    def lacking(self, store: PartitionStore, hashes: set[TextHash], release: Release) -> dict[TextHash, TextEntry]:
        """Return those of a partition's texts that the release's encoder has not read.

        The vectors of the others are in memory after this, and in the state: one that another partition had made too.
        """
        encoder, held = release.encoder, self._vectors.of(release.encoder)
        wanted = store.without_vector(encoder, hashes).union(self._vectors.missing(encoder, hashes))
        if not wanted:
            return {}
        entries = store.texts(wanted)
        self._vectors.learn(entries)
        for text_hash in store.without_vector(encoder, entries.keys()):
            if text_hash in held:
                store.put_text(text_hash, entries[text_hash].with_vector(encoder, held[text_hash]))
        return {text_hash: entry for text_hash, entry in entries.items() if text_hash not in held}

    def add(self, partition: int, users: Iterable[UserId], *, touched: bool) -> None:
        """Let users wait, as long as there is room; who was touched comes before all others."""
        queue = self._queues.setdefault(partition, _Queue())
        held = queue.touched if touched else queue.others
        held.update(dict.fromkeys(islice(users, max(0, MOST_WAITING - len(held)))))

    def count(self) -> int:
        """Return how many users wait, in all partitions."""
        return sum(queue.waiting + len(queue.ready) for queue in self._queues.values())

    def waits(self, partition: int, user_id: UserId) -> bool:
        """Tell whether a user waits here, or is about to be scored."""
        queue = self._queues.get(partition)
        return queue is not None and (user_id in queue.touched or user_id in queue.others or user_id in queue.ready)

    def failing(self, partition: int) -> bool:
        """Tell whether the encoder could not be asked when it was last tried."""
        return partition in self._queues and self._queues[partition].failing

    def forget(self, partition: int) -> None:
        """Forget who waits in a partition: it is let go."""
        queue = self._queues.pop(partition, None)
        if queue is not None and queue.task is not None:
            queue.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody asks any more
            queue.task.cancel()

    def wait_s(self, partition: int) -> float:
        """Return for how long `step` has nothing to do, unless it wakes somebody before."""
        queue = self._queues.get(partition)
        if queue is None:
            return _IDLE_S
        if queue.ready or (queue.task is not None and queue.task.done()):
            return 0.0
        if queue.task is not None or not queue.waiting:
            return _IDLE_S
        return min(_IDLE_S, max(0.0, queue.again_at - self._clock()))

    def step(
        self, store: PartitionStore, partition: int, release: Release | None, wake: Callable[[], None], *, most: int
    ) -> list[UserId]:
        """Take out users of a partition whose vectors are all there, at most `most`, waiting for nothing.

        The next texts are read meanwhile, and `wake` is called when they are. An encoder that is away is asked again
        later. Whoever has a text for which it answers nonsense is let go, pending, and nobody else.
        """
        queue = self._queues.get(partition)
        if queue is None:
            return []
        if queue.task is not None and queue.task.done():
            self._note(queue, release)
        if release is not None and self._clock() >= queue.again_at:
            while queue.task is None and queue.waiting and len(queue.ready) < _MOST_READY:
                self._look(queue, store, release, wake)
        taken = list(islice(queue.ready, most))
        for user_id in taken:
            del queue.ready[user_id]
        return taken

    def _look(self, queue: _Queue, store: PartitionStore, release: Release, wake: Callable[[], None]) -> None:
        """Sort the next users into those who are ready, those who are let go, and those whose texts are read now."""
        users = [*islice(queue.touched, _TOGETHER), *islice(queue.others, _OTHERS_TOGETHER)]
        needed = {one: set(store.user(one).window.text_hashes()) for one in users}
        lacking = self.lacking(store, set().union(*needed.values()), release)
        now = self._clock()
        refused = {one for one in lacking if self._refused.get((release.encoder, one), now) > now}
        for user_id, hashes in needed.items():
            if hashes.isdisjoint(lacking):
                queue.ready[user_id] = None
            elif hashes.isdisjoint(refused):
                continue
            elif not (state := store.user(user_id)).pending:
                store.put_user(user_id, state.left_pending())
            queue.touched.pop(user_id, None)
            queue.others.pop(user_id, None)
        wanted = lacking.keys() - refused
        asked = dict.fromkeys(one for hashes in needed.values() for one in hashes if one in wanted)
        if not asked:
            queue.failing = False
            return
        queue.asked = {one: lacking[one] for one in islice(asked, queue.most)}
        queue.by_others = self._vectors.reads(release.encoder, queue.asked)
        queue.task = asyncio.create_task(self._vectors.encode(release, queue.asked))
        queue.task.add_done_callback(lambda _: wake())

    def _note(self, queue: _Queue, release: Release | None) -> None:
        """Note what became of the texts that were asked for. Raises whatever nobody foresaw."""
        task, queue.task = queue.task, None
        assert task is not None  # noqa: S101 - as `step` has seen
        try:
            task.result()
        except TritonUnavailable as error:
            log.debug("%d texts are not read now: %s", len(queue.asked), error)
            queue.failing, queue.again_at = True, self._clock() + _AWAY_S
        except InvalidScores as error:
            if len(queue.asked) == 1 and not queue.by_others and release is not None:
                log.warning("a text cannot be read, users whose windows hold it stay as they are: %s", error)
                self._refuse(release.encoder, *queue.asked)
            queue.most = max(1, len(queue.asked) // 2)
        else:
            queue.failing, queue.most = False, min(_TOGETHER, 2 * queue.most)

    def _refuse(self, encoder: int, text_hash: TextHash) -> None:
        self._refused.pop((encoder, text_hash), None)
        self._refused[encoder, text_hash] = self._clock() + _REFUSED_S
        for oldest in list(self._refused)[: max(0, len(self._refused) - _MOST_REFUSED)]:
            del self._refused[oldest]
