"""Faust's consumer, opened for bulk: one Faust event carries a chunk of records of one partition.

Stock Faust hands records to an agent one by one, for about 70 µs of event-loop work each. Here the agent gets what the
fetcher has, as a list. Offsets are acknowledged by the chunk and in order, so committing needs no gap search: the next
offset to commit is the end of the last chunk acknowledged.

What is overridden here is semi-private in faust-streaming 0.15.3; `tests/streams/test_faust_contract.py` fails when the
installed source of those methods differs from the one this was written against.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import faust
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import IllegalStateError
from faust.assignor.partition_assignor import PartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from streams.batches import read_batches_here, whole_batches
from xplat_stream.errors import OffsetGap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from aiokafka.cluster import ClusterMetadata
    from faust.types import AppT

    from streams.batches import Record

log = logging.getLogger("xplat.worker")

_POLL_S = 0.2
"""How long a fetch waits for records; a rebalance waits for the fetch under way."""


class Chunk(ConsumerMessage):
    """A run of records of one partition, in offset order. `value` is the list; `offset` is the last one's."""

    value: list[Record]
    start: int
    """The offset up to which everything before this chunk is done once the chunks before it are."""
    behind: int
    """How many records the log held behind this chunk when it was fetched."""


class ChunkSchema(faust.Schema):
    """Passes a chunk's records on untouched: decoding is the pipeline's business, so no error of it skips a record."""

    def loads_key(self, app: AppT, message: Any, **_: Any) -> None:
        """Return nothing: a chunk has many keys."""

    def loads_value(self, app: AppT, message: Any, **_: Any) -> Any:  # noqa: ARG002 - Faust's signature
        """Return the records."""
        return message.value


_FETCH_WAIT_MS = 50
"""How long the broker may hold a fetch that finds nothing. aiokafka has one under way at a time: one that asks for idle
partitions only, because the others' records are not taken yet, keeps these waiting for as long. Faust says 1,500."""


class ChunkConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread of Faust's aiokafka consumer, which fetches record batches whole."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # No argument of Faust's reaches these.
        consumer._value_deserializer = whole_batches  # noqa: SLF001
        consumer._fetch_max_wait_ms = _FETCH_WAIT_MS  # noqa: SLF001
        return consumer


