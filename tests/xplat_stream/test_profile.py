"""Profiles: a pure function of window, scores and what was published before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.strategies import windows
from xplat_stream.event import Event, Millis, Object, UserId, hash_text, item_text
from xplat_stream.kafka import decode_profile, encode_profile
from xplat_stream.kafka.codec import seal
from xplat_stream.profile import (
    MAX_EVIDENCE,
    MAX_EXAMPLE_CHARS,
    Interest,
    KnownText,
    ModelRef,
    Profile,
    instant,
    scored_profile,
    unscored_profile,
    window_digest,
)
from xplat_stream.state import Publication
from xplat_stream.taxonomy import Taxonomy, load_taxonomy
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

TAXONOMY = load_taxonomy()
LABELS = len(TAXONOMY)
USER = UserId("u")
START_MS = 1_750_000_000_000
EMPTY = BehaviorWindow(WindowSpec())


def profile_of(
    scores: list[float],
    *,
    window: BehaviorWindow = EMPTY,
    before: Publication | None = None,
    known: dict[bytes, KnownText] | None = None,
    max_interests: int = LABELS,
) -> Profile:
    """Score a window."""
    return scored_profile(
        USER,
        window,
        before or Publication(revision=1),
        scores,
        taxonomy=TAXONOMY,
        model=ModelRef(1, 1, 1),
        known=known or {},
        max_interests=max_interests,  # type: ignore[arg-type]
    )


@given(st.lists(st.floats(0, 1), min_size=LABELS, max_size=LABELS), st.integers(1, 30), windows(WindowSpec()))
def test_interests_are_sorted_ranked_labels(scores: list[float], most: int, window: BehaviorWindow) -> None:
    """Scores in [0, 1], highest first, ranks from 1 without gaps, labels of the taxonomy, each at most once."""
    interests = profile_of(scores, window=window, max_interests=most).interests
    found = [interest.score for interest in interests]
    assert found == sorted(found, reverse=True)
    assert all(0 <= score <= 1 for score in found)
    assert [interest.rank for interest in interests] == list(range(1, min(most, LABELS) + 1))
    ids = [interest.id for interest in interests]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(TAXONOMY.ids())


@given(st.lists(st.floats(0, 1), min_size=LABELS, max_size=LABELS), windows(WindowSpec()))
def test_a_profile_is_a_pure_function(scores: list[float], window: BehaviorWindow) -> None:
    """The same window and scores give the same profile, dated by the window, not by the clock."""
    first, second = profile_of(scores, window=window), profile_of(scores, window=window)
    assert first == second
    assert first.as_of == first.window.end == instant(window.end)
    assert first.window.digest == window_digest(bytes(window))
    assert (first.window.events, first.window.platforms) == (len(window), window.counts())


@given(st.lists(st.floats(0, 1), min_size=LABELS, max_size=LABELS), windows(WindowSpec()))
def test_a_profile_round_trips(scores: list[float], window: BehaviorWindow) -> None:
    """Decoding a published profile gives it back, with its latency and source, also where it was sealed before."""
    profile = profile_of(scores, window=window)
    published, late = (
        encode_profile(one, source="//w", published_at=instant(Millis(START_MS)), latency_ms=12)
        for one in (profile, seal(profile))
    )
    record = decode_profile(published)
    assert late == published
    assert record.data == profile
    assert (record.id, record.partitionkey, record.latency_ms) == ("u:1", "u", 12)


@pytest.mark.parametrize(
    ("before", "now", "trend", "delta"),
    [
        pytest.param(None, 0.5, "new", 0.0, id="first-publication"),
        pytest.param(0.5, 0.6, "rising", 0.1, id="rising"),
        pytest.param(0.6, 0.5, "falling", -0.1, id="falling"),
        pytest.param(0.5, 0.505, "steady", 0.005, id="less-than-a-step"),
        pytest.param(0.5, 0.5, "steady", 0.0, id="unmoved"),
    ],
)
def test_trend_and_delta(before: float | None, now: float, trend: str, delta: float) -> None:
    """An interest says how it moved since the last publication of this user."""
    held = Publication(revision=4)
    if before is not None:
        held = held.published(1, [before] * LABELS)
    interest = profile_of([now] * LABELS, before=held).interests[0]
    assert interest.trend == trend
    assert interest.delta == pytest.approx(delta, abs=1e-4)


def known_window(*actions: tuple[str, str, str, int]) -> tuple[BehaviorWindow, dict[bytes, KnownText]]:
    """Return a window of (platform, action, title, seconds) and what is known of its texts: all about sports."""
    window, known = BehaviorWindow(WindowSpec()), {}
    for number, (platform, action, title, second) in enumerate(actions):
        item = Object("i", "product", title=title)
        event = Event(f"//t#{number}", USER, platform, action, item, Millis(START_MS + 1000 * second))
        window = window.fold([(platform, row_of(event))])
        known[hash_text(item_text(item))] = KnownText(("607",), title)
    return window, known  # type: ignore[return-value]


def test_evidence_counts_what_the_user_did() -> None:
    """Evidence says how often, where, until when, with the newest text as the example, most frequent first."""
    window, known = known_window(
        ("shop", "view", "old shoes", 1),
        ("shop", "view", "new shoes", 9),
        ("shop", "view", "shoes", 5),
        ("video", "play", "a race", 3),
    )
    sports = next(one for one in profile_of([0.5] * LABELS, window=window, known=known).interests if one.id == "607")
    assert [(e.platform, e.action, e.count, e.example) for e in sports.evidence] == [
        ("shop", "view", 3, "new shoes"),
        ("video", "play", 1, "a race"),
    ]
    assert sports.evidence[0].last == instant(Millis(START_MS + 9000))


def test_evidence_is_bounded_and_only_for_its_label() -> None:
    """A profile stays small: few lines of evidence, short examples, none for labels nobody acted on."""
    actions = ("view", "click", "save", "purchase")
    window, known = known_window(*((("shop", action, "x" * 500, n)) for n, action in enumerate(actions)))
    for interest in profile_of([0.5] * LABELS, window=window, known=known).interests:
        assert len(interest.evidence) == (MAX_EVIDENCE if interest.id == "607" else 0)
        assert all(len(evidence.example) <= MAX_EXAMPLE_CHARS for evidence in interest.evidence)


def test_a_user_nobody_scored() -> None:
    """Without a model the window is published alone, and says so."""
    window, _ = known_window(("shop", "view", "shoes", 1))
    profile = unscored_profile(USER, window, 7, TAXONOMY)
    assert (profile.status, profile.revision, profile.interests, profile.model.release) == ("cold_start", 7, (), 0)
    assert profile.window.events == 1


def test_sensitive_labels_are_published_for_a_purpose_only() -> None:
    """A label marked sensitive is neither named nor quoted from, whatever its score, until a purpose is stated."""
    first, second = TAXONOMY.labels[:2]
    marked = replace(TAXONOMY, labels=(replace(first, sensitive=True), *TAXONOMY.labels[1:]))
    event = Event("//a#1", USER, "shop", "view", Object("i", "product", "Both"), Millis(START_MS))
    row = row_of(event)
    window = EMPTY.fold([("shop", row)])
    known = {hash_text(item_text(event.object)): KnownText((first.id, second.id), "Both")}
    scores = [0.9] * LABELS

    def published(taxonomy: Taxonomy) -> dict[str, Interest]:
        found = scored_profile(
            USER,
            window,
            Publication(revision=1),
            scores,
            taxonomy=taxonomy,
            model=ModelRef(1, 1, 1),
            known=known,
            max_interests=LABELS,
        )
        return {interest.id: interest for interest in found.interests}

    withheld, allowed = published(marked), published(marked.for_purpose("care, agreed with each person"))
    assert first.id not in withheld
    assert len(withheld) == LABELS - 1
    assert [one.example for one in withheld[second.id].evidence] == [""]
    assert [one.example for one in allowed[first.id].evidence] == ["Both"]
