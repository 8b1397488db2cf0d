"""Could the figures be too good? Checks that run with every evaluation; one that fails fails the run.

A leak is large where there is one, and a check must not fail by chance: what must not be above zero is tested with an
interval that holds 99.9 % of the resamplings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from trainer.data.study import A_ONLY, EVERYTHING
from trainer.measuring.baselines import Popularity
from trainer.measuring.measures import bootstrap_mean, ndcg
from trainer.measuring.methods import split, try_method

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from trainer.data.study import Cuts, Study
    from trainer.measuring.methods import Look, Method

SHUFFLED: Final = "shuffled histories"
PERMUTED: Final = "permuted labels"
IN_HISTORY: Final = "targets in the history"
SHARED_USERS: Final = "users trained and tested on"

_CONFIDENCE: Final = 0.999
_AGE_TOLERANCE: Final = 1e-3
"""Ages are logarithms of hours in single precision."""


class LeakCheck(NamedTuple):
    """One check: what was found, and whether it is what must be found."""

    name: str
    passed: bool
    figure: float
    low: float
    high: float
    """99.9 % interval where the figure is a difference of NDCG@10; the figure itself where it is a count."""
    words: str


def source_view(study: Study) -> str:
    """Return the view whose histories are shuffled: the source's, or everything where no target is named."""
    return A_ONLY if A_ONLY in study.views() else EVERYTHING


def shuffled(study: Study, seed: int = 0) -> Look:
    """Return the look that gives every cut the source history of another user."""
    shown = study.views()[source_view(study)]

    def look(cuts: Cuts) -> Cuts:
        seen = cuts.seeing(shown)
        return replace(seen, inputs=seen.inputs.take(_another(len(cuts), seed)))

    return look


def _another(count: int, seed: int) -> NDArray[np.int64]:
    """Return for each of so many the place of another, none twice: one round through all, so nobody keeps the own."""
    drawn = np.random.default_rng(seed).permutation(count)
    other = np.empty_like(drawn)
    other[drawn] = np.roll(drawn, 1)
    return other


def check_shuffled(
    study: Study, scores: NDArray[np.float32], own: NDArray[np.float32], popularity: NDArray[np.float32]
) -> LeakCheck:
    """Check that other people's histories say nothing. `scores` (users, labels) are those of the look `shuffled`.

    `own`: scores of the same view with the users' own histories; `popularity`: popularity's.
    """
    targets = study.test.targets
    plain = ndcg(popularity, targets)
    gain = float((ndcg(own, targets) - plain).mean())
    found = bootstrap_mean(ndcg(scores, targets) - plain, confidence=_CONFIDENCE)
    words = f"{source_view(study)} over popularity: {gain:+.4f} with own histories, {found.value:+.4f} with others'"
    return LeakCheck(SHUFFLED, not found.low > 0, *found, words)


def permuted(study: Study, seed: int = 0) -> Study:
    """Return the study with everybody's targets exchanged for another person's, to learn from as well as to foretell.

    It is the same other person for all cuts of a user, newest for newest: who is known from training stays known.
    """
    train = study.train
    users, counts = np.unique(train.user, return_counts=True)
    order = np.lexsort((-train.at, train.user))  # by user, the newest cut first
    rows = np.split(order, np.cumsum(counts)[:-1])
    others = [rows[place] for place in _another(len(users), seed)]
    taken = np.empty(len(train), np.int64)
    for own, theirs in zip(rows, others, strict=True):
        taken[own] = np.resize(theirs, len(own))  # from the newest again where the other has fewer
    last = np.array([others[place][0] for place in np.searchsorted(users, study.test.user)])
    return study._replace(train=_answering(train, train, taken), test=_answering(study.test, train, last))


def _answering(cuts: Cuts, others: Cuts, rows: NDArray[np.int64]) -> Cuts:
    return replace(cuts, targets=others.targets[rows], next_texts=others.next_texts[rows])


def check_permuted(study: Study, method: Method, folds: Collection[int]) -> LeakCheck:
    """Check that where people's targets are exchanged, a method foretells them no better than popularity.

    A window says nothing then of what is foretold, whatever a method makes of windows before it has learned: what is
    left above popularity came by another way. The method is fitted once for each of `folds`. (As scikit-learn's
    `permutation_test_score` does, the tested are permuted as well: a head that has learned nothing still ranks first
    what a window names, and is right about the person's own targets.)
    """
    exchanged = permuted(study)
    mine, plain = (
        try_method(exchanged, one, views=(EVERYTHING,), folds=folds)[EVERYTHING].scores
        for one in (method, Popularity())
    )
    rows = np.flatnonzero(np.isfinite(mine).all(axis=1))
    targets = exchanged.test.targets[rows]
    found = bootstrap_mean(ndcg(mine[rows], targets) - ndcg(plain[rows], targets), confidence=_CONFIDENCE)
    words = f"with people's targets exchanged, {found.value:+.4f} against popularity on {len(rows)} users"
    return LeakCheck(PERMUTED, not found.low > 0, *found, words)


def check_history(study: Study, cuts: Cuts) -> LeakCheck:
    """Count the cuts whose window holds an event at or after the cut, or a target event: there must be none.

    The windows are compared with the histories, event by event: all that a window shows must have happened strictly
    before the cut, as often as it is shown, on that platform, about that text, at that age.
    """
    found = sum(_shows_more(study, cuts, row) for row in range(len(cuts)))
    words = f"{found} of {len(cuts)} windows hold an event at or after the cut"
    return LeakCheck(IN_HISTORY, not found, found, found, found, words)


def _shows_more(study: Study, cuts: Cuts, row: int) -> bool:
    """Tell whether a window shows an event that had not happened before the cut."""
    history = study.histories[cuts.user[row]]
    known = int(np.searchsorted(history.time, cuts.at[row], side="left"))
    length = int(cuts.inputs.length[row])
    shown = (cuts.inputs.platform[row, :length] - 1, cuts.inputs.text[row, :length])
    past = (history.platform[:known], history.text[:known])
    if Counter(_pairs(shown)) - Counter(_pairs(past)):
        return True
    if not length:
        return False
    hours = (history.time[known - 1] - history.time[:known][::-1]) / 3_600_000  # ascending
    ages = np.log1p(hours)
    place = np.searchsorted(ages, cuts.inputs.age[row, :length])
    near = np.minimum(
        np.abs(ages[np.minimum(place, known - 1)] - cuts.inputs.age[row, :length]),
        np.abs(ages[np.maximum(place - 1, 0)] - cuts.inputs.age[row, :length]),
    )
    return bool(near.max() > _AGE_TOLERANCE)


def _pairs(columns: Sequence[NDArray[Any]]) -> list[tuple[int, int]]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


def check_users(study: Study, folds: Collection[int]) -> LeakCheck:
    """Count the users whom a fold both learns from and tests: there must be none."""
    found = 0
    for fold in folds:
        parts = split(study, fold)
        found += len(np.intersect1d(parts.test.user, np.concatenate([parts.train.user, parts.tune.user])))
        found += len(np.intersect1d(parts.tune.user, parts.train.user))
    return LeakCheck(SHARED_USERS, not found, found, found, found, f"{found} users in two parts of a fold")
