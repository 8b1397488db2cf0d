"""Record batches as fetched: read also where a header's name is not UTF-8, and handed on whole to whoever asks for it.

aiokafka hands out record by record, through three generators, as objects that the garbage collector follows; that is
half of what reading costs. A consumer whose `value_deserializer` is `whole_batches` gets lists of `Record` instead, a
batch each. Which batches count (transactions, control batches, checksums) stays aiokafka's own business.

Kafka's format says that a header's name is a string, no broker checks it, and any client in C can write other bytes.
aiokafka then raises out of every fetch of that batch, so that one such record would stop its partition for ever.
Nothing here looks at the headers of a platform's records: a batch of which aiokafka cannot read one is read by the
page below instead, without headers.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiokafka import TopicPartition

_LENGTH_AT: Final = 8
_LENGTH_END: Final = 12


class Record(msgspec.Struct, gc=False):
    """A record as fetched. `timestamp`: Kafka's time in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def whole_batches(batch: Any) -> Any:
    """Mark the consumer that it is given to as one that takes batches whole."""
    return batch


def read_batches_here() -> None:
    """Let aiokafka's consumers in this process read what they fetch by this page."""
    fetcher.MemoryRecords = FetchedBatches
    fetcher.PartitionRecords = opened


def opened(  # noqa: PLR0913, PLR0917 - aiokafka calls it so
    tp: TopicPartition,
    records: FetchedBatches,
    aborted_transactions: Any,
    fetch_offset: int,
    key_deserializer: Any,
    value_deserializer: Any,
    check_crcs: bool,
    isolation_level: int,
) -> PartitionRecords:
    """Return the iterator over the records, or the whole batches, of one fetched partition."""
    kind = WholeBatches if value_deserializer is whole_batches else PartitionRecords
    records.whole = kind is WholeBatches
    return kind(tp, records, aborted_transactions, fetch_offset, key_deserializer, None, check_crcs, isolation_level)


class WholeBatches(PartitionRecords):
    """aiokafka's iterator over the records of one fetched partition, where each of them is a `Batch`."""

    def _consumer_record(self, tp: TopicPartition, record: Batch) -> list[Record]:
        return record.records(tp, start=self.next_fetch_offset)


class FetchedBatches:
    """The batches of one fetched partition; the part of aiokafka's `MemoryRecords` that its fetcher uses."""

    whole = False
    """Whether a batch gives itself for its only record."""

    def __init__(self, fetched: bytes) -> None:
        self._fetched = memoryview(fetched)
        self._at = 0
        self._batches = MemoryRecords(fetched)

    def size_in_bytes(self) -> int:
        """Return how much was fetched."""
        return len(self._fetched)

    def has_next(self) -> bool:
        """Tell whether a whole batch is left."""
        return bool(self._batches.has_next())

    def next_batch(self) -> Any:
        """Return the next batch."""
        batch = self._batches.next_batch()
        (length,) = struct.unpack_from(">i", self._fetched, self._at + _LENGTH_AT)
        raw = self._fetched[self._at : self._at + _LENGTH_END + length]
        self._at += len(raw)
        return batch if batch.is_control_batch else Batch(batch, raw, whole=self.whole)


class Batch:
    """One of aiokafka's batches, whose records are read again without headers where that is what fails.

    Taken `whole` it is its own and only record, with the offset of the last one in it.
    """

    def __init__(self, batch: Any, raw: memoryview, *, whole: bool) -> None:
        self._batch = batch
        self._raw = raw
        self._whole = whole
        self.offset: int = batch.next_offset - 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        return iter([self] if self._whole else self._read())

    def _read(self) -> list[Any]:
        try:
            return list(self._batch)
        except UnicodeDecodeError:
            return list(_HeaderlessBatch(self._raw))

    def records(self, tp: TopicPartition, *, start: int) -> list[Record]:
        """Return the records from offset `start` on."""
        topic, partition = tp
        found = [
            Record(topic, partition, one.offset, one.timestamp, one.key, one.value, one.headers) for one in self._read()
        ]
        return found if self.base_offset >= start else [one for one in found if one.offset >= start]


class _HeaderlessBatch(_DefaultRecordBatchPy):
    """aiokafka's batch in Python, with records whose headers are passed over."""

    def _read_msg(self, *_: Any) -> Any:
        buffer = self._buffer
        length, start = decode_varint(buffer, self._pos)  # type: ignore[has-type]
        _attributes, at = decode_varint(buffer, start)
        since_first_ms, at = decode_varint(buffer, at)
        since_base, at = decode_varint(buffer, at)
        key, at = _bytes_at(buffer, at)
        value, _headers_at = _bytes_at(buffer, at)
        self._pos = start + length
        appended = self.timestamp_type == self.LOG_APPEND_TIME
        timestamp = self.max_timestamp if appended else self.first_timestamp + since_first_ms
        return _DefaultRecordPy(self.base_offset + since_base, timestamp, self.timestamp_type, key, value, [])


def _bytes_at(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(buffer, at)
    return (None, at) if length < 0 else (bytes(buffer[at : at + length]), at + length)
