"""Faust's consumer, opened for bulk: one Faust event carries a chunk of records of one partition.

Stock Faust hands records to an agent one by one, for about 70 µs of event-loop work each. Here the agent gets what the
fetcher has, as a list. Offsets are acknowledged by the chunk and in order, so committing needs no gap search: the next
offset to commit is the end of the last chunk acknowledged.

What is overridden here is semi-private in faust-streaming 0.15.3; `tests/streams/test_faust_contract.py` fails when the
installed source of those methods differs from the one this was written against.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import faust
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from faust.assignor.partition_assignor import PartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from aiokafka import ConsumerRecord
    from aiokafka.cluster import ClusterMetadata
    from faust.types import AppT

_POLL_S = 1.0


class Chunk(ConsumerMessage):
    """A run of records of one partition, in offset order. `value` is the list; `offset` is the last one's."""

    value: list[ConsumerRecord]


class ChunkSchema(faust.Schema):
    """Passes a chunk's records on untouched: decoding is the pipeline's business, so no error of it skips a record."""

    def loads_key(self, app: AppT, message: Any, **_: Any) -> None:  # noqa: ANN401, ARG002 - Faust's signature
        """Return nothing: a chunk has many keys."""

    def loads_value(self, app: AppT, message: Any, **_: Any) -> Any:  # noqa: ANN401, ARG002 - Faust's signature
        """Return the records."""
        return message.value


class ChunkConsumer(driver.Consumer):
    """Fetches in bulk, acknowledges in order, and never commits what another generation processed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Faust's signature
        super().__init__(*args, **kwargs)
        self._processed: dict[TP, int] = {}

    async def _drain_messages(self, fetcher: Any) -> None:  # noqa: ANN401 - Faust's signature
        try:
            while not (self.should_stop or fetcher.should_stop):
                generation = self.app.consumer_generation_id
                records, active = await self._wait_next_records(_POLL_S)
                await asyncio.sleep(0)
                for tp, fetched in (records or {}).items():
                    if not self.flow_active or generation != self.app.consumer_generation_id:
                        break  # fetched for an assignment that is over; the seek after the rebalance reads it again
                    if fetched and (active is None or tp in active or tp in self._buffered_partitions):
                        await self._deliver(tp, fetched, generation)
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise

    async def _deliver(self, tp: TP, fetched: list[ConsumerRecord], generation: int) -> None:
        expected = self._read_offset[tp]
        if expected is not None and fetched[0].offset < expected:
            fetched = [record for record in fetched if record.offset >= expected]
            if not fetched:
                return
        last = fetched[-1]
        chunk = Chunk(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000.0, last.timestamp_type, None, None, fetched,
            None, 0, 0, tp, generation_id=generation,
        )  # fmt: skip
        await self.callback(chunk)
        self._read_offset[tp] = last.offset + 1

    def ack(self, message: Any) -> bool:  # noqa: ANN401 - Faust's signature
        """Note that everything up to the end of this chunk is done, unless its assignment is over."""
        if message.acked or message.generation_id != self.app.consumer_generation_id:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        self._processed[message.tp] = message.offset + 1
        return True

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:  # noqa: ANN401 - Faust's signature
        return (tp for tp in list(self._processed) if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        return self._processed.get(tp)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Forget the positions of partitions that may now belong to someone else."""
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._processed.pop(tp, None)

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
    room = {member: share for member in members}
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
    for number, member in zip([number for number in numbers if number not in owners], free, strict=True):
        owners[number] = member
    return owners


def transport_for(app: Any) -> Any:  # noqa: ANN401 - faust.App, whose type is partly untyped
    """Return the bulk transport for an app's broker."""
    return ChunkTransport(url=cast("Any", app.conf.broker_consumer), app=app)
