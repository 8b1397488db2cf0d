"""What `xplat replay` publishes: a recorded log of people and items, in time order, at any speed.

A recording is a folder with ``events.tsv`` (user, platform, item, ts in Unix seconds, optionally action) and
``items.tsv`` (item, platform, title, categories as ``coarse|fine``, optionally tags as ``a,b``), each plain or gzipped,
tab-separated, with a header line. It is read whole before anything is published, so that a bad line in the middle
does not leave half a recording in Kafka.
"""

from __future__ import annotations

import gzip
import math
import threading
import time
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import msgspec

from xplat_stream.errors import DataError
from xplat_stream.event import ACTION_INDEX, MAX_ID_CHARS, Event, Millis, Object, UserId
from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.topics import behavior_topic, create_topics, platform_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from xplat_stream.settings import Settings

DEFAULT_ACTION: Final = "rate"
_EVENT_COLUMNS: Final = ("user", "platform", "item", "ts")
_ITEM_COLUMNS: Final = ("item", "platform", "title", "categories")
_MAX_SECONDS: Final = 253_402_300_800  # the year 10000, past which no calendar goes
_PROGRESS_EVERY: Final = 1000
_FIX: Final = "Correct the recording; `xplat_stream/replay.py` describes its format."


class RecordedEvent(NamedTuple):
    """One line of ``events.tsv``. Sorts by time, then by its place in the file (`row`, from 1)."""

    occurred_at: Millis
    row: int
    user: str
    platform: str
    item: str
    action: str


class Recording:
    """A recorded log held in memory: its events in time order and the items they are about."""

    def __init__(self, name: str, lines: list[RecordedEvent], items: dict[tuple[str, str], Object]) -> None:
        self.name = name
        self.lines = lines
        self.items = items

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms that events happened on, sorted."""
        return tuple(sorted({line.platform for line in self.lines}))

    def events(self) -> Iterator[Event]:
        """Yield the events in time order. An item nobody described is an event all the same, with its id alone."""
        for line in self.lines:
            yield event_of(self.name, self.items, line)


class RecordedFolder(NamedTuple):
    """A recorded log on disk: its items in memory, its events read from their file each time they are asked for."""

    name: str
    files: tuple[Path, Path]
    """Where the events are, and the items."""
    items: dict[tuple[str, str], Object]
    described_again: int
    """Lines about an item that an earlier line is about already: the last one counts."""

    def lines(self) -> Iterator[RecordedEvent]:
        """Yield the lines in the order of the file. Raises `DataError` naming the file and the line."""
        return _read_events(self.files[0])

    def event_of(self, line: RecordedEvent) -> Event:
        """Return the event that `xplat replay` publishes for a line."""
        return event_of(self.name, self.items, line)


def event_of(name: str, items: Mapping[tuple[str, str], Object], line: RecordedEvent) -> Event:
    """Return the event of a line. An item nobody described is an event all the same, with its id alone."""
    item = items.get((line.platform, line.item)) or Object(line.item, "product")
    return Event(f"//replay/{name}#{line.row}", UserId(line.user), line.platform, line.action, item, line.occurred_at)


class Replayed(msgspec.Struct, frozen=True):
    """What a replay published, by platform; `first_ms` and `last_ms` are event times, 0 when nothing was sent."""

    sent: int
    delivered: int
    platforms: dict[str, int]
    first_ms: int
    last_ms: int


def read_recording(folder: Path, *, platforms: Collection[str] = (), limit: int = 0) -> Recording:
    """Read a recording: the first `limit` events (0 = all) in time order, of `platforms` or of all.

    Raises `DataError` naming the file and the line.
    """
    path, _ = recording_files(folder)
    lines = [line for line in _read_events(path) if not platforms or line.platform in platforms]
    absent = sorted(set(platforms) - {line.platform for line in lines})
    if absent:
        _fail(f"no event of {', '.join(absent)}", path, "a platform of the recording", "Correct --platforms.")
    lines.sort()
    if limit > 0:
        del lines[limit:]
    return Recording(folder.resolve().name, lines, dict(_read_items(_file(folder, "items"))))


class Written(msgspec.Struct, frozen=True):
    """What `write_recording` wrote."""

    events: int
    items: int
    platforms: tuple[str, ...]


def write_recording(folder: Path, events: Iterable[Event]) -> Written:
    """Write events, in any order, as a recording; what an item is called last counts.

    The format has no room for everything: of an item it keeps title, first category path and tags, and tabs and line
    breaks in words become spaces. Raises `DataError` where an id has one, or the folder cannot be written.
    """
    lines: list[tuple[Millis, str]] = []
    items: dict[tuple[str, str], Object] = {}
    for event in events:
        cells = (event.user_id, event.platform, event.object.id, f"{event.occurred_at / 1000:.3f}", event.action)
        if set("\t\r\n").intersection("".join(cells)):
            _fail(
                f"event {event.event_id!r}: an id has a tab or a line break", folder, "ids on one line", "Leave it out."
            )
        lines.append((event.occurred_at, _row(cells)))
        items[event.platform, event.object.id] = event.object
    lines.sort(key=lambda line: line[0])
    described = (
        _row(
            (item.id, platform, *(" ".join(words.split()) for words in (item.title, _path(item), ",".join(item.tags))))
        )
        for (platform, _), item in sorted(items.items())
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, header, rows in (
            ("events", (*_EVENT_COLUMNS, "action"), (line for _, line in lines)),
            ("items", (*_ITEM_COLUMNS, "tags"), described),
        ):
            with gzip.open(folder / f"{name}.tsv.gz", "wt", encoding="utf-8", newline="\n") as file:
                file.write(_row(header))
                file.writelines(rows)
    except OSError as error:
        _fail(f"cannot be written: {error.strerror}", folder, "a folder to write to", "Name another folder.")
    return Written(len(lines), len(items), tuple(sorted({platform for platform, _ in items})))


def _path(item: Object) -> str:
    first = next(iter(item.categories), "")
    return "|".join(part.strip() for part in first.split(">"))


def _row(cells: Iterable[str]) -> str:
    return "\t".join(cells) + "\n"


def recording_files(folder: Path) -> tuple[Path, Path]:
    """Return where a recording's events are, and its items. Raises `DataError`."""
    if not folder.is_dir():
        _fail("the recording is not a folder", folder, "a folder with events.tsv.gz and items.tsv.gz")
    return _file(folder, "events"), _file(folder, "items")


