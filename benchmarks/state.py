"""How large the state is: bytes a user in RocksDB and in the changelog, by the number of events in the window.

Windows of the workload's users go through the worker's own store and into batches of its own client. RocksDB is
compacted before it is measured, as it becomes by itself with time; a changelog likewise keeps one record a user. No
release is active, so there are no scores; a scored profile adds two bytes a label, and texts, which users share, are
kept once each.
"""

from __future__ import annotations

import random
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from rocksdict import Rdict

from benchmarks.events import Workload
from streams.store import PartitionStore
from xplat_stream.event import UserId
from xplat_stream.state import Publication, UserState
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.store import Record
    from xplat_stream.window import Row

SIZES: Final = (10, 50, 200)
_HEADLINE: Final = 50
_HORIZON: Final = timedelta(days=3650)
"""Long enough for the workload: no window loses an event by age."""

_BATCH_BYTES: Final = 512 * 1024
_FLUSH_EVERY: Final = 1000


class StateSize(msgspec.Struct, frozen=True):
    """Bytes a user at one size of window."""

    window: int
    """Events of each user."""
    rocksdb: float
    """Live files after compaction, keys, blooms and indexes included."""
    changelog: float
    """Uncompressed record batches as a worker sends them, one record a user."""


class StateResult(msgspec.Struct, frozen=True):
    """One run."""

    users: int
    bytes_per_user: float
    """RocksDB's, at 50 events in the window."""
    changelog_bytes_per_user: float
    sizes: tuple[StateSize, ...]

    def figures(self) -> dict[str, float | bool | None]:
        """Return the headline figures."""
        return {
            "bytes_per_user": self.bytes_per_user,
            "changelog_bytes_per_user": self.changelog_bytes_per_user,
        }


def bench_state(*, users: int, report: Callable[[str], None]) -> StateResult:
    """Measure all sizes in a temporary folder."""
    sizes = []
    for window in SIZES:
        with tempfile.TemporaryDirectory(prefix="xplat-bench-") as folder:
            size = _measure(Path(folder) / "state", users, window)
        report(f"{window} events: {size.rocksdb:,} bytes a user in RocksDB, {size.changelog:,} in the changelog")
        sizes.append(size)
    (headline,) = [size for size in sizes if size.window == _HEADLINE]
    return StateResult(users, headline.rocksdb, headline.changelog, tuple(sizes))


def _measure(path: Path, users: int, window: int) -> StateSize:
    spec = WindowSpec(window, _HORIZON)
    store = PartitionStore(path, spec, cached_users=_FLUSH_EVERY)
    changelog = 0
    try:
        for number, rows in enumerate(_rows(users, window), 1):
            user = UserId(f"user-{number:06d}")
            store.put_user(
                user, UserState(BehaviorWindow(spec, {"bench": b"".join(rows)}), Publication(revision=window))
            )
            if number % _FLUSH_EVERY == 0 or number == users:
                changelog += _batch_bytes(store.write())
    finally:
        store.close()
    return StateSize(window, round(_live_bytes(path) / users, 1), round(changelog / users, 1))


def _rows(users: int, window: int) -> Iterable[list[Row]]:
    """Yield the rows of each user: events of the workload, of one user every so often, as they interleave in life."""
    everything = [row_of(event) for event in Workload(users * window, users, 1).all_events()]
    order = list(range(users * window))
    random.Random(users).shuffle(order)
    for user in range(users):
        yield sorted(everything[number] for number in order[user * window : (user + 1) * window])


def _batch_bytes(records: Sequence[Record]) -> int:
    """Return the bytes of the batches that hold these records."""
    total = 0
    builder = _new_batch()
    offset = 0
    for key, value in records:
        if builder.append(offset, None, key, value, []) is None:
            total += len(builder.build())
            builder, offset = _new_batch(), 0
            builder.append(offset, None, key, value, [])
        offset += 1
    return total + len(builder.build())


def _new_batch() -> DefaultRecordBatchBuilder:
    return DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=False,
        producer_id=1,
        producer_epoch=0,
        base_sequence=0,
        batch_size=_BATCH_BYTES,
    )


def _live_bytes(path: Path) -> int:
    """Return the size of a closed store's files after it was compacted."""
    database = Rdict(str(path))  # with the options that the store left in its folder
    try:
        database.flush()
        database.compact_range(None, None)
        return int(database.property_int_value("rocksdb.live-sst-files-size"))
    finally:
        database.close()
