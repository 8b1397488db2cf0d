"""What an evaluation found, as values: report.json holds exactly this, report.md and the plots are drawn from it.

An `Interval` is written as ``[value, low, high]``, 95 % by bootstrap over users. A difference is paired: both figures
are of the same users. NaN, where there are no users, is written as null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import msgspec

from trainer.evaluation.leaks import LeakCheck
from trainer.evaluation.ranking import OURS, Ranking
from trainer.evaluation.transfer import Harm, MatrixCell
from trainer.measuring import measures
from trainer.measuring.calibrate import CurvePoint
from trainer.measuring.measures import Counts, Interval, bootstrap_mean, ndcg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainer.measuring.methods import Scores, Trial


class MethodLine(msgspec.Struct, frozen=True):
    """One method on all evaluated users, with the whole window."""

    name: str
    ndcg10: Interval
    map: Interval
    recall5: Interval
    micro_f1: Interval
    macro_f1: Interval
    ece: Interval
    """After the calibration step of each fold."""
    ndcg10_gain: Interval
    """To the linear baseline with the highest NDCG@10 of this run."""
    micro_f1_gain: Interval
    """To the linear baseline with the highest micro-F1 of this run."""

    @classmethod
    def of(cls, name: str, trial: Trial, scores: Scores, targets: Scores, best: tuple[Trial, Trial]) -> Self:
        """Measure a trial. `scores`: calibrated. `best`: the linear trials with the highest NDCG@10 and micro-F1."""
        counts = Counts.of(trial.chosen(), targets)
        found = ndcg(trial.scores, targets)
        return cls(
            name,
            bootstrap_mean(found),
            bootstrap_mean(measures.average_precision(trial.scores, targets)),
            bootstrap_mean(measures.recall(trial.scores, targets)),
            measures.bootstrap_micro_f1(counts),
            measures.bootstrap_macro_f1(counts),
            measures.bootstrap_calibration_error(scores, targets),
            bootstrap_mean(found - ndcg(best[0].scores, targets)),
            measures.paired_f1(counts, Counts.of(best[1].chosen(), targets)),
        )


class ViewLine(msgspec.Struct, frozen=True):
    """The main method with part of every window hidden."""

    view: str
    platforms: list[str]
    ndcg10: Interval
    micro_f1: Interval
    over_popularity: Interval
    """NDCG@10 minus popularity's."""
    over_popularity_in_time: Interval
    best_linear: str
    """The linear baseline with the highest NDCG@10 under this view."""
    over_best_linear: Interval


class GroupLine(msgspec.Struct, frozen=True):
    """Some of the users."""

    group: str
    users: int
    ndcg10: Interval
    popularity: Interval
    best_linear: Interval
    gain: Interval
    """Main method minus the best linear baseline, NDCG@10."""
    micro_f1: Interval

    @classmethod
    def of(
        cls, group: str, rows: NDArray[np.int64], main: Trial, targets: Scores, popularity: Trial, linear: Trial
    ) -> Self:
        """Measure the users at some positions."""
        mine, plain, other = (ndcg(trial.scores[rows], targets[rows]) for trial in (main, popularity, linear))
        return cls(
            group,
            len(rows),
            bootstrap_mean(mine),
            bootstrap_mean(plain),
            bootstrap_mean(other),
            bootstrap_mean(mine - other),
            measures.bootstrap_micro_f1(Counts.of(main.chosen()[rows], targets[rows])),
        )


class LabelLine(msgspec.Struct, frozen=True):
    """One label."""

    label: str
    users: int
    """Evaluated users whose target names it."""
    frequency: float
    score: float
    """Mean calibrated score of the main method: near the frequency where it means what it says."""
    f1: float
    best_linear_f1: float
    gain: Interval
    """F1 of the main method minus the best linear baseline's."""


class PlatformLine(msgspec.Struct, frozen=True):
    """One platform: what it says alone, and what is lost without it. Of users who have events of it."""

    platform: str
    side: str
    """target, source or other."""
    events: int
    users: int
    alone: Interval
    """NDCG@10 of the main method seeing nothing else, minus popularity's."""
    hiding: Interval
    """NDCG@10 without it minus NDCG@10 with everything: below zero it is useful."""
    harm: Harm | None
    """What the guard found; none for a target platform."""
    muted_folds: int


class BeforeAfter(msgspec.Struct, frozen=True):
    """Transfer as such: the main method trained and scored on the target's platforms alone, and on all."""

    group: str
    users: int
    before: Interval
    after: Interval
    gain: Interval


