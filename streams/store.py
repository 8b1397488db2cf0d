"""The state of one partition: RocksDB on disk, decoded windows in memory, one write batch a chunk.

The store is the fast copy; the changelog topic is the durable one. Both are written before a chunk is acknowledged,
RocksDB first, so a crash in between is repaired by reading the chunk again: folding it twice changes nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from typing import TYPE_CHECKING, Final

from rocksdict import BlockBasedOptions, Cache, Options, Rdict, WriteBatch

from xplat_stream.errors import StateError
from xplat_stream.event import UserId
from xplat_stream.state import (
    TEXT_PREFIX,
    USER_PREFIX,
    Publication,
    TextEntry,
    UserState,
    is_pending,
    text_key,
    user_key,
)
from xplat_stream.window import BehaviorWindow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from xplat_stream.event import TextHash
    from xplat_stream.window import WindowSpec

_CHANGELOG_POSITION: Final = b"o"
_PENDING_PREFIX: Final = b"p"
_MEMTABLE_BYTES: Final = 16 << 20
_BLOCK_CACHE_BYTES: Final = 32 << 20
_KNOWN_TEXTS: Final = 500_000
"""Hashes held in memory to spare a look into RocksDB: about 50 MB."""

Record = tuple[bytes, bytes]
"""Key and value as they go to the changelog."""


def claim(folder: Path) -> int:
    """Make a state folder this process's alone until the returned descriptor is closed, at the latest at its end.

    RocksDB locks partition by partition, and two workers of one group never own the same one: without this they would
    share a folder unnoticed. Raises `StateError`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unusable(folder, str(error.strerror)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise unusable(folder, "another worker has it") from error
    return descriptor


def unusable(path: Path, why: str) -> StateError:
    """Return the operator's line for a state folder that cannot be used."""
    return StateError(
        f"state folder cannot be used: {why}",
        where=str(path),
        expected="a writable folder of this worker alone",
        fix="Correct its permissions, or give each worker its own XPLAT_WORKER__DATADIR.",
    )


class PartitionStore:
    """The windows and texts of the users of one partition.

    Reads go to memory, then to RocksDB. Changes are collected by `put_user` and `put_text` and become durable, all
    together, in `write`. Not thread-safe: one lane owns it.
    """

    def __init__(self, path: Path, spec: WindowSpec, *, cached_users: int) -> None:
        self.spec = spec
        self.path = path
        self._cached_users = cached_users
        self._users: dict[UserId, UserState] = {}
        self._dirty: dict[bytes, bytes] = {}
        self._pending: dict[bytes, bool] = {}
        self._known_texts: set[TextHash] = set()
        self._position: int | None = None
        self._new = UserState(BehaviorWindow(spec), Publication())
        self._db = self._open()
        self.has_pending = bool(self.pending(limit=1))
        """Whether some profiles may still have to be scored. The index of them is local: a rebuild makes it again."""

    def _open(self) -> Rdict:
        options = Options(raw_mode=True)
        options.create_if_missing(create_if_missing=True)
        options.set_write_buffer_size(_MEMTABLE_BYTES)
        blocks = BlockBasedOptions()
        blocks.set_block_cache(Cache(_BLOCK_CACHE_BYTES))
        blocks.set_bloom_filter(10, block_based=False)
        options.set_block_based_table_factory(blocks)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return Rdict(str(self.path), options)
        except OSError as error:
            raise unusable(self.path, str(error.strerror)) from error
        except Exception as error:  # rocksdict raises bare Exception for everything RocksDB says
            if "lock" in str(error).lower():
                raise unusable(self.path, "another worker process has it open") from error
            if "Corruption" in str(error):
                self.path.rename(self.path.with_name(f"{self.path.name}.corrupt-{int(time.time())}"))
                return Rdict(str(self.path), options)
            raise unusable(self.path, str(error)) from error

    def user(self, user_id: UserId) -> UserState:
        """Return a user's state; an empty window for someone never seen."""
        state = self._users.get(user_id)
        if state is None:
            packed = self._db.get(user_key(user_id))
            state = self._new if packed is None else UserState.unpack(self.spec, packed)
        return state

    def knows(self, user_id: UserId) -> bool:
        """Tell whether the user is in memory; if so, this is the user's own partition."""
        return user_id in self._users

    def put_user(self, user_id: UserId, state: UserState) -> None:
        """Keep a user's new state, to be made durable by the next `write`."""
        self._users[user_id] = state
        self._dirty[user_key(user_id)] = state.pack()
        if state.pending:
            self.has_pending = True
        if self.has_pending:
            self._pending[_PENDING_PREFIX + user_id.encode()] = state.pending

    def pending(self, *, limit: int, after: UserId | None = None) -> list[UserId]:
        """Return users whose profile still has to be scored, by id, beginning behind `after`; as last written."""
        start = _PENDING_PREFIX + (after.encode() + b"\0" if after else b"")
        found: list[UserId] = []
        for key in self._db.keys(from_key=start):
            if len(found) == limit or not key.startswith(_PENDING_PREFIX):
                break
            found.append(UserId(key[1:].decode()))
        if not found and after is None:
            self.has_pending = False
        return found

    def remember(self, user_id: UserId, state: UserState) -> None:
        """Keep a state in memory only: it goes into the record that the user's next event writes."""
        self._users[user_id] = state

    def has_text(self, text_hash: TextHash) -> bool:
        """Tell whether this partition holds a text, whatever encoder its vector is of."""
        if text_hash in self._known_texts:
            return True
        if self._db.key_may_exist(key := text_key(text_hash)) and self._db.get(key) is not None:
            self._known_texts.add(text_hash)
            return True
        return False

    def texts(self, hashes: Iterable[TextHash]) -> dict[TextHash, TextEntry]:
        """Return the texts this partition holds among `hashes`."""
        wanted = list(hashes)
        packed = self._db.get([text_key(text_hash) for text_hash in wanted]) if wanted else []
        return {text_hash: TextEntry.unpack(value) for text_hash, value in zip(wanted, packed, strict=True) if value}

    def put_text(self, text_hash: TextHash, entry: TextEntry) -> None:
        """Keep a text, to be made durable by the next `write`."""
        self._known_texts.add(text_hash)
        self._dirty[text_key(text_hash)] = entry.pack()

    def reached(self, changelog_position: int) -> None:
        """Note that everything before this offset of the changelog is in this store; the next `write` keeps it."""
        self._position = max(changelog_position, self._position or 0)

    def write(self) -> list[Record]:
        """Make all changes durable in one RocksDB batch and return them for the changelog.

        Raises whatever RocksDB raises: a disk that does not take the state must stop the worker.
        """
        records = list(self._dirty.items())
        batch = WriteBatch(raw_mode=True)
        put = batch.put
        for key, value in records:
            put(key, value)
        self._note_pending(batch, self._pending)
        if self._position is not None:
            put(_CHANGELOG_POSITION, self._position.to_bytes(8, "big"))
            self._position = None
        if len(batch):
            self._db.write(batch)
        self._dirty.clear()
        self._pending.clear()
        self._forget_oldest()
        return records

    def _forget_oldest(self) -> None:
        """Drop the longest-held tenth of the decoded windows, and all known texts, when there are too many."""
        if len(self._users) > self._cached_users:
            for user_id in list(self._users)[: len(self._users) - self._cached_users * 9 // 10]:
                del self._users[user_id]
        if len(self._known_texts) > _KNOWN_TEXTS:
            self._known_texts.clear()  # RocksDB knows them all

    def changelog_position(self) -> int:
        """Return the changelog offset from which on records may be missing here, 0 for a new store."""
        packed = self._db.get(_CHANGELOG_POSITION)
        return 0 if packed is None else int.from_bytes(packed, "big")

    def restore(self, records: Iterable[tuple[bytes, bytes | None]], *, position: int) -> int:
        """Merge changelog records into the store, whatever order they were written in. Returns how many there were.

        A tombstone takes its key out. `position` is the changelog offset after the last of them.
        """
        merged: dict[bytes, bytes | None] = {}
        count = 0
        for key, value in records:
            count += 1
            held = merged[key] if key in merged else self._db.get(key)
            merged[key] = value if value is None or held is None or held == value else self._merge(key, held, value)
        batch = WriteBatch(raw_mode=True)
        for key, value in merged.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        changes = {
            _PENDING_PREFIX + key[len(USER_PREFIX) :]: value is not None and is_pending(value)
            for key, value in merged.items()
            if key.startswith(USER_PREFIX)
        }
        self.has_pending = self.has_pending or any(changes.values())
        if self.has_pending:
            self._note_pending(batch, changes)
        batch.put(_CHANGELOG_POSITION, position.to_bytes(8, "big"))
        self._db.write(batch)
        self._users.clear()
        return count

    @staticmethod
    def _note_pending(batch: WriteBatch, changes: dict[bytes, bool]) -> None:
        for key, pending in changes.items():
            if pending:
                batch.put(key, b"")
            else:
                batch.delete(key)

    def _merge(self, key: bytes, held: bytes, value: bytes) -> bytes:
        if key.startswith(TEXT_PREFIX):
            return TextEntry.unpack(held).merge(TextEntry.unpack(value)).pack()
        return UserState.unpack(self.spec, held).merge(UserState.unpack(self.spec, value)).pack()

    def all_texts(self) -> Iterator[tuple[TextHash, TextEntry]]:
        """Yield every text of this partition."""
        for key, value in self._db.items(from_key=TEXT_PREFIX):
            if not key.startswith(TEXT_PREFIX):
                return
            yield key[len(TEXT_PREFIX) :], TextEntry.unpack(value)

    def close(self) -> None:
        """Close RocksDB and release its lock."""
        self._db.close()

    def destroy(self) -> None:
        """Close and delete the folder: the changelog that made it is gone."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
