"""One lane a partition: its chunks are handled in order, different partitions side by side.

While one lane waits for Triton or Kafka, another folds. What has piled up in a lane is handled together, so that load
makes batches larger instead of latency longer, and a user touched ten times is published once. What lies in the log
counts as piled up where it is a chunk or more: a lane that is so far behind gathers chunks for up to a second, admits
them as they come, and takes them through the other steps together (docs/adr/0009-gather-while-behind.md).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from streams.migration import Budget, Migration
from streams.pipeline import Admitted
from streams.suspects import InHand, Suspects
from streams.warming import Warming
from xplat_stream.errors import XplatError
from xplat_stream.failpoints import reached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from streams.batches import Record
    from streams.consumer import Chunk
    from streams.migration import Progress
    from streams.pipeline import Pipeline
    from streams.recovery import Recovery
    from streams.store import PartitionStore
    from streams.warming import Warmer, Warmth
    from xplat_stream.event import UserId
    from xplat_stream.metrics import Metrics
    from xplat_stream.settings import Settings, WorkerSettings

log = logging.getLogger("xplat.worker")

_RESCORED_TOGETHER: Final = 64
"""So few that a chunk which comes meanwhile does not wait long."""

_LOOKED_AT: Final = 1000
"""Pending users read at once, of whom most wait for something that is known."""

_RESCORE_SOON_S: Final = 0.05
_RESCORE_LATER_S: Final = 1.0
_GATHER_S: Final = 1.0
"""As long as the group takes between two commits: what is done sooner is not committed sooner."""

_GATHERED_USERS: Final = 4
"""Times a chunk's events: as many users' states, 2 kB each, a lane holds that is behind."""

_WAITING_CHUNKS: Final = 4
"""Chunks a lane holds before the fetcher has to wait: memory is bounded by this times the fetch size."""


class Lane:
    """The queue, the store and the task of one partition."""

    def __init__(  # noqa: PLR0913 - what it connects
        self,
        partition: int,
        store: PartitionStore,
        pipeline: Pipeline,
        suspects: Suspects,
        migration: Migration,
        warming: Warming,
        *,
        settings: WorkerSettings,
    ) -> None:
        self.partition = partition
        self.store = store
        self.migration = migration
        self.warming = warming
        self.busy = False
        """Whether a chunk is in hand."""
        self._pipeline = pipeline
        self._suspects = suspects
        self._chunk_events = settings.chunk_events
        self._in_hand = InHand(Path(settings.datadir), partition)
        self._due_together = _RESCORED_TOGETHER
        self._rescored_up_to: UserId | None = None
        self._rescore_in_s = _RESCORE_SOON_S
        self._look_at = 0.0
        self._waiting: asyncio.Queue[Any] = asyncio.Queue(_WAITING_CHUNKS)
        self._resting = False

    async def put(self, event: Any) -> None:
        """Queue a chunk; wait while too many are queued."""
        await self._waiting.put(event)

    def close(self) -> None:
        """Let go of the partition, once the task has ended: also of whoever waits for room in the queue."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self.warming.close()
        self._pipeline.reading.forget(self.partition)
        self.store.close()
        self._in_hand.close()

    async def run(self) -> None:
        """Handle chunks until cancelled; in between, score what was left and what is another release's.

        Whatever is raised must stop the worker.
        """
        if self.store.is_dirty:
            await self._pipeline.flush(self.store, self.partition)
        while True:
            first = await self._next()
            if first is not None:
                self.busy = True
                for event in await self._handle(first):
                    event.ack()
                self.busy = False
            if not self._suspects:  # whatever a text does is blamed on no record that is handled alone
                await self._read()
            if self.store.has_pending:
                await self._rescore()
            if self._waiting.empty():
                await self._migrate()
                await self._warm()

    async def _next(self) -> Any:
        """Return the next chunk; None when it is time to score something again."""
        self._resting = True
        try:
            async with asyncio.timeout(self._idle_s()):
                return await self._waiting.get()
        except TimeoutError:
            return None
        finally:
            self._resting = False

    def _wake(self) -> None:
        """Let the lane look at once at what can be scored again, if it waits for a chunk."""
        if self._resting and self._waiting.empty():
            self._waiting.put_nowait(None)

    def _idle_s(self) -> float:
        release = self._pipeline.release
        migration_s = self.migration.wait_s(release.number if release else 0, self._pipeline.withdrawn)
        wait_s = min(migration_s, self.warming.wait_s())
        if not self._suspects:
            wait_s = min(wait_s, self._pipeline.reading.wait_s(self.partition))
        return min(wait_s, self._rescore_in_s) if self.store.has_pending else wait_s

    async def _handle(self, event: Any) -> list[Any]:
        """Handle a chunk and those that join it, and return them."""
        if self._suspects:
            await self._handle_carefully(event.value)
            return [event]
        events: list[Any] = []
        in_hand: list[Record] = []
        admitted = Admitted()
        until = asyncio.get_running_loop().time() + _GATHER_S
        with self._blaming(in_hand):
            while event is not None:
                events.append(event)
                records = event.value
                in_hand += (records[0], records[-1])
                self._in_hand.note(in_hand)
                self._pipeline.admit(self.store, self.partition, records, into=admitted)
                records.clear()  # of a chunk that waits for others only the offsets are needed
                event = await self._joining(events[-1].message, admitted, until)
            await self._pipeline.finish(self.store, self.partition, admitted)
        self._due_together = max(_RESCORED_TOGETHER, len(admitted.users))
        return events

    async def _joining(self, last: Chunk, admitted: Admitted, until: float) -> Any:
        """Return the next chunk if it is to be handled with those up to the last one; None if not."""
        if admitted.records < self._chunk_events and not self._waiting.empty():
            return self._waiting.get_nowait()
        if last.behind < self._chunk_events or len(admitted.users) >= _GATHERED_USERS * self._chunk_events:
            return None
        try:
            async with asyncio.timeout_at(until):
                return await self._waiting.get()
        except TimeoutError:
            return None

    async def _handle_carefully(self, records: list[Record]) -> None:
        """Handle records of which some may crash the worker: alone, and one by one where they did so before."""
        async with self._suspects.alone:
            for part in [[record] for record in records] if self._suspects.careful(records) else [records]:
                with self._blaming(part):
                    self._in_hand.note(part)
                    condemned = len(part) == 1 and self._suspects.condemned(part[0])
                    await self._pipeline.handle(self.store, self.partition, part, condemned=condemned)
            # Not before all are through: a crash in between reads the ones before again.
            self._suspects.acquit(records)

    @contextmanager
    def _blaming(self, records: Sequence[Record]) -> Iterator[None]:
        """Blame a crash that nobody foresaw on these records, which are in hand."""
        try:
            yield
        except (XplatError, OSError):
            raise  # no record's fault
        except Exception:
            self._suspects.blame(records)
            raise
        self._in_hand.note(())

    async def _rescore(self) -> None:
        """Score some of those whose limit has come, and of those whom the model server left pending.

        Of the former as many as the last chunk had users, so that no more begin to wait than are scored. For the latter
        it is looked until all have been seen, and then once a second.
        """
        postponed, left = self._pipeline.postponed, 0
        due = postponed.due(self.partition, most=self._due_together)
        scored = await self._pipeline.rescore(self.store, self.partition, due)
        now = time.monotonic()
        if now >= self._look_at:
            users = self._left_pending()
            left = await self._pipeline.rescore(self.store, self.partition, users)
            left += sum(self._pipeline.reading.waits(self.partition, user_id) for user_id in users)
            self._look_at = now if left and len(users) == _RESCORED_TOGETHER else now + _RESCORE_LATER_S
        if len(due) == self._due_together:
            self._rescore_in_s = 0.0
        else:
            self._rescore_in_s = _RESCORE_SOON_S if scored or left else _RESCORE_LATER_S

    def _left_pending(self) -> list[UserId]:
        """Return the next users who are pending and wait for nothing that is known; after a restart, all are such."""
        found: list[UserId] = []
        postponed, reading = self._pipeline.postponed, self._pipeline.reading
        while True:
            page = self.store.pending(limit=_LOOKED_AT, after=self._rescored_up_to)
            for user_id in page:
                self._rescored_up_to = user_id
                if not postponed.waits(self.partition, user_id) and not reading.waits(self.partition, user_id):
                    found.append(user_id)
                    if len(found) == _RESCORED_TOGETHER:
                        return found
            if len(page) < _LOOKED_AT:
                self._rescored_up_to = None
                return found

    async def _read(self) -> None:
        """Score those whose texts were read meanwhile."""
        pipeline = self._pipeline
        most = self._due_together
        read = pipeline.reading.step(self.store, self.partition, pipeline.release, self._wake, most=most)
        if read:
            await pipeline.rescore(self.store, self.partition, read)

    async def _migrate(self) -> None:
        release = self._pipeline.release
        users = [] if release is None else self.migration.take(release.number, self._pipeline.withdrawn)
        if users:
            reached("rescore.taken")
            scored = await self._pipeline.rescore(self.store, self.partition, users)
            reached("rescore.done")
            self.migration.note(scored)
            reading = self._pipeline.reading
            if not scored and not any(reading.waits(self.partition, user_id) for user_id in users):
                self.migration.put_back(users)

    async def _warm(self) -> None:
        if self.warming.step():
            await self._pipeline.flush(self.store, self.partition)
            reached("warm.kept")


