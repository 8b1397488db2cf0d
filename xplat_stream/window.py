"""The behavior window: a set, whatever order its events arrive in. Pure, no clock.

A user's window is, for each platform, the top `per_platform` events by (occurred_at, event id, content hash)
of the set of that user's admitted events inside [T - horizon, T], where T is the largest `occurred_at` seen for that
user on any platform. Merging is union followed by the same truncation: associative, commutative, idempotent.

An event is kept as one **row**: bytes of fixed length whose lexicographic order *is* that order, and a platform's
events as one **block**: its rows, sorted, one behind the other. Newer events are appended to it, truncation cuts its
front off. A window in memory is what lies on disk, so two windows are equal exactly when their bytes are::

    occurred_at 6 | event digest 8 | content hash 4 | text hash 8 | action 1        27 bytes, big-endian

Why so few: digests tell the events of one user apart, a few hundred of them. That two of a thousand share 8 bytes has a
chance of 3e-14; of two contents that share 4, text and action still tell.

Why truncation is safe: a row that fell out of a platform's top k has k newer rows above it; the horizon can only
remove those after it would have removed the fallen one. What is gone stays gone in every order of arrival.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import blake2b
from operator import lt
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, Self, cast

from xplat_stream.event import ACTION_INDEX, ACTIONS, TEXT_HASH_BYTES, Event, Millis, TextHash, hash_text, item_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Row = bytes

FORMAT: Final = 2
TIME_BYTES: Final = 6
"""Milliseconds up to the year 10889."""

DIGEST_BYTES: Final = 8
"""Of an event's id, behind the time."""

_CONTENT_BYTES: Final = 4
ROW_BYTES: Final = TIME_BYTES + DIGEST_BYTES + _CONTENT_BYTES + TEXT_HASH_BYTES + 1
_DIGEST_END: Final = TIME_BYTES + DIGEST_BYTES
_CONTENT_END: Final = _DIGEST_END + _CONTENT_BYTES
_TIME_END_BACK: Final = TIME_BYTES - ROW_BYTES
_EMPTY_TEXT: Final = hash_text("")
_FORMAT: Final = bytes((FORMAT,))
_OLD_FORMAT: Final = 1
_OLD_ROW_BYTES: Final = 41
_SINCE_FORMAT_1: Final = bytes(8 - TIME_BYTES)
"""Format 1 had time 8, event digest 16, content hash 8. What was hashed stays what it was, so that an event that comes
again after an upgrade is the row that its older one is read as."""

READ_FORMATS: Final = (_OLD_FORMAT, FORMAT)


@dataclass(frozen=True)
class WindowSpec:
    """How much of a user's behavior counts.

    `per_platform`: events kept of each platform, at least 1 (T must stay in the window).
    `horizon`: nothing older than this before the user's newest event is kept.
    `horizon_ms`: the same in milliseconds, worked out once.
    """

    per_platform: int = 50
    horizon: timedelta = timedelta(days=90)
    horizon_ms: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizon_ms", self.horizon // timedelta(milliseconds=1))
        if not 1 <= self.per_platform <= 0xFFFF:  # noqa: PLR2004 - the count is packed in 16 bits
            message = f"per_platform is {self.per_platform}; expected 1 to 65535"
            raise ValueError(message)
        if self.horizon <= timedelta(0):
            message = f"horizon is {self.horizon}; expected more than zero"
            raise ValueError(message)


class WindowEvent(NamedTuple):
    """One event as a window remembers it."""

    platform: str
    action: str
    occurred_at: Millis
    text_hash: TextHash


class Columns(NamedTuple):
    """What a window remembers of one platform, oldest first; of each event its time, its text and what was done."""

    platform: str
    times: tuple[Millis, ...]
    texts: tuple[TextHash, ...]
    actions: tuple[int, ...]
    """Places in `ACTIONS`."""


