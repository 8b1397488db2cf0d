"""Lanes: order within a partition, batches that grow with the load, and letting go in the middle of anything."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams.lanes import Lane, Lanes
from streams.pipeline import Admitted
from streams.postponed import Postponed
from streams.reading import Reading
from streams.recovery import Recovery
from streams.store import PartitionStore
from streams.suspects import Suspects
from streams.warming import Warmer
from xplat_stream.errors import DeliveryError, StateError
from xplat_stream.event import UserId, hash_text
from xplat_stream.metrics import Metrics
from xplat_stream.serving.texts import TextVectors
from xplat_stream.settings import ScoreSettings, Settings, WorkerSettings
from xplat_stream.state import Publication, TextEntry, UserState
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.testing import FakeScorer, make_event, make_release
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.streams.conftest import FakeChangelog
    from xplat_stream.serving import Release

PATIENCE_S = 60.0


class FakeEvent:
    """What Faust hands over: a chunk's records, by offset, and whether they were acknowledged."""

    def __init__(self, *offsets: int, partition: int = 0, behind: int = 0) -> None:
        self.value = [
            SimpleNamespace(topic="behavior.shop.v1", partition=partition, offset=offset) for offset in offsets
        ]
        self.message = SimpleNamespace(partition=partition, behind=behind)
        self.acked = False

    def ack(self) -> None:
        """Note it."""
        self.acked = True


class FakePipeline:
    """Notes what it is given and waits where it is told to."""

    def __init__(self) -> None:
        self.handled: list[list[Any]] = []
        self.condemned: list[Any] = []
        self.flushed: list[bytes] = []
        self.rescored: list[list[UserId]] = []
        self.admitted = asyncio.Event()
        self.entered = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.fault: Exception | None = None
        self.poison: int | None = None
        self.release: Any = None
        self.withdrawn = 0
        self.postponed = Postponed(ScoreSettings(), load_taxonomy())
        self.reading = Reading(TextVectors(FakeScorer()))

    async def handle(
        self, store: PartitionStore, partition: int, records: list[Any], *, condemned: bool = False
    ) -> None:
        """Take the records."""
        if condemned:
            self.condemned += [record.offset for record in records]
            return
        admitted = Admitted()
        self.admit(store, partition, records, into=admitted)
        await self.finish(store, partition, admitted)

    def admit(self, _store: PartitionStore, _partition: int, records: list[Any], *, into: Admitted) -> None:
        """Note their offsets."""
        into.records += len(records)
        into.users |= {UserId(f"user-{record.offset}"): record.offset for record in records}
        into.letters += [record.offset for record in records]
        self.admitted.set()

    async def finish(self, _store: PartitionStore, _partition: int, admitted: Admitted) -> None:
        """Take what was admitted."""
        self.entered.set()
        await self.may_go_on.wait()
        offsets = list(admitted.letters)
        if self.fault and (self.poison is None or self.poison in offsets):
            raise self.fault
        self.handled.append(offsets)

    async def flush(self, store: PartitionStore, _partition: int) -> None:
        """Note what is written."""
        assert not self.handled
        self.flushed += [key for key, _ in store.write()]

    async def rescore(self, store: PartitionStore, _partition: int, users: list[UserId]) -> int:
        """Score them, unless told to fail."""
        self.rescored.append(list(users))
        if self.fault:
            return 0
        for user in users:
            release = self.release.number if self.release else 0
            store.put_user(user, UserState(BehaviorWindow(store.spec), Publication(revision=2, release=release)))
        store.write()
        return len(users)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings with small chunks and a folder of their own."""
    return Settings(worker=WorkerSettings(datadir=str(tmp_path), chunk_events=4))


@pytest.fixture
def owned(settings: Settings, changelog: FakeChangelog) -> Iterator[Callable[..., Lanes]]:
    """Return a maker of lanes over the changelog."""
    made: list[Lanes] = []

    def make(pipeline: FakePipeline, failures: list[BaseException] | None = None) -> Lanes:
        metrics = Metrics()
        report = [] if failures is None else failures
        recovery = Recovery(settings, changelog, metrics)
        scorer = FakeScorer()
        warmer = Warmer(scorer, TextVectors(scorer))
        made.append(Lanes(settings, pipeline, metrics, recovery=recovery, warmer=warmer, on_failure=report.append))
        return made[-1]

    yield make
    for one in made:
        for store in one.stores:
            store.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - conditions of several objects
            await asyncio.sleep(0)


async def test_who_waits_for_the_encoder_is_scored_the_moment_it_answers(
    owned: Callable[..., Lanes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that rests until a chunk comes is woken by the answer; until then it handles chunks."""
    monkeypatch.setattr(Lane, "_idle_s", lambda _: 1e6)
    asked, may_answer = asyncio.Event(), asyncio.Event()
    scorer = FakeScorer()
    encode = scorer.encode

    async def gated(release: Release, texts: Any) -> list[bytes]:
        asked.set()
        await may_answer.wait()
        return await encode(release, texts)

    monkeypatch.setattr(scorer, "encode", gated)
    pipeline = FakePipeline()
    pipeline.release = make_release()
    pipeline.reading = Reading(TextVectors(scorer))
    lanes = owned(pipeline)
    await lanes.take_over([0])
    (store,) = lanes.stores
    event = make_event(object_title="film")
    text_hash = hash_text("film")
    window = BehaviorWindow(store.spec).fold([(event.platform, row_of(event, text_hash))])
    store.put_text(text_hash, TextEntry("film"))
    store.put_user(event.user_id, UserState(window, Publication(1, pipeline.release.number)))
    store.write()
    pipeline.reading.add(0, [event.user_id], touched=True)
    for offset in range(2):
        await lanes.put(FakeEvent(offset))
        await until(lambda: len(pipeline.handled) == offset + 1)  # noqa: B023 - awaited here
        await asked.wait()
    assert (pipeline.rescored, lanes.unread) == ([], 1)
    may_answer.set()
    await until(lambda: pipeline.rescored == [[event.user_id]])
    assert lanes.unread == 0
    await lanes.let_go()