class Lanes:
    """The partitions this worker owns."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        metrics: Metrics,
        *,
        recovery: Recovery,
        warmer: Warmer,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._metrics = metrics
        self._recovery = recovery
        self._on_failure = on_failure
        self._suspects = Suspects(Path(settings.worker.datadir))
        self._warmer = warmer
        self._budget = Budget(settings.release.rescore_per_s)
        self._warm_budget = Budget(settings.release.warm_per_s)
        self._over = threading.Event()  # set when the partitions taken over last are to be let go
        self._lanes: dict[int, Lane] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._had: set[int] = set()  # the partitions whose lanes ended last

    @property
    def stores(self) -> list[PartitionStore]:
        """The stores of the partitions owned now."""
        return [lane.store for lane in self._lanes.values()]

    @property
    def progress(self) -> dict[int, Progress]:
        """How far each partition owned now is on its way to the release in use."""
        return {partition: lane.migration.progress for partition, lane in self._lanes.items()}

    @property
    def warmth(self) -> dict[int, Warmth]:
        """How far each partition owned now is with the vectors of an encoder."""
        return {partition: lane.warming.progress for partition, lane in self._lanes.items()}

    @property
    def unread(self) -> int:
        """How many users' scoring waits for the encoder."""
        return self._pipeline.reading.count()

    @property
    def busy(self) -> bool:
        """Whether any chunk is in hand."""
        return any(lane.busy for lane in list(self._lanes.values()))

    async def put(self, event: Any) -> None:
        """Queue a chunk in the lane of its partition; one that is not owned any more is dropped unacknowledged."""
        lane = self._lanes.get(event.message.partition)
        if lane is not None:
            await lane.put(event)

    async def let_go(self) -> None:
        """Stop all lanes where they stand, as a crash would; what they had not acknowledged is read again.

        A take-over under way ends too: it starts no lanes, and its stores are closed when this returns.
        """
        self._over.set()
        await self._end()

    async def _end(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._lanes.values():
            lane.close()
        self._had = set(self._lanes) or self._had
        self._lanes.clear()
        await self._recovery.finished()

    async def take_over(self, partitions: Iterable[int], started: Callable[[int], None] = lambda _: None) -> None:
        """Open the stores of these partitions, bring each up to the end of its changelog, and start its lane.

        A lane starts, and `started` is told its number, as soon as its own store is there: first those of partitions
        that this worker had until now, which are where they were. This returns when these run, or the first where
        there are none; the others follow. Does nothing more when the partitions are let go meanwhile. What
        `Recovery.restore` raises, `on_failure` is told.
        """
        self._over.set()
        over = self._over = threading.Event()
        await self._end()
        if over.is_set():
            return
        wanted = set(partitions)
        self._pipeline.postponed.keep(wanted)
        kept = wanted & self._had
        enough = asyncio.Event()
        order = [*sorted(kept), *sorted(wanted - kept)]
        starting = asyncio.create_task(self._start(order, max(1, len(kept)), enough, over, started))
        starting.add_done_callback(self._on_done)
        starting.add_done_callback(lambda _: enough.set())
        self._tasks.append(starting)
        await enough.wait()

    async def _start(
        self,
        order: list[int],
        first: int,
        enough: asyncio.Event,
        over: threading.Event,
        started: Callable[[int], None],
    ) -> None:
        began = time.monotonic()
        async for partition, store in self._recovery.restore(order, over):
            lane = self._lanes[partition] = self._lane(partition, store)
            task = asyncio.create_task(lane.run(), name=f"lane-{partition}")
            task.add_done_callback(self._on_done)
            self._tasks.append(task)
            self._metrics.partitions = sorted(self._lanes)
            started(partition)
            if len(self._lanes) == first:
                enough.set()
        if not over.is_set():
            self._metrics.partitions = sorted(self._lanes)
            log.info(
                "owns partitions %s, %d changelog records restored in %.2f s",
                sorted(self._lanes),
                self._metrics.restored,
                time.monotonic() - began,
            )

    def _lane(self, partition: int, store: PartitionStore) -> Lane:
        waits = partial(self._pipeline.postponed.waits, partition)
        return Lane(
            partition,
            store,
            self._pipeline,
            self._suspects,
            Migration(store, self._budget, self._settings.release, waits=waits),
            Warming(store, self._warmer, self._warm_budget, self._settings.release),
            settings=self._settings.worker,
        )

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
