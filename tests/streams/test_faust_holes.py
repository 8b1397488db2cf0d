"""The thirteen ways in which stock faust-streaming 0.15.3 loses or repeats events, each beside what is here instead.

`stock` tests show the fault on Faust's own classes, so that the day it is gone upstream is seen; the test of the same
letter without that word shows that the worker does not have it.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import create_autospec

import pytest
from faust.events import Event
from faust.tables.recovery import Recovery as StockRecovery
from faust.transport.conductor import ConductorCompiler
from faust.transport.producer import ProducerBuffer
from faust.types import TP, FutureMessage, PendingMessage

import streams.app
from streams import recovery as recovery_module
from streams.app import create_app
from streams.consumer import ChunkSchema
from streams.lanes import Lane
from streams.outbox import Delivery, Outbox
from streams.recovery import Recovery
from streams.store import PartitionStore
from tests.streams.conftest import GENERATION, SHOP, chunk_of, raw_records
from xplat_stream.errors import DeliveryError
from xplat_stream.event import UserId
from xplat_stream.kafka.log import Span
from xplat_stream.metrics import Metrics
from xplat_stream.settings import Settings
from xplat_stream.state import BARRIER_KEY, Publication, UserState, user_key
from xplat_stream.testing import make_event
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from faust.transport.drivers.aiokafka import Consumer

    from streams.consumer import ChunkConsumer

SPEC = WindowSpec()
CHANGELOG = TP("test-changelog", 0)


@pytest.fixture
async def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the worker's app, its parts of `streams.worker` replaced."""
    monkeypatch.setattr(streams.app, "Worker", create_autospec(streams.app.Worker))
    made = create_app(Settings())
    made.consumer_generation_id = GENERATION
    yield made
    made.consumer._thread.thread_loop.close()


