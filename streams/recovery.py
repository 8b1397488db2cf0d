"""Taking over a partition: its store is brought to the end of its changelog before anything is fetched.

Where the changelog ends is not asked but made known: a barrier record is appended through the worker's own outbox, and
its acknowledged offset is the end. A broker that reports a wrong end, an end that compaction removed, or a fenced
client all show here, before a lane runs.

A folder is only built upon when it is this partition's: the same app, changelog topic (by Kafka's id), partition and
partition count, not ahead of that changelog, and written so lately that no tombstone can have been missed. Any other is
set aside and rebuilt; foreign state is never merged.

Partitions are restored one after the other: Python, not the disk, sets the pace, so that side by side they would take
as long and hold several fetch buffers. Each is handed over when it is there; nobody else's users wait for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from aiokafka.errors import KafkaError

from streams.store import STORE_FORMAT, PartitionStore, StoreMemory
from xplat_stream.errors import DamagedState, DeliveryError, StateError
from xplat_stream.kafka.log import committed, read_span, spans
from xplat_stream.kafka.topics import changelog_topic, topic_facts
from xplat_stream.state import BARRIER_KEY
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Iterable

    from streams.outbox import Outbox
    from xplat_stream.kafka.log import Span
    from xplat_stream.kafka.topics import TopicFacts
    from xplat_stream.metrics import Metrics
    from xplat_stream.settings import Settings

log = logging.getLogger("xplat.worker")

_PROGRESS_S: Final = 5.0


class Misfit(NamedTuple):
    """Why a folder cannot be built upon: one word for its new name, and a clause for people."""

    word: str
    clause: str


def misfit(store: PartitionStore, identity: bytes, *, end: int, forgets_ms: int, now_ms: int) -> Misfit | None:
    """Return why a store must not be merged with this changelog, None when it may.

    `end`: the offset after the changelog's last record. `forgets_ms`: how long the changelog keeps tombstones.
    """
    if store.is_empty():
        return None
    held = store.identity()
    if held != identity:
        return Misfit("foreign", f"is of {(held or b'nobody').decode(errors='replace')}, not of {identity.decode()}")
    if store.changelog_position() > end:
        return Misfit("ahead", f"is at {store.changelog_position()}, past the changelog's end at {end}")
    idle_ms = now_ms - store.last_written_ms()
    if idle_ms > forgets_ms / 2:
        kept = f"the changelog keeps tombstones {forgets_ms / 3_600_000:.1f} h"
        return Misfit("stale", f"was last written {idle_ms / 3_600_000:.1f} h ago, and {kept}")
    return None


class Recovery:
    """Opens the stores of partitions that are taken over. One take-over at a time has threads and open stores."""

    def __init__(self, settings: Settings, outbox: Outbox, metrics: Metrics) -> None:
        self._settings = settings
        self._outbox = outbox
        self._metrics = metrics
        self._topic = changelog_topic(settings.worker.app)
        self._spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
        self._memory = StoreMemory(settings.worker.rocksdb_mb)
        self._cached_users = settings.worker.cached_users
        self._running: asyncio.Future[PartitionStore] | None = None

    async def restore(
        self, partitions: Iterable[int], over: threading.Event
    ) -> AsyncIterator[tuple[int, PartitionStore]]:
        """Yield partitions with their stores, in this order, each at the end of its changelog.

        Nothing more is yielded, and nothing else stays open, when `over` is set meanwhile: the partitions were taken
        away. Raises `DeliveryError` when a barrier is not acknowledged, `StateError` for a folder that cannot be used
        or a changelog that cannot be read, `DamagedState` when the disk fails, `KafkaUnavailable`.
        """
        wanted = list(partitions)
        if not wanted:
            return
        facts, changelogs = await asyncio.to_thread(self._found, wanted)
        ends = await self._barriers(wanted)
        self._cached_users = max(1, self._settings.worker.cached_users // len(wanted))
        for partition in wanted:
            if over.is_set():
                return
            changelog = changelogs[partition]._replace(end=ends[partition])
            work = asyncio.to_thread(self._restored, changelog, facts, over)
            running = self._running = asyncio.ensure_future(work)
            store = await asyncio.shield(running)
            if self._running is not running:
                return  # `finished` waits for the same thread and closes what it opened
            self._running = None
            if over.is_set():
                store.close()
                return
            yield partition, store

    async def finished(self) -> None:
        """Wait until no restore is under way, and close what one opened for nobody. First set its `over`."""
        running, self._running = self._running, None
        if running is not None:
            with contextlib.suppress(Exception):  # told by `restore`
                (await running).close()

    def _found(self, partitions: list[int]) -> tuple[TopicFacts, dict[int, Span]]:
        """Return what the broker says of the changelog, and these partitions of it by number.

        Raises `StateError` where one is empty although the group has committed offsets: a barrier is written before
        anything is committed, so what those offsets led to is lost, and nothing would read it again.
        """
        facts = topic_facts(self._settings, self._topic)
        changelogs = {one.partition: one for one in spans(self._settings, [self._topic]) if one.partition in partitions}
        empty = {partition for partition, one in changelogs.items() if one.end == 0}
        for one in committed(self._settings) if empty else []:
            if one.partition in empty and one.offset > 0:
                raise StateError(
                    f"the changelog is empty, but {one.topic} is committed up to {one.offset}",
                    where=f"{self._topic}[{one.partition}]",
                    expected="the state of everything that is committed",
                    fix=f"If the topic was made again, stop all workers and delete the consumer group "
                    f"{self._settings.worker.app}: the next start reads the behavior topics from their beginning.",
                )
        return facts, changelogs

    async def _barriers(self, partitions: list[int]) -> dict[int, int]:
        """Append a barrier to each partition of the changelog and return the offsets after them."""
        try:
            sent = [await self._outbox.send(self._topic, one, [(BARRIER_KEY, None)]) for one in partitions]
            return dict(zip(partitions, await self._outbox.confirm(sent), strict=True))
        except KafkaError as error:
            message = f"the end of {self._topic} cannot be marked: {error}"
            raise DeliveryError(message, left=len(partitions)) from error

    def _restored(self, changelog: Span, facts: TopicFacts, over: threading.Event) -> PartitionStore:
        try:
            return self._built(changelog, facts, over)
        except DamagedState as error:
            if self._folder(changelog.partition).exists():
                raise  # nothing was set aside: it is the disk that fails
            log.warning("partition %d: %s", changelog.partition, error)
            return self._built(changelog, facts, over)

    def _built(self, changelog: Span, facts: TopicFacts, over: threading.Event) -> PartitionStore:
        store = self._fitting(changelog, facts)
        try:
            self._bring_up(store, changelog, over)
        except BaseException:
            store.close()
            raise
        return store

    def _fitting(self, changelog: Span, facts: TopicFacts) -> PartitionStore:
        """Open the folder of a partition, or a new one in its place where what lies there is not its own."""
        identity = msgspec.json.encode(
            {
                "app": self._settings.worker.app,
                "topic": changelog.topic,
                "topic_id": facts.topic_id,
                "partition": changelog.partition,
                "partitions": facts.partitions,
                "format": STORE_FORMAT,
            }
        )
        store = self._opened(changelog.partition)
        try:
            now_ms = time.time_ns() // 1_000_000
            found = misfit(store, identity, end=changelog.end, forgets_ms=facts.delete_retention_ms, now_ms=now_ms)
            if found is not None:
                aside = store.set_aside(found.word)
                log.warning(
                    "partition %d: %s %s; set aside as %s, rebuilding from the changelog",
                    changelog.partition,
                    store.path,
                    found.clause,
                    aside.name,
                )
                store = self._opened(changelog.partition)
            store.mark(identity)
        except BaseException:
            store.close()
            raise
        return store

    def _bring_up(self, store: PartitionStore, changelog: Span, over: threading.Event) -> None:
        """Merge what the changelog has and the store may lack, a batch at a time."""
        start = end = max(store.changelog_position(), changelog.start)
        began = told = time.monotonic()
        records = 0
        for messages in read_span(self._settings, changelog._replace(start=start), stopped=over.is_set):
            end = messages[-1].offset() + 1
            try:
                merged = store.restore([(one.key(), one.value()) for one in messages], position=end)
            except ValueError as error:
                raise _unreadable(changelog._replace(start=messages[0].offset(), end=end), error) from error
            records += merged
            self._metrics.restored += merged
            if (now := time.monotonic()) - told >= _PROGRESS_S:
                told = now
                share = 100 * (end - start) / (changelog.end - start)
                rate = records / (now - began)
                log.info("partition %d: %.0f %% restored, %.0f records/s", changelog.partition, share, rate)
        if end < changelog.end and not over.is_set():
            message = f"{changelog.topic}[{changelog.partition}] ends at {end}, before its barrier {changelog.end - 1}"
            raise DeliveryError(message, left=changelog.end - end)

    def _opened(self, partition: int) -> PartitionStore:
        return PartitionStore(self._folder(partition), self._spec, cached_users=self._cached_users, memory=self._memory)

    def _folder(self, partition: int) -> Path:
        return Path(self._settings.worker.datadir) / f"partition-{partition}"


def _unreadable(span: Span, error: ValueError) -> StateError:
    return StateError(
        f"the changelog cannot be read: {error}",
        where=f"{span.topic}[{span.partition}], offsets {span.start} to {span.end - 1}",
        expected="records that this version knows",
        fix="Run the version that wrote them, or a newer one; nothing was changed.",
    )
