"""Replay: a recorded log comes out in time order, each line as the event it says, or the bad line is named."""

from __future__ import annotations

import gzip
import threading
from typing import TYPE_CHECKING

import pytest

from xplat_stream import replay as module
from xplat_stream.adapters import decode_event, encode_event
from xplat_stream.errors import DataError
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.replay import Written, read_recording, replay, write_recording
from xplat_stream.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

EVENTS = """user\tplatform\titem\tts
ann\tfood\tf1\t2000
bob\tbooks\tb1\t1000
ann\tbooks\tb1\t2000
ann\tfood\tunknown\t1500
"""
ITEMS = """item\tplatform\ttitle\tcategories
f1\tfood\tGreen tea\tGrocery|Beverages|Tea
b1\tbooks\t\t
b1\tfood\tBread\tGrocery
"""


def recording(folder: Path, events: str = EVENTS, items: str = ITEMS, *, gzipped: bool = True) -> Path:
    """Write a recording."""
    path = folder / "rec"
    path.mkdir()
    for stem, text in (("events", events), ("items", items)):
        if gzipped:
            (path / f"{stem}.tsv.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (path / f"{stem}.tsv").write_bytes(text.encode())
    return path


@pytest.mark.parametrize("gzipped", [True, False], ids=["gzip", "plain"])
def test_events_come_in_time_order(tmp_path: Path, *, gzipped: bool) -> None:
    """Sorted by time, then by place in the file, each with the words of its item on its platform."""
    found = read_recording(recording(tmp_path, gzipped=gzipped))
    assert [(e.event_id, e.user_id, e.platform, e.action, e.object, e.occurred_at) for e in found.events()] == [
        ("//replay/rec#2", "bob", "books", "rate", Object("b1", "product"), 1_000_000),
        ("//replay/rec#4", "ann", "food", "rate", Object("unknown", "product"), 1_500_000),
        (
            "//replay/rec#1",
            "ann",
            "food",
            "rate",
            Object("f1", "product", "Green tea", categories=("Grocery > Beverages > Tea",)),
            2_000_000,
        ),
        ("//replay/rec#3", "ann", "books", "rate", Object("b1", "product"), 2_000_000),
    ]
    assert found.platforms == ("books", "food")


def test_recorded_events_survive_publication(tmp_path: Path) -> None:
    """What is published is read back as the same event."""
    for event in read_recording(recording(tmp_path)).events():
        assert decode_event(encode_event(event)) == event


def test_optional_columns_are_read_wherever_they_stand(tmp_path: Path) -> None:
    """Actions and tags come from their columns, in any order of columns; an empty action is the default."""
    events = "ts\taction\tuser\titem\tplatform\n1.5\tpurchase\tann\tf1\tfood\n2\t\tann\tf1\tfood\n"
    items = "tags\tplatform\tcategories\ttitle\titem\nhot, green ,\tfood\tA||B\tTea\tf1\n"
    first, second = read_recording(recording(tmp_path, events, items)).events()
    assert (first.action, first.occurred_at, second.action) == ("purchase", 1500, "rate")
    assert first.object == Object("f1", "product", "Tea", categories=("A > B",), tags=("hot", "green"))


def test_windows_line_ends_and_a_missing_last_one(tmp_path: Path) -> None:
    """A file edited on another system reads the same."""
    events = EVENTS.replace("\n", "\r\n").rstrip("\r\n")
    assert len(read_recording(recording(tmp_path, events, ITEMS.replace("\n", "\r\n"))).lines) == 4


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        pytest.param({}, [2, 4, 1, 3], id="all"),
        pytest.param({"limit": 2}, [2, 4], id="limit-in-time-order"),
        pytest.param({"platforms": ["food"]}, [4, 1], id="platform"),
        pytest.param({"platforms": ["food"], "limit": 1}, [4], id="both"),
        pytest.param({"limit": 99}, [2, 4, 1, 3], id="limit-past-the-end"),
    ],
)
def test_what_is_chosen(tmp_path: Path, options: dict[str, object], rows: list[int]) -> None:
    """Platforms are chosen first, the limit counts what is left; row numbers stay those of the file."""
    found = read_recording(recording(tmp_path), **options)  # type: ignore[arg-type]
    assert [line.row for line in found.lines] == rows


HEAD = "user\tplatform\titem\tts\n"
ACTED = "user\tplatform\titem\tts\taction\n"