class ChunkConsumer(driver.Consumer):
    """Fetches in bulk, acknowledges in order, and never commits what another generation processed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        read_batches_here()
        super().__init__(*args, **kwargs)
        self._processed: dict[TP, int] = {}
        self._gaps: dict[TP, tuple[int, int]] = {}
        self._ahead: dict[TP, tuple[int, int]] = {}
        self._held_back: set[int] = set()
        self._fetched_for = 0
        self._delivering = False

    def _new_consumer_thread(self) -> ChunkConsumerThread:
        return ChunkConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109 - its signature
        # `wait_for_stopped_flow` waits for this event, which Faust sets after a fetch and never clears. Unless it
        # waits, a fetch under way returns after the seek of a rebalance, is dropped, and leaves the position past it.
        self.not_waiting_next_records.clear()
        # Here and not before the wait for the flow, which a rebalance ends: what is fetched after it is of after it.
        self._fetched_for = self.app.consumer_generation_id
        return await super()._getmany(active_partitions, timeout)

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self.should_stop or fetcher.should_stop):
                records, active = await self._wait_next_records(_POLL_S)
                await asyncio.sleep(0)
                generation = self._fetched_for
                self._delivering = True
                for tp, fetched in self._pieces(records or {}):
                    if not self.flow_active or generation != self.app.consumer_generation_id:
                        break  # fetched for an assignment that is over; the seek after the rebalance reads it again
                    if active is None or tp in active:
                        await self._deliver(tp, fetched, generation)
                self._delivering = False
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise

    def _pieces(self, records: dict[TP, list[list[Record]]]) -> Iterator[tuple[TP, list[Record]]]:
        """Yield what was fetched, batch by batch, in pieces no larger than a chunk, and let go of it meanwhile."""
        while records:
            tp, batches = records.popitem()
            fetched = list(chain.from_iterable(batches))
            most = self.app.conf.broker_max_poll_records or len(fetched) or 1
            for at in range(0, len(fetched), most):
                yield tp, fetched[at : at + most]

    async def _deliver(self, tp: TP, fetched: list[Record], generation: int) -> None:
        expected = self._read_offset[tp]
        if expected is not None and fetched[0].offset < expected:
            fetched = [record for record in fetched if record.offset >= expected]
            if not fetched:
                return
        first = fetched[0].offset
        if expected is not None and first > expected and not await self._is_hole(tp, expected, first):
            return
        last = fetched[-1]
        chunk = Chunk(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            None,
            None,
            None,
            fetched,
            None,
            0,
            0,
            tp,
            generation_id=generation,
        )
        chunk.start = first if expected is None else expected
        chunk.behind = self._held_behind(tp, last.offset + 1)
        # Noted before the wait: a seek that happens meanwhile has the last word. And the wait ends with the flow,
        # because a rebalance empties the agent's queue without waking whoever waits for room in it.
        self._read_offset[tp] = last.offset + 1
        await self.wait_first(self.callback(chunk), self.suspend_flow.wait())

    def _held_behind(self, tp: TP, end: int) -> int:
        try:
            return max(0, (self.highwater(tp) or 0) - end)
        except AssertionError:  # taken away meanwhile
            return 0

    async def _is_hole(self, tp: TP, expected: int, found: int) -> bool:
        """Tell whether the log itself lacks these offsets (transactions, retention), by reading again once."""
        if self._gaps.pop(tp, None) == (expected, found):
            return True
        log.warning("%s[%d] continues at %d, not at %d: reading again", tp.topic, tp.partition, found, expected)
        self._gaps[tp] = (expected, found)
        try:
            await self.seek(tp, expected)
        except IllegalStateError:  # taken away meanwhile
            return False
        self._read_offset[tp] = expected
        return False

    def hold_back(self, partitions: Iterable[int]) -> None:
        """Fetch nothing of the partitions with these numbers, whatever is resumed, until `let_flow`."""
        self._held_back = set(partitions)
        self.pause_partitions({tp for tp in self.assignment() if tp.partition in self._held_back})

    def let_flow(self, partition: int) -> None:
        """Fetch what has this number from now on: its state is there."""
        self._held_back.discard(partition)
        self.resume_partitions({tp for tp in self.assignment() if tp.partition == partition})

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Resume fetching, but for what is held back: Faust resumes everything when the first state is there."""
        super().resume_partitions({tp for tp in tps if tp.partition not in self._held_back})

    def on_buffer_full(self, tp: TP) -> None:
        """Go on fetching: whoever delivers waits for room, and what comes meanwhile makes the next chunks larger."""

    async def read_skipped(self) -> dict[TP, int | None]:
        """Read again where the client stands past what was delivered, twice in a row, with nothing on its way.

        Returns where it stands.

        A gap shows when records follow it; this finds one at the end of the log. What a second reading does not bring
        is not there: control records of transactions. Call it now and then.
        """
        positions = {tp: await self.position(tp) for tp in self.assignment()}
        for tp, stands in positions.items() if not self._delivering else ():
            expected = self._read_offset[tp]
            if expected is None or stands is None or stands <= expected:
                self._ahead.pop(tp, None)
            elif self._ahead.get(tp) != (expected, stands):
                self._ahead[tp] = (expected, stands)
            elif self._gaps.get(tp) != (expected, stands):
                await self._is_hole(tp, expected, stands)
        return positions

    def ack(self, message: Any) -> bool:
        """Note that everything up to the end of this chunk is done, unless its assignment is over.

        Raises `OffsetGap` when the chunk does not begin where the last one ended: committing it would skip records.
        """
        if message.acked or message.generation_id != self.app.consumer_generation_id:
            return False
        done = self._processed.get(message.tp)
        if done is not None and message.start > done:
            where = f"{message.tp.topic}[{message.tp.partition}]"
            gap = f"{where} was handled from {message.start} on, but only up to {done}"
            raise OffsetGap(gap)
        message.acked = True
        self._unacked_messages.discard(message)
        self._processed[message.tp] = message.offset + 1
        return True

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in list(self._processed) if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        return self._processed.get(tp)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Forget the positions of partitions that may now belong to someone else."""
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._processed.pop(tp, None)
            self._gaps.pop(tp, None)
            self._ahead.pop(tp, None)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every partition explicitly; where nothing is committed, to the start of its log.

        aiokafka leaves a partition without a commit wherever its position happens to be, which after a rebalance of a
        new group is past records that nobody acknowledged.
        """
        committed = {TP(tp.topic, tp.partition): offset for tp, offset in (await super().seek_to_committed()).items()}
        fresh = [tp for tp, offset in committed.items() if not offset]
        if fresh:
            starts = {TP(tp.topic, tp.partition): start for tp, start in (await self.earliest_offsets(*fresh)).items()}
            for tp in fresh:
                await self.seek(tp, starts[tp])
                committed[tp] = starts[tp]
        self._processed.update({tp: offset for tp, offset in committed.items() if offset is not None})
        return committed


