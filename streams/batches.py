"""Record batches as fetched, read also where a header's name is not UTF-8.

Kafka's format says that a header's name is a string, no broker checks it, and any client in C can write other bytes.
aiokafka then raises out of every fetch of that batch, so that one such record would stop its partition for ever.
Nothing here looks at the headers of a platform's records: a batch of which aiokafka cannot read one is read by the
page below instead, without headers. All others pass at aiokafka's own speed.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENGTH_AT: Final = 8
_LENGTH_END: Final = 12


def forgive_header_names() -> None:
    """Let aiokafka's consumers in this process read what they fetch through `ForgivingRecords`."""
    fetcher.MemoryRecords = ForgivingRecords


class ForgivingRecords:
    """The batches of one fetched partition; the part of aiokafka's `MemoryRecords` that its fetcher uses."""

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
        return batch if batch.is_control_batch else _ForgivingBatch(batch, raw)


class _ForgivingBatch:
    """One of aiokafka's batches, whose records are read again without headers where that is what fails."""

    def __init__(self, batch: Any, raw: memoryview) -> None:
        self._batch = batch
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        passed = 0
        try:
            for record in self._batch:
                yield record
                passed += 1
        except UnicodeDecodeError:
            yield from islice(_HeaderlessBatch(self._raw), passed, None)


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
