"""What has to be beaten: popularity, popularity in time, decayed counts, neighbours, linear models. No network here.

Each is a `trainer.measuring.methods.Method`. Their constants are chosen on the tuning users, so each is as strong as it
gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import normalize

from trainer.data.examples import last_of_each
from trainer.fitting.linear import count_words, counted, event_matrix, fit_linear, own_labels
from trainer.measuring.measures import ndcg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from scipy import sparse

    from trainer.data.compact import Compact
    from trainer.data.study import Cuts, Study
    from trainer.data.texts import TextTable
    from trainer.measuring.methods import Method

    Scores = NDArray[np.float32]  # (cuts, labels)

POPULARITY: Final = "popularity"
IN_TIME: Final = "popularity in time"
COUNTS: Final = "decayed counts"
NEIGHBORS: Final = "kNN"
LINEAR_COUNTS: Final = "label counts + LR"
LINEAR_TEXT: Final = "tf-idf + LR"
LINEAR: Final = "tf-idf + label counts + LR"
LINEAR_METHODS: Final = (LINEAR_COUNTS, LINEAR_TEXT, LINEAR)

_DAY_MS: Final = 86_400_000
_KERNEL_DAYS: Final = 30.0
_HALF_LIVES_DAYS: Final = (4.0, 30.0, 120.0, 400.0, 2000.0)
_PRIOR_WEIGHTS: Final = (0.3, 1.0, 3.0, 10.0)
_NEIGHBORS: Final = (50, 100, 200)


@dataclass(frozen=True, slots=True)
class Scorer:
    """A fitted baseline: a function of cuts."""

    scores: Callable[[Cuts], Scores]


def popular(cuts: Cuts) -> NDArray[np.float32]:
    """Return how often a target names each label (labels,), one user counting as one."""
    return np.asarray(np.average(cuts.targets, axis=0, weights=cuts.weights), np.float32)


class Popularity:
    """Every user gets the label frequencies of the training targets."""

    name = POPULARITY

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> Scorer:
        """See `Method`."""
        share = popular(train)
        return Scorer(lambda cuts: np.tile(share, (len(cuts), 1)))


class PopularityInTime:
    """Label frequencies of the training targets around the cut's own day, before and after it: Gaussian, 30 days.

    It looks at other people's future, which nothing live can; it is what a history has to beat to have said anything.
    """

    name = IN_TIME

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> Scorer:
        """See `Method`."""
        share = popular(train)
        days = train.at / _DAY_MS

        def scores(cuts: Cuts) -> Scores:
            found = np.empty((len(cuts), len(share)), np.float32)
            for row, day in enumerate(cuts.at / _DAY_MS):
                weight = train.weights * np.exp(-0.5 * ((days - day) / _KERNEL_DAYS) ** 2)
                found[row] = (weight @ train.targets + 3 * share) / (weight.sum() + 3)
            return found

        return Scorer(scores)


class DecayedCounts:
    """The user's own label counts, halved every so many days, over popularity."""

    name = COUNTS

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> Scorer:
        """See `Method`."""
        share = popular(train)
        quality = {}
        for half_life in _HALF_LIVES_DAYS:
            counts = decayed_counts(study.texts, tune.inputs, half_life)
            for prior in _PRIOR_WEIGHTS:
                quality[half_life, prior] = ndcg(shares(counts, share, prior), tune.targets).mean()
        half_life, prior = max(quality, key=quality.__getitem__)
        return Scorer(lambda cuts: shares(decayed_counts(study.texts, cuts.inputs, half_life), share, prior))


def decayed_counts(texts: TextTable, inputs: Compact, half_life_days: float) -> Scores:
    """Return each window's label counts (windows, labels), an event counting half after every `half_life_days`."""
    weight = np.where(counted(inputs), 0.5 ** (np.expm1(inputs.age) / (24 * half_life_days)), 0)
    return np.asarray(event_matrix(inputs, weight, len(texts.texts)) @ own_labels(texts), np.float32)


def shares(counts: Scores, share: NDArray[np.float32], prior: float) -> Scores:
    """Return counts as shares, smoothed by `prior` events' worth of popularity."""
    smoothed = (counts + prior * share) / (counts.sum(axis=1, keepdims=True) + prior)
    return np.asarray(smoothed, np.float32)


class Neighbors:
    """The targets of the training windows most alike, by cosine of their texts' inverse-frequency weights."""

    name = NEIGHBORS

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> Scorer:
        """See `Method`."""
        share = popular(train)
        idf = TfidfTransformer(norm=None).fit(_presence(study, train))

        def vectors(cuts: Cuts) -> sparse.csr_matrix:
            return normalize(idf.transform(_presence(study, cuts)))

        known = vectors(train)
        # Many cuts of one person are one neighbor: the weight of a cut is the user's share of it.
        weight = train.weights / train.weights.max()

        def of(cuts: Cuts, neighbors: int) -> Scores:
            found = np.empty((len(cuts), len(share)), np.float32)
            asked = vectors(cuts)
            for start in range(0, len(cuts), 256):
                alike = (asked[start : start + 256] @ known.T).toarray() * weight  # (cuts, training cuts)
                nearest = np.argpartition(-alike, min(neighbors, alike.shape[1] - 1), axis=1)[:, :neighbors]
                near = np.take_along_axis(alike, nearest, axis=1)[..., None]
                found[start : start + 256] = ((near * train.targets[nearest]).sum(axis=1) + share) / (
                    near.sum(axis=1) + 1
                )
            return found

        quality = {count: ndcg(of(tune, count), tune.targets).mean() for count in _NEIGHBORS}
        best = max(quality, key=quality.__getitem__)
        return Scorer(lambda cuts: of(cuts, best))


def _presence(study: Study, cuts: Cuts) -> sparse.csr_matrix:
    matrix = event_matrix(cuts.inputs, (cuts.inputs.text > 0).astype(np.float32), len(study.texts.texts))
    matrix.sum_duplicates()
    return matrix.minimum(1)


@dataclass(frozen=True, slots=True)
class Linear:
    """Logistic regression, one a label, on words of the window's texts, on its label counts, or on both.

    One cut a user is trained on: the last. `C` is chosen on the tuning users.
    """

    name: str = LINEAR
    words: bool = True
    counts: bool = True

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> Scorer:
        """See `Method`."""
        last = train.take(last_of_each(train.user))
        says = fit_linear(
            study.texts,
            count_words(study.texts) if self.words else None,
            last.inputs,
            last.targets,
            held_out=tune.inputs,
            quality=lambda scores: float(ndcg(scores, tune.targets).mean()),
            counts=self.counts,
        )
        return Scorer(lambda cuts: says(cuts.inputs))


def all_baselines() -> Sequence[Method]:
    """Return every baseline, from the plainest to the strongest."""
    return (
        Popularity(),
        PopularityInTime(),
        DecayedCounts(),
        Neighbors(),
        Linear(LINEAR_TEXT, counts=False),
        Linear(LINEAR_COUNTS, words=False),
        Linear(),
    )
