"""A log as people: every user's distinct events in order of time, in memory or memory-mapped from disk.

A log may be larger than memory, so it is read once, event by event. Each event becomes a record of 73 bytes that names
its user, item, text and labels by number; records are put into **shards** by user, a shard is sorted at a time, and
the sorted shards make one Arrow file, a record batch each. What stays in memory is what users, items and texts there
are, never how often they come. `gather` without a folder keeps the records in memory and does the same with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, overload

import msgspec
import numpy as np
import pyarrow as pa

from trainer.data.exclusions import CONFLICTS, REPEATED
from trainer.data.texts import TextTable, bit_positions
from xplat_stream.event import NEGATIVE_ACTIONS, UserId, hash_text, item_text
from xplat_stream.taxonomy import Taxonomy
from xplat_stream.window import DIGEST_BYTES, ROW_BYTES, TIME_BYTES, Row, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from xplat_stream.event import Event, Object, TextHash

EVENTS_A_SHARD: Final = 400_000
"""Records sorted at once: with their sort order about 60 MB."""

_AT_ONCE: Final = 50_000
"""Records handed to the shards together."""

_BINS: Final = 1 << 16
_EVENT_ID: Final = slice(TIME_BYTES, TIME_BYTES + DIGEST_BYTES)
"""Of a row: the digest of the event's id."""
_RECORD: Final = np.dtype(
    [("user", "<i8"), ("row", f"S{ROW_BYTES}"), ("platform", "<i4"), ("item", "<i4"), ("text", "<i4"), ("named", "<i4")]
)
_SHARD_FOLDER: Final = "shards"
_EVENTS, _USERS, _TEXTS, _ITEMS = "events.arrow", "users.arrow", "texts.arrow", "items.arrow"
_OWN, _ABOUT = "own.npy", "log.json"


class History(NamedTuple):
    """One user's distinct events, in order of time."""

    user_id: UserId
    rows: list[Row]
    platform: NDArray[np.int32]  # (events,), index in Log.platforms
    item: NDArray[np.int32]  # (events,), index in Log.items
    text: NDArray[np.int32]  # (events,), index in the TextTable, 0 = no text
    time: NDArray[np.int64]  # (events,), milliseconds
    mask: list[int]
    """Labels the item names, as bits in taxonomy order; 0 for a negative action."""


class Part(NamedTuple):
    """Events of several users, one user after the other; arrays in memory, or views of a mapped file."""

    rows: NDArray[np.uint8]  # (events, 41)
    platform: NDArray[np.int32]  # (events,)
    item: NDArray[np.int32]  # (events,)
    text: NDArray[np.int32]  # (events,)
    time: NDArray[np.int64]  # (events,), milliseconds
    named: NDArray[np.int32]  # (events,), index in Histories.masks