async def test_chunks_are_handled_in_order_and_then_acknowledged(owned: Callable[..., Lanes]) -> None:
    """An event is acknowledged after its records were handled, never before."""
    pipeline = FakePipeline()
    lanes = owned(pipeline)
    await lanes.take_over([0])
    pipeline.may_go_on.clear()
    first, second = FakeEvent(1, 2), FakeEvent(3)
    await lanes.put(first)
    await pipeline.entered.wait()
    await lanes.put(second)
    assert not first.acked
    pipeline.may_go_on.set()
    await until(lambda: second.acked)
    assert first.acked
    assert pipeline.handled == [[1, 2], [3]]
    await lanes.let_go()


async def test_what_has_piled_up_is_handled_together(owned: Callable[..., Lanes]) -> None:
    """While one chunk is under way, the next ones join, up to the chunk size."""
    pipeline = FakePipeline()
    lanes = owned(pipeline)
    await lanes.take_over([0])
    pipeline.may_go_on.clear()
    events = [FakeEvent(number, number) for number in range(5)]
    await lanes.put(events[0])
    await pipeline.entered.wait()
    for event in events[1:]:
        await lanes.put(event)
    pipeline.may_go_on.set()
    await until(lambda: events[-1].acked)
    assert pipeline.handled == [[0, 0], [1, 1, 2, 2], [3, 3, 4, 4]]
    await lanes.let_go()


async def test_a_lane_that_is_behind_gathers(owned: Callable[..., Lanes]) -> None:
    """While the log holds a chunk or more behind the last one, the next one joins, also beyond the chunk size."""
    pipeline = FakePipeline()
    lanes = owned(pipeline)
    await lanes.take_over([0])
    events = [FakeEvent(at, at, at, behind=4 + at) for at in (9, 6, 3)] + [FakeEvent(0, behind=3)]
    for event in events:
        pipeline.admitted.clear()
        await lanes.put(event)
        await pipeline.admitted.wait()
    await until(lambda: events[-1].acked)
    assert pipeline.handled == [[9, 9, 9, 6, 6, 6, 3, 3, 3, 0]]
    assert all(event.acked for event in events)
    await lanes.let_go()