def row_of(event: Event, text_hash: TextHash | None = None) -> Row:
    """Return the row of an event. Pass `text_hash` when it is known already; hashing is a third of the cost."""
    if text_hash is None:
        text_hash = hash_text(item_text(event.object))
    time = event.occurred_at.to_bytes(TIME_BYTES, "big")
    action = ACTION_INDEX[event.action].to_bytes(1, "big")
    item = event.object
    content = f"{event.platform}\0{item.type}\0{item.id}\0{','.join(item.iab) if item.iab else ''}".encode()
    return (
        time
        + blake2b(event.event_id.encode(), digest_size=16).digest()[:DIGEST_BYTES]
        + blake2b(_SINCE_FORMAT_1 + time + action + text_hash + content, digest_size=8).digest()[:_CONTENT_BYTES]
        + text_hash
        + action
    )


def occurred_at(row: Row) -> Millis:
    """Return the event time of a row."""
    return Millis(int.from_bytes(row[:TIME_BYTES], "big"))


_READABLE: Final = Struct(f">HI{DIGEST_BYTES}s{_CONTENT_BYTES}x{TEXT_HASH_BYTES}sB")
"""Time in two parts, digest of the id, text, action: in one go, for every window that is published is read."""


def event_of(platform: str, row: Row) -> WindowEvent:
    """Return what a row says."""
    high, low, _, text_hash, action = _READABLE.unpack(row)
    return WindowEvent(platform, ACTIONS[action], Millis(high << 32 | low), text_hash)


def packed_end(packed: bytes, start: int = 0) -> Millis:
    """Return T of a packed window that begins at `start`, far cheaper than unpacking it; 0 when it is empty.

    Raises `ValueError` for a wrong length.
    """
    newest, at, end = 0, start + 1, len(packed)
    row_bytes, time_bytes = (_OLD_ROW_BYTES, 8) if packed[start] == _OLD_FORMAT else (ROW_BYTES, TIME_BYTES)
    while at < end:
        rows_start = at + 3 + packed[at]
        at = rows_start + row_bytes * int.from_bytes(packed[rows_start - 2 : rows_start], "big")
        if at > end:
            message = f"window of {end} bytes ends inside a platform; expected {at}"
            raise ValueError(message)
        newest = max(newest, int.from_bytes(packed[at - row_bytes : at - row_bytes + time_bytes], "big"))
    return Millis(newest)