class Histories(Sequence[History]):
    """Every user's history, in order of the users' ids; made when asked for, and not kept."""

    def __init__(
        self, users: Sequence[UserId], where: NDArray[np.int64], parts: Sequence[Part], masks: Sequence[int]
    ) -> None:
        """`where` (users, 3): part, first event in it, one past the last. `masks`: the distinct label sets."""
        self.users = users
        self.where = where
        self.parts = parts
        self.masks = masks

    def __len__(self) -> int:
        return len(self.users)

    @overload
    def __getitem__(self, position: int) -> History: ...
    @overload
    def __getitem__(self, position: slice) -> list[History]: ...
    def __getitem__(self, position: int | slice) -> History | list[History]:
        if isinstance(position, slice):
            return [self[one] for one in range(*position.indices(len(self)))]
        number, start, stop = self.where[position].tolist()
        part = self.parts[number]
        raw = part.rows[start:stop].tobytes()
        return History(
            self.users[position],
            [raw[at : at + ROW_BYTES] for at in range(0, len(raw), ROW_BYTES)],
            part.platform[start:stop],
            part.item[start:stop],
            part.text[start:stop],
            part.time[start:stop],
            [self.masks[one] for one in part.named[start:stop].tolist()],
        )

    @property
    def lengths(self) -> NDArray[np.int64]:  # (users,)
        """How many events each user has."""
        return self.where[:, 2] - self.where[:, 1]

    def relabelled(self, kept: NDArray[np.int64]) -> Histories:
        """Return the same histories with only these labels, renumbered in the order given."""
        moved = {1 << int(old): 1 << new for new, old in enumerate(kept)}
        masks = [sum(new for old, new in moved.items() if mask & old) for mask in self.masks]
        return Histories(self.users, self.where, self.parts, masks)

    def nth_time(self, share: float, *, min_events: int) -> tuple[int, int, int]:
        """Return the first event time, the one that `share` of the events lie before, and the last.

        Only users with `min_events` count. Found by counting into ever narrower bins, so that no copy of all times is
        held or sorted. Raises `ValueError` where no user has that many.
        """
        chunks = [
            (number, np.repeat(self.lengths[mine] >= min_events, self.lengths[mine]))
            for number, mine in self._users_by_part()
        ]

        def times() -> Iterator[NDArray[np.int64]]:
            for number, chosen in chunks:
                yield self.parts[number].time[chosen]

        found = [(int(part.min()), int(part.max()), len(part)) for part in times() if len(part)]
        if not found:
            message = f"no user has {min_events} events"
            raise ValueError(message)
        first, last = min(one[0] for one in found), max(one[1] for one in found)
        left = min(int(sum(one[2] for one in found) * share), sum(one[2] for one in found) - 1)
        low, high = first, last
        while low < high:
            step = -(-(high - low + 1) // _BINS)
            counts = np.zeros(_BINS, np.int64)
            for part in times():
                inside = part[(part >= low) & (part <= high)]
                counts += np.bincount((inside - low) // step, minlength=_BINS)
            bin_ = int(np.searchsorted(np.cumsum(counts), left, side="right"))
            left -= int(counts[:bin_].sum())
            low, high = low + bin_ * step, min(high, low + (bin_ + 1) * step - 1)
        return first, low, last

    def span_ms(self) -> tuple[int, int]:
        """Return the first and the last event time, (0, 0) where there is no event."""
        times = [part.time for part in self.parts if len(part.time)]
        return (min(int(one.min()) for one in times), max(int(one.max()) for one in times)) if times else (0, 0)

    def touched(self, labels: int) -> list[int]:
        """Return how many events name each of so many labels."""
        counts = np.zeros(len(self.masks), np.int64)
        for part in self.parts:
            counts += np.bincount(part.named, minlength=len(self.masks))
        found = [0] * labels
        for mask, count in zip(self.masks, counts.tolist(), strict=True):
            for label in bit_positions(mask):
                found[label] += count
        return found

    def visited(self, platforms: int) -> list[int]:
        """Return how many events lie on each of so many platforms."""
        return [int(sum((part.platform == one).sum() for part in self.parts)) for one in range(platforms)]

    def _users_by_part(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield each part with its users, in the order their events lie there."""
        order = np.lexsort((self.where[:, 1], self.where[:, 0]))
        for number in range(len(self.parts)):
            yield number, order[self.where[order, 0] == number]


class Log(NamedTuple):
    """Everything a log says, as training and evaluation read it."""

    name: str
    taxonomy: Taxonomy
    platforms: tuple[str, ...]
    items: list[tuple[str, str]]
    """(platform, item id), the most used first."""
    texts: TextTable
    histories: Histories
    events: int
    """Events read, repeated ones included."""
    excluded: dict[str, int]
    """Why events were left out → how many; and what else is noteworthy of the source."""


def gather(  # noqa: PLR0913 - a log, and where to put it
    name: str,
    events: Iterable[Event],
    taxonomy: Taxonomy,
    *,
    folder: Path | None = None,
    expected: int = 0,
    by_content: bool = False,
    excluded: Callable[[], Mapping[str, int]] = dict,
) -> Log:
    """Read events in any order, each as often as it comes, and return them as people.

    In `folder`, which must be there and empty, for a log of any size; in memory without one. `expected`: about how many
    events come, which sets the number of shards. `by_content`: of a user's events on one item with one action, text and
    time only one counts, whatever their ids. `excluded` is asked after the last event.
    """
    names = _Names(taxonomy)
    shards = _Shards(folder, max(1, -(-expected // EVENTS_A_SHARD)))
    for record in names.records(events):
        shards.put(record)
    where = np.zeros((len(names.users), 3), np.int64)
    sink = _Sink(folder)
    ranks = names.ranks()
    conflicts = 0
    for number, (part, found) in enumerate(_finished(shards, ranks, where, by_content=by_content)):
        where[where[:, 0] == -1, 0] = number
        sink.put(part)
        conflicts += found
    order = sorted(range(len(names.users)), key=list(names.users).__getitem__)
    users = [UserId(user) for user in sorted(names.users)]
    where = where[order].reshape(-1, 3)
    repeated = names.events - int((where[:, 2] - where[:, 1]).sum())
    log = Log(
        name,
        taxonomy,
        tuple(sorted(names.platforms)),
        ranks.items,
        names.texts(ranks),
        Histories(users, where, sink.parts(), list(names.masks)),
        names.events,
        {REPEATED: repeated, CONFLICTS: conflicts, **excluded()},
    )
    if folder is not None:
        _write_about(log, folder)
        log = open_log(folder)
    return log


class _Ranks(NamedTuple):
    """First-met numbers → final ones, and what the final ones stand for."""

    platform: NDArray[np.int32]
    item: NDArray[np.int32]
    text: NDArray[np.int32]
    items: list[tuple[str, str]]
    texts: list[str]


class _Names:
    """Numbers users, platforms, items, texts and label sets as they are met."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.users: dict[str, int] = {}
        self.platforms: dict[str, int] = {}
        self.masks: dict[int, int] = {0: 0}
        self.events = 0
        self._taxonomy = taxonomy
        self._bit = {label: 1 << index for index, label in enumerate(taxonomy.ids())}
        self._items: dict[tuple[str, str], int] = {}
        self._item_uses: list[int] = []
        self._texts: dict[str, tuple[int, TextHash]] = {"": (0, hash_text(""))}
        self._text_uses: list[int] = [0]
        self._text_masks: list[int] = [0]
        self._named: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}

    def records(self, events: Iterable[Event]) -> Iterator[tuple[int, Row, int, int, int, int]]:
        """Yield (user, row, platform, item, text, named) of each event, in the order of `_RECORD`."""
        for event in events:
            self.events += 1
            item = event.object
            text, text_hash = self._text_of(item_text(item))
            mask = self._mask_of(item)
            self._text_uses[text] += 1
            self._text_masks[text] |= mask
            counted = 0 if event.action in NEGATIVE_ACTIONS else mask
            yield (
                self.users.setdefault(event.user_id, len(self.users)),
                row_of(event, text_hash),
                self.platforms.setdefault(event.platform, len(self.platforms)),
                self._item_of(event.platform, item.id),
                text,
                self.masks.setdefault(counted, len(self.masks)),
            )

    def _text_of(self, text: str) -> tuple[int, TextHash]:
        found = self._texts.get(text)
        if found is None:
            found = self._texts[text] = (len(self._texts), hash_text(text))
            self._text_uses.append(0)
            self._text_masks.append(0)
        return found

    def _item_of(self, platform: str, item_id: str) -> int:
        number = self._items.setdefault((platform, item_id), len(self._items))
        if number == len(self._item_uses):
            self._item_uses.append(0)
        self._item_uses[number] += 1
        return number

    def _mask_of(self, item: Object) -> int:
        key = (item.iab, item.categories)
        mask = self._named.get(key)
        if mask is None:
            mask = 0
            for label in self._taxonomy.label_ids(iab=item.iab, categories=item.categories):
                mask |= self._bit[label]
            self._named[key] = mask
        return mask

    def ranks(self) -> _Ranks:
        """Return the final order: platforms by name, items and texts the most used first."""
        items = sorted(self._items, key=lambda key: (-self._item_uses[self._items[key]], key))
        texts = sorted(self._texts, key=lambda text: (-self._text_uses[self._texts[text][0]], text))
        texts.remove("")
        return _Ranks(
            _rank([self.platforms[one] for one in sorted(self.platforms)]),
            _rank([self._items[one] for one in items]),
            _rank([0, *(self._texts[one][0] for one in texts)]),
            items,
            texts,
        )

    def texts(self, ranks: _Ranks) -> TextTable:
        """Return the table of the texts met."""
        numbers = [self._texts[text] for text in ranks.texts]
        return TextTable.known(
            [text_hash for _, text_hash in numbers],
            ranks.texts,
            [self._text_masks[number] for number, _ in numbers],
            labels=len(self._taxonomy),
        )


def _rank(order: Sequence[int]) -> NDArray[np.int32]:
    """Return number → position for numbers in their final order."""
    found = np.zeros(len(order), np.int32)
    found[list(order)] = np.arange(len(order))
    return found


class _Shards:
    """Records by user, in files that are only ever appended to, or in memory."""

    def __init__(self, folder: Path | None, count: int) -> None:
        self._folder = folder / _SHARD_FOLDER if folder else None
        self._count = count if folder else 1
        self._waiting: list[tuple[int, Row, int, int, int, int]] = []
        self._held: list[NDArray[Any]] = []
        if self._folder:
            self._folder.mkdir()

    def put(self, record: tuple[int, Row, int, int, int, int]) -> None:
        self._waiting.append(record)
        if len(self._waiting) == _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        records = np.array(self._waiting, _RECORD)
        self._waiting.clear()
        if self._folder is None:
            self._held.append(records)
            return
        shard = records["user"] % self._count
        records = records[np.argsort(shard, kind="stable")]
        ends = np.cumsum(np.bincount(shard, minlength=self._count))
        for number, part in enumerate(np.split(records, ends[:-1])):
            if len(part):
                with (self._folder / f"{number}.bin").open("ab") as file:
                    file.write(part.tobytes())

    def take(self) -> Iterator[NDArray[Any]]:
        """Yield each shard's records in order of arrival, and let go of them."""
        self._flush()
        if self._folder is None:
            yield np.concatenate(self._held)
            self._held.clear()
            return
        for number in range(self._count):
            path = self._folder / f"{number}.bin"
            if path.is_file():
                yield np.fromfile(path, _RECORD)
                path.unlink()
        self._folder.rmdir()


def _finished(
    shards: _Shards, ranks: _Ranks, where: NDArray[np.int64], *, by_content: bool
) -> Iterator[tuple[Part, int]]:
    """Yield each shard sorted by user and row, distinct, with final numbers, and how many of its event ids conflict.

    Users' places go into `where` as part -1.

    Of two records with one row the later counts, as the last of two equal keys does in a dictionary.
    """
    for arrived in shards.take():
        if not len(arrived):
            continue
        ordered = arrived[np.lexsort((arrived["row"], arrived["user"]))]  # stable: arrival order within equal rows
        same = (ordered["user"][1:] == ordered["user"][:-1]) & (ordered["row"][1:] == ordered["row"][:-1])
        distinct = ordered[np.append(~same, True)]
        records = distinct[_first_of_content(distinct)] if by_content else distinct
        users, starts = np.unique(records["user"], return_index=True)
        where[users, 0] = -1
        where[users, 1] = starts
        where[users, 2] = np.append(starts[1:], len(records))
        rows = np.frombuffer(records["row"].tobytes(), np.uint8).reshape(-1, ROW_BYTES)
        part = Part(
            rows,
            ranks.platform[records["platform"]],
            ranks.item[records["item"]],
            ranks.text[records["text"]],
            _times(rows),
            records["named"].astype(np.int32),
        )
        ids = np.rec.fromarrays(
            [records["user"], np.ascontiguousarray(rows[:, _EVENT_ID]).view(f"<i{DIGEST_BYTES}")[:, 0]]
        )
        yield part, len(ids) - len(np.unique(ids))


def _times(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the event times of rows `(events, ROW_BYTES)` in milliseconds."""
    whole = np.pad(rows[:, :TIME_BYTES], ((0, 0), (8 - TIME_BYTES, 0)))
    return whole.view(">i8")[:, 0].astype(np.int64)


def _first_of_content(records: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which records (sorted by user and row) are the first with their user, item, text, action and time."""
    raw = np.frombuffer(records["row"].tobytes(), np.uint8).reshape(-1, ROW_BYTES)
    content = (raw[:, -1], records["text"], records["item"], _times(raw), records["user"])  # an item is of one platform
    order = np.lexsort(content)  # stable
    again = np.all([column[order][1:] == column[order][:-1] for column in content], axis=0)
    first = np.ones(len(records), bool)
    first[order[1:][again]] = False
    return first


_SCHEMA: Final = pa.schema(
    [
        ("row", pa.binary(ROW_BYTES)),
        ("platform", pa.int32()),
        ("item", pa.int32()),
        ("text", pa.int32()),
        ("time", pa.int64()),
        ("named", pa.int32()),
    ]
)


class _Sink:
    """Finished parts: in memory, or appended to the Arrow file."""

    def __init__(self, folder: Path | None) -> None:
        self._parts: list[Part] = []
        self._writer = pa.ipc.new_file(str(folder / _EVENTS), _SCHEMA) if folder else None

    def put(self, part: Part) -> None:
        if self._writer is None:
            self._parts.append(part)
            return
        rows = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(ROW_BYTES), len(part.rows), [None, pa.py_buffer(part.rows.tobytes())]
        )
        self._writer.write_batch(pa.record_batch([rows, *map(pa.array, part[1:])], schema=_SCHEMA))

    def parts(self) -> list[Part]:
        """Return what is in memory; the file is read by `open_log`."""
        if self._writer is not None:
            self._writer.close()
        return self._parts


class _About(msgspec.Struct):
    """What `log.json` holds beside the Arrow files. Label sets are hexadecimal: they may have more than 64 labels."""

    name: str
    taxonomy: Taxonomy
    platforms: tuple[str, ...]
    masks: list[str]
    events: int
    excluded: dict[str, int]


def _write_about(log: Log, folder: Path) -> None:
    histories = log.histories
    _write_table(
        folder / _USERS,
        {
            "user_id": pa.array(histories.users, pa.string()),
            **{name: pa.array(histories.where[:, place]) for place, name in enumerate(("part", "start", "stop"))},
        },
    )
    _write_table(folder / _TEXTS, {"text": pa.array(log.texts.texts, pa.large_string())})
    platforms, items = [one[0] for one in log.items], [one[1] for one in log.items]
    _write_table(folder / _ITEMS, {"platform": pa.array(platforms, pa.string()), "item": pa.array(items, pa.string())})
    np.save(folder / _OWN, log.texts.own)
    masks = [f"{mask:x}" for mask in histories.masks]
    about = _About(log.name, log.taxonomy, log.platforms, masks, log.events, log.excluded)
    (folder / _ABOUT).write_bytes(msgspec.json.encode(about))


def open_log(folder: Path) -> Log:
    """Return a log that `gather` wrote; its events stay on disk and are mapped."""
    about = msgspec.json.decode((folder / _ABOUT).read_bytes(), type=_About)
    users = _read_table(folder / _USERS)
    where = np.stack([users[name].to_numpy() for name in ("part", "start", "stop")], axis=1).reshape(-1, 3)
    texts = _read_table(folder / _TEXTS)["text"].to_pylist()
    items = _read_table(folder / _ITEMS)
    table = TextTable.of_own([hash_text(text) for text in texts], texts, np.load(folder / _OWN))
    source = pa.ipc.open_file(pa.memory_map(str(folder / _EVENTS)))
    parts = [_mapped(source.get_batch(number)) for number in range(source.num_record_batches)]
    histories = Histories(users["user_id"].to_pylist(), where, parts, [int(mask, 16) for mask in about.masks])
    pairs = list(zip(items["platform"].to_pylist(), items["item"].to_pylist(), strict=True))
    return Log(about.name, about.taxonomy, about.platforms, pairs, table, histories, about.events, about.excluded)


def _mapped(batch: Any) -> Part:
    rows = np.frombuffer(batch.column(0).buffers()[1], np.uint8, count=batch.num_rows * ROW_BYTES)
    columns = [batch.column(number).to_numpy(zero_copy_only=True) for number in range(1, batch.num_columns)]
    return Part(rows.reshape(-1, ROW_BYTES), *columns)


def _write_table(path: Path, columns: Mapping[str, Any]) -> None:
    table = pa.table(dict(columns))
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def _read_table(path: Path) -> Any:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
