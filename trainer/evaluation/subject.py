"""The log that an evaluation is about, cut for any task. It lies on disk, however long it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from trainer.data.prepare import spec_holding
from trainer.data.sources import cached_log
from trainer.data.study import cut_study, fold_of
from trainer.evaluation.transfer import PlantedSource
from trainer.measuring.methods import split
from xplat_stream.errors import DataError
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from trainer.data.histories import Log
    from trainer.data.sources import Source
    from trainer.data.study import Study, Task

_LEAST_TUNED: Final = 2


class Subject(NamedTuple):
    """A log to evaluate on."""

    log: Log
    spec: WindowSpec

    def labelled_platforms(self) -> set[str]:
        """Return the platforms with events on items that carry labels."""
        histories, found = self.log.histories, set()
        named = np.array([mask > 0 for mask in histories.masks], bool)
        for part in histories.parts:
            found.update(np.unique(part.platform[named[part.named]]).tolist())
        return {self.log.platforms[position] for position in found}

    def study(self, task: Task, folds: int) -> Study:
        """Cut the histories for a task. Raises `DataError` where a fold has nobody to test or too few to tune on."""
        study = cut_study(self.log, self.spec, task)
        study = study._replace(fold=np.array([fold_of(user, folds) for user in study.histories.users], np.int64))
        for one in range(folds):
            parts = split(study, one)
            if not len(parts.test) or len(parts.tune) < _LEAST_TUNED:
                raise DataError(
                    f"fold {one + 1} of {folds} has {len(parts.test)} users to test and {len(parts.tune)} to tune on",
                    where=self.log.name,
                    expected=f"1 and {_LEAST_TUNED} at the least",
                    fix="Name more data, or fewer --folds.",
                )
        return study


def read_subject(source: Source, cache: Path, per_platform: int, horizon: timedelta | None) -> Subject:
    """Read a source through the cache, as training does. `horizon` None: the windows hold all of it.

    Raises what `cached_log` raises.
    """
    log = cached_log(source, cache).log
    return Subject(log, WindowSpec(per_platform, horizon) if horizon else spec_holding(log, per_platform))


def read_planted(subject: Subject, source: Source, cache: Path) -> Subject:
    """Read a subject's source again, with a platform of random items added. Raises what `cached_log` raises."""
    return subject._replace(log=cached_log(PlantedSource(source, subject.log), cache).log)
