"""How far events can have moved scores: sums that go along with the window, and the margin that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xplat_stream.event import ACTIONS
from xplat_stream.serving.features import HeadInputs
from xplat_stream.serving.sensitivity import Additions, CurvePoint, Estimator, Sensitivity, leads, tops

WIDTH, LABELS, PLATFORMS = 4, 3, 2
NAMES = np.random.default_rng(1).normal(size=(WIDTH + 1, LABELS)).astype(np.float32)
ESTIMATOR = Estimator(Sensitivity(NAMES.tobytes(), b"", 20, ()), platforms=PLATFORMS, width=WIDTH, labels=LABELS)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int, int, float]]:
    """Return events: seed of the vector (0 = no text), platform, action, hours since the one before."""
    hours = st.floats(0.001, 500)
    event = st.tuples(st.integers(0, 9), st.integers(0, PLATFORMS), st.integers(1, len(ACTIONS)), hours)
    return draw(st.lists(event, min_size=1, max_size=6))


def vector_of(seed: int) -> np.ndarray:
    """Return the vector of a text, the zero vector for none."""
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float16) * (seed > 0)


def window_of(history: list[tuple[int, int, int, float]]) -> HeadInputs:
    """Return a window as the head reads it, padded by two."""
    length = len(history) + 2
    gaps = [gap for *_, gap in history]
    hours = [sum(gaps[place + 1 :]) for place in range(len(history))]
    inputs = HeadInputs(
        np.zeros((1, length, WIDTH), np.float16),
        np.zeros((1, length), np.int32),
        np.zeros((1, length), np.int32),
        np.zeros((1, length), np.float32),
    )
    for place, (seed, platform, action, _) in enumerate(history):
        inputs.vectors[0, place] = vector_of(seed)
        inputs.platform[0, place], inputs.action[0, place] = platform, action
        inputs.age[0, place] = np.log1p(hours[place])
    return inputs


@given(histories())
def test_sums_brought_up_to_date_are_those_of_the_longer_window(history: list[tuple[int, int, int, float]]) -> None:
    """One event after the other, or the whole window at once: the same sums."""
    sums = ESTIMATOR.sums(window_of(history[:1]))
    for seed, platform, action, hours in history[1:]:
        added = Additions(
            vector_of(seed)[None].astype(np.float32),
            np.array([platform], np.int32),
            np.array([action], np.int32),
            np.array([hours], np.float32),
            np.zeros(1, np.float32),
            np.zeros(1, np.float32),
        )
        sums = ESTIMATOR.advance(sums, added)

    np.testing.assert_allclose(sums, ESTIMATOR.sums(window_of(history)), rtol=2e-3, atol=2e-4)


def test_an_event_of_the_past_counts_by_its_age() -> None:
    """What it adds to all sums but those of recent events is what it adds when it comes in order."""
    older, newer = (1, 1, 2, 1.0), (2, 2, 3, 30.0)
    after = ESTIMATOR.sums(window_of([older, newer]))
    added = Additions(
        vector_of(1)[None].astype(np.float32),
        np.array([1], np.int32),
        np.array([2], np.int32),
        np.zeros(1, np.float32),
        np.array([30.0], np.float32),
        np.ones(1, np.float32),
    )
    late = ESTIMATOR.advance(ESTIMATOR.sums(window_of([newer])), added)

    np.testing.assert_allclose(late[:, 1:-1], after[:, 1:-1], rtol=2e-3, atol=2e-4)


def test_a_lead_is_over_the_highest_of_the_others_that_may_be_published() -> None:
    """Labels that are never published are neither on top nor in the way."""
    logits = np.array([[3.0, 9.0, 2.0, 1.0, 0.5]], np.float32)
    published = [0, 2, 3, 4]

    top = tops(logits, published)

    assert top.tolist() == [[True, False, True, True, False]]
    assert leads(logits, top, published).tolist() == [0.5]
    assert leads(logits[:, ::-1], top, published).tolist() == [0.5 - 3.0]


@pytest.mark.parametrize(
    ("tolerance", "margin"),
    [
        pytest.param(0.05, 0.1, id="narrowest-that-is-good-enough"),
        pytest.param(0.01, 0.4, id="upper-bound-counts"),
        pytest.param(0.0, None, id="off"),
    ],
)
def test_the_margin_is_the_narrowest_that_is_surely_good_enough(tolerance: float, margin: float | None) -> None:
    """Of two that disagree seldom enough the one that saves more; none where none does."""
    curve = (CurvePoint(0.1, 0.8, 0.009, 0.04), CurvePoint(0.2, 0.7, 0.008, 0.012), CurvePoint(0.4, 0.5, 0.0, 0.005))

    assert Sensitivity(b"", b"", 20, curve).margin(tolerance) == margin
