"""Logistic regressions on the words and label counts of windows: what a network has to beat, and what teaches it.

They know words one by one, where a vector of 64 numbers holds a text, and are fitted to convergence. They do not know
which platform a word comes from, so one where people do what they do at random drowns the others: `misleading`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import sparse
from scipy.stats import ttest_1samp
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression

from trainer.networks.losses import log_losses
from xplat_stream.event import ACTION_INDEX, NEGATIVE_ACTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from trainer.data.compact import Compact
    from trainer.data.texts import TextTable

    Scores = NDArray[np.float32]  # (windows, labels)

_C: Final = (0.03, 0.1, 0.3, 1.0)
_LOOSE: Final = _C[-1]
"""For a look at what hiding a platform does: a stiff regression is better off with fewer words, whatever they say."""
_CHANCE: Final = 0.0005
"""Of one tail, 99.9 % of both: every platform is asked about, as by the guard of `trainer.evaluation.transfer`."""
_RECENCY: Final = 0.85
_NEGATIVE: Final = [ACTION_INDEX[action] + 1 for action in sorted(NEGATIVE_ACTIONS)]


def count_words(texts: TextTable) -> sparse.csr_matrix:
    """Return (texts + 1, words): how often a text says a word that three of them say; row 0 is the empty text."""
    counter = CountVectorizer(min_df=3, stop_words="english", ngram_range=(1, 1))
    try:
        counted = counter.fit_transform(texts.texts)
    except ValueError:  # no word is in three texts
        counted = sparse.csr_matrix((len(texts.texts), 1), dtype=np.int64)
    return sparse.vstack([sparse.csr_matrix((1, counted.shape[1]), dtype=counted.dtype), counted]).tocsr()


def fit_linear(  # noqa: PLR0913 - what is learned from, what chooses, and of which features
    texts: TextTable,
    words: sparse.csr_matrix | None,
    windows: Compact,
    targets: Scores,
    *,
    held_out: Compact,
    quality: Callable[[Scores], float],
    counts: bool = True,
) -> Callable[[Compact], Scores]:
    """Fit one logistic regression a label, and return windows → scores (windows, labels).

    `words`: of `count_words`; None leaves them out. `windows`, `targets` (windows, labels): one window a user. `C` is
    the one whose scores of `held_out` have the highest `quality`, the stiffest of equals.
    """
    features = _Features(texts, words, windows, counts=counts)
    inputs, asked = features.of(windows), features.of(held_out)
    tried = [one_a_label(inputs, targets, strength) for strength in _C]
    best = max(tried, key=lambda says: quality(says(asked)))
    return lambda others: best(features.of(others))


def misleading(
    texts: TextTable, words: sparse.csr_matrix, windows: Compact, targets: Scores, asked: Iterable[int]
) -> list[int]:
    """Return those of the platforms `asked` about without which a regression tells better what people do.

    Platforms by index from 1; better beyond chance. `windows`, `targets` (windows, labels): one window a user. Each
    half of the users is asked about by a regression that learned from the other half.
    """

    def losses(seen: Compact) -> NDArray[np.float64]:
        found = np.empty(len(targets))
        for part in range(2):
            learned, others = np.arange(1 - part, len(targets), 2), np.arange(part, len(targets), 2)
            features = _Features(texts, words, seen.take(learned))
            says = one_a_label(features.of(seen.take(learned)), targets[learned], _LOOSE)
            found[others] = log_losses(says(features.of(seen.take(others))), targets[others])
        return found

    present = np.unique(windows.platform[windows.action > 0])
    doubted = np.intersect1d(present, list(asked))
    if not len(doubted) or len(present) < 2:  # noqa: PLR2004 - without the only one there is nothing to learn from
        return []
    whole = losses(windows)
    gains = {int(one): whole - losses(windows.seeing(present[present != one])) for one in doubted}
    return [one for one, gain in gains.items() if ttest_1samp(gain, 0, alternative="greater").pvalue < _CHANCE]


class _Features:
    """Words and label counts of windows as one sparse matrix."""

    def __init__(
        self, texts: TextTable, words: sparse.csr_matrix | None, windows: Compact, *, counts: bool = True
    ) -> None:
        self._texts, self._words, self._counts = texts, words, counts
        if words is not None:
            self._idf = TfidfTransformer(sublinear_tf=True).fit(self._bag(windows))

    def _bag(self, windows: Compact) -> sparse.csr_matrix:
        presence = (windows.text > 0).astype(np.float32)
        return event_matrix(windows, presence, len(self._texts.texts)) @ self._words

    def of(self, windows: Compact) -> sparse.csr_matrix:
        """Return (windows, features)."""
        parts = []
        if self._words is not None:
            parts.append(self._idf.transform(self._bag(windows)))
        if self._counts:
            counts = event_matrix(windows, _recency(windows), len(self._texts.texts)) @ own_labels(self._texts)
            parts.append(sparse.csr_matrix(np.log1p(counts)))
        return sparse.hstack(parts).tocsr()


def own_labels(texts: TextTable) -> Scores:
    """Return (texts + 1, labels): the labels that an item with a text names itself; row 0 is the empty text."""
    return np.concatenate([np.zeros((1, texts.own.shape[1]), np.float32), texts.own])


def event_matrix(inputs: Compact, weight: NDArray[Any], texts: int) -> sparse.csr_matrix:
    """Return (windows, texts + 1): how much weight of a window's events (windows, events) lies on each text."""
    rows, columns = np.nonzero(weight)
    return sparse.csr_matrix((weight[rows, columns], (rows, inputs.text[rows, columns])), (len(weight), texts + 1))


def counted(inputs: Compact) -> NDArray[np.bool_]:
    """Return which events speak for the labels of what they touch (windows, events): all but the negative ones."""
    return (inputs.action > 0) & ~np.isin(inputs.action, _NEGATIVE)


def _recency(inputs: Compact) -> NDArray[np.float64]:
    """Return .85 to the power of how many events of the window are newer (windows, events)."""
    newer = inputs.length[:, None] - 1 - np.arange(inputs.action.shape[1])
    return np.where(counted(inputs), _RECENCY ** np.maximum(newer, 0), 0.0)


def one_a_label(inputs: sparse.csr_matrix, targets: Scores, strength: float) -> Callable[[Any], Scores]:
    """Fit one logistic regression a label; a label always or never touched keeps its frequency."""
    models: list[LogisticRegression | float] = []
    for label in range(targets.shape[1]):
        wanted = targets[:, label] > 0
        if wanted.all() or not wanted.any():
            models.append(float(wanted.mean()))
            continue
        models.append(LogisticRegression(C=strength, solver="liblinear", random_state=0).fit(inputs, wanted))

    def predict(rows: Any) -> Scores:
        found = np.empty((rows.shape[0], len(models)), np.float32)
        for label, model in enumerate(models):
            found[:, label] = model if isinstance(model, float) else model.predict_proba(rows)[:, 1]
        return found

    return predict