class TimelinessLine(msgspec.Struct, frozen=True):
    """The same model with the profile made as events come, every hour, or every day."""

    profile: str
    ndcg10: Interval
    difference: Interval
    """To the profile in real time."""
    changed: int
    """Users whose window lacks an event because of it."""
    changed_difference: Interval
    """The difference on those users."""


class Calibration(msgspec.Struct, frozen=True):
    """How far scores are from frequencies, before and after the step that was taken."""

    ece: dict[str, Interval]
    """Step → expected calibration error, ten bins, with that step in every fold."""
    taken: list[str]
    """The step taken in each fold, chosen on its tuning users."""
    chosen: Interval
    """Expected calibration error with the steps taken."""
    before: list[CurvePoint]
    after: list[CurvePoint]


class Planted(msgspec.Struct, frozen=True):
    """A platform of random items was added for the same users: does the guard find it?"""

    without: float
    """NDCG@10 of training without it."""
    unguarded: float
    guarded: float
    harm: Interval
    """Unguarded minus without."""
    left: Interval
    """Guarded minus without."""
    found: Harm
    muted_folds: int

    @property
    def passed(self) -> bool:
        """Whether the guard brings the target back to within one percent of training without the platform."""
        return self.guarded >= 0.99 * self.without


class Findings(msgspec.Struct, frozen=True):
    """Everything an evaluation found."""

    name: str
    target: list[str]
    source: list[str]
    label_events: int
    users: int
    training_users: int
    cuts: int
    labels: list[LabelLine]
    folds: int
    main: str
    best_linear: str
    methods: list[MethodLine]
    views: list[ViewLine]
    groups: list[GroupLine]
    lengths: list[GroupLine]
    platforms: list[PlatformLine]
    matrix: list[MatrixCell]
    no_matrix: dict[str, str]
    """Target platform → why it has no column."""
    before_after: list[BeforeAfter]
    timeliness: list[TimelinessLine]
    resolution: str
    """The finest unit of time that the log's events tell apart: day, hour or finer."""
    calibration: Calibration
    planted: Planted | None
    leaks: list[LeakCheck]
    ranking: Ranking | None
    """Of the item ranking task, where it was asked for."""
    excluded: dict[str, int]
    seconds: dict[str, float]
    """Stage → seconds of the clock."""

    def method(self, name: str) -> MethodLine:
        """Return the line of a method."""
        return next(line for line in self.methods if line.name == name)

    def failures(self) -> list[str]:
        """Return what must not be, one line each: leaks, and a planted platform that the guard did not hold off."""
        found = [f"leak check failed: {check.name}: {check.words}" for check in self.leaks if not check.passed]
        if self.planted is not None and not self.planted.passed:
            found.append(
                f"guard failed: NDCG@10 {self.planted.guarded:.4f} with a planted platform, "
                f"{self.planted.without:.4f} without; expected at most one percent less"
            )
        return found

    def summary(self, ranked: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the figures that a script asks for, flat. `ranked`: platforms whose ranking is named, null if none."""
        main, linear = self.method(self.main), self.method(self.best_linear)
        found: dict[str, Any] = {
            "ndcg10": main.ndcg10.value,
            "micro_f1": main.micro_f1.value,
            "best_linear_ndcg10": linear.ndcg10.value,
            **_flat("gain", main.ndcg10_gain),
            **_flat("micro_f1_gain", main.micro_f1_gain),
            "ece": main.ece.value,
        }
        for platform in ranked:
            figures = self.ranking.sampled[OURS].get(platform) if self.ranking else None
            found[f"{platform}_ndcg10"] = figures.ndcg.value if figures else None
        source = self.views[0]
        if len(self.views) > 1:
            found |= {
                "a_only_ndcg10": source.ndcg10.value,
                **_flat("a_only_gain", source.over_popularity),
                **_flat("a_only_gain_in_time", source.over_popularity_in_time),
            }
        if self.planted is not None:
            found |= {"planted_share": self.planted.guarded / self.planted.without}
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
        return {
            "main": self.main,
            "best_linear": self.best_linear,
            "users": self.users,
            "labels": len(self.labels),
            **rounded,
            "muted": sorted(line.platform for line in self.platforms if line.muted_folds),
            "checks_passed": not self.failures(),
            "seconds": round(sum(self.seconds.values()), 1),
        }


def _flat(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
