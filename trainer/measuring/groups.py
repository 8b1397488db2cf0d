"""Groups of users: by how much is known of them on the target, and by how long their history is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.data.study import target_platforms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from trainer.data.study import Study

    Rows = NDArray[np.int64]  # positions in Study.test

WARM: Final = "warm"
COLD: Final = "cold"
NOTHING_YET: Final = "cold, nothing yet"
HARD_COLD: Final = "hard-cold"

COLD_EVENTS: Final = 3
"""Fewer events on the target's platforms before the cut make a user cold."""

THIN: Final = 5
"""Events in a window that make a thin history."""

THICK: Final = 20
"""Events in a window from which a history is thick."""

_LENGTHS: Final = (0, 5, 10, 20, 40, 80)


def by_knowledge(study: Study) -> Mapping[str, Rows]:
    """Return the warm users, the cold ones, of these the ones with nothing on the target yet, of these the hard-cold.

    Hard-cold: no event on the target before the cut, and none of the target's items touched by anybody who is trained
    on. A user whose items others have taught the model is not as cold as that.
    """
    target = sorted(target_platforms(study.task, study.platforms))
    cuts = study.test
    known = np.zeros(len(cuts), np.int64)
    unseen = np.zeros(len(cuts), np.bool_)
    seen = _items_by_fold(study)
    for row, (user, before) in enumerate(zip(cuts.user, cuts.before, strict=True)):
        history = study.histories[user]
        on_target = np.isin(history.platform, target)
        known[row] = on_target[:before].sum()
        named = np.array([mask > 0 for mask in history.mask[before:]], np.bool_)
        items = history.item[before:][on_target[before:] & named][: study.task.label_events]
        unseen[row] = (seen[:, items].sum(axis=0) == seen[study.fold[user], items]).all()
    cold = known < COLD_EVENTS
    return {
        WARM: np.flatnonzero(~cold),
        COLD: np.flatnonzero(cold),
        NOTHING_YET: np.flatnonzero(known == 0),
        HARD_COLD: np.flatnonzero((known == 0) & unseen),
    }


def _items_by_fold(study: Study) -> NDArray[np.int64]:
    """Return (folds, items): how often the users of each fold touched each item."""
    count = np.zeros((int(study.fold.max()) + 1, len(study.items)), np.int64)
    for history, fold in zip(study.histories, study.fold, strict=True):
        np.add.at(count[fold], history.item, 1)
    return count


def by_length(study: Study) -> Mapping[str, Rows]:
    """Return the users by events in the window at the cut, in bins that double; empty bins are left out."""
    length = study.test.inputs.length
    found = {}
    for low, high in zip(_LENGTHS, (*_LENGTHS[1:], None), strict=True):
        rows = np.flatnonzero((length >= low) & (length < high if high else np.True_))
        if len(rows):
            found[f"{low} to {high - 1}" if high else f"{low} or more"] = rows
    return found


def by_activity(length: NDArray[np.int64]) -> Mapping[str, NDArray[np.bool_]]:
    """Tell people's histories apart by how many events the window holds (people,): thin, medium and thick ones."""
    thin, thick = length <= THIN, length >= THICK
    return {"thin": thin, "medium": ~thin & ~thick, "thick": thick}
