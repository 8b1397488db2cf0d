"""How good scores are, each figure with its definition; and how sure of it one may be.

`scores` and `targets` are (cuts, labels): probabilities, and 1 where the label was touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Scores = NDArray[np.float32]

TOP: Final = 10
RECALL_TOP: Final = 5
RESAMPLES: Final = 2000
_CUTOFFS: Final = 199
CONFIDENCE: Final = 0.95
_BINS: Final = 10
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


def expected_threshold(scores: Scores) -> float:
    """Return the one threshold with the highest micro-F1 to be expected if the scores are the probabilities they claim.

    Where they are, this is the best there is (Lipton et al. 2014, arXiv:1402.1892), and it needs no targets: a hundred
    users' targets would say less, by chance, than their scores do.
    """
    cutoffs = np.unique(np.quantile(scores, np.linspace(0.0, 1.0, _CUTOFFS)))
    true = float(scores.sum())
    right = [float(scores[scores >= cutoff].sum()) for cutoff in cutoffs]
    named = [int((scores >= cutoff).sum()) for cutoff in cutoffs]
    quality = [2 * hit / max(count + true, 1e-12) for hit, count in zip(right, named, strict=True)]
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


def bootstrap(
    sums: NDArray[np.floating[Any]],
    figure: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return a figure made of sums over users, resampled over users (percentile bootstrap, Efron 1979).

    `sums` (users, parts) is what each user adds; `figure` turns totals (resamples, parts) into figures (resamples,).
    The same number of users and seed draw the same users: a difference of two figures is paired by stacking their
    parts. Of no users everything is NaN, of one user the ends are: one person says nothing of others.
    """
    found = resampled(np.asarray(sums)[:, None], lambda totals: figure(totals[:, 0])[:, None], seed=seed)
    return found.interval(0, confidence=confidence)


class Resampled(NamedTuple):
    """A figure of several groups of the same people, in the people as they are and in every resampling of them."""

    values: NDArray[np.float64]  # (groups,)
    draws: NDArray[np.float64]  # (resamples, groups); no resamples of fewer than two people

    def interval(self, group: int, *, confidence: float = CONFIDENCE) -> Interval:
        """Return one group's figure."""
        return _interval(float(self.values[group]), self.draws[:, group], confidence)

    def difference(self, mine: int, other: int, *, confidence: float = CONFIDENCE) -> Interval:
        """Return one group's figure less another's."""
        value = float(self.values[mine] - self.values[other])
        return _interval(value, self.draws[:, mine] - self.draws[:, other], confidence)


def _interval(value: float, draws: NDArray[np.float64], confidence: float) -> Interval:
    if not len(draws):
        return Interval(value, float("nan"), float("nan"))
    outside = 50 * (1 - confidence)
    low, high = np.percentile(draws, (outside, 100 - outside))
    return Interval(value, float(low), float(high))