def open_recording(folder: Path) -> RecordedFolder:
    """Read a recording's items, and leave its events on disk. Raises `DataError` naming the file and the line."""
    files = recording_files(folder)
    items: dict[tuple[str, str], Object] = {}
    lines = 0
    for key, item in _read_items(files[1]):
        lines += 1
        items[key] = item
    return RecordedFolder(folder.resolve().name, files, items, lines - len(items))


def replay(  # noqa: PLR0913 - each is an option of `xplat replay`
    settings: Settings,
    folder: Path,
    *,
    speed: float = 0.0,
    limit: int = 0,
    platforms: Collection[str] = (),
    on_sent: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> Replayed:
    """Publish a recording in time order: at `speed` times the pace it was recorded at, 0 as fast as Kafka takes it.

    Missing topics are created. Another thread may set `stop`, and Ctrl-C ends it too; what was sent is still flushed.
    Raises `DataError`, `KafkaUnavailable`, `TopicMismatch`, `DeliveryError`.
    """
    recording = read_recording(folder, platforms=platforms, limit=limit)
    create_topics(settings, recording.platforms)
    stop = stop or threading.Event()
    counts = dict.fromkeys(recording.platforms, 0)
    sent, first_ms, last_ms = 0, recording.lines[0].occurred_at if recording.lines else 0, 0
    begun = time.monotonic()
    producer = EventProducer(settings)
    try:
        for event in recording.events():
            if speed > 0:
                due = (event.occurred_at - first_ms) / 1000 / speed
                stop.wait(max(0.0, begun + due - time.monotonic()))
            if stop.is_set():
                break
            producer.send(event)
            sent += 1
            counts[event.platform] += 1
            last_ms = event.occurred_at
            if on_sent is not None and sent % _PROGRESS_EVERY == 0:
                on_sent(sent)
    except KeyboardInterrupt:
        stop.set()
    finally:
        producer.flush()
    return Replayed(sent, producer.delivered, counts, first_ms if sent else 0, last_ms)


def _read_events(path: Path) -> Iterator[RecordedEvent]:
    known: set[str] = set()
    for number, (user, platform, item, ts, action) in _rows(path, _EVENT_COLUMNS, "action"):
        if platform not in known:
            if platform_of(behavior_topic(platform)) != platform:
                _fail(f"platform {platform!r} cannot name a topic", path, "a-z, 0-9, _ and -, at most 64", line=number)
            known.add(platform)
        for column, value in (("user", user), ("item", item)):
            if not 1 <= len(value) <= MAX_ID_CHARS:
                _fail(f"{column} has {len(value)} characters", path, f"1 to {MAX_ID_CHARS}", line=number)
        chosen = action or DEFAULT_ACTION
        if chosen not in ACTION_INDEX:
            _fail(f"action {chosen!r} is unknown", path, f"one of {', '.join(ACTION_INDEX)}", line=number)
        try:
            seconds = float(ts)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < _MAX_SECONDS:
            _fail(f"ts {ts!r} is not a time", path, "Unix seconds, 0 or more", line=number)
        yield RecordedEvent(Millis(round(seconds * 1000)), number - 1, user, platform, item, chosen)


def _read_items(path: Path) -> Iterator[tuple[tuple[str, str], Object]]:
    for number, (item, platform, title, categories, tags) in _rows(path, _ITEM_COLUMNS, "tags"):
        if not 1 <= len(item) <= MAX_ID_CHARS:
            _fail(f"item has {len(item)} characters", path, f"1 to {MAX_ID_CHARS}", line=number)
        route = " > ".join(part.strip() for part in categories.split("|") if part.strip())
        flat = tuple(tag.strip() for tag in tags.split(",") if tag.strip())
        yield (platform, item), Object(item, "product", title, "", (route,) if route else (), (), flat)


def _rows(path: Path, columns: tuple[str, ...], optional: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, cells in the order of `columns` and `optional`), whatever order the file has."""
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="\n") as file:
            header = file.readline().rstrip("\r\n").split("\t")
            missing = [column for column in columns if column not in header]
            if missing:
                expected = f"the columns {', '.join(columns)} and optionally {optional}, separated by tabs"
                _fail(f"missing column {', '.join(missing)}", path, expected, line=1)
            places = [header.index(column) for column in columns]
            extra = header.index(optional) if optional in header else None
            for number, line in enumerate(file, 2):
                cells = line.rstrip("\r\n").split("\t")
                if len(cells) != len(header):
                    _fail(f"{len(cells)} cells", path, f"{len(header)}, as the header has", line=number)
                yield number, [*(cells[place] for place in places), "" if extra is None else cells[extra]]
    except UnicodeDecodeError as error:
        _fail(f"not UTF-8: {error.reason}", path, "UTF-8 text", line=number + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        _fail(f"not a whole gzip file: {error}", path, "gzip, or the plain file named without .gz", line=number + 1)
    except OSError as error:
        _fail(f"cannot be read: {error.strerror}", path, "a readable file")


def _file(folder: Path, stem: str) -> Path:
    for name in (f"{stem}.tsv.gz", f"{stem}.tsv"):
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"no {stem} file",
        where=str(folder),
        expected=f"{stem}.tsv.gz or {stem}.tsv",
        fix="Name a folder in the recording format.",
    )


def _fail(what: str, path: Path, expected: str, fix: str = _FIX, *, line: int = 0) -> NoReturn:
    raise DataError(what, where=f"{path}, line {line}" if line else str(path), expected=expected, fix=fix)
