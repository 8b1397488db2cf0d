"""The bulk consumer: who owns which partition, what is acknowledged, and where reading goes on after a rebalance."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.consumer import Chunk, ChunkConsumer, OwnerAssignor, owners_of
from tests.streams.conftest import GENERATION, SHOP, chunk_of, raw_records
from xplat_stream.errors import OffsetGap

if TYPE_CHECKING:
    from collections.abc import Mapping

MEMBERS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=6, unique=True)
NUMBERS = st.integers(0, 24).map(lambda count: list(range(count)))


@st.composite
def memberships(draw: st.DrawFn) -> tuple[list[int], dict[str, list[int]]]:
    """Draw partitions and what each member says it owns: anything, also what another one claims or what is gone."""
    numbers = draw(NUMBERS)
    return numbers, {member: draw(st.lists(st.integers(0, 30), max_size=12)) for member in draw(MEMBERS)}


@given(memberships())
def test_every_partition_has_one_owner_and_shares_are_even(drawn: tuple[list[int], dict[str, list[int]]]) -> None:
    """All partitions are owned, by members, and two shares differ by one at the most, whatever was claimed."""
    numbers, owned = drawn
    owners = owners_of(numbers, owned)
    assert sorted(owners) == numbers
    shares = [list(owners.values()).count(member) for member in owned]
    assert sum(shares) == len(numbers)
    assert max(shares) - min(shares) <= 1


@given(memberships())
def test_nothing_moves_while_the_membership_stays(drawn: tuple[list[int], dict[str, list[int]]]) -> None:
    """Members who say what they own, and own it evenly, keep it: a rebalance for its own sake moves no state."""
    numbers, owned = drawn
    owners = owners_of(numbers, owned)
    kept = {member: [number for number, owner in owners.items() if owner == member] for member in owned}
    assert owners_of(numbers, kept) == owners


@given(memberships(), st.sampled_from("xyz"))
def test_a_newcomer_moves_no_more_than_its_share(drawn: tuple[list[int], dict[str, list[int]]], name: str) -> None:
    """When a member joins, partitions move to it alone; when it leaves, the others keep theirs."""
    numbers, owned = drawn
    before = owners_of(numbers, owned)
    kept: dict[str, list[int]] = {
        member: [number for number, owner in before.items() if owner == member] for member in owned
    }
    after = owners_of(numbers, {**kept, name: []})
    assert all(after[number] in {before[number], name} for number in numbers)
    gone = {member: [number for number, owner in after.items() if owner == member] for member in owned}
    left = owners_of(numbers, gone)
    assert all(left[number] == after[number] for number in numbers if after[number] != name)


class _Cluster:
    def __init__(self, topics: Mapping[str, int]) -> None:
        self._topics = topics

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return set(range(self._topics[topic])) if topic in self._topics else None


def _metadata(topics: list[str], owned: str = "") -> ConsumerProtocolMemberMetadata:
    return ConsumerProtocolMemberMetadata(2, topics, owned.encode())


def test_partition_p_of_every_topic_goes_to_one_worker() -> None:
    """Also where one worker does not read a new topic yet: its partitions of that topic wait, unassigned."""
    assignor = OwnerAssignor(SimpleNamespace(_assignment=None, tables=None))
    cluster = _Cluster({"shop": 4, "video": 4, "podcast": 4})
    given_out = assignor.assign(
        cluster, {"a": _metadata(["shop", "video", "podcast"], "0,1"), "b": _metadata(["shop", "video"], "2,3")}
    )
    assert {member: dict(one.assignment) for member, one in given_out.items()} == {
        "a": {"shop": [0, 1], "video": [0, 1], "podcast": [0, 1]},
        "b": {"shop": [2, 3], "video": [2, 3]},
    }


def test_a_worker_tells_which_partitions_it_owns() -> None:
    """Once each, whatever number of topics it reads."""
    owned = {TP("shop", 2), TP("video", 2), TP("shop", 0)}
    metadata = OwnerAssignor(SimpleNamespace(_assignment=owned, tables=None)).metadata({"shop", "video"})
    assert metadata.user_data == b"0,2"
    assert metadata.subscription == ["shop", "video"]


async def test_the_offset_to_commit_is_the_end_of_the_last_acknowledged_chunk(consumer: ChunkConsumer) -> None:
    """The last record's offset plus one; nothing where nothing was acknowledged."""
    assert list(consumer._filter_tps_with_pending_acks()) == []
    assert consumer._new_offset(SHOP) is None
    assert consumer.ack(chunk_of(9))
    assert consumer.ack(chunk_of(14, start=10))
    assert list(consumer._filter_tps_with_pending_acks()) == [SHOP]
    assert list(consumer._filter_tps_with_pending_acks({"behavior.video.v1"})) == []
    assert consumer._filter_committable_offsets({SHOP}) == {SHOP: 15}
    consumer._committed_offset[SHOP] = 15
    assert consumer._filter_committable_offsets({SHOP}) == {}


