"""A variant is told from the base only where the users' choice does not explain the difference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.people import FOLDS, study
from trainer.data.study import EVERYTHING
from trainer.evaluation.ablation import HELPS, HURTS, NOTHING, Ablation, ablate, verdict
from trainer.evaluation.split import SplitMethod
from trainer.evaluation.variants import ALL, CHANGES, ablation_of
from trainer.measuring.baselines import LINEAR_COUNTS, POPULARITY, Linear, Popularity
from trainer.measuring.measures import Counts, Interval, ndcg
from trainer.measuring.methods import split, try_method
from trainer.run.options import TrainOptions, checked
from xplat_stream.errors import DataError


def test_what_changes_nothing_is_said_to_bring_nothing() -> None:
    """The base beside itself differs by zero; popularity beside it hurts; folds and lines are told as they are done."""
    told: list[object] = []
    ablation = Ablation(
        Linear("base", words=False), [Linear(LINEAR_COUNTS, words=False), Popularity()], folds=range(FOLDS)
    )
    found = ablate(
        study(), ablation, report=lambda name, done, total, _: told.append((name, done, total)), measured=told.append
    )
    same, none = found.lines
    assert (same.difference, same.verdict) == (Interval(0.0, 0.0, 0.0), NOTHING)
    assert none.verdict == HURTS
    assert (found.base, found.users, found.folds) == ("base", len(study().test), FOLDS)
    base, one, other = (
        [(name, done, FOLDS) for done in range(1, FOLDS + 1)] for name in ("base", LINEAR_COUNTS, POPULARITY)
    )
    assert told == [*base, *one, same, *other, none]


def test_of_some_folds_only_their_users_count() -> None:
    """Base and variants are fitted for these folds alone, and every figure is of their users: no NaN is among them."""
    found = ablate(study(), Ablation(Popularity(), [Linear(LINEAR_COUNTS, words=False)], folds=range(1)))
    rows = split(study(), 0).rows
    trial = try_method(study(), Popularity(), views=(EVERYTHING,), folds=range(1))[EVERYTHING]

    assert found.users == len(rows) < len(study().test)
    assert found.ndcg10.value == pytest.approx(ndcg(trial.scores[rows], study().test.targets[rows]).mean())
    (line,) = found.lines
    assert np.isfinite([found.ndcg10, found.micro_f1, line.difference, line.micro_f1_difference]).all()
    assert found.micro_f1.value == pytest.approx(Counts.of(trial.chosen()[rows], study().test.targets[rows]).micro_f1())
    assert line.verdict == HELPS


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
    assert not found.base.options.teachers
    assert not found.base.options.words_teacher
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
