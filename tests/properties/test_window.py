"""The window law (`xplat_stream.window`), one statement a test."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import BASE_MS, HOUR_MS, PLATFORMS, event_streams, events, rows, specs
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.window import BehaviorWindow, Row, WindowSpec, occurred_at, row_of

Stream = list[tuple[str, Row]]


def oracle(spec: WindowSpec, stream: Stream) -> dict[str, list[Row]]:
    """Return the window by the words of the definition: for each platform the top k of the set inside [T - h, T]."""
    everything = set(stream)
    if not everything:
        return {}
    newest = max(occurred_at(row) for _, row in everything)
    inside = {(p, row) for p, row in everything if occurred_at(row) >= newest - spec.horizon_ms}
    return {
        platform: sorted(row for p, row in inside if p == platform)[-spec.per_platform :]
        for platform in {p for p, _ in inside}
    }


def contents(window: BehaviorWindow) -> dict[str, list[Row]]:
    """Return a window's rows by platform."""
    found: dict[str, list[Row]] = {}
    for platform, row in window.rows():
        found.setdefault(platform, []).append(row)
    return found


def one_by_one(spec: WindowSpec, stream: Stream) -> BehaviorWindow:
    """Fold as slowly as arrivals can come."""
    window = BehaviorWindow(spec)
    for pair in stream:
        window = window.fold([pair])
    return window


def event_at(number: int, at_ms: int, platform: str = "shop", title: str = "") -> tuple[str, Row]:
    """Return the row of a made-up event."""
    item = Object("i", "product", title=title)
    return platform, row_of(Event(f"//t#{number}", UserId("u"), platform, "view", item, Millis(at_ms)))


@given(specs(), event_streams())
def test_the_window_is_the_set_of_the_definition(spec: WindowSpec, stream: Stream) -> None:
    """A window holds exactly what the definition says, for any stream."""
    assert contents(BehaviorWindow(spec).fold(stream)) == oracle(spec, stream)


@given(specs(), event_streams(), st.randoms(use_true_random=False))
def test_any_order_gives_the_same_bytes(spec: WindowSpec, stream: Stream, random: object) -> None:
    """Order of arrival changes nothing, one event at a time or all at once."""
    shuffled = list(stream)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert bytes(one_by_one(spec, shuffled)) == bytes(BehaviorWindow(spec).fold(stream))


@given(specs(), event_streams(), st.data())
def test_any_duplication_gives_the_same_bytes(spec: WindowSpec, stream: Stream, data: st.DataObject) -> None:
    """Retries and replays change nothing, wherever they come."""
    again = data.draw(st.lists(st.sampled_from(stream), max_size=20)) if stream else []
    mixed = data.draw(st.permutations(stream + again))
    assert bytes(one_by_one(spec, mixed)) == bytes(BehaviorWindow(spec).fold(stream))


@given(specs(), event_streams(), st.integers(1, 4), st.data())
def test_any_split_and_merge_gives_the_same_bytes(
    spec: WindowSpec, stream: Stream, parts: int, data: st.DataObject
) -> None:
    """Copies that each saw a part, overlaps included, merge into the window that saw everything."""
    where = data.draw(st.lists(st.integers(0, parts - 1), min_size=len(stream), max_size=len(stream)))
    copies = [BehaviorWindow(spec).fold(p for p, w in zip(stream, where, strict=True) if w == n) for n in range(parts)]
    merged = BehaviorWindow(spec)
    for copy in data.draw(st.permutations(copies + copies[:1])):
        merged = merged.merge(copy)
    assert bytes(merged) == bytes(BehaviorWindow(spec).fold(stream))


@given(specs(), event_streams(20), event_streams(20), event_streams(20))
def test_merge_is_a_join(spec: WindowSpec, first: Stream, second: Stream, third: Stream) -> None:
    """Merge is associative, commutative and idempotent, and the empty window is its identity."""
    a, b, c = (BehaviorWindow(spec).fold(stream) for stream in (first, second, third))
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert a.merge(a) == a
    assert a.merge(BehaviorWindow(spec)) == a == BehaviorWindow(spec).merge(a)


@given(specs(), event_streams(20), event_streams(20))
def test_folding_and_merging_never_change_a_window(spec: WindowSpec, first: Stream, second: Stream) -> None:
    """A window is a value: what is made from it leaves it as it was."""
    window = BehaviorWindow(spec).fold(first)
    before = bytes(window)
    window.fold(second)
    window.merge(BehaviorWindow(spec).fold(second))
    assert bytes(window) == before


@given(specs(), event_streams())
def test_nothing_beyond_count_and_horizon(spec: WindowSpec, stream: Stream) -> None:
    """Never more than `per_platform` of a platform, nothing older than the horizon, and T is always held."""
    window = BehaviorWindow(spec).fold(stream)
    assert all(0 < held <= spec.per_platform for held in window.counts().values())
    assert all(window.start <= occurred_at(row) <= window.end for _, row in window.rows())
    assert window.end == max((occurred_at(row) for _, row in stream), default=0)


@given(specs(), event_streams(), st.integers(1, 30))
def test_a_flood_pushes_no_other_platform_out(spec: WindowSpec, stream: Stream, flood: int) -> None:
    """However many events come on one platform, what is held of the others stays, as far as the horizon allows."""
    quiet = BehaviorWindow(spec).fold(pair for pair in stream if pair[0] != "shop")
    end = quiet.end
    flooded = quiet.fold(event_at(1000 + number, end, "shop") for number in range(flood))
    held, before = contents(flooded), contents(quiet)
    assert {platform: held.get(platform) for platform in before} == before
    assert len(held["shop"]) == min(flood, spec.per_platform)