def resampled(
    sums: NDArray[np.floating[Any]], figure: Callable[[NDArray[np.float64]], NDArray[np.float64]], *, seed: int = 0
) -> Resampled:
    """Return a figure of several groups, resampled over all people at once.

    `sums` (people, groups, parts) is what each person adds to each group; `figure` turns totals (resamples, groups,
    parts) into figures (resamples, groups). Of nobody all figures are NaN.
    """
    count = len(sums)
    parts = np.asarray(sums, np.float64)
    shape = parts.shape[1:]
    if not count:
        return Resampled(np.full(shape[0], np.nan), np.zeros((0, shape[0])))
    values = figure(parts.sum(axis=0, keepdims=True))[0]
    if count < 2:  # noqa: PLR2004 - nothing to resample
        return Resampled(values, np.zeros((0, shape[0])))
    flat = parts.reshape(count, -1)
    random = np.random.default_rng(seed)
    first = count * np.arange(_AT_ONCE)[:, None]
    found = []
    for _ in range(RESAMPLES // _AT_ONCE):
        rows = random.integers(0, count, (_AT_ONCE, count)) + first
        drawn = np.bincount(rows.ravel(), minlength=_AT_ONCE * count).reshape(_AT_ONCE, count)
        found.append(figure((drawn @ flat).reshape(_AT_ONCE, *shape)))
    return Resampled(values, np.concatenate(found))


def bootstrap_mean(values: NDArray[np.floating[Any]], seed: int = 0, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of a value a user, resampled over users."""
    return bootstrap(np.stack([values, np.ones_like(values)], 1), _ratio, seed=seed, confidence=confidence)


def bootstrap_ratio(above: NDArray[np.floating[Any]], below: NDArray[np.floating[Any]], seed: int = 0) -> Interval:
    """Return sum(above) / sum(below) resampled over users: micro-F1 is 2 · right / (named + true)."""
    return bootstrap(np.stack([above, below], 1), _ratio, seed=seed)


def bootstrap_micro_f1(counts: Counts, seed: int = 0) -> Interval:
    """Return micro-F1 resampled over users."""
    return bootstrap(_micro_parts(counts), _ratio, seed=seed)


def bootstrap_macro_f1(counts: Counts, seed: int = 0) -> Interval:
    """Return macro-F1 resampled over users; a label that no resampled target names is left out of that mean."""
    parts = np.concatenate([counts.right, counts.named, counts.true], axis=1)

    def figure(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        right, named, true = np.split(totals, 3, axis=1)  # (resamples, labels) each
        label_f1 = 2 * right / np.maximum(named + true, 1)
        return np.asarray((label_f1 * (true > 0)).sum(axis=1) / np.maximum((true > 0).sum(axis=1), 1), np.float64)

    return bootstrap(parts, figure, seed=seed)


def bootstrap_calibration_error(scores: Scores, targets: Scores, seed: int = 0) -> Interval:
    """Return `calibration_error` resampled over users. Chance alone adds to it, so the interval lies high."""
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    gaps = np.stack([((scores - targets) * (bins == one)).sum(axis=1) for one in range(_BINS)], 1)  # (users, bins)
    labels = scores.shape[1]

    def figure(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.abs(totals).sum(axis=1) / (len(scores) * labels), np.float64)

    return bootstrap(gaps, figure, seed=seed)


def bin_gaps(scores: Scores, targets: Scores) -> NDArray[np.float32]:
    """Return (users, labels, bins) what `calibration_error` sums: score less target in the score's bin, else zeros."""
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    gaps: NDArray[np.float32] = (scores - targets)[:, :, None] * (bins[:, :, None] == np.arange(_BINS))
    return gaps


def paired_f1(mine: Counts, other: Counts, seed: int = 0, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the difference of two methods' micro-F1 on the same users, resampled over users."""
    parts = np.concatenate([_micro_parts(mine), _micro_parts(other)], axis=1)
    return bootstrap(
        parts, lambda totals: _ratio(totals[:, :2]) - _ratio(totals[:, 2:]), seed=seed, confidence=confidence
    )


def paired_label_f1(
    mine: Counts, other: Counts, label: int, seed: int = 0, *, confidence: float = CONFIDENCE
) -> Interval:
    """Return the difference of two methods' F1 of one label on the same users, resampled over users."""
    alone = [Counts(*(part[:, label : label + 1] for part in counts)) for counts in (mine, other)]
    return paired_f1(alone[0], alone[1], seed, confidence=confidence)


def _micro_parts(counts: Counts) -> NDArray[np.float64]:
    """Return (users, 2): twice the right labels, and the foretold and true ones together."""
    whole = counts.named.sum(axis=1) + counts.true.sum(axis=1)
    return np.stack([2.0 * counts.right.sum(axis=1), whole], 1)


def _ratio(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(totals[:, 0] / np.maximum(totals[:, 1], 1e-12), np.float64)
