"""The regressions on words: which platforms are kept from them."""

import numpy as np
import pytest

from tests.trainer.people import FOLDS, TASK, study, with_planted
from trainer.data.examples import last_of_each
from trainer.evaluation.transfer import PLANTED
from trainer.fitting.linear import count_words, misleading
from trainer.measuring.methods import split


def found_in(log, fold):
    """Return the names of the platforms that mislead a regression on the training users of a fold."""
    train = split(log, fold).train
    last = train.take(last_of_each(train.user))
    found = misleading(log.texts, count_words(log.texts), last.inputs, last.targets, range(1, len(log.platforms) + 1))
    return {log.platforms[one - 1] for one in found}


@pytest.mark.parametrize("fold", range(FOLDS))
def test_a_platform_of_random_items_is_found(fold):
    """Where people touch random items its words drown the others'; what tells interests is not named with it."""
    found = found_in(with_planted().study(TASK, FOLDS), fold)
    assert PLANTED in found
    assert not found & {"shop", "video"}


@pytest.mark.parametrize("fold", range(FOLDS))
def test_platforms_that_tell_interests_are_kept(fold):
    """Neither the shop nor the videos do harm."""
    assert not found_in(study(), fold) & {"shop", "video"}


@pytest.mark.parametrize("users", [2, 3, 10])
def test_a_handful_of_people_condemns_no_platform(users):
    """With hardly anybody to ask nothing is beyond chance."""
    train = split(study(), 0).train
    last = train.take(last_of_each(train.user)[:users])
    words = count_words(study().texts)
    asked = range(1, len(study().platforms) + 1)
    assert misleading(study().texts, words, last.inputs, last.targets, asked) == []


def test_the_only_platform_is_kept():
    """Without it there would be nothing to learn from."""
    train = split(study(), 0).train
    position = study().platforms.index("shop")
    shop = train.seeing({position})
    last = shop.take(last_of_each(shop.user))
    noise = last.targets[np.random.default_rng(0).permutation(len(last))]
    assert misleading(study().texts, count_words(study().texts), last.inputs, noise, [position + 1]) == []
