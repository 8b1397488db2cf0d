"""Explanations: what is cited carries the score, and the check says so in figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import events as any_events
from xplat_stream.errors import InvalidScores, TritonUnavailable
from xplat_stream.event import Millis
from xplat_stream.explain import Explanation, Question, explain_events
from xplat_stream.testing import FakeScorer, make_event, make_release
from xplat_stream.window import WindowSpec

SPEC = WindowSpec()
RELEASE = make_release(labels=("a", "b", "c", "d"))
NAMES = {"a": "Alpha", "b": "Beta"}
HOUR_MS = 3_600_000


def history(count: int = 24):
    words = ("running shoes", "a film", "coffee", "guitar", "garden", "game")
    return [
        make_event(
            object_title=words[number % len(words)],
            platform=("shop", "video", "social")[number % 3],
            occurred_at=Millis(1_780_000_000_000 + number * HOUR_MS),
        )
        for number in range(count)
    ]


async def explained(events, question: Question = Question(), scorer=None) -> Explanation:  # noqa: B008
    return await explain_events(scorer or FakeScorer(), RELEASE, SPEC, events, names=NAMES, question=question)


async def test_the_score_falls_further_without_the_cited_events():
    """Every interest's check holds on a history with a pattern, and so does their mean; the figures are its own."""
    found = await explained(history())

    assert len(found.interests) == 3
    for one in found.interests:
        assert one.events
        assert one.fidelity is not None
        assert one.fidelity.holds
        assert one.fidelity.cited > max(0, one.fidelity.random)
    assert found.fidelity is not None
    assert found.fidelity.holds
    assert found.fidelity.draws == 3 * 32


async def test_a_change_is_what_hiding_the_event_does():
    """The change of a cited event is the score without it minus the score with it, asked for on its own."""
    events = history(8)
    found = await explained(events)
    (one, *_) = found.interests
    first = one.events[0]
    rest = [event for event in events if event.event_id != first.event_id]

    again = await explained([*rest, events[-1]], Question(interests=4))
    score = next(other.score for other in again.interests if other.id == one.id)

    assert events[-1].event_id != first.event_id  # the window's end, and so every age, is the same in both
    assert score - one.score == pytest.approx(first.change, abs=2e-4)
    assert [event.change for event in one.events] == sorted(event.change for event in one.events)
    assert all(event.change < 0 for event in one.events)


async def test_events_are_told_with_their_words_and_ages():
    """A citation names the event, its item's title, where and what it was, and how long before the window's end."""
    events = history()
    found = await explained(events)
    by_id = {event.event_id: event for event in events}

    for cited in (event for one in found.interests for event in one.events):
        event = by_id[cited.event_id]
        assert (cited.platform, cited.action, cited.item) == (event.platform, event.action, event.object.id)
        assert cited.text == event.object.title
        assert cited.age_hours == (events[-1].occurred_at - event.occurred_at) / HOUR_MS


async def test_labels_have_the_taxonomys_names_where_it_knows_them():
    """A release of another taxonomy is explained by its label ids."""
    found = await explained(history(), Question(interests=4))

    assert {one.id: one.label for one in found.interests} == {"a": "Alpha", "b": "Beta", "c": "c", "d": "d"}


async def test_withheld_labels_are_not_spoken_of():
    """What may not be published is not explained either."""
    found = await explained(history(), Question(interests=4, withheld=frozenset({"a"})))

    assert {one.id for one in found.interests} == {"b", "c", "d"}


async def test_two_calls_of_the_head_whatever_the_window():
    """All events are hidden in one batch, and all checks made in another."""
    scorer = FakeScorer()
    await explained(history(), Question(interests=2, draws=5), scorer)

    sizes = [call.size for call in scorer.calls if call.kind == "score"]
    assert sizes == [1, 24, 2 * (1 + 5)]


async def test_one_event_has_nothing_to_be_compared_with():
    """A window of one event cites it where it helps, and makes no check."""
    found = await explained(history(1), Question(interests=4))

    assert found.events == 1
    assert found.fidelity is None
    assert {len(one.events) for one in found.interests} <= {0, 1}


async def test_never_more_than_half_the_window_is_cited():
    """With more asked for than there is, half of the window still stands against the other half."""
    found = await explained(history(6), Question(events=50))

    assert max(len(one.events) for one in found.interests) <= 3


@pytest.mark.parametrize(("fault", "error"), [("fail_next", TritonUnavailable), ("reject_next", InvalidScores)])
async def test_what_the_scorer_raises_is_told(fault, error):
    """An explanation is never made of half an answer."""
    scorer = FakeScorer()
    getattr(scorer, fault)()

    with pytest.raises(error):
        await explained(history(3), scorer=scorer)


@settings(max_examples=40, deadline=None)
@given(stream=st.lists(any_events(), min_size=1, max_size=12), order=st.randoms(use_true_random=False))
async def test_arrival_order_and_repeats_change_nothing(stream, order):
    """The explanation depends on the set of events, like the window: not on order, not on repeats."""
    again = [*stream, *stream]
    order.shuffle(again)

    first, second = await explained(stream), await explained(again)

    assert [(one.id, one.score) for one in first.interests] == [(one.id, one.score) for one in second.interests]
    changes = [np.array([event.change for event in one.events]) for one in first.interests]
    others = [np.array([event.change for event in one.events]) for one in second.interests]
    assert all(np.array_equal(*pair) for pair in zip(changes, others, strict=True))
