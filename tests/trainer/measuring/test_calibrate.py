"""Calibration keeps the order of scores and brings them nearer to frequencies, fold by fold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.measuring.calibrate import AS_IS, STEPS, calibrated, choose, curve, fit_step
from trainer.measuring.measures import calibration_error
from trainer.measuring.methods import Trial, Tuned


def drawn(seed: int, users: int = 400, labels: int = 5):
    """Return scores that mean what they say, and what came true."""
    random = np.random.default_rng(seed)
    scores = random.beta(1, 2, (users, labels)).astype(np.float32)
    return scores, (random.random((users, labels)) < scores).astype(np.float32)


def sharpened(scores, power: float):
    """Return scores too sure of themselves by a power of their odds."""
    odds = (scores / (1 - scores)) ** power
    return (odds / (1 + odds)).astype(np.float32)


@pytest.mark.parametrize("step", STEPS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), asked=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30))
def test_every_step_is_monotone(step: str, seed: int, asked: list[float]) -> None:
    """A higher score never becomes the lower one, and all stay in [0, 1]."""
    scores, targets = drawn(seed, users=20)
    found = fit_step(step, scores, targets)(np.sort(np.array(asked, np.float32)))
    assert (np.diff(found) >= 0).all()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("step", [step for step in STEPS if step != AS_IS])
def test_scores_too_sure_are_put_right(step: str) -> None:
    """Fitted on some users, a step brings the error of others below a third."""
    scores, targets = drawn(0)
    others, true = drawn(1)
    fitted = fit_step(step, sharpened(scores, 3), targets)
    assert calibration_error(fitted(sharpened(others, 3)), true) < calibration_error(sharpened(others, 3), true) / 3


def test_scores_that_mean_what_they_say_stay_near() -> None:
    """Whatever step is chosen, calibrated scores hardly move."""
    scores, targets = drawn(2, users=2000)
    assert np.abs(choose(scores, targets)(scores) - scores).mean() < 0.02


def test_too_few_tuning_users_decide_nothing() -> None:
    """Of a handful of users no step is learned."""
    assert choose(*drawn(3, users=4)).name == AS_IS


def test_every_fold_is_calibrated_on_its_own_tuning_users() -> None:
    """Two folds bent in opposite ways are both put right."""
    scores, targets = drawn(4, users=1000)
    bent = np.concatenate([sharpened(scores[:500], 3), sharpened(scores[500:], 0.3)])
    told = []
    for rows, power in ((np.arange(500), 3), (np.arange(500, 1000), 0.3)):
        tuned, true = drawn(5 + rows[0])
        told.append(Tuned(rows, sharpened(tuned, power), true))
    found = calibrated(Trial(bent, np.zeros(1000, np.float32), tuple(told)))
    assert calibration_error(found.scores, targets) < 0.03 < calibration_error(bent, targets)
    assert len(found.steps) == 2


def test_the_curve_counts_every_score() -> None:
    """Bins hold all scores, and a bin's share is what came true in it."""
    scores = np.array([[0.05, 0.06], [0.95, 1.0]], np.float32)
    points = curve(scores, np.array([[0, 1], [1, 1]], np.float32))
    assert [(point.frequency, point.scores) for point in points] == [(0.5, 2), (1.0, 2)]
