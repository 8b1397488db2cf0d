"""An honest method passes every leak check; a method or a window that knows too much fails one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.people import FOLDS, study
from trainer.data.study import A_ONLY, EVERYTHING, Cuts, Study, earlier
from trainer.data.texts import bit_positions
from trainer.evaluation.leaks import (
    check_history,
    check_permuted,
    check_shuffled,
    check_users,
    permuted,
    shuffled,
)
from trainer.measuring.baselines import DecayedCounts, Linear, Popularity, Scorer
from trainer.measuring.methods import Trial, split, try_looks, try_method, views_of

CHECKED = {"own": lambda cuts: views_of(study(), cuts, A_ONLY), "other": shuffled(study())}


class Cheat:
    """A method that looks up what the user does after the cut."""

    name = "cheat"

    def fit(self, study: Study, *_: Cuts) -> Scorer:
        def scores(cuts: Cuts):
            found = np.full(cuts.targets.shape, 0.01, np.float32)
            for row, (user, before) in enumerate(zip(cuts.user, cuts.before, strict=True)):
                for mask in study.histories[user].mask[before:]:
                    found[row, bit_positions(mask)] = 0.99
            return found

        return Scorer(scores)


@pytest.fixture(scope="module")
def popularity() -> Trial:
    return try_method(study(), Popularity(), views=(EVERYTHING,), folds=range(FOLDS))[EVERYTHING]


@pytest.mark.parametrize(("method", "passes"), [(Linear(), True), (Cheat(), False)], ids=["honest", "cheat"])
def test_other_peoples_histories_must_say_nothing(method, passes: bool, popularity: Trial) -> None:
    """With another user's source history the gain over popularity is gone, unless the method knows the user."""
    trials = try_looks(study(), method, CHECKED, folds=range(FOLDS))
    found = check_shuffled(study(), trials["other"].scores, trials["own"].scores, popularity.scores)
    assert found.passed is passes, found.words


class Peek:
    """A method that is shown the targets it is asked for."""

    name = "peek"

    def fit(self, *_: object) -> Scorer:
        return Scorer(lambda cuts: 0.01 + 0.98 * cuts.targets)


class Memory:
    """A method that remembers people: where a study tests those it trained on, it knows their targets."""

    name = "memory"

    def fit(self, study: Study, train: Cuts, _: Cuts) -> Scorer:
        known = np.full((len(study.histories), train.targets.shape[1]), 0.5, np.float32)
        for user, targets in zip(study.train.user, study.train.targets, strict=True):
            known[user] = 0.25 + 0.5 * targets
        return Scorer(lambda cuts: known[cuts.user])


@pytest.mark.parametrize(
    ("method", "passes"),
    [(Linear(), True), (DecayedCounts(), True), (Peek(), False), (Memory(), False)],
    ids=["honest", "counts the window", "peeks", "remembers people"],
)
def test_exchanged_targets_cannot_be_foretold(method, passes: bool) -> None:
    """Where people's targets are exchanged, nobody is better than popularity but who has the answers from elsewhere.

    Counting knows much without having learned anything: that is no leak.
    """
    found = check_permuted(study(), method, folds=range(FOLDS))
    assert found.passed is passes, found.words


def test_everybody_gets_the_targets_of_another() -> None:
    """Nobody's targets are given to two of the tested, windows stay, and a user has one other's throughout."""
    made = study()
    exchanged = permuted(made)
    assert exchanged.test.inputs is made.test.inputs
    marked = np.repeat(np.arange(len(made.histories), dtype=np.float32)[:, None], made.train.targets.shape[1], axis=1)
    of_user = made._replace(train=replace(made.train, targets=marked[made.train.user]))
    given = permuted(of_user)
    tested, trained = given.test.targets[:, 0], given.train.targets[:, 0]
    assert len(set(tested)) == len(tested)
    assert not (tested == made.test.user).any()
    other = dict(zip(made.test.user.tolist(), tested.tolist(), strict=True))
    pairs = zip(made.train.user.tolist(), trained.tolist(), strict=True)
    assert all(other.get(user, got) == got for user, got in pairs)
    newest = {user: row for row, user in enumerate(made.train.user.tolist())}  # cuts of a user are in order of time
    taken = [newest[int(user)] for user in tested]
    np.testing.assert_array_equal(exchanged.test.targets, made.train.targets[taken])


def test_nobody_keeps_the_own_history_when_shuffled() -> None:
    """Every cut gets another user's source history, and every history is given once."""
    own = CHECKED["own"](study().test).inputs
    other = CHECKED["other"](study().test).inputs
    rows = [age.tobytes() for age in own.age]
    assert sorted(rows) == sorted(age.tobytes() for age in other.age)
    assert all(mine != given.tobytes() for mine, given in zip(rows, other.age, strict=True))


def test_windows_hold_the_past_alone() -> None:
    """Every window of every cut, trained on or tested, passes."""
    assert check_history(study(), study().train).figure == 0


def test_a_window_that_holds_its_target_is_counted() -> None:
    """One event too many in each window, and each of them is found."""
    found = check_history(study(), earlier(study(), study().test, study().test.before + 1))
    assert not found.passed
    assert found.figure == len(study().test)


def test_a_window_from_the_future_is_counted_where_its_texts_are_known() -> None:
    """Ages that are nobody's give it away as well."""
    cuts = study().test
    moved = replace(cuts, inputs=cuts.inputs._replace(age=np.where(cuts.inputs.action > 0, cuts.inputs.age + 0.5, 0)))
    assert check_history(study(), moved).figure > 0.9 * len(cuts)


def test_no_user_is_in_two_parts_of_a_fold() -> None:
    """Trained on, tuned on and tested are three different groups of people, and all are tested once."""
    assert check_users(study(), range(FOLDS)).passed
    rows = np.concatenate([split(study(), fold).rows for fold in range(FOLDS)])
    assert sorted(rows) == list(range(len(study().test)))
