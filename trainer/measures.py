"""How good scores are, each figure with its definition; and how sure of it one may be.

`scores` and `targets` are (cuts, labels): probabilities, and 1 where the label was touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = NDArray[np.float32]

TOP: Final = 10
RECALL_TOP: Final = 5
RESAMPLES: Final = 2000
_CUTOFFS: Final = 199
_BINS: Final = 10
_INTERVAL: Final = (2.5, 97.5)
_AT_ONCE: Final = 100


def ndcg(scores: Scores, targets: Scores, top: int = TOP) -> NDArray[np.float64]:
    """Return NDCG@top of each window with at least one true label; ties are broken by label order."""
    has_any = targets.sum(axis=1) > 0
    scores, targets = scores[has_any], targets[has_any]
    top = min(top, targets.shape[1])
    gains = 1 / np.log2(np.arange(2, top + 2))  # (top,)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    reached = (np.take_along_axis(targets, order, axis=1) * gains).sum(axis=1)
    best = np.cumsum(gains)[np.minimum(targets.sum(axis=1).astype(int), top) - 1]
    return np.asarray(reached / best, np.float64)


def best_threshold(scores: Scores, targets: Scores) -> float:
    """Return the one threshold with the highest micro-F1."""
    cutoffs = np.unique(np.quantile(scores, np.linspace(0.0, 1.0, _CUTOFFS)))
    true = targets.sum()
    quality = [2 * (targets * (scores >= cutoff)).sum() / max((scores >= cutoff).sum() + true, 1) for cutoff in cutoffs]
    return float(cutoffs[int(np.argmax(quality))])


def calibration_error(scores: Scores, targets: Scores) -> float:
    """Return the mean distance between score and frequency over ten bins, weighted by how full they are."""
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1).ravel()
    gaps = np.bincount(bins, (scores - targets).ravel().astype(np.float64), minlength=_BINS)
    return float(np.abs(gaps).sum() / max(scores.size, 1))


def average_precision(scores: Scores, targets: Scores) -> NDArray[np.float64]:
    """Return the average precision of each cut's ranking of all labels; its mean over cuts is MAP."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(targets, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return np.asarray((precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1), np.float64)


def recall(scores: Scores, targets: Scores, top: int = RECALL_TOP) -> NDArray[np.float64]:
    """Return the share of each cut's true labels among the `top` highest scores."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return np.asarray(
        np.take_along_axis(targets, order, axis=1).sum(axis=1) / np.maximum(targets.sum(axis=1), 1), np.float64
    )


class Counts(NamedTuple):
    """Right, foretold and true labels of each cut (cuts, labels): what F1 is made of."""

    right: NDArray[np.bool_]
    named: NDArray[np.bool_]
    true: NDArray[np.bool_]

    @classmethod
    def of(cls, chosen: NDArray[np.bool_], targets: Scores) -> Counts:
        """Compare the labels chosen with those touched."""
        true = targets > 0
        return cls(chosen & true, chosen, true)

    def micro_f1(self) -> float:
        """Return F1 over all labels of all cuts."""
        return float(2 * self.right.sum() / max(int(self.named.sum() + self.true.sum()), 1))

    def label_f1(self) -> NDArray[np.float64]:
        """Return the F1 of each label (labels,)."""
        whole = self.named.sum(axis=0) + self.true.sum(axis=0)
        return np.asarray(2 * self.right.sum(axis=0) / np.maximum(whole, 1), np.float64)

    def macro_f1(self) -> float:
        """Return the mean F1 of the labels that some target names."""
        seen = self.true.any(axis=0)
        return float(self.label_f1()[seen].mean()) if seen.any() else 0.0


class Interval(NamedTuple):
    """A figure with the range that holds it in 95 of 100 resamplings of the users."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the figure, a difference, is one the users' choice does not explain."""
        return self.low > 0 or self.high < 0


def bootstrap_mean(values: NDArray[np.floating[Any]], seed: int = 0) -> Interval:
    """Return the mean of a value a user, resampled over users (percentile bootstrap, Efron 1979)."""
    return bootstrap_ratio(values, np.ones_like(values), seed)


def bootstrap_ratio(above: NDArray[np.floating[Any]], below: NDArray[np.floating[Any]], seed: int = 0) -> Interval:
    """Return sum(above) / sum(below) resampled over users: micro-F1 is 2 · right / (named + true)."""
    random = np.random.default_rng(seed)
    count = len(above)
    if not count:
        return Interval(float("nan"), float("nan"), float("nan"))
    found = []
    for _ in range(RESAMPLES // _AT_ONCE):
        rows = random.integers(0, count, (_AT_ONCE, count))
        found.append(above[rows].sum(axis=1) / np.maximum(below[rows].sum(axis=1), 1e-12))
    low, high = np.percentile(np.concatenate(found), _INTERVAL)
    return Interval(float(above.sum() / max(float(below.sum()), 1e-12)), float(low), float(high))


def paired_f1(mine: Counts, other: Counts, seed: int = 0) -> Interval:
    """Return the difference of two methods' micro-F1 on the same users, resampled over users."""
    random = np.random.default_rng(seed)
    parts = [
        (2.0 * counts.right.sum(axis=1), (counts.named.sum(axis=1) + counts.true.sum(axis=1)).astype(np.float64))
        for counts in (mine, other)
    ]
    found = []
    for _ in range(RESAMPLES // _AT_ONCE):
        rows = random.integers(0, len(mine.right), (_AT_ONCE, len(mine.right)))
        first, second = (above[rows].sum(axis=1) / np.maximum(below[rows].sum(axis=1), 1) for above, below in parts)
        found.append(first - second)
    low, high = np.percentile(np.concatenate(found), _INTERVAL)
    return Interval(mine.micro_f1() - other.micro_f1(), float(low), float(high))
