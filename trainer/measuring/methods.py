"""What every way of foretelling interests looks like from outside, and how each is tried: fold by fold, by user.

A method is fitted on the cuts of some users and scores the cuts of others. Networks, linear models and counting all
are methods, so a report sets them side by side on the same users, the same windows and the same thresholds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from joblib import Parallel, delayed

from trainer.data.study import FOLDS
from trainer.measuring.measures import expected_threshold
from xplat_stream.errors import InvalidScores

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from trainer.data.study import Cuts, Study

    Scores = NDArray[np.float32]  # (cuts, labels), in [0, 1]
    Look = Callable[[Cuts], Cuts]
    """The same cuts with other windows: a view, a platform hidden, a profile of this morning."""


class Fitted(Protocol):
    """A method after fitting."""

    def scores(self, cuts: Cuts) -> Scores:
        """Return (cuts, labels) probabilities. Rows are independent of each other: order and company change nothing."""


class Method(Protocol):
    """A way of foretelling the labels of a cut's target from its window."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> Fitted:
        """Learn from `train`; stop and calibrate on `tune`, one cut a user, of other users.

        `study` may be asked for texts, platforms and items, and for the history of a cut before it; never for what
        comes after a cut that is not in `train`.
        """


@runtime_checkable
class Prepares(Protocol):
    """A method of which a part is the same for every fold."""

    def prepare(self, study: Study) -> None:
        """Do that part, and keep it."""


class Watch(Protocol):
    """Looks at the model of every fold."""

    def look(self, parts: Split, fitted: Fitted) -> object:
        """Return what it sees of one; changes nothing, for it may run in another process."""

    def note(self, seen: Any) -> None:
        """Remember what `look` returned."""


class Tuned(NamedTuple):
    """What a fold's model says of its tuning users, and what was true of them: calibrations are fitted on it."""

    rows: NDArray[np.int64]  # (test cuts,), positions in Study.test of the users of this fold
    scores: Scores  # (tuning users, labels)
    targets: Scores  # (tuning users, labels)


class Trial(NamedTuple):
    """What a method says of every evaluated user, each by a model that never saw that user."""

    scores: Scores  # (users, labels), in the order of Study.test
    threshold: NDArray[np.float32]  # (users,), of that user's fold: from its tuning users' scores, `expected_threshold`
    tuned: tuple[Tuned, ...] = ()
    """One a fold."""

    def chosen(self) -> NDArray[np.bool_]:
        """Return which labels are foretold at the fold's threshold (users, labels)."""
        return self.scores >= self.threshold[:, None]


class Split(NamedTuple):
    """The cuts of one fold."""

    train: Cuts
    tune: Cuts
    test: Cuts
    rows: NDArray[np.int64]  # (test cuts,), their positions in Study.test


_TUNE_EVERY = 8


def split(study: Study, fold: int) -> Split:
    """Return the cuts of one fold: tested are its users, tuned on one in eight of the others, trained on the rest."""
    tested = study.fold == fold
    order = np.cumsum(~tested)  # histories are in order of the users' ids, which say nothing
    tuned = ~tested & (order % _TUNE_EVERY == 0)
    rows = np.flatnonzero(tested[study.test.user])
    return Split(study.train.of_users(~tested & ~tuned), study.test.of_users(tuned), study.test.take(rows), rows)


def views_of(study: Study, cuts: Cuts, view: str) -> Cuts:
    """Return the cuts as one of `Study.views` shows them."""
    return cuts.seeing(study.views()[view])


def prepare(method: Method, study: Study) -> None:
    """Let a method do what is the same for every fold, if there is such a part."""
    if isinstance(method, Prepares):
        method.prepare(study)


def scores_of(name: str, fitted: Fitted, cuts: Cuts) -> Scores:
    """Return a fitted method's scores of cuts (cuts, labels).

    Raises `InvalidScores` where the shape is wrong, or a score is NaN or outside [0, 1]: no figure is made of those.
    """
    found = np.asarray(fitted.scores(cuts), np.float32)
    if found.shape != cuts.targets.shape:
        raise InvalidScores(f"{name} gave scores of shape {found.shape} for {cuts.targets.shape} cuts and labels")
    wrong = ~((found >= 0) & (found <= 1))  # NaN compares with nothing
    if wrong.any():
        rows = int(wrong.any(axis=1).sum())
        raise InvalidScores(f"{name} gave {int(wrong.sum())} scores that are NaN or outside [0, 1], in {rows} cuts")
    return found


def try_method(
    study: Study,
    method: Method,
    *,
    views: Sequence[str],
    folds: Collection[int] = range(FOLDS),
    report: Callable[[int], None] | None = None,
) -> Mapping[str, Trial]:
    """Fit a method once a fold and score that fold's users under each view. Users of folds left out score NaN."""
    looks = {view: partial(views_of, study, view=view) for view in views}
    return try_looks(study, method, looks, folds=folds, report=report)


def try_looks(
    study: Study,
    method: Method,
    looks: Mapping[str, Look],
    *,
    folds: Collection[int] = range(FOLDS),
    report: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> Mapping[str, Trial]:
    """Fit a method once a fold and score that fold's users under each look. Users of folds left out score NaN.

    Folds are fitted side by side inside `joblib.parallel_config(n_jobs=…)`, one after the other outside of it; what
    comes out is the same. `watch` sees every fold. Raises `InvalidScores`.
    """
    prepare(method, study)  # once, here: not in every process
    shape = study.test.targets.shape
    found = {look: Trial(np.full(shape, np.nan, np.float32), np.full(shape[0], np.nan, np.float32)) for look in looks}
    tried = Parallel(return_as="generator")(delayed(_tried)(study, method, looks, fold, watch) for fold in folds)
    for done, fold in enumerate(tried, 1):
        for look, (scores, tuned) in fold.scores.items():
            found[look].scores[fold.parts.rows] = scores
            found[look].threshold[fold.parts.rows] = expected_threshold(tuned)
            told = Tuned(fold.parts.rows, tuned, fold.parts.tune.targets)
            found[look] = found[look]._replace(tuned=(*found[look].tuned, told))
        if watch is not None:
            watch.note(fold.seen)
        if report is not None:
            report(done)
    return found


class _Tried(NamedTuple):
    """What one fold's model says."""

    parts: Split
    scores: dict[str, tuple[Scores, Scores]]  # look → of the test users, of the tuning users
    seen: object


def _tried(study: Study, method: Method, looks: Mapping[str, Look], fold: int, watch: Watch | None) -> _Tried:
    parts = split(study, fold)
    fitted = method.fit(study, parts.train, parts.tune)
    scores = {
        look: (scores_of(method.name, fitted, seen(parts.test)), scores_of(method.name, fitted, seen(parts.tune)))
        for look, seen in looks.items()
    }
    return _Tried(parts, scores, None if watch is None else watch.look(parts, fitted))