@pytest.mark.parametrize("limit", ["time", "users"])
async def test_gathering_ends(owned: Callable[..., Lanes], monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """When its time is over, though nothing more came; and when there are as many users as four chunks have events."""
    if limit == "time":
        monkeypatch.setattr("streams.lanes._GATHER_S", 0)
    pipeline = FakePipeline()
    lanes = owned(pipeline)
    await lanes.take_over([0])
    event = FakeEvent(*range(1 if limit == "time" else 16), behind=1_000)
    await lanes.put(event)
    await until(lambda: event.acked)
    await lanes.let_go()


async def test_letting_go_of_what_is_gathered_acknowledges_nothing(owned: Callable[..., Lanes]) -> None:
    """It is read again by whoever owns the partition then."""
    pipeline = FakePipeline()
    lanes = owned(pipeline)
    await lanes.take_over([0])
    event = FakeEvent(1, behind=1_000)
    await lanes.put(event)
    await pipeline.admitted.wait()
    await lanes.let_go()
    assert (event.acked, pipeline.handled) == (False, [])


async def test_a_crash_is_blamed_on_all_that_was_gathered(owned: Callable[..., Lanes], settings: Settings) -> None:
    """Any of the records may have led to it."""
    failures: list[BaseException] = []
    pipeline = FakePipeline()
    pipeline.fault = RuntimeError("unforeseen")
    lanes = owned(pipeline, failures)
    await lanes.take_over([0])
    await lanes.put(FakeEvent(1, 2, behind=1_000))
    await lanes.put(FakeEvent(3, 4))
    await until(lambda: bool(failures))
    await lanes.let_go()
    (held,) = msgspec.json.decode((Path(settings.worker.datadir) / "crashes.json").read_bytes())
    assert (held["first"], held["last"], held["crashes"]) == (1, 4, 1)


async def test_partitions_do_not_wait_for_each_other(owned: Callable[..., Lanes]) -> None:
    """While one lane waits for Triton or Kafka, another goes on."""

    class Slow(FakePipeline):
        async def finish(self, store: PartitionStore, partition: int, admitted: Admitted) -> None:
            if partition == 0:
                self.entered.set()
                await asyncio.Event().wait()
            await super().finish(store, partition, admitted)

    pipeline = Slow()
    lanes = owned(pipeline)
    await lanes.take_over([0, 1])
    await until(lambda: len(lanes.stores) == 2)
    stuck, free = FakeEvent(1), FakeEvent(2, partition=1)
    await lanes.put(stuck)
    await pipeline.entered.wait()
    await lanes.put(free)
    await until(lambda: free.acked)
    assert not stuck.acked
    await lanes.let_go()


async def test_letting_go_in_the_middle_acknowledges_nothing(owned: Callable[..., Lanes], settings: Settings) -> None:
    """A rebalance cancels the chunk under way and frees whoever waits for room; the stores can be opened at once."""
    pipeline = FakePipeline()
    pipeline.may_go_on.clear()
    lanes = owned(pipeline)
    await lanes.take_over([0])
    events = [FakeEvent(number) for number in range(12)]

    async def fill() -> None:
        for event in events:
            await lanes.put(event)

    filling = asyncio.create_task(fill())
    await pipeline.entered.wait()
    await asyncio.sleep(0)
    assert not filling.done()
    await lanes.let_go()
    await asyncio.wait_for(filling, PATIENCE_S)
    assert not any(event.acked for event in events)
    assert lanes.stores == []
    await lanes.put(FakeEvent(99))
    store = PartitionStore(
        settings_folder(settings), WindowSpec(settings.window.per_platform, settings.window.horizon), cached_users=1
    )
    store.close()


def settings_folder(settings: Settings) -> Path:
    """Return the folder of partition 0."""
    return Path(settings.worker.datadir) / "partition-0"


async def test_a_failing_chunk_stops_the_worker(owned: Callable[..., Lanes]) -> None:
    """Whatever `handle` raises is reported, the event stays unacknowledged, and nothing after it is handled."""
    failures: list[BaseException] = []
    pipeline = FakePipeline()
    pipeline.fault = RuntimeError("unforeseen")
    lanes = owned(pipeline, failures)
    await lanes.take_over([0])
    first, second = FakeEvent(1), FakeEvent(2)
    await lanes.put(first)
    await lanes.put(second)
    await until(lambda: bool(failures))
    assert failures == [pipeline.fault]
    assert not first.acked
    assert not second.acked
    await lanes.let_go()


async def test_a_record_that_crashes_three_times_becomes_a_dead_letter(owned: Callable[..., Lanes]) -> None:
    """Chunk, chunk, single record: then it is condemned, and everything around it is handled."""
    crashes = 0
    while True:
        failures: list[BaseException] = []
        pipeline = FakePipeline()
        pipeline.fault, pipeline.poison = RuntimeError("unforeseen"), 3
        lanes = owned(pipeline, failures)
        await lanes.take_over([0])
        event = FakeEvent(1, 2, 3, 4)
        await lanes.put(event)
        await until(lambda event=event, failures=failures: bool(failures) or event.acked)
        await lanes.let_go()
        if event.acked:
            break
        crashes += 1
    assert crashes == 3
    assert pipeline.condemned == [3]
    assert pipeline.handled == [[1], [2], [4]]


@pytest.mark.parametrize("error", [DeliveryError("broker away", left=1), OSError(28, "No space left on device")])
async def test_what_is_no_records_fault_is_blamed_on_none(
    owned: Callable[..., Lanes], settings: Settings, error: Exception
) -> None:
    """A broker that is away and a full disk crash the worker as often as they like: no record is put aside."""
    for _ in range(4):
        failures: list[BaseException] = []
        pipeline = FakePipeline()
        pipeline.fault = error
        lanes = owned(pipeline, failures)
        await lanes.take_over([0])
        await lanes.put(FakeEvent(1))
        await until(lambda failures=failures: bool(failures))
        await lanes.let_go()
    assert not Suspects(Path(settings.worker.datadir))


async def test_what_is_degraded_is_scored_again(owned: Callable[..., Lanes]) -> None:
    """Without any new event, a batch at a time, and no user twice; chunks that come meanwhile are handled."""
    pipeline = FakePipeline()
    lanes = owned(pipeline)
    await lanes.take_over([0])
    (store,) = lanes.stores
    users = [UserId(f"user-{number:03}") for number in range(300)]
    for user in users:
        store.put_user(user, UserState(BehaviorWindow(store.spec), Publication(revision=1, pending=True)))
    store.write()
    event = FakeEvent(1)
    await lanes.put(event)
    await until(lambda: not store.has_pending)
    assert event.acked
    assert [user for batch in pipeline.rescored for user in batch] == users
    assert max(map(len, pipeline.rescored)) <= 256
    await lanes.let_go()


async def test_active_users_are_moved_to_another_release_behind_what_waits(owned: Callable[..., Lanes]) -> None:
    """A chunk that waits goes first; with nothing waiting everyone is scored again, and progress says so."""
    pipeline = FakePipeline()
    lanes = owned(pipeline)
    await lanes.take_over([0])
    (store,) = lanes.stores
    users = [UserId(f"user-{number:03}") for number in range(70)]
    for user in users:
        store.put_user(user, UserState(BehaviorWindow(store.spec), Publication(1, 1, (7,))))
    store.write()
    pipeline.may_go_on.clear()
    events = [FakeEvent(number, number) for number in range(5)]
    await lanes.put(events[0])
    await pipeline.entered.wait()
    for event in events[1:]:
        await lanes.put(event)
    pipeline.release = SimpleNamespace(number=2)
    pipeline.may_go_on.set()
    await until(lambda: bool(pipeline.rescored))
    assert [event.acked for event in events] == [True] * 5
    await until(lambda: lanes.progress[0].settled)
    assert sorted(user for batch in pipeline.rescored for user in batch) == users
    assert max(map(len, pipeline.rescored)) <= 64
    assert lanes.progress[0] == (2, 70, 70, True)
    await lanes.let_go()


def held(changelog: FakeChangelog) -> tuple[threading.Event, threading.Event]:
    """Let restores stand still at each batch. Returns what says that one does, and what lets it go on."""
    reading, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reading.set()
        assert may_go_on.wait(PATIENCE_S)

    changelog.before_batch = hold
    return reading, may_go_on


async def test_letting_go_during_a_take_over_starts_nothing(
    owned: Callable[..., Lanes], changelog: FakeChangelog, settings: Settings
) -> None:
    """Partitions revoked while their stores are restored: no lane starts, and the stores can be opened at once."""
    reading, may_go_on = held(changelog)
    lanes = owned(FakePipeline())
    taking = asyncio.create_task(lanes.take_over([0, 1]))
    assert await asyncio.to_thread(reading.wait, PATIENCE_S)
    letting_go = asyncio.create_task(lanes.let_go())
    await asyncio.sleep(0)
    assert not letting_go.done()
    may_go_on.set()
    await asyncio.wait_for(asyncio.gather(taking, letting_go), PATIENCE_S)
    assert lanes.stores == []
    assert [span.partition for span in changelog.reads] == [0]
    PartitionStore(settings_folder(settings), WindowSpec(), cached_users=1).close()


async def test_the_last_take_over_counts(owned: Callable[..., Lanes], changelog: FakeChangelog) -> None:
    """A second assignment that arrives while the first is restored ends it, and alone has lanes."""
    reading, may_go_on = held(changelog)
    lanes = owned(FakePipeline())
    first = asyncio.create_task(lanes.take_over([0, 1]))
    assert await asyncio.to_thread(reading.wait, PATIENCE_S)
    second = asyncio.create_task(lanes.take_over([1, 2]))
    await asyncio.sleep(0)
    may_go_on.set()
    await asyncio.wait_for(asyncio.gather(first, second), PATIENCE_S)
    await until(lambda: len(lanes.stores) == 2)
    assert [store.path.name for store in lanes.stores] == ["partition-1", "partition-2"]
    assert lanes._metrics.partitions == [1, 2]
    await lanes.let_go()


async def test_who_is_restored_does_not_wait_for_the_rest(
    owned: Callable[..., Lanes], changelog: FakeChangelog, settings: Settings
) -> None:
    """What a worker goes on with comes first and takes chunks at once; so does what follows, one after the other."""
    lanes, began = owned(FakePipeline()), list[int]()
    await lanes.take_over([2])
    await lanes.let_go()
    changelog.reads.clear()
    turns = [threading.Event() for _ in range(3)]
    reads = iter(turns)

    def wait() -> None:
        assert next(reads).wait(PATIENCE_S)

    changelog.before_batch = wait
    turns[0].set()
    await asyncio.wait_for(lanes.take_over([0, 1, 2], began.append), PATIENCE_S)
    for number, partition in enumerate([2, 0, 1]):
        turns[number].set()
        await until(lambda partition=partition: partition in began)
        assert [span.partition for span in changelog.reads][: number + 1] == began == [2, 0, 1][: number + 1]
        assert lanes._metrics.partitions == sorted(began)
        event = FakeEvent(number, partition=partition)
        await lanes.put(event)
        await until(lambda event=event: event.acked)
    await lanes.let_go()


async def test_a_state_that_cannot_be_restored_later_stops_the_worker(
    owned: Callable[..., Lanes], changelog: FakeChangelog
) -> None:
    """Also when others run already: nobody goes on without it."""
    failures: list[BaseException] = []
    lanes = owned(FakePipeline(), failures)
    changelog.records[1] = [(b"?", b"of another version")]
    await asyncio.wait_for(lanes.take_over([0, 1]), PATIENCE_S)
    await until(lambda: bool(failures))
    assert isinstance(failures[0], StateError)
    await lanes.let_go()


async def test_a_take_over_cut_off_leaves_no_store_open(
    owned: Callable[..., Lanes], changelog: FakeChangelog, settings: Settings
) -> None:
    """A take-over whose task is cancelled leaves a thread behind; letting go waits for it and closes what it opened."""
    reading, may_go_on = held(changelog)
    lanes = owned(FakePipeline())
    taking = asyncio.create_task(lanes.take_over([0]))
    assert await asyncio.to_thread(reading.wait, PATIENCE_S)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    may_go_on.set()
    await asyncio.wait_for(lanes.let_go(), PATIENCE_S)
    PartitionStore(settings_folder(settings), WindowSpec(), cached_users=1).close()


async def test_what_recovery_merged_goes_into_the_changelog_first(
    owned: Callable[..., Lanes], changelog: FakeChangelog
) -> None:
    """A last record that is not all there is (a paused worker's) is written again before any chunk is handled."""
    from tests.streams.test_store import USER, state
    from xplat_stream.state import user_key

    changelog.records[0] = [(user_key(USER), state(hour).pack()) for hour in (2, 1)]
    pipeline = FakePipeline()
    lanes = owned(pipeline)
    await lanes.take_over([0])
    event = FakeEvent(1)
    await lanes.put(event)
    await until(lambda: event.acked)
    assert pipeline.flushed == [user_key(USER)]
    await lanes.let_go()


def test_metrics_are_written_whole(tmp_path: Path) -> None:
    """A reader sees the last snapshot or zeros, and no half-written file stays behind."""
    from xplat_stream.metrics import read_metrics

    assert read_metrics(tmp_path) == Metrics()
    metrics = Metrics(events=3, rejected={"size": 1}, partitions=[1])
    metrics.write(tmp_path / "new")
    assert msgspec.to_builtins(read_metrics(tmp_path / "new")) == msgspec.to_builtins(metrics)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["metrics.json"]


async def test_who_waits_is_scored_when_the_limit_comes_and_not_before(owned: Callable[..., Lanes]) -> None:
    """Pending in the state like the degraded; those are scored at once, the others by a lane that is idle by then."""
    now = 0.0
    pipeline = FakePipeline()
    pipeline.postponed = Postponed(ScoreSettings(stale_s=60), load_taxonomy(), clock=lambda: now)
    lanes = owned(pipeline)
    await lanes.take_over([0])
    (store,) = lanes.stores
    waits, degraded = UserId("waits"), UserId("degraded")
    for user in (waits, degraded):
        store.put_user(user, UserState(BehaviorWindow(store.spec), Publication(revision=1, pending=True)))
    store.write()
    pipeline.postponed._waiting[0] = {waits: (60.0, 0.5)}
    await lanes.put(FakeEvent(1))
    await until(lambda: [degraded] in pipeline.rescored)
    assert all(waits not in users for users in pipeline.rescored)
    now = 60.0
    await until(lambda: [waits] in pipeline.rescored)
    assert store.pending(limit=9) == []
    await lanes.let_go()


async def test_a_rebalance_has_nobody_scored_whose_worker_stays(owned: Callable[..., Lanes]) -> None:
    """They go on waiting for their limit; of a partition that another worker had meanwhile, all pending are scored."""
    pipeline = FakePipeline()
    pipeline.postponed = Postponed(ScoreSettings(stale_s=60), load_taxonomy(), clock=lambda: 0.0)
    lanes = owned(pipeline)
    await lanes.take_over([0])
    (store,) = lanes.stores
    stays = UserId("stays")
    store.put_user(stays, UserState(BehaviorWindow(store.spec), Publication(revision=1, pending=True)))
    pipeline.postponed._waiting[0] = {stays: (60.0, 0.5)}
    store.write()
    for partitions, scored in (([0, 1], []), ([1], []), ([0, 1], [[stays]])):
        await lanes.let_go()
        await lanes.take_over(partitions)
        await until(lambda partitions=partitions: len(lanes.stores) == len(partitions))
        for partition in partitions:
            event = FakeEvent(1, partition=partition)
            await lanes.put(event)
            await until(lambda event=event: event.acked)
        await until(lambda scored=scored: [users for users in pipeline.rescored if users] == scored)
    await lanes.let_go()


async def test_a_chunk_goes_between_parts_of_those_whose_limit_has_come(owned: Callable[..., Lanes]) -> None:
    """However many are due at once, what comes meanwhile waits for one part of them; nobody is left or scored twice."""
    steps: list[int | str] = []
    event = FakeEvent(1)

    class Noting(FakePipeline):
        async def rescore(self, store: PartitionStore, partition: int, users: list[UserId]) -> int:
            if users and not steps:
                await lanes.put(event)
            if users:
                steps.append(len(users))
            return await super().rescore(store, partition, users)

        async def finish(self, store: PartitionStore, partition: int, admitted: Admitted) -> None:
            steps.append("chunk")
            await super().finish(store, partition, admitted)

    pipeline = Noting()
    pipeline.postponed = Postponed(ScoreSettings(), load_taxonomy(), clock=lambda: 60.0)
    lanes = owned(pipeline)
    await lanes.take_over([0])
    (store,) = lanes.stores
    users = [UserId(f"user-{number:03}") for number in range(200)]
    for user in users:
        store.put_user(user, UserState(BehaviorWindow(store.spec), Publication(revision=1, pending=True)))
    store.write()
    pipeline.postponed._waiting[0] = dict.fromkeys(users, (60.0, 0.5))
    await until(lambda: not store.has_pending)
    assert steps == [64, "chunk", 64, 64, 8]
    assert sorted(user for part in pipeline.rescored for user in part) == users
    await lanes.let_go()


async def test_who_waits_is_moved_to_another_release_before_that_is_due(owned: Callable[..., Lanes]) -> None:
    """A migration does not wait for the limit, and is settled without it."""
    pipeline = FakePipeline()
    pipeline.postponed = Postponed(ScoreSettings(), load_taxonomy(), clock=lambda: 0.0)
    pipeline.release = SimpleNamespace(number=2)
    lanes = owned(pipeline)
    await lanes.take_over([0])
    (store,) = lanes.stores
    waits = UserId("waits")
    store.put_user(waits, UserState(BehaviorWindow(store.spec), Publication(1, 1, (7,), pending=True)))
    store.write()
    pipeline.postponed._waiting[0] = {waits: (60.0, 0.5)}
    await until(lambda: lanes.progress[0].settled)
    assert [users for users in pipeline.rescored if users] == [[waits]]
    assert lanes.progress[0] == (2, 1, 1, True)
    await lanes.let_go()