@pytest.mark.parametrize(
    ("events", "items", "where", "told"),
    [
        pytest.param("", ITEMS, "events.tsv.gz, line 1", "missing column user", id="empty-events"),
        pytest.param("user\tplatform\tts\n", ITEMS, "events.tsv.gz, line 1", "missing column item", id="no-items"),
        pytest.param("user,platform,item,ts\n", ITEMS, "events.tsv.gz, line 1", "missing column user", id="commas"),
        pytest.param(EVENTS, "item\tplatform\ttitle\n", "items.tsv.gz, line 1", "categories", id="no-categories"),
        pytest.param(EVENTS + "ann\tfood\n", ITEMS, "events.tsv.gz, line 6", "2 cells", id="short-line"),
        pytest.param(EVENTS + "\n", ITEMS, "events.tsv.gz, line 6", "1 cells", id="blank-line"),
        pytest.param(EVENTS, ITEMS + "x\ty\tz\t\t\n", "items.tsv.gz, line 5", "5 cells", id="long-line"),
        pytest.param(HEAD + "a\tfood\tf\tsoon\n", ITEMS, "events.tsv.gz, line 2", "ts 'soon'", id="ts-word"),
        pytest.param(HEAD + "a\tfood\tf\t-1\n", ITEMS, "events.tsv.gz, line 2", "ts '-1'", id="ts-negative"),
        pytest.param(HEAD + "a\tfood\tf\tnan\n", ITEMS, "events.tsv.gz, line 2", "ts 'nan'", id="ts-nan"),
        pytest.param(HEAD + "a\tfood\tf\t1767225600000\n", ITEMS, "events.tsv.gz, line 2", "ts '17", id="ts-in-millis"),
        pytest.param(HEAD + "a\tfood\tf\t\n", ITEMS, "events.tsv.gz, line 2", "ts ''", id="ts-empty"),
        pytest.param(HEAD + "\tfood\tf\t1\n", ITEMS, "events.tsv.gz, line 2", "user has 0", id="no-user"),
        pytest.param(HEAD + "a\tfood\t\t1\n", ITEMS, "events.tsv.gz, line 2", "item has 0", id="no-item"),
        pytest.param(HEAD + "a\tMy Food\tf\t1\n", ITEMS, "events.tsv.gz, line 2", "'My Food'", id="platform-name"),
        pytest.param(HEAD + "a\trejected\tf\t1\n", ITEMS, "events.tsv.gz, line 2", "'rejected'", id="reserved"),
        pytest.param(ACTED + "a\tfood\tf\t1\tteleport\n", ITEMS, "events.tsv.gz, line 2", "'teleport'", id="action"),
        pytest.param(EVENTS, ITEMS + "\tfood\t\t\n", "items.tsv.gz, line 5", "item has 0", id="item-without-id"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, events: str, items: str, where: str, told: str) -> None:
    """The error names file and line, what is there and what was expected."""
    with pytest.raises(DataError) as caught:
        read_recording(recording(tmp_path, events, items))
    assert caught.value.where.endswith(where)
    assert told in caught.value.what
    assert caught.value.expected
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "raw", "told"),
    [
        pytest.param("events.tsv.gz", EVENTS.encode(), "not a whole gzip file", id="not-gzip"),
        pytest.param("events.tsv.gz", gzip.compress(EVENTS.encode())[:-9], "not a whole gzip file", id="cut"),
        pytest.param("items.tsv.gz", gzip.compress(ITEMS.encode() + b"\xff\n"), "not UTF-8", id="bytes"),
        pytest.param("items.tsv.gz", b"", "missing column", id="empty"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, raw: bytes, told: str) -> None:
    """A download cut short or a file of another kind is told as such."""
    path = recording(tmp_path)
    (path / name).write_bytes(raw)
    with pytest.raises(DataError, match=told) as caught:
        read_recording(path)
    assert name in caught.value.where


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    """The error says which path is missing and what should be in it."""
    with pytest.raises(DataError, match=r"nowhere.*events\.tsv\.gz and items\.tsv\.gz"):
        read_recording(tmp_path / "nowhere")
    path = recording(tmp_path)
    (path / "items.tsv.gz").unlink()
    with pytest.raises(DataError, match=r"no items file.*items\.tsv\.gz or items\.tsv"):
        read_recording(path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """People, platforms, actions, times to the millisecond, titles, category paths and tags survive."""
    tea = Object("f1", "product", "Green tea", "", ("Grocery > Tea",), (), ("green", "leaf"))
    events = [
        Event("//a#2", UserId("ünna b"), "food", "like", tea, Millis(2_001)),
        Event("//a#1", UserId("bob"), "video", "play", Object("v1", "video"), Millis(1_500)),
    ]
    assert write_recording(tmp_path / "new" / "rec", events) == Written(2, 2, ("food", "video"))
    found = list(read_recording(tmp_path / "new" / "rec").events())
    assert [(e.user_id, e.platform, e.action, e.occurred_at) for e in found] == [
        ("bob", "video", "play", 1_500),
        ("ünna b", "food", "like", 2_001),
    ]
    assert found[1].object == tea


def test_words_are_one_line_and_ids_must_be(tmp_path: Path) -> None:
    """A tab in a title becomes a space; an id that has one is refused, and which."""
    titled = Event("//a#1", UserId("ann"), "food", "like", Object("f1", "product", "Green\n\ttea"), Millis(1))
    write_recording(tmp_path, [titled])
    assert next(read_recording(tmp_path).events()).object.title == "Green tea"
    with pytest.raises(DataError, match="//a#2"):
        write_recording(tmp_path, [Event("//a#2", UserId("a\tb"), "food", "like", titled.object, Millis(1))])


def test_a_platform_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A mistyped platform does not replay nothing in silence."""
    with pytest.raises(DataError, match=r"no event of fod.*--platforms"):
        read_recording(recording(tmp_path), platforms=["food", "fod"])


class RecordingProducer:
    """What would have gone to Kafka, in the place of `EventProducer`."""

    sent: list[Event]

    def __init__(self, _: Settings) -> None:
        self.delivered = 0
        RecordingProducer.sent = []

    def send(self, event: Event) -> None:
        self.sent.append(event)

    def flush(self) -> None:
        self.delivered = len(self.sent)


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Put a recording in the place of Kafka; return the platforms whose topics were asked for."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(module, "EventProducer", RecordingProducer)
    monkeypatch.setattr(module, "create_topics", lambda _, platforms: asked.append(platforms))
    return asked


class Waits(threading.Event):
    """A stop sign on whose `wait` made-up time passes; it remembers when."""

    def __init__(self, stop_after: int = 99) -> None:
        super().__init__()
        self.now_s, self.waits, self._stop_after = 0.0, [0.0][:0], stop_after

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        self.now_s += timeout or 0.0
        if len(self.waits) > self._stop_after:
            self.set()
        return self.is_set()


def test_a_replay_publishes_and_counts(tmp_path: Path, created: list[tuple[str, ...]]) -> None:
    """Topics of the platforms found are made, every event is sent in order, and the counts add up."""
    result = replay(Settings(), recording(tmp_path))
    assert created == [("books", "food")]
    assert (result.sent, result.delivered, result.platforms) == (4, 4, {"books": 2, "food": 2})
    assert (result.first_ms, result.last_ms) == (1_000_000, 2_000_000)
    assert [event.event_id for event in RecordingProducer.sent] == [f"//replay/rec#{row}" for row in (2, 4, 1, 3)]


@pytest.mark.usefixtures("created")
def test_speed_is_a_multiple_of_real_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a hundred times real time, five hundred seconds of the recording take five."""
    stop = Waits()
    monkeypatch.setattr("xplat_stream.replay.time.monotonic", lambda: stop.now_s)
    replay(Settings(), recording(tmp_path), speed=100, stop=stop)
    assert stop.waits == pytest.approx([0, 5, 5, 0])


@pytest.mark.usefixtures("created")
def test_another_thread_can_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop sign set while waiting ends the replay; what was sent is flushed and counted."""
    stop = Waits(stop_after=2)
    monkeypatch.setattr("xplat_stream.replay.time.monotonic", lambda: stop.now_s)
    result = replay(Settings(), recording(tmp_path), speed=100, stop=stop)
    assert (result.sent, result.delivered, result.last_ms) == (2, 2, 1_500_000)


def test_nothing_is_published_of_a_bad_recording(tmp_path: Path, created: list[tuple[str, ...]]) -> None:
    """A bad last line stops the replay before the first event and before any topic is made."""
    with pytest.raises(DataError):
        replay(Settings(), recording(tmp_path, EVENTS + "broken\n"))
    assert created == []


@pytest.mark.usefixtures("created")
def test_an_empty_recording(tmp_path: Path) -> None:
    """A recording without events replays nothing."""
    result = replay(Settings(), recording(tmp_path, HEAD))
    assert (result.sent, result.platforms, result.first_ms, result.last_ms) == (0, {}, 0, 0)