async def _flow_during_the_seek(app: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Complete a recovery as `_restart_recovery` does, with the flow on, and tell what of it is on at the seek."""
    consumer = app.consumer
    seen = []

    async def perform_seek() -> None:
        seen.append((consumer.flow_active, app.flow_control.is_active()))

    async def nothing(*_: Any) -> None:
        """Stand in for what needs a broker."""

    monkeypatch.setattr(consumer, "assignment", lambda: {SHOP})
    monkeypatch.setattr(consumer, "perform_seek", perform_seek)
    monkeypatch.setattr(app, "_fetcher", SimpleNamespace(maybe_start=nothing))
    app.flow_control.resume()
    consumer.resume_flow()
    consumer.not_waiting_next_records.set()
    await app.tables.recovery.on_recovery_completed(GENERATION)
    assert consumer.flow_active
    return seen


async def test_a_stock_fetches_while_it_seeks(stock_consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock: the flow is on while positions are sought, so what is fetched meanwhile is cleared from the queues."""
    assert await _flow_during_the_seek(stock_consumer.app, monkeypatch) == [(True, True)]


async def test_a_nothing_flows_while_positions_are_sought(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the end of recovery to the seek nothing can be fetched or queued; afterwards the flow is on."""
    assert await _flow_during_the_seek(app, monkeypatch) == [(False, False)]


async def test_chunks_wait_in_the_log_and_not_in_faust(app: Any) -> None:
    """A few at the most: what waits in the log comes as larger chunks, what waits in a queue as many small ones."""
    (agent,) = app.agents.values()
    assert agent.channel_iterator.queue.maxsize == Settings().kafka.partitions


async def test_b_stock_commits_past_what_is_in_flight(stock_consumer: Consumer) -> None:
    """Stock: a gap of one at the head, any gap of a fresh group, and the record behind a gap count as done."""
    stock_consumer._committed_offset[SHOP] = 10
    for offset in (11, 12):
        stock_consumer.ack(chunk_of(offset))
    assert stock_consumer._new_offset(SHOP) == 13  # 10 is in flight

    stock_consumer._committed_offset[SHOP] = None
    stock_consumer.ack(chunk_of(5))
    assert stock_consumer._new_offset(SHOP) == 6  # 0 to 4 are in flight

    stock_consumer._committed_offset[SHOP] = 11
    stock_consumer.ack(chunk_of(11))
    await stock_consumer._add_gap(SHOP, 12, 16)  # 16 is the record that arrives
    stock_consumer.ack(chunk_of(17))
    assert stock_consumer._new_offset(SHOP) == 18


@pytest.mark.parametrize("committed", [10, 0], ids=["behind a commit", "fresh group"])
async def test_b_a_gap_is_read_again_before_anything_is_acknowledged(
    consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch, committed: int
) -> None:
    """Records after a gap are not handed out: the missing ones are sought first, and nothing can be committed."""
    handed, sought = [], []

    async def take(chunk: Any) -> None:
        handed.append(chunk)

    async def seek(_: TP, offset: int) -> None:
        sought.append(offset)

    consumer.callback = take
    monkeypatch.setattr(consumer, "_seek", seek)
    consumer._read_offset[SHOP] = committed
    await consumer._deliver(SHOP, raw_records(committed + 1, committed + 2), GENERATION)
    assert (handed, sought, consumer._new_offset(SHOP)) == ([], [committed], None)


async def test_c_stock_flush_gives_up(stock_consumer: Consumer) -> None:
    """Stock: the flush before a commit returns after a tenth of a second with everything still unsent."""
    buffer = ProducerBuffer()
    buffer.app = stock_consumer.app
    buffer._started.set()
    for _ in range(5):
        buffer.put(object())
    await buffer.flush()
    assert buffer.size == 5


async def test_c_a_delivery_is_waited_for() -> None:
    """Confirmation comes with Kafka's answer for every batch and no sooner, however long that takes."""
    futures: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    waiting = asyncio.ensure_future(Outbox(Settings()).confirm([Delivery(futures, [3, 2])]))
    futures[0].set_result(SimpleNamespace(offset=7))
    await asyncio.sleep(0.15)
    assert not waiting.done()
    futures[1].set_result(SimpleNamespace(offset=10))
    assert await waiting == [12]


async def test_d_stock_ignores_what_was_not_published(stock_consumer: Consumer) -> None:
    """Stock: a failed send is noted in a future that nobody reads, and waiting for it before a commit succeeds."""
    app = stock_consumer.app
    topic = app.topic("out")
    message = FutureMessage(PendingMessage(topic, b"k", b"v", None, None, None, None, None, None))
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(OSError("too large"))
    topic._on_published(failed, message, SimpleNamespace(), None)
    await app.producer.wait_many([message])
    assert isinstance(message.exception(), OSError)


async def test_d_what_was_not_published_stops_the_chunk() -> None:
    """What Kafka refuses is raised where the chunk waits, before its acknowledgement."""
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(OSError("too large"))
    with pytest.raises(OSError, match="too large"):
        await Outbox(Settings()).confirm([Delivery([failed], [1])])


def _event(app: Any, *, generation: int = GENERATION) -> Event:
    app.flow_control.resume()
    message = chunk_of(9, generation=generation)
    message.incref()
    return Event(app, None, message.value, {}, message)


async def _stream(app: Any, *events: Event) -> Any:
    stream = app.stream(app.channel())
    for event in events:
        await stream.channel.queue.put(event)
    return stream


async def _fail_on_first(events: Any) -> None:
    async for _ in events:
        message = "the agent's own"
        raise ValueError(message)


async def test_e_stock_acknowledges_what_an_agent_failed_on(
    stock_consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock: the exception that ends an agent acknowledges the event, and is answered with a commit."""
    app = stock_consumer.app
    event = _event(app)
    events = (await _stream(app, event))._py_aiter()
    with pytest.raises(ValueError, match="own"):
        await _fail_on_first(events)
    await events.aclose()
    assert event.message.acked
    commits = []

    async def commit() -> None:
        commits.append(stock_consumer._new_offset(SHOP))

    monkeypatch.setattr(stock_consumer, "commit", commit)
    await app._on_agent_error(SimpleNamespace(), ValueError())
    assert commits == [10]


async def test_e_a_failure_is_reported_and_its_chunk_stays_unacknowledged(app: Any) -> None:
    """The agent reads without acknowledging; only the end of a lane's work on a chunk acknowledges it."""
    source = inspect.getsource(streams.app)
    assert "async for event in stream.noack().events():" in source
    assert inspect.getsource(Lane).count(".ack()") == 1
    event = _event(app)
    events = (await _stream(app, event)).noack()._py_aiter()
    with pytest.raises(ValueError, match="own"):
        await _fail_on_first(events)
    await events.aclose()
    assert not event.message.acked


async def _conducted(app: Any, topic: Any) -> tuple[Any, Any]:
    """Pass a record that is no JSON to a topic's channel as the conductor does. Returns its message and channel."""
    app.topics.acking_topics.add(SHOP.topic)
    app.flow_control.resume()
    channel = topic.clone(is_iterator=True, loop=asyncio.get_running_loop())
    message = chunk_of(9)
    message.value = b"{"
    message.tracked = True
    receive = ConductorCompiler().build(app.topics, SHOP, {channel})
    await receive(message)
    return message, channel


async def test_f_stock_acknowledges_what_it_cannot_decode(stock_consumer: Consumer) -> None:
    """Stock: the record is acknowledged, and the error is thrown into the agent."""
    app = stock_consumer.app
    message, channel = await _conducted(app, app.topic(SHOP.topic, value_type=dict, value_serializer="json"))
    assert message.acked
    assert channel.queue._errors


async def test_f_decoding_is_the_pipelines_business(app: Any) -> None:
    """Whatever the bytes are, they reach the agent untouched and unacknowledged; a bad one becomes a dead letter."""
    message, channel = await _conducted(app, app.topic(SHOP.topic, schema=ChunkSchema()))
    assert not message.acked
    assert not channel.queue._errors
    assert channel.queue.get_nowait().value == b"{"


async def test_g_stock_take_acknowledges_what_failed(stock_consumer: Consumer) -> None:
    """Stock: `take` acknowledges its whole buffer also when the body raised."""
    event = _event(stock_consumer.app)
    stream = await _stream(stock_consumer.app, event)
    batches = stream.take(1, within=5)
    assert await asyncio.wait_for(anext(batches), 60) == [event.value]
    with pytest.raises(ValueError, match="own"):
        await batches.athrow(ValueError("the agent's own"))
    assert event.message.acked
    await stream.stop()


def test_g_nothing_is_taken() -> None:
    """The worker batches chunks in its lanes: neither `take` nor `take_events` nor `noack_take` is used."""
    assert "take(" not in inspect.getsource(streams.app).replace("take_over(", "")
    assert "take_events(" not in inspect.getsource(streams.app)


async def _commit_that_fails(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: Any) -> bool:
        return False

    async def flush() -> None:
        """Stand in for the producer, which needs a broker."""

    monkeypatch.setattr(consumer, "assignment", lambda: {SHOP})
    monkeypatch.setattr(consumer, "_commit", refuse)
    monkeypatch.setattr(consumer.app, "_producer", SimpleNamespace(flush=flush))
    consumer.ack(chunk_of(14))
    offsets = consumer._filter_committable_offsets({SHOP})
    assert offsets == {SHOP: 15}
    assert not await consumer._commit_offsets(offsets)


async def test_h_stock_takes_a_failed_commit_for_done(
    stock_consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock: after a commit that failed, the offset counts as committed, and what was acknowledged is forgotten."""
    await _commit_that_fails(stock_consumer, monkeypatch)
    assert stock_consumer._committed_offset[SHOP] == 15
    assert stock_consumer._new_offset(SHOP) is None


async def test_h_what_was_acknowledged_is_not_forgotten(
    consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, and yet the end of what was handled is kept: it goes out with the next chunk's; until then it lags."""
    await _commit_that_fails(consumer, monkeypatch)
    assert consumer._new_offset(SHOP) == 15
    consumer.ack(chunk_of(16))
    assert consumer._filter_committable_offsets({SHOP}) == {SHOP: 17}


async def test_i_stock_acknowledges_for_an_assignment_that_is_over(stock_consumer: Consumer) -> None:
    """Stock: the Python stream skips a message of an older generation by acknowledging it."""
    app = stock_consumer.app
    old, new = _event(app, generation=GENERATION - 1), _event(app)
    events = (await _stream(app, old, new))._py_aiter()
    await anext(events)
    assert old.message.acked
    assert stock_consumer._new_offset(SHOP) == 10
    await events.aclose()


async def test_i_another_generation_acknowledges_nothing(consumer: ChunkConsumer) -> None:
    """Whoever acknowledges it, a chunk of an assignment that is over moves no offset."""
    assert not consumer.ack(chunk_of(9, generation=GENERATION - 1))
    assert consumer._new_offset(SHOP) is None


async def test_j_stock_applies_a_stranger_to_the_table_before(stock_consumer: Consumer) -> None:
    """Stock: a changelog record of a partition it does not restore lands in the table that came before it."""
    recovery: Any = stock_consumer.app.tables.recovery
    applied: list[int] = []
    done = asyncio.Event()

    class Table:
        recovery_buffer_size = 1

        async def on_changelog_event(self, _: Any) -> None:
            """Do nothing, as a table does by default."""

        def apply_changelog_batch(self, events: list[Any]) -> None:
            applied.extend(event.message.tp.partition for event in events)
            if len(applied) == 3:
                done.set()

        def __hash__(self) -> int:
            return 1

    recovery.active_tps.add(CHANGELOG)
    recovery.tp_to_table[CHANGELOG] = Table()
    queue = recovery.tables.changelog_queue
    for offset, partition in enumerate((0, 7, 0)):
        queue.put_nowait(
            SimpleNamespace(message=SimpleNamespace(tp=CHANGELOG._replace(partition=partition), offset=offset))
        )
    task = asyncio.ensure_future(StockRecovery._slurp_changelogs.fun(recovery))
    await asyncio.wait_for(done.wait(), 60)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert applied == [0, 7, 0]


def test_j_there_are_no_tables(app: Any) -> None:
    """Nothing is restored by Faust: a store is opened for one partition and restored from that one alone."""
    assert not app.tables
    assert not app.tables.changelog_topics


def _two_writers() -> tuple[bytes, bytes, bytes]:
    """Return a user's key, the successor's record of two events, and a paused worker's of one of them alone."""
    user = UserId("user-1")
    events = [make_event(user_id=user) for _ in range(2)]
    rows = [(event.platform, row_of(event)) for event in events]
    return (
        user_key(user),
        UserState(BehaviorWindow(SPEC).fold(rows), Publication(2)).pack(),
        UserState(BehaviorWindow(SPEC).fold(rows[:1]), Publication(1)).pack(),
    )


def test_k_stock_keeps_the_last_writer(stock_consumer: Consumer) -> None:
    """Stock: a paused worker's older record, written after its successor's, is what recovery keeps."""
    key, newer, older = _two_writers()
    table = stock_consumer.app.Table("windows", partitions=1, key_type=bytes, value_type=bytes)
    table.apply_changelog_batch(
        [
            SimpleNamespace(key=key, value=value, message=SimpleNamespace(value=value, partition=0))
            for value in (newer, older)
        ]
    )
    assert table.data[key] == older


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["zombie last", "zombie first"])
def test_k_recovery_merges(tmp_path: Path, order: tuple[int, int]) -> None:
    """Whoever wrote last, the recovered window is the union of both."""
    key, *values = _two_writers()
    store = PartitionStore(tmp_path / "partition", SPEC, cached_users=10)
    for nth, which in enumerate(order):
        store.restore([(key, values[which])], position=nth + 1)
    assert store.user(UserId("user-1")) == UserState.unpack(SPEC, values[0])
    store.close()


async def test_l_stock_waits_for_a_record_that_is_gone(
    stock_consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock: the end of a changelog is the broker's number less one; if that record is gone, recovery never ends."""

    async def highwaters(*_: TP) -> dict[TP, int]:
        return {CHANGELOG: 10}

    monkeypatch.setattr(stock_consumer, "highwaters", highwaters)
    recovery: Any = stock_consumer.app.tables.recovery
    await recovery._build_highwaters(stock_consumer, {CHANGELOG}, recovery.active_highwaters, "active")
    recovery.active_offsets[CHANGELOG] = 8  # the last record that is left; 9 was a transaction's mark
    assert recovery.need_recovery()


@pytest.mark.parametrize(("last", "complete"), [(9, True), (8, False)], ids=["barrier there", "barrier missing"])
def test_l_recovery_ends_at_its_own_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, *, complete: bool
) -> None:
    """The end is a barrier of its own that must be read: then nothing before it is missing; else nothing runs."""
    key, value, _ = _two_writers()

    def read(*_: Any, **__: Any) -> Iterator[list[Any]]:
        held = {3: (key, value), last: (BARRIER_KEY, None)}  # compaction removed the others
        yield [
            SimpleNamespace(offset=lambda at=at: at, key=lambda one=one: one[0], value=lambda one=one: one[1])
            for at, one in held.items()
        ]

    monkeypatch.setattr(recovery_module, "read_span", read)
    settings = Settings()
    store = PartitionStore(tmp_path / "partition", SPEC, cached_users=10)
    recovery = Recovery(settings, Outbox(settings), Metrics())
    span = Span("changelog", 0, 0, 10)
    if complete:
        recovery._bring_up(store, span, threading.Event())
        assert (store.changelog_position(), len(store.user(UserId("user-1")).window)) == (10, 2)
    else:
        with pytest.raises(DeliveryError, match="before its barrier 9"):
            recovery._bring_up(store, span, threading.Event())
    store.close()


async def _seek_of_a_fresh_group(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[TP, int]]:
    """Let a group with nothing committed seek, its log beginning at 3. Returns where it sought."""
    sought = []

    async def committed() -> dict[TP, Any]:
        return {SHOP: None}

    async def earliest(*partitions: TP) -> dict[TP, int]:
        return dict.fromkeys(partitions, 3)

    async def seek(tp: TP, offset: int) -> None:
        sought.append((tp, offset))

    monkeypatch.setattr(consumer._thread, "seek_to_committed", committed)
    monkeypatch.setattr(consumer._thread, "earliest_offsets", earliest)
    monkeypatch.setattr(consumer, "_seek", seek)
    await consumer.perform_seek()
    return sought


async def test_m_stock_leaves_a_fresh_group_where_it_is(
    stock_consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock: where nothing is committed nothing is sought, so a rebalance skips what was fetched and not handled."""
    assert await _seek_of_a_fresh_group(stock_consumer, monkeypatch) == []
    assert stock_consumer._read_offset[SHOP] is None


async def test_m_a_fresh_group_seeks_the_start_of_its_log(
    consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is committed the first record there is comes next, and a gap before it would be seen."""
    assert await _seek_of_a_fresh_group(consumer, monkeypatch) == [(SHOP, 3)]
    assert consumer._read_offset[SHOP] == 3
