"""`xplat evaluate` from log to findings, on one page: a main method beside others, on users that no fold trained on.

Everything a run says comes from few fits: the main method once a fold, once more on the target's platforms alone,
once on permuted labels, and again in folds where the guard mutes a source. All else (views, single platforms, stale
profiles, shuffled histories) is the same fitted model looking at other windows.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.data.study import EVERYTHING, FOLDS, target_platforms
from trainer.evaluation import leaks, readings, transfer
from trainer.evaluation.findings import BeforeAfter, Findings, GroupLine, MethodLine, Planted
from trainer.measuring import calibrate, groups
from trainer.measuring.baselines import IN_TIME, LINEAR_METHODS, POPULARITY, Popularity, PopularityInTime
from trainer.measuring.measures import Counts, bootstrap_mean, ndcg
from trainer.measuring.methods import try_looks, try_method
from trainer.run.progress import silent
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from trainer.data.study import Study, Task
    from trainer.evaluation.ranking import Ranking
    from trainer.evaluation.subject import Subject
    from trainer.measuring.methods import Method, Trial
    from trainer.run.progress import Report

    Trials = Mapping[str, Trial]

_LEAK_FOLDS: Final = 1
"""Folds fitted on permuted labels: a leak shows on a fifth of the users as well."""


def evaluate(  # noqa: PLR0913 - what is evaluated, by what, and who is told
    subject: Subject,
    task: Task,
    main: Method,
    others: Sequence[Method],
    *,
    folds: int = FOLDS,
    planted: Callable[[], Subject] | None = None,
    rank: Callable[[], Ranking] | None = None,
    report: Report = silent,
) -> Findings:
    """Measure `main` beside `others` on a log. Popularity and popularity in time are always among the others.

    `folds`: by a hash of the user's id. `planted` reads the same log with a platform of random items, to see whether
    the guard mutes it: twice the fits.

    Raises `DataError` where the log gives too little, `InvalidScores` where a method scores NaN or out of range,
    `ValueError` where two methods share a name.
    """
    others = _with_references(others, main.name)
    every = range(folds)
    clock = _Clock(report, folds)
    with clock.stage("study"):
        study = subject.study(task, folds)
    targets, views = study.test.targets, tuple(study.views())

    # Every method, every fold. The main one looks at more windows than the others.
    looks = readings.looks(study)
    with clock.stage(main.name) as told:
        guarded = transfer.try_guarded(study, main, looks, folds=every, report=told)
    trials: dict[str, Trials] = {main.name: guarded.trials}
    for method in others:
        with clock.stage(method.name) as told:
            trials[method.name] = try_method(study, method, views=views, folds=every, report=told)
    popularity = trials[POPULARITY]
    linear: list[str] = [name for name in LINEAR_METHODS if name in trials and name != main.name] or [POPULARITY]
    best = max(linear, key=lambda name: float(ndcg(trials[name][EVERYTHING].scores, targets).mean()))
    best_f1 = max(linear, key=lambda name: Counts.of(trials[name][EVERYTHING].chosen(), targets).micro_f1())
    mine, reference = guarded.trials[EVERYTHING], trials[best][EVERYTHING]

    # What needs further fits.
    with clock.stage("target only") as told:
        before_after = _before_after(study, main, mine, every, told)
    with clock.stage("permuted labels"):
        permuted = leaks.check_permuted(study, main, every[:_LEAK_FOLDS])
    with clock.stage("matrix"):
        plain = ndcg(popularity[EVERYTHING].scores, targets)
        matrix, no_matrix = _matrix(subject, task, study, main, (guarded.unguarded, plain), folds)
    with clock.stage("planted platform") as told:
        held_off = _planted(planted(), study, main, mine, every, told) if planted else None
    with clock.stage("ranking"):
        ranking = rank() if rank else None

    source = leaks.source_view(study)
    calibrated = calibrate.calibrated(mine)
    return Findings(
        name=study.name,
        target=list(task.target) or list(study.platforms),
        source=readings.names(study, study.views().get(source, set())),
        label_events=task.label_events,
        users=len(study.test),
        training_users=len(np.unique(study.train.user)),
        cuts=len(study.train),
        labels=readings.label_lines(study, mine, calibrated.scores, reference),
        folds=folds,
        main=main.name,
        best_linear=best,
        methods=[
            MethodLine.of(
                name,
                found[EVERYTHING],
                calibrate.calibrated(found[EVERYTHING]).scores,
                targets,
                (reference, trials[best_f1][EVERYTHING]),
            )
            for name, found in trials.items()
        ],
        views=[readings.view_line(study, view, trials, main.name, linear) for view in views],
        groups=[
            GroupLine.of(group, rows, mine, targets, popularity[EVERYTHING], reference)
            for group, rows in {"all": np.arange(len(targets)), **groups.by_knowledge(study)}.items()
        ],
        lengths=[
            GroupLine.of(group, rows, mine, targets, popularity[EVERYTHING], reference)
            for group, rows in groups.by_length(study).items()
        ],
        platforms=readings.platform_lines(study, guarded, plain),
        matrix=matrix,
        no_matrix=no_matrix,
        before_after=before_after,
        timeliness=readings.timeliness_lines(study, guarded.trials),
        resolution=readings.resolution(study),
        calibration=readings.calibration(mine, calibrated, targets),
        planted=held_off,
        leaks=[
            leaks.check_shuffled(
                study,
                guarded.trials[readings.SHUFFLED].scores,
                guarded.trials[source].scores,
                popularity[source].scores,
            ),
            permuted,
            leaks.check_history(study, study.train),
            leaks.check_users(study, every),
        ],
        ranking=ranking,
        excluded={reason: count for reason, count in study.excluded.items() if count},
        seconds=clock.seconds,
    )


class _Clock:
    """Tells where a run stands, and how long each stage took."""

    def __init__(self, report: Report, folds: int) -> None:
        self.seconds: dict[str, float] = {}
        self._report, self._folds = report, folds

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int], None]]:
        """Time a stage; yields what is to be told how many folds are done."""
        begun = time.monotonic()
        yield lambda done: self._report(name, done, self._folds, {})
        self.seconds[name] = round(time.monotonic() - begun, 2)
        self._report(name, self._folds, self._folds, {})


def _with_references(others: Sequence[Method], main: str) -> list[Method]:
    """Return the others with popularity and popularity in time in front. Names must differ: they are looked up."""
    references: list[Method] = [Popularity(), PopularityInTime()]
    found = references + [method for method in others if method.name not in {POPULARITY, IN_TIME}]
    names = [main, *(method.name for method in found)]
    if len(set(names)) < len(names):
        message = f"two methods share a name: {', '.join(sorted(names))}"
        raise ValueError(message)
    return found


def _before_after(
    study: Study, main: Method, after: Trial, folds: range, told: Callable[[int], None]
) -> list[BeforeAfter]:
    others = transfer.sources(study)
    if not others:
        return []
    method = transfer.Hiding(main, frozenset(others))
    before = try_method(study, method, views=(EVERYTHING,), folds=folds, report=told)[EVERYTHING]
    targets = study.test.targets
    first, second = ndcg(before.scores, targets), ndcg(after.scores, targets)
    return [
        BeforeAfter(
            group,
            len(rows),
            bootstrap_mean(first[rows]),
            bootstrap_mean(second[rows]),
            bootstrap_mean((second - first)[rows]),
        )
        for group, rows in {"all": np.arange(len(targets)), **groups.by_knowledge(study)}.items()
    ]


def _matrix(
    subject: Subject, task: Task, study: Study, main: Method, done: tuple[Trials, NDArray[np.float64]], folds: int
) -> tuple[list[transfer.MatrixCell], dict[str, str]]:
    """Return a column for each platform whose labels can be foretold, and why the others have none."""
    cells: list[transfer.MatrixCell] = []
    skipped: dict[str, str] = {}
    labelled = subject.labelled_platforms()
    for position, name in enumerate(study.platforms):
        if (name,) == task.target:
            cells += transfer.matrix_column(study, position, *done)
            continue
        if name not in labelled:
            skipped[name] = "none of its items carries a label"
            continue
        try:
            other = subject.study(replace(task, target=(name,), source=()), folds)
        except DataError as error:
            skipped[name] = error.what
            continue
        looks = transfer.pair_looks(other, {position})
        trials = try_looks(other, main, looks, folds=range(folds))
        plain = try_method(other, Popularity(), views=(EVERYTHING,), folds=range(folds))[EVERYTHING]
        cells += transfer.matrix_column(other, position, trials, ndcg(plain.scores, other.test.targets))
    return cells, skipped


def _planted(
    subject: Subject, study: Study, main: Method, mine: Trial, folds: range, told: Callable[[int], None]
) -> Planted:
    # Target and source are named, so that the planted platform changes neither what is foretold nor of whom.
    target = target_platforms(study.task, study.platforms)
    source = study.views().get(leaks.source_view(study), set())
    task = replace(study.task, target=tuple(readings.names(study, target)), source=tuple(readings.names(study, source)))
    noisy = subject.study(task, len(folds))
    found = transfer.try_guarded(noisy, main, {EVERYTHING: lambda cuts: cuts}, folds=folds, report=told)
    targets, position = study.test.targets, noisy.platforms.index(transfer.PLANTED)
    without = ndcg(mine.scores, targets)
    unguarded, guarded = (
        ndcg(trial[EVERYTHING].scores, noisy.test.targets) for trial in (found.unguarded, found.trials)
    )
    return Planted(
        float(without.mean()),
        float(unguarded.mean()),
        float(guarded.mean()),
        bootstrap_mean(unguarded - without),
        bootstrap_mean(guarded - without),
        found.harms[position],
        found.muted_folds(position),
    )
