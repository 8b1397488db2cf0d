"""One lane a partition: its chunks are handled in order, different partitions side by side.

While one lane waits for Triton or Kafka, another folds. What has piled up in a lane is handled together, so that load
makes batches larger instead of latency longer, and a user touched ten times is published once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streams.metrics import Metrics
    from streams.pipeline import Pipeline
    from streams.recovery import Recovery
    from streams.store import PartitionStore
    from xplat_stream.settings import Settings

log = logging.getLogger("xplat.worker")

_WAITING_CHUNKS: Final = 4
"""Chunks a lane holds before the fetcher has to wait: memory is bounded by this times the fetch size."""


class Lane:
    """The queue, the store and the task of one partition."""

    def __init__(self, partition: int, store: PartitionStore, pipeline: Pipeline, *, chunk_events: int) -> None:
        self.partition = partition
        self.store = store
        self._pipeline = pipeline
        self._chunk_events = chunk_events
        self._waiting: asyncio.Queue[Any] = asyncio.Queue(_WAITING_CHUNKS)

    async def put(self, event: Any) -> None:
        """Queue a chunk; wait while too many are queued."""
        await self._waiting.put(event)

    def drop_waiting(self) -> None:
        """Empty the queue, which also lets go whoever waits for room in it."""
        while not self._waiting.empty():
            self._waiting.get_nowait()

    async def run(self) -> None:
        """Handle chunks until cancelled. Whatever is raised in here must stop the worker."""
        while True:
            events = [await self._waiting.get()]
            records = list(events[0].value)
            while not self._waiting.empty() and len(records) < self._chunk_events:
                events.append(self._waiting.get_nowait())
                records += events[-1].value
            self.store.reached(await self._pipeline.handle(self.store, self.partition, records))
            for event in events:
                event.ack()


class Lanes:
    """The partitions this worker owns."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        metrics: Metrics,
        *,
        recovery: Recovery,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._metrics = metrics
        self._recovery = recovery
        self._on_failure = on_failure
        self._over = threading.Event()  # set when the partitions taken over last are to be let go
        self._lanes: dict[int, Lane] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def stores(self) -> list[PartitionStore]:
        """The stores of the partitions owned now."""
        return [lane.store for lane in self._lanes.values()]

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
            lane.drop_waiting()
            lane.store.close()
        self._lanes.clear()
        await self._recovery.finished()

    async def take_over(self, partitions: Iterable[int]) -> None:
        """Open the stores of these partitions, bring each up to the end of its changelog, and start its lane.

        Does nothing more when the partitions are let go meanwhile. Raises what `Recovery.restore` raises.
        """
        self._over.set()
        over = self._over = threading.Event()
        await self._end()
        if over.is_set():
            return
        started = time.monotonic()
        wanted = sorted(set(partitions))
        stores = await self._recovery.restore(wanted, over)
        if over.is_set():
            return
        for partition, store in stores.items():
            self._lanes[partition] = Lane(
                partition, store, self._pipeline, chunk_events=self._settings.worker.chunk_events
            )
        for lane in self._lanes.values():
            task = asyncio.create_task(lane.run(), name=f"lane-{lane.partition}")
            task.add_done_callback(self._on_done)
            self._tasks.append(task)
        self._metrics.partitions = wanted
        log.info(
            "owns partitions %s, %d changelog records restored in %.2f s",
            wanted,
            self._metrics.restored,
            time.monotonic() - started,
        )

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