class BehaviorWindow:
    """The recent behavior of one user. Folding returns a new window; a window never changes."""

    __slots__ = ("_packed", "end", "spec")

    def __init__(self, spec: WindowSpec, blocks: dict[str, bytes] | None = None) -> None:
        self.spec = spec
        newest = b""
        for block in (blocks or {}).values():
            newest = max(newest, block[-ROW_BYTES:_TIME_END_BACK])
        self.end = Millis(int.from_bytes(newest, "big"))
        """T: the largest event time in the window, 0 when it is empty."""
        self._packed = self._pack(blocks or {})

    def fold(self, additions: Iterable[tuple[str, Row]]) -> Self:
        """Return this window with `(platform, row)` pairs added under the law."""
        added: dict[str, list[Row]] = {}
        for platform, row in additions:
            rows = added.get(platform)
            if rows is None:
                added[platform] = [row]
            else:
                rows.append(row)
        if not added:
            return self
        blocks = _blocks(self._packed)
        for platform, rows in added.items():
            blocks[platform] = _joined(blocks.get(platform, b""), rows)
        return type(self)(self.spec, blocks)

    def merge(self, other: Self) -> Self:
        """Return the union of two windows of the same user, truncated."""
        blocks = _blocks(self._packed)
        for platform, block in _blocks(other._packed).items():
            mine = blocks.get(platform, b"")
            blocks[platform] = block if mine == block else _joined(mine, _rows(block))
        return type(self)(self.spec, blocks)

    def _pack(self, blocks: dict[str, bytes]) -> bytes:
        """Return the blocks, truncated, as they lie on disk."""
        keep = self.spec.per_platform * ROW_BYTES
        start = self.start.to_bytes(TIME_BYTES, "big")
        parts = [_FORMAT]
        for platform in sorted(blocks):
            block = blocks[platform][-keep:]
            if block < start:
                block = block[_position(block, start) :]
            if block:
                name = platform.encode()
                parts += (len(name).to_bytes(), name, (len(block) // ROW_BYTES).to_bytes(2, "big"), block)
        return b"".join(parts)

    @property
    def start(self) -> Millis:
        """T - horizon: an event before this is late and changes nothing."""
        return Millis(max(0, self.end - self.spec.horizon_ms))

    @property
    def conflicts(self) -> int:
        """How many rows share their event id with another row: one id published with two contents."""
        return len(self) - len(self._readable_rows())

    def count_late(self, additions: Iterable[tuple[str, Row]]) -> int:
        """Return how many of these rows lie before the horizon: they changed nothing."""
        start = self.start.to_bytes(TIME_BYTES, "big")
        return sum([row < start for _, row in additions])

    def is_repaired_by(self, additions: Iterable[tuple[str, Row]]) -> bool:
        """Tell whether all of these rows lie behind the newest event: if they change anything, it is the past."""
        end = self.end.to_bytes(TIME_BYTES, "big")
        return all(row[:TIME_BYTES] < end for _, row in additions)

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield every `(platform, row)`, platform by platform, oldest first."""
        for platform, block in _blocks(self._packed).items():
            for row in _rows(block):
                yield platform, row

    def events(self) -> list[WindowEvent]:
        """Return what readers see, oldest first within a platform; of two contents of one id, the lowest hash."""
        return [
            WindowEvent(platform, ACTIONS[action], time, text)
            for platform, *columns in self.columns()
            for time, text, action in zip(*columns, strict=True)
        ]

    def columns(self) -> list[Columns]:
        """Return the same platform by platform, without making an object of every event."""
        found, ids, events = [], set[bytes](), 0
        for platform, block in _blocks(self._packed).items():
            highs, lows, digests, texts, actions = zip(*_READABLE.iter_unpack(block), strict=True)
            times = cast("tuple[Millis, ...]", tuple([high << 32 | low for high, low in zip(highs, lows, strict=True)]))
            ids.update(digests)
            events += len(digests)
            found.append(Columns(platform, times, texts, actions))
        if len(ids) == events:
            return found
        blocks: dict[str, bytes] = {}
        for platform, row in self._readable_rows():
            blocks[platform] = blocks.get(platform, b"") + row
        return type(self)(self.spec, blocks).columns()

    def text_hashes(self) -> set[TextHash]:
        """Return the texts this window refers to, the empty text left out."""
        hashes = {
            block[at : at + TEXT_HASH_BYTES]
            for block in _blocks(self._packed).values()
            for at in range(_CONTENT_END, len(block), ROW_BYTES)
        }
        return cast("set[TextHash]", hashes - {_EMPTY_TEXT})

    def newer_than(self, time: Millis) -> int:
        """Return how many events are newer than this."""
        if time >= self.end:
            return 0
        after = (time + 1).to_bytes(TIME_BYTES, "big")
        return sum([(len(block) - _position(block, after)) // ROW_BYTES for block in _blocks(self._packed).values()])

    def _readable_rows(self) -> list[tuple[str, Row]]:
        everything = list(self.rows())
        digests = {row[TIME_BYTES:_DIGEST_END] for _, row in everything}
        if len(digests) == len(everything):
            return everything
        chosen: dict[bytes, tuple[str, Row]] = {}
        for platform, row in everything:
            digest = row[TIME_BYTES:_DIGEST_END]
            held = chosen.get(digest)
            if held is None or (row[_DIGEST_END:_CONTENT_END], platform) < (held[1][_DIGEST_END:_CONTENT_END], held[0]):
                chosen[digest] = (platform, row)
        return [pair for pair in everything if chosen[pair[1][TIME_BYTES:_DIGEST_END]] == pair]

    def counts(self) -> dict[str, int]:
        """Return how many events of each platform the window holds."""
        return {platform: len(block) // ROW_BYTES for platform, block in _blocks(self._packed).items()}

    def __len__(self) -> int:
        found, at, packed = 0, 1, self._packed
        while at < len(packed):  # as `_blocks`, but nothing is copied: it is asked several times an update
            start = at + 3 + packed[at]
            number = int.from_bytes(packed[start - 2 : start], "big")
            found += number
            at = start + ROW_BYTES * number
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BehaviorWindow) and self._packed == other._packed

    def __hash__(self) -> int:
        return hash(self._packed)

    def __repr__(self) -> str:
        return f"BehaviorWindow({self.counts()}, end={self.end})"

    def __bytes__(self) -> bytes:
        """Pack: format 2 | per platform, by name: length 1, name, count 2, block. Equal windows, equal bytes."""
        return self._packed

    @classmethod
    def from_bytes(cls, spec: WindowSpec, packed: bytes | memoryview) -> Self:
        """Unpack and truncate to `spec`, so that a changed spec takes effect on the next read.

        Reads format 1 too. Raises `ValueError` for bytes of another format or of a wrong length.
        """
        raw = bytes(packed)
        if not raw or raw[0] not in READ_FORMATS:
            message = f"window format is {raw[:1].hex() or 'absent'}; expected {FORMAT:02x}"
            raise ValueError(message)
        if raw[0] == FORMAT:
            blocks = _blocks(raw)
        else:
            blocks = {platform: _shortened(block) for platform, block in _blocks(raw, _OLD_ROW_BYTES).items()}
        for block in blocks.values():
            if not block:
                message = f"window of {len(raw)} bytes holds a platform without events; expected at least one"
                raise ValueError(message)
            if max(block[ROW_BYTES - 1 :: ROW_BYTES]) >= len(ACTIONS):
                message = f"window holds an action unknown here; expected one of {len(ACTIONS)}"
                raise ValueError(message)
        return cls(spec, blocks)


def _blocks(packed: bytes, row_bytes: int = ROW_BYTES) -> dict[str, bytes]:
    """Return the blocks of a packed window, by platform, in order of their names.

    Raises `ValueError` for a wrong length.
    """
    blocks: dict[str, bytes] = {}
    at, end = 1, len(packed)
    while at < end:
        name_end = at + 1 + packed[at]
        start = name_end + 2
        block_end = start + row_bytes * int.from_bytes(packed[name_end:start], "big")
        blocks[packed[at + 1 : name_end].decode()] = packed[start:block_end]
        at = block_end
    if at > end:
        message = f"window of {end} bytes ends inside a platform; expected {at}"
        raise ValueError(message)
    return blocks


def _shortened(block: bytes) -> bytes:
    """Return a block of format 1 as it is in this format: every hash cut, so the order stays."""
    rows = [block[at : at + _OLD_ROW_BYTES] for at in range(0, len(block), _OLD_ROW_BYTES)]
    return b"".join(sorted({row[2:16] + row[24:28] + row[32:] for row in rows}))


def _rows(block: bytes) -> list[Row]:
    return [block[at : at + ROW_BYTES] for at in range(0, len(block), ROW_BYTES)]


def _position(block: bytes, row: bytes) -> int:
    """Return where in a block a row, or a time, belongs: before it lie the bytes of all that is less."""
    low, high = 0, len(block) // ROW_BYTES
    while low < high:
        middle = (low + high) // 2
        if block[middle * ROW_BYTES : (middle + 1) * ROW_BYTES] < row:
            low = middle + 1
        else:
            high = middle
    return low * ROW_BYTES


def _joined(block: bytes, rows: list[Row]) -> bytes:
    """Return the union of a block and at least one row, as a block."""
    if len(rows) > 1 and not all(map(lt, rows, rows[1:])):
        rows = sorted(set(rows))
    if block[-ROW_BYTES:] >= rows[0]:  # not all are newer than what is there
        at = _position(block, rows[0])
        block, rows = block[:at], sorted({*_rows(block[at:]), *rows})
    return block + b"".join(rows)
