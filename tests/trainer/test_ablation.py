"""A variant is told from the default only where the users' choice does not explain the difference."""

from __future__ import annotations

from tests.trainer.people import FOLDS, study
from trainer.ablation import HELPS, HURTS, NOTHING, ablate, verdict
from trainer.baselines import LINEAR_COUNTS, Linear, Popularity
from trainer.measures import Interval


def test_what_changes_nothing_is_said_to_bring_nothing() -> None:
    """The default beside itself differs by zero; popularity beside it hurts; progress is told by variant and fold."""
    told: list[tuple[str, int]] = []
    default = Linear(LINEAR_COUNTS, words=False)
    variants = [("the same", default), ("no history", Popularity())]
    same, none = ablate(
        study(), default, variants, folds=range(FOLDS), report=lambda name, done: told.append((name, done))
    )
    assert (same.difference, same.verdict) == (Interval(0.0, 0.0, 0.0), NOTHING)
    assert none.verdict == HURTS
    assert told == [(name, done) for name in ("the same", "no history") for done in range(1, FOLDS + 1)]


def test_verdicts_follow_the_interval() -> None:
    """An interval around zero brings nothing, one above helps, one below hurts."""
    assert verdict(Interval(0.01, -0.001, 0.02)) == NOTHING
    assert verdict(Interval(0.01, 0.001, 0.02)) == HELPS
    assert verdict(Interval(-0.01, -0.02, -0.001)) == HURTS
