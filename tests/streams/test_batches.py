"""What is fetched is read whatever the names of headers are, and otherwise exactly as aiokafka reads it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from streams.batches import ForgivingRecords, forgive_header_names
from tests.streams.spoiled_batch import HEADER_NAME, spoiled

Headers = list[tuple[str, bytes | None]]
Record = tuple[bytes | None, bytes | None, Headers]
GZIP = 1


def built(records: list[Record], *, codec: int = 0) -> bytes:
    """Return a batch."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    for offset, (key, value, headers) in enumerate(records):
        builder.append(offset, 1000 + offset, key, value, headers)
    return bytes(builder.build())


def read(records: Any) -> list[tuple[Any, ...]]:
    """Return what the fetcher would see of each record, batch by batch."""
    found = []
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        found += [
            (batch.next_offset, r.offset, r.timestamp, r.timestamp_type, r.key, r.value, list(r.headers)) for r in batch
        ]
    return found


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
def test_good_batches_are_read_as_aiokafka_reads_them(batches: list[list[Record]], codec: int, cut: int) -> None:
    """Several in one fetch, compressed or not, the last one fetched in part."""
    fetched = b"".join(built(records, codec=codec) for records in batches)
    fetched = fetched[: len(fetched) - cut]
    assert read(ForgivingRecords(fetched)) == read(MemoryRecords(fetched))
    assert ForgivingRecords(fetched).size_in_bytes() == len(fetched)


@given(records=RECORDS, where=st.integers(0, 5))
def test_a_batch_with_a_spoiled_header_name_loses_nothing_else(records: list[Record], where: int) -> None:
    """Every record comes once, in order, with key, value, time and offset; the fetch after it goes on as usual."""
    headers: Headers = [(HEADER_NAME, b"x"), ("other", None)]
    records.insert(min(where, len(records)), (b"k", b"v", headers))
    good = built(records)
    wanted = [one[:-1] for one in read(MemoryRecords(good))]
    with pytest.raises(UnicodeDecodeError):
        read(MemoryRecords(spoiled(good)))
    found = read(ForgivingRecords(spoiled(good) + good))
    assert [one[:-1] for one in found] == wanted * 2
    assert [one[-1] for one in found[len(wanted) :]] == [headers for _, _, headers in records]


def test_consumers_are_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aiokafka's fetcher makes its batches by this name; a version that does not fails here."""
    assert "MemoryRecords(" in inspect.getsource(fetcher.Fetcher._proc_fetch_request)
    monkeypatch.setattr(fetcher, "MemoryRecords", MemoryRecords)
    forgive_header_names()
    assert fetcher.MemoryRecords is ForgivingRecords
