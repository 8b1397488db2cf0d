"""The state of one partition: RocksDB on disk, decoded windows in memory, one write batch a chunk.

The store is the fast copy; the changelog topic is the durable one. Both are written before a chunk is acknowledged,
RocksDB first, so a crash in between is repaired by reading the chunk again: folding it twice changes nothing.

Because the changelog can rebuild it, a folder that is damaged is never repaired and never deleted: it is set aside
under another name, at once, and the worker stops; the next start finds no folder and rebuilds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from datetime import UTC, datetime
from functools import reduce
from typing import TYPE_CHECKING, Final

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch, WriteBufferManager

from xplat_stream.errors import DamagedState, LostLease, StateError
from xplat_stream.event import TEXT_HASH_BYTES, TextHash, UserId
from xplat_stream.state import (
    BARRIER_KEY,
    TEXT_PREFIX,
    USER_PREFIX,
    Glance,
    Publication,
    TextEntry,
    UserState,
    check_record,
    glance,
    is_pending,
    text_key,
    user_key,
)
from xplat_stream.window import BehaviorWindow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, KeysView, Sequence
    from pathlib import Path

    from xplat_stream.window import WindowSpec

STORE_FORMAT: Final = 1
"""Of the keys and values below; a folder of another format is set aside."""

_CHANGELOG_POSITION: Final = b"o"
_IDENTITY: Final = b"i"
_PENDING_PREFIX: Final = b"p"
_UNSENT_TEXTS: Final = b"u"
_LAST_WRITTEN: Final = b"a"
_MEMTABLE_BYTES: Final = 16 << 20
_OWN_MB: Final = 32
"""Memory of a store that shares none with others."""

_KNOWN_TEXTS: Final = 100_000
"""Hashes held in memory to spare a look into RocksDB: about 10 MB."""

_KEPT_ASIDE: Final = 3
"""Folders set aside that are kept for each partition, the newest ones."""

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


def set_aside(path: Path, why: str) -> Path:
    """Rename a partition's folder to `<name>.<why>-<time>` and return the new path; delete all but the newest three.

    What is open in it stays readable. Raises `StateError` when the folder cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.{why}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    try:
        path.rename(aside)
    except OSError as error:
        raise unusable(path, str(error.strerror)) from error
    older = sorted(path.parent.glob(f"{path.name}.*-*"), key=lambda folder: folder.name.rpartition("-")[2])
    for folder in older[:-_KEPT_ASIDE]:
        shutil.rmtree(folder, ignore_errors=True)
    return aside


class StoreMemory:
    """The memory that RocksDB may take for all stores of a process together, in megabytes.

    Blocks read from disk, their indexes and filters, and changes that are not on disk yet, half of it at the most for
    these, count against one limit.
    """

    def __init__(self, megabytes: int) -> None:
        self.blocks = Cache(megabytes << 20)
        self.changes = WriteBufferManager.new_write_buffer_manager_with_cache(megabytes << 19, False, self.blocks)


