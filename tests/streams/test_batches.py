"""What is fetched is read whatever the names of headers are, and otherwise exactly as aiokafka reads it."""

from __future__ import annotations

import inspect
from itertools import chain
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from hypothesis import given
from hypothesis import strategies as st

from streams.batches import FetchedBatches, Record, opened, read_batches_here, whole_batches
from tests.streams.spoiled_batch import HEADER_NAME, spoiled

if TYPE_CHECKING:
    from streams.consumer import ChunkConsumer

Headers = list[tuple[str, bytes | None]]
Written = tuple[bytes | None, bytes | None, Headers]
GZIP = 1
TP = TopicPartition("behavior.shop.v1", 3)


def built(records: list[Written], *, codec: int = 0) -> bytes:
    """Return a batch."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    for offset, (key, value, headers) in enumerate(records):
        builder.append(offset, 1000 + offset, key, value, headers)
    return bytes(builder.build())


def joined(batches: list[bytes]) -> bytes:
    """Return a fetch of these batches, one behind the other in the log."""
    fetched, base = b"", 0
    for batch in batches:
        fetched += base.to_bytes(8, "big") + batch[8:]
        base += MemoryRecords(batch).next_batch().next_offset
    return fetched


def read(fetched: bytes) -> list[Record]:
    """Return what aiokafka reads of a fetch, as this project's records."""
    records, found = MemoryRecords(fetched), []
    while records.has_next():
        found += [
            Record(*TP, one.offset, one.timestamp, one.key, one.value, one.headers) for one in records.next_batch()
        ]
    return found


def handed_out(fetched: bytes, *, start: int = 0) -> list[list[Record]]:
    """Return what aiokafka's fetcher hands out of a fetch from offset `start` on, checksums looked at."""
    return list(opened(TP, FetchedBatches(fetched), [], start, None, whole_batches, True, fetcher.READ_UNCOMMITTED))


def one_by_one(fetched: bytes) -> list[Record]:
    """Return the same for a consumer that takes records."""
    found = opened(TP, FetchedBatches(fetched), [], 0, None, None, True, fetcher.READ_UNCOMMITTED)
    return [Record(*TP, one.offset, one.timestamp, one.key, one.value, list(one.headers)) for one in found]


RECORDS = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=4),
        st.none() | st.binary(max_size=200),
        st.lists(st.tuples(st.text(max_size=4), st.none() | st.binary(max_size=4)), max_size=3),
    ),
    min_size=1,
    max_size=5,
)


@given(batches=st.lists(RECORDS, max_size=3), codec=st.sampled_from([0, GZIP]), cut=st.integers(0, 3))
def test_good_batches_are_read_as_aiokafka_reads_them(batches: list[list[Written]], codec: int, cut: int) -> None:
    """A batch at a time, several in one fetch, compressed or not, the last one fetched in part."""
    fetched = joined([built(records, codec=codec) for records in batches])
    fetched = fetched[: len(fetched) - cut]
    found = handed_out(fetched)
    assert list(chain.from_iterable(found)) == read(fetched)
    assert [len(one) for one in found] == [len(records) for records in batches][: len(found)]
    assert one_by_one(fetched) == read(fetched)
    assert FetchedBatches(fetched).size_in_bytes() == len(fetched)


@given(first=RECORDS, second=RECORDS, data=st.data())
def test_a_fetch_begins_where_it_was_asked_to(first: list[Written], second: list[Written], data: st.DataObject) -> None:
    """A broker answers with the whole batch that an offset lies in: what comes before it is not handed out."""
    fetched = joined([built(first), built(second)])
    start = data.draw(st.integers(0, len(first) - 1))
    found = [one.offset for one in chain.from_iterable(handed_out(fetched, start=start))]
    assert found == list(range(start, len(first) + len(second)))


@given(records=RECORDS, where=st.integers(0, 5))
def test_a_batch_with_a_spoiled_header_name_loses_nothing_else(records: list[Written], where: int) -> None:
    """Every record comes once, in order, with key, value, time and offset; the fetch after it goes on as usual."""
    headers: Headers = [(HEADER_NAME, b"x"), ("other", None)]
    records.insert(min(where, len(records)), (b"k", b"v", headers))
    good = built(records)
    with pytest.raises(UnicodeDecodeError):
        read(spoiled(good))
    bare, whole = handed_out(joined([spoiled(good), good]))
    assert bare == [msgspec.structs.replace(one, headers=[]) for one in read(good)]
    assert [one.headers for one in whole] == [headers for _, _, headers in records]
    assert one_by_one(joined([spoiled(good), good])) == bare + whole


def test_a_damaged_batch_is_not_handed_out() -> None:
    """Its checksum is looked at before anything is read of it."""
    damaged = bytearray(built([(b"k", b"value", [])]))
    damaged[-3] ^= 1
    with pytest.raises(CorruptRecordException):
        handed_out(bytes(damaged))


async def test_consumers_are_given_it(consumer: ChunkConsumer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aiokafka's fetcher reads through these names, and the worker's consumer takes batches whole; no other does."""
    source = inspect.getsource(fetcher.Fetcher._proc_fetch_request)
    assert "MemoryRecords(" in source
    assert "PartitionRecords(" in source
    monkeypatch.setattr(fetcher, "MemoryRecords", MemoryRecords)
    monkeypatch.setattr(fetcher, "PartitionRecords", PartitionRecords)
    read_batches_here()
    assert fetcher.MemoryRecords is FetchedBatches
    assert fetcher.PartitionRecords is opened
    made = SimpleNamespace()
    monkeypatch.setattr(AIOKafkaConsumerThread, "_create_worker_consumer", lambda *_: made)
    assert consumer._thread._create_worker_consumer(consumer.transport) is made
    assert made._value_deserializer is whole_batches
    assert made._fetch_max_wait_ms == 50
    assert "fetch_max_wait_ms=self._fetch_max_wait_ms" in inspect.getsource(AIOKafkaConsumer.start)
    assert "value_deserializer=self._value_deserializer" in inspect.getsource(AIOKafkaConsumer.start)
