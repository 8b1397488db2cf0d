"""The log that an evaluation is about, cut for any task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from trainer.methods import split
from trainer.study import build_study, fold_of
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.study import Study, Task
    from xplat_stream.event import Event
    from xplat_stream.taxonomy import Taxonomy
    from xplat_stream.window import WindowSpec

_LEAST_TUNED: Final = 2


class Subject(NamedTuple):
    """A log to evaluate on."""

    name: str
    events: Sequence[Event]
    taxonomy: Taxonomy
    spec: WindowSpec
    excluded: dict[str, int]
    """Why events were left out before → how many."""

    def labelled_platforms(self) -> set[str]:
        """Return the platforms whose items carry labels."""
        objects = {(event.platform, event.object.id): event.object for event in self.events}
        return {
            platform
            for (platform, _), item in objects.items()
            if self.taxonomy.label_ids(iab=item.iab, categories=item.categories)
        }

    def study(self, task: Task, folds: int) -> Study:
        """Cut the histories for a task. Raises `DataError` where a fold has nobody to test or too few to tune on."""
        study = build_study(self.name, self.events, self.taxonomy, self.spec, task)
        fold = np.array([fold_of(history.user_id, folds) for history in study.histories], np.int64)
        study = study._replace(fold=fold)
        for one in range(folds):
            parts = split(study, one)
            if not len(parts.test) or len(parts.tune) < _LEAST_TUNED:
                raise DataError(
                    f"fold {one + 1} of {folds} has {len(parts.test)} users to test and {len(parts.tune)} to tune on",
                    where=self.name,
                    expected=f"1 and {_LEAST_TUNED} at the least",
                    fix="Name more data, or fewer --folds.",
                )
        return study
