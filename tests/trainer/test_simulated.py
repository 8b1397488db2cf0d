"""A population whose interests are known: what an oracle reaches, and how near a method comes."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.baselines import Popularity
from trainer.measures import ndcg
from trainer.simulated import ORACLE, against_oracle, simulated_study
from trainer.study import Task


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
    found = against_oracle(simulated, [Popularity()])

    assert found.users == len(simulated.study.test)
    assert found.share[ORACLE] == 1
    assert found.share["popularity"] == pytest.approx(found.ndcg["popularity"] / found.ndcg[ORACLE], abs=1e-3)
