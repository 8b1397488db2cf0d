"""What is read off a fitted method: the windows it is shown, and what its scores on them come to, line by line."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.data.study import EVERYTHING, earlier, target_platforms
from trainer.evaluation import leaks, transfer
from trainer.evaluation.findings import Calibration, LabelLine, PlatformLine, TimelinessLine, ViewLine
from trainer.measuring import calibrate
from trainer.measuring.baselines import IN_TIME, POPULARITY
from trainer.measuring.measures import (
    Counts,
    bootstrap_calibration_error,
    bootstrap_mean,
    bootstrap_micro_f1,
    ndcg,
    paired_label_f1,
)
from trainer.measuring.methods import views_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from trainer.data.study import Cuts, Study
    from trainer.measuring.methods import Look, Scores, Trial

    Trials = Mapping[str, Trial]

REAL_TIME: Final = "real time"
HOURLY: Final = "hourly"
DAILY: Final = "daily"
SHUFFLED: Final = "shuffled"
_GRAINS_MS: Final = {HOURLY: 3_600_000, DAILY: 86_400_000}


def looks(study: Study) -> dict[str, Look]:
    """Return everything that the fitted main method is to look at."""
    everything = set(range(len(study.platforms)))
    found: dict[str, Look] = {view: partial(views_of, study, view=view) for view in study.views()}
    found[SHUFFLED] = leaks.shuffled(study)
    found |= {grain: partial(_stale, study, grain_ms=grain_ms) for grain, grain_ms in _GRAINS_MS.items()}
    for position, name in enumerate(study.platforms):
        found[transfer.without(name)] = transfer.showing(everything - {position})
    return found | transfer.pair_looks(study, target_platforms(study.task, study.platforms))


def view_line(study: Study, view: str, trials: Mapping[str, Trials], main: str, linear: Sequence[str]) -> ViewLine:
    """Return the main method under one view, beside popularity and the best of the linear baselines there."""
    targets = study.test.targets
    found = {name: ndcg(trials[name][view].scores, targets) for name in (main, POPULARITY, IN_TIME, *linear)}
    best = max(linear, key=lambda name: float(found[name].mean()))
    return ViewLine(
        view,
        names(study, study.views()[view]),
        bootstrap_mean(found[main]),
        bootstrap_micro_f1(Counts.of(trials[main][view].chosen(), targets)),
        bootstrap_mean(found[main] - found[POPULARITY]),
        bootstrap_mean(found[main] - found[IN_TIME]),
        best,
        bootstrap_mean(found[main] - found[best]),
    )


def label_lines(study: Study, main: Trial, scores: Scores, reference: Trial) -> list[LabelLine]:
    """Return every label, the most frequent first. `scores`: the main method's, calibrated (users, labels)."""
    targets = study.test.targets
    mine, other = Counts.of(main.chosen(), targets), Counts.of(reference.chosen(), targets)
    lines = [
        LabelLine(
            label.name,
            int(targets[:, one].sum()),
            float(targets[:, one].mean()),
            float(scores[:, one].mean()),
            float(mine.label_f1()[one]),
            float(other.label_f1()[one]),
            paired_label_f1(mine, other, one),
        )
        for one, label in enumerate(study.taxonomy.labels)
    ]
    return sorted(lines, key=lambda line: (-line.users, line.label))


def platform_lines(study: Study, guarded: transfer.Guarded, popularity: NDArray[np.float64]) -> list[PlatformLine]:
    """Return every platform. `popularity`: NDCG@10 of popularity of each user (users,)."""
    targets, target = study.test.targets, target_platforms(study.task, study.platforms)
    source = study.views().get(leaks.source_view(study), set())
    whole = ndcg(guarded.unguarded[EVERYTHING].scores, targets)
    events = np.bincount(np.concatenate([history.platform for history in study.histories]))
    lines = []
    for position, name in enumerate(study.platforms):
        rows = transfer.users_with(study, position)
        alone = ndcg(guarded.unguarded[transfer.only(name)].scores, targets) - popularity
        hidden = ndcg(guarded.unguarded[transfer.without(name)].scores, targets) - whole
        side = "target" if position in target else "source" if position in source else "other"
        lines.append(
            PlatformLine(
                name,
                side,
                int(events[position]),
                len(rows),
                bootstrap_mean(alone[rows]),
                bootstrap_mean(hidden[rows]),
                guarded.harms.get(position),
                guarded.muted_folds(position),
            )
        )
    return lines


def timeliness_lines(study: Study, trials: Trials) -> list[TimelinessLine]:
    """Return the main method with profiles in real time, of this hour's and of this day's beginning."""
    targets = study.test.targets
    live = ndcg(trials[EVERYTHING].scores, targets)
    lines = []
    for profile, look in {REAL_TIME: EVERYTHING, HOURLY: HOURLY, DAILY: DAILY}.items():
        found = ndcg(trials[look].scores, targets)
        lost = np.zeros(len(targets), np.bool_)
        if look in _GRAINS_MS:
            lost = _stale(study, study.test, grain_ms=_GRAINS_MS[look]).inputs.length < study.test.inputs.length
        lines.append(
            TimelinessLine(
                profile,
                bootstrap_mean(found),
                bootstrap_mean(found - live),
                int(lost.sum()),
                bootstrap_mean((found - live)[lost]),
            )
        )
    return lines


def resolution(study: Study) -> str:
    """Return the finest unit that the log's times tell apart: day, hour or finer."""
    times = np.concatenate([history.time for history in study.histories])
    for unit, grain in (("day", DAILY), ("hour", HOURLY)):
        if not (times % _GRAINS_MS[grain]).any():
            return unit
    return "finer"


def calibration(trial: Trial, chosen: calibrate.Calibrated, targets: Scores) -> Calibration:
    """Return how far a trial's scores are from frequencies, by step, and with the steps chosen."""
    by_step = {step: calibrate.calibrated(trial, step).scores for step in calibrate.STEPS}
    return Calibration(
        {step: bootstrap_calibration_error(scores, targets) for step, scores in by_step.items()},
        chosen.steps,
        bootstrap_calibration_error(chosen.scores, targets),
        list(calibrate.curve(trial.scores, targets)),
        list(calibrate.curve(chosen.scores, targets)),
    )


def _stale(study: Study, cuts: Cuts, *, grain_ms: int) -> Cuts:
    """Return the cuts with the windows known when the hour or day of the cut began (UTC)."""
    starts = cuts.at - cuts.at % grain_ms
    before = [np.searchsorted(study.histories[user].time, start) for user, start in zip(cuts.user, starts, strict=True)]
    return earlier(study, cuts, np.array(before, np.int64))


def names(study: Study, positions: set[int]) -> list[str]:
    """Return the platforms at some positions."""
    return [study.platforms[position] for position in sorted(positions)]
