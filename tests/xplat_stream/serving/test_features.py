"""Features: the one way from windows and texts to model inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import windows
from xplat_stream.event import ACTION_INDEX, Event, Millis, TextHash, hash_text
from xplat_stream.serving.features import EVENT_BUCKETS, TOKEN_BUCKETS, head_inputs, newest_events
from xplat_stream.testing import make_event, make_release
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

PLATFORMS = ("shop", "video", "social")
WIDTH = 4
HOUR_MS = 3_600_000
START_MS = 1_767_225_600_000
SPEC = WindowSpec()


def window_of(*events: Event) -> BehaviorWindow:
    """Return the window of these events."""
    return BehaviorWindow(SPEC).fold((event.platform, row_of(event)) for event in events)


def vector(*values: float) -> bytes:
    """Return a vector as a scorer gives it."""
    return np.array(values, np.float16).tobytes()


@given(st.lists(st.text("ab é", max_size=60), max_size=20), st.integers(1, 5))
def test_every_text_is_in_one_batch(texts: list[str], size: int) -> None:
    """Each text comes once, batches are no larger than asked, lengths are buckets, and the mask marks the tokens."""
    features = make_release(max_tokens=16).texts
    batches = list(features.batches(texts, size=size))
    assert sorted(position for batch in batches for position in batch.where) == list(range(len(texts)))
    for batch in batches:
        assert batch.input_ids.shape == batch.attention_mask.shape
        assert len(batch.where) <= size
        assert batch.input_ids.shape[1] in TOKEN_BUCKETS
        for row, position in enumerate(batch.where):
            tokens = min(16, len(texts[position].split()))
            assert batch.attention_mask[row].tolist() == [1] * tokens + [0] * (batch.input_ids.shape[1] - tokens)


@pytest.mark.parametrize(
    ("max_tokens", "words", "width"),
    [
        pytest.param(64, 3, 8, id="shortest"),
        pytest.param(64, 9, 12, id="next"),
        pytest.param(64, 900, 64, id="truncated"),
        pytest.param(14, 900, 14, id="limit-between-buckets"),
        pytest.param(64, 0, 8, id="empty-text"),
    ],
)
def test_texts_are_padded_to_buckets(max_tokens: int, words: int, width: int) -> None:
    """A text takes the smallest bucket it fits, and never more tokens than the release reads."""
    features = make_release(max_tokens=max_tokens).texts
    (batch,) = features.batches(["shoes " * words], size=8)
    assert batch.input_ids.shape == (1, width)


def test_short_texts_come_first() -> None:
    """A long text does not make the short ones of its batch long."""
    texts = ["shoes " * 30, "shoes", "shoes " * 29, "coffee"]
    batches = list(make_release(max_tokens=64).texts.batches(texts, size=2))
    assert [(batch.where, batch.input_ids.shape[1]) for batch in batches] == [([1, 3], 8), ([2, 0], 32)]


def test_the_inputs_of_a_window() -> None:
    """Vector, platform, action and age stand in the event's place; age counts from T; zero is padding."""
    old = make_event(object_title="a", action="like", occurred_at=Millis(START_MS))
    new = make_event(object_title="b", platform="tv", occurred_at=Millis(START_MS + HOUR_MS))
    known = {hash_text("a"): vector(1, 2, 3, 4)}
    inputs = head_inputs([window_of(new, old)], known, platforms=PLATFORMS, width=WIDTH, max_events=64)
    assert inputs.vectors.shape == (1, EVENT_BUCKETS[0], WIDTH)
    assert inputs.vectors[0, :2].tolist() == [[1, 2, 3, 4], [0, 0, 0, 0]]
    assert inputs.platform[0, :3].tolist() == [1, 0, 0]
    assert inputs.action[0, :3].tolist() == [ACTION_INDEX["like"] + 1, ACTION_INDEX["view"] + 1, 0]
    assert inputs.age[0, :3].tolist() == pytest.approx([math.log(2), 0, 0])
    assert [array.dtype for array in inputs] == [np.float16, np.int32, np.int32, np.float32]


@given(st.lists(windows(SPEC), max_size=4), st.integers(1, 64))
def test_inputs_have_one_shape(drawn: list[BehaviorWindow], max_events: int) -> None:
    """All users of a batch share a length that holds the longest; padding is zero everywhere."""
    inputs = head_inputs(drawn, {}, platforms=PLATFORMS, width=WIDTH, max_events=max_events)
    shape = inputs.action.shape
    assert inputs.platform.shape == inputs.age.shape == shape == inputs.vectors.shape[:2]
    assert shape[0] == len(drawn)
    for row, window in enumerate(drawn):
        seen = min(len(window.events()), max_events)
        assert (inputs.action[row] > 0).tolist() == [True] * seen + [False] * (shape[1] - seen)
        assert not inputs.platform[row, seen:].any()
        assert not inputs.age[row, seen:].any()
    assert (inputs.age >= 0).all()
    assert np.isfinite(inputs.age).all()


@given(windows(SPEC), windows(SPEC))
def test_a_user_does_not_depend_on_the_batch(one: BehaviorWindow, other: BehaviorWindow) -> None:
    """A window gives the same inputs alone and beside others, up to padding."""
    vectors = {text: vector(1, 0, 0, 1) for text in one.text_hashes() | other.text_hashes()}
    alone, beside = (
        head_inputs(batch, vectors, platforms=PLATFORMS, width=WIDTH, max_events=64) for batch in ([one], [other, one])
    )
    seen = len(one.events())
    for name in alone._fields:
        assert getattr(alone, name)[0, :seen].tobytes() == getattr(beside, name)[1, :seen].tobytes()


@pytest.mark.parametrize("max_events", [1, 3, 100])
def test_the_newest_events_are_read(max_events: int) -> None:
    """Over all platforms, the newest, oldest first."""
    events = [
        make_event(platform=PLATFORMS[number % 3], occurred_at=Millis(START_MS + number * HOUR_MS))
        for number in range(7)
    ]
    found = [event.occurred_at for event in newest_events(window_of(*reversed(events)), max_events)]
    assert found == [event.occurred_at for event in events][-max_events:]


def test_no_windows_and_empty_windows() -> None:
    """A batch of nobody has no rows; a user without events has a row of padding."""
    assert head_inputs([], {}, platforms=PLATFORMS, width=WIDTH, max_events=64).vectors.shape == (0, 8, WIDTH)
    inputs = head_inputs([BehaviorWindow(SPEC)], {}, platforms=PLATFORMS, width=WIDTH, max_events=64)
    assert not any(array.any() for array in inputs)


def test_a_vector_of_another_width_is_refused() -> None:
    """A vector of another encoder is an error, never a shifted input."""
    window = window_of(make_event(object_title="a"))
    with pytest.raises(ValueError, match="reshape"):
        head_inputs([window], {TextHash(hash_text("a")): vector(1)}, platforms=PLATFORMS, width=WIDTH, max_events=64)
