"""What a source says is measured, and a source that does harm is muted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from joblib import parallel_config

from tests.trainer.people import FOLDS, TASK, People, make_people, study, subject, with_planted
from trainer.data.study import EVERYTHING, Cuts, Study
from trainer.evaluation.transfer import (
    PLANTED,
    HarmWatch,
    Hiding,
    PlantedSource,
    matrix_column,
    pair_looks,
    sources,
    try_guarded,
)
from trainer.measuring.baselines import LINEAR_COUNTS, Linear, Popularity, Scorer
from trainer.measuring.measures import ndcg
from trainer.measuring.methods import split, try_looks, try_method

ALL = {EVERYTHING: lambda cuts: cuts}
BY_COUNTS = Linear(LINEAR_COUNTS, words=False)
"""Label counts alone: random items that name labels harm it most."""


class Spy:
    """A method that remembers the platforms it was shown."""

    name = "spy"

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def fit(self, _: Study, *parts: Cuts) -> Scorer:
        for cuts in parts:
            self._look(cuts)
        return Scorer(self._scores)

    def _scores(self, cuts: Cuts):
        self._look(cuts)
        return np.zeros_like(cuts.targets)

    def _look(self, cuts: Cuts) -> None:
        self.seen |= set((cuts.inputs.platform[cuts.inputs.action > 0] - 1).tolist())


def test_a_hidden_platform_is_neither_learned_from_nor_scored() -> None:
    """Hiding shows a method everything but what is hidden, when it is fitted and when it scores."""
    spy = Spy()
    hidden = study().platforms.index("video")
    parts = split(study(), 0)
    Hiding(spy, frozenset({hidden})).fit(study(), parts.train, parts.tune).scores(parts.test)
    assert spy.seen == set(range(3)) - {hidden}


def test_planted_people_do_as_much_as_ever_at_their_own_times() -> None:
    """The planted platform has the same users, as many events of each as they had, at times they had."""
    events = PlantedSource(People(), subject().log).events()
    planted = [event for event in events if event.platform == PLANTED]
    assert Counter(event.user_id for event in planted) == Counter(event.user_id for event in make_people())
    own = {(event.user_id, event.occurred_at) for event in make_people()}
    assert {(event.user_id, event.occurred_at) for event in planted} <= own


@pytest.fixture(scope="module")
def noisy() -> Study:
    """The study with a planted platform."""
    return with_planted().study(TASK, FOLDS)


def test_a_planted_harmful_platform_is_held_off(noisy: Study) -> None:
    """The guard finds it, and brings the target back to within one percent of training without it."""
    clean = try_method(study(), BY_COUNTS, views=(EVERYTHING,), folds=range(FOLDS))[EVERYTHING]
    without = ndcg(clean.scores, study().test.targets).mean()
    found = try_guarded(noisy, BY_COUNTS, ALL, folds=range(FOLDS))
    unguarded, guarded = (
        ndcg(trial[EVERYTHING].scores, noisy.test.targets).mean() for trial in (found.unguarded, found.trials)
    )
    planted = noisy.platforms.index(PLANTED)
    assert unguarded < 0.97 * without  # it does harm
    assert found.harms[planted].harmful
    assert found.muted_folds(planted) == FOLDS
    assert guarded > 0.99 * without


def test_harm_that_a_fitted_model_does_not_show_is_found_by_learning_without(noisy: Study) -> None:
    """Hiding events from popularity changes nothing; a regression on words learns more without the planted platform."""
    found = try_guarded(noisy, Popularity(), ALL, folds=range(FOLDS))
    planted = noisy.platforms.index(PLANTED)
    assert not found.harms[planted].harmful
    assert set(found.muted.values()) == {frozenset({planted})}


def test_a_useful_source_is_left_alone() -> None:
    """Videos that tell interests are never muted, nor is the target itself ever asked about."""
    found = try_guarded(study(), Linear(), ALL, folds=range(FOLDS))
    video, shop = (study().platforms.index(name) for name in ("video", "shop"))
    assert not found.harms[video].harmful
    assert not found.muted_folds(video)
    assert shop not in found.harms
    assert shop not in sources(study())


def test_users_tested_in_a_fold_have_no_say_in_it() -> None:
    """What is muted in a fold is decided by users of other folds."""
    watch = HarmWatch(study(), Popularity())
    try_looks(study(), Popularity(), ALL, folds=range(FOLDS), watch=watch)
    everybody = next(iter(watch.harms().values())).users
    outside = [next(iter(watch.harms(outside=fold).values())).users for fold in range(FOLDS)]
    assert all(count < everybody for count in outside)
    assert sum(everybody - count for count in outside) == everybody


def test_folds_fitted_side_by_side_find_the_same() -> None:
    """Two processes or one: the same scores, thresholds and harms."""
    one = try_guarded(study(), BY_COUNTS, ALL, folds=range(FOLDS))
    with parallel_config(n_jobs=2):
        two = try_guarded(study(), BY_COUNTS, ALL, folds=range(FOLDS))
    np.testing.assert_array_equal(two.trials[EVERYTHING].scores, one.trials[EVERYTHING].scores)
    np.testing.assert_array_equal(two.trials[EVERYTHING].threshold, one.trials[EVERYTHING].threshold)
    assert two.harms == one.harms


def test_the_matrix_tells_a_source_that_says_something_from_one_that_does_not() -> None:
    """Videos alone are worth more than popularity, a radio that all listen to is not."""
    shop = study().platforms.index("shop")
    trials = try_looks(study(), Linear(), pair_looks(study(), {shop}), folds=range(FOLDS))
    plain = try_method(study(), Popularity(), views=(EVERYTHING,), folds=range(FOLDS))[EVERYTHING]
    cells = matrix_column(study(), shop, trials, ndcg(plain.scores, study().test.targets))
    alone = {cell.source: cell.alone for cell in cells}
    assert alone["video"].low > 0
    assert alone["radio"].low <= 0
    assert {cell.target for cell in cells} == {"shop"}