class ChunkTransport(driver.Transport):
    """Faust's aiokafka transport with the bulk consumer."""

    Consumer = ChunkConsumer


class OwnerAssignor(PartitionAssignor):
    """Gives partition p of *every* topic to one worker, whichever topics each worker reads already.

    A user's events of all platforms must meet in one process. Faust's own assignor keeps that only among topics with
    the same set of subscribers, which breaks while a new platform's topic becomes known to one worker after another.
    A topic a worker does not read yet waits, unassigned, until its owner does. Workers keep what they own where the
    balance allows, because state moves with a partition.
    """

    name = "xplat-owner"

    def metadata(self, topics: set[str]) -> ConsumerProtocolMemberMetadata:
        """Tell the group what this worker reads and which partitions it owns now."""
        owned = sorted({tp.partition for tp in getattr(self.app, "_assignment", None) or ()})
        return ConsumerProtocolMemberMetadata(self.version, sorted(topics), ",".join(map(str, owned)).encode())

    def on_assignment(self, assignment: ConsumerProtocolMemberMetadata) -> None:
        """Nothing to remember: the consumer knows its assignment."""

    def assign(
        self, cluster: ClusterMetadata, member_metadata: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Assign every partition of every subscribed topic to the owner of its number."""
        topics = {
            member: {topic: cluster.partitions_for_topic(topic) or set() for topic in metadata.subscription}
            for member, metadata in member_metadata.items()
        }
        numbers = {number for read in topics.values() for partitions in read.values() for number in partitions}
        owned = {
            member: [int(number) for number in metadata.user_data.decode().split(",") if number]
            for member, metadata in member_metadata.items()
        }
        owners = owners_of(sorted(numbers), owned)
        return {
            member: ConsumerProtocolMemberAssignment(
                self.version,
                [
                    (topic, mine)
                    for topic, partitions in sorted(read.items())
                    if (mine := sorted(number for number in partitions if owners[number] == member))
                ],
                b"",
            )
            for member, read in topics.items()
        }


def owners_of(numbers: list[int], owned: Mapping[str, Iterable[int]]) -> dict[int, str]:
    """Return partition number → member: shares that differ by at most one, moving as few partitions as that allows."""
    members = sorted(owned)
    share, extra = divmod(len(numbers), len(members))
    room = dict.fromkeys(members, share)
    owners: dict[int, str] = {}
    for member in sorted(members, key=lambda member: -len(list(owned[member]))):
        if extra and len(list(owned[member])) > share:
            room[member] += 1
            extra -= 1
    for member in members:
        if extra and room[member] == share:
            room[member] += 1
            extra -= 1
    for member in members:
        for number in sorted(owned[member]):
            if number in numbers and number not in owners and room[member]:
                owners[number] = member
                room[member] -= 1
    free = [member for member in members for _ in range(room[member])]
    owners.update(zip([number for number in numbers if number not in owners], free, strict=True))
    return owners


def transport_for(app: Any) -> Any:
    """Return the bulk transport for an app's broker."""
    return ChunkTransport(url=cast("Any", app.conf.broker_consumer), app=app)
