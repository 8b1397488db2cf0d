"""A figure's interval holds it, and a figure taken of sums is the figure itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.measuring.measures import (
    Counts,
    Interval,
    bootstrap_calibration_error,
    bootstrap_macro_f1,
    bootstrap_mean,
    bootstrap_micro_f1,
    calibration_error,
    paired_f1,
    paired_label_f1,
)

FEW = settings(max_examples=20, deadline=None)


@st.composite
def scored(draw: st.DrawFn):
    """Scores and targets of some users."""
    users, labels = draw(st.integers(5, 40)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = random.random((users, labels)).astype(np.float32)
    return scores, (random.random((users, labels)) < draw(st.floats(0.1, 0.9))).astype(np.float32)


@FEW
@given(st.lists(st.floats(0, 1), min_size=2, max_size=60))
def test_the_interval_brackets_the_mean(values: list[float]) -> None:
    """The mean of a value a user lies inside its own interval."""
    found = bootstrap_mean(np.array(values))
    assert found.value == pytest.approx(np.mean(values))
    assert found.low - 1e-12 <= found.value <= found.high + 1e-12


@FEW
@given(scored())
def test_figures_of_sums_are_the_figures(drawn) -> None:
    """Micro-F1, macro-F1 and calibration error with an interval are the ones without."""
    scores, targets = drawn
    counts = Counts.of(scores > 0.5, targets)
    assert bootstrap_micro_f1(counts).value == pytest.approx(counts.micro_f1())
    assert bootstrap_macro_f1(counts).value == pytest.approx(counts.macro_f1())
    assert bootstrap_calibration_error(scores, targets).value == pytest.approx(
        calibration_error(scores, targets), abs=1e-6
    )


@FEW
@given(scored())
def test_nothing_is_better_than_itself(drawn) -> None:
    """A method's paired difference to itself is zero, with an interval of zero."""
    counts = Counts.of(drawn[0] > 0.5, drawn[1])
    assert paired_f1(counts, counts) == Interval(0.0, 0.0, 0.0)
    assert paired_label_f1(counts, counts, 0) == Interval(0.0, 0.0, 0.0)


def test_a_surer_interval_is_wider() -> None:
    """99.9 % hold what 95 % hold."""
    values = np.random.default_rng(0).normal(size=200)
    usual, sure = bootstrap_mean(values), bootstrap_mean(values, confidence=0.999)
    assert sure.low < usual.low < usual.high < sure.high


def test_of_nobody_nothing_is_known() -> None:
    """No users, no figure; of one user a figure, and nothing that excludes zero. No warning either way."""
    assert all(map(np.isnan, bootstrap_mean(np.zeros(0))))
    alone = bootstrap_mean(np.array([0.2]))
    assert alone.value == 0.2
    assert not alone.excludes_zero
    assert np.isnan(alone.low)
