"""What a worker tells about a release: its own sums on top of what its partitions' owners told before."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from streams.migration import Progress
from streams.reports import Reports
from xplat_stream.comparison import Comparison
from xplat_stream.errors import DeliveryError, KafkaUnavailable
from xplat_stream.testing import START, make_event, make_release

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.warming import Warmth
    from tests.streams.conftest import Bench
    from xplat_stream.kafka.codec import Report


class FakeTopic:
    """The last report of every partition, as Kafka keeps it."""

    def __init__(self) -> None:
        self.held: dict[int, Report] = {}
        self.writes: list[list[int]] = []
        self.fault: Exception | None = None

    def read(self) -> list[Report]:
        """Return them, unless told to fail."""
        if self.fault:
            raise self.fault
        return list(self.held.values())

    def write(self, reports: Sequence[Report]) -> None:
        """Keep them, unless told to fail."""
        if self.fault:
            raise self.fault
        self.held.update({report.partition: report for report in reports})
        self.writes.append([report.partition for report in reports])


class Desk:
    """A worker's reports on the bench, its topic, and how far its partitions are."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.topic = FakeTopic()
        self.progress = {bench.partition: Progress(2, 10, 4)}
        self.warmth: dict[int, Warmth] = {}
        self.now = START
        self.reports = self.begin()
        bench.pipeline.release = make_release(2)
        bench.shadow.use(make_release(2), make_release(1))

    def begin(self) -> Reports:
        """Return the reports of a worker that just started."""
        return Reports(
            self.bench.shadow,
            lambda: self.progress,
            lambda: self.warmth,
            read=self.topic.read,
            write=self.topic.write,
            now=lambda: self.now,
        )

    async def compare(self) -> None:
        """Let both releases score one window more."""
        await self.bench.handle(self.bench.record(make_event()))
        await self.bench.shadow.compare_next()

    @property
    def last(self) -> Report:
        """The last report of the bench's partition."""
        return self.topic.held[self.bench.partition]


@pytest.fixture
def desk(bench: Bench) -> Desk:
    """Return the reports of a worker whose partition compares 2 with 1."""
    return Desk(bench)


async def test_progress_and_comparison_are_told(desk: Desk) -> None:
    """Release, active users, how many are on it, and the pair with its sums."""
    await desk.compare()
    await desk.reports.publish()
    said = desk.last
    assert (said.release, said.active_users, said.scored_users, said.settled) == (2, 10, 4, False)
    assert (said.compared, said.comparison.compared, said.at) == ((2, 1), 1, START)


async def test_nothing_new_is_told_once_a_minute(desk: Desk) -> None:
    """The topic stays small, and a paused worker's late report does not stay the last."""
    for seconds in (0, 10, 59, 60, 70):
        desk.now = START + timedelta(seconds=seconds)
        await desk.reports.publish()
    assert len(desk.topic.writes) == 2
    desk.progress[desk.bench.partition] = Progress(2, 10, 10, settled=True)
    await desk.reports.publish()
    assert desk.last.settled


async def test_sums_survive_a_restart_and_a_move(desk: Desk) -> None:
    """Whoever has the partition goes on from its last report, and nothing counts twice."""
    await desk.compare()
    await desk.reports.publish()
    await desk.compare()
    await desk.reports.publish()
    assert desk.last.comparison.compared == 2
    desk.bench.shadow.begin()
    for reports in (desk.begin(), desk.reports):
        await reports.publish()
        assert desk.last.comparison.compared == 2
    await desk.compare()
    await desk.reports.publish()
    assert desk.last.comparison.compared == 3


async def test_another_pair_is_told_from_zero(desk: Desk) -> None:
    """What the topic has of the pair before does not count for it."""
    await desk.compare()
    await desk.reports.publish()
    desk.bench.shadow.use(make_release(2), make_release(3))
    await desk.reports.publish()
    assert (desk.last.compared, desk.last.comparison) == ((2, 3), Comparison())


async def test_nothing_is_told_of_partitions_that_moved_while_it_was_read(desk: Desk) -> None:
    """It is read again next time."""
    read = desk.topic.read

    def moved() -> list[Report]:
        desk.bench.shadow.generation += 1
        return read()

    desk.reports._read = moved
    await desk.reports.publish()
    assert desk.topic.writes == []
    desk.reports._read = read
    await desk.reports.publish()
    assert len(desk.topic.writes) == 1


@pytest.mark.parametrize(
    "fault", [KafkaUnavailable("away", where="", expected="", fix=""), DeliveryError("not acknowledged", left=1)]
)
async def test_kafka_being_away_costs_a_report_and_no_worker(
    desk: Desk, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told later, further on."""
    desk.topic.fault = fault
    running = asyncio.create_task(desk.reports.run(0.001))
    async with asyncio.timeout(60):
        while "no report on the release now" not in caplog.text:  # noqa: ASYNC110 - a log
            await asyncio.sleep(0)
        desk.topic.fault = None
        while not desk.topic.writes:  # noqa: ASYNC110 - a double
            await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