class PartitionStore:
    """The windows and texts of the users of one partition.

    Reads go to memory, then to RocksDB. Changes are collected by `put_user` and `put_text` and become durable, all
    together, in `write`. Not thread-safe: one lane owns it.

    Everything that reads or writes raises `DamagedState`: when there is damage, which sets the folder aside, or when
    the disk fails or is full, which leaves the folder where it is.
    """

    def __init__(self, path: Path, spec: WindowSpec, *, cached_users: int, memory: StoreMemory | None = None) -> None:
        self.spec = spec
        self.path = path
        self._cached_users = cached_users
        self._memory = memory or StoreMemory(_OWN_MB)
        self._users: dict[UserId, UserState] = {}
        self._dirty: dict[bytes, bytes] = {}
        self._known_texts: set[TextHash] = set()
        self._with_vector: dict[int, set[TextHash]] = {}
        self._unsent_texts: set[TextHash] = set()
        """Texts written here and not yet known to lie in the changelog; kept with them, in case the process dies."""
        self._log_end: int | None = None
        self._sent = 0
        self._position: int | None = None
        self._new = UserState(BehaviorWindow(spec), Publication())
        self._open()
        self.has_pending = True
        """Whether some profiles may still have to be scored. The index of them is local: a rebuild makes it again."""
        try:
            self.pending(limit=1)
            unsent = self._get(_UNSENT_TEXTS) or b""
        except DamagedState:
            self.close()
            raise
        starts = range(0, len(unsent), TEXT_HASH_BYTES)
        self._doubtful_texts = {TextHash(unsent[at : at + TEXT_HASH_BYTES]) for at in starts}

    def user(self, user_id: UserId) -> UserState:
        """Return a user's state; an empty window for someone never seen."""
        state = self._users.get(user_id)
        if state is None:
            packed = self._get(user_key(user_id))
            state = self._new if packed is None else self._held_user(packed)
        return state

    def knows(self, user_id: UserId) -> bool:
        """Tell whether the user is in memory; if so, this is the user's own partition."""
        return user_id in self._users

    def put_user(self, user_id: UserId, state: UserState) -> None:
        """Keep a user's new state, to be made durable by the next `write`."""
        self._users.pop(user_id, None)  # to the end: what was touched longest ago is forgotten first
        self._users[user_id] = state
        self._dirty[user_key(user_id)] = state.pack()

    def pending(self, *, limit: int, after: UserId | None = None) -> list[UserId]:
        """Return users whose profile still has to be scored, by id, beginning behind `after`; as last written."""
        start = _PENDING_PREFIX + (after.encode() + b"\0" if after else b"")
        found: list[UserId] = []
        for key, _ in self._iterate(start):
            if len(found) == limit or not key.startswith(_PENDING_PREFIX):
                break
            found.append(UserId(key[1:].decode()))
        if not found and after is None:
            self.has_pending = False
        return found

    def glances(self, *, limit: int, after: UserId | None = None) -> list[tuple[UserId, Glance]]:
        """Return a glance at every user, by id, beginning behind `after`; at most `limit`."""
        found: list[tuple[UserId, Glance]] = []
        for key, value in self._iterate(user_key(after) + b"\0" if after else USER_PREFIX):
            if len(found) == limit or not key.startswith(USER_PREFIX):
                break
            user_id = UserId(key[1:].decode())
            held = self._users.get(user_id)
            found.append((user_id, self._glanced(value) if held is None else held.glance()))
        return found

    def remember(self, user_id: UserId, state: UserState) -> None:
        """Keep a state in memory only: it goes into the record that the user's next event writes."""
        self._users[user_id] = state

    def has_text(self, text_hash: TextHash) -> bool:
        """Tell whether this partition, its changelog included, holds a text, whatever encoder its vector is of."""
        if text_hash in self._known_texts:
            return True
        if text_hash not in self._doubtful_texts and self._get(text_key(text_hash)) is not None:
            self._known_texts.add(text_hash)
            return True
        return False

    def texts(self, hashes: Iterable[TextHash]) -> dict[TextHash, TextEntry]:
        """Return the texts this partition holds among `hashes`."""
        wanted = list(hashes)
        keys = [text_key(text_hash) for text_hash in wanted]
        packed = [self._dirty.get(key) or value for key, value in zip(keys, self._get_many(keys), strict=True)]
        found = {
            text_hash: self._held_text(value)
            for text_hash, value in zip(wanted, packed, strict=True)
            if value is not None
        }
        for text_hash in found.keys() - self._doubtful_texts:
            self._note_vectors(text_hash, found[text_hash])
        return found

    def without_vector(self, encoder: int, hashes: set[TextHash] | KeysView[TextHash]) -> set[TextHash]:
        """Return those of the texts that lack a vector of an encoder here, as far as `texts` and `put_text` have seen.

        A vector that only the memory of this process holds is made again by whoever takes the partition over.
        """
        return hashes - self._with_vector.get(encoder, set())

    def _note_vectors(self, text_hash: TextHash, entry: TextEntry) -> None:
        for encoder in entry.vectors:
            self._with_vector.setdefault(encoder, set()).add(text_hash)

    def put_text(self, text_hash: TextHash, entry: TextEntry) -> None:
        """Keep a text, to be made durable by the next `write`."""
        self._known_texts.add(text_hash)
        self._unsent_texts.add(text_hash)
        self._doubtful_texts.discard(text_hash)
        self._note_vectors(text_hash, entry)
        self._dirty[text_key(text_hash)] = entry.pack()

    def reached(self, changelog_end: int) -> None:
        """Note that what `write` returned lies in the changelog, up to this offset; the next `write` keeps that.

        Raises `LostLease` when the changelog holds records in between that this store did not write: another worker
        owns the partition. What it wrote would be passed over by a later recovery.
        """
        if self._log_end is not None and changelog_end != self._log_end + self._sent:
            message = (
                f"another worker writes to the changelog of {self.path.name}: it is at {changelog_end}, "
                f"not at {self._log_end + self._sent}"
            )
            raise LostLease(message)
        self._log_end = self._position = changelog_end
        self._sent = 0
        self._unsent_texts.clear()

    def write(self) -> list[Record]:
        """Make all changes durable in one RocksDB batch and return them for the changelog."""
        records = list(self._dirty.items())
        changes: dict[bytes, bytes | None] = dict(records)
        changes |= self._pending_of(changes)
        if self._position is not None:
            changes[_CHANGELOG_POSITION] = self._position.to_bytes(8, "big")
        if changes:
            changes[_UNSENT_TEXTS] = b"".join(self._unsent_texts | self._doubtful_texts) or None
            self._write_stamped(changes)
        self._position = None
        self._sent += len(records)
        self._dirty.clear()
        self._forget_oldest()
        return records

    def _forget_oldest(self) -> None:
        """Drop the tenth of the windows that was touched longest ago, and all known texts, when there are too many."""
        if len(self._users) > self._cached_users:
            for user_id in list(self._users)[: len(self._users) - self._cached_users * 9 // 10]:
                del self._users[user_id]
        if len(self._known_texts) + sum(map(len, self._with_vector.values())) > _KNOWN_TEXTS:
            self._known_texts.clear()  # RocksDB knows them all
            self._with_vector.clear()

    def changelog_position(self) -> int:
        """Return the changelog offset from which on records may be missing here, 0 for a new store."""
        packed = self._get(_CHANGELOG_POSITION)
        return 0 if packed is None else int.from_bytes(packed, "big")

    def last_written_ms(self) -> int:
        """Return the clock's time of the last write, in milliseconds since 1970; 0 for a new store."""
        packed = self._get(_LAST_WRITTEN)
        return 0 if packed is None else int.from_bytes(packed, "big")

    def identity(self) -> bytes | None:
        """Return whose state this is, as `mark` was told; None when nobody said so."""
        return self._get(_IDENTITY)

    def mark(self, identity: bytes) -> None:
        """Remember whose state this is."""
        self._write_stamped({_IDENTITY: identity})

    def is_empty(self) -> bool:
        """Tell whether nothing was ever written here."""
        return next(self._iterate(b""), None) is None

    def restore(self, records: Iterable[tuple[bytes, bytes | None]], *, position: int) -> int:
        """Merge changelog records into the store, whatever order they were written in. Returns how many there were.

        A tombstone takes its key out; barriers are passed over. `position` is the changelog offset after the last of
        them. Raises `ValueError` for a record of an unknown kind or format; nothing of the batch is kept then.
        """
        versions: dict[bytes, list[bytes | None]] = {}
        count = 0
        for key, value in records:
            if key == BARRIER_KEY:
                continue
            count += 1
            if value is None or key not in versions:
                versions[key] = [value]  # what came before a tombstone does not count, nor what is held
            else:
                versions[key].append(value)
        changes: dict[bytes, bytes | None] = {}
        for (key, values), held in zip(versions.items(), self._get_many(list(versions)), strict=True):
            merged = self._merged(key, held, values)
            if merged is not held:
                changes[key] = merged
            if merged is not None and merged != values[-1]:
                # The last record of this key is not all there is: written again, so that compaction loses nothing.
                self._dirty[key] = merged
            else:
                self._dirty.pop(key, None)
        changes |= self._pending_of(changes)
        changes[_CHANGELOG_POSITION] = position.to_bytes(8, "big")
        self._write_stamped(changes)
        self._log_end = position
        self._users.clear()
        return count

    @property
    def is_dirty(self) -> bool:
        """Whether the next `write` has something for the changelog."""
        return bool(self._dirty)

    def _pending_of(self, changes: dict[bytes, bytes | None]) -> dict[bytes, bytes | None]:
        """Return the index entries that belong to changed users; none while nobody is, or was, pending."""
        users = {
            key: value is not None and is_pending(value) for key, value in changes.items() if key[:1] == USER_PREFIX
        }
        self.has_pending = self.has_pending or any(users.values())
        if not self.has_pending:
            return {}
        return {_PENDING_PREFIX + key[1:]: b"" if pending else None for key, pending in users.items()}

    def _merged(self, key: bytes, held: bytes | None, values: Sequence[bytes | None]) -> bytes | None:
        """Merge what is held under a key with what the changelog has of it, unpacking only where there are two."""
        if values[0] is None:
            held = None
        distinct = {value for value in values if value is not None} - {held}
        if not distinct:
            return held
        for value in distinct:
            check_record(key, value)
        if held is None and len(distinct) == 1:
            return distinct.pop()
        if key.startswith(TEXT_PREFIX):
            texts = [TextEntry.unpack(value) for value in distinct]
            return reduce(TextEntry.merge, texts if held is None else [*texts, self._held_text(held)]).pack()
        states = [UserState.unpack(self.spec, value) for value in distinct]
        return reduce(UserState.merge, states if held is None else [*states, self._held_user(held)]).pack()

    def all_texts(self) -> Iterator[tuple[TextHash, TextEntry]]:
        """Yield every text of this partition."""
        for key, value in self._iterate(TEXT_PREFIX):
            if not key.startswith(TEXT_PREFIX):
                return
            yield TextHash(key[len(TEXT_PREFIX) :]), self._held_text(value)

    def set_aside(self, why: str) -> Path:
        """Rename the folder, close it, and return where it is now. See the function of this name."""
        aside = set_aside(self.path, why)
        self.close()
        return aside

    def close(self) -> None:
        """Close RocksDB and release its lock. Closing twice is no error."""
        self._close()

    def _write_stamped(self, changes: dict[bytes, bytes | None]) -> None:
        changes[_LAST_WRITTEN] = (time.time_ns() // 1_000_000).to_bytes(8, "big")
        self._write_batch(changes)

    def _held_user(self, packed: bytes) -> UserState:
        try:
            return UserState.unpack(self.spec, packed)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _glanced(self, packed: bytes) -> Glance:
        try:
            return glance(packed)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _held_text(self, packed: bytes) -> TextEntry:
        try:
            return TextEntry.unpack(packed)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    # All that touches RocksDB is below. rocksdict raises bare Exception for everything that RocksDB says.

    def _open(self) -> None:
        options = Options(raw_mode=True)
        options.create_if_missing(create_if_missing=True)
        options.set_write_buffer_size(_MEMTABLE_BYTES)
        options.set_write_buffer_manager(self._memory.changes)
        options.set_compression_type(DBCompressionType.none())  # rows are hashes: nothing is gained
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._memory.blocks)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        blocks.set_bloom_filter(10, block_based=False)
        options.set_block_based_table_factory(blocks)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # RocksDB takes a folder without CURRENT for a new one, and may take leftovers in it for its own.
            lost = not (self.path / "CURRENT").exists() and any(self.path.iterdir())
        except OSError as error:
            raise unusable(self.path, str(error.strerror)) from error
        if lost:
            raise self._damaged("the file CURRENT is gone")
        try:
            self._db = Rdict(str(self.path), options)
        except Exception as error:
            if _is_damage(str(error)):
                raise self._damaged(str(error)) from error
            if "No space left" in str(error):
                raise self._failed(str(error)) from error
            held = "lock hold" in str(error) or "temporarily unavailable" in str(error)
            raise unusable(self.path, "another worker process has it open" if held else _cause(str(error))) from error

    def _get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._stopping(error) from error
        return value

    def _get_many(self, keys: list[bytes]) -> list[bytes | None]:
        try:
            values: list[bytes | None] = self._db.get(keys) if keys else []
        except Exception as error:
            raise self._stopping(error) from error
        return values

    def _write_batch(self, changes: dict[bytes, bytes | None]) -> None:
        """Write all changes or none; None deletes."""
        batch = WriteBatch(raw_mode=True)
        for key, value in changes.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        try:
            self._db.write(batch)
        except Exception as error:
            raise self._stopping(error) from error

    def _iterate(self, from_key: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._db.iter()
        try:
            cursor.seek(from_key)
            while cursor.valid():
                yield cursor.key(), cursor.value()
                cursor.next()
            cursor.status()  # a cursor that meets damage ends as one that is through; only this tells them apart
        except Exception as error:
            raise self._stopping(error) from error
        finally:
            del cursor  # it keeps RocksDB open, also where only a traceback still knows it

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # closed already; or cannot flush, and what it cannot lies in its log
            self._db.close()

    def _stopping(self, error: Exception) -> DamagedState:
        return self._damaged(str(error)) if _is_damage(str(error)) else self._failed(str(error))

    def _damaged(self, what: str) -> DamagedState:
        """Set the folder aside and return the line that says so."""
        now = f"set aside as {set_aside(self.path, 'corrupt').name}" if self.path.exists() else "gone"
        return DamagedState(
            f"state is damaged: {_cause(what)} ({self.path}); expected what was written there. "
            f"The folder is {now}; the next start rebuilds it from the changelog."
        )

    def _failed(self, what: str) -> DamagedState:
        return DamagedState(
            f"state cannot be read or written: {_cause(what)} ({self.path}); expected a working disk with room. "
            "Free space or mend the disk, and start again: what was not written is read again."
        )


def _is_damage(what: str) -> bool:
    """Tell RocksDB's words for damaged or missing files from those for a disk that fails."""
    return "Corruption" in what or "No such file" in what


def _cause(what: str) -> str:
    return "No space left on device" if "No space left" in what else " ".join(what.split())[:300]
