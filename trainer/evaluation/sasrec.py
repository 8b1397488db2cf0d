"""Foretelling labels by foretelling items: a SASRec (Kang & McAuley, ICDM 2018) as a `Method` to be beaten.

What a sequence model says of the next item of the target's platforms, summed over the items that name a label, ranks
the labels; two weights fitted on the tuning users turn it into the probability of a label among the next few events.
It reads ids, platforms and times, and no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from trainer.data.texts import bit_positions
from trainer.fitting.sequence import SequenceOptions, Sequences, fit_sequences, last_states
from trainer.measuring.baselines import Scorer, popular
from trainer.measuring.measures import ndcg
from trainer.run.progress import silent
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.data.study import Cuts, Study
    from trainer.fitting.sequence import SequenceModel

    Scores = NDArray[np.float32]  # (cuts, labels)

SASREC: Final = "SASRec"
_LABEL_EPOCHS: Final = 10
_LEAST_SHARE: Final = 1e-6
_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class SASRec:
    """Next-item probabilities, summed by label and calibrated."""

    name: str = SASREC
    options: SequenceOptions = field(default_factory=lambda: SequenceOptions(epochs=_LABEL_EPOCHS, patience=2))

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> Scorer:
        """See `Method`. Learned from: every event of the users of `train`, and of nobody else.

        Raises `DataError` where none of their items on the target's platforms names a label.
        """
        users = np.unique(train.user)
        histories = [study.histories[user] for user in users]
        longest = self.options.max_events
        sequences = Sequences.of(
            [history.item for history in histories], [history.time for history in histories], longest
        )
        platform = np.array([study.platforms.index(name) for name, _ in study.items], np.int64)
        shelves = _shelves(study, users, platform)
        prior = np.clip(popular(train), _LEAST_SHARE, 1 - _LEAST_SHARE)

        def raw(model: SequenceModel, asked: Sequences) -> Scores:
            found = np.zeros((len(asked), len(prior)), np.float32)
            for start in range(0, len(asked), _AT_ONCE):
                rows = np.arange(start, min(start + _AT_ONCE, len(asked)))
                states = last_states(model, asked.take(rows))
                for shelf in shelves:
                    with torch.no_grad():
                        logits = model.logits(states, shelf.platform, torch.from_numpy(shelf.items + 1))
                    found[rows] += shelf.share * (torch.softmax(logits, dim=1).numpy() @ shelf.labels)
            return found

        tuned = window_items(study, tune, longest)
        model = fit_sequences(
            sequences,
            platform,
            text=None,
            options=self.options,
            quality=lambda model: float(ndcg(raw(model, tuned), tune.targets).mean()),
            report=silent,
        )
        calibrate = _calibration(raw(model, tuned), prior, tune.targets)
        return Scorer(lambda cuts: calibrate(raw(model, window_items(study, cuts, longest))))


@dataclass(frozen=True, slots=True)
class _Shelf:
    """What training users touched on one of the target's platforms and names a label."""

    platform: int
    items: NDArray[np.int64]  # (items,), positions in Study.items
    labels: Scores  # (items, labels), 1 where named
    share: float  # of the training users' labelled events on the target's platforms


def _shelves(study: Study, users: NDArray[np.int64], platform: NDArray[np.int64]) -> Sequence[_Shelf]:
    labels = np.zeros((len(study.items), len(study.taxonomy)), np.float32)
    touched = np.zeros(len(study.items), np.int64)
    for user in users:
        history = study.histories[user]
        for item, mask in zip(history.item, history.mask, strict=True):
            if mask:
                labels[item, list(bit_positions(mask))] = 1
                touched[item] += 1
    target = [study.platforms.index(name) for name in study.task.target or study.platforms]
    counts = {one: int(touched[platform == one].sum()) for one in target}
    whole = sum(counts.values())
    if not whole:
        raise DataError(
            f"no training user touched a labelled item of {', '.join(study.task.target or study.platforms)}",
            where=study.name,
            expected="items with labels on the target's platforms",
            fix="Name more data, or another --target.",
        )
    return [
        _Shelf(one, chosen, labels[chosen], count / whole)
        for one, count in counts.items()
        if len(chosen := np.flatnonzero((platform == one) & (touched > 0)))
    ]


def window_items(study: Study, cuts: Cuts, longest: int) -> Sequences:
    """Return the items that each cut's window shows, in order of time, the newest `longest` of them.

    A window keeps the newest events of each platform, and a view hides platforms: as many as it shows of a platform are
    that platform's newest before the cut.
    """
    items, times = [], []
    for row in range(len(cuts)):
        history = study.histories[cuts.user[row]]
        before = int(cuts.before[row])
        shown = cuts.inputs.platform[row][cuts.inputs.action[row] > 0]
        kept = np.zeros(before, bool)
        for platform, count in zip(*np.unique(shown, return_counts=True), strict=True):
            kept[np.flatnonzero(history.platform[:before] == platform - 1)[-int(count) :]] = True
        items.append(history.item[:before][kept])
        times.append(history.time[:before][kept])
    return Sequences.of(items, times, longest)


class _Calibration:
    """The log-odds of a label: one weight of what the items say and one of how frequent the label is."""

    def __init__(self, prior: NDArray[np.float32], fitted: LogisticRegression) -> None:
        self._prior, self._fitted = prior, fitted

    def __call__(self, raw: Scores) -> Scores:
        found = self._fitted.predict_proba(_evidence(raw, self._prior))[:, 1]
        return np.asarray(found.reshape(raw.shape), np.float32)


def _calibration(raw: Scores, prior: NDArray[np.float32], targets: Scores) -> _Calibration:
    fitted = LogisticRegression(C=1e3, solver="liblinear").fit(_evidence(raw, prior), targets.ravel() > 0)
    return _Calibration(prior, fitted)


def _evidence(raw: Scores, prior: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (cuts * labels, 2)."""
    general = np.broadcast_to(np.log(prior / (1 - prior)), raw.shape)
    return np.asarray(np.stack([np.log(raw + _LEAST_SHARE).ravel(), general.ravel()], axis=1), np.float64)
