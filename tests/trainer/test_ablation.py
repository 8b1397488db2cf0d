"""A variant is told from the base only where the users' choice does not explain the difference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.people import FOLDS, study
from trainer.ablation import HELPS, HURTS, NOTHING, Ablation, ablate, verdict
from trainer.baselines import LINEAR_COUNTS, POPULARITY, Linear, Popularity
from trainer.measures import Interval, ndcg
from trainer.methods import split, try_method
from trainer.options import TrainOptions, checked
from trainer.split import SplitMethod
from trainer.study import EVERYTHING
from trainer.variants import ALL, CHANGES, ablation_of
from xplat_stream.errors import DataError


def test_what_changes_nothing_is_said_to_bring_nothing() -> None:
    """The base beside itself differs by zero; popularity beside it hurts; progress is told by method and fold."""
    told: list[tuple[str, int]] = []
    ablation = Ablation(
        Linear("base", words=False), [Linear(LINEAR_COUNTS, words=False), Popularity()], folds=range(FOLDS)
    )
    found = ablate(study(), ablation, report=lambda name, done: told.append((name, done)))
    same, none = found.lines
    assert (same.difference, same.verdict) == (Interval(0.0, 0.0, 0.0), NOTHING)
    assert none.verdict == HURTS
    assert (found.base, found.users, found.folds) == ("base", len(study().test), FOLDS)
    assert told == [(name, done) for name in ("base", LINEAR_COUNTS, POPULARITY) for done in range(1, FOLDS + 1)]


def test_of_some_folds_only_their_users_count() -> None:
    """Base and variants are fitted for these folds alone, and every figure is of their users: no NaN is among them."""
    found = ablate(study(), Ablation(Popularity(), [Linear(LINEAR_COUNTS, words=False)], folds=range(1)))
    rows = split(study(), 0).rows
    trial = try_method(study(), Popularity(), views=(EVERYTHING,), folds=range(1))[EVERYTHING]

    assert found.users == len(rows) < len(study().test)
    assert found.ndcg10.value == pytest.approx(ndcg(trial.scores[rows], study().test.targets[rows]).mean())
    assert np.isfinite([found.ndcg10, *(interval for line in found.lines for interval in line[2:4])]).all()
    assert found.lines[0].verdict == HELPS


def test_verdicts_follow_the_interval() -> None:
    """An interval around zero brings nothing, one above helps, one below hurts."""
    assert verdict(Interval(0.01, -0.001, 0.02)) == NOTHING
    assert verdict(Interval(0.01, 0.001, 0.02)) == HELPS
    assert verdict(Interval(-0.01, -0.02, -0.001)) == HURTS


def test_every_line_is_a_change_that_can_be() -> None:
    """Each named line is the base with options of its own, all of them valid; the base has no teachers."""
    main = SplitMethod(TrainOptions(adapter="none", teachers=3))
    found = ablation_of(main, [ALL], folds=2)

    assert [method.name for method in found.variants] == list(CHANGES)
    assert found.base.options.teachers == 0
    for method in found.variants:
        assert checked(method.options) != found.base.options
        assert method._prepared is main._prepared  # the transformer as it is runs once for all of them


def test_lines_are_chosen_by_name() -> None:
    """In the order of the table, whatever order they are asked for in."""
    found = ablation_of(SplitMethod(), ["one member", "LoRA + FGM"], folds=2)
    assert [method.name for method in found.variants] == ["LoRA + FGM", "one member"]


def test_a_line_nobody_knows_is_told_with_those_there_are() -> None:
    """One error, which names them all."""
    with pytest.raises(DataError, match="called two members") as caught:
        ablation_of(SplitMethod(), ["one member", "two members"], folds=2)
    assert all(name in caught.value.expected for name in (ALL, *CHANGES))