@given(specs(), event_streams(), rows())
def test_a_late_event_repairs_or_changes_nothing(spec: WindowSpec, stream: Stream, late: tuple[str, Row]) -> None:
    """An event that arrives last gives the window it gives when it arrives first; outside the horizon, no change."""
    window = BehaviorWindow(spec).fold(stream)
    repaired = window.fold([late])
    assert repaired == BehaviorWindow(spec).fold([late]).fold(stream)
    if stream and occurred_at(late[1]) < window.start:
        assert bytes(repaired) == bytes(window)


@given(specs(), event_streams())
def test_bytes_round_trip(spec: WindowSpec, stream: Stream) -> None:
    """Unpacking packed bytes gives the same window, and equal windows have equal hashes."""
    window = BehaviorWindow(spec).fold(stream)
    back = BehaviorWindow.from_bytes(spec, bytes(window))
    assert back == window
    assert hash(back) == hash(window)
    assert back.events() == window.events()


@given(event_streams(), st.binary(max_size=200), st.integers(0, 500))
def test_broken_bytes_are_refused_or_read(stream: Stream, noise: bytes, cut: int) -> None:
    """Bytes that are not a window raise `ValueError` and nothing else."""
    packed = bytes(BehaviorWindow(WindowSpec()).fold(stream))
    for broken in (noise, packed[:cut], packed + noise):
        try:
            BehaviorWindow.from_bytes(WindowSpec(), broken)
        except ValueError:
            continue


@given(event_streams(), specs(), specs())
def test_a_smaller_spec_takes_effect_on_read(stream: Stream, one: WindowSpec, other: WindowSpec) -> None:
    """Reading under a spec that keeps less gives the window that spec would have kept all along."""
    wide = WindowSpec(max(one.per_platform, other.per_platform), max(one.horizon, other.horizon))
    narrow = WindowSpec(min(one.per_platform, other.per_platform), min(one.horizon, other.horizon))
    packed = bytes(BehaviorWindow(wide).fold(stream))
    assert BehaviorWindow.from_bytes(narrow, packed) == BehaviorWindow(narrow).fold(stream)


@given(st.lists(events(), min_size=1, max_size=30))
def test_readers_see_one_content_of_an_id(drawn: list[Event]) -> None:
    """Of one id with several contents readers see the lowest content hash; the others are counted as conflicts."""
    window = BehaviorWindow(WindowSpec(per_platform=100)).fold((event.platform, row_of(event)) for event in drawn)
    by_id: dict[bytes, list[tuple[bytes, str, Row]]] = {}
    for platform, row in window.rows():
        by_id.setdefault(row[6:14], []).append((row[14:18], platform, row))
    expected = sorted((platform, row) for _, platform, row in (min(found) for found in by_id.values()))
    assert [(e.platform, e.occurred_at, e.text_hash) for e in window.events()] == [
        (platform, occurred_at(row), row[18:26]) for platform, row in expected
    ]
    assert window.conflicts == len(window) - len(by_id)


@given(specs(), event_streams(), st.integers(-1, 1))
def test_newer_than(spec: WindowSpec, stream: Stream, beside: int) -> None:
    """How many rows lie behind a time, at, just before and just after each time there is."""
    window = BehaviorWindow(spec).fold(stream)
    times = [occurred_at(row) for _, row in window.rows()]
    for time in times:
        at = Millis(time + beside)
        assert window.newer_than(at) == sum(one > at for one in times)


def test_two_contents_of_one_id_do_not_depend_on_order() -> None:
    """One id published with two titles: both are kept, the same one is read, whichever came first."""
    pairs = [event_at(1, BASE_MS, title="one"), event_at(1, BASE_MS, title="two")]
    forth, back = (BehaviorWindow(WindowSpec()).fold(order) for order in (pairs, pairs[::-1]))
    assert (len(forth), forth.conflicts, len(forth.events())) == (2, 1, 1)
    assert forth.events() == back.events()


def test_the_horizon_reaches_over_platforms() -> None:
    """T is the newest event on any platform: an event on one ages those of the others."""
    spec = WindowSpec(horizon=timedelta(hours=1))
    old = BehaviorWindow(spec).fold(event_at(n, BASE_MS, platform) for n, platform in enumerate(PLATFORMS))
    assert old.fold([event_at(9, BASE_MS + HOUR_MS, "shop")]).counts() == {"shop": 2, "social": 1, "video": 1}
    assert old.fold([event_at(9, BASE_MS + HOUR_MS + 1, "shop")]).counts() == {"shop": 1}


def test_the_empty_window() -> None:
    """Nobody's window: no events, T is 0, and it packs like any other."""
    empty = BehaviorWindow(WindowSpec())
    assert (len(empty), empty.end, empty.start, empty.events(), empty.text_hashes(), empty.conflicts) == (
        0,
        0,
        0,
        [],
        set(),
        0,
    )
    assert BehaviorWindow.from_bytes(WindowSpec(), bytes(empty)) == empty


def test_the_row_format_is_pinned() -> None:
    """Rows lie in stores and changelogs for months: the bytes of an event are the same in every version."""
    item = Object("i", "product", title="running shoes", iab=("483",))
    row = row_of(Event("//t#1", UserId("u"), "shop", "view", item, Millis(BASE_MS + 123)))
    assert row.hex() == "01977420dc7b430bf410870ae79482b81c28aee5535ad406f38d01"
    assert bytes(BehaviorWindow(WindowSpec()).fold([("shop", row)])) == b"\x02\x04shop\x00\x01" + row
