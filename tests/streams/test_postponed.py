"""Scoring that waits: who may wait, what is published meanwhile, and that the limit holds whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from streams import postponed
from streams.pipeline import Pipeline
from streams.postponed import Postponed
from tests.streams.conftest import Clock, user_on
from xplat_stream.event import UserId
from xplat_stream.settings import ScoreSettings
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.testing import make_event, make_release

if TYPE_CHECKING:
    from tests.streams.conftest import Bench

USER = UserId("user-1")
SETTINGS = ScoreSettings(tolerance=0.01, stale_s=60, stale_events=4)


@pytest.fixture
def clock(bench: Bench) -> Clock:
    """Return the clock by which limits are told; the user has been scored with one event."""
    made = Clock()
    bench.pipeline.postponed = Postponed(SETTINGS, load_taxonomy(), clock=made)
    bench.pipeline.release = make_release(margin=-1e9)
    return made


async def act(bench: Bench, title: str = "film", *, unread: bool = False, **fields: Any) -> None:
    """Let the user do something, with a text that the encoder has read unless it is `unread`."""
    event = make_event(**{"user_id": USER, "object_title": title, **fields})
    await bench.handle(bench.record(event), unread=unread)


def head_calls(bench: Bench) -> int:
    """Return how often the head was asked."""
    return sum(call.kind == "score" for call in bench.scorer.calls)


async def test_what_cannot_move_the_top_labels_is_published_with_the_last_scores(bench: Bench, clock: Clock) -> None:
    """A new window, the old scores, which window they are of; pending, and due only at the limit."""
    await act(bench)
    await act(bench)
    first, stale = (one.data for one in bench.profiles())

    assert head_calls(bench) == 1
    assert (first.status, first.revision, first.scored_revision) == ("fresh", 1, 1)
    assert (stale.status, stale.revision, stale.scored_revision) == ("stale", 2, 1)
    assert (stale.window.events, stale.model) == (2, first.model)
    assert [(one.id, round(one.score, 3)) for one in stale.interests] == [
        (one.id, round(one.score, 3)) for one in first.interests
    ]
    assert bench.store.pending(limit=9) == [USER]
    assert bench.pipeline.postponed.due(bench.partition, most=9) == []
    clock.now = SETTINGS.stale_s
    assert bench.pipeline.postponed.due(bench.partition, most=9) == [USER]
    await bench.pipeline.rescore(bench.store, bench.partition, [USER])
    again = bench.profiles()[-1].data
    assert (again.status, again.revision, again.scored_revision) == ("fresh", 3, 3)
    assert bench.store.pending(limit=9) == []


async def test_so_many_events_are_scored_whatever_is_expected(bench: Bench, clock: Clock) -> None:
    """The event that reaches the limit is scored, and the count begins again."""
    for _ in range(2 * SETTINGS.stale_events + 1):
        await act(bench)

    wait = ["stale"] * (SETTINGS.stale_events - 1)
    assert [one.data.status for one in bench.profiles()] == ["fresh", *wait, "fresh", *wait, "fresh"]
    assert bench.store.pending(limit=9) == []
    assert bench.pipeline.postponed.count(bench.partition) == 0
    assert clock.now == 0


async def test_a_text_not_seen_before_is_scored_as_soon_as_it_is_read(bench: Bench, clock: Clock) -> None:
    """It may say anything, so no limit is waited for."""
    await act(bench)
    await act(bench)
    await act(bench, unread=True, title="a film nobody saw before")
    assert not bench.pipeline.postponed.waits(bench.partition, USER)
    await bench.read()

    assert [one.data.status for one in bench.profiles()] == ["fresh", "stale", "stale", "fresh"]
    assert bench.profiles()[-1].data.scored_revision == 4
    assert clock.now == 0


async def test_an_event_out_of_order_can_wait_and_one_that_comes_twice_cannot(bench: Bench, clock: Clock) -> None:
    """Of a repaired past it can be told how much it moves; of an event that the window held already, nothing moved."""
    first = make_event(user_id=USER, object_title="film")
    await bench.handle(bench.record(first))
    await act(bench, occurred_at=first.occurred_at - 1000)
    await bench.handle(bench.record(first))

    assert [(one.data.status, one.data.cause) for one in bench.profiles()] == [
        ("fresh", "behavior"),
        ("stale", "late"),
        ("fresh", "behavior"),
    ]
    assert clock.now == 0


async def test_labels_that_lie_too_near_are_scored_at_once(bench: Bench, clock: Clock) -> None:
    """Where the margin that the tolerance asks for is not kept, nothing waits; nor under a release without one."""
    bench.pipeline.release = make_release(2, margin=1e9)
    for _ in range(3):
        await act(bench)
    bench.pipeline.release = make_release(3)
    for _ in range(3):
        await act(bench)

    assert {one.data.status for one in bench.profiles()} == {"fresh"}
    assert clock.now == 0


async def test_a_restart_loses_nobody_who_waits(bench: Bench, clock: Clock) -> None:
    """What is expected is forgotten, who is pending is not: they are scored at once, by their next event or without."""
    await act(bench)
    await act(bench)
    bench.store.close()
    bench.store = type(bench.store)(bench.store.path, bench.spec, cached_users=10)
    pipeline = bench.pipeline
    pipeline.postponed = Postponed(SETTINGS, load_taxonomy(), clock=clock)

    assert bench.store.has_pending
    assert bench.store.pending(limit=9) == [USER]
    assert not pipeline.postponed.waits(bench.partition, USER)
    assert await pipeline.rescore(bench.store, bench.partition, [USER]) == 1
    assert bench.profiles()[-1].data.status == "fresh"


async def test_an_event_that_is_scored_ends_the_waiting(bench: Bench, clock: Clock) -> None:
    """Nobody is scored at the limit who was scored meanwhile."""
    await act(bench)
    await act(bench)
    await act(bench, title="something else", unread=True)
    await bench.read()
    clock.now = 1e6

    assert bench.pipeline.postponed.due(bench.partition, most=9) == []


async def test_who_is_scored_again_sooner_waits_no_longer(bench: Bench, clock: Clock) -> None:
    """A migration takes those who wait as well: a model server that is away leaves them waiting, an answer ends it."""
    await act(bench)
    await act(bench)
    pipeline = bench.pipeline
    pipeline.release = make_release(2, margin=-1e9)
    bench.scorer.fail_next()
    assert await pipeline.rescore(bench.store, bench.partition, [USER]) == 0
    assert pipeline.postponed.waits(bench.partition, USER)
    assert await pipeline.rescore(bench.store, bench.partition, [USER]) == 1
    assert bench.store.pending(limit=9) == []
    last = bench.profiles()[-1].data
    assert (last.status, last.revision, last.scored_revision, last.model.release) == ("fresh", 3, 3, 2)
    clock.now = SETTINGS.stale_s
    assert pipeline.postponed.due(bench.partition, most=9) == []
    await act(bench)
    assert [one.data.status for one in bench.profiles()] == ["fresh", "stale", "fresh", "stale"]


async def test_who_waits_and_cannot_be_scored_is_left_to_the_degraded(bench: Bench, clock: Clock) -> None:
    """A window for which the model answers nonsense is still owed a scoring, and is not taken for one that waits."""
    await act(bench)
    await act(bench)
    bench.scorer.reject_next()
    assert await bench.pipeline.rescore(bench.store, bench.partition, [USER]) == 0
    assert bench.store.pending(limit=9) == [USER]
    assert not bench.pipeline.postponed.waits(bench.partition, USER)
    assert clock.now == 0


async def test_of_more_people_than_are_held_the_ones_scored_longest_ago_are_scored_at_once(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is held keeps what was said of them and of nobody else, however often places change hands."""
    monkeypatch.setattr(postponed, "_KNOWN", 2)
    bench.pipeline.postponed = Postponed(SETTINGS, load_taxonomy(), clock=clock)
    people = [UserId(user_on(bench.partition, number)) for number in range(3)]
    for user in people:
        await act(bench, user_id=user)
    for user in reversed(people):
        await act(bench, user_id=user)

    assert [one.data.status for one in bench.profiles()] == ["fresh"] * 3 + ["stale"] * 2 + ["fresh"]
    assert len({known.row for known in bench.pipeline.postponed._known.values()}) == 2


def test_who_is_expected_to_change_most_goes_first(clock: Clock, bench: Bench) -> None:
    """Of those whose limit has come: by the lead of their labels on top, and nobody is dropped."""
    held = bench.pipeline.postponed
    held._waiting[0] = {UserId("far"): (1.0, 0.9), UserId("near"): (2.0, 0.1), UserId("later"): (9.0, 0.0)}
    clock.now = 5.0

    assert held.due(0, most=1) == ["near"]
    assert held.due(0, most=9) == ["far"]
    clock.now = 10.0
    assert held.due(0, most=9) == ["later"]
    assert isinstance(bench.pipeline, Pipeline)
