"""What this worker tells about a release, partition by partition, every few seconds; nobody waits for it.

A partition's sums begin where its last report ended, whoever wrote that. Kafka being away costs a report, not the
worker: what is told later is the same sums, further on.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from xplat_stream.comparison import Comparison
from xplat_stream.errors import DeliveryError, KafkaUnavailable
from xplat_stream.failpoints import reached
from xplat_stream.kafka.codec import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.migration import Progress
    from streams.shadow import Shadow
    from streams.warming import Warmth

log = logging.getLogger("xplat.worker")

_AT_LEAST_EVERY: Final = timedelta(minutes=1)
"""A report that says nothing new is repeated: a paused worker's late one does not stay the last."""


class Reports:
    """Publishes the reports of the partitions owned now. `read` and `write` are Kafka, and block."""

    def __init__(
        self,
        shadow: Shadow,
        progress: Callable[[], Mapping[int, Progress]],
        warmth: Callable[[], Mapping[int, Warmth]],
        *,
        read: Callable[[], Sequence[Report]],
        write: Callable[[Sequence[Report]], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._shadow = shadow
        self._progress = progress
        self._warmth = warmth
        self._read = read
        self._write = write
        self._now = now
        self._generation = -1
        self._before: dict[int, Comparison] = {}
        self._last: dict[int, Report] = {}

    async def run(self, every_s: float) -> None:
        """Publish at this interval, for ever."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.publish()
            except (KafkaUnavailable, DeliveryError) as error:
                log.warning("no report on the release now: %s", error)

    async def publish(self) -> None:
        """Publish what is new. Raises `KafkaUnavailable`, `DeliveryError`."""
        generation, pair = self._shadow.generation, (self._shadow.counted, self._shadow.since)
        if generation != self._generation:
            held = await asyncio.to_thread(self._read)
            self._before = {
                report.partition: report.comparison for report in held if (report.compared, report.since) == pair
            }
            self._last.clear()
            self._generation = generation
        if generation != self._shadow.generation:
            return  # partitions or pair changed while it was read
        reports = [self._report(partition, progress) for partition, progress in self._progress().items()]
        new = [report for report in reports if self._is_news(report)]
        if new:
            await asyncio.to_thread(self._write, new)
            reached("report.told")
            self._last.update({report.partition: report for report in new})

    def _report(self, partition: int, progress: Progress) -> Report:
        return Report(
            partition,
            self._now(),
            progress.release,
            progress.active,
            progress.scored,
            progress.settled,
            self._shadow.counted,
            self._before.get(partition, Comparison()).merge(self._shadow.comparison(partition)),
            self._shadow.since,
            *self._warmth().get(partition, ()),
        )

    def _is_news(self, report: Report) -> bool:
        last = self._last.get(report.partition)
        return (
            last is None
            or report.at - last.at >= _AT_LEAST_EVERY
            or msgspec.structs.replace(report, at=last.at) != last
        )