async def test_a_chunk_that_skips_records_is_never_committed(consumer: ChunkConsumer) -> None:
    """Acknowledging it raises, which stops the worker, and the offset to commit stays where it was."""
    assert consumer.ack(chunk_of(9))
    with pytest.raises(OffsetGap, match=r"behavior\.shop\.v1\[0\] was handled from 12 on, but only up to 10"):
        consumer.ack(chunk_of(14, start=12))
    assert consumer._new_offset(SHOP) == 10


async def test_an_acknowledgement_of_another_generation_is_ignored(consumer: ChunkConsumer) -> None:
    """What was read under an assignment that is over commits nothing; nor does a chunk acknowledged twice."""
    assert not consumer.ack(chunk_of(9, generation=GENERATION - 1))
    assert consumer._new_offset(SHOP) is None
    chunk = chunk_of(9)
    assert consumer.ack(chunk)
    assert not consumer.ack(chunk)


async def test_a_revoked_partition_is_forgotten(consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its acknowledged end is not committed by whoever no longer owns it."""

    async def nothing(*_: Any, **__: Any) -> None:
        """Stand in for the app's own callback, which needs a broker."""

    monkeypatch.setattr(consumer, "_on_partitions_revoked", nothing)
    consumer.ack(chunk_of(9))
    await consumer.on_partitions_revoked({SHOP})
    assert list(consumer._filter_tps_with_pending_acks()) == []


class _Sink:
    """What the consumer hands chunks to."""

    def __init__(self, consumer: ChunkConsumer) -> None:
        self.offsets: list[list[int]] = []
        self.room = asyncio.Event()
        self.room.set()
        self.asked = asyncio.Event()
        consumer.callback = self

    async def __call__(self, chunk: Chunk) -> None:
        self.asked.set()
        await self.room.wait()
        self.offsets.append([record.offset for record in chunk.value])


async def test_records_read_already_are_not_delivered_again(consumer: ChunkConsumer) -> None:
    """A fetch that overlaps what was delivered is cut; one that lies before it is dropped."""
    sink = _Sink(consumer)
    for offsets in ([5, 6], [6, 7], [5, 6], [8]):
        await consumer._deliver(SHOP, raw_records(*offsets), GENERATION)
    assert sink.offsets == [[5, 6], [7], [8]]
    assert consumer._read_offset[SHOP] == 9


async def test_a_chunk_says_how_much_lies_behind_it(consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from the end of the log that the last fetch saw; nothing where the partition was taken away meanwhile."""
    chunks: list[Chunk] = []

    async def take(chunk: Chunk) -> None:
        chunks.append(chunk)

    def taken_away(_: TP) -> int:
        raise AssertionError

    consumer.callback = take
    for answer in (lambda _: 20, lambda _: 7, lambda _: None, taken_away):
        monkeypatch.setattr(consumer._thread, "highwater", answer)
        consumer._read_offset[SHOP] = None
        await consumer._deliver(SHOP, raw_records(5, 6, 7), GENERATION)
    assert [chunk.behind for chunk in chunks] == [12, 0, 0, 0]


async def test_a_seek_during_a_blocked_delivery_has_the_last_word(consumer: ChunkConsumer) -> None:
    """A chunk waits for room, a rebalance seeks back, the chunk is let go: the seek's position stands."""
    sink = _Sink(consumer)
    sink.room.clear()
    delivery = asyncio.create_task(consumer._deliver(SHOP, raw_records(5, 6, 7), GENERATION))
    await asyncio.sleep(0)
    consumer._read_offset[SHOP] = 2
    sink.room.set()
    await delivery
    assert consumer._read_offset[SHOP] == 2


async def test_a_blocked_delivery_ends_with_the_flow(consumer: ChunkConsumer) -> None:
    """Whoever waits for room when a rebalance empties the queues is let go: nobody else would wake it."""
    sink = _Sink(consumer)
    sink.room.clear()
    delivery = asyncio.create_task(consumer._deliver(SHOP, raw_records(5), GENERATION))
    await asyncio.sleep(0)
    consumer.stop_flow()
    await asyncio.wait_for(delivery, 60)
    assert sink.offsets == []


async def test_skipped_offsets_are_read_again_once(consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets that are missing are sought; if the log has none there (retention, transactions), reading goes on."""
    sink, sought = _Sink(consumer), list[int]()

    async def seek(_: TP, offset: int) -> None:
        sought.append(offset)

    monkeypatch.setattr(consumer, "_seek", seek)
    consumer._read_offset[SHOP] = 0
    await consumer._deliver(SHOP, raw_records(3, 4), GENERATION)
    assert (sought, sink.offsets) == ([0], [])
    await consumer._deliver(SHOP, raw_records(0, 1, 2, 3, 4), GENERATION)
    await consumer._deliver(SHOP, raw_records(9), GENERATION)
    await consumer._deliver(SHOP, raw_records(9), GENERATION)
    assert sought == [0, 5]
    assert sink.offsets == [[0, 1, 2, 3, 4], [9]]


async def test_stopping_the_flow_waits_for_the_fetch_under_way(
    consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch that returns after a rebalance's seek would leave the position past its records; so it is waited for."""
    answer: asyncio.Future[dict[TP, Any]] = asyncio.get_running_loop().create_future()

    async def getmany(*_: Any, **__: Any) -> dict[TP, Any]:
        return await answer

    monkeypatch.setattr(type(consumer).__mro__[1], "_getmany", getmany)
    consumer.resume_partitions({SHOP})
    fetch = asyncio.create_task(consumer._wait_next_records(1.0))
    await asyncio.sleep(0)
    consumer.stop_flow()
    waiting = asyncio.create_task(consumer.wait_for_stopped_flow())
    await asyncio.sleep(0)
    assert not waiting.done()
    answer.set_result({})
    await asyncio.wait_for(asyncio.gather(fetch, waiting), 60)


async def test_what_is_fetched_after_a_rebalance_is_delivered(
    consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop began to wait for the flow under the old assignment; what it fetches then is of the new one.

    Batches are joined, and cut into chunks of the size that is set.
    """
    consumer.app.conf.broker_max_poll_records = 3
    sink = _Sink(consumer)
    fetches: list[dict[TP, Any]] = [{SHOP: [raw_records(5), raw_records(6, 7, 8)]}]
    delivered = asyncio.Event()

    async def getmany(*_: Any, **__: Any) -> dict[TP, Any]:
        if fetches:
            return fetches.pop()
        delivered.set()
        await asyncio.Event().wait()
        return {}

    monkeypatch.setattr(type(consumer).__mro__[1], "_getmany", getmany)
    consumer.resume_partitions({SHOP})
    consumer.stop_flow()
    draining = asyncio.create_task(consumer._drain_messages(SimpleNamespace(should_stop=False)))
    await asyncio.sleep(0)
    consumer.app.consumer_generation_id = GENERATION + 1
    consumer._read_offset[SHOP] = 5
    consumer.resume_flow()
    await asyncio.wait_for(delivered.wait(), 60)
    assert sink.offsets == [[5, 6, 7], [8]]
    draining.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await draining


async def test_records_skipped_at_the_end_of_the_log_are_read_again(
    consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later record shows the gap: a position that stays ahead of what was delivered does. Once, for markers stay."""
    _Sink(consumer)
    sought: list[int] = []
    position = 9

    async def seek(_: TP, offset: int) -> None:
        sought.append(offset)

    async def stands(_: TP) -> int:
        return position

    monkeypatch.setattr(consumer, "_seek", seek)
    monkeypatch.setattr(consumer, "position", stands)
    monkeypatch.setattr(consumer, "assignment", lambda: {SHOP})
    consumer._read_offset[SHOP] = 5
    await consumer.read_skipped()
    assert sought == []
    await consumer.read_skipped()
    assert sought == [5]
    await consumer._deliver(SHOP, raw_records(5, 6), GENERATION)
    for _ in range(4):
        await consumer.read_skipped()
    assert sought == [5, 7]
    position = 7
    await consumer.read_skipped()
    assert sought == [5, 7]


async def test_what_waits_to_be_delivered_is_not_read_again(
    consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delivered slowly, because there is no room, is not skipped: the position runs ahead for as long as that takes."""
    sink, sought = _Sink(consumer), list[int]()
    sink.room.clear()

    async def getmany(*_: Any, **__: Any) -> dict[TP, Any]:
        return {SHOP: [raw_records(5, 6)]}

    async def seek(_: TP, offset: int) -> None:
        sought.append(offset)

    async def stands(_: TP) -> int:
        return 9

    monkeypatch.setattr(type(consumer).__mro__[1], "_getmany", getmany)
    monkeypatch.setattr(consumer, "_seek", seek)
    monkeypatch.setattr(consumer, "position", stands)
    monkeypatch.setattr(consumer, "assignment", lambda: {SHOP})
    consumer.resume_partitions({SHOP})
    consumer.resume_flow()
    consumer._read_offset[SHOP] = 5
    draining = asyncio.create_task(consumer._drain_messages(SimpleNamespace(should_stop=False)))
    await asyncio.wait_for(sink.asked.wait(), 60)
    for _ in range(3):
        await consumer.read_skipped()
    assert sought == []
    draining.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await draining


async def test_a_full_queue_takes_no_partition_out_of_the_fetch(consumer: ChunkConsumer) -> None:
    """Whoever delivers waits for room; a partition that Faust takes out could come back after it was revoked."""
    consumer.resume_partitions({SHOP})
    consumer.on_buffer_full(SHOP)
    assert SHOP in consumer._get_active_partitions()


async def test_what_is_held_back_is_fetched_once_its_state_is_there(
    consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust resumes everything after a rebalance; a partition whose store is not restored yet stays out."""
    assigned = {TP(topic, number) for topic in ("behavior.shop.v1", "behavior.video.v1") for number in range(3)}
    monkeypatch.setattr(consumer, "assignment", lambda: assigned)
    consumer.resume_partitions(assigned)
    consumer.hold_back({0, 1, 2})
    assert consumer._get_active_partitions() == set()
    consumer.let_flow(1)
    consumer.resume_partitions(assigned)
    assert {tp.partition for tp in consumer._get_active_partitions()} == {1}
    consumer.let_flow(0)
    assert consumer._get_active_partitions() == {tp for tp in assigned if tp.partition < 2}
    consumer.hold_back({2})
    consumer.resume_partitions(assigned)
    assert {tp.partition for tp in consumer._get_active_partitions()} == {0, 1}
