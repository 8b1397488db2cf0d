"""A population whose interests are known: what an oracle reaches, and how near a method comes."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.study import Task
from trainer.evaluation.simulated import against_oracle, simulated_study
from trainer.measuring.baselines import COUNTS, POPULARITY, DecayedCounts, Popularity
from trainer.measuring.measures import ndcg


@pytest.fixture(scope="module")
def simulated():
    return simulated_study(120, events_each=40, task=Task(min_label_users=3))


def test_the_oracle_says_what_each_person_is_drawn_from(simulated):
    """Its scores are latent shares at the cut, one row a test cut, the same for the same arguments."""
    again = simulated_study(120, events_each=40, task=Task(min_label_users=3))

    assert simulated.oracle.shape == simulated.study.test.targets.shape
    assert (simulated.oracle > 0).all()
    assert (simulated.oracle.sum(axis=1) <= 1 + 1e-5).all()
    assert np.array_equal(simulated.oracle, again.oracle)


def test_nobody_is_drawn_better_than_by_the_oracle(simulated):
    """Shuffled among people its shares say nothing: they are of the person, not of the crowd."""
    targets = simulated.study.test.targets
    own = ndcg(simulated.oracle, targets).mean()
    others = ndcg(np.roll(simulated.oracle, 1, axis=0), targets).mean()

    assert own > others + 0.3


def test_shares_of_the_oracle_are_reported(simulated):
    """A method's share is its NDCG over the oracle's on the same users."""
    told = []
    found = against_oracle(
        simulated, [DecayedCounts(), Popularity()], report=lambda name, done, *_: told.append((name, done))
    )
    summary = found.summary()

    assert found.users == len(simulated.study.test)
    assert found.oracle_ndcg10 == pytest.approx(ndcg(simulated.oracle, simulated.study.test.targets).mean())
    assert 0 < found.share(POPULARITY) < found.share(COUNTS) < 1
    assert summary["main"] == COUNTS
    assert summary["oracle_share"] == round(found.share(COUNTS), 4)
    assert summary["baselines"][POPULARITY]["ndcg10"] == round(found.ndcg10[POPULARITY], 4)
    assert told == [(name, done) for name in (COUNTS, POPULARITY) for done in range(1, 6)]
