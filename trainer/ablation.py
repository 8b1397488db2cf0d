"""What each option brings: variants of a method beside its default, on the same users, with paired intervals.

variants = [("no label counts", SplitMethod(counts=False)), ("FGM", SplitMethod(adversarial=0.1))]
lines = ablate(study, SplitMethod(), variants, folds=range(5))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from trainer.measures import Counts, Interval, bootstrap_mean, ndcg, paired_f1
from trainer.methods import Trial, try_method
from trainer.study import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from trainer.methods import Method
    from trainer.study import Study

HELPS: Final = "helps"
HURTS: Final = "hurts"
NOTHING: Final = "brings nothing"


class AblationLine(NamedTuple):
    """One variant beside the default."""

    name: str
    ndcg10: float
    difference: Interval
    """NDCG@10 of the variant minus the default's, paired."""
    micro_f1_difference: Interval
    verdict: str
    """`HELPS` or `HURTS` where the interval excludes zero, else `NOTHING`."""


def ablate(
    study: Study,
    default: Method | Trial,
    variants: Sequence[tuple[str, Method]],
    *,
    folds: Collection[int],
    report: Callable[[str, int], None] | None = None,
) -> list[AblationLine]:
    """Try every variant and compare it with the default: a method, or a trial of it that is there already.

    `report` is told the variant and how many folds of it are done.
    """
    targets = study.test.targets
    base = default if isinstance(default, Trial) else _trial(study, default, folds)
    base_ndcg, base_counts = ndcg(base.scores, targets), Counts.of(base.chosen(), targets)
    lines = []
    for name, method in variants:
        told = None if report is None else lambda done, name=name: report(name, done)
        trial = try_method(study, method, views=(EVERYTHING,), folds=folds, report=told)[EVERYTHING]
        found = ndcg(trial.scores, targets)
        difference = bootstrap_mean(found - base_ndcg)
        micro = paired_f1(Counts.of(trial.chosen(), targets), base_counts)
        lines.append(AblationLine(name, float(found.mean()), difference, micro, verdict(difference)))
    return lines


def verdict(difference: Interval) -> str:
    """Return what a paired difference says in a word."""
    if difference.excludes_zero:
        return HELPS if difference.value > 0 else HURTS
    return NOTHING


def _trial(study: Study, method: Method, folds: Collection[int]) -> Trial:
    return try_method(study, method, views=(EVERYTHING,), folds=folds)[EVERYTHING]
