"""What Hypothesis draws: small alphabets on purpose, so that collisions, ties and repeats happen in most examples."""

from __future__ import annotations

from datetime import timedelta
from functools import reduce

from hypothesis import strategies as st

from xplat_stream.event import ACTIONS, OBJECT_TYPES, Event, Millis, Object, UserId
from xplat_stream.state import Publication, TextEntry
from xplat_stream.taxonomy import Label, Taxonomy
from xplat_stream.window import BehaviorWindow, Row, WindowSpec, row_of

PLATFORMS = ("shop", "social", "video")
BASE_MS = 1_750_000_000_000
HOUR_MS = 3_600_000

TEXTS = ("", "running shoes", "coffee", "a film about Paris", "ünïcödé ☕")


def specs() -> st.SearchStrategy[WindowSpec]:
    """Draw small windows: truncation by count and by age both happen."""
    return st.builds(
        WindowSpec,
        per_platform=st.integers(1, 6),
        horizon=st.sampled_from([timedelta(milliseconds=1), timedelta(hours=3), timedelta(days=2), timedelta(days=90)]),
    )


def objects() -> st.SearchStrategy[Object]:
    """Draw objects of every type, with and without words."""
    words = st.lists(st.sampled_from(["Sports", "Sports > Running", "Food", "日本"]), max_size=2).map(tuple)
    return st.builds(
        Object,
        id=st.text(min_size=1, max_size=8),
        type=st.sampled_from(OBJECT_TYPES),
        title=st.sampled_from(TEXTS) | st.text(max_size=20),
        text=st.sampled_from(TEXTS),
        categories=words,
        iab=st.lists(st.sampled_from(["483", "596"]), max_size=2).map(tuple),
        tags=words,
    )


def any_events() -> st.SearchStrategy[Event]:
    """Draw any event that can be published: any Unicode, any time from 1970 to 2200."""
    name = st.text(min_size=1, max_size=12).filter(lambda text: "#" not in text)
    return st.builds(
        Event,
        event_id=st.builds("{}#{}".format, name, name),
        user_id=st.text(min_size=1, max_size=12).map(UserId),
        platform=st.sampled_from(PLATFORMS) | st.text(min_size=1, max_size=8),
        action=st.sampled_from(ACTIONS),
        object=objects(),
        occurred_at=st.integers(0, 7_258_118_400_000).map(Millis),
    )


def events(user_id: str = "u") -> st.SearchStrategy[Event]:
    """Draw events of one user within days of each other, with few ids and few times: repeats, ties and conflicts."""
    return st.builds(
        Event,
        event_id=st.integers(0, 30).map("//t#{}".format),
        user_id=st.just(UserId(user_id)),
        platform=st.sampled_from(PLATFORMS),
        action=st.sampled_from(ACTIONS),
        object=st.builds(Object, id=st.sampled_from(["a", "b"]), type=st.just("product"), title=st.sampled_from(TEXTS)),
        occurred_at=st.one_of(
            st.integers(0, 5).map(lambda step: Millis(BASE_MS + step)),
            st.integers(0, 100).map(lambda hours: Millis(BASE_MS + hours * HOUR_MS)),
            st.integers(0, 40).map(Millis),
        ),
    )


def rows() -> st.SearchStrategy[tuple[str, Row]]:
    """Draw what a window is folded from."""
    return events().map(lambda event: (event.platform, row_of(event)))


def event_streams(max_size: int = 40) -> st.SearchStrategy[list[tuple[str, Row]]]:
    """Draw a user's rows in order of arrival."""
    return st.lists(rows(), max_size=max_size)


def windows(spec: WindowSpec) -> st.SearchStrategy[BehaviorWindow]:
    """Draw windows of one spec."""
    return event_streams(20).map(lambda stream: BehaviorWindow(spec).fold(stream))


def publications() -> st.SearchStrategy[Publication]:
    """Draw publication states with few revisions, so that two often share one."""
    return st.builds(
        Publication,
        revision=st.integers(0, 3) | st.integers(0, 2**64 - 1),
        release=st.integers(0, 2) | st.integers(0, 2**32 - 1),
        scores=st.lists(st.integers(0, 0xFFFF), max_size=4).map(tuple),
        pending=st.booleans(),
        scored_revision=st.just(0),
    )


def text_entries() -> st.SearchStrategy[TextEntry]:
    """Draw entries of one text by several encoders and several platforms, with up to three vectors."""
    one = st.builds(
        TextEntry,
        text=st.just("a text"),
        labels=st.sampled_from([(), ("483",), ("483", "596")]),
        encoder=st.integers(0, 4),
        vector=st.sampled_from([b"", b"\x00\x3c", b"\x00\xbc"]),
    )
    return st.lists(one, min_size=1, max_size=3).map(lambda entries: reduce(TextEntry.merge, entries))


def taxonomies() -> st.SearchStrategy[Taxonomy]:
    """Draw taxonomies of one to six labels."""

    def build(names: list[str]) -> Taxonomy:
        labels = tuple(
            Label(str(number), f"label-{number}", name, content_ids=(f"c{number}",), aliases=(f"al {number}",))
            for number, name in enumerate(names)
        )
        return Taxonomy("test", "1", 500, labels)

    return st.lists(st.text("abcdef ", min_size=1, max_size=6), min_size=1, max_size=6).map(build)
