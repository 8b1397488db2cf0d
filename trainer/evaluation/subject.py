"""The log that an evaluation is about, cut for any task."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from trainer.data.exclusions import usable
from trainer.data.study import build_study, fold_of
from trainer.measuring.methods import split
from xplat_stream.errors import DataError
from xplat_stream.event import Millis
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.data.sources import Source
    from trainer.data.study import Study, Task
    from xplat_stream.event import Event
    from xplat_stream.taxonomy import Taxonomy

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


def read_subject(source: Source, per_platform: int, horizon: timedelta | None) -> Subject:
    """Read a whole source into memory. `horizon` None: the windows hold all of it. Raises what reading it raises."""
    now = Millis(time.time_ns() // 1_000_000)
    events, found = usable(source.events(), now, by_content=source.by_content)
    excluded = Counter({reason: count for reason, count in source.excluded.items() if count})
    excluded.update(found)
    if horizon is None:
        times = [int(event.occurred_at) for event in events]
        horizon = timedelta(milliseconds=max(times, default=0) - min(times, default=0) + 1)
    return Subject(source.name, events, source.taxonomy, WindowSpec(per_platform, horizon), dict(excluded))
