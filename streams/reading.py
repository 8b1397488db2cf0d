"""What the encoder has to read before a window can be scored, and who waits for that.

No lane waits for the encoder. Whoever has a text without a vector is published with the last scores and is marked
pending in the state. Meanwhile the texts are read, a few at a time and first come, first served; whose vectors are all
there is scored. What is known here is in memory alone: whom a restart forgets, and whom there is no room for, is found
by the mark.
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
"""Users of a partition who are held here: 100 bytes each."""

_TOGETHER: Final = 256
"""Users looked at, and texts read, at once: of many texts those of like length go together."""

_SCORED_TOGETHER: Final = 64
"""Users: so few that a chunk which comes meanwhile does not wait long."""

_AWAY_S: Final = 1.0
_IDLE_S: Final = 1.0


@dataclass(slots=True)
class _Queue:
    """Who waits in one partition, and what is being read."""

    users: dict[UserId, None] = field(default_factory=dict)
    asked: Mapping[TextHash, TextEntry] = field(default_factory=dict)
    task: asyncio.Task[object] | None = None
    most: int = _TOGETHER
    failing: bool = False
    again_at: float = 0.0


class Reading:
    """Who waits for the encoder. One instance serves all partitions of a worker."""

    def __init__(self, vectors: TextVectors, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._vectors = vectors
        self._clock = clock
        self._queues: dict[int, _Queue] = {}

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

    def add(self, partition: int, users: Iterable[UserId], *, most: int = MOST_WAITING) -> None:
        """Let users wait, behind those who do, as long as no more than `most` wait."""
        queue = self._queues.setdefault(partition, _Queue())
        queue.users.update(dict.fromkeys(islice(users, max(0, most - len(queue.users)))))

    def count(self) -> int:
        """Return how many users wait, in all partitions."""
        return sum(len(queue.users) for queue in self._queues.values())

    def waits(self, partition: int, user_id: UserId) -> bool:
        """Tell whether a user waits here."""
        return partition in self._queues and user_id in self._queues[partition].users

    def failing(self, partition: int) -> bool:
        """Tell whether the encoder could not be asked when it was last tried."""
        return partition in self._queues and self._queues[partition].failing

    def forget(self, partition: int) -> None:
        """Forget who waits in a partition: it is let go."""
        queue = self._queues.pop(partition, None)
        if queue is not None and queue.task is not None:
            queue.task.cancel()

    def wait_s(self, partition: int) -> float:
        """Return for how long `step` has nothing to do, unless it wakes somebody before."""
        queue = self._queues.get(partition)
        if queue is None or (queue.task is not None and not queue.task.done()):
            return _IDLE_S
        if queue.task is None and not queue.users:
            return _IDLE_S
        return min(_IDLE_S, max(0.0, queue.again_at - self._clock()))

    def step(
        self, store: PartitionStore, partition: int, release: Release | None, wake: Callable[[], None]
    ) -> list[UserId]:
        """Take out users of a partition whose vectors are all there, and have the next texts read, waiting for nothing.

        `wake` is called when those are. An encoder that is away is asked again later; where it answers nonsense for a
        text, whoever has that text is let go, and nobody else.
        """
        queue = self._queues.get(partition)
        if queue is None:
            return []
        if queue.task is not None:
            if not queue.task.done():
                return []
            self._note(queue, store)
        if not queue.users:
            queue.failing = False
        if release is None or self._clock() < queue.again_at:
            return []
        needed = {one: set(store.user(one).window.text_hashes()) for one in islice(queue.users, _TOGETHER)}
        lacking = self.lacking(store, set().union(*needed.values()), release)
        ready = [user_id for user_id, hashes in needed.items() if hashes.isdisjoint(lacking)][:_SCORED_TOGETHER]
        for user_id in ready:
            del queue.users[user_id]
        if lacking:
            first = dict.fromkeys(one for hashes in needed.values() for one in hashes if one in lacking)
            queue.asked = {one: lacking[one] for one in islice(first, queue.most)}
            queue.task = asyncio.create_task(self._vectors.encode(release, queue.asked))
            queue.task.add_done_callback(lambda _: wake())
        return ready

    def _note(self, queue: _Queue, store: PartitionStore) -> None:
        """Note what became of the texts that were asked for. Raises whatever nobody foresaw."""
        task, queue.task = queue.task, None
        assert task is not None  # noqa: S101 - as `step` has seen
        try:
            task.result()
        except TritonUnavailable as error:
            log.debug("%d texts are not read now: %s", len(queue.asked), error)
            queue.failing, queue.again_at = True, self._clock() + _AWAY_S
        except InvalidScores as error:
            if len(queue.asked) == 1:
                log.warning("a text cannot be read, profiles of windows that hold it stay as they are: %s", error)
                for user_id in list(queue.users):
                    if not queue.asked.keys().isdisjoint(store.user(user_id).window.text_hashes()):
                        del queue.users[user_id]
            queue.most = 1
        else:
            queue.failing, queue.most = False, _TOGETHER
